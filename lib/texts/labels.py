"""Labels as people write them, as 1 and 0: spam and ham, yes and no, toxic and not toxic, classes, scores."""

import itertools
import math
import operator
import re
import shlex
from collections.abc import Iterable

import pandas as pd

from lib.texts.table_files import Refused

POSITIVE = {  # what the other one of two labels has to be, for this one to be the positive class
    "1": {"0", "-1"},
    "true": {"false"},
    "t": {"f"},
    "yes": {"no"},
    "y": {"n"},
    "positive": {"negative"},
    "spam": {"ham"},
    "harmful": {"harmless", "benign"},
    "malicious": {"benign"},
    "jailbreak": {"benign"},
}
MISSING = ("", "nan", "<na>")  # what tools write where a table has no value
SHOWN = 12  # labels in a sentence; more numbers than these are scores


def key(label: str) -> str:
    """A label as labels are compared: without case and outer spaces, and 1.0 as 1."""
    label = label.strip().casefold()
    whole = re.fullmatch(r"\+?(-?)0*(\d+)(?:[.,]0*)?", label, re.ASCII)
    return (whole[1] * (whole[2] != "0") + whole[2]) if whole else label


def keys(labels: pd.Series) -> pd.Series:
    """The key of each label; that of a missing one is empty."""
    known = {label: key(label) for label in labels.dropna().unique()}
    of_rows = labels.map(known).astype("str")
    return of_rows.mask(of_rows.isin(MISSING), "").fillna("")


def number(label: str) -> float | None:
    """The number that a label is, also with a decimal comma; None if it is none."""
    try:
        value = float(re.sub(r"^([+-]?\d+),(\d+)$", r"\1.\2", label.strip()))
    except ValueError:
        return None
    return None if math.isnan(value) else value


def names(typed: str) -> list[str]:
    """The labels that somebody typed with commas between them, or one threshold."""
    return [typed] if typed.strip().startswith(">") else [name.strip() for name in typed.split(",")]


def _rejoined(positive: tuple[str, ...], known: Iterable[str]) -> tuple[str, ...]:
    """Names that were divided at commas, as the labels (their keys) that have such commas themselves."""
    whole = {tuple(map(key, label.split(","))): label for label in known}
    joined, i = [], 0
    while i < len(positive):
        ends = range(len(positive), i + 1, -1)
        end = next((j for j in ends if tuple(map(key, positive[i:j])) in whole), i + 1)
        joined.append(positive[i] if end == i + 1 else whole[tuple(map(key, positive[i:end]))])
        i = end
    return tuple(joined)


def binary(labels: pd.Series, positive: tuple[str, ...] = ()) -> tuple[pd.Series, str]:
    """Labels as 1 (positive) and 0, and a sentence on which became 1.

    ``positive`` names the positive labels, or holds one threshold such as ``>=0.5`` or ``>0.5``.

    Raises:
        Refused: one class only, a positive label that is not there, or none that is clearly the positive one.
    """
    of_rows = keys(labels)
    spelled = dict(zip(of_rows[::-1], labels[::-1].str.strip()))  # as the first row of each writes it
    counts = of_rows.value_counts()
    listed = _listed(counts, spelled)
    if len(counts) < 2:
        raise Refused(f"its only label is {listed}; two classes are needed")
    numbers = {label: value for label in counts.index if (value := number(label)) is not None}
    positive = _rejoined(positive, counts.index)
    threshold = re.fullmatch(r"(>=?)\s*(\S+)", positive[0].strip()) if len(positive) == 1 else None
    if threshold and key(positive[0]) not in counts:
        if (limit := number(threshold[2])) is None or len(numbers) < len(counts):
            raise Refused(f"POSITIVE='{positive[0]}' needs a number, and numbers as labels; its labels are {listed}")
        above = {">": operator.gt, ">=": operator.ge}[threshold[1]]
        ones = {label for label, value in numbers.items() if above(value, limit)}
    elif positive:
        ones = {key(label) for label in positive} & set(counts.index)
        if not ones:
            raise Refused(f"POSITIVE={shlex.quote(','.join(positive))} is none of its labels, which are {listed}")
    else:
        pairs = itertools.permutations(counts.index, 2) if len(counts) == 2 else ()
        ones = {label for label, other in pairs if other in POSITIVE.get(label, ()) or _negates(other, label)}
        if len(ones) != 1:
            example = _threshold(of_rows.map(numbers)) or " ".join(spelled[counts.index[0]].split())[:60]
            raise Refused(
                f"which of its labels is the positive class is not clear; they are {listed}: name one or more of them, "
                f"or a threshold for scores, for example POSITIVE={shlex.quote(example)}"
            )
    if not 0 < len(ones) < len(counts):
        share = "all" if ones else "none"
        raise Refused(f"POSITIVE='{','.join(positive)}' stands for {share} of its labels, which are {listed}")
    is_one = counts.index.isin(ones)
    unknown = [] if threshold else [label for label in positive if key(label) not in counts]
    sentence = f"POSITIVE names {', '.join(map(repr, unknown))}, which no row has; " if unknown else ""
    sentence += f"label 1 stands for {_listed(counts[is_one], spelled)}, "
    sentence += f"label 0 for {_listed(counts[~is_one], spelled)}"
    return of_rows.isin(ones).astype(int), sentence


def _listed(counts: pd.Series, spelled: dict[str, str]) -> str:
    listed = ", ".join(f"{spelled[label][:60]!r} ({count})" for label, count in counts[:SHOWN].items())
    return listed + (f" and {len(counts) - SHOWN} others" if len(counts) > SHOWN else "")


def _negates(label: str, other: str) -> bool:
    """Whether a label is the other one with "not", "no" or "non" before it."""
    label, other = (re.sub(r"[\s_-]+", " ", name) for name in (label, other))
    return label in {f"not {other}", f"no {other}", f"non {other}", f"non{other}"}


def _threshold(scores: pd.Series) -> str:
    """A threshold to propose: 0.5 or, for scores beyond 0 and 1, their median; none for classes."""
    if scores.isna().any() or not (scores.mod(1).any() or scores.nunique() > SHOWN):
        return ""
    return f">={0.5 if scores.between(0, 1).all() else scores.median():g}"

"""A user's labelled texts: which columns hold text and label, which label is the positive class, what is left out.

:func:`read` finds what is unambiguous, and says what it chose and dropped. What is ambiguous it refuses with the line
to type, such as ``TEXT=v2 LABEL=v1 POSITIVE=spam``: variables of make, which stand for the fields of :class:`Columns`.
"""

import hashlib
import html
import re
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.texts import labels, table_files
from lib.texts.table_files import Refused, Table

NAMES = {
    "text": "prompt prompts text texts tweet tweets statement sentence content message question query comment review "
    "body headline title input instruction request document passage post email sms utterance goal behavior "
    "comment_text tweet_text review_text user_input".split(),
    "label": "label labels target targets class category y sentiment toxic toxicity spam ham hate offensive harmful "
    "jailbreak clickbait gold_label".split(),
    "group": ["group", "base_id"],
}
JUNK = re.compile(r"|unnamed.*|index|id|level_0|.*_(len|length|id)")  # columns that are neither text nor label
ENTITY = r"&(?:[a-zA-Z]{2,8}|#\d{2,6}|#x[0-9a-fA-F]{2,6});"
CONTROL = (
    r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>|</?s>|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>"  # of templates
)


class Columns(NamedTuple):
    """How to read a file; every empty field is found where it is unambiguous.

    Attributes:
        text, label, group: names of columns, or their positions from 0, as in a CSV without a row of names; ``group``
            holds what the variants of one text share.
        positive: labels of the positive class, or a threshold for scores such as ``>=0.5`` or ``>0.5``.
        encoding: a name that Python knows, such as ``cp1252``.
    """

    text: str = ""
    label: str = ""
    group: str = ""
    positive: tuple[str, ...] = ()
    encoding: str = ""


class Labelled(NamedTuple):
    """What was read.

    Attributes:
        rows: ``text``, ``label`` (1 positive, 0 negative), ``group`` (equal texts share one if no column holds it) and
            ``line`` (where the row begins in the file, from 1; in parquet and a JSON array the row), as in the file.
        said: sentences on what was found, chosen and dropped, with counts.
        n_read: rows of the file: those in ``rows`` and those in ``dropped``.
        dropped: reason -> rows.
    """

    rows: pd.DataFrame
    said: list[str]
    n_read: int
    dropped: dict[str, int]


AS_FOUND = Columns()


def read(
    path: Path,
    columns: Columns = AS_FOUND,
    *,
    drop_duplicates: bool = True,
    drop_conflicts: bool = True,
    decode_entities: bool = False,
) -> Labelled:
    """The labelled texts of a file, with what was found, chosen and dropped.

    Rows without a text or a label are dropped, and, unless the parameters say otherwise, every row of a text that has
    both labels, and repeats of a text with its label. Texts are compared without the spaces around them, and, if HTML
    entities are to be decoded, after that.

    Raises:
        ValueError: one sentence that names the file, the value and what is allowed: a file that is no table or is
            damaged, an encoding that does not fit, no column or several that may be meant, labels of which none is
            clearly the positive class, no rows, or one class only.
    """
    try:
        table = table_files.read(path, lambda names: _wanted(names, columns), columns.encoding)
        rows, sentence = _columns(table, columns)
        n_read, said = len(rows), [f"{len(rows)} rows; {'; '.join(table.said)}", sentence]
        has_entities = rows["text"].str.contains(ENTITY, na=False)
        if decode_entities:
            decoded = rows["text"][has_entities].str.replace(ENTITY, lambda match: html.unescape(match[0]), regex=True)
            rows = rows.assign(text=rows["text"].mask(has_entities, decoded))
        positive = tuple(map(str, columns.positive))  # a profile may have numbers
        rows, dropped, sentences = _kept(rows, positive, drop_duplicates, drop_conflicts)
    except Refused as error:
        raise ValueError(f"{path}: {error}") from error
    said += sentences + [f"{count} rows of {n_read} left out: {reason}" for reason, count in dropped.items() if count]
    if n_entities := int(has_entities.sum()):
        how = "they are decoded, as asked" if decode_entities else "they are kept as they are"
        said.append(f"{n_entities} rows hold HTML entities such as &amp;; {how}")
    if n_control := int(rows["text"].str.contains(CONTROL).sum()):
        said.append(f"{n_control} texts spell a chat template's control tokens such as <|im_end|>; read as characters")
    said.append(f"{len(rows)} texts kept, {rows['label'].sum()} with label 1")
    return Labelled(rows, said, n_read, dropped)


class Unlabelled(NamedTuple):
    """Texts as they stand in a file, a row each (empty where there is none), and sentences on what was found."""

    texts: list[str]
    said: list[str]


def texts(path: Path, column: str = "", encoding: str = "") -> Unlabelled:
    """The texts of a file that needs no labels: of ``column``, of the only one with a usual name, of the only one that
    holds prose, or of the only one that there is. A ``.txt`` whose first line has no usual name is a text a line.

    A column may be given by its position from 0, as in a CSV without a row of names.

    Raises:
        ValueError: one sentence that names the file: it is no table or damaged, its encoding does not fit, no column or
            several may be meant, its first row looks like a text and not like names, or there are no texts.
    """
    asked = Columns(text=column)

    def wanted(names: list[str]) -> set[int]:
        return set(_by_name(names, asked, ("text",)).values()) or {i for i, name in enumerate(names) if name.strip()}

    try:
        table = _text_a_line(path, encoding) if not column and table_files.kind(path)[0] == ".txt" else None
        table = table or table_files.read(path, wanted, encoding)
        position, how = _text_column(table, asked)
        if position not in table.rows:
            raise Refused(f"column {table.names[position]!r} holds lists, objects or bytes; allowed are strings")
        cells = table.rows[position].fillna("").tolist()
        if table.header_line and _by_position(table.names, asked) and _name(table.names[position]) not in NAMES["text"]:
            cells, how = [table.names[position], *cells], f"column {position}; no row of names"
        if not any(cell.strip() for cell in cells):
            raise Refused(f"none of its {len(cells)} rows has a text")
    except Refused as error:
        raise ValueError(f"{path}: {error}") from error
    return Unlabelled(cells, [f"{len(cells)} rows; {'; '.join(table.said)}", f"text in {how}"])


def _text_a_line(path: Path, encoding: str) -> Table | None:
    """The lines of a file; None if the first one is a row of names of which one is usual."""
    table = table_files.read(path, set, encoding, by_line=True)
    names = re.split("|".join(map(re.escape, table_files.DELIMITERS)), table.rows[0].iloc[0].replace('"', ""))
    return None if any(_name(name) in NAMES["text"] for name in names) else table


def _text_column(table: Table, asked: Columns) -> tuple[int, str]:
    """The column of :func:`texts`, and how it was found."""
    names, roles = table.names, ("text",)
    chosen = _by_name(names, asked, roles)
    if chosen:
        return chosen["text"], f"column {names[chosen['text']]!r}"
    free = [i for i in table.rows if not JUNK.fullmatch(_name(names[i]))]
    hits = [i for i in free if _is_prose(table.rows[i])] if len(free) > 1 else free
    if len(hits) != 1:
        raise Refused(f"which column is the text is not clear; {_typed(names, {}, roles)}")
    if table.header_line and len(names[hits[0]].split()) > 3:
        raise Refused(
            f"its first row ({_listed(names)}) looks like a text, not like names; give the column by number from 0 (or "
            f"by name, if these are names), for example TEXT={hits[0]}"
        )
    return hits[0], f"column {names[hits[0]]!r}, told by what stands in the columns"


def _name(name: str) -> str:
    """A column's name as names are compared: without case, outer spaces, and the kind of space within."""
    return re.sub(r"[\s_.-]+", "_", name.strip().casefold())


def _listed(values: Collection[str], most: int = 12) -> str:
    shown = ", ".join(repr(value[:60]) for value in list(values)[:most])
    return shown + (f" and {len(values) - most} others" if len(values) > most else "")


def _typed(names: list[str], chosen: dict[str, int], roles: tuple[str, ...] = ("text", "label")) -> str:
    """The columns that there are, and a line to type."""
    free = [i for i, name in enumerate(names) if i not in chosen.values() and not JUNK.fullmatch(_name(name))]
    example = dict(zip([role for role in roles if role not in chosen], free)) | chosen
    short = {role: " ".join(names[i].split())[:60] for role, i in example.items()}
    line = " ".join(f"{role.upper()}={shlex.quote(short[role])}" for role in NAMES if role in short)
    return f"its columns are {_listed([name for name in names if name.strip()])}; name them, for example {line}"


def _by_position(names: list[str], columns: Columns) -> bool:
    """Whether columns are asked for by position: by digits, some of which are not names of the file."""
    asked = {name.strip() for name in columns[:3] if name}
    by_digits = bool(asked) and all(name.isascii() and name.isdigit() for name in asked)
    return by_digits and not asked <= {name.strip() for name in names}


def _by_name(names: list[str], columns: Columns, roles: tuple[str, ...] = tuple(NAMES)) -> dict[str, int]:
    """Role -> position of each column that was asked for, or is the only one of ``roles`` with a usual name.

    Raises:
        Refused: no such column, several of them, or one in two roles.
    """
    asked = {role: name for role, name in zip(NAMES, columns) if name}
    known, chosen = [_name(name) for name in names], {}
    for role, name in asked.items():
        if _by_position(names, columns):
            hits = [int(name)] if int(name) < len(names) else []
        else:
            hits = [i for i, other in enumerate(names) if other == name]
            hits = hits or [i for i, other in enumerate(known) if other == _name(name)]
        if len(hits) != 1:
            several = f"{len(hits)} columns" if hits else "no column"
            raise Refused(f"it has {several} {role.upper()}={shlex.quote(name[:60])}; {_typed(names, {}, roles[:2])}")
        chosen[role] = hits[0]
    if len(set(chosen.values())) < len(chosen):
        raise Refused(f"one column is asked for twice; {_typed(names, {})}")
    if _by_position(names, columns):
        return chosen
    free = [i for i in range(len(names)) if i not in chosen.values()]
    usual = {role: [i for i in free if known[i] in NAMES[role]] for role in roles if role not in asked}
    if usual.get("label") == []:
        usual["label"] = [i for i in free if known[i].startswith("is_")]
    chosen |= {role: hits[0] for role, hits in usual.items() if hits}
    for role, hits in usual.items():
        if len(hits) > 1:
            listed = _listed([names[i] for i in hits])
            raise Refused(f"several columns may be the {role}: {listed}; {_typed(names, chosen, roles[:2])}")
    return chosen


def _wanted(names: list[str], columns: Columns) -> set[int]:
    """The columns to read: those of text and label if their names tell them, else all that have a name."""
    chosen = _by_name(names, columns)
    have_names = {"text", "label"} <= set(chosen)
    return set(chosen.values()) if have_names else {i for i, name in enumerate(names) if name.strip()}


def _is_value(name: str, cells: pd.Series) -> bool:
    """Whether a column's name is one of its values, or a number above numbers: then it is no name."""
    values, name = set(labels.keys(cells)) - {""}, labels.key(name)
    return name in values or all(labels.number(value) is not None for value in {*values, name})


def _is_prose(cells: pd.Series) -> bool:
    """Whether cells are texts: long, mostly different, and of several words, unlike ids."""
    cells = cells[cells.str.strip() != ""].dropna()
    of_words = cells.str.contains(r"\s|[^\x00-\x7f]").mean() > 0.5
    return bool(of_words and cells.nunique() > len(cells) / 2 and cells.str.len().mean() >= 15)


def _columns(table: Table, columns: Columns) -> tuple[pd.DataFrame, str]:
    """The columns ``text``, ``label`` and, if there is one, ``group``; and how they were found.

    Raises:
        Refused: they cannot be told, or there is no row of names.
    """
    names, rows, how = table.names, table.rows, ""
    chosen = _by_name(names, columns)
    free = [i for i in rows if i not in chosen.values() and not JUNK.fullmatch(_name(names[i]))]
    unnamed = [role for role in ("text", "label") if role not in chosen]
    hits = {"text": [i for i in free if unnamed and _is_prose(rows[i])]}
    others = [i for i in free if unnamed and i not in hits["text"]]
    hits["label"] = [i for i in others if len(set(labels.keys(rows[i])) - {""}) == 2]
    chosen |= {role: hits[role][0] for role in unnamed if hits[role]}
    if table.header_line and "text" in unnamed and not columns.label:
        _require_names(table, chosen, free)
    if unclear := [role for role in unnamed if len(hits[role]) != 1]:
        raise Refused(f"which column is the {' and which the '.join(unclear)} is not clear; {_typed(names, chosen)}")
    if unnamed:
        how = f"; the {' and the '.join(unnamed)} told by what stands in the columns"
    if nested := [names[i] for i in chosen.values() if i not in rows]:
        raise Refused(f"column {nested[0]!r} holds lists, objects or bytes; allowed are strings and numbers")
    sentence = ", ".join(f"{role} in column {names[i]!r}" for role, i in chosen.items())
    if table.header_line and _by_position(names, columns):
        if _is_value(names[chosen["label"]], rows[chosen["label"]]):
            first = pd.DataFrame({i: [names[i]] for i in rows}, [table.header_line], dtype="str")
            rows, how = pd.concat([first, rows]), "; no row of names, as the first label is like the others"
            sentence = ", ".join(f"{role} in column {i}" for role, i in chosen.items())
        else:
            how = "; the first row holds names, as its label is unlike the others"
    return pd.DataFrame({role: rows[i] for role, i in chosen.items()}), sentence + how


def _require_names(table: Table, chosen: dict[str, int], free: list[int]) -> None:
    """Raise ``Refused`` if the first row has a label as the others have, and thus holds no names."""
    for label in [chosen["label"]] if "label" in chosen else free:
        if _is_value(table.names[label], table.rows[label]):
            others = [i for i in table.rows if i != label] or [label]
            text = chosen.get("text", max(others, key=lambda i: table.rows[i].str.len().mean()))
            raise Refused(
                f"its first row ({_listed(table.names)}) looks like data, not like names; give the columns by number "
                f"from 0 (or by name, if these are names), for example TEXT={text} LABEL={label}"
            )


def _kept(
    rows: pd.DataFrame, positive: tuple[str, ...], drop_duplicates: bool, drop_conflicts: bool
) -> tuple[pd.DataFrame, dict[str, int], list[str]]:
    """The rows of :class:`Labelled`, how many were dropped for which reason, and sentences on labels, groups and rows.

    Raises:
        Refused: labels that are not binary, or less than two classes left.
    """
    equal = _equal(rows["text"])
    no_label = labels.keys(rows["label"]) == ""
    no_text = (equal < 0) & ~no_label
    kept = ~(no_label | no_text)
    if not kept.any():
        raise Refused(f"none of its {len(rows)} rows has both a text and a label")
    label, sentence = labels.binary(rows["label"][kept], positive)
    equal, said = equal[kept], [sentence]
    both = label.groupby(equal).transform("nunique") > 1
    repeats = pd.DataFrame({"text": equal, "label": label}).duplicated() & ~(both & drop_conflicts)
    dropped = {"no label": int(no_label.sum()), "no text": int(no_text.sum())}
    for reason, concerned, is_dropped in (
        ("text with both labels", both, drop_conflicts),
        ("repeated text", repeats, drop_duplicates),
    ):
        dropped[reason] = int(concerned.sum()) if is_dropped else 0
        if is_dropped:
            kept[concerned.index[concerned]] = False
        elif concerned.any():
            said.append(f"{concerned.sum()} rows kept as asked: {reason}")
    label = label[kept]
    if label.nunique() < 2:
        left = f"only label {label.iloc[0]} is" if len(label) else "no row is"
        raise Refused(f"{left} left without the {dropped['text with both labels']} rows whose text has both labels")
    lines = pd.Series(rows.index, rows.index)
    group = "line " + lines[equal.index].groupby(equal).transform("first").astype("str")
    if "group" in rows:
        names = rows["group"].fillna("").str.strip()
        if nameless := int((names[kept] == "").sum()):
            said.append(f"{nameless} rows without a group are in one with the rows of their text only")
        group = names.where(names != "", group)
    columns = {"text": rows["text"], "label": label, "group": group, "line": lines}
    return pd.DataFrame({name: column[kept] for name, column in columns.items()}).reset_index(drop=True), dropped, said


def _equal(texts: pd.Series) -> pd.Series:
    """A number for each text, equal for texts that differ by outer spaces at most; -1 for empty and missing ones."""
    stripped = (text.strip() if isinstance(text, str) else "" for text in texts)
    # Digests take a tenth of the memory of half a million texts.
    digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() if text else None for text in stripped]
    return pd.Series(pd.factorize(np.array(digests, dtype=object))[0], texts.index)

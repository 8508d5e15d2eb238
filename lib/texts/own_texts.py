"""A user's own labelled files as base prompts, with an account of what became of every row."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse.csgraph

from lib.base.files import typed_path
from lib.texts import labelled, task_files
from lib.texts.labelled import Columns
from lib.texts.sources import BASE_COLUMNS

POOLS = {"id": "train_csv", "ood": "ood_csv"}
IN_FILE = "rows of the file"
IN_PROFILE = "(in a profile: text_column, label_column, group_column, positive_label, encoding)"


class Cleaning(NamedTuple):
    """What is done about texts that are counted in any case: repeats, texts of both labels, HTML entities."""

    drop_duplicates: bool = True
    drop_conflicts: bool = True
    decode_entities: bool = False


CLEANED = Cleaning()


class Count(NamedTuple):
    """How many rows of a pool's file are ``what``: all of them, or left out for a reason."""

    pool: str
    what: str
    rows: int


class OwnTexts(NamedTuple):
    """What was read.

    Attributes:
        base: base prompts (see ``lib.texts.sources``), of the pools ``id`` and ``ood``; rows of one group share a
            ``base_id``, which without a column of groups names the line of the file.
        said: sentences on what was found in each file, and what was left out or changed.
        counts: rows that the files have, and rows that were left out.
    """

    base: pd.DataFrame
    said: list[str]
    counts: list[Count]


def read(
    files: dict[str, str],
    columns: Columns,
    cleaning: Cleaning = CLEANED,
    most: int = 0,
    shorten: Callable[[list[str]], list[str]] = list,
) -> OwnTexts:
    """The texts of ``files`` (pool -> path; an empty path is no file), at most ``most`` of each (0: all), shortened.

    A text out of distribution that training has as well is left out there, and so are the rows of a group that it has.
    Of too many rows those are kept whose texts have the smallest hashes, as many of each class as is its share; so
    every seed reads the same ones.

    Raises:
        ValueError: a file out of distribution alone, or without two classes of texts that training lacks; or a file
            that cannot be read (see :func:`lib.texts.labelled.read`).
    """
    if not files["id"]:
        raise ValueError(f"ood_csv={files['ood']!r} is given without train_csv; give both, or train_csv alone")
    if most < 0:
        raise ValueError(f"csv_rows {most} must be 0 (all rows) or more")
    parts, said, counts = [], [], []
    groups, of_groups = set(), []
    for pool, name in files.items():
        if not name:
            continue
        path = typed_path(name)
        file = _read(path, columns, cleaning)
        said += [f"{path.name}: {sentence}" for sentence in file.said]
        group = file.rows["group"]
        is_shared = group.isin(groups)
        base = file.rows.assign(base_id=f"{POOLS[pool]}-" + group, pool=pool, source=POOLS[pool])
        parts.append(base.loc[~is_shared, BASE_COLUMNS])
        of_groups += _counted(base["pool"][is_shared], "left out: a group of training")
        groups |= set(group[~group.str.startswith("line ")])
        counts.append(Count(pool, IN_FILE, file.n_read))
        counts += [Count(pool, f"left out: {reason}", rows) for reason, rows in file.dropped.items() if rows]
    base, shared = distinct(pd.concat(parts, ignore_index=True), "", cleaning)
    drawn = base[task_files.drawn(base.assign(dropped=False), most)] if most else base
    not_drawn = base["pool"].drop(drawn.index)
    texts = shorten(drawn["text"].tolist())
    n_cut = sum(text != whole for text, whole in zip(texts, drawn["text"], strict=True))
    base, equal = distinct(drawn.assign(text=texts), "once cut", cleaning)
    for pool, name in files.items():
        if name and base.loc[base["pool"] == pool, "label"].nunique() < 2:
            lacks = "" if pool == "id" else f" that training ({files['id']}) lacks"
            raise ValueError(f"{name}: fewer than two classes are left of its texts{lacks}")
    if n_cut:
        said.append(f"{n_cut} texts are too long and keep their end only (csv_tokens)")
    later = [*of_groups, *shared, *_counted(not_drawn, f"left out: not drawn (csv_rows: {most})"), *equal]
    said += [f"{Path(files[count.pool]).name}: {count.rows} rows {count.what}" for count in later]
    return OwnTexts(base.reset_index(drop=True), said, counts + later)


def _read(path: Path, columns: Columns, cleaning: Cleaning) -> labelled.Labelled:
    try:
        return labelled.read(path, columns, **cleaning._asdict())
    except ValueError as error:
        asks = any(f"{name}=" in str(error) for name in ("TEXT", "LABEL", "GROUP", "POSITIVE", "ENCODING"))
        raise ValueError(f"{error} {IN_PROFILE}" if asks else str(error)) from error


def distinct(base: pd.DataFrame, when: str, cleaning: Cleaning = CLEANED) -> tuple[pd.DataFrame, list[Count]]:
    """The base prompts without empty texts, texts out of distribution that training has, texts of both labels, and
    repeats; and how many were left out. ``when`` is said with the reason.

    Texts are compared without the spaces around them. Where equal ones are kept, they and all rows of their groups get
    one ``base_id``: a text has one split.
    """
    text, is_ood = base["text"].str.strip(), base["pool"] == "ood"
    both = base["label"].groupby([base["pool"], text]).transform("nunique") > 1
    repeats = pd.DataFrame({"text": text, "label": base["label"]}).duplicated()
    reasons = {
        "no text": text == "",
        "a text of training": is_ood & text.isin(text[~is_ood]),
        "text with both labels": both & cleaning.drop_conflicts,
        "repeated text": repeats & cleaning.drop_duplicates,
    }
    reason = pd.Series(np.select(list(reasons.values()), list(reasons), ""), base.index)
    kept, when = base[reason == ""], f"{when}, " if when else ""
    counts = [count for why in reasons for count in _counted(base["pool"][reason == why], f"left out: {when}{why}")]
    texts = text[kept.index]
    if texts.duplicated().any():
        kept = kept.assign(base_id=_joined(kept["base_id"], texts))
    return kept, counts


def _joined(base_ids: pd.Series, texts: pd.Series) -> pd.Series:
    """The first ``base_id`` of all rows that hang together by groups or texts."""
    groups, of_texts = pd.factorize(base_ids)[0], pd.factorize(texts)[0]
    size = groups.max() + 1
    edges = (np.ones(len(groups)), (groups, of_texts + size))
    graph = scipy.sparse.coo_matrix(edges, shape=(size + of_texts.max() + 1,) * 2)
    component = scipy.sparse.csgraph.connected_components(graph, directed=False)[1][groups]
    return base_ids.groupby(component).transform("first")


def _counted(pools: pd.Series, what: str) -> list[Count]:
    return [Count(pool, what, int(rows)) for pool, rows in pools.value_counts(sort=False).items()]


def account(counts: list[Count], prompts: pd.DataFrame) -> pd.DataFrame:
    """``pool``, ``what``, ``rows`` of all: what a file has is what was left out of it for each reason, and ``prompts``.

    Raises:
        ValueError: rows that nothing accounts for.
    """
    rows = pd.DataFrame([*counts, *_counted(prompts["pool"], "base prompts")])
    signed = rows["rows"].where(rows["what"] == IN_FILE, -rows["rows"])
    balance = signed.groupby(rows["pool"]).sum()
    if balance.any():
        raise ValueError(f"rows that nothing accounts for: {balance[balance != 0].to_dict()}")
    return rows


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """:func:`account` with a column for each file."""
    table = rows.groupby(["what", "pool"], sort=False)["rows"].sum().unstack(fill_value=0)
    return table.loc[rows["what"].unique()].rename(columns=POOLS).rename_axis(index=None, columns=None)

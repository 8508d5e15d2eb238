"""Classification tasks: those inside the package ``sae-probes`` (read there and never copied), or a folder of labelled
files.

The package holds the 113 binary tasks of Kantamneni et al. 2025 (arXiv 2502.16681; MIT), and for eight of them texts
out of distribution. In a folder, ``name.ood.csv`` beside ``name.csv`` is what is out of distribution for it.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib.base.files import typed_path
from lib.texts import labelled, table_files
from lib.texts.labelled import Columns

PACKAGE = "sae_probes"
INSTALL = "make tasks installs it, or: pip install --no-deps sae-probes==0.4.2 zstandard"
LIST = "probing_datasets_MASTER.csv.zst"
OOD = "ood"
SPLITS = {"test": 0.25, "val": 0.15}  # shares of each class's groups; the rest is for training
FEWEST = 5  # rows of each class that a split must hold

# Kind of a task of the package, by how its name begins once the number is off.
KINDS = {
    "names and places": ("hist_fig", "nyc", "us_", "world_country", "art_type", "athlete"),
    "wikidata, in context": ("wikidata",),
    "news headlines": ("headline",),
    "a pair of words at the end": (
        "high-school", "living-room", "social-security", "credit-card", "blood-pressure", "prime-factors",
        "social-media", "gene-expression", "control-group", "magnetic-field", "cell-lines", "trial-court",
        "second-derivative", "north-america", "human-rights", "side-effects", "public-health", "federal-government",
        "third-party", "clinical-trials", "mental-health",
    ),
    "language understanding": ("glue_",),
    "truth and reasoning": ("sciq", "truthqa", "phys_tf", "reasoning", "cs_tf", "arith"),
    "morals": ("cm_", "deon_", "just_", "virtue_"),
    "time and context": ("temp_", "context_type"),
    "topic": ("agnews", "news_class", "cancer", "disease", "it_tick"),
    "sentiment and emotion": ("movie_sent", "amazon", "twt_emotion"),
    "unwanted or made up": ("ai_gen", "toxic", "spam", "news_fake", "click_bait", "hate_", "aimade"),
    "programming language": ("code_",),
}  # fmt: skip
OTHER = "other"
# Twelve tasks of seven kinds, those near the paper's own (spam, toxic, clickbait, hate) first; four have texts out of
# distribution.
CORE = (
    "96_spam_is", "95_toxic_is", "105_click_bait", "106_hate_hate", "92_glue_sst2", "87_glue_cola", "90_glue_qnli",
    "66_living-room", "5_hist_fig_ismale", "41_truthqa_tf", "50_deon_isvalid", "149_twt_emotion_happiness",
)  # fmt: skip


class TaskTexts(NamedTuple):
    """A task's texts.

    Attributes:
        rows: ``text``, ``label`` (0/1), ``group`` (rows of one group share a split) and ``split`` (train | val | test |
            ood), every text once.
        n_read: rows of the files; ``dropped``: how many of them are not in ``rows``, by reason.
    """

    name: str
    kind: str
    rows: pd.DataFrame
    n_read: int
    dropped: dict[str, int]
    said: list[str]


class LeftOut(NamedTuple):
    """A task that cannot be measured, and why."""

    name: str
    why: str


def kind_of(name: str) -> str:
    """The kind of a task of the package: ``96_spam_is`` is ``unwanted or made up``."""
    tag = name.partition("_")[2]
    return next((kind for kind, beginnings in KINDS.items() if tag.startswith(beginnings)), OTHER)


def source_of(name: str) -> str:
    """What a task of the package was made of, with others: its name without the number and the last part.

    ``5_hist_fig_ismale`` and ``6_hist_fig_isamerican`` are labels of the same texts, ``hist_fig``. Those of GLUE, which
    is a collection, are named by their data set, such as ``glue_mnli``.
    """
    tag = name.partition("_")[2] if name.partition("_")[0].isdecimal() else name
    if tag.startswith("glue_"):
        return "_".join(tag.split("_")[:2])
    return tag.rpartition("_")[0] or tag


def package() -> Path:
    """The package's folder of data, found without importing it.

    Raises:
        ValueError: it is not installed.
    """
    specification = importlib.util.find_spec(PACKAGE)
    if specification is None or not specification.submodule_search_locations:
        raise ValueError(f"the package sae-probes, which holds the tasks, is not installed; {INSTALL}")
    if importlib.util.find_spec("zstandard") is None:
        raise ValueError(f"zstandard, which unpacks the tasks of sae-probes, is not installed; {INSTALL}")
    return Path(next(iter(specification.submodule_search_locations))) / "data"


def names() -> list[str]:
    """The package's binary tasks, such as ``96_spam_is``, in the order of its list."""
    table = pd.read_csv(package() / LIST)
    binary = table.loc[table["Data type"] == "Binary Classification", "Dataset save name"]
    return [Path(name).stem for name in binary]


def chosen(tasks: Iterable[str]) -> list[str]:
    """The tasks that ``core``, ``all`` and names stand for, each once; a name may lack its number.

    Raises:
        ValueError: an unknown name.
    """
    known = names()
    by_tag = {name.partition("_")[2]: name for name in known}
    sets = {"core": list(CORE), "all": known}
    picked: list[str] = []
    for task in tasks:
        name = by_tag.get(task, task)
        if name not in known and task not in sets:
            near = [other for other in known if task.lower() in other.lower()][:5]
            hint = f"near it: {', '.join(near)}" if near else f"the first are {', '.join(known[:5])}"
            raise ValueError(f"unknown task {task!r}; allowed are core, all, and {len(known)} of sae-probes, {hint}")
        picked += sets.get(task, [name])
    return list(dict.fromkeys(picked))


def packaged(name: str, most: int) -> TaskTexts | LeftOut:
    """A task of the package, with at most ``most`` of its rows (see :func:`of_rows`).

    The label is 1 for the second of the two targets in sorted order, as the package encodes them.
    """
    data = package()
    sources = {"": data / "cleaned_data" / f"{name}.csv.zst", OOD: data / "OOD data" / f"{name}_OOD.csv.zst"}
    parts, classes_of = [], {}
    for pool, path in sources.items():
        if not path.exists():
            continue
        table = pd.read_csv(path, keep_default_na=False)
        targets = table["target"].astype(str)
        classes = sorted(targets.unique())
        if len(classes) != 2:
            return LeftOut(name, f"its targets are {classes[:5]}, and two are needed")
        classes_of[pool] = classes
        label = (targets == classes[1]).astype(int)
        parts.append(pd.DataFrame({"text": table["prompt"].astype(str), "label": label, "pool": pool}))
    rows = pd.concat(parts, ignore_index=True)
    task = of_rows(name, kind_of(name), rows.assign(group=rows["text"].str.strip()), most)
    if isinstance(task, LeftOut) or classes_of.get(OOD, classes_of[""]) == classes_of[""]:
        return task
    differ = f"classes out of distribution are {classes_of[OOD]}, in distribution {classes_of['']}; taken in this order"
    return task._replace(said=[differ])


def read(
    tasks: Iterable[str], folder: str, columns: Columns, most: int, chosen_files: Sequence[str] = ()
) -> list[TaskTexts | LeftOut]:
    """The tasks that a run names: of the package (:func:`chosen`), and of a folder, if there is one.

    Raises:
        ValueError: see :func:`chosen` and :func:`of_folder`; or a file of the folder is named as one of the package's.
    """
    every = [packaged(name, most) for name in (chosen(tasks) if tasks else [])]
    names = {task.name for task in every}
    every += of_folder(Path(folder), columns, most, chosen_files) if folder else []
    own = [task.name for task in every[len(names) :]]
    if both := sorted(names.intersection(own)):
        raise ValueError(f"{both[0]!r} is a file of {folder} and a task of sae-probes; rename the file")
    return every


def of_folder(folder: Path, columns: Columns, most: int, chosen: Sequence[str] = ()) -> list[TaskTexts | LeftOut]:
    """A task for each labelled file of a folder, in the order of their names; what cannot be read is left out.

    Of ``chosen`` ones, which are named as their files without the suffix, the others are not read.

    Raises:
        ValueError: no such folder, no readable file in it, two files of one name, or no file of a chosen name.
    """
    folder = typed_path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}; give one with labelled files, such as spam.csv")
    files: dict[str, dict[str, Path]] = {}
    left_out: list[TaskTexts | LeftOut] = []
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        stem = table_files.stem(path)
        if stem is None:
            left_out.append(LeftOut(path.name, f"no labelled file; allowed are {', '.join(table_files.KINDS)}"))
            continue
        name, pool = (stem[: -len(OOD) - 1], OOD) if stem.endswith(f".{OOD}") else (stem, "")
        if pool in files.setdefault(name, {}):
            both = f"{files[name][pool].name} and {path.name}"
            raise ValueError(f"two files of {folder} are the task {name!r}: {both}; rename one")
        files[name][pool] = path
    if not files:
        raise ValueError(f"{folder} holds no labelled file; allowed are {', '.join(table_files.KINDS)}")
    for name in chosen:
        if name not in files:
            there = sorted(files)[:12]
            raise ValueError(f"folder_tasks names {name!r}, which {folder} does not hold; there are {there}")
    if chosen:
        files, left_out = {name: files[name] for name in chosen}, []
    return [*(_of_files(name, pools, columns, most) for name, pools in files.items()), *left_out]


def _of_files(name: str, pools: dict[str, Path], columns: Columns, most: int) -> TaskTexts | LeftOut:
    if "" not in pools:
        return LeftOut(name, f"there is {pools[OOD].name} without the {name} file that it belongs to")
    parts, n_read, dropped, said = [], 0, {}, []
    for pool, path in pools.items():
        try:
            file = labelled.read(path, columns)
        except ValueError as error:
            return LeftOut(name, str(error))
        group = file.rows["group"]
        own_groups = group.where(~group.str.startswith("line "), f"{pool} " + group)
        parts.append(file.rows.assign(pool=pool, group=own_groups))
        n_read += file.n_read
        dropped = _added(dropped, file.dropped)
        said += [f"{path.name}: {sentence}" for sentence in file.said]
    task = of_rows(name, OTHER, pd.concat(parts, ignore_index=True), most)
    if isinstance(task, LeftOut):
        return task
    dropped = {reason: n for reason, n in _added(dropped, task.dropped).items() if n}
    return task._replace(n_read=n_read, dropped=dropped, said=said)


def _added(first: dict[str, int], second: dict[str, int]) -> dict[str, int]:
    return {reason: first.get(reason, 0) + second.get(reason, 0) for reason in (*first, *second)}


def of_rows(name: str, kind: str, rows: pd.DataFrame, most: int) -> TaskTexts | LeftOut:
    """A task of ``text``, ``label``, ``group`` and ``pool`` (empty, or ``ood``).

    Empty texts, repeated texts and texts of both labels are dropped; of a text or a group in both pools the rows in
    distribution stay. Of each pool ``most`` rows are kept, those whose texts have the smallest hashes, so that tasks on
    the same texts keep the same ones; each class keeps its share. Whole groups are then put to test, validation or
    training, by the hash of the group within its class.
    """
    rows = rows.sort_values("pool", kind="stable", ignore_index=True)  # Rows in distribution come first.
    text, is_ood = rows["text"].str.strip(), rows["pool"] == OOD
    both = rows["label"].groupby([rows["pool"], text]).transform("nunique") > 1
    checks: dict[str, Callable[[], pd.Series]] = {
        "empty text": lambda: text == "",
        "text with both labels": lambda: both,
        "repeated text": lambda: text.duplicated(),
        "group in distribution": lambda: is_ood & rows["group"].isin(rows.loc[~is_ood, "group"]),
        "not drawn": lambda: ~drawn(rows.assign(text=text, dropped=reason != ""), most),
    }
    reason = pd.Series("", index=rows.index)
    for why, is_bad in checks.items():
        reason = reason.mask((reason == "") & is_bad(), why)
    kept = rows.assign(text=text)[reason == ""].reset_index(drop=True)
    dropped = reason[reason != ""].value_counts().to_dict()
    split = _split(kept)
    wanted = ["train", "val", "test", *([OOD] if (kept["pool"] == OOD).any() else [])]
    counts = kept.groupby([split, "label"]).size().unstack(fill_value=0).reindex(index=wanted, columns=[0, 1])
    fewest = counts.fillna(0).min(axis=None)
    if fewest < FEWEST:
        which, label = counts.fillna(0).stack().idxmin()
        few = f"{fewest:.0f} rows of class {label} in {which}"
        return LeftOut(name, f"too few rows: of {len(rows)} read there are {few}; {FEWEST} are needed")
    columns = ["text", "label", "group"]
    return TaskTexts(name, kind, kept[columns].assign(split=split), len(rows), dropped, [])


def _hashed(texts: pd.Series) -> pd.Series:
    """A number from 0 to 1 for each text, which depends on nothing else."""
    digests = texts.map(lambda text: hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8])
    return digests.map(lambda digest: int.from_bytes(digest, "big") / 2**64)


def drawn(rows: pd.DataFrame, most: int) -> pd.Series:
    """Whether a row is among the ``most`` of its pool that are kept; those already dropped are in no draw.

    ``rows`` has ``text``, ``label``, ``pool`` and ``dropped``; texts of the smallest hashes are kept, as many of each
    label as is its share.
    """
    left = rows[~rows["dropped"]]
    order = _hashed(left["text"]).sort_values().index
    left = left.loc[order]
    share = most / left.groupby("pool")["label"].transform("size")
    n_of_class = left.groupby(["pool", "label"])["text"].transform("size")
    rank = left.groupby(["pool", "label"]).cumcount()
    is_drawn = rank < np.maximum(1, (share * n_of_class).round())
    return is_drawn.reindex(rows.index, fill_value=False)


def _split(rows: pd.DataFrame) -> pd.Series:
    """train | val | test by the rank of a group's hash within its class; the other pool is ``ood``."""
    inside = rows[rows["pool"] != OOD]
    group = inside["group"].astype(str)
    label = inside["label"].groupby(group).transform("first")
    first = group[~group.duplicated()]
    rank = _hashed(first).groupby(label[first.index]).rank(pct=True, method="first")
    place = group.map(dict(zip(first, rank, strict=True)))
    split = pd.Series("train", index=group.index)
    split[place <= SPLITS["test"] + SPLITS["val"]] = "val"
    split[place <= SPLITS["test"]] = "test"
    return split.reindex(rows.index, fill_value=OOD)

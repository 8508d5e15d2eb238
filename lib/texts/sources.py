"""Where base prompts come from: shipped files, pinned public downloads, or the hub (a user's: ``own_texts``).

A *base prompt* is a request before any jailbreak or transformation. Every source gives a table with
the columns of ``BASE_COLUMNS``; nothing here draws, normalises or splits.
"""

import functools
import itertools
import json
import os
import shutil
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pooch
import yaml

from lib.base.files import DATA, typed_path
from lib.base.registry import lookup

BASE_COLUMNS = ["base_id", "text", "label", "pool", "source"]
POOLS = {  # part of a data set -> (pool, label)
    "harmful": ("id", 1),
    "harmless": ("id", 0),
    "ood_harmful": ("ood", 1),
    "ood_toxic_looking": ("ood", 0),
    "ood_chat": ("ood", 0),
}
N_CHAT_OOD = 375  # AlpacaEval instructions kept for OOD; the others are free for SAE training on rollouts


def public_files() -> dict[str, dict]:
    """The pinned public files of ``data/sources.yaml``: name -> url, sha256, bytes, licence, content."""
    return yaml.safe_load((DATA / "sources.yaml").read_text(encoding="utf-8"))


def fetch(name: str, mirror: str | None = None) -> Path:
    """Path of a public file in ``data/raw``, fetched if it is not there, with its SHA-256 checked.

    ``mirror`` (default: the environment variable ``MIRROR``) is a folder in which a file lies under the
    path of its URL; the network is not used then.

    Raises:
        ValueError: unknown name, wrong checksum, or neither network nor mirror.
    """
    entry = lookup(public_files(), "public file", name)
    url, sha256 = entry["url"], entry["sha256"]
    mirror = mirror if mirror is not None else os.environ.get("MIRROR", "")
    downloader = _copier(typed_path(mirror)) if mirror else pooch.HTTPDownloader(timeout=60)
    pooch.get_logger().setLevel("WARNING")
    target = f"{name}{''.join(Path(urllib.parse.urlparse(url).path).suffixes[-2:])}"
    try:
        return Path(pooch.retrieve(url, sha256, target, DATA / "raw", downloader=downloader))
    except ValueError as error:
        raise ValueError(
            f"{name}: the file from {mirror or url} does not have the expected SHA-256 {sha256}"
        ) from error
    except OSError as error:
        raise ValueError(
            f"{name} cannot be fetched from {mirror or url} ({type(error).__name__}). Without network, give a "
            f"folder that holds it: make data PROFILE=public MIRROR=/path/to/folder (file: "
            f"{mirror_path(url)})"
        ) from error


def mirror_path(url: str) -> str:
    """Path of a URL's file inside a mirror folder: the part of the URL after the host."""
    return urllib.parse.unquote(urllib.parse.urlparse(url).path).lstrip("/")


def _copier(mirror: Path):
    def copy(url: str, output_file: str, _pooch) -> None:
        shutil.copyfile(mirror / mirror_path(url), output_file)

    return copy


def base_prompts(dataset: str, toxic_looking: str = "xstest") -> pd.DataFrame:
    """All base prompts of a data set, every text once.

    Returns a table of ``base_id, text, label (1 harmful), pool (id | ood), source``.

    Raises:
        ValueError: unknown data set, or a file that cannot be fetched.
    """
    lookup(TOXIC_LOOKING, "toxic_looking", toxic_looking)
    parts = lookup(DATASETS, "dataset", dataset).parts(toxic_looking)
    tables = [_table(part.read(), part.source, *POOLS[name]) for name, part in parts.items()]
    return pd.concat(tables, ignore_index=True).drop_duplicates("text")


def limits(**of_parts: int) -> dict[str, int]:
    """The number of base prompts at most by source, of all data sets, from that of each part (see ``POOLS``).

    Raises:
        ValueError: no part of that name.
    """
    for name in of_parts:
        lookup(POOLS, "part of a data set", name)
    by_source: dict[str, int] = {}
    for dataset, toxic_looking in itertools.product(DATASETS.values(), TOXIC_LOOKING):
        for name, part in dataset.parts(toxic_looking).items():
            if name in of_parts:
                by_source[part.source] = of_parts[name]
    return by_source


def _table(texts: list[str], source: str, pool: str, label: int) -> pd.DataFrame:
    ids = [f"{source}-{number:05d}" for number in range(len(texts))]
    return pd.DataFrame({"base_id": ids, "text": texts, "label": label, "pool": pool, "source": source})


def _xstest_safe() -> list[str]:
    table = pd.read_csv(fetch("xstest"))
    return table.loc[table["label"] == "safe", "prompt"].tolist()


def _or_bench() -> list[str]:
    """OR-Bench-Hard-1K of the Hugging Face hub (network needed)."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download("bench-llm/or-bench", "or-bench-hard-1k.csv", repo_type="dataset")
    except OSError as error:
        raise ValueError(
            f"OR-Bench cannot be fetched from the Hugging Face hub ({type(error).__name__}); "
            "without network use toxic_looking: xstest"
        ) from error
    return pd.read_csv(path)["prompt"].tolist()


def chat_instructions() -> list[str]:
    """The AlpacaEval instructions, in the order of the file."""
    rows = json.loads(fetch("alpaca_eval_gemma_2b_it").read_text(encoding="utf-8"))
    return [row["instruction"] for row in rows]


def jailbreakchat_templates() -> dict[str, str]:
    """The AIM and evil-confidant templates as they circulate on jailbreakchat, with ``{prompt}``."""
    rows = json.loads(fetch("jailbreakchat").read_text(encoding="utf-8"))["attack"]["Gptfuzzer"]
    marked = {"aim": rows[2], "evil_confidant": rows[34]}
    return {name: text.replace("{query}", "{prompt}") for name, text in marked.items()}


class Part(NamedTuple):
    """One part of a data set: the name of its source, and what reads its texts."""

    source: str
    read: Callable[[], list[str]]


def _shipped(name: str) -> list[str]:
    return pd.read_csv(DATA / "prompts" / f"{name}.csv")["text"].tolist()


def _embedded(toxic_looking: str) -> dict[str, Part]:
    return {name: Part(name, functools.partial(_shipped, name)) for name in POOLS}


def _column(file: str, name: str) -> list[str]:
    return pd.read_csv(fetch(file))[name].tolist()


def _alpaca() -> list[str]:
    return [row["instruction"] for row in json.loads(fetch("alpaca").read_text(encoding="utf-8"))]


def _public(toxic_looking: str) -> dict[str, Part]:
    return {
        "harmful": Part("harmbench", lambda: _column("harmbench", "Behavior")),
        "harmless": Part("alpaca", _alpaca),
        "ood_harmful": Part("advbench", lambda: _column("advbench", "goal")),
        "ood_toxic_looking": Part(toxic_looking, lookup(TOXIC_LOOKING, "toxic_looking", toxic_looking)),
        "ood_chat": Part("alpaca_eval", lambda: chat_instructions()[:N_CHAT_OOD]),
    }


class Dataset(NamedTuple):
    """A data set: its parts (see ``POOLS``) for a choice of ``TOXIC_LOOKING``, and wrappers by name, with ``{prompt}``,
    that take the place of the shipped jailbreaks."""

    parts: Callable[[str], dict[str, Part]]
    jailbreaks: Callable[[], dict[str, str]] = dict


TOXIC_LOOKING = {"xstest": _xstest_safe, "or_bench": _or_bench}  # harmless prompts that look toxic
DATASETS = {"embedded": Dataset(_embedded), "public": Dataset(_public, jailbreakchat_templates)}

"""Steps of a run, of which sizes are estimated, and what decides the things that several runs make alike, once."""

from typing import Any, NamedTuple

import pandas as pd

from lib.base import build_graph
from lib.base.files import value_hash

PROMPTS = "01_datasets"  # whose parameters decide the prompts, and the model that reads them
ROLLOUTS = ("n_rollouts", "rollout_tokens", "rollout_temperature", "split_seed")


class Step(NamedTuple):
    """What one step of a notebook takes: tokens it reads or writes, bytes on disk and in memory, operations, and
    seconds of what no faster product helps.

    Steps of one ``key``, of any runs of a profile and its sweeps, make the same thing, which is made once.
    """

    notebook: str
    step: str
    tokens: float = 0
    disk: float = 0
    memory: float = 0
    operations: float = 0
    seconds: float = 0
    key: str = ""


def once(table: pd.DataFrame) -> pd.DataFrame:
    """:func:`steps`, of which the first one of each key takes what it takes, and the others find what it made."""
    is_again = (table["key"] != "") & table["key"].duplicated()
    taken = {name: table[name].mask(is_again, 0.0) for name in ("tokens", "disk_gib", "hours")}
    return table.assign(**taken)


def key_of(v: dict[str, Any], notebook: str, *names: str) -> str:
    """What decides something that runs share: all parameters of a notebook, and others by name."""
    every = [*build_graph.parameters(build_graph.NOTEBOOKS / f"{notebook}.py"), *names]
    return value_hash([names, {name: v[name] for name in every if name != "profile"}])


def key_of_tokens(v: dict[str, Any], corpus: str, tokens: int, in_turns: bool = False) -> str:
    """What decides the tokens of a corpus at the layer; none where they are not kept."""
    if v["store"] != "disk":
        return ""
    names = ("model", "dtype", "layer", "context", "held_out_tokens", *ROLLOUTS)
    of_prompts = key_of(v, PROMPTS) if corpus == "prompts" or corpus.startswith("own:") else ""
    return value_hash([corpus, tokens, in_turns, of_prompts, [v[name] for name in names]])

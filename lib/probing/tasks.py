"""What is probed, and the key of a probe: the task of a prompt table, and ``Probe``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from lib.base.files import write_table
from lib.stats.metrics import Scores


class Task(NamedTuple):
    """Labels of all prompts, which of them are for training, their base prompts, and which are for validation (None
    where nothing is chosen on them)."""

    y: Int[np.ndarray, " prompts"]
    train: np.ndarray
    groups: np.ndarray
    val: np.ndarray | None = None

    @classmethod
    def of(cls, prompts: pd.DataFrame) -> "Task":
        """The task of a prompt table."""
        train, val = ((prompts["split"] == split).to_numpy() for split in ("train", "val"))
        return cls(prompts["label"].to_numpy(), train, prompts["base_id"].to_numpy(), val)


class Probe(NamedTuple):
    """The key of a probe; None where something does not apply to its kind.

    ``kind``: ``dense``, ``k-sparse``, an entry of ``on_saes.VIEWS``, or ``control``. ``variant``: which SAE, or which
    control basis, its columns are from; ``seed``: that of the SAE. ``selection`` and ``k``: how many columns were
    chosen, and how.
    """

    kind: str
    pooling: str | None = None
    variant: str | None = None
    seed: int | None = None
    selection: str | None = None
    k: int | None = None

    def columns(self) -> dict[str, Any]:
        """Its dimensions in a table of results, where the kind stands in the column ``probe``."""
        return {
            "variant": self.variant, "seed": self.seed, "probe": self.kind,
            "pooling": self.pooling, "selection": self.selection, "k": self.k,
        }  # fmt: skip


def save_scores(scores: Mapping[Probe, Scores], path: Path) -> Path:
    """Scores of all prompts as a table: a row for each prompt and a column for each probe, named by its key as JSON."""
    columns = {json.dumps(probe, ensure_ascii=False): of_probe for probe, of_probe in scores.items()}
    return write_table(path, pd.DataFrame(columns))


def load_scores(path: Path) -> dict[Probe, Scores]:
    """The inverse of :func:`save_scores`."""
    return {Probe(*json.loads(name)): column.to_numpy() for name, column in pd.read_parquet(path).items()}

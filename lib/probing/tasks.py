"""What is probed, and the key of a probe: the task of a prompt table, and ``Probe``."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int


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

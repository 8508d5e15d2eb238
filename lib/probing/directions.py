"""Where a dense probe's direction lies: in the decoder rows of a dictionary, in its reconstruction, or in its error."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.probing import ksparse
from lib.stats.metrics import auroc


def directions_in_dictionary(
    direction: Float[np.ndarray, " d_model"], dictionary: Float[np.ndarray, "d_sae d_model"], ks: list[int]
) -> Float[np.ndarray, " ks"]:
    """Share of ‖direction‖² that orthogonal matching pursuit expresses with k unit rows of a dictionary, for each k.

    Each chosen row is made orthogonal to those before (Gram and Schmidt, twice, for rounding), so that a step costs
    2 · d_model · (d_sae + 4k).
    """
    rows = dictionary / np.maximum(np.linalg.norm(dictionary, axis=1, keepdims=True), 1e-12)
    unit = direction / np.linalg.norm(direction)
    basis, residual, shares = np.zeros((max(ks), len(unit))), unit.astype(np.float64), {0: 0.0}
    for k in range(1, max(ks) + 1):
        row = rows[int(np.argmax(np.abs(rows @ residual.astype(rows.dtype))))].astype(np.float64)
        for _ in range(2):
            row = row - basis[: k - 1].T @ (basis[: k - 1] @ row)
        length = np.linalg.norm(row)
        basis[k - 1] = row / length if length > 1e-9 else 0.0  # a row that was chosen before adds nothing
        residual = residual - basis[k - 1] * (basis[k - 1] @ residual)
        shares[k] = 1 - float(residual @ residual)
    return np.array([shares[k] for k in ks])


def direction_shares(
    directions: dict[str, np.ndarray], dictionaries: dict[str, np.ndarray], ks: list[int]
) -> pd.DataFrame:
    """:func:`directions_in_dictionary` of every direction in every dictionary, a row per k; there is no interval."""
    return pd.DataFrame([
        {"direction": name, "dictionary": which, "k": k, "value": share, "low": np.nan, "high": np.nan}
        for name, direction in directions.items()
        for which, rows in dictionaries.items()
        for k, share in zip(ks, directions_in_dictionary(direction, rows, ks), strict=True)
    ])


def logit_parts(
    weight: Float[np.ndarray, " d_model"], parts: dict[str, ksparse.Columns], prompts: pd.DataFrame
) -> Iterator[dict]:
    """AUROC of fixed weights on the reconstruction, the error and their sum, and each part's share of the logit's
    variance.

    The share is cov(part, sum) / var(sum), so that the two add to one.
    """
    logits = {name: parts[name] @ weight for name in ("reconstruction", "error")}
    total = logits["reconstruction"] + logits["error"]
    for split, rows in prompts.reset_index(drop=True).groupby("split", sort=False):
        for name, values in (logits | {"whole": total}).items():
            part, whole = values[rows.index], total[rows.index]
            area = auroc(rows["label"].to_numpy(), part, np.ones((1, len(part))))[0]
            share = float(np.cov(part, whole)[0, 1] / whole.var(ddof=1))
            yield {"part": name, "split": split, "auroc": float(area), "variance_share": share}

"""Bootstrap draws kept together, so that means over seeds, differences and shares of a gap share their replicates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Float

from lib.stats.metrics import Metric, Scores, SplitWeights, auroc

REPLICATES_UNDEFINED = 0.025  # share of undefined replicates above which an interval is null


class Key(Protocol):
    """What a score is of. Two implementations: ``probing.tasks.Probe`` and the cells of notebook 07."""

    def columns(self) -> dict[str, Any]:
        """Dimensions by name; None where one does not apply."""


@dataclass(frozen=True)
class Draws:
    """A metric of many probes, on the rows themselves and on B replicates over base prompts (``lib.stats.metrics``).

    ``dimensions`` has a row per probe and split and a column per dimension (None where one does not apply); ``values``
    has the same rows and 1 + B columns, the metric on the rows themselves first. All rows of a split share their
    replicates.
    """

    dimensions: pd.DataFrame
    values: Float[np.ndarray, "rows replicates_plus_1"]

    @classmethod
    def of(
        cls, prompts: pd.DataFrame, scores: Mapping[Any, Scores], weights: SplitWeights, metric: Metric = auroc
    ) -> "Draws":
        """Draws of ``metric`` for every key of ``scores`` (see :class:`Key`) and every split with both classes.

        Raises:
            ValueError: no scores, or no split with both classes.
        """
        values, rows = [], []
        for split, replicates in weights.items():
            part = (prompts["split"] == split).to_numpy()
            y = prompts["label"].to_numpy()[part]
            if len(np.unique(y)) < 2:
                continue
            with_value = np.concatenate([np.ones((len(y), 1), dtype=np.float32), replicates.T], axis=1).T
            for key, score in scores.items():
                values.append(metric(y, score[part], with_value))
                rows.append(key.columns() | {"split": split})
        if not rows:
            raise ValueError(f"{len(scores)} probes and no split of {list(weights)} with both classes: nothing to draw")
        return cls(pd.DataFrame(rows, dtype=object), np.array(values, dtype=np.float64))

    def _rows(self, mask: np.ndarray) -> "Draws":
        return Draws(self.dimensions[mask].reset_index(drop=True), self.values[mask])

    def first(self) -> "Draws":
        """The first row."""
        return self._rows(np.arange(len(self.values)) == 0)

    def where(self, **wanted: Any) -> "Draws":
        """The rows in which every named dimension has the wanted value, or one of a list of wanted values.

        Raises:
            ValueError: a dimension that these draws do not have.
        """
        return self._rows(self._mask(wanted))

    def without(self, **unwanted: Any) -> "Draws":
        """The rows that :meth:`where` does not keep."""
        return self._rows(~self._mask(unwanted))

    def _mask(self, wanted: dict[str, Any]) -> np.ndarray:
        unknown = sorted(set(wanted) - set(self.dimensions))
        if unknown:
            raise ValueError(f"draws have no dimension {unknown}; there are {list(self.dimensions)}")
        mask = np.ones(len(self.dimensions), dtype=bool)
        for name, value in wanted.items():
            allowed = value if isinstance(value, list | tuple | set) else [value]
            mask &= self.dimensions[name].isin(list(allowed)).to_numpy()
        return mask

    def _keys(self, names: Sequence[str]) -> list[tuple]:
        """The values of the dimensions ``names``, a hashable tuple per row; missing ones are None."""
        columns = [[None if pd.isna(value) else value for value in self.dimensions[name]] for name in names]
        return list(zip(*columns, strict=True))

    def over_seeds(self, seed: int, bounds: tuple[float, float] = (0.0, 1.0)) -> "Draws":
        """Means over the dimension ``seed``; every replicate also gets seed noise, and stays within ``bounds``.

        The noise of a row is (s/√n)·t: s the standard deviation over its n seeds on the rows themselves, t from
        Student's distribution with n − 1 degrees, independent between rows. A bootstrap of few seeds would be too
        narrow: with three it never leaves their range. With one seed nothing is added. ``seed`` is that of the noise.
        """
        names = [name for name in self.dimensions if name != "seed"]
        members: dict[tuple, list[int]] = {}
        for row, key in enumerate(self._keys(names)):
            members.setdefault(key, []).append(row)
        rng = np.random.default_rng(seed)
        means = []
        for rows in members.values():
            values, n = self.values[rows], len(rows)
            mean = values.mean(0)
            if n > 1:
                noise = rng.standard_t(n - 1, size=values.shape[1] - 1)
                mean[1:] = (mean[1:] + values[:, 0].std(ddof=1) / n**0.5 * noise).clip(*bounds)
            means.append(mean)
        dimensions = pd.DataFrame(list(members), columns=names, dtype=object)
        return Draws(dimensions, np.array(means).reshape(len(means), self.values.shape[1]))

    def aligned(self, reference: "Draws", match: Sequence[str]) -> Float[np.ndarray, "rows replicates_plus_1"]:
        """For each row the values of the row of ``reference`` that agrees with it in ``match``; NaN if none does.

        Raises:
            ValueError: two rows of ``reference`` agree in all of ``match``, so that it is not said which is meant.
        """
        row_of = {key: row for row, key in enumerate(reference._keys(match))}
        if len(row_of) < len(reference.dimensions):
            n_rows = len(reference.dimensions)
            raise ValueError(f"{n_rows} reference rows have {len(row_of)} different values of {list(match)}")
        padded = np.vstack([reference.values, np.full((1, self.values.shape[1]), np.nan)])
        return padded[[row_of.get(key, -1) for key in self._keys(match)]]

    def minus(self, reference: "Draws", match: Sequence[str]) -> "Draws":
        """Each row minus the row of ``reference`` that agrees with it in ``match``, replicate by replicate."""
        return Draws(self.dimensions, self.values - self.aligned(reference, match))

    def behind(self, reference: "Draws", match: Sequence[str]) -> "Draws":
        """The row of ``reference`` that agrees in ``match``, minus each row: what it is behind the reference."""
        return Draws(self.dimensions, self.aligned(reference, match) - self.values)

    def against(self, dimension: str, reference: Any) -> "Draws":
        """Each row minus the row that differs in ``dimension`` only, where it is ``reference``."""
        others = [name for name in self.dimensions if name != dimension]
        return self.without(**{dimension: reference}).minus(self.where(**{dimension: reference}), others)

    def gap_closed(self, before: "Draws", dense: "Draws", match: Sequence[str]) -> "Draws":
        """:func:`gap_closed` of each row; ``before`` has a row that agrees in ``match``, ``dense`` has one row.

        Raises:
            ValueError: ``dense`` has not exactly one row.
        """
        if len(dense.values) != 1:
            raise ValueError(f"the dense probe of a gap is one row; there are {len(dense.values)}")
        return Draws(self.dimensions, gap_closed(self.values, self.aligned(before, match), dense.values[0]))

    def table(self) -> pd.DataFrame:
        """One row per probe: its dimensions and ``value``, the metric on the rows themselves."""
        columns = {name: _with_integers(column) for name, column in self.dimensions.items()}
        return pd.DataFrame(columns).assign(value=self.values[:, 0])

    def estimates(self) -> pd.DataFrame:
        """:meth:`table` with the 95 % percentile interval ``low``, ``high``.

        The interval is null where more than 2.5 % of the replicates are undefined.
        """
        replicates = self.values[:, 1:]
        undefined = np.isnan(replicates).mean(1) > REPLICATES_UNDEFINED
        bounds = np.nanpercentile(replicates, [2.5, 97.5], axis=1) if len(replicates) else np.empty((2, 0))
        low, high = (np.where(undefined, np.nan, bound) for bound in bounds)
        return self.table().assign(low=low, high=high)


def _with_integers(column: pd.Series) -> pd.Series:
    """A column of integers and None as nullable integers, so that 20 does not become 20.0; another one as it is."""
    kinds = {type(value) for value in column.dropna()}
    return column.astype("Int64") if kinds == {int} else column


def gap_closed(after: np.ndarray, before: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Share of the gap to the dense probe that another SAE closes, (after − before) / (dense − before).

    NaN in replicates without a gap (dense not above before).
    """
    gap = dense - before
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap > 0, (after - before) / gap, np.nan)

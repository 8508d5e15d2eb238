"""Bootstrap draws kept together, so that means over seeds, differences and shares of a gap share their replicates."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import scipy.stats
from jaxtyping import Float

from lib.stats.metrics import Metric, Scores, SplitWeights, auroc

REPLICATES_UNDEFINED = 0.025  # share of undefined replicates above which an interval is null


class Key(Protocol):
    """What a score is of. Two implementations: ``probing.tasks.Probe`` and the cells of notebook 07."""

    def columns(self) -> dict[str, Any]:
        """Dimensions by name; None where one does not apply."""


class Spread(NamedTuple):
    """Standard deviation over seeds, and the degrees of freedom with which it was estimated (0: it could not be)."""

    deviation: float
    degrees: float


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

    def over_seeds(self, seed: int, bounds: tuple[float, float] = (0.0, 1.0), apart: Sequence[str] = ()) -> "Draws":
        """Means over the dimension ``seed``; every replicate also gets seed noise, and stays within ``bounds``.

        The noise of a row is (s/√n)·t over its n seeds, with t from Student's distribution, independent between rows. A
        bootstrap of few seeds would be too narrow: with three it never leaves their range. The standard deviation s and
        the degrees of t are of :func:`pooled_spread` over the rows that differ in ``variant`` only, those in ``apart``
        left out, each of which keeps its own. A row with one seed takes that of the others, also if it is one of
        ``apart`` (whose own is then not known); where no row has two, nothing is added. The replicates hold the
        quantiles of t in random order, so that the ends of an interval do not hang on which of its long tails were
        drawn. ``seed`` is that of the order.
        """
        names = [name for name in self.dimensions if name != "seed"]
        members: dict[tuple, list[int]] = {}
        for row, key in enumerate(self._keys(names)):
            members.setdefault(key, []).append(row)
        kinds: dict[tuple, list[tuple]] = {}
        for key in members:
            kinds.setdefault(_kind(dict(zip(names, key, strict=True)), apart), []).append(key)
        rng, replicates = np.random.default_rng(seed), self.values.shape[1] - 1
        seed_of, value_of = self.dimensions["seed"].tolist(), self.values[:, 0].tolist()
        means = {key: self.values[rows].mean(0) for key, rows in members.items()}
        spreads = {
            kind: pooled_spread([{seed_of[row]: value_of[row] for row in members[key]} for key in keys])
            for kind, keys in kinds.items()
        }
        for kind, keys in kinds.items():
            spread = spreads[kind]
            if all(len(members[key]) == 1 for key in keys):
                of_others = _kind(dict(zip(names, keys[0], strict=True)), apart=())
                spread = spreads.get(of_others, spread)
            if spread.degrees and replicates:
                noise = _t_quantiles(round(spread.degrees, 1), replicates)
                for key in keys:
                    scale = spread.deviation / len(members[key]) ** 0.5
                    means[key][1:] = (means[key][1:] + scale * rng.permutation(noise)).clip(*bounds)
        dimensions = pd.DataFrame(list(members), columns=names, dtype=object)
        return Draws(dimensions, np.array(list(means.values())).reshape(len(means), replicates + 1))

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

    def share_of(self, whole: "Draws", match: Sequence[str]) -> "Draws":
        """Each row divided by the row of ``whole`` that agrees with it in ``match``; NaN where that is not above 0."""
        of_whole = self.aligned(whole, match)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Draws(self.dimensions, np.where(of_whole > 0, self.values / of_whole, np.nan))

    def averaged(self, dimension: str, label: str) -> "Draws":
        """Means over the values of a dimension, of which ``label`` takes the place.

        Only values that every row has count, so that no mean is over others: a k above the latents that fire is left
        out for all SAEs.
        """
        others = [name for name in self.dimensions if name != dimension]
        rows_of: dict[tuple, dict[Any, int]] = {}
        for row, (*key, value) in enumerate(self._keys([*others, dimension])):
            rows_of.setdefault(tuple(key), {})[value] = row
        common = set.intersection(*(set(rows) for rows in rows_of.values()))
        means = [
            self.values[[row for value, row in rows.items() if value in common]].mean(0) for rows in rows_of.values()
        ]
        dimensions = pd.DataFrame(list(rows_of), columns=others, dtype=object).assign(**{dimension: label})
        return Draws(dimensions[list(self.dimensions)], np.array(means))

    def joined(self, other: "Draws") -> "Draws":
        """The rows of both, which have the same dimensions and replicates."""
        dimensions = pd.concat([self.dimensions, other.dimensions[list(self.dimensions)]], ignore_index=True)
        return Draws(dimensions, np.vstack([self.values, other.values]))

    def defined(self) -> "Draws":
        """The rows whose value on the rows themselves is defined, such as differences that have a partner."""
        return self._rows(~np.isnan(self.values[:, 0]))

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


def _kind(dimensions: dict[str, Any], apart: Sequence[str]) -> tuple:
    """What rows have in common whose seed variance is pooled: all but the variant, unless it is one of ``apart``."""
    is_apart = dimensions.get("variant") in apart
    return tuple(value for name, value in dimensions.items() if is_apart or name != "variant")


def pooled_spread(groups: Sequence[Mapping[Any, float]]) -> Spread:
    """Standard deviation over seeds that several groups of values, each by seed, have in common; undefined values
    are left out.

    With residuals r_i (a vector over the seeds, 0 where a group lacks one) of group i from its mean over n_i seeds,

        s² = Σ_i ‖r_i‖² / Σ_i (n_i − 1),    ν = (max n_i − 1)·(Σ_i ‖r_i‖²)² / Σ_ij (r_i·r_j)²,

    ν at most Σ_i (n_i − 1), which holds for independent groups. Groups of one seed are not: SAEs that were finetuned
    from one base keep what is particular to it. ν is the correction of Greenhouse and Geisser (1959,
    doi:10.1007/BF02289823) after Box (1954): groups that move together count as one.
    """
    defined = [{seed: value for seed, value in group.items() if not np.isnan(value)} for group in groups]
    groups = [group for group in defined if group]
    seeds = {seed: place for place, seed in enumerate(dict.fromkeys(seed for group in groups for seed in group))}
    residuals = np.zeros((len(groups), len(seeds)))
    for of_group, group in zip(residuals, groups, strict=True):
        values = np.array(list(group.values()))
        of_group[[seeds[seed] for seed in group]] = values - values.mean()
    independent = sum(len(group) - 1 for group in groups)
    products = residuals @ residuals.T
    total = np.trace(products)
    if total == 0:  # one seed each, or equal values
        return Spread(0.0, 0.0)
    degrees = (max(map(len, groups)) - 1) * total**2 / (products**2).sum()
    return Spread(float((total / independent) ** 0.5), float(min(degrees, independent)))


@functools.lru_cache(maxsize=1024)  # slow, and the same for many rows once degrees are rounded
def _t_quantiles(degrees: float, n: int) -> Float[np.ndarray, " n"]:
    """Quantiles of Student's t in the middles of n equal shares."""
    return scipy.stats.t.ppf((np.arange(n) + 0.5) / n, degrees)


def _with_integers(column: pd.Series) -> pd.Series:
    """A column of integers and None as nullable integers, so that 20 does not become 20.0; another one as it is."""
    kinds = {type(value) for value in column.dropna()}
    return column.astype("Int64") if kinds == {int} else column

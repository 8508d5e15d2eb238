"""Planted artefacts: which of them each debugging method exposes, beyond what it "exposes" where there is nothing to.

An artefact is planted in a share of one class; in the placebo in the same share of both classes, where it tells nothing
of the class. With e = 1 where one of a method's first ten items exposes the artefact, its **recall net of placebo** is
the mean over artefacts, draws of the data set, and shares of

    e(planted) − e(placebo).

Artefacts and draws are samples: intervals are over both (:mod:`lib.stats.crossed`).
"""

import joblib
import numpy as np
import pandas as pd
from jaxtyping import Int

from lib.base import processes
from lib.interp.debugging import METHODS, Dataset, Pair, exposing
from lib.stats import crossed, families, metrics
from lib.stats.draws import Draws

CONTROLS = {"planted": (1,), "placebo": (0, 1)}  # classes with the artefact; in both, there is nothing to expose
ALL = "all"  # a mean over the shares
REPLICATES = 5000


def draw(
    y: Int[np.ndarray, " texts"],
    share: float,
    rng: np.random.Generator,
    classes: tuple[int, ...] = (1,),
    kept: float = 0.8,
) -> Dataset:
    """A fraction ``kept`` of the texts, of which a fraction ``share`` of each of ``classes`` carries the artefact.

    Raises:
        ValueError: ``share`` outside 0-1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} must lie between 0 and 1")
    rows = np.sort(rng.permutation(len(y))[: round(kept * len(y))])
    planted = np.zeros(len(rows), dtype=bool)
    for label in classes:
        members = np.flatnonzero(y[rows] == label)
        planted[rng.permutation(members)[: round(share * len(members))]] = True
    return Dataset(rows, y[rows], planted)


def benchmark(pair: Pair, y: Int[np.ndarray, " texts"], shares: list[float], seeds: list[int]) -> pd.DataFrame:
    """Rank (1 is first) of the first exposing item among ``TOP``, by method, control, share and seed.

    It is null where no item exposes the artefact. The controls are those of ``CONTROLS``.
    """
    calls = (joblib.delayed(_ranks)(pair, y, shares, seed) for seed in seeds)
    return pd.concat(processes.parallel(len(seeds))(calls), ignore_index=True)


def _ranks(pair: Pair, y: np.ndarray, shares: list[float], seed: int) -> pd.DataFrame:
    rows = []
    for share in shares:
        for control, classes in CONTROLS.items():
            dataset = draw(y, share, np.random.default_rng([seed, round(1000 * share)]), classes)
            for method in METHODS:
                exposes = exposing(pair, method, dataset)
                rank = exposes.index(True) + 1 if any(exposes) else np.nan
                rows.append({"method": method, "control": control, "share": share, "seed": seed, "rank": rank})
    return pd.DataFrame(rows)


def recall_draws(ranks: pd.DataFrame, seed: int) -> Draws:
    """Draws of the share of artefacts that a method exposes, by method, control and share; share ``ALL`` is the mean.

    ``ranks`` is :func:`benchmark` of every artefact, named in the column artefact. Replicates draw artefacts, and draws
    of the data set, and are the same for all rows.
    """
    exposed = ranks.assign(exposed=ranks["rank"].notna().astype(float))
    keys, tables = [], []
    for (method, control), part in exposed.groupby(["method", "control"], sort=False):
        cube = part.pivot(index=["share", "artefact"], columns="seed", values="exposed").sort_index()
        shares = cube.index.unique("share")
        of_shares = [cube.loc[share].to_numpy() for share in shares]
        keys += [{"method": method, "control": control, "share": share} for share in [*shares, ALL]]
        tables += [*of_shares, np.mean(of_shares, axis=0)]
    dimensions = pd.DataFrame(keys, columns=["method", "control", "share"], dtype=object)
    return crossed.means(np.array(tables), dimensions, REPLICATES, seed)


def net(draws: Draws) -> Draws:
    """Of :func:`recall_draws`, planted minus placebo, by method and share."""
    apart = draws.where(control="planted").minus(draws.where(control="placebo"), ["method", "share"])
    return Draws(apart.dimensions.drop(columns="control"), apart.values)


def over_artefacts(draws: Draws, ranks: pd.DataFrame) -> pd.DataFrame:
    """Estimates of draws with 95 % intervals as wide as Student's of so many artefacts; ``n`` counts them.

    A share stays a number, but for ``ALL``.
    """
    n = ranks["artefact"].nunique()
    return families.at_levels(draws, n_units=n).assign(n=n, n_groups=n)


def of_artefacts(ranks: pd.DataFrame) -> pd.DataFrame:
    """How often each artefact is exposed by method, control and share: a mean over draws, with a t interval in 0-1."""
    by = ["method", "control", "share", "artefact"]
    rows = []
    for key, part in ranks.assign(exposed=ranks["rank"].notna()).groupby(by, sort=False):
        estimate: metrics.Estimate = metrics.t_interval(part["exposed"].to_numpy(dtype=np.float64))
        bounds = {}
        for name in ("low", "high"):
            bound = getattr(estimate, name)
            bounds[name] = None if bound is None else float(np.clip(bound, 0, 1))
        rows.append(dict(zip(by, key, strict=True)) | estimate._replace(**bounds)._asdict())
    return pd.DataFrame(rows)


def median_ranks(ranks: pd.DataFrame, share: float) -> pd.DataFrame:
    """Median rank of the first exposing item by artefact and method, of what is planted in a share of one class."""
    planted = ranks[(ranks["share"] == share) & (ranks["control"] == "planted")]
    medians = planted.pivot_table("rank", "artefact", "method", "median", sort=False)
    return medians.reindex(index=planted["artefact"].unique(), columns=list(METHODS))


def never_exposed(ranks: pd.DataFrame, method: str) -> list[str]:
    """The artefacts, planted in one class, that a method exposes at no share and with no seed."""
    planted = ranks[(ranks["control"] == "planted") & (ranks["method"] == method)]
    is_never = planted.groupby("artefact", sort=False)["rank"].agg(lambda rank: rank.isna().all())
    return is_never.index[is_never.astype(bool)].tolist()

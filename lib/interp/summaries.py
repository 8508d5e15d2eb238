"""What auto-interp scores say of all latents of an SAE, uniformly and weighted by firing frequency, and of many SAEs.

``scored`` is one :class:`lib.interp.autointerp.Scored` or its table; many of them stand in the order of the rows of
``saes``, a table with the columns notebook, variant, sparsity and seed.
"""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from lib.interp.autointerp import NOT_DRAWN, SCORED, UNSCORED, Scored
from lib.stats import metrics, populations
from lib.stats.metrics import Estimate

MEANS = {"uniform": False, "weighted": True}  # is a mean weighted by firing frequency?


def means(scored: pd.DataFrame) -> dict[str, Estimate]:
    """Mean score of the latents that can be judged: ``uniform``, and ``weighted`` by firing frequency."""
    stratum = scored["stratum"].to_numpy()
    return {name: _mean(scored, stratum, weighted) for name, weighted in MEANS.items()}


def _mean(scored: pd.DataFrame, stratum: Int[np.ndarray, " d_sae"], weighted: bool) -> Estimate:
    scores = scored.set_index("latent")["score"].dropna()
    scores = scores[stratum[scores.index] >= 0]
    return populations.estimate(scores, stratum, scored["frequency"].to_numpy(), weighted)


def by_frequency(scored: pd.DataFrame, parts: int = 5) -> pd.DataFrame:
    """Uniform mean score in quantiles of the firing frequency (1: rarest).

    Each quantile has a ``parts``-th of the latents, or a ``parts``-th of the firing mass. Columns: by, quantile,
    frequency (mean, fraction of tokens), and those of an Estimate.
    """
    inside = scored[scored["stratum"] >= 0].sort_values("frequency", kind="stable")
    mass = inside["frequency"].cumsum() - inside["frequency"] / 2
    position = {
        "latents": np.arange(len(inside)) / len(inside),
        "firing mass": (mass / inside["frequency"].sum()).to_numpy(),
    }
    rows = []
    for by, fraction_below in position.items():
        part_of_inside = pd.Series(np.floor(fraction_below * parts).astype(int), inside["latent"])
        part_of_latent = part_of_inside.reindex(scored["latent"], fill_value=-1).to_numpy()
        for part in range(parts):
            stratum = np.where(part_of_latent == part, scored["stratum"], -1)
            here = scored[stratum >= 0]
            if here["score"].notna().any():
                quantile = {"by": by, "quantile": part + 1, "frequency": here["frequency"].mean()}
                rows.append(quantile | _mean(scored, stratum, weighted=False)._asdict())
    return pd.DataFrame(rows, columns=["by", "quantile", "frequency", *Estimate._fields])


def fall(scored: pd.DataFrame, parts: int = 5) -> float:
    """Mean score of the rarest ``parts``-th of the latents minus that of the most frequent; NaN if one has no score."""
    quantiles = by_frequency(scored, parts).query("by == 'latents'")
    rarest, most_frequent = quantiles.set_index("quantile")["value"].reindex([1, parts]).astype(float)
    return float(rarest - most_frequent)


def coverage(scored: pd.DataFrame) -> pd.DataFrame:
    """Latents and share of the firing mass by status.

    The means speak of those scored and of those not drawn, which are stood for.
    """
    by_status = scored.groupby("status")["frequency"].agg(latents="size", firing_mass="sum")
    mass = by_status["firing_mass"] / max(scored["frequency"].sum(), 1e-12)
    return by_status.assign(firing_mass=mass).reindex([SCORED, *UNSCORED]).dropna().reset_index()


def means_of_saes(saes: pd.DataFrame, scored: list[Scored]) -> pd.DataFrame:
    """A row per SAE (its place among ``saes``) and mean: notebook, variant, sparsity, seed, l0, and an Estimate."""
    rows = []
    for place, (row, scores) in enumerate(zip(saes.itertuples(), scored, strict=True)):
        sae = {
            "sae": place,
            "notebook": row.notebook,
            "variant": row.variant,
            "sparsity": row.sparsity,
            "seed": row.seed,
            "l0": l0(scores),
        }
        for name, estimate in means(scores.table).items():
            rows.append(sae | {"mean": name} | estimate._asdict())
    return pd.DataFrame(rows)


def l0(scored: Scored) -> float:
    """Active latents per token."""
    return scored.table["frequency"].sum()


def coverage_of_saes(scored: list[Scored]) -> pd.DataFrame:
    """:func:`coverage` of each SAE, by its place in the column ``sae``."""
    return pd.concat([coverage(scores.table).assign(sae=place) for place, scores in enumerate(scored)])


def coverage_over_saes(counts: pd.DataFrame) -> pd.DataFrame:
    """Mean, least and most over the SAEs of what :func:`coverage_of_saes` counts, by status."""
    wide = counts.pivot(index="sae", columns="status", values=["latents", "firing_mass"]).fillna(0.0)
    return wide.agg(["mean", "min", "max"]).T


def common_seed(saes: pd.DataFrame, seeds: list[int]) -> int:
    """The smallest of ``seeds`` of which every notebook has SAEs: that of what is compared SAE by SAE.

    Raises:
        ValueError: there is none.
    """
    by_notebook = {name: set(part.dropna().astype(int)) for name, part in saes.groupby("notebook")["seed"]}
    common = set(seeds).intersection(*by_notebook.values())
    if not common:
        there_are = "; ".join(f"notebook {name} has {sorted(of_it)}" for name, of_it in by_notebook.items())
        raise ValueError(f"interp_seeds {seeds} must hold a seed that all SAEs were trained with: {there_are}")
    return min(common)


def of_same_rank(saes: pd.DataFrame, notebook: str, seed: int, rank: int = 3) -> pd.DataFrame:
    """One SAE of each variant of a notebook, of the same rank of sparsity: ``rank``, or the last that all have."""
    chosen = saes[(saes["notebook"] == notebook) & (saes["seed"] == seed)]
    by_variant = chosen.groupby("variant")
    return chosen[by_variant["sparsity"].rank() == min(rank, by_variant.size().min())]


def by_frequency_of_saes(saes: pd.DataFrame, scored: list[Scored]) -> pd.DataFrame:
    """:func:`by_frequency` of some of the SAEs, whose places are the index of ``saes``."""
    parts = []
    for place, row in saes.iterrows():
        parts.append(by_frequency(scored[place].table).assign(variant=row["variant"], sae=place))
    return pd.concat(parts)


def differences(points: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Each variant minus the variant ``reference``, by mean, of rows of :func:`means_of_saes` with one SAE a variant.

    Columns: variant, mean, against, and those of an Estimate. The samples of two SAEs are independent.
    """
    return pd.DataFrame(_differences(points, reference), columns=["variant", "mean", "against", *Estimate._fields])


def _differences(points: pd.DataFrame, reference: str) -> list[dict[str, Any]]:
    estimates = {
        (row.variant, row.mean): Estimate(row.value, row.low, row.high, row.n, row.n_groups)
        for row in points.itertuples()
    }
    rows = []
    for (variant, mean), estimate in estimates.items():
        if variant != reference:
            difference = populations.difference(estimate, estimates[reference, mean])
            rows.append({"variant": variant, "mean": mean, "against": reference} | difference._asdict())
    return rows


def ranking(points: pd.DataFrame, scored: list[Scored], seed: int, leading: str, reference: str) -> pd.DataFrame:
    """How differently the two means rank the SAEs of ``points`` (rows of :func:`means_of_saes`), in three metrics.

    ``autointerp_fall``: how far the score falls from the rarest to the most frequent fifth of the latents, over SAEs.
    ``rank_correlation``: Spearman's, of the two means.
    ``autointerp_lead``: what the variants whose name begins with ``leading`` are ahead of the variant ``reference``, at
    its highest sparsity and of one seed.
    """
    falls = np.array([fall(scored[place].table) for place in points["sae"].unique()])
    rows = [{"metric": "autointerp_fall"} | metrics.t_interval(falls[~np.isnan(falls)])._asdict()]
    wide = points.pivot(index="sae", columns="mean", values="value")
    correlation = wide["uniform"].corr(wide["weighted"], method="spearman")
    rows.append({"metric": "rank_correlation", "value": correlation, "n": len(wide), "n_groups": len(wide)})
    densest = points.loc[points["variant"] == reference, "sparsity"].max()
    compared = points["variant"].str.startswith(leading) | (points["variant"] == reference)
    at_densest = points[compared & (points["sparsity"] == densest) & (points["seed"] == seed)]
    rows += [{"metric": "autointerp_lead"} | row for row in _differences(at_densest, reference)]
    return pd.DataFrame(rows)


def with_seed(points: pd.DataFrame) -> pd.Series:
    """The variant of each row with its seed, where it has one."""
    seeds = points["seed"].map(lambda seed: "" if pd.isna(seed) else f", seed {int(seed)}")
    return points["variant"] + seeds


def drawn_latents(saes: pd.DataFrame, scored: list[Scored]) -> pd.DataFrame:
    """The rows of all ``scored`` tables but those of latents that were not drawn, with place and folder of the SAE."""
    parts = []
    for place, (folder, scores) in enumerate(zip(saes["folder"], scored, strict=True)):
        is_drawn = scores.table["status"] != NOT_DRAWN
        parts.append(scores.table[is_drawn].assign(sae=place, folder=folder))
    return pd.concat(parts).reset_index(drop=True)

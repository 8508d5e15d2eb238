"""What auto-interp scores say of all latents of an SAE, uniformly and weighted by firing frequency, and of many SAEs.

``scored`` is one :class:`lib.interp.autointerp.Scored` or its table; many of them stand in the order of the rows of
``saes``, a table with the columns notebook, variant, sparsity, seed, folder and start (the folder that a finetuned SAE
began as, or null). Intervals are over the latents drawn of each SAE.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from lib.interp.autointerp import NOT_DRAWN, SCORED, UNSCORED, Scored
from lib.results import tables
from lib.stats import families, populations
from lib.stats.draws import Draws
from lib.stats.metrics import Estimate

MEANS = {"uniform": False, "weighted": True}  # is a mean weighted by firing frequency?
PANELS = {"uniform": "uniform mean", "weighted": "weighted by firing frequency"}
SCORES = ("score", "shuffled")  # with a latent's own explanation, and with another's
SHUFFLED = "weighted, shuffled explanations"  # as a figure calls it
OF_WEIGHTING = ["metric", "variant", "mean", "l0", "against", "value", "low", "high"]
REPLICATES = 5000  # of the latents drawn; a family of ten comparisons asks for their 0.25th percentile
NEAR = 1.1  # ratio of two L0s up to which they count as equal


def kin(saes: pd.DataFrame) -> list[list[str]]:
    """The folders of the SAEs in lists of those that began as the same one."""
    start = saes["start"] if "start" in saes else pd.Series(None, saes.index, dtype=object)
    root = start.where(start.notna(), saes["folder"])
    return [part.tolist() for _, part in saes["folder"].groupby(root, sort=False)]


def mean_draws(saes: pd.DataFrame, scored: list[Scored], seed: int) -> Draws:
    """Draws of both means of both ``SCORES`` over the latents of each SAE that can be judged.

    Σ_i w_i s_i / Σ_i w_i, with w = 1 or the firing frequency; the sample stands for all latents, as in
    :func:`lib.stats.populations.estimate`. SAEs that began as one have one sample, and share their replicates.
    Dimensions: sae (the place among ``saes``), notebook, variant, sparsity, seed, l0, mean, score.
    """
    rng = np.random.default_rng(seed)
    place_of = {folder: place for place, folder in enumerate(saes["folder"])}
    values = np.empty((len(saes), len(MEANS), len(SCORES), 1 + REPLICATES))
    for folders in kin(saes):
        places = [place_of[folder] for folder in folders]
        values[places] = _of_kin([scored[place].table for place in places], rng)
    columns = ["notebook", "variant", "sparsity", "seed"]
    known = saes[columns].astype(object).where(saes[columns].notna(), None).to_dict("records")
    rows = [
        {"sae": place, **of_sae, "l0": l0(scored[place]), "mean": mean, "score": score}
        for place, of_sae in enumerate(known)
        for mean in MEANS
        for score in SCORES
    ]
    return Draws(pd.DataFrame(rows, dtype=object), values.reshape(len(rows), -1))


def _of_kin(
    tables: list[pd.DataFrame], rng: np.random.Generator
) -> Float[np.ndarray, "saes means scores replicates_plus_1"]:
    """The means of SAEs that have one sample of latents.

    What cannot be judged in one of them has no weight there. A latent whose score is missing in one SAE, though it can
    be judged, is left out of all.
    """
    values = np.full((len(tables), len(MEANS), len(SCORES), 1 + REPLICATES), np.nan)
    strata = np.array([table["stratum"] for table in tables])
    for j, name in enumerate(SCORES):
        scores = np.array([table[name] for table in tables], dtype=float)
        is_known = (~np.isnan(scores) | (strata < 0)).all(0) & (strata >= 0).any(0)
        chosen = np.flatnonzero(is_known & ~np.isnan(scores).all(0))
        if not len(chosen):
            continue
        stand_for = populations.resampled(chosen, strata.max(0), REPLICATES, rng)
        for i, table in enumerate(tables):
            for m, is_weighted in enumerate(MEANS.values()):
                weight = (strata[i] >= 0) * (table["frequency"].to_numpy() if is_weighted else 1.0)
                y = weight[chosen] * np.nan_to_num(scores[i, chosen]) / weight.sum()
                values[i, m, j] = stand_for @ y
    return values


def _mean(scored: pd.DataFrame, stratum: Int[np.ndarray, " d_sae"], weighted: bool) -> Estimate:
    scores = scored.set_index("latent")["score"].dropna()
    scores = scores[stratum[scores.index] >= 0]
    return populations.estimate(scores, stratum, scored["frequency"].to_numpy(), weighted)


def by_frequency(scored: pd.DataFrame, parts: int = 5) -> pd.DataFrame:
    """Uniform mean score in quantiles of the firing frequency (1: rarest).

    Each quantile has a ``parts``-th of the latents, or a ``parts``-th of the firing mass. Columns: by, quantile,
    frequency (mean, fraction of tokens), and those of an Estimate.
    """
    rows = []
    for by, part_of_latent in _parts(scored, parts).items():
        for part in range(parts):
            stratum = np.where(part_of_latent == part, scored["stratum"], -1)
            here = scored[stratum >= 0]
            if here["score"].notna().any():
                quantile = {"by": by, "quantile": part + 1, "frequency": here["frequency"].mean()}
                rows.append(quantile | _mean(scored, stratum, weighted=False)._asdict())
    return pd.DataFrame(rows, columns=["by", "quantile", "frequency", *Estimate._fields])


def _parts(scored: pd.DataFrame, parts: int) -> dict[str, Int[np.ndarray, " d_sae"]]:
    """The part (0: rarest; −1: outside the population) of each latent, by number of latents and by firing mass."""
    inside = scored[scored["stratum"] >= 0].sort_values("frequency", kind="stable")
    mass = inside["frequency"].cumsum() - inside["frequency"] / 2
    position = {
        "latents": np.arange(len(inside)) / len(inside),
        "firing mass": (mass / inside["frequency"].sum()).to_numpy(),
    }
    part_of_latent = {}
    for by, fraction_below in position.items():
        part_of_inside = pd.Series(np.floor(fraction_below * parts).astype(int), inside["latent"])
        part_of_latent[by] = part_of_inside.reindex(scored["latent"], fill_value=-1).to_numpy()
    return part_of_latent


def falls(scored: list[Scored], seed: int, parts: int = 5) -> Draws:
    """Draws of how far a mean score falls from the rarest ``parts``-th of an SAE's latents to the most frequent.

    A mean over the SAEs that have scores in both, of each of ``SCORES`` and (``over_shuffled``) of their difference on
    the same latents; replicates draw latents within an SAE's fifths. Dimension: score.
    """
    rng = np.random.default_rng(seed)
    of_saes = np.array([_falls(scores.table, parts, rng) for scores in scored])
    of_saes = of_saes.reshape(-1, len(SCORES), 1 + REPLICATES)
    of_saes = of_saes[~np.isnan(of_saes).any((1, 2))]
    mean = of_saes.mean(0) if len(of_saes) else np.full((len(SCORES), 1 + REPLICATES), np.nan)
    dimensions = pd.DataFrame({"score": [*SCORES, "over_shuffled"]})
    return Draws(dimensions, np.vstack([mean, mean[:1] - mean[1:2]]))


def fall_rows(scored: list[Scored], seed: int, parts: int = 5) -> pd.DataFrame:
    """:func:`falls` as rows ``autointerp_fall``, ``…_shuffled`` and ``…_over_shuffled``, with 95 % intervals.

    ``n`` counts the latents scored in both parts. The intervals are as wide as Student's of so many as the smaller
    parts hold, as these decide how well a difference is known.
    """
    n = n_units = 0
    for table in (scores.table for scores in scored):
        part_of_latent = _parts(table, parts)["latents"]
        has_both = table[list(SCORES)].notna().all(axis=1).to_numpy()
        of_ends = [int((has_both & (part_of_latent == part)).sum()) for part in (0, parts - 1)]
        n, n_units = n + sum(of_ends), n_units + min(of_ends)
    names = {"score": "autointerp_fall"} | {name: f"autointerp_fall_{name}" for name in ("shuffled", "over_shuffled")}
    rows = families.at_levels(falls(scored, seed, parts), n_units=max(n_units, 2))
    return rows.assign(metric=rows["score"].map(names), n=n).drop(columns=["score", "alpha"])


def _falls(scored: pd.DataFrame, parts: int, rng: np.random.Generator) -> Float[np.ndarray, "scores replicates_plus_1"]:
    part_of_latent = _parts(scored, parts)["latents"]
    has_both = scored[list(SCORES)].notna().all(axis=1).to_numpy()
    ends = []
    for part in (0, parts - 1):
        stratum = np.where(part_of_latent == part, scored["stratum"], -1)
        chosen = np.flatnonzero(has_both & (stratum >= 0))
        if not len(chosen):
            return np.full((len(SCORES), 1 + REPLICATES), np.nan)
        stand_for = populations.resampled(chosen, stratum, REPLICATES, rng)
        ends.append(scored[list(SCORES)].to_numpy(dtype=float)[chosen].T @ stand_for.T / (stratum >= 0).sum())
    return ends[0] - ends[1]


def coverage(scored: pd.DataFrame) -> pd.DataFrame:
    """Latents and share of the firing mass by status.

    The means speak of those scored and of those not drawn, which are stood for.
    """
    by_status = scored.groupby("status")["frequency"].agg(latents="size", firing_mass="sum")
    mass = by_status["firing_mass"] / max(scored["frequency"].sum(), 1e-12)
    return by_status.assign(firing_mass=mass).reindex([SCORED, *UNSCORED]).dropna().reset_index()


def means_of_saes(draws: Draws, scored: list[Scored]) -> pd.DataFrame:
    """:func:`mean_draws` with 95 % intervals, and ``n``, the latents scored of an SAE."""
    n = [scores.table["score"].notna().sum() for scores in scored]
    return draws.estimates().assign(n=lambda table: table["sae"].map(dict(enumerate(n))))


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


def of_same_rank(saes: pd.DataFrame, scored: list[Scored], notebook: str, seed: int, rank: int = 3) -> pd.DataFrame:
    """One SAE of each variant of a notebook, of the same rank of measured L0: ``rank``, or the last that all have.

    The column ``sparsity`` would not do: it is an L0 that was aimed at, or of gated SAEs the coefficient of a penalty,
    which makes the L0 smaller the larger it is.
    """
    chosen = saes[(saes["notebook"] == notebook) & (saes["seed"] == seed)]
    measured = pd.Series({place: l0(scored[place]) for place in chosen.index}, dtype=float)
    by_variant = measured.groupby(chosen["variant"])
    return chosen[by_variant.rank(method="first") == min(rank, by_variant.size().min())]


def by_frequency_of_saes(saes: pd.DataFrame, scored: list[Scored]) -> pd.DataFrame:
    """:func:`by_frequency` of some of the SAEs, whose places are the index of ``saes``."""
    parts = []
    for place, row in saes.iterrows():
        parts.append(by_frequency(scored[place].table).assign(variant=row["variant"], sae=place))
    return pd.concat(parts)


def over_seeds(draws: Draws, notebook: str, seed: int) -> pd.DataFrame:
    """Both means of each variant of a notebook, of rows of :func:`mean_draws`, over training seeds, for a figure."""
    own = _only(draws.where(score="score", notebook=notebook), ["variant", "mean", "seed"])
    means = own.over_seeds(seed, bounds=(-1.0, 1.0)).estimates()
    return means.assign(panel=means["mean"].map(PANELS))


def differences(draws: Draws, reference: str, seed: int) -> pd.DataFrame:
    """Each variant minus the variant ``reference``, by mean, of rows of :func:`mean_draws` with one SAE a variant and
    training seed.

    Means over the seeds that both have, with the noise of seeds (:meth:`lib.stats.draws.Draws.over_seeds`). The
    variants are a family (:mod:`lib.stats.families`), whose levels are in the column ``alpha``. SAEs that began as one
    are compared latent by latent, others as independent samples. Columns: variant, mean, against, value, low, high,
    alpha.
    """
    own = _only(draws.where(score="score"), ["variant", "mean", "seed"])
    seeds = own.where(variant=reference).dimensions["seed"].tolist()
    apart = own.where(seed=seeds).against("variant", reference).over_seeds(seed, bounds=(-1.0, 1.0))
    parts = [families.estimates(apart.where(mean=mean)) for mean in MEANS]
    return pd.concat(parts, ignore_index=True).assign(against=reference)


def behind(apart: pd.DataFrame) -> pd.DataFrame:
    """Rows of :func:`differences` the other way round: what each variant is behind the reference."""
    return apart.assign(value=-apart["value"], low=-apart["high"], high=-apart["low"])


def at_matched_l0(draws: Draws, reference: str, seed: int) -> Draws:
    """:func:`mean_draws` of all variants at the L0s of the variant ``reference``, means over training seeds.

    A variant's means are interpolated linearly in log L0, within each seed and replicate by replicate; an L0 that is
    farther than ``NEAR`` from what its SAEs span is left out, never extrapolated. Dimensions: variant, mean, score, l0.
    """
    of_reference = draws.where(variant=reference).dimensions
    l0s = sorted(of_reference["l0"].astype(float).groupby(of_reference["sparsity"]).mean().round(1))
    rows, values = [], []
    by = ["variant", "mean", "score", "seed"]
    for key, part in draws.dimensions.groupby(by, sort=False):
        part = part.sort_values("l0")
        spanned = part["l0"].to_numpy(dtype=float)
        for at in l0s:
            if spanned[0] / NEAR <= at <= spanned[-1] * NEAR:
                shares = [np.interp(np.log(at), np.log(spanned), row) for row in np.eye(len(part))]
                rows.append(dict(zip(by, key, strict=True)) | {"l0": at})
                values.append(np.array(shares) @ draws.values[part.index])
    dimensions = pd.DataFrame(rows, columns=[*by, "l0"])
    matched = Draws(dimensions, np.reshape(values, (len(rows), -1)))
    return matched.over_seeds(seed, bounds=(-1.0, 1.0))


def reference(saes: pd.DataFrame, notebook: str, wanted: str) -> str:
    """The variant ``wanted`` of a notebook, or its first one where it has no such variant."""
    variants = saes.loc[saes["notebook"] == notebook, "variant"]
    return wanted if wanted in set(variants) else variants.iloc[0]


def sorted_means(matched: Draws) -> pd.DataFrame:
    """Means of :func:`at_matched_l0` for a figure, the variant of largest weighted mean at the highest L0 first.

    The column ``panel`` names the L0, and ``mean`` also :data:`SHUFFLED`, the weighted mean with other explanations.
    """
    table = matched.estimates()
    is_shuffled = table["score"] == "shuffled"
    table = table[~is_shuffled | (table["mean"] == "weighted")]
    table = table.assign(panel=table["l0"].map("L0 {:g}".format), mean=table["mean"].where(~is_shuffled, SHUFFLED))
    of_highest = table[table["mean"] == "weighted"].sort_values("l0").drop_duplicates("variant", keep="last")
    variants = of_highest.sort_values("value", ascending=False)["variant"].tolist()
    hues = [*MEANS, SHUFFLED]
    order = {"variant": variants.index, "mean": hues.index, "l0": float}
    return table.sort_values(["l0", "variant", "mean"], key=lambda column: column.map(order[column.name]))


def weighting(matched: Draws, leading: str, reference: str) -> pd.DataFrame:
    """What weighting by frequency changes, of :func:`at_matched_l0`, with 95 % intervals, in three metrics.

    ``autointerp_drop``: by how much the weighted mean is below the uniform one, of each variant and L0.
    ``autointerp_lead``: what a variant is ahead of the variant ``reference``, by mean, at the highest L0 of both.
    ``autointerp_lead_gained``: the weighted lead minus the uniform one, of the variant ``leading``, at that L0.
    """
    own = matched.where(score="score")
    uniform, weighted = (_only(own.where(mean=mean), ["variant", "l0"]) for mean in MEANS)
    drop = uniform.minus(weighted, ["variant", "l0"])
    parts = [drop.estimates().assign(metric="autointerp_drop", mean="uniform minus weighted")]
    leads = {
        mean: _highest(of_mean.against("variant", reference))
        for mean, of_mean in {"uniform": uniform, "weighted": weighted}.items()
    }
    for name, lead in leads.items():
        parts.append(lead.estimates().assign(metric="autointerp_lead", mean=name, against=reference))
    gained = leads["weighted"].minus(leads["uniform"], ["variant", "l0"]).where(variant=leading)
    about = {"metric": "autointerp_lead_gained", "mean": "weighted minus uniform", "against": reference}
    parts.append(gained.estimates().assign(**about))
    return pd.concat([part for part in parts if len(part)], ignore_index=True).reindex(columns=OF_WEIGHTING)


def _only(draws: Draws, dimensions: list[str]) -> Draws:
    """The draws with some of their dimensions; the others are equal in all rows."""
    return Draws(draws.dimensions[dimensions], draws.values)


def _highest(draws: Draws) -> Draws:
    """The rows of each variant's highest L0."""
    l0 = draws.dimensions["l0"].astype(float)
    is_highest = l0.groupby(draws.dimensions["variant"]).transform("max") == l0
    return Draws(draws.dimensions[is_highest].reset_index(drop=True), draws.values[is_highest])


def in_words(weighting: pd.DataFrame, leading: str, reference: str) -> str:
    """What :func:`weighting` found of ``leading`` against ``reference``."""
    of_leading = weighting[(weighting["variant"] == leading) & (weighting["against"] == reference)]
    if of_leading.empty:
        return f"{leading} is compared with no other variant at equal L0."
    by_mean = {row.mean: row for row in of_leading.itertuples()}
    uniform, weighted = (tables.directed(by_mean[mean], "ahead by", "behind by") for mean in MEANS)
    gained = tables.directed(by_mean["weighted minus uniform"], "gains", "loses")
    return (
        f"At L0 {of_leading['l0'].iloc[0]:g}, {leading} is {uniform} in the uniform mean and {weighted} in the "
        f"weighted one, compared with {reference}: it {gained} by the weights."
    )


def rank_correlation(points: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of the two means over the SAEs of :func:`means_of_saes`."""
    wide = points[points["score"] == "score"].pivot(index="sae", columns="mean", values="value")
    value = wide["uniform"].corr(wide["weighted"], method="spearman")
    return pd.DataFrame([{"metric": "rank_correlation", "value": value, "n": len(wide), "n_groups": len(wide)}])


def drawn_latents(saes: pd.DataFrame, scored: list[Scored]) -> pd.DataFrame:
    """The rows of all ``scored`` tables but those of latents that were not drawn, with place and folder of the SAE."""
    parts = []
    for place, (folder, scores) in enumerate(zip(saes["folder"], scored, strict=True)):
        is_drawn = scores.table["status"] != NOT_DRAWN
        parts.append(scores.table[is_drawn].assign(sae=place, folder=folder))
    return pd.concat(parts).reset_index(drop=True)

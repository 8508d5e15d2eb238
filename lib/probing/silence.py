"""Latents that fall silent when a prompt is wrapped, and latents that fire in their place.

The pairs are there: every base prompt stands plain and in wrappers. A latent that fires on the plain prompt and not in
the wrapper gives a false negative, which the paper saw many of. Feature absorption (Chanin et al. 2024, arXiv
2409.14507) would show as another latent, of a like decoder row, that fires in its place.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Float, Int

from lib.probing import ksparse
from lib.probing.tasks import Task
from lib.results.probe_tables import over_wrappers
from lib.stats.draws import Draws
from lib.stats.metrics import bootstrap_weights

CHOSEN, CONTROL = "chosen", "equal frequency"
JAILBREAKS = "jailbreaks"  # the mean over them
N_CONTROLS = 20  # latents of equal frequency beside each chosen one


class Pairs(NamedTuple):
    """Base prompts that stand plain and in one wrapper: their rows in the prompt table, and their names."""

    plain: Int[np.ndarray, " pairs"]
    wrapped: Int[np.ndarray, " pairs"]
    base: np.ndarray


def pairs(prompts: pd.DataFrame, label: int = 1) -> dict[str, Pairs]:
    """The pairs of every wrapper in which base prompts stand whose plain form has a label, in the table's order.

    Training prompts are left out: latents were chosen on them.
    """
    rows = prompts.reset_index(drop=True)
    rows = rows[rows["split"] != "train"]
    is_request = (rows["transform"] == "plain") & (rows["label"] == label)
    plain_row = pd.Series(rows.index[is_request], index=rows.loc[is_request, "base_id"])
    wrapped = rows[(rows["transform"] != "plain") & rows["base_id"].isin(plain_row.index)]
    return {
        wrapper: Pairs(plain_row[of_one["base_id"]].to_numpy(), of_one.index.to_numpy(), of_one["base_id"].to_numpy())
        for wrapper, of_one in wrapped.groupby("transform", sort=False)
    }


def that_may_silence(prompts: pd.DataFrame, wrappers: list[str]) -> list[str]:
    """The wrappers that do not only add text behind a prompt, which changes no earlier token of a causal model."""
    texts = prompts["text"].to_numpy()
    only_add = {
        wrapper
        for wrapper, of_one in pairs(prompts).items()
        if all(b.startswith(a) for a, b in zip(texts[of_one.plain], texts[of_one.wrapped], strict=True))
    }
    return [wrapper for wrapper in wrappers if wrapper not in only_add]


def speaking(
    latents: ksparse.Columns, task: Task, chosen: Int[np.ndarray, " k"], label: int, pairs_of: dict[str, Pairs]
) -> Int[np.ndarray, " latents"]:
    """Those of the chosen latents that speak for a label (their mean is larger there, in training) and fire on a plain
    prompt of some pair."""
    if not pairs_of:
        return chosen[:0]
    plain = np.unique(np.concatenate([of_one.plain for of_one in pairs_of.values()]))
    gap = ksparse.mean_gap(latents[task.train][:, chosen], task.y[task.train])
    fires = np.asarray((latents[plain][:, chosen] > 0).sum(0)).ravel() > 0
    return chosen[((gap > 0) == label) & fires]


def controls(
    latents: ksparse.Columns,
    plain: Int[np.ndarray, " rows"],
    chosen: Int[np.ndarray, " latents"],
    unwanted: Int[np.ndarray, " k"],
    rng: np.random.Generator,
) -> Int[np.ndarray, "latents controls"]:
    """``N_CONTROLS`` latents for each chosen one (all where there are fewer) that fire on about as many of the plain
    prompts: drawn from the twice as many that are nearest in this, those that the probe reads (``unwanted``) left out.

    Raises:
        ValueError: no other latent fires.
    """
    count = np.asarray((latents[plain] > 0).sum(0)).ravel()
    allowed = np.setdiff1d(np.flatnonzero(count), unwanted)
    if not len(allowed):
        raise ValueError(f"none but the {len(unwanted)} chosen latents fires on a plain prompt")
    order = rng.permutation(allowed)  # so that ties are in no order of the dictionary
    nearest = [order[np.argsort(np.abs(count[order] - count[j]), kind="stable")[: 2 * N_CONTROLS]] for j in chosen]
    return np.array([rng.permutation(near)[:N_CONTROLS] for near in nearest])


def shares(
    latents: ksparse.Columns,
    pairs_of: dict[str, Pairs],
    chosen: Int[np.ndarray, " latents"],
    beside: Int[np.ndarray, "latents controls"],
    replicates: int,
    seed: int,
) -> Draws:
    """How often latents are silent in a wrapper, of the pairs in which they fire on the plain prompt.

    Dimensions ``latents`` (``CHOSEN`` or ``CONTROL``) and ``wrapper``; a mean over the chosen latents that fire in the
    wrapper's pairs, of which each has its own controls' mean. Replicates draw base prompts, and latents with their
    controls. A wrapper in whose pairs no latent and control both fire is left out.
    """
    rows, values, n = [], [], len(chosen)
    drawn = np.random.default_rng(seed).multinomial(n, [1 / n] * n, replicates)
    counts = np.vstack([np.ones((1, n)), drawn])  # of each latent, in each replicate
    fires = scipy.sparse.csc_matrix(latents > 0)
    for wrapper, of_one in pairs_of.items():
        weights = np.vstack([np.ones((1, len(of_one.base))), bootstrap_weights(of_one.base, replicates, seed)])
        own = _changing_share(fires, of_one, chosen, weights)
        others = _changing_share(fires, of_one, beside.ravel(), weights).reshape(len(weights), *beside.shape)
        others = _mean(others, 2)
        both = np.isnan(own) | np.isnan(others)
        if both[0].all():
            continue
        for name, share in ((CHOSEN, own), (CONTROL, others)):
            rows.append({"latents": name, "wrapper": wrapper})
            values.append(_mean(np.where(both, np.nan, share), 1, counts))
    dimensions = pd.DataFrame(rows, dtype=object, columns=["latents", "wrapper"])
    return Draws(dimensions, np.array(values, dtype=np.float64).reshape(len(rows), 1 + replicates))


def by_latent(
    latents: ksparse.Columns, pairs_of: dict[str, Pairs], chosen: Int[np.ndarray, " latents"], begins: bool = False
) -> pd.DataFrame:
    """The share of :func:`shares` of each latent (rows) in each wrapper (columns); NaN where it does not fire plain.

    With ``begins`` the reverse: the share of pairs in which it fires in the wrapper, of those where it does not plain.
    """
    fires = scipy.sparse.csc_matrix(latents > 0)
    table = {
        wrapper: _changing_share(fires, of_one, chosen, np.ones((1, len(of_one.base))), begins)[0]
        for wrapper, of_one in pairs_of.items()
    }
    return pd.DataFrame(table, index=pd.Index(chosen, name="latent"))


def by_latent_of(
    latents: ksparse.Columns, pairs_of: dict[str, Pairs], chosen: Int[np.ndarray, " latents"], begins: bool = False
) -> pd.DataFrame:
    """The number of pairs that each share of :func:`by_latent` is one of."""
    fires = scipy.sparse.csc_matrix(latents > 0)
    counts = {
        wrapper: (fires[of_one.plain][:, chosen].toarray() != begins).sum(0) for wrapper, of_one in pairs_of.items()
    }
    return pd.DataFrame(counts, index=pd.Index(chosen, name="latent"))


def _changing_share(
    fires: scipy.sparse.csc_matrix,
    of_one: Pairs,
    columns: np.ndarray,
    weights: Float[np.ndarray, "replicates pairs"],
    begins: bool = False,
) -> Float[np.ndarray, "replicates columns"]:
    """The share of pairs that fire plain in which the wrapped prompt does not; with ``begins``, of those that do not
    fire plain in which it does."""
    plain, wrapped = (fires[rows][:, columns].toarray() != begins for rows in (of_one.plain, of_one.wrapped))
    with np.errstate(invalid="ignore"):
        return (weights @ (plain & ~wrapped)) / (weights @ plain)


def _mean(values: np.ndarray, axis: int, counts: np.ndarray | float = 1.0) -> np.ndarray:
    """The mean of what is defined, each as often as ``counts`` says; NaN where nothing is."""
    defined = ~np.isnan(values) * counts
    with np.errstate(invalid="ignore"):
        return (np.nan_to_num(values) * defined).sum(axis) / defined.sum(axis)


def in_place(
    latents: ksparse.Columns,
    pairs_of: dict[str, Pairs],
    chosen: Int[np.ndarray, " latents"],
    decoder: Float[np.ndarray, "d_sae d_model"],
    least: int = 5,
) -> pd.DataFrame:
    """Which latent fires in the place of each chosen one: the one that begins to fire in the wrapper most often where
    the chosen one falls silent, beyond how often it does where the chosen one goes on, over all pairs.

    Columns ``latent``, ``fires`` (pairs with the chosen latent plain), ``silent`` (share), ``in_place``, ``excess``
    (that difference of shares) and ``cosine`` of the two decoder rows. Empty where fewer than ``least`` pairs are
    silent, or go on.
    """
    fires = scipy.sparse.csr_matrix(latents > 0)
    sides = [np.concatenate([[], *(of_one[side] for of_one in pairs_of.values())]).astype(int) for side in (0, 1)]
    plain, wrapped = (fires[rows_of_side] for rows_of_side in sides)
    begins = (wrapped > plain).astype(np.float64)
    unit = decoder / np.maximum(np.linalg.norm(decoder, axis=1, keepdims=True), 1e-12)
    rows = []
    for latent in chosen.tolist():
        was, stays = (side[:, [latent]].toarray()[:, 0] for side in (plain, wrapped))
        silent, goes_on = was & ~stays, was & stays
        row = {"latent": latent, "fires": int(was.sum()), "silent": silent.sum() / max(was.sum(), 1)}
        if min(silent.sum(), goes_on.sum()) >= least:
            excess = np.asarray(begins[silent].mean(0) - begins[goes_on].mean(0)).ravel()
            best = int(excess.argmax())
            row |= {"in_place": best, "excess": float(excess[best]), "cosine": float(unit[latent] @ unit[best])}
        rows.append(row)
    columns = ["latent", "fires", "silent", "in_place", "excess", "cosine"]
    return pd.DataFrame(rows, columns=columns).astype({"in_place": "Int64"})


class Silence(NamedTuple):
    """How often the latents of a k-sparse probe are silent on wrapped prompts of the class that they speak for.

    Attributes:
        latents: those that speak for harm.
        drawn: of :func:`shares`, of these.
        table: of :func:`by_latent`, of these, then of those that speak for harmless prompts (index: label, latent).
        begins: the reverse on prompts of the other class, where firing speaks for the wrong one; same rows.
        table_of, begins_of: the number of prompts that each of their shares is one of.
        instead: of :func:`in_place`, of the first.
    """

    latents: Int[np.ndarray, " latents"]
    drawn: Draws
    table: pd.DataFrame
    begins: pd.DataFrame
    table_of: pd.DataFrame
    begins_of: pd.DataFrame
    instead: pd.DataFrame


def of_probe(
    latents: ksparse.Columns,
    prompts: pd.DataFrame,
    chosen: Int[np.ndarray, " k"],
    decoder: Float[np.ndarray, "d_sae d_model"],
    jailbreaks: list[str],
    *,
    replicates: int,
    seed: int,
) -> Silence | None:
    """All about the chosen latents' silence; None where no harmful prompt stands both plain and in a wrapper, or no
    chosen latent speaks for harm. Latents that fire in place of others are looked for in ``jailbreaks``.

    Raises:
        ValueError: as in :func:`controls`.
    """
    task, pairs_of = Task.of(prompts), pairs(prompts)
    for_harm = speaking(latents, task, chosen, 1, pairs_of)
    if not len(for_harm):
        return None
    of_harmless = pairs(prompts, label=0)
    of_class = {1: pairs_of, 0: {name: of_harmless[name] for name in pairs_of if name in of_harmless}}
    speak_for = {1: for_harm, 0: speaking(latents, task, chosen, 0, of_class[0])}
    tables = [
        {label: function(latents, of_class[abs(label - begins)], speak_for[label], begins) for label in (1, 0)}
        for function in (by_latent, by_latent_of)
        for begins in (False, True)
    ]
    plain = np.unique(np.concatenate([of_one.plain for of_one in pairs_of.values()]))
    beside = controls(latents, plain, for_harm, chosen, np.random.default_rng(seed))
    of_jailbreaks = {name: of_one for name, of_one in pairs_of.items() if name in jailbreaks}
    return Silence(
        for_harm,
        shares(latents, pairs_of, for_harm, beside, replicates, seed),
        *(pd.concat(of_labels, names=["label"]) for of_labels in tables),
        in_place(latents, of_jailbreaks, for_harm, decoder),
    )


def beyond_control(drawn: Draws, jailbreaks: list[str], seed: int) -> Draws:
    """The chosen latents' share minus that of their controls: a row for each wrapper, and the mean over the jailbreaks,
    whose replicates draw these as well (dimension ``wrapper``: ``jailbreaks``)."""
    beyond = drawn.against("latents", CONTROL)
    of_jailbreaks = beyond.where(wrapper=jailbreaks)
    n = len(of_jailbreaks.values)
    if not n:
        return beyond
    counts = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=beyond.values.shape[1]).T
    counts[:, 0] = 1
    mean = (of_jailbreaks.values * counts).sum(0) / counts.sum(0)
    dimensions = of_jailbreaks.dimensions[:1].assign(wrapper=JAILBREAKS)
    return beyond.joined(Draws(dimensions, mean[None]))


def table(of_probes: Mapping[str, Silence], jailbreaks: list[str], seed: int) -> pd.DataFrame:
    """:func:`beyond_control` of each SAE's probe (``variant``): a row for each wrapper with the interval over base
    prompts, and the mean over the jailbreaks with the width that Student's has for so few of them."""
    rows = [pd.DataFrame(columns=["variant", "wrapper", "value", "low", "high"])]
    for variant, of_probe in of_probes.items():
        beyond = beyond_control(of_probe.drawn, jailbreaks, seed)
        n = int(beyond.dimensions["wrapper"].isin(jailbreaks).sum())
        rows.append(beyond.without(wrapper=JAILBREAKS).estimates().assign(variant=variant))
        rows += [over_wrappers(beyond.where(wrapper=JAILBREAKS), n).assign(variant=variant)] if n else []
    return pd.concat(rows, ignore_index=True)

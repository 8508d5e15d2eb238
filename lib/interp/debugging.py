"""What a probe would cheat on: latents that differ between the classes, and whether they fire on an artefact.

Units (SAE latents, residual-stream coordinates) are ranked by the standardised mean difference of their largest value
over a prompt's tokens,

    d_j = |μ₁ⱼ − μ₀ⱼ| / √((σ₁ⱼ² + σ₀ⱼ²) / 2),

special tokens left out. The comparison is with a dense probe's highest-scoring prompts (Kantamneni et al., arXiv
2502.16681) and with TF-IDF terms by coefficient. Each method is an entry of ``METHODS``.

**Exposure**, fixed before any was measured: an item of a method's list (a unit; ten prompts in a row; a term) exposes
an artefact if for more than half of its ten top training prompts (i) the artefact is planted, (ii) the token of the
largest value lies in the changed characters, and (iii) the value is larger than in the same prompt without the
artefact.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib.base.registry import lookup
from lib.interp import examples
from lib.interp.cards import Card, card
from lib.interp.examples import Encoded
from lib.interp.judges import Judge
from lib.interp.readings import Matrix, Peaks, Reading, coordinate_peaks, inside, latent_peaks, token_means
from lib.probing import dense as dense_probes
from lib.probing import ksparse, on_saes
from lib.probing.tasks import Task
from lib.results import tables
from lib.stats import families, metrics
from lib.stats.draws import Draws
from lib.texts import datasets
from lib.texts.artefacts import WORD, changed

TOP = 10  # prompts that an item shows, and items that somebody looks at
FORMS = ("raw", "clean")  # of the texts of cleaning

# The peaks of each kind of units in a reading.
UNITS: dict[str, Callable[[Reading, SAE], Peaks]] = {
    "SAE latents": lambda reading, sae: latent_peaks(sae, reading),
    "residual coordinates": lambda reading, sae: coordinate_peaks(reading),
}


def standardised_difference(x: Matrix, y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " columns"]:
    """(μ₁ − μ₀) / √((σ₁² + σ₀²) / 2) of every column.

    It is ±∞ for a column that is constant within the classes and differs between them.
    """
    square = x.multiply(x) if scipy.sparse.issparse(x) else x**2
    mean_0, mean_1 = (_column_means(x[y == label]) for label in (0, 1))
    square_0, square_1 = (_column_means(square[y == label]) for label in (0, 1))
    variance_0, variance_1 = np.clip(square_0 - mean_0**2, 0, None), np.clip(square_1 - mean_1**2, 0, None)
    spread = np.sqrt((variance_0 + variance_1) / 2)
    gap = mean_1 - mean_0
    without_spread = np.where(np.abs(gap) > 1e-6, np.copysign(np.inf, gap), 0.0)
    return np.divide(gap, spread, out=without_spread, where=spread > 1e-6)


def _column_means(x: Matrix) -> Float[np.ndarray, " columns"]:
    return np.asarray(x.mean(0), dtype=np.float64).ravel()


class Pair(NamedTuple):
    """All texts without and with an artefact, and the peaks of each kind of ``UNITS`` in both."""

    clean: Reading
    planted: Reading
    changed: Bool[np.ndarray, " tokens"]  # of the planted reading
    peaks: dict[str, tuple[Peaks, Peaks]]
    means: tuple[Float[np.ndarray, "texts d_model"], Float[np.ndarray, "texts d_model"]]  # over tokens


def paired(clean: Reading, planted: Reading, sae: SAE) -> Pair:
    """Readings of the same texts without and with an artefact, with the peaks of all kinds of units."""
    spans = [changed(without, text) for without, text in zip(clean.texts, planted.texts, strict=True)]
    peaks = {name: (peaks_of(clean, sae), peaks_of(planted, sae)) for name, peaks_of in UNITS.items()}
    return Pair(clean, planted, inside(planted, spans), peaks, (token_means(clean), token_means(planted)))


class Dataset(NamedTuple):
    """A data set made of a pair: ``rows`` of the texts, their labels, and which of them carry the artefact."""

    rows: Int[np.ndarray, " rows"]
    y: Int[np.ndarray, " rows"]
    planted: Bool[np.ndarray, " rows"]


def _mixed(clean: Matrix, planted: Matrix, dataset: Dataset) -> Matrix:
    """Rows of the data set: from the planted matrix where the artefact is."""
    if scipy.sparse.issparse(clean):
        both = scipy.sparse.vstack([clean, planted], format="csr")
        return both[dataset.rows + dataset.planted * clean.shape[0]]
    return np.where(dataset.planted[:, None], planted[dataset.rows], clean[dataset.rows])


def exposing_units(pair: Pair, dataset: Dataset, n_items: int = TOP, *, units: str = "SAE latents") -> list[bool]:
    """For each of the ``n_items`` units of largest standardised difference: does it expose the artefact?"""
    clean, planted = lookup(pair.peaks, "units", units)
    values = _mixed(clean.value, planted.value, dataset)
    largest = np.argsort(-np.abs(standardised_difference(values, dataset.y)), kind="stable")[:n_items]
    value = _columns(values, largest)
    without_artefact = _columns(clean.value[dataset.rows], largest)
    peak_token = _columns(planted.token[dataset.rows], largest).astype(int) - 1
    peak_in_change = pair.changed[np.maximum(peak_token, 0)]  # a silent unit's token is −1, and its value is not larger
    hits = dataset.planted[:, None] & peak_in_change & (value > without_artefact)
    return [_mostly(hits[_top(value[:, unit]), unit]) for unit in range(len(largest))]


def _columns(x: Matrix, columns: np.ndarray | list[int]) -> np.ndarray:
    """Some columns, dense."""
    return x[:, columns].toarray() if scipy.sparse.issparse(x) else x[:, columns]


def _top(value: np.ndarray) -> np.ndarray:
    """The ``TOP`` prompts of largest value."""
    return np.argsort(-value, kind="stable")[:TOP]


def _mostly(hits: np.ndarray | list[bool]) -> bool:
    """Whether more than half of an item's prompts are hits."""
    return bool(np.sum(hits) > TOP / 2)


def exposing_prompts(pair: Pair, dataset: Dataset, n_items: int = TOP, c: float = 1e-2) -> list[bool]:
    """The same for tens of prompts, highest-scoring first, of a dense probe on the mean over tokens.

    The mean makes the logit a mean of token contributions, so that a prompt has a token of largest value.
    """
    clean_means, planted_means = pair.means
    x = _mixed(clean_means, planted_means, dataset)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(x, dataset.y)
    score = probe.decision_function(x)
    without_artefact = probe.decision_function(clean_means[dataset.rows])
    scaler, regression = probe[0], probe[-1]
    direction = regression.coef_[0] / scaler.scale_
    is_higher = dataset.planted & (score > without_artefact)
    by_score = np.argsort(-score, kind="stable")
    exposes = []
    for item in range(n_items):
        shown = by_score[item * TOP : (item + 1) * TOP]
        texts = dataset.rows[shown].tolist()
        peak_token = np.array([_peak_token(pair.planted, text, direction) for text in texts], dtype=int)
        exposes.append(_mostly(is_higher[shown] & pair.changed[peak_token]))
    return exposes


def _peak_token(reading: Reading, text: int, direction: Float[np.ndarray, " d_model"]) -> int:
    """The token (index into the reading) of a text that lies farthest in a direction."""
    first, last = reading.starts[text : text + 2]
    return int(first + (reading.activations[first:last] @ direction).argmax())


def exposing_terms(pair: Pair, dataset: Dataset, n_items: int = TOP, c: float = 10.0) -> list[bool]:
    """The same for cased words, marks and pairs of them, by the size of their coefficient on TF-IDF."""
    clean = [pair.clean.texts[row] for row in dataset.rows]
    texts = list(clean)
    for i in np.flatnonzero(dataset.planted):
        texts[i] = pair.planted.texts[dataset.rows[i]]
    vectors = TfidfVectorizer(lowercase=False, token_pattern=WORD.pattern, ngram_range=(1, 2), min_df=2)
    x = vectors.fit_transform(texts)
    names = vectors.get_feature_names_out()
    weights = LogisticRegression(C=c, max_iter=2000).fit(x, dataset.y).coef_[0]
    exposes = []
    for term in np.argsort(-np.abs(weights), kind="stable")[:n_items].tolist():
        value = _columns(x, [term])[:, 0]
        carrying = [i for i in _top(value) if value[i] > 0 and dataset.planted[i]]
        exposes.append(_mostly([_more(names[term], clean[i], texts[i]) for i in carrying]))
    return exposes


def _more(term: str, clean: str, text: str) -> bool:
    """Whether ``term`` stands in the changed characters of ``text``, and more often in it than in ``clean``."""
    places = _places(term, text)
    if len(places) <= len(_places(term, clean)):
        return False
    spans = changed(clean, text)
    return any(low < end and start < high for start, end in places for low, high in spans)


def _places(term: str, text: str) -> list[tuple[int, int]]:
    """First and last character of a term (words with spaces between them) wherever it stands in a text."""
    words = list(WORD.finditer(text))
    n = term.count(" ") + 1
    places = []
    for i in range(len(words) - n + 1):
        run = words[i : i + n]
        if " ".join(word[0] for word in run) == term:
            places.append((run[0].start(), run[-1].end()))
    return places


# How each method lists its first items: which of them expose the artefact.
METHODS: dict[str, Callable[[Pair, Dataset, int], list[bool]]] = {
    **{name: partial(exposing_units, units=name) for name in UNITS},
    "dense probe's top prompts": exposing_prompts,
    "TF-IDF terms": exposing_terms,
}


def exposing(pair: Pair, method: str, dataset: Dataset, n_items: int = TOP) -> list[bool]:
    """Which of the first ``n_items`` items of a method's list expose the artefact.

    Raises:
        ValueError: unknown method.
    """
    return lookup(METHODS, "method", method)(pair, dataset, n_items)


def top_latents(
    value: scipy.sparse.csr_matrix, prompts: pd.DataFrame, weights: metrics.SplitWeights, n: int = TOP
) -> pd.DataFrame:
    """The ``n`` latents of largest standardised difference on the training split, with their AUROC on every split.

    A latent that is higher in class 0 is taken with its sign changed. Columns: latent, difference, split, and those of
    an Estimate. ``fails_ood`` says of a latent whether it works in distribution (validation interval above 0.5) and not
    out of distribution (interval not above 0.5); it is False without an OOD split.
    """
    train = (prompts["split"] == "train").to_numpy()
    difference = standardised_difference(value[train], prompts["label"].to_numpy()[train])
    rows = []
    for latent in np.argsort(-np.abs(difference), kind="stable")[:n].tolist():
        score = np.sign(difference[latent]) * _columns(value, [latent])[:, 0]
        estimates = [row for row in metrics.by_split(prompts, score, weights) if row["metric"] == "auroc"]
        lows = {row["split"]: row["low"] for row in estimates if row["low"] is not None}
        fails = lows.get("val", 0) > 0.5 and lows.get("ood", 1) <= 0.5
        known = {"latent": latent, "difference": difference[latent], "fails_ood": fails}
        rows += [known | row for row in estimates]
    return pd.DataFrame(rows)


def explain(judge: Judge, encoded: Encoded, latents: pd.Series, rng: np.random.Generator) -> dict[int, str]:
    """What a judge says of each latent."""
    texts = {}
    for latent in latents:
        drawn = examples.draw(encoded, latent, judge.plan, rng)
        explanation = judge.explain(drawn.explaining) if drawn else None
        texts[latent] = explanation.text if explanation else "too few prompts"
    return texts


def overview(top: pd.DataFrame, latents: pd.DataFrame, explained: dict[int, str]) -> pd.DataFrame:
    """A row per latent: difference, flags, AUROC (a text) on each split of ``top``, and what a judge says of it."""
    aurocs = tables.in_columns(top, "latent", digits=2)
    splits = [split for split in datasets.SPLITS if split in aurocs]
    known = latents.set_index("latent")[["difference", "formatting", "fails_ood"]].round({"difference": 2})
    return known.join(aurocs[splits]).assign(explanation=pd.Series(explained))


def cards(
    encoded: Encoded, top: pd.DataFrame, latents: pd.DataFrame, explained: dict[int, str], sae_id: str = ""
) -> list[Card]:
    """A card for each of ``latents`` (latent, difference, formatting, fails_ood), with its AUROCs from ``top``.

    ``sae_id`` is the SAE's name at Neuronpedia (``lib.interp.cards``).
    """
    shown = []
    for row in latents.itertuples():
        of_splits = top[top["latent"] == row.latent].set_index("split")["value"]
        facts = {"difference": row.difference} | of_splits.add_prefix("AUROC ").to_dict()
        why = "higher in class 1" if row.difference > 0 else "higher in class 0"
        why += (", formatting" if row.formatting else "") + (", fails OOD" if row.fails_ood else "")
        text = explained[row.latent]
        shown.append(card(encoded, row.latent, "pretraining SAE", why, facts, text, sae_id=sae_id))
    return shown


def marked(top: pd.DataFrame, latents: pd.DataFrame) -> pd.DataFrame:
    """``top`` ordered by split, each latent named with what is to be known of it, for a figure."""
    names = {}
    for row in latents.itertuples():
        mark = " (formatting)" if row.formatting else " (fails OOD)" if row.fails_ood else ""
        names[row.latent] = f"latent {row.latent}{mark}"
    order = top["split"].map(datasets.SPLITS.index)
    return top.assign(latent=top["latent"].map(names), order=order).sort_values("order", kind="stable")


class Tested(NamedTuple):
    """The key of a probe by the form of the texts, raw or clean, that it is trained and tested on."""

    probe: str
    trained: str
    tested: str

    def columns(self) -> dict[str, str]:
        """Its dimensions in a table of results."""
        return self._asdict()


def cleaning(
    raw: Reading, clean: Reading, sae: SAE, prompts: pd.DataFrame, k: int, weights: metrics.SplitWeights
) -> Draws:
    """Draws of AUROC by probe, form trained on and form tested on, of the same prompts (keys: :class:`Tested`).

    Probes: dense logistic regression on the mean over tokens; k latents (max over tokens) chosen by mean difference.
    """
    n = len(prompts)
    labels, ids = (np.tile(prompts[name].to_numpy(), len(FORMS)) for name in ("label", "base_id"))
    means = np.concatenate([token_means(reading) for reading in (raw, clean)])
    peaks = scipy.sparse.vstack([latent_peaks(sae, reading).value for reading in (raw, clean)], format="csr")
    scores = {}
    for place, trained in enumerate(FORMS):
        train = np.zeros(len(labels), dtype=bool)
        train[place * n : (place + 1) * n] = (prompts["split"] == "train").to_numpy()
        probe = dense_probes.fit_logistic(means[train], labels[train], ids[train])
        [fit] = on_saes.k_sparse(peaks, Task(labels, train, ids), [k], ksparse.MEAN_DIFFERENCE)
        for name, of_both in (("dense", probe.decision_function(means)), (f"{k} latents", fit.scores)):
            for i, tested in enumerate(FORMS):
                scores[Tested(name, trained, tested)] = of_both[i * n : (i + 1) * n]
    return Draws.of(prompts, scores, weights)


def gains_by_cleaning(draws: Draws) -> pd.DataFrame:
    """AUROC of :func:`cleaning` trained on clean texts minus trained on raw ones, by probe, form tested on and split.

    Within a split all of them are a family, whose levels are in the column ``alpha`` (:mod:`lib.stats.families`).
    """
    gains = draws.against("trained", "raw")
    parts = [families.estimates(gains.where(split=split)) for split in gains.dimensions["split"].unique()]
    return pd.concat(parts, ignore_index=True)


def gains_in_words(gains: pd.DataFrame, split: str = "ood") -> str:
    """Which of the gains of one split are above zero, which below, and which may be either, in this order."""
    of_split = gains[gains["split"] == split]
    if of_split.empty:
        return "not known, as there is no such text"
    names = of_split["probe"] + " tested on " + of_split["tested"] + " " + tables.texts(of_split)
    is_above, is_below = of_split["low"] > 0, of_split["high"] < 0
    groups = {"it helped": is_above, "it hurt": is_below, "it may have done either": ~is_above & ~is_below}
    return "; ".join(f"{said}: {', '.join(names[which])}" for said, which in groups.items() if which.any())

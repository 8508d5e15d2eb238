"""What a probe would cheat on: latents that differ between the classes, and whether what they fire on is an artefact.

Units (SAE latents, residual-stream coordinates) are ranked by the standardised mean difference of their largest value over a
prompt's tokens,

    d_j = |μ₁ⱼ − μ₀ⱼ| / √((σ₁ⱼ² + σ₀ⱼ²) / 2),

special tokens left out. The comparison is with a dense probe's highest-scoring prompts (Kantamneni et al., arXiv
2502.16681) and with TF-IDF terms by coefficient.

**Exposure**, fixed before any was measured: an item of a method's list (a unit; ten prompts in a row; a term) exposes an
artefact if for more than half of its ten top training prompts (i) the artefact is planted, (ii) the token of the largest value
lies in the changed characters, and (iii) the value is larger than in the same prompt without the artefact.
"""

from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib.base import processes
from lib.interp.readings import Matrix, Peaks, Reading, coordinate_peaks, inside, latent_peaks, token_means
from lib.probing import dense as dense_probes
from lib.probing import ksparse, on_saes
from lib.stats import draws, metrics
from lib.texts.artefacts import WORD, changed

TOP = 10  # prompts that an item shows, and items that somebody looks at
METHODS = ("SAE latents", "residual coordinates", "dense probe's top prompts", "TF-IDF terms")


def standardised_difference(x: Matrix, y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " columns"]:
    """(μ₁ − μ₀) / √((σ₁² + σ₀²) / 2) of every column; ±∞ for one that is constant within the classes and differs between them."""
    square = x.multiply(x) if scipy.sparse.issparse(x) else x**2
    mean, power = ([np.asarray(part[y == label].mean(0), dtype=np.float64).ravel() for label in (0, 1)] for part in (x, square))
    spread = np.sqrt(sum(np.clip(p - m**2, 0, None) for p, m in zip(power, mean, strict=True)) / 2)
    gap = mean[1] - mean[0]
    certain = np.where(np.abs(gap) > 1e-6, np.copysign(np.inf, gap), 0.0)
    return np.divide(gap, spread, out=certain, where=spread > 1e-6)


class Pair(NamedTuple):
    """All texts without and with an artefact, and the peaks of the units in both."""

    clean: Reading
    planted: Reading
    changed: Bool[np.ndarray, " tokens"]  # of the planted reading
    peaks: dict[str, tuple[Peaks, Peaks]]
    means: tuple[Float[np.ndarray, "texts d_model"], Float[np.ndarray, "texts d_model"]]  # over tokens


def pair(clean: Reading, planted: Reading, sae: SAE) -> Pair:
    """Readings of the same texts without and with an artefact, with the peaks of both kinds of units."""
    spans = [changed(a, b) for a, b in zip(clean.texts, planted.texts, strict=True)]
    found = {METHODS[0]: tuple(latent_peaks(sae, one) for one in (clean, planted)), METHODS[1]: tuple(coordinate_peaks(one) for one in (clean, planted))}
    return Pair(clean, planted, inside(planted, spans), found, (token_means(clean), token_means(planted)))


class Draw(NamedTuple):
    """A data set made of a pair: ``rows`` of the texts, their labels, and which of them carry the artefact."""

    rows: Int[np.ndarray, " rows"]
    y: Int[np.ndarray, " rows"]
    planted: Bool[np.ndarray, " rows"]


def draw(y: Int[np.ndarray, " texts"], share: float, rng: np.random.Generator, classes: tuple[int, ...] = (1,), kept: float = 0.8) -> Draw:
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
    return Draw(rows, y[rows], planted)


def _mixed(clean: Matrix, planted: Matrix, drawn: Draw) -> Matrix:
    """Rows of the drawn data set: from the planted matrix where the artefact is."""
    if scipy.sparse.issparse(clean):
        return scipy.sparse.vstack([clean, planted], format="csr")[drawn.rows + drawn.planted * clean.shape[0]]
    return np.where(drawn.planted[:, None], planted[drawn.rows], clean[drawn.rows])


def exposing_units(of: Pair, method: str, drawn: Draw, n_items: int = TOP) -> list[bool]:
    """For each of the ``n_items`` units of largest standardised difference: does it expose the artefact?"""
    clean, planted = of.peaks[method]
    x = _mixed(clean.value, planted.value, drawn)
    ranked = np.argsort(-np.abs(standardised_difference(x, drawn.y)), kind="stable")[:n_items]
    columns = [_dense(part[:, ranked]) for part in (x, clean.value[drawn.rows], planted.token[drawn.rows])]
    return [_exposes(value, drawn.planted & of.changed[np.maximum(token.astype(int) - 1, 0)] & (value > twin)) for value, twin, token in zip(*(c.T for c in columns), strict=True)]


def _dense(x: Matrix) -> np.ndarray:
    return x.toarray() if scipy.sparse.issparse(x) else x


def _exposes(value: np.ndarray, hit: np.ndarray) -> bool:
    return bool(hit[np.argsort(-value, kind="stable")[:TOP]].sum() > TOP / 2)


def exposing_prompts(of: Pair, drawn: Draw, n_items: int = TOP, c: float = 1e-2) -> list[bool]:
    """The same for tens of prompts, highest-scoring first, of a dense probe on the mean over tokens.

    The mean makes the logit a mean of token contributions, so that a prompt has a token of largest value.
    """
    x = _mixed(*of.means, drawn)
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000)).fit(x, drawn.y)
    score, twin = probe.decision_function(x), probe.decision_function(of.means[0][drawn.rows])
    direction = probe[-1].coef_[0] / probe[0].scale_
    hit = drawn.planted & (score > twin)
    ranked = np.argsort(-score, kind="stable")
    for place in ranked[: n_items * TOP][hit[ranked[: n_items * TOP]]]:
        first, last = of.planted.starts[drawn.rows[place] : drawn.rows[place] + 2]
        hit[place] = of.changed[first + (of.planted.activations[first:last] @ direction).argmax()]
    return [bool(hit[ranked[i * TOP : (i + 1) * TOP]].sum() > TOP / 2) for i in range(n_items)]


def exposing_terms(of: Pair, drawn: Draw, n_items: int = TOP, c: float = 10.0) -> list[bool]:
    """The same for cased words, marks and pairs of them, by the size of their coefficient on TF-IDF."""
    texts = [(of.planted if planted else of.clean).texts[row] for row, planted in zip(drawn.rows, drawn.planted, strict=True)]
    vectors = TfidfVectorizer(lowercase=False, token_pattern=WORD.pattern, ngram_range=(1, 2), min_df=2)
    x = vectors.fit_transform(texts)
    names = vectors.get_feature_names_out()
    weights = LogisticRegression(C=c, max_iter=2000).fit(x, drawn.y).coef_[0]
    found = []
    for term in np.argsort(-np.abs(weights), kind="stable")[:n_items]:
        value = x[:, [term]].toarray()[:, 0]
        top = np.argsort(-value, kind="stable")[:TOP]
        hits = [value[i] > 0 and drawn.planted[i] and _more(names[term], of.clean.texts[drawn.rows[i]], texts[i]) for i in top]
        found.append(bool(sum(hits) > TOP / 2))
    return found


def _more(term: str, clean: str, text: str) -> bool:
    """Whether ``term`` stands in the changed characters of ``text``, and more often in it than in ``clean``."""
    n = term.count(" ") + 1
    words = [match for match in WORD.finditer(text)]
    places = [(words[i].start(), words[i + n - 1].end()) for i in range(len(words) - n + 1) if " ".join(w[0] for w in words[i : i + n]) == term]
    old = WORD.findall(clean)
    before = sum(" ".join(old[i : i + n]) == term for i in range(len(old) - n + 1))
    return len(places) > before and any(low < end and start < high for start, end in places for low, high in changed(clean, text))


def exposing(of: Pair, method: str, drawn: Draw, n_items: int = TOP) -> list[bool]:
    """Which of the first ``n_items`` items of a method's list expose the artefact.

    Raises:
        ValueError: unknown method.
    """
    if method in METHODS[:2]:
        return exposing_units(of, method, drawn, n_items)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; allowed are {METHODS}")
    return (exposing_prompts if method == METHODS[2] else exposing_terms)(of, drawn, n_items)


def benchmark(of: Pair, y: Int[np.ndarray, " texts"], shares: list[float], seeds: list[int]) -> pd.DataFrame:
    """Rank (1 is first) of the first exposing item among ``TOP``, by method, control, share and seed; null where none does.

    ``control``: planted in class 1, or placebo, the same share planted in both classes, where there is nothing to expose.
    """
    return pd.concat(processes.parallel(len(seeds))(joblib.delayed(_ranks)(of, y, shares, seed) for seed in seeds), ignore_index=True)


def _ranks(of: Pair, y: np.ndarray, shares: list[float], seed: int) -> pd.DataFrame:
    rows = []
    for share in shares:
        for control, classes in (("planted", (1,)), ("placebo", (0, 1))):
            drawn = draw(y, share, np.random.default_rng([seed, round(1000 * share)]), classes)
            for method in METHODS:
                found = exposing(of, method, drawn)
                rank = found.index(True) + 1 if any(found) else np.nan
                rows.append({"method": method, "control": control, "share": share, "seed": seed, "rank": rank})
    return pd.DataFrame(rows)


def recall(ranks: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Share of the artefacts exposed within ``TOP``, a mean over seeds with its t interval within 0-1, by ``by``."""
    rows = []
    for key, part in ranks.assign(exposed=ranks["rank"].notna()).groupby(by, sort=False):
        found: metrics.Estimate = metrics.t_interval(part.groupby("seed")["exposed"].mean().to_numpy(dtype=np.float64))
        low, high = (None if bound is None else float(np.clip(bound, 0, 1)) for bound in (found.low, found.high))
        rows.append(dict(zip(by, key, strict=True)) | found._replace(low=low, high=high)._asdict())
    return pd.DataFrame(rows)


def top_latents(value: scipy.sparse.csr_matrix, prompts: pd.DataFrame, weights: metrics.SplitWeights, n: int = TOP) -> pd.DataFrame:
    """The ``n`` latents of largest standardised difference on the training split, with their AUROC on every split.

    A latent that is higher in class 0 is taken with its sign changed. Columns: latent, difference, split, and those of an
    Estimate. ``fails_ood`` says of a latent whether it works in distribution (validation interval above 0.5) and not out of
    distribution (interval not above 0.5); it is False without an OOD split.
    """
    train = (prompts["split"] == "train").to_numpy()
    difference = standardised_difference(value[train], prompts["label"].to_numpy()[train])
    rows = []
    for latent in np.argsort(-np.abs(difference), kind="stable")[:n].tolist():
        score = np.sign(difference[latent]) * value[:, [latent]].toarray()[:, 0]
        found = {row["split"]: row for row in metrics.by_split(prompts, score, weights) if row["metric"] == "auroc"}
        lows = {split: row["low"] for split, row in found.items() if row["low"] is not None}
        fails = lows.get("val", 0) > 0.5 and lows.get("ood", 1) <= 0.5
        rows += [{"latent": latent, "difference": difference[latent], "fails_ood": fails} | row for row in found.values()]
    return pd.DataFrame(rows)


def cleaning(raw: Reading, clean: Reading, sae: SAE, prompts: pd.DataFrame, k: int, weights: metrics.SplitWeights) -> pd.DataFrame:
    """Draws (``lib.stats.draws``) of AUROC by probe, form trained on and form tested on: raw or clean texts of the same prompts.

    Probes: dense logistic regression on the mean over tokens, and k latents chosen by mean difference (max over tokens).
    """
    n, forms = len(prompts), ("raw", "clean")
    labels, ids = (np.tile(prompts[name].to_numpy(), 2) for name in ("label", "base_id"))
    dense = np.concatenate([token_means(one) for one in (raw, clean)])
    sparse = scipy.sparse.vstack([latent_peaks(sae, one).value for one in (raw, clean)], format="csr")
    scores = {}
    for place, trained in enumerate(forms):
        train = np.zeros(2 * n, dtype=bool)
        train[place * n : (place + 1) * n] = (prompts["split"] == "train").to_numpy()
        probe = dense_probes.fit_logistic(dense[train], labels[train], ids[train])
        [(_, _, few)] = on_saes.k_sparse(sparse, on_saes.Task(labels, train, ids), [k], ksparse.SELECTIONS[0])
        for name, found in (("dense", probe.decision_function(dense)), (f"{k} latents", few)):
            scores |= {(name, trained, tested): found[i * n : (i + 1) * n] for i, tested in enumerate(forms)}
    return draws.table(prompts, scores, ["probe", "trained", "tested"], weights)

"""The k-sparse grid of one SAE beside the plain loop: one scikit-learn pipeline per cell, as a user writes it.

For every pooling and k both choose the latent of best AUROC and then those of largest mean difference, fit the same
logistic regression on standardised columns (``ksparse.refit``), and score all prompts; the plain loop works on dense
matrices, with scikit-learn's own AUROC and solver. Labels and prompts are the embedded profile's, the SAE is the
shipped one. Encoding, which both need once, is not in the time.
"""

import time
from collections.abc import Iterator

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lib.base.files import run_dir
from lib.model import activations, models, weights
from lib.probing import ksparse, on_saes
from lib.probing.tasks import Task
from lib.sae import folders, latents, pretrained
from lib.stats import metrics
from lib.texts import datasets, sources

PROFILE = "embedded"  # whose data are measured
LAYER, ROUNDS, KS, POOLINGS = 2, 7, [1, 2, 5, 10, 20, 50, 100], ("max", "fixed")


def _prompts():
    rng = np.random.default_rng(0)
    base = datasets.split_base(sources.base_prompts("embedded"), 0.2, rng)
    return datasets.augment(base, datasets.load_templates("embedded"), 0.3, rng)


def _plain(pooled: latents.Pooled, task: Task) -> dict[tuple[str, int], np.ndarray]:
    scores = {}
    for pooling in POOLINGS:
        x = pooled[pooling].toarray()
        training, y = x[task.train], task.y[task.train]
        first = max(range(x.shape[1]), key=lambda column: abs(roc_auc_score(y, training[:, column]) - 0.5))
        gap = np.abs(training[y == 1].mean(0) - training[y == 0].mean(0))
        order = [first, *(column for column in np.argsort(-gap) if column != first)]
        for k in KS:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=ksparse.UNPENALISED, max_iter=10_000))
            model.fit(training[:, order[:k]], y)
            scores[pooling, k] = model.decision_function(x[:, order[:k]])
    return scores


def _ours(pooled: latents.Pooled, task: Task) -> dict[tuple[str, int], np.ndarray]:
    return {
        (pooling, fit.k): fit.scores
        for pooling in POOLINGS
        for fit in on_saes.k_sparse(pooled[pooling], task, KS, ksparse.MEAN_DIFFERENCE)
    }


def measure() -> Iterator[tuple[str, str, list[float]]]:
    """Seconds of both in turn, their ratio within a round, and the largest difference of validation AUROC (k > 1)."""
    prompts = _prompts()
    bridge = models.load_model(weights.MINILM)
    identity, folder = models.identity(weights.MINILM), run_dir("bench") / "activations"
    tokens = activations.prompt_tokens(bridge, identity, prompts["text"].tolist(), LAYER, folder)
    pooled = latents.pool_latents(folders.load(pretrained.FOLDER / f"{weights.MINILM}-layer-{LAYER}-base"), tokens)
    task = Task.of(prompts)
    seconds: dict[str, list[float]] = {"ours": [], "sklearn_loop": []}
    for _ in range(ROUNDS):
        scores = {}
        for name, work in (("ours", _ours), ("sklearn_loop", _plain)):
            started = time.perf_counter()
            scores[name] = work(pooled, task)
            seconds[name].append(time.perf_counter() - started)
    for name, values in seconds.items():
        yield f"{name}_seconds", "s", values
    yield "vs_sklearn_loop", "ratio", [b / a for a, b in zip(seconds["ours"], seconds["sklearn_loop"], strict=True)]
    part = (prompts["split"] == "val").to_numpy()
    ones, y = np.ones((1, part.sum())), task.y[part]

    def area(name: str, cell: tuple[str, int]) -> float:
        return metrics.auroc(y, scores[name][cell][part], ones)[0]

    differences = [abs(area("ours", cell) - area("sklearn_loop", cell)) for cell in scores["ours"] if cell[1] > 1]
    yield "auroc_difference_max", "AUROC", [max(differences)]

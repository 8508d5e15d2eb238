"""k-sparse probes: choose k columns (SAE latents, or a control basis) on the training split, refit without penalty.

After Gurnee et al. 2023 and the paper's section on probing. Columns may be a sparse or a dense matrix; whatever is
given is fitted on the rows given and on nothing else.
"""

from collections.abc import Iterable

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression, lasso_path
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.sparsefuncs import mean_variance_axis

Columns = np.ndarray | scipy.sparse.csr_matrix | scipy.sparse.csc_matrix
SELECTIONS = ("mean difference", "L1 path")
UNPENALISED = 1e4  # inverse L2 strength on standardised columns: as good as none, and finite on separable rows


def live_columns(x: Columns) -> Int[np.ndarray, " live"]:
    """Columns that are not constant on the given rows (a latent that never fires is constant)."""
    return np.flatnonzero(_moments(x)[1] > 0)


def _moments(x: Columns) -> tuple[np.ndarray, np.ndarray]:
    if scipy.sparse.issparse(x):
        return mean_variance_axis(x, axis=0)
    return x.mean(0), x.var(0)


def select(x: Columns, y: Int[np.ndarray, " rows"], ks: list[int], selection: str) -> dict[int, Int[np.ndarray, " _"]]:
    """Columns chosen for each k, best first for ``mean difference``.

    ``mean difference``: largest |μ₁ − μ₀|; k = 1 is the column of best AUROC on these rows. ``L1 path``: the support of
    the L1-penalised logistic path that is nearest k in size (it may have a few more or fewer).

    Raises:
        ValueError: unknown selection, or a k above the number of columns that vary.
    """
    live = live_columns(x)
    if not ks or min(ks) < 1 or max(ks) > len(live):
        raise ValueError(f"k {ks} must lie between 1 and {len(live)}, the number of columns that vary on the training prompts")
    if selection == "mean difference":
        order = np.argsort(-np.abs(mean_gap(x, y)), kind="stable")
        chosen = {k: order[:k] for k in ks}
    elif selection == "L1 path":
        supports = [support for support in l1_supports(x[:, live], y, max(ks)) if len(support)]
        chosen = {k: live[min(supports, key=lambda support: abs(len(support) - k))] for k in ks}
    else:
        raise ValueError(f"unknown selection {selection!r}; allowed are {SELECTIONS}")
    if 1 in chosen:
        area = column_aurocs(x, y)
        chosen[1] = np.array([np.argmax(np.abs(area - 0.5))])
    return chosen


def mean_gap(x: Columns, y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " columns"]:
    """Difference of the class means of every column, μ₁ − μ₀."""
    return np.asarray(x[y == 1].mean(0) - x[y == 0].mean(0)).ravel()


def column_aurocs(x: Columns, y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " columns"]:
    """AUROC of every column as a score, ties counted half: the Mann–Whitney statistic from ranks of the entries that are
    not zero, all zeros being one tie. Columns must not be negative if they are sparse."""
    if not scipy.sparse.issparse(x):
        shifted = x - x.min(0)
        return column_aurocs(scipy.sparse.csr_matrix(shifted), y)
    n, positives, width = len(y), int((y == 1).sum()), x.shape[1]
    entries = x.tocoo()
    kept = entries.data > 0
    # one integer per entry that sorts by column, then value (the bits of a positive float32 rise with it), and holds the label
    bits = entries.data[kept].astype(np.float32).view(np.int32).astype(np.int64)
    key = np.sort((((entries.col[kept].astype(np.int64) << 32) | bits) << 1) | (y[entries.row[kept]] == 1))
    column, is_positive = key >> 33, (key & 1).astype(np.float64)
    count = np.bincount(column, minlength=width)
    zeros = n - count
    rank = np.arange(len(key)) - np.repeat(np.cumsum(count) - count, count) + zeros[column] + 1.0
    run = np.cumsum(np.diff(key >> 1, prepend=-1) != 0) - 1
    rank = (np.bincount(run, rank) / np.bincount(run))[run] if len(run) else rank  # ties share their mean rank
    in_ranks = np.bincount(column, rank * is_positive, minlength=width)
    zero_positives = positives - np.bincount(column, is_positive, minlength=width)
    total = in_ranks + zero_positives * (zeros + 1) / 2
    return (total - positives * (positives + 1) / 2) / (positives * (n - positives))


def l1_supports(x: Columns, y: Int[np.ndarray, " rows"], most: int, ratio: float = 0.9, steps: int = 120) -> Iterable[np.ndarray]:
    """Supports along the path of min (1/n) Σ log(1 + exp(−ỹ(x·β + b))) + α‖β‖₁ for falling α, until one exceeds ``most``.

    Columns are scaled to unit variance; b is not penalised. Proximal Newton steps on a working set from the strong
    rule (Tibshirani et al. 2012), which grows until no column outside violates its optimality condition |g| ≤ α.
    """
    n = len(y)
    scaled = _scaled(x)
    intercept, beta = np.log(y.mean() / (1 - y.mean())), np.zeros(x.shape[1])
    gradient = np.asarray(scaled.T @ (y - y.mean())).ravel() / n
    alpha = np.abs(gradient).max()
    for _ in range(steps):
        previous, alpha = alpha, alpha * ratio
        working = np.flatnonzero((beta != 0) | (np.abs(gradient) >= 2 * alpha - previous))
        while True:
            columns = np.asarray(scaled[:, working].todense()) if scipy.sparse.issparse(scaled) else scaled[:, working]
            beta[working], intercept = _proximal_newton(columns, y, alpha, beta[working], intercept)
            eta = columns @ beta[working] + intercept
            gradient = np.asarray(scaled.T @ (y - _sigmoid(eta))).ravel() / n
            violating = np.setdiff1d(np.flatnonzero(np.abs(gradient) > alpha * 1.001), working)
            if not len(violating):
                break
            working = np.union1d(working, violating)
        support = np.flatnonzero(beta)
        yield support
        if len(support) > most:
            return


def _scaled(x: Columns) -> Columns:
    scale = 1 / np.sqrt(_moments(x)[1]).astype(np.float64)
    return (x.astype(np.float64) @ scipy.sparse.diags(scale)).tocsc() if scipy.sparse.issparse(x) else x.astype(np.float64) * scale


def _sigmoid(eta: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(eta, -35, 35)))


def _proximal_newton(x: np.ndarray, y: np.ndarray, alpha: float, beta: np.ndarray, intercept: float) -> tuple[np.ndarray, float]:
    """Each step solves the lasso of the quadratic model (weights p(1 − p)) and halves itself until the loss falls."""

    def loss(b, b0):
        margin = (2 * y - 1) * (x @ b + b0)
        return np.logaddexp(0, -margin).mean() + alpha * np.abs(b).sum()

    current = loss(beta, intercept)
    for _ in range(30):
        eta = x @ beta + intercept
        p = _sigmoid(eta)
        weight = np.maximum(p * (1 - p), 1e-5)
        target = eta + (y - p) / weight
        total, root = weight.sum(), np.sqrt(weight)
        means, target_mean = weight @ x / total, weight @ target / total
        _, path, _ = lasso_path((x - means) * root[:, None], (target - target_mean) * root, alphas=[alpha], coef_init=beta.copy(), tol=1e-5)
        step = path[:, 0] - beta
        step0 = target_mean - means @ path[:, 0] - intercept
        size = 1.0
        while (new := loss(beta + size * step, intercept + size * step0)) > current + 1e-12 and size > 1e-4:
            size /= 2
        beta, intercept = beta + size * step, intercept + size * step0
        if current - new < 1e-7:
            break
        current = new
    return beta, intercept


def refit(x: Columns, y: Int[np.ndarray, " rows"], columns: Int[np.ndarray, " k"]) -> Pipeline:
    """Logistic regression without penalty (``UNPENALISED``) on the standardised chosen columns."""
    model = LogisticRegression(C=UNPENALISED, solver="newton-cholesky", max_iter=200)
    return make_pipeline(StandardScaler(), model).fit(dense(x, columns), y)


def dense(x: Columns, columns: Int[np.ndarray, " k"]) -> Float[np.ndarray, "rows k"]:
    """The chosen columns as a dense matrix, in the double precision that Newton steps on separable rows need."""
    return (x[:, columns].toarray() if scipy.sparse.issparse(x) else x[:, columns]).astype(np.float64)

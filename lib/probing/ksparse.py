"""k-sparse probes: choose k columns (SAE latents, or a control basis) on the training split, refit without penalty.

After Gurnee et al. 2023 and the paper's section on probing. Columns may be a sparse or a dense matrix; whatever is
given is fitted on the rows given and on nothing else.
"""

from collections.abc import Callable, Iterable

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression, lasso_path
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.sparsefuncs import mean_variance_axis

from lib.base.registry import lookup

Columns = np.ndarray | scipy.sparse.csr_matrix | scipy.sparse.csc_matrix
Chosen = dict[int, Int[np.ndarray, " _"]]
Ranking = Int[np.ndarray, " _"]  # columns, best first
BLOCK = 256  # dense columns that are sorted at a time, so that they stay in the cache
UNPENALISED = 1e4  # inverse L2 strength on standardised columns: as good as none, and finite on separable rows


def live_columns(x: Columns) -> Int[np.ndarray, " live"]:
    """Columns that are not constant on the given rows (a latent that never fires is constant)."""
    return np.flatnonzero(_moments(x)[1] > 0)


def _moments(x: Columns) -> tuple[np.ndarray, np.ndarray]:
    if scipy.sparse.issparse(x):
        return mean_variance_axis(x, axis=0)
    return x.mean(0), x.var(0)


def by_mean_difference(x: Columns, y: Int[np.ndarray, " rows"], most: int) -> Ranking:
    """The columns of largest |μ₁ − μ₀|, best first (the paper's selection)."""
    return np.argsort(-np.abs(mean_gap(x, y)), kind="stable")[:most]


def by_standardised_gap(x: Columns, y: Int[np.ndarray, " rows"], most: int) -> Ranking:
    """The columns of largest |μ₁ − μ₀| / σ, best first; σ² = (n₁σ₁² + n₀σ₀²) / n is the variance within the classes.

    A latent of large activations has a large raw gap whether or not it tells the classes apart; this one is free of
    units, as Fisher's criterion (1936) of a single column.
    """
    of_class = [x[y == label] for label in (0, 1)]
    within = sum(len(y[y == label]) * _moments(part)[1] for label, part in enumerate(of_class)) / len(y)
    gap = np.abs(mean_gap(x, y))
    standardised = np.where(gap > 0, gap / np.sqrt(np.maximum(within, 1e-12)), 0.0)
    return np.argsort(-standardised, kind="stable")[:most]


def by_l1_path(x: Columns, y: Int[np.ndarray, " rows"], most: int) -> Ranking:
    """The columns in the order in which they enter the L1-penalised logistic path (:func:`l1_supports`)."""
    live = live_columns(x)
    entered = dict.fromkeys(column for support in l1_supports(x[:, live], y, most) for column in support)
    return live[list(entered)][:most]


MEAN_DIFFERENCE, STANDARDISED_GAP, L1_PATH = "mean difference", "standardised gap", "L1 path"
SELECTIONS: dict[str, Callable[[Columns, np.ndarray, int], np.ndarray]] = {
    MEAN_DIFFERENCE: by_mean_difference,
    STANDARDISED_GAP: by_standardised_gap,
    L1_PATH: by_l1_path,
}


def best_column(x: Columns, y: Int[np.ndarray, " rows"]) -> int:
    """The column whose own AUROC is farthest from one half."""
    return int(np.argmax(np.abs(column_aurocs(x, y) - 0.5)))


def select(
    x: Columns, y: Int[np.ndarray, " rows"], ks: list[int], selection: str, best: int | None = None
) -> Chosen:
    """Columns chosen for each k: :func:`best_column`, which may be given, then the best by an entry of ``SELECTIONS``.

    They are nested: the columns of a smaller k are among those of a larger one, so that training fit rises with k.
    (An L1 path that ends early gives a few columns fewer.)

    Raises:
        ValueError: unknown selection, or a k above the number of columns that vary.
    """
    rank, most = lookup(SELECTIONS, "selection", selection), len(live_columns(x))
    if not ks or min(ks) < 1 or max(ks) > most:
        raise _out_of_range(ks, most)
    best = best_column(x, y) if best is None else best
    others = rank(x, y, max(ks)) if max(ks) > 1 else np.empty(0, dtype=int)
    order = np.concatenate([[best], others[others != best]]).astype(int)
    return {k: order[:k] for k in ks}


def possible(x: Columns, ks: list[int]) -> list[int]:
    """Those of ``ks`` that are at most the number of columns that vary on the given rows.

    Raises:
        ValueError: none is.
    """
    most = len(live_columns(x))
    fitting = [k for k in ks if k <= most]
    if not fitting:
        raise _out_of_range(ks, most)
    return fitting


def _out_of_range(ks: list[int], most: int) -> ValueError:
    varying = f"{most}, the number of columns that vary on the training prompts"
    return ValueError(f"k {ks} must lie between 1 and {varying}")


def mean_gap(x: Columns, y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " columns"]:
    """Difference of the class means of every column, μ₁ − μ₀."""
    return np.asarray(x[y == 1].mean(0) - x[y == 0].mean(0)).ravel()


def column_aurocs(x: Columns, y: Int[np.ndarray, " rows"]) -> Float[np.ndarray, " columns"]:
    """AUROC of every column as a score, ties counted half: (R₁ − p(p + 1)/2) / (p(n − p)), R₁ the sum of the p
    positives' ranks.

    This is the Mann–Whitney statistic. Only the entries above zero are sorted: the zeros of a column are one tie whose
    ranks come first. Columns must not be negative if they are sparse.
    """
    if not scipy.sparse.issparse(x):
        return np.concatenate([_dense_aurocs(x[:, i : i + BLOCK], y == 1) for i in range(0, x.shape[1], BLOCK)])
    n, positives, width = len(y), int((y == 1).sum()), x.shape[1]
    column, value, is_positive = _entries_by_value(x, y == 1)
    n_entries = np.bincount(column, minlength=width)
    n_zeros = n - n_entries
    first_of_column = np.cumsum(n_entries) - n_entries
    place_in_column = np.arange(len(column)) - first_of_column[column] + 1.0
    ranks = _shared_by_ties(n_zeros[column] + place_in_column, column, value)
    ranks_of_positives = np.bincount(column, ranks * is_positive, minlength=width)
    positives_at_zero = positives - np.bincount(column, is_positive, minlength=width)
    rank_of_zeros = (n_zeros + 1) / 2
    total = ranks_of_positives + positives_at_zero * rank_of_zeros
    return (total - positives * (positives + 1) / 2) / (positives * (n - positives))


def _dense_aurocs(x: np.ndarray, is_positive: np.ndarray) -> Float[np.ndarray, " columns"]:
    """:func:`column_aurocs` of a few dense columns, compared in single precision, each sorted for itself."""
    n, positives, place = len(x), int(is_positive.sum()), np.arange(1, len(x) + 1, dtype=np.int32)
    bits = np.ascontiguousarray((x - x.min(0)).astype(np.float32).T).view(np.uint32)
    packed = np.sort((bits << 1) | is_positive.astype(np.uint32))  # no sign bit is lost: all are at least zero
    starts_tie = np.diff(packed >> 1, axis=1, prepend=np.uint32(2**32 - 1)) != 0
    first = np.maximum.accumulate(np.where(starts_tie, place, 0), axis=1)
    ends_tie = np.roll(starts_tie, -1, axis=1)  # the first entry starts a tie, so the last one ends one
    last = np.minimum.accumulate(np.where(ends_tie, place, n)[:, ::-1], axis=1)[:, ::-1]
    twice = ((first + last) * (packed & 1).astype(bool)).sum(1, dtype=np.int64)
    return (twice / 2 - positives * (positives + 1) / 2) / (positives * (n - positives))


def _entries_by_value(x: Columns, is_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Column, value (as sortable bits) and label of the entries above zero, sorted by column, then value.

    One integer holds all three, so that a single sort suffices: the bits of a positive float32 rise with it.
    """
    entries = x.tocoo()
    kept = entries.data > 0
    bits = entries.data[kept].astype(np.float32).view(np.int32).astype(np.int64)
    column = entries.col[kept].astype(np.int64)
    packed = np.sort((((column << 32) | bits) << 1) | is_positive[entries.row[kept]])
    return packed >> 33, (packed >> 1) & 0xFFFFFFFF, (packed & 1).astype(np.float64)


def _shared_by_ties(ranks: np.ndarray, column: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Ranks of sorted entries, where equal values of a column share the mean of theirs."""
    if not len(ranks):
        return ranks
    starts_tie = (np.diff(column, prepend=-1) != 0) | (np.diff(value, prepend=-1) != 0)
    tie = np.cumsum(starts_tie) - 1
    return (np.bincount(tie, ranks) / np.bincount(tie))[tie]


def l1_supports(
    x: Columns, y: Int[np.ndarray, " rows"], most: int, ratio: float = 0.9, steps: int = 120
) -> Iterable[np.ndarray]:
    """Supports along the path of min (1/n) Σ log(1 + exp(−ỹ(x·β + b))) + α‖β‖₁ for falling α, until one exceeds
    ``most``; the columns of a support are in the order of |β|.

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
        yield support[np.argsort(-np.abs(beta[support]), kind="stable")]
        if len(support) > most:
            return


def _scaled(x: Columns) -> Columns:
    scale = 1 / np.sqrt(_moments(x)[1]).astype(np.float64)
    if scipy.sparse.issparse(x):
        return (x.astype(np.float64) @ scipy.sparse.diags(scale)).tocsc()
    return x.astype(np.float64) * scale


def _sigmoid(eta: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(eta, -35, 35)))


def _proximal_newton(
    x: np.ndarray, y: np.ndarray, alpha: float, beta: np.ndarray, intercept: float
) -> tuple[np.ndarray, float]:
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
        columns, residual = (x - means) * root[:, None], (target - target_mean) * root
        _, path, _ = lasso_path(columns, residual, alphas=[alpha], coef_init=beta.copy(), tol=1e-5)
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

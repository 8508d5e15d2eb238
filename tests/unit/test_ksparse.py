import numpy as np
import pytest
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from lib.probing import ksparse
from lib.probing.on_saes import k_sparse
from lib.probing.tasks import Task


def columns(n=800, d=60, seed=0):
    """Sparse non-negative columns; column 7 never fires, and values repeat so that ties occur."""
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 6, (n, d)) * (rng.random((n, d)) < 0.2)
    x[:, 7] = 0
    return scipy.sparse.csr_matrix(x.astype(np.float32)), rng


def test_column_aurocs_equal_scikit_learn_with_ties():
    x, rng = columns(300)
    y = rng.integers(0, 2, 300)
    expected = [roc_auc_score(y, column) for column in x.toarray().T]
    np.testing.assert_allclose(ksparse.column_aurocs(x, y), expected, atol=1e-12)
    np.testing.assert_allclose(ksparse.column_aurocs(x.toarray() - 3.0, y), expected, atol=1e-12)


@pytest.mark.parametrize("selection", ksparse.SELECTIONS)
def test_an_and_of_two_latents_is_found(selection):
    x, rng = columns(3000)
    on = rng.random((3000, 2)) < 0.6
    dense = x.toarray()
    dense[:, [11, 42]] = on * rng.uniform(1, 2, (3000, 2))
    y = on.all(1).astype(int)
    chosen = ksparse.select(scipy.sparse.csr_matrix(dense), y, [2], selection)[2]
    assert set(chosen) == {11, 42}
    scores = ksparse.refit(dense, y, chosen).decision_function(dense[:, chosen])
    assert roc_auc_score(y, scores) > 0.97


def test_the_l1_path_has_the_supports_of_scikit_learn():
    x, rng = columns(500, 30)
    y = (np.asarray(x[:, [1, 4, 9]].sum(1)).ravel() + rng.standard_normal(500) * 3 > 2.5).astype(int)
    live = ksparse.live_columns(x)
    z = x[:, live].toarray() / x[:, live].toarray().std(0)
    alpha = np.abs(z.T @ (y - y.mean())).max() / 500
    for step, support in enumerate(ksparse.l1_supports(x[:, live], y, 20), 1):
        if step in (8, 16):
            c = 1 / (500 * alpha * 0.9**step)
            peer = LogisticRegression(l1_ratio=1, C=c, solver="saga", max_iter=20_000, tol=1e-7).fit(z, y)
            assert set(support) == set(np.flatnonzero(np.abs(peer.coef_[0]) > 1e-4))
    assert len(support) > 20


def test_the_refit_has_no_penalty():
    x, rng = columns(2000, 10)
    y = (np.asarray(x[:, :3].sum(1)).ravel() + 3 * rng.standard_normal(2000) > 1).astype(int)
    fitted = ksparse.refit(x, y, np.arange(3))
    peer = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(x[:, :3].toarray(), y)
    np.testing.assert_allclose(fitted[-1].coef_[0] / fitted[0].scale_, peer.coef_[0], rtol=2e-3)


def test_k_one_is_the_best_single_latent_of_the_training_rows():
    x, rng = columns()
    y = (x[:, 5].toarray().ravel() == 0).astype(int)
    chosen = ksparse.select(x, y, [1], "mean difference")[1]
    assert chosen.tolist() == [5], "a latent that fires for the other class counts too"


@pytest.mark.parametrize("selection", ksparse.SELECTIONS)
def test_rows_outside_training_change_no_fitted_number(selection):
    x, rng = columns()
    y = (np.asarray(x[:, :4].sum(1)).ravel() + rng.standard_normal(800) > 2).astype(int)
    train = np.arange(800) < 500
    other = x.toarray()
    other[~train] = rng.random((300, 60)) * 100
    task, flipped = Task(y, train, np.arange(800)), np.where(train, y, 1 - y)
    fits = k_sparse(x, task, [1, 5, 10], selection)
    others = k_sparse(scipy.sparse.csr_matrix(other), task._replace(y=flipped), [1, 5, 10], selection)
    for fit, again in zip(fits, others, strict=True):
        assert fit.columns.tolist() == again.columns.tolist()
        np.testing.assert_array_equal(fit.scores[train], again.scores[train])


def test_ks_above_the_live_columns_are_left_out_or_refused():
    x, _ = columns(200, 12)
    assert ksparse.possible(x, [1, 11, 12, 50]) == [1, 11]
    with pytest.raises(ValueError, match=r"k \[12, 50\] must lie between 1 and 11"):
        ksparse.possible(x, [12, 50])


def test_dead_latents_are_never_chosen_and_k_is_bounded():
    x, rng = columns(200, 12)
    y = rng.integers(0, 2, 200)
    for selection in ksparse.SELECTIONS:
        assert 7 not in ksparse.select(x, y, [11], selection)[11]
        with pytest.raises(ValueError, match="k .*12.* between 1 and 11"):
            ksparse.select(x, y, [12], selection)
    with pytest.raises(ValueError, match="unknown selection 'best'"):
        ksparse.select(x, y, [2], "best")


@pytest.mark.parametrize("selection", ksparse.SELECTIONS)
def test_columns_are_nested_in_k_and_begin_with_the_best_one(selection):
    x, rng = columns(600, 30)
    y = (np.asarray(x[:, :4].sum(1)).ravel() + 2 * rng.standard_normal(600) > 2).astype(int)
    chosen = ksparse.select(x, y, [1, 2, 5, 12], selection)
    for fewer, more in ((1, 2), (2, 5), (5, 12)):
        assert chosen[more][:fewer].tolist() == chosen[fewer].tolist() and len(set(chosen[more])) == more
    assert chosen[1][0] == ksparse.best_column(x, y)


def test_the_standardised_gap_does_not_depend_on_a_columns_scale():
    y = np.array([0, 0, 1, 1])
    x = np.array([[0.0, 0.0, 7.0], [2.0, 0.1, 7.0], [3.0, 0.3, 7.0], [5.0, 0.4, 7.0]])
    # Gaps 3, 0.3 and 0; variances within the classes 1, 0.0025 and 0: standardised gaps 3, 6 and 0.
    assert ksparse.by_standardised_gap(x, y, 3).tolist() == [1, 0, 2]
    assert ksparse.by_mean_difference(x, y, 3).tolist() == [0, 1, 2]
    sparse = scipy.sparse.csr_matrix(x * [1.0, 1000.0, 1.0])
    assert ksparse.by_standardised_gap(sparse, y, 2).tolist() == [1, 0]

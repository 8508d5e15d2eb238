"""The dense probe equals scikit-learn put together by hand."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from lib.probing import dense as dense_probes


def test_dense_probe_equals_sklearn_by_hand():
    rng = np.random.default_rng(0)
    n, d = 400, 20
    x = (rng.normal(size=(n, d)) * rng.uniform(0.1, 10, d) + 3).astype(np.float64)
    y = (x[:, 0] / x[:, 0].std() + rng.normal(size=n) > x[:, 0].mean() / x[:, 0].std()).astype(int)
    groups = rng.integers(0, 120, n)
    folds = list(GroupKFold(dense_probes.N_FOLDS, shuffle=True, random_state=0).split(x, y, groups))
    assert all(set(groups[a]).isdisjoint(groups[b]) for a, b in folds)

    def fit(rows, c):
        mean, scale = x[rows].mean(0), x[rows].std(0)
        model = LogisticRegression(C=c, max_iter=2000).fit((x[rows] - mean) / scale, y[rows])
        return lambda new: ((new - mean) / scale) @ model.coef_[0] + model.intercept_[0]

    cv = {c: np.mean([roc_auc_score(y[b], fit(a, c)(x[b])) for a, b in folds]) for c in dense_probes.C_GRID}
    best = max(cv, key=cv.get)
    search = dense_probes.fit_logistic(x, y, groups)
    assert search.best_params_ == {"logisticregression__C": best}
    np.testing.assert_allclose(search.best_score_, cv[best], atol=1e-6)
    np.testing.assert_allclose(search.decision_function(x), fit(np.arange(n), best)(x), atol=1e-4)

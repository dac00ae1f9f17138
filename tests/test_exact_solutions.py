"""Exact solutions: `minimise` and the Lasso path against scikit-learn and skglm, to 1e-8."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from sklearn.linear_model import Lasso

from nonsmooth.claims.problems import lasso_path
from nonsmooth.objectives import breast_cancer, diabetes, random_least_squares
from nonsmooth.penalties import L1, ElasticNet, GroupLasso
from nonsmooth.simulation import minimise

PROBLEMS = {"random": random_least_squares(60, 12, seed=11), "wide": random_least_squares(20, 40, seed=12, support=4)}
PROBLEMS["diabetes"] = diabetes()
each = pytest.mark.parametrize("f", [pytest.param(f, id=name) for name, f in PROBLEMS.items()])
LOOSE, TIGHT = {"rtol": 0, "atol": 1e-8}, {"tol": 1e-14, "max_iter": 200_000, "fit_intercept": False}


@pytest.fixture(scope="module")
def skglm():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's own
        return pytest.importorskip("skglm")


def quietly(fit):
    """A peer's fit with its warnings put aside: at tol = 1e-14 it may say that it stopped at rounding."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fit().coef_.ravel()


@each
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_lasso(f, share, skglm):
    lam = share * f.critical_lam
    theirs = quietly(lambda: Lasso(alpha=lam / 2, **TIGHT).fit(f.X, f.y))
    other = quietly(lambda: skglm.Lasso(alpha=lam / 2, tol=1e-13, fit_intercept=False).fit(f.X, f.y))
    ours = minimise(f, L1(lam)).minimiser.values
    np.testing.assert_allclose(ours, theirs, **LOOSE)
    np.testing.assert_allclose(ours, other, **LOOSE)
    np.testing.assert_allclose(lasso_path(f, np.array([lam]))[0], theirs, **LOOSE)
    assert ((ours == 0) == (theirs == 0)).all()


@each
def test_elastic_net(f):
    lam, ridge = 0.2 * f.critical_lam, 0.3
    alpha = lam / 2 + ridge
    theirs = quietly(lambda: SklearnElasticNet(alpha=alpha, l1_ratio=lam / 2 / alpha, **TIGHT).fit(f.X, f.y))
    np.testing.assert_allclose(minimise(f, ElasticNet(lam, ridge)).minimiser, theirs, **LOOSE)


@each
def test_group_lasso(f, skglm):
    size = 2 if f.shape[0] % 4 else 4
    lam = 0.3 * f.critical_lam
    labels = tuple(i // size for i in range(f.shape[0]))
    theirs = quietly(lambda: skglm.GroupLasso(groups=size, alpha=lam / 2, tol=1e-12, fit_intercept=False).fit(f.X, f.y))
    np.testing.assert_allclose(minimise(f, GroupLasso(lam, groups=labels)).minimiser, theirs, **LOOSE)


def test_sparse_logistic_regression(skglm):
    f = breast_cancer(features=10)
    lam = 0.05
    theirs = quietly(lambda: skglm.SparseLogisticRegression(alpha=lam, tol=1e-12, fit_intercept=False).fit(f.X, f.y))
    ours = minimise(f, L1(lam)).minimiser.values
    np.testing.assert_allclose(ours, theirs, **LOOSE)
    assert 0 < (ours == 0).sum() < 10


def test_another_penalty_has_another_solution():
    f = diabetes()
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(minimise(f, L1(0.3)).minimiser, minimise(f, L1(0.301)).minimiser, **LOOSE)

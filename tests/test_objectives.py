"""Objectives: each law on each instance, in every library; what each law rejects; data, and the hard instance."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize, nnls

from laws import (
    agrees_with_numpy,
    constant_attained,
    constants_hold,
    gradient_is_autograds,
    gradient_is_the_slope,
    kinks_law,
    minimum_law,
    stays_on_device,
)
from nonsmooth.claims.performance import TIGHT
from nonsmooth.objectives import (
    Absolute,
    Constants,
    Hinge,
    Huber,
    LeastSquares,
    Logistic,
    MaxLinear,
    MaxQuadratic,
    Objective,
    PseudoHuber,
    Quadratic,
    Quantile,
    ReLURegression,
    Spred,
    TwoLayer,
    breast_cancer,
    diabetes,
    random_least_squares,
    subgradient_hard_instance,
    subgradient_last_iterate_instance,
)
from zoo import ALIKE, DATA, LIBRARIES, OBJECTIVES, PLANES, TALL, WIDE, over, points

each = pytest.mark.parametrize("known", over(OBJECTIVES))
everywhere = pytest.mark.parametrize("library", over(LIBRARIES))
rejected = pytest.raises(AssertionError)


# ── mutants ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class OneAtZero(Absolute):
    def grad(self, x):
        return np.where(x >= 0, 1.0, -1.0)


class OneAtTheKink(Hinge):
    def grad(self, w):
        return -self._pull_back(np.where(self._margins(w) <= 1, self.y, 0.0))


class FirstSideAtTheTie(Quantile):
    def grad(self, w):
        return -self._pull_back(np.where(self._residual(w) >= 0, self.tau, self.tau - 1))


class OneAtZeroReLU(ReLURegression):
    def grad(self, w):
        z = self.X @ w
        return 2 * self._pull_back(np.where(z >= 0, z - self.y, 0.0))


class ForgetsTheOtherLayer(TwoLayer):
    def grad(self, x):
        g = super().grad(x)
        return np.concatenate([g[: -self.hidden] / x[-1], g[-self.hidden :]])


class Unswapped(Spred):
    def grad(self, x):
        return np.roll(super().grad(x), len(x) // 2)


class LastWinner(MaxLinear):
    def grad(self, x):
        return self.A[np.flatnonzero(self._scores(x) == self.value(x))[-1]]


class SharesTheWin(MaxLinear):
    def grad(self, x):
        return MaxLinear(self.A, self.b, ties="average").grad(x)


class TakesItAll(MaxQuadratic):
    def grad(self, x):
        return MaxQuadratic(self.dim, self.k, ties="first").grad(x)


class ForgetsTheTwo(LeastSquares):
    def grad(self, w):
        return super().grad(w) / 2


class Unbent(Absolute):
    def kinks(self, x):
        return x[:0]


class BentAtTheKnee(Huber):
    def kinks(self, x):
        return abs(x) - self.delta


class TooFlat(Huber):
    constants = Constants(L=0.5, G=1.0)


class TooSlow(Huber):
    constants = Constants(L=1.0, G=0.5)


class TooConvex(Huber):
    constants = Constants(L=1.0, G=1.0, mu=0.5)


class TooSteep(Huber):
    constants = Constants(L=2.0, G=2.0, mu=-1.0)


class ForgetsK(MaxQuadratic):
    minimiser = property(lambda self: super().minimiser * self.k)


class OnTheProcessor(MaxLinear):
    def grad(self, x):
        scores = self._scores(x)
        return torch.matmul((torch.arange(len(scores)) == scores.argmax()) * 1.0, torch.tensor(self.A))


# ── gradients and kinks ─────────────────────────────────────────────────────────────────────────────────────────────


@each
def test_value_and_gradient_are_autograds(known):
    for x in (*points(known.f.shape), *map(np.asarray, known.kinks)):
        gradient_is_autograds(known.f, x)


@pytest.mark.parametrize(
    ("mutant", "x"),
    [
        (OneAtZero(), [0.0]),
        (OneAtTheKink(*DATA), [1.0, 0.0]),
        (LastWinner(*PLANES), [0.25, 0.0]),
        (SharesTheWin(*PLANES), [0.25, 0.0]),
        (TakesItAll(dim=3, k=2, ties="average"), [1.0, 1.0, 0.0]),
        (ForgetsTheTwo(*DATA), [1.0, 0.0]),
        (FirstSideAtTheTie(*DATA), [1.0, 0.0]),
        (OneAtZeroReLU(*DATA), [2.0, -1.0]),
        (ForgetsTheOtherLayer(*DATA, hidden=1), [1.0, 2.0, 3.0]),
        (Unswapped(Quadratic([1.0])), [2.0, 3.0]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_a_wrong_gradient_is_rejected(mutant, x):
    with rejected:
        gradient_is_autograds(mutant, np.array(x))


@each
def test_gradient_is_the_slope(known):
    for scale in (1.0, 30.0):
        gradient_is_the_slope(known.f, scale * np.random.default_rng(2).standard_normal(known.f.shape))


def test_a_wrong_slope_is_rejected():
    with rejected:
        gradient_is_the_slope(ForgetsTheTwo(*DATA), np.ones(2))


@each
def test_kinks(known):
    for x in map(np.asarray, known.kinks):
        assert (known.f.kinks(x) == 0).any()
        kinks_law(known.f, x)
    for x in np.random.default_rng(6).standard_normal((10, *known.f.shape)):
        kinks_law(known.f, x)


@pytest.mark.parametrize(("mutant", "x"), [(Unbent(), 0.0), (BentAtTheKnee(1.0), 1.0)], ids=["missed", "invented"])
def test_wrong_kinks_are_rejected(mutant, x):
    with rejected:
        kinks_law(mutant, np.array([x]))


# ── constants and minima ────────────────────────────────────────────────────────────────────────────────────────────


@each
def test_constants_hold(known):
    for x, z in combinations([*points(known.f.shape, 7), *points(known.f.shape, 8), *map(np.asarray, known.kinks)], 2):
        if (x != z).any():
            constants_hold(known.f, x, z)


@pytest.mark.parametrize("mutant", [TooFlat(1.0), TooSlow(1.0), TooConvex(1.0)], ids=lambda f: type(f).__name__)
def test_constants_that_do_not_hold_are_rejected(mutant):
    with rejected:
        for x, z in [(0.0, 0.5), (2.0, 3.0)]:
            constants_hold(mutant, np.array([x]), np.array([z]))


@pytest.mark.parametrize(
    ("f", "name", "x", "z"),
    [pytest.param(k.f, c, *pair, id=f"{name}-{c}") for name, k in OBJECTIVES.items() for c, pair in k.pairs.items()],
)
def test_constants_are_attained(f, name, x, z):
    constant_attained(f, name, x, z)


@pytest.mark.parametrize(("name", "x", "z"), [("L", 0.0, 0.5), ("G", 2.0, 3.0), ("mu", 2.0, 3.0)])
def test_constants_that_are_not_attained_are_rejected(name, x, z):
    constants_hold(TooSteep(1.0), np.array([x]), np.array([z]))
    with rejected:
        constant_attained(TooSteep(1.0), name, [x], [z])


@pytest.mark.parametrize("f", [pytest.param(k.f, id=name) for name, k in OBJECTIVES.items() if k.f.minimum is not None])
def test_minimum(f):
    minimum_law(f)


def test_a_wrong_minimiser_is_rejected():
    with rejected:
        minimum_law(ForgetsK(dim=3, k=3))


@pytest.mark.parametrize(
    "f",
    [
        Quadratic([-1.0, 2.0]),
        MaxLinear([[3.0, 4.0]], [0.0]),
        Logistic(*DATA),
        Hinge(*DATA),
        ReLURegression(*DATA),
        Objective(),
    ],
    ids=repr,
)
def test_no_minimiser_is_no_minimum(f):
    assert f.minimiser is None
    assert f.minimum is None


@pytest.mark.parametrize("f", [TALL, Huber(1.5, dim=2), PseudoHuber(2.0, dim=2), Quadratic([0.5, 2.0, 4.0])], ids=repr)
def test_minimum_is_where_bfgs_stops(f):
    found = minimize(f.value, np.ones(f.shape), jac=f.grad, tol=1e-10)
    np.testing.assert_allclose(found.x, f.minimiser, atol=1e-7)


def test_least_squares_minimiser_is_that_of_scikit_learn():
    from sklearn.linear_model import LinearRegression

    for f in (TALL, diabetes()):
        np.testing.assert_allclose(f.minimiser, LinearRegression(fit_intercept=False).fit(f.X, f.y).coef_, rtol=1e-9)
    assert WIDE.minimum < 1e-25


@pytest.mark.parametrize("tau", [0.2, 0.5, 0.9])
def test_quantile_minimiser_is_that_of_scikit_learn(tau):
    from sklearn.linear_model import QuantileRegressor

    f = Quantile(TALL.X, TALL.y, tau=tau)
    theirs = QuantileRegressor(quantile=tau, alpha=0, fit_intercept=False).fit(f.X, f.y).coef_
    assert f.minimum == pytest.approx(f.value(theirs), rel=1e-9)
    assert f.minimum <= min(f.value(w) for w in f.minimiser + 0.1 * np.random.default_rng(0).standard_normal((99, 4)))


def test_spred_with_half_the_ridge_is_the_lasso():
    """min f(u⊙v) + (λ/2)(‖u‖² + ‖v‖²), by BFGS, has the value and the weights of the Lasso."""
    lam, f = 0.5, Spred(TALL)
    found = minimize(
        lambda x: f.value(x) + lam / 2 * x @ x,
        np.random.default_rng(0).standard_normal(8),
        jac=lambda x: f.grad(x) + lam * x,
        method="BFGS",
        options={"gtol": 1e-10},
    )
    exact = lasso(TALL, lam)
    np.testing.assert_allclose(f.product(found.x), exact, atol=1e-6)
    assert found.fun == pytest.approx(TALL.value(exact) + lam * abs(exact).sum(), rel=1e-9)


def test_max_linear_minimiser_carries_a_dual_certificate():
    """0 is a convex combination of the rows that win at x*."""
    f = MaxLinear(*PLANES)
    scores = f.A @ f.minimiser + f.b
    winners = f.A[scores > scores.max() - 1e-7]
    assert nnls(np.vstack([winners.T, np.ones(len(winners))]), [0.0, 0.0, 1.0])[1] < 1e-7


def test_max_quadratic_minimum_is_that_of_its_epigraph():
    """min γs + (μ/2)‖x‖² subject to xᵢ ≤ s for i ≤ k, by SLSQP."""
    f = MaxQuadratic(dim=5, k=3, gamma=2.0, mu=0.5)
    found = minimize(
        lambda z: f.gamma * z[-1] + 0.5 * f.mu * z[:-1] @ z[:-1],
        np.ones(6),
        constraints={"type": "ineq", "fun": lambda z: z[-1] - z[: f.k]},
        method="SLSQP",
        tol=1e-12,
    )
    assert f.minimum == -(f.gamma**2) / (2 * f.mu * f.k)
    np.testing.assert_allclose(found.fun, f.minimum, rtol=1e-9)
    np.testing.assert_allclose(found.x[:-1], f.minimiser, atol=1e-6)


# ── finite sums ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("f", [TALL, Logistic(*DATA), Hinge(*DATA)], ids=lambda f: type(f).__name__)
def test_minibatches_average_to_the_whole(f):
    w = np.ones(f.shape)
    halves = f.rows(slice(None, f.n // 2)), f.rows(np.arange(f.n // 2, f.n))
    assert [half.n for half in halves] == [f.n // 2] * 2
    np.testing.assert_allclose(np.mean([half.value(w) for half in halves]), f.value(w), rtol=1e-14)
    np.testing.assert_allclose(np.mean([half.grad(w) for half in halves], axis=0), f.grad(w), rtol=1e-13)


def test_prepared_least_squares_is_the_same_function():
    for w in points((4,)):
        np.testing.assert_allclose(TALL.prepare().value(w), TALL.value(w), rtol=1e-12)
        np.testing.assert_allclose(TALL.prepare().grad(w), TALL.grad(w), rtol=1e-12, atol=1e-12)
    assert TALL.prepare() is not TALL
    assert (wide := random_least_squares(4, 9)).prepare() is wide
    assert (huber := Huber(1.0)).prepare() is huber


def test_random_least_squares_by_its_options():
    f = random_least_squares(n=30, p=8, seed=3, support=2, noise=0.0)
    assert f == random_least_squares(n=30, p=8, seed=3, support=2, noise=0.0)
    assert f != random_least_squares(n=30, p=8, seed=4, support=2, noise=0.0)
    assert (abs(f.minimiser) > 1e-12).tolist() == [True, True, *[False] * 6]
    assert f.minimum < 1e-25


# ── data ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def lasso(f, lam):
    from sklearn.linear_model import Lasso

    return Lasso(alpha=lam / 2, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(f.X, f.y).coef_


def test_diabetes_is_standardised_and_its_critical_lam_that_of_the_lasso():
    """critical_lam is twice the smallest alpha for which scikit-learn's Lasso is zero."""
    f = diabetes()
    assert f.X.shape == (442, 10)
    np.testing.assert_allclose([*f.X.mean(0), f.y.mean()], 0, atol=1e-15)
    np.testing.assert_allclose([*f.X.std(0), f.y.std()], 1, rtol=1e-14)
    assert not lasso(f, f.critical_lam * (1 + 1e-9)).any()
    assert lasso(f, f.critical_lam * (1 - 1e-3)).any()


def test_critical_lam_is_where_zero_is_stationary():
    assert TALL.critical_lam == pytest.approx(abs(TALL.grad(np.zeros(4))).max(), rel=1e-14)


def separable(X, y):
    """Whether some w has y xₙ·w ≥ 1 for every n, by linear programming."""
    return linprog(np.zeros(X.shape[1]), -y[:, None] * X, -np.ones(len(y)), bounds=(None, None)).success


@pytest.mark.parametrize("features", [10, 30])
def test_breast_cancer_is_not_separable_without_an_intercept(features):
    f = breast_cancer(features=features)
    assert f.X.shape == (569, features)
    assert not separable(f.X, f.y)
    assert separable(np.c_[f.X, np.ones(f.n)], f.y) == (features == 30)
    assert breast_cancer(Hinge, features).X.tobytes() == f.X.tobytes()


# ── the hard instance ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n", "gap"), [(3, 0.5), (6, 0.37796), (12, 0.27735), (20, 0.21822)])
@pytest.mark.parametrize(("M", "R"), [(1.0, 1.0), (2.0, 3.0)])
def test_the_subgradient_method_is_as_slow_as_its_bound(n, gap, M, R):
    f, x = subgradient_hard_instance(n, M, R), np.zeros(n + 1)
    np.testing.assert_allclose(f.constants.G, M)
    assert np.linalg.norm(f.minimiser) == pytest.approx(R, rel=1e-6)
    values = [f.value(x)]
    for _ in range(n):
        x = x - R / (M * np.sqrt(n + 1)) * f.grad(x)
        values.append(f.value(x))
    assert min(values) - f.minimum == pytest.approx(M * R / np.sqrt(n + 1), rel=1e-9)
    assert (min(values) - f.minimum) / (M * R) == pytest.approx(gap, abs=5e-6)


@pytest.mark.parametrize("n", [1, *TIGHT["subgradient, last iterate"]])
@pytest.mark.parametrize(("M", "R"), [(1.0, 1.0), (2.0, 3.0)])
def test_the_last_iterate_is_as_bad_as_its_bound(n, M, R):
    f, x = subgradient_last_iterate_instance(n, M, R), np.zeros(n + 1)
    np.testing.assert_allclose(np.linalg.norm(f.A[:-1], axis=1), M, rtol=1e-12)
    values = [f.value(x)]
    for j in range(n):
        assert f.grad(x).tolist() == f.A[j].tolist()  # the pieces take turns, through ties
        x = x - R / (M * np.sqrt(n + 1)) * f.grad(x)
        values.append(f.value(x))
    worst = TIGHT["subgradient, last iterate"].get(n, 5 / 4 / 2**0.5)
    assert (values[-1] - f.minimum) / (M * R) == pytest.approx(worst, abs=1e-5)
    assert values == sorted(values)
    assert np.linalg.norm(f.minimiser) <= R * (1 + 1e-6)


def test_no_combination_of_its_subgradients_does_better():
    for seed in range(20):
        rng, f, x, seen = np.random.default_rng(seed), subgradient_hard_instance(6), np.zeros(7), []
        for _ in range(6):
            seen.append(f.grad(x))
            x = rng.standard_normal(len(seen)) @ np.array(seen)
            assert f.value(x) >= 0


def test_shared_ties_solve_it_in_one_step_of_polyaks_length():
    f, x = subgradient_hard_instance(6, ties="average"), np.zeros(7)
    g = f.grad(x)
    x = x - (f.value(x) - f.minimum) / (g @ g) * g
    assert f.value(x) == pytest.approx(f.minimum, rel=1e-9)


# ── libraries, devices, messages ────────────────────────────────────────────────────────────────────────────────────


@everywhere
@each
def test_the_same_in_every_library(known, library):
    x = np.random.default_rng(9).integers(-8, 9, known.f.shape) / 4
    agrees_with_numpy(library, x, known.f.value, known.f.grad, known.f.kinks)


@each
def test_everything_stays_on_the_device(known):
    for method in (known.f.value, known.f.grad, known.f.kinks):
        stays_on_device(method, known.f.shape)


def test_another_device_is_rejected():
    with pytest.raises(RuntimeError, match="meta"):
        stays_on_device(OnTheProcessor(*PLANES).grad, (2,))


@pytest.mark.parametrize("f", [k.f for k in OBJECTIVES.values()], ids=OBJECTIVES)
def test_shape_is_that_of_a_point(f):
    assert f.grad(np.zeros(f.shape)).shape == f.shape
    assert np.shape(f.value(np.zeros(f.shape))) == ()


X, Y = DATA
HOLES = np.where(X == 2.0, np.nan, X)
MESSAGES = {
    "nan-data": (
        lambda: LeastSquares(HOLES, Y),
        "LeastSquares: X holds 2 value(s) that are NaN or infinite; drop or fill them first.",
    ),
    "flat-data": (lambda: Logistic(X[0], Y), "Logistic: X must have 2 dimension(s), not shape (2,)."),
    "tall-labels": (lambda: Hinge(X, Y[:, None]), "Hinge: y must have 1 dimension(s), not shape (4, 1)."),
    "rows": (lambda: LeastSquares(X, Y[:3]), "LeastSquares: X has 4 rows and y 3 entries; give one y a row."),
    "labels-01": (lambda: Hinge(X, Y > 0), "Hinge: y must hold −1 and 1 only; map labels 0/1 by 2*y - 1."),
    "labels-2": (lambda: Logistic(X, 2 * Y), "Logistic: y must hold −1 and 1 only; map labels 0/1 by 2*y - 1."),
    "no-spectrum": (lambda: Quadratic([]), "Quadratic: spectrum is empty; give at least one value."),
    "spectrum": (lambda: Quadratic(np.eye(2)), "Quadratic: spectrum must have 1 dimension(s), not shape (2, 2)."),
    "delta": (lambda: Huber(0.0), "Huber: delta must be a finite number above 0, not 0."),
    "deltas": (lambda: PseudoHuber([1.0, -3.0]), "PseudoHuber: delta must be a finite number above 0, not -3."),
    "dim": (lambda: Absolute(dim=0), "Absolute: dim must be a whole number, 1 or above, not 0."),
    "dim-2.0": (lambda: Huber(1.0, dim=2.0), "Huber: dim must be a whole number, 1 or above, not 2.0."),
    "k": (lambda: MaxQuadratic(dim=3, k=4), "MaxQuadratic: k must be between 1 and dim = 3, not 4."),
    "tau": (lambda: Quantile(X, Y, tau=1.0), "Quantile: tau must be a number between 0 and 1, not 1."),
    "hidden": (lambda: TwoLayer(X, Y, hidden=0), "TwoLayer: hidden must be a whole number, 1 or above, not 0."),
    "activation": (
        lambda: TwoLayer(X, Y, activation="gelu"),
        "TwoLayer: activation must be one of relu, tanh, softplus, not 'gelu'.",
    ),
    "spred": (lambda: Spred(3.0), "Spred: objective must be one of nonsmooth's, not float."),
    "planes": (lambda: MaxLinear(np.eye(2), [0.0]), "MaxLinear: A has 2 rows and b 1 entries; give one b a row."),
    "flat-planes": (lambda: MaxLinear([1.0], [0.0]), "MaxLinear: A must have 2 dimension(s), not shape (1,)."),
    "ties": (
        lambda: MaxLinear(np.eye(2), [0.0, 0.0], ties="last"),
        "MaxLinear: ties must be 'first' or 'average', not 'last'.",
    ),
}


@pytest.mark.parametrize(("make", "message"), over(MESSAGES))
def test_messages(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_an_objective_states_what_it_lacks():
    for call, message in {
        lambda: Objective().shape: "Objective states no shape.",
        lambda: Objective().value(X): "Objective defines no value.",
        lambda: Objective().grad(X): "Objective defines no gradient.",
    }.items():
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call()
    assert Objective().constants == Constants()
    assert ALIKE[0].shape == (4, 1)

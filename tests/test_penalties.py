"""Penalties: each law on each instance, in every library; and what each law rejects."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from laws import (
    at_rest,
    certificate_is_the_descent,
    certificate_law,
    distance_attained,
    firmly_non_expansive,
    gradient_is_autograds,
    gradient_is_the_slope,
    prox_law,
    prox_minimises,
)
from nonsmooth.penalties import (
    L0,
    L1,
    MCP,
    NM,
    SCAD,
    Box,
    ElasticNet,
    GroupLasso,
    LHalf,
    NonNegative,
    Penalty,
    Simplex,
    SmoothedL1,
    SparseGroupLasso,
    SquaredL2,
    shrink,
)
from nonsmooth.penalties.constraints import Constraint
from zoo import LIBRARIES, PENALTIES, over, points, steps


def those(wanted):
    """A test over the instances that are as wanted."""
    return pytest.mark.parametrize(
        ("g", "shape"), over({name: row for name, row in PENALTIES.items() if wanted(row[0])})
    )


def couples(g):
    """Whether the subdifferential is no product over coordinates."""
    return isinstance(g, (GroupLasso, SparseGroupLasso, Simplex))


def admitted(g, x):
    """A point like x at which g is finite."""
    return x if g.has_grad or g.value(x) < np.inf else g.prox(x, 1.0)


each = those(lambda g: True)
convex = those(lambda g: g.convex)
differentiable = those(lambda g: g.has_grad)
everywhere = pytest.mark.parametrize("library", over(LIBRARIES))
rejected = pytest.raises(AssertionError)
by_type = {"ids": lambda value: type(value).__name__ if isinstance(value, Penalty) else None}


# ── mutants ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class ForgetsTheStep(L1):
    def prox(self, x, t):
        return super().prox(x, 1.0)


class HardThreshold(L1):
    def prox(self, x, t):
        return np.where(abs(x) > t * self.lam, x, 0.0)


class OneAtZero(L1):
    def grad(self, x):
        return self.lam * np.where(x >= 0, 1.0, -1.0)


class ForgetsTheKink(L1):
    def subdiff_distance(self, x, v):
        return abs(v - self.grad(x))


class AlwaysContent(L1):
    def subdiff_distance(self, x, v):
        return np.zeros_like(v)


class HalfTheSlope(SquaredL2):
    def grad(self, x):
        return self.lam * x


class SwappedOrder(ElasticNet):
    def prox(self, x, t):
        return shrink(x / (1 + 2 * self.ridge * t), t * self.lam)


class CoordinateByCoordinate(GroupLasso):
    def prox(self, x, t):
        return shrink(x, t * self.lam)


class MeanStep(GroupLasso):
    def prox(self, x, t):
        return super().prox(x, float(np.mean(t)))


class Unsmoothed(SmoothedL1):
    def prox(self, x, t):
        return shrink(x, t * self.lam)


class GroupsFirst(SparseGroupLasso):
    def prox(self, x, t):
        return shrink(self._group_prox(x, t, self.group_lam), t * self.lam)


class FirmBeyondItsRange(MCP):
    def prox(self, x, t):
        u = abs(x)
        bent = np.sign(x) * (u - t * self.lam) / (1 - t / self.gamma)
        return np.where(u <= t * self.lam, 0.0, np.where(u <= self.gamma * self.lam, bent, x))


class HardBeyondItsRange(SCAD):
    """Right from t = a + 1 on; from a − 1 to there a soft part is left."""

    def prox(self, x, t):
        return np.where(abs(x) <= np.sqrt((self.a + 1) * t) * self.lam, 0.0, x)


class CutsAtTheSlope(L0):
    def prox(self, x, t):
        return np.where(abs(x) <= t * self.lam, 0.0, x)


class CutsTooEarly(LHalf):
    """Xu et al.'s threshold with their λ as λt: half of what the square without its ½ asks for."""

    def prox(self, x, t):
        return np.where(abs(x) <= 1.5 * (self.lam * t / 2) ** (2 / 3), 0.0, LHalf(0.01).prox(x, t))


class ScalesTheBox(Box):
    def prox(self, x, t):
        return np.clip(x, t * self.low, t * self.high)


class Mirrors(NonNegative):
    def prox(self, x, t):
        return abs(x)


class DividesBySum(Simplex):
    def prox(self, x, t):
        return self.radius * abs(x) / max(abs(x).sum(), 1e-9)


class NearestInTheWrongMetric(Simplex):
    def prox(self, x, t):
        return super().prox(x, 1.0)


class LargestInTheWrongMetric(NM):
    def prox(self, x, t):
        return super().prox(x, 1.0)


class DividesByTheRoot(NM):
    """Level at t = 0, where it keeps the first of each group."""

    def prox(self, x, t):
        cost = abs(x) / np.sqrt(t)
        return np.where(np.argsort(np.argsort(-cost, kind="stable")) < self.n, x, 0.0)


class StandsStill(NM):
    def prox(self, x, t):
        return x if np.all(t == 0) else super().prox(x, t)


class KeepsOneMore(NM):
    def value(self, x):
        return NM(self.n, self.m).value(x)

    def prox(self, x, t):
        return NM(self.n + 1, self.m).prox(x, t)


# ── the proximal map ────────────────────────────────────────────────────────────────────────────────────────────────


@everywhere
@each
def test_prox_law(g, shape, library):
    with library.running():
        chosen = [*points(shape)] if library.name == "numpy" else [*points(shape)][1::3]
        for x, t in product(chosen, steps(shape)):
            prox_law(g, library.array(x), library.array(t))


@each
def test_prox_minimises(g, shape):
    for x, t in product(points(shape), steps(shape)):
        prox_minimises(g, x, t)


@convex
def test_prox_is_firmly_non_expansive(g, shape):
    for (x, z), t in product(pairwise(points(shape)), steps(shape)):
        firmly_non_expansive(g, x, z, t)
        firmly_non_expansive(g, x, x + 1e-3 * z, t)


@those(lambda g: not g.convex)
def test_no_other_prox_is(g, shape):
    """So `convex` says what the map does."""
    line = np.linspace(0.25, 4, 200)
    pairs = [tuple(np.eye(1, int(np.prod(shape)), 0).reshape(shape) * s for s in pair) for pair in pairwise(line)]
    if isinstance(g, NM):
        pairs = [(np.ones(shape), np.ones(shape) + 1e-3 * np.arange(np.prod(shape)).reshape(shape))]
    with rejected:
        for x, z in pairs:
            firmly_non_expansive(g, x, z, 0.5)


@each
def test_where_nothing_moves(g, shape):
    """At t = 0, which a schedule may start from, a finite g leaves x, and a set has the projection of equal steps."""
    for x, t in product(points(shape), (0.0, np.zeros(shape))):
        at_rest(g, x, t)


@those(lambda g: isinstance(g, Constraint))
def test_a_projection_knows_no_factor_of_the_steps(g, shape):
    for x, t in product(points(shape), steps(shape)):
        np.testing.assert_array_equal(g.prox(x, t), g.prox(x, 2.0**-70 * t))
        standing = t * (np.arange(x.size).reshape(shape) % 2)
        np.testing.assert_allclose(g.prox(x, standing), g.prox(x, np.maximum(standing, 1e-30)), rtol=1e-9, atol=1e-12)


X, UNEQUAL = np.array([[3.0, -2.0], [0.5, 0.25]]), np.array([[0.5, 2.0], [1.0, 4.0]])
FOUR, THEIRS = np.array([1.0, 0.75, -0.5, 0.25]), np.array([4.0, 1.0, 0.25, 0.0625])


@pytest.mark.parametrize("law", [prox_law, prox_minimises])
@pytest.mark.parametrize(
    ("mutant", "t"),
    [
        (ForgetsTheStep(0.75), 0.5),
        (HardThreshold(0.75), 0.5),
        (SwappedOrder(0.75, 0.5), 0.5),
        (CoordinateByCoordinate(0.75), 0.5),
        (MeanStep(0.75), UNEQUAL),
        (Unsmoothed(0.75, 0.5), 0.5),
        (GroupsFirst(0.25, 0.5), 0.5),
        (ScalesTheBox(-1.0, 2.0), 0.5),
        (Mirrors(), 0.5),
        (DividesBySum(), 0.5),
        (NearestInTheWrongMetric(3.0), UNEQUAL),
        (CutsTooEarly(0.75), 0.5),
    ],
    **by_type,
)
def test_a_wrong_prox_is_rejected(law, mutant, t):
    with rejected:
        law(mutant, X, t)


@pytest.mark.parametrize(
    ("mutant", "x", "t"),
    [
        (FirmBeyondItsRange(1.0, 2.0), 5.0 * FOUR, 8.0),
        (HardBeyondItsRange(1.0, 3.0), 3.4 * FOUR, 3.0),
        (CutsAtTheSlope(0.75), X, 0.5),
        (LargestInTheWrongMetric(), FOUR, THEIRS),
        (KeepsOneMore(), FOUR, 0.5),
    ],
    **by_type,
)
def test_a_stationary_point_is_not_enough(mutant, x, t):
    """(x − p)/t ∈ ∂g(p) is necessary, and weak: only the comparison of values tells a minimiser of a non-convex one."""
    with rejected:
        prox_minimises(mutant, x, t)


def test_wrong_maps_are_right_where_they_are():
    prox_law(MeanStep(0.75), X, 0.5 * np.ones_like(X))
    prox_law(NearestInTheWrongMetric(3.0), X, 0.5 * np.ones_like(X))
    prox_minimises(LargestInTheWrongMetric(), FOUR, 0.5)
    prox_minimises(FirmBeyondItsRange(1.0, 2.0), 5.0 * FOUR, 0.5)
    prox_minimises(HardBeyondItsRange(1.0, 3.0), 3.25 * FOUR, 4.0)
    prox_law(CutsAtTheSlope(0.75), X, 0.5)  # stationary, and no minimiser


def test_a_jump_is_not_non_expansive():
    with rejected:
        firmly_non_expansive(HardThreshold(1.0), np.array([1.0001]), np.array([0.9999]), 1.0)


@pytest.mark.parametrize("mutant", [DividesByTheRoot(), StandsStill()], **by_type)
def test_a_wrong_rest_is_rejected(mutant):
    with rejected, np.errstate(all="ignore"):
        at_rest(mutant, FOUR[::-1], 0.0)


# ── value, gradient, certificate ────────────────────────────────────────────────────────────────────────────────────


@differentiable
def test_value_and_gradient_are_autograds(g, shape):
    for x in points(shape):
        gradient_is_autograds(g, x)


@differentiable
def test_gradient_is_the_slope(g, shape):
    for scale in (1.0, 1e3):
        gradient_is_the_slope(g, scale * np.random.default_rng(2).standard_normal(shape))


@pytest.mark.parametrize("mutant", [OneAtZero(0.75), HalfTheSlope(0.75)], **by_type)
def test_a_wrong_gradient_is_rejected(mutant):
    with rejected:
        gradient_is_autograds(mutant, np.array([0.0, 1.0]))


def test_a_wrong_slope_is_rejected():
    with rejected:
        gradient_is_the_slope(HalfTheSlope(0.75), np.array([1.0]))


@convex
def test_certificate(g, shape):
    for x in (admitted(g, x) for x in points(shape)):
        slope = g.grad(x) if g.has_grad else np.where(np.arange(shape[-1]) % 2 == 0, 1.0, -0.5) * np.ones(shape)
        for v in (slope, 0.5 * slope, 2 * slope + 1.0, np.full(shape, 0.125), np.full(shape, -8.0)):
            certificate_law(g, x, v)


@those(lambda g: not couples(g))
def test_certificate_is_the_descent(g, shape):
    rng = np.random.default_rng(6)
    for x in (admitted(g, rng.integers(-12, 13, shape) / 4 * rng.integers(0, 2, shape)) for _ in range(4)):
        for v in (np.zeros(shape), np.ones(shape), rng.standard_normal(shape)):
            certificate_is_the_descent(g, x, v)


@pytest.mark.parametrize("mutant", [ForgetsTheKink(0.75), AlwaysContent(0.75)], **by_type)
def test_a_wrong_certificate_is_rejected(mutant):
    with rejected:
        for v in (np.array([0.5, 0.75]), np.array([2.0, 0.75])):
            certificate_law(mutant, np.array([0.0, 1.0]), v)
    with rejected:
        for v in (np.array([0.5, 0.75]), np.array([2.0, 0.75])):
            certificate_is_the_descent(mutant, np.array([0.0, 1.0]), v)


NEAREST = {
    "l1": (L1(1.0), [0.0, 0.0, 2.0, -1.0], [0.5, -3.0, 0.0, -1.0], [0.5, -1.0, 1.0, -1.0]),
    "l2": (SquaredL2(1.0), [0.0, 2.0], [1.0, 3.0], [0.0, 4.0]),
    "elastic-net": (ElasticNet(1.0, 0.5), [0.0, 2.0], [1.5, 0.0], [1.0, 3.0]),
    "group": (GroupLasso(1.0), [[0.0, 0.0], [3.0, 4.0]], [[3.0, 4.0], [0.0, 0.0]], [[0.6, 0.8], [0.6, 0.8]]),
    "group-sized": (GroupLasso(1.0, groups=(0,) * 4, scale_by_size=True), [0.0] * 4, [2.0] * 4, [1.0] * 4),
    "smoothed-l1": (SmoothedL1(2.0, 3.0), [0.0, 4.0], [1.0, 1.0], [0.0, 1.6]),
    "sparse-group": (SparseGroupLasso(1.0, 5.0), [[0.0, 0.0], [2.0, 0.0]], [[7.0, -9.0], [0, 3]], [[4, -5], [6, 1]]),
    "mcp": (MCP(1.0, 2.0), [0.0, 1.0, -3.0], [3.0, 1.0, -0.25], [1.0, 0.5, 0.0]),
    "scad": (SCAD(1.0, 3.0), [0.0, 0.5, -2.0, 4.0], [0.5, 0.0, 0.0, 1.0], [0.5, 1.0, -0.5, 0.0]),
    "l0": (L0(1.0), [0.0, 2.0], [7.0, 1.0], [7.0, 0.0]),
    "l-half": (LHalf(1.0), [0.0, 4.0, -1.0], [7.0, 1.0, 0.0], [7.0, 0.25, -0.5]),
    "box": (Box(0.0, 1.0), [0.0, 0.5, 1.0, 1.0], [1.0, -2.0, -3.0, 4.0], [0.0, 0.0, 0.0, 4.0]),
    "non-negative": (NonNegative(), [0.0, 0.0, 2.0], [1.0, -2.0, -3.0], [0.0, -2.0, 0.0]),
    "simplex": (Simplex(), [0.5, 0.5, 0.0, 0.0], [1.0, 2.0, 3.0, -1.0], [2.0, 2.0, 2.0, -1.0]),
    "simplex-corner": (Simplex(), [1.0, 0.0, 0.0], [4.0, 1.0, 3.0], [4.0, 1.0, 3.0]),
    "two-four": (NM(), [1.0, 0.0, 2.0, 0.0], [3.0] * 4, [0.0, 3.0, 0.0, 3.0]),
    "two-four-spare": (NM(), [0.0, 0.0, 1.0, 0.0], [3.0] * 4, [0.0] * 4),
}


@pytest.mark.parametrize(("g", "x", "v", "nearest"), over(NEAREST))
def test_the_certificate_is_a_distance(g, x, v, nearest):
    distance_attained(g, np.array(x), np.array(v, dtype=float), np.array(nearest, dtype=float))


def test_half_a_distance_is_rejected():
    class HalfAsFar(L1):
        def subdiff_distance(self, x, v):
            return 0.5 * super().subdiff_distance(x, v)

    with rejected:
        distance_attained(HalfAsFar(1.0), np.zeros(1), np.array([3.0]), np.array([1.0]))


@pytest.mark.parametrize("lam", ["0.1", True, np.bool_(True), [0.1, "0.2"], ["0.1"], [True, False], np.array(["1"])])
@pytest.mark.parametrize("make", [L1, MCP, GroupLasso, LHalf], ids=lambda kind: kind.__name__)
def test_a_strength_is_a_number_and_no_text_or_truth(make, lam):
    with pytest.raises(ValueError, match=rf"^{make.__name__}: lam must be a finite number, 0 or above, not "):
        make(lam, *([3.0] if make is MCP else []))


def test_weights_may_be_a_mask():
    assert L1(0.5, weights=[True, False]) == L1(0.5, weights=[1.0, 0.0])

"""Penalties: each law on each instance, in every library; what each law rejects; and the peers' proximal maps."""

from __future__ import annotations

import re
import warnings
from itertools import pairwise, product

import numpy as np
import pytest
import torch

from laws import (
    agrees_with_numpy,
    certificate_law,
    distance_attained,
    firmly_non_expansive,
    gradient_is_autograds,
    gradient_is_the_slope,
    moreau,
    prox_law,
    prox_minimises,
    stays_on_device,
)
from nonsmooth import penalties
from nonsmooth.penalties import L1, ElasticNet, GroupLasso, Penalty, SquaredL2, shrink
from zoo import LIBRARIES, PENALTIES, over, points, steps

each = pytest.mark.parametrize(("g", "shape"), over(PENALTIES))
everywhere = pytest.mark.parametrize("library", over(LIBRARIES))
rejected = pytest.raises(AssertionError)


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


class InDouble(L1):
    def prox(self, x, t):
        return super().prox(np.asarray(x, dtype=float), t)


class OnTheProcessor(L1):
    def prox(self, x, t):
        return super().prox(x, t) * torch.ones(x.shape)


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


@each
def test_prox_is_firmly_non_expansive(g, shape):
    for (x, z), t in product(pairwise(points(shape)), steps(shape)):
        firmly_non_expansive(g, x, z, t)
        firmly_non_expansive(g, x, x + 1e-3 * z, t)


X, UNEQUAL = np.array([[3.0, -2.0], [0.5, 0.25]]), np.array([[0.5, 2.0], [1.0, 4.0]])


@pytest.mark.parametrize("law", [prox_law, prox_minimises])
@pytest.mark.parametrize(
    ("mutant", "t"),
    [
        (ForgetsTheStep(0.75), 0.5),
        (HardThreshold(0.75), 0.5),
        (SwappedOrder(0.75, 0.5), 0.5),
        (CoordinateByCoordinate(0.75), 0.5),
        (MeanStep(0.75), UNEQUAL),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Penalty) else "",
)
def test_a_wrong_prox_is_rejected(law, mutant, t):
    with rejected:
        law(mutant, X, t)


def test_the_mean_step_is_right_where_the_steps_are_equal():
    prox_law(MeanStep(0.75), X, 0.5 * np.ones_like(X))


def test_a_jump_is_not_non_expansive():
    with rejected:
        firmly_non_expansive(HardThreshold(1.0), np.array([1.0001]), np.array([0.9999]), 1.0)


def test_another_precision_is_rejected():
    with rejected:
        prox_law(InDouble(0.75), X.astype(np.float32), 0.5)
    with rejected:
        agrees_with_numpy(LIBRARIES["torch-32"], X, lambda x: InDouble(0.75).prox(x, 0.5))


def on_a_grid(g, x, t):
    """argmin g(p) + Σ(p − x)²/(2t) over two coordinates: the best of a grid, zoomed in on 24 times."""
    best, reach = x, 2 * abs(x).max()
    for _ in range(24):
        grid = (best + reach * np.array(offset) for offset in product(np.linspace(-1, 1, 9), repeat=2))
        best, reach = min(grid, key=lambda p: moreau(g, p, x, t)), 0.5 * reach
    return best


@pytest.mark.parametrize("t", [0.5, np.array([0.25, 1.0]), np.array([2.0, 0.125])], ids=["one", "rising", "falling"])
@pytest.mark.parametrize(
    "g",
    [
        L1(0.75),
        L1(1.0, weights=[0.5, 2.0]),
        SquaredL2(0.75),
        ElasticNet(0.75, 0.5),
        GroupLasso(0.75, groups=[0, 0]),
        GroupLasso(0.75, groups=[4, 4], scale_by_size=True),
    ],
    ids=repr,
)
def test_prox_is_the_best_of_a_grid(g, t):
    for x in np.array([[2.0, -1.0], [0.5, 0.125]]):
        np.testing.assert_allclose(g.prox(x, t), on_a_grid(g, x, t), atol=1e-6)


def test_prox_is_that_of_skglm(monkeypatch):
    """Its elastic net has λ = alpha l1_ratio and 2ρ = alpha (1 − l1_ratio)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peer's own imports
        skglm = pytest.importorskip("skglm.penalties")
    for module, name in ((skglm.separable, "ST"), (skglm.block_separable, "BST")):
        monkeypatch.setattr(module, name, getattr(module, name).py_func)  # its formula as it stands, not compiled
    x, t, w = np.array([2.0, -0.25, 0.5, -3.0, 0.0, 1.0]), 0.5, np.array([1.0, 0.5, 2.0, 4.0, 1.0, 0.25])
    peers = {
        L1(0.75): skglm.L1(0.75),
        L1(0.75, weights=w): skglm.WeightedL1(0.75, w),
        ElasticNet(0.25, 0.375): skglm.L1_plus_L2(1.0, l1_ratio=0.25),
    }
    for g, peer in peers.items():
        np.testing.assert_allclose(g.prox(x, t), [peer.prox_1d(v, t, j) for j, v in enumerate(x)], rtol=1e-15)
    rows = skglm.WeightedGroupL2(0.75, np.ones(2), np.array([0, 3, 6]), np.arange(6))
    expected = [rows.prox_1group(row, t, j) for j, row in enumerate(x.reshape(2, 3))]
    np.testing.assert_allclose(GroupLasso(0.75).prox(x.reshape(2, 3), t), expected, rtol=1e-15)


# ── value, gradient, certificate ────────────────────────────────────────────────────────────────────────────────────


@each
def test_value_and_gradient_are_autograds(g, shape):
    for x in points(shape):
        gradient_is_autograds(g, x)


@each
def test_gradient_is_the_slope(g, shape):
    for scale in (1.0, 1e3):
        gradient_is_the_slope(g, scale * np.random.default_rng(2).standard_normal(shape))


@pytest.mark.parametrize("mutant", [OneAtZero(0.75), HalfTheSlope(0.75)], ids=lambda g: type(g).__name__)
def test_a_wrong_gradient_is_rejected(mutant):
    with rejected:
        gradient_is_autograds(mutant, np.array([0.0, 1.0]))


def test_a_wrong_slope_is_rejected():
    with rejected:
        gradient_is_the_slope(HalfTheSlope(0.75), np.array([1.0]))


@each
def test_certificate(g, shape):
    for x in points(shape):
        for v in (g.grad(x), 0.5 * g.grad(x), 2 * g.grad(x) + 1.0, np.full(shape, 0.125), np.full(shape, -8.0)):
            certificate_law(g, x, v)


@pytest.mark.parametrize("mutant", [ForgetsTheKink(0.75), AlwaysContent(0.75)], ids=lambda g: type(g).__name__)
def test_a_wrong_certificate_is_rejected(mutant):
    with rejected:
        for v in (np.array([0.5, 0.75]), np.array([2.0, 0.75])):
            certificate_law(mutant, np.array([0.0, 1.0]), v)


NEAREST = {
    "l1": (L1(1.0), [0.0, 0.0, 2.0, -1.0], [0.5, -3.0, 0.0, -1.0], [0.5, -1.0, 1.0, -1.0]),
    "l2": (SquaredL2(1.0), [0.0, 2.0], [1.0, 3.0], [0.0, 4.0]),
    "elastic-net": (ElasticNet(1.0, 0.5), [0.0, 2.0], [1.5, 0.0], [1.0, 3.0]),
    "group": (GroupLasso(1.0), [[0.0, 0.0], [3.0, 4.0]], [[3.0, 4.0], [0.0, 0.0]], [[0.6, 0.8], [0.6, 0.8]]),
    "group-sized": (GroupLasso(1.0, groups=(0,) * 4, scale_by_size=True), [0.0] * 4, [2.0] * 4, [1.0] * 4),
}


@pytest.mark.parametrize(("g", "x", "v", "nearest"), over(NEAREST))
def test_the_certificate_is_a_distance(g, x, v, nearest):
    distance_attained(g, np.array(x), np.array(v), np.array(nearest))


def test_half_a_distance_is_rejected():
    class HalfAsFar(L1):
        def subdiff_distance(self, x, v):
            return 0.5 * super().subdiff_distance(x, v)

    with rejected:
        distance_attained(HalfAsFar(1.0), np.zeros(1), np.array([3.0]), np.array([1.0]))


# ── libraries and devices ───────────────────────────────────────────────────────────────────────────────────────────


@everywhere
@each
def test_the_same_in_every_library(g, shape, library):
    x = np.random.default_rng(3).integers(-8, 9, shape) / 4
    agrees_with_numpy(library, x, g.value, g.grad, lambda x: g.subdiff_distance(x, 0.5 - x))


@each
def test_everything_stays_on_the_device(g, shape):
    stays_on_device(g.value, shape)
    stays_on_device(g.grad, shape)
    stays_on_device(g.prox, shape, shape)
    stays_on_device(g.subdiff_distance, shape, shape)


def test_another_device_is_rejected():
    with pytest.raises(RuntimeError, match="meta"):
        stays_on_device(OnTheProcessor(1.0).prox, (3,), (3,))


def test_a_penalty_states_what_it_lacks():
    class Silent(Penalty):
        pass

    assert L1(1.0).has_grad
    assert not Silent().has_grad
    for call, message in {
        lambda: Silent().value(X): "Silent defines no value.",
        lambda: Silent().grad(X): "Silent has no gradient; use penalty_by='prox'.",
        lambda: Silent().prox(X, 1.0): "Silent has no proximal map; use penalty_by='autograd'.",
        lambda: Silent().subdiff_distance(X, X): "Silent defines no subdifferential distance.",
    }.items():
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call()


# ── groups ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dim", [0, 1])
def test_groups_are_those_of_ln_structured(dim):
    """λt between the k-th and the next norm kills exactly the k channels that torch's structured pruning masks."""
    from torch.nn.utils import prune

    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, kernel_size=2, dtype=torch.float64)
    weight = conv.weight.detach().clone()
    norms = np.unique(GroupLasso(1.0, dim).norms(weight).numpy().round(12))
    prune.ln_structured(conv, "weight", amount=2, n=2, dim=dim)
    kept = GroupLasso(float(norms[1:3].mean()), dim).prox(weight, 1.0) != 0
    assert torch.equal(kept, conv.weight_mask != 0)
    assert len(norms) == weight.shape[dim]


def test_labels_and_dimension_name_the_same_groups():
    x, t = np.random.default_rng(4).standard_normal((2, 4, 3)) ** 2
    by_dim, by_label = GroupLasso(0.75, dim=1), GroupLasso(0.75, groups=[9, -1, 4] * 4)
    assert by_label.groups == (2, 0, 1) * 4
    np.testing.assert_allclose(by_label.prox(x.ravel(), t.ravel()), by_dim.prox(x, t).ravel(), rtol=1e-14)
    np.testing.assert_allclose(by_label.value(x.ravel()), by_dim.value(x), rtol=1e-14)


def test_scale_by_size_is_a_larger_lam():
    x = np.array([[3.0, 4.0, 0.0, 12.0]])
    assert GroupLasso(0.5, scale_by_size=True).value(x) == GroupLasso(1.0).value(x) == 13.0
    np.testing.assert_array_equal(GroupLasso(0.5, scale_by_size=True).prox(x, 0.5), GroupLasso(1.0).prox(x, 0.5))


def test_zero_groups_stay_zero_and_lam_zero_changes_nothing():
    x, t = np.array([[0.0, 0.0], [3.0, -4.0]]), np.array([[1e-4, 1e4], [1.0, 1e4]])
    assert not GroupLasso(0.75).prox(x, t)[0].any()
    assert not GroupLasso(0.75).grad(x)[0].any()
    for step in (1.0, t):
        np.testing.assert_array_equal(GroupLasso(0.0).prox(x, step), x)
        np.testing.assert_array_equal(L1(0.0).prox(x, step), x)


def test_a_group_dies_exactly_where_the_formula_says():
    """The group is 0 exactly when ‖x/t‖ ≤ λ; with exact numbers the edge itself is exact."""
    x, t = np.array([[0.75, 2.0]]), np.array([[0.25, 0.5]])  # x/t = (3, 4)
    assert not GroupLasso(5.0).prox(x, t).any()
    assert GroupLasso(5.0 - 1e-9).prox(x, t).all()


def newton_residual():
    """The largest |‖x/(s + λt)‖ − 1|, s = ‖p‖, over live groups whose steps span eight decades, some barely alive."""
    rng, worst = np.random.default_rng(5), 0.0
    for m, spread in product((2, 3, 5, 20), (0, 4, 6)):
        t = 10 ** rng.uniform(-4, 4, (2000, m))
        t[:, :2] = 1e-4, 1e4
        x = rng.standard_normal(t.shape) * 10 ** rng.uniform(-spread, spread, t.shape)
        x *= (1 + 10 ** rng.uniform(-12, 8, (2000, 1))) / np.linalg.norm(x / t, axis=1, keepdims=True)
        s = np.linalg.norm(GroupLasso(1.0).prox(x, t), axis=1, keepdims=True)
        alive = np.linalg.norm(x / t, axis=1) > 1
        worst = max(worst, abs(np.linalg.norm(x / (s + t), axis=1) - 1)[alive].max())
    return worst


def test_newton_reaches_rounding(monkeypatch):
    assert newton_residual() < 1e-15
    monkeypatch.setattr(penalties, "NEWTON_STEPS", 8)
    assert newton_residual() > 1e-12


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────

FLAT = "GroupLasso: groups must be a flat list of integers, one label for each coordinate."
MESSAGES = {
    "negative-lam": (lambda: L1(-0.5), "L1: lam must be a finite number, 0 or above, not -0.5."),
    "one-negative-lam": (lambda: L1([1.0, -2.0]), "L1: lam must be a finite number, 0 or above, not -2."),
    "nan-lam": (lambda: SquaredL2(np.nan), "SquaredL2: lam must be a finite number, 0 or above, not nan."),
    "no-lam": (lambda: L1(None), "L1: lam must be a finite number, 0 or above, not None."),
    "word": (lambda: L1("large"), "L1: lam must be a finite number, 0 or above, not 'large'."),
    "empty": (lambda: ElasticNet([], 1.0), "ElasticNet: lam is empty; give at least one value."),
    "weights": (lambda: L1(1.0, [1, -1]), "L1: weights must be 0 or above; a negative weight has no minimiser."),
    "weights-of-a-row": (
        lambda: L1(1.0, [1.0, 2.0]).prox(X, 1.0),
        "L1: weights of shape (2,) do not fit a point of shape (2, 2).",
    ),
    "groups-of-floats": (lambda: GroupLasso(1.0, groups=[0.0, 1.0]), FLAT),
    "groups-of-bools": (lambda: GroupLasso(1.0, groups=[True, False]), FLAT),
    "groups-in-rows": (lambda: GroupLasso(1.0, groups=[[0], [1]]), FLAT),
    "no-groups": (lambda: GroupLasso(1.0, groups=[]), FLAT),
    "too-few-groups": (
        lambda: GroupLasso(1.0, groups=[0, 0, 1]).prox(np.ones(4), 1.0),
        "GroupLasso: 3 group labels do not fit a point of shape (4,).",
    ),
    "groups-of-a-matrix": (
        lambda: GroupLasso(1.0, groups=[0, 0, 1, 1]).value(np.ones((2, 2))),
        "GroupLasso: 4 group labels do not fit a point of shape (2, 2).",
    ),
    "dim": (lambda: GroupLasso(1.0, dim=2).value(X), "GroupLasso: a point of shape (2, 2) has no dimension 2."),
    "dim-below": (lambda: GroupLasso(1.0, dim=-3).grad(X), "GroupLasso: a point of shape (2, 2) has no dimension -3."),
}


@pytest.mark.parametrize(("make", "message"), over(MESSAGES))
def test_messages(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()

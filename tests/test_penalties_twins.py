"""Proximal maps against slow, obviously right twins, and against skglm's."""

from __future__ import annotations

import warnings
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
import scipy.optimize

from laws import moreau
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
    Simplex,
    SmoothedL1,
    SparseGroupLasso,
    SquaredL2,
    norms,
)
from zoo import over

# ── sums over coordinates: the best of a grid ───────────────────────────────────────────────────────────────────────

CURVES = {  # each penalty of one number u ≥ 0, in the paper's spelling
    SmoothedL1: lambda g, u: g.lam * (np.sqrt(u**2 + g.delta**2) - g.delta),
    L0: lambda g, u: g.lam * (u > 0),
    LHalf: lambda g, u: g.lam * u**0.5,
    MCP: lambda g, u: np.where(u <= g.gamma * g.lam, g.lam * u - u**2 / (2 * g.gamma), g.gamma * g.lam**2 / 2),
    SCAD: lambda g, u: np.select(
        [u <= g.lam, u <= g.a * g.lam],
        [g.lam * u, (2 * g.a * g.lam * u - u**2 - g.lam**2) / (2 * (g.a - 1))],
        g.lam**2 * (g.a + 1) / 2,
    ),
    Box: lambda g, u: np.where((u >= g.low) & (u <= g.high), 0.0, np.inf),
    NonNegative: lambda g, u: np.zeros_like(u),
}
SEPARABLE = {
    repr(g): g
    for g in (
        SmoothedL1(0.75, 0.5),
        L0(0.75),
        LHalf(0.75),
        MCP(0.75, 2.0),
        MCP(2.0, 0.25),
        SCAD(0.75, 2.5),
        SCAD(0.5),
        Box(0.5, 2.0),
        NonNegative(),
    )
}


@pytest.mark.parametrize("g", over(SEPARABLE))
def test_no_point_of_a_grid_is_better(g):
    """Steps from far below to far beyond γ = 2 and a − 1 = 1.5, a + 1 = 3.5; the value itself is the paper's too."""
    x = np.linspace(0.05, 6, 60)
    u = x[:, None] * np.linspace(0, 1, 4001)
    curve = CURVES[type(g)]
    for t in (0.05, 0.5, 1.25, 1.5, 2.0, 2.5, 3.5, 5.0, 20.0):
        p = g.prox(x, t)
        on_grid = np.min(curve(g, u) + (u - x[:, None]) ** 2 / (2 * t), axis=1)
        assert np.all(curve(g, p) + (p - x) ** 2 / (2 * t) <= on_grid * (1 + 1e-14))
        np.testing.assert_array_equal(p, g.prox(x, np.full_like(x, t)))
        if not isinstance(g, (Box, NonNegative)):
            np.testing.assert_array_equal(g.prox(-x, t), -p)
        np.testing.assert_allclose(g.value(p), np.sum(curve(g, p)), rtol=1e-14)


def test_unequal_steps_in_and_beyond_the_range_at_once():
    x, t = np.array([3.0, 3.0, 3.0, 3.0]), np.array([0.5, 1.999, 2.0, 8.0])
    for g in SEPARABLE.values():
        np.testing.assert_array_equal(g.prox(x, t), np.concatenate([g.prox(x[:1], float(s)) for s in t]))


def test_where_the_jumps_are():
    """Just below and just above: MCP beyond γ, SCAD between a − 1 and a + 1 and beyond, L0, the half norm."""
    for g, t, jump, below in (
        (MCP(1.0, 2.0), 8.0, 4.0, 0.0),
        (MCP(1.0, 2.0), 2.0, 2.0, 0.0),
        (SCAD(1.0, 3.0), 3.0, 3.5, 0.5),
        (SCAD(1.0, 3.0), 4.0, 4.0, 0.0),
        (SCAD(1.0, 3.0), 9.0, 6.0, 0.0),
        (L0(2.0), 1.0, 2.0, 0.0),
        (LHalf(1.0), 8.0, 6.0, 0.0),
    ):
        after = 4.0 if isinstance(g, LHalf) else jump
        np.testing.assert_allclose(g.prox(np.array([1 - 1e-12, 1 + 1e-12]) * jump, t), [below, after], atol=1e-9)
        level = [moreau(g, np.array([p]), np.array([jump]), t) for p in (below, after)]
        np.testing.assert_allclose(*level, rtol=1e-15)
        if not isinstance(g, LHalf):  # whose jump is no exact number
            assert g.prox(np.array([jump]), t) == below


def newton_residual():
    """The largest |(x − p)/t − g'(p)|/(|x|/t), tλ/δ up to 10¹⁰, x around tλ where the root is hardest to reach."""
    g, worst = SmoothedL1(1.0, delta=1.0), 0.0
    for t in 10.0 ** np.arange(-4, 11):
        x = t * (1 + np.concatenate([-np.logspace(-15, -0.01, 40), [0.0], np.logspace(-15, 3, 40)]))
        p = g.prox(x, t)
        worst = max(worst, np.max(abs((x - p) / t - g.grad(p)) / (x / t)))
    return worst


def test_newton_reaches_rounding(monkeypatch):
    assert newton_residual() < 1e-15
    monkeypatch.setattr(norms, "NEWTON_STEPS", 16)
    assert newton_residual() > 1e-12


# ── groups: the best of a grid in two dimensions, and a general solver ──────────────────────────────────────────────


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
        SparseGroupLasso(0.25, 0.5, groups=[0, 0]),
        SparseGroupLasso(0.25, 0.5, groups=[4, 4], scale_by_size=True),
        SparseGroupLasso(0.25, 0.5),
    ],
    ids=repr,
)
def test_prox_is_the_best_of_a_grid(g, t):
    for x in np.array([[2.0, -1.0], [0.5, 0.125]]):
        np.testing.assert_allclose(g.prox(x, t), on_a_grid(g, x, t), atol=1e-6)


@pytest.mark.parametrize("g", [GroupLasso(0.5), SparseGroupLasso(0.125, 0.5)], ids=repr)
def test_groups_are_as_good_as_a_general_solver_makes_them(g):
    """Powell's method, which needs no derivative, finds no better point, whether it starts at p or at x."""
    rng = np.random.default_rng(7)

    def objective(q, x, t):
        return moreau(g, q.reshape(x.shape), x, t)

    for _ in range(10):
        x, t = rng.standard_normal((2, 3)), 10 ** rng.uniform(-1, 1, (2, 3))
        p = g.prox(x, t)
        for start in (p, x):
            found = scipy.optimize.minimize(
                objective, start.ravel(), args=(x, t), method="Powell", options={"ftol": 1e-14}
            )
            assert moreau(g, p, x, t) <= found.fun + 1e-12


# ── constraints: every support, and exact arithmetic ────────────────────────────────────────────────────────────────


def nearest_sparse(x, t, n):
    """The best over every support of n entries, the first where several are level."""
    kept = min(combinations(range(len(x)), n), key=lambda s: sum(x[i] ** 2 / t[i] for i in range(len(x)) if i not in s))
    return np.where(np.isin(np.arange(len(x)), kept), x, 0.0)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 4), (4, 4), (3, 5)])
def test_nm_is_the_best_support(n, m):
    rng = np.random.default_rng(8)
    x, t = rng.standard_normal((6, 2, m)), 2.0 ** rng.integers(-6, 6, (6, 2, m))
    x[0], x[1, :, ::2], t[:2] = 1.0, 0.0, 1.0  # ties, zeros
    expected = np.array([[nearest_sparse(*pair, n) for pair in zip(*rows)] for rows in zip(x, t)])
    flat = [a.reshape(6, 2 * m) for a in (x, t, expected)]
    np.testing.assert_array_equal(NM(n, m).prox(*flat[:2]), flat[2])
    np.testing.assert_array_equal(NM(n, m, dim=0).prox(flat[0].T, flat[1].T), flat[2].T)
    assert NM(n, m).value(flat[2]) == 0.0
    assert NM(n, m).value(np.ones((1, m))) == (np.inf if n < m else 0.0)


def on_the_simplex(x, t, radius):
    """The projection in rational numbers, from the definition: the θ of each support, until one gives its support."""
    x, t = ([Fraction(float(v)) for v in a] for a in (x, t))
    for count in range(1, len(x) + 1):
        for support in combinations(range(len(x)), count):
            theta = (sum(x[i] for i in support) - Fraction(radius)) / sum(t[i] for i in support)
            p = [xi - ti * theta for xi, ti in zip(x, t)]
            if all((p[i] > 0) == (i in support) for i in range(len(x))):
                return np.array([float(max(v, Fraction(0))) for v in p])
    raise AssertionError("some support is right")


def test_simplex_is_the_exact_projection():
    rng = np.random.default_rng(9)
    for scale, spread, radius in product((1e-3, 1.0, 1e3), (0, 1, 4), (0.25, 3.0)):
        x, t = scale * rng.standard_normal(6), 10 ** rng.uniform(-spread, spread, 6)
        p = Simplex(radius).prox(x, t)
        assert np.all(abs(p - on_the_simplex(x, t, radius)) <= 1e-15 * (1 + spread) * (radius + abs(x)))
        assert Simplex(radius).value(p) == 0.0


@pytest.mark.parametrize("t", [1.0, np.array([1.0, 2.0, 0.5, 1.0])], ids=["one", "unequal"])
def test_far_from_the_simplex_the_projection_stays_on_it(t):
    """x is 10²⁰ times the radius, and what is left of x − tθ is all rounding."""
    for x in (np.array([1e20, 3.0, -1e20, 1e19]), np.array([1e20, 1e20, 1e20, 1e20])):
        assert Simplex().value(Simplex().prox(x, t)) == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_simplex_takes_its_own_rounding_and_no_more(dtype):
    x = np.full(1000, 1e-3, dtype=dtype)
    assert Simplex().value(x) == 0.0
    assert Simplex().value(x * dtype(1 + 1e4 * np.finfo(dtype).eps)) == np.inf
    assert Simplex().value(-x) == np.inf
    assert np.all(Simplex().subdiff_distance(-x, x) == np.inf)


def test_boxes_hold_what_lies_in_them():
    for g, inside, outside in (
        (Box(-1.0, 2.0), [-1.0, 0.0, 2.0], [-1.0, 0.0, 2.0 + 1e-15]),
        (Box(low=-1.0), [-1.0, 1e300], [-1.0 - 1e-15, 0.0]),
        (Box(high=2.0), [-1e300, 2.0], [0.0, 3.0]),
        (Box(), [-1e300, 1e300], None),
        (NonNegative(), [0.0, -0.0, 5e-324], [-5e-324, 1.0]),
    ):
        assert g.value(np.array(inside)) == 0.0
        assert not g.subdiff_distance(np.array(inside), np.zeros(len(inside))).any()
        if outside:
            assert g.value(np.array(outside)) == np.inf
            assert np.inf in g.subdiff_distance(np.array(outside), np.zeros(len(outside)))


def test_bounds_may_be_axes():
    xr = pytest.importorskip("xarray")
    low, high = xr.DataArray([0.0, 2.0], dims="k"), xr.DataArray([1.0, 3.0], dims="k")
    assert Box(low, high).high is not None  # paired: 0 with 1, 2 with 3
    with pytest.raises(ValueError, match="low = 3 is above high = 0"):
        Box(high, low)


# ── peers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def skglm(monkeypatch):
    """skglm's penalties with their formulas as they stand, not compiled."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the peer's own imports
        penalties = pytest.importorskip("skglm.penalties")
    inner = ("ST", "BST", "prox_MCP", "prox_SCAD", "value_SCAD", "value_MCP", "prox_05", "box_proj")
    for module, name in product((penalties.separable, penalties.block_separable, prox_funcs()), inner):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, getattr(getattr(module, name), "py_func", getattr(module, name)))
    return penalties


def prox_funcs():
    from skglm.utils import prox_funcs

    return prox_funcs


Z, WEIGHTS = np.array([2.0, -0.25, 0.5, -1.25, 0.0, 1.0]), np.array([1.0, 0.5, 2.0, 4.0, 1.0, 0.25])
PEERS = {  # its elastic net has λ = alpha l1_ratio and 2ρ = alpha (1 − l1_ratio)
    "l1": (L1(0.75), lambda s: s.L1(0.75)),
    "l1-weights": (L1(0.75, weights=WEIGHTS), lambda s: s.WeightedL1(0.75, WEIGHTS)),
    "elastic-net": (ElasticNet(0.25, 0.375), lambda s: s.L1_plus_L2(1.0, l1_ratio=0.25)),
    "mcp": (MCP(0.75, 2.0), lambda s: s.MCPenalty(0.75, 2.0)),
    "scad": (SCAD(0.75, 2.5), lambda s: s.SCAD(0.75, 2.5)),
    "l-half": (LHalf(0.75), lambda s: s.L0_5(0.75)),
    "box": (Box(0.0, 0.75), lambda s: s.IndicatorBox(0.75)),
    "non-negative": (NonNegative(), lambda s: s.PositiveConstraint()),
}


@pytest.mark.parametrize(("g", "peer"), over(PEERS))
def test_prox_is_that_of_skglm(g, peer, skglm):
    np.testing.assert_allclose(g.prox(Z, 0.5), [peer(skglm).prox_1d(v, 0.5, j) for j, v in enumerate(Z)], rtol=4e-15)


@pytest.mark.parametrize(("g", "peer"), over(PEERS))
def test_certificate_is_that_of_skglm(g, peer, skglm):
    """It takes minus the element."""
    p, v = g.prox(Z, 0.5), np.linspace(-1, 1, len(Z))
    theirs = peer(skglm).subdiff_distance(p, -v, np.arange(len(Z)))
    np.testing.assert_allclose(g.subdiff_distance(p, v), theirs, rtol=1e-14, atol=1e-15)


def test_groups_are_those_of_skglm(skglm):
    rows = skglm.WeightedGroupL2(0.75, np.ones(2), np.array([0, 3, 6]), np.arange(6))
    expected = [rows.prox_1group(row, 0.5, j) for j, row in enumerate(Z.reshape(2, 3))]
    np.testing.assert_allclose(GroupLasso(0.75).prox(Z.reshape(2, 3), 0.5), expected, rtol=1e-15)


def test_skglm_is_wrong_beyond_the_range(skglm):
    """Its MCP forgets that the prox jumps at √(γt)λ, not at tλ: the values say so."""
    g, x, t = MCP(1.0, 2.0), np.array([5.0]), 8.0
    theirs = np.array([skglm.MCPenalty(1.0, 2.0).prox_1d(5.0, t, 0)])
    assert moreau(g, g.prox(x, t), x, t) == 1.0
    assert moreau(g, theirs, x, t) == 25 / 16

"""Penalties in every library, precision and device; NaN, infinities and nothing at all; what wrong numbers are told."""

from __future__ import annotations

import re
from dataclasses import fields

import numpy as np
import pytest
import torch

from laws import agrees_with_numpy, apart, eps, prox_law, size, stays_on_device
from nonsmooth.penalties import (
    L0,
    L1,
    MCP,
    NM,
    SCAD,
    Box,
    ElasticNet,
    GroupLasso,
    Penalty,
    Simplex,
    SmoothedL1,
    SparseGroupLasso,
    SquaredL2,
)
from test_penalties import X, admitted, couples, each, everywhere, rejected, those
from zoo import LIBRARIES, PENALTIES, over


class InDouble(L1):
    def prox(self, x, t):
        return super().prox(np.asarray(x, dtype=float), t)


class OnTheProcessor(L1):
    def prox(self, x, t):
        return super().prox(x, t) * torch.ones(x.shape)


def test_another_precision_is_rejected():
    with rejected:
        prox_law(InDouble(0.75), X.astype(np.float32), 0.5)
    with rejected:
        agrees_with_numpy(LIBRARIES["torch-32"], X, lambda x: InDouble(0.75).prox(x, 0.5))


# ── libraries and devices ───────────────────────────────────────────────────────────────────────────────────────────


@everywhere
@each
def test_the_same_in_every_library(g, shape, library):
    x = np.random.default_rng(3).integers(-8, 9, shape) / 4
    unequal = np.random.default_rng(3).integers(1, 32, shape) / 8
    agrees_with_numpy(library, x, g.value, *([g.grad] if g.has_grad else []))
    agrees_with_numpy(library, admitted(g, x), g.value, lambda x: g.subdiff_distance(x, 0.5 - x))
    agrees_with_numpy(library, x, lambda x: g.prox(x, 0.5), lambda x: g.prox(x, 6.5))
    with library.running():
        by_coordinate = g.prox(library.array(x), library.array(unequal))
    assert apart(by_coordinate, g.prox(x, unequal)) <= eps(by_coordinate) * (1 + size(x))


@each
def test_jax_compiles_it_over_its_numbers_points_and_steps(g, shape):
    jax = pytest.importorskip("jax")
    names = [f.name for f in fields(g) if isinstance(getattr(g, f.name), float)]
    scales = np.array([0.5, 1.0])
    numbers = {name: scales * getattr(g, name) for name in names if name != "a"}
    x = np.random.default_rng(3).standard_normal((2, *shape))
    for method, other in {"prox": np.array([0.5, 6.5]), "subdiff_distance": x}.items():
        with jax.enable_x64(True):
            run = jax.jit(jax.vmap(lambda numbers, x, other: getattr(g.replaced(**numbers), method)(x, other)))  # noqa: B023
            got = run(numbers, x, other)
        for i in range(2):
            alone = g.replaced(**{name: float(v[i]) for name, v in numbers.items()})
            assert apart(got[i], getattr(alone, method)(x[i], other[i])) <= 1e-14


@each
def test_everything_stays_on_the_device(g, shape):
    stays_on_device(g.value, shape)
    stays_on_device(g.prox, shape, shape)
    stays_on_device(g.subdiff_distance, shape, shape)
    if g.has_grad:
        stays_on_device(g.grad, shape)


def test_another_device_is_rejected():
    with pytest.raises(RuntimeError, match="meta"):
        stays_on_device(OnTheProcessor(1.0).prox, (3,), (3,))


# ── numbers that are none ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("library", over({name: LIBRARIES[name] for name in ("numpy-64", "torch-32", "jax-32")}))
@each
def test_nan_comes_out(g, shape, library):
    x = np.random.default_rng(3).standard_normal(shape)
    x.flat[1] = np.nan
    with library.running():
        given = library.array(x)
        for t in (0.5, library.array(np.full(shape, 6.5))):
            assert np.isnan(np.asarray(g.prox(given, t)).flat[1])
        assert np.isnan(float(g.value(given)))
        assert np.asarray(g.subdiff_distance(given, library.array(np.ones(shape)))).flat[1] != 0


@each
def test_infinities_pass(g, shape):
    x = np.ones(shape)
    x.flat[:2] = np.inf, -np.inf
    with np.errstate(invalid="ignore"):  # ∞ − ∞ and ∞/∞ where coordinates are coupled
        for t in (0.5, np.full(shape, 6.5)):
            assert g.prox(x, t).shape == shape
            assert np.isfinite(g.prox(x, t)[-1]).all() or couples(g) or isinstance(g, NM)
        assert np.shape(g.value(x)) == ()


@everywhere
@those(lambda g: getattr(g, "groups", None) is None and getattr(g, "weights", None) is None)
def test_nothing_in_nothing_out(g, shape, library):
    with library.running():
        x = library.array(np.zeros((0, *shape[1:])))
        for y in (g.prox(x, 0.5), g.prox(x, x), g.subdiff_distance(x, x), *([g.grad(x)] if g.has_grad else [])):
            assert tuple(y.shape) == (0, *shape[1:])
        assert float(g.value(x)) == (np.inf if isinstance(g, Simplex) else 0.0)  # no numbers sum to the radius


def test_a_penalty_states_what_it_lacks():
    class Silent(Penalty):
        pass

    assert {name for name, (g, _) in PENALTIES.items() if not g.has_grad} == {
        "l0", "box", "box-above", "box-below", "box-point", "non-negative", "simplex", "simplex-matrix",
        "two-four", "one-two",
    }  # fmt: skip
    for call, message in {
        lambda: Silent().value(X): "Silent defines no value.",
        lambda: Silent().grad(X): "Silent has no gradient; use penalty_by='prox'.",
        lambda: L0(1.0).grad(X): "L0 has no gradient; use penalty_by='prox'.",
        lambda: Silent().prox(X, 1.0): "Silent has no proximal map; use penalty_by='autograd'.",
        lambda: Silent().subdiff_distance(X, X): "Silent defines no subdifferential distance.",
    }.items():
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call()


# ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────────

FLAT = "GroupLasso: groups must be a flat list of integers, one label for each coordinate."
ABOVE = "must be a finite number above 0, not"
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
    "sparse-groups": (lambda: SparseGroupLasso(1.0, 1.0, groups=[0.5]), f"Sparse{FLAT}"),
    "sparse-groups-of-a-matrix": (
        lambda: SparseGroupLasso(1.0, 1.0, groups=[0, 0, 1, 1]).prox(np.ones((2, 2)), 1.0),
        "SparseGroupLasso: 4 group labels do not fit a point of shape (2, 2).",
    ),
    "group-lam": (
        lambda: SparseGroupLasso(1.0, -1.0),
        "SparseGroupLasso: group_lam must be a finite number, 0 or above, not -1.",
    ),
    "delta": (lambda: SmoothedL1(1.0, 0.0), f"SmoothedL1: delta {ABOVE} 0."),
    "gamma": (lambda: MCP(1.0, 0.0), f"MCP: gamma {ABOVE} 0."),
    "mcp-lam": (lambda: MCP(-1.0, 2.0), "MCP: lam must be a finite number, 0 or above, not -1."),
    "a": (lambda: SCAD(1.0, 2.0), "SCAD: a must be a finite number above 2, not 2."),
    "one-a": (lambda: SCAD(1.0, [3.0, 1.5]), "SCAD: a must be a finite number above 2, not 1.5."),
    "l0-lam": (lambda: L0(np.inf), "L0: lam must be a finite number, 0 or above, not inf."),
    "low-above-high": (lambda: Box(2, 1), "Box: low = 2 is above high = 1; no point lies between them."),
    "some-low-above": (
        lambda: Box([0.0, 2.0], [1.0, 3.0]),
        "Box: low = 2 is above high = 1; no point lies between them.",
    ),
    "infinite-bound": (lambda: Box(high=np.inf), "Box: high must be a finite number, not inf."),
    "radius": (lambda: Simplex(0.0), f"Simplex: radius {ABOVE} 0."),
    "n-above-m": (lambda: NM(5, 4), "NM: n must be a whole number from 1 to m = 4, not 5."),
    "no-n": (lambda: NM(0), "NM: n must be a whole number from 1 to m = 4, not 0."),
    "half-an-n": (lambda: NM(1.5), "NM: n must be a whole number from 1 to m = 4, not 1.5."),
    "no-m": (lambda: NM(1, 0), "NM: m must be a whole number above 0, not 0."),
    "m-of-six": (
        lambda: NM().prox(np.ones((2, 6)), 1.0),
        "NM: m = 4 does not divide the 6 entries of dimension -1.",
    ),
    "nm-dim": (lambda: NM(dim=2).value(X), "NM: a point of shape (2, 2) has no dimension 2."),
}


@pytest.mark.parametrize(("make", "message"), over(MESSAGES))
def test_messages(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()

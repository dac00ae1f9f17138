"""What must hold of every penalty, objective and record: one function a law, which fails by AssertionError.

Tolerances scale with the numbers and the precision: `ROUNDINGS` of them, of the largest number involved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields
from itertools import product
from typing import Any

import numpy as np
import torch
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Hyperparameters
from nonsmooth.objectives import (
    Absolute,
    Hinge,
    Huber,
    LeastSquares,
    LogCosh,
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
)
from nonsmooth.objectives.finite_sum import QuadraticForm
from nonsmooth.penalties import (
    L1,
    MCP,
    SCAD,
    ElasticNet,
    GroupLasso,
    LHalf,
    Penalty,
    Simplex,
    SmoothedL1,
    SparseGroupLasso,
    SquaredL2,
)
from nonsmooth.penalties.constraints import Constraint
from zoo import Library

ROUNDINGS = 16


def eps(x: Any) -> float:
    return ROUNDINGS * float(array_namespace(x).finfo(x.dtype).eps)


def size(x: Any) -> float:
    return float(np.max(np.abs(np.asarray(x)), initial=0.0))


def apart(a: Any, b: Any) -> float:
    """The largest difference; NaN and infinities must stand in the same places of both."""
    a, b = np.asarray(a), np.asarray(b)
    finite = np.isfinite(a) & np.isfinite(b)
    np.testing.assert_array_equal(a[~finite], b[~finite])
    return size(a[finite] - b[finite])


def moreau(g: Penalty, p: np.ndarray, x: np.ndarray, t: Any) -> float:
    """g(p) + Σ(p − x)²/(2t)."""
    return float(g.value(p) + np.sum((p - x) ** 2 / (2 * t)))


# ── penalties ───────────────────────────────────────────────────────────────────────────────────────────────────────


def prox_law(g: Penalty, x: Any, t: Any) -> None:
    """p = prox(x, t) satisfies (x − p)/t ∈ ∂g(p), to rounding of |x|/t; library, precision and shape are x's.

    For convex g nothing else does. The θ of a simplex carries the rounding of every coordinate to every other.
    """
    xp = array_namespace(x)
    p = g.prox(x, t)
    v = (x - p) / t
    gap = g.subdiff_distance(p, v)
    assert p.dtype == gap.dtype == x.dtype
    assert p.shape == gap.shape == x.shape
    scale = xp.abs(x) / t
    scale = xp.max(scale) if isinstance(g, Simplex) else scale
    assert bool(xp.all(gap <= eps(x) * (scale + xp.max(xp.abs(v)))))


def prox_minimises(g: Penalty, x: np.ndarray, t: Any) -> None:
    """F(q) ≥ F(p) for every q, F = g + Σ(· − x)²/(2t).

    For convex g the objective is 1-strongly convex in the metric 1/t: F(q) ≥ F(p) + Σ(q − p)²/(2t).
    """
    rng = np.random.default_rng(0)
    p = g.prox(x, t)
    best = moreau(g, p, x, t)
    assert np.isfinite(best)
    near = [p + s * np.sqrt(t) * rng.standard_normal(x.shape) for s in (1e-4, 1e-2, 1.0) for _ in range(20)]
    for q in (x, np.zeros_like(x), 0.5 * p, *near, *(g.prox(z, 1.0) for z in near), *elsewhere(g, x, p)):
        low, high = best + (np.sum((q - p) ** 2 / (2 * t)) if g.convex else 0.0), moreau(g, q, x, t)
        assert low <= high + eps(x) * abs(high)


def elsewhere(g: Penalty, x: np.ndarray, p: np.ndarray) -> Iterator[np.ndarray]:
    """Far from p, where another valley may be: one coordinate between 0 and x; x on the support of some point."""
    for i, s in product(np.ndindex(x.shape), np.linspace(0, 1, 11)):
        q = p.copy()
        q[i] = s * x[i]
        yield q
    for z in np.random.default_rng(0).standard_normal((20, *x.shape)):
        yield np.where(g.prox(z, 1.0) == 0, 0.0, x)


def at_rest(g: Penalty, x: np.ndarray, t: Any) -> None:
    """At t = 0 the prox is x where g is finite; off its set, of which x/t says nothing, it is that of equal steps."""
    expected = g.prox(x, 1.0) if isinstance(g, Constraint) else x
    assert apart(g.prox(x, t), expected) <= eps(x) * size(x)


def firmly_non_expansive(g: Penalty, x: np.ndarray, z: np.ndarray, t: Any) -> None:
    """‖p − q‖² ≤ ⟨p − q, x − z⟩ in the metric 1/t, for p = prox(x), q = prox(z)."""
    p, q = g.prox(x, t), g.prox(z, t)
    d, e = p - q, x - z
    rounding = eps(x) * (abs(x) + abs(z) + abs(p) + abs(q))
    assert np.sum(d * d / t) <= np.sum(d * e / t) + np.sum(rounding * (abs(d) + abs(e)) / t)


def certificate_law(g: Penalty, x: np.ndarray, v: np.ndarray) -> None:
    """The distance from v to ∂g(x) is 0 exactly when g(z) ≥ g(x) + ⟨v, z − x⟩ for all z, when prox(x + v, 1) = x."""
    inside = size(g.subdiff_distance(x, v)) <= eps(x) * (size(x) + size(v))
    assert inside == (size(g.prox(x + v, 1.0) - x) <= eps(x) * (size(x) + size(v)))
    rng = np.random.default_rng(0)
    tries = [*(x + s * rng.standard_normal(x.shape) for s in (1e-3, 1.0, 1e3) for _ in range(20)), g.prox(x + v, 1.0)]
    slack = min(
        g.value(z) - g.value(x) - np.sum(v * (z - x)) + eps(x) * (g.value(z) + size(v) * np.sum(abs(z))) for z in tries
    )
    assert inside == bool(slack >= 0)


def certificate_is_the_descent(g: Penalty, x: np.ndarray, v: np.ndarray, h: float = 2.0**-20) -> None:
    """In each coordinate the distance from v to ∂g(x) is how fast g − ⟨v, ·⟩ falls along ±e_i, 0 where it rises.

    This is what Fréchet's subdifferential of a sum over coordinates is, and it is to h.
    """
    falls = np.zeros(x.shape)
    for i, sign in product(np.ndindex(x.shape), (1, -1)):
        z = x.copy()
        z[i] += sign * h
        falls[i] = max(falls[i], sign * v[i] - (g.value(z) - g.value(x)) / h)
    assert apart(g.subdiff_distance(x, v), falls) <= 1e-5 * (1 + size(v))


def distance_attained(g: Penalty, x: np.ndarray, v: np.ndarray, nearest: np.ndarray) -> None:
    """`nearest` lies in ∂g(x), and is as far from v, coordinate by coordinate, as the certificate says."""
    assert size(g.subdiff_distance(x, nearest)) <= eps(x) * size(v)
    np.testing.assert_allclose(g.subdiff_distance(x, v), abs(v - nearest), rtol=eps(x), atol=eps(x))


# ── gradients ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _norms(g: GroupLasso | SparseGroupLasso, x: torch.Tensor) -> torch.Tensor:
    if g.groups is None:
        rows = x.movedim(g.dim, 0).reshape(x.shape[g.dim], -1)
    else:
        rows = [x[torch.tensor(g.groups) == label] for label in sorted(set(g.groups))]
    return sum(torch.linalg.vector_norm(row) * (len(row) ** 0.5 if g.scale_by_size else 1.0) for row in rows)


def _mcp(u: torch.Tensor, lam: float, gamma: float) -> torch.Tensor:
    return torch.where(u <= gamma * lam, lam * u - u**2 / (2 * gamma), gamma * lam**2 / 2)


def _scad(u: torch.Tensor, lam: float, a: float) -> torch.Tensor:
    bent = (2 * a * lam * u - u**2 - lam**2) / (2 * (a - 1))
    return torch.where(u <= lam, lam * u, torch.where(u <= a * lam, bent, lam**2 * (a + 1) / 2))


def _margins(f: Any, w: torch.Tensor) -> torch.Tensor:
    return torch.tensor(f.y) * (torch.tensor(f.X) @ w)


ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "softplus": torch.nn.functional.softplus}


def _two_layers(f: TwoLayer, x: torch.Tensor) -> torch.Tensor:
    W, a = x[: -f.hidden].reshape(f.hidden, -1), x[-f.hidden :]
    return ACTIVATIONS[f.activation](torch.tensor(f.X) @ W.T) @ a


def _spred(f: Spred, x: torch.Tensor) -> torch.Tensor:
    u, v = x.reshape(2, -1)
    return TORCH[type(f.objective)](f.objective, u * v)


def _pinball(f: Quantile, r: torch.Tensor) -> torch.Tensor:
    return torch.maximum(f.tau * r, (f.tau - 1) * r).mean()


def _max(f: Any, scores: torch.Tensor) -> torch.Tensor:
    return scores.max(0).values if f.ties == "first" else scores.amax()


TORCH = {  # every value once more, in the spelling whose derivative `grad` promises
    L1: lambda g, x: g.lam * (x if g.weights is None else torch.tensor(g.weights) * x).abs().sum(),
    SquaredL2: lambda g, x: g.lam * (x**2).sum(),
    ElasticNet: lambda g, x: g.lam * x.abs().sum() + g.ridge * (x**2).sum(),
    SmoothedL1: lambda g, x: g.lam * (torch.sqrt(x**2 + g.delta**2) - g.delta).sum(),
    GroupLasso: lambda g, x: g.lam * _norms(g, x),
    SparseGroupLasso: lambda g, x: g.lam * x.abs().sum() + g.group_lam * _norms(g, x),
    MCP: lambda g, x: _mcp(x.abs(), g.lam, g.gamma).sum(),
    SCAD: lambda g, x: _scad(x.abs(), g.lam, g.a).sum(),
    LHalf: lambda g, x: g.lam * x.abs().sqrt().sum(),
    Absolute: lambda f, x: torch.abs(x).sum(),
    Huber: lambda f, x: torch.nn.functional.huber_loss(x, torch.zeros_like(x), reduction="sum", delta=f.delta),
    PseudoHuber: lambda f, x: (f.delta**2 * (torch.sqrt(1 + (x / f.delta) ** 2) - 1)).sum(),
    LogCosh: lambda f, x: (torch.logaddexp(x, -x) - np.log(2)).sum(),
    Quadratic: lambda f, x: 0.5 * (torch.tensor(f.spectrum) * x**2).sum(),
    QuadraticForm: lambda f, x: 0.5 * x @ torch.tensor(f.A) @ x - torch.tensor(f.b) @ x + torch.tensor(f.c),
    LeastSquares: lambda f, w: torch.nn.functional.mse_loss(torch.tensor(f.X) @ w, torch.tensor(f.y)),
    Logistic: lambda f, w: torch.nn.functional.soft_margin_loss(torch.tensor(f.X) @ w, torch.tensor(f.y)),
    Hinge: lambda f, w: torch.relu(1 - _margins(f, w)).mean(),
    Quantile: lambda f, w: _pinball(f, torch.tensor(f.y) - torch.tensor(f.X) @ w),
    ReLURegression: lambda f, w: torch.nn.functional.mse_loss(torch.relu(torch.tensor(f.X) @ w), torch.tensor(f.y)),
    TwoLayer: lambda f, x: torch.nn.functional.mse_loss(_two_layers(f, x), torch.tensor(f.y)),
    Spred: _spred,
    MaxLinear: lambda f, x: _max(f, torch.tensor(f.A) @ x + torch.tensor(f.b)),
    MaxQuadratic: lambda f, x: f.gamma * _max(f, x[: f.k]) + f.mu / 2 * (x**2).sum(),
}


def gradient_is_autograds(f: Any, x: np.ndarray) -> None:
    """value and grad are those of torch's autograd through the same function, at kinks and ties too."""
    point = torch.tensor(x, requires_grad=True)
    twin = next(TORCH[base] for base in type(f).__mro__ if base in TORCH)(f, point)
    (expected,) = torch.autograd.grad(twin, point)
    assert abs(f.value(x) - twin.item()) <= eps(x) * (1 + abs(twin.item()))
    assert f.grad(x).shape == x.shape
    assert apart(f.grad(x), expected.numpy()) <= eps(x) * (1 + size(expected.nan_to_num()))


def gradient_is_the_slope(f: Any, x: np.ndarray) -> None:
    """⟨grad, d⟩ = (f(x + hd) − f(x − hd))/2h to h², away from kinks."""
    h = 1e-5 * max(1.0, size(x))
    for d in np.random.default_rng(0).standard_normal((5, *x.shape)):
        slope = (f.value(x + h * d) - f.value(x - h * d)) / (2 * h)
        assert abs(np.sum(f.grad(x) * d) - slope) <= 1e-7 * (1 + size(f.grad(x)) + abs(slope))


def bend(f: Objective, x: np.ndarray, h: float = 2.0**-20) -> float:
    """f'(x; d) + f'(x; −d), the largest over some directions d: 0 where f is differentiable."""
    directions = np.random.default_rng(0).standard_normal((20, *x.shape))
    return max(abs(f.value(x + h * d) + f.value(x - h * d) - 2 * f.value(x)) / h for d in directions)


def kinks_law(f: Objective, x: np.ndarray) -> None:
    """kinks(x) has a 0 exactly where the one-sided derivatives of f along some line differ; a C¹ f has none."""
    kinks = f.kinks(x)
    assert kinks.ndim == 1
    assert bool(np.any(kinks == 0)) == (bend(f, x) > 1e-2)
    assert kinks.size == 0 or np.isinf(f.constants.L)


# ── constants and minima ────────────────────────────────────────────────────────────────────────────────────────────


def ratios(f: Objective, x: np.ndarray, z: np.ndarray) -> dict[str, float]:
    """What L bounds, what G bounds, and what mu bounds from below, for one pair of points."""
    e, d = x - z, f.grad(x) - f.grad(z)
    length = np.linalg.norm(e)
    return {
        "L": np.linalg.norm(d) / length,
        "G": abs(f.value(x) - f.value(z)) / length,
        "mu": np.sum(d * e) / length**2,
    }


def constants_hold(f: Objective, x: np.ndarray, z: np.ndarray) -> None:
    """‖∇f(x) − ∇f(z)‖ ≤ L‖x − z‖, |f(x) − f(z)| ≤ G‖x − z‖, ⟨∇f(x) − ∇f(z), x − z⟩ ≥ mu‖x − z‖²."""
    ratio, known, slack = ratios(f, x, z), f.constants, 1e-9
    assert ratio["L"] <= known.L * (1 + slack) + slack
    assert ratio["G"] <= known.G * (1 + slack) + slack
    assert ratio["mu"] >= known.mu - slack * (1 + abs(known.mu))


def constant_attained(f: Objective, name: str, x: Any, z: Any) -> None:
    """No better constant is valid: this pair's ratio is the constant, or above a million where that is infinite."""
    known, ratio = getattr(f.constants, name), ratios(f, np.asarray(x), np.asarray(z))[name]
    assert ratio >= 1e6 if np.isinf(known) else abs(ratio - known) <= 1e-6 * abs(known) + 1e-9


def minimum_law(f: Objective) -> None:
    """f(x) ≥ f* + (mu/2)‖x − x*‖², f* = f(x*); mu counts where f is convex (mu ≥ 0), which a minimiser needs here."""
    best, low, mu = f.minimiser, f.minimum, f.constants.mu
    assert low == float(f.value(best))
    rng = np.random.default_rng(0)
    for scale in (1e-4, 1e-2, 1.0, 1e2):
        for d in scale * rng.standard_normal((50, *f.shape)):
            assert f.value(best + d) >= low + 0.5 * mu * np.sum(d * d) - 1e-12 * (1 + f.value(best + d))


# ── libraries ───────────────────────────────────────────────────────────────────────────────────────────────────────


def agrees_with_numpy(library: Library, x: np.ndarray, *methods: Any) -> None:
    """Methods of a point give in any library and precision what NumPy gives in double, and in its own type."""
    with library.running():
        given = library.array(x)
        for method, got in zip(methods, library.compiled(lambda x: [m(x) for m in methods])(given)):
            expected = np.asarray(method(x))
            assert array_namespace(got) is array_namespace(given)
            assert got.dtype == given.dtype
            assert tuple(got.shape) == expected.shape
            scale = 1 + size(x) + size(np.nan_to_num(expected, posinf=0))
            assert apart(got, expected) <= ROUNDINGS * eps(got) * scale


def stays_on_device(method: Any, *shapes: tuple[int, ...]) -> None:
    """A method answers on the device of its argument: torch's "meta" device holds no data, and refuses to mix."""
    assert method(*(torch.empty(shape, device="meta") for shape in shapes)).device.type == "meta"


# ── records ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def frozen(record: Hyperparameters) -> None:
    """No field can be set, and no array in one written to."""
    for f in fields(record):
        value = getattr(record, f.name)
        assert not (isinstance(value, np.ndarray) and value.flags.writeable)
        try:
            setattr(record, f.name, value)
        except FrozenInstanceError:
            continue
        raise AssertionError(f"{f.name} can be set")


def same_content_same_record(a: Hyperparameters, b: Hyperparameters) -> None:
    """Records of equal content are equal, hash alike and print alike."""
    assert a == b
    assert hash(a) == hash(b)
    assert repr(a) == repr(b)


def different_content_different_record(a: Hyperparameters, b: Hyperparameters) -> None:
    """Records that differ anywhere are not equal, and two keys of a dictionary."""
    assert a != b
    assert len({a, b}) == 2


def keeps_its_own(make: Any, given: np.ndarray) -> None:
    """A record made from an array does not change when that array does."""
    record, twin = make(given), make(given.copy())
    before = hash(record)
    given += 1
    assert record == twin
    assert hash(record) == before

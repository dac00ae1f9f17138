"""The nuclear norm: the laws of every penalty under one step for all, independent twins, and torch's optimisers."""

from __future__ import annotations

import re
from itertools import pairwise, product

import numpy as np
import pytest
import scipy.optimize
import torch

import laws
from laws import (
    agrees_with_numpy,
    certificate_law,
    distance_attained,
    eps,
    firmly_non_expansive,
    frozen,
    gradient_is_autograds,
    gradient_is_the_slope,
    moreau,
    prox_minimises,
    same_content_same_record,
    size,
    stays_on_device,
)
from nonsmooth.penalties import GroupLasso, NuclearNorm, shrink
from nonsmooth.torch import Proximal, prox_residual, register_effective_step
from nonsmooth.torch.effective import TABLES
from zoo import LIBRARIES, ONE_STEP, over, points

each = pytest.mark.parametrize(("g", "shape"), over(ONE_STEP))
everywhere = pytest.mark.parametrize("library", over(LIBRARIES))
rejected = pytest.raises(AssertionError)
STEPS = (1e-3, 0.5, 20.0)
UNEQUAL = (
    "NuclearNorm: the nuclear norm has no proximal map under unequal steps; "
    "use an optimiser with one step for all, such as torch.optim.SGD."
)


def prox_law(g, x, t):
    """(x − p)/t ∈ ∂g(p) for p = prox(x, t), to the rounding of an SVD, which is that of max(m, n) σ₁.

    What is left of p has singular vectors that are known to its condition.
    """
    p = g.prox(x, t)
    gap = g.subdiff_distance(p, (x - p) / t)
    assert p.dtype == gap.dtype == x.dtype
    assert p.shape == gap.shape == x.shape
    left = np.linalg.svd(np.asarray(p), compute_uv=False)
    left = left[left > np.finfo(left.dtype).eps * max(p.shape) * left[0]]
    condition = left[0] / left[-1] if left.size else 1.0
    largest = np.linalg.norm(np.asarray(x), 2)
    assert size(gap) <= eps(x) * max(p.shape) * (largest / t + g.lam * condition)


# ── mutants ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class ForgetsTheStep(NuclearNorm):
    def prox(self, x, t):
        return super().prox(x, 1.0)


class HardThreshold(NuclearNorm):
    def prox(self, x, t):
        U, s, Vh = np.linalg.svd(x, full_matrices=False)
        return (U * np.where(s > t * self.lam, s, 0.0)) @ Vh


class EntryByEntry(NuclearNorm):
    def prox(self, x, t):
        return shrink(x, t * self.lam)


class ForgetsTheKink(NuclearNorm):
    def subdiff_distance(self, x, v):
        return abs(v - self.grad(x))


class ForgetsTheRows(NuclearNorm):
    """Asks UᵀW = 0 of W, and not WV = 0."""

    def subdiff_distance(self, x, v):
        U = np.linalg.svd(x, full_matrices=False)[0][:, : np.linalg.matrix_rank(x)]
        beyond = v - U @ (U.T @ v)
        return abs(v - beyond - self.lam * U @ U.T @ np.sign(x)) + abs(self.prox(beyond, 1.0))


class LeavesTheKernelOut(NuclearNorm):
    """λ U_r V_rᵀ: the least element, which autograd does not return."""

    def grad(self, x):
        U, s, Vh = np.linalg.svd(x, full_matrices=False)
        return self.lam * (U * (s > 1e-9)) @ Vh


# ── the laws ────────────────────────────────────────────────────────────────────────────────────────────────────────


@everywhere
@each
def test_prox_law(g, shape, library):
    with library.running():
        chosen = [*points(shape)] if library.name == "numpy" else [*points(shape)][1::3]
        for x, t in product(chosen, STEPS):
            prox_law(g, library.array(x), t)


@each
def test_prox_minimises(g, shape):
    for x, t in product(points(shape), STEPS[1:]):  # values are compared to their last digits: no |x|²/t of 10⁹
        prox_minimises(g, x, t)


@each
def test_prox_is_firmly_non_expansive(g, shape):
    for (x, z), t in product(pairwise(points(shape)), STEPS):
        firmly_non_expansive(g, x, z, t)
        firmly_non_expansive(g, x, x + 1e-3 * z, t)


X = np.array([[3.0, -2.0, 0.5], [0.5, 0.25, 1.0]])


@pytest.mark.parametrize("law", [prox_law, prox_minimises])
@pytest.mark.parametrize("mutant", [ForgetsTheStep, HardThreshold, EntryByEntry])
def test_a_wrong_prox_is_rejected(law, mutant):
    law(NuclearNorm(0.75), X, 0.5)
    with rejected:
        law(mutant(0.75), X, 0.5)


def test_a_jump_is_not_non_expansive():
    with rejected:
        firmly_non_expansive(HardThreshold(1.0), 1.0001 * np.eye(2), 0.9999 * np.eye(2), 1.0)


@each
def test_certificate(g, shape):
    for x in [*points(shape)][:-1]:
        slope = g.grad(x)
        assert size(g.subdiff_distance(x, slope)) <= eps(x) * (1 + g.lam)  # at kinks too
        for v in (slope, 0.5 * slope, 2 * slope + 1.0, np.full(shape, 0.125), np.full(shape, -8.0)):
            certificate_law(g, x, v)


@pytest.mark.parametrize("mutant", [ForgetsTheKink, ForgetsTheRows])
def test_a_wrong_certificate_is_rejected(mutant):
    x, inside = np.diag([2.0, 0.0]), np.array([[1.0, 0.0], [0.0, 0.25]])
    askew = np.array([[1.0, 0.0], [0.5, 0.25]])  # W V_r is not 0
    for v in (inside, askew):
        certificate_law(NuclearNorm(1.0), x, v)
    with rejected:
        for v in (inside, askew):
            certificate_law(mutant(1.0), x, v)


NEAREST = {
    "rank-one": ([[2.0, 0.0], [0.0, 0.0]], [[5.0, 1.0], [2.0, 3.0]], [[1.0, 0.0], [0.0, 1.0]]),
    "inside": ([[2.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, -0.5]], [[1.0, 0.0], [0.0, -0.5]]),
    "zero": ([[0.0, 0.0], [0.0, 0.0]], [[0.0, 3.0], [0.25, 0.0]], [[0.0, 1.0], [0.25, 0.0]]),
    "full": ([[0.0, 3.0], [-4.0, 0.0]], [[7.0, 0.0], [0.0, 7.0]], [[0.0, 1.0], [-1.0, 0.0]]),
    "wide": ([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[0.0, 1.0, 0.0], [0.0, 0.0, 4.0]], [[1, 0, 0], [0, 0, 1]]),
}


@pytest.mark.parametrize(("x", "v", "nearest"), over(NEAREST))
@pytest.mark.parametrize("turned", [False, True], ids=["as-is", "transposed"])
def test_the_certificate_is_a_distance(x, v, nearest, turned):
    distance_attained(
        NuclearNorm(1.0), *(np.array(a, dtype=float).T if turned else np.array(a, float) for a in (x, v, nearest))
    )


# ── value and gradient ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def autograd(monkeypatch):
    monkeypatch.setitem(laws.TORCH, NuclearNorm, lambda g, x: g.lam * torch.linalg.matrix_norm(x, "nuc"))


@each
def test_value_and_gradient_are_autograds(g, shape, autograd):
    rng = np.random.default_rng(2)
    for x in (np.zeros(shape), np.eye(*shape), *(scale * rng.standard_normal(shape) for scale in (1.0, 1e3))):
        gradient_is_autograds(g, x)
        gradient_is_the_slope(g, x + 3 * np.eye(*shape))


@each
def test_at_every_kink_the_gradient_is_autograds_in_its_own_library(g, shape):
    for x in points(shape):
        point = torch.tensor(x, requires_grad=True)
        (expected,) = torch.autograd.grad(g.lam * torch.linalg.matrix_norm(point, "nuc"), point)
        assert (
            torch.equal(g.grad(torch.tensor(x)), expected) or (g.grad(torch.tensor(x)) - expected).abs().max() < 1e-13
        )


def test_a_wrong_selection_is_rejected(autograd):
    gradient_is_autograds(NuclearNorm(0.75), np.diag([2.0, 0.0]))
    with rejected:
        gradient_is_autograds(LeavesTheKernelOut(0.75), np.diag([2.0, 0.0]))


# ── twins that know no singular value decomposition ─────────────────────────────────────────────────────────────────


def by_eigenvalues(x, threshold):
    """x V max(1 − tλ/√μ, 0) Vᵀ over the eigenpairs (μ, V) of xᵀx."""
    mu, V = np.linalg.eigh(x.T @ x)
    sigma = np.sqrt(np.maximum(mu, 0.0))
    kept = np.where(sigma > threshold, 1 - threshold / np.maximum(sigma, 1e-300), 0.0)
    return x @ (V * kept) @ V.T


def in_the_spectral_ball(x, radius):
    """The nearest point of ‖·‖₂ ≤ radius: x times the smaller of 1 and radius·(xᵀx)^(−½), as a function of xᵀx."""
    mu, V = np.linalg.eigh(x.T @ x)
    return x @ (V * np.minimum(1.0, radius / np.sqrt(np.maximum(mu, 1e-300)))) @ V.T


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 6), (6, 1)])
def test_prox_is_that_of_the_eigenvalues_and_moreaus_identity(shape):
    """x = prox_{tg}(x) + the projection onto the ball of radius tλ of the dual norm."""
    rng = np.random.default_rng(5)
    for t in (0.25, 1.0, 3.0):
        x = rng.standard_normal(shape)
        p = NuclearNorm(0.75).prox(x, t)
        np.testing.assert_allclose(p, by_eigenvalues(x, 0.75 * t), atol=1e-13)
        np.testing.assert_allclose(x - p, in_the_spectral_ball(x, 0.75 * t), atol=1e-13)


def test_value_is_the_trace_of_a_root():
    x = np.random.default_rng(6).standard_normal((4, 3))
    mu = np.linalg.eigvalsh(x.T @ x)
    np.testing.assert_allclose(NuclearNorm(2.0).value(x), 2 * np.sqrt(mu).sum(), rtol=1e-13)


def test_no_general_solver_finds_better():
    rng = np.random.default_rng(7)
    for shape in ((2, 2), (2, 3)):
        x = rng.standard_normal(shape)
        p = NuclearNorm(0.5).prox(x, 0.75)
        for start in (p, x):
            found = scipy.optimize.minimize(
                lambda q: moreau(NuclearNorm(0.5), q.reshape(x.shape), x, 0.75),  # noqa: B023
                start.ravel(),
                method="Powell",
                options={"ftol": 1e-14},
            )
            assert moreau(NuclearNorm(0.5), p, x, 0.75) <= found.fun + 1e-12


def test_on_one_column_it_is_the_group_lasso():
    x = np.array([[3.0], [4.0]])
    np.testing.assert_allclose(NuclearNorm(1.0).prox(x, 2.0), GroupLasso(1.0, dim=1).prox(x, 2.0), rtol=1e-15)
    assert NuclearNorm(1.0).value(x) == 5.0


def test_exact_cases():
    g = NuclearNorm(1.0)
    assert not g.prox(np.zeros((3, 2)), 1.0).any()
    np.testing.assert_array_equal(NuclearNorm(0.0).prox(X, 0.5), X)
    assert not g.prox(np.outer([1.0, 2.0], [2.0, 0.0, 1.0]), 6.0).any()  # σ = 5, exactly 0 from tλ = 5 on
    one = np.outer([0.6, 0.8], [0.0, 1.0, 0.0])
    np.testing.assert_allclose(g.prox(5 * one, 2.0), 3 * one, atol=1e-15)
    np.testing.assert_allclose(
        g.prox(np.array([[0.0, -3.0], [0.5, 0.0]]), np.array(1.0)), [[0, -2], [0, 0]], atol=1e-15
    )


# ── libraries, precisions, devices ──────────────────────────────────────────────────────────────────────────────────


@everywhere
@each
def test_the_same_in_every_library(g, shape, library):
    x = np.random.default_rng(3).integers(-8, 9, shape) / 4 + 2 * np.eye(*shape)  # of full rank, where grad is unique
    agrees_with_numpy(library, x, g.value, g.grad, lambda x: g.subdiff_distance(x, 0.5 - x))
    agrees_with_numpy(library, x, lambda x: g.prox(x, 0.5), lambda x: g.prox(x, 6.5))


@each
def test_jax_compiles_it_over_its_numbers_points_and_steps(g, shape):
    jax = pytest.importorskip("jax")
    x = np.random.default_rng(3).standard_normal((2, *shape))
    x[1, :, 0] = 0.0
    lam = np.array([0.5, 1.0]) * g.lam
    for method, other in {"prox": np.array([0.5, 6.5]), "subdiff_distance": x}.items():
        with jax.enable_x64(True):
            run = jax.jit(jax.vmap(lambda lam, x, other: getattr(g.replaced(lam=lam), method)(x, other)))  # noqa: B023
            got = np.asarray(run(lam, x, other))
        for i in range(2):
            alone = getattr(g.replaced(lam=float(lam[i])), method)(x[i], other[i])
            np.testing.assert_allclose(got[i], alone, atol=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["torch", "jax.numpy"])
def test_half_precision_is_worked_on_in_float32(name, dtype):
    xp = pytest.importorskip(name)
    x = xp.asarray([[3.0, 0.0], [0.0, -0.5]], dtype=getattr(xp, dtype))
    g = NuclearNorm(1.0)
    for got, expected in {
        g.prox: [[2.0, 0.0], [0.0, 0.0]],
        g.subdiff_distance: [[0.0, 0.0], [0.0, 0.0]],
    }.items():
        y = got(x, 1.0 if got == g.prox else g.grad(x))
        assert y.dtype == x.dtype
        assert y.tolist() == expected
    assert g.value(x).dtype == x.dtype
    assert float(g.value(x)) == 3.5
    assert g.grad(x).tolist() == [[1.0, 0.0], [0.0, -1.0]]


def test_numpys_half_too():
    assert NuclearNorm(1.0).prox(np.diag([3.0, 0.5]).astype(np.float16), 1.0).dtype == np.float16


@each
def test_everything_stays_on_the_device(g, shape):
    stays_on_device(g.value, shape)
    stays_on_device(g.grad, shape)
    stays_on_device(lambda x: g.prox(x, 0.5), shape)
    stays_on_device(g.subdiff_distance, shape, shape)


@everywhere
@each
def test_what_is_not_finite(g, shape, library):
    for wrong in (np.nan, np.inf):
        x = np.random.default_rng(3).standard_normal(shape)
        x.flat[1] = wrong
        with library.running():
            given = library.array(x)
            for y in (
                *([g.prox(given, 0.5)] if g.lam else []),
                g.grad(given),
                g.subdiff_distance(given, library.array(np.ones(shape))),
            ):
                assert np.isnan(np.asarray(y)).all()
            if g.lam == 0:
                np.testing.assert_array_equal(np.asarray(g.prox(given, 0.5)), np.asarray(given))
            else:
                np.testing.assert_array_equal(float(g.value(given)), wrong)


@everywhere
def test_nothing_in_nothing_out(library):
    with library.running():
        for shape in ((0, 3), (3, 0)):
            x = library.array(np.zeros(shape))
            for y in (NuclearNorm(1.0).prox(x, 0.5), NuclearNorm(1.0).grad(x), NuclearNorm(1.0).subdiff_distance(x, x)):
                assert tuple(y.shape) == shape
            assert float(NuclearNorm(1.0).value(x)) == 0.0


# ── refusals and records ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("t", [np.ones((2, 3)), np.full((2, 3), 0.5), np.array([0.5]), [0.5, 1.0], torch.ones(2, 3)])
def test_unequal_steps_are_refused(t):
    """Those that are an array, even if all of its numbers are one: whether they are cannot be asked under jit."""
    x = torch.tensor(X) if isinstance(t, torch.Tensor) else X
    with pytest.raises(TypeError, match=f"^{re.escape(UNEQUAL)}$"):
        NuclearNorm(1.0).prox(x, t)


@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 1), (4, 3, 2, 2)])
def test_only_a_matrix_has_singular_values(shape):
    x, g = np.ones(shape), NuclearNorm(1.0)
    message = f"NuclearNorm: a point of shape {shape} is no matrix; give exactly two dimensions."
    for call in (g.value, g.grad, lambda x: g.prox(x, 1.0), lambda x: g.subdiff_distance(x, x)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(x)


def test_it_is_a_record():
    frozen(NuclearNorm(0.5))
    same_content_same_record(NuclearNorm(0.5), NuclearNorm(np.float64(0.5)))
    with pytest.raises(ValueError, match=r"^NuclearNorm: lam must be a finite number, 0 or above, not -1\.$"):
        NuclearNorm(-1.0)


# ── torch's optimisers ──────────────────────────────────────────────────────────────────────────────────────────────


def noisy():
    """A matrix of rank 2 with noise, and the solution of ½‖W − Y‖² + ½‖W‖_*."""
    rng = np.random.default_rng(8)
    Y = rng.standard_normal((6, 2)) @ rng.standard_normal((2, 5)) + 0.05 * rng.standard_normal((6, 5))
    return torch.tensor(Y), by_eigenvalues(Y, 0.5)


def denoised(make, steps=400):
    Y, _ = noisy()
    W = torch.nn.Parameter(torch.zeros_like(Y))
    optimizer = Proximal(make([W]), NuclearNorm(0.5))
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (W - Y).square().sum()).backward()
        optimizer.step()
    return W, Y, optimizer


SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "dampened": {"momentum": 0.5, "dampening": 0.5},
}


@pytest.mark.parametrize("how", over(SGD))
def test_sgd_ends_at_the_closed_form(how):
    W, Y, optimizer = denoised(lambda params: torch.optim.SGD(params, lr=0.1, **how))
    np.testing.assert_allclose(W.detach().numpy(), noisy()[1], atol=1e-7)
    assert np.linalg.matrix_rank(W.detach().numpy()) == 2 < np.linalg.matrix_rank(Y.numpy())
    assert prox_residual(optimizer, lambda: 0.5 * (W - Y).square().sum()).value < 1e-6


def test_asgd_has_one_step_for_all_too():
    W, _, _ = denoised(lambda params: torch.optim.ASGD(params, lr=0.1, lambd=0.0, alpha=0.0))
    np.testing.assert_allclose(W.detach().numpy(), noisy()[1], atol=1e-7)


COORDINATEWISE = ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "RMSprop", "Adadelta"]


def refusal(kind):
    return (
        f"^Proximal: NuclearNorm needs one step for all coordinates, and {kind} has one for each; "
        r"use torch\.optim\.SGD\.$"
    )


@pytest.mark.parametrize("kind", COORDINATEWISE)
def test_a_step_for_each_coordinate_is_refused_at_once(kind):
    W = torch.nn.Parameter(torch.ones(3, 2))
    inner = getattr(torch.optim, kind)([W])
    with pytest.raises(TypeError, match=refusal(kind)):
        Proximal(inner, NuclearNorm(0.5))
    assert "proximal" not in inner.param_groups[0]


def test_a_group_that_comes_later_is_refused_too():
    W = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = Proximal(torch.optim.Adam([W]), GroupLasso(0.5))
    with pytest.raises(TypeError, match=refusal("Adam")):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 2))]}, NuclearNorm(0.5))


def test_a_state_that_names_it_is_refused_too():
    W, V = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3, 2))
    state = Proximal(torch.optim.SGD([V], lr=0.1), NuclearNorm(0.5)).state_dict()
    optimizer = Proximal(torch.optim.Adam([W]), GroupLasso(0.5))
    with pytest.raises(TypeError, match=refusal("Adam")):
        optimizer.load_state_dict(state)
    assert [g for _, g, _ in optimizer.penalised()] == [GroupLasso(0.5)]


def test_a_registered_optimiser_may_have_one_step_for_all(monkeypatch):
    class Halved(torch.optim.SGD):
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                p.data -= 0.5 * self.param_groups[0]["lr"] * p.grad

    register_effective_step(Halved, lambda optimizer, group, p: 0.5 * group["lr"])
    try:
        W, _, _ = denoised(lambda params: Halved(params, lr=0.2))
        np.testing.assert_allclose(W.detach().numpy(), noisy()[1], atol=1e-7)
        register_effective_step(Halved, lambda optimizer, group, p: torch.ones_like(p))
        with pytest.raises(TypeError, match=f"^{re.escape(UNEQUAL)}$"):
            denoised(lambda params: Halved(params, lr=0.2), steps=1)
    finally:
        TABLES.pop(Halved)


def test_a_vector_or_a_kernel_is_refused():
    for shape in ((3,), (4, 3, 2, 2)):
        with pytest.raises(ValueError, match="is no matrix; give exactly two dimensions"):
            Proximal(torch.optim.SGD([torch.nn.Parameter(torch.ones(shape))], lr=0.1), NuclearNorm(0.5))


def test_half_precision_and_lam_are_proximals_as_ever():
    W = torch.nn.Parameter(torch.diag(torch.tensor([3.0, 0.5])).to(torch.bfloat16))
    optimizer = Proximal(torch.optim.SGD([W], lr=0.5), NuclearNorm(1.0))
    optimizer.set_lam(2.0)
    W.grad = torch.zeros_like(W)
    optimizer.step()
    assert W.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    assert optimizer.penalty_value() == 4.0

"""Rules: equal to torch.optim away from kinks and through them, and with a prox at their effective step, right."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR

from nonsmooth.objectives import (
    Absolute,
    Hinge,
    LeastSquares,
    Logistic,
    MaxLinear,
    Objective,
    Quadratic,
    random_least_squares,
)
from nonsmooth.penalties import L1
from nonsmooth.rules import (
    FISTA,
    Adagrad,
    Adam,
    AdamW,
    Averaging,
    Constant,
    Cosine,
    Gradient,
    HeavyBall,
    InverseSqrt,
    InverseTime,
    Nesterov,
    Polyak,
    RMSProp,
    Rule,
    StepDecay,
)
from zoo import LIBRARIES, over

rejected = pytest.raises(AssertionError)
optim = torch.optim


def effective(rule: Rule, state: Any) -> Any:
    return rule.effective_step(state)


def learning_rate(rule: Any, state: Any) -> Any:
    """The mutant of it that many packages ship."""
    return rule.lr


def iterates(
    rule: Rule, f: Objective, x: Any, steps: int, penalty: L1 | None = None, tau: Callable[..., Any] = effective
) -> Iterator[Any]:
    """The answers x₁ … x_T of a rule, with a proximal step at τ where there is a penalty."""
    z, state = x, rule.init(x)
    for t in range(1, steps + 1):
        now = rule.at(t)
        x, state = now.step(z, f.grad(z), state, *([f.value(z)] if now.needs_value else []))
        if penalty is not None:
            x = penalty.prox(x, tau(now, state))
        z, state = now.finish(z, x, state)
        yield now.iterate(z, state)


def last(*run: Any) -> Any:
    *_, x = iterates(*run)
    return x


# ── torch.optim, away from kinks ────────────────────────────────────────────────────────────────────────────────────


def sgd(**options: Any) -> Callable[[Any], Any]:
    return lambda p: optim.SGD(p, **options)


def scheduled(optimiser: Callable[[Any], Any], schedule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def make(p: Any) -> Any:
        made = optimiser(p)
        return made, schedule(made)

    return make


TORCH: dict[str, tuple[Rule, Callable[[Any], Any]]] = {
    "sgd": (Gradient(0.1), sgd(lr=0.1)),
    "momentum": (HeavyBall(0.05, 0.9), sgd(lr=0.05, momentum=0.9)),
    "momentum-zero": (HeavyBall(0.1, 0.0), sgd(lr=0.1, momentum=0.0)),
    "dampened": (HeavyBall(0.1, 0.8, 0.5), sgd(lr=0.1, momentum=0.8, dampening=0.5)),
    "ema": (HeavyBall(0.1, 0.9, 0.9), sgd(lr=0.1, momentum=0.9, dampening=0.9)),
    "nesterov": (Nesterov(0.05, 0.9), sgd(lr=0.05, momentum=0.9, nesterov=True)),
    "nesterov-half": (Nesterov(0.1, 0.5), sgd(lr=0.1, momentum=0.5, nesterov=True)),
    "adagrad": (Adagrad(0.1), lambda p: optim.Adagrad(p, lr=0.1)),
    "adagrad-options": (
        Adagrad(0.3, lr_decay=0.02, initial=0.5, eps=1e-3),
        lambda p: optim.Adagrad(p, lr=0.3, lr_decay=0.02, initial_accumulator_value=0.5, eps=1e-3),
    ),
    "rmsprop": (RMSProp(0.01), lambda p: optim.RMSprop(p, lr=0.01)),
    "rmsprop-options": (
        RMSProp(0.005, alpha=0.9, eps=1e-3, momentum=0.5),
        lambda p: optim.RMSprop(p, lr=0.005, alpha=0.9, eps=1e-3, momentum=0.5),
    ),
    "rmsprop-centered": (
        RMSProp(0.01, eps=1e-2, centered=True),
        lambda p: optim.RMSprop(p, lr=0.01, eps=1e-2, centered=True),
    ),
    "rmsprop-all": (
        RMSProp(0.01, alpha=0.95, eps=1e-2, momentum=0.9, centered=True),
        lambda p: optim.RMSprop(p, lr=0.01, alpha=0.95, eps=1e-2, momentum=0.9, centered=True),
    ),
    "adam": (Adam(0.02), lambda p: optim.Adam(p, lr=0.02)),
    "adam-options": (
        Adam(0.05, 0.5, 0.9, eps=1e-3),
        lambda p: optim.Adam(p, lr=0.05, betas=(0.5, 0.9), eps=1e-3),
    ),
    "amsgrad": (Adam(0.05, beta2=0.8, amsgrad=True), lambda p: optim.Adam(p, 0.05, (0.9, 0.8), amsgrad=True)),
    "adamw": (AdamW(0.02), lambda p: optim.AdamW(p, lr=0.02)),
    "adamw-options": (
        AdamW(0.02, 0.8, 0.9, eps=1e-4, amsgrad=True, weight_decay=0.3),
        lambda p: optim.AdamW(p, lr=0.02, betas=(0.8, 0.9), eps=1e-4, amsgrad=True, weight_decay=0.3),
    ),
    "constant": (HeavyBall(Constant(0.05)), sgd(lr=0.05, momentum=0.9)),
    "inverse-sqrt": (
        Gradient(InverseSqrt(0.3)),
        scheduled(sgd(lr=0.3), lambda o: LambdaLR(o, lambda t: 1 / math.sqrt(t + 1))),
    ),
    "inverse-time": (
        HeavyBall(InverseTime(0.3)),
        scheduled(sgd(lr=0.3, momentum=0.9), lambda o: LambdaLR(o, lambda t: 1 / (t + 1))),
    ),
    "cosine": (
        Nesterov(Cosine(0.1, steps=200, floor=0.01)),
        scheduled(sgd(lr=0.1, momentum=0.9, nesterov=True), lambda o: CosineAnnealingLR(o, 200, eta_min=0.01)),
    ),
    "step-decay": (
        RMSProp(StepDecay(0.02, every=30, gamma=0.5)),
        scheduled(lambda p: optim.RMSprop(p, lr=0.02), lambda o: StepLR(o, 30, gamma=0.5)),
    ),
    "adam-scheduled": (
        Adam(InverseSqrt(0.1)),
        scheduled(lambda p: optim.Adam(p, lr=0.1), lambda o: LambdaLR(o, lambda t: 1 / math.sqrt(t + 1))),
    ),
    "adamw-scheduled": (
        AdamW(Cosine(0.05, steps=200), weight_decay=0.1),
        scheduled(lambda p: optim.AdamW(p, lr=0.05, weight_decay=0.1), lambda o: CosineAnnealingLR(o, 200)),
    ),
}

DATA = random_least_squares(30, 5, seed=3)
SMOOTH = {"quadratic": Quadratic([0.1, 0.5, 1.0, 2.0, 4.0]), "logistic": Logistic(DATA.X, np.sign(DATA.y))}
START = np.array([1.5, -2.0, 0.7, 1.0, -0.4])


def torch_iterates(make: Callable[[Any], Any], x: Any, steps: int, grad: Callable[[Any], Any]) -> Iterator[np.ndarray]:
    p = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    made = make([p])
    optimiser, schedule = made if isinstance(made, tuple) else (made, None)
    for _ in range(steps):
        p.grad = grad(p)
        optimiser.step()
        if schedule is not None:
            schedule.step()
        yield p.detach().numpy().copy()


def difference(rule: Rule, make: Callable[[Any], Any], f: Objective, steps: int = 200) -> float:
    ours = np.stack(list(iterates(rule, f, START, steps)))
    theirs = np.stack(list(torch_iterates(make, START, steps, lambda p: f.grad(p.detach()))))
    return float(np.max(np.abs(ours - theirs)))


@pytest.mark.parametrize("f", over(SMOOTH))
@pytest.mark.parametrize(("rule", "make"), over(TORCH))
def test_equals_torch(rule, make, f):
    assert difference(rule, make, f) < 1e-12


@pytest.mark.parametrize(
    ("rule", "twin"),
    [
        (HeavyBall(0.1, 0.9, 0.9), "dampened"),
        (HeavyBall(0.05, 0.9), "nesterov"),
        (RMSProp(0.005, 0.9, 1e-3 + 1e-9, 0.5), "rmsprop-options"),
        (Adam(0.05, beta2=0.8), "amsgrad"),
        (Adam(0.02), "adamw"),
        (Gradient(InverseTime(0.3)), "inverse-sqrt"),
    ],
)
def test_a_rule_that_is_not_torchs_is_told_apart(rule, twin):
    assert difference(rule, TORCH[twin][1], SMOOTH["quadratic"]) > 1e-10


@pytest.mark.parametrize("library", over({k: v for k, v in LIBRARIES.items() if k.endswith("64")}))
@pytest.mark.parametrize("rule", over({k: v[0] for k, v in TORCH.items()} | {"fista": FISTA(0.2), "polyak": Polyak(0)}))
def test_runs_alike_in_every_library(rule, library):
    f = SMOOTH["quadratic"]
    with library.running():
        for ours, theirs in zip(iterates(rule, f, START, 12), iterates(rule, f, library.array(START), 12)):
            np.testing.assert_allclose(np.asarray(theirs), ours, rtol=0, atol=1e-13)
            assert np.asarray(theirs).dtype == np.float64


# ── torch.optim, through kinks ──────────────────────────────────────────────────────────────────────────────────────

A, B = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [0.0, -2.0]]), np.array([0.0, 0.0, 0.5, 0.0])
X, Y = np.array([[1.0, 0.5], [-0.5, 1.0], [2.0, -1.0], [0.25, 0.5]]), np.array([1.0, -1.0, 1.0, -1.0])

KINKED: dict[str, tuple[Objective, Callable[[Any], Any], list[float]]] = {
    "absolute": (Absolute(dim=6), lambda x: x.abs().sum(), [0.375, 0.5, 1.25, -2.0, 0.0, -0.25]),
    "max-first": (
        MaxLinear(A, B, "first"),
        lambda x: (torch.tensor(A) @ x + torch.tensor(B)).max(0).values,
        [1.0, 1.0],
    ),
    "max-shared": (MaxLinear(A, B, "average"), lambda x: (torch.tensor(A) @ x + torch.tensor(B)).amax(), [1.0, 1.0]),
    "hinge": (
        Hinge(X, Y),
        lambda w: torch.relu(1 - torch.tensor(Y) * (torch.tensor(X) @ w)).mean(),
        [1.0, 0.0],
    ),
}
DYADIC: dict[str, tuple[Rule, Callable[[Any], Any]]] = {
    "sgd": (Gradient(0.25), sgd(lr=0.25)),
    "heavy-ball": (HeavyBall(0.25, 0.5), sgd(lr=0.25, momentum=0.5)),
    "dampened": (HeavyBall(0.25, 0.5, 0.5), sgd(lr=0.25, momentum=0.5, dampening=0.5)),
    "nesterov": (Nesterov(0.25, 0.5), sgd(lr=0.25, momentum=0.5, nesterov=True)),
}


@pytest.mark.parametrize(("f", "spelled", "start"), over(KINKED))
@pytest.mark.parametrize(("rule", "make"), over(DYADIC))
def test_equals_torch_through_kinks_bit_for_bit(rule, make, f, spelled, start):
    ours = list(iterates(rule, f, np.array(start), 40))
    theirs = list(torch_iterates(make, start, 40, lambda p: torch.autograd.grad(spelled(p), p)[0]))
    np.testing.assert_array_equal(ours, theirs)
    assert any(np.any(np.asarray(f.kinks(x)) == 0) for x in (np.array(start), *ours))


def test_another_selection_at_a_tie_is_another_run():
    first, shared = (KINKED[k] for k in ("max-first", "max-shared"))
    runs = [last(Gradient(0.25), f, np.array(start), 40) for f, _, start in (first, shared)]
    assert np.abs(runs[0] - runs[1]).max() > 0.1


# ── the effective step ──────────────────────────────────────────────────────────────────────────────────────────────

G = np.array([0.5, -2.0, 3.0])


@dataclass(frozen=True)
class Slope(Objective):
    """f(x) = Σ Gᵢxᵢ: the same gradient everywhere."""

    @property
    def shape(self):
        return G.shape

    def grad(self, x):
        return G


EFFECTIVE: dict[str, tuple[Rule, Any]] = {
    "gradient": (Gradient(0.1), 0.1),
    "heavy-ball": (HeavyBall(0.1, 0.9), 0.1 / (1 - 0.9)),
    "dampened": (HeavyBall(0.1, 0.9, 0.5), 0.1 * (1 - 0.5) / (1 - 0.9)),
    "nesterov": (Nesterov(0.1, 0.9), 0.1 / (1 - 0.9)),
    "rmsprop": (RMSProp(0.1, 0.9, eps=0.5), 0.1 / (abs(G) + 0.5)),
    "adam": (Adam(0.1, eps=0.5), 0.1 / (abs(G) + 0.5)),
    "amsgrad": (Adam(0.1, eps=0.5, amsgrad=True), 0.1 / (abs(G) + 0.5)),
    "adamw": (AdamW(0.1, eps=0.5, weight_decay=0.0), 0.1 / (abs(G) + 0.5)),
    "adagrad": (Adagrad(0.1, 0.5, 2.0, eps=0.5), 0.1 / (1 + 599 * 0.5) / (np.sqrt(2 + 600 * G**2) + 0.5)),
    "fista": (FISTA(0.1), 0.1),
    "averaging": (Averaging(HeavyBall(0.1, 0.5)), 0.2),
}


def response_law(rule: Rule, tau: Any, steps: int = 600) -> None:
    """Under a constant gradient each step is −τ g, from the first on, and τ ends at its steady value."""
    x, state = np.zeros_like(G), rule.init(np.zeros_like(G))
    for _ in range(steps):
        moved, state = rule.step(x, G, state)
        np.testing.assert_allclose(moved - x, -rule.effective_step(state) * G, rtol=1e-9)
        x = moved
    np.testing.assert_allclose(rule.effective_step(state), tau, rtol=1e-12)


class SteadyFromTheStart(HeavyBall):
    def effective_step(self, state):
        return self.lr / (1 - self.beta)


class ForgetsItsMomentum(Nesterov):
    def effective_step(self, state):
        return self.lr


class ForgetsTheCorrection(Adam):
    def effective_step(self, state):
        return self.lr / (np.sqrt(state[2]) + self.eps)


class ForgetsTheDecay(Adagrad):
    def effective_step(self, state):
        return self.lr / (np.sqrt(state[0]) + self.eps)


@pytest.mark.parametrize(("rule", "tau"), over({k: v for k, v in EFFECTIVE.items() if k != "fista"}))
def test_effective_step_is_the_response_to_a_constant_gradient(rule, tau):
    response_law(rule, tau)


@pytest.mark.parametrize(
    ("mutant", "tau"),
    [
        (SteadyFromTheStart(0.1, 0.9), 0.1 / (1 - 0.9)),
        (ForgetsItsMomentum(0.1, 0.9), 0.1),
        (ForgetsTheCorrection(0.1, eps=0.5), EFFECTIVE["adam"][1]),
        (ForgetsTheDecay(0.1, 0.5, 2.0, eps=0.5), EFFECTIVE["adagrad"][1]),
    ],
)
def test_response_law_rejects(mutant, tau):
    with rejected:
        response_law(mutant, tau)


def test_rmsprop_effective_step_scales_its_momentums_response():
    rule = RMSProp(0.1, 0.9, eps=0.5, momentum=0.75)
    x, state = np.zeros_like(G), rule.init(G)
    for t in range(1, 600):
        x, state = rule.step(x, G, state)
        scale = abs(G) * math.sqrt(1 - 0.9**t) + 0.5
        np.testing.assert_allclose(rule.effective_step(state), 0.1 * (1 - 0.75**t) / 0.25 / scale, rtol=1e-9)
    np.testing.assert_allclose(rule.effective_step(state), 0.1 / ((abs(G) + 0.5) * 0.25), rtol=1e-9)


def test_centered_rmsprop_divides_by_the_spread():
    gradients = np.random.default_rng(0).standard_normal((50, 3))
    rule, x = RMSProp(0.1, 0.9, centered=True), np.zeros(3)
    state, v, mean = rule.init(x), np.zeros(3), np.zeros(3)
    for g in gradients:
        x, state = rule.step(x, g, state)
        v, mean = 0.9 * v + 0.1 * g**2, 0.9 * mean + 0.1 * g
    np.testing.assert_allclose(rule.effective_step(state), 0.1 / (np.sqrt(v - mean**2) + 1e-8), rtol=1e-9)


# ── proximal fixed points ───────────────────────────────────────────────────────────────────────────────────────────

TARGET = np.array([3.0, -1.0, 0.2])
BOWL = LeastSquares(math.sqrt(1.5) * np.eye(3), math.sqrt(1.5) * TARGET)
"""½‖x − TARGET‖², whose minimum with λ‖x‖₁ is TARGET shrunk by λ."""

PROXIMAL: dict[str, Rule] = {
    "gradient": Gradient(0.1),
    "gradient-scheduled": Gradient(Cosine(0.2, steps=3000)),
    "heavy-ball": HeavyBall(0.02, 0.9),
    "dampened": HeavyBall(0.02, 0.9, 0.5),
    "nesterov": Nesterov(0.02, 0.9),
    "rmsprop": RMSProp(0.01, 0.9),
    "rmsprop-momentum": RMSProp(0.01, 0.9, momentum=0.5),
    "adam": Adam(0.01),
    "amsgrad": Adam(0.02, beta2=0.99, amsgrad=True),
    "adagrad": Adagrad(0.5),
    "adagrad-decay": Adagrad(1.0, lr_decay=1e-4),
    "fista": FISTA(0.5),
    "averaging": Averaging(Gradient(0.1), skip=2000),
}


def fixed_point_law(rule: Rule, tau: Callable[..., Any] = effective, lam: float = 0.5) -> None:
    """With the prox at τ the method ends at argmin f + g, zeros included."""
    end = last(rule, BOWL, np.ones(3), 3000, L1(lam), tau)
    np.testing.assert_allclose(end, np.sign(TARGET) * np.maximum(abs(TARGET) - lam, 0), atol=1e-9)
    assert end[2] == 0


@pytest.mark.parametrize("rule", over(PROXIMAL))
def test_proximal_steps_end_at_the_minimum_of_the_sum(rule):
    fixed_point_law(rule)


@pytest.mark.parametrize(
    "rule", over({k: v for k, v in PROXIMAL.items() if k.split("-")[0] not in ("gradient", "fista", "averaging")})
)
def test_fixed_point_law_rejects_a_prox_at_the_learning_rate(rule):
    with rejected:
        fixed_point_law(rule, learning_rate)


def test_prox_at_the_learning_rate_after_heavy_ball_solves_another_problem():
    """f/(1 − β) + g, whose minimum is 2.9 where that of f + g is 2."""
    rule, f = HeavyBall(0.02, 0.9), LeastSquares([[1.0], [0.0]], [3.0, 0.0])
    assert last(rule, f, np.zeros(1), 2000, L1(1.0)) == pytest.approx(2.0, abs=1e-9)
    assert last(rule, f, np.zeros(1), 2000, L1(1.0), learning_rate) == pytest.approx(2.9, abs=1e-9)


@dataclass(frozen=True)
class Product(Objective):
    """f(u, v) = ½(uv − 1)²."""

    def grad(self, x):
        return (x[0] * x[1] - 1) * x[::-1]


def test_a_filling_momentum_buffer_is_not_over_shrunk():
    """With the steady-state τ from the first step on, ½(uv − 1)² + .2(|u| + |v|) collapses to 0."""
    rule, start = HeavyBall(0.1, 0.9), np.array([0.9, 0.9])
    ends = [last(r, Product(), start, 2000, L1(0.2)) for r in (rule, SteadyFromTheStart(0.1, 0.9))]
    root = max(np.roots([1.0, 0.0, -1.0, 0.2]).real)
    np.testing.assert_allclose(ends[0], root, atol=1e-9)
    np.testing.assert_array_equal(ends[1], 0)


def test_adamw_solves_its_own_equation():
    """0 ∈ ∇f + wd (√v̂ + ε) x + ∂g, which is not the minimum of f + g + (wd/2)‖x‖²."""
    lam, decay = 0.5, 0.4
    rule = AdamW(0.005, beta2=0.99, weight_decay=decay)
    x = last(rule, BOWL, np.ones(3), 6000, L1(lam))
    gradient = x - TARGET

    def certificate(force: Any) -> Any:
        return L1(lam).subdiff_distance(x, -gradient - decay * force).max()

    assert certificate((abs(gradient) + rule.eps) * x) < 1e-5
    assert certificate(x) > 0.1
    assert certificate(0 * x) > 0.1


# ── FISTA, averaging, Polyak ────────────────────────────────────────────────────────────────────────────────────────


def lasso_law(rule: Rule, f: LeastSquares, tau: Callable[..., Any] = effective) -> None:
    """The end is the Lasso's solution by coordinate descent, with the same zeros."""
    lam = 0.3 * f.critical_lam
    known = Lasso(alpha=lam / 2, fit_intercept=False, tol=1e-15, max_iter=100_000).fit(f.X, f.y).coef_
    end = last(rule, f, np.zeros(f.shape), 3000, L1(lam), tau)
    np.testing.assert_allclose(end, known, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(end == 0, known == 0)
    assert 0 < np.sum(end == 0) < end.size


@pytest.mark.parametrize("size", [(50, 20), (30, 60)])
@pytest.mark.parametrize("restart", [True, False])
def test_fista_reaches_the_lasso(size, restart):
    f = random_least_squares(*size, seed=5, support=8)
    rule = FISTA(1 / f.constants.L, restart)
    lasso_law(rule, f)
    with rejected:
        lasso_law(rule, f, lambda rule, state: 2 * rule.lr)


class NoMomentum(FISTA):
    def finish(self, z, x, state):
        return x, (x, state[1])


def accelerated_law(rule: Rule, f: Quadratic, steps: int = 300) -> None:
    """f(x_N) − f* ≤ 2L‖x₀ − x*‖²/(N + 1)² at every N (Beck & Teboulle 2009, theorem 4.4)."""
    x0 = np.ones(f.shape)
    for n, x in enumerate(iterates(rule, f, x0, steps), 1):
        assert f.value(x) <= 2 * f.constants.L * np.sum(x0**2) / (n + 1) ** 2


def test_fista_is_accelerated():
    f = Quadratic(np.geomspace(1e-6, 1.0, 60))
    accelerated_law(FISTA(1.0, restart=False), f)
    with rejected:
        accelerated_law(NoMomentum(1.0, restart=False), f)


def test_restart_keeps_a_strongly_convex_run_from_rippling():
    f = Quadratic(np.geomspace(1e-3, 1.0, 20))
    ends = [f.value(last(FISTA(1.0, restart), f, np.ones(20), 1500)) for restart in (True, False)]
    assert ends[0] < 1e-12 * ends[1]


class ForgetsToSkip(Averaging):
    def init(self, x):
        return self.rule.init(x), x, 0.0


def averaging_law(rule: Averaging, f: Objective) -> None:
    """The answer after step t is the mean of the wrapped rule's answers after `skip`, or the last up to there."""
    inner = np.stack(list(iterates(rule.rule, f, START, 30)))
    for t, answer in enumerate(iterates(rule, f, START, 30), 1):
        np.testing.assert_allclose(answer, inner[min(rule.skip, t - 1) : t].mean(axis=0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("skip", [0, 1, 7])
@pytest.mark.parametrize("rule", [HeavyBall(InverseSqrt(0.1)), FISTA(0.2), Adam(0.1), Polyak(0.0)], ids=repr)
def test_averaging_averages(rule, skip):
    averaging_law(Averaging(rule, skip), SMOOTH["quadratic"])


def test_averaging_law_rejects():
    with rejected:
        averaging_law(ForgetsToSkip(Gradient(0.1), 7), SMOOTH["quadratic"])


class TwiceTooFar(Polyak):
    def step(self, x, g, state, value=None):
        end, step = super().step(x, g, state, value)
        return x + 2.5 * (end - x), step


def polyak_law(rule: Rule, f: Objective) -> None:
    """No step leads away from the minimiser (Fejér), and the best gap after N steps is at most G R/√N."""
    x, values = START, []
    for near in iterates(rule, f, START, 200):
        assert np.linalg.norm(near - f.minimiser) <= np.linalg.norm(x - f.minimiser) * (1 + 1e-12)
        x = near
        values.append(f.value(x) - f.minimum)
    assert min(values) <= f.constants.G * np.linalg.norm(START - f.minimiser) / math.sqrt(200)


def test_polyak():
    assert next(iterates(Polyak(0.0), Absolute(), np.array([-7.3]), 1)).tolist() == [0.0]
    assert last(Polyak(0.0), Absolute(), np.array([-7.3]), 5).tolist() == [0.0]  # stays where g = 0
    rng = np.random.default_rng(1)
    f = MaxLinear(rng.standard_normal((12, 5)), rng.standard_normal(12))
    polyak_law(Polyak(f.minimum), f)
    with rejected:
        polyak_law(TwiceTooFar(f.minimum), f)


# ── schedules and bad input ─────────────────────────────────────────────────────────────────────────────────────────


def test_schedules_resolve_in_nested_records():
    rule = Averaging(HeavyBall(InverseTime(1.0), beta=StepDecay(0.5, every=2)))
    assert rule.at(4) == Averaging(HeavyBall(0.25, beta=0.05))
    assert rule.at(4).at(9) == rule.at(4)


def test_cosine_stays_at_its_floor():
    assert [Cosine(1.0, steps=4, floor=0.5).at(t) for t in (1, 3, 5, 6, 100)] == [1.0, 0.75, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("schedule", [InverseSqrt(0.3), InverseTime(0.3), Cosine(0.3, 7), StepDecay(0.3, 3)], ids=repr)
@pytest.mark.parametrize("number", [np.int64, np.asarray, torch.tensor], ids=["numpy-scalar", "numpy", "torch"])
def test_schedules_take_any_kind_of_step(schedule, number):
    for t in (1, 4, 9):
        assert float(schedule.at(number(t))) == pytest.approx(schedule.at(t), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Gradient(0.0), "Gradient: lr must be a finite number above 0, not 0."),
        (lambda: Adam(beta1=1.0), "Adam: beta1 must be a number in [0, 1), not 1."),
        (lambda: Gradient([]), "Gradient: lr is empty; give at least one value."),
        (lambda: Cosine(0.1, steps=0), "Cosine: steps must be 1 or above, not 0."),
        (lambda: StepDecay(0.1, every=0), "StepDecay: every must be 1 or above, not 0."),
        (
            lambda: Averaging(0.1),  # type: ignore[arg-type]
            "Averaging: rule must be one of nonsmooth's, not float.",
        ),
        (lambda: Averaging(Gradient(0.1), skip=-1), "Averaging: skip must be 0 or above, not -1."),
    ],
)
def test_bad_input_gives_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()

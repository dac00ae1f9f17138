"""Rules: equal to torch.optim away from kinks and through them, and alike in every library and in the one loop."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR

from nonsmooth.objectives import Absolute, Hinge, MaxLinear, Objective
from nonsmooth.penalties import L1
from nonsmooth.rules import (
    ASGD,
    FISTA,
    RDA,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Averaging,
    Constant,
    Cosine,
    Frozen,
    Gradient,
    HeavyBall,
    InverseSqrt,
    InverseTime,
    LinearisedBregman,
    NAdam,
    Nesterov,
    NormalisedSubgradient,
    Polyak,
    RAdam,
    RMSProp,
    Rule,
    Sign,
    StepDecay,
)
from nonsmooth.simulation import simulate
from orbits import SMOOTH, START, iterates, last
from zoo import LIBRARIES, over

optim = torch.optim


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
    "nadam": (NAdam(0.02), lambda p: optim.NAdam(p, lr=0.02)),
    "nadam-options": (
        NAdam(0.05, 0.8, 0.99, eps=0.1, momentum_decay=0.1, weight_decay=0.3),
        lambda p: optim.NAdam(p, 0.05, (0.8, 0.99), 0.1, 0.3, 0.1, decoupled_weight_decay=True),
    ),
    "nadam-constant": (NAdam(0.01, momentum_decay=0.0), lambda p: optim.NAdam(p, 0.01, momentum_decay=0.0)),
    "radam": (RAdam(0.02), lambda p: optim.RAdam(p, lr=0.02)),
    "radam-options": (
        RAdam(0.05, 0.8, 0.9, eps=1e-3, weight_decay=0.3),
        lambda p: optim.RAdam(p, 0.05, (0.8, 0.9), 1e-3, 0.3, decoupled_weight_decay=True),
    ),
    "radam-never-adapts": (RAdam(0.05, beta2=0.6), lambda p: optim.RAdam(p, 0.05, (0.9, 0.6))),
    "adamax": (Adamax(0.02), lambda p: optim.Adamax(p, lr=0.02)),
    "adamax-options": (
        Adamax(0.05, 0.5, 0.9, eps=0.5),
        lambda p: optim.Adamax(p, lr=0.05, betas=(0.5, 0.9), eps=0.5),
    ),
    "adadelta": (Adadelta(), optim.Adadelta),
    "adadelta-options": (Adadelta(0.7, 0.95, eps=1e-2), lambda p: optim.Adadelta(p, lr=0.7, rho=0.95, eps=1e-2)),
    "asgd": (ASGD(0.1), lambda p: optim.ASGD(p, lr=0.1)),
    "asgd-options": (
        ASGD(0.2, lambd=0.3, alpha=0.5, t0=20),
        lambda p: optim.ASGD(p, lr=0.2, lambd=0.3, alpha=0.5, t0=20),
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
    "nadam-scheduled": (
        NAdam(InverseSqrt(0.1)),
        scheduled(lambda p: optim.NAdam(p, lr=0.1), lambda o: LambdaLR(o, lambda t: 1 / math.sqrt(t + 1))),
    ),
    "asgd-scheduled": (
        ASGD(StepDecay(0.2, every=30, gamma=0.5), lambd=0.1),
        scheduled(lambda p: optim.ASGD(p, lr=0.2, lambd=0.1), lambda o: StepLR(o, 30, gamma=0.5)),
    ),
}


@pytest.fixture(autouse=True)
def _torch_in_double():
    """torch keeps NAdam's product of μ and ASGD's η in its default precision, whatever the parameter's."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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


@pytest.mark.parametrize("name", ["nadam", "asgd-options"])
def test_torchs_own_scalars_are_single_unless_told_otherwise(name):
    torch.set_default_dtype(torch.float32)
    assert 1e-11 < difference(*TORCH[name], SMOOTH["quadratic"]) < 1e-5


@pytest.mark.parametrize(
    ("rule", "twin"),
    [
        (HeavyBall(0.1, 0.9, 0.9), "dampened"),
        (HeavyBall(0.05, 0.9), "nesterov"),
        (RMSProp(0.005, 0.9, 1e-3 + 1e-9, 0.5), "rmsprop-options"),
        (Adam(0.05, beta2=0.8), "amsgrad"),
        (Adam(0.02), "adamw"),
        (Gradient(InverseTime(0.3)), "inverse-sqrt"),
        (NAdam(0.02, momentum_decay=4.1e-3), "nadam"),
        (Adam(0.01), "nadam-constant"),
        (Adam(0.02), "radam"),
        (RAdam(0.05, beta2=0.67), "radam-never-adapts"),
        (Adam(0.02), "adamax"),
        (Adamax(0.05, 0.5, 0.9, eps=0.50001), "adamax-options"),
        (Adadelta(eps=1.001e-6), "adadelta"),
        (Gradient(0.1), "asgd"),
        (ASGD(0.2, lambd=0.1), "asgd-scheduled"),
    ],
)
def test_a_rule_that_is_not_torchs_is_told_apart(rule, twin):
    assert difference(rule, TORCH[twin][1], SMOOTH["quadratic"]) > 1e-10


UNLIKE_TORCH: dict[str, Rule] = {
    "fista": FISTA(0.2),
    "polyak": Polyak(0),
    "sign": Sign(InverseSqrt(0.1)),
    "normalised": NormalisedSubgradient(0.1),
    "rda": RDA(2.0),
    "bregman": LinearisedBregman(0.1, 2.0),
    "frozen": Frozen(NAdam(0.1), [0.5, 1.0, 2.0, 4.0, 8.0]),
    "averaging": Averaging(RAdam(0.1), skip=2),
}
ALL = {name: rule for name, (rule, _) in TORCH.items()} | UNLIKE_TORCH


@pytest.mark.parametrize("library", over(LIBRARIES))
@pytest.mark.parametrize("rule", over(ALL))
def test_runs_alike_in_every_library(rule, library):
    f, atol = SMOOTH["quadratic"], 1e-13 if library.dtype == "float64" else 3e-5
    with library.running():
        for ours, theirs in zip(iterates(rule, f, START, 12), iterates(rule, f, library.array(START), 12)):
            np.testing.assert_allclose(np.asarray(theirs), ours, rtol=0, atol=atol)
            assert np.asarray(theirs).dtype == library.dtype


EIGHTHS = [0.125, 0.25, 0.5]
SWEPT: dict[str, Callable[[Any], Rule]] = {
    "nadam": lambda a: NAdam(a, 0.8, 0.9, weight_decay=0.1),
    "nadam-decay": lambda a: NAdam(0.1, momentum_decay=a),
    "radam": lambda a: RAdam(0.1, 0.8, a, weight_decay=0.1),
    "adamax": lambda a: Adamax(0.1, a),
    "adadelta": lambda a: Adadelta(rho=a, eps=1e-3),
    "asgd": lambda a: ASGD(0.2, lambd=a, t0=4),
    "sign": lambda a: Sign(a),
    "sign-scheduled": lambda a: Sign(Cosine(a, steps=10)),
    "normalised": lambda a: NormalisedSubgradient(a),
    "rda": lambda a: RDA(16 * np.array(a)),
    "bregman": lambda a: LinearisedBregman(a, 0.5),
    "bregman-delta": lambda a: LinearisedBregman(0.25, a),
    "frozen": lambda a: Frozen(RMSProp(0.1, momentum=a), [0.5, 1.0, 2.0, 4.0, 8.0]),
}


@pytest.mark.parametrize("make", over(SWEPT))
def test_runs_alike_in_the_one_loop(make):
    """Compiled, with traced numbers and steps, and a prox at τ after each."""
    f = SMOOTH["quadratic"]
    run = simulate(f, make(EIGHTHS), penalty=L1(0.1), penalty_by="prox", x0=START, steps=12)
    ours = [last(make(a), f, START, 12, L1(0.1)) for a in EIGHTHS]
    np.testing.assert_allclose(run.x_final, ours, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_radam_turns_adaptive_at_the_same_step_in_every_precision(dtype):
    """ρ₅ = 4.9996 at β₂ = 0.9999; in single precision ρ_∞ − 2tβ₂ᵗ/(1 − β₂ᵗ) comes to 7.5."""
    rule, x, g = RAdam(1.0, beta2=0.9999), np.zeros(1, dtype), np.full(1, 100, dtype)
    state, taus = rule.init(x), []
    for _ in range(7):
        _, state = rule.step(x, g, state)
        taus.append(rule.effective_step(state)[0])
    assert taus[:5] == [1.0] * 5 and max(taus[5:]) < 1e-2


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
    "asgd": (ASGD(0.25, lambd=0.0), lambda p: optim.ASGD(p, lr=0.25, lambd=0.0)),
    "asgd-decay": (ASGD(0.25, lambd=0.25, alpha=0.0), lambda p: optim.ASGD(p, lr=0.25, lambd=0.25, alpha=0.0)),
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
        (lambda: NAdam(beta1=1.0), "NAdam: beta1 must be a number in [0, 1), not 1."),
        (lambda: RAdam(beta2=-0.1), "RAdam: beta2 must be a number in [0, 1), not -0.1."),
        (lambda: Adadelta(eps=0.0), "Adadelta: eps must be a finite number above 0, not 0."),
        (lambda: ASGD(lambd=-1.0), "ASGD: lambd must be a finite number, 0 or above, not -1."),
        (lambda: RDA(0.0), "RDA: gamma must be a finite number above 0, not 0."),
        (lambda: LinearisedBregman(0.1, delta=0.0), "LinearisedBregman: delta must be a finite number above 0, not 0."),
        (lambda: Sign(-1.0), "Sign: lr must be a finite number above 0, not -1."),
        (lambda: NormalisedSubgradient(0.0), "NormalisedSubgradient: lr must be a finite number above 0, not 0."),
        (lambda: Frozen(Adam(), [1.0, -1.0]), "Frozen: v must be 0 or above; it stands for a mean of squares."),
        (
            lambda: Frozen(Adadelta(), [1.0]),
            "Frozen: rule must be Adagrad, RMSProp, Adam, AdamW, NAdam, RAdam or Adamax, which have one second "
            "moment to hold, not Adadelta.",
        ),
        (
            lambda: Frozen(Adam(), [1.0]).init(np.zeros(2)),
            "Frozen: v of shape (1,) does not fit a point of shape (2,).",
        ),
    ],
)
def test_bad_input_gives_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        make()

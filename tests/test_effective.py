"""Effective steps: τ read off torch's optimisers is the lab's, step by step; others are refused, with the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import optim
from torch.optim.lr_scheduler import LambdaLR, StepLR

from nonsmooth.penalties import L1
from nonsmooth.rules import (
    ASGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Gradient,
    HeavyBall,
    InverseSqrt,
    NAdam,
    Nesterov,
    RAdam,
    RMSProp,
    Rule,
    StepDecay,
)
from nonsmooth.torch import Proximal, effective_step, register_effective_step
from nonsmooth.torch import effective as module
from orbits import START
from zoo import over

CURVATURES = np.array([0.1, 0.5, 1.0, 2.0, 4.0])
SLOPES = np.array([0.35, -0.2, 0.5, -0.4, 0.05])
STEPS = 60


@dataclass(frozen=True)
class Probe(L1):
    """L1 that notes each τ that its prox is given."""

    def prox(self, x, t):
        TAUS.append(t.clone() if isinstance(t, torch.Tensor) else t)
        return super().prox(x, t)


TAUS: list[Any] = []


@pytest.fixture(autouse=True)
def _torch_in_double():
    """torch keeps NAdam's product of μ and ASGD's η in its default precision, whatever the parameter's."""
    torch.set_default_dtype(torch.float64)
    TAUS.clear()
    yield
    torch.set_default_dtype(torch.float32)


Make = Callable[..., optim.Optimizer]


def options(kind: type[optim.Optimizer], **fixed: Any) -> Make:
    return lambda params, **more: kind(params, **fixed, **more)


INVERSE_SQRT = (lambda o: LambdaLR(o, lambda t: 1 / math.sqrt(t + 1)),)

RULES: dict[str, tuple[Any, ...]] = {
    "sgd": (Gradient(0.1), options(optim.SGD, lr=0.1)),
    "momentum": (HeavyBall(0.05, 0.9), options(optim.SGD, lr=0.05, momentum=0.9)),
    "momentum-scheduled": (HeavyBall(InverseSqrt(0.1)), options(optim.SGD, lr=0.1, momentum=0.9), *INVERSE_SQRT),
    "dampened": (HeavyBall(0.1, 0.8, 0.5), options(optim.SGD, lr=0.1, momentum=0.8, dampening=0.5)),
    "ema": (HeavyBall(0.1, 0.9, 0.9), options(optim.SGD, lr=0.1, momentum=0.9, dampening=0.9)),
    "nesterov": (Nesterov(0.05, 0.9), options(optim.SGD, lr=0.05, momentum=0.9, nesterov=True)),
    "adam": (Adam(0.02), options(optim.Adam, lr=0.02)),
    "adam-betas": (Adam(0.05, 0.5, 0.9, eps=1e-3), options(optim.Adam, lr=0.05, betas=(0.5, 0.9), eps=1e-3)),
    "adam-scheduled": (Adam(InverseSqrt(0.1)), options(optim.Adam, lr=0.1), *INVERSE_SQRT),
    "adam-tensor-lr": (Adam(0.05), lambda p, **more: optim.Adam(p, lr=torch.tensor(0.05), **more)),
    "amsgrad": (Adam(0.05, beta2=0.8, amsgrad=True), options(optim.Adam, lr=0.05, betas=(0.9, 0.8), amsgrad=True)),
    "adamw": (AdamW(0.02, weight_decay=0.3), options(optim.AdamW, lr=0.02, weight_decay=0.3)),
    "adamw-amsgrad": (
        AdamW(0.02, 0.8, 0.9, eps=1e-4, amsgrad=True, weight_decay=0.3),
        options(optim.AdamW, lr=0.02, betas=(0.8, 0.9), eps=1e-4, amsgrad=True, weight_decay=0.3),
    ),
    "nadam": (NAdam(0.02), options(optim.NAdam, lr=0.02)),
    "nadam-options": (
        NAdam(0.05, 0.8, 0.99, eps=0.1, momentum_decay=0.1, weight_decay=0.3),
        options(
            optim.NAdam,
            lr=0.05,
            betas=(0.8, 0.99),
            eps=0.1,
            momentum_decay=0.1,
            weight_decay=0.3,
            decoupled_weight_decay=True,
        ),
    ),
    "radam": (RAdam(0.02), options(optim.RAdam, lr=0.02)),
    "radam-adapts": (RAdam(0.02, beta2=0.9), options(optim.RAdam, lr=0.02, betas=(0.9, 0.9))),
    "radam-never-adapts": (RAdam(0.05, beta2=0.6), options(optim.RAdam, lr=0.05, betas=(0.9, 0.6))),
    "adamax": (Adamax(0.05, 0.5, 0.9, eps=0.5), options(optim.Adamax, lr=0.05, betas=(0.5, 0.9), eps=0.5)),
    "adagrad": (Adagrad(0.1), options(optim.Adagrad, lr=0.1)),
    "adagrad-decay": (
        Adagrad(0.3, lr_decay=0.02, initial=0.5, eps=1e-3),
        options(optim.Adagrad, lr=0.3, lr_decay=0.02, initial_accumulator_value=0.5, eps=1e-3),
    ),
    "adadelta": (Adadelta(), optim.Adadelta),
    "adadelta-options": (Adadelta(0.7, 0.95, eps=1e-2), options(optim.Adadelta, lr=0.7, rho=0.95, eps=1e-2)),
    "rmsprop": (RMSProp(0.01), options(optim.RMSprop, lr=0.01)),
    "rmsprop-momentum": (
        RMSProp(0.005, alpha=0.9, eps=1e-3, momentum=0.5),
        options(optim.RMSprop, lr=0.005, alpha=0.9, eps=1e-3, momentum=0.5),
    ),
    "rmsprop-centred": (
        RMSProp(0.01, eps=1e-2, centered=True),
        options(optim.RMSprop, lr=0.01, eps=1e-2, centered=True),
    ),
    "rmsprop-all": (
        RMSProp(0.01, alpha=0.95, eps=1e-2, momentum=0.9, centered=True),
        options(optim.RMSprop, lr=0.01, alpha=0.95, eps=1e-2, momentum=0.9, centered=True),
    ),
    "asgd": (ASGD(0.2, lambd=0.3, alpha=0.5, t0=20), options(optim.ASGD, lr=0.2, lambd=0.3, alpha=0.5, t0=20)),
    "asgd-scheduled": (
        ASGD(StepDecay(0.2, every=20, gamma=0.5), lambd=0.1),
        options(optim.ASGD, lr=0.2, lambd=0.1),
        lambda o: StepLR(o, 20, gamma=0.5),
    ),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"foreach": False},
    "decayed": {"foreach": False, "weight_decay": 0.1},
    "maximize": {"foreach": False, "maximize": True},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
FUSED = {optim.SGD, optim.Adam, optim.AdamW, optim.Adagrad}


def kind_of(make: Make) -> type[optim.Optimizer]:
    return type(make([torch.nn.Parameter(torch.zeros(1))]))


def variants() -> list[Any]:
    found = []
    for name, row in RULES.items():
        kind = kind_of(row[1])
        for variant, more in VARIANTS.items():
            decoupled = kind is optim.AdamW or name == "nadam-options"
            lacking = {"fused": kind not in FUSED, "decayed": decoupled, "foreach": name == "adam-tensor-lr"}
            if not lacking.get(variant):
                found.append(pytest.param(*row[:2], *(row[2:] or (None,)), more, id=f"{name}-{variant}"))
    return found


def gradient(x: Any, decay: float) -> Any:
    """∇f of a quadratic, with its coupled decay."""
    return CURVATURES * x - SLOPES + decay * x


def lab_taus(rule: Rule, lam: float, decay: float) -> list[Any]:
    x, state, taus = START, rule.at(1).init(START), []
    for t in range(1, STEPS + 1):
        now = rule.at(t)
        z, state = now.step(x, gradient(x, decay), state)
        taus.append(now.effective_step(state) + np.zeros(5))
        x, state = now.finish(z, L1(lam).prox(z, taus[-1]), state)
    return taus


def torch_taus(make: Make, schedule: Any, lam: float, more: dict[str, Any]) -> list[Any]:
    p = torch.nn.Parameter(torch.tensor(START))
    optimizer = Proximal(make([p], **more), Probe(lam))
    scheduler = schedule(optimizer) if schedule else None
    TAUS.clear()
    for _ in range(STEPS):
        p.grad = torch.tensor(gradient(p.detach().numpy(), 0.0)) * (-1 if more.get("maximize") else 1)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return [np.asarray(tau) + np.zeros(5) for tau in TAUS]


def difference(rule: Rule, make: Make, schedule: Any, more: dict[str, Any], lam: float = 0.1) -> float:
    """The largest relative difference of τ along the way, each method on its own path."""
    ours, theirs = lab_taus(rule, lam, more.get("weight_decay", 0.0)), torch_taus(make, schedule, lam, more)
    assert len(ours) == len(theirs) == STEPS
    return max(float(np.max(np.abs(a / b - 1))) for a, b in zip(theirs, ours))


@pytest.mark.parametrize(("rule", "make", "schedule", "more"), variants())
def test_equals_the_labs(rule, make, schedule, more):
    """torch's RAdam subtracts two numbers near ρ_∞ = 1999, as this must, and the lab's does not: some digits go."""
    cancels = isinstance(rule, RAdam) and rule.beta2 == 0.999
    assert difference(rule, make, schedule, more) < (1e-11 if cancels else 1e-12)


# ── a wrong τ is told apart ─────────────────────────────────────────────────────────────────────────────────────────


def reading(tau: Any) -> module.Table:
    """A table whose τ is what `tau` makes of (group, state)."""

    def read(group, state, memory, response):
        value = tau(group, state)
        if isinstance(value, torch.Tensor) and value.ndim:
            return module.Reading(module.identity, (), (value,))
        return module.Reading(module.identity, (float(value),))

    return module.Table(read)


def rate(group: Any, state: Any) -> Any:
    return group["lr"]


def settled_sgd(group: Any, state: Any) -> Any:
    return group["lr"] * (1 - group["dampening"]) / (1 - group["momentum"])


def uncorrected(group: Any, state: Any) -> Any:
    return group["lr"] / (state["exp_avg_sq"].sqrt() + group["eps"])


def settled_adam(group: Any, state: Any) -> Any:
    root = (1 - group["betas"][1] ** float(state["step"])) ** 0.5
    return group["lr"] / (state["exp_avg_sq"].sqrt() / root + group["eps"])


MUTANTS: dict[str, tuple[str, Any]] = {
    "momentum-rate": ("momentum", rate),
    "momentum-settled": ("momentum", settled_sgd),
    "dampened-rate": ("dampened", rate),
    "dampened-settled": ("dampened", settled_sgd),
    "nesterov-settled": ("nesterov", settled_sgd),
    "adam-rate": ("adam", rate),
    "adam-uncorrected": ("adam", uncorrected),
    "amsgrad-without-its-maximum": ("amsgrad", settled_adam),
    "adamw-uncorrected": ("adamw", uncorrected),
    "nadam-as-adam": ("nadam", settled_adam),
    "radam-as-adam": ("radam-adapts", settled_adam),
    "radam-rate": ("radam-adapts", rate),
    "adamax-twice-eps": ("adamax", lambda group, state: group["lr"] / (state["exp_inf"] + group["eps"])),
    "adagrad-without-decay": ("adagrad-decay", lambda group, state: group["lr"] / (state["sum"].sqrt() + group["eps"])),
    "adadelta-next-size": (
        "adadelta",
        lambda group, state: (
            group["lr"] * (state["acc_delta"] + group["eps"]).sqrt() / (state["square_avg"] + group["eps"]).sqrt()
        ),
    ),
    "rmsprop-settled": (
        "rmsprop-momentum",
        lambda group, state: group["lr"] / (state["square_avg"].sqrt() + group["eps"]) / (1 - group["momentum"]),
    ),
    "rmsprop-uncentred": (
        "rmsprop-centred",
        lambda group, state: group["lr"] / (state["square_avg"].sqrt() + group["eps"]),
    ),
    "asgd-rate": ("asgd", rate),
    "asgd-next": ("asgd", lambda group, state: state["eta"]),
}


@pytest.mark.parametrize(("name", "tau"), over(MUTANTS))
def test_a_wrong_step_is_told_apart(name, tau, monkeypatch):
    rule, make, *schedule = RULES[name]
    kind = kind_of(make)
    monkeypatch.setitem(module.TABLES, kind, reading(tau))
    assert difference(rule, make, schedule[0] if schedule else None, {}) > 1e-6


# ── momentum that a schedule changes ────────────────────────────────────────────────────────────────────────────────


def responses(kind: type[optim.Optimizer], momenta: list[float], **more: Any) -> tuple[list[float], list[float]]:
    """τ, and the step that a gradient of 1 in fact makes when it was 1 throughout."""
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer, made = Proximal(kind([p], momentum=momenta[0], **more), Probe(0.0)), []
    TAUS.clear()
    for momentum in momenta:
        optimizer.param_groups[0]["momentum"] = momentum
        before, p.grad = p.item(), torch.ones(1)
        optimizer.step()
        made.append(before - p.item())
    return [float(tau) for tau in TAUS], made


@pytest.mark.parametrize("nesterov", [False, True])
def test_response_follows_a_momentum_that_changes(nesterov):
    taus, made = responses(optim.SGD, [0.9, 0.9, 0.5, 0.9, 0.95, 0.8], lr=0.1, nesterov=nesterov)
    assert taus == pytest.approx(made, rel=1e-12)


def test_response_is_one_while_momentum_is_off():
    taus, made = responses(optim.SGD, [0.9, 0.9, 0.0, 0.0, 0.9], lr=0.1)
    assert taus == pytest.approx(made, rel=1e-12)
    assert taus[2] == 0.1


def test_rmsprops_response_is_one_while_momentum_is_off():
    taus, made = responses(optim.RMSprop, [0.9, 0.9, 0.0, 0.0], lr=0.1, eps=1e8, alpha=0.0)
    assert taus == pytest.approx(made, rel=1e-12)


# ── read off a bare optimiser ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", list(RULES))
def test_read_off_a_bare_optimiser_it_is_the_last_steps(name):
    """For a full momentum buffer; of Adadelta and ASGD, which forget, it is the next step's."""
    rule, make, *schedule = RULES[name]
    p = torch.nn.Parameter(torch.tensor(START))
    optimizer = make([p])
    if schedule:
        schedule[0](optimizer)
    x, state = START, rule.at(1).init(START)
    for t in range(600):
        g = SLOPES * (1.0 + 0.5 * math.sin(t))
        p.grad = torch.tensor(g)
        optimizer.step()
        x, state = rule.at(1).step(x, g, state)
    tau = rule.at(1).effective_step(state)
    if isinstance(rule, Adadelta):
        tau = rule.lr * np.sqrt(state[1] + rule.eps) / np.sqrt(state[0] + rule.eps)
    if isinstance(rule, ASGD):
        tau = state[2]
    np.testing.assert_allclose(np.asarray(effective_step(optimizer, p)), tau, rtol=1e-10)


def test_before_the_first_step_there_is_none():
    p = torch.nn.Parameter(torch.zeros(1))
    assert effective_step(optim.SGD([p], lr=0.5, momentum=0.75), p) == 2.0
    for kind in (optim.Adam, optim.Adadelta, optim.RMSprop, optim.ASGD):
        with pytest.raises(
            ValueError, match=f"^effective_step: {kind.__name__} has made no step on this parameter yet"
        ):
            effective_step(kind([p]), p)


def test_of_a_parameter_that_it_does_not_hold():
    p, q = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    with pytest.raises(ValueError, match=r"^effective_step: the optimiser does not hold this parameter"):
        effective_step(optim.SGD([p], lr=0.5), q)


# ── refused, registered, inherited ──────────────────────────────────────────────────────────────────────────────────

REFUSED = {
    "LBFGS": (optim.LBFGS, "line search"),
    "Rprop": (optim.Rprop, "follow the signs of the gradients"),
    "Muon": (optim.Muon, "orthogonalises whole matrices"),
    "Adafactor": (optim.Adafactor, "factored second moment"),
    "SparseAdam": (optim.SparseAdam, "only the coordinates of a sparse gradient"),
}


@pytest.mark.parametrize(("kind", "reason"), over(REFUSED))
def test_refused_with_the_reason(kind, reason):
    class Child(kind):
        pass

    for made in (kind, Child):
        optimizer = made([torch.nn.Parameter(torch.zeros(2, 2))])
        with pytest.raises(TypeError, match=f"^Proximal: {made.__name__} has no effective step: .*{reason}"):
            Proximal(optimizer, L1(0.1))


class Halved(optim.Optimizer):
    """x⁺ = x − ½ η g."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p -= 0.5 * group["lr"] * p.grad


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(module, "TABLES", dict(module.TABLES))
    register_effective_step(Halved, lambda optimizer, group, p: 0.5 * group["lr"])


def test_an_unknown_optimiser_is_told_what_to_do():
    with pytest.raises(TypeError, match=re.escape("Halved has no registered effective step; call register_effective")):
        Proximal(Halved([torch.nn.Parameter(torch.zeros(1))], lr=0.1), L1(0.1))


@pytest.mark.usefixtures("registered")
def test_a_registered_optimiser_works():
    p = torch.nn.Parameter(torch.tensor([1.0, 0.01]))
    optimizer = Proximal(Halved([p], lr=0.2), L1(0.5))
    p.grad = torch.tensor([1.0, 0.0])
    optimizer.step()
    assert p.tolist() == pytest.approx([1.0 - 0.1 - 0.05, 0.0], rel=1e-12)
    assert effective_step(optimizer.optimizer, p) == pytest.approx(0.1)
    optimizer.param_groups[0]["lr"] = -5e-18  # what a schedule's rounding leaves of 0
    assert effective_step(optimizer.optimizer, p) == 2.5e-18


@pytest.mark.usefixtures("registered")
def test_a_registered_step_may_differ_from_weight_to_weight():
    register_effective_step(Halved, lambda optimizer, group, p: torch.tensor([0.1, 0.2]))
    p = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = Proximal(Halved([p], lr=0.2), L1(0.5))
    p.grad = torch.zeros(2)
    optimizer.step()
    assert p.tolist() == pytest.approx([0.95, 0.9], rel=1e-12)


@pytest.mark.parametrize("wrong", [3, int, "SGD", torch.nn.Linear])
def test_only_optimisers_can_be_registered(wrong):
    with pytest.raises(TypeError, match=r"^register_effective_step: .* is not a subclass of torch.optim.Optimizer"):
        register_effective_step(wrong, lambda optimizer, group, p: 1.0)


def test_only_functions_can_be_registered():
    with pytest.raises(TypeError, match=r"^register_effective_step: function must be one of \(.*\), not 5\.$"):
        register_effective_step(Halved, 5)


@pytest.mark.usefixtures("registered")
def test_a_subclass_that_keeps_the_step_is_known_even_when_it_is_made_first():
    """torch wraps `step` in the class that is instantiated first, so the two classes' `step` are not one object."""

    class Unmade(Halved):
        step = Halved.__dict__["step"].__wrapped__ if hasattr(Halved.step, "hooked") else Halved.step

    class Child(Unmade):
        def __init__(self, params):
            super().__init__(params, lr=0.2)

    register_effective_step(Unmade, lambda optimizer, group, p: 0.5 * group["lr"])
    assert not hasattr(Unmade.step, "hooked")
    optimizer = Child([torch.nn.Parameter(torch.zeros(1))])
    assert Child.step is not Unmade.step
    assert module.table_of(optimizer) is module.TABLES[Unmade]
    assert module.table_of(Unmade([torch.nn.Parameter(torch.zeros(1))], lr=0.1)) is module.TABLES[Unmade]


def test_a_subclass_of_torchs_that_keeps_the_step_is_known():
    class Child(optim.Adam):
        pass

    assert module.table_of(Child([torch.nn.Parameter(torch.zeros(1))])) is module.TABLES[optim.Adam]


def test_a_subclass_with_a_step_of_its_own_is_refused():
    class Twice(optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            return super().step(closure)

    with pytest.raises(TypeError, match="Twice has no registered effective step"):
        Proximal(Twice([torch.nn.Parameter(torch.zeros(1))], lr=0.1), L1(0.1))


def test_an_optimiser_of_another_library_is_taught_its_step(monkeypatch):
    """pytorch_optimizer's AggMo steps by lr/K times the sum of K momentum buffers: τ = lr/K Σ 1/(1 − βₖ)."""
    from pytorch_optimizer import AggMo

    monkeypatch.setattr(module, "TABLES", dict(module.TABLES))
    y = torch.tensor([3.0, 0.5, -0.2], dtype=torch.float64)

    def end(tau: Any) -> torch.Tensor:
        register_effective_step(AggMo, tau)
        w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = Proximal(AggMo([w], lr=0.05, betas=(0.0, 0.5, 0.9)), L1(1.0))
        for _ in range(800):
            w.grad = (w - y).detach()
            optimizer.step()
        return w.detach()

    exact = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    right = end(lambda optimizer, group, p: group["lr"] * sum(1 / (1 - b) for b in group["betas"]) / 3)
    torch.testing.assert_close(right, exact, rtol=0, atol=1e-9)
    assert torch.equal(right == 0, exact == 0)
    assert not torch.allclose(end(lambda optimizer, group, p: group["lr"]), exact, atol=1e-2)

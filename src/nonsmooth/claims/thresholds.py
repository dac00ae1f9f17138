"""Sentence 4: the linear stability threshold of each rule, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from nonsmooth.claims.problems import MakeRule
from nonsmooth.ledger import Evidence, at_most, claim, equals
from nonsmooth.objectives import Huber, LeastSquares, Objective, Quadratic
from nonsmooth.plots import Table
from nonsmooth.rules import (
    ASGD,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Frozen,
    Gradient,
    HeavyBall,
    NAdam,
    Nesterov,
    RAdam,
    RMSProp,
    Rule,
)
from nonsmooth.simulation import Moment, simulate

THRESHOLDS: dict[str, tuple[MakeRule, dict[str, float], float]] = {
    "GD": (Gradient, {}, 2.0),
    "heavy ball 0.9": (HeavyBall, {"beta": 0.9}, 3.8),
    "heavy ball 0.5": (HeavyBall, {"beta": 0.5}, 3.0),
    "dampening = momentum = 0.9": (HeavyBall, {"beta": 0.9, "dampening": 0.9}, 38.0),
    "Nesterov 0.9": (Nesterov, {"beta": 0.9}, 3.8 / 2.8),
    "ASGD, λ = 0": (ASGD, {"lambd": 0.0, "alpha": 0.0}, 2.0),
}
"""Rules with their linear thresholds on ηλ₁: 2, 2(1+β), 2(1+β)/(1−d) and (2+2β)/(1+2β)."""


def first_to_diverge(objective: Objective, rules: Callable[[np.ndarray], Rule], threshold: float, steps: int) -> float:
    """The smallest multiple of a threshold, from 0.95 to 1.05 of it, at which a run ends beyond 1000; ∞ for none."""
    steps_tried = threshold * np.round(np.linspace(0.95, 1.05, 41), 4)
    run = simulate(objective, rules(steps_tried), x0=1.0, steps=steps, tail=1)
    lost = ~(run.l1_norm.values[:, 0] <= 1e3)
    return float(steps_tried[np.argmax(lost)]) if lost.any() else np.inf


@claim(
    "edge/linear-thresholds",
    says="On a quadratic GD, heavy ball (dampened or not) and Nesterov's rule diverge at ηλ₁ of 2, 2(1+β), "
    "2(1+β)/(1−d) and (2+2β)/(1+2β): the thresholds of smooth theory, each rule its own.",
    source="Cohen et al. 2021, appendix B",
    sentence=4,
    relation=equals(within=0.01),
    mutants={
        "the Huber function, of the same curvature at its minimum": {"objective": Huber()},
        "the threshold of another rule": {"shift": 1},
    },
)
def linear_thresholds(
    objective: Objective = Quadratic([1.0]), shift: int = 0, steps: int = 20_000, master: int = 0
) -> Evidence:
    """`shift` gives each rule the threshold of another."""
    rows = list(THRESHOLDS.values())
    predicted = [rows[(i + shift) % len(rows)][2] for i in range(len(rows))]
    measured = [
        first_to_diverge(objective, lambda lr, rule=rule, o=options: rule(lr=lr, **o), limit, steps)  # type: ignore[misc]
        for (rule, options, _), limit in zip(rows, predicted, strict=True)
    ]
    return Evidence(
        "smallest ηλ₁ that diverges",
        measured,
        predicted,
        list(THRESHOLDS),
        holds_when="f is quadratic: on the Lipschitz functions of the other claims no step diverges",
    )


FROZEN: dict[str, tuple[Rule, float]] = {
    "Adagrad": (Adagrad(), 2.0),
    "RMSProp": (RMSProp(), 2.0),
    "RMSProp, momentum 0.5": (RMSProp(momentum=0.5), 3.0),
    "RMSProp, centred": (RMSProp(centered=True), 2.0),
    "Adam": (Adam(), 38.0),
    "AMSGrad": (Adam(amsgrad=True), 38.0),
    "AdamW, no decay": (AdamW(weight_decay=0.0), 38.0),
    "Adam, β₁ = 0.5": (Adam(beta1=0.5), 6.0),
    "Adamax": (Adamax(), 38.0),
    "RAdam": (RAdam(), 38.0),
    "NAdam": (NAdam(), 3.8 / (0.1 * 2.8)),
}
"""Adaptive rules with their thresholds on ηλ₁(P^{-1/2}HP^{-1/2}): 2, 2(1+m), 2(1+β₁)/(1−β₁), and NAdam's
2(1+β₁)/((1−β₁)(1+2β₁)), which needs its momentum_decay (above 0) and t → ∞."""


@claim(
    "edge/frozen-thresholds",
    says="With the second moment held, each adaptive rule diverges on a quadratic at a threshold of its own on the "
    "preconditioned sharpness: 2 for RMSProp and Adagrad, 2(1 + m) with momentum, 38 for Adam, 13.57 for NAdam.",
    source="Cohen et al. 2022, section 2",
    sentence=4,
    relation=equals(within=0.01),
    mutants={"the threshold of another rule": {"shift": 2}},
)
def frozen_thresholds(
    objective: Objective = Quadratic([1.0]), shift: int = 0, v: float = 9.0, steps: int = 20_000, master: int = 0
) -> Evidence:
    """One weight, so that P is a number: √v, and v itself for Adamax."""
    rows = list(FROZEN.values())
    predicted = [rows[(i + shift) % len(rows)][1] for i in range(len(rows))]
    measured = []
    for (rule, _), limit in zip(rows, predicted, strict=True):
        P = v if isinstance(rule, Adamax) else v**0.5
        held = lambda lr, rule=rule, P=P: Frozen(rule.replaced(lr=lr * P), v=[v])  # noqa: E731
        measured.append(first_to_diverge(objective, held, limit, steps))
    return Evidence(
        "smallest ηλ₁/P that diverges",
        measured,
        predicted,
        list(FROZEN),
        holds_when="f is quadratic and the second moment does not move; when it does, edge/adaptive-rules-stay-bounded",
    )


UNFROZEN: dict[str, Rule] = {
    "Adagrad": Adagrad(lr=0.1),
    "RMSProp": RMSProp(lr=0.1),
    "RMSProp, momentum 0.9": RMSProp(lr=0.1, momentum=0.9),
    "Adam": Adam(lr=0.1),
    "AMSGrad": Adam(lr=0.1, amsgrad=True),
    "NAdam": NAdam(lr=0.1),
    "Adamax": Adamax(lr=0.1),
}


def ill_conditioned(condition: float, p: int, rng: np.random.Generator) -> LeastSquares:
    """½⟨x, Hx⟩ with eigenvalues of H from 1 to `condition` along random axes, so that no coordinate is alone."""
    axes = np.linalg.qr(rng.standard_normal((p, p)))[0]
    return LeastSquares(np.sqrt(p * np.geomspace(1, condition, p) / 2)[:, None] * axes, np.zeros(p))


@claim(
    "edge/adaptive-rules-stay-bounded",
    says="Let the second moment move, and adaptive rules do not diverge on quadratics along random axes, of condition "
    "numbers from 1 to a million, though they start beyond their linear thresholds: no coordinate goes farther than a "
    "thousand steps.",
    source="Cohen et al. 2022; theory for the unfrozen rules",
    sentence=4,
    relation=at_most(),
    mutants={"gradient descent and heavy ball": {"rules": {"GD": Gradient(lr=0.1), "heavy ball": HeavyBall(lr=0.1)}}},
    full={"starts": 50},
)
def adaptive_rules_stay_bounded(
    rules: Mapping[str, Rule] = UNFROZEN,
    conditions: Sequence[float] = (1.0, 1e3, 1e6),
    p: int = 10,
    starts: int = 10,
    steps: int = 10_000,
    lr: float = 0.1,
    master: int = 0,
) -> Evidence:
    """Starts of 0.001, a hundredth of a step: there η|g|/√v moves a coordinate a hundred times too far.

    RMSProp's first step is η/√(1 − α) = 10 η, and momentum 0.9 can make 100 η of it; a thousand is ten times that.
    """

    def largest(m: Moment) -> Any:
        return abs(m.x).max()

    rng = np.random.default_rng(master)
    problems = [ill_conditioned(condition, p, rng) for condition in conditions]
    x0 = xr.DataArray(1e-3 * rng.standard_normal((starts, p)), dims=("start", "coordinate"))
    far = []
    for rule in rules.values():
        runs = [simulate(f, rule, x0=x0, steps=steps, record=(largest,)) for f in problems]
        far.append([float(run.largest.max() if run.diverged_at.isnull().all() else np.inf) / lr for run in runs])
    rows = [[name, *(f"{v:.3g}" for v in found)] for name, found in zip(rules, far, strict=True)]
    return Evidence(
        f"largest |xᵢ| of all {starts * len(conditions)} runs, in steps η",
        np.max(far, axis=1),
        1000.0,
        list(rules),
        holds_when=f"condition {', '.join(f'{c:g}' for c in conditions)}, P = {p}, η = {lr:g}, {starts} starts, "
        f"{steps} steps",
        plots=[
            Table(
                ["rule", *(f"condition {c:g}" for c in conditions)],
                rows,
                title="The largest coordinate of any run, in steps η",
                says="A jump, and then a bounce of a few steps' size.",
            )
        ],
    )

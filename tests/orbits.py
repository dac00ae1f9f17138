"""The slow loop: rules run one step at a time in plain Python, the twin of `simulate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nonsmooth.objectives import Logistic, Objective, Quadratic, random_least_squares
from nonsmooth.penalties import Penalty
from nonsmooth.rules import Rule

DATA = random_least_squares(30, 5, seed=3)
SMOOTH = {"quadratic": Quadratic([0.1, 0.5, 1.0, 2.0, 4.0]), "logistic": Logistic(DATA.X, np.sign(DATA.y))}
START = np.array([1.5, -2.0, 0.7, 1.0, -0.4])


def effective(rule: Rule, state: Any) -> Any:
    return rule.effective_step(state)


def learning_rate(rule: Any, state: Any) -> Any:
    """The mutant of it that many packages ship."""
    return getattr(rule, "rule", rule).lr


def iterates(
    rule: Rule, f: Objective, x: Any, steps: int, penalty: Penalty | None = None, tau: Callable[..., Any] = effective
) -> Iterator[Any]:
    """The answers x₁ … x_T of a rule, with a proximal step at τ where there is a penalty."""
    z, state = x, rule.at(1).init(x)
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

"""Tight worst-case constants: a table, and the same numbers computed live by PEPit (the `theory` extra)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["TIGHT", "tight_constant"]

TIGHT: dict[str, dict[int, float]] = {
    "subgradient, best iterate": {3: 0.50000, 6: 0.37796, 12: 0.27735, 20: 0.21822},
    "subgradient, last iterate": {3: 0.72141, 6: 0.60081, 12: 0.48489, 20: 0.40804},
    "gradient descent": {3: 0.07143, 6: 0.03846, 12: 0.02000, 20: 0.01220},
    "proximal gradient, squared distance": {2: 0.6561},
}
"""The worst case after N steps: of f(x) − f* over convex 1-Lipschitz f with steps 1/√(N+1), over convex f with L = 1
and step 1, each from a distance of 1 (Drori & Teboulle 2014, 2016); and of ‖x − x*‖² for f with L = 1, μ = 0.1 plus
a convex g, step 1 (Taylor, Hendrickx & Glineur 2018: (1 − μ)^(2N))."""


def tight_constant(method: str, n: int) -> float:
    """The entry of `TIGHT` for `method` and N = n, solved anew as a semidefinite programme by PEPit.

    Raises ModuleNotFoundError, in one sentence, where PEPit is not installed, and ValueError for another method.

    >>> round(tight_constant("gradient descent", 1), 4)
    0.1667
    """
    try:
        import PEPit
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            "tight_constant needs PEPit, which is not installed; run: pip install 'nonsmooth[theory]'"
        ) from missing
    if method not in TIGHT:
        raise ValueError(f"tight_constant: there is no method {method!r}; choose from {', '.join(TIGHT)}.")
    problem = PEPit.PEP()
    start = problem.set_initial_point()
    PROGRAMMES[method](problem, start, n)
    return float(problem.solve(verbose=0))


def _subgradient(problem: Any, x: Any, n: int, best: bool) -> None:
    from PEPit.functions import ConvexLipschitzFunction

    f = problem.declare_function(ConvexLipschitzFunction, M=1.0)
    minimiser = f.stationary_point()
    problem.set_initial_condition((x - minimiser) ** 2 <= 1)
    for _ in range(n):
        g, value = f.oracle(x)
        if best:
            problem.set_performance_metric(value - f(minimiser))
        x = x - g / np.sqrt(n + 1)
    problem.set_performance_metric(f(x) - f(minimiser))


def _gradient_descent(problem: Any, x: Any, n: int) -> None:
    from PEPit.functions import SmoothConvexFunction

    f = problem.declare_function(SmoothConvexFunction, L=1.0)
    minimiser = f.stationary_point()
    problem.set_initial_condition((x - minimiser) ** 2 <= 1)
    for _ in range(n):
        x = x - f.gradient(x)
    problem.set_performance_metric(f(x) - f(minimiser))


def _proximal_gradient(problem: Any, x: Any, n: int) -> None:
    from PEPit.functions import ConvexFunction, SmoothStronglyConvexFunction
    from PEPit.primitive_steps import proximal_step

    f = problem.declare_function(SmoothStronglyConvexFunction, mu=0.1, L=1.0)
    g = problem.declare_function(ConvexFunction)
    minimiser = (f + g).stationary_point()
    problem.set_initial_condition((x - minimiser) ** 2 <= 1)
    for _ in range(n):
        x, _, _ = proximal_step(x - f.gradient(x), g, 1.0)
    problem.set_performance_metric((x - minimiser) ** 2)


PROGRAMMES: dict[str, Callable[[Any, Any, int], None]] = {
    "subgradient, best iterate": lambda problem, x, n: _subgradient(problem, x, n, best=True),
    "subgradient, last iterate": lambda problem, x, n: _subgradient(problem, x, n, best=False),
    "gradient descent": _gradient_descent,
    "proximal gradient, squared distance": _proximal_gradient,
}

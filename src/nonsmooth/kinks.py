"""Textbook kinks: a function, a point, its Clarke subdifferential there, and what a spelling of it returned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["KINKS", "Kink", "Returned", "nearest"]


def nearest(points: ArrayLike, v: ArrayLike) -> np.ndarray:
    """The point of conv{p₁, …, pₖ} nearest to v; `points` of shape (k, n), v of shape (n,).

    min_{w ≥ 0} ‖Σ wᵢ(pᵢ − v)‖² + (Σw − 1)² is solved (`scipy.optimize.nnls`), and Σ (wᵢ/Σw) pᵢ returned. This is exact:
    for w = sλ with Σλ = 1, the best s leaves q/(1 + q) with q = ‖Σ λᵢ(pᵢ − v)‖², which grows with q.

    >>> nearest([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]], [2.0, 2.0]).round(12).tolist()
    [1.0, 1.0]
    """
    from scipy.optimize import nnls

    p, target = np.asarray(points, dtype=float), np.asarray(v, dtype=float)
    away = p - target
    unit = np.abs(away).max()
    if unit == 0:
        return target.copy()
    system = np.vstack([away.T / unit, np.ones(len(p))])
    weights, _ = nnls(system, np.append(np.zeros_like(target), 1.0), maxiter=100 * (len(p) + 10))
    return weights @ p / weights.sum()


@dataclass(frozen=True)
class Kink:
    """A function at a point; its Clarke subdifferential there is conv(`vertices`), or the unit ball without any.

    One vertex alone is a point at which the function is differentiable.

    >>> Kink("max(x, 0)", (0.0,), ((0.0,), (1.0,))).distance([1.5])
    0.5
    """

    function: str
    at: tuple[float, ...]
    vertices: tuple[tuple[float, ...], ...] = ()

    def distance(self, v: Sequence[float]) -> float:
        """From v to the Clarke subdifferential; ∞ where v is not finite."""
        if not np.isfinite(v).all():
            return math.inf
        if not self.vertices:
            return max(math.hypot(*v) - 1.0, 0.0)
        return float(np.linalg.norm(np.asarray(v) - nearest(self.vertices, v)))

    @property
    def clarke(self) -> str:
        """The set in words."""
        if not self.vertices:
            return "the unit ball"
        ends = [_shown(vertex) for vertex in self.vertices]
        if len(ends) == 1:
            return f"{{{ends[0]}}}"
        return f"[{', '.join(ends)}]"


@dataclass(frozen=True)
class Returned:
    """What one spelling of a function returned at a kink, in one framework.

    >>> Returned(KINKS["max(x, 0)"], "relu(x)", "torch", "2.13.0", (0.0,)).inside
    True
    """

    kink: Kink
    spelling: str
    framework: str
    version: str
    value: tuple[float, ...]

    @property
    def distance(self) -> float:
        return self.kink.distance(self.value)

    @property
    def inside(self) -> bool:
        """Whether the value is in the Clarke subdifferential, up to rounding."""
        return self.distance <= 1e-12

    @property
    def shown(self) -> str:
        return _shown(self.value)


def _shown(v: Sequence[float]) -> str:
    numbers = ", ".join(f"{entry:g}" for entry in v)
    return numbers if len(v) == 1 else f"({numbers})"


_ENDS = ((0.0,), (1.0,))

KINKS = {
    kink.function: kink
    for kink in (
        Kink("max(x, 0)", (0.0,), _ENDS),
        Kink("min(x, 1)", (1.0,), _ENDS),
        Kink("|x|", (0.0,), ((-1.0,), (1.0,))),
        Kink("max(x₁, x₂)", (1.0, 1.0), ((1.0, 0.0), (0.0, 1.0))),
        Kink("‖x‖", (0.0, 0.0)),
        Kink("x", (0.0,), ((1.0,),)),
    )
}
"""By name. The last is differentiable: only a spelling makes a kink of it."""

"""Convex penalties that are a sum over coordinates: ‖x‖₁, ‖x‖², both, and a smoothed ‖x‖₁."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Array, NonNegative, Positive, like
from nonsmooth.penalties.penalty import Penalty, as_precise, positive_part, shrink

__all__ = ["ElasticNet", "L1", "SmoothedL1", "SquaredL2"]

NEWTON_STEPS = 24  # for the smoothed ‖x‖₁; they reach rounding while tλ/δ is at most 10¹⁰


@dataclass(frozen=True)
class L1(Penalty):
    """g(x) = λ Σ wᵢ|xᵢ|; w = 1 unless `weights` (of x's shape, >= 0) gives a strength to each coordinate.

    Kinks: every coordinate at 0. Selection: λ wᵢ sign(xᵢ), 0 at 0, as torch.

    >>> L1(0.5).prox(np.array([2.0, 0.3, 0.0]), 1.0).tolist()
    [1.5, 0.0, 0.0]
    """

    lam: NonNegative
    weights: Array | None = None

    def validate(self) -> None:
        if self.weights is not None and np.any(np.asarray(self.weights) < 0):
            raise ValueError("L1: weights must be 0 or above; a negative weight has no minimiser.")

    def _strength(self, x: Any) -> Any:
        if self.weights is None:
            return self.lam
        if tuple(self.weights.shape) != tuple(x.shape):
            raise ValueError(
                f"L1: weights of shape {tuple(self.weights.shape)} do not fit a point of shape {tuple(x.shape)}."
            )
        return self.lam * like(self.weights, x)

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        return xp.sum(self._strength(x) * xp.abs(x))

    def grad(self, x: Any) -> Any:
        return self._strength(x) * array_namespace(x).sign(x)

    def prox(self, x: Any, t: Any) -> Any:
        """Soft thresholding: sign(x) max(|x| − tλw, 0)."""
        return shrink(x, t * self._strength(x))

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        xp, x = array_namespace(x), as_precise(x, v)
        strength = self._strength(x)
        return xp.where(x == 0, positive_part(xp.abs(v) - strength), xp.abs(v - strength * xp.sign(x)))


@dataclass(frozen=True)
class SquaredL2(Penalty):
    """g(x) = λ‖x‖², smooth, gradient 2λx (weight decay wd in torch's SGD is λ = wd/2).

    >>> float(SquaredL2(1.0).prox(np.array([3.0]), 1.0)[0])
    1.0
    """

    lam: NonNegative

    def value(self, x: Any) -> Any:
        return self.lam * array_namespace(x).sum(x * x)

    def grad(self, x: Any) -> Any:
        return 2 * self.lam * x

    def prox(self, x: Any, t: Any) -> Any:
        return x / (1 + 2 * self.lam * t)

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        return array_namespace(x).abs(v - 2 * self.lam * as_precise(x, v))


@dataclass(frozen=True)
class ElasticNet(Penalty):
    """g(x) = λ‖x‖₁ + ρ‖x‖². Kinks and selection as L1's.

    >>> ElasticNet(lam=1.0, ridge=0.5).prox(np.array([3.0, 0.5]), 1.0).tolist()
    [1.0, 0.0]
    """

    lam: NonNegative
    ridge: NonNegative

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        return xp.sum(self.lam * xp.abs(x) + self.ridge * x * x)

    def grad(self, x: Any) -> Any:
        return self.lam * array_namespace(x).sign(x) + 2 * self.ridge * x

    def prox(self, x: Any, t: Any) -> Any:
        """The L1 shrinkage first, then the ridge scaling (Parikh & Boyd 2014, section 6.5.3)."""
        return shrink(x, t * self.lam) / (1 + 2 * self.ridge * t)

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        return L1(0.0).replaced(lam=self.lam).subdiff_distance(x, v - 2 * self.ridge * as_precise(x, v))


@dataclass(frozen=True)
class SmoothedL1(Penalty):
    """g(x) = λ Σ (√(xᵢ² + δ²) − δ), the pseudo-Huber smoothing of λ‖x‖₁: C^∞, slopes in (−λ, λ), curvature ≤ λ/δ.

    With τ = tλ, |p| is the root of the increasing, concave p + τp/√(p² + δ²) − |x| over p ≥ 0: Newton's method
    rises to it from any point below, such as max(|x| − τ, |x|/(1 + τ/δ)). Source: Hartley & Zisserman 2004,
    Multiple view geometry, appendix 6.8.

    >>> SmoothedL1(1.0, delta=3.0).prox(np.array([4.8, -4.8, 0.0]), 1.0).round(12).tolist()
    [4.0, -4.0, 0.0]
    """

    lam: NonNegative
    delta: Positive

    def _radius(self, x: Any) -> Any:
        """√(x² + δ²), without overflow."""
        xp = array_namespace(x)
        return xp.hypot(x, xp.zeros_like(x) + self.delta)

    def value(self, x: Any) -> Any:
        return self.lam * array_namespace(x).sum(x * (x / (self._radius(x) + self.delta)))

    def grad(self, x: Any) -> Any:
        return self.lam * x / self._radius(x)

    def prox(self, x: Any, t: Any) -> Any:
        xp = array_namespace(x)
        size, tau = xp.abs(x), t * self.lam
        p = xp.maximum(size - tau, size / (1 + tau / self.delta))
        for _ in range(NEWTON_STEPS):
            radius = self._radius(p)
            p = p + (size - p - tau * p / radius) / (1 + tau * (self.delta / radius) ** 2 / radius)
        return xp.sign(x) * p

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        return array_namespace(x).abs(v - self.grad(as_precise(x, v)))

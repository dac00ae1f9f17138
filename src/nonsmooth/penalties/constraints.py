"""Constraints as penalties: the indicator of a set, 0 on it and ∞ off it, whose prox is a projection.

With one step a coordinate the projection is the nearest point in the metric Σ(p − x)²/(2t), to which a factor of all
steps is nothing; where all are 0, as one that a schedule starts from, it is that of equal steps. The subdifferential is
the set's normal cone, empty off the set: the distance to it is ∞ there. Autograd has no gradient for any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Positive, Real, Schedule
from nonsmooth.penalties.penalty import Penalty, positive_part, ratio

__all__ = ["Box", "NM", "NonNegative", "Simplex"]


class Constraint(Penalty):
    """The indicator of a set that a point belongs to exactly when the projection leaves it where it is."""

    def value(self, x: Any) -> Any:
        return _indicator(x, x == self.prox(x, 1.0))


@dataclass(frozen=True)
class Box(Constraint):
    """low ≤ xᵢ ≤ high for every coordinate; None is no bound.

    The projection clips, whatever the step. Normal cone: v ≤ 0 at low, v ≥ 0 at high, 0 between.

    >>> Box(-1.0, 2.0).prox(np.array([-3.0, 0.5, 4.0]), 1.0).tolist()
    [-1.0, 0.5, 2.0]
    """

    low: Real | None = None
    high: Real | None = None

    def validate(self) -> None:
        low, high = self.low, self.high
        if low is None or high is None or isinstance(low, Schedule) or isinstance(high, Schedule):
            return
        paired = hasattr(low, "dims") and hasattr(high, "dims")  # labelled axes meet by name, all others cross
        if np.any(low > high if paired else np.max(low) > np.min(high)):
            raise ValueError(
                f"Box: low = {np.max(low):g} is above high = {np.min(high):g}; no point lies between them."
            )

    def prox(self, x: Any, t: Any) -> Any:
        xp = array_namespace(x)
        x = x if self.low is None else xp.maximum(x, xp.zeros_like(x) + self.low)
        return x if self.high is None else xp.minimum(x, xp.zeros_like(x) + self.high)

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        xp = array_namespace(x)
        distance, clipped = xp.abs(v), self.prox(x, 1.0)
        if self.low is not None:
            distance = xp.where((x == xp.zeros_like(x) + self.low) & (v < 0), xp.zeros_like(v), distance)
        if self.high is not None:
            distance = xp.where((x == xp.zeros_like(x) + self.high) & (v > 0), xp.zeros_like(v), distance)
        return xp.where(x == clipped, distance, xp.abs(x) + xp.inf)


@dataclass(frozen=True)
class NonNegative(Constraint):
    """xᵢ ≥ 0 for every coordinate: the box from 0 on.

    >>> NonNegative().prox(np.array([-3.0, 0.5]), 1.0).tolist()
    [0.0, 0.5]
    """

    def prox(self, x: Any, t: Any) -> Any:
        return positive_part(x)

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        return Box(low=0.0).subdiff_distance(x, v)


@dataclass(frozen=True)
class Simplex(Constraint):
    """x ≥ 0 and Σxᵢ = radius, over all entries of x; the sum may be off by 4 roundings an entry.

    The projection is pᵢ = max(xᵢ − tᵢθ, 0). Any set S of coordinates bounds θ ≥ (Σ_S x − radius)/Σ_S t, and the
    set where p > 0, the first few in the order of falling x/t, attains it (Held, Wolfe & Crowder 1974; Duchi et al.
    2008). Normal cone: the v that are level, at some θ, where x > 0 and at most θ elsewhere; the distance is to the
    element that is nearest in the 2-norm.

    >>> Simplex().prox(np.array([0.75, 0.5, -2.0]), 1.0).tolist()
    [0.625, 0.375, 0.0]
    >>> Simplex().prox(np.array([1.0, 1.0]), np.array([1.0, 3.0])).tolist()  # θ = 1/4
    [0.75, 0.25]
    """

    radius: Positive = 1.0

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        off = xp.abs(xp.sum(x) - self.radius)
        rounding = 4 * max(1, _count(x)) * xp.finfo(x.dtype).eps * self.radius
        return _indicator(x, (x >= 0) & (off <= rounding)) if _count(x) else xp.sum(x) + xp.inf

    def prox(self, x: Any, t: Any) -> Any:
        if _count(x) == 0:  # no point lies in the set
            return x
        xp = array_namespace(x)
        p, steps = xp.reshape(x, (-1,)), xp.reshape(_metric(x, t), (-1,))
        for _ in range(2):  # x − tθ has the projection that x has: the second pass mends the rounding of the first
            order = xp.argsort(-p / steps)
            sums, weights = (xp.cumulative_sum(xp.take(a, order)) for a in (p, steps))
            p = p - steps * xp.max((sums - self.radius) / weights)
        return xp.reshape(positive_part(p), x.shape)

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        xp = array_namespace(x)
        if _count(x) == 0:
            return v
        free, slopes = (xp.reshape(a, (-1,)) for a in (x > 0, v))
        order = xp.argsort(-xp.where(free, xp.zeros_like(slopes) + xp.inf, slopes))
        size = xp.cumulative_sum(xp.ones_like(slopes))
        means = xp.cumulative_sum(xp.take(slopes, order)) / size  # θ is the largest over sets that hold the free ones
        theta = xp.max(xp.where(size >= xp.sum(xp.astype(free, v.dtype)), means, xp.zeros_like(means) - xp.inf))
        distance = xp.where(x > 0, xp.abs(v - theta), positive_part(v - theta))
        return distance + self.value(x)


@dataclass(frozen=True)
class NM(Constraint):
    """At most n entries that are not 0 in every m consecutive ones along `dim` (2:4 sparsity; Zhou et al. 2021).

    The projection keeps the n largest xᵢ²/tᵢ of each m; the first, where some are level. Normal cone (Fréchet):
    where a group has n entries that are not 0, v = 0 on those; where it has fewer, v = 0.

    >>> NM(2, 4).prox(np.array([3.0, -1.0, 1.0, 0.5]), 1.0).tolist()
    [3.0, -1.0, 0.0, 0.0]
    """

    n: int = 2
    m: int = 4
    dim: int = -1

    convex: ClassVar[bool] = False

    def validate(self) -> None:
        for name, high in {"m": None, "n": self.m}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1 or (high and value > high):
                must = f"from 1 to m = {high}" if high else "above 0"
                raise ValueError(f"NM: {name} must be a whole number {must}, not {value!r}.")

    def prox(self, x: Any, t: Any) -> Any:
        xp = array_namespace(x)
        cost = xp.abs(x) / xp.sqrt(_metric(x, t))
        place = self._by_group(lambda c: xp.argsort(xp.argsort(-c, axis=-1), axis=-1), cost)
        return xp.where((place < self.n) | xp.isnan(x), x, xp.zeros_like(x))

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        xp = array_namespace(x)
        used = self._by_group(lambda a: xp.zeros_like(a) + xp.sum(a, axis=-1, keepdims=True), xp.abs(xp.sign(x)))
        distance = xp.where((used == self.n) & (x == 0), xp.zeros_like(v), xp.abs(v))
        return xp.where(used <= self.n, distance, used + xp.inf)

    def _by_group(self, function: Callable[[Any], Any], a: Any) -> Any:
        """What the function makes of the groups, which lie along its argument's last axis, in a's order again."""
        xp = array_namespace(a)
        if self.dim not in range(-a.ndim, a.ndim):
            raise ValueError(f"NM: a point of shape {tuple(a.shape)} has no dimension {self.dim}.")
        if a.shape[self.dim] % self.m:
            raise ValueError(
                f"NM: m = {self.m} does not divide the {a.shape[self.dim]} entries of dimension {self.dim}."
            )
        last = xp.moveaxis(a, self.dim, -1)
        groups = xp.reshape(last, (*last.shape[:-1], last.shape[-1] // self.m, self.m))
        return xp.moveaxis(xp.reshape(function(groups), last.shape), -1, self.dim)


def _metric(x: Any, t: Any) -> Any:
    """The steps as parts of the largest; what is below eps² of it as good as stands still."""
    xp = array_namespace(x)
    steps = xp.zeros_like(x) + t
    if _count(x) == 0:
        return steps
    largest = xp.max(steps)
    parts = xp.where(largest > 0, ratio(steps, largest), xp.ones_like(x))
    return xp.maximum(parts, xp.full_like(x, xp.finfo(x.dtype).eps ** 2))


def _indicator(x: Any, belongs: Any) -> Any:
    """0 where every coordinate belongs, otherwise ∞, and NaN where x is."""
    xp = array_namespace(x)
    return xp.sum(xp.where(belongs, xp.zeros_like(x), xp.abs(x) + xp.inf))


def _count(x: Any) -> int:
    return int(np.prod(x.shape, dtype=int))

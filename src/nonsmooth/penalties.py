"""Penalties g: value, the gradient that autograd returns, proximal map, and the certificate beside it.

A penalty sees one point x of any shape and sums over all of it (batching is `vmap`'s). With t > 0 a number or
an array of x's shape,

    prox(x, t) = argmin_p  g(p) + Σ (p − x)²/(2t)

and `subdiff_distance(x, v)` is, coordinate by coordinate, how far v is from ∂g(x): p = prox(x, t) exactly when
(x − p)/t ∈ ∂g(p). Everything works on NumPy, JAX and torch arrays alike. Source: Parikh & Boyd 2014, Proximal
algorithms, sections 1 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Array, Hyperparameters, NonNegative, like

__all__ = ["ElasticNet", "GroupLasso", "L1", "Penalty", "SquaredL2"]

NEWTON_STEPS = 20  # for a group's norm under unequal steps; 12 reach rounding when the steps span eight decades


class Penalty(Hyperparameters):
    """What a penalty must offer; `grad` may be left out where autograd has none to offer."""

    def value(self, x: Any) -> Any:
        """g(x), a scalar."""
        raise TypeError(f"{type(self).__name__} defines no value.")

    def grad(self, x: Any) -> Any:
        """What autograd returns for g at x, of x's shape."""
        raise TypeError(f"{type(self).__name__} has no gradient; use penalty_by='prox'.")

    def prox(self, x: Any, t: Any) -> Any:
        """argmin_p g(p) + Σ(p − x)²/(2t), of x's shape."""
        raise TypeError(f"{type(self).__name__} has no proximal map; use penalty_by='autograd'.")

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        """Distance, coordinate by coordinate, from v to ∂g(x)."""
        raise TypeError(f"{type(self).__name__} defines no subdifferential distance.")

    @property
    def has_grad(self) -> bool:
        """Whether autograd has a gradient for this penalty."""
        return type(self).grad is not Penalty.grad


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
        xp = array_namespace(x)
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
        return array_namespace(x).abs(v - 2 * self.lam * x)


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
        return L1(0.0).replaced(lam=self.lam).subdiff_distance(x, v - 2 * self.ridge * x)


@dataclass(frozen=True)
class GroupLasso(Penalty):
    """g(x) = λ Σ_G s_G ‖x_G‖₂, with s_G = 1, or √|G| when `scale_by_size` is set (Yuan & Lin 2006).

    Groups: one for each index of dimension `dim` (the rows of a weight matrix, the output channels of a
    convolution, as in torch.nn.utils.prune.ln_structured), or, for a flat point, `groups`: a label for each
    coordinate. Kinks: a group at 0. Selection: λ s_G x_G/‖x_G‖, 0 at 0, as torch's norm.

    With one step a coordinate, the prox of a group is p_i = s x_i/(s + λ t_i) where s = ‖p‖ solves
    ‖x/(s + λt)‖ = 1; Newton's method on the reciprocal of that norm rises to s from below, and the group is 0
    exactly when ‖x/t‖ ≤ λ.

    >>> GroupLasso(1.0).prox(np.array([[3.0, 4.0], [0.6, 0.0]]), 1.0).round(12).tolist()
    [[2.4, 3.2], [0.0, 0.0]]
    """

    lam: NonNegative
    dim: int = 0
    groups: tuple[int, ...] | None = None
    scale_by_size: bool = False

    def __post_init__(self) -> None:
        if self.groups is not None:
            labels = np.asarray(self.groups)
            if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError("GroupLasso: groups must be a flat list of integers, one label for each coordinate.")
            dense = np.unique(labels, return_inverse=True)[1]
            object.__setattr__(self, "groups", tuple(int(i) for i in dense))
        super().__post_init__()

    def _spread(self, reduce: str, a: Any) -> Any:
        """The sum or max of a over each group, at each coordinate of the group."""
        xp = array_namespace(a)
        if self.groups is None:
            if self.dim not in range(-a.ndim, a.ndim):
                raise ValueError(f"GroupLasso: a point of shape {tuple(a.shape)} has no dimension {self.dim}.")
            axes = tuple(i for i in range(a.ndim) if i != self.dim % a.ndim)
            return xp.zeros_like(a) + getattr(xp, reduce)(a, axis=axes, keepdims=True) if axes else a
        if tuple(a.shape) != (len(self.groups),):
            raise ValueError(
                f"GroupLasso: {len(self.groups)} group labels do not fit a point of shape {tuple(a.shape)}."
            )
        member = like(np.equal.outer(np.arange(max(self.groups) + 1), self.groups), a)
        return xp.matmul(getattr(xp, reduce)(member * a, axis=1), member)

    def _sum(self, a: Any) -> Any:
        return self._spread("sum", a)

    def _sizes(self, x: Any) -> Any:
        """|G| at each coordinate."""
        return self._sum(array_namespace(x).ones_like(x))

    def _scale(self, x: Any) -> Any:
        return array_namespace(x).sqrt(self._sizes(x)) if self.scale_by_size else 1.0

    def norms(self, x: Any) -> Any:
        """‖x_G‖ at each coordinate of x."""
        xp = array_namespace(x)
        return xp.sqrt(self._sum(x * x))

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        return self.lam * xp.sum(self._scale(x) * self.norms(x) / self._sizes(x))

    def grad(self, x: Any) -> Any:
        return self.lam * self._scale(x) * ratio(x, self.norms(x))

    def prox(self, x: Any, t: Any) -> Any:
        xp = array_namespace(x)
        threshold = xp.zeros_like(x) + t * (self.lam * self._scale(x))
        s = positive_part(self.norms(x) - self._spread("max", threshold))  # s itself, where t is one number
        for _ in range(0 if getattr(t, "ndim", 0) == 0 else NEWTON_STEPS):
            q = ratio(x, s + threshold)
            norm = self.norms(q)
            slope = ratio(self._sum(ratio(q * q, s + threshold)), norm**3)
            s = s + positive_part(ratio(1 - ratio(xp.ones_like(s), norm), slope))
        return x * xp.where(threshold == 0, xp.ones_like(x), ratio(s, s + threshold))

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        xp = array_namespace(x)
        strength = self.lam * self._scale(x)
        outside = xp.abs(v) * positive_part(1 - ratio(strength * xp.ones_like(v), self.norms(v)))
        return xp.where(self.norms(x) == 0, outside, xp.abs(v - self.grad(x)))


def shrink(x: Any, threshold: Any) -> Any:
    """Soft thresholding, sign(x) max(|x| − threshold, 0)."""
    xp = array_namespace(x)
    return xp.sign(x) * positive_part(xp.abs(x) - threshold)


def positive_part(x: Any) -> Any:
    """max(x, 0), with NaN kept."""
    xp = array_namespace(x)
    return xp.maximum(x, xp.zeros_like(x))


def ratio(a: Any, b: Any) -> Any:
    """a/b, and 0 where b is 0 (whose branch is kept free of a division by 0)."""
    xp = array_namespace(b)
    quotient = a / xp.where(b == 0, xp.ones_like(b), b)
    return xp.where(b == 0, xp.zeros_like(quotient), quotient)

"""Penalties on the norms of groups of coordinates, which die together."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from nonsmooth.hyperparameters import NonNegative
from nonsmooth.penalties.penalty import Penalty, as_precise, positive_part, ratio, shrink

__all__ = ["GroupLasso", "SparseGroupLasso"]

NEWTON_STEPS = 20  # for a group's norm under unequal steps; 12 reach rounding when the steps span eight decades


@functools.lru_cache(maxsize=64)
def _members(groups: tuple[int, ...]) -> tuple[list[np.ndarray], np.ndarray]:
    """The coordinates of each group, in arrays of groups of one size; and each coordinate's group in their order."""
    sizes = np.bincount(groups)
    order, first = np.argsort(groups, kind="stable"), np.cumsum(sizes) - sizes
    there = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    place = np.argsort(np.concatenate(there))[np.asarray(groups)]
    return [order[first[k][:, None] + np.arange(sizes[k[0]])] for k in there], place


def _take(a: Any, indices: np.ndarray) -> Any:
    xp = array_namespace(a)
    return xp.take(a, xp.asarray(indices, device=device(a)), axis=0)


class Grouped(Penalty):
    """A penalty with groups of coordinates: which they are, and what μ Σ_G s_G ‖x_G‖₂ is made of."""

    dim: int
    groups: tuple[int, ...] | None
    scale_by_size: bool

    def __post_init__(self) -> None:
        if self.groups is not None:
            labels = np.asarray(self.groups)
            if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(
                    f"{type(self).__name__}: groups must be a flat list of integers, one label for each coordinate."
                )
            dense = np.unique(labels, return_inverse=True)[1]
            object.__setattr__(self, "groups", tuple(int(i) for i in dense))
        super().__post_init__()

    def _spread(self, reduce: str, a: Any) -> Any:
        """The sum or max of a over each group, at each coordinate of the group."""
        xp, who = array_namespace(a), type(self).__name__
        if self.groups is None:
            if self.dim not in range(-a.ndim, a.ndim):
                raise ValueError(f"{who}: a point of shape {tuple(a.shape)} has no dimension {self.dim}.")
            axes = tuple(i for i in range(a.ndim) if i != self.dim % a.ndim)
            return (
                xp.zeros_like(a) + getattr(xp, reduce)(a, axis=axes, keepdims=True) if axes and 0 not in a.shape else a
            )
        if tuple(a.shape) != (len(self.groups),):
            raise ValueError(f"{who}: {len(self.groups)} group labels do not fit a point of shape {tuple(a.shape)}.")
        by_size, place = _members(self.groups)
        rows = [xp.reshape(_take(a, i.ravel()), i.shape) for i in by_size]
        return _take(xp.concat([getattr(xp, reduce)(row, axis=1) for row in rows]), place)

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

    def _group_value(self, x: Any, lam: Any) -> Any:
        return lam * array_namespace(x).sum(self._scale(x) * self.norms(x) / self._sizes(x))

    def _group_grad(self, x: Any, lam: Any) -> Any:
        return lam * self._scale(x) * ratio(x, self.norms(x))

    def _group_prox(self, x: Any, t: Any, lam: Any) -> Any:
        xp = array_namespace(x)
        threshold = xp.zeros_like(x) + t * (lam * self._scale(x))
        s = positive_part(self.norms(x) - self._spread("max", threshold))  # s itself, where t is one number
        for _ in range(0 if getattr(t, "ndim", 0) == 0 else NEWTON_STEPS):
            q = ratio(x, s + threshold)
            norm = self.norms(q)
            slope = ratio(self._sum(ratio(q * q, s + threshold)), norm**3)
            s = s + positive_part(ratio(1 - ratio(xp.ones_like(s), norm), slope))
        return x * xp.where(threshold == 0, xp.ones_like(x), ratio(s, s + threshold))

    def _group_distance(self, x: Any, v: Any, lam: Any) -> Any:
        xp, x = array_namespace(x), as_precise(x, v)
        strength = lam * self._scale(x)
        outside = xp.abs(v) * positive_part(1 - ratio(strength * xp.ones_like(v), self.norms(v)))
        return xp.where(self.norms(x) == 0, outside, xp.abs(v - self._group_grad(x, lam)))


@dataclass(frozen=True)
class GroupLasso(Grouped):
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

    def value(self, x: Any) -> Any:
        return self._group_value(x, self.lam)

    def grad(self, x: Any) -> Any:
        return self._group_grad(x, self.lam)

    def prox(self, x: Any, t: Any) -> Any:
        return self._group_prox(x, t, self.lam)

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        return self._group_distance(x, v, self.lam)


@dataclass(frozen=True)
class SparseGroupLasso(Grouped):
    """g(x) = λ‖x‖₁ + μ Σ_G s_G ‖x_G‖₂, μ = `group_lam`; groups and s_G as GroupLasso's (Simon et al. 2013).

    Kinks: every coordinate at 0, and a group at 0. Selection: λ sign(xᵢ) + μ s_G xᵢ/‖x_G‖, each part 0 at 0.

    The prox is soft thresholding and then the prox of the groups, with one step a coordinate too (Yu 2013): the
    second map moves no sign, so that what the first took from ∂λ|·| still lies in it.

    >>> SparseGroupLasso(lam=1.0, group_lam=1.0).prox(np.array([[4.0, 5.0], [1.5, 0.0]]), 1.0).round(12).tolist()
    [[2.4, 3.2], [0.0, 0.0]]
    """

    lam: NonNegative
    group_lam: NonNegative
    dim: int = 0
    groups: tuple[int, ...] | None = None
    scale_by_size: bool = False

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        return self.lam * xp.sum(xp.abs(x)) + self._group_value(x, self.group_lam)

    def grad(self, x: Any) -> Any:
        return self.lam * array_namespace(x).sign(x) + self._group_grad(x, self.group_lam)

    def prox(self, x: Any, t: Any) -> Any:
        return self._group_prox(shrink(x, t * self.lam), t, self.group_lam)

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        """What the best element of ∂λ|·| leaves of v, and then the distance from that to the groups' part."""
        xp, x = array_namespace(x), as_precise(x, v)
        left = xp.where(x == 0, shrink(v, self.lam), v - self.lam * xp.sign(x))
        return self._group_distance(x, left, self.group_lam)

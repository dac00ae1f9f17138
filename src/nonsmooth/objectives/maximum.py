"""Maxima: the functions on which the subgradient method is slowest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Array, Positive, like
from nonsmooth.objectives.objective import Constants, Objective, need_ndim

__all__ = ["MaxLinear", "MaxQuadratic"]


def _select(scores: Any, ties: str) -> Any:
    """The weights with which autograd shares the gradient of a maximum among its winners."""
    xp = array_namespace(scores)
    if ties == "first":
        order = like(np.arange(scores.shape[0]), scores)
        return xp.astype(order == xp.astype(xp.argmax(scores), scores.dtype), scores.dtype)
    winners = xp.astype(scores == xp.max(scores), scores.dtype)
    return winners / xp.sum(winners)


def _lead(scores: Any) -> Any:
    """How far the winner is ahead of the next: 0 exactly at a tie; shape (1,), or (0,) for a single score."""
    ordered = array_namespace(scores).sort(scores)
    gaps = ordered[1:] - ordered[:-1]
    return gaps[max(gaps.shape[0] - 1, 0) :]


@dataclass(frozen=True)
class MaxLinear(Objective):
    """f(x) = maxₖ (aₖ·x + bₖ), A of shape (K, P), b of shape (K,). Kink: two winners (the aₖ differ). G = maxₖ ‖aₖ‖.

    Selection by `ties`: "first", the first winner (torch `max(0).values`), or "average" over all of them
    (torch `max()`, `amax()`). Both are subgradients and lead to different runs.

    >>> MaxLinear(np.eye(2), np.zeros(2)).grad(np.zeros(2)).tolist()
    [1.0, 0.0]
    """

    A: Array
    b: Array
    ties: Literal["first", "average"] = "first"

    def validate(self) -> None:
        need_ndim(self, "A", 2)
        need_ndim(self, "b", 1)
        if self.A.shape[0] != self.b.shape[0]:
            raise ValueError(
                f"MaxLinear: A has {self.A.shape[0]} rows and b {self.b.shape[0]} entries; give one b a row."
            )
        _need_ties(self)

    @property
    def shape(self) -> tuple[int]:
        return (int(self.A.shape[1]),)

    def _scores(self, x: Any) -> Any:
        return array_namespace(x).matmul(like(self.A, x), x) + like(self.b, x)

    def value(self, x: Any) -> Any:
        return array_namespace(x).max(self._scores(x))

    def grad(self, x: Any) -> Any:
        return array_namespace(x).matmul(_select(self._scores(x), self.ties), like(self.A, x))

    def kinks(self, x: Any) -> Any:
        return _lead(self._scores(x))

    @property
    def constants(self) -> Constants:
        return Constants(G=float(np.max(np.linalg.norm(self.A, axis=1))))

    @property
    def minimiser(self) -> np.ndarray | None:
        """By linear programming (SciPy, HiGHS), to its tolerance of 1e-7; None where f is unbounded below."""
        from scipy.optimize import linprog

        objective = np.append(np.zeros(self.shape), 1.0)
        solved = linprog(objective, np.c_[self.A, -np.ones(len(self.b))], -self.b, bounds=(None, None))
        return solved.x[:-1] if solved.success else None


@dataclass(frozen=True)
class MaxQuadratic(Objective):
    """f(x) = γ max_{i ≤ k} xᵢ + (μ/2)‖x‖² on P = `dim` coordinates: Nesterov's hard function (2004, section 3.2.1).

    x* has −γ/(μk) in its first k coordinates, f* = −γ²/(2μk); mu = μ, and f is Lipschitz on balls only.
    Kink: two winners among the first k. Selection by `ties` as in `MaxLinear`.

    >>> MaxQuadratic(dim=4, k=4).minimum
    -0.125
    """

    dim: int
    k: int
    gamma: Positive = 1.0
    mu: Positive = 1.0
    ties: Literal["first", "average"] = "first"

    def validate(self) -> None:
        if not 1 <= self.k <= self.dim:
            raise ValueError(f"MaxQuadratic: k must be between 1 and dim = {self.dim}, not {self.k}.")
        _need_ties(self)

    @property
    def shape(self) -> tuple[int]:
        return (self.dim,)

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        return self.gamma * xp.max(x[: self.k]) + 0.5 * self.mu * xp.sum(x * x)

    def grad(self, x: Any) -> Any:
        xp = array_namespace(x)
        winners = xp.concat([_select(x[: self.k], self.ties), xp.zeros_like(x[self.k :])])
        return self.gamma * winners + self.mu * x

    def kinks(self, x: Any) -> Any:
        return _lead(x[: self.k])

    @property
    def constants(self) -> Constants:
        return Constants(mu=self.mu)

    @property
    def minimiser(self) -> np.ndarray:
        return np.where(np.arange(self.dim) < self.k, -self.gamma / (self.mu * self.k), 0.0)


def _need_ties(record: MaxLinear | MaxQuadratic) -> None:
    if record.ties not in ("first", "average"):
        raise ValueError(f"{type(record).__name__}: ties must be 'first' or 'average', not {record.ties!r}.")

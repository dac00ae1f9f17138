"""Sums of one function over the coordinates, and the quadratic of a given spectrum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Array, Positive, like
from nonsmooth.objectives.objective import Constants, Objective, need_ndim

__all__ = ["Absolute", "Huber", "LogCosh", "PseudoHuber", "Quadratic", "Separable"]


@dataclass(frozen=True)
class Separable(Objective):
    """f(x) = Σ h(xᵢ) over P = `dim` coordinates, with its minimum at 0.

    >>> Absolute(dim=3).minimiser.tolist()
    [0.0, 0.0, 0.0]
    """

    dim: int = field(default=1, kw_only=True)

    def validate(self) -> None:
        if not isinstance(self.dim, int) or self.dim < 1:
            raise ValueError(f"{type(self).__name__}: dim must be a whole number, 1 or above, not {self.dim!r}.")

    @property
    def shape(self) -> tuple[int]:
        return (self.dim,)

    @property
    def minimiser(self) -> np.ndarray:
        return np.zeros(self.dim)


@dataclass(frozen=True)
class Absolute(Separable):
    """f(x) = Σ|xᵢ|. Kinks: xᵢ = 0. Selection: sign(x), 0 at 0 (torch.abs). G = √P, attained off the kinks.

    >>> Absolute().grad(np.array([-2.0, 0.0])).tolist()
    [-1.0, 0.0]
    """

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        return xp.sum(xp.abs(x))

    def grad(self, x: Any) -> Any:
        return array_namespace(x).sign(x)

    def kinks(self, x: Any) -> Any:
        return x

    @property
    def constants(self) -> Constants:
        return Constants(G=float(np.sqrt(self.dim)))


@dataclass(frozen=True)
class Huber(Separable):
    """h(r) = r²/2 for |r| ≤ δ, δ(|r| − δ/2) beyond (torch huber_loss). C¹: no kinks. L = 1, G = δ√P.

    >>> float(Huber(delta=1.0).value(np.array([3.0])))
    2.5
    """

    delta: Positive = 1.0

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        size = xp.abs(x)
        return xp.sum(xp.where(size <= self.delta, 0.5 * x * x, self.delta * (size - 0.5 * self.delta)))

    def grad(self, x: Any) -> Any:
        xp = array_namespace(x)
        return xp.where(xp.abs(x) <= self.delta, x, self.delta * xp.sign(x))

    @property
    def constants(self) -> Constants:
        return Constants(L=1.0, G=self.delta * float(np.sqrt(self.dim)))


@dataclass(frozen=True)
class PseudoHuber(Separable):
    """h(r) = δ²(√(1 + (r/δ)²) − 1). C^∞. L = 1 at 0, G = δ√P at infinity.

    >>> float(PseudoHuber(delta=2.0).grad(np.array([1e9]))[0])
    2.0
    """

    delta: Positive = 1.0

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        square = (x / self.delta) ** 2
        return self.delta**2 * xp.sum(square / (1 + xp.sqrt(1 + square)))

    def grad(self, x: Any) -> Any:
        return x / array_namespace(x).sqrt(1 + (x / self.delta) ** 2)

    @property
    def constants(self) -> Constants:
        return Constants(L=1.0, G=self.delta * float(np.sqrt(self.dim)))


@dataclass(frozen=True)
class LogCosh(Separable):
    """h(r) = log cosh r = |r| + log(1 + e^(−2|r|)) − log 2. C^∞. L = 1 at 0, G = √P at infinity.

    >>> float(LogCosh().value(np.array([0.0])))
    0.0
    """

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        size = xp.abs(x)
        return xp.sum(size + (xp.log1p(xp.exp(-2 * size)) - float(np.log(2.0))))

    def grad(self, x: Any) -> Any:
        return array_namespace(x).tanh(x)

    @property
    def constants(self) -> Constants:
        return Constants(L=1.0, G=float(np.sqrt(self.dim)))


@dataclass(frozen=True)
class Quadratic(Objective):
    """f(x) = ½ Σ sᵢ xᵢ², s = `spectrum` of shape (P,), which may have negative entries. L = max|s|, mu = min s.

    >>> float(Quadratic([1.0, 4.0]).value(np.ones(2)))
    2.5
    """

    spectrum: Array

    def validate(self) -> None:
        need_ndim(self, "spectrum", 1)

    @property
    def shape(self) -> tuple[int]:
        return (int(self.spectrum.shape[0]),)

    def value(self, x: Any) -> Any:
        return 0.5 * array_namespace(x).sum(like(self.spectrum, x) * x * x)

    def grad(self, x: Any) -> Any:
        return like(self.spectrum, x) * x

    @property
    def constants(self) -> Constants:
        return Constants(L=float(np.max(np.abs(self.spectrum))), mu=float(np.min(self.spectrum)))

    @property
    def minimiser(self) -> np.ndarray | None:
        return np.zeros(self.shape) if np.min(self.spectrum) >= 0 else None

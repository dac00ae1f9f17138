"""Losses averaged over the rows of data."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Array, Positive, like
from nonsmooth.objectives.objective import Constants, Objective, need_ndim
from nonsmooth.penalties import positive_part

__all__ = ["FiniteSum", "Hinge", "LeastSquares", "Logistic", "Quantile", "QuadraticForm"]


@dataclass(frozen=True)
class QuadraticForm(Objective):
    """f(w) = ½ wᵀAw − bᵀw + c with A of shape (P, P): least squares with its Gram matrix at hand.

    >>> float(QuadraticForm(np.eye(2), [1.0, 1.0], 1.0).value(np.ones(2)))
    0.0
    """

    A: Array
    b: Array
    c: Array

    @property
    def shape(self) -> tuple[int]:
        return (int(self.b.shape[0]),)

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        return 0.5 * xp.sum(x * (xp.matmul(like(self.A, x), x) - 2 * like(self.b, x))) + like(self.c, x)

    def grad(self, x: Any) -> Any:
        return array_namespace(x).matmul(like(self.A, x), x) - like(self.b, x)


@dataclass(frozen=True)
class FiniteSum(Objective):
    """f(w) = (1/N) Σ ℓ(xₙ·w, yₙ) for data X of shape (N, P) and y of shape (N,).

    >>> LeastSquares(np.eye(3), np.ones(3)).rows([0, 2]).n
    2
    """

    X: Array
    y: Array

    def validate(self) -> None:
        need_ndim(self, "X", 2)
        need_ndim(self, "y", 1)
        if self.X.shape[0] != self.y.shape[0]:
            rows, entries = self.X.shape[0], self.y.shape[0]
            raise ValueError(f"{type(self).__name__}: X has {rows} rows and y {entries} entries; give one y a row.")

    @property
    def shape(self) -> tuple[int]:
        return (int(self.X.shape[1]),)

    @property
    def n(self) -> int:
        """The number of rows N."""
        return int(self.X.shape[0])

    def rows(self, index: Any) -> FiniteSum:
        """The same loss averaged over some rows: a minibatch."""
        return self.replaced(X=self.X[index], y=self.y[index])

    @functools.cached_property
    def spectral_norm(self) -> float:
        """The largest singular value of X, from the Gram matrix of its shorter side (the largest loses no digits)."""
        X = np.asarray(self.X)
        return float(np.sqrt(np.linalg.eigvalsh(X @ X.T if X.shape[0] < X.shape[1] else X.T @ X)[-1]))

    def _margins(self, w: Any) -> Any:
        return like(self.y, w) * array_namespace(w).matmul(like(self.X, w), w)

    def _pull_back(self, residual: Any) -> Any:
        """Xᵀ residual / N."""
        xp = array_namespace(residual)
        return xp.matmul(residual, like(self.X, residual)) / self.n


@dataclass(frozen=True)
class LeastSquares(FiniteSum):
    """f(w) = ‖y − Xw‖²/N. L = 2σ_max(X)²/N, mu = 2σ_min²/N (0 when P > N).

    With λ‖w‖₁ this is the Lasso (λ is twice scikit-learn's alpha); `critical_lam` is the λ from which w* = 0.

    >>> LeastSquares(np.eye(2), [1.0, 2.0]).grad(np.zeros(2)).tolist()
    [-1.0, -2.0]
    """

    def value(self, w: Any) -> Any:
        xp = array_namespace(w)
        residual = xp.matmul(like(self.X, w), w) - like(self.y, w)
        return xp.sum(residual * residual) / self.n

    def grad(self, w: Any) -> Any:
        return 2 * self._pull_back(array_namespace(w).matmul(like(self.X, w), w) - like(self.y, w))

    @property
    def critical_lam(self) -> float:
        """2‖Xᵀy‖∞/N."""
        return float(2 * np.max(np.abs(self.X.T @ self.y)) / self.n)

    @property
    def constants(self) -> Constants:
        smallest = float(np.linalg.norm(self.X, -2)) if self.n >= self.shape[0] else 0.0
        return Constants(L=2 * self.spectral_norm**2 / self.n, mu=2 * smallest**2 / self.n)

    @property
    def minimiser(self) -> np.ndarray:
        return np.linalg.lstsq(self.X, self.y, rcond=None)[0]

    def prepare(self) -> Objective:
        """½wᵀAw − bᵀw + c with A = 2XᵀX/N where that costs less a step (N ≥ P/2), else itself."""
        if 2 * self.n < self.shape[0]:
            return self
        return QuadraticForm(2 * self.X.T @ self.X / self.n, 2 * self.X.T @ self.y / self.n, self.y @ self.y / self.n)


@dataclass(frozen=True)
class Logistic(FiniteSum):
    """f(w) = (1/N) Σ log(1 + exp(−yₙ xₙ·w)), y ∈ {−1, 1}. C^∞, L = σ_max(X)²/(4N) at 0, G ≤ σ_max(X)/√N.

    No minimiser exists when the data are separable.

    >>> round(float(Logistic(np.eye(2), [1.0, -1.0]).value(np.zeros(2))), 6)
    0.693147
    """

    def validate(self) -> None:
        super().validate()
        _need_signs(self)

    def value(self, w: Any) -> Any:
        xp = array_namespace(w)
        margin = self._margins(w)
        return xp.sum(positive_part(-margin) + xp.log1p(xp.exp(-xp.abs(margin)))) / self.n

    def grad(self, w: Any) -> Any:
        xp = array_namespace(w)
        return -self._pull_back(like(self.y, w) * 0.5 * (1 - xp.tanh(0.5 * self._margins(w))))

    @property
    def constants(self) -> Constants:
        return Constants(L=self.spectral_norm**2 / (4 * self.n), G=self.spectral_norm / float(np.sqrt(self.n)))


@dataclass(frozen=True)
class Hinge(FiniteSum):
    """f(w) = (1/N) Σ max(0, 1 − yₙ xₙ·w), y ∈ {−1, 1}. Kinks: margins of 1. Selection: 0 there (torch.relu).

    G ≤ σ_max(X)/√N.

    >>> Hinge(np.eye(2), [1.0, 1.0]).grad(np.array([0.5, 0.0])).tolist()
    [-0.5, -0.5]
    """

    def validate(self) -> None:
        super().validate()
        _need_signs(self)

    def value(self, w: Any) -> Any:
        return array_namespace(w).sum(positive_part(1 - self._margins(w))) / self.n

    def grad(self, w: Any) -> Any:
        xp = array_namespace(w)
        y = like(self.y, w)
        return -self._pull_back(xp.where(self._margins(w) < 1, y, xp.zeros_like(y)))

    def kinks(self, w: Any) -> Any:
        return 1 - self._margins(w)

    @property
    def constants(self) -> Constants:
        return Constants(G=self.spectral_norm / float(np.sqrt(self.n)))


@dataclass(frozen=True)
class Quantile(FiniteSum):
    """f(w) = (1/N) Σ ρ(yₙ − xₙ·w), ρ(r) = max(τr, (τ − 1)r): quantile regression (Koenker & Bassett 1978).

    Kinks: residuals of 0. Selection: ρ'(0) = τ − ½ (torch.maximum shares a tie). G ≤ max(τ, 1 − τ) σ_max(X)/√N.
    At τ = ½ it is half of the mean absolute error.

    >>> Quantile(np.eye(2), [1.0, -1.0], tau=0.75).grad(np.zeros(2)).tolist()
    [-0.375, 0.125]
    """

    tau: Positive = 0.5

    def validate(self) -> None:
        super().validate()
        if np.any(np.asarray(self.tau) >= 1):
            raise ValueError(f"Quantile: tau must be a number between 0 and 1, not {np.max(self.tau):g}.")

    def _residual(self, w: Any) -> Any:
        return like(self.y, w) - array_namespace(w).matmul(like(self.X, w), w)

    def value(self, w: Any) -> Any:
        xp = array_namespace(w)
        r = self._residual(w)
        return xp.sum(xp.maximum(self.tau * r, (self.tau - 1) * r)) / self.n

    def grad(self, w: Any) -> Any:
        xp = array_namespace(w)
        return -self._pull_back(self.tau - 0.5 + 0.5 * xp.sign(self._residual(w)))

    def kinks(self, w: Any) -> Any:
        return self._residual(w)

    @property
    def constants(self) -> Constants:
        return Constants(G=max(self.tau, 1 - self.tau) * self.spectral_norm / float(np.sqrt(self.n)))

    @property
    def minimiser(self) -> np.ndarray:
        """By linear programming (SciPy, HiGHS), to its tolerance of 1e-7."""
        from scipy.optimize import linprog

        above, below = np.full(self.n, self.tau / self.n), np.full(self.n, (1 - self.tau) / self.n)
        split = np.c_[self.X, np.eye(self.n), -np.eye(self.n)]
        free = [(None, None)] * self.shape[0] + [(0, None)] * (2 * self.n)
        costs = np.concatenate([np.zeros(self.shape), above, below])
        return linprog(costs, A_eq=split, b_eq=self.y, bounds=free).x[: self.shape[0]]


def _need_signs(record: FiniteSum) -> None:
    if not np.all(np.abs(record.y) == 1):
        raise ValueError(f"{type(record).__name__}: y must hold −1 and 1 only; map labels 0/1 by 2*y - 1.")

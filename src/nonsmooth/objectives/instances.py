"""Problems to run on: hard instances, random draws, and the data that ship with scikit-learn."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from nonsmooth.objectives.finite_sum import FiniteSum, LeastSquares, Logistic
from nonsmooth.objectives.maximum import MaxLinear

__all__ = [
    "breast_cancer",
    "diabetes",
    "random_least_squares",
    "subgradient_hard_instance",
    "subgradient_last_iterate_instance",
]


def subgradient_hard_instance(
    n: int, M: float = 1.0, R: float = 1.0, ties: Literal["first", "average"] = "first"
) -> MaxLinear:
    """f(x) = M max(x₁, …, x₍ₙ₊₁₎, −R/√(n+1)): no method that starts at 0 and moves along the selected
    subgradients has a better point than f(0) = 0 after n steps, so its best gap is MR/√(n+1).

    f* = −MR/√(n+1) at distance R from 0. With ties shared out ("average") one step of Polyak's length solves it.
    Source: Drori & Teboulle 2016, An optimal variant of Kelley's cutting-plane method, section 3.

    >>> round(-subgradient_hard_instance(3).minimum, 9)
    0.5
    """
    _need_whole("subgradient_hard_instance", "n", n, 1)
    floor = -R / np.sqrt(n + 1)
    return MaxLinear(np.vstack([M * np.eye(n + 1), np.zeros(n + 1)]), np.append(np.zeros(n + 1), M * floor), ties)


def subgradient_last_iterate_instance(n: int, M: float = 1.0, R: float = 1.0) -> MaxLinear:
    """f(x) = max(⟨g₀, x⟩, …, ⟨gₙ, x⟩, f*), on which the subgradient method from 0 ends at its worst.

    ‖gᵢ‖ = M and ⟨gᵢ, gₖ⟩ = −M²cᵢ for all k > i, so that with the step h = R/(M√(n+1)) the pieces take turns: after j
    steps those from j on tie, the j-th is selected, and f has risen by hM²cⱼ. The last gap is hM²Σcᵢ + MRd, d the
    distance from 0 to the convex hull of the gᵢ/M, and f* = −MRd at distance R from 0. The n numbers cᵢ that make it
    largest (found here by BFGS) attain the tight constant of the last iterate: .72141 MR at n = 3, where the best
    iterate's is .5 MR. The structure was read off PEPit's worst case; ties go to the first winner, which
    is ahead by 1e-13 MR. Raises ValueError above n = 80, where the search for the cᵢ leaves its domain.

    >>> f = subgradient_last_iterate_instance(3)
    >>> x = np.zeros(4)
    >>> for _ in range(3):
    ...     x = x - 0.5 * f.grad(x)
    >>> round(float(f.value(x)) - f.minimum, 4)
    0.7214
    """
    _need_whole("subgradient_last_iterate_instance", "n", n, 1, 80)
    from scipy.optimize import minimize

    def rows(c: np.ndarray) -> np.ndarray:
        """The gᵢ/M as rows of a triangular matrix: below the diagonal each column is one number."""
        A, used = np.zeros((n + 1, n + 1)), 0.0
        for j in range(n + 1):
            A[j, j] = np.sqrt(1 - used)
            if j < n:
                A[j + 1 :, j] = -(c[j] + used) / A[j, j]
                used += A[n, j] ** 2
        return A

    def depth(A: np.ndarray) -> float:
        return float(1 / np.linalg.norm(np.linalg.solve(A, np.ones(n + 1))))

    def short_of_the_worst(c: np.ndarray) -> float:
        with np.errstate(invalid="ignore", divide="ignore"):
            A = rows(c)
            return -float(np.sum(c) / np.sqrt(n + 1) + depth(A)) if np.all(np.isfinite(A)) else 10.0

    first = 1 / (3.8 * np.arange(n, 0, -1) - 2.4)
    A = rows(minimize(short_of_the_worst, first, method="BFGS", options={"gtol": 1e-8}).x)
    first_wins = -1e-13 * M * R * np.arange(n + 1)  # rounding in a product of matrices could break a tie either way
    return MaxLinear(np.vstack([M * A, np.zeros(n + 1)]), np.append(first_wins, -M * R * depth(A)))


def random_least_squares(
    n: int = 50, p: int = 20, seed: int = 0, support: int | None = None, noise: float = 1.0
) -> LeastSquares:
    """Least squares with Gaussian X (n, p) and y = Xw₀ + noise·ε; w₀ has `support` Gaussian entries (all by default).

    >>> random_least_squares(n=50, p=20).shape
    (20,)
    """
    for what, number, least in (
        ("n", n, 1),
        ("p", p, 1),
        ("seed", seed, 0),
        ("support", p if support is None else support, 0),
    ):
        _need_whole("random_least_squares", what, number, least)
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    w = rng.standard_normal(p) * (np.arange(p) < (p if support is None else support))
    return LeastSquares(X, X @ w + noise * rng.standard_normal(n))


def diabetes() -> LeastSquares:
    """The diabetes data that ship with scikit-learn (442 × 10; Efron et al. 2004), columns and target standardised.

    >>> diabetes().shape
    (10,)
    """
    from sklearn.datasets import load_diabetes

    X, y = load_diabetes(return_X_y=True)
    return LeastSquares(_standardised(X), _standardised(y))


def breast_cancer(loss: type[FiniteSum] = Logistic, features: int = 30) -> Any:
    """The breast cancer data that ship with scikit-learn (569 × 30), first `features` columns standardised, y = ±1.

    There is no intercept, and so no number of columns separates the classes (all thirty and a column of ones do).

    >>> breast_cancer().shape
    (30,)
    """
    if not (isinstance(loss, type) and issubclass(loss, FiniteSum)):
        raise ValueError(f"breast_cancer: loss must be a class, Logistic or Hinge, not {loss!r}.")
    _need_whole("breast_cancer", "features", features, 1, 30)
    from sklearn.datasets import load_breast_cancer

    X, y = load_breast_cancer(return_X_y=True)
    return loss(_standardised(X[:, :features]), 2.0 * y - 1.0)


def _need_whole(who: str, what: str, number: Any, low: int, high: int | None = None) -> None:
    whole = isinstance(number, (int, np.integer)) and not isinstance(number, bool)
    if not whole or number < low or (high is not None and number > high):
        span = f"{low} or above" if high is None else f"from {low} to {high}"
        shown = f"an array of shape {number.shape}" if isinstance(number, np.ndarray) else repr(number)
        raise ValueError(f"{who}: {what} must be a whole number, {span}, not {shown}.")


def _standardised(a: np.ndarray) -> np.ndarray:
    return (a - a.mean(axis=0)) / a.std(axis=0)

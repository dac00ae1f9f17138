"""What the claims draw: independent problems and starts, from a master seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

from nonsmooth.objectives import LeastSquares, random_least_squares
from nonsmooth.penalties import L1
from nonsmooth.rules import Rule

__all__ = ["PAPER", "MakeRule", "lasso_minimum", "lasso_path", "least_squares_draws", "start_draws", "tail_mean"]

MakeRule = Callable[..., Rule]
"""A rule's class, to be given its step."""

PAPER = "arXiv 2401.08426, abstract, sentence {}"


def least_squares_draws(
    count: int, master: int, n: int = 50, p: int = 20, support: int | None = None
) -> list[LeastSquares]:
    """`count` Gaussian least-squares problems; another master seed gives others, and no start shares its stream.

    Claims start all of their problems at one point, standard normal by the master seed: what varies is the problem.

    >>> len(least_squares_draws(3, master=0))
    3
    """
    return [random_least_squares(n, p, seed=10_000 * (master + 1) + i, support=support) for i in range(count)]


def start_draws(count: int, master: int, low: float, high: float) -> xr.DataArray:
    """`count` starts on the line, uniform on [low, high): an axis `start` for x0.

    >>> start_draws(4, 0, 0.0, 1.0).dims
    ('start', 'coordinate')
    """
    draws = np.random.default_rng(master).uniform(low, high, (count, 1))
    return xr.DataArray(draws, dims=("start", "coordinate"))


def tail_mean(variable: xr.DataArray) -> np.ndarray:
    """The mean over the recorded steps, of which there should be an even number.

    >>> tail_mean(xr.DataArray([1.0, 3.0], dims="step")).tolist()
    2.0
    """
    return variable.mean("step").values


def lasso_path(f: LeastSquares, lams: np.ndarray) -> np.ndarray:
    """The exact Lasso solution for each λ, shape (len(lams), P): scikit-learn's LARS, linear between its knots.

    >>> lasso_path(LeastSquares(np.eye(2), [3.0, 0.1]), np.array([1.0, 9.0])).round(12).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    from sklearn.linear_model import lars_path

    alphas, _, coefficients = lars_path(f.X, f.y, method="lasso")
    return np.stack([np.interp(lams / 2, alphas[::-1], path[::-1]) for path in coefficients], axis=1)


def lasso_minimum(f: LeastSquares, lam: float) -> float:
    """F* of the Lasso, from the exact path.

    >>> lasso_minimum(LeastSquares(np.eye(2), [3.0, 0.1]), 9.0)
    4.505
    """
    w = lasso_path(f, np.array([lam]))[0]
    return float(f.value(w) + L1(lam).value(w))

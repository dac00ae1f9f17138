"""What every objective offers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from nonsmooth.hyperparameters import Hyperparameters

__all__ = ["Constants", "Objective"]


@dataclass(frozen=True)
class Constants:
    """L: ‖∇f(x) − ∇f(z)‖ ≤ L‖x − z‖. G: |f(x) − f(z)| ≤ G‖x − z‖. mu: f − (mu/2)‖·‖² is convex.

    >>> Constants(G=1.0).L
    inf
    """

    L: float = np.inf
    G: float = np.inf
    mu: float = 0.0


class Objective(Hyperparameters):
    """What an objective must offer; the last four have defaults."""

    may_be_scheduled: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int]:
        """The shape of a point."""
        raise TypeError(f"{type(self).__name__} states no shape.")

    def value(self, x: Any) -> Any:
        """f(x), a scalar."""
        raise TypeError(f"{type(self).__name__} defines no value.")

    def grad(self, x: Any) -> Any:
        """The selection g̃(x), of x's shape."""
        raise TypeError(f"{type(self).__name__} defines no gradient.")

    def kinks(self, x: Any) -> Any:
        """One number for each place where the gradient jumps, 0 exactly on it; shape (K,), K = 0 for a C¹ f."""
        return x[:0]

    @property
    def constants(self) -> Constants:
        """L, G and mu."""
        return Constants()

    @property
    def minimiser(self) -> np.ndarray | None:
        """A minimiser where one is known."""
        return None

    @property
    def minimum(self) -> float | None:
        """f* where it is known."""
        point = self.minimiser
        return None if point is None else float(self.value(point))

    def prepare(self) -> Objective:
        """The same function, ready to be evaluated many times."""
        return self


def need_ndim(record: Hyperparameters, name: str, ndim: int) -> None:
    shape = getattr(record, name).shape
    if len(shape) != ndim:
        raise ValueError(f"{type(record).__name__}: {name} must have {ndim} dimension(s), not shape {shape}.")

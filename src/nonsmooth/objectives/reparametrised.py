"""The same function of other variables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from nonsmooth.objectives.objective import Constants, Objective

__all__ = ["Spred"]


@dataclass(frozen=True)
class Spred(Objective):
    """F(u, v) = f(u ⊙ v) on one point (u, v) of shape (2P,): with (λ/2)(‖u‖² + ‖v‖²) added, f(w) + λ‖w‖₁ in disguise.

    min over u ⊙ v = w of (λ/2)(‖u‖² + ‖v‖²) is λ‖w‖₁, so with `SquaredL2(λ/2)` the minima are those of f with `L1(λ)`
    and the problem is as smooth as f. Not convex; kinks and selection are f's. Source: Liu Ziyin & Wang 2023 (spred).

    >>> from nonsmooth.objectives import Quadratic
    >>> Spred(Quadratic([1.0])).grad(np.array([2.0, 3.0])).tolist()
    [18.0, 12.0]
    """

    objective: Objective

    def validate(self) -> None:
        if not isinstance(self.objective, Objective):
            raise ValueError(f"Spred: objective must be one of nonsmooth's, not {type(self.objective).__name__}.")

    @property
    def shape(self) -> tuple[int]:
        return (2 * self.objective.shape[0],)

    def product(self, x: Any) -> Any:
        """w = u ⊙ v."""
        half = self.objective.shape[0]
        return x[:half] * x[half:]

    def value(self, x: Any) -> Any:
        return self.objective.value(self.product(x))

    def grad(self, x: Any) -> Any:
        half = self.objective.shape[0]
        g = self.objective.grad(self.product(x))
        return array_namespace(x).concat([x[half:] * g, x[:half] * g])

    def kinks(self, x: Any) -> Any:
        return self.objective.kinks(self.product(x))

    @property
    def constants(self) -> Constants:
        return Constants(mu=-np.inf)

    @property
    def minimiser(self) -> np.ndarray | None:
        """√|w*| and sign(w*)√|w*|, balanced."""
        w = self.objective.minimiser
        return None if w is None else np.concatenate([np.sqrt(np.abs(w)), np.sign(w) * np.sqrt(np.abs(w))])

    def prepare(self) -> Objective:
        return self.replaced(objective=self.objective.prepare())

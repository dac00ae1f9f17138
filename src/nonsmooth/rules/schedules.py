"""Step-size schedules: a number for each step t = 1, 2, …"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Fraction, NonNegative, Positive, Schedule

__all__ = ["Constant", "Cosine", "InverseSqrt", "InverseTime", "StepDecay"]


@dataclass(frozen=True)
class Constant(Schedule):
    """η_t = η.

    >>> Constant(0.1).at(7)
    0.1
    """

    lr: Positive

    def at(self, t: Any) -> Any:
        return self.lr


@dataclass(frozen=True)
class InverseSqrt(Schedule):
    """η_t = η/√t.

    >>> InverseSqrt(1.0).at(4)
    0.5
    """

    lr: Positive

    def at(self, t: Any) -> Any:
        return self.lr / t**0.5


@dataclass(frozen=True)
class InverseTime(Schedule):
    """η_t = η/t.

    >>> InverseTime(1.0).at(4)
    0.25
    """

    lr: Positive

    def at(self, t: Any) -> Any:
        return self.lr / t


@dataclass(frozen=True)
class Cosine(Schedule):
    """η_t = η_min + ½(η − η_min)(1 + cos(π(t − 1)/T)), T = `steps`, η_min after it (torch CosineAnnealingLR).

    >>> round(Cosine(1.0, steps=10).at(6), 12)
    0.5
    """

    lr: Positive
    steps: int
    floor: NonNegative = 0.0

    def validate(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Cosine: steps must be 1 or above, not {self.steps}.")

    def at(self, t: Any) -> Any:
        xp = math if isinstance(t, (int, float)) else array_namespace(t)
        progress = min(t - 1, self.steps) if xp is math else xp.clip(t - 1, max=self.steps)
        return self.floor + 0.5 * (self.lr - self.floor) * (1 + xp.cos(math.pi * progress / self.steps))


@dataclass(frozen=True)
class StepDecay(Schedule):
    """η_t = η γ^⌊(t − 1)/every⌋ (torch StepLR).

    >>> StepDecay(1.0, every=10, gamma=0.5).at(21)
    0.25
    """

    lr: Positive
    every: int
    gamma: Fraction = 0.1

    def validate(self) -> None:
        if self.every < 1:
            raise ValueError(f"StepDecay: every must be 1 or above, not {self.every}.")

    def at(self, t: Any) -> Any:
        return self.lr * self.gamma ** ((t - 1) // self.every)

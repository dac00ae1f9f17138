"""A selection: the pieces that were active in one run of a closure, and what differs between two of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Choice", "Flip", "Selection", "flips"]


@dataclass(frozen=True, eq=False)
class Choice:
    """One operation: its ordinal in the run, name, module, the shape of its input, and the active piece of each unit.

    `ties` counts the units on a breakpoint. `whole`: the operation is C¹ as it is used, and is not frozen.

    >>> Choice(0, "relu", "1", (2,), torch.tensor([0, 1])).whole
    False
    """

    ordinal: int
    operation: str
    layer: str
    shape: tuple[int, ...]
    piece: Any
    ties: int = 0
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Selection:
    """What `record` kept: the choices in their order, and what may hide kinks from it.

    >>> relu, square = Choice(0, "relu", "1", (2,), None, ties=1), Choice(1, "relu", "3", (5,), None, whole=True)
    >>> print(Selection((relu, square)))
    2 operations with pieces, 1 of them C¹ as used; 7 units, 1 on a breakpoint
    """

    choices: tuple[Choice, ...]
    unseen: tuple[str, ...] = ()

    @property
    def ties(self) -> int:
        """The units exactly on a breakpoint of an operation that is frozen."""
        return sum(c.ties for c in self.choices if not c.whole)

    def __str__(self) -> str:
        units = sum(math.prod(c.shape) for c in self.choices)
        whole = sum(c.whole for c in self.choices)
        said = f"{len(self.choices)} operations with pieces, {whole} of them C¹ as used; {units} units, "
        said += f"{self.ties} on a breakpoint"
        return said + (f"; unseen: {', '.join(self.unseen)}" if self.unseen else "")


@dataclass(frozen=True)
class Flip:
    """One operation between two selections: how many of its units changed their piece.

    >>> Flip("1", "relu", 64, 3, 0).flipped
    3
    """

    layer: str
    operation: str
    units: int
    flipped: int
    ties: int
    whole: bool = False


def flips(before: Selection, after: Selection) -> tuple[Flip, ...]:
    """Operation by operation, the units whose piece differs between two selections of one closure.

    Of those that choose (comparisons, argmax) the changed outcomes are counted. Raises ValueError where the two runs
    did different operations.

    >>> before, after = (Selection((Choice(0, "relu", "1", (2,), torch.tensor(m)),)) for m in ([0, 1], [1, 1]))
    >>> flips(before, after)[0].flipped
    1
    """
    if len(before.choices) != len(after.choices):
        raise ValueError(
            f"flips: the two runs did {len(before.choices)} and {len(after.choices)} operations with pieces; "
            "compare selections of one closure whose control flow did not change."
        )
    found = []
    for a, b in zip(before.choices, after.choices, strict=True):
        if (a.operation, a.layer, a.shape) != (b.operation, b.layer, b.shape):
            raise ValueError(
                f"flips: operation {a.ordinal} was {a.operation} in {a.layer} on {a.shape}, and {b.operation} in "
                f"{b.layer} on {b.shape}; compare selections of one closure whose control flow did not change."
            )
        same = isinstance(a.piece, torch.Tensor) and a.piece.shape == b.piece.shape
        changed = int((a.piece != b.piece).sum()) if same else int(a.piece is not b.piece)
        found.append(Flip(a.layer, a.operation, a.piece.numel() if same else 1, changed, b.ties, a.whole and b.whole))
    return tuple(found)

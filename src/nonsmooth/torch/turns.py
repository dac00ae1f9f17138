"""Turns: which optimisers step in a script, in which order, and whether they train the same parameters."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

__all__ = ["Turns"]


@dataclass
class _Seen:
    """An optimiser and its parameters; of another than the watched one also its first and its last step.

    These are told in steps that the watched one had made by then.
    """

    optimizer: weakref.ref[Optimizer]
    params: list[weakref.ref[torch.Tensor]]
    first: int | None = None
    last: int = 0

    def shares(self, other: Optimizer) -> bool:
        held = {id(p) for group in other.param_groups for p in group["params"]}
        return any(id(p) in held for ref in self.params if (p := ref()) is not None)


class Turns:
    """The optimisers of a script, numbered from 1 by their first steps, one of which is watched.

    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> first, second = torch.optim.SGD([w], lr=0.1), torch.optim.SGD([w], lr=0.01)
    >>> turns = Turns()
    >>> turns.number(first), turns.number(second), turns.number(first), len(turns)
    (1, 2, 1, 2)
    >>> turns.stepped(second, 60)
    >>> turns.beside(first, 60), turns.replaced(first, 60), turns.replaced(first, 61)
    (0, True, False)
    """

    def __init__(self) -> None:
        self.seen: list[_Seen] = []

    def __len__(self) -> int:
        return len(self.seen)

    def number(self, optimizer: Optimizer) -> int:
        """Its number: the next, where it was not seen before."""
        for i, one in enumerate(self.seen):
            if one.optimizer() is optimizer:
                return i + 1
        params = [weakref.ref(p) for group in optimizer.param_groups for p in group["params"]]
        self.seen.append(_Seen(weakref.ref(optimizer), params))
        return len(self.seen)

    def stepped(self, other: Optimizer, done: int) -> None:
        """Another than the watched one has made a step, after so many of the watched one's."""
        one = self.seen[self.number(other) - 1]
        one.first = done if one.first is None else one.first
        one.last = done

    def beside(self, watched: Optimizer, steps: int) -> int:
        """How many others step between the `steps` of the watched one, on parameters of their own, as in a GAN.

        One that was done before, or began after them, as where a script trains twice, is none of these.
        """
        return sum(
            one.first is not None and one.first < steps and one.last > 0 and not one.shares(watched)
            for one in self.seen
        )

    def replaced(self, watched: Optimizer, steps: int) -> bool:
        """Whether another began, after the `steps` of the watched one, to train parameters that this one holds."""
        return any(one.first is not None and one.first >= steps and one.shares(watched) for one in self.seen)

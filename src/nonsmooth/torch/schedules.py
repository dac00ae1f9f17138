"""λ that changes from step to step, as lr does under torch's schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nonsmooth.torch.proximal import Proximal, need_proximal
from nonsmooth.torch.states import count, numbers, strength

__all__ = ["LambdaLam"]


class LambdaLam:
    """λ as a function of the number of calls of `step`: each penalty's first λ times factor(t), t = 0, 1, 2, …

    The counterpart of torch's LambdaLR, for the strengths of a `Proximal`; `state_dict` resumes it.

    >>> import torch
    >>> from nonsmooth.penalties import L1
    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = Proximal(torch.optim.SGD([w], lr=0.1), L1(0.5))
    >>> warm_up = LambdaLam(optimizer, lambda t: min(1.0, t / 10))
    >>> warm_up.get_last_lam()
    [0.0]
    >>> for _ in range(5):
    ...     warm_up.step()
    >>> warm_up.get_last_lam()
    [0.25]
    """

    def __init__(self, optimizer: Proximal, factor: Callable[[int], float]) -> None:
        optimizer = need_proximal("LambdaLam", optimizer)
        if not callable(factor):
            raise TypeError("LambdaLam: factor must be one function of the number of calls; it is for all penalties.")
        self.optimizer, self.factor, self.t = optimizer, factor, -1
        self.first: list[float | None] = []
        self.step()

    def step(self) -> None:
        """The next λ of each penalty, one that was added meanwhile included; under a refit it is what λ will be."""
        self.t += 1
        entries = [entry for _, entry in self.optimizer.entries()]
        self.first += [entry.get("off", entry)["lam"] for entry in entries[len(self.first) :]]
        moved = [lam if lam is None else strength("LambdaLam", lam * self.factor(self.t)) for lam in self.first]
        for lam, entry in zip(moved, entries, strict=True):
            if lam is not None:
                entry.get("off", entry)["lam"] = lam

    def get_last_lam(self) -> list[float]:
        return [entry["lam"] for _, entry in self.optimizer.entries()]

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "first": list(self.first)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError, with nothing changed, for what `state_dict` did not return."""
        t, first = count("LambdaLam", state_dict, "t"), numbers("LambdaLam", state_dict, "first", 0.0, 1e300)
        if [v is None for v in first] != [entry["lam"] is None for _, entry in self.optimizer.entries()][: len(first)]:
            raise ValueError("LambdaLam: the state is of other penalties than are here.")
        before = self.t, self.first
        self.t, self.first = t - 1, first
        try:
            self.step()
        except BaseException:
            self.t, self.first = before
            raise

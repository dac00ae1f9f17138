"""Chatter: which weights go to and fro across 0, and how far, over a window of consecutive steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from nonsmooth.torch.effective import unwrapped

__all__ = ["Chatter", "reach_of"]

SHORTEST = 8
"""The fewest steps of a window."""


class Chatter:
    """Follows the signs of weights: call `update` after each step of the optimiser, `row` at the end of a window.

    A weight **chatters** in a window of W ≥ 8 steps if its sign changed at least twice, it was never exactly 0, and max
    |w| ≤ reach · max |w⁺ − w|, both over the window: it goes no further than a step or two makes. `reach` is 2 for a
    plain step, and 2/(1 − β) under momentum, which keeps its direction for some 1/(1 − β) steps (`reach_of`). A weight
    that comes to 0 exactly and leaves it again flickers, as zeros of a prox do under minibatch noise; it is counted
    apart, as are exact zeros. Minibatch noise alone makes weights near 0 chatter too: chatter is a fact, not a cause.

    Means are over an even number of steps (the last of an odd window is left out): over an odd one they would depend on
    which side a weight is on. At most `most` weights are followed, a fixed random sample, with a share for each
    parameter; the cost is a few passes over them a step.

    Raises ValueError, in one sentence, for parameters or numbers that are not as they should be.

    >>> w = torch.tensor([0.5, 3.0, 0.0], dtype=torch.float64)
    >>> chatter = Chatter([w])
    >>> for _ in range(8):
    ...     w -= torch.sign(w)  # 0.5 goes to −0.5 and back; 3 comes to 0 and stays
    ...     chatter.update()
    >>> row = chatter.row()
    >>> row["window"], row["weights"], row["chattering"], row["amplitude"], row["flips"], row["zeros"]
    (8, 3, 1, 0.5, 1.0, 2)
    """

    def __init__(self, params: Iterable[torch.Tensor], most: int = 100_000, seed: int = 0, reach: float = 2.0) -> None:
        self.params = list(params) if not isinstance(params, torch.Tensor) else []
        if not self.params or not all(isinstance(p, torch.Tensor) and p.is_floating_point() for p in self.params):
            raise ValueError("Chatter: params must be a list of at least one real parameter; pass weights(model).")
        if isinstance(most, bool) or not (isinstance(most, int) and most >= len(self.params)):
            raise ValueError(f"Chatter: most must be at least one weight for each parameter, not {most!r}.")
        if not 1 <= reach < math.inf:
            raise ValueError(f"Chatter: reach must be a finite number of steps, 1 or above, not {reach!r}.")
        self.total = sum(p.numel() for p in self.params)
        self.reach = float(reach)
        generator = torch.Generator().manual_seed(seed)
        self.places = [self._sample(p.numel(), most, generator).to(p.device) for p in self.params]
        self.tracked = sum(len(place) for place in self.places)
        self.reset()

    def _sample(self, n: int, most: int, generator: torch.Generator) -> torch.Tensor:
        """Places in a parameter of n weights: all, or its share of `most`, drawn without repetition."""
        share = max(1, most * n // self.total) if n else 0
        if self.total <= most or share >= n:
            return torch.arange(n)
        if n <= 16 * share:
            return torch.randperm(n, generator=generator)[:share].sort().values
        return torch.randint(n, (share,), generator=generator).unique()

    def _read(self) -> torch.Tensor:
        parts = [
            (flat if len(place) == flat.numel() else flat[place]).to("cpu", torch.float64)
            for p, place in zip(self.params, self.places, strict=True)
            for flat in (p.detach().reshape(-1),)
        ]
        return torch.cat(parts)

    def reset(self) -> None:
        """Begin a window at the weights as they are now; call it after steps that were not watched."""
        self.last = self._read()
        self.sign = self.last.sign()
        self.steps = 0
        self.flips, self.total_abs, self.even_abs, self.furthest, self.longest = (
            torch.zeros_like(self.last) for _ in range(5)
        )
        self.touched = self.last == 0
        self.left = torch.zeros_like(self.touched)

    @torch.no_grad()
    def update(self) -> None:
        """Look at the weights after one more step."""
        w = self._read()
        size, sign = w.abs(), w.sign()
        self.steps += 1
        self.flips += sign * self.sign < 0
        self.sign = torch.where(sign == 0, self.sign, sign)
        self.left |= (self.last == 0) & (sign != 0)
        self.touched |= sign == 0
        self.total_abs += size
        if self.steps % 2 == 0:
            self.even_abs = self.total_abs.clone()
        torch.maximum(self.furthest, size, out=self.furthest)
        torch.maximum(self.longest, (w - self.last).abs(), out=self.longest)
        self.last = w

    def row(self, reset: bool = False) -> dict[str, Any]:
        """The window as plain data: window (steps), weights (followed), chattering, amplitude (mean |w| of those that
        chatter), norm (mean of ‖w‖₁, scaled up where a sample is followed), zeros (exact, now), flickering, flips (mean
        sign changes a step of those that chatter). With `reset` the next window begins.

        Raises ValueError for a window of fewer than 8 steps.
        """
        self._need_window()
        chatters = self._chatters()
        count = int(chatters.sum())
        mean = self._mean()
        found = {
            "window": self.steps,
            "weights": self.tracked,
            "chattering": count,
            "amplitude": float(mean[chatters].mean()) if count else 0.0,
            "norm": sum(
                float(part.sum()) * p.numel() / max(1, part.numel())
                for part, p in zip(self._split(mean), self.params, strict=True)
            ),
            "zeros": int((self.last == 0).sum()),
            "flickering": int((self.left & (self.flips == 0) | self.left & self.touched).sum()),
            "flips": float(self.flips[chatters].mean()) / self.steps if count else 0.0,
        }
        if reset:
            self.reset()
        return found

    @property
    def chattering(self) -> tuple[torch.Tensor, ...]:
        """For each parameter, which of its weights chatter; False where a weight is not followed."""
        self._need_window()
        return self._spread(self._chatters(), False)

    @property
    def followed(self) -> tuple[torch.Tensor, ...]:
        """For each parameter, which of its weights are followed."""
        return self._spread(torch.ones_like(self.touched), False)

    @property
    def amplitude(self) -> tuple[torch.Tensor, ...]:
        """For each parameter, the mean |w| of each weight over the window, in float64; NaN where it is not followed."""
        self._need_window()
        return self._spread(self._mean(), math.nan)

    def _need_window(self) -> None:
        if self.steps < SHORTEST:
            raise ValueError(
                f"Chatter: a window needs {SHORTEST} steps or more, not {self.steps}; call update after each step."
            )

    def _chatters(self) -> torch.Tensor:
        return (self.flips >= 2) & ~self.touched & (self.furthest <= self.reach * self.longest)

    def _mean(self) -> torch.Tensor:
        return self.even_abs / (self.steps - self.steps % 2)

    def _split(self, values: torch.Tensor) -> list[torch.Tensor]:
        return list(values.split([len(place) for place in self.places]))

    def _spread(self, values: torch.Tensor, fill: Any) -> tuple[torch.Tensor, ...]:
        spread = []
        for p, place, part in zip(self.params, self.places, self._split(values), strict=True):
            whole = torch.full((p.numel(),), fill, dtype=values.dtype)
            whole[place.cpu()] = part
            spread.append(whole.reshape(p.shape))
        return tuple(spread)


def reach_of(optimizer: Any) -> float:
    """The `reach` of a `Chatter` that suits an optimiser: 2/(1 − β), β its largest momentum or β₁.

    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> reach_of(torch.optim.SGD([w], lr=0.1)), reach_of(torch.optim.SGD([w], lr=0.1, momentum=0.75))
    (2.0, 8.0)
    """
    groups = unwrapped(optimizer).param_groups
    betas = [float(g.get("momentum", 0.0) or (g["betas"][0] if "betas" in g else 0.0)) for g in groups]
    return 2 / (1 - max(betas, default=0.0)) if all(b < 1 for b in betas) else 2.0

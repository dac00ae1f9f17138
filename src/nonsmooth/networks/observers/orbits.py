"""The orbit curvature of full-batch training: what the gradients of consecutive steps say, at no cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nonsmooth.networks.observers.observer import Observer

if TYPE_CHECKING:
    from nonsmooth.networks.training import Run

__all__ = ["Orbit"]


class Orbit(Observer):
    """κ̄ = Σ‖g⁺ − g‖²/Σ⟨g⁺ − g, D⟩ and κ of each step, from the first step that is looked at to the end.

    It reads the gradients that the optimiser is given at *every* step, whatever the setting's `every`, and so costs no
    gradient of its own; the last step has no g⁺. Both are of what training minimises, a penalty of "autograd" in it.
    `value` is κ̄, `curvature` κ at the steps `t`, `mean` its mean, `square` is ‖g‖² at the first and the last of them:
    for plain GD κ̄ = 2/η + (last − first)/Σ⟨g⁺ − g, D⟩ exactly.

    Raises ValueError for minibatches, on which g and g⁺ are not of one function.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> row = trained(Setting(steps=9, samples=50, width=4, watch=("orbit",), every=4, tail=0.6))
    >>> row["found"]["orbit"]["t"]  # from the first multiple of 4 in the last 0.6 of them on, all but the last
    [4, 5, 6, 7]
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        if 0 < run.setting.batch < len(run.x):
            raise ValueError("orbit: κ̄ is of full-batch training; leave the setting's batch at 0.")
        self.hooked = False
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None
        self.t: list[int] = []
        self.rows: list[tuple[float, float, float]] = []
        self.squares: list[float] = []

    def before(self) -> None:
        if not self.hooked:
            self.run.optimizer.register_step_pre_hook(lambda *_: self.look())
            self.hooked = True

    def look(self) -> None:
        """At the gradient of a step that is about to be taken."""
        flat = lambda xs: torch.cat([x.detach().reshape(-1).double() for x in xs])  # noqa: E731
        g = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in self.run.params])
        x = flat(self.run.params)
        if self.last is not None:
            D, change = x - self.last[0], g - self.last[1]
            self.t.append(self.run.t - 1)
            self.rows.append((float(change @ change), float(change @ D), float(D @ D)))
        self.squares.append(float(g @ g))
        self.last = (x, g)

    def found(self) -> dict[str, Any]:
        changes, secants, lengths = (sum(column) for column in zip(*self.rows)) if self.rows else (0.0, 0.0, 0.0)
        curvature = [a / b if b else 0.0 for _, a, b in self.rows]
        return {
            "t": self.t,
            "curvature": curvature,
            "mean": sum(curvature) / max(1, len(curvature)),
            "pooled": secants / lengths if lengths else 0.0,
            "value": changes / secants if secants else 0.0,
            "square": [self.squares[0], self.squares[-1]] if self.squares else [],
        }

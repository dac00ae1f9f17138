"""How the gradient varies around the weights, and how steep its slope can be near them."""

from __future__ import annotations

import torch
from torch import nn

from nonsmooth.networks.observers.curvatures import TOL, Columns
from nonsmooth.torch.curvature import sharpness
from nonsmooth.torch.steps.holder import holder

__all__ = ["Holders", "ZeroedUnits"]

SCALES = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
"""Distances δ in units of the step's length."""
DIRECTIONS = 4


class Holders(Columns):
    """`holder` after a step, at the distances 1/16, ¼, 1, 4, 16 of the step's length ‖D‖, over 4 random directions.

    `variations` are ω(δ), a row a step; `slopes` are d log ω/d log δ between neighbouring distances, 1 where the
    gradient is Lipschitz at that scale. Nothing is added for a step of length 0.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> setting = Setting(steps=1, samples=50, width=4, activation="identity", loss="mse", lr=1e-3, watch=("holders",))
    >>> [round(s, 2) for s in trained(setting)["found"]["holders"]["slopes"][0]]  # a polynomial, near one point
    [1.0, 1.0, 1.0, 1.0]
    """

    def before(self) -> None:
        self.held = [p.detach().clone() for p in self.run.params]

    def after(self) -> None:
        moved = [(p.detach() - q).double().square().sum() for p, q in zip(self.run.params, self.held, strict=True)]
        length = float(torch.stack(moved).sum().sqrt())
        if length > 0:
            around = holder(self.run.loss, self.run.params, [s * length for s in SCALES], DIRECTIONS)
            self.add(self.run.t - 1, length=length, variations=list(around.variations), slopes=list(around.slopes))


class ZeroedUnits(Columns):
    """max |λ| of the Hessian at a point near the weights: those of the first layer's smallest unit are set to 0.

    There every sample meets the activation at the same point, 0, so that its second derivative there counts whole: for
    softplus(β), β/4. The gradient's Lipschitz constant over any set that holds the point is at least this `value`;
    `distance` is how far the point lies from the weights. Of two runs of `sharpness`, on the loss and on its negative.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> options = {"steps": 1, "samples": 50, "width": 4, "watch": ("zeroed_units",)}
    >>> at = [trained(Setting(activation=f"softplus:{b}", **options))["found"]["zeroed_units"] for b in (1000, 2000)]
    >>> round(at[1]["value"][0] / at[0]["value"][0], 1)  # ∝ β
    2.0
    """

    def before(self) -> None:
        first = next(m for m in self.run.model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d)))
        assert first.bias is not None
        rows = first.weight.detach().flatten(1)
        sizes = (rows.double().square().sum(1) + first.bias.detach().double().square()).sqrt()
        unit = int(sizes.argmin())
        held = first.weight.detach()[unit].clone(), first.bias.detach()[unit].clone()
        first.weight.data[unit], first.bias.data[unit] = 0.0, 0.0
        try:
            ends = [sharpness(lambda s=sign: s * self.run.loss(), self.run.params, tol=TOL) for sign in (1, -1)]
        finally:
            first.weight.data[unit], first.bias.data[unit] = held
        largest = max(ends, key=lambda end: float(end.value[0]))
        self.add(
            self.run.t,
            value=float(largest.value[0]),
            residual=float(largest.residual[0]),
            converged=largest.converged,
            distance=float(sizes[unit]),
        )

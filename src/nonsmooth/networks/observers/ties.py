"""How often a pre-activation is exactly 0, where the derivative of a kinked activation is automatic's choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from nonsmooth.networks.models import Activation
from nonsmooth.networks.observers.curvatures import Columns

if TYPE_CHECKING:
    from nonsmooth.networks.training import Run

__all__ = ["Ties"]


class Ties(Columns):
    """Of the pre-activations of a step's batch: how many there are, and how many are exactly 0.

    `blank` counts the zeros among units whose inputs are all exactly 0, so that what is left is the bias: a patch of
    blank pixels, a sample at which the whole layer before is dead. They do not depend on the weights or on rounding.
    `others` are all other zeros. An activation after a BatchNorm counts its zeros among the others.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> found = trained(Setting(steps=1, samples=50, width=4, watch=("ties",)))["found"]["ties"]
    >>> found["units"], found["blank"], found["others"]  # 50 samples × 2 layers × 4 units
    ([400], [0], [0])
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        assert isinstance(run.model, nn.Sequential)
        self.layers = list(run.model)

    def before(self) -> None:
        run = self.run
        units, blank, others = 0, 0, 0
        held = {name: b.clone() for name, b in run.model.named_buffers()}

        def look(before: nn.Module, module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            nonlocal units, blank, others
            z = inputs[0]
            zero = z == 0
            bare = zero & _blank(before, self.inputs[before]) if before in self.inputs else zero & False
            units, blank = units + z.numel(), blank + int(bare.sum())
            others += int(zero.sum()) - int(bare.sum())

        self.inputs: dict[nn.Module, torch.Tensor] = {}
        hooks = []
        for before, module in zip(self.layers, self.layers[1:], strict=False):
            if not isinstance(module, Activation):
                continue
            if isinstance(before, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                hooks.append(before.register_forward_pre_hook(lambda m, x: self.inputs.update({m: x[0]})))
            hooks.append(module.register_forward_pre_hook(lambda m, x, before=before: look(before, m, x)))
        try:
            with torch.no_grad():
                run.outputs(run.batch[0])
        finally:
            for hook in hooks:
                hook.remove()
            self.inputs.clear()
            for name, b in run.model.named_buffers():
                b.copy_(held[name])
        self.add(run.t, units=units, blank=blank, others=others)


def _blank(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Where all inputs of a unit are exactly 0, in a shape that broadcasts against the layer's output."""
    lit = (x != 0).double()
    if isinstance(layer, nn.Linear):
        return lit.sum(-1, keepdim=True) == 0
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    convolve = functional.conv1d if isinstance(layer, nn.Conv1d) else functional.conv2d
    return convolve(lit, torch.ones_like(layer.weight[:1], dtype=lit.dtype), None, layer.stride, layer.padding) == 0

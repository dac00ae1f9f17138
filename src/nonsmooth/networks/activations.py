"""Activations by name, kinked and smooth, and the gain that keeps the size of gradients through each."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch.nn import functional

__all__ = ["KINKED", "SMOOTH", "activation", "gain"]

Function = Callable[[torch.Tensor], torch.Tensor]

KINKED: dict[str, Callable[..., torch.Tensor]] = {
    "relu": functional.relu,
    "relu_half": lambda x: (x + x.abs()) / 2,  # the same values, and ½ as its derivative at 0
    "relu_one": lambda x: x.clamp(min=0),  # the same values, and 1 as its derivative at 0
    "leaky_relu": functional.leaky_relu,
    "relu6": functional.relu6,
    "hardtanh": functional.hardtanh,
    "hardswish": functional.hardswish,
}
"""Continuous, with kinks."""
SMOOTH: dict[str, Callable[..., torch.Tensor]] = {
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "softplus": lambda x, beta=1.0: functional.softplus(x, beta, 40.0),
    "elu": functional.elu,
    "identity": lambda x: x,
}
"""With continuous derivatives: C^∞, but for elu, which is C¹."""
NUMBERED = ("leaky_relu", "softplus")


def activation(name: str) -> Function:
    """The function that a name stands for: "relu", or with its slope or β "leaky_relu:0.1", "softplus:5".

    Raises ValueError, in one sentence, for a name that there is not.

    >>> activation("leaky_relu:0.1")(torch.tensor([-10.0, 2.0])).tolist()
    [-1.0, 2.0]
    """
    kind, colon, number = name.partition(":")
    function = (KINKED | SMOOTH).get(kind)
    try:
        if function is None or (colon and kind not in NUMBERED):
            raise ValueError
        value = float(number) if colon else None
    except ValueError:
        raise ValueError(
            f"activation: there is no {name!r}; known are {', '.join([*KINKED, *SMOOTH])}, "
            f"and {' and '.join(NUMBERED)} take a number after a colon."
        ) from None
    return function if value is None else lambda x: function(x, value)


@cache
def gain(name: str) -> float:
    """1/√E φ'(z)² for z ~ N(0, 1): weights of this deviation over √(fan in) keep the mean square of gradients.

    It is √2 for ReLU (He et al. 2015). The integral is a sum over the middles of 16,000 cells of |z| ≤ 8: 0, ±1 and
    other likely kinks lie between them.

    >>> round(gain("relu"), 9), round(gain("identity"), 9), round(gain("leaky_relu:0.5"), 9)  # √2, 1, √1.6
    (1.414213562, 1.0, 1.264911064)
    """
    z = ((torch.arange(16000, dtype=torch.float64) + 0.5) / 1000 - 8).requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(activation(name)(z).sum(), z)
    density = torch.exp(-(z.detach() ** 2) / 2) / math.sqrt(2 * math.pi)
    return float((slope**2 * density).sum() / 1000) ** -0.5

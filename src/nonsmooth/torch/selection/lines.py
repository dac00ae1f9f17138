"""The pieces of torch's functions of one number, with breakpoints that are numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from nonsmooth.torch.selection.pieces import Args, Call, Kwargs, Rule, base_name, pick

__all__ = ["LINES", "Line"]


@dataclass(frozen=True)
class Line:
    """A function of one number: `breaks(*parameters)` in rising order, and `pieces(x, index, *parameters)` around.

    `signature` takes the arguments of the call apart, into x and the parameters; None where there is but one piece.

    >>> x = torch.tensor([-2.0, 0.0, 2.0])
    >>> LINES["hardtanh"].locate(torch.nn.functional.hardtanh, (x,), {}).tolist()
    [0, 1, 2]
    """

    signature: Callable[..., tuple[Any, ...] | None]
    breaks: Callable[..., tuple[float, ...]]
    pieces: Callable[..., list[Any]]

    def locate(self, call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor | None:
        bound = self.signature(*args, **kwargs)
        if bound is None:
            return None
        x, *parameters = bound
        x = x.detach()
        index = torch.zeros(x.shape, dtype=torch.int8, device=x.device)
        for j, c in enumerate(self.breaks(*parameters)):
            index += (x >= c) if self.right(call, j, tuple(parameters), args[1:], kwargs) else (x > c)
        return index

    def extend(self, index: torch.Tensor, call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
        x, *parameters = self.signature(*args, **kwargs)  # type: ignore[misc]
        return pick(index, self.pieces(x, index, *parameters))

    def right(self, call: Call, j: int, parameters: Args, rest: Args, kwargs: Kwargs) -> bool:
        """Whether torch's slope at breakpoint j is that of the piece on its right."""
        key = (self, base_name(call), j, parameters)
        if key not in _SIDES:
            c = self.breaks(*parameters)[j]
            with torch.enable_grad(), torch.inference_mode(False):
                at = torch.tensor(c, dtype=torch.float64, requires_grad=True)
                plain = {k: v for k, v in kwargs.items() if k not in ("input", "self", "inplace")}
                found = call(at * 1, *rest, **plain)
                (slope,) = torch.autograd.grad(found, at, allow_unused=True)
                slopes = []
                for side in (j, j + 1):
                    index = torch.tensor(side, dtype=torch.int8)
                    piece = pick(index, self.pieces(at, index, *parameters))
                    (s,) = torch.autograd.grad(piece, at, allow_unused=True) if piece.requires_grad else (None,)
                    slopes.append(0.0 if s is None else float(s))
            found_slope = 0.0 if slope is None else float(slope)
            _SIDES[key] = abs(found_slope - slopes[1]) < abs(found_slope - slopes[0])
        return _SIDES[key]

    def ties(self, args: Args, kwargs: Kwargs) -> torch.Tensor | None:
        bound = self.signature(*args, **kwargs)
        if bound is None:
            return None
        x, *parameters = bound
        return functools.reduce(torch.logical_or, (x.detach() == c for c in self.breaks(*parameters)))

    @property
    def rule(self) -> Rule:
        return Rule(self.locate, self.extend, self.ties, pointwise=True)


_SIDES: dict[Any, bool] = {}


def _below(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x where the first piece is active and 0 elsewhere, so that what overflows there stays out of the gradient."""
    return torch.where(index == 0, x, 0.0)


def _sixth(x: torch.Tensor) -> torch.Tensor:
    """x/6 with the slope of torch's own backward, which takes 1/6 in float32 whatever the dtype."""
    return x / 6 + (SIXTH - 1 / 6) * (x - x.detach())


SIXTH = torch.tensor(1 / 6, dtype=torch.float32).item()


def _elu(x: Any, alpha: float = 1.0, *scales: float, inplace: bool = False) -> tuple[Any, ...] | None:
    scale, input_scale = (*map(float, scales), 1.0, 1.0)[:2] if len(scales) != 1 else (1.0, 1.0)
    return None if alpha * input_scale == 1 else (x, float(alpha), scale, input_scale)


def _clamp(x: Any, min: Any = None, max: Any = None) -> tuple[Any, ...]:
    return x, None if min is None else float(min), None if max is None else float(max)


def _selu_pieces(x: torch.Tensor, index: torch.Tensor, *_: float) -> list[Any]:
    return [1.0507009873554804934193349852946 * 1.6732632423543772848170429916717 * torch.expm1(_below(x, index)),
            1.0507009873554804934193349852946 * x]  # fmt: skip


LINES: Mapping[str, Line] = {
    "relu": Line(lambda input, inplace=False: (input,), lambda: (0.0,), lambda x, i: [0.0, x]),
    "relu6": Line(lambda input, inplace=False: (input,), lambda: (0.0, 6.0), lambda x, i: [0.0, x, 6.0]),
    "hardtanh": Line(
        lambda input, min_val=-1.0, max_val=1.0, inplace=False: (input, float(min_val), float(max_val)),
        lambda low, high: (low, high),
        lambda x, i, low, high: [low, x, high],
    ),
    "leaky_relu": Line(
        lambda input, negative_slope=0.01, inplace=False: (input, float(negative_slope)),
        lambda slope: (0.0,),
        lambda x, i, slope: [slope * x, x],
    ),
    "threshold": Line(
        lambda input, threshold, value, inplace=False: (input, float(threshold), float(value)),
        lambda threshold, value: (threshold,),
        lambda x, i, threshold, value: [value, x],
    ),
    "softshrink": Line(
        lambda input, lambd=0.5: (input, float(lambd)),
        lambda lambd: (-lambd, lambd),
        lambda x, i, lambd: [x + lambd, 0.0, x - lambd],
    ),
    "hardshrink": Line(
        lambda input, lambd=0.5: (input, float(lambd)), lambda lambd: (-lambd, lambd), lambda x, i, lambd: [x, 0.0, x]
    ),
    "hardsigmoid": Line(
        lambda input, inplace=False: (input,), lambda: (-3.0, 3.0), lambda x, i: [0.0, _sixth(x) + 0.5, 1.0]
    ),
    "hardswish": Line(
        lambda input, inplace=False: (input,), lambda: (-3.0, 3.0), lambda x, i: [0.0, x * (x + 3) / 6, x]
    ),
    "elu": Line(
        _elu,
        lambda *_: (0.0,),
        lambda x, i, alpha, scale, input_scale: [
            scale * alpha * torch.expm1(input_scale * _below(x, i)),
            scale * x,
        ],
    ),
    "selu": Line(lambda input, inplace=False: (input,), lambda: (0.0,), _selu_pieces),
    "clamp": Line(
        _clamp,
        lambda low, high: tuple(c for c in (low, high) if c is not None),
        lambda x, i, low, high: [*([] if low is None else [low]), x, *([] if high is None else [high])],
    ),
}

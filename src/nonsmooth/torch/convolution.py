"""Graphs that are made to be differentiated twice, and convolutions whose second derivative takes less time.

torch's double backward of a convolution makes the gradient in the weight by a convolution with rows in the place of
channels. Here each of the four terms is one of the three operations that training is made of, and that oneDNN is tuned
for: a convolution, and its backward in the input or in the weight. benchmarks/sharpness.py shows what it gains.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import conv1d, conv2d, conv3d
from torch.overrides import TorchFunctionMode

from nonsmooth.torch.undisturbed import as_written

__all__ = ["FastConvolutions", "twice_differentiable"]

Numbers = int | tuple[int, ...]
DIMS: dict[Callable[..., Any], int] = {conv1d: 1, conv2d: 2, conv3d: 3}
WORTH = 1 << 16
"""The entries of an output from which on the time saved is more than Python's."""


@contextlib.contextmanager
def twice_differentiable(params: Iterable[torch.Tensor]) -> Iterator[None]:
    """Within it what is computed from `params` has a second derivative: no fused attention, nothing that is compiled.

    Fast convolutions too, where a parameter may be of one.

    >>> w = torch.ones(2, requires_grad=True)
    >>> with torch.no_grad(), twice_differentiable([w]):
    ...     torch.compile(torch.sin)(w).grad_fn.name()
    'SinBackward0'
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(as_written())
        if any(p.ndim > 2 for p in params):
            stack.enter_context(FastConvolutions())
        yield


class FastConvolutions(TorchFunctionMode):
    """Within it `conv1d`, `conv2d`, `conv3d` give a graph whose Hessian products are faster; the values are the same.

    Left to torch: small convolutions, devices other than the processor, autocast, `torch.func` and forward mode,
    complex tensors, other classes and layouts, and padding by name.

    >>> x, w = torch.randn(64, 3, 20, 20), torch.randn(8, 3, 3, 3, requires_grad=True)
    >>> with FastConvolutions():
    ...     y = torch.nn.functional.conv2d(x, w)
    >>> y.equal(torch.nn.functional.conv2d(x, w)), y.grad_fn.name()
    (True, 'ConvolutionBackward')
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        dims = None if torch.compiler.is_compiling() else DIMS.get(func)  # traced, a Function has no second derivative
        if dims is not None and all(t in (torch.Tensor, torch.nn.Parameter) for t in types):
            made = _fast(dims, *args, **kwargs)
            if made is not None:
                return made
        return func(*args, **kwargs)


def _fast(
    dims: int,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Numbers = 1,
    padding: Numbers | str = 0,
    dilation: Numbers = 1,
    groups: int = 1,
) -> torch.Tensor | None:
    """The convolution with the fast second derivative; None where it is left to torch."""
    given = (input, weight, bias)
    if (
        isinstance(padding, str)
        or input.ndim != dims + 2
        or not torch.is_grad_enabled()
        or not any(t is not None and t.requires_grad for t in given)
        or any(t is not None and (t.device.type != "cpu" or t.layout != torch.strided or t.is_complex()) for t in given)
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    ):
        return None
    strides, pads, holes = (_tuple(v, dims) for v in (stride, padding, dilation))
    if input.numel() // max(input.shape[1], 1) * weight.shape[0] < WORTH * math.prod(strides):
        return None
    out: torch.Tensor = Convolution.apply(input, weight, bias, (strides, pads, holes, False, (0,) * dims, groups))
    return out


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    several = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return several * dims if len(several) == 1 else several


class Convolution(Function):
    """y = x ∗ w + b."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None, how: tuple[Any, ...]
    ) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        ctx.how = how
        return torch.ops.aten.convolution(x, w, b, *how)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        x, w = ctx.saved_tensors
        return *ConvolutionGradient.apply(g, x, w, ctx.needs_input_grad[:3], ctx.how), None


class ConvolutionGradient(Function):
    """(∂x, ∂w, ∂b) of ⟨g, x ∗ w + b⟩, those of `mask`; its own gradient is four terms of the same three operations."""

    @staticmethod
    def forward(
        ctx: Any, g: torch.Tensor, x: torch.Tensor, w: torch.Tensor, mask: tuple[bool, ...], how: tuple[Any, ...]
    ) -> Any:
        ctx.save_for_backward(g, x, w)
        ctx.set_materialize_grads(False)
        ctx.how = how
        return torch.ops.aten.convolution_backward(g, x, w, w.shape[:1], *how, mask)

    @staticmethod
    def backward(ctx: Any, dx: torch.Tensor | None, dw: torch.Tensor | None, db: torch.Tensor | None) -> Any:
        g, x, w = ctx.saved_tensors
        need_g, need_x, need_w = ctx.needs_input_grad[:3]
        convolve, pull = torch.ops.aten.convolution, torch.ops.aten.convolution_backward
        of_g = of_x = of_w = None
        if need_g:
            for a, b, c in ((x, dw, db), (dx, w, None)):
                if a is not None and b is not None:
                    term = convolve(a, b, c, *ctx.how)
                    of_g = term if of_g is None else of_g.add_(term)
            if db is not None and dw is None:
                term = db.reshape(-1, *[1] * (g.ndim - 2)).expand_as(g)
                of_g = term if of_g is None else of_g.add_(term)
        if need_x and dw is not None:
            of_x = pull(g, x, dw, None, *ctx.how, (True, False, False))[0]
        if need_w and dx is not None:
            of_w = pull(g, dx, w, None, *ctx.how, (False, True, False))[1]
        return of_g, of_x, of_w, None, None

"""Smooth twins of torch's functions with kinks, at a sharpness β: each tends to its original as β → ∞.

The atom is s(x) = log(1 + e^{βx})/β, the convolution of max(x, 0) with the logistic density, 0 < s − max(x, 0) ≤
log 2/β, with slope σ(βx) and curvature at most β/4 (Chen & Mangasarian 1996). A function whose slope jumps by J at a
kink is a smooth function plus J·max(x − t, 0), and its twin has J·s(x − t) there: off by |J| log 2/β at most, with the
curvature |J|β/4. A maximum of n numbers becomes log Σ e^{βxᵢ}/β, which lies between it and log n/β above (Nesterov
2005; Beck & Teboulle 2012). A norm becomes √(‖x‖² + β⁻²), which lies between it and 1/β above.

    function                            twin                                                 off by at most
    relu, threshold(t, t)               s(x), t + s(x − t)                                   log 2/β
    leaky_relu, prelu, rrelu (slope a)  a x + (1 − a) s(x)                                   |1 − a| log 2/β
    abs                                 s(x) + s(−x)                                         2 log 2/β
    clamp, hardtanh, relu6              b − s(b − y), y = a + s(x − a)                       log 2/β
    hardsigmoid                         relu6's at x + 3, over 6                             log 2/(6β)
    hardswish                           h(x) + x + 3/2 − s(x + 3)/2 − s(x − 3)/2             log(2 + 2e^{−6β})/(2β)
                                        (h: smooth_l1_loss at 0 with beta 3, a C¹ function)
    softshrink                          s(x − λ) − s(−x − λ)                                 log 2/β
    elu, selu (slope αk·c from below)   cα elu₁(kx) + c(1 − αk) s(x), c the scale            c|1 − αk| log 2/β
    maximum, minimum, fmax, fmin        log(e^{βx} + e^{βy})/β, and − that of −x, −y         log 2/β
    max, amax, min, amin, aminmax       log Σ e^{βxᵢ}/β, and − that of −x                    log n/β
    max_pool, adaptive_max_pool         the same over each window; what is padded is out     log n/β, n to a window
    cummax, cummin                      the same over what came before                       log n/β
    norm, p = 2; hypot; dist            √(‖x‖² + β⁻²)                                        1/β
    norm, p = 1                         Σ abs's                                              2n log 2/β
    norm, p = ∞                         log Σ (e^{βxᵢ} + e^{−βxᵢ})/β                         log(2n)/β
    norm, 1 < p < ∞                     (Σ (xᵢ² + β⁻²)^{p/2})^{1/p}                          n^{1/p}/β
    sqrt, x^p with 0 < p < 1 (x ≥ 0)    (x + β⁻² exp(−β²x))^p                                β^{−2p}
    std                                 the same of the variance, p = ½                      1/β
    complex abs                         √(|z|² + β⁻²)                                        1/β

Losses (l1_loss, smooth_l1_loss with beta 0, hinge and margin losses, triplets), normalize and cosine_similarity are
composed of these, and their errors too: l1_loss is off by 2 log 2/β a residual, a hinge by log 2/β. What normalize is
off by does not tend to 0 at 0, where it is not continuous as its eps tends to 0. All have second derivatives, and are
computed without overflow: s by torch's softplus with its switch to the line at βx = 40, a jump of 4e-18/β, below
rounding; in half precision sums of exponentials are taken in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from nonsmooth.torch.selection.extremes import dimensions

__all__ = ["INDEXED", "TWINS", "ramp", "unseen"]

LINEAR = 40.0
"""Where softplus is its asymptote to rounding, in double precision too."""
SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

Twin = Callable[..., Any]
TWINS: dict[str, Twin] = {}
"""By name: takes β and the arguments of the call, and gives the twin's value; NotImplemented where there is none."""
INDEXED = {"max", "min", "cummax", "cummin"} | {f"{a}max_pool{n}d" for a in ("", "adaptive_") for n in (1, 2, 3)}
"""Functions that may return indices as well: these stay the original's, and the twin is of the values."""


def ramp(beta: float, x: torch.Tensor) -> torch.Tensor:
    """s(x) = log(1 + e^{βx})/β: above max(x, 0) by at most log 2/β, which it is at 0.

    >>> x = torch.tensor([-1e300, 0.0, 1e300], dtype=torch.float64)
    >>> (ramp(2.0, x) * 2 / math.log(2)).tolist()[:2], ramp(2.0, x)[2].item()
    ([0.0, 1.0], 1e+300)
    """
    return functional.softplus(x, beta, LINEAR)


class unseen:  # noqa: N801  # a context, as torch.no_grad is
    """Without gradients, and out of sight of torch function modes.

    >>> with unseen():
    ...     torch.is_grad_enabled()
    False
    """

    def __enter__(self) -> None:
        self.grad, self.quiet = torch.no_grad(), torch._C.DisableTorchFunction()
        self.grad.__enter__()
        self.quiet.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.quiet.__exit__(*error)
        self.grad.__exit__(*error)


def _twin(*names: str) -> Callable[[Twin], Twin]:
    def entered(twin: Twin) -> Twin:
        TWINS.update(dict.fromkeys(names, twin))
        return twin

    return entered


# --- entry by entry ---------------------------------------------------------------------------------------------------


@_twin("relu")
def _relu(beta: float, input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return ramp(beta, input)


@_twin("threshold")
def _threshold(beta: float, input: torch.Tensor, threshold: float, value: float, inplace: bool = False) -> torch.Tensor:
    return threshold + ramp(beta, input - threshold)


@_twin("leaky_relu")
def _leaky(beta: float, input: torch.Tensor, negative_slope: Any = 0.01, inplace: bool = False) -> torch.Tensor:
    return negative_slope * input + (1 - negative_slope) * ramp(beta, input)


@_twin("prelu")
def _prelu(beta: float, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    per_channel = weight.numel() > 1
    return _leaky(beta, input, weight.reshape(1, -1, *[1] * (input.ndim - 2)) if per_channel else weight.reshape(()))


@_twin("rrelu")
def _rrelu(
    beta: float, input: torch.Tensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: Any,
    **__: Any,
) -> torch.Tensor:  # fmt: skip
    """In training the slopes are drawn as torch draws them, for all entries."""
    if not training:
        return _leaky(beta, input, (lower + upper) / 2)
    with unseen():
        slopes = -torch.rrelu(-torch.ones_like(input), lower, upper, True)
    return _leaky(beta, input, slopes)


@_twin("abs")
def _abs(beta: float, input: torch.Tensor) -> torch.Tensor:
    if input.is_complex():
        return _root(input.real.square() + input.imag.square() + beta**-2)
    return ramp(beta, input) + ramp(beta, -input)


@_twin("clamp")
def _clamp(beta: float, input: torch.Tensor, min: Any = None, max: Any = None) -> torch.Tensor:
    out = input
    for end, sign in ((min, 1.0), (max, -1.0)):
        if isinstance(end, torch.Tensor):
            out = (_maximum if sign > 0 else _minimum)(beta, out, end)
        elif end is not None and math.isfinite(end):
            out = end + sign * ramp(beta, sign * (out - end))
    return out


@_twin("clamp_min")
def _clamp_min(beta: float, input: torch.Tensor, min: Any) -> torch.Tensor:
    return _clamp(beta, input, min)


@_twin("clamp_max")
def _clamp_max(beta: float, input: torch.Tensor, max: Any) -> torch.Tensor:
    return _clamp(beta, input, None, max)


@_twin("hardtanh")
def _hardtanh(
    beta: float, input: torch.Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> torch.Tensor:
    return _clamp(beta, input, min_val, max_val)


@_twin("relu6")
def _relu6(beta: float, input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return _clamp(beta, input, 0.0, 6.0)


@_twin("hardsigmoid")
def _hardsigmoid(beta: float, input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return _clamp(beta, input + 3, 0.0, 6.0) / 6


@_twin("hardswish")
def _hardswish(beta: float, input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """The slope jumps by −½ at −3 and at 3; without these jumps it is h(x) + x + 3/2, which is C¹."""
    h = functional.smooth_l1_loss(input, torch.zeros_like(input), reduction="none", beta=3.0)
    return (h + input + 1.5) - (ramp(beta, input + 3) + ramp(beta, input - 3)) / 2


@_twin("softshrink")
def _softshrink(beta: float, input: torch.Tensor, lambd: float = 0.5) -> torch.Tensor:
    return ramp(beta, input - lambd) - ramp(beta, -input - lambd)


@_twin("elu")
def _elu(
    beta: float, input: torch.Tensor, alpha: float = 1.0, scale: Any = 1.0, input_scale: float = 1.0,
    inplace: bool = False,
) -> torch.Tensor:  # fmt: skip
    """F.elu passes `inplace` third, as a bool, where torch's own kernel has the scale."""
    scale = 1.0 if isinstance(scale, bool) else scale
    jump = scale * (1 - alpha * input_scale)
    return scale * alpha * functional.elu(input_scale * input) + jump * ramp(beta, input)


@_twin("selu")
def _selu(beta: float, input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return _elu(beta, input, SELU_ALPHA, SELU_SCALE)


@_twin("rnn_relu_cell")
def _rnn_cell(beta: float, x: Any, h: Any, w_x: Any, w_h: Any, b_x: Any = None, b_h: Any = None) -> torch.Tensor:
    return ramp(beta, functional.linear(x, w_x, b_x) + functional.linear(h, w_h, b_h))


@_twin("sqrt")
def _sqrt(beta: float, input: torch.Tensor) -> torch.Tensor:
    return _root(_lifted(beta, input))


@_twin("pow", "float_power")
def _pow(beta: float, input: torch.Tensor, exponent: float) -> torch.Tensor:
    return torch.exp(exponent * torch.log(_lifted(beta, input)))


def _lifted(beta: float, x: torch.Tensor) -> torch.Tensor:
    """x ≥ 0, away from 0 by β⁻² there, and by next to nothing elsewhere: roots stand in normalisations made by hand."""
    return x + beta**-2 * torch.exp(-(beta**2) * x)


def _root(y: torch.Tensor) -> torch.Tensor:
    """√y for y > 0, in functions that are smooth there by name."""
    return y * y.rsqrt()


# --- choices ----------------------------------------------------------------------------------------------------------


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _largest(beta: float, x: torch.Tensor, dim: Any = None, keepdim: bool = False) -> torch.Tensor:
    """log Σ e^{βx}/β along `dim`."""
    if not x.ndim:
        return x * 1
    return (torch.logsumexp(_wide(x) * beta, dimensions(x, dim), keepdim) / beta).to(x.dtype)


@_twin("amax")
def _amax(beta: float, input: torch.Tensor, dim: Any = None, keepdim: bool = False) -> torch.Tensor:
    return _largest(beta, input, dim, keepdim)


@_twin("amin")
def _amin(beta: float, input: torch.Tensor, dim: Any = None, keepdim: bool = False) -> torch.Tensor:
    return -_largest(beta, -input, dim, keepdim)


@_twin("aminmax")
def _aminmax(beta: float, input: torch.Tensor, *, dim: Any = None, keepdim: bool = False) -> Any:
    return torch.return_types.aminmax((_amin(beta, input, dim, keepdim), _amax(beta, input, dim, keepdim)))


@_twin("maximum")
def _maximum(beta: float, input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    dtype = torch.result_type(input, other)
    both = torch.broadcast_tensors(input.to(dtype), other.to(device=input.device, dtype=dtype))
    return _largest(beta, torch.stack(both), 0)


@_twin("minimum")
def _minimum(beta: float, input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return -_maximum(beta, -input, -other)


@_twin("fmax")
def _fmax(beta: float, input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    with unseen():
        missing, there = input.isnan(), other.isnan()
    a, b = (x.masked_fill(gone, -math.inf) for x, gone in ((input, missing), (other, there)))
    return _maximum(beta, a, b).masked_fill(missing & there, math.nan)


@_twin("fmin")
def _fmin(beta: float, input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return -_fmax(beta, -input, -other)


@_twin("max")
def _max(beta: float, input: torch.Tensor, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
    if isinstance(dim, torch.Tensor) or other is not None:
        return _maximum(beta, input, dim if other is None else other)
    return _largest(beta, input, dim, keepdim)


@_twin("min")
def _min(beta: float, input: torch.Tensor, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
    if isinstance(dim, torch.Tensor) or other is not None:
        return _minimum(beta, input, dim if other is None else other)
    return -_largest(beta, -input, dim, keepdim)


@_twin("cummax")
def _cummax(beta: float, input: torch.Tensor, dim: int) -> torch.Tensor:
    return (torch.logcumsumexp(_wide(input) * beta, dim) / beta).to(input.dtype)


@_twin("cummin")
def _cummin(beta: float, input: torch.Tensor, dim: int) -> torch.Tensor:
    return -_cummax(beta, -input, dim)


def _pool(axes: int) -> Twin:
    """Axis by axis, as a sum of exponentials allows."""

    def twin(
        beta: float, input: torch.Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        stride = kernel_size if stride is None or stride == () or stride == [] else stride
        x = _wide(input) * beta
        for axis, k, s, p, d in zip(
            range(-axes, 0), *(_each(v, axes) for v in (kernel_size, stride, padding, dilation))
        ):
            n, wide = x.shape[axis], d * (k - 1) + 1
            room = n + 2 * p - wide
            count = (-(-room // s) if ceil_mode else room // s) + 1
            if ceil_mode and (count - 1) * s >= n + p:  # torch lets no window begin in the padding on the right
                count -= 1
            right = (count - 1) * s + wide - n - p
            x = functional.pad(x, [0, 0] * (-1 - axis) + [p, max(right, 0)], value=-math.inf)
            x = torch.logsumexp(x.unfold(axis, wide, s).narrow(axis - 1, 0, count)[..., ::d], -1)
        return (x / beta).to(input.dtype)

    return twin


def _adaptive_pool(axes: int) -> Twin:
    """Window i of o covers the entries from ⌊i n/o⌋ up to ⌈(i + 1) n/o⌉."""

    def twin(beta: float, input: torch.Tensor, output_size: Any, return_indices: bool = False) -> torch.Tensor:
        x = _wide(input) * beta
        for axis, o in zip(range(-axes, 0), _each(output_size, axes), strict=True):
            n = x.shape[axis]
            o = n if o is None else o
            ends = [(i * n // o, -(-(i + 1) * n // o)) for i in range(o)]
            x = torch.stack([torch.logsumexp(x.narrow(axis, a, b - a), axis) for a, b in ends], axis)
        return (x / beta).to(input.dtype)

    return twin


def _each(v: Any, axes: int) -> list[Any]:
    return list(v) * (axes if len(v) == 1 else 1) if isinstance(v, tuple | list) else [v] * axes


for _n in (1, 2, 3):
    TWINS[f"max_pool{_n}d"], TWINS[f"adaptive_max_pool{_n}d"] = _pool(_n), _adaptive_pool(_n)


# --- norms and distances ----------------------------------------------------------------------------------------------


def _norm(beta: float, x: torch.Tensor, p: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    if x.is_complex() or isinstance(p, torch.Tensor):
        return NotImplemented
    given = x.dtype if dtype is None else dtype
    x, dims = _wide(x.to(given)), dimensions(x, dim)
    if p is None or p in ("fro", 2):
        out = _root(x.square().sum(dims, keepdim) + beta**-2)
    elif p == 1:
        out = _abs(beta, x).sum(dims, keepdim)
    elif p == math.inf:
        out = torch.logsumexp(torch.stack((x, -x)).movedim(0, -1) * beta, (*dims, x.ndim), keepdim) / beta
        out = out.squeeze(-1) if keepdim else out
    elif isinstance(p, int | float) and 1 < p < math.inf:
        out = torch.exp(torch.logsumexp(p / 2 * torch.log(x.square() + beta**-2), dims, keepdim) / p)
    else:
        return NotImplemented
    return out.to(given)


@_twin("vector_norm")
def _vector_norm(
    beta: float, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    return _norm(beta, x, ord, dim, keepdim, dtype)


@_twin("norm")
def _torch_norm(
    beta: float, input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    return _norm(beta, input, p, dim, keepdim, dtype)


@_twin("frobenius_norm")
def _frobenius(beta: float, input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    return _norm(beta, input, 2, dim, keepdim)


@_twin("linalg_norm")
def _linalg_norm(
    beta: float, A: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    axes = A.ndim if dim is None else len(dim) if isinstance(dim, tuple | list) else 1
    return NotImplemented if ord not in (None, "fro") and axes != 1 else _norm(beta, A, ord, dim, keepdim, dtype)


@_twin("matrix_norm")
def _matrix_norm(
    beta: float, A: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, *, dtype: Any = None
) -> Any:
    return _norm(beta, A, "fro", dim, keepdim, dtype) if ord == "fro" else NotImplemented


@_twin("dist")
def _dist(beta: float, input: Any, other: Any, p: float = 2) -> Any:
    return _norm(beta, input - other, p)


@_twin("pairwise_distance")
def _pairwise(beta: float, x1: Any, x2: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    return _norm(beta, x1 - x2 + eps, p, -1, keepdim)


@_twin("cdist")
def _cdist(beta: float, x1: Any, x2: Any, p: float = 2.0, compute_mode: Any = None) -> Any:
    return _norm(beta, x1[..., :, None, :] - x2[..., None, :, :], p, -1)


@_twin("hypot")
def _hypot(beta: float, input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return _root(input.square() + other.square() + beta**-2)


@_twin("std")
def _std(beta: float, *args: Any, **kwargs: Any) -> torch.Tensor:
    return _root(_lifted(beta, torch.var(*args, **kwargs)))


@_twin("std_mean")
def _std_mean(beta: float, *args: Any, **kwargs: Any) -> Any:
    var, mean = torch.var_mean(*args, **kwargs)
    return _root(_lifted(beta, var)), mean


@_twin("cosine_similarity")
def _cosine(beta: float, x1: Any, x2: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    sizes = [_clamp(beta, _norm(beta, x, 2, dim), eps) for x in (x1, x2)]
    return (x1 * x2).sum(dim) / (sizes[0] * sizes[1])

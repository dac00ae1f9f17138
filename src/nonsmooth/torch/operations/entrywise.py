"""Entry by entry: activations, roundings, comparisons, each with the numbers at which it kinks or jumps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from nonsmooth.torch.operations.kink import (
    C0,
    C1,
    DISCONTINUOUS,
    Entry,
    Kinks,
    Probe,
    enter,
    fixed,
    one,
    points,
    somewhere,
    tie,
    uncounted,
)

ENTRYWISE: dict[str, Entry] = {}

for _name in ("relu", "abs", "selu", "rrelu", "sqrt", "entr"):
    ENTRYWISE[_name] = fixed(C0, 0.0)
for _name in ("celu", "softsign"):
    ENTRYWISE[_name] = fixed(C1, 0.0)
for _name in ("sign", "sgn", "signbit", "heaviside"):
    ENTRYWISE[_name] = fixed(DISCONTINUOUS, 0.0)
ENTRYWISE["angle"] = fixed(DISCONTINUOUS, 0.0)
ENTRYWISE["relu6"] = fixed(C0, 0.0, 6.0)
ENTRYWISE["hardswish"] = ENTRYWISE["hardsigmoid"] = fixed(C0, -3.0, 3.0)


@enter(ENTRYWISE, "copysign")
def _copysign(input: torch.Tensor, other: Any) -> Kinks:
    return uncounted(DISCONTINUOUS, "a sign at 0", input, 1)


@enter(ENTRYWISE, "elu")
def _elu(
    input: torch.Tensor, alpha: float = 1.0, scale: Any = 1.0, input_scale: float = 1.0, inplace: bool = False
) -> Kinks:
    return points(input, (0.0,), C1 if alpha * input_scale == 1 else C0)


@enter(ENTRYWISE, "leaky_relu")
def _leaky_relu(input: torch.Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Kinks | None:
    return None if negative_slope == 1 else points(input, (0.0,))


@enter(ENTRYWISE, "prelu")
def _prelu(input: torch.Tensor, weight: torch.Tensor) -> Kinks:
    slope = weight.detach().flatten()[:1]
    return points(input, (0.0,), C0, lambda prelu, x: prelu(x, slope))


@enter(ENTRYWISE, "hardtanh")
def _hardtanh(input: torch.Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Kinks:
    return points(input, (min_val, max_val))


@enter(ENTRYWISE, "softshrink")
def _softshrink(input: torch.Tensor, lambd: float = 0.5) -> Kinks | None:
    return points(input, (-lambd, lambd)) if lambd else None


@enter(ENTRYWISE, "hardshrink")
def _hardshrink(input: torch.Tensor, lambd: float = 0.5) -> Kinks | None:
    return points(input, (-lambd, lambd), DISCONTINUOUS) if lambd else None


@enter(ENTRYWISE, "threshold")
def _threshold(input: torch.Tensor, threshold: float, value: float, inplace: bool = False) -> Kinks:
    return points(input, (threshold,), C0 if threshold == value else DISCONTINUOUS)


@enter(ENTRYWISE, "clamp")
def _clamp(input: torch.Tensor, min: Any = None, max: Any = None) -> Kinks | None:
    ends = [end for end in (min, max) if end is not None]
    if not any(isinstance(end, torch.Tensor) for end in ends):
        return points(input, [float(end) for end in ends if math.isfinite(end)]) if ends else None
    probes = tuple(
        Probe(f"x = {name}", (one(input, 0.0), one(input, 0.0)), (), call)
        for name, end, call in (
            ("min", min, lambda clamp, x, end: clamp(x, min=end)),
            ("max", max, lambda clamp, x, end: clamp(x, max=end)),
        )
        if end is not None
    )
    return Kinks(
        C0, len(ends), "x = min, max", input.numel(), lambda: sum(int((input == end).sum()) for end in ends), probes
    )


@enter(ENTRYWISE, "clamp_min")
def _clamp_min(input: torch.Tensor, min: Any) -> Kinks | None:
    return tie(input, min) if isinstance(min, torch.Tensor) else _clamp(input, min)


@enter(ENTRYWISE, "clamp_max")
def _clamp_max(input: torch.Tensor, max: Any) -> Kinks | None:
    return tie(input, max) if isinstance(max, torch.Tensor) else _clamp(input, None, max)


@enter(ENTRYWISE, "pow", "float_power")
def _pow(input: Any, exponent: Any) -> Kinks | None:
    """x^p with 0 < p < 1 has an infinite slope at 0, with 1 < p < 2 an infinite second derivative there."""
    if (
        not isinstance(input, torch.Tensor)
        or isinstance(exponent, torch.Tensor)
        or not 0 < exponent < 2
        or exponent == 1
    ):
        return None
    return points(input, (0.0,), C0 if exponent < 1 else C1)


def _steps(smoothness_at: str, on: Callable[[torch.Tensor], torch.Tensor], at: float) -> Callable[..., Kinks]:
    def entry(input: torch.Tensor, *_: Any, decimals: int = 0, **__: Any) -> Kinks:
        scale = 10.0**decimals
        probe = Probe(f"{at / scale:g}", (one(input, at / scale),), (input,))
        return Kinks(
            DISCONTINUOUS, math.inf, smoothness_at, input.numel(), lambda: int(on(input * scale).sum()), (probe,)
        )

    return entry


ENTRYWISE["round"] = _steps("x = n + ½", lambda x: (x - x.floor()) == 0.5, 0.5)
ENTRYWISE["floor"] = ENTRYWISE["ceil"] = _steps("x = n", lambda x: x == x.round(), 1.0)
ENTRYWISE["trunc"] = ENTRYWISE["frac"] = _steps("x = n ≠ 0", lambda x: (x == x.round()) & (x != 0), 1.0)


@enter(ENTRYWISE, "remainder", "fmod", "floor_divide")
def _remainder(input: Any, other: Any) -> Kinks:
    x, y = torch.as_tensor(input), torch.as_tensor(other)
    if not isinstance(input, torch.Tensor):
        return uncounted(DISCONTINUOUS, "x = n y", y, math.inf)
    probe = Probe("x = y", (one(x, 1.0),), (), lambda f, x: f(x, 1.0))
    return Kinks(
        DISCONTINUOUS, math.inf, "x = n y", x.numel(), lambda: int((torch.remainder(x, y) == 0).sum()), (probe,)
    )


@enter(ENTRYWISE, "div")
def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Kinks | None:
    return None if rounding_mode is None else _remainder(input, other)


@enter(ENTRYWISE, "fake_quantize_per_tensor_affine")
def _fake_quantize(input: torch.Tensor, scale: Any, zero_point: Any, quant_min: int, quant_max: int, *_: Any) -> Kinks:
    """Its backward is straight through: the derivative is 1 although the value jumps."""
    step = float(scale)
    probe = Probe(f"{step / 2:g}", (one(input, step / 2),), (input,))
    on = _steps("", lambda x: (x - x.floor()) == 0.5, 0.5)(input / step).exact
    return Kinks(DISCONTINUOUS, quant_max - quant_min, "x = (n + ½) scale", input.numel(), on, (probe,))


for _name in ("rnn_relu", "rnn_relu_cell"):
    ENTRYWISE[_name] = somewhere(C0, "pre-activation = 0, inside the kernel", 1)
for _name in ("fake_quantize_per_channel_affine", "fused_moving_avg_obs_fake_quant", "quantize_per_tensor",
              "quantize_per_channel", "quantize_per_tensor_dynamic"):  # fmt: skip
    ENTRYWISE[_name] = somewhere(DISCONTINUOUS, "x = (n + ½) scale", math.inf)

for _name in ("maximum", "minimum", "fmax", "fmin"):
    ENTRYWISE[_name] = lambda input, other: tie(input, other)

COMPARISONS = frozenset({"gt", "ge", "lt", "le", "eq", "ne", "isclose"})


@enter(ENTRYWISE, *COMPARISONS)
def _comparison(input: Any, other: Any, *_: Any, **__: Any) -> Kinks:
    found = tie(input, other, DISCONTINUOUS)
    at = f"x = {other:g}" if isinstance(other, int | float) else "a tie"
    return Kinks(DISCONTINUOUS, 1, at, found.numbers, found.exact)

"""The pieces of torch's other pointwise operations; and the table of all pointwise ones."""

from __future__ import annotations

import functools
from typing import Any

import torch

from nonsmooth.torch.selection.lines import LINES
from nonsmooth.torch.selection.pieces import Args, Call, Kwargs, Rule, first, pick

__all__ = ["POINTWISE", "larger"]


def _abs(index: torch.Tensor, call: Call, args: Args, kwargs: Kwargs) -> Any:
    return first(args, kwargs) * index


ABS = Rule(
    lambda call, args, kwargs: torch.sign(first(args, kwargs).detach()).to(torch.int8),
    _abs,
    lambda args, kwargs: first(args, kwargs).detach() == 0,
    pointwise=True,
)

CONSTANT = Rule(
    lambda call, args, kwargs: _detached(call(*args, **kwargs)),
    lambda piece, call, args, kwargs: piece.clone() if isinstance(piece, torch.Tensor) else piece,
    pointwise=True,
    constant=True,
)


def _detached(found: Any) -> Any:
    return found.detach().clone() if isinstance(found, torch.Tensor) else found


def _equal(input: Any, other: Any) -> torch.Tensor | None:
    """Where two sides meet; of no interest where neither can move."""
    both = [t for t in (input, other) if isinstance(t, torch.Tensor)]
    return input == other if any(t.requires_grad for t in both) else None


COMPARED = Rule(
    CONSTANT.locate,
    CONSTANT.extend,
    lambda args, kwargs: _equal(*args, **kwargs),
    pointwise=True,
    constant=True,
)


def _locate_frac(call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
    return torch.trunc(first(args, kwargs).detach())


FRAC = Rule(_locate_frac, lambda whole, call, args, kwargs: first(args, kwargs) - whole, pointwise=True)


def _remainder_of(rounding: str) -> Rule:
    def locate(call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
        x, y = (a.detach() if isinstance(a, torch.Tensor) else a for a in args)
        return torch.div(x, y, rounding_mode=rounding)

    return Rule(locate, lambda whole, call, args, kwargs: args[0] - whole * args[1], pointwise=True)


def _locate_prelu(call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
    return first(args, kwargs).detach() > 0


def _extend_prelu(index: torch.Tensor, call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
    x, weight = (*args, *kwargs.values())[:2]
    if weight.numel() > 1 and x.ndim > 1:
        weight = weight.reshape(-1, *(1,) * (x.ndim - 2))
    return torch.where(index, x, weight * x)


PRELU = Rule(_locate_prelu, _extend_prelu, ABS.ties)


def larger(sign: int, half: bool) -> Rule:
    """max(x, y), or min for sign −1; at a tie a half each, or all to x.

    >>> x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])
    >>> larger(1, half=True).locate(torch.maximum, (x, y), {}).tolist()  # y, both, x
    [1, 2, 0]
    """

    def locate(call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
        x, y = (*args, *kwargs.values())[:2]
        x, y = x.detach() * sign, y.detach() * sign
        return (y > x).to(torch.int8) + (2 * (x == y).to(torch.int8) if half else 0)

    def extend(index: torch.Tensor, call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
        x, y = (*args, *kwargs.values())[:2]
        shape = torch.broadcast_shapes(x.shape, y.shape)
        return pick(index, [x.expand(shape), y, (x + y) / 2])

    def ties(args: Args, kwargs: Kwargs) -> torch.Tensor:
        x, y = (*args, *kwargs.values())[:2]
        return x.detach() == y.detach()

    return Rule(locate, extend, ties, pointwise=True)


def _locate_between(call: Call, args: Args, kwargs: Kwargs) -> Any:
    """Clamp between tensors: 0 the lower bound, 1 x, 2 the upper one."""
    x, low, high = _bounds(*args, **kwargs)
    index = torch.ones(first(args, kwargs).shape, dtype=torch.int8, device=x.device)
    index = index if low is None else index - (x.detach() < low).to(torch.int8)
    return index if high is None else torch.where(x.detach() > high, 2, index)


def _bounds(x: Any, min: Any = None, max: Any = None) -> tuple[Any, Any, Any]:
    return x, min, max


def _extend_between(index: torch.Tensor, call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
    x, low, high = _bounds(*args, **kwargs)
    return pick(index, [x if low is None else low + torch.zeros_like(x), x, x if high is None else high])


def _ties_between(args: Args, kwargs: Kwargs) -> torch.Tensor:
    x, low, high = _bounds(*args, **kwargs)
    return functools.reduce(torch.logical_or, (x.detach() == c for c in (low, high) if c is not None))


BETWEEN = Rule(_locate_between, _extend_between, _ties_between, pointwise=True)


def _with_pointwise_clamp(args: Args, kwargs: Kwargs) -> bool:
    return any(isinstance(a, torch.Tensor) for a in (*args[1:], *(v for k, v in kwargs.items() if k in ("min", "max"))))


CLAMP = Rule(
    lambda call, args, kwargs: (BETWEEN if _with_pointwise_clamp(args, kwargs) else LINES["clamp"]).locate(
        call, args, kwargs
    ),
    lambda piece, call, args, kwargs: (BETWEEN if _with_pointwise_clamp(args, kwargs) else LINES["clamp"]).extend(
        piece, call, args, kwargs
    ),
    lambda args, kwargs: (BETWEEN if _with_pointwise_clamp(args, kwargs) else LINES["clamp"]).ties(args, kwargs),
    pointwise=True,
)


def _as_clamp(keyword: str) -> Rule:
    """clamp_min and clamp_max, whose bound comes second."""

    def turned(args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        bound = args[1] if len(args) > 1 else kwargs[keyword]
        return (first(args, kwargs),), {keyword: bound}

    return Rule(
        lambda call, args, kwargs: CLAMP.locate(torch.clamp, *turned(args, kwargs)),
        lambda piece, call, args, kwargs: CLAMP.extend(piece, call, *turned(args, kwargs)),
        lambda args, kwargs: CLAMP.ties(*turned(args, kwargs)),
        pointwise=True,
    )


def _locate_rrelu(call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor | None:
    """The slopes that were drawn."""
    x = first(args, kwargs).detach()
    y = call(x.clone(), *args[1:], **{k: v for k, v in kwargs.items() if k not in ("input", "inplace")})
    lower, upper = (*args[1:3], kwargs.get("lower", 1 / 8), kwargs.get("upper", 1 / 3))[:2]
    return torch.where(x > 0, 1.0, torch.where(x < 0, y / x, (lower + upper) / 2))


def _extend_rrelu(slopes: torch.Tensor, call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
    return first(args, kwargs) * slopes


POINTWISE: dict[str, Rule] = {name: line.rule for name, line in LINES.items()}
POINTWISE |= {"clamp": CLAMP, "clip": CLAMP, "clamp_min": _as_clamp("min"), "clamp_max": _as_clamp("max")}
POINTWISE |= dict.fromkeys(("abs", "absolute", "__abs__", "fabs"), ABS)
POINTWISE |= {"prelu": PRELU, "rrelu": Rule(_locate_rrelu, _extend_rrelu, ABS.ties), "frac": FRAC}
POINTWISE |= {"remainder": _remainder_of("floor"), "__mod__": _remainder_of("floor"), "fmod": _remainder_of("trunc")}
POINTWISE |= {"maximum": larger(1, True), "minimum": larger(-1, True)}
POINTWISE |= {"fmax": larger(1, False), "fmin": larger(-1, False)}
COMPARISONS = ("gt", "lt", "ge", "le", "eq", "ne", "greater", "less", "greater_equal", "less_equal", "not_equal",
               "__gt__", "__lt__", "__ge__", "__le__", "__eq__", "__ne__")  # fmt: skip
DISCRETE = ("sign", "sgn", "signbit", "round", "floor", "ceil", "trunc", "fix", "heaviside", "floor_divide",
            "__floordiv__", "isclose", "long", "int", "short", "char", "byte", "bool")  # fmt: skip
POINTWISE |= dict.fromkeys(COMPARISONS, COMPARED) | dict.fromkeys(DISCRETE, CONSTANT)
"""By name, the operations that map unit to unit; prelu and rrelu hold more than the unit, and are not marked so."""

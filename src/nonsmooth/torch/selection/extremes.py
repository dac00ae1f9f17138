"""The pieces of operations that choose among entries: maxima, pools, sorting; and the table of all rules."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from nonsmooth.torch.selection.pieces import Args, Call, Kwargs, Rule, base_name, first
from nonsmooth.torch.selection.pointwise import CONSTANT, POINTWISE, larger

__all__ = ["RULES", "dimensions"]


def dimensions(x: torch.Tensor, dim: Any) -> tuple[int, ...]:
    """The dimensions that `dim` means, counted from 0; all of them for None.

    >>> dimensions(torch.zeros(2, 3), -1)
    (1,)
    """
    dims = tuple(range(x.ndim)) if dim is None or dim == () else (dim,) if isinstance(dim, int) else tuple(dim)
    return tuple(d % max(x.ndim, 1) for d in dims)


def _reduced(args: Args, kwargs: Kwargs) -> tuple[torch.Tensor, tuple[int, ...], bool]:
    def bound(input: Any, dim: Any = None, keepdim: bool = False) -> tuple[torch.Tensor, tuple[int, ...], bool]:
        return input, dimensions(input, dim), keepdim

    return bound(*args, **kwargs)


def _locate_extreme(call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
    """Where x is the extreme: each such entry has an equal share of the gradient."""
    x, dims, keepdim = _reduced(args, kwargs)
    found: torch.Tensor = call(*args, **kwargs).detach()
    if x.ndim and not keepdim:
        for d in sorted(dims):
            found = found.unsqueeze(d)
    return x.detach() == found


def _extend_extreme(mask: torch.Tensor, call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
    x, dims, keepdim = _reduced(args, kwargs)
    if not x.ndim:
        return x * 1
    return torch.where(mask, x, 0.0).sum(dims, keepdim) / mask.sum(dims, keepdim)


EXTREME = Rule(_locate_extreme, _extend_extreme)


def _locate_selected(call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
    return call(*args, **kwargs).indices.clone()


def _extend_selected(indices: torch.Tensor, call: Call, args: Args, kwargs: Kwargs) -> Any:
    """Gather the values that were selected; torch's own named pair, from torch's own call."""
    found = call(*args, **kwargs)
    x = first(args, kwargs)
    position = _POSITION_OF_DIM.get(base_name(call), 1)
    dim: Any = kwargs.get("dim", args[position] if len(args) > position else -1)
    keep = indices.ndim == x.ndim
    at = indices if keep else indices.unsqueeze(dim)
    values = x.gather(dim, at) if x.ndim else x * 1
    values = values if keep else values.squeeze(dim)
    return type(found)((values, indices.clone()))


_POSITION_OF_DIM = {"topk": 2, "kthvalue": 2, "sort": 1}
SELECTED = Rule(_locate_selected, _extend_selected)


def _max_or_min(sign: int) -> Rule:
    """torch.max(x), torch.max(x, dim) and torch.max(x, y) are three operations."""

    def kind(args: Args, kwargs: Kwargs) -> Rule:
        if "other" in kwargs or (len(args) > 1 and isinstance(args[1], torch.Tensor)):
            return larger(sign, half=True)
        return SELECTED if len(args) > 1 or "dim" in kwargs else EXTREME

    return Rule(
        lambda call, args, kwargs: kind(args, kwargs).locate(call, args, kwargs),
        lambda piece, call, args, kwargs: kind(args, kwargs).extend(piece, call, args, kwargs),
        lambda args, kwargs: kind(args, kwargs).ties(args, kwargs),
    )


def _either(args: Args, kwargs: Kwargs) -> Rule:
    return SELECTED if len(args) > 1 or "dim" in kwargs else EXTREME


MEDIAN = Rule(
    lambda call, args, kwargs: _either(args, kwargs).locate(call, args, kwargs),
    lambda piece, call, args, kwargs: _either(args, kwargs).extend(piece, call, args, kwargs),
)


def _pool(dimensions: int, adaptive: bool, indices_too: bool) -> Rule:
    own = getattr(functional, f"{'adaptive_' if adaptive else ''}max_pool{dimensions}d")

    def locate(call: Call, args: Args, kwargs: Kwargs) -> torch.Tensor:
        wanted = {k: v for k, v in kwargs.items() if k != "return_indices"}
        with torch.no_grad():
            return own(*args, **wanted, return_indices=True)[1]

    def extend(indices: torch.Tensor, call: Call, args: Args, kwargs: Kwargs) -> Any:
        x = first(args, kwargs)
        flat = x.flatten(-dimensions).gather(-1, indices.flatten(-dimensions)).reshape(indices.shape)
        return (flat, indices.clone()) if indices_too or kwargs.get("return_indices") else flat

    return Rule(locate, extend)


RULES: dict[str, Rule] = dict(POINTWISE)
RULES |= {"max": _max_or_min(1), "min": _max_or_min(-1), "amax": EXTREME, "amin": EXTREME}
RULES |= dict.fromkeys(("median", "nanmedian"), MEDIAN)
RULES |= dict.fromkeys(("sort", "topk", "kthvalue", "mode", "cummax", "cummin"), SELECTED)
RULES |= {
    f"{adaptive}max_pool{n}d{suffix}": _pool(n, bool(adaptive), bool(suffix))
    for adaptive in ("", "adaptive_")
    for n in (1, 2, 3)
    for suffix in ("", "_with_indices")
}
CHOSEN = ("argmax", "argmin", "argsort", "searchsorted", "bucketize", "multinomial", "bernoulli")
RULES |= {name: Rule(CONSTANT.locate, CONSTANT.extend, constant=True) for name in CHOSEN}
"""By name, every operation with a rule."""

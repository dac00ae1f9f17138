"""Choices among numbers: maxima, order statistics, pools. They kink where the chosen number ties with another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from nonsmooth.torch.operations.kink import (
    C0,
    C1,
    DISCONTINUOUS,
    Call,
    Entry,
    Kinks,
    Probe,
    enter,
    pair,
    somewhere,
    tie,
    uncounted,
)
from nonsmooth.torch.operations.ties import adjacent, lines, pooled, pooled_adaptively, running, won

CHOICES: dict[str, Entry] = {}


def _reduced(
    x: torch.Tensor, dim: Any, exact: Callable[[torch.Tensor], torch.Tensor], each: float = 1, call: Call | None = None
) -> Kinks | None:
    """A choice among the numbers along an axis; a call with two equal ones shows whom it takes."""
    if x.ndim == 0 or not x.numel():
        return None
    probe = Probe("a tie", (pair(x, dim),), (x,), call)
    return Kinks(C0, each, "ties", x.numel(), lambda: int(exact(lines(x, dim)).sum()), (probe,))


def _extreme(best: Callable[..., torch.Tensor], binary: bool) -> Callable[..., Kinks | None]:
    def entry(input: torch.Tensor, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Kinks | None:
        if binary and (isinstance(dim, torch.Tensor) or other is not None):
            return tie(input, dim if other is None else other)
        return _reduced(input, dim, lambda rows: won(rows, best(rows, -1)))

    return entry


CHOICES["max"], CHOICES["min"] = _extreme(torch.amax, True), _extreme(torch.amin, True)
CHOICES["amax"], CHOICES["amin"] = _extreme(torch.amax, False), _extreme(torch.amin, False)


@enter(CHOICES, "aminmax")
def _aminmax(input: torch.Tensor, *, dim: Any = None, keepdim: bool = False) -> Kinks | None:
    return _reduced(input, dim, lambda rows: won(rows, rows.amax(-1)) | won(rows, rows.amin(-1)), 2)


@enter(CHOICES, "median", "nanmedian")
def _median(input: torch.Tensor, dim: Any = None, keepdim: bool = False) -> Kinks | None:
    return _reduced(input, dim, lambda rows: won(rows, rows.median(-1).values), 2)


@enter(CHOICES, "kthvalue")
def _kthvalue(input: torch.Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Kinks | None:
    found = lambda rows: won(rows, rows.kthvalue(k, -1).values)  # noqa: E731
    return _reduced(input, dim, found, 2, lambda f, x: f(x, 1, dim))


@enter(CHOICES, "quantile", "nanquantile")
def _quantile(input: torch.Tensor, q: Any, dim: Any = None, *_: Any, **__: Any) -> Kinks | None:
    return _reduced(input, dim, adjacent, 2, lambda f, x: f(x, 0.0, dim))


@enter(CHOICES, "sort", "msort")
def _sort(input: torch.Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Kinks | None:
    return _reduced(input, dim, adjacent, max(input.shape[dim] - 1, 0) if input.ndim else 0)


@enter(CHOICES, "topk")
def _topk(input: torch.Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Kinks | None:
    def exact(rows: torch.Tensor) -> torch.Tensor:
        last = (
            rows.topk(k, -1, largest).values.amin(-1, True)
            if largest
            else rows.topk(k, -1, False).values.amax(-1, True)
        )
        return adjacent(rows) & (rows >= last if largest else rows <= last)

    return _reduced(input, dim, exact, k, lambda f, x: f(x, 1, dim, largest))


@enter(CHOICES, "cummax")
def _cummax(input: torch.Tensor, dim: int) -> Kinks | None:
    return _reduced(input, dim, lambda rows: running(rows, rows.cummax(-1).values), call=lambda f, x: _last(f(x, dim)))


@enter(CHOICES, "cummin")
def _cummin(input: torch.Tensor, dim: int) -> Kinks | None:
    return _reduced(input, dim, lambda rows: running(rows, rows.cummin(-1).values), call=lambda f, x: _last(f(x, dim)))


def _last(out: Any) -> torch.Tensor:
    return out.values.flatten()[-1:]


def _max_pool(axes: int) -> Callable[..., Kinks | None]:
    def entry(
        input: torch.Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
        ceil_mode: bool = False, return_indices: bool = False,
    ) -> Kinks | None:  # fmt: skip
        window = (2, *[1] * (axes - 1))
        probe = Probe(
            "a tie",
            (torch.zeros(1, 1, *window, dtype=input.dtype, device=input.device),),
            (),
            lambda pool, x: pool(x, window if axes > 1 else 2),
        )
        exact = lambda: pooled(input, axes, kernel_size, stride, padding, dilation, ceil_mode)  # noqa: E731
        each = _windows_of_one(axes, kernel_size, stride)
        return Kinks(C0, each, "ties in a window", input.numel(), exact, (probe,)) if each else None

    return entry


def _windows_of_one(axes: int, kernel: Any, stride: Any) -> int:
    """How many windows a number is in, at most; none where each window holds one number alone."""
    k, s = (list(v) if isinstance(v, tuple | list) else [v] * axes for v in (kernel, stride or kernel))
    return math.prod(-(-a // b) for a, b in zip(k, s, strict=False)) if math.prod(k) > 1 else 0


def _adaptive_max_pool(axes: int) -> Callable[..., Kinks | None]:
    def entry(input: torch.Tensor, output_size: Any, return_indices: bool = False) -> Kinks | None:
        shape = (1, 1, 2, *[1] * (axes - 1))
        at = torch.zeros(shape, dtype=input.dtype, device=input.device)
        one = 1 if axes == 1 else (1,) * axes
        return Kinks(
            C0,
            1,
            "ties in a window",
            input.numel(),
            lambda: pooled_adaptively(input, axes, output_size),
            (Probe("a tie", (at,), (), lambda pool, x: pool(x, one)),),
        )

    return entry


for _axes in (1, 2, 3):
    CHOICES[f"max_pool{_axes}d"] = _max_pool(_axes)
    CHOICES[f"adaptive_max_pool{_axes}d"] = _adaptive_max_pool(_axes)


@enter(CHOICES, "scatter_reduce", "index_reduce")
def _scatter_reduce(input: torch.Tensor, dim: int, index: Any, src: Any, reduce: str, **_: Any) -> Kinks | None:
    return uncounted(C0, "ties", input, 1) if reduce in ("amax", "amin") else None


@enter(CHOICES, "segment_reduce")
def _segment_reduce(input: torch.Tensor, reduce: str, **_: Any) -> Kinks | None:
    return uncounted(C0, "ties", input, 1) if reduce in ("max", "min") else None


@enter(CHOICES, "embedding_bag")
def _embedding_bag(input: Any, weight: torch.Tensor, *rest: Any, mode: str = "mean", **_: Any) -> Kinks | None:
    return uncounted(C0, "ties", weight, 1) if "max" in (mode, *rest) else None


@enter(CHOICES, "gumbel_softmax")
def _gumbel_softmax(input: torch.Tensor, tau: float = 1.0, hard: bool = False, *_: Any, **__: Any) -> Kinks | None:
    return uncounted(DISCONTINUOUS, "ties", input, 1) if hard else None


@enter(CHOICES, "grid_sample")
def _grid_sample(input: Any, grid: torch.Tensor, mode: str = "bilinear", *_: Any, **__: Any) -> Kinks | None:
    """In the places that it reads, where these are computed: at the lines between pixels. In the image it is linear."""
    if not grid.requires_grad:
        return None
    smoothness = {"nearest": DISCONTINUOUS, "bicubic": C1}.get(mode, C0)
    return uncounted(smoothness, "between pixels", grid, math.inf)


for _name in ("argmax", "argmin", "argsort", "bucketize", "searchsorted", "histc", "histogram", "mode", "unique",
              "unique_consecutive", "nonzero", "argwhere", "count_nonzero", "matrix_rank", "bincount"):  # fmt: skip
    CHOICES[_name] = somewhere(DISCONTINUOUS, "ties")
for _name in ("fractional_max_pool2d", "fractional_max_pool3d"):
    CHOICES[_name] = somewhere(C0, "ties in a window", 1)

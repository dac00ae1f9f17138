"""Ties: which numbers are equal where an operation chooses among them, along an axis or in the windows of a pool."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["adjacent", "lines", "pooled", "pooled_adaptively", "running", "tied_in", "won"]


def lines(x: torch.Tensor, dim: Any) -> torch.Tensor:
    """The axes `dim` (an axis, several, or None for all) as the last axis of a matrix.

    >>> lines(torch.zeros(2, 3, 4), 1).shape, lines(torch.zeros(2, 3, 4), None).shape
    (torch.Size([8, 3]), torch.Size([1, 24]))
    """
    if dim is None or (isinstance(dim, tuple | list) and not dim):
        return x.reshape(1, -1)
    axes = sorted({d % x.ndim for d in (dim if isinstance(dim, tuple | list) else [dim])})
    return x.movedim(axes, [d - len(axes) for d in range(len(axes))]).reshape(-1, math.prod(x.shape[d] for d in axes))


def won(rows: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """The numbers of each row that equal `best`, where more than one does.

    >>> won(torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 1.0]]), torch.tensor([1.0, 2.0])).int().tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    hit = rows == best[..., None]
    return hit & (hit.sum(-1, keepdim=True) > 1)


def adjacent(rows: torch.Tensor) -> torch.Tensor:
    """The numbers that equal another one of their row.

    >>> adjacent(torch.tensor([[1.0, 2.0, 1.0]])).int().tolist()
    [[1, 0, 1]]
    """
    values, order = rows.sort(-1)
    same = values[..., 1:] == values[..., :-1]
    first = torch.zeros_like(rows[..., :1], dtype=torch.bool)
    both = torch.cat([first, same], -1) | torch.cat([same, first], -1)
    return torch.zeros_like(both).scatter(-1, order, both)


def running(rows: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
    """The numbers that equal the best of those before them in their row.

    >>> x = torch.tensor([[1.0, 2.0, 1.0, 2.0]])
    >>> running(x, x.cummax(-1).values).int().tolist()
    [[0, 0, 0, 1]]
    """
    return torch.cat([torch.zeros_like(rows[..., :1], dtype=torch.bool), rows[..., 1:] == best[..., :-1]], -1)


def pooled(
    x: torch.Tensor, axes: int, kernel: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil: bool = False
) -> int:
    """How many numbers tie for the largest of a window of a max-pool over the last `axes` axes.

    >>> pooled(torch.tensor([[[1.0, 1.0, 0.0, 0.0, 2.0]]]), 1, 2), pooled(torch.zeros(1, 1, 3), 1, 2, 1)
    (4, 3)
    """
    stride = kernel if stride is None or (isinstance(stride, tuple | list) and not stride) else stride
    every = zip(x.shape[-axes:], *(_each(v, axes) for v in (kernel, stride, padding, dilation)), strict=True)
    return tied_in(x, [_windows(n, k, s, p, d, ceil) for n, k, s, p, d in every])


def pooled_adaptively(x: torch.Tensor, axes: int, output: Any) -> int:
    """The same for an adaptive max-pool: window i of o covers the entries from ⌊i n/o⌋ up to ⌈(i + 1) n/o⌉.

    >>> pooled_adaptively(torch.tensor([[[1.0, 1.0, 0.0, 2.0]]]), 1, 2)
    2
    """
    sizes = x.shape[-axes:]
    outputs = [n if o is None else o for n, o in zip(sizes, _each(output, axes), strict=True)]
    return tied_in(
        x, [[range(i * n // o, -(-(i + 1) * n // o)) for i in range(o)] for n, o in zip(sizes, outputs, strict=True)]
    )


def tied_in(x: torch.Tensor, windows: Sequence[Sequence[Sequence[int]]]) -> int:
    """How many numbers tie for the largest of some window, each counted once; a window is a product of index lists.

    >>> tied_in(torch.tensor([[3.0, 3.0], [3.0, 1.0]]), [[[0, 1]], [[0], [1]]])  # the two columns
    2
    """
    sizes = x.shape[-len(windows) :]
    rows = x.reshape(-1, math.prod(sizes))
    tied = torch.zeros_like(rows, dtype=torch.bool)
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    shapes: dict[int, list[list[int]]] = {}
    for window in itertools.product(*windows):
        flat = [sum(i * s for i, s in zip(at, strides, strict=True)) for at in itertools.product(*window)]
        shapes.setdefault(len(flat), []).append(flat)
    for size, same in shapes.items():
        for few in _batches(same, max(1, 4096 // size)):  # to spare memory
            at = torch.tensor(few, device=x.device)
            values = rows[:, at]
            hit = won(values, values.amax(-1)).flatten(1).int()
            tied |= torch.zeros_like(rows, dtype=torch.int).scatter_add(1, at.flatten().expand(len(rows), -1), hit) > 0
    return int(tied.sum())


def _each(v: Any, axes: int) -> list[Any]:
    return list(v) * (axes if len(v) == 1 else 1) if isinstance(v, tuple | list) else [v] * axes


def _windows(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> list[list[int]]:
    """The entries of each window along one axis, what is padded left out."""
    room = n + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil else room // stride) + 1
    if ceil and (count - 1) * stride >= n + padding:  # torch lets no window begin in the padding on the right
        count -= 1
    starts = [i * stride - padding for i in range(count)]
    return [[j for j in range(s, s + dilation * kernel, dilation) if 0 <= j < n] for s in starts]


def _batches(items: list[list[int]], size: int) -> list[list[list[int]]]:
    return [items[i : i + size] for i in range(0, len(items), size)]

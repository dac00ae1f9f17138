"""A kink: where an operation has one, how many numbers lie on it, and how to call the operation there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["C0", "C1", "DISCONTINUOUS", "SMOOTH", "Call", "Entry", "Kinks", "Probe"]

Call = Callable[..., Any]

DISCONTINUOUS, C0, C1, SMOOTH = "discontinuous", "C⁰", "C¹", "C^∞"


@dataclass(frozen=True)
class Probe:
    """A point on a kink: what to call it, the numbers there, and the call; without one, they stand in for `old`.

    >>> Probe("0", (torch.zeros(1),)).label
    '0'
    """

    label: str
    at: tuple[torch.Tensor, ...]
    old: tuple[Any, ...] = ()
    call: Call | None = None


@dataclass(frozen=True)
class Kinks:
    """The kinks of one call. `each`: how many there are as one number moves and the others are held.

    `numbers`: how many numbers come in. `exact`: counts those that lie exactly on a kink; None where that cannot be
    told from outside of the kernel.

    >>> x = torch.tensor([-1.0, 0.0, 6.0])
    >>> found = points(x, (0.0, 6.0))
    >>> found.smoothness, found.each, found.where, found.numbers, found.exact()
    ('C⁰', 2, 'x = 0, 6', 3, 2)
    """

    smoothness: str
    each: float
    where: str
    numbers: int
    exact: Callable[[], int] | None
    probes: tuple[Probe, ...] = ()


Entry = Callable[..., Kinks | None]


def enter(table: dict[str, Entry], *names: str) -> Callable[[Entry], Entry]:
    """A decorator that enters a function into a table, under each of its names."""

    def entered(entry: Entry) -> Entry:
        table.update(dict.fromkeys(names, entry))
        return entry

    return entered


def one(x: torch.Tensor, value: float) -> torch.Tensor:
    """One number, with the axes of x."""
    return torch.full((1,) * x.ndim, value, dtype=x.dtype, device=x.device)


def at_values(values: Sequence[float], x: str = "x") -> str:
    """In words."""
    return f"{x} = {', '.join(f'{v:g}' for v in values)}"


def points(
    x: torch.Tensor, values: Sequence[float], smoothness: str = C0, call: Call | None = None, each: float | None = None
) -> Kinks:
    """Entry by entry, at fixed values."""
    return Kinks(
        smoothness,
        len(values) if each is None else each,
        at_values(values),
        x.numel(),
        lambda: sum(int((x == v).sum()) for v in values),
        tuple(Probe(f"{v:g}", (one(x, v),), (x,), call) for v in values),
    )


def uncounted(smoothness: str, where: str, x: torch.Tensor, each: float = math.nan) -> Kinks:
    """Kinks that cannot be counted from outside; `each` is not a number where that depends on the values."""
    return Kinks(smoothness, each, where, x.numel(), None)


def _fixed(smoothness: str, *values: float) -> Callable[..., Kinks]:
    def entry(input: torch.Tensor, *_: Any, **__: Any) -> Kinks:
        return points(input, values, smoothness)

    return entry


def pair(x: torch.Tensor, dim: Any) -> torch.Tensor:
    """Two equal numbers along an axis."""
    shape, axis = [1] * x.ndim, dim[0] if isinstance(dim, tuple | list) and dim else dim
    shape[axis if isinstance(axis, int) else -1] = 2
    return torch.zeros(shape, dtype=x.dtype, device=x.device)


def tie(a: Any, b: Any, smoothness: str = C0) -> Kinks:
    """Where two numbers are equal, one of which may be plain."""
    both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    x = a if isinstance(a, torch.Tensor) else b
    size = math.prod(torch.broadcast_shapes(a.shape, b.shape)) if both else x.numel()
    call = lambda f, a, b: f(a, b)  # noqa: E731
    probes = (Probe("a tie", (one(a, 0.0), one(b, 0.0)), (), call),) if both else ()
    return Kinks(smoothness, 1, "a tie", size, lambda: int((a == b).sum()), probes)


def somewhere(smoothness: str, where: str, each: float = math.nan) -> Entry:
    """The same for any arguments."""

    def entry(input: torch.Tensor, *_: Any, **__: Any) -> Kinks:
        return uncounted(smoothness, where, input, each)

    return entry


def fixed(smoothness: str, *values: float) -> Entry:
    """Entry by entry, at the same values for any arguments."""

    def entry(input: torch.Tensor, *_: Any, **__: Any) -> Kinks:
        return points(input, values, smoothness)

    return entry

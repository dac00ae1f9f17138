"""What a rule is: which piece of an operation is active, and that piece's continuation beyond its kinks.

A rule is for a name that torch gives an operation, however it is called: torch.relu, F.relu, x.relu_() and nn.ReLU are
one. Ties go as the installed torch's autograd takes them: a breakpoint belongs to the piece whose slope torch returns.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Args", "Call", "Kwargs", "Rule", "base_name", "first", "is_in_place", "pick"]

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
Call = Callable[..., Any]


@dataclass(frozen=True)
class Rule:
    """`locate(call, args, kwargs)` names the active piece, as tensors, or is None where there is but one piece.

    `extend(piece, call, args, kwargs)` is that piece at other arguments. `ties(args, kwargs)` counts the units exactly
    on a breakpoint. A pointwise rule has one piece a unit and mixes no units.

    >>> from nonsmooth.torch.selection.pointwise import POINTWISE
    >>> x = torch.tensor([-1.0, 0.0, 2.0])
    >>> piece = POINTWISE["relu"].locate(torch.relu, (x,), {})
    >>> POINTWISE["relu"].extend(piece, torch.relu, (x + 3,), {}).tolist()  # max(x, 0) as it was: 0, 0, x
    [0.0, 0.0, 5.0]
    """

    locate: Callable[[Call, Args, Kwargs], Any]
    extend: Callable[[Any, Call, Args, Kwargs], Any]
    ties: Callable[[Args, Kwargs], torch.Tensor | None] = lambda args, kwargs: None
    pointwise: bool = False
    constant: bool = False
    """The piece is the value itself: comparisons, sign, round."""


def base_name(call: Any) -> str:
    """The name of an operation, without the underscore of an in-place or a private one.

    >>> base_name(torch.Tensor.relu_), base_name(torch.Tensor.abs), base_name(torch.Tensor.__rsub__)
    ('relu', 'abs', '__rsub__')
    """
    name = getattr(call, "__name__", "")
    return name if name.startswith("__") else name.strip("_")


def is_in_place(call: Any, args: Args, kwargs: Kwargs) -> bool:
    """Whether a call writes into its first argument.

    >>> is_in_place(torch.nn.functional.relu, (None, True), {}), is_in_place(torch.relu, (None,), {})
    (True, False)
    """
    name = getattr(call, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return True
    if kwargs.get("inplace"):
        return True
    return _position_of_inplace(call) < len(args) and bool(args[_position_of_inplace(call)])


@functools.cache
def _position_of_inplace(call: Any) -> int:
    """Where `inplace` stands among the arguments of a function; beyond all of them for one without it."""
    try:
        names = list(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        names = []
    return names.index("inplace") if "inplace" in names else sys.maxsize


def first(args: Args, kwargs: Kwargs) -> Any:
    """The first argument, by position or by name.

    >>> first((), {"input": 3})
    3
    """
    return args[0] if args else kwargs.get("input", kwargs.get("self"))


def pick(index: torch.Tensor, pieces: Sequence[Any]) -> torch.Tensor:
    """The entry of `pieces` that `index` names, unit by unit.

    >>> pick(torch.tensor([0, 2, 1]), [torch.ones(3), 5.0, 7.0]).tolist()
    [1.0, 7.0, 5.0]
    """
    found = pieces[0] if isinstance(pieces[0], torch.Tensor) else None
    template = next(p for p in pieces if isinstance(p, torch.Tensor))
    found = torch.full_like(template, pieces[0]) if found is None else found
    for i, piece in enumerate(pieces[1:], 1):
        found = torch.where(index == i, piece, found)
    return found

"""Census: every operation of a forward pass and its loss, how smooth it is, where its kinks are and what lies on them.

Calls are intercepted (`TorchFunctionMode`), so functions, methods and custom modules are seen alike; what an operation
of torch calls in turn is not counted again. Operations that compute no numbers, such as views, copies and casts, are
left out. What cannot be looked into, and values that leave the graph and come back, are listed as hidden.
"""

from __future__ import annotations

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map

from nonsmooth.torch.interception import Interception
from nonsmooth.torch.operations import C0, C1, DISCONTINUOUS, SMOOTH
from nonsmooth.torch.undisturbed import undisturbed

__all__ = ["Census", "Hidden", "Operation", "census", "record"]


@dataclass(frozen=True)
class Operation:
    """One operation at one place. `module` is its path in the model, "" for the model itself.

    `place`: file and line of the innermost frame outside of torch, "" where there is none, as in an `nn.Sequential`.
    `numbers`: how many came in over all calls. `each`: kinks as one number moves and the others are held; nan where
    that depends on the values, inf for a staircase. `exact`: numbers that lie on a kink; None where it cannot be told.
    `returned`: (point, derivative) as the installed torch gives them. `differentiated`: whether a gradient passes.

    >>> Operation("relu", "C⁰", "1", "", 1, 8, 1, "x = 0", 2, (("0", (0.0,)),), True).has_kinks
    True
    """

    name: str
    smoothness: str
    module: str
    place: str
    calls: int
    numbers: int
    each: float
    where: str
    exact: int | None
    returned: tuple[tuple[str, tuple[float, ...]], ...]
    differentiated: bool

    @property
    def has_kinks(self) -> bool:
        return self.smoothness in (C0, DISCONTINUOUS)


@dataclass(frozen=True)
class Hidden:
    """Something that hides kinks: of which kind, what it is, in which module and where, and how often.

    >>> Hidden("by hand", "mul by the result of gt", "", "model.py:7", 1).kind
    'by hand'
    """

    kind: str
    what: str
    module: str
    place: str
    calls: int


@dataclass(frozen=True)
class Census:
    """The operations in the order in which they are first met, and what hides kinks. As text, a table and its sum.

    >>> row = Operation("relu", "C⁰", "1", "", 1, 8, 1, "x = 0", 2, (("0", (0.0,)),), True)
    >>> print(Census((row,), ()))
    census: 1 of 1 operations has kinks (1 C⁰); of 8 numbers there, 2 lie exactly on one. Nothing hides any.
      operation  class  module  place  calls  numbers  kinks  at     on one  returned
      relu       C⁰     1              1      8        1      x = 0  2       0 at 0
    """

    operations: tuple[Operation, ...]
    hidden: tuple[Hidden, ...]

    @property
    def kinks(self) -> tuple[Operation, ...]:
        """The operations that a gradient passes and that are not C¹."""
        return tuple(row for row in self.operations if row.has_kinks and row.differentiated)

    @property
    def summary(self) -> str:
        found, count = self.kinks, len(self.operations)
        hides = "Nothing hides any." if not self.hidden else f"What may hide more: {_number(self.hidden)}."
        if not found:
            c1 = sum(row.smoothness == C1 for row in self.operations)
            rest = f"{count} operations, {SMOOTH}" + (f" but for {c1} that are {C1}" if c1 else "")
            return f"no kinks where a gradient passes: {rest}. {hides}"
        kinds = ((kind, sum(row.smoothness == kind for row in found)) for kind in (C0, DISCONTINUOUS))
        split = ", ".join(f"{n} {kind}" for kind, n in kinds if n)
        told = [row.exact for row in found if row.exact is not None]
        numbers = sum(row.numbers for row in found if row.exact is not None)
        on = f"of {numbers} numbers there, {sum(told)} lie exactly on one" if told else "how many lie on one is unknown"
        also = f" ({len(found) - len(told)} could not be counted)" if told and len(told) < len(found) else ""
        have = "has" if len(found) == 1 else "have"
        return f"{len(found)} of {count} operations {have} kinks ({split}); {on}{also}. {hides}"

    def __str__(self) -> str:
        head = ("operation", "class", "module", "place", "calls", "numbers", "kinks", "at", "on one", "returned")
        lines = [f"census: {self.summary}", *_table([head, *(_cells(row) for row in self.operations)])]
        if self.hidden:
            names = ("hidden", "what", "module", "place", "calls")
            lines += _table([names, *((h.kind, h.what, h.module, h.place, f"{h.calls}") for h in self.hidden)])
        return "\n".join(lines)


def census(model: torch.nn.Module, *inputs: Any, loss: Callable[[Any], torch.Tensor] | None = None) -> Census:
    """The operations of model(*inputs), and of `loss` called on what the model returned.

    The model runs once, in the mode it is in, with gradients enabled, on copies of the inputs. Its buffers, modes,
    `.grad` and the random numbers are left as they were. A compiled module is looked at as the eager module it was.
    Derivatives at kinks are not looked up: each operation is called on its kink, in the precision of its inputs.

    Hidden, and listed: custom `autograd.Function`s, scripted and traced modules, compiled ones, kernels that hold
    kinks inside (`rnn_relu`), a comparison, a choice or a detached value that comes back as a factor, mask or index
    (`x*(x > 0)`, `y[y < 0] = 0`, `x + (x.round() - x).detach()`), branches on values (`if t > 0`), values read by
    Python (`.item()`), tensors whose making was not seen, and operations that the table does not know.

    Raises TypeError where the model is not a module or the loss cannot be called. An error of the model itself is the
    model's, and comes through.

    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.ReLU())
    >>> found = census(model, torch.zeros(3, 2), loss=torch.sum)
    >>> [(row.name, row.smoothness, row.module, row.numbers, row.exact) for row in found.operations]
    [('linear', 'C^∞', '0', 6, None), ('relu', 'C⁰', '1', 6, 6), ('sum', 'C^∞', '', 6, None)]
    >>> found.operations[1].returned
    (('0', (0.0,)),)
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"census: model must be a torch.nn.Module, not {type(model).__name__}; wrap functions in one.")
    if loss is not None and not callable(loss):
        raise TypeError(f"census: loss must be a function of what the model returns, not {type(loss).__name__}.")
    watch = Interception(sys._getframe())
    watch.began(model)
    eager = getattr(model, "_orig_mod", model)
    given = tree_map(_copied, inputs)
    with undisturbed(model), torch.inference_mode(False), torch.enable_grad(), eagerly(), watch:
        out = eager(*given)
        if loss is not None:
            out = loss(out)
    watch.ended(out)
    return record(watch)


def record(watch: Interception) -> Census:
    """What was recorded, as a census.

    >>> record(Interception()).operations
    ()
    """
    rows = (
        Operation(name, smoothness, module, place, *(getattr(row, field) for field in COUNTED))
        for (name, smoothness, module, place), row in watch.rows.items()
    )
    return Census(tuple(rows), tuple(Hidden(*key, calls) for key, calls in watch.hidden.items()))


COUNTED = ("calls", "numbers", "each", "where", "exact", "returned", "differentiated")


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """What is compiled runs as it was before, and torch does not warn of hooks on it.

    >>> with eagerly():
    ...     torch.compile(torch.sin)(torch.zeros(1))
    tensor([0.])
    """
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.filterwarnings("ignore", "Using `torch.compile")
        yield


def _copied(leaf: Any) -> Any:
    """The model may write into its inputs."""
    return leaf.detach().clone().requires_grad_(leaf.requires_grad) if isinstance(leaf, torch.Tensor) else leaf


def _number(hidden: tuple[Hidden, ...]) -> str:
    kinds = dict.fromkeys(h.kind for h in hidden)
    return ", ".join(f"{kind} ({sum(h.kind == kind for h in hidden)})" for kind in kinds)


def _cells(row: Operation) -> tuple[str, ...]:
    kinked = row.smoothness != SMOOTH
    each = "" if not kinked else "∞" if math.isinf(row.each) else "?" if math.isnan(row.each) else f"{row.each:g}"
    returned = ", ".join(f"{_vector(v)} at {label}" for label, v in row.returned)
    if kinked and not row.differentiated:
        returned = "(no gradient passes)"
    on = "" if not kinked else "?" if row.exact is None else str(row.exact)
    counts = (str(row.calls), str(row.numbers), each, row.where, on, returned)
    return (row.name, row.smoothness, row.module, row.place, *counts)


def _vector(v: tuple[float, ...]) -> str:
    if len(v) == 1:
        return f"{v[0]:.4g}"
    return f"({', '.join(f'{x:.4g}' for x in v[:4])}{', …' if len(v) > 4 else ''})"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(f"{cell:{w}}" for cell, w in zip(row, wide, strict=True)).rstrip() for row in rows]

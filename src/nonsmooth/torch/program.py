"""A program: what a tape took down of a training step, to be done again at other parameters.

Run at other parameters, it gives the loss of the same batch there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from nonsmooth.torch.steps.evaluation import SameRandomNumbers
from nonsmooth.torch.undisturbed import attributes, own_streams, remember, set_state, state_of, streams, undisturbed

__all__ = ["AsCalled", "Program", "Slot", "place", "tensors_in"]

LIBRARY = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (torch.__file__, os.path.dirname(__file__)))
LIBRARY += (contextlib.__file__,)
NUMBERS = frozenset({bool, int, float, complex})


@dataclass(frozen=True)
class Slot:
    """A place in a program for a tensor that an entry makes.

    >>> Slot(3)
    Slot(number=3)
    """

    number: int


class AsCalled(SameRandomNumbers):
    """The random numbers as they were before a call, and what a module holds of its own: numbers, such as a counter's,
    and the state of its random generators.

    >>> layer = torch.nn.Linear(1, 1)
    >>> layer.calls = 3
    >>> again = AsCalled(layer)
    >>> layer.calls = 4
    >>> with again():
    ...     layer.calls
    3
    >>> layer.calls
    4
    """

    def __init__(self, who: Any) -> None:
        super().__init__()
        self.who = who
        own = [(m, attributes(m)) for m in (who.modules() if isinstance(who, torch.nn.Module) else ())]
        self.generators = [(generator, state_of(generator)) for _, held in own for generator in own_streams(held)]
        self.numbers = [(m, _numbers(held)) for m, held in own]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        if isinstance(self.who, torch.nn.Module):
            remember(self.who)
        now = [(m, {name: vars(m)[name] for name in found if name in vars(m)}) for m, found in self.numbers]
        with super().__call__(), streams(*(generator for generator, _ in self.generators)):
            for generator, state in self.generators:
                set_state(generator, state)
            for m, found in self.numbers:
                vars(m).update(found)
            try:
                yield
            finally:
                for m, found in now:
                    vars(m).update(found)


def _numbers(held: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in held.items() if type(value) in NUMBERS and name != "training"}


@dataclass
class Entry:
    """One call: with slots in its arguments for what earlier entries made."""

    call: Callable[..., Any]
    args: Any
    kwargs: Any
    makes: list[int | None]
    needs: set[int]
    place: str
    again: SameRandomNumbers | None
    casts: tuple[tuple[str, bool, torch.dtype], ...]
    changes: bool = False
    base: int = 0
    graph: bool = True
    inside: bool = False


@dataclass
class Program:
    """A loss as a function of the live parameters, the batch held fixed. `place` is of the entry that runs.

    Its modules run in the modes that they are in, with the random numbers that they had. `constants` are the
    tensors that it holds of the script's, with their versions: `stale` says whether one was written to since.

    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> Program((), w, weight=torch.tensor([3.0]))().item()
    6.0
    """

    entries: Sequence[Entry]
    root: Any
    weight: torch.Tensor | None = None
    constants: list[tuple[torch.Tensor, int]] = field(default_factory=list)
    starts: dict[int, torch.Tensor] = field(default_factory=dict)
    place: str = ""
    value: float = float("nan")

    def __call__(self) -> torch.Tensor:
        made = self.run()
        loss: torch.Tensor = made[self.root.number] if isinstance(self.root, Slot) else self.root
        return (loss * self.weight).sum() if self.weight is not None else loss.sum() if loss.ndim else loss

    def run(self) -> dict[int, torch.Tensor]:
        """What the entries make, by number."""
        made: dict[int, torch.Tensor] = {number: t.clone() for number, t in self.starts.items()}

        def given(leaf: Any) -> Any:
            return made[leaf.number] if isinstance(leaf, Slot) else leaf

        for entry in self.entries:
            self.place = entry.place
            args, kwargs = tree_map(given, entry.args), tree_map(given, entry.kwargs)
            again = entry.again() if entry.again is not None else contextlib.nullcontext()
            with _cast(entry.casts), again, torch.set_grad_enabled(entry.graph and torch.is_grad_enabled()):
                out = entry.call(*args, **kwargs)
            found = tensors_in(args[0]) if entry.changes else tensors_in(out)
            if len(found) != len(entry.makes):
                raise ValueError("the model gave other outputs than when the script called it.")
            for number, t in zip(entry.makes, found, strict=True):
                if number is not None:
                    made[number] = t
        self.place = ""
        return made

    def of(self, params: Collection[int]) -> Program:
        """The same as a function of these parameters (by id) alone: what none of them leads to is run once and held.

        So the loss of a GAN's discriminator holds what the generator made. A program that writes in place stays whole.

        >>> from nonsmooth.torch.tape import Tape
        >>> one, two, tape = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), Tape()
        >>> with tape:
        ...     loss = ((one.weight * 2).detach() * two.weight).sum()
        >>> [len(p.entries) for p in (tape.program(loss), tape.program(loss).of({id(two.weight)}))]
        [4, 2]
        """
        if any(entry.changes for entry in self.entries):
            return self
        live: set[int] = set()
        kept, rest = list[Entry](), list[Entry]()
        for entry in self.entries:
            own = entry.call.parameters() if isinstance(entry.call, torch.nn.Module) else None
            here = any(id(t) in params for t in (*(own or ()), *tree_leaves((entry.args, entry.kwargs))))
            if here or entry.needs & live or (entry.inside and own is None):  # what is compiled may hold any
                live.update(n for n in entry.makes if n is not None)
                kept.append(entry)
            else:
                rest.append(entry)
        needed = {n for entry in kept for n in entry.needs} - live
        if not kept or not needed:
            return self
        with undisturbed(), torch.no_grad():
            made = replace(self, entries=rest).run()
        return replace(self, entries=kept, starts={n: made[n] for n in needed})

    @property
    def stale(self) -> bool:
        """Whether the script has written into a tensor that is held here."""
        return any(t._version != version for t, version in self.constants)


def tensors_in(out: Any, depth: int = 4) -> list[torch.Tensor]:
    """The tensors of a nest of containers and plain objects, always in the same order.

    >>> [t.item() for t in tensors_in({"b": torch.tensor(1), "a": [torch.tensor(2), 3]})]
    [1, 2]
    """
    if isinstance(out, torch.Tensor):
        return [out]
    if depth == 0 or out is None or isinstance(out, (str, bytes, int, float, torch.nn.Module)):
        return []
    if isinstance(out, dict):
        inner: Any = list(out.values())
    elif isinstance(out, (list, tuple)):
        inner = out
    elif is_dataclass(out) or hasattr(out, "__dict__"):
        inner = list(vars(out).values())
    else:
        return []
    return [t for item in inner for t in tensors_in(item, depth - 1)]


@contextlib.contextmanager
def _cast(casts: tuple[tuple[str, bool, torch.dtype], ...]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for device, on, dtype in casts:
            stack.enter_context(torch.autocast(device, dtype=dtype, enabled=on))
        yield


def place() -> str:
    """File and line of the innermost frame that is not torch's, nor ours; of a program's entry, where that was made.

    >>> place().startswith("<doctest")
    True
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if frame.f_code is Program.run.__code__:
            at: str = frame.f_locals["self"].place
            return at
        if not name.startswith((*LIBRARY, "<frozen")):
            return f"{name.rpartition(f'site-packages{os.sep}')[2].removeprefix(os.getcwd() + os.sep)}:{frame.f_lineno}"
        frame = frame.f_back
    return ""

"""A tape: what a training step does outside of its modules, from the model's call to `backward`, to be done again.

The calls of outermost modules are noted by who makes them; the torch functions in between by this mode, which is never
on inside a module or anything compiled. What depends on a parameter that learns is kept as a program; all else, such as
the batch, is a constant of it.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from nonsmooth.torch.program import Entry, Program, Slot, place, tensors_in
from nonsmooth.torch.steps.evaluation import SameRandomNumbers

__all__ = ["Detached", "Tape", "is_absolute"]

RANDOM = frozenset(
    {"dropout", "rand", "normal", "bernoulli", "multinomial", "poisson", "exponential", "gumbel", "rrelu", "uniform"}
    | {"gamma", "dirichlet", "binomial"}
)
SAMPLES = frozenset(
    {"normal", "log_normal", "uniform", "rand_like", "randn_like", "randint_like", "random", "bernoulli", "binomial"}
    | {"multinomial", "poisson", "exponential", "geometric", "cauchy", "standard_gamma", "sample_dirichlet"}
)
"""What draws numbers: where no gradient passes them, those that the script drew are data, as a batch is."""
ATTENDS = ("scaled_dot_product_attention", "multi_head_attention_forward")
ABSOLUTE = frozenset({"abs", "absolute", "abs_", "l1_loss", "__abs__"})
ADDS = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__", "sum", "stack"})
READS = frozenset({"item", "__float__", "tolist"})
NORMS = frozenset({"norm", "linalg_norm", "linalg_vector_norm"})
KEEPS = frozenset(
    {"reshape", "view", "flatten", "ravel", "cat", "concat", "concatenate", "stack", "__getitem__", "squeeze", "hstack"}
    | {"unsqueeze", "t", "transpose", "permute", "float", "double", "half", "bfloat16", "to", "clone", "contiguous"}
    | {"__get__", "view_as"}
)
"""What leaves a parameter's own numbers as they are."""
STEADY = 0.01
"""By at most so much of a norm's relative change may what is added change over it, to be a multiple of that norm."""
LOST = "a tensor that {node} made, out of sight of what was listened to"


@dataclass(frozen=True)
class Detached:
    """A penalty, or what looks like one, that no gradient passes: of which parameters (by id), how, and where.

    `added`: whether it, or a number, was added to something that a gradient passes; `value` is what was added, and
    `of` the number that was read of the penalty before, of which it may be a multiple.

    >>> Detached((0,), "data", "train.py:7", True).how
    'data'
    """

    params: tuple[int, ...]
    how: str
    place: str
    added: bool = False
    value: float | None = None
    of: float | None = None


class Tape(TorchFunctionMode):
    """Takes down what depends on the parameters; `program` is the loss's, `detached` what only looks like a penalty.

    >>> w, tape = torch.nn.Parameter(torch.tensor([2.0])), Tape()
    >>> with tape:
    ...     loss = (w * torch.tensor([3.0])).sum()
    >>> again = tape.program(loss)
    >>> with torch.no_grad():
    ...     _ = w.fill_(5.0)
    >>> again().item()
    15.0
    """

    def __init__(self, ratios: dict[tuple[str, str], tuple[float, float]] | None = None) -> None:
        super().__init__()
        self.ratios = {} if ratios is None else ratios  # (what was added, what was read), by the places of both
        self.earlier = dict(self.ratios)  # those of the tapes before
        self.entries: list[Entry] = []
        self.slots: dict[int, tuple[Any, int, bool]] = {}  # id → (weak reference, number, whether a gradient passes)
        self.starts: dict[int, torch.Tensor] = {}
        self.lost: dict[int, str] = {}
        self.bases: dict[int, int] = {}  # number → whose memory it is in
        self.pure: dict[int, tuple[tuple[int, ...], bool]] = {}  # number → the parameters it is of alone; as |w|?
        self.derived: dict[int, tuple[Any, tuple[int, ...], str, str, bool]] = {}
        self.detached: list[Detached] = []
        self.numbers: dict[str, tuple[float, tuple[int, ...], bool]] = {}  # place → what was read; whether it was added
        self.count, self.process, self.resting, self.handling = 0, os.getpid(), False, False
        self.broken = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "backward":
            self.handling = True
            try:
                return func(*args, **kwargs)
            finally:
                self.handling = False
        if self.resting or os.getpid() != self.process or name == "__set__":
            return func(*args, **kwargs)
        if name == "__get__":
            out = func(*args, **kwargs)
            if isinstance(out, torch.Tensor):
                with self._safely():
                    self._noted(func, name, args, kwargs, out, None)
            return out
        again = None
        with self._safely():
            leaves = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            if _draws(name, args, kwargs) and any(t.requires_grad or self._number(t) is not None for t in leaves):
                again = SameRandomNumbers()
            self._before(name, leaves)
        out = func(*args, **kwargs)
        with self._safely():
            self._noted(func, name, args, kwargs, out, again)
        return out

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        """The script goes on, whatever a note of it meets; there is no program then."""
        try:
            yield
        except Exception as error:
            self.broken = self.broken or f"a call could not be noted ({type(error).__name__}: {error}; {place()})"

    def called(self, module: Any, args: Any, kwargs: Any, out: Any, again: SameRandomNumbers) -> None:
        """Take down the call of an outermost module, or of something compiled, that has just returned."""
        with self._safely():
            self._prune()
            self._noted(module, "", args, kwargs, out, again)

    def same(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take `after` to be `before`: a loss that was scaled is the loss."""
        number = self._number(before)
        if number is not None:
            self.slots[id(after)] = (weakref.ref(after), number, True)

    # --- what is noted ----------------------------------------------------------------------------------------------

    def _before(self, name: str, leaves: list[torch.Tensor]) -> None:
        """Keep what an in-place operation is about to overwrite with what depends on a parameter."""
        if not leaves or not (_in_place(name) and any(t.requires_grad for t in leaves[1:])):
            return
        target = leaves[0]
        number = self._number(target)
        if number is None and not target.requires_grad:
            number = self._new(target)
            self.starts[number] = target.detach().clone()
        if number is not None:
            self.slots[id(target)] = (weakref.ref(target), number, True)

    def _noted(self, func: Any, name: str, args: Any, kwargs: Any, out: Any, again: Any) -> None:
        changes = _in_place(name) and bool(args)
        made = tensors_in(args[0]) if changes else [out] if isinstance(out, torch.Tensor) else tensors_in(out)
        inside = not name  # a module, or something compiled, that was called
        if name in READS:
            self._read(args, out)
        if not any(t.requires_grad for t in made):
            if not inside:
                self._derive(func, name, args, kwargs, made)
                if name.strip("_") in SAMPLES and self._drawn(made):
                    return
            given = made if _in_place(name) else tree_leaves((args, kwargs)) if made else ()
            if inside or not any(isinstance(t, torch.Tensor) and self._number(t) is not None for t in given):
                return  # else it is a mask, say, that is another at other parameters
        if _in_place(name) and (len(made) != 1 or _learns(made[0]) or _learns(made[0]._base)):
            return  # a parameter that is written to, as by an optimiser
        pure = None if inside else self._parts(name, args, kwargs)
        needs: set[int] = set()

        def held(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                if any(t.requires_grad and not _learns(t) for t in tensors_in(leaf)):
                    self.count += 1
                    needs.add(self.count)
                    self.lost[self.count] = f"tensors within a {type(leaf).__name__} that something was called with"
                    return Slot(self.count)
                return leaf
            number = self._number(leaf)
            if number is None and leaf.requires_grad and not _learns(leaf):
                number = self._new(leaf)
                self.lost[number] = LOST.format(node=type(leaf.grad_fn).__name__)
            if number is None:
                return leaf
            needs.add(number)
            return Slot(number)

        held_args, held_kwargs = tree_map(held, args), tree_map(held, kwargs)
        if not inside and not needs and not any(_learns(t) for t in tree_leaves((args, kwargs))):
            return  # made from constants alone
        if not inside and name in ADDS:
            self._added(args, kwargs)
        numbers = [self._number(t) if changes and self._number(t) is not None else self._new(t) for t in made]
        for number in numbers:
            if number is not None and pure is not None:
                self.pure[number] = pure
            elif number is not None:
                self.pure.pop(number, None)
        graph = torch.is_grad_enabled()
        base = self.bases[numbers[0]] if changes and numbers[0] is not None else 0
        self.entries.append(
            Entry(func, held_args, held_kwargs, numbers, needs, place(), again, _casts(), changes, base, graph, inside)
        )

    def _derive(self, func: Any, name: str, args: Any, kwargs: Any, made: list[torch.Tensor]) -> None:
        """Follow what is computed of parameters where no gradient passes."""
        params: list[int] = []
        how, at, absolute = "", "", False
        for t in tree_leaves((args, kwargs)):
            if not isinstance(t, torch.Tensor):
                continue
            known = self.derived.get(id(t))
            if known is not None and known[0]() is t:
                params, how, at, absolute = [*params, *known[1]], known[2], known[3], absolute or known[4]
            elif _learns(t):
                params.append(id(t))
            elif penalised := self._penalised(t):
                params, absolute, at = [*params, *penalised], True, at or place()
        if not params:
            return
        descriptor = getattr(func, "__self__", None)
        word = getattr(descriptor, "__name__", name) if name == "__get__" else name
        if word in ("grad", "_grad"):
            return
        how = how or (word if word in ("data", "detach") else "no_grad")
        absolute, at = absolute or is_absolute(word, args, kwargs), at or place()
        for t in made:
            self.derived[id(t)] = (weakref.ref(t), tuple(params), how, at, absolute)

    def _parts(self, name: str, args: Any, kwargs: Any) -> tuple[tuple[int, ...], bool] | None:
        """The parameters that a call's gradient goes to, if it has nothing else in it; whether as absolute values."""
        params: list[int] = []
        absolute = set()
        for t in tree_leaves((args, kwargs)):
            if not isinstance(t, torch.Tensor) or not t.requires_grad:
                continue
            known = ((id(t),), False) if _learns(t) else self.pure.get(self._number(t) or 0)
            if known is None:
                return None
            params += known[0]
            absolute.add(known[1])
        if len(absolute) != 1 or not params:
            return None
        found = tuple(dict.fromkeys(params))
        if absolute == {True} or is_absolute(name, args, kwargs):
            return found, True
        return (found, False) if name in KEEPS else None

    def _penalised(self, t: torch.Tensor) -> tuple[int, ...]:
        """The parameters of whose absolute values alone a tensor was made."""
        params, absolute = self.pure.get(self._number(t) or 0, ((), False))
        return params if absolute else ()

    def _added(self, args: Any, kwargs: Any) -> None:
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, torch.Tensor):
                known = self.derived.get(id(t))
                if known is not None and known[0]() is t and known[4]:
                    value = t.item() if t.numel() == 1 else None
                    self.detached.append(Detached(known[1], known[2], known[3], True, value))
            elif isinstance(t, float) and t and self.numbers:
                self._added_number(t)

    def _added_number(self, t: float) -> None:
        """A number is added: a penalty, if it is a multiple of what was read before, in one place or in all together.

        And the same multiple as on the tapes before, though the norm has moved: an ε stays what it is meanwhile.
        """
        here, places = place(), list(self.numbers)
        for ats in [(at,) for at in reversed(places)] + [tuple(places)] * (len(places) > 1):
            of = sum(self.numbers[at][0] for at in ats)
            key = (" ".join(ats), here)
            value, was = self.earlier.get(key, (t, of))
            self.ratios[key] = t, of
            moved = abs(of / was - 1) if was else 0.0
            if moved and of and abs(t * was / (of * value) - 1) <= STEADY * moved:
                ids = dict.fromkeys(i for at in ats for i in self.numbers[at][1])
                self.detached.append(Detached(tuple(ids), "item", ats[-1], True, t, of))
                break
        self.numbers = {at: (of, ids, True) for at, (of, ids, _) in self.numbers.items()}

    def _read(self, args: Any, out: Any) -> None:
        t = args[0] if args else None
        if not isinstance(t, torch.Tensor) or not isinstance(out, float):
            return
        known = self.derived.get(id(t))
        if known is not None and known[0]() is t and known[4]:
            params, at = known[1], known[3]
        elif params := self._penalised(t):
            at = place()
        else:
            return
        of, ids, added = self.numbers.pop(at, (0.0, (), False))  # a loop reads them in one place, and adds their sum
        if added:
            of, ids = 0.0, ()
        self.numbers[at] = (of + out, tuple(dict.fromkeys((*ids, *params))), False)

    def _drawn(self, made: list[torch.Tensor]) -> bool:
        """Take what was drawn for a constant, and all that shares its memory; not a part, which leaves the rest."""
        if any(t._base is not None for t in made):
            return False
        memory = {id(t) for t in made}
        self.slots = {key: held for key, held in self.slots.items() if self.bases.get(held[1]) not in memory}
        return True

    # --- tensors and their numbers ----------------------------------------------------------------------------------

    def _number(self, t: torch.Tensor) -> int | None:
        """Its number, if what was noted of it still holds: a custom function gives a gradient to what had none."""
        known = self.slots.get(id(t))
        return known[1] if known is not None and known[0]() is t and known[2] >= t.requires_grad else None

    def _new(self, t: torch.Tensor) -> int:
        self.count += 1
        self.slots[id(t)] = (weakref.ref(t), self.count, t.requires_grad)
        self.bases[self.count] = id(t if t._base is None else t._base)
        return self.count

    def _prune(self) -> None:
        """Forget what led to nothing that is still alive, so that a loop without a step costs no memory."""
        alive = {number for ref, number, _ in self.slots.values() if ref() is not None}
        self.slots = {key: value for key, value in self.slots.items() if value[0]() is not None}
        kept: list[Entry] = []
        for entry in reversed(self.entries):
            if any(n in alive for n in entry.makes):
                alive |= entry.needs
                kept.append(entry)
        self.entries = kept[::-1]
        books: tuple[dict[int, Any], ...] = (self.bases, self.pure, self.lost, self.starts)
        for book in books:
            for n in book.keys() - alive:
                del book[n]
        self.derived = {key: value for key, value in self.derived.items() if value[0]() is not None}

    # --- the program ------------------------------------------------------------------------------------------------

    def program(self, loss: torch.Tensor, weight: torch.Tensor | None = None) -> Program:
        """What leads to the loss. Raises ValueError, in words, where a part of that was not seen."""
        if self.broken:
            raise ValueError(self.broken)
        number = self._number(loss)
        if number is None:
            if not _learns(loss):
                raise ValueError(LOST.format(node=type(loss.grad_fn).__name__).replace("a tensor", "the loss", 1))
            return Program((), loss, weight)
        needed, kept = {number}, []
        memory = {self.bases.get(number, 0)}
        for entry in reversed(self.entries):
            if any(n in needed for n in entry.makes) or (entry.changes and entry.base in memory):
                needed |= entry.needs
                memory |= {self.bases.get(n, 0) for n in entry.needs}
                kept.append(entry)
        for n, why in self.lost.items():
            if n in needed:
                at = next((e.place for e in kept if n in e.needs and e.place), "")
                raise ValueError(f"it depends on {why}{f' ({at})' if at else ''}")
        constants = [
            (t, t._version)
            for entry in kept
            for t in tree_leaves((entry.args, entry.kwargs))
            if isinstance(t, torch.Tensor) and not _learns(t) and not t.is_inference()
        ]
        starts = {n: t for n, t in self.starts.items() if n in needed}
        return Program(kept[::-1], Slot(number), weight, constants, starts)


def _learns(t: Any) -> bool:
    try:
        return isinstance(t, torch.Tensor) and t.requires_grad and t.is_leaf
    except RuntimeError:  # a view made under no_grad, written to since
        return False


def _in_place(name: str) -> bool:
    dunder = name.startswith("__") and name.endswith("__")
    return (
        name.startswith("__i") and name not in ("__index__", "__int__", "__invert__")
        if dunder
        else name.endswith("_")
        and not name.endswith("__")
        and not name.startswith("requires_grad")
        and name != "detach_"
    ) or name == "__setitem__"


def is_absolute(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a function of this name takes absolute values, norms of order 1 among them.

    >>> is_absolute("norm", (torch.ones(2), 1), {}), is_absolute("norm", (torch.ones(2),), {})
    (True, False)
    """
    if name in NORMS:
        order = args[1] if len(args) > 1 else kwargs.get("p", kwargs.get("ord", 2))
        dim = args[2] if len(args) > 2 else kwargs.get("dim")
        first = args[0] if args else next((kwargs[key] for key in ("input", "A", "x") if key in kwargs), None)
        vectors = name != "linalg_norm" or isinstance(dim, int) or getattr(first, "ndim", 0) == 1  # else of matrices
        return bool(order == 1) and vectors
    return name in ABSOLUTE


def _draws(name: str, args: Any, kwargs: Any) -> bool:
    return any(word in name for word in RANDOM) or (
        name in ATTENDS and any(bool(kwargs.get(option)) for option in ("dropout_p", "training"))
    )


def _casts() -> tuple[tuple[str, bool, torch.dtype], ...]:
    """Autocast as it stands, on the devices where it is on."""
    if not torch._C._is_any_autocast_enabled():
        return ()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return tuple((d, True, torch.get_autocast_dtype(d)) for d in devices if torch.is_autocast_enabled(d))

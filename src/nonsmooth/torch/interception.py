"""Interception: the calls of torch's functions as they are made, by operation and place, and what hides among them."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nonsmooth.torch.operations import COMPARISONS, MOVES, SMOOTH, SMOOTHS, kinks, name_of, returned

__all__ = ["Interception", "Place", "Row"]

LIBRARY = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (torch.__file__, os.path.dirname(__file__)))
VIEWS = ("AsStrided", "View", "Alias", "CopySlices", "Select", "Slice", "Transpose", "Permute", "Expand", "Unsqueeze")
READS = frozenset({"item", "tolist", "float", "int", "index", "numpy", "array", "complex"})
BRANCHES = frozenset({"bool", "is_nonzero", "equal", "allclose", "contains"})


@dataclass(frozen=True)
class Place:
    """Where a call stands: the path of the module, file and line, and the autograd.Function that it is inside of.

    >>> Place("1.relu", "model.py:7").module
    '1.relu'
    """

    module: str
    line: str
    function: str = ""


@dataclass
class Row:
    """What was counted of one operation at one place.

    >>> Row("C⁰").calls
    0
    """

    smoothness: str
    calls: int = 0
    numbers: int = 0
    each: float = 0.0
    where: str = ""
    exact: int | None = 0
    asked: Callable[[], Iterator[tuple[str, tuple[float, ...]]]] = lambda: iter(())
    differentiated: bool = False

    @property
    def returned(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        """What torch returns on the kinks; to be asked when the run is over, outside of its transforms and hooks."""
        return tuple(self.asked())


class Interception(TorchFunctionMode):
    """Records the calls made while it is on, from `began` to `ended`.

    `outermost`: the frame at which the search for a place stops. `rows` by (name, smoothness, module, line); `hidden`
    by (kind, what, module, line), with the number of calls. `stops`: called before the first `backward`.

    >>> with Interception() as watch:
    ...     watch.began(torch.nn.ReLU())
    ...     _ = torch.relu(torch.zeros(2, requires_grad=True))
    >>> [(name, row.numbers, row.exact) for (name, *_), row in watch.rows.items()]
    [('relu', 2, 2)]
    """

    def __init__(self, outermost: FrameType | None = None, stops: Callable[[], None] | None = None) -> None:
        super().__init__()
        self.outermost, self.stops = outermost, stops
        self.boundary: CodeType | None = None  # of a method whose object knows the `place` of what it calls
        self.model: torch.nn.Module | None = None
        self.rows: dict[tuple[str, str, str, str], Row] = {}
        self.hidden: dict[tuple[str, str, str, str], int] = {}
        self.paths: dict[int, str] = {}
        self.nodes: dict[int, Any] = {}  # what made each tensor that was seen, kept so that identities stay theirs
        self.apart: dict[
            int, tuple[torch.Tensor, str, Row | None]
        ] = {}  # values of the graph that no gradient passes, and why
        self.functions: dict[CodeType, str] = {}
        self.running: FrameType | None = None

    def began(self, model: torch.nn.Module) -> None:
        """From here on calls are recorded; what cannot be looked into is listed at once."""
        self.model = model
        inside: list[str] = []
        for path, module in model.named_modules():
            path = path.replace("_orig_mod.", "").removesuffix("_orig_mod")
            self.paths.setdefault(id(module), path)
            if any(path == p or path.startswith(f"{p}." if p else "") for p in inside):
                continue
            if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
                self._hide("compiled", f"{_called(module)}, looked at as the eager module it was", Place(path, ""))
            if isinstance(module, torch.jit.ScriptModule):
                traced = isinstance(module, torch.jit.TopLevelTracedModule)
                self._hide(
                    "traced" if traced else "scripted", f"{module.original_name}, not looked into", Place(path, "")
                )
                inside.append(path)
                self.paths.update({id(m): path for m in module.modules()})

    def ended(self, out: Any) -> None:
        """What the last call gave: that its making was seen."""
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self._made(t, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name == "backward" and self.stops is not None and self.model is not None:
            self.ended(args)
            self.stops()
        leaves = (
            [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)] if self.model is not None else []
        )
        if not leaves or (name.endswith(".get") and name not in MOVES):
            return func(*args, **kwargs)
        place = self._place()
        if place.function:
            out = func(*args, **kwargs)
            for t in tree_leaves(out):
                if isinstance(t, torch.Tensor) and t.grad_fn is not None:
                    self.nodes[id(t.grad_fn)] = t.grad_fn
            return out
        for t in leaves:
            self._made(t, place)
        graded = any(t.requires_grad for t in leaves)
        parts = [self.apart[id(t)] for t in leaves if id(t) in self.apart]
        back = [why for _, why, _ in parts]
        live = graded or bool(back)
        if live and name in READS | BRANCHES and not _casts(func, name):
            kind = "branch" if name in BRANCHES else "read by Python"
            self._hide(kind, f"{_shown(func)}() of {back[0] if back else 'a value that a gradient passes'}", place)
            _matter(parts if name in BRANCHES else ())
        row, unknown = None, ""
        if any(t.is_floating_point() or t.is_complex() for t in leaves) and name not in MOVES:
            row, unknown = self._count(func, name, args, kwargs, place)
        out = func(*args, **kwargs)
        results = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if name == "setitem":
            results = leaves[:1]
        fresh = name.endswith("_like") or name.startswith("new_")
        if back and any(t.requires_grad for t in results):
            self._hide(_kind(back[0]), f"{_shown(func)} with {back[0]}", place)
            _matter(parts)
        if unknown and any(t.is_floating_point() for t in results):
            self._hide("unknown", unknown, place)
        if row is not None:
            row.differentiated |= any(t.requires_grad for t in results)
        for t in results:
            if t.grad_fn is not None:
                self.nodes[id(t.grad_fn)] = t.grad_fn
            if t.requires_grad:
                self.apart.pop(id(t), None)
            elif live and not fresh:
                self.apart[id(t)] = (t, *parts[0][1:]) if parts else (t, _why(name), row)
        return out

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, place: Place) -> tuple[Row | None, str]:
        """The row that the call was counted in, or why it was not."""
        try:
            found = kinks(func, args, kwargs)
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
            return None, f"{_shown(func)}, with arguments that the table of operations does not know"
        if found is None and name not in SMOOTHS:
            return None, f"{_shown(func)}, which the table of operations does not know"
        key = (_shown(func), found.smoothness if found else SMOOTH, place.module, place.line)
        new = key not in self.rows
        row = self.rows.setdefault(key, Row(key[1]))
        row.calls += 1
        if found is None:
            row.numbers += next((t.numel() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)), 0)
            row.exact = None
            return row, ""
        row.numbers += found.numbers
        row.each, row.where = found.each, found.where
        if found.exact is None:
            row.exact = None
            if "inside" in found.where:
                self._hide("inside a kernel", f"{_shown(func)}: {found.where}", place)
        elif row.exact is not None:
            row.exact = _counted(found.exact, row.exact)
        if new:
            row.asked = functools.partial(_probed, func, args, kwargs, found.probes)
        return row, ""

    def _made(self, t: torch.Tensor, place: Place | None) -> None:
        """List what made a tensor, if it was not seen when it did."""
        node = t.grad_fn
        if node is None or id(node) in self.nodes:
            return
        self.nodes[id(node)] = node
        kind, place = type(node).__name__, place or Place("", "")
        if isinstance(node, BackwardCFunction):
            made = _custom(node)
            if made and made not in self.functions.values():  # those were counted as they ran
                self._hide("autograd.Function", f"{made}, with a backward of its own", place)
        elif not kind.startswith(VIEWS):
            self._hide("unseen", f"a tensor that {kind} made, out of sight", place)

    def _hide(self, kind: str, what: str, place: Place) -> None:
        key = (kind, what, place.module, place.line)
        self.hidden[key] = self.hidden.get(key, 0) + 1

    def _place(self) -> Place:
        frame: FrameType | None = sys._getframe(2)
        line, module, function, inner = "", None, "", None
        while frame is not None and frame is not self.outermost:
            code = frame.f_code
            if code is self.boundary:
                line = line or frame.f_locals["self"].place
                break
            first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount and module is None else None
            if isinstance(first, torch.nn.Module):
                module = self.paths.get(id(first), _called(first))
            elif code.co_name == "forward" and (named := self._function(code, first)):
                line, function, inner = "", named, frame
            elif not line and not code.co_filename.startswith(LIBRARY):
                line = f"{_file(code.co_filename)}:{frame.f_lineno}"
            if not line and isinstance(first, torch.nn.Module) and not code.co_filename.startswith(LIBRARY):
                line = f"{_file(code.co_filename)}:{frame.f_lineno}"
            frame = frame.f_back
        place = Place(module or "", line, function)
        if inner is not None and inner is not self.running:
            self.running = inner
            self._hide("autograd.Function", f"{function}, with a backward of its own", place)
        return place

    def _function(self, code: CodeType, ctx: Any) -> str:
        """The name of the autograd.Function whose forward this is, "" if it is none, or torch's own."""
        if isinstance(ctx, BackwardCFunction):
            self.functions[code] = _custom(ctx)
        elif code not in self.functions:
            known = {getattr(c.forward, "__code__", None): c for c in _subclasses(torch.autograd.Function)}
            found = known.get(code)
            self.functions[code] = "" if found is None or _is_own(found) else found.__name__
        return self.functions[code]


def _subclasses(cls: type) -> Iterator[Any]:
    subclasses: list[type] = cls.__subclasses__()
    for sub in subclasses:
        yield sub
        yield from _subclasses(sub)


def _is_own(function: type) -> bool:
    return function.__module__.startswith("torch.")


def _custom(node: Any) -> str:
    return "" if _is_own(node._forward_cls) else node._forward_cls.__name__


def _counted(exact: Callable[[], int], before: int) -> int | None:
    try:
        with torch.no_grad():
            return before + exact()
    except RuntimeError:  # under a transform, such as vmap, values cannot be read
        return None


def _probed(func: Any, args: Any, kwargs: Any, probes: Any) -> Iterator[tuple[str, tuple[float, ...]]]:
    for probe in probes:
        with contextlib.suppress(RuntimeError, TypeError, ValueError):
            found = returned(func, args, kwargs, probe)
            if found is not None:
                yield probe.label, found


def _casts(func: Any, name: str) -> bool:
    """x.float() is a tensor of another type; float(x) reads a number."""
    given = getattr(func, "__name__", "")
    return name in ("float", "int", "bool") and not given.startswith("__")


def _why(name: str) -> str:
    """What a value that no gradient passes is, of one that a gradient passes."""
    if name in COMPARISONS or name.startswith("logical") or name.startswith("is"):
        return f"the result of {name}"
    if name in ("detach", "data.get"):
        return "a detached value"
    return f"the choice of {name}" if torch.is_grad_enabled() else "a value computed under no_grad"


def _kind(why: str) -> str:
    return {"result": "by hand", "choice": "choice"}.get(why.split()[1], "detached")


def _shown(func: Any) -> str:
    """As it is written, but for the underscores of operators: relu_, setitem."""
    given = getattr(func, "__name__", type(func).__name__)
    return name_of(func) if given.startswith("__") else given


def _matter(parts: Iterable[tuple[torch.Tensor, str, Row | None]]) -> None:
    """What the graph takes back decides which gradient passes, though none passes it."""
    for _, _, row in parts:
        if row is not None:
            row.differentiated = True


def _called(module: torch.nn.Module) -> str:
    return type(getattr(module, "_orig_mod", module)).__name__


def _file(path: str) -> str:
    """Relative to where we are, or to the packages that are installed."""
    return path.rpartition(f"site-packages{os.sep}")[2].removeprefix(os.getcwd() + os.sep)

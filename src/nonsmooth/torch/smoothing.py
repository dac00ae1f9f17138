"""Smoothing: a model or a closure with smooth twins in place of its kinks, to try what the kinks do.

Within `smoothing(beta)` each continuous operation of torch that has kinks is replaced, as it is called, by its twin of
`nonsmooth.torch.twins`, where formulas, errors and sources are; what is C¹ or smoother is left untouched. What has no
twin is listed in `left`: discontinuous operations; comparisons, on which hand-made kinks such as x*(x > 0) hang;
sorting and order statistics (sort, topk, median, kthvalue, quantile), matrix norms and singular values, `rnn_relu`;
scripted modules and custom autograd functions, whose insides run as they are; operations that are not known.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, overload

import torch
from torch.autograd.function import BackwardCFunction
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nonsmooth.torch.interception import _subclasses
from nonsmooth.torch.operations import C0, COMPARISONS, DISCONTINUOUS, MOVES, SMOOTHS, TABLE, kinks, name_of
from nonsmooth.torch.selection.decompositions import DECOMPOSED
from nonsmooth.torch.selection.graph import _nodes, hidden
from nonsmooth.torch.selection.pieces import is_in_place
from nonsmooth.torch.twins import INDEXED, TWINS, unseen
from nonsmooth.torch.undisturbed import as_written

__all__ = ["Smoothed", "Smoothing", "smoothed", "smoothing"]

CHECKPOINTED = (
    "smoothing: activation checkpoints run a part of the forward pass anew during the backward pass, where it would "
    "not be smooth; turn them off."
)
CUSTOM = "a custom autograd function, run as it is"
LEGACY = ("size_average", "reduce")


class Smoothing(TorchFunctionMode):
    """The context of `smoothing`. `left`: what was not smoothed so far, each with how often it was met.

    >>> with Smoothing(10.0) as mode:
    ...     _ = torch.zeros(2, requires_grad=True).sort().values.relu().sign()
    >>> mode.left
    ('sort: it has kinks and no twin', 'sign: it jumps')
    """

    def __init__(self, beta: float, left: Counter[str] | None = None) -> None:
        if isinstance(beta, bool) or not (isinstance(beta, int | float) and 0 < beta < math.inf):
            raise ValueError(f"smoothing: beta must be a finite number above 0, not {beta!r}.")
        super().__init__()
        self.beta = float(beta)
        self.counted: Counter[str] = Counter() if left is None else left
        self.functions: dict[CodeType, type | None] = {}

    @property
    def left(self) -> tuple[str, ...]:
        return tuple(f"{what} ×{n}" if n > 1 else what for what, n in self.counted.items())

    def __enter__(self) -> Any:
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(as_written())
        hook = torch.nn.modules.module.register_module_forward_pre_hook(self._entered)
        self.stack.callback(hook.remove)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stack.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if name not in TABLE and name not in TWINS:
            if not (name in SMOOTHS or name in MOVES or name.endswith(".get")) and _float(args, kwargs):
                self.counted[f"{_shown(func)}: it is not known"] += 1
            return func(*args, **kwargs)
        if not _float(args, kwargs):
            return func(*args, **kwargs)
        smoothness = self._smoothness(func, args, kwargs)
        if smoothness == DISCONTINUOUS and any(t.requires_grad for t in _tensors(args, kwargs)):
            hangs = ", and kinks made by hand may hang on it" if name in COMPARISONS else ""
            self.counted[f"{_shown(func)}: it jumps{hangs}"] += 1
        if smoothness != C0 or self._is_in_custom_function():
            return func(*args, **kwargs)
        out = NotImplemented if kwargs.get("out") is not None else self._twin(name, func, args, kwargs)
        if out is NotImplemented:
            self.counted[f"{_shown(func)}: it has kinks and no twin"] += 1
            return func(*args, **kwargs)
        if torch.is_grad_enabled() and _is_checkpointed():
            raise ValueError(CHECKPOINTED)
        return out

    def _smoothness(self, func: Any, args: Any, kwargs: Any) -> str | None:
        if name_of(func) == "abs" and args and args[0].is_complex():
            return C0
        try:
            with torch._C.DisableTorchFunction():
                found = kinks(func, args, kwargs)
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError):
            self.counted[f"{_shown(func)}: its arguments are not known"] += 1
            return None
        return None if found is None else found.smoothness

    def _twin(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The twin's value in the place of func's; NotImplemented where there is none."""
        given = {k: v for k, v in kwargs.items() if k not in ("out", "_stacklevel")}
        if any(given.get(option) is not None for option in LEGACY):
            return NotImplemented
        given = {k: v for k, v in given.items() if k not in LEGACY}
        written = None
        if is_in_place(func, args, kwargs):
            written = args[0] if args else given["input"]
            copied = written.clone()
            args, given = ((copied, *args[1:]), given) if args else (args, {**given, "input": copied})
        if name in TWINS:
            found = TWINS[name](self.beta, *args, **given)
        elif name in COMPOSED:
            given = {k: v for k, v in given.items() if k != "weight" or v is not None}
            try:
                inspect.signature(COMPOSED[name]).bind(*args, **given)
            except TypeError:
                return NotImplemented
            with self._again():
                found = COMPOSED[name](*args, **given)
        else:
            return NotImplemented
        if found is NotImplemented:
            return found
        if written is not None:
            return written.copy_(found)
        if name in INDEXED:
            with unseen():
                own = func(*args, **kwargs)
            if isinstance(own, tuple):
                pair = (found, *own[1:])
                return pair if type(own) is tuple else type(own)(pair)
        return found

    def _is_in_custom_function(self) -> bool:
        """Whether a custom autograd function's forward runs, whose backward does not know of twins."""
        frame: FrameType | None = None if torch.is_grad_enabled() else sys._getframe(2)
        while frame is not None:
            code = frame.f_code
            if code.co_name == "forward" and code.co_argcount:
                first = frame.f_locals.get(code.co_varnames[0])
                function = self._function(code, first)
                if function is not None and function.__name__ == "CheckpointFunction":
                    if any(getattr(first, "needs_input_grad", ())):
                        raise ValueError(CHECKPOINTED)
                elif function is not None and not function.__module__.startswith("torch."):
                    self.counted.setdefault(f"{function.__name__}: {CUSTOM}", 1)
                    return True
            frame = frame.f_back
        return False

    def _function(self, code: CodeType, first: Any) -> type | None:
        if isinstance(first, BackwardCFunction):
            return type(first)._forward_cls  # type: ignore[attr-defined]
        if code not in self.functions:
            known = {getattr(c.forward, "__code__", None): c for c in _subclasses(torch.autograd.Function)}
            self.functions[code] = known.get(code)
        return self.functions[code]

    @contextlib.contextmanager
    def _again(self) -> Iterator[None]:
        """This mode on top again, inside of its own handler."""
        TorchFunctionMode.__enter__(self)
        try:
            yield
        finally:
            TorchFunctionMode.__exit__(self, None, None, None)

    def _entered(self, module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, torch.jit.ScriptModule):
            self.counted[f"{module.original_name}: a scripted module, run as it is"] += 1


def smoothing(beta: float) -> Smoothing:
    """A context within which C⁰ operations on floating-point tensors are replaced by smooth twins of sharpness `beta`.

    Whether or not a gradient passes, and in every spelling: functions, methods, in place, modules. Compiled modules run
    as the eager ones they were. Keep the optimiser's step outside. A mode that is entered inside, such as `record`'s or
    `census`'s, sees the originals: enter `smoothing` inside of what it watches, or give it `smoothed(closure, beta)`.
    `.left` lists what was not smoothed. Functions of `torch.jit.script`, and custom ones without torch's operations, it
    does not see; `smoothed` finds them in the gradient graph.

    Raises ValueError for a beta that is not a finite number above 0, and within activation checkpoints.

    >>> x = torch.tensor([0.0], requires_grad=True)
    >>> with smoothing(beta=4.0) as mode:
    ...     y = torch.relu(x)
    >>> y.backward()
    >>> round(4 * y.item() / math.log(2), 6), x.grad.item(), mode.left
    (1.0, 0.5, ())
    """
    return Smoothing(beta)


class Smoothed(torch.nn.Module):
    """A model that runs within `smoothing(beta)`: the parameters, buffers, modules and mode are the model's own.

    `left`: what was not smoothed in the calls so far, and what the gradient graph of the first one shows besides.
    Attributes are looked up in the model too; methods other than a call run as they are. Made by `smoothed`.

    >>> model = torch.nn.Sequential(torch.nn.ReLU())
    >>> twin = Smoothed(model, 1.0)
    >>> round(twin(torch.zeros(1)).item(), 5)  # log 2
    0.69315
    """

    original: torch.nn.Module

    def __init__(self, model: torch.nn.Module, beta: float) -> None:
        super().__init__()
        self.original = getattr(model, "_orig_mod", model)
        self.beta = Smoothing(beta).beta
        self.counted: Counter[str] = Counter()
        self.looked = False

    @property
    def left(self) -> tuple[str, ...]:
        return Smoothing(self.beta, self.counted).left

    @property
    def training(self) -> bool:
        return bool(self.original.training)

    @training.setter
    def training(self, mode: bool) -> None:
        if "original" in self.__dict__.get("_modules", ()):  # not while Module.__init__ runs
            self.original.training = mode

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "original" not in self.__dict__.get("_modules", ()):
                raise
            return getattr(self.__dict__["_modules"]["original"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with Smoothing(self.beta, self.counted):
            out = self.original(*args, **kwargs)
        if not self.looked and torch.is_grad_enabled():
            self.looked = True
            _look(self.counted, out, (args, kwargs))
        return out

    # --- under the model's own names --------------------------------------------------------------------------------

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return self.original.named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, torch.Tensor]]:
        return self.original.named_buffers(*args, **kwargs)

    def named_modules(self, memo: Any = None, prefix: str = "", remove_duplicate: bool = True) -> Iterator[Any]:
        """Its own name and the model's are the same, ""."""
        memo = set() if memo is None else memo
        if self not in memo:
            memo.add(self)
            yield prefix, self
            yield from self.original.named_modules(memo, prefix, remove_duplicate)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.original.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.original.load_state_dict(*args, **kwargs)


class SmoothedClosure:
    """A closure that runs within `smoothing(beta)`; `left` as in `Smoothed`.

    >>> round(SmoothedClosure(lambda: torch.relu(torch.zeros(())), 1.0)().item(), 5)  # log 2
    0.69315
    """

    def __init__(self, closure: Callable[..., Any], beta: float) -> None:
        self.closure, self.beta = closure, Smoothing(beta).beta
        self.counted: Counter[str] = Counter()
        self.looked = False

    @property
    def left(self) -> tuple[str, ...]:
        return Smoothing(self.beta, self.counted).left

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with Smoothing(self.beta, self.counted):
            out = self.closure(*args, **kwargs)
        if not self.looked and torch.is_grad_enabled():
            self.looked = True
            _look(self.counted, out, (args, kwargs))
        return out


@overload
def smoothed(model: torch.nn.Module, beta: float) -> Smoothed: ...  # type: ignore[overload-overlap]
@overload
def smoothed(model: Callable[..., Any], beta: float) -> SmoothedClosure: ...
def smoothed(model: Any, beta: float) -> Any:
    """The model (or a function, such as a closure) run within `smoothing(beta)`; a model's parameters stay shared.

    Train and eval, `state_dict` with the model's own names, `.to` and deepcopy are the model's; of a compiled model it
    is the eager one. `left` lists what was not smoothed. Raises TypeError for what is not callable.

    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU())
    >>> twin = smoothed(model, beta=20.0)
    >>> next(twin.parameters()) is model[0].weight, list(twin.state_dict())
    (True, ['0.weight', '0.bias'])
    >>> x = torch.tensor([[3.0]])
    >>> bool((twin(x) - model(x)).abs() <= math.log(2) / 20), twin.left
    (True, ())
    """
    if isinstance(model, torch.nn.Module):
        return Smoothed(model, beta)
    if not callable(model):
        raise TypeError(f"smoothed: give a module or a function, not {type(model).__name__}.")
    return SmoothedClosure(model, beta)


# --- losses, of operations that have twins ----------------------------------------------------------------------------


def _reduce(x: torch.Tensor, reduction: str) -> torch.Tensor:
    return x.mean() if reduction == "mean" else x.sum() if reduction == "sum" else x


def _cosine_embedding(x: Any, y: Any, target: Any, margin: float = 0.0, *, reduction: str = "mean") -> torch.Tensor:
    """With torch's 1e-12 in the squared norms, which makes them smooth."""
    cos = (x * y).sum(-1) * ((x.square().sum(-1) + 1e-12) * (y.square().sum(-1) + 1e-12)).rsqrt()
    apart = torch.where(target == -1, (cos - margin).clamp_min(0), 0.0)
    return _reduce(apart + torch.where(target == 1, 1 - cos, 0.0), reduction)


def _triplet_with(
    anchor: Any, positive: Any, negative: Any, *, distance_function: Any = None, margin: float = 1.0,
    swap: bool = False, reduction: str = "mean",
) -> torch.Tensor:  # fmt: skip
    distance = distance_function or functional.pairwise_distance
    far = distance(anchor, negative)
    if swap:
        far = torch.minimum(far, distance(positive, negative))
    return _reduce((margin + distance(anchor, positive) - far).clamp_min(0), reduction)


COMPOSED: dict[str, Callable[..., Any]] = {
    **{name: f for name, f in DECOMPOSED.items() if name not in TWINS},
    "cosine_embedding_loss": _cosine_embedding,
    "triplet_margin_with_distance_loss": _triplet_with,
}


# --- what is looked at ------------------------------------------------------------------------------------------------


def _look(counted: Counter[str], out: Any, given: Any) -> None:
    """List what the graph of an output shows and no mode saw, up to the graphs of the inputs."""
    before = {node for t in _tensors(given, {}) if t.requires_grad for node in _nodes(t)}
    for t in _tensors(out, {}):
        if t.grad_fn is not None:
            for what, n in hidden(t, before).items():
                custom = what.removeprefix("custom autograd function ")
                if custom == what:
                    counted[f"{what}, found in the graph"] = n
                elif f"{custom}: {CUSTOM}" not in counted:
                    counted[f"{custom}: {CUSTOM}"] = n


def _tensors(args: Any, kwargs: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]


def _float(args: Any, kwargs: Any) -> bool:
    return any(t.is_floating_point() or t.is_complex() for t in _tensors(args, kwargs))


def _shown(func: Any) -> str:
    given = getattr(func, "__name__", type(func).__name__)
    return name_of(func) if given.startswith("__") else given


def _is_checkpointed() -> bool:
    """Whether we are inside of a checkpoint, which keeps nothing and runs anew."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    hooks = top(True) if top is not None else None
    return hooks is not None and "_checkpoint_hook" in getattr(hooks[0], "__qualname__", "")

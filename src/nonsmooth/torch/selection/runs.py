"""Recording the selection of a run, and running on it.

`record` runs a closure and keeps, for each operation that is only C⁰ or discontinuous, the piece that torch's autograd
differentiated: masks, the places of maxima, signs, the outcomes of comparisons. `replay` runs the closure at whatever
the parameters are by then, on those pieces: f_F, a smooth function that equals f at the recorded point, with the same
gradient there. Operations that are C¹ as they are used stay whole, by any spelling (`contact`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nonsmooth.torch.selection.choices import Choice, Selection
from nonsmooth.torch.selection.contact import SMOOTH, Expression, Expressions
from nonsmooth.torch.selection.decompositions import DECOMPOSED
from nonsmooth.torch.selection.extremes import RULES
from nonsmooth.torch.selection.graph import hidden, recomputes
from nonsmooth.torch.selection.pieces import Rule, base_name, is_in_place
from nonsmooth.torch.undisturbed import as_written, streams, undisturbed

__all__ = ["Listener", "eagerly", "record", "replay"]

Closure = Callable[[], torch.Tensor]
OUTSIDE = "(outside modules)"
CHECKPOINTED = (
    "replay: activation checkpoints run a part of the forward pass anew, where it cannot be held to the recorded "
    "pieces; measure a closure without them."
)
DRAWN = {"multinomial", "bernoulli", "rrelu"}
"""They draw random numbers, and do so again when they are replayed."""
NUMBERS = {"item", "tolist", "numpy", "__float__", "__int__", "__index__"}


def record(closure: Closure) -> tuple[torch.Tensor, Selection]:
    """The closure's loss, with its graph, and the selection of its run.

    The closure returns a scalar loss and never calls backward; one that does is refused. Random masks are not part of
    the selection: run it again from the same random numbers. Random numbers, buffers, modes and `.grad` are left as
    they were. Compiled models and functions run eagerly meanwhile. `Selection.unseen` lists what may hide kinks:
    scripted modules, custom autograd functions, numbers taken out of torch, operations without a rule.

    >>> w = torch.tensor([-1.0, 2.0], requires_grad=True)
    >>> loss, selection = record(lambda: torch.relu(w).sum())
    >>> loss.item()
    2.0
    """
    with undisturbed(), eagerly(), Recorder() as mode:
        loss = _need_loss("record", closure())
        mode.expressions.escape(loss)
    return loss, mode.selection(loss)


def replay(closure: Closure, selection: Selection) -> torch.Tensor:
    """The closure's loss at the present parameters on the recorded pieces, with a graph that can be walked twice.

    Raises ValueError where the closure does other operations than those that were recorded, or on other shapes, or has
    reentrant activation checkpoints; torch itself refuses the gradient through other checkpoints.

    >>> w = torch.tensor([-1.0, 2.0], requires_grad=True)
    >>> _, selection = record(lambda: torch.relu(w).sum())
    >>> with torch.no_grad():
    ...     _ = w.fill_(-3.0)
    >>> replay(lambda: torch.relu(w).sum(), selection).item()  # 0·w₁ + 1·w₂
    -3.0
    """
    with undisturbed(), eagerly(), Player(selection) as mode:
        loss = _need_loss("replay", closure())
        if recomputes(loss):
            raise ValueError(CHECKPOINTED)
        if mode.position < len(selection.choices):
            c = selection.choices[mode.position]
            raise ValueError(
                f"replay: the closure ended before its recorded operation {c.ordinal}, {c.operation} in {c.layer}; "
                "it must do the same operations as when it was recorded."
            )
    return loss


# --- the modes --------------------------------------------------------------------------------------------------------


class Listener(TorchFunctionMode):
    """Sees each torch operation of a closure, and the module that it is in; refuses `backward`.

    >>> with Listener() as mode:
    ...     _ = torch.nn.Sequential(torch.nn.Tanh())(torch.zeros(1))
    >>> mode.names
    {}
    """

    takes_apart = False
    """Whether losses and norms are run as the operations that they consist of."""

    def __init__(self, who: str = "record") -> None:
        super().__init__()
        self.who = who
        self.within: list[str] = []
        self.names: dict[int, str] = {}
        self.unseen: Counter[str] = Counter()

    def __enter__(self) -> Any:
        module = torch.nn.modules.module
        self.hooks = [
            module.register_module_forward_pre_hook(self._enter),
            module.register_module_forward_hook(self._leave, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()
        self.names = {}

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:
        if not self.within:
            found = {id(m): name.replace("_orig_mod.", "") for name, m in module.named_modules()}
            self.names = {key: "" if name == "_orig_mod" else name for key, name in found.items()}
        self.within.append(self.names.get(id(module)) or type(module).__name__)
        if isinstance(module, torch.jit.ScriptModule):
            self.unseen[f"scripted module {self.within[-1]}"] += 1

    def _leave(self, module: torch.nn.Module, inputs: Any, out: Any) -> None:
        if self.within:
            self.within.pop()

    @property
    def layer(self) -> str:
        return self.within[-1] if self.within else OUTSIDE

    def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = base_name(call)
        if name == "backward":
            raise ValueError(f"{self.who}: the closure called backward; return the loss, and leave its gradient alone.")
        if torch._C._functorch.peek_interpreter_stack() is not None:
            self.unseen["torch.func (vmap, grad and the like)"] = 1
            return call(*args, **kwargs)
        if name in DECOMPOSED and self.takes_apart:
            found = self._decomposed(name, args, kwargs)
            if found is not NotImplemented:
                return found
        rule = RULES.get(name)
        if rule is None or not _floats(args, kwargs) or kwargs.get("out") is not None:
            return self.plain(call, args, kwargs)
        return self.chosen(name, rule, call, args, kwargs)

    def _decomposed(self, name: str, args: Any, kwargs: Any) -> Any:
        """The result by the operations that a loss consists of; NotImplemented where that is not known."""
        if any(kwargs.get(option) is not None for option in ("size_average", "reduce", "dtype", "out")):
            return NotImplemented
        unset = ("size_average", "reduce", "dtype", "out", "weight")
        passed = {k: v for k, v in kwargs.items() if k not in unset or v is not None}
        try:
            inspect.signature(DECOMPOSED[name]).bind(*args, **passed)
        except TypeError:
            return NotImplemented
        with self.again():
            return DECOMPOSED[name](*args, **passed)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """This mode on top again, inside of its own handler."""
        TorchFunctionMode.__enter__(self)
        try:
            yield
        finally:
            TorchFunctionMode.__exit__(self, None, None, None)

    def plain(self, call: Any, args: Any, kwargs: Any) -> Any:
        return call(*args, **kwargs)

    def chosen(self, name: str, rule: Rule, call: Any, args: Any, kwargs: Any) -> Any:
        return call(*args, **kwargs)


class Recorder(Listener):
    """The mode of `record`: the user's own operations, with each one's piece taken down beforehand."""

    takes_apart = True

    def __init__(self) -> None:
        super().__init__()
        self.expressions = Expressions()
        self.taken: list[tuple[Choice, Rule, Expression | None]] = []
        self.known: set[Any] = set()

    def plain(self, call: Any, args: Any, kwargs: Any) -> Any:
        name, before = base_name(call), self.expressions.before(call, args, kwargs)
        inputs = [t.grad_fn for t in tree_leaves((args, kwargs)) if _differentiable(t)] if name in SMOOTH else []
        out = call(*args, **kwargs)
        if name in SMOOTH:
            self._know(out, inputs)
        if name in NUMBERS and _floats(args, kwargs):
            self.unseen[f"a number taken out of torch by {name} in {self.layer}"] += 1
        if _hides(name, kwargs):
            self.unseen[f"{name} in {self.layer}"] += 1
        if name in ("to", "type") and isinstance(out, torch.Tensor) and _differentiable_float(args, out):
            self.unseen[f"a rounding by {name} in {self.layer}"] += 1
        self.expressions.saw(call, args, kwargs, out, before)
        return out

    def chosen(self, name: str, rule: Rule, call: Any, args: Any, kwargs: Any) -> Any:
        first = next(t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
        shape, inputs = tuple(first.shape), [t.grad_fn for t in tree_leaves((args, kwargs)) if _differentiable(t)]
        with torch.no_grad():
            safe = (args[0].detach().clone(), *args[1:]) if is_in_place(call, args, kwargs) and args else args
            with streams() if name in DRAWN else contextlib.nullcontext():
                piece = rule.locate(call, safe, kwargs)
            on = rule.ties(args, kwargs) if piece is not None else None
            ties = 0 if on is None or isinstance(on, bool) else int(on.sum())
        before = self.expressions.before(call, args, kwargs)
        out = call(*args, **kwargs)
        self._know(out, inputs)
        expression = self.expressions.saw(call, args, kwargs, out, before)
        if piece is not None:
            choice = Choice(len(self.taken), name, self.layer, shape, piece, ties)
            self.taken.append((choice, rule, expression))
        return out

    def _know(self, out: Any, inputs: list[Any]) -> None:
        """Mark the graph between an operation's inputs and its outputs as seen."""
        stop = set(inputs)
        pending = [t.grad_fn for t in tree_leaves(out) if _differentiable(t)]
        while pending:
            node = pending.pop()
            if node is None or node in stop or node in self.known:
                continue
            self.known.add(node)
            pending += [n for n, _ in node.next_functions]

    def selection(self, loss: torch.Tensor) -> Selection:
        choices = []
        for choice, rule, expression in self.taken:
            whole = expression is not None and rule.pointwise and self.expressions.is_smooth(expression, rule)
            choices.append(replace(choice, whole=True) if whole else choice)
        unseen = Counter(self.unseen) + hidden(loss, self.known)
        return Selection(tuple(choices), tuple(f"{k} ×{n}" if n > 1 else k for k, n in unseen.items()))


class Player(Listener):
    """The mode of `replay`: each operation with a recorded piece gives that piece's value."""

    takes_apart = True

    def __init__(self, selection: Selection) -> None:
        super().__init__("replay")
        self.choices, self.position = selection.choices, 0

    def chosen(self, name: str, rule: Rule, call: Any, args: Any, kwargs: Any) -> Any:
        if self._has_one_piece(rule, call, args, kwargs):
            return call(*args, **kwargs)
        first = next(t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
        met = (self.position, name, self.layer, tuple(first.shape))
        if self.position >= len(self.choices):
            raise ValueError(
                f"replay: {name} in {self.layer} was not recorded, the closure goes on beyond its recorded operations; "
                "it must do the same ones."
            )
        choice = self.choices[self.position]
        if met != (choice.ordinal, choice.operation, choice.layer, choice.shape):
            raise ValueError(
                f"replay: operation {met[0]} is {met[1]} in {met[2]} on {met[3]}, and recorded there was number "
                f"{choice.ordinal}, {choice.operation} in {choice.layer} on {choice.shape}; "
                "the closure must do the same operations in the same order."
            )
        self.position += 1
        if choice.whole:
            return call(*args, **kwargs)
        if name in DRAWN:
            with torch.no_grad():
                call(_copied(args[0]), *args[1:], **kwargs)
        if is_in_place(call, args, kwargs):
            x = args[0] if args else kwargs["input"]
            x.copy_(rule.extend(choice.piece, call, (x.clone(), *args[1:]), kwargs))
            return x
        return rule.extend(choice.piece, call, args, kwargs)

    def _has_one_piece(self, rule: Rule, call: Any, args: Any, kwargs: Any) -> bool:
        """An elu of alpha 1, say."""
        return base_name(call) == "elu" and rule.locate(call, args, kwargs) is None


def _hides(name: str, kwargs: Any) -> bool:
    """Torch's own functions that choose inside, where neither their name nor their graph shows it."""
    if name == "gumbel_softmax":
        return bool(kwargs.get("hard"))
    return name == "embedding_bag" and kwargs.get("mode") == "max"


def _copied(x: Any) -> Any:
    return x.detach().clone() if isinstance(x, torch.Tensor) else x


def _differentiable(t: Any) -> bool:
    return isinstance(t, torch.Tensor) and t.requires_grad and t.grad_fn is not None


def _differentiable_float(args: Any, out: torch.Tensor) -> bool:
    x = args[0] if args else None
    return isinstance(x, torch.Tensor) and x.requires_grad and not (out.is_floating_point() or out.is_complex())


def _floats(args: Any, kwargs: Any) -> bool:
    return any(isinstance(t, torch.Tensor) and t.is_floating_point() for t in tree_leaves((args, kwargs)))


def _need_loss(who: str, loss: Any) -> torch.Tensor:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(f"{who}: the closure must return the loss, a scalar tensor, not {what}.")
    return loss.reshape(())


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Gradients on, and what torch.compile made run as it was written.

    >>> with torch.no_grad(), eagerly():
    ...     torch.is_grad_enabled()
    True
    """
    with torch.inference_mode(False), torch.enable_grad(), as_written():
        yield

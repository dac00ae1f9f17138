"""Listening to a training script that knows nothing of it: its optimiser, its modules' outermost calls, its loss.

Optimisers are found by torch's global hooks on `step`; modules by `nn.Module.__call__`, which is replaced between the
outermost calls and is torch's own again within them, so that what runs inside, compiled or not, runs as ever; the loss
is what `backward` was called on. While it listens to a step, a `Tape` takes down what lies between.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

from nonsmooth.torch.program import AsCalled, Program
from nonsmooth.torch.tape import Tape

__all__ = ["Capture", "Heard"]

OTHERS = 64
"""After so many steps of other optimisers in a row it sleeps no longer: the one that it waits for may step no more."""
UNCLAIMED = 64
"""After so many backward calls that lead to no step of a torch optimiser, as where weights are written by hand, it
listens no longer, until there is one."""


@dataclass
class Heard:
    """What was heard of one optimiser step: a program for each `backward`, or why there is none, and the losses.

    `within`: how many of the losses the step itself asked for, by the closure that it was given.

    >>> Heard().programs
    []
    """

    programs: list[Program] = field(default_factory=list)
    why: str = ""
    losses: list[torch.Tensor] = field(default_factory=list)
    within: int = 0
    scaled: bool = False
    calls: list[str] = field(default_factory=list)
    tape: Tape | None = None


class Capture:
    """Calls `before(optimizer)` and `after(optimizer, heard)` around each outermost step of an optimiser.

    `listen()` asks for a tape of the step that begins now; without it only losses are heard, and modules are called as
    ever. The tape ends with the step. Nothing is listened to in other threads, nor within `before` and `after`. After
    each step `spent(seconds)` is told what all of this took since the last one, `before` and `after` included.

    >>> w, heard = torch.nn.Linear(1, 1), []
    >>> optimizer = torch.optim.SGD(w.parameters(), lr=0.0)
    >>> with Capture(lambda optimizer: None, lambda optimizer, step: heard.append(step)) as capture:
    ...     w(torch.ones(1)).square().sum().backward()
    ...     optimizer.step()
    >>> bool(heard[0].programs[0]() == heard[0].losses[0])
    True
    """

    def __init__(
        self,
        before: Callable[[Optimizer], None],
        after: Callable[[Optimizer, Heard], None],
        listening: bool = True,
        spent: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.before, self.after, self.spent = before, after, spent
        self._seconds = 0.0
        self.asleep, self.overslept = 0, 0  # steps to be slept through; those that did not come
        self._sleeper: weakref.ref[Optimizer] | None = None
        self._others = 0
        self.tape: Tape | None = None
        self.models: dict[int, weakref.ref[Any]] = {}
        self.compiled, self.elsewhere = False, False
        self._heard, self._full = Heard(), False  # whether it was more than is kept
        self._ratios: dict[tuple[str, str], tuple[float, float]] = {}  # what tapes remember of those before
        self._wanted, self._thread = listening, 0
        self._within: list[Optimizer] = []  # the optimisers that step now: a wrapper, and what is in it
        self._turn = 0  # counts the steps, and what listens to them
        self._drives: weakref.WeakSet[Module] = weakref.WeakSet()  # modules within whose call there are steps
        self._unscaled: dict[int, tuple[Any, torch.Tensor]] = {}
        self._stack: contextlib.ExitStack | None = None
        self._call = Module.__call__

    def __enter__(self) -> Capture:
        self._thread = threading.get_ident()
        self._call = Module.__call__
        self._stack = contextlib.ExitStack()
        for hook in (register_optimizer_step_pre_hook(self._pre), register_optimizer_step_post_hook(self._post)):
            self._stack.callback(hook.remove)
        self._replace(torch.autograd, "backward", self._backward)
        self._replace(torch.amp.GradScaler, "scale", self._scale)
        self._replace(torch, "compile", self._compile)
        if self._wanted:
            self._patch()
        return self

    def __exit__(self, *_: Any) -> None:
        self._rest()
        if self._stack is not None:
            self._stack.close()
            self._stack = None

    def listen(self) -> None:
        """Take a tape of the step that begins now."""
        self._rest()
        self._wanted, self._full = True, False
        self._turn += 1
        self._patch()
        self._push(Tape(self._ratios))

    def sleep(self, optimizer: Optimizer, steps: int) -> None:
        """Hear nothing of so many steps of this optimiser that follow, and call neither `before` nor `after`."""
        self.asleep, self._sleeper, self._others = steps, weakref.ref(optimizer), 0

    def wake(self) -> int:
        """Sleep no longer; the steps that were to be slept through and did not come, since the last call."""
        missed, self.asleep, self.overslept = self.asleep + self.overslept, 0, 0
        return missed

    # --- the tape on and off ----------------------------------------------------------------------------------------

    def _push(self, tape: Tape) -> None:
        """Put the tape below all modes of the script's own, so that each of these leaves as it came."""
        self.tape = tape
        below(tape)

    def _pull(self) -> Tape | None:
        """Take the tape off the stack of modes, wherever it is on it, and any that was left there from before."""
        if self.tape is None and not torch._C._len_torch_function_stack():
            return None
        tape, self.tape = self.tape, None
        push(mode for mode in popped() if not isinstance(mode, Tape))
        return tape

    def _patch(self) -> None:
        capture, own = self, self._call

        @functools.wraps(own)
        def call(module: Module, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != capture._thread or not capture._wanted or module in capture._drives:
                return own(module, *args, **kwargs)
            return capture._outermost(module, functools.partial(own, module), args, kwargs)

        Module.__call__ = call  # type: ignore[method-assign]

    def _unpatch(self) -> None:
        """Modules are called as torch has it. To write to a class costs: only where it is not so."""
        if Module.__call__ is not self._call:
            Module.__call__ = self._call  # type: ignore[method-assign]

    def _rest(self) -> None:
        """Stop listening: modules are called as ever."""
        self._wanted = False
        self._pull()
        self._unpatch()

    def _outermost(self, who: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call from outside of all modules, with nothing of ours on within it."""
        if self._full:
            self._rest()
            return call(*args, **kwargs)
        began = time.perf_counter()
        with aside():
            learns = torch.is_grad_enabled() and (not isinstance(who, Module) or _learns(who))
        tape = self._pull() or (Tape(self._ratios) if learns else None)
        wanted, self._wanted, turn = self._wanted, False, self._turn
        self._unpatch()
        again = AsCalled(who) if tape is not None else None
        self._seconds += time.perf_counter() - began
        try:
            out = call(*args, **kwargs)
        finally:
            began = time.perf_counter()
            if self._stack is not None and wanted and turn == self._turn:  # else there was a step within
                self._wanted = True
                self._patch()
                if tape is not None:
                    self._push(tape)
        if isinstance(who, Module) and learns:
            self.models[id(who)] = weakref.ref(who)
        if isinstance(who, Module) and turn != self._turn:
            self._drives.add(who)
            self.models.pop(id(who), None)
        if tape is not None and again is not None and turn == self._turn:
            tape.resting = True
            inner = who.module if isinstance(who, DistributedDataParallel) else who  # which may be called twice a step
            with aside():
                tape.called(inner, args, kwargs, out, again)
            tape.resting = False
        self._seconds += time.perf_counter() - began
        return out

    # --- what the script calls --------------------------------------------------------------------------------------

    def _backward(
        self, own: Callable[..., Any], tensors: Any, grad_tensors: Any = None, *args: Any, **more: Any
    ) -> Any:
        if self.asleep or threading.get_ident() != self._thread or self._stack is None:
            return own(tensors, grad_tensors, *args, **more)
        began = time.perf_counter()
        tape, wanted, turn = self.tape, self._wanted, self._turn
        aside_by_torch = tape is not None and tape.handling  # in `Tensor.backward` torch has set the mode aside itself
        if not aside_by_torch:
            self._pull()
        self._wanted = False
        self._unpatch()
        self._seconds += time.perf_counter() - began
        try:
            result = own(tensors, grad_tensors, *args, **more)
        finally:
            began = time.perf_counter()
            if wanted and turn == self._turn:
                self._wanted = True
                self._patch()
        if turn != self._turn:  # optimisers stepped meanwhile, from hooks
            return result
        with aside():
            self._note_all(tensors, grad_tensors, tape)
        if tape is not None:
            if self._within:  # a closure's: the step itself is not to be heard
                tape.resting = True
            if not aside_by_torch:
                self._push(tape)
        self._seconds += time.perf_counter() - began
        return result

    def _note_all(self, tensors: Any, grad_tensors: Any, tape: Tape | None) -> None:
        roots = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        weights = [grad_tensors] if isinstance(grad_tensors, torch.Tensor) else list(grad_tensors or ())
        for i, root in enumerate(roots):
            self._note(root, weights[i] if i < len(weights) else None, tape)

    def _note(self, root: torch.Tensor, weight: torch.Tensor | None, tape: Tape | None) -> None:
        known = self._unscaled.get(id(root))
        scaled = known is not None and known[0]() is root
        loss = known[1] if known is not None and scaled else root.detach()
        self._heard.scaled |= scaled
        self._heard.losses.append(loss.detach() if weight is None or scaled else (loss * weight).sum())
        self._heard.within += bool(self._within)
        if not self._within:
            del self._heard.losses[:-UNCLAIMED]
        if tape is None or self._full:
            return
        if len(self._heard.programs) == UNCLAIMED:
            self._heard.programs, self._heard.why = [], f"more than {UNCLAIMED} backward calls came before a step"
            self._full = tape.resting = True
            return
        try:
            program = tape.program(root, None if scaled else weight)
        except ValueError as error:
            self._heard.why = self._heard.why or str(error)
        else:
            program.value = float(self._heard.losses[-1].sum())
            self._heard.programs.append(program)

    def _scale(self, own: Callable[..., Any], scaler: Any, outputs: Any) -> Any:
        tape = self._pull() if threading.get_ident() == self._thread else None
        try:
            scaled = own(scaler, outputs)
        finally:
            if tape is not None:
                self._push(tape)
        if isinstance(outputs, torch.Tensor) and scaled is not outputs:
            self._unscaled = {k: v for k, v in self._unscaled.items() if v[0]() is not None}
            with aside():
                self._unscaled[id(scaled)] = (weakref.ref(scaled), outputs.detach())
            if tape is not None:
                tape.same(outputs, scaled)
        return scaled

    @property
    def listened(self) -> float:
        """Seconds that it has taken since the last step."""
        return self._seconds

    def _compile(self, own: Callable[..., Any], model: Any = None, *args: Any, **kwargs: Any) -> Any:
        """A compiled function is called as a module is, with nothing of ours on within it."""
        if model is None:
            return lambda function: self._compile(own, function, *args, **kwargs)
        self.compiled = True
        patched = Module.__call__
        Module.__call__ = self._call  # type: ignore[method-assign] # what is compiled keeps a hold of it
        try:
            made = own(model, *args, **kwargs)
        finally:
            Module.__call__ = patched  # type: ignore[method-assign]
        if isinstance(model, Module) or not callable(made) or getattr(model, "__self__", None) is not None:
            return made

        @functools.wraps(made)
        def call(*given: Any, **named: Any) -> Any:
            if threading.get_ident() != self._thread or not self._wanted:
                return made(*given, **named)
            return self._outermost(made, made, given, named)

        return call

    # --- the optimiser ----------------------------------------------------------------------------------------------

    def _pre(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.asleep or torch.compiler.is_compiling():
            return
        began = time.perf_counter()
        if threading.get_ident() != self._thread:
            self.elsewhere = True
            return
        for i, other in enumerate(self._within):
            if other is optimizer:  # its last step raised
                del self._within[i:]
                break
        self._within.append(optimizer)
        if len(self._within) > 1:
            return
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:  # all that leads to this step was heard
            self._heard.tape = self._pull() or self._heard.tape
            self._rest()
        with aside():
            self.before(optimizer)
        self._seconds += time.perf_counter() - began

    def _post(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.asleep:
            if self._sleeper is not None and self._sleeper() is optimizer:
                self.asleep, self._others = self.asleep - 1, 0
            elif self._others < OTHERS:
                self._others += 1
            else:
                self.overslept = self.wake()
            return
        if torch.compiler.is_compiling() or threading.get_ident() != self._thread or not self._within:
            return
        began = time.perf_counter()
        self._within.pop()
        if self._within:
            return
        self._turn += 1
        self._heard.tape = self._pull() or self._heard.tape
        self._rest()
        heard, self._heard = self._heard, Heard()
        with aside():
            self.after(optimizer, heard)
        seconds, self._seconds = self._seconds, 0.0
        self.spent(seconds + time.perf_counter() - began)

    def _replace(self, where: Any, name: str, by: Callable[..., Any]) -> None:
        own = getattr(where, name)
        new = functools.wraps(own)(lambda *args, **kwargs: by(own, *args, **kwargs))
        setattr(where, name, new)
        assert self._stack is not None
        self._stack.callback(lambda: setattr(where, name, own))


class aside:  # noqa: N801  # a context, as torch.no_grad is
    """The script's own modes see nothing of what is done meanwhile. A device that it has set stays set.

    >>> with torch.overrides.BaseTorchFunctionMode(), aside():
    ...     torch._C._len_torch_function_stack()
    0
    """

    def __enter__(self) -> None:
        self.own = popped()
        push(mode for mode in self.own if isinstance(mode, DeviceContext))
        self.dispatched = _disable_current_modes() if torch._C._len_torch_dispatch_stack() else None
        if self.dispatched is not None:
            self.dispatched.__enter__()

    def __exit__(self, *raised: Any) -> None:
        if self.dispatched is not None:
            self.dispatched.__exit__(*raised)
        if not self.own:  # what was put on meanwhile is a tape
            return
        new = [mode for mode in popped() if isinstance(mode, Tape)]
        push(self.own)
        for tape in new:
            below(tape)


def popped() -> list[Any]:
    """Take all modes off torch's stack, the lowest first."""
    count = torch._C._len_torch_function_stack()
    return [torch._C._pop_torch_function_stack() for _ in range(count)][::-1] if count else []


def push(modes: Iterable[Any]) -> None:
    """Put modes on torch's stack, the lowest first."""
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)


def below(tape: Tape) -> None:
    """Put a tape below all modes but a device that is set for good, which torch itself wants to be the lowest."""
    modes, lowest = popped(), getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    push(mode for mode in modes if mode is lowest)
    push([tape, *(mode for mode in modes if mode is not lowest)])


def _learns(module: Module) -> bool:
    return any(p.requires_grad for p in module.parameters())

"""Looking without disturbing: what a probe may change by running a model, put back as it was, bit by bit."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = ["as_written", "attributes", "own_streams", "remember", "set_state", "state_of", "streams", "undisturbed"]

Stream = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
STREAMS = frozenset(Stream.__args__)
WRAPPERS = ("torch.nn.parallel", "torch.distributed")
"""Modules from there keep books of what other processes know, too: their plain attributes are left alone."""


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """What torch.compile made runs as it was written, without torch's warning of hooks on modules, which are ours.

    >>> w = torch.ones(1, requires_grad=True)
    >>> sine = torch.compile(torch.sin)
    >>> with as_written():
    ...     sine(w).grad_fn.name()
    'SinBackward0'
    """
    compiler: Any = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is None:
        yield
        return
    own = compiler.OptimizedModule.__call__
    compiler.OptimizedModule.__call__ = torch.nn.Module.__call__
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        compiler.OptimizedModule.__call__ = own


@contextlib.contextmanager
def streams(*generators: Stream) -> Iterator[None]:
    """Put back the random numbers of Python, NumPy, torch and its devices, and of `generators`, at the end.

    >>> with streams():
    ...     first = torch.rand(3)
    >>> bool((first == torch.rand(3)).all())
    True
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    own = [(generator, state_of(generator)) for generator in generators]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if devices:
            torch.cuda.set_rng_state_all(devices)
        for generator, state in own:
            set_state(generator, state)


@contextlib.contextmanager
def undisturbed(*things: Any) -> Iterator[None]:
    """Put back, at the end, what running models meanwhile may have changed.

    Of the `things`, modules, parameters, `torch.Generator`s or lists of them, and of every module that is called
    meanwhile, whether named or not: buffers (batch norm's statistics), `.grad`, train and eval modes, requires_grad,
    what plain attributes are, such as counters, and the state of the random generators among them. And the random
    numbers of Python, NumPy, torch and its devices. Parameters' values are not looked after: do not write to them.
    Autocast gives no casts from before, which may be of other values, and keeps none.

    Buffers are not copied back: modules get copies for the time, and then their own tensors, never written, so that a
    graph which holds these stays good (scripted modules are copied back). `.grad` is None for the time, so that a
    `backward` by the caller shows. What a module writes into an attribute in place, such as a list, is beyond reach.

    Raises TypeError for a thing that is none of these.

    >>> norm = torch.nn.BatchNorm1d(1)
    >>> with undisturbed():
    ...     _ = norm.eval()(torch.tensor([[1.0], [3.0]])), norm.train()(torch.tensor([[1.0], [3.0]]))
    >>> norm.running_mean.tolist(), norm.training  # 0.2 without `undisturbed`; the mode was changed before the call
    ([0.0], False)
    >>> with undisturbed(norm):
    ...     _ = norm.train()
    >>> norm.training
    False
    """
    kept, generators = Kept(), []
    for thing in _flat(things):
        if isinstance(thing, torch.nn.Module):
            kept.module(thing)
        elif isinstance(thing, torch.Tensor):
            kept.parameter(thing)
        else:
            generators.append(thing)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: kept.module(module))
    caching = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    _KEEPING.append(kept)
    try:
        with streams(*generators):
            yield
    finally:
        _KEEPING.remove(kept)
        torch.set_autocast_cache_enabled(caching)
        hook.remove()
        kept.put_back()


def remember(module: torch.nn.Module) -> None:
    """Let every `undisturbed` that is entered now look after a module, before anything is changed of it.

    >>> layer = torch.nn.Dropout(0.5)
    >>> with undisturbed():
    ...     remember(layer)
    ...     layer.p = 0.25
    >>> layer.p
    0.5
    """
    for kept in _KEEPING:
        kept.module(module)


@dataclass(eq=False)
class Kept:
    """What was, of modules and of parameters, by identity.

    >>> kept, w = Kept(), torch.nn.Parameter(torch.ones(1))
    >>> kept.parameter(w)
    >>> w.square().sum().backward()
    >>> kept.put_back()
    >>> w.grad is None
    True
    """

    modules: dict[int, torch.nn.Module] = field(default_factory=dict)
    modes: list[tuple[torch.nn.Module, bool]] = field(default_factory=list)
    own: list[tuple[torch.nn.Module, dict[str, Any]]] = field(default_factory=list)
    generators: dict[int, tuple[Stream, Any]] = field(default_factory=dict)
    buffers: list[tuple[torch.nn.Module, str, torch.Tensor]] = field(default_factory=list)
    copies: dict[int, torch.Tensor] = field(default_factory=dict)
    scripted: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    parameters: dict[int, tuple[torch.Tensor, torch.Tensor | None, bool]] = field(default_factory=dict)

    def module(self, module: torch.nn.Module) -> None:
        """Remember a module and those in it, each once, and lend them copies of their buffers."""
        if id(module) in self.modules:
            return
        for m in module.modules():
            if id(m) in self.modules:
                continue
            self.modules[id(m)] = m
            self.modes.append((m, m.training))
            for p in m.parameters(recurse=False):
                self.parameter(p)
            if isinstance(m, torch.jit.ScriptModule):
                self.scripted += [(b, b.detach().clone()) for b in m.buffers(recurse=False)]
                continue
            self.own.append((m, held := attributes(m)))
            for generator in own_streams(held):
                self.generators.setdefault(id(generator), (generator, state_of(generator)))
            for name, buffer in m._buffers.items():
                if buffer is not None:
                    self.buffers.append((m, name, buffer))
                    if id(buffer) not in self.copies:
                        self.copies[id(buffer)] = buffer.detach().clone()
                    m._buffers[name] = self.copies[id(buffer)]

    def parameter(self, p: torch.Tensor) -> None:
        """Remember a parameter's `.grad` and requires_grad, and set `.grad` to None."""
        if id(p) not in self.parameters and p.is_leaf:
            self.parameters[id(p)] = (p, p.grad, p.requires_grad)
            p.grad = None

    def put_back(self) -> None:
        for generator, state in self.generators.values():
            set_state(generator, state)
        for m, before in self.own:
            now = vars(m)
            now.update(before)
            if before and len(now) > len(before):
                for name in now.keys() - before.keys():
                    del now[name]
        for module, name, buffer in self.buffers:
            module._buffers[name] = buffer
        for buffer, value in self.scripted:
            if not torch.equal(buffer, value):
                buffer.data.copy_(value)
        for m, training in self.modes:
            if m.training != training:
                m.training = training
        for p, grad, requires_grad in self.parameters.values():
            p.grad = grad
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)


_KEEPING: list[Kept] = []


def attributes(module: torch.nn.Module) -> dict[str, Any]:
    """A module's own attributes; none of a scripted one, or of one that keeps books for several processes.

    >>> attributes(torch.nn.Dropout(0.25))["p"], attributes(torch.nn.DataParallel(torch.nn.Dropout()))
    (0.25, {})
    """
    apart = isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith(WRAPPERS)
    return {} if apart else dict(vars(module))


def own_streams(held: dict[str, Any]) -> list[Stream]:
    """The random generators among a module's attributes.

    >>> layer = torch.nn.Linear(1, 1)
    >>> layer.noise = random.Random(0)
    >>> own_streams(attributes(layer)) == [layer.noise]
    True
    """
    return [value for value in held.values() if type(value) in STREAMS]


def state_of(generator: Stream) -> Any:
    """What `set_state` takes to let a generator draw the same numbers again.

    >>> generator = np.random.default_rng(0)
    >>> state, first = state_of(generator), generator.random()
    >>> set_state(generator, state)
    >>> generator.random() == first
    True
    """
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def set_state(generator: Stream, state: Any) -> None:
    """Let a generator go on from a state.

    >>> one, other = random.Random(0), random.Random(1)
    >>> set_state(other, state_of(one))
    >>> one.random() == other.random()
    True
    """
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _flat(things: Iterable[Any]) -> Iterator[torch.nn.Module | torch.Tensor | torch.Generator]:
    for thing in things:
        if isinstance(thing, (torch.nn.Module, torch.Tensor, torch.Generator)):
            yield thing
        elif isinstance(thing, Iterable) and not isinstance(thing, (str, bytes, dict)):
            yield from _flat(thing)
        else:
            raise TypeError(
                f"undisturbed: give modules, parameters, generators or lists of them, not {type(thing).__name__}."
            )

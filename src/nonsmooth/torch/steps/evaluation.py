"""Gradients and Hessian products of a closure that disturb nothing, and sums over them in float64."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from nonsmooth.torch.selection import Listener, eagerly
from nonsmooth.torch.selection.graph import recomputes
from nonsmooth.torch.shards import need_whole
from nonsmooth.torch.undisturbed import streams, undisturbed

Closure = Callable[[], torch.Tensor]
Vector = torch.Tensor
"""All parameters' entries in one, in float64."""
Pieces = list[torch.Tensor]
"""One tensor a parameter, in its shape and of its dtype."""
CHUNK = 1 << 16
"""Sums over a piece turn so many entries at a time into float64."""


class SameRandomNumbers:
    """The random numbers as they were when this was made, for a time."""

    def __init__(self) -> None:
        self.python, self.numpy, self.torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        ready = torch.cuda.is_available() and torch.cuda.is_initialized()
        self.devices = torch.cuda.get_rng_state_all() if ready else []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with streams():
            random.setstate(self.python)
            np.random.set_state(self.numpy)
            torch.set_rng_state(self.torch)
            if self.devices:
                torch.cuda.set_rng_state_all(self.devices)
            yield


def named(who: str, params: Any) -> tuple[list[str], list[torch.Tensor]]:
    """The parameters that require a gradient, and their names: in the module, or their index."""
    pairs: Iterable[Any] = params.named_parameters() if isinstance(params, torch.nn.Module) else params
    if isinstance(pairs, torch.Tensor):
        pairs = [pairs]
    listed = [(p if isinstance(p, tuple) else (str(i), p)) for i, p in enumerate(pairs)]
    kept = [(str(name).replace("_orig_mod.", ""), p) for name, p in listed if p.requires_grad]
    if any(p.is_complex() for _, p in kept):
        raise ValueError(f"{who}: complex parameters cannot be measured; split them into real and imaginary ones.")
    if not kept or not all(p.is_leaf and p.is_floating_point() for _, p in kept):
        raise ValueError(f"{who}: params must hold at least one parameter, a leaf that requires a gradient.")
    need_whole(who, [p for _, p in kept])
    return [name for name, _ in kept], [p for _, p in kept]


def gradient_of(who: str, loss: torch.Tensor, ps: list[torch.Tensor], unused: bool = False) -> Pieces:
    """∇loss in tensors of its own; 0 for a loss without a graph, if `unused`."""
    if not loss.requires_grad:
        if unused:
            return [torch.zeros_like(p) for p in ps]
        raise ValueError(f"{who}: the loss has no graph; the closure must compute it from the parameters.")
    if loss.is_complex():
        raise ValueError(f"{who}: the loss is complex; return a real one, such as its .real or .abs().")
    if recomputes(loss):
        raise ValueError(
            f"{who}: reentrant activation checkpoints put their gradient into .grad alone; measure a closure "
            "without them, or with use_reentrant=False."
        )
    found = list(torch.autograd.grad(loss, ps, allow_unused=True))
    own = []
    for p in ps:
        s = found.pop(0)  # and is freed; it may share the memory of what the closure holds
        own.append(torch.zeros_like(p) if s is None else s.detach().to_dense().clone())
    return own


def gradient(who: str, closure: Closure, ps: list[torch.Tensor], again: SameRandomNumbers) -> Pieces:
    """The gradient of the closure itself, with no selection taken."""
    with undisturbed(ps), again(), eagerly():
        with Listener(who):
            loss = closure()
        return gradient_of(who, loss, ps)


@contextlib.contextmanager
def kept(ps: list[torch.Tensor], x: Sequence[torch.Tensor]) -> Iterator[None]:
    """Whatever is put into the parameters meanwhile, x at the end."""
    try:
        yield
    finally:
        put(ps, x)


def put(ps: list[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Write values into parameters, unseen by autograd."""
    for p, value in zip(ps, values, strict=True):
        p.data.copy_(value)


def parts(ps: list[torch.Tensor], a: Vector) -> list[torch.Tensor]:
    """A flat vector in the shapes of the parameters."""
    return [v.reshape(p.shape) for v, p in zip(torch.split(a, [p.numel() for p in ps]), ps, strict=True)]


def chunks(*tensors: torch.Tensor) -> Iterator[tuple[Vector, ...]]:
    """The entries of tensors of one shape, side by side in float64, `CHUNK` of them at a time."""
    rows = [t.detach().reshape(-1) for t in tensors]
    for i in range(0, len(rows[0]), CHUNK):
        yield tuple(row[i : i + CHUNK].to(torch.float64) for row in rows)


def finite(a: Sequence[torch.Tensor]) -> bool:
    """Whether all entries are."""
    return all(bool(c.isfinite().all()) for piece in a for (c,) in chunks(piece))


def flat(tensors: Sequence[torch.Tensor]) -> Vector:
    """All entries in one float64 vector."""
    return torch.cat([t.detach().to_dense().reshape(-1).to(torch.float64) for t in tensors])


def dot(a: Vector, b: Vector) -> float:
    """⟨a, b⟩."""
    return float(a @ b)


def norm(a: Vector) -> float:
    """‖a‖."""
    return float(torch.linalg.vector_norm(a))


def ratio(a: float, b: float) -> float:
    """a/b, where 0/0 is 0."""
    return (0.0 if a == 0 else math.copysign(math.inf, a) if not math.isnan(a) else math.nan) if b == 0 else a / b


def share(smooth: float, kink: float) -> float:
    """kink/(smooth + kink), where 0/0 is 0; nan where one is not finite."""
    total = smooth + kink
    return ratio(kink, total) if math.isfinite(total) else math.nan


def hessian_product(who: str, closure: Closure, ps: list[torch.Tensor], D: Vector) -> Vector:
    """H D, H the Hessian of the piece that is active at the present parameters."""
    with eagerly(), Listener(who):
        loss = closure()
        try:
            slopes = torch.autograd.grad(loss, ps, create_graph=True, allow_unused=True)
            inner = sum(((s * d.to(s)).sum() for s, d in zip(slopes, parts(ps, D), strict=True)
                         if s is not None and s.requires_grad), loss.new_zeros(()))  # fmt: skip
            found: Sequence[Any] = [None] * len(ps)
            if inner.requires_grad:
                found = torch.autograd.grad(inner, ps, allow_unused=True)
        except RuntimeError as error:
            raise ValueError(
                f"{who}: the path split needs second derivatives, and torch has none here "
                f"({str(error).splitlines()[0]}); leave path=True out."
            ) from error
    return flat([torch.zeros_like(p) if h is None else h for p, h in zip(ps, found, strict=True)])

"""A loss over the data of all processes, each of which holds a part: its value and derivatives, all ranks agreeing.

Under data parallelism each rank computes the loss of its own samples. `mean_over_ranks` makes of that a closure of the
weighted mean, whose derivatives of every order are reduced over the ranks, so that what is measured with it is as if
one process had all samples, and comes out with the same bits on every rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nonsmooth.torch.shards import need_whole

__all__ = ["MeanOverRanks", "Ranks", "mean_over_ranks"]

WHO = "mean_over_ranks"


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes of a group, by default all; one where torch.distributed is not initialised.

    >>> Ranks().mean([torch.tensor([2.0])], 3.0)[0].tolist(), Ranks().first((1, 0)), Ranks().every("a")
    ([2.0], (1, 0), ['a'])
    """

    group: Any = None

    @property
    def size(self) -> int:
        return dist.get_world_size(self.group) if dist.is_available() and dist.is_initialized() else 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that decides and writes: the first of the group."""
        return self.size == 1 or dist.get_rank(self.group) == 0

    def mean(self, tensors: Sequence[torch.Tensor], weight: float) -> list[torch.Tensor]:
        """Σ_r w_r t_r / Σ_r w_r of each tensor, in one reduction, in float32 at least."""
        dtype = torch.float32
        for t in tensors:
            dtype = torch.promote_types(dtype, t.dtype)
        sizes, device = [t.numel() for t in tensors], tensors[0].device
        flat = torch.empty(sum(sizes) + 1, dtype=dtype, device=device)
        for into, t in zip(flat.split([*sizes, 1]), [*tensors, torch.ones(1, device=device)], strict=True):
            into.copy_(t.detach().reshape(-1)).mul_(weight)
        if self.size > 1:
            dist.all_reduce(flat, group=self.group)
        flat.div_(flat[-1].clone())
        return [a.reshape(t.shape).to(t.dtype) for a, t in zip(flat.split([*sizes, 1]), tensors, strict=False)]

    def total(self, number: float, op: str = "SUM") -> float:
        """The sum of a number over the ranks, or with op its "MIN" or "MAX"."""
        if self.size == 1:
            return float(number)
        held = torch.tensor([number], dtype=torch.float64, device=self._device())
        dist.all_reduce(held, getattr(dist.ReduceOp, op), group=self.group)
        return float(held)

    def every(self, thing: Any) -> list[Any]:
        """What each rank has, in their order."""
        if self.size == 1:
            return [thing]
        found = [None] * self.size
        dist.all_gather_object(found, thing, group=self.group)
        return found

    def first(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """The first rank's integers, on every rank."""
        if self.size == 1:
            return numbers
        held = torch.tensor(numbers, dtype=torch.int64, device=self._device())
        dist.broadcast(held, group_src=0, group=self.group)
        return tuple(held.tolist())

    @contextlib.contextmanager
    def together(self, who: str) -> Iterator[None]:
        """Where the block, which must not wait for other ranks, fails on one rank it fails on all, with the reason.

        >>> with Ranks().together("probe"):
        ...     pass
        """
        error = None
        try:
            yield
        except Exception as met:
            error = met
        if self.size == 1 and error is not None:
            raise error
        if self.total(error is not None) == 0:
            return
        said = self.every(None if error is None else f"{type(error).__name__}: {error}")
        rank = next(i for i, words in enumerate(said) if words is not None)
        raise ValueError(f"{who}: on rank {rank}: {said[rank]}") from error

    def _device(self) -> torch.device:
        """Where the group's backend keeps what it sends."""
        kinds = dist.get_backend(self.group)
        return torch.device("cuda", torch.cuda.current_device()) if "nccl" in kinds else torch.device("cpu")


@dataclass(frozen=True, eq=False)
class MeanOverRanks:
    """What `mean_over_ranks` returns for a closure: called on every rank, the mean loss, with a graph.

    >>> w = torch.nn.Parameter(torch.tensor([3.0]))
    >>> MeanOverRanks(lambda: w.square().sum(), (w,))().item()
    9.0
    """

    closure: Callable[[], torch.Tensor]
    params: tuple[torch.Tensor, ...]
    weight: float = 1.0
    ranks: Ranks = Ranks()
    keep_graph: ClassVar[bool] = True
    """Between products, on all ranks: each by itself might find its graph small or large, and wait for the others."""

    def __call__(self) -> torch.Tensor:
        with self.ranks.together(WHO):
            loss = self.own()
        return _Mean.apply(self.ranks, self.weight, [loss], self.params, *self.params)[0]

    def own(self) -> torch.Tensor:
        """This rank's loss, of its own samples; raises ValueError where it cannot be averaged."""
        hook = torch.nn.modules.module.register_module_forward_pre_hook(_refuse_wrapper)
        try:
            loss = self.closure()
        finally:
            hook.remove()
        if not (isinstance(loss, torch.Tensor) and loss.numel() == 1):
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            raise ValueError(f"the closure must return the loss, a scalar tensor with its graph, not {what}.")
        known = {id(p) for p in self.params}
        for leaf in _leaves(loss):
            if id(leaf) not in known:
                raise ValueError(f"the loss depends on a parameter of shape {tuple(leaf.shape)} that is not in params.")
        return loss


def mean_over_ranks(closure: Any, params: Any, *, weight: float = 1.0, group: Any = None) -> Any:
    """A closure of Σ_r w_r ℓ_r / Σ_r w_r, ℓ_r being the loss of `closure` on rank r, for any measure of this package.

        kkt(optimizer, mean_over_ranks(closure, model, weight=len(x)))

    The loss, its gradient and its Hessian products are reduced over the ranks of `group` (default: all). Certificates,
    `sharpness`, `stability`, `trace`, `spectrum`, `holder`, `measure_step` and `Monitor` take it as they take a
    closure, and give every rank the same bits. What is measured is the mean over all samples, as one process with all
    of them would find it.

    closure: returns the mean loss of this rank's samples, from the model itself and not from its
        DistributedDataParallel wrapper (write `ddp.module(x)`); or `over(loader, loss)` with as many batches on every
        rank, each reduced on its own.
    params: the model, or all parameters that the loss depends on, in the same order and with the same bits on every
        rank, as DistributedDataParallel keeps them.
    weight: how many samples this rank has, where they are not as many on all; batches of `over` have their own.

    Every rank must call it, and each measure with it, with the same arguments; an error on one is raised on all.
    A gradient or product costs one all-reduce of its size, a batch. Buffers are each rank's own: batch norm in train
    mode sees this rank's batch alone. Where torch.distributed is not initialised there is one rank. Raises ValueError
    for sharded parameters (measure a `replica`), for a weight that is not above 0, and, on all ranks, where numbers of
    batches differ.

    >>> w = torch.nn.Parameter(torch.tensor([3.0]))
    >>> loss = mean_over_ranks(lambda: w.square().sum(), [w])
    >>> torch.autograd.grad(loss(), w)[0].item()
    6.0
    """
    held = tuple(params.parameters() if isinstance(params, torch.nn.Module) else params)
    held = tuple(p for p in held if p.requires_grad)
    need_whole(WHO, held)
    if not held:
        raise ValueError(f"{WHO}: params must hold at least one parameter that requires a gradient.")
    if not weight > 0:
        raise ValueError(f"{WHO}: weight is the number of this rank's samples, above 0, not {weight!r}.")
    ranks = Ranks(group)
    if not hasattr(closure, "parts"):
        if not callable(closure):
            kind = type(closure).__name__
            raise TypeError(
                f"{WHO}: closure must be a function that returns the loss or over(loader, loss), not {kind}."
            )
        return MeanOverRanks(closure, held, float(weight), ranks)
    if ranks.total(closure.count, "MIN") != ranks.total(closure.count, "MAX"):
        raise ValueError(f"{WHO}: the ranks have different numbers of batches, {ranks.every(closure.count)}.")

    def parts() -> Iterator[tuple[float, MeanOverRanks]]:
        for own, part in closure.parts():
            yield ranks.total(own), MeanOverRanks(part, held, own, ranks)

    return replace(closure, parts=parts, keep=bool(closure.keep))


class _Mean(torch.autograd.Function):
    """The mean over ranks of tensors that each computed from `inputs`; its derivatives are the means of theirs.

    `own` are the tensors, as this rank computed them from `sources`, which are the inputs or stand for them. Their
    graph is walked here, whenever a derivative is asked for, and never by the walk that asks.
    """

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, weight: float, own: list[torch.Tensor], sources: Any, *inputs: Any) -> Any:
        ctx.ranks, ctx.weight, ctx.own, ctx.sources = ranks, weight, own, tuple(sources)
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return tuple(ranks.mean(own, weight))

    @staticmethod
    def backward(ctx: Any, *given: Any) -> Any:
        inputs, again = ctx.saved_tensors, torch.is_grad_enabled()
        followed = [a for a in given if a is not None and a.requires_grad and again]
        with ctx.ranks.together(WHO):
            stands = {id(a): a.detach().requires_grad_() for a in followed}
            live = [(y, stands.get(id(a), a)) for y, a in zip(ctx.own, given, strict=True)
                    if a is not None and y.requires_grad]  # fmt: skip
            found: Sequence[Any] = [None] * len(inputs)
            if live:
                ends, v = zip(*live, strict=True)
                found = torch.autograd.grad(
                    ends, ctx.sources, v, retain_graph=True, create_graph=again, allow_unused=True
                )
            own = [torch.zeros_like(p) if g is None else g for p, g in zip(inputs, found, strict=True)]
        if again:
            sources = (*ctx.sources, *stands.values())
            return (None, None, None, None, *_Mean.apply(ctx.ranks, ctx.weight, own, sources, *inputs, *followed))
        return (None, None, None, None, *ctx.ranks.mean(own, ctx.weight))


def _refuse_wrapper(module: torch.nn.Module, inputs: Any) -> None:
    if isinstance(module, DistributedDataParallel):
        raise ValueError("the closure calls a DistributedDataParallel, which waits for a backward; call its .module.")


def _leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    """The leaves of a loss's graph."""
    waiting: list[Any] = [loss.grad_fn]
    seen, found = set(waiting), [] if loss.grad_fn is not None or not loss.requires_grad else [loss]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        leaf = getattr(node, "variable", None)
        found += [leaf] if leaf is not None else []
        fresh = {n for n, _ in node.next_functions} - seen
        seen |= fresh
        waiting += fresh
    return found

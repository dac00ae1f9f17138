"""Dataflow: what depends on what in a network, followed through each operation of a forward pass, entry by entry.

NaN marks an entry that depends on the source. A convolution or a linear layer passes the mark on where the weight on it
is not zero, a BatchNorm where its scale is not zero, arithmetic as NaN does; an operation that is not known, a
comparison, or a rounding to integers marks all that it puts out. What is left without a mark does not depend on it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Dataflow"]

CONV = nn.modules.conv._ConvNd
NORM = nn.modules.batchnorm._BatchNorm

VIEWS = {"view", "_unsafe_view", "_reshape_alias", "alias", "detach", "t", "transpose", "permute", "expand", "squeeze"}
PARTS = {"unsqueeze", "slice", "select", "split", "split_with_sizes", "unbind", "cat", "stack", "pixel_shuffle"}
COPIES = {"clone", "copy_", "_to_copy", "lift_fresh", "constant_pad_nd", "reflection_pad2d", "replication_pad2d"}
MEANS = {"mean", "sum", "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d"}
AS_NAN = VIEWS | PARTS | COPIES | MEANS | {"max_pool2d_with_indices", "max_pool3d_with_indices", "upsample_nearest2d"}
"""Operations that copy entries, or sum or compare them, in which NaN spreads as far as the dependence does."""

ENTRYWISE = {"_prelu_kernel", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_"}
"""Entrywise operations that torch does not tag as such."""


class Dataflow(TorchDispatchMode):
    """One forward pass of `model`, without gradients, in the mode that it is in.

    Without `poison` the source is all inputs: an entry without a mark is a constant. With `poison`, channels by layer,
    the source is what these layers put out in these channels, and linear layers and convolutions that are not grouped
    do not pass it on: what they read is the end of a channel.

    seen: what each convolution and linear layer read last, NaN where marked; calls: how often each was called;
    escaped: whether an output of the model is marked. Raises ValueError where the forward pass branches on a mark.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]])), model[0].bias.data.fill_(3.0)
    >>> Dataflow(model, (torch.zeros(1, 2),)).seen[model[2]].tolist()
    [[nan, 3.0]]
    """

    def __init__(self, model: nn.Module, inputs: Any, poison: Mapping[nn.Module, Sequence[int]] | None = None) -> None:
        super().__init__()
        self.poison = poison
        self.seen: dict[nn.Module, torch.Tensor] = {}
        self.calls: Counter[nn.Module] = Counter()
        self.marked: dict[int, torch.Tensor] = {}  # whole tensors that cannot hold NaN
        self.quiet = False
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it runs a transformer's layers without calling them
        try:
            with torch.no_grad(), _instead(model, self._forward):
                source = tree_map(self._source, inputs)
                with self:
                    outputs = model(*source)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        self.escaped = any(self._is_marked(t) for t in tree_leaves(outputs) if isinstance(t, torch.Tensor))

    def _source(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        leaf = leaf.clone()
        return leaf if self.poison is not None else self._mark(leaf)

    def _mark(self, t: torch.Tensor) -> torch.Tensor:
        if t.is_floating_point() or t.is_complex():
            return t.fill_(torch.nan)
        self.marked[id(t)] = t
        return t

    def _is_marked(self, t: torch.Tensor) -> bool:
        return id(t) in self.marked or bool(t.isnan().any())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.quiet:
            return func(*args, **kwargs)
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        whole = any(id(t) in self.marked for t in read)
        marks = [t.isnan() for t in read if t.is_floating_point() or t.is_complex()]
        if not whole and not any(bool(m.any()) for m in marks):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        null = [t == 0 for t in read if self.poison is None and name in ("mul", "mul_")]  # 0 times anything finite
        out = func(*args, **kwargs)
        if name in ("_local_scalar_dense", "equal", "is_nonzero"):
            raise ValueError("the forward pass looks at the value of an activation, which may be another next time")
        for t in (leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)):
            if whole or not (t.is_floating_point() or t.is_complex()):
                self._mark(t)
            elif torch.Tag.pointwise in func.tags or name in ENTRYWISE:
                for m in marks:
                    t.masked_fill_(m, torch.nan)
                for zero in null:
                    t.masked_fill_(zero, 0.0)
            elif name not in AS_NAN:
                self._mark(t)
        return out

    def _forward(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The module's own forward on what is not marked, and what is marked by the weights."""

        def marking(x: torch.Tensor, *rest: Any) -> torch.Tensor:
            whole, self.quiet = id(x) in self.marked, True
            try:
                self.calls[module] += 1
                mark = x.isnan()
                out = forward(x.masked_fill(mark, 0.0), *rest)
                if whole:
                    return self._mark(out)
                if isinstance(module, NORM):
                    return out.masked_fill(_after_norm(module, mark), torch.nan)
                self.seen[module] = x.clone()
                if self.poison is None or is_grouped(module):
                    out = out.masked_fill(_after_weights(module, mark, x.dtype, rest), torch.nan)
                if self.poison is not None and module in self.poison:
                    place = torch.tensor(self.poison[module], device=out.device)
                    out = out.index_fill(channel_axis(module), place, torch.nan)
                return out
            finally:
                self.quiet = False

        return marking


def is_plain(module: nn.Module) -> bool:
    """A convolution, linear layer or BatchNorm with torch's own forward, and its weight a parameter of its own."""
    own = type(module).forward.__module__.startswith("torch.nn.") and "forward" not in module.__dict__
    return own and isinstance(module, (CONV, nn.Linear, NORM)) and "weight" in module._parameters


def channel_axis(module: nn.Module) -> int:
    """The axis of the channels of what a convolution or a linear layer reads and puts out, from the end."""
    return -1 - len(module.kernel_size) if isinstance(module, CONV) else -1


def is_depthwise(module: nn.Module) -> bool:
    """One filter a channel, as Torch-Pruning takes it."""
    return isinstance(module, CONV) and module.groups == module.in_channels == module.out_channels > 1


def is_grouped(module: nn.Module) -> bool:
    return isinstance(module, CONV) and module.groups > 1


def _after_norm(module: Any, mark: torch.Tensor) -> torch.Tensor:
    if module.running_mean is None:  # statistics of the batch: a channel is marked whole
        mark = mark.any(dim=tuple(i for i in range(mark.ndim) if i != 1), keepdim=True).expand_as(mark)
    if module.weight is None:
        return mark
    return mark & (module.weight != 0).reshape(-1, *(1 for _ in range(mark.ndim - 2)))


def _after_weights(module: Any, mark: torch.Tensor, dtype: torch.dtype, rest: Sequence[Any]) -> torch.Tensor:
    """Whether an entry is reached: Σ 1[W ≠ 0] mark > 0."""
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)
    twin._parameters = {"weight": nn.Parameter((module.weight != 0).to(dtype), requires_grad=False), "bias": None}
    return type(module).forward(twin, mark.to(dtype), *rest) > 0.5


@contextmanager
def _instead(
    model: nn.Module, forward: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Another forward for each plain layer."""
    changed = [module for module in model.modules() if is_plain(module)]
    for module in changed:
        module.__dict__["forward"] = forward(module, module.forward)
    try:
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward")

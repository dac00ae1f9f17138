"""Parameters that are spread over processes (DTensor, as FSDP2's `fully_shard` makes them), and what lies across.

A map that works coordinate by coordinate acts on each process's own part, in place; a sum over coordinates that several
processes hold is reduced over them, so that all have the same bits. All of this is collective: each process must call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["counts", "crossing", "is_shard", "local", "need_whole", "part_of", "summed", "whole"]

Reduce = Callable[..., list[torch.Tensor]]


def is_shard(t: Any) -> bool:
    """Whether t is a DTensor; without importing what makes them.

    >>> is_shard(torch.ones(2))
    False
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Any) -> Any:
    """This process's own part of a DTensor, sharing its memory; anything else as it is.

    >>> local(3.0)
    3.0
    """
    if not is_shard(t):
        return t
    with torch.no_grad():
        return t.to_local()


def whole(t: torch.Tensor) -> torch.Tensor:
    """All of a DTensor, a copy on each process; any other tensor as it is.

    >>> whole(torch.ones(2)).tolist()
    [1.0, 1.0]
    """
    with torch.no_grad():
        return t.full_tensor() if is_shard(t) else t  # type: ignore[attr-defined]


def part_of(full: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """The part of a tensor, which every process has in full, that lies where p's own part does.

    >>> part_of(torch.ones(2), torch.zeros(2)).tolist()
    [1.0, 1.0]
    """
    if not is_shard(p):
        return full
    from torch.distributed.tensor import distribute_tensor

    where = {"device_mesh": p.device_mesh, "placements": p.placements}  # type: ignore[attr-defined]
    return local(distribute_tensor(full, **where, src_data_rank=None))


def need_whole(who: str, params: Iterable[Any]) -> None:
    """Raise ValueError where a parameter is a DTensor: its gradient is not that of a closure on one process.

    >>> need_whole("sharpness", [torch.ones(2)])
    """
    if any(is_shard(p) for p in params):
        raise ValueError(
            f"{who}: the parameters are sharded (DTensor); measure an unsharded copy, which "
            "nonsmooth.torch.replica(model, into, optimizer) fills."
        )


def crossing(p: torch.Tensor, dim: int, along: bool = False) -> list[Any] | None:
    """The process groups over which an index of dimension `dim` is cut into parts, or, with `along`, that dimension.

    None where that cannot be told of how p lies.

    >>> crossing(torch.ones(2, 2), 0)
    []
    """
    if not is_shard(p):
        return []
    mesh, placements = p.device_mesh, p.placements  # type: ignore[attr-defined]
    if not all(place.is_replicate() or type(place).__name__ == "Shard" for place in placements):
        return None
    cut = [i for i, place in enumerate(placements) if place.is_shard() and (place.dim == dim % p.ndim) == along]
    return [mesh.get_group(i) for i in cut if mesh.size(i) > 1]


def summed(groups: Sequence[Any]) -> Reduce:
    """A function of tensors that sums each over the process groups, with op="MAX" takes the maxima, in one reduction.

    >>> [t.item() for t in summed([])(torch.tensor(1.0), torch.tensor(2.0))]
    [1.0, 2.0]
    """

    def reduce(*tensors: torch.Tensor, op: str = "SUM") -> list[torch.Tensor]:
        if not groups:
            return list(tensors)
        flat = torch.cat([t.reshape(-1) for t in tensors])
        for group in groups:
            dist.all_reduce(flat, getattr(dist.ReduceOp, op), group=group)
        sizes = [t.numel() for t in tensors]
        return [a.reshape(t.shape) for a, t in zip(flat.split(sizes), tensors, strict=True)]

    return reduce


def counts(params: Sequence[torch.Tensor], own: Sequence[int]) -> list[int]:
    """Numbers that each process counted in its own part of each parameter, summed over the parts.

    >>> counts([torch.ones(2)], [2])
    [2]
    """
    found = list(own)
    meshes = {p.device_mesh: p.device for p in params if is_shard(p)}  # type: ignore[attr-defined]
    for mesh, device in meshes.items():
        held = [i for i, p in enumerate(params) if is_shard(p) and p.device_mesh == mesh]  # type: ignore[attr-defined]
        vector = torch.tensor([found[i] for i in held], dtype=torch.int64, device=device)
        for axis in range(mesh.ndim):
            cut = torch.tensor([not params[i].placements[axis].is_replicate() for i in held], device=device)  # type: ignore[attr-defined]
            if mesh.size(axis) > 1 and bool(cut.any()):
                total = vector.clone()
                dist.all_reduce(total, group=mesh.get_group(axis))
                vector = torch.where(cut, total, vector)
        for i, n in zip(held, vector.tolist(), strict=True):
            found[i] = n
    return found

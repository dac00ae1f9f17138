"""The prox of a norm of groups along a dimension, in place, a block of groups at a time.

It is the penalty's own prox (`nonsmooth.penalties.groups`, which says what is solved), with one number a group where
that has one a coordinate, temporaries that stay in the cache, and Newton's method stopped once it stands still.
Where groups lie across processes, sums and maxima over a group are reduced over them, and nothing else is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nonsmooth.penalties import GroupLasso, Penalty, SparseGroupLasso
from nonsmooth.torch.effective import Reading
from nonsmooth.torch.shards import Reduce, summed

__all__ = ["group_prox_"]

BLOCK = 1 << 18
"""Numbers that are worked on at a time on a CPU."""

NEWTON_STEPS = 20
"""As many as the penalty's own prox takes; a few are enough where the steps are of one size."""


def group_prox_(
    p: torch.Tensor, penalty: Penalty, reading: Reading, size: int | None = None, across: Sequence[Any] = ()
) -> bool:
    """p ← prox_{τg}(p) in place for groups along a dimension; False, with p unchanged, where that is not the case.

    p may be one process's part of a parameter whose groups, of `size` numbers each, lie across the process groups
    `across`; a group with a number that is not finite is then NaN as a whole.

    >>> from nonsmooth.torch.effective import identity
    >>> w = torch.tensor([[3.0, 4.0], [0.6, 0.0]])
    >>> group_prox_(w, GroupLasso(1.0), Reading(identity, (1.0,)))
    True
    >>> w
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    if type(penalty) not in (GroupLasso, SparseGroupLasso) or penalty.groups is not None:  # type: ignore[attr-defined]
        return False
    if p.ndim < 2 or any(t.shape != p.shape for t in reading.tensors):
        return False
    if not across and (p.numel() == 0 or not bool(p.isfinite().all())):
        return False
    dim = penalty.dim  # type: ignore[attr-defined]
    size = p.numel() // p.shape[dim] if size is None else size
    rows = max(1, BLOCK // size) if p.device.type == "cpu" else p.shape[dim]
    blocks = [t.movedim(dim, 0).split(rows) for t in (p, *reading.tensors)]
    total = summed(across) if across else None
    for w, *tensors in zip(*blocks, strict=True):
        _block_(w, penalty, Reading(reading.formula, reading.numbers, tuple(tensors)), size, total)
    return True


def _block_(w: torch.Tensor, penalty: Penalty, reading: Reading, size: int, total: Reduce | None) -> None:
    x, lam = w.to(torch.promote_types(w.dtype, torch.float32)), penalty.lam  # type: ignore[attr-defined]
    tau = reading.value()
    if isinstance(penalty, SparseGroupLasso):
        bound = tau * lam
        x, lam = x - torch.clamp(x, -bound, bound), penalty.group_lam
    strength = lam * size**0.5 if penalty.scale_by_size else lam  # type: ignore[attr-defined]
    alike = not (isinstance(tau, torch.Tensor) and tau.ndim)
    if alike:
        norm = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
        norm = norm if total is None else total(norm.square())[0].sqrt_()
        kept = (1 - tau * strength / norm).nan_to_num_(1.0).clamp_(min=0)  # all, where the norm is 0 or overflows
        w.copy_(x * (kept if total is None else kept.masked_fill_(~norm.isfinite(), torch.nan)))
        return
    threshold = tau * strength
    whole = (s := _norm(x, threshold, total or summed(()))) + threshold
    w.copy_(torch.where(threshold == 0, x, x * s / whole) if bool((threshold == 0).any()) else x.mul(s).div_(whole))


def _norm(x: torch.Tensor, threshold: torch.Tensor, total: Reduce) -> torch.Tensor:
    """s = ‖p‖ of each group, by Newton's method from below on 1/‖x/(s + threshold)‖ = 1; 0 where the group dies."""
    others = tuple(range(1, x.ndim))
    squares = x * x
    square, (most,) = total(squares.sum(others, keepdim=True))[0], total(_largest(threshold, others), op="MAX")
    s = (square.sqrt_() - most).clamp_(min=0)
    for _ in range(NEWTON_STEPS):
        inverse = (s + threshold).reciprocal_().nan_to_num_(nan=0.0, posinf=0.0)
        q = (squares * inverse).mul_(inverse)
        square, cube = total(q.sum(others, keepdim=True), q.mul_(inverse).sum(others, keepdim=True))
        norm = square.sqrt_()
        rise = (norm * norm * (norm - 1) / cube).nan_to_num_(0.0).clamp_(min=0)
        s = s + rise
        if bool((rise <= 2 * torch.finfo(s.dtype).eps * s).all()):
            break
    return s


def _largest(threshold: torch.Tensor, others: tuple[int, ...]) -> torch.Tensor:
    """The largest of each group; 0 of an empty part."""
    return threshold.amax(others, keepdim=True) if threshold.numel() else threshold.sum(others, keepdim=True)

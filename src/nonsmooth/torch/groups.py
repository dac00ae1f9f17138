"""The prox of a norm of groups along a dimension, in place, a block of groups at a time.

It is the penalty's own prox (`nonsmooth.penalties.groups`, which says what is solved), with one number a group where
that has one a coordinate, temporaries that stay in the cache, and Newton's method stopped once it stands still.
"""

from __future__ import annotations

import torch

from nonsmooth.penalties import GroupLasso, Penalty, SparseGroupLasso
from nonsmooth.torch.effective import Reading

__all__ = ["group_prox_"]

BLOCK = 1 << 18
"""Numbers that are worked on at a time on a CPU."""

NEWTON_STEPS = 20
"""As many as the penalty's own prox takes; a few are enough where the steps are of one size."""


def group_prox_(p: torch.Tensor, penalty: Penalty, reading: Reading) -> bool:
    """p ← prox_{τg}(p) in place for groups along a dimension; False, with p unchanged, where that is not the case.

    >>> from nonsmooth.torch.effective import identity
    >>> w = torch.tensor([[3.0, 4.0], [0.6, 0.0]])
    >>> group_prox_(w, GroupLasso(1.0), Reading(identity, (1.0,)))
    True
    >>> w
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    if type(penalty) not in (GroupLasso, SparseGroupLasso) or penalty.groups is not None or p.numel() == 0:  # type: ignore[attr-defined]
        return False
    if p.ndim < 2 or any(t.shape != p.shape for t in reading.tensors) or not bool(p.isfinite().all()):
        return False
    dim, size = penalty.dim, p.numel() // p.shape[penalty.dim]  # type: ignore[attr-defined]
    rows = max(1, BLOCK // size) if p.device.type == "cpu" else p.shape[dim]
    blocks = [t.movedim(dim, 0).split(rows) for t in (p, *reading.tensors)]
    for w, *tensors in zip(*blocks, strict=True):
        _block_(w, penalty, Reading(reading.formula, reading.numbers, tuple(tensors)), size)
    return True


def _block_(w: torch.Tensor, penalty: Penalty, reading: Reading, size: int) -> None:
    x, lam = w.to(torch.promote_types(w.dtype, torch.float32)), penalty.lam  # type: ignore[attr-defined]
    tau = reading.value()
    if isinstance(penalty, SparseGroupLasso):
        bound = tau * lam
        x, lam = x - torch.clamp(x, -bound, bound), penalty.group_lam
    strength = lam * size**0.5 if penalty.scale_by_size else lam  # type: ignore[attr-defined]
    alike = not (isinstance(tau, torch.Tensor) and tau.ndim)
    if alike:
        norm = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
        w.copy_(x * ((norm - tau * strength).clamp_(min=0) / norm).nan_to_num_(0.0))
        return
    threshold = tau * strength
    whole = (s := _norm(x, threshold)) + threshold
    w.copy_(torch.where(threshold == 0, x, x * s / whole) if bool((threshold == 0).any()) else x.mul(s).div_(whole))


def _norm(x: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """s = ‖p‖ of each group, by Newton's method from below on 1/‖x/(s + threshold)‖ = 1; 0 where the group dies."""
    others = tuple(range(1, x.ndim))
    squares = x * x
    s = (squares.sum(others, keepdim=True).sqrt_() - threshold.amax(others, keepdim=True)).clamp_(min=0)
    for _ in range(NEWTON_STEPS):
        inverse = (s + threshold).reciprocal_().nan_to_num_(nan=0.0, posinf=0.0)
        q = (squares * inverse).mul_(inverse)
        norm = q.sum(others, keepdim=True).sqrt_()
        rise = (norm * norm * (norm - 1) / q.mul_(inverse).sum(others, keepdim=True)).nan_to_num_(0.0).clamp_(min=0)
        s = s + rise
        if bool((rise <= 2 * torch.finfo(s.dtype).eps * s).all()):
            break
    return s

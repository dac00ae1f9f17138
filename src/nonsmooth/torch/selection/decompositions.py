"""Losses and norms taken apart into operations that have rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from nonsmooth.torch.selection.extremes import dimensions

__all__ = ["DECOMPOSED"]


def _reduce(x: torch.Tensor, reduction: str) -> torch.Tensor:
    return x.mean() if reduction == "mean" else x.sum() if reduction == "sum" else x


def _l1(input: Any, target: Any, *, reduction: str = "mean") -> torch.Tensor:
    return _reduce((input - target).abs(), reduction)


def _smooth_l1(input: Any, target: Any, *, reduction: str = "mean", beta: float = 1.0) -> Any:
    return _l1(input, target, reduction=reduction) if beta == 0 else NotImplemented


def _hinge_embedding(input: Any, target: Any, margin: float = 1.0, *, reduction: str = "mean") -> torch.Tensor:
    far = torch.where(target == -1, (margin - input).clamp_min(0), 0.0)
    return _reduce(far + torch.where(target == 1, input, 0.0), reduction)


def _margin_ranking(x: Any, y: Any, target: Any, margin: float = 0.0, *, reduction: str = "mean") -> torch.Tensor:
    return _reduce((-target * (x - y) + margin).clamp_min(0), reduction)


def _multi_margin(
    input: Any, target: Any, p: int = 1, margin: float = 1.0, *, weight: Any = None, reduction: str = "mean"
) -> Any:
    if input.ndim != 2 or weight is not None or p not in (1, 2):
        return NotImplemented
    own = target.unsqueeze(1)
    z = torch.relu(margin - input.gather(1, own) + input)
    z = z if p == 1 else z**2
    return _reduce(z.scatter(1, own, 0.0).sum(1) / input.shape[1], reduction)


def _triplet(
    anchor: Any, positive: Any, negative: Any, margin: float = 1.0, p: float = 2, eps: float = 1e-6,
    swap: bool = False, *, reduction: str = "mean",
) -> torch.Tensor:  # fmt: skip
    far = functional.pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = torch.minimum(far, functional.pairwise_distance(positive, negative, p, eps))
    return _reduce((margin + functional.pairwise_distance(anchor, positive, p, eps) - far).clamp_min(0), reduction)


def _pairwise(x: Any, y: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> Any:
    return torch.linalg.vector_norm(x - y + eps, p, -1, keepdim) if p in (1, math.inf) else NotImplemented


def _vector_norm(x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False) -> Any:
    if ord == 1:
        return x.abs().sum(dimensions(x, dim), keepdim)
    return x.abs().amax(dimensions(x, dim), keepdim) if ord == math.inf else NotImplemented


def _norm(input: Any, p: Any = "fro", dim: Any = None, keepdim: bool = False, *, ord: Any = None) -> Any:
    return NotImplemented if isinstance(p, str) else _vector_norm(input, p, dim, keepdim)


def _linalg_norm(x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False) -> Any:
    of_vectors = isinstance(dim, int) or (dim is None and x.ndim == 1)
    return _vector_norm(x, ord, dim, keepdim) if of_vectors else NotImplemented


def _normalize(input: Any, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> torch.Tensor:
    return input / torch.linalg.vector_norm(input, p, dim, True).clamp_min(eps).expand_as(input)


def _dist(x: Any, y: Any, p: float = 2) -> Any:
    return _vector_norm(x - y, p)


DECOMPOSED: dict[str, Callable[..., Any]] = {
    "l1_loss": _l1,
    "smooth_l1_loss": _smooth_l1,
    "hinge_embedding_loss": _hinge_embedding,
    "margin_ranking_loss": _margin_ranking,
    "multi_margin_loss": _multi_margin,
    "triplet_margin_loss": _triplet,
    "pairwise_distance": _pairwise,
    "linalg_vector_norm": _vector_norm,
    "linalg_norm": _linalg_norm,
    "normalize": _normalize,
    "norm": _norm,
    "dist": _dist,
}
"""By name, the same function in operations that have rules; NotImplemented where it has no kink or none is known."""

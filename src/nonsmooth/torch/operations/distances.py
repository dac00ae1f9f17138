"""Norms, distances and losses: where a vector, a residual or a margin is zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from nonsmooth.torch.operations.kink import (
    C0,
    C1,
    DISCONTINUOUS,
    Call,
    Entry,
    Kinks,
    Probe,
    at_values,
    enter,
    one,
    pair,
    points,
    somewhere,
    uncounted,
)
from nonsmooth.torch.operations.ties import lines, won

DISTANCES: dict[str, Entry] = {}


def _norm(
    x: torch.Tensor, p: Any, dim: Any, rows: torch.Tensor | None = None, call: Call | None = None
) -> Kinks | None:
    """‖x‖_p of the vectors along `dim`; `rows` are these, if they are not those of x."""
    rows = lines(x, dim) if rows is None else rows
    swap = Probe("0", (torch.zeros_like(pair(x, dim)) if x.ndim else one(x, 0.0),), (x,), call)
    zeros = lambda: int((rows == 0).sum())  # noqa: E731
    if p == 0:
        return Kinks(DISCONTINUOUS, 1, "x = 0", x.numel(), zeros, (swap,))
    if p is None or p == "fro" or (isinstance(p, int | float) and 1 < p < math.inf):
        whole = lambda: int((rows == 0).all(-1).sum()) * rows.shape[-1]  # noqa: E731
        return Kinks(C0, 1, "all of a vector = 0", x.numel(), whole, (swap,))
    if p == "nuc":
        return uncounted(C0, "equal or zero singular values", x)
    if abs(p) == math.inf:
        size = rows.abs()
        best = size.amax(-1) if p > 0 else size.amin(-1)
        tied = lambda: int((won(size, best) | ((size == 0) & (best == 0)[..., None])).sum())  # noqa: E731
        return Kinks(C0, 3, "ties of |x|", x.numel(), tied, (swap,))
    return Kinks(C0, 1, "x = 0", x.numel(), zeros, (swap,))


@enter(DISTANCES, "norm", "vector_norm", "frobenius_norm")
def _vector_norm(input: torch.Tensor, p: Any = 2, dim: Any = None, *_: Any, ord: Any = None, **__: Any) -> Kinks | None:
    p = p if ord is None else ord
    return _norm(input, p, dim)


@enter(DISTANCES, "linalg_norm")
def _linalg_norm(input: torch.Tensor, ord: Any = None, dim: Any = None, *_: Any, **__: Any) -> Kinks | None:
    """Of a matrix, when `ord` is given with two axes, or with none of a tensor that has two."""
    axes = input.ndim if dim is None else len(dim) if isinstance(dim, tuple | list) else 1
    if ord not in (None, "fro") and axes == 2:
        return uncounted(C0, "equal or zero singular values", input)
    return _norm(input, ord, dim)


@enter(DISTANCES, "normalize")
def _normalize(input: torch.Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Kinks:
    """x/max(‖x‖, ε)."""
    on = lambda: int((torch.linalg.vector_norm(lines(input, dim), p, -1) == eps).sum()) * input.shape[dim]  # noqa: E731
    at = pair(input, dim)
    at[(0,) * at.ndim] = eps
    return Kinks(C0, 2, f"‖x‖ = {eps:g}", input.numel(), on, (Probe(f"‖x‖ = {eps:g}", (at,), (input,)),))


@enter(DISTANCES, "std", "std_mean")
def _std(input: torch.Tensor, dim: Any = None, *_: Any, **__: Any) -> Kinks | None:
    """The norm of what is left when the mean is taken away."""
    rows = lines(input, None if isinstance(dim, bool) else dim)
    return _norm(input, 2, None if isinstance(dim, bool) else dim, rows - rows[..., :1], None) if input.ndim else None


@enter(DISTANCES, "hypot")
def _hypot(input: torch.Tensor, other: torch.Tensor) -> Kinks:
    probe = Probe("0", (one(input, 0.0), one(other, 0.0)), (input, other))
    return Kinks(C0, 1, "x = y = 0", input.numel(), lambda: int(((input == 0) & (other == 0)).sum()), (probe,))


@enter(DISTANCES, "dist")
def _dist(input: torch.Tensor, other: torch.Tensor, p: float = 2) -> Kinks | None:
    return _norm(input - other, p, None, call=lambda f, x: f(x, torch.zeros_like(x), p))


@enter(DISTANCES, "pairwise_distance")
def _pairwise_distance(
    x1: torch.Tensor, x2: torch.Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Kinks | None:
    gap = x1 - x2 + eps
    return _norm(gap, p, -1, call=lambda f, x: f(x, torch.zeros_like(x), p, 0.0))


@enter(DISTANCES, "cdist")
def _cdist(x1: torch.Tensor, x2: torch.Tensor, p: float = 2.0, compute_mode: Any = None) -> Kinks | None:
    """Of each pair of rows; `numbers` are those of all differences."""
    gap = (x1[..., :, None, :] - x2[..., None, :, :]).detach()
    return _norm(gap, p, -1, call=lambda f, x: f(x.reshape(1, -1), torch.zeros_like(x).reshape(1, -1), p))


@enter(DISTANCES, "l1_loss")
def _l1_loss(input: torch.Tensor, target: torch.Tensor, *_: Any, **__: Any) -> Kinks:
    return _residual(input, target, (0.0,), C0, lambda f, x: f(x, torch.zeros_like(x)))


@enter(DISTANCES, "smooth_l1_loss")
def _smooth_l1_loss(
    input: torch.Tensor, target: torch.Tensor, size_average: Any = None, reduce: Any = None, reduction: Any = "mean",
    beta: float = 1.0, weight: Any = None,
) -> Kinks:  # fmt: skip
    at = (-beta, beta) if beta else (0.0,)
    return _residual(input, target, at, C1 if beta else C0, lambda f, x: f(x, torch.zeros_like(x), beta=beta))


@enter(DISTANCES, "huber_loss")
def _huber_loss(
    input: torch.Tensor, target: torch.Tensor, reduction: Any = "mean", delta: float = 1.0, weight: Any = None
) -> Kinks:
    return _residual(input, target, (-delta, delta), C1, lambda f, x: f(x, torch.zeros_like(x), delta=delta))


def _residual(input: torch.Tensor, target: torch.Tensor, values: Sequence[float], smoothness: str, call: Call) -> Kinks:
    gap = (input - target).detach()
    probes = tuple(Probe(f"{v:g}", (one(input, v),), (), call) for v in values)
    return Kinks(
        smoothness, len(values), at_values(values, "input − target"), gap.numel(), points(gap, values).exact, probes
    )


@enter(DISTANCES, "hinge_embedding_loss")
def _hinge_embedding_loss(input: torch.Tensor, target: torch.Tensor, margin: float = 1.0, *_: Any, **__: Any) -> Kinks:
    """max(0, margin − x) where the target is −1."""
    probe = Probe("margin", (one(input, margin),), (), lambda f, x: f(x, -torch.ones_like(x), margin))
    exact = lambda: int(((input == margin) & (target == -1)).sum())  # noqa: E731
    return Kinks(C0, 1, f"x = {margin:g}", input.numel(), exact, (probe,))


@enter(DISTANCES, "margin_ranking_loss")
def _margin_ranking_loss(
    input1: torch.Tensor, input2: torch.Tensor, target: torch.Tensor, margin: float = 0.0, *_: Any, **__: Any
) -> Kinks:
    """max(0, −y (x₁ − x₂) + margin)."""
    hinge = (-target * (input1 - input2) + margin).detach()
    call = lambda f, x: f(x, torch.zeros(1, dtype=x.dtype, device=x.device), torch.ones_like(x), margin)  # noqa: E731
    probe = Probe("margin", (input1.detach().new_full((1,), margin),), (), call)
    return Kinks(C0, 1, "y (x₁ − x₂) = margin", hinge.numel(), lambda: int((hinge == 0).sum()), (probe,))


@enter(DISTANCES, "multi_margin_loss")
def _multi_margin_loss(
    input: torch.Tensor, target: torch.Tensor, p: int = 1, margin: float = 1.0, *_: Any, **__: Any
) -> Kinks:
    """Σ_j max(0, margin − x_y + x_j)^p / n over j ≠ y."""

    def exact() -> int:
        rows, right = torch.atleast_2d(input), torch.atleast_1d(target)[:, None]
        hinge = margin - rows.gather(1, right) + rows
        return int((hinge == 0).scatter(1, right, False).sum())

    at = input.detach().new_tensor([[margin, 0.0]])
    call = lambda f, x: f(x, torch.zeros(1, dtype=torch.long, device=x.device), p, margin)  # noqa: E731
    return Kinks(
        C0 if p == 1 else C1, 1, "x_y − x_j = margin", input.numel(), exact, (Probe("margin", (at,), (), call),)
    )


@enter(DISTANCES, "triplet_margin_loss")
def _triplet_margin_loss(
    anchor: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, margin: float = 1.0, p: float = 2.0,
    eps: float = 1e-6, swap: bool = False, *_: Any, **__: Any,
) -> Kinks:  # fmt: skip
    """max(0, ‖a − p‖ − ‖a − n‖ + margin)."""

    def exact() -> int:
        near, far = (torch.nn.functional.pairwise_distance(anchor, x, p, eps) for x in (positive, negative))
        if swap:
            far = torch.minimum(far, torch.nn.functional.pairwise_distance(positive, negative, p, eps))
        return int((near - far + margin == 0).sum())

    return Kinks(C0, 1, "‖a − p‖ + margin = ‖a − n‖", anchor.numel(), exact)


for _name in ("svdvals", "eigvalsh", "eigh", "svd", "matrix_norm", "nuclear_norm", "cond", "pinv", "pinverse"):
    DISTANCES[_name] = somewhere(C0, "equal or zero eigenvalues or singular values")
for _name in ("lp_pool1d", "lp_pool2d", "lp_pool3d", "renorm", "pdist", "cosine_similarity", "cosine_embedding_loss",
              "multilabel_margin_loss", "triplet_margin_with_distance_loss"):  # fmt: skip
    DISTANCES[_name] = somewhere(C0, "where a norm, a distance or a margin is zero")

"""What `simulate` is asked for: checked, and its seeds and starting points labelled."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from nonsmooth.objectives import Objective
from nonsmooth.objectives.finite_sum import FiniteSum
from nonsmooth.penalties import Penalty
from nonsmooth.progress import need_memory
from nonsmooth.rules import Rule

__all__ = ["check", "seed_labels_of", "starts_of"]

WHOLE = 2**53
"""Counts and seeds go no further: above it float64 tells whole numbers no longer apart."""


def check(
    objective: Any,
    rule: Any,
    penalty: Any,
    penalty_by: str,
    steps: int,
    every: int,
    tail: int | None,
    batch_size: int | None,
    f_star: Any,
) -> None:
    """Raises ValueError, in one sentence, for what cannot be run.

    >>> check("lasso", None, None, "prox", 9, 1, None, None, None)
    Traceback (most recent call last):
    ValueError: simulate: objective must be one of nonsmooth's, not str.
    """
    for what, given, kind in (
        ("objective", objective, Objective),
        ("rule", rule, Rule),
        ("penalty", penalty, (Penalty, type(None))),
    ):
        if not isinstance(given, kind):
            raise ValueError(f"simulate: {what} must be one of nonsmooth's, not {type(given).__name__}.")
    for what, number in (("steps", steps), ("every", every), ("tail", tail), ("batch_size", batch_size)):
        if number is not None and not _is_whole(number, 1):
            raise ValueError(f"simulate: {what} must be a whole number, 1 or above, not {number!r}.")
    if f_star is not None and not (_is_real(f_star) and np.ndim(f_star) == 0 and np.isfinite(float(f_star))):
        raise ValueError(f"simulate: f_star must be a finite number, not {_said(f_star)}.")
    if every > steps:
        raise ValueError(f"simulate: every={every} keeps nothing of {steps} steps; take every <= steps.")
    if penalty_by not in ("autograd", "prox"):
        raise ValueError(f"simulate: penalty_by must be 'autograd' or 'prox', not {penalty_by!r}.")
    if penalty is not None and penalty_by == "autograd" and not penalty.has_grad:
        raise ValueError(f"{type(penalty).__name__} has no gradient; use penalty_by='prox'.")
    if batch_size is not None:
        if not isinstance(objective, FiniteSum):
            raise ValueError(
                f"simulate: {type(objective).__name__} has no rows, so batch_size means nothing; leave it out."
            )
        if batch_size > objective.n:
            raise ValueError(f"simulate: batch_size={batch_size} exceeds the {objective.n} rows of data.")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and least <= int(value) <= WHOLE


def _is_real(value: Any) -> bool:
    try:
        return not np.iscomplexobj(value) and np.asarray(value, dtype=float) is not None
    except (TypeError, ValueError):
        return False


def _said(value: Any) -> str:
    return repr(value) if np.ndim(value) == 0 else f"an array of shape {np.shape(value)}"


def seed_labels_of(seeds: Any, coordinates: int) -> xr.DataArray:
    """The seeds over their dimension, `seed` unless a DataArray names another; a bare 0 where none are given.

    >>> seed_labels_of(3, coordinates=1).seed.values.tolist()
    [0, 1, 2]
    """
    if seeds is None:
        return xr.DataArray(np.int64(0))
    if _is_whole(seeds, 1):
        need_memory(8 * coordinates * int(seeds), f"the starts of {seeds} seeds", "take fewer seeds")
        seeds = np.arange(seeds)
    labels = np.array(seeds, dtype=object)
    if labels.ndim != 1 or labels.size == 0 or not all(_is_whole(label, 0) for label in labels):
        raise ValueError(
            f"simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not {seeds!r}."
        )
    labels = labels.astype(np.int64)
    if isinstance(seeds, xr.DataArray) and seeds.dims != ("seed",):
        return xr.DataArray(labels, dims=seeds.dims)
    for one, other in pairwise(sorted(labels)):
        if one == other:
            raise ValueError(f"simulate: seeds holds {one} more than once; give each once.")
    return xr.DataArray(labels, dims="seed", coords={"seed": labels})


def starts_of(objective: Objective, x0: Any, seeds: xr.DataArray) -> xr.DataArray:
    """The starting points, labelled, with `coordinate` as the last dimension.

    >>> from nonsmooth.objectives import Absolute
    >>> starts_of(Absolute(dim=2), 0.5, seed_labels_of(None, 2)).values.tolist()
    [0.5, 0.5]
    """
    if x0 is None:
        drawn, which = np.unique(seeds, return_inverse=True)
        draws = np.stack([np.random.default_rng(int(s)).standard_normal(objective.shape) for s in drawn])
        return xr.DataArray(draws[which.reshape(seeds.shape)], dims=(*seeds.dims, "coordinate"))
    starts = x0
    if not _is_real(x0):
        raise ValueError(f"simulate: x0 must hold real numbers, not {_said(x0)}.")
    if isinstance(x0, xr.DataArray) and x0.ndim:
        point = "coordinate" if "coordinate" in x0.dims else x0.dims[-1]
        starts = x0.reset_coords(drop=True).rename({point: "coordinate"}).transpose(..., "coordinate")
        starts = starts.drop_vars("coordinate", errors="ignore")
    elif np.shape(x0) in ((), objective.shape):
        starts = xr.DataArray(np.broadcast_to(np.asarray(x0, float), objective.shape), dims="coordinate")
    if not isinstance(starts, xr.DataArray) or starts.shape[-1:] != objective.shape:
        raise ValueError(
            f"simulate: x0 has shape {np.shape(x0)} but points {objective.shape}; name further axes in a DataArray."
        )
    if not np.all(np.isfinite(starts.values)):
        raise ValueError("simulate: x0 holds NaN or infinite values; start from finite ones.")
    return starts.astype(np.float64)

"""Hyper-parameters as axes: which fields of the records are lists, and the grid of runs that they span.

A list or array in a number's field is an axis named as the field; several make the outer product; DataArrays
that share a dimension are paired. Two fields of one name are told apart by a prefix (`rule_lam`, `penalty_lam`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xarray as xr

from nonsmooth.hyperparameters import Hyperparameters, kinds

__all__ = ["Grid", "Leaf", "leaves_of", "rebuilt", "skeleton_of", "span"]

RESERVED = {"step", "coordinate"}
"""The dimensions of what a run records; no axis of a sweep may be called so."""


@dataclass(frozen=True)
class Leaf:
    """One number or array in a record: `owner` is objective, rule or penalty, `path` the way to it from there.

    >>> Leaf("rule", ("beta",), 0.9, sweepable=True).key
    ('rule', 'beta')
    """

    owner: str
    path: tuple[str, ...]
    value: Any
    sweepable: bool

    @property
    def key(self) -> tuple[str, ...]:
        return (self.owner, *self.path)

    @property
    def field(self) -> str:
        return self.path[-1]


def leaves_of(owner: str, record: Hyperparameters | None, path: tuple[str, ...] = ()) -> Iterator[Leaf]:
    """Every number and array in the record, nested records included.

    >>> from nonsmooth.rules import HeavyBall, InverseSqrt
    >>> [leaf.path for leaf in leaves_of("rule", HeavyBall(lr=InverseSqrt(0.1)))]
    [('lr', 'lr'), ('beta',), ('dampening',)]
    """
    if record is None:
        return
    for name, kind in kinds(type(record)).items():
        value = getattr(record, name)
        if isinstance(value, Hyperparameters):
            yield from leaves_of(owner, value, (*path, name))
        elif kind is not None and value is not None:
            yield Leaf(owner, (*path, name), value, sweepable=not kind.is_array)


def skeleton_of(record: Hyperparameters | None) -> Hyperparameters | None:
    """The record without its numbers: what compiled code depends on.

    >>> from nonsmooth.rules import Adam
    >>> skeleton_of(Adam(lr=0.1)) == skeleton_of(Adam(lr=[0.2, 0.3]))
    True
    >>> skeleton_of(Adam()) == skeleton_of(Adam(amsgrad=True))
    False
    """
    if record is None:
        return None
    changes: dict[str, Any] = {}
    for name, kind in kinds(type(record)).items():
        value = getattr(record, name)
        if isinstance(value, Hyperparameters):
            changes[name] = skeleton_of(value)
        elif kind is not None:
            changes[name] = None
    return record.replaced(**changes)


def rebuilt(owner: str, record: Any, numbers: Mapping[tuple[str, ...], Any], path: tuple[str, ...] = ()) -> Any:
    """The record with the given numbers in it.

    >>> from nonsmooth.rules import Gradient
    >>> rebuilt("rule", skeleton_of(Gradient(lr=[0.1, 0.2])), {("rule", "lr"): 0.3})
    Gradient(lr=0.3)
    """
    if record is None:
        return None
    changes: dict[str, Any] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        key = (owner, *path, f.name)
        if isinstance(value, Hyperparameters):
            changes[f.name] = rebuilt(owner, value, numbers, (*path, f.name))
        elif key in numbers:
            changes[f.name] = numbers[key]
    return record.replaced(**changes)


@dataclass(frozen=True)
class Grid:
    """The labelled grid of runs: the size of each dimension, its coordinates, and each swept number on it.

    >>> Grid({"lr": 2, "seed": 3}, {}, {}).flat(xr.DataArray([0.1, 0.2], dims="lr")).tolist()
    [0.1, 0.1, 0.1, 0.2, 0.2, 0.2]
    """

    sizes: dict[str, int]
    coords: dict[str, Any]
    numbers: dict[tuple[str, ...], xr.DataArray]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes.values())

    @property
    def runs(self) -> int:
        return int(np.prod(self.shape, dtype=int))

    def flat(self, labelled: xr.DataArray, keep: tuple[str, ...] = ()) -> np.ndarray:
        """The array's values on every run of the grid, shape (runs, *kept dimensions)."""
        added = {d: n for d, n in self.sizes.items() if d not in labelled.dims}
        whole = labelled.expand_dims(added).transpose(*self.sizes, *keep)
        return np.ascontiguousarray(whole.values, dtype=np.float64).reshape(self.runs, *whole.shape[len(self.sizes) :])


def span(leaves: list[Leaf], extra: Mapping[str, xr.DataArray]) -> Grid:
    """The grid that the swept leaves span, with `extra` dimensions (starts, seeds) after them.

    >>> fields = [Leaf("rule", ("lr",), np.array([0.1, 0.2]), True), Leaf("penalty", ("lam",), np.ones(3), True)]
    >>> span(fields, {}).sizes
    {'lr': 2, 'lam': 3}
    """
    swept = [leaf for leaf in leaves if leaf.sweepable and not isinstance(leaf.value, float)]
    names = _names(swept)
    sizes: dict[str, int] = {}
    coords: dict[str, Any] = {}
    numbers: dict[tuple[str, ...], xr.DataArray] = {}
    for leaf in swept:
        name, values, who = names[leaf.key], leaf.value, f"{leaf.owner}: {leaf.field}"
        if not isinstance(values, xr.DataArray):
            if values.ndim != 1:
                raise ValueError(
                    f"{who} has shape {values.shape}; give a flat list, or a DataArray that names its dimensions."
                )
            values = xr.DataArray(values, dims=name)
        scalars = [label for label, of in values.coords.items() if not of.dims]  # what selecting leaves behind
        labelled = values.drop_vars(scalars).astype(np.float64)
        if labelled.dims == (name,):
            labelled = labelled.assign_coords({name: labelled.values})
        else:
            coords[name] = labelled
        _merge(sizes, coords, labelled, who)
        numbers[leaf.key] = labelled
    for name, labelled in extra.items():
        _merge(sizes, coords, labelled, name)
    return Grid(sizes, coords, numbers)


def _names(swept: list[Leaf]) -> dict[tuple[str, ...], str]:
    """Each swept number by its field; with its owner in front, then its whole path, where that is taken."""
    fields = Counter(leaf.field for leaf in swept)
    owned = Counter((leaf.owner, leaf.field) for leaf in swept)
    dims = {str(d) for leaf in swept if isinstance(leaf.value, xr.DataArray) for d in leaf.value.dims}
    names = {}
    for leaf in swept:
        if owned[leaf.owner, leaf.field] > 1:
            names[leaf.key] = "_".join(leaf.key)
        elif fields[leaf.field] > 1 or (leaf.field in dims and not _labels_itself(leaf)):
            names[leaf.key] = f"{leaf.owner}_{leaf.field}"
        else:
            names[leaf.key] = leaf.field
    return names


def _labels_itself(leaf: Leaf) -> bool:
    """Whether it is a DataArray over a dimension of its own name, without other labels: a list open to pairing."""
    if not isinstance(leaf.value, xr.DataArray) or leaf.value.dims != (leaf.field,):
        return False
    return leaf.field not in leaf.value.coords or np.array_equal(leaf.value.coords[leaf.field], leaf.value)


def _merge(sizes: dict[str, int], coords: dict[str, Any], labelled: xr.DataArray, who: str) -> None:
    for dim, size in labelled.sizes.items():
        if dim in RESERVED:
            raise ValueError(f"{who} has a dimension called {dim!r}, which every run has already; rename it.")
        if sizes.setdefault(str(dim), size) != size:
            raise ValueError(f"{who} has {size} values along {dim!r}, where another field has {sizes[str(dim)]}.")
        if dim in labelled.coords:
            label = labelled.coords[dim]
            if dim in coords and not np.array_equal(np.asarray(coords[str(dim)]), label.values):
                raise ValueError(f"{who} disagrees with another field about the labels of {dim!r}.")
            coords[str(dim)] = label.values

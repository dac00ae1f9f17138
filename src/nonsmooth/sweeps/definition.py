"""What is swept, as a value: the work, the table of runs, the width of a shard; and its name, the hash of it all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import xarray as xr

from nonsmooth.axes import Leaf, leaves_of, span
from nonsmooth.hyperparameters import Hyperparameters
from nonsmooth.measures import MEASURES, measures_of
from nonsmooth.sweeps.content import code_of_the_package, digest, source_of
from nonsmooth.sweeps.design import Axis, Design, Table, Uniform, axis_of
from nonsmooth.sweeps.shards import TAKEN, Calls, Result, Simulations, Work

__all__ = ["Definition", "of_a_function", "of_simulations"]

WIDTH = 4096
"""The runs of a shard where the user does not say: a few megabytes of state at P = 20."""

SHOWN = 12
"""The longest axis that the readable definition spells out."""


@dataclass(frozen=True)
class Definition:
    """Shard s holds runs [s·width, (s + 1)·width).

    >>> Definition(Calls(len), Table({"lr": range(10)}), width=4).shards
    3
    """

    work: Work
    table: Table
    width: int

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.table.runs // self.width)

    def runs_of(self, shard: int) -> tuple[int, int]:
        """The first run of a shard, and the one after its last."""
        return shard * self.width, min((shard + 1) * self.width, self.table.runs)

    def compute(self, shard: int) -> Result:
        """The shard's arrays: the same wherever and whenever it is computed."""
        start, stop = self.runs_of(shard)
        values = self.table.at(start, stop)
        if self.work.pads:
            fill = self.width - (stop - start)
            values = {name: np.pad(column, (0, fill), mode="edge") for name, column in values.items()}
        return self.work.shard(values, stop - start)

    @functools.cached_property
    def code(self) -> dict[str, str]:
        """The versions of what computes."""
        if isinstance(self.work, Simulations):
            return code_of_the_package(simulates=True)
        name = self.work.function.__name__
        return code_of_the_package(simulates=False) | {name: digest(source_of(self.work.function)).hex()[:16]}

    @functools.cached_property
    def key(self) -> str:
        """The name of the definition: 16 hexadecimal digits of a SHA-256."""
        return digest([self.work, self.table, self.width, self.code]).hex()[:16]

    def summary(self) -> dict[str, Any]:
        """The same for people, as JSON has it."""
        work = {f.name: getattr(self.work, f.name) for f in fields(self.work) if f.name not in ("keys", "options")}
        options = dict(self.work.options) if isinstance(self.work, Simulations) else {}
        return {
            "key": self.key,
            "runs": self.table.runs,
            "width": self.width,
            "shards": self.shards,
            "design": self.table.design if isinstance(self.table.design, str) else repr(self.table.design),
            "axes": {name: _axis_said(axis) for name, axis in self.table.axes.items()},
            **{name: getattr(part, "__name__", repr(part)) for name, part in work.items()},
            "options": {name: _said(value) for name, value in options.items()},
            "code": self.code,
        }


def of_simulations(
    records: Mapping[str, Hyperparameters | None],
    axes: Mapping[str, Any],
    seeds: Any,
    options: Mapping[str, Any],
    design: Design,
    width: int | None,
) -> Definition:
    """The definition of a sweep of `simulate`; raises ValueError, in one sentence, where fields and axes do not fit.

    >>> from nonsmooth.objectives import Absolute
    >>> from nonsmooth.rules import Gradient
    >>> records, options = {"objective": Absolute(), "rule": Gradient([0.1, 1.0])}, {"x0": 1.0, "record": "value"}
    >>> of_simulations(records, {}, 3, options, "grid", None).table.axes
    {'lr': array([0.1, 1. ]), 'seed': range(0, 3)}
    """
    records = dict(records)
    if isinstance(options["x0"], xr.DataArray) and options["x0"].ndim > 1:
        raise ValueError("sweep: x0 must be one point; sweep the seeds, and starts are drawn by them.")
    for owner, record in records.items():
        for leaf in leaves_of(owner, record):
            if leaf.sweepable and isinstance(leaf.value, xr.DataArray):
                raise ValueError(f"sweep: {owner}: {leaf.field} is a DataArray; give a flat list.")
    given: dict[tuple[str, ...], Axis] = {}
    for name, values in axes.items():
        leaf = _leaf(name, records)
        given[leaf.key] = axis = axis_of(name, values)
        ends = [axis.low, axis.high] if isinstance(axis, Uniform) else np.asarray(axis)
        records[leaf.owner] = _with_field(records[leaf.owner], leaf.path, ends)  # which checks them
    swept = span([leaf for owner, record in records.items() for leaf in leaves_of(owner, record)], {}).numbers
    keys = {str(values.dims[0]): key for key, values in swept.items()}
    columns = {name: given[key] if key in given else axis_of(name, swept[key].values) for name, key in keys.items()}
    if seeds is not None:
        columns["seed"] = _seeds(seeds)
    table = Table(columns, design)
    options = {**options, "record": _recorded(options["record"])}
    work = Simulations(records["objective"], records["rule"], records.get("penalty"), keys, options)  # type: ignore[arg-type]
    return Definition(work, table, _width(width, min(WIDTH, table.runs), table.runs))


def of_a_function(
    function: Callable[..., Any], axes: Mapping[str, Any], design: Design, width: int | None
) -> Definition:
    """The definition of a sweep of a user's function.

    >>> of_a_function(lambda lr, seed: {"loss": lr}, {"lr": [2, 3, 4], "seed": range(2)}, "grid", width=4).shards
    2
    """
    taken = [name for name in axes if name in TAKEN or not str(name).isidentifier()]
    if taken:
        raise ValueError(f"sweep: an axis cannot be called {taken[0]!r}; give it the name of an argument.")
    table = Table({name: axis_of(name, values) for name, values in axes.items()}, design)
    return Definition(Calls(function), table, _width(width, 1, table.runs))


def _width(width: int | None, default: int, runs: int) -> int:
    if width is None:
        return default
    if isinstance(width, bool) or not isinstance(width, (int, np.integer)) or width < 1:
        raise ValueError(f"sweep: width must be a whole number, 1 or above, not {width!r}.")
    return min(int(width), runs)


def _leaf(name: str, records: Mapping[str, Hyperparameters | None]) -> Leaf:
    """The number that `axes` means: by its field, with its owner in front, or by its whole path."""
    leaves = [leaf for o, record in records.items() for leaf in leaves_of(o, record) if leaf.sweepable]
    for spelled in (
        lambda leaf: leaf.field,
        lambda leaf: f"{leaf.owner}_{leaf.field}",
        lambda leaf: "_".join(leaf.key),
    ):
        meant = [leaf for leaf in leaves if spelled(leaf) == name]
        if len(meant) == 1:
            return meant[0]
    count = "more than one field" if any(leaf.field == name for leaf in leaves) else "no field"
    there = ", ".join("_".join(leaf.key) for leaf in leaves)
    raise ValueError(f"sweep: {name!r} of axes is {count}; take of {there}.")


def _with_field(record: Any, path: tuple[str, ...], value: Any) -> Any:
    """The record with a field changed, checked as a new one is."""
    inner = value if len(path) == 1 else _with_field(getattr(record, path[0]), path[1:], value)
    return replace(record, **{path[0]: inner})


def _seeds(seeds: Any) -> Axis:
    whole = (int, np.integer)
    if isinstance(seeds, whole) and not isinstance(seeds, bool) and seeds >= 1:
        return range(int(seeds))
    axis = axis_of("seeds", seeds)
    numbers = np.asarray(axis)
    if isinstance(axis, Uniform) or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise ValueError(f"sweep: seeds must be a count above 0 or a list of whole numbers, not {_said(seeds)}.")
    return axis


def _recorded(record: Any) -> tuple[Any, ...]:
    """The names and functions of `record=`, each checked."""
    return tuple(n if MEASURES.get(n) is measure else measure for n, measure in measures_of(record).items())


def _axis_said(axis: Axis) -> Any:
    if isinstance(axis, np.ndarray):
        return axis.tolist() if len(axis) <= SHOWN else {"from": axis[0].item(), "to": axis[-1].item(), "n": len(axis)}
    return repr(axis)


def _said(value: Any) -> Any:
    if isinstance(value, (int, float, str, type(None))):
        return value
    if isinstance(value, (tuple, list)):
        return [getattr(part, "__name__", _said(part)) for part in value]
    return f"array of shape {np.shape(value)}" if np.ndim(value) else repr(value)

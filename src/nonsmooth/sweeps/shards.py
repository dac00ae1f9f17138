"""What a shard computes: one `simulate` of a fixed number of runs, or a user's function, run after run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from nonsmooth.axes import rebuilt
from nonsmooth.objectives import Objective
from nonsmooth.penalties import Penalty
from nonsmooth.rules import Rule

__all__ = ["Calls", "Result", "Simulations", "Work"]

TAKEN = ("run", "finished")
"""What a sweep calls its dimension and the mark of its runs."""


@dataclass(frozen=True)
class Result:
    """The arrays of a shard with their dimensions, runs first, and the coordinates of the other dimensions.

    >>> Result({"loss": (("run",), np.zeros(2))}).arrays["loss"][0]
    ('run',)
    """

    arrays: dict[str, tuple[tuple[str, ...], np.ndarray]]
    coords: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Simulations:
    """Runs of `simulate` over one dimension, `run`; `keys` says of which record's field an axis is.

    >>> from nonsmooth.objectives import Absolute
    >>> from nonsmooth.rules import Gradient
    >>> options = {"x0": 0.375, "steps": 2, "tail": 1}
    >>> work = Simulations(Absolute(), Gradient(1.0), None, {"lr": ("rule", "lr")}, options)
    >>> work.shard({"lr": np.array([0.25, 1.0, 1.0])}, count=2).arrays["l1_norm"][1].tolist()
    [[0.125], [0.375]]
    """

    objective: Objective
    rule: Rule
    penalty: Penalty | None
    keys: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Any]

    pads = True
    """The last shard is filled up with its last run: every shard is then the same compiled program."""

    def shard(self, values: Mapping[str, np.ndarray], count: int) -> Result:
        """The first `count` of the runs with these values."""
        from nonsmooth.simulation import simulate

        over_runs = {name: xr.DataArray(column, dims="run") for name, column in values.items()}
        numbers = {
            self.keys[name]: column.astype(np.float64) for name, column in over_runs.items() if name in self.keys
        }
        seeds = over_runs.get("seed") if "seed" not in self.keys else None
        dataset = simulate(
            rebuilt("objective", self.objective, numbers),
            rebuilt("rule", self.rule, numbers),
            penalty=rebuilt("penalty", self.penalty, numbers),
            seeds=seeds,
            progress=False,
            **self.options,
        )
        arrays = {}
        for name, variable in dataset.data_vars.items():
            whole = variable.transpose("run", ...)
            arrays[str(name)] = tuple(map(str, whole.dims)), _with_nan(whole.values[:count])
        return Result(arrays, {"step": dataset.step.values})


@dataclass(frozen=True)
class Calls:
    """Calls of `function(**values)`, which returns a dict of numbers, or of arrays whose shapes are always the same.

    Raises ValueError, in one sentence that names the run, for anything else that it does.

    >>> Calls(lambda lr: {"loss": lr**2}).shard({"lr": np.array([2, 3])}, count=2).arrays["loss"][1].tolist()
    [4.0, 9.0]
    """

    function: Callable[..., Mapping[str, Any]]

    pads = False

    def shard(self, values: Mapping[str, np.ndarray], count: int) -> Result:
        """One call after the other."""
        rows: list[dict[str, np.ndarray]] = []
        for i in range(count):
            run = {name: column[i].item() for name, column in values.items()}
            rows.append(self._row(run))
            if _shapes(rows[i]) != _shapes(rows[0]):
                raise ValueError(f"{self._said(run)} returned {_shapes(rows[i])}, another run {_shapes(rows[0])}.")
        arrays = {}
        for name in rows[0]:
            whole = np.stack([row[name] for row in rows])
            arrays[name] = ("run", *(f"{name}_{i}" for i in range(whole.ndim - 1))), whole
        return Result(arrays)

    def _row(self, run: dict[str, Any]) -> dict[str, np.ndarray]:
        try:
            returned = self.function(**run)
        except Exception as error:
            raise ValueError(f"{self._said(run)} failed: {type(error).__name__}: {error}") from error
        if not isinstance(returned, Mapping) or not returned or not all(isinstance(name, str) for name in returned):
            raise ValueError(f"{self._said(run)} must return a dict of numbers by name, not {type(returned).__name__}.")
        row = {}
        for name, value in returned.items():
            if name in run or name in TAKEN or not name.isidentifier():
                raise ValueError(f"{self._said(run)} returned {name!r}, which is no free name; rename it.")
            array = np.asarray(value)
            if array.dtype.kind not in "biuf" or not array.size:
                raise ValueError(f"{self._said(run)} returned {name!r}, which is no number and no array of numbers.")
            row[name] = _with_nan(array)
        return row

    def _said(self, run: dict[str, Any]) -> str:
        return f"sweep: {self.function.__name__}({', '.join(f'{name}={value!r}' for name, value in run.items())})"


Work = Simulations | Calls


def _with_nan(array: np.ndarray) -> np.ndarray:
    """In a type that has NaN, which stands for runs that are not there yet."""
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _shapes(row: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in row.items()}

"""Designs: which values a run has. A table of runs is a function of the run's number, and is never written out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

__all__ = ["Axis", "Design", "LogUniform", "Random", "Table", "Uniform"]

MOST = 2**53
"""The most runs: above it float64 tells whole numbers no longer apart."""


@dataclass(frozen=True)
class Uniform:
    """An axis of a random design: numbers drawn evenly from [low, high). Raises ValueError unless low < high.

    >>> Uniform(0.0, 0.5)
    Uniform(low=0.0, high=0.5)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (_finite(self.low) and _finite(self.high) and self.low < self.high):
            raise ValueError(
                f"{type(self).__name__} takes two finite numbers, low < high, not {self.low}, {self.high}."
            )

    def at(self, u: np.ndarray) -> np.ndarray:
        """The value for u in [0, 1)."""
        return self.low + (self.high - self.low) * u


@dataclass(frozen=True)
class LogUniform(Uniform):
    """An axis of a random design: numbers whose logarithm is even, as steps and strengths want; 0 < low < high.

    >>> LogUniform(1e-4, 1e-2).at(np.array([0.5])).round(12).tolist()
    [0.001]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"LogUniform takes ends above 0, not {self.low}; see Uniform.")

    def at(self, u: np.ndarray) -> np.ndarray:
        return np.exp(np.log(self.low) + (np.log(self.high) - np.log(self.low)) * u)


@dataclass(frozen=True)
class Random:
    """`count` runs, each value drawn by itself: from a list each entry alike, else from the axis's distribution.

    Run i has the same values whatever `count` is (Philox, one stream an axis).

    >>> Random(100, seed=1)
    Random(count=100, seed=1)
    """

    count: int
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= MOST:
                raise ValueError(f"Random: {name} must be a whole number, {least} or above, not {value!r}.")


Axis = np.ndarray | range | Uniform
Design = Literal["grid", "list"] | Random


@dataclass(frozen=True)
class Table:
    """Run i ↦ a value of each axis, for i = 0 … runs − 1; nothing is stored but the axes themselves.

    "grid" is the outer product, the last axis the fastest; "list" pairs lists of one length; `Random` draws.

    >>> Table({"lr": np.array([0.1, 1.0]), "seed": range(3)}).at(2, 5)
    {'lr': array([0.1, 1. , 1. ]), 'seed': array([2, 0, 1])}
    """

    axes: Mapping[str, Axis]
    design: Design = "grid"

    def __post_init__(self) -> None:
        if not self.axes:
            raise ValueError("sweep: nothing is swept; give a list in a field, seeds= or axes=.")
        if self.design not in ("grid", "list") and not isinstance(self.design, Random):
            raise ValueError(f"sweep: design must be 'grid', 'list' or Random(count, seed), not {self.design!r}.")
        if not isinstance(self.design, Random):
            for name, axis in self.axes.items():
                if isinstance(axis, Uniform):
                    raise ValueError(f"sweep: {name} is a distribution; give a list, or design=Random(count).")
        if self.design == "list" and len(set(self.sizes)) > 1:
            lengths = ", ".join(f"{name} has {n}" for name, n in zip(self.axes, self.sizes, strict=True))
            raise ValueError(f"sweep: design='list' pairs lists of one length, but {lengths} values.")
        if self.runs > MOST:
            raise ValueError(f"sweep: {float(self.runs):.0e} runs are more than can be numbered; take fewer values.")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The length of each axis; 0 for a distribution."""
        return tuple(0 if isinstance(axis, Uniform) else len(axis) for axis in self.axes.values())

    @property
    def runs(self) -> int:
        """How many runs there are."""
        if isinstance(self.design, Random):
            return int(self.design.count)
        return math.prod(self.sizes) if self.design == "grid" else self.sizes[0]

    def at(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """The values of runs start … stop − 1."""
        runs = np.arange(start, stop)
        if isinstance(self.design, Random):
            draws = (self._drawn(axis, place, start, stop) for place, axis in enumerate(self.axes.values()))
            return dict(zip(self.axes, draws, strict=True))
        places = np.unravel_index(runs, self.sizes) if self.design == "grid" else [runs] * len(self.axes)
        return {name: _taken(axis, place) for (name, axis), place in zip(self.axes.items(), places, strict=True)}

    def _drawn(self, axis: Axis, place: int, start: int, stop: int) -> np.ndarray:
        assert isinstance(self.design, Random)
        stream = np.random.Philox(np.random.SeedSequence(self.design.seed, spawn_key=(place,)))
        stream.advance(start // 4)  # a count of Philox makes four words
        words = np.asarray(stream.random_raw(stop - start + start % 4), dtype=np.uint64)[start % 4 :]
        u = (words >> np.uint64(11)) * 2.0**-53
        return axis.at(u) if isinstance(axis, Uniform) else _taken(axis, (u * len(axis)).astype(np.int64))


def axis_of(name: str, values: Any) -> Axis:
    """What a user gave for an axis, as an axis; raises ValueError for what is none."""
    if isinstance(values, Uniform):
        return values
    if isinstance(values, range) and len(values):
        return values
    try:
        array = np.array(list(values) if isinstance(values, Iterable) and not isinstance(values, str) else values)
    except ValueError:
        array = np.array(None)
    mixed = array.dtype.kind == "U" and not all(isinstance(value, str) for value in values)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "biufU" or mixed:
        raise ValueError(f"sweep: {name} must be a flat list of numbers, or of names, not {_said(values)}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"sweep: {name} holds NaN or infinite values; leave them out.")
    return array


def _taken(axis: Any, places: np.ndarray) -> np.ndarray:
    return axis.start + axis.step * places if isinstance(axis, range) else axis[places]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))


def _said(value: Any) -> str:
    said = repr(value)
    return said if len(said) < 60 and "\n" not in said else f"a {type(value).__name__}"

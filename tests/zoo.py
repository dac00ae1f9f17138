"""The instances that every law is tried on, the points that matter to them, and the libraries that they run in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest

from nonsmooth.objectives import (
    Absolute,
    Hinge,
    Huber,
    LogCosh,
    Logistic,
    MaxLinear,
    MaxQuadratic,
    Objective,
    PseudoHuber,
    Quadratic,
    Quantile,
    ReLURegression,
    Spred,
    TwoLayer,
    random_least_squares,
    subgradient_hard_instance,
)
from nonsmooth.penalties import (
    L0,
    L1,
    MCP,
    NM,
    SCAD,
    Box,
    ElasticNet,
    GroupLasso,
    LHalf,
    NonNegative,
    NuclearNorm,
    Penalty,
    Simplex,
    SmoothedL1,
    SparseGroupLasso,
    SquaredL2,
)


def over(table: Mapping[str, Any]) -> list[Any]:
    """A table's rows as the parameters of a test, with their names as ids."""
    return [
        pytest.param(*row, id=name) if type(row) is tuple else pytest.param(row, id=name) for name, row in table.items()
    ]


PENALTIES: dict[str, tuple[Penalty, tuple[int, ...]]] = {
    "l1": (L1(0.75), (6,)),
    "l1-zero": (L1(0.0), (6,)),
    "l1-weights": (L1(0.5, weights=[0.0, 0.5, 1.0, 2.0, 4.0, 1.0]), (6,)),
    "l2": (SquaredL2(0.75), (6,)),
    "elastic-net": (ElasticNet(lam=0.75, ridge=0.5), (6,)),
    "group-rows": (GroupLasso(0.75), (4, 3)),
    "group-columns": (GroupLasso(0.75, dim=-1), (4, 3)),
    "group-channels": (GroupLasso(0.75), (4, 3, 2, 2)),
    "group-labels": (GroupLasso(0.75, groups=(7, 3, 7, 7, 5, 3)), (6,)),
    "group-sized": (GroupLasso(0.5, groups=(0, 0, 1, 1, 1, 1), scale_by_size=True), (6,)),
    "group-each": (GroupLasso(0.75), (6,)),
    "group-zero": (GroupLasso(0.0), (4, 3)),
    "smoothed-l1": (SmoothedL1(0.75, delta=0.5), (6,)),
    "sparse-group": (SparseGroupLasso(0.25, 0.5), (4, 3)),
    "sparse-group-labels": (SparseGroupLasso(0.5, 0.25, groups=(7, 3, 7, 7, 5, 3), scale_by_size=True), (6,)),
    "mcp": (MCP(0.75, gamma=2.0), (6,)),
    "scad": (SCAD(0.75, a=2.5), (6,)),
    "l0": (L0(0.75), (6,)),
    "l-half": (LHalf(0.75), (6,)),
    "box": (Box(-0.5, 1.0), (6,)),
    "box-above": (Box(low=0.25), (6,)),
    "box-below": (Box(high=-0.25), (6,)),
    "box-point": (Box(0.5, 0.5), (6,)),
    "non-negative": (NonNegative(), (6,)),
    "simplex": (Simplex(radius=1.5), (6,)),
    "simplex-matrix": (Simplex(), (4, 3)),
    "two-four": (NM(2, 4), (3, 8)),
    "one-two": (NM(1, 2, dim=0), (4, 3)),
}
ONE_STEP: dict[str, tuple[Penalty, tuple[int, ...]]] = {  # refused under unequal steps; test_penalties_spectral.py
    "nuclear-tall": (NuclearNorm(0.75), (4, 3)),
    "nuclear-wide": (NuclearNorm(0.75), (3, 4)),
    "nuclear-square": (NuclearNorm(0.75), (3, 3)),
    "nuclear-row": (NuclearNorm(0.75), (1, 4)),
    "nuclear-zero": (NuclearNorm(0.0), (4, 3)),
}


class Known(NamedTuple):
    """An objective, points on its kinks, and for each constant a pair of points whose ratio it is.

    Where a constant is infinite the pair's ratio is above a million. A bound that is not tight here has no pair.
    """

    f: Objective
    kinks: tuple[Any, ...] = ()
    pairs: Mapping[str, tuple[Any, Any]] = {}


def along(v: Any, *at: float) -> tuple[np.ndarray, ...]:
    return tuple(s * np.asarray(v, dtype=float) for s in at)


DATA = np.array([[1.0, 2.0], [-0.5, 1.0], [2.0, -1.0], [1.0, 1.0]]), np.array([1.0, -1.0, 1.0, 1.0])
ALIKE = np.full((4, 1), 0.5), np.ones(4)
PLANES = [[1.0, 0.0], [-1.0, 1.0], [0.0, -2.0], [-0.5, 0.0]], [0.0, 0.5, -1.0, -0.25]
TALL, WIDE = random_least_squares(12, 4), random_least_squares(4, 6)


def singular(X: np.ndarray, i: int) -> np.ndarray:
    return np.linalg.svd(X)[2][i]


OBJECTIVES: dict[str, Known] = {
    "absolute": Known(
        Absolute(dim=3),
        [(0.0, 1.0, -2.0), (0.0, 0.0, 0.0)],
        {"L": along([1, 0, 0], -1e-9, 1e-9), "G": along([1, 1, 1], 1, 3), "mu": along([1, 1, 1], 1, 3)},
    ),
    "huber": Known(
        Huber(1.5, dim=2), pairs={"L": along([1, -1], 0.25, 1), "G": along([1, 1], 2, 5), "mu": along([1, 1], 2, 5)}
    ),
    "pseudo-huber": Known(
        PseudoHuber(2.0, dim=2),
        pairs={"L": along([1, 1], -1e-7, 1e-7), "G": along([1, 1], 1e9, 2e9), "mu": along([1, 1], 1e9, 2e9)},
    ),
    "log-cosh": Known(
        LogCosh(dim=2),
        pairs={"L": along([1, 1], -1e-7, 1e-7), "G": along([1, 1], 30, 50), "mu": along([1, 1], 30, 50)},
    ),
    "quadratic": Known(
        Quadratic([0.5, 2.0, 4.0]),
        pairs={"L": along([0, 0, 1], 1, 2), "G": along([0, 0, 1], 1e6, 2e6), "mu": along([1, 0, 0], 1, 2)},
    ),
    "saddle": Known(
        Quadratic([-4.0, 1.0]),
        pairs={"L": along([1, 0], 1, 2), "G": along([0, 1], 1e6, 2e6), "mu": along([1, 0], 1, 2)},
    ),
    "least-squares": Known(
        TALL,
        pairs={
            "L": along(singular(TALL.X, 0), 1, 2),
            "G": along(np.ones(4), 1e6, 2e6),
            "mu": along(singular(TALL.X, -1), 1, 2),
        },
    ),
    "least-squares-wide": Known(
        WIDE, pairs={"L": along(singular(WIDE.X, 0), 1, 2), "mu": along(singular(WIDE.X, -1), 1, 2)}
    ),
    "gram": Known(TALL.prepare()),
    "logistic": Known(Logistic(*DATA), pairs={"L": along(singular(DATA[0], 0), -1e-6, 1e-6)}),
    "logistic-alike": Known(
        Logistic(*ALIKE), pairs={"L": along([1], -1e-6, 1e-6), "G": along([1], -100, -200), "mu": along([1], 100, 200)}
    ),
    "hinge": Known(Hinge(*DATA), [(1.0, 0.0), (0.5, 0.25), (0.0, -1.0)], {"L": ((1.0, 1e-9), (1.0, -1e-9))}),
    "hinge-alike": Known(
        Hinge(*ALIKE), [(2.0,)], {"L": along([2], 1 - 1e-9, 1 + 1e-9), "G": along([1], 0, -3), "mu": along([1], 0, -3)}
    ),
    "quantile": Known(
        Quantile(*DATA, tau=0.75), [(1.0, 0.0), (0.0, -1.0), (0.5, 0.0)], {"L": ((1.0, 1e-9), (1.0, -1e-9))}
    ),
    "quantile-alike": Known(
        Quantile(*ALIKE, tau=0.75),
        [(2.0,)],
        {"L": along([2], 1 - 1e-9, 1 + 1e-9), "G": along([1], 0, -3), "mu": along([1], 0, -3)},
    ),
    "relu-regression": Known(
        ReLURegression(DATA[0], [-1.0, 0.0, -2.0, -0.5]),
        [(2.0, -1.0), (1.0, 2.0)],
        {"L": ((2.0, -1.0 - 1e-9), (2.0, -1.0 + 1e-9)), "mu": along([-1, -1], 1, 2)},
    ),
    "relu-regression-positive": Known(ReLURegression(*DATA), [(2.0, -1.0), (1.0, 2.0)]),
    "relu-squared": Known(
        ReLURegression(ALIKE[0], np.zeros(4)),
        pairs={"L": along([1], 1, 2), "G": along([1], 1e7, 2e7), "mu": along([1], -1, -2)},
    ),
    "two-layer-relu": Known(TwoLayer(*DATA, hidden=2), [(2.0, -1.0, 1.0, 0.5, 1.0, 1.0)]),
    "two-layer-tanh": Known(TwoLayer(*DATA, hidden=2, activation="tanh")),
    "two-layer-softplus": Known(TwoLayer(*DATA, hidden=3, activation="softplus")),
    "spred": Known(Spred(TALL)),
    "spred-absolute": Known(Spred(Absolute(dim=2)), [(0.0, 1.0, 2.0, -1.0)]),
    "max-linear": Known(
        MaxLinear(*PLANES),
        [(0.25, 0.0), (1.0, -1.0), (0.5, -0.75)],
        {"G": along([0, -1], 2, 3), "mu": along([0, -1], 2, 3)},
    ),
    "max-linear-shared": Known(
        MaxLinear(*PLANES, ties="average"), [(0.25, 0.0), (1.0, -1.0)], {"L": ((0.25 - 1e-9, 0.0), (0.25 + 1e-9, 0.0))}
    ),
    "max-of-one": Known(MaxLinear([[3.0, 4.0]], [1.0]), pairs={"G": along([3, 4], 1, 2)}),
    "max-quadratic": Known(
        MaxQuadratic(dim=4, k=3, gamma=2.0, mu=0.5),
        [(1.0, 1.0, 0.0, 7.0), (0.0, 0.0, 0.0, 0.0)],
        {"L": along([1, -1, 0, 0], -1e-9, 1e-9), "G": along([1, 0, 0, 0], 1e7, 2e7), "mu": along([0, 0, 0, 1], 1, 2)},
    ),
    "max-quadratic-shared": Known(MaxQuadratic(dim=3, k=3, ties="average"), [(1.0, 1.0, 0.0), (2.0, 2.0, 2.0)]),
    "hard": Known(subgradient_hard_instance(3), [(0.0, 0.0, 0.0, 0.0), (-0.5, -0.25, -0.25, -0.75)]),
}


def points(shape: tuple[int, ...], seed: int = 0) -> Iterator[np.ndarray]:
    """The origin, quarters with many zeros (exact in every precision), a zero row, and Gaussians small and large."""
    rng = np.random.default_rng(seed)
    yield np.zeros(shape)
    yield rng.integers(-4, 5, shape) / 4 * rng.integers(0, 2, shape)
    yield rng.integers(-12, 13, shape) / 4 * (np.arange(shape[0]) > 0).reshape(-1, *[1] * (len(shape) - 1))
    yield from (scale * rng.standard_normal(shape) for scale in (1e-3, 1.0, 1e3))


def steps(shape: tuple[int, ...], seed: int = 1) -> Iterator[Any]:
    """One step for all, one step a coordinate within a factor of a hundred, and over eight decades."""
    rng = np.random.default_rng(seed)
    yield 0.5
    yield 10 ** rng.uniform(-1, 1, shape)
    yield 10 ** rng.uniform(-4, 4, shape)


class Library(NamedTuple):
    """Where a law runs: an array library and a precision."""

    name: str
    dtype: str

    def running(self) -> AbstractContextManager[Any]:
        if self.name != "jax":
            return nullcontext()
        import jax

        return jax.enable_x64(self.dtype == "float64")

    def compiled(self, method: Any) -> Any:
        if self.name != "jax":
            return method
        import jax

        return jax.jit(method)

    def array(self, a: Any) -> Any:
        """The array in this library; a plain number stays one."""
        if isinstance(a, float):
            return a
        xp = pytest.importorskip({"jax": "jax.numpy"}.get(self.name, self.name))
        return xp.asarray(np.asarray(a), dtype=getattr(xp, self.dtype))


LIBRARIES = {
    f"{name}-{dtype[5:]}": Library(name, dtype)
    for name in ("numpy", "torch", "jax", "array_api_strict")
    for dtype in ("float32", "float64")
}

"""The one loop: objective × rule × penalty × axes → xarray.Dataset, all runs in one compiled JAX program.

JAX is imported when a simulation runs, never before, and float64 is a context around it: no global flag changes.
Compiled code is keyed on the types and structure of what is simulated; numbers and data are traced, so a second
call with other numbers compiles nothing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import xarray as xr

from nonsmooth.axes import Grid, leaves_of, rebuilt, skeleton_of, span
from nonsmooth.measures import MEASURES, Measure, Moment, measures_of, need_free_names, orbit_curvature, taken
from nonsmooth.objectives import Objective
from nonsmooth.penalties import Penalty
from nonsmooth.progress import Slices, need_memory
from nonsmooth.request import check, seed_labels_of, starts_of
from nonsmooth.rules import FISTA, Rule

__all__ = ["MEASURES", "Moment", "minimise", "orbit_curvature", "simulate"]

DIVERGED = 1e100
"""A run has diverged once a coordinate is not finite or larger than this: its square would soon overflow."""

NARROW = 64
"""Up to this P the runs are the last axis of memory, which vectorises sums over coordinates; beyond, the first, which
suits the matrix products. benchmarks/simulate.py has one case of each."""


def simulate(
    objective: Objective,
    rule: Rule,
    *,
    penalty: Penalty | None = None,
    steps: int = 1000,
    seeds: int | Sequence[int] | xr.DataArray | None = None,
    x0: Any = None,
    penalty_by: Literal["autograd", "prox"] = "autograd",
    batch_size: int | None = None,
    record: Iterable[str | Measure] = ("l1_norm", "value"),
    every: int = 1,
    tail: int | None = None,
    f_star: float | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Run x⁺ = rule(x, g̃(x)) from x₀ for every combination of the listed hyper-parameters and seeds.

    A list or array in a number's field of `objective`, `rule` or `penalty` is a dimension named as the field;
    several make the outer product; DataArrays that share a dimension are paired. `seed` is a dimension where
    `seeds` is given (a count, or the seeds themselves; a DataArray over another dimension is paired with the fields
    over it, and may repeat a seed). Variables have dimensions (fields…, seed, step), step from 1 to `steps`, and
    there are always `x_final` (…, coordinate) and `diverged_at` (the first step at which a
    coordinate is not finite or exceeds 1e100 in size; NaN for a run that stayed bounded).

    - `x0`: the start, a number or an array of the objective's shape, or a DataArray of which one dimension
      (`coordinate`, or else the last) is the point and the others are axes. Default: standard normal, drawn by
      NumPy's default_rng(seed) (seed 0 where no seeds are given).
    - `penalty_by`: "autograd" adds the penalty's gradient to f's, "prox" applies its proximal map at the rule's
      effective step after each step.
    - `batch_size`: minibatches of that many rows in a fresh random order each epoch, an incomplete last one
      dropped, the same order for every run of one seed. Measures are taken on the whole data.
    - `record`: names of `MEASURES`, or functions of a `Moment` (named as the function).
    - `every` keeps steps every, 2·every, …; `tail` keeps the last `tail` of those that would be kept, in memory
      that does not grow with `steps`.
    - `f_star`: the minimum, for "gap", where it is neither known nor can be computed by `minimise`.
    - `progress`: a bar on the error stream; by default only when that is a terminal and the work is long.

    Raises ValueError, in one sentence, for what cannot be run. A run that diverges is marked, not fatal.

    >>> import nonsmooth as ns
    >>> from nonsmooth.objectives import Absolute
    >>> from nonsmooth.rules import Gradient
    >>> run = ns.simulate(Absolute(), Gradient(lr=[0.25, 1.0]), x0=0.375, steps=4)
    >>> run.l1_norm.sel(lr=0.25).values.tolist()
    [0.125, 0.125, 0.125, 0.125]
    """
    measures = measures_of(record)
    check(objective, rule, penalty, penalty_by, steps, every, tail, batch_size, f_star)
    seed_labels = seed_labels_of(seeds, objective.shape[0])
    starts = starts_of(objective, x0, seed_labels)
    leaves = [*leaves_of("rule", rule), *leaves_of("penalty", penalty)]
    extra = {} if x0 is None else {"x0": starts.isel(coordinate=0, drop=True)}
    if seeds is not None:
        extra["seeds"] = seed_labels
    grid = span([*leaves_of("objective", objective), *leaves], extra)
    if seeds is not None:
        grid.coords.setdefault("seed", seed_labels)
    need_free_names(measures, {*map(str, grid.sizes), *map(str, grid.coords)})
    points = 8 * (4 * objective.shape[0] + len(grid.numbers))  # x₀, z, g̃ and the memory, and the run's own numbers
    need_memory(
        grid.runs * points, f"{grid.runs} runs from {objective.shape[0]} coordinates", "take fewer values or seeds"
    )
    best = _minimum(objective, penalty, grid, f_star) if "gap" in measures else np.nan

    ready = objective.prepare() if batch_size is None else objective
    leaves += leaves_of("objective", ready)
    numbers = {
        leaf.key: grid.flat(grid.numbers[leaf.key]) if leaf.key in grid.numbers else leaf.value for leaf in leaves
    }
    batched = frozenset(numbers) & frozenset(grid.numbers)
    axis = -1 if objective.shape[0] <= NARROW else 0
    per_run: dict[str, Any] = {"x0": np.moveaxis(grid.flat(starts, keep=("coordinate",)), 0, axis)}
    if batch_size is not None:
        per_run["seed"] = grid.flat(seed_labels).astype(np.int64)
    per_run["f_star"] = grid.flat(best) if isinstance(best, xr.DataArray) else np.full(grid.runs, best)

    skeletons = (skeleton_of(ready), skeleton_of(rule), skeleton_of(penalty))
    program = _program(
        skeletons, frozenset(numbers), batched, penalty_by, batch_size, tuple(measures.items()), every > 1, axis
    )
    kept = steps // every
    first = 0 if tail is None else max(kept - tail, 0)
    arrays, final = _run(program, numbers, per_run, steps, every, first, kept, progress)
    attributes = _attributes(objective, rule, penalty, penalty_by, steps, batch_size, x0)
    return _dataset(grid, measures, arrays, final, every * np.arange(first + 1, kept + 1), attributes)


def minimise(
    objective: Objective, penalty: Penalty | None = None, tol: float = 1e-10, max_steps: int = 200_000
) -> xr.Dataset:
    """argmin f + g for convex, L-smooth f by FISTA with restart at step 1/L, for every value swept in the penalty.

    Returns `minimiser` (…, coordinate), `minimum` and `residual`, the prox residual ‖x − prox_g(x − ∇f(x))‖ at
    t = 1. Raises ValueError where f or g is not convex, f has no L or is swept, or g is scheduled, and
    ArithmeticError when that does not reach `tol`·max(1, ‖∇f(0)‖) within `max_steps`.

    >>> from nonsmooth.objectives import LeastSquares
    >>> from nonsmooth.penalties import L1
    >>> minimise(LeastSquares(np.eye(2), [3.0, 0.1]), L1(1.0)).minimiser.values.round(9).tolist()
    [2.0, 0.0]
    """
    if swept := span([*leaves_of("objective", objective)], {}).sizes:
        raise ValueError(
            f"minimise: {type(objective).__name__} is swept over {', '.join(swept)}; minimise it at each value."
        )
    L, mu = objective.constants.L, objective.constants.mu
    if not np.isfinite(L) or mu < 0:
        lacks = "is not convex" if mu < 0 else "has no Lipschitz gradient"
        raise ValueError(f"{type(objective).__name__} {lacks}, so its minimum is not computed; pass f_star=.")
    if penalty is not None and not penalty.convex:
        raise ValueError(f"{type(penalty).__name__} is not convex, so its minimum is not computed; pass f_star=.")
    if penalty is not None and penalty.at(1) is not penalty:
        raise ValueError(
            f"{type(penalty).__name__} is scheduled, so no one minimum is computed; "
            "take a constant penalty, or pass f_star=."
        )
    x0: Any = np.zeros(objective.shape)
    scale = max(1.0, float(np.linalg.norm(objective.grad(x0))))
    done, chunk = 0, 2_000
    while True:
        rule = FISTA(lr=1 / max(L, 1e-300))
        run = simulate(
            objective,
            rule,
            penalty=penalty,
            penalty_by="prox",
            x0=x0,
            steps=chunk,
            tail=1,
            record=("value", "prox_residual"),
        )
        residual = run.prox_residual.isel(step=0, drop=True)
        done += chunk
        if bool((residual <= tol * scale).all()):
            return xr.Dataset(
                {"minimiser": run.x_final, "minimum": run.value.isel(step=0, drop=True), "residual": residual}
            )
        if done >= max_steps:
            raise ArithmeticError(
                f"minimise: the residual is {float(residual.max()):.1e} after {done} steps, not {tol * scale:.1e}; "
                "pass f_star=, or a larger tol=."
            )
        x0, chunk = run.x_final, min(2 * chunk, max_steps - done)


# --- the minimum ---------------------------------------------------------------------------------------------------


def _minimum(objective: Objective, penalty: Penalty | None, grid: Grid, f_star: float | None) -> Any:
    """f* as a number, or labelled by the swept fields on which it depends."""
    if f_star is not None:
        return float(f_star)
    if any(key[0] == "objective" for key in grid.numbers):
        labels = {key: grid.numbers[key] for key in grid.numbers if key[0] == "objective"}
        if penalty is not None or any(v.ndim != 1 for v in labels.values()):
            raise ValueError("simulate: 'gap' over a swept objective needs f_star=, or no penalty and plain lists.")
        at = np.vectorize(
            lambda *v: _known(rebuilt("objective", objective, dict(zip(labels, map(float, v), strict=True))))
        )
        return xr.apply_ufunc(at, *labels.values())
    if penalty is None:
        return _known(objective)
    minimum = minimise(objective, penalty).minimum
    alone = span([*leaves_of("penalty", penalty)], {}).numbers  # which has other names where the rule has the same
    dims = {old: new for key, there in alone.items() for old, new in zip(there.dims, grid.numbers[key].dims)}
    return minimum.drop_vars(minimum.coords).rename(dims)


def _known(objective: Objective) -> float:
    known = objective.minimum
    return float(minimise(objective).minimum) if known is None else known


# --- the program ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """The compiled functions of one structure: start, advance without recording, advance and record, answer."""

    start: Callable[..., Any]
    advance: Callable[..., Any]
    record: Callable[..., Any]
    shapes: Callable[..., Any]
    answer: Callable[..., Any]


@functools.lru_cache(maxsize=256)
def _program(
    skeletons: tuple[Any, Any, Any],
    keys: frozenset[tuple[str, ...]],
    batched: frozenset[tuple[str, ...]],
    penalty_by: str,
    batch_size: int | None,
    measures: tuple[tuple[str, Measure], ...],
    thinned: bool,
    axis: int,
) -> Program:
    """Compile for one structure; `axis` is where the carry keeps the runs."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    by_autograd = skeletons[2] is not None and penalty_by == "autograd"
    by_prox = skeletons[2] is not None and penalty_by == "prox"
    scheduled = any(key[0] == "penalty" and len(key) > 2 for key in keys)  # then f + g changes under the step
    direct = batch_size is None and type(skeletons[1]).iterate is Rule.iterate and not scheduled

    def records(numbers: Any, t: Any) -> tuple[Any, Any, Any]:
        objective, rule, penalty = (
            rebuilt(o, s, numbers) for o, s in zip(("objective", "rule", "penalty"), skeletons, strict=True)
        )
        return objective, rule.at(t), None if penalty is None else penalty.at(t)

    def gradient(objective: Any, penalty: Any, x: Any) -> Any:
        return objective.grad(x) + penalty.grad(x) if by_autograd else objective.grad(x)

    def batch_of(objective: Any, order: Any, t: Any) -> Any:
        """The objective on the rows of step t."""
        if batch_size is None:
            return objective
        i = (t - 1) % (objective.n // batch_size)
        return objective.rows(lax.dynamic_slice_in_dim(order, i * batch_size, batch_size))

    def reshuffled(objective: Any, seed: Any, order: Any, t: Any) -> Any:
        """The order of the rows at step t: a new one at the first step of an epoch."""
        if batch_size is None:
            return order
        epoch, i = jnp.divmod(t - 1, objective.n // batch_size)
        new = lambda: jax.random.permutation(jax.random.fold_in(jax.random.key(seed), epoch), objective.n)  # noqa: E731
        return lax.cond(i == 0, new, lambda: order)

    def prepared(numbers: Any, run: Any, z: Any, state: Any, order: Any, t: Any) -> dict[str, Any]:
        """The carry before step t: the point with what the rule is told there."""
        objective, rule, penalty = records(numbers, t)
        order = reshuffled(objective, run.get("seed"), order, t)
        batch = batch_of(objective, order, t)
        carry = {"z": z, "state": state, "order": order, "g": gradient(batch, penalty, z)}
        if rule.needs_value:
            carry["value"] = batch.value(z) + (penalty.value(z) if by_autograd else 0.0)
        return carry

    def start(numbers: Any, run: Any) -> Any:
        objective, rule, _ = records(numbers, 1)
        order = jnp.arange(objective.n) if batch_size is not None else ()
        carry = prepared(numbers, run, run["x0"], rule.init(run["x0"]), order, 1)
        return carry | {"diverged_at": jnp.full((), jnp.nan)}

    def step(numbers: Any, run: Any, carry: Any, t: Any) -> Any:
        _, rule, penalty = records(numbers, t)
        value = (carry["value"],) if rule.needs_value else ()
        x, state = rule.step(carry["z"], carry["g"], carry["state"], *value)
        if by_prox:
            x = penalty.prox(x, rule.effective_step(state))
        z, state = rule.finish(carry["z"], x, state)
        late = ~(jnp.max(jnp.abs(z)) <= DIVERGED) & jnp.isnan(carry["diverged_at"])
        new = prepared(numbers, run, z, state, carry["order"], t + 1)
        return new | {"diverged_at": jnp.where(late, t * 1.0, carry["diverged_at"])}

    def measure(numbers: Any, run: Any, before: Any, after: Any, t: Any) -> Any:
        objective, rule, penalty = records(numbers, t)
        x, x_before = (rule.iterate(c["z"], c["state"]) for c in (after, before))
        if direct:
            g, g_before = after["g"], before["g"]
        else:
            g, g_before = (gradient(objective, penalty, at) for at in (x, x_before))
        moment = Moment(t, x, g, x_before, g_before, objective, penalty, run["f_star"])
        return tuple(taken(name, function, moment) for name, function in measures)

    axes, n = {key: 0 if key in batched else None for key in keys}, axis
    start_all = jax.vmap(start, in_axes=(axes, n), out_axes=n)
    step_all = jax.vmap(step, in_axes=(axes, n, n, None), out_axes=n)
    measure_all = jax.vmap(measure, in_axes=(axes, n, n, n, None))

    def advance(numbers: Any, run: Any, carry: Any, t0: Any, count: Any) -> Any:
        """Steps t0 + 1 … t0 + count."""
        return lax.fori_loop(0, count, lambda i, c: step_all(numbers, run, c, t0 + i + 1), carry)

    def record(numbers: Any, run: Any, carry: Any, buffers: Any, t0: Any, k0: Any, count: Any, every: Any) -> Any:
        """`count` records into the buffers from place k0 on, `every` steps apart, from step t0 on."""

        def one(k: Any, both: Any) -> Any:
            carry, buffers = both
            t = t0 + (k + 1) * every
            before = advance(numbers, run, carry, t - every, every - 1) if thinned else carry
            after = step_all(numbers, run, before, t)
            rows = measure_all(numbers, run, before, after, t)
            write = lax.dynamic_update_index_in_dim
            return after, tuple(write(b, r.astype(b.dtype), k0 + k, 0) for b, r in zip(buffers, rows, strict=True))

        return lax.fori_loop(0, count, one, (carry, buffers))

    measured = jax.jit(measure_all)

    def shapes(numbers: Any, run: Any, carry: Any) -> Any:
        return measured.eval_shape(numbers, run, carry, carry, 1)

    def answer(carry: Any) -> Any:
        x = jax.vmap(skeletons[1].iterate, in_axes=n)(carry["z"], carry["state"])
        return x, carry["diverged_at"]

    return Program(
        start=jax.jit(start_all),
        advance=jax.jit(advance, donate_argnums=2),
        record=jax.jit(record, donate_argnums=(2, 3)),
        shapes=shapes,
        answer=answer,
    )


def _run(
    program: Program, numbers: Any, per_run: Any, steps: int, every: int, first: int, kept: int, progress: bool | None
) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Run the program in slices of about half a second, so that it can be watched and interrupted."""
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True), Slices(steps, progress) as bar:
        carry = program.start(numbers, per_run)
        shapes = [((kept - first, *s.shape), s.dtype) for s in program.shapes(numbers, per_run, carry)]
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
        need_memory(size, f"the records of {kept - first} steps", "keep fewer steps by tail= or every=")
        buffers = tuple(jnp.zeros(shape, dtype) for shape, dtype in shapes)
        for t0, count in bar.slices(0, first * every):
            carry = program.advance(numbers, per_run, carry, t0, count)
            carry["diverged_at"].block_until_ready()
        for k, count in bar.slices(0, kept - first, every):
            carry, buffers = program.record(numbers, per_run, carry, buffers, (first + k) * every, k, count, every)
            carry["diverged_at"].block_until_ready()
        if kept * every < steps:
            carry = program.advance(numbers, per_run, carry, kept * every, steps - kept * every)
        x_final, diverged_at = program.answer(carry)
        return [np.asarray(b) for b in buffers], (np.asarray(x_final), np.asarray(diverged_at))


# --- what comes back -----------------------------------------------------------------------------------------------


def _dataset(
    grid: Grid,
    names: Iterable[str],
    arrays: list[np.ndarray],
    final: tuple[np.ndarray, np.ndarray],
    kept: np.ndarray,
    attrs: dict[str, Any],
) -> xr.Dataset:
    """Views, not copies: recorded arrays come as (step, runs, …) and leave labelled (fields…, seed, step, …)."""
    dims = tuple(grid.sizes)
    variables: dict[str, Any] = {}
    for name, array in zip(names, arrays, strict=True):
        inner = tuple("coordinate" if name == "x" else f"{name}_{i}" for i in range(array.ndim - 2))
        shaped = array.reshape(len(kept), *grid.shape, *array.shape[2:])
        variables[name] = (*dims, "step", *inner), np.moveaxis(shaped, 0, len(dims))
    x_final, diverged_at = final
    variables["x_final"] = (*dims, "coordinate"), x_final.reshape(*grid.shape, x_final.shape[-1])
    variables["diverged_at"] = dims, diverged_at.reshape(grid.shape)
    return xr.Dataset(variables, {**grid.coords, "step": kept}, attrs)


_version = functools.cache(version)


def _attributes(
    objective: Any, rule: Any, penalty: Any, penalty_by: str, steps: int, batch_size: int | None, x0: Any
) -> dict[str, Any]:
    return {
        "objective": repr(objective),
        "rule": repr(rule),
        "penalty": "none" if penalty is None else f"{penalty!r} by {penalty_by}",
        "start": "standard normal, NumPy default_rng(seed)" if x0 is None else "given",
        "steps": steps,
        "batch": "full" if batch_size is None else batch_size,
        "nonsmooth": _version("nonsmooth"),
        "jax": _version("jax"),
    }

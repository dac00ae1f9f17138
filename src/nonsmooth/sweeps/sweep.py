"""`sweep` and `open_sweep`: the definition, the shards that are missing, the dataset."""

from __future__ import annotations

import contextlib
import inspect
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import xarray as xr

from nonsmooth.ledger import short
from nonsmooth.measures import Measure
from nonsmooth.objectives import Objective
from nonsmooth.penalties import Penalty
from nonsmooth.rules import Rule
from nonsmooth.sweeps.definition import Definition, of_a_function, of_simulations
from nonsmooth.sweeps.design import Design
from nonsmooth.sweeps.executors import finish
from nonsmooth.sweeps.store import COORDS, LATEST, Store, stored

__all__ = ["open_sweep", "sweep"]

OPTIONS = ("steps", "x0", "penalty_by", "batch_size", "record", "every", "tail", "f_star")
"""The settings of `simulate` that every run of a sweep shares."""


def sweep(
    path: str | Path,
    what: Objective | Callable[..., Mapping[str, Any]],
    rule: Rule | None = None,
    *,
    penalty: Penalty | None = None,
    steps: int = 1000,
    seeds: int | Sequence[int] | None = None,
    x0: Any = None,
    penalty_by: str = "autograd",
    batch_size: int | None = None,
    record: Iterable[str | Measure] = ("l1_norm", "value"),
    every: int = 1,
    tail: int | None = None,
    f_star: float | None = None,
    axes: Mapping[str, Any] | None = None,
    design: Design = "grid",
    width: int | None = None,
    executor: Any = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Make the runs that a folder lacks, and read all: dimension `run`, with a coordinate for each axis.

    `what` is an objective, and the arguments are those of `simulate`, lists as axes; or a function of one's own,
    `function(**values)`, which returns a dict of numbers, or of arrays whose shapes are always the same.

    - `axes`: values by name. Of a function, its arguments; of a simulation, fields (`lr`; `rule_lr` where two records
      have one), beside those that hold lists.
    - `design`: "grid", all combinations, the last axis the fastest; "list", lists of one length, paired;
      `Random(count, seed)`, where an axis may be `Uniform(low, high)` or `LogUniform(low, high)`.
    - `width`: the runs of a shard: 4096, or 1 call of a function. A shard is what is computed at once, kept when it
      ends, and lost when it is interrupted. Of a simulation the last is filled up with its last run.
    - `executor`: None, this machine's cores; a count of its processes, 1 being this process; the address of a Dask
      scheduler, or its `distributed.Client`, whose workers write into `path` themselves.
    - `progress`: a bar on the error stream; by default only when that is a terminal.

    The same call goes on where it was interrupted. What is swept is known by its content, the versions of NumPy and
    JAX, and the source of what computes: of the package, or of the function's module (not of what that imports). A
    change of any begins anew, beside what was there. Several processes and machines may work on one folder.

    Warns of each shard that is damaged, and computes it anew. Raises ValueError, in one sentence, for what cannot be
    swept or written, and where a run of the function fails; KeyboardInterrupt, on Ctrl-C or SIGTERM, says how many
    shards are kept.

    >>> import tempfile
    >>> import nonsmooth as ns
    >>> from nonsmooth.objectives import Absolute
    >>> from nonsmooth.rules import Gradient
    >>> runs = ns.sweep(tempfile.mkdtemp(), Absolute(), Gradient(lr=[0.25, 1.0]), x0=0.375, steps=4, tail=1)
    >>> runs.lr.values.tolist(), runs.x_final.values.tolist()
    ([0.25, 1.0], [[-0.125], [0.375]])
    """
    given = locals()
    if not isinstance(axes, (Mapping, type(None))):
        raise ValueError(f"sweep: axes must be a dict of values by name, not {type(axes).__name__}.")
    options = {name: given[name] for name in OPTIONS}
    if isinstance(what, Objective):
        for name, record_, kind in (("rule", rule, Rule), ("penalty", penalty, (Penalty, type(None)))):
            if not isinstance(record_, kind):
                raise ValueError(f"sweep: {name} must be one of nonsmooth's, not {type(record_).__name__}.")
        records = {"objective": what, "rule": rule, "penalty": penalty}
        definition = of_simulations(records, axes or {}, seeds, options, design, width)
    elif isinstance(what, FunctionType):
        defaults = inspect.signature(sweep).parameters
        for name in ("rule", "penalty", "seeds", *OPTIONS):
            if given[name] is not defaults[name].default:
                raise ValueError(f"sweep: {name} belongs to a simulation; a function takes what is in axes=.")
        definition = of_a_function(what, axes or {}, design, width)
    else:
        raise ValueError(f"sweep: give an objective, or a function made by def, not {type(what).__name__}.")
    store = Store(Path(path), definition.key)
    done = _mended(store, definition)
    with _terminable(), _bar(definition.shards, done, progress) as advance:
        try:
            finish(store, definition, executor, lambda shard: advance())
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{sum(1 for _ in store.marked())} of {definition.shards} shards are kept in {store.folder}; "
                "the same call goes on from there."
            ) from None
    return _read(store)


def open_sweep(path: str | Path, key: str | None = None, *, verify: bool = False) -> xr.Dataset:
    """The sweep in a folder: the latest, or that whose key begins so; read as it is used, NaN where not finished.

    `finished` says which runs are there; `attrs["definition"]` what was swept, `attrs["others"]` which other keys the
    folder holds. `verify` reads every chunk first. A grid is unstacked by `set_index(run=[...]).unstack("run")`.
    Raises ValueError, in one sentence, where there is no such sweep, or a file is not as it was written.

    >>> open_sweep("nowhere")
    Traceback (most recent call last):
    ValueError: nowhere: holds no sweep.
    """
    folder = Path(path)
    there = stored(folder)
    if not there:
        raise ValueError(f"{folder}: holds no sweep.")
    said = ", ".join(f"{name} ({short(summary.get('runs'), 20)} runs)" for name, summary in there.items())
    if key is None:
        with contextlib.suppress(OSError):
            key = (folder / LATEST).read_text(encoding="ascii", errors="replace")
        key = key if key in there else next(iter(there))
    chosen = [name for name in there if name.startswith(key)]
    if len(chosen) != 1:
        raise ValueError(f"{folder}: {key!r} is the key of {len(chosen)} sweeps; there are {said}.")
    store = Store(folder, chosen[0])
    if verify and (damage := next(store.damages(), None)):
        raise ValueError(f"{damage} Sweep again: that makes it anew.")
    return _read(store)


def _read(store: Store) -> xr.Dataset:
    try:
        if damage := store.damage(COORDS, only="zarr.json"):
            raise ValueError(damage.rstrip("."))
        dataset = store.open()
    except Exception as error:  # whatever Zarr and Xarray raise for what is not theirs
        raise ValueError(f"{store.group}: cannot be read ({short(error, 600)}); sweep again: that mends it.") from error
    return dataset.assign_attrs(others=[key for key in stored(store.folder) if key != store.key])


def _mended(store: Store, definition: Definition) -> int:
    """How many shards are there and whole, once those that are not are struck off."""
    store.ready()
    if damage := store.mend(definition):
        warnings.warn(f"{damage} It was written again.", stacklevel=3)
    done = 0
    for shard in list(store.marked()):
        if damage := store.damage(shard):
            warnings.warn(f"{damage} Shard {shard} is computed anew.", stacklevel=3)
            store.discard(shard)
        else:
            done += 1
    return done


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextlib.contextmanager
def _bar(total: int, done: int, progress: bool | None) -> Iterator[Callable[[], None]]:
    """A bar: shards done of all, time to go."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, force_terminal=progress or None)
    columns = (TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = progress if progress is not None else console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda: bar.advance(task)

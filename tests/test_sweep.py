"""Sweeps: designs against slow twins, shards against `simulate`, executors against one another, keys by content."""

from __future__ import annotations

import itertools
import json
import tracemalloc

import numpy as np
import pytest
import xarray as xr
from scipy.stats import kstest

import nonsmooth as ns
from nonsmooth.axes import rebuilt
from nonsmooth.objectives import Absolute, Huber, LeastSquares, random_least_squares
from nonsmooth.penalties import L1
from nonsmooth.rules import Gradient, HeavyBall, InverseSqrt
from nonsmooth.sweeps import LogUniform, Random, Uniform, definition, open_sweep, shards, sweep
from nonsmooth.sweeps.content import digest
from nonsmooth.sweeps.design import Table

LRS, LAMS = np.geomspace(1e-3, 1e-1, 4), np.array([0.1, 1.0, 3.0])
LASSO = random_least_squares(n=12, p=3)
OPTIONS = {"steps": 12, "tail": 2, "record": ("l1_norm", "zeros")}


def small(path, *, lrs=LRS, f=LASSO, **options):
    options = {"penalty": L1(LAMS), "seeds": 3, "width": 7, "executor": 1} | OPTIONS | options
    return sweep(path, f, Gradient(lr=lrs), **options)


def cube(lr, seed=0, shift=0.0):
    return {"loss": lr**3 + shift, "path": np.arange(3) * lr + seed}


# --- designs -------------------------------------------------------------------------------------------------------


def rows(table, start=0, stop=None):
    columns = table.at(start, table.runs if stop is None else stop)
    return list(zip(*(column.tolist() for column in columns.values()), strict=True))


AXES = {"a": np.array([0.5, 1.5]), "b": range(3, 9, 2), "c": np.array(["sgd", "adam"])}


def test_a_grid_is_the_outer_product():
    assert rows(Table(AXES)) == list(itertools.product(*(np.array(axis).tolist() for axis in AXES.values())))


def test_a_list_is_paired():
    assert rows(Table({"a": np.array([1.0, 2.0]), "b": range(2)}, "list")) == [(1.0, 0), (2.0, 1)]


DRAWN = {"lr": LogUniform(1e-4, 1.0), "beta": Uniform(-1.0, 3.0), "seed": range(5)}


@pytest.mark.parametrize("table", [Table(AXES), Table(DRAWN, Random(12))])
def test_a_run_has_its_values_wherever_the_table_is_cut(table):
    for cut in range(1, 12):
        assert rows(table, 0, cut) + rows(table, cut, 12) == rows(table, 0, 12)


def test_a_longer_random_design_begins_like_a_shorter():
    assert rows(Table(DRAWN, Random(7, seed=3))) == rows(Table(DRAWN, Random(5000, seed=3)), 0, 7)


def fits(table):
    """The p-value of each axis under the distribution that DRAWN names, and the largest correlation of two."""
    lr, beta, seed = (column.astype(float) for column in table.at(0, 4000).values())
    spread = seed + np.random.default_rng(0).random(4000)
    uniform = [(np.log(lr), np.log(1e-4), 0.0), (beta, -1.0, 3.0), (spread, 0.0, 5.0)]
    fit = [kstest(column, "uniform", args=(low, high - low)).pvalue for column, low, high in uniform]
    return min(fit), abs(np.corrcoef([np.log(lr), beta, seed])[np.triu_indices(3, 1)]).max()


def test_draws_have_the_distribution_that_is_named():
    fit, correlation = fits(Table(DRAWN, Random(4000)))
    assert fit > 1e-3 and correlation < 4 / np.sqrt(4000)


@pytest.mark.parametrize("axis", ["lr", "beta", "seed"])
def test_the_law_of_draws_rejects(axis):
    mutants = {"lr": Uniform(1e-4, 1.0), "beta": Uniform(-1.0, 2.8), "seed": [0, 1, 2, 3, 4, 4]}
    mutant = Table(DRAWN | {axis: np.array(mutants[axis]) if axis == "seed" else mutants[axis]}, Random(4000))
    assert fits(mutant)[0] < 1e-6


def test_a_thousand_million_runs_take_no_memory():
    tracemalloc.start()
    table = Table({"lr": np.geomspace(1e-4, 1, 1000), "lam": np.geomspace(1e-4, 1, 1000), "seed": range(1000)})
    tail = rows(table, 10**9 - 1, 10**9)
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
    assert tail == [(1.0, 1.0, 999)]


# --- shards --------------------------------------------------------------------------------------------------------


def test_a_sweep_is_the_simulation_unstacked(tmp_path):
    """Bit by bit: each run is its own column, whatever stands beside it."""
    runs = small(tmp_path).load()
    grid = runs.set_index(run=["lr", "lam", "seed"]).unstack("run")
    once = ns.simulate(LASSO, Gradient(lr=LRS), penalty=L1(LAMS), seeds=3, **OPTIONS)
    assert runs.sizes["run"] == 36 and bool(runs.finished.all())
    for name in ("x_final", "l1_norm", "zeros", "diverged_at"):
        np.testing.assert_array_equal(grid[name].transpose(*once[name].dims), once[name], strict=False)
    np.testing.assert_array_equal(grid.step, once.step)


def test_seeds_over_a_dimension_are_paired_and_may_repeat():
    seeds, lrs = [4, 1, 4], [0.01, 0.02, 0.01]
    over = lambda values: xr.DataArray(values, dims="run")  # noqa: E731
    options = {"steps": 9, "batch_size": 5, "record": "x"}
    runs = ns.simulate(LASSO, Gradient(over(lrs)), seeds=over(seeds), **options)
    assert runs.x.dims == ("run", "step", "coordinate") and runs.seed.values.tolist() == seeds
    for i, (seed, lr) in enumerate(zip(seeds, lrs, strict=True)):
        alone = ns.simulate(LASSO, Gradient(lr), seeds=[seed], **options)
        np.testing.assert_allclose(runs.x.isel(run=i), alone.x.isel(seed=0), rtol=1e-12)
    assert not np.allclose(runs.x[0], runs.x[1])
    with pytest.raises(ValueError, match="seeds has 3 values along 'run', where another field has 2"):
        ns.simulate(LASSO, Gradient(over([0.1, 0.2])), seeds=over(seeds))


@pytest.mark.parametrize("width", [1, 5, 36, 100])
def test_the_width_changes_no_run_and_is_kept_apart(tmp_path, width):
    one, other = small(tmp_path), small(tmp_path, width=width)
    assert one.x_final.dims == ("run", "coordinate")
    np.testing.assert_allclose(one.x_final, other.x_final, rtol=1e-9)
    assert len(list(tmp_path.glob("*.zarr"))) == 2


def test_every_shard_is_one_compiled_program(tmp_path, monkeypatch):
    shapes = set()

    def watched(f, rule, **options):
        shapes.add((rule.lr.shape, options["seeds"].shape))
        return simulate(f, rule, **options)

    simulate = ns.simulate

    monkeypatch.setattr("nonsmooth.simulation.simulate", watched)
    small(tmp_path)
    assert shapes == {((7,), (7,))}


def test_fields_by_axes_lists_and_schedules(tmp_path):
    rule = HeavyBall(lr=InverseSqrt([0.1, 0.2]), beta=0.5)
    axes = {"beta": [0.0, 0.5], "lam": LogUniform(0.1, 1.0)}
    runs = sweep(tmp_path, Huber(), rule, penalty=L1(1.0), axes=axes, steps=3, x0=5.0, design=Random(9), executor=1)
    assert set(map(str, runs.coords)) == {"lr", "beta", "lam", "step", "finished"}
    one = runs.isel(run=4)
    alone = ns.simulate(
        Huber(), HeavyBall(InverseSqrt(float(one.lr)), float(one.beta)), penalty=L1(float(one.lam)), steps=3, x0=5.0
    )
    np.testing.assert_allclose(one.x_final, alone.x_final, rtol=1e-12)


def test_the_gap_and_swept_objectives(tmp_path):
    runs = sweep(tmp_path / "f", Huber([0.5, 2.0]), Gradient([0.1, 0.3]), steps=2, x0=3.0, record="gap", executor=1)
    once = ns.simulate(Huber([0.5, 2.0]), Gradient([0.1, 0.3]), steps=2, x0=3.0, record="gap")
    np.testing.assert_allclose(runs.gap, once.gap.stack(run=("delta", "lr")).transpose("run", "step"), rtol=1e-12)


def test_a_function_of_ones_own(tmp_path):
    runs = sweep(tmp_path, cube, axes={"lr": [1, 2, 3], "seed": range(2)}, width=4, executor=1)
    assert runs.loss.values.tolist() == [1, 1, 8, 8, 27, 27]
    assert runs["path"].isel(run=5).values.tolist() == [1, 4, 7]
    assert runs.lr.dtype.kind == "i" and runs.seed.values.tolist() == [0, 1] * 3


def test_an_axis_of_names_and_one_of_truths(tmp_path):
    def length(optimizer, nesterov):
        return {"n": len(optimizer) + nesterov}

    runs = sweep(tmp_path, length, axes={"optimizer": ["sgd", "adam"], "nesterov": [False, True]}, executor=1)
    assert runs.optimizer.values.tolist() == ["sgd", "sgd", "adam", "adam"]
    assert runs.n.values.tolist() == [3, 4, 4, 5]


def test_reading_is_lazy(tmp_path):
    runs = small(tmp_path)
    assert not any(runs[name].variable._in_memory for name in ("x_final", "l1_norm", "lr", "finished"))
    assert type(runs.x_final.variable._data).__module__.startswith("xarray")  # and not dask


# --- keys ----------------------------------------------------------------------------------------------------------


def key_of(path, **options):
    return json.loads(small(path, **options).attrs["definition"])["key"]


X, Y = np.asarray(LASSO.X), np.asarray(LASSO.y)
NUDGED = X + 1e-13 * (np.arange(36).reshape(X.shape) == 17)
CHANGES = {
    "rates": {"lrs": LRS * (1 + 1e-15)},
    "penalty": {"penalty": L1(LAMS[::-1])},
    "weights": {"penalty": L1(LAMS, weights=[1, 1, 2])},
    "data": {"f": LeastSquares(NUDGED, Y)},
    "seeds": {"seeds": [0, 1, 3]},
    "steps": {"steps": 13},
    "start": {"x0": 1.0},
    "record": {"record": ("zeros", "l1_norm")},
    "function": {"record": (cube,)},
    "width": {"width": 8},
    "design": {"design": Random(36)},
    "seed": {"design": Random(36, seed=1)},
}


def test_a_key_is_of_content(tmp_path):
    """Equal content has one key; each change has its own. A hash of what is printed would tell few of them apart."""
    made = [definition.of_simulations(*arguments(change)) for change in ({}, {}, *CHANGES.values())]
    keys = [one.key for one in made]
    assert keys[0] == keys[1] and len(set(keys)) == len(CHANGES) + 1
    assert len({str(one.summary() | {"key": "", "design": "", "width": 0}) for one in made}) < len(CHANGES)


def arguments(change):
    given = {"lrs": LRS, "f": LeastSquares(X.copy(), Y), "penalty": L1(LAMS), "seeds": 3, "width": 7} | change
    options = {"steps": 12, "x0": None, "record": ("l1_norm",)} | {
        name: change[name] for name in ("steps", "x0", "record") if name in change
    }
    records = {"objective": given["f"], "rule": Gradient(given["lrs"]), "penalty": given["penalty"]}
    return records, {}, given["seeds"], options, given.get("design", "grid"), given["width"]


def test_a_key_is_of_code(tmp_path, monkeypatch):
    one = definition.of_simulations(*arguments({})).key
    for name in ("source", "numpy", "jax", "jaxlib"):
        with monkeypatch.context() as patch:
            changed = definition.code_of_the_package(simulates=True) | {name: "other"}
            patch.setattr(definition, "code_of_the_package", lambda simulates, changed=changed: changed)
            assert definition.of_simulations(*arguments({})).key != one
    assert definition.of_simulations(*arguments({})).key == one


def test_a_functions_key_is_of_its_source_and_what_it_captures(tmp_path, monkeypatch):
    def captured(shift):
        return lambda lr: {"loss": lr + shift}

    assert digest(captured(1)) != digest(captured(2)) and digest(captured(1)) == digest(captured(1))
    with pytest.raises(ValueError, match="captures what cannot be compared; make it an axis"):
        digest(captured(object()))
    for source in ("def train(lr):\n    return {'loss': lr}\n", "def train(lr):\n    return {'loss': 2 * lr}\n"):
        (tmp_path / f"mine{len(source)}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    first, second = (__import__(path.stem).train for path in sorted(tmp_path.glob("mine*.py")))
    assert definition.source_of(first) != definition.source_of(second)
    assert digest(first) != digest(second)


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    first = small(tmp_path).load()
    monkeypatch.setattr(shards.Simulations, "shard", None)
    assert small(tmp_path).identical(first)
    with pytest.raises(TypeError):
        small(tmp_path, steps=13)


def test_a_changed_definition_lies_beside_the_old_one(tmp_path):
    old, new = small(tmp_path), small(tmp_path, steps=13)
    keys = [json.loads(runs.attrs["definition"])["key"] for runs in (old, new)]
    assert new.attrs["others"] == keys[:1]
    assert open_sweep(tmp_path).step.values.tolist() == [12, 13]
    assert open_sweep(tmp_path, keys[0][:9]).step.values.tolist() == [11, 12]
    small(tmp_path)
    assert open_sweep(tmp_path).step.values.tolist() == [11, 12]
    with pytest.raises(ValueError, match=f"'zz' is the key of 0 sweeps; there are .*{keys[0]} .36 runs."):
        open_sweep(tmp_path, "zz")


# --- executors -----------------------------------------------------------------------------------------------------


def test_executors_agree_bit_by_bit(tmp_path):
    from distributed import Client, LocalCluster

    serial = small(tmp_path / "here").load()
    assert small(tmp_path / "two", executor=2).identical(serial)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        assert small(tmp_path / "address", executor=cluster.scheduler_address).identical(serial)
        cluster.scale(4)
        with Client(cluster) as client:
            client.wait_for_workers(4, timeout=60)
            assert small(tmp_path / "client", executor=client).identical(serial)
    assert not small(tmp_path / "other", seeds=[0, 1, 3]).identical(serial)
    files = [{p.relative_to(f): p.read_bytes() for p in f.rglob("c/**/*") if p.is_file()} for f in tmp_path.iterdir()]
    assert sum(chunks == files[0] for chunks in files) == 4


def test_rebuilt_records_are_not_the_users(tmp_path):
    rule = Gradient(lr=LRS)
    sweep(tmp_path, Absolute(), rule, steps=2, executor=1)
    assert rule == Gradient(lr=LRS) and rebuilt("rule", rule, {}) == rule

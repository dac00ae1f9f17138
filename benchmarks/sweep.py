"""`ns.sweep` at size, and under kill -9.

    python benchmarks/sweep.py runs 10000 100000 1000000     time, peak memory and store size, one process a core
    python benchmarks/sweep.py kills 50                      kill -9 at random (a seed may follow), and the bytes
    python benchmarks/sweep.py overhead                      what a shard costs beyond its computation, by executor

Prints the tables that benchmarks/README.md keeps. The sweep is a Lasso (N = 50, P = 20), gradient steps, over lr × λ ×
seed, 2000 steps of which ten are kept; 4096 runs a shard. Memory is that of the parent and of its largest child.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np

import nonsmooth as ns
from nonsmooth.objectives import random_least_squares
from nonsmooth.penalties import L1
from nonsmooth.processes import Processes
from nonsmooth.rules import Gradient
from nonsmooth.sweeps.definition import of_simulations
from nonsmooth.sweeps.store import Store
from nonsmooth.sweeps.sweep import OPTIONS

PROBLEM = random_least_squares(n=50, p=20)
SEEDS = 20
STEPS = 2000


def swept(folder: Path, runs: int, executor: Any = None, steps: int = STEPS, width: int | None = None) -> None:
    """A grid of at least so many runs: as many rates as strengths, 20 seeds."""
    side = int(np.ceil(np.sqrt(runs / SEEDS)))
    rates, lams = np.geomspace(1e-4, 1e-1, side), np.geomspace(1e-2, 1e2, -(-runs // SEEDS // side))
    options = {"seeds": SEEDS, "steps": steps, "tail": 10, "width": width}
    ns.sweep(folder, PROBLEM, Gradient(rates), penalty=L1(lams), executor=executor, **options)


def size(folder: Path) -> tuple[int, int]:
    """Bytes and files."""
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(files), len(files)


def family(pid: int) -> Iterator[int]:
    """A process and what it started (Linux)."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from family(int(child))


def peaks() -> tuple[int, int]:
    """Peak resident memory in MiB of this process and of the largest that it started and that has ended."""
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    own, children = (resource.getrusage(who).ru_maxrss // 1024 for who in whose)
    return own, children


def runs(counts: list[int]) -> None:
    """Each count in a process of its own, so that each has its own peak."""
    print(f"{joblib.cpu_count()} cores\n\n| runs | seconds | parent | largest worker | store | files | to read all |")
    print("|---|---|---|---|---|---|---|")
    for count in counts:
        subprocess.run([sys.executable, __file__, "one", str(count)], check=True)


def one(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        swept(Path(folder), count)
        seconds = time.perf_counter() - began
        parent, largest = peaks()
        began = time.perf_counter()
        dataset = ns.open_sweep(folder)
        total, done = dataset.sizes["run"], int(dataset.finished.sum())
        assert done == total and np.isfinite(dataset.x_final.isel(run=slice(0, None, 1000))).all()
        read = time.perf_counter() - began
        bytes_, files = size(Path(folder))
        print(
            f"| {total:,} | {seconds:.1f} | {parent} MiB | {largest} MiB | {bytes_ / 1e6:.1f} MB, "
            f"{bytes_ / total:.0f} B a run | {files} | {read:.2f} s |",
            flush=True,
        )


# --- kill -9 -------------------------------------------------------------------------------------------------------


def chunks(folder: Path) -> dict[str, bytes]:
    """The chunks and shapes; not what a killed process left beside its place."""
    paths = (p for p in folder.glob("*.zarr/**/*") if p.is_file() and p.suffix != ".partial")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def kills(count: int, seed: int = 0, shards: int = 40) -> None:
    """Kill the whole session, or the parent alone, at random; a sweep that ended is compared, and a new one begun."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        calm = Path(place) / "calm"
        began = time.perf_counter()
        swept(calm, 256 * shards, executor=2, width=256)
        seconds = time.perf_counter() - began
        print(f"undisturbed: {shards} shards in {seconds:.1f} s", flush=True)
        whole, key = chunks(calm), next(calm.glob("*.json")).stem
        killed = ended = in_work = lost = 0
        folder = Path(place) / "0"
        while killed < count or not list(folder.glob("*.json")):
            store = Store(folder, key)
            before = set(store.marked())
            command = [
                sys.executable,
                __file__,
                "disturbed",
                str(folder),
                str(256 * shards),
                str(chance.choice((1, 2))),
            ]
            process = subprocess.Popen(command, start_new_session=True)
            try:
                process.wait(chance.uniform(0.1, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                if chance.random() < 0.5:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
                process.wait()
                killed += 1
            after = set(store.marked())
            in_work += bool(after - before)
            lost += len(before - after) + sum(1 for shard in after if store.damage(shard))
            if process.returncode == 0:
                ended += 1
                print(f"{killed} kills, {ended} sweeps ended", flush=True)
                assert chunks(folder) == whole, "the bytes are not those of the undisturbed sweep"
                folder = Path(place) / str(ended)
        swept(folder, 256 * shards, executor=1, width=256)
        assert chunks(folder) == whole, "the bytes are not those of the undisturbed sweep"
    print(f"{killed} kills, {in_work} starts that finished a shard; {lost} finished shards lost or damaged;")
    print(f"{ended + 1} sweeps ended, each with the bytes of the undisturbed one ({len(whole)} files)")


# --- the cost of a shard -------------------------------------------------------------------------------------------

FEW, MANY, WIDTH = 40, 160, 2048
"""Shards of the two sweeps whose difference is the cost of a shard, and the runs in each."""
GIVEN = {"x0": 0.0, "penalty_by": "autograd", "batch_size": None, "record": ("l1_norm", "value"), "f_star": None}
SHORT = {"steps": 200, "tail": 10, "every": 1}


def cpu() -> float:
    """Seconds of processor that this process and those that it started have taken, those that ended with them."""
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in family(os.getpid())]
    return sum(sum(map(int, stat[11:15])) for stat in stats) / os.sysconf("SC_CLK_TCK")


def axes(shards: int) -> dict[str, Any]:
    return {"rule": Gradient(np.geomspace(1e-4, 1e-1, shards)), "penalty": L1(np.geomspace(1e-2, 1e2, WIDTH))}


def bare(seconds: float = 8.0) -> float:
    """Seconds of processor of a shard's computation alone, once it is compiled."""
    given = {name: (GIVEN | SHORT)[name] for name in OPTIONS}
    definition = of_simulations({"objective": PROBLEM, **axes(MANY)}, {}, None, given, "grid", WIDTH)
    definition.compute(0)
    until, began, done = time.perf_counter() + seconds, time.process_time(), 0
    while time.perf_counter() < until:
        definition.compute(done % MANY)
        done += 1
    return (time.process_time() - began) / done


def overhead(repeats: int = 3) -> None:
    """What a shard costs beyond its bare computation, in seconds of processor of all processes together.

    A shard's cost is the slope between two sweeps of few and of many shards, so that what starts and compiles is not
    in it; the bare computation is timed in as many processes of the same kind at once, which share the caches alike.
    """
    from distributed import Client, LocalCluster

    print(f"{joblib.cpu_count()} cores, {MANY - FEW} shards of {WIDTH} runs × {SHORT['steps']} steps more\n")
    print("Medians (least – largest).\n\n| executor | bare | a shard | overhead |\n|---|---|---|---|")

    def sweep(executor: Any, shards: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = cpu()
            ns.sweep(folder, PROBLEM, **axes(shards), width=WIDTH, executor=executor, **SHORT)
            return cpu() - began

    def spread(some: list[float]) -> str:
        return f"{1e3 * statistics.median(some):.0f} ms ({1e3 * min(some):.0f} – {1e3 * max(some):.0f})"

    def show(name: str, executor: Any, alone: Callable[[], list[float]]) -> None:
        sweep(executor, 4)
        bares, costs = [], []
        for _ in range(repeats):
            bares.append(statistics.mean(alone()))
            few, many = sweep(executor, FEW), sweep(executor, MANY)
            costs.append((many - few) / (MANY - FEW))
        over = [cost - least for cost, least in zip(costs, bares, strict=True)]
        print(f"| {name} | {1e3 * statistics.median(bares):.0f} ms | {spread(costs)} | {spread(over)} |", flush=True)

    def at_once(count: int) -> list[float]:
        with Processes(count) as processes:
            return list(processes.each(bare, [8.0] * count))

    show("this process", 1, lambda: [bare()])
    for workers in (2, 4):
        cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
        with cluster, Client(cluster) as client:
            show(f"LocalCluster of {workers}", client, lambda client=client: list(client.run(bare).values()))
    for workers in (2, 4):
        show(f"{workers} processes", workers, lambda workers=workers: at_once(workers))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["runs", *counts]:
            runs([int(count) for count in counts])
        case ["one", count]:
            one(int(count))
        case ["kills", *count] if len(count) < 3:
            kills(*map(int, count or ["50"]))
        case ["disturbed", folder, count, executor]:
            swept(Path(folder), int(count), int(executor), width=256)
        case ["overhead"]:
            overhead()
        case _:
            print(__doc__)

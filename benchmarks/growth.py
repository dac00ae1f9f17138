"""How cost grows: wall time and memory against runs, steps, parameters and data, three decades each.

    python benchmarks/growth.py             # what is missing of the measurements, the table, docs/figures/growth.svg
    python benchmarks/growth.py --table     # table and figure from benchmarks/results/growth.jsonl alone
    python benchmarks/growth.py --only sweep-runs steps    # these curves; --again measures also what is recorded

Each point is a process of its own. *Seconds* are of the wall clock, the median of a few repetitions after a first one
that compiles and warms up (a sweep is made once, all included). *Memory* is the peak of resident memory above what the
process had before, imports included; of a sweep, the peak of its largest process. A slope is that of a line through
the logarithms of a curve's last three points: cost ∝ xˢ. Memory below a tenth of a MiB counts as that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from memory import resident, rest

RESULTS = Path(__file__).parent / "results" / "growth.jsonl"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "growth.svg"
REPEATS = 3
MIB = 2**20

Point = dict[str, float]


def timed(do: Callable[[], Any], repeats: int = REPEATS) -> Point:
    """Median seconds after a first call, that call's seconds, and by how much the peak of memory rose."""
    before = rest()
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - began)
    return {"seconds": statistics.median(seconds[1:]), "first": seconds[0], "memory": resident(peak=True) - before}


# --- the lab -------------------------------------------------------------------------------------------------------


def sweep_runs(runs: int) -> Point:
    """A sweep as in sweep.py (Lasso, N = 50, P = 20, 2000 steps, ten kept), two processes."""
    from sweep import peaks, size, swept

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        swept(Path(folder), runs, executor=2)
        seconds = time.perf_counter() - began
        stored, files = size(Path(folder))
    parent, largest = (MIB * peak for peak in peaks())
    memory = max(parent, largest)
    return {"seconds": seconds, "memory": memory, "parent": parent, "stored": stored, "files": files}


def simulated(objective: Any, runs: int, steps: int, **options: Any) -> Point:
    import nonsmooth as ns
    from nonsmooth.penalties import L1
    from nonsmooth.rules import Gradient

    rates = np.geomspace(1e-5, 1e-3, runs)
    options = {"tail": 10, "progress": False} | options
    return timed(lambda: ns.simulate(objective, Gradient(rates), steps=steps, penalty=L1(0.1), **options))


def simulate_steps(steps: int) -> Point:
    """`simulate`, 1000 runs of a Lasso with P = 20, the last ten steps kept."""
    from nonsmooth.objectives import random_least_squares

    return simulated(random_least_squares(n=50, p=20), 1000, steps)


def simulate_recorded(steps: int) -> Point:
    """The same with every step's norm and value recorded, 100 runs."""
    from nonsmooth.objectives import random_least_squares

    return simulated(random_least_squares(n=50, p=20), 100, steps, tail=None)


def simulate_parameters(p: int) -> Point:
    """`simulate`, 64 runs of 200 steps of a Lasso with N = 50."""
    from nonsmooth.objectives import random_least_squares

    return simulated(random_least_squares(n=50, p=p), 64, 200)


def simulate_data(n: int) -> Point:
    """`simulate`, 64 runs of 200 full-batch steps of a logistic regression with P = 20."""
    from nonsmooth.objectives import Logistic

    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 20))
    return simulated(Logistic(X, np.sign(X @ rng.standard_normal(20) + rng.standard_normal(n))), 64, 200)


# --- torch ---------------------------------------------------------------------------------------------------------


def network(parameters: int) -> Any:
    """An MLP 64-w-w-10 of about so many parameters."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    w = round((-75 + (75**2 + 4 * parameters) ** 0.5) / 2)
    return nn.Sequential(nn.Linear(64, w), nn.ReLU(), nn.Linear(w, w), nn.ReLU(), nn.Linear(w, 10))


def data(rows: int) -> tuple[Any, Any]:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 64, generator=generator), torch.randint(10, (rows,), generator=generator)


def probed(kind: str, parameters: int) -> Point:
    import torch
    from torch.nn.functional import cross_entropy

    from nonsmooth.torch.probes import Probes

    model, (x, y) = network(parameters), data(64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def closure() -> Any:
        return cross_entropy(model(x), y)

    def step() -> None:
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()

    trained = timed(step, 10)
    probes = Probes(model, optimizer, 100)
    held = [p for _, p in probes.params()]

    def step_probe() -> None:
        probes.step(closure, [p.detach().clone() for p in held])

    def stability_probe() -> None:
        step()  # so that the start is that of another step
        probes.curvature(closure)

    found = timed(step_probe if kind == "step" else stability_probe)
    if kind == "stability":
        found = {name: found[name] - trained["seconds"] for name in ("seconds", "first")} | {"memory": found["memory"]}
    count = sum(p.numel() for p in held)
    return found | {"x": count, "trained": trained["seconds"], "a_parameter": found["memory"] / count}


def step_probe(parameters: int) -> Point:
    """A Monitor's probe of a step, an MLP, 64 rows."""
    return probed("step", parameters)


def stability_probe(parameters: int) -> Point:
    """A Monitor's probe of the sharpness, warm-started, an MLP, 64 rows."""
    return probed("stability", parameters)


def sharpness_data(rows: int) -> Point:
    """`sharpness` over a loader, batches of 128, an MLP of 10,000 parameters."""
    from torch.nn.functional import cross_entropy

    from nonsmooth.torch import over, sharpness

    model, (x, y) = network(10_000), data(rows)
    batches = list(zip(x.split(128), y.split(128), strict=True))
    loss = over(batches, lambda batch: cross_entropy(model(batch[0]), batch[1]))
    found: list[Any] = []
    point = timed(lambda: found.append(sharpness(loss, list(model.parameters()))), 1 if rows > 10_000 else REPEATS)
    products = found[-1].products
    return point | {"products": products, "a_product": point["seconds"] / products}


def monitor_steps(steps: int) -> Point:
    """A run of an MLP of 2,000 parameters under a Monitor with a folder, budget 5 %."""
    import torch
    from torch.nn.functional import cross_entropy

    from nonsmooth.torch import Monitor

    model, (x, y) = network(2_000), data(64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def train(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        with Monitor(model, optimizer, lambda: cross_entropy(model(x), y), budget=1.0, folder=folder):
            train(20)  # what it takes once
        before, began = rest(), time.perf_counter()
        with Monitor(model, optimizer, lambda: cross_entropy(model(x), y), folder=Path(folder) / "run") as monitor:
            train(steps)
        seconds = time.perf_counter() - began
        stored = (Path(folder) / "run" / "rows.jsonl").stat().st_size
    return {"seconds": seconds, "memory": resident(peak=True) - before, "stored": stored, "rows": len(monitor.rows)}


def proximal_parameters(parameters: int) -> Point:
    """One step of `Proximal(Adam)` with L1 in one tensor, eager."""
    import torch

    from nonsmooth.penalties import L1
    from nonsmooth.torch import Proximal

    w = torch.nn.Parameter(torch.randn(parameters, generator=torch.Generator().manual_seed(0)))
    w.grad = torch.randn(parameters, generator=torch.Generator().manual_seed(1))
    bare = torch.optim.Adam([w], lr=1e-3, fused=True)
    alone = timed(bare.step, 10)
    made = Proximal(bare, L1(1e-3))
    return timed(made.step, 10) | {"adam": alone["seconds"]}


# --- curves --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    name: str
    against: str
    measure: Callable[[int], Point]
    at: tuple[int, ...]


def decades(first: int, last: int) -> tuple[int, ...]:
    return tuple(10**power for power in range(first, last + 1))


CURVES = {
    "sweep-runs": Curve("sweep", "runs", sweep_runs, decades(3, 6)),
    "simulate-steps": Curve("simulate", "steps", simulate_steps, decades(2, 5)),
    "recorded-steps": Curve("simulate, all recorded", "steps", simulate_recorded, decades(2, 5)),
    "monitor-steps": Curve("training under a Monitor", "steps", monitor_steps, decades(2, 5)),
    "simulate-parameters": Curve("simulate", "parameters", simulate_parameters, decades(2, 5)),
    "proximal": Curve("a step of Proximal", "parameters", proximal_parameters, decades(4, 8)),
    "step-probe": Curve("probe of a step", "parameters", step_probe, decades(4, 7)),
    "stability-probe": Curve("probe of the sharpness", "parameters", stability_probe, decades(4, 7)),
    "simulate-data": Curve("simulate, logistic", "samples", simulate_data, decades(2, 5)),
    "sharpness-data": Curve("sharpness over a loader", "samples", sharpness_data, decades(3, 6)),
}


def recorded() -> dict[tuple[str, int], Point]:
    """The last record of each point."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else ()
    return {(row["curve"], row["at"]): row for row in map(json.loads, lines)}


def slope(points: list[Point], of: str) -> float:
    x, y = (np.log([max(p[name], MIB / 10 if name == "memory" else 0.0) for p in points[-3:]]) for name in ("x", of))
    return float(np.polyfit(x, y, 1)[0])


def shown(name: str, at: list[Point]) -> str:
    first, last = at[0], at[-1]
    span = f"{first['x']:,.0f} – {last['x']:,.0f}"
    seconds = " – ".join(f"{p['seconds']:.2g}" for p in (first, last))
    memory = " – ".join(f"{p['memory'] / MIB:.3g}" for p in (first, last))
    what = CURVES[name].measure.__doc__.strip().rstrip(".")  # type: ignore[union-attr]
    return (
        f"| {what} | {CURVES[name].against} | {span} | {seconds} | {slope(at, 'seconds'):.2f} | {memory} | "
        f"{slope(at, 'memory'):.2f} |"
    )


def table(points: dict[str, list[Point]], versions: str) -> None:
    print(versions + "\n")
    print("| what | against | from – to | seconds | slope | memory, MiB | slope |\n|---|---|---|---|---|---|---|")
    for name, at in points.items():
        print(shown(name, at))
    for name, field, form in (
        ("sweep-runs", "stored", "{:.0f} bytes a run in the store, {:,.0f} files"),
        ("monitor-steps", "stored", "{:.0f} bytes a step in rows.jsonl"),
        ("step-probe", "trained", "{:.1f} steps of training a probe of a step"),
        ("stability-probe", "trained", "{:.1f} steps of training a probe of the sharpness"),
        ("sharpness-data", "products", "{:.0f} products"),
        ("proximal", "adam", "{:.1f} steps of fused Adam a step of Proximal"),
    ):
        for last in points.get(name, [])[-1:]:
            figure = last[field] / last["x"] if field == "stored" else last[field]
            figure = last["seconds"] / last[field] if field in ("trained", "adam") else figure
            more = f"; {last['a_parameter']:.0f} bytes a parameter" if "a_parameter" in last else ""
            print(f"- at {last['x']:,.0f}: {form.format(figure, last.get('files', 0))}{more}")


def drawn(points: dict[str, list[Point]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(dict.fromkeys(CURVES[name].against for name in points))
    look = {"svg.hashsalt": "nonsmooth", "svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif"}
    with matplotlib.rc_context(look):
        figure, panels = pyplot.subplots(
            2, len(kinds), figsize=(3.3 * len(kinds), 6.6), layout="constrained", sharex="col", squeeze=False
        )
        for column, kind in enumerate(kinds):
            for row, (of, title, room) in enumerate((("seconds", "seconds", 40), ("memory", "peak memory, MiB", 20))):
                panel = panels[row][column]
                for name, at in points.items():
                    if CURVES[name].against == kind:
                        y = [p["seconds"] if of == "seconds" else max(p["memory"] / MIB, 0.1) for p in at]
                        label = f"{CURVES[name].name}, ∝ x^{slope(at, of):.2f}"
                        panel.plot([p["x"] for p in at], y, "o-", ms=4, lw=1.5, label=label)
                panel.set_xscale("log")
                panel.set_yscale("log")
                panel.set_ylim(None, room * panel.get_ylim()[1])  # room for the legend
                panel.set_ylabel(title if column == 0 else "")
                panel.set_xlabel(kind if row else "")
                panel.spines[["top", "right"]].set_visible(False)
                panel.grid(alpha=0.25)
                panel.legend(fontsize=8, frameon=False, loc="upper left")
        figure.savefig(FIGURE, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="table and figure alone")
    parser.add_argument("--again", action="store_true", help="measure also what is recorded; the last counts")
    parser.add_argument("--only", nargs="+", default=[], metavar="CURVE", choices=CURVES)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return print(json.dumps(CURVES[asked.one[0]].measure(int(asked.one[1]))))
    for name, curve in () if asked.table else CURVES.items():
        for at in curve.at:
            if (asked.only and name not in asked.only) or ((name, at) in recorded() and not asked.again):
                continue
            print(name, at, file=sys.stderr, flush=True)
            command = [sys.executable, str(Path(__file__).resolve()), "--one", name, str(at)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = {"curve": name, "at": at, "x": at} | json.loads(done.stdout.splitlines()[-1])
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + os.linesep)
    found = recorded()
    points = {name: [found[name, at] for at in curve.at if (name, at) in found] for name, curve in CURVES.items()}
    points = {name: at for name, at in points.items() if len(at) > 2}
    named = ", ".join(f"{of} {version(of)}" for of in ("numpy", "jax", "zarr", "torch"))
    table(points, f"Python {platform.python_version()}, {named}, {os.cpu_count()} cores")
    drawn(points)


if __name__ == "__main__":
    main()

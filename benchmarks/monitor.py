"""What watching a run costs: the wall clock beside the budget, memory, growth; for `Monitor` and for `Audit`.

    python benchmarks/monitor.py                  # what is missing of the measurements, then the table
    python benchmarks/monitor.py --table          # the table, from benchmarks/results/monitor.jsonl alone
    python benchmarks/monitor.py --seconds 12 --results /tmp/monitor.jsonl    # a short look, noise and all

Time: one loop trains on in one process, in blocks of BLOCK seconds, watched and unwatched in turn, until it was
watched for `--seconds`; the watcher's clock stands still while it is off. *Own account*: the share of the wall clock
that the watcher says it took. *Overhead*: 1 − (steps a second, watched)/(steps a second, unwatched), over all blocks.
*Not in its account*: the same of the time that is left when the watcher's own is taken off, block by block, the median
of all pairs of neighbours: neither lumps of single probes nor of the machine's noise show in it. What an audit tries at
the end, when the script has ended, is not in these figures.

Memory: resident memory in a process of its own, in which large blocks go back to the system when they are freed.
*Graph*: by how much forward and backward of one step raise it, from rest to the peak. *Gradient graph*: the same of one
gradient that keeps its own graph (`create_graph=True`), which a product with the Hessian goes through. *Extra*: by how
much watching raises the peak of training, in either unit, with a probe at every step. *Growth*: from step 200 to 2000,
with a probe at every step, the rows, which a Monitor keeps, thrown away as they come, and their size told.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from memory import resident, rest
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from nonsmooth.torch import Monitor
from nonsmooth.torch.audit import Audit

RESULTS = Path(__file__).parent / "results" / "monitor.jsonl"
BUDGETS, BLOCK, THREADS = (0.02, 0.05, 0.2), 3.0, 2
MARKS = (200, 1000, 2000)
"""The steps between which memory may not grow."""
PEAK_STEPS = 3
WORDS, LENGTH, WIDTH, DEPTH = 2000, 64, 256, 4
SMALL_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "2"}

Job = dict[str, Any]


# --- what is trained -----------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    """A small GPT: tokens and places embedded, masked attention, ReLU in between, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places.weight
        return self.head(self.layers(x, mask=self.mask, is_causal=True))


@dataclass
class Training:
    """A model, its optimiser, and `step()`, one step of a loop that knows nothing of being watched."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    probe: tuple[torch.Tensor, torch.Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.probe = next(self.batches)

    def step(self) -> None:
        x, y = next(self.batches)
        self.optimizer.zero_grad()
        self.loss(self.model(x), y).backward()
        self.optimizer.step()

    def closure(self) -> torch.Tensor:
        x, y = self.probe
        return self.loss(self.model(x), y)


def small() -> Training:
    """An MLP of 10,062 parameters on the digits, batches of 64, SGD with momentum."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 32), nn.ReLU(), nn.Linear(32, 10))
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            for which in torch.randperm(len(x)).split(64):
                yield x[which], y[which]

    return Training(model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9), batches(), cross_entropy)


def large(rows: int = 8) -> Training:
    """A decoder of 4.2 million parameters, batches of 8 × 64 tokens of noise, AdamW."""
    torch.manual_seed(0)
    model = Decoder()

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            tokens = torch.randint(WORDS, (rows, LENGTH + 1))
            yield tokens[:, :-1], tokens[:, 1:]

    def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(out.reshape(-1, WORDS), y.reshape(-1))

    return Training(model, torch.optim.AdamW(model.parameters(), lr=3e-4), batches(), loss)


MODELS = {"small": small, "large": large}
MEMORY: dict[str, Callable[[], Training]] = {"large": large, "large, 64 rows": partial(large, 64)}
"""Where the parameters are more than what a graph holds, and where they are less."""


# --- the watchers --------------------------------------------------------------------------------------------------


class Watched:
    """A `Monitor` or an `Audit` that can be switched off and on again between two steps."""

    def __init__(self, who: str, training: Training, budget: float) -> None:
        self.training, self.off_since = training, time.perf_counter()
        self.audit = Audit(budget=budget, trials=0) if who == "audit" else None
        self.own = None if self.audit else Monitor(training.model, training.optimizer, training.closure, budget=budget)
        self.hooks: list[Any] = []

    @property
    def monitor(self) -> Monitor | None:
        return self.audit.monitor if self.audit else self.own

    @property
    def spent(self) -> float:
        return self.monitor.spent if self.monitor else 0.0

    @property
    def within(self) -> bool:
        """Whether it waits for what the next step brings, and had better stay on."""
        return self.audit is not None and self.audit.capture.tape is not None

    def on(self) -> None:
        """What `with` does, or what is left of it when the clock has begun already: that is put on by the pause."""
        if self.audit:
            self.audit.capture.__enter__()
        elif self.own:
            optimizer, own = self.training.optimizer, self.own
            self.hooks = [
                optimizer.register_step_pre_hook(lambda *_: own.before()),
                optimizer.register_step_post_hook(lambda *_: own.after()),
            ]
            if not self.own._began:
                self.own.begin()
                self.off_since = self.own._began
        if self.monitor is not None:
            self.monitor._began += time.perf_counter() - self.off_since
            if self.audit and self.monitor.wants is not None:
                self.audit.capture.listen()

    def off(self) -> None:
        self.off_since = time.perf_counter()
        if self.audit:
            self.audit.capture.__exit__()
        for hook in self.hooks:
            hook.remove()
        self.hooks = []


# --- measurements --------------------------------------------------------------------------------------------------


@dataclass
class Block:
    steps: int
    seconds: float
    cpu: float
    spent: float = 0.0


def block(training: Training, seconds: float, watched: Watched | None = None) -> Block:
    before = watched.spent if watched else 0.0
    wall, cpu, steps = time.perf_counter(), time.process_time(), 0
    while (past := time.perf_counter() - wall) < seconds or (watched and watched.within and past < 2 * seconds):
        training.step()
        steps += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Block(steps, wall, cpu, watched.spent - before if watched else 0.0)


def overhead(job: Job) -> dict[str, Any]:
    training = MODELS[job["model"]]()
    watched = Watched(job["who"], training, job["budget"])
    length = min(BLOCK, job["seconds"] / 4)
    block(training, length / 3)
    off: list[Block] = []
    on: list[Block] = []
    while sum(b.seconds for b in on) < job["seconds"]:
        off.append(block(training, length))
        watched.on()
        on.append(block(training, length, watched))
        share = watched.monitor.share if watched.monitor else 0.0
        watched.off()
    monitor = watched.monitor
    assert monitor is not None
    steps, bare = ([sum(getattr(b, of) for b in some) for of in ("steps", "seconds", "cpu")] for some in (on, off))
    net = [1 - (a.seconds / a.steps) / ((b.seconds - b.spent) / b.steps) for b in on for a in _beside(b, on, off)]
    probes = [row for row in monitor.rows if row["kind"] in ("step", "stability")]
    return {
        "share": share,
        "overhead": 1 - (bare[1] / bare[0]) / (steps[1] / steps[0]),
        "cpu": 1 - (bare[2] / bare[0]) / (steps[2] / steps[0]),
        "hidden": statistics.median(net),
        "quartiles": statistics.quantiles(net, n=4)[::2],
        "step": bare[1] / bare[0],
        "steps": steps[0],
        "watched": steps[1],
        "made": monitor.made,
        "cost": monitor._cost,
        "used": monitor._used,
        "errors": sum("error" in row for row in probes),
        "blocks": [[b.steps, b.seconds, b.cpu, b.spent] for pair in zip(off, on, strict=True) for b in pair],
    }


def _beside(b: Block, on: list[Block], off: list[Block]) -> list[Block]:
    i = on.index(b)
    return off[i : i + 2]


def peak_of(do: Callable[[], object]) -> int:
    rest()
    do()
    return resident(peak=True)


def memory(job: Job) -> dict[str, Any]:
    """Peaks of a step alone, and of watched steps, from the same rest."""
    training = MEMORY[job["model"]]()
    for _ in range(5):
        training.step()
    at_rest = rest()
    bare = max(peak_of(training.step) for _ in range(PEAK_STEPS))
    training.optimizer.zero_grad()
    empty = resident()

    def both() -> None:
        x, y = next(training.batches)
        training.loss(training.model(x), y).backward()
        training.optimizer.zero_grad()

    def twice() -> None:
        x, y = next(training.batches)
        with sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no second derivative
            loss = training.loss(training.model(x), y)
            torch.autograd.grad(loss, list(training.model.parameters()), create_graph=True)

    graph, gradient_graph = (max(peak_of(do) for _ in range(PEAK_STEPS)) - empty for do in (both, twice))
    watched = Watched(job["who"], training, 1.0)
    watched.on()
    peaks: dict[str, int] = {}
    for _ in range(2 * PEAK_STEPS):
        kind = watched.monitor.wants if watched.monitor else "first"
        peaks[str(kind)] = max(peaks.get(str(kind), 0), peak_of(training.step))
    after = resident()
    watched.off()
    assert watched.monitor is not None
    failed = [row["error"] for row in watched.monitor.rows if "error" in row]
    if failed:  # which would need little memory
        raise RuntimeError(failed[0])
    own = sum(p.numel() * p.element_size() for p in training.model.parameters())
    units = {"graph": graph, "gradient_graph": gradient_graph, "parameters": own}
    return {"rest": at_rest, "bare": bare, **units, "peaks": peaks, "after": after}


def size(thing: Any) -> int:
    """Bytes of plain data with all that is in it; what is in it twice is counted twice."""
    inner = [*thing.keys(), *thing.values()] if isinstance(thing, dict) else thing
    return sys.getsizeof(thing) + (sum(map(size, inner)) if isinstance(thing, (dict, list, tuple)) else 0)


def growth(job: Job) -> dict[str, Any]:
    training = MODELS[job["model"]]()
    watched = Watched(job["who"], training, 1.0)
    watched.on()
    found: dict[int, int] = {}
    rows, total = 0, 0
    for step in range(1, MARKS[-1] + 1):
        training.step()
        assert watched.monitor is not None
        rows, total = rows + len(watched.monitor.rows), total + sum(map(size, watched.monitor.rows))
        watched.monitor.rows.clear()
        if step in MARKS:
            gc.collect()
            found[step] = resident()
    assert watched.monitor is not None
    watched.off()
    return {"resident": found, "rows": rows, "bytes": total, "made": watched.monitor.made}


# --- records and the table -----------------------------------------------------------------------------------------

MEASURES = {"overhead": overhead, "memory": memory, "growth": growth}


def jobs(seconds: float) -> list[Job]:
    timed = [
        {"measure": "overhead", "who": who, "model": model, "budget": budget, "seconds": seconds}
        for who in ("monitor", "audit")
        for model in MODELS
        for budget in BUDGETS
    ]
    peaks = [{"measure": "memory", "who": who, "model": model} for who in ("monitor", "audit") for model in MEMORY]
    return [*peaks, *({"measure": "growth", "who": who, "model": "small"} for who in ("monitor", "audit")), *timed]


def key(job: Job) -> str:
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]


def recorded(results: Path) -> dict[str, dict[str, Any]]:
    """The last record of each job, by its key."""
    lines = results.read_text().splitlines() if results.exists() else ()
    return {row["key"]: row for row in map(json.loads, lines)}


def measured(job: Job, threads: int) -> dict[str, Any]:
    """The job's figures, from a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), f"--threads={threads}", "--job", json.dumps(job)]
    more = SMALL_MALLOC if job["measure"] == "memory" else {}
    done = subprocess.run(command, env={**os.environ, **more}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(results: Path, seconds: float) -> None:
    rows = recorded(results)
    done = [(job, rows[key(job)]) for job in jobs(seconds) if key(job) in rows]
    if not done:
        return print("Nothing is measured yet.")
    named = ", ".join(f"{name} {number}" for name, number in done[-1][1]["versions"].items())
    print(f"{named}, {done[-1][1]['threads']} threads; watched for {seconds:g} s\n")
    times, peaks, marks = (
        [pair for pair in done if pair[0]["measure"] == of] for of in ("overhead", "memory", "growth")
    )
    if times:
        print("| who, model | budget | own account | overhead | not in its account (quartiles) | probes |")
        print("|---|---|---|---|---|---|")
    for job, row in times:
        low, high = row["quartiles"]
        bar = "" if row["overhead"] <= job["budget"] + 0.02 else " **over**"
        print(
            f"| {job['who']}, {job['model']} ({1e3 * row['step']:.2g} ms a step) | {job['budget']:.0%} | "
            f"{row['share']:.1%} | {row['overhead']:.1%}{bar} | {row['hidden']:.1%} ({low:.1%} – {high:.1%}) | "
            f"{row['made']['step']}, {row['made']['stability']} in {row['steps']} |"
        )
    if peaks:
        print(
            "\n| who, model | parameters, graph, gradient graph, peak of a step, MB | with probe: step, stability, MB "
            "| extra, in graphs | in gradient graphs |"
        )
        print("|---|---|---|---|---|")
    for job, row in peaks:
        found = [row["peaks"].get(kind, 0) for kind in ("step", "stability")]
        own, watched = (
            ", ".join(f"{b / 1e6:.0f}" for b in some)
            for some in ([row[of] for of in ("parameters", "graph", "gradient_graph", "bare")], found)
        )
        extra = (
            ", ".join(f"{max(0, peak - row['bare']) / row[unit]:.1f}" for peak in found)
            for unit in ("graph", "gradient_graph")
        )
        print(f"| {job['who']}, {job['model']} | {own} | {watched} | {' | '.join(extra)} |")
    if marks:
        print("\n| who, model | " + " | ".join(f"at step {mark}, MB" for mark in MARKS) + " | probes | bytes a row |")
        print("|---|" + "---|" * (len(MARKS) + 2))
    for job, row in marks:
        at = " | ".join(f"{row['resident'][str(mark)] / 1e6:.1f}" for mark in MARKS)
        made, each = sum(row["made"].values()), row["bytes"] / row["rows"]
        print(f"| {job['who']}, {job['model']} | {at} | {made} | {each:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="for how long each run is watched")
    parser.add_argument("--table", action="store_true", help="the table alone")
    parser.add_argument("--again", action="store_true", help="measure also what is recorded; the last counts")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="jobs with these words in them")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.job:
        warnings.filterwarnings("ignore")
        return print(json.dumps(MEASURES[asked.job["measure"]](asked.job)))
    for job in () if asked.table else jobs(asked.seconds):
        words = {str(value) for value in job.values()}
        if not set(asked.only) <= words or (key(job) in recorded(asked.results) and not asked.again):
            continue
        print(", ".join(map(str, job.values())), file=sys.stderr, flush=True)
        row = {
            "key": key(job),
            "job": job,
            "threads": asked.threads,
            "versions": versions(),
            **measured(job, asked.threads),
        }
        with asked.results.open("a") as file:
            file.write(json.dumps(row) + os.linesep)
    table(asked.results, asked.seconds)


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in ("torch", "numpy", "scikit-learn"):
        with contextlib.suppress(Exception):
            found[name] = version(name)
    return found


if __name__ == "__main__":
    main()

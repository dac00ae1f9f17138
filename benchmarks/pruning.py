"""Accuracy at a density: the controller `TargetSparsity` beside magnitude pruning, equal budgets, five seeds.

    python benchmarks/pruning.py            # what is missing of the runs, then the tables
    python benchmarks/pruning.py --tables   # the tables, from benchmarks/results/pruning.jsonl alone

digits, an MLP 64-64-10 (4736 weights), batch 64, 3000 steps in all, the lr on a half cosine to 0. Four methods:
the controller alone; the controller for half of the steps and `refit` for the other half; training for half, one cut
by magnitude, fine-tuning for half; and gradual magnitude pruning (Zhu & Gupta 2017) over all steps. For the controller
the density is counted after every step of the last fifth of its part of the training.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import platform
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sklearn.datasets import load_digits
from torch.nn import Linear, ReLU, Sequential
from torch.nn.functional import cross_entropy

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal, TargetSparsity, density, refit, weights

RESULTS = Path(__file__).parent / "results"
STEPS, BATCH = 3000, 64
SEEDS = (0, 1, 2, 3, 4)
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.01)
LRS = {"momentum": 0.1, "Adam": 3e-3}
METHODS = {
    "controller": "controller",
    "controller+refit": "controller, refit",
    "one-shot": "one-shot, fine-tuned",
    "gradual": "gradual magnitude",
}

Job = dict[str, Any]
Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


# --- training ------------------------------------------------------------------------------------------------------


@cache
def digits() -> Data:
    """Training inputs (1300, 64) and labels, test inputs (497, 64) and labels; the split is the same for all seeds."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1300], order[1300:]
    return x[train], y[train], x[test], y[test]


def fit(
    model: torch.nn.Module,
    taken: torch.optim.Optimizer,
    examples: Data,
    steps: int,
    batches: torch.Generator,
    *,
    lam: float = 0.0,
    cosine: bool = True,
    after: Callable[[int], Any] | None = None,
) -> None:
    """Minibatch training on the cross-entropy, + λΣ|w| by autograd where λ > 0; lr on a half cosine to 0."""
    x, y, *_ = examples
    penalised = weights(model)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(taken, steps) if cosine else None
    for t in range(steps):
        which = torch.randint(len(x), (BATCH,), generator=batches)
        loss = cross_entropy(model(x[which]), y[which])
        if lam:
            loss = loss + lam * sum(w.abs().sum() for w in penalised)
        taken.zero_grad()
        loss.backward()
        taken.step()
        if schedule:
            schedule.step()
        if after:
            after(t + 1)


@torch.no_grad()
def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return (model(x).argmax(1) == y).float().mean().item()


@torch.no_grad()
def prune(ws: list[torch.nn.Parameter], share: float) -> list[torch.Tensor]:
    """Keep the `share` of weights that are largest, over all layers together; the masks of what is kept."""
    flat = torch.cat([w.abs().flatten() for w in ws])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(max(1, round(share * len(flat)))).indices] = True
    masks = [m.view_as(w) for m, w in zip(mask.split([w.numel() for w in ws]), ws)]
    impose(ws, masks)
    return masks


@torch.no_grad()
def impose(ws: list[torch.nn.Parameter], masks: list[torch.Tensor]) -> None:
    for w, mask in zip(ws, masks):
        w.masked_fill_(~mask, 0.0)


class Gradual:
    """Zhu & Gupta 2017: the density falls from 1 to d by d + (1 − d)(1 − u)³, over 50 % of the steps, after 5 %."""

    def __init__(self, ws: list[torch.nn.Parameter], share: float, steps: int, every: int = 10) -> None:
        self.ws, self.share, self.steps, self.every = ws, share, steps, every
        self.masks: list[torch.Tensor] = []
        self.done = False

    def __call__(self, t: int) -> None:
        if self.masks:
            impose(self.ws, self.masks)
        u = min(1.0, max(0.0, (t / self.steps - 0.05) / 0.5))
        if t % self.every == 0 and u and not self.done:
            self.masks, self.done = prune(self.ws, self.share + (1 - self.share) * (1 - u) ** 3), u == 1


def tune(model: torch.nn.Module, fresh: torch.optim.Optimizer, examples: Data, steps: int, batches: Any) -> None:
    """Refit on the support, with a fresh optimiser at its full lr."""
    held = Proximal(fresh, L1(1.0), params=weights(model))
    with refit(held):  # which sets λ to 0
        fit(model, held, examples, steps, batches)


def measured(model: torch.nn.Module, examples: Data) -> dict[str, float]:
    _, _, x, y = examples
    flat = torch.cat([w.detach().abs().flatten() for w in weights(model)])
    return {
        "norm": flat.sum().item(),
        "zeros": (flat == 0).float().mean().item(),
        "small": (flat < 1e-3).float().mean().item(),
        "accuracy": accuracy(model, x, y),
    }


# --- runs ----------------------------------------------------------------------------------------------------------


def bare(job: Job, model: torch.nn.Module) -> torch.optim.Optimizer:
    if job["optimizer"] == "Adam":
        return torch.optim.Adam(model.parameters(), lr=job["lr"])
    return torch.optim.SGD(model.parameters(), lr=job["lr"], momentum=0.9)


def run(job: Job) -> dict[str, Any]:
    """One run: accuracy and density at the end; under the controller also what it held, step by step."""
    torch.manual_seed(job["seed"])
    model, examples = Sequential(Linear(64, 64), ReLU(), Linear(64, 10)), digits()
    ws, batches = weights(model), torch.Generator().manual_seed(1000 + job["seed"])
    name, wanted = job["method"], job["density"]
    first = STEPS if name in ("dense", "controller", "gradual") else STEPS // 2
    optimizer, seen = bare(job, model), []
    if name.startswith("controller"):
        proximal = Proximal(optimizer, L1(1e-5), params=ws)
        controller = TargetSparsity(proximal, wanted, first)

        def hold(t: int) -> None:
            controller.step()
            seen.append(density(proximal).value)

        fit(model, proximal, examples, first, batches, after=hold)
    else:
        fit(model, optimizer, examples, first, batches, after=Gradual(ws, wanted, first) if name == "gradual" else None)
    if name == "one-shot":
        prune(ws, wanted)
    if first < STEPS:
        tune(model, bare(job, model), examples, STEPS - first, batches)
    found = measured(model, examples)
    row: dict[str, Any] = {"accuracy": found["accuracy"], "density": 1 - found["zeros"]}
    if seen:
        tail = torch.tensor(seen[-(first // 5) :], dtype=torch.float64) / wanted - 1
        row |= {"mean_off": tail.mean().item(), "worst_off": tail.abs().max().item(), "last_off": tail[-1].item()}
        row["within"] = (tail.abs() <= 0.1).double().mean().item()
    return row


def jobs() -> list[Job]:
    made = []
    for seed in SEEDS:
        for optimizer, lr in LRS.items():
            shared = {"optimizer": optimizer, "lr": lr, "seed": seed, "steps": STEPS, "batch": BATCH}
            made.append(shared | {"method": "dense", "density": 1.0})
            made += [shared | {"method": m, "density": d} for m in METHODS for d in DENSITIES]
    return made


# --- rows ----------------------------------------------------------------------------------------------------------


def key(job: Job) -> str:
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """The finished runs by key; a last line that was cut off by a kill is dropped from the file."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return {row["key"]: row for row in map(json.loads, whole.splitlines())}


def start_worker() -> None:
    """One thread; and an end where the parent was killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def work(path: Path, wanted: list[Job], run: Callable[[Job], dict[str, Any]], processes: int) -> None:
    """Compute what is missing, and append each row when it is done."""
    done = rows(path)
    missing = [job for job in wanted if key(job) not in done]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "sklearn": version("scikit-learn")}
    with contextlib.suppress(ModuleNotFoundError):
        versions["mnist1d"] = version("mnist1d")
    path.parent.mkdir(exist_ok=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    context = multiprocessing.get_context("spawn")
    with (
        Progress(*columns, TimeRemainingColumn()) as progress,
        path.open("a") as out,
        ProcessPoolExecutor(processes, context, start_worker) as pool,
    ):
        bar = progress.add_task(path.stem, total=len(wanted), completed=len(wanted) - len(missing))
        futures = {pool.submit(run, job): job for job in missing}
        try:
            for future in as_completed(futures):
                job = futures[future]
                out.write(json.dumps({"key": key(job), "job": job, "versions": versions, **future.result()}) + "\n")
                out.flush()
                progress.advance(bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def finished(path: Path, wanted: list[Job]) -> list[dict[str, Any]]:
    """The rows of the present settings; those of others are left alone."""
    done = rows(path)
    return [done[key(job)] for job in wanted if key(job) in done]


def mean_se(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error over the seeds."""
    v = torch.tensor(list(values), dtype=torch.float64)
    return v.mean().item(), (v.std() / math.sqrt(len(v))).item() if len(v) > 1 else math.nan


def parser(about: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tables", action="store_true", help="print the tables from the rows, and run nothing")
    made.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="one thread each")
    return made


def percent(values: Iterable[float]) -> str:
    mean, error = mean_se(values)
    return f"{100 * mean:.1f} ± {100 * error:.1f}"


# --- tables --------------------------------------------------------------------------------------------------------


def tables(found: list[dict[str, Any]]) -> None:
    """Held densities, then accuracies; mean ± standard error over the seeds."""

    def of(optimizer: str, method: str, wanted: float) -> list[dict[str, Any]]:
        named = {"optimizer": optimizer, "method": method, "density": wanted}
        return [row for row in found if named.items() <= row["job"].items()]

    print("Density over the last fifth, relative to the target; the worst of the seeds.\n")
    print("| | target | mean off by | largest single step off by | steps within 10 % | last step off by |")
    print("|---|---|---|---|---|---|")
    for optimizer in LRS:
        for method in ("controller", "controller+refit"):
            for wanted in DENSITIES:
                if rows := of(optimizer, method, wanted):
                    mean, worst = max(abs(r["mean_off"]) for r in rows), max(r["worst_off"] for r in rows)
                    last, within = max(abs(r["last_off"]) for r in rows), min(r["within"] for r in rows)
                    print(
                        f"| {optimizer}, {METHODS[method]} | {wanted:.0%} | {mean:.1%} | {worst:.1%} | {within:.0%} "
                        f"| {last:.1%} |"
                    )
    print("\nTest accuracy in per cent.\n")
    print("| | density | " + " | ".join(METHODS.values()) + " |\n|---" + "|---" * (len(METHODS) + 1) + "|")
    for optimizer in LRS:
        if rows := of(optimizer, "dense", 1.0):
            print(f"| {optimizer} | dense: {percent(row['accuracy'] for row in rows)} |" + " |" * len(METHODS))
        for wanted in DENSITIES:
            cells = (percent(row["accuracy"] for row in of(optimizer, method, wanted)) for method in METHODS)
            print(f"| {optimizer} | {wanted:.0%} | " + " | ".join(cells) + " |")
    print(f"\n{len(found)} of {len(jobs())} runs.")


def main() -> None:
    asked, path = parser(__doc__).parse_args(), RESULTS / "pruning.jsonl"
    if not asked.tables:
        work(path, jobs(), run, asked.processes)
    tables(finished(path, jobs()))


if __name__ == "__main__":
    main()

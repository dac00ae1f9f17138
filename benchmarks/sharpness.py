"""The largest Hessian eigenvalues of a CNN: ours beside PyHessian, curvlinops with eigsh, hessian-eigenthings.

    python benchmarks/sharpness.py            # what is missing of the measurements, then the tables
    python benchmarks/sharpness.py --tables   # the tables, from benchmarks/results/sharpness.jsonl alone

A CNN of 42,989 parameters on the 1797 digits, in float32, the loss over all of them in batches of 128 with a ragged
last one, after 1, 3 and 10 epochs of SGD. All methods at equal true error: for each, moment and k, the setting of its
grid that is cheapest among those whose values are within 1 % of the reference from each of three starts. Then each
method in turn, five times, making its operator included; ratios are of medians within the process. The reference is
Rayleigh and Ritz in float64 on vectors that eigsh gave to 1e-4, residuals below 1e-3, so that errors are below 1e-5;
70 steps of Lanczos with full orthogonalisation, from another start, must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import importlib
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.datasets import load_digits
from torch.nn import Conv2d, CrossEntropyLoss, Flatten, Linear, MaxPool2d, ReLU, Sequential
from torch.nn.functional import cross_entropy

from nonsmooth.torch import convolution
from nonsmooth.torch.curvature import sharpness
from nonsmooth.torch.hessian import Hessian
from nonsmooth.torch.lanczos import tridiagonal
from nonsmooth.torch.parts import over

RESULTS = Path(__file__).parent / "results" / "sharpness.jsonl"
EPOCHS, BATCH, LR, MOMENTUM = (1, 3, 10), 64, 0.05, 0.9
PART, WITHIN, STARTS, REPEATS = 128, 0.01, 3, 5
PROBES, EVERY = 24, 5
PRODUCTS = 25
LONG = 5
PEERS = {
    "PyHessian": ("pyhessian", "pip install pyhessian"),
    "curvlinops": ("curvlinops", "pip install curvlinops-for-pytorch"),
    "hessian-eigenthings": ("hessian_eigenthings", "pip install hessian-eigenthings"),
}
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "PyHessian", "curvlinops-for-pytorch", "hessian-eigenthings")

Job = dict[str, Any]
Found = tuple[np.ndarray, float]
"""Values (k,), the largest first, and the products that they took."""


# --- the run -------------------------------------------------------------------------------------------------------


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images[:, None] / 16, dtype=torch.float32)[order], torch.tensor(data.target)[order]


def network() -> Sequential:
    torch.manual_seed(0)
    first = (Conv2d(1, 16, 3, padding=1), ReLU(), Conv2d(16, 32, 3, padding=1), ReLU(), MaxPool2d(2))
    return Sequential(*first, Flatten(), Linear(512, 73), ReLU(), Linear(73, 10))


def training() -> Iterator[Sequential]:
    """The network after each step of SGD, the epochs shuffled."""
    model, (x, y), generator = network(), digits(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    while True:
        for which in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(x[which]), y[which]).backward()
            optimizer.step()
            yield model


def after(epochs: int) -> Sequential:
    steps = epochs * -(-len(digits()[0]) // BATCH)
    model = next(m for step, m in enumerate(training(), 1) if step == steps)
    model.zero_grad()
    return model


def parts(dtype: torch.dtype = torch.float32) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = digits()
    return list(zip(x.to(dtype).split(PART), y.split(PART), strict=True))


def ours(model: Sequential, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return over(parts(dtype), lambda batch: cross_entropy(model(batch[0]), batch[1]), **options)


def operator(hessian: Hessian) -> LinearOperator:
    return LinearOperator((hessian.dim,) * 2, lambda v: hessian(torch.from_numpy(v.ravel())).numpy(), dtype=float)


def reference(model: Sequential, k: int = 5) -> np.ndarray:
    """λ₁ … λ_k: eigsh's vectors, their Rayleigh-Ritz values in float64; Lanczos from another start must agree."""
    params = list(model.parameters())
    hessian = Hessian(ours(model, keep=True), params)
    start = np.random.default_rng(0).standard_normal(hessian.dim)
    _, vectors = eigsh(operator(hessian), k, which="LA", v0=start, ncv=30, tol=1e-4)
    double = copy.deepcopy(model).double()
    exact = Hessian(ours(double, torch.float64), list(double.parameters()))
    products = np.stack([exact(torch.from_numpy(v)).numpy() for v in vectors.T], 1)
    found, turn = np.linalg.eigh(vectors.T @ products)
    residuals = np.linalg.norm((products - vectors @ (vectors.T @ products)) @ turn, axis=0)
    other = torch.randn(hessian.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nodes = np.sort(tridiagonal(hessian, other, 70).nodes)[-k:]
    if (residuals > 1e-3 * found).any() or np.abs(nodes / found - 1).max() > 1e-4:
        raise RuntimeError(f"the references disagree: {found} (residuals {residuals}) by eigsh, {nodes} by Lanczos.")
    return found[::-1]


# --- the methods ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """One method: `run(model, k, seed, **setting)`, and lines of settings, each from loose to strict."""

    run: Callable[..., Found]
    grid: Callable[[int], list[list[dict[str, Any]]]]


def nonsmooth_way(model: Sequential, k: int, seed: int, tol: float, products: int | None = None) -> Found:
    most = {} if products is None else {"max_products": products}
    found = sharpness(ours(model), list(model.parameters()), k=k, tol=tol, seed=seed, **most)
    return found.value, found.products


def pyhessian_way(model: Sequential, k: int, seed: int, tol: float, whole: bool) -> Found:
    """By batches, or with all data as one batch, of which it keeps the graph; k power iterations with deflation."""
    library = importlib.import_module("pyhessian.hessian")
    torch.manual_seed(seed)
    data = {"data": digits()} if whole else {"dataloader": parts()}
    made = library.hessian(model, CrossEntropyLoss(), cuda=False, **data)
    count, product = [0], library.group_product

    def counted(a: Any, b: Any) -> Any:  # its Rayleigh quotient, once a product
        count[0] += 1
        return product(a, b)

    library.group_product = counted
    try:
        values, _ = made.eigenvalues(maxIter=100, tol=tol, top_n=k)
    finally:
        library.group_product = product
        model.zero_grad()
    return np.array(values), count[0]


def curvlinops_way(model: Sequential, k: int, seed: int, tol: float, ncv: int) -> Found:
    library = importlib.import_module("curvlinops")
    params = list(model.parameters())
    made = library.HessianLinearOperator(
        model, CrossEntropyLoss(), params, parts(), num_data=len(digits()[0]), check_deterministic=False
    )
    inner, count = made.to_scipy(), [0]

    def product(v: np.ndarray) -> np.ndarray:
        count[0] += 1
        return inner @ v.ravel()

    counted = LinearOperator(inner.shape, product, dtype=inner.dtype)
    start = np.random.default_rng(seed).standard_normal(inner.shape[0]).astype(inner.dtype)
    values = eigsh(counted, k, which="LA", v0=start, tol=tol, ncv=ncv, return_eigenvectors=False)
    return np.sort(values)[::-1], count[0]


def eigenthings_way(model: Sequential, k: int, seed: int, max_iter: int) -> Found:
    """It gives every batch the same weight, so the loss has the ragged one's weight in it."""
    library = importlib.import_module("hessian_eigenthings")
    lanczos = importlib.import_module("hessian_eigenthings.algorithms.lanczos").lanczos
    batches = parts()
    share = len(batches) / len(digits()[0])
    loss = lambda m, batch: cross_entropy(m(batch[0]), batch[1]) * (len(batch[0]) * share)  # noqa: E731
    made = lanczos(library.HessianOperator(model, batches, loss), k=k, max_iter=max_iter, which="LA", seed=seed)
    return made.eigenvalues.double().numpy(), made.iterations


def iterations(k: int) -> list[int]:
    return [n for n in (*range(1, 16), 17, 19, 22, 25, 28, 32, 36, 40, 45, 50) if n >= k]


WAYS = {
    "nonsmooth": Way(
        nonsmooth_way,
        lambda k: [
            [{"tol": t} for t in (0.9, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)],
            [{"tol": 1e-6, "products": n} for n in iterations(k)],
        ],
    ),
    "PyHessian": Way(
        pyhessian_way, lambda k: [[{"tol": t, "whole": False} for t in (0.1, 0.03, 0.01, 0.003, 0.001, 1e-4, 1e-5)]]
    ),
    "PyHessian, all as one batch": Way(
        pyhessian_way, lambda k: [[{"tol": t, "whole": True} for t in (0.1, 0.03, 0.01, 0.003, 0.001, 1e-4, 1e-5)]]
    ),
    "curvlinops": Way(
        curvlinops_way,
        lambda k: [
            [{"tol": t, "ncv": n} for t in (0.5, 0.1, 0.03, 0.01, 1e-3)]
            for n in ((3, 4, 5, 6, 8, 10, 20) if k == 1 else (8, 10, 12, 14, 17, 20, 25, 30))
        ],
    ),
    "hessian-eigenthings": Way(eigenthings_way, lambda k: [[{"max_iter": n} for n in iterations(k)]]),
}


def present() -> dict[str, Way]:
    """The ways that can be run here; of the others, how to get them."""
    found = {"nonsmooth": WAYS["nonsmooth"]}
    for name, (module, line) in PEERS.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            print(f"{name} is left out ({error}); to have it: {line}")
        else:
            found |= {way: WAYS[way] for way in WAYS if way.startswith(name)}
    return found


# --- measurements --------------------------------------------------------------------------------------------------


@dataclass
class Timed:
    error: float
    products: float
    seconds: float
    cpu: float


def timed(way: Way, model: Sequential, true: np.ndarray, seed: int, setting: dict[str, Any]) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    values, products = way.run(model, len(true), seed, **setting)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Timed(float(np.abs(values / true - 1).max()), products, wall, cpu)


def tuned(way: Way, model: Sequential, true: np.ndarray, limit: float) -> tuple[dict[str, Any] | None, float]:
    """The cheapest setting, by processor time, within 1 % from each start, and its time; None beyond `limit`."""
    best, least = None, limit
    for line in way.grid(len(true)):
        for setting in line:
            runs = []
            for seed in range(STARTS):
                runs.append(timed(way, model, true, seed, setting))
                if runs[-1].error > WITHIN:
                    break
            if all(run.error <= WITHIN for run in runs):
                cost = min(run.cpu for run in runs)
                if cost < least:
                    best, least = setting, cost
                break
            if runs[0].cpu > 1.3 * least:
                break
    return best, least


def compare(epochs: int, k: int) -> dict[str, Any]:
    model, ways, settings, limit = after(epochs), present(), dict[str, Any](), float("inf")
    true = reference(model)[:k]
    for name, way in ways.items():  # ours first; what takes longer than LONG times that is not looked for
        settings[name], least = tuned(way, model, true, limit)
        limit = min(limit, LONG * least)
    ways = {name: way for name, way in ways.items() if settings[name] is not None}
    runs: dict[str, list[Timed]] = {name: [] for name in ways}
    for repeat in range(REPEATS):
        for name, way in ways.items():
            runs[name].append(timed(way, model, true, repeat % STARTS, settings[name] or {}))
    return {
        "true": true.tolist(),
        "settings": settings,
        **{
            of: {name: statistics.median(getattr(run, of) for run in some) for name, some in runs.items()}
            for of in ("seconds", "cpu", "products")
        },
        "error": {name: max(run.error for run in some) for name, some in runs.items()},
    }


def tracked(probes: int) -> dict[str, Any]:
    """λ₁ to the default tolerance at a probe every five steps, from the first epoch on, each started by the last."""
    last, products, errors, seconds = None, [], [], []
    begin = -(-len(digits()[0]) // BATCH)
    for step, model in enumerate(training(), 1):
        if step < begin or (step - begin) % EVERY:
            continue
        params = list(model.parameters())
        started = time.perf_counter()
        found = sharpness(ours(model), params, start=last)
        seconds.append(time.perf_counter() - started)
        hessian = Hessian(ours(model, keep=True), params)
        start = np.random.default_rng(step).standard_normal(hessian.dim)
        true = eigsh(operator(hessian), 1, which="LA", v0=start, ncv=12, tol=1e-3, return_eigenvectors=False)[0]
        products.append(found.products)
        errors.append(abs(float(found.value[0]) / true - 1))
        last = found
        if len(products) > probes:
            break
    return {"first": products[0], "products": products[1:], "errors": errors, "seconds": statistics.median(seconds)}


def convolutions(repeats: int) -> dict[str, Any]:
    """A product with a kept graph, of our convolutions and of torch's, in turn; in processor time, medians."""
    model, own = after(10), convolution.WORTH
    params, made, seconds = list(model.parameters()), dict[str, Hessian](), dict[str, list[float]]()
    for name, worth in (("ours", own), ("torch", float("inf"))):
        convolution.WORTH = worth  # type: ignore[assignment]
        made[name], seconds[name] = Hessian(ours(model, keep=True), params), []
        made[name](torch.ones(made[name].dim))
    convolution.WORTH = own
    v = torch.randn(made["ours"].dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = made["ours"](v), made["torch"](v)
    for _ in range(repeats):
        for name, hessian in made.items():
            started = time.process_time()
            hessian(v)
            seconds[name].append(time.process_time() - started)
    apart = float((a - b).norm() / b.norm())
    return {**{name: statistics.median(some) for name, some in seconds.items()}, "apart": apart}


# --- records and tables --------------------------------------------------------------------------------------------


COMPARED: list[Job] = [{"epochs": epochs, "k": k} for epochs in EPOCHS for k in (1, 5)]
GAINED: Job = {"convolutions": PRODUCTS}
TRACKED: Job = {"track": PROBES}


def key(job: Job) -> str:
    return hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def rows() -> dict[str, list[dict[str, Any]]]:
    """What is recorded, by the key of the job: a job may have been run several times."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        row = json.loads(line)
        found.setdefault(row["key"], []).append(row)
    return found


def spread(values: list[float], form: str) -> str:
    middle = form.format(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({form.format(min(values))}–{form.format(max(values))})"


def tables() -> None:
    found = rows()
    done = [row for some in found.values() for row in some]
    if not done:
        return print("Nothing is measured yet.")
    named = done[-1]["versions"]
    print("\n" + ", ".join(f"{name} {number}" for name, number in named.items()) + f"; {done[-1]['threads']} threads\n")
    print("| epochs, k | method | setting | products | true error | seconds | over ours | over ours, processor time |")
    print("|---|---|---|---|---|---|---|---|")
    for job in COMPARED:
        some = found.get(key(job), [])
        for name in WAYS if some else ():
            with_it = [row for row in some if name in row["seconds"]]
            head = f"| {job['epochs']}, {job['k']} | {name} |"
            if not with_it:
                print(f"{head} none within 1 % in five times our time | | | | | |")
                continue
            ratios = [
                spread([row[of][name] / row[of]["nonsmooth"] for row in with_it], "{:.2f}") for of in ("seconds", "cpu")
            ]
            setting = ", ".join(f"{n} {v}" for n, v in with_it[-1]["settings"][name].items() if n != "whole")
            print(
                f"{head} {setting} | {spread([row['products'][name] for row in with_it], '{:.0f}')} | "
                f"{max(row['error'][name] for row in with_it):.1%} | "
                f"{spread([row['seconds'][name] for row in with_it], '{:.2f}')} | " + " | ".join(ratios) + " |"
            )
    for row in found.get(key(GAINED), [])[-1:]:
        print(
            f"\nA product with a kept graph takes {row['ours'] / row['torch']:.2f} of the processor time that it takes "
            f"with torch's convolutions ({row['ours']:.3f}, {row['torch']:.3f} s; {row['apart']:.0e} apart)."
        )
    for row in found.get(key(TRACKED), [])[-1:]:
        counts, errors = row["products"], row["errors"]
        print(
            f"\nTracked, {len(counts)} probes, one every {EVERY} steps: {statistics.mean(counts):.1f} products each, "
            f"{max(counts)} at most, after {row['first']} for the first; error {statistics.mean(errors):.2%}, "
            f"{max(errors):.2%} at most; {row['seconds']:.2f} s a probe."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="the tables alone")
    parser.add_argument(
        "--again", action="store_true", help="measure also what is recorded; the tables give the spread"
    )
    parser.add_argument("--only", metavar="WHAT", help="'track', 'convolutions', or epochs and k such as '3,5'")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.filterwarnings("ignore")  # PyHessian keeps graphs in .grad, which torch warns of
    for job in () if asked.tables else (*COMPARED, GAINED, TRACKED):
        name = f"{job['epochs']},{job['k']}" if "k" in job else next(iter(job))
        if asked.only and asked.only != name:
            continue
        if key(job) in rows() and not asked.again:
            continue
        found = {"track": tracked, "convolutions": convolutions}[name](job[name]) if name in job else compare(**job)
        row = {"key": key(job), "job": job, "versions": versions(), "threads": asked.threads, **found}
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + os.linesep)
    tables()


if __name__ == "__main__":
    main()

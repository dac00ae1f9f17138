"""`ns.simulate` beside what a user would write: ratios within one run, medians over several.

    python benchmarks/simulate.py

Prints the table that benchmarks/README.md keeps. One Lasso (N = 50, P = 20), RMSProp, 45 values of λ, 4000 steps,
against a plain torch loop over the runs and against the same sweep batched in eager torch; then a thousand runs of
20,000 steps; then P = 1000, where the work is one matrix product a step, against that product alone.
"""

from __future__ import annotations

import platform
import resource
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch

import nonsmooth as ns
from nonsmooth.objectives import random_least_squares
from nonsmooth.penalties import L1
from nonsmooth.rules import Gradient, RMSProp

EVERYTHING = ("value", "loss", "gap", "l1_norm", "zeros", "sign_changes", "grad_norm", "kappa")
LR, STEPS = 1e-3, 4000
LAMS = np.geomspace(0.01, 1000, 45)
PROBLEM = random_least_squares(n=50, p=20)
START = np.random.default_rng(0).standard_normal(20)


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def ours(record: tuple[str, ...] = ("l1_norm", "value")) -> np.ndarray:
    run = ns.simulate(PROBLEM, RMSProp(lr=LR), penalty=L1(LAMS), steps=STEPS, x0=START, record=record)
    return run.x_final.values


def torch_loop(lams: np.ndarray) -> np.ndarray:
    """What a user writes: one run after the other, the norm and the value kept at every step."""
    X, y = torch.tensor(PROBLEM.X), torch.tensor(PROBLEM.y)
    answers = []
    for lam in lams:
        w = torch.tensor(START, requires_grad=True)
        optimizer = torch.optim.RMSprop([w], lr=LR)
        norms, values = [], []
        for _ in range(STEPS):
            optimizer.zero_grad()
            value = ((y - X @ w) ** 2).mean() + float(lam) * w.abs().sum()
            value.backward()
            optimizer.step()
            norms.append(w.detach().abs().sum().item())
            values.append(value.item())
        answers.append(w.detach().numpy().copy())
    return np.array(answers)


def torch_batched() -> np.ndarray:
    """All runs in one tensor, gradients by hand, no autograd: what an eager user can do at best."""
    X, y, lam = torch.tensor(PROBLEM.X), torch.tensor(PROBLEM.y), torch.tensor(LAMS)[:, None]
    n = len(y)
    w = torch.tensor(START).repeat(len(LAMS), 1)
    v = torch.zeros_like(w)
    gram, moment, square = 2 * X.T @ X / n, 2 * X.T @ y / n, (y @ y) / n
    norms, values = torch.empty(STEPS, len(LAMS), dtype=w.dtype), torch.empty(STEPS, len(LAMS), dtype=w.dtype)
    product = w @ gram
    for step in range(STEPS):
        g = product - moment + lam * w.sign()
        v.mul_(0.99).addcmul_(g, g, value=0.01)
        w.addcdiv_(g, v.sqrt().add_(1e-8), value=-LR)
        product = w @ gram
        size = w.abs().sum(1)
        norms[step] = size
        values[step] = (w * (0.5 * product - moment)).sum(1) + square + lam[:, 0] * size
    return w.numpy()


def gemm_rate(runs: int, p: int) -> float:
    """Flops a second of the bare product (runs, p) × (p, p), in the faster of NumPy and torch."""
    a, b = np.random.default_rng(0).standard_normal((runs, p)), np.random.default_rng(1).standard_normal((p, p))
    ta, tb = torch.tensor(a), torch.tensor(b)
    best = min(seconds(lambda: [a @ b for _ in range(50)]), seconds(lambda: [ta @ tb for _ in range(50)])) / 50
    return 2 * runs * p * p / best


def main() -> None:
    torch.set_num_threads(2)
    random = np.random.default_rng(1)
    ns.simulate(random_least_squares(30, 7), Gradient(lr=1e-3), steps=3)  # imports JAX; compiles another structure

    began = time.perf_counter()
    answer = ours()
    cold = time.perf_counter() - began
    warm = seconds(ours, 15)
    ours(EVERYTHING)
    everything = seconds(lambda: ours(EVERYTHING))
    some = np.sort(random.choice(len(LAMS), 5, replace=False))
    began = time.perf_counter()
    twin = torch_loop(LAMS[some])
    loop = (time.perf_counter() - began) * len(LAMS) / len(some)
    batched = seconds(torch_batched, 5)
    small = LAMS[some] < 1  # beyond that every run chatters and one rounding error changes its phase
    difference = np.abs(twin - answer[some])[small].max(initial=0.0)

    began = time.perf_counter()
    ns.simulate(PROBLEM, RMSProp(lr=LR), penalty=L1(np.geomspace(0.01, 1000, 1000)), steps=20_000, x0=START)
    thousand = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    wide, runs, steps = random_least_squares(n=2000, p=1000), 64, 400
    sweep = lambda: ns.simulate(wide, Gradient(lr=1e-3), penalty=L1(np.geomspace(0.01, 10, runs)), steps=steps)  # noqa: E731
    sweep()
    shares = []
    for _ in range(5):
        rate = gemm_rate(runs, 1000)
        shares.append(2 * 1000**2 * runs * steps / seconds(sweep, 1) / rate)
    share = statistics.median(shares)

    loops = f"{loop / warm:.0f}× ({loop:.1f} s / {1e3 * warm:.1f} ms)"
    rows = [
        ("45 Lasso runs × 4000 steps: plain torch loop / warm", loops, "≥ 500×"),
        ("the same, compilation included", f"{loop / cold:.0f}×", "≥ 20×"),
        ("the same, every variable recorded, warm", f"{loop / everything:.0f}×", "≥ 250×"),
        ("batched in eager torch / warm", f"{batched / warm:.1f}×", "≥ 8×"),
        ("1000 runs × 20,000 steps, compilation included", f"{thousand:.1f} s", "≤ 10 s"),
        ("peak memory up to there, 320 MB of records in it", f"{peak:.2f} GiB", "stated"),
        ("P = 1000, 64 runs: share of the bare product's rate", f"{share:.0%} ({rate / 1e9:.0f} Gflop/s)", "≥ 60 %"),
    ]
    used = f"NumPy {np.__version__}, JAX {version('jax')}, torch {torch.__version__}"
    print(f"Python {platform.python_version()}, {used}, 2 threads\n\n| what | figure | bar |\n|---|---|---|")
    for what, figure, bar in rows:
        print(f"| {what} | {figure} | {bar} |")
    print(f"\nLargest difference from the torch loop after {STEPS} steps, λ < 1: {difference:.1e}.")
    print(f"The loop was timed on {len(some)} of the 45 values of λ and scaled up.")


if __name__ == "__main__":
    main()

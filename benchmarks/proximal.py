"""What `Proximal` adds to a step, beside the cost of the penalty by autograd: ratios within one run, then medians.

    python benchmarks/proximal.py

Prints the table that benchmarks/README.md keeps. 5 million parameters in float32, in one tensor, in five and in fifty,
under fused Adam on two threads of a CPU. Each set-up runs in `PROCESSES` processes of its own, for where the pages of
an array come to lie changes the time of fused Adam itself by half; a ratio is of two medians within a process.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from nonsmooth.penalties import L1, MCP, GroupLasso, Penalty
from nonsmooth.torch import Proximal

PROCESSES, REPEATS, TENSORS = 3, 30, (1, 5, 50)
SIZE, LAM = 5_000_000, 1e-4


def model(tensors: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shape = (SIZE // tensors // 100, 100)
    params = [torch.nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for _ in range(tensors)]
    for p in params:
        p.grad = 0.01 * torch.randn(shape, generator=generator)
    return params


def adam(params: list[torch.nn.Parameter]) -> torch.optim.Adam:
    return torch.optim.Adam(params, lr=1e-3, fused=True)


def proximal(tensors: int, penalty: Penalty, compile: bool = False) -> Callable[[], object]:
    return Proximal(adam(model(tensors)), penalty, compile=compile).step


def autograd_penalty(tensors: int) -> Callable[[], object]:
    """The penalty's own forward and backward: λ Σ |w| into .grad."""
    params = model(tensors)

    def step() -> None:
        for p in params:
            p.grad = None
        (LAM * sum(p.abs().sum() for p in params)).backward()

    return step


def measure(tensors: int) -> dict[str, float]:
    """Median times in milliseconds, each way in turn, and the seconds of the first compiled steps."""
    torch.set_num_threads(2)
    ways: dict[str, Callable[[], object]] = {
        "adam": adam(model(tensors)).step,
        "penalty": autograd_penalty(tensors),
        "eager": proximal(tensors, L1(LAM)),
        "compiled": proximal(tensors, L1(LAM), compile=True),
        "eager MCP": proximal(tensors, MCP(LAM, 30.0)),
        "eager groups": proximal(tensors, GroupLasso(LAM, dim=0)),
    }
    began = time.perf_counter()
    for _ in range(2):  # the first makes the state, the second is step and prox in one
        ways["compiled"]()
    found = {"compile": time.perf_counter() - began}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(REPEATS + 3):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if repeat >= 3:
                times[name].append(1e3 * (time.perf_counter() - began))
    return found | {name: statistics.median(some) for name, some in times.items()}


def extra_memory(compile: bool) -> float:
    """By how much the peak of resident memory grows over 20 steps under Proximal, in parts of the parameters' own."""
    torch.set_num_threads(2)
    bare = adam(model(5))
    bare.step()
    optimizer = Proximal(bare, L1(LAM), compile=compile)
    if compile:  # the compiler's own memory is not the step's
        warm = proximal(5, L1(LAM), compile=True)
        for _ in range(3):
            warm()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        optimizer.step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * SIZE)


def elsewhere(*what: str) -> dict[str, float]:
    """What this script prints when it is asked for one measurement, in a process of its own."""
    fresh = {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), *what]
    answer = subprocess.run(command, env=ENVIRONMENT | fresh, capture_output=True, text=True, check=True).stdout
    return json.loads(answer)


def spread(values: list[float], form: str = "{:.2f}") -> str:
    return f"{form.format(statistics.median(values))} ({form.format(min(values))}–{form.format(max(values))})"


def report() -> None:
    print(
        f"Python {platform.python_version()}, torch {version('torch')}, 2 threads; median (least–largest) of "
        f"{PROCESSES} processes\n\n| what, over fused Adam alone | "
        + " | ".join(f"{n} tensor{'s' * (n > 1)}" for n in TENSORS)
        + " | bar |\n|---|"
        + "---|" * (len(TENSORS) + 1)
    )
    found = {n: [elsewhere("measure", str(n)) for _ in range(PROCESSES)] for n in TENSORS}

    def row(what: str, ratio: Callable[[dict[str, float]], float], bar: str, form: str = "{:.2f}") -> None:
        print(f"| {what} | " + " | ".join(spread([ratio(r) for r in found[n]], form) for n in TENSORS) + f" | {bar} |")

    row("Proximal, L1, compiled", lambda r: r["compiled"] / r["adam"], "≤ 1.6, goal 1.15")
    row("Proximal, L1, eager", lambda r: r["eager"] / r["adam"], "≤ 2.2")
    row("L1 by autograd: Adam, and the penalty's own forward and backward", lambda r: 1 + r["penalty"] / r["adam"], "")
    row("compiled / L1 by autograd", lambda r: r["compiled"] / (r["adam"] + r["penalty"]), "≤ 0.75")
    row("Proximal, MCP, eager", lambda r: r["eager MCP"] / r["adam"], "")
    row("Proximal, GroupLasso, eager", lambda r: r["eager groups"] / r["adam"], "")
    row("fused Adam alone, ms", lambda r: r["adam"], "")
    row("first two compiled steps, without a cache, s", lambda r: r["compile"], "stated", "{:.1f}")
    for how in ("eager", "compiled"):
        grown = elsewhere("memory", how)["grown"]
        print(f"\nPeak memory grown over 20 {how} steps: {grown:.3f} of the parameters' own.")


if __name__ == "__main__":
    import os

    ENVIRONMENT = dict(os.environ)
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    elif sys.argv[1:2] == ["memory"]:
        print(json.dumps({"grown": extra_memory(sys.argv[2] == "compiled")}))
    else:
        report()

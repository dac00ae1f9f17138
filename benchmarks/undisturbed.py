"""Whether a watched run is the same, bit by bit: with an Audit, with a Monitor, and without.

    python benchmarks/undisturbed.py                     # what is missing of the matrix, then the table
    python benchmarks/undisturbed.py --models mlp cnn    # of these models alone
    python benchmarks/undisturbed.py --table             # the table, from benchmarks/results/undisturbed.jsonl alone

200 steps each of an MLP with dropout, a CNN (batch norm, dropout, in-place ReLU, max-pooling), a ResNet, an LSTM and a
GPT-2 of random weights; SGD, momentum, Adam, AdamW, RMSprop and Proximal; plain, with gradients accumulated, AMP in
bfloat16 with a GradScaler, clipped, compiled (with three of the optimisers, and not the LSTM), and read by two workers.
Probes have 90 % of the wall clock. Compared are parameters, buffers, `.grad`, the optimiser's state, the streams of
Python, NumPy and torch, modes, and what the script printed: losses, and numbers drawn from each stream at every step.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy, max_pool2d, relu
from torch.utils.data import DataLoader, Dataset

from nonsmooth.penalties import L1
from nonsmooth.torch import Monitor, Proximal
from nonsmooth.torch.audit import Audit
from nonsmooth.torch.facts import versions

RESULTS = Path(__file__).parent / "results" / "undisturbed.jsonl"
STEPS, BATCH, BUDGET = 200, 16, 0.9


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.f = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = relu(self.b(self.a(x.view(-1, 1, 8, 8))))
        return self.f(max_pool2d(relu(x + self.d(self.c(x))), 2).flatten(1))


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.f = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(self.l(x.view(-1, 8, 8))[0][:, -1])


class GPT2(nn.Module):
    """It returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        size = {
            "vocab_size": 32,
            "n_positions": 16,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "loss_type": "ForCausalLM",
        }
        self.g = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = (x[:, :12].abs() * 9).long() % 32
        return self.g(input_ids=ids, labels=ids).loss


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def cnn() -> nn.Module:
    first = (nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    return nn.Sequential(*first, nn.Dropout(0.2), nn.Flatten(), nn.Linear(36, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn, "resnet": ResNet, "lstm": LSTM, "gpt2": GPT2}
OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "sgd": lambda m: optim.SGD(m.parameters(), lr=0.05),
    "momentum": lambda m: optim.SGD(m.parameters(), lr=0.02, momentum=0.9),
    "adam": lambda m: optim.Adam(m.parameters(), lr=0.003),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=0.003),
    "rmsprop": lambda m: optim.RMSprop(m.parameters(), lr=0.001),
    "proximal": lambda m: Proximal(optim.Adam(m.parameters(), lr=0.003), L1(1e-3)),
}
MODES = ("plain", "accumulate", "amp", "clip", "compiled", "workers")
WATCHES = ("audit", "monitor")


class Noisy(Dataset[Any]):
    """Draws from all three streams, in the worker that reads it."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        fixed = torch.tensor(np.random.RandomState(i).randn(64), dtype=torch.float32)
        return fixed + 0.01 * torch.randn(64) + 0.01 * random.random() + 0.01 * np.random.rand(), i % 3


def batches(workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    context = "fork" if workers else None
    loader = DataLoader(Noisy(), BATCH, shuffle=True, num_workers=workers, multiprocessing_context=context)
    while True:
        yield from loader


def train(model: nn.Module, optimizer: optim.Optimizer, mode: str) -> None:
    """As a script would, that knows nothing of who watches."""
    forward = torch.compile(model) if mode == "compiled" else model
    scheduler = optim.lr_scheduler.StepLR(optimizer, 50, 0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=mode == "amp")
    micro = 2 if mode == "accumulate" else 1
    for t, (x, y) in zip(range(STEPS), batches(2 if mode == "workers" else 0), strict=False):
        optimizer.zero_grad()
        for _ in range(micro):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "amp"):
                z = forward(x)
                loss = z if z.ndim == 0 else cross_entropy(z, y)
            scaler.scale(loss / micro).backward()
        if mode == "clip":
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        print(t, loss.item(), random.random(), np.random.rand(), torch.rand(1).item())


def left_by(model: nn.Module, optimizer: optim.Optimizer, printed: str) -> dict[str, str]:
    """A digest of each thing that a run leaves behind."""

    def bits(tensors: Any) -> str:
        parts = [torch.as_tensor(t).detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for t in tensors]
        return digest(b"|".join(parts))

    def digest(what: Any) -> str:
        return hashlib.sha256(what if isinstance(what, bytes) else repr(what).encode()).hexdigest()

    params = list(model.parameters())
    numpy = np.random.get_state()
    return {
        "parameters": bits(params),
        "buffers": bits(model.buffers()),
        "grad": bits(p.grad for p in params if p.grad is not None),
        "state": bits(v for p in params for _, v in sorted(optimizer.state[p].items())),
        "python": digest(random.getstate()),
        "numpy": digest((numpy[1].tobytes(), numpy[2:])),
        "torch": bits([torch.get_rng_state()]),
        "modes": digest(
            ([m.training for m in model.modules()], torch._C._len_torch_function_stack(), nn.Module.__call__)
        ),
        "printed": digest(printed),
    }


def run(model: str, optimizer: str, mode: str, watch: str | None) -> tuple[dict[str, str], list[dict[str, Any]], float]:
    """What is left, the watch's rows, and the seconds that it took."""
    torch._dynamo.reset()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    with torch.random.fork_rng():
        x, y = torch.randn(BATCH, 64), torch.arange(BATCH) % 3
    rows: list[dict[str, Any]] = []
    audit = Audit(budget=BUDGET, trials=16) if watch == "audit" else None
    began, out = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(out), audit or contextlib.nullcontext():
        net = MODELS[model]()
        made = OPTIMIZERS[optimizer](net)

        def closure() -> torch.Tensor:
            z = net(x)
            return z if z.ndim == 0 else cross_entropy(z, y)

        monitor = Monitor(net, made, closure, budget=BUDGET) if watch == "monitor" else None
        with monitor or contextlib.nullcontext():
            train(net, made, mode)
    if audit is not None and audit.monitor is not None:
        rows = audit.monitor.rows
    if monitor is not None:
        rows = monitor.rows
    return left_by(net, made, out.getvalue()), rows, time.perf_counter() - began


def cells(models: list[str]) -> Iterator[tuple[str, str, str]]:
    """All of them, in an order in which each part of it has something of everything."""
    for shift in range(len(OPTIMIZERS)):
        for model in models:
            for i, mode in enumerate(MODES):
                optimizer = list(OPTIMIZERS)[(i + shift) % len(OPTIMIZERS)]
                if not (mode == "compiled" and (model == "lstm" or optimizer not in ("sgd", "rmsprop", "proximal"))):
                    yield model, optimizer, mode


def measure(models: list[str], seconds: float) -> None:
    """Append a row for each cell that has none yet of this version of torch, until the time is up."""
    done = {(r["model"], r["optimizer"], r["mode"]) for r in results() if r["torch"] == torch.__version__}
    end = time.perf_counter() + seconds
    for cell in cells(models):
        if cell in done or time.perf_counter() > end:
            continue
        bare, _, took = run(*cell, None)
        row: dict[str, Any] = dict(zip(("model", "optimizer", "mode"), cell, strict=True))
        row |= {"steps": STEPS, "budget": BUDGET, "seconds": round(took, 2)}
        for watch in WATCHES:
            found, rows, took = run(*cell, watch)
            probes = [r for r in rows if r["kind"] in ("step", "stability")]
            row[watch] = {
                "differs": [name for name in bare if bare[name] != found[name]],
                "probes": sum("error" not in r for r in probes),
                "errors": sorted({r["error"] for r in probes if "error" in r}),
                "seconds": round(took, 2),
            }
        row |= {"at": datetime.now(UTC).isoformat(timespec="seconds")} | versions()
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(*cell, *(f"{watch}: {row[watch]['differs'] or 'the same'}" for watch in WATCHES), flush=True)


def results() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> str:
    """A line for each model and mode: in how many of the optimisers' runs all was the same, and the probes made."""
    rows = results()
    lines = [
        "| model | mode | runs | the same with an audit | with a monitor | probes | failed |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for model in MODELS:
        for mode in MODES:
            own = [r for r in rows if (r["model"], r["mode"]) == (model, mode)]
            if own:
                same = [sum(not r[watch]["differs"] for r in own) for watch in WATCHES]
                probes = sum(r[watch]["probes"] for r in own for watch in WATCHES)
                failed = sum(len(r[watch]["errors"]) for r in own for watch in WATCHES)
                lines.append(f"| {model} | {mode} | {len(own)} | {same[0]} | {same[1]} | {probes} | {failed} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop before the next run after so long")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table:
        measure(arguments.models, arguments.seconds)
    print(table())


if __name__ == "__main__":
    main()

"""A training run under a Monitor, killed with kill -9 at random moments and resumed: what is lost, and is it the same?

    python benchmarks/kills.py 50        kills (a seed may follow)

An MLP 64-32-10 with dropout on the digits, 300 steps of Proximal(SGD with momentum), L1, batches drawn at random.
Every 20 steps it saves model, optimiser and random numbers, and it goes on from there in a new process. It tells each
row over a pipe once that is in rows.jsonl. After each kill every row that was told must be in the file, and what was
there before must be there still, byte for byte. After a quarter of the kills the file is also cut within its last row,
as by a loss of power. At the end the parameters, and the checksums of the weights at each traced step, must be those of
a run that no one disturbed, and the parameters those of a run that nothing watched.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import warnings
import zlib
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from nonsmooth.penalties import L1
from nonsmooth.torch import Monitor, Proximal, weights
from nonsmooth.torch.facts import plain

STEPS, EVERY = 300, 20
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["nonsmooth.torch", "sklearn.datasets", "torch._dynamo"])


def train(folder: Path, watched: bool = True, tell: Connection | None = None) -> None:
    """Train from the newest checkpoint of a folder, or from the start."""
    warnings.filterwarnings("ignore", message=".*was cut off")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10))
    bare = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = Proximal(bare, L1(1e-3), params=weights(model))
    folder.mkdir(exist_ok=True)
    newest, done = folder / "checkpoint.pt", 0
    if newest.exists():
        saved = torch.load(newest)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"])
        done = saved["step"]

    def told(row: Any) -> None:
        if tell is not None:
            tell.send_bytes(checksum(json.dumps(plain(row), ensure_ascii=False).encode()))

    def step() -> None:
        which = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        cross_entropy(model(x[which]), y[which]).backward()
        optimizer.step()

    def save() -> None:
        beside = newest.with_suffix(".partial")
        state = {"step": done, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state | {"random": torch.get_rng_state()}, beside)
        os.replace(beside, newest)

    def closure() -> torch.Tensor:
        return cross_entropy(model(x[:256]), y[:256])

    monitor = Monitor(model, optimizer, closure, budget=0.5, folder=folder if watched else None, loggers=[told])
    monitor.t = done
    if watched:
        monitor.__enter__()
    while done < STEPS:
        step()
        done += 1
        if done % EVERY == 0:
            save()
    monitor.__exit__()


def checksum(line: bytes) -> bytes:
    return zlib.crc32(line).to_bytes(4, "big")


def final(folder: Path) -> dict[str, bytes]:
    saved = torch.load(folder / "checkpoint.pt")
    assert saved["step"] == STEPS
    return {name: p.numpy().tobytes() for name, p in saved["model"].items()}


def traces(folder: Path) -> set[tuple[int, str]]:
    """The steps that were traced, with the checksums of the weights after each."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return {(row["step"], json.dumps(row["weights"], sort_keys=True)) for row in rows if row["kind"] == "trace"}


def lines(folder: Path) -> tuple[bytes, bytes]:
    """What the file has up to its last line break, and after it."""
    path = folder / "rows.jsonl"
    held, rule, rest = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
    return held + rule, rest


def run(folder: Path, seconds: float | None, watched: bool = True) -> tuple[bool, list[bytes]]:
    """One process, killed after so many seconds; whether it was, and the rows that it told."""
    mine, its = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=train, args=(folder, watched, its))
    process.start()
    its.close()
    process.join(seconds)
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), "the run failed by itself"
    told = []
    try:
        while True:
            told.append(mine.recv_bytes())
    except (EOFError, OSError):  # all was read, or the last word was cut off
        mine.close()
    return process.exitcode == -9, told


def kills(count: int, seed: int = 0) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        calm, bare = Path(place) / "calm", Path(place) / "bare"
        run(bare, None, watched=False)
        began = time.perf_counter()
        run(calm, None)
        seconds = time.perf_counter() - began
        assert final(calm) == final(bare)
        steps = dict(traces(calm))
        print(f"undisturbed: {STEPS} steps, {len(lines(calm)[0].splitlines())} rows in {seconds:.1f} s", flush=True)
        folder, was = Path(place) / "0", False
        killed = ended = cut = torn = rows = lost = compared = 0
        while killed < count or was:
            before, rest = lines(folder)
            was, told = run(folder, chance.uniform(0.02, 0.8) * seconds if killed < count else None)
            after, left = lines(folder)
            assert after.startswith(before), "a row that was whole is not what it was"
            there = {checksum(line) for line in after.splitlines()}
            lost += sum(row not in there for row in told)
            rows += len(told)
            if was:
                killed += 1
                torn += left not in (b"", rest)
                if after and chance.random() < 0.25:
                    last = after.splitlines(keepends=True)[-1]
                    os.truncate(folder / "rows.jsonl", len(after) - chance.randrange(1, len(last)))
                    cut += 1
                continue
            ended += 1
            assert final(folder) == final(calm), "the parameters are not those of the undisturbed run"
            met = traces(folder)
            compared += sum(step in steps for step, _ in met)
            assert all(steps.get(step, found) == found for step, found in met), "the weights parted on the way"
            print(f"{killed} kills, {ended} runs ended", flush=True)
            folder = Path(place) / str(ended)
    print(
        f"{killed} kills, {torn} of them within a row, and {cut} rows cut afterwards; of {rows} finished rows {lost} "
        f"were lost or damaged; {ended} runs ended, each with the parameters of the undisturbed one, bit by bit, "
        f"and its weights at {compared} traced steps"
    )


if __name__ == "__main__":
    if sys.argv[1:]:
        kills(*map(int, sys.argv[1:3]))
    else:
        print(__doc__)

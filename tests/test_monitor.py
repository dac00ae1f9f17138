"""The Monitor measures what `measure_step` and `sharpness` do, and leaves the run as it was, bit by bit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal, probes, weights
from nonsmooth.torch import monitor as module
from nonsmooth.torch.monitor import Monitor
from zoo import over

rejected = pytest.raises(AssertionError)

MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3)),
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "sgd": lambda m: optim.SGD(m.parameters(), lr=0.05),
    "momentum": lambda m: optim.SGD(m.parameters(), lr=0.02, momentum=0.9),
    "adam": lambda m: optim.Adam(m.parameters(), lr=0.01),
    "rmsprop": lambda m: optim.RMSprop(m.parameters(), lr=0.003),
    "proximal": lambda m: Proximal(optim.Adam(m.parameters(), lr=0.01), L1(0.01), params=weights(m)),
}


def train(make: Any, build: Any, steps: int, watch: bool, **options: Any) -> tuple[list[Any], Monitor | None]:
    """All that a run leaves behind, to the bit: what was drawn, parameters, buffers, gradients, state, modes."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model = build()
    optimizer, left = make(model), []
    probe_x, probe_y = torch.randn(16, 6), torch.randint(3, (16,))
    monitor = Monitor(model, optimizer, lambda: nn.functional.cross_entropy(model(probe_x), probe_y), **options)
    if watch:
        monitor.__enter__()
    for _ in range(steps):
        x, y = torch.randn(8, 6), torch.randint(3, (8,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        left += [loss.item(), random.random(), float(np.random.rand()), torch.rand(1).item()]
    monitor.__exit__()
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    for p in model.parameters():
        tensors += [v for v in optimizer.state[p].values() if isinstance(v, torch.Tensor)]
    left += [t.detach().numpy().tobytes() for t in tensors]
    return [*left, [m.training for m in model.modules()]], monitor


def probed(monitor: Monitor) -> list[dict[str, Any]]:
    return [row for row in monitor.rows if row["kind"] in ("step", "stability")]


@pytest.mark.parametrize("build", over(MODELS))
@pytest.mark.parametrize("make", over(OPTIMIZERS))
def test_a_watched_run_is_the_same_bit_by_bit(make, build):
    bare, _ = train(make, build, 30, watch=False)
    watched, monitor = train(make, build, 30, watch=True, budget=1.0)
    assert len(probed(monitor)) == 30 and not any("error" in row for row in monitor.rows)
    assert {row["kind"] for row in monitor.rows} == {"step", "stability", "trace", "chatter"}
    assert watched == bare


def test_the_comparison_rejects_a_monitor_that_draws_or_forgets(monkeypatch):
    bare, _ = train(OPTIMIZERS["sgd"], MODELS["mlp"], 5, watch=False)

    def drawing(*a: Any, **k: Any) -> Any:
        torch.rand(1)
        return found(*a, **k)

    found = probes.measured
    monkeypatch.setattr(probes, "measured", drawing)
    with rejected:
        assert train(OPTIMIZERS["sgd"], MODELS["mlp"], 5, watch=True, budget=1.0)[0] == bare
    monkeypatch.setattr(probes, "measured", found)
    step = probes.Probes.step

    def forgetting(self: probes.Probes, closure: Any, before: Any) -> Any:
        row = step(self, closure, before)
        with torch.no_grad():
            for (_, p), x in zip(self.params(), before, strict=True):
                p.copy_(x)
        return row

    monkeypatch.setattr(probes.Probes, "step", forgetting)
    with rejected:
        assert train(OPTIMIZERS["sgd"], MODELS["mlp"], 5, watch=True, budget=1.0)[0] == bare


def quadratic(h: float, lr: float, **options: Any) -> Monitor:
    w = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    optimizer = optim.SGD([w], lr=lr)
    with Monitor(w, optimizer, lambda: 0.5 * h * w.square().sum(), budget=1.0, **options) as monitor:
        for _ in range(6):
            w.grad = h * w.detach()
            optimizer.step()
    return monitor


def test_it_measures_what_is_there():
    rows = quadratic(h=3.0, lr=0.1).rows
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["curvature"] for row in steps] == pytest.approx([3.0] * len(steps))
    found = next(row for row in rows if row["kind"] == "stability")
    assert (found["sharpness"], found["threshold"], found["ratio"]) == pytest.approx((3.0, 20.0, 0.15))
    assert steps[0]["loss"] == pytest.approx(3.0) and steps[0]["loss_after"] == pytest.approx(3.0 * 0.7**2)
    assert steps[0]["penalty"] == "as in the closure"


class Unknown(optim.Optimizer):
    """An optimiser that no table knows: gradient descent."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p -= group["lr"] * p.grad


def test_an_optimiser_without_a_threshold_gets_the_sharpness_alone():
    w = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    with Monitor(w, Unknown([w]), lambda: 1.5 * w.square().sum(), budget=1.0) as monitor:
        for _ in range(4):
            w.grad = 3 * w.detach()
            monitor.optimizer.step()
    rows = [row for row in monitor.rows if row["kind"] == "stability"]
    assert rows and all(row["sharpness"] == pytest.approx(3.0) and "ratio" not in row for row in rows)


def test_rows_go_to_the_file_at_once(tmp_path):
    monitor = quadratic(h=3.0, lr=0.1, folder=tmp_path / "new", data="all of it")
    lines = [json.loads(line) for line in (tmp_path / "new" / "rows.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [row["step"] for row in monitor.rows]
    assert all(line["data"] == "all of it" for line in lines)


def test_the_budget_is_kept(monkeypatch):
    """A clock that only probes and training move: a probe takes 1 s, a step 0.1 s."""
    now = [1.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Monitor, "_probe", lambda self, kind: (now.__setitem__(0, now[0] + 1.0), made(self, kind)))

    def made(self: Monitor, kind: str) -> None:
        self._made[kind] += 1

    w = nn.Parameter(torch.ones(1))
    optimizer = optim.SGD([w], lr=0.0)
    with Monitor(w, optimizer, lambda: w.sum(), budget=0.1) as monitor:
        for _ in range(2000):
            now[0] += 0.1
            w.grad = torch.ones(1)
            optimizer.step()
    assert 0.08 <= monitor.share <= 0.1
    assert abs(monitor._made["step"] - monitor._made["stability"]) <= 1
    assert monitor.skipped["step"] == 2000 - monitor._made["step"]
    assert "2000 steps" in str(monitor)


def test_a_probe_that_fails_is_told_and_given_up():
    w = nn.Parameter(torch.ones(1))
    optimizer = optim.SGD([w], lr=0.1)

    def closure() -> torch.Tensor:
        loss = w.square().sum()
        loss.backward()
        return loss

    def run() -> Monitor:
        with Monitor(w, optimizer, closure, budget=1.0) as monitor:
            for _ in range(10):
                w.grad = torch.ones(1)
                optimizer.step()
        return monitor

    with pytest.warns(UserWarning, match=r"^Monitor: no more probes of kind"):
        monitor = run()
    assert len(probed(monitor)) == 6 and all("error" in row for row in probed(monitor))
    assert w.item() == pytest.approx(0.0, abs=1e-6) and w.grad.item() == 1.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"budget": 0.0}, r"^Monitor: budget is a share of the wall clock"),
        ({"optimizer": "sgd"}, r"^Monitor: optimizer must be a torch optimiser, not str"),
        ({"closure": 3}, r"^Monitor: closure must be a function"),
        ({"folder": "/proc/none"}, r"^Monitor: the folder /proc/none cannot be written"),
    ],
)
def test_bad_arguments_are_named(change, sentence):
    w = nn.Parameter(torch.ones(1))
    arguments = {"optimizer": optim.SGD([w], lr=0.1), "closure": lambda: w.sum()} | change
    with pytest.raises((TypeError, ValueError), match=sentence):
        Monitor(w, **arguments)

"""The Monitor measures what `measure_step` and `sharpness` do, and leaves the run as it was, bit by bit."""

from __future__ import annotations

import contextlib
import json
import random
import sys
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal, probes, weights
from nonsmooth.torch import monitor as module
from nonsmooth.torch.monitor import Monitor
from nonsmooth.torch.probes import checksums
from zoo import over

rejected = pytest.raises(AssertionError)


class Words(nn.Module):
    """A table of which each use writes: rows longer than `max_norm` are shortened in place."""

    def __init__(self, columns: int, out: int) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(20, 4, max_norm=0.5), nn.Linear(4 * columns, out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.table((8 * x.abs()).long().clamp(max=19)).relu().flatten(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3)),
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "max_norm": lambda: Words(6, 3),
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


@pytest.mark.parametrize("own", [False, True], ids=["the script's", "one of the closure's own"])
def test_under_autocast_the_loss_after_a_step_is_of_the_weights_after_it(own):
    """While autocast is on it keeps its casts: those of the weights before the step."""

    def losses(inside: bool) -> list[tuple[float, float]]:
        torch.manual_seed(0)
        model, x = MODELS["mlp"]().eval(), torch.randn(16, 6)
        optimizer = optim.SGD(model.parameters(), lr=0.05)

        def cast(on: bool) -> Any:
            return torch.autocast("cpu", dtype=torch.bfloat16) if on else contextlib.nullcontext()

        def closure() -> torch.Tensor:
            with cast(own or not inside):
                return model(x).square().mean()

        with Monitor(model, optimizer, closure, budget=1.0) as monitor:
            for _ in range(3):
                optimizer.zero_grad()
                with cast(inside):
                    with cast(not inside):
                        loss = model(x).square().mean()
                    loss.backward()
                    optimizer.step()
        return [(row["loss"], row["loss_after"]) for row in monitor.rows if row["kind"] == "step"]

    found = losses(inside=True)
    assert found == losses(inside=False) and all(after < before for before, after in found)


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
        ({"model": "net"}, r"^Monitor: model must be a module or a list of parameters, not str\.$"),
        ({"model": []}, r"^Monitor: model must be a module or a list of parameters, not list\.$"),
        ({"optimizer": "sgd"}, r"^Monitor: optimizer must be a torch optimiser, not str"),
        ({"closure": 3}, r"^Monitor: closure must be a function"),
        ({"folder": "/proc/none"}, r"^Monitor: the folder /proc/none cannot be written"),
        ({"allowance": -1.0}, r"^Monitor: allowance is a number of seconds, 0 or more, not -1\.0\.$"),
        ({"loggers": print}, r"^Monitor: loggers must be a list, not builtin_function_or_method; write \[logger\]\.$"),
        ({"loggers": [3]}, r"^Monitor: int is no logger; give a SummaryWriter, a Weights & Biases run, the mlflow"),
    ],
)
def test_bad_arguments_are_named(change, sentence):
    w = nn.Parameter(torch.ones(1))
    arguments = {"model": w, "optimizer": optim.SGD([w], lr=0.1), "closure": lambda: w.sum()} | change
    with pytest.raises((TypeError, ValueError), match=sentence):
        Monitor(**arguments)


def test_it_is_entered_once_and_leaves_no_hook():
    monitor, _ = watched(4)
    optimizer, steps = monitor.optimizer, monitor.t
    with pytest.raises(ValueError, match=r"^Monitor: this one has been entered already; make another"), monitor:
        pass
    optimizer.step()
    assert monitor.t == steps and not optimizer._optimizer_step_post_hooks


def test_a_folder_whose_run_has_ended_is_not_begun_again(tmp_path):
    watched(4, folder=tmp_path)
    before = (tmp_path / "rows.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"^Monitor: .* holds a run already; name another folder, or set `monitor\.t`"):
        watched(4, folder=tmp_path)
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    (tmp_path / "run.json").unlink()  # a run that was killed, before its first checkpoint
    watched(4, folder=tmp_path)
    assert len((tmp_path / "rows.jsonl").read_bytes()) > len(before)


# --- what a run may be given beside the budget --------------------------------------------------------------------


def on_a_clock(monkeypatch: Any, steps: int, **options: Any) -> tuple[Monitor, list[int]]:
    """A clock that only probes and training move: a probe takes 1 s, a step 0.1 s. The steps that were measured."""
    now, measured = [1.0], []
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def probe(self: Monitor, kind: str) -> None:
        now[0] += 1.0
        self._made[kind] += 1
        measured.append(self.t)

    monkeypatch.setattr(Monitor, "_probe", probe)
    w = nn.Parameter(torch.ones(1))
    optimizer = optim.SGD([w], lr=0.0)
    with Monitor(w, optimizer, lambda: w.sum(), **options) as monitor:
        for _ in range(steps):
            now[0] += 0.1
            w.grad = torch.ones(1)
            optimizer.step()
    return monitor, measured


def test_a_first_sharpness_that_is_dear_waits_and_starves_no_one(monkeypatch):
    monitor, few = on_a_clock(monkeypatch, 3000, budget=0.1, allowance=0.0)
    assert 0.08 <= monitor.share <= 0.1 and few[0] == 1
    assert monitor.made["step"] > 5 and monitor.made["stability"] > 5  # it was saved for, and then they take turns


def test_a_short_run_may_take_its_allowance_and_no_more(monkeypatch):
    bare, few = on_a_clock(monkeypatch, 100, budget=0.02, allowance=0.0)
    assert few == [1] and bare.spent == pytest.approx(1.0)  # a first sharpness would cost some 8 s
    monitor, more = on_a_clock(monkeypatch, 100, budget=0.02, allowance=5.0)
    assert more == [1, 3, 5, 7, 9, 11] and monitor.spent == pytest.approx(6.0) and not monitor.made["stability"]
    monitor, both = on_a_clock(monkeypatch, 100, budget=0.02, allowance=12.0)
    assert both == [1, 2, 3, 4, 5, 6] and monitor.made == {"step": 3, "stability": 3}


@pytest.mark.filterwarnings("ignore:Monitor. no more probes")
def test_what_is_granted_is_not_slept_over(monkeypatch):
    """Probes of steps fail, and the sharpness has its turn on the step after."""

    def fails(*_: Any) -> None:
        raise ValueError("no step today")

    def measured(nap: float) -> list[int]:
        monkeypatch.setattr(module, "NAP", nap)
        w = nn.Parameter(torch.ones(2))
        optimizer = optim.SGD([w], lr=0.01)
        with Monitor(w, optimizer, lambda: w.square().sum(), budget=1e-9, allowance=100.0) as monitor:
            for _ in range(400):
                w.grad = torch.ones(2)
                optimizer.step()
        return [row["step"] for row in monitor.rows if row["kind"] == "stability"]

    monkeypatch.setattr(probes.Probes, "step", fails)
    assert len(awake := measured(0.0)) > 30
    assert measured(1e9) == awake


# --- traces and windows of signs ----------------------------------------------------------------------------------


def watched(steps: int, lam: float = 0.0, lr: float = 0.125, **options: Any) -> tuple[Monitor, list[torch.Tensor]]:
    """Gradient descent on ½ Σ (w − c)² + λ Σ |w|, and the weights after each step. All numbers are exact in float64."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=True).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, -1.0, -2.0]]))
        model.bias.copy_(torch.tensor([1.0, -1.0]))
    centre = model.weight.detach().clone()
    optimizer, seen = optim.SGD(model.parameters(), lr=lr), []

    def closure() -> torch.Tensor:
        smooth = 0.5 * (model.weight - centre).square().sum() + 0.5 * model.bias.square().sum()
        return smooth + lam * model.weight.abs().sum()

    with Monitor(model, optimizer, closure, budget=1.0, **options) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            closure().backward()
            optimizer.step()
            seen.append(model.weight.detach().clone())
    return monitor, seen


def of_kind(monitor: Monitor, kind: str) -> list[dict[str, Any]]:
    return [row for row in monitor.rows if row["kind"] == kind]


def test_a_trace_holds_the_checksum_of_the_weights_after_each_step():
    monitor, seen = watched(6, lam=0.5)
    rows = of_kind(monitor, "trace")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and all(row["loss"] is None for row in rows)
    assert all(row["lr"] == [0.125] for row in rows)
    model = monitor.model
    assert isinstance(model, nn.Linear)
    last = zlib.crc32(model.weight.detach().numpy().tobytes() + model.bias.detach().numpy().tobytes())
    assert rows[-1]["weights"] == {
        "weight": zlib.crc32(seen[-1].numpy().tobytes()),
        "bias": rows[-1]["weights"]["bias"],
    }
    assert last == zlib.crc32(model.bias.detach().numpy().tobytes(), rows[-1]["weights"]["weight"])


def test_a_checksum_sees_the_least_bit_and_a_zero_s_sign():
    w = torch.tensor([0.0, 1.0, 2.0])
    own = checksums([("0.weight", w)])
    assert checksums([("0.weight", w.clone())]) == own
    for i, value in ((0, -0.0), (1, np.nextafter(np.float32(1), np.float32(2)).item())):
        other = w.clone()
        other[i] = value
        assert checksums([("0.weight", other)]) != own


def test_traces_thin_out_as_a_run_grows_long(monkeypatch):
    monkeypatch.setattr(module, "DENSE", 8)
    monkeypatch.setattr(Monitor, "_has_room", lambda self, kind: True)
    monitor, _ = watched(40)
    assert [row["step"] for row in of_kind(monitor, "trace")] == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        10,
        12,
        14,
        16,
        20,
        24,
        28,
        32,
        40,
    ]


def test_a_window_of_signs_counts_the_weights_that_chatter():
    """At λ = ½ and lr = ⅛ a weight with c = 0 that is off its grid jumps over 0 for ever; those far from 0 stay."""
    monkey_free, _ = watched(0)
    assert not monkey_free.rows
    model_rows = [of_kind(m, "chatter") for m, _ in (watched(40, lam=0.5), watched(40, lam=0.0))]
    with_penalty, without = model_rows
    assert with_penalty and without
    first, plain = with_penalty[0], without[0]
    assert first["window"] == plain["window"] == 16 and first["weights"] == plain["weights"] == 8
    assert plain["chattering"] == 0 and plain["zeros"] == 3
    assert first["zeros"] == 3 and first["chattering"] == 0  # autograd's sign(0) is 0: they stay where they are


def test_a_weight_beside_zero_chatters():
    w = nn.Parameter(torch.tensor([0.03125, 4.0], dtype=torch.float64))
    optimizer = optim.SGD([w], lr=0.125)
    with Monitor(w, optimizer, lambda: 0.5 * w.abs().sum(), budget=1.0) as monitor:
        for _ in range(24):
            w.grad = 0.5 * w.detach().sign()
            optimizer.step()
    (row, *_) = of_kind(monitor, "chatter")
    assert row["chattering"] == 1 and row["flips"] == pytest.approx(1.0) and row["zeros"] == 0
    assert row["amplitude"] == pytest.approx(0.03125, rel=1e-12)


# --- facts, findings, report --------------------------------------------------------------------------------------


def test_facts_and_report_are_written(tmp_path):
    monitor, _ = watched(20, lam=0.5, folder=tmp_path)
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["steps"] == 20 and facts["budget"] == 1.0 and facts["model"]["parameters"] == 10
    assert facts["optimizer"]["name"] == "SGD" and facts["optimizer"]["groups"][0]["lr"] == 0.125
    assert facts["made"] == monitor.made and facts["skipped"] == monitor.skipped
    assert facts["torch"] == torch.__version__ and facts["began"] <= facts["ended"]
    assert [f["title"] for f in facts["findings"]] == [f.title for f in monitor.findings] and monitor.findings
    page = monitor.report(tmp_path / "run.html").read_text()
    assert monitor.findings[0].title.split(":")[0][:20] in page
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == [row["kind"] for row in monitor.rows]


def test_rows_that_cannot_be_written_are_told_once_and_the_run_goes_on(tmp_path):
    monitor = Monitor(w := nn.Parameter(torch.ones(1)), optim.SGD([w], lr=0.1), lambda: w.sum(), folder=tmp_path)

    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    monitor._file.close()
    monitor._file = Full()
    with pytest.warns(UserWarning, match=r"^Monitor: rows are no longer written: No space left on device"):
        monitor.add("step", {})
    monitor.add("step", {})
    assert len(monitor.rows) == 2


# --- loggers ------------------------------------------------------------------------------------------------------


class Writer:
    """TensorBoard's SummaryWriter, as far as it is called."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, int]] = []

    def add_scalar(
        self,
        tag: str,
        scalar_value: float,
        global_step: int | None = None,
        walltime: Any = None,
        new_style: bool = False,
    ) -> None:
        assert isinstance(global_step, int)
        self.rows.append((tag, scalar_value, global_step))


class Run:
    """A run of Weights & Biases."""

    def __init__(self) -> None:
        self.rows: list[tuple[dict[str, Any], int | None, bool | None]] = []

    def define_metric(
        self,
        name: str,
        step_metric: str | None = None,
        step_sync: bool | None = None,
        hidden: bool | None = None,
        summary: str | None = None,
        goal: str | None = None,
        overwrite: bool | None = None,
    ) -> None:
        assert name.startswith("nonsmooth/"), "the script's own metrics are its own"

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        self.rows.append((data, step, commit))


def mlflow(active: bool = True) -> Any:
    """The module of MLflow."""
    rows: list[tuple[dict[str, float], int | None]] = []

    def log_metrics(
        metrics: dict[str, float],
        step: int | None = None,
        synchronous: bool | None = None,
        run_id: str | None = None,
        timestamp: int | None = None,
        model_id: str | None = None,
        dataset: Any = None,
    ) -> None:
        assert run_id == "mine", "a call without it starts a run"
        rows.append((metrics, step))

    run = SimpleNamespace(info=SimpleNamespace(run_id="mine"))
    return SimpleNamespace(rows=rows, log_metrics=log_metrics, active_run=lambda: run if active else None)


def expected(monitor: Monitor) -> dict[tuple[str, int], float]:
    """The finite numbers that a logger is to have, of the rows."""
    found = {}
    for row in monitor.rows:
        for name in ("loss", "curvature", "kink_share", "sharpness", "ratio", "chattering"):
            value = row.get(name)
            if isinstance(value, (int, float)) and np.isfinite(value):
                found[(f"nonsmooth/{row['kind']}/{name}", row["step"])] = float(value)
    return found


def test_loggers_get_the_numbers_of_the_rows():
    writer, run, module_, rows = Writer(), Run(), mlflow(), []
    monitor, _ = watched(20, lam=0.5, loggers=[writer, run, module_, rows.append])
    wanted = expected(monitor)
    assert wanted and rows == monitor.rows
    given = {(tag, step): value for tag, value, step in writer.rows}
    assert {key: given[key] for key in wanted} == wanted
    assert all(step is None and commit is False for _, step, commit in run.rows)
    given = {}
    for data, _, _ in run.rows:
        (step,) = (value for tag, value in data.items() if tag.endswith("/optimizer_step"))
        given |= {(tag, step): value for tag, value in data.items()}
    assert {key: given[key] for key in wanted} == wanted
    given = {(tag, step): value for data, step in module_.rows for tag, value in data.items()}
    assert {key: given[key] for key in wanted} == wanted
    for tag, value, _ in writer.rows:
        assert tag.startswith("nonsmooth/") and np.isfinite(value) and "weights/" not in tag


@pytest.mark.parametrize("active", [True, False])
def test_without_a_word_the_runs_that_are_on_get_them(active, monkeypatch):
    run, module_ = Run(), mlflow(active)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run if active else None))
    monkeypatch.setitem(sys.modules, "mlflow", module_)
    monitor, _ = watched(4)
    assert monitor.rows and bool(run.rows) is bool(module_.rows) is active
    before = len(run.rows), len(module_.rows)
    watched(4, loggers=())
    assert (len(run.rows), len(module_.rows)) == before


def test_a_logger_that_fails_is_dropped_with_one_warning_and_training_goes_on():
    seen: list[Any] = []

    def failing(row: Any) -> None:
        seen.append(row)
        raise ConnectionError("gone")

    with pytest.warns(UserWarning, match="no longer written to") as told:
        monitor, weights_seen = watched(6, lam=0.5, loggers=[failing, (others := []).append])
    assert [str(w.message) for w in told] == ["Monitor: failing is no longer written to: ConnectionError: gone"]
    assert len(seen) == 1 and others == monitor.rows and monitor.t == 6
    assert all(torch.equal(a, b) for a, b in zip(weights_seen, watched(6, lam=0.5)[1], strict=True))

"""The audit as a callback, under the real trainers: they train, log, print and save the very bits that they did.

A law for each trainer, with a callback that it must reject; then what was found, and each way in which a run may end.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from nonsmooth.torch.integrations.watch import Watch
from nonsmooth.torch.loggers import sink
from test_proximal_torch import bits
from test_proximal_trainers import left_as_found, library, offline  # noqa: F401

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),  # Lightning of torch
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),  # of the second of two fits
]

STEPS = 8
OPTIONS: dict[str, Any] = {"budget": 0.5, "trials": 0}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def plain(thing: Any) -> Any:
    """Tensors as their bits, all else as it is."""
    if isinstance(thing, torch.Tensor):
        return str(thing.dtype), tuple(thing.shape), bits([thing])
    if isinstance(thing, dict):
        return {key: plain(value) for key, value in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [plain(value) for value in thing]
    return thing


def generators() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tobytes(), plain(torch.get_rng_state())]


class HalfWayError(Exception):
    """What ends a run half-way."""


# ── Lightning ───────────────────────────────────────────────────────────────────────────────────────────────────────


def lightning_audit() -> type[Any]:
    library("lightning.pytorch")
    return importlib.import_module("nonsmooth.torch.integrations").LightningAudit


def module(L: Any, ends: int = -1) -> Any:
    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scale = Net(), 1.0

        def training_step(self, batch, index):
            if self.global_step == ends:
                raise HalfWayError("half-way")
            loss = mse_loss(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            print("step", index, loss.item())
            return loss

        def validation_step(self, batch, index):
            self.log("seen", mse_loss(self.net(batch[0]), batch[1]))

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    return Module()


def data(seed: int = 1) -> DataLoader:
    made = torch.Generator().manual_seed(seed)
    x, y = torch.randn(32, 4, generator=made), torch.randn(32, 1, generator=made)
    return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=seed == 1)


def lightning_run(
    folder: Path, callbacks: list[Any], name: str = "lightning.pytorch", ends: int = -1, **options: Any
) -> dict[str, Any]:
    """Two epochs with everything on: validation, checkpoints, a log. What they leave, without times and paths."""
    L = library(name)
    saves = importlib.import_module(f"{name}.callbacks").ModelCheckpoint(dirpath=folder / "saved", save_last=True)
    logger = importlib.import_module(f"{name}.loggers").CSVLogger(folder)
    seeded()
    model = module(L, ends)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[*callbacks, saves],
        logger=logger,
        log_every_n_steps=1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, data(), data(2))
    saved = torch.load(folder / "saved" / "last.ckpt", weights_only=False)
    named = saved.pop("callbacks")  # of ModelCheckpoint, which holds paths; ours leaves nothing
    return {
        "model": plain(model.state_dict()),
        "grad": plain([p.grad for p in model.parameters()]),
        "saved": plain(saved),
        "callbacks": len(named),
        "metrics": plain(trainer.callback_metrics),
        "log": (Path(logger.log_dir) / "metrics.csv").read_text(),
        "modes": [m.training for m in model.modules()],
        "generators": generators(),
        "trainer": trainer,
        "optimizer": plain(trainer.optimizers[0].state_dict()),
    }


SETTINGS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "bf16": {"precision": "bf16-mixed"},
    "clipped": {"gradient_clip_val": 0.1},
}


def same_under_lightning(folder: Path, callback: Any, capsys: Any, **options: Any) -> None:
    alone = lightning_run(folder / "alone", [], **options)
    printed = capsys.readouterr().out
    watched = lightning_run(folder / "watched", [callback], **options)
    assert capsys.readouterr().out == printed and printed.count("step") == STEPS
    for left in (alone, watched):
        del left["trainer"]
    for what in alone:
        assert alone[what] == watched[what], what


@pytest.mark.parametrize("setting", SETTINGS)
def test_lightning_trains_the_same_bits(setting, tmp_path, capsys):
    audit = lightning_audit()(folder=tmp_path / "audit", **OPTIONS)
    same_under_lightning(tmp_path, audit, capsys, **SETTINGS[setting])
    found, count = audit.audit.facts, SETTINGS[setting].get("accumulate_grad_batches", 1)
    assert found["missing"] == [] and found["crashed"] is None
    assert (found["steps"], found["accumulation"]) == (STEPS // count, count)
    assert found["model"]["name"] == "Net" and found["optimizer"]["name"] == "SGD"
    assert found["loss"].startswith("what backward was called on, computed again to")
    assert found["made"]["step"] and [row["error"] for row in audit.audit.monitor.rows if "error" in row] == []
    assert found["clipped"] is (setting == "clipped")
    assert audit.audit.findings
    written = json.loads((tmp_path / "audit" / "run.json").read_text())
    assert written["steps"] == found["steps"] and (tmp_path / "audit" / "report.html").stat().st_size > 1000


def test_a_callback_that_draws_a_number_is_rejected(tmp_path, capsys):
    class Draws(lightning_audit()):  # type: ignore[misc]
        def on_train_start(self, *args):
            torch.rand(1)

    with pytest.raises(AssertionError):
        same_under_lightning(tmp_path, Draws(), capsys)


def test_lightning_fits_twice(tmp_path):
    said: list[str] = []
    callback = lightning_audit()(folder=tmp_path / "audit", say=said.append, **OPTIONS)
    trainer = lightning_run(tmp_path, [callback])["trainer"]
    first = callback.audit
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, data(), data(2))
    assert callback.audit is not first
    assert [a.facts["steps"] for a in (first, callback.audit)] == [STEPS, STEPS // 2]
    assert [a.folder.name for a in (first, callback.audit)] == ["audit", "audit-2"]
    assert len(said) == 2 and said[1].endswith(f"Open {tmp_path / 'audit-2' / 'report.html'}")
    rows = (tmp_path / "audit" / "rows.jsonl").read_text().splitlines()
    assert max(json.loads(row)["step"] for row in rows) == STEPS


def test_lightning_tells_of_an_exception(tmp_path):
    called = nn.Module.__call__
    callback = lightning_audit()(folder=tmp_path / "audit", say=lambda words: None, **OPTIONS)
    with pytest.raises(HalfWayError, match=r"^half-way$"):
        lightning_run(tmp_path, [callback], ends=5)
    assert callback.audit.facts["crashed"] == "HalfWayError: half-way" and callback.audit.facts["steps"] == 5
    assert callback.audit.findings[0].id == "crashed" and (tmp_path / "audit" / "report.html").is_file()
    assert nn.Module.__call__ is called


def forget(monkeypatch: pytest.MonkeyPatch, names: list[str], part: str) -> None:
    """As if a library were not installed, and our part for it had not been imported."""
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
    whole = f"nonsmooth.torch.integrations.{part}"
    importlib.import_module("nonsmooth.torch.integrations")
    monkeypatch.setitem(sys.modules, whole, sys.modules.get(whole))
    del sys.modules[whole]


def test_the_other_package_of_lightning_will_do(tmp_path, monkeypatch):
    pl = library("pytorch_lightning")
    forget(monkeypatch, ["lightning", "lightning.pytorch"], "lightning")
    audit = importlib.import_module("nonsmooth.torch.integrations").LightningAudit
    assert issubclass(audit, pl.Callback)
    callback = audit(folder=tmp_path / "audit", say=lambda words: None, **OPTIONS)
    lightning_run(tmp_path, [callback], "pytorch_lightning")
    assert callback.audit.facts["steps"] == STEPS and callback.audit.missing == []


# ── Transformers ────────────────────────────────────────────────────────────────────────────────────────────────────


def transformers_audit() -> type[Any]:
    library("transformers")
    return importlib.import_module("nonsmooth.torch.integrations").TransformersAudit


VARY = re.compile(r"runtime|per_second|flos|training_args.bin|best_model_checkpoint|logging_dir|output_dir")


def files(folder: Path) -> dict[str, Any]:
    """What a checkpoint holds, file by file; of the trainer's state all but times and paths."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "trainer_state.json":
            found[path.name] = without_times(json.loads(path.read_text()))
        elif path.suffix in (".pt", ".pth"):
            found[path.name] = plain(torch.load(path, weights_only=False))
        elif path.is_file() and not VARY.search(path.name):
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return {name: repr(value) for name, value in found.items()}


def without_times(thing: Any) -> Any:
    if isinstance(thing, dict):
        return {key: without_times(value) for key, value in thing.items() if not VARY.search(key)}
    return [without_times(value) for value in thing] if isinstance(thing, list) else thing


def transformers_run(folder: Path, callbacks: list[Any], accumulate: int, ends: int = -1) -> dict[str, Any]:
    T = library("transformers")
    seeded()
    config = T.GPT2Config(
        vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        activation_function="relu",
    )  # fmt: skip
    model = T.GPT2LMHeadModel(config)
    tokens = torch.randint(16, (64, 8))

    class Trainer(T.Trainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == ends:
                raise HalfWayError("half-way")
            return super().training_step(*args, **kwargs)

    arguments = T.TrainingArguments(
        str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=accumulate,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=STEPS,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, train_dataset=[{"input_ids": t, "labels": t} for t in tokens])
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()
    return {
        "model": plain(model.state_dict()),
        "optimizer": plain(trainer.optimizer.state_dict()),
        "log": without_times(trainer.state.log_history),
        "saved": files(folder / f"checkpoint-{STEPS}"),
        "modes": [m.training for m in model.modules()],
        "generators": generators(),
    }


def same_under_transformers(folder: Path, callback: Any, accumulate: int, capsys: Any) -> None:
    printed = []
    runs = []
    for name, callbacks in (("alone", []), ("watched", [callback])):
        runs.append(transformers_run(folder / name, callbacks, accumulate))
        lines = capsys.readouterr().out.splitlines()
        printed.append([line for line in lines if not VARY.search(line)])
    assert printed[0] == printed[1] and len(printed[0]) >= STEPS
    for what in runs[0]:
        assert runs[0][what] == runs[1][what], what
    assert {"model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"} <= runs[0]["saved"].keys()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_transformers_trains_the_same_bits(accumulate, tmp_path, capsys):
    callback = transformers_audit()(folder=tmp_path / "audit", **OPTIONS)
    same_under_transformers(tmp_path, callback, accumulate, capsys)
    found = callback.audit.facts
    assert found["missing"] == [] and found["crashed"] is None
    assert (found["steps"], found["accumulation"]) == (STEPS, accumulate)
    assert found["model"]["name"] == "GPT2LMHeadModel" and found["optimizer"]["name"] == "AdamW"
    assert found["made"]["step"] and [row["error"] for row in callback.audit.monitor.rows if "error" in row] == []
    assert "relu" in {row["name"] for row in found["census"]["operations"]}
    assert (tmp_path / "audit" / "report.html").is_file()


def test_a_transformers_callback_that_touches_a_weight_is_rejected(tmp_path, capsys):
    class Touches(transformers_audit()):  # type: ignore[misc]
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            with torch.no_grad():
                next(model.parameters())[0, 0] += 1e-3

    with pytest.raises(AssertionError):
        same_under_transformers(tmp_path, Touches(), 1, capsys)


def test_what_a_trainer_does_not_tell_is_told_at_exit(tmp_path, monkeypatch):
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", at_exit.remove)
    called = nn.Module.__call__
    callback = transformers_audit()(folder=tmp_path / "audit", say=lambda words: None, **OPTIONS)
    with pytest.raises(HalfWayError) as caught:
        transformers_run(tmp_path, [callback], 1, ends=5)
    assert len(at_exit) == 1 and callback.audit.facts == {}
    monkeypatch.setattr(sys, "last_value", caught.value, raising=False)
    at_exit[0]()
    assert at_exit == [] and nn.Module.__call__ is called
    assert (callback.audit.facts["crashed"], callback.audit.facts["steps"]) == ("HalfWayError: half-way", 5)


# ── both ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def one_step(watch: Watch, processes: int = 1) -> None:
    w = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(w.parameters(), lr=0.1)
    watch.enter(processes)
    w(torch.ones(1)).square().sum().backward()
    optimizer.step()


def test_one_watch_is_on_at_a_time(tmp_path):
    """A run that was not left is left when the next begins, and says so."""
    called = nn.Module.__call__
    first, second = (Watch(folder=tmp_path / "audit", say=lambda words: None, **OPTIONS) for _ in range(2))
    one_step(first)
    one_step(second)
    assert first.audit.facts["crashed"] == "the trainer did not say that it ended"
    second.leave(None)
    second.leave(None)  # is off already
    assert nn.Module.__call__ is called
    assert second.audit.facts["crashed"] is None and second.audit.folder == tmp_path / "audit-2"


def test_more_processes_are_not_watched(tmp_path):
    said: list[str] = []
    watch = Watch(folder=tmp_path / "audit", say=said.append)
    one_step(watch, processes=2)
    watch.leave()
    assert watch.audit is None and not (tmp_path / "audit").exists()
    assert said == ["audit: nothing is watched: the run has 2 processes, and only one can be watched yet."]


def test_the_trainer_goes_on_where_the_audit_fails(tmp_path, monkeypatch):
    said: list[str] = []
    watch = Watch(folder=tmp_path / "audit", say=said.append, **OPTIONS)
    one_step(watch)
    monkeypatch.setattr(watch.audit, "report", lambda path: 1 / 0)
    watch.leave(None)
    assert said == ["audit: ZeroDivisionError: division by zero"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"budget": 2}, ValueError, "audit: budget is a share of the wall clock, above 0 and up to 1, not 2."),
        ({"trials": 3}, ValueError, "audit: trials is the number of steps of a what-if, 16 or more, or 0, not 3."),
        ({"loggers": 3}, TypeError, "Monitor: loggers must be a list, not int; write [logger]."),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(options, error, words):
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        Watch(**options)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("LightningAudit", ["lightning", "lightning.pytorch", "pytorch_lightning"]),
        ("TransformersAudit", ["transformers"]),
    ],
)
def test_a_library_that_is_missing_is_named(name, names, monkeypatch):
    integrations = importlib.import_module("nonsmooth.torch.integrations")
    forget(monkeypatch, names, names[0])
    words = f"{name} needs {names[0]}, which is not installed; run: pip install {names[0]}"
    with pytest.raises(ModuleNotFoundError, match=f"^{re.escape(words)}$") as caught:
        getattr(integrations, name)
    assert caught.value.name == names[0]


def test_a_name_that_is_not_there_is_said():
    with pytest.raises(ImportError, match="KerasAudit"):
        from nonsmooth.torch.integrations import KerasAudit  # noqa: F401


def test_nothing_is_imported_before_it_is_asked_for():
    code = (
        "import sys, nonsmooth.torch, nonsmooth.torch.integrations, nonsmooth.torch.integrations.watch\n"
        "assert not {'lightning', 'pytorch_lightning', 'transformers'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


# ── loggers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ROW = {"step": 3, "kind": "step", "data": "x", "loss": 0.5, "kink_share": float("nan"), "flips_by_layer": {"né#(1)": 2}}


class Wandb:
    """What a run of Weights & Biases does with `log`: values wait for the call that commits, and one count is kept."""

    def __init__(self) -> None:
        self.axes: list[Any] = []
        self.waiting: dict[str, float] = {}
        self.history: list[dict[str, float]] = []

    def define_metric(self, name: str, step_metric: str | None = None, hidden: bool = False) -> None:
        self.axes.append((name, step_metric, hidden))

    def log(self, values: dict[str, float], commit: bool = True) -> None:
        self.waiting |= values
        if commit:
            self.history.append(self.waiting)
            self.waiting = {}


def test_weights_and_biases_counts_the_scripts_calls_alone():
    """And each value stands at its own step, whatever else waits for the same call."""
    run = Wandb()
    (to,) = sink([run])
    for step, kind in ((1, "step"), (2, "trace"), (2, "step"), (4, "trace")):
        to(ROW | {"step": step, "kind": kind, "loss": step / 2})
    run.log({"own": 1.0})
    assert len(run.history) == 1
    (row,) = run.history
    assert (row["nonsmooth/step/loss"], row["nonsmooth/step/optimizer_step"]) == (1.0, 2)
    assert (row["nonsmooth/trace/loss"], row["nonsmooth/trace/optimizer_step"]) == (2.0, 4)
    assert "nonsmooth/step/kink_share" not in row and row["own"] == 1.0
    assert run.axes == [
        pair
        for kind in ("step", "trace")
        for pair in (
            (f"nonsmooth/{kind}/optimizer_step", None, True),
            (f"nonsmooth/{kind}/*", f"nonsmooth/{kind}/optimizer_step", False),
        )
    ]


class MLflow:
    """The module, as far as it goes: a run of its own is begun where none is on, and odd names are refused."""

    def __init__(self) -> None:
        self.on: str | None = None
        self.logged: list[Any] = []

    def active_run(self) -> Any:
        return None if self.on is None else SimpleNamespace(info=SimpleNamespace(run_id=self.on))

    def log_metrics(self, metrics: dict[str, float], step: int, run_id: str | None = None) -> None:
        self.on = self.on or run_id or "begun by log_metrics"
        assert all(re.fullmatch(r"[/\w.\- :]{1,250}", name) and "//" not in name for name in metrics)
        self.logged.append((run_id, step, metrics))


def test_mlflow_keeps_to_the_run_that_was_on_first():
    mlflow = MLflow()
    (to,) = sink([mlflow])
    to(ROW)
    assert mlflow.logged == [] and mlflow.on is None  # none is begun
    mlflow.on = "a"
    to(ROW | {"step": 4, "kind": "a" * 300})
    mlflow.on = "b"
    to(ROW | {"step": 5, "flips_by_layer": {"a//b": 1}})
    assert [(run, step) for run, step, _ in mlflow.logged] == [("a", 3), ("a", 4), ("a", 5)]
    assert mlflow.logged[0][2] == {"nonsmooth/step/loss": 0.5, "nonsmooth/step/flips_by_layer/né__1_": 2.0}
    assert "nonsmooth/step/flips_by_layer/a/b" in mlflow.logged[2][2]

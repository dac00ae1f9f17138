"""Proximal under the libraries that drive an optimiser: Lightning, Fabric, Transformers' Trainer, Accelerate.

The real libraries, on CPU and offline. Laws × drivers: a run is the run of the bare optimiser with the prox applied by
hand after each step; stopped and resumed from the library's own checkpoint it is the whole run, bit by bit; hooks fire
once a step and `.grad` stays as it was; a step that mixed precision skips skips the prox.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset

from nonsmooth.penalties import L1, GroupLasso
from nonsmooth.torch import LambdaLam, Proximal, weights
from test_proximal_torch import bits, snapshot, through_a_file

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:The dirpath has changed from .* to .*/resumed'"),  # a run resumed elsewhere
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),  # Lightning of torch
    pytest.mark.filterwarnings(r"ignore:Detected call of `lr_scheduler.step\(\)` before"),  # a first step was skipped
]

QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


def library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = f"no {error.name}: Proximal was not run under {name}"
    return (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory) -> Iterator[None]:
    """No network, and nothing in the user's home; the environment, which these libraries write to, is put back."""

    def refuse(*address: Any) -> None:
        raise AssertionError(f"a library asked for the network: {address[1:]}")

    told = {**QUIET, "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
    with mock.patch.dict(os.environ, told), mock.patch.object(socket.socket, "connect", refuse):
        yield


@pytest.fixture(autouse=True)
def left_as_found() -> Iterator[None]:
    """These libraries seed everything, keep state of their own, and collect garbage, which this process is full of.

    One thread: models as small as these wait for a second one longer than it saves.
    """
    python, numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    gc.freeze()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        yield
    if "accelerate" in sys.modules:
        sys.modules["accelerate"].state.AcceleratorState._reset_state(True)
        sys.modules["accelerate"].state.GradientState._reset_state()
    torch.set_num_threads(threads)
    gc.unfreeze()
    random.setstate(python)
    np.random.set_state(numpy)


# ── what is trained ─────────────────────────────────────────────────────────────────────────────────────────────────

MICRO, STEPS, HALF = 2, 8, 4
"""Each step gathers the gradients of MICRO batches; a checkpoint is written after HALF of the STEPS."""


def lr_factor(t: int) -> float:
    return 0.9**t


def lam_factor(t: int) -> float:
    return min(1.0, (t + 1) / 4)


OPTIMISERS: dict[str, Callable[[Any, float], optim.Optimizer]] = {
    "momentum": lambda p, lr: optim.SGD(p, lr=lr, momentum=0.9),
    "adam": lambda p, lr: optim.Adam(p, lr=lr, betas=(0.8, 0.9), eps=1e-3),
    "adam-fused": lambda p, lr: optim.Adam(p, lr=lr, betas=(0.8, 0.9), eps=1e-3, fused=True),
}
LR = 0.03


class Training:
    """A model under L1, its Proximal, the schedules of lr and λ, and what happens after each step that was due."""

    def __init__(
        self, model: nn.Module, make: str, lam: float, scale: float = 1.0, proximal: type[Proximal] = Proximal
    ) -> None:
        self.model, self.lam, self.points = model, lam, weights(model)
        inner = OPTIMISERS[make](model.parameters(), scale * LR)
        self.optimizer = self.proximal(inner, proximal)
        self.schedules: list[Any] = [LambdaLR(self.optimizer, lr_factor)]
        if isinstance(self.optimizer, Proximal):
            self.schedules.append(LambdaLam(self.optimizer, lam_factor))
        self.clip: float | None = 0.5

    def proximal(self, inner: optim.Optimizer, kind: type[Proximal]) -> optim.Optimizer:
        return kind(inner, L1(self.lam), self.points)

    def started(self, optimizer: optim.Optimizer) -> None:
        """Called before the first step with what Lightning hands out as the optimiser."""

    def clipped(self) -> None:
        """Called when the gradients are as the step will read them, where a driver can tell."""

    def stepped(self) -> None:
        """Called after the step, before the schedules move."""

    def zeros(self) -> list[Tensor]:
        return [p.detach() == 0 for p in self.model.parameters()]


class ByHand(Training):
    """The slow twin: w⁺ = sign(w) max(|w| − τλ, 0) after the bare optimiser's step, τ = η(1 − βᵗ)/(1 − β) for momentum
    while lr is all that varies, η/(√(v/(1 − β₂ᵗ)) + ε) for Adam."""

    t = 0

    def proximal(self, inner: optim.Optimizer, kind: type[Proximal]) -> optim.Optimizer:
        return inner

    def tau(self, p: Tensor) -> Any:
        group, state = self.optimizer.param_groups[0], self.optimizer.state[p]
        if "momentum" in group:
            return group["lr"] * (1 - group["momentum"] ** self.t) / (1 - group["momentum"])
        v = state["exp_avg_sq"] / (1 - group["betas"][1] ** self.t)
        return group["lr"] / (v.sqrt() + group["eps"])

    @torch.no_grad()
    def stepped(self) -> None:
        self.t += 1
        lam = self.lam * lam_factor(self.t - 1)
        for p in self.points:
            p.copy_(p.sign() * (p.abs() - self.tau(p) * lam).clamp(min=0))


class ForgetsTheStep(ByHand):
    """The mutant: λ times the learning rate, whatever the optimiser makes of it."""

    def tau(self, p: Tensor) -> Any:
        return self.optimizer.param_groups[0]["lr"]


# ── the drivers ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Driver:
    """How a library is asked for a run of STEPS steps; its checkpoint at HALF, and where that keeps the optimiser."""

    library = ""
    lam = 0.05
    half, within = "", ("optimizer",)

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))

    def data(self) -> TensorDataset:
        x = torch.randn(4 * MICRO * STEPS // 2, 6, generator=torch.Generator().manual_seed(1))
        return TensorDataset(x, x[:, :1] - x[:, 1:2])

    def batches(self) -> list[list[Tensor]]:
        return 2 * list(DataLoader(self.data(), batch_size=4))

    def training(self, make: str, kind: type[Training] = Training, **more: Any) -> Training:
        return kind(self.model(), make, **{"lam": self.lam, **more})

    def run(self, training: Training, folder: Path, resume: Path | None = None, precision: str = "32") -> Training:
        raise NotImplementedError

    def saved(self, folder: Path) -> tuple[Any, dict[str, Any]]:
        """The file of the checkpoint that holds the optimiser's state, and that state in it."""
        whole = state = torch.load(self.file(folder), weights_only=True)
        for key in self.within:
            state = state[key]
        return whole, state

    def file(self, folder: Path) -> Path:
        return folder / self.half


class Lightning(Driver):
    """Automatic optimisation: the gradients are made in the closure that `step` is given."""

    library = "lightning"
    half, within = "step=4.ckpt", ("optimizer_states", 0)

    def module(self, training: Training) -> Any:
        from lightning.pytorch import LightningModule

        class Regression(LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = training.model

            def training_step(self, batch, index):
                return mse_loss(self.model(batch[0]), batch[1])

            def configure_optimizers(self):
                schedules = [{"scheduler": s, "interval": "step"} for s in training.schedules]
                return [training.optimizer], schedules

            def lr_scheduler_step(self, scheduler, metric):
                scheduler.step()

            def on_train_start(self):
                training.started(self.optimizers())

            def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
                self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
                training.clipped()

            def optimizer_step(self, epoch, index, optimizer, closure):
                super().optimizer_step(epoch, index, optimizer, closure)
                training.stepped()

        return Regression()

    def run(self, training, folder, resume=None, precision="32"):
        from lightning.pytorch import Trainer
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.plugins import MixedPrecision

        how: dict[str, Any] = {"32": {}, "bf16": {"precision": "bf16-mixed"}}.get(precision, {})
        if precision == "16":
            how = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler())]}
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=2,
            accumulate_grad_batches=MICRO,
            gradient_clip_val=training.clip,
            callbacks=[ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1)],
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **how,
        )
        module = self.module(training)
        trainer.fit(module, DataLoader(self.data(), batch_size=4), ckpt_path=resume, weights_only=True)
        assert trainer.global_step == STEPS
        return training


class Fabric(Driver):
    library = "lightning"
    half = "half.ckpt"

    def run(self, training, folder, resume=None, precision="32"):
        from lightning.fabric import Fabric
        from lightning.fabric.plugins import MixedPrecision

        how: dict[str, Any] = {"32": {}, "bf16": {"precision": "bf16-mixed"}}.get(precision, {})
        if precision == "16":
            how = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler())]}
        fabric = Fabric(accelerator="cpu", devices=1, **how)
        model, optimizer = fabric.setup(training.model, training.optimizer)
        names = ("lr", "lam")[: len(training.schedules)]
        state = {"model": model, "optimizer": optimizer, **dict(zip(names, training.schedules))}
        if resume is not None:
            fabric.load(resume, state, weights_only=True)
        for i, (x, y) in enumerate(self.batches()):
            if resume is not None and i < MICRO * HALF:
                continue
            fabric.backward(mse_loss(model(x), y) / MICRO)
            if (i + 1) % MICRO == 0:
                if training.clip is not None:
                    fabric.clip_gradients(model, optimizer, max_norm=training.clip)
                optimizer.step()
                training.stepped()
                for schedule in training.schedules:
                    schedule.step()
                optimizer.zero_grad()
            if i + 1 == MICRO * HALF:
                fabric.save(folder / self.half, state)
        return training


class Transformers(Driver):
    """A GPT-2 with random weights and its dropout, which the checkpoint's random numbers must resume."""

    library = "transformers"
    lam = 0.02
    half, within = "checkpoint-4", ()

    def model(self):
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        size = {"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
        return GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))

    def run(self, training, folder, resume=None, precision="32"):
        from transformers import Trainer, TrainerCallback, TrainingArguments

        class Strength(TrainerCallback):
            def file(self, args, state):
                return Path(args.output_dir, f"checkpoint-{state.global_step}", "lam.pt")

            def on_train_begin(self, args, state, control, **more):
                if resume is not None:
                    training.schedules[1].load_state_dict(torch.load(resume / "lam.pt", weights_only=True))

            def on_optimizer_step(self, args, state, control, **more):
                training.stepped()

            def on_step_end(self, args, state, control, **more):
                for schedule in training.schedules[1:]:
                    schedule.step()

            def on_save(self, args, state, control, **more):
                for schedule in training.schedules[1:]:
                    torch.save(schedule.state_dict(), self.file(args, state))

        tokens = torch.randint(0, 32, (24, 8), generator=torch.Generator().manual_seed(1))
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=STEPS,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=MICRO,
            max_grad_norm=training.clip,
            save_steps=HALF,
            bf16=precision == "bf16",
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            logging_strategy="no",
            report_to="none",
        )
        trainer = Trainer(
            model=training.model,
            args=arguments,
            train_dataset=[{"input_ids": t, "labels": t} for t in tokens],
            optimizers=(training.optimizer, training.schedules[0]),
            callbacks=[Strength()],
        )
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        assert trainer.state.global_step == STEPS
        return training

    def file(self, folder):
        return folder / self.half / "optimizer.pt"


class Accelerate(Driver):
    library = "accelerate"
    half, within = "half", ()

    def run(self, training, folder, resume=None, precision="32"):
        from accelerate import Accelerator

        mixed = "bf16" if precision == "bf16" else "no"
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO, mixed_precision=mixed)
        if precision == "16":
            accelerator.scaler = scaler()  # Accelerate itself makes one on a GPU only
        model, optimizer, lr = accelerator.prepare(training.model, training.optimizer, training.schedules[0])
        accelerator.register_for_checkpointing(*training.schedules[1:])
        if resume is not None:
            accelerator.load_state(resume)
        for i, (x, y) in enumerate(self.batches()):
            if resume is not None and i < MICRO * HALF:
                continue
            with accelerator.accumulate(model):
                with torch.autocast("cpu", torch.float16, enabled=precision == "16"):
                    out = model(x)
                accelerator.backward(mse_loss(out.float(), y))
                due = accelerator.sync_gradients
                if due and training.clip is not None:
                    accelerator.clip_grad_norm_(model.parameters(), training.clip)
                before = snapshot(training.optimizer)
                optimizer.step()
                assert due or snapshot(training.optimizer) == before
                if due:
                    training.stepped()
                    for schedule in training.schedules[1:]:
                        schedule.step()
                lr.step()
                optimizer.zero_grad()
            if i + 1 == MICRO * HALF:
                accelerator.save_state(folder / self.half)
        return training

    def file(self, folder):
        return folder / self.half / "optimizer.bin"


def scaler() -> torch.amp.GradScaler:
    """So large at first that half-precision gradients overflow for some steps."""
    return torch.amp.GradScaler("cpu", init_scale=2.0**18, growth_interval=10**6)


DRIVERS: dict[str, Driver] = {
    "lightning": Lightning(),
    "fabric": Fabric(),
    "transformers": Transformers(),
    "accelerate": Accelerate(),
}


@pytest.fixture(params=DRIVERS)
def driver(request) -> Driver:
    found = DRIVERS[request.param]
    library(found.library)
    return found


# ── the laws ────────────────────────────────────────────────────────────────────────────────────────────────────────


def same_run(one: Training, other: Training) -> None:
    for p, q in zip(one.model.parameters(), other.model.parameters()):
        torch.testing.assert_close(p, q)
    assert all(torch.equal(p, q) for p, q in zip(one.zeros(), other.zeros()))


@pytest.mark.parametrize("make", OPTIMISERS)
def test_a_run_is_that_of_the_bare_optimiser_with_the_prox_by_hand(driver, make, tmp_path):
    run = driver.run(driver.training(make), tmp_path / "run")
    count = sum(int(z.sum()) for z in run.zeros())
    assert 0 < count < sum(p.numel() for p in run.points)
    assert not any(bool(z.any()) for p, z in zip(run.model.parameters(), run.zeros()) if p.ndim < 2)
    assert run.optimizer.param_groups[0]["proximal"][0]["lam"] == driver.lam
    same_run(run, driver.run(driver.training(make, ByHand), tmp_path / "twin"))
    with pytest.raises(AssertionError):
        same_run(run, driver.run(driver.training(make, ForgetsTheStep), tmp_path / "mutant"))


@pytest.mark.parametrize(
    ("make", "precision"),
    [*((make, "32") for make in OPTIMISERS), ("momentum", "bf16"), ("adam", "bf16")],
)
def test_resumed_equals_uninterrupted(driver, make, precision, tmp_path):
    """From the library's checkpoint, into objects that were made with another λ and lr."""
    whole = driver.run(driver.training(make), tmp_path, precision=precision)
    assert any(bool(z.any()) for z in whole.zeros())
    other = driver.training(make, lam=7.0, scale=0.1)
    resumed = driver.run(other, tmp_path / "resumed", resume=tmp_path / driver.half, precision=precision)
    assert snapshot(resumed.optimizer) == snapshot(whole.optimizer)


def test_resumed_without_its_momentum_response_is_rejected(driver, tmp_path):
    """The mutant of the law above: the buffer then counts as full, which it was not."""
    whole = driver.run(driver.training("momentum"), tmp_path)
    file, state = driver.saved(tmp_path)
    assert [held.pop("response") for held in state["state"].values()] == [
        pytest.approx((1 - 0.9**HALF) / (1 - 0.9))
    ] * len(state["state"])
    torch.save(file, driver.file(tmp_path))
    resumed = driver.run(driver.training("momentum"), tmp_path / "resumed", resume=tmp_path / driver.half)
    assert snapshot(resumed.optimizer) != snapshot(whole.optimizer)


def test_a_checkpoint_holds_plain_data(driver, tmp_path):
    run = driver.run(driver.training("adam"), tmp_path)
    _, state = driver.saved(tmp_path)
    held = [id(p) for p in run.optimizer.param_groups[0]["params"]]
    places = [held.index(id(p)) for p in run.points]
    lam = driver.lam * lam_factor(HALF)
    penalty = {"name": "L1", "weights": None}
    (group,) = state["param_groups"]
    assert group["proximal"] == [{"lam": lam, "penalty": penalty, "params": sorted(places), "which": 0}]
    fresh = driver.training("adam", lam=7.0).optimizer
    fresh.load_state_dict(state)
    assert {penalty for _, penalty, _ in fresh.penalised()} == {L1(lam)}


class Watch:
    """Which global hooks fire, and for whom; and the gradients that a step leaves other than it read them."""

    def __init__(self, training: Training) -> None:
        self.training, self.fired, self.read, self.changed = training, [], 0, 0
        training.clipped = self.note

    def __enter__(self) -> Watch:
        self.handles = [register_optimizer_step_pre_hook(self.pre), register_optimizer_step_post_hook(self.post)]
        return self

    def __exit__(self, *error: Any) -> None:
        for handle in self.handles:
            handle.remove()

    def note(self) -> None:
        found = [(p, p.grad) for p in self.training.model.parameters()]
        self.gradients = [(p, g, bits([g])) for p, g in found if g is not None]

    def pre(self, optimizer, args, kwargs) -> None:
        self.fired.append(("pre", optimizer))
        self.note()

    def post(self, optimizer, args, kwargs) -> None:
        self.fired.append(("post", optimizer))
        self.read += len(self.gradients)
        self.changed += sum(p.grad is not g or bits([g]) != before for p, g, before in self.gradients)

    def hooks_fired_once(self) -> bool:
        optimizer = self.training.optimizer
        return self.fired == [("pre", optimizer), ("post", optimizer)] * STEPS

    def gradients_were_kept(self) -> bool:
        assert self.read == STEPS * len(list(self.training.model.parameters()))
        return self.changed == 0


def watched(driver: Driver, kind: type[Proximal], folder: Path) -> Watch:
    training = driver.training("adam", proximal=kind)
    with Watch(training) as watch:
        driver.run(training, folder)
    return watch


class FiresTwice(Proximal):
    """Calls the wrapped optimiser's step with its hooks."""

    def step(self, closure=None):
        return self.optimizer.step(closure)


class WritesGradients(Proximal):
    """Adds the penalty's subgradient to what the user reads."""

    def step(self, closure=None):
        loss = Proximal.step.__wrapped__(self, closure)
        for p, penalty, _ in self.penalised():
            p.grad += penalty.grad(p.detach())
        return loss


def test_hooks_fire_once_a_step_and_gradients_stay_as_they_were(driver, tmp_path):
    watch = watched(driver, Proximal, tmp_path)
    assert watch.hooks_fired_once()
    assert watch.gradients_were_kept()
    assert not watched(driver, FiresTwice, tmp_path / "twice").hooks_fired_once()
    assert not watched(driver, WritesGradients, tmp_path / "writes").gradients_were_kept()


class Recorded(Training):
    """The steps that Adam counts, and the parameters, after each step that was due, whether taken or skipped."""

    def record(self) -> None:
        counts = {int(state["step"]) for state in self.optimizer.state.values()}
        self.seen.append((max(counts, default=0), bits(self.model.parameters())))

    def stepped(self) -> None:
        self.record()


def taken(seen: list[tuple[int, list[bytes]]]) -> list[bool]:
    return [later[0] > earlier[0] for earlier, later in pairwise(seen)]


def skipped_steps_change_nothing(seen: list[tuple[int, list[bytes]]]) -> bool:
    moved = [earlier[1] != later[1] for earlier, later in pairwise(seen)]
    return len(moved) == STEPS and moved == taken(seen)


class ProxesASkippedStep(Proximal):
    """Its prox does not ask whether a fused step found an infinite gradient."""

    def _skipped(self) -> bool:
        return False


def mixed(driver: Driver, make: str, kind: type[Proximal], folder: Path) -> list[tuple[int, list[bytes]]]:
    """A run in half precision under a scaler: gradients overflow in its first steps."""
    training = driver.training(make, Recorded, proximal=kind)
    training.clip = None
    training.seen = []
    training.record()
    return driver.run(training, folder, precision="16").seen


@pytest.mark.parametrize("make", ["adam", "adam-fused"])
@pytest.mark.parametrize("driver", ["lightning", "fabric", "accelerate"], indirect=True)
def test_a_step_that_mixed_precision_skips_skips_the_prox(driver, make, tmp_path):
    """Transformers' Trainer has no float16 on a CPU."""
    seen = mixed(driver, make, Proximal, tmp_path / "run")
    assert not taken(seen)[0] and taken(seen)[-1]
    assert skipped_steps_change_nothing(seen)
    if make == "adam-fused":  # any other optimiser's step is not called at all
        assert not skipped_steps_change_nothing(mixed(driver, make, ProxesASkippedStep, tmp_path / "mutant"))


# ── what one of them does ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_penalty_of_groups_goes_through_the_trainer(tmp_path):
    """L1 on the attention, whole rows of the perceptron: exact zeros there and nowhere else, resumed too."""
    library("transformers")
    driver = Transformers()

    class Two(Training):
        def proximal(self, inner, kind):
            block = self.model.transformer.h[0]
            rows = GroupLasso(4 * self.lam, dim=0)
            return kind(inner, [(L1(self.lam), weights(block.attn)), (rows, [block.mlp.c_proj.weight])])

    whole = driver.run(driver.training("momentum", Two), tmp_path)
    resumed = driver.run(driver.training("momentum", Two, lam=7.0), tmp_path / "again", resume=tmp_path / driver.half)
    assert snapshot(resumed.optimizer) == snapshot(whole.optimizer)
    block = whole.model.transformer.h[0]
    chosen = [*weights(block.attn), block.mlp.c_proj.weight]
    for p in whole.model.parameters():
        assert bool((p == 0).any()) == any(p is q for q in chosen)
    zero = block.mlp.c_proj.weight == 0
    assert torch.equal(zero.all(1), zero.any(1)) and not bool(zero.all())


def test_accelerate_loads_a_state_before_the_first_step(tmp_path):
    library("accelerate")
    driver = Accelerate()
    training = driver.training("momentum")
    loaded: list[int] = []
    training.optimizer.register_load_state_dict_post_hook(lambda optimizer: loaded.append(len(optimizer.state)))
    driver.run(training, tmp_path)
    assert loaded == [0]
    assert training.optimizer.param_groups is training.optimizer.optimizer.param_groups


def test_accelerates_wrapper_hands_the_state_through():
    accelerate = library("accelerate")
    driver = Accelerate()
    training = driver.training("momentum")
    for p in training.model.parameters():
        p.grad = torch.ones_like(p)
    around = accelerate.Accelerator(cpu=True).prepare(training.optimizer)
    around.step()
    other = driver.training("momentum", lam=7.0)
    other.optimizer.load_state_dict(through_a_file(around.state_dict()))
    twin = accelerate.Accelerator(cpu=True).prepare(other.optimizer)
    assert [penalty for _, penalty, _ in twin.optimizer.penalised()] == [L1(driver.lam * lam_factor(0))] * 2
    assert [s["response"] for s in twin.state.values()] == [1.0] * 4


@pytest.mark.parametrize("which", ["pytorch", "fabric"])
def test_lightnings_wrapper_is_a_proximal(which):
    """What `self.optimizers()` and `fabric.setup` hand out takes on the class: it sets λ and loads a state."""
    lightning = library("lightning")
    from lightning.pytorch.core.optimizer import LightningOptimizer

    training = Lightning().training("momentum")
    optimizer = training.optimizer
    setup = lightning.Fabric(accelerator="cpu", devices=1).setup_optimizers
    around = (LightningOptimizer if which == "pytorch" else setup)(optimizer)
    assert isinstance(around, Proximal) and around is not optimizer
    around.set_lam(0.25)
    assert [entry["lam"] for _, entry in optimizer.entries()] == [0.25]
    assert float(around.penalty_value()) == float(optimizer.penalty_value()) > 0
    state = through_a_file(around.state_dict())
    around.set_lam(0.5)
    around.load_state_dict(state)
    assert [penalty for _, penalty, _ in optimizer.penalised()] == [L1(0.25)] * 2
    assert around.param_groups is optimizer.param_groups is optimizer.optimizer.param_groups
    assert around.state is optimizer.state is optimizer.optimizer.state


def test_a_state_loaded_through_lightnings_wrapper_changes_nothing(tmp_path):
    """Its hooks still fire once a step."""
    library("lightning")

    class Reloads(Training):
        def started(self, optimizer):
            optimizer.load_state_dict(through_a_file(optimizer.state_dict()))

    driver = Lightning()
    reloaded = driver.training("momentum", Reloads)
    with Watch(reloaded) as watch:
        driver.run(reloaded, tmp_path / "reloaded")
    assert watch.hooks_fired_once()
    assert snapshot(reloaded.optimizer) == snapshot(
        driver.run(driver.training("momentum"), tmp_path / "plain").optimizer
    )


def test_a_missing_library_skips_and_fails_in_ci(monkeypatch):
    for ci, outcome in (("true", pytest.fail.Exception), ("", pytest.skip.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome, match=r"^no nonsmooth_absent: Proximal was not run under nonsmooth_absent"):
            library("nonsmooth_absent")


def test_the_network_is_out_of_reach():
    with socket.socket() as one, pytest.raises(AssertionError, match="asked for the network"):
        one.connect(("localhost", 9))

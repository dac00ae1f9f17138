"""THE loop: a network trained as its setting says, watched by observers, and told as a row of plain data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim import Optimizer

from nonsmooth.networks.data import load
from nonsmooth.networks.models import build
from nonsmooth.networks.setting import Setting
from nonsmooth.penalties import L1
from nonsmooth.torch.proximal import Proximal
from nonsmooth.torch.undisturbed import undisturbed

__all__ = ["Run", "trained"]

LOSSES = 200
"""About so many values of the loss a row keeps, at even distances."""
DIVERGED = 1e12
"""A loss beyond this ends a run."""


class Run:
    """A run that is under way: what the observers look at.

    `model`, `optimizer`, `params` are live; `t` is the number of steps taken. `loss()` is the loss over all training
    samples with its graph, the penalty left out; `batch_loss()` the same of the batch of the present step. `value` is
    what the step's backward pass began from, the penalty of "autograd" in it.

    >>> run = Run(Setting(steps=2, samples=50, width=4))
    >>> run.choose()
    >>> run.step()
    >>> run.t
    1
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        data = load(setting.data)
        self.data = data
        torch.manual_seed(setting.seed)
        self.model: nn.Module = build(setting, data.x.shape[1:], data.classes)
        self.params: list[torch.Tensor] = list(self.model.parameters())
        self.penalised = _penalised(self.model, setting.on)
        self.optimizer = _optimizer(setting, self.params, self.penalised)
        self.dtype = getattr(torch, setting.dtype)
        count = min(setting.samples, len(data.x))
        self.x, self.y = self._tensors(data.x[:count], data.y[:count])
        self.t, self.value, self.diverged = 0, math.nan, False
        self.generator = torch.Generator().manual_seed(setting.seed)
        self.order = torch.arange(count)
        self.batch = (self.x, self.y)

    def _tensors(self, x: Any, y: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.as_tensor(x).to(self.dtype), torch.as_tensor(y)

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        context = torch.autocast("cpu", torch.bfloat16) if self.setting.amp else nullcontext()
        with context:
            return self.model(x)

    def loss_of(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """½ mean ‖f(x) − e_y‖², or the mean cross-entropy; of low-precision outputs in float32."""
        out = self.outputs(x)
        out = out if out.dtype == torch.float64 else out.float()
        if self.setting.loss == "cross_entropy":
            return cross_entropy(out, y)
        return (out - one_hot(y, self.data.classes)).square().sum(1).mean() / 2

    def loss(self) -> torch.Tensor:
        return self.loss_of(self.x, self.y)

    def batch_loss(self) -> torch.Tensor:
        return self.loss_of(*self.batch)

    def l1_norm(self) -> float:
        """‖w‖₁ of what the penalty is on."""
        return math.fsum(float(p.detach().double().abs().sum()) for p in self.penalised)

    def end_loss(self) -> float:
        """The loss over all training samples, BatchNorm's running statistics left as they are."""
        with undisturbed(self.params), torch.no_grad():
            return float(self.loss())

    def accuracy(self) -> float:
        """The share of the test set that is classified rightly, the model in evaluation mode."""
        x, y = self._tensors(self.data.x_test, self.data.y_test)
        was = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                return float((self.outputs(x).argmax(1) == y).double().mean())
        finally:
            self.model.train(was)

    def choose(self) -> None:
        """The batch and the rate of the next step."""
        setting = self.setting
        if setting.schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = setting.lr * (1 + math.cos(math.pi * self.t / setting.steps)) / 2
        size, count = setting.batch, len(self.x)
        if not 0 < size < count:
            return
        at = self.t % (count // size)
        if at == 0:
            self.order = torch.randperm(count, generator=self.generator)
        which = self.order[size * at : size * (at + 1)]
        self.batch = (self.x[which], self.y[which])

    def step(self) -> None:
        """Take the step."""
        self.optimizer.zero_grad()
        loss = self.batch_loss()
        if self.setting.penalty == "autograd" and self.setting.lam:
            loss = loss + self.setting.lam * sum(p.abs().sum() for p in self.penalised)
        loss.backward()
        self.optimizer.step()
        self.t, self.value = self.t + 1, float(loss.detach())
        self.diverged = not abs(self.value) < DIVERGED


def trained(setting: Setting) -> dict[str, Any]:
    """The row of a run: its setting, the loss along the way and at the end, and what its observers found.

    `losses` are what the steps were taken on, at the steps `at`; a run whose loss is not finite or above 1e12 ends
    there and is `diverged`. All numbers in it are finite or None.

    >>> row = trained(Setting(steps=20, samples=100, lr=0.5, width=8))
    >>> row["losses"][-1] < row["losses"][0], row["diverged"], row["steps"]
    (True, False, 20)
    """
    from nonsmooth.networks.observers import OBSERVERS

    unknown = [name for name in setting.watch if name not in OBSERVERS]
    if unknown:
        raise ValueError(f"trained: there is no observer {unknown[0]!r}; known are {', '.join(OBSERVERS)}.")
    began = time.perf_counter()
    run = Run(setting)
    observers = {name: OBSERVERS[name](run) for name in setting.watch}
    losses: list[float] = []
    since = (1 - setting.tail) * setting.steps if setting.tail else 0
    while run.t < setting.steps and not run.diverged:
        run.choose()
        looking = observers.values() if run.t >= since and run.t % setting.every == 0 else ()
        for observer in looking:
            observer.before()
        run.step()
        losses.append(run.value)
        for observer in () if run.diverged else looking:
            observer.after()
    apart = max(1, len(losses) // LOSSES)
    row = {
        "key": setting.key,
        "setting": setting.to_dict(),
        "steps": run.t,
        "diverged": run.diverged,
        "at": list(range(0, len(losses), apart)),
        "losses": losses[::apart],
        "raised": sum(b > a for a, b in pairwise(losses)) / max(1, len(losses) - 1),
        "loss": math.nan if run.diverged else run.end_loss(),
        "accuracy": math.nan if run.diverged else run.accuracy(),
        "l1_norm": math.nan if run.diverged else run.l1_norm(),
        "found": {name: observer.found() for name, observer in observers.items()},
        "seconds": round(time.perf_counter() - began, 3),
    }
    return _plain(row)


def _penalised(model: nn.Module, on: str) -> list[torch.Tensor]:
    if on == "batchnorm":
        scales: list[torch.Tensor] = [
            m.weight for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))
        ]
        if not scales:
            raise ValueError("Setting: on='batchnorm' needs batchnorm=True.")
        return scales
    return [p for p in model.parameters() if p.ndim > 1]


def _optimizer(setting: Setting, params: list[torch.Tensor], penalised: list[torch.Tensor]) -> Optimizer:
    makers: dict[str, Callable[..., Optimizer]] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "rmsprop": torch.optim.RMSprop,
    }
    options = {"lr": setting.lr, "weight_decay": setting.weight_decay}
    if setting.optimizer in ("sgd", "rmsprop"):
        options["momentum"] = setting.momentum
    elif setting.momentum:
        raise ValueError(f"Setting: momentum is SGD's and RMSprop's, not {setting.optimizer}'s.")
    optimizer = makers[setting.optimizer](params, **options)
    return Proximal(optimizer, L1(setting.lam), penalised) if setting.penalty == "proximal" else optimizer


def _plain(value: Any) -> Any:
    """Plain data that JSON has: None for what is not finite."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value

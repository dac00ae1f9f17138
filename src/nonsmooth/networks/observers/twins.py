"""Runs that differ from a run in one thing alone, taken along with it step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from nonsmooth.networks.observers.observer import Observer
from nonsmooth.networks.training import Run

__all__ = ["Twins"]

TWINS = ("relu_half", "relu_one", "reversed")
KEPT = 50
"""About so many values of the distance are kept along the way."""


class Twins(Observer):
    """How far runs depart from a ReLU run that differ from it in what relu'(0) is, or in the order of summation alone.

    "relu_half" and "relu_one" start at the same weights, see the same batches and have the same activation, but for its
    derivative at 0, ½ or 1 in place of 0. "reversed" is the run itself with each batch in the opposite order, which
    changes nothing but rounding: what it departs by is what rounding does. For each: `first`, the steps after which a
    weight differs in any bit, or None; `largest`, max |Δw| at the end; `apart`, ‖Δw‖ at the end over the distance that
    the run has come, and the same after `t` steps in `curve`; `loss` and `accuracy`, the twin's less the run's.

    Raises ValueError where the activation is not ReLU, or where not every step is looked at.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> found = trained(Setting(steps=3, samples=50, width=4, watch=("twins",)))["found"]["twins"]
    >>> found["relu_one"]["first"], found["relu_one"]["largest"]  # no pre-activation was exactly 0
    (None, 0.0)
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        setting = run.setting
        if setting.activation != "relu" or setting.every != 1 or setting.tail:
            raise ValueError("twins: they follow a run with activation='relu', every=1 and tail=0, step by step.")
        with torch.random.fork_rng(devices=()):
            self.twins = {
                name: Run(replace(setting, activation=name if name != "reversed" else "relu", watch=()))
                for name in TWINS
            }
        for twin in self.twins.values():
            twin.model.load_state_dict(run.model.state_dict())
        self.start = self.flat(run)
        self.first: dict[str, int | None] = dict.fromkeys(TWINS)
        self.t: list[int] = []
        self.curves: dict[str, list[float]] = {name: [] for name in TWINS}

    @staticmethod
    def flat(run: Run) -> torch.Tensor:
        return torch.cat([p.detach().double().reshape(-1) for p in run.params])

    def after(self) -> None:
        run, here = self.run, self.flat(self.run)
        keep = run.t % max(1, run.setting.steps // KEPT) == 0 or run.t == run.setting.steps
        self.t += [run.t] if keep else []
        for name, twin in self.twins.items():
            twin.choose()
            x, y = run.batch
            twin.batch = (x.flip(0), y.flip(0)) if name == "reversed" else (x, y)
            twin.step()
            off = self.flat(twin) - here
            if self.first[name] is None and bool((off != 0).any()):
                self.first[name] = run.t
            if keep:
                self.curves[name].append(float(off.norm() / (here - self.start).norm()))

    def found(self) -> dict[str, Any]:
        run, here = self.run, self.flat(self.run)
        loss, accuracy, way = float(run.loss().detach()), run.accuracy(), (here - self.start).norm()
        found: dict[str, Any] = {"t": self.t}
        for name, twin in self.twins.items():
            off = self.flat(twin) - here
            found[name] = {
                "first": self.first[name],
                "largest": float(off.abs().max()),
                "apart": float(off.norm() / way),
                "loss": float(twin.loss().detach()) - loss,
                "accuracy": twin.accuracy() - accuracy,
                "curve": self.curves[name],
            }
        return found

"""The curvature that steps meet, and the sharpness where they are taken."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from nonsmooth.networks.observers.observer import Observer
from nonsmooth.torch.curvature import Sharpness, sharpness
from nonsmooth.torch.probes import Probes
from nonsmooth.torch.stability import Stability, stability
from nonsmooth.torch.steps import measure_step
from nonsmooth.torch.steps.evaluation import kept, put

if TYPE_CHECKING:
    from nonsmooth.networks.training import Run

__all__ = ["PathSplits", "Sharpnesses", "Stabilities", "Steps"]

KEPT = (
    *("loss", "loss_after", "predicted", "curvature", "smooth", "kink", "kink_share", "lipschitz", "length"),
    *("flipped", "units", "ties", "step_ratio", "orbit_curvature"),
)
"""What is kept of a step: `nonsmooth.torch.Monitor`'s rows of kind "step" say what each is."""
TOL = 2e-3


class Columns(Observer):
    """An observer whose rows become columns, with the step `t` (from 0) that each belongs to."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.columns: dict[str, list[Any]] = defaultdict(list)

    def add(self, t: int, **row: Any) -> None:
        self.columns["t"].append(t)
        for name, value in row.items():
            self.columns[name].append(value)

    def found(self) -> dict[str, Any]:
        return dict(self.columns)


class Steps(Columns):
    """`measure_step` of each step on the loss over all training samples, without the penalty; κ̄ over the last 100.

    `step_ratio` is the step's curvature over the optimiser's threshold, the preconditioner held.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> found = trained(Setting(steps=3, samples=50, width=4, activation="gelu", watch=("steps",)))["found"]["steps"]
    >>> found["t"], found["kink"]  # smooth: no kinks
    ([0, 1, 2], [0.0, 0.0, 0.0])
    """

    window = 100

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.probes = Probes(run.model, run.optimizer, self.window)
        self.held: list[torch.Tensor] = []

    def before(self) -> None:
        self.held = [p.detach().clone() for _, p in self.probes.params()]

    def after(self) -> None:
        row = self.probes.step(self.run.loss, self.held)
        self.add(self.run.t - 1, **{name: row.get(name) for name in KEPT})


class PathSplits(Columns):
    """The path split of each step on the loss over all training samples: κ_smooth, κ_kink, and the quadrature error.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> row = trained(Setting(steps=2, samples=50, width=4, activation="tanh", watch=("path_splits",), every=2))
    >>> [abs(k) < 1e-2 for k in row["found"]["path_splits"]["kink"]]
    [True]
    """

    def before(self) -> None:
        self.held = [p.detach().clone() for p in self.run.params]

    def after(self) -> None:
        after = [p.detach().clone() for p in self.run.params]
        with kept(self.run.params, after):
            put(self.run.params, self.held)
            step = measure_step(self.run.loss, self.run.model, after, path=True)
        assert step.path is not None
        path = {"smooth": step.path.smooth, "kink": step.path.kink, "share": step.path.share, "error": step.path.error}
        self.add(self.run.t - 1, **path)


class Sharpnesses(Columns):
    """λ₁ of the Hessian of the loss over all training samples where the step is taken from, with its residual.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> setting = Setting(steps=1, samples=50, width=4, activation="identity", watch=("sharpnesses",))
    >>> trained(setting)["found"]["sharpnesses"]["converged"]
    [True]
    """

    last: Sharpness | None = None

    def before(self) -> None:
        found = self.last = sharpness(self.run.loss, self.run.params, start=self.last, tol=TOL)
        self.add(self.run.t, value=float(found.value[0]), residual=float(found.residual[0]), converged=found.converged)


class Stabilities(Columns):
    """The (preconditioned) sharpness after the step against the optimiser's threshold, as `stability` reads both.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> found = trained(Setting(steps=1, samples=50, width=4, lr=0.5, watch=("stabilities",)))["found"]["stabilities"]
    >>> found["threshold"]  # 2/lr
    [4.0]
    """

    last: Stability | None = None

    def after(self) -> None:
        found = self.last = stability(self.run.optimizer, self.run.loss, start=self.last, tol=TOL)
        self.add(
            self.run.t - 1,
            sharpness=found.sharpness,
            residual=found.residual,
            threshold=found.threshold,
            ratio=found.ratio,
            converged=found.estimate.converged,
        )

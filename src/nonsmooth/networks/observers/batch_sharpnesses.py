"""Batch sharpness along a run of minibatch training, against its threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nonsmooth.networks.observers.curvatures import Columns
from nonsmooth.torch.batch_sharpness import batch_sharpness

if TYPE_CHECKING:
    from nonsmooth.networks.training import Run

__all__ = ["BatchSharpnesses"]

MOST = 16
"""So many batches are measured at most: the mean over them is an estimate, its `error` beside it."""


class BatchSharpnesses(Columns):
    """E_B[⟨g_B, H_B g_B⟩/‖g_B‖²] where a step is taken from, over batches of the setting's size, without the penalty.

    The batches are those of one fixed shuffle of the training samples, 16 of them at most, and have nothing to do with
    the batch that the step is taken on. `error` is the standard error over them; `threshold` is 2(1 − β)/η.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> setting = Setting(steps=1, samples=40, batch=10, lr=0.5, width=4, watch=("batch_sharpnesses",))
    >>> trained(setting)["found"]["batch_sharpnesses"]["threshold"]  # 2/lr
    [4.0]
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        count = len(run.x)
        size = run.setting.batch if 0 < run.setting.batch < count else count
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        self.parts = [order[i : i + size] for i in range(0, size * min(count // size, MOST), size)]

    def before(self) -> None:
        run = self.run
        closures = [lambda part=part: run.loss_of(run.x[part], run.y[part]) for part in self.parts]
        found = batch_sharpness(closures, run.params, optimizer=run.optimizer)
        small = found.thresholds.small if found.thresholds else None
        self.add(run.t, value=found.value, error=found.error, pooled=found.pooled, threshold=small)

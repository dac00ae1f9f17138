"""`LightningAudit`, a callback for Lightning's Trainer: `lightning.pytorch`, or `pytorch_lightning` where that is."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from nonsmooth.torch.integrations.watch import Watch

__all__ = ["LightningAudit"]


def _callback() -> Any:
    """Lightning's Callback, of the package that the script has imported, or else of the one that is installed."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    if names[0] not in sys.modules and names[1] in sys.modules:
        names.reverse()
    for name in names:
        try:
            return import_module(name).Callback
        except ModuleNotFoundError as missing:
            if missing.name is None or missing.name.partition(".")[0] != name.partition(".")[0]:
                raise
    raise ModuleNotFoundError(
        "LightningAudit needs lightning, which is not installed; run: pip install lightning", name="lightning"
    )


Callback: Any = _callback()


class LightningAudit(Watch, Callback):
    """An `Audit` of each `trainer.fit`: `Trainer(callbacks=[LightningAudit(budget=0.05, folder="audit")])`.

    It is entered when training starts and left when it ends, or at an exception; afterwards `audit` holds it,
    `audit.findings` the words, and the folder the report. Options: those of `Watch`. Raises as `Watch` does.

    >>> callback = LightningAudit(budget=0.02, trials=0)
    >>> isinstance(callback, Callback), callback.options["budget"], callback.audit
    (True, 0.02, None)
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.enter(trainer.world_size)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.leave(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.leave(exception)

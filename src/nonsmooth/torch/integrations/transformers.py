"""`TransformersAudit`, a callback for the Trainer of Transformers."""

from __future__ import annotations

from typing import Any

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as missing:
    if missing.name != "transformers":
        raise
    raise ModuleNotFoundError(
        "TransformersAudit needs transformers, which is not installed; run: pip install transformers",
        name="transformers",
    ) from None

from nonsmooth.torch.integrations.watch import Watch

__all__ = ["TransformersAudit"]


class TransformersAudit(Watch, TrainerCallback):
    """An `Audit` of each `trainer.train()`: `Trainer(..., callbacks=[TransformersAudit(budget=0.05, folder="audit")])`.

    It is entered when training begins and left when it ends; afterwards `audit` holds it, `audit.findings` the words,
    and the folder the report. This Trainer tells a callback nothing of an exception: then it is left when the process
    ends, or by `callback.leave(error)`. Options: those of `Watch`. Raises as `Watch` does.

    >>> callback = TransformersAudit(budget=0.02, trials=0)
    >>> isinstance(callback, TrainerCallback), callback.options["budget"], callback.audit
    (True, 0.02, None)
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.enter(args.world_size)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.leave(None)

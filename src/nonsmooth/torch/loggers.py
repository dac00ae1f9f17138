"""Where a Monitor's rows may go beside its file: TensorBoard, Weights & Biases, MLflow, or a function."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Sink", "scalars", "sink"]

PREFIX = "nonsmooth"


@dataclass(frozen=True)
class Sink:
    """Takes rows to a logger; `name` is what is said of it.

    >>> seen = []
    >>> Sink("a list", seen.append)({"step": 1})
    >>> seen
    [{'step': 1}]
    """

    name: str
    write: Callable[[Mapping[str, Any]], Any]

    def __call__(self, row: Mapping[str, Any]) -> None:
        self.write(row)

    def __str__(self) -> str:
        return self.name


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row, by "nonsmooth/<kind>/<name>"; of its layers, by one name more.

    >>> scalars({"step": 3, "kind": "step", "loss": 0.5, "ties": 0, "data": "x", "kink_share_by_layer": {"0": 1.0}})
    {'nonsmooth/step/loss': 0.5, 'nonsmooth/step/ties': 0.0, 'nonsmooth/step/kink_share_by_layer/0': 1.0}
    """
    found: dict[str, float] = {}
    for name, value in row.items():
        if name in ("step", "kind", "at", "weights") and not (name == "weights" and isinstance(value, int)):
            continue
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for layer, number in inner:
            if isinstance(number, (int, float)) and math.isfinite(number):
                key = f"{PREFIX}/{row.get('kind', 'row')}/{name}" + (f"/{layer}" if layer else "")
                found[key] = float(number)
    return found


def sink(loggers: Sequence[Any] | None) -> list[Sink]:
    """What takes the rows: of the loggers given, or, for None, of a Weights & Biases run or an MLflow run that is on.

    Raises TypeError, in one sentence, for what is none of these.

    >>> sink(()), len(sink([print]))
    ([], 1)
    """
    if loggers is None:
        return _active()
    if isinstance(loggers, (str, bytes)) or not isinstance(loggers, Sequence):
        raise TypeError(f"Monitor: loggers must be a list, not {type(loggers).__name__}; write [logger].")
    return [_of(logger) for logger in loggers]


def _of(logger: Any) -> Sink:
    name = type(logger).__name__
    if hasattr(logger, "add_scalar"):
        return Sink(f"TensorBoard ({name})", lambda row: _tensorboard(logger, row))
    if hasattr(logger, "log_metrics") and hasattr(logger, "active_run"):
        return Sink("MLflow", lambda row: _mlflow(logger, row))
    if hasattr(logger, "log") and hasattr(logger, "define_metric"):
        return Sink("Weights & Biases", lambda row: _wandb(logger, row))
    if callable(logger):
        return Sink(getattr(logger, "__name__", name), logger)
    raise TypeError(
        f"Monitor: {name} is no logger; give a SummaryWriter, a Weights & Biases run, the mlflow module or a function."
    )


def _active() -> list[Sink]:
    """A run that is on in a package that the script has imported; nothing is imported for it."""
    found = []
    wandb, mlflow = sys.modules.get("wandb"), sys.modules.get("mlflow")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        found.append(_of(wandb.run))
    if mlflow is not None and hasattr(mlflow, "active_run") and mlflow.active_run() is not None:
        found.append(_of(mlflow))
    return found


def _tensorboard(writer: Any, row: Mapping[str, Any]) -> None:
    for name, number in scalars(row).items():
        writer.add_scalar(name, number, row["step"])


def _wandb(run: Any, row: Mapping[str, Any]) -> None:
    """Without `step=`: the script's own count of its calls stays what it is."""
    found = scalars(row)
    if found:
        run.log({**found, f"{PREFIX}/optimizer_step": row["step"]}, commit=False)


def _mlflow(mlflow: Any, row: Mapping[str, Any]) -> None:
    found = scalars(row)
    if found:
        mlflow.log_metrics(found, step=row["step"])

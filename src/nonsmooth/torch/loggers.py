"""Where a Monitor's rows may go beside its file: TensorBoard, Weights & Biases, MLflow, or a function."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Sink", "scalars", "sink"]

PREFIX = "nonsmooth"
AXIS = "optimizer_step"
"""What Weights & Biases draws the numbers of a kind against: its own count is the script's."""
LONGEST = 250
"""The most characters of a name that MLflow takes."""
REFUSED = re.compile(r"[^/\w.\- :]")
"""What it does not take in a name, nor two slashes in a row."""


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

    MLflow: rows go to the run that is on at the first of them, and to no other; while none is on they wait, for a run
    of our own would be in the script's way. Weights & Biases: rows are sent with the script's next `log`, so that its
    count stays what it is; of several rows of a kind between two of these it keeps the last. Each kind has an x axis of
    its own, "nonsmooth/<kind>/optimizer_step".

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
        return Sink("MLflow", _MLflow(logger))
    if hasattr(logger, "log") and hasattr(logger, "define_metric"):
        return Sink("Weights & Biases", _Wandb(logger))
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


class _Wandb:
    """Without `step=` and uncommitted: the script's own count of its calls stays what it is."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.defined: set[str] = set()

    def __call__(self, row: Mapping[str, Any]) -> None:
        found = scalars(row)
        if not found:
            return
        of = f"{PREFIX}/{row['kind']}"
        axis = f"{of}/{AXIS}"  # of each kind its own: rows that wait for the same `log` are of different steps
        if of not in self.defined:
            self.defined.add(of)
            self.run.define_metric(axis, hidden=True)
            self.run.define_metric(f"{of}/*", step_metric=axis)
        self.run.log({**found, axis: row["step"]}, commit=False)


class _MLflow:
    """Rows of one run, by its id: `log_metrics` alone starts a run where none is on."""

    def __init__(self, mlflow: Any) -> None:
        self.mlflow = mlflow
        self.run: str | None = None
        self.waiting: list[Mapping[str, Any]] = []

    def __call__(self, row: Mapping[str, Any]) -> None:
        self.waiting.append(row)
        if self.run is None:
            on = self.mlflow.active_run()
            self.run = None if on is None else on.info.run_id
        while self.run is not None and self.waiting:
            first = self.waiting.pop(0)
            found = {_taken(name): number for name, number in scalars(first).items()}
            if found:
                self.mlflow.log_metrics(found, step=first["step"], run_id=self.run)


def _taken(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub("/{2,}", "/", REFUSED.sub("_", name))[:LONGEST].rstrip("/")

"""Facts of a run as plain data: versions, the optimiser's settings; run.json that holds them, rows.jsonl beside it."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import platform
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from nonsmooth.torch.effective import unwrapped

__all__ = ["model_facts", "open_rows", "optimizer_facts", "plain", "versions", "write_facts", "write_row"]

SETTINGS = (
    *("lr", "momentum", "nesterov", "dampening", "betas", "eps", "weight_decay", "decoupled_weight_decay"),
    *("alpha", "centered", "amsgrad", "maximize", "rho", "lr_decay", "momentum_decay"),
)
"""What is told of a group, where it has it."""


def versions() -> dict[str, Any]:
    """The versions that a run was made with, and its threads.

    >>> versions()["torch"] == torch.__version__
    True
    """
    try:
        own = version("nonsmooth")
    except PackageNotFoundError:  # a source tree that was not installed
        own = "unknown"
    return {
        "nonsmooth": own,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def optimizer_facts(optimizer: Optimizer) -> dict[str, Any]:
    """Name, settings of each group, and how much it holds; what it is wrapped in.

    >>> w = torch.nn.Parameter(torch.zeros(3))
    >>> found = optimizer_facts(torch.optim.SGD([w], lr=0.5, momentum=0.9))
    >>> found["name"], found["groups"][0]["momentum"], found["parameters"]
    ('SGD', 0.9, 3)
    """
    inner = unwrapped(optimizer)
    groups = []
    for group in inner.param_groups:
        told = {name: plain(_number(group[name])) for name in SETTINGS if name in group}
        groups.append(told | {"parameters": sum(p.numel() for p in group["params"])})
    held = [p for group in inner.param_groups for p in group["params"]]
    return {
        "name": type(inner).__name__,
        "wrapped": None if inner is optimizer else type(optimizer).__name__,
        "groups": groups,
        "parameters": sum(p.numel() for p in held),
        "tensors": len(held),
    }


def model_facts(model: Any) -> dict[str, Any] | None:
    """Name, size, mode and dtype of a module; None for what is none.

    >>> model_facts(torch.nn.Linear(2, 3))
    {'name': 'Linear', 'parameters': 9, 'training': True, 'dtype': 'float32'}
    """
    if not isinstance(model, torch.nn.Module):
        return None
    return {
        "name": type(getattr(model, "_orig_mod", model)).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": model.training,
        "dtype": str(next((p.dtype for p in model.parameters()), "")).removeprefix("torch."),
    }


def plain(value: Any) -> Any:
    """As JSON has it: "nan", "inf" and "-inf" are words, tuples are lists.

    >>> plain({"a": (1.0, float("nan"))})
    {'a': [1.0, 'nan']}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def write_facts(folder: Path, facts: Mapping[str, Any]) -> Path:
    """`folder/run.json`, whole or not at all. Raises ValueError, in one sentence, where it cannot be written.

    >>> import tempfile
    >>> json.loads(write_facts(Path(tempfile.mkdtemp()), {"steps": 3}).read_text())["steps"]
    3
    """
    target, beside = folder / "run.json", folder / f".run.json.{os.getpid()}"
    try:
        beside.write_text(json.dumps(plain(facts), ensure_ascii=False, indent=1), encoding="utf-8")
        os.replace(beside, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise ValueError(f"{target}: cannot be written ({error.strerror}); choose another folder.") from None
    return target


def free_folder(folder: Path) -> Path:
    """The first of folder, folder-2, folder-3 … that is not there, or has nothing in it.

    >>> free_folder(Path("no-such-folder")).name
    'no-such-folder'
    """
    number, free = 1, folder
    while free.exists() and not (free.is_dir() and not any(free.iterdir())):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def open_rows(folder: Path) -> io.FileIO:
    """`folder/rows.jsonl`, to append rows to, without a buffer: a row is there when it was written.

    What comes first starts a line of its own: a last row that a kill has cut off is taken out, and a warning says so.
    Raises OSError where it cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "rows.jsonl").write_text('{"step": 1}')
    >>> with open_rows(folder) as rows:
    ...     write_row(rows, {"step": 2})
    >>> (folder / "rows.jsonl").read_text()
    '{"step": 1}\\n{"step": 2}\\n'
    """
    file = (folder / "rows.jsonl").open("a+b", buffering=0)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) in (b"", b"\n"):
        return file
    file.seek(0)
    last = file.readall().rpartition(b"\n")[2]
    try:
        json.loads(last)
    except ValueError:
        file.truncate(size - len(last))
        warnings.warn(f"{folder / 'rows.jsonl'}: the last row was cut off, it is taken out.", stacklevel=4)
    else:
        file.write(b"\n")
    return file


def write_row(file: io.FileIO, row: Mapping[str, Any]) -> None:
    """Append a row as a line, in one write: rows of two processes do not mix. Raises OSError where it cannot.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with open_rows(folder) as rows:
    ...     write_row(rows, {"loss": float("nan")})
    >>> (folder / "rows.jsonl").read_text()
    '{"loss": "nan"}\\n'
    """
    line = (json.dumps(plain(row), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    while line:  # a full disk takes a part of it, and refuses the rest
        line = line[file.write(line) :]


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value

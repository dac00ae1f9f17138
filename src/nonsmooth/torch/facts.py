"""Facts of a run as plain data: versions, the optimiser's settings, and run.json that holds them."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from nonsmooth.torch.effective import unwrapped

__all__ = ["optimizer_facts", "plain", "versions", "write_facts"]

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
        beside.unlink(missing_ok=True)
        raise ValueError(f"{target}: cannot be written ({error.strerror}); choose another folder.") from None
    return target


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value

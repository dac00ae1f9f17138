"""What a state that is loaded must be: plain data of which every part is checked before it is believed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from nonsmooth.hyperparameters import Hyperparameters
from nonsmooth.ledger import short
from nonsmooth.penalties import Penalty

__all__ = ["check_entry", "check_penalty", "count", "numbers", "part", "strength"]

OFF = {"lam", "ridge", "group_lam"}
"""The strengths that a refit keeps."""


def _shown(value: Any) -> str:
    try:
        return short(repr(value))
    except (ValueError, RecursionError):  # a number of more digits than Python writes
        return f"one too long to show ({type(value).__name__})"


def strength(who: str, lam: Any) -> float:
    """λ as a float; ValueError for what is negative, not finite or no number.

    >>> strength("set_lam", torch.tensor(2))
    2.0
    """
    if isinstance(lam, (np.generic, np.ndarray, torch.Tensor)) and lam.ndim == 0:
        lam = lam.item()
    if isinstance(lam, bool) or not (isinstance(lam, (int, float)) and 0 <= lam < 2.0**1023):
        raise ValueError(f"{who}: lam must be a finite number, 0 or above, not {_shown(lam)}.")
    return float(lam)


def part(who: str, state: Any, name: str) -> Any:
    """The part of a state that has this name; ValueError where there is none.

    >>> part("LambdaLam", {"t": 1}, "first")
    Traceback (most recent call last):
    ValueError: LambdaLam: the state has no 'first'; load what its state_dict returned.
    """
    if not isinstance(state, Mapping) or name not in state:
        raise ValueError(f"{who}: the state has no {name!r}; load what its state_dict returned.")
    return state[name]


def count(who: str, state: Any, name: str) -> int:
    """A whole number of a state, 0 or above and below 2⁵³; ValueError for what is none.

    >>> count("LambdaLam", {"t": 3}, "t")
    3
    """
    value = part(who, state, name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise ValueError(f"{who}: {name} of the state must be a whole number, 0 or above, not {_shown(value)}.")
    return value


def numbers(who: str, state: Any, name: str, low: float, high: float) -> list[float | None]:
    """A list of a state that holds numbers from low to high, or None; ValueError for anything else.

    >>> numbers("TargetSparsity", {"average": [None, 0.5]}, "average", 0.0, 1.0)
    [None, 0.5]
    """
    values = part(who, state, name)
    known = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and low <= v <= high  # noqa: E731
    if not isinstance(values, (list, tuple)) or not all(v is None or known(v) for v in values):
        raise ValueError(f"{who}: {name} of the state must be a list of numbers from {low:g} to {high:g}.")
    return list(values)


def check_entry(entry: Any, size: int) -> None:
    """Raises ValueError unless it is an entry of a group's "proximal" list, for a group of so many parameters.

    >>> check_entry({"lam": 1.0, "penalty": {"name": "L1", "weights": None}, "params": [2], "which": 0}, size=2)
    Traceback (most recent call last):
    ValueError: Proximal: the state names the parameters [2] of a group of 2.
    """
    who = "Proximal"
    places, plain = part(who, entry, "params"), part(who, entry, "penalty")
    if not isinstance(part(who, plain, "name"), str):
        raise ValueError(f"{who}: the state names a penalty {_shown(plain['name'])} that is not known here.")
    if any(isinstance(value, int) and abs(value) >= 2**53 for value in plain.values()):
        raise ValueError(f"{who}: a number of {short(plain['name'])} in the state is too large.")
    count(who, entry, "which")
    if part(who, entry, "lam") is not None:
        strength(who, entry["lam"])
    whole = isinstance(places, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in places)
    if not whole or len(set(places)) < len(places) or not all(0 <= i < size for i in places):
        raise ValueError(f"{who}: the state names the parameters {_shown(places)} of a group of {size}.")
    if (off := entry.get("off")) is not None:
        if not isinstance(off, dict) or not {"lam"} <= off.keys() <= OFF:
            raise ValueError(f"{who}: 'off' of the state is not what a refit keeps.")
        for value in off.values():
            strength(who, value)


def check_penalty(penalty: Penalty, params: list[torch.Tensor]) -> None:
    """Raises ValueError unless the penalty is one of plain numbers that has a proximal map for these parameters.

    >>> from nonsmooth.penalties import L1
    >>> check_penalty(L1([0.1, 1.0]), [torch.zeros(2)])
    Traceback (most recent call last):
    ValueError: Proximal: L1.lam must be one number here, not a list of 2.
    """
    name = type(penalty).__name__
    derived = vars(penalty).keys() - {f.name for f in fields(penalty)}
    derived = {d for d in derived if not isinstance(getattr(type(penalty), d, None), functools.cached_property)}
    if derived:
        raise ValueError(f"Proximal: {name} keeps {short(min(derived))}, which is no field of it; make it a property.")
    for f in fields(penalty):
        value = getattr(penalty, f.name)
        if isinstance(value, Hyperparameters) or hasattr(value, "dims"):
            raise ValueError(f"Proximal: {name}.{f.name} must be a plain number here, not {value!r}.")
        if f.name != "weights" and isinstance(value, np.ndarray):
            raise ValueError(f"Proximal: {name}.{f.name} must be one number here, not a list of {value.size}.")
    for p in params:
        if p.is_complex():
            raise ValueError("Proximal: a complex parameter has no proximal map here; penalise its real view.")
        if getattr(p, "_fsdp_flattened", False):
            raise ValueError("Proximal: FullyShardedDataParallel flattens parameters; shard with fully_shard instead.")
        if p.layout != torch.strided:
            raise ValueError(f"Proximal: a parameter of layout {p.layout} has no proximal map here; make it dense.")
        with torch.no_grad():
            penalty.prox(torch.zeros(p.shape, dtype=torch.float32, device=p.device), 1.0)

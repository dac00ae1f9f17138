"""What a state that is loaded must be: plain data of which every part is checked before it is believed."""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from nonsmooth.hyperparameters import Hyperparameters
from nonsmooth.ledger import short
from nonsmooth.penalties import Penalty

__all__ = [
    "check_entry",
    "check_memory",
    "check_penalty",
    "count",
    "finite",
    "numbers",
    "or_restored",
    "part",
    "strength",
]

OFF = {"lam", "ridge", "group_lam"}
"""The strengths that a refit keeps."""

CLOCKS = {"step", "eta", "mu", "mu_product"}
"""What torch's optimisers keep as one number of a parameter; all else is of the parameter's shape."""

FUSED = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "sum"}
"""What torch's fused kernels write to."""


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


# --- the wrapped optimiser's own ------------------------------------------------------------------------------------


@contextlib.contextmanager
def or_restored(who: str, optimizer: Optimizer) -> Iterator[None]:
    """Groups, state and known classes as they were, and ValueError in one sentence, where what is done here raises.

    >>> with or_restored("FromRule", torch.optim.SGD([torch.zeros(1)])):
    ...     raise KeyError("step")
    Traceback (most recent call last):
    ValueError: FromRule: this is no state of it (KeyError: 'step').
    """
    before = {name: getattr(optimizer, name) for name in ("param_groups", "state")}
    if hasattr(optimizer, "classes"):
        before["classes"] = dict(optimizer.classes)
    try:
        yield
    except BaseException as error:
        for name, value in before.items():
            setattr(optimizer, name, value)
        if not isinstance(error, Exception) or str(error).startswith(f"{who}:"):
            raise
        raise ValueError(f"{who}: this is no state of it ({type(error).__name__}: {short(error)}).") from error


def finite(value: Any) -> bool:
    """Whether it is a number, or a tensor of one, that a float holds and that is neither NaN nor infinite.

    >>> finite(1), finite(torch.tensor([0.1])), finite(10**400), finite("1")
    (True, True, False, False)
    """
    if isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    return isinstance(value, Real) and bool(-(2.0**1023) < value < 2.0**1023)  # type: ignore[operator]


def check_memory(optimizer: Optimizer, wrap: Callable[[Optimizer, list[torch.Tensor]], Callable[[], Any]]) -> None:
    """Raises ValueError unless torch's optimiser can step from its groups and state, and no number of a group is NaN.

    What torch needs of them torch knows best: two steps are taken with a stand-in of the optimiser, by the function
    that `wrap` makes of it and its real parameters. It has the groups and the numbers of the state, but on the CPU,
    and two numbers for each parameter and for each tensor of a parameter's shape; no step can write to those of another
    shape. Fused kernels do not look at shapes, and write past the end of what is too small: theirs are compared first.

    >>> w = torch.nn.Parameter(torch.zeros(3))
    >>> adam = torch.optim.Adam([w])
    >>> adam.state[w] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(2)}
    >>> check_memory(adam, lambda made, params: made.step)
    Traceback (most recent call last):
    ValueError: Proximal: exp_avg_sq of parameter 0 of the state is of shape (2,), and the parameter of shape (3,).
    """
    for k, group in enumerate(optimizer.param_groups):
        for name in optimizer.defaults:
            value = group.get(name)
            if any(_is_nan(v) for v in (value if isinstance(value, (list, tuple)) else (value,))):
                raise ValueError(f"Proximal: {name} of group {k} of the state must be a number, not nan.")
        if group.get("fused") and (said := _misfit(optimizer, group["params"], FUSED)):
            raise ValueError(f"Proximal: {said}.")
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in enumerate(params):
        if not isinstance(optimizer.state.get(p, {}), dict):
            raise ValueError(f"Proximal: the state of parameter {i} must be a dictionary.")
    if any(p.device.type == "meta" for p in params):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = _stand_in(optimizer)
            step = wrap(made, [p for group in made.param_groups for p in group["params"] if not p.is_complex()])
            step()
            step()  # which uses what the first one made
    except Exception as error:
        raise ValueError(f"Proximal: {_fault(optimizer, error)}.") from error


def _is_nan(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(torch.isnan(value).any())
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def _stand_in(optimizer: Optimizer) -> Optimizer:
    made = object.__new__(type(optimizer))
    made.__dict__.update({k: v for k, v in vars(optimizer).items() if k not in ("found_inf", "grad_scale")})
    made.state, made.param_groups = defaultdict(dict), []
    for group in optimizer.param_groups:
        held = {k: _on_cpu(v) if k in optimizer.defaults else v for k, v in group.items() if k != "proximal"}
        held["params"] = []
        if group.get("capturable") or any(p.device.type != "cpu" for p in group["params"]):
            held |= {"capturable": False, "fused": None, "foreach": None}  # these ask for the device
        some = any(optimizer.state.get(p) for p in group["params"])
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            z = torch.zeros(p.shape if p.numel() <= 1 else 2, dtype=p.dtype, device="cpu")
            if state or (p.requires_grad and not some):  # what had no gradient need not have a state
                z.grad = torch.zeros_like(z)
            if state:
                made.state[z] = {name: _alike(value, p, z) for name, value in state.items()}
            held["params"].append(z)
        made.param_groups.append(held)
    return made


def _on_cpu(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_on_cpu, value))
    return value.to("cpu") if isinstance(value, torch.Tensor) else value


def _fits(value: torch.Tensor, p: torch.Tensor) -> bool:
    return value.shape == p.shape and value.layout in (p.layout, torch.strided)


def _alike(value: Any, p: torch.Tensor, z: torch.Tensor) -> Any:
    """A part of the state of p, for z."""
    if not isinstance(value, torch.Tensor):
        return value
    part = value.to_local() if hasattr(value, "to_local") else value
    if part is value and (value.numel() == 1 or (value.numel() == 0 and p.numel() <= 1)):
        return value.detach().to("cpu", copy=True)
    one = torch.ones((), dtype=value.dtype, device="cpu")
    if not _fits(value, p):
        return one.expand(3)  # which no step can write to
    repeats = part.layout == torch.strided and any(
        s == 0 and n > 1 for s, n in zip(part.stride(), part.shape, strict=True)
    )
    return one.expand(z.shape) if repeats else one.repeat(z.shape)


def _misfit(optimizer: Optimizer, params: list[torch.Tensor], names: Collection[str] = ()) -> str:
    """The first tensor of the state, of these names if any are given, that is not as its parameter is; '' for none."""
    every = (p for group in optimizer.param_groups for p in group["params"])
    order = {id(p): i for i, p in enumerate(every)}
    for p in params:
        for name, value in optimizer.state.get(p, {}).items():
            what = f"{short(name)} of parameter {order[id(p)]} of the state"
            if not isinstance(value, torch.Tensor) or name in CLOCKS or (names and name not in names):
                continue
            if value.shape != p.shape:
                return f"{what} is of shape {tuple(value.shape)}, and the parameter of shape {tuple(p.shape)}"
            if not _fits(value, p):
                return f"{what} is of layout {value.layout}, and the parameter of layout {p.layout}"
            part = value.to_local() if hasattr(value, "to_local") else value
            if part.layout == torch.strided and not part.is_meta:
                end = (part.storage_offset() + part.numel()) * part.element_size()
                if part.untyped_storage().nbytes() < end:
                    return f"{what} has numbers that share their memory"
    return ""


def _fault(optimizer: Optimizer, error: Exception) -> str:
    """What of groups and state a step most likely failed at."""
    for k, group in enumerate(optimizer.param_groups):
        for name, default in optimizer.defaults.items():
            if name not in group:
                return f"group {k} of the state has no {name!r}"
            if wanted := _wanted(group[name], default):
                return f"{name} of group {k} of the state must be {wanted}, not {_shown(group[name])}"
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in enumerate(params):
        for name in sorted(CLOCKS & optimizer.state.get(p, {}).keys()):
            if not finite(optimizer.state[p][name]):
                return f"{name} of parameter {i} of the state must be one finite number"
    if said := _misfit(optimizer, params):
        return said
    kind = type(optimizer).__name__
    if isinstance(error, KeyError):
        return f"the state has no {short(error)}, which {kind} needs"
    return f"{kind} can take no step from this state ({type(error).__name__}: {short(error)})"


def _wanted(value: Any, default: Any) -> str:
    """What should stand for a value, where it is not of its default's kind; '' where it is."""
    if isinstance(default, (list, tuple)):
        fits = isinstance(value, (list, tuple)) and len(value) == len(default) and all(map(finite, value))
        return "" if fits else f"{len(default)} finite numbers"
    if isinstance(default, bool) or default is None:
        return "" if value is None or finite(value) else "True, False or None"
    return "" if finite(value) or not finite(default) else "a finite number"

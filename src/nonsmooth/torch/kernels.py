"""The prox of one parameter in place: in blocks that stay in the cache, or compiled, on its own or with the step.

A separable prox is bound by memory traffic. Eagerly it takes a pass for each operation, so it works on blocks; compiled
it is one pass over w and what τ is made of; and for SGD and Adam step and prox are compiled together, so that nothing
is read twice.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from nonsmooth.penalties import (
    L0,
    L1,
    MCP,
    SCAD,
    Box,
    ElasticNet,
    GroupLasso,
    LHalf,
    NonNegative,
    Penalty,
    SmoothedL1,
    SparseGroupLasso,
    SquaredL2,
)
from nonsmooth.penalties.constraints import Constraint
from nonsmooth.torch.effective import Reading, Table, _adam, _lr, _sgd, identity, over_root
from nonsmooth.torch.groups import group_prox_
from nonsmooth.torch.shards import crossing, is_shard, local, part_of, whole

__all__ = ["prox_", "step_and_prox_"]

BLOCK = 1 << 19
"""Numbers of a parameter that a separable prox works on at a time on a CPU: their temporaries stay in the cache."""

LARGE = 1 << 14
"""From this many numbers on a compiled step and prox is worth its call."""

COORDINATEWISE = (L1, SquaredL2, ElasticNet, SmoothedL1, MCP, SCAD, L0, LHalf, Box, NonNegative)
"""Penalties Σ h(xᵢ) with one h for all (L1 without weights): the prox of a part of a parameter is that part's prox."""


def prox_(p: torch.Tensor, penalty: Penalty, reading: Reading, compile: bool = False) -> None:
    """p ← prox_{τg}(p) in place, τ as read, in float32 at least.

    Of a DTensor each process moves its own part: alone where the penalty goes coordinate by coordinate, with sums over
    the processes where groups lie across them, and with the whole parameter gathered for any other penalty.

    >>> w = torch.tensor([2.0, -0.5])
    >>> prox_(w, L1(1.0), Reading(identity, (1.0,)))
    >>> w.tolist()
    [1.0, 0.0]
    """
    if type(penalty) is L1 and penalty.weights is not None:
        penalty, reading = penalty.replaced(weights=None), reading.weighted(_cast(penalty.weights, p))
    if is_shard(p):
        _shard_prox_(p, penalty, reading)
        return
    flat = _flattened(p, *reading.tensors) if _alike(penalty) else None
    if flat is None:
        if not group_prox_(p, penalty, reading):
            _prox_(p, penalty, reading)
        return
    if compile and p.numel() > 1:  # 0 and 1 have code of their own
        kernel = _kernel(type(penalty), reading.formula, len(reading.tensors))
        if kernel((*_values(penalty), *reading.numbers), flat):
            return
    block = BLOCK if p.device.type == "cpu" else p.numel() or 1
    if type(penalty) is L1 and all(t.dtype is p.dtype for t in flat) and p.dtype in (torch.float32, torch.float64):
        _shrink_(flat, reading.scaled(penalty.lam), block)
        return
    for w, *tensors in zip(*(t.split(block) for t in flat), strict=True):
        _prox_(w, penalty, Reading(reading.formula, reading.numbers, tuple(tensors)))


def _shard_prox_(p: torch.Tensor, penalty: Penalty, reading: Reading) -> None:
    """Every process takes the same branches, for each may wait for the others."""
    w = local(p)
    own = tuple(local(t) if is_shard(t) or t.shape == w.shape else part_of(t, p) for t in reading.tensors)
    tau = Reading(reading.formula, reading.numbers, own)
    if type(penalty) in COORDINATEWISE:
        prox_(w, penalty, tau)
        return
    if type(penalty) in (GroupLasso, SparseGroupLasso) and penalty.groups is None and p.numel():  # type: ignore[attr-defined]
        dim = penalty.dim  # type: ignore[attr-defined]
        across = crossing(p, dim)
        if across:
            group_prox_(w, penalty, tau, p.numel() // p.shape[dim], across)
            return
        if across is not None:
            prox_(w, penalty, tau)
            return
    full = whole(p)
    prox_(full, penalty, Reading(reading.formula, reading.numbers, tuple(whole(t) for t in reading.tensors)))
    w.copy_(part_of(full, p))


def _shrink_(flat: list[torch.Tensor], threshold: Reading, block: int) -> None:
    """L1's prox in blocks, with two arrays for all that comes between."""
    w, *tensors = flat
    if threshold.formula is not over_root or w.device.type != "cpu":
        for part, *rest in zip(*(t.split(block) for t in flat), strict=True):
            part.sub_(clipped(part, threshold.formula(*threshold.numbers, *rest)))
        return
    whole = min(block, w.numel())
    first, second = _scratch(w.dtype, whole)
    for part, v in zip(w.split(block), tensors[0].split(block), strict=True):
        n = part.numel()
        bound, other = (first, second) if n == whole else (first[:n], second[:n])
        threshold.formula(*threshold.numbers, v, out=bound)
        torch.neg(bound, out=other)
        part.sub_(torch.clamp(part, other, bound, out=other))


HELD = threading.local()
"""Two blocks of memory for each thread and precision, kept from step to step: new pages would cost as much again."""


def _scratch(dtype: torch.dtype, size: int) -> torch.Tensor:
    held = getattr(HELD, str(dtype), None)
    if held is None or held.shape[1] < size:
        held = torch.empty((2, size), dtype=dtype)
        setattr(HELD, str(dtype), held)
    return held[:, :size]


CAST = WeakTensorKeyDictionary()
"""Copies of an L1's weights, kept from step to step, with what they were made of and for."""


def _cast(weights: Any, p: torch.Tensor) -> torch.Tensor:
    """The weights where p lies, in its precision, float32 at least."""
    weights = weights if isinstance(weights, torch.Tensor) else torch.tensor(weights)
    made = (weights._version, p.device, torch.promote_types(p.dtype, torch.float32))
    if CAST.get(weights, (None,))[0] != made:
        CAST[weights] = made, weights.to(made[1], made[2], copy=True)
    return CAST[weights][1]


def _alike(penalty: Penalty) -> bool:
    return type(penalty) in COORDINATEWISE and getattr(penalty, "weights", None) is None


def _names(kind: type[Penalty]) -> list[str]:
    """The numbers that a separable penalty is made of; L1's weights are left at None."""
    return [f.name for f in fields(kind) if f.name != "weights"]


def _values(penalty: Penalty) -> list[Any]:
    return [getattr(penalty, name) for name in _names(type(penalty))]


def _prox_(w: torch.Tensor, penalty: Penalty, reading: Reading) -> None:
    wide = w.to(torch.promote_types(w.dtype, torch.float32))
    if type(penalty) is L1 and penalty.weights is None:
        wide.sub_(clipped(wide, reading.scaled(penalty.lam).value()))
    else:
        reading = reading.metric() if isinstance(penalty, Constraint) else reading
        wide = penalty.prox(wide, reading.value())
    if wide is not w:
        w.copy_(wide)


def clipped(w: torch.Tensor, threshold: Any) -> torch.Tensor:
    """w clipped to ± threshold; w without it is L1's prox, in fewer passes than by the signs."""
    if not isinstance(threshold, torch.Tensor) or threshold.ndim == 0:
        return torch.clamp(w, -threshold, threshold)
    bound = threshold.neg()
    return torch.clamp(w, bound, threshold, out=bound)


def _flattened(p: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor] | None:
    """One-dimensional views in the order of memory, where all lie alike and without gaps."""
    if any(t.stride() != p.stride() or t.shape != p.shape for t in tensors):
        return None
    expected = 1
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size != 1 and stride != expected:
            return None
        expected *= size
    return [t.as_strided((t.numel(),), (1,)).detach() for t in (p, *tensors)]


# --- step and prox together ----------------------------------------------------------------------------------------


def adam(numbers: Any, w: Any, g: Any, m: Any, v: Any, largest: Any = None) -> tuple[list[Any], Reading]:
    """torch's Adam and AdamW, and their τ; of the coupled and the decoupled decay one is 0."""
    sign, lr, beta1, beta2, eps, coupled, decoupled, correction, root = numbers
    g = sign * g + coupled * w
    m = m + (1 - beta1) * (g - m)
    v = beta2 * v + (1 - beta2) * g * g
    top = v if largest is None else torch.maximum(largest, v)
    tau = over_root(lr, root, eps, top)
    w = w - (lr * decoupled) * w - tau * m / correction
    return [w, None, m, v, *([] if largest is None else [top])], Reading(identity, (), (tau,))


def sgd(numbers: Any, w: Any, g: Any, buffer: Any) -> tuple[list[Any], Reading]:
    """torch's SGD with momentum β, and its τ; Nesterov's step is a mixture, of which `ahead` is 1."""
    sign, lr, beta, kept, coupled, ahead, tau = numbers
    g = sign * g + coupled * w
    buffer = beta * buffer + kept * g
    return [w - lr * (buffer + ahead * (g + beta * buffer - buffer)), None, buffer], Reading(identity, (tau,))


def _adam_numbers(group: Mapping[str, Any], state: Mapping[str, Any], response: float) -> list[float]:
    t, (beta1, beta2), decay = float(state["step"]) + 1, group["betas"], float(group["weight_decay"])
    decays = (0.0, decay) if group.get("decoupled_weight_decay") else (decay, 0.0)
    return [float(_lr(group)), beta1, beta2, group["eps"], *decays, 1 - beta1**t, (1 - beta2**t) ** 0.5]


def _sgd_numbers(group: Mapping[str, Any], state: Mapping[str, Any], response: float) -> list[float]:
    tau = _sgd(group, {}, None, response).numbers[0]
    kept, decay = 1.0 - group["dampening"], float(group["weight_decay"])
    return [float(_lr(group)), group["momentum"], kept, decay, float(group["nesterov"]), float(tau)]


WHOLE: dict[Any, tuple[Callable[..., Any], Callable[..., list[float]], tuple[str, ...]]] = {
    _adam: (adam, _adam_numbers, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    _sgd: (sgd, _sgd_numbers, ("momentum_buffer",)),
}
"""How a table reads τ: its step as a formula, the formula's numbers, and what of the state it moves on."""


def step_and_prox_(
    p: torch.Tensor, penalty: Penalty, table: Table, group: Mapping[str, Any], state: dict[str, Any]
) -> bool:
    """Whether p took its optimiser's step and the prox in one compiled pass; if not, nothing has changed.

    For SGD with momentum, Adam and AdamW on a CPU, from the second step on, for a separable penalty.

    >>> from nonsmooth.torch.effective import table_of
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> step_and_prox_(w, L1(1.0), table_of(torch.optim.SGD([w], lr=0.1)), {}, {})  # no gradient, nothing to do
    False
    """
    if table.read not in WHOLE or not _alike(penalty) or p.grad is None or p.numel() < LARGE:
        return False
    if any(group.get(name) for name in ("differentiable", "capturable")):
        return False
    if table.read is _sgd and not group["momentum"]:  # a buffer that was filled before is then left alone
        return False
    formula, numbers, names = WHOLE[table.read]
    tensors = [state[name] for name in names if isinstance(state.get(name), torch.Tensor)]
    flat = _flattened(p, p.grad, *tensors) if tensors and p.device.type == "cpu" else None
    if flat is None:
        return False
    response = table.respond(group, state.get("response")) if table.respond else 1.0
    sign = -1.0 if group["maximize"] else 1.0
    kernel = _kernel(type(penalty), formula, len(flat) - 1, whole=True)
    if not kernel((*_values(penalty), sign, *numbers(group, state, response)), flat):
        return False
    if "step" in state:
        state["step"] += 1
    return True


# --- compiled ------------------------------------------------------------------------------------------------------


class Kernel:
    """One fused pass over a parameter and what goes with it, compiled for any length and any numbers."""

    def __init__(self, kind: type[Penalty], formula: Callable[..., Any], tensors: int, whole: bool) -> None:
        names = _names(kind)

        def kernel(arguments: Any, flat: list[torch.Tensor]) -> None:
            arguments = arguments.unbind() if isinstance(arguments, torch.Tensor) else arguments
            penalty = object.__new__(kind)
            penalty.__dict__.update(zip(names, arguments, strict=False))
            numbers, (w, *rest) = arguments[len(names) :], flat
            if not whole:
                _prox_(w, penalty, Reading(formula, numbers, tuple(rest)))
                return
            moved, reading = formula(numbers, *(t.to(torch.promote_types(t.dtype, torch.float32)) for t in flat))
            _prox_(moved[0], penalty, reading)
            for old, new in zip(flat, moved, strict=True):
                if new is not None:
                    old.copy_(new)

        kernel.__code__ = kernel.__code__.replace()  # dynamo counts what it compiles by code, and stops at a few
        self.program: Callable[..., Any] | None = torch.compile(kernel, dynamic=True, fullgraph=True)
        self.known: set[tuple[torch.dtype, ...]] = set()

    def __call__(self, arguments: Sequence[Any], flat: list[torch.Tensor]) -> bool:
        """Whether it ran. Where there is no compiler it says so, once, and the eager path does the work."""
        if self.program is None:
            return False
        try:
            traced: Any
            if flat[0].device.type == "cpu" and all(isinstance(a, float) for a in arguments):
                traced = torch.tensor(arguments, dtype=torch.float64)  # one tensor: a call costs by its arguments
            else:
                traced = tuple(torch.tensor(a, dtype=torch.float64) if isinstance(a, float) else a for a in arguments)
            dtypes = (*(t.dtype for t in flat), torch.float64 if isinstance(traced, tuple) else torch.float32)
            if dtypes in self.known:
                self.program(traced, flat)
                return True
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # dynamo's, of caches that it looks through
                self.program(traced, flat)
            self.known.add(dtypes)
        except Exception as error:  # whatever it is, the eager path does the work, or says what is wrong
            self.program = None
            reason = str(error).strip().partition("\n")[0]
            if reason not in REASONS:
                warnings.warn(f"Proximal: torch.compile failed ({reason}); the eager path is used.", stacklevel=2)
            REASONS.add(reason)
            return False
        return True


KERNELS: dict[tuple[Any, ...], Kernel] = {}
REASONS: set[str] = set()


def _kernel(kind: type[Penalty], formula: Callable[..., Any], tensors: int, whole: bool = False) -> Kernel:
    key = (kind, formula, tensors, whole)
    if key not in KERNELS:
        KERNELS[key] = Kernel(*key)
    return KERNELS[key]

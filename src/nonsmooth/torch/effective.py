"""The effective step τ of each torch optimiser: the response of a parameter to a constant gradient.

A prox at τ after the optimiser's step leaves the fixed points those of f + g. While a momentum buffer fills the
response is smaller than in the long run; its part, `response`, is followed by the recursion of the buffer itself.
Where the second moment differs from weight to weight, so does τ. `effective_step` gives it; `register_effective_step`
teaches it another optimiser. The table is tested against `nonsmooth.rules`, whose `effective_step` is the same.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["Reading", "effective_step", "register_effective_step"]

Group = Mapping[str, Any]
Number = float | torch.Tensor


@dataclass(frozen=True)
class Reading:
    """τ = formula(*numbers, *tensors), elementwise in tensors of the parameter's shape; without tensors, one number.

    In float32 at least: in half precision v + ε would lose ε.

    >>> Reading(lambda lr, v: lr / v, (1.0,), (torch.tensor([2.0, 4.0]),)).value().tolist()
    [0.5, 0.25]
    """

    formula: Callable[..., Any]
    numbers: tuple[Number, ...]
    tensors: tuple[torch.Tensor, ...] = ()

    def value(self) -> Any:
        return self.formula(*self.numbers, *(t.to(torch.promote_types(t.dtype, torch.float32)) for t in self.tensors))

    def scaled(self, factor: Any) -> Reading:
        """The reading of factor · τ, at no cost: each formula is linear in its first number."""
        if not self.numbers:
            return Reading(lambda number, *tensors: number * self.formula(*tensors), (factor,), self.tensors)
        return Reading(self.formula, (self.numbers[0] * factor, *self.numbers[1:]), self.tensors)

    def metric(self) -> Reading:
        """That of τ up to a factor, which a projection does not depend on and which may be 0, as lr is in a warm-up."""
        return Reading(self.formula, (1.0, *self.numbers[1:]) if self.numbers else (), self.tensors)

    def weighted(self, weights: torch.Tensor) -> Reading:
        """The reading of τ ∘ weights: λΣwᵢ|xᵢ| has at τ the prox that λ‖x‖₁ has there."""
        return Reading(_times_the_last(self.formula), self.numbers, (*self.tensors, weights))


@dataclass(frozen=True)
class Table:
    """How to read τ off an optimiser: after its step, with what was remembered of before it, and its response."""

    read: Callable[[Group, dict[str, Any], Any, float], Reading]
    remember: Callable[[Group, dict[str, Any]], Any] | None = None
    respond: Callable[[Group, float | None], float] | None = None
    settled: Callable[[Group], float] | None = None
    buffer: str = ""
    stateless: bool = False
    uniform: bool = False  # whether τ may be one number for all coordinates


@functools.cache  # a kernel is compiled once for each formula
def _times_the_last(formula: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: formula(*arguments[:-1]) * arguments[-1]


def identity(step: Any) -> Any:
    return step


def over_root(scale: Any, root_correction: Any, eps: Any, v: Any, out: Any = None) -> Any:
    """scale/(√v/√(1 − β₂ᵗ) + ε), in three passes and one temporary."""
    deviation = (
        torch.rsqrt(v, out=out).reciprocal_().add_(eps * root_correction)
    )  # √v: torch's own sqrt is slower on a CPU
    return torch.div(torch.as_tensor(scale * root_correction, dtype=v.dtype), deviation, out=deviation)


def over(scale: Any, u: Any) -> Any:
    return scale / u


def over_deviation(scale: Any, root_correction: Any, eps: Any, v: Any, mean: Any) -> Any:
    return over_root(scale, root_correction, eps, (v - mean * mean).clamp(min=0))


def ratio_of_roots(scale: Any, eps: Any, a: Any, v: Any) -> Any:
    return scale * (a + eps).sqrt() / (v + eps).sqrt()


def _clock(state: dict[str, Any]) -> Number:
    """The step count t: a number, or a tensor where reading it would wait for a device."""
    step = state["step"]
    return step if isinstance(step, torch.Tensor) and step.device.type != "cpu" else float(step)


def _lr(group: Group) -> Number:
    """|lr|: a schedule that ends at 0 may round to just below, where a prox has no meaning; zeros stay at |lr|."""
    lr = abs(group["lr"])
    return lr if isinstance(lr, torch.Tensor) and lr.device.type != "cpu" else float(lr)


def _sgd(group: Group, state: dict[str, Any], memory: Any, response: float) -> Reading:
    c = response if group["momentum"] else 1.0
    return Reading(identity, (_lr(group) * (1 + group["momentum"] * c if group["nesterov"] else c),))


def _sgd_response(group: Group, before: float | None) -> float:
    """c⁺ = βc + (1 − d), 1 at the first step, which ignores the dampening; 1 without momentum."""
    if before is None or not group["momentum"]:
        return 1.0
    return group["momentum"] * before + 1 - group["dampening"]


def _sgd_settled(group: Group) -> float:
    return (1 - group["dampening"]) / (1 - group["momentum"]) if group["momentum"] else 1.0


def _adam(group: Group, state: dict[str, Any], memory: Any, response: float) -> Reading:
    root = (1 - group["betas"][1] ** _clock(state)) ** 0.5
    v = state["max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"]
    return Reading(over_root, (_lr(group), root, group["eps"]), (v,))


def _nadam(group: Group, state: dict[str, Any], memory: Any, response: float) -> Reading:
    """c = (1 − μ_t)/(1 − Π_t) + μ_{t+1}(1 − β₁ᵗ)/(1 − Π_{t+1}): what is left of the mixture at a constant gradient."""
    (beta1, beta2), t, decay = group["betas"], _clock(state), group["momentum_decay"]
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (s * decay)) for s in (t, t + 1))
    product = state["mu_product"]
    product = product if isinstance(product, torch.Tensor) and product.device.type != "cpu" else float(product)
    c = (1 - mu) / (1 - product) + mu_next * (1 - beta1**t) / (1 - product * mu_next)
    return Reading(over_root, (_lr(group) * c, (1 - beta2**t) ** 0.5, group["eps"]), (state["exp_avg_sq"],))


def _radam(group: Group, state: dict[str, Any], memory: Any, response: float) -> Reading:
    beta2, t, lr = group["betas"][1], float(state["step"]), _lr(group)
    longest = 2 / (1 - beta2) - 1
    rho = longest - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= 5:
        return Reading(identity, (lr,))
    rect = ((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)) ** 0.5
    numbers = (lr * rect * (1 - beta2**t) ** 0.5, 1.0, group["eps"])
    return Reading(over_root, numbers, (state["exp_avg_sq"],))


def _adamax(group: Group, state: dict[str, Any], memory: Any, response: float) -> Reading:
    return Reading(over, (_lr(group),), (state["exp_inf"],))


def _adagrad(group: Group, state: dict[str, Any], memory: Any, response: float) -> Reading:
    lr = _lr(group) / (1 + (_clock(state) - 1) * group["lr_decay"])
    return Reading(over_root, (lr, 1.0, group["eps"]), (state["sum"],))


def _rmsprop(group: Group, state: dict[str, Any], memory: Any, response: float) -> Reading:
    numbers = (_lr(group) * (response if group["momentum"] else 1.0), 1.0, group["eps"])
    if not group["centered"]:
        return Reading(over_root, numbers, (state["square_avg"],))
    v, mean = state["square_avg"], state["grad_avg"]
    if bool((torch.addcmul(v, mean, mean, value=-1) < 0).any()) or bool((v < mean * mean).any()):
        warnings.warn(
            "Proximal: centred RMSprop lost v − ḡ² to rounding, as a gradient no longer changes; torch's own step is "
            "NaN where that is below 0. Use centered=False.",
            RuntimeWarning,
            stacklevel=2,
        )
    return Reading(over_deviation, numbers, (v, mean))


def _rmsprop_response(group: Group, before: float | None) -> float:
    return group["momentum"] * (before or 0.0) + 1


def _adadelta(group: Group, state: dict[str, Any], before: Any, response: float) -> Reading:
    """With the a from before the step; where that is not known, with the one that the next step will use."""
    a = state["acc_delta"] if before is None else before
    a = a if isinstance(a, torch.Tensor) else torch.zeros_like(state["square_avg"])
    return Reading(ratio_of_roots, (_lr(group), group["eps"]), (a, state["square_avg"]))


def _asgd(group: Group, state: dict[str, Any], before: Any, response: float) -> Reading:
    """η from before the step; where that is not known, the next step's."""
    return Reading(identity, (abs(float(state["eta"] if before is None else before)),))


_ADAM = Table(_adam)
TABLES: dict[type[Optimizer], Table] = {
    torch.optim.SGD: Table(
        _sgd, respond=_sgd_response, settled=_sgd_settled, buffer="momentum_buffer", stateless=True, uniform=True
    ),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.NAdam: Table(_nadam),
    torch.optim.RAdam: Table(_radam),
    torch.optim.Adamax: Table(_adamax),
    torch.optim.Adagrad: Table(_adagrad),
    torch.optim.RMSprop: Table(
        _rmsprop,
        respond=_rmsprop_response,
        settled=lambda group: 1 / (1 - group["momentum"]),
        buffer="momentum_buffer",
    ),
    torch.optim.Adadelta: Table(
        _adadelta, remember=lambda group, state: state["acc_delta"].clone() if "acc_delta" in state else 0.0
    ),
    torch.optim.ASGD: Table(
        _asgd, remember=lambda group, state: float(state["eta"] if "eta" in state else group["lr"]), uniform=True
    ),
}

REFUSED: dict[str, str] = {
    "LBFGS": "its step is a line search along a direction that mixes all coordinates",
    "Rprop": "its step sizes follow the signs of the gradients and not their sizes, so a penalty cannot be weighed",
    "Muon": "it orthogonalises whole matrices, so that no coordinate has a step of its own",
    "Adafactor": "its factored second moment and relative steps depend on the whole matrix",
    "SparseAdam": "it moves only the coordinates of a sparse gradient",
}


def register_effective_step(
    optimizer: type[Optimizer], function: Callable[[Optimizer, dict[str, Any], torch.Tensor], float | torch.Tensor]
) -> None:
    """Teach `Proximal` another optimiser: function(optimizer, group, parameter) is τ after its step.

    τ is the response of the parameter to a constant gradient, a number or a tensor of the parameter's shape. Raises
    TypeError for what is no optimiser's class, or no function.

    >>> class Halved(torch.optim.SGD):
    ...     def step(self, closure=None):
    ...         return None
    >>> register_effective_step(Halved, lambda optimizer, group, p: 0.5 * group["lr"])
    >>> _ = TABLES.pop(Halved)
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        raise TypeError(f"register_effective_step: {optimizer!r} is not a subclass of torch.optim.Optimizer.")
    if not callable(function):
        raise TypeError(f"register_effective_step: function must be one of (optimizer, group, p), not {function!r}.")
    TABLES[optimizer] = Table(_Registered(function), stateless=True, uniform=True)


@dataclass(frozen=True)
class _Registered:
    """A user's function as a table's `read`; the parameter and its optimiser come with the call."""

    function: Callable[[Optimizer, dict[str, Any], torch.Tensor], float | torch.Tensor]

    def __call__(self, group: Group, state: dict[str, Any], memory: Any, response: float) -> Reading:
        optimizer, parameter = memory
        tau = self.function(optimizer, group, parameter)  # type: ignore[arg-type]
        if isinstance(tau, torch.Tensor) and tau.ndim:
            return Reading(identity, (), (tau.abs(),))
        return Reading(identity, (abs(float(tau)),))


def own_step(kind: type[Optimizer]) -> Callable[..., Any]:
    """A class's step without the hooks that torch wraps around it, in the class that is instantiated first."""
    step: Any = kind.step
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def unwrapped(optimizer: Any, until: type | tuple[()] = ()) -> Any:
    """The optimiser that wrappers, such as accelerate's, hold as `optimizer`: the first of a kind, or the innermost."""
    while not isinstance(optimizer, until):
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer) or inner is optimizer:
            break
        optimizer = inner
    return optimizer


def table_of(optimizer: Optimizer) -> Table:
    """The table of an optimiser, or of the class whose step it inherits; raises TypeError with the reason."""
    kind = type(optimizer)
    for ancestor in kind.__mro__:
        if ancestor in TABLES and own_step(ancestor) is own_step(kind):
            return TABLES[ancestor]
        if ancestor.__module__.startswith("torch.optim") and ancestor.__name__ in REFUSED:
            raise TypeError(f"Proximal: {kind.__name__} has no effective step: {REFUSED[ancestor.__name__]}.")
    raise TypeError(
        f"Proximal: {kind.__name__} has no registered effective step; "
        f"call register_effective_step({kind.__name__}, function) with τ after its step, from (optimizer, group, p)."
    )


def effective_step(optimizer: Optimizer, parameter: torch.Tensor) -> float | torch.Tensor:
    """τ of the optimiser's last step on a parameter, its momentum response taken as settled where it is not known.

    Adadelta and ASGD forget what their last step used: theirs is τ of the step to come. Raises TypeError for an
    optimiser without an effective step, and ValueError for a parameter that it does not hold or has not moved yet.

    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> effective_step(torch.optim.SGD([w], lr=0.5, momentum=0.75), w)
    2.0
    """
    optimizer = unwrapped(optimizer)
    table = table_of(optimizer)
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            state = optimizer.state.get(parameter, {})
            if not (table.stateless or state.get("step", 0)):
                who = type(optimizer).__name__
                raise ValueError(f"effective_step: {who} has made no step on this parameter yet, and so has no τ.")
            settled = table.settled(group) if table.settled else 1.0
            memory = (optimizer, parameter) if isinstance(table.read, _Registered) else None
            tau = table.read(group, state, memory, state.get("response", settled)).value()
            return tau if isinstance(tau, torch.Tensor) and tau.ndim else float(tau)
    raise ValueError("effective_step: the optimiser does not hold this parameter.")

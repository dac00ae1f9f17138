"""How far a live optimiser is from the step at which it would diverge on a quadratic: its own linear threshold.

On f = ½⟨x, Hx⟩ with the second moment held, an optimiser is linear, and first diverges by a flip of sign in each step.
There the memory of momentum multiplies the gradient by a number, so that each coordinate moves by −2s_i (Hx)_i/2 and
the threshold is λ₁(S^{½}HS^{½}) = 1 with S = diag s:

    SGD                 lr (1 − d)/(2(1 + β));  Nesterov: lr (1 + 2β)/(2(1 + β))
    Adam, RAdam, Adamax τ/(2(1 − β₁ᵗ)) · (1 − β₁)/(1 + β₁)
    NAdam               τ/2 · ((1 − μ_t)/(1 − Π_t) + μ_{t+1}/(1 − Π_{t+1}) · (1 − β₁)/(1 + β₁))
    RMSprop             τ/(2(1 + m))
    Adagrad, Adadelta   τ/2;  ASGD: η/2

with τ = lr/(√v̂ + ε) or what the optimiser has in its place, at the step that was taken last. Coupled weight decay wd
adds wd to H; a decoupled one turns the 2 into 2 − lr·wd. Source: Cohen et al. 2021, appendix B; 2022, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import optim
from torch.optim import Optimizer

from nonsmooth.torch.curvature import Sharpness, sharpness_of
from nonsmooth.torch.effective import TABLES, Reading, table_of, unwrapped
from nonsmooth.torch.hessian import Hessian

__all__ = ["Stability", "StepScale", "stability", "step_scale"]

Group = Mapping[str, Any]
SETTLED = {"step": 1e9, "mu_product": 0.0}
"""The state of a rule whose bias correction is over."""


@dataclass(frozen=True, eq=False)
class StepScale:
    """S of a live optimiser, and what else its quadratic has: sᵢ for each parameter, a number or a tensor, and a shift.

    `unit` is S of the first group with its preconditioner left out: 1/unit is the threshold in the words of the theory,
    2(1 + β)/lr for momentum. `sign` is −1 where the optimiser maximises.

    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> 1 / step_scale(torch.optim.SGD([w], lr=0.5, momentum=0.5)).unit  # 2(1 + 0.5)/0.5
    6.0
    """

    params: tuple[torch.Tensor, ...]
    scales: Sequence[Any]
    shifts: tuple[float, ...]
    unit: float
    sign: float

    def ratio(self, step: Iterable[torch.Tensor], g: Iterable[torch.Tensor], g_next: Iterable[torch.Tensor]) -> float:
        """⟨g⁺ − g, D⟩/⟨D, S⁻¹D⟩ for a step D: its curvature over the threshold; NaN where D = 0.

        On a quadratic it is at most λ₁(S^{½}HS^{½}). One tensor a parameter, in the order of `params`.

        >>> w = torch.nn.Parameter(torch.zeros(1))
        >>> D, g, g_next = ([torch.tensor([a])] for a in (-1.0, 1.0, -3.0))
        >>> step_scale(torch.optim.SGD([w], lr=1.0)).ratio(D, g, g_next)  # κ = 4, 2/lr = 2
        2.0
        """
        above, below = 0.0, 0.0
        for d, before, after, s, shift in zip(step, g, g_next, self.scales, self.shifts, strict=True):
            d, change = d.detach().double(), (after.detach().double() - before.detach().double()) * self.sign
            s = s.double() if isinstance(s, torch.Tensor) else s
            above += float(((change + shift * d) * d).sum())
            below += float((d * d / s).sum())
        return above / below if below else float("nan")


@dataclass(frozen=True, eq=False)
class Stability:
    """An optimiser's (preconditioned) sharpness, its threshold, and their ratio: above 1 a quadratic would diverge.

    `sharpness` and `residual` are in units of the first group: λ₁(H) for plain SGD or momentum, λ₁(P^{-½}HP^{-½}) for
    an adaptive one, and `threshold` is 2/lr and the like. `step_ratio(D, g, g⁺)` is a step's curvature over it.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> print(stability(torch.optim.SGD([w], lr=0.5), lambda: 1.5 * w.square().sum()))
    SGD: sharpness 3 is 0.75 of its threshold 4
    """

    optimizer: str
    sharpness: float
    residual: float
    threshold: float
    ratio: float
    estimate: Sharpness
    scale: StepScale

    def step_ratio(
        self, step: Sequence[torch.Tensor], g: Sequence[torch.Tensor], g_next: Sequence[torch.Tensor]
    ) -> float:
        """⟨g⁺ − g, D⟩/⟨D, S⁻¹D⟩, `StepScale.ratio`: for plain SGD κ/(2/lr)."""
        return self.scale.ratio(step, g, g_next)

    def __str__(self) -> str:
        words = f"{self.optimizer}: sharpness {self.sharpness:.4g} is {self.ratio:.4g} of its threshold "
        return words + f"{self.threshold:.4g}" + ("" if self.estimate.converged else " (NOT converged)")


def stability(
    optimizer: Optimizer,
    closure: Any,
    tol: float = 1e-2,
    start: Stability | None = None,
    max_products: int = 100,
    seed: int = 0,
) -> Stability:
    """The sharpness of a live optimiser's loss against the linear threshold of its rule, with its options and groups.

    `closure` is as in `sharpness`, and `start` the last result along a run. A wrapper, such as Proximal, counts as what
    it wraps. With several groups S differs between them, which is exact for learning rates and for one momentum; with
    momenta that differ λ₁ = 1 is where a flip of sign persists. For a minibatch closure the curvature is that batch's.

    Raises TypeError for an optimiser without a threshold, ValueError for an adaptive one that has made no step yet, for
    a learning rate that is not above 0, and what `sharpness` refuses.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> found = stability(torch.optim.SGD([w], lr=0.5, momentum=0.5), lambda: 1.5 * w.square().sum())
    >>> round(found.sharpness, 6), found.threshold, round(found.ratio, 6)  # 3, 2(1 + 0.5)/0.5
    (3.0, 6.0, 0.5)
    """
    found = stability_from([] if start is None else [start.estimate], optimizer, closure, tol, max_products, seed)
    return replace(found, scale=step_scale(optimizer))


def stability_from(
    starts: list[Sharpness],
    optimizer: Optimizer,
    closure: Any,
    tol: float = 1e-2,
    max_products: int = 100,
    seed: int = 0,
) -> Stability:
    """`stability` from an estimate that is taken out of a list, so that it makes room; its scale is a `live_scale`.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> stability_from([], torch.optim.SGD([w], lr=0.5), lambda: 1.5 * w.square().sum()).ratio
    0.75
    """
    rows, sign = _rows(optimizer)
    unit = rows[0].unit
    params, inverse, shifts = zip(*((row.param, partial(_inverse, row, unit), row.shift) for row in rows), strict=True)
    hessian = Hessian(closure, params, inverse, shifts, sign, "stability")
    found = sharpness_of(hessian, 1, tol, starts, max_products, seed)
    del hessian
    value, residual = float(found.value[0]), float(found.residual[0])
    name = type(unwrapped(optimizer)).__name__
    return Stability(name, value, residual, 1 / unit, value * unit, found, live_scale(optimizer))


def step_scale(optimizer: Optimizer) -> StepScale:
    """S of a live optimiser, read off its groups and state; raises as `stability` does.

    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.RMSprop([w], lr=0.25, alpha=0.0, eps=0.0)
    >>> w.grad = torch.tensor([2.0])
    >>> optimizer.step()
    >>> step_scale(optimizer).scales[0].tolist(), step_scale(optimizer).unit  # 0.25/(2·2), and lr/2
    ([0.0625], 0.125)
    """
    live = live_scale(optimizer)
    return replace(live, scales=tuple(live.scales))


def live_scale(optimizer: Optimizer) -> StepScale:
    """The same whose `scales` are read off the optimiser each time that they are asked for, and not held.

    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    >>> list(live_scale(optimizer).scales)
    [0.25]
    """
    rows, sign = _rows(optimizer)
    params, shifts = (tuple(getattr(row, of) for row in rows) for of in ("param", "shift"))
    return StepScale(params, _Scales(rows), shifts, rows[0].unit, sign)


class _Scales(Sequence[Any]):
    def __init__(self, rows: list[_Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        return self.rows[i].scale()


def size_of(optimizer: Optimizer) -> int:
    """The entries of all parameters that learn; raises as `step_scale` does.

    >>> size_of(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2, 3))], lr=0.1))
    6
    """
    return sum(row.param.numel() for row in _rows(optimizer)[0])


class _Row(NamedTuple):
    """What a parameter has of S, read when it is asked for, for it may be as long as the parameter; and S's unit."""

    param: torch.Tensor
    reading: Reading
    flip: float
    shift: float
    unit: float

    def scale(self) -> Any:
        tau = self.reading.value()
        return tau.double() * self.flip if isinstance(tau, torch.Tensor) else float(tau) * self.flip


def _inverse(row: _Row, unit: float) -> Any:
    """The parameter's part of P, in the precision of the state."""
    return unit / (row.reading.value() * row.flip)


def _rows(optimizer: Optimizer) -> tuple[list[_Row], float]:
    """The parameters that learn, each with its part of S; and the sign."""
    optimizer = unwrapped(optimizer)
    try:
        table = table_of(optimizer)
    except TypeError as refused:
        raise TypeError(str(refused).replace("Proximal:", "stability:", 1)) from None
    kind = next((kind for kind in type(optimizer).__mro__ if kind in FLIPS), None)
    if kind is None:
        raise TypeError(f"stability: the threshold of {type(optimizer).__name__} is not known.")
    rows, signs = list[_Row](), set()
    for group in optimizer.param_groups:
        bare = {**group, "momentum": 0.0, "nesterov": False}
        lr = float(group["lr"])
        if not lr > 0:
            raise ValueError(f"stability: a learning rate of {lr:g} moves nothing, and so has no threshold.")
        wd, apart = float(group.get("weight_decay", 0.0)), bool(group.get("decoupled_weight_decay"))
        for p in group["params"]:
            if not p.requires_grad:
                continue
            state = optimizer.state.get(p, {})
            if kind is not optim.SGD and not state:
                if p.grad is None and any(optimizer.state.get(q) for q in group["params"]):
                    continue
                raise ValueError(f"stability: {type(optimizer).__name__} has made no step yet; take one first.")
            twice = 2 - lr * wd if apart else 2.0
            flip = FLIPS[kind](group, state) / twice
            reading = (TABLES[optim.Adam] if kind is optim.NAdam else table).read(bare, state, None, 1.0)
            shift = (0.0 if apart else wd) + float(group.get("lambd", 0.0))
            rows.append(_Row(p, reading, flip, shift, lr * FLIPS[kind](group, SETTLED) / twice))
            signs.add(-1.0 if group.get("maximize") else 1.0)
    if not rows:
        raise ValueError("stability: the optimiser holds no parameter that requires a gradient.")
    if len(signs) > 1:
        raise ValueError("stability: some groups maximise and some do not; there is no one threshold for a game.")
    return rows, signs.pop()


# --- what momentum makes of a gradient that changes its sign in each step: the transfer function at z = −1 ------------


def _plain(group: Group, state: Mapping[str, Any]) -> float:
    return 1.0


def _sgd(group: Group, state: Mapping[str, Any]) -> float:
    beta = group["momentum"]
    if group["nesterov"]:
        return float((1 + 2 * beta) / (1 + beta))
    return float((1 - group["dampening"]) / (1 + beta)) if beta else 1.0


def _average(group: Group, state: Mapping[str, Any]) -> float:
    beta = float(group["betas"][0])
    return (1 - beta) / ((1 + beta) * (1 - beta ** float(state["step"])))


def _nadam(group: Group, state: Mapping[str, Any]) -> float:
    beta, t, decay = float(group["betas"][0]), float(state["step"]), group["momentum_decay"]
    mu, mu_next = (beta * (1 - 0.5 * 0.96 ** (s * decay)) for s in (t, t + 1))
    product = float(state["mu_product"])
    return (1 - mu) / (1 - product) + mu_next / (1 - product * mu_next) * (1 - beta) / (1 + beta)


def _rmsprop(group: Group, state: Mapping[str, Any]) -> float:
    return float(1 / (1 + group["momentum"]))


FLIPS: dict[type[Optimizer], Callable[[Group, Mapping[str, Any]], float]] = {
    optim.SGD: _sgd,
    optim.NAdam: _nadam,
    optim.Adam: _average,
    optim.AdamW: _average,
    optim.RAdam: _average,
    optim.Adamax: _average,
    optim.RMSprop: _rmsprop,
    optim.Adagrad: _plain,
    optim.Adadelta: _plain,
    optim.ASGD: _plain,
}

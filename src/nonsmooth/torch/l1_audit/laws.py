"""Laws: how far a weight under λ|w| bounces about 0, from the optimiser's own step and the data's gradient there.

Under plain steps τ, with a gradient c of the data, |c| < λ, the mean of |w| over an even number of steps is

    τλ(1 + r²)/2,  r² = mean of c² / λ²     (c = 0 with curvature h: τλ/(2 − τh); the law leaves h out)

τ is `effective_step`: for RMSProp η/√v, where v = λ² − c², so that τλ is η/√(1 − r²) and does not depend on λ. Under
momentum the orbit depends on the start: the law holds times a factor in a range, which `bounce` computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import optim

from nonsmooth.torch.effective import effective_step, unwrapped
from nonsmooth.torch.l1_audit.terms import PenaltyTerm
from nonsmooth.torch.undisturbed import undisturbed

__all__ = ["Bounce", "Penalised", "bounce", "bounce_of", "penalised_weights"]

Closure = Callable[[], torch.Tensor]
STARTS, STEPS = 1000, 1200
ADAPTIVE = (optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adagrad, optim.Adadelta, optim.RMSprop)
ROOTS = (optim.Adam, optim.NAdam, optim.RAdam, optim.RMSprop)
"""Those that divide by the root of a running mean of g²; torch's AdamW is an Adam."""


@dataclass(frozen=True)
class Bounce:
    """By what to multiply τλ(1 + r²)/2: the least, the mean and the most, over where a weight comes from.

    >>> Bounce(1.0, 1.0, 1.0).mean
    1.0
    """

    low: float
    mean: float
    high: float


@functools.cache
def bounce(beta: float, nesterov: bool = False) -> Bounce:
    """Mean |w| over τλ(1 + r²)/2, τ = lr/(1 − β), of v⁺ = βv + c + λ sign(w), w⁺ = w − lr v⁺, by start.

    1 without momentum. Otherwise the orbit remembers its start, and this is a simulation of one weight from 1000
    starts, half of them at c = 0 and half at |c| up to 0.9λ. The low end for heavy ball is (1 − β)/(1 + β), the orbit
    of period 2. An average of gradients (Adam's) is the same recursion at another lr.

    >>> bounce(0.0)
    Bounce(low=1.0, mean=1.0, high=1.0)
    >>> found = bounce(0.9)
    >>> round(found.low, 3), round(found.high, 1)  # (1 − β)/(1 + β) = 1/19
    (0.053, 0.9)
    """
    if not beta:
        return Bounce(1.0, 1.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    start, push, r = torch.rand(3, STARTS, generator=generator, dtype=torch.float64)
    tau = 1 / (1 - beta)
    r = torch.where(torch.arange(STARTS) % 2 == 0, 0.0, 0.9 * r)
    w, v, total = 4 * tau * (2 * start - 1), tau * (2 * push - 1), torch.zeros(STARTS, dtype=torch.float64)
    for t in range(STEPS):
        g = w.sign() + r
        v = beta * v + g
        w = w - (g + beta * v if nesterov else v)
        total += w.abs() * (t >= STEPS // 2)
    ratio = total / (STEPS - STEPS // 2) / (tau * (1 + r * r) / 2)
    return Bounce(float(ratio.min()), float(ratio.mean()), float(ratio.max()))


def bounce_of(optimizer: Any) -> Bounce:
    """The `bounce` of an optimiser, by the momentum of its first group.

    >>> bounce_of(torch.optim.RMSprop([torch.nn.Parameter(torch.zeros(1))])).high
    1.0
    """
    optimizer = unwrapped(optimizer)
    group = optimizer.param_groups[0]
    beta = float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))
    return bounce(round(beta, 6), bool(group.get("nesterov")) or isinstance(optimizer, optim.NAdam))


@dataclass(frozen=True, eq=False)
class Penalised:
    """A parameter under the penalty: λ by gradient and λ by prox, τ, and the data's gradient c, in float64.

    `slope` is the mean of c over the closures, `square` that of c²; c is of what the optimiser descends without the L1
    terms, coupled weight decay in it. `tau` is a tensor of the parameter's shape, or None where it is not known.

    >>> p, c = torch.tensor([0.1, 0.0, 9.0]), torch.tensor([1.0, 1.0, 1.0])
    >>> part = Penalised("w", p, 2.0, 0.0, torch.full((3,), 0.5), c, c * c)
    >>> part.law().tolist()  # 0.5 · 2 · (1 + 1/4)/2
    [0.625, 0.625, 0.625]
    >>> part.zero().tolist()
    [True, True, False]
    """

    name: str
    p: torch.Tensor
    bouncing: float
    proximal: float
    tau: torch.Tensor | None
    slope: torch.Tensor
    square: torch.Tensor

    @property
    def lam(self) -> float:
        """λ in all."""
        return self.bouncing + self.proximal

    @property
    def size(self) -> torch.Tensor:
        """|w|, in float64."""
        return self.p.detach().to("cpu", torch.float64).abs()

    def law(self, lam: float | None = None, tau: torch.Tensor | None = None) -> torch.Tensor:
        """τλ(1 + r²)/2 = τ(λ² + c²)/(2λ) of each weight; NaN where τ is not known, 0 where λ is."""
        lam, tau = self.bouncing if lam is None else lam, self.tau if tau is None else tau
        if tau is None:
            return torch.full_like(self.slope, torch.nan)
        return tau * (lam**2 + self.square) / (2 * lam) if lam else torch.zeros_like(self.slope)

    def zero(self, amplitude: torch.Tensor | None = None) -> torch.Tensor:
        """Which weights the optimality conditions call zero: |c| < λ, and |w| ≤ τ(λ + |c|), as far as a bounce goes.

        Without τ, |w| is compared with twice an amplitude that was measured, where there is one.
        """
        inside = self.slope.abs() < self.lam
        if self.tau is not None:
            return inside & (self.size <= self.tau * (self.lam + self.square.sqrt()) * (1 + 1e-6))
        bound = torch.zeros_like(self.slope) if amplitude is None else 2 * amplitude.nan_to_num()
        return inside & (self.size <= bound)


def penalised_weights(
    optimizer: Any,
    terms: Sequence[PenaltyTerm],
    named: Mapping[str, torch.Tensor],
    closures: Sequence[Closure],
) -> tuple[Penalised, ...]:
    """Each parameter that a term acts on, with what the laws need; `closures` return the loss as the script has it.

    >>> w = torch.nn.Parameter(torch.tensor([3.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.5)
    >>> term = PenaltyTerm("w", 1.0, "autograd")
    >>> part, = penalised_weights(optimizer, [term], {"w": w}, [lambda: (w * w + w.abs()).sum()])
    >>> part.slope.tolist(), part.tau.tolist()  # 2w, without the sign
    ([6.0], [0.5])
    """
    lams = lams_of(terms)
    held = {name: named[name] for name in lams}
    slopes = gradients(closures, list(held.values()))
    groups = {id(p): g for g in unwrapped(optimizer).param_groups for p in g["params"]}
    found = []
    for (name, p), each in zip(held.items(), slopes, strict=True):
        by, group, w = lams[name], groups[id(p)], p.detach().to("cpu", torch.float64)
        ridge = 0.0 if group.get("decoupled_weight_decay") else float(group.get("weight_decay", 0.0))
        flip = -1.0 if group.get("maximize") else 1.0
        cs = [flip * g - by["autograd"] * w.sign() + ridge * w for g in each]
        slope = torch.stack(cs).mean(0)
        square = torch.stack(cs).square().mean(0)
        bouncing = by["autograd"] + by["grad"]
        found.append(Penalised(name, p, bouncing, by["proximal"], tau_of(optimizer, p), slope, square))
    return tuple(found)


def lams_of(terms: Sequence[PenaltyTerm]) -> dict[str, dict[str, float]]:
    """λ by parameter and by way, of the terms that act."""
    lams: dict[str, dict[str, float]] = {}
    for term in terms:
        if term.acts:
            by = lams.setdefault(term.name, {"autograd": 0.0, "grad": 0.0, "proximal": 0.0})
            by[term.through] += term.lam
    return lams


def tau_of(optimizer: Any, p: torch.Tensor) -> torch.Tensor | None:
    """`effective_step` as a float64 tensor of p's shape; None where there is none, or before the first step."""
    try:
        tau = effective_step(optimizer, p)
    except (TypeError, ValueError):
        return None
    return torch.as_tensor(tau, dtype=torch.float64, device="cpu").expand(p.shape)


def gradients(closures: Sequence[Closure], params: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """For each parameter its gradient under each closure, in float64; nothing is left of it."""
    found: list[list[torch.Tensor]] = [[] for _ in params]
    for closure in closures if params else ():
        with undisturbed(list(params)):
            for row, g, p in zip(found, gradient(closure, params), params, strict=True):
                row.append(
                    torch.zeros_like(p, dtype=torch.float64, device="cpu")
                    if g is None
                    else g.to_dense().to("cpu", torch.float64)
                )
    return found


def gradient(closure: Closure, params: Sequence[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    """The gradient of a closure's loss; raises ValueError, in one sentence, for one that returns none."""
    with torch.enable_grad():
        loss = closure()
        if any(p.grad is not None for p in params):
            raise ValueError(
                "l1_audit: the closure called backward; return the loss and leave its gradient to l1_audit."
            )
        if not (isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.requires_grad):
            kind = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            kind += " without a graph" if isinstance(loss, torch.Tensor) and not loss.requires_grad else ""
            raise ValueError(f"l1_audit: the closure must return the loss, a scalar tensor with its graph, not {kind}.")
        return torch.autograd.grad(loss.sum(), list(params), allow_unused=True)

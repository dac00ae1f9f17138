"""Non-convex penalties: they shrink large coordinates less than ‖x‖₁ does, or not at all.

A non-convex g may have several minimisers in its prox, and points with (x − p)/t ∈ ∂g(p) that are none. `prox`
returns a global minimiser for every step, however large, and the one nearer to 0 where two are level;
`subdiff_distance` goes to the Fréchet subdifferential {v : g(z) ≥ g(x) + ⟨v, z − x⟩ − o(‖z − x‖)}, which each prox
satisfies, and which equals the limiting one here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Kind, NonNegative, Positive
from nonsmooth.penalties.penalty import Penalty, as_precise, positive_part, shrink

__all__ = ["L0", "LHalf", "MCP", "SCAD"]


@dataclass(frozen=True)
class MCP(Penalty):
    """g(x) = Σ ∫₀^|xᵢ| max(λ − u/γ, 0) du: λ|x| − x²/(2γ) up to γλ, and γλ²/2 beyond (Zhang 2010).

    Kinks: every coordinate at 0. Selection: sign(xᵢ) max(λ − |xᵢ|/γ, 0), 0 at 0, as torch.

    The prox is firm thresholding while t < γ: 0 up to tλ, sign(x)(|x| − tλ)/(1 − t/γ) up to γλ, x beyond. From
    t = γ on, the objective is concave between 0 and γλ, and what is left is hard thresholding at √(γt)λ.

    >>> MCP(1.0, gamma=2.0).prox(np.array([0.5, 1.5, -3.0]), 1.0).tolist()
    [0.0, 1.0, -3.0]
    >>> MCP(1.0, gamma=2.0).prox(np.array([3.5, 4.5]), 8.0).tolist()  # hard, at √(2 · 8) = 4
    [0.0, 4.5]
    """

    lam: NonNegative
    gamma: Positive

    convex: ClassVar[bool] = False

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        u = _at_most(xp.abs(x), self.gamma * self.lam)
        return xp.sum(u * (self.lam - u / (2 * self.gamma)))

    def grad(self, x: Any) -> Any:
        xp = array_namespace(x)
        return xp.sign(x) * positive_part(self.lam - xp.abs(x) / self.gamma)

    def prox(self, x: Any, t: Any) -> Any:
        xp = array_namespace(x)
        tau = xp.zeros_like(x) + t
        firm, flat = tau < self.gamma, self.gamma * self.lam  # g is flat from γλ on
        slope = self.gamma / xp.where(firm, self.gamma - tau, xp.ones_like(x))
        jump = xp.where(firm, xp.zeros_like(x) + flat, self.lam * xp.sqrt(self.gamma * tau))
        return xp.where(firm & (xp.abs(x) <= flat), shrink(x, tau * self.lam) * slope, _cut(x, jump))

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        return _distance(self, x, v)


@dataclass(frozen=True)
class SCAD(Penalty):
    """g(x) = Σ ∫₀^|xᵢ| min(λ, max(aλ − u, 0)/(a − 1)) du, a > 2; (a + 1)λ²/2 from aλ on (Fan & Li 2001).

    Kinks: every coordinate at 0. Selection: sign(xᵢ) min(λ, max(aλ − |xᵢ|, 0)/(a − 1)), 0 at 0, as torch.

    The prox while t < a − 1: soft thresholding sign(x) max(|x| − tλ, 0) up to (1 + t)λ, then
    ((a − 1)x − sign(x)taλ)/(a − 1 − t) up to aλ, x beyond. From t = a − 1 on, the objective is concave between λ
    and aλ, and soft thresholding jumps to x where the two are level: at (a + 1 + t)λ/2 while t < a + 1; from then on
    its soft part is 0, and the jump is at √((a + 1)t)λ.

    >>> SCAD(1.0, a=3.0).prox(np.array([0.5, 1.5, 2.5, -4.0]), 1.0).tolist()
    [0.0, 0.5, 2.0, -4.0]
    >>> SCAD(1.0, a=3.0).prox(np.array([3.25, 3.75]), 3.0).tolist()  # soft, up to (3 + 1 + 3)/2
    [0.25, 3.75]
    """

    lam: NonNegative
    a: Annotated[Any, Kind("a finite number above 2", low=2.0, low_allowed=False)] = 3.7

    convex: ClassVar[bool] = False

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        u = _at_most(xp.abs(x), self.a * self.lam)
        bent = positive_part(u - self.lam)
        return xp.sum(self.lam * u - bent * bent / (2 * (self.a - 1)))

    def grad(self, x: Any) -> Any:
        xp = array_namespace(x)
        return xp.sign(x) * _at_most(positive_part(self.a * self.lam - xp.abs(x)) / (self.a - 1), self.lam)

    def prox(self, x: Any, t: Any) -> Any:
        xp = array_namespace(x)
        size, tau = xp.abs(x), xp.zeros_like(x) + t
        bends, flat = tau < self.a - 1, self.a * self.lam
        slope = (self.a - 1) / xp.where(bends, self.a - 1 - tau, xp.ones_like(x))
        bent = shrink(x, tau * flat / (self.a - 1)) * slope
        level = xp.where(tau < self.a + 1, (self.a + 1 + tau) / 2, xp.sqrt((self.a + 1) * tau)) * self.lam
        soft = xp.where(size <= xp.where(bends, xp.zeros_like(x) + flat, level), shrink(x, tau * self.lam), x)
        return xp.where(bends & (size > (1 + tau) * self.lam) & (size <= flat), bent, soft)

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        return _distance(self, x, v)


@dataclass(frozen=True)
class L0(Penalty):
    """g(x) = λ · (the number of coordinates that are not 0).

    Kinks: a jump at 0 in every coordinate. Autograd sees a constant and has no gradient. The prox is hard
    thresholding at √(2λt) (Blumensath & Davies 2008); ∂g(x) is everything where x is 0, and {0} elsewhere.

    >>> L0(2.0).prox(np.array([2.0, 2.5, -1.0]), 1.0).tolist()
    [0.0, 2.5, 0.0]
    """

    lam: NonNegative

    convex: ClassVar[bool] = False

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        return self.lam * xp.sum(xp.abs(xp.sign(x)))

    def prox(self, x: Any, t: Any) -> Any:
        xp = array_namespace(x)
        return _cut(x, xp.sqrt(2 * self.lam * (xp.zeros_like(x) + t)))

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        xp = array_namespace(x)
        return xp.where(x == 0, xp.zeros_like(v), xp.abs(v))


@dataclass(frozen=True)
class LHalf(Penalty):
    """g(x) = λ Σ √|xᵢ|.

    Kinks: every coordinate at 0, where the slope is infinite and ∂g everything. Selection: λ sign(xᵢ)/(2√|xᵢ|), and
    NaN at 0, as torch (∞ · 0): autograd cannot cross an exact zero, the prox can.

    The prox is half thresholding (Xu et al. 2012, with their λ as 2λt): 0 up to T = (3/2)(λt)^{2/3}, then
    (2/3)x (1 + cos((2/3) arccos(−(T/|x|)^{3/2}/√2))), which starts at (2/3)T.

    >>> LHalf(1.0).prox(np.array([1.5, 1.5 + 1e-12, -1.0]), 1.0).round(9).tolist()
    [0.0, 1.0, 0.0]
    """

    lam: NonNegative

    convex: ClassVar[bool] = False

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        return self.lam * xp.sum(xp.sqrt(xp.abs(x)))

    def grad(self, x: Any) -> Any:
        xp = array_namespace(x)
        slope = self.lam * xp.sign(x) / (2 * xp.sqrt(xp.where(x == 0, xp.ones_like(x), xp.abs(x))))
        return xp.where(x == 0, xp.zeros_like(x) + xp.nan, slope)

    def prox(self, x: Any, t: Any) -> Any:
        xp = array_namespace(x)
        size = xp.abs(x)
        threshold = 1.5 * (self.lam * (xp.zeros_like(x) + t)) ** (2 / 3)
        cut = size <= threshold
        c = (threshold / xp.where(cut, threshold + 1, size)) ** 1.5 / math.sqrt(2)
        return xp.where(cut, xp.zeros_like(x), x * (2 / 3) * (1 + xp.cos((2 / 3) * xp.acos(-c))))

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        xp = array_namespace(x)
        return xp.where(x == 0, xp.zeros_like(v), xp.abs(v - self.grad(as_precise(x, v))))


def _cut(x: Any, threshold: Any) -> Any:
    """Hard thresholding: 0 up to the threshold, x beyond it; NaN stays."""
    xp = array_namespace(x)
    return xp.where(xp.abs(x) <= threshold, xp.zeros_like(x), x)


def _at_most(x: Any, bound: Any) -> Any:
    """min(x, bound), with NaN kept."""
    xp = array_namespace(x)
    return xp.minimum(x, xp.zeros_like(x) + bound)


def _distance(g: MCP | SCAD, x: Any, v: Any) -> Any:
    """Distance to ∂g(x) of a g with slopes ±λ at 0 that is smooth elsewhere."""
    xp = array_namespace(x)
    return xp.where(x == 0, positive_part(xp.abs(v) - g.lam), xp.abs(v - g.grad(as_precise(x, v))))

"""Small networks on data: one ReLU unit, and two layers with a hinged or a smooth activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import like
from nonsmooth.objectives.finite_sum import FiniteSum
from nonsmooth.objectives.objective import Constants
from nonsmooth.penalties import positive_part

__all__ = ["ReLURegression", "TwoLayer"]


@dataclass(frozen=True)
class ReLURegression(FiniteSum):
    """f(w) = (1/N) Σ (relu(xₙ·w) − yₙ)². Kinks: xₙ·w = 0 where yₙ ≠ 0. Selection: relu'(0) = 0 (torch.relu).

    With y ≤ 0 it is convex and has its minimum mean(y²) wherever Xw ≤ 0, so at w = 0. Beside a kink the slope towards
    Xw ≤ 0 is 2|yₙ|‖xₙ‖/N: it does not vanish. With y = 0 it is C¹, and L = 2σ_max(X)²/N bounds its gradient's slope.
    With a positive target it is neither convex nor, in general, of a known minimum.

    >>> f = ReLURegression(np.eye(2), [-1.0, 0.0])
    >>> f.grad(np.array([0.5, 0.5])).tolist(), f.grad(np.array([0.0, -1.0])).tolist()
    ([1.5, 0.5], [0.0, 0.0])
    """

    def value(self, w: Any) -> Any:
        xp = array_namespace(w)
        residual = positive_part(xp.matmul(like(self.X, w), w)) - like(self.y, w)
        return xp.sum(residual * residual) / self.n

    def grad(self, w: Any) -> Any:
        xp = array_namespace(w)
        z = xp.matmul(like(self.X, w), w)
        return 2 * self._pull_back(xp.where(z > 0, z - like(self.y, w), xp.zeros_like(z)))

    def kinks(self, w: Any) -> Any:
        bent = np.flatnonzero(np.asarray(self.y))
        return array_namespace(w).matmul(like(self.X[bent], w), w)

    @property
    def constants(self) -> Constants:
        smooth = not np.any(self.y)
        return Constants(
            L=2 * self.spectral_norm**2 / self.n if smooth else np.inf, mu=0.0 if np.max(self.y) <= 0 else -np.inf
        )

    @property
    def minimiser(self) -> np.ndarray | None:
        return np.zeros(self.shape) if np.max(self.y) <= 0 else None


Function = Callable[[Any], Any]


def softplus(z: Any) -> Any:
    """log(1 + eᶻ), without overflow."""
    xp = array_namespace(z)
    return positive_part(z) + xp.log1p(xp.exp(-xp.abs(z)))


ACTIVATIONS: dict[str, tuple[Function, Function]] = {
    "relu": (positive_part, lambda z: array_namespace(z).astype(z > 0, z.dtype)),
    "tanh": (lambda z: array_namespace(z).tanh(z), lambda z: 1 - array_namespace(z).tanh(z) ** 2),
    "softplus": (softplus, lambda z: 0.5 * (1 + array_namespace(z).tanh(0.5 * z))),
}
"""φ and φ' of each activation."""


@dataclass(frozen=True)
class TwoLayer(FiniteSum):
    """f(W, a) = (1/N) Σ (Σₕ aₕ φ(wₕ·xₙ) − yₙ)², φ = relu, tanh or softplus, on one flat point (W by rows, then a).

    H = `hidden` units, P = H·(columns of X) + H. Kinks, with relu alone: pre-activations wₕ·xₙ = 0 whose aₕ ≠ 0 (and
    whose residual is not 0). Selection: relu'(0) = 0. Not convex, and no constant bounds its gradient's slope.

    >>> f = TwoLayer([[1.0]], [1.0], hidden=1)
    >>> float(f.value(np.array([2.0, 3.0]))), f.grad(np.array([2.0, 3.0])).tolist()
    (25.0, [30.0, 20.0])
    """

    hidden: int = 8
    activation: Literal["relu", "tanh", "softplus"] = "relu"

    def validate(self) -> None:
        super().validate()
        if not isinstance(self.hidden, int) or self.hidden < 1:
            raise ValueError(f"TwoLayer: hidden must be a whole number, 1 or above, not {self.hidden!r}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"TwoLayer: activation must be one of {', '.join(ACTIVATIONS)}, not {self.activation!r}.")

    @property
    def shape(self) -> tuple[int]:
        return (self.hidden * (int(self.X.shape[1]) + 1),)

    def _parts(self, x: Any) -> tuple[Any, Any, Any]:
        """Pre-activations (N, H), output weights (H,) and residuals (N,)."""
        xp = array_namespace(x)
        W = xp.reshape(x[: -self.hidden], (self.hidden, -1))
        a = x[-self.hidden :]
        z = xp.matmul(like(self.X, x), W.T)
        return z, a, xp.matmul(ACTIVATIONS[self.activation][0](z), a) - like(self.y, x)

    def value(self, x: Any) -> Any:
        residual = self._parts(x)[2]
        return array_namespace(x).sum(residual * residual) / self.n

    def grad(self, x: Any) -> Any:
        xp = array_namespace(x)
        z, a, residual = self._parts(x)
        phi, slope = ACTIVATIONS[self.activation]
        back = residual[:, None] * slope(z) * a[None, :]
        by_W = xp.matmul(back.T, like(self.X, x))
        by_a = xp.matmul(residual, phi(z))
        return 2 * xp.concat([xp.reshape(by_W, (-1,)), by_a]) / self.n

    def kinks(self, x: Any) -> Any:
        if self.activation != "relu":
            return x[:0]
        xp = array_namespace(x)
        z, a, _ = self._parts(x)
        return xp.reshape(xp.where(a[None, :] == 0, xp.ones_like(z), z), (-1,))

    @property
    def constants(self) -> Constants:
        return Constants(mu=-np.inf)

"""Penalties on the singular values of a matrix, which die to a low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import NonNegative
from nonsmooth.penalties.penalty import Penalty, as_precise, positive_part

__all__ = ["NuclearNorm"]


@dataclass(frozen=True)
class NuclearNorm(Penalty):
    """g(X) = λ‖X‖_* = λ Σ σᵢ(X), the sum of the singular values of a matrix X = U Σ Vᵀ (the thin SVD).

    The prox is U max(Σ − tλ, 0) Vᵀ (Cai, Candès & Shen 2010, theorem 2.1), under one step t for all coordinates: with
    unequal steps there is no such formula, and they are refused. Kinks: the matrices without full rank. With r the
    rank, U_r and V_r the singular vectors of the σᵢ above 0,

        ∂g(X) = {λ U_r V_rᵀ + W : U_rᵀ W = 0, W V_r = 0, ‖W‖₂ ≤ λ}      (Watson 1992)

    and r counts the σᵢ > ε max(m, n) σ₁, ε being the rounding of X's precision; `subdiff_distance` is to the element
    that is nearest in the Frobenius norm. Selection: λ U Vᵀ with every column of the thin SVD, those of zero singular
    values too, as torch's autograd through linalg.matrix_norm(X, "nuc"): an element of ∂g(X), but at a kink the SVD
    chooses which (λ on the diagonal at X = 0), and another library's may choose another.

    A matrix that is not finite has no singular values: its prox (unless tλ = 0, which changes nothing), grad and
    distance are NaN throughout. Precisions below float32 are worked on in float32. Raises ValueError for a point that
    has not exactly two dimensions, and TypeError for unequal steps.

    >>> NuclearNorm(1.0).prox(np.array([[3.0, 0.0], [0.0, -0.5]]), 1.0).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    >>> NuclearNorm(0.5).value(np.array([[0.0, 3.0], [-1.0, 0.0]])).item()
    2.0
    """

    lam: NonNegative

    one_step: ClassVar[bool] = True

    def value(self, x: Any) -> Any:
        xp = array_namespace(x)
        finite, wide = self._matrix(x)
        total = xp.sum(xp.linalg.svdvals(wide)) + xp.sum(xp.where(finite, xp.zeros_like(x), xp.abs(x)))
        return xp.astype(self.lam * total, x.dtype)

    def grad(self, x: Any) -> Any:
        U, _, Vh = self._svd(x)
        return array_namespace(x).astype(self.lam * (U @ Vh), x.dtype)

    def prox(self, x: Any, t: Any) -> Any:
        if isinstance(t, (list, tuple)) or getattr(t, "ndim", 0) != 0:
            raise TypeError(
                "NuclearNorm: the nuclear norm has no proximal map under unequal steps; "
                "use an optimiser with one step for all, such as torch.optim.SGD."
            )
        xp, threshold = array_namespace(x), t * self.lam
        return xp.where(xp.zeros_like(x) + threshold == 0, x, xp.astype(self._shrunk(x, threshold), x.dtype))

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        """|V − λ U_r V_rᵀ − W|, W = N − the prox of N at tλ = λ, with N the part of V beyond U_r and V_r."""
        xp = array_namespace(x)
        eps, x = xp.finfo(x.dtype).eps, as_precise(x, v)
        U, s, Vh = self._svd(x)
        largest = s[:1] if 0 not in x.shape else s
        live = xp.astype(s > eps * max(x.shape) * largest, s.dtype)
        U, V = U * live, xp.matrix_transpose(Vh) * live
        v = xp.astype(v, U.dtype)
        beyond = v - U @ (xp.matrix_transpose(U) @ v)
        beyond = beyond - (beyond @ V) @ xp.matrix_transpose(V)
        away = (v - beyond) - self.lam * (U @ xp.matrix_transpose(V)) + self._shrunk(beyond, self.lam)
        return xp.astype(xp.abs(away), x.dtype)

    def _matrix(self, x: Any) -> tuple[Any, Any]:
        """Where the matrix is finite; and the matrix in float32 at least, 0 where it is not."""
        if x.ndim != 2:
            raise ValueError(
                f"NuclearNorm: a point of shape {tuple(x.shape)} is no matrix; give exactly two dimensions."
            )
        xp = array_namespace(x)
        finite = xp.isfinite(x)
        wide = xp.astype(x, xp.float32) if xp.finfo(x.dtype).bits < 32 else x
        return finite, xp.where(finite, wide, xp.zeros_like(wide))

    def _svd(self, x: Any) -> tuple[Any, Any, Any]:
        """U, σ and Vᵀ; U is NaN where the matrix is not finite, at which most libraries raise an error."""
        xp = array_namespace(x)
        finite, wide = self._matrix(x)
        U, s, Vh = xp.linalg.svd(wide, full_matrices=False)
        return xp.where(xp.all(finite), U, xp.full_like(U, xp.nan)), s, Vh

    def _shrunk(self, x: Any, threshold: Any) -> Any:
        """U max(Σ − threshold, 0) Vᵀ."""
        U, s, Vh = self._svd(x)
        return (U * positive_part(s - threshold)) @ Vh

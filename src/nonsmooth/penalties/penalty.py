"""What every penalty offers, and the three maps that most of them are made of."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Hyperparameters, Kind

__all__ = ["Penalty"]


class Penalty(Hyperparameters):
    """What a penalty must offer; `grad` may be left out where autograd has none to offer."""

    convex: ClassVar[bool] = True
    """Whether g is convex: its prox is then single-valued and firmly non-expansive, and decides v ∈ ∂g(x)."""

    one_step: ClassVar[bool] = False
    """Whether the prox is known under one step t for all coordinates only."""

    def _checked(self, name: str, value: Any, kind: Kind) -> Any:
        checked = super()._checked(name, value, kind)
        if not kind.is_array and np.asarray(value).dtype.kind in "bSU":  # a truth value or text, which NumPy converts
            raise ValueError(f"{type(self).__name__}: {name} must be {kind.must}, not {value!r}.")
        return checked

    def value(self, x: Any) -> Any:
        """g(x), a scalar."""
        raise TypeError(f"{type(self).__name__} defines no value.")

    def grad(self, x: Any) -> Any:
        """What autograd returns for g at x, of x's shape."""
        raise TypeError(f"{type(self).__name__} has no gradient; use penalty_by='prox'.")

    def prox(self, x: Any, t: Any) -> Any:
        """argmin_p g(p) + Σ(p − x)²/(2t), of x's shape."""
        raise TypeError(f"{type(self).__name__} has no proximal map; use penalty_by='autograd'.")

    def subdiff_distance(self, x: Any, v: Any) -> Any:
        """Distance, coordinate by coordinate, from v to ∂g(x).

        x may have a lower precision than v: it then says at which bound, of which rank or sum x is, to its rounding,
        and the distance is as precise as v.
        """
        raise TypeError(f"{type(self).__name__} defines no subdifferential distance.")

    @property
    def has_grad(self) -> bool:
        """Whether autograd has a gradient for this penalty."""
        return type(self).grad is not Penalty.grad


def shrink(x: Any, threshold: Any) -> Any:
    """Soft thresholding, sign(x) max(|x| − threshold, 0)."""
    xp = array_namespace(x)
    return xp.sign(x) * positive_part(xp.abs(x) - threshold)


def as_precise(x: Any, v: Any) -> Any:
    """x in the precision of v, where that is the higher one."""
    xp = array_namespace(x, v)
    return xp.astype(x, xp.result_type(x, v))


def positive_part(x: Any) -> Any:
    """max(x, 0), with NaN kept."""
    xp = array_namespace(x)
    return xp.maximum(x, xp.zeros_like(x))


def ratio(a: Any, b: Any) -> Any:
    """a/b, and 0 where b is 0 (whose branch is kept free of a division by 0)."""
    xp = array_namespace(b)
    quotient = a / xp.where(b == 0, xp.ones_like(b), b)
    return xp.where(b == 0, xp.zeros_like(quotient), quotient)

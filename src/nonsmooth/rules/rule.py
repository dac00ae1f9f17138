"""What every rule offers."""

from __future__ import annotations

from typing import Any, ClassVar

from array_api_compat import array_namespace

from nonsmooth.hyperparameters import Hyperparameters

__all__ = ["Rule"]


class Rule(Hyperparameters):
    """What a rule must offer; `finish` and `iterate` have defaults."""

    needs_value: ClassVar[bool] = False
    """Whether `step` takes f(x) as a fourth argument."""

    def init(self, x: Any) -> Any:
        """The memory at the start."""
        return ()

    def step(self, x: Any, g: Any, state: Any) -> tuple[Any, Any]:
        """The next point and memory."""
        raise TypeError(f"{type(self).__name__} defines no step.")

    def effective_step(self, state: Any) -> Any:
        """τ of the step just taken."""
        raise TypeError(f"{type(self).__name__} has no effective step; use penalty_by='autograd'.")

    def finish(self, z: Any, x: Any, state: Any) -> tuple[Any, Any]:
        """What is left to do once the prox has made x of the point z: the next point, and the memory."""
        return x, state

    def iterate(self, z: Any, state: Any) -> Any:
        """The point that the method answers with, where that is not z, at which it takes the next gradient."""
        return z


def zero(x: Any) -> Any:
    """A scalar 0 in x's library and precision."""
    xp = array_namespace(x)
    return xp.sum(xp.zeros_like(x[:0]))

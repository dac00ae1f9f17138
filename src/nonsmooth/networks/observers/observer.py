"""What an observer is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonsmooth.networks.training import Run

__all__ = ["Observer"]


class Observer:
    """Looks at a run before and after some of its steps, changes nothing, and tells what it found as plain data.

    `before` and `after` come in pairs, around the same step; where a run diverges the last `after` is left out.

    >>> from nonsmooth.networks.setting import Setting
    >>> from nonsmooth.networks.training import Run
    >>> Observer(Run(Setting(steps=1, samples=20, width=2))).found()
    {}
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def before(self) -> None:
        """Before a step: the batch is chosen, the gradient not taken."""

    def after(self) -> None:
        """After it."""

    def found(self) -> dict[str, Any]:
        """At the end of the run."""
        return {}

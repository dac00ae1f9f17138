"""What a probe costs after its end: the steps that follow find the caches cold."""

from __future__ import annotations

import statistics
from collections import deque

__all__ = ["Aftermath"]

WINDOW = 16
"""The steps after a probe that are compared with the usual ones."""
USUAL = 15
"""The intervals whose median is the usual one."""
LUMP = 3.0
"""What one look finds beyond so many usual steps is of something else that was waited for, and does not count."""


class Aftermath:
    """By how many seconds the steps after a probe are slower than the others, as far as a clock tells.

    >>> after = Aftermath()
    >>> sum(after.step(0.001) for _ in range(20))  # without a probe: nothing
    0.0
    >>> round(after.step(0.002, taped=True), 6)
    0.001
    >>> after.probed()
    >>> round(sum(after.step(s) for s in (0.002, 0.0015, *[0.001] * 14)), 6)
    0.0015
    """

    def __init__(self) -> None:
        self._usual: deque[float] = deque(maxlen=USUAL)
        self.left = 0
        """How many of the coming steps are of those after a probe, and not to be timed with others."""
        self._excess = 0.0

    def probed(self) -> None:
        """A probe has just been made."""
        self.left = WINDOW

    def step(self, seconds: float, steps: int = 1, taped: bool = False) -> float:
        """So many steps took so long, all observing left out; returns what is to be counted.

        Of a window that is at its end; and at once of steps that were `taped`, which makes them slower.
        """
        excess = 0.0
        if self._usual:
            usual = statistics.median(self._usual)
            excess = min(seconds - usual * steps, LUMP * usual)
        if not self.left:
            if taped:
                return max(excess, 0.0)
            self._usual.append(seconds / steps)
            return 0.0
        self.left = max(0, self.left - steps)
        self._excess += excess
        if self.left:
            return 0.0
        counted, self._excess = max(self._excess, 0.0), 0.0
        return counted

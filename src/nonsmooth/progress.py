"""Long work in slices of about half a second, so that it can be watched and interrupted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

__all__ = ["Slices"]


class Slices:
    """Slices of work timed as they run, and a progress bar once the work proves long.

    >>> with Slices(100, progress=False) as work:
    ...     sum(count for _, count in work.slices(0, 100))
    100
    """

    def __init__(self, steps: int, progress: bool | None) -> None:
        self.steps, self.progress, self.done = steps, progress, 0
        self.bar: Any = None
        self.started = time.perf_counter()

    def __enter__(self) -> Slices:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def slices(self, start: int, stop: int, every: int = 1) -> Iterator[tuple[int, int]]:
        """(from, count) in units of `every` steps: a short one to learn the pace, then half-seconds."""
        size = max(1, 64 // every)
        while start < stop:
            count = min(size, stop - start)
            began = time.perf_counter()
            yield start, count
            seconds = time.perf_counter() - began
            start += count
            self.done += count * every
            grown = size * 16 if seconds < 0.02 else max(1, int(size * 0.5 / seconds))
            size = stop - start if seconds / count * (stop - start) < 0.5 else grown
            self._show()

    def _show(self) -> None:
        if self.progress is False or time.perf_counter() - self.started < 2.0:
            return
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        if self.bar is None and (self.progress or console.is_terminal):
            self.bar = Progress(console=console, transient=True)
            self.task = self.bar.add_task("simulating", total=self.steps)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done)

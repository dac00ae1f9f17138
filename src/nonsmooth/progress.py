"""Long work in slices of about half a second, so that it can be watched and interrupted; large work refused."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

__all__ = ["STOP", "Slices", "heed_stop", "need_memory"]

STOP: ContextVar[threading.Event | None] = ContextVar("STOP", default=None)
"""What a thread's simulations look at between slices: once it is set they end with KeyboardInterrupt."""

SMALL = 2**28
"""Bytes for which nobody asks whether they are free."""


def need_memory(size: int, what: str, cure: str) -> None:
    """Raises ValueError, in one sentence, where `size` bytes are more than the machine has free.

    >>> need_memory(10**18, "the records of 10 runs", "record fewer")
    Traceback (most recent call last):
    ValueError: simulate: the records of 10 runs need 1000000000 GB of memory, more than is free; record fewer.
    """
    if size > SMALL and size > _free_memory():
        raise ValueError(f"simulate: {what} need {size / 1e9:.0f} GB of memory, more than is free; {cure}.")


def _free_memory() -> int:
    """Bytes that a program may still take: what Linux says is available, else all that the machine has, else 2⁶³."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**63


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
        heed_stop()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def slices(self, start: int, stop: int, every: int = 1) -> Iterator[tuple[int, int]]:
        """(from, count) in units of `every` steps: a short one to learn the pace, then half-seconds."""
        size = max(1, 64 // every)
        while start < stop:
            heed_stop()
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


def heed_stop() -> None:
    """Raises KeyboardInterrupt where this thread's simulations are to end.

    >>> heed_stop()
    """
    stop = STOP.get()
    if stop is not None and stop.is_set():
        raise KeyboardInterrupt("stopped from outside")

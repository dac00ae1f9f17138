"""Processes of this machine, one thread each, that wait for work until they are closed and leave with their maker."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

__all__ = ["Processes", "WorkerDiedError"]

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"), "1")
"""Of OpenMP, MKL and OpenBLAS, and the size of XLA's pool."""

WATCH = 1.0
"""Seconds between two looks of a process at whether its maker lives."""

HAND_OVER = 5.0
"""Seconds in which what was submitted is surely in the queue, which has room for it."""


class WorkerDiedError(Exception):
    """A worker went away with what it had to do."""


class Processes:
    """So many new processes, which inherit no library that has threads; closed at the end, whatever they do.

    They wait for work for any time: workers that end when idle, as those of joblib do, may leave a lock taken behind
    them. Where the process that made them is killed they end within a second or so (not on Windows).

    >>> with Processes(2) as processes:
    ...     sorted(processes.each(abs, [-1, 2, -3]))
    [1, 2, 3]
    """

    def __init__(self, count: int | None = None) -> None:
        import joblib
        from joblib.externals.loky.process_executor import ProcessPoolExecutor

        self.count = count or joblib.cpu_count()
        self._pool: Any = ProcessPoolExecutor(
            self.count, timeout=None, env=ONE_THREAD, initializer=_leave_with, initargs=(os.getpid(),)
        )

    def each(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Generator[Any]:
        """What `work` makes of each, as they end; an item is taken when a process will soon be free for it.

        Raises what `work` raises, and WorkerDiedError where a process was killed.
        """
        items, running = iter(items), set[Future[Any]]()
        try:
            for item in itertools.islice(items, 2 * self.count):
                running.add(self._pool.submit(work, item))
            while running:
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for item in itertools.islice(items, len(ended)):
                    running.add(self._pool.submit(work, item))
                for done in ended:
                    yield done.result()
        except BrokenProcessPool as error:
            raise WorkerDiedError("a process of this machine was killed, as happens when memory runs out") from error
        finally:
            _handed_over(running)

    def close(self) -> None:
        self._pool.shutdown(wait=True, kill_workers=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _handed_over(futures: set[Future[Any]]) -> None:
    """Wait until each is in the queue that processes take from: when it is closed loky stumbles over others."""
    until = time.monotonic() + HAND_OVER
    while time.monotonic() < until and not all(future.running() or future.done() for future in futures):
        time.sleep(1e-3)


def _leave_with(maker: int) -> None:
    if os.name == "posix":
        threading.Thread(target=_watch, args=(maker,), daemon=True).start()


def _watch(maker: int) -> None:
    while os.getppid() == maker:
        time.sleep(WATCH)
    os._exit(1)

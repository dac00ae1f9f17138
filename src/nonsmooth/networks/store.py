"""Rows of runs in a file, and the processes that make those which are missing."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from nonsmooth.ledger import from_json
from nonsmooth.networks.setting import Setting
from nonsmooth.processes import Processes, WorkerDiedError
from nonsmooth.progress import heed_stop

__all__ = ["STORE", "Store", "runs_of"]

Row = dict[str, Any]
WHOLE = {"setting", "steps", "diverged", "losses", "loss", "accuracy", "found"}
"""What a row has at least."""
Tell = Callable[[int, int], None]


class Store:
    """Rows by the key of their setting: in memory, and in a file if one is named, each written when it is made.

    A run that is asked for twice is made once. A row that was cut off while it was written, or is of other code, is
    passed over; the file only grows. `tell(made, asked)` is called as runs end. One batch runs at a time, on all
    cores, a thread each.

    Raises ValueError, in one sentence, where the file cannot be read or written, a process was killed, or the code or
    the data changed meanwhile.

    >>> Store(None).rows
    {}
    """

    def __init__(self, path: Path | None = None, tell: Tell = lambda made, asked: None) -> None:
        self.path, self.tell = path, tell
        self.rows: dict[str, Row] = {}
        self.made = self.asked = 0
        self._turn = threading.Lock()
        self._processes: Processes | None = None
        self._kept = False
        if path is not None and path.exists():
            self.rows = _read(path)

    def run(self, settings: Sequence[Setting]) -> list[Row]:
        """The rows of these settings, in their order; those that are missing are made."""
        with self._turn:
            missing = list({s.key: s for s in settings if s.key not in self.rows}.values())
            if missing:
                self._make(missing)
        return [self.rows[s.key] for s in settings]

    def _make(self, settings: list[Setting]) -> None:
        wanted = {s.key for s in settings}
        self.asked += len(settings)
        self.tell(self.made, self.asked)
        processes = self._processes = self._processes or Processes()
        try:
            for row in processes.each(_made, (s.to_dict() for s in settings)):
                heed_stop()
                if row["key"] not in wanted:
                    raise ValueError("networks: the sources or the data changed while runs were made; run again.")
                self.rows[row["key"]] = row
                self._append(row)
                self.made += 1
                self.tell(self.made, self.asked)
        except WorkerDiedError as death:
            self.close()
            raise ValueError(f"networks: {death}; the runs made so far are kept: run again.") from death
        except BaseException:
            self.close()
            raise
        if not self._kept:
            self.close()

    def __enter__(self) -> Store:
        """Keep the processes between batches."""
        self._kept = True
        return self

    def __exit__(self, *_: Any) -> None:
        self._kept = False
        self.close()

    def close(self) -> None:
        """End the processes, whatever they do."""
        processes, self._processes = self._processes, None
        if processes is not None:
            processes.close()

    def _append(self, row: Row) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write((json.dumps(row, allow_nan=False) + "\n").encode())
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written ({error.strerror}).") from error


STORE: ContextVar[Store | None] = ContextVar("STORE", default=None)
"""Where `runs_of` looks for rows and keeps them."""


def runs_of(settings: Sequence[Setting]) -> list[Row]:
    """The rows of these settings, in their order: from the store of this context, or made now and not kept.

    >>> runs_of([])
    []
    """
    return (STORE.get() or Store()).run(settings)


def _made(plain: dict[str, Any]) -> Row:
    """In a process of its own."""
    import torch

    from nonsmooth.networks.training import trained

    torch.set_num_threads(1)
    return trained(Setting.from_dict(plain))


def _read(path: Path) -> dict[str, Row]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    rows = {}
    for line in lines:
        try:
            row = from_json(line)
        except ValueError:
            continue  # cut off
        if isinstance(row, dict) and isinstance(row.get("key"), str) and row.keys() >= WHOLE:
            rows[row["key"]] = row
    return rows

"""What the callbacks of all trainers share: an `Audit` that is entered when training begins and left when it ends."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nonsmooth.torch.audit import Audit
from nonsmooth.torch.facts import free_folder
from nonsmooth.torch.loggers import sink

__all__ = ["Watch"]

UNENDED = "the trainer did not say that it ended"
_ON: list[Watch] = []
"""The watch that is on: one at a time, since each listens to all of torch."""


class Watch:
    """Enters a new `Audit` whenever a trainer begins, leaves it when that ends, and then says what was found.

    audit: the last one, or None before the first run; its `findings` are the words. folder: for rows.jsonl, run.json
    and report.html; where it holds a run already the next of folder-2, folder-3 … that does not. say: what takes the
    words at the end (default: they go to stderr). budget, which, trials and loggers are those of `Audit`.

    A run that is not left, as when an exception passes a trainer that does not tell, is left when the process ends, or
    when the next begins. More than one process cannot be watched yet: then nothing is, and that is said.

    Raises TypeError or ValueError, in one sentence, for an argument that cannot be.

    >>> import tempfile, torch
    >>> watch = Watch(folder=tempfile.mkdtemp(), budget=1.0, trials=0, say=lambda words: None)
    >>> w = torch.nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(w.parameters(), lr=0.1)
    >>> watch.enter()
    >>> w(torch.ones(1)).square().sum().backward()
    >>> optimizer.step()
    >>> watch.leave()
    >>> watch.audit.facts["steps"], sorted(path.name for path in watch.audit.folder.iterdir())
    (1, ['report.html', 'rows.jsonl', 'run.json'])
    """

    def __init__(
        self,
        *,
        budget: float = 0.05,
        folder: str | Path = "audit",
        which: int = 1,
        trials: int = 50,
        loggers: Sequence[Any] | None = None,
        say: Callable[[str], Any] | None = None,
    ) -> None:
        self.options: dict[str, Any] = {"budget": budget, "which": which, "trials": trials, "loggers": loggers}
        Audit(**self.options)  # what it refuses is refused now
        sink(loggers)
        self.folder, self.say = Path(folder), say or _say
        self.audit: Audit | None = None

    def enter(self, processes: int = 1) -> None:
        """Begin to watch. Raises ValueError, in one sentence, where the folder cannot be written."""
        for other in tuple(_ON):
            other.leave()
        if processes > 1:
            self.say(f"audit: nothing is watched: the run has {processes} processes, and only one can be watched yet.")
            return
        self.audit = Audit(**self.options, folder=free_folder(self.folder), command=sys.argv)
        self.audit.__enter__()
        _ON.append(self)
        atexit.register(self._at_exit)

    def leave(self, error: BaseException | str | None = UNENDED) -> None:
        """End it, if it is on. error: what ended the run, or None where it came to its end."""
        if self not in _ON or self.audit is None:
            return
        _ON.remove(self)
        atexit.unregister(self._at_exit)
        try:
            self.audit.end(error)
        except Exception as wrong:  # the trainer goes on, whatever the audit meets
            said = str(wrong) if isinstance(wrong, ValueError) else f"{type(wrong).__name__}: {wrong}"
            self.say(f"audit: {said}")
            return
        self.say(f"\n{self.audit.told}")

    def _at_exit(self) -> None:
        self.leave(getattr(sys, "last_value", None) or UNENDED)


def _say(words: str) -> None:
    print(words, file=sys.stderr)

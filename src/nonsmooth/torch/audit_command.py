"""`nonsmooth audit train.py`: a script as it is, watched; its output and its exit code are its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from nonsmooth.torch.audit import Audit
from nonsmooth.torch.facts import free_folder
from nonsmooth.torch.script import run_script, script_of

__all__ = ["audit_script"]


def audit_script(
    path: Path,
    arguments: Sequence[str] = (),
    folder: Path | None = None,
    budget: float = 0.05,
    which: int = 1,
    trials: int = 50,
    say: Callable[[str], None] | None = None,
) -> int:
    """Run the script as it stands under an `Audit`; the exit code is the script's, which is returned.

    A traceback of the script's is printed as Python would. What was found is told by `say` (default: on stderr) when
    the script has ended, and written to `folder` (default: audit, audit-2, …). SIGTERM ends a script that has no
    handler of its own as `sys.exit(143)` would: what was found is written, nothing is tried, and then the signal kills
    the process. Raises ValueError, in one sentence, before anything runs, where there is no such script, or the folder
    holds a run already or cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "train.py").write_text("import torch; print(torch.ones(1).item()); raise SystemExit(3)")
    >>> audit_script(folder / "train.py", folder=folder / "out", say=lambda words: None)
    1.0
    3
    """
    script_of(path)
    folder = free_folder(Path("audit")) if folder is None else folder
    audit = Audit(
        budget=budget, folder=folder, which=which, trials=trials, command=["nonsmooth", "audit", str(path), *arguments]
    )
    _take(folder)
    code, crashed, termination = 0, None, _Termination()
    sys.excepthook = sys.__excepthook__  # the command line has set one of its own
    audit.__enter__()
    try:
        with termination:
            run_script(path, arguments)
    except SystemExit as left:
        code = _exit_code(left)
    except BaseException as error:
        crashed = f"{type(error).__name__}: {error}".partition("\n")[0]
        audit.interrupted = isinstance(error, KeyboardInterrupt)
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        _show(error)
    finally:
        audit.capture.__exit__()
    _flush()
    if termination.came:
        audit.interrupted, audit.trials, code = True, 0, 128 + signal.SIGTERM
    if audit.kept and audit.trials:
        (say or _say)("audit: the script has ended; trying what it might do, on a copy of where it stands.")
    try:
        audit.finish(crashed, code)
        (say or _say)(f"\n{audit.told}")
    except ValueError as error:
        (say or _say)(f"audit: {error}")
    except Exception as error:  # the exit code is the script's, whatever the audit meets
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        (say or _say)(f"audit: what was found could not be told ({what}); what was measured is in {folder}.")
    if termination.came:
        _flush()
        os.kill(os.getpid(), signal.SIGTERM)
    return code


def _take(folder: Path) -> None:
    """Begin rows.jsonl, which another audit may not do in this folder again."""
    try:
        (folder / "rows.jsonl").open("xb").close()
    except FileExistsError:
        raise ValueError(f"{folder}: holds a run already; name another folder with --out.") from None
    except OSError as error:
        raise ValueError(f"audit: the folder {folder} cannot be written ({error.strerror}).") from None


class _Termination:
    """While entered, SIGTERM raises SystemExit, once, where it would kill; a handler of the script's goes first."""

    def __init__(self) -> None:
        self.came, self.process = False, os.getpid()

    def __enter__(self) -> None:
        alone = threading.current_thread() is threading.main_thread()
        if alone and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self)

    def __exit__(self, *_: object) -> None:
        if signal.getsignal(signal.SIGTERM) is self:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        in_place = signal.getsignal(number) is self
        if not in_place:  # called by a handler of the script's, which decides
            return
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != self.process:  # a fork of the script's is killed, as it would be
            os.kill(os.getpid(), number)
        self.came = True
        raise SystemExit(128 + number)


def _exit_code(left: SystemExit) -> int:
    if left.code is None or isinstance(left.code, int):
        return left.code or 0
    print(left.code, file=sys.stderr)
    return 1


def _show(error: BaseException) -> None:
    """As Python shows it, from the script's own frame on; by the script's own hook, if it has set one."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(str(Path(__file__).parent)):
        trace = trace.tb_next
    shown = error.with_traceback(trace)
    sys.excepthook(type(shown), shown, trace)


def _say(words: str) -> None:
    print(words, file=sys.stderr)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()

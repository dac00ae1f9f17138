"""Running a script in this process as `python script.py` would run it."""

from __future__ import annotations

import builtins
import contextlib
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["run_script", "script_of"]


def script_of(path: Path) -> types.CodeType:
    """The script, compiled. Raises ValueError, in one sentence, where there is none or it cannot be read.

    >>> script_of(Path("none.py"))
    Traceback (most recent call last):
    ValueError: none.py: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    try:
        return compile(path.read_bytes(), str(path.absolute()), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        at = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(f"{path}: is not a Python script ({error.args[0]}{at}).") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from None


def run_script(path: Path, arguments: Sequence[str] = ()) -> None:
    """Run it as the main module, with `sys.argv` and the first entry of `sys.path` as a script has them.

    What it raises comes through, SystemExit too. Its module stays the main one until the next is run, so that what it
    has registered for the end of the process finds its names.

    >>> import tempfile
    >>> script = Path(tempfile.mkdtemp()) / "hello.py"
    >>> _ = script.write_text("import sys; print(__name__, sys.argv[1:])")
    >>> run_script(script, ["--lr", "1"])
    __main__ ['--lr', '1']
    """
    code = script_of(path)
    main = types.ModuleType("__main__")
    main.__file__ = str(path.absolute())
    main.__dict__.update(__builtins__=builtins, __cached__=None, __annotations__={})
    with _as_main(path, arguments, main):
        exec(code, main.__dict__)


@contextlib.contextmanager
def _as_main(path: Path, arguments: Sequence[str], main: types.ModuleType) -> Iterator[None]:
    argv, own, first = sys.argv, sys.modules["__main__"], str(path.resolve().parent)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, first)
    sys.modules["__main__"] = main
    try:
        yield
    finally:
        sys.argv = argv
        sys.modules["__main__"] = own
        _KEPT.append(main)
        with contextlib.suppress(ValueError):
            sys.path.remove(first)


_KEPT: list[types.ModuleType] = []

"""The census of a script that trains, run as it stands up to its first backward, or of what a factory builds."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nonsmooth.torch.census import Census, census, eagerly, record
from nonsmooth.torch.interception import Interception
from nonsmooth.torch.script import run_script, script_of

__all__ = ["census_of"]


class _Seen(BaseException):
    """The script has come to its first backward; it passes by `except Exception`."""


def census_of(target: str, arguments: Sequence[str] = ()) -> Census:
    """The census of `train.py`, or of `module:factory`.

    A script runs in this process as `python train.py arguments` would, unchanged, until it first calls `backward`, or
    steps an optimiser. The model is the module of the first outermost call that gradients are recorded in and whose
    parameters learn; all from there on is counted. Then the script is left, its `finally` blocks run; no parameter has
    changed. If it ends without either, what was counted is returned.

    A factory is called without arguments and returns (model, inputs) or (model, inputs, loss); inputs is a tensor or a
    tuple.

    Raises ValueError, in one sentence, where there is no such script or factory, where it fails, or where no model was
    called.

    >>> import pathlib, tempfile
    >>> script = pathlib.Path(tempfile.mkdtemp()) / "train.py"
    >>> _ = script.write_text("import torch\\nf = torch.nn.Linear(2, 1)\\nf(torch.ones(2)).abs().sum().backward()")
    >>> [(row.name, row.module) for row in census_of(str(script)).operations]
    [('linear', ''), ('abs', ''), ('sum', '')]
    """
    path = Path(target)
    if target.endswith(".py") or path.is_file():
        return _of_script(path, list(arguments))
    module, colon, factory = target.partition(":")
    if not (colon and module and factory):
        raise ValueError(f"census: {target!r} is neither a script, as train.py, nor a factory, as module:factory.")
    if arguments:
        raise ValueError(f"census: a factory takes no arguments, but {' '.join(arguments)!r} was given.")
    return _of_factory(module, factory)


def _of_script(path: Path, arguments: list[str]) -> Census:
    script_of(path)
    watch = Interception(sys._getframe(), _leave)
    ended = None
    with _from_the_first_call(watch):
        try:
            with eagerly(), watch:
                run_script(path, arguments)
        except _Seen:
            pass
        except SystemExit as left:
            if left.code not in (None, 0):
                ended = f"it left with exit code {left.code}" if isinstance(left.code, int) else f"it said: {left.code}"
        except Exception as wrong:
            ended = f"it raised {_said(wrong)}"
    if ended is not None:
        raise ValueError(f"{path}: {ended}, before its first backward(); mend that, then ask again.") from None
    if watch.model is None:
        raise ValueError(f"{path}: it called no model whose parameters learn; name a factory that builds one instead.")
    return record(watch)


def _of_factory(module: str, factory: str) -> Census:
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except Exception as wrong:
        raise ValueError(f"census: {module} cannot be imported: {_said(wrong)}.") from wrong
    finally:
        sys.path.remove(os.getcwd())
    build = getattr(found, factory, None)
    if not callable(build):
        raise ValueError(f"census: {module} has no function {factory!r}.")
    try:
        built = build()
    except Exception as wrong:
        raise ValueError(f"census: {module}:{factory} raised {_said(wrong)}.") from wrong
    if not (isinstance(built, tuple) and len(built) in (2, 3) and isinstance(built[0], torch.nn.Module)):
        raise ValueError(f"census: {module}:{factory} must return (model, inputs) or (model, inputs, loss).")
    model, inputs, loss = (*built, None)[:3]
    try:
        return census(model, *(inputs if isinstance(inputs, tuple | list) else (inputs,)), loss=loss)
    except Exception as wrong:
        raise ValueError(f"census: the model of {module}:{factory} raised {_said(wrong)}.") from wrong


def _leave() -> None:
    raise _Seen


def _said(wrong: BaseException) -> str:
    """The exception in one line, with the innermost place that is not torch's."""
    places, trace = [], wrong.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith((os.path.dirname(torch.__file__), os.path.dirname(__file__), "<frozen")):
            places.append(f"{os.path.basename(name)}:{trace.tb_lineno}")
        trace = trace.tb_next
    first = (str(wrong).strip().splitlines() or [""])[0]
    return f"{type(wrong).__name__}{f': {first}' if first else ''}{f' ({places[-1]})' if places else ''}"


@contextmanager
def _from_the_first_call(watch: Interception) -> Iterator[None]:
    """Begins at the first outermost call of a module that learns; an optimiser's step is the end at the latest."""

    def called(module: torch.nn.Module, inputs: Any) -> None:
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
        if watch.model is None and learns:
            watch.began(module)

    def step(*_: Any) -> None:
        if watch.model is not None:
            _leave()

    hooks = (
        torch.nn.modules.module.register_module_forward_pre_hook(called),
        register_optimizer_step_pre_hook(step),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

"""A simulation as a TOML file: named parts and plain values, nothing that runs.

    [objective]                       [rule]                      [run]
    name = "random_least_squares"     name = "RMSProp"            steps = 4000
    n = 50                            lr = [1e-3, 1e-4]           seeds = 20
    p = 20                                                        tail = 500

    [penalty]
    name = "L1"
    lam = { geomspace = [0.01, 1000, 45] }

A part is a public class or instance of `objectives`, `rules` or `penalties`; a field may be a part of its own (a
schedule, a wrapped rule), and `{ geomspace = [a, b, n] }` or `{ linspace = [a, b, n] }` is an axis.

A sweep has two sections more, of which a function of one's own, `function = "name"` above them, needs the second:

    [sweep]                           [axes]
    design = "random"                 lr = { loguniform = [1e-4, 1] }
    count = 10000                     beta = [0, 0.9]
    seed = 0
    width = 4096
"""

from __future__ import annotations

import contextlib
import inspect
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from nonsmooth import objectives, penalties, rules
from nonsmooth.ledger import short
from nonsmooth.objectives import Hinge, Logistic
from nonsmooth.objectives.finite_sum import FiniteSum
from nonsmooth.sweeps.design import LogUniform, Random, Uniform

__all__ = ["RUN", "read_config", "read_sweep"]

RUN = ("steps", "seeds", "x0", "penalty_by", "batch_size", "record", "every", "tail", "f_star")
"""The settings that [run] may name."""

PARTS: dict[str, ModuleType] = {"objective": objectives, "rule": rules, "penalty": penalties}
ABSTRACT = {"Constants", "FiniteSum", "Objective", "Penalty", "Rule", "Separable"}
LOSSES: dict[str, type[FiniteSum]] = {"Logistic": Logistic, "Hinge": Hinge}
AXES: dict[str, Callable[..., np.ndarray]] = {"geomspace": np.geomspace, "linspace": np.linspace}
DRAWN: dict[str, type[Uniform]] = {"uniform": Uniform, "loguniform": LogUniform}
MOST = 10**8
"""The entries of a matrix that a config may ask for, 800 MB: a file should not fill the memory of who reads it."""
SWEEP = ("design", "count", "seed", "width")
"""The settings that [sweep] may name."""


def read_config(path: Path) -> dict[str, Any]:
    """The arguments of `simulate` that the file states; raises ValueError, in one sentence, for anything else.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "run.toml"
    >>> _ = file.write_text('objective = {name = "Absolute"}\\nrule = {name = "Gradient", lr = [0.1, 1]}')
    >>> read_config(file)
    {'objective': Absolute(dim=1), 'rule': Gradient(lr=[0.1, 1.0])}
    """
    with _said(path):
        return _arguments(_toml(path))


def read_sweep(path: Path) -> dict[str, Any]:
    """The arguments of `sweep` that the file states, `function` a name; raises ValueError as `read_config` does.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "sweep.toml"
    >>> _ = file.write_text('function = "train"\\naxes.lr = {linspace = [0, 1, 3]}\\nsweep.width = 2')
    >>> read_sweep(file)
    {'function': 'train', 'axes': {'lr': array([0. , 0.5, 1. ])}, 'width': 2}
    """
    with _said(path):
        config = _toml(path)
        settings, axes = config.pop("sweep", {}), config.pop("axes", {})
        for name, section in (("sweep", settings), ("axes", axes)):
            if not isinstance(section, dict):
                raise ValueError(f"{name} must be a section, [{name}].")
        strange = set(settings) - set(SWEEP)
        if strange:
            raise ValueError(f"[sweep] has no setting {short(sorted(strange)[0])!r}; it takes {', '.join(SWEEP)}.")
        swept = {"axes": {name: _axis(name, value) for name, value in axes.items()}} | _design(settings)
        if "function" in config:
            function = config.pop("function")
            if not isinstance(function, str) or config:
                raise ValueError("function is a name; beside it there are [axes] and [sweep] alone.")
            return {"function": function} | swept
        return _arguments(config) | swept


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file, as one sentence that begins with its name."""
    try:
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            yield
    except MemoryError as error:
        raise ValueError(f"{path}: asks for more than the memory holds.") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{path}: {short(error, 600)}") from error


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ValueError(f"is not TOML ({short(error)}).") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply.") from error


def _design(settings: dict[str, Any]) -> dict[str, Any]:
    """The design and the width; `count` and `seed` are a random design's."""
    design: dict[str, Any] = {name: settings[name] for name in ("design", "width") if name in settings}
    random = {name: settings[name] for name in ("count", "seed") if name in settings}
    if settings.get("design") == "random":
        if "count" not in random:
            raise ValueError("[sweep] needs count, the number of runs, where design is random.")
        return design | {"design": Random(**random)}
    if random:
        raise ValueError('[sweep] has count or seed, which belong to design = "random".')
    return design


def _axis(name: str, value: Any) -> Any:
    """A list, an axis of AXES, or a distribution."""
    if isinstance(value, dict) and len(value) == 1 and (drawn := next(iter(value))) in DRAWN:
        match value[drawn]:
            case [int() | float() as low, int() | float() as high]:
                return DRAWN[drawn](low, high)
        raise ValueError(f"{name}: {drawn} takes [from, to].")
    if not isinstance(value, dict):
        return value
    if not AXES.keys() & value.keys():
        raise ValueError(f"{name} must be a list, or one of {', '.join([*AXES, *DRAWN])}, not a table.")
    return _field(rules, f"axis {name}", value)


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `simulate`."""
    unknown = set(config) - {*PARTS, "run"}
    if unknown:
        raise ValueError(f"unknown section {short(sorted(unknown)[0])!r}; use objective, rule, penalty, run.")
    for needed in ("objective", "rule"):
        if needed not in config:
            raise ValueError(f"there is no [{needed}]; name one, as in name = {_names(PARTS[needed])[0]!r}.")
    run = config.pop("run", {})
    if not isinstance(run, dict):
        raise ValueError("run must be a section, [run].")
    strange = set(run) - set(RUN)
    if strange:
        raise ValueError(f"[run] has no setting {short(sorted(strange)[0])!r}; it takes {', '.join(RUN)}.")
    return {kind: _part(PARTS[kind], kind, table) for kind, table in config.items()} | run


def _names(module: ModuleType) -> list[str]:
    return sorted(set(module.__all__) - ABSTRACT)


def _part(module: ModuleType, kind: str, table: Any) -> Any:
    """The part that a table names, with its fields."""
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise ValueError(f"{kind} must be a table with a name, one of {', '.join(_names(module))}.")
    name = table["name"]
    if name not in _names(module):
        raise ValueError(f"there is no {kind} {short(name)!r}; choose from {', '.join(_names(module))}.")
    part = getattr(module, name)
    fields = {key: _field(module, key, value) for key, value in table.items() if key != "name"}
    try:
        bound = inspect.signature(part).bind(**fields)
    except TypeError as error:
        raise ValueError(f"{name}: {error}.") from error
    bound.apply_defaults()
    rows = bound.arguments.get("n")
    columns = bound.arguments.get("p", rows)
    if inspect.isfunction(part) and isinstance(rows, int) and isinstance(columns, int) and rows * columns > MOST:
        raise ValueError(f"{name}: more than {MOST:.0e} entries are asked for; take fewer.")
    return part(**fields)


def _field(module: ModuleType, key: str, value: Any) -> Any:
    if key == "loss":
        if not isinstance(value, str) or value not in LOSSES:
            raise ValueError(f"there is no loss {value!r}; choose from {', '.join(LOSSES)}.")
        return LOSSES[value]
    if isinstance(value, dict) and len(value) == 1 and (axis := next(iter(value))) in AXES:
        match value[axis]:
            case [int() | float() as low, int() | float() as high, int() as count] if 1 <= count <= 10**6:
                if axis == "geomspace" and not (low > 0 and high > 0):
                    raise ValueError(f"{key}: geomspace takes ends above 0, not {low:g} and {high:g}; see linspace.")
                return AXES[axis](low, high, count)
        raise ValueError(f"{key}: {axis} takes [from, to, count] with a whole count from 1 to a million.")
    if isinstance(value, dict):
        return _part(module, short(key), value)
    return value

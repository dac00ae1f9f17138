"""Frozen records of hyper-parameters: what objectives, penalties, rules and schedules are made of.

A subclass is a ``@dataclass(frozen=True)`` whose annotations say what each field is:

=================  =======================================================================
`Real`             a number; a list or array of numbers is an axis of a sweep
`Positive`         the same, > 0
`NonNegative`      the same, >= 0
`Fraction`         the same, in [0, 1)
`Array`            an array by nature (data, a spectrum, weights): never an axis
anything else      structure (an int, a bool, a name, labels): compiled code depends on it;
                   what is said to be an int or a bool must be one
=================  =======================================================================

Two records are equal, and hash alike, when their types and the contents of their fields are.
"""

from __future__ import annotations

import contextlib
import functools
import typing
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

__all__ = ["Array", "Fraction", "Hyperparameters", "NonNegative", "Positive", "Real", "Schedule", "like"]


@dataclass(frozen=True)
class Kind:
    """What a field may hold: a sentence for people, bounds for the check."""

    must: str
    low: float = -np.inf
    high: float = np.inf
    low_allowed: bool = True
    is_array: bool = False
    optional: bool = False

    def holds(self, values: np.ndarray) -> np.ndarray:
        above = values >= self.low if self.low_allowed else values > self.low
        return np.isfinite(values) & above & (values < self.high)


Real = Annotated[Any, Kind("a finite number")]
Positive = Annotated[Any, Kind("a finite number above 0", low=0.0, low_allowed=False)]
NonNegative = Annotated[Any, Kind("a finite number, 0 or above", low=0.0)]
Fraction = Annotated[Any, Kind("a number in [0, 1)", low=0.0, high=1.0)]
Array = Annotated[Any, Kind("an array of finite numbers", is_array=True)]


def kinds(cls: type) -> dict[str, Kind | None]:
    """The kind of each field of a record type; None marks structure."""
    return _kinds(cls)


@functools.cache
def _kinds(cls: type) -> dict[str, Kind | None]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: _kind_of(hints[f.name]) for f in fields(cls)}


@functools.cache
def _structure(cls: type) -> dict[str, type]:
    """The fields that are said to be an int or a bool."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if hints[f.name] in (int, bool)}


def _kind_of(hint: Any) -> Kind | None:
    candidates = (hint, *typing.get_args(hint)) if typing.get_origin(hint) is not Annotated else (hint,)
    for candidate in candidates:
        for extra in getattr(candidate, "__metadata__", ()):
            if isinstance(extra, Kind):
                return replace(extra, optional=type(None) in candidates)
    return None


def like(a: Any, x: Any) -> Any:
    """`a` in the array library, precision and device of `x`; a plain number stays one.

    >>> like(np.array([1.0]), np.zeros(1, dtype=np.float32)).dtype
    dtype('float32')
    """
    if isinstance(a, (int, float)) or a is None:
        return a
    xp = array_namespace(x)
    if is_torch_array(x):
        a = a.copy() if isinstance(a, np.ndarray) else a  # torch cannot share a read-only array
        return xp.asarray(a, dtype=x.dtype, device=device(x))
    return xp.asarray(a, dtype=x.dtype)


@dataclass(frozen=True, eq=False, repr=False)
class Hyperparameters:
    """The base of every record: checks its fields, compares and hashes by content."""

    may_be_scheduled: ClassVar[bool] = True
    """Whether a number may be a schedule."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("__eq__", "__hash__", "__repr__"):  # kept by @dataclass, which would compare arrays by truth
            if name not in cls.__dict__:
                setattr(cls, name, getattr(Hyperparameters, name))

    def __post_init__(self) -> None:
        for name, kind in kinds(type(self)).items():
            value = getattr(self, name)
            if kind is None:
                object.__setattr__(self, name, value.item() if isinstance(value, np.generic) else value)
                continue
            scheduled = self.may_be_scheduled and not kind.is_array and isinstance(value, Schedule)
            if not scheduled and not (kind.optional and value is None):
                object.__setattr__(self, name, self._checked(name, value, kind))
        cls: Any = type(self)
        for name, hint in _structure(cls).items():
            value = getattr(self, name)
            if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
                with contextlib.suppress(TypeError):
                    self.validate()  # which may say it better
                must = "True or False" if hint is bool else "a whole number"
                raise ValueError(f"{type(self).__name__}: {name} must be {must}, not {_short(value)}.")
        self.validate()

    def validate(self) -> None:
        """Raise ValueError where fields that are right alone do not fit together."""

    def _checked(self, name: str, value: Any, kind: Kind) -> Any:
        who = f"{type(self).__name__}: {name}"
        try:
            if np.iscomplexobj(value):
                raise TypeError("complex")  # NumPy would drop the imaginary part with a warning
            numbers = np.asarray(value, dtype=np.float64).copy()  # the caller's array may change, not the record
        except (TypeError, ValueError) as error:
            raise ValueError(f"{who} must be {kind.must}, not {_short(value)}.") from error
        if numbers.size == 0:
            raise ValueError(f"{who} is empty; give at least one value.")
        wrong = ~kind.holds(numbers)
        if np.any(wrong) and kind.is_array and value is not None:
            raise ValueError(f"{who} holds {wrong.sum()} value(s) that are NaN or infinite; drop or fill them first.")
        if np.any(wrong):
            raise ValueError(f"{who} must be {kind.must}, not {_short(numbers[wrong][0] if numbers.ndim else value)}.")
        numbers.setflags(write=False)
        if _labelled(value) and not kind.is_array:
            return value.copy(data=numbers)
        return numbers if numbers.ndim or kind.is_array else float(numbers)

    def replaced(self, **changes: Any) -> typing.Self:
        """A copy with some fields changed and not checked again (they may be traced numbers)."""
        new = object.__new__(type(self))
        new.__dict__.update({f.name: getattr(self, f.name) for f in fields(self)} | changes)
        return new

    def at(self, t: Any) -> typing.Self:
        """This record as it stands at step t = 1, 2, …: each schedule replaced by its number."""
        changes = {f.name: v.at(t) for f in fields(self) if isinstance(v := getattr(self, f.name), Hyperparameters)}
        return self.replaced(**changes) if changes else self

    def _content(self) -> tuple[Any, ...]:
        return (type(self), *(_content(getattr(self, f.name)) for f in fields(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hyperparameters) and self._content() == other._content()

    def __hash__(self) -> int:
        return hash(self._content())

    def __repr__(self) -> str:
        shown = [f"{f.name}={_short(getattr(self, f.name))}" for f in fields(self)]
        return f"{type(self).__name__}({', '.join(shown)})"


class Schedule(Hyperparameters):
    """A hyper-parameter that changes with the step: ``at(t)`` is a number, t = 1, 2, …"""

    may_be_scheduled: ClassVar[bool] = False


def _labelled(value: Any) -> bool:
    """Whether this is an xarray.DataArray, which keeps its labels."""
    return hasattr(value, "dims") and hasattr(value, "values")


def _content(value: Any) -> Any:
    if _labelled(value):
        labels = sorted((str(name), tuple(label.values.ravel().tolist())) for name, label in value.coords.items())
        return (tuple(value.dims), _content(np.asarray(value.values)), *labels)
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    return value


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > 6:
        return f"array of shape {value.shape}"
    if isinstance(value, np.ndarray):
        return str(value.tolist())
    if isinstance(value, (float, np.floating)):
        return f"{float(value):g}"
    if _labelled(value):
        return f"DataArray over {', '.join(map(str, value.dims))}"
    return repr(value)

"""The hash of a definition: over the content of arrays and records, and the source of the code that computes."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from types import FunctionType
from typing import Any

import numpy as np
import xarray as xr

from nonsmooth.sources import hash_of_sources

__all__ = ["code_of_the_package", "digest", "source_of"]

COMPUTES = ("hyperparameters", "axes", "measures", "request", "simulation", "objectives", "penalties", "rules")
"""The modules and packages on which the numbers of a simulation depend."""

NUMBERS = ("sweeps.design", "sweeps.shards")
"""The same of sweeps, on which a sweep of a function depends too."""


def digest(value: Any) -> bytes:
    """SHA-256 of the content: of an array its bytes, dtype and shape, of a record its type and fields, of a function
    its module's source, its name and what it captures. Raises ValueError for what has no content to compare.

    >>> digest(np.zeros(2)) == digest(np.zeros(2)), digest(np.zeros(2)) == digest(np.zeros((1, 2)))
    (True, False)
    >>> digest([1, 2]) == digest([12]), digest(1) == digest(1.0)
    (False, False)
    """
    kind = type(value).__name__
    match value:
        case None | bool() | int() | float() | str() | range():
            return _hash(kind, repr(value).encode())
        case np.generic() | np.ndarray():
            array = np.asarray(value)
            if array.dtype.hasobject:
                raise ValueError("sweep: an array of Python objects cannot be compared by content; give numbers.")
            return _hash("array", repr((array.dtype.str, array.shape)).encode(), array.tobytes())
        case xr.DataArray():
            coords = {str(name): coord.values for name, coord in sorted(value.coords.items(), key=str)}
            return _hash(kind, digest(value.dims), digest(value.values), digest(coords))
        case Mapping():
            return _hash("mapping", *(digest(part) for item in value.items() for part in item))
        case tuple() | list():
            return _hash("sequence", *map(digest, value))
        case type():
            return _hash("type", _named(value), _foreign(value))
        case FunctionType():
            try:
                captured = {name: digest(part) for name, part in inspect.getclosurevars(value).nonlocals.items()}
            except ValueError as error:
                raise ValueError(
                    f"sweep: {value.__name__} captures what cannot be compared; make it an axis."
                ) from error
            return _hash("function", _named(value), source_of(value).encode(), *captured.values())
    if is_dataclass(value):
        return _hash("record", digest(type(value)), digest({f.name: getattr(value, f.name) for f in fields(value)}))
    raise ValueError(f"sweep: a {kind} cannot be compared by content; give numbers, records or a function by def.")


def source_of(thing: Callable[..., Any] | type) -> str:
    """The source of its module or, where that is no file (a notebook), its own; raises ValueError where there is none.

    >>> source_of(digest).splitlines()[0][:28]
    '\"\"\"The hash of a definition:'
    """
    for part in (inspect.getmodule(thing), thing):
        try:
            return inspect.getsource(part)  # type: ignore[arg-type]
        except (OSError, TypeError):
            continue
    raise ValueError(f"sweep: the source of {thing.__name__} cannot be found; define it in a file.")


@functools.cache
def code_of_the_package(simulates: bool) -> dict[str, str]:
    """The versions on which results depend: a hash of the sources that compute, NumPy's and, to simulate, JAX's.

    >>> sorted(code_of_the_package(simulates=True))
    ['jax', 'jaxlib', 'numpy', 'source']
    """
    source = hash_of_sources(*NUMBERS, *(COMPUTES if simulates else ()))
    libraries = ("numpy", "jax", "jaxlib") if simulates else ("numpy",)
    return {"source": source[:16], **{name: version(name) for name in libraries}}


def _hash(kind: str, *parts: bytes) -> bytes:
    """Each part by its own hash, so that no two lists of parts are one stream of bytes."""
    return hashlib.sha256(kind.encode() + b":" + b"".join(hashlib.sha256(part).digest() for part in parts)).digest()


def _named(thing: Any) -> bytes:
    return f"{thing.__module__}.{thing.__qualname__}".encode()


def _foreign(cls: type) -> bytes:
    """The source of a type that is not the package's own."""
    return b"" if cls.__module__.startswith("nonsmooth.") else source_of(cls).encode()

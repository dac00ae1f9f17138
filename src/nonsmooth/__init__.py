"""nonsmooth: see, measure and mend what non-differentiability does to gradient training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonsmooth.simulation import minimise, orbit_curvature, simulate

__all__ = ["minimise", "orbit_curvature", "simulate"]


def __getattr__(name: str) -> Any:
    """`simulate` and its kin need the `lab` extra; the rest of the package does not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module 'nonsmooth' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module("nonsmooth.simulation"), name)
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"nonsmooth.{name} needs {missing.name}, which is not installed; run: pip install 'nonsmooth[lab]'"
        ) from missing

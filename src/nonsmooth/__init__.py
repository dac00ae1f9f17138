"""nonsmooth: see, measure and mend what non-differentiability does to gradient training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonsmooth.simulation import minimise, orbit_curvature, simulate
    from nonsmooth.sweeps import open_sweep, sweep

HOMES = {
    "minimise": "simulation",
    "open_sweep": "sweeps",
    "orbit_curvature": "simulation",
    "simulate": "simulation",
    "sweep": "sweeps",
}
"""Where what the package hands on is made."""

__all__ = ["minimise", "open_sweep", "orbit_curvature", "simulate", "sweep"]


def __getattr__(name: str) -> Any:
    """`simulate` and its kin need the `lab` extra; the rest of the package does not wait for it."""
    if name not in __all__:
        raise AttributeError(f"module 'nonsmooth' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(f"nonsmooth.{HOMES[name]}"), name)
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"nonsmooth.{name} needs {missing.name}, which is not installed; run: pip install 'nonsmooth[lab]'"
        ) from missing

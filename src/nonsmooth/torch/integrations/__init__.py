"""The audit as a callback of a trainer: `LightningAudit` and `TransformersAudit`.

Each is imported when it is asked for, and only then the library that it is for.
"""

from importlib import import_module
from typing import Any

CALLBACKS = {"LightningAudit": "lightning", "TransformersAudit": "transformers"}


def __getattr__(name: str) -> Any:
    if name in CALLBACKS:
        return getattr(import_module(f"{__name__}.{CALLBACKS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What the installed frameworks return at textbook kinks: JAX's spellings here, PyTorch's where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import xarray as xr

from nonsmooth.kinks import KINKS, Kink, Returned

__all__ = ["jax_derivative", "jax_spellings", "probe", "table", "torch_spellings"]

Spellings = Mapping[str, Mapping[str, Callable[[Any], Any]]]


@cache
def jax_spellings() -> Spellings:
    """By the function they spell, a key of `KINKS`; each maps x, a number or a vector, to a number.

    >>> sorted(jax_spellings()) == sorted(KINKS)
    True
    """
    import jax
    from jax import numpy as jnp

    relu = jax.nn.relu
    return {
        "max(x, 0)": {
            "nn.relu(x)": relu,
            "nn.relu6(x)": jax.nn.relu6,
            "clip(x, 0, 6)": lambda x: jnp.clip(x, 0.0, 6.0),
            "where(x > 0, x, 0)": lambda x: jnp.where(x > 0, x, 0.0),
            "where(x >= 0, x, 0)": lambda x: jnp.where(x >= 0, x, 0.0),
            "clip(x, min=0)": lambda x: jnp.clip(x, min=0.0),
            "maximum(x, 0)": lambda x: jnp.maximum(x, 0.0),
            "(x + |x|)/2": lambda x: (x + jnp.abs(x)) / 2,
            "x·(x > 0)": lambda x: x * (x > 0),
        },
        "min(x, 1)": {
            "clip(x, max=1)": lambda x: jnp.clip(x, max=1.0),
            "nn.hard_tanh(x)": jax.nn.hard_tanh,
            "minimum(x, 1)": lambda x: jnp.minimum(x, 1.0),
            "where(x < 1, x, 1)": lambda x: jnp.where(x < 1, x, 1.0),
            "1 - relu(1 - x)": lambda x: 1 - relu(1 - x),
        },
        "|x|": {
            "abs(x)": jnp.abs,
            "sqrt(x²)": lambda x: jnp.sqrt(x**2),
            "maximum(x, -x)": lambda x: jnp.maximum(x, -x),
            "where(x > 0, x, -x)": lambda x: jnp.where(x > 0, x, -x),
            "relu(x) + relu(-x)": lambda x: relu(x) + relu(-x),
        },
        "max(x₁, x₂)": {
            "x.max()": lambda x: x.max(),
            "x[argmax(x)]": lambda x: x[jnp.argmax(x)],
            "lax.top_k(x, 1)": lambda x: jax.lax.top_k(x, 1)[0][0],
            "sort(x)[-1]": lambda x: jnp.sort(x)[-1],
            "maximum(x₁, x₂)": lambda x: jnp.maximum(x[0], x[1]),
        },
        "‖x‖": {
            "linalg.norm(x)": jnp.linalg.norm,
            "sqrt(Σ x²)": lambda x: jnp.sqrt((x**2).sum()),
        },
        "x": {
            "relu(x) - relu(-x)": lambda x: relu(x) - relu(-x),
            "maximum(x, 0) + minimum(x, 0)": lambda x: jnp.maximum(x, 0.0) + jnp.minimum(x, 0.0),
            "where(x > 0, x, 0) + where(x < 0, x, 0)": lambda x: jnp.where(x > 0, x, 0.0) + jnp.where(x < 0, x, 0.0),
        },
    }


def jax_derivative(f: Callable[[Any], Any], at: Sequence[float]) -> tuple[float, ...]:
    """∇f as `jax.grad` returns it, in float64; `at` with one entry is a number.

    >>> jax_derivative(jax_spellings()["max(x, 0)"]["nn.relu(x)"], [0.0])
    (0.0,)
    """
    import jax
    from jax import numpy as jnp

    with jax.enable_x64(True):
        g = jax.grad(f)(jnp.asarray(at[0] if len(at) == 1 else at, dtype=jnp.float64))
        return tuple(g.reshape(-1).tolist())


def torch_spellings() -> Any:
    """The module `nonsmooth.torch.spellings`, or None where torch is not installed.

    >>> torch_spellings() is None or "x" in torch_spellings().SPELLINGS
    True
    """
    try:
        from nonsmooth.torch import spellings
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        return None
    return spellings


def probe(kink: Kink) -> list[Returned]:
    """What each spelling of a function returns at a point, given with its Clarke subdifferential there.

    >>> [r.value for r in probe(KINKS["max(x, 0)"]) if r.spelling == "nn.relu(x)"]
    [(0.0,)]
    """
    import jax

    found = [
        Returned(kink, name, "JAX", jax.__version__, jax_derivative(f, kink.at))
        for name, f in jax_spellings()[kink.function].items()
    ]
    torch = torch_spellings()
    return found + (torch.probe(kink) if torch else [])


def table() -> xr.Dataset:
    """Every spelling at every kink: one row each, its distance to the Clarke subdifferential, the words in `attrs`.

    >>> table().attrs["returned"][0]
    '0'
    """
    rows = [row for kink in KINKS.values() for row in probe(kink)]
    return xr.Dataset(
        {"distance": ("row", [row.distance for row in rows])},
        attrs={
            "function": [row.kink.function for row in rows],
            "at": [str(row.kink.at) for row in rows],
            "clarke": [row.kink.clarke for row in rows],
            "framework": [f"{row.framework} {row.version}" for row in rows],
            "spelling": [row.spelling for row in rows],
            "returned": [row.shown for row in rows],
            "inside": [row.inside for row in rows],
        },
    )

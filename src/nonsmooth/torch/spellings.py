"""What the installed PyTorch returns at textbook kinks, spelling by spelling: probed, since it differs by version."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional

from nonsmooth.kinks import Kink, Returned

__all__ = ["SPELLINGS", "derivative", "probe"]

SPELLINGS: Mapping[str, Mapping[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "max(x, 0)": {
        "relu(x)": torch.relu,
        "relu6(x)": functional.relu6,
        "hardtanh(x, 0, 6)": lambda x: functional.hardtanh(x, 0.0, 6.0),
        "where(x > 0, x, 0)": lambda x: torch.where(x > 0, x, 0.0),
        "where(x >= 0, x, 0)": lambda x: torch.where(x >= 0, x, 0.0),
        "clamp(x, min=0)": lambda x: torch.clamp(x, min=0.0),
        "maximum(x, 0)": lambda x: torch.maximum(x, torch.zeros_like(x)),
        "(x + |x|)/2": lambda x: (x + x.abs()) / 2,
        "x·(x > 0)": lambda x: x * (x > 0),
    },
    "min(x, 1)": {
        "clamp(x, max=1)": lambda x: torch.clamp(x, max=1.0),
        "hardtanh(x, -6, 1)": lambda x: functional.hardtanh(x, -6.0, 1.0),
        "minimum(x, 1)": lambda x: torch.minimum(x, torch.ones_like(x)),
        "where(x < 1, x, 1)": lambda x: torch.where(x < 1, x, 1.0),
        "1 - relu(1 - x)": lambda x: 1 - torch.relu(1 - x),
    },
    "|x|": {
        "abs(x)": torch.abs,
        "sqrt(x²)": lambda x: torch.sqrt(x**2),
        "maximum(x, -x)": lambda x: torch.maximum(x, -x),
        "where(x > 0, x, -x)": lambda x: torch.where(x > 0, x, -x),
        "relu(x) + relu(-x)": lambda x: torch.relu(x) + torch.relu(-x),
    },
    "max(x₁, x₂)": {
        "x.max()": lambda x: x.max(),
        "x.amax()": lambda x: x.amax(),
        "x.max(0).values": lambda x: x.max(0).values,
        "x.topk(1)": lambda x: x.topk(1).values[0],
        "x.sort()[-1]": lambda x: x.sort().values[-1],
        "maximum(x₁, x₂)": lambda x: torch.maximum(x[0], x[1]),
        "max_pool1d(x)": lambda x: functional.max_pool1d(x[None], 2)[0, 0],
    },
    "‖x‖": {
        "linalg.vector_norm(x)": torch.linalg.vector_norm,
        "x.norm()": lambda x: x.norm(),
        "sqrt(Σ x²)": lambda x: torch.sqrt((x**2).sum()),
    },
    "x": {
        "relu(x) - relu(-x)": lambda x: torch.relu(x) - torch.relu(-x),
        "maximum(x, 0) + minimum(x, 0)": lambda x: (
            torch.maximum(x, torch.zeros_like(x)) + torch.minimum(x, torch.zeros_like(x))
        ),
        "where(x > 0, x, 0) + where(x < 0, x, 0)": lambda x: torch.where(x > 0, x, 0.0) + torch.where(x < 0, x, 0.0),
    },
}
"""By the function they spell, a key of `nonsmooth.kinks.KINKS`; each maps x, a number or a vector, to a number."""


def derivative(f: Callable[[torch.Tensor], torch.Tensor], at: Sequence[float]) -> tuple[float, ...]:
    """∇f as autograd returns it, in float64; `at` with one entry is a number.

    >>> derivative(torch.relu, [0.0])
    (0.0,)
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        (g,) = torch.autograd.grad(f(x[0] if len(at) == 1 else x), x)
    return tuple(g.tolist())


def probe(kink: Kink) -> list[Returned]:
    """What each spelling of a function returns at a point, given with its Clarke subdifferential there.

    >>> from nonsmooth.kinks import KINKS
    >>> [r.value for r in probe(KINKS["|x|"]) if r.spelling == "abs(x)"]
    [(0.0,)]
    """
    return [
        Returned(kink, name, "torch", torch.__version__, derivative(f, kink.at))
        for name, f in SPELLINGS[kink.function].items()
    ]

"""How the gradient varies around a point, scale by scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from nonsmooth.torch.steps.evaluation import Closure, SameRandomNumbers, flat, gradient, kept, named, norm, parts, put

__all__ = ["Holder", "holder"]

ROUNDING = 16
"""A change of the gradient below this many eps of its norm is rounding."""


@dataclass(frozen=True)
class Holder:
    """ω(δ) = E_u‖g̃(x + δu) − g̃(x)‖ at each scale δ over random unit u, and its slope in log-log between neighbours.

    Zeros, that is what is below rounding, are left out of the mean and counted; where all are, ω is 0 and the slopes
    beside are nan. `errors` and `slope_errors` are one standard error over the directions. A slope belongs to the
    scales that it was taken between; at others it may differ.

    >>> Holder((0.1, 1.0), (0.2, 2.0), (0.0, 0.0), (0, 0), (1.0,), (0.0,)).slopes
    (1.0,)
    """

    scales: tuple[float, ...]
    variations: tuple[float, ...]
    errors: tuple[float, ...]
    zeros: tuple[int, ...]
    slopes: tuple[float, ...]
    slope_errors: tuple[float, ...]


def holder(closure: Closure, params: Any, scales: Sequence[float], seeds: int | Sequence[int] = 8) -> Holder:
    """The variation of the gradient around the present parameters, and its local Hölder exponents.

    scales: at least two values of δ, rising. seeds: one a direction, or how many. Costs 1 + scales·seeds gradients, all
    on the same data and random masks. The parameters are put back, bit by bit, and all else as in `measure_step`.

    >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    >>> found = holder(lambda: 1.5 * w.square().sum(), [w], scales=[0.01, 0.1])
    >>> [round(v, 12) for v in found.variations], round(found.slopes[0], 12)  # 3δ, Lipschitz
    ([0.03, 0.3], 1.0)
    """
    scales = tuple(float(s) for s in scales)
    if len(scales) < 2 or not all(0 < a < b < math.inf for a, b in pairwise(scales)):
        raise ValueError(f"holder: scales must be at least two finite numbers above 0, rising, not {scales}.")
    chosen = range(seeds) if isinstance(seeds, int) else seeds
    if not len(chosen):
        raise ValueError("holder: there must be at least one seed.")
    _, ps = named("holder", params)
    again, x = SameRandomNumbers(), [p.detach().clone() for p in ps]
    start = flat(x)
    found = np.zeros((len(scales), len(chosen)))
    with kept(ps, x):
        g = flat(gradient("holder", closure, ps, again))
        rounding = ROUNDING * max(torch.finfo(p.dtype).eps for p in ps) * norm(g)
        for j, seed in enumerate(chosen):
            u = torch.randn(len(start), generator=torch.Generator().manual_seed(int(seed)), dtype=torch.float64)
            u = (u / u.norm()).to(start.device)
            for i, scale in enumerate(scales):
                put(ps, parts(ps, start + scale * u))
                found[i, j] = norm(flat(gradient("holder", closure, ps, again)) - g)
    found = np.where(found <= rounding, 0.0, found)
    seen = found > 0
    mean = [float(row[k].mean()) if k.any() else 0.0 for row, k in zip(found, seen, strict=True)]
    errors = [float(row[k].std(ddof=1) / math.sqrt(k.sum())) if k.sum() > 1 else math.nan
              for row, k in zip(found, seen, strict=True)]  # fmt: skip
    slopes, slope_errors = [], []
    for i in range(len(scales) - 1):
        both = seen[i] & seen[i + 1]
        low, high, width = found[i][both], found[i + 1][both], math.log(scales[i + 1] / scales[i])
        slopes.append(math.log(high.mean() / low.mean()) / width if both.any() else math.nan)
        apart = high / high.mean() - low / low.mean() if both.any() else low
        n = len(apart)
        slope_errors.append(float(apart.std(ddof=1) / math.sqrt(n) / width) if n > 1 else math.nan)
    zeros = tuple(int(z) for z in (~seen).sum(axis=1))
    return Holder(scales, tuple(mean), tuple(errors), zeros, tuple(slopes), tuple(slope_errors))

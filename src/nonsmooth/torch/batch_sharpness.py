"""Batch sharpness: the curvature that minibatch SGD meets, each batch's Hessian along that batch's own gradient.

E_B[⟨g_B, H_B g_B⟩/‖g_B‖²], with g_B and H_B of one batch's loss. In minibatch SGD it is this number, and not λ₁ of the
whole loss, that is found to settle near 2/η (Andreyev & Beneventano 2024, arXiv 2412.20553, abstract); with momentum β
near 2(1 − β)/η at small batches and 2(1 + β)/η at large ones (arXiv 2604.14108, abstract). Both are observations of
training and not thresholds of divergence; which of the two holds, or what holds between them, is not claimed here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import optim
from torch.optim import Optimizer

from nonsmooth.torch.effective import own_step, unwrapped
from nonsmooth.torch.hessian import Hessian

__all__ = ["BatchSharpness", "BatchThresholds", "batch_sharpness", "batch_thresholds"]


@dataclass(frozen=True)
class BatchThresholds:
    """What batch sharpness is set against: `small` 2(1 − β)/η at small batches, `large` 2(1 + β)/η at large ones.

    >>> BatchThresholds(1.0, 3.0).small
    1.0
    """

    small: float
    large: float


@dataclass(frozen=True)
class BatchSharpness:
    """The (weighted) mean over the batches of ⟨g, Hg⟩/‖g‖², and its standard error.

    `error` is that of the mean of independent draws of a batch; nan for one batch. `pooled` is Σ⟨g, Hg⟩/Σ‖g‖², in
    which batches with large gradients count for more. `quotients`: of each batch; `flat`: how many batches had the
    gradient 0, which have none and are left out. `products`: Hessian products, one a batch that has a quotient.

    >>> found = BatchSharpness(3.0, 0.5, 2.5, (2.5, 3.5), 0, 2, BatchThresholds(2.0, 6.0))
    >>> print(found)
    batch sharpness 3 ± 0.5 over 2 batches, 2 products; against 2 at small batches and 6 at large ones
    """

    value: float
    error: float
    pooled: float
    quotients: tuple[float, ...]
    flat: int
    products: int
    thresholds: BatchThresholds | None = None

    def __str__(self) -> str:
        count = len(self.quotients)
        words = f"batch sharpness {self.value:.4g} ± {self.error:.2g} over {count} batch{'' if count == 1 else 'es'}"
        words += f", {self.products} products" + (f", {self.flat} without a gradient" if self.flat else "")
        if self.thresholds is None:
            return words
        small, large = self.thresholds.small, self.thresholds.large
        if small == large:
            return f"{words}; against {small:.4g}"
        return f"{words}; against {small:.4g} at small batches and {large:.4g} at large ones"


def batch_sharpness(
    closures: Any,
    params: Iterable[torch.Tensor],
    *,
    optimizer: Optimizer | None = None,
    preconditioner: Sequence[Any] | None = None,
) -> BatchSharpness:
    """E_B[⟨g_B, H_B g_B⟩/‖g_B‖²] over the batches given, at the present parameters.

    closures: a list of closures, one a batch, or of (weight, closure), the weight being how often that batch is drawn;
        or `over(loader, loss)`, whose weights are the batches' sizes.
    optimizer: a live SGD, or a wrapper of one: adds its `thresholds`, and its coupled weight decay wd, as ½wd‖w‖² in
        the loss of each batch.
    preconditioner: P of an adaptive optimiser, a tensor or a number a parameter, held: in the coordinates P^{½}w the
        same is ⟨P⁻¹g, HP⁻¹g⟩/⟨g, P⁻¹g⟩. What it settles at is not known here, so that it comes without thresholds.

    Costs one gradient and one Hessian product a batch, and the memory of one batch's graph. Random numbers, buffers,
    modes and `.grad` are left as they were. The Hessian is that of the active piece: of a piecewise linear loss it
    is 0. Raises what `Hessian` and `batch_thresholds` refuse, and ValueError where both options are given.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> batches = [lambda: 0.5 * w[0] ** 2, lambda: 1.5 * w[1] ** 2]  # curvatures 1 and 3 along their own gradients
    >>> found = batch_sharpness(batches, [w], optimizer=torch.optim.SGD([w], lr=0.5, momentum=0.5))
    >>> found.value, found.error, found.products, found.thresholds
    (2.0, 1.0, 2, BatchThresholds(small=2.0, large=6.0))
    """
    if optimizer is not None and preconditioner is not None:
        raise ValueError("batch_sharpness: give an optimizer (SGD) or a preconditioner, not both; they do not meet.")
    thresholds = None if optimizer is None else batch_thresholds(optimizer)
    hessian = Hessian(closures, params, preconditioner, who="batch_sharpness")  # type: ignore[arg-type]
    decay = None if optimizer is None else _decay(optimizer, hessian)
    weights, above, below, flat = [], [], [], 0
    for weight, slopes in hessian._slopes():
        g = torch.cat([s.detach().reshape(-1).to(hessian.device, hessian.dtype) for s in slopes])
        if decay is not None:
            g = g + decay * torch.cat([p.detach().reshape(-1).to(g) for p in hessian.params])
        d = g if hessian.roots is None else hessian.rooted(hessian.rooted(g.clone()))
        square = float(g @ d)
        if square == 0:
            flat += 1
            continue
        product = hessian._pulled(slopes, (a.to(p) for a, p in zip(hessian.unflat(d), hessian.params, strict=True)))
        if decay is not None:
            product = product + decay * d
        curvature = float(d @ product)
        if not math.isfinite(curvature):
            raise ValueError(
                "batch_sharpness: a product with the Hessian is not finite; the loss has no curvature here."
            )
        weights.append(weight)
        above.append(curvature)
        below.append(square)
    quotients = [a / b for a, b in zip(above, below, strict=True)]
    total = math.fsum(weights)
    value = math.fsum(w * q for w, q in zip(weights, quotients, strict=True)) / total if weights else math.nan
    pooled_below = math.fsum(w * b for w, b in zip(weights, below, strict=True))
    pooled = math.fsum(w * a for w, a in zip(weights, above, strict=True)) / pooled_below if weights else math.nan
    spread, n = math.fsum((w * (q - value)) ** 2 for w, q in zip(weights, quotients, strict=True)), len(weights)
    error = math.sqrt(spread * n / (n - 1)) / total if n > 1 else math.nan
    return BatchSharpness(value, error, pooled, tuple(quotients), flat, n, thresholds)


def batch_thresholds(optimizer: Optimizer) -> BatchThresholds:
    """2(1 − β)/η and 2(1 + β)/η of a live SGD; both are 2/η without momentum. A wrapper counts as what it wraps.

    Raises TypeError for other optimisers, of which neither is known, and ValueError for Nesterov's form, dampening,
    maximisation, groups that differ in lr or momentum, and a learning rate that is not above 0.

    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> batch_thresholds(torch.optim.SGD([w], lr=0.25))
    BatchThresholds(small=8.0, large=8.0)
    """
    inner = unwrapped(optimizer)
    if not isinstance(inner, optim.SGD) or own_step(type(inner)) is not own_step(optim.SGD):
        raise TypeError(
            f"batch_thresholds: what batch sharpness settles at is known for SGD, not for {type(inner).__name__}; "
            "leave the optimizer out, or give batch_sharpness its preconditioner."
        )
    rules = {(float(group["lr"]), float(group["momentum"])) for group in inner.param_groups}
    if any(group["nesterov"] or (group["momentum"] and group["dampening"]) for group in inner.param_groups):
        raise ValueError("batch_thresholds: what batch sharpness settles at is not known under Nesterov or dampening.")
    if any(group["maximize"] for group in inner.param_groups):
        raise ValueError("batch_thresholds: the optimizer maximises; negate the loss instead.")
    if len(rules) > 1:
        raise ValueError("batch_thresholds: the groups differ in lr or momentum, so that there is no one threshold.")
    lr, beta = rules.pop()
    if not lr > 0:
        raise ValueError(f"batch_thresholds: a learning rate of {lr:g} moves nothing, and so has no threshold.")
    return BatchThresholds(2 * (1 - beta) / lr, 2 * (1 + beta) / lr)


def _decay(optimizer: Optimizer, hessian: Hessian) -> torch.Tensor | None:
    """Each coordinate's coupled weight decay; None where there is none."""
    held = {id(p): float(group["weight_decay"]) for group in unwrapped(optimizer).param_groups for p in group["params"]}
    found = [held.get(id(p), 0.0) for p in hessian.params]
    if not any(found):
        return None
    each = torch.repeat_interleave(torch.tensor(found, dtype=hessian.dtype), torch.tensor(hessian.sizes))
    return each.to(hessian.device)

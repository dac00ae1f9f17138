"""Which penalised weights are 0, which are near 0, and what the network is worth without them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from nonsmooth.networks.observers.observer import Observer
from nonsmooth.torch.steps.evaluation import kept, parts, put
from nonsmooth.torch.undisturbed import undisturbed

if TYPE_CHECKING:
    from nonsmooth.networks.training import Run

__all__ = ["Zeros"]

THRESHOLDS = (1e-8, 1e-4, 1e-3, 1e-2)
"""Below which weights are commonly taken for zeros."""
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
"""Of the weights, that pruning keeps."""


class Zeros(Observer):
    """Zeros and ‖w‖₁ of the penalised weights, and the accuracy once the small ones are set to 0.

    Over the watched steps, an even number of them (the first is left out where it is one too many, and a run that is
    watched once has no mean): `norm`, the mean of ‖w‖₁, `steps`, and `zeros`, the mean number of exact zeros. A weight
    is *idle* where the gradient of the loss over all training samples, the penalty left out, is exactly 0 at the end
    of the run (constant inputs that are 0, dead units): `idle` of `weights`; `zeros_idle` are the zeros among them,
    which autodiff's sign(0) = 0 holds there: accidental zeros where no proximal map is at work.

    At the end of the run: `near`, how many |w| < t for each t of `thresholds`; `below`, the test accuracy after those
    are set to 0; `kept`, the test accuracy when all but the largest |w|, the share s of all for each s of `shares`,
    are set to 0.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> setting = Setting(steps=2, samples=50, width=4, penalty="proximal", lam=1e3, watch=("zeros",))
    >>> found = trained(setting)["found"]["zeros"]
    >>> found["zeros"] == found["weights"] == 4 * 64 + 4 * 4 + 10 * 4, found["norm"]  # one step leaves nothing
    (True, 0.0)
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.norms: list[float] = []
        self.masks: list[torch.Tensor] = []

    def after(self) -> None:
        self.norms.append(self.run.l1_norm())
        self.masks.append(self._flat() == 0)

    def _flat(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.run.penalised])

    def found(self) -> dict[str, Any]:
        if self.run.diverged:
            return {}
        odd = len(self.norms) % 2
        norms, masks = self.norms[odd:], self.masks[odd:]
        flat = self._flat()
        idle = self._idle()
        zeros = torch.stack(masks).double().mean(0) if masks else torch.full_like(flat, math.nan, dtype=torch.float64)
        size, order = flat.abs(), flat.abs().argsort(descending=True, stable=True)
        smallest = [order[max(1, round(share * len(flat))) :] for share in SHARES]
        return {
            "weights": len(flat),
            "steps": len(norms),
            "norm": math.fsum(norms) / len(norms) if norms else math.nan,
            "zeros": float(zeros.sum()),
            "zeros_idle": float(zeros[idle].sum()),
            "idle": int(idle.sum()),
            "thresholds": list(THRESHOLDS),
            "near": [int((size < threshold).sum()) for threshold in THRESHOLDS],
            "below": [self._without(size < threshold) for threshold in THRESHOLDS],
            "shares": list(SHARES),
            "kept": [self._without(which) for which in smallest],
        }

    def _idle(self) -> torch.Tensor:
        """Where the data's gradient is exactly 0."""
        run = self.run
        with undisturbed(run.model):
            gradients = torch.autograd.grad(run.loss(), run.penalised)
        return torch.cat([g.flatten() for g in gradients]) == 0

    def _without(self, which: torch.Tensor) -> float:
        """The test accuracy with these weights at 0."""
        held = self.run.penalised
        flat = self._flat()
        flat[which] = 0
        with kept(held, [p.detach().clone() for p in held]):
            put(held, parts(held, flat))
            return self.run.accuracy()

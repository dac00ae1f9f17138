"""What L-smooth theory promises of each measured step, beside the loss that followed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nonsmooth.torch.run_report.folder import number

__all__ = ["Bound", "descent_bounds"]

ROUNDING = 1e-6
"""The part of the loss that counts as rounding."""


@dataclass(frozen=True)
class Bound:
    """The descent lemma along a run: f(x⁺) ≤ f(x) + ⟨g, D⟩ + (L/2)‖D‖² at each of `steps`, with the L known before it.

    kind: "lipschitz", L the largest ‖g⁺ − g‖/‖D‖ of the steps before; "sharpness", L the last λ₁ before it.
    `after` is the loss that followed, of the same data.

    >>> bound = Bound("lipschitz", (2, 3), (1.0, 0.5), (0.9, 0.6))
    >>> bound.exceeded
    1
    """

    kind: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def exceeded(self) -> int:
        """At how many steps the loss ended above the bound, by more than 10⁻⁶ of itself; nan counts as above."""
        return sum(
            not after <= value + ROUNDING * abs(after) for value, after in zip(self.values, self.after, strict=True)
        )


def descent_bounds(rows: Sequence[dict[str, Any]], preconditioned: bool = False) -> list[Bound]:
    """The bounds of a run's rows: with the running L, and with the last sharpness unless it is `preconditioned`.

    The first measured step has no L before it, and no bound. A bound that is not finite is left out. The sharpness of
    an adaptive optimiser is in its own metric, which is another unit, so there is no second bound.

    >>> step = {"kind": "step", "loss": 2.0, "predicted": -1.0, "length": 1.0, "loss_after": 1.5}
    >>> (bound,) = descent_bounds([step | {"step": 1, "lipschitz": 3.0}, step | {"step": 2, "lipschitz": 9.0}])
    >>> bound.steps, bound.values
    ((2,), (2.5,))
    """
    measured = sorted((r for r in rows if r["kind"] == "step" and "error" not in r), key=lambda r: r["step"])
    sharp = sorted((r for r in rows if r["kind"] == "stability" and "error" not in r), key=lambda r: r["step"])
    ells = [("lipschitz", [(r["step"], number(r.get("lipschitz"))) for r in measured])]
    if not preconditioned:
        ells.append(("sharpness", [(r["step"], number(r.get("sharpness"))) for r in sharp]))
    bounds = []
    for kind, known in ells:
        found = [(row, _value(row, ell)) for row, ell in zip(measured, _known(kind, known, measured), strict=True)]
        kept = [(row["step"], value, number(row.get("loss_after"))) for row, value in found if math.isfinite(value)]
        if kept:
            bounds.append(Bound(kind, *zip(*kept, strict=True)))
    return bounds


def _known(kind: str, known: Sequence[tuple[int, float]], measured: Sequence[dict[str, Any]]) -> list[float]:
    """L as it was known before each measured step; nan where it was not."""
    ells, last, i = [], math.nan, 0
    for row in measured:
        while i < len(known) and known[i][0] < row["step"]:
            ell = known[i][1]
            if math.isfinite(ell):
                last = max(last, ell) if kind == "lipschitz" and math.isfinite(last) else ell
            i += 1
        ells.append(last)
    return ells


def _value(row: dict[str, Any], ell: float) -> float:
    loss, predicted, length = (number(row.get(key)) for key in ("loss", "predicted", "length"))
    return loss + predicted + ell / 2 * length * length

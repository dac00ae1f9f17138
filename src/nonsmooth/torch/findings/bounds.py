"""What L-smooth theory promises of each measured step, beside the loss that followed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nonsmooth.torch.findings.numbers import finite, number
from nonsmooth.torch.findings.record import Record, Row

__all__ = ["Bound", "descent_bounds", "lipschitz"]


@dataclass(frozen=True)
class Bound:
    """The descent lemma along a run: f(x⁺) ≤ f(x) + ⟨g, D⟩ + (L/2)‖D‖² at the steps of `rows`, with the L known before.

    kind: "largest", L the largest of ‖g⁺ − g‖/‖D‖ and λ₁ of the rows before; "sharpness", L the last λ₁ before.
    `rounding` is a part of the largest of |f(x)|, |f(x⁺)| and |⟨g, D⟩|.

    >>> row = {"step": 2, "loss": 1.0, "predicted": -0.5, "loss_after": 0.6}
    >>> len(Bound("largest", (row, row), (0.5, 0.7), 1e-6).exceeded)
    1
    """

    kind: str
    rows: tuple[Row, ...]
    values: tuple[float, ...]
    rounding: float

    @property
    def exceeded(self) -> list[Row]:
        """The steps that ended above the bound by more than rounding; a loss that is no number counts as above."""
        return [row for row, value in zip(self.rows, self.values, strict=True) if self._above(row, value)]

    def _above(self, row: Row, value: float) -> bool:
        after = finite(row, "loss_after")
        if after is None:
            return True
        scale = max(abs(after), *(abs(finite(row, key) or 0.0) for key in ("loss", "predicted")))
        return after > value + self.rounding * scale


def descent_bounds(record: Record) -> list[Bound]:
    """The bounds of a run: with the largest L so far, and with the last sharpness.

    The first measured step has no L before it, and no bound. A bound that is not finite is left out. A sharpness in the
    optimiser's own metric is in another unit, and no L.

    >>> step = {"kind": "step", "loss": 2.0, "predicted": -1.0, "length": 1.0, "loss_after": 1.5}
    >>> rows = [step | {"step": 1, "lipschitz": 3.0}, step | {"step": 2, "lipschitz": 9.0}]
    >>> (bound,) = descent_bounds(Record({}, rows))
    >>> bound.kind, bound.values, lipschitz(Record({}, rows))
    ('largest', (2.5,), 9.0)
    """
    bounds = []
    for kind in ("largest", "sharpness"):
        ell: float | None = None
        kept: list[tuple[Row, float]] = []
        for row in record.measured:
            value = None if ell is None else _value(row, ell)
            if value is not None:
                kept.append((row, value))
            ell = _next(record, kind, row, ell)
        if kept:
            rows, values = zip(*kept, strict=True)
            bounds.append(Bound(kind, rows, values, record.rounding))
    return bounds


def lipschitz(record: Record) -> float | None:
    """The largest L of all rows: ‖g⁺ − g‖/‖D‖ of the steps, and λ₁ where that is in the same unit.

    >>> lipschitz(Record({}, []))
    """
    ell: float | None = None
    for row in record.measured:
        ell = _next(record, "largest", row, ell)
    return ell


def _next(record: Record, kind: str, row: Row, ell: float | None) -> float | None:
    """L as it is known after a row."""
    if row.get("kind") == "step":
        seen = finite(row, "lipschitz") if kind == "largest" else None
    else:
        seen = None if record.preconditioned else finite(row, "sharpness")
    if seen is None:
        return ell
    return max(ell or 0.0, seen) if kind == "largest" else seen


def _value(row: Row, ell: float) -> float | None:
    """The bound at a step; None for another row, and where what it needs was not measured."""
    loss, predicted, length = (finite(row, key) for key in ("loss", "predicted", "length"))
    if row.get("kind") != "step" or loss is None or predicted is None or length is None:
        return None
    value = loss + predicted + ell / 2 * length * length
    return value if math.isfinite(value) and number(row.get("loss_after")) is not None else None

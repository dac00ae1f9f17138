"""Where a run at a constant step stays: means over its last steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nonsmooth.networks.observers.observer import Observer

if TYPE_CHECKING:
    from nonsmooth.networks.training import Run

__all__ = ["Floor"]


class Floor(Observer):
    """Means over the steps that are looked at, the first left out if they are odd in number: orbits may have period 2.

    `l1_norm` is ‖w‖₁ after the step, of what the penalty is on; `value` is what the step was taken on, the penalty of
    "autograd" in it; `least` is the least of these values. `weights` is how many the penalty is on.

    >>> from nonsmooth.networks import Setting
    >>> from nonsmooth.networks.training import trained
    >>> row = trained(Setting(steps=9, samples=50, width=4, watch=("floor",), tail=0.55))
    >>> row["found"]["floor"]["steps"]
    4
    >>> row["found"]["floor"]["weights"]  # 8·8·4 + 4·4 + 4·10
    312
    >>> abs(row["found"]["floor"]["value"] - sum(row["losses"][-4:]) / 4) < 1e-12
    True
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.rows: list[tuple[float, float]] = []

    def after(self) -> None:
        self.rows.append((self.run.l1_norm(), self.run.value))

    def found(self) -> dict[str, Any]:
        rows = self.rows[len(self.rows) % 2 :]
        weights = sum(p.numel() for p in self.run.penalised)
        if not rows:
            return {"steps": 0, "weights": weights}
        norms, values = zip(*rows, strict=True)
        count = len(rows)
        means = {"l1_norm": sum(norms) / count, "value": sum(values) / count}
        return {"steps": count, "weights": weights, "least": min(values)} | means

"""What a figure or a table shows, as plain data: the report draws it, a test reads it, a user may draw it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Axis", "Heat", "Line", "Plot", "Style", "Table"]

Style = Literal["line", "dash", "markers"]


@dataclass(frozen=True)
class Axis:
    """A title with its unit, and the scale.

    >>> Axis("step size η", log=True).log
    True
    """

    title: str
    log: bool = False


@dataclass(frozen=True)
class Line:
    """y against x: measured values (`markers`), a prediction (`dash`), a trajectory (`line`) or a boundary.

    >>> Line("SGD", [1, 2], [3.0, 4.0]).style
    'line'
    """

    name: str
    x: ArrayLike
    y: ArrayLike
    style: Style = "line"
    error: ArrayLike | None = None


@dataclass(frozen=True)
class Heat:
    """z of shape (len(y), len(x)), as colour; `z` is already in the unit that `title` states.

    >>> Heat("log10 norm", [1.0, 2.0], [1.0], [[0.0, 1.0]]).title
    'log10 norm'
    """

    title: str
    x: ArrayLike
    y: ArrayLike
    z: ArrayLike


@dataclass(frozen=True)
class Plot:
    """One panel: axes, an optional heat map under the lines, and a sentence that says what to see in it.

    >>> Plot(Axis("λ"), Axis("‖w‖₁"), [Line("SGD", [1], [2.0])], says="It grows.").to_dict()["lines"][0]["y"]
    [2.0]
    """

    x: Axis
    y: Axis
    lines: Sequence[Line] = ()
    heat: Heat | None = None
    title: str = ""
    says: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Lists, numbers and text alone; a number that is not finite is None."""
        return _plain(asdict(self))


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under column titles, for what no axis carries; ValueError where a row does not fit.

    Its dict, unlike a `Plot`'s, has the `kind` "table".

    >>> Table(["rule", "zeros"], [["prox SGD", 30], ["SGD", 0]], says="One has them.").to_dict()["rows"][0]
    ['prox SGD', 30]
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    title: str = ""
    says: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(f"Table: row {number} has {len(row)} cells for {len(self.columns)} columns.")

    def to_dict(self) -> dict[str, Any]:
        """Lists, numbers and text alone; a number that is not finite is None."""
        return {"kind": "table", **_plain(asdict(self))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "values") and not callable(value.values):
        value = value.values
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.integer, int)) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value

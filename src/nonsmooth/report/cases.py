"""The cases of a row: each measurement beside its prediction, its margin, and where it stands on a common scale."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nonsmooth.ledger import STRICTLY, Relation
from nonsmooth.pages.numbers import align, interval, percent, show, signed

__all__ = ["Case", "Scale", "relation_of", "table"]

KINDS = {words: (kind, True) for kind, words in STRICTLY.items()}
KINDS |= {kind: (kind, False) for kind in ("equals", *STRICTLY)}
WORDS = re.compile(rf"(?:is )?({'|'.join(KINDS)}) the prediction(?:(?: within|, give or take) (\S+)( %)?)?")


@dataclass(frozen=True)
class Scale:
    """(measured − predicted)/s from −`reach` to `reach` as a share of a strip; the claim holds from `low` to `high`.

    >>> Scale(reach=0.2, low=-0.1, high=0.1).band
    (25.0, 75.0)
    """

    reach: float
    low: float
    high: float

    def at(self, off: float) -> float:
        return 50 + 50 * min(max(off / self.reach, -1.0), 1.0)

    def beyond(self, off: float) -> Literal["", "left", "right"]:
        return "" if abs(off) <= self.reach else "left" if off < 0 else "right"

    @property
    def band(self) -> tuple[float, float]:
        return self.at(self.low), self.at(self.high)


@dataclass(frozen=True)
class Case:
    """A row of the table, as text, and the place of its interval on the strip in per cent of the width.

    >>> Case("η = 1", "1.02", "0.01", "1", "+2.00 %", True, (54.0, 56.0, 58.0), "").holds
    True
    """

    label: str
    measured: str
    noise: str
    predicted: str
    margin: str
    holds: bool
    strip: tuple[float, float, float] | None
    beyond: Literal["", "left", "right"]


def relation_of(row: Mapping[str, Any]) -> Relation | None:
    """The relation that a row names in words, if it reproduces the row's slack.

    >>> relation_of({"relation": "equals the prediction within 5 %", "measured": [1.0], "noise": [0.0],
    ...              "predicted": [1.0], "slack": 0.05})
    Relation(kind='equals', tolerance=0.05, absolute=False, strict=False)
    """
    found = WORDS.fullmatch(row["relation"])
    if found is None:
        return None
    words, size, per_cent = found.groups()
    kind, strict = KINDS[words]
    try:
        tolerance = float(size or 0) / (100 if per_cent else 1)
    except ValueError:
        return None
    if not 0 <= tolerance < math.inf:
        return None
    stated = bool(size) and not per_cent
    for absolute in (stated, not stated):
        candidate = Relation(kind, tolerance, absolute, strict)  # type: ignore[arg-type]
        lows = [bounds[0] for bounds in margins(row, candidate) if bounds is not None]
        if row["slack"] is None or (lows and math.isclose(min(lows), row["slack"], rel_tol=1e-4, abs_tol=1e-6)):
            return candidate
    return None


def margins(row: Mapping[str, Any], relation: Relation) -> list[tuple[float, float] | None]:
    return [
        None if m is None or n is None or p is None else relation.margins(m - n, m + n, p)
        for m, n, p in zip(row["measured"], row["noise"], row["predicted"], strict=True)
    ]


def offsets(row: Mapping[str, Any], relation: Relation) -> list[tuple[float, float, float] | None]:
    """(measured − predicted)/s at the lower end, the mean and the upper end of each interval."""
    found: list[tuple[float, float, float] | None] = []
    for m, n, p in zip(row["measured"], row["noise"], row["predicted"], strict=True):
        if m is None or n is None or p is None:
            found.append(None)
        else:
            scale = 1.0 if relation.absolute or p == 0 else abs(p)
            found.append(((m - n - p) / scale, (m - p) / scale, (m + n - p) / scale))
    return found


def scale_of(places: list[tuple[float, float, float] | None], relation: Relation) -> Scale | None:
    """A strip that shows every interval, unless one is so far off that the band would be lost; None if all is 0."""
    widest = max((max(abs(place[0]), abs(place[2])) for place in places if place), default=0.0)
    if widest == relation.tolerance == 0:
        return None
    reach = max(1.6 * relation.tolerance, 1.15 * widest)
    if relation.kind == "equals" and relation.tolerance:
        reach = min(reach, 8 * relation.tolerance)
    low = -relation.tolerance if relation.kind != "at most" else -math.inf
    high = relation.tolerance if relation.kind != "at least" else math.inf
    return Scale(reach, low, high)


def table(row: Mapping[str, Any]) -> tuple[list[Case], Scale | None]:
    r"""The cases of a row, their columns aligned, and the scale of their strips.

    >>> row = {"relation": "is at most the prediction", "measured": [1.0], "noise": [0.0], "predicted": [2.0],
    ...        "slack": 0.5, "cases": ["η = 1"], "verdict": "supported"}
    >>> table(row)[0][0].margin
    '+50.0\xa0%'
    """
    pairs = [interval(m, n) for m, n in zip(row["measured"], row["noise"], strict=True)]
    relation = relation_of(row)
    scale, texts = None, ["—"] * len(pairs)
    bounds: list[tuple[float, float] | None] = [None] * len(pairs)
    places: list[tuple[float, float, float] | None] = [None] * len(pairs)
    if relation is not None:
        places, bounds = offsets(row, relation), margins(row, relation)
        scale = scale_of(places, relation)
        for i, (bound, p) in enumerate(zip(bounds, row["predicted"], strict=True)):
            low = None if bound is None else bound[0]
            texts[i] = signed(low, 3) if relation.absolute or p == 0 else percent(low)
    columns = zip(
        row["cases"],
        align([mean for mean, _ in pairs]),
        align([half for _, half in pairs]),
        align([show(p) for p in row["predicted"]]),
        texts,
        [bound is not None and relation is not None and relation.holds(bound[0]) for bound in bounds],
        [None if place is None or scale is None else place_on(scale, place) for place in places],
        ["" if place is None or scale is None else scale.beyond(place[1]) for place in places],
        strict=True,
    )
    return [Case(*cells) for cells in columns], scale


def place_on(scale: Scale, place: tuple[float, float, float]) -> tuple[float, float, float]:
    low, mean, high = (scale.at(off) for off in place)
    return low, mean, high

"""Numbers of a stored run, read with tolerance and said with their errors."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = [
    "Spread",
    "brief",
    "finite",
    "last_third",
    "listed",
    "mapping",
    "number",
    "percent",
    "say",
    "sequence",
    "spread",
]

T = TypeVar("T")

BATCHES = 10
"""Of batch means: few enough that each is long against the memory of a run, and enough for an interval."""
STUDENT = 2.262
"""The 97.5 % point of Student's t with BATCHES − 1 = 9 degrees of freedom."""
BRIEF = 160
"""The characters of an error that are told: its first sentence, as a rule."""
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")


def number(value: Any) -> float | None:
    """A float, with the strings "nan", "inf" and "-inf" taken for what they say; None for what is no number.

    >>> number("inf"), number(2), number("two"), number(True)
    (inf, 2.0, None, None)
    """
    if isinstance(value, str) and value.lower() in ("nan", "inf", "-inf", "infinity", "-infinity"):
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return None


def finite(row: Any, key: str) -> float | None:
    """The number under a key where it is one and is finite.

    >>> finite({"loss": 2}, "loss"), finite({"loss": "nan"}, "loss"), finite({}, "loss")
    (2.0, None, None)
    """
    value = number(row.get(key)) if isinstance(row, Mapping) else None
    return value if value is not None and math.isfinite(value) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping as it is, an empty one for anything else.

    >>> mapping(None), mapping({"a": 1})
    ({}, {'a': 1})
    """
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    """A list or tuple as it is, an empty one for anything else.

    >>> sequence("text"), sequence([1])
    ((), [1])
    """
    return value if isinstance(value, (list, tuple)) else ()


def last_third(values: Sequence[T]) -> Sequence[T]:
    """The last third of a run, rounded up.

    >>> last_third([1, 2, 3, 4])
    [3, 4]
    """
    return values[len(values) - math.ceil(len(values) / 3) :]


@dataclass(frozen=True)
class Spread:
    """How numbers along a run lie: median, smallest, largest; from 20 on the mean and the half of its 95 % interval.

    The interval is by batch means, for what is measured along a run is not independent: ten stretches of equal length,
    their means taken for independent, Student's t. It holds only where the stretches are longer than the run's memory.

    >>> print(Spread(5, 2.0, 1.0, 3.0))
    median 2, range 1 to 3
    """

    count: int
    median: float
    low: float
    high: float
    mean: float | None = None
    half: float | None = None

    def __str__(self) -> str:
        if self.count == 1:
            return f"{say(self.median)}, one value"
        interval = "" if self.half is None else f"; mean {say(self.mean)} ± {self.half:.2g}, 95 % by batch means"
        return f"median {say(self.median)}, range {say(self.low)} to {say(self.high)}{interval}"


def spread(values: Iterable[float | None]) -> Spread | None:
    """The spread of what is finite; None where nothing is.

    >>> spread([3.0, None, 1.0, float("nan"), 2.0])
    Spread(count=3, median=2.0, low=1.0, high=3.0, mean=None, half=None)
    >>> spread([])
    >>> round(spread([0.0, 1.0] * 10).half, 6)  # each batch has the mean ½
    0.0
    """
    kept = [v for v in values if v is not None and math.isfinite(v)]
    if not kept:
        return None
    plain = (len(kept), statistics.median(kept), min(kept), max(kept))
    size = len(kept) // BATCHES
    if size < 2:
        return Spread(*plain)
    kept = kept[len(kept) - size * BATCHES :]
    top = max(map(abs, kept)) or 1.0
    means = [math.fsum(v / top for v in kept[i * size : (i + 1) * size]) / size for i in range(BATCHES)]
    half = STUDENT * statistics.stdev(means) / math.sqrt(BATCHES)
    return Spread(*plain, top * math.fsum(means) / BATCHES, top * half)


def say(value: float | None) -> str:
    """A number in three digits; a whole number below a milliard in all of its digits.

    >>> say(0.12345), say(1234567.8), say(115008), say(None)
    ('0.123', '1.23e+06', '115008', 'unknown')
    """
    if value is None:
        return "unknown"
    counted = abs(value) < 1e9 and value == int(value)
    return f"{value:.0f}" if counted or 999.5 <= abs(value) < 99999.5 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share in per cent; neither 0 nor 100 unless it is.

    >>> percent(0.984), percent(0.0123), percent(1), percent(0.99999), percent(1e-6)
    ('98 %', '1.2 %', '100 %', 'over 99.9 %', 'under 0.1 %')
    """
    if 0.999 < share < 1:
        return "over 99.9 %"
    if 0 < share < 0.001:
        return "under 0.1 %"
    digits = 1 if 0 < share < 0.0995 or 0.99 < share < 1 else 0
    return f"{100 * share:.{digits}f} %"


def listed(names: Iterable[Any], most: int = 3) -> str:
    """The first few of a list in words.

    >>> listed(["a", "b"]), listed("abcde"), listed([""])
    ('a, b', 'a, b, c and 2 more', 'the model itself')
    """
    shown = [str(name) or "the model itself" for name in names]
    rest = len(shown) - most
    return ", ".join(shown[:most]) + (f" and {rest} more" if rest > 0 else "")


def brief(words: object) -> str:
    """An error as it is where it is short; else its first sentence, of 160 characters at most; without the full stop.

    >>> brief("RuntimeError: no graph."), brief("It failed. " + 90 * "Help ")
    ('RuntimeError: no graph', 'It failed')
    >>> len(brief(200 * "x"))
    160
    """
    said = str(words).strip().partition("\n")[0].strip()
    if len(said) > BRIEF:
        said = SENTENCE.split(said)[0]
    return (said[: BRIEF - 1].rstrip() + "…" if len(said) > BRIEF else said).rstrip(".")

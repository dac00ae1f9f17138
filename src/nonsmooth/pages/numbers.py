"""Numbers as a reader of a paper writes them: few digits, −, and × 10⁻⁵ instead of e-05."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

__all__ = ["align", "interval", "percent", "prose", "readable", "setting", "show"]

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
FIGURE_SPACE, POINT_SPACE, THIN, FIXED = "\u2007", "\u2008", "\u2009", "\u00a0"
KEPT = re.compile(r"(?<=[≤≥=±]) (?=[\d−])|(?<=\d) (?=%)")
SCIENTIFIC = re.compile(r"(?<![\w.])([-−]?)([0-9]++(?:\.[0-9]++)?+)[eE]([+-]?[0-9]{1,4}+)(?![\w.]*\w)")


def power(exponent: int) -> str:
    return "10" + str(exponent).translate(SUPERSCRIPTS)


def plain(value: float, least: float = 1e-3) -> bool:
    """Whether a magnitude reads better without a power of ten."""
    return value == 0 or least <= abs(value) < 1e5


def show(value: float | None, digits: int = 4, trim: bool = True, least: float = 1e-3) -> str:
    r"""A number to so many significant digits; None is one that was not finite.

    Trailing zeros go with `trim`; below `least` it takes a power of ten.

    >>> show(1.23456), show(-2), show(3.1e-05), show(1e-9), show(None)
    ('1.235', '−2', '3.1\xa0×\xa010⁻⁵', '10⁻⁹', 'not finite')
    """
    if value is None or not math.isfinite(value):
        return "not finite"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if plain(value, least):
        text = f"{value:.{max(digits - 1 - int(exponent), 0)}f}"
        text = text.rstrip("0").rstrip(".") if trim and "." in text else text
        return text.replace("-", "−")
    if trim and "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    sign, mantissa = ("−" if value < 0 else ""), mantissa.lstrip("-")
    tens = power(int(exponent))
    return sign + (tens if mantissa == "1" else f"{mantissa}{FIXED}×{FIXED}{tens}")


def interval(mean: float | None, half: float | None) -> tuple[str, str]:
    """A mean to the digits that its half-width leaves (three at least, five at most), and the half-width to two.

    A half-width below 10⁻⁹ of the mean is rounding, and left out.

    >>> interval(0.100712, 0.00031)
    ('0.10071', '0.00031')
    >>> interval(2.0, 0.0)
    ('2', '')
    """
    if mean is None or half is None or half <= 1e-9 * abs(mean):
        return show(mean), ""
    if not mean:
        return show(mean), show(half, 2)
    digits = math.floor(math.log10(abs(mean))) - math.floor(math.log10(half)) + 2
    return show(mean, min(max(digits, 3), 5), trim=False), show(
        half, 2, trim=False, least=1e-4 if plain(mean) else 1e-3
    )


def percent(share: float | None) -> str:
    r"""A signed share of one hundred, three digits.

    >>> percent(0.0321), percent(-0.5), percent(None)
    ('+3.21\xa0%', '−50.0\xa0%', '—')
    """
    return "—" if share is None else signed(100 * share, 3, trim=share == 0) + f"{FIXED}%"


def signed(value: float | None, digits: int = 4, trim: bool = True) -> str:
    """As `show`, with + before what is positive."""
    return "—" if value is None else ("+" if value > 0 else "") + show(value, digits, trim)


def align(column: Sequence[str]) -> list[str]:
    r"""Cells padded to the right by spaces as wide as a digit, so that their points stand in line.

    >>> [cell.replace("\u2007", "_").replace("\u2008", ".") for cell in align(["1.25", "10", "0.5"])]
    ['1.25', '10.__', '0.5_']
    """
    tails = [len(cell.partition(".")[2]) if cell.replace(".", "").isdigit() else None for cell in map(unsigned, column)]
    widest = max((tail for tail in tails if tail is not None), default=0)
    pads = [
        "" if tail is None or tail == widest else (POINT_SPACE if tail == 0 else "") + FIGURE_SPACE * (widest - tail)
        for tail in tails
    ]
    return [cell + pad for cell, pad in zip(column, pads, strict=True)]


def unsigned(cell: str) -> str:
    return cell.lstrip("+−")


def readable(text: str) -> str:
    """Words with the machine's powers of ten as a reader knows them.

    >>> readable("1e-05")
    '10⁻⁵'
    """

    def tens(found: re.Match[str]) -> str:
        sign, mantissa, exponent = found.groups()
        power_of_ten = power(int(exponent))
        whole = power_of_ten if mantissa == "1" else f"{mantissa}{FIXED}×{FIXED}{power_of_ten}"
        return sign.replace("-", "−") + whole

    return SCIENTIFIC.sub(tens, text)


def prose(text: str) -> str:
    r"""`readable`, and no line is broken between a number and its sign.

    >>> prose("η ≤ 1e-05 (fails at 2.5e-5)")
    'η ≤\xa010⁻⁵ (fails at 2.5\xa0×\xa010⁻⁵)'
    """
    return KEPT.sub(FIXED, readable(text))


def setting(value: Any) -> str:
    """A parameter of an experiment in words.

    >>> setting([0.1, 1e-5, 20]), setting(None), setting("prox")
    ('0.1, 10⁻⁵, 20', 'none', 'prox')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return (
            str(value).replace("-", "−") if abs(value) < 10_000 else f"{value:,}".replace(",", THIN).replace("-", "−")
        )
    if isinstance(value, float):
        return show(value, 6)
    if isinstance(value, list):
        return ", ".join(map(setting, value))
    return str(value)

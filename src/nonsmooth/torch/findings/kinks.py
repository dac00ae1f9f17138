"""What kinks do in the run: their share of the gradient's change, units that switch, ties, and what hides kinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from nonsmooth.torch.findings.finding import Finding
from nonsmooth.torch.findings.numbers import finite, last_third, listed, mapping, number, percent, say, sequence, spread
from nonsmooth.torch.findings.record import Record, Row, last

__all__ = ["kinks"]

MOSTLY = 0.5
"""Above a half more of the gradient's change comes from kinks than from curvature."""
LITTLE = 0.1
"""Below a tenth what is said of curvature is right to its own accuracy, for sharpness is rarely known better."""
MOVED = 0.2
"""A share that changed by less from start to end is called steady."""
SWITCHING = 0.05
"""A step that moves more than a twentieth of all units to another piece leaves the piece that it was computed on."""
STAYS = 0.01
"""Below a hundredth the steps stay mostly on the piece that they were computed on."""
DEAD = 0.005
"""Half a hundredth of the units: what passes through so few of them is next to no gradient."""
SILENT = 0.1
"""Every tenth unit off for all of the data is a part of the layer that is paid for and does nothing ..."""
MOST = 0.5
"""... and half of them are most of it."""
ENOUGH = 5
"""Steps to be seen before a layer is said never to switch."""
SMOOTH = 1e-3
"""A kink share of a model without kinks is 0 but for rounding, and that is far below this."""
TIED = 0.01
"""A hundredth of the numbers on a kink: no coincidence of rounding any more, but zeros that are there by design."""
ROUNDED = 0.0
"""In half precision numbers land on kinks by rounding, so that there any tie is told."""
HALF = ("float16", "bfloat16", "half")
OUTSIDE = "(outside modules)"
"""The place of what no module does, in the names of the rows: losses, penalties, and a network without modules."""
IN_LOSS = "in the loss"
"""Of a row whose loss holds an L1 penalty: its |w| are among the units."""


def kinks(record: Record) -> Iterator[Finding]:
    """Kink share, units that switch, layers in which none does, ties, hidden kinks, a model without kinks.

    >>> rows = [{"kind": "step", "step": t, "kink_share": 0.9} for t in (1, 2, 3)]
    >>> [(finding.id, finding.number) for finding in kinks(Record({}, rows))]
    [('kink-share', 0.9)]
    """
    smooth = bool(record.operations) and not record.kinks
    if smooth:
        yield from _none(record)
    else:
        yield from _share(record)
    yield from _dead(record)
    yield from _silent(record)
    yield from _flips(record)
    yield from _ties(record)
    yield from _hidden(record)


def hidden(record: Record) -> list[str]:
    """What may hide kinks, by the census and by the steps, each once.

    >>> hidden(Record({}, [{"kind": "step", "unseen": ["rnn_relu in 0"]}]))
    ['rnn_relu in 0']
    """
    rows = [mapping(row) for row in sequence(mapping(record.facts.get("census")).get("hidden"))]
    found = [" in ".join(filter(None, (f"{r.get('kind', '')}: {r.get('what', '')}", _place(r)))) for r in rows if r]
    unseen = (str(what) for row in record.steps for what in sequence(row.get("unseen")))
    return list(dict.fromkeys([*found, *unseen]))


def _place(row: Row) -> str:
    return str(row.get("place") or row.get("module") or "")


def _layers(rows: Sequence[Row], key: str) -> dict[str, list[float]]:
    """The finite values of each layer over the rows."""
    found: dict[str, list[float]] = {}
    for row in rows:
        by = mapping(row.get(key))
        for layer in by:
            value = finite(by, layer)
            if value is not None:
                found.setdefault(str(layer), []).append(value)
    return found


def _layer(name: str) -> str:
    return f"layer {name!r}" if name else "the model itself"


def _network_layers(rows: Sequence[Row], key: str) -> dict[str, list[float]]:
    """As `_layers`, without what comes after a network: a margin that is met, or a clip that is not, is no unit."""
    return {
        layer: values
        for layer, values in _layers(rows, key).items()
        if layer != OUTSIDE and not layer.lower().endswith("loss")
    }


def switched(record: Record) -> list[tuple[float, float | None, float]]:
    """Of each step in the last third: the unit outputs that switched, their share of all, and what is left out.

    Where units were counted. Left out is what switched outside of modules while an L1 penalty was in the loss: there
    are the weights under its |w|, which are no units.

    >>> row = {"kind": "step", "flipped": 9, "units": 50, "flips_by_layer": {"1": 2, OUTSIDE: 7}}
    >>> switched(Record({}, [row]))
    [(9.0, 0.18, 0.0)]
    >>> switched(Record({"l1": {"weights": 10}}, [row | {"penalty": "in the loss"}]))
    [(2.0, 0.05, 7.0)]
    """
    weights = finite(record.facts.get("l1"), "weights")
    found = []
    for row in last_third([row for row in record.steps if row.get("units") != 0]):
        flips, units, by = finite(row, "flipped"), finite(row, "units"), mapping(row.get("flips_by_layer"))
        left = finite(by, OUTSIDE) if row.get("penalty") == IN_LOSS else None
        if flips is None or (left is not None and len(by) == 1):
            continue
        if left is not None:
            flips, units = flips - left, None if weights is None or units is None else units - weights
        found.append((flips, flips / units if units and units > 0 else None, left or 0.0))
    return found


def _share(record: Record) -> Iterator[Finding]:
    seen = spread(last(record.steps, "kink_share"))
    if seen is None:
        return
    rows, name = last_third(record.steps), record.kink_names
    at, first = seen.median, spread(finite(row, "kink_share") for row in record.steps[: len(rows)])
    evidence = f"Kink share: {seen}; the last third, {record.late(rows)}. "
    smooth, kink = spread(last(record.steps, "smooth")), spread(last(record.steps, "kink"))
    if smooth is not None and kink is not None:
        evidence += f"κ_smooth {say(smooth.median)}, κ_kink {say(kink.median)} (medians, frozen split). "
    if first is not None and len(record.steps) >= ENOUGH:
        steady = abs(at - first.median) < MOVED
        evidence += "Much the same in the first third. " if steady else f"In the first third {percent(first.median)}. "
    layers = {layer: value for layer, v in _layers(rows, "kink_share_by_layer").items() if (value := spread(v))}
    if len(layers) > 1 and at:
        top = max(layers, key=lambda layer: layers[layer].median)
        evidence += f"Highest in {_layer(top)}, {percent(layers[top].median)}. "
    evidence += record.data(rows)
    lower, early = "At least " if hidden(record) else "", record.early(rows)
    told: dict[str, Any] = {"number": at, "unit": "of the change of the gradient"}
    part = "of the change of the gradient over a step"
    if at >= MOSTLY:
        title = f"{percent(at)} {part} comes from {name}, not from curvature{early}: the Hessian does not see it."
    elif at >= LITTLE or lower:
        title = (
            f"{percent(at)} {part} comes from {name}{early}: the Hessian sees {'at most ' if lower else ''}the rest."
        )
    elif at:
        title = f"Only {percent(at)} {part} comes from {name}{early}: the Hessian sees almost all of it."
    else:
        title = f"None {part} comes from {name}{early}: the Hessian sees all of it."
    title = f"{lower}{title}"
    title = title[0].upper() + title[1:]
    do = "Nothing has to be changed for it. Where you choose a learning rate, read κ (`measure_step`), not sharpness."
    trial = record.trial("smooth")
    if trial is not None:
        do += f" {trial.told('smooth twins of the kinks')}"
    why = (
        "Sharpness and bounds by second derivatives describe only the rest. It is a share of the gradient's change, "
        "not of κ, in which kinks and curvature may oppose."
    )
    if at < LITTLE:
        why = "At this step length a sharpness plot, or a bound by second derivatives, describes what the steps meet."
        why += " What may hide kinks is left out of that." if lower else ""
        yield Finding("kink-share", "fine", title, evidence, why, **told)
    else:
        yield Finding("kink-share", "note", title, evidence, why, do, **told)


def _none(record: Record) -> Iterator[Finding]:
    shares = spread(finite(row, "kink_share") for row in record.steps)
    worst = None if shares is None else shares.high
    counted = f"The census saw {len(record.operations)} operations, none with a kink where a gradient passes. "
    if hidden(record):
        return  # `hidden-kinks` says it
    if worst is not None and worst > SMOOTH:
        yield Finding(
            "no-kinks",
            "note",
            f"The census sees no kinks, yet the steps show a kink share of up to {percent(worst)}: one is wrong.",
            f"{counted}Kink share of the steps: {shares}; {record.where(record.steps)}.",
            "The census looked at one forward pass; the steps may have taken another path, or a penalty has kinks.",
            "Compare `nonsmooth census` on the batch of such a step; if they still differ, please report it.",
            number=worst,
            unit="kink share",
        )
        return
    measured = (
        f"Kink share over {record.where(record.steps)}: {f'at most {say(worst)}, 0 but for rounding' if worst else 0}."
        if shares
        else ""
    )
    share = "; kink share 0, as must be" if shares else ""
    aside = ", the penalty aside" if mapping(record.facts.get("l1")) else ""
    yield Finding(
        "no-kinks",
        "fine",
        f"This model has no kinks{aside}{share}.",
        counted + (measured or "No step was measured."),
        "What the Hessian says of this model is all there is, and L-smooth theory may apply: its conditions decide.",
        number=worst,
        unit="kink share" if shares else "",
    )


def _flips(record: Record) -> Iterator[Finding]:
    rows, counts = last_third(record.steps), switched(record)
    seen, part, left = (spread(values) for values in zip(*counts, strict=True)) if counts else (None, None, None)
    if seen is None or left is None or (bool(record.operations) and not record.kinks and not seen.high):
        return
    totals = Counter({layer: sum(values) for layer, values in _layers(record.steps, "flips_by_layer").items()})
    evidence = f"Unit outputs whose piece changed in a step: {seen}; the last third, {record.late(rows)}. "
    if left.high:
        del totals[OUTSIDE]
        evidence += (
            f"{say(left.median)} more switch outside of modules and are left out: the weights under |w| are there. "
        )
    whole = sum(totals.values())
    if whole and len(totals) > 1:
        top, most = totals.most_common(1)[0]
        evidence += f"{percent(most / whole)} of all {'these ' if left.high else ''}switches are "
        evidence += "outside of modules. " if top == OUTSIDE else f"in {_layer(top)}. "
    many = part is not None and part.median >= SWITCHING
    of = f", {percent(part.median)} of all" if part is not None else ""
    yield Finding(
        "flips",
        "note" if many else "fine",
        f"{say(seen.median)} unit outputs (units × samples) switch to another piece in a step{of}{record.early(rows)}.",
        evidence + record.data(rows),
        "Such a step leaves the piece on which its gradient was computed, and with it what was known there, "
        "sharpness and local bounds."
        if many
        else "The steps stay mostly on the piece on which their gradients were computed."
        if part is not None and part.median < STAYS
        else "Such a step leaves the piece on which its gradient was computed, if in few units.",
        "Nothing by itself. Shorter steps switch fewer." if many else "",
        number=seen.median,
        unit="unit outputs a step",
    )
    layers = _network_layers(record.steps, "flips_by_layer")
    still = [layer for layer, values in layers.items() if not any(values) and len(values) >= ENOUGH]
    others = sum(v for values in layers.values() for v in values)
    if still and others:
        yield Finding(
            "no-flips",
            "note",
            f"In {len(still)} of {len(layers)} layers with kinks no unit ever switched{record.early(record.steps)}: "
            f"{listed(still)}.",
            f"0 switches there over {record.where(record.steps)}; {say(others)} elsewhere. {record.data(record.steps)}",
            "There the layer was linear with a fixed mask: units dead, always on, or only slow. Dead ones get no "
            "gradient, and no pruning score by gradients reaches them.",
            "Look at how often its units are active; if they never are, try a lower learning rate, a leaky kink, or "
            "another initial scale. None of these was tried here.",
            number=float(len(still)),
            unit="layers",
        )


def _off(record: Record) -> dict[str, float]:
    """The layers that are dead as a whole, and the share of their units that are on."""
    layers = _network_layers(record.steps, "active_by_layer")
    return {layer: late for layer, values in layers.items() if (late := max(last_third(values))) <= DEAD}


def _dead(record: Record) -> Iterator[Finding]:
    layers, off = _network_layers(record.steps, "active_by_layer"), _off(record)
    if not off:
        return
    rows = last_third(record.steps)
    most = max(off.values())
    yield Finding(
        "dead-layers",
        "problem" if len(rows) >= ENOUGH else "note",
        f"{'All' if not most else f'More than {percent(1 - most)} of the'} ReLUs are off in {len(off)} of "
        f"{len(layers)} layers{record.early(rows)}: {listed(map(_layer, off))}.",
        f"The share of units that pass their input on, at its largest in the last third, {record.late(rows)}. "
        f"{record.data(rows)}",
        "A unit that is off passes no gradient: what lies before it does not learn. Low sharpness and few kinks "
        "are then signs of a dead network, not of a calm one.",
        f"Begin again with {'' if record.several else 'a lower learning rate, '}a warm-up, normalisation, or a kink "
        "that leaks (LeakyReLU). None of these was tried here.",
        number=most,
        unit="of the units on",
    )


def _silent(record: Record) -> Iterator[Finding]:
    """Of layers that are not dead as a whole."""
    dead = _off(record)
    layers = {layer: min(last_third(off)) for layer, off in _network_layers(record.steps, "silent_by_layer").items()}
    off = Counter({layer: least for layer, least in layers.items() if least >= SILENT and layer not in dead})
    if not off:
        return
    rows = last_third(record.steps)
    (worst, most), *others = off.most_common()
    also = listed(f"{percent(least)} in {_layer(layer)}" for layer, least in others)
    yield Finding(
        "silent-units",
        "problem" if most >= MOST and len(rows) >= ENOUGH else "note",
        f"{percent(most)} of the ReLU units in {_layer(worst)} are off for all of the data{record.early(rows)}.",
        f"{f'And {also}. ' if also else ''}The share that passed nothing on for any sample, at its least in the last "
        f"third, {record.late(rows)}. {record.data(rows)}",
        "A unit that is off gets no gradient: it costs memory and time, and does not learn.",
        f"Another initial scale, {'' if record.several else 'a lower learning rate, '}normalisation, or a kink that "
        "leaks (LeakyReLU) keeps more of them on. None of these was tried here.",
        number=most,
        unit="of the units off",
    )


def _ties(record: Record) -> Iterator[Finding]:
    tied = [row for row in record.kinks if finite(row, "exact")]
    exact = sum(finite(row, "exact") or 0.0 for row in tied)
    counted = sum(finite(row, "numbers") or 0.0 for row in record.kinks if finite(row, "exact") is not None)
    after = [value for row in record.steps if (value := finite(row, "ties"))]
    if not exact and not after:
        return
    share = exact / counted if counted else None
    half = record.facts.get("scaled") is True or any(
        name in str(mapping(record.facts.get("model")).get("dtype", "")) for name in HALF
    )
    many = (share or 0.0) > (ROUNDED if half else TIED) or (bool(after) and share is None)
    tops = sorted(tied, key=lambda row: -(finite(row, "exact") or 0.0))
    evidence = ""
    if exact:
        evidence = "Census of one forward pass: " + "; ".join(_tie(row) for row in tops[:3]) + ". "
    if after:
        evidence += f"Ties were there after {len(after)} of {record.where(record.steps)}, {spread(after)}. "
        evidence += record.data(record.steps)
    what = f"{exact:.0f} of {counted:.0f} numbers" if exact else f"{say(spread(after).median)} unit outputs"  # type: ignore[union-attr]
    where = "" if share is None or not exact else f" ({percent(share)})"
    why = "There the gradient is autodiff's choice, and another spelling of the same function chooses otherwise."
    if half:
        why += " In half precision numbers land there by rounding, and often."
    elif not many:
        why += " So few rarely matter."
    do = ""
    if many:
        do = "Find out whether they are zeros by design (a pooled window that ReLU made 0, padding, dead inputs, zero "
        do += "weights), which is harmless, or by "
        do += "rounding: then compare a few steps in float32." if half else "chance."
    yield Finding(
        "ties",
        "note" if many else "fine",
        f"{what}{where} lie exactly on a kink.",
        evidence.strip(),
        why,
        do,
        number=share if share is not None and exact else spread(after).median if after else None,  # type: ignore[union-attr]
        unit="of the numbers at kinks" if share is not None and exact else "units",
    )


def _tie(row: Row) -> str:
    of = f" of {numbers:.0f}" if (numbers := finite(row, "numbers")) is not None else ""
    where = f" in {_place(row)}" if _place(row) else ""
    said = f"{row.get('name', 'an operation')}{where} {finite(row, 'exact'):.0f}{of}"
    points = [sequence(point) for point in sequence(row.get("returned"))]
    returned = [f"{_vector(point[1])} at {point[0]}" for point in points if len(point) == 2 and _known(point[1])]
    return said + (f" (torch returns {listed(returned, 2)})" if returned else "")


def _known(values: object) -> bool:
    return bool(sequence(values)) and all(number(v) is not None for v in sequence(values))


def _vector(values: object) -> str:
    shown = [say(number(v)) for v in sequence(values)]
    return shown[0] if len(shown) == 1 else f"({', '.join(shown[:3])}{', …' if len(shown) > 3 else ''})"


def _hidden(record: Record) -> Iterator[Finding]:
    found = hidden(record)
    if not found:
        return
    places = "place may hide" if len(found) == 1 else "places may hide"
    yield Finding(
        "hidden-kinks",
        "note",
        f"{len(found)} {places} kinks from the measurement: read the kink share as a lower bound.",
        f"{listed(found, 4)}.",
        "A kink that is not seen counts as curvature, so that κ_smooth is too large by it.",
        "Where it is code of yours, spell it with torch.where, relu or abs, which are seen.",
        number=float(len(found)),
        unit="places",
    )

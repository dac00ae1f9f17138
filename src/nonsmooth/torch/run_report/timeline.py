"""The timeline: what was measured against the step, as figures, or a sentence where it was not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nonsmooth.pages import drawn_plot
from nonsmooth.pages.numbers import show
from nonsmooth.plots import Axis, Heat, Line, Plot
from nonsmooth.torch.findings.bounds import Bound, descent_bounds
from nonsmooth.torch.findings.kinks import OUTSIDE
from nonsmooth.torch.findings.record import Record
from nonsmooth.torch.run_report.folder import Run, number

__all__ = ["Section", "positive", "series", "thinned", "timeline"]

MANY_POINTS = 2000
"""Of a longer series the lowest and the highest of each stretch are drawn."""
MANY_COLUMNS = 240
"""Of more measured steps a heat map shows so many, evenly spread."""
FEW_LAYERS = 4
"""So many layers have a line each; more make a heat map."""

STEP = Axis("step")
DESCENT = "Dashed, the descent lemma f + ⟨g, D⟩ + (L/2)‖D‖² for each measured step D, with an L known before it."
BATCHES = (
    "The steps were measured on data of their own: each is a function of its own, and L is carried over between them."
)
L_OF = {
    "largest": (
        "bound with the largest L",
        "The largest L is that of {what} before the step: it assumes that the gradient never changes faster than it "
        "has so far.",
    ),
    "sharpness": (
        "bound with L = λ₁",
        "L = λ₁ is the last sharpness before the step: it assumes that the Hessian, which no kink enters, tells how "
        "fast the gradient changes.",
    ),
}


@dataclass(frozen=True)
class Section:
    """A part of the timeline: figures as the page draws them, and sentences on what is not drawn.

    >>> Section("loss", "The loss", (), ("No loss was measured.",)).plots
    ()
    """

    anchor: str
    title: str
    plots: tuple[dict[str, Any], ...]
    says: tuple[str, ...] = ()


def timeline(run: Run) -> list[Section]:
    """Loss, curvature, kink share, flips and chatter of a run, in this order.

    >>> [section.title for section in timeline(Run("a", {}, (), ()))]
    ['The loss', 'Curvature', 'Kink share', 'Flips', 'Chatter']
    """
    return [_loss(run), _curvature(run), _kinks(run), _flips(run), _chatter(run)]


# --- series ----------------------------------------------------------------------------------------------------------


def series(rows: Sequence[dict[str, Any]], field: str) -> tuple[list[int], list[float]]:
    """The steps at which a field was measured and its values; what is not finite stays, as a gap.

    >>> series([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": "inf"}], "loss")
    ([1, 3], [2.0, inf])
    """
    kept = [row for row in rows if row.get(field) is not None]
    return [row["step"] for row in kept], [number(row[field]) for row in kept]


def thinned(x: Sequence[int], y: Sequence[float], most: int = MANY_POINTS) -> tuple[list[int], list[float]]:
    """At most about `most` points: the lowest and the highest of each stretch, so that no spike is lost.

    >>> thinned(range(6), [0.0, 5.0, 1.0, 2.0, -3.0, 2.0], most=4)
    ([0, 1, 3, 4], [0.0, 5.0, 2.0, -3.0])
    """
    if len(x) <= most:
        return list(x), list(y)
    stretch = math.ceil(2 * len(x) / most)
    kept: set[int] = set()
    for start in range(0, len(x), stretch):
        part = range(start, min(start + stretch, len(x)))
        rank = lambda i: y[i] if not math.isnan(y[i]) else math.inf  # noqa: E731
        kept |= {min(part, key=rank), max(part, key=rank)}
    order = sorted(kept)
    return [x[i] for i in order], [y[i] for i in order]


def _line(name: str, points: tuple[list[int], list[float]], style: Any = "line") -> Line | None:
    x, y = thinned(*points)
    if not any(map(math.isfinite, y)):
        return None
    return Line(name, x, y, "markers" if len(x) == 1 else style)


def _lines(*lines: Line | None) -> list[Line]:
    return [line for line in lines if line is not None]


def positive(*lines: Line) -> bool:
    """Whether a log axis has a place for all that is finite.

    >>> positive(Line("loss", [1, 2], [0.5, float("nan")])), positive(Line("loss", [1], [0.0]))
    (True, False)
    """
    return all((np.asarray(line.y)[np.isfinite(line.y)] > 0).all() for line in lines)


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _thinning(n: int) -> str:
    return f" Of {n} values the lowest and highest of each stretch are drawn." if n > MANY_POINTS else ""


# --- the loss and the bounds -----------------------------------------------------------------------------------------


def _loss(run: Run) -> Section:
    trace, steps = series(run.of("trace"), "loss"), run.of("step")
    after = series(steps, "loss_after")
    lines = _lines(
        _line("the script's loss", trace), _line("loss of the probe's data, after the step", after, "markers")
    )
    if not lines:
        return Section("loss", "The loss", (), ("No loss was measured.",))
    log = positive(*lines)
    own = (
        "What the script called backward on before each step, and the loss of the probe's data after each measured "
        "step." + _thinning(len(trace[0]))
        if trace[0]
        else "The loss of the probe's data after each measured step; what the script called backward on was not seen."
    )
    first = Plot(STEP, Axis("loss", log), lines, title="The run’s own loss", says=own)
    record = Record(run.facts, run.rows)
    bounds = descent_bounds(record)
    if not bounds:
        lacking = "L-smooth bounds are not drawn: they need two measured steps at least."
        return Section("loss", "The loss", (drawn_plot(first.to_dict(), "loss", 0),), (lacking,))
    promised = _lines(
        _line("loss of the probe's data, after the step", after, "markers"),
        *(_line(L_OF[b.kind][0], ([row["step"] for row in b.rows], list(b.values)), "dash") for b in bounds),
    )
    second = Plot(
        STEP,
        Axis("loss after the step", log),
        promised,
        title="What L-smooth theory promised",
        says=" ".join(
            [
                DESCENT,
                *(_promise(b, record) for b in bounds),
                *([BATCHES] if record.noisy(record.steps) else []),
            ]
        ),
    )
    plots = tuple(drawn_plot(plot.to_dict(), "loss", i) for i, plot in enumerate((first, second)))
    return Section("loss", "The loss", plots)


def _promise(bound: Bound, record: Record) -> str:
    assumes = L_OF[bound.kind][1].format(what="all ‖Δg‖/‖D‖" + ("" if record.preconditioned else " and λ₁"))
    said = f"{assumes} The loss ended above that bound at {len(bound.exceeded)} of {_count(len(bound.rows), 'step')}"
    pairs = [(value, number(row.get("loss_after"))) for row, value in zip(bound.rows, bound.values, strict=True)]
    times = sorted(value / after for value, after in pairs if after > 0 and math.isfinite(after))
    median = times[len(times) // 2] if times else 0.0
    return said + (f"; at the median step it is {show(median, 2)} times the loss that came." if median > 1.01 else ".")


# --- curvature -------------------------------------------------------------------------------------------------------


def _curvature(run: Run) -> Section:
    steps, sharp, own = run.of("step"), run.of("stability"), Record(run.facts, run.rows).preconditioned
    met = _lines(
        _line("κ", series(steps, "curvature")),
        _line("its smooth part", series(steps, "smooth")),
        _line("its kink part", series(steps, "kink")),
        _line("orbit curvature κ̄", series(steps, "orbit_curvature")),
    )
    threshold = series(steps, "threshold") if series(steps, "threshold")[0] else series(sharp, "threshold")
    says, plots = [], []
    if not own:
        met += _lines(
            _line("sharpness λ₁", series(sharp, "sharpness"), "markers"),
            _line("the optimiser's threshold", threshold, "dash"),
        )
    if met:
        plots.append(Plot(STEP, Axis("curvature"), met, title="What the steps met", says=_met(steps, not own)))
    else:
        says.append("No curvature was measured.")
    if own:
        ratios = _lines(
            _line("sharpness over the threshold", series(sharp, "ratio"), "markers"),
            _line("the step's curvature over the threshold", series(steps, "step_ratio")),
        )
        if ratios:
            reached = np.concatenate([np.asarray(ratio.x) for ratio in ratios])
            ratios.append(Line("the threshold", [int(reached.min()), int(reached.max())], [1.0, 1.0], "dash"))
            told = (
                "This optimiser has its own metric (what it divides each coordinate by, or rates that differ by "
                "group), so both curvatures are taken in it, as parts of its threshold." + _above(steps, sharp)
            )
            plots.append(Plot(STEP, Axis("over the threshold"), ratios, title="Against the threshold", says=told))
        else:
            says.append("No ratio to the optimiser's threshold was measured.")
    elif not sharp:
        says.append("Sharpness λ₁ was not measured.")
    elif not threshold[0]:
        says.append("This optimiser has no threshold that is known.")
    return Section(
        "curvature", "Curvature", tuple(drawn_plot(p.to_dict(), "curvature", i) for i, p in enumerate(plots)), (*says,)
    )


def _met(steps: Sequence[dict[str, Any]], plain: bool) -> str:
    told = "κ is the curvature along each step: the sum of its smooth part and its kink part (frozen split)."
    pairs = [(number(r.get("curvature")), number(r.get("threshold"))) for r in steps]
    pairs = [(k, t) for k, t in pairs if math.isfinite(k) and math.isfinite(t)]
    if plain and pairs:
        beyond = sum(k > t for k, t in pairs)
        told += f" κ was above the optimiser's threshold at {beyond} of {_count(len(pairs), 'measured step')}."
    parts = [(number(r.get("smooth")), number(r.get("kink"))) for r in steps]
    parts = [(s, k) for s, k in parts if math.isfinite(s) and math.isfinite(k)]
    if parts:
        larger = sum(abs(k) > abs(s) for s, k in parts)
        told += f" The kink part was the larger at {larger} of {len(parts)}."
    return told


def _above(steps: Sequence[dict[str, Any]], sharp: Sequence[dict[str, Any]]) -> str:
    said = ""
    for rows, field, name in ((sharp, "ratio", "Sharpness"), (steps, "step_ratio", "The step's curvature")):
        values = [v for v in series(rows, field)[1] if math.isfinite(v)]
        if values:
            said += f" {name} was above it at {sum(v > 1 for v in values)} of {len(values)}."
    return said


# --- by layer --------------------------------------------------------------------------------------------------------


def _kinks(run: Run) -> Section:
    steps = run.of("step")
    points = series(steps, "kink_share")
    whole = _line("the whole model", points)
    finite = [v for v in points[1] if math.isfinite(v)]
    if whole is None:
        return Section("kink-share", "Kink share", (), ("No kink share was measured.",))
    if not any(finite):
        return Section("kink-share", "Kink share", (), (f"It was 0 at {_count(len(finite), 'measured step')}.",))
    told = "The part of the gradient's change along a step that came of kinks: 0 none of it, 1 all. "
    told += f"Mean {show(sum(finite) / len(finite), 2)} over {_count(len(finite), 'step')}."
    undefined = len(points[1]) - len(finite)
    if undefined:
        told += f" At {_count(undefined, 'step')} it is undefined, and the line has a gap."
    layers, heat = _by_layer(steps, "kink_share_by_layer", "kink share", "Blank: undefined, or not measured.")
    plots = [_whole(whole, layers, Axis("kink share"), heat, told)]
    return _layered("kink-share", "Kink share", plots, heat, layers)


def _flips(run: Run) -> Section:
    steps = run.of("step")
    points = series([row for row in steps if number(row.get("units")) != 0], "flipped")
    whole = _line("the whole model", points)
    if whole is None:
        return Section("flips", "Flips", (), ("No flips were counted.",))
    total = max((number(r.get("units")) for r in steps if r.get("units") is not None), default=math.nan)
    told = "Unit outputs (units × samples) whose active piece was another after the step than before"
    told += f", of {total:.0f} with kinks." if math.isfinite(total) else "."
    if any(OUTSIDE in (row.get("flips_by_layer") or {}) for row in steps):
        told += " Outside of modules are the loss’s own kinks, and the weights under a penalty’s |w|, one by one."
    layers, heat = _by_layer(steps, "flips_by_layer", "log₁₀ unit outputs flipped", "Blank: nothing flipped.", log=True)
    plots = [_whole(whole, layers, Axis("unit outputs flipped"), heat, told)]
    return _layered("flips", "Flips", plots, heat, layers)


def _whole(whole: Line, layers: Sequence[Line], axis: Axis, heat: Any, says: str) -> Plot:
    alone = len(layers) == 1 and list(layers[0].y) == list(whole.y)  # type: ignore[arg-type]
    if not layers:
        whole = replace(whole, name="")
    return Plot(STEP, axis, [whole, *([] if alone else layers)], title="The whole model" if heat else "", says=says)


def _layered(
    anchor: str, title: str, plots: list[Plot], heat: dict[str, Any] | None, layers: Sequence[Line]
) -> Section:
    drawn = [drawn_plot(plot.to_dict(), anchor, i) for i, plot in enumerate(plots)]
    if heat is not None:
        drawn.append(drawn_plot(heat, anchor, len(drawn)))
    lacking = () if heat is not None or layers else ("It was not measured by layer.",)
    return Section(anchor, title, tuple(drawn), lacking)


def _by_layer(
    steps: Sequence[dict[str, Any]], field: str, title: str, blank: str, log: bool = False
) -> tuple[list[Line], dict[str, Any] | None]:
    """A line for each of few layers, or a heat map of many; the first layer is at the top."""
    rows = [row for row in steps if row.get(field)]
    names = list(dict.fromkeys(name for row in rows for name in row[field]))
    if not names:
        return [], None
    if len(names) <= FEW_LAYERS:
        points = (
            (
                "outside of modules" if name == OUTSIDE else f"layer {name}" if name else "the model itself",
                ([r["step"] for r in rows], [number(r[field].get(name, math.nan)) for r in rows]),
            )
            for name in names
        )
        return _lines(*(_line(name, mine) for name, mine in points)), None
    stride = max(1, math.ceil(len(rows) / MANY_COLUMNS))
    shown = rows[::stride]
    names.reverse()
    z = [[_logarithm(v) if log else v for v in (number(r[field].get(name)) for r in shown)] for name in names]
    heat = Heat(title, [r["step"] for r in shown], list(range(1, len(names) + 1)), z)
    every = f" Every {stride}th measured step is shown." if stride > 1 else ""
    said = f"In the model's order, from the top.{every}"
    plot = Plot(STEP, Axis("layer"), (), heat, title="By layer", says=said).to_dict()
    plot["y"]["names"], plot["blank"] = names, blank
    if not log:
        plot["range"] = [0, 1]
    return [], plot


def _logarithm(value: float) -> float:
    return math.log10(value) if value > 0 else math.nan


# --- chatter ---------------------------------------------------------------------------------------------------------


def _chatter(run: Run) -> Section:
    rows = run.of("chatter")
    if not rows:
        said = "Chatter was not measured: no window of steps was complete, in which the signs of weights are followed."
        return Section("chatter", "Chatter", (), (said,))
    tracked = max((number(row.get("weights")) for row in rows if row.get("weights") is not None), default=math.nan)
    window = number(rows[-1].get("window"))
    over = f" in a window of {show(window)} steps" if math.isfinite(window) else ""
    of = f"{tracked:.0f} weights are followed; " if math.isfinite(tracked) else ""
    wanted = (
        ("chattering", "weights", f"{of}these changed sign again and again{over}.", "Chattering weights"),
        ("amplitude", "mean |w|", "How far from 0 the chattering weights stand.", "Amplitude"),
        (
            "norm",
            "‖w‖₁",
            "The L1 norm of the weights followed, penalised or not: it cannot fall below what chatters.",
            "L1 norm",
        ),
    )
    plots = []
    for field, axis, says, title in wanted:
        line = _line("", series(rows, field))
        if line is not None:
            log = field != "chattering" and positive(line)
            plots.append(drawn_plot(Plot(STEP, Axis(axis, log), [line], title=title, says=says).to_dict(), field, 0))
    return Section("chatter", "Chatter", tuple(plots), () if plots else ("Its numbers were not finite.",))

"""Two runs in the same figures."""

from __future__ import annotations

import math
from typing import Any

from nonsmooth.pages import drawn_plot
from nonsmooth.plots import Axis, Line, Plot
from nonsmooth.torch.findings.record import Record
from nonsmooth.torch.run_report.folder import Run, number
from nonsmooth.torch.run_report.timeline import Section, positive, series, thinned

__all__ = ["overlaid"]

CURVES: tuple[tuple[str, str, tuple[tuple[str, str, str, str], ...]], ...] = (
    (
        "loss",
        "The loss",
        (
            ("trace", "loss", "loss", "What the scripts called backward on"),
            ("step", "loss_after", "loss", "Of the probes' data, after each measured step"),
        ),
    ),
    (
        "curvature",
        "Curvature",
        (
            ("step", "curvature", "κ", "Step curvature κ"),
            ("step", "kink", "kink part of κ", "Its kink part"),
        ),
    ),
    ("kink-share", "Kink share", (("step", "kink_share", "kink share", ""),)),
    (
        "threshold",
        "Against the threshold",
        (
            ("stability", "ratio", "over the threshold", "Sharpness"),
            ("step", "step_ratio", "over the threshold", "The step's curvature"),
        ),
    ),
)
"""Section, title, and each panel's kind of row, field, axis and title."""


def overlaid(a: Run, b: Run) -> list[Section]:
    """Loss, κ and its kink part, kink share and the ratios to the threshold: a line of each run, against the step.

    A figure that only one run has is drawn, and says so, as is a curve of one point; what neither has is a sentence.

    >>> rows = tuple({"step": t, "kind": "trace", "loss": 1.0 / t} for t in (1, 2))
    >>> sections = overlaid(Run("A", {}, rows, ()), Run("B", {}, rows, ()))
    >>> [line["name"] for line in sections[0].plots[0]["lines"]], sections[2].says
    (['A', 'B'], ('Neither run measured: kink share.',))
    """
    return [_section(a, b, *curve) for curve in CURVES]


def _section(a: Run, b: Run, anchor: str, title: str, panels: tuple[tuple[str, str, str, str], ...]) -> Section:
    plots: list[dict[str, Any]] = []
    lacking = []
    for kind, field, axis, heading in panels:
        lines, absent, alone = [], [], []
        for run in (a, b):
            x, y = series(_rows(run, kind), field)
            points = [step for step, value in zip(x, y, strict=True) if math.isfinite(value)]
            if points:
                lines.append(Line(run.name, *thinned(x, y), "markers" if len(points) == 1 else "line"))
                alone += [f"{run.name} has one point, at step {points[0]}. "] if len(points) == 1 else []
            else:
                absent.append(run.name)
        if not lines:
            lacking.append((heading or axis).lower())
            continue
        log = anchor == "loss" and positive(*lines)
        said = "".join(alone) + (f"Not measured in {absent[0]}. " if absent else "")
        if field == "curvature" and len({Record(run.facts, run.rows).preconditioned for run in (a, b)}) > 1:
            said += "κ is in the units of the weights; the two optimisers' thresholds are not."
        plot = Plot(Axis("step"), Axis(axis, log), lines, title=heading, says=said.strip())
        drawn = drawn_plot(plot.to_dict(), "compared", len(plots)) | {"file": f"{anchor}-{len(plots) + 1}"}
        if len(lines) == 2:
            drawn["lines"][0]["width"] = 3  # what the second covers is seen still
        plots.append(drawn)
    says = (f"Neither run measured: {', '.join(lacking)}.",) if lacking else ()
    return Section(anchor, title, tuple(plots), says)


def _rows(run: Run, kind: str) -> list[dict[str, Any]]:
    """The rows of a kind; where a step's ratio was not written, κ over the threshold on κ."""
    rows = run.of(kind)
    if kind != "step":
        return rows
    ratios = [number(row.get("curvature")) / (number(row.get("threshold")) or math.nan) for row in rows]
    return [
        row if row.get("step_ratio") is not None or math.isnan(ratio) else row | {"step_ratio": ratio}
        for row, ratio in zip(rows, ratios, strict=True)
    ]

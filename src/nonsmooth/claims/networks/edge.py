"""Sentence 4 on networks: full-batch GD at the edge of stability, and what each measure of curvature says there.

All figures are in units of 2/η, means over the steps looked at in the tail of a run. η is `start` · 2/λ₁(0), with λ₁(0)
the mean over three seeds that are not tested. `start`, sizes, tails and tolerances were set on seeds from 900 on, so
that the runs come to the edge and are still there in the tail: under MSE λ₁ falls at once to a fraction of λ₁(0), and
the steps must be larger than 2/λ₁(0); under cross-entropy a network leaves the edge as soon as it has learnt its
samples, and the tail is the last half of a short run. On those seeds tanh under MSE left the edge in half of the runs:
it stands in the table, and no claim is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from nonsmooth.claims.problems import PAPER
from nonsmooth.ledger import Evidence, at_least, claim, equals
from nonsmooth.networks import Setting, drawn, runs_of
from nonsmooth.plots import Axis, Line, Plot, Table

__all__: list[str] = []

Figures = Mapping[str, np.ndarray]

DEEP, NARROW = "MLP 4×16, MSE", "MLP 2×8, cross-entropy"
HALF, MORE = "BatchNorm, MSE, 2/λ₁(0)", "BatchNorm, MSE, 4/λ₁(0)"
CNNS = ("CNN, MSE", "CNN, cross-entropy")
WAVES = "MLP 4×16, MSE, MNIST-1D"
NORMED: dict[str, Any] = {"width": 16, "batchnorm": True, "loss": "mse", "steps": 250, "tail": 0.1, "every": 9}
CNN: dict[str, Any] = {"model": "cnn", "width": 4, "samples": 200}
SHORT: dict[str, Any] = {"loss": "cross_entropy", "steps": 100, "tail": 0.5, "every": 7}
LONG: dict[str, Any] = {"loss": "mse", "steps": 400, "tail": 0.1, "every": 11}

NETWORKS: dict[str, tuple[dict[str, Any], float]] = {
    DEEP: ({"depth": 4, "width": 16} | LONG, 3.5),
    NARROW: ({"width": 8} | SHORT, 1.0),
    HALF: (NORMED, 1.0),
    MORE: (NORMED, 2.0),
    CNNS[0]: (CNN | LONG, 2.0),
    CNNS[1]: (CNN | SHORT, 1.0),
    WAVES: ({"depth": 4, "width": 16, "data": "mnist1d"} | LONG, 4.0),
}
"""Architecture, loss and length of a run, and `start`: η in units of 2/λ₁(0). One has data of its own."""
FIRST = 500
"""Where the seeds begin on which λ₁(0) is measured: three of them."""
PATHED = "relu"
"""The activation with which the path split is measured, too: it is dear."""
EDGE = tuple(f"{DEEP}: {a}" for a in ("relu", "leaky_relu:0.1", "gelu")) + tuple(
    f"{NARROW}: {a}" for a in ("relu", "leaky_relu:0.1", "gelu", "tanh")
)
CONVOLVED = tuple(f"{CNNS[1]}: {a}" for a in ("relu", "leaky_relu:0.1", "gelu"))
BELOW = tuple(f"{network}: {a}" for network in (HALF, MORE) for a in ("relu", "gelu"))
REST = (
    *(f"{DEEP}: tanh", f"{CNNS[1]}: tanh", *BELOW, *(f"{MORE}: {a}" for a in ("leaky_relu:0.1", "tanh"))),
    *(f"{network}: {a}" for network in (CNNS[0], WAVES) for a in ("relu", "leaky_relu:0.1", "gelu", "tanh")),
)
COLUMNS = ("λ₁", "κ", "κ̄", "κ_smooth", "κ_kink", "κ_kink, path", "kink share", "κ_kink/κ", "κ_kink/κ, path")


def settings_of(cases: Sequence[str], data: str, master: int) -> list[Setting]:
    """A setting for each "network: activation", with its η; max-pooling where the activation has kinks."""
    made = []
    for case in cases:
        network, _, activation = case.partition(": ")
        fields, _ = NETWORKS[network]
        kinked = activation.startswith(("relu", "leaky_relu", "hard"))
        watch: tuple[str, ...] = ("orbit", "sharpnesses", "steps")
        watch += ("path_splits",) if activation == PATHED else ()
        own = {"data": data, "activation": activation, "pool": "max" if kinked else "average", "watch": watch}
        made.append(Setting(**own | fields))
    starts = [NETWORKS[case.partition(": ")[0]][1] for case in cases]
    rates = [2 * start / first for start, first in zip(starts, first_sharpness(made, master), strict=True)]
    return [replace(setting, lr=rate) for setting, rate in zip(made, rates, strict=True)]


def first_sharpness(settings: Sequence[Setting], master: int) -> np.ndarray:
    """λ₁ at the start of each, the mean over three seeds of their own."""
    plain: dict[str, Any] = {
        "lr": 1e-6,
        "steps": 1,
        "every": 1,
        "tail": 0.0,
        "batch": 0,
        "momentum": 0.0,
        "optimizer": "sgd",
    }
    starts = [replace(s, watch=("sharpnesses",), **plain) for s in settings]
    rows = runs_of([one for s in starts for one in drawn(s, 3, master, first=FIRST)])
    values = [row["found"]["sharpnesses"]["value"][0] for row in rows]
    return np.reshape(values, (len(settings), 3)).mean(axis=1)


def seen(row: Mapping[str, Any], observer: str, column: str) -> np.ndarray:
    """What an observer found at the steps looked at; one NaN where the run diverged or nobody looked."""
    values = [] if row["diverged"] else row["found"].get(observer, {}).get(column, [])
    return np.array(values or [np.nan], dtype=float)


def tail_mean(row: Mapping[str, Any], observer: str, column: str) -> float:
    """The mean of a column over the steps looked at; NaN where the run diverged or nobody looked."""
    return float(np.mean(seen(row, observer, column)))


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The COLUMNS of each run in units of 2/η, the shares as they are; κ̄ and κ are the orbit's, over every step."""
    found = []
    for row in rows:
        unit = 2 / row["setting"]["lr"]
        mean = lambda observer, column, row=row: tail_mean(row, observer, column)  # noqa: E731
        curvature, kink, path = mean("steps", "curvature"), mean("steps", "kink"), mean("path_splits", "kink")
        orbit = np.nan if row["diverged"] else row["found"]["orbit"]["value"]
        parts = (mean("sharpnesses", "value"), curvature, orbit, mean("steps", "smooth"), kink, path)
        shares = (mean("steps", "kink_share"), kink / curvature, path / curvature)
        found.append([part / unit for part in parts] + list(shares))
    return dict(zip(COLUMNS, np.array(found, dtype=float).T, strict=True))


def measured(cases: Sequence[str], data: str, seeds: int, master: int) -> list[tuple[Setting, Figures]]:
    """The setting and the figures of each case, a number a seed."""
    settings = settings_of(cases, data, master)
    rows = runs_of([one for s in settings for one in drawn(s, seeds, master)])
    return [(s, figures(rows[seeds * i : seeds * (i + 1)])) for i, s in enumerate(settings)]


def columns_of(found: Sequence[tuple[Setting, Figures]], name: str) -> np.ndarray:
    """One column, (cases, seeds)."""
    return np.array([each[name] for _, each in found])


def interval(values: np.ndarray) -> str:
    """Mean ± half the width of its 95 % interval, over the runs that did not diverge."""
    values = values[np.isfinite(values)]
    if not len(values):
        return "–"
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{values.mean():.3f} ± {half:.3f}"


def edge_table(cases: Sequence[str], found: Sequence[tuple[Setting, Figures]]) -> Table:
    """Every measure of every case, and how many runs are at the edge: their κ is at least half of 2/η."""
    rows: list[list[str | float]] = []
    for case, (setting, each) in zip(cases, found, strict=True):
        network, _, activation = case.partition(": ")
        lost = int(np.isnan(each["λ₁"]).sum())
        at = f"{int((each['κ'] > 0.5).sum())} of {len(each['κ'])}" + (f", {lost} diverged" if lost else "")
        lr = round(setting.lr, 4)
        rows.append([network, activation, lr, round(2 / setting.lr, 2), at, *(interval(each[n]) for n in COLUMNS[:7])])
    return Table(
        ["network", "activation", "η", "2/η", "runs at the edge", *(f"{n} ÷ 2/η" for n in COLUMNS[:6]), COLUMNS[6]],
        rows,
        title="The edge table",
        says="Means over the tail, ± half of a 95 % interval over the seeds; runs that diverged are in no mean. A run "
        "is at the edge if its mean κ is above half of 2/η. κ_smooth and κ_kink are of the frozen split, unless path "
        "is said.",
    )


@claim(
    "networks/edge-orbit-curvature",
    says="Full-batch GD at the edge of stability, on networks with kinks and without, under MSE and cross-entropy: the "
    "orbit curvature κ̄ is 2/η.",
    source="our statement, an identity: ‖g‖² telescopes, so that only a run that converges can fail it; "
    + PAPER.format(4),
    sentence=4,
    relation=equals(within=0.05),
    mutants={"GELU below the threshold, which converges": {"cases": (f"{HALF}: gelu",), "shown": ()}},
    full={"cases": (*EDGE, *CONVOLVED), "shown": REST, "seeds": 10},
)
def orbit_curvature(
    cases: Sequence[str] = EDGE,
    shown: Sequence[str] = (f"{DEEP}: tanh", *BELOW),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    found = measured([*cases, *shown], data, seeds, master)
    bars, steps = columns_of(found, "κ̄")[: len(cases)], columns_of(found, "κ")[: len(cases)]
    left = int((steps < 0.5).sum())
    return Evidence(
        "κ̄ over the tail ÷ 2/η",
        bars,
        1.0,
        cases,
        holds_when=f"the run is at the edge all along the tail; in {left} of {steps.size} runs the mean κ is below "
        f"half of 2/η there; κ̄ from {np.nanmin(bars):.3f} to {np.nanmax(bars):.3f} over all runs",
        plots=[edge_table([*cases, *shown], found)],
    )


@claim(
    "networks/edge-relu-sharpness-reaches",
    says="Networks with ReLU and leaky ReLU do show the edge of stability: the sharpness λ₁ of the active piece comes "
    "up to 2/η, to within a fifth or above.",
    source="the reviewers' objection; Cohen et al. 2021, section 3",
    sentence=4,
    relation=at_least(0.2),
    bears="limits",
    mutants={"with BatchNorm, at a step too small": {"cases": (f"{HALF}: relu",)}},
    full={"cases": tuple(c for c in (*EDGE, *CONVOLVED) if "relu" in c), "seeds": 10},
)
def relu_sharpness(
    cases: Sequence[str] = tuple(c for c in EDGE if "relu" in c),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    return sharpness_evidence(cases, data, seeds, master)


@claim(
    "networks/edge-smooth-sharpness-reaches",
    says="In the smooth twins λ₁ comes up to 2/η as well, to within a fifth or above.",
    source="our statement; Cohen et al. 2021, section 3 (hovers just above)",
    sentence=4,
    relation=at_least(0.2),
    mutants={"a smooth network that converges below the threshold": {"cases": (f"{HALF}: gelu",)}},
    full={"cases": tuple(c for c in (*EDGE, *CONVOLVED) if "relu" not in c), "seeds": 10},
)
def smooth_sharpness(
    cases: Sequence[str] = tuple(c for c in EDGE if "relu" not in c),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    return sharpness_evidence(cases, data, seeds, master)


def sharpness_evidence(cases: Sequence[str], data: str, seeds: int, master: int) -> Evidence:
    """λ₁ ÷ 2/η against 1, with κ and κ̄ beside it."""
    found = measured(cases, data, seeds, master)
    each = {name: columns_of(found, name) for name in ("λ₁", "κ", "κ̄")}
    at = np.arange(1, len(cases) + 1)
    said = "; ".join(f"{case}: λ₁ {interval(row)}" for case, row in zip(cases, each["λ₁"], strict=True))
    return Evidence(
        "mean λ₁ over the tail ÷ 2/η",
        each["λ₁"],
        1.0,
        cases,
        holds_when=f"the run is at the edge: {said}, in units of 2/η; κ at most {np.nanmax(each['κ']):.3f}",
        plots=[
            Plot(
                Axis("case, in the order " + ", ".join(cases)),
                Axis("curvature ÷ 2/η"),
                [
                    *(Line(n, at, np.nanmean(v, axis=1), "markers", np.nanstd(v, axis=1)) for n, v in each.items()),
                    Line("2/η", [0.5, len(cases) + 0.5], [1, 1], "dash"),
                ],
                says="κ̄ is at 2/η, κ of the single steps at or below it, λ₁ mostly above; mean and deviation over "
                "the seeds.",
            )
        ],
    )


@claim(
    "networks/edge-kinks-fill-the-gap",
    says="At the edge of ReLU networks the distance from the sharpness λ₁ to 2/η is the kinks' part of the curvature: "
    "λ₁ + κ_kink = 2/η.",
    source="our statement, a question: does κ_kink make up for what λ₁ lacks?",
    sentence=4,
    bears="limits",
    relation=equals(within=0.05),
    mutants={"GELU, which has no kinks and overshoots": {"cases": (f"{NARROW}: gelu",)}},
    full={"cases": tuple(c for c in (*EDGE, *CONVOLVED) if "relu" in c), "seeds": 10},
)
def kinks_fill_the_gap(
    cases: Sequence[str] = tuple(c for c in EDGE if "relu" in c),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    found = measured(cases, data, seeds, master)
    gap, kink = 1 - columns_of(found, "λ₁"), columns_of(found, "κ_kink")
    return Evidence(
        "(λ₁ + κ_kink) ÷ 2/η",
        1 - gap + kink,
        1.0,
        cases,
        holds_when="; ".join(
            f"{case}: 2/η − λ₁ is {interval(g)} and κ_kink {interval(k)} of 2/η"
            for case, g, k in zip(cases, gap, kink, strict=True)
        ),
        plots=[
            Plot(
                Axis("(2/η − λ₁) ÷ 2/η"),
                Axis("κ_kink ÷ 2/η"),
                [
                    *(Line(case, g, k, "markers") for case, g, k in zip(cases, gap, kink, strict=True)),
                    Line("equal", [-0.6, 0.3], [-0.6, 0.3], "dash"),
                ],
                says="A point a run; were κ_kink what λ₁ lacks, the points would lie on the line.",
            )
        ],
    )


@claim(
    "networks/edge-made-of-kinks",
    says="At the edge of stability of ReLU networks kinks carry at least a tenth of the curvature that the steps meet, "
    "by the frozen split and by the path split.",
    source="our statement, a question: how much of the edge of ReLU networks is made of kinks?",
    sentence=4,
    bears="limits",
    relation=at_least(),
    mutants={"GELU, which has no kinks": {"activation": "gelu", "splits": ("κ_kink/κ",)}},
    full={"networks": (DEEP, NARROW, CNNS[1]), "seeds": 10},
)
def made_of_kinks(
    networks: Sequence[str] = (DEEP, NARROW),
    activation: str = "relu",
    splits: Sequence[str] = ("κ_kink/κ", "κ_kink/κ, path"),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    found = measured([f"{network}: {activation}" for network in networks], data, seeds, master)
    samples = [each[split] for split in splits for _, each in found]
    names = [f"{network}, {split.partition(', ')[2] or 'frozen'}" for split in splits for network in networks]
    share = columns_of(found, "kink share")
    return Evidence(
        "mean κ_kink over mean κ in the tail",
        samples,
        0.1,
        names,
        holds_when="; ".join(f"{name}: {interval(row)}" for name, row in zip(names, samples, strict=True))
        + f"; of the change of the gradient kinks make {100 * np.nanmean(share):.0f} % (the kink share)",
        plots=[
            Table(
                ["network", "split", "κ_kink ÷ κ", "kink share of the gradient's change"],
                [
                    [
                        network,
                        "path" if "path" in split else "frozen",
                        interval(each[split]),
                        interval(each[COLUMNS[6]]),
                    ]
                    for split in splits
                    for network, (_, each) in zip(networks, found, strict=True)
                ],
                title="What kinks carry at the edge",
                says="Their part of the curvature, by two splits, and of the gradient's change; ± is 95 % over seeds.",
            )
        ],
    )

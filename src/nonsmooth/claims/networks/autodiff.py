"""Sentence 5 on networks: relu'(0) = 0, ½ or 1, which automatic differentiation chooses, and what it does to training.

A run and its twins start at the same weights and have the same activation, but for its derivative at 0; nothing else
differs, so that they part when a pre-activation is exactly 0 and not before. Rates, sizes and tolerances were set on
seeds from 900 on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER
from nonsmooth.ledger import Evidence, at_least, claim, equals
from nonsmooth.networks import Setting, drawn, runs_of
from nonsmooth.plots import Axis, Line, Plot, Table

__all__: list[str] = []

SOURCE = PAPER.format(5) + "; Bertoin, Bolte, Gerchinovitz & Pauwels 2021, on the choice of relu'(0)"
CHOICES = {"relu_half": "½", "relu_one": "1"}
LEAST = 1e-18
"""A distance below this counts as this, so that it has a logarithm: of float64's rounding nothing is so small."""
CNN: dict[str, Any] = {"model": "cnn", "width": 4, "samples": 100, "optimizer": "adam", "lr": 0.01, "steps": 100}

Rows = Sequence[Mapping[str, Any]]


def followed(dtype: str, seeds: int, master: int, data: str, **fields: Any) -> list[dict[str, Any]]:
    """Rows of ReLU runs with their twins, and the zeros among pre-activations; SGD at 0.5 on an MLP by default."""
    base: dict[str, Any] = {"lr": 0.5, "steps": 200, "watch": ("ties", "twins")}
    return runs_of(drawn(Setting(data=data, dtype=dtype, **base | fields), seeds, master))


def apart(rows: Rows, name: str) -> np.ndarray:
    """‖Δw‖ between the twin and the run at the end, over the distance that the run came."""
    return np.array([row["found"]["twins"][name]["apart"] for row in rows], dtype=float)


def decades_apart(rows: Rows, name: str) -> np.ndarray:
    return np.log10(np.maximum(apart(rows, name), LEAST))


def first_steps(rows: Rows, name: str) -> np.ndarray:
    """After how many steps a bit of a weight first differed, run by run; NaN where none ever did."""
    return np.array([row["found"]["twins"][name]["first"] for row in rows], dtype=float)


def parted(rows: Rows, name: str) -> np.ndarray:
    """1 where any bit of any weight ever differed, 0 where none did."""
    return 1.0 - np.isnan(first_steps(rows, name))


def zeros(rows: Rows, kind: str) -> np.ndarray:
    """How many pre-activations were exactly 0 along each run: "blank" or "others"."""
    return np.array([sum(row["found"]["ties"][kind]) for row in rows], dtype=float)


def units(rows: Rows) -> np.ndarray:
    return np.array([sum(row["found"]["ties"]["units"]) for row in rows], dtype=float)


def precision_table(runs: Mapping[str, Rows], says: str) -> Table:
    """A row for each kind of run: zeros among pre-activations, and how far each twin departs."""
    rows = []
    for name, found in runs.items():
        cells: list[str | float] = [f"{units(found).sum():.3g}"]
        cells += [int(zeros(found, kind).sum()) for kind in ("blank", "others")]
        for twin in (*CHOICES, "reversed"):
            away = apart(found, twin)
            cells.append(f"{int(parted(found, twin).sum())} of {len(found)}, {away.min():.0e} to {away.max():.0e}")
        rows.append([name, *cells])
    return Table(
        [
            *("run", "pre-activations", "exactly 0: all inputs 0", "exactly 0: others"),
            *("departs for relu'(0) = ½", "for relu'(0) = 1", "for batches in reverse order"),
        ],
        rows,
        title="Runs that depart, and ‖Δw‖ at the end over the distance covered",
        says=says,
    )


def curves_plot(runs: Mapping[str, Rows], twin: str, says: str) -> Plot:
    """How far a twin is from its run along training: the geometric mean over the seeds."""
    lines = []
    for name, found in runs.items():
        t = min((row["found"]["twins"]["t"] for row in found), key=len)
        away = np.array([row["found"]["twins"][twin]["curve"][: len(t)] for row in found], dtype=float)
        mean = np.exp(np.log(np.maximum(away, LEAST)).mean(0))
        lines.append(Line(name, t, np.where(mean > LEAST, mean, np.nan)))
    return Plot(Axis("step"), Axis("‖Δw‖ over the distance covered", log=True), lines, says=says)


@claim(
    "networks/relu-at-zero-in-float64",
    says="Of all pre-activations that these runs of an MLP meet in float64 or float32 none is exactly 0, and relu'(0) "
    "may be 0, ½ or 1: not one bit of one weight differs.",
    source="Goodfellow, Bengio & Courville 2016, section 6.3; against " + PAPER.format(5),
    sentence=5,
    relation=equals(within=0.0, absolute=True),
    mutants={
        "bfloat16": {"dtypes": ("bfloat16",)},
        "a convolutional network, on images with blank patches": {"fields": CNN, "seeds": 3},
    },
    full={"seeds": 10, "fields": {"width": 128}},
    bears="limits",
)
def relu_at_zero_in_float64(
    dtypes: Sequence[str] = ("float64", "float32"),
    fields: Mapping[str, Any] | None = None,
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    found = {dtype: followed(dtype, seeds, master, data, **fields or {}) for dtype in dtypes}
    count = {dtype: int(sum(zeros(rows, kind).sum() for kind in ("blank", "others"))) for dtype, rows in found.items()}
    told = ", ".join(f"{count[dtype]} of {units(rows).sum():.3g} in {dtype}" for dtype, rows in found.items())
    if not any(count.values()):  # the rule of three: (1 − p)ⁿ = 0.05
        fewest = min(units(rows).sum() for rows in found.values())
        told += f" (were they independent, at 95 % at most a share of {3 / fewest:.2g})"
    moved = max(apart(rows, "reversed").max() for rows in found.values())
    return Evidence(
        "share of runs in which any weight ever differs",
        [parted(rows, name) for rows in found.values() for name in CHOICES],
        0.0,
        [f"{dtype}, relu'(0) = {word}" for dtype in found for word in CHOICES.values()],
        holds_when=f"no layer is dead and no input is blank as a whole; pre-activations that were exactly 0: {told}. "
        f"Rounding alone, by the order of the samples, moved the runs by up to {moved:.0e} of their way",
        plots=[precision_table(found, "No zero, no difference.")],
    )


@claim(
    "networks/ties-in-bfloat16",
    says="Trained in bfloat16, an MLP meets relu's kink exactly: of ten million pre-activations one at least is "
    "0, though its inputs are not.",
    source=SOURCE,
    sentence=5,
    relation=at_least(),
    mutants={"float64": {"dtypes": ("float64",)}, "float32": {"dtypes": ("float32",)}},
    full={"seeds": 10},
)
def ties_in_bfloat16(
    dtypes: Sequence[str] = ("bfloat16",), data: str = "digits", seeds: int = 5, master: int = 0
) -> Evidence:
    found = {dtype: followed(dtype, seeds, master, data) for dtype in dict.fromkeys((*dtypes, "float32", "float64"))}
    half = followed("float16", seeds, master, data, steps=50)
    shown = found | {"float16, 50 steps": half}
    first = found[dtypes[0]]
    third = first[0]["setting"]["steps"] // 3
    early, late = (
        sum(sum(row["found"]["ties"]["others"][part]) for row in first) for part in (slice(third), slice(-third, None))
    )
    others = {name: rows for name, rows in shown.items() if name != dtypes[0]}
    told = ", ".join(f"{int(zeros(r, 'others').sum())} of {units(r).sum():.3g} in {name}" for name, r in others.items())
    return Evidence(
        "share of pre-activations that are exactly 0, their inputs not",
        [zeros(found[dtype], "others") / units(found[dtype]) for dtype in dtypes],
        1e-7,
        list(dtypes),
        holds_when=f"sums are kept in float32 and rounded once, as here; {early} of them in the "
        f"first third of the steps and {late} in the last. In others: {told}",
        plots=[precision_table(shown, "Exact zeros come with few bits; in float32 and float64 there is none.")],
    )


@claim(
    "networks/relu-at-zero-in-bfloat16",
    says="In bfloat16 the choice of relu'(0) changes the training of an MLP: weights end more than a millionth of the "
    "way apart.",
    source=SOURCE,
    sentence=5,
    relation=at_least(),
    mutants={"float64": {"dtype": "float64"}},
    full={"seeds": 10},
)
def relu_at_zero_in_bfloat16(
    dtype: str = "bfloat16", data: str = "digits", seeds: int = 5, master: int = 0
) -> Evidence:
    rows = followed(dtype, seeds, master, data)
    firsts = [row["found"]["twins"]["relu_one"]["first"] for row in rows]
    accuracies = [abs(row["found"]["twins"][name]["accuracy"]) for row in rows for name in CHOICES]
    return Evidence(
        "decades of ‖Δw‖ at the end over the distance covered",
        [decades_apart(rows, name) for name in CHOICES],
        -6.0,
        [f"relu'(0) = {word}" for word in CHOICES.values()],
        holds_when=f"a pre-activation has been exactly 0; runs with relu'(0) = 1 parted at the steps "
        f"{', '.join(str(first or '-') for first in firsts)}. The order of the samples, which changes rounding alone, "
        f"parted {int(parted(rows, 'reversed').sum())} of {seeds}. Test accuracies differ by at most "
        f"{max(accuracies):.3f}",
        plots=[curves_plot({dtype: rows}, "relu_one", "They part at the first zero, and rounding keeps them apart.")],
    )


@claim(
    "networks/relu-at-zero-on-blank-patches",
    says="Biases that start at 0 and blank patches of an image make pre-activations exactly 0 in any precision: in a "
    "convolutional network relu'(0) changes training from the first step on, in float64 too.",
    source=SOURCE + ", which finds no influence in 64 bits",
    sentence=5,
    relation=at_least(),
    mutants={"an MLP, whose units see the whole image": {"model": "mlp", "width": 32}},
    full={"seeds": 10, "dtypes": ("float64", "float32", "bfloat16")},
)
def relu_at_zero_on_blank_patches(
    model: str = "cnn",
    width: int = 4,
    dtypes: Sequence[str] = ("float64",),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    fields = CNN | {"model": model, "width": width}
    found = {dtype: followed(dtype, seeds, master, data, **fields) for dtype in dtypes}
    rows = found[dtypes[0]]
    share = [
        np.mean([row["found"]["ties"]["blank"][i] / row["found"]["ties"]["units"][i] for row in rows]) for i in (0, 1)
    ]
    return Evidence(
        "decades of ‖Δw‖ at the end over the distance covered, of runs that part at the first step (of others: "
        f"{np.log10(LEAST):g})",
        [
            np.where(first_steps(found[dtype], name) == 1, decades_apart(found[dtype], name), np.log10(LEAST))
            for dtype in dtypes
            for name in CHOICES
        ],
        -4.0,
        [f"{dtype}, relu'(0) = {word}" for dtype in dtypes for word in CHOICES.values()],
        holds_when=f"images have blank patches and biases are 0: {share[0]:.3f} of the pre-activations are exactly 0 "
        f"at the first step, {share[1]:.3f} at the second, when biases have moved; a narrow layer that is dead on a "
        f"sample does the same. The order of the samples moves the run by at most "
        f"{apart(rows, 'reversed').max():.0e} of its way",
        plots=[
            precision_table(found, "Zeros that no precision avoids."),
            curves_plot(found, "relu_one", "One step with another relu'(0), and the runs are apart."),
        ],
    )


@claim(
    "networks/relu-at-zero-leaves-accuracy",
    says="Where relu'(0) changes the training of a convolutional network, in float64, it does not change how well it "
    "classifies: test accuracy is the same within five points.",
    source="our question to " + SOURCE,
    sentence=5,
    relation=equals(within=0.05, absolute=True),
    mutants={"a hundredth of the rate": {"changes": ({"lr": 1e-4},), "seeds": 3}},
    full={"seeds": 10},
    bears="limits",
)
def relu_at_zero_leaves_accuracy(
    changes: Sequence[Mapping[str, Any]] = ({"activation": "relu_half"}, {"activation": "relu_one"}),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    base = drawn(Setting(data=data, **CNN), seeds, master)
    accuracy = lambda runs: np.array([row["accuracy"] for row in runs_of(runs)], dtype=float)  # noqa: E731
    plain = accuracy(base)
    return Evidence(
        "test accuracy less that of the run with relu'(0) = 0",
        [accuracy([replace(s, **change) for s in base]) - plain for change in changes],
        0.0,
        [", ".join(f"{name} = {value}" for name, value in change.items()) for change in changes],
        holds_when=f"after {CNN['steps']} steps of Adam, at accuracies of {plain.min():.2f} to {plain.max():.2f}",
    )


@claim(
    "networks/relu-spelling-in-float16",
    says="In float16 the spelling does more than the choice: (x + |x|)/2, whose values and derivatives off 0 are "
    "relu's, departs from it by more than a thousandth of the way though hardly a pre-activation is 0, since halves of "
    "small gradients are rounded.",
    source="our statement; " + PAPER.format(5),
    sentence=5,
    relation=at_least(),
    mutants={"float32, whose exponents reach": {"dtype": "float32"}},
    full={"seeds": 10},
)
def relu_spelling_in_float16(dtype: str = "float16", data: str = "digits", seeds: int = 5, master: int = 0) -> Evidence:
    rows = followed(dtype, seeds, master, data, steps=50)
    firsts = [row["found"]["twins"]["relu_half"]["first"] for row in rows]
    return Evidence(
        "decades of ‖Δw‖ at the end over the distance covered",
        decades_apart(rows, "relu_half")[None],
        -3.0,
        [f"(x + |x|)/2 in {dtype}"],
        holds_when=f"gradients are below 6e-5, where float16 is subnormal and has no half of odd numbers (means over "
        f"{rows[0]['setting']['samples']} samples, no loss scaling); the runs parted at the steps "
        f"{', '.join(str(first or '-') for first in firsts)}, those of clamp(x, 0), which has relu'(0) = 1, in "
        f"{int(parted(rows, 'relu_one').sum())} of {seeds}; pre-activations that were exactly 0: "
        f"{int(zeros(rows, 'others').sum())}",
        plots=[precision_table({dtype: rows}, "The spelling parts the runs, the choice hardly does.")],
    )

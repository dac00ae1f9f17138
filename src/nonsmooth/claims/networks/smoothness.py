"""Sentence 1 on networks: what the smoothness that theory asks for is worth along training, kink by kink.

Rates are searched as in `claims.networks.convergence`. Sizes and tolerances were set on seeds from 900 on; there
hardswish, whose kinks at ±3 are met by few pre-activations, was seen to look smooth, and the descent lemma to hold for
ReLU and to fail for hard tanh late in training: the claims were worded after that, before the seeds that they report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.networks.convergence import RATES, WIDE, Names, Pairs, Trained, at_best_rates
from nonsmooth.claims.networks.edge import seen
from nonsmooth.claims.problems import PAPER
from nonsmooth.ledger import Evidence, at_least, at_most, claim
from nonsmooth.plots import Axis, Line, Plot

PAIRS: Pairs = (("relu", "gelu"), ("hardtanh", "tanh"))
MORE: Pairs = (*PAIRS, ("leaky_relu:0.01", "gelu"), ("relu", "silu"), ("hardswish", "silu"))
SCALES = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)
"""Of the observer "holders": distances in units of the step's length."""
WATCH = ("steps", "sharpnesses", "holders")
EVERY = 30


def watched(
    names: Names, seeds: int, master: int, rates: Sequence[float], fraction: float = 1.0, **fields: Any
) -> dict[str, Trained]:
    return at_best_rates(dict.fromkeys(names, fraction), seeds, master, rates, WATCH, EVERY, **fields)


def names_of(pairs: Pairs) -> list[str]:
    return list(dict.fromkeys(name for pair in pairs for name in pair))


def around(row: Mapping[str, Any]) -> np.ndarray:
    """ω(δ) around the weights after each step that was watched, (steps, scales); one row of NaN where it diverged."""
    return np.atleast_2d(seen(row, "holders", "variations")) * np.ones(len(SCALES))


def variations(t: Trained) -> np.ndarray:
    """ω(δ) of each run, scaled by its value at the step's length: medians over the steps, (seeds, scales)."""
    each = map(around, t.rows)
    return np.array([np.median(omega / omega[:, [SCALES.index(1.0)]], axis=0) for omega in each])


def slopes(t: Trained) -> np.ndarray:
    """d log ω/d log δ from a quarter of the step's length to 16 times it: the mean over the steps, run by run."""
    low, high = SCALES.index(1 / 4), SCALES.index(16.0)
    rises = [np.log(omega[:, high] / omega[:, low]) for omega in map(around, t.rows)]
    return np.array([np.mean(rise) / np.log(SCALES[high] / SCALES[low]) for rise in rises])


@claim(
    "networks/holder-slope-below-one",
    says="At the scale of the steps taken, the gradient of a network with kinks at 0 or ±1 is not Lipschitz: it varies "
    "with distance as δ to a power that is lower, by 0.1 at least, than its smooth twin's.",
    source=PAPER.format(1) + "; our statement: the jumps of many kinks add up as their root",
    sentence=1,
    relation=at_least(),
    mutants={"GELU, which is smooth, in place of a kinked one": {"pairs": (("gelu", "tanh"),)}},
    full={"seeds": 10, "pairs": MORE, "rates": WIDE},
)
def holder_slope_below_one(
    data: str = "digits",
    pairs: Pairs = PAIRS,
    loss: str = "cross_entropy",
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    fields: dict[str, Any] = {"data": data, "samples": samples, "steps": steps, "loss": loss}
    nets = watched(names_of(pairs), seeds, master, rates, **fields)
    slope = {name: slopes(t) for name, t in nets.items()}
    lines = []
    for name, t in nets.items():
        omega = np.log10(variations(t))
        spread = omega.std(axis=0, ddof=1) if seeds > 1 else 0 * omega[0]
        lines.append(
            Line(f"{name}, slope {slope[name].mean():.2f}", np.log10(SCALES), omega.mean(axis=0), error=spread)
        )
    return Evidence(
        "the smooth network's Hölder slope less the kinked one's, δ from ‖D‖/4 to 16‖D‖",
        [slope[smooth] - slope[kinked] for kinked, smooth in pairs],
        0.1,
        [f"{kinked} and {smooth}" for kinked, smooth in pairs],
        holds_when="slopes, mean over seeds and steps: "
        + ", ".join(f"{name} {s.mean():.2f}" for name, s in slope.items()),
        plots=[
            Plot(
                Axis("log₁₀ of δ over the step's length"),
                Axis("log₁₀ of ω(δ) over ω(‖D‖), mean and deviation over seeds"),
                [*lines, Line("slope 1", np.log10(SCALES), np.log10(SCALES), "dash")],
                says="Smooth networks lie on the line of slope 1; networks with kinks lie flatter around the step.",
            )
        ],
    )


def remainders(t: Trained) -> np.ndarray:
    """(f(x⁺) − f(x) − ⟨g, D⟩)/(½λ₁‖D‖²) of each step that was watched, (seeds, steps): above 1 the lemma fails.

    Steps that a run did not get to are nan.
    """
    asked = t.rows[0]["setting"]
    found = np.full((len(t.rows), -(-asked["steps"] // asked["every"])), np.nan)
    for ratios, row in zip(found, t.rows, strict=True):
        step, sharpness = row["found"]["steps"], np.array(row["found"]["sharpnesses"].get("value", []), dtype=float)
        names = ("loss", "loss_after", "predicted", "length")
        loss, after, first, length = (np.array(step.get(name, []), dtype=float) for name in names)
        ratios[: len(loss)] = (after - loss - first) / (sharpness[: len(loss)] / 2 * length**2)
    return found


def remainder_plot(nets: Mapping[str, Trained], ratios: Mapping[str, np.ndarray], seeds: int) -> Plot:
    lines = []
    for name, t in nets.items():
        at = EVERY * np.arange(ratios[name].shape[1])
        error = ratios[name].std(axis=0, ddof=1) if seeds > 1 else None
        lines.append(Line(f"{name}, η = {t.rate:g}", at, ratios[name].mean(axis=0), error=error))
    return Plot(
        Axis("step"),
        Axis("f(x⁺) − f(x) − ⟨g, D⟩ over ½λ₁‖D‖², mean and deviation over seeds"),
        [*lines, Line("the descent lemma's bound", [0, at[-1]], [1, 1], "dash")],
        says="The lemma with L = λ₁ is met from below; late in training kinked networks alone have a remainder left.",
    )


@claim(
    "networks/kinks-enlarge-the-remainder",
    says="Kinks at 0 or ±1 at least double what a step's change of the loss has beyond first order, f(x⁺) − f(x) − "
    "⟨g, D⟩ in units of ½λ₁‖D‖², against the smooth twin's, each at its own best rate.",
    source=PAPER.format(1) + "; our statement",
    sentence=1,
    relation=at_least(),
    mutants={"GELU, which is smooth, in place of a kinked one": {"pairs": (("gelu", "tanh"),)}},
    full={"seeds": 10, "pairs": MORE, "rates": WIDE},
)
def kinks_enlarge_the_remainder(
    data: str = "digits",
    pairs: Pairs = PAIRS,
    loss: str = "cross_entropy",
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    fields: dict[str, Any] = {"data": data, "samples": samples, "steps": steps, "loss": loss}
    nets = watched(names_of(pairs), seeds, master, rates, **fields)
    ratios = {name: remainders(t) for name, t in nets.items()}
    sizes = {name: np.nanmedian(np.abs(r), axis=1) for name, r in ratios.items()}
    return Evidence(
        "log₂ of the kinked network's remainder over the smooth one's, medians over the steps",
        [np.log2(sizes[kinked] / sizes[smooth]) for kinked, smooth in pairs],
        1.0,
        [f"{kinked} and {smooth}" for kinked, smooth in pairs],
        holds_when="remainders over ½λ₁‖D‖², mean over seeds of the median over the steps: "
        + ", ".join(f"{name} {s.mean():.3f}" for name, s in sizes.items()),
        plots=[remainder_plot(nets, ratios, seeds)],
    )


def failures(ratios: np.ndarray, factor: float) -> np.ndarray:
    """The share of a run's steps at which the lemma fails with `factor`·λ₁ for L; NaN where none was watched."""
    with np.errstate(invalid="ignore"):
        return (ratios > factor).sum(axis=1) / (~np.isnan(ratios)).sum(axis=1)


def largest(ratios: Mapping[str, np.ndarray]) -> str:
    return "the largest remainder over ½λ₁‖D‖², and its 90 % quantile over steps and seeds: " + ", ".join(
        f"{name} {np.nanmax(r):.2f}, {np.nanquantile(r, 0.9):.2f}" for name, r in ratios.items()
    )


@claim(
    "networks/relu-keeps-the-descent-lemma",
    says="With the sharpness λ₁ where a step begins in place of L, the descent lemma holds at more than nine in ten of "
    "the steps that a ReLU network takes at its best rate, though no L exists.",
    source="our statement; Cohen et al. 2021 on λ₁ along training",
    sentence=1,
    relation=at_most(strict=True),
    mutants={"a hundredth of λ₁": {"factor": 0.01}},
    full={"seeds": 10, "names": ("relu", "leaky_relu:0.01"), "rates": WIDE},
    bears="limits",
)
def relu_keeps_the_descent_lemma(
    data: str = "digits",
    names: Names = ("relu",),
    loss: str = "cross_entropy",
    factor: float = 1.0,
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    fields: dict[str, Any] = {"data": data, "samples": samples, "steps": steps, "loss": loss}
    nets = watched(names, seeds, master, rates, **fields)
    ratios = {name: remainders(t) for name, t in nets.items()}
    return Evidence(
        "share of steps at which the lemma fails",
        [failures(r, factor) for r in ratios.values()],
        0.1,
        [f"{t.name}, η = {t.rate:g}" for t in nets.values()],
        holds_when=largest(ratios),
        plots=[remainder_plot(nets, ratios, seeds)],
    )


@claim(
    "networks/hard-tanh-breaks-the-descent-lemma",
    says="With λ₁ in place of L, the descent lemma fails at the steps that a hard tanh network takes at its best rate "
    "where its smooth twin's keep it: at one step in twenty more, at least.",
    source=PAPER.format(1) + "; our statement",
    sentence=1,
    relation=at_least(),
    mutants={"ReLU and GELU": {"pairs": (("relu", "gelu"),)}},
    full={"seeds": 10, "rates": WIDE},
)
def hard_tanh_breaks_the_descent_lemma(
    data: str = "digits",
    pairs: Pairs = PAIRS[1:],
    loss: str = "cross_entropy",
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    fields: dict[str, Any] = {"data": data, "samples": samples, "steps": steps, "loss": loss}
    nets = watched(names_of(pairs), seeds, master, rates, **fields)
    ratios = {name: remainders(t) for name, t in nets.items()}
    late = {name: np.nanmean(r[:, r.shape[1] // 2 :] > 1) for name, r in ratios.items()}
    return Evidence(
        "share of steps at which the lemma fails, kinked less smooth",
        [failures(ratios[kinked], 1.0) - failures(ratios[smooth], 1.0) for kinked, smooth in pairs],
        0.05,
        [f"{kinked} and {smooth}" for kinked, smooth in pairs],
        holds_when=largest(ratios)
        + "; share in the later half of the steps: "
        + ", ".join(f"{name} {share:.2f}" for name, share in late.items()),
        plots=[remainder_plot(nets, ratios, seeds)],
    )

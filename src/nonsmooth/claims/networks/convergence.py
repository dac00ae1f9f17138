"""Sentence 1 on networks: do kinked ones converge otherwise than their smooth twins, each at its own best rate?

Twins start from the same random numbers, scaled so that gradients keep their size through either activation. A rate is
the best of a grid if the mean loss at the end is smallest there, over two seeds from 500 on; the runs that are compared
have others. The given loss is a share of what a network that outputs 0 has, not of the initial loss, which differs
between twins. Sizes and tolerances were set on seeds from 900 on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER
from nonsmooth.ledger import Evidence, at_least, at_most, claim, equals, where
from nonsmooth.networks import Setting, drawn, runs_of
from nonsmooth.plots import Axis, Line, Plot, Table

Names = Sequence[str]
Pairs = Sequence[tuple[str, str]]

PAIRS: Pairs = (("relu", "gelu"), ("relu", "silu"), ("hardtanh", "tanh"), ("hardswish", "silu"))
"""A kinked network and its smooth twin."""
MORE: Pairs = (
    ("leaky_relu:0.01", "gelu"),
    ("relu", "softplus:10"),
    ("cnn relu max", "cnn gelu average"),
)
RATES = tuple(2.0**k for k in range(-3, 2))
WIDE = tuple(2.0**k for k in range(-6, 2))
LEVELS = {"cross_entropy": 0.02, "mse": 0.25}
"""The given loss: about 1 % of ln 10, and half of ½, which are the losses of ten classes where the output is 0."""
SEARCHED = 2
"""Seeds that a rate is searched on, from 500 on."""
CHANNELS = 6
SLOW = 1 / 8


def network(name: str, **fields: Any) -> Setting:
    """The setting that a name stands for: an activation, or "cnn", an activation and its pool.

    >>> network("cnn gelu average").pool, network("leaky_relu:0.1", steps=5).activation
    ('average', 'leaky_relu:0.1')
    """
    words = name.split()
    if words[0] != "cnn":
        return Setting(activation=name, **fields)
    return Setting(model="cnn", width=CHANNELS, activation=words[1], pool=words[2], **fields)


@dataclass(frozen=True)
class Trained:
    """A network's rows at `rate`, a row a seed; of its search, the mean loss at the end and share of raising steps."""

    name: str
    best: float
    rate: float
    rows: Sequence[Mapping[str, Any]]
    rates: Sequence[float]
    search: np.ndarray
    raised: np.ndarray


def at_best_rates(
    fractions: Mapping[str, float],
    seeds: int,
    master: int,
    rates: Sequence[float] = RATES,
    watch: Names = (),
    every: int = 1,
    longer: int = 1,
    **fields: Any,
) -> dict[str, Trained]:
    """Each network, by name, at a fraction of its own best rate, and for `longer` times the steps of the search."""
    bare = {name: network(name, **fields) for name in fractions}
    asked = [
        s for net in bare.values() for lr in rates for s in drawn(replace(net, lr=lr), SEARCHED, master, first=500)
    ]
    ends = [(np.inf if row["loss"] is None else row["loss"], row["raised"]) for row in runs_of(asked)]
    searches = np.reshape(ends, (len(bare), len(rates), SEARCHED, 2)).mean(axis=2)
    best = [float(rates[int(np.argmin(search[:, 0]))]) for search in searches]
    settings = [
        s
        for (name, net), lr in zip(bare.items(), best, strict=True)
        for s in drawn(
            replace(net, lr=lr * fractions[name], steps=net.steps * longer, watch=tuple(watch), every=every),
            seeds,
            master,
        )
    ]
    rows = runs_of(settings)
    return {
        name: Trained(name, lr, lr * fractions[name], rows[seeds * i : seeds * (i + 1)], rates, *search.T)
        for i, (name, lr, search) in enumerate(zip(bare, best, searches, strict=True))
    }


def steps_to(row: Mapping[str, Any], level: float) -> int:
    """The first step whose loss is at most `level`; the number of steps asked for, where there is none.

    >>> row = {"at": [0, 1, 2], "losses": [3.0, 0.5, 1.0], "setting": {"steps": 3}}
    >>> steps_to(row, 1.0), steps_to(row, 0.1)
    (1, 3)
    """
    reached = [t for t, loss in zip(row["at"], row["losses"], strict=True) if loss is not None and loss <= level]
    return reached[0] if reached else int(row["setting"]["steps"])


def twins(pairs: Pairs, kinked_at: float, smooth_at: float, losses: Names, **how: Any) -> dict[str, dict[str, Trained]]:
    """Both networks of each pair, by loss and name, at a fraction of their best rates."""
    fractions = {kinked: kinked_at for kinked, _ in pairs} | {smooth: smooth_at for _, smooth in pairs}
    return {loss: at_best_rates(fractions, loss=loss, **how) for loss in losses}


def cases_of(pairs: Pairs, losses: Names) -> list[str]:
    return [f"{a} and {b}" + f", {loss}" * (len(losses) > 1) for loss in losses for a, b in pairs]


def short_of(row: Mapping[str, Any], level: float) -> bool:
    """Whether the run never came to a loss of `level`."""
    return steps_to(row, level) == row["setting"]["steps"]


def logs_of_steps(found: Mapping[str, Mapping[str, Trained]], pairs: Pairs, within: float) -> list[np.ndarray]:
    """For each loss and pair, log₂ of the smooth network's steps over the kinked one's, seed by seed.

    A run that never came to the loss counts as all steps, which bounds the ratio from one side. NaN where that bound
    is not beyond `within`, as it is not where neither run came there.
    """
    samples = []
    for loss, nets in found.items():
        level = LEVELS[loss]
        for pair in pairs:
            kinked, smooth = (np.log2([max(1, steps_to(row, level)) for row in nets[name].rows]) for name in pair)
            short = np.any([[short_of(row, level) for row in nets[name].rows] for name in pair], axis=0)
            ratio = smooth - kinked
            samples.append(np.where(short & (np.abs(ratio) <= within), np.nan, ratio))
    return samples


def curves(nets: Mapping[str, Trained], loss: str) -> Plot:
    lines = []
    for t in nets.values():
        whole = [row for row in t.rows if not row["diverged"]]
        if whole:
            logs = np.log10([row["losses"] for row in whole])
            spread = logs.std(axis=0, ddof=1) if len(whole) > 1 else 0 * logs[0]
            lines.append(Line(f"{t.name}, η = {t.rate:g}", whole[0]["at"], logs.mean(axis=0), error=spread))
    return Plot(
        Axis("step"),
        Axis(f"log₁₀ of the {loss.replace('_', '-')} loss, mean and deviation over seeds"),
        lines,
        title="Each at its own best rate",
        says="Kinked and smooth curves lie among one another: the spread between seeds and activations is larger.",
    )


def summary(found: Mapping[str, Mapping[str, Trained]]) -> Table:
    rows: list[list[str | float]] = []
    for loss, nets in found.items():
        for t in nets.values():
            steps = [steps_to(row, LEVELS[loss]) for row in t.rows]
            reached = sum(not short_of(row, LEVELS[loss]) for row in t.rows)
            raised = float(np.mean([row["raised"] for row in t.rows]))
            accuracies = [row["accuracy"] for row in t.rows if row["accuracy"] is not None]
            seen: list[str | float] = [t.name, loss.replace("_", "-"), t.rate]
            seen += [
                f"{np.mean(steps):.0f} ± {np.std(steps, ddof=min(1, len(steps) - 1)):.0f}",
                f"{reached} of {len(t.rows)}",
            ]
            seen += [round(100 * raised, 2), round(100 * float(np.mean(accuracies)), 1) if accuracies else "–"]
            rows.append(seen)
    columns = ["network", "loss", "η", "steps to the given loss", "reached by", "raising steps, %", "test accuracy, %"]
    return Table(columns, rows, says="The number of steps with its deviation over seeds, the shares as means.")


def unreached(found: Mapping[str, Mapping[str, Trained]]) -> str:
    """Which runs did not reach the given loss, and which best rates lie at an end of the grid, in words."""
    missed, ends = [], []
    for loss, nets in found.items():
        for t in nets.values():
            name = t.name + f" ({loss.replace('_', '-')})" * (len(found) > 1)
            short = sum(short_of(row, LEVELS[loss]) for row in t.rows)
            missed += [f"{short} of {name}"] * (short > 0)
            ends += [name] * (t.best in (min(t.rates), max(t.rates)))
    told = f"not reached, so that a ratio is bounded or open: {', '.join(missed)}" if missed else "reached by every run"
    return told + (f"; the best rate lies at an end of the grid for {', '.join(ends)}" if ends else "")


def speeds(pairs: Pairs, kinked_at: float, smooth_at: float, losses: Names, within: float, **how: Any) -> Evidence:
    """`within`: how far log₂ of the steps may be from 0 for the claim, as in `logs_of_steps`."""
    found = twins(pairs, kinked_at, smooth_at, losses, **how)
    samples = logs_of_steps(found, pairs, within)
    faster = [
        f"{case} {'open' if np.isnan(s).any() else f'{np.exp2(np.mean(s)):.2f}'}"
        for case, s in zip(cases_of(pairs, losses), samples, strict=True)
    ]
    levels = " and ".join(f"{LEVELS[loss]:g} ({loss.replace('_', '-')})" for loss in losses)
    return Evidence(
        "log₂ of the smooth network's steps to the given loss over the kinked one's",
        samples,
        0.0,
        cases_of(pairs, losses),
        holds_when=f"the loss is {levels}; {unreached(found)}. Ratios of steps, smooth over kinked: "
        + ", ".join(faster),
        plots=[*(curves(nets, loss) for loss, nets in found.items()), summary(found)],
    )


@claim(
    "networks/smooth-converges-faster",
    says="Each at its own best rate, a smooth network reaches a given loss in fewer steps than its kinked twin.",
    source=PAPER.format(1) + "; its first version on speed",
    sentence=1,
    relation=at_most(strict=True),
    mutants={"the smooth network at an eighth of its best rate": {"smooth_at": SLOW, "pairs": PAIRS[:1], "seeds": 3}},
    full={"seeds": 10, "pairs": (*PAIRS, *MORE), "losses": ("cross_entropy", "mse"), "rates": WIDE},
)
def smooth_converges_faster(
    data: str = "digits",
    pairs: Pairs = PAIRS,
    losses: Names = ("cross_entropy",),
    kinked_at: float = 1.0,
    smooth_at: float = 1.0,
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    how = {"data": data, "samples": samples, "steps": steps, "seeds": seeds, "master": master, "rates": rates}
    return speeds(pairs, kinked_at, smooth_at, losses, within=0.0, **how)


@claim(
    "networks/twins-converge-alike",
    says="Each at its own best rate, a kinked network and its smooth twin need numbers of steps to a given loss that "
    "differ by less than a factor of 2: kinks do not set the speed.",
    source="our statement; reviewers of an early version: upper bounds prove nothing about speed",
    sentence=1,
    relation=equals(within=1.0, absolute=True),
    mutants={"the smooth network at an eighth of its best rate": {"smooth_at": SLOW, "pairs": PAIRS[:1], "seeds": 3}},
    full={"seeds": 10, "pairs": (*PAIRS, *MORE), "losses": ("cross_entropy", "mse"), "rates": WIDE},
    bears="limits",
)
def twins_converge_alike(
    data: str = "digits",
    pairs: Pairs = PAIRS,
    losses: Names = ("cross_entropy",),
    kinked_at: float = 1.0,
    smooth_at: float = 1.0,
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    how = {"data": data, "samples": samples, "steps": steps, "seeds": seeds, "master": master, "rates": rates}
    return speeds(pairs, kinked_at, smooth_at, losses, within=1.0, **how)


def raised_by_rate(nets: Mapping[str, Trained], seeds: int = SEARCHED) -> Plot:
    return Plot(
        Axis("step size η", log=True),
        Axis(f"share of steps that raise the loss, mean of {seeds} seeds"),
        [Line(t.name, t.rates, t.raised, "markers") for t in nets.values()],
        says="Each network has a rate below which no step raises the loss, kinked or not.",
    )


@claim(
    "networks/kinks-raise-the-loss",
    says="Each at its own best rate, a kinked network takes a larger share of steps that raise the loss than its "
    "smooth twin.",
    source=PAPER.format(1) + "; our statement, after |x|, where half of the steps raise f",
    sentence=1,
    relation=at_least(strict=True),
    mutants={"the kinked network at an eighth of its best rate": {"kinked_at": SLOW, "pairs": PAIRS[1:2]}},
    full={"seeds": 10, "pairs": (*PAIRS, *MORE), "losses": ("cross_entropy", "mse"), "rates": WIDE},
)
def kinks_raise_the_loss(
    data: str = "digits",
    pairs: Pairs = PAIRS,
    losses: Names = ("cross_entropy",),
    kinked_at: float = 1.0,
    smooth_at: float = 1.0,
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    how = {"data": data, "samples": samples, "steps": steps, "seeds": seeds, "master": master, "rates": rates}
    found = twins(pairs, kinked_at, smooth_at, losses, **how)
    share = {(loss, t.name): np.array([r["raised"] for r in t.rows]) for loss in losses for t in found[loss].values()}
    nets = found[losses[0]]
    return Evidence(
        "share of raising steps of the kinked network less the smooth one's",
        [share[loss, kinked] - share[loss, smooth] for loss in losses for kinked, smooth in pairs],
        0.0,
        cases_of(pairs, losses),
        holds_when="by pair, at the rates searched: "
        + "; ".join(f"{a} and {b}, " + where("η", rates, nets[a].raised > nets[b].raised) for a, b in pairs),
        plots=[raised_by_rate(nets), summary(found)],
    )


@claim(
    "networks/small-steps-do-not-raise-the-loss",
    says="A kinked network has a threshold, as smooth ones have: at an eighth of its best rate at most 1 % of the "
    "steps raise the loss, whereas on |x| every constant step ends by raising f in half of its steps.",
    source="our statement; reviewers of an early version: small weights are not kinks",
    sentence=1,
    relation=at_most(0.01, absolute=True),
    mutants={"at the best rate itself, and fewer steps": {"fraction": 1.0, "longer": 1}},
    full={"seeds": 10, "names": ("relu", "leaky_relu:0.01", "hardtanh", "hardswish", "cnn relu max"), "rates": WIDE},
    bears="limits",
)
def small_steps_do_not_raise_the_loss(
    data: str = "digits",
    names: Names = ("relu", "hardtanh"),
    loss: str = "cross_entropy",
    fraction: float = SLOW,
    longer: int = 2,
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    how: dict[str, Any] = {"data": data, "samples": samples, "steps": steps, "loss": loss}
    nets = at_best_rates(dict.fromkeys(names, fraction), seeds, master, rates, longer=longer, **how)
    return Evidence(
        f"share of steps that raise the loss, of {steps * longer}",
        [[row["raised"] for row in t.rows] for t in nets.values()],
        0.0,
        [f"{t.name}, η = {t.rate:g}" for t in nets.values()],
        holds_when="by network, at the rates searched: "
        + "; ".join(f"{t.name}, {where('η', rates, t.raised <= 0.01)}" for t in nets.values()),
        plots=[raised_by_rate(nets)],
    )

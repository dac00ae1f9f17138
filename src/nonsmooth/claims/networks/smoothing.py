"""Sentence 1 on networks: softplus(β), smooth for every β, and the ReLU network that it tends to.

The objection that smoothing the kinks away would bring back what theory promises is put to the test. All networks of a
seed are trained at one rate, a fraction of ReLU's best. Sizes and tolerances were set on seeds from 900 on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from nonsmooth.claims.networks.convergence import RATES, SLOW, WIDE, Names, Trained, at_best_rates, network
from nonsmooth.claims.networks.edge import seen
from nonsmooth.claims.problems import PAPER
from nonsmooth.ledger import Evidence, at_least, at_most, claim, equals
from nonsmooth.networks import drawn, runs_of
from nonsmooth.plots import Axis, Line, Plot

BETAS = (10.0, 100.0, 1000.0, 10_000.0)
EVERY = 20


def softplus_runs(
    names: Names, fraction: float, rates: Sequence[float], seeds: int, master: int, **fields: Any
) -> tuple[float, dict[str, Sequence[Mapping[str, Any]]]]:
    """These networks and ReLU's at one rate, a fraction of ReLU's best, some of the steps measured."""
    options: dict[str, Any] = fields | {"watch": ("steps",), "every": EVERY}
    relu: Trained = at_best_rates({"relu": fraction}, seeds, master, rates, **options)["relu"]
    rows = runs_of([s for name in names for s in drawn(network(name, lr=relu.rate, **options), seeds, master)])
    found = {name: rows[seeds * i : seeds * (i + 1)] for i, name in enumerate(names)}
    return relu.rate, {"relu": relu.rows, **found}


def effective(rows: Sequence[Mapping[str, Any]], reduce: Any = np.max) -> np.ndarray:
    """The largest ‖g⁺ − g‖/‖D‖ of the steps that were watched, run by run; NaN where a run diverged."""
    return np.array([reduce(seen(row, "steps", "lipschitz")) for row in rows])


def least_constants(names: Names, rate: float, seeds: int, master: int, **fields: Any) -> dict[str, np.ndarray]:
    """What the gradient's Lipschitz constant must be at least near the initial weights, run by run."""
    options = fields | {"lr": rate, "steps": 1, "watch": ("zeroed_units",)}
    rows = runs_of([s for name in names for s in drawn(network(name, **options), seeds, master)])
    values = np.array([seen(row, "zeroed_units", "value")[0] for row in rows]).reshape(len(names), seeds)
    return dict(zip(names, values, strict=True))


def constants(
    betas: Sequence[float], fraction: float, rates: Sequence[float], seeds: int, master: int, **fields: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray, Plot]:
    """Effective constants and least constants, by β; the effective one of ReLU; all of it against β as a figure."""
    names = [f"softplus:{beta:g}" for beta in betas]
    rate, rows = softplus_runs(names, fraction, rates, seeds, master, **fields)
    least = least_constants(names, rate, seeds, master, **fields)
    largest = {name: effective(rows[name]) for name in names}
    drawn_lines: list[Line] = []
    for title, values in (
        ("every L must be at least this", least),
        ("largest ‖g⁺ − g‖/‖D‖ along training", largest),
        ("its median along training", {name: effective(rows[name], np.median) for name in names}),
    ):
        logs = np.log10(list(values.values()))
        spread = logs.std(axis=1, ddof=1) if seeds > 1 else 0 * logs[:, 0]
        drawn_lines.append(Line(title, np.log10(betas), logs.mean(axis=1), error=spread))
    ends = np.log10([min(betas), max(betas)])
    for title, reduce in (("ReLU's largest", np.max), ("ReLU's median", np.median)):
        drawn_lines.append(Line(title, ends, [np.log10(effective(rows["relu"], reduce)).mean()] * 2, "dash"))
    plot = Plot(
        Axis("log₁₀ β"),
        Axis("log₁₀ of the constant, mean and deviation over seeds"),
        drawn_lines,
        title=f"Softplus(β), η = {rate:g}",
        says="What theory needs grows like β; what the steps meet stays at ReLU's.",
    )
    return largest, least, effective(rows["relu"]), plot


@claim(
    "networks/effective-constant-stays-bounded",
    says="As β grows, the largest effective Lipschitz constant ‖g⁺ − g‖/‖D‖ along the training of a softplus(β) "
    "network stays below twice its ReLU limit's: at the step's scale that limit is not rough.",
    source="our statement, on the objection that smoothing would mend what kinks do",
    sentence=1,
    relation=at_most(),
    mutants={"the Lipschitz constant that theory asks for": {"measure": "least"}},
    full={"seeds": 10, "betas": (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 10_000.0), "rates": WIDE},
    bears="limits",
)
def effective_constant_stays_bounded(
    data: str = "digits",
    betas: Sequence[float] = BETAS,
    cases: Sequence[float] = BETAS[1:],
    measure: str = "effective",
    loss: str = "cross_entropy",
    fraction: float = SLOW,
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    fields: dict[str, Any] = {"data": data, "samples": samples, "steps": steps, "loss": loss}
    largest, least, relu, plot = constants(betas, fraction, rates, seeds, master, **fields)
    chosen = largest if measure == "effective" else least
    return Evidence(
        f"log₂ of the {measure} constant over ReLU's effective one",
        [np.log2(chosen[f"softplus:{beta:g}"] / relu) for beta in cases],
        1.0,
        [f"β = {beta:g}" for beta in cases],
        holds_when=f"η is {fraction:g} of ReLU's best rate; ratios by β, the largest of the steps measured, mean over "
        "seeds: " + ", ".join(f"{b:g}: {(v / relu).mean():.2f}" for b, v in zip(betas, largest.values(), strict=True)),
        plots=[plot],
    )


@claim(
    "networks/smoothness-constant-grows",
    says="No smoothing makes L-smoothness theory speak of the limit: near the initial weights of a softplus(β) network "
    "there are points where its gradient's Lipschitz constant is at least proportional to β.",
    source=PAPER.format(1) + "; our statement: β/4 is softplus's second derivative at 0",
    sentence=1,
    relation=equals(within=0.3, absolute=True),
    mutants={"the effective constant along training": {"measure": "effective"}},
    full={"seeds": 10, "betas": (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 10_000.0), "rates": WIDE},
)
def smoothness_constant_grows(
    data: str = "digits",
    betas: Sequence[float] = BETAS,
    cases: Sequence[float] = BETAS[1:],
    measure: str = "least",
    loss: str = "cross_entropy",
    fraction: float = SLOW,
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    fields: dict[str, Any] = {"data": data, "samples": samples, "steps": steps, "loss": loss}
    largest, least, _, plot = constants(betas, fraction, rates, seeds, master, **fields)
    chosen = dict(zip(betas, (largest if measure == "effective" else least).values(), strict=True))
    steps_up = list(pairwise(cases))
    return Evidence(
        "decades by which the constant grows in a decade of β",
        [np.log10(chosen[b] / chosen[a]) / np.log10(b / a) for a, b in steps_up],
        1.0,
        [f"β from {a:g} to {b:g}" for a, b in steps_up],
        holds_when="the term in β outweighs the rest of the Hessian; constants by β, mean over seeds: "
        + ", ".join(f"{b:g}: {v.mean():.3g}" for b, v in chosen.items())
        + ". The points: all weights of the first layer's smallest unit set to 0",
        plots=[plot],
    )


@claim(
    "networks/softplus-tends-to-relu",
    says="At a rate well below its best, a softplus(β) network's loss curve tends to that of its ReLU limit: the mean "
    "difference of their logarithms falls to a third or less with each decade of β.",
    source="our statement, on the objection that smoothing would mend what kinks do",
    sentence=1,
    relation=at_least(),
    mutants={"the curve of β = 10 in place of ReLU's": {"limit": "softplus:10", "between": (100.0, 1000.0)}},
    full={
        "seeds": 10,
        "betas": (1.0, 3.0, 10.0, 30.0, 100.0, 1000.0, 10_000.0),
        "rates": WIDE,
        "beside": (1 / 4, 1 / 2, 1.0),
    },
    bears="limits",
)
def softplus_tends_to_relu(
    data: str = "digits",
    betas: Sequence[float] = BETAS,
    between: tuple[float, float] = (10.0, 1000.0),
    limit: str = "relu",
    loss: str = "cross_entropy",
    fraction: float = SLOW,
    beside: Sequence[float] = (),
    rates: Sequence[float] = RATES,
    samples: int = 200,
    steps: int = 300,
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    fields: dict[str, Any] = {"data": data, "samples": samples, "steps": steps, "loss": loss}
    low, high = between

    def apart(betas: Sequence[float], fraction: float) -> tuple[float, list[int], dict[float, np.ndarray]]:
        """|log f_β − log f_ReLU| at each step, (seeds, steps), by β; the rate, and the steps."""
        names = dict.fromkeys([*(f"softplus:{b:g}" for b in betas), *((limit,) if limit != "relu" else ())])
        rate, rows = softplus_runs(list(names), fraction, rates, seeds, master, **fields)
        curve = {name: np.log(np.array([row["losses"] for row in found], float)) for name, found in rows.items()}
        return rate, rows["relu"][0]["at"], {b: np.abs(curve[f"softplus:{b:g}"] - curve[limit]) for b in betas}

    def decades(mean: Mapping[float, np.ndarray]) -> np.ndarray:
        return np.log10(mean[low] / mean[high]) / np.log10(high / low)

    rate, at, found = apart(betas, fraction)
    mean = {beta: d.mean(axis=1) for beta, d in found.items()}
    others = {f: decades({b: d.mean(axis=1) for b, d in apart(between, f)[2].items()}) for f in beside}
    return Evidence(
        "decades by which the mean of |log f_β − log f_ReLU| over the steps falls in a decade of β",
        [decades(mean)],
        0.5,
        [f"β from {low:g} to {high:g}"],
        holds_when=f"η = {rate:g}, {fraction:g} of ReLU's best rate; mean differences: "
        + ", ".join(f"β = {beta:g}: {d.mean():.2g}" for beta, d in mean.items())
        + "".join(f"; at {f:g} of the best rate it falls by {d.mean():.2f} decades" for f, d in others.items()),
        plots=[
            Plot(
                Axis("step"),
                Axis("|log f_β − log f_ReLU|, mean over seeds", log=True),
                [Line(f"β = {beta:g}", at, np.maximum(d.mean(axis=0), 1e-12)) for beta, d in found.items()],
                says="Ten times the β, about a tenth of the difference, until rounding and kinks part the runs.",
            )
        ],
    )

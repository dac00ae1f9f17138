"""Sentence 3 on networks: RMSProp without a penalty, on ReLU networks and on twins that differ in the activation alone.

Full batch, constant step, at a rate that fits the data; the second half of each run is looked at. Rates, sizes and
tolerances were set on seeds from 900 on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER
from nonsmooth.ledger import Evidence, at_least, at_most, claim, equals
from nonsmooth.networks import Setting, drawn, runs_of
from nonsmooth.plots import Axis, Line, Plot, Table

__all__: list[str] = []

TWINS = ("gelu", "tanh")


def trained(
    activation: str, loss: str, seeds: int, master: int, data: str, optimizer: str = "rmsprop", **fields: Any
) -> list[dict[str, Any]]:
    """Rows of runs without a penalty, at RMSProp's 0.001 or SGD's 0.3 as far as `fields` say no other."""
    base: dict[str, Any] = {"samples": 100, "width": 32, "steps": 300, "every": 15, "tail": 0.5}
    base |= {"lr": 1e-3 if optimizer == "rmsprop" else 0.3, "watch": ("floor", "steps", "stabilities")}
    chosen = {"data": data, "activation": activation, "loss": loss, "optimizer": optimizer}
    return runs_of(drawn(Setting(**base | chosen | fields), seeds, master))


def tail(rows: Sequence[Mapping[str, Any]], observer: str, column: str) -> np.ndarray:
    """The mean of a column over the steps looked at, run by run; NaN where it is not defined."""
    columns = [row["found"][observer].get(column) or [None] for row in rows]
    return np.array([np.mean(np.array(values, dtype=float)) for values in columns])


def curve(rows: Sequence[Mapping[str, Any]], observer: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps looked at, and the mean of a column over the seeds there; NaN from where a run diverged."""
    t = max((row["found"][observer].get("t", []) for row in rows), key=len)
    columns = [row["found"][observer].get(column, []) for row in rows]
    padded = np.array([[*values, *[None] * (len(t) - len(values))] for values in columns], dtype=float)
    return np.array(t), padded.mean(0)


def kink_part(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Σκ_kink/Σκ over the steps looked at, of the frozen split."""
    return tail(rows, "steps", "kink") / tail(rows, "steps", "curvature")


def decades_of_curvature(
    twins: Sequence[str], loss: str, seeds: int, master: int, data: str, **fields: Any
) -> np.ndarray:
    """log₁₀ of the step curvature over its threshold in the ReLU network against each twin's, (twins, seeds)."""
    ratios = [tail(trained(a, loss, seeds, master, data, **fields), "steps", "step_ratio") for a in ("relu", *twins)]
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.log10(ratios)
    return each[0] - each[1:]


def steps_beyond(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The medians over steps and seeds, and the steps at twice the threshold or more, which a mean hangs on."""
    each = {
        act: np.array([ratio for r in rows for ratio in r["found"]["stabilities"].get("ratio", [])], dtype=float)
        for act, rows in found.items()
    }
    told = ", ".join(f"{np.median(ratios):.2f} ({act})" for act, ratios in each.items() if ratios.size)
    beyond = {act: ratios[ratios >= 2] for act, ratios in each.items() if (ratios >= 2).any()}
    spikes = "; ".join(f"{len(r)} of {len(each[act])} ({act}), up to {r.max():.3g}" for act, r in beyond.items())
    return f"Medians over steps: {told}. " + (
        f"Steps at twice the threshold or more: {spikes}. A ReLU unit that has been dead has v̂ = 0, and a "
        "preconditioner of ε's size when it fires again"
        if spikes
        else "No step was at twice the threshold"
    )


def training_table(
    activations: Sequence[str], losses: Sequence[str], seeds: int, master: int, data: str, **fields: Any
) -> Table:
    """What the tail of training looks like: a row an activation and loss, means over the seeds ± their spread."""
    rows = []
    for loss in losses:
        for act in activations:
            found = trained(act, loss, seeds, master, data, **fields)
            least, mean, loss_at_end, raised = (
                np.array([row.get(name, row["found"]["floor"].get(name)) for row in found], dtype=float)
                for name in ("least", "value", "loss", "raised")
            )
            columns = [
                *(tail(found, "stabilities", "ratio"), tail(found, "steps", "step_ratio"), kink_part(found)),
                *(raised, 1 - least / mean, loss_at_end),
            ]
            rows.append([act, loss, *(f"{c.mean():.2g} ± {c.std():.1g}" for c in columns)])
    return Table(
        [
            *("activation", "loss", "λ₁(P^-½HP^-½) / threshold", "κ of steps / threshold", "κ_kink / κ"),
            *("steps that raise the loss", "1 − least/mean loss of the tail", "loss at the end"),
        ],
        rows,
        title="RMSProp, the second half of training",
        says="Under squared error κ of the steps is near the threshold, ReLU or not; under cross-entropy it is "
        "not, and what there is of it in the ReLU network is kinks.",
    )


@claim(
    "networks/rmsprop-tunes-itself",
    says="Full-batch RMSProp under squared error brings networks to the edge of stability and keeps them there, ReLU "
    "and smooth twins alike: the preconditioned sharpness is the threshold, 2/η.",
    source="Cohen et al. 2022 (adaptive edge of stability), against " + PAPER.format(3),
    sentence=3,
    relation=equals(within=0.15),
    mutants={
        "SGD at the same rate": {"optimizer": "sgd", "lr": 1e-3, "activations": ("relu",), "seeds": 3},
        "cross-entropy, whose curvature goes as the data are fitted": {"loss": "cross_entropy"},
    },
    full={"seeds": 10, "activations": ("relu", "leaky_relu:0.1", "hardtanh", "gelu", "silu", "tanh")},
    bears="limits",
)
def rmsprop_tunes_itself(
    loss: str = "mse",
    optimizer: str = "rmsprop",
    lr: float = 1e-3,
    activations: Sequence[str] = ("relu", *TWINS),
    data: str = "digits",
    seeds: int = 5,
    steps: int = 300,
    master: int = 0,
) -> Evidence:
    fields: dict[str, Any] = {"optimizer": optimizer, "lr": lr, "steps": steps}
    found = {act: trained(act, loss, seeds, master, data, **fields) for act in activations}
    ratios = np.array([tail(rows, "stabilities", "ratio") for rows in found.values()])
    curves = {act: curve(rows, "stabilities", "ratio") for act, rows in found.items()}
    t = curves[activations[0]][0]
    other = tail(trained("relu", "cross_entropy", seeds, master, data, **fields), "stabilities", "ratio")
    return Evidence(
        "preconditioned sharpness over its threshold, tail mean",
        ratios,
        1.0,
        list(activations),
        holds_when=f"squared error, η = {lr:g}, steps {t[0]} to {t[-1]}; under cross-entropy the ReLU network had left "
        f"the edge by then, at {other.mean():.2f} of the threshold. {steps_beyond(found)}",
        plots=[
            Plot(
                Axis("step"),
                Axis("preconditioned sharpness over its threshold", log=True),
                [
                    *(Line(act, *xy) for act, xy in curves.items()),
                    Line("threshold", [t[0], t[-1]], [1, 1], "dash"),
                ],
                says="RMSProp holds the sharpness at its threshold; a spike is a dead ReLU unit that fires again.",
            ),
            training_table(activations, (loss, "cross_entropy"), seeds, master, data, **fields),
        ],
    )


@claim(
    "networks/rmsprop-edge-is-not-kinks",
    says="At RMSProp's edge in a ReLU network, kinks carry at most a quarter of the curvature that the steps meet.",
    source="our question: is the edge of ReLU networks made of kinks? For GD see the claims on the edge",
    sentence=3,
    relation=at_most(),
    mutants={"cross-entropy, away from the edge": {"loss": "cross_entropy"}},
    full={"seeds": 10, "activations": ("relu", "leaky_relu:0.1", "hardtanh")},
    bears="limits",
)
def rmsprop_edge_is_not_kinks(
    loss: str = "mse",
    activations: Sequence[str] = ("relu",),
    data: str = "digits",
    seeds: int = 5,
    steps: int = 300,
    master: int = 0,
) -> Evidence:
    found = {act: trained(act, loss, seeds, master, data, steps=steps) for act in activations}
    ratio = tail(found[activations[0]], "steps", "step_ratio")
    away = trained("relu", "cross_entropy", seeds, master, data, steps=steps)
    return Evidence(
        "κ_kink over κ along the tail, frozen split",
        [kink_part(rows) for rows in found.values()],
        0.25,
        list(activations),
        holds_when=f"the run is at the edge: κ of its steps is {ratio.mean():.2f} of the threshold. Under "
        f"cross-entropy, at {tail(away, 'steps', 'step_ratio').mean():.2f} of it, kinks carry "
        f"{kink_part(away).mean():.2f} of κ",
    )


@claim(
    "networks/rmsprop-relu-steps-meet-kinks",
    says="Away from the edge, under cross-entropy, RMSProp's steps in a ReLU network meet more than four times the "
    "curvature, over the threshold, that they meet in its smooth twins: RMSProp does not behave alike.",
    source=PAPER.format(3),
    sentence=3,
    relation=at_least(),
    mutants={"squared error, at the edge": {"loss": "mse"}},
    full={"seeds": 10, "twins": ("gelu", "silu", "tanh")},
)
def rmsprop_relu_steps_meet_kinks(
    loss: str = "cross_entropy",
    twins: Sequence[str] = TWINS,
    data: str = "digits",
    seeds: int = 5,
    steps: int = 300,
    master: int = 0,
) -> Evidence:
    rows = {act: trained(act, loss, seeds, master, data, steps=steps) for act in ("relu", *twins)}
    sharp = ", ".join(f"{tail(found, 'stabilities', 'ratio').mean():.2f} ({act})" for act, found in rows.items())
    return Evidence(
        "decades of κ over its threshold, ReLU over the twin, tail mean",
        decades_of_curvature(twins, loss, seeds, master, data, steps=steps),
        float(np.log10(4)),
        [f"against {act}" for act in twins],
        holds_when=f"the data are nearly fitted and the run is away from the edge; kinks carry "
        f"{kink_part(rows['relu']).mean():.2f} of κ there, and sharpness does not see them: over the threshold it is "
        f"{sharp}",
        plots=[
            Plot(
                Axis("step"),
                Axis("κ of the step over its threshold", log=True),
                [Line(act, *curve(found, "steps", "step_ratio")) for act, found in rows.items()],
                says="Each step of the ReLU network crosses kinks; its twins see next to no curvature.",
            )
        ],
    )


@claim(
    "networks/sgd-steps-meet-kinks-too",
    says="That is not RMSProp's own: at a rate that fits the data as well, SGD's steps meet more curvature in the ReLU "
    "network than in its twin by the same factor, within half a decade.",
    source="our question to " + PAPER.format(3),
    sentence=3,
    relation=equals(within=0.5, absolute=True),
    mutants={"SGD under squared error, at its edge": {"sgd_loss": "mse", "seeds": 3}},
    full={"seeds": 10},
    bears="limits",
)
def sgd_steps_meet_kinks_too(
    sgd_loss: str = "cross_entropy",
    lr: float = 0.3,
    twins: Sequence[str] = ("gelu",),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    rms = decades_of_curvature(twins, "cross_entropy", seeds, master, data)
    sgd = decades_of_curvature(twins, sgd_loss, seeds, master, data, optimizer="sgd", lr=lr)
    rms_runs = trained("relu", "cross_entropy", seeds, master, data)
    sgd_runs = trained("relu", sgd_loss, seeds, master, data, "sgd", lr=lr)
    ends = [np.mean(np.array([row["loss"] for row in rows], dtype=float)) for rows in (rms_runs, sgd_runs)]
    return Evidence(
        "decades of RMSProp's factor less those of SGD's",
        rms - sgd,
        0.0,
        [f"against {act}" for act in twins],
        holds_when=f"both have left the edge; the factor is 10^{rms.mean():.2f} with RMSProp and 10^{sgd.mean():.2f} "
        f"with SGD at η = {lr:g}, the loss at the end {ends[0]:.2g} and {ends[1]:.2g}",
    )

"""Sentence 3 on networks: RMSProp, Adam and SGD under an L1 penalty, and under an L2 penalty, which is smooth.

The penalties are so strong that all weights go to zero, and what is left of ‖w‖₁ is the bounce. Rates, sizes and
tolerances were set on seeds from 900 on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER
from nonsmooth.ledger import Evidence, at_least, at_most, claim, equals
from nonsmooth.networks import Setting, drawn, runs_of
from nonsmooth.plots import Axis, Line, Plot

__all__: list[str] = []

LAMS = (1.0, 10.0, 100.0)
TWINS = ("gelu", "tanh")
LEAST = 1e-12
"""A norm below this counts as this, so that it has a logarithm."""


def settings(
    optimizer: str,
    seeds: int,
    master: int,
    data: str,
    lam: float,
    penalty: str = "autograd",
    activation: str = "relu",
    lr: float = 3e-3,
    **fields: Any,
) -> list[Setting]:
    """Runs under λ‖w‖₁, or with penalty "ridge" under λ‖w‖², at a constant step, their last fifth looked at."""
    strength = {"weight_decay": 2 * lam} if penalty == "ridge" else {"penalty": penalty, "lam": lam}
    base: dict[str, Any] = {"samples": 50, "width": 16, "steps": 600, "watch": ("floor",), "tail": 0.2}
    chosen = {"data": data, "optimizer": optimizer, "activation": activation, "lr": lr}
    return drawn(Setting(**base | chosen | strength | fields), seeds, master)


def floors(runs: Sequence[Setting]) -> np.ndarray:
    """The tail mean of ‖w‖₁ over ηP/2, run by run."""
    found = [row["found"]["floor"] for row in runs_of(runs)]
    norms = np.array([f.get("l1_norm") for f in found], dtype=float)
    return norms / [s.lr * f["weights"] / 2 for f, s in zip(found, runs, strict=True)]


def floors_plot(lams: Sequence[float], measured: Mapping[str, np.ndarray], says: str) -> Plot:
    """A norm over ηP/2 against λ, a line an optimiser; each entry is (λ, seeds)."""
    grid = np.asarray(lams)
    lines = [
        Line(name, grid, values.mean(1), "markers", values.std(1) if values.shape[1] > 1 else None)
        for name, values in measured.items()
    ]
    laws = [Line("ηP/2", grid, grid**0, "dash"), Line("ηλP/2", grid, grid, "dash")]
    return Plot(Axis("λ", log=True), Axis("tail mean ‖w‖₁ over ηP/2", log=True), [*lines, *laws], says=says)


@claim(
    "networks/rmsprop-l1-floor",
    says="In a network under a strong L1 penalty, constant-step RMSProp settles at an L1 norm of ηP/2 over the P "
    "weights, whatever λ is, with ReLU and with its smooth twins: the kink that counts is the penalty's.",
    source=PAPER.format(3),
    sentence=3,
    relation=equals(within=0.05),
    mutants={"SGD, whose floor is proportional to λ": {"optimizer": "sgd", "twins": ()}},
    full={"seeds": 10, "lams": (1.0, 3.0, 10.0, 30.0, 100.0), "twins": TWINS},
)
def rmsprop_l1_floor(
    optimizer: str = "rmsprop",
    lams: Sequence[float] = LAMS,
    twins: Sequence[str] = ("gelu",),
    data: str = "digits",
    seeds: int = 5,
    steps: int = 600,
    master: int = 0,
) -> Evidence:
    """The twins at the second λ alone."""
    of = lambda name, lam, act="relu": floors(settings(name, seeds, master, data, lam, activation=act, steps=steps))  # noqa: E731
    measured = np.array([*(of(optimizer, lam) for lam in lams), *(of(optimizer, lams[1], act) for act in twins)])
    rms, sgd = (np.array([of(name, lam) for lam in lams]) for name in ("rmsprop", "sgd"))
    return Evidence(
        "tail mean ‖w‖₁ over ηP/2",
        measured,
        1.0,
        [*(f"ReLU, λ = {lam:g}" for lam in lams), *(f"{act}, λ = {lams[1]:g}" for act in twins)],
        holds_when=f"λ so strong that every weight goes to zero, {lams[0]:g} to {lams[-1]:g} here (the loss of a "
        f"network is then that of its output biases), η = 0.003 at every step; SGD's norm there is "
        + ", ".join(f"{m:.3g}" for m in sgd.mean(1))
        + " times ηP/2 at λ = "
        + ", ".join(f"{lam:g}" for lam in lams),
        plots=[floors_plot(lams, {"RMSProp": rms, "SGD": sgd}, "RMSProp's norm does not move with λ; SGD's is λ.")],
    )


@claim(
    "networks/rmsprop-ranking-reverses",
    says="At the same step and strength, SGD brings a network's weights nearer to zero than RMSProp under an L2 "
    "penalty, which is smooth, and leaves them farther from it under an L1 penalty with λ > 1.",
    source=PAPER.format(3),
    sentence=3,
    relation=at_least(),
    mutants={"the proximal map in place of autograd's gradient": {"penalty": "proximal", "seeds": 2}},
    full={"seeds": 10, "activations": ("relu", *TWINS)},
)
def rmsprop_ranking_reverses(
    penalty: str = "autograd",
    lam: float = 10.0,
    activations: Sequence[str] = ("relu",),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    """Zero is a local minimum under either penalty, and ‖w‖₁ the distance to it."""

    def decades(kind: str, act: str, lam: float = lam) -> np.ndarray:
        sgd, rms = (
            np.log10(np.maximum(floors(settings(name, seeds, master, data, lam, kind, act)), LEAST))
            for name in ("sgd", "rmsprop")
        )
        return sgd - rms

    scan = np.array([decades("autograd", "relu", lam).mean() for lam in LAMS])
    cases, samples = [], []
    for act in activations:
        cases += [f"{act}, L2: RMSProp's norm over SGD's", f"{act}, L1: SGD's norm over RMSProp's"]
        samples += [-decades("ridge", act), decades(penalty, act)]
    told = ", ".join(f"{10**d:.3g} at λ = {lam:g}" for d, lam in zip(scan, LAMS, strict=True))
    return Evidence(
        "decades by which the ranking is as said",
        samples,
        0.3,
        cases,
        holds_when=f"λ > 1 under L1, where the two cross as predicted (ηλP/2 = ηP/2): SGD's norm over RMSProp's is "
        f"{told}. Below, at equal η, SGD is the nearer one; 0.3 decades, a factor of two, are asked of each side",
        plots=[
            Plot(
                Axis("λ of the L1 penalty", log=True),
                Axis("SGD's norm over RMSProp's", log=True),
                [Line("measured", LAMS, 10**scan, "markers"), Line("λ", LAMS, LAMS, "dash")],
                says="Equal at λ = 1; beyond, SGD's weights are farther from zero by the factor λ.",
            )
        ],
    )


@claim(
    "networks/adam-l1-floor",
    says="Under an L1 penalty that takes all weights to zero, Adam and RMSProp part at the same rate: Adam's norm is "
    "less than half of ηP/2, where RMSProp settles, whatever λ is.",
    source=PAPER.format(3) + "; our statement for Adam",
    sentence=3,
    relation=at_most(),
    mutants={"RMSProp itself": {"optimizer": "rmsprop"}},
    full={"seeds": 10, "lams": LAMS},
)
def adam_l1_floor(
    optimizer: str = "adam",
    lams: Sequence[float] = (1.0, 100.0),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    found = {
        name: np.array([floors(settings(name, seeds, master, data, lam)) for lam in lams])
        for name in dict.fromkeys((optimizer, "rmsprop", "sgd"))
    }
    shown = {"adam": "Adam", "rmsprop": "RMSProp", "sgd": "SGD"}
    low, high = found[optimizer].min(), found[optimizer].max()
    return Evidence(
        "tail mean ‖w‖₁ over ηP/2",
        found[optimizer],
        0.5,
        [f"λ = {lam:g}" for lam in lams],
        holds_when=f"β₁ = 0.9: its average flattens the signs that change at every step. Over λ from {lams[0]:g} to "
        f"{lams[-1]:g} and seeds the norm was {low:.3f} to {high:.3f} of ηP/2; where it ends depends on the start",
        plots=[floors_plot(lams, {shown[k]: v for k, v in found.items()}, "A hundred times the λ moves SGD alone.")],
    )

"""Sentence 2 on networks: zeros, what thresholds find of them, and what pruning costs.

Rates, sizes and λ were set on seeds from 900 on. λ = 0.01 is one at which the network still classifies well and most
of its weights are not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nonsmooth.claims.networks.l1 import NETWORKS, accuracies, mean_and_spread, penalised, rows_of, zeros_of
from nonsmooth.claims.problems import PAPER
from nonsmooth.ledger import Evidence, at_least, at_most, claim, equals
from nonsmooth.plots import Axis, Plot

__all__ = ["LAM", "SCALES"]

LAM = 0.01
SCALES: dict[str, Any] = {"batchnorm": True, "on": "batchnorm", "lr": 0.1, "steps": 200}
"""Network slimming (Liu et al. 2017): the penalty is on the scales of BatchNorm, which all start at 1."""
WAYS: dict[str, tuple[tuple[float, ...], dict[str, Any]]] = {
    "SGD": ((0.01, 0.1, 1.0), {}),
    "SGD, full batch": ((0.1, 1.0), {"batch": 0}),
    "SGD, cosine schedule": ((0.01, 0.1, 1.0), {"schedule": "cosine"}),
    "Adam": ((0.01, 0.1, 1.0), {"optimizer": "adam"}),
    "RMSProp": ((0.01, 0.1), {"optimizer": "rmsprop"}),
    "SGD, scales of BatchNorm": ((0.1, 1.0, 10.0), SCALES),
}
"""The λ of each, and what differs from the setting of `penalised`."""


@claim(
    "networks/l1-no-exact-zeros",
    says="With autograd's gradient no penalised weight of a network is exactly 0 at any of the last steps, accidental "
    "zeros apart: whatever λ, optimiser and schedule.",
    source=PAPER.format(2),
    sentence=2,
    relation=equals(within=0.0, absolute=True),
    mutants={
        "the proximal map in place of autograd's gradient": {
            "penalty": "proximal",
            "ways": ("SGD, scales of BatchNorm",),
            "networks": ("MLP",),
        },
        "weights in bfloat16, which land on 0": {"dtype": "bfloat16", "ways": ("SGD",), "networks": ("MLP",)},
    },
    full={"seeds": 10, "networks": ("MLP", "CNN")},
)
def no_exact_zeros(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    penalty: str = "autograd",
    dtype: str = "float64",
    networks: Sequence[str] = ("MLP",),
    ways: Sequence[str] = tuple(WAYS),
) -> Evidence:
    """Accidental: a weight on which the data's gradient is exactly 0 as well."""
    cases = [(name, way) for name in networks for way in ways]
    settings = [
        penalised(lam, data, penalty=penalty, dtype=dtype, **NETWORKS[n] | WAYS[way][1])
        for n, way in cases
        for lam in WAYS[way][0]
    ]
    rows = rows_of(settings, seeds, master)
    most, accidental, idle = [], [], []
    for _, way in cases:
        mine, rows = rows[: len(WAYS[way][0])], rows[len(WAYS[way][0]) :]
        held = np.array([[zeros_of(row, "zeros_idle") for row in r] for r in mine])
        every = np.array([[zeros_of(row, "zeros") for row in r] for r in mine])
        most.append((every - held).max(axis=0))
        accidental.append(held.max())
        idle.append(max(zeros_of(row, "idle") / zeros_of(row, "weights") for r in mine for row in r))
    return Evidence(
        "most exact zeros over λ, mean of the last tenth of the steps",
        most,
        0.0,
        [f"{n}, {way}" for n, way in cases],
        holds_when=f"{dtype}; at most {max(accidental):.3g} accidental zeros beside them, though the data's gradient "
        f"is exactly 0 on up to {100 * max(idle):.0f} % of the weights (inputs that are always 0, dead units)",
    )


@claim(
    "networks/l1-proximal-exact-zeros",
    says="The proximal map sets at least a quarter of the weights, or of BatchNorm's scales, to exactly 0 in a network "
    "that still classifies.",
    source="Parikh & Boyd 2014; Yun, Lozano & Yang 2021; Liu et al. 2017 for the scales",
    sentence=2,
    relation=at_least(),
    bears="limits",
    mutants={"autograd's gradient in place of the proximal map": {"penalty": "autograd"}},
    full={"seeds": 10, "networks": ("MLP", "CNN")},
)
def proximal_zeros(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    penalty: str = "proximal",
    networks: Sequence[str] = ("MLP",),
) -> Evidence:
    ways: dict[str, tuple[float, dict[str, Any]]] = {
        "SGD": (LAM, {}),
        "Adam": (LAM, {"optimizer": "adam"}),
        "SGD, scales of BatchNorm": (0.1, SCALES),
    }
    cases = [(name, way) for name in networks for way in ways]
    settings = [penalised(ways[w][0], data, penalty=penalty, **NETWORKS[n] | ways[w][1]) for n, w in cases]
    rows = rows_of(settings, seeds, master)
    shares = [[zeros_of(row, "zeros") / zeros_of(row, "weights") for row in r] for r in rows]
    right = ", ".join(f"{a:.2f}" for a in accuracies(rows).mean(axis=1))
    return Evidence(
        "share of exact zeros, mean of the last tenth of the steps",
        shares,
        0.25,
        [f"{n}, {way}, λ = {ways[way][0]:g}" for n, way in cases],
        holds_when=f"minibatches of 50; test accuracies {right}",
    )


BOTH: dict[str, dict[str, Any]] = {"SGD": {}, "Adam": {"optimizer": "adam"}}


@claim(
    "networks/l1-thresholds-miss-the-zeros",
    says="A threshold below the chatter misses the zeros: of the weights that the proximal map sets to 0, 1e-4 finds "
    "less than half in a network trained through autograd.",
    source=PAPER.format(2) + "; our statement: chatter of amplitude ηλ puts a share t/(ηλ) below t",
    sentence=2,
    relation=at_most(),
    mutants={"a threshold above the chatter": {"threshold": 1e-2}},
    full={"seeds": 10, "networks": ("MLP", "CNN")},
)
def thresholds_miss(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    threshold: float = 1e-4,
    networks: Sequence[str] = ("MLP",),
    lam: float = LAM,
) -> Evidence:
    cases = [(n, way) for n in networks for way in BOTH]
    settings = [
        penalised(lam, data, penalty=p, **NETWORKS[n] | BOTH[w]) for n, w in cases for p in ("autograd", "proximal")
    ]
    rows = rows_of(settings, seeds, master)
    thresholds = zeros_of(rows[0][0], "thresholds")
    near = np.array([[zeros_of(row, "near") for row in r] for r in rows[::2]], dtype=float)
    zeros = np.array([[zeros_of(row, "zeros") for row in r] for r in rows[1::2]])
    found = near / zeros[..., None]
    listed = "; ".join(
        f"{n}, {w}: " + ", ".join(f"{100 * m:.0f} % at {t:g}" for t, m in zip(thresholds, f.mean(axis=0)))
        for (n, w), f in zip(cases, found, strict=True)
    )
    return Evidence(
        f"weights below {threshold:g} through autograd over exact zeros through Proximal",
        found[..., thresholds.index(threshold)],
        0.5,
        [f"{n}, {w}" for n, w in cases],
        holds_when=f"t < ηλ under SGD, t < η under Adam, λ = {lam:g}. Found: {listed}",
    )


def kept_accuracies(rows: Sequence[Sequence[dict[str, Any]]]) -> np.ndarray:
    """Test accuracy after pruning, (settings, seeds, shares); 0 where the run diverged."""
    shares = len(zeros_of(rows[0][0], "shares"))
    return np.array([[[0.0] * shares if row["diverged"] else zeros_of(row, "kept") for row in r] for r in rows])


FREE = "without a penalty"
TRAINED = {"through autograd": "autograd", "through Proximal": "proximal", FREE: "none"}


def pruned(
    cases: Sequence[tuple[str, str]],
    better: str,
    worse: str,
    by: float,
    share: float,
    lam: float,
    data: str,
    seeds: int,
    master: int,
) -> Evidence:
    """The accuracy of one way to train less that of another, each pruned to the same share of its weights."""
    settings = [
        penalised(0.0 if name == FREE else lam, data, **NETWORKS[n] | BOTH[w], penalty=penalty)
        for n, w in cases
        for name, penalty in TRAINED.items()
    ]
    rows = rows_of(settings, seeds, master)
    shares, names = zeros_of(rows[0][0], "shares"), list(TRAINED)
    kept = kept_accuracies(rows).reshape(len(cases), len(names), seeds, len(shares))
    whole = accuracies(rows).reshape(len(cases), len(names), seeds).mean(axis=2)
    asked = kept[..., shares.index(share)]
    listed = [
        f"{n}, {w}: "
        + ", ".join(f"{name} {asked[i, j].mean():.2f} of {whole[i, j]:.2f}" for j, name in enumerate(names))
        for i, (n, w) in enumerate(cases)
    ]
    return Evidence(
        f"test accuracy after pruning, {better} less {worse}",
        asked[:, names.index(better)] - asked[:, names.index(worse)],
        by,
        [f"{n}, {w}" for n, w in cases],
        holds_when=f"λ = {lam:g}, the largest {100 * share:g} % of the weights kept, nothing trained afterwards. "
        f"Accuracy pruned of unpruned: {'; '.join(listed)}",
        plots=[
            Plot(
                Axis("share of the weights kept", log=True),
                Axis("test accuracy"),
                [mean_and_spread(name, shares, kept[i, j].T) for j, name in enumerate(names)],
                title=f"{n}, {w}",
                says="Through autograd or Proximal, an L1 penalty lets most weights go; without it they are missed.",
            )
            for i, (n, w) in enumerate(cases)
        ],
    )


@claim(
    "networks/l1-pruning-needs-proximal",
    says="Pruned to a tenth of the weights, a network trained with L1 through autograd is less accurate, by five "
    "points or more, than one trained through the proximal map.",
    source=PAPER.format(2) + "; what it would mean for pruning, in our words",
    sentence=2,
    relation=at_least(),
    mutants={"the proximal map on both sides": {"worse": "through Proximal"}},
    full={"seeds": 10, "networks": ("MLP", "CNN")},
)
def pruning_needs_proximal(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    worse: str = "through autograd",
    networks: Sequence[str] = ("MLP",),
    share: float = 0.1,
    lam: float = LAM,
) -> Evidence:
    cases = [(n, w) for n in networks for w in BOTH]
    return pruned(cases, "through Proximal", worse, 0.05, share, lam, data, seeds, master)


@claim(
    "networks/l1-helps-pruning",
    says="An L1 penalty through autograd does what pruning wants of it: with a tenth of the weights the network is "
    "more accurate, by twenty points or more, than one trained without a penalty and pruned as much.",
    source="Han et al. 2015, who prune the smallest weights; the comparison is ours",
    sentence=2,
    relation=at_least(),
    bears="limits",
    mutants={"no penalty on either side": {"better": FREE}},
    full={"seeds": 10, "networks": ("MLP", "CNN")},
)
def helps_pruning(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    better: str = "through autograd",
    networks: Sequence[str] = ("MLP",),
    share: float = 0.1,
    lam: float = LAM,
) -> Evidence:
    cases = [(n, w) for n in networks for w in BOTH]
    return pruned(cases, better, FREE, 0.2, share, lam, data, seeds, master)

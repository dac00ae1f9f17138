"""Sentence 2 on networks: the norm of the weights that a larger L1 penalty leaves.

Rates, sizes and the grid of λ were set on seeds from 900 on. All runs take minibatches of 50 unless a case says
otherwise; norms are means over the last tenth of the steps, an even number, never of the last iterate alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from nonsmooth.claims.problems import PAPER
from nonsmooth.ledger import Evidence, at_least, at_most, claim, equals, where
from nonsmooth.networks import Setting, drawn, runs_of
from nonsmooth.plots import Axis, Line, Plot

__all__ = ["NETWORKS", "RATES", "chance", "mean_and_spread", "norms", "penalised", "rows_of", "zeros_of"]

Row = dict[str, Any]

RATES = {"sgd": 0.2, "adam": 0.01, "rmsprop": 0.003}
"""The step sizes, for each optimiser."""
LAMS = (0.003, 0.01, 0.03, 0.1, 1.0)
FINE = (0.003, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 1.0)
NETWORKS: dict[str, dict[str, Any]] = {
    "MLP": {},
    "CNN": {"model": "cnn", "width": 6},
    "MLP, mean squared error": {"loss": "mse"},
    "MLP on MNIST-1D": {"data": "mnist1d"},
}
"""By name, what differs from the setting of `penalised`."""


def penalised(lam: float, data: str = "digits", /, **changes: Any) -> Setting:
    """The setting of these claims: an MLP of 2 × 32 units, minibatches of 50, 240 steps at the optimiser's rate.

    >>> penalised(0.5).lam, penalised(0.5, steps=10).steps
    (0.5, 10)
    """
    fields: dict[str, Any] = {
        "penalty": "autograd",
        "data": data,
        "batch": 50,
        "steps": 240,
        "tail": 0.1,
        "watch": ("zeros",),
    }
    return Setting(**fields | {"lam": lam, "lr": RATES[changes.get("optimizer", "sgd")]} | changes)


def rows_of(settings: Sequence[Setting], seeds: int, master: int) -> list[list[Row]]:
    """The rows of each setting, a seed each.

    >>> rows_of([], 5, 0)
    []
    """
    rows = runs_of([s for setting in settings for s in drawn(setting, seeds, master)])
    return [rows[i : i + seeds] for i in range(0, len(rows), seeds)]


def zeros_of(row: Row, name: str) -> Any:
    """What the observer `zeros` found under a name; not a number where the run diverged.

    >>> zeros_of({"found": {"zeros": {"norm": 2.0}}}, "norm"), zeros_of({"found": {"zeros": {}}}, "norm")
    (2.0, nan)
    """
    value = row["found"]["zeros"].get(name)
    return math.nan if value is None else value


def norms(rows: Sequence[Sequence[Row]]) -> np.ndarray:
    """The tail mean of ‖w‖₁, shape (settings, seeds); infinite where the run diverged.

    >>> norms([[{"diverged": True}, {"diverged": False, "found": {"zeros": {"norm": 2.0}}}]]).tolist()
    [[inf, 2.0]]
    """
    return np.array([[math.inf if row["diverged"] else zeros_of(row, "norm") for row in seeds] for seeds in rows])


def accuracies(rows: Sequence[Sequence[Row]]) -> np.ndarray:
    """On the test set, shape (settings, seeds); 0 where the run diverged."""
    return np.array([[row["accuracy"] or 0.0 for row in seeds] for seeds in rows])


def chance(data: str) -> float:
    """The test accuracy of the best constant answer.

    >>> chance("digits") < 0.12
    True
    """
    from nonsmooth.networks.data import load

    classes = load(data).y_test
    return float(np.bincount(classes).max() / len(classes))


def mean_and_spread(name: str, x: Any, samples: np.ndarray, style: Any = "line") -> Line:
    """A line through the means over seeds, with the standard deviation as its error.

    >>> mean_and_spread("norm", [1.0], np.array([[1.0, 3.0]])).y.tolist()
    [2.0]
    """
    return Line(name, x, samples.mean(axis=1), style, error=samples.std(axis=1, ddof=1))


def ratio(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """high/low, and 0 where both are 0."""
    return np.divide(high, low, out=np.zeros_like(high), where=low > 0)


@claim(
    "networks/l1-larger-penalty-larger-norm",
    says="A network trained by SGD on an L1 penalty through autograd ends with a larger L1 norm when λ is made ten "
    "times larger, from λ = 0.1 on: the paradox.",
    source=PAPER.format(2),
    sentence=2,
    relation=at_least(),
    mutants={
        "the proximal map in place of autograd's gradient": {
            "penalty": "proximal",
            "batches": (50,),
            "networks": ("MLP",),
        }
    },
    full={"seeds": 10, "networks": ("MLP", "CNN", "MLP, mean squared error", "MLP on MNIST-1D"), "scan": FINE},
)
def larger_penalty(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    penalty: str = "autograd",
    networks: Sequence[str] = ("MLP",),
    batches: Sequence[int] = (50, 0),
    lams: Sequence[float] = (0.1, 1.0),
    scan: Sequence[float] = LAMS,
) -> Evidence:
    kinds = [(name, batch) for name in networks for batch in batches]
    pairs = [penalised(lam, data, penalty=penalty, **NETWORKS[n], batch=b) for n, b in kinds for lam in lams]
    found = norms(rows_of(pairs, seeds, master)).reshape(len(kinds), len(lams), seeds)
    evidence = ratio(found[:, -1], found[:, 0])
    if penalty != "autograd":
        return Evidence("norm at 10λ over norm at λ", evidence, 1.0, [_kind(*kind) for kind in kinds])
    scanned = rows_of([penalised(lam, data) for lam in scan], seeds, master)
    curve, right = norms(scanned), accuracies(scanned)
    turn = int(np.argmin(curve.mean(axis=1)))
    law = RATES["sgd"] * np.asarray(scan) * zeros_of(scanned[0][0], "weights") / 2
    free = norms(rows_of([penalised(0.0, data, penalty="none")], seeds, master)).mean()
    cured = norms(rows_of([penalised(lam, data, penalty="proximal") for lam in scan if lam <= 0.1], seeds, master))
    return Evidence(
        f"norm at λ = {lams[-1]:g} over norm at λ = {lams[0]:g}",
        evidence,
        1.0,
        [_kind(*kind) for kind in kinds],
        holds_when=f"λ ≥ {scan[turn]:g}, where the norm is smallest, {curve[turn].mean():.3g} against {free:.3g} "
        f"without penalty; the test accuracy is {right[turn].mean():.2f} there (η = {RATES['sgd']:g})",
        plots=[
            Plot(
                Axis("λ", log=True),
                Axis("‖w‖₁", log=True),
                [
                    mean_and_spread("through autograd", scan, curve, "markers"),
                    Line("ηλP/2", scan, law, "dash"),
                    mean_and_spread(
                        "through Proximal", [x for x in scan if x <= 0.1], np.where(cured > 0, cured, np.nan)
                    ),
                ],
                says="The norm falls with λ until nothing is left but the chatter, which grows with λ.",
            ),
            Plot(
                Axis("λ", log=True),
                Axis("test accuracy"),
                [mean_and_spread("through autograd", scan, right, "markers")],
                says="Where the norm turns upwards the network is at chance.",
            ),
        ],
    )


def _kind(name: str, batch: int) -> str:
    return f"{name}, " + (f"minibatches of {batch}" if batch else "full batch")


SURVIVES: dict[str, dict[str, Any]] = {
    "weight decay 0.01": {"weight_decay": 0.01},
    "AMP in bfloat16": {"dtype": "float32", "amp": True},
    "momentum 0.9": {"momentum": 0.9},
    "GELU": {"activation": "gelu"},
    "BatchNorm": {"batchnorm": True},
}


@claim(
    "networks/l1-paradox-survives",
    says="Weight decay, mixed precision, momentum, a smooth activation and BatchNorm leave the paradox: a ten times "
    "larger λ gives a larger norm.",
    source=PAPER.format(2) + "; the variations are ours",
    sentence=2,
    relation=at_least(),
    mutants={"the proximal map in place of autograd's gradient": {"penalty": "proximal", "names": ("GELU",)}},
    full={"seeds": 10},
)
def survives(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    penalty: str = "autograd",
    names: Sequence[str] = tuple(SURVIVES),
    lams: Sequence[float] = (0.1, 1.0),
) -> Evidence:
    settings = [penalised(lam, data, penalty=penalty, **SURVIVES[name]) for name in names for lam in lams]
    found = norms(rows_of(settings, seeds, master)).reshape(len(names), len(lams), seeds)
    ratios = ratio(found[:, -1], found[:, 0])
    return Evidence(
        f"norm at λ = {lams[-1]:g} over norm at λ = {lams[0]:g}",
        ratios,
        1.0,
        list(names),
        holds_when=f"a constant step (η = {RATES['sgd']:g}); the ratio is {ratios.min():.3g} to {ratios.max():.3g}, "
        f"and {lams[-1] / lams[0]:g} by the law ηλP/2",
    )


@claim(
    "networks/l1-norm-turns-at-chance",
    says="In a network without BatchNorm the norm turns upwards only where λ has already brought the network down to "
    "chance: as long as it classifies, a larger λ gives a smaller norm.",
    source="our statement: the objection that no one would use such a λ",
    sentence=2,
    relation=at_most(0.05, absolute=True),
    bears="limits",
    mutants={
        "BatchNorm, whose network does not depend on the size of its weights": {
            "batchnorm": True,
            "lr": 0.5,
            "lams": (0.01, 0.03, 0.1),
            "networks": ("MLP",),
        }
    },
    full={"seeds": 10, "networks": ("MLP", "CNN"), "lams": FINE},
)
def turns_at_chance(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    networks: Sequence[str] = ("MLP",),
    batchnorm: bool = False,
    lr: float = RATES["sgd"],
    lams: Sequence[float] = LAMS,
) -> Evidence:
    settings = [penalised(lam, data, batchnorm=batchnorm, lr=lr, **NETWORKS[n]) for n in networks for lam in lams]
    rows = rows_of(settings, seeds, master)
    shape = (len(networks), len(lams), seeds)
    found, right = norms(rows).reshape(shape), accuracies(rows).reshape(shape)
    turn = found.argmin(axis=1)
    at = np.take_along_axis(right, turn[:, None], axis=1)[:, 0]
    worst = chance(data)
    alive = [where("λ", lams, curve.mean(axis=1) > worst + 0.05) for curve in right]
    turns = [", ".join(f"{lams[i]:g}" for i in sorted(set(index.tolist()))) for index in turn]
    return Evidence(
        "test accuracy at the λ of the smallest norm",
        at,
        worst,
        list(networks),
        holds_when="; ".join(
            f"{name}: above chance for {a}, smallest norm at λ = {t} over the seeds"
            for name, a, t in zip(networks, alive, turns, strict=True)
        )
        + f"; η = {lr:g}, {'with' if batchnorm else 'without'} BatchNorm",
        plots=[
            Plot(
                Axis("test accuracy"),
                Axis("‖w‖₁", log=True),
                [Line(f"{n}, a point for each λ and seed", right[i].ravel(), found[i].ravel(), "markers")
                 for i, n in enumerate(networks)],
                says="Among networks that classify, the smaller norm is the larger λ's.",
            )
        ],
    )  # fmt: skip


@claim(
    "networks/l1-floor-law",
    says="Beyond the λ at which the network collapses, SGD's norm is ηλP/2 for P penalised weights, whatever network "
    "and data.",
    source="our statement: each weight bounces between a and a − ηλ (the SGD floor)",
    sentence=2,
    relation=equals(within=0.02),
    mutants={
        "momentum, which bounces further": {"momentum": 0.9, "batches": (50,), "networks": ("MLP",)},
        "λ where the network still learns": {"lams": (0.01,), "batches": (50,), "networks": ("MLP",)},
    },
    full={"seeds": 10, "networks": tuple(NETWORKS)},
)
def floor_law(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    networks: Sequence[str] = ("MLP",),
    batches: Sequence[int] = (50, 0),
    lams: Sequence[float] = (0.1, 1.0),
    momentum: float = 0.0,
) -> Evidence:
    kinds = [(name, batch, lam) for name in networks for batch in batches for lam in lams]
    settings = [penalised(lam, data, **NETWORKS[n], batch=b, momentum=momentum) for n, b, lam in kinds]
    rows = rows_of(settings, seeds, master)
    law = np.array([[s["setting"]["lr"] * k[2] * zeros_of(s, "weights") / 2 for s in r] for k, r in zip(kinds, rows)])
    share = norms(rows) / law
    return Evidence(
        "tail mean ‖w‖₁ over ηλP/2",
        share,
        1.0,
        [f"{_kind(n, b)}, λ = {lam:g}" for n, b, lam in kinds],
        holds_when=f"λ from {lams[0]:g} to {lams[-1]:g}, η = {RATES['sgd']:g}, a constant step: off by at most "
        f"{100 * np.abs(share - 1).max():.2g} %; weights whose data gradient is 0 included",
    )


@claim(
    "networks/l1-adam-ignores-lambda",
    says="Under Adam there is no such paradox: beyond the collapse a ten times larger λ leaves the norm where it is.",
    source="our statement; Kingma & Ba 2015, section 2.1 (invariance to rescaling of the gradients)",
    sentence=2,
    relation=equals(within=0.25),
    bears="limits",
    mutants={"SGD": {"optimizer": "sgd"}},
    full={"seeds": 10, "networks": ("MLP", "CNN")},
)
def adam_ignores(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    optimizer: str = "adam",
    networks: Sequence[str] = ("MLP",),
    lams: Sequence[float] = (0.1, 1.0),
) -> Evidence:
    settings = [penalised(lam, data, optimizer=optimizer, **NETWORKS[n]) for n in networks for lam in lams]
    rows = rows_of(settings, seeds, master)
    found = norms(rows).reshape(len(networks), len(lams), seeds)
    weights = np.array([zeros_of(row[0], "weights") for row in rows[:: len(lams)]])
    share = found / (RATES[optimizer] * weights[:, None, None] / 2)
    return Evidence(
        f"norm at λ = {lams[-1]:g} over norm at λ = {lams[0]:g}",
        ratio(found[:, -1], found[:, 0]),
        1.0,
        list(networks),
        holds_when=f"λ from {lams[0]:g} to {lams[-1]:g}, η = {RATES[optimizer]:g}; the norm is {share.min():.2g} to "
        f"{share.max():.2g} of ηP/2",
    )


@claim(
    "networks/l1-cosine-undoes-the-paradox",
    says="A cosine schedule undoes the paradox: at the end a λ ten or a hundred times larger than that of a working "
    "network leaves less than a hundredth of its norm.",
    source="our statement: the objection that constant steps do the work",
    sentence=2,
    relation=at_most(),
    bears="limits",
    mutants={"constant steps": {"schedule": "constant"}},
    full={"seeds": 10, "networks": ("MLP", "CNN")},
)
def cosine(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    schedule: str = "cosine",
    networks: Sequence[str] = ("MLP",),
    lams: Sequence[float] = (0.01, 0.1, 1.0),
) -> Evidence:
    """Of the last iterate: the steps of the last tenth differ a hundredfold."""
    settings = [penalised(lam, data, schedule=schedule, **NETWORKS[n]) for n in networks for lam in lams]
    rows = rows_of(settings, seeds, master)
    shape = (len(networks), len(lams), seeds)
    ends = np.array([[row["l1_norm"] for row in r] for r in rows], dtype=float).reshape(shape)
    left = ends[:, 1:] / ends[:, :1]
    return Evidence(
        f"norm at the end over that at λ = {lams[0]:g}",
        left.reshape(-1, seeds),
        0.01,
        [f"{n}, λ = {lam:g}" for n in networks for lam in lams[1:]],
        holds_when=f"{schedule} steps from {RATES['sgd']:g}; test accuracy {accuracies(rows)[0].mean():.2f} at "
        f"λ = {lams[0]:g}. What is left still grows with λ, {float(np.median(ends[:, -1] / ends[:, -2])):.2g} times "
        f"from λ = {lams[-2]:g} to {lams[-1]:g}, but it is {ends[:, -1].mean():.2g} in all: the last step's chatter",
    )


@claim(
    "networks/l1-proximal-norm-falls",
    says="Trained through the proximal map, the network's norm falls as λ grows, to exactly 0.",
    source="Parikh & Boyd 2014; Yun, Lozano & Yang 2021",
    sentence=2,
    relation=at_most(),
    bears="limits",
    mutants={"autograd's gradient in place of the proximal map": {"penalty": "autograd", "lams": (0.03, 0.1, 1.0)}},
    full={"seeds": 10, "networks": ("MLP", "CNN")},
)
def proximal_norm(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    penalty: str = "proximal",
    networks: Sequence[str] = ("MLP",),
    lams: Sequence[float] = (0.003, 0.01, 0.1),
) -> Evidence:
    settings = [penalised(lam, data, penalty=penalty, **NETWORKS[n]) for n in networks for lam in lams]
    rows = rows_of(settings, seeds, master)
    found = norms(rows).reshape(len(networks), len(lams), seeds)
    steps = np.stack([ratio(b, a) for network in found for a, b in pairwise(network)])
    right = ", ".join(f"{a:.2f}" for a in accuracies(rows).mean(axis=1))
    return Evidence(
        "norm at the larger λ over that at the smaller",
        steps,
        1.0,
        [f"{n}, λ = {b:g} over {a:g}" for n in networks for a, b in pairwise(lams)],
        holds_when=f"λ from {lams[0]:g} to {lams[-1]:g}; means of the norm "
        f"{', '.join(f'{x:.3g}' for x in found.mean(axis=2).ravel())} at test accuracies {right}",
    )

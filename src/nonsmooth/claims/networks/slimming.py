"""Sentence 2 on networks: an L1 penalty on the scales of BatchNorm, as network slimming has it.

Rates, sizes and λ were set on seeds from 900 on. λ from 0.1, where slimming works, to 10.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nonsmooth.claims.networks.l1 import (
    NETWORKS,
    accuracies,
    mean_and_spread,
    norms,
    penalised,
    ratio,
    rows_of,
    zeros_of,
)
from nonsmooth.claims.networks.pruning import SCALES
from nonsmooth.claims.problems import PAPER
from nonsmooth.ledger import Evidence, at_least, claim
from nonsmooth.plots import Axis, Line, Plot

__all__: list[str] = []

SLIMMING = "Liu et al. 2017 (network slimming); "


@claim(
    "networks/slimming-larger-penalty-larger-norm",
    says="Network slimming has the paradox: beyond its turn a ten times larger L1 penalty on the scales of BatchNorm "
    "leaves a larger norm of them.",
    source=SLIMMING + PAPER.format(2),
    sentence=2,
    relation=at_least(),
    mutants={"the proximal map in place of autograd's gradient": {"penalty": "proximal", "lams": (1.0, 10.0)}},
    full={"seeds": 10, "networks": ("MLP", "CNN")},
)
def slimming_norm(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    penalty: str = "autograd",
    networks: Sequence[str] = ("MLP",),
    lams: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0),
) -> Evidence:
    settings = [penalised(lam, data, **NETWORKS[n] | SCALES, penalty=penalty) for n in networks for lam in lams]
    rows = rows_of(settings, seeds, master)
    shape = (len(networks), len(lams), seeds)
    found, right = norms(rows).reshape(shape), accuracies(rows).reshape(shape)
    pairs = [(i, j) for i, low in enumerate(lams) for j, high in enumerate(lams) if low >= 0.3 and high == 10 * low]
    scales = [zeros_of(row[0], "weights") for row in rows[:: len(lams)]]
    return Evidence(
        "norm of the scales at 10λ over norm at λ",
        np.concatenate([[ratio(network[j], network[i]) for i, j in pairs] for network in found]),
        1.0,
        [f"{n}, λ = {lams[j]:g} over {lams[i]:g}" for n in networks for i, j in pairs],
        holds_when="; ".join(
            f"{n}: norm " + ", ".join(f"{x:.3g}" for x in f.mean(axis=1))
            + " and test accuracy " + ", ".join(f"{x:.2f}" for x in a.mean(axis=1))
            for n, f, a in zip(networks, found, right, strict=True)
        ) + f" at λ = {', '.join(f'{lam:g}' for lam in lams)}",
        plots=[
            Plot(
                Axis("λ", log=True),
                Axis("norm of BatchNorm's scales", log=True),
                [
                    *(mean_and_spread(n, lams, f, "markers") for n, f in zip(networks, found, strict=True)),
                    *(Line(f"ηλP/2, P = {p}", lams, SCALES["lr"] * np.asarray(lams) * p / 2, "dash") for p in scales),
                ],
                says="Beyond the turn the norm follows the chatter law.",
            )
        ],
    )  # fmt: skip


@claim(
    "networks/slimming-penalty-undone",
    says="A penalty on the scales that is ten times larger undoes itself: at λ = 10 the network is more accurate, by "
    "thirty points or more, than at λ = 1.",
    source=SLIMMING + "our statement: scales that start at 1 chatter in step, at one common size",
    sentence=2,
    relation=at_least(),
    mutants={"the proximal map in place of autograd's gradient": {"penalty": "proximal"}},
    full={"seeds": 10, "networks": ("MLP", "CNN")},
)
def slimming_undone(
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
    penalty: str = "autograd",
    networks: Sequence[str] = ("MLP",),
    lams: Sequence[float] = (1.0, 10.0),
) -> Evidence:
    settings = [penalised(lam, data, **NETWORKS[n] | SCALES, penalty=penalty) for n in networks for lam in lams]
    rows = rows_of(settings, seeds, master)
    right = accuracies(rows).reshape(len(networks), len(lams), seeds)
    near = [max(zeros_of(row, "near")[-1] for row in r) for r in rows[len(lams) - 1 :: len(lams)]]
    return Evidence(
        f"test accuracy at λ = {lams[-1]:g} less that at λ = {lams[0]:g}",
        right[:, -1] - right[:, 0],
        0.3,
        list(networks),
        holds_when=f"SGD, a constant step η = {SCALES['lr']:g}: ηλ = {SCALES['lr'] * lams[-1]:g} is the size at which "
        f"scales start. Scales below 0.01 at λ = {lams[-1]:g}: {', '.join(map(str, near))}",
    )

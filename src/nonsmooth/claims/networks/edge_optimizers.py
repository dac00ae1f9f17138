"""Sentence 4 on networks: the edge of minibatch SGD, of heavy ball and of Adam, each by the measure that is its own.

Steps, sizes and tolerances were set on seeds from 900 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nonsmooth.claims.networks.edge import DEEP, NARROW, NETWORKS, first_sharpness, interval, seen, tail_mean
from nonsmooth.claims.networks.l1 import Row, rows_of
from nonsmooth.ledger import Evidence, at_least, claim, equals
from nonsmooth.networks import Setting
from nonsmooth.plots import Axis, Line, Plot

__all__: list[str] = []

BATCH_STARTS = {1: 0.25, 8: 0.55, 32: 0.8}
"""η in units of 2/λ₁(0), by the size of the batch."""


def curves(rows: Sequence[Sequence[Row]], names: Sequence[str], observer: str, column: str) -> list[Line]:
    """The mean of a column over the seeds against the step, with the deviation."""
    lines = []
    for name, each in zip(names, rows, strict=True):
        whole = [row["found"][observer] for row in each if not row["diverged"]]
        if whole:
            values = np.array([found[column] for found in whole], dtype=float)
            lines.append(Line(name, whole[0]["t"], values.mean(axis=0), "line", values.std(axis=0)))
    return lines


@claim(
    "networks/edge-minibatch",
    says="With minibatches the measure at the threshold is batch sharpness: it settles within 40 % of 2/η.",
    source="Andreyev & Beneventano 2024 (arXiv 2412.20553), abstract",
    sentence=4,
    relation=equals(within=0.4),
    bears="limits",
    mutants={"a step far below, for 100 steps": {"scale": 0.05, "steps": 100, "seeds": 3}},
    full={"batches": (1, 8, 32), "activations": ("relu", "gelu"), "seeds": 10},
)
def minibatch(
    batches: Sequence[int] = (8,),
    activations: Sequence[str] = ("relu",),
    scale: float = 1.0,
    data: str = "digits",
    seeds: int = 5,
    steps: int = 600,
    master: int = 0,
) -> Evidence:
    """`scale`: η in units of what `BATCH_STARTS` says."""
    fields = NETWORKS[NARROW][0] | {"steps": steps, "every": max(1, steps // 20), "data": data}
    watch = ("batch_sharpnesses", "sharpnesses")
    pairs = [(batch, activation) for batch in batches for activation in activations]
    made = [Setting(batch=b, activation=a, watch=watch, **fields) for b, a in pairs]
    starts = zip(made, pairs, first_sharpness(made, master), strict=True)
    rows = rows_of([replace(s, lr=2 * scale * BATCH_STARTS[b] / first) for s, (b, _), first in starts], seeds, master)
    names = [f"batches of {b}, {a}" for b, a in pairs]
    ratio = lambda row, name: tail_mean(row, name, "value") * row["setting"]["lr"] / 2  # noqa: E731
    batch, top = (np.array([[ratio(row, name) for row in each] for each in rows]) for name in watch)
    return Evidence(
        "mean batch sharpness over the last half ÷ 2/η",
        batch,
        1.0,
        names,
        holds_when="; ".join(
            f"{name}: batch sharpness {interval(b)}, λ₁ of the whole loss {interval(t)} of 2/η"
            for name, b, t in zip(names, batch, top, strict=True)
        ),
        plots=[
            Plot(
                Axis("case, in the order " + ", ".join(names)),
                Axis("curvature ÷ 2/η"),
                [
                    Line(n, np.arange(1, len(names) + 1), v.mean(axis=1), "markers", v.std(axis=1))
                    for n, v in (("batch sharpness", batch), ("λ₁", top))
                ],
                says="Batch sharpness and λ₁ of the whole loss; mean and deviation over the seeds.",
            )
        ],
    )


@claim(
    "networks/edge-heavy-ball",
    says="Under heavy ball 0.9 kinked and smooth networks train at an edge of its own: the sharpness comes up to "
    "2(1+β)/η, and the loss is lowered all the same.",
    source="Cohen et al. 2021, appendix B",
    sentence=4,
    relation=at_least(0.2),
    bears="limits",
    mutants={
        "a step too small to come there": {"start": 0.02, "activations": ("relu",), "seeds": 3},
        "a step so large that the loss blows up": {"start": 20.0, "activations": ("relu",), "seeds": 3},
    },
    full={"activations": ("relu", "leaky_relu:0.1", "gelu", "tanh"), "seeds": 10},
)
def heavy_ball(
    activations: Sequence[str] = ("relu", "gelu"),
    start: float = 0.5,
    beta: float = 0.9,
    data: str = "digits",
    seeds: int = 5,
    steps: int = 120,
    master: int = 0,
) -> Evidence:
    """`start`: η in units of 2(1+β)/λ₁(0)."""
    fields = NETWORKS[NARROW][0] | {"steps": steps, "every": 8, "tail": 0.0, "data": data}
    made = [Setting(activation=a, momentum=beta, watch=("stabilities",), **fields) for a in activations]
    starts = zip(made, first_sharpness(made, master), strict=True)
    rows = rows_of([replace(s, lr=2 * (1 + beta) * start / first) for s, first in starts], seeds, master)
    ratios = [[seen(row, "stabilities", "ratio") for row in each] for each in rows]
    highest, last = (np.array([[of(r) for r in each] for each in ratios]) for of in (np.max, lambda r: r[-1]))
    begun, ended = (
        np.array([[np.nan if row["diverged"] else of(row) for row in each] for each in rows], dtype=float)
        for of in (lambda row: row["losses"][0], lambda row: row["loss"])
    )
    thrown = ended > begun
    return Evidence(
        f"the largest λ₁ of a run ÷ 2(1+β)/η, over {steps} steps: counted as 1 where it is beyond, and as 0 where the "
        "loss ends above its start",
        np.where(thrown, 0.0, np.minimum(highest, 1.0)),
        1.0,
        activations,
        holds_when="; ".join(
            f"{a}: λ₁ at most {interval(h)}, at the end {interval(at)} of 2(1+β)/η; the loss ends at "
            f"{np.nanmin(loss, initial=np.inf):.2g} to {np.nanmax(loss, initial=0.0):.2g}, above its start in "
            f"{up.sum()} of {up.size}"
            for a, h, at, loss, up in zip(activations, highest, last, ended, thrown, strict=True)
        ),
        plots=[
            Plot(
                Axis("step"),
                Axis("λ₁ ÷ 2(1+β)/η"),
                curves(rows, activations, "stabilities", "ratio"),
                says="It rises to the threshold and does not stay: the network learns its samples, or falls off.",
            )
        ],
    )


@claim(
    "networks/edge-adam",
    says="Full-batch Adam trains kinked and smooth networks with the preconditioned sharpness near 38/η, within 30 %.",
    source="Cohen et al. 2022, abstract: 2(1+β₁)/((1−β₁)η)",
    sentence=4,
    relation=equals(within=0.3),
    bears="limits",
    mutants={"a step far below, for 100 steps": {"lr": 5e-4, "activations": ("relu",), "steps": 100, "seeds": 3}},
    full={"activations": ("relu", "leaky_relu:0.1", "gelu", "tanh"), "steps": 400, "seeds": 10},
)
def adam(
    activations: Sequence[str] = ("relu", "gelu"),
    lr: float = 0.02,
    data: str = "digits",
    seeds: int = 5,
    steps: int = 300,
    master: int = 0,
) -> Evidence:
    fields = NETWORKS[DEEP][0] | {"steps": steps, "every": max(1, steps // 10 + 1), "tail": 0.5, "data": data}
    made = [Setting(activation=a, optimizer="adam", lr=lr, watch=("stabilities",), **fields) for a in activations]
    rows = rows_of(made, seeds, master)
    ratio = np.array([[np.median(seen(row, "stabilities", "ratio")) for row in each] for each in rows])
    return Evidence(
        "median preconditioned sharpness over the last half ÷ 38/η",
        ratio,
        1.0,
        activations,
        holds_when=f"η = {lr:g}, {steps} steps: "
        + "; ".join(f"{a}: {interval(r)} of 38/η" for a, r in zip(activations, ratio, strict=True)),
        plots=[
            Plot(
                Axis("step"),
                Axis("λ₁(P^{-½}HP^{-½}) ÷ 38/η"),
                curves(rows, activations, "stabilities", "ratio"),
                says="Kinked and smooth networks alike stay near the threshold; mean and deviation over the seeds.",
            )
        ],
    )

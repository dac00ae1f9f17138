"""Sentence 4 on networks: below the classical threshold, where smooth networks converge and ReLU networks do not.

Full-batch GD on networks with BatchNorm, whose λ₁ stays well below 2/η for the steps tried. Steps, sizes and tolerances
were set on seeds from 900 on; that λ₁ is below, and what becomes of the smooth twin, is in the evidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nonsmooth.claims.networks.edge import (
    DEEP,
    HALF,
    MORE,
    NARROW,
    WAVES,
    Figures,
    columns_of,
    edge_table,
    interval,
    measured,
)
from nonsmooth.ledger import Evidence, at_least, at_most, claim
from nonsmooth.plots import Axis, Line, Plot

__all__: list[str] = []


@claim(
    "networks/edge-below-the-threshold",
    says="Below the classical threshold, where the sharpness λ₁ is less than 2/η, the orbit curvature κ̄ of ReLU "
    "networks exceeds λ₁; that of their smooth twins, which converge, does not.",
    source="our statement; for convex f with L for λ₁, κ̄ ≤ L by co-coercivity (Nesterov 2004, theorem 2.1.5): a "
    "network's loss is not convex, and its twin is what it is compared with",
    sentence=4,
    relation=at_least(),
    mutants={f"GELU, {network}": {"activations": ("gelu",), "networks": (network,)} for network in (HALF, MORE)},
    full={"networks": (HALF, MORE, WAVES), "seeds": 10},
)
def below_the_threshold(
    networks: Sequence[str] = (HALF, MORE),
    activations: Sequence[str] = ("relu",),
    twin: str = "gelu",
    beyond: Sequence[str] = (DEEP, NARROW),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    """`beyond`: networks at the edge, which the figure shows beside these."""
    cases = [f"{network}: {activation}" for network in networks for activation in activations]
    twins = [f"{network}: {twin}" for network in networks]
    more = [f"{network}: {a}" for network in beyond for a in (*activations, twin)]
    found = measured([*cases, *twins, *more], data, seeds, master)
    bars, tops = columns_of(found, "κ̄"), columns_of(found, "λ₁")
    named = [case.partition(": ")[2] for case in (*cases, *twins, *more)]
    place = {a: [i for i, name in enumerate(named) if name == a] for a in dict.fromkeys(named)}
    return Evidence(
        "κ̄ ÷ mean λ₁ over the tail",
        (bars / tops)[: len(cases)],
        1.0,
        cases,
        holds_when="; ".join(
            f"{case}: λ₁ {interval(tops[i])} and κ̄ {interval(bars[i])} of 2/η, the smooth twin λ₁ "
            f"{interval(tops[len(cases) + i // len(activations)])} and κ̄ "
            f"{interval(bars[len(cases) + i // len(activations)])}"
            for i, case in enumerate(cases)
        ),
        plots=[
            Plot(
                Axis("λ₁ ÷ 2/η"),
                Axis("κ̄ ÷ 2/η"),
                [
                    *(Line(a, tops[i].ravel(), bars[i].ravel(), "markers") for a, i in place.items()),
                    Line("the classical threshold", [1, 1], [0, 1.1], "dash"),
                ],
                title="Orbit curvature against sharpness",
                says="A point a run. Smooth networks come to κ̄ = 2/η where λ₁ does; ReLU networks long before.",
            ),
            edge_table([*cases, *twins], found[: len(cases) + len(twins)]),
        ],
    )


@claim(
    "networks/edge-kinks-below-the-threshold",
    says="Below the classical threshold kinks carry at least a quarter of what curvature the steps of ReLU networks "
    "meet, by the frozen split and by the path split.",
    source="our statement, a question: how much of the edge of ReLU networks is made of kinks?",
    sentence=4,
    bears="limits",
    relation=at_least(),
    mutants={"the same networks at the edge": {"networks": (DEEP,)}},
    full={"networks": (HALF, MORE, WAVES), "seeds": 10},
)
def kinks_below_the_threshold(
    networks: Sequence[str] = (HALF, MORE),
    splits: Sequence[str] = ("κ_kink/κ", "κ_kink/κ, path"),
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    cases = [f"{network}: relu" for network in networks]
    found = measured(cases, data, seeds, master)
    names = [f"{network}, {split.partition(', ')[2] or 'frozen'}" for split in splits for network in networks]
    return Evidence(
        "mean κ_kink over mean κ in the tail",
        [each[split] for split in splits for _, each in found],
        0.25,
        names,
        holds_when="; ".join(
            f"{network}: λ₁ {interval(each['λ₁'])}, κ {interval(each['κ'])}, κ_kink {interval(each['κ_kink'])} of "
            f"2/η, kink share {interval(each['kink share'])}"
            for network, (_, each) in zip(networks, found, strict=True)
        ),
        plots=[edge_table(cases, found)],
    )


def dial_name(slope: float) -> str:
    """ReLU is the leaky ReLU of slope 0, and shares its runs."""
    return "relu" if slope == 0 else f"leaky_relu:{slope:g}"


@claim(
    "networks/edge-dial",
    says="The slope of a leaky ReLU is a dial from kinked to linear: below the threshold κ_kink falls from that of "
    "ReLU, at least as fast as the jump 1 − slope of a unit's derivative.",
    source="our statement: the jump of a unit's derivative is 1 − slope",
    sentence=4,
    relation=at_most(),
    mutants={"the sharpness in place of κ_kink": {"measure": "λ₁"}},
    full={"slopes": (0.3, 0.6, 0.9), "seeds": 10},
)
def dial(
    slopes: Sequence[float] = (0.6, 0.9),
    measure: str = "κ_kink",
    network: str = MORE,
    data: str = "digits",
    seeds: int = 5,
    master: int = 0,
) -> Evidence:
    turned = (0.0, *slopes)
    found = measured([f"{network}: {dial_name(s)}" for s in turned], data, seeds, master)
    ratio = columns_of(found, measure)[1:] / columns_of(found, measure)[0]
    shown: dict[str, np.ndarray] = {name: columns_of(found, name) for name in ("κ̄", "κ_kink", "kink share")}
    return Evidence(
        f"{measure} ÷ {measure} of ReLU",
        ratio,
        1 - np.array(slopes),
        [f"slope {s:g}" for s in slopes],
        holds_when="; ".join(f"slope {s:g}: {_words(each)}" for s, (_, each) in zip(turned, found, strict=True)),
        plots=[
            Plot(
                Axis("slope of the leaky ReLU"),
                Axis("κ̄ and κ_kink ÷ 2/η, and the kink share"),
                [Line(n, turned, v.mean(axis=1), "markers", v.std(axis=1)) for n, v in shown.items()],
                says="Towards slope 1, where the network is linear, all of it goes; mean and deviation over the seeds.",
            )
        ],
    )


def _words(each: Figures) -> str:
    """What the dial shows at a slope."""
    parts = (f"{name} {interval(each[name])}" for name in ("λ₁", "κ̄", "κ_kink"))
    return ", ".join(parts) + f" of 2/η, kink share {interval(each['kink share'])}"

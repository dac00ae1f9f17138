"""Sentence 5: the derivative of a non-smooth function is not the framework's to give; it depends on the spelling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import xarray as xr

from nonsmooth.claims.problems import PAPER
from nonsmooth.claims.spellings import jax_derivative, jax_spellings, probe, table, torch_spellings
from nonsmooth.kinks import KINKS, Kink, Returned
from nonsmooth.ledger import Evidence, at_least, claim, equals
from nonsmooth.objectives import subgradient_hard_instance
from nonsmooth.plots import Axis, Line, Plot, Style, Table

RELU, IDENTITY, MAXIMUM = KINKS["max(x, 0)"], KINKS["x"], KINKS["max(x₁, x₂)"]
PAIRS = {"JAX": ("x.max()", "x[argmax(x)]"), "torch": ("x.max()", "x.max(0).values")}
"""In each framework, a spelling that shares the gradient among the winners and one that takes the first."""

Derivative = Callable[[Any, Sequence[float]], tuple[float, ...]]


def frameworks() -> dict[str, tuple[Any, Derivative]]:
    """The spellings and the derivative of each framework that is installed."""
    found: dict[str, tuple[Any, Derivative]] = {"JAX": (jax_spellings(), jax_derivative)}
    torch = torch_spellings()
    if torch:
        found["torch"] = (torch.SPELLINGS, torch.derivative)
    return found


def by_framework(rows: Sequence[Returned]) -> dict[str, list[Returned]]:
    """The rows of each framework, by its name with its version."""
    return {name: list(mine) for name, mine in groupby(rows, lambda row: f"{row.framework} {row.version}")}


def smooth_at(kink: Kink, at: Sequence[float], derivative: Sequence[float]) -> Kink:
    """The same function at a point where it is differentiable."""
    return Kink(kink.function, tuple(at), (tuple(derivative),))


@claim(
    "autodiff/one-function-many-derivatives",
    says="max(x, 0) has no derivative at 0; which one a framework returns there depends on how the function is "
    "spelled, and three values at least occur in each.",
    source=PAPER.format(5) + "; Bertoin, Bolte, Gerchinovitz & Pauwels 2021 on the choice of relu'(0)",
    sentence=5,
    relation=at_least(),
    mutants={"the same spellings at x = 1, where the function is differentiable": {"at": 1.0}},
)
def one_function_many_derivatives(at: float = 0.0, points: int = 10, master: int = 0) -> Evidence:
    found = by_framework(probe(RELU if at == 0 else smooth_at(RELU, [at], [float(at > 0)])))
    drawn = np.random.default_rng(master).uniform(0.1, 5.0, points) * np.resize([1.0, -1.0], points)
    away = [row for x in drawn for row in probe(smooth_at(RELU, [x], [float(x > 0)]))]
    agree = sum(row.inside for row in away)
    spelled = table()
    return Evidence(
        "number of distinct derivatives of max(x, 0)",
        [len({row.value for row in rows}) for rows in found.values()],
        3.0,
        list(found),
        holds_when=f"x is exactly 0; at {points} other points {agree} of {len(away)} derivatives are right",
        plots=[spellings_table(spelled)],
        data=spelled,
    )


def spellings_table(spelled: xr.Dataset) -> Table:
    """Every spelling of every function and what it returned at the kink; first those that no subgradient can be."""
    columns = ("function", "spelling", "framework", "returned", "clarke", "inside")
    rows = []
    for function, spelling, framework, returned, clarke, inside in zip(*map(spelled.attrs.get, columns), strict=True):
        at = ", ".join(f"{entry:g}" for entry in KINKS[function].at)
        kink = f"{function} at ({at})" if "," in at else f"{function} at {at}"
        value = "0" if returned == "-0" else returned
        rows.append([kink, spelling, value, clarke, "yes" if inside else "no", framework])
    outside = [row for row in rows if row[4] == "no"]
    return Table(
        ["kink", "spelling", "returned", "Clarke subdifferential", "inside", "framework"],
        [*outside, *(row for row in rows if row[4] == "yes")],
        title="What each spelling returns at the kink",
        says=f"{len(outside)} of {len(rows)} return what is not in the Clarke subdifferential; they come first.",
    )


@claim(
    "autodiff/outside-the-clarke-subdifferential",
    says="relu(x) − relu(−x) is x, whose derivative is 1; at 0 automatic differentiation returns 0, which is the slope "
    "of nothing: not a subgradient, and a point where gradient descent stops that is not stationary.",
    source=PAPER.format(5) + "; Kakade & Lee 2018; Bolte & Pauwels 2021",
    sentence=5,
    relation=equals(within=1e-9, absolute=True),
    mutants={"relu(x) alone": {"function": "max(x, 0)", "spelling": "relu(x)"}},
)
def outside_the_clarke_subdifferential(
    function: str = "x", spelling: str = "relu(x) - relu(-x)", points: int = 10, steps: int = 30, master: int = 0
) -> Evidence:
    kink = KINKS[function]
    found = by_framework([row for row in probe(kink) if row.spelling.removeprefix("nn.") == spelling])
    others = [row for row in probe(IDENTITY) if row.spelling.removeprefix("nn.") != "relu(x) - relu(-x)"]
    told = ", ".join(f"{row.shown} by {row.spelling} in {row.framework}" for row in others)
    drawn = np.random.default_rng(master).standard_normal(points)
    right, tried = 0, 0
    lines: list[Line] = []
    for name, (spellings, derivative) in frameworks().items():
        h = spellings["x"]["relu(x) - relu(-x)"]
        right += sum(derivative(h, [x]) == (1.0,) for x in drawn)
        tried += points
        path = descent(lambda x, h=h: 0.5 * (h(x) - 1) ** 2, derivative, [0.0], lr=0.3, steps=steps)
        style: Style = "markers" if lines else "line"  # on one another, and both to be seen
        loss = 0.5 * (path[:, 0] - 1) ** 2
        lines.append(Line(f"through relu(x) − relu(−x), {name}", np.arange(steps + 1), loss, style))
    plain = descent(lambda x: 0.5 * (x - 1) ** 2, jax_derivative, [0.0], lr=0.3, steps=steps)
    lines.append(Line("through x", np.arange(steps + 1), 0.5 * (plain[:, 0] - 1) ** 2, "dash"))
    return Evidence(
        "distance from the derivative returned to the Clarke subdifferential",
        [row.distance for rows in found.values() for row in rows],
        1.0,
        list(found),
        holds_when=f"x is exactly 0 (at {tried} draws from N(0, 1) {right} were 1) and two selections are combined "
        f"that do not fit; other spellings return {told}",
        plots=[
            Plot(
                Axis("step"),
                Axis("½(x − 1)²"),
                lines,
                title="Gradient descent on ½(x − 1)² from x = 0, η = 0.3",
                says="Written through relu(x) − relu(−x), the function keeps the run at 0; written through x, it does "
                "not.",
            )
        ],
    )


def descent(f: Any, derivative: Derivative, x0: Sequence[float], lr: float, steps: int) -> np.ndarray:
    """The iterates x⁺ = x − η g̃(x) with a framework's own derivative, shape (steps + 1, P)."""
    path = [np.asarray(x0, dtype=float)]
    for _ in range(steps):
        path.append(path[-1] - lr * np.array(derivative(f, path[-1].tolist())))
    return np.array(path)


@claim(
    "autodiff/ties-in-max",
    says="At a tie of two, x.max() returns (½, ½), and the spelling that looks the winner up returns (1, 0): both are "
    "subgradients, √½ apart, and they lead to different runs.",
    source=PAPER.format(5) + "; Drori & Teboulle 2016 for the instance",
    sentence=5,
    relation=equals(within=1e-9, absolute=True),
    mutants={"no tie": {"at": (1.0, 0.5)}},
)
def ties_in_max(at: Sequence[float] = (1.0, 1.0), n: int = 12, points: int = 10, master: int = 0) -> Evidence:
    kink = MAXIMUM if at[0] == at[1] else smooth_at(MAXIMUM, at, [float(at[0] > at[1]), float(at[0] < at[1])])
    found = by_framework(probe(kink))
    drawn = np.random.default_rng(master).standard_normal((points, 2))
    instance = subgradient_hard_instance(n)
    floor = float(instance.b[-1])
    apart, beside, lines, told = [], 0.0, [], []
    styles: dict[str, Style] = {"JAX": "line", "torch": "markers"}  # on one another, and both to be seen
    for (name, rows), (framework, (spellings, derivative)) in zip(found.items(), frameworks().items(), strict=True):
        pair = [next(row for row in rows if row.spelling == spelling) for spelling in PAIRS[framework]]
        apart.append(float(np.linalg.norm(np.subtract(pair[0].value, pair[1].value))))
        f, g = (spellings["max(x₁, x₂)"][spelling] for spelling in PAIRS[framework])
        beside = max(beside, *(float(np.abs(np.subtract(derivative(f, x), derivative(g, x))).max()) for x in drawn))
        inside = "inside" if all(row.inside for row in pair) else "not both inside"
        best = []
        for spelling in PAIRS[framework]:
            f = spellings["max(x₁, x₂)"][spelling]
            path = selected_descent(f, derivative, n + 1, floor, steps=n)
            best.append(np.minimum.accumulate(np.array([instance.value(x) for x in path]) - floor))
            lines.append(Line(f"{spelling}, {framework}", np.arange(n + 1), best[-1], styles[framework]))
        told.append(
            f"{name}: {inside} the Clarke subdifferential, best gaps after {n} steps {best[0][-1]:.3f} and "
            f"{best[1][-1]:.3f}"
        )
    return Evidence(
        "distance between the two derivatives",
        apart,
        float(np.sqrt(0.5)),
        list(found),
        holds_when=f"the tie is exact (at {points} draws without a tie they differ by {beside:g}); {'; '.join(told)}",
        plots=[
            Plot(
                Axis("step"),
                Axis("best gap so far"),
                lines,
                title=f"The hard instance of {n} steps, by two spellings of its maximum",
                says="With shared ties the gap falls at every step; with the first winner it stays at the worst case "
                "of the subgradient method.",
            )
        ],
    )


def selected_descent(f: Any, derivative: Derivative, size: int, floor: float, steps: int) -> np.ndarray:
    """Steps of −floor from 0 on max(x, floor), with a framework's own derivative of a spelling f of the maximum.

    The floor is one more score, which has no gradient.
    """
    path = [np.zeros(size)]
    for _ in range(steps):
        g = np.array(derivative(f, [*path[-1].tolist(), floor]))[:size]
        path.append(path[-1] + floor * g)
    return np.array(path)


@claim(
    "autodiff/exact-kinks-depend-on-precision",
    says="A layer of random weights meets relu's kink exactly when it adds up in half precision, at least once in "
    "100,000 pre-activations: a hundred units on a thousand inputs will do. In float32 two million show none.",
    source=PAPER.format(5) + "; Bertoin, Bolte, Gerchinovitz & Pauwels 2021, on numerical precision",
    sentence=5,
    relation=at_least(),
    mutants={
        "float64": {"dtypes": ("float64",)},
        "float32": {"dtypes": ("float32",)},
        "float16 with its sums kept in float32": {"dtypes": ("float16",), "sums": "float32"},
    },
    full={"layers": 400},
)
def exact_kinks_depend_on_precision(
    dtypes: Sequence[str] = ("float16", "bfloat16"),
    sums: str | None = None,
    layers: int = 40,
    units: int = 200,
    batch: int = 250,
    width: int = 16,
    master: int = 0,
) -> Evidence:
    shares = {name: exact_zeros(name, sums or name, layers, units, batch, width, master) for name in dtypes}
    others = {name: exact_zeros(name, name, layers, units, batch, width, master) for name in ("float32", "float64")}
    kept = exact_zeros("float16", "float32", layers, units, batch, width, master)
    total = layers * units * batch
    told = ", ".join(f"{round(share.sum() * units * batch)} in {name}" for name, share in others.items())
    bits = np.arange(4, 12)
    rounded = np.array([exact_zeros(int(p), int(p), 2, units, batch, width, master).mean() for p in bits])
    scale = float(np.exp(np.mean(np.log(np.maximum(rounded, 1e-12)) + bits * np.log(2))))
    precision = np.array([4, 8, 11, 24, 53])
    return Evidence(
        "share of pre-activations that are exactly 0",
        list(shares.values()),
        1e-5,
        list(dtypes),
        holds_when=f"the sums are kept in the layer's own precision: of {total} pre-activations, {told}, and "
        f"{round(kept.sum() * units * batch)} in float16 with sums kept in float32, as fast kernels keep them; {width} "
        f"Gaussian inputs a unit, no bias. Extrapolated to float32 the share is {scale * 0.5**24:.0e}",
        plots=[
            Plot(
                Axis("bits of the significand: bfloat16 8, float16 11, float32 24, float64 53"),
                Axis("share of exact zeros", log=True),
                [
                    Line("rounded to so many bits", bits, np.where(rounded > 0, rounded, np.nan), "markers"),
                    Line("halved with each bit", precision, scale * 0.5**precision, "dash"),
                ],
                says="Each bit halves the share: what one layer hardly meets at 24 bits, a large network still does.",
            )
        ],
    )


def exact_zeros(
    number: str | int, sums: str | int, layers: int, units: int, batch: int, width: int, master: int
) -> np.ndarray:
    """The share of exact zeros among Xᵀw in each of some random layers; a number format, or bits of significand.

    Products and sums are rounded to `sums` one after the other, the result to `number`.
    """
    found = []
    for layer in range(layers):
        rng = np.random.default_rng([master, layer])
        W, X = (_round(rng.standard_normal((width, size)), number) for size in (units, batch))
        total = _round(np.zeros((units, batch)), sums)
        for w, x in zip(W, X, strict=True):
            product = _round(_round(w, sums)[:, None] * _round(x, sums)[None, :], sums)
            total = _round(total + product, sums)
        found.append(float((_round(total, number) == 0).mean()))
    return np.array(found)


def _round(a: np.ndarray, number: str | int) -> np.ndarray:
    if isinstance(number, int):  # exact in float64, where products of 26 bits and their sums fit
        significand, exponent = np.frexp(a)
        return np.ldexp(np.round(np.ldexp(significand, number)), exponent - number)
    if number == "bfloat16":
        import ml_dtypes  # of JAX

        return a.astype(ml_dtypes.bfloat16)
    return a.astype(number)

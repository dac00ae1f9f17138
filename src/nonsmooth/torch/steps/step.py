"""What one optimiser step met: its curvature, how much of it came from kinks, which units flipped.

For a step D = x⁺ − x, with the gradients g at x and g⁺ at x⁺ on the same data and the same random masks:
κ = ⟨g⁺ − g, D⟩/‖D‖², the curvature at the step's own scale (Mishkin et al. 2024: directional smoothness). With g_F the
gradient at x⁺ of the piece that was active at x, g⁺ − g = (g_F − g) + (g⁺ − g_F) is a smooth part and a kink part: the
*frozen* split. The *path* split takes ∫₀¹ H(x + sD) D ds for the smooth part, H the Hessian of the piece active at each
point; it does not depend on how f is spelled, and costs a Hessian product a node. The two differ: say which.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from nonsmooth.torch.selection import Flip, Selection
from nonsmooth.torch.steps.evaluation import (
    Closure,
    Pieces,
    SameRandomNumbers,
    Vector,
    chunks,
    finite,
    flat,
    hessian_product,
    kept,
    named,
    norm,
    parts,
    put,
    ratio,
    share,
)
from nonsmooth.torch.steps.seen import seen
from nonsmooth.torch.undisturbed import undisturbed

__all__ = ["OrbitCurvature", "Split", "Step", "measure_step"]

VALUES = 64
"""A unit that passes every twentieth value on is off in so many by chance once in 27 times."""


@dataclass(frozen=True)
class Split:
    """g⁺ − g in a smooth and a kink part; `method` is "frozen" or "path".

    κ_smooth + κ_kink = κ, either may be negative. `share` = ‖kink‖/(‖smooth‖ + ‖kink‖), of the gradient's change and
    not of its curvature, whole, by parameter and by layer (the name of the module that holds the parameter); 0/0 is 0,
    and nan where a part is not finite. `error`: of a path split, an estimate of the error of its smooth
    part relative to ‖g⁺ − g‖ (the last change as the nodes doubled, and half of the one before); 0 for a frozen one,
    which has only rounding.

    >>> w = torch.tensor([-1.0, 3.0], dtype=torch.float64, requires_grad=True)
    >>> after = [torch.tensor([1.0, 3.0])]  # of w²/2 + |w| the gradient changes by (2, 0) + (2, 0)
    >>> split = measure_step(lambda: (w.square() / 2 + w.abs()).sum(), [("0.w", w)], after).frozen
    >>> split.smooth, split.kink, split.share, split.by_layer
    (1.0, 1.0, 0.5, (('0', 0.5),))
    """

    method: str
    smooth: float
    kink: float
    share: float
    by_parameter: tuple[tuple[str, float], ...] = ()
    by_layer: tuple[tuple[str, float], ...] = ()
    error: float = 0.0
    nodes: int = 0
    converged: bool = True


@dataclass(frozen=True)
class Step:
    """One measured step. Curvatures and Lipschitz constants are in units of loss over parameter².

    `predicted` is ⟨g, D⟩, the change of the loss to first order; `curvature` κ = ⟨g⁺ − g, D⟩/‖D‖², 0 for a step of
    length 0; `length` ‖D‖; `change` ‖g⁺ − g‖; `secant` ⟨g⁺ − g, D⟩. `flips` says operation by operation how many units
    changed their piece; `undefined` why what is nan is so; `unseen` what may hide kinks from the frozen split.

    >>> w = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    >>> step = measure_step(lambda: w.abs().sum(), [w], [torch.tensor([-0.75])])  # gradient descent on |w|, η = 1
    >>> step.curvature, step.frozen.share, step.flipped
    (2.0, 1.0, 1)
    """

    loss_before: float
    loss_after: float
    predicted: float
    curvature: float
    length: float
    change: float
    secant: float
    frozen: Split
    path: Split | None = None
    flips: tuple[Flip, ...] = ()
    undefined: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def lipschitz(self) -> float:
        """‖g⁺ − g‖/‖D‖: the Lipschitz constant of the gradient must be at least this."""
        return ratio(self.change, self.length)

    @property
    def flipped(self) -> int:
        """The units that changed their piece in operations with a kink as they are used."""
        return sum(f.flipped for f in self.flips if not f.whole)

    @property
    def ties(self) -> int:
        """The units exactly on a breakpoint after the step."""
        return sum(f.ties for f in self.flips if not f.whole)

    @property
    def flips_by_layer(self) -> dict[str, int]:
        """The flipped units of each module, in the order of the run."""
        found: dict[str, int] = {}
        for f in self.flips:
            if not f.whole:
                found[f.layer] = found.get(f.layer, 0) + f.flipped
        return found

    def __str__(self) -> str:
        lines = [
            f"loss {self.loss_before:.6g} → {self.loss_after:.6g}, predicted change {self.predicted:.3g}; "
            f"‖D‖ {self.length:.3g}, κ {self.curvature:.4g}, ‖g⁺ − g‖/‖D‖ {self.lipschitz:.4g}"
        ]
        for split in (self.frozen, self.path):
            if split is not None:
                error = f" ± {split.error:.1g} of ‖g⁺ − g‖, {split.nodes} nodes" if split.method == "path" else ""
                lines.append(
                    f"{split.method}: κ_smooth {split.smooth:.4g}, κ_kink {split.kink:.4g}, "
                    f"kink share {split.share:.3f}{error}"
                )
        lines.append(f"units flipped: {self.flipped}, on a breakpoint after the step: {self.ties}")
        return "\n".join([*lines, *(f"undefined: {why}" for why in self.undefined)])


def measure_step(
    closure: Closure,
    params: Any,
    step: Callable[[], Any] | Sequence[torch.Tensor],
    *,
    path: bool = False,
    tol: float = 1e-2,
    max_nodes: int = 129,
) -> Step:
    """Measure the step from the present parameters to those after `step`.

    closure: returns the scalar loss, and never calls backward. It must give the same loss when called again from the
        same random numbers of Python, NumPy and torch: the same batch. Generators of its own are not looked after.
    params: a module, its `named_parameters()`, or tensors (named by their index then).
    step: takes the optimiser's step when called, which stays taken; or the parameters after it, in the order of params:
        then these are put in for the measurement, and taken out again.
    path: also the path split: trapezoids whose intervals double from 2, with at most `max_nodes` nodes, until the
        smooth part is known to tol·‖g⁺ − g‖; `Split.converged` says whether it got there.

    Over ranks (`mean_over_ranks`) it is the step of the loss over all samples, flips those of all ranks.
    Costs three gradients, one of which the user's own step has paid for already, and a Hessian product a node. Random
    numbers, buffers, modes and `.grad` are left as they were (`step` itself may change what it likes); all sums are in
    float64. Raises ValueError for a closure or parameters that cannot be measured.

    >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    >>> step = measure_step(lambda: 1.5 * w.square().sum(), [w], [torch.tensor([0.5, 1.0])])
    >>> step.curvature, step.frozen.share, step.predicted  # curvature 3, no kinks
    (3.0, 0.0, -7.5)
    >>> w.tolist()
    [1.0, 2.0]
    """
    return measured(closure, params, step, path, tol, max_nodes)[0]


@dataclass(frozen=True, eq=False)
class Vectors:
    """What a step was measured from: g and g⁺, a tensor a parameter, and the selection before it.

    >>> w = torch.tensor([1.0], requires_grad=True)
    >>> measured(lambda: w.square().sum(), [w], [torch.tensor([0.5])])[1].g_next
    [tensor([1.])]
    """

    g: Sequence[torch.Tensor]
    g_next: Pieces
    before: Selection

    @property
    def active(self) -> dict[str, float]:
        """The share of ReLU units that pass their input on, before the step, by the module that they are in."""
        counts: dict[str, tuple[int, int]] = {}
        for c in self.before.choices:
            if c.operation in ("relu", "relu6") and isinstance(c.piece, torch.Tensor):
                on = int((c.piece == 1).sum())
                had = counts.get(c.layer, (0, 0))
                counts[c.layer] = (had[0] + on, had[1] + c.piece.numel())
        return {layer: on / units for layer, (on, units) in counts.items() if units}

    @property
    def silent(self) -> dict[str, float]:
        """The share of ReLU units that pass nothing on for any of the data, before the step, by module.

        A unit is a channel: the second axis of inputs with 2, 4 or 5, the last one of others; of fewer than `VALUES`
        values a unit nothing is said.
        """
        found: dict[str, float] = {}
        for c in self.before.choices:
            if c.operation in ("relu", "relu6") and isinstance(c.piece, torch.Tensor) and c.piece.ndim >= 2:
                units = (c.piece == 1).movedim(1 if c.piece.ndim in (2, 4, 5) else -1, 0).flatten(1)
                if units.shape[1] >= VALUES:
                    off = 1 - float(units.any(1).double().mean())
                    found[c.layer] = min(off, found.get(c.layer, 1.0))
        return found

    @property
    def digests(self) -> tuple[tuple[str, str, int], ...]:
        """The layer and name of each operation with kinks, in the order of the run, and a CRC of its pieces."""
        return tuple(
            (c.layer, c.operation, zlib.crc32(c.piece.detach().contiguous().view(-1).cpu().numpy().data))
            for c in self.before.choices
            if not c.whole and isinstance(c.piece, torch.Tensor)
        )


def measured(
    closure: Closure,
    params: Any,
    step: Callable[[], Any] | Sequence[torch.Tensor],
    path: bool = False,
    tol: float = 1e-2,
    max_nodes: int = 129,
    x: Sequence[torch.Tensor] | None = None,
) -> tuple[Step, Vectors]:
    """`measure_step`, and the vectors that it was computed from.

    x: a copy of the parameters as they are now, from one who has it; none is made then, and this one is not written to.

    >>> w = torch.tensor([1.0], requires_grad=True)
    >>> step, vectors = measured(lambda: w.square().sum(), [w], [torch.tensor([0.5])])
    >>> step.curvature, vectors.g
    (2.0, [tensor([2.])])
    """
    if not (tol > 0 and max_nodes >= 5):
        raise ValueError(f"measure_step: tol must be above 0 and max_nodes at least 5, not {tol} and {max_nodes}.")
    names, ps = named("measure_step", params)
    again = SameRandomNumbers()
    x = [p.detach().clone() for p in ps] if x is None else x
    with contextlib.nullcontext() if callable(step) else kept(ps, x):
        found = seen(closure, ps, step, again)
        g, g_after, g_F, undefined = found.g, found.g_next, found.frozen, [*found.undefined]
        if not undefined and finite(g_after) and not finite(g_F):
            undefined.append("the frozen piece has no finite gradient at the new parameters")
        if not (finite(g) and finite(g_after)):
            undefined.append("the gradient before or after the step is not finite")
        sums = [_sums(_parts_of(*pieces)) for pieces in zip(x, ps, g, g_after, g_F, strict=True)]
        split = _split("frozen", sums, names)
        predicted = sum(float(a @ (new - old)) for ts in zip(x, ps, g, strict=True) for old, new, a in chunks(*ts))
        found, g_F = replace(found, frozen=[]), []  # free from here on
        other = None
        if path:
            there = [p.detach().clone() for p in ps]
            D, change = flat(there) - flat(x), flat(g_after) - flat(g)
            with kept(ps, there):
                smooth, missed, nodes = _path(closure, ps, x, D, change, again, tol, max_nodes)
            quadrature = {"error": missed, "nodes": nodes, "converged": missed <= tol}
            rows = zip(*(parts(ps, a) for a in (smooth, change - smooth, change, D)), strict=True)
            other = _split("path", [_sums(chunks(*row)) for row in rows], names, **quadrature)
    whole = _total(sums)
    sizes_of = ratio(whole.secant, whole.length), math.sqrt(whole.length), math.sqrt(whole.change), whole.secant
    made = Step(found.f, found.f_next, predicted, *sizes_of, split, other, found.flips, tuple(undefined), found.unseen)
    return made, Vectors(g, g_after, found.before)


@dataclass
class OrbitCurvature:
    """κ̄ = Σ‖g⁺ − g‖²/Σ⟨g⁺ − g, D⟩ over the last `window` steps (all, if None).

    On the tail of a bounded run of full-batch gradient descent that does not converge, κ̄ → 2/η, smooth or not.

    >>> orbit = OrbitCurvature(window=10)
    >>> w = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    >>> for _ in range(4):  # gradient descent with η = 0.5 on |w|
    ...     after = (w - 0.5 * w.sign()).detach()
    ...     orbit.update(measure_step(lambda: w.abs().sum(), [w], [after]))
    ...     w.data = after
    >>> orbit.value
    4.0
    """

    window: int | None = 100
    steps: deque[tuple[float, float]] = field(init=False)

    def __post_init__(self) -> None:
        if self.window is not None and not (isinstance(self.window, int) and self.window > 0):
            raise ValueError(f"OrbitCurvature: window must be a whole number above 0 or None, not {self.window!r}.")
        self.steps = deque(maxlen=self.window)

    def update(self, step: Step) -> None:
        self.steps.append((step.change**2, step.secant))

    @property
    def value(self) -> float:
        """0/0 is 0; inf where the sum of ⟨g⁺ − g, D⟩ is 0 and that of ‖g⁺ − g‖² is not."""
        return ratio(math.fsum(a for a, _ in self.steps), math.fsum(b for _, b in self.steps))


# --- the path split --------------------------------------------------------------------------------------------------


def _path(
    closure: Closure,
    ps: list[torch.Tensor],
    x: Sequence[torch.Tensor],
    D: Vector,
    change: Vector,
    again: SameRandomNumbers,
    tol: float,
    max_nodes: int,
) -> tuple[Vector, float, int]:
    """∫₀¹ H(x + sD) D ds by nested trapezoids: the integral, its relative error, and the nodes.

    The error is the last change and half of the one before. The integrand jumps where units flip, so that the error
    falls like 1/n and unevenly, and one change alone is too small an estimate in one case of ten.
    """
    start = flat(x)

    def product(s: float) -> Vector:
        put(ps, parts(ps, start + s * D))
        with undisturbed(ps), again():
            return hessian_product("measure_step", closure, ps, D)

    ends = (product(0.0) + product(1.0)) / 2
    n, total, error = 2, (ends + product(0.5)) / 2, math.inf
    last = norm(total - ends)
    while error > tol and 2 * n + 1 <= max_nodes:
        middle = sum((product((i + 0.5) / n) for i in range(n)), torch.zeros_like(D)) / n
        better = (total + middle) / 2
        moved = norm(better - total)
        error = ratio(moved + last / 2, max(norm(change), norm(better)))
        n, total, last = 2 * n, better, moved
    return total, error, n + 1


class Sums(NamedTuple):
    """Squares and products over a parameter's entries: of the smooth and kink part, their sum, and D."""

    smooth: float = 0.0
    kink: float = 0.0
    change: float = 0.0
    length: float = 0.0
    smooth_secant: float = 0.0
    kink_secant: float = 0.0
    secant: float = 0.0

    @property
    def share(self) -> float:
        return share(math.sqrt(self.smooth), math.sqrt(self.kink))


def _parts_of(*pieces: torch.Tensor) -> Iterator[tuple[Vector, ...]]:
    """The smooth part, the kink part, their sum and D, chunk by chunk, of x, x⁺, g, g⁺ and g_F."""
    for x, there, g, g_next, g_F in chunks(*pieces):
        yield g_F - g, g_next - g_F, g_next - g, there - x


def _sums(rows: Iterable[tuple[Vector, ...]]) -> Sums:
    """Over chunks of the smooth part, the kink part, their sum and D."""
    found = [[float(a @ b) for a, b in ((s, s), (k, k), (c, c), (D, D), (s, D), (k, D), (c, D))] for s, k, c, D in rows]
    return Sums(*map(sum, zip(*found, strict=True))) if found else Sums()


def _total(sums: Iterable[Sums]) -> Sums:
    return Sums(*map(sum, zip(*sums, strict=True)))


def _split(method: str, sums: Sequence[Sums], names: list[str], **quadrature: Any) -> Split:
    """The curvatures and shares of two parts of a change of the gradient, from the sums over each parameter."""
    layers: dict[str, list[Sums]] = {}
    for name, row in zip(names, sums, strict=True):
        layers.setdefault(name.rpartition(".")[0] or name, []).append(row)
    whole = _total(sums)
    return Split(
        method,
        ratio(whole.smooth_secant, whole.length),
        ratio(whole.kink_secant, whole.length),
        whole.share,
        tuple((name, row.share) for name, row in zip(names, sums, strict=True)),
        tuple((layer, _total(rows).share) for layer, rows in layers.items()),
        **quadrature,
    )

"""kinkcheck: at a kink, does a function return an element of its Clarke subdifferential, in every precision?

`torch.autograd.gradcheck` compares a derivative with differences of values, and so cannot be asked at a kink. This
can: the point is put *at* the tie.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from nonsmooth.torch.clarke import FaultError, Neighbourhood, Point, first_line, name_of, vector

__all__ = ["KinkError", "KinkReport", "KinkRow", "kinkcheck"]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class KinkRow:
    """One run: a dtype, eager or compiled. `distance` is from the derivative to the set, of the worst output.

    >>> KinkRow("float16", False, "skipped", math.nan, "no kernel").verdict
    'skipped'
    """

    dtype: str
    compiled: bool
    verdict: Literal["passes", "fails", "skipped"]
    distance: float
    says: str = ""


@dataclass(frozen=True)
class KinkReport:
    """What `kinkcheck` found. True when some run passes and none fails; as text, a table and what it means.

    >>> bool(KinkReport("x = 0", (KinkRow("float64", False, "passes", 0.0),)))
    True
    >>> bool(KinkReport("x = 0", (KinkRow("float16", False, "skipped", math.nan),)))  # nothing was checked
    False
    """

    point: str
    rows: tuple[KinkRow, ...]

    def __bool__(self) -> bool:
        verdicts = {row.verdict for row in self.rows}
        return "passes" in verdicts and "fails" not in verdicts

    def __str__(self) -> str:
        verdicts = {row.verdict for row in self.rows}
        head = "passes" if self else "fails" if "fails" in verdicts else "nothing could be checked"
        lines, said = [f"kinkcheck at {self.point}: {head}"], set()
        for row in self.rows:
            run = "compiled" if row.compiled else "eager"
            distance = "" if math.isnan(row.distance) else f"{row.distance:.3g}"
            says = "as above" if row.says in said and len(row.says) > 40 else row.says
            said |= {row.says} - {""}
            lines.append(f"  {row.dtype:9} {run:9} {row.verdict:8} {distance:9} {says}".rstrip())
        return "\n".join(lines)


class KinkError(AssertionError):
    """A function failed `kinkcheck`; the text is the report, which is also `.report`."""

    def __init__(self, report: KinkReport) -> None:
        super().__init__(str(report))
        self.report = report


def kinkcheck(
    fn: Callable[..., Any],
    inputs: torch.Tensor | Sequence[Any],
    *,
    dtypes: torch.dtype | Sequence[torch.dtype] = DTYPES,
    compile: bool | str = False,
    radius: float = 1e-6,
    seed: int = 0,
    raise_exception: bool = True,
) -> KinkReport:
    """Check that the derivative autograd returns at `inputs` is in the Clarke subdifferential of `fn` there.

    For a locally Lipschitz f it is ∂f(x) = conv{lim ∇f(xₖ) : xₖ → x, f differentiable at xₖ}. A derivative v is in it
    exactly when ⟨v, d⟩ ≤ f°(x; d) for all d, where f°(x; d) = max{⟨g, d⟩ : g ∈ ∂f(x)} (Clarke 1983, 2.1 and 2.5). Here:

    1. Points around x, in all inputs jointly: at a distance of `radius` · max(1, |xᵢ|), along ± random directions, ±
       jittered coordinates, ± all ones; 4·min(n, 32) + 34 for n inputs.
    2. f there, in float64: that it is finite, continuous and Lipschitz at x, and not random; and the gradients G of
       each output, each compared with differences of f, so that a wrong backward on one side of the kink does not pass
       for its slope.
    3. For each dtype, eager and with `compile`, the derivative v at x, and its distance to conv G by least squares.
       While v is outside, look for gradients on its side, along the gap, until 8 rounds bring none.

    inputs: a tensor or a tuple; those that require grad are checked, or all floating ones when none does; at most 1024.
        fn gets clones, and may write into them.
    fn: returns a tensor, or tuples, lists and dicts of them, of which the floating ones count; each entry is an output
        with a set of its own (a seeded choice of 64 if there are more; the rows say so). That the rows of the Jacobian
        together are in the generalised Jacobian is more, and is not checked: pass a sum over outputs for that.
    dtypes: one or several; the gradients G come from float64 always. A point that a dtype cannot represent is skipped,
        since rounding may undo the tie; so is an operation without a kernel in it. The table says so.
    compile: True, or the name of a backend of `torch.compile`. What cannot be compiled is skipped.
    Tolerance: for each entry i of v its own, (1e-4 + 16 eps)·max(|Gᵢ|, |vᵢ|), eight times the change of Gᵢ over half
        the radius, the smallest normal number, and where v is outside even so 16 times the rounding of entry i: at
        least eps/16, and the most by which a float32 gradient beside the point is off, in proportion to eps. (In units
        of max(1, |xᵢ|).) So a large slope in one input hides nothing in another.

    Limits. A piece of f that no sample met can cause a false alarm, never a pass: with hundreds of pieces that matter
    at once, check fewer inputs at a time. What can pass wrongly: a derivative off by less than the tolerance, one that
    belongs to a kink beside x but nearer than `radius`, and a backward that is wrong on a piece that no sample met, or
    in entries below 1e-6 of the largest. A point at the border of the domain fails.
    Whether f is Lipschitz is judged by its slopes from 1e-1 to 1e-5.4 of the radius: one that moves like δ^0.98 or more
    passes for it, and one whose slopes settle only below that may be called not Lipschitz. Where slopes oscillate too
    fast for differences, as those of x² sin(1/x), the check fails and says that they do not settle.

    Nothing of the caller's is disturbed: not `.grad`, grad mode, or a generator. Returns a report, true when all is
    well. Raises KinkError (an AssertionError) otherwise, unless `raise_exception=False`; ValueError for inputs or a
    function that cannot be checked at all.

    >>> zero = torch.zeros((), dtype=torch.float64)
    >>> bool(kinkcheck(torch.relu, zero))  # returns 0, in [0, 1]
    True
    >>> bool(kinkcheck(lambda x: torch.relu(x) - torch.relu(-x), zero, raise_exception=False))  # 0, not in {1}
    False
    """
    if not isinstance(radius, numbers.Real) or not 0 < radius < 1:
        raise ValueError(f"kinkcheck: radius must be between 0 and 1, not {radius!r}.")
    if not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(f"kinkcheck: seed must be a whole number from 0 on, not {seed!r}.")
    dtypes = _dtypes(dtypes)
    point = Point(fn, inputs)
    backend = _backend(compile)
    rows: list[KinkRow] = []
    with _undisturbed(point.tensors):
        try:
            around = Neighbourhood(point, float(radius), np.random.default_rng(int(seed)))
            for dtype in dtypes:
                rows += _runs(point, around, dtype, backend)
        except FaultError as fault:
            rows.append(KinkRow("float64", False, "fails", math.nan, str(fault)))
    report = KinkReport(point.shown, tuple(rows))
    if raise_exception and not report:
        raise KinkError(report)
    return report


def _runs(point: Point, around: Neighbourhood, dtype: torch.dtype, backend: str | None) -> Iterator[KinkRow]:
    """The row of a dtype, and with a backend another for the compiled function."""
    name = name_of(dtype)
    skipped = lambda compiled, why: KinkRow(name, compiled, "skipped", math.nan, why)  # noqa: E731
    if not point.representable(dtype):
        yield skipped(False, "the point is not representable: rounding may undo the tie")
        return
    try:
        eager = point.derivative(point.fn, dtype, around.rows)
    except Exception as error:
        yield skipped(False, first_line(error))
        return
    yield _judged(point, around, dtype, False, eager)
    if backend is None:
        return
    try:
        run, graphs = _compiled(point.fn, backend)
        with warnings.catch_warnings(), _quiet_compiler():
            warnings.simplefilter("ignore")
            compiled = point.derivative(run, dtype, around.rows)
    except Exception as error:  # no compiler, or no lowering
        yield skipped(True, first_line(error))
        return
    if not graphs:
        yield skipped(True, "torch.compile found nothing in fn to compile")
        return
    row = _judged(point, around, dtype, True, compiled)
    apart = ~np.isclose(compiled, eager, rtol=1e-4, atol=16 * torch.finfo(dtype).eps, equal_nan=True).all(axis=1)
    if apart.any():
        r = int(np.argmax(apart))
        differs = f"eager and compiled differ: {vector(eager[r])} and {vector(compiled[r])}"
        row = KinkRow(row.dtype, True, row.verdict, row.distance, ". ".join(s for s in (row.says, differs) if s))
    yield row


def _judged(point: Point, around: Neighbourhood, dtype: torch.dtype, compiled: bool, returned: np.ndarray) -> KinkRow:
    """Whether each output's derivative is in its set; the first that is not, from the farthest on, decides."""
    name, m = name_of(dtype), len(around.value)
    share = f"{len(around.rows)} of {m} outputs" if len(around.rows) < m else ""
    fails = lambda distance, says: KinkRow(  # noqa: E731
        name, compiled, "fails", distance, f"{says} ({share} checked)" if share else says
    )
    gaps, excess = [], []
    for r, v in enumerate(returned):
        if not np.isfinite(v).all():
            i = int(np.argmin(np.isfinite(v)))
            entries = np.array(around.gradients[r])[:, i] / around.S[i]
            low, high = entries.min(), entries.max()
            says = (
                f"output {around.rows[r]}: the derivative returned is {vector(v)}, which is not finite, where beside "
                f"the point entry {i} lies between {low:.4g} and {high:.4g}"
            )
            return fails(math.inf, says)
        for rounding in (False, True):  # which is measured only where it matters
            tolerance = around.tolerance(r, around.S * v, dtype, rounding)
            gap = around.gap(r, around.S * v, tolerance)
            if (np.abs(gap) <= tolerance).all():
                break
        gaps.append(gap)
        excess.append(np.abs(gap / tolerance).max())
    for r in np.argsort(excess)[::-1]:
        if excess[r] > 1:
            v = returned[r]
            tolerance = around.tolerance(r, around.S * v, dtype, rounding=True)
            gaps[r] = around.searched_gap(r, around.S * v, tolerance)
            if (np.abs(gaps[r]) > tolerance).any():
                return fails(*_outside(around, r, v, tolerance))
    return KinkRow(name, compiled, "passes", float(max(np.linalg.norm(gap / around.S) for gap in gaps)), share)


def _outside(around: Neighbourhood, r: int, v: np.ndarray, tolerance: np.ndarray) -> tuple[float, str]:
    """The distance, and the derivative beside the slopes around it, along the direction in which it sticks out."""
    gap = around.gap(r, around.S * v, around.S)
    beyond = np.abs(gap) > tolerance  # the rest may be rounding, and need not be small
    gap = np.where(beyond | ~beyond.any(), gap, 0.0) / around.S
    distance = float(np.linalg.norm(gap))
    d = gap / distance * np.sign(gap[np.argmax(np.abs(gap))])
    slopes = np.array(around.gradients[r]) @ (d / around.S)
    step = around.radius / np.linalg.norm(d / around.S)
    row, z = int(around.rows[r]), step * d / around.S
    before, after = (around.value - around.at(-z))[row] / step, (around.at(z) - around.value)[row] / step
    return distance, (
        f"output {row}: the derivative returned is {vector(v)}, {distance:.3g} away from the Clarke subdifferential. "
        f"Along {vector(d)} it has the slope {v @ d:.4g}, the gradients beside have "
        f"{slopes.min():.4g} to {slopes.max():.4g}, and fn itself {before:.4g} before and {after:.4g} after the point "
        f"(a jump of {abs(after - before):.2g})"
    )


def _dtypes(given: Any) -> tuple[torch.dtype, ...]:
    listed = (given,) if isinstance(given, torch.dtype) else given
    if not isinstance(listed, list | tuple) or not all(isinstance(d, torch.dtype) for d in listed):
        raise ValueError(f"kinkcheck: dtypes must be a torch.dtype or a list of them, not {given!r}.")
    for dtype in listed:
        if not dtype.is_floating_point:
            raise ValueError(f"kinkcheck: dtypes must be floating-point, and {name_of(dtype)} is not.")
    return tuple(listed)


def _backend(compile: bool | str) -> str | None:
    if not compile:
        return None
    name = "inductor" if compile is True else compile
    from torch._dynamo import list_backends

    known = list_backends(exclude_tags=None)
    if name not in known:
        raise ValueError(f"kinkcheck: there is no backend {name!r} of torch.compile; known are {', '.join(known)}.")
    return name


def _compiled(fn: Callable[..., Any], backend: str) -> tuple[Callable[..., Any], list[Any]]:
    """fn compiled afresh, and the graphs that its runs will have compiled."""
    from torch._dynamo import lookup_backend

    graphs: list[Any] = []
    lower = lookup_backend(backend)

    def counted(graph: Any, examples: Any) -> Any:
        graphs.append(graph)
        return lower(graph, examples)

    counted.__name__ = backend  # as error messages have it

    def run(*args: Any) -> Any:
        return fn(*args)

    # a code object of its own: torch keeps at most eight compilations for one, and then runs it eagerly
    fresh = types.FunctionType(run.__code__.replace(), globals(), "run", None, run.__closure__)
    return torch.compile(fresh, backend=counted, dynamic=False), graphs


@contextlib.contextmanager
def _quiet_compiler() -> Iterator[None]:
    """In this process, without a pool of workers that would outlive the check."""
    import torch._inductor.config as inductor

    with inductor.patch(compile_threads=1):
        yield


@contextlib.contextmanager
def _undisturbed(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Grad mode on and every generator put back, also where fn itself draws."""
    devices = sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
        yield

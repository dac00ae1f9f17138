"""The Clarke subdifferential of a torch function at a point, from gradients sampled beside it in float64."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from nonsmooth.kinks import nearest

__all__ = ["FaultError", "Neighbourhood", "Point", "first_line", "name_of", "vector"]

MOST_OUTPUTS = 64
MOST_INPUTS = 1024
MOST_POWER = 0.98
"""f(x + δu) − f(x) that falls like δ to a power below this, over three decades, is not called Lipschitz."""
WINDOW = 10.0 ** (-0.2 * np.arange(8))
EVEN = 1e-4
"""Entries of a gradient from this share of the largest on are compared with differences as well as the largest is."""
PATIENCE = 8
"""The rounds of search along the gap that may bring nothing before a derivative is called outside."""


class FaultError(Exception):
    """Why there is no Clarke subdifferential to be in, or no way to find it."""


class RunError(Exception):
    """fn itself raised: what it said."""


class Point:
    """fn and its inputs: a vector x ∈ Rⁿ of all that is checked, and outputs in Rᵐ.

    Checked are the inputs that require grad, or all floating ones when none does. Raises ValueError, in the words of
    `kinkcheck`, where there is nothing to check or too much.

    >>> Point(torch.maximum, (torch.zeros(2), torch.ones(1))).shown
    'x = (0, 0, 1)'
    """

    def __init__(self, fn: Callable[..., Any], inputs: torch.Tensor | Sequence[Any]) -> None:
        if not callable(fn):
            raise ValueError(f"kinkcheck: fn must be a function of the inputs, not {fn!r}.")
        if not isinstance(inputs, torch.Tensor | list | tuple):
            raise ValueError(f"kinkcheck: inputs must be a tensor or a tuple of them, not {type(inputs).__name__}.")
        self.fn = fn
        self.inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
        self.tensors = [t for t in self.inputs if isinstance(t, torch.Tensor) and t.is_floating_point()]
        wanted = [t for t in self.tensors if t.requires_grad] or self.tensors
        self.checked = [i for i, t in enumerate(self.inputs) if any(t is w for w in wanted)]
        if not sum(t.numel() for t in wanted):
            raise ValueError("kinkcheck: there is no floating-point input to differentiate by; pass a tensor that is.")
        if sum(t.numel() for t in wanted) > MOST_INPUTS:
            raise ValueError(f"kinkcheck: more than {MOST_INPUTS} inputs are too many to sample around; pass fewer.")
        if any(t.layout is not torch.strided for t in wanted):
            raise ValueError("kinkcheck: sparse inputs cannot be checked; pass dense ones.")
        self.x = torch.cat([t.detach().reshape(-1).to("cpu", torch.float64) for t in wanted]).numpy()
        if not np.isfinite(self.x).all():
            raise ValueError("kinkcheck: the inputs hold NaN or infinity; put them at the point to be tested.")

    @property
    def shown(self) -> str:
        return f"x = {vector(self.x)}"

    def representable(self, dtype: torch.dtype) -> bool:
        return all(bool((t.detach().to(dtype).to(t.dtype) == t).all()) for t in self.tensors)

    def leaves(self, dtype: torch.dtype, x: np.ndarray | None = None) -> list[Any]:
        """The inputs in `dtype`, those that are checked as new leaves, moved to x."""
        made, start = [], 0
        for i, given in enumerate(self.inputs):
            if not isinstance(given, torch.Tensor):
                made.append(given)
                continue
            fresh = given.detach().clone()
            if i in self.checked and x is not None:
                part = torch.from_numpy(x[start : start + given.numel()])
                fresh = part.reshape(given.shape).to(given.device)
                start += given.numel()
            fresh = fresh.to(dtype) if given.is_floating_point() else fresh
            made.append(fresh.requires_grad_(i in self.checked))
        return made

    def outputs(self, run: Callable[..., Any], leaves: list[Any]) -> torch.Tensor:
        """The floating outputs, one after the other, out of whatever nest; run gets clones, to write into if it likes.

        Integer and boolean tensors, and None, have no derivative and are passed over. Anything else is refused.
        """
        try:
            made = run(*[x.clone() if isinstance(x, torch.Tensor) else x for x in leaves])
        except Exception as error:
            raise RunError(first_line(error)) from error
        found = [y for y in tree_leaves(made) if y is not None]
        for y in found:
            if not isinstance(y, torch.Tensor):
                raise ValueError(
                    f"kinkcheck: fn returns a {type(y).__name__}, through which nothing can be differentiated; "
                    "let it return tensors, alone or in tuples, lists and dicts."
                )
            if y.is_complex() or y.layout is not torch.strided:
                kind = "complex" if y.is_complex() else "sparse"
                raise ValueError(f"kinkcheck: fn returns a {kind} tensor; let it return dense real ones.")
        flat = [y.reshape(-1) for y in found if y.is_floating_point()]
        if not sum(y.numel() for y in flat):
            raise ValueError("kinkcheck: fn returns no floating-point tensor; there is nothing to differentiate.")
        return torch.cat(flat)

    def gradient(
        self, y: torch.Tensor, leaves: list[Any], row: int, keep: bool = False, factor: float = 1.0
    ) -> np.ndarray:
        """factor · ∇yᵣ as autograd returns it; 0 where fn is cut off from its inputs."""
        mine = [leaves[i] for i in self.checked]
        found: Sequence[torch.Tensor | None] = [None] * len(mine)
        if y.requires_grad:
            found = torch.autograd.grad(
                y[row], mine, torch.full_like(y[row], factor), allow_unused=True, retain_graph=keep
            )
        parts = [torch.zeros_like(x) if g is None else g for g, x in zip(found, mine, strict=True)]
        return torch.cat([g.detach().reshape(-1).to("cpu", torch.float64) for g in parts]).numpy()

    def derivative(self, run: Callable[..., Any], dtype: torch.dtype, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The Jacobian's rows at the point itself. Compiled graphs may be walked once only: each row runs anew."""
        found = []
        for row in rows:
            leaves = self.leaves(dtype)
            found.append(self.gradient(self.outputs(run, leaves), leaves, row))
        return np.array(found)


class Neighbourhood:
    """fn around the point, in float64, in coordinates z with x + Sz, S = max(1, |x|), at ‖z‖ = `radius`.

    `gradients[r]` are those of output `rows[r]` in z, `seen[r]` the directions in which they were found; conv of the
    first is, up to sampling, the Clarke subdifferential. Each is compared with differences of fn. Raises FaultError
    where fn is not finite, continuous and Lipschitz, as far as samples show, or its derivative is wrong beside the
    point; ValueError where fn is random or cannot be run.

    >>> around = Neighbourhood(Point(torch.abs, torch.zeros(())), 1e-6, np.random.default_rng(0))
    >>> sorted({float(g) for (g,) in around.gradients[0]})
    [-1.0, 1.0]
    >>> around.gap(0, np.array([1.5]), 1.0).round(12).tolist()
    [0.5]
    """

    def __init__(self, point: Point, radius: float, rng: np.random.Generator) -> None:
        self.point, self.radius, self.rng = point, radius, rng
        self.S = np.maximum(1.0, np.abs(point.x))
        self.n = len(point.x)
        self.value = self.at(np.zeros(self.n))
        if not np.isfinite(self.value).all():
            raise FaultError(f"fn is not finite at this point: it returns {vector(self.value)}.")
        m = len(self.value)
        self.rows = np.arange(m) if m <= MOST_OUTPUTS else np.sort(rng.choice(m, MOST_OUTPUTS, replace=False))
        self.gradients: list[list[np.ndarray]] = [[] for _ in self.rows]
        self.seen: list[list[np.ndarray]] = [[] for _ in self.rows]
        directions = self._directions()
        self._need_determinism([np.zeros(self.n), *(radius * u for u in [*directions[:4], *directions[-2:]])])
        self._need_lipschitz(directions)
        for u in directions:
            self._sample(u, range(len(self.rows)))
        lacking = [int(r) for r, found in zip(self.rows, self.gradients, strict=True) if not found]
        if lacking:
            raise FaultError(
                f"the sampled slopes of output {lacking[0]} do not settle: at none of the points beside this one do "
                f"differences on both sides agree with each other and with autograd, down to lengths of "
                f"{1e-4 * radius:.0e}."
            )
        self.roundings: dict[int, np.ndarray] = {}
        self.variation = self._variation(directions[:16])

    def at(self, z: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            y = self._forward(z)[0]
        return y.to("cpu").numpy()

    def _forward(self, z: np.ndarray) -> tuple[torch.Tensor, list[Any]]:
        leaves = self.point.leaves(torch.float64, self.point.x + self.S * z)
        try:
            y = self.point.outputs(self.point.fn, leaves)
        except RunError as error:
            of_dtypes = re.search("dtype|Float|Double|Half|scalar type", str(error))
            advice = "let its constants take the dtype of its inputs" if of_dtypes else "let it take these inputs"
            raise ValueError(
                f"kinkcheck: fn does not run in float64, in which its slopes are sampled ({error}); {advice}."
            ) from error
        if y.dtype != torch.float64:
            raise ValueError(
                f"kinkcheck: fn returns {name_of(y.dtype)} for float64 inputs, too coarse to sample its slopes; "
                "let it keep the dtype of its inputs."
            )
        return y, leaves

    def _directions(self) -> list[np.ndarray]:
        some = self.rng.permutation(self.n)[:32]
        random = self.rng.standard_normal((16 + len(some), self.n))
        near_axes = np.eye(self.n)[some] + 0.05 * self.rng.standard_normal((len(some), self.n))
        ones = np.ones((1, self.n)) + 0.05 * self.rng.standard_normal((1, self.n))
        return [sign * u / np.linalg.norm(u) for u in np.vstack([random, near_axes, ones]) for sign in (1.0, -1.0)]

    def _need_determinism(self, places: list[np.ndarray]) -> None:
        """The same values and slopes twice: at the point, and beside it, where what is random may not vanish."""
        for z in places:
            if not np.array_equal(self.at(z), self.at(z), equal_nan=True):
                raise ValueError(
                    "kinkcheck: fn is random: it returns other values when called again at "
                    f"x = {vector(self.point.x + self.S * z)}; seed what is random in it."
                )
            y, leaves = self._forward(z)
            once, again = (self.point.gradient(y, leaves, int(self.rows[0]), keep=True) for _ in range(2))
            if not np.array_equal(once, again, equal_nan=True):
                raise ValueError("kinkcheck: the derivative of fn is random; seed what is random in its backward.")

    def _need_lipschitz(self, directions: list[np.ndarray]) -> None:
        """|f(x + δu) − f(x)|/δ must not go on growing as δ falls.

        Its largest values within three windows of δ are compared, each of 1.4 decades, so that slopes which only
        oscillate, as those of x·sin(log|x|), come round.
        """
        starts = [share * self.radius for share in (1e-1, 1e-2 / math.sqrt(10), 1e-4)]
        some = [*directions[:10], *directions[32:38], *directions[-2:]]
        moved = np.abs([[[self.at(d * u) for u in some] for d in start * WINDOW] for start in starts] - self.value)
        border = np.array([self.at(starts[0] * u) for u in directions])
        outside = ~(np.isfinite(moved).all(axis=(0, 1, 2)) & np.isfinite(border).all(axis=0))
        moved = np.nan_to_num(moved, nan=0.0, posinf=0.0).max(axis=2)
        slopes = (moved / (np.array(starts)[:, None, None] * WINDOW[:, None])).max(axis=1)
        clear = moved.max(axis=1) > np.maximum(1e3 * np.finfo(float).eps * np.abs(self.value), 1e-300)
        for i in np.flatnonzero(clear[:2].all(axis=0)):
            known = slopes[:, i] if clear[2, i] else slopes[:2, i]
            powers = 1 - np.log(known[1:] / known[:-1]) / math.log(10**1.5)
            last = starts[len(known) - 1]
            if powers.max() < 0.1:
                raise FaultError(
                    f"fn is discontinuous at this point, as it seems: output {i} jumps by "
                    f"{moved[len(known) - 1, :, i].max():.3g} within a distance of {last:.0e}; "
                    "there is no Clarke subdifferential."
                )
            if powers.max() < MOST_POWER:
                raise FaultError(
                    f"fn is not Lipschitz at this point, as it seems: its slopes grow as δ falls, and output {i} moves "
                    f"like δ^{powers[-1]:.2f}, by up to {known[0]:.3g} δ at δ = {starts[0]:.0e} and {known[-1]:.3g} δ "
                    f"at {last:.0e}; there is no Clarke subdifferential."
                )
        if outside.any():
            raise FaultError(
                f"output {np.argmax(outside)} is NaN or infinite at points beside this one, which lies at the border "
                "of the domain; there is no Clarke subdifferential."
            )

    def _sample(self, u: np.ndarray, chosen: Sequence[int]) -> list[np.ndarray]:
        """The gradients at x + Sδu of the chosen outputs that are differentiable there, kept and returned."""
        z = self.radius * u
        y, leaves = self._forward(z)
        value = y.detach().to("cpu").numpy()
        w = self.rng.standard_normal(self.n)
        w /= np.linalg.norm(w)
        steps = [share * self.radius for share in (1e-2, 1e-4)]  # the longer one rounds less, the shorter one sees less
        slopes = [((self.at(z + h * w) - value) / h, (value - self.at(z - h * w)) / h) for h in steps]
        new = []
        jacobian = np.array([self.S * self.point.gradient(y, leaves, int(self.rows[r]), keep=True) for r in chosen])
        self._compare_evenly(z, value, chosen, jacobian, w)
        for r, g in zip(chosen, jacobian, strict=True):
            row = int(self.rows[r])
            wrong = []
            for h, (ahead, behind) in zip(steps, slopes, strict=True):
                a, b, slope = ahead[row], behind[row], (ahead[row] + behind[row]) / 2
                noise = 32 * np.finfo(float).eps * abs(value[row]) / h
                allowed = noise + 1e-3 * np.nan_to_num([np.linalg.norm(g), abs(a), abs(b)]).max()
                if not abs(a - b) <= allowed:
                    continue  # a kink between the two
                if not abs(slope - g @ w) <= allowed:
                    wrong.append(slope)
                    continue
                self.gradients[r].append(g)
                self.seen[r].append(u)
                new.append(g)
                break
            else:
                if len(wrong) == len(steps) and abs(wrong[0] - wrong[1]) <= allowed:
                    raise self._wrong_beside(z, row, g @ w, w, wrong[-1])
        return new

    def _compare_evenly(
        self, z: np.ndarray, value: np.ndarray, chosen: Sequence[int], jacobian: np.ndarray, w: np.ndarray
    ) -> None:
        """Differences along a direction to which all entries of a gradient add alike, the small ones as the large."""
        size = np.linalg.norm(jacobian, axis=0)
        if self.n == 1 or not 0 < size.max() < math.inf:
            return
        w = w / np.maximum(size, EVEN * size.max())
        w /= np.linalg.norm(w)
        steps = [share * self.radius for share in (3e-2, 1e-2)]
        slopes = [((self.at(z + h * w) - value) / h, (value - self.at(z - h * w)) / h) for h in steps]
        at = np.abs(self.point.x / self.S)
        for r, g in zip(chosen, jacobian, strict=True):
            row, wrong = int(self.rows[r]), []
            for h, (ahead, behind) in zip(steps, slopes, strict=True):
                a, b, slope = ahead[row], behind[row], (ahead[row] + behind[row]) / 2
                noise = np.finfo(float).eps * (32 * abs(value[row]) + 4 * np.linalg.norm(g * at)) / h
                allowed = noise + 1e-3 * np.nan_to_num([np.abs(g * w).max(), abs(a), abs(b)]).max()
                if abs(a - b) <= allowed < abs(slope - g @ w):
                    wrong.append(slope)
            if len(wrong) == len(steps) and abs(wrong[0] - wrong[1]) <= allowed:
                raise self._wrong_beside(z, row, g @ w, w, wrong[-1])

    def _wrong_beside(self, z: np.ndarray, row: int, returned: float, w: np.ndarray, slope: float) -> FaultError:
        return FaultError(
            f"the derivative is wrong beside the kink too: at x = {vector(self.point.x + self.S * z)} autograd gives "
            f"output {row} the slope {returned:.4g} along {vector(self.S * w)}, where fn has {slope:.4g}; "
            "torch.autograd.gradcheck tests that."
        )

    def _variation(self, directions: list[np.ndarray]) -> np.ndarray:
        """Entry by entry, how a gradient changes within its piece over half the radius: the median over directions."""
        changes = []
        for u in directions:
            jacobians = []
            for delta in (self.radius, self.radius / 2):
                y, leaves = self._forward(delta * u)
                rows = [self.S * self.point.gradient(y, leaves, int(r), keep=True) for r in self.rows]
                jacobians.append(np.array(rows))
            changes.append(np.abs(jacobians[0] - jacobians[1]))
        return np.median(changes, axis=0)

    def rounding(self, r: int) -> np.ndarray:
        """What rounding does to each entry of a gradient, in units of eps: the most of float32 against float64.

        At 32 points that both represent, farther away. An error too large for rounding is another piece, and left out.
        At least 1/16; max(1, |f|) where fn does not run in float32.
        """
        if r not in self.roundings:
            row, eps = int(self.rows[r]), torch.finfo(torch.float32).eps
            unit = max(1.0, abs(float(self.value[row])))
            most = 64 * max(unit, float(np.linalg.norm(self.gradients[r], axis=1).max()))
            errors = []
            for u in self._directions()[:32]:
                x = (self.point.x + self.S * u / 256).astype(np.float32).astype(float)
                factor = float(np.float32(self.rng.uniform(1.0, 2.0)))  # rounds anew where the gradient is constant
                both = []
                with contextlib.suppress(Exception):
                    for dtype in (torch.float32, torch.float64):
                        leaves = self.point.leaves(dtype, x)
                        y = self.point.outputs(self.point.fn, leaves)
                        both.append(self.point.gradient(y, leaves, row, factor=factor))
                    errors.append(self.S * np.abs(both[0] - both[1]) / eps)
            finite = [e for e in errors if np.isfinite(e).all()] or [np.full(self.n, unit)]
            self.roundings[r] = np.max([np.where(e > most, 0.0, e) for e in finite], axis=0).clip(1 / 16)
        return self.roundings[r]

    def tolerance(self, r: int, v: np.ndarray, dtype: torch.dtype, rounding: bool) -> np.ndarray:
        """Entry by entry, so that the size of one hides nothing in another."""
        info = torch.finfo(dtype)
        largest = np.maximum(np.abs(self.gradients[r]).max(axis=0), np.abs(v))
        allowed = (1e-4 + 16 * info.eps) * largest + 8 * self.variation[r] + info.tiny * self.S
        return allowed + 16 * info.eps * self.rounding(r) if rounding else allowed

    def gap(self, r: int, v: np.ndarray, tolerance: np.ndarray | float) -> np.ndarray:
        """v − p, p the point of conv(gradients) nearest to v, each entry measured in its own tolerance."""
        found = np.array(self.gradients[r])
        keys = (found / np.maximum(np.abs(found).max(axis=0), 1e-300)).round(9) + 0.0
        some = np.array(list({key.tobytes(): g for key, g in zip(keys, found, strict=True)}.values()))
        return v - tolerance * nearest(some / tolerance, v / tolerance)

    def searched_gap(self, r: int, v: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
        """The gap, after more gradients were sought along it while it was longer than the tolerance."""
        idle, more = 0, 1
        while True:
            gap = self.gap(r, v, tolerance)
            units = gap / tolerance
            if np.abs(units).max() <= 1 or idle >= PATIENCE:
                return gap
            normal = units / tolerance / np.linalg.norm(units)  # p is where ⟨·, normal⟩ is largest in the hull
            reach = np.array(self.gradients[r]) @ normal
            leader = self.seen[r][int(np.argmax(reach))]
            ways = [np.where(np.abs(units) > 1, normal, 0.0), gap]
            tried = [u for _ in range(more) for d in ways for u in self._towards(d / np.linalg.norm(d), leader)]
            found = [g for u in tried for g in self._sample(u, [r])]
            gained = max((g @ normal for g in found), default=-math.inf) - reach.max()
            idle, more = (0, min(2 * more, 1 + self.n // 32)) if gained > 1e-2 else (idle + 1, 1)

    def _towards(self, d: np.ndarray, leader: np.ndarray) -> list[np.ndarray]:
        """Where gradients far along d may be: at ±d for convex and concave pieces, near the best direction so far."""
        noise = lambda size: size * self.rng.standard_normal(self.n) / math.sqrt(self.n)  # noqa: E731
        tried = [sign * d + noise(size) for sign in (1.0, -1.0) for size in (1e-3, 1e-2, 0.1)]
        tried += [leader + noise(0.3), noise(1.0)]
        for i in self.rng.permutation(self.n)[:8]:
            flipped = leader + noise(1e-2)
            flipped[i] = -flipped[i]
            tried.append(flipped)
        return [u / np.linalg.norm(u) for u in tried]


def vector(v: np.ndarray) -> str:
    """Up to six entries.

    >>> vector(np.arange(8.0))
    '(0, 1, 2, 3, 4, 5, …)'
    """
    shown = [f"{entry + 0.0:.4g}" for entry in v[:6]] + (["…"] if len(v) > 6 else [])
    return f"({', '.join(shown)})"


def name_of(dtype: torch.dtype) -> str:
    """The dtype without its module.

    >>> name_of(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def first_line(error: BaseException) -> str:
    """What an error says first, shortened.

    >>> first_line(ValueError("no kernel\\nfor this"))
    'no kernel'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])[:160]

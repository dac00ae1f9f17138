"""The Clarke subdifferential of a torch function at a point, from gradients sampled beside it in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from nonsmooth.kinks import nearest

__all__ = ["FaultError", "Neighbourhood", "Point", "first_line", "name_of", "vector"]

MOST_OUTPUTS = 64
MOST_INPUTS = 2048
PATIENCE = 8
"""The rounds of search along the gap that may bring nothing before a derivative is called outside."""


class FaultError(Exception):
    """Why there is no Clarke subdifferential to be in, or no way to find it."""


class Point:
    """fn and its inputs: a vector x ∈ Rⁿ of all that is checked, and outputs in Rᵐ.

    Checked are the inputs that require grad, or all floating ones when none does. Raises ValueError, in the words of
    `kinkcheck`, where there is nothing to check or too much.

    >>> Point(torch.maximum, (torch.zeros(2), torch.ones(1))).shown
    'x = (0, 0, 1)'
    """

    def __init__(self, fn: Callable[..., Any], inputs: torch.Tensor | Sequence[Any]) -> None:
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
        """The floating outputs, one after the other."""
        made = run(*leaves)
        made = [made] if isinstance(made, torch.Tensor) else list(made)
        flat = [y.reshape(-1) for y in made if isinstance(y, torch.Tensor) and y.is_floating_point()]
        if not sum(y.numel() for y in flat):
            raise ValueError("kinkcheck: fn returns no floating-point tensor; there is nothing to differentiate.")
        return torch.cat(flat)

    def gradient(self, y: torch.Tensor, leaves: list[Any], row: int, keep: bool = False) -> np.ndarray:
        """∇yᵣ as autograd returns it; 0 where fn is cut off from its inputs."""
        mine = [leaves[i] for i in self.checked]
        found: Sequence[torch.Tensor | None] = [None] * len(mine)
        if y.requires_grad:
            found = torch.autograd.grad(y[row], mine, allow_unused=True, retain_graph=keep)
        parts = [torch.zeros_like(x) if g is None else g for g, x in zip(found, mine, strict=True)]
        return torch.cat([g.detach().reshape(-1).to("cpu", torch.float64) for g in parts]).numpy()

    def derivative(self, run: Callable[..., Any], dtype: torch.dtype, rows: np.ndarray) -> np.ndarray:
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
    where fn is not finite, continuous and Lipschitz, or its derivative is wrong beside the point.

    >>> around = Neighbourhood(Point(torch.abs, torch.zeros(())), 1e-6, np.random.default_rng(0))
    >>> sorted({float(g) for (g,) in around.gradients[0]})
    [-1.0, 1.0]
    >>> around.gap(0, np.array([1.5])).round(12).tolist()
    [0.5]
    """

    def __init__(self, point: Point, radius: float, rng: np.random.Generator) -> None:
        self.point, self.radius, self.rng = point, radius, rng
        self.S = np.maximum(1.0, np.abs(point.x))
        self.n = len(point.x)
        self.value = self.at(np.zeros(self.n))
        if not np.array_equal(self.value, self.at(np.zeros(self.n)), equal_nan=True):
            raise ValueError("kinkcheck: fn returns other values when called again; seed what is random in it.")
        if not np.isfinite(self.value).all():
            raise FaultError(f"fn is not finite at this point: it returns {vector(self.value)}.")
        m = len(self.value)
        self.rows = np.arange(m) if m <= MOST_OUTPUTS else np.sort(rng.choice(m, MOST_OUTPUTS, replace=False))
        self.gradients: list[list[np.ndarray]] = [[] for _ in self.rows]
        self.seen: list[list[np.ndarray]] = [[] for _ in self.rows]
        directions = self._directions()
        self._need_lipschitz(directions)
        for u in directions:
            self._sample(u, range(len(self.rows)))
        lacking = [int(r) for r, found in zip(self.rows, self.gradients, strict=True) if not found]
        if lacking:
            raise FaultError(f"no point at which output {lacking[0]} is differentiable was found beside this one.")
        self.variation = self._variation(directions[:16])

    def at(self, z: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            y = self._forward(z)[0]
        return y.to("cpu").numpy()

    def _forward(self, z: np.ndarray) -> tuple[torch.Tensor, list[Any]]:
        leaves = self.point.leaves(torch.float64, self.point.x + self.S * z)
        try:
            y = self.point.outputs(self.point.fn, leaves)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"kinkcheck: fn does not run in float64, in which its slopes are sampled ({first_line(error)}); "
                "let its constants take the dtype of its inputs."
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

    def _need_lipschitz(self, directions: list[np.ndarray]) -> None:
        """|f(x + δu) − f(x)| must fall like δ; as it does over the last two orders of magnitude."""
        far, near = 0.1 * self.radius, 1e-3 * self.radius
        moved = np.abs([[self.at(delta * u) - self.value for u in directions] for delta in (far, near)])
        outside = ~np.isfinite(moved).all(axis=(0, 1))
        large, small = np.nan_to_num(moved, nan=0.0, posinf=0.0).max(axis=1)
        noise = 1e3 * np.finfo(float).eps * np.abs(self.value)
        with np.errstate(divide="ignore", invalid="ignore"):
            exponent = np.where(small > np.maximum(noise, 1e-300), np.log(large / small) / np.log(far / near), 1.0)
        for i, alpha in enumerate(exponent):
            if alpha < 0.1:
                raise FaultError(
                    f"fn is discontinuous at this point: output {i} jumps by {small[i]:.3g} within a distance of "
                    f"{near:.0e}; there is no Clarke subdifferential."
                )
            if alpha < 0.95:
                raise FaultError(
                    f"fn is not Lipschitz at this point: output {i} moves like distance^{alpha:.2f}, with slopes up to "
                    f"{small[i] / near:.1e} at a distance of {near:.0e}; there is no Clarke subdifferential."
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
        for r in chosen:
            row = int(self.rows[r])
            g = self.S * self.point.gradient(y, leaves, row, keep=True)
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
                    raise FaultError(
                        f"the derivative is wrong beside the kink too: at x = {vector(self.point.x + self.S * z)} "
                        f"autograd gives output {row} the slope {g @ w:.4g} along {vector(self.S * w)}, where fn has "
                        f"{wrong[-1]:.4g}; torch.autograd.gradcheck tests that."
                    )
        return new

    def _variation(self, directions: list[np.ndarray]) -> np.ndarray:
        """How much a gradient changes within its piece over half the radius: the median over directions."""
        changes = []
        for u in directions:
            jacobians = []
            for delta in (self.radius, self.radius / 2):
                y, leaves = self._forward(delta * u)
                rows = [self.S * self.point.gradient(y, leaves, int(r), keep=True) for r in self.rows]
                jacobians.append(np.array(rows))
            changes.append(np.linalg.norm(jacobians[0] - jacobians[1], axis=1))
        return np.median(changes, axis=0)

    def tolerance(self, r: int, v: np.ndarray, eps: float) -> float:
        largest = max(np.linalg.norm(self.gradients[r], axis=1).max(), np.linalg.norm(v))
        return float((1e-4 + 16 * eps) * largest + 8 * eps + 2 * self.variation[r])

    def gap(self, r: int, v: np.ndarray) -> np.ndarray:
        """v − p, p the point of conv(gradients) nearest to v."""
        return v - nearest(list({g.round(12).tobytes(): g for g in self.gradients[r]}.values()), v)

    def searched_gap(self, r: int, v: np.ndarray, tolerance: float) -> np.ndarray:
        """The gap, after more gradients were sought along it while it was longer than the tolerance."""
        idle = 0
        while True:
            gap = self.gap(r, v)
            length = np.linalg.norm(gap)
            if length <= tolerance or idle >= PATIENCE:
                return gap
            reach = np.array(self.gradients[r]) @ (gap / length)
            leader = self.seen[r][int(np.argmax(reach))]
            found = [g for u in self._towards(gap / length, leader) for g in self._sample(u, [r])]
            gained = max((g @ gap / length for g in found), default=-math.inf) - reach.max()
            idle = 0 if gained > 1e-2 * tolerance else idle + 1

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

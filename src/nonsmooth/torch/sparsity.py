"""Sparsity: how sparse the parameters under a `Proximal` are, which λ makes them so, and what to do with the support.

`density` counts exact zeros. `TargetSparsity` moves λ until a wanted density is reached, and holds it. `lam_path` runs
a training function of yours along several λ, each from the state of the last. `refit` keeps the support and drops the
penalty. No threshold is applied anywhere: the zeros are those of the prox.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from nonsmooth.ledger import short
from nonsmooth.penalties import GroupLasso, NuclearNorm, Penalty, SparseGroupLasso
from nonsmooth.torch.proximal import Proximal, need_proximal
from nonsmooth.torch.shards import counts, crossing, local, summed, whole
from nonsmooth.torch.states import count, numbers, strength

__all__ = ["Density", "DensityRow", "LamPath", "Refit", "TargetSparsity", "density", "lam_path", "refit"]

GAIN = 0.03
"""How far log λ moves in a step, for each unit of log density that is too much."""

AHEAD = 40
"""Steps that the density is extrapolated over before it is compared: a weight needs time to reach zero."""

POWER = 0.15
"""How the gain grows as the lr decays: a weight answers late when steps are small."""

MEMORY = 0.2
"""The part of the density's running mean that the newest count is."""

FASTEST = 0.25
"""The most that log λ moves in an update."""


@dataclass(frozen=True)
class DensityRow:
    """One parameter: its weights, those that are not zero, its groups and those that are not all zero (0 without).

    >>> DensityRow("0.weight", 6, 2, 3, 1).nonzero
    2
    """

    name: str
    size: int
    nonzero: int
    groups: int = 0
    alive: int = 0


@dataclass(frozen=True)
class Density:
    """The share of weights that are not exactly zero, and of groups that are not; rows by parameter.

    >>> print(Density((DensityRow("0.weight", 6, 2, 3, 1),)))
    density 0.333 (2 of 6 weights, 1 of 3 groups)
      0.weight  2 of 6  1 of 3
    """

    by_parameter: tuple[DensityRow, ...]

    @property
    def value(self) -> float:
        return sum(row.nonzero for row in self.by_parameter) / max(1, sum(row.size for row in self.by_parameter))

    @property
    def sparsity(self) -> float:
        """1 − density."""
        return 1 - self.value

    @property
    def groups(self) -> float | None:
        """The share of groups with a weight that is not zero; None where no penalty has groups."""
        there = sum(row.groups for row in self.by_parameter)
        return sum(row.alive for row in self.by_parameter) / there if there else None

    def __str__(self) -> str:
        rows = self.by_parameter
        size, nonzero, groups, alive = (
            sum(getattr(r, n) for r in rows) for n in ("size", "nonzero", "groups", "alive")
        )
        also = f", {alive} of {groups} groups" if groups else ""
        wide = max((len(row.name) for row in rows), default=0)
        lines = [f"density {self.value:.3g} ({nonzero} of {size} weights{also})"]
        for row in rows:
            end = f"  {row.alive} of {row.groups}" if row.groups else ""
            lines.append(f"  {row.name:{wide}}  {row.nonzero} of {row.size}{end}")
        return "\n".join(lines)


def density(optimizer: Proximal, *, model: torch.nn.Module | None = None) -> Density:
    """Exact zeros among the penalised parameters: overall, by parameter, and in groups where the penalty has them.

    `model` names the parameters; without it they have their index in the optimiser. Sharded parameters are counted as
    a whole: every process must call.

    >>> w = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    >>> found = density(Proximal(torch.optim.SGD([w], lr=0.1), GroupLasso(1.0)))
    >>> found.value, found.sparsity, found.groups
    (0.25, 0.75, 0.5)
    """
    optimizer = need_proximal("density", optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    names = {p: str(i) for i, p in enumerate(held)}
    names |= {p: name for name, p in model.named_parameters()} if model is not None else {}
    found = [(p, penalty) for p, penalty, _ in optimizer.penalised()]
    nonzero = _nonzero([p for p, _ in found])
    rows = (DensityRow(names[p], p.numel(), n, *_groups(p, g)) for (p, g), n in zip(found, nonzero, strict=True))
    return Density(tuple(rows))


def _nonzero(params: Sequence[torch.Tensor]) -> list[int]:
    """How many numbers of each are not zero, over all its shards."""
    return counts(params, [int(torch.count_nonzero(local(p))) for p in params])


def _groups(p: torch.Tensor, penalty: Penalty) -> tuple[int, int]:
    """How many groups there are, and how many are not all zero; (0, 0) for a penalty without groups."""
    if not isinstance(penalty, (GroupLasso, SparseGroupLasso)):
        return 0, 0
    across = crossing(p, penalty.dim)
    p = whole(p) if across is None or penalty.groups is not None else p
    alive = local(p.detach()) != 0
    if penalty.groups is not None:
        labels = torch.tensor(penalty.groups, device=p.device)
        return int(labels.max()) + 1, int(torch.unique(labels[alive]).numel())
    rows = alive.movedim(penalty.dim, 0).flatten(1) if p.ndim > 1 else alive[:, None]
    (there,) = summed(across or ())(rows.any(1).to(torch.int64), op="MAX")
    (total,) = summed(crossing(p, penalty.dim, along=True) or ())(there.sum())
    return p.shape[penalty.dim], int(total)


class TargetSparsity:
    """Moves λ until a wanted density is reached, and holds it there: call `step` after each step of the optimiser.

    With d the running mean of the share of weights (of="groups": of groups) that are not zero, and d* the target,

        log λ⁺ = log λ + k (log d − log d* + h · the slope of log(d/d*)),   k = 0.03 (η_max/η)^0.15 a step, h = 40 steps

    an integral control of log λ whose slope term foresees weights that are on their way to zero. k grows as the
    optimiser's lr η decays, since at a small η a weight answers late. An update changes λ by a factor of at most
    1.28, and λ stays within `limits`. So that the network can adapt, the target falls from 1, geometrically, over the
    part `ramp` of the training that follows the part `warmup`, fast first (cubically, as in Zhu & Gupta 2017):

        d*(t) = density^{1 − (1 − u)³},  u = (t/steps − warmup)/ramp within [0, 1]

    density: what is wanted, in (0, 1]; a list of one for each penalty that was given, with by="entry".
    steps: how many steps the training has.
    by: "overall" moves all λ by one factor and keeps their ratios; "entry" holds the density of each penalty (by layer,
        where Proximal was given a pair for each layer).
    every: steps between updates; each counts zeros, and waits for the device.
    freeze: the part of the training after which λ stays where it is.

    Of sharded parameters the whole is counted, and every process finds the same λ. λ alone is moved: what is zero is up
    to the prox. λ must be above 0 to start with, and is best a little small;
    penalties without one, such as NonNegative, are left alone. Raises ValueError, in one sentence, for what cannot be.

    Limits. The density flickers with the minibatch: the mean is held, single steps stray more the smaller the batch.
    Where a few dozen weights or groups are left, one is several per cent and λ may swing: for a small convex model take
    `lam_path`. The training must be long beside the time that a weight needs to reach zero; Adagrad, whose steps shrink
    unseen by lr, can miss a small target. Where λ has no hold (weights without a gradient) it rests at a limit.

    >>> from nonsmooth.penalties import L1
    >>> y = torch.linspace(0.01, 1, 100)
    >>> w = torch.nn.Parameter(y.clone())
    >>> optimizer = Proximal(torch.optim.SGD([w], lr=0.1), L1(1e-3))
    >>> controller = TargetSparsity(optimizer, density=0.2, steps=1000)
    >>> for _ in range(1000):
    ...     w.grad = (w - y).detach()
    ...     optimizer.step()
    ...     controller.step()
    >>> density(optimizer).value, 0.79 <= controller.lam[0] <= 0.81
    (0.2, True)
    """

    def __init__(
        self,
        optimizer: Proximal,
        density: float | Sequence[float],
        steps: int,
        *,
        by: Literal["overall", "entry"] = "overall",
        of: Literal["weights", "groups"] = "weights",
        warmup: float = 0.05,
        ramp: float = 0.5,
        freeze: float = 1.0,
        every: int = 1,
        limits: tuple[float, float] = (1e-8, 1e4),
    ) -> None:
        optimizer = need_proximal("TargetSparsity", optimizer)
        for name, value, choices in (("by", by, ("overall", "entry")), ("of", of, ("weights", "groups"))):
            if value not in choices:
                raise ValueError(f"TargetSparsity: {name} must be {choices[0]!r} or {choices[1]!r}, not {value!r}.")
        for name, number in (("steps", steps), ("every", every)):
            if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
                raise ValueError(f"TargetSparsity: {name} must be a whole number above 0, not {number!r}.")
        for name, part in (("warmup", warmup), ("ramp", ramp), ("freeze", freeze)):
            if not (_is_number(part) and 0 <= part <= 1):
                raise ValueError(f"TargetSparsity: {name} is a part of the training, from 0 to 1, not {part!r}.")
        if warmup + ramp > 1:
            raise ValueError(
                f"TargetSparsity: warmup + ramp = {warmup + ramp:g} is above 1 and leaves nothing to hold."
            )
        pair = isinstance(limits, Sequence) and len(limits) == 2 and all(map(_is_number, limits))
        if not (pair and 0 < limits[0] < limits[1] < math.inf):
            raise ValueError(f"TargetSparsity: limits must be two numbers 0 < low < high, not {limits!r}.")
        self.optimizer, self.steps, self.every, self.by, self.of = optimizer, int(steps), int(every), by, of
        self.warmup, self.ramp, self.freeze = float(warmup), float(ramp), float(freeze)
        self.limits = (float(limits[0]), float(limits[1]))
        units = self._units()
        if not units:
            raise ValueError("TargetSparsity: no penalty has a λ to move.")
        asked: Any = _plain(density)
        several = isinstance(asked, Iterable) and not isinstance(asked, str)
        self.wanted: list[float] = [*map(_plain, asked)] if several else [asked] * len(units)
        if len(self.wanted) != len(units):
            raise ValueError(f"TargetSparsity: density names {len(self.wanted)} targets for {len(units)} to control.")
        for wanted in self.wanted:
            if not (_is_number(wanted) and 0 < wanted <= 1):
                raise ValueError(f"TargetSparsity: density must be a number in (0, 1], not {wanted!r}.")
        for unit in units:
            for _, entry in unit:
                if not entry["lam"]:
                    name = entry["penalty"]["name"]
                    raise ValueError(f"TargetSparsity: λ of {name} must be above 0 to start with, such as 1e-5.")
            if of == "groups" and not self._count(unit)[1]:
                raise ValueError("TargetSparsity: of='groups' needs a penalty with groups, such as GroupLasso.")
        self.t = 0
        self.average: list[float | None] = [None] * len(units)
        self.fastest = [0.0] * len(units)

    def _units(self) -> list[list[tuple[dict[str, Any], dict[str, Any]]]]:
        """The (group, entry) pairs that share a λ's factor."""
        units: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
        for group, entry in self.optimizer.entries():
            if entry["lam"] is not None:
                units.setdefault(entry["which"] if self.by == "entry" else 0, []).append((group, entry))
        return [units[which] for which in sorted(units)]

    def _count(self, unit: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[int, int]:
        """How many are not zero, and how many there are."""
        there = [(group["params"][at], self.optimizer._penalty(e)) for group, e in unit for at in e["params"]]
        if self.of == "groups":
            sizes, alive = zip(*(_groups(p, penalty) for p, penalty in there), strict=True)
            return sum(alive), sum(sizes)
        return sum(_nonzero([p for p, _ in there])), sum(p.numel() for p, _ in there)

    def target(self, t: int | None = None) -> list[float]:
        """d* at step t, by default now."""
        u = ((self.t if t is None else t) / self.steps - self.warmup) / max(self.ramp, 1e-12)
        return [wanted ** (1 - (1 - min(1.0, max(0.0, u))) ** 3) for wanted in self.wanted]

    @property
    def lam(self) -> list[float]:
        """The λ of each penalty that has one, in order."""
        return [entry["lam"] for _, entry in self.optimizer.entries() if entry["lam"] is not None]

    @property
    def density(self) -> list[float]:
        """The running mean of the density of each that is controlled, 1 before the first update."""
        return [1.0 if average is None else average for average in self.average]

    def step(self) -> None:
        """Count, and move λ; to be called after each step of the optimiser."""
        self.t += 1
        if self.t % self.every:
            return
        targets, before = self.target(), self.target(self.t - self.every)
        for i, unit in enumerate(self._units()):
            nonzero, size = self._count(unit)
            seen = max(nonzero, 0.5) / max(size, 1)
            last = self.average[i]
            old = seen if last is None else last
            new = old + MEMORY * (seen - old)
            self.average[i] = new
            if any("off" in entry for _, entry in unit):
                continue
            lr = max(float(group["lr"]) for group, _ in unit)
            self.fastest[i] = max(self.fastest[i], lr)
            if lr <= 0 or self.t > self.freeze * self.steps:
                continue
            slope = math.log(new / old * before[i] / targets[i]) / self.every
            error = math.log(new / targets[i]) + AHEAD * slope
            gain = GAIN * math.sqrt(self.every) * (self.fastest[i] / lr) ** POWER
            factor = math.exp(max(-FASTEST, min(FASTEST, gain * error)))
            for _, entry in unit:
                entry["lam"] = max(self.limits[0], min(self.limits[1], entry["lam"] * factor))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; the λ are in the optimiser's own state."""
        return {"t": self.t, "average": list(self.average), "fastest": list(self.fastest)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError, with nothing changed, for what `state_dict` did not return."""
        who = "TargetSparsity"
        t, average = count(who, state_dict, "t"), numbers(who, state_dict, "average", 0.0, 1.0)
        fastest = [rate or 0.0 for rate in numbers(who, state_dict, "fastest", 0.0, 1e300)]
        for there in (len(average), len(fastest)):
            if there != len(self.average):
                here = len(self.average)
                raise ValueError(f"{who}: the state is of {there} controlled densities, and here are {here}.")
        if any(mean is not None and mean < 1e-30 for mean in average):
            raise ValueError(f"{who}: average of the state must be a list of numbers above 0, up to 1.")
        self.t, self.average, self.fastest = t, average, fastest


@dataclass(frozen=True)
class LamPath:
    """One row a λ, {"lam": λ, and what the training function returned}, and its state, or None where not kept.

    >>> LamPath(({"lam": 0.1, "density": 0.5},), (None,)).rows[0]["density"]
    0.5
    """

    rows: tuple[dict[str, Any], ...]
    states: tuple[Any, ...]


def lam_path(
    train: Callable[[float, Any], dict[str, Any]],
    lams: Iterable[float],
    *,
    best: str | None = None,
    folder: str | Path | None = None,
) -> LamPath:
    """Train along λ₁, λ₂, … in their order, each from the state that the last one ended in (None for the first).

    train(lam, state) is yours: it starts from state, and returns {"state": where it ended, "density": …, any metrics}.
    NumPy's numbers, and tensors of one, come back as Python's.
    With `best`, a metric of which more is better, the states that are kept are those of rows that no other row beats in
    it at the same density or less: the accuracy–density front. With a `folder`, each λ is written there when it is done
    (by torch.save, plain data and tensors), and read back instead of trained when the path is run again.

    Raises ValueError, before it trains, for a λ that is negative or no number; where train returns no "state", or what
    a folder cannot hold; and where the folder holds the path of other λ.

    >>> def train(lam, state):  # one proximal step on ½(w − 1)² from where the last λ ended
    ...     w = max(1.0 - lam, 0.0)
    ...     return {"state": w, "density": float(w > 0), "start": state}
    >>> path = lam_path(train, [0.5, 2.0])
    >>> path.rows
    ({'lam': 0.5, 'density': 1.0, 'start': None}, {'lam': 2.0, 'density': 0.0, 'start': 0.5})
    """
    if not isinstance(lams, Iterable):
        raise TypeError(f"lam_path: lams must be a list of λ, not {type(lams).__name__}.")
    rows: list[dict[str, Any]] = []
    states: list[Any] = []
    for k, lam in enumerate([strength("lam_path", lam) for lam in lams]):
        file = Path(folder) / f"{k:03d}.pt" if folder is not None else None
        if file is not None and file.exists():
            done = _kept(file)
            if done["row"]["lam"] != lam:
                raise ValueError(
                    f"lam_path: {file} is of λ = {done['row']['lam']:g}, not {lam:g}; name another folder."
                )
        else:
            found = train(lam, states[-1] if states else None)
            if not isinstance(found, dict) or "state" not in found:
                raise ValueError('lam_path: train must return a dictionary with a "state" to start the next λ from.')
            metrics = {name: _plain(value) for name, value in found.items() if name != "state"}
            done = {"row": {"lam": lam, **metrics}, "state": found["state"]}
            if best is not None and not all(_is_number(metrics.get(name)) for name in (best, "density")):
                raise ValueError(f'lam_path: with best={best!r}, train must return "density" and {best!r}, as numbers.')
            if file is not None:
                _keep(file, done)
        rows.append(done["row"])
        states.append(done["state"])
    if best is not None:
        states = [s if not any(_beats(b, a, best) for b in rows) else None for a, s in zip(rows, states, strict=True)]
    return LamPath(tuple(rows), tuple(states))


def _keep(file: Path, done: dict[str, Any]) -> None:
    """Write what a λ gave, whole or not at all, once it can be read back."""
    part = file.with_suffix(".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(done, part)
        torch.load(part, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch and pickle raise many kinds
        part.unlink(missing_ok=True)
        raise ValueError(
            f"lam_path: what train returned cannot be kept in a folder ({short(error)}); return plain data and tensors."
        ) from error
    part.replace(file)


def _kept(file: Path) -> dict[str, Any]:
    """The row and the state of a λ that is done; nothing of the file is run."""
    try:
        done = torch.load(file, weights_only=True)
        strength("lam_path", done["row"]["lam"])
        return {"row": dict(done["row"]), "state": done["state"]}
    except Exception as error:  # torch raises many kinds for a file that is cut off or not its own
        raise ValueError(
            f"lam_path: {file} is not whole ({short(error)}); delete it, and its λ is made anew."
        ) from error


def _beats(b: dict[str, Any], a: dict[str, Any], best: str) -> bool:
    """Whether b is at least as good as a in both, and better in one."""
    return b["density"] <= a["density"] and b[best] >= a[best] and (b["density"], b[best]) != (a["density"], a[best])


class Refit:
    """What `refit` returns: the masks are on, and the penalty off, until `remove` or the end of a `with` block.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
    >>> optimizer = Proximal(torch.optim.SGD([w], lr=1.0), GroupLasso(0.5))
    >>> with Refit(optimizer):
    ...     w.grad = torch.ones(2)
    ...     optimizer.step()
    >>> w.tolist()
    [0.0, 0.0]
    """

    def __init__(self, optimizer: Proximal) -> None:
        optimizer = need_proximal("refit", optimizer)
        if any(isinstance(penalty, NuclearNorm) for _, penalty, _ in optimizer.penalised()):
            raise ValueError(
                "refit: NuclearNorm makes singular values zero, and no weights that could be kept so; train two "
                "factors of the rank that was found instead."
            )
        hooks = optimizer._optimizer_step_post_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), Refit) for hook in hooks):
            raise ValueError("refit: one of this optimiser is on already; end it first.")
        self.zeros = [(p, local(p.detach()) == 0) for p, _, _ in optimizer.penalised()]
        self.optimizer = optimizer
        for _, entry in optimizer.entries():
            if entry["lam"] is not None and "off" not in entry:  # it may have been loaded from inside a refit
                plain = entry["penalty"]
                entry["off"] = {"lam": entry["lam"]} | {n: plain[n] for n in ("ridge", "group_lam") if n in plain}
                for name in entry["off"]:
                    (entry if name == "lam" else plain)[name] = 0.0
        self._hook = optimizer.register_step_post_hook(self._keep)

    def _keep(self, *_: Any) -> None:
        with torch.no_grad():
            for p, zero in self.zeros:
                local(p).masked_fill_(zero, 0.0)

    def remove(self) -> None:
        """Take the masks off, and set the penalty to what it was."""
        self._hook.remove()
        for _, entry in self.optimizer.entries():
            for name, kept in entry.pop("off", {}).items():
                (entry if name == "lam" else entry["penalty"])[name] = kept

    def __enter__(self) -> Refit:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


def refit(optimizer: Proximal) -> Refit:
    """Freeze the support and drop the penalty: min f(w) subject to w_i = 0 where w_i is 0 now. Train on after it.

    L1 shrinks what it keeps, by λ(∇²f)⁻¹ sign(w) on the support of a quadratic; the refit removes that bias. After
    each step the weights that were zero are set to zero again, whatever momentum or weight decay did to them;
    the λ of all penalties are 0 until `remove`, or the end of a `with` block. Constraints, such as NonNegative, stay.
    The optimiser goes on from its memory; weight decay is part of f. `LambdaLam` then changes what λ will be after the
    refit, `TargetSparsity` waits, `set_lam` raises. A state that was saved inside a refit says so: loaded, its λ are 0,
    and `refit` is to be called again, for the masks. Raises ValueError while another refit of the optimiser is on, and
    under a NuclearNorm, which has no support: its zeros are singular values.

    >>> w, y = torch.nn.Parameter(torch.tensor([2.0, 0.0])), torch.tensor([3.0, 0.5])
    >>> optimizer = Proximal(torch.optim.SGD([w], lr=1.0), GroupLasso(1.0))
    >>> with refit(optimizer):
    ...     w.grad = (w - y).detach()
    ...     optimizer.step()
    >>> w.tolist()
    [3.0, 0.0]
    """
    return Refit(optimizer)


def _plain(value: Any) -> Any:
    """A number of NumPy's, or a tensor of one number, as Python's own; anything else as it is."""
    return value.item() if isinstance(value, (np.generic, np.ndarray, torch.Tensor)) and value.ndim == 0 else value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)

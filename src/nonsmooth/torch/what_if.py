"""What if: the same training run some steps further, with one thing changed: advice, tried before it is given.

From the present state (parameters, buffers, optimiser state, random numbers) each change takes N steps. Closures refer
to the live model, so the steps are taken on it and taken back: afterwards all is, bit by bit, as it was, also when a
closure raises. Hooks of the optimiser do not fire, schedulers do not run (the learning rate stays what it is now), and
what is compiled runs eagerly.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch.optim import Optimizer

from nonsmooth.penalties import Penalty
from nonsmooth.torch.effective import own_step
from nonsmooth.torch.proximal import Proximal
from nonsmooth.torch.selection import eagerly
from nonsmooth.torch.smoothing import SmoothedClosure, smoothed
from nonsmooth.torch.steps.evaluation import SameRandomNumbers, ratio
from nonsmooth.torch.undisturbed import undisturbed

__all__ = ["WhatIf", "what_if"]

Closure = Callable[[], torch.Tensor]
Change = str | tuple[str, Callable[[Any], Any]]
KNOWN = ("as-it-is", "half-lr", "largest-stable-lr", "smooth", "proximal")
DOUBLINGS = 12
"""How often the search for the largest stable lr doubles or halves, at most."""
STABLE = "stable: the loss does not end a tenth above where it began"


@dataclass(frozen=True)
class WhatIf:
    """What N steps with one change came to.

    `losses`: the loss of each step's closure before the step, and one after the last, always of the original function
    (with the penalty of a Proximal that the optimiser is). `loss_before`: at the start, the mean over the closures;
    `loss_after`: the mean over the last tenth of `losses`; `lowest` of them. `raising`: the share of steps that raised
    the loss of their own data. `orbit_curvature`: κ̄ = Σ‖g⁺ − g‖²/Σ⟨g⁺ − g, D⟩ of what was descended on; None where
    the closures cycle or draw random numbers, so that g⁺ and g are of different functions. `norm`, `zeros`: ‖w‖₁ and
    the exact zeros of `weights`. `diverged`: not finite, or at the end above start + |start|. `lr`: the first group's.

    >>> print(WhatIf("half the lr", "half-lr", 50, 2.0, 0.5, 0.5, 0.0, 1.0, 3.0, 0, False, 0.05, "", (2.0, 0.5)))
    half the lr: loss 2 → 0.5 in 50 steps (lowest 0.5), 0 % raised it, κ̄ 1, ‖w‖₁ 3, 0 zeros, lr 0.05
    """

    change: str
    name: str
    steps: int
    loss_before: float
    loss_after: float
    lowest: float
    raising: float
    orbit_curvature: float | None
    norm: float
    zeros: int
    diverged: bool
    lr: float | None
    note: str = ""
    losses: tuple[float, ...] = ()

    def __str__(self) -> str:
        words = f"{self.change}: loss {self.loss_before:.4g} → {self.loss_after:.4g} in {self.steps} steps"
        words += f" (lowest {self.lowest:.4g}), {100 * self.raising:.0f} % raised it"
        words += "" if self.orbit_curvature is None else f", κ̄ {self.orbit_curvature:.4g}"
        words += f", ‖w‖₁ {self.norm:.4g}, {self.zeros} zeros" + ("" if self.lr is None else f", lr {self.lr:.4g}")
        return words + (", DIVERGED" if self.diverged else "") + (f"; {self.note}" if self.note else "")


def what_if(
    optimizer: Optimizer,
    closures: Closure | Sequence[Closure],
    *,
    steps: int = 50,
    changes: Sequence[Change] = ("as-it-is", "half-lr", "smooth"),
    penalty: Penalty | Sequence[tuple[Penalty, Iterable[torch.Tensor]]] | None = None,
    smooth_closures: Closure | Sequence[Closure] | None = None,
    weights: Iterable[torch.Tensor] | None = None,
    modules: Iterable[torch.nn.Module] = (),
    beta: float = 20.0,
    resolution: float = 2**0.25,
) -> tuple[WhatIf, ...]:
    """`steps` steps from the present state for each change, measured; all is left as it was.

    optimizer: any of torch's, or a Proximal, with its state, of which it is lent copies. Other wrappers, such as those
        of trainers, count as what they wrap.
    closures: one, or several that are gone through in turn; each returns the loss of fixed data, and never calls
        backward. What it draws at random is drawn alike for each change.
    changes: "as-it-is"; "half-lr"; "smooth": the gradient is that of `smoothed(closure, beta)`; "proximal":
        `Proximal(optimizer, penalty)` on `smooth_closures`, which are the closures without that penalty, in the same
        order; "largest-stable-lr", see below; or (name, function), where function(optimizer) changes it in place (its
        groups, not its parameters) or returns another to step with.
    weights: of which ‖w‖₁ and zeros are told; those under `penalty`, or under the Proximal, where it is None; else all.

    modules: those whose modes or buffers a closure changes other than by calling them, to be put back too; modules that
        are called need not be named.

    The largest stable lr is sought by doubling all groups' learning rates, or halving them, from now on, up to 12
    times, then by bisecting the bracket in halves of its logarithm until its ends are within `resolution` of each
    other. An lr is stable if over N steps the loss stays finite and does not end a tenth above where it began: its mean
    over the last tenth of the steps is at most f + |f|/10, f the mean of the same closures at the start. A bounded
    bounce, as at a kink or in the noise of batches, is stable. The result is the run at the lower end; its note has the
    bracket, or that no limit was found.

    Losses count as what is to fall. A change costs a gradient a step, and a loss more where what is descended on is not
    what is measured, or where the closures cycle or draw random numbers. Memory: a copy of parameters, state and, while
    it runs, a step's gradient.

    Raises ValueError for what makes no sense, TypeError for what is no optimiser, and what a closure raises.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimizer = torch.optim.SGD([w], lr=0.5)
    >>> now, half = what_if(optimizer, lambda: w.square().sum(), steps=2, changes=("as-it-is", "half-lr"))
    >>> now.losses, half.losses, w.item()  # w ← (1 − 2 lr) w
    ((1.0, 0.0, 0.0), (1.0, 0.25, 0.0625), 1.0)
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"what_if: optimizer must be a torch optimiser, not {type(optimizer).__name__}.")
    if isinstance(steps, bool) or not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"what_if: steps must be a whole number above 0, not {steps!r}.")
    if not (isinstance(resolution, int | float) and 1 < resolution <= 2):
        raise ValueError(f"what_if: resolution must be a factor above 1 and at most 2, not {resolution!r}.")
    if isinstance(changes, str) or not all(_is_change(change) for change in changes):
        raise ValueError(f"what_if: changes must be a list of {', '.join(KNOWN)} or (name, function), not {changes!r}.")
    optimizer, loss = _bare(optimizer), _as_closures("closures", closures)
    without = None if smooth_closures is None else _as_closures("smooth_closures", smooth_closures)
    if "proximal" in changes:
        if penalty is None or without is None or len(without) != len(loss):
            raise ValueError(
                "what_if: proximal needs the penalty, and smooth_closures: the closures without it, one for each."
            )
        if isinstance(optimizer, Proximal):
            raise ValueError("what_if: the optimiser is a Proximal already; leave the change out.")
    penalty = penalty if penalty is None or isinstance(penalty, Penalty) else [(g, list(ps)) for g, ps in penalty]
    trials = _Trials(optimizer, loss, steps, _weights(optimizer, penalty, weights), list(modules))
    done = []
    for change in changes:
        if not isinstance(change, str):
            done.append(trials.run(change[0], change[0], alter=change[1]))
        elif change == "as-it-is":
            done.append(trials.run("as it is", change))
        elif change == "half-lr":
            done.append(trials.run("half the lr", change, factor=0.5))
        elif change == "largest-stable-lr":
            done.append(trials.search(float(resolution)))
        elif change == "smooth":
            done.append(_smooth(trials, loss, beta))
        else:
            wrap = lambda inner: Proximal(inner, penalty)  # type: ignore[arg-type]  # noqa: E731
            done.append(trials.run("proximal steps instead of the penalty's gradient", change, wrap, drive=without))
    return tuple(done)


def _smooth(trials: _Trials, loss: list[Closure], beta: float) -> WhatIf:
    twins: list[SmoothedClosure] = [smoothed(closure, beta) for closure in loss]
    found = trials.run("smooth twins of the kinks", "smooth", drive=twins)
    left = dict.fromkeys(what for twin in twins for what in twin.left)
    return replace(found, note=f"β = {beta:g}, nothing left" if not left else f"β = {beta:g}; left: {', '.join(left)}")


class _Trials:
    """Runs from one start: the optimiser, the closures that are measured, and the weights that are counted."""

    def __init__(
        self,
        optimizer: Optimizer,
        loss: list[Closure],
        steps: int,
        weights: list[torch.Tensor],
        modules: list[torch.nn.Module],
    ) -> None:
        self.optimizer, self.loss, self.steps, self.weights, self.modules = optimizer, loss, steps, weights, modules
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        with _as_it_was(optimizer, self.params, modules):
            looked = [self._looked_at(closure) for closure in loss]
        self.starts = [f for f, _ in looked]
        self.alike = len(loss) == 1 and not looked[0][1]

    def run(
        self,
        change: str,
        name: str,
        alter: Callable[[Any], Any] = lambda optimizer: None,
        factor: float = 1.0,
        drive: Sequence[Closure] | None = None,
    ) -> WhatIf:
        with _as_it_was(self.optimizer, self.params, self.modules):
            for group in self.optimizer.param_groups:
                if factor != 1 and "lr" in group:
                    group["lr"] = group["lr"] * factor
            altered = alter(self.optimizer)
            optimizer = self.optimizer if altered is None else altered
            if not isinstance(optimizer, Optimizer):
                raise TypeError(f"what_if: {name} must return an optimiser or None, not {type(optimizer).__name__}.")
            return self._steps(optimizer, change, name, drive)

    def search(self, resolution: float) -> WhatIf:
        """The run at the lower end of the bracket."""
        runs: dict[float, WhatIf] = {}

        def is_stable(factor: float) -> bool:
            run = runs[factor] = self.run("the largest stable lr", "largest-stable-lr", factor=factor)
            start = self._start_of_tail(run.losses)
            return all(map(math.isfinite, run.losses)) and run.loss_after <= start + abs(start) / 10

        def told(factor: float, words: str) -> WhatIf:
            return replace(runs[factor], note=f"{words}, {len(runs)} runs of {self.steps} steps; {STABLE}")

        low = high = 1.0
        if not any(float(group.get("lr", 0.0)) for group in self.optimizer.param_groups):
            return replace(self.run("the largest stable lr", "largest-stable-lr"), note="the lr is 0: nothing to scale")
        if is_stable(1.0):
            while high < 2.0**DOUBLINGS and is_stable(2 * high):
                high *= 2
            low, high = high, 2 * high
            if low >= 2.0**DOUBLINGS:
                return told(low, f"no limit found up to {low:g} times")
        else:
            while low > 2.0**-DOUBLINGS and not is_stable(low / 2):
                low /= 2
            low, high = low / 2, low
            if low < 2.0**-DOUBLINGS:
                return told(high, "no stable lr found, down to this one")
        while high / low > resolution * (1 + 1e-9):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if is_stable(middle) else (low, middle)
        return told(low, f"between {runs[low].lr:.4g} and {runs[high].lr:.4g}")

    # --- one run ----------------------------------------------------------------------------------------------------

    def _steps(self, optimizer: Optimizer, change: str, name: str, drive: Sequence[Closure] | None) -> WhatIf:
        losses: list[float] = []
        raised, orbit, lr = 0, _Orbit(self.params) if self.alike else None, optimizer.param_groups[0].get("lr")
        step = own_step(type(optimizer))
        for k in range(self.steps):
            own = self.loss[k % len(self.loss)]
            again = SameRandomNumbers()
            descent = _Descent(own if drive is None else drive[k % len(self.loss)], self.params, orbit)
            losses.append(self._penalty() if drive is None else self._measured(own))
            step(optimizer, descent)
            if drive is None:
                losses[-1] += descent.first
            if not (math.isfinite(losses[-1]) and math.isfinite(descent.first)):
                losses[-1] = losses[-1] if not math.isfinite(losses[-1]) else math.nan
                break
            if not self.alike:
                with again():
                    raised += not self._measured(own) <= losses[-1]
        else:
            losses.append(self._measured(self.loss[self.steps % len(self.loss)]))
        if self.alike:
            raised = sum(not b <= a for a, b in pairwise(losses))
        finite, start = [f for f in losses if math.isfinite(f)], self._start_of_tail(losses)
        after = _tail(losses, self.steps) if len(finite) == len(losses) else losses[-1]
        return WhatIf(
            change=change,
            name=name,
            steps=self.steps,
            loss_before=math.fsum(self.starts) / len(self.starts),
            loss_after=after,
            lowest=min(finite, default=math.nan),
            raising=raised / max(len(losses) - 1, 1),
            orbit_curvature=None if orbit is None else orbit.value,
            norm=math.fsum(float(w.detach().abs().sum(dtype=torch.float64)) for w in self.weights),
            zeros=sum(int((w.detach() == 0).sum()) for w in self.weights),
            diverged=not after <= start + abs(start),
            lr=None if lr is None else float(lr),
            losses=tuple(losses),
        )

    def _start_of_tail(self, losses: Sequence[float]) -> float:
        """The mean loss at the start of the closures that the tail is of."""
        return _tail([self.starts[k % len(self.loss)] for k in range(len(losses))], self.steps)

    def _measured(self, closure: Closure) -> float:
        return self._looked_at(closure)[0]

    def _looked_at(self, closure: Closure) -> tuple[float, bool]:
        """The loss with its penalty, and whether random numbers were drawn for it; nothing is changed by it."""
        with undisturbed(self.params, self.modules), torch.enable_grad():  # a gradient may be a part of the loss
            before = SameRandomNumbers()
            loss = _number(closure())
            drew = not _same(before, SameRandomNumbers())
        return loss + self._penalty(), drew

    def _penalty(self) -> float:
        """Of a Proximal that the optimiser is; what a change wraps is in the closures already."""
        return float(self.optimizer.penalty_value()) if isinstance(self.optimizer, Proximal) else 0.0


class _Descent:
    """The closure as an optimiser calls it: gradients put into `.grad` anew; `first` is the loss of the first call."""

    def __init__(self, closure: Closure, params: list[torch.Tensor], orbit: _Orbit | None) -> None:
        self.closure, self.params, self.orbit, self.first = closure, params, orbit, math.nan
        self.calls = 0

    def __call__(self) -> torch.Tensor:
        for p in self.params:
            p.grad = None
        with torch.enable_grad():
            loss = self.closure()
            value = _number(loss)
            if any(p.grad is not None for p in self.params):
                raise ValueError("what_if: a closure called backward; return the loss, and leave its gradient alone.")
            if not loss.requires_grad:
                raise ValueError("what_if: a closure's loss has no graph; compute it from the parameters.")
            loss.sum().backward()
        if not self.calls:
            self.first = value
            if self.orbit is not None:
                self.orbit.see()
        self.calls += 1
        return loss.detach()


class _Orbit:
    """κ̄ of the gradients in `.grad`, from one point to the next."""

    def __init__(self, params: list[torch.Tensor]) -> None:
        self.params = params
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.changes: list[float] = []
        self.secants: list[float] = []

    def see(self) -> None:
        now = []
        for p in self.params:
            g = torch.zeros_like(p) if p.grad is None else p.grad.to_dense()
            now.append((p.detach().clone(), g.detach().clone()))
        if self.before:
            pairs = [((x - a).double(), (g - b).double()) for (x, g), (a, b) in zip(now, self.before, strict=True)]
            self.changes.append(math.fsum(float((change * change).sum()) for _, change in pairs))
            self.secants.append(math.fsum(float((change * step).sum()) for step, change in pairs))
        self.before = now

    @property
    def value(self) -> float | None:
        if not self.changes or not all(map(math.isfinite, (*self.changes, *self.secants))):
            return None
        return ratio(math.fsum(self.changes), math.fsum(self.secants))


# --- as it was --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _as_it_was(optimizer: Optimizer, params: list[torch.Tensor], modules: list[torch.nn.Module]) -> Iterator[None]:
    """Lend the optimiser copies of its groups and its state; put all back at the end, the parameters' values too."""
    chain: list[Any] = [optimizer, optimizer.optimizer] if isinstance(optimizer, Proximal) else [optimizer]
    own = [(o, dict(vars(o))) for o in chain]
    values = [p.detach().clone() for p in params]
    memo: dict[int, Any] = {id(p): p for p in params}
    lent_state, lent_groups = (copy.deepcopy(part, memo) for part in (chain[-1].state, chain[-1].param_groups))
    with undisturbed(params, modules), eagerly(), torch.autograd._unsafe_preserve_version_counter(tuple(params)):
        try:
            chain[-1].state, chain[-1].param_groups = lent_state, lent_groups
            yield
        finally:
            for o, was in own:
                vars(o).clear()
                vars(o).update(was)
            for p, value in zip(params, values, strict=True):
                p.data.copy_(value)


def _bare(optimizer: Optimizer) -> Optimizer:
    """What the wrappers of trainers hold, innermost; a Proximal is kept."""
    for name in ("_optimizer", "optimizer"):
        inner = getattr(optimizer, name, None)
        proximal = name == "optimizer" and isinstance(optimizer, Proximal)
        if isinstance(inner, Optimizer) and inner is not optimizer and not proximal:
            return _bare(inner)
    return optimizer


def _same(a: SameRandomNumbers, b: SameRandomNumbers) -> bool:
    def plain(numbers: SameRandomNumbers) -> Any:
        legacy: Any = numbers.numpy
        tensors = [numbers.torch, *numbers.devices]
        return numbers.python, legacy[1].tobytes(), legacy[2:], [t.numpy().tobytes() for t in tensors]

    return bool(plain(a) == plain(b))


def _number(loss: Any) -> float:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise ValueError(f"what_if: a closure must return the loss, a scalar tensor, not {what}.")
    if loss.is_complex():
        raise ValueError("what_if: the loss is complex; return a real one, such as its .real or .abs().")
    return float(loss.detach())


def _tail(losses: Sequence[float], steps: int) -> float:
    """The mean of the last tenth of so many steps."""
    last = losses[-math.ceil(steps / 10) :]
    return math.fsum(last) / len(last)


def _is_change(change: Any) -> bool:
    if isinstance(change, tuple):
        return len(change) == 2 and isinstance(change[0], str) and callable(change[1])
    return change in KNOWN


def _as_closures(name: str, closures: Any) -> list[Closure]:
    found = [closures] if callable(closures) else list(closures) if isinstance(closures, Iterable) else []
    if not found or not all(callable(closure) for closure in found):
        raise ValueError(f"what_if: {name} must be a function that returns the loss, or a list of them.")
    return found


def _weights(optimizer: Optimizer, penalty: Any, weights: Iterable[torch.Tensor] | None) -> list[torch.Tensor]:
    if weights is not None:
        return list(weights)
    if isinstance(penalty, list):
        return [p for _, params in penalty for p in params]
    if isinstance(optimizer, Proximal):
        return [p for p, _, _ in optimizer.penalised()]
    return [p for group in optimizer.param_groups for p in group["params"]]

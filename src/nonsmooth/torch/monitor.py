"""Monitor: measures some steps of a training run, as many as a stated share of the wall clock allows.

It hooks the optimiser's step and calls nothing of the user's but the closure. What it may have changed is put back bit
by bit: parameters, buffers, `.grad`, modes and random numbers.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from nonsmooth.torch.aftermath import Aftermath
from nonsmooth.torch.facts import model_facts, open_rows, optimizer_facts, plain, versions, write_facts, write_row
from nonsmooth.torch.findings import Finding, findings
from nonsmooth.torch.hessian import WIDE
from nonsmooth.torch.l1_audit import Chatter, reach_of
from nonsmooth.torch.loggers import Sink, sink
from nonsmooth.torch.probes import Probes, checksums, quietly
from nonsmooth.torch.proximal import Proximal, weights
from nonsmooth.torch.ranks import MeanOverRanks
from nonsmooth.torch.shards import need_whole

__all__ = ["Monitor"]

PATIENCE = 3
"""A probe that fails so often in a row is not tried again."""
KINDS = ("step", "stability")
WINDOW = 16
"""The consecutive steps over which signs of weights are followed."""
SIDE = 0.15
"""The share of the budget that traces of the weights, and windows of their signs, may each take."""
RESERVE = 0.06
"""The share of the budget that is held back, for each second of training, for what no clock of ours sees: calls of
hooks, caches that are cold. At a budget of 1 it is nothing."""
APART = 1.1
"""How far apart, by this factor, the steps are at which the allowance pays."""
FIRST = 8.0
"""About how many probes of a step the first estimate of the sharpness costs, which no earlier one helps."""
NAP, LONGEST = 0.02, 64
"""So many seconds, and so many steps at most, it does not look at the steps: looking costs too."""
DENSE = 1024
"""Up to so many steps each is traced; then the distance doubles whenever their number does."""
PAUSE = 100
"""So many times what it took of late, and a minute at least: the process was stopped meanwhile, or the clock set."""


class Monitor:
    """Measures steps and stability of a run while it goes on, within a `budget`, the share of wall clock it may take.

    model, optimizer: those that train. closure: returns the loss of the same data whenever it is called, with its
    graph, and never calls backward. A probe of kind "step" is `measure_step` of the step just taken (κ, its smooth and
    kink part, kink share, flips; κ̄ over the measured steps), one of kind "stability" the (preconditioned) sharpness
    and its ratio to the optimiser's threshold, warm-started; for an optimiser without one λ₁ of the Hessian alone.
    They share the budget evenly: a probe is made where, by the cost of its last, all probes so far stay within it. The
    first of each kind has no last: that of a step is made at once, that of the sharpness when its likely cost, by the
    cost of the other, is within the allowance or the budget. Rows of kind "trace" hold checksums of the
    weights, to tell where two runs part; rows of kind "chatter" what signs of weights did over a window of steps.

    folder: where each row is appended at once, to rows.jsonl, and where run.json and report.html are written: rows
    survive a kill. A run that goes on from a checkpoint sets `monitor.t` to its steps so far before it enters; one that
    begins is refused a folder whose run has ended. data: what the closure's data are, as each row says. Each row also
    says whether a penalty is in the loss: under a `Proximal` it is not; otherwise `penalty` says it. loggers: a
    TensorBoard `SummaryWriter`, a Weights & Biases run, the `mlflow` module, or a function of a row; None takes what is
    active of the last two. allowance: seconds of probes that a short run may take beside the budget, at steps a tenth
    apart, to have something to tell of it.

    Under data parallelism every rank makes a Monitor alike, with `mean_over_ranks(closure, model)`, of the loss over
    all ranks' data. The first rank decides when, by its clock, and writes the folder and the loggers; the rows of
    probes are the same on all ranks, `active_by_layer` and `selection` in them those of the first rank's data.

    A probe that fails leaves a row with the reason, and the run goes on; after three in a row it is not tried again.
    `rows`, `spent` (seconds; `slowed` of them by what steps after a probe take longer than others), `skipped` (steps
    not measured, by kind) and `str()` tell what was done; `findings` say it in words, and `report` writes a page.
    It is entered once. Raises TypeError or ValueError, in one sentence, for an argument that cannot be.

    >>> w = torch.nn.Parameter(torch.tensor([0.25]))
    >>> optimizer = torch.optim.SGD([w], lr=0.5)
    >>> with Monitor(w, optimizer, closure=lambda: w.abs().sum(), budget=1.0) as monitor:
    ...     w.grad = torch.ones(1)
    ...     optimizer.step()
    >>> row = next(row for row in monitor.rows if row["kind"] == "step")
    >>> row["curvature"], row["kink"], row["flipped"]
    (4.0, 4.0, 1)
    """

    def __init__(
        self,
        model: torch.nn.Module | torch.Tensor | Sequence[torch.Tensor],
        optimizer: Optimizer,
        closure: Callable[[], torch.Tensor],
        *,
        budget: float = 0.05,
        folder: str | Path | None = None,
        data: str = "the closure's",
        penalty: str = "as in the closure",
        window: int = 100,
        loggers: Sequence[Any] | None = None,
        allowance: float = 1.0,
    ) -> None:
        several = model if isinstance(model, (list, tuple)) and model else [model]
        if not all(isinstance(part, (torch.nn.Module, torch.Tensor)) for part in several):
            raise TypeError(f"Monitor: model must be a module or a list of parameters, not {type(model).__name__}.")
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Monitor: optimizer must be a torch optimiser, not {type(optimizer).__name__}.")
        if not callable(closure):
            raise TypeError("Monitor: closure must be a function that returns the loss.")
        if not (isinstance(budget, (int, float)) and not isinstance(budget, bool) and 0 < budget <= 1):
            raise ValueError(f"Monitor: budget is a share of the wall clock, above 0 and up to 1, not {budget!r}.")
        self.model, self.optimizer, self.closure = model, optimizer, closure
        if not (isinstance(allowance, (int, float)) and allowance >= 0):
            raise ValueError(f"Monitor: allowance is a number of seconds, 0 or more, not {allowance!r}.")
        self.budget, self.data, self.allowance = float(budget), data, float(allowance)
        self._grid, self._granted = 1, 0.0
        self.penalty = "not in the loss: taken by Proximal" if isinstance(optimizer, Proximal) else penalty
        few = sys.maxsize if isinstance(closure, MeanOverRanks) else WIDE  # no rank depends on its own disk
        self.probes = Probes(model, optimizer, window, few)
        self.rows: list[dict[str, Any]] = []
        self.t, self.spent = 0, 0.0
        self._clock = time.time()
        self._began, self._ended, self._first, self._paused = 0.0, 0.0, 0, 0.0
        self._cost = dict.fromkeys(KINDS, 0.0)
        self._used = dict.fromkeys((*KINDS, "trace", "chatter"), 0.0)
        self._lately = dict.fromkeys(self._used, 60.0)
        self._failed = dict.fromkeys(KINDS, 0)
        self._made = dict.fromkeys(KINDS, 0)
        self.wants: str | None = "step"
        self.idle = 0
        self._before: Sequence[torch.Tensor] | None = None
        self._stride, self._windows, self._broke = 1, 0, False
        self._aftermath, self._left, self.slowed = Aftermath(), 0.0, 0.0
        self._at: int | None = None  # the step that was looked at last
        self._pace = math.inf  # seconds a step since then
        self.chatter: Chatter | None = None
        self._room = {"trace": True, "chatter": True}
        self._hooks: list[Any] = []
        need_whole("Monitor", [p for _, p in self.probes.params()])
        self._ranks = closure.ranks if isinstance(closure, MeanOverRanks) else None
        leads = self._ranks is None or self._ranks.leads
        self._sinks: list[Sink] = sink(loggers) if leads else []
        self.folder = None if folder is None or not leads else Path(folder)
        self._file: Any = None
        self._over = False  # the folder holds the rows of a run that has ended
        with contextlib.nullcontext() if self._ranks is None else self._ranks.together("Monitor"):
            self._open(folder)

    def _open(self, folder: Any) -> None:
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = open_rows(self.folder)
                self._over = self._file.seek(0, os.SEEK_END) > 0 and (self.folder / "run.json").exists()
            except OSError as error:
                raise ValueError(f"Monitor: the folder {folder} cannot be written ({error.strerror}).") from None

    # --- where it listens --------------------------------------------------------------------------------------------

    def __enter__(self) -> Monitor:
        with contextlib.nullcontext() if self._ranks is None else self._ranks.together("Monitor"):
            if self._over and not self.t:
                self._close()
                raise ValueError(
                    f"Monitor: {self.folder} holds a run already; name another folder, or set `monitor.t` to the steps "
                    "so far where that run goes on."
                )
        self.begin()
        self._hooks = [
            self.optimizer.register_step_pre_hook(lambda *_: self.before()),
            self.optimizer.register_step_post_hook(lambda *_: self.after()),
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        self.end()

    def begin(self) -> None:
        """Start the clock, without hooks: for one who calls `before` and `after` each step himself."""
        if self._began:
            raise ValueError("Monitor: this one has been entered already; make another for the steps to come.")
        self._began, self._clock, self._first = time.perf_counter(), time.time(), self.t

    def end(self) -> None:
        """Stop the clock, take the hooks away, close the file and write run.json beside it, or warn that it cannot."""
        if self._ended:
            return
        self._ended = time.perf_counter()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before = [], None
        self._close()
        if self.folder is not None:
            found = self.facts() | {"findings": [f.to_dict() for f in self.findings]}
            try:
                write_facts(self.folder, found)
            except ValueError as error:  # the script goes on
                warnings.warn(f"Monitor: {error}", stacklevel=3)

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file = None

    def skip(self, steps: int) -> None:
        """Count steps that were not looked at: up to `idle` of them, which is how many may be left out now."""
        self.t += steps
        self.idle -= steps

    def before(self) -> None:
        """To be called before a step of the optimiser."""
        if self.wants == "step":
            began = time.perf_counter()
            self._before = self.probes.before()
            self._left += self.spend("step", began)

    def after(
        self,
        closure: Callable[[], torch.Tensor] | None = None,
        data: str | None = None,
        loss: Any = None,
        listened: float = 0.0,
        taped: bool = False,
    ) -> None:
        """To be called after a step: with the closure and the data of this step, where they are others each time.

        loss: what the script called backward on, for the trace. listened: seconds since the last call that were the
        caller's own. taped: whether it took down what the step did, which makes a step slower.
        """
        if self.idle:
            self._left += listened
            return self.skip(1)
        called = time.perf_counter()
        self.t += 1
        if self._at is not None:
            seconds, steps = max(1e-9, called - self._left - listened), self.t - self._at
            self._pace = seconds / steps
            slowed = self._aftermath.step(seconds, steps, taped)
            self.slowed += slowed
            self.spent += slowed
        counted = self.spent
        if closure is not None:
            self.closure = closure
        if data is not None:
            self.data = data
        self._trace(loss)
        self._follow()
        kind = self.wants
        if kind is not None and (kind != "step" or self._before is not None):
            began = time.perf_counter()
            self._probe(kind)
            self._before = None
            self._cost[kind] = self.spend(kind, began)
            self._aftermath.probed()
            if kind == "step" and not self._made["stability"]:  # its first has no last to tell what it will cost
                self._cost["stability"] = FIRST * self._cost[kind]
        self._plan()
        self._left, self._at = time.perf_counter(), self.t
        self.spent = max(self.spent, counted + self._left - called)

    def _plan(self) -> None:
        """What the next step has, by this clock or the first rank's: ranks that differed would wait for each other."""
        self.wants = self._due()
        self.idle = self._nap()
        self._room = {kind: self._has_room(kind) for kind in self._room}
        if self._ranks is not None:
            due = KINDS.index(self.wants) if self.wants else len(KINDS)
            due, self.idle, *room = self._ranks.first((due, self.idle, *map(int, self._room.values())))
            self.wants = (*KINDS, None)[due]
            self._room = dict(zip(self._room, map(bool, room), strict=True))

    def spend(self, kind: str, began: float) -> float:
        """Count the time since `began` as spent on observing; of a pause, what the last one took."""
        spent = cost = time.perf_counter() - began
        if spent > max(60.0, PAUSE * self._lately[kind]):
            cost = self._cost.get(kind, 0.0)
            self._paused += spent - cost
        self._lately[kind] = max(spent, self._lately[kind] / 2)
        self.spent += spent
        self._used[kind] += cost
        return cost

    def _due(self) -> str | None:
        """The kind of probe that has had less of the budget, where there is room for it now."""
        kinds = [kind for kind in KINDS if self._failed[kind] < PATIENCE]
        if not kinds:
            return None
        at = self.t + 1
        while at > self._grid + 1:
            self._grid = max(self._grid + 2, math.ceil(self._grid * APART))
        granted = "step" if at == self._grid else "stability" if at == self._grid + 1 else ""
        if granted in kinds and self._granted + self._cost[granted] <= self.allowance:
            self._granted += self._cost[granted]  # on a grid of steps, so that two runs have them in common
            return granted
        elapsed, spent = self._elapsed(), self.spent - self._paused
        budget = self.budget * (1 - RESERVE * (1 - self.budget))
        for kind in sorted(kinds, key=lambda k: (bool(self._made[k]), self._used[k])):
            cost = self._cost[kind]
            affordable = spent + cost <= budget * (elapsed + cost)
            if affordable or (not self._made[kind] and cost <= self.allowance):
                return kind
            if self._made[kind]:  # it is its turn, and the other would take what it waits for
                return None
            budget /= 2  # while a first one saves for its cost
        return None

    def _nap(self) -> int:
        """How many of the coming steps need not be looked at."""
        if self.wants is not None or self.chatter_open:
            return 0
        steps = int(min(LONGEST, NAP / self._pace))
        if self._aftermath.left:
            steps = min(steps, self._aftermath.left - 1)
        to_trace = self._stride - 1 - self.t % self._stride
        to_grid = self._grid - self.t - 2 if self._grid > self.t else steps
        return max(0, min(steps, to_trace, to_grid))

    def _has_room(self, kind: str) -> bool:
        return self._used[kind] <= SIDE * self.budget * self._elapsed()

    def _elapsed(self) -> float:
        return time.perf_counter() - self._began - self._paused

    # --- what it measures --------------------------------------------------------------------------------------------

    def _probe(self, kind: str) -> None:
        self._made[kind] += 1
        row: dict[str, Any] = {}
        try:
            with torch.enable_grad(), quietly():
                row = (
                    self.probes.step(self.closure, self._before)
                    if kind == "step"
                    else self.probes.curvature(self.closure)
                )
        except Exception as error:  # the run goes on, whatever a probe meets
            said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            row["error"] = said.partition("\n")[0]
        row = row if self._ranks is None else self._ranks.every(row)[0]
        self._failed[kind] = self._failed[kind] + 1 if "error" in row else 0
        if self._failed[kind] == PATIENCE and self._hooks:
            warnings.warn(f"Monitor: no more probes of kind {kind!r}: {row['error']}", stacklevel=4)
        self.add(kind, row)

    def _trace(self, loss: Any) -> None:
        """A row of the weights' checksums and of the loss, at steps whose distance is a power of two.

        And at the first step that is looked at whose loss is not finite, where looking costs nothing.
        """
        broke = not self._broke and isinstance(loss, float) and not math.isfinite(loss)
        if self.t % self._stride and not broke:
            return
        self._broke |= broke
        began = time.perf_counter()
        value = float(loss) if loss is not None else None
        lr = [float(group["lr"]) for group in self.optimizer.param_groups if "lr" in group]
        self.add("trace", {"loss": value, "lr": lr, "weights": checksums(self.probes.params())})
        self.spend("trace", began)
        while self.t >= DENSE * self._stride:
            self._stride *= 2
        if not self._room["trace"] and self.t > 8:
            self._stride *= 2

    def _follow(self) -> None:
        """One more step of a window of the weights' signs, or the first of the next where there is room."""
        began = time.perf_counter()
        if self.chatter is None or not self.chatter_open:
            if self.t < 2 or (self._windows and not self._room["chatter"]):
                return
            self.chatter = Chatter(self._weights(), reach=reach_of(self.optimizer))
            self.chatter_open = True
        else:
            self.chatter.update()
            if self.chatter.steps == WINDOW:
                self.add("chatter", self.chatter.row())
                self.chatter_open = False
                self._windows += 1
        self.spend("chatter", began)

    chatter_open = False

    def _weights(self) -> list[torch.Tensor]:
        held = [p for _, p in self.probes.params()]
        if isinstance(self.model, torch.nn.Module):
            own = {id(p) for p in weights(self.model)}
            held = [p for p in held if id(p) in own] or held
        return [p for p in held if p.is_floating_point()]

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Append a row: to `rows`, to the file at once, and to the loggers."""
        head = {"step": self.t, "kind": kind, "data": self.data, "penalty": self.penalty}
        row = head | row | {"at": round(time.perf_counter() - self._began, 6)}
        self.rows.append(row)
        if self._file is not None:
            try:
                write_row(self._file, row)
            except OSError as error:
                self._close()
                warnings.warn(
                    f"Monitor: rows are no longer written: {error.strerror}; they go on in `rows`.", stacklevel=4
                )
        for to in tuple(self._sinks):
            try:
                to(row)
            except Exception as error:
                self._sinks.remove(to)
                warnings.warn(f"Monitor: {to} is no longer written to: {type(error).__name__}: {error}", stacklevel=4)

    # --- what it tells -----------------------------------------------------------------------------------------------

    @property
    def share(self) -> float:
        """The part of the wall clock that it took so far."""
        now = self._ended if self._ended and not self._hooks else time.perf_counter()
        return (self.spent - self._paused) / max(now - self._began - self._paused, 1e-9) if self._began else 0.0

    @property
    def made(self) -> dict[str, int]:
        """The probes that were made, by kind."""
        return dict(self._made)

    @property
    def skipped(self) -> dict[str, int]:
        """The steps without a probe, by kind."""
        return {kind: self.t - self._first - made for kind, made in self._made.items()}

    def facts(self) -> dict[str, Any]:
        """What there is to know of the run beside its rows, as plain data."""
        now = self._ended or time.perf_counter()
        return versions() | {
            "began": _iso(self._clock),
            "ended": _iso(self._clock + now - self._began),
            "seconds": now - self._began,
            "budget": self.budget,
            "allowance": self.allowance,
            "spent": self.spent - self._paused,
            "share": self.share,
            "steps": self.t,
            "made": self.made,
            "skipped": self.skipped,
            "optimizer": optimizer_facts(self.optimizer),
            "model": model_facts(self.model),
            "device": str(next((p.device for _, p in self.probes.params()), "cpu")),
        }

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found, in words: problems first."""
        return findings(self.facts(), [plain(row) for row in self.rows])

    def report(self, path: str | Path) -> Path:
        """Write the page of this run. Raises ValueError, in one sentence, where it cannot be written."""
        from nonsmooth.torch.run_report import write_page

        found = self.facts() | {"findings": [f.to_dict() for f in self.findings]}
        return write_page(found, [plain(row) for row in self.rows], Path(path))

    def __str__(self) -> str:
        made = ", ".join(f"{n} of kind {kind}" for kind, n in self._made.items())
        return (
            f"{self.t} steps, measured: {made}; {self.spent - self._paused:.2f} s, "
            f"{100 * self.share:.1f} % of the wall clock "
            f"(budget {100 * self.budget:g} %)"
        )


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(seconds))

"""Audit: watches a training loop that knows nothing of it, and says in words what non-differentiability does to it.

It finds the optimiser, the model and the loss by listening (`capture`), runs a `Monitor` on the loop's own batches, and
at the end tries its advice from where the run stands. The loop is left as it is, bit by bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from nonsmooth.torch.batches import CLOSE, Agreement, Batch, agreement
from nonsmooth.torch.capture import OTHERS, Capture, Heard
from nonsmooth.torch.census import record as census_of
from nonsmooth.torch.facts import plain, write_facts
from nonsmooth.torch.findings import Finding, Record, findings, text
from nonsmooth.torch.found_terms import FoundTerms
from nonsmooth.torch.interception import Interception
from nonsmooth.torch.monitor import Monitor
from nonsmooth.torch.probes import checksums, quietly
from nonsmooth.torch.program import Program
from nonsmooth.torch.selection import eagerly
from nonsmooth.torch.trials import Trials
from nonsmooth.torch.turns import Turns
from nonsmooth.torch.undisturbed import undisturbed

__all__ = ["Audit"]

KEPT = 4
"""The batches that what-ifs at the end take in turn."""
ALLOWANCE = 2.0
"""The seconds of probes that a short run may take beside its budget."""
LOOKS = 64
"""After so many steps it looks for edits of the parameters between steps only where there is a probe."""
NEXT = 1.15
"""How far apart, by this factor, the steps are whose batches are kept, if no probe asks for more."""


class Audit:
    """Watches the training that goes on within it; afterwards `findings` say what it met, and `report` writes a page.

    Nothing has to be named: the optimiser is the first that steps (`which`: the number of another), the model the
    module that is called from outside of all others, the loss what `backward` is called on. What could not be found is
    in `missing`, with the line to add. budget: the share of wall clock that probes may take meanwhile. folder: for
    rows.jsonl, run.json and report.html. trials: the steps of each what-if that is tried at the end on the last
    batches, from a copy of the run as it stands then; 0 for none.

    Raises ValueError, in one sentence, for a budget, a number of an optimiser or a folder that cannot be.

    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Audit(budget=1.0, trials=0) as audit:
    ...     for _ in range(3):
    ...         optimizer.zero_grad()
    ...         model(torch.ones(8, 2)).square().mean().backward()
    ...         optimizer.step()
    >>> audit.facts["steps"], audit.facts["model"]["name"], audit.missing
    (3, 'Sequential', [])
    """

    def __init__(
        self,
        *,
        budget: float = 0.05,
        folder: str | Path | None = None,
        which: int = 1,
        trials: int = 50,
        loggers: Sequence[Any] | None = None,
        command: Sequence[str] = (),
    ) -> None:
        if not (isinstance(budget, (int, float)) and not isinstance(budget, bool) and 0 < budget <= 1):
            raise ValueError(f"audit: budget is a share of the wall clock, above 0 and up to 1, not {budget!r}.")
        if isinstance(which, bool) or not (isinstance(which, int) and which >= 1):
            raise ValueError(f"audit: which is the number of an optimiser, from 1, not {which!r}.")
        if isinstance(trials, bool) or not (isinstance(trials, int) and (trials == 0 or trials >= 16)):
            raise ValueError(f"audit: trials is the number of steps of a what-if, 16 or more, or 0, not {trials!r}.")
        self.budget, self.which, self.trials, self.loggers = float(budget), which, trials, loggers
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"audit: the folder {folder} cannot be written ({error.strerror}).") from None
        self.command = list(command)
        self.monitor: Monitor | None = None
        self.missing: list[dict[str, str]] = []
        self.facts: dict[str, Any] = {}
        self.kept: deque[Batch] = deque(maxlen=KEPT)
        self.capture = Capture(self._guarded(self._before), self._guarded(self._after), spent=self._spent)
        self._given_up = False
        self._counted_so_far = 0.0
        self.interrupted, self._edited = False, False
        self._left: dict[int, int] = {}  # versions of the parameters after the last step
        self._same = 0  # batches in a row that were one and the same
        self._overwritten = False  # whether the script writes its batches into tensors that it uses again
        self.turns = Turns()
        self._why = ""
        self.agreement: Agreement | None = None
        self._x: list[torch.Tensor] | None = None
        self._counts = False
        self._scaled = False
        self._terms = FoundTerms()
        self._census: Any = None
        self._checks = 0
        self._next = 8
        self._due, self._others = False, 0  # whether the next step is to be heard; steps of others since the last
        self._rows: list[dict[str, Any]] = []

    # --- while it goes on -------------------------------------------------------------------------------------------

    def __enter__(self) -> Audit:
        self.capture.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, *_: Any) -> None:
        try:
            self.end(error)
        except Exception as wrong:  # such as a full disk: what was found stands in `findings`, and the script goes on
            said = str(wrong) if isinstance(wrong, ValueError) else f"its end failed: {type(wrong).__name__}: {wrong}"
            with contextlib.suppress(Warning):  # where warnings are errors
                warnings.warn(f"Audit: {said}".partition("\n")[0], stacklevel=2)

    def end(self, error: BaseException | str | None = None) -> None:
        """Listen no longer, and `finish`. error: what ended the run, None where it came to its end."""
        self.capture.__exit__()
        self.interrupted = isinstance(error, KeyboardInterrupt)
        crashed = error if isinstance(error, str) else None
        if isinstance(error, BaseException) and not isinstance(error, (SystemExit, KeyboardInterrupt)):
            crashed = f"{type(error).__name__}: {error}".partition("\n")[0]
        self.finish(crashed)

    def _guarded(self, call: Callable[..., None]) -> Callable[..., None]:
        """The run goes on, whatever the audit meets: it is given up then, and says so."""

        def guarded(*args: Any) -> None:
            if self._given_up:
                return
            try:
                call(*args)
            except Exception as error:
                self._given_up = True
                self._lacks("the rest of the run", f"{type(error).__name__}: {error}".partition("\n")[0], "")

        return guarded

    def _spent(self, seconds: float) -> None:
        """What listening, probes included, took since the step before: what no probe has counted is added."""
        if self.monitor is not None:
            own = self.monitor.spent - self.monitor.slowed
            self.monitor.spent += max(0.0, seconds - (own - self._counted_so_far))
            self._counted_so_far = self.monitor.spent - self.monitor.slowed

    def _before(self, optimizer: Optimizer) -> None:
        if self.turns.number(optimizer) != self.which:
            return
        if self.monitor is None:
            self.monitor = Monitor(
                torch.zeros(0),
                optimizer,
                _unheard(""),
                budget=self.budget,
                folder=self.folder,
                data="the script's own batch",
                loggers=self.loggers,
                allowance=ALLOWANCE,
            )
            self.monitor.begin()
        self.monitor.before()
        checking = self._checks < 2 or self.agreement is None
        held = [p for _, p in self.monitor.probes.params()] if self._left or checking else ()
        self._edited |= any(self._left.get(id(p), p._version) != p._version for p in held)
        if self.monitor.wants is not None and not self._edited:
            self._edited = self._written_unseen(self.monitor)
        self._x = [p.detach().clone() for p in held] if checking else None

    def _after(self, optimizer: Optimizer, heard: Heard) -> None:
        number = self.turns.number(optimizer)
        monitor = self.monitor
        if monitor is None:
            if len(self.turns) < self.which:
                self.capture.listen()
            return
        if missed := self.capture.wake():
            monitor.skip(-missed)
        if number != self.which:
            self.turns.stepped(optimizer, monitor.t)
            self._others += 1
            if self._due and self._others <= OTHERS:
                self.capture.listen()
            return
        if self._others > OTHERS:
            monitor.wants = None  # nothing was heard before this step
        self._others = 0
        self._scaled |= heard.scaled
        if heard.programs or heard.why or heard.tape is not None:
            self._heard(optimizer, heard)
        closure = self.kept[-1] if self.kept and self.kept[-1].step == monitor.t + 1 else None
        if monitor.wants is not None and closure is None:
            late = (
                "it was computed before any module was called"
                if heard.losses
                else "no backward was heard before the step"
            )
            why = heard.why or self._why or late
            if monitor.t == 0:
                monitor.wants = None  # a penalty may be computed before the model's first call; the next step is whole
            monitor.closure = _unheard(f"the loss could not be followed: {why}")
        if heard.within > 1:
            heard.losses = heard.losses[len(heard.losses) - heard.within :][:1]  # where the step began
        count = self.agreement.count if self.agreement is not None else 1
        words = "" if count == 1 else f", {count} backward calls"
        monitor.after(
            closure,
            f"the script's full batch{words}"
            if self._same > 1
            else f"the script's own batch at step {monitor.t + 1}{words}",
            sum(float(loss.sum()) for loss in heard.losses[-count:]) if heard.losses else None,
            self.capture.listened,
            heard.tape is not None,
        )
        look = monitor.wants is not None or monitor.t < LOOKS
        self._left = {id(p): p._version for _, p in monitor.probes.params()} if look else {}
        self._due = monitor.wants is not None or monitor.t >= self._next
        if self._due:
            self._next = max(monitor.t + 1, int(NEXT * monitor.t))
            self.capture.listen()
        elif steps := min(monitor.idle, self._next - monitor.t - 1):
            monitor.skip(steps)
            self.capture.sleep(optimizer, steps)
            self._left = {}  # the optimiser writes meanwhile, unheard

    def _written_unseen(self, monitor: Monitor) -> bool:
        """Whether the weights are others than when they were traced after the last step: `.data` has no versions."""
        traced = next((row for row in reversed(monitor.rows) if row["kind"] == "trace"), None)
        params = monitor.probes.params()
        if traced is None or traced["step"] != monitor.t or self._left.keys() != {id(p) for _, p in params}:
            return False
        began = time.perf_counter()
        found = checksums(params)
        monitor.spend("trace", began)
        return found != traced["weights"]

    def _heard(self, optimizer: Optimizer, heard: Heard) -> None:
        """Take the batch of this step, after a look at whether it is what the optimiser saw."""
        monitor = self.monitor
        assert monitor is not None
        began = time.perf_counter()
        if not monitor.probes.names:
            self._name(monitor)
        named = dict(monitor.probes.params())
        if heard.tape is not None and heard.tape.detached:
            self._terms.detached(heard.tape.detached, named)
        if heard.within > 1:
            self._why = "the optimiser asks for it several times within a step, as LBFGS does"
            return
        if not heard.programs or heard.why:
            self._why = heard.why or self._why
            return
        try:
            held = {id(p) for p in named.values()}
            with quietly():
                heard.programs = [program.of(held) for program in heard.programs]
        except Exception as error:  # what another model met when it was called again
            self._why = f"{type(error).__name__}: {error}"
            return
        count = self.agreement.count if self.agreement is not None else len(heard.programs)
        batch = Batch(heard.programs[-count:], monitor.t + 1)
        if self._x is not None and (self._checks < 2 or self.agreement is None):
            self._checks += 1
            with quietly(), torch.enable_grad():
                try:
                    batch = self._checked(optimizer, heard, named, batch.step)
                except Exception as error:
                    self._why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                    return
            self._x = None
        if not self._counts:
            self._counts = True
            with quietly():
                self._census = self._counted(batch)
        last = self.kept[-1].identity if self.kept else None
        self._same = self._same + 1 if last and last == batch.identity else 0
        self._overwritten |= bool(self.kept) and self.kept[-1].stale
        self.kept.append(batch.copied() if self._overwritten else batch)
        monitor.spend("step", began)

    def _name(self, monitor: Monitor) -> None:
        """The model: of the modules called from outside, the one that holds most of the optimiser's parameters."""
        held = {id(p) for _, p in monitor.probes.params()}
        models = [m for ref in self.capture.models.values() if (m := ref()) is not None]
        share = lambda m: sum(p.numel() for p in m.parameters() if id(p) in held)  # noqa: E731
        models.sort(key=share, reverse=True)
        if models and share(models[0]):
            monitor.model = models[0]
            names = monitor.probes.names
            for i, m in enumerate(models):
                head = f"{type(m).__name__}-{i + 1}." if i else ""
                for name, p in m.named_parameters():
                    name = name.replace("_orig_mod.", "")
                    names.setdefault(id(p), head + name if name in names.values() else name)

    def _checked(self, optimizer: Optimizer, heard: Heard, named: dict[str, torch.Tensor], step: int) -> Batch:
        """The batch that the optimiser saw, and what else is in its gradient; raises as `agreement` does."""
        monitor, before = self.monitor, self._x
        assert monitor is not None and before is not None
        seen = [None if p.grad is None else p.grad.detach() for p in named.values()]
        met = self.agreement = agreement(heard.programs, named, before, seen, masks=not self.capture.compiled)
        batch = Batch(heard.programs[-met.count :], step)
        self._terms.look(batch, optimizer, named, met.terms)
        monitor.penalty = self._terms.words
        return batch

    def _counted(self, batch: Batch) -> Any:
        assert self.monitor is not None
        watch = Interception()
        watch.boundary = Program.run.__code__
        model = self.monitor.model
        try:
            if isinstance(model, torch.nn.Module):
                watch.began(model)
            with undisturbed(), torch.enable_grad(), eagerly(), watch:
                out = batch()
            watch.ended(out)
            return census_of(watch)
        except Exception as error:
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
            self._lacks("the census", why, shlex.join(["nonsmooth", "census", *self.command[2:3]]))
            return None

    # --- at the end -------------------------------------------------------------------------------------------------

    def finish(self, crashed: str | None = None, exit_code: int | None = None) -> None:
        """Try the advice, and write what was found: called when the audit is left."""
        monitor = self.monitor
        if monitor is not None:
            monitor.skip(-self.capture.wake())  # the steps that were counted and did not come
            monitor.end()
        self._tell_missing()
        facts: dict[str, Any] = {} if monitor is None else monitor.facts()
        facts |= {
            "command": self.command or None,
            "crashed": None if self.interrupted else crashed,
            "interrupted": self.interrupted,
            "optimizers": 1 + (0 if monitor is None else self.turns.beside(monitor.optimizer, monitor.t)),
            "edited": self._edited,
            "clip": self.agreement.clip if self.agreement is not None else None,
            "exit_code": exit_code,
            "missing": self.missing,
            "loss": self._words(),
            "accumulation": self.agreement.count if self.agreement is not None else None,
            "scaled": self._scaled,
            "clipped": self.agreement.clipped if self.agreement is not None else None,
            "compiled": self.capture.compiled,
        }
        if self._census is not None:
            facts["census"] = dataclasses.asdict(self._census)
        if monitor is not None and self.kept:
            with quietly():
                self._try(monitor, facts)
        self.facts = plain(facts)
        self._rows = [] if monitor is None else [plain(row) for row in monitor.rows]
        self.facts["findings"] = [f.to_dict() for f in self.findings]
        if self.folder is not None:
            write_facts(self.folder, self.facts)
            self.report(self.folder / "report.html")

    def _try(self, monitor: Monitor, facts: dict[str, Any]) -> None:
        own, named = max(1e-9, facts["seconds"] - facts["spent"]), dict(monitor.probes.params())
        if not named:
            return self._lacks(
                "trials from the end", "by then the script had frozen all that this optimiser trained", ""
            )
        replaced = self.turns.replaced(monitor.optimizer, monitor.t)
        if replaced:
            self._lacks("trials from the end", "another optimiser has trained the same weights on since then", "")
        trials = Trials(
            monitor.optimizer,
            named,
            [] if replaced else list(self.kept),
            self.trials,
            own / max(1, monitor.t),
            facts["seconds"],
            monitor.model if isinstance(monitor.model, torch.nn.Module) else None,
            monitor.chatter,
            steps_done=monitor.t,
            chatter_end=monitor.t
            if monitor.chatter_open
            else max((int(row["step"]) for row in monitor.rows if row["kind"] == "chatter"), default=0),
            kinks="census" not in facts or bool(Record(facts, []).kinks),
        )
        self._terms.look_again(self.kept[-1], monitor.optimizer, named)
        terms = self._terms.of(named)
        facts["l1"] = trials.penalty(terms)
        if changed := self._terms.changed(named):
            facts["l1"] = (facts["l1"] or {"terms": []}) | {"changed": changed}
        facts["what_if"] = trials.changes(terms)
        self.missing += trials.lacking

    def _words(self) -> str | None:
        if not self.kept or self.agreement is None:
            return None
        gap, clip, unknown = self.agreement.gap, self.agreement.clip, self.agreement.unknown
        again = "computed again to the bit" if gap == 0 else f"computed again to {gap:.0e} of itself"
        if gap > CLOSE:
            again += " (run eagerly, the compiled model draws other random masks)"
        also = f"; .grad is {clip:.3g} times its gradient" if clip is not None and abs(clip - 1) > CLOSE else ""
        if unknown:
            also += f"; what else is in .grad of {', '.join(unknown[:3])} was not recognised"
        return f"what backward was called on, {again}{also}"

    def _tell_missing(self) -> None:
        monitor = self.monitor
        line = "with nonsmooth.torch.Monitor(model, optimizer, closure=lambda: loss_fn(model(x), y)): train()"
        if monitor is None:
            seen = len(self.turns)
            why = "no torch optimiser made a step" if not seen else f"only {seen} made a step"
            if self.capture.elsewhere:
                why += " in the main thread, the only one that is watched"
            elif self.capture.compiled:
                why += " that is not compiled into one with the loss, which is out of sight"
            self._lacks("the optimiser", why, "optimizer.step()")
            return
        if not self.kept:
            self._lacks("the loss", self._why or "no backward was heard", line)
        if not isinstance(monitor.model, torch.nn.Module):
            why = "no module whose parameters the optimiser holds was called; layers have numbers for names"
            self._lacks("the model", why, line)
        others = [i + 1 for i in range(len(self.turns)) if i + 1 != self.which]
        if others:
            why = f"one is watched at a time, and this was number {self.which} of {len(self.turns)}"
            if self.turns.replaced(monitor.optimizer, monitor.t):
                why += f", replaced by another after its {monitor.t} steps"
            self._lacks(
                f"{len(others)} more optimiser{'s' if len(others) > 1 else ''}",
                why,
                shlex.join(["nonsmooth", "audit", "--optimizer", str(others[0]), *self.command[2:]])
                if self.command
                else f"with nonsmooth.torch.Audit(which={others[0]}): train()",
            )

    def _lacks(self, what: str, why: str, line: str) -> None:
        self.missing.append({"what": what, "why": why, "line": line})

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found, in words: problems first."""
        return findings(self.facts, self._rows)

    @property
    def told(self) -> str:
        """The findings for a terminal, and where the page is, if it was written."""
        words = text(self.findings)
        return words if self.folder is None else f"{words}\n\nOpen {self.folder / 'report.html'}"

    def report(self, path: str | Path) -> Path:
        """Write the page. Raises ValueError, in one sentence, where it cannot be written."""
        from nonsmooth.torch.run_report import write_page

        return write_page(self.facts, self._rows, Path(path))


def _unheard(why: str) -> Callable[[], torch.Tensor]:
    def closure() -> torch.Tensor:
        raise ValueError(why)

    return closure

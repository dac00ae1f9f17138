"""What is tried when a run has ended: its L1 penalty audited, advice taken for some steps, all from where it stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nonsmooth.penalties import L1
from nonsmooth.torch.batches import Batch
from nonsmooth.torch.l1_audit import Chatter, PenaltyTerm, l1_audit, mending_lines
from nonsmooth.torch.proximal import Proximal
from nonsmooth.torch.what_if import what_if

__all__ = ["Trials"]

PURSE = 20.0
"""The seconds that trials at the end may take, or a tenth of the run where that is more."""
CHANGES = ("as-it-is", "half-lr", "largest-stable-lr", "smooth")
SEARCH = 14
"""About how many runs the changes come to, with the search for the largest stable learning rate in them."""
FEWEST = 16
"""The steps below which a trial says nothing."""


@dataclass
class Trials:
    """Trials of `steps` steps each on the last batches of a run, fewer where they would take too long.

    named: the parameters; model: what they are of, or None; step_seconds: what a step of the run took; seconds: the
    whole run; chatter: the run's own last window of signs, which ended at step `chatter_end` of `steps_done`; one from
    before the last tenth of the run is not used, and a continuation is watched instead. kinks: whether there are any
    to be smoothed. `lacking` says what could not be tried, and why.

    >>> from nonsmooth.torch.program import Program
    >>> w = torch.nn.Parameter(torch.tensor([2.0]))
    >>> trials = Trials(torch.optim.SGD([w], lr=0.1), {"w": w}, [Batch([Program((), w)], 3)], 16, 1e-3, 1.0)
    >>> [row["name"] for row in trials.changes(())][:2]
    ['as-it-is', 'half-lr']
    """

    optimizer: Any
    named: Mapping[str, torch.Tensor]
    batches: Sequence[Batch]
    steps: int
    step_seconds: float
    seconds: float
    model: torch.nn.Module | None = None
    chatter: Chatter | None = None
    steps_done: int = 0
    chatter_end: int = 0
    kinks: bool = True
    lacking: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        fresh = [batch for batch in self.batches if not batch.stale]
        if self.batches and not fresh:
            why = "the script has since written other data into the tensors of its last batches"
            self.lacking.append({"what": "trials from the end", "why": why, "line": "x = x.clone()  # in each step"})
        self.batches = fresh
        if not all(bool(p.isfinite().all()) for p in self.named.values()):
            self.batches = []

    @property
    def data(self) -> str:
        """The batches in words."""
        steps = [str(batch.step) for batch in self.batches]
        return (
            f"the batches of steps {', '.join(steps)}, taken in turn"
            if len(steps) > 1
            else f"the batch of step {''.join(steps)}"
        )

    def penalty(self, terms: Sequence[PenaltyTerm]) -> dict[str, Any] | None:
        """The audit of the L1 penalty, as plain data: of one that cannot be audited its terms; None without terms."""
        if not terms:
            return None
        inside = self.model is not None and set(self.named) <= {name for name, _ in self.model.named_parameters()}
        model = self.model if inside else None
        if not self.batches:
            return self._unaudited(terms, model)
        turns = any(term.bounces for term in terms)
        steps = self._affordable(12 if turns else 1)
        try:
            return l1_audit(
                self.optimizer,
                terms,
                list(self.batches),
                dict(self.named) if model is None else model,
                chatter=self._window(terms),
                steps=max(FEWEST, steps),
                turn=turns and steps >= FEWEST,
                data=self.data,
            ).to_dict()
        except Exception as error:
            self._lacks("the audit of the L1 penalty", error)
            return self._unaudited(terms, model)

    def _unaudited(self, terms: Sequence[PenaltyTerm], model: torch.nn.Module | None) -> dict[str, Any]:
        lines = mending_lines(self.optimizer, terms, self.named, model)
        return {"terms": [dataclasses.asdict(term) for term in terms], "lines": lines, "audited": False}

    def changes(self, terms: Sequence[PenaltyTerm]) -> list[dict[str, Any]]:
        """The what-ifs, as plain data; with a penalty that acts by its gradient alone, `Proximal` in its place too."""
        if not self.steps or not self.batches:
            return []
        changes, steps = [name for name in CHANGES if self.kinks or name != "smooth"], self._affordable(SEARCH)
        if steps < FEWEST:
            changes.remove("largest-stable-lr")
            steps = self._affordable(len(changes) + 1)
        if steps < FEWEST:
            why = f"a step takes {self.step_seconds:.2g} s, and trials may take {self._purse:.0f} s"
            line = f"what_if(optimizer, closures, steps={FEWEST})  # from nonsmooth.torch; after the last step"
            self.lacking.append({"what": "the trials", "why": why, "line": line})
            return []
        whole, without, pairs = _penalised(self.batches, terms, self.named)
        more: dict[str, Any] = {"penalty": pairs, "smooth_closures": without}
        rows: list[Any] = []
        for change in [*changes, *(["proximal"] if pairs and not self._has_prox(terms) else [])]:
            try:
                named = more if change == "proximal" else {}
                rows += what_if(self.optimizer, whole, steps=steps, changes=(change,), **named)
            except Exception as error:
                self._lacks(f"the trial {change!r}", error)
        return [_row(row) | {"note": "; ".join(filter(None, (row.note, f"on {self.data}")))} for row in rows]

    @property
    def _purse(self) -> float:
        return max(PURSE, 0.1 * self.seconds)

    def _affordable(self, runs: int) -> int:
        """The steps of each of so many runs."""
        return min(self.steps, int(self._purse / (runs * max(self.step_seconds, 1e-9))))

    def _window(self, terms: Sequence[PenaltyTerm]) -> Chatter | None:
        """The run's own last window of signs, if it is whole, of the penalised weights and of the run's last tenth."""
        if self.chatter is None or self.chatter.steps < 8:
            return None
        if not self.chatter_end or 10 * (self.steps_done - self.chatter_end) > self.steps_done:
            return None
        followed = {id(p) for p in self.chatter.params}
        return self.chatter if all(id(self.named[t.name]) in followed for t in terms if t.acts) else None

    def _has_prox(self, terms: Sequence[PenaltyTerm]) -> bool:
        """Whether the run takes proximal steps already."""
        optimizer, seen = self.optimizer, 0
        while optimizer is not None and seen < 9:
            if isinstance(optimizer, Proximal):
                return True
            optimizer, seen = getattr(optimizer, "optimizer", getattr(optimizer, "_optimizer", None)), seen + 1
        return any(term.through == "proximal" and term.acts for term in terms)

    def _lacks(self, what: str, error: Exception) -> None:
        said = str(error) if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: {error}"
        self.lacking.append({"what": what, "why": said.partition("\n")[0], "line": ""})


def _row(found: Any) -> dict[str, Any]:
    row = dataclasses.asdict(found)
    row.pop("losses", None)
    return row


def _penalised(
    batches: Sequence[Batch], terms: Sequence[PenaltyTerm], named: Mapping[str, torch.Tensor]
) -> tuple[list[Callable[[], torch.Tensor]], list[Callable[[], torch.Tensor]], list[Any]]:
    """The losses with the penalty, whichever way the script has it, and without; and the penalty for a `Proximal`."""

    def plus(batch: Batch, lams: list[tuple[torch.Tensor, float]]) -> Callable[[], torch.Tensor]:
        def closure() -> torch.Tensor:
            loss = batch()
            for p, lam in lams:
                loss = loss + lam * p.abs().sum()
            return loss

        return closure if lams else batch

    acts = [(named[t.name], t.lam, t.through) for t in terms if t.bounces and t.name in named]
    whole = [plus(batch, [(p, lam) for p, lam, how in acts if how == "grad"]) for batch in batches]
    without = [plus(batch, [(p, -lam) for p, lam, how in acts if how == "autograd"]) for batch in batches]
    total: dict[int, tuple[torch.Tensor, float]] = {}
    for p, lam, _ in acts:
        total[id(p)] = (p, lam + total.get(id(p), (p, 0.0))[1])
    by_lam: dict[float, list[torch.Tensor]] = {}
    for p, lam in total.values():
        by_lam.setdefault(float(f"{lam:.6g}"), []).append(p)
    return whole, without, [(L1(lam), params) for lam, params in by_lam.items()]

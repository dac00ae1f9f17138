"""Monitor: measures some steps of a training run, as many as a stated share of the wall clock allows.

It hooks the optimiser's step and calls nothing of the user's but the closure. What it may have changed is put back bit
by bit: parameters, buffers, `.grad`, modes and random numbers.
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from nonsmooth.torch.curvature import Sharpness, sharpness
from nonsmooth.torch.proximal import Proximal
from nonsmooth.torch.stability import Stability, stability
from nonsmooth.torch.steps import OrbitCurvature, measure_step

__all__ = ["Monitor"]

PATIENCE = 3
"""A probe that fails so often in a row is not tried again."""


class Monitor:
    """Measures steps and stability of a run while it goes on, within a `budget`, the share of wall clock it may take.

    model, optimizer: those that train. closure: returns the loss of the same data whenever it is called, with its
    graph, and never calls backward. A probe of kind "step" is `measure_step` of the step just taken (κ, its smooth and
    kink part, kink share, flips; κ̄ over the measured steps), one of kind "stability" the (preconditioned) sharpness
    and its ratio to the optimiser's threshold, warm-started; for an optimiser without one λ₁ of the Hessian alone.
    They share the budget evenly: a probe is made where, by the cost of its last, all probes so far stay within it. The
    first of each kind has no last: they are made at the first two steps.

    folder: where each row is appended at once, to rows.jsonl. data: what the closure's data are, as each row says.
    Each row also says whether a penalty is in the loss: under a `Proximal` it is not; otherwise `penalty` says it.

    A probe that fails leaves a row with the reason, and the run goes on; after three in a row it is not tried again.
    `rows`, `spent` (seconds), `skipped` (steps not measured, by kind) and `str()` tell what was done. Raises TypeError
    or ValueError, in one sentence, for an argument that cannot be.

    >>> w = torch.nn.Parameter(torch.tensor([0.25]))
    >>> optimizer = torch.optim.SGD([w], lr=0.5)
    >>> with Monitor(w, optimizer, closure=lambda: w.abs().sum(), budget=1.0) as monitor:
    ...     w.grad = torch.ones(1)
    ...     optimizer.step()
    >>> row = monitor.rows[0]
    >>> row["kind"], row["curvature"], row["kink"], row["flipped"]
    ('step', 4.0, 4.0, 1)
    """

    def __init__(
        self,
        model: torch.nn.Module | torch.Tensor,
        optimizer: Optimizer,
        closure: Callable[[], torch.Tensor],
        *,
        budget: float = 0.05,
        folder: str | Path | None = None,
        data: str = "the closure's",
        penalty: str = "as in the closure",
        window: int = 100,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Monitor: optimizer must be a torch optimiser, not {type(optimizer).__name__}.")
        if not callable(closure):
            raise TypeError("Monitor: closure must be a function that returns the loss.")
        if not (isinstance(budget, (int, float)) and 0 < budget <= 1):
            raise ValueError(f"Monitor: budget is a share of the wall clock, above 0 and up to 1, not {budget!r}.")
        self.optimizer, self.closure, self.budget, self.data = optimizer, closure, float(budget), data
        self.penalty = "not in the loss: taken by Proximal" if isinstance(optimizer, Proximal) else penalty
        self.names = {id(p): n for n, p in model.named_parameters()} if isinstance(model, torch.nn.Module) else {}
        self.rows: list[dict[str, Any]] = []
        self.t, self.spent = 0, 0.0
        self.orbit = OrbitCurvature(window)
        self._began, self._ended = 0.0, 0.0
        self._cost = {"step": 0.0, "stability": 0.0}
        self._used = {"step": 0.0, "stability": 0.0}
        self._failed = {"step": 0, "stability": 0}
        self._made = {"step": 0, "stability": 0}
        self._start: Stability | None = None
        self._bare: Sharpness | None = None
        self._before: list[torch.Tensor] | None = None
        self._hooks: list[Any] = []
        self._file: Any = None
        if folder is not None:
            path = Path(folder)
            try:
                path.mkdir(parents=True, exist_ok=True)
                self._file = (path / "rows.jsonl").open("a", encoding="utf-8")
            except OSError as error:
                raise ValueError(f"Monitor: the folder {path} cannot be written ({error.strerror}).") from None

    # --- where it listens --------------------------------------------------------------------------------------------

    def __enter__(self) -> Monitor:
        self._began = time.perf_counter()
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._pre),
            self.optimizer.register_step_post_hook(self._post),
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended = time.perf_counter()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before = [], None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _params(self) -> list[tuple[str, torch.Tensor]]:
        held = [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]
        return [(self.names.get(id(p), str(i)), p) for i, p in enumerate(held)]

    def _pre(self, *_: Any) -> None:
        began = time.perf_counter()
        if self._due() == "step":
            self._before = [p.detach().clone() for _, p in self._params()]
        self._spend("step", began)

    def _post(self, *_: Any) -> None:
        began = time.perf_counter()
        self.t += 1
        kind = "step" if self._before is not None else self._due()
        if kind == "step" and self._before is None:
            return  # its turn came while the step was taken
        if kind is not None:
            self._probe(kind)
            self._before = None
            self._spend(kind, began)
            self._cost[kind] = time.perf_counter() - began

    def _spend(self, kind: str, began: float) -> None:
        spent = time.perf_counter() - began
        self.spent += spent
        self._used[kind] += spent

    def _due(self) -> str | None:
        """The kind of probe that has had less of the budget, where there is room for it now."""
        kinds = [kind for kind in self._used if self._failed[kind] < PATIENCE]
        if not kinds:
            return None
        kind = min(kinds, key=lambda k: (bool(self._made[k]), self._used[k]))
        cost, elapsed = self._cost[kind], time.perf_counter() - self._began
        affordable = self.spent + cost <= self.budget * (elapsed + cost)
        return kind if affordable or not self._made[kind] else None

    # --- what it measures --------------------------------------------------------------------------------------------

    def _probe(self, kind: str) -> None:
        self._made[kind] += 1
        row: dict[str, Any] = {"step": self.t, "kind": kind, "data": self.data, "penalty": self.penalty}
        try:
            with torch.enable_grad():
                row |= self._step() if kind == "step" else self._stability()
            self._failed[kind] = 0
        except Exception as error:  # the run goes on, whatever a probe meets
            row["error"] = f"{type(error).__name__}: {error}".partition("\n")[0]
            self._failed[kind] += 1
            if self._failed[kind] == PATIENCE:
                warnings.warn(f"Monitor: no more probes of kind {kind!r}: {row['error']}", stacklevel=4)
        row["at"] = round(time.perf_counter() - self._began, 6)
        self.rows.append(row)
        if self._file is not None:
            self._file.write(json.dumps({k: _plain(v) for k, v in row.items()}) + "\n")
            self._file.flush()

    def _step(self) -> dict[str, Any]:
        params, x = self._params(), self._before
        assert x is not None
        after = [p.detach().clone() for _, p in params]
        try:
            with torch.no_grad():
                for (_, p), old in zip(params, x, strict=True):
                    p.copy_(old)
            step = measure_step(self.closure, params, after)
        finally:
            with torch.no_grad():
                for (_, p), new in zip(params, after, strict=True):
                    p.copy_(new)
        self.orbit.update(step)
        split = step.frozen
        return {
            "loss": step.loss_before,
            "loss_after": step.loss_after,
            "predicted": step.predicted,
            "curvature": step.curvature,
            "smooth": split.smooth,
            "kink": split.kink,
            "kink_share": split.share,
            "kink_share_by_layer": dict(split.by_layer),
            "orbit_curvature": self.orbit.value,
            "lipschitz": step.lipschitz,
            "length": step.length,
            "flipped": step.flipped,
            "flips_by_layer": step.flips_by_layer,
            "ties": step.ties,
            "undefined": list(step.undefined),
            "unseen": list(step.unseen),
        }

    def _stability(self) -> dict[str, Any]:
        if self._bare is None:
            try:
                found = self._start = stability(self.optimizer, self.closure, start=self._start, tol=0.02)
            except TypeError:
                pass  # an optimiser without a threshold
            else:
                more = {"threshold": found.threshold, "ratio": found.ratio}
                return {"sharpness": found.sharpness, "residual": found.residual} | more | _cost_of(found.estimate)
        bare = self._bare = sharpness(self.closure, [p for _, p in self._params()], start=self._bare, tol=0.02)
        return {"sharpness": float(bare.value[0]), "residual": float(bare.residual[0])} | _cost_of(bare)

    # --- what it tells -----------------------------------------------------------------------------------------------

    @property
    def share(self) -> float:
        """The part of the wall clock that it took so far."""
        now = self._ended if self._ended and not self._hooks else time.perf_counter()
        return self.spent / max(now - self._began, 1e-9) if self._began else 0.0

    @property
    def skipped(self) -> dict[str, int]:
        """The steps without a probe, by kind."""
        return {kind: self.t - made for kind, made in self._made.items()}

    def __str__(self) -> str:
        made = ", ".join(f"{n} of kind {kind}" for kind, n in self._made.items())
        return (
            f"{self.t} steps, measured: {made}; {self.spent:.2f} s, {100 * self.share:.1f} % of the wall clock "
            f"(budget {100 * self.budget:g} %)"
        )


def _cost_of(found: Sharpness) -> dict[str, Any]:
    return {"products": found.products, "converged": found.converged}


def _plain(value: Any) -> Any:
    """As JSON has it: no nan, no infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value

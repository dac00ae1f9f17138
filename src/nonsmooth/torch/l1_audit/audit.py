"""The audit of an L1 penalty: what it does to the weights of a run, against what the laws say that it should do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nonsmooth.torch.effective import unwrapped
from nonsmooth.torch.l1_audit.chatter import Chatter, reach_of
from nonsmooth.torch.l1_audit.laws import ROOTS, Bounce, Closure, Penalised, bounce_of, penalised_weights
from nonsmooth.torch.l1_audit.lints import Lint, lints
from nonsmooth.torch.l1_audit.mending import mending_lines
from nonsmooth.torch.l1_audit.terms import PenaltyTerm
from nonsmooth.torch.l1_audit.turning import MULTIPLES, Turning, continued, turning_lam

__all__ = ["L1Audit", "Layer", "Span", "l1_audit"]


@dataclass(frozen=True)
class Span:
    """A prediction: the least, the mean and the most; all alike where the law gives one number.

    >>> print(Span(1.0, 1.0, 1.0), Span(0.5, 1.0, 2.0), Span(1.0, 1.0, 1.0).has(1.01))
    1 1 (0.5 to 2, by where the weights came from) True
    """

    low: float
    mean: float
    high: float

    def has(self, value: float, within: float = 0.1) -> bool:
        """Whether a measurement is inside, or outside by no more than a part `within`."""
        return self.low * (1 - within) <= value <= self.high * (1 + within)

    def __str__(self) -> str:
        alone = self.low == self.high
        return f"{self.mean:.3g}" + (
            "" if alone else f" ({self.low:.3g} to {self.high:.3g}, by where the weights came from)"
        )


@dataclass(frozen=True)
class Layer:
    """One parameter: weights, ‖w‖₁, λ, exact zeros, zeros by KKT (and how many of those are exact), and its chatter.

    followed: the weights whose signs were watched; chattering: those of them that chatter; by_penalty: those of them on
    which the data's gradient is at most λ in root mean square; amplitude: the mean |w| of these; law: what the law says
    of the same weights, None where it says nothing.

    >>> Layer("w", 4, 1.0, 0.5, "autograd", 0, 2, 0, 4, 2, 2, 0.1, 0.1).kkt_zeros
    2
    """

    name: str
    weights: int
    norm: float
    lam: float
    through: str
    zeros: int
    kkt_zeros: int
    kkt_exact: int
    followed: int
    chattering: int
    by_penalty: int
    amplitude: float | None
    law: float | None


@dataclass(frozen=True)
class L1Audit:
    """What was found; as text, for people; `to_dict`, for JSON.

    weights: how many are penalised; norm: their ‖w‖₁, a mean over an even window of steps; zeros: exact zeros;
    kkt_zeros: weights with |∂f| < λ that are within a bounce of 0, so that a solver would return 0, and kkt_exact,
    those of them that are exactly 0. chattering: weights that chatter, of those followed; by_penalty: those of them
    that the penalty moves, the data's gradient being at most λ in root mean square. On the others the noise of the
    batches outweighs the penalty, and the law is not asked. amplitude: mean |w| of those by_penalty; amplitude_law:
    what the law says of them; floor: what they hold of the norm by the law; floor_measured: what they do hold.
    largest_share: what the largest tenth of the weights holds of the norm. window: the steps that chatter was watched
    over; watched: whose steps they are, "run" or "continuation" (of a copy). turning: None if not asked for.

    >>> w = torch.nn.Parameter(torch.full((2,), 0.05, dtype=torch.float64))
    >>> audit = l1_audit(torch.optim.SGD([w], lr=0.1), [PenaltyTerm("w", 1.0, "autograd")], lambda: w.abs().sum(),
    ...                  {"w": w}, steps=16, turn=False)
    >>> audit.chattering, round(audit.amplitude, 12), audit.amplitude_law.mean, audit.kkt_zeros, audit.zeros
    (2, 0.05, 0.05, 2, 0)
    """

    optimizer: str
    lr: tuple[float, ...]
    data: str
    terms: tuple[PenaltyTerm, ...]
    weights: int
    norm: float
    zeros: int
    kkt_zeros: int
    kkt_exact: int
    largest_share: float
    window: int
    watched: str
    followed: int
    chattering: int
    by_penalty: int
    flickering: int
    amplitude: float
    amplitude_law: Span | None
    floor: Span | None
    floor_measured: float
    law: str
    layers: tuple[Layer, ...]
    turning: Turning | None
    lints: tuple[Lint, ...]
    lines: str

    @property
    def fine(self) -> bool:
        """Whether the penalty acts, makes no weight bounce, misses no zero for want of a prox, and no lint fires."""
        acting = [term for term in self.terms if term.acts]
        missed = any(term.bounces for term in acting) and self.kkt_zeros > self.kkt_exact
        return bool(acting) and not self.by_penalty and not missed and not self.lints

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: numbers that are not finite are the strings "nan", "inf" and "-inf"."""
        found = asdict(self) | {"fine": self.fine}
        if self.turning is not None:
            found["turning"] |= {
                "turn": self.turning.turn,
                "predicted": self.turning.predicted,
                "falls": self.turning.falls,
                "settled": self.turning.settled,
            }
        plain: dict[str, Any] = _plain(found)
        return plain

    def __str__(self) -> str:
        from nonsmooth.torch.l1_audit.words import words

        return words(self)


def l1_audit(
    optimizer: Any,
    terms: Iterable[PenaltyTerm],
    closure: Closure | Sequence[Closure],
    named: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]] | torch.nn.Module,
    *,
    chatter: Chatter | None = None,
    steps: int = 200,
    turn: bool = True,
    multiples: Sequence[float] = MULTIPLES,
    data: str = "",
) -> L1Audit:
    """What the penalty `terms` do to the weights of a run that stands at a step of `optimizer`.

    `closure` returns the loss as the script has it, a scalar with its graph, the penalty in it where a term is
    "autograd"; several closures (batches) give the mean and the spread of the data's gradient, and are taken in turn by
    continuations. `named` is the model, or its parameters by name. `chatter` has watched a window of the run's own
    steps, over the parameters under terms that act (others are ignored); without one, `steps` steps of a copy of the
    run are watched. `turn` measures the turn, `turning_lam`, with `steps` steps for each of the `multiples`. `data`
    names the closure's data for the reader. Nothing is left of it: all is put back bit by bit.

    Laws and their limits: `nonsmooth.torch.l1_audit.laws`. Where the optimiser has no effective step, as LBFGS, the
    laws are None. Raises ValueError or TypeError, in one sentence, for terms of parameters that are not there or not in
    the optimiser, for a closure that calls backward, and for a chatter of fewer than 8 steps.

    >>> w = torch.nn.Parameter(torch.tensor([2.0, 0.0], dtype=torch.float64))
    >>> loss = lambda: (0.5 * (w - torch.tensor([3.0, 0.5])) ** 2).sum()
    >>> from nonsmooth.penalties import L1
    >>> from nonsmooth.torch.proximal import Proximal
    >>> optimizer = Proximal(torch.optim.SGD([w], lr=0.1), L1(1.0))
    >>> audit = l1_audit(optimizer, [PenaltyTerm("w", 1.0, "proximal")], loss, {"w": w}, steps=16, turn=False)
    >>> audit.fine, audit.zeros, audit.kkt_zeros, audit.kkt_exact
    (True, 1, 1, 1)
    """
    terms, closures, parameters, model = _checked(optimizer, terms, closure, named)
    parts = penalised_weights(optimizer, terms, parameters, closures)
    watched, there = _watched(optimizer, terms, closures, parameters, parts, chatter, steps)
    row = watched.row() if watched else {}
    seen = [_seen(part, then, watched) for part, then in zip(parts, there, strict=True)]
    factor = bounce_of(optimizer)
    layers = tuple(_layer(part, one, factor.mean, terms) for part, one in zip(parts, seen, strict=True))
    known = bool(parts) and not any(part.bouncing and part.tau is None for part in parts)
    by_law = sum(one.scale * float(one.law.sum()) for one in seen)
    held = sum(one.scale * float(one.mean.sum()) for one in seen)
    count = sum(layer.by_penalty for layer in layers)
    each = sum(float(one.law.sum()) for one in seen) / count if count else math.nan
    whole = watched is not None and {id(p) for p in watched.params} == {id(part.p) for part in parts}
    norm = float(row["norm"]) if whole else sum(layer.norm for layer in layers)
    floor = _span(by_law, factor) if known else None
    turning = None
    if turn and parts:
        turning = turning_lam(optimizer, terms, closures, parameters, steps=steps, multiples=multiples, data=data)
    lines = mending_lines(optimizer, terms, parameters, model)
    inner = unwrapped(optimizer)
    return L1Audit(
        optimizer=type(inner).__name__,
        lr=tuple(float(group["lr"]) for group in inner.param_groups),
        data=data,
        terms=tuple(terms),
        weights=sum(layer.weights for layer in layers),
        norm=norm,
        zeros=sum(layer.zeros for layer in layers),
        kkt_zeros=sum(layer.kkt_zeros for layer in layers),
        kkt_exact=sum(layer.kkt_exact for layer in layers),
        largest_share=_largest_share(parts),
        window=int(row.get("window", 0)),
        watched="continuation" if chatter is None else "run",
        followed=sum(layer.followed for layer in layers),
        chattering=sum(layer.chattering for layer in layers),
        by_penalty=count,
        flickering=int(row.get("flickering", 0)),
        amplitude=sum(float(one.mean.sum()) for one in seen) / count if count else 0.0,
        amplitude_law=_span(each, factor) if known and count else None,
        floor=floor,
        floor_measured=held,
        law=_law_in_words(inner, parts, factor.high > factor.low),
        layers=layers,
        turning=turning,
        lints=lints(
            optimizer,
            terms,
            parts,
            parameters,
            model=model,
            floor=None if floor is None else floor.mean,
            norm=norm,
            turning=turning,
            lines=lines,
        ),
        lines=lines,
    )


def _checked(
    optimizer: Any, terms: Any, closure: Any, named: Any
) -> tuple[list[PenaltyTerm], list[Closure], dict[str, torch.Tensor], torch.nn.Module | None]:
    groups = getattr(unwrapped(optimizer), "param_groups", None)
    if groups is None:
        raise TypeError(f"l1_audit: optimizer must be a torch optimiser, not {type(optimizer).__name__}.")
    model = named if isinstance(named, torch.nn.Module) else None
    pairs = model.named_parameters() if model is not None else named.items() if isinstance(named, Mapping) else named
    parameters: dict[str, torch.Tensor] = dict(pairs)
    terms = list(terms)
    held = {id(p) for group in groups for p in group["params"]}
    for term in terms:
        if not isinstance(term, PenaltyTerm):
            raise TypeError(f"l1_audit: terms must be PenaltyTerms, not {type(term).__name__}.")
        if term.name not in parameters:
            raise ValueError(f"l1_audit: there is no parameter {term.name!r}; the names are the model's.")
        if term.acts and id(parameters[term.name]) not in held:
            raise ValueError(f"l1_audit: the optimiser does not hold {term.name!r}, so its penalty moves nothing.")
        if term.acts and not parameters[term.name].requires_grad:
            raise ValueError(f"l1_audit: {term.name!r} is frozen, so its penalty moves nothing; leave its term out.")
    closures = [closure] if callable(closure) else list(closure) if isinstance(closure, Sequence) else []
    if not closures or not all(callable(c) for c in closures):
        raise TypeError("l1_audit: closure must be a function that returns the loss, or a list of such functions.")
    return terms, closures, parameters, model


@dataclass(frozen=True, eq=False)
class _Seen:
    """One parameter's chatter: how many weights are followed and chatter; mean |w| and the law of those that the
    penalty moves; by what to scale sums up to the whole; mean |w| of all, None where it was not followed.
    """

    followed: int
    chattering: int
    mean: torch.Tensor
    law: torch.Tensor
    scale: float
    amplitude: torch.Tensor | None


def _seen(part: Penalised, then: Penalised, watched: Chatter | None) -> _Seen:
    at = [i for i, p in enumerate(watched.params) if p is part.p] if watched else []
    if not watched or not at:
        return _Seen(0, 0, torch.zeros(0), torch.zeros(0), 0.0, None)
    followed, chatters, mean = (values[at[0]] for values in (watched.followed, watched.chattering, watched.amplitude))
    ours = chatters & (then.square <= part.bouncing**2)
    n = int(followed.sum())
    return _Seen(n, int(chatters.sum()), mean[ours], then.law()[ours], part.p.numel() / n if n else 0.0, mean)


def _layer(part: Penalised, seen: _Seen, factor: float, terms: Sequence[PenaltyTerm]) -> Layer:
    zero, exact, count = part.zero(seen.amplitude), part.size == 0, seen.mean.numel()
    return Layer(
        name=part.name,
        weights=part.p.numel(),
        norm=float(part.size.sum()),
        lam=part.lam,
        through="+".join(dict.fromkeys(t.through for t in terms if t.name == part.name and t.acts)),
        zeros=int(exact.sum()),
        kkt_zeros=int(zero.sum()),
        kkt_exact=int((zero & exact).sum()),
        followed=seen.followed,
        chattering=seen.chattering,
        by_penalty=count,
        amplitude=float(seen.mean.mean()) if count else None,
        law=float(seen.law.mean()) * factor if count and bool(seen.law.isfinite().all()) else None,
    )


def _span(value: float, factor: Bounce) -> Span:
    return Span(value * factor.low, value * factor.mean, value * factor.high)


def _watched(
    optimizer: Any,
    terms: Sequence[PenaltyTerm],
    closures: Sequence[Closure],
    named: Mapping[str, torch.Tensor],
    parts: tuple[Penalised, ...],
    chatter: Chatter | None,
    steps: int,
) -> tuple[Chatter | None, tuple[Penalised, ...]]:
    """The chatter of the run itself, or of a continuation whose first half is not watched; and the gradients there."""
    if chatter is not None or not parts:
        return chatter, parts
    if isinstance(steps, bool) or not (isinstance(steps, int) and steps >= 16):
        raise ValueError(f"l1_audit: steps must be a whole number, 16 or more, not {steps!r}.")
    watched = Chatter([part.p for part in parts], reach=reach_of(optimizer))
    taken, there = 0, parts

    def watch() -> None:
        nonlocal taken, there
        taken += 1
        watched.update()
        if taken == steps // 2:
            watched.reset()
        if taken == steps:
            there = penalised_weights(optimizer, terms, named, closures)

    continued(optimizer, terms, closures, named, steps, watch=watch)
    return watched, there


def _largest_share(parts: Sequence[Penalised]) -> float:
    """What the largest tenth of the weights holds of the norm."""
    sizes = torch.cat([part.size.reshape(-1) for part in parts]) if parts else torch.zeros(0)
    total = float(sizes.sum())
    return float(sizes.topk(math.ceil(len(sizes) / 10)).values.sum()) / total if total else 0.0


def _law_in_words(inner: Any, parts: Sequence[Penalised], ranges: bool) -> str:
    if not any(part.bouncing for part in parts):
        return "a prox has zeros and no bounce"
    if any(part.tau is None for part in parts):
        return (
            f"{type(inner).__name__} has no effective step of its own for each weight, or has not stepped yet: no law"
        )
    words = "τλ(1 + r²)/2 a weight, r = |∂f|/λ, τ the optimiser's effective step"
    if isinstance(inner, ROOTS):
        name = type(inner).__name__
        words += f"; {name} divides by the root of a mean of g²: τ falls as 1/λ where λ outweighs the data"
    if isinstance(inner, torch.optim.Adagrad):
        words += "; Adagrad's τ shrinks, so this is no floor"
    return words + ("; under momentum times a factor that depends on the start: a range" if ranges else "")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value

"""Lints: the usual wrong spellings of an L1 penalty, each with its evidence and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nonsmooth.torch.effective import unwrapped
from nonsmooth.torch.l1_audit.laws import ADAPTIVE, Penalised
from nonsmooth.torch.l1_audit.terms import PenaltyTerm
from nonsmooth.torch.l1_audit.turning import Turning
from nonsmooth.torch.proximal import NORMS

__all__ = ["Lint", "lints"]

MOST = 0.9
"""A penalty moves nothing if it does not move so large a part of the weights that it is on."""
SMALL = 1e-3
"""A λ below this part of the data's median gradient moves nothing."""


@dataclass(frozen=True)
class Lint:
    """One thing that is wrong: an id, the sentence, the numbers it rests on, what to do, code to write ("" for none).

    >>> Lint("several", "w is penalised twice.", "λ = 1 and 2", "Keep one.", "").id
    'several'
    """

    id: str
    says: str
    evidence: str
    do: str
    lines: str


def lints(
    optimizer: Any,
    terms: Sequence[PenaltyTerm],
    parts: Sequence[Penalised],
    named: Mapping[str, torch.Tensor],
    *,
    model: torch.nn.Module | None = None,
    floor: float | None = None,
    norm: float | None = None,
    turning: Turning | None = None,
    lines: str = "",
) -> tuple[Lint, ...]:
    """All that apply, of: detached, biases-and-norms, several, weight-decay, moves-nothing, mean-not-sum,
    second-moment, lr-too-large and half-precision.

    parts: the parameters under terms that act, `penalised_weights`; floor: what the law says that chatter holds of the
    norm; turning: what was measured of it, if it was; lines: the mending lines. A bias is a parameter whose name says
    so, or one of fewer than two dimensions beside others of more. A penalty on the scales of normalisation layers alone
    is on purpose (network slimming, Liu et al. 2017), and is not linted.

    >>> term = PenaltyTerm("w", 0.1, "detached", "train.py:3")
    >>> w = torch.nn.Parameter(torch.ones(2, 2))
    >>> [lint.id for lint in lints(torch.optim.SGD([w], lr=0.1), [term], [], {"w": w})]
    ['detached']
    """
    found = [_detached(terms, lines), _biases(terms, named, model), _several(terms, lines)]
    inner = unwrapped(optimizer)
    groups = {id(p): group for group in inner.param_groups for p in group["params"]}
    found += [
        _weight_decay(inner, parts, groups),
        _moves_nothing(terms, parts),
        _second_moment(inner, parts, lines),
        _lr(parts, groups, floor, norm, turning, lines),
        _half(parts),
    ]
    return tuple(lint for lint in found if lint is not None)


def _detached(terms: Sequence[PenaltyTerm], lines: str) -> Lint | None:
    dead = [term for term in terms if term.through == "detached"]
    if not dead:
        return None
    untold = "" if all(t.lam for t in dead) else "; λ, and whether it is on other weights too, cannot be told"
    return Lint(
        "detached",
        "The penalty has no gradient: it is in the number that you log, and moves no weight.",
        f"{_called([t.name for t in dead])}{_at(dead)}: computed from .data, .detach() or .item(){untold}",
        "Use Proximal, which needs no gradient of it; or compute it from the parameters themselves.",
        lines,
    )


def _biases(
    terms: Sequence[PenaltyTerm], named: Mapping[str, torch.Tensor], model: torch.nn.Module | None
) -> Lint | None:
    norms = {id(p) for m in _modules(model) if isinstance(m, NORMS) for p in m.parameters(recurse=False)}
    on = list(dict.fromkeys(term.name for term in terms if term.acts and term.name in named))
    wide = any(named[name].ndim >= 2 for name in on)
    biases = {name for name in on if name.rpartition(".")[2].endswith("bias")}
    improper = [n for n in on if n in biases or id(named[n]) in norms or (wide and named[n].ndim < 2)]
    if not improper or (not biases and all(id(named[name]) in norms for name in on)):
        return None
    normal = sum(id(named[name]) in norms for name in improper)
    return Lint(
        "biases-and-norms",
        "The penalty is on biases or normalisation layers too: shrinking those makes no weight zero.",
        f"{len(improper)} of the {len(on)} penalised parameters, {normal} of them in normalisation layers: "
        f"{_called(improper)}",
        "Penalise weights(model) only: parameters of two dimensions or more outside of normalisation layers.",
        "params=weights(model)",
    )


def _several(terms: Sequence[PenaltyTerm], lines: str) -> Lint | None:
    by: dict[str, list[PenaltyTerm]] = {}
    for term in terms:
        if term.acts:
            by.setdefault(term.name, []).append(term)
    twice = {name: several for name, several in by.items() if len(several) > 1}
    if not twice:
        return None
    name, several = next(iter(twice.items()))
    ways = " + ".join(f"{t.lam:.3g} ({t.through}{', ' + t.place if t.place else ''})" for t in several)
    return Lint(
        "several",
        "The same weights are penalised more than once; their λ add up.",
        f"{len(twice)} parameters; {name}: λ = {ways} = {sum(t.lam for t in several):.3g}",
        "Keep one: the proximal one where there is one.",
        lines,
    )


def _weight_decay(inner: Any, parts: Sequence[Penalised], groups: Mapping[int, Any]) -> Lint | None:
    """wd |w| against λ at the median |w|; a decoupled decay shrinks by lr wd |w| where the penalty does by τλ."""
    worst: tuple[float, Penalised, Any, float] | None = None
    for part in parts:
        group = groups[id(part.p)]
        wd = float(group.get("weight_decay", 0.0))
        if not wd or not part.p.numel():
            continue
        pull = wd * part.size
        if group.get("decoupled_weight_decay"):
            if part.tau is None:
                continue
            pull = pull * float(group["lr"]) / part.tau
        ratio = float(pull.median()) / part.lam
        if ratio > 1 and (worst is None or ratio > worst[0]):
            worst = (ratio, part, group, float(part.size.median()))
    if worst is None:
        return None
    ratio, part, group, middle = worst
    how = "decoupled weight decay" if group.get("decoupled_weight_decay") else "weight decay"
    return Lint(
        "weight-decay",
        f"The {how} dwarfs the penalty: it pulls harder on most weights, and never to zero.",
        f"{part.name}: at the median |w| = {middle:.3g} the decay pulls {ratio:.3g} times as hard as "
        f"λ = {part.lam:.3g}",
        "Set weight_decay=0 for the penalised weights, or use a larger λ; for both on purpose, say so with ElasticNet.",
        "",
    )


def _moves_nothing(terms: Sequence[PenaltyTerm], parts: Sequence[Penalised]) -> Lint | None:
    idle = [part for part in parts if part.p.numel() and part.lam < SMALL * _typical(part)]
    if sum(part.p.numel() for part in idle) < MOST * sum(part.p.numel() for part in parts) or not idle:
        return _mean(terms, parts)
    part = max(idle, key=lambda part: part.p.numel())
    mean = any(t.name == part.name and t.reduction == "mean" for t in terms)
    n = part.p.numel()
    also = f" The mean over {n} weights makes λ = {part.lam:.3g} of {part.lam * n:.3g}." if mean else ""
    return Lint(
        "moves-nothing",
        "λ is so small beside the data's gradients that the penalty moves next to nothing.",
        f"{part.name}: λ = {part.lam:.3g} for each weight, and the median |∂f| that is not 0 is "
        f"{_typical(part):.3g}.{also}",
        "Sum |w|, do not take its mean: λ is then what each weight feels." if mean else "Raise λ, or drop the penalty.",
        f"penalty = lam * sum(p.abs().sum() for p in weights(model))  # lam = {part.lam * n:.3g} at most"
        if mean
        else "",
    )


def _typical(part: Penalised) -> float:
    """The median |∂f| of the weights that the data move at all: of dead ones it is 0."""
    slopes = part.slope.abs()
    moved = slopes[slopes > 0]
    return float(moved.median()) if moved.numel() else 0.0


def _mean(terms: Sequence[PenaltyTerm], parts: Sequence[Penalised]) -> Lint | None:
    means = {term.name for term in terms if term.acts and term.reduction == "mean"}
    held = [part for part in parts if part.name in means and part.p.numel() > 1]
    if not held:
        return None
    part = max(held, key=lambda part: part.p.numel())
    n = part.p.numel()
    low, high = (pick(held, key=lambda part: part.lam) for pick in (min, max))
    now = f"# lam = {part.lam:.3g} is as much as now"
    if high.lam > 1.01 * low.lam:
        now = f"# one lam for all: now it is from {low.lam:.3g} ({low.name}) to {high.lam:.3g} ({high.name})"
    return Lint(
        "mean-not-sum",
        "The penalty is a mean of |w| and not a sum: each weight feels λ/n, and the larger its layer the less.",
        f"{part.name}: over {n} weights λ = {part.lam * n:.3g} is {part.lam:.3g} for each",
        "Sum |w|: λ is then what each weight feels, in every layer alike.",
        f"{now}\npenalty = lam * sum(p.abs().sum() for p in weights(model))",
    )


def _second_moment(inner: Any, parts: Sequence[Penalised], lines: str) -> Lint | None:
    bouncing = [part for part in parts if part.bouncing]
    if not isinstance(inner, ADAPTIVE) or not bouncing:
        return None
    name = type(inner).__name__
    floor = "which shrinks as its steps do" if isinstance(inner, torch.optim.Adagrad) else "whatever λ is"
    return Lint(
        "second-moment",
        f"{name} divides the penalty's gradient by its own size: where λ outweighs the data, each weight moves by "
        f"about lr a step, {floor}. So weights bounce about 0 as far at any λ.",
        f"{_called([part.name for part in bouncing])}: λ sign(w) goes through the second moment of {name}",
        "Leave the penalty out of the loss and take proximal steps, which act after the division.",
        lines,
    )


def _lr(
    parts: Sequence[Penalised],
    groups: Mapping[int, Any],
    floor: float | None,
    norm: float | None,
    turning: Turning | None,
    lines: str,
) -> Lint | None:
    """The floor above half of the norm, τλ above the median |w| that is kept, or a norm that a smaller λ lowers."""
    bouncing = [part for part in parts if part.bouncing]
    evidence = []
    if bouncing and floor is not None and norm is not None and norm > 0 and floor > norm - floor:
        evidence.append(f"chatter holds {floor:.3g} of ‖w‖₁ = {norm:.3g}, by the law")
    known = [(part, part.tau * part.bouncing, ~part.zero()) for part in bouncing if part.tau is not None]
    if known and len(known) == len(bouncing):
        sizes = torch.cat([part.size[kept] for part, _, kept in known])
        moves = torch.cat([step[kept] for _, step, kept in known])
        if sizes.numel() and float(moves.median()) > float(sizes.median()):
            evidence.append(
                f"a step moves a weight by τλ = {float(moves.median()):.3g}, and the median |w| of those that are kept "
                f"is {float(sizes.median()):.3g}"
            )
    here = {row.multiple: row.norm for row in turning.rows} if turning is not None else {}
    if bouncing and turning is not None and turning.turn is not None and turning.turn < 1 and 1.0 in here:
        lower, lam = here[turning.turn], turning.turn
        if lower < here[1.0]:
            evidence.append(f"‖w‖₁ = {lower:.3g} at {lam:g} times this λ and {here[1.0]:.3g} at this λ, measured")
    if not evidence:
        return None
    lrs = ", ".join(sorted({f"{float(groups[id(part.p)]['lr']):.3g}" for part in bouncing}))
    return Lint(
        "lr-too-large",
        "The learning rate is too large for this λ: the bounce about 0 undoes what the penalty is for.",
        "; ".join(evidence) + f"; lr = {lrs}",
        "Decay the lr (the bounce follows it), use a smaller λ, or take proximal steps, which do not bounce.",
        lines,
    )


def _half(parts: Sequence[Penalised]) -> Lint | None:
    half = [part for part in parts if part.bouncing and part.p.dtype in (torch.float16, torch.bfloat16)]
    if not half:
        return None
    zeros = sum(int((part.p == 0).sum()) for part in half)
    return Lint(
        "half-precision",
        "The weights are in half precision: small steps are rounded away, and some weights come to 0 by accident.",
        f"{_called([part.name for part in half])}: {str(half[0].p.dtype).removeprefix('torch.')}, {zeros} exact zeros",
        "Keep the parameters in float32 (autocast does); do not read these zeros as the penalty's work.",
        "",
    )


def _modules(model: torch.nn.Module | None) -> Iterator[torch.nn.Module]:
    return iter(()) if model is None else model.modules()


def _called(names: Sequence[str]) -> str:
    """Names for a sentence: three at most."""
    names = list(dict.fromkeys(names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _at(terms: Sequence[PenaltyTerm]) -> str:
    places = list(dict.fromkeys(term.place for term in terms if term.place))
    return f" ({', '.join(places[:3])})" if places else ""

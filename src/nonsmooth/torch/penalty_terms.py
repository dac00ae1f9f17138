"""Finding an L1 penalty in a loss: where absolute values of parameters are taken, and with which λ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nonsmooth.torch.l1_audit import PenaltyTerm
from nonsmooth.torch.program import place
from nonsmooth.torch.selection import eagerly
from nonsmooth.torch.tape import KEEPS, Detached, is_absolute
from nonsmooth.torch.undisturbed import undisturbed

__all__ = ["detached_terms", "penalty_terms", "proximal_terms"]

VIEWS = KEEPS | {"mul", "__mul__"}
"""What leaves absolute values to be taken of the parameter's own numbers, or of a multiple."""
PICKS = frozenset(
    {"max", "amax", "maximum", "fmax", "cummax", "topk", "sort", "msort", "kthvalue", "median", "nanmedian", "mode"}
    | {"min", "amin", "minimum", "fmin", "cummin", "aminmax", "quantile", "nanquantile"}
)
"""What takes some of several numbers by their size: of absolute values, or of sums of them, no L1 penalty."""
L1S = frozenset({"L1", "ElasticNet"})
"""The penalties of a `Proximal` that have λΣ|w| in them."""


@dataclass
class _Hit:
    out: torch.Tensor
    params: tuple[int, ...]
    place: str
    reduction: Literal["sum", "mean", ""] = ""


class _Finder(TorchFunctionMode):
    """Takes down where |w| of a parameter is computed."""

    def __init__(self, own: Mapping[int, str]) -> None:
        super().__init__()
        self.own = own
        self.origin: dict[int, tuple[torch.Tensor, tuple[int, ...]]] = {}
        self.hits: list[_Hit] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        out = func(*args, **kwargs)
        first = args[0] if args else kwargs.get("input")
        if name in PICKS and self.hits:
            picked_from = _made_by([t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)])
            self.hits = [hit for hit in self.hits if hit.out.grad_fn not in picked_from]
        if isinstance(out, torch.Tensor) and out.requires_grad:
            params = self._params(first)
            if name == "l1_loss":
                if params := self._against_zero(args, kwargs):
                    mean = (kwargs.get("reduction") or "mean") == "mean"
                    self._hit(out, params, "mean" if mean else "sum")
            elif params and is_absolute(name, args, kwargs):
                self._hit(out, params, "sum" if "norm" in name else "")
            elif params and name in VIEWS and _plain_product(name, args):
                self.origin[id(out)] = (out, params)
            elif name in ("mean", "sum"):
                for hit in self.hits:
                    if hit.out is first:
                        hit.reduction = "mean" if name == "mean" else "sum"
        return out

    def _hit(self, out: torch.Tensor, params: tuple[int, ...], reduction: Literal["sum", "mean", ""] = "") -> None:
        self.hits.append(_Hit(out, params, place(), reduction))

    def _params(self, value: Any) -> tuple[int, ...]:
        """The parameters whose numbers a value, or a list of values, consists of; () if there are others in it."""
        found: list[int] = []
        for t in tree_leaves(value):
            if not isinstance(t, torch.Tensor):
                continue
            if id(t) in self.own:
                found.append(id(t))
            elif id(t) in self.origin:
                found += self.origin[id(t)][1]
            else:
                return ()
        return tuple(dict.fromkeys(found))

    def _against_zero(self, args: Any, kwargs: Any) -> tuple[int, ...]:
        """The parameters of a loss against zeros, on whichever side these are."""
        sides = [*args[:2], *(kwargs[name] for name in ("input", "target") if name in kwargs)]
        for one, other in (sides, sides[::-1]):
            if not other.requires_grad and not bool(other.any()):
                return self._params(one)
        return ()


def penalty_terms(closure: Callable[[], torch.Tensor], named: Mapping[str, torch.Tensor]) -> tuple[PenaltyTerm, ...]:
    """The L1 terms on parameters that the closure's loss holds: λ is ∂loss/∂|w|, so that a mean over n has λ/n.

    Seen are `abs`, `norm(p=1)`, `vector_norm(ord=1)` and `l1_loss` against zeros, of parameters, views, casts,
    multiples and concatenations of them, in the loss or inside of the model. Where λ is not the same for all weights of
    one parameter it is their mean. What depends on the weights otherwise, as |w|² or |w| in a layer's own map, is no
    such term. Random numbers, buffers, modes and `.grad` are left as they were.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> penalty_terms(lambda: w.square().sum() + 0.5 * w.abs().mean(), {"w": w})[0].lam
    0.25
    """
    finder = _Finder({id(p): name for name, p in named.items()})
    with undisturbed(list(named.values())), eagerly():
        with finder:
            loss = closure()
        hits = [hit for hit in finder.hits if hit.out.requires_grad]
        if not hits or not loss.requires_grad:
            return ()
        slopes = torch.autograd.grad(loss, [hit.out for hit in hits], create_graph=True, allow_unused=True)
        terms = []
        for hit, slope in zip(hits, slopes, strict=True):
            if slope is None or slope.requires_grad or not bool(slope.isfinite().all()):
                continue
            held = [named[finder.own[p]] for p in hit.params]
            signs = torch.autograd.grad(hit.out, held, slope, retain_graph=True, allow_unused=True)
            for p, sign in zip(held, signs, strict=True):
                lam = 0.0 if sign is None else _lam(p, sign, slope, hit.reduction)
                if lam > 0:
                    terms.append(PenaltyTerm(finder.own[id(p)], lam, "autograd", hit.place, hit.reduction))
    return tuple(terms)


def _lam(p: torch.Tensor, sign: torch.Tensor, slope: torch.Tensor, reduction: str) -> float:
    """λ of a gradient λ sign(w); of the slope of |w|, where all w are 0."""
    counts = int((p != 0).sum())
    if counts:
        return float((sign.double() * p.detach().sign()).sum()) / counts
    mean = reduction == "mean" and slope.ndim == 0
    return float(slope.double().mean()) / (p.numel() if mean else 1)


def detached_terms(found: list[Detached], named: Mapping[str, torch.Tensor]) -> tuple[PenaltyTerm, ...]:
    """The penalties that no gradient passes, of what a tape saw: λ is what was added over Σ|w|, roughly.

    A number that was read of some of the weights may have been added to others before it came into the loss: unless all
    weights were read, by one call or by several, its λ cannot be told, and is 0.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    >>> terms = detached_terms([Detached((id(w),), "data", "train.py:7", True, 0.75)], {"w": w})
    >>> terms[0].through, terms[0].lam
    ('detached', 0.25)
    >>> detached_terms([Detached((id(w),), "item", "", True, 0.75)], {"w": w, "v": torch.ones(2)})[0].lam
    0.0
    """
    names = {id(p): name for name, p in named.items()}
    read = {names[p] for one in found if one.how == "item" for p in one.params if p in names}
    whole = read >= ({name for name, p in named.items() if p.ndim > 1} or named.keys())
    terms: dict[str, PenaltyTerm] = {}
    for one in found:
        held = [names[p] for p in dict.fromkeys(one.params) if p in names]
        total = sum(float(named[name].detach().abs().sum()) for name in held)
        told = one.value is not None and (one.how != "item" or whole)
        lam = abs(one.value or 0.0) / total if told and total else 0.0
        for name in held:
            terms.setdefault(name, PenaltyTerm(name, lam, "detached", one.place))
    return tuple(terms.values())


def proximal_terms(optimizer: Any, named: Mapping[str, torch.Tensor]) -> tuple[PenaltyTerm, ...]:
    """The L1 terms that a `Proximal` takes.

    >>> from nonsmooth.penalties import L1
    >>> from nonsmooth.torch.proximal import Proximal
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> proximal_terms(Proximal(torch.optim.SGD([w], lr=0.1), L1(0.5)), {"w": w})
    (PenaltyTerm(name='w', lam=0.5, through='proximal', place='', reduction='sum'),)
    """
    names = {id(p): name for name, p in named.items()}
    return tuple(
        PenaltyTerm(names[id(group["params"][i])], float(entry["lam"]), "proximal", "", "sum")
        for group in optimizer.param_groups
        for entry in group.get("proximal", ())
        if entry["penalty"]["name"] in L1S and not entry.get("off")
        for i in entry["params"]
        if id(group["params"][i]) in names
    )


def _made_by(tensors: list[torch.Tensor]) -> set[Any]:
    """The nodes of the graph that tensors were made by, but for single numbers, of which none can be picked."""
    seen, pending = set(), [t.grad_fn for t in tensors if t.numel() > 1]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [before for before, _ in node.next_functions]
    return seen


def _plain_product(name: str, args: Any) -> bool:
    return name not in ("mul", "__mul__") or not any(isinstance(t, torch.Tensor) and t.ndim for t in args[1:])

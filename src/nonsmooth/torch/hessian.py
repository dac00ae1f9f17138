"""Products with the Hessian of a loss, over one batch or many, that leave the training run as it is.

A closure returns the scalar loss with its graph, and never calls backward; one that does is refused. At kinks the
Hessian is that of the piece that autodiff differentiates: of a piecewise linear loss it is 0.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from nonsmooth.torch.convolution import twice_differentiable
from nonsmooth.torch.shards import need_whole
from nonsmooth.torch.undisturbed import streams, undisturbed

__all__ = ["Batches", "Hessian", "over"]

Closure = Callable[[], torch.Tensor]
Part = tuple[float, Closure]
FewRows: TypeAlias = "tuple[Batches, float, float]"
"""A loss of few rows, their share of all, and what it took to choose them, in products."""

WIDE = 1 << 20
"""Up to this many parameters vectors are in float64, whatever the parameters are in."""
EIGHTH = 8
"""A draft of batches has each of so many."""
LARGEST, SPREAD = 12, 20
"""A draft of rows has one of so many: those with the largest losses, and others in the place of the rest."""
FEW = 240
"""Of fewer rows no draft is made."""
FORWARD = 0.25
"""What the rows' losses cost, in products, where they are evaluated."""
ALIKE = 0.01
"""Up to this share of their mean, losses of rows are the same."""
KEPT = 1 << 28
"""Up to so many bytes the graphs of all parts are kept between products, unless told otherwise; and a draft's rows."""


@dataclass(frozen=True)
class Batches:
    """A loss Σ wᵢ ℓᵢ / Σ wᵢ as weights and closures: `parts` begins anew at each call, and gives the same each time.

    With `keep` the graphs of all parts stay in memory between products, which then take some 0.6 of the time; without
    it one part's graph is held at a time; with None they stay where, judged by the first, the tensors that they save
    take 256 MiB at most, and all about twice that. `generators` are put back between passes, as the global ones are.
    `rows` gives a loss that is near this one, of few rows, or None; it takes what is known of the rows' losses.

    >>> w = torch.tensor([2.0], requires_grad=True)
    >>> loss = Batches(lambda: iter([(3.0, lambda: w.square().sum()), (1.0, lambda: 5 * w.square().sum())]), 2)
    >>> Hessian(loss, [w])(torch.ones(1)).tolist()  # (3·2 + 1·10)/4
    [4.0]
    """

    parts: Callable[[], Iterator[Part]]
    count: int
    keep: bool | None = None
    generators: tuple[torch.Generator, ...] = ()
    rows: Callable[[Sequence[torch.Tensor | None]], FewRows | None] = lambda known: None

    def every(self, step: int) -> Batches:
        """Each `step`-th part, from the first on: of data in some order a fairer sample than the first ones."""
        return Batches(lambda: islice(self.parts(), 0, None, step), -(-self.count // step), None, self.generators)


def over(
    loader: Iterable[Any],
    loss: Callable[[Any], torch.Tensor],
    *,
    size: Callable[[Any], float] | None = None,
    keep: bool | None = None,
) -> Batches:
    """The mean over all samples of a loader, for `loss(batch)` that is the mean over a batch: ragged ones weigh less.

    A batch's size is the length of its first tensor; give `size` where it is something else. The loader is gone
    through once for each product, with random numbers, its own generator's included, as they were the first time;
    it must give the same batches each time: no generator object. See `Batches` for `keep`. Where the batches are
    tensors, or tuples or dicts of them, `rows` is `few_rows`: then some rows' losses are evaluated by themselves.

    Raises TypeError for a loader that is none or can be gone through only once, ValueError for one without a batch.

    >>> x = torch.tensor([1.0, 2.0, 4.0])
    >>> w = torch.tensor([1.0], requires_grad=True)
    >>> loss = over(x.split(2), lambda batch: (w * batch).square().mean())
    >>> Hessian(loss, [w])(torch.ones(1)).tolist()  # 2(1 + 4 + 16)/3, and not the mean of 5 and 32
    [14.0]
    """
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise TypeError(f"over: the loader must be a list of batches or a DataLoader, not {type(loader).__name__}.")
    if not callable(loss):
        raise TypeError(f"over: loss must be a function of a batch, not {type(loss).__name__}.")
    own = {id(g): g for g in (getattr(o, "generator", None) for o in _samplers(loader)) if g is not None}
    with streams(*own.values()):  # a DataLoader draws a number whenever it is begun
        if iter(loader) is loader:
            raise TypeError("over: the loader can be gone through only once; give a list or a DataLoader.")
        batches = loader if hasattr(loader, "__len__") else list(loader)
    if not len(batches):  # type: ignore[arg-type]
        raise ValueError("over: the loader has no batch; give one at least.")
    measure = size or _length

    def parts() -> Iterator[Part]:
        for batch in batches:
            yield float(measure(batch)), lambda batch=batch: loss(batch)  # type: ignore[misc]

    def rows(known: Sequence[torch.Tensor | None]) -> FewRows | None:
        return None if size else few_rows(batches, loss, tuple(own.values()), known)

    return Batches(parts, len(batches), keep, tuple(own.values()), rows)  # type: ignore[arg-type]


def few_rows(
    batches: Iterable[Any],
    loss: Callable[[Any], torch.Tensor],
    generators: Sequence[torch.Generator] = (),
    known: Sequence[torch.Tensor | None] = (),
    begin: float = 0.5,
) -> FewRows | None:
    """A loss like the mean of `loss` over all rows, of every eighth of them or so.

    The twelfth of the rows with the largest |loss| is there as it is. Of the rest, in the order of |loss|, there is one
    row in so many, with the weight of all: over `begin` from 0 to 1 the mean of the draft is the whole. For cross
    entropy the curvature 1 − Σp² of a row grows with its loss: late in training few rows carry the Hessian, and these
    are they.

    None for fewer than 240 rows, where the rows taken would be more than 256 MiB, and where a row has no loss of its
    own: batches of something else, batch statistics, dropout, `.item()`. known: for each batch what may be its rows'
    losses (`losses_of_rows`): they are taken where the first batch's are what that batch gives row by row.

    >>> x = torch.arange(300.0)
    >>> some, share, _ = few_rows(x.split(100), lambda batch: batch.mean())
    >>> [(weight, part().item()) for weight, part in some.parts()], round(share, 3)
    ([(25.0, 287.0), (275.0, 137.0)], 0.133)
    """
    try:
        with undisturbed(*generators), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of operations that are slow by rows
            alone = vmap(lambda row: loss(tree_map(lambda t: t[None], row)))
            found, taken, evaluated, trusted = list[torch.Tensor](), 0.0, 0, True
            for i, batch in enumerate(batches):
                rows = _by_row(known[i], batch) if trusted and i < len(known) else None
                if rows is None or not i:
                    own = alone(batch).reshape(-1)
                    trusted = rows is not None and bool((rows - own).abs().max() <= ALIKE * own.abs().mean())
                    rows, evaluated = own, evaluated + 1
                found.append(rows.cpu())
                taken += (1 / LARGEST + 1 / SPREAD) * sum(t.nbytes for t in tree_leaves(batch))
                if taken > KEPT:
                    return None
        lengths, size = [len(a) for a in found], torch.cat(found).abs()
        if len(size) < FEW or not bool(size.isfinite().all()):
            return None
        order, first = size.argsort(descending=True, stable=True), len(size) // LARGEST
        rest, count = order[first:], len(size) // SPREAD
        others = rest[((torch.arange(count) + begin) * (len(rest) / count)).long()]
        with undisturbed(*generators):
            top, spread = _taken(batches, lengths, (order[:first], others))
    except Exception:  # whatever the user's loss says to a row alone
        return None
    parts = [(float(n), lambda b=b: loss(b)) for n, b in top]
    parts += [(n * len(rest) / count, lambda b=b: loss(b)) for n, b in spread]
    some = Batches(lambda: iter(parts), len(parts), None, tuple(generators))
    return some, (first + count) / len(size), FORWARD * evaluated / len(found)


def losses_of_rows(loss: torch.Tensor) -> torch.Tensor | None:
    """Of a cross entropy or a mean of squares what it is the mean of, from what its graph has saved; None of others.

    What a cross entropy ignores is NaN.

    >>> x, y = torch.tensor([[0.0, 0.0], [3.0, 0.0]], requires_grad=True), torch.tensor([0, 1])
    >>> rows = losses_of_rows(torch.nn.functional.cross_entropy(x, y))
    >>> rows.tolist() == torch.nn.functional.cross_entropy(x, y, reduction="none").tolist()
    True
    """
    node: Any = loss.grad_fn
    match None if node is None else node.name():
        case "NllLossBackward0" if node._saved_self.ndim == 2:
            log_p, y = node._saved_self.detach(), node._saved_target.long()
            seen = (y >= 0) & (y < log_p.shape[1]) & (y != min(node._saved_ignore_index, log_p.shape[1]))
            return -log_p.gather(1, (y * seen)[:, None])[:, 0].where(seen, torch.nan)
        case "MseLossBackward0":
            return (node._saved_self - node._saved_target).detach().square()
    return None


def _by_row(losses: torch.Tensor | None, batch: Any) -> torch.Tensor | None:
    """The mean in each row of a batch of what there may be several of."""
    rows = int(_length(batch))
    return None if losses is None or losses.numel() % rows else losses.reshape(rows, -1).mean(1)


def _taken(batches: Iterable[Any], lengths: Sequence[int], sets: Sequence[torch.Tensor]) -> list[list[tuple[int, Any]]]:
    """The rows of each set, in batches no longer than the longest of all, each with its length; in one pass."""
    ends = torch.tensor(lengths).cumsum(0)
    ordered = [which.sort().values for which in sets]
    cuts = [torch.searchsorted(which, ends).tolist() for which in ordered]
    pieces: list[list[Any]] = [[] for _ in sets]
    for i, (batch, length, end) in enumerate(zip(batches, lengths, ends.tolist(), strict=True)):
        if any(len(t) != length for t in tree_leaves(batch)):
            raise ValueError("few_rows: what has no rows, or others than the losses, cannot be taken apart.")
        for into, which, cut in zip(pieces, ordered, cuts, strict=True):
            own = which[cut[i - 1] if i else 0 : cut[i]] - (end - length)
            if len(own):
                into.append(tree_map(lambda t, own=own: t[own.to(t.device)], batch))
    return [_batched(some, len(which), max(lengths)) for some, which in zip(pieces, ordered, strict=True)]


def _batched(pieces: Sequence[Any], rows: int, most: int) -> list[tuple[int, Any]]:
    whole = tree_map(lambda *ts: torch.cat(ts), *pieces)
    ends = [(i, min(i + most, rows)) for i in range(0, rows, most)]
    return [(b - a, tree_map(lambda t, a=a, b=b: t[a:b], whole)) for a, b in ends]


@dataclass
class Hessian:
    """v ↦ P^{-½} (± H + diag c) P^{-½} v for flat vectors v, H the Hessian of the loss in `params`.

    `preconditioner` is the diagonal of P, and `shift` is c, a tensor or a number a parameter; `sign` −1 is for a loss
    that is maximised. `products` counts. Graphs are kept as `Batches` says; where they are not, each product evaluates
    the closures anew, with the random numbers of the first time, so that dropout keeps its masks. What is compiled runs
    as it was written, for torch's compiler has no second derivative.

    Raises ValueError, in one sentence, for parameters that are no leaves, complex, named twice or without a number,
    for a closure that calls backward or gives no real scalar with a graph, for one whose gradient is not finite, for a
    loss that is another when it is evaluated anew, and for a preconditioner that is not above 0.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> Hessian(lambda: w.prod() + w[0] ** 2, [w])(torch.tensor([1.0, 0.0])).tolist()  # H = [[2, 1], [1, 0]]
    [2.0, 1.0]
    """

    loss: Closure | Batches | Iterable[Any]
    params: Sequence[torch.Tensor]
    preconditioner: Sequence[Any] | None = None
    shift: Sequence[Any] | None = None
    sign: float = 1.0
    who: str = "Hessian"
    products: float = 0.0
    kept: list[tuple[float, list[torch.Tensor]]] = field(default_factory=list)
    known: list[torch.Tensor | None] = field(default_factory=list)
    value: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.params, torch.Tensor):
            raise ValueError(f"{self.who}: params must be a list of parameters, not one tensor; write [w].")
        if not isinstance(self.params, Iterable):
            kind = type(self.params).__name__
            raise ValueError(f"{self.who}: params must be a list of parameters, not {kind}; write model.parameters().")
        self.params = list(self.params)
        if not self.params or not all(isinstance(p, torch.Tensor) and p.requires_grad for p in self.params):
            raise ValueError(f"{self.who}: params must be parameters that require gradients, one at least.")
        if not all(p.is_leaf for p in self.params):
            raise ValueError(f"{self.who}: params must be leaves, not what is computed from them; name the parameters.")
        if len({id(p) for p in self.params}) < len(self.params):
            raise ValueError(f"{self.who}: a parameter is named twice; name each once.")
        need_whole(self.who, self.params)
        if any(p.is_complex() for p in self.params):
            raise ValueError(f"{self.who}: complex parameters have no Hessian of this kind; split them into two.")
        self.batches = _as_batches(self.loss, self.who)
        self.keep = self.batches.keep
        self.sizes = [p.numel() for p in self.params]
        self.dim, self.device = sum(self.sizes), self.params[0].device
        if not self.dim:
            raise ValueError(f"{self.who}: params hold no number; name a parameter that is not empty.")
        self.dtype = torch.float64 if self.dim <= WIDE else torch.float32
        self.root = None if self.preconditioner is None else self._root(self.preconditioner)
        added = None if self.shift is None else self._flat_like(self.shift)
        self.added = added if added is not None and bool(added.any()) else None
        self.preconditioner = self.shift = None  # `root` and `added` say it all

    def __call__(self, v: torch.Tensor) -> torch.Tensor:
        self.products += 1
        scaled = v.to(self.device, self.dtype) if self.root is None else v.to(self.device, self.dtype) * self.root
        pieces = [a.reshape(p.shape).to(p) for a, p in zip(scaled.split(self.sizes), self.params, strict=True)]
        out, weight = None, 0.0
        for w, slopes in self._slopes():
            out = self._pulled(slopes, pieces, w, out)
            weight += w
        assert out is not None
        out.mul_(self.sign / weight)
        if self.added is not None:
            out.add_(self.added * scaled)
        if not bool(out.isfinite().all()):
            raise ValueError(f"{self.who}: a product with the Hessian is not finite; the loss has no curvature here.")
        return out if self.root is None else out.mul_(self.root)

    def draft(self) -> Draft | None:
        """The same with few of the rows, or every eighth of the batches; None where there are fewer than eight."""
        with undisturbed(self.params, self.batches.generators):
            rows = self.batches.rows(self.known)
            self.known = []
        if rows is not None:
            loss, share, spent = rows
            with contextlib.suppress(Exception):  # a loss that is not of any number of rows
                made = self._like(loss)
                for _ in made._slopes():
                    pass
                return Draft(made, share, spent)
        if self.batches.count < EIGHTH:
            return None
        some = self.batches.every(EIGHTH)
        return Draft(self._like(some, self.kept[::EIGHTH]), some.count / self.batches.count, 0.0)

    def _like(self, some: Batches, kept: Sequence[tuple[float, list[torch.Tensor]]] = ()) -> Hessian:
        made = Hessian(some, self.params, sign=self.sign, who=self.who, kept=list(kept))
        made.root, made.added = self.root, self.added
        made.keep = bool(kept) or made.keep  # other graphs than one's own are not to be used up
        return made

    def gradient(self) -> torch.Tensor | None:
        """P^{-½}∇ℓ as a flat vector, where the graphs are kept: they are made now if they were not; None elsewhere.

        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> Hessian(lambda: w.prod(), [w]).gradient().tolist()
        [2.0, 1.0]
        """
        for _ in self._slopes():
            if not self.keep:
                return None
        total = sum(weight for weight, _ in self.kept)
        flat = [
            w / total * torch.cat([g.detach().reshape(-1).to(self.device, self.dtype) for g in gs])
            for w, gs in self.kept
        ]
        out = torch.stack(flat).sum(0)
        return out if self.root is None else out.mul_(self.root)

    def unflat(self, v: torch.Tensor) -> list[torch.Tensor]:
        """A flat vector in the parameters' shapes."""
        return [a.reshape(p.shape) for a, p in zip(v.split(self.sizes), self.params, strict=True)]

    # --- within -----------------------------------------------------------------------------------------------------

    def _slopes(self) -> Iterator[tuple[float, list[torch.Tensor]]]:
        """Each part's weight and gradient with its graph, evaluated anew unless it is kept."""
        if self.kept:
            yield from self.kept
            return
        made = []
        self.known = []
        value = 0.0
        with undisturbed(self.params, self.batches.generators):
            for weight, closure in self.batches.parts():
                if not (math.isfinite(weight) and weight > 0):
                    raise ValueError(f"{self.who}: a batch's weight must be a finite number above 0, not {weight!r}.")
                slopes, rows, loss = self._slope(closure)
                value += weight * float(loss)
                if self.keep is None:
                    self.keep = _held(slopes) * self.batches.count <= KEPT
                if self.keep:
                    made.append((weight, slopes))
                    self.known.append(rows)
                yield weight, slopes
                del slopes
        self.kept = made
        first = self.value = value if self.value is None else self.value
        if abs(value - first) > math.sqrt(torch.finfo(loss.dtype).eps) * abs(first):
            raise ValueError(
                f"{self.who}: the loss is {first:.6g} the first time and {value:.6g} when it is evaluated anew; take "
                "its batch outside of the closure, or give a loader with the same batches each time."
            )

    def _slope(self, closure: Closure) -> tuple[list[torch.Tensor], torch.Tensor | None, torch.Tensor]:
        """The gradient with its graph; the rows' losses where they are known and of use; and the loss."""
        with twice_differentiable(self.params):
            loss = closure()
            if any(p.grad is not None for p in self.params):
                raise ValueError(
                    f"{self.who}: the closure called backward; return the loss and leave its gradient to {self.who}."
                )
            if not (isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.requires_grad):
                what = (
                    f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
                )
                if isinstance(loss, torch.Tensor) and not loss.requires_grad:
                    what += " without a graph"
                raise ValueError(
                    f"{self.who}: the closure must return the loss, a scalar tensor with its graph, not {what}."
                )
            if loss.is_complex():
                raise ValueError(f"{self.who}: the loss is complex; return a real one, such as its .real or .abs().")
            rows = losses_of_rows(loss) if self.keep is not False and self.batches.count > 1 else None
            found = torch.autograd.grad(loss.sum(), self.params, create_graph=True, allow_unused=True)
        slopes = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(self.params, found, strict=True)]
        if not all(bool(g.isfinite().all()) for g in slopes):
            raise ValueError(f"{self.who}: the gradient is not finite.")
        return slopes, rows, loss.detach().sum()

    def _pulled(
        self,
        slopes: list[torch.Tensor],
        pieces: list[torch.Tensor],
        weight: float = 1.0,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """weight · H v of one part, added to `out`; what does not depend on the parameters counts 0."""
        live = [(g, a) for g, a in zip(slopes, pieces, strict=True) if g.requires_grad]
        found: list[torch.Tensor | None] = [None] * len(self.params)
        if live:
            ends, v = [g for g, _ in live], [a for _, a in live]
            found = list(torch.autograd.grad(ends, self.params, v, retain_graph=bool(self.keep), allow_unused=True))
        out = torch.zeros(self.dim, dtype=self.dtype, device=self.device) if out is None else out
        for into in out.split(self.sizes):
            g = found.pop(0)  # and is freed
            if g is not None:
                into.add_(g.to_dense().reshape(-1).to(self.device, self.dtype), alpha=weight)
        return out

    def _flat_like(self, numbers: Sequence[Any]) -> torch.Tensor:
        given = list(numbers)
        if len(given) != len(self.params):
            raise ValueError(f"{self.who}: {len(given)} tensors do not fit {len(self.params)} parameters.")
        flat = []
        for a, p in zip(given, self.params, strict=True):
            a = torch.as_tensor(a, dtype=self.dtype, device=self.device)
            if a.ndim and a.shape != p.shape:
                raise ValueError(
                    f"{self.who}: a tensor of shape {tuple(a.shape)} does not fit one of {tuple(p.shape)}."
                )
            flat.append(a.expand(p.shape).reshape(-1))
        return torch.cat(flat)

    def _root(self, preconditioner: Sequence[Any]) -> torch.Tensor | None:
        flat = self._flat_like(preconditioner)
        if not bool(((flat > 0) & flat.isfinite()).all()):
            raise ValueError(f"{self.who}: the preconditioner must be finite and above 0.")
        return None if bool((flat == 1).all()) else flat.rsqrt_()


@dataclass(frozen=True)
class Draft:
    """A Hessian of some of the data, their share of all, and what it took to choose them, in products with all.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> Hessian([lambda: w.exp().sum()] * 16, [w]).draft().share
    0.125
    """

    hessian: Hessian
    share: float
    spent: float


def _held(slopes: Iterable[torch.Tensor]) -> int:
    """The bytes of all tensors that the graph behind `slopes` has saved, each once."""
    waiting: list[Any] = [g.grad_fn for g in slopes]
    seen, held = set(waiting), dict[int, int]()
    while waiting:
        node = waiting.pop()
        for name in () if node is None else dir(node):
            saved = getattr(node, name) if name.startswith("_saved_") or name == "saved_tensors" else ()
            for t in saved if isinstance(saved, (tuple, list)) else (saved,):
                if isinstance(t, torch.Tensor):
                    storage = (t._values() if t.is_sparse else t).untyped_storage()
                    held[storage.data_ptr()] = storage.nbytes()
        fresh = {n for n, _ in (() if node is None else node.next_functions)} - seen
        seen |= fresh
        waiting += fresh
    return sum(held.values())


def _as_batches(loss: Any, who: str) -> Batches:
    if isinstance(loss, Batches):
        return loss
    if callable(loss):
        return Batches(lambda: iter([(1.0, loss)]), 1, getattr(loss, "keep_graph", None))
    if isinstance(loss, Iterable) and not isinstance(loss, torch.Tensor):
        parts = [part if isinstance(part, tuple) else (1.0, part) for part in loss]
        if parts and all(len(part) == 2 and callable(part[1]) for part in parts):
            return Batches(lambda: iter((float(w), closure) for w, closure in parts), len(parts))
    raise TypeError(f"{who}: give a closure, a list of closures or of (weight, closure), or `over(loader, loss)`.")


def _samplers(loader: Any) -> Iterator[Any]:
    sampler = getattr(loader, "sampler", None)
    yield from (loader, sampler, getattr(loader, "batch_sampler", None))


def _length(batch: Any) -> float:
    """The length of the first tensor in a batch, whatever holds it."""
    if isinstance(batch, torch.Tensor):
        return float(len(batch)) if batch.ndim else 1.0
    values = batch.values() if hasattr(batch, "values") else batch
    for value in values if isinstance(values, Iterable) and not isinstance(values, (str, bytes)) else ():
        with_size = _length(value)
        if with_size:
            return with_size
    return 0.0

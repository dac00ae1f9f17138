"""A loss as a mean of parts: over the batches of a loader, whatever their sizes, or over few of all their rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from nonsmooth.torch.undisturbed import streams, undisturbed

__all__ = ["Batches", "over"]

Closure = Callable[[], torch.Tensor]
Part = tuple[float, Closure]
FewRows: TypeAlias = "tuple[Batches, float, float]"
"""A loss of few rows, their share of all, and what it took to choose them, in products."""

LARGEST, SPREAD = 12, 20
"""A draft of rows has one of so many: those with the largest losses, and others in the place of the rest."""
FEW = 240
"""Of fewer rows no draft is made."""
FORWARD = 0.25
"""What the rows' losses cost, in products, where they are evaluated."""
ALIKE = 0.01
"""Up to this share of their mean, losses of rows are the same."""
KEPT = 1 << 28
"""Up to so many bytes of a draft's rows."""


@dataclass(frozen=True)
class Batches:
    """A loss Σ wᵢ ℓᵢ / Σ wᵢ as weights and closures: `parts` begins anew at each call, and gives the same each time.

    With `keep` the graphs of all parts stay in memory between products, which then take some 0.6 of the time; without
    it one part's graph is held at a time; with None they stay where, judged by the first, the tensors that they save
    take 256 MiB at most, and all about twice that. `generators` are put back between passes, as the global ones are.
    `rows` gives a loss that is near this one, of few rows, or None; it takes what is known of the rows' losses.

    >>> from nonsmooth.torch.hessian import Hessian
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

    >>> from nonsmooth.torch.hessian import Hessian
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


def as_batches(loss: Any, who: str) -> Batches:
    """What the user gives for a loss: a closure, several, or `over(loader, loss)`; TypeError, in one sentence, if not.

    >>> as_batches([lambda: 1.0, (2.0, lambda: 3.0)], "sharpness").count
    2
    """
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

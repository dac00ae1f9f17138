"""Products with the Hessian of a loss, over one batch or many, that leave the training run as it is.

A closure returns the scalar loss with its graph, and never calls backward; one that does is refused. At kinks the
Hessian is that of the piece that autodiff differentiates: of a piecewise linear loss it is 0.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch

from nonsmooth.torch.convolution import twice_differentiable
from nonsmooth.torch.parts import Batches, Closure, as_batches, losses_of_rows
from nonsmooth.torch.shards import need_whole
from nonsmooth.torch.undisturbed import undisturbed

__all__ = ["Hessian"]

Lazy = Callable[[], torch.Tensor]
"""Numbers that are made when they are asked for."""
Parts = Callable[[slice], torch.Tensor]
"""The entries of a vector in a place of it, made when they are asked for."""

WIDE = 1 << 20
"""Up to this many parameters vectors are in float64, whatever the parameters are in."""
EIGHTH = 8
"""A draft of batches has each of so many."""
KEPT = 1 << 28
"""Up to so many bytes the graphs of all parts are kept between products, unless told otherwise."""
MUCH = 10
"""A graph of less than so many vectors, where those are long, is not kept: its place is needed for them."""


@dataclass
class Hessian:
    """v ↦ P^{-½} (± H + diag c) P^{-½} v for flat vectors v, H the Hessian of the loss in `params`.

    `preconditioner` is the diagonal of P, and `shift` is c, a tensor, a number or a function that gives one a
    parameter; `sign` −1 is for a loss that is maximised. v may be a function that makes the entries of a slice: of
    long vectors, of over a million entries, none is held that can be made when it is needed. `products` counts.
    Graphs are kept as `Batches` says; where they are not, each product evaluates the closures anew, with the random
    numbers of the first time, so that dropout keeps its masks. What is compiled runs as it was written, for torch's
    compiler has no second derivative.

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
    held: int = 0

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
        self.batches = as_batches(self.loss, self.who)
        self.keep = self.batches.keep
        self.sizes = [p.numel() for p in self.params]
        self.dim, self.device = sum(self.sizes), self.params[0].device
        if not self.dim:
            raise ValueError(f"{self.who}: params hold no number; name a parameter that is not empty.")
        self.long = self.dim > WIDE
        self.dtype = torch.float32 if self.long else torch.float64
        self.blocks = self.sizes if self.long else [self.dim]
        self.places = [slice(*at) for at in pairwise(accumulate(self.blocks, initial=0))]
        self.roots = None if self.preconditioner is None else self._roots(self.preconditioner)
        added = None if self.shift is None else self._each(self.shift)
        self.added = self._blocks(added) if added is not None and any(bool(c().any()) for c in added) else None
        self.preconditioner = self.shift = None  # `roots` and `added` say it all

    def __call__(self, v: torch.Tensor | Parts) -> torch.Tensor:
        if isinstance(v, torch.Tensor) and v.shape != (self.dim,):
            raise ValueError(f"{self.who}: a vector of shape {tuple(v.shape)} does not fit {self.dim} parameters.")
        self.products += 1
        out, weight = None, 0.0
        for w, slopes in self._slopes():
            out = self._pulled(slopes, self._pieces(v), w, out)
            weight += w
        assert out is not None
        out.mul_(self.sign / weight)
        if self.added is not None:
            for into, c, a in zip(out.split(self.blocks), self.added, self._parts(v), strict=True):
                into.add_(c() * a)
        if not all(bool(a.isfinite().all()) for a in out.split(self.blocks)):
            raise ValueError(f"{self.who}: a product with the Hessian is not finite; the loss has no curvature here.")
        return self.rooted(out)

    def rooted(self, v: torch.Tensor) -> torch.Tensor:
        """P^{-½}v, in the place of v."""
        if self.roots is not None:
            for a, root in zip(v.split(self.blocks), self.roots, strict=True):
                a.mul_(root())
        return v

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
        made.roots, made.added = self.roots, self.added
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
        return self.rooted(torch.stack(flat).sum(0))

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
                    self.held = _held(slopes)
                    held = self.held * self.batches.count
                    self.keep = held <= KEPT and (not self.long or held >= MUCH * self.dim * self.dtype.itemsize)
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
        pieces: Iterator[torch.Tensor],
        weight: float = 1.0,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """weight · H v of one part, added to `out`; what does not depend on the parameters counts 0.

        Unless the graph is kept, slopes are used up as pieces of v are made: the gradient's values are not needed for
        ⟨∇ℓ, v⟩'s, and v is let go of where the engine has had it.
        """
        found: list[torch.Tensor | None] = [None] * len(self.params)
        live = any(g.requires_grad for g in slopes)
        if live and self.keep:
            ends, v = zip(*((g, a) for g, a in zip(slopes, pieces, strict=True) if g.requires_grad), strict=True)
            found = list(torch.autograd.grad(ends, self.params, v, retain_graph=True, allow_unused=True))
        elif live:
            inner = slopes[0].new_zeros(())
            for piece in pieces:  # to its end, for it holds the last one
                slope = slopes.pop(0)
                with torch.enable_grad():
                    inner = inner + (slope * piece).sum().to(inner.device) if slope.requires_grad else inner
            del slope, piece
            found = list(torch.autograd.grad(inner, self.params, allow_unused=True))
        out = torch.zeros(self.dim, dtype=self.dtype, device=self.device) if out is None else out
        for into in out.split(self.sizes):
            g = found.pop(0)  # and is freed
            if g is not None:
                into.add_(g.to_dense().reshape(-1).to(self.device, self.dtype), alpha=weight)
        return out

    def _parts(self, v: torch.Tensor | Parts) -> Iterator[torch.Tensor]:
        """P^{-½}v, block by block, each made when it is asked for."""
        for i, at in enumerate(self.places):
            a = (v[at] if isinstance(v, torch.Tensor) else v(at)).to(self.device, self.dtype)
            yield a if self.roots is None else a * self.roots[i]()

    def _pieces(self, v: torch.Tensor | Parts) -> Iterator[torch.Tensor]:
        """The same in the parameters' shapes and dtypes."""
        flat = self._parts(v) if self.long else next(self._parts(v)).split(self.sizes)
        return (a.reshape(p.shape).to(p) for a, p in zip(flat, self.params, strict=True))

    def _each(self, numbers: Sequence[Any]) -> list[Lazy]:
        """For each parameter a function that gives its numbers, flat, or the one of all."""
        given = list(numbers)
        if len(given) != len(self.params):
            raise ValueError(f"{self.who}: {len(given)} tensors do not fit {len(self.params)} parameters.")
        how = self.who, self.dtype, self.device  # and not self: what is held in a circle is not freed at once
        return [partial(_flat, a, p.shape, *how) for a, p in zip(given, self.params, strict=True)]

    def _roots(self, preconditioner: Sequence[Any]) -> list[Lazy] | None:
        """P^{-½}, block by block."""
        reads, all_one = self._each(preconditioner), True
        for read in reads:
            P = read()
            if not bool(((P > 0) & P.isfinite()).all()):
                raise ValueError(f"{self.who}: the preconditioner must be finite and above 0.")
            all_one = all_one and bool((P == 1).all())
        if all_one:
            return None
        return self._blocks([partial(_inverse_root, read) for read in reads])

    def _blocks(self, reads: list[Lazy]) -> list[Lazy]:
        """A function for each block: what the parameters' give, or of short vectors all of it, computed once."""
        if self.long:
            return reads
        flat = torch.cat([read().expand(n) for read, n in zip(reads, self.sizes, strict=True)])
        return [lambda: flat]


def _flat(a: Any, shape: torch.Size, who: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    a = torch.as_tensor(a() if callable(a) else a, dtype=dtype, device=device)
    if a.ndim and a.shape != shape:
        raise ValueError(f"{who}: a tensor of shape {tuple(a.shape)} does not fit one of {tuple(shape)}.")
    return a.reshape(-1)


def _inverse_root(read: Lazy) -> torch.Tensor:
    return read().rsqrt()


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

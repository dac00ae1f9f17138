"""Products with the Hessian of a loss, over one batch or many, that leave the training run as it is.

A closure returns the scalar loss with its graph, and never calls backward; one that does is refused. At kinks the
Hessian is that of the piece that autodiff differentiates: of a piecewise linear loss it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nonsmooth.torch.shards import need_whole
from nonsmooth.torch.undisturbed import streams, undisturbed

__all__ = ["Batches", "Hessian", "over"]

Closure = Callable[[], torch.Tensor]
Part = tuple[float, Closure]

WIDE = 1 << 20
"""Up to this many parameters vectors are in float64, whatever the parameters are in."""
EIGHTH = 8
"""A draft has each of so many batches."""
KEPT = 1 << 28
"""Up to so many bytes the graphs of all parts are kept between products, unless told otherwise."""


@dataclass(frozen=True)
class Batches:
    """A loss Σ wᵢ ℓᵢ / Σ wᵢ as weights and closures: `parts` begins anew at each call, and gives the same each time.

    With `keep` the graphs of all parts stay in memory between products, which then take some 0.6 of the time; without
    it one part's graph is held at a time; with None they stay where, judged by the first, they take 256 MiB at most.
    `generators` are put back between passes, as the global ones are.

    >>> w = torch.tensor([2.0], requires_grad=True)
    >>> loss = Batches(lambda: iter([(3.0, lambda: w.square().sum()), (1.0, lambda: 5 * w.square().sum())]), 2)
    >>> Hessian(loss, [w])(torch.ones(1)).tolist()  # (3·2 + 1·10)/4
    [4.0]
    """

    parts: Callable[[], Iterator[Part]]
    count: int
    keep: bool | None = None
    generators: tuple[torch.Generator, ...] = ()

    def every(self, step: int) -> Batches:
        """Each `step`-th part, from the first on: of data in some order a fairer sample than the first ones."""
        return Batches(lambda: islice(self.parts(), 0, None, step), -(-self.count // step), True, self.generators)


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
    it must give the same batches each time: no generator object. See `Batches` for `keep`.

    >>> x = torch.tensor([1.0, 2.0, 4.0])
    >>> w = torch.tensor([1.0], requires_grad=True)
    >>> loss = over(x.split(2), lambda batch: (w * batch).square().mean())
    >>> Hessian(loss, [w])(torch.ones(1)).tolist()  # 2(1 + 4 + 16)/3, and not the mean of 5 and 32
    [14.0]
    """
    own = {id(g): g for g in (getattr(o, "generator", None) for o in _samplers(loader)) if g is not None}
    with streams(*own.values()):  # a DataLoader draws a number whenever it is begun
        if iter(loader) is loader:
            raise TypeError("over: the loader can be gone through only once; give a list or a DataLoader.")
        batches = loader if hasattr(loader, "__len__") else list(loader)
    measure = size or _length

    def parts() -> Iterator[Part]:
        for batch in batches:
            yield float(measure(batch)), lambda batch=batch: loss(batch)  # type: ignore[misc]

    return Batches(parts, len(batches), keep, tuple(own.values()))  # type: ignore[arg-type]


@dataclass
class Hessian:
    """v ↦ P^{-½} (± H + diag c) P^{-½} v for flat vectors v, H the Hessian of the loss in `params`.

    `preconditioner` is the diagonal of P, and `shift` is c, a tensor or a number a parameter; `sign` −1 is for a loss
    that is maximised. A single closure is evaluated once and its graph kept; `products` counts. Within a pass each
    closure sees the random numbers of the first time, so that dropout keeps its masks.

    Raises ValueError, in one sentence, for a closure that calls backward or gives no scalar with a graph, for one
    whose gradient is not finite, and for a preconditioner that is not above 0.

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

    def __post_init__(self) -> None:
        if isinstance(self.params, torch.Tensor):
            raise ValueError(f"{self.who}: params must be a list of parameters, not one tensor; write [w].")
        self.params = list(self.params)
        if not self.params or not all(isinstance(p, torch.Tensor) and p.requires_grad for p in self.params):
            raise ValueError(f"{self.who}: params must be parameters that require gradients, one at least.")
        need_whole(self.who, self.params)
        if any(p.is_complex() for p in self.params):
            raise ValueError(f"{self.who}: complex parameters have no Hessian of this kind; split them into two.")
        self.batches = _as_batches(self.loss, self.who)
        self.keep = self.batches.keep
        self.sizes = [p.numel() for p in self.params]
        self.dim, self.device = sum(self.sizes), self.params[0].device
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

    def draft(self) -> Hessian | None:
        """The same with every eighth of the batches; None where there are fewer than eight."""
        if self.batches.count < EIGHTH:
            return None
        some, kept = self.batches.every(EIGHTH), self.kept[::EIGHTH]
        made = Hessian(some, self.params, sign=self.sign, who=self.who, kept=kept)
        made.root, made.added = self.root, self.added
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
        with undisturbed(self.params, self.batches.generators):
            for weight, closure in self.batches.parts():
                if not (math.isfinite(weight) and weight > 0):
                    raise ValueError(f"{self.who}: a batch's weight must be a finite number above 0, not {weight!r}.")
                slopes = self._slope(closure)
                if self.keep is None:
                    self.keep = _held(slopes) * self.batches.count <= KEPT
                if self.keep:
                    made.append((weight, slopes))
                yield weight, slopes
        self.kept = made

    def _slope(self, closure: Closure) -> list[torch.Tensor]:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused attentions have no second derivative
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
            found = torch.autograd.grad(loss.sum(), self.params, create_graph=True, allow_unused=True)
        slopes = [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, found, strict=True)]
        if not all(bool(g.isfinite().all()) for g in slopes):
            raise ValueError(f"{self.who}: the gradient is not finite.")
        return slopes

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
                into.add_(g.reshape(-1).to(self.device, self.dtype), alpha=weight)
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
                    storage = t.untyped_storage()
                    held[storage.data_ptr()] = storage.nbytes()
        fresh = {n for n, _ in (() if node is None else node.next_functions)} - seen
        seen |= fresh
        waiting += fresh
    return sum(held.values())


def _as_batches(loss: Any, who: str) -> Batches:
    if isinstance(loss, Batches):
        return loss
    if callable(loss):
        return Batches(lambda: iter([(1.0, loss)]), 1, keep=True)
    if isinstance(loss, Iterable):
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

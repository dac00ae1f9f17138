"""Curvature of a loss: its largest Hessian eigenvalues, each with its residual and its cost; trace, density, layers.

All take a closure that returns the scalar loss with its graph, or several with weights (`nonsmooth.torch.hessian`), and
leave the run as it is: gradients, buffers, modes and random numbers are bit by bit what they were. The Hessian is that
of the piece which is active at the parameters: of a piecewise linear loss it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from nonsmooth.torch.hessian import WIDE, Hessian
from nonsmooth.torch.lanczos import Pairs, guided, largest, tridiagonal
from nonsmooth.torch.thick_restart import CHUNK, LEAD, ROOM, largest_of_long

__all__ = ["Sharpness", "Spectrum", "Trace", "by_layer", "sharpness", "sharpness_of", "spectrum", "trace"]

NOISE = 0.03
"""The length of the random vector in each start, so that no direction is shut out for good."""
SECOND = 0.3
"""The length of the second and third vector in a start that is one, so that their values may overtake the first."""
FELL = 0.1
"""A value that fell below so much of the last one is looked for anew: its vector may be that of another eigenvalue."""
SUBSPACE = 0.25
"""Long vectors may take so much of the room of the graph."""
HUGE = 1 << 23
"""Of more parameters no draft guides a single value: the subspaces of both would take over a GiB."""


@dataclass(frozen=True, eq=False)
class Sharpness:
    """The k largest eigenvalues of a Hessian, (k,), and ‖Hv − θv‖ for each, (k,): an eigenvalue is within that of θ.

    `converged`: each is known to `tol` of itself, or is within tol²‖H‖ of 0 (then it is given as 0, for its sign
    cannot be told). `error` is the estimate by which that was judged. `products` counts passes over the
    whole data. `vectors` (dim, ≥ k) are flat eigenvectors of P^{-½}HP^{-½}, and then what else helps to start the next.

    >>> print(Sharpness(np.array([6.0]), np.array([0.01]), np.array([0.02]), 5, True, 8.0, torch.zeros(2, 1)))
    λ₁ = 6 (residual 0.01), 5 products
    """

    value: np.ndarray
    residual: np.ndarray
    error: np.ndarray
    products: int
    converged: bool
    norm: float
    vectors: torch.Tensor

    def __str__(self) -> str:
        rows = [
            f"λ{_below(i + 1)} = {v:.4g} (residual {r:.1g})"
            for i, (v, r) in enumerate(zip(self.value, self.residual, strict=True))
        ]
        end = f"{self.products} products"
        return ", ".join(rows) + f", {end}" + ("" if self.converged else ", NOT converged: allow more products")


def _below(i: int) -> str:
    return "".join("₀₁₂₃₄₅₆₇₈₉"[int(d)] for d in str(i))


def sharpness(
    closure: Any,
    params: Iterable[torch.Tensor],
    k: int = 1,
    preconditioner: Sequence[Any] | None = None,
    tol: float = 1e-2,
    start: Sharpness | torch.Tensor | None = None,
    max_products: int = 100,
    seed: int = 0,
) -> Sharpness:
    """λ₁ ≥ … ≥ λ_k, the largest eigenvalues by value, of the Hessian or of P^{-½}HP^{-½} with P = `preconditioner`.

    `closure` returns the loss with its graph; or it is a list of closures, of (weight, closure), or `over(loader,
    loss)`: then products with few of the rows (`few_rows`), or with every eighth of eight or more batches, guide those
    with all. `start` is the result of the last call, along a run of training: then a few products do; a value that fell
    below a tenth of the last one is looked for anew. P is a tensor, a number or a function that gives one a parameter.
    Of over a million parameters, λ₁ alone takes no more room beside the graph than a quarter of it: where that is too
    little, its vectors wait outside of the device's memory (`nonsmooth.torch.outside`).
    An eigenvalue that is there more than k times is seen at most k times. `seed` is of the start vector alone.

    Raises ValueError, in one sentence, for a k that is not from 1 to the number of parameters, a tol outside of
    (0, 1), and what `Hessian` refuses. Source: Saad 2011, chapter 8; Pearlmutter 1994 for the product.

    >>> w = torch.nn.Parameter(torch.tensor([0.0, 0.0, 0.0]))
    >>> found = sharpness(lambda: (w ** 2 * torch.tensor([0.5, 1.5, -50.0])).sum(), [w], k=2)
    >>> found.value.round(5).tolist(), found.converged  # not −100, which is larger in modulus
    ([3.0, 1.0], True)
    """
    hessian = Hessian(closure, params, preconditioner, who="sharpness")  # type: ignore[arg-type]
    return sharpness_of(hessian, k, tol, [] if start is None else [start], max_products, seed)


def sharpness_of(
    hessian: Hessian,
    k: int = 1,
    tol: float = 1e-2,
    starts: list[Any] | None = None,
    max_products: int = 100,
    seed: int = 0,
) -> Sharpness:
    """`sharpness` of a Hessian that is made already, its graph with it; a start is taken out of its list.

    >>> w = torch.nn.Parameter(torch.tensor([1.0]))
    >>> sharpness_of(Hessian(lambda: w.exp().sum(), [w])).value.round(6).tolist()
    [2.718282]
    """
    who, dim = hessian.who, hessian.dim
    if not (isinstance(k, int) and 1 <= k <= dim):
        raise ValueError(f"{who}: k must be an integer from 1 to the {dim} parameters, not {k!r}.")
    if not (isinstance(tol, (int, float)) and 0 < tol < 1):
        raise ValueError(f"{who}: tol must be a number above 0 and below 1, not {tol!r}.")
    if not (isinstance(max_products, int) and max_products >= k):
        raise ValueError(f"{who}: max_products must be an integer of at least k = {k}, not {max_products!r}.")
    generator = torch.Generator().manual_seed(seed)
    one, trusted, last = k == 1 and hessian.long, False, 0.0
    if not starts:
        drafts = not (one and dim > HUGE)
        slope = hessian.gradient() if drafts and hessian.batches.count > 1 else None
        draft = hessian.draft() if drafts else None
        if draft is not None:
            slope = draft.hessian.gradient() if slope is None else slope
            given = _noise(hessian, 1, generator)[:, 0]
            if slope is not None and bool(slope.any()):  # most of it lies along the large eigenvectors
                given = slope / torch.linalg.vector_norm(slope) + NOISE * given / torch.linalg.vector_norm(given)
            pairs, drafted = guided(hessian, draft.hessian, given, k, tol, max_products, generator)
            return _record(pairs, k, tol, pairs.products + math.ceil(draft.spent + drafted * draft.share))
        given = _noise(hessian, 1 if one else min(k + 1, dim), generator)
    else:
        start = starts.pop()
        last = float(start.value[0]) if isinstance(start, Sharpness) else 0.0
        vectors = start.vectors if isinstance(start, Sharpness) else start
        vectors = vectors[:, None] if vectors.ndim == 1 else vectors
        if len(vectors) != dim:
            raise ValueError(f"{who}: start has {len(vectors)} rows, and there are {dim} parameters.")
        vectors, noise = vectors.detach().to(hessian.device), _noise(hessian, 1, generator)
        given, trusted = _in_one(vectors, noise) if one else _again(vectors, k, noise), True
        del start, vectors, noise
    first = [given]
    del given  # so that they can be let go of
    if one:
        pairs = largest_of_long(
            hessian,
            first,
            tol,
            max_products,
            generator,
            trusted,
            space=lambda: min(ROOM, int(hessian.held * SUBSPACE)),
            aside=hessian.batches.keep is None,  # and not over ranks, whose disks differ
        )
    else:
        pairs = largest(hessian, first.pop(), k, tol, max_products, generator, trusted)
    found = _record(pairs, k, tol, pairs.products)
    if found.norm == 0 or found.value[0] >= FELL * last or last <= 0:
        return found
    left = max_products - found.products
    if left < k:
        return replace(found, converged=False)
    del pairs
    anew = sharpness_of(hessian, k, tol, None, left, seed)
    return replace(anew, products=anew.products + found.products)


def _noise(hessian: Hessian, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(hessian.dim, count, generator=generator, dtype=hessian.dtype).to(hessian.device)


def _again(vectors: torch.Tensor, k: int, noise: torch.Tensor) -> torch.Tensor:
    """What to start from: one vector more than are asked for, which might overtake; noise in the last."""
    block = vectors[:, : k + 1].to(noise.dtype, copy=True)
    block[:, -1:] += NOISE * noise / torch.linalg.vector_norm(noise)
    return block


def _in_one(vectors: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The same as one vector, in the place of the noise."""
    noise *= NOISE / torch.linalg.vector_norm(noise)
    return _add_leading(noise, vectors)


def _add_leading(to: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """The leading vectors, added in place to the one column of `to`, piece by piece."""
    for into, rows in zip(to.split(CHUNK), vectors.split(CHUNK), strict=True):
        for i, v in enumerate(rows.T[:LEAD]):
            into[:, 0].add_(v, alpha=SECOND if i else 1.0)
    return to


def to_follow(found: Sharpness) -> Sharpness:
    """The same for a next estimate to start from: where its vectors are long, as one in bfloat16.

    >>> few = Sharpness(np.ones(1), np.zeros(1), np.zeros(1), 1, True, 1.0, torch.ones(3, 2))
    >>> to_follow(few) is few
    True
    """
    if len(found.vectors) <= WIDE:
        return found
    one = torch.zeros(len(found.vectors), 1, dtype=torch.bfloat16, device=found.vectors.device)
    return replace(found, vectors=_add_leading(one, found.vectors))


def _record(pairs: Pairs, k: int, tol: float, products: int) -> Sharpness:
    zero = (np.abs(pairs.values) + pairs.error <= tol**2 * pairs.norm) & (pairs.error > tol * np.abs(pairs.values))
    residual = np.maximum(pairs.residuals, np.minimum(pairs.error, 1e-13 * pairs.norm))
    residual = np.where(zero, np.abs(pairs.values) + residual, residual)
    values = np.where(zero, 0.0, pairs.values)
    return Sharpness(values, residual, pairs.error, products, bool(pairs.converged.all()), pairs.norm, pairs.vectors)


@dataclass(frozen=True)
class Trace:
    """tr H, its standard error over the samples, and the products that it took.

    >>> Trace(6.0, 0.5, 10).error
    0.5
    """

    value: float
    error: float
    products: int


def trace(closure: Any, params: Iterable[torch.Tensor], samples: int = 20, seed: int = 0) -> Trace:
    """tr H = E zᵀHz over z with entries ±1 (Hutchinson 1990); its error is 0 where H is diagonal.

    Raises ValueError for fewer than two samples, which have no error, and what `Hessian` refuses.

    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> trace(lambda: 3 * w[0] ** 2 - 4 * w[1] ** 2, [w], samples=2)
    Trace(value=-2.0, error=0.0, products=2)
    """
    if not (isinstance(samples, int) and samples >= 2):
        raise ValueError(f"trace: samples must be an integer of at least 2, not {samples!r}.")
    hessian = Hessian(closure, params, who="trace")  # type: ignore[arg-type]
    found = [float(z @ hessian(z)) for z in _signs(hessian, samples, seed)]
    return Trace(float(np.mean(found)), float(np.std(found, ddof=1) / math.sqrt(samples)), samples)


def _signs(hessian: Hessian, count: int, seed: int) -> Iterable[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        z = torch.randint(0, 2, (hessian.dim,), generator=generator)
        yield (2 * z - 1).to(hessian.device, hessian.dtype)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Quadratures for the spectral density of H, one a random vector: nodes and weights that sum to 1.

    >>> Spectrum(((0.0, 2.0),), ((0.75, 0.25),), 4, 2).moment(2)[0]  # tr H²/dim
    1.0
    """

    nodes: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    dim: int
    products: int

    def mean(self, function: Any) -> tuple[Any, Any]:
        """tr f(H)/dim and its standard error over the vectors, for f of an array of eigenvalues (…, nodes)."""
        rows = [np.asarray(function(np.array(t))) @ np.array(w) for t, w in zip(self.nodes, self.weights, strict=True)]
        spread = np.std(rows, axis=0, ddof=1) / math.sqrt(len(rows)) if len(rows) > 1 else np.full_like(rows[0], np.nan)
        return np.mean(rows, axis=0), spread

    def moment(self, power: int) -> tuple[float, float]:
        """tr H^power/dim, exact up to the quadrature's degree, and its standard error."""
        value, error = self.mean(lambda t: t**power)
        return float(value), float(error)

    def mass(self, low: float, high: float) -> tuple[float, float]:
        """The share of the eigenvalues in [low, high], and its standard error."""
        value, error = self.mean(lambda t: ((t >= low) & (t <= high)) * 1.0)
        return float(value), float(error)

    def density(self, grid: Any, width: float) -> tuple[np.ndarray, np.ndarray]:
        """The density at the points of `grid`, smoothed by a Gaussian of standard deviation `width`, and its error."""
        x = np.asarray(grid, dtype=float)[:, None]
        scale = width * math.sqrt(2 * math.pi)
        return self.mean(lambda t: np.exp(-(((x - t) / width) ** 2) / 2) / scale)


def spectrum(
    closure: Any, params: Iterable[torch.Tensor], steps: int = 30, samples: int = 5, seed: int = 0
) -> Spectrum:
    """Stochastic Lanczos quadrature: `steps` of Lanczos from each of `samples` random vectors (Ubaru et al. 2017).

    The lowest and highest nodes lie within the spectrum; the largest one of all is a lower bound of λ₁, no more: use
    `sharpness` for it. Raises ValueError for fewer than one step or sample, and what `Hessian` refuses.

    >>> w = torch.nn.Parameter(torch.zeros(4))
    >>> found = spectrum(lambda: w[0] ** 2, [w], steps=3)  # eigenvalues 2, 0, 0, 0
    >>> round(found.moment(1)[0], 6), round(found.mass(1.9, 2.1)[0], 6)
    (0.5, 0.25)
    """
    for name, number in (("steps", steps), ("samples", samples)):
        if not (isinstance(number, int) and number >= 1):
            raise ValueError(f"spectrum: {name} must be an integer of at least 1, not {number!r}.")
    hessian = Hessian(closure, params, who="spectrum")  # type: ignore[arg-type]
    rows = [tridiagonal(hessian, z, steps) for z in _signs(hessian, samples, seed)]
    nodes, weights = (tuple(tuple(map(float, getattr(r, of))) for r in rows) for of in ("nodes", "weights"))
    return Spectrum(nodes, weights, hessian.dim, int(hessian.products))


def by_layer(
    closure: Any, model: torch.nn.Module, tol: float = 1e-2, max_products: int = 100, seed: int = 0
) -> dict[str, Sharpness]:
    """λ₁ of each diagonal block of the Hessian: of each module's own parameters, by the module's name.

    None of them exceeds λ₁ of the whole.

    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
    >>> for p, value in zip(model.parameters(), (2.0, 3.0)):
    ...     _ = p.data.fill_(value)
    >>> found = by_layer(lambda: 0.5 * model(torch.ones(1, 1)).square().sum(), model)  # ½(uv)²
    >>> {name: layer.value.round(9).item() for name, layer in found.items()}  # v² and u²
    {'0': 9.0, '1': 4.0}
    """
    found, seen = {}, set()
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.requires_grad and id(p) not in seen]
        seen |= {id(p) for p in own}
        if own:
            found[name] = sharpness(closure, own, tol=tol, max_products=max_products, seed=seed)
    if not found:
        raise ValueError("by_layer: the model has no parameters that require gradients.")
    return found

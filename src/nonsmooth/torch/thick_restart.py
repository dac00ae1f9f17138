"""The largest eigenvalue of an operator on vectors so long that few of them have room: Lanczos with thick restarts.

Images are not kept: A qⱼ is what Lanczos makes of it, T's column j and the next vector, so that a subspace takes half
the room; and its vectors are in half precision, a quarter of what single precision with images takes. What is lost when
one is rounded is known, and with it a bound of what the equations A Q = Q T + … miss, some 1e-4 of ‖A‖ a restart: it is
added to the residuals. Where that alone keeps a pair from being good, one more product is with its Ritz vector as it
is held, and exact; if it is not good then, Lanczos goes on from there in single precision. Where even so few have no
room beside the graph of a product, they wait outside while it runs (`nonsmooth.torch.outside`). Source: Wu & Simon 2000
for the restart, with all coefficients computed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch

from nonsmooth.torch.lanczos import NEXT, STEPS, Pairs, good
from nonsmooth.torch.outside import InMemory, Store, outside

__all__ = ["Rows", "largest_of_long"]

Parts = Callable[[slice], torch.Tensor]
"""The entries of a vector in a place of it, made when they are asked for."""

LEAST = 4
"""So many vectors a subspace always has room for."""
ROOM = 1 << 26
"""The bytes that it may take beside a graph, unless told otherwise."""
OUTSIDE = 1 << 27
"""The bytes that it may take where it waits outside."""
LEAD = 3
"""So many Ritz vectors are returned, the leading ones."""
CHUNK = 1 << 16
"""So many entries at a time are turned into single precision."""
LARGE = 6e4
"""What half precision can hold."""
COARSE = 1e-2
"""Where a tolerance is below this, vectors are in single precision from the first."""


def largest_of_long(
    product: Callable[[Parts], torch.Tensor],
    starts: list[torch.Tensor],
    tol: float,
    max_products: int,
    generator: torch.Generator,
    trusted: bool = False,
    space: Callable[[], int] = lambda: ROOM,
    aside: bool = True,
) -> Pairs:
    """`largest` for one eigenvalue and one start, which is taken out of the list, in little room.

    `product` takes a function that makes the entries of a vector in a place of it. `space`, which is asked after the
    first product, says how many bytes a subspace may take beside a product; where four vectors in half precision are
    more, it waits outside of the device's memory, if it may (`aside`) and there is such a place, with OUTSIDE bytes or
    four vectors. The estimated error is 2 max(r, growth over three products), and the second pair must be known as in
    `largest`; from a start that is `trusted` it is max(r, growth over one product), with no gap, for one vector says
    little of the second value. The residual r is that of Lanczos and twice what rounding may have added, no less than
    ‖Av − θv‖ where ‖A‖ is what it is taken for; or it is exact. The vectors returned are of the leading pairs.

    >>> A, rng = torch.diag(torch.linspace(-3, 2, 50)), torch.Generator().manual_seed(0)
    >>> found = largest_of_long(lambda v: A @ v(slice(0, 50)), [torch.randn(50, generator=rng)], 1e-3, 60, rng)
    >>> found.values.round(3).tolist(), found.converged.tolist()
    ([2.0], [True])
    """
    start = starts.pop().reshape(-1)
    dim, room = len(start), 0
    if dim <= LEAST:
        raise ValueError(f"largest_of_long: vectors of {dim} entries are not long; use `largest`.")
    rows = Rows(start, torch.float16 if tol >= COARSE else start.dtype, aside)
    size = float(torch.linalg.vector_norm(start))
    if not 0 < size < math.inf:
        start, trusted = torch.randn(dim, generator=generator, dtype=start.dtype).to(start), False
        size = float(torch.linalg.vector_norm(start))
    rows.put(0, start / size)
    del start
    rounding, past = torch.finfo(rows.dtype).eps, list[float]()
    n, lead, products, norm, checks = 1, 1, 0, 0.0, False
    while True:
        w = product(partial(rows.row, n - 1))
        products += 1
        if not room:
            room = min(rows.stay(space()), dim - 1)
            keep, T, missed, coupled = max(2, room // 2), np.zeros((room, room)), np.zeros(room), np.zeros(0)
        T[:n, n - 1] = T[n - 1, :n] = found = rows.orthogonalise(w, n)
        if not np.isfinite(found).all():
            raise ValueError("largest_of_long: an eigenvalue is too large for single precision; divide the loss.")
        missed[: n - 1] += np.abs(found[:-1] - coupled)
        length = float(torch.linalg.vector_norm(w))
        theta, U = np.linalg.eigh(T[:n, :n])
        theta, U = theta[::-1].copy(), U[:, ::-1].copy()
        norm, r = max(norm, float(np.abs(theta).max())), length * np.abs(U[-1])
        told = r + 2 * missed[:n] @ np.abs(U)
        known = trusted or checks or norm == 0 or (n > 1 and r[1] <= NEXT * tol * abs(theta[0]))
        exact, error = (_error(theta[0], of[0], past, trusted, 4 * rounding * norm) for of in (r, told))
        near, done = (known and bool(good(theta[:1], e, tol, norm)[0]) for e in (exact, error))
        if done or products == max_products:
            del w
            V = rows.combined(np.eye(lead) if checks else U[:, :LEAD])
            V /= torch.linalg.vector_norm(V, dim=1, keepdim=True)
            return Pairs(theta[:1], told[:1], error, V.T, norm, products, np.array([done]))
        past.append(float(theta[0]))
        if near:  # what rounding may have added is all that is in the way: a product with the Ritz vector will tell
            del w
            rows.restart(U[:, :LEAD])
            lead = min(n, LEAD)
            n, missed[:], coupled, checks = 1, 0.0, np.zeros(0), True
            continue
        if checks:  # and it was
            rows.widen()
            checks = False
        edge = np.eye(n)[-1]
        if n == room:
            edge = U[-1, :keep]
            rounded = rows.restart(U[:, :keep])
            missed[:keep] = missed @ np.abs(U[:, :keep]) + (norm + np.abs(theta[:keep])) * rounded
            T[:keep, :keep], n = np.diag(theta[:keep]), keep
        if not length > 10 * rounding * norm:  # the subspace is invariant: a random direction goes on
            w, edge = torch.randn(dim, generator=generator, dtype=rows.dtype).to(w), 0 * edge
            rows.orthogonalise(w, n)
            length = float(torch.linalg.vector_norm(w))
        coupled = edge * length
        missed[:n] += np.abs(coupled) * rows.put(n, w.div_(length))
        missed[n] = 0.0
        del w
        n += 1


def _error(theta: float, r: float, past: list[float], trusted: bool, least: float) -> np.ndarray:
    back, factor = (1, 1) if trusted else (STEPS, 2)
    growth = theta - past[-back] if len(past) >= back else math.inf
    return np.array([max(factor * max(r, growth), least)])


class Rows:
    """Orthonormal vectors as rows, √dim times as long so that half precision holds their entries.

    `scales` makes what is held of each a unit vector again.

    >>> rows = Rows(torch.empty(3), torch.float16)
    >>> round(rows.put(0, torch.tensor([0.6, 0.8, 0.0])), 4)
    0.0001
    >>> w = torch.tensor([5.0, 0.0, 2.0])
    >>> rows.orthogonalise(w, 1).round(2), [round(float(a), 2) for a in w]
    (array([3.]), [3.2, -2.4, 2.0])
    """

    def __init__(self, like: torch.Tensor, kind: torch.dtype, aside: bool = True) -> None:
        self.dim, self.dtype, self.kind, self.device = len(like), like.dtype, kind, like.device
        self.scales, self.most = like.new_empty(0, dtype=torch.float64), max(LEAST, OUTSIDE // self._bytes)
        place = outside(self.dim, kind, self.device, self.most) if aside else None
        if place is None:
            self.most = LEAST
        self.held: Store = place or InMemory(self.dim, kind, self.device)

    @property
    def _bytes(self) -> int:
        return self.dim * self.kind.itemsize

    def stay(self, beside: int) -> int:
        """How many there may be: in the device's memory, if so many bytes of it are enough, or where they are."""
        room = beside // self._bytes
        if room < LEAST:
            return self.most
        self._move_in(len(self.scales))
        return room

    def _move_in(self, count: int, begun: int = 0) -> None:
        """Hold so many rows in the device's memory, and some more of which not all is written."""
        here = InMemory(self.dim, self.kind, self.device)
        for i in range(count + begun):
            for at in self._places():
                with contextlib.nullcontext() if i < count else contextlib.suppress(OSError):
                    here.write(i, at, self.held.read(i, at))
        self.held = here

    def put(self, i: int, q: torch.Tensor) -> float:
        """q in the place of row i; how far from q what is held lies."""
        return float(self._write(i, 1, ((at, q[None, at]) for at in self._places()))[0])

    def row(self, i: int, place: slice | None = None) -> torch.Tensor:
        """Row i, or its entries in a place."""
        first, end = (0, self.dim) if place is None else (place.start, place.stop)
        out = torch.empty(end - first, dtype=self.dtype, device=self.device)
        for at, Q in self._chunks(i, i + 1, first, end):
            torch.mul(Q[0], self.scales[i], out=out[at.start - first : at.stop - first])
        return out

    def combined(self, C: np.ndarray) -> torch.Tensor:
        """CᵀQ for the first rows Q, (columns of C, dim)."""
        L = self._weights(C)
        out = torch.empty(len(L), self.dim, dtype=self.dtype, device=self.device)
        for at, Q in self._chunks(0, L.shape[1]):
            torch.matmul(L, Q, out=out[:, at])
        return out

    def restart(self, K: np.ndarray) -> np.ndarray:
        """KᵀQ in the place of the first rows; how far from them what is held lies."""
        L = self._weights(K)
        return self._write(0, len(L), ((at, L @ Q) for at, Q in self._chunks(0, L.shape[1])))

    def orthogonalise(self, w: torch.Tensor, n: int) -> np.ndarray:
        """Take the first n rows out of w, twice and in place; the coefficients, in float64."""
        total, scales = np.zeros(n), self.scales[:n]
        for _ in range(2):
            c = torch.zeros_like(scales)
            for at, Q in self._chunks(0, n):
                c += (Q @ w[at]).double()
            c *= scales
            for at, Q in self._chunks(0, n):
                w[at] -= (c * scales).to(w.dtype) @ Q
            with np.errstate(invalid="ignore"):
                total += c.cpu().numpy()
        return total

    def widen(self) -> None:
        """Single precision from here on, with the first row alone."""
        first = self.row(0)
        self.kind, self.scales = self.dtype, self.scales[:0]
        self.held = self.held.like(self.kind)
        self.put(0, first)

    def _weights(self, C: np.ndarray) -> torch.Tensor:
        return (torch.as_tensor(C.T.copy(), device=self.device) * self.scales[: len(C)]).to(self.dtype)

    def _write(self, first: int, count: int, pieces: Iterable[tuple[slice, torch.Tensor]]) -> np.ndarray:
        """Rows in the place of others, piece by piece; what they lose of their length 1 when they are rounded."""
        there = len(self.scales)
        self.scales = torch.nn.functional.pad(self.scales, (0, max(0, first + count - there)))
        long, which = min(math.sqrt(self.dim), LARGE), slice(first, first + count)
        squares, lost = (torch.zeros_like(self.scales[which]) for _ in range(2))
        for at, new in pieces:
            for i in range(count):
                scaled = new[i] * long
                rounded = scaled.to(self.kind)
                try:
                    self.held.write(first + i, at, rounded)
                except OSError:  # the disk is full
                    self._move_in(there, max(0, first + count - there))
                    self.most = LEAST
                    self.held.write(first + i, at, rounded)
                held = rounded.double()
                squares[i] += held.square().sum()
                lost[i] += (held - scaled).square().sum()
        self.scales[which] = squares.rsqrt()
        return lost.sqrt().cpu().numpy() / long

    def _places(self, first: int = 0, end: int | None = None) -> Iterator[slice]:
        end = self.dim if end is None else end
        return (slice(a, min(a + CHUNK, end)) for a in range(first, end, CHUNK))

    def _chunks(self, low: int, high: int, *within: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows as they are held, so many entries at a time, in single precision."""
        for at in self._places(*within):
            yield at, torch.stack([self.held.read(i, at) for i in range(low, high)]).to(self.device, self.dtype)

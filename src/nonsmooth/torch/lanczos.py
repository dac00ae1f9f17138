"""The largest eigenvalues of a symmetric operator, from as few products as will do.

`largest`: Rayleigh and Ritz on a subspace that grows by residuals of Ritz pairs, all kept orthogonal. From a start that
is trusted it is the residual of the first pair that is not good enough; from a random block the residuals take turns,
and the pair after the last must be known as well, for one vector alone may hide an eigenvalue that is close by.
`guided`: the same with an operator beside it that is like the first and cheap, the Hessian on some of the data.
Where the subspace would outgrow `ROOM` it is restarted from its leading Ritz vectors, of now and of one product ago
(GD+k, Stathopoulos & Saad 1998), whose images are combinations of those at hand: no product is lost. Source: Saad 2011,
chapters 6 and 8; Parlett 1998, chapter 11 for the bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["guided", "largest", "tridiagonal"]

Product = Callable[[torch.Tensor], torch.Tensor]
STEPS, TRUSTED_STEPS = 3, 1
"""Over how many of the last products the growth of θ is looked at."""
NEXT = 2.0
"""From a random start the pair after the last one must be known too, to this many times tol: it might be larger."""
AGAIN = 0.5
"""A vector that loses more than this share of its length to orthogonalisation is orthogonalised again."""
BACK = 2
"""Over how many of the last products, guided ones, the growth of a value is looked at."""
FIRST = 3
"""The products with the draft, beside k, before the first one with the operator."""
SOLVED = 0.05
"""A Ritz pair of B with a residual of this share of its value is worth a product with A."""
MORE = 6
"""The most products with the draft between two with the operator, twice that where it has not converged."""
GUIDED_SETS = 4
"""The subspace, its images by the draft and by the operator, and residuals."""
ROOM = 1 << 26
"""The bytes that a subspace and its image may take; k + 3 vectors of each they always may."""
CHUNK = 1 << 20
"""Combinations of long vectors are formed in place, so many entries at a time."""


@dataclass(frozen=True)
class Pairs:
    """Ritz pairs, the largest first: values (k,), residuals ‖Av − θv‖ (k,), vectors (dim, k) and what was spent.

    `vectors` may hold further ones after the k, for a start; `error` estimates |θ − λ|, and `norm` ‖A‖ from below.
    """

    values: np.ndarray
    residuals: np.ndarray
    error: np.ndarray
    vectors: torch.Tensor
    norm: float
    products: int
    converged: np.ndarray


def largest(
    product: Product,
    start: torch.Tensor,
    k: int,
    tol: float,
    max_products: int,
    generator: torch.Generator,
    trusted: bool = False,
    extra: int = 2,
) -> Pairs:
    """The k largest eigenvalues, by value and not by modulus, from the columns of `start`.

    A pair is good when its estimated error is at most tol·|θ|, or when θ is 0 to within tol²·‖A‖. A small residual
    alone does not say that θ is the largest: a random start may hide an eigenvector close to the one that is found. So
    the error is 2 max(r, growth), with the growth of θ over the last three products; from a start that is `trusted` to
    hold the eigenvectors it is max(min(r, r²/gap), growth), with the growth over the last product. Where the subspace
    turns out invariant, a random vector goes on.

    >>> A, rng = torch.diag(torch.tensor([1.0, 3.0, -9.0], dtype=torch.float64)), torch.Generator().manual_seed(0)
    >>> pairs = largest(lambda v: A @ v, torch.randn(3, 1, generator=rng, dtype=torch.float64), 2, 1e-9, 3, rng)
    >>> pairs.values.round(6).tolist(), pairs.products
    ([3.0, 1.0], 3)
    """
    dim, rounding = len(start), torch.finfo(start.dtype).eps
    most = min(max_products, dim)
    room = min(max(_room(start, k), start.shape[1] + 1), most)
    extra = extra if room == most else min(extra, 1)
    Q, AQ, T = start.new_empty(room, dim), start.new_empty(room, dim), np.zeros((0, 0))
    waiting = list(start.T)
    del start
    n = products = 0
    past: list[np.ndarray] = []
    last = np.zeros((0, k))
    while True:
        while waiting or n < min(k, most):
            q = _orthogonal(waiting.pop(0), Q[:n]) if waiting else None
            q = _fresh(Q[:n], dim, generator) if q is None and not waiting and n < dim else q
            if q is None or n == room:
                continue
            Q[n] = q
            q = q if room == most else Q[n]  # of long ones no second copy
            w = product(q).to(Q.dtype)
            AQ[n] = w
            column = (Q[: n + 1] @ w).cpu().numpy().astype(float)
            row = (AQ[:n] @ q).cpu().numpy().astype(float)
            del q, w
            T = np.pad(T, (0, 1))
            T[-1, -1] = column[-1]
            T[-1, :-1] = T[:-1, -1] = (column[:-1] + row) / 2
            n, products = n + 1, products + 1
        theta, U = np.linalg.eigh(T)
        theta, U = theta[::-1], U[:, ::-1].copy()
        R = _residuals(Q[:n], AQ[:n], U[:, : k + extra], theta[: k + extra])
        r = torch.linalg.vector_norm(R, dim=1).cpu().numpy().astype(float)
        norm = float(np.abs(theta).max())
        error = np.maximum(_error(theta[: len(r)], r, past, trusted, n == dim), 4 * rounding * norm)
        past.append(theta[:k])
        done = good(theta[:k], error[:k], tol, norm)
        next_known = trusted or len(r) <= k or r[k] <= NEXT * tol * abs(theta[0]) or n == dim or norm == 0
        if (done.all() and len(done) == k and next_known) or n == dim or products >= max_products:
            break
        worst = int(np.argmin(done)) if not done.all() else min(k, len(r) - 1)
        if not trusted:  # in turn, so that a block keeps its width and sees what one vector would hide
            worst = len(past) % min(k + 1, len(r))
        onward = None if r[worst] <= 10 * rounding * norm else R[worst].clone()
        del R
        if n == room:
            K = _thick(U, last, k, room)
            _combine(Q, K)
            _combine(AQ, K)
            T, n = K.T @ T @ K, K.shape[1]
            U = np.eye(n)
        last = U[:, :k]
        waiting = [_fresh(Q[:n], dim, generator) if onward is None else onward]
        del onward
    del R
    V = _like(U[:, : k + extra], Q).T @ Q[:n]
    del Q, AQ
    return Pairs(theta[:k].copy(), r[:k], error[:k], V.T.contiguous(), norm, products, done)


def _room(start: torch.Tensor, k: int, sets: int = 2) -> int:
    """How many vectors as long as `start` there is room for in each of so many sets."""
    return max(k + 3, ROOM // (sets * len(start) * start.element_size()))


def _like(U: np.ndarray, Q: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(U, dtype=Q.dtype, device=Q.device)


def _residuals(Q: torch.Tensor, AQ: torch.Tensor, U: np.ndarray, theta: np.ndarray) -> torch.Tensor:
    """The rows Av − θv for the Ritz vectors v with coordinates U."""
    L, values = _like(U, Q), _like(theta.copy(), Q)[:, None]
    R = L.T @ AQ
    for i in range(0, R.shape[1], CHUNK):
        R[:, i : i + CHUNK] -= values * (L.T @ Q[:, i : i + CHUNK])
    return R


def _thick(U: np.ndarray, last: np.ndarray, k: int, room: int) -> np.ndarray:
    """Orthonormal coordinates of what a restart keeps: k + 1 Ritz vectors, and what the last ones add to their span."""
    kept = U[:, : k + 1]
    more = np.pad(last, ((0, len(U) - len(last)), (0, 0)))[:, : room - k - 2]
    for _ in range(2):
        more = more - kept @ (kept.T @ more)
    W, sizes, _ = np.linalg.svd(more, full_matrices=False)
    return np.hstack([kept, W[:, sizes > np.sqrt(np.finfo(float).eps)]])


def _combine(Q: torch.Tensor, K: np.ndarray) -> None:
    """KᵀQ in the place of the first rows of Q."""
    L = _like(K, Q)
    for i in range(0, Q.shape[1], CHUNK):
        Q[: L.shape[1], i : i + CHUNK] = L.T @ Q[: len(L), i : i + CHUNK]


def _error(theta: np.ndarray, r: np.ndarray, past: list[np.ndarray], trusted: bool, whole: bool) -> np.ndarray:
    if whole:
        return r
    back = TRUSTED_STEPS if trusted else STEPS
    growth = np.full(len(r), np.inf)
    if len(past) >= back:
        before = past[-back]
        growth[: len(before)] = theta[: len(before)] - before[: len(theta)]
    return np.maximum(errors(theta, r), growth) if trusted else 2 * np.maximum(r, growth)


def errors(theta: np.ndarray, r: np.ndarray) -> np.ndarray:
    """An estimate of |θ − λ| for each Ritz pair, the largest first: min(r, r²/gap).

    >>> errors(np.array([2.0, 1.0, 0.0]), np.array([0.1, 0.0, 0.0])).round(4).tolist()
    [0.01, 0.0, 0.0]
    """
    error = r.copy()
    for i in range(len(r) - 2, -1, -1):
        gap = theta[i] - (theta[i + 1] + error[i + 1])
        if gap > r[i]:
            error[i] = r[i] ** 2 / gap
    return error


def good(theta: np.ndarray, error: np.ndarray, tol: float, norm: float) -> np.ndarray:
    """Whether each value is known to tol, or is 0 to within tol²·‖A‖.

    >>> good(np.array([1.0, 1e-5, -0.5]), np.array([0.001, 1e-5, 0.4]), 0.01, 1.0).tolist()
    [True, True, False]
    """
    return (error <= tol * np.abs(theta)) | (np.abs(theta) + error <= tol**2 * norm) | (norm == 0)


def guided(
    product: Product,
    draft: Product,
    start: torch.Tensor,
    k: int,
    tol: float,
    max_products: int,
    generator: torch.Generator,
) -> tuple[Pairs, int]:
    """The k largest eigenvalues of A with the help of a cheap D that resembles it; and the products with D.

    A is known on the rows of Q, from products; elsewhere it is taken to be D: B = A − (1 − QᵀQ)(A − D)(1 − QᵀQ). The
    subspace W grows by products with D along residuals of Ritz pairs of B, until those are `SOLVED`; then a product
    with A goes to where a Ritz vector leaves the span of Q most, Q staying within W. A value is B's; its residual is
    that of the Ritz vector within Q with this value, so it is true of A whatever D is. Its error is max(residual,
    change over the last two products), for D may hide an eigenvector.
    Source: generalised Davidson, Morgan & Scott 1986, with B in the place of their preconditioner.

    >>> A, rng = torch.diag(torch.tensor([1.0, 3.0, -9.0], dtype=torch.float64)), torch.Generator().manual_seed(0)
    >>> pairs, _ = guided(lambda v: A @ v, lambda v: 0.9 * A @ v, torch.ones(3, dtype=torch.float64), 1, 1e-9, 3, rng)
    >>> pairs.values.round(6).tolist(), pairs.products
    ([3.0], 3)
    """
    dim, rounding = len(start), torch.finfo(start.dtype).eps
    most = min(max_products, dim)
    room = min(max(2 * k + 4, _room(start, k, GUIDED_SETS)), most)
    span = Span(draft, generator, start.new_empty(min(room + k + 1 + MORE, dim), dim), start.new_empty(room, dim))
    span.widen(start)
    for _ in range(FIRST + k - 1):
        span.widen(span.DW[span.S.shape[0] - 1])
    past: list[np.ndarray] = [np.full(k, np.inf)] * BACK
    last, products = np.zeros((0, k)), 0
    span.improve(k, tol)
    while True:
        span.know(product, k)
        products += 1
        span.improve(k, tol)
        theta, _ = span.pairs()
        norm, n = float(np.abs(theta).max()), len(span.X)
        if n >= k:
            within, K = np.linalg.eigh((span.G @ span.X.T + span.X @ span.G.T) / 2)
            within, K = within[::-1][: k + 2], K[:, ::-1][:, : k + 2].copy()
            V = _like(K, span.W).T @ span.AQ[:n]
            Z = _like(span.X.T @ K, span.W).T @ span.W[: span.X.shape[1]]
            V -= _like(within.copy(), V)[:, None] * Z
            r = torch.linalg.vector_norm(V, dim=1).cpu().numpy().astype(float)
            values = theta[:k]
            residuals = np.hypot(r[:k], values - within[:k])
            error = np.maximum(np.maximum(np.abs(values - past[-BACK]), residuals), 4 * rounding * norm)
            done = good(values, error, tol, norm)
            if done.all() or n == dim or products >= max_products:
                return Pairs(values.copy(), residuals, error, Z.T.contiguous(), norm, products, done), span.drafted
            del V, Z
            if n == room:
                span.forget(_thick(K, last, k, room))
                K = np.eye(len(span.X))
            last = K[:, :k]
            span.improve(k, tol, 1)
        past.append(np.pad(theta[:k], (0, max(0, k - len(theta))), constant_values=np.inf))


@dataclass
class Span:
    """The orthonormal rows W and D's images of them; Q = XW and A's images of that, in the first rows of each.

    S = W D Wᵀ, G = Q A Wᵀ, and `gram` is that of all images, of W and then of Q, so that what is small stays small:
    long vectors are touched only where there is a new one.

    >>> span = Span(lambda v: 2 * v, torch.Generator(), torch.empty(3, 3), torch.empty(2, 3))
    >>> span.widen(torch.tensor([3.0, 0.0, 0.0]))
    >>> span.know(lambda v: 5 * v, 1)
    >>> span.S.tolist(), span.pairs()[0].tolist()
    ([[2.0]], [5.0])
    """

    draft: Product
    generator: torch.Generator
    W: torch.Tensor
    AQ: torch.Tensor
    drafted: int = 0

    def __post_init__(self) -> None:
        self.DW = torch.empty_like(self.W)
        self.S = self.X = self.G = self.gram = np.zeros((0, 0))

    def widen(self, v: torch.Tensor | None) -> None:
        """Another row of W: v less what is in W, or a random one where nothing is left of it; none if W is whole."""
        n, m = self.X.shape
        if m == self.W.shape[1]:
            return
        w = None if v is None else _orthogonal(v, self.W[:m])
        w = _fresh(self.W[:m], self.W.shape[1], self.generator) if w is None else w
        self.W[m], self.DW[m] = w, self.draft(w).to(w.dtype)
        self.drafted += 1
        self.S = np.pad(self.S, (0, 1))
        self.S[m] = self.S[:, m] = _small(self.W[: m + 1] @ self.DW[m])
        self.X = np.pad(self.X, ((0, 0), (0, 1)))
        self.G = np.column_stack([self.G, _small(self.AQ[:n] @ w)])
        self._image(self.DW[m], m)

    def _image(self, v: torch.Tensor, at: int) -> None:
        """Another row of `gram`, of an image that is in its place already."""
        n, m = self.X.shape
        row = np.concatenate([_small(self.DW[:m] @ v), _small(self.AQ[:n] @ v)])
        self.gram = np.insert(np.insert(self.gram, at, 0, axis=0), at, 0, axis=1)
        self.gram[at] = self.gram[:, at] = row

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The Ritz values of B, the largest first, and the coordinates of the vectors in W."""
        M = self.X.T @ (self.G - self.X @ self.S)
        B = self.S + M + M.T - M @ self.X.T @ self.X
        theta, U = np.linalg.eigh((B + B.T) / 2)
        return theta[::-1], U[:, ::-1]

    def improve(self, k: int, tol: float, least: int = 0) -> None:
        """Widen W by residuals of the k leading pairs of B, the worst first, until they are solved; `least` times."""
        for done in range(MORE):
            m = self.X.shape[1]
            if m == self.W.shape[1]:
                return
            if m == len(self.W):
                self._narrow(k)
                m = self.X.shape[1]
            theta, U = self.pairs()
            inside = self.X @ U[:, :k]
            beyond = U[:, :k] - self.X.T @ inside
            back = self.S @ beyond + self.G.T @ inside
            images = np.vstack([beyond, inside])
            r = np.sqrt(np.maximum((images * (self.gram @ images)).sum(axis=0) - (back**2).sum(axis=0), 0))
            share = r / np.maximum(np.maximum(np.abs(theta[:k]), tol * np.abs(theta).max()), np.finfo(float).tiny)
            worst = int(np.argmax(share))
            if done >= least and share[worst] <= SOLVED:
                return
            b, i, w = (_like(C[:, worst], self.W) for C in (beyond, inside, back))
            self.widen(b @ self.DW[:m] + i @ self.AQ[: len(inside)] - w @ self.W[:m])

    def know(self, product: Product, k: int) -> None:
        """Another row of Q, and its product with A: of the k leading Ritz vectors where one leaves Q most."""
        if len(self.X) == self.X.shape[1]:
            self.widen(None)
        theta, U = self.pairs()
        beyond = U[:, :k] - self.X.T @ (self.X @ U[:, :k])
        x = beyond[:, int(np.argmax(np.abs(theta[:k]) * (beyond**2).sum(axis=0)))]
        if not np.linalg.norm(x) > 1e3 * torch.finfo(self.W.dtype).eps:
            outside = np.eye(len(U)) - self.X.T @ self.X
            x = outside[:, int(np.argmax(np.diag(outside)))]
        for _ in range(2):
            x = x - self.X.T @ (self.X @ x)
            x = x / np.linalg.norm(x)
        n, m = self.X.shape
        self.AQ[n] = product(_like(x, self.W) @ self.W[:m]).to(self.W.dtype)
        self.X = np.vstack([self.X, x])
        self.G = np.vstack([self.G, _small(self.W[:m] @ self.AQ[n])])
        self._image(self.AQ[n], m + n)

    def forget(self, K: np.ndarray) -> None:
        """Of Q only the combinations K."""
        _combine(self.AQ, K)
        self._mixed(np.eye(self.X.shape[1]), K)
        self.X, self.G = K.T @ self.X, K.T @ self.G

    def _mixed(self, K: np.ndarray, L: np.ndarray) -> None:
        """Of the images only the combinations K of those of W and L of those of Q."""
        both = np.block([[K, np.zeros((len(K), L.shape[1]))], [np.zeros((len(L), K.shape[1])), L]])
        self.gram = both.T @ self.gram @ both

    def _narrow(self, k: int) -> None:
        """Of W only Q and the k + 1 leading Ritz vectors."""
        K = np.linalg.qr(np.hstack([self.X.T, self.pairs()[1][:, : k + 1]]))[0]
        for rows in (self.W, self.DW):
            _combine(rows, K)
        self._mixed(K, np.eye(len(self.X)))
        self.S, self.X, self.G = K.T @ self.S @ K, self.X @ K, self.G @ K


def _small(t: torch.Tensor) -> np.ndarray:
    return t.cpu().numpy().astype(float)


def _orthogonal(v: torch.Tensor, Q: torch.Tensor) -> torch.Tensor | None:
    """v less its part in the rows of Q, of length 1; None where nothing is left."""
    length = float(torch.linalg.vector_norm(v))
    if not length > 0:
        return None
    v = v / length
    for _ in range(3):
        v -= Q.T @ (Q @ v)
        left = float(torch.linalg.vector_norm(v))
        if left <= 1e3 * torch.finfo(v.dtype).eps:
            return None
        v /= left
        if left > AGAIN:
            break
    return v


def _fresh(Q: torch.Tensor, dim: int, generator: torch.Generator) -> torch.Tensor:
    """A random direction orthogonal to the rows of Q."""
    while True:
        q = _orthogonal(torch.randn(dim, generator=generator, dtype=Q.dtype).to(Q), Q)
        if q is not None:
            return q


@dataclass(frozen=True)
class Tridiagonal:
    """m steps of Lanczos from one vector: the quadrature nodes θ (m,) and weights (m,) of its spectral measure."""

    nodes: np.ndarray
    weights: np.ndarray


def tridiagonal(product: Product, start: torch.Tensor, steps: int) -> Tridiagonal:
    """Gauss quadrature for the spectral measure of a unit vector: ∫ p dμ = Σ weight p(node) for deg p < 2m.

    >>> A = torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))
    >>> found = tridiagonal(lambda v: A @ v, torch.ones(2, dtype=torch.float64), 2)
    >>> found.nodes.round(6).tolist(), found.weights.round(6).tolist()
    ([1.0, 3.0], [0.5, 0.5])
    """
    q = _orthogonal(start, start.new_empty(0, len(start)))
    room = start.new_empty(min(steps, len(start)), len(start))
    alphas, betas = list[float](), list[float]()
    while q is not None:
        room[len(alphas)] = q
        w = product(q).to(start.dtype)
        alphas.append(float(q @ w))
        Q = room[: len(alphas)]
        rest = w - Q.T @ (Q @ w)
        rest -= Q.T @ (Q @ rest)
        beta = float(torch.linalg.vector_norm(rest))
        scale = max(map(abs, (*alphas, *betas)))
        if len(Q) == len(room) or beta <= 100 * torch.finfo(start.dtype).eps * scale:
            break
        betas.append(beta)
        q = rest / beta
    theta, U = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
    return Tridiagonal(theta, U[0] ** 2)

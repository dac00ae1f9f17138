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
GUIDED_SETS = 6
"""Known and drafted vectors, their images, and the first two in one."""
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

    A is known on the rows of Q, from products; elsewhere it is taken to be D: B = A − (1 − QᵀQ)(A − D)(1 − QᵀQ). From
    `start`, products go to where an eigenvector of B leaves the span of Q most, the Ritz pairs of B being improved
    by products with D. A value is B's; its residual is that of the Ritz vector within Q with this value, so it is true
    of A whatever D is. Its error is max(residual, change over the last two products), for D may hide an eigenvector.
    Source: generalised Davidson, Morgan & Scott 1986, with B in the place of their preconditioner.

    >>> A, rng = torch.diag(torch.tensor([1.0, 3.0, -9.0], dtype=torch.float64)), torch.Generator().manual_seed(0)
    >>> pairs, _ = guided(lambda v: A @ v, lambda v: 0.9 * A @ v, torch.ones(3, dtype=torch.float64), 1, 1e-9, 3, rng)
    >>> pairs.values.round(6).tolist(), pairs.products
    ([3.0], 3)
    """
    dim, rounding = len(start), torch.finfo(start.dtype).eps
    most = min(max_products, dim)
    room = min(max(2 * k + 4, _room(start, k, GUIDED_SETS)), most)
    Q = AQ = C = DC = start.new_empty(0, dim)
    drafted = products = 0
    last = np.zeros((0, k))

    def widen(v: torch.Tensor) -> None:
        """Another row of C: v less what is in Q and C, or a random one where nothing is left of it."""
        nonlocal C, DC, drafted
        known = torch.cat([Q, C])
        if len(known) < dim:
            c = _orthogonal(v, known)
            c = _fresh(known, dim, generator) if c is None else c
            C, DC = torch.cat([C, c[None]]), torch.cat([DC, draft(c).to(start.dtype)[None]])
            drafted += 1

    def pairs_of_draft() -> tuple[np.ndarray, torch.Tensor]:
        across = torch.cat([AQ @ Q.T, AQ @ C.T], 1)
        S = torch.cat([across, torch.cat([across[:, len(Q) :].T, DC @ C.T], 1)])
        theta, U = torch.linalg.eigh((S + S.T) / 2)
        return theta.flip(0).cpu().numpy().astype(float), U.flip(1)

    def image(u: torch.Tensor) -> torch.Tensor:
        """B x for x = Σ uᵢ (Q, C)ᵢ."""
        a, c = u[: len(Q)], u[len(Q) :]
        outside = c @ DC
        return a @ AQ + outside + ((AQ @ (c @ C)) - Q @ outside) @ Q

    widen(start)
    for _ in range(FIRST + k - 1):
        widen(DC[-1])
    past: list[np.ndarray] = [np.full(k, np.inf)] * BACK
    u = torch.zeros(len(C), dtype=start.dtype, device=start.device)
    u[0] = 1.0
    while True:
        c = u / torch.linalg.vector_norm(u)
        q = _orthogonal(c @ C, Q)
        q = _fresh(Q, dim, generator) if q is None else q
        turn = torch.linalg.qr(torch.cat([c[:, None], torch.eye(len(c)).to(c)], 1))[0][:, 1:].T
        C, DC = turn @ C, turn @ DC
        Q, AQ = torch.cat([Q, q[None]]), torch.cat([AQ, product(q).to(start.dtype)[None]])
        products += 1
        for i in range(min(2, k)):
            theta, U = pairs_of_draft()
            i = (len(Q) + i) % min(k, len(theta))
            widen(image(U[:, i]) - float(theta[i]) * (U[:, i] @ torch.cat([Q, C])))
        theta, U = pairs_of_draft()
        norm = float(np.abs(theta).max())
        if len(Q) >= k:
            within, W = torch.linalg.eigh((AQ @ Q.T + Q @ AQ.T) / 2)
            W = W.flip(1)[:, : k + 2].T
            within = within.flip(0).cpu().numpy().astype(float)[: len(W)]
            values = theta[:k]
            V = W @ Q
            r = torch.linalg.vector_norm(W @ AQ - torch.as_tensor(within).to(V)[:, None] * V, dim=1)
            residuals = np.hypot(r.cpu().numpy().astype(float)[:k], values - within[:k])
            error = np.maximum(np.maximum(np.abs(values - past[-BACK]), residuals), 4 * rounding * norm)
            done = good(values, error, tol, norm)
            if done.all() or len(Q) == dim or products >= max_products:
                return Pairs(values.copy(), residuals, error, V.T.contiguous(), norm, products, done), drafted
            del V
        past.append(np.pad(theta[:k], (0, max(0, k - len(theta))), constant_values=np.inf))
        outside = torch.linalg.vector_norm(U[len(Q) :, :k], dim=0).cpu().numpy().astype(float)
        u = U[len(Q) :, int(np.argmax(np.abs(theta[: len(outside)]) * outside**2))]
        if not float(torch.linalg.vector_norm(u)) > 1e3 * rounding:
            u = torch.eye(len(C)).to(C)[-1]
        if room < most and len(C) > room:  # what leads outside of Q, u first
            L = torch.linalg.qr(torch.cat([u[:, None], U[len(Q) :, : k + 1]], 1))[0].T
            C, DC, u = L @ C, L @ DC, L @ u
        if room < most and len(Q) >= k:
            ritz = W.T.cpu().numpy().astype(float)
            if len(Q) == room:
                K = _like(_thick(ritz, last, k, room), Q)
                Q, AQ, ritz = K.T @ Q, K.T @ AQ, np.eye(K.shape[1])
            last = ritz[:, :k]


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

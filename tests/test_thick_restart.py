"""Sharpness of long parameter vectors: the same values in little room, and how little it is."""

from __future__ import annotations

import errno
import gc
import shutil
import tempfile
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from alive import long_storages
from nonsmooth.torch import curvature, hessian, thick_restart
from nonsmooth.torch.curvature import sharpness, to_follow
from nonsmooth.torch.hessian import Hessian
from nonsmooth.torch.outside import InFile
from nonsmooth.torch.parts import Batches, over
from nonsmooth.torch.probes import Probes
from nonsmooth.torch.ranks import mean_over_ranks
from nonsmooth.torch.stability import stability
from nonsmooth.torch.thick_restart import Rows, largest_of_long
from test_curvature import SPECTRA, X, Y, net, operator, overtaken, true_and_converged

ALL = slice(0, 120)
OFF = 3e-5
"""Of ‖A‖: vectors of 120 entries are less orthogonal when they are rounded than long ones."""


@pytest.fixture
def long(monkeypatch):
    """Vectors of over ten entries are long, and there is room for the fewest, in a file."""
    for module in (hessian, curvature):
        monkeypatch.setattr(module, "WIDE", 10)
    monkeypatch.setattr(curvature, "ROOM", 0)
    monkeypatch.setattr(thick_restart, "OUTSIDE", 0)


def found_in(name, seed, *, tol=2e-2, trusted=False, most=400):
    A, start = operator(SPECTRA[name], seed, torch.float32)
    if trusted:
        V = torch.linalg.eigh(A)[1].flip(1)[:, :2] + 0.02 * start[:, :2]
        start = curvature._in_one(V, start[:, 2:3].clone())
    rng = torch.Generator().manual_seed(seed)
    return A, largest_of_long(lambda v: A @ v(ALL), [start[:, 0].clone()], tol, most, rng, trusted)


def told_too_small(A, found):
    """By how much the residual of what is returned exceeds what is told, in ‖A‖."""
    v = found.vectors[:, 0].double()
    assert float(torch.linalg.vector_norm(v)) == pytest.approx(1, abs=1e-6)
    return float(torch.linalg.vector_norm(A.double() @ v - found.values[0] * v) - found.residuals[0]) / found.norm


def rooms(monkeypatch, room, there):
    """Bytes beside the graph, and outside: None where there is no such place."""
    monkeypatch.setattr(thick_restart, "ROOM", room)
    monkeypatch.setattr(thick_restart, "OUTSIDE", there or 0)
    if there is None:
        monkeypatch.setattr(thick_restart, "outside", lambda *_: None)


@pytest.mark.parametrize(("room", "there"), [(0, None), (1 << 14, None), (0, 0)])  # for 4 vectors or 68
@pytest.mark.parametrize("tol", [2e-2, 1e-3])  # in half precision, and in single
@pytest.mark.parametrize("name", SPECTRA)
def test_values_of_known_spectra(monkeypatch, name, tol, room, there):
    """Within the residual of an eigenvalue, within tol of the largest where converged, never of another sign."""
    rooms(monkeypatch, room, there)
    values, converged = np.array(SPECTRA[name]), 0
    for seed in range(4):
        for trusted in (False, True):
            A, found = found_in(name, seed, tol=tol, trusted=trusted)
            assert told_too_small(A, found) < OFF
            assert abs(values - found.values[0]).min() <= found.residuals[0] + OFF * found.norm
            converged += bool(found.converged[0])
            if found.converged[0]:
                assert abs(found.values[0] - values.max()) <= max(tol * abs(values.max()), tol**2 * found.norm)
                assert found.values[0] * values.max() > 0 or abs(found.values[0]) <= tol**2 * found.norm
            else:
                assert found.products == 400 and "negative" in name and not trusted
    assert converged >= 4


def test_where_half_precision_is_too_coarse_vectors_are_in_single(monkeypatch):
    """An eigenvalue of 2e-4 of the norm, which rounding covers; the mutant that stays in half precision is seen."""
    monkeypatch.setattr(thick_restart, "ROOM", 1 << 14)
    monkeypatch.setitem(SPECTRA, "tiny", [0.01, *np.linspace(-50, -0.2, 119)])
    found = found_in("tiny", 0, tol=1e-2, most=150)[1]
    assert found.converged[0] and found.values[0] == pytest.approx(0.01, rel=1e-2)
    monkeypatch.setattr(Rows, "widen", lambda rows: None)
    assert not found_in("tiny", 0, tol=1e-2, most=150)[1].converged[0]


def test_mutants_are_seen(monkeypatch):
    """A subspace that stays as it was at a restart; a matrix T that stays tridiagonal after it.

    That T and Q do not fit is then seen, and a product tells the residual: all that is lost is products.
    """

    def forgets(rows, K):
        return np.zeros(K.shape[1])

    take_out = Rows.orthogonalise

    def as_without_restarts(rows, w, n):
        c = take_out(rows, w, n)
        c[: n - 2] = 0
        return c

    rooms(monkeypatch, 0, 0)
    spent = sum(found_in("a clustered top", seed)[1].products for seed in range(4))
    for name, mutant in (("restart", forgets), ("orthogonalise", as_without_restarts)):
        with monkeypatch.context() as patched:
            patched.setattr(Rows, name, mutant)
            runs = [found_in("a clustered top", seed) for seed in range(4)]
            assert max(told_too_small(*run) for run in runs) < OFF
            assert sum(found.products for _, found in runs) > 1.5 * spent


def test_what_rounding_adds_is_told():
    """Without it the residual that is told would be too small, by more than what the bound leaves."""
    A, start = operator(SPECTRA["one far away"], 1, torch.float32)
    rows = Rows(start[:, 0], torch.float16)
    q = start[:, 0] / torch.linalg.vector_norm(start[:, 0])
    lost = rows.put(0, q)
    assert lost == pytest.approx(float(torch.linalg.vector_norm(rows.row(0) - q)), rel=0.1) and 1e-5 < lost < 5e-4
    assert float(torch.linalg.vector_norm(rows.row(0).double())) == pytest.approx(1, abs=1e-7)
    K = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 2)))[0]
    for i in range(1, 3):
        w = A @ rows.row(i - 1)
        rows.orthogonalise(w, i)
        rows.put(i, w / torch.linalg.vector_norm(w))
    mixed = rows.combined(K)
    lost = rows.restart(K)
    assert lost == pytest.approx([float(torch.linalg.vector_norm(rows.row(i) - mixed[i])) for i in range(2)], rel=0.1)


# --- of a Hessian ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_against_the_dense_hessian(long, seed):
    """The loss, its negative, or a mixture of both signs; from a random start, and from the last result in bfloat16."""
    model, sign = net(seed), (1, -1, 0.3)[seed % 3]
    params = list(model.parameters())
    loss = lambda: sign * cross_entropy(model(X), Y) - (sign == 0.3) * model(X).square().mean()  # noqa: E731
    H = torch.stack([Hessian(loss, params)(e) for e in torch.eye(66)]).double()
    H = (H + H.T) / 2
    first = sharpness(loss, params, max_products=400)
    true_and_close(first, H)
    start = to_follow(first)
    assert start.vectors.shape == (66, 1) and start.vectors.dtype == torch.bfloat16
    again = sharpness(loss, params, start=start, max_products=400)
    true_and_close(again, H)
    assert again.products <= first.products


def true_and_close(found, H):
    found.residual[:] += OFF * found.norm
    true_and_converged(found, H)


def test_products_are_those_of_short_vectors(monkeypatch):
    """With P, c and v given as numbers, tensors and functions; with graphs that are kept and that are not."""
    model = net(3)
    params = list(model.parameters())
    loss = lambda: cross_entropy(model(X), Y)  # noqa: E731
    P = [torch.rand_like(p) + 0.1 for p in params[:3]] + [2.0]
    c = [0.1, torch.rand_like(params[1]), 0.0, 0.3]
    v = torch.randn(66, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    short = Hessian(loss, params, P, c)(v)
    monkeypatch.setattr(hessian, "WIDE", 10)
    for much, kept in ((0, True), (10**9, False)):
        monkeypatch.setattr(hessian, "MUCH", much)
        lazy = [lambda a=a: a for a in P], [lambda a=a: a for a in c]
        for given in ((P, c), lazy):
            H = Hessian(loss, params, *given)
            for product in (H(v), H(lambda at: v[at].float())):
                assert torch.allclose(product.double(), short, rtol=1e-5, atol=1e-6) and product.dtype == torch.float32
            assert H.keep is kept and bool(H.kept) is kept
    assert torch.equal(v, torch.randn(66, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def test_a_second_eigenvector_that_overtakes_is_seen():
    """As with a block; a start from the first alone misses it, and so do many mixtures with little of the second."""

    def missed(second: float) -> int:
        count = 0
        for seed in range(60):
            A, old, rng = overtaken(seed)
            start = (old[:, 0] + second * old[:, 1])[:, None].bfloat16()
            start = curvature._in_one(start, torch.randn(60, 1, generator=rng))
            found = largest_of_long(lambda v, A=A.float(): A @ v(slice(0, 60)), [start], 0.01, 60, rng, trusted=True)
            count += bool(found.converged.all()) and abs(found.values[0] - 1) > 0.01
        return count

    assert missed(curvature.SECOND) <= 2
    assert missed(0.0) > 10  # where the test would reject it


@pytest.mark.parametrize("wide", [10, 1 << 20])
def test_a_third_eigenvector_that_overtakes_is_found(monkeypatch, wide):
    """As a Monitor follows it: short vectors lag behind by a probe or two as well."""
    for module in (hessian, curvature):
        monkeypatch.setattr(module, "WIDE", wide)
    U = torch.linalg.qr(torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)))[0]
    w, last, late = torch.nn.Parameter(torch.zeros(2000)), None, 0
    for t in range(20):
        values = torch.tensor([1.0, 0.5 + 0.1 * t, 0.3 + 0.13 * t, 0.2])
        found = sharpness(lambda v=values: 0.5 * (v * (U.T @ w) ** 2).sum(), [w], tol=0.02, start=last)
        last = to_follow(found)
        late += found.value[0] < 0.98 * float(values.max())
    assert found.converged and late <= 2


@pytest.mark.parametrize("wide", [10, 1 << 20])
def test_a_start_whose_curvature_has_gone_is_left(monkeypatch, wide):
    """As of weights that Adam divided by next to nothing; the mutant that believes it calls the sharpness 0."""
    for module in (hessian, curvature):
        monkeypatch.setattr(module, "WIDE", wide)
    w = torch.nn.Parameter(torch.zeros(20_000))
    first = replace(sharpness(lambda: 1e6 * w[0] ** 2, [w]), vectors=torch.eye(20_000, 1))

    def then(**options):
        loss = lambda: 5e4 * w[1] ** 2 - 1e6 * w[2:202].square().sum()  # noqa: E731
        return sharpness(loss, [w], start=first, tol=0.02, **options)

    found = then()
    assert found.converged and found.value[0] == pytest.approx(1e5, rel=1e-2) and found.products < 40
    assert not then(max_products=2).converged
    monkeypatch.setattr(curvature, "FELL", 0.0)
    assert then().converged and then().value[0] == 0


def test_a_hessian_of_any_size(long):
    """Where the subspace is invariant, too; and one that single precision cannot hold."""
    w = torch.nn.Parameter(torch.zeros(40))
    for scale in (1e-20, 1.0, 1e20):
        found = sharpness(lambda s=scale: 0.5 * s * w[0] ** 2, [w])
        assert found.converged and found.value[0] == pytest.approx(scale, rel=1e-3)
    with pytest.raises(ValueError, match="too large for single precision"):
        sharpness(lambda: 1e38 * w.square().sum(), [w])


def test_the_last_part_of_a_vector_is_let_go_of(long):
    """One parameter: nothing as long as it is held when the first derivative is walked; were it, another would be."""
    w = torch.nn.Parameter(torch.randn(50_000))

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x**2).sum()

        @staticmethod
        def backward(ctx, g):
            return Slope.apply(ctx.saved_tensors[0], g)

    class Slope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, g):
            return 2 * g * x

        @staticmethod
        def backward(ctx, v):
            held.append(len(long_storages(50_000)) - known)
            return 2 * v, None

    H, held = Hessian(lambda: Square.apply(w), [w]), list[int]()
    v = torch.ones(50_000)
    known = len(long_storages(50_000))
    assert H(lambda at: v[at].clone()).eq(2).all() and not H.keep
    assert held == [1]  # what the engine walks with


@pytest.mark.parametrize("wide", [10, 1 << 20])
def test_a_vector_of_another_length_is_refused(monkeypatch, wide):
    monkeypatch.setattr(hessian, "WIDE", wide)
    w = torch.nn.Parameter(torch.ones(20))
    for wrong in (torch.ones(19), torch.ones(21), torch.ones(20, 1)):
        with pytest.raises(ValueError, match=r"a vector of shape \(.*\) does not fit 20 parameters"):
            Hessian(lambda: (w**3).sum(), [w])(wrong)


@pytest.mark.parametrize("keep", [False, True])
def test_products_where_gradients_are_switched_off(keep):
    w = torch.nn.Parameter(torch.ones(3))
    with torch.no_grad():
        H = Hessian(Batches(lambda: iter([(1.0, lambda: (w**3).sum())]), 1, keep), [w])
        assert H(torch.ones(3)).tolist() == [6, 6, 6]


def test_a_hessian_is_freed_at_once(long):
    model = net(0)
    gc.disable()
    try:
        H = Hessian(lambda: cross_entropy(model(X), Y), list(model.parameters()), [2.0] * 4, [0.1] * 4)
        H(torch.ones(66))
        gone = weakref.ref(H)
        del H
        assert gone() is None
    finally:
        gc.enable()


def test_a_flat_loss_and_few_products(long):
    w = torch.nn.Parameter(torch.arange(1.0, 21.0))
    flat = sharpness(lambda: w.abs().sum(), [w])
    assert flat.value.tolist() == [0] and flat.converged and flat.products == 1
    for most in (1, 2, 7):
        few = sharpness(lambda: (w**3).sum(), [w], max_products=most)
        assert not few.converged and few.products == most
        assert 6 - few.residual[0] * 1.001 <= few.value[0] <= 120.001


def test_no_draft_of_the_longest(long, monkeypatch):
    model = net(4)
    params = list(model.parameters())
    batches = over(list(zip(X.split(2), Y.split(2), strict=True)), lambda b: cross_entropy(model(b[0]), b[1]))
    guided = sharpness(batches, params)
    monkeypatch.setattr(curvature, "HUGE", 10)
    monkeypatch.delattr(Hessian, "draft")
    assert sharpness(batches, params).value[0] == pytest.approx(guided.value[0], rel=1e-2)


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_a_start_without_a_direction(bad):
    A, start = operator(SPECTRA["one far away"], 0, torch.float32)
    rng = torch.Generator().manual_seed(0)
    found = largest_of_long(lambda v: A @ v(ALL), [bad * start[:, 0].abs()], 1e-2, 60, rng)
    assert found.converged[0] and found.values[0] == pytest.approx(100, rel=1e-2)


def test_a_low_rank_hessian(long):
    """The subspace is invariant after two products; random directions go on."""
    w = torch.nn.Parameter(torch.ones(40))
    found = sharpness(lambda: w[:2].square().sum() - 3 * w[2] ** 2, [w])
    assert found.converged and found.value[0] == pytest.approx(2, rel=1e-3)


def test_vectors_too_short_are_refused():
    with pytest.raises(ValueError, match="vectors of 3 entries are not long; use `largest`"):
        largest_of_long(lambda v: v(), [torch.ones(3)], 1e-2, 10, torch.Generator())


# --- outside ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tol", [2e-2, 1e-3])
def test_it_is_the_same_outside(monkeypatch, tol):
    """Bit by bit, with entries that no piece divides, through restarts and where vectors become wider on the way."""
    monkeypatch.setattr(thick_restart, "CHUNK", 50)
    monkeypatch.setitem(SPECTRA, "tiny", [0.01, *np.linspace(-50, -0.2, 119)])
    for name in ("a clustered top", "tiny"):
        found = []
        for there in (None, 0):
            with monkeypatch.context() as patched:
                rooms(patched, 0, there)
                found.append(found_in(name, 1, tol=tol, most=80)[1])
        inside, out = found
        assert out.products == inside.products and out.products > 8
        assert torch.equal(out.vectors, inside.vectors) and np.array_equal(out.residuals, inside.residuals)


@pytest.mark.parametrize("writes", [0, 1, 5, 17])
def test_where_the_disk_is_full_vectors_come_into_memory(monkeypatch, tmp_path, writes):
    """At the first writing, in the middle of a vector or of a restart: the same bit by bit, and nothing is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(thick_restart, "CHUNK", 50)
    rooms(monkeypatch, 0, 0)
    free = found_in("a clustered top", 1)[1]
    put, left = InFile._put, [writes]

    def full(rows: InFile, piece: memoryview) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(rows, piece)

    monkeypatch.setattr(InFile, "_put", full)
    found = found_in("a clustered top", 1)[1]
    assert left[0] < 0 and torch.equal(found.vectors, free.vectors) and found.products == free.products
    with pytest.raises(OSError, match=r"hold long vectors \(No space left on device\); set TMPDIR to another disk\.$"):
        InFile(3, torch.float16).write(0, slice(0, 3), torch.ones(3))
    monkeypatch.setattr(shutil, "disk_usage", lambda at: type("Usage", (), {"free": 100}))
    monkeypatch.delattr(InFile, "_put")  # which is not needed then
    assert torch.equal(found_in("a clustered top", 1)[1].vectors, free.vectors)
    assert not list(tmp_path.iterdir())


def test_over_ranks_they_stay_in_memory(long, monkeypatch):
    """As where it was said beforehand whether graphs are kept: no rank's result may depend on its disk."""
    w = torch.nn.Parameter(torch.ones(40))
    loss = lambda: 1.5 * w[0] ** 2 + 0.5 * w[1:].square().sum()  # noqa: E731
    asked = []
    monkeypatch.setattr(thick_restart, "outside", lambda *_: asked.append(1))
    sharpness(loss, [w])
    assert asked
    asked.clear()
    assert sharpness(mean_over_ranks(loss, [w]), [w]).value[0] == pytest.approx(3, rel=1e-2)
    batches = over(list(torch.tensor([[1.0], [2.0]])), lambda b: b.sum() * loss())
    assert sharpness(mean_over_ranks(batches, [w]), [w]).value[0] > 3
    assert not asked


# --- how little room -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "vectors"), [("outside", 0.0), ("inside", 2.0), ("with P", 1.0)])
def test_the_room_that_a_probe_takes(monkeypatch, case, vectors):
    """Where the graph is needed: no vector, for the subspace waits outside; or four of them in half precision.

    Of Adam's P, of v and of a last result nothing is held; a mutant that keeps P is seen.
    """
    monkeypatch.setattr(curvature, "ROOM", 0)
    if case == "inside":
        monkeypatch.setattr(thick_restart, "outside", lambda *_: None)
    monkeypatch.setattr(hessian, "WIDE", 10_000)
    monkeypatch.setattr(curvature, "WIDE", 10_000)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Tanh(), torch.nn.Linear(300, 1))
    x, y = torch.randn(4, 300), torch.randn(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    dim, seen = sum(p.numel() for p in model.parameters()), list[int]()

    def closure():
        seen.append(sum(size for at, size in long_storages(dim // 10).items() if at not in own))
        return (model(x) - y).square().mean()

    own = set()
    for _ in range(3):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
    if case == "with P":
        monkeypatch.setattr(Hessian, "_roots", lambda H, P: [lambda root=read().rsqrt(): root for read in H._each(P)])
    own = set(long_storages(dim // 10))
    probes = Probes(model, optimizer, window=10, few=10_000)
    for _ in range(2):
        seen.clear()
        row = probes.curvature(closure)
        assert row["converged"] and row["products"] == len(seen) > 1
    assert max(seen) / (4 * dim) == pytest.approx(vectors, abs=0.05)
    assert probes.last[0].vectors.dtype == torch.bfloat16
    assert stability(optimizer, closure, tol=0.02).ratio == pytest.approx(row["ratio"], rel=0.02)

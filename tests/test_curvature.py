"""Curvature against dense Hessians, by closures of every kind, and with nothing disturbed."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm1d, Dropout, Linear, ReLU, Sequential, Tanh
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from nonsmooth.torch import lanczos
from nonsmooth.torch.curvature import _again, by_layer, sharpness, spectrum, trace
from nonsmooth.torch.hessian import Hessian
from nonsmooth.torch.lanczos import guided, largest
from nonsmooth.torch.parts import over

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(1))


def net(seed, *, kink=Tanh):
    torch.manual_seed(seed)
    return Sequential(Linear(5, 7), kink(), Linear(7, 3)).double()


def dense(loss, params):
    hessian = Hessian(loss, params)
    return torch.stack([hessian(e) for e in torch.eye(hessian.dim, dtype=torch.float64)])


def true_and_converged(found, H):
    """Within its residual, within 1 % or 1e-4 of the norm, and never of the wrong sign."""
    true = torch.linalg.eigvalsh(H).numpy()[::-1][: len(found.value)]
    assert (abs(found.value - true) <= found.residual + 1e-12).all()
    assert found.converged
    assert (abs(found.value - true) <= np.maximum(1e-2 * abs(true), 1e-4 * found.norm)).all()
    assert (found.value * true >= 0).all()


@pytest.mark.parametrize("seed", range(50))
def test_against_the_dense_hessian(seed):
    """Near a saddle, the loss, its negative (negative-dominant), or a mixture of both signs; 1 and 3 values."""
    model, sign, k = net(seed, kink=(Tanh, ReLU)[seed % 2]), (1, -1, 0.3)[seed % 3], 1 + 2 * (seed % 2)
    params = list(model.parameters())
    loss = lambda: sign * cross_entropy(model(X), Y) - (sign == 0.3) * model(X).square().mean()  # noqa: E731
    true_and_converged(sharpness(loss, params, k=k, seed=seed), dense(loss, params))


@pytest.mark.parametrize("seed", range(30))
def test_guided_by_a_draft(seed):
    """A loss in twelve batches sorted by class, so that the draft has seen two classes of three; sums of both signs."""
    model, sign, k = net(seed, kink=(Tanh, ReLU)[seed % 2]), (1, -1, 0.3)[seed % 3], (1, 3, 2)[seed % 4 % 3]
    params, order = list(model.parameters()), Y.argsort()
    one = lambda x, y: sign * cross_entropy(model(x), y) - (sign == 0.3) * model(x).square().mean()  # noqa: E731
    loss = over(list(zip(X[order].split(2), Y[order].split(2), strict=True)), lambda b: one(*b))
    true_and_converged(sharpness(loss, params, k=k, seed=seed), dense(loss, params))


def test_the_largest_modulus_is_not_the_largest_value():
    w = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))
    h = torch.cat([torch.tensor([0.1]), -torch.linspace(1, 50, 39)]).double()
    found = sharpness(lambda: 0.5 * (h * w * w).sum(), [w])
    assert found.converged and found.value[0] == pytest.approx(0.1, rel=1e-2)


def test_flat_losses_and_small_ones():
    w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    flat = sharpness(lambda: w.abs().sum(), [w], k=2)
    assert flat.value.tolist() == [0, 0] and flat.converged and flat.norm == 0
    one = torch.nn.Parameter(torch.tensor(2.0))
    assert sharpness(lambda: -(one**2), [one]).value.tolist() == [-2.0]
    negative = sharpness(lambda: -(w[0] ** 2), [w])
    assert negative.value[0] == 0 and negative.converged


def test_it_says_when_it_has_not_converged():
    w = torch.nn.Parameter(torch.zeros(300, dtype=torch.float64))
    h = torch.linspace(-1, 1, 300).double()
    found = sharpness(lambda: 0.5 * (h * w * w).sum(), [w], max_products=3)
    assert not found.converged and "NOT converged" in str(found) and found.products == 3


def test_a_value_that_is_there_three_times():
    """The Hessian of a linear model with three outputs: each eigenvalue is there three times."""
    model = Linear(5, 3, bias=False).double()
    found = sharpness(lambda: mse_loss(model(X), torch.zeros(24, 3).double()), list(model.parameters()), k=3)
    true = 2 * torch.linalg.eigvalsh(X.T @ X)[-1] / 72
    assert found.value == pytest.approx(np.full(3, true), rel=1e-2)


def test_preconditioned():
    model = net(0)
    params = list(model.parameters())
    loss = lambda: cross_entropy(model(X), Y)  # noqa: E731
    P = [torch.rand_like(p) + 0.1 for p in params]
    root = torch.cat([p.reshape(-1) for p in P]).rsqrt()
    true = torch.linalg.eigvalsh(root[:, None] * dense(loss, params) * root)[-1].item()
    assert sharpness(loss, params, preconditioner=P).value[0] == pytest.approx(true, rel=1e-2)


@pytest.mark.parametrize("keep", [False, True])
def test_a_ragged_last_batch_has_its_own_weight(keep):
    model = net(3)
    params = list(model.parameters())
    loader = DataLoader(TensorDataset(X, Y), batch_size=7, shuffle=True, generator=torch.Generator().manual_seed(0))
    loss = over(loader, lambda batch: cross_entropy(model(batch[0]), batch[1]), keep=keep)
    whole = dense(lambda: cross_entropy(model(X), Y), params)
    assert torch.allclose(dense(loss, params), whole, atol=1e-14)
    equal = over(loader, lambda batch: cross_entropy(model(batch[0]), batch[1]), size=lambda batch: 1)
    assert not torch.allclose(dense(equal, params), whole, atol=1e-6)


def test_a_draft_of_some_batches_gives_the_same_values():
    model = net(4)
    loss = over(list(zip(X.split(2), Y.split(2), strict=True)), lambda b: cross_entropy(model(b[0]), b[1]), keep=True)
    params = list(model.parameters())
    true = torch.linalg.eigvalsh(dense(loss, params)).numpy()[::-1][:3]
    for k in (1, 3):
        found = sharpness(loss, params, k=k)
        assert found.converged and found.value == pytest.approx(true[:k], rel=1e-2)


@pytest.mark.parametrize("like", [1.0, 0.8, 0.0, -1.0])
def test_what_guides_may_be_anything(like):
    """D = like·A + (1 − |like|)·another: A, near it, nothing to do with it, or the reverse of it."""
    for seed in range(10):
        rng = torch.Generator().manual_seed(seed)
        A, other = (torch.randn(60, 60, generator=rng, dtype=torch.float64) for _ in range(2))
        A, other = A + A.T + 20 * torch.diag(torch.arange(60) < 3).double(), other + other.T
        D = like * A + (1 - abs(like)) * other
        true = torch.linalg.eigvalsh(A).numpy()[::-1][:3]
        start = torch.randn(60, generator=rng, dtype=torch.float64)
        pairs, drafted = guided(lambda v, A=A: A @ v, lambda v, D=D: D @ v, start, 3, 1e-2, 60, rng)
        assert pairs.converged.all() and (abs(pairs.values - true) <= np.minimum(pairs.residuals, 1e-2 * true)).all()
        V = pairs.vectors[:, :3].numpy()
        assert np.linalg.norm(A.numpy() @ V - V * pairs.values, axis=0) == pytest.approx(pairs.residuals, abs=1e-9)
        assert drafted > 0 and (like != 1 or pairs.products <= 12)


def test_a_good_draft_saves_products():
    h = 1 / torch.arange(1.0, 401.0).double()
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(400, generator=rng, dtype=torch.float64)
    bare, same = (guided(lambda v: h * v, lambda v, s=s: s * h * v, start, 2, 1e-3, 400, rng)[0] for s in (0.0, 0.95))
    assert bare.values == pytest.approx([1, 0.5], rel=1e-3) and same.values == pytest.approx([1, 0.5], rel=1e-3)
    assert same.products <= 0.6 * bare.products


def test_graphs_are_kept_where_they_are_small(monkeypatch):
    model = net(7)
    params = list(model.parameters())
    calls = []
    loss = over(
        list(zip(X.split(2), Y.split(2), strict=True)), lambda b: calls.append(1) or cross_entropy(model(b[0]), b[1])
    )
    small, v = Hessian(loss, params), torch.ones(sum(p.numel() for p in params)).double()
    assert torch.equal(small(v), small(v)) and len(calls) == 12 and small.keep
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(cross_entropy(model(X), Y), params)])
    assert torch.allclose(small.gradient(), flat, atol=1e-14) and len(calls) == 12
    assert len(small.draft().hessian.kept) == 2 and torch.allclose(
        small.draft().hessian(v),
        0.5 * sum(Hessian(lambda i=i: cross_entropy(model(X[i : i + 2]), Y[i : i + 2]), params)(v) for i in (0, 16)),
    )
    monkeypatch.setattr("nonsmooth.torch.hessian.KEPT", 1000)
    large = Hessian(loss, params)
    calls.clear()
    assert large.gradient() is None and torch.allclose(large(v), small(v)) and torch.allclose(large(v), small(v))
    assert len(calls) == 25 and not large.keep and not large.kept
    true = torch.linalg.eigvalsh(dense(lambda: cross_entropy(model(X), Y), params)).numpy()[::-1][:2]
    assert sharpness(loss, params, k=2).value == pytest.approx(true, rel=1e-2)


def test_a_closure_with_a_large_graph_is_evaluated_for_each_product(monkeypatch):
    model = net(7)
    params, calls = list(model.parameters()), []
    loss = lambda: calls.append(1) or cross_entropy(model(X), Y)  # noqa: E731
    found = sharpness(loss, params, k=2)
    assert len(calls) == 1
    monkeypatch.setattr("nonsmooth.torch.hessian.KEPT", 1000)
    calls.clear()
    anew = sharpness(loss, params, k=2)
    assert np.array_equal(anew.value, found.value) and anew.products == found.products == len(calls)
    batches = cycle(zip(X.split(8), Y.split(8), strict=True))

    def another() -> torch.Tensor:
        x, y = next(batches)
        return cross_entropy(model(x), y)

    with pytest.raises(ValueError, match=r"sharpness: the loss is .* the first time and .* when it is evaluated anew"):
        sharpness(another, params)
    with pytest.raises(ValueError, match="take its batch outside of the closure"):
        sharpness([another] * 2, params)


def test_dropout_keeps_its_masks_and_nothing_is_disturbed():
    torch.manual_seed(0)
    model = Sequential(Linear(5, 6), BatchNorm1d(6), Tanh(), Dropout(0.5), Linear(6, 3)).double()
    params = list(model.parameters())
    cross_entropy(model(X), Y).backward()
    kept = [t.clone() for t in (*model.buffers(), *(p.grad for p in params), torch.get_rng_state())]
    H = dense([lambda: cross_entropy(model(X), Y)], params)  # evaluated anew for each product
    assert torch.allclose(H, H.T, atol=1e-12)
    found = sharpness([lambda: cross_entropy(model(X), Y)], params, tol=1e-4)
    assert found.value[0] == pytest.approx(torch.linalg.eigvalsh(H)[-1].item(), rel=1e-4)
    now = [*model.buffers(), *(p.grad for p in params), torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True)) and model.training


def test_tracked_along_training():
    """Five products a probe on average, and within 1 %."""
    model = net(5)
    params = list(model.parameters())
    loss, last, products = (lambda: cross_entropy(model(X), Y)), None, []
    optimizer = torch.optim.SGD(params, lr=0.2, momentum=0.9)
    for step in range(20):
        found = sharpness(loss, params, start=last)
        true = torch.linalg.eigvalsh(dense(loss, params))[-1].item()
        assert found.converged and found.value[0] == pytest.approx(true, rel=1e-2)
        products += [found.products] if step > 1 else []
        last = found
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert sum(products) / len(products) <= 5


def overtaken(seed):
    """A, whose first eigenvector is the second of before, turned a little; those of before; and a generator."""
    rng = np.random.default_rng(seed)
    values = np.sort([1.0, rng.uniform(0.8, 0.985), *rng.uniform(-0.3, 0.6, 58)])[::-1]
    old = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    turn = 0.02 * rng.standard_normal((60, 60))
    new = (np.linalg.qr(np.eye(60) + turn - turn.T)[0] @ old)[:, [1, 0, *range(2, 60)]]
    return torch.tensor((new * values) @ new.T), torch.tensor(old), torch.Generator().manual_seed(seed)


def test_a_second_eigenvector_that_overtakes_is_seen():
    """The top two change places between two calls, which one vector alone would miss; and so it does."""

    def missed(columns: int) -> int:
        count = 0
        for seed in range(60):
            A, old, rng = overtaken(seed)
            noise = torch.randn(60, 1, generator=rng, dtype=torch.float64)
            start = _again(old[:, :columns], 1, noise)
            found = largest(lambda v, A=A: A @ v, start, 1, 0.01, 60, rng, trusted=True)
            count += bool(found.converged.all()) and abs(found.values[0] - 1) > 0.01
        return count

    assert missed(2) <= 1
    assert missed(1) > 10  # where the test would reject it


def test_a_start_that_is_another_eigenvector_is_left():
    h = torch.tensor([1.0, 5.0, 2.0, *([0.1] * 20)]).double()
    w = torch.nn.Parameter(torch.zeros(23).double())
    found = sharpness(lambda: 0.5 * (h * w * w).sum(), [w], start=torch.eye(23).double()[:, 0], tol=1e-4)
    assert found.value[0] == pytest.approx(5, rel=1e-4)


def test_largest_with_a_block():
    A = torch.diag(torch.tensor([3.0, 3.0, 1.0, *([0.0] * 30)]).double())
    rng = torch.Generator().manual_seed(0)
    pairs = largest(lambda v: A @ v, torch.randn(33, 2, generator=rng, dtype=torch.float64), 2, 1e-3, 30, rng)
    assert pairs.values == pytest.approx([3, 3], rel=1e-3)


# --- little room -----------------------------------------------------------------------------------------------------

SPECTRA = {
    "a clustered top": [10.0, 9.7, 9.5, 9.4, *np.linspace(-3, 6, 116)],
    "negative-dominant": [0.5, 0.3, 0.2, *np.linspace(-50, -1, 117)],
    "all negative": np.linspace(-40, -1, 120),
    "one far away": [100.0, *np.linspace(-1, 1, 119)],
    "a positive bulk": 1 / np.arange(1.0, 121.0),
}


def operator(values, seed, dtype=torch.float64):
    rng = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=rng, dtype=torch.float64))[0]
    A = (basis * torch.tensor(np.array(values))) @ basis.T
    return ((A + A.T) / 2).to(dtype), torch.randn(len(values), 4, generator=rng, dtype=torch.float64).to(dtype)


def off(A, pairs, k):
    """By how much residuals that are computed anew, from vectors of length 1, differ from those that are told."""
    V = pairs.vectors[:, :k].double()
    true = torch.linalg.vector_norm(A.double() @ V - V * torch.tensor(pairs.values), dim=0).numpy()
    return max(abs(true - pairs.residuals).max() / pairs.norm, float(abs(V.T @ V - torch.eye(k)).max()))


def cramped(monkeypatch, more, k, name, seed, *, dtype=torch.float64, trusted=False):
    """A, its largest values, and what is found with room for k + 3 + more vectors."""
    A, start = operator(SPECTRA[name], seed, dtype)
    monkeypatch.setattr(lanczos, "ROOM", 2 * (k + 3 + more) * len(A) * A.element_size())
    if trusted:
        start = torch.linalg.eigh(A)[1].flip(1)[:, : k + 1] + 0.02 * start[:, : k + 1]
    rng = torch.Generator().manual_seed(seed)
    pairs = largest(lambda v: A @ v, start[:, : k + 1], k, 1e-2, 120, rng, trusted)
    return A, np.sort(SPECTRA[name])[::-1][:k], pairs


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("k", [1, 3])
def test_a_restart_loses_nothing(monkeypatch, k, name):
    """The same values in any room, within tol; never another sign; residuals that are true; warm, few products more.

    In the least room a restart may forget the one among eigenvalues 2 % apart that the next ones are then taken for.
    """
    spent = dict.fromkeys((0, 3, 1000), 0)
    for seed in range(4):
        for trusted in (False, True):
            for more in spent:
                A, true, pairs = cramped(monkeypatch, more, k, name, seed, trusted=trusted)
                assert off(A, pairs, k) < 1e-10
                nearest = abs(pairs.values[:, None] - np.array(SPECTRA[name])).min(axis=1)
                assert (nearest <= pairs.residuals + 1e-11).all()
                assert (pairs.values <= true + 1e-11).all()  # from below
                if pairs.converged.all():
                    within = 1e-2 if more == 1000 or trusted else 2e-2
                    assert (abs(pairs.values - true) <= np.maximum(within * abs(true), 1e-4 * pairs.norm)).all()
                    assert (pairs.values * true > 0).all()
                assert pairs.converged.all() or (more < 1000 and not trusted and pairs.products == 120)
                spent[more] += trusted * pairs.products
    assert spent[3] <= 1.25 * spent[1000] and spent[0] <= 1.5 * spent[1000]


def test_restarts_in_single_precision(monkeypatch):
    """Through over a hundred products the images stay those of the vectors, to rounding."""
    A, _, pairs = cramped(monkeypatch, 0, 3, "a clustered top", 0, dtype=torch.float32)
    assert pairs.products > 20 and off(A, pairs, 3) < 1e-5


def test_a_restart_that_forgets_is_seen(monkeypatch):
    """The mutants: one that leaves the images as they were, and one whose vectors are not orthonormal."""

    def images_stay(Q, K):
        calls.append(1)
        if len(calls) % 2:
            combined(Q, K)

    def not_orthonormal(U, last, k, room):
        more = np.pad(last, ((0, len(U) - len(last)), (0, 0)))
        return np.hstack([U[:, : k + 1], more[:, : room - k - 2]])

    calls, combined = [], lanczos._combine
    for name, mutant in (("_combine", images_stay), ("_thick", not_orthonormal)):
        with monkeypatch.context() as patched:
            patched.setattr(lanczos, name, mutant)
            A, _, pairs = cramped(patched, 0, 1, "a positive bulk", 0)
            assert pairs.products > 4 and off(A, pairs, 1) > 1e-3


def test_what_a_restart_keeps_of_the_last_product_saves_some(monkeypatch):
    def spent():
        return sum(cramped(monkeypatch, 0, 1, "negative-dominant", seed, trusted=True)[2].products for seed in range(4))

    kept = spent()
    monkeypatch.setattr(lanczos, "_thick", lambda U, last, k, room: U[:, : k + 1])
    assert kept < 0.9 * spent()


@pytest.mark.parametrize("k", [1, 3])
def test_a_draft_in_little_room(monkeypatch, k):
    monkeypatch.setattr(lanczos, "ROOM", 0)
    for seed in range(5):
        A, start = operator(SPECTRA["one far away" if seed % 2 else "negative-dominant"], seed)
        rng = torch.Generator().manual_seed(seed)
        pairs, _ = guided(lambda v, A=A: A @ v, lambda v, A=A: 0.9 * A @ v, start[:, 0], k, 1e-2, 100, rng)
        true = torch.linalg.eigvalsh(A).numpy()[::-1][:k]
        assert (abs(pairs.values - true) <= pairs.residuals + 1e-12).all() and off(A, pairs, k) < 1e-11
        if pairs.converged.all():
            assert (abs(pairs.values - true) <= np.maximum(1e-2 * abs(true), 1e-4 * pairs.norm)).all()


def test_trace_spectrum_and_layers():
    model = net(6)
    params = list(model.parameters())
    loss = lambda: cross_entropy(model(X), Y)  # noqa: E731
    H = dense(loss, params)
    found = trace(loss, params, samples=200)
    assert abs(found.value - H.trace().item()) <= 4 * found.error and found.error < 0.2 * found.value
    density = spectrum(loss, params, steps=15, samples=40)
    mean, error = density.moment(2)
    assert abs(mean - float((H @ H).trace()) / len(H)) <= 4 * error
    grid = np.linspace(-3, 5, 2001)
    assert np.trapezoid(density.density(grid, 0.1)[0], grid) == pytest.approx(1, abs=1e-6)
    values = [layer.value[0] for layer in by_layer(loss, model).values()]
    first = sum(p.numel() for p in model[0].parameters())
    assert values[0] == pytest.approx(torch.linalg.eigvalsh(H[:first, :first])[-1].item(), rel=1e-2)
    assert values[1] == pytest.approx(torch.linalg.eigvalsh(H[first:, first:])[-1].item(), rel=1e-2)


def test_bad_input_is_refused_in_a_sentence():
    w = torch.nn.Parameter(torch.ones(2))
    loss = lambda: w.square().sum()  # noqa: E731

    def calls_backward():
        value = loss()
        value.backward()
        return value

    for closure, says in (
        (
            calls_backward,
            "sharpness: the closure called backward; return the loss and leave its gradient to sharpness.",
        ),
        (lambda: loss().detach(), "must return the loss, a scalar tensor with its graph, not a tensor of shape"),
        (lambda: 3.0, "not float"),
        (lambda: loss() + 0j, "sharpness: the loss is complex; return a real one"),
        (lambda: (w / 0).sum(), "the gradient is not finite"),
    ):
        with pytest.raises(ValueError, match=says):
            sharpness(closure, [w])
        assert w.grad is None
    for options, says in (
        ({"k": 3}, "k must be an integer from 1 to the 2 parameters, not 3"),
        ({"tol": 0}, "tol must be a number above 0"),
        ({"max_products": 0}, "max_products must be an integer of at least k"),
        ({"preconditioner": [0.0]}, "preconditioner must be finite and above 0"),
        ({"preconditioner": [1.0, 1.0]}, "2 tensors do not fit 1 parameters"),
        ({"start": torch.ones(3)}, "start has 3 rows"),
    ):
        with pytest.raises(ValueError, match=says):
            sharpness(loss, [w], **options)
    for closure in (3, loss(), [loss()]):
        with pytest.raises(TypeError, match="give a closure, a list of closures"):
            sharpness(closure, [w])
    for loader, of, error, says in (
        (iter([1]), loss, TypeError, "the loader can be gone through only once"),
        (None, loss, TypeError, "the loader must be a list of batches or a DataLoader, not NoneType"),
        ([1], "loss", TypeError, "loss must be a function of a batch, not str"),
        ([], loss, ValueError, "the loader has no batch; give one at least"),
    ):
        with pytest.raises(error, match=f"^over: {says}"):
            over(loader, of)


@pytest.mark.parametrize("measure", [sharpness, trace, spectrum])
def test_bad_parameters_are_refused_in_a_sentence(measure):
    w = torch.nn.Parameter(torch.ones(2))
    empty, complex_ = torch.nn.Parameter(torch.ones(0)), torch.nn.Parameter(torch.ones(2) + 0j)
    for params, says in (
        (w, r"params must be a list of parameters, not one tensor; write \[w\]"),
        (torch.nn.Linear(2, 1), r"params must be a list of parameters, not Linear; write model\.parameters\(\)"),
        ([], "params must be parameters that require gradients"),
        ([w * 1.0], "params must be leaves, not what is computed from them"),
        ([w, w], "a parameter is named twice; name each once"),
        ([empty], "params hold no number; name a parameter that is not empty"),
        ([complex_], "complex parameters have no Hessian"),
    ):
        with pytest.raises(ValueError, match=f"^{measure.__name__}: {says}"):
            measure(lambda: w.square().sum(), params)

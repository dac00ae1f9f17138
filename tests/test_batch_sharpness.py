"""Batch sharpness against dense Hessians and closed forms, and what a live SGD's is set against."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal, over
from nonsmooth.torch.batch_sharpness import batch_sharpness, batch_thresholds

RNG = torch.Generator().manual_seed(0)
X = torch.randn(12, 3, dtype=torch.float64, generator=RNG)
Y = torch.randn(12, dtype=torch.float64, generator=RNG)


def weight():
    return nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))


def least_squares(w, rows):
    return lambda: ((X[rows] @ w - Y[rows]) ** 2).mean() / 2


def test_a_row_at_a_time_its_curvature_is_the_row_s_square():
    """f_i = ½(xᵢw − yᵢ)²: gᵢ is along xᵢ, and the quotient is ‖xᵢ‖²."""
    w = weight()
    found = batch_sharpness([least_squares(w, [i]) for i in range(12)], [w])
    squares = (X**2).sum(1)
    assert found.quotients == pytest.approx(squares.tolist(), rel=1e-12)
    assert found.value == pytest.approx(float(squares.mean()), rel=1e-12)
    assert found.error == pytest.approx(float(squares.std() / math.sqrt(12)), rel=1e-12)
    assert (found.products, found.flat, found.thresholds) == (12, 0, None)


def test_known_batches_of_least_squares():
    w = weight()
    batches = [list(range(4)), list(range(4, 9)), list(range(9, 12))]
    found = batch_sharpness([(len(b), least_squares(w, b)) for b in batches], [w])
    quotients, tops, bottoms = [], [], []
    for b in batches:
        H = X[b].T @ X[b] / len(b)
        g = X[b].T @ (X[b] @ w.detach() - Y[b]) / len(b)
        tops.append(float(g @ H @ g))
        bottoms.append(float(g @ g))
        quotients.append(tops[-1] / bottoms[-1])
    sizes = np.array([4, 5, 3])
    assert found.quotients == pytest.approx(quotients, rel=1e-12)
    assert found.value == pytest.approx(np.average(quotients, weights=sizes), rel=1e-12)
    assert found.pooled == pytest.approx((sizes @ tops) / (sizes @ bottoms), rel=1e-12)
    assert found.value != pytest.approx(np.mean(quotients), rel=1e-3)  # the mutant that forgets the weights
    again = batch_sharpness(over([torch.tensor(b) for b in batches], lambda b: least_squares(w, b)()), [w])
    assert again == found


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_mean_of_eigenvalues_weighted_by_the_gradient(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    params = list(model.parameters())
    data = [(torch.randn(5, 3).double(), torch.randn(5, 2).double()) for _ in range(4)]
    batches = [lambda x=x, y=y: (model(x) - y).square().mean() for x, y in data]
    found = batch_sharpness(batches, params)

    start = torch.cat([p.detach().reshape(-1) for p in params])
    names, shapes = [n for n, _ in model.named_parameters()], [p.shape for p in params]

    def loss(v, x, y):
        parts = [a.reshape(s) for a, s in zip(v.split([math.prod(s) for s in shapes]), shapes, strict=True)]
        return (torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (x,)) - y).square().mean()

    expected = []
    for x, y in data:
        of = functools.partial(loss, x=x, y=y)
        values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(of, start))
        shares = (vectors.T @ torch.autograd.functional.jacobian(of, start)).square()
        expected.append(float((values * shares).sum() / shares.sum()))
    assert found.quotients == pytest.approx(expected, rel=1e-9)
    assert found.value <= max(expected) and found.value == pytest.approx(np.mean(expected), rel=1e-9)


def test_weight_decay_is_of_each_batch_s_loss():
    w = weight()
    optimizer = optim.SGD([w], lr=0.1, weight_decay=0.7)
    found = batch_sharpness([least_squares(w, [i]) for i in range(12)], [w], optimizer=optimizer)
    penalised = [lambda f=least_squares(w, [i]): f() + 0.35 * w.square().sum() for i in range(12)]
    assert found.value == pytest.approx(batch_sharpness(penalised, [w]).value, rel=1e-12)
    assert found.thresholds == batch_thresholds(optimizer)


def test_the_preconditioned_form_is_the_plain_one_in_scaled_coordinates():
    P = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)
    w = weight()
    scaled = nn.Parameter((P.sqrt() * w).detach())
    rows = [[0, 1], [2, 3, 4], [5]]
    found = batch_sharpness([least_squares(w, b) for b in rows], [w], preconditioner=[P])
    there = [lambda b=b: ((X[b] @ (scaled / P.sqrt()) - Y[b]) ** 2).mean() / 2 for b in rows]
    assert found.quotients == pytest.approx(batch_sharpness(there, [scaled]).quotients, rel=1e-12)
    assert found.quotients != pytest.approx(
        batch_sharpness([least_squares(w, b) for b in rows], [w]).quotients, rel=1e-3
    )


def test_batches_without_a_gradient_have_no_quotient():
    w = nn.Parameter(torch.tensor([0.0, 1.0], dtype=torch.float64))
    batches = [lambda: w[0] ** 2, lambda: 2.5 * w[1] ** 2]
    found = batch_sharpness(batches, [w])
    assert (found.value, found.flat, found.products, found.quotients) == (5.0, 1, 1, (5.0,))
    assert math.isnan(found.error) and "1 without a gradient" in str(found)
    nothing = batch_sharpness(batches[:1], [w])
    assert math.isnan(nothing.value) and math.isnan(nothing.pooled) and nothing.products == 0


def test_of_a_piecewise_linear_loss_it_is_zero():
    w = weight()
    assert batch_sharpness([lambda: (X @ w).relu().sum()], [w]).value == 0.0


def test_the_run_is_left_as_it_was():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    loader = DataLoader(TensorDataset(X, Y[:, None]), 4, shuffle=True, generator=torch.Generator().manual_seed(1))
    loss = lambda batch: (model(batch[0]) - batch[1]).square().mean()  # noqa: E731
    loss((X, Y[:, None])).backward()
    grads = [p.grad for p in model.parameters()]
    before = [t.detach().clone() for t in (*model.parameters(), *model.buffers(), *grads)]
    batches = over(loader, loss)
    streams = torch.get_rng_state(), loader.generator.get_state()
    found = batch_sharpness(batches, model.parameters())
    again = batch_sharpness(batches, model.parameters())
    assert found == again and len(found.quotients) == 3
    after = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), streams[0]) and torch.equal(loader.generator.get_state(), streams[1])


@pytest.mark.parametrize(("momentum", "small", "large"), [(0.0, 20.0, 20.0), (0.9, 2.0, 38.0), (0.5, 10.0, 30.0)])
def test_thresholds_of_a_live_optimizer(momentum, small, large):
    w = weight()
    optimizer = optim.SGD([w], lr=0.1, momentum=momentum)
    for live in (optimizer, Proximal(optimizer, L1(0.1))):
        found = batch_thresholds(live)
        assert (found.small, found.large) == pytest.approx((small, large), rel=1e-12)


def refused(w, **options):
    return optim.SGD([w], lr=0.1, **options)


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (lambda w: optim.Adam([w]), TypeError, "known for SGD, not for Adam"),
        (lambda w: refused(w, momentum=0.9, nesterov=True), ValueError, "under Nesterov or dampening"),
        (lambda w: refused(w, momentum=0.9, dampening=0.5), ValueError, "under Nesterov or dampening"),
        (lambda w: refused(w, maximize=True), ValueError, "the optimizer maximises"),
        (lambda w: optim.SGD([w], lr=0.0), ValueError, "a learning rate of 0 moves nothing"),
        (
            lambda w: optim.SGD([{"params": [w]}, {"params": [weight()], "lr": 1.0}], lr=0.1),
            ValueError,
            "groups differ",
        ),
    ],
)
def test_what_has_no_threshold_is_refused(made, error, words):
    w = weight()
    with pytest.raises(error, match=words):
        batch_sharpness([least_squares(w, [0])], [w], optimizer=made(w))


def test_what_makes_no_sense():
    w = weight()
    with pytest.raises(ValueError, match=r"give an optimizer \(SGD\) or a preconditioner, not both"):
        batch_sharpness([least_squares(w, [0])], [w], optimizer=refused(w), preconditioner=[1.0])
    with pytest.raises(ValueError, match="batch_sharpness: the closure called backward"):
        batch_sharpness([lambda: (least_squares(w, [0])().backward(), w.sum())[1]], [w])
    with pytest.raises(ValueError, match="batch_sharpness: params must be a list"):
        batch_sharpness([least_squares(w, [0])], w)
    with pytest.raises(ValueError, match="batch_sharpness: a parameter is named twice"):
        batch_sharpness([least_squares(w, [0])], [w, w])
    with pytest.raises(TypeError, match="batch_sharpness: give a closure"):
        batch_sharpness([], [w])

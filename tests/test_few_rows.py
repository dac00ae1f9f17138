"""Drafts of the Hessian from few rows: their weights, what they save, what has none, and that nothing is disturbed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm1d, Dropout, Linear, ReLU, Sequential, Tanh
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from nonsmooth.torch.curvature import sharpness
from nonsmooth.torch.hessian import Hessian
from nonsmooth.torch.parts import few_rows, losses_of_rows, over
from test_curvature import dense, net, true_and_converged

MANY = torch.randn(300, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LABELS = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(3))
BATCHES = {
    "tuples": lambda x, y: (x, y),
    "dicts": lambda x, y: {"x": x, "y": y},
    "nested": lambda x, y: [{"x": x}, (y, y)],
    "tensors": lambda x, y: torch.cat([x, y[:, None]], 1),
}


def taken_apart(kind, batch):
    if kind == "tensors":
        return batch[:, :5], batch[:, 5].long()
    return {"tuples": lambda: batch, "dicts": lambda: batch.values(), "nested": lambda: (batch[0]["x"], batch[1][0])}[
        kind
    ]()


def loss_of(model, kind):
    def loss(batch):
        x, y = taken_apart(kind, batch)
        return cross_entropy(model(x), y)

    return loss


@pytest.mark.parametrize("kind", BATCHES)
def test_drafts_of_rows_are_the_whole_in_the_mean(kind):
    """20 rows of 248 and 12 of the other 228, which begin at 19 places; the ragged last batch among them."""
    model, x, y = net(8), MANY[:248], LABELS[:248]
    params, v = list(model.parameters()), torch.linspace(-1, 1, 66).double()
    batches = [BATCHES[kind](*both) for both in zip(x.split(64), y.split(64), strict=True)]
    with torch.no_grad():
        losses = cross_entropy(model(x), y, reduction="none")
    hard = losses.topk(20)
    products, unweighted = [], []
    for j in range(19):
        some, share, _ = few_rows(batches, loss_of(model, kind), begin=(j + 0.5) / 19)
        assert share == pytest.approx(32 / 248) and [w for w, _ in some.parts()] == [20.0, 228.0]
        (_, top), (_, rest) = some.parts()
        assert top().item() == pytest.approx(hard.values.mean().item(), rel=1e-12)
        products.append(Hessian(some, params)(v))
        unweighted.append(Hessian([(20, top), (12, rest)], params)(v))
    whole = Hessian(lambda: cross_entropy(model(x), y), params)(v)
    assert torch.allclose(torch.stack(products).mean(0), whole, atol=1e-12)
    assert not torch.allclose(torch.stack(unweighted).mean(0), whole, rtol=0.05)  # where the test would reject it


def test_rows_that_would_take_much_memory_are_left(monkeypatch):
    loss, batches = loss_of(net(8), "tuples"), list(zip(MANY.split(64), LABELS.split(64), strict=True))
    held = (MANY.nbytes + LABELS.nbytes) * (1 / 12 + 1 / 20)
    monkeypatch.setattr("nonsmooth.torch.parts.KEPT", held + 1)
    assert few_rows(batches, loss) is not None
    monkeypatch.setattr("nonsmooth.torch.parts.KEPT", held - 1)
    assert few_rows(batches, loss) is None


@pytest.mark.parametrize("seed", range(20))
def test_guided_by_rows(seed):
    """A loss, its negative, or a mixture of both signs; with weights so large that few rows carry the Hessian, too."""
    model, sign, k = net(seed, kink=(Tanh, ReLU)[seed % 2]), (1, -1, 0.3)[seed % 3], 1 + seed % 4
    with torch.no_grad():
        model[2].weight.mul_((1, 6)[seed // 2 % 2])
    params = list(model.parameters())
    one = lambda x, y: sign * cross_entropy(model(x), y) - (sign == 0.3) * model(x).square().mean()  # noqa: E731
    loss = over(list(zip(MANY.split(64), LABELS.split(64), strict=True)), lambda b: one(*b))
    assert loss.rows(()) is not None
    true_and_converged(sharpness(loss, params, k=k, seed=seed), dense(loss, params))


def test_rows_are_near_the_whole_where_few_carry_it():
    """Labels that are the model's own, which it is sure of but near borders; beside it every eighth of the batches."""
    rows, batches = [], []
    for seed in range(3):
        model = net(seed)
        with torch.no_grad():
            model[2].weight.mul_(400)
            y = model(MANY).argmax(1)
        data, params = list(zip(MANY.split(10), y.split(10), strict=True)), list(model.parameters())
        loss = lambda b, model=model: cross_entropy(model(b[0]), b[1])  # noqa: E731
        whole = dense(lambda model=model, y=y: cross_entropy(model(MANY), y), params)
        for own, into in (({}, rows), ({"size": lambda b: len(b[0])}, batches)):  # a size of its own: no rows
            draft = Hessian(over(data, loss, **own), params).draft()
            off = dense(draft.hessian.batches, params) - whole
            into.append(float(torch.linalg.matrix_norm(off, 2) / torch.linalg.matrix_norm(whole, 2)))
    assert max(rows) < 0.2 and min(batches) > 0.8


def test_what_has_no_rows_is_left_alone():
    """Batch statistics, dropout, .item(), other lengths, a name, few rows: no draft of rows, and nothing changed."""
    torch.manual_seed(0)
    plain, norm = net(1), Sequential(Linear(5, 6), BatchNorm1d(6), Tanh(), Linear(6, 3)).double()
    drop, rng = Sequential(Linear(5, 6), Dropout(0.5), Linear(6, 3)).double(), torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(MANY, LABELS), batch_size=64, shuffle=True, generator=rng)

    def drawn(batch):
        return cross_entropy(plain(batch[0]), batch[1]) + 0 * np.random.rand() + 0 * float(torch.rand(()))

    for model in (plain, norm, drop):
        cross_entropy(model(MANY), LABELS).backward()
    params = [p for model in (plain, norm, drop) for p in model.parameters()]

    def state():
        drawn = (torch.get_rng_state(), rng.get_state(), torch.from_numpy(np.random.get_state()[1].astype(np.int64)))
        return [t.clone() for t in (*norm.buffers(), *(p.grad for p in params), *drawn)]

    item = lambda b: cross_entropy(plain(b[0]), b[1]) * (1 if b[0].sum().item() > 0 else 2)  # noqa: E731
    on = {
        "batch statistics": (loader, loss_of(norm, "tuples"), norm),
        "dropout": (loader, loss_of(drop, "tuples"), drop),
        "item": (loader, item, plain),
        "lengths": ([(MANY, LABELS, MANY[:7])], lambda b: cross_entropy(plain(b[0]), b[1]), plain),
        "a name": ([(MANY, LABELS, "name")], lambda b: cross_entropy(plain(b[0]), b[1]), plain),
        "few rows": ([(MANY[:200], LABELS[:200])], loss_of(plain, "tuples"), plain),
        "not finite": ([(MANY, LABELS)], lambda b: (cross_entropy(plain(b[0]), b[1]) - 9).log(), plain),
    }
    before = state()
    for name, (data, loss, model) in on.items():
        hessian = Hessian(over(data, loss), list(model.parameters()))
        assert hessian.batches.rows(()) is None and hessian.draft() is None, name
        assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True)), name
    for loss, model in ((loss_of(norm.eval(), "tuples"), norm), (drawn, plain)):
        hessian = Hessian(over(loader, loss), list(model.parameters()))
        draft = hessian.draft()
        assert (draft is not None) == (model is norm) or draft.share < 0.14
        assert all(torch.equal(a, b) for a, b in zip(before, state(), strict=True))
    model = norm.train()
    assert sharpness(over(loader, loss_of(model, "tuples")), list(model.parameters())).converged


def test_a_loss_that_is_not_of_any_number_of_rows():
    """One row alone and the batches of 20 have a loss, other numbers have none: every eighth batch is the draft."""
    model = net(2)

    def loss(batch):
        if len(batch[0]) not in (1, 20):
            raise ValueError("twenty rows, please")
        return cross_entropy(model(batch[0]), batch[1])

    params, data = list(model.parameters()), list(zip(MANY.split(20), LABELS.split(20), strict=True))
    hessian = Hessian(over(data, loss), params)
    assert hessian.batches.rows(()) is not None and hessian.draft().share == 2 / 15
    true = torch.linalg.eigvalsh(dense(lambda: cross_entropy(model(MANY), LABELS), params))[-1].item()
    assert sharpness(over(data, loss), params).value[0] == pytest.approx(true, rel=1e-2)


@pytest.mark.parametrize("kind", ["cross entropy", "squares", "words"])
def test_losses_that_the_graph_has_are_not_evaluated_again(kind):
    """The same rows are taken as from losses evaluated one by one; where the graph's are others, or none, these are."""
    model = net(6)
    x, y = MANY, LABELS
    one = {
        "cross entropy": lambda x, y: cross_entropy(model(x), y),
        "squares": lambda x, y: mse_loss(model(x), torch.nn.functional.one_hot(y, 3).double()),
        "words": lambda x, y: cross_entropy(model(x).repeat_interleave(2, 0), torch.stack([y, (y + 1) % 3], 1).ravel()),
    }[kind]
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    others = {
        "penalty": lambda b: one(*b) + model[0].weight.square().sum(),
        "weighted": lambda b: cross_entropy(model(b[0]), b[1], weight=weights),
        "reversed": lambda b: one(b[0].flip(0), b[1].flip(0)),
    }
    data, params = list(zip(x.split(64), y.split(64), strict=True)), list(model.parameters())
    for name, loss in {"plain": lambda b: one(*b), **others}.items():
        hessian = Hessian(over(data, loss), params)
        hessian.gradient()
        found, true = hessian.batches.rows(hessian.known), hessian.batches.rows(())
        assert true[2] == 0.25 and found[2] == (0.05 if name in ("plain", "weighted") else 0.25), name
        for (a, one_of), (b, other) in zip(found[0].parts(), true[0].parts(), strict=True):
            assert a == b and one_of().item() == other().item()


@pytest.mark.parametrize(
    ("y", "options"),
    [
        (torch.tensor([0, 255, 2]), {"ignore_index": 255}),
        (torch.tensor([0, -100, 2]), {}),
        (torch.tensor([0, 1, 2]), {"ignore_index": 1}),
        (torch.tensor([0, 1, 2], dtype=torch.uint8), {}),
    ],
)
def test_the_graph_s_losses_of_rows_are_those_of_torch(y, options):
    """What is ignored has none: a row of it alone has no loss either."""
    x = torch.linspace(-1, 1, 9).reshape(3, 3).requires_grad_()
    own = losses_of_rows(cross_entropy(x, y, **options))
    true = cross_entropy(x, y, reduction="none", **options)
    seen = true != 0
    assert torch.equal(own[seen], true[seen]) and own[~seen].isnan().all()


def test_losses_that_are_of_no_rows_are_left():
    x, one, image = torch.zeros(3, requires_grad=True), torch.tensor(1), torch.zeros(2, 3, 4, 4, requires_grad=True)
    for loss in (cross_entropy(x, one), cross_entropy(image, torch.zeros(2, 4, 4).long()), x.exp().sum(), x.sum() - 1):
        assert losses_of_rows(loss) is None
    assert Hessian(lambda: cross_entropy(x, one), [x])(torch.ones(3)).abs().max() < 1e-6


@pytest.mark.parametrize("keep", [True, False])
def test_losses_of_rows_are_held_no_longer_than_graphs(keep):
    model = net(3)
    data = list(zip(MANY.split(64), LABELS.split(64), strict=True))
    hessian = Hessian(over(data, loss_of(model, "tuples"), keep=keep), list(model.parameters()))
    hessian(torch.ones(hessian.dim))
    assert len(hessian.known) == (len(data) if keep else 0)
    assert hessian.draft() is not None and not hessian.known

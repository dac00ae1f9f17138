"""Recording and replaying the active pieces: f_F has f's gradient where it was recorded, and no kinks elsewhere."""

from __future__ import annotations

import dataclasses
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nonsmooth.torch.selection import Selection, flips, record, replay
from nonsmooth.torch.undisturbed import undisturbed

F = functional
Y = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 4, 2, 1, 3, 3])
SIGNS = torch.sign(Y)
PADDING = ((torch.arange(30) % 2 == 0) & (torch.arange(30) > 0)).reshape(6, 5)


def set_to_zero(z):
    z = z.clone()
    z[z < 0] = 0
    return z


def huber(r, delta=0.7):
    return torch.where(r.abs() < delta, 0.5 * r**2, delta * (r.abs() - 0.5 * delta))


KINKED = {
    "relu": torch.relu,
    "relu_": lambda z: F.relu(z * 1, inplace=True),
    "relu6": lambda z: F.relu6(4 * z),
    "abs": abs,
    "clamp": lambda z: z.clamp(-0.5, 0.5),
    "clamp_min": lambda z: torch.clamp_min(z, 0.25),
    "clip_": lambda z: (z * 1).clip_(max=0.25),
    "clamp to tensors": lambda z: torch.clamp(z, min=-Y.abs(), max=Y.abs() / 2),
    "leaky_relu": lambda z: F.leaky_relu(z, 0.25),
    "threshold": lambda z: F.threshold(z, 0.25, 0.5),
    "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
    "hardtanh": F.hardtanh,
    "hardsigmoid": lambda z: F.hardsigmoid(3 * z),
    "hardswish_": lambda z: F.hardswish(3 * z, inplace=True),
    "elu, alpha 2": lambda z: F.elu(z, 2.0),
    "selu": F.selu,
    "prelu": lambda z: F.prelu(z, torch.full((5,), 0.25, dtype=z.dtype)),
    "rrelu": lambda z: F.rrelu(z, training=True),
    "sign": lambda z: z * torch.sign(z),
    "round": lambda z: z * z.round(),
    "frac": torch.frac,
    "remainder": lambda z: z % 0.5,
    "max": lambda z: z.max() * z.sum(),
    "max over a dimension": lambda z: z.max(1).values,
    "max, kept": lambda z: torch.max(z, dim=0, keepdim=True)[0],
    "max of two": lambda z: torch.max(z, Y),
    "min": lambda z: z.min() + z.min(dim=1)[0],
    "amax": lambda z: z.amax(1),
    "amin": lambda z: z.amin((0, 1), keepdim=True),
    "maximum": lambda z: torch.maximum(z, z.flip(1)),
    "fmin": lambda z: torch.fmin(z, Y),
    "sort": lambda z: z.sort(1, descending=True).values * torch.arange(5),
    "topk": lambda z: z.topk(2, 1).values,
    "kthvalue": lambda z: torch.kthvalue(z, 2, 1).values,
    "median": lambda z: z.median() + z.median(1)[0],
    "cummax": lambda z: z.cummax(1)[0],
    "x·(x > 0)": lambda z: z * (z > 0),
    "x[x < 0] = 0": set_to_zero,
    "x[x > 0]": lambda z: z[z > 0],
    "where": lambda z: torch.where(z > 0.25, z.sin(), z.exp()),
    "masked_fill": lambda z: z.masked_fill(z < 0, 0),
    "argmax": lambda z: z.gather(1, z.argmax(1, keepdim=True)),
    "norm, p = 1": lambda z: z.norm(p=1),
    "vector_norm, p = inf": lambda z: torch.linalg.vector_norm(z, float("inf"), dim=1),
    "l1_loss": lambda z: F.l1_loss(z, Y),
    "smooth_l1_loss, beta 0": lambda z: F.smooth_l1_loss(z, Y, beta=0.0),
    "hinge_embedding_loss": lambda z: F.hinge_embedding_loss(z, SIGNS),
    "margin_ranking_loss": lambda z: F.margin_ranking_loss(z, z.flip(0), SIGNS, 0.25),
    "multi_margin_loss": lambda z: F.multi_margin_loss(z, LABELS),
    "triplet_margin_loss": lambda z: F.triplet_margin_loss(z, Y, z.flip(0), swap=True),
    "pairwise_distance, p = 1": lambda z: F.pairwise_distance(z, Y, 1),
    "max_pool1d": lambda z: F.max_pool1d(z[None], 2),
    "max_pool2d": lambda z: F.max_pool2d(z[None, None], 2, padding=1),
    "max_pool2d with indices": lambda z: F.max_pool2d(z[None], 2, return_indices=True)[0],
    "max_pool3d": lambda z: F.max_pool3d(z[None, None], (1, 2, 2)),
    "adaptive_max_pool2d": lambda z: F.adaptive_max_pool2d(z[None], 2),
    "dropout, relu": lambda z: F.dropout(z).relu(),
}
SMOOTH = {
    "relu(x)²": lambda z: torch.relu(z) ** 2,
    "relu(x).square()": lambda z: z.relu().square(),
    "relu(x)·relu(x)": lambda z: z.relu() * z.relu(),
    "x·relu(x)": lambda z: z * F.relu(z),
    "relu(x)^1.5": lambda z: z.relu() ** 1.5,
    "relu_(x)²": lambda z: F.relu(z * 1, inplace=True).pow(2),
    "x·|x|": lambda z: z * z.abs(),
    "((x + |x|)/2)²": lambda z: ((z + abs(z)) / 2) ** 2,
    "clamp(x, 0)²": lambda z: z.clamp(min=0).pow(2),
    "maximum(x, 0)²": lambda z: torch.maximum(z, torch.zeros_like(z)) ** 2,
    "(x·(x > 0))²": lambda z: (z * (z > 0)) ** 2,
    "x[x < 0] = 0, squared": lambda z: set_to_zero(z) ** 2,
    "float32": lambda z: z.float().relu() ** 2,
    "softshrink²": lambda z: F.softshrink(z) ** 2,
    "squared hinge": lambda z: torch.clamp(1 - SIGNS * z, min=0) ** 2,
    "multi_margin_loss, p = 2": lambda z: F.multi_margin_loss(z, LABELS, p=2, reduction="sum"),
    "Huber by where": huber,
    "Huber by where, of residuals": lambda z: huber(z - Y),
    "Huber, residuals written twice": lambda z: torch.where((z - Y).abs() < 1, (z - Y) ** 2 / 2, (z - Y).abs() - 0.5),
    "Huber by clamp": lambda z: z.clamp(-0.7, 0.7) * (z - 0.5 * z.clamp(-0.7, 0.7)),
    "Huber by minimum": lambda z: (lambda m: 0.5 * m**2 + 0.7 * (z.abs() - m))(z.abs().clamp(max=0.7)),
    "huber_loss": lambda z: F.huber_loss(z, Y),
    "smooth_l1_loss": lambda z: F.smooth_l1_loss(z, Y),
    "elu by where": lambda z: torch.where(z > 0, z, torch.exp(z) - 1),
    "elu": F.elu,
    "celu": lambda z: F.celu(z, 2.0),
    "softsign": F.softsign,
    "x/(1 + |x|)": lambda z: z / (1 + z.abs()),
    "gelu": F.gelu,
    "softplus": F.softplus,
}
ALMOST = {  # mutants of the spellings above, with a kink
    "relu(x)² + relu(x)": lambda z: (lambda r: r**2 + r)(torch.relu(z)),
    "relu(x)·relu(−x + 1)": lambda z: torch.relu(z) * torch.relu(1 - z),
    "clamp(x, 0.1)²": lambda z: z.clamp(min=0.1) ** 2,
    "Huber, wrong slope": lambda z: torch.where(z.abs() < 0.7, 0.5 * z**2, 0.8 * (z.abs() - 0.39375)),
    "elu by where, alpha 2": lambda z: torch.where(z > 0, z, 2 * (torch.exp(z) - 1)),
    "relu(x) used twice": lambda z: torch.cat([z.relu(), z.relu() ** 2]),
    "relu(x) of a padded batch": lambda z: torch.relu(z) * PADDING,  # 0 at each unit that is looked at
}


def problem(op):
    X = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    w = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    return w, lambda: torch.sin(op(X @ w).sum() / 3) + op(X @ w).mean()


def moved(w, by, seed=5):
    with torch.no_grad():
        w += by * torch.randn(w.shape, dtype=w.dtype, generator=torch.Generator().manual_seed(seed))


def gradient(loss, params):
    params = [params] if isinstance(params, torch.Tensor) else list(params)
    found = torch.autograd.grad(loss, params, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(params, found)])


def plain(closure, params, *modules):
    with undisturbed(*modules):
        return gradient(closure(), params)


def close(a, b, digits=1e-12):
    return float((a - b).norm()) <= digits * max(1.0, float(b.norm()))


@pytest.mark.parametrize("name", KINKED)
def test_operations(name):
    w, closure = problem(KINKED[name])
    g = plain(closure, w)
    loss, selection = record(closure)
    assert selection.choices and not selection.unseen
    assert not any(c.whole for c in selection.choices)
    assert close(gradient(loss, w), g)
    assert close(gradient(replay(closure, selection), w), g)
    moved(w, 1e-9)
    assert close(gradient(replay(closure, selection), w), plain(closure, w), 1e-11)  # nothing flips
    moved(w, 1.0)
    after = record(closure)[1]
    assert sum(f.flipped for f in flips(selection, after)) > 0
    assert not close(gradient(replay(closure, selection), w), plain(closure, w), 1e-3)
    assert close(gradient(replay(closure, after), w), plain(closure, w))


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_in_every_spelling(name):
    w, closure = problem(SMOOTH[name])
    selection = record(closure)[1]
    moved(w, 1.0)
    g = plain(closure, w)
    assert all(c.whole for c in selection.choices) and not selection.unseen
    assert torch.equal(gradient(replay(closure, selection), w), g) or close(gradient(replay(closure, selection), w), g)
    if selection.choices:
        assert sum(f.flipped for f in flips(selection, record(closure)[1])) > 0


@pytest.mark.parametrize("name", ALMOST)
def test_almost_smooth_is_not(name):
    w, closure = problem(ALMOST[name])
    selection = record(closure)[1]
    assert not all(c.whole for c in selection.choices)
    moved(w, 1.0)
    assert not close(gradient(replay(closure, selection), w), plain(closure, w), 1e-4)


BREAKS = torch.tensor([-3.0, -1.0, -0.5, -0.5, 0.0, 0.25, 0.5, 1.0, 1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
AT_TIES = {
    **{name: KINKED[name] for name in ("relu", "abs", "clamp", "clamp_min", "clip_", "leaky_relu", "threshold")},
    **{name: KINKED[name] for name in ("softshrink", "hardshrink", "hardtanh", "elu, alpha 2", "selu", "x·(x > 0)")},
    **{name: KINKED[name] for name in ("x[x < 0] = 0", "where", "masked_fill", "round", "frac", "remainder", "sign")},
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "clamp to tensors": lambda w: torch.clamp(w, torch.full_like(w, -0.5), torch.full_like(w, 1.0)),
    "maximum": lambda w: torch.maximum(w, torch.full_like(w, 0.5)),
    "minimum of two that move": lambda w: torch.minimum(w, w.flip(0)),
    "fmax": lambda w: torch.fmax(w, torch.full_like(w, 0.5)),
    "prelu": lambda w: F.prelu(w, torch.tensor([0.25], dtype=w.dtype)),
    "max": lambda w: torch.cat([w[:9].max()[None], w[:4].max()[None]]),
    "max over a dimension": lambda w: w.reshape(3, 4).max(1).values,
    "amax": lambda w: w[:9].reshape(3, 3).amax((0, 1)),
    "median": lambda w: w[:5].median(),
    "sort": lambda w: w.flip(0).sort(stable=True).values,
    "topk": lambda w: w[:9].topk(2).values,
    "max_pool1d": lambda w: F.max_pool1d(w[None], 2),
    "l1_loss": lambda w: F.l1_loss(w, w.detach().round()),
    "margin_ranking_loss": lambda w: F.margin_ranking_loss(w, w.flip(0), torch.ones_like(w), 0.0),
    "multi_margin_loss": lambda w: F.multi_margin_loss(w.reshape(3, 4), torch.tensor([0, 1, 2]), margin=0.5),
}


@pytest.mark.parametrize("name", AT_TIES)
def test_ties_are_torchs_own(name):
    w = BREAKS.clone().requires_grad_()
    weights = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(6))

    def closure():
        y = AT_TIES[name](w).reshape(-1)
        return y @ weights[: len(y)]

    selection = record(closure)[1]
    assert close(gradient(replay(closure, selection), w), plain(closure, w))


def test_ties_are_counted():
    w = BREAKS.clone().requires_grad_()
    assert record(lambda: torch.relu(w).sum())[1].ties == 1
    assert record(lambda: F.hardtanh(w).sum())[1].ties == 3
    assert record(lambda: (torch.relu(w) ** 2).sum())[1].ties == 0  # no kink


def test_another_answer_at_a_tie_is_rejected():
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    closure = lambda: torch.relu(w).sum()  # noqa: E731
    choice = record(closure)[1].choices[0]
    other = Selection((dataclasses.replace(choice, piece=choice.piece + 1),))
    assert gradient(replay(closure, other), w).item() == 1.0 != plain(closure, w).item()


# --- models ----------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.other, self.relu = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        h = self.relu(self.norm(self.first(x)))
        return self.out(F.relu(self.other(self.second(h)) + h).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 6, num_layers=2, dropout=0.25, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(self.lstm(x[:, 0])[0][:, -1])


def mlp(activation=nn.ReLU):
    flat = nn.Flatten()
    return nn.Sequential(flat, nn.Linear(64, 9), activation(), nn.Linear(9, 9), activation(), nn.Linear(9, 3))


def cnn():
    head = (nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(), nn.Linear(36, 3))
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))


MODELS = {"MLP": mlp, "CNN": cnn, "ResNet": Residual, "LSTM": Recurrent, "GPT-2": gpt2}


def model_and_closure(name, dtype=torch.float64):
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    if name == "GPT-2":
        ids = torch.randint(0, 20, (3, 8))
        return model, lambda: model(input_ids=ids, labels=ids).loss
    x, y = torch.randn(10, 1, 8, 8, dtype=dtype), torch.randint(0, 3, (10,))
    return model, lambda: F.cross_entropy(model(x), y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_models(name, dtype):
    model, closure = model_and_closure(name, dtype)
    rounding = 1e4 * torch.finfo(dtype).eps
    params = list(model.parameters())
    g = plain(closure, params, model)
    loss, selection = record(closure)
    assert selection.unseen == ()
    assert bool(selection.choices) == (name in ("MLP", "CNN", "ResNet"))
    assert close(gradient(loss, params), g, rounding)
    assert close(gradient(replay(closure, selection), params), g, rounding)
    with torch.no_grad():
        for p in params:
            p += 0.03 * torch.randn_like(p)
    after = record(closure)[1]
    g = plain(closure, params, model)
    if selection.choices:
        assert sum(f.flipped for f in flips(selection, after)) > 0
        assert not close(gradient(replay(closure, selection), params), g, 1e-3)
    else:
        assert close(gradient(replay(closure, selection), params), g, rounding)
    assert close(gradient(replay(closure, after), params), g, rounding)


def test_layers_are_named():
    _, closure = model_and_closure("ResNet")
    assert [c.layer for c in record(closure)[1].choices] == ["relu", "Residual"]
    _, closure = model_and_closure("CNN")
    assert [(c.layer, c.operation) for c in record(closure)[1].choices] == [("2", "relu"), ("3", "max_pool2d")]
    assert record(lambda: closure().abs())[1].choices[-1].layer == "(outside modules)"


def test_a_hand_written_network():
    """Two hidden layers by NumPy, the masks of the old point in the new point's backward pass."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((7, 4)), rng.standard_normal(7)
    shapes = [(4, 5), (5, 5), (5, 1)]
    old = [rng.standard_normal(s) for s in shapes]
    new = [a + 0.5 * rng.standard_normal(a.shape) for a in old]

    def masks(weights):
        z = X @ weights[0]
        return [z > 0, np.maximum(z, 0) @ weights[1] > 0]

    def by_hand(weights, m):
        h = (X @ weights[0]) * m[0]
        k = (h @ weights[1]) * m[1]
        d = 2 * ((k @ weights[2])[:, 0] - y)[:, None] / len(y)
        dk = d @ weights[2].T * m[1]
        return np.concatenate([(X.T @ (dk @ weights[1].T * m[0])).ravel(), (h.T @ dk).ravel(), (k.T @ d).ravel()])

    ws = [torch.tensor(a, requires_grad=True) for a in old]
    net = lambda: torch.relu(torch.relu(torch.tensor(X) @ ws[0]) @ ws[1]) @ ws[2]  # noqa: E731
    closure = lambda: ((net()[:, 0] - torch.tensor(y)) ** 2).mean()  # noqa: E731
    selection = record(closure)[1]
    for w, a in zip(ws, new):
        w.data.copy_(torch.tensor(a))
    frozen = gradient(replay(closure, selection), ws).numpy()
    changed = [int((a != b).sum()) for a, b in zip(masks(old), masks(new))]
    assert np.allclose(frozen, by_hand(new, masks(old)), rtol=1e-12)
    assert not np.allclose(frozen, by_hand(new, masks(new)), rtol=1e-2)
    assert min(changed) > 0
    assert [f.flipped for f in flips(selection, record(closure)[1])] == changed


def test_a_mask_in_the_wrong_order_is_rejected():
    model, closure = model_and_closure("MLP")
    first, second = record(closure)[1].choices
    assert first.shape == second.shape
    with pytest.raises(ValueError, match=r"operation 0 is relu in 2 on .10, 9., and recorded there was number 1"):
        replay(closure, Selection((second, first)))
    forged = Selection((dataclasses.replace(first, piece=second.piece), dataclasses.replace(second, piece=first.piece)))
    g = plain(closure, model.parameters())
    assert not close(gradient(replay(closure, forged), model.parameters()), g, 1e-3)


def test_hessian_products_of_the_frozen_piece():
    model, closure = model_and_closure("CNN")
    params = list(model.parameters())
    selection = record(closure)[1]
    v = [torch.randn_like(p) for p in params]
    slopes = torch.autograd.grad(replay(closure, selection), params, create_graph=True)
    product = gradient(sum((s * d).sum() for s, d in zip(slopes, v)), params)
    beside = []
    for sign in (1, -2):
        for p, d in zip(params, v):
            p.data.add_(sign * 1e-5 * d)
        beside.append(gradient(replay(closure, selection), params))
    assert close(product, (beside[0] - beside[1]) / 2e-5, 1e-7)


def test_control_flow_follows_the_record():
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    closure = lambda: w**2 if w > 0 else w.exp()  # noqa: E731
    selection = record(closure)[1]
    w.data.fill_(-3.0)
    assert replay(closure, selection).item() == 9.0
    assert closure().item() == pytest.approx(np.exp(-3))


def test_other_operations_are_refused():
    w = torch.ones(3, requires_grad=True)
    selection = record(lambda: torch.relu(w).sum())[1]
    with pytest.raises(ValueError, match=r"operation 0 is abs in .outside modules. on .3,., and recorded there was"):
        replay(lambda: w.abs().sum(), selection)
    with pytest.raises(ValueError, match=r"on .2,., and recorded there was number 0, relu"):
        replay(lambda: torch.relu(w[:2]).sum(), selection)
    with pytest.raises(ValueError, match=r"relu in .outside modules. was not recorded"):
        replay(lambda: torch.relu(torch.relu(w)).sum(), selection)
    with pytest.raises(ValueError, match="the closure ended before its recorded operation 0, relu"):
        replay(lambda: w.sum(), selection)
    with pytest.raises(ValueError, match=r"flips: the two runs did 1 and 0 operations"):
        flips(selection, record(lambda: w.sum())[1])


def test_bad_closures_are_refused():
    w = torch.ones(3, requires_grad=True)

    def backward():
        loss = torch.relu(w).sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="record: the closure called backward"):
        record(backward)
    assert w.grad is None
    with pytest.raises(ValueError, match=r"the loss, a scalar tensor, not a tensor of shape \(3,\)"):
        record(lambda: torch.relu(w))
    with pytest.raises(ValueError, match="the loss, a scalar tensor, not float"):
        record(lambda: torch.relu(w).sum().item())


class Hinge(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * (x > 0)

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


def test_what_may_hide_kinks_is_listed():
    X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    unseen = lambda f: "; ".join(record(lambda: f(X).sum())[1].unseen)  # noqa: E731
    assert unseen(Hinge.apply) == "custom autograd function Hinge"
    torch.manual_seed(0)
    assert unseen(lambda x: nn.RNN(4, 3, nonlinearity="relu")(x[None])[0]).startswith(
        "an operation without a rule (Relu"
    )
    assert unseen(lambda x: torch.cdist(x, x * 2, p=1.0)) == "an operation without a rule (Cdist)"
    assert unseen(lambda x: torch.cdist(x, x * 2)) == ""
    assert unseen(lambda x: F.multilabel_margin_loss(x, torch.zeros(6, 4).long())) != ""
    assert unseen(lambda x: x.quantile(0.3)) == "an operation without a rule (Sort)"
    assert unseen(lambda x: x * x.sum().item()) == "a number taken out of torch by item in (outside modules)"
    assert unseen(torch.vmap(lambda row: torch.relu(row) * row)).startswith("torch.func (vmap, grad and the like)")
    assert unseen(lambda x: F.gumbel_softmax(x, hard=True)) == "gumbel_softmax in (outside modules)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is on its way out
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    assert "scripted module" in unseen(scripted)


def test_compiled_models_are_run_eagerly():
    model, _ = model_and_closure("MLP")
    x = torch.randn(4, 64, dtype=torch.float64)
    compiled, called = torch.compile(model, backend=lambda graph, inputs: called.append(graph) or graph), []
    loss, selection = record(lambda: compiled(x).square().sum())
    assert [c.layer for c in selection.choices] == ["2", "4"] and not called
    assert replay(lambda: compiled(x).square().sum(), selection).item() == loss.item() == model(x).square().sum().item()
    compiled(x)
    assert called  # outside it is compiled as ever


def test_autocast():
    model, _ = model_and_closure("MLP", torch.float32)
    x = torch.randn(4, 64)

    def closure():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(x).float().square().sum()

    selection = record(closure)[1]
    assert torch.equal(gradient(replay(closure, selection), model.parameters()), plain(closure, model.parameters()))


def state_of(model):
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    held = [t.clone() for t in tensors], [m.training for m in model.modules()], [id(b) for b in model.buffers()]
    hooks = len(nn.modules.module._global_forward_pre_hooks) + len(nn.modules.module._global_forward_hooks)
    return held, random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state(), hooks


def same(a, b):
    (tensors, *rest), python, numpy, rng, hooks = a
    (others, *others_rest), python_, numpy_, rng_, hooks_ = b
    alike = all(torch.equal(t, o) for t, o in zip(tensors, others, strict=True)) and torch.equal(rng, rng_)
    return alike and (rest, python, numpy, hooks) == (others_rest, python_, numpy_, hooks_)


def test_looking_changes_nothing():
    model, plain_closure = model_and_closure("CNN")
    plain_closure().backward()

    def closure():
        model[4].train(random.random() + np.random.rand() > -1)
        return plain_closure()

    before = state_of(model)
    selection = record(closure)[1]
    replay(closure, selection)
    with pytest.raises(ValueError, match="backward"):
        record(lambda: closure().backward())
    assert same(before, state_of(model))
    closure()
    assert not same(before, state_of(model))  # running it does

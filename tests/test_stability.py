"""Stability: the threshold read off a live optimiser is where torch's own diverges on a quadratic, option by option."""

from __future__ import annotations

import pytest
import torch
from torch import optim

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal
from nonsmooth.torch.stability import stability, step_scale

HELD = 1 - 1e-13
"""A second moment that does not forget; the gradients below are too small to change it."""
STEPS = 1500

CASES = {
    "sgd": (optim.SGD, {}),
    "sgd-decay": (optim.SGD, {"weight_decay": 0.7}),
    "sgd-maximize": (optim.SGD, {"maximize": True}),
    "momentum": (optim.SGD, {"momentum": 0.9}),
    "momentum-decay": (optim.SGD, {"momentum": 0.5, "weight_decay": 0.5}),
    "dampening": (optim.SGD, {"momentum": 0.8, "dampening": 0.5}),
    "ema": (optim.SGD, {"momentum": 0.9, "dampening": 0.9}),
    "nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "nesterov-maximize": (optim.SGD, {"momentum": 0.6, "nesterov": True, "maximize": True, "weight_decay": 0.3}),
    "adam": (optim.Adam, {"betas": (0.9, HELD)}),
    "adam-betas": (optim.Adam, {"betas": (0.5, HELD), "eps": 0.5}),
    "adam-no-momentum": (optim.Adam, {"betas": (0.0, HELD)}),
    "adam-decay": (optim.Adam, {"betas": (0.9, HELD), "weight_decay": 0.5}),
    "amsgrad": (optim.Adam, {"betas": (0.9, HELD), "amsgrad": True}),
    "adam-maximize": (optim.Adam, {"betas": (0.8, HELD), "maximize": True}),
    "adamw": (optim.AdamW, {"betas": (0.9, HELD), "weight_decay": 0.05}),
    "adamw-strong": (optim.AdamW, {"betas": (0.6, HELD), "weight_decay": 0.1, "amsgrad": True}),
    "nadam": (optim.NAdam, {"betas": (0.9, HELD)}),
    "nadam-decay": (optim.NAdam, {"betas": (0.5, HELD), "weight_decay": 0.4, "momentum_decay": 0.1}),
    "nadam-decoupled": (
        optim.NAdam,
        {"betas": (0.9, HELD), "weight_decay": 0.05, "decoupled_weight_decay": True},
    ),
    "radam": (optim.RAdam, {"betas": (0.9, HELD)}),
    "radam-never-adapts": (optim.RAdam, {"betas": (0.8, 0.5)}),
    "adamax": (optim.Adamax, {"betas": (0.9, HELD)}),
    "adagrad": (optim.Adagrad, {"lr_decay": 1e-17}),
    "adadelta": (optim.Adadelta, {"rho": HELD, "eps": 1e-3}),
    "rmsprop": (optim.RMSprop, {"alpha": HELD}),
    "rmsprop-momentum": (optim.RMSprop, {"alpha": HELD, "momentum": 0.7, "weight_decay": 0.2}),
    "rmsprop-centred": (optim.RMSprop, {"alpha": HELD, "momentum": 0.3, "centered": True}),
    "asgd": (optim.ASGD, {"alpha": 0.0, "lambd": 0.1}),
}
MOMENTS = ("exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "sum")


class Quadratic:
    """±½⟨x, Hx⟩ near 0, H of eigenvalues 1, 2, 4, and an optimiser long after its start, with moments that are held."""

    def __init__(self, kind, options, lr, groups=1):
        rng = torch.Generator().manual_seed(7)
        axes = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64))[0]
        self.H = (
            (-1.0 if options.get("maximize") else 1.0)
            * axes
            @ torch.diag(torch.tensor([1.0, 1.5, 2, 4]).double())
            @ axes.T
        )
        start = torch.zeros(4, dtype=torch.float64)
        self.params = [torch.nn.Parameter(a.clone()) for a in start.split(4 // groups)]
        self.optimizer = kind([{"params": [p]} for p in self.params], lr=lr, **options)
        for p in self.params:
            p.data.zero_()
            p.grad = torch.zeros_like(p)
        self.optimizer.step()
        for p in self.params:
            p.data.fill_(1e-10)
            state = self.optimizer.state[p]
            for name in set(MOMENTS) & set(state):
                state[name] = torch.linspace(1, 9, 4 // groups, dtype=torch.float64)
            if "acc_delta" in state:
                state["acc_delta"] = torch.linspace(4, 1, 4 // groups, dtype=torch.float64)
            if "step" in state:
                state["step"] = torch.tensor(1e15, dtype=torch.float64)
            if "mu_product" in state:
                state["mu_product"] = torch.tensor(0.0, dtype=torch.float64)

    def loss(self):
        x = torch.cat(self.params)
        return 0.5 * x @ self.H @ x

    def diverges(self):
        sizes = []
        for _ in range(STEPS):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
            sizes.append(float(torch.cat(self.params).detach().norm()))
            if sizes[-1] > 1e-4:  # a million times the start; farther on the second moment would notice
                return True
        return max(sizes[-20:]) > max(sizes[STEPS // 2 : STEPS // 2 + 20])


def critical(kind, options, groups=1, adjust=lambda optimizer, lr: None):
    """The lr at which the ratio read off the optimiser is 1, by the secant rule: decoupled decay bends the ratio."""
    lr = 0.3
    for _ in range(5):
        q = Quadratic(kind, options, lr, groups)
        adjust(q.optimizer, lr)
        lr /= stability(q.optimizer, q.loss, tol=1e-6).ratio
    return lr


@pytest.mark.parametrize("name", CASES)
def test_torch_diverges_at_the_threshold_within_one_percent(name):
    lr = critical(*CASES[name])
    assert not Quadratic(*CASES[name], 0.99 * lr).diverges()
    assert Quadratic(*CASES[name], 1.01 * lr).diverges()


def by_group(*changes):
    def adjust(optimizer, lr):
        for group, change in zip(optimizer.param_groups, changes, strict=True):
            group |= {name: value * lr if name == "lr" else value for name, value in change.items()}

    return adjust


@pytest.mark.parametrize(
    "adjust",
    [
        by_group({"lr": 1.0}, {"lr": 0.2}),
        by_group({"momentum": 0.9}, {"momentum": 0.3}),
        by_group({"lr": 1.0, "weight_decay": 0.5}, {"lr": 3.0, "momentum": 0.5}),
    ],
)
def test_groups_of_their_own(adjust):
    options = {"momentum": 0.8}
    lr = critical(optim.SGD, options, 2, adjust)
    for share, lost in ((0.99, False), (1.01, True)):
        q = Quadratic(optim.SGD, options, share * lr, 2)
        adjust(q.optimizer, share * lr)
        assert q.diverges() is lost


def test_the_words_of_the_theory():
    """Sharpness and threshold apart, for one group."""
    q = Quadratic(optim.SGD, {"momentum": 0.9}, 0.1)
    found = stability(q.optimizer, q.loss, tol=1e-6)
    assert found.sharpness == pytest.approx(4) and found.threshold == pytest.approx(2 * 1.9 / 0.1)
    q = Quadratic(optim.Adam, {"betas": (0.9, HELD)}, 0.1)
    found = stability(q.optimizer, q.loss, tol=1e-6)
    root = torch.linspace(1, 9, 4, dtype=torch.float64).sqrt().rsqrt()
    assert found.sharpness == pytest.approx(float(torch.linalg.eigvalsh(root[:, None] * q.H * root)[-1]), rel=1e-5)
    assert found.threshold == pytest.approx(38 / 0.1)
    assert found.ratio == pytest.approx(found.sharpness / found.threshold)


def test_bias_correction_is_in_the_preconditioner():
    """P = (1 − β₁ᵗ)(√v̂ + ε) at step t."""
    w = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    adam = optim.Adam([w], lr=0.1, betas=(0.9, 0.99), eps=0.0)
    for t in (1, 2):
        w.grad = torch.tensor([3.0], dtype=torch.float64)
        adam.step()
        found = stability(adam, lambda: w.square().sum())
        assert found.sharpness == pytest.approx(2 / (3 * (1 - 0.9**t))) and found.threshold == pytest.approx(380)


def test_a_wrapper_counts_as_what_it_wraps():
    w = torch.nn.Parameter(torch.ones(1))
    bare = optim.SGD([w], lr=0.5)
    wrapped = stability(Proximal(bare, L1(0.1)), lambda: w.square().sum())
    assert wrapped.optimizer == "SGD" and wrapped.ratio == stability(bare, lambda: w.square().sum()).ratio == 0.5


def test_step_ratio_of_an_orbit_is_one():
    """At the threshold x flips its sign: κ is then 2/lr, weight decay in it, whatever the start."""
    w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = optim.SGD([w], lr=0.5, weight_decay=1.0)
    scale = step_scale(optimizer)
    slope = lambda: 3.0 * w.detach().clone()  # noqa: E731
    x, g = w.detach().clone(), slope()
    w.grad = slope()
    optimizer.step()
    assert scale.ratio([w - x], [g], [slope()]) == pytest.approx(1.0)
    assert stability(optimizer, lambda: 1.5 * w.square().sum()).ratio == pytest.approx(1.0)


def test_what_has_no_threshold_is_refused():
    w = torch.nn.Parameter(torch.ones(1))
    loss = lambda: w.square().sum()  # noqa: E731
    with pytest.raises(TypeError, match="stability: LBFGS has no effective step: its step is a line search"):
        stability(optim.LBFGS([w]), loss)
    with pytest.raises(ValueError, match="stability: Adam has made no step yet; take one first"):
        stability(optim.Adam([w]), loss)
    with pytest.raises(ValueError, match="a learning rate of 0 moves nothing"):
        stability(optim.SGD([w], lr=0.0), loss)
    v = torch.nn.Parameter(torch.ones(1))
    game = optim.SGD([{"params": [w]}, {"params": [v], "maximize": True}], lr=0.1)
    with pytest.raises(ValueError, match="some groups maximise and some do not"):
        stability(game, loss)

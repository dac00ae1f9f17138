"""The audit's lints, mending lines and search in `.grad`: each fires on the wrong spelling and not on the right one."""

from __future__ import annotations

import pytest
import torch
from torch import optim

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal, weights
from nonsmooth.torch.l1_audit import PenaltyTerm, find_sign_in_grad, l1_audit, mending_lines


class Net(torch.nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.norm = torch.nn.Linear(6, 5, dtype=dtype), torch.nn.BatchNorm1d(5, dtype=dtype)
        self.outer = torch.nn.Linear(5, 1, dtype=dtype)
        self.X = torch.randn(16, 6, dtype=dtype)
        self.y = self.X @ torch.randn(6, 1, dtype=dtype) + torch.randn(16, 1, dtype=dtype)

    def loss(self, lam=0.0, names=()):
        out = self.outer(torch.relu(self.norm(self.inner(self.X))))
        held = dict(self.named_parameters())
        return (out - self.y).square().mean() + lam * sum(held[name].abs().sum() for name in names)


PROPER = ("inner.weight", "outer.weight")


def audited(
    names=PROPER, lam=0.1, through="autograd", kind=optim.SGD, dtype=torch.float32, reduction="", more=(), **options
):
    """A short run under the penalty as it says, and its audit without the turn."""
    model = Net(dtype)
    optimizer = kind(model.parameters(), **{"lr": 0.01} | options)
    if through == "proximal":
        optimizer = Proximal(optimizer, L1(lam), [dict(model.named_parameters())[name] for name in names])

    def loss():
        return model.loss(lam if through == "autograd" else 0.0, names)

    for _ in range(20):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    terms = [PenaltyTerm(name, lam, through, "train.py:9", reduction) for name in names]
    return l1_audit(optimizer, [*terms, *more], loss, model, steps=16, turn=False)


def fired(audit):
    return {lint.id: lint for lint in audit.lints}


CASES = {
    "detached": ({"through": "detached"}, [{}, {"through": "proximal"}]),
    "biases-and-norms": (
        {"names": (*PROPER, "inner.bias", "norm.weight")},
        [{}, {"names": ("norm.weight",)}],  # network slimming is on purpose
    ),
    "weight-decay": ({"lam": 1e-3, "weight_decay": 0.5}, [{"lam": 1e-3}, {"lam": 0.5, "weight_decay": 0.5}]),
    "moves-nothing": ({"lam": 1e-8}, [{"lam": 0.1}]),
    "second-moment": ({"kind": optim.Adam}, [{}, {"kind": optim.Adam, "through": "proximal"}]),
    "lr-too-large": ({"lr": 0.5, "lam": 2.0}, [{}, {"lr": 0.05, "lam": 2.0, "through": "proximal"}]),
    "several": ({"more": [PenaltyTerm("inner.weight", 0.2, "grad")]}, [{"more": []}]),
    "half-precision": ({"dtype": torch.bfloat16}, [{}, {"dtype": torch.bfloat16, "through": "proximal"}]),
}


@pytest.mark.parametrize("name", CASES)
def test_each_lint_fires_on_the_wrong_spelling_and_not_on_the_right_one(name):
    wrong, rights = CASES[name]
    lint = fired(audited(**wrong))[name]
    assert lint.says.endswith(".") and lint.do.endswith((".", ".")) and lint.evidence
    for right in rights:
        assert name not in fired(audited(**right))


def test_a_sound_run_has_no_lint():
    assert fired(audited()) == {} and fired(audited(through="proximal")) == {}


@pytest.mark.parametrize("kind", [optim.AdamW, optim.Adam, optim.RMSprop])
@pytest.mark.parametrize("through", ["autograd", "proximal"])
def test_weight_decay_is_weighed_as_the_optimiser_takes_it(kind, through):
    """Decoupled, it shrinks by lr · wd · |w| where the penalty does by τλ: the same wd dwarfs one and not the other."""
    wd = {"weight_decay": 0.5}
    assert "weight-decay" in fired(audited(kind=kind, lam=1e-6, through=through, **wd))
    assert "weight-decay" not in fired(audited(kind=kind, lam=2.0, through=through, **wd))


def test_decoupled_decay_is_compared_in_the_optimisers_own_unit():
    w = torch.nn.Parameter(torch.full((4, 4), 0.5, dtype=torch.float64))
    optimizer = optim.AdamW([w], lr=0.1, weight_decay=0.4, betas=(0.0, 0.0), eps=0.0)
    w.grad = torch.full_like(w, 0.01)
    optimizer.step()  # now √v = 0.01, τ = 10: λ = 0.005 moves by 0.05, the decay by 0.1 · 0.4 · |w| < 0.02
    for lam, dwarfs in ((0.005, False), (0.001, True)):
        term = PenaltyTerm("w", lam, "grad")
        audit = l1_audit(optimizer, [term], lambda: (0.01 * w).sum(), {"w": w}, steps=16, turn=False)
        assert ("weight-decay" in fired(audit)) is dwarfs
        ratio = 0.4 * 0.01 * float(w.detach().median()) / lam
        assert not dwarfs or f"{ratio:.3g} times as hard" in fired(audit)["weight-decay"].evidence


def test_a_mean_is_told_from_a_sum():
    lint = fired(audited(names=("inner.weight",), lam=1e-3 / 30 / 1000, reduction="mean"))["moves-nothing"]
    assert "The mean over 30 weights makes λ = 3.33e-08 of 1e-06." in lint.evidence and "Sum |w|" in lint.do


def test_the_line_for_a_mean_has_the_lam_of_each_layer():
    model = Net()
    named = dict(model.named_parameters())
    optimizer = optim.SGD(model.parameters(), lr=0.01)

    def lines(lams):
        terms = [PenaltyTerm(name, lam, "autograd", "", "mean") for name, lam in zip(PROPER, lams, strict=True)]
        loss = lambda: model.loss() + sum(term.lam * named[term.name].abs().sum() for term in terms)  # noqa: E731
        return fired(l1_audit(optimizer, terms, loss, model, steps=16, turn=False))["mean-not-sum"].lines

    assert lines((0.1, 0.1)).startswith("# lam = 0.1 is as much as now\npenalty = lam * sum(")
    apart = lines((1 / 30, 1 / 5))
    assert apart.startswith("# one lam for all: now it is from 0.0333 (inner.weight) to 0.2 (outer.weight)\npenalty")


def test_a_lam_that_cannot_be_told_is_left_to_the_reader():
    """The evidence says so, and the lines have a name in place of a number."""
    model = Net()
    named, own = dict(model.named_parameters()), optim.AdamW(model.parameters(), lr=0.25)
    term = PenaltyTerm("outer.weight", 0.0, "detached", "train.py:3")
    lint = fired(l1_audit(own, [term], lambda: model.loss(), model, turn=False))["detached"]
    assert lint.evidence.endswith("λ, and whether it is on other weights too, cannot be told")
    assert "# lam, and on which weights, could not be told: write those of your script" in lint.lines
    scope = {"torch": torch, "model": model, "lam": 0.5}
    exec(lint.lines, scope)
    assert [(id(p), g.lam) for p, g, _ in scope["optimizer"].penalised()] == [(id(p), 0.5) for p in weights(model)]
    beside = mending_lines(own, [term, PenaltyTerm("inner.weight", 0.1, "autograd")], named, model)
    assert "L1(0.1)" in beside and "take out the penalty, which has no gradient" in beside


def test_the_first_evidence_is_a_place():
    lint = fired(audited(through="detached"))["detached"]
    assert lint.evidence.startswith("inner.weight, outer.weight (train.py:9)")
    assert "take out the penalty, which has no gradient" in lint.lines


# --- the mending lines ----------------------------------------------------------------------------------------------


OPTIMISERS = [
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (optim.Adam, {"lr": 3e-4, "betas": (0.8, 0.99), "amsgrad": True}),
    (optim.AdamW, {"lr": 1e-3}),
    (optim.RMSprop, {"lr": 0.02, "alpha": 0.9, "centered": True}),
]


@pytest.mark.parametrize(("kind", "options"), OPTIMISERS)
def test_the_mending_lines_run_and_make_this_optimiser(kind, options):
    model = Net()
    own = kind(model.parameters(), **options)
    terms = [PenaltyTerm(name, 0.0625, "autograd") for name in PROPER]
    scope = {"torch": torch, "model": model}
    exec(mending_lines(own, terms, dict(model.named_parameters()), model), scope)
    made = scope["optimizer"]
    assert isinstance(made, Proximal) and type(made.optimizer) is kind
    assert {name: made.param_groups[0][name] for name in own.defaults} == own.defaults
    assert [(id(p), g.lam) for p, g, _ in made.penalised()] == [(id(p), 0.0625) for p in weights(model)]


def test_a_lam_for_each_parameter_and_groups_of_the_user():
    model = Net()
    groups = [{"params": model.inner.parameters()}, {"params": model.outer.parameters(), "lr": 0.5}]
    own = optim.SGD(groups, lr=0.1)
    terms = [PenaltyTerm(name, 1 / dict(model.named_parameters())[name].numel(), "autograd") for name in PROPER]
    scope = {"optimizer": own, "model": model}
    lines = mending_lines(own, terms, dict(model.named_parameters()), model)
    exec(lines, scope)
    assert scope["optimizer"].optimizer is own and "after the line that makes your optimizer" in lines
    found = {id(p): g.lam for p, g, _ in scope["optimizer"].penalised()}
    assert found == {id(model.inner.weight): 0.0333333, id(model.outer.weight): 0.2}


@pytest.mark.parametrize(("lams", "which"), [((0.5, 0.5), "p.ndim > 1"), ((0.5, 0.25), "held[2]"), ((0.5,), "held[0]")])
def test_an_optimiser_of_two_modules_is_left_as_it_is(lams, which):
    """No module holds what it trains: a line that makes it anew from one would drop the other."""
    one, two = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)
    own = optim.SGD([*one.parameters(), *two.parameters()], lr=0.1)
    named = {"weight": one.weight, "bias": one.bias, "Linear-2.weight": two.weight, "Linear-2.bias": two.bias}
    terms = [PenaltyTerm(n, lam, "autograd") for n, lam in zip(("weight", "Linear-2.weight"), lams, strict=False)]
    for model in (None, one):
        lines, scope = mending_lines(own, terms, named, model), {"optimizer": own}
        assert which in lines and "penalised: weight" in lines and "model" not in lines
        exec(lines, scope)
        made = scope["optimizer"]
        found = {id(p): g.lam for p, g, _ in made.penalised()}
        assert made.optimizer is own and found == {id(named[term.name]): term.lam for term in terms}


def test_the_rate_is_the_one_that_a_schedule_began_with_and_biases_are_left_out():
    model = Net()
    own = optim.SGD(model.parameters(), lr=0.5)
    optim.lr_scheduler.ExponentialLR(own, 0.1)
    own.param_groups[0]["lr"] = 0.005
    terms = [PenaltyTerm(name, 0.1, "grad", "t.py:3") for name in (*PROPER, "inner.bias")]
    lines = mending_lines(own, terms, dict(model.named_parameters()), model)
    assert "lr=0.5" in lines and "params=weights(model)" in lines and lines.count("# t.py:3") == 1


def test_a_proximal_that_is_there_stays():
    model = Net()
    own = Proximal(optim.SGD(model.parameters(), lr=0.1), L1(0.1), weights(model))
    both = [PenaltyTerm(name, 0.1, through) for name in PROPER for through in ("proximal", "autograd")]
    named = dict(model.named_parameters())
    assert mending_lines(own, both[::2], named, model) == ""
    assert mending_lines(own, both, named, model).splitlines() == [
        "# take the penalty out of the loss",
        "# the Proximal stays as it is",
    ]


# --- the sign in .grad ----------------------------------------------------------------------------------------------


def found_in(seen_of, dtype=torch.float32, lam=0.01):
    """What is found where `.grad` is seen_of(gradient of the loss, w) for each parameter."""
    model = Net(dtype)
    named = list(model.named_parameters())
    loss = torch.autograd.grad(model.loss(), [p for _, p in named])
    seen = [seen_of(name, g, p.detach()) for (name, p), g in zip(named, loss, strict=True)]
    return find_sign_in_grad(named, seen, loss), named, loss


def test_lam_is_found_to_rounding():
    for lam in (1e-4, 0.01, 3.0):
        found, *_ = found_in(lambda name, g, w, lam=lam: g + lam * w.sign() if name in PROPER else g)
        assert [(t.name, t.through) for t in found.terms] == [(name, "grad") for name in PROPER]
        assert all(t.lam == pytest.approx(lam, rel=1e-6, abs=2e-8) for t in found.terms)
        assert found.clip_factor == 1.0 and found.unknown == ()


def test_a_lam_below_rounding_is_found_where_there_are_many_weights():
    found, *_ = found_in(lambda name, g, w: g.double() + 1e-7 * w.double().sign() if name in PROPER else g)
    assert "inner.weight" in [t.name for t in found.terms]
    assert found.terms[0].lam == pytest.approx(1e-7, rel=1e-6)


def test_what_is_not_there_is_not_found():
    assert found_in(lambda name, g, w: g)[0].terms == ()
    noisy, *_ = found_in(lambda name, g, w: g * (1 + 5e-8 * torch.randn_like(g)))
    assert noisy.terms == () and noisy.unknown == ()


@pytest.mark.parametrize("factor", [0.25, 1024.0])
def test_clipping_and_scaling_are_one_factor(factor):
    found, *_ = found_in(lambda name, g, w: factor * g)
    assert found.clip_factor == pytest.approx(factor, rel=1e-5) and found.terms == () and found.unknown == ()


@pytest.mark.parametrize("first", [True, False])
def test_both_at_once(first):
    """λ sign(w) before clipping reaches the optimiser as 0.25 λ, and after it as λ."""

    def seen(name, g, w):
        s = 0.01 * w.sign() * (name in PROPER)
        return 0.25 * (g + s) if first else 0.25 * g + s

    found, *_ = found_in(seen)
    assert [t.name for t in found.terms] == list(PROPER) and found.unknown == ()
    assert found.clip_factor == pytest.approx(0.25, rel=1e-5)
    assert all(t.lam == pytest.approx(0.0025 if first else 0.01, rel=1e-4) for t in found.terms)


WRONG = {
    "by value": lambda name, g, w: g.clamp(-0.01, 0.01),
    "weight decay": lambda name, g, w: g + 0.1 * w,
    "minus the sign": lambda name, g, w: g - 0.01 * w.sign(),
    "noise": lambda name, g, w: g + 0.01 * torch.randn(g.shape, generator=torch.Generator().manual_seed(0)),
    "a sign of something else": lambda name, g, w: g + 0.01 * g.sign(),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_forms_are_unknown(name):
    found, *_ = found_in(WRONG[name])
    assert found.terms == () and set(PROPER) <= set(found.unknown)


def test_zeros_have_no_sign_and_a_lonely_weight_says_nothing():
    w = torch.tensor([1.0, 0.0, -2.0, 0.0, 3.0])
    g = torch.tensor([0.3, -0.1, 0.2, 0.5, -0.7])
    lonely, one = torch.tensor([2.0]), torch.tensor([0.4])
    pairs = [("w", w), ("b", lonely)]
    alike = find_sign_in_grad(pairs, [g + 0.5 * w.sign(), one + 0.5], [g, one])
    assert [(t.name, pytest.approx(t.lam)) for t in alike.terms] == [("w", 0.5), ("b", 0.5)]
    apart = find_sign_in_grad(pairs, [g + 0.5 * w.sign(), one + 0.125], [g, one])
    assert [t.name for t in apart.terms] == ["w"] and apart.unknown == ("b",)
    nothing = find_sign_in_grad([("w", w)], [0.5 * w.sign()], [None])
    assert nothing.terms[0].lam == 0.5


def test_the_search_refuses_lists_that_do_not_fit():
    w = torch.ones(2)
    with pytest.raises(ValueError, match="1 parameters need as many gradients, not 0 and 1"):
        find_sign_in_grad([("w", w)], [], [w])
    with pytest.raises(ValueError, match=r"a gradient of w has shape \(3,\), not its own"):
        find_sign_in_grad([("w", w)], [w], [torch.ones(3)])

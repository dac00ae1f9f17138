"""The audit of an L1 penalty: chatter, the laws, the optimality conditions, the turn; nothing is left of looking."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import optim
from torch.optim.optimizer import register_optimizer_step_post_hook

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal
from nonsmooth.torch.findings import findings
from nonsmooth.torch.l1_audit import (
    Chatter,
    PenaltyTerm,
    Turning,
    TurningRow,
    bounce,
    bounce_of,
    continued,
    l1_audit,
    reach_of,
    turning_lam,
)
from test_undisturbed import same, snapshot

N, P = 50, 20


class LeastSquares:
    """‖y − Xw‖²/N + λ‖w‖₁ under autograd, run to the end at a constant step, with the last `window` steps watched."""

    def __init__(self, kind, lr, lam, steps=4000, window=400, penalised=True, prox=False, **options):
        rng = np.random.default_rng(0)
        self.X, noise = rng.standard_normal((N, P)), rng.standard_normal(N)
        self.y = self.X[:, :5] @ np.array([3.0, -2.0, 1.5, 1.0, -2.5]) + 0.3 * noise
        X, y = torch.tensor(self.X), torch.tensor(self.y)
        self.lam, self.w = lam, torch.nn.Parameter(0.1 * torch.tensor(rng.standard_normal(P)))
        self.optimizer = kind([self.w], lr=lr, **options)
        if prox:
            self.optimizer = Proximal(self.optimizer, L1(lam))
        penalised = penalised and not prox
        self.loss = lambda: (y - X @ self.w).square().mean() + (lam * self.w.abs().sum() if penalised else 0.0)
        self.terms = [PenaltyTerm("w", lam, "proximal" if prox else "autograd", "train.py:12")]
        self.chatter = Chatter([self.w], reach=reach_of(self.optimizer))
        for t in range(steps):
            if t == steps - window:
                self.chatter.reset()
            self.step()
            if t >= steps - window:
                self.chatter.update()

    def step(self):
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def audit(self, **options):
        options = {"chatter": self.chatter, "turn": False} | options
        return l1_audit(self.optimizer, self.terms, self.loss, {"w": self.w}, **options)

    def exact(self):
        return Lasso(alpha=self.lam / 2, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(self.X, self.y).coef_


# --- chatter ---------------------------------------------------------------------------------------------------------


def slow_chatter(path, reach):
    """The definition, weight by weight, of a path (W + 1, n): chattering, mean |w|, sign changes."""
    W = len(path) - 1
    found = []
    for i in range(path.shape[1]):
        w = [float(v) for v in path[:, i]]
        signs = [np.sign(v) for v in w if v != 0]
        flips = sum(a != b for a, b in pairwise(signs))
        longest = max(abs(b - a) for a, b in pairwise(w))
        chatters = flips >= 2 and 0 not in w and max(map(abs, w[1:])) <= reach * longest
        even = W - W % 2
        found.append((chatters, sum(map(abs, w[1 : even + 1])) / even, flips))
    return found


@pytest.mark.parametrize("steps", [8, 9, 30])
@pytest.mark.parametrize("reach", [1.0, 2.0, 20.0])
def test_chatter_is_its_definition(steps, reach):
    rng = np.random.default_rng(steps)
    shape = (steps + 1, 60)
    path = rng.standard_normal(shape) * 10 ** rng.uniform(-1, 1, 60) + rng.choice([0, 1, 5], 60)
    path[rng.random(shape) < 0.02] = 0.0
    w = torch.tensor(path[0])
    chatter = Chatter([w[:20], w[20:]], reach=reach)
    for row in path[1:]:
        w.copy_(torch.tensor(row))
        chatter.update()
    slow = slow_chatter(path, reach)
    fast = torch.cat(chatter.chattering).tolist()
    assert fast == [c for c, _, _ in slow] and 0 < sum(fast) < 60
    np.testing.assert_allclose(torch.cat(chatter.amplitude), [m for _, m, _ in slow], rtol=1e-12)
    row = chatter.row(reset=True)
    assert row["window"] == steps and row["weights"] == 60 and row["chattering"] == sum(fast)
    np.testing.assert_allclose(row["amplitude"], np.mean([m for c, m, _ in slow if c]), rtol=1e-12)
    np.testing.assert_allclose(row["flips"], np.mean([f for c, _, f in slow if c]) / steps, rtol=1e-12)
    np.testing.assert_allclose(row["norm"], sum(m for _, m, _ in slow), rtol=1e-12)
    assert row["zeros"] == int((path[-1] == 0).sum()) and chatter.steps == 0


def test_a_sample_is_fixed_fair_and_scaled_up():
    big, small = torch.full((30_000,), 2.0), torch.full((100, 10), 1.0)
    chatter, again = (Chatter([big, small], most=500, seed=3) for _ in range(2))
    assert chatter.tracked <= 500 and all(int(f.sum()) > 0 for f in chatter.followed)
    assert all(torch.equal(a, b) for a, b in zip(chatter.places, again.places, strict=True))
    assert not torch.equal(chatter.places[0], Chatter([big, small], most=500, seed=4).places[0])
    for _ in range(8):
        chatter.update()
    assert chatter.row()["norm"] == pytest.approx(61_000, rel=1e-12) and chatter.row()["chattering"] == 0


def test_a_window_begins_where_the_weights_are():
    w = torch.tensor([5.0, 0.1])
    chatter = Chatter([w])
    w.copy_(torch.tensor([0.1, 0.1]))  # a long way that nobody watched must not lend its length to what follows
    chatter.reset()
    for t in range(8):
        w.copy_(torch.tensor([0.1 + 0.001 * t, 0.1 * (-1) ** t]))
        chatter.update()
    assert chatter.chattering[0].tolist() == [False, True]
    assert float(chatter.longest.max()) < 0.21


def test_zeros_that_come_and_go_flicker_and_do_not_chatter():
    w = torch.tensor([0.0, 0.0, 1.0])
    chatter = Chatter([w])
    for t in range(9):
        w[0] = [0.1, 0.0, -0.1][t % 3]
        w[2] = [1.0, -1.0][t % 2]
        chatter.update()
    row = chatter.row()
    assert (row["flickering"], row["chattering"], row["zeros"]) == (1, 1, 1)


# --- the laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_sgd_bounces_as_the_law_says_where_the_exact_solution_is_zero(lam):
    run = LeastSquares(optim.SGD, 4e-3, lam, steps=2500)
    audit, zeros = run.audit(), int((run.exact() == 0).sum())
    assert zeros == 15 and audit.kkt_zeros == audit.chattering == audit.by_penalty == zeros
    assert (audit.zeros, audit.kkt_exact, audit.fine) == (0, 0, False)
    assert audit.amplitude == pytest.approx(audit.amplitude_law.mean, rel=0.02)
    assert audit.floor_measured == pytest.approx(audit.floor.mean, rel=0.02)
    assert audit.floor.low == audit.floor.high and not audit.floor.has(2 * audit.floor_measured)
    assert audit.norm == pytest.approx(np.abs(run.exact()).sum() + audit.floor.mean, rel=5e-3)
    assert audit.lints == () and str(audit).startswith("L1: 15 of 20 weights should be zero and are not; 15 bounce")


def test_the_law_needs_the_gradient_of_the_data():
    run = LeastSquares(optim.SGD, 4e-3, 0.3, steps=2500)
    run.terms = [PenaltyTerm("w", 0.2, "autograd")]  # a wrong λ leaves a part of the sign in what counts as data
    audit = run.audit()
    assert not audit.by_penalty or not audit.amplitude_law.has(audit.amplitude, within=0.02)


def test_the_gradient_that_the_law_takes_is_that_of_the_data_alone():
    w = torch.nn.Parameter(torch.tensor([0.01, -0.02], dtype=torch.float64))
    decayed = optim.SGD([w], lr=0.1, weight_decay=0.5)
    audit = l1_audit(
        decayed,
        [PenaltyTerm("w", 1.0, "autograd"), PenaltyTerm("w", 1.0, "grad")],
        [lambda: (w.abs() + 0.5 * w).sum(), lambda: (w.abs() - 0.5 * w).sum()],
        {"w": w},
        turn=False,
        steps=16,
    )
    assert audit.layers[0].lam == 2.0 and audit.layers[0].through == "autograd+grad"
    law = 0.1 * (4 + 0.25) / 4  # τ(λ² + mean c²)/(2λ) at λ = 2, c = ±½, but for the decay's ½w
    assert audit.amplitude_law.mean == pytest.approx(law, rel=0.02)


def test_rmsprop_has_a_floor_that_does_not_depend_on_lam_and_sgd_has_one_that_does():
    lams, lr = (30.0, 300.0), 1e-3
    rms = [LeastSquares(optim.RMSprop, lr, lam, steps=1500).audit() for lam in lams]
    sgd = [LeastSquares(optim.SGD, lr, lam, steps=1500).audit() for lam in lams]
    for audit in rms:
        assert audit.floor.mean == pytest.approx(lr * P / 2, rel=0.05)
        assert audit.floor_measured == pytest.approx(lr * P / 2, rel=0.05)
        assert [lint.id for lint in audit.lints if lint.id == "second-moment"]
    assert sgd[1].floor_measured / sgd[0].floor_measured == pytest.approx(10, rel=0.1)
    assert sgd[1].floor.mean / sgd[0].floor.mean == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(optim.SGD, {"momentum": 0.9}), (optim.Adam, {}), (optim.SGD, {"momentum": 0.5, "nesterov": 1})],
)
def test_under_momentum_the_law_is_a_range(kind, options):
    audit = LeastSquares(kind, 1e-3, 1.0, steps=6000, **options).audit()
    assert audit.by_penalty == 15
    assert audit.floor.low < audit.floor_measured < audit.floor.high and audit.floor.high > 1.1 * audit.floor.low
    assert "range" in audit.law


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_range_is_that_of_torchs_own_momentum(nesterov):
    """One weight under λ|w| + cw, by torch.optim, from many starts: never outside of the range, and near its ends."""
    rng = np.random.default_rng(0)
    w = torch.nn.Parameter(torch.tensor(rng.uniform(-30, 30, 2000)))
    c = torch.tensor(np.where(np.arange(2000) < 1000, 0.0, rng.uniform(0, 0.9, 2000)))
    optimizer = optim.SGD([w], lr=1.0, momentum=0.9, nesterov=nesterov)
    w.grad = torch.tensor(rng.uniform(-1, 1, 2000) * 10)
    optimizer.step()
    total = torch.zeros(2000, dtype=torch.float64)
    for t in range(1200):
        w.grad = w.detach().sign() + c
        optimizer.step()
        total += w.detach().abs() * (t >= 600)
    ratio = total / 600 / (10 * (1 + c * c) / 2)
    found = bounce_of(optimizer)
    assert found == bounce(0.9, nesterov)
    assert found.low * 0.95 <= float(ratio.min()) < 1.1 * found.low
    assert 0.8 * found.high < float(ratio.max()) <= found.high * 1.1
    assert float(ratio.mean()) == pytest.approx(found.mean, rel=0.1)
    if not nesterov:
        assert (found.low, found.high) == pytest.approx((0.1 / 1.9, 0.85), abs=0.005)


def test_weights_that_noise_moves_are_not_held_against_the_law():
    """c of ±5λ by batch: the weight chatters, and not by the penalty."""
    w = torch.nn.Parameter(torch.tensor([0.05, 0.05], dtype=torch.float64))
    c = torch.tensor([0.0, 5.0], dtype=torch.float64)
    closures = [lambda: w.abs().sum() + (c * w).sum(), lambda: w.abs().sum() - (c * w).sum()]
    term = PenaltyTerm("w", 1.0, "autograd")
    audit = l1_audit(optim.SGD([w], lr=0.1), [term], closures, {"w": w}, steps=40, turn=False)
    assert (audit.chattering, audit.by_penalty, audit.window) == (2, 1, 20)  # the first half is not watched
    assert audit.amplitude == pytest.approx(0.05) and audit.amplitude_law.mean == pytest.approx(0.05)
    assert "1 by the penalty, 1 by gradients of the data larger than λ" in " ".join(str(audit).split())


def test_accidental_zeros_are_counted_and_do_not_chatter():
    w = torch.nn.Parameter(torch.tensor([0.5, 0.25], dtype=torch.float64))
    audit = l1_audit(
        optim.SGD([w], lr=0.5),
        [PenaltyTerm("w", 1.0, "autograd")],
        lambda: w.abs().sum(),
        {"w": w},
        steps=16,
        turn=False,
    )
    assert (audit.chattering, audit.zeros, audit.kkt_zeros) == (1, 0, 2)  # 0.5 comes to 0 in the continuation alone
    with torch.no_grad():
        w[0] = 0.0
    assert l1_audit(optim.SGD([w], lr=0.5), [PenaltyTerm("w", 1.0, "autograd")], lambda: w.abs().sum(), {"w": w},
                    steps=16, turn=False).zeros == 1  # fmt: skip


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_proximal_steps_are_fine(kind):
    run = LeastSquares(kind, 1e-2, 0.3, steps=4000, prox=True)
    audit = run.audit(turn=True, steps=16)
    assert audit.fine and audit.zeros == audit.kkt_zeros == audit.kkt_exact == int((run.exact() == 0).sum()) == 15
    assert (audit.chattering, audit.lints, audit.lines, audit.turning.turn) == (0, (), "", None)
    assert str(audit).startswith("L1: fine: 15 of 20 weights are exactly zero")
    assert [row.zeros for row in audit.turning.rows] == sorted(row.zeros for row in audit.turning.rows)


def test_without_an_effective_step_there_is_no_law():
    w = torch.nn.Parameter(torch.tensor([0.01, 2.0], dtype=torch.float64))
    audit = l1_audit(optim.Rprop([w]), [PenaltyTerm("w", 1.0, "autograd")], lambda: w.abs().sum(), {"w": w}, steps=16)
    assert audit.floor is None and audit.amplitude_law is None and "no law" in audit.law
    assert "torch.optim.SGD" in audit.lines and audit.turning.predicted is None


# --- the turn --------------------------------------------------------------------------------------------------------


class Diagonal:
    """½(w₀ − 1)² + Σ ½w_i² over 50 more weights + λ‖w‖₁: ‖w*‖₁ = (1 − λ)₊, and chatter holds 50 ηλ/(2 − η)."""

    lr, chattering = 0.02, 50

    def __init__(self, lam=0.5):
        rng = torch.Generator().manual_seed(0)
        start = 0.002 * torch.randn(1 + self.chattering, generator=rng, dtype=torch.float64)
        start[0] = 1 - lam
        self.w, target = torch.nn.Parameter(start), torch.zeros_like(start)
        target[0] = 1.0
        self.optimizer = optim.SGD([self.w], lr=self.lr)
        self.terms = [PenaltyTerm("w", lam, "autograd")]
        self.loss = lambda: 0.5 * (self.w - target).square().sum() + lam * self.w.abs().sum()

    def norm(self, lam):
        return max(1 - lam, 0) + self.chattering * self.lr * lam / (2 - self.lr)


def test_the_turn_is_where_the_chatter_overtakes_the_fall():
    problem = Diagonal(0.5)
    found = turning_lam(problem.optimizer, problem.terms, problem.loss, {"w": problem.w}, steps=600)
    assert found.turn == found.predicted == 2.0 and found.settled
    for row in found.rows:
        lam = 0.5 * row.multiple
        last = 0.5 * problem.lr * (lam + 1 / lam) if lam > 1 else 0.0  # w₀ bounces too: by ηλ(1 + r²)/2, r = 1/λ
        assert row.norm == pytest.approx(problem.norm(lam) + last, rel=0.01)
        assert row.predicted == pytest.approx(row.norm, rel=0.02)  # it leaves the curvature out: ηh/2
        assert row.proximal == pytest.approx(max(1 - lam, 0), abs=1e-5)
        assert row.zeros == 0 and row.proximal_zeros == (51 if lam > 1 else 50 if lam < 1 else row.proximal_zeros)
    norms = {row.multiple: row.norm for row in found.rows}
    assert norms[8.0] > norms[4.0] > norms[2.0] < norms[1.0]
    audit = l1_audit(problem.optimizer, problem.terms, problem.loss, {"w": problem.w}, steps=600)
    assert "From 2 times this λ (1) on, a larger λ RAISES the norm" in str(audit)
    assert audit.lints == ()
    beyond = Diagonal(2.0)
    audit = l1_audit(beyond.optimizer, beyond.terms, beyond.loss, {"w": beyond.w}, steps=100, multiples=(0.5, 1, 2))
    assert str(audit).splitlines()[0].endswith("A larger λ would RAISE the norm.")
    assert [lint.id for lint in audit.lints] == ["lr-too-large"]
    assert "at 0.5 times this λ and" in audit.lints[0].evidence and "chatter holds" in audit.lints[0].evidence


def test_a_falling_norm_has_no_turn_and_a_short_continuation_says_that_it_moves():
    problem = Diagonal(0.1)
    named = {"w": problem.w}
    falling = turning_lam(problem.optimizer, problem.terms, problem.loss, named, steps=500, multiples=(0.5, 1, 2))
    assert falling.turn is None and falling.predicted is None
    short = turning_lam(problem.optimizer, problem.terms, problem.loss, named, steps=40, multiples=(1, 8), law=False)
    assert [row.settled for row in short.rows] == [True, False] and "still moving" in str(short)


SEEN = (104.6, 110.8, 98.0, 86.3, 77.1, 47.5)
"""A short trial of AdamW on minibatches: one λ above the one before it, and a norm that falls."""


@pytest.mark.parametrize(
    ("norms", "drifts", "turn", "falls"),
    [
        (SEEN, (0.15, 0.13, 0.13, 0.14, 0.03, -0.08), None, True),
        (SEEN, (0.0,) * 6, None, False),  # one λ did raise the norm, and larger ones did not
        ((9.0, 7.0, 8.0), (0.0,) * 3, 2.0, False),
        ((7.0, 9.0, 8.0), (0.0,) * 3, 1.0, False),
        ((9.0, 7.0, 8.0), (0.0, -0.06, 0.06), 2.0, False),  # 8 − 7 > 0.06 · 15
        ((9.0, 7.0, 8.0), (0.0, -0.07, 0.07), None, False),  # 8 − 7 < 0.07 · 15
        ((9.0, 7.0, 7.03), (0.0,) * 3, None, True),  # not by 0.5 %
        ((9.0, 7.0, math.nan), (0.0, 0.0, math.nan), None, False),
        ((9.0, 9.0, 9.0), (0.0,) * 3, None, False),
    ],
)
def test_a_turn_is_the_least_norm_and_all_larger_lams_are_above_it(norms, drifts, turn, falls):
    pairs = zip(norms, drifts, strict=True)
    rows = tuple(TurningRow(2.0**i, norm, 0, drift, norm, norm, 0) for i, (norm, drift) in enumerate(pairs))
    found = Turning(rows, 50, "")
    assert (found.turn, found.predicted, found.falls) == (turn, turn, falls)


def test_what_the_trials_do_not_tell_is_not_said():
    target = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
    w = torch.nn.Parameter(0.5 * target)  # it still grows: by more than a larger λ takes off
    terms, loss = [PenaltyTerm("w", 1e-3, "autograd")], lambda: (w - target).square().sum() + 1e-3 * w.abs().sum()
    audit = l1_audit(optim.SGD([w], lr=0.01), terms, loss, {"w": w}, steps=40, multiples=(1, 40))
    assert audit.turning.turn is None and not audit.turning.falls and not audit.turning.settled
    assert "Whether a larger λ raises the norm cannot be told from these; the law foresaw no turn." in str(audit)
    told = next(one for one in findings({"l1": audit.to_dict()}, []) if one.id == "l1-turning")
    assert told.level == "note" and "cannot be told" in told.title and told.number is None


@pytest.mark.parametrize("through", ["autograd", "grad"])
def test_a_scaled_penalty_is_the_penalty_at_that_lam(through):
    """Against a run whose loss has the larger λ written in it; it stays away from kinks, so rounding is all."""
    target = torch.linspace(1, 3, 6, dtype=torch.float64)

    def loss_of(w, lam):
        return 0.5 * (w - target).square().sum() + lam * w.abs().sum()

    w, twin = (torch.nn.Parameter(torch.ones(6, dtype=torch.float64)) for _ in range(2))
    optimizer, other = (optim.SGD([p], lr=0.05, momentum=0.5) for p in (w, twin))
    inside = 0.1 if through == "autograd" else 0.0
    found, _ = continued(
        optimizer, [PenaltyTerm("w", 0.1, through)], [lambda: loss_of(w, inside)], {"w": w}, 20, multiple=3.0
    )
    for norm in found:
        other.zero_grad()
        loss_of(twin, 0.3).backward()
        other.step()
        assert norm == pytest.approx(float(twin.detach().abs().sum()), rel=1e-13)


# --- nothing is left -------------------------------------------------------------------------------------------------


def network(kind, prox=False):
    torch.manual_seed(0)
    layers = (
        torch.nn.Linear(3, 4),
        torch.nn.BatchNorm1d(4),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(4, 1),
    )
    model = torch.nn.Sequential(*layers)
    optimizer = kind(model.parameters())
    X = torch.linspace(-2, 3, 24).reshape(8, 3)
    names = ["0.weight", "4.weight"]
    penalised = [dict(model.named_parameters())[name] for name in names]
    if prox:
        optimizer = Proximal(optimizer, L1(0.01), penalised)

    def loss():
        extra = 0.0 if prox else 0.01 * sum(p.abs().sum() for p in penalised)
        return (model(X) + random.random() + np.random.rand() - torch.rand(())).square().mean() + extra

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        return sum(float(p.detach().abs().sum(dtype=torch.float64)) for p in penalised)

    for _ in range(3):
        step()
    terms = [PenaltyTerm(name, 0.01, "proximal" if prox else "autograd") for name in names]
    return model, optimizer, loss, step, terms


KINDS = {
    "sgd": (lambda p: optim.SGD(p, lr=0.1, momentum=0.9), False),
    "adam": (lambda p: optim.Adam(p, lr=0.01), False),
    "rmsprop": (lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5), False),
    "proximal": (lambda p: optim.AdamW(p, lr=0.01), True),
}


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_left_of_an_audit(name):
    model, optimizer, loss, step, terms = network(*KINDS[name])
    calls = []
    hook = optimizer.register_step_post_hook(lambda *_: calls.append(1))
    whole = register_optimizer_step_post_hook(lambda *_: calls.append(2))
    state = json.dumps(optimizer.state_dict(), default=lambda t: t.tolist())
    before, lam = (
        snapshot(model),
        [e["lam"] for e in getattr(optimizer, "entries", lambda: [])() if isinstance(e, dict)],
    )
    audit = l1_audit(optimizer, terms, loss, model, steps=16)
    same(before, snapshot(model))
    assert json.dumps(optimizer.state_dict(), default=lambda t: t.tolist()) == state and calls == [] and lam == []
    assert audit.weights == 16 and audit.turning.rows[0].norm != audit.turning.rows[-1].norm
    hook.remove()
    whole.remove()
    there, run = continued(optimizer, terms, [loss], dict(model.named_parameters()), 5)[0], [step() for _ in range(5)]
    assert there == run  # what the audit foresaw is what the run then does, to the last bit


def test_what_the_closure_raises_leaves_nothing_either():
    model, optimizer, loss, _, terms = network(*KINDS["sgd"])
    before, left = snapshot(model), 20

    def fails():
        nonlocal left
        left -= 1
        if left < 0:
            raise RuntimeError("out of data")
        return loss()

    with pytest.raises(RuntimeError, match="out of data"):
        l1_audit(optimizer, terms, fails, model, steps=32)
    same(before, snapshot(model))


# --- data and errors -------------------------------------------------------------------------------------------------


def test_an_audit_is_plain_data_and_readable():
    run = LeastSquares(optim.Adam, 1e-2, 0.3, steps=300)
    audit = run.audit(turn=True, steps=16, data="all rows")
    plain = json.loads(json.dumps(audit.to_dict(), allow_nan=False))
    assert plain["chattering"] == audit.chattering and plain["fine"] is False and len(plain["turning"]["rows"]) == 6
    assert plain["terms"][0] == {
        "name": "w",
        "lam": 0.3,
        "through": "autograd",
        "place": "train.py:12",
        "reduction": "",
    }
    assert plain["lints"][0]["id"] == "second-moment" and plain["turning"]["settled"] == audit.turning.settled
    text = str(audit)
    prose = [line for line in text.splitlines() if "Proximal(" not in line and "times" not in line]
    assert max(map(len, prose)) <= 110 and "train.py:12: take the penalty out of the loss" in text


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.Adagrad])
def test_the_law_says_where_its_step_falls_with_lam(kind):
    law = LeastSquares(kind, 1e-2, 0.3, steps=50, window=50).audit().law
    root = kind not in (optim.SGD, optim.Adagrad)
    assert (f"{kind.__name__} divides by the root of a mean of g²: τ falls as 1/λ where λ outweighs" in law) is root


def test_a_law_that_is_not_met_is_said_before_the_law():
    fields = {"amplitude": 0.5, "amplitude_law": {"low": 0.1, "mean": 0.1, "high": 0.1}, "law": "τλ/2", "window": 9}
    facts = {"l1": {"terms": [{"through": "autograd"}], "chattering": 3, "followed": 3} | fields}
    told = next(one for one in findings(facts, []) if one.id == "l1-chatter").evidence
    assert told.startswith("Signs watched over 9 steps. Outside of the law: something else moves them too")
    assert "settled. The law: τλ/2. Mean over these weights;" in told


W = torch.nn.Parameter(torch.ones(3))
ACTS = PenaltyTerm("w", 0.1, "autograd")


def audited(optimizer=None, terms=(ACTS,), closure=lambda: W.abs().sum(), named=None, **options):
    return l1_audit(optimizer or optim.SGD([W], lr=0.1), terms, closure, named or {"w": W}, **{"turn": False} | options)


FROZEN = torch.nn.Parameter(torch.ones(1), requires_grad=False)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: audited(optimizer="SGD"), "l1_audit: optimizer must be a torch optimiser, not str."),
        (lambda: audited(terms=["w"]), "l1_audit: terms must be PenaltyTerms, not str."),
        (lambda: audited(named={"v": W}), "there is no parameter 'w'; the names are the model's."),
        (lambda: audited(named={"w": torch.nn.Parameter(torch.ones(1))}), "the optimiser does not hold 'w'"),
        (lambda: audited(optim.SGD([FROZEN], lr=0.1), named={"w": FROZEN}), "'w' is frozen"),
        (lambda: audited(closure=3), "closure must be a function that returns the loss, or a list of such functions."),
        (lambda: audited(closure=lambda: 1.0), "must return the loss, a scalar tensor with its graph, not float."),
        (lambda: audited(closure=lambda: W.detach().sum()), r"not a tensor of shape \(\) without a graph."),
        (lambda: audited(closure=lambda: W.sum().backward()), "the closure called backward"),
        (lambda: audited(steps=8), "steps must be a whole number, 16 or more, not 8."),
        (lambda: audited(chatter=Chatter([W])), "a window needs 8 steps or more, not 0"),
        (lambda: audited(turn=True, multiples=(2, 1)), r"multiples must be above 0 and rise, not \(2, 1\)."),
        (lambda: turning_lam(optim.SGD([W], lr=1), [], lambda: W.sum(), {}), "no term acts on a parameter"),
        (lambda: turning_lam(optim.SGD([W], lr=1), [ACTS], lambda: W.sum(), {"w": W}, steps=1.5), "not 1.5."),
        (lambda: PenaltyTerm("w", -1.0, "grad"), "lam must be a finite number, 0 or above, not -1.0."),
        (lambda: PenaltyTerm("w", 1.0, "data"), "through must be one of"),
        (lambda: PenaltyTerm("w", 1.0, "grad", reduction="max"), "reduction must be 'sum', 'mean' or '', not 'max'."),
        (lambda: Chatter([]), "params must be a list of at least one real parameter"),
        (lambda: Chatter(W), "params must be a list of at least one real parameter"),
        (lambda: Chatter([W], most=0), "most must be at least one weight for each parameter, not 0."),
        (lambda: Chatter([W], reach=0.5), "reach must be a finite number of steps, 1 or above, not 0.5."),
    ],
)
def test_bad_input_is_answered_in_a_sentence(wrong, says):
    with pytest.raises((TypeError, ValueError), match=says):
        wrong()


def test_nothing_found_and_nothing_felt_are_said():
    assert str(audited(terms=[])) .startswith("L1: no penalty was found.")  # fmt: skip
    dead = audited(terms=[PenaltyTerm("w", 0.1, "detached", "train.py:3")], turn=True)
    assert str(dead).startswith("L1: the penalty does nothing: no weight feels it.")
    assert dead.turning is None and [lint.id for lint in dead.lints] == ["detached"] and not dead.fine

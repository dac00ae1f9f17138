"""Sentence 3 on networks: the observer of floors, the experiments, and twins that share no code with the package."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import nonsmooth.claims.networks.rmsprop as l1_claims
import nonsmooth.claims.networks.rmsprop_edge as edge_claims
from nonsmooth.ledger import CLAIMS, Verdict
from nonsmooth.networks import STORE, Setting
from nonsmooth.networks.data import SHUFFLE
from nonsmooth.networks.observers import OBSERVERS
from nonsmooth.networks.training import Run, trained
from small import SmallRuns

MINE = [c for c in CLAIMS.values() if c.experiment.__module__ in (l1_claims.__name__, edge_claims.__name__)]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny():
    return SmallRuns(lambda s: {"steps": 6, "samples": 20, "width": 3, "every": 1, "tail": 0.7 if s.tail else 0.0})


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_each_experiment_gives_well_formed_evidence(claim, tiny):
    token = STORE.set(tiny)
    try:
        evidence = claim.experiment(**claim.parameters | {"seeds": 2})
        for change in claim.mutants.values():
            claim.experiment(**claim.parameters | dict(change) | {"seeds": 2})
    finally:
        STORE.reset(token)
    assert evidence.measured.shape == (len(evidence.cases), 2)
    assert evidence.verdict(claim.relation) in Verdict
    assert evidence.holds_when
    assert all(plot.to_dict()["says"] for plot in evidence.plots)


def test_the_claims_are_there_and_their_sentence_is_the_third():
    assert len(MINE) == 7
    assert {c.sentence for c in MINE} == {3} and {c.bears for c in MINE} == {"for", "limits"}


# --- the observer of floors -------------------------------------------------------------------------------------------


def norms_and_losses(setting):
    """‖w‖₁ after each step and the loss before it, by the loop alone."""
    run, norms, losses = Run(setting), [], []
    for _ in range(setting.steps):
        run.choose()
        run.step()
        norms.append(sum(float(p.detach().abs().sum()) for p in run.params if p.ndim > 1))
        losses.append(run.value)
    return np.array(norms), np.array(losses)


def floor_law(found, norms, losses):
    """The mean over the last, even number of steps."""
    count = found["steps"]
    assert count % 2 == 0
    assert found["l1_norm"] == pytest.approx(norms[-count:].mean(), rel=1e-12)
    assert found["value"] == pytest.approx(losses[-count:].mean(), rel=1e-12)
    assert found["least"] == losses[-count:].min()


PERIODIC = Setting(steps=13, samples=20, width=3, lr=0.5, lam=30.0, penalty="autograd", watch=("floor",), tail=0.6)


def test_a_floor_is_the_mean_over_an_even_number_of_last_steps():
    found = trained(PERIODIC)["found"]["floor"]
    assert found["steps"] == 6 and found["weights"] == 64 * 3 + 3 * 3 + 3 * 10
    floor_law(found, *norms_and_losses(PERIODIC))


def test_the_law_rejects_an_odd_number_of_steps_and_the_last_iterate():
    found = trained(PERIODIC)["found"]["floor"]
    norms, losses = norms_and_losses(PERIODIC)
    with pytest.raises(AssertionError):
        floor_law(found | {"steps": 7}, norms, losses)
    with pytest.raises(AssertionError):
        floor_law(found | {"l1_norm": norms[-1]}, norms, losses)


def test_a_floor_of_no_steps_says_so():
    assert OBSERVERS["floor"](Run(PERIODIC)).found() == {"steps": 0, "weights": 231}


# --- twins in plain torch, with none of the package's code ------------------------------------------------------------


def digits(count):
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SHUFFLE).permutation(len(images))[:count]
    return torch.as_tensor(images[order] / 16), torch.as_tensor(labels[order])


def weights_and_biases(seed, sizes):
    """Normal with deviation √(2/fan in) in hidden layers and √(1/fan in) in the last; biases 0."""
    torch.manual_seed(seed)
    found = []
    _ = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]  # they draw their defaults first
    for i, (a, b) in enumerate(pairwise(sizes)):
        gain = 1.0 if i == len(sizes) - 2 else math.sqrt(2)
        w = torch.randn((b, a), dtype=torch.float64) * gain / math.sqrt(a)
        found += [w.requires_grad_(), torch.zeros(b, dtype=torch.float64, requires_grad=True)]
    return found


def outputs(params, x):
    for w, b in zip(params[:-2:2], params[1:-2:2], strict=True):
        x = (x @ w.T + b).relu()
    return x @ params[-2].T + params[-1]


def rmsprop(params, grads, second, lr, alpha=0.99, eps=1e-8):
    with torch.no_grad():
        for p, g, v in zip(params, grads, second, strict=True):
            v.mul_(alpha).add_((1 - alpha) * g * g)
            p -= lr * g / (v.sqrt() + eps)


def test_a_twin_in_plain_torch_finds_rmsprops_floor():
    """The central number of networks/rmsprop-l1-floor, at λ = 10 and one seed, within the claim's 5 %."""
    (setting,) = l1_claims.settings("rmsprop", 1, 1, "digits", 10.0)
    x, y = digits(50)
    params = weights_and_biases(setting.seed, (64, 16, 16, 10))
    second = [torch.zeros_like(p) for p in params]
    norms = []
    for _ in range(600):
        loss = torch.nn.functional.cross_entropy(outputs(params, x), y) + 10.0 * sum(w.abs().sum() for w in params[::2])
        rmsprop(params, torch.autograd.grad(loss, params), second, 3e-3)
        norms.append(float(sum(w.detach().abs().sum() for w in params[::2])))
    mine = np.mean(norms[-120:]) / (3e-3 * (64 * 16 + 16 * 16 + 16 * 10) / 2)
    found = trained(setting)["found"]["floor"]
    theirs = found["l1_norm"] / (3e-3 * found["weights"] / 2)
    assert mine == pytest.approx(1.0, abs=0.05) and theirs == pytest.approx(1.0, abs=0.05)
    assert theirs == pytest.approx(mine, rel=1e-2)  # kinks part the two by rounding


def edge_of(lr):
    """RMSProp on a ReLU network of 6 units, and λ₁ of the preconditioned Hessian, dense, over 2/η along the way."""
    x, y = digits(30)
    params = weights_and_biases(7, (64, 6, 10))
    second = [torch.zeros_like(p) for p in params]
    target = torch.nn.functional.one_hot(y, 10)
    shapes = [p.shape for p in params]

    def loss_of(flat):
        parts = torch.split(flat, [s.numel() for s in shapes])
        held = [a.reshape(s) for a, s in zip(parts, shapes, strict=True)]
        return (outputs(held, x) - target).square().sum(1).mean() / 2

    ratios = []
    for t in range(60):
        flat = torch.cat([p.detach().reshape(-1) for p in params]).requires_grad_()
        (grad,) = torch.autograd.grad(loss_of(flat), flat)
        grads = [g.reshape(s) for g, s in zip(torch.split(grad, [s.numel() for s in shapes]), shapes, strict=True)]
        rmsprop(params, grads, second, lr)
        if t % 20 == 19:
            root = torch.cat([(v.sqrt() + 1e-8).rsqrt().reshape(-1) for v in second])
            flat = torch.cat([p.detach().reshape(-1) for p in params])
            H = torch.autograd.functional.hessian(loss_of, flat, vectorize=True)
            ratios.append(float(torch.linalg.eigvalsh(root[:, None] * H * root)[-1]) * lr / 2)
    return ratios


def test_a_twin_in_plain_torch_finds_the_preconditioned_sharpness():
    """The central number of networks/rmsprop-tunes-itself, by a dense Hessian."""
    setting = Setting(
        samples=30, width=6, depth=1, loss="mse", optimizer="rmsprop", lr=1e-2, steps=60, seed=7, watch=("stabilities",)
    )
    found = trained(setting)["found"]["stabilities"]["ratio"]
    assert [found[t] for t in (19, 39, 59)] == pytest.approx(edge_of(1e-2), rel=5e-3)


def test_a_kink_part_is_a_ratio_of_sums_and_the_tail_of_nothing_is_not_a_number():
    rows = [{"found": {"steps": {"kink": [1.0, 2.0], "curvature": [4.0, 8.0]}}}, {"found": {"steps": {}}}]
    part = edge_claims.kink_part(rows)
    assert part[0] == 0.25 and np.isnan(part[1])

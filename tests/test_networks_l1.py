"""Networks under an L1 penalty: the observer of zeros against plain torch, and the experiments of sentence 2."""

import copy
import json
import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import prune

from nonsmooth.claims.networks import l1, pruning, slimming
from nonsmooth.ledger import CLAIMS, Evidence, Verdict, equals
from nonsmooth.networks import Setting
from nonsmooth.networks.observers.zeros import SHARES, THRESHOLDS, Zeros
from nonsmooth.networks.training import Run, trained

MINE = [c for c in CLAIMS.values() if c.experiment.__module__ in (m.__name__ for m in (l1, pruning, slimming))]
SMALL = Setting(samples=100, batch=20, width=8, steps=20, lr=0.2, lam=0.02, watch=("zeros",), tail=0.2)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


once = cache(trained)


@pytest.fixture
def here(monkeypatch):
    """`runs_of` in this process, changed as asked, each run once for all tests."""

    def patch(**changes):
        monkeypatch.setattr(l1, "runs_of", lambda settings: [once(replace(s, **changes)) for s in settings])

    return patch


def digits(samples):
    """The training samples and the test set, by hand."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(20240116).permutation(len(x))
    train, test = np.split(order, [len(x) - math.ceil(len(x) / 4)])
    pick = lambda which: (torch.tensor(x[which] / 16), torch.tensor(y[which]).long())  # noqa: E731
    return *pick(train[:samples]), *pick(test)


def by_hand(setting):
    """The same training in plain torch: the network, ‖w‖₁ and the number of zeros after each step, and the data."""
    x, y, x_test, y_test = digits(setting.samples)
    torch.manual_seed(setting.seed)
    sizes = [64, setting.width, setting.width, 10]
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    for i, layer in enumerate(layers):
        size = layer.weight.shape
        gain = 1.0 if i == 2 else math.sqrt(2)  # √2 to the error of the package's quadrature, see below
        layer.double().weight.data = torch.randn(size, dtype=torch.float64) * gain / math.sqrt(size[1])
        layer.bias.data.zero_()
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    weights = [layer.weight for layer in layers]
    generator = torch.Generator().manual_seed(setting.seed)
    norms, zeros = [], []
    for t in range(setting.steps):
        epoch = len(x) // setting.batch
        if t % epoch == 0:
            order = torch.randperm(len(x), generator=generator)
        part = order[setting.batch * (t % epoch) :][: setting.batch]
        network.zero_grad()
        loss = nn.functional.cross_entropy(network(x[part]), y[part])
        if setting.penalty == "autograd":
            loss = loss + setting.lam * sum(w.abs().sum() for w in weights)
        loss.backward()
        with torch.no_grad():
            for p in network.parameters():
                p -= setting.lr * p.grad
            for w in weights if setting.penalty == "proximal" else ():
                w.copy_(w.sign() * (w.abs() - setting.lr * setting.lam).clamp(min=0))
            norms.append(sum(float(w.abs().sum()) for w in weights))
            zeros.append(sum(int((w == 0).sum()) for w in weights))
    return network, weights, norms, zeros, (x, y, x_test, y_test)


@pytest.fixture(scope="module", autouse=True)
def _exact_gain():
    """He's √2 in place of the sum that stands for it, so that both start from the same bits."""
    from nonsmooth.networks import models

    original, models.gain = models.gain, lambda name: math.sqrt(2) if name == "relu" else original(name)
    yield
    models.gain = original


def right(network, x, y):
    with torch.no_grad():
        return float((network(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize("penalty", ["autograd", "proximal"])
def test_zeros_equals_plain_torch(penalty):
    setting = replace(SMALL, penalty=penalty)
    found = trained(setting)["found"]["zeros"]
    network, weights, norms, zeros, (x, y, x_test, y_test) = by_hand(setting)
    flat = torch.cat([w.detach().flatten() for w in weights])
    gradients = torch.autograd.grad(nn.functional.cross_entropy(network(x), y), weights)
    idle = torch.cat([g.flatten() for g in gradients]) == 0
    assert found["steps"] == 4 and found["weights"] == len(flat) == 8 * 64 + 8 * 8 + 10 * 8
    assert found["norm"] == pytest.approx(sum(norms[-4:]) / 4, rel=1e-9)
    assert found["zeros"] == sum(zeros[-4:]) / 4
    assert (found["zeros"] > 50) == (penalty == "proximal")
    assert found["idle"] == int(idle.sum()) > 0
    assert found["near"] == [int((flat.abs() < t).sum()) for t in THRESHOLDS]
    for t, accuracy in zip(THRESHOLDS, found["below"], strict=True):
        cut = copy.deepcopy(network)
        with torch.no_grad():
            for p in cut.parameters():
                if p.ndim > 1:
                    p[p.abs() < t] = 0
        assert accuracy == right(cut, x_test, y_test)
    for share, accuracy in zip(SHARES, found["kept"], strict=True):
        cut = copy.deepcopy(network)
        parameters = [(m, "weight") for m in cut if isinstance(m, nn.Linear)]
        prune.global_unstructured(parameters, prune.L1Unstructured, amount=len(flat) - round(share * len(flat)))
        assert accuracy == right(cut, x_test, y_test)


def test_floor_law_in_plain_torch():
    """The central number of `networks/l1-floor-law` without the package, inside the claim's tolerance."""
    setting = replace(SMALL, samples=400, batch=50, width=32, steps=60, lam=1.0, seed=0, penalty="autograd")
    _, weights, norms, zeros, _ = by_hand(setting)
    law = setting.lr * setting.lam * sum(w.numel() for w in weights) / 2
    mean = sum(norms[-12:]) / 12
    assert trained(setting)["found"]["zeros"]["norm"] == pytest.approx(mean, rel=1e-6)
    assert mean == pytest.approx(law, rel=0.02) and mean == pytest.approx(law, rel=1e-3)
    assert norms[-1] != pytest.approx(law, rel=1e-3)  # the last iterate alone is not the law's
    assert max(zeros) == 0


def test_idle_weights_are_those_of_dead_inputs():
    """Without dead units only pixels that are 0 in all training samples leave a weight without a data gradient."""
    dead = int((digits(400)[0] == 0).all(0).sum())
    found = trained(replace(SMALL, samples=400, activation="gelu", steps=2, penalty="autograd"))["found"]["zeros"]
    assert found["idle"] == dead * SMALL.width > 0
    found = trained(replace(SMALL, samples=400, activation="gelu", steps=2, tail=0.0, penalty="proximal", lam=1e3))
    assert found["found"]["zeros"]["zeros_idle"] > dead * SMALL.width  # nothing passes a network of zeros


@pytest.mark.parametrize("batchnorm", [False, True])
def test_zeros_does_not_disturb(batchnorm):
    setting = replace(SMALL, penalty="autograd", batchnorm=batchnorm, on="batchnorm" if batchnorm else "weights")
    watched, alone = trained(setting), trained(replace(setting, watch=()))
    assert all(watched[name] == alone[name] for name in ("losses", "loss", "accuracy", "l1_norm"))
    run = Run(setting)
    run.choose()
    run.step()
    before = copy.deepcopy(run.model.state_dict())
    observer = Zeros(run)
    observer.after()
    assert observer.found().keys() == observer.found().keys()
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
    assert run.model.training


def test_zeros_averages_an_even_number_of_steps():
    run = Run(replace(SMALL, penalty="autograd"))
    observer, norms = Zeros(run), []
    for _ in range(3):
        run.choose()
        run.step()
        observer.after()
        norms.append(run.l1_norm())
        found = observer.found()
        assert found["steps"] == len(norms) // 2 * 2
        assert math.isnan(found["norm"]) if found["steps"] == 0 else math.isfinite(found["norm"])
    assert found["norm"] == pytest.approx(sum(norms[1:]) / 2, rel=1e-12)


def test_zeros_of_a_diverged_run():
    setting = replace(SMALL, loss="mse", lr=1e6, activation="identity", steps=30)
    row = trained(setting)
    assert row["diverged"] and row["found"]["zeros"] == {}
    assert l1.norms([[row]]).tolist() == [[math.inf]] and l1.accuracies([[row]]).tolist() == [[0.0]]
    assert pruning.kept_accuracies([[trained(SMALL), row]])[0, 1].tolist() == [0.0] * len(SHARES)


def test_no_torch_where_claims_are_listed():
    assert not any("torch" in Path(module.__file__).read_text() for module in (l1, pruning, slimming))


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_experiments_are_well_formed(claim, here):
    """Each with its mutants and its larger settings, in runs too short to say anything."""
    here(steps=4, samples=40, batch=20, width=2, tail=0.5)
    nets = {"networks": ("MLP", "CNN")} if "networks" in claim.full else {}
    for settings in ({}, nets, *claim.mutants.values()):
        evidence = claim.experiment(**settings, seeds=2)
        assert isinstance(evidence, Evidence) and evidence.measured.shape[1] == 2
        assert np.isfinite(evidence.predicted).all() and evidence.what
        json.dumps([plot.to_dict() for plot in evidence.plots], allow_nan=False)
    row, _ = claim.run(seeds=2)
    assert row["holds_when"] and {m["what"] for m in row["mutants"]} == set(claim.mutants)
    assert claim.sentence == 2 and claim.id.startswith("networks/")


def test_claims_of_this_theme():
    assert len(MINE) == 14
    assert all(
        set(c.full) <= set(c.parameters) and all(set(m) <= set(c.parameters) for m in c.mutants.values()) for c in MINE
    )


@pytest.mark.parametrize("name", l1.NETWORKS)
def test_networks_are_settings(name):
    setting = l1.penalised(0.1, "digits", **l1.NETWORKS[name], optimizer="adam")
    assert setting.lam == 0.1 and setting.lr == l1.RATES["adam"] and setting.watch == ("zeros",)
    assert setting.steps * setting.tail % 2 == 0


def test_floor_law_and_its_mutants(here):
    here(samples=200, steps=120)
    few = {"seeds": 2, "batches": (50,), "lams": (1.0,)}
    assert l1.floor_law(**few).verdict(equals(0.02)) is Verdict.SUPPORTED
    assert l1.floor_law(**few, momentum=0.9).verdict(equals(0.02)) is Verdict.REFUTED


def test_pruning_compares_at_the_same_share(here):
    """The mutant that compares a network with itself is exactly 0; the shares are those of the observer."""
    here(samples=40, batch=20, steps=4, width=2, tail=0.5)
    evidence = pruning.pruning_needs_proximal(seeds=2, worse="through Proximal")
    assert (evidence.measured == 0).all()
    other = pruning.pruning_needs_proximal(seeds=2, share=0.5)
    assert "largest 50 %" in other.holds_when


def test_chance_is_the_best_constant_answer():
    _, _, _, y_test = digits(10)
    assert l1.chance("digits") == max(float((y_test == k).double().mean()) for k in range(10))

"""Sentence 5 on networks: the observers of zeros and of twins, the experiments, and a twin in plain torch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import nonsmooth.claims.networks.autodiff as claims
from nonsmooth.ledger import CLAIMS, Verdict
from nonsmooth.networks import STORE, Setting
from nonsmooth.networks.activations import gain
from nonsmooth.networks.data import SHUFFLE
from nonsmooth.networks.models import Activation
from nonsmooth.networks.observers import OBSERVERS
from nonsmooth.networks.training import Run, trained
from small import SmallRuns

MINE = [c for c in CLAIMS.values() if c.experiment.__module__ == claims.__name__]
CNN = Setting(model="cnn", width=2, samples=20, steps=3, lr=0.1, watch=("ties", "twins"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny():
    return SmallRuns(lambda s: {"steps": 4, "samples": 20, "width": 2 if s.model == "cnn" else 16})


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_each_experiment_gives_well_formed_evidence(claim, tiny):
    token = STORE.set(tiny)
    try:
        evidence = claim.experiment(**claim.parameters | {"seeds": 2})
    finally:
        STORE.reset(token)
    assert evidence.measured.shape == (len(evidence.cases), 2) and np.isfinite(evidence.measured).all()
    assert evidence.verdict(claim.relation) in Verdict
    assert evidence.holds_when
    assert all(plot.to_dict()["says"] for plot in evidence.plots)


def test_from_the_first_step_on_is_asked_for(monkeypatch):
    """Runs that end apart, but parted later, do not bear the claim on blank patches out."""

    def rows(first):
        twin = {"first": first, "apart": 0.1, "curve": [0.1, 0.1]}
        ties = {"blank": [1, 0], "others": [0, 0], "units": [10, 10]}
        return [{"found": {"ties": ties, "twins": dict.fromkeys((*claims.CHOICES, "reversed"), twin) | {"t": [0, 1]}}}]

    claim = CLAIMS["networks/relu-at-zero-on-blank-patches"]
    for first, verdict in ((1, Verdict.SUPPORTED), (2, Verdict.REFUTED), (None, Verdict.REFUTED)):
        monkeypatch.setattr(claims, "followed", lambda *_, first=first, **__: rows(first))
        assert claim.experiment().verdict(claim.relation) == verdict, first


def test_the_claims_are_there_and_their_sentence_is_the_fifth():
    assert len(MINE) == 6
    assert {c.sentence for c in MINE} == {5} and {c.bears for c in MINE} == {"for", "limits"}


# --- three spellings of one function ----------------------------------------------------------------------------------


def test_the_three_start_at_the_same_weights():
    assert gain("relu") == gain("relu_half") == gain("relu_one")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_three_have_the_same_values_and_another_derivative_at_0_alone(dtype):
    x = torch.tensor([-2.0, -1e-30, 0.0, 1e-30, 3.0], dtype=dtype, requires_grad=True)
    values, slopes = [], []
    for name in ("relu", "relu_half", "relu_one"):
        out = Activation(name)(x)
        values.append(out.detach())
        slopes.append(torch.autograd.grad(out.sum(), x)[0].tolist())
    assert torch.equal(values[0], values[1]) and torch.equal(values[0], values[2])
    assert slopes == [[0, 0, at, 1, 1] for at in (0, 0.5, 1)]


def test_in_float16_half_of_a_small_gradient_is_rounded_away():
    """The mechanism of networks/relu-spelling-in-float16."""
    least = 2.0**-24
    x = torch.ones(1, dtype=torch.float16, requires_grad=True)
    slopes = {
        name: float(torch.autograd.grad(Activation(name)(x), x, torch.full((1,), least, dtype=torch.float16))[0])
        for name in ("relu", "relu_half", "relu_one")
    }
    assert slopes == {"relu": least, "relu_half": 0.0, "relu_one": least}


# --- zeros among pre-activations --------------------------------------------------------------------------------------


def ties_by_loops(setting):
    """(units, blank, others) at the start of a run of one channel in, patch by patch and unit by unit."""
    run = Run(setting)
    h = run.x
    units, blank, others = 0, 0, 0
    for layer in run.model:
        if isinstance(layer, torch.nn.Conv2d):
            padded = torch.nn.functional.pad(h, (1, 1, 1, 1))
            z = layer(h).detach()
            for n in range(z.shape[0]):
                for i in range(z.shape[2]):
                    for j in range(z.shape[3]):
                        zero = int((z[n, :, i, j] == 0).sum())
                        if bool((padded[n, :, i : i + 3, j : j + 3] == 0).all()):
                            blank += zero
                        else:
                            others += zero
            units += z.numel()
        h = layer(h).detach()
    return units, blank, others


def ties_law(setting):
    found = trained(setting)["found"]["ties"]
    assert (found["units"][0], found["blank"][0], found["others"][0]) == ties_by_loops(setting)


def test_ties_are_those_that_loops_find():
    setting = replace(CNN, dtype="bfloat16", samples=15, steps=1, watch=("ties",))
    ties_law(setting)
    assert trained(setting)["found"]["ties"]["blank"][0] > 0


def test_the_law_rejects_counting_every_zero_as_blank(monkeypatch):
    class Careless(OBSERVERS["ties"]):
        def add(self, t, units, blank, others):
            super().add(t, units=units, blank=blank + others, others=blank)

    monkeypatch.setitem(OBSERVERS, "ties", Careless)
    with pytest.raises(AssertionError):
        ties_law(replace(CNN, samples=15, steps=1, watch=("ties",)))


def test_a_sample_on_which_a_layer_is_dead_counts_as_blank():
    run = Run(Setting(samples=10, width=4, watch=("ties",)))
    with torch.no_grad():
        run.model[1].bias.fill_(-100.0)
    ties = OBSERVERS["ties"](run)
    ties.before()
    assert ties.found() == {"t": [0], "units": [80], "blank": [40], "others": [0]}


def test_counting_leaves_batch_statistics_alone():
    setting = Setting(samples=30, width=4, batchnorm=True, steps=3)
    plain, watched = trained(setting), trained(replace(setting, watch=("ties",)))
    assert [plain[k] for k in ("losses", "loss", "accuracy")] == [watched[k] for k in ("losses", "loss", "accuracy")]


# --- twins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 5])
def test_a_twin_is_the_run_of_its_own_setting_to_the_bit(batch):
    setting = replace(CNN, batch=batch)
    found = trained(setting)["found"]["twins"]
    plain = trained(replace(setting, watch=()))
    for name in ("relu_half", "relu_one"):
        other = trained(replace(setting, activation=name, watch=()))
        assert found[name]["loss"] == other["loss"] - plain["loss"] != 0
        assert found[name]["accuracy"] == other["accuracy"] - plain["accuracy"]


def test_twins_do_not_disturb_the_run_nor_torchs_random_numbers():
    setting = replace(CNN, batch=5)
    plain, watched = trained(replace(setting, watch=())), trained(setting)
    assert [plain[k] for k in ("losses", "loss", "l1_norm")] == [watched[k] for k in ("losses", "loss", "l1_norm")]
    run = Run(setting)
    before = torch.get_rng_state()
    OBSERVERS["twins"](run)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_reversed_twin_differs_by_rounding_alone():
    found = trained(replace(CNN, width=3, steps=5))["found"]["twins"]
    assert found["reversed"]["first"] is not None and 0 < found["reversed"]["apart"] < 1e-12
    assert found["relu_one"]["first"] == 1 and found["relu_one"]["apart"] > 1e-4
    assert found["relu_one"]["curve"][-1] == found["relu_one"]["apart"] and found["t"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("change", [{"activation": "gelu"}, {"every": 2}, {"tail": 0.5}])
def test_twins_refuse_what_they_cannot_follow(change):
    with pytest.raises(ValueError, match="activation='relu', every=1 and tail=0"):
        trained(replace(CNN, **change))


# --- a twin in plain torch, with none of the package's code -----------------------------------------------------------


def plain_cnn(relu, steps):
    """Weights at the start and at the end, and zeros among the pre-activations at the start, of SGD on a small CNN."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SHUFFLE).permutation(len(images))[:20]
    x, y = torch.as_tensor(images[order] / 16).reshape(-1, 1, 8, 8), torch.as_tensor(labels[order])
    torch.manual_seed(0)
    shapes = [(2, 1, 3, 3), (4, 2, 3, 3), (10, 16)]
    torch.nn.Conv2d(1, 2, 3), torch.nn.Conv2d(2, 4, 3), torch.nn.Linear(16, 10)  # they draw their defaults first
    params = []
    for shape, size in zip(shapes, (math.sqrt(2), math.sqrt(2), 1.0), strict=True):
        w = torch.randn(shape, dtype=torch.float64) * size / math.sqrt(math.prod(shape[1:]))
        params += [w.requires_grad_(), torch.zeros(shape[0], dtype=torch.float64, requires_grad=True)]
    start = torch.cat([p.detach().reshape(-1).clone() for p in params])
    zeros = []
    for _ in range(steps):
        count = 0
        h = x
        for w, b in (params[:2], params[2:4]):
            z = torch.nn.functional.conv2d(h, w, b, padding=1)
            count += int((z == 0).sum())
            h = torch.nn.functional.max_pool2d(relu(z), 2)
        zeros.append(count)
        loss = torch.nn.functional.cross_entropy(h.flatten(1) @ params[4].T + params[5], y)
        with torch.no_grad():
            for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
                p -= 0.1 * g
    return start, torch.cat([p.detach().reshape(-1) for p in params]), zeros


def test_a_twin_in_plain_torch_finds_the_zeros_and_the_departure():
    """The central number of networks/relu-at-zero-on-blank-patches, with fewer steps of SGD."""
    start, end, zeros = plain_cnn(torch.relu, 3)
    _, other, _ = plain_cnn(lambda z: torch.where(z >= 0, z, torch.zeros_like(z)), 3)
    mine = float((other - end).norm() / (end - start).norm())
    row = trained(CNN)["found"]
    assert row["ties"]["blank"] == zeros and zeros[0] > 0
    assert row["twins"]["relu_one"]["apart"] == pytest.approx(mine, rel=1e-3)  # the package's √2 is an integral

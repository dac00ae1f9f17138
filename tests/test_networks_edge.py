"""Sentence 4 on networks: the observers of orbits and of batch sharpness, the experiments, and an independent twin."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from nonsmooth.claims.networks import edge, edge_kinks, edge_optimizers
from nonsmooth.ledger import CLAIMS, Verdict
from nonsmooth.networks import STORE, Setting, Store, drawn
from nonsmooth.networks.training import Run, trained

MODULES = {module.__name__ for module in (edge, edge_kinks, edge_optimizers)}
MINE = [c for c in CLAIMS.values() if c.experiment.__module__ in MODULES]
SMALL = Setting(loss="mse", steps=12, samples=40, width=4, lr=0.3, watch=("orbit",))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class InProcess(Store):
    """Makes the rows in this process, each from what `shrink` makes of its setting, and keeps what was asked for."""

    def __init__(self, shrink=lambda s: s):
        super().__init__()
        self.shrink, self.asked_for = shrink, []

    def run(self, settings):
        self.asked_for += settings
        small = [self.shrink(s) for s in settings]
        for s in small:
            if s.key not in self.rows:
                self.rows[s.key] = trained(s)
        return [self.rows[s.key] for s in small]


@pytest.fixture(scope="module")
def small_rows():
    fields = {"samples": 20, "width": 3, "every": 3}
    return InProcess(lambda s: replace(s, steps=min(s.steps, 6), tail=0.7 if s.tail else 0.0, **fields))


@pytest.fixture
def tiny(small_rows):
    small_rows.asked_for = []
    token = STORE.set(small_rows)
    yield small_rows
    STORE.reset(token)


# --- the orbit --------------------------------------------------------------------------------------------------------


def gradients_of(setting):
    """Parameters and full gradients at every step, by autograd, with no observer."""
    run, kept = Run(setting), []
    for _ in range(setting.steps):
        run.choose()
        g = torch.autograd.grad(run.loss(), run.params)
        kept.append([torch.cat([v.detach().reshape(-1) for v in vs]) for vs in (run.params, g)])
        run.step()
    return kept


def slow_orbit(kept):
    pairs = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(kept)]
    return sum(float(y @ y) for _, y in pairs) / sum(float(y @ d) for d, y in pairs)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_orbit_is_that_of_the_gradients_of_every_step(momentum):
    setting = replace(SMALL, momentum=momentum, lr=0.03, every=5, tail=0.6)  # looks at 5 and 10, reads from 5 on
    found, kept = trained(setting)["found"]["orbit"], gradients_of(setting)
    assert found["t"] == [5, 6, 7, 8, 9, 10]
    assert found["value"] == pytest.approx(slow_orbit(kept[5:]), rel=1e-9)
    assert found["value"] != pytest.approx(slow_orbit(kept[5::5]), rel=1e-2)  # the mutant that reads what is looked at
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(kept[5:])]
    curvature = [float(change @ step) / float(step @ step) for step, change in steps]
    assert found["curvature"] == pytest.approx(curvature, rel=1e-9)
    assert found["mean"] == pytest.approx(np.mean(curvature), rel=1e-9)


def telescopes(setting):
    """κ̄ Σ⟨Δg, D⟩ = (2/η) Σ⟨Δg, D⟩ + ‖g_last‖² − ‖g_first‖², plain GD's."""
    found, kept = trained(setting)["found"]["orbit"], gradients_of(setting)
    secants = sum(float((b[1] - a[1]) @ (b[0] - a[0])) for a, b in pairwise(kept))
    first, last = found["square"]
    assert found["value"] * secants == pytest.approx(2 / setting.lr * secants + last - first, rel=1e-9)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_norm_of_the_gradient_telescopes(activation):
    telescopes(replace(SMALL, activation=activation))
    with pytest.raises(AssertionError):
        telescopes(replace(SMALL, activation=activation, momentum=0.5))


def test_the_orbit_disturbs_nothing_and_refuses_minibatches():
    seen, plain = trained(SMALL), trained(replace(SMALL, watch=()))
    assert (seen["losses"], seen["loss"]) == (plain["losses"], plain["loss"])
    with pytest.raises(ValueError, match="orbit: κ̄ is of full-batch training; leave the setting's batch at 0"):
        trained(replace(SMALL, batch=10))


# --- batch sharpness --------------------------------------------------------------------------------------------------


def test_batch_sharpness_along_a_run_is_that_of_dense_hessians():
    setting = replace(SMALL, activation="tanh", steps=2, batch=10, width=2, depth=1, momentum=0.5,
                      watch=("batch_sharpnesses",))  # fmt: skip
    found = trained(setting)["found"]["batch_sharpnesses"]
    assert found["threshold"] == [pytest.approx(2 * 0.5 / 0.3)] * 2
    run = Run(setting)
    run.choose()
    run.step()  # where the second step is taken from
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    quotients, top = [], []
    for i in range(0, 40, 10):
        part = order[i : i + 10]
        slopes = torch.autograd.grad(run.loss_of(run.x[part], run.y[part]), run.params, create_graph=True)
        g = torch.cat([s.reshape(-1) for s in slopes])
        H = torch.stack([torch.cat([v.reshape(-1) for v in torch.autograd.grad(e, run.params, retain_graph=True)])
                         for e in g])  # fmt: skip
        d = g.detach()
        quotients.append(float(d @ H @ d / (d @ d)))
        top.append(float(torch.linalg.eigvalsh((H + H.T) / 2)[-1]))
    assert found["value"][1] == pytest.approx(np.mean(quotients), rel=1e-9)
    assert found["value"][1] != pytest.approx(np.mean(top), rel=1e-2)  # the mutant that takes λ₁ of each batch


# --- an independent twin: plain torch, a dense Hessian ----------------------------------------------------------------


def digits(count):
    """The first samples of the shuffled digits, as the package is said to take them."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(20240116).permutation(len(images))[: len(images) - math.ceil(0.25 * len(images))]
    return torch.as_tensor(images[order[:count]] / 16), torch.as_tensor(labels[order[:count]])


def twin(lr, seed, steps, first, at):
    """κ̄ from step `first` to the last, and λ₁ at step `at`: 64–8–8–10 with BatchNorm and ReLU, half squared error."""
    x, y = digits(200)
    target = torch.nn.functional.one_hot(y, 10).double()
    torch.manual_seed(seed)
    layers = [nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(8, 10)).double()
    for index, size in ((0, math.sqrt(2 / 64)), (3, math.sqrt(2 / 8)), (6, math.sqrt(1 / 8))):  # He's, and 1 at the end
        net[index].weight.data = torch.randn(net[index].weight.shape, dtype=torch.float64) * size
        net[index].bias.data.zero_()
    params, last, above, below, sharpness = list(net.parameters()), None, 0.0, 0.0, None
    for t in range(steps):
        loss = (net(x) - target).square().sum(1).mean() / 2
        g = torch.cat([v.reshape(-1) for v in torch.autograd.grad(loss, params, create_graph=t == at)])
        if t == at:
            rows = [torch.cat([v.reshape(-1) for v in torch.autograd.grad(e, params, retain_graph=True)]) for e in g]
            sharpness = float(torch.linalg.eigvalsh(torch.stack(rows))[-1])
        g = g.detach()
        if t >= first:
            if last is not None:
                above += float((g - last).square().sum())
                below += float((g - last) @ (-lr * last))
            last = g
        for p, part in zip(params, torch.split(g, [p.numel() for p in params]), strict=True):
            p.data -= lr * part.reshape(p.shape)
    return above / below, sharpness


def test_an_independent_twin_finds_the_orbit_curvature_above_the_sharpness():
    """The number of networks/edge-below-the-threshold, of one seed, a smaller network and fewer steps."""
    fields = edge.NORMED | {"steps": 120, "width": 8, "samples": 200}
    setting = Setting(activation="relu", lr=0.3, seed=3, watch=("orbit", "sharpnesses"), **fields)
    found = trained(setting)["found"]
    looks = found["sharpnesses"]["t"]
    bar, sharpness = twin(0.3, 3, 120, looks[0], looks[-1])
    assert found["orbit"]["value"] == pytest.approx(bar, rel=1e-4)
    assert found["sharpnesses"]["value"][-1] == pytest.approx(sharpness, rel=5e-3)
    assert sharpness < 0.7 * 2 / 0.3
    assert bar > 1.1 * sharpness


# --- the experiments --------------------------------------------------------------------------------------------------


def test_figures_are_means_in_units_of_the_threshold():
    step = {"curvature": [2.0, 6.0], "smooth": [1.0, 2.0], "kink": [1.0, 4.0], "kink_share": [0.5, 0.7]}
    found = {"steps": step, "sharpnesses": {"value": [3.0, 5.0]}, "orbit": {"value": 8.0}}
    row = {"setting": {"lr": 0.5}, "diverged": False, "found": found}
    each = edge.figures([row, row | {"diverged": True}])
    assert tuple(each) == edge.COLUMNS
    first = {name: values[0] for name, values in each.items()}
    assert first == pytest.approx(
        {"λ₁": 1.0, "κ": 1.0, "κ̄": 2.0, "κ_smooth": 0.375, "κ_kink": 0.625, "κ_kink, path": np.nan,
         "kink share": 0.6, "κ_kink/κ": 0.625, "κ_kink/κ, path": np.nan}, nan_ok=True,
    )  # fmt: skip
    assert all(np.isnan(values[1]) for values in each.values())
    table = edge.edge_table(["a network: relu"], [(Setting(lr=0.5), each)])
    assert table.rows[0][:6] == ["a network", "relu", 0.5, 4.0, "1 of 2, 1 diverged", "1.000 ± 0.000"]


def test_intervals_are_student_s():
    assert edge.interval(np.array([1.0, 2.0, 3.0])) == "2.000 ± 2.484"  # 4.303/√3
    assert edge.interval(np.array([np.nan, np.nan])) == "–"


def test_steps_are_chosen_on_seeds_that_are_not_tested(tiny):
    cases = (f"{edge.NARROW}: relu", f"{edge.HALF}: gelu")
    settings = edge.settings_of(cases, "digits", 2)
    assert {s.seed for s in tiny.asked_for} == {2500, 2501, 2502}
    first = [row["found"]["sharpnesses"]["value"][0] for row in tiny.run(tiny.asked_for[:3])]
    assert settings[0].lr == pytest.approx(2 / np.mean(first))
    assert [s.watch[-1] for s in settings] == ["path_splits", "steps"]
    assert [s.pool for s in settings] == ["max", "average"]


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_every_experiment_gives_evidence(claim, tiny):
    changes = [{}, *claim.mutants.values()]
    for change in changes:
        evidence = claim.experiment(**claim.parameters | dict(change) | {"seeds": 2})
        assert evidence.measured.shape == (len(evidence.cases), 2)
        assert isinstance(evidence.verdict(claim.relation), Verdict)
        assert evidence.holds_when
        assert evidence.plots
        json.dumps([plot.to_dict() for plot in evidence.plots], allow_nan=False)
    asked = {s.seed for s in tiny.asked_for}
    assert asked <= {0, 1, 500, 501, 502}


def test_a_run_that_diverges_leaves_a_claim_open():
    fields = {"samples": 20, "width": 3, "steps": 6, "every": 3}
    store = InProcess(lambda s: replace(s, **fields, lr=1e30) if s.steps > 1 else replace(s, samples=20, width=3))
    token = STORE.set(store)
    try:
        for name in ("heavy-ball", "adam", "minibatch"):
            claim = CLAIMS[f"networks/edge-{name}"]
            with np.errstate(all="ignore"):
                evidence = claim.experiment(seeds=2, activations=("relu",))
            assert np.isnan(evidence.measured).all() and evidence.verdict(claim.relation) == Verdict.UNDECIDED
    finally:
        STORE.reset(token)


def test_a_loss_that_blows_up_is_no_edge(monkeypatch):
    """Heavy ball's: λ₁ is beyond the threshold in each, and one run falls off."""

    def row(last):
        found = {"stabilities": {"t": [0, 8], "ratio": [0.1, 9.0]}}
        return {"diverged": False, "losses": [2.3, 2.0], "loss": last, "found": found}

    monkeypatch.setattr(edge_optimizers, "first_sharpness", lambda made, master: [1.0 for _ in made])
    monkeypatch.setattr(edge_optimizers, "rows_of", lambda *_: [[row(0.1), row(2.31)]])
    evidence = edge_optimizers.heavy_ball(activations=("relu",), seeds=2)
    assert evidence.measured.tolist() == [[1.0, 0.0]] and "above its start in 1 of 2" in evidence.holds_when


def test_open_questions_of_ours_do_not_speak_for_the_sentence():
    """It says that the meaning of the edge for ReLU networks is open: an answer limits it, and a no leaves it."""
    questions = [c for c in MINE if "a question" in c.source]
    assert len(questions) == 3 and {c.bears for c in questions} == {"limits"}


def test_the_claims_are_these_and_about_sentence_four():
    assert len(MINE) == 11
    assert all(c.id.startswith("networks/edge-") and c.sentence == 4 and c.mutants and c.full for c in MINE)


def test_below_the_threshold_holds_and_its_twin_does_not():
    """At two seeds and half of the steps, in one process."""
    store = InProcess(lambda s: replace(s, steps=min(s.steps, 120), watch=tuple(w for w in s.watch if w in
                                        ("orbit", "sharpnesses"))))  # fmt: skip
    token = STORE.set(store)
    try:
        settings = edge.settings_of([f"{edge.MORE}: relu", f"{edge.MORE}: gelu"], "digits", 1)
        relu, gelu = (edge.figures(store.run(drawn(s, 2, 1))) for s in settings)
    finally:
        STORE.reset(token)
    assert (relu["κ̄"] > relu["λ₁"]).all()
    assert (gelu["κ̄"] < 0.1 * gelu["λ₁"]).all()

"""Convergence and smoothness of networks: observers against plain torch, experiments in small, an independent twin."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy, gelu, relu, softplus

from nonsmooth.claims.networks import convergence, smoothing, smoothness
from nonsmooth.claims.networks.convergence import LEVELS, Trained, at_best_rates, logs_of_steps, network, steps_to
from nonsmooth.claims.networks.smoothness import remainders
from nonsmooth.ledger import CLAIMS, Verdict
from nonsmooth.networks import Setting
from nonsmooth.networks.training import trained

MODULES = (convergence, smoothness, smoothing)
MINE = [name for name, c in CLAIMS.items() if c.experiment.__module__ in {m.__name__ for m in MODULES}]
SMALL = Setting(samples=50, width=4, steps=3, lr=0.2, seed=900)


@pytest.fixture
def here(monkeypatch):
    """Runs are made in this process, each once; what was asked for."""
    rows: dict[str, dict] = {}
    asked: list[Setting] = []

    def runs_of(settings):
        asked.extend(settings)
        for s in settings:
            if s.key not in rows:
                rows[s.key] = trained(s)
        return [rows[s.key] for s in settings]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for module in (convergence, smoothing):
        monkeypatch.setattr(module, "runs_of", runs_of)
    yield asked
    torch.set_num_threads(threads)


# --- plain torch: the data, the network, the loop ------------------------------------------------------------------


def digits(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(20240116).permutation(len(images))[:samples]
    return torch.tensor(images[order] / 16), torch.tensor(labels[order])


def weights(width: int, gain: float, seed: int) -> list[torch.Tensor]:
    """What `networks.models` states: normal with deviation gain/√(fan in), 1/√(fan in) in the last layer; biases 0."""
    torch.manual_seed(seed)
    made = torch.nn.Sequential(
        *(torch.nn.Linear(a, b) for a, b in ((64, width), (width, width), (width, 10)))
    )  # which draw their own weights first
    found = []
    for i, layer in enumerate(made):
        normal = torch.randn(layer.weight.shape, dtype=torch.float64)
        found += [normal * (gain if i < 2 else 1.0) / math.sqrt(layer.in_features), torch.zeros(layer.out_features)]
    return [w.double().requires_grad_() for w in found]


def gain_of(phi) -> float:
    """1/√E φ'(z)², on the grid that `networks.activations.gain` states: its error would part the runs."""
    z = ((torch.arange(16000, dtype=torch.float64) + 0.5) / 1000 - 8).requires_grad_()
    (slope,) = torch.autograd.grad(phi(z).sum(), z)
    density = torch.exp(-(z.detach() ** 2) / 2) / math.sqrt(2 * math.pi)
    return float((slope.square() * density).sum() * 1e-3) ** -0.5


def plain_loss(ws, phi, x, y) -> torch.Tensor:
    for w, b in zip(ws[:-2:2], ws[1:-2:2], strict=True):
        x = phi(x @ w.T + b)
    return cross_entropy(x @ ws[-2].T + ws[-1], y)


def flat_gradient(ws, phi, x, y) -> torch.Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(plain_loss(ws, phi, x, y), ws)])


def moved(ws, D) -> list[torch.Tensor]:
    pieces = D.split([w.numel() for w in ws])
    return [(w.detach() + d.reshape(w.shape)).requires_grad_() for w, d in zip(ws, pieces, strict=True)]


def dense_hessian(ws, phi, x, y) -> torch.Tensor:
    flat = torch.cat([w.detach().reshape(-1) for w in ws])

    def of(v):
        pieces = v.split([w.numel() for w in ws])
        return plain_loss([p.reshape(w.shape) for p, w in zip(pieces, ws, strict=True)], phi, x, y)

    return torch.autograd.functional.hessian(of, flat)


# --- observers -----------------------------------------------------------------------------------------------------


def test_holders_are_the_gradient_s_variation_around_the_weights_after_the_step():
    found = trained(replace(SMALL, steps=1, watch=("holders",)))["found"]["holders"]
    x, y = digits(50)
    ws = weights(4, gain_of(relu), 900)
    before, g = ws, flat_gradient(ws, relu, x, y)
    after = moved(ws, -0.2 * g)
    assert found["length"][0] == pytest.approx(float(0.2 * g.norm()))

    def omega(ws) -> list[float]:
        g0, rows = flat_gradient(ws, relu, x, y), []
        for seed in range(4):
            u = torch.randn(len(g0), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            ds = [u / u.norm() * float(0.2 * g.norm()) * 4.0**k for k in range(-2, 3)]
            rows.append([float((flat_gradient(moved(ws, d), relu, x, y) - g0).norm()) for d in ds])
        return np.mean(rows, axis=0).tolist()

    assert found["variations"][0] == pytest.approx(omega(after), rel=1e-6)
    assert found["variations"][0] != pytest.approx(omega(before), rel=1e-2)  # the mutant: around the weights before


def test_zeroed_units_are_the_largest_modulus_of_the_dense_hessian_there():
    phi = lambda z: softplus(z, 30.0, 40.0)  # noqa: E731
    found = trained(replace(SMALL, activation="softplus:30", steps=1, watch=("zeroed_units",)))["found"]["zeroed_units"]
    x, y = digits(50)
    ws = weights(4, gain_of(phi), 900)
    sizes = (ws[0].detach().square().sum(1) + ws[1].detach().square()).sqrt()
    unit = int(sizes.argmin())
    assert found["distance"][0] == pytest.approx(float(sizes.min()))
    untouched = torch.linalg.eigvalsh(dense_hessian(ws, phi, x, y))
    ws[0].data[unit], ws[1].data[unit] = 0.0, 0.0
    values = torch.linalg.eigvalsh(dense_hessian(ws, phi, x, y))
    largest = max(float(values[-1]), -float(values[0]))
    assert found["converged"] == [True] and found["value"][0] == pytest.approx(largest, rel=0.01)
    assert found["value"][0] != pytest.approx(max(float(untouched[-1]), -float(untouched[0])), rel=0.05)  # the mutant


@pytest.mark.parametrize("fields", [{}, {"model": "cnn", "width": 2}], ids=["mlp", "cnn"])
def test_neither_observer_changes_the_run(fields):
    bare = replace(SMALL, activation="silu", **fields)
    row = trained(replace(bare, watch=("holders", "zeroed_units")))
    assert row["losses"] == trained(bare)["losses"] and row["loss"] == trained(bare)["loss"]
    assert [len(row["found"][name]["t"]) for name in ("holders", "zeroed_units")] == [3, 3]


def test_a_smooth_network_s_slope_is_1_and_an_elu_s_too():
    for name in ("gelu", "elu", "relu"):
        row = trained(replace(SMALL, activation=name, samples=200, width=16, steps=40, every=5, watch=("holders",)))
        slope = smoothness.slopes(Trained(name, 0.2, 0.2, [row], (0.2,), np.zeros(1), np.zeros(1)))[0]
        assert (slope > 0.97) == (name != "relu"), (name, slope)


# --- experiments ---------------------------------------------------------------------------------------------------


def test_the_best_rate_is_searched_on_other_seeds_and_a_diverged_run_is_never_best(monkeypatch):
    asked = []

    def fake(settings):
        asked.append(settings)
        ends = [None if s.lr > 1 else abs(math.log2(s.lr) + 2) for s in settings]
        return [{"loss": end, "raised": 0.0, "seed": s.seed} for s, end in zip(settings, ends, strict=True)]

    monkeypatch.setattr(convergence, "runs_of", fake)
    nets = at_best_rates({"relu": 0.5, "cnn gelu average": 1.0}, 3, 2, (0.125, 0.25, 0.5, 2.0), steps=7, longer=2)
    assert {s.seed for s in asked[0]} == {2500, 2501} and {s.seed for s in asked[1]} == {2000, 2001, 2002}
    assert [(t.best, t.rate) for t in nets.values()] == [(0.25, 0.125), (0.25, 0.25)]
    assert {s.steps for s in asked[0]} == {7} and {s.steps for s in asked[1]} == {14}
    assert [s.model for s in asked[1]] == ["mlp"] * 3 + ["cnn"] * 3
    assert nets["relu"].search[-1] == math.inf


def tiny(name: str) -> dict:
    small = {"samples": 40, "steps": 8, "seeds": 2, "rates": (0.1, 0.2)}
    return small | {"longer": 1} if "longer" in CLAIMS[name].parameters else small


def test_every_experiment_gives_evidence_and_draws_the_runs_of_its_master_seed(here):
    assert len(MINE) == 11
    for name in MINE:
        del here[:]
        row, evidence = CLAIMS[name].run(master=7, **tiny(name))
        assert np.isfinite(evidence.measured).all() == (name not in SPEEDS) and evidence.measured.shape[1] == 2, name
        assert row["holds_when"] and len(row["mutants"]) == len(CLAIMS[name].mutants)
        assert {s.seed for s in here} <= {7000, 7001, 7002, 7500, 7501} and {s.samples for s in here} == {40}
        for plot in evidence.plots:
            drawn = plot.to_dict()
            assert drawn["says"].endswith(".")
            assert all(len(line["x"]) == len(line["y"]) for line in drawn.get("lines", ()))


def test_what_full_asks_for_is_a_parameter_and_convolutions_run(here):
    for name in MINE:
        assert CLAIMS[name].full.keys() <= inspect.signature(CLAIMS[name].experiment).parameters.keys(), name
    pair = [("cnn gelu max", "cnn gelu average")]
    evidence = convergence.smooth_converges_faster(pairs=pair, losses=("cross_entropy", "mse"), **tiny(MINE[0]))
    assert list(evidence.cases) == [f"{pair[0][0]} and {pair[0][1]}, {loss}" for loss in ("cross_entropy", "mse")]


SPEEDS = ("networks/smooth-converges-faster", "networks/twins-converge-alike")


def test_where_no_run_comes_to_the_loss_no_claim_is_made_of_the_speed(here):
    for name in SPEEDS:
        row, evidence = CLAIMS[name].run(pairs=[("relu", "gelu")], **tiny(name))
        assert row["verdict"] == Verdict.UNDECIDED and row["slack"] is None
        assert np.isnan(evidence.measured).all() and "relu and gelu open" in evidence.holds_when


@pytest.mark.parametrize(
    ("kinked", "smooth", "within", "log"),
    [
        (40, 20, 0.0, -1.0),
        (40, None, 0.0, 1.0),  # all of the 80 steps, or more: a bound, and beyond 0
        (40, None, 1.0, math.nan),  # which may be the double, or any more
        (10, None, 1.0, 3.0),
        (None, 40, 0.0, -1.0),
        (None, None, 0.0, math.nan),
    ],
)
def test_a_run_that_never_gets_there_bounds_the_ratio_and_is_open_where_the_bound_says_nothing(
    kinked, smooth, within, log
):
    def net(first):
        losses = [1.0 if first is None or t < first else 0.0 for t in range(80)]
        row = {"at": list(range(80)), "losses": losses, "setting": {"steps": 80}}
        return Trained("", 0.1, 0.1, [row], (0.1,), np.zeros(1), np.zeros(1))

    found = {"cross_entropy": {"k": net(kinked), "s": net(smooth)}}
    assert logs_of_steps(found, [("k", "s")], within)[0] == pytest.approx([log], nan_ok=True)


def test_no_raising_step_against_none_is_not_a_larger_share(here):
    small = tiny("networks/kinks-raise-the-loss") | {"rates": (1e-3,), "pairs": [("relu", "gelu")]}
    row, evidence = CLAIMS["networks/kinks-raise-the-loss"].run(**small)
    assert (evidence.measured == 0).all() and row["verdict"] == Verdict.REFUTED


def test_what_is_measured_of_a_run_that_diverges_at_once_is_nan():
    row = {"diverged": True, "setting": {"steps": 60, "every": 30}}
    row["found"] = {name: {} for name in ("steps", "sharpnesses", "holders", "zeroed_units")}
    t = Trained("relu", 1e30, 1e30, [row], (1e30,), np.zeros(1), np.zeros(1))
    for of in (smoothness.variations, smoothness.slopes, remainders):
        assert np.isnan(of(t)).all(), of
    assert np.isnan(smoothness.failures(remainders(t), 1.0)).all() and np.isnan(smoothing.effective(t.rows)).all()


def test_a_run_that_diverges_counts_as_all_its_steps(here):
    with np.errstate(all="ignore"):
        row = trained(replace(SMALL, loss="mse", lr=1e3, steps=20))
    assert row["diverged"] and steps_to(row, LEVELS["mse"]) == 20
    evidence = smoothness.relu_keeps_the_descent_lemma(**(tiny(MINE[0]) | {"rates": (5.0,), "loss": "mse"}))
    assert np.isfinite(evidence.measured).all()


# --- the independent twin: no package code -------------------------------------------------------------------------


def plain_steps(phi, lr: float, level: float, steps: int) -> int:
    x, y = digits(200)
    ws = weights(32, gain_of(phi), 900)
    for t in range(steps):
        loss = plain_loss(ws, phi, x, y)
        if float(loss.detach()) <= level:
            return t
        slopes = torch.autograd.grad(loss, ws)
        ws = [(w - lr * g).detach().requires_grad_() for w, g in zip(ws, slopes, strict=True)]
    return steps


def test_steps_to_the_given_loss_by_a_loop_of_its_own():
    for name, phi in (("relu", relu), ("gelu", gelu)):
        row = trained(network(name, samples=200, steps=150, lr=0.25, seed=900))
        mine, level = plain_steps(phi, 0.25, 0.1, 150), 0.1
        assert 30 < mine < 150 and abs(steps_to(row, level) - mine) <= 2, (name, mine)


def test_remainders_by_a_loop_of_its_own_and_a_dense_hessian():
    row = trained(replace(SMALL, steps=41, every=20, watch=("steps", "sharpnesses")))
    found = remainders(Trained("relu", 0.2, 0.2, [row], (0.2,), np.zeros(1), np.zeros(1)))[0]
    x, y = digits(50)
    ws, mine = weights(4, gain_of(relu), 900), []
    for t in range(41):
        f, g = plain_loss(ws, relu, x, y), flat_gradient(ws, relu, x, y)
        D = -0.2 * g
        after = moved(ws, D)
        if t % 20 == 0:
            top = float(torch.linalg.eigvalsh(dense_hessian(ws, relu, x, y))[-1])
            mine.append(float((plain_loss(after, relu, x, y) - f).detach() - g @ D) / (top / 2 * float(D @ D)))
        ws = after
    assert found == pytest.approx(mine, rel=0.02, abs=1e-4)

"""Density, the target-density controller, the λ path and the refit, against slow twins and closed forms."""

from __future__ import annotations

import copy
import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from nonsmooth.objectives import LeastSquares
from nonsmooth.penalties import L0, L1, ElasticNet, GroupLasso, NonNegative, SparseGroupLasso
from nonsmooth.torch import Proximal, TargetSparsity, density, lam_path, refit, weights


def held(values, penalty, kind=torch.optim.SGD, **options) -> tuple[torch.nn.Parameter, Proximal]:
    w = torch.nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone())
    return w, Proximal(kind([w], **({"lr": 0.1} | options)), penalty)


# ── density ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def density_twin(w, groups) -> tuple[int, int]:
    """Weights that are not zero, groups with one; one at a time, `groups` a label for each."""
    flat, alive = w.flatten().tolist(), set()
    for x, label in zip(flat, groups, strict=True):
        if x != 0:
            alive.add(label)
    return sum(x != 0 for x in flat), len(alive)


SHAPES = {
    "rows": ((3, 4), 0, [i // 4 for i in range(12)]),
    "columns": ((3, 4), 1, [i % 4 for i in range(12)]),
    "last": ((3, 4), -1, [i % 4 for i in range(12)]),
    "filters": ((3, 2, 2), 0, [i // 4 for i in range(12)]),
    "channels": ((2, 3, 2), 1, [i // 2 % 3 for i in range(12)]),
    "flat": ((12,), 0, list(range(12))),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_density_is_its_slow_twin(name, seed):
    shape, dim, labels = SHAPES[name]
    rng = np.random.default_rng(seed)
    w, optimizer = held((rng.random(shape) < 0.3) * rng.standard_normal(shape), GroupLasso(1.0, dim=dim))
    found = density(optimizer)
    nonzero, alive = density_twin(w, labels)
    assert found.value == nonzero / 12 and found.sparsity == 1 - nonzero / 12
    assert found.groups == alive / len(set(labels))


def test_density_of_labelled_groups_and_of_several_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    first, last = weights(model)
    with torch.no_grad():
        first.copy_(torch.tensor([[1.0, -0.0], [0.0, 2.0]]))
        last.zero_()
    labels = GroupLasso(1.0, groups=(7, 7, 7, 9))
    flat = torch.nn.Parameter(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    optimizer = Proximal(
        torch.optim.SGD([first, last, flat], lr=0.1), [(L1(1.0), [first]), (L0(1.0), [last]), (labels, [flat])]
    )
    found = density(optimizer, model=model)
    assert [(row.name, row.nonzero, row.size) for row in found.by_parameter] == [
        ("0.weight", 2, 4),
        ("1.weight", 0, 4),
        ("2", 1, 4),
    ]
    assert found.value == 3 / 12 and found.groups == 1 / 2
    assert str(found).splitlines()[0] == "density 0.25 (3 of 12 weights, 1 of 2 groups)"
    assert density(Proximal(torch.optim.SGD([first], lr=0.1), L1(1.0))).groups is None


def test_nan_is_not_zero():
    _, optimizer = held([math.nan, 0.0], L1(1.0))
    assert density(optimizer).value == 0.5


# ── the controller ──────────────────────────────────────────────────────────────────────────────────────────────────

STEPS = 2000
KINDS = {
    "Adam": lambda params: torch.optim.Adam(params, lr=3e-3),
    "SGD-momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
}


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    X, y = load_digits(return_X_y=True)
    return torch.tensor(X / 16, dtype=torch.float32), torch.tensor(y)


def mlp(seed: int) -> torch.nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


def run(kind, penalty, control, steps=STEPS, seed=0, data=None, model=None, pairs=None, of="value", batch=64):
    """Train with a cosine lr, and the density after each step: what `control(optimizer)` gives is stepped."""
    X, y = data or digits()
    model = model or mlp(seed)
    optimizer = Proximal(
        KINDS[kind](model.parameters()), pairs(model) if pairs else penalty, params=None if pairs else weights(model)
    )
    controller = control(optimizer)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, seen = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        i = torch.randint(len(X), (batch,), generator=generator) if batch else slice(None)
        out = model(X[i])
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(out[:, 0], y[i]) if out.shape[1] == 1 else cross_entropy(out, y[i])
        loss.backward()
        optimizer.step()
        schedule.step()
        controller.step()
        seen.append(getattr(density(optimizer), of))
    return np.array(seen), model, optimizer, controller


def holds(wanted: float, seen: np.ndarray) -> None:
    """Over the last fifth: the mean within 5 %, nine steps of ten within 10 %, the last ten on average within 10 %."""
    off = seen[-len(seen) // 5 :] / wanted - 1
    assert abs(off.mean()) <= 0.1 and np.mean(abs(off) <= 0.1) >= 0.75 and abs(off[-10:].mean()) <= 0.1


@pytest.mark.parametrize("wanted", [0.5, 0.2, 0.1, 0.05, 0.01])
@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_the_density_that_is_wanted(kind, wanted):
    seen, *_ = run(kind, L1(1e-5), lambda optimizer: TargetSparsity(optimizer, wanted, STEPS))
    holds(wanted, seen)
    assert seen[: STEPS // 20].min() > 0.5  # and not from the start


class Still(TargetSparsity):
    def step(self):
        self.t += 1


class Backwards(TargetSparsity):
    def _count(self, unit):
        nonzero, size = super()._count(unit)
        return size - nonzero, size


@pytest.mark.parametrize("mutant", [Still, Backwards])
def test_holding_rejects(mutant):
    seen, *_ = run("Adam", L1(1e-3), lambda optimizer: mutant(optimizer, 0.1, 600), steps=600)
    with pytest.raises(AssertionError):
        holds(0.1, seen)


@pytest.mark.parametrize("start", [1e-7, 1e-1])
def test_the_first_lam_hardly_matters(start):
    seen, *_ = run("SGD-momentum", L1(start), lambda optimizer: TargetSparsity(optimizer, 0.05, STEPS))
    holds(0.05, seen)


def test_each_penalty_by_its_own_lam():
    def pairs(model):
        return [(L1(1e-5), [model[0].weight]), (L1(1e-4), [model[2].weight])]

    control = lambda optimizer: TargetSparsity(optimizer, [0.05, 0.4], STEPS, by="entry")  # noqa: E731
    _, _, optimizer, controller = run("Adam", None, control, pairs=pairs)
    rows = density(optimizer).by_parameter
    assert rows[0].nonzero / rows[0].size == pytest.approx(0.05, rel=0.1)
    assert rows[1].nonzero / rows[1].size == pytest.approx(0.4, rel=0.1)
    assert controller.density == pytest.approx([0.05, 0.4], rel=0.1)


def test_overall_keeps_the_ratio_of_the_lams():
    def pairs(model):
        return [(L1(1e-5), [model[0].weight]), (L1(3e-5), [model[2].weight])]

    seen, *_, controller = run("Adam", None, lambda o: TargetSparsity(o, 0.1, STEPS), pairs=pairs)
    holds(0.1, seen)
    assert controller.lam[1] == pytest.approx(3 * controller.lam[0])


def test_a_constraint_beside_it_is_left_alone():
    w, v = (torch.nn.Parameter(torch.ones(4)) for _ in range(2))
    optimizer = Proximal(torch.optim.SGD([w, v], lr=0.1), [(NonNegative(), [v]), (L1(0.1), [w])])
    controller = TargetSparsity(optimizer, 0.25, 10, warmup=0.0, ramp=0.0)
    controller.step()
    assert controller.lam[0] > 0.1 and len(controller.lam) == 1


def test_it_holds_the_density_of_groups():
    def pairs(model):
        return [(GroupLasso(1e-4), [model[0].weight])]

    control = lambda optimizer: TargetSparsity(optimizer, 0.5, STEPS, of="groups")  # noqa: E731
    seen, *_ = run("Adam", None, control, pairs=pairs, of="groups")
    holds(0.5, seen)  # 32 of 64 hidden units


@pytest.mark.parametrize("wanted", [0.2, 0.5])
def test_it_holds_on_logistic_regression(wanted):
    """Full batches: 6 or 15 of 30 weights; with minibatches one weight that flickers is more than 10 % of so few."""
    X, y = load_breast_cancer(return_X_y=True)
    data = torch.tensor((X - X.mean(0)) / X.std(0), dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    model = torch.nn.Linear(30, 1)
    with torch.no_grad():
        model.weight.zero_()
    control = lambda optimizer: TargetSparsity(optimizer, wanted, STEPS)  # noqa: E731
    seen, *_ = run("SGD-momentum", L1(1e-5), control, data=data, model=model, batch=None)
    off = seen[-STEPS // 5 :] / wanted - 1
    assert abs(off.mean()) <= 0.1 and np.mean(abs(off) <= 0.1) >= 0.75


def test_the_target_falls_from_1_and_rests():
    _, optimizer = held(np.ones(100), L1(1e-3))
    controller = TargetSparsity(optimizer, 0.01, 1000, warmup=0.1, ramp=0.4)
    assert controller.target(0) == controller.target(100) == [1.0]
    assert controller.target(300) == [pytest.approx(0.01 ** (1 - 0.5**3))]
    assert controller.target(500) == controller.target(1000) == [0.01]
    targets = [controller.target(t)[0] for t in range(1001)]
    assert all(a >= b for a, b in pairwise(targets))


def test_every_freeze_limits_and_an_lr_of_zero_or_a_rounding_below():
    _, optimizer = held(np.linspace(0.01, 1, 100), L1(1e-3))
    controller = TargetSparsity(optimizer, 0.2, 100, warmup=0.0, ramp=0.0, every=10, freeze=0.5, limits=(1e-3, 2e-3))
    lams = []
    for t in range(100):
        optimizer.param_groups[0]["lr"] = (0.0 if t < 10 else -5e-18) if t < 20 else 0.1
        controller.step()
        lams.append(controller.lam[0])
    assert lams[:28] == [1e-3] * 28  # every tenth step, the first two with lr at 0 or just below
    assert len(set(lams[29:39])) == 1 and lams[29] > 1e-3
    assert lams[49:] == [lams[49]] * 51 and max(lams) <= 2e-3
    assert controller.density == [1.0]


def train_some(model, optimizer, controller, schedule, start, steps):
    X, y = digits()
    for t in range(start, start + steps):
        i = torch.randint(len(X), (64,), generator=torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        cross_entropy(model(X[i]), y[i]).backward()
        optimizer.step()
        schedule.step()
        controller.step()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 77, 150])
def test_resumed_is_uninterrupted_bit_by_bit(kind, cut):
    def fresh(seed):
        model = mlp(seed)
        optimizer = Proximal(KINDS[kind](model.parameters()), L1(1e-4), params=weights(model))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
        return model, optimizer, TargetSparsity(optimizer, 0.1, 200, every=3), schedule

    whole = fresh(0)
    train_some(*whole, 0, 200)
    first, second = fresh(0), fresh(1)
    train_some(*first, 0, cut)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in first], file)
    file.seek(0)
    for part, state in zip(second, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train_some(*second, cut, 200 - cut)
    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert whole[2].lam == second[2].lam and whole[2].state_dict() == second[2].state_dict()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"density": 0.0}, r"density must be a number in \(0, 1\], not 0.0"),
        ({"density": 1.5}, "not 1.5"),
        ({"density": None}, r"density must be a number in \(0, 1\], not None"),
        ({"density": "0.5"}, r"density must be a number in \(0, 1\], not '0.5'"),
        ({"density": [True]}, r"density must be a number in \(0, 1\], not True"),
        ({"warmup": "a"}, "warmup is a part of the training, from 0 to 1, not 'a'"),
        ({"ramp": None}, "ramp is a part of the training, from 0 to 1, not None"),
        ({"limits": 3}, "limits must be two numbers 0 < low < high, not 3"),
        ({"limits": ("a", "b")}, "limits must be two numbers 0 < low < high"),
        ({"density": [0.1, 0.2]}, "density names 2 targets for 1 to control"),
        ({"steps": 0}, "steps must be a whole number above 0, not 0"),
        ({"every": 1.5}, "every must be a whole number above 0, not 1.5"),
        ({"ramp": 1.5}, "ramp is a part of the training, from 0 to 1, not 1.5"),
        ({"warmup": 0.6, "ramp": 0.6}, "warmup . ramp = 1.2 is above 1"),
        ({"by": "layer"}, "by must be 'overall' or 'entry', not 'layer'"),
        ({"of": "rows"}, "of must be 'weights' or 'groups', not 'rows'"),
        ({"of": "groups"}, "needs a penalty with groups"),
        ({"limits": (0.0, 1.0)}, "limits must be two numbers 0 < low < high"),
    ],
)
def test_bad_arguments(arguments, says):
    _, optimizer = held([1.0], L1(0.1))
    with pytest.raises(ValueError, match=f"^TargetSparsity: .*{says}"):
        TargetSparsity(optimizer, **({"density": 0.1, "steps": 10} | arguments))


def test_numpys_and_torchs_numbers_will_do():
    _, optimizer = held([1.0], L1(0.1))
    plain = TargetSparsity(optimizer, 0.5, 10, every=2)
    for half in (np.float32(0.5), torch.tensor(0.5), [np.float64(0.5)], np.array([0.5])):
        made = TargetSparsity(optimizer, half, np.int64(10), every=np.int64(2), warmup=np.float64(0.05))
        assert vars(made) == vars(plain) and type(made.wanted[0]) is float


def test_what_cannot_be_controlled_is_refused():
    for penalty, says in (
        (L1(0.0), "λ of L1 must be above 0 to start with"),
        (NonNegative(), "no penalty has a λ to move"),
    ):
        with pytest.raises(ValueError, match=says):
            TargetSparsity(held([1.0], penalty)[1], 0.1, 10)
    bare = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    for function in (density, refit, lambda o: TargetSparsity(o, 0.1, 10)):
        with pytest.raises(TypeError, match="optimizer must be a Proximal, not SGD"):
            function(bare)
    _, optimizer = held([1.0], L1(0.1))
    with pytest.raises(ValueError, match="the state is of 2 controlled densities, and here are 1"):
        TargetSparsity(optimizer, 0.1, 10).load_state_dict({"t": 0, "average": [0, 0], "fastest": [0, 0]})


# ── the λ path ──────────────────────────────────────────────────────────────────────────────────────────────────────


def lasso_path(X, y, calls):
    """Proximal gradient to the end from the state, on the Lasso."""
    f = LeastSquares(X, y)

    def train(lam, state):
        calls.append(lam)
        w = np.zeros(X.shape[1]) if state is None else state.numpy()
        g, step, steps = L1(lam), 1 / f.constants.L, 0
        while True:
            new = g.prox(w - step * f.grad(w), step)
            if np.abs(new - w).max() < 1e-10:
                break
            w, steps = new, steps + 1
        nonzero = int(np.count_nonzero(w))
        return {"state": torch.tensor(w), "density": nonzero / len(w), "fit": -float(f.value(w)), "steps": steps}

    return train


def test_lam_path_is_warm_started_and_solves_each():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 20))
    y = X[:, 0] - 2 * X[:, 1] + 0.5 * rng.standard_normal(60)
    lams = LeastSquares(X, y).critical_lam * np.array([0.9, 0.5, 0.2, 0.1])
    path = lam_path(lasso_path(X, y, []), lams)
    cold = [lam_path(lasso_path(X, y, []), [lam]) for lam in lams]
    assert [row["lam"] for row in path.rows] == list(lams)
    for warm, state, alone in zip(path.rows, path.states, cold, strict=True):
        assert torch.allclose(state, alone.states[0], atol=1e-7) and warm["density"] == alone.rows[0]["density"]
    assert sum(row["steps"] for row in path.rows) < sum(alone.rows[0]["steps"] for alone in cold)
    assert "state" not in path.rows[0]


def test_lam_path_keeps_the_states_of_the_front():
    outcomes = {0.1: (0.9, 0.95), 0.2: (0.5, 0.96), 0.3: (0.3, 0.90), 0.4: (0.3, 0.92), 0.5: (0.1, 0.7)}

    def train(lam, state):
        wanted = dict(zip(("density", "accuracy"), outcomes[lam], strict=True))
        return {"state": lam, **wanted}

    assert lam_path(train, outcomes, best="accuracy").states == (None, 0.2, None, 0.4, 0.5)
    assert lam_path(train, outcomes).states == (0.1, 0.2, 0.3, 0.4, 0.5)


def test_lam_path_goes_on_where_it_was_interrupted(tmp_path):
    rng = np.random.default_rng(0)
    X, y, calls = rng.standard_normal((30, 5)), rng.standard_normal(30), []
    train = lasso_path(X, y, calls)

    def interrupted(lam, state):
        if lam == 0.05:
            raise KeyboardInterrupt
        return train(lam, state)

    with pytest.raises(KeyboardInterrupt):
        lam_path(interrupted, [0.2, 0.1, 0.05], folder=tmp_path / "path")
    resumed = lam_path(train, [0.2, 0.1, 0.05], folder=tmp_path / "path")
    assert calls == [0.2, 0.1, 0.05]
    whole = lam_path(train, [0.2, 0.1, 0.05])
    assert resumed.rows == whole.rows
    assert all(torch.equal(a, b) for a, b in zip(resumed.states, whole.states, strict=True))
    with pytest.raises(ValueError, match=r"000\.pt is of λ = 0\.2, not 0\.3; name another folder"):
        lam_path(train, [0.3], folder=tmp_path / "path")


def test_lam_path_goes_on_with_numpys_numbers(tmp_path):
    lams, calls = np.geomspace(0.1, 1, 3), []

    def train(lam, state):
        calls.append(lam)
        return {"state": {"w": torch.zeros(1)}, "density": torch.tensor(0.5), "accuracy": np.float64(0.75)}

    first = lam_path(train, lams, folder=tmp_path)
    assert lam_path(train, lams, folder=tmp_path).rows == first.rows and len(calls) == 3
    assert all(type(value) is float for row in first.rows for value in row.values())


def test_lam_path_refuses_at_once_what_it_could_not_read_back(tmp_path):
    for returned in ({"state": np.zeros(2)}, {"state": 1, "model": lambda: 1}):
        with pytest.raises(ValueError, match=r"^lam_path: what train returned cannot be kept in a folder \("):
            lam_path(lambda lam, state, r=returned: r, [0.1], folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_lam_path_refuses():
    for lams in ([0.1, math.nan], [0.1, -1.0], "ab", [True]):
        with pytest.raises(ValueError, match=r"^lam_path: lam must be a finite number, 0 or above, not "):
            lam_path(lambda lam, state: pytest.fail("it was trained"), lams)
    with pytest.raises(TypeError, match=r"^lam_path: lams must be a list of λ, not float\.$"):
        lam_path(lambda lam, state: {"state": 1}, 0.1)
    with pytest.raises(ValueError, match="train must return \"density\" and 'accuracy', as numbers"):
        lam_path(lambda lam, state: {"state": 1, "density": 0.5, "accuracy": "good"}, [0.1], best="accuracy")
    for returned in (None, {}, {"density": 0.5}):
        with pytest.raises(ValueError, match='train must return a dictionary with a "state"'):
            lam_path(lambda lam, state, r=returned: r, [0.1])
    with pytest.raises(ValueError, match="with best='accuracy', train must return \"density\" and 'accuracy'"):
        lam_path(lambda lam, state: {"state": 1, "density": 0.5}, [0.1], best="accuracy")


# ── the refit ───────────────────────────────────────────────────────────────────────────────────────────────────────


def lasso(seed: int = 0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, 12))
    y = X @ np.where(np.arange(12) < 4, 1.0, 0.0) + 0.3 * rng.standard_normal(60)
    X, y = torch.tensor(X), torch.tensor(y)
    return X, y, lambda w: ((y - X @ w) ** 2).mean()


def descend(w, optimizer, f, steps):
    for _ in range(steps):
        w.grad = torch.autograd.grad(f(w), w)[0]
        optimizer.step()


REFITTED = {
    "SGD": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "Adam": (torch.optim.Adam, {"lr": 0.01}),
    "Adam, decay": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 1e-2, "momentum": 0.5}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.3}),
}


def is_least_squares_on_the_support(make, name) -> None:
    kind, options = REFITTED[name]
    X, y, f = lasso()
    w, optimizer = held(np.zeros(12), L1(0.5), kind, **options)
    descend(w, optimizer, f, 500)
    support = (w != 0).detach()
    assert 0 < support.sum() < 12
    handle = make(optimizer)
    for _ in range(6):
        for _ in range(200):
            descend(w, optimizer, f, 1)
            assert bool((w[~support] == 0).all())
        for group in optimizer.param_groups:
            group["lr"] /= 20 if kind is torch.optim.RMSprop else 1
    handle.remove()
    A, n = X[:, support], len(y)
    ridge = options.get("weight_decay", 0.0) * n / 2
    exact = torch.linalg.solve(A.T @ A + ridge * torch.eye(A.shape[1]), A.T @ y)
    assert float((w.detach()[support] - exact).abs().max()) < 1e-8


@pytest.mark.parametrize("name", REFITTED)
def test_the_refit_is_least_squares_on_the_support(name):
    is_least_squares_on_the_support(refit, name)


class Nothing:
    def __init__(self, optimizer):
        pass

    def remove(self):
        pass


class DropsThePenaltyOnly(Nothing):
    def __init__(self, optimizer):
        optimizer.set_lam(0.0)


class MasksOnly(Nothing):
    def __init__(self, optimizer):
        refit(optimizer)
        for _, entry in optimizer.entries():
            entry["lam"] = entry["off"]["lam"]


@pytest.mark.parametrize("mutant", [Nothing, DropsThePenaltyOnly, MasksOnly])
def test_the_refit_rejects(mutant):
    with pytest.raises(AssertionError):
        is_least_squares_on_the_support(mutant, "momentum")


def test_the_refit_removes_the_bias_of_l1():
    """On ½‖w − y‖², L1 keeps y − λ sign(y), the refit y."""
    y = torch.tensor([3.0, 0.5, -2.0], dtype=torch.float64)
    w, optimizer = held(np.ones(3), L1(1.0), lr=1.0)
    descend(w, optimizer, lambda w: 0.5 * ((w - y) ** 2).sum(), 2)
    assert w.tolist() == [2.0, 0.0, -1.0]
    with refit(optimizer):
        descend(w, optimizer, lambda w: 0.5 * ((w - y) ** 2).sum(), 1)
        assert w.tolist() == [3.0, 0.0, -2.0] and density(optimizer).value == 2 / 3
    descend(w, optimizer, lambda w: 0.5 * ((w - y) ** 2).sum(), 1)  # and the penalty is back
    assert w.tolist() == [2.0, 0.0, -1.0]


@pytest.mark.parametrize(
    "penalty",
    [L1(0.5), ElasticNet(0.5, ridge=0.2), SparseGroupLasso(0.3, group_lam=0.4), GroupLasso(0.5), NonNegative()],
)
def test_remove_puts_the_penalty_back(penalty):
    _, optimizer = held([[1.0, 0.0], [0.0, 0.0]], penalty)
    before = copy.deepcopy(optimizer.param_groups[0]["proximal"])
    handle = refit(optimizer)
    (_, inside, _) = next(optimizer.penalised())
    x = torch.tensor([[2.0, 0.3], [0.1, -0.0]], dtype=torch.float64)
    assert torch.equal(inside.prox(x, 1.0), x)
    handle.remove()
    assert optimizer.param_groups[0]["proximal"] == before
    handle.remove()  # twice does no harm
    assert optimizer.param_groups[0]["proximal"] == before


def test_one_refit_at_a_time():
    y = torch.tensor([3.0, 0.5], dtype=torch.float64)
    w, optimizer = held([2.0, 0.0], L1(1.0), lr=1.0)
    with refit(optimizer):
        with pytest.raises(ValueError, match=r"^refit: one of this optimiser is on already; end it first\.$"):
            refit(optimizer)
        descend(w, optimizer, lambda w: 0.5 * ((w - y) ** 2).sum(), 1)
    assert w.tolist() == [3.0, 0.0]
    with refit(optimizer):
        pass
    assert [entry["lam"] for _, entry in optimizer.entries()] == [1.0]


def test_a_constraint_stays():
    w, optimizer = held([1.0, 0.0], NonNegative(), lr=1.0)
    with refit(optimizer):
        w.grad = torch.tensor([2.0, -1.0], dtype=torch.float64)
        optimizer.step()
    assert w.tolist() == [0.0, 0.0]

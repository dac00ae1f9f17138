"""Certificates: 0 at solutions and nowhere else, against slow twins, scikit-learn and closed forms."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNet as SkElasticNet
from sklearn.linear_model import Lasso, LogisticRegression

from nonsmooth.objectives import LeastSquares, Logistic
from nonsmooth.penalties import (
    L0,
    L1,
    MCP,
    NM,
    SCAD,
    Box,
    ElasticNet,
    GroupLasso,
    LHalf,
    NonNegative,
    NuclearNorm,
    Simplex,
    SmoothedL1,
    SparseGroupLasso,
    SquaredL2,
)
from nonsmooth.torch import (
    Proximal,
    Residual,
    certificates,
    decay_residual,
    duality_gap,
    kkt,
    prox_residual,
    refit,
    stationary_lam,
)

LABELS = (0, 0, 1, 1, 1, 2, 3, 3)
CONVEX = {
    "L1": L1(0.3),
    "weighted L1": L1(0.3, weights=np.linspace(0.5, 2, 8)),
    "elastic net": ElasticNet(0.3, ridge=0.2),
    "groups": GroupLasso(0.4, groups=LABELS, scale_by_size=True),
    "sparse groups": SparseGroupLasso(0.2, group_lam=0.2, groups=LABELS),
    "at least 0": NonNegative(),
    "ridge": SquaredL2(0.3),
}


def problem(seed: int = 0, n: int = 30, p: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, p))
    return X, X @ np.where(np.arange(p) % 3 == 0, rng.standard_normal(p), 0) + 0.3 * rng.standard_normal(n)


def least_squares(X, y, w):
    X, y = torch.tensor(X), torch.tensor(y)
    return lambda: ((y - X @ w) ** 2).mean()


def held(w, penalty, kind=torch.optim.SGD, **options) -> tuple[torch.nn.Parameter, Proximal]:
    w = torch.nn.Parameter(torch.as_tensor(np.asarray(w), dtype=torch.float64).clone())
    return w, Proximal(kind([w], **({"lr": 0.05} | options)), penalty)


def train(w, optimizer, closure, steps) -> None:
    for _ in range(steps):
        w.grad = torch.autograd.grad(closure(), w)[0]
        optimizer.step()


def solve(X, y, penalty, steps: int = 4000) -> np.ndarray:
    """Proximal gradient, in NumPy, with a twin's plain loop."""
    f, w = LeastSquares(X, y), np.zeros(X.shape[1])
    step = 1 / f.constants.L
    for _ in range(steps):
        w, last = penalty.prox(w - step * f.grad(w), step), w
        if np.array_equal(w, last):
            break
    return w


# ── the prox residual ───────────────────────────────────────────────────────────────────────────────────────────────


def vanishes_at_solutions_alone(residual, penalty, t) -> None:
    X, y = problem()
    solution = solve(X, y, penalty)
    w, optimizer = held(solution, penalty)
    closure = least_squares(X, y, w)
    assert residual(optimizer, closure, t).value < 1e-12
    for i in range(8):
        with torch.no_grad():
            w[i] += 1e-3
        assert residual(optimizer, closure, t).value > 1e-5
        with torch.no_grad():
            w[i] -= 1e-3


def matches_the_formula(residual, penalty, t) -> None:
    X, y = problem(1)
    start = penalty.prox(np.random.default_rng(2).standard_normal(8), 0.5)
    w, optimizer = held(start, penalty)
    gradient = 2 * X.T @ (X @ start - y) / len(y)
    expected = np.sqrt(sum((start - penalty.prox(start - t * gradient, t)) ** 2)) / t
    assert residual(optimizer, least_squares(X, y, w), t).value == pytest.approx(expected, rel=1e-12)


LAWS = (vanishes_at_solutions_alone, matches_the_formula)


@pytest.mark.parametrize("t", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("name", CONVEX)
@pytest.mark.parametrize("law", LAWS)
def test_prox_residual(law, name, t):
    law(prox_residual, CONVEX[name], t)


def not_divided(optimizer, closure, t):
    return Residual(prox_residual(optimizer, closure, t).value * t, t, ())


def without_the_penalty(optimizer, closure, t):
    kept = copy.deepcopy(optimizer.param_groups[0]["proximal"])
    optimizer.set_lam(0.0)
    found = prox_residual(optimizer, closure, t)
    optimizer.param_groups[0]["proximal"] = kept
    return found


@pytest.mark.parametrize(
    ("law", "mutant"), [(matches_the_formula, not_divided), (vanishes_at_solutions_alone, without_the_penalty)]
)
def test_prox_residual_rejects(law, mutant):
    with pytest.raises(AssertionError):
        law(mutant, L1(0.3), 30.0)


def test_it_depends_on_t_for_a_penalty_that_is_not_convex():
    w, optimizer = held([0.0], L0(0.1))  # 0 is stationary at any λ, and the minimum of f + g is at 1
    closure = lambda: 0.5 * (w - 1).square().sum()  # noqa: E731
    assert prox_residual(optimizer, closure, 0.1).value == 0
    assert prox_residual(optimizer, closure, 1.0).value == 1
    assert kkt(optimizer, closure).holds


def test_it_falls_as_t_grows():
    X, y = problem()
    w, optimizer = held(np.ones(8), L1(0.3))
    found = [prox_residual(optimizer, least_squares(X, y, w), t).value for t in (0.1, 1.0, 10.0)]
    assert found[0] > found[1] > found[2] > 0


def test_a_minibatch_does_not_certify():
    X, y = problem()
    w, optimizer = held(solve(X, y, L1(0.3)), L1(0.3))
    assert prox_residual(optimizer, least_squares(X, y, w)).value < 1e-12
    assert prox_residual(optimizer, least_squares(X[:10], y[:10], w)).value > 0.05


def test_by_parameter_and_the_unpenalised_ones():
    model = torch.nn.Linear(2, 1).double()
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.1), L1(0.5), params=[model.weight])
    closure = lambda: 3 * model.weight.sum() + 4 * model.bias.sum()  # noqa: E731
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[9.0, 9.0]]))
    found = prox_residual(optimizer, closure, unpenalised=True, model=model)
    assert found.by_parameter == (("weight", pytest.approx(3.5 * math.sqrt(2))), ("bias", 4.0))
    assert found.value == pytest.approx(math.hypot(3.5 * math.sqrt(2), 4))
    assert prox_residual(optimizer, closure).by_parameter[0][0] == "0"
    assert "at t = 1: weight 4.95, bias 4" in str(found)


COUPLED = {
    "SGD": (torch.optim.SGD, {"weight_decay": 0.5, "momentum": 0.5}),
    "Adam": (torch.optim.Adam, {"weight_decay": 0.5, "lr": 0.01}),
    "ASGD": (torch.optim.ASGD, {"lambd": 0.5, "lr": 0.01, "alpha": 0.0, "weight_decay": 0.1}),
    "maximize": (torch.optim.SGD, {"maximize": True, "weight_decay": 0.5}),
}


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_decay_is_part_of_f(name):
    kind, options = COUPLED[name]
    X, y = problem()
    w, optimizer = held(np.ones(8), L1(0.3), kind, **options)
    loss = least_squares(X, y, w)
    closure = (lambda: -loss()) if name == "maximize" else loss
    train(w, optimizer, closure, 2000)
    assert prox_residual(optimizer, closure).value < 1e-9
    assert kkt(optimizer, closure, tol=1e-6).holds
    for group in optimizer.param_groups:  # the mutant that leaves the decay out
        group["weight_decay"] = 0.0
    assert prox_residual(optimizer, closure).value > 1e-3


# ── the KKT table ───────────────────────────────────────────────────────────────────────────────────────────────────


def row_of(w, penalty, closure_of, **options):
    w, optimizer = held(w, penalty)
    (row,) = kkt(optimizer, closure_of(w), **options).rows
    return row


def kkt_twin(w, lam, gradient, slack) -> tuple[int, int, int, float]:
    """The L1 conditions, in words, one weight at a time."""
    zero = not_zero = stuck = 0
    worst = 0.0
    for x, g in zip(w, gradient, strict=True):
        if x == 0:
            worst = max(worst, abs(g) - lam)
            zero, stuck = zero + (abs(g) <= lam + slack), stuck + (abs(g) > lam + slack)
        else:
            worst = max(worst, abs(g + lam * math.copysign(1, x)))
            not_zero += abs(g) < lam - slack
    return zero, not_zero, stuck, worst


@pytest.mark.parametrize("seed", range(5))
def test_kkt_is_its_slow_twin(seed):
    X, y = problem(seed, p=40)
    w = np.where(np.random.default_rng(seed).random(40) < 0.5, 0, solve(X, y, L1(0.3)) + 0.01)
    gradient = 2 * X.T @ (X @ w - y) / len(y)
    row = row_of(w, L1(0.3), lambda w: least_squares(X, y, w), tol=1e-3)
    twin = kkt_twin(w, 0.3, gradient, 1e-3 * abs(gradient).max())
    assert (row.zero, row.not_zero, row.stuck) == twin[:3] and row.distance == pytest.approx(twin[3], rel=1e-12)
    assert min(twin[:3]) > 0 and row.size == 40 and row.scale == pytest.approx(abs(gradient).max())


def test_kkt_on_scikit_learn_s_lasso():
    X, y = problem(3, n=50, p=100)
    found = Lasso(alpha=0.1, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(X, y).coef_
    row = row_of(found, L1(0.2), lambda w: least_squares(X, y, w), tol=1e-6)
    assert (row.zero, row.not_zero, row.stuck) == (100 - np.count_nonzero(found), 0, 0)
    support = np.flatnonzero(found)
    row = row_of(np.where(np.arange(100) == support[0], 0, found), L1(0.2), lambda w: least_squares(X, y, w), tol=1e-6)
    assert row.stuck >= 1
    off = np.flatnonzero(found == 0)[:1]
    row = row_of(np.where(np.isin(np.arange(100), off), 1e-6, found), L1(0.2), lambda w: least_squares(X, y, w))
    assert row.not_zero == 1


@pytest.mark.parametrize("name", CONVEX)
def test_kkt_holds_at_every_solution(name):
    X, y = problem()
    solution = solve(X, y, CONVEX[name])
    row = row_of(solution, CONVEX[name], lambda w: least_squares(X, y, w), tol=1e-6)
    assert (row.zero, row.stuck, row.not_zero) == (8 - np.count_nonzero(solution), 0, 0)


def test_kkt_weighs_groups_whole():
    target = torch.tensor([3.0, 0.0, 0.3, 0.4, 0.6, 0.8, 3.0, 4.0], dtype=torch.float64)
    penalty = GroupLasso(1.5, groups=(0, 0, 1, 1, 2, 2, 3, 3))
    row = row_of([1.5, 0, 0, 0, 0.06, 0.08, 0, 0], penalty, lambda w: lambda: 0.5 * (w - target).square().sum())
    assert (row.zero, row.not_zero, row.stuck) == (3, 2, 2)  # ‖(0.6, 0.8)‖ < 1.5 is not zero, ‖(3, 4)‖ is
    assert row.distance == pytest.approx(4 * (1 - 1.5 / 5))


@pytest.mark.parametrize("penalty", [MCP(1.0, gamma=3.0), SCAD(1.0), L0(1.0), LHalf(1.0)])
def test_without_convexity_no_weight_is_said_to_be_wrongly_there(penalty):
    row = row_of([9.0, 0.0], penalty, lambda w: lambda: 0.5 * (w - 9).square().sum())
    assert row.not_zero is None and row.stuck == (1 if isinstance(penalty, (MCP, SCAD)) else 0)


def test_the_table_reads():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.1), L1(100.0), params=[model[1].weight])
    table = kkt(optimizer, lambda: model(torch.ones(1, 3)).sum(), model=model)
    assert not table.holds and "does not hold" in str(table) and "\n  1.weight" in str(table)
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.1), L0(1.0), params=[model[1].weight])
    assert " –  " in str(kkt(optimizer, lambda: model(torch.ones(1, 3)).sum()))


ACTIVE = {
    "L1": L1(0.75),
    "weighted L1": L1(0.5, weights=np.linspace(0, 2, 8).reshape(2, 4)),
    "ridge": SquaredL2(0.75),
    "elastic net": ElasticNet(0.75, ridge=0.5),
    "smoothed L1": SmoothedL1(0.75, delta=0.5),
    "groups": GroupLasso(1.5),
    "sparse groups": SparseGroupLasso(0.25, group_lam=0.5),
    "MCP": MCP(0.5, gamma=3.0),
    "SCAD": SCAD(0.5),
    "L0": L0(0.3),
    "L half": LHalf(0.5),
    "box": Box(-0.3, 0.7),
    "at least 0": NonNegative(),
    "simplex": Simplex(0.7),
    "2:4": NM(2, 4),
    "nuclear norm": NuclearNorm(1.0),
}
INACTIVE = {  # g has no slope at the solution, so that ∇f vanishes there
    "MCP, large": MCP(0.3, gamma=2.0),
    "SCAD, large": SCAD(0.2),
    "L0, large": L0(0.01),
    "λ = 0": L1(0.0),
    "wide box": Box(-9.0, 9.0),
    "above 0": NonNegative(),
    "sum as it is": Simplex(8.2),
    "2:4 as it is": NM(2, 4),
}
TARGETS = [[2.0, -1.0, 0.5, -1.5], [-0.2, 0.1, 1.0, 0.3]], [[2.0, 0.5, 1.2, 0.5], [0.5, 1.5, 0.5, 1.5]]
SOLVED = {
    "SGD": (torch.optim.SGD, {"lr": 0.7}, 40, 0.97),
    "Adam": (torch.optim.Adam, {"lr": 0.3, "betas": (0.0, 0.9)}, 160, 0.96),
}


@pytest.mark.parametrize(
    ("name", "dtype", "tol", "away"),
    [
        *((name, dtype, 1e-3, 1e-2) for name in SOLVED for dtype in (torch.float32, torch.float64)),
        ("SGD", torch.bfloat16, 0.05, 0.3),
    ],
)
def test_kkt_holds_where_proximal_ends_and_not_beside_it(name, dtype, tol, away):
    kind, options, steps, falls = SOLVED[name]
    zoo = [(g, target) for table, target in zip((ACTIVE, INACTIVE), TARGETS, strict=True) for g in table.values()]
    zoo = [(g, target) for g, target in zoo if kind is torch.optim.SGD or not g.one_step]
    targets = torch.tensor([target for _, target in zoo], dtype=dtype)
    targets[[isinstance(g, NM) for g, _ in zoo]] *= torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=dtype)
    model = torch.nn.ParameterDict({str(i): 0.9 * target for i, target in enumerate(targets)})
    params = list(model.values())
    optimizer = Proximal(kind(params, **options), [(g, [w]) for (g, _), w in zip(zoo, params, strict=True)])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, falls)

    def loss():
        off = torch.stack(params) - targets
        return 0.5 * off.square().sum() + 0.025 * off.sum((1, 2)).square().sum()

    for _ in range(steps):
        for w, slope in zip(params, torch.autograd.grad(loss(), params), strict=True):
            w.grad = slope
        optimizer.step()
        schedule.step()
    table = kkt(optimizer, loss, tol, model=model)
    assert len(table.rows) == len(zoo) and table.holds, str(table)
    assert all(row.stuck == 0 for row in table.rows) and sum(row.zero for row in table.rows) > 20
    with torch.no_grad():
        for w in params:
            w += away
    rows = kkt(optimizer, loss, tol).rows
    assert not [row for row in rows if row.distance <= tol * row.scale]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("penalty", [Box(-0.1, 0.1), Simplex(0.7), NuclearNorm(0.2)])
def test_bounds_sums_and_ranks_are_asked_in_the_parameter_s_own_precision(penalty, dtype):
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[2:] = torch.outer(torch.arange(1.0, 5), x[0])  # of rank 2
    w = penalty.prox(x, 1.0).to(dtype)
    v = (x - penalty.prox(x, 1.0)).to(torch.float64)
    found = penalty.subdiff_distance(w, v)
    assert found.dtype == torch.float64 and found.max() <= torch.finfo(dtype).eps
    assert penalty.subdiff_distance(w.double(), v).max() > 0.01  # the mutant that lets float64 decide


def test_the_scale_is_no_looser_than_it_must_be():
    """λ for MCP, the change of ∂f with w for a constraint; other penalties have |∂f| alone, however small."""
    scale = lambda w, penalty, h: row_of(w, penalty, lambda w: lambda: 0.5 * h * (w - 1).square().sum()).scale  # noqa: E731
    assert scale([1.0], MCP(0.25, gamma=2.0), 8.0) == 0.25
    assert 4 < scale(np.ones(50), Box(-2, 2), 8.0) <= 8.0 + 1e-6  # h|w| for a share of all of it
    assert scale(np.ones(50), Box(-2, 2), 8e-6) <= 8e-6 + 1e-12
    assert scale([1.01], L1(10.0), 1.0) == pytest.approx(0.01)


def test_within_a_refit_f_is_of_the_weights_that_are_kept():
    X, y = problem()
    w, optimizer = held(np.zeros(8), L1(0.3))
    closure = least_squares(X, y, w)
    train(w, optimizer, closure, 400)
    with refit(optimizer):
        assert not kkt(optimizer, closure).holds
        train(w, optimizer, closure, 800)
        row = kkt(optimizer, closure).rows[0]
        assert kkt(optimizer, closure, 1e-9).holds and row.zero == int((w == 0).sum()) > 0 == row.stuck
        assert prox_residual(optimizer, closure).value < 1e-9
    assert not kkt(optimizer, closure).holds and prox_residual(optimizer, closure).value > 0.1


class Wrapped:
    """As accelerate's: the optimiser is one of its attributes."""

    def __init__(self, optimizer) -> None:
        self.optimizer = optimizer


def test_a_wrapper_is_looked_through():
    w, optimizer = held([1.0], L1(0.5), torch.optim.AdamW, weight_decay=0.1)
    train(w, optimizer, lambda: w.square().sum(), 1)
    for certificate in CERTIFICATES.values():
        assert certificate(Wrapped(optimizer), w.sum) == certificate(optimizer, w.sum)


# ── decoupled decay ─────────────────────────────────────────────────────────────────────────────────────────────────

DECOUPLED = {
    "AdamW": (torch.optim.AdamW, {}),
    "amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "NAdam": (torch.optim.NAdam, {"decoupled_weight_decay": True}),
    "RAdam": (torch.optim.RAdam, {"decoupled_weight_decay": True}),
}


@pytest.mark.parametrize("name", DECOUPLED)
def test_decoupled_decay_solves_its_own_equation(name):
    kind, options = DECOUPLED[name]
    X, y = problem()
    w, optimizer = held(np.zeros(8), L1(0.3), kind, weight_decay=0.3, betas=(0.5, 0.9), **options)
    closure = least_squares(X, y, w)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t / 100))
    for _ in range(4000):
        train(w, optimizer, closure, 1)
        schedule.step()
    found = decay_residual(optimizer, closure).value
    assert found < 1e-6 < 1e-2 < prox_residual(optimizer, closure).value
    for group in optimizer.param_groups:  # it does not depend on lr
        group["lr"] = 0.0
    assert decay_residual(optimizer, closure).value == pytest.approx(found, abs=1e-12)
    for group in optimizer.param_groups:  # the mutant with a wrong strength
        group["weight_decay"] *= 2
    assert decay_residual(optimizer, closure).value > 1e-2


def test_adamw_without_noise_in_closed_form():
    """√v̂ = |∂f|, so that (3 − w)(1 − wd w) = λ: ½(w − 3)² − (λ/wd) log(1 − wd|w|) is at its minimum."""
    w, optimizer = held([0.0], L1(0.5), torch.optim.AdamW, weight_decay=0.1, betas=(0.0, 0.5), lr=0.01, eps=1e-12)
    closure = lambda: 0.5 * (w - 3).square().sum()  # noqa: E731
    train(w, optimizer, closure, 2500)
    root = (13 - math.sqrt(13**2 - 4 * 25)) / 2  # 0.1w² − 1.3w + 2.5 = 0
    assert w.item() == pytest.approx(root, abs=1e-9)
    assert decay_residual(optimizer, closure).value < 1e-9


def test_decay_residual_refuses():
    w, optimizer = held([1.0], L1(0.5), torch.optim.Adam, weight_decay=0.1)
    with pytest.raises(ValueError, match="no group has decoupled weight decay; use prox_residual or kkt"):
        decay_residual(optimizer, lambda: w.sum())
    w, optimizer = held([1.0], L1(0.5), torch.optim.AdamW)
    with pytest.raises(ValueError, match="take a step first"):
        decay_residual(optimizer, lambda: w.sum())


# ── looking does not disturb ────────────────────────────────────────────────────────────────────────────────────────


class Noisy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stack = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.stack(x)


CERTIFICATES = {
    "prox_residual": prox_residual,
    "kkt": kkt,
    "decay_residual": decay_residual,
    "stationary_lam": stationary_lam,
}


@pytest.mark.parametrize("name", CERTIFICATES)
@pytest.mark.parametrize("graded", [True, False])
def test_looking_does_not_disturb(name, graded):
    torch.manual_seed(0)
    model = Noisy()
    optimizer = Proximal(torch.optim.AdamW(model.parameters(), lr=0.1), L1(0.5), params=[model.stack[0].weight])
    x = torch.randn(8, 4)
    closure = lambda: model(x).square().mean()  # noqa: E731
    closure().backward()
    optimizer.step()
    with torch.no_grad():
        model.stack[0].weight[0, 0] = -0.0
    if not graded:
        optimizer.zero_grad()
    pending = model.stack[0].weight.square().sum()  # a graph that an in-place change would break
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    held_ = [(p.grad, p.grad if p.grad is None else p.grad.clone(), p._version) for p in model.parameters()]
    buffers = dict(model.named_buffers())
    memory = copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():
        CERTIFICATES[name](optimizer, closure)
    for (grad, value, version), p in zip(held_, model.parameters(), strict=True):
        assert p.grad is grad and (grad is None or torch.equal(grad, value)) and p._version == version
    assert all(a is b for a, b in zip(buffers.values(), dict(model.named_buffers()).values(), strict=True))
    for key, value in model.state_dict().items():
        assert value.numpy().tobytes() == state[key].numpy().tobytes(), key
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert str(optimizer.state_dict()) == str(memory)
    pending.backward()


def calls_backward(w):
    loss = w.square().sum()
    loss.backward()
    return loss


@pytest.mark.parametrize(
    ("closure", "says"),
    [
        (calls_backward, "the closure called backward; return the loss"),
        (lambda w: calls_backward(w).item(), "the closure called backward"),
        (lambda w: 1.0, "a scalar tensor with its graph, not float"),
        (lambda w: None, "not NoneType"),
        (lambda w: w.sum().detach(), r"not a tensor of shape \(\) without a graph"),
        (lambda w: w.sum() + 0j, "the loss is complex; return a real one"),
        (lambda w: 2 * w, r"not a tensor of shape \(2,\)"),
        (lambda w: (w - 1).sqrt().sum(), r"the gradient of a parameter of shape \(2,\) is not finite"),
    ],
)
@pytest.mark.parametrize("name", ["prox_residual", "kkt", "stationary_lam"])
def test_a_closure_that_is_not_as_it_should_be_is_refused(name, closure, says):
    w, optimizer = held([1.0, 0.0], L1(0.5))
    w.grad = torch.ones(2, dtype=torch.float64)
    grad = w.grad
    with pytest.raises(ValueError, match=f"^{name}: .*{says}"):
        CERTIFICATES[name](optimizer, lambda: closure(w))
    assert w.grad is grad and grad.tolist() == [1, 1] and w.tolist() == [1, 0]


def test_bad_arguments():
    w, optimizer = held([1.0], L1(0.5))
    for t in (0, -1.0, math.inf, math.nan, "1", True):
        with pytest.raises(ValueError, match="prox_residual: t must be a finite number above 0"):
            prox_residual(optimizer, w.sum, t)
    with pytest.raises(ValueError, match=r"kkt: tol must be a number in \[0, 1\), not 1"):
        kkt(optimizer, w.sum, tol=1)
    for wrong, says in ((optimizer.optimizer, "not SGD"), (w, r"not one tensor; write \[w\]")):
        with pytest.raises(TypeError, match=f"stationary_lam: give a Proximal or a list of parameters, {says}"):
            stationary_lam(wrong, w.sum)
    with pytest.raises(ValueError, match="stationary_lam: the parameters must be leaves"):
        stationary_lam([w * 1.0], w.sum)
    for name in ("prox_residual", "kkt", "decay_residual"):
        with pytest.raises(TypeError, match=f"{name}: optimizer must be a Proximal, not SGD"):
            CERTIFICATES[name](optimizer.optimizer, w.sum)
    w.requires_grad_(False)
    for name, certificate in CERTIFICATES.items():
        with pytest.raises(
            ValueError, match=f"{name}: .* at least one parameter under the penalty that requires a grad"
        ):
            certificate(optimizer, w.sum)


def test_numpys_numbers_will_do():
    w, optimizer = held([1.0], L1(0.5))
    assert prox_residual(optimizer, w.sum, np.float32(1)) == prox_residual(optimizer, w.sum, 1.0)
    assert kkt(optimizer, w.sum, np.float32(0.5)) == kkt(optimizer, w.sum, 0.5)


def test_a_parameter_that_the_loss_does_not_use_has_gradient_zero():
    w, v = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = Proximal(torch.optim.SGD([w, v], lr=0.1), L1(0.5))
    assert prox_residual(optimizer, lambda: -0.5 * w.sum()).by_parameter == (("0", 0.0), ("1", 0.5))


# ── the λ at which zero is stationary ───────────────────────────────────────────────────────────────────────────────


def test_stationary_lam_is_the_critical_lam():
    X, y = load_diabetes(return_X_y=True)
    w, optimizer = held(np.ones(10), L1(1.0))
    closure = least_squares(X, y - y.mean(), w)
    found = stationary_lam(optimizer, closure)
    assert found.value == pytest.approx(LeastSquares(X, y - y.mean()).critical_lam, rel=1e-12)
    assert stationary_lam([w], closure) == found and found.by_parameter == (("0", found.value),)
    for factor, alone in ((1 + 1e-9, True), (1 - 1e-3, False)):
        w, optimizer = held(np.zeros(10), L1(found.value * factor))
        train(w, optimizer, least_squares(X, y - y.mean(), w), 20)
        assert bool((w == 0).all()) == alone


AT_ZERO = {**{name: CONVEX[name] for name in CONVEX if "lam" in vars(CONVEX[name])}, "MCP": MCP(1.0, gamma=3.0)}
AT_ZERO.pop("ridge")


@pytest.mark.parametrize("name", AT_ZERO)
def test_zero_is_stationary_from_that_lam_on(name):
    X, y = problem()
    penalty = AT_ZERO[name]
    w, optimizer = held(np.ones(8), penalty)
    lam = stationary_lam(optimizer, least_squares(X, y, w)).value
    v = 2 * X.T @ y / len(y)
    assert penalty.replaced(lam=lam * (1 + 1e-9)).subdiff_distance(np.zeros(8), v).max() == 0
    assert penalty.replaced(lam=lam * (1 - 1e-6)).subdiff_distance(np.zeros(8), v).max() > 0


def test_stationary_lam_at_the_ends():
    X, y = problem()
    w, optimizer = held(np.ones(8), L0(1.0))
    assert stationary_lam(optimizer, least_squares(X, y, w)).value == 0
    w, optimizer = held(np.ones(8), L1(1.0, weights=np.array([0.0, *np.ones(7)])))
    assert stationary_lam(optimizer, least_squares(X, y, w)).value == math.inf  # the first is not penalised
    w, optimizer = held(np.ones(8), Box(-1, 1))
    with pytest.raises(TypeError, match="Box has no λ from which zero is stationary"):
        stationary_lam(optimizer, least_squares(X, y, w))
    with pytest.raises(ValueError, match="at least one parameter"):
        stationary_lam([], lambda: 0)


def test_a_hidden_layer_says_nothing():
    """At zero weights it has zero gradient, so that zero is stationary at any λ."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = Proximal(
        torch.optim.SGD(model.parameters(), lr=0.1), L1(1.0), params=[model[0].weight, model[2].weight]
    )
    x, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.ones(20, 1)
    found = dict(stationary_lam(optimizer, lambda: (model(x) - y).square().mean(), model=model).by_parameter)
    assert found["0.weight"] == 0 < found["2.weight"]


# ── the duality gap ─────────────────────────────────────────────────────────────────────────────────────────────────


def cases():
    X, y = problem(4, n=40, p=60)
    signs = np.sign(y + 0.01)
    for lam in (0.02, 0.2, 1.0):
        yield "lasso", LeastSquares(X, y), L1(lam)
        yield "weighted", LeastSquares(X, y), L1(lam, weights=np.linspace(0.5, 2, 60))
        yield "elastic net", LeastSquares(X, y), ElasticNet(lam, ridge=0.1)
        yield "groups", LeastSquares(X, y), GroupLasso(lam, groups=tuple(np.arange(60) // 4), scale_by_size=True)
        yield "logistic", Logistic(X, signs), L1(lam / 4)
        yield "logistic elastic net", Logistic(X, signs), ElasticNet(lam / 4, ridge=0.05)
        yield "logistic groups", Logistic(X, signs), GroupLasso(lam / 4, groups=tuple(np.arange(60) // 4))


CASES = [pytest.param(f, g, id=f"{name} {g.lam:g}") for name, f, g in cases()]


def accelerated(f, g, steps):
    """FISTA with restarts; the iterates."""
    w = z = np.zeros(f.shape)
    t, L = 1.0, f.constants.L
    for _ in range(steps):
        new = g.prox(z - f.grad(z) / L, 1 / L)
        t, last = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        z, w = (new + (last - 1) / t * (new - w), new) if np.sum((z - new) * (new - w)) <= 0 else (new, new)
        yield w


def weakly_dual(gap, f, g) -> None:
    """D ≤ F* ≤ F(w), so that the gap bounds the error; and it closes at the solution."""
    iterates = list(accelerated(f, g, 6000))
    best = min(float(f.value(w) + g.value(w)) for w in (iterates[-1], iterates[-2]))
    rng = np.random.default_rng(0)
    for w in (np.zeros(f.shape), rng.standard_normal(f.shape), *iterates[:100:7], iterates[-1]):
        found = gap(f, g, w)
        assert found.primal == pytest.approx(float(f.value(w) + g.value(w)), rel=1e-14)
        assert found.dual <= best + 1e-12 * abs(best) and found.value >= found.primal - best - 1e-12
    assert gap(f, g, iterates[-1]).value <= 1e-9 * best


@pytest.mark.parametrize(("f", "g"), CASES)
def test_the_gap_bounds_the_error_and_closes(f, g):
    weakly_dual(duality_gap, f, g)


def unscaled(f, g, w):
    """The mutant that takes the residual as it is, feasible or not."""
    found = duality_gap(f, g.replaced(lam=1e9), w)
    return certificates.DualityGap(float(f.value(w) + g.value(w)), found.dual)


def penalty_left_out(f, g, w):
    return certificates.DualityGap(float(f.value(w)), duality_gap(f, g, w).dual)


@pytest.mark.parametrize("mutant", [unscaled, penalty_left_out])
@pytest.mark.parametrize("which", [0, 4])
def test_the_gap_rejects(mutant, which):
    f, g = CASES[7 + which].values
    with pytest.raises(AssertionError):
        weakly_dual(mutant, f, g)


@pytest.mark.parametrize(("f", "g"), CASES)
def test_torch_and_numpy_agree(f, g):
    w = np.random.default_rng(5).standard_normal(60) * (np.arange(60) % 4 == 0)
    a, b = duality_gap(f, g, w), duality_gap(f, g, torch.tensor(w))
    assert (a.primal, a.dual) == pytest.approx((b.primal, b.dual), rel=1e-12)
    single = duality_gap(f, g, torch.tensor(w, dtype=torch.float32))
    assert single.value == pytest.approx(a.value, rel=1e-3)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("sweeps", [1, 3, 10, 1000])
def test_at_most_scikit_learn_s_gap(ridge, sweeps):
    """Theirs is half of ours, with s at most 1 and the dual of the augmented problem: never tighter than ours."""
    X, y = problem(6, n=40, p=60)
    lam = 0.2
    alpha = lam / 2 + ridge
    options = {"fit_intercept": False, "max_iter": sweeps, "tol": 1e-13}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        theirs = SkElasticNet(alpha=alpha, l1_ratio=lam / 2 / alpha, **options).fit(X, y)
    penalty = ElasticNet(lam, ridge=ridge)
    ours = duality_gap(LeastSquares(X, y), penalty, theirs.coef_)
    best = list(accelerated(LeastSquares(X, y), penalty, 3000))[-1]
    error = ours.primal - LeastSquares(X, y).value(best) - penalty.value(best)
    assert error - 1e-12 <= ours.value <= 2 * theirs.dual_gap_ + 1e-12
    if not ridge and sweeps < 1000:
        assert ours.value == pytest.approx(2 * theirs.dual_gap_, rel=1e-6)


def test_the_gap_at_scikit_learn_s_logistic_solution():
    X, y = load_breast_cancer(return_X_y=True)
    X, y = (X - X.mean(0)) / X.std(0), 2.0 * y - 1
    lam = 0.01
    model = LogisticRegression(
        l1_ratio=1.0, C=1 / (lam * len(y)), fit_intercept=False, solver="liblinear", tol=1e-10, max_iter=10_000
    )
    w = model.fit(X, y).coef_[0]
    found = duality_gap(Logistic(X, y), L1(lam), w)
    assert 0 <= found.value <= 1e-8 * found.primal
    assert duality_gap(Logistic(X, y), L1(lam), 1.01 * w).value > 1e-6


def test_the_gap_at_lam_zero_and_at_a_perfect_fit():
    f = LeastSquares(np.eye(2), [1.0, 2.0])
    assert duality_gap(f, L1(0.0), np.array([1.0, 2.0])).value == 0
    assert duality_gap(f, L1(0.0), np.zeros(2)).value == 2.5
    assert duality_gap(f, L1(1.0), np.array([1.0, 2.0])).value == 3.0  # D = 0
    assert duality_gap(f, L1(100.0), np.zeros(2)).value == 0


def test_the_gap_refuses():
    f = LeastSquares(np.eye(2), [1.0, 2.0])
    with pytest.raises(TypeError, match="penalty must be L1, GroupLasso or ElasticNet, not MCP"):
        duality_gap(f, MCP(1.0, gamma=3.0), np.zeros(2))
    with pytest.raises(TypeError, match="f must be LeastSquares or Logistic, not L1"):
        duality_gap(L1(1.0), L1(1.0), np.zeros(2))

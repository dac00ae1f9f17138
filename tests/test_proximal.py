"""Proximal ends at the minimum of f + g, whatever the optimiser: by scikit-learn's solutions, and by closed forms."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from sklearn.linear_model import LogisticRegression, MultiTaskElasticNet
from sklearn.preprocessing import scale
from torch import Tensor, optim
from torch.nn.functional import softplus

from nonsmooth.penalties import L1, ElasticNet, GroupLasso, Penalty
from nonsmooth.torch import Proximal, effective, effective_step
from zoo import over

rejected = pytest.raises(AssertionError)


@pytest.fixture(autouse=True)
def _torch_in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# ── problems whose solution scikit-learn gives ──────────────────────────────────────────────────────────────────────


class Problem(NamedTuple):
    """f, scaled to smoothness 1, its gradient, the penalty g, and the minimiser of f + ½wd‖w‖² + g."""

    f: Callable[[Tensor], Tensor]
    grad: Callable[[Tensor], Tensor]
    penalty: Penalty
    best: Tensor
    decay: float

    def total(self, w: Tensor) -> float:
        return float(self.f(w) + self.penalty.value(w) + 0.5 * self.decay * (w * w).sum())

    def gap(self, w: Tensor) -> float:
        return (self.total(w) - self.total(self.best)) / self.total(self.best)

    def same_support(self, w: Tensor) -> bool:
        return torch.equal(w != 0, self.best != 0)

    def complementarity(self) -> float:
        """The largest |∂ᵢf|/λ off the support, of groups where g has them."""
        v, size = self.grad(self.best) + self.decay * self.best, self.best.abs()
        if isinstance(self.penalty, GroupLasso):
            v, size = v.norm(dim=1), size.norm(dim=1)
        return float(v[size == 0].abs().max() / self.penalty.lam)


def fresh(
    seed: int, n: int = 60, p: int = 20, used: int = 6, tasks: int = 1, noise: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X, w = scale(rng.standard_normal((n, p))), np.zeros((p, tasks))
    w[:used] = rng.standard_normal((used, tasks))
    y = X @ w + noise * rng.standard_normal((n, tasks))
    return X, (y - y.mean(0)) / y.std()


def squares(X: np.ndarray, y: np.ndarray) -> tuple[float, Any, Any]:
    """f(w) = ‖Xw − y‖²/(2nL), L = λ₁(XᵀX/n)."""
    n, L = len(y), float(np.linalg.norm(X, 2) ** 2 / len(y))
    A, b = torch.tensor(X), torch.tensor(y)
    return L, lambda w: ((A @ w - b) ** 2).sum() / (2 * n * L), lambda w: A.T @ (A @ w - b) / (n * L)


def logistic(X: np.ndarray, sign: np.ndarray) -> tuple[float, Any, Any]:
    """f(w) = mean log(1 + exp(−sᵢ⟨xᵢ, w⟩))/L, L = λ₁(XᵀX/(4n))."""
    n, L = len(sign), float(np.linalg.norm(X, 2) ** 2 / (4 * len(sign)))
    A, s = torch.tensor(X), torch.tensor(sign)
    return (
        L,
        lambda w: softplus(-s * (A @ w)).mean() / L,
        lambda w: -(A.T @ (s * torch.sigmoid(-s * (A @ w)))) / (n * L),
    )


def regression(X: np.ndarray, y: np.ndarray, lam: float, decay: float, ridge: float = 0.0) -> Problem:
    L, f, grad = squares(X, y[:, 0])
    rough, smooth = lam * L, (decay + 2 * ridge) * L
    model = SklearnElasticNet(
        alpha=rough + smooth, l1_ratio=rough / (rough + smooth), fit_intercept=False, tol=1e-14, max_iter=10**6
    )
    best = torch.tensor(model.fit(X, y[:, 0]).coef_)
    return Problem(f, grad, ElasticNet(lam, ridge) if ridge else L1(lam), best, decay)


def grouped(X: np.ndarray, y: np.ndarray, lam: float, decay: float) -> Problem:
    """The rows of w are the groups: several tasks that share their variables."""
    L, f, grad = squares(X, y)
    rough, smooth = lam * L, decay * L
    model = MultiTaskElasticNet(
        alpha=rough + smooth, l1_ratio=rough / (rough + smooth), fit_intercept=False, tol=1e-14, max_iter=10**6
    )
    return Problem(f, grad, GroupLasso(lam, dim=0), torch.tensor(model.fit(X, y).coef_.T.copy()), decay)


def classification(X: np.ndarray, sign: np.ndarray, lam: float, decay: float) -> Problem:
    L, f, grad = logistic(X, sign)
    rough, smooth = lam * L, decay * L
    model = LogisticRegression(
        l1_ratio=rough / (rough + smooth),
        C=1 / (len(sign) * (rough + smooth)),
        solver="saga" if decay else "liblinear",
        fit_intercept=False,
        tol=1e-12,
        max_iter=10**6,
        random_state=0,
    )
    return Problem(f, grad, L1(lam), torch.tensor(model.fit(X, sign).coef_[0]), decay)


def diabetes(lam: float, decay: float) -> Problem:
    X, y = load_diabetes(return_X_y=True)
    return regression(scale(X), scale(y)[:, None], lam, decay)


def breast_cancer(lam: float, decay: float) -> Problem:
    X, y = load_breast_cancer(return_X_y=True)
    return classification(scale(X), 2.0 * y - 1, lam, decay)


@functools.cache
def problems(decay: float) -> dict[str, Problem]:
    X, y = fresh(40, n=200, p=10, noise=2.0)
    found = {f"lasso-{seed}": regression(*fresh(seed), 0.05, decay) for seed in (1, 2, 3)}
    found["elastic-net"] = regression(*fresh(20), 0.05, decay, ridge=0.05)
    found["diabetes"] = diabetes(0.03, decay)
    found["logistic"] = classification(X, np.sign(y[:, 0]), 0.05, decay)
    if not decay:  # a third of the time of all
        found["group-lasso"] = grouped(*fresh(30, p=10, used=3, tasks=3), 0.06, decay)
    return found


@functools.cache
def ill_conditioned(decay: float) -> dict[str, Problem]:
    """Breast cancer; without decay its Hessian on the support has a condition number of 600."""
    return {"breast-cancer": breast_cancer(0.08 if decay else 0.045, decay)}


DECAY = 0.02


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("of", [problems, ill_conditioned])
def test_problems_are_strictly_complementary_and_not_trivial(of, decay):
    found = of(decay)
    for name, problem in found.items():
        assert problem.complementarity() <= 0.99, name
        assert 3 <= int((problem.best != 0).sum()) < problem.best.numel(), name
        v = -problem.grad(problem.best) - problem.decay * problem.best
        assert float(problem.penalty.subdiff_distance(problem.best, v).max()) < 1e-9, name


# ── every optimiser, and every option ───────────────────────────────────────────────────────────────────────────────


class Row(NamedTuple):
    """An optimiser, its options, and how much larger its step may be on the ill-conditioned problem."""

    kind: type[optim.Optimizer]
    options: dict[str, Any]
    more: float = 100.0


OPTIMISERS: dict[str, Row] = {
    "sgd": Row(optim.SGD, {"lr": 1.0}, 10),
    "momentum": Row(optim.SGD, {"lr": 0.2, "momentum": 0.9}, 30),
    "dampened": Row(optim.SGD, {"lr": 0.4, "momentum": 0.9, "dampening": 0.5}, 30),
    "nesterov": Row(optim.SGD, {"lr": 0.2, "momentum": 0.9, "nesterov": True}, 30),
    "maximize": Row(optim.SGD, {"lr": 0.2, "momentum": 0.9, "maximize": True}, 30),
    "fused": Row(optim.SGD, {"lr": 0.2, "momentum": 0.9, "fused": True}, 30),
    "adam": Row(optim.Adam, {"lr": 0.02}),
    "adam-fused": Row(optim.Adam, {"lr": 0.02, "fused": True}),
    "amsgrad": Row(optim.Adam, {"lr": 0.02, "amsgrad": True}),
    "adamw": Row(optim.AdamW, {"lr": 0.02, "weight_decay": 0.0}),
    "nadam": Row(optim.NAdam, {"lr": 0.03}, 20),
    "radam": Row(optim.RAdam, {"lr": 0.1}, 40),
    "adamax": Row(optim.Adamax, {"lr": 0.04}, 50),
    "adagrad": Row(optim.Adagrad, {"lr": 1.0}, 10),
    "adagrad-decay": Row(optim.Adagrad, {"lr": 1.0, "lr_decay": 1e-4}, 10),
    "adadelta": Row(optim.Adadelta, {"lr": 5.0}, 60),
    "rmsprop": Row(optim.RMSprop, {"lr": 0.02}, 30),
    "rmsprop-momentum": Row(optim.RMSprop, {"lr": 0.004, "momentum": 0.9}, 30),
    "rmsprop-centred": Row(optim.RMSprop, {"lr": 0.05, "centered": True, "eps": 0.1}, 40),
    "asgd": Row(optim.ASGD, {"lr": 1.0, "lambd": 0.0}, 10),
}


def cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def minimise(
    row: Row, tasks: Sequence[Problem], steps: int, more: float = 1.0, prox: bool = True, **options: Any
) -> list[Tensor]:
    """The parameters of all problems in one optimiser, full batch, its learning rate going to 0 as a cosine."""
    given = row.options | options
    sign = -1.0 if given.get("maximize") else 1.0
    params = [torch.nn.Parameter(torch.zeros_like(task.best)) for task in tasks]
    optimizer = row.kind(params, **({} if given.get("fused") else {"foreach": True}), **given)
    if prox:
        optimizer = Proximal(optimizer, [(task.penalty, [p]) for task, p in zip(tasks, params)])
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = more * given["lr"] * cosine(t / steps)
        for task, p in zip(tasks, params):
            w = p.detach()
            p.grad = sign * (task.grad(w) + (0 if prox else task.penalty.grad(w)))
        optimizer.step()
    return [p.detach() for p in params]


GAP = 1e-6


@pytest.mark.parametrize("row", over({name: (row,) for name, row in OPTIMISERS.items()}))
def test_reaches_scikit_learns_solution(row):
    found = problems(0.0)
    for (name, task), w in zip(found.items(), minimise(row, list(found.values()), 600)):
        assert abs(task.gap(w)) <= GAP and task.same_support(w), name


@pytest.mark.parametrize("row", over({name: (row,) for name, row in OPTIMISERS.items() if name != "adamw"}))
def test_coupled_decay_is_a_ridge_in_f(row):
    found = problems(DECAY)
    for (name, task), w in zip(found.items(), minimise(row, list(found.values()), 600, weight_decay=DECAY)):
        assert abs(task.gap(w)) <= GAP and task.same_support(w), name


def test_asgds_own_decay_is_a_ridge_in_f():
    found, row = problems(DECAY), OPTIMISERS["asgd"]
    for task, w in zip(found.values(), minimise(row, list(found.values()), 600, lambd=DECAY)):
        assert abs(task.gap(w)) <= GAP and task.same_support(w)


@pytest.mark.parametrize("row", over({name: (row,) for name, row in OPTIMISERS.items()}))
def test_reaches_the_solution_on_breast_cancer(row):
    for decay, steps in ((0.0, 3000), (0.0 if row.kind is optim.AdamW else DECAY, 1000)):
        (task,) = ill_conditioned(decay).values()
        (w,) = minimise(row, [task], steps, row.more, weight_decay=decay)
        assert abs(task.gap(w)) <= GAP and task.same_support(w)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "rmsprop"])
def test_autograd_gives_no_zeros(name):
    """The penalty's gradient in the loss instead: the mutant that people ship."""
    tasks = list(problems(0.0).values())
    for task, w in zip(tasks, minimise(OPTIMISERS[name], tasks, 600, prox=False)):
        assert int((w == 0).sum()) == 0 and not task.same_support(w)


# ── decay that is not in f ──────────────────────────────────────────────────────────────────────────────────────────

DECOUPLED: dict[str, Row] = {
    "adamw": Row(optim.AdamW, {}),
    "adamw-amsgrad": Row(optim.AdamW, {"amsgrad": True}),
    "adam": Row(optim.Adam, {"decoupled_weight_decay": True}),
    "nadam": Row(optim.NAdam, {"decoupled_weight_decay": True}),
    "radam": Row(optim.RAdam, {"decoupled_weight_decay": True}),
}


@pytest.mark.parametrize("row", over({name: (row,) for name, row in DECOUPLED.items()}))
def test_decoupled_decay_solves_its_own_equation(row):
    """0 ∈ ∇f + wd (lr/τ) w + ∂g, lr/τ = √v̂ + ε for AdamW; not the problem with a ridge, and not that without."""
    task, decay, lr, steps = problems(0.0)["lasso-1"], 0.5, 0.02, 2500
    p = torch.nn.Parameter(torch.zeros_like(task.best))
    optimizer = Proximal(row.kind([p], lr, (0.9, 0.99), weight_decay=decay, **row.options), task.penalty)
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = lr * max(cosine(t / steps), 1e-3)
        p.grad = task.grad(p.detach())
        optimizer.step()
    w = p.detach()
    force = optimizer.param_groups[0]["lr"] / effective_step(optimizer.optimizer, p)

    def certificate(pull: Any) -> float:
        return float(task.penalty.subdiff_distance(w, -task.grad(w) - decay * pull).max())

    assert certificate(force * w) < 1e-6
    assert certificate(w) > 1e-2 and certificate(0 * w) > 1e-3
    assert 0 < int((w == 0).sum()) < 20
    if row.kind is optim.AdamW and not row.options.get("amsgrad"):
        state, group = optimizer.state[p], optimizer.param_groups[0]
        v = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
        np.testing.assert_allclose(force, v.sqrt() + group["eps"], rtol=1e-12)


# ── closed forms ────────────────────────────────────────────────────────────────────────────────────────────────────

BOWLS: dict[str, Row] = {
    "sgd": Row(optim.SGD, {"lr": 0.5}),
    "momentum": Row(optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "dampened": Row(optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    "nesterov": Row(optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": Row(optim.Adam, {"lr": 0.05}),
    "amsgrad": Row(optim.Adam, {"lr": 0.2, "amsgrad": True}),
    "adamw": Row(optim.AdamW, {"lr": 0.05, "weight_decay": 0.0}),
    "nadam": Row(optim.NAdam, {"lr": 0.1}),
    "radam": Row(optim.RAdam, {"lr": 0.05, "betas": (0.9, 0.99)}),
    "adamax": Row(optim.Adamax, {"lr": 0.1, "betas": (0.9, 0.99)}),
    "adagrad": Row(optim.Adagrad, {"lr": 2.0}),
    "adagrad-decay": Row(optim.Adagrad, {"lr": 2.0, "lr_decay": 1e-3}),
    "adadelta": Row(optim.Adadelta, {"lr": 2.0, "eps": 1e-2}),
    "rmsprop": Row(optim.RMSprop, {"lr": 0.05}),
    "rmsprop-momentum": Row(optim.RMSprop, {"lr": 0.02, "momentum": 0.7, "alpha": 0.9}),
    "rmsprop-centred": Row(optim.RMSprop, {"lr": 0.2, "centered": True, "eps": 1.0}),
    "asgd": Row(optim.ASGD, {"lr": 0.5, "lambd": 0.0}),
    "asgd-decay": Row(optim.ASGD, {"lr": 0.5, "lambd": 0.1}),
}


def descend(row: Row, start: Sequence[float], grad: Callable[[Tensor], Tensor], lam: float, steps: int) -> Tensor:
    p = torch.nn.Parameter(torch.tensor(start))
    optimizer = Proximal(row.kind([p], **row.options), L1(lam))
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = row.options["lr"] * cosine(t / steps)
        p.grad = grad(p.detach())
        optimizer.step()
    return p.detach()


def bowl_law(row: Row, lam: float) -> None:
    """½(x − 3)² + λ|x| ends at 3 − λ, over 1 + lambd where ASGD has its own decay; ½(x − .2)² + λ|x| at 0."""
    x, y = descend(row, [0.0, 1.0], lambda x: x - torch.tensor([3.0, 0.2]), lam, 1000).tolist()
    assert abs(x - (3 - lam) / (1 + row.options.get("lambd", 0.0))) < 1e-9
    assert y == 0


@pytest.mark.parametrize("lam", [1.0, 0.5])
@pytest.mark.parametrize("row", over({name: (row,) for name, row in BOWLS.items()}))
def test_ends_at_the_minimum(row, lam):
    bowl_law(row, lam)


def replaced(monkeypatch: Any, kind: type[optim.Optimizer], tau: Callable[[Any, Any], float]) -> None:
    table = effective.Table(
        lambda group, state, memory, response: effective.Reading(effective.identity, (tau(group, state),))
    )
    monkeypatch.setitem(effective.TABLES, kind, table)


RIGHT_AT_THE_RATE = ("sgd", "asgd")


@pytest.mark.parametrize("row", over({n: (row,) for n, row in BOWLS.items() if n not in RIGHT_AT_THE_RATE}))
def test_the_learning_rate_in_place_of_the_effective_step_ends_elsewhere(row, monkeypatch):
    replaced(monkeypatch, row.kind, lambda group, state: float(group["lr"]))
    with rejected:
        bowl_law(row, 0.5)


def product_law(row: Row) -> None:
    """½(uv − 1)² + .2(|u| + |v|) from (.9, .9) ends at u = v = .879…, the root of u³ − u + .2, and not at 0."""
    end = descend(row, [0.9, 0.9], lambda x: (x[0] * x[1] - 1) * x.flip(0), 0.2, 2000)
    root = max(np.roots([1.0, 0.0, -1.0, 0.2]).real)
    assert abs(root - 0.879) < 1e-3
    assert float((end - root).abs().max()) < 1e-9


FILLING: dict[str, tuple[Row, Callable[[Any, Any], float]]] = {
    "momentum": (
        Row(optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        lambda group, state: group["lr"] / (1 - group["momentum"]),
    ),
    "nesterov": (
        Row(optim.SGD, {"lr": 0.1, "momentum": 0.95, "nesterov": True}),
        lambda group, state: group["lr"] / (1 - group["momentum"]),
    ),
    "rmsprop": (
        Row(optim.RMSprop, {"lr": 10.0, "momentum": 0.9, "eps": 100.0}),
        lambda group, state: float(
            group["lr"] / (1 - group["momentum"]) / (state["square_avg"].max().sqrt() + group["eps"])
        ),
    ),
}


@pytest.mark.parametrize(("row", "settled"), over(FILLING))
def test_a_filling_buffer_is_not_over_shrunk(row, settled):
    product_law(row)


@pytest.mark.parametrize(("row", "settled"), over(FILLING))
def test_the_settled_step_from_the_start_collapses(row, settled, monkeypatch):
    replaced(monkeypatch, row.kind, settled)
    with rejected:
        product_law(row)


def test_heavy_ball_at_the_learning_rate_solves_another_problem(monkeypatch):
    """f/(1 − β) + g: 2.9 where f + g has 2; and with the settled step the product collapses to 0 exactly."""
    row = BOWLS["momentum"]
    assert descend(row, [0.0], lambda x: x - 3, 1.0, 1000).item() == pytest.approx(2.0, abs=1e-12)
    replaced(monkeypatch, optim.SGD, lambda group, state: group["lr"])
    assert descend(row, [0.0], lambda x: x - 3, 1.0, 1000).item() == pytest.approx(2.9, abs=1e-12)
    heavy, settled = FILLING["momentum"]
    replaced(monkeypatch, optim.SGD, settled)
    assert descend(heavy, [0.9, 0.9], lambda x: (x[0] * x[1] - 1) * x.flip(0), 0.2, 2000).tolist() == [0.0, 0.0]

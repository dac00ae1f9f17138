"""The alternatives do what is published of them: the lab's rules bit by bit, spred's minimum, Bregman's path."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn

from nonsmooth import simulate
from nonsmooth.objectives import Logistic, Objective, random_least_squares
from nonsmooth.penalties import L0, L1, ElasticNet, GroupLasso, Penalty, SquaredL2
from nonsmooth.rules import (
    ASGD,
    FISTA,
    RDA,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Averaging,
    Frozen,
    Gradient,
    HeavyBall,
    InverseSqrt,
    LinearisedBregman,
    NAdam,
    Nesterov,
    NormalisedSubgradient,
    Polyak,
    RAdam,
    RMSProp,
    Rule,
    Sign,
)
from nonsmooth.torch import Proximal
from nonsmooth.torch.alternatives import FromRule, MagnitudePruning, penalised, remove_spred, spred
from orbits import DATA, START, iterates, learning_rate
from zoo import over

rejected = pytest.raises(AssertionError)


@pytest.fixture(autouse=True)
def _torch_in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def parameter(values: Any) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


# ── FromRule: the lab's rules on parameters ─────────────────────────────────────────────────────────────────────────

CLASSES = Logistic(DATA.X, np.sign(DATA.y))
PENALTIES: dict[str, Penalty | None] = {
    "none": None,
    "l1": L1(0.05),
    "groups": GroupLasso(0.1, groups=(0, 0, 1, 1, 1)),
}
RULES: dict[str, Rule] = {
    "gradient": Gradient(InverseSqrt(0.4)),
    "heavy-ball": HeavyBall(0.1, 0.8, 0.5),
    "nesterov": Nesterov(0.1, 0.8),
    "sign": Sign(0.01),
    "adagrad": Adagrad(0.3, 1e-3, 0.1),
    "rmsprop": RMSProp(0.02, 0.9, momentum=0.5),
    "centred": RMSProp(0.02, 0.9, eps=0.1, centered=True),
    "adadelta": Adadelta(1.0, 0.9, 1e-3),
    "adam": Adam(0.03),
    "amsgrad": Adam(0.03, amsgrad=True),
    "adamw": AdamW(0.03, weight_decay=0.1),
    "nadam": NAdam(0.03),
    "radam": RAdam(0.03, beta2=0.9),
    "adamax": Adamax(0.03),
    "frozen": Frozen(RMSProp(0.1), v=[1.0, 2.0, 3.0, 4.0, 5.0]),
    "asgd": ASGD(0.1, 0.01, t0=10),
    "averaging": Averaging(HeavyBall(0.1), skip=10),
    "fista": FISTA(0.5),
    "polyak": Polyak(0.3),
    "normalised": NormalisedSubgradient(InverseSqrt(0.3)),
    "rda": RDA(0.5),
    "bregman": LinearisedBregman(0.05, 4.0),
}


def trained(optimizer: FromRule, p: nn.Parameter, f: Objective, steps: int) -> Iterator[np.ndarray]:
    """The answers of an optimiser whose gradients are the lab's, computed by NumPy."""
    for _ in range(steps):
        w = p.detach().numpy()
        p.grad = torch.from_numpy(f.grad(w).copy())
        optimizer.step(lambda w=w: f.value(w))
        yield optimizer.iterate(p).numpy()


def lab_law(rule: Rule, penalty: Penalty | None, **slow: Any) -> None:
    p = parameter(START)
    optimizer = FromRule([p], rule, penalty)
    for x, twin in zip(trained(optimizer, p, CLASSES, 60), iterates(rule, CLASSES, START, 60, penalty, **slow)):
        np.testing.assert_allclose(x, twin, rtol=1e-11, atol=1e-13)
        np.testing.assert_array_equal(x == 0, twin == 0)


@pytest.mark.parametrize("penalty", over(PENALTIES))
@pytest.mark.parametrize("rule", over(RULES))
def test_a_rule_goes_as_in_the_lab(rule, penalty):
    lab_law(rule, penalty)


@pytest.mark.parametrize("name", ["heavy-ball", "adam", "rmsprop"])
def test_lab_law_rejects_the_learning_rate_for_the_effective_step(name):
    with rejected:
        lab_law(RULES[name], PENALTIES["l1"], tau=learning_rate)


def test_a_rule_goes_as_in_simulate():
    f, start = random_least_squares(12, 5, seed=1), np.full(5, 0.3)
    penalty, rule = L1(0.1 * f.critical_lam), Adam(0.02)
    run = simulate(f, rule, penalty=penalty, penalty_by="prox", x0=start, steps=50, tail=1)
    p = parameter(start)
    *_, x = trained(FromRule([p], rule, penalty), p, f, 50)
    np.testing.assert_allclose(x, run.x_final.values, rtol=1e-10)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))


X, Y = torch.tensor(DATA.X), torch.tensor(DATA.y)


def train(model: nn.Module, optimizer: Any, steps: int = 30) -> list[Tensor]:
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(X)[:, 0] - Y) ** 2).mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


TWINS: dict[str, tuple[Rule, Any, dict[str, Any]]] = {
    "adam": (Adam(0.01), torch.optim.Adam, {"lr": 0.01}),
    "momentum": (HeavyBall(0.05), torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "rmsprop": (RMSProp(0.01, momentum=0.5), torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5}),
}


@pytest.mark.parametrize(("rule", "kind", "options"), over(TWINS))
@pytest.mark.parametrize("penalty", [None, L1(0.01), GroupLasso(0.05)])
def test_a_network_trains_as_by_torch(rule, kind, options, penalty):
    """Without a penalty as torch's optimiser, and with one on the matrices as Proximal around it."""
    mine, theirs = network(), network()
    bare = kind(theirs.parameters(), **options)
    matrices, biases = [p for p in mine.parameters() if p.ndim == 2], [p for p in mine.parameters() if p.ndim == 1]
    ours = FromRule([{"params": matrices}, {"params": biases, "penalty": None}], rule, penalty)
    other = bare if penalty is None else Proximal(bare, penalty, [p for p in theirs.parameters() if p.ndim == 2])
    for a, b in zip(train(mine, ours), train(theirs, other)):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_a_matrix_is_the_flat_point_of_its_entries():
    """FISTA's memory holds a number that a row's sum would spoil; scalars are points too."""
    matrix, flat = parameter(START[:4].reshape(2, 2)), parameter(START[:4])
    one, other = FromRule([matrix], FISTA(0.5), L1(0.1)), FromRule([flat], FISTA(0.5), L1(0.1))
    for _ in range(40):
        matrix.grad, flat.grad = matrix.detach() - 0.3, flat.detach() - 0.3
        one.step()
        other.step()
        assert torch.equal(matrix.flatten(), flat)
    scalar = parameter(1.0)
    optimizer = FromRule([scalar], Adam(0.5, eps=0.0))
    scalar.grad = torch.tensor(3.0)
    optimizer.step()
    assert scalar.shape == () and scalar.item() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("rule", over({n: r for n, r in RULES.items() if n not in ("polyak", "normalised", "fista")}))
def test_a_state_goes_on_bit_by_bit(rule):
    """After torch.save and torch.load with weights_only, in another optimiser and in a copy."""
    if isinstance(rule, Frozen):
        rule = rule.rule

    def made() -> tuple[nn.Module, FromRule]:
        model = network()
        return model, FromRule(model.parameters(), rule, L1(1e-3))

    model, optimizer = made()
    train(model, optimizer, 7)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    fresh, other = made()
    fresh.load_state_dict(weights)
    other.load_state_dict(state)
    copied_model, copied = copy.deepcopy((model, optimizer))
    pickled_model, pickled = pickle.loads(pickle.dumps((model, optimizer)))
    wanted = train(model, optimizer, 9)
    for m, o in ((fresh, other), (copied_model, copied), (pickled_model, pickled)):
        assert all(torch.equal(a, b) for a, b in zip(train(m, o, 9), wanted))


def test_the_start_of_rda_is_no_view_of_the_parameter():
    p = parameter([1.0])
    optimizer = FromRule([p], RDA(1.0))
    for _ in range(3):
        p.grad = torch.ones(1)
        optimizer.step()
    assert p.item() == pytest.approx(1 - 3**0.5, abs=1e-14)


def test_a_memory_is_no_view_of_the_gradient():
    class Remembers(Rule):
        def step(self, x, g, state):
            return x - (state if isinstance(state, Tensor) else g), g

    p = parameter([0.0])
    p.grad = torch.ones(1)
    optimizer = FromRule([p], Remembers())
    optimizer.step()
    p.grad.zero_()
    optimizer.step()
    assert p.item() == -2.0


def test_numbers_are_the_groups_to_set():
    a, b = parameter([4.0]), parameter([4.0])
    optimizer = FromRule([{"params": [a]}, {"params": [b], "lr": 0.5, "penalty": None}], Gradient(1.0), L1(1.0))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.param_groups[0]["lam"] = 2.0
    for _ in range(2):
        a.grad, b.grad = torch.zeros(1), torch.ones(1)
        optimizer.step()
        schedule.step()
    assert a.item() == 4 - 2.0 * (1 + 0.5) and b.item() == 4 - (0.5 + 0.25)


def test_a_parameter_without_a_gradient_stays():
    p, q = parameter([1.0]), parameter([1.0])
    optimizer = FromRule([p, q], Gradient(0.5), L1(1.0))
    q.grad = torch.zeros(1)
    assert optimizer.step(lambda: 7.0) == 7.0
    assert p.item() == 1.0 and q.item() == 0.5
    optimizer.add_param_group({"params": [parameter([1.0])], "penalty": L1(3.0)})
    assert [group["lam"] for group in optimizer.param_groups] == [1.0, 3.0]


P = nn.Parameter(torch.zeros(2))
SENTENCES: dict[str, tuple[Any, type[Exception], str]] = {
    "not a rule": (lambda: FromRule([P], "adam"), TypeError, "rule must be one of nonsmooth.rules, not str."),
    "not a penalty": (lambda: FromRule([P], Adam(), 0.1), TypeError, "penalty must be one of nonsmooth.penalties"),
    "a sweep": (
        lambda: FromRule([P], Adam([0.1, 0.2])),
        ValueError,
        "Adam.lr must be one number here, not a list of 2",
    ),
    "a sweep within": (
        lambda: FromRule([P], Averaging(Gradient([1, 2]))),
        ValueError,
        "Gradient.lr must be one number",
    ),
    "many λ": (lambda: FromRule([P], Adam(), L1([1.0, 2.0])), ValueError, "L1.lam must be one number here"),
    "half": (lambda: FromRule([nn.Parameter(torch.zeros(1).half())], Adam()), TypeError, "torch.float16 is no use"),
    "complex": (lambda: FromRule([nn.Parameter(torch.zeros(1) + 0j)], Adam()), TypeError, "torch.complex128 is no use"),
    "a group's number": (lambda: FromRule([{"params": [P], "lr": -1}], Adam()), ValueError, "lr must be a finite"),
    "misfit": (lambda: FromRule([P], Adam(), L1(1.0, weights=[1.0])), ValueError, "do not fit a point of shape"),
    "whole": (
        lambda: FromRule([P, parameter([0.0])], Averaging(FISTA(1.0))),
        ValueError,
        "FISTA looks at all coordinates at once, so give one parameter",
    ),
    "no loss": (lambda: FromRule([P], Polyak(0.0)).step(), ValueError, "Polyak needs the loss; call step"),
    "other rule": (
        lambda: FromRule([P], Adam()).load_state_dict(FromRule([P], RDA(1.0)).state_dict()),
        ValueError,
        "the state is of rule RDA, and here is Adam.",
    ),
    "other penalty": (
        lambda: FromRule([P], Adam(), L1(1.0)).load_state_dict(FromRule([P], Adam()).state_dict()),
        ValueError,
        "the state is of penalty None, and here is L1.",
    ),
    "torch's optimiser": (lambda: FromRule([P], torch.optim.Adam([P])), TypeError, "not Adam."),
    "no gradient": (lambda: penalised(torch.zeros(()), L0(1.0), [P]), ValueError, "L0 has no gradient; use Proximal."),
    "one tensor": (lambda: penalised(torch.zeros(()), L1(1.0), P), ValueError, "write \\[w\\]"),
    "stranger": (lambda: spred(nn.Linear(1, 1), [P]), ValueError, "shape \\(2,\\) is not in the model"),
    "tied": (lambda: spred(tied()), ValueError, "is held by two modules"),
    "twice": (lambda: (m := nn.Linear(1, 1), spred(m), spred(m)), ValueError, "parametrised already"),
    "no product": (lambda: remove_spred(nn.Linear(1, 1)), ValueError, "call spred first"),
    "threshold": (lambda: remove_spred(nn.Linear(1, 1), -1.0), ValueError, "threshold must be a finite number"),
    "density": (lambda: MagnitudePruning([P], 0.0), ValueError, "density must be a number in \\(0, 1\\], not 0.0."),
    "begin": (lambda: MagnitudePruning([P], 0.5, begin=0), ValueError, "begin must be a whole number above 0, not 0."),
    "end": (lambda: MagnitudePruning([P], 0.5, begin=3, end=2), ValueError, "end = 2 is before begin = 3."),
    "by": (lambda: MagnitudePruning([P], 0.5, by="layer"), ValueError, "by must be 'overall' or 'parameter'"),
    "nothing": (lambda: MagnitudePruning([], 0.5), ValueError, "params is empty"),
    "a tensor": (lambda: MagnitudePruning(P, 0.5), ValueError, "write \\[w\\]"),
    "shapes": (
        lambda: MagnitudePruning([P], 0.5).load_state_dict(MagnitudePruning([parameter([1.0])], 0.5).state_dict()),
        ValueError,
        "parameters of other shapes",
    ),
}


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(("wrong", "kind", "says"), over(SENTENCES))
def test_what_cannot_be_is_said_in_a_sentence(wrong, kind, says):
    with pytest.raises(kind, match=says) as error:
        wrong()
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_a_group_that_is_refused_is_not_kept():
    optimizer = FromRule([P], Adam(), L1(1.0))
    with pytest.raises(TypeError):
        optimizer.add_param_group({"params": [parameter([0.0])], "penalty": 3})
    assert len(optimizer.param_groups) == len(optimizer.penalties) == 1


# ── what the two dual rules are for ─────────────────────────────────────────────────────────────────────────────────

LASSO = random_least_squares(60, 20, seed=1, support=4)
LAM = 0.15 * LASSO.critical_lam
BEST = Lasso(alpha=LAM / 2, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(LASSO.X, LASSO.y).coef_


def support_law(rule: Rule) -> None:
    """In minibatches of 6 of 60 rows, late in the run, every point has the support of the Lasso's solution."""
    p, rng = parameter(np.zeros(20)), np.random.default_rng(0)
    optimizer = FromRule([p], rule, L1(LAM))
    for epoch in range(400):
        for rows in rng.permutation(60).reshape(10, 6):
            p.grad = torch.tensor(LASSO.rows(rows).grad(p.detach().numpy()))
            optimizer.step()
            if epoch >= 390:
                np.testing.assert_array_equal(p.detach().numpy() != 0, BEST != 0)


def test_rda_has_the_support_of_the_lasso_under_minibatches():
    assert (BEST != 0).sum() == 4
    support_law(RDA(20.0))
    with rejected:
        support_law(Gradient(InverseSqrt(0.5 / LASSO.constants.L)))


def entry_law(rule: Rule, lam: float = 1.0, lr: float = 0.11) -> None:
    """On ½‖x − c‖² coordinate i leaves 0 at the first step k with kη|cᵢ| > λ, and the run ends at c, unshrunk."""
    c, p = torch.tensor([3.0, -1.0, 0.2]), parameter(np.zeros(3))
    optimizer, run = FromRule([p], rule, L1(lam)), []
    for _ in range(200):
        p.grad = p.detach() - c
        optimizer.step()
        run.append(p.detach().clone())
    entered = (torch.stack(run) != 0).to(torch.int).argmax(0) + 1
    assert torch.equal(entered, torch.floor(lam / (lr * c.abs())).to(torch.int) + 1)
    torch.testing.assert_close(run[-1], c, atol=1e-3, rtol=0)


def test_bregman_lets_weights_in_one_after_another():
    entry_law(LinearisedBregman(0.11, 3.0))
    with rejected:
        entry_law(Gradient(0.33))


# ── the penalty in the loss ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("penalty", [L1(0.5), ElasticNet(0.5, 0.1), GroupLasso(0.5), SquaredL2(0.3)])
def test_autograd_gets_the_penaltys_own_gradient(penalty):
    w = parameter([[1.0, -2.0], [0.0, 0.0]])
    loss = penalised((w**3).sum(), penalty, [w])
    assert loss.item() == pytest.approx((w**3).sum().item() + float(penalty.value(w.detach())), rel=1e-15)
    (2 * loss).backward()
    torch.testing.assert_close(w.grad, 2 * (3 * w.detach() ** 2 + penalty.grad(w.detach())))
    slope = torch.func.grad(lambda x: penalised(x.sum(), penalty, [x]))(w.detach())
    torch.testing.assert_close(slope, 1 + penalty.grad(w.detach()))


def test_the_value_alone_would_give_nan_where_a_group_is_zero():
    w = parameter([[1.0, -2.0], [0.0, 0.0]])
    GroupLasso(0.5).value(w).backward()
    assert bool(w.grad.isnan().any())


def test_curvature_passes_through():
    w = parameter([1.0, -2.0])
    (slope,) = torch.autograd.grad(penalised((w**2).sum(), SquaredL2(0.5), [w]), w, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), w)
    assert curvature.tolist() == [3.0, 3.0]


# ── spred ───────────────────────────────────────────────────────────────────────────────────────────────────────────

A, B = torch.tensor(LASSO.X), torch.tensor(LASSO.y)


def spred_law(
    decay: float = LAM, kind: Any = torch.optim.SGD, balanced: bool = False, rate: float = 0.05, steps: int = 4000
) -> Tensor:
    """f(u ⊙ v), u and v decayed by λ, ends at the Lasso's solution; its zeros small and not zero."""
    layer = nn.Linear(20, 1, bias=False)
    nn.init.constant_(layer.weight, 0.25)
    factors = spred(layer)
    if balanced:
        for factor in factors:
            factor.data.fill_(0.5)
    optimizer = kind(factors, lr=rate / LASSO.constants.L, weight_decay=decay)
    if kind is torch.optim.SGD:
        optimizer.param_groups[0]["momentum"] = 0.9
    for _ in range(steps):
        optimizer.zero_grad()
        ((layer(A)[:, 0] - B) ** 2).mean().backward()
        optimizer.step()
    assert int((layer.weight == 0).sum()) == 0
    w = remove_spred(layer, 1e-6)[0].detach()[0]
    np.testing.assert_allclose(w.numpy(), BEST, atol=1e-6)
    np.testing.assert_array_equal(w.numpy() != 0, BEST != 0)
    return w


def test_spreds_minimum_is_the_lassos():
    assert (BEST < 0).any()
    spred_law()
    for mutant in (
        {"decay": LAM / 2},
        {"balanced": True},
        {"kind": torch.optim.AdamW, "rate": 0.5},
    ):
        with rejected:
            spred_law(**mutant)


def test_the_factors_leave_the_weight_and_are_far_from_equal():
    layer, sizes = nn.Linear(4, 8, bias=False), torch.logspace(-9, 9, 31)
    w = torch.cat([sizes, -sizes[:-1], torch.zeros(1), torch.ones(1), torch.full((1,), 0.5)])[:32].reshape(8, 4)
    for dtype in (torch.float32, torch.float64):
        layer = nn.Linear(4, 8, bias=False, dtype=dtype)
        layer.weight.data.copy_(w)
        before = layer.weight.detach().clone()
        u, v = spred(layer)
        assert torch.equal(layer.weight, before)
        assert bool((u >= 1).all()) and bool((v.abs() <= u / 2).all())
        (back,) = remove_spred(layer)
        assert torch.equal(back, before) and isinstance(layer.weight, nn.Parameter)


def test_a_model_under_spred_has_factors_for_its_matrices_alone():
    model = network()
    before = model(X).detach()
    factors = spred(model)
    assert len(factors) == 4 and torch.equal(model(X), before)
    assert {id(p) for p in factors} < {id(p) for p in model.parameters()}
    twin = network()
    spred(twin)
    twin.load_state_dict(model.state_dict())
    optimizer = torch.optim.SGD(factors, lr=0.1, weight_decay=0.1)
    train(model, optimizer, 5)
    assert not torch.equal(model(X), before)
    assert [tuple(w.shape) for w in remove_spred(model)] == [(4, 5), (1, 4)]
    assert sorted(model.state_dict()) == sorted(network().state_dict())


# ── magnitude pruning ───────────────────────────────────────────────────────────────────────────────────────────────


def cubic_law(kind: type[MagnitudePruning], by: Any = "overall") -> None:
    """round(d(t) N) weights are left, d falling as 1 − u³ of what is left, while momentum pushes them all."""
    torch.manual_seed(1)
    params = [nn.Parameter(torch.randn(7, 9)), nn.Parameter(3 * torch.randn(37))]
    optimizer = torch.optim.SGD(params, lr=0.01, momentum=0.9)
    pruning = kind(params, 0.1, begin=3, end=23, every=5, by=by)
    before = [torch.ones_like(p, dtype=torch.bool) for p in params]
    for t in range(1, 31):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
        pruning.step()
        k = min(max(0, (t - 3) // 5), 4)
        wanted = 0.1 + 0.9 * (1 - k / 4) ** 3
        sizes = [100] if by == "overall" else [63, 37]
        left = [int((p != 0).sum()) for p in params]
        assert ([sum(left)] if by == "overall" else left) == [round(wanted * n) for n in sizes]
        assert pruning.density == sum(left) / 100
        assert all(bool((was | (p == 0)).all()) for was, p in zip(before, params)), "one came back"
        before = [p.detach() != 0 for p in params]


class Linearly(MagnitudePruning):
    def target(self, t):
        return 1 - (1 - self.wanted) * min(1.0, max(0.0, (t - self.begin) / (self.end - self.begin)))


class LetsGo(MagnitudePruning):
    def step(self):
        super().step()
        self.keep = [torch.ones_like(k) for k in self.keep]


@pytest.mark.parametrize("by", ["overall", "parameter"])
def test_the_density_falls_as_a_cube(by):
    cubic_law(MagnitudePruning, by)
    for mutant in (Linearly, LetsGo):
        with rejected:
            cubic_law(mutant, by)


def test_once_the_largest_are_left():
    w = parameter([[1.0, -5.0, 0.5], [2.0, 4.0, -3.0]])
    pruning = MagnitudePruning([w], 0.5)
    pruning.step()
    assert w.tolist() == [[0.0, -5.0, 0.0], [0.0, 4.0, -3.0]]
    with torch.no_grad():
        w.add_(1.0)
    pruning.step()
    assert w.tolist() == [[0.0, -4.0, 0.0], [0.0, 5.0, -2.0]]


def test_equal_weights_are_counted_too():
    w = parameter(np.ones(7))
    MagnitudePruning([w], 3 / 7).step()
    assert int((w != 0).sum()) == 3


def test_layers_of_different_scale():
    """Overall the small layer dies; each alone keeps its share."""
    for by, left in (("overall", [0, 4]), ("parameter", [2, 2])):
        params = [parameter([1.0, 2.0, 3.0, 4.0]), parameter([10.0, 20.0, 30.0, 40.0])]
        MagnitudePruning(params, 0.5, by=by).step()
        assert [int((p != 0).sum()) for p in params] == left


def test_pruning_resumes():
    def run(first: int, second: int) -> tuple[Tensor, float]:
        w = parameter(np.arange(1.0, 21.0))
        pruning = MagnitudePruning([w], 0.2, begin=2, end=12, every=2)
        for _ in range(first):
            pruning.step()
        file = io.BytesIO()
        torch.save(pruning.state_dict(), file)
        file.seek(0)
        other = MagnitudePruning([w], 0.2, begin=2, end=12, every=2)
        other.load_state_dict(torch.load(file, weights_only=True))
        for _ in range(second):
            other.step()
        return w.detach(), other.density

    for (a, d), (b, e) in itertools.pairwise(run(k, 8 - k) for k in (0, 3, 6)):
        assert torch.equal(a, b) and d == e

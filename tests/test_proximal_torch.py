"""Proximal is a torch optimiser: schedulers, state, AMP, hooks, dtypes and layouts, and a compiled step."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, optim
from torch.nn import Parameter
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR

from nonsmooth.penalties import (
    L1,
    MCP,
    NM,
    Box,
    ElasticNet,
    GroupLasso,
    NonNegative,
    Penalty,
    Simplex,
    SmoothedL1,
    SparseGroupLasso,
)
from nonsmooth.rules import Cosine
from nonsmooth.torch import LambdaLam, Proximal, effective_step, refit, weights
from nonsmooth.torch import kernels as module
from nonsmooth.torch.effective import identity, over_root
from zoo import over

Make = Callable[[Any], optim.Optimizer]

OPTIMISERS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.02, momentum=0.9),
    "dampened": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "nesterov": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "sgd-foreach": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, foreach=True),
    "sgd-fused": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, fused=True),
    "adam": lambda p: optim.Adam(p, lr=0.05),
    "adam-foreach": lambda p: optim.Adam(p, lr=0.05, foreach=True),
    "adam-fused": lambda p: optim.Adam(p, lr=0.05, fused=True),
    "amsgrad": lambda p: optim.Adam(p, lr=0.05, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.05),
    "nadam": lambda p: optim.NAdam(p, lr=0.05),
    "radam": lambda p: optim.RAdam(p, lr=0.05, betas=(0.9, 0.9)),
    "adamax": lambda p: optim.Adamax(p, lr=0.05),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "adagrad-fused": lambda p: optim.Adagrad(p, lr=0.1, fused=True),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0, eps=1e-2),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.05),
    "rmsprop-momentum": lambda p: optim.RMSprop(p, lr=0.02, momentum=0.9),
    "rmsprop-centred": lambda p: optim.RMSprop(p, lr=0.05, centered=True, eps=0.1),
    "asgd": lambda p: optim.ASGD(p, lr=0.1, lambd=0.1),
}
SOME = {name: OPTIMISERS[name] for name in ("sgd", "momentum", "adam", "adam-fused", "rmsprop-centred", "adadelta")}


def points(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((4, 3), (6,), (2, 3, 2, 2))]


def gradient(p: Tensor, t: int) -> Tensor:
    """That of a quadratic under noise which depends on the step alone."""
    generator = torch.Generator().manual_seed(1000 * t + p.numel())
    noise = torch.randn(p.shape, generator=generator).to(p.dtype)
    return 0.5 * p.detach() + 0.1 * noise


def advance(optimizer: optim.Optimizer, steps: range, *schedulers: Any) -> None:
    for t in steps:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = gradient(p, t)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def wrapped(make: Make, params: list[Parameter], lam: float = 0.2, **more: Any) -> Proximal:
    """Two groups with their own lr; three penalties, one over parts of both groups."""
    inner = make([{"params": params[:1]}, {"params": params[1:], "lr": 0.03}])
    pairs = [(L1(lam), [params[1]]), (GroupLasso(lam, dim=0), [params[0]]), (ElasticNet(lam, 0.1), [params[2]])]
    return Proximal(inner, pairs, **more)


def bits(tensors: Any) -> list[bytes]:
    return [t.detach().contiguous().numpy().tobytes() for t in tensors]


def snapshot(optimizer: optim.Optimizer) -> list[Any]:
    """The parameters and their state, bit by bit."""
    found: list[Any] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = {k: v for k, v in optimizer.state.get(p, {}).items() if v is not None}
            found += bits([p]) + [(k, bits([v]) if isinstance(v, Tensor) else v) for k, v in sorted(state.items())]
    return found


def through_a_file(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ── what it is ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_an_optimiser_that_shares_the_wrapped_ones_groups_and_state():
    params = points()
    inner = optim.Adam(params, lr=0.1)
    optimizer = Proximal(inner, L1(0.1))
    advance(optimizer, range(2))
    assert isinstance(optimizer, optim.Optimizer)
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    optimizer.param_groups[0]["lr"] = 0.5
    assert inner.param_groups[0]["lr"] == 0.5
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    assert repr(optimizer).startswith("Proximal(Adam (")


def test_groups_hold_plain_data():
    params = points()
    optimizer = wrapped(OPTIMISERS["momentum"], params)
    first, second = optimizer.param_groups
    assert first["proximal"] == [
        {
            "penalty": {"name": "GroupLasso", "dim": 0, "groups": None, "scale_by_size": False},
            "lam": 0.2,
            "params": [0],
            "which": 1,
        }
    ]
    assert [(e["penalty"]["name"], e["params"], e["which"]) for e in second["proximal"]] == [
        ("L1", [0], 0),
        ("ElasticNet", [1], 2),
    ]


def test_a_subset_does_not_renumber_the_groups():
    params = points()
    bare, optimizer = optim.Adam(params, lr=0.1), Proximal(optim.Adam(params, lr=0.1), L1(0.1), params=params[1:2])
    for a, b in zip(bare.state_dict()["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
        assert a["params"] == b["params"]
    before = [p.detach().clone() for p in params]
    optimizer.set_lam(1e6)
    advance(optimizer, range(1))
    assert params[1].count_nonzero() == 0
    assert params[0].count_nonzero() == params[0].numel()
    assert not torch.equal(params[0], before[0])


def test_each_parameter_comes_under_its_own_penalty():
    params = points()
    optimizer = wrapped(OPTIMISERS["sgd"], params)
    assert [(p is params[1], penalty) for p, penalty, _ in optimizer.penalised() if p is params[1]] == [(True, L1(0.2))]
    by_hand = sum(float(penalty.value(p.detach())) for p, penalty, _ in optimizer.penalised())
    assert float(optimizer.penalty_value()) == pytest.approx(by_hand)
    assert not optimizer.penalty_value().requires_grad


def test_the_value_is_summed_in_float32_at_least():
    w = Parameter(torch.full((1 << 17,), 2.0, dtype=torch.float16))  # a sum beyond what float16 holds
    assert Proximal(sgd(w), L1(0.5)).penalty_value() == 2.0**17


@pytest.mark.parametrize(
    "norm",
    [
        torch.nn.utils.parametrizations.weight_norm,
        pytest.param(torch.nn.utils.weight_norm, id="deprecated", marks=pytest.mark.filterwarnings("ignore")),
    ],
)
def test_weights_leaves_magnitudes_and_unshared_tables_out(norm):
    table, head = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5)
    model = torch.nn.ModuleList([norm(torch.nn.Linear(3, 2)), table, torch.nn.EmbeddingBag(5, 4), head])
    assert [tuple(p.shape) for p in weights(model)] == [(2, 3), (5, 4)]
    head.weight = table.weight  # tied: its softmax gives each row a gradient
    assert weights(model)[-1] is table.weight


def test_weights_leaves_biases_and_norms_out():
    shared = torch.nn.Linear(4, 4)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3),
        torch.nn.BatchNorm2d(2),
        torch.nn.LayerNorm((4, 4)),
        torch.nn.MultiheadAttention(4, 2),
        shared,
        shared,
        torch.nn.Embedding(3, 4),
    )
    model[6].weight.requires_grad_(False)
    names = [n for n, p in model.named_parameters() if any(p is w for w in weights(model))]
    assert names == ["0.weight", "3.in_proj_weight", "3.out_proj.weight", "4.weight"]
    assert len(weights(model)) == len(names)


def test_a_new_group_may_bring_its_penalty():
    params, extra = points(), Parameter(torch.full((3,), 0.01))
    optimizer = Proximal(optim.SGD(params, lr=0.1, momentum=0.9), L1(0.0))
    optimizer.add_param_group({"params": [extra], "lr": 1.0}, L1(5.0))
    assert optimizer.param_groups[1]["proximal"][0]["which"] == 1
    advance(optimizer, range(1))
    assert extra.count_nonzero() == 0
    optimizer.add_param_group({"params": [Parameter(torch.ones(2))]})
    advance(optimizer, range(1))
    assert "proximal" not in optimizer.param_groups[2]


# ── schedulers ──────────────────────────────────────────────────────────────────────────────────────────────────────

SCHEDULERS: dict[str, tuple[Make, Callable[[Any], Any]]] = {
    "lambda": (OPTIMISERS["momentum"], lambda o: LambdaLR(o, lambda t: 1 / (t + 1))),
    "one-cycle": (OPTIMISERS["momentum"], lambda o: OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=20)),
    "one-cycle-betas": (OPTIMISERS["adam"], lambda o: OneCycleLR(o, max_lr=[0.1, 0.2], total_steps=20)),
    "sequential": (
        OPTIMISERS["adam"],
        lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=3), CosineAnnealingLR(o, 9)], milestones=[3]),
    ),
}


@pytest.mark.parametrize(("make", "schedule"), over(SCHEDULERS))
@pytest.mark.parametrize("on", ["outer", "inner"])
def test_schedulers_work_on_it_and_on_what_it_wraps(make, schedule, on):
    """The same way, without a warning; momentum that they cycle moves the response."""
    ways = []
    for where in ("outer", on):
        params = points()
        inner = make([{"params": params[:1]}, {"params": params[1:], "lr": 0.03}])
        scheduler = schedule(inner) if where == "inner" else None
        optimizer = Proximal(inner, L1(0.2))
        advance(optimizer, range(10), scheduler or schedule(optimizer))
        ways.append(snapshot(optimizer))
    assert ways[0] == ways[1]


def test_zeros_stay_where_the_rate_rounds_below_0():
    """torch's own LinearLR ends at −5e-18; a zero's gradient then lifts it, and the prox must still take it back."""
    p = Parameter(torch.tensor([0.0, 0.0, 3.0]))
    optimizer = Proximal(optim.SGD([p], lr=0.1), L1(1.0))
    schedule = LinearLR(optimizer, 1 / 3, 0.0, total_iters=100)
    for _ in range(102):
        p.grad = torch.tensor([0.5, -0.5, 0.1])
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] < 0
    assert p[:2].tolist() == [0.0, 0.0] and p[2] != 0


@pytest.mark.parametrize("make", over(OPTIMISERS))
def test_no_optimiser_loses_a_zero_to_a_rate_below_0(make):
    p = Parameter(torch.tensor([0.0, 0.0, 1.0]))
    optimizer = Proximal(make([p]), L1(1.0))
    for t in range(6):
        optimizer.param_groups[0]["lr"] = 1e-3 if t < 3 else -5e-18
        p.grad = torch.tensor([0.5, -0.5, 0.1])
        optimizer.step()
        assert p[:2].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("make", over(SOME))
@pytest.mark.parametrize("penalty", [NM(2, 4), Simplex(4.0)], ids=repr)
def test_a_rate_of_0_projects_as_a_small_one_does(make, penalty):
    """As in the first step of a warm-up: in the metric of the optimiser, in which its lr is but a factor."""
    ways = []
    for lr in (0.0, 2.0**-60):
        p = Parameter(torch.tensor([0.001, 3.0, 5.0, -4.0]))
        optimizer = Proximal(make([p]), penalty)
        optimizer.param_groups[0]["lr"] = lr
        p.grad = torch.tensor([1.0, 1e-3, 1.0, 1.0])
        optimizer.step()
        ways.append(p.detach())
    torch.testing.assert_close(*ways, rtol=1e-6, atol=1e-6)
    assert bool(ways[0].isfinite().all()) and torch.equal(ways[0] == 0, ways[1] == 0)


def test_the_response_follows_one_cycle():
    p = Parameter(torch.ones(2))
    optimizer = Proximal(optim.SGD([p], lr=0.1, momentum=0.9), L1(0.1))
    scheduler, c = OneCycleLR(optimizer, max_lr=0.1, total_steps=20), 0.0
    for t in range(12):
        c = optimizer.param_groups[0]["momentum"] * c + 1
        advance(optimizer, range(t, t + 1), scheduler)
        assert optimizer.state[p]["response"] == pytest.approx(c, rel=1e-12)


def test_reduce_on_plateau():
    params = points()
    optimizer = Proximal(optim.Adam(params, lr=0.1), L1(0.1))
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for t in range(3):
        advance(optimizer, range(t, t + 1))
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == 0.025


# ── state ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", over(OPTIMISERS))
def test_resumed_equals_uninterrupted(make):
    """Through a file with weights_only=True, into fresh objects that were made with another λ and lr."""

    def made(lam: float) -> tuple[list[Parameter], Proximal, Any, LambdaLam]:
        params = points()
        optimizer = wrapped(make, params, lam)
        return params, optimizer, LambdaLR(optimizer, lambda t: 0.9**t), LambdaLam(optimizer, lambda t: 1 + 0.1 * t)

    _, whole, *schedulers = made(0.2)
    advance(whole, range(12), *schedulers)
    params, first, *schedulers = made(0.2)
    advance(first, range(5), *schedulers)
    kept = [p.detach() for p in params], first.state_dict(), *(s.state_dict() for s in schedulers)
    saved = through_a_file(kept)
    params, second, *schedulers = made(0.7)
    with torch.no_grad():
        for p, value in zip(params, saved[0]):
            p.copy_(value)
    second.load_state_dict(saved[1])
    for scheduler, state in zip(schedulers, saved[2:]):
        scheduler.load_state_dict(state)
    assert snapshot(second) == snapshot(first)
    advance(second, range(5, 12), *schedulers)
    assert snapshot(second) == snapshot(whole)


@pytest.mark.parametrize("make", over(OPTIMISERS))
def test_a_state_may_be_loaded_before_the_first_step(make):
    """As Accelerate does."""
    plain, loaded = (wrapped(make, points()) for _ in range(2))
    loaded.load_state_dict(through_a_file(loaded.state_dict()))
    advance(plain, range(6))
    advance(loaded, range(6))
    assert snapshot(plain) == snapshot(loaded)
    assert loaded.param_groups is loaded.optimizer.param_groups


@pytest.mark.parametrize("make", over(OPTIMISERS))
@pytest.mark.parametrize("how", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_deepcopy_and_pickle(make, how):
    optimizer = wrapped(make, points())
    advance(optimizer, range(4))
    twin = how(optimizer)
    assert not {id(p) for g in twin.param_groups for p in g["params"]} & {
        id(p) for g in optimizer.param_groups for p in g["params"]
    }
    advance(optimizer, range(4, 8))
    advance(twin, range(4, 8))
    assert snapshot(twin) == snapshot(optimizer)


def test_the_state_of_a_bare_optimiser_counts_as_settled():
    """Its momentum buffer is full, and it knows no penalties: those that were given stay."""
    for make, settled in ((OPTIMISERS["dampened"], 5.0), (OPTIMISERS["rmsprop-momentum"], 10.0)):
        bare = make(points())
        advance(bare, range(3))
        optimizer = Proximal(make(points()), L1(0.2))
        optimizer.load_state_dict(through_a_file(bare.state_dict()))
        assert [s["response"] for s in optimizer.state.values()] == [pytest.approx(settled)] * 3
        assert [penalty for _, penalty, _ in optimizer.penalised()] == [L1(0.2)] * 3
        around = Proximal(bare, L1(0.2))
        assert [s["response"] for s in around.state.values()] == [pytest.approx(settled)] * 3


def test_the_bare_optimiser_loads_its_state_in_turn():
    for make in SOME.values():
        optimizer, bare = Proximal(make(points()), L1(0.0)), make(points())
        advance(optimizer, range(3))
        bare.load_state_dict(through_a_file(optimizer.state_dict()))
        advance(bare, range(3, 5))


def test_a_later_lam_does_not_change_a_state_that_was_taken():
    optimizer = Proximal(optim.SGD(points(), lr=0.1), L1(0.2))
    state = optimizer.state_dict()
    optimizer.set_lam(0.9)
    assert state["param_groups"][0]["proximal"][0]["lam"] == 0.2


def test_weights_of_an_l1_survive_the_file():
    p = Parameter(torch.ones(3))
    penalty = L1(0.5, weights=[0.0, 1.0, 4.0])
    optimizer = Proximal(optim.SGD([p], lr=0.5), penalty)
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    p.grad = torch.zeros(3)
    optimizer.step()
    assert p.tolist() == [1.0, 0.75, 0.0]
    assert [g for _, g, _ in optimizer.penalised()] == [penalty]
    labels = GroupLasso(0.5, groups=(3, 3, 5), dim=np.int64(0), scale_by_size=np.bool_(False))
    optimizer = Proximal(optim.SGD([p], lr=0.5), labels)
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert [g for _, g, _ in optimizer.penalised()] == [labels]


@dataclass(frozen=True)
class Ours(L1):
    """A user's penalty."""


def test_a_users_penalty_must_be_known_where_it_is_loaded():
    optimizer = Proximal(optim.SGD(points(), lr=0.1), Ours(0.2))
    state = through_a_file(optimizer.state_dict())
    again = Proximal(optim.SGD(points(), lr=0.1), Ours(0.5))
    again.load_state_dict(state)
    assert [type(g) for _, g, _ in again.penalised()] == [Ours] * 3
    with pytest.raises(ValueError, match=r"^Proximal: the state names a penalty 'Ours' that is not known here"):
        Proximal(optim.SGD(points(), lr=0.1), L1(0.5)).load_state_dict(state)


# ── λ ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_set_lam_by_number():
    optimizer = wrapped(OPTIMISERS["sgd"], points())
    optimizer.set_lam(0.5, which=1)
    assert {type(g): g.lam for _, g, _ in optimizer.penalised()} == {L1: 0.2, GroupLasso: 0.5, ElasticNet: 0.2}
    optimizer.set_lam(np.float64(0))
    assert [g.lam for _, g, _ in optimizer.penalised()] == [0.0] * 3
    assert all(type(e["lam"]) is float for _, e in optimizer.entries())


@pytest.mark.parametrize("lam", [-0.1, float("nan"), float("inf"), "0.1", None, [0.1]])
def test_set_lam_refuses(lam):
    optimizer = Proximal(optim.SGD(points(), lr=0.1), L1(0.2))
    with pytest.raises(ValueError, match=r"^set_lam: lam must be a finite number, 0 or above, not "):
        optimizer.set_lam(lam)
    with pytest.raises(ValueError, match=r"^LambdaLam: lam must be a finite number, 0 or above, not -0.2"):
        LambdaLam(optimizer, lambda t: -1.0)


def test_set_lam_says_when_there_is_no_such_penalty():
    with pytest.raises(ValueError, match=r"^set_lam: there is no penalty with a λ to set; a strength must be"):
        Proximal(optim.SGD(points(), lr=0.1), NonNegative()).set_lam(0.1)
    with pytest.raises(ValueError, match=r"^set_lam: there is no penalty number 3 with a λ to set"):
        Proximal(optim.SGD(points(), lr=0.1), L1(0.1)).set_lam(0.1, which=3)


def test_lambda_lam_leaves_penalties_without_lam_alone():
    params = points()
    optimizer = Proximal(optim.SGD(params, lr=0.1), [(L1(0.2), params[:1]), (Box(-1.0, 1.0), params[1:])])
    warm_up = LambdaLam(optimizer, lambda t: t)
    warm_up.step()
    warm_up.step()
    assert warm_up.get_last_lam() == [0.4, None]


# ── the step ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", over(SOME))
def test_a_closure_keeps_torchs_meaning(make):
    params, twins = points(), points()
    optimizer, twin = Proximal(make(params), L1(0.2)), Proximal(make(twins), L1(0.2))
    for _ in range(3):

        def closure() -> Tensor:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sum((p**2).sum() for p in params)
            loss.backward()
            return loss

        before = [p.detach().clone() for p in params]
        loss = optimizer.step(closure)
        assert float(loss.detach()) == pytest.approx(sum(float((p**2).sum()) for p in before))
        for p, q in zip(twins, before):
            p.grad = 2 * q
        assert twin.step() is None
    assert bits(params) == bits(twins)


def test_gradients_accumulate():
    params, twins = points(), points()
    optimizer, twin = (Proximal(optim.Adam(p, lr=0.1), L1(0.2)) for p in (params, twins))
    for _ in range(3):
        for factor in (1.0, 2.0):
            sum((factor * p**2).sum() for p in params).backward()
        sum((3.0 * p**2).sum() for p in twins).backward()
        optimizer.step()
        twin.step()
        optimizer.zero_grad()
        twin.zero_grad()
    for p, q in zip(params, twins):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("make", over(OPTIMISERS))
def test_a_parameter_without_gradient_is_left_alone(make):
    """Neither shrunk nor its response moved on: what its gradients make of it does not depend on the pause."""
    p, q, other = Parameter(torch.ones(3)), Parameter(torch.ones(3)), Parameter(torch.ones(3))
    paused, steady = Proximal(make([p, other]), L1(0.05)), Proximal(make([q]), L1(0.05))
    for t in range(6):
        p.grad, other.grad = torch.full((3,), 0.5 + 0.1 * t), torch.ones(3)
        q.grad = p.grad.clone()
        paused.step()
        steady.step()
        p.grad, before = None, p.detach().clone()
        paused.step()
        assert torch.equal(p, before)
    assert torch.equal(p, q)


@pytest.mark.parametrize("make", over(OPTIMISERS))
def test_the_gradient_is_never_written(make):
    params = points()
    optimizer = wrapped(make, params)
    for t in range(3):
        for p in params:
            p.grad = gradient(p, t)
        grads = [p.grad for p in params]
        before = bits(grads), [g._version for g in grads]
        optimizer.step()
        assert all(p.grad is g for p, g in zip(params, grads))
        assert (bits(grads), [g._version for g in grads]) == before


def test_no_lasting_copy_of_a_parameter():
    """As many tensors of a parameter's size as the bare optimiser keeps; each optimiser has its own size."""
    sizes = {name: 2027 + i for i, name in enumerate(OPTIMISERS)}

    def copies() -> Counter[int]:
        gc.collect()
        return Counter(thing.numel() for thing in gc.get_objects() if type(thing) in (Tensor, Parameter))

    def kept(wrap: Callable[[Any], Any]) -> dict[str, int]:
        before, alive = copies(), []
        for name, make in OPTIMISERS.items():
            p = Parameter(torch.ones(sizes[name]))
            alive.append(wrap(make([p])))
            for _ in range(3):
                p.grad = torch.ones(sizes[name])
                alive[-1].step()
            p.grad = None
        after = copies()
        return {name: after[size] - before[size] for name, size in sizes.items()}

    bare = kept(lambda optimizer: optimizer)
    assert bare["sgd"] == 1 and bare["adam"] == 3
    assert kept(lambda optimizer: Proximal(optimizer, L1(0.1))) == bare


def test_the_graph_is_not_kept():
    p = Parameter(torch.ones(3))
    optimizer = Proximal(optim.Adam([p], lr=0.1), L1(0.1))
    (p**2).sum().backward()
    optimizer.step()
    assert p.is_leaf and p.requires_grad and p.grad_fn is None


# ── hooks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_global_hooks_fire_once_with_it():
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    seen: list[Any] = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: seen.append(("pre", o))),
        register_optimizer_step_post_hook(lambda o, args, kwargs: seen.append(("post", o))),
    ]
    try:
        optimizer = Proximal(optim.Adam(points(), lr=0.1), L1(0.1))
        advance(optimizer, range(1))
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [("pre", optimizer), ("post", optimizer)]


def test_hooks_fire_once_wherever_they_were_registered():
    """A post hook sees the parameters after the prox."""
    seen: list[Any] = []
    params = points()
    inner = optim.Adam(params, lr=0.1)

    def note(name: str) -> Callable[..., None]:
        return lambda o, args, kwargs: seen.append((name, o, int(params[0].count_nonzero())))

    inner.register_step_pre_hook(note("before wrapping, pre"))
    inner.register_step_post_hook(note("before wrapping"))
    optimizer = Proximal(inner, L1(1e6))
    optimizer.register_step_post_hook(note("outer"))
    handle = inner.register_step_post_hook(note("inner"))
    advance(optimizer, range(1))
    assert seen == [
        ("before wrapping, pre", optimizer, 12),
        ("before wrapping", optimizer, 0),
        ("outer", optimizer, 0),
        ("inner", optimizer, 0),
    ]
    handle.remove()
    seen.clear()
    advance(optimizer, range(1))
    assert [name for name, *_ in seen] == ["before wrapping, pre", "before wrapping", "outer"]


def test_state_hooks_fire_once():
    seen: list[str] = []
    inner = optim.Adam(points(), lr=0.1)
    inner.register_state_dict_post_hook(lambda o, state: seen.append("saved"))
    inner.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
    optimizer = Proximal(inner, L1(0.1))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["saved", "loaded"]


# ── mixed precision ─────────────────────────────────────────────────────────────────────────────────────────────────

SCALED: dict[str, Make] = {
    "momentum": OPTIMISERS["momentum"],
    "sgd-fused": OPTIMISERS["sgd-fused"],
    "adam": OPTIMISERS["adam"],
    "adam-fused": OPTIMISERS["adam-fused"],
    "adamw-fused": lambda p: optim.AdamW(p, lr=0.05, fused=True),
    "adagrad-fused": OPTIMISERS["adagrad-fused"],
    "rmsprop-momentum": OPTIMISERS["rmsprop-momentum"],
    "adadelta": OPTIMISERS["adadelta"],
    "asgd": OPTIMISERS["asgd"],
}


@pytest.mark.parametrize("make", over(SCALED))
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_step_that_the_scaler_skips_skips_the_prox(make, unscaled):
    params = points()
    optimizer = Proximal(make(params), L1(0.2))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(6):
        skipped, before = t in (1, 2, 4), snapshot(optimizer)
        for p in params:
            p.grad = scaler.scale(gradient(p, t))
        if skipped:
            params[0].grad[0, 0] = float("inf")
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert (snapshot(optimizer) == before) == skipped
        for name in ("found_inf", "grad_scale"):
            assert not hasattr(optimizer, name) and not hasattr(optimizer.optimizer, name)
    twins = points()
    twin = Proximal(make(twins), L1(0.2))
    for t in (0, 3, 5):
        advance(twin, range(t, t + 1))
    for p, q in zip(params, twins):
        torch.testing.assert_close(p, q)
        assert torch.equal(p == 0, q == 0)


def test_a_first_step_that_is_skipped_leaves_no_buffer():
    """torch's fused SGD has made it by then, of memory that nothing was written to."""
    params, twins = points(), points()
    optimizer, twin = (
        Proximal(optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, fused=True), L1(0.2)) for p in (params, twins)
    )
    scaler = torch.amp.GradScaler("cpu")
    for t in range(3):
        for p in params:
            p.grad = scaler.scale(gradient(p, t)) * (float("inf") if t == 0 else 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert [s.get("response") for s in optimizer.state.values()] == [[None, 1.0, 1.4][t]] * 3
    advance(twin, range(1, 3))
    for p, q in zip(params, twins):
        torch.testing.assert_close(p, q)


def test_scaling_attributes_are_the_wrapped_ones():
    optimizer = Proximal(optim.Adam(points(), lr=0.1, fused=True), L1(0.1))
    assert optimizer._step_supports_amp_scaling
    assert not hasattr(Proximal(optim.Adam(points(), lr=0.1), L1(0.1)), "_step_supports_amp_scaling")
    optimizer.found_inf = torch.ones(())
    assert optimizer.optimizer.found_inf is optimizer.found_inf
    del optimizer.found_inf
    assert not hasattr(optimizer.optimizer, "found_inf")
    with pytest.raises(AttributeError, match="'Proximal' object has no attribute 'lr'"):
        _ = optimizer.lr


# ── dtypes and layouts ──────────────────────────────────────────────────────────────────────────────────────────────

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", over(OPTIMISERS))
def test_every_dtype(make, dtype):
    """The prox, in float32 at least, of what the bare optimiser makes of the same parameters; state keeps its type."""
    params, twins = points(dtype), points(dtype)
    optimizer, bare = Proximal(make(params), L1(0.2)), make(twins)
    for t in range(4):
        for p, q in zip(params, twins):
            with torch.no_grad():
                q.copy_(p)
            p.grad = gradient(p, t)
            q.grad = p.grad.clone()
        before = {id(p): bare.state[q].get("acc_delta", torch.zeros(())).clone() for p, q in zip(params, twins)}
        eta = float(bare.state[twins[0]].get("eta", torch.tensor(0.1)))
        optimizer.step()
        bare.step()
        for p, q in zip(params, twins):
            tau = effective_step(optimizer.optimizer, p)
            if isinstance(bare, optim.Adadelta):
                wide, eps = torch.promote_types(dtype, torch.float32), bare.param_groups[0]["eps"]
                v = bare.state[q]["square_avg"].to(wide)
                tau = bare.param_groups[0]["lr"] * (before[id(p)].to(wide) + eps).sqrt() / (v + eps).sqrt()
            if isinstance(bare, optim.ASGD):
                tau = eta
            wide = q.detach().to(torch.promote_types(dtype, torch.float32))
            expected = L1(0.2).prox(wide, tau.to(wide.dtype) if isinstance(tau, Tensor) else tau).to(dtype)
            rounding = 0.0 if dtype in (torch.float64, torch.float32) else float(torch.finfo(dtype).eps)
            torch.testing.assert_close(p.detach(), expected, rtol=rounding or 4e-6, atol=2e-7 + 0.01 * rounding)
            assert p.dtype == dtype


@pytest.mark.parametrize("make", over(SOME))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_zeros_are_exact_in_low_precision(make, dtype):
    params = points(dtype)
    optimizer = Proximal(make(params), L1(0.3))
    advance(optimizer, range(60))
    assert sum(int((p == 0).sum()) for p in params) > 0
    assert all(bool(p.isfinite().all()) for p in params)


def transposed(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def strided(x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, 7.0)], dim=-1)[..., 0]


def offset(x: Tensor) -> Tensor:
    return torch.cat([torch.full((5,), 7.0, dtype=x.dtype), x.flatten()])[5:].view(x.shape)


@pytest.mark.parametrize("layout", [transposed, channels_last, strided, offset])
@pytest.mark.parametrize("penalty", [L1(0.2), ElasticNet(0.2, 0.1), GroupLasso(0.2, dim=1), MCP(0.2, 2.0)], ids=repr)
@pytest.mark.parametrize("make", over(SOME))
def test_layout_does_not_matter(make, penalty, layout, monkeypatch):
    if layout is strided and make is SOME["adam-fused"]:  # torch's own step takes parameter and state to lie alike
        make = SOME["adam"]
    monkeypatch.setattr(module, "BLOCK", 7)
    plain = torch.randn((4, 3, 2, 2), generator=torch.Generator().manual_seed(1))
    p, q = Parameter(plain.clone()), Parameter(layout(plain.clone()))
    ways = [Proximal(make([x]), penalty) for x in (p, q)]
    for way in ways:
        advance(way, range(5))
    torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-7)
    assert torch.equal(p == 0, q == 0)
    if layout is strided:  # what lies between
        assert bool((q.detach().as_strided((q.numel(),), (2,), 1) == 7.0).all())


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (1,), (1, 1)])
@pytest.mark.parametrize("make", over(OPTIMISERS))
def test_scalars_and_empty_parameters(make, shape):
    for penalty in (L1(0.5), ElasticNet(0.5, 0.1), NonNegative(), SmoothedL1(0.5, 1.0)):
        p = Parameter(torch.full(shape, 0.5))
        optimizer = Proximal(make([p]), penalty)
        for _ in range(2):
            p.grad = torch.ones(shape)
            optimizer.step()
        assert p.shape == shape
        assert bool(p.isfinite().all())


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 2)])
def test_empty_groups(shape):
    for penalty in (GroupLasso(0.5), SparseGroupLasso(0.5, 0.1)):
        p = Parameter(torch.ones(shape))
        optimizer = Proximal(optim.Adam([p], lr=0.1), penalty)
        p.grad = torch.ones(shape)
        optimizer.step()
        assert p.shape == shape


@pytest.mark.parametrize("make", over(OPTIMISERS))
def test_a_group_of_zeros_stays_zero_and_finite(make):
    p = Parameter(torch.tensor([[0.0, 0.0], [1.0, 2.0]]))
    optimizer = Proximal(make([p]), GroupLasso(0.1))
    for _ in range(3):
        p.grad = torch.tensor([[1e-3, -1e-3], [0.5, 0.1]])
        optimizer.step()
    assert p[0].tolist() == [0.0, 0.0]
    assert bool(p.isfinite().all()) and bool((p[1] != 0).all())


def test_infinities_and_nan_stay_where_they_are():
    start = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0, 0.01])
    for penalty, last in ((L1(0.2), [0.9, 0.0]), (ElasticNet(0.2, 0.0), [0.9, 0.0]), (MCP(0.2, 2.0), [1.0, 0.0])):
        p = Parameter(start.clone())
        optimizer = Proximal(optim.SGD([p], lr=0.5), penalty)
        p.grad = torch.zeros(5)
        optimizer.step()
        assert p[:2].tolist() == [float("inf"), -float("inf")] and bool(p[2].isnan())
        assert p[3:].tolist() == pytest.approx(last)


@pytest.mark.parametrize(
    ("one", "other"),
    [("momentum", "sgd-foreach"), ("momentum", "sgd-fused"), ("adam", "adam-foreach"), ("adam", "adam-fused")],
)
def test_foreach_and_fused_go_the_same_way(one, other):
    ways = [wrapped(OPTIMISERS[name], points(torch.float64)) for name in (one, other)]
    for way in ways:
        advance(way, range(20))
    for p, q in zip(*([p for g in way.param_groups for p in g["params"]] for way in ways)):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        assert torch.equal(p == 0, q == 0)


def test_centred_rmsprop_says_when_its_variance_is_gone():
    """v − ḡ² → 0 under a constant gradient: torch takes the root of what rounding leaves, be it below 0."""
    p = Parameter(torch.ones(64))
    optimizer = Proximal(optim.RMSprop([p], lr=1e-3, alpha=0.5, centered=True), L1(0.0))
    with pytest.warns(RuntimeWarning, match=r"^Proximal: centred RMSprop lost v − ḡ² to rounding"):  # noqa: PT031
        for _ in range(60):
            p.grad = torch.linspace(0.1, 1.0, 64)
            optimizer.step()


def test_centred_rmsprop_is_never_nan_in_silence():
    """torch's fused v − ḡ² may fall below 0 where v < ḡ², rounded apart, does not."""
    lost = 0
    for seed in range(20):
        p, generator = Parameter(torch.ones(64)), torch.Generator().manual_seed(seed)
        constant = 10 * torch.rand(64, generator=generator)
        optimizer = Proximal(optim.RMSprop([p], lr=1e-3, alpha=0.9, centered=True), L1(0.0))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            for _ in range(300):
                p.grad = constant.clone()
                optimizer.step()
        lost += bool(p.isnan().any())
        assert said or not bool(p.isnan().any())
    assert lost > 5


# ── the prox of one parameter, at every dtype ───────────────────────────────────────────────────────────────────────

SEPARABLE: dict[str, Penalty] = {
    "l1": L1(0.75),
    "l1-zero": L1(0.0),
    "elastic-net": ElasticNet(0.75, 0.5),
    "mcp": MCP(0.75, 2.0),
    "box": Box(-0.5, 1.0),
    "smoothed-l1": SmoothedL1(0.75, 0.5),
}


def numbers(dtype: torch.dtype) -> Any:
    top = 1e4 if dtype is torch.float16 else 1e6
    finite = st.floats(-top, top, width=32)
    return st.lists(
        st.one_of(finite, st.sampled_from([0.0, -0.0, float("inf"), -float("inf"), float("nan")])), max_size=12
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("penalty", over(SEPARABLE))
def test_prox_in_place_equals_the_penaltys_own(penalty, dtype):
    wide = torch.promote_types(dtype, torch.float32)

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(values=numbers(dtype), tau=st.floats(0.01, 100.0), block=st.integers(1, 12))
    def law(values: list[float], tau: float, block: int) -> None:
        x = torch.tensor(values, dtype=torch.float64).to(dtype)
        steps = torch.linspace(0.5, 2.0, x.numel(), dtype=dtype) * tau
        blocks, module.BLOCK = module.BLOCK, block
        try:
            for reading in (
                module.Reading(lambda t: t, (tau,)),
                module.Reading(lambda t: t, (), (steps,)),
            ):
                p = x.clone()
                module.prox_(p, penalty, reading)
                expected = penalty.prox(x.to(wide), tau if not reading.tensors else steps.to(wide)).to(dtype)
                both = x.isfinite()
                torch.testing.assert_close(p[both], expected[both], rtol=4 * torch.finfo(dtype).eps, atol=1e-30)
                assert torch.equal(p[both] == 0, expected[both] == 0)
                assert torch.equal(p[~both], expected[~both]) or torch.equal(p.isnan(), expected.isnan())
                assert not bool((p.isfinite() & x.isnan()).any())
        finally:
            module.BLOCK = blocks

    law()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [lambda x: x, torch.t], ids=["rows", "columns"])
def test_weights_of_an_l1_are_steps_of_its_coordinates(dtype, layout, monkeypatch):
    """Its prox at τ, be that a number or a tensor, is that of the bare L1 at τ ∘ w."""
    monkeypatch.setattr(module, "BLOCK", 7)
    generator, wide = torch.Generator().manual_seed(0), torch.promote_types(dtype, torch.float32)
    x, w, v = (torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    x, v, penalty = layout(x).to(dtype), layout(v * v).to(dtype), L1(0.5, weights=layout(w.abs()).numpy())
    for reading in (module.Reading(identity, (0.7,)), module.Reading(over_root, (0.1, 0.5, 1e-2), (v,))):
        p = x.clone()
        module.prox_(p, penalty, reading)
        expected = penalty.prox(x.to(wide), reading.value()).to(dtype)
        torch.testing.assert_close(p, expected, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
        assert torch.equal(p == 0, expected == 0) and 0 < torch.count_nonzero(p) < p.numel()


def test_weights_of_an_l1_are_converted_once():
    """Into the parameter's precision; and anew where they were changed."""
    p = Parameter(torch.ones(3))
    optimizer = Proximal(optim.SGD([p], lr=0.5), L1(0.5, weights=[0.0, 1.0, 4.0]))
    given = optimizer.param_groups[0]["proximal"][0]["penalty"]["weights"]
    p.grad = torch.zeros(3)
    optimizer.step()
    made = module.CAST[given][1]
    optimizer.step()
    assert module.CAST[given][1] is made and made.dtype is torch.float32
    given[0] = 2.0
    optimizer.step()
    assert p.tolist() == [0.5, 0.25, 0.0]


# ── what it refuses ─────────────────────────────────────────────────────────────────────────────────────────────────


def sgd(*params: Any) -> optim.Optimizer:
    return optim.SGD(params or points(), lr=0.1)


COMPLEX = Parameter(torch.zeros(2, dtype=torch.complex64))
SPARSE = torch.zeros(2, 2).to_sparse().requires_grad_()
HELD = Parameter(torch.zeros(2))

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "not-held": (
        lambda: Proximal(sgd(HELD), L1(0.1), [Parameter(torch.zeros(3, 2))]),
        r"the optimiser does not hold a parameter of shape \(3, 2\)",
    ),
    "twice": (lambda: Proximal(sgd(HELD), L1(0.1), [HELD, HELD]), "a parameter is named twice"),
    "under-two": (
        lambda: Proximal(sgd(HELD), [(L1(0.1), [HELD]), (L1(0.2), [HELD])]),
        "a parameter is named twice; put it under one penalty",
    ),
    "tensor": (
        lambda: Proximal(sgd(HELD), L1(0.1), HELD),
        r"params must be a list of parameters, not one tensor; write \[w\]",
    ),
    "empty": (lambda: Proximal(sgd(HELD), L1(0.1), []), "params is empty"),
    "names": (
        lambda: Proximal(sgd(HELD), L1(0.1), ["weight"]),
        r"params must hold parameters, not str; pass weights\(model\)",
    ),
    "complex": (lambda: Proximal(sgd(COMPLEX), L1(0.1)), "a complex parameter has no proximal map here"),
    "sparse": (lambda: Proximal(sgd(SPARSE), L1(0.1)), "a parameter of layout torch.sparse_coo has no proximal map"),
    "swept": (lambda: Proximal(sgd(), L1([0.1, 0.2])), "L1.lam must be one number here, not a list of 2"),
    "scheduled": (lambda: Proximal(sgd(), L1(Cosine(0.1, steps=3))), "L1.lam must be a plain number here, not Cosine"),
    "no-penalty": (lambda: Proximal(sgd(), []), "give one of nonsmooth.penalties, or a list of pairs"),
    "number": (lambda: Proximal(sgd(), 0.1), "give one of nonsmooth.penalties, or a list of pairs"),
    "class": (lambda: Proximal(sgd(), L1), "give one of nonsmooth.penalties, or a list of pairs"),
    "pair-reversed": (
        lambda: Proximal(sgd(HELD), [([HELD], L1(0.1))]),
        "give one of nonsmooth.penalties, or a list of pairs",
    ),
    "pairs-and-params": (lambda: Proximal(sgd(HELD), [(L1(0.1), [HELD])], [HELD]), "params goes with one penalty"),
}


@pytest.mark.parametrize(("act", "sentence"), over(REFUSED))
def test_bad_input_is_told_in_a_sentence(act, sentence):
    with pytest.raises(ValueError, match=f"^Proximal: {sentence}"):
        act()


def test_a_penalty_that_does_not_fit_says_so_at_once():
    with pytest.raises(ValueError, match=r"L1: weights of shape \(3,\) do not fit a point of shape \(2,\)"):
        Proximal(sgd(HELD), L1(0.1, weights=[1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="NM: m = 4 does not divide the 2 entries of dimension -1"):
        Proximal(sgd(HELD), NM(2, 4))
    with pytest.raises(ValueError, match=r"GroupLasso: a point of shape \(2,\) has no dimension 1"):
        Proximal(sgd(HELD), GroupLasso(0.1, dim=1))
    with pytest.raises(ValueError, match=r"GroupLasso: 3 group labels do not fit a point of shape \(2,\)"):
        Proximal(sgd(HELD), GroupLasso(0.1, groups=(0, 0, 1)))


def test_a_refused_penalty_leaves_the_optimiser_as_it_was():
    optimizer = sgd(HELD)
    for act in (
        lambda: Proximal(optimizer, L1(0.1), [Parameter(torch.zeros(1))]),
        lambda: Proximal(optimizer, NM(2, 4)),
    ):
        with pytest.raises(ValueError, match=r"hold a parameter|NM"):
            act()
    assert "proximal" not in optimizer.param_groups[0]


@pytest.mark.parametrize("wrong", [None, 3, torch.optim.SGD, [HELD], torch.nn.Linear(1, 1)])
def test_only_an_optimiser_can_be_wrapped(wrong):
    with pytest.raises(TypeError, match=r"^Proximal: optimizer must be a torch optimiser, not "):
        Proximal(wrong, L1(0.1))


def test_it_is_not_wrapped_twice():
    with pytest.raises(TypeError, match=r"^Proximal: optimizer must be a torch optimiser, not Proximal"):
        Proximal(Proximal(sgd(), L1(0.1)), L1(0.1))


def test_wrapped_anew_the_bare_optimiser_has_the_new_penalties_alone():
    """As when a notebook's cell is run again, or a Proximal's state was loaded into the bare optimiser."""
    a, b = points()[:2]
    inner = optim.SGD([a, b], lr=0.1)
    Proximal(inner, L1(0.1), params=[a])
    bare = optim.SGD([a, b], lr=0.1)
    bare.load_state_dict(through_a_file(inner.state_dict()))
    for optimizer in (inner, bare):
        again = Proximal(optimizer, [(L1(0.2), [b]), (ElasticNet(0.3, 0.1), [a])])
        assert [(g, p is a) for p, g, _ in again.penalised()] == [(L1(0.2), False), (ElasticNet(0.3, 0.1), True)]


def test_penalties_that_would_be_lost_are_not_replaced():
    a, b = points()[:2]
    inner = optim.SGD([a, b], lr=0.1)
    first = Proximal(inner, L1(0.1), params=[a])
    said = r"^Proximal: the optimiser is under a Proximal already; use that one, or"
    with pytest.raises(ValueError, match=said):
        Proximal(inner, L1(0.2), params=[b])
    with refit(first), pytest.raises(ValueError, match=said):
        Proximal(inner, L1(0.2))
    assert [(p is a, g) for p, g, _ in first.penalised()] == [(True, L1(0.1))]
    with pytest.raises(ValueError, match="has no dimension 7"):
        Proximal(inner, GroupLasso(0.1, dim=7), params=[a])
    assert [type(g) for _, g, _ in first.penalised()] == [L1]
    for group in inner.param_groups:
        group.pop("proximal", None)  # as the sentence says
    Proximal(inner, L1(0.2), params=[b])


def test_each_parameter_is_a_point_of_its_own():
    """A simplex for each, whatever their shapes and their optimiser's steps."""
    params = points()
    optimizer = Proximal(optim.Adam(params, lr=0.1), Simplex(2.0))
    advance(optimizer, range(5))
    for p in params:
        assert float(p.detach().sum()) == pytest.approx(2.0, rel=1e-5)
        assert bool((p >= 0).all())


# ── wrappers of it ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_bears_a_wrapper_that_takes_on_its_class():
    """As Lightning's Fabric does: the wrapper's own `optimizer` hides ours."""

    class Around:
        def __init__(self, optimizer: optim.Optimizer) -> None:
            self.__class__ = type("Around" + type(optimizer).__name__, (type(self), type(optimizer)), {})
            self._optimizer = optimizer

        @property
        def optimizer(self) -> optim.Optimizer:
            return self._optimizer

        def state_dict(self) -> dict[str, Any]:
            return self.optimizer.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.optimizer.load_state_dict(state_dict)

        def step(self, closure: Any = None) -> Any:
            return self.optimizer.step(closure)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._optimizer, name)

    ways = [wrapped(OPTIMISERS["momentum"], points()) for _ in range(2)]
    around = Around(ways[1])
    assert isinstance(around, optim.Optimizer)
    around.load_state_dict(around.state_dict())
    advance(ways[0], range(4))
    advance(around, range(4), LambdaLR(around, lambda t: 1.0))
    assert snapshot(ways[0]) == snapshot(ways[1])

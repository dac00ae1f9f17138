"""Proximal as it is used: states kept and loaded, refits under schedules, groups added late, and what is said then."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn import Parameter

from nonsmooth.penalties import L1, ElasticNet, GroupLasso, NuclearNorm, SparseGroupLasso
from nonsmooth.torch import LambdaLam, Proximal, TargetSparsity, density, effective_step, kernels, kkt, refit

Y = torch.tensor([3.0, 0.5])


def descend(optimizer: Proximal, w: Parameter, steps: int, *schedules: Any) -> None:
    """On ½‖w − (3, ½)‖²."""
    for _ in range(steps):
        w.grad = (w - Y).detach()
        optimizer.step()
        for schedule in schedules:
            schedule.step()


def solved(penalty: Any = None, lr: float = 0.5) -> tuple[Parameter, Proximal]:
    w = Parameter(torch.tensor([2.5, 0.0]))
    optimizer = Proximal(optim.SGD([w], lr=lr), penalty or L1(1.0))
    descend(optimizer, w, 60)
    assert w.tolist() == pytest.approx([2.0, 0.0], abs=1e-5)
    return w, optimizer


@pytest.mark.parametrize("penalty", [ElasticNet(1.0, 0.5), SparseGroupLasso(1.0, 0.5)], ids=repr)
def test_a_state_dict_is_a_snapshot(penalty):
    w = Parameter(torch.ones(2, 2))
    optimizer = Proximal(optim.SGD([w], lr=0.1), penalty)
    state = optimizer.state_dict()
    before = repr(state)
    refit(optimizer)
    optimizer.param_groups[0]["proximal"][0]["params"].append(7)
    assert repr(state) == before


def test_a_state_loaded_inside_a_refit_does_not_end_the_penalty():
    w, optimizer = solved(ElasticNet(1.0, 0.0))
    with refit(optimizer):
        optimizer.load_state_dict(optimizer.state_dict())
        descend(optimizer, w, 60)
    assert w.tolist() == pytest.approx([3.0, 0.0])
    assert [e["lam"] for _, e in optimizer.entries()] == [1.0]
    assert "off" not in optimizer.param_groups[0]["proximal"][0]


def test_a_state_saved_inside_a_refit_is_taken_up_by_another():
    w, optimizer = solved()
    with refit(optimizer):
        state = optimizer.state_dict()
    again = Proximal(optim.SGD([w], lr=0.5), L1(7.0))
    again.load_state_dict(state)
    with refit(again):
        descend(again, w, 60)
        assert w.tolist() == pytest.approx([3.0, 0.0])
    assert [e["lam"] for _, e in again.entries()] == [1.0]


def test_schedules_do_not_undo_a_refit():
    w, optimizer = solved()
    schedule = LambdaLam(optimizer, lambda t: 1.0 + t)
    controller = TargetSparsity(optimizer, density=0.5, steps=100)
    with refit(optimizer):
        descend(optimizer, w, 60, schedule, controller)
        assert w.tolist() == pytest.approx([3.0, 0.0])
        assert schedule.get_last_lam() == [0.0]
        with pytest.raises(ValueError, match=r"^set_lam: a refit is on"):
            optimizer.set_lam(1.0)
    assert [e["lam"] for _, e in optimizer.entries()] == [61.0]


def test_lambda_lam_begins_with_the_strength_that_a_refit_keeps():
    _, optimizer = solved()
    with refit(optimizer):
        schedule = LambdaLam(optimizer, lambda t: 1.0 + t)
        optimizer.add_param_group({"params": [Parameter(torch.ones(2))]}, L1(2.0))
        schedule.step()
        again = LambdaLam(optimizer, lambda t: 1.0)
    assert schedule.first == [1.0, 2.0] and again.first == [2.0, 4.0]
    assert schedule.get_last_lam() == [2.0, 4.0]


class Around(optim.Optimizer):
    """As accelerate's: an optimiser that holds another."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_a_proximal_is_found_below_the_wrappers_of_other_libraries():
    _, optimizer = solved()
    around = Around(Around(optimizer))
    assert density(around).value == 0.5
    assert LambdaLam(around, lambda t: 2.0).get_last_lam() == [2.0]
    assert TargetSparsity(around, 0.5, 10).lam == [2.0]
    with refit(around):
        assert optimizer.param_groups[0]["proximal"][0]["lam"] == 0.0
    for act in (density, refit, lambda o: LambdaLam(o, lambda t: 1.0)):
        with pytest.raises(TypeError, match="optimizer must be a Proximal, not Around"):
            act(Around(optim.SGD([Parameter(torch.ones(1))], lr=0.1)))


def test_a_low_rank_has_no_support_to_refit():
    optimizer = Proximal(optim.SGD([Parameter(torch.eye(2))], lr=0.1), NuclearNorm(1.0))
    with pytest.raises(ValueError, match=r"^refit: NuclearNorm makes singular values zero, and no weights"):
        refit(optimizer)
    assert [e["lam"] for _, e in optimizer.entries()] == [1.0]


def test_momentum_set_to_0_leaves_its_buffer_alone_compiled_or_not():
    ways = []
    for compile in (False, True):
        w = Parameter(torch.zeros(kernels.LARGE))
        optimizer = Proximal(optim.SGD([w], lr=0.1, momentum=0.9, dampening=0.5), L1(0.0), compile=compile)
        for momentum in (0.9, 0.9, 0.0, 0.0):
            optimizer.param_groups[0]["momentum"] = momentum
            w.grad = torch.ones_like(w)
            optimizer.step()
        ways.append((w.detach(), optimizer.state[w]["momentum_buffer"]))
    for eager, compiled in zip(*ways, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-6, atol=1e-7)


def test_a_group_is_added_whole_or_not_at_all():
    w, v = Parameter(torch.ones(2)), Parameter(torch.ones(3))
    optimizer = Proximal(optim.SGD([w], lr=0.1), L1(1.0))
    schedule = LambdaLam(optimizer, lambda t: 1.0 + t)
    with pytest.raises(ValueError, match="has no dimension 3"):
        optimizer.add_param_group({"params": [v]}, GroupLasso(0.1, dim=3))
    with pytest.raises(TypeError, match=r"^add_param_group: penalty must be one of nonsmooth.penalties, not float"):
        optimizer.add_param_group({"params": [v]}, 0.1)
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [v]}, L1(2.0))
    schedule.step()
    assert schedule.get_last_lam() == [2.0, 4.0]


def test_effective_step_of_a_proximal_is_that_of_what_it_wraps():
    w = Parameter(torch.ones(1))
    assert effective_step(Proximal(optim.SGD([w], lr=0.5, momentum=0.75), L1(1.0)), w) == 2.0


@pytest.mark.parametrize("lam", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), 0.5])
def test_a_strength_may_be_any_plain_number(lam):
    optimizer = Proximal(optim.SGD([Parameter(torch.ones(1))], lr=0.5), L1(1.0))
    optimizer.set_lam(lam)
    assert [(type(e["lam"]), e["lam"]) for _, e in optimizer.entries()] == [(float, 0.5)]


@dataclass(frozen=True)
class Cached(L1):
    """A user's penalty that keeps something derived."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "half", 0.5)
        super().__post_init__()


@dataclass(frozen=True)
class Lazy(L1):
    """One that derives it when it is asked."""

    @functools.cached_property
    def half(self) -> float:
        return self.lam / 2


def test_a_penalty_with_derived_attributes_is_refused_and_with_lazy_ones_taken():
    w, lazy = Parameter(torch.ones(1)), Lazy(1.0)
    assert lazy.half == 0.5
    Proximal(optim.SGD([w], lr=0.5), lazy)
    with pytest.raises(ValueError, match=r"^Proximal: Cached keeps half, which is no field of it"):
        Proximal(optim.SGD([w], lr=0.5), Cached(1.0))


def wrong(what: str) -> Any:
    net, other = nn.Linear(2, 2), type("L1", (L1,), {})
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    mine = Proximal(optim.SGD(net.parameters(), lr=0.1), L1(0.1)) if what not in ("twins", "module") else None
    return {
        "twins": lambda: Proximal(optimizer, [(L1(0.1), [net.weight]), (other(0.1), [net.bias])]),
        "module": lambda: Proximal(optimizer, [(L1(0.1), net)]),
        "scheduled": lambda: LambdaLam(optimizer, lambda t: 1.0),
        "list": lambda: LambdaLam(mine, [lambda t: 1.0]),
        "tensor": lambda: kkt(mine, torch.zeros(())),
        "number": lambda: mine.set_lam(0.1, 3),
        "bool": lambda: mine.set_lam(True),
    }[what]()


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("twins", r"^Proximal: two different penalties are named L1; rename yours"),
        ("module", r"^Proximal: params must be a list of parameters, not Linear; pass weights"),
        ("scheduled", r"^LambdaLam: optimizer must be a Proximal, not SGD"),
        ("list", r"^LambdaLam: factor must be one function"),
        ("tensor", r"^kkt: closure must be a function that returns the loss, not Tensor"),
        ("number", r"^set_lam: there is no penalty number 3 with a λ to set; those with one are \[0\]"),
        ("bool", r"^set_lam: lam must be a finite number"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(what, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        wrong(what)

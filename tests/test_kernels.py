"""The compiled prox, and step and prox in one compiled pass, do what the eager path does."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, optim
from torch.nn import Parameter

from nonsmooth.penalties import L1, MCP, Box, ElasticNet, GroupLasso, NonNegative, Penalty
from nonsmooth.torch import Proximal, effective_step
from nonsmooth.torch import kernels as module
from nonsmooth.torch.effective import table_of
from test_proximal_torch import OPTIMISERS, Make, advance, bits, gradient, points, snapshot, through_a_file

rejected = pytest.raises(AssertionError)


@pytest.fixture
def fresh_kernels(monkeypatch):
    monkeypatch.setattr(module, "KERNELS", {})
    monkeypatch.setattr(module, "REASONS", set())


def graphs() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


SHAPES = [(70, 3), (12,), (5, 2, 2, 3), (1,), (0,), ()]


def step_by_step(make: Make, penalty: Penalty, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """What one step makes of the same parameters and state, eager and compiled, and the scale of its numbers."""
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    twins = copy.deepcopy(params)
    eager, compiled = Proximal(make(params), penalty), Proximal(make(twins), penalty, compile=True)
    for t in range(4):
        for optimizer in (eager, compiled):
            optimizer.param_groups[0]["lr"] = 0.1 / (t + 1)
            optimizer.set_lam(0.5 / (t + 1))
        for p, q in zip(params, twins):
            with torch.no_grad():
                q.copy_(p)
            p.grad = gradient(p, t)
            q.grad = p.grad.clone()
        eager.step()
        compiled.step()
        for p, q in zip(params, twins):
            tau = effective_step(eager.optimizer, p)
            yield p.detach(), q.detach(), p.detach().abs() + 0.5 * torch.as_tensor(tau)


@pytest.mark.usefixtures("fresh_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("penalty", [L1(0.1), ElasticNet(0.1, 0.1)], ids=repr)
@pytest.mark.parametrize("name", ["momentum", "adam-fused", "rmsprop-centred"])
def test_compiled_equals_eager_without_recompiling(name, penalty, dtype):
    """Bit for bit where τ is one number, else to 2 roundings; one program for all lr, λ and shapes."""
    before = graphs()
    for p, q, scale in step_by_step(OPTIMISERS[name], penalty, dtype):
        if name == "momentum":
            assert torch.equal(p, q)
        assert torch.equal(p == 0, q == 0)
        assert bool(((p - q).abs() <= 2 * torch.finfo(dtype).eps * scale).all())
    assert graphs() - before == 1


@pytest.mark.usefixtures("fresh_kernels")
def test_each_penalty_has_its_own_count_of_programs():
    """dynamo stops at recompile_limit programs for one code, and the step after that failed."""
    before = graphs()
    with torch._dynamo.config.patch(recompile_limit=1):
        for penalty in (L1(0.1), NonNegative(), Box(-1.0, 1.0)):
            advance(Proximal(optim.SGD(points(), lr=0.1), penalty, compile=True), range(2))
    assert graphs() - before == 3


@pytest.mark.usefixtures("fresh_kernels")
def test_without_a_compiler_it_says_so_once_and_goes_on():
    from torch._inductor import config

    params, twins = points(), points()
    optimizer, twin = (
        Proximal(optim.Adam(params, lr=0.1), L1(0.2), compile=True),
        Proximal(optim.Adam(twins, lr=0.1), L1(0.2)),
    )
    with (
        config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.warns(
            UserWarning, match=r"^Proximal: torch.compile failed \(.*compiler.*\); the eager path is used"
        ) as said,
    ):
        advance(optimizer, range(3))
    assert len(said) == 1
    advance(optimizer, range(3, 5))
    advance(twin, range(5))
    assert bits(params) == bits(twins)


@pytest.mark.usefixtures("fresh_kernels")
def test_group_penalties_take_the_eager_path_in_silence():
    before, (p, q) = graphs(), (Parameter(torch.ones(3, 2)) for _ in range(2))
    for way in (
        Proximal(optim.Adam([p], lr=0.1), GroupLasso(0.1), compile=True),
        Proximal(optim.Adam([q], lr=0.1), GroupLasso(0.1)),
    ):
        advance(way, range(3))
    assert torch.equal(p, q) and graphs() == before


@pytest.mark.usefixtures("fresh_kernels")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_step_function(compiled):
    """torch compiles the wrapped optimiser's part; ours comes after it."""
    params, twins = points(), points()
    optimizer, twin = (
        Proximal(optim.Adam(params, lr=0.1), L1(0.2), compile=compiled),
        Proximal(optim.Adam(twins, lr=0.1), L1(0.2)),
    )

    @torch.compile
    def step() -> None:
        optimizer.step()

    for t in range(4):
        for p, q in zip(params, twins):
            p.grad, q.grad = gradient(q, t), gradient(q, t)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch")
            step()
        twin.step()
    for p, q in zip(params, twins):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-5)
        assert torch.equal(p == 0, q == 0)


# ── step and prox in one pass ───────────────────────────────────────────────────────────────────────────────────────

WHOLE: dict[str, Make] = {
    "momentum": OPTIMISERS["momentum"],
    "dampened": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.1),
    "nesterov": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    "maximize": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, maximize=True, weight_decay=0.1),
    "adam": OPTIMISERS["adam"],
    "adam-decay": lambda p: optim.Adam(p, lr=0.05, weight_decay=0.3, betas=(0.8, 0.95)),
    "adam-fused": OPTIMISERS["adam-fused"],
    "amsgrad": lambda p: optim.Adam(p, lr=0.05, amsgrad=True, maximize=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.05, weight_decay=0.3),
}


@pytest.fixture
def counted(monkeypatch, fresh_kernels):
    """One-pass steps for parameters of every size, and how many there were."""
    monkeypatch.setattr(module, "LARGE", 2)
    passes: list[bool] = []
    one_pass = module.step_and_prox_

    @functools.wraps(one_pass)
    def counting(*arguments: Any) -> bool:
        passes.append(one_pass(*arguments))
        return passes[-1]

    monkeypatch.setattr("nonsmooth.torch.proximal.step_and_prox_", counting)
    return passes


def two_ways(make: Make, penalty: Penalty, dtype: torch.dtype) -> tuple[Proximal, Proximal]:
    """The same parameters, one free and one under a group penalty among them: compiled, and eager."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(70, 3), (12,), (5, 2, 2, 3), (4, 3), (9,)]
    params = [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    return tuple(
        Proximal(make(ps), [(penalty, ps[:3]), (GroupLasso(0.1), ps[3:4])], compile=compile)
        for ps, compile in ((params, True), (copy.deepcopy(params), False))
    )


def differences(one: Proximal, other: Proximal) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Parameters and their states, and the scale of what was added up in them."""
    for a, b in zip(one.param_groups, other.param_groups, strict=True):
        assert [p.shape for p in a["params"]] == [q.shape for q in b["params"]]
        for p, q in zip(a["params"], b["params"], strict=True):
            assert one.state[p].keys() == other.state[q].keys()
            yield p.detach(), q.detach(), 1 + q.detach().abs()
            for name, value in other.state[q].items():
                if isinstance(value, Tensor):
                    yield one.state[p][name], value, 1 + value.abs()


def one_pass_equals_two(make: Make, penalty: Penalty, dtype: torch.dtype) -> None:
    one, other = two_ways(make, penalty, dtype)
    for t in range(6):
        for optimizer in (one, other):
            optimizer.param_groups[0]["lr"] *= 0.9
            optimizer.set_lam(0.3 / (t + 1), 0)
            advance(optimizer, range(t, t + 1))
        for a, b, scale in differences(one, other):
            assert bool(((a - b).abs() <= 16 * torch.finfo(dtype).eps * scale).all())
        with torch.no_grad():  # no rounding is carried on
            for a, b, _ in differences(one, other):
                b.copy_(a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_one_pass_equals_the_step_and_the_prox(name, dtype, counted):
    before = graphs()
    one_pass_equals_two(WHOLE[name], L1(0.1), dtype)
    assert counted == [False] * 4 + ([True] * 3 + [False]) * 5  # the first step makes the state; a group goes alone
    assert graphs() - before == 2


@pytest.mark.parametrize("penalty", [ElasticNet(0.1, 0.1), MCP(0.1, 3.0), Box(-0.5, 0.5)], ids=repr)
def test_one_pass_for_any_separable_penalty(penalty, counted):
    make = WHOLE["adam"]
    if isinstance(penalty, Box):
        one, other = two_ways(make, penalty, torch.float32)
        for optimizer in (one, other):
            advance(optimizer, range(4))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b, _ in differences(one, other))
    else:
        one_pass_equals_two(make, penalty, torch.float32)
    assert any(counted)


def test_one_pass_in_half_precision_stays_within_its_rounding(counted):
    """torch rounds w before the prox, the one pass after it: once less."""
    one, other = two_ways(WHOLE["adam"], L1(0.1), torch.bfloat16)
    for optimizer in (one, other):
        advance(optimizer, range(2))
    assert any(counted)
    for a, b, scale in differences(one, other):
        assert bool(((a - b).abs() <= 2 * torch.finfo(torch.bfloat16).eps * scale).all())


@pytest.mark.parametrize("mutant", ["decay", "bias", "tau", "nesterov"])
def test_the_comparison_rejects_a_wrong_pass(mutant, counted, monkeypatch):
    def wrong(formula: Any, read: Any, change: Callable[[list[float]], list[float]]) -> Any:
        return formula, lambda *a: change(read(*a)), names

    read, name, change = {
        "decay": (module._adam, "adamw", lambda n: [*n[:4], n[5], n[4], *n[6:]]),
        "bias": (module._adam, "adam", lambda n: [*n[:6], 1.0, n[7]]),
        "tau": (module._sgd, "momentum", lambda n: [*n[:5], n[0]]),
        "nesterov": (module._sgd, "nesterov", lambda n: [*n[:4], 0.0, n[5]]),
    }[mutant]
    formula, numbers, names = module.WHOLE[read]
    monkeypatch.setitem(module.WHOLE, read, wrong(formula, numbers, change))
    with rejected:
        one_pass_equals_two(WHOLE[name], L1(0.1), torch.float64)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw"])
def test_a_rate_that_rounds_below_0_counts_by_its_size(name):
    optimizer = WHOLE[name]([Parameter(torch.ones(1))])
    _, numbers, _ = module.WHOLE[table_of(optimizer).read]
    found = []
    for lr in (-5e-18, 5e-18):
        found.append(numbers({**optimizer.param_groups[0], "lr": lr}, {"step": torch.tensor(3.0)}, 4.0))
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_one_pass_resumes_bit_for_bit_and_hooks_fire_once(name, counted):
    one, _ = two_ways(WHOLE[name], L1(0.1), torch.float32)
    advance(one, range(3))
    again, _ = two_ways(WHOLE[name], L1(0.1), torch.float32)
    fired: list[int] = []
    again.register_step_post_hook(lambda *_: fired.append(1))
    for p, q in zip(*(o.param_groups[0]["params"] for o in (one, again)), strict=True):
        with torch.no_grad():
            q.copy_(p)
    again.load_state_dict(through_a_file(one.state_dict()))
    for optimizer in (one, again):
        advance(optimizer, range(3, 6))
    assert snapshot(one) == snapshot(again)
    assert len(fired) == 3


def test_a_step_that_cannot_be_one_pass_is_two(counted):
    """A closure, GradScaler's fused step, and a parameter without a gradient go the usual way."""
    one, other = two_ways(WHOLE["adam-fused"], L1(0.1), torch.float32)
    for optimizer in (one, other):
        advance(optimizer, range(2))
    seen = len(counted)
    for optimizer in (one, other):
        optimizer.step(lambda: 0.0)
    assert len(counted) == seen
    one.found_inf = torch.tensor(0.0)
    advance(one, range(2, 3))
    del one.found_inf
    assert len(counted) == seen
    advance(other, range(2, 3))
    for optimizer in (one, other):
        optimizer.param_groups[0]["params"][0].grad = None
        optimizer.step()
    assert counted[seen:] == [False, True, True, False]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b, _ in differences(one, other))

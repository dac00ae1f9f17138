"""The blocked prox of groups equals the penalty's own, which is tested against brute force elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nonsmooth.penalties import GroupLasso, SparseGroupLasso
from nonsmooth.torch import groups as module
from nonsmooth.torch.effective import Reading, identity

rejected = pytest.raises(AssertionError)

PENALTIES = [
    GroupLasso(0.8),
    GroupLasso(0.3, dim=1, scale_by_size=True),
    GroupLasso(0.8, dim=-1),
    SparseGroupLasso(0.2, 0.6),
    SparseGroupLasso(0.2, 0.1, dim=1, scale_by_size=True),
    GroupLasso(0.0),
]
SHAPES = [(7, 5), (4, 3, 2, 2), (1, 6), (6, 1)]


def readings(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    """One step for all, steps of one size, steps over six decades, and some that are 0."""
    generator = torch.Generator().manual_seed(1)
    u = torch.rand(shape, generator=generator, dtype=torch.float64)
    some = torch.where(u < 0.3, torch.zeros_like(u), 0.5 + u)
    tensors = {"alike": 0.5 + u, "decades": 10 ** (6 * u - 4), "zeros": some}
    return {"number": Reading(identity, (0.7,))} | {
        name: Reading(identity, (), (t.to(dtype),)) for name, t in tensors.items()
    }


def law(penalty: Any, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    reading = readings(shape, dtype)[name]
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    tau = reading.numbers[0] if reading.numbers else reading.tensors[0].to(wide).double().numpy()
    expected = torch.tensor(penalty.prox(x.to(wide).double().numpy(), tau))
    p = x.clone()
    assert module.group_prox_(p, penalty, reading)
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps if dtype is not torch.float64 else 0.0)
    torch.testing.assert_close(p.double(), expected, rtol=64 * eps, atol=64 * eps)
    assert torch.equal(p == 0, expected.to(dtype) == 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_it_equals_the_penaltys_own_prox(penalty, shape, dtype, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    for name in readings(shape, dtype):
        law(penalty, shape, dtype, name)


def test_the_comparison_rejects_a_newton_that_stops_early(monkeypatch):
    monkeypatch.setattr(module, "NEWTON_STEPS", 1)
    with rejected:
        law(GroupLasso(0.8), (7, 5), torch.float64, "decades")


def test_a_norm_that_overflows_or_underflows_takes_no_group_away():
    """In float32 the square of 1e25 is infinite and that of 1e-25 is 0."""
    x = torch.tensor([[1e25, -1e25], [1e-25, 0.0], [3.0, 4.0]])
    for lam, expected in ((1.0, [[1e25, -1e25], [0.0, 0.0], [2.4, 3.2]]), (0.0, x.tolist())):
        p = x.clone()
        assert module.group_prox_(p, GroupLasso(lam), Reading(identity, (1.0,)))
        torch.testing.assert_close(p, torch.tensor(expected), rtol=1e-6, atol=0)


def test_a_dead_group_is_exactly_zero_and_labels_and_infinities_are_left_to_the_penalty():
    x = torch.tensor([[1e-3, -1e-3], [3.0, 4.0]])
    p = x.clone()
    assert module.group_prox_(p, GroupLasso(1.0), Reading(identity, (), (torch.full_like(x, 0.1),)))
    assert p[0].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(p[1], [2.94, 3.92], rtol=1e-6)
    assert not module.group_prox_(torch.ones(2), GroupLasso(1.0, groups=(0, 1)), Reading(identity, (1.0,)))
    assert not module.group_prox_(torch.tensor([[float("inf"), 1.0]]), GroupLasso(1.0), Reading(identity, (1.0,)))

"""Group penalties: which coordinates belong together, and Newton's method under unequal steps."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from nonsmooth.penalties import L1, GroupLasso, groups


@pytest.mark.parametrize("dim", [0, 1])
def test_groups_are_those_of_ln_structured(dim):
    """λt between the k-th and the next norm kills exactly the k channels that torch's structured pruning masks."""
    from torch.nn.utils import prune

    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, kernel_size=2, dtype=torch.float64)
    weight = conv.weight.detach().clone()
    norms = np.unique(GroupLasso(1.0, dim).norms(weight).numpy().round(12))
    prune.ln_structured(conv, "weight", amount=2, n=2, dim=dim)
    kept = GroupLasso(float(norms[1:3].mean()), dim).prox(weight, 1.0) != 0
    assert torch.equal(kept, conv.weight_mask != 0)
    assert len(norms) == weight.shape[dim]


def test_labels_and_dimension_name_the_same_groups():
    x, t = np.random.default_rng(4).standard_normal((2, 4, 3)) ** 2
    by_dim, by_label = GroupLasso(0.75, dim=1), GroupLasso(0.75, groups=[9, -1, 4] * 4)
    assert by_label.groups == (2, 0, 1) * 4
    np.testing.assert_allclose(by_label.prox(x.ravel(), t.ravel()), by_dim.prox(x, t).ravel(), rtol=1e-14)
    np.testing.assert_allclose(by_label.value(x.ravel()), by_dim.value(x), rtol=1e-14)


def test_many_groups_cost_what_their_coordinates_do():
    """What is built for a sum over groups holds each coordinate once, and not once for each group."""
    g = GroupLasso(1.0, groups=[9 * int(k) - 4 for k in np.random.default_rng(0).integers(0, 3000, 9000)])
    labels = g.groups
    by_size, place = groups._members(labels)
    assert sorted(np.concatenate([rows.ravel() for rows in by_size])) == list(range(9000))
    assert place.shape == (9000,)
    assert all(len({labels[i] for i in row}) == 1 for rows in by_size for row in rows)
    x = np.random.default_rng(1).standard_normal(9000)
    slow = np.sqrt(np.bincount(labels, x * x))[np.array(labels)]
    np.testing.assert_allclose(g.norms(x), slow, rtol=1e-14)


def test_scale_by_size_is_a_larger_lam():
    x = np.array([[3.0, 4.0, 0.0, 12.0]])
    assert GroupLasso(0.5, scale_by_size=True).value(x) == GroupLasso(1.0).value(x) == 13.0
    np.testing.assert_array_equal(GroupLasso(0.5, scale_by_size=True).prox(x, 0.5), GroupLasso(1.0).prox(x, 0.5))


def test_zero_groups_stay_zero_and_lam_zero_changes_nothing():
    x, t = np.array([[0.0, 0.0], [3.0, -4.0]]), np.array([[1e-4, 1e4], [1.0, 1e4]])
    assert not GroupLasso(0.75).prox(x, t)[0].any()
    assert not GroupLasso(0.75).grad(x)[0].any()
    for step in (1.0, t):
        np.testing.assert_array_equal(GroupLasso(0.0).prox(x, step), x)
        np.testing.assert_array_equal(L1(0.0).prox(x, step), x)


def test_a_group_dies_exactly_where_the_formula_says():
    """The group is 0 exactly when ‖x/t‖ ≤ λ; with exact numbers the edge itself is exact."""
    x, t = np.array([[0.75, 2.0]]), np.array([[0.25, 0.5]])  # x/t = (3, 4)
    assert not GroupLasso(5.0).prox(x, t).any()
    assert GroupLasso(5.0 - 1e-9).prox(x, t).all()


def newton_residual():
    """The largest |‖x/(s + λt)‖ − 1|, s = ‖p‖, over live groups whose steps span eight decades, some barely alive."""
    rng, worst = np.random.default_rng(5), 0.0
    for m, spread in product((2, 3, 5, 20), (0, 4, 6)):
        t = 10 ** rng.uniform(-4, 4, (2000, m))
        t[:, :2] = 1e-4, 1e4
        x = rng.standard_normal(t.shape) * 10 ** rng.uniform(-spread, spread, t.shape)
        x *= (1 + 10 ** rng.uniform(-12, 8, (2000, 1))) / np.linalg.norm(x / t, axis=1, keepdims=True)
        s = np.linalg.norm(GroupLasso(1.0).prox(x, t), axis=1, keepdims=True)
        alive = np.linalg.norm(x / t, axis=1) > 1
        worst = max(worst, abs(np.linalg.norm(x / (s + t), axis=1) - 1)[alive].max())
    return worst


def test_newton_reaches_rounding(monkeypatch):
    assert newton_residual() < 1e-15
    monkeypatch.setattr(groups, "NEWTON_STEPS", 8)
    assert newton_residual() > 1e-12

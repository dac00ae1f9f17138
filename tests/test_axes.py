"""Axes: which numbers of a record are swept, and the grid that they span."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
import xarray as xr

from nonsmooth.axes import leaves_of, rebuilt, skeleton_of, span
from nonsmooth.objectives import Huber, LeastSquares, MaxQuadratic, Quadratic
from nonsmooth.penalties import L1, ElasticNet, GroupLasso
from nonsmooth.rules import Adam, Averaging, Cosine, Gradient, HeavyBall, InverseSqrt, StepDecay
from zoo import over


def array(values, *dims, **coords):
    return xr.DataArray(values, dims=dims, coords=coords)


def grid_of(*records, **extra):
    owners = ("objective", "rule", "penalty")
    return span([leaf for owner, record in zip(owners, records) for leaf in leaves_of(owner, record)], extra)


RECORDS = {
    "flat": Gradient(0.1),
    "swept": HeavyBall(lr=[0.1, 0.2], beta=0.5),
    "labelled": L1(lam=array([1.0, 2.0], "config")),
    "scheduled": HeavyBall(InverseSqrt([0.1, 0.2, 0.3]), StepDecay(0.5, every=3)),
    "wrapped": Averaging(Adam(Cosine([0.1, 0.2], steps=9), amsgrad=True), skip=4),
    "data": LeastSquares(np.eye(3), np.arange(3.0)),
    "structure": GroupLasso(2.0, groups=(0, 0, 1)),
}


@pytest.mark.parametrize("record", over(RECORDS))
def test_a_record_is_its_structure_and_its_numbers(record):
    numbers = {leaf.key: leaf.value for leaf in leaves_of("rule", record)}
    skeleton = skeleton_of(record)
    assert all(leaf.value is not None for leaf in leaves_of("rule", record))
    assert not list(leaves_of("rule", skeleton))
    assert rebuilt("rule", skeleton, numbers) == record
    assert rebuilt("penalty", skeleton, numbers) == skeleton  # another owner's numbers are not taken


def test_structure_is_told_apart_and_numbers_are_not():
    assert skeleton_of(Adam(0.1)) == skeleton_of(Adam([0.1, 0.2], beta1=0.5))
    assert hash(skeleton_of(Adam(0.1))) == hash(skeleton_of(Adam(0.2)))
    assert skeleton_of(Adam(0.1)) != skeleton_of(Adam(0.1, amsgrad=True))
    assert skeleton_of(Gradient(0.1)) != skeleton_of(Gradient(InverseSqrt(0.1)))
    assert skeleton_of(None) is None
    assert rebuilt("rule", None, {}) is None


def test_leaves_know_what_may_be_swept():
    leaves = {leaf.key: leaf.sweepable for leaf in leaves_of("penalty", L1([1.0, 2.0], weights=[1.0, 1.0]))}
    assert leaves == {("penalty", "lam"): True, ("penalty", "weights"): False}
    (leaf,) = leaves_of("rule", Averaging(Gradient(InverseSqrt(0.1))))
    assert (leaf.key, leaf.field) == (("rule", "rule", "lr", "lr"), "lr")


STEPS, LAMS = array([0.1, 0.2], "config"), array([1.0, 2.0], "config")

SIZES = {
    "nothing": ((Huber(), Gradient(0.1), L1(1.0)), {}, []),
    "one": ((Huber(), Gradient([0.1, 0.2])), {"lr": 2}, ["lr"]),
    "a-list-of-one": ((Huber(), Gradient([0.1])), {"lr": 1}, ["lr"]),
    "outer": (
        (Huber([1.0, 2.0]), HeavyBall([0.1], [0.5, 0.6, 0.7]), ElasticNet([1.0] * 4, [1.0] * 5)),
        {"delta": 2, "lr": 1, "beta": 3, "lam": 4, "ridge": 5},
        ["delta", "lr", "beta", "lam", "ridge"],
    ),
    "paired": ((Huber(), Gradient(STEPS), L1(LAMS)), {"config": 2}, ["lr", "lam"]),
    "paired-by-name": (
        (Huber(), Gradient(array([0.1, 0.2], "lr")), L1(array([1.0, 2.0], "lr"))),
        {"lr": 2},
        ["lam", "lr"],
    ),
    "paired-plane": (
        (Huber(), Gradient(array(np.ones((2, 3)), "a", "b")), L1(array(np.ones(3), "b"))),
        {"a": 2, "b": 3},
        ["lr", "lam"],
    ),
    "clash": (
        (MaxQuadratic(3, 2, gamma=[1.0, 2.0]), Gradient(StepDecay(0.1, 5, gamma=[0.5, 0.6, 0.7]))),
        {"objective_gamma": 2, "rule_gamma": 3},
        ["objective_gamma", "rule_gamma"],
    ),
    "clash-of-schedules": (
        (Huber(), Gradient([0.1, 0.2]), L1(InverseSqrt([1.0, 2.0, 3.0]))),
        {"rule_lr": 2, "penalty_lr": 3},
        ["rule_lr", "penalty_lr"],
    ),
    "clash-of-pairs": (
        (Huber(), Gradient(STEPS), L1(InverseSqrt(LAMS))),
        {"config": 2},
        ["rule_lr", "penalty_lr"],
    ),
    "clash-in-one-rule": (
        (Huber(), HeavyBall(InverseSqrt([0.1, 0.2]), InverseSqrt([0.5, 0.6, 0.7]))),
        {"rule_lr_lr": 2, "rule_beta_lr": 3},
        ["rule_beta_lr", "rule_lr_lr"],
    ),
    "clash-with-a-dimension": (
        (Huber(), Gradient([0.1, 0.2]), L1(array([1.0, 2.0, 3.0], "lr"))),
        {"rule_lr": 2, "lr": 3},
        ["lam", "rule_lr"],
    ),
    "other-labels": ((Huber(), Gradient(array([0.1, 0.2], "lr", lr=[7, 8]))), {"lr": 2}, ["lr", "rule_lr"]),
    "selected-before": (
        (Huber(), Gradient(array([0.1, 0.2], "config", lam=3.0, lr=0.1)), L1([1.0, 2.0])),
        {"config": 2, "lam": 2},
        ["lam", "lr"],
    ),
    "nested": ((Huber(), Averaging(Gradient(InverseSqrt([0.1, 0.2])))), {"lr": 2}, ["lr"]),
    "arrays-by-nature": ((Quadratic([1.0, 2.0]), Gradient(0.1), L1(1.0, weights=[1.0, 2.0])), {}, []),
    "number-in-an-array": ((Huber(), Gradient(np.array(0.1)), L1(np.float64(1.0))), {}, []),
}


@pytest.mark.parametrize(("records", "sizes", "labels"), over(SIZES))
def test_span(records, sizes, labels):
    grid = grid_of(*records)
    assert list(grid.sizes.items()) == list(sizes.items())
    assert sorted(grid.coords) == sorted(labels)
    assert (grid.shape, grid.runs) == (tuple(sizes.values()), int(np.prod([*sizes.values()], dtype=int)))
    xr.Dataset({}, grid.coords)  # the labels fit together
    assert all(grid.flat(labelled).shape == (grid.runs,) for labelled in grid.numbers.values())


def test_labels_are_the_values():
    grid = grid_of(Huber(), Gradient(STEPS), L1(InverseSqrt(LAMS)))
    coords = xr.Dataset({}, grid.coords).coords
    assert (coords["rule_lr"].values.tolist(), coords["penalty_lr"].values.tolist()) == ([0.1, 0.2], [1.0, 2.0])
    assert grid_of(Huber(), Gradient(array([0.1, 0.2], "lr"))).coords["lr"].tolist() == [0.1, 0.2]
    assert grid_of(Huber(), Gradient(array([0.1, 0.2], "lr", lr=[7, 8]))).coords["lr"].tolist() == [7, 8]


def test_flat_is_the_outer_product_in_order():
    starts = array(np.arange(4.0).reshape(2, 2), "start", "coordinate")
    grid = grid_of(Huber([1.0, 2.0]), Gradient([0.1, 0.2, 0.3]), x0=starts[:, 0])
    runs = list(product([1.0, 2.0], [0.1, 0.2, 0.3], [0, 1]))
    assert list(grid.sizes) == ["delta", "lr", "start"]
    assert grid.flat(grid.numbers["objective", "delta"]).tolist() == [delta for delta, _, _ in runs]
    assert grid.flat(grid.numbers["rule", "lr"]).tolist() == [lr for _, lr, _ in runs]
    assert grid.flat(starts, keep=("coordinate",)).tolist() == [starts.values[i].tolist() for _, _, i in runs]


@pytest.mark.parametrize(
    ("records", "sentence"),
    over(
        {
            "a-plane": (
                (Huber(), Gradient([[0.1, 0.2]])),
                "rule: lr has shape (1, 2); give a flat list, or a DataArray that names its dimensions.",
            ),
            "other-size": (
                (Huber(), Gradient(STEPS), L1(array([1.0], "config"))),
                "penalty: lam has 1 values along 'config', where another field has 2.",
            ),
            "other-labels": (
                (
                    Huber(),
                    Gradient(array([0.1, 0.2], "config", config=[1, 2])),
                    L1(array([1.0, 2.0], "config", config=[1, 3])),
                ),
                "penalty: lam disagrees with another field about the labels of 'config'.",
            ),
            "reserved": (
                (Huber(), Gradient(array([0.1, 0.2], "step"))),
                "rule: lr has a dimension called 'step', which every run has already; rename it.",
            ),
        }
    ),
)
def test_what_does_not_fit_gives_one_sentence(records, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        grid_of(*records)

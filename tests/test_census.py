"""The census: classes against numerics, spellings, places, counts, what hides kinks, and the command."""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import optimizer
from torch.utils.checkpoint import checkpoint

from nonsmooth.kinks import KINKS
from nonsmooth.torch.census import census
from nonsmooth.torch.census_command import census_of
from nonsmooth.torch.operations import C0, C1, DISCONTINUOUS, MOVES, SMOOTH, SMOOTHS, TABLE, kinks, name_of, returned
from nonsmooth.torch.spellings import SPELLINGS, derivative

STEP = 1e-6
ZERO = torch.zeros(1, dtype=torch.float64)


def at(*entries):
    return torch.tensor(entries, dtype=torch.float64)


# name: (a function of one number, its kink, its class); the function is called through torch's own name
ENTRYWISE = {
    "relu": (torch.relu, 0, C0),
    "relu6": (F.relu6, 6, C0),
    "leaky_relu": (F.leaky_relu, 0, C0),
    "prelu": (lambda x: F.prelu(x, at(0.25)), 0, C0),
    "rrelu": (F.rrelu, 0, C0),
    "elu": (lambda x: F.elu(x, 0.5), 0, C0),
    "elu, alpha 1": (F.elu, 0, C1),
    "celu": (lambda x: F.celu(x, 0.5), 0, C1),
    "selu": (F.selu, 0, C0),
    "softsign": (F.softsign, 0, C1),
    "softshrink": (F.softshrink, 0.5, C0),
    "hardshrink": (F.hardshrink, 0.5, DISCONTINUOUS),
    "hardtanh": (F.hardtanh, -1, C0),
    "hardswish": (F.hardswish, -3, C0),
    "hardsigmoid": (F.hardsigmoid, 3, C0),
    "threshold": (lambda x: F.threshold(x, 0.5, 0.0), 0.5, DISCONTINUOUS),
    "threshold at its value": (lambda x: F.threshold(x, 0.5, 0.5), 0.5, C0),
    "clamp": (lambda x: x.clamp(-2.0, 3.0), 3, C0),
    "clamp by tensors": (lambda x: x.clamp(at(-2.0), at(3.0)), -2, C0),
    "clamp_min": (lambda x: torch.clamp_min(x, 0.5), 0.5, C0),
    "clamp_max": (lambda x: torch.clamp_max(x, 0.5), 0.5, C0),
    "abs": (torch.abs, 0, C0),
    "sqrt": (torch.sqrt, 0, C0),
    "entr": (torch.special.entr, 0, C0),
    "pow": (lambda x: x**0.5, 0, C0),
    "pow 1.5": (lambda x: x**1.5, 0, C1),
    "float_power": (lambda x: torch.float_power(x, 0.5), 0, C0),
    "sign": (torch.sign, 0, DISCONTINUOUS),
    "sgn": (torch.sgn, 0, DISCONTINUOUS),
    "signbit": (torch.signbit, 0, DISCONTINUOUS),
    "heaviside": (lambda x: torch.heaviside(x, at(0.0)), 0, DISCONTINUOUS),
    "round": (torch.round, 0.5, DISCONTINUOUS),
    "floor": (torch.floor, 1, DISCONTINUOUS),
    "ceil": (torch.ceil, 1, DISCONTINUOUS),
    "trunc": (torch.trunc, 1, DISCONTINUOUS),
    "frac": (torch.frac, 1, DISCONTINUOUS),
    "remainder": (lambda x: torch.remainder(x, 1.0), 1, DISCONTINUOUS),
    "fmod": (lambda x: torch.fmod(x, 1.0), 1, DISCONTINUOUS),
    "floor_divide": (lambda x: torch.floor_divide(x, 1.0), 1, DISCONTINUOUS),
    "div": (lambda x: torch.div(x, 1.0, rounding_mode="floor"), 1, DISCONTINUOUS),
    "fake_quantize_per_tensor_affine": (
        lambda x: torch.fake_quantize_per_tensor_affine(x.float(), 1.0, 0, -8, 7),
        0.5,
        DISCONTINUOUS,
    ),
    "maximum": (lambda x: torch.maximum(x, ZERO), 0, C0),
    "minimum": (lambda x: torch.minimum(x, ZERO), 0, C0),
    "fmax": (lambda x: torch.fmax(x, ZERO), 0, C0),
    "fmin": (lambda x: torch.fmin(x, ZERO), 0, C0),
    "gt": (lambda x: x > 0, 0, DISCONTINUOUS),
    "ge": (lambda x: x >= 0, 0, DISCONTINUOUS),
    "lt": (lambda x: x < 0, 0, DISCONTINUOUS),
    "le": (lambda x: x <= 0, 0, DISCONTINUOUS),
    "eq": (lambda x: x == 0, 0, DISCONTINUOUS),
    "ne": (lambda x: x != 0, 0, DISCONTINUOUS),
}


def beside(*others):
    """The numbers that x is compared with, and x."""
    return lambda x: torch.cat([at(*others), x])


CHOICES = {
    "max": (lambda x: beside(1)(x).max(), 1, C0),
    "min": (lambda x: beside(1)(x).min(0).values, 1, C0),
    "amax": (lambda x: beside(1)(x).amax(), 1, C0),
    "amin": (lambda x: beside(1)(x).amin(0), 1, C0),
    "aminmax": (lambda x: beside(1, 2)(x).aminmax().max, 2, C0),
    "median": (lambda x: beside(1, 2)(x).median(), 1, C0),
    "nanmedian": (lambda x: beside(1, 2)(x).nanmedian(), 1, C0),
    "kthvalue": (lambda x: beside(1, 2)(x).kthvalue(2).values, 1, C0),
    "quantile": (lambda x: beside(1, 2)(x).quantile(0.5), 1, C0),
    "nanquantile": (lambda x: beside(1, 2)(x).nanquantile(0.5), 1, C0),
    "sort": (lambda x: beside(1)(x).sort().values[0], 1, C0),
    "msort": (lambda x: torch.msort(beside(1)(x))[0], 1, C0),
    "topk": (lambda x: beside(1)(x).topk(1).values, 1, C0),
    "cummax": (lambda x: beside(1)(x).cummax(0).values[1], 1, C0),
    "cummin": (lambda x: beside(1)(x).cummin(0).values[1], 1, C0),
    "max_pool1d": (lambda x: F.max_pool1d(beside(1)(x)[None], 2), 1, C0),
    "max_pool2d": (lambda x: F.max_pool2d(beside(1)(x)[None, None], (1, 2)), 1, C0),
    "max_pool3d": (lambda x: F.max_pool3d(beside(1)(x)[None, None, None], (1, 1, 2)), 1, C0),
    "adaptive_max_pool1d": (lambda x: F.adaptive_max_pool1d(beside(1)(x)[None], 1), 1, C0),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(beside(1)(x)[None, None], 1), 1, C0),
    "adaptive_max_pool3d": (lambda x: F.adaptive_max_pool3d(beside(1)(x)[None, None, None], 1), 1, C0),
    "argmax": (lambda x: beside(1)(x).argmax(), 1, DISCONTINUOUS),
    "argmin": (lambda x: beside(1)(x).argmin(), 1, DISCONTINUOUS),
    "argsort": (lambda x: beside(1)(x).argsort()[0], 1, DISCONTINUOUS),
    "bucketize": (lambda x: torch.bucketize(x, at(1.0)), 1, DISCONTINUOUS),
    "searchsorted": (lambda x: torch.searchsorted(at(1.0), x), 1, DISCONTINUOUS),
    "scatter_reduce": (lambda x: at(1.0).scatter_reduce(0, torch.tensor([0]), x, "amax"), 1, C0),
}

DISTANCES = {
    "norm": (lambda x: torch.norm(beside(0)(x)), 0, C0),
    "norm, p 1": (lambda x: torch.norm(beside(2)(x), 1), 0, C0),
    "norm, p ∞": (lambda x: torch.norm(beside(2)(x), math.inf), 2, C0),
    "norm, p 0": (lambda x: torch.norm(beside(2)(x), 0), 0, DISCONTINUOUS),
    "vector_norm": (lambda x: torch.linalg.vector_norm(beside(0)(x)), 0, C0),
    "linalg_norm": (lambda x: torch.linalg.norm(beside(0)(x)), 0, C0),
    "std": (lambda x: beside(1, 1)(x).std(), 1, C0),
    "hypot": (lambda x: torch.hypot(x, ZERO), 0, C0),
    "normalize": (lambda x: F.normalize(x, dim=0, eps=0.5), 0.5, C0),
    "dist": (lambda x: torch.dist(x, ZERO), 0, C0),
    "pairwise_distance": (lambda x: F.pairwise_distance(x[None], ZERO[None], eps=0.0), 0, C0),
    "cdist": (lambda x: torch.cdist(x[None], ZERO[None], 1.0), 0, C0),
    "l1_loss": (lambda x: F.l1_loss(x, ZERO), 0, C0),
    "smooth_l1_loss": (lambda x: F.smooth_l1_loss(x, ZERO, beta=0.5), 0.5, C1),
    "smooth_l1_loss, beta 0": (lambda x: F.smooth_l1_loss(x, ZERO, beta=0.0), 0, C0),
    "huber_loss": (lambda x: F.huber_loss(x, ZERO, delta=0.5), 0.5, C1),
    "hinge_embedding_loss": (lambda x: F.hinge_embedding_loss(x, at(-1.0), 0.5), 0.5, C0),
    "margin_ranking_loss": (lambda x: F.margin_ranking_loss(x, ZERO, at(1.0), 0.5), 0.5, C0),
    "multi_margin_loss": (lambda x: F.multi_margin_loss(beside(0)(x)[None], torch.tensor([1])), 1, C0),
    "multi_margin_loss, p 2": (lambda x: F.multi_margin_loss(beside(0)(x)[None], torch.tensor([1]), 2), 1, C1),
    "triplet_margin_loss": (
        lambda x: F.triplet_margin_loss(x[None], at(1.0)[None], at(3.0)[None], eps=0.0),
        1.5,
        C0,
    ),
}

EXAMPLES = {**ENTRYWISE, **CHOICES, **DISTANCES}

NOT_SHOWN = {
    "angle", "copysign", "isclose", "gumbel_softmax",
    "quantize_per_tensor", "quantize_per_channel", "quantize_per_tensor_dynamic", "fused_moving_avg_obs_fake_quant",
    "fake_quantize_per_channel_affine", "histc", "histogram", "mode", "unique", "unique_consecutive", "nonzero",
    "argwhere", "count_nonzero", "matrix_rank", "bincount", "index_reduce", "segment_reduce", "embedding_bag",
    "grid_sample", "fractional_max_pool2d", "fractional_max_pool3d", "rnn_relu", "rnn_relu_cell", "frobenius_norm",
    "std_mean", "svdvals", "eigvalsh", "eigh", "svd", "matrix_norm", "nuclear_norm", "cond", "pinv", "pinverse",
    "lp_pool1d", "lp_pool2d", "lp_pool3d", "renorm", "pdist", "cosine_similarity", "cosine_embedding_loss",
    "multilabel_margin_loss", "triplet_margin_with_distance_loss",
}  # fmt: skip
"""Of the table, what the numerics below do not test."""


class Calls(nn.Module):
    """A model that is one function, with a parameter added so that gradients pass."""

    def __init__(self, f):
        super().__init__()
        self.f = f
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, *x):
        return self.f(*(t + self.shift for t in x))


def ask(f, *x):
    return [row for row in census(Calls(f), *x).operations if row.name != "add"]


def numerically(f, x):
    """The class of f at x, from values and slopes at x ± STEP; at the border of a domain, from the slope inside."""
    before2, before, on, after, after2 = (float(f(at(x + k * STEP)).sum()) for k in (-2, -1, 0, 1, 2))
    if max(abs(v - on) for v in (before, after) if math.isfinite(v)) > 1e-2:
        return DISCONTINUOUS
    if not math.isfinite(before):
        return C0 if abs(after2 - after) / STEP > 10 else C1
    return C0 if abs((after2 - after) - (before - before2)) / STEP > 1e-2 else C1


def agrees(name):
    """The law: the class in the table is the one that the values show, at the kink, and beside it there is none."""
    f, x, smoothness = EXAMPLES[name]
    assert numerically(f, x) == smoothness
    assert numerically(f, x + 0.25) == C1, "elsewhere it has no kink"
    (found,) = [row for row in ask(f, at(x)) if row.smoothness != SMOOTH]
    assert found.smoothness == smoothness
    assert found.exact is None or found.exact >= 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_class_agrees_with_numerics(name):
    agrees(name)


@pytest.mark.parametrize(("name", "wrong"), [("relu", C1), ("huber_loss", C0), ("sign", C0), ("max", DISCONTINUOUS)])
def test_a_wrong_class_is_rejected(name, wrong, monkeypatch):
    right = TABLE[name]
    monkeypatch.setitem(TABLE, name, lambda *a, **k: dataclasses.replace(right(*a, **k), smoothness=wrong))
    with pytest.raises(AssertionError):
        agrees(name)


@pytest.mark.parametrize("name", ["relu", "max", "l1_loss", "round"])
def test_an_operation_that_is_missing_is_rejected(name, monkeypatch):
    monkeypatch.delitem(TABLE, name)
    with pytest.raises((AssertionError, ValueError)):
        agrees(name)
    with pytest.raises(AssertionError):
        covered()


def covered():
    shown = {re.split("[ ,]", name)[0] for name in EXAMPLES}
    assert shown | NOT_SHOWN == set(TABLE) and not shown & NOT_SHOWN


def test_the_table_holds_what_is_shown_here():
    covered()


@pytest.mark.parametrize("name", sorted({re.split("[ ,]", n)[0] for n in EXAMPLES}))
def test_every_spelling_has_the_name(name):
    """All of torch's own functions and methods of that name."""
    places = (torch, torch.Tensor, F, torch.linalg, torch.special)
    spelled = [getattr(p, n) for p in places for n in (name, f"{name}_", f"linalg_{name}") if hasattr(p, n)]
    assert all(name_of(f) in (name, "linalg_norm") for f in spelled if callable(f))


SPELLED = {
    "relu": (torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_, F.relu, F.relu_, nn.ReLU(), nn.ReLU(True)),
    "abs": (abs, torch.abs, torch.absolute, torch.Tensor.abs, torch.Tensor.abs_, torch.Tensor.absolute_),
    "clamp": (
        lambda x: x.clamp(0), lambda x: x.clip(min=0), lambda x: x.clamp_(0.0, None), lambda x: torch.clip(x, 0),
        lambda x: torch.clamp(input=x, min=0),
    ),
    "max": (lambda x: x.max(), lambda x: torch.max(x), lambda x: x.max(0).values, lambda x: torch.max(x, x)),
    "gt": (lambda x: x > 0, lambda x: x > 0, lambda x: x.gt(0), lambda x: torch.greater(x, torch.zeros(3))),
    "remainder": (lambda x: x % 1, lambda x: x.remainder(1.0), lambda x: torch.remainder(x, 1)),
    "floor_divide": (lambda x: x // 1, lambda x: torch.floor_divide(x, 1.0)),
    "pow": (lambda x: x**0.5, lambda x: x.pow(0.5), lambda x: torch.pow(x, 0.5)),
    "hardtanh": (F.hardtanh, F.hardtanh_, nn.Hardtanh()),
    "prelu": (nn.PReLU(), lambda x: F.prelu(x, torch.ones(1) / 4)),
    "celu": (torch.celu, F.celu, F.celu_, nn.CELU()),
    "threshold": (nn.Threshold(1.0, 2.0), lambda x: torch.threshold(x, 1.0, 2.0), lambda x: F.threshold_(x, 1.0, 2.0)),
    "l1_loss": (lambda x: nn.L1Loss()(x, x), lambda x: F.l1_loss(x, x, reduction="none")),
    "max_pool1d": (
        lambda x: torch.max_pool1d(x[None], 2), lambda x: F.max_pool1d(x[None], 2), lambda x: nn.MaxPool1d(2)(x[None]),
        lambda x: F.max_pool1d(x[None], 2, return_indices=True)[0],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "f"), [(name, f) for name, fs in SPELLED.items() for f in fs])
def test_every_spelling_is_seen_once(name, f):
    model = Calls(f)
    model.shift.data = model.shift.data.float()
    rows = [row for row in census(model, torch.tensor([0.0, 1.0, 1.0])).operations if row.smoothness != SMOOTH]
    assert [(row.calls, row.smoothness) for row in rows] == [(1, EXAMPLES[name][2] if name != "celu" else C1)]
    assert rows[0].name.strip("_").removesuffix("_with_indices") in (name, *ALSO)


ALSO = ("absolute", "clip", "greater", "max_pool1d")


def test_a_method_without_a_spelling_of_torch_is_no_kink():
    assert [kinks(f, (ZERO,)) for f in (torch.exp, F.gelu, F.leaky_relu)][:2] == [None, None]
    assert kinks(F.leaky_relu, (ZERO, 1.0)) is None and kinks(torch.pow, (ZERO, 2)) is None
    assert not SMOOTHS & MOVES and not {"relu", "abs", "sign"} & (SMOOTHS | MOVES)


@pytest.mark.parametrize(
    ("function", "spelling", "f", "x"),
    [
        ("max(x, 0)", "relu(x)", torch.relu, (at(0.0),)),
        ("max(x, 0)", "relu6(x)", F.relu6, (at(0.0),)),
        ("max(x, 0)", "hardtanh(x, 0, 6)", F.hardtanh, (at(0.0), 0.0, 6.0)),
        ("max(x, 0)", "clamp(x, min=0)", torch.clamp, (at(0.0), 0.0)),
        ("max(x₁, x₂)", "maximum(x₁, x₂)", torch.maximum, (at(1.0), at(1.0))),
        ("max(x₁, x₂)", "x.max()", torch.max, (at(1.0, 1.0),)),
        ("max(x₁, x₂)", "x.amax()", torch.amax, (at(1.0, 1.0),)),
        ("max(x₁, x₂)", "x.max(0).values", torch.max, (at(1.0, 1.0), 0)),
        ("max(x₁, x₂)", "max_pool1d(x)", F.max_pool1d, (at(1.0, 1.0)[None], 2)),
        ("|x|", "abs(x)", torch.abs, (at(0.0),)),
        ("‖x‖", "linalg.vector_norm(x)", torch.linalg.vector_norm, (at(0.0, 0.0),)),
        ("‖x‖", "x.norm()", torch.Tensor.norm, (at(0.0, 0.0),)),
    ],
)
def test_what_is_returned_is_what_autograd_returns(function, spelling, f, x):
    expected = derivative(SPELLINGS[function][spelling], KINKS[function].at)
    assert returned(f, x, {}, kinks(f, x).probes[0]) == expected


@pytest.mark.parametrize("name", [n for n, (_, _, c) in {**ENTRYWISE, **DISTANCES}.items() if c == C1])
def test_what_is_returned_where_a_derivative_exists_is_that_derivative(name):
    f, x, _ = EXAMPLES[name]
    (row,) = [row for row in ask(f, at(x)) if row.smoothness == C1]
    slopes = [v[-1] for label, v in row.returned if label not in ("-0.5", "-1")]
    there = x if name != "multi_margin_loss, p 2" else 1
    rate = float((f(at(there + STEP)) - f(at(there - STEP))).sum()) / (2 * STEP) if name != "pow 1.5" else 0.0
    assert abs(slopes[0] - rate) < 1e-4


def test_the_derivative_is_asked_of_the_operation_and_not_remembered():
    found = kinks(torch.relu, (ZERO,))
    assert returned(lambda x: 3 * x, (ZERO,), {}, found.probes[0]) == (3.0,)
    assert returned(torch.sign, (ZERO,), {}, found.probes[0]) == (0.0,)
    assert returned(torch.signbit, (ZERO,), {}, found.probes[0]) is None


@pytest.mark.parametrize(
    ("f", "x", "numbers", "exact"),
    [
        (torch.relu, at(-1.0, 0.0, 0.0, 2.0), 4, 2),
        (F.relu6, at(0.0, 6.0, 6.0, 7.0), 4, 3),
        (lambda x: x.clamp(at(0.0, 1.0), at(2.0, 2.0)), at(0.0, 2.0), 2, 2),
        (torch.round, at(0.5, -1.5, 1.0, 0.49), 4, 2),
        (torch.floor, at(0.0, 1.5, -2.0), 3, 2),
        (torch.trunc, at(0.0, 1.5, -2.0), 3, 1),
        (lambda x: torch.round(x, decimals=1), at(0.25, 0.75, 0.2), 3, 2),
        (lambda x: torch.maximum(x, at(0.0, 1.0)), at(0.0, 2.0), 2, 1),
        (lambda x: torch.maximum(x[:, None], x[None]), at(0.0, 2.0), 4, 2),
        (lambda x: x.max(), at(1.0, 2.0, 2.0, 2.0), 4, 3),
        (lambda x: x.max(), at(1.0, 1.0, 2.0), 3, 0),
        (lambda x: x.reshape(2, 2).amax(1), at(1.0, 1.0, 2.0, 1.0), 4, 2),
        (lambda x: x.reshape(2, 2).amax((0, 1)), at(1.0, 1.0, 2.0, 2.0), 4, 2),
        (lambda x: x.reshape(2, 2).min(0).values, at(1.0, 1.0, 1.0, 3.0), 4, 2),
        (lambda x: x.sort().values, at(3.0, 1.0, 3.0, 2.0), 4, 2),
        (lambda x: x.topk(2).values, at(3.0, 3.0, 1.0, 1.0), 4, 2),
        (lambda x: x.topk(2).values, at(3.0, 1.0, 1.0, 0.0), 4, 2),
        (lambda x: x.median(), at(1.0, 1.0, 2.0), 3, 2),
        (lambda x: x.cummax(0).values, at(1.0, 2.0, 1.0, 2.0), 4, 1),
        (lambda x: x.norm(), at(0.0, 1.0), 2, 0),
        (lambda x: x.norm(), at(0.0, 0.0), 2, 2),
        (lambda x: x.norm(1), at(0.0, 1.0), 2, 1),
        (lambda x: x.reshape(2, 2).norm(dim=1), at(0.0, 0.0, 0.0, 1.0), 4, 2),
        (lambda x: torch.cdist(x.reshape(2, 2), at(0.0, 1.0)[None], 1.0), at(0.0, 0.0, 1.0, 1.0), 4, 2),
        (lambda x: F.l1_loss(x, at(1.0, 1.0)), at(1.0, 2.0), 2, 1),
        (lambda x: F.huber_loss(x, at(1.0, 1.0)), at(2.0, 1.0), 2, 1),
        (lambda x: F.multi_margin_loss(x[None], torch.tensor([0])), at(1.0, 0.0, 0.0), 3, 2),
        (lambda x: F.hinge_embedding_loss(x, at(-1.0, 1.0)), at(1.0, 1.0), 2, 1),
        (lambda x: x > 0, at(0.0, 1.0, 0.0), 3, 2),
        (lambda x: F.max_pool1d(x[None], 2), at(1.0, 1.0, 0.0, 2.0), 4, 2),
        (lambda x: F.max_pool1d(x[None], 2, 1), at(1.0, 1.0, 1.0, 2.0), 4, 3),
    ],
)
def test_the_counts(f, x, numbers, exact):
    row = next(row for row in ask(f, x) if row.smoothness != SMOOTH)
    assert (row.calls, row.numbers, row.exact) == (1, numbers, exact)


def tied_slowly(pool, x):
    """A window holds what moves its output when all else is far below; a number ties if it equals the window's best."""
    low = torch.full_like(x, -1e6)
    holds = []
    for i in range(x.numel()):
        alone = low.clone()
        alone.view(-1)[i] = 1.0
        holds.append(pool(alone).flatten() == 1.0)
    best, found = pool(x).flatten(), set()
    for w in range(best.numel()):
        equal = [i for i in range(x.numel()) if holds[i][w] and x.flatten()[i] == best[w]]
        found |= set(equal) if len(equal) > 1 else set()
    return len(found)


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool1d(3, 2, 1), nn.MaxPool1d(2, 3, ceil_mode=True), nn.MaxPool1d(2, 1, 0, 2), nn.MaxPool1d(3, 2, 1, 2),
        nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d((2, 3), (1, 2), (0, 1), ceil_mode=True),
        nn.MaxPool3d(2, 1), nn.AdaptiveMaxPool1d(4), nn.AdaptiveMaxPool2d((2, None)), nn.AdaptiveMaxPool3d(2),
    ],
)  # fmt: skip
def test_the_ties_of_a_pool_against_the_slow_twin(pool):
    axes = int(type(pool).__name__[-2])
    shape = (1, 2, *((7,), (5, 6), (3, 4, 3))[axes - 1])
    for seed in range(3):
        x = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed)).double()
        (row,) = ask(pool, x)
        assert row.exact == tied_slowly(pool, x)


MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.act = nn.Sequential(nn.ReLU())

    def forward(self, x):
        x = self.act(self.linear(x))  # line 13
        return x.abs()  # line 14


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])

    def forward(self, x):
        for _ in range(3):
            for layer in self.layers:
                x = layer(x)
        return torch.relu(
            x
        )  # line 26


def build():
    return Net(), torch.ones(4, 2), lambda out: (out - 1).abs().mean()  # line 32
"""


def test_the_places_are_right_and_calls_are_merged_by_place(tmp_path, monkeypatch):
    (tmp_path / "places_of_a_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    found = census_of("places_of_a_model:build")
    rows = [
        (row.name, row.module, row.place.removeprefix("places_of_a_model.py:"), row.calls) for row in found.operations
    ]
    assert rows == [
        ("linear", "layers.0.linear", "13", 3),
        ("relu", "layers.0.act.0", "13", 3),
        ("abs", "layers.0", "14", 3),
        ("linear", "layers.1.linear", "13", 3),
        ("relu", "layers.1.act.0", "13", 3),
        ("abs", "layers.1", "14", 3),
        ("relu", "", "26", 1),
        ("sub", "", "32", 1),
        ("abs", "", "32", 1),
        ("mean", "", "32", 1),
    ]
    assert [row.numbers for row in found.operations[:3]] == [24, 24, 24]


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return g


class NewStyle(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.clamp(min=0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g


class ByNumPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.new_tensor(np.sign(x.detach().numpy()))

    @staticmethod
    def backward(ctx, g):
        return g


def branches(x):
    return 2 * x if x.sum() > 0 else x


def writes(x):
    y = x.clone()
    y[y < 0] = 0
    return y


def under_no_grad(x):
    with torch.no_grad():
        sign = x.sign()
    return x * sign


def scripted_relu(x):
    return torch.jit.script(_relu)(x).sum()


def _relu(x):
    return torch.relu(x) + 1


apply = Straight.apply

HIDDEN = {
    "x * (x > 0)": (lambda x: x * (x > 0), "by hand", "mul with the result of gt"),
    "(x > 0).float() * x": (lambda x: (x > 0).double() * x, "by hand", "mul with the result of gt"),
    "x * (x.detach() > 0)": (lambda x: x * (x.detach() > 0), "detached", "mul with a detached value"),
    "~(x < 0)": (lambda x: x * ~(x < 0), "by hand", "mul with the result of lt"),
    "y[y < 0] = 0": (writes, "by hand", "setitem with the result of lt"),
    "x[x > 0]": (lambda x: x[x > 0], "by hand", "getitem with the result of gt"),
    "where": (lambda x: torch.where(x > 0, x, 0.0), "by hand", "where with the result of gt"),
    "masked_fill": (lambda x: x.masked_fill(x < 0, 0.0), "by hand", "masked_fill with the result of lt"),
    "masked_fill_": (lambda x: (1 * x).masked_fill_(x < 0, 0.0), "by hand", "masked_fill_ with the result of lt"),
    "if t > 0": (branches, "branch", "bool() of the result of gt"),
    "if t": (lambda x: x if x.sum() else -x, "branch", "bool() of a value that a gradient passes"),
    "item": (lambda x: x * x.sum().item(), "read by Python", "item() of a value that a gradient passes"),
    "float": (lambda x: x * float(x.detach().sum()), "read by Python", "float() of a detached value"),
    "argmax": (lambda x: x[x.argmax()], "choice", "getitem with the choice of argmax"),
    "topk's indices": (lambda x: x.gather(0, x.topk(2).indices), "choice", "gather with the choice of topk"),
    "round straight through": (lambda x: x + (x.round() - x).detach(), "detached", "add with a detached value"),
    ".data": (lambda x: x + (x.sign() - x).data, "detached", "add with a detached value"),
    "no_grad": (under_no_grad, "detached", "mul with a value computed under no_grad"),
    "autograd.Function": (lambda x: apply(x), "autograd.Function", "Straight, with a backward of its own"),
    "setup_context": (lambda x: NewStyle.apply(x), "autograd.Function", "NewStyle, with a backward of its own"),
    "by NumPy": (lambda x: ByNumPy.apply(x), "autograd.Function", "ByNumPy, with a backward of its own"),
    "unknown": (lambda x: torch.special.airy_ai(x.detach()) + x, "unknown", None),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_hides_kinks_is_listed(name):
    f, kind, what = HIDDEN[name]
    found = census(Calls(f), at(-1.0, 0.5, 2.0)).hidden
    (listed,) = [h for h in found if h.kind == kind]
    assert what is None or listed.what == what
    assert (
        listed.calls == 1 and listed.place.startswith("tests/test_census.py:")
    ) or "/test_census.py:" in listed.place


def test_a_choice_counts_where_the_graph_takes_it_back():
    def idle(x):
        return x.exp(), x.argmax(), x > 0

    def used(x):
        return x[x.argmax()] * (x > 0)

    assert census(Calls(idle), at(0.0, 1.0)).kinks == ()
    assert [row.name for row in census(Calls(used), at(0.0, 1.0)).kinks] == ["argmax", "gt"]


def test_what_hides_nothing_is_not_listed():
    def plain(x):
        keep = torch.zeros_like(x)  # no value of x is in it
        logged = (x > 0).sum()  # read by nobody
        return (x + keep).relu() * (torch.arange(3) > 1), logged, x.detach().mean()

    assert census(Calls(plain), at(-1.0, 0.5, 2.0)).hidden == ()


def test_an_autograd_function_is_counted_at_each_place():
    def twice(x):
        for _ in range(3):
            x = apply(x)
        return NewStyle.apply(NewStyle.apply(x))

    found = {h.what.split(",")[0]: h.calls for h in census(Calls(twice), at(1.0)).hidden}
    assert found == {"Straight": 3, "NewStyle": 2}
    rows = census(Calls(twice), at(1.0)).operations
    assert {row.name for row in rows} == {"add"}, "what is inside has a backward of its own"


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_and_traced_modules_are_listed_and_their_outputs_are_seen_to_come_from_them():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for kind, made in (("scripted", torch.jit.script(net())), ("traced", torch.jit.trace(net(), x))):
        whole, part = census(made, x).hidden, census(nn.Sequential(made, nn.ReLU()), x)
        assert [h.kind for h in whole][:1] == [kind] and [(h.kind, h.module) for h in part.hidden][:1] == [(kind, "0")]
        assert [(row.name, row.module) for row in part.operations] == [("relu", "1")]


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_function_is_listed():
    found = census(Calls(scripted_relu), at(1.0)).hidden
    assert [h.kind for h in found] == ["unseen"]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own compiler scripts when it is imported
def test_compiled_modules_are_looked_at_as_the_eager_ones():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    plain = census(net(), x)
    for model in (torch.compile(net()), nn.Sequential(torch.compile(net()))):
        found = census(model, x)
        assert [h.kind for h in found.hidden] == ["compiled"]
        assert [(row.name, row.exact) for row in found.operations] == [
            (row.name, row.exact) for row in plain.operations
        ]
    in_place = net()
    in_place.compile()
    assert [h.kind for h in census(in_place, x).hidden] == ["compiled"]


def test_kernels_with_kinks_inside_are_listed():
    for model in (nn.RNN(2, 3, nonlinearity="relu"), nn.RNNCell(2, 3, nonlinearity="relu")):
        found = census(model, torch.zeros(4, 2))
        assert [h.kind for h in found.hidden] == ["inside a kernel"]
        assert [(row.smoothness, row.exact) for row in found.kinks] == [(C0, None)]
    assert not census(nn.RNN(2, 3), torch.zeros(4, 2)).kinks and not census(nn.LSTM(2, 3), torch.zeros(4, 2)).kinks


def test_smooth_networks_have_no_kinks():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2), nn.Softmax(-1))
    found = census(model, torch.ones(5, 3), loss=lambda p: F.mse_loss(p, torch.zeros(5, 2)))
    assert not found.kinks and not found.hidden
    assert found.summary == "no kinks where a gradient passes: 6 operations, C^∞. Nothing hides any."
    huber = census(model, torch.ones(5, 3), loss=lambda p: F.huber_loss(p, torch.zeros(5, 2)))
    assert "but for 1 that are C¹" in huber.summary


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_part_is_seen(reentrant):
    def part(x):
        return checkpoint(torch.relu, x, use_reentrant=reentrant)

    (row,) = ask(part, at(0.0, 1.0))
    assert (row.name, row.exact, row.returned) == ("relu", 1, (("0", (0.0,)),))


def test_a_function_that_is_mapped_is_seen_though_its_numbers_cannot_be_read():
    row = next(row for row in ask(torch.vmap(torch.relu), at(0.0, 1.0)) if row.name == "relu")
    assert row.smoothness == C0 and row.exact is None


def test_attention_is_one_operation():
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).eval()
    rows = census(model, torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))).operations
    assert [row.name for row in rows].count("multi_head_attention_forward") == 1
    assert [(row.name, row.module) for row in rows if row.has_kinks] == [("relu", "")]


def state(model):
    drawn = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())
    tensors = [t.detach().numpy().tobytes() for t in (*model.parameters(), *model.buffers())]
    grads = [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()]
    return drawn, tensors, grads, [m.training for m in model.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_disturbed(training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.RReLU(inplace=True), nn.Dropout(0.5)).train(training)
    model[0].weight.grad = torch.ones(4, 3)
    x = torch.randn(6, 3)
    before, kept, version = state(model), copy.deepcopy(x), x._version
    hooks = len(torch.nn.modules.module._global_forward_pre_hooks)
    census(model, x, loss=lambda out: (out * torch.rand_like(out)).abs().sum())
    assert state(model) == before and torch.equal(x, kept) and x._version == version
    assert len(torch.nn.modules.module._global_forward_pre_hooks) == hooks


def test_a_model_that_fails_leaves_no_mode_behind():
    model = Calls(lambda x: x.nothing)
    with pytest.raises(AttributeError, match="nothing"):
        census(model, at(1.0))
    assert torch.overrides._get_current_function_mode_stack() == []


def test_frozen_models_are_told_apart():
    model = net().requires_grad_(False)
    found = census(model, torch.ones(2, 3))
    assert not found.kinks and "(no gradient passes)" in str(found)


def test_as_text():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    said = str(census(model, torch.zeros(3, 2), loss=lambda out: (out * (out > 0)).sum()))
    assert said.splitlines()[0] == (
        "census: 2 of 5 operations have kinks (1 C⁰, 1 discontinuous); of 12 numbers there, 12 lie exactly on one. "
        "What may hide more: by hand (1)."
    )
    assert "relu       C⁰" in said and "0 at 0" in said and "mul with the result of gt" in said


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: census(torch.relu, ZERO), "census: model must be a torch.nn.Module, not builtin_function_or_method"),
        (lambda: census(nn.ReLU(), ZERO, loss=3), "census: loss must be a function of what the model returns, not int"),
    ],
)
def test_wrong_arguments(call, says):
    with pytest.raises(TypeError, match=re.escape(says)):
        call()


SCRIPT = """
import sys
import torch
from torch import nn

print("began", *sys.argv[1:])
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
criterion = nn.L1Loss()
optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
with torch.no_grad():
    model(torch.ones(1, 3))  # not yet
try:
    for _ in range(2):
        loss = criterion(model(torch.ones(2, 3)), torch.zeros(2, 1))  # line 15
        loss = loss + 0.1 * model[0].weight.abs().sum()  # line 16
        END
        print("never")
except Exception:
    print("never")
finally:
    print("left")
"""


@pytest.mark.parametrize(
    "end",
    [
        "loss.backward()", "torch.autograd.backward(loss)", "(2 * loss).backward()",
        "optimiser.step()", "optimiser.step(lambda: loss.backward())",
    ],
)  # fmt: skip
def test_a_script_runs_to_its_first_backward(end, tmp_path, monkeypatch, capsys):
    (tmp_path / "train.py").write_text(SCRIPT.replace("END", end.replace("never", "")))
    monkeypatch.chdir(tmp_path)
    argv, path = sys.argv, list(sys.path)
    found = census_of("train.py", ["--epochs", "3"])
    assert capsys.readouterr().out == "began --epochs 3\nleft\n"
    rows = [(row.name, row.module, row.place, row.calls) for row in found.operations][:7]
    assert rows == [
        ("linear", "0", "train.py:15", 1),
        ("relu", "1", "train.py:15", 1),
        ("linear", "2", "train.py:15", 1),
        ("l1_loss", "L1Loss", "train.py:15", 1),
        ("abs", "", "train.py:16", 1),
        ("sum", "", "train.py:16", 1),
        ("mul", "", "train.py:16", 1),
    ]
    assert (sys.argv, sys.path) == (argv, path)
    assert torch.overrides._get_current_function_mode_stack() == []
    assert not optimizer._global_optimizer_pre_hooks


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("print(1)", "train.py: it called no model whose parameters learn; name a factory that builds one instead."),
        ("1 / 0", "train.py: it raised ZeroDivisionError: division by zero (train.py:1), before its first backward();"),
        ("raise SystemExit(3)", "train.py: it left with exit code 3, before its first backward();"),
        ("import sys; sys.exit('no data')", "train.py: it said: no data, before its first backward();"),
        ("def", "train.py: is not a Python script (invalid syntax, line 1)"),
    ],
)
def test_a_script_without_a_model_ends_in_one_sentence(source, says, tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        census_of("train.py")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("target", "arguments", "says"),
    [
        ("nowhere.py", [], "nowhere.py: there is no such file."),
        ("nonsense", [], "census: 'nonsense' is neither a script, as train.py, nor a factory, as module:factory."),
        ("no_such_module:build", [], "census: no_such_module cannot be imported: ModuleNotFoundError: No module named"),
        ("built_models:none", [], "census: built_models has no function 'none'."),
        ("built_models:wrong", [], "census: built_models:wrong must return (model, inputs) or"),
        (
            "built_models:fails",
            [],
            "census: built_models:fails raised KeyError: 'x' (built_models.py:4).",
        ),
        (
            "built_models:unfit",
            [],
            "census: the model of built_models:unfit raised RuntimeError: mat1 and",
        ),
        ("built_models:good", ["-x"], "census: a factory takes no arguments, but '-x' was given."),
    ],
)
def test_a_wrong_target_ends_in_one_sentence(target, arguments, says, tmp_path, monkeypatch):
    (tmp_path / "built_models.py").write_text(
        "import torch\nwrong = lambda: 3\ndef fails():\n    return {}['x']\n"
        "unfit = lambda: (torch.nn.Linear(2, 1), torch.ones(3))\ngood = lambda: (torch.nn.ReLU(), torch.ones(3))\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        census_of(target, arguments)
    assert "\n" not in str(raised.value)


def test_a_factory_without_a_loss(tmp_path, monkeypatch):
    (tmp_path / "factory_without_loss.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Bilinear(2, 2, 1), (torch.ones(3, 2), torch.ones(3, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert [row.name for row in census_of("factory_without_loss:build").operations] == ["bilinear"]

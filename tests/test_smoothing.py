"""Smoothing: each twin is within its bound in every spelling, smooth at kinks, and the original where it is smooth."""

from __future__ import annotations

import copy
import math
import random
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nonsmooth.torch.census import census
from nonsmooth.torch.smoothing import Smoothing, smoothed, smoothing
from nonsmooth.torch.steps import measure_step
from nonsmooth.torch.twins import TWINS, ramp
from nonsmooth.torch.undisturbed import undisturbed

F = functional
LOG2 = math.log(2)
BETAS = (3.0, 40.0)
Y = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 4, 2, 1, 3, 7])
LOW = -Y.abs()
SIGNS = torch.where(Y.sum(1) > 0, 1.0, -1.0).double()
SELU = 1.0507009873554805 * (1.6732632423543772 - 1)

SPELLINGS = {  # name: (function of a (6, 8) tensor, what it is off by in units of 1/β)
    "torch.relu": (torch.relu, LOG2),
    "F.relu": (F.relu, LOG2),
    "Tensor.relu": (lambda z: z.relu(), LOG2),
    "relu_": (lambda z: torch.relu_(z * 1), LOG2),
    "F.relu in place": (lambda z: F.relu(z * 1, inplace=True), LOG2),
    "F.relu in place, by position": (lambda z: F.relu(z * 1, True), LOG2),
    "Tensor.relu_": (lambda z: (z * 1).relu_(), LOG2),
    "nn.ReLU": (nn.ReLU(), LOG2),
    "nn.ReLU in place": (lambda z: nn.ReLU(inplace=True)(z * 1), LOG2),
    "relu6": (lambda z: F.relu6(4 * z), LOG2),
    "nn.ReLU6": (lambda z: nn.ReLU6()(4 * z), LOG2),
    "threshold": (lambda z: F.threshold(z, 0.25, 0.25), LOG2),
    "leaky_relu": (lambda z: F.leaky_relu(z, 0.25), 0.75 * LOG2),
    "nn.LeakyReLU": (nn.LeakyReLU(), 0.99 * LOG2),
    "leaky_relu_": (lambda z: F.leaky_relu(z * 1, 2.0, inplace=True), LOG2),
    "prelu": (lambda z: F.prelu(z, torch.linspace(-1, 0.5, 8, dtype=z.dtype)), 2 * LOG2),
    "nn.PReLU": (nn.PReLU(dtype=torch.float64), 0.75 * LOG2),
    "rrelu": (lambda z: F.rrelu(z, 0.1, 0.3), 0.8 * LOG2),
    "nn.RReLU": (nn.RReLU(0.25, 0.25).train(), 0.75 * LOG2),
    "torch.abs": (torch.abs, 2 * LOG2),
    "abs()": (abs, 2 * LOG2),
    "absolute": (lambda z: z.absolute(), 2 * LOG2),
    "abs_": (lambda z: (z * 1).abs_(), 2 * LOG2),
    "complex abs": (lambda z: torch.complex(z, Y).abs(), 1.0),
    "maximum": (lambda z: torch.maximum(z, Y), LOG2),
    "minimum": (lambda z: torch.minimum(z, Y[0]), LOG2),
    "max of two": (lambda z: torch.max(z, Y), LOG2),
    "max of two, by name": (lambda z: torch.max(z, other=Y), LOG2),
    "min of two": (lambda z: z.min(Y), LOG2),
    "fmax": (lambda z: torch.fmax(z, Y), LOG2),
    "fmin": (lambda z: z.fmin(Y), LOG2),
    "clamp": (lambda z: z.clamp(-0.5, 0.5), LOG2),
    "clamp, narrow": (lambda z: torch.clamp(z, -0.01, 0.01), LOG2),
    "clamp, no upper end": (lambda z: z.clamp(min=0.25, max=math.inf), LOG2),
    "clamp to tensors": (lambda z: torch.clamp(z, min=LOW, max=-LOW / 2), LOG2),
    "clip": (lambda z: torch.clip(z, max=0.25), LOG2),
    "clip_": (lambda z: (z * 1).clip_(max=0.25), LOG2),
    "clamp_min": (lambda z: torch.clamp_min(z, 0.25), LOG2),
    "clamp_max_": (lambda z: (z * 1).clamp_max_(0.25), LOG2),
    "hardtanh": (F.hardtanh, LOG2),
    "nn.Hardtanh": (nn.Hardtanh(-0.5, 1.5), LOG2),
    "hardswish": (lambda z: F.hardswish(3 * z), LOG2 / 2 + 1e-4),
    "nn.Hardswish": (lambda z: nn.Hardswish()(3 * z), LOG2 / 2 + 1e-4),
    "hardsigmoid": (lambda z: F.hardsigmoid(3 * z), LOG2 / 6),
    "softshrink": (F.softshrink, LOG2),
    "elu, alpha 2": (lambda z: F.elu(z, 2.0), LOG2),
    "elu, alpha 0.5 in place": (lambda z: F.elu(z * 1, 0.5, True), 0.5 * LOG2),
    "nn.ELU, alpha 2": (nn.ELU(2.0), LOG2),
    "selu": (F.selu, SELU * LOG2),
    "max": (lambda z: z.max(), math.log(48)),
    "max over a dimension": (lambda z: z.max(1).values, math.log(8)),
    "max, kept": (lambda z: torch.max(z, dim=0, keepdim=True)[0], math.log(6)),
    "min": (lambda z: z.min(), math.log(48)),
    "min over a dimension": (lambda z: z.min(dim=-1)[0], math.log(8)),
    "amax": (lambda z: z.amax(1), math.log(8)),
    "amax over all": (lambda z: torch.amax(z), math.log(48)),
    "amin over two": (lambda z: z.amin((0, 1), keepdim=True), math.log(48)),
    "aminmax": (lambda z: torch.stack(torch.aminmax(z)), math.log(48)),
    "cummax": (lambda z: z.cummax(1)[0], math.log(8)),
    "cummin": (lambda z: z.cummin(0).values, math.log(6)),
    "F.max_pool1d": (lambda z: F.max_pool1d(z[None], 3, 2, 1), math.log(3)),
    "torch.max_pool1d": (lambda z: torch.max_pool1d(z[None], 2), math.log(2)),
    "max_pool1d, dilated": (lambda z: F.max_pool1d(z[None], 2, 1, dilation=3), math.log(2)),
    "max_pool1d, ceil": (lambda z: F.max_pool1d(z[None], 3, 3, ceil_mode=True), math.log(3)),
    "F.max_pool2d": (lambda z: F.max_pool2d(z[None, None], 2, padding=1), math.log(4)),
    "max_pool2d, odd": (lambda z: F.max_pool2d(z[None], (3, 2), (2, 1), (1, 0), (1, 2), True), math.log(6)),
    "max_pool2d, ceil": (lambda z: F.max_pool2d(z[None, None], 3, 2, 1, ceil_mode=True), math.log(9)),
    "max_pool2d with indices": (lambda z: F.max_pool2d(z[None], 2, return_indices=True)[0], math.log(4)),
    "nn.MaxPool2d": (lambda z: nn.MaxPool2d(2)(z[None]), math.log(4)),
    "max_pool3d": (lambda z: F.max_pool3d(z.reshape(1, 3, 4, 4), (1, 2, 2)), math.log(4)),
    "nn.MaxPool3d": (lambda z: nn.MaxPool3d(2, 1, 1)(z.reshape(1, 3, 4, 4)), math.log(8)),
    "adaptive_max_pool1d": (lambda z: F.adaptive_max_pool1d(z[None], 3), math.log(4)),
    "torch.adaptive_max_pool1d": (lambda z: torch.adaptive_max_pool1d(z[None], 3)[0], math.log(4)),
    "adaptive_max_pool2d": (lambda z: F.adaptive_max_pool2d(z[None], (2, None)), math.log(3)),
    "nn.AdaptiveMaxPool2d": (lambda z: nn.AdaptiveMaxPool2d(4)(z[None]), math.log(6)),
    "adaptive_max_pool3d": (lambda z: F.adaptive_max_pool3d(z.reshape(1, 3, 4, 4), 2), math.log(8)),
    "l1_loss": (lambda z: F.l1_loss(z, Y), 2 * LOG2),
    "nn.L1Loss, summed": (lambda z: nn.L1Loss(reduction="sum")(z, Y), 48 * 2 * LOG2),
    "smooth_l1_loss, beta 0": (lambda z: F.smooth_l1_loss(z, Y, beta=0.0), 2 * LOG2),
    "hinge_embedding_loss": (lambda z: F.hinge_embedding_loss(z[:, 0], SIGNS), LOG2),
    "margin_ranking_loss": (lambda z: F.margin_ranking_loss(z[:, 0], z[:, 1], SIGNS, 0.25), LOG2),
    "multi_margin_loss": (lambda z: F.multi_margin_loss(z, LABELS), LOG2),
    "nn.MultiMarginLoss": (lambda z: nn.MultiMarginLoss(margin=0.5)(z, LABELS), LOG2),
    "triplet_margin_loss": (lambda z: F.triplet_margin_loss(z, Y, z.flip(0)), LOG2 + 2),
    "triplet, swapped": (lambda z: F.triplet_margin_loss(z, Y, z.flip(0), swap=True), 2 * LOG2 + 2),
    "triplet of a distance": (
        lambda z: F.triplet_margin_with_distance_loss(z, Y, z.flip(0), swap=True),
        2 * LOG2 + 2,
    ),
    "cosine_embedding_loss": (lambda z: F.cosine_embedding_loss(z, Y, SIGNS), LOG2),
    "hinge by clamp": (lambda z: (1 - SIGNS * z[:, 0]).clamp(min=0).mean(), LOG2),
    "norm": (lambda z: z.norm(), 1.0),
    "norm, p = 1": (lambda z: z.norm(p=1), 48 * 2 * LOG2),
    "torch.norm along a dimension": (lambda z: torch.norm(z, 2, 1), 1.0),
    "linalg.norm": (lambda z: torch.linalg.norm(z), 1.0),
    "linalg.norm of rows": (lambda z: torch.linalg.norm(z, dim=1, ord=math.inf), math.log(16)),
    "matrix_norm": (lambda z: torch.linalg.matrix_norm(z), 1.0),
    "vector_norm, p = inf": (lambda z: torch.linalg.vector_norm(z, math.inf, dim=1, keepdim=True), math.log(16)),
    "vector_norm, p = 3": (lambda z: torch.linalg.vector_norm(z, 3, dim=1), 2.0),
    "vector_norm, p = 1.5": (lambda z: torch.linalg.vector_norm(z, 1.5, dim=1), 4.0),
    "pairwise_distance": (lambda z: F.pairwise_distance(z, Y), 1.0),
    "pairwise_distance, p = 1": (lambda z: F.pairwise_distance(z, Y, 1), 16 * LOG2),
    "cdist": (lambda z: torch.cdist(z, Y), 1.0),
    "cdist, p = 1": (lambda z: torch.cdist(z, Y, p=1), 16 * LOG2),
    "dist": (lambda z: torch.dist(z, Y), 1.0),
    "hypot": (lambda z: torch.hypot(z, Y), 1.0),
    "std": (lambda z: z.std(1), 1.0),
    "std_mean": (lambda z: torch.stack(torch.std_mean(z, 0)), 1.0),
    "sqrt of squares": (lambda z: z.square().sum(1).sqrt(), 1.0),
    "RNNCell": (lambda z: _cell(z), LOG2),
}
torch.manual_seed(0)
_cell = nn.RNNCell(8, 3, nonlinearity="relu", dtype=torch.float64)


def points(seed=3):
    """Numbers at several scales, some of them exactly on kinks and ties."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(6, 8, dtype=torch.float64, generator=rng) * 10.0 ** torch.randint(-3, 2, (6, 8), generator=rng)
    z[0, :4] = torch.tensor([0.0, 0.25, 0.25, -0.5])
    return z


def run(f, z):
    random.seed(0)
    torch.manual_seed(0)
    return f(z)


def is_within(f, bound, beta, z):
    with smoothing(beta) as mode:
        twin = run(f, z)
    own = run(f, z)
    assert twin.shape == own.shape and twin.dtype == own.dtype and mode.left == ()
    return float((twin - own).detach().abs().max()) <= bound / beta + 1e-12 * (1 + float(own.detach().abs().max()))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", SPELLINGS)
def test_twins_are_within_their_bounds(name, beta):
    f, bound = SPELLINGS[name]
    assert all(is_within(f, bound, beta, points(seed)) for seed in range(3))


ATTAINED = {  # where a twin is as far off as it can be
    "torch.relu": (0.0, LOG2),
    "torch.abs": (0.0, 2 * LOG2),
    "leaky_relu": (0.0, 0.75 * LOG2),
    "clamp_min": (0.25, LOG2),
    "hardtanh": (1.0, LOG2),
    "nn.ReLU6": (1.5, LOG2),
    "hardsigmoid": (1.0, LOG2 / 6),
    "hardswish": (-1.0, LOG2 / 2),
    "softshrink": (0.5, LOG2),
    "selu": (0.0, SELU * LOG2),
    "elu, alpha 2": (0.0, LOG2),
    "amax": (0.7, math.log(8)),
    "amin over two": (0.7, math.log(48)),
    "nn.MaxPool2d": (0.7, math.log(4)),
    "adaptive_max_pool1d": (0.7, math.log(4)),
    "norm": (0.0, 1.0),
    "norm, p = 1": (0.0, 48 * 2 * LOG2),
    "vector_norm, p = inf": (0.0, math.log(16)),
    "vector_norm, p = 3": (0.0, 2.0),
    "sqrt of squares": (0.0, 1.0),
    "std": (0.7, 1.0),
}


@pytest.mark.parametrize("name", ATTAINED)
def test_the_bounds_are_attained(name):
    at, bound = ATTAINED[name]
    f, stated = SPELLINGS[name]
    z = torch.full((6, 8), at, dtype=torch.float64)
    with smoothing(40.0):
        twin = f(z)
    off = float((twin - f(z)).abs().max())
    assert off == pytest.approx(bound / 40, rel=1e-9) and bound == pytest.approx(stated, abs=1e-3)


@pytest.mark.parametrize("power", [0.5, 0.25])
@pytest.mark.parametrize("beta", BETAS)
def test_powers_below_one(power, beta):
    z = points().square()
    with smoothing(beta) as mode:
        twin = z**power
    assert mode.left == () and float((twin - z**power).abs().max()) <= beta ** (-2 * power) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["torch.relu", "torch.abs", "clamp", "elu, alpha 2", "maximum", "norm", "hardswish"])
def test_a_twin_of_the_wrong_scale_is_rejected(name, monkeypatch):
    """The mutant is smoother than it says: its β is a third."""
    f, bound = SPELLINGS[name]
    z = torch.cat([points(), torch.zeros(1, 8).double(), torch.full((1, 8), 1.0).double()])
    if name == "maximum":
        f = lambda z: torch.maximum(z, z.roll(0))  # noqa: E731
    if name == "norm":
        f = lambda z: z.norm(dim=1)  # noqa: E731
    assert is_within(f, bound, 3.0, z)
    for key, twin in TWINS.items():
        monkeypatch.setitem(TWINS, key, lambda beta, *a, twin=twin, **k: twin(beta / 3, *a, **k))
    assert not is_within(f, bound, 3.0, z)


@pytest.mark.parametrize("name", sorted(SPELLINGS.keys() - {"nn.RReLU"}))  # which draws its slopes
def test_first_and_second_derivatives(name):
    f = SPELLINGS[name][0]
    z = points(4).requires_grad_()
    if "abs" in name or "norm" in name or "dist" in name:
        z = z.detach().clone()
        z[1] = Y[1]
        z.requires_grad_()

    def twin(z):
        with smoothing(3.0):
            return f(z)

    inputs = z.detach().clone().clamp(-2, 2).requires_grad_()
    assert torch.autograd.gradcheck(twin, (inputs,), eps=1e-6, atol=1e-5)
    slope = torch.autograd.grad(twin(z).sum(), z, create_graph=True)[0]
    curvature = torch.autograd.grad((slope * torch.linspace(-1, 1, 48).reshape(6, 8)).sum(), z)[0]
    assert bool(curvature.isfinite().all())


@pytest.mark.parametrize(
    "f",
    [
        torch.relu,
        abs,
        lambda z: z.clamp(-0.5, 0.5),
        F.selu,
        F.hardswish,
        F.softshrink,
        lambda z: z.amax(1),
        F.hardsigmoid,
        lambda z: F.max_pool1d(z[None], 2),
        lambda z: z.norm(dim=1),
        lambda z: torch.linalg.vector_norm(z, 3, dim=1),
    ],
)
def test_second_derivatives_are_those_of_the_first(f):
    def twin(z):
        with smoothing(2.0):
            return f(z)

    z = torch.tensor([[0.01, 0.5, 0.5, -0.5], [-0.02, 2.0, -2.0, 3.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(twin, (z,), atol=1e-5)


@pytest.mark.parametrize(("f", "jump"), [(torch.relu, 1.0), (abs, 2.0), (lambda z: F.leaky_relu(z, 0.25), 0.75)])
def test_the_gradient_at_a_kink_is_continuous_with_the_slope_of_the_bound(f, jump):
    beta = 50.0
    x = torch.linspace(-0.2, 0.2, 4001, dtype=torch.float64, requires_grad=True)
    with smoothing(beta):
        slope = torch.autograd.grad(f(x).sum(), x)[0]
    steepest = float((slope.diff() / x.detach().diff()).max())
    assert 0.999 * jump * beta / 4 < steepest <= jump * beta / 4 * (1 + 1e-9)


@pytest.mark.parametrize(
    "name", ["torch.relu", "torch.abs", "clamp", "maximum", "max over a dimension", "F.max_pool2d"]
)
def test_gradients_converge_away_from_kinks(name):
    f = SPELLINGS[name][0]
    z = torch.randn(6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(8)).requires_grad_()
    own = torch.autograd.grad(f(z).sum(), z)[0]
    errors = []
    for beta in (10.0, 100.0, 1e5):
        with smoothing(beta):
            twin = torch.autograd.grad(f(z).sum(), z)[0]
        errors.append(float((twin - own).abs().max()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-12


@pytest.mark.parametrize(
    "f",
    [
        F.elu,
        F.celu,
        F.softsign,
        F.gelu,
        F.softplus,
        torch.tanh,
        lambda z: F.huber_loss(z, Y),
        lambda z: z.mean(1),
        lambda z: F.smooth_l1_loss(z, Y),
        lambda z: F.multi_margin_loss(z, LABELS, p=2),
        lambda z: F.softshrink(z, 0.0),
        lambda z: F.layer_norm(z, (8,)),
        torch.square,
        lambda z: F.max_pool1d(z[None], 1),
    ],
)
def test_what_is_smooth_is_left_as_it_is_bit_by_bit(f):
    z = points()
    with smoothing(2.0) as mode:
        assert torch.equal(f(z), run(f, z))
    assert mode.left == ()


def test_normalisations_made_by_hand_stay():
    z = points() + Y

    def norm(z):
        return (
            (z - z.mean(1, True)) / (z.var(1, keepdim=True) + 1e-5).sqrt() + z / z.std(0) + z * (z.square() + 1) ** 0.3
        )

    with smoothing(20.0) as mode:
        twin = norm(z)
    torch.testing.assert_close(twin, norm(z), rtol=1e-13, atol=1e-13)
    assert mode.left == ()


@pytest.mark.parametrize("name", ["torch.relu", "torch.abs", "clamp", "relu6", "F.max_pool2d", "amax", "softshrink"])
def test_no_overflow(name):
    f = SPELLINGS[name][0]
    for scale in (1e4, 1e100, 1e300):
        z = (points() * scale).requires_grad_()
        with smoothing(1e4):
            out = f(z)
            slope = torch.autograd.grad(out.sum(), z, create_graph=True)[0]
            curvature = torch.autograd.grad((slope**2).sum(), z, allow_unused=True)[0]
        own = f(z)
        assert float((out - own).detach().abs().max()) <= 1e-13 * scale + 1e-3
        assert bool(slope.isfinite().all()) and (curvature is None or bool(curvature.isfinite().all()))


def test_the_switch_of_softplus_to_the_line_is_below_rounding():
    x = torch.tensor([40.0 - 1e-9, 40.0 + 1e-9], dtype=torch.float64)
    assert (ramp(1.0, x) - x).abs().max() == 0
    twenty = torch.tensor([20.0 - 1e-9, 20.0 + 1e-9], dtype=torch.float64)  # torch's own jump is not there
    jumps = [float(s[1] - s[0] - 2e-9) for s in (ramp(1.0, twenty), F.softplus(twenty))]
    assert abs(jumps[0]) < 1e-14 and jumps[1] < -1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_precisions(dtype):
    z = points().clamp(-30, 30).to(dtype)
    eps = torch.finfo(dtype).eps
    for f, bound in (SPELLINGS[k] for k in ("torch.relu", "torch.abs", "clamp", "amax", "F.max_pool2d", "maximum")):
        g = f if f is not SPELLINGS["maximum"][0] else lambda z: torch.maximum(z, Y.to(dtype))
        with smoothing(3000.0):
            twin = g(z)
        assert twin.dtype == dtype and float((twin - g(z)).abs().max()) <= bound / 3000 + 100 * eps


def test_infinite_numbers_in_choices():
    z = torch.tensor([[-math.inf, 1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    nan = torch.tensor([math.nan, math.nan, 1.0], dtype=torch.float64)
    with smoothing(20.0):
        masked = z.amax(1)
        assert masked.item() == pytest.approx(2.0, abs=1e-8)
        assert torch.maximum(z, z.new_full((1,), -math.inf))[0].tolist() == pytest.approx([-math.inf, 1, 2])
        found = torch.fmax(nan, torch.tensor([1.0, math.nan, math.nan], dtype=torch.float64))
    assert torch.autograd.grad(masked.sum(), z)[0].isfinite().all()
    assert found[0] == 1 and found[1].isnan() and found[2] == 1


def test_integers_and_indices_stay():
    counts, z = torch.tensor([[3, -1, 2]]), points()
    with smoothing(1.0):
        assert counts.abs().tolist() == [[3, 1, 2]] and counts.clamp(0).max().item() == 3
        found = z.max(1)
        pooled, at = F.max_pool2d(z[None], 2, return_indices=True)
    assert type(found) is torch.return_types.max and torch.equal(found.indices, z.max(1).indices)
    assert torch.equal(at, F.max_pool2d(z[None], 2, return_indices=True)[1]) and pooled.shape == at.shape


def test_rrelu_draws_slopes_of_its_range():
    z = -torch.ones(1000, dtype=torch.float64)
    with smoothing(1e3):
        torch.manual_seed(0)
        twin = F.rrelu(z, 0.1, 0.3, training=True)
    assert 0.1 < -twin.max() < 0.11 and 0.29 < -twin.min() < 0.3


# --- what is left -----------------------------------------------------------------------------------------------------


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


class Modern(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.relu()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda z: z.sort(1).values, "sort: it has kinks and no twin"),
        (lambda z: z.topk(2, 1).values, "topk: it has kinks and no twin"),
        (lambda z: z.median(), "median: it has kinks and no twin"),
        (lambda z: z.kthvalue(2, 1).values, "kthvalue: it has kinks and no twin"),
        (lambda z: z.quantile(0.5), "quantile: it has kinks and no twin"),
        (lambda z: z * z.sign(), "sign: it jumps"),
        (lambda z: z.round(), "round: it jumps"),
        (F.hardshrink, "hardshrink: it jumps"),
        (lambda z: z * (z > 0), "gt: it jumps, and kinks made by hand may hang on it"),
        (lambda z: torch.linalg.matrix_norm(z, 2), "linalg_matrix_norm: it has kinks and no twin"),
        (lambda z: F.l1_loss(z, Y, reduce=False), "l1_loss: it has kinks and no twin"),
        (Doubled.apply, "Doubled: a custom autograd function, run as it is"),
        (Modern.apply, "Modern: a custom autograd function, run as it is"),
        (lambda z: nn.RNN(8, 2, nonlinearity="relu", dtype=z.dtype)(z[None])[0], "rnn_relu: it has kinks and no twin"),
        (torch.special.airy_ai, "special_airy_ai: it is not known"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:size_average and reduce args")
def test_what_is_left_is_listed_and_unchanged(f, words):
    z = points().requires_grad_()
    with smoothing(2.0) as mode:
        torch.manual_seed(0)
        out = f(z)
    assert words in mode.left
    assert torch.equal(out, run(f, z))


def test_with_out_it_is_left():
    z, out = points(), torch.empty(6, 8, dtype=torch.float64)
    with smoothing(2.0) as mode:
        torch.abs(z, out=out)
    assert mode.left == ("abs: it has kinks and no twin",) and torch.equal(out, z.abs())


def test_a_custom_function_keeps_its_value_and_its_gradient():
    z = points().requires_grad_()
    with smoothing(2.0):
        out = Doubled.apply(z)
    assert torch.equal(out, z.relu()) and torch.equal(torch.autograd.grad(out.sum(), z)[0], (z > 0).double())


def test_scripted_modules_and_functions_are_listed():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted, function = torch.jit.script(nn.Sequential(nn.ReLU())), torch.jit.script(lambda_relu)
    z = points().requires_grad_()
    twin = smoothed(nn.Sequential(scripted), 2.0)
    assert torch.equal(twin(z), z.relu())
    assert "Sequential: a scripted module, run as it is" in twin.left
    found = smoothed(lambda: function(z).sum(), 2.0)
    found()
    assert any("found in the graph" in what for what in found.left)


def lambda_relu(x):
    return torch.relu(x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_refused(reentrant):
    z = points().requires_grad_()
    with pytest.raises(ValueError, match="smoothing: activation checkpoints run a part"), smoothing(2.0):
        checkpoint(torch.relu, z, use_reentrant=reentrant)
    assert torch.relu(z).min() == 0


@pytest.mark.parametrize("beta", [0, -1.0, math.inf, math.nan, True, "3"])
def test_betas_that_make_no_sense(beta):
    with pytest.raises(ValueError, match="smoothing: beta must be a finite number above 0"):
        smoothing(beta)


def test_what_cannot_be_called():
    with pytest.raises(TypeError, match="smoothed: give a module or a function, not int"):
        smoothed(3, 1.0)


# --- models -----------------------------------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2)]
    layers += [nn.Hardswish(), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 5), nn.PReLU()]
    return nn.Sequential(*layers).double()


X = torch.randn(7, 1, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
T = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_a_smoothed_model_is_the_model():
    model = network()
    twin = smoothed(model, 30.0)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in model.parameters()]
    assert list(twin.state_dict()) == list(model.state_dict()) and twin.beta == 30.0
    assert [n for n, _ in twin.named_buffers()] == [n for n, _ in model.named_buffers()]
    twin.eval()
    assert not model.training and not model[1].training and not twin.training
    assert 0 < (twin(X) - model(X)).abs().max() < 0.5
    model.train()
    assert twin.training
    before = model[1].num_batches_tracked.item()
    twin(X)
    assert model[1].num_batches_tracked.item() == before + 1 and twin.left == ()
    twin.load_state_dict(network().state_dict())
    assert model[1].num_batches_tracked.item() == 0
    twin.float()
    assert model[0].weight.dtype == torch.float32


def test_a_copy_shares_nothing_and_still_shares_within():
    twin = smoothed(network(), 30.0).eval()
    other = copy.deepcopy(twin)
    assert torch.equal(other(X), twin(X))
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert other(X).std() == 0 < twin(X).std()
    assert next(other.parameters()) is next(other.original.parameters())


def test_buffers_of_the_model_itself_are_its_own_after_looking():
    model = nn.BatchNorm1d(8, dtype=torch.float64)
    buffers = dict(model.named_buffers())
    twin = smoothed(model, 2.0)
    with undisturbed(twin):
        twin(points())
    assert all(b is buffers[name] for name, b in model.named_buffers()) and model.running_mean.abs().sum() == 0
    twin(points())
    assert model.running_mean.abs().sum() > 0


def test_layers_have_the_model_s_names():
    model = network()
    names = dict(smoothed(model, 2.0).named_modules())
    assert names.keys() == dict(model.named_modules()).keys() and names["2"] is model[2]
    rows = census(smoothed(model, 2.0), X).operations
    assert next(r.module for r in rows if r.name == "softplus") == "2"


def test_attributes_are_the_model_s():
    model = network()
    model.config = "config"
    assert smoothed(model, 1.0).config == "config"
    with pytest.raises(AttributeError, match="missing"):
        smoothed(model, 1.0).missing  # noqa: B018


def test_compiled_models_run_as_the_eager_ones():
    model = network().eval()
    compiled = torch.compile(model, backend="eager")
    twin = smoothed(compiled, 30.0)
    assert list(twin.state_dict()) == list(model.state_dict())
    assert torch.equal(twin(X), smoothed(model, 30.0)(X))
    outer = nn.Sequential(compiled)
    assert torch.equal(smoothed(outer, 30.0)(X), twin(X))


def test_a_census_of_a_smoothed_model_finds_no_kinks():
    def loss(out):
        return F.l1_loss(out, T) + out.norm() + F.normalize(out).std()

    model = network()
    found = census(smoothed(model, 5.0), X, loss=smoothed(loss, 5.0))
    assert found.kinks == () and found.hidden == ()
    assert len(census(model, X, loss=loss).kinks) >= 8


@pytest.mark.parametrize("name", [k for k in SPELLINGS if k != "triplet of a distance"])
def test_a_census_of_each_twin_finds_no_kinks(name):
    class Spelled(nn.Module):
        def forward(self, z):
            return SPELLINGS[name][0](z)

    z = points().requires_grad_()
    found = census(smoothed(Spelled(), 5.0), z)
    assert found.kinks == ()


def test_a_step_through_kinks_has_none_in_the_twin():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    x, y = torch.randn(32, 4).double(), torch.randn(32, 3).double()

    def loss(model):
        return lambda: F.l1_loss(model(x), y)

    after = [p.detach() + 0.3 * torch.randn(p.shape).double() for p in model.parameters()]
    kinked = measure_step(loss(model), list(model.parameters()), after)
    smooth = measure_step(smoothed(loss(model), 5.0), list(model.parameters()), after)
    assert kinked.frozen.share > 0.3 and smooth.frozen.share == 0 and smooth.flipped == 0
    assert smooth.unseen == ()


def test_other_models_run():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="relu").double().eval()
    x = torch.randn(2, 5, 8).double()
    twin = smoothed(layer, 1e6)
    with torch.no_grad():
        assert 0 < (twin(x) - layer(x)).abs().max() < 1e-4
    twin(x.requires_grad_())
    assert twin.left == ()


def test_it_works_under_vmap_and_func_grad():
    w = torch.linspace(-1, 1, 5, dtype=torch.float64)
    with smoothing(4.0):
        slopes = torch.vmap(torch.func.grad(lambda v: torch.relu(v)))(w)
    torch.testing.assert_close(slopes, torch.sigmoid(4 * w))


def test_contexts_nest_and_end():
    x = torch.zeros(1, dtype=torch.float64)
    with smoothing(1.0):
        with smoothing(2.0):
            inner = torch.relu(x)
        outer = torch.relu(x)
    assert (inner.item(), outer.item(), torch.relu(x).item()) == (LOG2 / 2, LOG2, 0.0)
    assert Smoothing(2).beta == 2.0 and not torch.nn.modules.module._global_forward_pre_hooks

"""Convolutions with a faster second derivative: torch's values, gradients and products, and what is left to torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import AvgPool2d, BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, Parameter, ReLU, Sequential, Tanh
from torch.nn.functional import conv1d, conv2d, conv3d, cross_entropy
from torch.utils.checkpoint import checkpoint

from nonsmooth.torch import convolution
from nonsmooth.torch.convolution import Convolution, ConvolutionGradient, FastConvolutions
from nonsmooth.torch.hessian import Hessian

CASES = {
    "plain": (conv2d, (2, 4, 6, 5), (6, 4, 3, 2), {}),
    "padded": (conv2d, (2, 4, 5, 5), (6, 4, 3, 3), {"padding": 1}),
    "strides": (conv2d, (2, 4, 7, 8), (6, 4, 3, 3), {"stride": (2, 3), "padding": (1, 0)}),
    "dilated": (conv2d, (2, 4, 7, 7), (6, 4, 3, 3), {"dilation": 2, "padding": [2, 2]}),
    "groups": (conv2d, (2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2}),
    "depthwise": (conv2d, (2, 4, 5, 5), (8, 1, 3, 3), {"groups": 4, "padding": 1}),
    "one channel": (conv2d, (3, 1, 5, 5), (4, 1, 3, 3), {"padding": (1,)}),
    "1d": (conv1d, (3, 4, 9), (5, 4, 4), {"stride": 2, "padding": 3}),
    "3d": (conv3d, (2, 3, 4, 5, 4), (4, 3, 2, 3, 2), {"stride": (1, 2, 1), "padding": (0, 1, 1)}),
}
WHICH = [which for n in (1, 2, 3) for which in itertools.combinations("xwb", n)]
JIT = "ignore:.torch.jit.script.* is deprecated:DeprecationWarning"  # torch's own forward mode


@pytest.fixture(autouse=True)
def worth_it(monkeypatch):
    monkeypatch.setattr(convolution, "WORTH", 0)


def given(x_shape, w_shape, which, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    tensors = {"x": x_shape, "w": w_shape, "b": w_shape[:1]}
    return {
        name: torch.randn(shape, generator=rng, dtype=dtype).requires_grad_(name in which)
        for name, shape in tensors.items()
    }


def products(case, which, bias=True, fast=True):
    """The value, its gradients and, of a loss with third derivatives, the Hessian's product with random vectors."""
    f, x_shape, w_shape, how = CASES[case]
    t = given(x_shape, w_shape, which)
    with FastConvolutions() if fast else torch.enable_grad():
        y = f(t["x"], t["w"], t["b"] if bias else None, **how)
    assert y.grad_fn.name() == ("ConvolutionBackward" if fast else "ConvolutionBackward0")
    leaves = [t[n] for n in which]
    slopes = torch.autograd.grad(y.tanh().square().sum(), leaves, create_graph=True)
    v = [torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype) for p in leaves]
    return y, slopes, torch.autograd.grad(slopes, leaves, v)


def alike(mine, theirs):
    return all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("which", WHICH, ids="".join)
@pytest.mark.parametrize("case", CASES)
def test_values_gradients_and_products_are_torch_s(case, which):
    for bias in (True,) if "b" in which else (True, False):
        (y, *mine), (y0, *theirs) = (products(case, which, bias, fast) for fast in (True, False))
        assert y.equal(y0) and all(alike(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_second_and_third_derivatives_are_those_of_differences(case):
    f, x_shape, w_shape, how = CASES[case]
    small = given((1, *x_shape[1:]), w_shape, "xwb")
    with FastConvolutions():
        assert torch.autograd.gradcheck(lambda x, w, b: f(x, w, b, **how), tuple(small.values()), fast_mode=True)
        assert torch.autograd.gradgradcheck(lambda x, w, b: f(x, w, b, **how), tuple(small.values()), fast_mode=True)
        twice = lambda x, w, b: torch.autograd.grad(f(x, w, b, **how).sin().sum(), [x, w, b], create_graph=True)  # noqa: E731
        assert torch.autograd.gradgradcheck(twice, tuple(small.values()), fast_mode=True)


@pytest.mark.parametrize("term", ["x", "w", "b"])
def test_a_product_that_leaves_a_term_out_is_noticed(term, monkeypatch):
    backward = ConvolutionGradient.backward

    def without(ctx, dx, dw, db):
        kept = {"x": (None, dw, db), "w": (dx, None, db), "b": (dx, dw, None)}[term]
        return backward(ctx, *kept)

    monkeypatch.setattr(ConvolutionGradient, "backward", staticmethod(without))
    assert not alike(products("padded", "xwb")[2], products("padded", "xwb", fast=False)[2])


def network(*, inplace=False):
    torch.manual_seed(0)
    features = (Conv2d(1, 4, 3, padding=1), BatchNorm2d(4), ReLU(inplace), MaxPool2d(2), Conv2d(4, 6, 3), Tanh())
    return Sequential(*features, AvgPool2d(2), Flatten(), Linear(6, 3)).double()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_the_hessian_of_a_network_is_what_it_is_with_torch_s_convolutions(inplace, again, monkeypatch):
    """Batch statistics, operations in place, and parts that are evaluated anew in the backward pass."""
    model, rng = network(inplace=inplace), torch.Generator().manual_seed(2)
    x, y = torch.randn(5, 1, 8, 8, generator=rng, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])

    def closure():
        return cross_entropy(checkpoint(model, x, use_reentrant=False) if again else model(x), y)

    hessian = Hessian(closure, list(model.parameters()))
    v = torch.randn(hessian.dim, generator=rng, dtype=torch.float64)
    made = [hessian(v), hessian(v)]
    monkeypatch.setattr(convolution, "WORTH", float("inf"))
    own = Hessian(closure, list(model.parameters()))(v)
    assert all(torch.allclose(a, own, rtol=1e-10, atol=1e-12) for a in made)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_network_has_the_hessian_of_the_one_as_written(backend):
    """Compiled, a product raises (AOT) or, of a Function, is 0; and a mode would have it compiled anew each time."""
    model, rng = network(), torch.Generator().manual_seed(2)
    x, params = torch.randn(5, 1, 8, 8, generator=rng, dtype=torch.float64), list(model.parameters())
    compiled = torch.compile(model, backend=backend)
    v = torch.randn(sum(p.numel() for p in params), generator=rng, dtype=torch.float64)
    torch._dynamo.utils.counters.clear()
    made = [Hessian(lambda f=f: f(x).square().mean(), params)(v) for f in (model, compiled, compiled)]
    assert made[0].any() and made[1].equal(made[0]) and made[2].equal(made[0])
    assert not torch._dynamo.utils.counters["stats"]


def test_traced_code_is_left_to_torch():
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    compiled = torch.compile(lambda w: conv2d(x, w).sin().sum(), backend="eager")
    products = []
    for f in (lambda w: conv2d(x, w).sin().sum(), compiled):
        with FastConvolutions():
            (g,) = torch.autograd.grad(f(w), w, create_graph=True)
        products += torch.autograd.grad(g, w, torch.ones_like(g))
    assert products[0].any() and torch.allclose(*products, rtol=1e-10)


class Marked(torch.Tensor):
    """A class of tensors that a library or a user might bring."""


def left_alone():
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    each = torch.vmap(lambda row: conv2d(row[None], w)[0])
    sloped = torch.func.grad(lambda w: conv2d(x, w).square().sum())
    tangent = lambda w: torch.func.jvp(lambda w: conv2d(x, w), (w,), (torch.ones_like(w),))[1]  # noqa: E731

    def dual(w):
        with torch.autograd.forward_ad.dual_level():
            y = conv2d(x, torch.autograd.forward_ad.make_dual(w, torch.ones_like(w)))
            return torch.autograd.forward_ad.unpack_dual(y).tangent

    def half(w):
        with torch.autocast("cpu", torch.bfloat16):
            return conv2d(x, w)

    return {
        "vmap": (lambda w: each(x), w),
        "func.grad": (lambda w: sloped(w.detach()), w),
        "func.jvp": (tangent, w),
        "forward mode": (dual, w),
        "autocast": (half, w),
        "padding by name": (lambda w: conv2d(x, w, padding="same"), w),
        "one row": (lambda w: conv2d(x[0], w), w),
        "another class": (lambda w: conv2d(x.as_subclass(Marked), w), w),
        "another device": (lambda w: conv2d(x.to("meta"), w.to("meta")), w),
        "complex": (lambda w: conv2d(x.to(torch.complex64), w.to(torch.complex64)), w),
        "no gradient": (lambda w: conv2d(x, w.detach()), w),
        "another operation": (lambda w: torch.conv_transpose2d(x, w.transpose(0, 1)), w),
    }


@pytest.mark.filterwarnings(JIT)
@pytest.mark.parametrize("what", left_alone())
def test_what_is_left_to_torch(what, monkeypatch):
    f, w = left_alone()[what]
    torch.manual_seed(0)
    own = f(w)
    monkeypatch.setattr(Convolution, "apply", None)  # a call of it would raise
    with FastConvolutions():
        made = f(w)
    assert type(made) is type(own) and made.dtype == own.dtype and made.shape == own.shape
    assert own.is_meta or made.equal(own)


def test_small_ones_are_left_to_torch(monkeypatch):
    monkeypatch.undo()
    few, many = torch.randn(1, 3, 16, 16), torch.randn(64, 3, 16, 16)
    w = Parameter(torch.randn(8, 3, 3, 3))
    with FastConvolutions():
        names = [
            conv2d(few, w).grad_fn.name(),
            conv2d(many, w).grad_fn.name(),
            conv2d(many, w, stride=2).grad_fn.name(),
        ]
    assert names == ["ConvolutionBackward0", "ConvolutionBackward", "ConvolutionBackward0"]


def test_an_error_of_shapes_is_torch_s_own():
    x, w = torch.randn(2, 3, 6, 6), torch.randn(4, 5, 3, 3, requires_grad=True)
    with pytest.raises(RuntimeError) as own:
        conv2d(x, w)
    with FastConvolutions(), pytest.raises(RuntimeError) as made:
        conv2d(x, w)
    assert str(made.value) == str(own.value)

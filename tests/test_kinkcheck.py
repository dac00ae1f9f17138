"""kinkcheck: what it must pass, what it must fail and with which words, and what it must leave alone."""

from __future__ import annotations

import itertools
import math
import random
import re
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch.nn import functional

from nonsmooth.kinks import KINKS, Kink, nearest
from nonsmooth.torch import KinkError, KinkReport, clarke, kinkcheck
from nonsmooth.torch import spellings as torch_spellings

HALVES = (torch.bfloat16, torch.float16)
SIGNS = [(-1.0) ** i for i in range(40)]


def at(*entries):
    return torch.tensor(entries, dtype=torch.float64)


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def relu_difference(x):
    return torch.relu(x) - torch.relu(-x)


def signed(x):
    """Convex in some coordinates, concave in the others: 2^n pieces, and 0 is a vertex of the set."""
    return (torch.relu(x) * torch.tensor(SIGNS[: len(x)], dtype=x.dtype)).sum()


def beside_zero(x, f):
    """f(x), and 0 at 0, with a derivative of 0 there."""
    return torch.where(x == 0, 0 * x, f(torch.where(x == 0, torch.ones_like(x), x)))


MATRIX = torch.randn(30, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layer(x):
    weights = torch.randn(6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.relu(x @ weights.to(x.dtype)).sum()


class Spelled(torch.autograd.Function):
    """relu with a backward to be given: the slopes before, at and after 0."""

    slopes = (0.0, 0.0, 1.0)

    @classmethod
    def forward(cls, ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @classmethod
    def backward(cls, ctx, grad):
        (x,) = ctx.saved_tensors
        before, here, after = cls.slopes
        return grad * torch.where(x > 0, after, torch.where(x < 0, before, here)).to(grad.dtype)


class WrongAfter(Spelled):
    slopes = (0.0, 0.0, 2.0)


class WrongAtTheKink(Spelled):
    slopes = (0.0, 1.25, 1.0)


class BarelyWrongAtTheKink(Spelled):
    slopes = (0.0, 1.001, 1.0)


class RandomBackward(Spelled):
    @staticmethod
    def backward(ctx, grad):
        return grad * torch.rand_like(grad)


class AnyElement(Spelled):
    slopes = (0.0, 0.3, 1.0)


PASSES = {
    "relu": (torch.relu, zeros()),
    "relu, 1000 at once": (torch.relu, zeros(1000)),
    "abs": (torch.abs, zeros(3)),
    "hardtanh": (functional.hardtanh, at(-1, 1)),
    "relu6": (functional.relu6, at(0, 6)),
    "hardswish": (functional.hardswish, at(-3, 3)),
    "leaky_relu": (functional.leaky_relu, zeros(2)),
    "prelu": (functional.prelu, (zeros(1, 2), at(0.25))),
    "clamp": (lambda x: x.clamp(0, 1), at(0, 1)),
    "max of 10": (lambda x: x.max(), zeros(10)),
    "max(0)": (lambda x: x.max(0), zeros(10)),
    "amax of rows": (lambda x: x.amax(1), zeros(3, 4)),
    "maximum": (torch.maximum, (zeros(3), zeros(3))),
    "max_pool2d": (lambda x: functional.max_pool2d(x, 2), zeros(1, 1, 4, 4)),
    "sort": (lambda x: x.sort(), zeros(5)),
    "median": (lambda x: x.median(), zeros(5)),
    "topk": (lambda x: x.topk(2), zeros(5)),
    "cummax": (lambda x: x.cummax(0), zeros(4)),
    "norm of 100": (torch.linalg.vector_norm, zeros(100)),
    "l1_loss": (functional.l1_loss, (zeros(3), zeros(3))),
    "x (x > 0)": (lambda x: x * (x > 0), zeros(3)),
    "0 relu": (lambda x: 0 * torch.relu(x), zeros(2)),
    "a sum over 40": (lambda x: torch.relu(x).sum(), zeros(40)),
    "signs that differ": (signed, zeros(40)),
    "a layer": (layer, zeros(6)),
    "large and small": (torch.relu, at(0, 2**20)),
    "beside a large constant": (lambda x: torch.relu(x) + 100, zeros()),
    "rounding inside": (lambda x: torch.relu(x + 4096 - 4096), zeros()),
    "no kink": (torch.exp, at(1, 2)),
    "constant": (lambda x: x.softmax(0).sum(), at(1, 1, 1)),
    "another element": (AnyElement.apply, zeros(2)),
    "a large input": (lambda x: x[0] + torch.relu(x[1]), at(2**15, 0)),
    "a large slope": (lambda x: 1e4 * x[0] + torch.relu(x[1]), at(0, 0)),
    "a large curvature": (lambda x: 1e4 * x[0] ** 2 + torch.relu(x[1:]).sum() + x[0] * x[1], at(1, 0, 0)),
    "a large exponential": (lambda x: 1e4 * torch.exp(x[0]) + torch.relu(x[1]), at(1, 0)),
    "a large sum that rounds": (lambda x: 1e3 * (x @ MATRIX.to(x.dtype)).sum() + torch.relu(x).sum(), zeros(30)),
    "a large variance": (lambda x: 1e4 * x.var() + torch.relu(x).sum(), at(0, 1, 2, 0)),
    "a large norm": (lambda x: 1e4 * x[:2].norm() + x[2:].abs().sum(), zeros(5)),
    "softmax, a constant": (lambda x: x.softmax(0).sum(), at(1, 2, 3)),
    "a normalised layer": (lambda x: 100 * functional.layer_norm(x, (5,)).abs().sum(), at(1, 2, 3, 4, 5)),
    "|x|(1 + y) + y²/10⁶": (lambda x: x[0].abs() * (1 + x[1]) + 1e-6 * x[1] ** 2, zeros(2)),
    "in place": (lambda x: functional.relu(x, inplace=True), zeros(3)),
    "x sin log|x|": (lambda x: beside_zero(x, lambda x: x * torch.sin(torch.log(x.abs()))), zeros(1)),
    "|x| up to 1e-8": (lambda x: x.abs().clamp(max=1e-8), zeros(1)),
    "None beside it": (lambda x: {"value": torch.relu(x), "aux": None, "index": x.argmax()}, zeros(2)),
}


@pytest.mark.parametrize("name", PASSES)
def test_what_is_in_the_clarke_subdifferential_passes(name):
    fn, inputs = PASSES[name]
    report = kinkcheck(fn, inputs)
    assert report and len(report.rows) == 4
    assert [row.verdict for row in report.rows[:2]] == ["passes", "passes"]
    assert {row.verdict for row in report.rows} <= {"passes", "skipped"}


FAILS = {
    "relu(x) - relu(-x)": (
        relu_difference,
        zeros(),
        r"derivative returned is \(0\), 1 away .* have 1 to 1, .* 1 before",
    ),
    "one of five": (relu_difference, at(1, 2, 0, 3, 4), "output 2: .* 1 away from the Clarke subdifferential"),
    "a sum over 20": (lambda x: relu_difference(x).sum(), zeros(20), r"4\.47 away"),
    "beside a large constant": (lambda x: relu_difference(x) + 100, zeros(), "1 away"),
    "wrong at the kink": (WrongAtTheKink.apply, zeros(), r"\(1\.25\), 0\.25 away .* have 0 to 1, .* \(a jump of 1\)"),
    "barely wrong": (BarelyWrongAtTheKink.apply, zeros(), "0.001 away"),
    "wrong beside it": (
        WrongAfter.apply,
        zeros(),
        "wrong beside the kink too: .*; torch.autograd.gradcheck tests that",
    ),
    "cut off": (lambda x: x.detach() * 2, zeros(), "wrong beside the kink too"),
    "sqrt(x²)": (lambda x: torch.sqrt(x * x), zeros(), "is not finite, where beside the point entry 0 .* -1 and 1"),
    "sqrt(Σx²)": (lambda x: torch.sqrt((x * x).sum()), zeros(3), "not finite"),
    "wrong beside it and small": (
        lambda x: x[0] + WrongAfter.apply(x[1]),
        at(1e5, 0),
        "wrong beside the kink too: .*; torch.autograd.gradcheck tests that",
    ),
    "cut off and small": (lambda x: 1e5 * x[0] + 2 * x[1].detach(), zeros(2), "wrong beside the kink too"),
    "beside a large input": (lambda x: x[0] + relu_difference(x[1]), at(1e5, 0), r"is \(1, 0\), 1 away"),
    "beside large inputs": (
        lambda a, b: a.sum() + relu_difference(b).sum(),
        (torch.full((3,), 16384.0), torch.zeros(1)),
        r"is \(1, 1, 1, 0\), 1 away",
    ),
    "beside a large kink": (lambda x: 1e4 * torch.relu(x[0]) + 0.5 * relu_difference(x[1]), zeros(2), r"0\.5 away"),
    "small": (lambda x: 1e-8 * relu_difference(x), zeros(1), "1e-08 away"),
    "in a nest": (lambda x: [torch.relu(x), (relu_difference(x),)], zeros(2), "output [23]: .* 1 away"),
    "in a dict": (lambda x: (torch.relu(x), {"a": relu_difference(x)}), zeros(2), "output [23]: .* 1 away"),
    "|x|^0.97": (lambda x: beside_zero(x, lambda x: x.abs() ** 0.97), zeros(1), "slopes grow as δ falls, .* δ\\^0.97"),
    "x log|x|": (lambda x: beside_zero(x, lambda x: x * x.abs().log()), zeros(1), "slopes grow as δ falls"),
    "x² sin(1/x)": (lambda x: beside_zero(x, lambda x: x * x * (1 / x).sin()), zeros(1), "output 0 do not settle"),
    "sqrt(|x|)": (lambda x: x.abs().sqrt(), zeros(), r"not Lipschitz at this point, as it seems: .* δ\^0\.50"),
    "cube root": (lambda x: x.sign() * x.abs() ** (1 / 3), zeros(), "not Lipschitz"),
    "sqrt": (torch.sqrt, zeros(), "not Lipschitz"),
    "sign": (torch.sign, zeros(), "discontinuous at this point, as it seems: output 0 jumps by 1 "),
    "round": (torch.round, at(0.5), "discontinuous"),
    "x == 0": (lambda x: (x == 0).to(x.dtype) + x, zeros(), "discontinuous"),
    "log": (torch.log, zeros(), r"not finite at this point: it returns \(-inf\)"),
    "the border of the domain": (lambda x: x**1.5, zeros(), "border of the domain"),
}


@pytest.mark.parametrize("name", FAILS)
def test_what_is_not_fails_with_its_own_sentence(name):
    fn, inputs, says = FAILS[name]
    with pytest.raises(KinkError, match=f"(?s)kinkcheck at x = .*: fails\n.*{says}") as caught:
        kinkcheck(fn, inputs)
    assert isinstance(caught.value, AssertionError)
    assert not kinkcheck(fn, inputs, raise_exception=False)
    assert str(caught.value.report) == str(caught.value)


def test_the_seed_does_not_matter():
    for seed in range(5):
        for name in ("signs that differ", "a layer", "max of 10", "norm of 100"):
            assert kinkcheck(*PASSES[name], seed=seed, dtypes=[torch.float64])
        for name in ("a sum over 20", "wrong beside it", "barely wrong"):
            assert not kinkcheck(*FAILS[name][:2], seed=seed, dtypes=[torch.float64], raise_exception=False)


@pytest.mark.parametrize("v", [-0.5, -0.01, 0.0, 0.4, 1.0, 1.01, 1.5])
@pytest.mark.parametrize("w", [-0.1, 0.0, 0.7, 1.0])
def test_it_draws_the_line_where_the_set_ends(v, w):
    """max(x₁, x₂, 0): the triangle of (0, 0), (1, 0) and (0, 1)."""

    class Chosen(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.max().clamp(min=0)

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            beside = (x == x.max()) * (x > 0)
            return grad * (torch.tensor([v, w], dtype=x.dtype) if not x.any() else beside)

    inside = v >= 0 and w >= 0 and v + w <= 1
    report = kinkcheck(Chosen.apply, zeros(2), dtypes=[torch.float64], raise_exception=False)
    assert bool(report) == inside
    exact = Kink("", (0.0, 0.0), ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))).distance([v, w])
    assert report.rows[0].distance == pytest.approx(exact, abs=1e-6)


def test_every_spelling_gets_the_verdict_of_the_exact_set():
    for kink in KINKS.values():
        for row in torch_spellings.probe(kink):
            fn = torch_spellings.SPELLINGS[kink.function][row.spelling]
            inputs = at(*kink.at) if len(kink.at) > 1 else at(*kink.at)[0]
            report = kinkcheck(fn, inputs, dtypes=[torch.float64], raise_exception=False)
            assert bool(report) == row.inside, row


def test_a_dtype_that_loses_the_tie_is_skipped_and_said_to_be():
    report = kinkcheck(lambda x: torch.maximum(x[0], x[1]), at(1 + 2**-9, 1 + 2**-9))
    assert [row.verdict for row in report.rows] == ["passes", "passes", "skipped", "passes"]
    assert "rounding may undo the tie" in str(report)


def test_a_kernel_that_is_missing_is_skipped_and_named():
    fn = lambda x: functional.multi_margin_loss(x, torch.tensor([0]))  # noqa: E731
    report = kinkcheck(fn, at(1, 0, 0)[None])
    assert report and {row.verdict for row in report.rows[2:]} == {"skipped"}
    assert "not implemented for 'Half'" in str(report)


def test_checking_nothing_is_not_passing():
    with pytest.raises(KinkError, match="nothing could be checked"):
        kinkcheck(torch.relu, at(1 + 2**-40), dtypes=HALVES)


def test_a_fault_of_one_precision_shows_in_its_row_alone():
    def coarse(x):
        return relu_difference(x) if x.dtype is torch.float16 else x.clone()

    report = kinkcheck(coarse, zeros(), raise_exception=False)
    assert [row.verdict for row in report.rows] == ["passes", "passes", "passes", "fails"]
    assert not report


def test_inputs_are_taken_jointly_and_as_gradcheck_takes_them():
    product = lambda x, y: torch.maximum(x, y)  # noqa: E731
    x, y = zeros(2).requires_grad_(), zeros(2)
    alone = kinkcheck(product, (x, y))
    assert alone.point == "x = (0, 0)"
    assert kinkcheck(product, (zeros(2), y)).point == "x = (0, 0, 0, 0)"
    assert kinkcheck(lambda x, k, label: x.topk(k).values, (zeros(3), 2, "passed on"))


def test_a_large_output_is_checked_at_some_entries():
    report = kinkcheck(lambda x: torch.relu(x.repeat(250)), zeros(4))
    assert report and [row.says for row in report.rows] == 4 * ["64 of 1000 outputs"]
    assert str(report).count("64 of 1000 outputs") == 4
    wrong = kinkcheck(lambda x: relu_difference(x.repeat(250)), zeros(4), raise_exception=False)
    assert not wrong and wrong.rows[0].says.endswith("(64 of 1000 outputs checked)")


@pytest.mark.parametrize(
    ("fn", "inputs", "says"),
    [
        (torch.relu, torch.zeros(2, dtype=torch.int64), "no floating-point input"),
        (torch.relu, at(math.nan), "NaN or infinity"),
        (torch.relu, zeros(1025), "more than 1024 inputs are too many to sample around; pass fewer"),
        (torch.relu, 0.0, "inputs must be a tensor or a tuple of them, not float"),
        (torch.relu, None, "inputs must be a tensor or a tuple of them, not NoneType"),
        (None, zeros(1), "fn must be a function of the inputs, not None"),
        (lambda x: x.item(), zeros(1), "returns a float, through which nothing can be differentiated"),
        (lambda x: (torch.relu(x), "label"), zeros(1), "returns a str, .* in tuples, lists and dicts"),
        (lambda x: None, zeros(1), "returns no floating-point tensor"),
        (lambda x: torch.complex(x, x), zeros(1), "returns a complex tensor"),
        (lambda x: torch.relu(x).to_sparse(), at(1), "returns a sparse tensor"),
        (lambda x, y: x, zeros(1), "does not run in float64, .*missing 1 required .*; let it take these inputs"),
        (lambda x: torch.relu(x) * torch.rand_like(x), zeros(1), "fn is random: .* seed what is random in it"),
        (lambda x: functional.rrelu(x, training=True), zeros(1), "fn is random"),
        (RandomBackward.apply, zeros(1), "the derivative of fn is random"),
        (lambda x: x.argmax(), zeros(2), "returns no floating-point tensor"),
        (lambda x: x + torch.rand(1), zeros(1), "other values when called again"),
        (lambda x: x.float(), zeros(1), "returns float32 for float64 inputs"),
        (lambda x: x @ torch.ones(2), zeros(2), "does not run in float64"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_a_sentence(fn, inputs, says):
    with pytest.raises(ValueError, match=f"^kinkcheck: .*{says}.*\\.$"):
        kinkcheck(fn, inputs)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"radius": 0}, "radius must be between 0 and 1, not 0"),
        ({"radius": "a"}, "radius must be between 0 and 1, not 'a'"),
        ({"seed": "a"}, "seed must be a whole number from 0 on, not 'a'"),
        ({"seed": -1}, "seed must be a whole number from 0 on, not -1"),
        ({"dtypes": ["float64"]}, r"dtypes must be a torch.dtype or a list of them, not \['float64'\]"),
        ({"dtypes": [torch.int32]}, "dtypes must be floating-point, and int32 is not"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_a_sentence(option, says):
    with pytest.raises(ValueError, match=f"^kinkcheck: {says}\\.$"):
        kinkcheck(torch.relu, zeros(), **option)


def test_one_dtype_need_not_be_a_list():
    assert [row.dtype for row in kinkcheck(torch.relu, zeros(), dtypes=torch.float32).rows] == ["float32"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_the_size_of_one_entry_hides_nothing_in_another_in_any_dtype(dtype):
    fn = lambda x: 1e4 * x[0] + relu_difference(x[1])  # noqa: E731
    with pytest.raises(KinkError, match=r" 1 away from the Clarke subdifferential\. Along \(0, 1\) it has the slope 0"):
        kinkcheck(fn, zeros(2), dtypes=dtype)


def test_a_thousand_ties_are_within_reach():
    """All thousand gradients are needed, and found in growing rounds: in seconds."""
    assert kinkcheck(lambda x: x.amax(), zeros(1000), dtypes=torch.float64)


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"no backend 'inducktor' of torch.compile; known are .*inductor"):
        kinkcheck(torch.relu, zeros(), compile="inducktor")


def test_nothing_is_disturbed():
    x = zeros(3).requires_grad_()
    x.grad = at(1, 2, 3)
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    def fn(x):
        torch.rand(3)
        return torch.relu(x * weight.to(x.dtype))

    with torch.no_grad():
        assert kinkcheck(fn, x)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        assert kinkcheck(fn, x)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    assert x.grad.tolist() == [1, 2, 3] and weight.grad is None and not x.any()


def compiles() -> bool:
    report = kinkcheck(torch.relu, zeros(2), dtypes=[torch.float32], compile=True)
    return report.rows[1].verdict == "passes"


def test_compiled_functions_are_checked_too():
    if not compiles():
        pytest.skip("torch.compile has no compiler here")
    before = torch.get_rng_state(), random.getstate()
    good = kinkcheck(lambda x: x.clamp(min=0), zeros(2), dtypes=[torch.float32, torch.float16], compile=True)
    assert [(row.dtype, row.compiled) for row in good.rows] == list(
        itertools.product(("float32", "float16"), (False, True))
    )
    assert {row.verdict for row in good.rows} == {"passes"}
    bad = kinkcheck(relu_difference, zeros(2), dtypes=[torch.float32], compile=True, raise_exception=False)
    assert [row.verdict for row in bad.rows] == ["fails", "fails"]
    assert str(bad).count("away from the Clarke subdifferential") == 1 and "as above" in str(bad)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


def test_eager_and_compiled_that_differ_are_reported():
    """A function that knows of its compilation stands for a lowering with another choice at the tie."""

    def fn(x):
        return torch.clamp(x, min=0.0) if torch.compiler.is_compiling() else torch.relu(x)

    report = kinkcheck(fn, zeros(1), dtypes=[torch.float32], compile="aot_eager")
    assert report, "both values are in the set"
    assert report.rows[1].says == "eager and compiled differ: (0) and (1)"


def test_many_checks_of_one_function_are_all_compiled():
    for size in range(1, 13):  # torch stops compiling one code after eight shapes or dtypes
        report = kinkcheck(torch.relu, zeros(size), dtypes=[torch.float32], compile="eager")
        assert report.rows[1].verdict == "passes"


def test_without_a_compiler_the_compiled_run_is_skipped(monkeypatch):
    def broken(graph, examples):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr("torch._dynamo.lookup_backend", lambda name: broken)
    report = kinkcheck(torch.relu, zeros(2), dtypes=[torch.float32], compile=True)
    assert report and report.rows[1].verdict == "skipped" and "no C++ compiler" in report.rows[1].says


def test_what_has_nothing_to_compile_is_skipped():
    @torch.compiler.disable
    def fn(x):
        return torch.relu(x)

    report = kinkcheck(fn, zeros(2), dtypes=[torch.float32], compile="aot_eager")
    assert report.rows[1].verdict == "skipped" and "nothing in fn to compile" in report.rows[1].says


def test_the_report_reads_as_a_table():
    report = kinkcheck(torch.relu, at(0), dtypes=[torch.float64, torch.float16])
    assert isinstance(report, KinkReport)
    assert [line.split() for line in str(report).splitlines()] == [
        ["kinkcheck", "at", "x", "=", "(0):", "passes"],
        ["float64", "eager", "passes", "0"],
        ["float16", "eager", "passes", "0"],
    ]


def test_without_the_search_along_the_gap_pieces_are_missed(monkeypatch):
    """The mutant: false alarms only, never a pass."""
    monkeypatch.setattr(clarke.Neighbourhood, "_towards", lambda self, d, leader: [])
    monkeypatch.setattr(clarke.Neighbourhood, "_directions", lambda self: [*np.eye(self.n)[:1] + 0.01])
    assert not kinkcheck(lambda x: torch.relu(x).sum(), zeros(3), dtypes=[torch.float64], raise_exception=False)


def test_nearest_is_the_projection():
    rng = np.random.default_rng(0)
    for n, k in itertools.product((1, 2, 5), (1, 3, 8)):
        points, v = rng.standard_normal((k, n)), 2 * rng.standard_normal(n)
        p = nearest(points, v)
        member = linprog(np.zeros(k), A_eq=np.vstack([points.T, np.ones(k)]), b_eq=np.append(p, 1.0), bounds=(0, None))
        assert member.status == 0
        assert ((points - p) @ (v - p)).max() < 1e-9, "the obtuse angle that characterises the projection"
        slow = minimize(
            lambda w, P=points, v=v: ((w @ P - v) ** 2).sum(),
            np.full(k, 1 / k),
            bounds=[(0, 1)] * k,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            tol=1e-12,
        )
        assert np.linalg.norm(v - p) ** 2 <= slow.fun + 1e-8
    assert nearest([[1.0, 1.0]] * 5, [1.0, 1.0]).tolist() == [1.0, 1.0]


def test_without_torch_the_package_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name == "nonsmooth.torch" or name.startswith("nonsmooth.torch.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    wanted = re.escape("nonsmooth.torch needs torch, which is not installed; run: pip install 'nonsmooth[torch]'")
    with pytest.raises(ModuleNotFoundError, match=f"^{wanted}$"):
        import nonsmooth.torch  # noqa: F401

"""Records: frozen, compared by content, checked field by field; schedules, sweeps, and arrays of other libraries."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
import xarray as xr

from laws import different_content_different_record, frozen, keeps_its_own, same_content_same_record
from nonsmooth.hyperparameters import (
    Array,
    Fraction,
    Hyperparameters,
    NonNegative,
    Positive,
    Real,
    Schedule,
    kinds,
    like,
)
from nonsmooth.objectives import Huber, LeastSquares, MaxLinear, Quadratic, random_least_squares
from nonsmooth.penalties import L1, NM, ElasticNet, GroupLasso
from nonsmooth.rules import Averaging, Constant, Cosine, HeavyBall, InverseSqrt
from zoo import DATA, LIBRARIES, OBJECTIVES, PENALTIES, over

RECORDS = {name: g for name, (g, _) in PENALTIES.items()} | {name: known.f for name, known in OBJECTIVES.items()}
each = pytest.mark.parametrize("record", over(RECORDS))
rejected = pytest.raises(AssertionError)


@dataclass(frozen=True)
class Sample(Hyperparameters):
    """One field of each kind."""

    real: Real
    rate: Positive = 1.0
    strength: NonNegative = 0.0
    share: Fraction = 0.5
    data: Array | None = None
    name: str = "plain"


# ── mutants ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Thawed(Quadratic):
    __setattr__ = object.__setattr__


class Shares(Quadratic):
    def _checked(self, name, value, kind):
        return value


class ByRepr(Quadratic):
    def _content(self):
        return (repr(self),)


class ByIdentity(Quadratic):
    __eq__ = object.__eq__
    __hash__ = object.__hash__


LONG = np.arange(10.0)


# ── frozen, compared by content ─────────────────────────────────────────────────────────────────────────────────────


@each
def test_frozen(record):
    frozen(record)


@pytest.mark.parametrize("mutant", [Thawed([1.0]), Shares(np.ones(1))], ids=["thawed", "writeable"])
def test_what_can_be_changed_is_rejected(mutant):
    with rejected:
        frozen(mutant)


def test_a_record_cannot_be_derived_thawed():
    with pytest.raises(TypeError, match="cannot inherit non-frozen dataclass from a frozen one"):

        @dataclass
        class Melted(Quadratic):
            pass


@each
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r)), lambda r: r.replaced()])
def test_a_copy_is_the_same_record(record, copied):
    same_content_same_record(record, copied(record))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (L1(1), L1(1.0)),
        (L1([1, 2]), L1(np.array([1.0, 2.0], dtype=np.float32))),
        (Quadratic([1, 2]), Quadratic(torch.tensor([1.0, 2.0]))),
        (GroupLasso(1.0, groups=[5, 5, 9]), GroupLasso(1.0, groups=np.array([0, 0, 1]))),
        (HeavyBall(lr=InverseSqrt(0.1)), HeavyBall(lr=InverseSqrt(0.1))),
        (L1(xr.DataArray([1, 2], dims="lam")), L1(xr.DataArray([1.0, 2.0], dims="lam"))),
        (random_least_squares(), random_least_squares()),
    ],
    ids=["number", "list", "torch", "labels", "schedule", "labelled", "data"],
)
def test_the_same_content_is_the_same_record(a, b):
    same_content_same_record(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (L1(1.0), L1(2.0)),
        (Quadratic(LONG), Quadratic(LONG + (LONG == 5))),
        (Quadratic(LONG), Quadratic(LONG).replaced(spectrum=LONG.astype(np.float32))),
        (L1(1.0, np.ones((2, 3))), L1(1.0, np.ones((3, 2)))),
        (MaxLinear([[1.0]], [0.0]), MaxLinear([[1.0]], [0.0], ties="average")),
        (L1(0.0), ElasticNet(0.0, 0.0)),
        (Quadratic(LONG), ByIdentity(LONG)),
        (HeavyBall(lr=Constant(0.1)), HeavyBall(lr=InverseSqrt(0.1))),
        (L1(xr.DataArray([1.0, 2.0], dims="a")), L1(xr.DataArray([1.0, 2.0], dims="b"))),
        (L1(xr.DataArray([1.0], {"of": ["a"]}, "of")), L1(xr.DataArray([1.0], {"of": ["b"]}, "of"))),
        (L1(1.0), L1(1.0, weights=[1.0])),
    ],
    ids=["number", "entry", "dtype", "shape", "name", "type", "subtype", "schedule", "dims", "coords", "none"],
)
def test_different_content_is_a_different_record(a, b):
    different_content_different_record(a, b)


def test_comparison_by_anything_else_is_rejected():
    with rejected:
        different_content_different_record(ByRepr(LONG), ByRepr(LONG + (LONG == 5)))
    with rejected:
        same_content_same_record(ByIdentity(LONG), ByIdentity(LONG))


def test_a_record_differs_from_what_is_not_one():
    assert L1(1.0) != 1.0
    assert L1(1.0) != ("L1", 1.0)


@pytest.mark.parametrize(
    "make",
    [Quadratic, L1, lambda a: L1(1.0, weights=a), lambda a: L1(xr.DataArray(a, dims="lam"))],
    ids=["array", "sweep", "optional", "labelled"],
)
def test_a_record_keeps_its_own_arrays(make):
    keeps_its_own(make, np.array([1.0, 2.0]))


def test_a_shared_array_is_rejected():
    with rejected:
        keeps_its_own(Shares, np.array([1.0, 2.0]))


def test_a_sweep_keeps_its_labels_and_is_read_only():
    lam = L1(xr.DataArray([1, 2], {"lam": [10, 20]}, "lam")).lam
    assert lam.sel(lam=20) == 2.0
    assert lam.dtype == np.float64
    assert not lam.values.flags.writeable


# ── fields ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_kinds():
    found = kinds(Sample)
    assert [*found] == [f.name for f in fields(Sample)]
    assert found["name"] is None
    assert {name: (k.is_array, k.optional) for name, k in found.items() if k} == {
        "real": (False, False),
        "rate": (False, False),
        "strength": (False, False),
        "share": (False, False),
        "data": (True, True),
    }


def test_what_the_fields_become():
    sample = Sample(real=np.float32(-1), rate=np.array(2), strength=[0, 1], data=3, name="x")
    assert type(sample.real) is type(sample.rate) is float
    assert sample.strength.dtype == sample.data.dtype == np.float64
    assert (sample.strength.shape, sample.data.shape) == ((2,), ())
    assert repr(sample) == "Sample(real=-1, rate=2, strength=[0.0, 1.0], share=0.5, data=3.0, name='x')"
    assert repr(Quadratic(LONG)) == "Quadratic(spectrum=array of shape (10,))"
    assert repr(L1(xr.DataArray(LONG, dims="lam"))) == "L1(lam=DataArray over lam, weights=None)"


def test_structure_is_pythons_own_numbers():
    """A NumPy scalar among them would keep torch from reading a state with weights_only."""
    given = GroupLasso(1.0, dim=np.int64(1), scale_by_size=np.bool_(True))
    assert type(given.dim) is int and type(given.scale_by_size) is bool
    assert given == GroupLasso(1.0, dim=1, scale_by_size=True)
    assert NM(np.int64(2), np.int64(4)) == NM(2, 4)


REAL, POSITIVE, SHARE = "a finite number", "a finite number above 0", "a number in [0, 1)"
MESSAGES = {
    "real-nan": ({"real": np.nan}, f"real must be {REAL}, not nan."),
    "real-inf": ({"real": [0.0, -np.inf]}, f"real must be {REAL}, not -inf."),
    "real-none": ({"real": None}, f"real must be {REAL}, not None."),
    "real-word": ({"real": "much"}, f"real must be {REAL}, not 'much'."),
    "real-ragged": ({"real": [[1.0], [1.0, 2.0]]}, f"real must be {REAL}, not [[1.0], [1.0, 2.0]]."),
    "real-record": ({"real": L1(1.0)}, f"real must be {REAL}, not L1(lam=1, weights=None)."),
    "rate-zero": ({"rate": 0}, f"rate must be {POSITIVE}, not 0."),
    "rate-inf": ({"rate": np.inf}, f"rate must be {POSITIVE}, not inf."),
    "strength": ({"strength": [3.0, -1e-9]}, "strength must be a finite number, 0 or above, not -1e-09."),
    "share-one": ({"share": 1.0}, f"share must be {SHARE}, not 1."),
    "share-of-many": ({"share": [0.25, 0.5, 1.5]}, f"share must be {SHARE}, not 1.5."),
    "share-labelled": ({"share": xr.DataArray([0.5, 2.0], dims="share")}, f"share must be {SHARE}, not 2."),
    "data-nan": ({"data": [0, np.nan]}, "data holds 1 value(s) that are NaN or infinite; drop or fill them first."),
    "data-empty": ({"data": []}, "data is empty; give at least one value."),
    "data-words": ({"data": ["a"]}, "data must be an array of finite numbers, not ['a']."),
    "data-schedule": (
        {"data": Constant(0.5)},
        "data must be an array of finite numbers, not Constant(lr=0.5).",
    ),
}


@pytest.mark.parametrize(("change", "message"), over(MESSAGES))
def test_messages(change, message):
    with pytest.raises(ValueError, match=f"^{re.escape('Sample: ' + message)}$"):
        Sample(**{"real": 0.0} | change)


# ── replaced, at, like ──────────────────────────────────────────────────────────────────────────────────────────────


def test_replaced_changes_a_copy_and_checks_nothing():
    before = L1(1.0, weights=[1.0])
    after = before.replaced(lam=-1.0)
    assert (before.lam, after.lam, type(after)) == (1.0, -1.0, L1)
    assert after.weights is before.weights


def test_replaced_forgets_what_was_computed_from_the_old_fields():
    f = LeastSquares(*DATA)
    assert f.replaced(X=2 * f.X).spectral_norm == pytest.approx(2 * f.spectral_norm, rel=1e-15)


def test_at_resolves_schedules_however_deep():
    rule = HeavyBall(lr=InverseSqrt(1.0), beta=0.5)
    assert rule.at(4) == HeavyBall(lr=0.5, beta=0.5)
    assert Averaging(rule, skip=3).at(4) == Averaging(HeavyBall(lr=0.5, beta=0.5), skip=3)
    assert L1(Cosine(2.0, steps=10)).at(6).lam == pytest.approx(1.0)
    assert isinstance(rule.lr, Schedule)


def test_at_leaves_a_record_without_schedules_as_it_is():
    assert (g := L1(1.0)).at(7) is g


def test_like_leaves_numbers_and_nothing():
    x = np.zeros(1, dtype=np.float32)
    assert (like(2.0, x), like(3, x), like(None, x)) == (2.0, 3, None)


@pytest.mark.parametrize("library", over(LIBRARIES))
@pytest.mark.parametrize("field", ["X", "y"])
def test_like_is_of_the_points_library_and_precision(library, field):
    given = getattr(LeastSquares(*DATA), field)
    with library.running():
        x = library.array(np.zeros(1))
        got = like(given, x)
        assert type(got) is type(x)
        assert got.dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(got), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_like_does_not_let_torch_write_into_a_record(dtype):
    f = Quadratic([1.0, 2.0])
    like(f.spectrum, torch.zeros(1, dtype=dtype))[0] = 9.0
    assert f == Quadratic([1.0, 2.0])


def test_a_number_may_be_traced():
    """The numbers of a record are arguments of compiled code: vmap over λ gives the map at each λ."""
    import jax

    with jax.enable_x64(True):
        x, lams = np.array([2.0, -0.25, 1.0]), np.array([0.0, 0.5, 1.5])
        got = jax.jit(jax.vmap(lambda lam: L1(1.0).replaced(lam=lam).prox(jax.numpy.asarray(x), 1.0)))(lams)
        np.testing.assert_array_equal(got, [L1(lam).prox(x, 1.0) for lam in lams])


def test_a_record_of_the_same_class_is_needed_for_equality():
    assert Huber(1.0) == Huber(1.0, dim=1) != Huber(1.0, dim=2)

"""What the frameworks return at kinks, and the claims about it."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from nonsmooth.claims import autodiff, spellings
from nonsmooth.kinks import KINKS, Kink
from nonsmooth.ledger import CLAIMS

CHOSEN = [name for name in CLAIMS if name.startswith("autodiff/")]


class Missing:
    """A finder that finds torch nowhere; None in `sys.modules` would confuse SciPy, which looks there."""

    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")


@pytest.fixture
def without_torch(monkeypatch):
    for name in [name for name in sys.modules if name == "nonsmooth.torch" or name.startswith("nonsmooth.torch.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("nonsmooth.torch", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])


def test_each_spelling_spells_its_function():
    """Beside the kink all spellings have the one derivative that there is."""
    exact = {
        "max(x, 0)": lambda x: x > 0,
        "min(x, 1)": lambda x: x < 1,
        "|x|": np.sign,
        "max(x₁, x₂)": lambda x: x == x.max(),
        "‖x‖": lambda x: x / np.linalg.norm(x),
        "x": np.ones_like,
    }
    rng = np.random.default_rng(0)
    for kink in KINKS.values():
        for _ in range(3):
            x = np.array(kink.at) + 0.3 * rng.standard_normal(len(kink.at))
            derivative = tuple(np.asarray(exact[kink.function](x), dtype=float).tolist())
            for row in spellings.probe(Kink(kink.function, tuple(x.tolist()), (derivative,))):
                assert row.inside, row


def test_what_lies_outside_the_clarke_subdifferential():
    outside = {
        (row.framework, row.spelling) for kink in KINKS.values() for row in spellings.probe(kink) if not row.inside
    }
    for framework in ("JAX", "torch"):
        assert {
            (framework, "relu(x) - relu(-x)"),
            (framework, "where(x > 0, x, 0) + where(x < 0, x, 0)"),
            (framework, "sqrt(x²)"),
            (framework, "sqrt(Σ x²)"),
        } <= outside
    assert all("max" not in spelling for _, spelling in outside)


@pytest.mark.parametrize("name", CHOSEN)
def test_the_claims_come_out_with_jax_alone(name, without_torch):
    row, _ = CLAIMS[name].run()
    assert row["verdict"] == "supported"
    assert {mutant["verdict"] for mutant in row["mutants"]} == {"refuted"}
    assert not any("torch" in case for case in row["cases"])


@pytest.mark.parametrize("name", CHOSEN)
def test_the_claims_come_out_in_each_framework(name):
    row, _ = CLAIMS[name].run(master=3)
    assert row["verdict"] == "supported"
    assert {mutant["verdict"] for mutant in row["mutants"]} == {"refuted"}
    if name != "autodiff/exact-kinks-depend-on-precision":
        assert [case.split()[0] for case in row["cases"]] == ["JAX", "torch"]


def test_rounding_to_bits_is_that_of_the_number_formats():
    a = np.random.default_rng(0).standard_normal(10_000)
    for bits, name in ((8, "bfloat16"), (11, "float16"), (24, "float32")):
        assert np.array_equal(
            autodiff._round(a, bits)[np.abs(a) > 1e-3], np.float64(autodiff._round(a, name))[np.abs(a) > 1e-3]
        )


def test_the_table_can_be_stored(tmp_path):
    import xarray as xr

    made = spellings.table()
    made.to_zarr(tmp_path / "table.zarr", consolidated=False)
    read = xr.open_zarr(tmp_path / "table.zarr", consolidated=False)
    assert read.attrs == made.attrs and np.array_equal(read.distance, made.distance)

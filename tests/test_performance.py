"""The table of tight constants, computed anew by PEPit, and the formulas that are known."""

from __future__ import annotations

import sys

import pytest

from nonsmooth.claims.performance import TIGHT, tight_constant

ENTRIES = [pytest.param(method, n, id=f"{method}-{n}") for method, known in TIGHT.items() for n in known]


@pytest.mark.parametrize(("method", "n"), ENTRIES)
def test_the_table_is_what_pepit_computes(method, n):
    assert tight_constant(method, n) == pytest.approx(TIGHT[method][n], abs=1e-4)


@pytest.mark.parametrize("n", TIGHT["gradient descent"])
def test_the_table_is_what_the_formulas_say(n):
    assert TIGHT["subgradient, best iterate"][n] == pytest.approx((n + 1) ** -0.5, abs=1e-5)
    assert TIGHT["gradient descent"][n] == pytest.approx(1 / (4 * n + 2), abs=1e-5)
    assert TIGHT["subgradient, last iterate"][n] > 1.4 * TIGHT["subgradient, best iterate"][n]


def test_another_step_has_another_constant():
    """The programmes know the step: one of the constants of one method is not another's."""
    assert abs(tight_constant("subgradient, last iterate", 6) - TIGHT["subgradient, best iterate"][6]) > 0.1


def test_what_cannot_be_computed_is_said(monkeypatch):
    with pytest.raises(ValueError, match=r"^tight_constant: there is no method 'Newton'; choose from sub"):
        tight_constant("Newton", 3)
    monkeypatch.setitem(sys.modules, "PEPit", None)
    with pytest.raises(ModuleNotFoundError, match=r"^tight_constant needs PEPit, which is not installed; run: pip"):
        tight_constant("gradient descent", 3)

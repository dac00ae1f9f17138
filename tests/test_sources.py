"""The hashes that keep old results from new code: they cover all that the results come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from nonsmooth.networks import setting
from nonsmooth.sources import hash_of_sources
from nonsmooth.sweeps import content
from test_architecture import TREE, imports_of, own

CARRIES = {"ledger", "plots", "processes", "progress", "sources", ""}
"""What starts, watches and keeps the computation, but does not compute."""

COMPUTED = {
    "networks": (setting.TRAINS, {"networks.training", "networks.observers"}),
    "simulations": (content.COMPUTES, {"simulation", *(name for name in TREE if name.startswith("rules."))}),
}


def reached(roots: set[str]) -> set[str]:
    """The modules that these import, and those that they import, and so on."""
    pending, seen = set(roots), set[str]()
    while pending:
        seen.add(module := pending.pop())
        pending |= {name for found in imports_of(TREE[module], TREE) if (name := own(found)) is not None} - seen
    return seen


def missing(hashed: tuple[str, ...], modules: set[str]) -> set[str]:
    return {module for module in modules if not any(f"{module}.".startswith(f"{name}.") for name in hashed)}


@pytest.mark.parametrize(("hashed", "roots"), COMPUTED.values(), ids=COMPUTED)
def test_what_results_come_from_is_hashed(hashed, roots):
    modules = reached(roots) - CARRIES
    assert not missing(hashed, modules)
    for name in hashed:
        assert missing(tuple(other for other in hashed if other != name), modules), f"{name} is hashed for nothing"


def test_a_change_anywhere_in_a_package_changes_its_hash(monkeypatch):
    before = hash_of_sources("penalties", "axes"), hash_of_sources("rules", "axes")
    assert before[0] != before[1]
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "norms.py"))
    assert hash_of_sources("penalties", "axes") != before[0]
    assert hash_of_sources("rules", "axes") == before[1]

"""The whole ledger, run once for every test that looks at it; and the order of the files."""

from __future__ import annotations

from pathlib import Path

import pytest

LONGEST = ("test_claims.py", "test_examples.py", "test_audit_scripts.py")
"""Files of few and long tests: they begin, so that no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder that `reproduce` writes with its defaults, and its rows."""
    import nonsmooth.claims  # noqa: F401
    from nonsmooth.claims.reproduce import reproduce

    out = tmp_path_factory.mktemp("reproduced") / "out"
    return out, reproduce(out)

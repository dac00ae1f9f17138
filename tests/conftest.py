"""The whole ledger, run once for every test that looks at it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder that `reproduce` writes with its defaults, and its rows."""
    import nonsmooth.claims  # noqa: F401
    from nonsmooth.claims.reproduce import reproduce

    out = tmp_path_factory.mktemp("reproduced") / "out"
    return out, reproduce(out)

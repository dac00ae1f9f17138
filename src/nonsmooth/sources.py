"""A hash of the package's own sources: what other code has computed is not taken for what this code would."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["hash_of_sources"]


def hash_of_sources(*names: str) -> str:
    """The SHA-256 of the names and bytes of these modules, and of all that lie in these packages, of `nonsmooth`.

    >>> hash_of_sources("rules") == hash_of_sources("rules"), hash_of_sources("rules") == hash_of_sources("axes")
    (True, False)
    """
    root = Path(__file__).parent
    whole = hashlib.sha256()
    for stem in (root.joinpath(*name.split(".")) for name in names):
        for path in sorted(stem.rglob("*.py")) or [stem.with_suffix(".py")]:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return whole.hexdigest()

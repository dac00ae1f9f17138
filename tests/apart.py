"""A test in a process of its own, where this one has loaded what does not bear a fork."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
from collections.abc import Callable


def apart(test: Callable[[], None]) -> Callable[[], None]:
    """Run it here, or, once JAX has started its threads, in another process: JAX warns of any fork after that."""

    @functools.wraps(test)
    def run() -> None:
        if "jax" not in sys.modules:
            test()
            return
        name = f"{inspect.getsourcefile(test)}::{test.__name__}"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        found = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert found.returncode == 0 and "1 passed" in found.stdout, found.stdout + found.stderr

    return run

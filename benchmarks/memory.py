"""Resident memory of this process, for the benchmarks (Linux)."""

from __future__ import annotations

import gc
from pathlib import Path


def resident(peak: bool = False) -> int:
    """Bytes of resident memory, now or at its peak."""
    line = "VmHWM:" if peak else "VmRSS:"
    return 1024 * int(Path("/proc/self/status").read_text().partition(line)[2].split()[0])


def rest() -> int:
    """Bytes of resident memory now, where the peak begins anew."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident()

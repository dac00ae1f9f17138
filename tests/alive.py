"""What tensors hold memory now."""

from __future__ import annotations

import gc

import torch


def long_storages(least: int) -> dict[int, int]:
    """The memory behind tensors of at least so many entries: bytes, by their place, each once."""
    alive = (t for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter) and t.numel() >= least)
    return {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in alive)}

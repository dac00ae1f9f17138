"""The same mathematics on real training: needs PyTorch, the `torch` extra, and nothing of the lab."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    raise ModuleNotFoundError(
        "nonsmooth.torch needs torch, which is not installed; run: pip install 'nonsmooth[torch]'", name="torch"
    ) from missing

from nonsmooth.torch.kinkcheck import KinkError, KinkReport, KinkRow, kinkcheck

__all__ = ["KinkError", "KinkReport", "KinkRow", "kinkcheck"]

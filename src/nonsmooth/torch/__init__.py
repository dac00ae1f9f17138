"""The same mathematics on real training: needs PyTorch, the `torch` extra, and nothing of the lab."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    raise ModuleNotFoundError(
        "nonsmooth.torch needs torch, which is not installed; run: pip install 'nonsmooth[torch]'", name="torch"
    ) from missing

from nonsmooth.torch.certificates import (
    KKT,
    DualityGap,
    KKTRow,
    Residual,
    StationaryLam,
    decay_residual,
    duality_gap,
    kkt,
    prox_residual,
    stationary_lam,
)
from nonsmooth.torch.effective import effective_step, register_effective_step
from nonsmooth.torch.kinkcheck import KinkError, KinkReport, KinkRow, kinkcheck
from nonsmooth.torch.proximal import LambdaLam, Proximal, weights
from nonsmooth.torch.sparsity import Density, DensityRow, LamPath, Refit, TargetSparsity, density, lam_path, refit

__all__ = [
    "Density",
    "DensityRow",
    "DualityGap",
    "KKT",
    "KKTRow",
    "KinkError",
    "KinkReport",
    "KinkRow",
    "LamPath",
    "LambdaLam",
    "Proximal",
    "Refit",
    "Residual",
    "StationaryLam",
    "TargetSparsity",
    "decay_residual",
    "density",
    "duality_gap",
    "effective_step",
    "kinkcheck",
    "kkt",
    "lam_path",
    "prox_residual",
    "refit",
    "register_effective_step",
    "stationary_lam",
    "weights",
]

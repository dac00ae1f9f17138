"""The same mathematics on real training: needs PyTorch, the `torch` extra, and nothing of the lab."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    raise ModuleNotFoundError(
        "nonsmooth.torch needs torch, which is not installed; run: pip install 'nonsmooth[torch]'", name="torch"
    ) from missing

from nonsmooth.torch.alternatives import FromRule, MagnitudePruning, penalised, remove_spred, spred
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
from nonsmooth.torch.compress import Compressed, Cost, compress
from nonsmooth.torch.effective import effective_step, register_effective_step
from nonsmooth.torch.kinkcheck import KinkError, KinkReport, KinkRow, kinkcheck
from nonsmooth.torch.proximal import LambdaLam, Proximal, weights
from nonsmooth.torch.semistructured import SemiStructured, semi_structured
from nonsmooth.torch.sparsity import Density, DensityRow, LamPath, Refit, TargetSparsity, density, lam_path, refit

__all__ = [
    "Compressed",
    "Cost",
    "Density",
    "DensityRow",
    "DualityGap",
    "FromRule",
    "KKT",
    "KKTRow",
    "KinkError",
    "KinkReport",
    "KinkRow",
    "LamPath",
    "LambdaLam",
    "MagnitudePruning",
    "Proximal",
    "Refit",
    "Residual",
    "SemiStructured",
    "StationaryLam",
    "TargetSparsity",
    "compress",
    "decay_residual",
    "density",
    "duality_gap",
    "effective_step",
    "kinkcheck",
    "kkt",
    "lam_path",
    "penalised",
    "prox_residual",
    "refit",
    "register_effective_step",
    "remove_spred",
    "semi_structured",
    "spred",
    "stationary_lam",
    "weights",
]

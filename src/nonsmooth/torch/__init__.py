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
from nonsmooth.torch.census import Census, Hidden, Operation, census
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
from nonsmooth.torch.curvature import Sharpness, Spectrum, Trace, by_layer, sharpness, spectrum, trace
from nonsmooth.torch.effective import effective_step, register_effective_step
from nonsmooth.torch.hessian import Batches, over
from nonsmooth.torch.kinkcheck import KinkError, KinkReport, KinkRow, kinkcheck
from nonsmooth.torch.monitor import Monitor
from nonsmooth.torch.proximal import LambdaLam, Proximal, weights
from nonsmooth.torch.selection import Choice, Flip, Selection, flips, record, replay
from nonsmooth.torch.semistructured import SemiStructured, semi_structured
from nonsmooth.torch.sparsity import Density, DensityRow, LamPath, Refit, TargetSparsity, density, lam_path, refit
from nonsmooth.torch.stability import Stability, stability
from nonsmooth.torch.steps import Holder, OrbitCurvature, Split, Step, holder, measure_step
from nonsmooth.torch.undisturbed import undisturbed

__all__ = [
    "Batches",
    "Census",
    "Choice",
    "Compressed",
    "Cost",
    "Density",
    "DensityRow",
    "DualityGap",
    "Flip",
    "FromRule",
    "Hidden",
    "Holder",
    "KKT",
    "KKTRow",
    "KinkError",
    "KinkReport",
    "KinkRow",
    "LamPath",
    "LambdaLam",
    "MagnitudePruning",
    "Monitor",
    "Operation",
    "OrbitCurvature",
    "Proximal",
    "Refit",
    "Residual",
    "Selection",
    "SemiStructured",
    "Sharpness",
    "Spectrum",
    "Split",
    "Stability",
    "StationaryLam",
    "Step",
    "TargetSparsity",
    "Trace",
    "by_layer",
    "census",
    "compress",
    "decay_residual",
    "density",
    "duality_gap",
    "effective_step",
    "flips",
    "holder",
    "kinkcheck",
    "kkt",
    "lam_path",
    "measure_step",
    "over",
    "penalised",
    "prox_residual",
    "record",
    "refit",
    "register_effective_step",
    "remove_spred",
    "replay",
    "semi_structured",
    "sharpness",
    "spectrum",
    "spred",
    "stability",
    "stationary_lam",
    "trace",
    "undisturbed",
    "weights",
]

"""The same mathematics on real training: needs PyTorch, the `torch` extra, and nothing of the lab."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as missing:
    if missing.name != "torch":
        raise
    raise ModuleNotFoundError(
        "nonsmooth.torch needs torch, which is not installed; run: pip install 'nonsmooth[torch]'", name="torch"
    ) from missing

from typing import Any

from nonsmooth.torch.alternatives import FromRule, MagnitudePruning, penalised, remove_spred, spred
from nonsmooth.torch.audit import Audit
from nonsmooth.torch.batch_sharpness import BatchSharpness, BatchThresholds, batch_sharpness, batch_thresholds
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
from nonsmooth.torch.findings import Finding
from nonsmooth.torch.kinkcheck import KinkError, KinkReport, KinkRow, kinkcheck
from nonsmooth.torch.l1_audit import L1Audit, PenaltyTerm, l1_audit, turning_lam
from nonsmooth.torch.monitor import Monitor
from nonsmooth.torch.parts import Batches, over
from nonsmooth.torch.penalty_terms import penalty_terms
from nonsmooth.torch.proximal import Proximal, weights
from nonsmooth.torch.ranks import mean_over_ranks
from nonsmooth.torch.replica import replica
from nonsmooth.torch.schedules import LambdaLam
from nonsmooth.torch.selection import Choice, Flip, Selection, flips, record, replay
from nonsmooth.torch.semistructured import SemiStructured, semi_structured
from nonsmooth.torch.smoothing import Smoothed, Smoothing, smoothed, smoothing
from nonsmooth.torch.sparsity import Density, DensityRow, LamPath, Refit, TargetSparsity, density, lam_path, refit
from nonsmooth.torch.stability import Stability, stability
from nonsmooth.torch.steps import Holder, OrbitCurvature, Split, Step, holder, measure_step
from nonsmooth.torch.undisturbed import undisturbed
from nonsmooth.torch.what_if import WhatIf, what_if

PAGES = {
    "Comparison": "comparison",
    "compare": "comparison",
    "write_comparison": "comparison",
    "write_run_report": "run_report",
    "LightningAudit": "integrations",
    "TransformersAudit": "integrations",
}
"""What draws pages or needs a trainer, and is imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name in PAGES:
        from importlib import import_module

        return getattr(import_module(f"nonsmooth.torch.{PAGES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Audit",
    "BatchSharpness",
    "BatchThresholds",
    "Batches",
    "Census",
    "Choice",
    "Comparison",
    "Compressed",
    "Cost",
    "Density",
    "DensityRow",
    "DualityGap",
    "Finding",
    "Flip",
    "FromRule",
    "Hidden",
    "Holder",
    "KKT",
    "KKTRow",
    "KinkError",
    "KinkReport",
    "KinkRow",
    "L1Audit",
    "LamPath",
    "LambdaLam",
    "MagnitudePruning",
    "Monitor",
    "Operation",
    "OrbitCurvature",
    "PenaltyTerm",
    "Proximal",
    "Refit",
    "Residual",
    "Selection",
    "SemiStructured",
    "Sharpness",
    "Smoothed",
    "Smoothing",
    "Spectrum",
    "Split",
    "Stability",
    "StationaryLam",
    "Step",
    "TargetSparsity",
    "Trace",
    "WhatIf",
    "batch_sharpness",
    "batch_thresholds",
    "by_layer",
    "census",
    "compare",
    "compress",
    "decay_residual",
    "density",
    "duality_gap",
    "effective_step",
    "flips",
    "holder",
    "kinkcheck",
    "kkt",
    "l1_audit",
    "lam_path",
    "mean_over_ranks",
    "measure_step",
    "over",
    "penalised",
    "penalty_terms",
    "prox_residual",
    "record",
    "refit",
    "register_effective_step",
    "remove_spred",
    "replay",
    "replica",
    "semi_structured",
    "sharpness",
    "smoothed",
    "smoothing",
    "spectrum",
    "spred",
    "stability",
    "stationary_lam",
    "trace",
    "turning_lam",
    "undisturbed",
    "weights",
    "what_if",
    "write_comparison",
    "write_run_report",
]

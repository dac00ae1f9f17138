"""The five sentences put to networks that are trained: claims with ids `networks/…`, in the order of the sentences."""

# ruff: noqa: I001 (the order is the ledger's)
from nonsmooth.claims.networks import convergence, smoothness, smoothing
from nonsmooth.claims.networks import l1, pruning, slimming
from nonsmooth.claims.networks import rmsprop, rmsprop_edge
from nonsmooth.claims.networks import edge, edge_kinks, edge_optimizers
from nonsmooth.claims.networks import autodiff

__all__ = [
    "autodiff",
    "convergence",
    "edge",
    "edge_kinks",
    "edge_optimizers",
    "l1",
    "pruning",
    "rmsprop",
    "rmsprop_edge",
    "slimming",
    "smoothing",
    "smoothness",
]

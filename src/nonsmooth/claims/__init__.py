"""The content: what is claimed, each claim one experiment; importing this package fills `ledger.CLAIMS`."""

# ruff: noqa: I001 (the order is the ledger's)
from nonsmooth.claims import convergence, worst_cases, remedies
from nonsmooth.claims import floors, variations, paradox, zeros
from nonsmooth.claims import rmsprop
from nonsmooth.claims import edge, thresholds
from nonsmooth.claims import autodiff, literature
from nonsmooth.claims import networks

__all__ = [
    "autodiff",
    "convergence",
    "edge",
    "floors",
    "literature",
    "networks",
    "paradox",
    "remedies",
    "rmsprop",
    "thresholds",
    "variations",
    "worst_cases",
    "zeros",
]

"""The content: what is claimed, each claim one experiment; importing this package fills `ledger.CLAIMS`."""

from nonsmooth.claims import convergence, edge, l1, rmsprop

__all__ = ["convergence", "edge", "l1", "rmsprop"]

"""Small networks trained on real data, each run described by a `Setting` and kept as a row of plain data.

What a run is asked to measure is done by observers, with the tools of `nonsmooth.torch`. `runs_of` trains what a store
does not hold yet, on all cores, in processes of their own: torch is not imported here, and JAX is not there.
"""

from nonsmooth.networks.setting import Setting, drawn
from nonsmooth.networks.store import STORE, Store, runs_of

__all__ = ["STORE", "Setting", "Store", "drawn", "runs_of"]

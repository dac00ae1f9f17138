"""Sweeps: any number of runs, in shards of one width, each kept as it ends; read as one xarray.Dataset."""

from nonsmooth.sweeps.design import LogUniform, Random, Uniform
from nonsmooth.sweeps.sweep import open_sweep, sweep

__all__ = ["LogUniform", "Random", "Uniform", "open_sweep", "sweep"]

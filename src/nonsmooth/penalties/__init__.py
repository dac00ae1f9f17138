"""Penalties g: value, the gradient that autograd returns, proximal map, and the certificate beside it.

A penalty sees one point x of any shape and sums over all of it (batching is `vmap`'s). With t > 0 a number or
an array of x's shape,

    prox(x, t) = argmin_p  g(p) + Σ (p − x)²/(2t)

and `subdiff_distance(x, v)` is, coordinate by coordinate, how far v is from ∂g(x). For convex g, p = prox(x, t)
exactly when (x − p)/t ∈ ∂g(p); for the others, whose `convex` is False, that is necessary only. NaN in x comes out as
NaN. Everything works on NumPy, JAX and torch arrays alike. Source: Parikh & Boyd 2014, Proximal algorithms, sections 1
and 6.
"""

from nonsmooth.penalties.constraints import NM, Box, NonNegative, Simplex
from nonsmooth.penalties.groups import GroupLasso, SparseGroupLasso
from nonsmooth.penalties.nonconvex import L0, MCP, SCAD, LHalf
from nonsmooth.penalties.norms import L1, ElasticNet, SmoothedL1, SquaredL2
from nonsmooth.penalties.penalty import Penalty
from nonsmooth.penalties.penalty import as_precise as as_precise
from nonsmooth.penalties.penalty import positive_part as positive_part
from nonsmooth.penalties.penalty import ratio as ratio
from nonsmooth.penalties.penalty import shrink as shrink
from nonsmooth.penalties.spectral import NuclearNorm

__all__ = [
    "Box",
    "ElasticNet",
    "GroupLasso",
    "L0",
    "L1",
    "LHalf",
    "MCP",
    "NM",
    "NonNegative",
    "NuclearNorm",
    "Penalty",
    "SCAD",
    "Simplex",
    "SmoothedL1",
    "SparseGroupLasso",
    "SquaredL2",
]

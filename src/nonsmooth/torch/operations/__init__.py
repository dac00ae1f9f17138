"""Operations: the functions and methods of torch that have kinks, how smooth each is, where its kinks are.

A smoothness class is that of the operation as a function of its floating-point inputs on its domain (a square root
kinks at the border, with an infinite slope): discontinuous, C⁰, C¹ or C^∞. It depends on arguments: `elu` is C¹ at
alpha = 1 and C⁰ elsewhere. A function has one entry, whatever its spelling: `torch.relu`, `torch.relu_`,
`Tensor.relu` and `torch.nn.functional.relu` are `relu`.
"""

from nonsmooth.torch.operations.entrywise import COMPARISONS
from nonsmooth.torch.operations.kink import C0, C1, DISCONTINUOUS, SMOOTH, Kinks, Probe
from nonsmooth.torch.operations.table import MOVES, SMOOTHS, TABLE, kinks, name_of, returned

__all__ = [
    "C0",
    "C1",
    "COMPARISONS",
    "DISCONTINUOUS",
    "MOVES",
    "SMOOTH",
    "SMOOTHS",
    "TABLE",
    "Kinks",
    "Probe",
    "kinks",
    "name_of",
    "returned",
]

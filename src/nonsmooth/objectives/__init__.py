"""Objectives f: value, the gradient that autograd returns, kinks, constants and minimiser.

A point x is a vector of shape (P,); f(x) is a scalar and f.grad(x) has x's shape. `grad` is the *selection*: the
gradient where f is differentiable, and elsewhere what torch's automatic differentiation returns for the spelling
given in the docstring. `kinks(x)` has one entry for each place where the gradient jumps, 0 exactly when x lies on
it. `constants` are the smallest valid L (Lipschitz constant of the gradient), G (of f itself) and mu (strong
convexity), or a bound where the docstring says so; infinite where there is none. Everything works on NumPy, JAX
and torch arrays alike.
"""

from nonsmooth.objectives.finite_sum import FiniteSum, Hinge, LeastSquares, Logistic, Quantile
from nonsmooth.objectives.instances import (
    breast_cancer,
    diabetes,
    random_least_squares,
    subgradient_hard_instance,
    subgradient_last_iterate_instance,
)
from nonsmooth.objectives.maximum import MaxLinear, MaxQuadratic
from nonsmooth.objectives.networks import ReLURegression, TwoLayer
from nonsmooth.objectives.objective import Constants, Objective
from nonsmooth.objectives.reparametrised import Spred
from nonsmooth.objectives.separable import Absolute, Huber, LogCosh, PseudoHuber, Quadratic, Separable

__all__ = [
    "Absolute",
    "Constants",
    "FiniteSum",
    "Hinge",
    "Huber",
    "LeastSquares",
    "LogCosh",
    "Logistic",
    "MaxLinear",
    "MaxQuadratic",
    "Objective",
    "PseudoHuber",
    "Quadratic",
    "Quantile",
    "ReLURegression",
    "Separable",
    "Spred",
    "TwoLayer",
    "breast_cancer",
    "diabetes",
    "random_least_squares",
    "subgradient_hard_instance",
    "subgradient_last_iterate_instance",
]

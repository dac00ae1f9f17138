"""Update rules and step-size schedules: pure functions of a point, a gradient and a memory.

A rule gives `init(x)`, the memory at the start, and `step(x, g, state)`, the next point and memory. It never
loops, stops, logs or plots; `simulate` does. `effective_step(state)` is the step τ of the proximal map that
belongs to the step just taken, a number or one value a coordinate: the response of the iterate to a constant
gradient, so that a prox at τ leaves the fixed points those of f + g while a momentum buffer fills, too (RDA and
LinearisedBregman apart, whose τ belongs to their own map).

Rules that torch has equal `torch.optim`, option for option. Any number may be a schedule; the loop resolves it
with `rule.at(t)` before it steps. Everything works on NumPy, JAX and torch arrays alike.
"""

from nonsmooth.rules.adam import Adam, Adamax, AdamW, NAdam, RAdam
from nonsmooth.rules.adaptive import Adadelta, Adagrad, Frozen, RMSProp
from nonsmooth.rules.averaging import ASGD, Averaging
from nonsmooth.rules.dual import RDA, LinearisedBregman
from nonsmooth.rules.fista import FISTA
from nonsmooth.rules.momentum import Gradient, HeavyBall, Nesterov
from nonsmooth.rules.rule import Rule
from nonsmooth.rules.schedules import Constant, Cosine, InverseSqrt, InverseTime, StepDecay
from nonsmooth.rules.subgradient import NormalisedSubgradient, Polyak, Sign

__all__ = [
    "ASGD",
    "FISTA",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Averaging",
    "Constant",
    "Cosine",
    "Frozen",
    "Gradient",
    "HeavyBall",
    "InverseSqrt",
    "InverseTime",
    "LinearisedBregman",
    "NAdam",
    "Nesterov",
    "NormalisedSubgradient",
    "Polyak",
    "RAdam",
    "RDA",
    "RMSProp",
    "Rule",
    "Sign",
    "StepDecay",
]

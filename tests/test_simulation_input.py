"""simulate and its kin, given what they cannot run: one sentence each."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from nonsmooth.objectives import (
    Absolute,
    Huber,
    LeastSquares,
    MaxQuadratic,
    Quadratic,
    breast_cancer,
    random_least_squares,
    subgradient_last_iterate_instance,
)
from nonsmooth.penalties import L1, MCP, GroupLasso, Penalty
from nonsmooth.rules import (
    Adam,
    Cosine,
    Gradient,
    InverseSqrt,
    RMSProp,
    StepDecay,
)
from nonsmooth.simulation import minimise, orbit_curvature, simulate
from runs import EDGES, TALL, array
from zoo import over

rejected = pytest.raises(AssertionError)


# ── bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────


class ProxOnly(Penalty):
    def value(self, x):
        return 0.0 * x.sum()

    def prox(self, x, t):
        return x


def call(**changes):
    given = {"objective": TALL, "rule": Gradient(0.1), "steps": 10} | changes
    return lambda: simulate(given.pop("objective"), given.pop("rule"), **given)


def named(name):
    """A measure called so."""

    def measure(m):
        return m.value

    measure.__name__ = name
    return measure


def pair(m):
    return {"value": m.value, "loss": m.loss}


def by_numpy(m):
    return np.asarray(m.x).max()


BAD: dict[str, tuple[Any, str]] = {
    "variable": (call(record="valeu"), "record: there is no variable 'valeu'; choose from value, loss, gap, "),
    "variable-number": (call(record=3), "record: there is no variable 3; choose from "),
    "variable-list": (call(record=[["x"]]), "record: there is no variable ['x']; choose from "),
    "variable-dict": (
        call(record=pair),
        "record: pair must return a number or one array, not dict; make a function of each.",
    ),
    "variable-numpy": (
        call(record=by_numpy),
        "record: by_numpy asks for the value of what JAX traces; compute with jax.numpy, not NumPy, float or if.",
    ),
    "lambda": (lambda: L1(-1.0), "L1: lam must be a finite number, 0 or above, not -1."),
    "step-size": (lambda: Gradient(0.0), "Gradient: lr must be a finite number above 0, not 0."),
    "empty": (lambda: Gradient([]), "Gradient: lr is empty; give at least one value."),
    "nan": (
        lambda: LeastSquares([[np.nan]], [1.0]),
        "LeastSquares: X holds 1 value(s) that are NaN or infinite; drop or fill them first.",
    ),
    "start-shape": (
        call(x0=np.zeros(5)),
        "simulate: x0 has shape (5,) but points (6,); name further axes in a DataArray.",
    ),
    "start-plane": (
        call(x0=np.zeros((2, 6))),
        "simulate: x0 has shape (2, 6) but points (6,); name further axes in a DataArray.",
    ),
    "start-labelled": (
        call(x0=array(np.zeros((6, 2)), "start", "point")),
        "simulate: x0 has shape (6, 2) but points (6,); name further axes in a DataArray.",
    ),
    "start-step": (
        call(x0=array(np.zeros((2, 6)), "step", "point")),
        "x0 has a dimension called 'step', which every run has already; rename it.",
    ),
    "start-nan": (call(x0=np.nan), "simulate: x0 holds NaN or infinite values; start from finite ones."),
    "weights": (
        call(penalty=L1(1.0, weights=[1.0, 2.0])),
        "L1: weights of shape (2,) do not fit a point of shape (6,).",
    ),
    "weights-prox": (
        call(penalty=L1(1.0, weights=[[1.0] * 6]), penalty_by="prox"),
        "L1: weights of shape (1, 6) do not fit a point of shape (6,).",
    ),
    "groups": (
        call(penalty=GroupLasso(1.0, groups=(0, 1))),
        "GroupLasso: 2 group labels do not fit a point of shape (6,).",
    ),
    "no-gradient": (call(penalty=ProxOnly()), "ProxOnly has no gradient; use penalty_by='prox'."),
    "rows": (
        call(objective=Huber(), batch_size=2),
        "simulate: Huber has no rows, so batch_size means nothing; leave it out.",
    ),
    "batch": (call(batch_size=25), "simulate: batch_size=25 exceeds the 24 rows of data."),
    "batch-zero": (call(batch_size=0), "simulate: batch_size must be a whole number, 1 or above, not 0."),
    "steps": (call(steps=0), "simulate: steps must be a whole number, 1 or above, not 0."),
    "steps-half": (call(steps=2.5), "simulate: steps must be a whole number, 1 or above, not 2.5."),
    "every": (call(every=11), "simulate: every=11 keeps nothing of 10 steps; take every <= steps."),
    "tail": (call(tail=0), "simulate: tail must be a whole number, 1 or above, not 0."),
    "no-seeds": (
        call(seeds=0),
        "simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not 0.",
    ),
    "seeds": (
        call(seeds=-2),
        "simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not -2.",
    ),
    "seed": (
        call(seeds=[1, -1]),
        "simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not [1, -1].",
    ),
    "seed-word": (
        call(seeds="a"),
        "simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not 'a'.",
    ),
    "seed-large": (
        call(seeds=[2**53 + 1]),
        "simulate: seeds must be a count above 0 or a list of whole numbers from 0 to 2**53, not [9007199254740993].",
    ),
    "seed-twice": (call(seeds=[1, 2, 1]), "simulate: seeds holds 1 more than once; give each once."),
    "seeds-many": (call(seeds=10**14), "simulate: the starts of 100000000000000 seeds need 4800000 GB of memory, more"),
    "steps-many": (call(steps=2**60), f"simulate: steps must be a whole number, 1 or above, not {2**60}."),
    "records": (
        call(steps=10**13),
        "simulate: the records of 10000000000000 steps need 160000 GB of memory, more than is free; keep fewer steps "
        "by tail= or every=.",
    ),
    "grid": (
        call(rule=Gradient(np.full(10**6, 0.1)), penalty=L1(np.ones(10**6))),
        "simulate: 1000000000000 runs from 6 coordinates need 208000 GB of memory, more than is free; take fewer",
    ),
    "start-word": (call(x0="a"), "simulate: x0 must hold real numbers, not 'a'."),
    "start-complex": (call(x0=1j), "simulate: x0 must hold real numbers, not 1j."),
    "start-labelled-complex": (
        call(x0=array(np.full(6, 1j), "point")),
        "simulate: x0 must hold real numbers, not an array of shape (6,).",
    ),
    "minimum-nan": (call(f_star=np.nan), "simulate: f_star must be a finite number, not nan."),
    "minimum-plane": (
        call(f_star=np.zeros(2)),
        "simulate: f_star must be a finite number, not an array of shape (2,).",
    ),
    "minimum-word": (call(f_star="a"), "simulate: f_star must be a finite number, not 'a'."),
    "lambdas": (
        call(record=[lambda m: m.value, lambda m: m.loss]),
        "record: two functions are called '<lambda>'; give each its own name by def.",
    ),
    **{
        f"name-{name}": (
            call(rule=Gradient([0.1, 0.2]), record=named(name)),
            f"record: {name!r} is what every run or a field of this one is called; rename it.",
        )
        for name in ("x_final", "diverged_at", "step", "coordinate", "lr")
    },
    "curvature": (
        lambda: orbit_curvature(simulate(TALL, Gradient(0.1), steps=1)),
        'orbit_curvature: simulate with record=("grad_change_sq", "grad_change_dot_step").',
    ),
    "flag": (lambda: RMSProp(centered="no"), "RMSProp: centered must be True or False, not 'no'."),
    "flags": (lambda: Adam(amsgrad=[True, False]), "Adam: amsgrad must be True or False, not [True, False]."),
    "half-steps": (lambda: Cosine(1.0, 10.5), "Cosine: steps must be a whole number, not 10.5."),
    "step-word": (lambda: Cosine(1.0, "a"), "Cosine: steps must be a whole number, not 'a'."),
    "half-decay": (lambda: StepDecay(1.0, every=1.5), "StepDecay: every must be a whole number, not 1.5."),
    "complex-data": (
        lambda: LeastSquares(np.array([[1j]]), [1.0]),
        "LeastSquares: X must be an array of finite numbers, not [[1j]].",
    ),
    "features": (
        lambda: breast_cancer(features=100),
        "breast_cancer: features must be a whole number, from 1 to 30, not 100.",
    ),
    "features-negative": (
        lambda: breast_cancer(features=-5),
        "breast_cancer: features must be a whole number, from 1 to 30, not -5.",
    ),
    "loss-word": (
        lambda: breast_cancer("Foo"),
        "breast_cancer: loss must be a class, Logistic or Hinge, not 'Foo'.",
    ),
    "worst-0": (
        lambda: subgradient_last_iterate_instance(0),
        "subgradient_last_iterate_instance: n must be a whole number, from 1 to 80, not 0.",
    ),
    "worst-100": (
        lambda: subgradient_last_iterate_instance(100),
        "subgradient_last_iterate_instance: n must be a whole number, from 1 to 80, not 100.",
    ),
    "rows-list": (
        lambda: random_least_squares(n=[10, 20]),
        "random_least_squares: n must be a whole number, 1 or above, not [10, 20].",
    ),
    "gap-nonconvex": (
        call(penalty=MCP(1.0, gamma=3.0), record="gap"),
        "MCP is not convex, so its minimum is not computed; pass f_star=.",
    ),
    "penalty-by": (call(penalty_by="porx"), "simulate: penalty_by must be 'autograd' or 'prox', not 'porx'."),
    "objective": (call(objective="lasso"), "simulate: objective must be one of nonsmooth's, not str."),
    "rule": (call(rule=0.1), "simulate: rule must be one of nonsmooth's, not float."),
    "penalty": (call(penalty=0.1), "simulate: penalty must be one of nonsmooth's, not float."),
    "plane": (
        call(rule=Gradient([[0.1, 0.2]])),
        "rule: lr has shape (1, 2); give a flat list, or a DataArray that names its dimensions.",
    ),
    "gap": (
        call(objective=EDGES, record="gap"),
        "Hinge has no Lipschitz gradient, so its minimum is not computed; pass f_star=.",
    ),
    "gap-penalty": (
        call(objective=Absolute(), penalty=L1(1.0), record="gap"),
        "Absolute has no Lipschitz gradient, so its minimum is not computed; pass f_star=.",
    ),
    "gap-saddle": (
        call(objective=Quadratic([-1.0, 1.0]), record="gap"),
        "Quadratic is not convex, so its minimum is not computed; pass f_star=.",
    ),
    "gap-scheduled": (
        call(penalty=L1(InverseSqrt(1.0)), record="gap"),
        "L1 is scheduled, so no one minimum is computed; take a constant penalty, or pass f_star=.",
    ),
    "minimise-swept": (
        lambda: minimise(MaxQuadratic(4, 4, mu=[1.0, 2.0])),
        "minimise: MaxQuadratic is swept over mu; minimise it at each value.",
    ),
    "scheduled-objective": (
        lambda: Huber(InverseSqrt(1.0)),
        "Huber: delta must be a finite number above 0, not InverseSqrt(lr=1).",
    ),
    "scheduled-schedule": (
        lambda: Cosine(InverseSqrt(1.0), steps=9),
        "Cosine: lr must be a finite number above 0, not InverseSqrt(lr=1).",
    ),
    "gap-sweep": (
        call(objective=Huber([1.0, 2.0]), penalty=L1(1.0), record="gap"),
        "simulate: 'gap' over a swept objective needs f_star=, or no penalty and plain lists.",
    ),
}


@pytest.mark.parametrize(("make", "sentence"), over(BAD))
def test_bad_input_gives_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}") as error:
        make()
    assert str(error.value).count("\n") == 0
    assert str(error.value).endswith(".")

"""What `simulate` may record: functions of a `Moment`, a step of a run with what the rule was told on both sides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MEASURES", "Measure", "Moment", "measures_of", "orbit_curvature", "taken"]

Measure = Callable[["Moment"], Any]


@dataclass(frozen=True)
class Moment:
    """What a measure sees after step t, with `before` the same at step t − 1.

    `x` is the method's answer (P,), `g` what the rule is told there: the full-batch g̃ of f, with the penalty's
    gradient in it when the penalty is taken by autograd. A minibatch run is measured on the whole data.

    >>> from nonsmooth.objectives import Absolute
    >>> there, here = np.array([0.25]), np.array([-0.25])
    >>> moment = Moment(1, here, np.sign(here), there, np.sign(there), Absolute(), None, 0.0)
    >>> float(moment.value), float(MEASURES["kappa"](moment))
    (0.25, 4.0)
    """

    t: Any
    x: Any
    g: Any
    x_before: Any
    g_before: Any
    objective: Any
    penalty: Any
    f_star: Any

    @property
    def loss(self) -> Any:
        return self.objective.value(self.x)

    @property
    def value(self) -> Any:
        return self.loss if self.penalty is None else self.loss + self.penalty.value(self.x)

    @property
    def step(self) -> Any:
        """D = x − x_before."""
        return self.x - self.x_before

    @property
    def change(self) -> Any:
        """g − g_before."""
        return self.g - self.g_before


def _total(a: Any) -> Any:
    return a.sum()


def _prox_residual(m: Moment) -> Any:
    """‖x − prox_g(x − ∇f(x))‖, at t = 1."""
    gradient = m.objective.grad(m.x)
    if m.penalty is None:
        return _total(gradient**2) ** 0.5
    return _total((m.x - m.penalty.prox(m.x - gradient, 1.0)) ** 2) ** 0.5


MEASURES: dict[str, Measure] = {
    "value": lambda m: m.value,
    "loss": lambda m: m.loss,
    "gap": lambda m: m.value - m.f_star,
    "l1_norm": lambda m: _total(abs(m.x)),
    "zeros": lambda m: _total(m.x == 0),
    "sign_changes": lambda m: _total(m.x * m.x_before < 0),
    "grad_norm": lambda m: _total(m.g**2) ** 0.5,
    "kappa": lambda m: _total(m.change * m.step) / _total(m.step**2),
    "grad_change_sq": lambda m: _total(m.change**2),
    "grad_change_dot_step": lambda m: _total(m.change * m.step),
    "grad_dot_x": lambda m: _total(m.g * m.x),
    "prox_residual": _prox_residual,
    "x": lambda m: m.x,
}
"""What `record=` may name, each a function of a `Moment`: `value` (penalty included), `loss` (without), `gap` (value
minus the minimum), `l1_norm`, `zeros` (exact), `sign_changes` (coordinates that changed sign in the step), `grad_norm`
(‖g̃‖), `kappa` (step curvature ⟨Δg, D⟩/‖D‖²; NaN where the point did not move), `grad_change_sq` (‖Δg‖²),
`grad_change_dot_step` (⟨Δg, D⟩), `grad_dot_x` (⟨g̃, x⟩), `prox_residual` (at t = 1) and `x` itself."""


def measures_of(record: Any) -> dict[str, Measure]:
    """What `record=` names, by name; raises ValueError for what is no measure and for two functions of one name.

    >>> list(measures_of(["value", np.size]))
    ['value', 'size']
    """
    record = record if isinstance(record, Iterable) and not isinstance(record, str) else (record,)
    chosen: dict[str, Measure] = {}
    for entry in record:
        if callable(entry):
            name, measure = getattr(entry, "__name__", type(entry).__name__), entry
        elif isinstance(entry, str) and entry in MEASURES:
            name, measure = entry, MEASURES[entry]
        else:
            raise ValueError(f"record: there is no variable {entry!r}; choose from {', '.join(MEASURES)}.")
        if chosen.setdefault(name, measure) is not measure:
            raise ValueError(f"record: two functions are called {name!r}; give each its own name by def.")
    return chosen


def taken(name: str, measure: Measure, moment: Moment) -> Any:
    """What the measure makes of a moment that JAX traces, an array; raises ValueError where it makes none.

    >>> taken("double", lambda m: 2 * m.t, Moment(3, *[None] * 7)).tolist()
    6
    """
    import jax

    try:
        found = measure(moment)
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            f"record: {name} asks for the value of what JAX traces; compute with jax.numpy, not NumPy, float or if."
        ) from error
    try:
        return jax.numpy.asarray(found)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"record: {name} must return a number or one array, not {type(found).__name__}; make a function of each."
        ) from error


def need_free_names(names: Iterable[str], taken: Collection[str]) -> None:
    """Raises ValueError where a variable would be called as a dimension or another variable of the run."""
    for name in names:
        if name in {"x_final", "diverged_at", "step", "coordinate", *taken}:
            raise ValueError(f"record: {name!r} is what every run or a field of this one is called; rename it.")


def orbit_curvature(run: xr.Dataset) -> xr.DataArray:
    """κ̄ = Σ‖Δg‖² / Σ⟨Δg, D⟩ over the recorded steps of a run with `grad_change_sq` and `grad_change_dot_step`.

    On the tail of a bounded run of full-batch constant-step GD that does not converge, κ̄ → 2/η.

    >>> import nonsmooth as ns
    >>> from nonsmooth.objectives import Absolute
    >>> from nonsmooth.rules import Gradient
    >>> changes = ("grad_change_sq", "grad_change_dot_step")
    >>> float(ns.orbit_curvature(ns.simulate(Absolute(), Gradient(lr=0.5), x0=0.25, steps=8, record=changes)))
    4.0
    """
    if not {"grad_change_sq", "grad_change_dot_step"} <= set(run.data_vars):
        raise ValueError('orbit_curvature: simulate with record=("grad_change_sq", "grad_change_dot_step").')
    return run.grad_change_sq.sum("step") / run.grad_change_dot_step.sum("step")

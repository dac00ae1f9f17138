"""Certificates: how far the parameters of a `Proximal` are from solving what they should.

A closure returns the scalar loss f, the penalty not in it, with its graph, and never calls backward; one that does is
refused. Looking does not disturb: gradients come from `torch.autograd.grad`, and `.grad`, the buffers of the modules
that the closure calls, and torch's random numbers are left as they were. All is computed in float64, but at which bound
a weight is, and of which rank a matrix, is asked in the parameter's own precision.

∇f is that of what the optimiser descends: coupled weight decay wd adds ½wd‖w‖² to f, ASGD's lambd likewise, `maximize`
turns the sign. Decoupled decay (AdamW) is not part of f, and has an equation of its own, `decay_residual`.
Within a `refit` f is a function of the weights that are not held at 0: ∂f is 0 at the others.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from array_api_compat import array_namespace

from nonsmooth.hyperparameters import like
from nonsmooth.objectives import LeastSquares, Logistic
from nonsmooth.penalties import L0, L1, MCP, SCAD, ElasticNet, GroupLasso, LHalf, Penalty, SparseGroupLasso
from nonsmooth.torch.effective import table_of, unwrapped
from nonsmooth.torch.proximal import Proximal, need_proximal
from nonsmooth.torch.shards import need_whole
from nonsmooth.torch.sparsity import Refit
from nonsmooth.torch.steps.evaluation import kept, put
from nonsmooth.torch.undisturbed import undisturbed

__all__ = [
    "KKT",
    "DualityGap",
    "KKTRow",
    "Residual",
    "StationaryLam",
    "decay_residual",
    "duality_gap",
    "kkt",
    "prox_residual",
    "stationary_lam",
]

Closure = Callable[[], torch.Tensor]
BISECTIONS = 60  # for the λ at which a sparse group at zero is stationary


@dataclass(frozen=True)
class Residual:
    """A residual: its norm over all parameters, the t that it was asked at, and (name, norm) for each parameter.

    >>> print(Residual(5.0, 1.0, (("0.weight", 3.0), ("2.weight", 4.0))))
    residual 5 at t = 1: 0.weight 3, 2.weight 4
    """

    value: float
    t: float | None
    by_parameter: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        at = "" if self.t is None else f" at t = {self.t:g}"
        return f"residual {self.value:.3g}{at}: " + ", ".join(f"{name} {r:.3g}" for name, r in self.by_parameter)


def prox_residual(
    optimizer: Proximal,
    closure: Closure,
    t: float = 1.0,
    *,
    unpenalised: bool = False,
    model: torch.nn.Module | None = None,
) -> Residual:
    """r_t(w) = ‖w − prox_{tg}(w − t∇f(w))‖/t over the penalised parameters; with `unpenalised`, ‖∇f‖ of the others too.

    For convex g it is 0 exactly at stationary points of f + g, at any t; for a non-convex g a zero says more than
    stationarity, and depends on t. Always report t: r_t falls as t grows. Under minibatches it does not vanish: give a
    closure of the whole data. `model` names the parameters; without it they have their index in the optimiser.

    Raises ValueError, in one sentence, for a t that is not above 0 or a closure that is not as it should be.

    >>> w = torch.nn.Parameter(torch.tensor([2.0, 0.0], dtype=torch.float64))
    >>> optimizer = Proximal(torch.optim.SGD([w], lr=0.1), L1(1.0))
    >>> prox_residual(optimizer, lambda: (0.5 * (w - torch.tensor([3.0, 0.5])) ** 2).sum()).value  # [2, 0] is it
    0.0
    >>> prox_residual(optimizer, lambda: (0.5 * (w - torch.tensor([3.5, 0.5])) ** 2).sum(), t=0.5).value
    0.5
    """
    if isinstance(t, bool) or not (isinstance(t, Real) and 0 < t < math.inf):
        raise ValueError(f"prox_residual: t must be a finite number above 0, not {t!r}.")
    t, optimizer = float(t), need_proximal("prox_residual", optimizer)
    slopes, called = _slopes("prox_residual", optimizer, closure), _names(optimizer, model)
    found = []
    for p, penalty in _penalised("prox_residual", optimizer):
        w = p.detach().to(torch.float64)
        found.append((called[p], _norm(w - penalty.prox(w - t * slopes.pop(p), t)) / t))
    if unpenalised:
        found += [(called[p], _norm(slope)) for p, slope in slopes.items()]
    return Residual(math.hypot(*(r for _, r in found)), t, tuple(found))


def decay_residual(optimizer: Proximal, closure: Closure, *, model: torch.nn.Module | None = None) -> Residual:
    """The distance from 0 to ∇f + (lr/τ) wd w + ∂g(w): the fixed points under decoupled weight decay.

    AdamW, and NAdam and RAdam with `decoupled_weight_decay`, shrink w by lr·wd outside of the effective step τ, so that
    with a prox at τ they solve this equation and not that of f + ½wd‖w‖² + g. For AdamW lr/τ is √v̂ + ε. It is
    computed coordinate by coordinate, and does not depend on lr, which may have decayed to 0.

    Raises ValueError where no group decays so, or before the first step: τ is not known.

    >>> w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    >>> optimizer = Proximal(torch.optim.AdamW([w], lr=0.05, weight_decay=0.1, betas=(0.0, 0.0)), L1(1.0))
    >>> f = lambda: 0.5 * (w - 3).square().sum()
    >>> for _ in range(1000):
    ...     w.grad = torch.autograd.grad(f(), w)[0]
    ...     optimizer.step()
    >>> decay_residual(optimizer, f).value < 1e-9 < 0.1 < prox_residual(optimizer, f).value
    True
    """
    optimizer = need_proximal("decay_residual", optimizer)
    slopes, called, found = _slopes("decay_residual", optimizer, closure), _names(optimizer, model), []
    if not any(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
        raise ValueError("decay_residual: no group has decoupled weight decay; use prox_residual or kkt.")
    table = table_of(optimizer.optimizer)
    for p, penalty, group in optimizer.penalised():
        if not p.requires_grad:
            continue
        w, v = p.detach(), -slopes[p]
        if group.get("decoupled_weight_decay"):
            state = optimizer.state.get(p, {})
            if not state:
                raise ValueError("decay_residual: the effective step is not known yet; take a step first.")
            v = v - group["weight_decay"] * w.double() / table.read({**group, "lr": 1.0}, state, None, 1.0).value()
        found.append((called[p], _norm(penalty.subdiff_distance(w, v))))
    return Residual(math.hypot(*(r for _, r in found)), None, tuple(found))


@dataclass(frozen=True)
class KKTRow:
    """One parameter: how many weights there are, what the optimality conditions say of them, and by how much at worst.

    `zero`: zero, and should be. `not_zero`: should be zero and is not; None where g is not convex. `stuck`: zero, and
    should not be. `distance`: the largest distance from −∂f to ∂g(w); `scale`: the size of ∂f that `tol` is a share of.

    >>> KKTRow("0.weight", 10, 7, 0, 0, 1e-9, 0.1).distance
    1e-09
    """

    name: str
    size: int
    zero: int
    not_zero: int | None
    stuck: int
    distance: float
    scale: float


@dataclass(frozen=True)
class KKT:
    """A table by parameter; it `holds` where no distance exceeds `tol` times the scale. As text, for people.

    >>> print(KKT(1e-3, (KKTRow("w", 10, 6, 1, 0, 0.02, 0.1),)))
    0 ∈ ∇f + ∂g does not hold (tol 0.001 of the scale)
      parameter      weights    zero, rightly  should be zero  should not be  distance
      w              10         6              1               0              0.02
    """

    tol: float
    rows: tuple[KKTRow, ...]

    @property
    def holds(self) -> bool:
        return all(row.distance <= self.tol * row.scale for row in self.rows)

    def __str__(self) -> str:
        wide = max(13, *(len(row.name) for row in self.rows))
        says = "holds" if self.holds else "does not hold"
        head = ("parameter", "weights", "zero, rightly", "should be zero", "should not be", "distance")
        lines = [f"0 ∈ ∇f + ∂g {says} (tol {self.tol:g} of the scale)"]
        for row in (
            head,
            *((r.name, r.size, r.zero, r.not_zero, r.stuck, f"{r.distance:.3g}") for r in self.rows),
        ):
            name, size, zero, not_zero, stuck, distance = ("–" if cell is None else str(cell) for cell in row)
            lines.append(f"  {name:{wide}}  {size:9}  {zero:13}  {not_zero:14}  {stuck:13}  {distance}".rstrip())
        return "\n".join(lines)


def kkt(optimizer: Proximal, closure: Closure, tol: float = 1e-3, *, model: torch.nn.Module | None = None) -> KKT:
    """0 ∈ ∇f(w) + ∂g(w), checked weight by weight, with a slack ε = `tol` times the scale of the parameter's ∂f.

    The scale is the largest |∂f|, which under L1 and its like is about λ at a solution; λ at least for MCP and SCAD.
    Where g is a constraint, L0 or at λ = 0, as in a refit, ∂f may vanish altogether; the scale is then at least the
    change of ∂f, to first order, as each weight goes to 0 by a random share of its size, for which the closure is
    called once more: w solves it, as far as first order tells, within `tol` of its size. Weights in bfloat16 are known
    to 0.4 %, too coarse for a tol of 0.001; take 0.05.

    A weight that is zero should be when −∂f is within ε of ∂g, under L1 |∂f| ≤ λ + ε, and is `stuck` otherwise. One
    that is not zero should be when −∂f lies in ∂g(0) with ε to spare, |∂f| ≤ λ − ε: at a solution |∂f| = λ on the
    support. Groups are weighed whole. For a non-convex g a gradient cannot tell the last (`None`): MCP leaves large
    weights at ∂f = 0. Far from a solution the counts say where the weights are pushed, no more.

    Raises ValueError, in one sentence, for a tol outside of [0, 1) or a closure that is not as it should be.

    >>> w = torch.nn.Parameter(torch.tensor([2.0, 0.0, 0.25, 0.0], dtype=torch.float64))
    >>> optimizer = Proximal(torch.optim.SGD([w], lr=0.1), L1(1.0))
    >>> table = kkt(optimizer, lambda: (0.5 * (w - torch.tensor([3.0, 0.5, 0.75, 4.0])) ** 2).sum())
    >>> row, = table.rows
    >>> (row.zero, row.not_zero, row.stuck, row.distance)
    (1, 1, 1, 3.0)
    """
    if isinstance(tol, bool) or not (isinstance(tol, Real) and 0 <= tol < 1):
        raise ValueError(f"kkt: tol must be a number in [0, 1), not {tol!r}.")
    tol, optimizer = float(tol), need_proximal("kkt", optimizer)
    slopes, called, rows = _slopes("kkt", optimizer, closure), _names(optimizer, model), []
    least = _least_scales("kkt", optimizer, closure, slopes)
    for p, penalty in _penalised("kkt", optimizer):
        w, v = p.detach(), -slopes[p]
        scale = max(_largest(v), least.get(p, 0.0))
        slack = tol * scale
        distance, is_zero = penalty.subdiff_distance(w, v), w == 0
        inside = sum(penalty.subdiff_distance(torch.zeros_like(w), v + s) for s in (slack, -slack)) == 0
        rows.append(
            KKTRow(
                called[p],
                w.numel(),
                int((is_zero & (distance <= slack)).sum()),
                int((~is_zero & inside).sum()) if penalty.convex else None,
                int((is_zero & (distance > slack)).sum()),
                _largest(distance),
                scale,
            )
        )
    return KKT(tol, tuple(rows))


@dataclass(frozen=True)
class StationaryLam:
    """The λ from which zero is stationary: over all penalised parameters, and (name, λ) for each.

    >>> StationaryLam(2.0, (("0.weight", 0.5), ("2.weight", 2.0))).value
    2.0
    """

    value: float
    by_parameter: tuple[tuple[str, float], ...]


def stationary_lam(
    optimizer: Proximal | Iterable[torch.Tensor], closure: Closure, *, model: torch.nn.Module | None = None
) -> StationaryLam:
    """The smallest λ at which w = 0 solves 0 ∈ ∇f(w) + ∂g(w), from one gradient at w = 0 of the penalised parameters.

    max |∂f_i| for L1 (over its weights), elastic net, MCP and SCAD, max ‖∂f_G‖/s_G for groups, 0 for L0 and L½, at
    which zero is always stationary. `optimizer` is a Proximal, or a list of parameters as if under L1. The parameters
    are set to 0, and put back bit by bit; all others, such as biases, stay where they are.

    For a convex model it is a global statement, once the unpenalised parameters are at their own minimiser: from this λ
    on, zero is the solution. For a network it says less: at zero weights hidden layers have zero gradient, and
    zero is stationary at any λ, while the trained network may be far from it.

    Raises TypeError for what is neither a Proximal nor a list, ValueError for parameters that are no leaves.

    >>> w, y = torch.nn.Parameter(torch.ones(2)), torch.tensor([3.0, -4.0])
    >>> stationary_lam(Proximal(torch.optim.SGD([w], lr=0.1), L1(0.0)), lambda: 0.5 * (w - y).square().sum()).value
    4.0
    """
    optimizer = unwrapped(optimizer, Proximal)
    if not isinstance(optimizer, Proximal):
        if isinstance(optimizer, torch.Tensor):
            raise TypeError("stationary_lam: give a Proximal or a list of parameters, not one tensor; write [w].")
        if not isinstance(optimizer, Iterable):
            raise TypeError(f"stationary_lam: give a Proximal or a list of parameters, not {type(optimizer).__name__}.")
        found = list(optimizer)
        _need_parameters("stationary_lam", found)
        if not all(p.is_leaf for p in found):
            raise ValueError("stationary_lam: the parameters must be leaves, not what is computed from them.")
        optimizer = Proximal(torch.optim.SGD(found, lr=0.0), L1(0.0))
    at = _penalised("stationary_lam", optimizer)
    with _at({p: torch.zeros_like(p) for p, _ in at}):
        slopes = _slopes("stationary_lam", optimizer, closure)
    called = _names(optimizer, model)
    by = tuple((called[p], critical(penalty, slopes[p])) for p, penalty in at)
    return StationaryLam(max(lam for _, lam in by), by)


def critical(penalty: Penalty, z: Any) -> float:
    """The smallest λ at which z ∈ ∂g(0): for λ times a norm, the dual norm of z.

    >>> critical(GroupLasso(0.0), torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    5.0
    """
    xp = array_namespace(z)
    if isinstance(penalty, (L1, ElasticNet, MCP, SCAD)):
        weights = getattr(penalty, "weights", None)
        return _largest(xp.abs(z) if weights is None else _over(xp.abs(z), like(weights, z)))
    if isinstance(penalty, GroupLasso):
        return _largest(penalty.norms(z) / penalty._scale(z))
    if isinstance(penalty, (L0, LHalf)):
        return 0.0
    if isinstance(penalty, SparseGroupLasso):
        low, high = 0.0, _largest(z)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            inside = _largest(penalty.replaced(lam=middle).subdiff_distance(xp.zeros_like(z), z)) == 0
            low, high = (low, middle) if inside else (middle, high)
        return high
    raise TypeError(f"stationary_lam: {type(penalty).__name__} has no λ from which zero is stationary.")


@dataclass(frozen=True)
class DualityGap:
    """F(w), the lower bound D(θ) ≤ min F, and their difference, which is at least F(w) − min F.

    >>> DualityGap(1.5, 1.25).value
    0.25
    """

    primal: float
    dual: float

    @property
    def value(self) -> float:
        return self.primal - self.dual


def duality_gap(f: LeastSquares | Logistic, penalty: Penalty, w: Any) -> DualityGap:
    """F(w) − D(θ) for F = f + g, f least squares or logistic, g an L1, GroupLasso or ElasticNet: at least F(w) − min F.

    With z = Xw and f = (1/N) Σ ℓ(zₙ), D(θ) = −(1/N) Σ ℓ*(−Nθₙ) − g*(Xᵀθ), and θ = −s ∇f(z), the rescaled residual:

        ‖y − z‖²/N           D(θ) = yᵀθ − N‖θ‖²/4 − g*(Xᵀθ)
        Σ log(1 + e^{−yz})/N   D(θ) = −(1/N) Σ (p log p + (1 − p) log(1 − p)) − g*(Xᵀθ),  pₙ = N yₙθₙ

    g* is 0 where the dual norm of Xᵀθ is at most λ and ∞ beyond, for the elastic net λ‖w‖₁ + ρ‖w‖² it is
    Σ (|·| − λ)₊²/(4ρ). s is the best for least squares under that constraint (Fercoq, Gramfort & Salmon 2015, section
    3), at most 1 for the logistic loss (Ndiaye et al. 2017). No intercept: centre X and y for least squares. Works on
    NumPy and torch arrays w, in w's precision. λ is twice scikit-learn's alpha, and so is this gap twice its.

    Raises TypeError for another loss or penalty.

    >>> import numpy as np
    >>> f = LeastSquares(np.eye(2), [3.0, 0.0])
    >>> duality_gap(f, L1(1.0), np.array([2.0, 0.0]))  # the solution
    DualityGap(primal=2.5, dual=2.5)
    >>> duality_gap(f, L1(1.0), np.zeros(2)).value  # F(0) = 4.5
    2.0
    """
    if not isinstance(f, (LeastSquares, Logistic)):
        raise TypeError(f"duality_gap: f must be LeastSquares or Logistic, not {type(f).__name__}.")
    if not isinstance(penalty, (L1, GroupLasso, ElasticNet)):
        raise TypeError(f"duality_gap: penalty must be L1, GroupLasso or ElasticNet, not {type(penalty).__name__}.")
    xp = array_namespace(w)
    X, y, n, ridge = like(f.X, w), like(f.y, w), f.n, getattr(penalty, "ridge", 0.0)
    z = xp.matmul(X, w)
    residual = 2 * (y - z) / n if isinstance(f, LeastSquares) else y * 0.5 * (1 - xp.tanh(0.5 * y * z)) / n
    bound = critical(penalty, xp.matmul(residual, X) - 2 * ridge * w)
    limit = penalty.lam / bound if bound else math.inf
    if isinstance(f, LeastSquares):
        length = float(xp.sum(residual * residual)) * n / 2 + 2 * ridge * float(xp.sum(w * w))
        best = float(xp.sum(residual * y)) / length if length else 0.0
        theta = residual * max(-limit, min(limit, best))
        dual = xp.sum(y * theta) - n * xp.sum(theta * theta) / 4
    else:
        theta = residual * min(1.0, limit)
        dual = -xp.sum(_x_log_x(n * y * theta) + _x_log_x(1 - n * y * theta)) / n
    if ridge:
        excess = xp.abs(xp.matmul(theta, X)) - penalty.lam
        dual = dual - xp.sum(xp.where(excess > 0, excess, xp.zeros_like(excess)) ** 2) / (4 * ridge)
    return DualityGap(float(f.value(w) + penalty.value(w)), float(dual))


# --- gradients that disturb nothing --------------------------------------------------------------------------------


def _slopes(who: str, optimizer: Proximal, closure: Closure) -> dict[torch.Tensor, torch.Tensor]:
    """The gradient, in float64, of what the optimiser descends, at each parameter that it trains."""
    _penalised(who, optimizer)  # which refuses an optimiser that has none
    if not callable(closure):
        kind = type(closure).__name__
        raise TypeError(
            f"{who}: closure must be a function that returns the loss, not {kind}; write lambda: loss_of(x)."
        )
    groups = {p: group for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    hooks = [getattr(hook, "__self__", None) for hook in optimizer._optimizer_step_post_hooks.values()]
    frozen = {p: zero for refit in hooks if isinstance(refit, Refit) for p, zero in refit.zeros}
    need_whole(who, groups)
    with undisturbed(list(groups)), torch.enable_grad():
        loss = closure()
        if any(p.grad is not None for p in groups):
            raise ValueError(f"{who}: the closure called backward; return the loss and leave its gradient to {who}.")
        if not (isinstance(loss, torch.Tensor) and loss.numel() == 1 and loss.requires_grad):
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
            what = f"{what} without a graph" if isinstance(loss, torch.Tensor) and not loss.requires_grad else what
            raise ValueError(f"{who}: the closure must return the loss, a scalar tensor with its graph, not {what}.")
        if loss.is_complex():
            raise ValueError(f"{who}: the loss is complex; return a real one, such as its .real or .abs().")
        found = torch.autograd.grad(loss.sum(), list(groups), allow_unused=True)
    slopes = {}
    for (p, group), g in zip(groups.items(), found, strict=True):
        w = p.detach().to(torch.float64)
        slope = torch.zeros_like(w) if g is None else g.to_dense().to(torch.float64)
        slope = -slope if group.get("maximize") else slope
        ridge = 0.0 if group.get("decoupled_weight_decay") else group.get("weight_decay", 0.0)
        slopes[p] = slope + (ridge + group.get("lambd", 0.0)) * w
        if not bool(slopes[p].isfinite().all()):
            raise ValueError(f"{who}: the gradient of a parameter of shape {tuple(p.shape)} is not finite.")
        if p in frozen:
            slopes[p] = slopes[p].masked_fill(frozen[p], 0.0)
    return slopes


def _least_scales(
    who: str, optimizer: Proximal, closure: Closure, slopes: Mapping[torch.Tensor, torch.Tensor]
) -> dict[torch.Tensor, float]:
    """What ∂f of a parameter is small against where it vanishes at a solution, because g there has no slope."""
    found, moved, shares = {}, {}, torch.Generator().manual_seed(0)
    for p, penalty in _penalised(who, optimizer):
        lam = getattr(penalty, "lam", None)
        if not penalty.has_grad or lam == 0:
            w = p.detach()
            share = torch.rand(w.shape, generator=shares, dtype=torch.float64).to(w.device)
            moved[p] = (w - _difference(w) * share * w).to(w.dtype)
        elif isinstance(penalty, (MCP, SCAD)):
            found[p] = float(penalty.lam)
    if moved:
        with _at(moved):
            others = _slopes(who, optimizer, closure)
        found |= {p: _largest(others[p] - slopes[p]) / _difference(p) for p in moved}
    return found


def _difference(w: torch.Tensor) -> float:
    """The relative step of a difference quotient."""
    return math.sqrt(torch.finfo(w.dtype).eps)


@contextlib.contextmanager
def _at(values: Mapping[torch.Tensor, torch.Tensor]) -> Iterator[None]:
    """Parameters set to other values, and put back bit by bit."""
    ps = list(values)
    with kept(ps, [p.detach().clone() for p in ps]):
        put(ps, list(values.values()))
        yield


def _penalised(who: str, optimizer: Proximal) -> list[tuple[torch.Tensor, Penalty]]:
    found = [(p, penalty) for p, penalty, _ in optimizer.penalised() if p.requires_grad]
    _need_parameters(who, [p for p, _ in found])
    return found


def _need_parameters(who: str, params: list[torch.Tensor]) -> None:
    if not params or not all(isinstance(p, torch.Tensor) for p in params):
        raise ValueError(f"{who}: there must be at least one parameter under the penalty that requires a gradient.")


def _names(optimizer: Proximal, model: torch.nn.Module | None) -> dict[torch.Tensor, str]:
    """Each parameter's name in the model, or its index in the optimiser."""
    held = [p for group in optimizer.param_groups for p in group["params"]]
    known = {p: name for name, p in model.named_parameters()} if model is not None else {}
    return {p: known.get(p, str(i)) for i, p in enumerate(held)}


def _norm(a: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(a))


def _largest(a: Any) -> float:
    xp = array_namespace(a)
    return float(xp.max(xp.abs(a))) if math.prod(a.shape) else 0.0


def _over(a: Any, b: Any) -> Any:
    """a/b for a, b ≥ 0, where 0/0 is 0."""
    xp = array_namespace(a)
    zero = xp.zeros_like(a)
    return xp.where(b == 0, xp.where(a == 0, zero, zero + math.inf), a / xp.where(b == 0, zero + 1, b))


def _x_log_x(p: Any) -> Any:
    """p log p, 0 at 0 (and where rounding made p negative)."""
    xp = array_namespace(p)
    return xp.where(p > 0, p * xp.log(xp.where(p > 0, p, xp.ones_like(p))), xp.zeros_like(p))

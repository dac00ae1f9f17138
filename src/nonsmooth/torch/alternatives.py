"""What else is published for sparse weights, as a torch user would run it: for comparison with `Proximal`.

`penalised` puts the penalty in the loss and leaves it to autograd; `spred` writes a weight as a product of two and
decays both; `FromRule` runs any rule of the lab on a network, such as RDA and the linearised Bregman iteration;
`MagnitudePruning` drops the smallest weights. Only those of a prox and of pruning give exact zeros, and pruning
minimises nothing. benchmarks/exactness.py has them side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, Literal

import torch
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from nonsmooth.hyperparameters import Hyperparameters, kinds
from nonsmooth.ledger import short
from nonsmooth.penalties import Penalty
from nonsmooth.rules import FISTA, NormalisedSubgradient, Polyak, Rule
from nonsmooth.torch.proximal import weights
from nonsmooth.torch.states import count, finite, or_restored, part, strength

__all__ = ["FromRule", "MagnitudePruning", "penalised", "remove_spred", "spred"]

WIDE = (torch.float32, torch.float64)


# --- rules of the lab ----------------------------------------------------------------------------------------------


class FromRule(Optimizer):
    """z = rule.step(x, ∇f(x)), x⁺ = rule.finish(prox_{τg}(z)), τ = rule.effective_step: the lab's loop on parameters.

    `rule` is one of nonsmooth.rules, run as `simulate` runs it, by the same formulas, on each parameter as a flat
    point. `penalty` is one of nonsmooth.penalties, and must not be in the loss; a group of `params` may name its own,
    {"params": biases, "penalty": None}, and its own numbers, {"params": …, "gamma": 2.0}. The rule's numbers and the
    penalty's λ, "lam", are in the group to be read and set, so that torch's schedulers move "lr" where the rule has
    one; a schedule of nonsmooth.rules stays with the rule and sees step t = 1, 2, … `iterate` gives the point that
    the method answers with, where that is not the parameter. `state_dict` is plain data, for `weights_only=True`.

    RDA pulls towards the start, which should be 0 where g says so; LinearisedBregman goes along a path and does not
    minimise f + g. Polyak, NormalisedSubgradient and FISTA with restart look at all coordinates at once, and so take
    one parameter. Polyak needs step(closure). Source: Xiao 2010 (RDA); Bungert et al. 2022 (linearised Bregman).

    Raises ValueError or TypeError, in one sentence, for a rule whose numbers are lists, parameters that are not
    float32 or float64, and a state of another rule or penalty.

    >>> from nonsmooth.penalties import L1
    >>> from nonsmooth.rules import RDA
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = FromRule([w], RDA(gamma=0.5), L1(1.0))
    >>> w.grad = torch.tensor([3.0, -0.5])
    >>> optimizer.step()
    >>> w.tolist()  # τ = 2: the prox of (−6, 1) at 2
    [-4.0, 0.0]
    """

    def __init__(self, params: Any, rule: Rule, penalty: Penalty | None = None) -> None:
        if not isinstance(rule, Rule):
            raise TypeError(f"FromRule: rule must be one of nonsmooth.rules, not {type(rule).__name__}.")
        _need_numbers(rule)
        self.rule, self.penalty = rule, penalty
        self.penalties: list[Penalty | None] = []
        super().__init__(params, {name: getattr(rule, name) for name in _numbers(rule)})

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"rule": self.rule, "penalty": self.penalty, "penalties": self.penalties}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, with a "penalty" of its own, None for none, where the group names one."""
        given = dict(param_group)
        penalty = given.pop("penalty", self.penalty)
        lam = given.pop("lam", getattr(penalty, "lam", None))
        super().add_param_group(given)
        group = self.param_groups[-1]
        group |= {"rule": type(self.rule).__name__, "penalty": None, "lam": lam}
        try:
            self._check(group, penalty)
        except Exception:
            self.param_groups.pop()
            raise
        if penalty is not None:
            group["penalty"] = type(penalty).__name__
        self.penalties.append(penalty)

    def _check(self, group: dict[str, Any], penalty: Any) -> None:
        if not isinstance(penalty, (Penalty, type(None))):
            raise TypeError(f"FromRule: penalty must be one of nonsmooth.penalties, not {type(penalty).__name__}.")
        replace(self.rule, **{name: group[name] for name in _numbers(self.rule)})
        if penalty is not None:
            _need_numbers(penalty)
        held = [p for g in self.param_groups for p in g["params"]]
        if len(held) > 1 and (name := _whole(self.rule)):
            raise ValueError(f"FromRule: {name} looks at all coordinates at once, so give one parameter, not several.")
        for p in group["params"]:
            if p.dtype not in WIDE:
                raise TypeError(f"FromRule: a rule counts its steps in the parameter's precision; {p.dtype} is no use.")
            if penalty is not None:
                with torch.no_grad():
                    penalty.prox(torch.zeros_like(p), 1.0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; raises ValueError, with nothing changed, for what is no state of this rule and penalty."""
        part("FromRule", state_dict, "param_groups")
        before = self.param_groups
        with or_restored("FromRule", self):
            super().load_state_dict(state_dict)
            for mine, group, penalty in zip(before, self.param_groups, self.penalties, strict=True):
                for what in ("rule", "penalty"):
                    if (other := part("FromRule", group, what)) != mine[what]:
                        raise ValueError(f"FromRule: the state is of {what} {short(other)}, and here is {mine[what]}.")
                self._check_numbers(group, penalty)
                for p in group["params"]:
                    if p in self.state:
                        self._check_memory(p, group)

    def _check_numbers(self, group: dict[str, Any], penalty: Penalty | None) -> None:
        """Believe nothing of a group that was loaded; a scheduler may have taken lr to 0, or by rounding below it."""
        held = {name: part("FromRule", group, name) for name in _numbers(self.rule)}
        for name, value in held.items():
            own = isinstance(getattr(self.rule, name), bool)
            large = isinstance(value, int) and abs(value) >= 2**53  # which no tensor multiplies
            if not finite(value) or large or (isinstance(value, bool) and not own):
                raise ValueError(f"FromRule: {name} of the state must be a finite number, not {short(repr(value))}.")
        if "lr" in held:
            held["lr"] = abs(float(held["lr"])) or 1.0
        replace(self.rule, **held)
        if (lam := part("FromRule", group, "lam")) is not None and penalty is not None:
            if not hasattr(penalty, "lam"):
                raise ValueError(f"FromRule: the state has a lam, and {type(penalty).__name__} has none.")
            group["lam"] = strength("FromRule", lam)

    def _check_memory(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        """The memory must be made as the one at the start is, and the schedules must reach its step."""
        state = self.state[p]
        t, memory = count("FromRule", state, "step"), part("FromRule", state, "memory")
        if not _made_alike(memory, self._rule(group, t + 1).init(p.detach().reshape(-1))):
            raise ValueError(
                f"FromRule: the state's memory of a parameter of shape {tuple(p.shape)} is none of {group['rule']}."
            )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of the rule and of the prox, for each parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.rule.needs_value and loss is None:
            raise ValueError(f"FromRule: {type(self.rule).__name__} needs the loss; call step(closure).")
        value = (torch.as_tensor(loss).detach(),) if self.rule.needs_value else ()
        for group, penalty in zip(self.param_groups, self.penalties, strict=True):
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group, penalty, value)
        return loss

    def _move(self, p: torch.Tensor, group: dict[str, Any], penalty: Penalty | None, value: tuple[Any, ...]) -> None:
        state = self.state[p]
        z, g = (a.detach().clone().reshape(-1) for a in (p, p.grad.to_dense()))  # type: ignore[union-attr]
        t = state.get("step", 0) + 1
        rule = self._rule(group, t)
        memory = state["memory"] if "memory" in state else rule.init(z)
        x, memory = rule.step(z, g, memory, *value)
        if penalty is not None:
            penalty = penalty if group["lam"] is None else penalty.replaced(lam=group["lam"])
            tau = rule.effective_step(memory)
            tau = tau.reshape(p.shape) if getattr(tau, "ndim", 0) else tau
            x = penalty.prox(x.reshape(p.shape), tau).reshape(-1)
        z, memory = rule.finish(z, x, memory)
        state["step"], state["memory"] = t, memory
        p.copy_(z.reshape(p.shape))

    def _rule(self, group: dict[str, Any], t: int) -> Any:
        """The rule with the group's numbers, as it stands at step t."""
        return self.rule.replaced(**{name: group[name] for name in _numbers(self.rule)}).at(t)

    @torch.no_grad()
    def iterate(self, p: torch.Tensor) -> torch.Tensor:
        """The method's answer for a parameter: a mean under Averaging, x of FISTA, else the parameter; a copy.

        >>> from nonsmooth.rules import Averaging, Gradient
        >>> w = torch.nn.Parameter(torch.tensor([4.0]))
        >>> optimizer = FromRule([w], Averaging(Gradient(lr=1.0)))
        >>> for _ in range(3):
        ...     w.grad = torch.ones(1)
        ...     optimizer.step()
        >>> w.tolist(), optimizer.iterate(w).tolist()  # 1, and the mean of 3, 2, 1
        ([1.0], [2.0])
        """
        z = p.detach().clone()
        if "memory" not in self.state.get(p, {}):
            return z
        return self.rule.iterate(z.reshape(-1), self.state[p]["memory"]).reshape(p.shape).clone()


def _numbers(rule: Rule) -> list[str]:
    """The fields that are plain numbers: those that a group of parameters holds."""
    return [f.name for f in fields(rule) if isinstance(getattr(rule, f.name), (int, float))]


def _need_numbers(record: Hyperparameters) -> None:
    """Refuse the axes of a sweep, in a record or in one that it holds."""
    for name, kind in kinds(type(record)).items():
        value, who = getattr(record, name), f"FromRule: {type(record).__name__}.{name}"
        if isinstance(value, Hyperparameters):
            _need_numbers(value)
        elif kind is not None and not kind.is_array and not isinstance(value, (int, float, type(None))):
            raise ValueError(f"{who} must be one number here, not a list of {value.size}.")


def _made_alike(memory: Any, other: Any) -> bool:
    """Whether both are tensors of one shape, or as many parts that are made alike."""
    if isinstance(other, torch.Tensor):
        return isinstance(memory, torch.Tensor) and memory.shape == other.shape and memory.layout == other.layout
    if not isinstance(memory, (tuple, list)) or len(memory) != len(other):
        return False
    return all(map(_made_alike, memory, other))


def _whole(rule: Any) -> str:
    """The name of a rule that measures the whole point, wherever it is wrapped; else ''."""
    found = isinstance(rule, (Polyak, NormalisedSubgradient)) or (isinstance(rule, FISTA) and rule.restart)
    return type(rule).__name__ if found else _whole(rule.rule) if hasattr(rule, "rule") else ""


# --- the penalty in the loss ---------------------------------------------------------------------------------------


class _Valued(torch.autograd.Function):
    """g(p), whose gradient is the one that the penalty states: its selection at kinks."""

    @staticmethod
    def forward(p: torch.Tensor, penalty: Penalty) -> torch.Tensor:
        return torch.as_tensor(penalty.value(p))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        p, ctx.penalty = inputs
        ctx.save_for_backward(p)

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> tuple[torch.Tensor, None]:
        return above * ctx.penalty.grad(*ctx.saved_tensors), None


def penalised(loss: torch.Tensor, penalty: Penalty, params: Iterable[torch.Tensor]) -> torch.Tensor:
    """f + Σ_p g(p), for backward: what most people write, and what gives no zeros.

    The gradient of g is the penalty's `grad`, torch's selection (sign(0) = 0), also where its value is spelled
    in a way that autograd would answer with NaN, such as √Σx² at 0. Under an adaptive optimiser it enters the second
    moment as well, so that λ loses its meaning. Raises ValueError for a penalty without a gradient.

    >>> from nonsmooth.penalties import L1
    >>> w = torch.nn.Parameter(torch.tensor([2.0, -1.0, 0.0]))
    >>> penalised((w * w).sum(), L1(0.5), [w]).backward()
    >>> w.grad.tolist()
    [4.5, -2.5, 0.0]
    """
    if not isinstance(penalty, Penalty) or not penalty.has_grad:
        raise ValueError(f"penalised: {type(penalty).__name__} has no gradient; use Proximal.")
    if isinstance(params, torch.Tensor):
        raise ValueError("penalised: params must be a list of parameters, not one tensor; write [w].")
    for p in params:
        loss = loss + _Valued.apply(p, penalty)
    return loss


# --- spred ---------------------------------------------------------------------------------------------------------


class _Product(torch.nn.Module):
    """w = u ⊙ v."""

    def forward(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return u * v

    def right_inverse(self, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """u, the least power of two that is at least 1 and at least √(2|w|), and v = w/u: exact, and |v| ≤ u/2."""
        u = torch.exp2(torch.ceil(0.5 * torch.log2(2 * w.abs()))).clamp(min=1.0)
        return u, w / u


def spred(model: torch.nn.Module, params: Iterable[torch.Tensor] | None = None) -> list[torch.nn.Parameter]:
    """Write each of `params` (default: `weights(model)`) as w = u ⊙ v, and return all u and v, to be decayed by λ.

    min over u ⊙ v = w of (λ/2)(‖u‖² + ‖v‖²) is λ‖w‖₁, so with a *coupled* weight decay of λ on both, as SGD's and
    Adam's, and on them alone, the minima are those of f + λ‖w‖₁. Make the optimiser after it:

        factors = spred(model)
        torch.optim.SGD([{"params": factors, "weight_decay": lam}, {"params": biases}], lr=0.1)

    The start leaves w as it is, with u ≥ 1 and |v| ≤ u/2: at u = ±v, whose gradients keep them so, w could not change
    sign; and at small u both would learn slowly. No weight becomes exactly zero: |w| falls like e^{−2(λ − |∂f|)ηt},
    and the authors drop the small ones afterwards: `remove_spred(model, threshold)`. Source: Liu Ziyin & Wang 2023.

    Raises ValueError for a parameter that the model does not hold, that two modules share, or that is one of a product.

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.25, -2.0]]))
    >>> u, v = spred(layer)
    >>> u.tolist(), v.tolist(), layer.weight.tolist()
    ([[1.0, 2.0]], [[0.25, -1.0]], [[0.25, -2.0]])
    """
    wanted: list[Any] = weights(model) if params is None else list(params)
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {id(p): [] for p in wanted}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(p) in places:
                places[id(p)].append((module, name))
    for p in wanted:
        if len(places[id(p)]) != 1:
            how = "is held by two modules" if places[id(p)] else "is not in the model"
            raise ValueError(f"spred: a parameter of shape {tuple(p.shape)} {how}; name those of one module each.")
    if any(isinstance(module, parametrize.ParametrizationList) for ((module, _),) in places.values()):
        raise ValueError("spred: a weight is parametrised already; call remove_spred, or name others.")
    for ((module, name),) in places.values():
        parametrize.register_parametrization(module, name, _Product())
    made: list[Any] = [module.parametrizations[name] for ((module, name),) in places.values()]  # type: ignore[index]
    return [factor for pair in made for factor in (pair.original0, pair.original1)]


def remove_spred(model: torch.nn.Module, threshold: float = 0.0) -> list[torch.nn.Parameter]:
    """Put the products back as plain parameters, those of at most `threshold` in size as 0, and return them.

    Raises ValueError for a threshold below 0, and where no weight of the model is a product.

    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.25, -2.0]]))
    >>> _ = spred(layer)
    >>> remove_spred(layer, threshold=0.5)[0].tolist()
    [[0.0, -2.0]]
    """
    if not (isinstance(threshold, (int, float)) and 0 <= threshold < math.inf):
        raise ValueError(f"remove_spred: threshold must be a finite number, 0 or above, not {threshold!r}.")
    found = [
        (module, name)
        for module in list(model.modules())
        for name, chain in getattr(module, "parametrizations", {}).items()
        if isinstance(chain, parametrize.ParametrizationList) and isinstance(chain[0], _Product)
    ]
    if not found:
        raise ValueError("remove_spred: no weight of the model is a product; call spred first.")
    for module, name in found:
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        w = getattr(module, name).data
        w.masked_fill_(w.abs() <= threshold, 0.0)
    return [getattr(module, name) for module, name in found]


# --- magnitude pruning ---------------------------------------------------------------------------------------------


class MagnitudePruning:
    """Keeps the largest weights and holds the others at 0: call `step` after each step of the optimiser.

    At steps begin, begin + every, … and at `end` the round(d N) largest of N weights are kept, the density falling as

        d(t) = density + (1 − density)(1 − (t − begin)/(end − begin))³

    from 1 to `density`, and staying there (Zhu & Gupta 2017, section 3); with end = begin, as by default, all at once,
    to train on with what is left (Han et al. 2015). What was dropped stays dropped. by="overall" compares the weights
    of all `params`, "parameter" prunes each alone. Nothing is minimised: |w| says how large a weight is, not what the
    loss would miss.

    Raises ValueError, in one sentence, for what cannot be.

    >>> w = torch.nn.Parameter(torch.tensor([1.0, -4.0, 2.0, 3.0]))
    >>> pruning = MagnitudePruning([w], density=0.5)
    >>> pruning.step()
    >>> w.tolist(), pruning.density
    ([0.0, -4.0, 0.0, 3.0], 0.5)
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        density: float,
        *,
        begin: int = 1,
        end: int | None = None,
        every: int = 1,
        by: Literal["overall", "parameter"] = "overall",
    ) -> None:
        end = begin if end is None else end
        if isinstance(params, torch.Tensor):
            raise ValueError("MagnitudePruning: params must be a list of parameters, not one tensor; write [w].")
        if not (isinstance(density, (int, float)) and 0 < density <= 1):
            raise ValueError(f"MagnitudePruning: density must be a number in (0, 1], not {density!r}.")
        for name, number in (("begin", begin), ("end", end), ("every", every)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"MagnitudePruning: {name} must be a whole number above 0, not {number!r}.")
        if end < begin:
            raise ValueError(f"MagnitudePruning: end = {end} is before begin = {begin}.")
        if by not in ("overall", "parameter"):
            raise ValueError(f"MagnitudePruning: by must be 'overall' or 'parameter', not {by!r}.")
        self.params, self.wanted, self.by = list(params), density, by
        if not self.params:
            raise ValueError("MagnitudePruning: params is empty; name at least one parameter.")
        self.begin, self.end, self.every, self.t = begin, end, every, 0
        self.keep = [torch.ones_like(p, dtype=torch.bool) for p in self.params]

    def target(self, t: int) -> float:
        """d(t): 1 before `begin`, `density` from `end` on."""
        if t < self.begin or t >= self.end:
            return 1.0 if t < self.begin else self.wanted
        return self.wanted + (1 - self.wanted) * (1 - (t - self.begin) / (self.end - self.begin)) ** 3

    @property
    def density(self) -> float:
        """The share of weights that are kept."""
        return sum(int(k.sum()) for k in self.keep) / sum(k.numel() for k in self.keep)

    @torch.no_grad()
    def step(self) -> None:
        """Count, choose anew where the schedule says so, and hold."""
        self.t += 1
        due = (self.t - self.begin) % self.every == 0 or self.t == self.end
        if self.begin <= self.t <= self.end and due:
            self._choose(self.target(self.t))
        for p, keep in zip(self.params, self.keep, strict=True):
            p.masked_fill_(~keep, 0.0)

    def _choose(self, density: float) -> None:
        """Those dropped before count as less than nothing."""
        sizes = [p.abs().masked_fill(~k, -1.0).flatten() for p, k in zip(self.params, self.keep, strict=True)]
        pools = [torch.cat(sizes)] if self.by == "overall" else sizes
        kept = []
        for pool in pools:
            keep = torch.zeros_like(pool, dtype=torch.bool)
            keep[pool.topk(round(density * pool.numel())).indices] = True
            kept.append(keep)
        parts = torch.cat(kept).split([p.numel() for p in self.params])
        self.keep = [part.reshape(p.shape) for part, p in zip(parts, self.params, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "keep": [keep.clone() for keep in self.keep]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError, with nothing changed, for what `state_dict` did not return."""
        who = "MagnitudePruning"
        t, keep = count(who, state_dict, "t"), part(who, state_dict, "keep")
        if not isinstance(keep, (list, tuple)) or not all(
            isinstance(k, torch.Tensor) and (k.dtype, k.layout, k.is_meta) == (torch.bool, torch.strided, False)
            for k in keep
        ):
            raise ValueError(f"{who}: keep of the state must be a list of tensors of bools.")
        if [k.shape for k in keep] != [k.shape for k in self.keep]:
            raise ValueError(f"{who}: the state is of parameters of other shapes.")
        self.t, self.keep = t, [k.to(p.device).clone() for k, p in zip(keep, self.params, strict=True)]

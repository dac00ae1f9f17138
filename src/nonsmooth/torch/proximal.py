"""Proximal: any of torch's optimisers made exact for a non-smooth penalty.

After each step of the wrapped optimiser a parameter w becomes prox_{τg}(w), with τ the optimiser's own effective step
(`nonsmooth.torch.effective`), so that the fixed points are those of f + g and zeros are exact. The loss is f alone:
leave the penalty out of it. Source: Parikh & Boyd 2014, section 4.2; Yun, Lozano & Yang 2021 (ProxGen).
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer

from nonsmooth import penalties as known
from nonsmooth.ledger import short
from nonsmooth.penalties import Penalty
from nonsmooth.torch.effective import Table, _Registered, own_step, table_of, unwrapped
from nonsmooth.torch.kernels import prox_, step_and_prox_
from nonsmooth.torch.shards import is_shard, whole
from nonsmooth.torch.states import check_entry, check_memory, check_penalty, or_restored, part, strength

__all__ = ["Proximal", "need_proximal", "weights"]

NORMS = (
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.GroupNorm,
    torch.nn.LayerNorm,
    torch.nn.RMSNorm,
    torch.nn.LocalResponseNorm,
)

TABLES = (torch.nn.Embedding, torch.nn.EmbeddingBag)


def weights(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The trainable parameters with two dimensions or more: no biases, no norms, no magnitudes of weight_norm.

    Tables of embeddings are left out as well, unless another layer shares them: a row that no batch has asked for has
    no gradient to hold it against a penalty. Name them where they are meant: `[*weights(model), table.weight]`.

    >>> [tuple(p.shape) for p in weights(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)))]
    [(2, 3)]
    """
    found: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        if not isinstance(module, (*NORMS, *TABLES)):
            named = module.named_parameters(recurse=False)
            found |= {id(p): p for n, p in named if p.requires_grad and p.ndim >= 2 and not _is_magnitude(module, n)}
    return list(found.values())


def _is_magnitude(module: torch.nn.Module, name: str) -> bool:
    """Whether it is the g of w = g v/‖v‖."""
    first = module[0] if isinstance(module, ParametrizationList) else None
    kept_apart = name == "weight_g" and hasattr(module, "weight_v")
    return kept_apart or (name == "original0" and type(first).__name__ == "_WeightNorm")


def to_plain(penalty: Penalty) -> dict[str, Any]:
    """A penalty as plain data: its class's name and its fields, arrays as tensors.

    >>> from nonsmooth.penalties import L1
    >>> to_plain(L1(0.5))
    {'name': 'L1', 'lam': 0.5, 'weights': None}
    """
    plain: dict[str, Any] = {"name": type(penalty).__name__}
    for f in fields(penalty):
        value = getattr(penalty, f.name)
        value = torch.tensor(value) if isinstance(value, np.ndarray) else value
        plain[f.name] = list(value) if isinstance(value, tuple) else value
    return plain


class Shared:
    """An attribute that is the wrapped optimiser's: to read, to set and to delete."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, proximal: Any, owner: type | None = None) -> Any:
        return self if proximal is None else getattr(proximal.optimizer, self.name)

    def __set__(self, proximal: Any, value: Any) -> None:
        setattr(proximal.optimizer, self.name, value)

    def __delete__(self, proximal: Any) -> None:
        delattr(proximal.optimizer, self.name)


class Proximal(Optimizer):
    """w⁺ = prox_{τ g}(w − τ ∘ d), w − τ ∘ d being the step of the wrapped `optimizer` and τ its effective step.

    `penalty` is one of nonsmooth.penalties, for `params` (default: all that the optimiser holds), or a list of pairs
    (penalty, params). It is a torch optimiser: it shares the wrapped one's param_groups and state, schedulers and
    GradScaler take it, and `state_dict` holds plain data (`weights_only=True` loads it). Each group's "proximal" is a
    list of {"penalty", "lam", "params"}: plain data, the strength λ, and the places in the group that it acts on;
    `set_lam` and `LambdaLam` change λ. Wrapping the bare optimiser anew, with all that was under a penalty named again,
    replaces the penalties. The user's `.grad` is never written.

    The penalty must not be in the loss as well. Coupled weight decay is ½wd‖w‖² in f; decoupled decay (AdamW) is not
    part of f: the fixed point then solves 0 ∈ ∇f + wd(√v̂ + ε)w + ∂g.

    Raises TypeError for an optimiser without an effective step, or with one for each coordinate under a penalty that
    needs one for all; and ValueError, in one sentence, for parameters that
    the optimiser does not hold, are named twice, complex or sparse, or for a penalty that does not fit them.

    Under DistributedDataParallel nothing is to be done: each process takes the same step. Under FSDP2 (`fully_shard`,
    DTensor parameters; wrap the optimiser that was made after sharding) the prox is that of the whole parameter, and
    every process must step, save, and ask `penalty_value`. Not with compile=True.

    >>> from nonsmooth.penalties import L1
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 0.1]))
    >>> optimizer = Proximal(torch.optim.SGD([w], lr=0.5), L1(1.0))
    >>> w.grad = torch.zeros(2)
    >>> optimizer.step()
    >>> w.tolist()
    [2.5, 0.0]
    """

    optimizer: Optimizer
    compile: bool
    classes: dict[str, type[Penalty]]

    def __init__(
        self,
        optimizer: Optimizer,
        penalty: Penalty | Sequence[tuple[Penalty, Iterable[torch.Tensor]]],
        params: Iterable[torch.Tensor] | None = None,
        *,
        compile: bool = False,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, Proximal):
            raise TypeError(f"Proximal: optimizer must be a torch optimiser, not {type(optimizer).__name__}.")
        table_of(optimizer)
        self.__setstate__({"optimizer": optimizer, "compile": compile, "classes": {}})
        self._settle()
        held = [p for _, p in self._held()]
        if not isinstance(penalty, Penalty) and params is not None:
            raise ValueError("Proximal: params goes with one penalty; a list of pairs names its own.")
        pairs = [(g, _as_list(named)) for g, named in _as_pairs(penalty, held if params is None else params)]
        self._replaces({id(p) for _, named in pairs for p in named})
        before = [group.pop("proximal", None) for group in self.param_groups]
        taken: set[int] = set()
        try:
            for g, named in pairs:
                self._add(g, named, taken)
        except Exception:
            for group, entries in zip(self.param_groups, before, strict=True):
                group.pop("proximal", None)
                group |= {} if entries is None else {"proximal": entries}
            raise

    # --- what it shares with the wrapped optimiser -----------------------------------------------------------------

    param_groups: Any = Shared()
    state: Any = Shared()
    defaults: Any = Shared()
    grad_scale: Any = Shared()  # GradScaler's, for fused steps, as are the next two
    found_inf: Any = Shared()
    _step_supports_amp_scaling: Any = Shared()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Keep what is ours; what torch loads, param_groups and state, is the wrapped optimiser's, as are the hooks."""
        self.__dict__.update({name: state[name] for name in OWN if name in state})
        loaded = {name: value for name, value in state.items() if name not in OWN}
        if loaded:
            self.optimizer.__setstate__(loaded)
        self.__dict__.update({name: hooks for name, hooks in vars(self.optimizer).items() if name.endswith("_hooks")})
        super().__setstate__({})

    def __repr__(self) -> str:
        return f"Proximal({self.optimizer!r})"

    def state_dict(self) -> dict[str, Any]:
        """As torch's; λ is copied, as lr is: one that is set later does not change it."""
        state_dict = super().state_dict()
        for group in state_dict["param_groups"]:
            if "proximal" in group:
                group["proximal"] = [
                    {name: copy.copy(part) for name, part in entry.items()} for entry in group["proximal"]
                ]
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; a state without penalties (of the bare optimiser) keeps those that are set.

        Raises ValueError, with nothing changed, for what is no state of such an optimiser, as where it names a penalty
        that is not known here, or torch could not step from it, and TypeError for a penalty that needs one step for all
        coordinates where the optimiser has one for each.
        """
        if isinstance(self.optimizer, Proximal):  # a wrapper that took on our class, as Lightning's does
            self.optimizer.load_state_dict(state_dict)
            return
        part("Proximal", state_dict, "param_groups")
        before = self.param_groups
        with or_restored("Proximal", self):
            super().load_state_dict(state_dict)
            for group, mine in zip(self.param_groups, before, strict=True):
                group.setdefault("proximal", mine.get("proximal", []))
                for entry in group["proximal"]:
                    self._check(group, entry)
            if not any(entry["params"] for _, entry in self.entries()):
                raise ValueError("Proximal: the state leaves no parameter under a penalty.")
            self._settle()
            if not isinstance(table_of(self.optimizer).read, _Registered):
                largest = known.L1(max((entry["lam"] or 0.0 for _, entry in self.entries()), default=0.0))
                step = own_step(Proximal)
                check_memory(self.optimizer, lambda o, params: functools.partial(step, Proximal(o, largest, params)))

    def _check(self, group: dict[str, Any], entry: Any) -> None:
        """Believe nothing of an entry that was loaded."""
        check_entry(entry, len(group["params"]))
        if entry["lam"] is not None:
            entry["lam"] = strength("Proximal", entry["lam"])
        self._suits(self._kind(entry["penalty"]["name"]))
        penalty = self._penalty(entry)
        check_penalty(penalty, [group["params"][i] for i in entry["params"]])
        replace(penalty)  # which checks each field

    def add_param_group(self, param_group: dict[str, Any], penalty: Penalty | None = None) -> None:
        """Add a group, as torch does, all of it under `penalty` where one is given; all or nothing."""
        if penalty is not None and not isinstance(penalty, Penalty):
            raise TypeError(
                f"add_param_group: penalty must be one of nonsmooth.penalties, not {type(penalty).__name__}."
            )
        self.optimizer.add_param_group(param_group)
        if penalty is not None:
            try:
                self._add(penalty, list(self.param_groups[-1]["params"]), set())
            except Exception:
                self.param_groups.pop()
                raise

    # --- λ ---------------------------------------------------------------------------------------------------------

    def entries(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Each (group, entry of its "proximal" list), in order."""
        for group in self.param_groups:
            for entry in group.get("proximal", ()):
                yield group, entry

    def set_lam(self, lam: float, which: int | None = None) -> None:
        """Set λ of all penalties, or of the `which`-th that was given.

        Raises ValueError for a λ that is negative or not finite, where there is no such penalty with a λ, and while a
        refit is on.
        """
        lam = strength("set_lam", lam)
        chosen = [e for _, e in self.entries() if e["lam"] is not None and which in (None, e["which"])]
        if not chosen:
            there = sorted({e["which"] for _, e in self.entries() if e["lam"] is not None})
            raise ValueError(
                f"set_lam: there is no penalty {'' if which is None else f'number {which} '}with a λ to set; "
                f"{f'those with one are {there}' if there else 'a strength must be a field named lam'}."
            )
        if any("off" in e for e in chosen):
            raise ValueError("set_lam: a refit is on, under which λ is 0; end it first.")
        for entry in chosen:
            entry["lam"] = lam

    def penalised(self) -> Iterator[tuple[torch.Tensor, Penalty, dict[str, Any]]]:
        """Each parameter under a penalty, with the penalty at its present λ, and its group."""
        for group, entry in self.entries():
            penalty = self._penalty(entry)
            for place in entry["params"]:
                yield group["params"][place], penalty, group

    def penalty_value(self) -> torch.Tensor:
        """g at the parameters as they are, a scalar: what to add to the loss to read f + g. In float32 at least."""
        with torch.no_grad():
            found = [(whole(p), penalty) for p, penalty, _ in self.penalised()]
            values = [g.value(p.to(torch.promote_types(p.dtype, torch.float32))) for p, g in found]
            first = found[0][0].device
            return torch.stack([torch.as_tensor(v, dtype=torch.float64, device=first) for v in values]).sum()

    # --- the step --------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of the wrapped optimiser, then the prox of each parameter that has a gradient.

        The wrapped one's step is taken without its hooks, which are ours too and fire around the whole.
        """
        table = table_of(self.optimizer)
        memory = self._remember(table)
        moved = self._at_once(table) if self.compile and closure is None else set()
        with self._without(moved):
            loss = own_step(type(self.optimizer))(self.optimizer, *(() if closure is None else (closure,)))
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # what a scheduler made for it looks at
        if self._skipped():
            self._forget(table)
        else:
            self._finish(table, memory, moved)
        return loss

    @torch._disable_dynamo
    @torch.no_grad()
    def _at_once(self, table: Table) -> set[int]:
        """Which parameters took step and prox in one compiled pass."""
        if getattr(self, "found_inf", None) is not None or getattr(self, "grad_scale", None) is not None:
            return set()
        return {id(p) for p, g, group in self.penalised() if step_and_prox_(p, g, table, group, self.state.get(p, {}))}

    @contextlib.contextmanager
    def _without(self, moved: set[int]) -> Iterator[None]:
        """The groups hold only what has not moved yet."""
        held = [group["params"] for group in self.param_groups] if moved else []
        try:
            for group, params in zip(self.param_groups, held, strict=False):
                group["params"] = [p for p in params if id(p) not in moved]
            yield
        finally:
            for group, params in zip(self.param_groups, held, strict=False):
                group["params"] = params

    @torch._disable_dynamo  # as torch's own: a compiled step is compiled up to here
    @torch.no_grad()
    def _finish(self, table: Table, memory: dict[int, Any], moved: set[int]) -> None:
        self._respond(table)
        for group, entry in self.entries():
            self._apply(table, group, entry, memory, moved)

    @torch._disable_dynamo
    def _remember(self, table: Table) -> dict[int, Any]:
        """What a prox needs of the state before the step."""
        if isinstance(table.read, _Registered):
            return {id(p): (self.optimizer, p) for p, _, _ in self.penalised()}
        if table.remember is None:
            return {}
        return {id(p): table.remember(group, self.state.get(p, {})) for p, _, group in self.penalised()}

    def _held(self) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        return ((group, p) for group in self.param_groups for p in group["params"])

    def _skipped(self) -> bool:
        """Whether a fused step under GradScaler met an infinite gradient, and so did nothing."""
        found = getattr(self, "found_inf", None)
        return found is not None and bool(found.item())

    def _forget(self, table: Table) -> None:
        """Drop the buffer that torch makes in a fused first step, without a number in it, when it skips that step."""
        for _, p in self._held():
            if "response" not in self.state.get(p, {"response": 1.0}):
                self.state[p].pop(table.buffer, None)

    def _respond(self, table: Table) -> None:
        """Move each momentum response on, with the momentum that the step had."""
        for group, p in self._held() if table.respond else ():
            if group["momentum"] and p.grad is not None:
                state = self.state[p]
                state["response"] = table.respond(group, state.get("response"))  # type: ignore[misc]

    def _settle(self) -> None:
        """A momentum buffer that was there before us counts as full."""
        table = table_of(self.optimizer)
        for group, p in self._held() if table.settled else ():
            state = self.state.get(p, {})
            if state.get(table.buffer) is not None and "response" not in state:
                state["response"] = table.settled(group)  # type: ignore[misc]

    def _apply(
        self, table: Table, group: dict[str, Any], entry: dict[str, Any], memory: dict[int, Any], moved: set[int]
    ) -> None:
        penalty = self._penalty(entry)
        if type(penalty) is known.L1:
            penalty = penalty.replaced(weights=entry["penalty"]["weights"])  # the tensor, of which copies are kept
        for place in entry["params"]:
            p = group["params"][place]
            if p.grad is None or id(p) in moved:
                continue
            state = self.state.get(p, {})
            reading = table.read(group, state, memory.get(id(p)), state.get("response", 1.0))
            prox_(p, penalty, reading, self.compile)

    def _replaces(self, named: set[int]) -> None:
        """Raise ValueError unless what an earlier Proximal left in the groups is all named anew, and no refit is on."""
        for group, entry in self.entries():
            check_entry(entry, len(group["params"]))
            if "off" in entry or not {id(group["params"][i]) for i in entry["params"]} <= named:
                raise ValueError(
                    "Proximal: the optimiser is under a Proximal already; use that one, or name here all parameters "
                    'that are under a penalty, or forget it, by group.pop("proximal", None) for each of its '
                    "param_groups."
                )

    # --- penalties as plain data -----------------------------------------------------------------------------------

    def _add(self, penalty: Penalty, params: list[torch.Tensor], taken: set[int]) -> None:
        self._suits(type(penalty))
        check_penalty(penalty, params)
        if self.compile and any(is_shard(p) for p in params):
            raise ValueError("Proximal: compile=True does not go with sharded parameters (DTensor); leave it out.")
        if self.classes.get(type(penalty).__name__, type(penalty)) is not type(penalty):
            raise ValueError(f"Proximal: two different penalties are named {type(penalty).__name__}; rename yours.")
        wanted = {id(p): p for p in params}
        twice = taken & wanted.keys()
        if twice or len(wanted) < len(params):
            raise ValueError("Proximal: a parameter is named twice; put it under one penalty.")
        which = max((entry["which"] for _, entry in self.entries()), default=-1) + 1
        for group in self.param_groups:
            places = [i for i, p in enumerate(group["params"]) if id(p) in wanted]
            taken |= {id(group["params"][i]) for i in places}
            if places:
                plain = to_plain(penalty)
                entry = {"lam": plain.pop("lam", None), "penalty": plain, "params": places, "which": which}
                group.setdefault("proximal", []).append(entry)
        missing = [tuple(p.shape) for key, p in wanted.items() if key not in taken]
        if missing:
            raise ValueError(f"Proximal: the optimiser does not hold a parameter of shape {missing[0]} that is named.")
        self.classes[type(penalty).__name__] = type(penalty)

    def _penalty(self, entry: dict[str, Any]) -> Penalty:
        """The penalty that an entry describes, at its λ."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["penalty"].items()}
        plain = {k: v.cpu().numpy() if isinstance(v, torch.Tensor) else v for k, v in plain.items()}
        kind = self._kind(plain.pop("name"))
        if entry["lam"] is not None:
            plain["lam"] = entry["lam"]
        blank = object.__new__(kind)
        blank.__dict__.update(plain)
        return blank

    def _suits(self, kind: type[Penalty]) -> None:
        if kind.one_step and not table_of(self.optimizer).uniform:
            raise TypeError(
                f"Proximal: {kind.__name__} needs one step for all coordinates, and {type(self.optimizer).__name__} "
                "has one for each; use torch.optim.SGD."
            )

    def _kind(self, name: str) -> type[Penalty]:
        kind = self.classes.get(name) or (getattr(known, name) if name in known.__all__ else None)
        if kind is None:
            raise ValueError(f"Proximal: the state names a penalty {short(name)!r} that is not known here.")
        self.classes[name] = kind
        return kind


OWN = ("optimizer", "compile", "classes")


def _as_pairs(penalty: Any, params: Any) -> list[tuple[Penalty, Any]]:
    pairs = [(penalty, params)] if isinstance(penalty, Penalty) else penalty
    sound = isinstance(pairs, (list, tuple)) and len(pairs) > 0
    if not sound or any(not (isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], Penalty)) for p in pairs):
        raise ValueError("Proximal: give one of nonsmooth.penalties, or a list of pairs (penalty, params).")
    return list(pairs)


def _as_list(params: Any) -> list[torch.Tensor]:
    if isinstance(params, torch.Tensor):
        raise ValueError("Proximal: params must be a list of parameters, not one tensor; write [w].")
    if not isinstance(params, Iterable):
        raise ValueError(
            f"Proximal: params must be a list of parameters, not {type(params).__name__}; pass weights(model)."
        )
    found = list(params)
    for p in found:
        if not isinstance(p, torch.Tensor):
            raise ValueError(f"Proximal: params must hold parameters, not {type(p).__name__}; pass weights(model).")
    if not found:
        raise ValueError("Proximal: params is empty; name at least one parameter.")
    return found


def need_proximal(who: str, optimizer: Any) -> Proximal:
    """The Proximal that this is, or that wrappers such as accelerate's hold; TypeError or ValueError where none is.

    >>> from nonsmooth.penalties import L1
    >>> mine = Proximal(torch.optim.SGD([torch.ones(1)], lr=0.1), L1(1.0))
    >>> need_proximal("density", mine) is mine
    True
    """
    found = unwrapped(optimizer, Proximal)
    if not isinstance(found, Proximal):
        raise TypeError(f"{who}: optimizer must be a Proximal, not {type(optimizer).__name__}.")
    if not any(True for _ in found.entries()):
        raise ValueError(f"{who}: the optimiser holds no parameter under a penalty.")
    return found

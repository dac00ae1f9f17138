"""An unsharded copy of a sharded model and of its optimiser, on which everything can be measured."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch.optim import Optimizer

from nonsmooth.torch.shards import whole

__all__ = ["replica"]

Kind = TypeVar("Kind", bound=Optimizer)


def replica(model: torch.nn.Module, into: torch.nn.Module, optimizer: Kind) -> Kind:
    """Fill `into` with a model's parameters and buffers as they are now, whole, and return its optimiser for `into`.

        copied = replica(model, Net(), optimizer)      # on every rank, now and then along the run
        kkt(copied, mean_over_ranks(closure_of(into), into))

    Under FSDP2 the parameters are sharded (DTensor), and torch has no gradients of a closure, nor Hessian products, for
    them; so certificates, `sharpness`, `stability` and `measure_step` refuse them and take such a copy. model: the
    sharded one. into: an unsharded module with the same names and shapes, in the mode and precision that is to be
    measured. The optimiser that is returned, a Proximal where `optimizer` is one, holds the parameters of `into`, with
    the same groups, penalties, λ and state; it shares nothing with the run, which stays as it is.

    Every process must call it. Each then holds the whole model and its state: for P parameters under Adam 3P numbers.
    Raises ValueError where names or shapes differ.

    >>> model, into = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    >>> copied = replica(model, into, torch.optim.SGD(model.parameters(), lr=0.5))
    >>> torch.equal(into.weight, model.weight), copied.param_groups[0]["params"][0] is into.weight
    (True, True)
    """
    pairs = []
    for kind in ("named_parameters", "named_buffers"):
        there, here = dict(getattr(model, kind)()), dict(getattr(into, kind)())
        if {n: p.shape for n, p in there.items()} != {n: p.shape for n, p in here.items()}:
            differing = sorted(n for n in there.keys() | here.keys() if _shape(there, n) != _shape(here, n))
            raise ValueError(f"replica: {differing[0]} differs between model and into; give the same model unsharded.")
        pairs += [(p, here[name]) for name, p in there.items()]
    for p, copied in pairs:
        copied.data.copy_(whole(p.detach()))
    made = copy.deepcopy(optimizer, {id(p): copied for p, copied in pairs})
    for state in made.state.values():
        state |= {name: whole(value) if isinstance(value, torch.Tensor) else value for name, value in state.items()}
    return made


def _shape(named: dict[str, torch.Tensor], name: str) -> torch.Size | None:
    return named[name].shape if name in named else None

"""Channels: which of a network carry nothing and can go without a trace, and how they go.

Which channels belong together (residual additions, concatenations, flattened maps) is Torch-Pruning's dependency graph
(Fang et al. 2023). Whether they may go is decided by following what depends on what (`nonsmooth.torch.dataflow`):
each layer that reads a channel has only zero weights on it, or sees a constant c there, and then

    b⁺ = b + Σ_i W_i c_i,

which is exact for a linear layer, and for a convolution that pads no zeros, or where c = 0.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from nonsmooth.torch.dataflow import CONV, NORM, Dataflow, channel_axis, is_depthwise, is_grouped, is_plain

PASSING = {"CONCAT", "SPLIT", "ELEMENTWISE", "RESHAPE", "SLICE", "PRELU", "BN", "DEPTHWISE_CONV"}
"""What a channel may pass between the layer that makes it and those that read it; `Dataflow` sees if it mixes them."""

MAKERS = (CONV, nn.Linear)
KEPT = "to be kept"

Channels = tuple[int, ...]


@dataclass
class Choice:
    """Coupled channels, named by those of one layer, the root: which go, what is pruned for that, and why others stay.

    why: the reason against each channel; dead: those with a zero filter or scale, or that nobody needs.
    """

    root: Any
    name: str
    channels: list[int]
    why: dict[int, str]
    dead: set[int]
    items: list[tuple[Any, list[int]]] = field(default_factory=list)

    def refuse(self, why: str) -> None:
        self.why |= {i: why for i in self.channels if i not in self.why}
        self.channels, self.items = [], []


class Round:
    """One look at the model: its graph of dependencies, what is constant in it, and what can go."""

    def __init__(self, model: nn.Module, inputs: Any, keep: set[str]) -> None:
        self.model, self.inputs, self.keep = model, inputs, keep
        self.names: dict[Any, str] = {module: name for name, module in model.named_modules()}
        holders = Counter(p for _, p in model.named_parameters(remove_duplicate=False))
        self.shared = {p for p, times in holders.items() if times > 1}
        self.graph = _graph(model, inputs)
        self.constants = _flow(model, inputs)
        self.found: dict[Any, list[str | None]] = {}
        try:
            self.choices = [self._choice(group) for group in self.graph.get_all_groups()]
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError(f"compress: Torch-Pruning cannot group the channels ({short(error)}).") from error
        self._unmix()

    # Each item (dep, channels) of a group prunes `channels` of a module: those that it reads, or that it puts out.

    def _reads(self, dep: Any) -> bool:
        module = dep.target.module
        reader = dep.target.type.name in ("CONV", "LINEAR")
        return reader and dep.handler == self.graph.get_pruner_of_module(module).prune_in_channels

    def _size(self, dep: Any) -> int | None:
        pruner, module = self.graph.get_pruner_of_module(dep.target.module), dep.target.module
        return pruner.get_in_channels(module) if self._reads(dep) else pruner.get_out_channels(module)

    def _choice(self, group: Any) -> Choice:
        root = group[0].dep.target.module
        choice = Choice(root, self.names[root], list(group[0].idxs), {}, set())
        barred, needed, readers = None, set(), 0
        for item in group:
            dep, roots = item.dep, item.root_idxs
            barred = barred or self._barred(dep)
            if self._reads(dep) and not barred:
                readers += 1
                against = self._against(dep.target.module)
                if max(item.idxs) >= len(against):
                    barred = "coupled in a way that Torch-Pruning does not follow"
                    continue
                for i, channel in zip(roots, item.idxs, strict=True):
                    if against[channel]:
                        choice.why.setdefault(i, against[channel])
                        needed.add(i)
            elif not self._reads(dep):
                zero = _zero(dep.target.module)
                choice.dead |= {i for i, channel in zip(roots, item.idxs, strict=True) if zero and zero[channel]}
        if barred:
            choice.refuse(barred)
            return choice
        if not readers:
            choice.refuse("no layer reads it")
            return choice
        choice.dead |= set(choice.channels) - needed
        choice.channels = [i for i in choice.channels if i not in needed]
        self._settle(choice)
        return choice

    def _barred(self, dep: Any) -> str | None:
        """Why no channel may go that concerns this module."""
        module, kind = dep.target.module, dep.target.type.name
        name = self.names.get(module, "")
        if kind == "OUTPUT":
            return "an output of the model"
        if kind not in PASSING | {"CONV", "LINEAR"}:
            return f"{type(module).__name__} is not handled"
        if not isinstance(module, nn.Module) or module not in self.names:
            return None
        if any(name == kept or name.startswith(f"{kept}.") for kept in self.keep):
            return KEPT
        if isinstance(module, CONV) and module.groups > 1 and not is_depthwise(module):
            return f"{name} is a grouped convolution"
        held = set(module._parameters.values())
        if held & self.shared:
            return f"{name} shares its weights"
        if "weight" not in module._parameters:
            return f"the weight of {name} is parametrised"
        if not isinstance(module, nn.PReLU) and not is_plain(module):
            return f"{name} has a forward of its own"
        if not isinstance(module, nn.PReLU) and self.constants.calls[module] != 1:
            return f"{name} is called {self.constants.calls[module]} times"
        return None

    def _against(self, module: Any) -> list[str | None]:
        """For each channel that a layer reads, why it must be there; None where it need not."""
        if module in self.found:
            return self.found[module]
        unread = (module.weight == 0).movedim(_input_axis(module), 0).flatten(1).all(1).tolist()
        rows = _rows(module, self.constants.seen[module])
        constant, null = rows.isfinite().all(1).tolist(), (rows == 0).all(1).tolist()
        level, pads = (rows == rows[:, :1]).all(1).tolist(), _pads_zeros(module)
        name = self.names[module]
        self.found[module] = [
            None
            if unread[i] or null[i] or (constant[i] and level[i] and not pads)
            else f"{name} reads it, and it is not constant there"
            if not constant[i]
            else f"a constant that is not 0 meets the zero padding of {name}"
            if level[i]
            else f"a constant that differs from place to place reaches {name}"
            for i in range(len(rows))
        ]
        return self.found[module]

    def _settle(self, choice: Choice) -> None:
        """The items of the chosen channels, as long as each module keeps one."""
        while choice.channels:
            found = self.graph.get_pruning_group(
                choice.root, self.graph.get_pruner_of_module(choice.root).prune_out_channels, choice.channels
            )
            items = [(dep, sorted(idxs)) for dep, idxs in found]
            if any(set(c) - set(choice.channels) for dep, c in items if dep.target.module is choice.root) or any(
                self._against(dep.target.module)[i] for dep, channels in items if self._reads(dep) for i in channels
            ):
                choice.refuse("coupled with channels that are needed")
            elif any(self._size(dep) == len(channels) for dep, channels in items):
                choice.why[choice.channels.pop(0)] = "a layer keeps one channel"
            else:
                choice.items = items
                return

    def _unmix(self) -> None:
        """Refuse channels that reach more than the layers that are said to read them."""
        if not self._contained(self.choices):
            for choice in self.choices:
                if not self._contained([choice]):
                    choice.refuse("its channels are mixed with others, as by a normalisation or a softmax")

    def _contained(self, choices: Iterable[Choice]) -> bool:
        items = [item for choice in choices for item in choice.items]
        poison = _union(
            (dep.target.module, c) for dep, c in items if isinstance(dep.target.module, MAKERS) and not self._reads(dep)
        )
        if not poison:
            return True
        ends = _union((dep.target.module, c) for dep, c in items if self._reads(dep))
        flow = _flow(self.model, self.inputs, poison)
        for module, x in flow.seen.items():
            if not is_grouped(module):
                marked = _rows(module, x).isnan().any(1).nonzero().flatten().tolist()
                if set(marked) - set(ends.get(module, ())):
                    return False
        return not flow.escaped

    # --- how they go ---

    def take_out(self) -> dict[Any, list[int]]:
        """Fold the constants, remove the channels, and return those that each layer puts out no longer."""
        items = [item for choice in self.choices for item in choice.items]
        for module, channels in _union((dep.target.module, c) for dep, c in items if self._reads(dep)).items():
            _fold(module, channels, self.constants.seen[module], self._norm_after(module))
        tasks: dict[Any, tuple[Any, list[int]]] = {}
        for dep, channels in items:
            if isinstance(dep.target.module, (*MAKERS, NORM, nn.PReLU)):
                tasks.setdefault((dep.target.module, self._reads(dep)), (dep, []))[1].extend(channels)
        for dep, channels in tasks.values():
            dep.handler(dep.target.module, sorted(set(channels)))
        return {
            module: sorted(set(channels))
            for (module, reads), (_, channels) in tasks.items()
            if isinstance(module, MAKERS) and not reads
        }

    def _norm_after(self, module: nn.Module) -> Any:
        """The BatchNorm that alone reads what a layer puts out."""
        after = self.graph.module2node[module].outputs
        norm = after[0].module if len(after) == 1 else None
        if not isinstance(norm, NORM) or norm not in self.names or self.constants.calls[norm] != 1:
            return None
        return norm if norm.running_mean is not None else None


def remove_all(
    model: nn.Module, inputs: Any, keep: set[str], check: Callable[[], Any]
) -> tuple[tuple[tuple[str, Channels], ...], tuple[tuple[str, Channels, str], ...]]:
    """Round by round, since what only removed channels read is then read by nobody; after each, `check` is called.

    Returns (layer, channels) of what was removed, and (layer, channels, why) of what was left in.
    """
    for p in model.parameters():
        p.requires_grad_(p.is_floating_point() or p.is_complex())
    there = {m: list(range(_puts_out(m))) for m in model.modules() if isinstance(m, MAKERS)}
    first = copy.deepcopy(list(there.values()))
    while True:
        look = Round(model, inputs, keep)
        removed = look.take_out()
        if not removed:
            break
        for module, channels in removed.items():
            gone = set(channels)
            there[module] = [number for i, number in enumerate(there[module]) if i not in gone]
        check()
    went = [(look.names[m], tuple(sorted(set(all) - set(left)))) for (m, left), all in zip(there.items(), first)]
    kept: dict[tuple[str, str], list[int]] = {}
    for choice in look.choices:
        for i in sorted(choice.dead & choice.why.keys()):
            if choice.why[i] != KEPT:
                kept.setdefault((choice.name, choice.why[i]), []).append(there[choice.root][i])
    return (
        tuple((name, channels) for name, channels in went if channels),
        tuple((name, tuple(channels), why) for (name, why), channels in kept.items()),
    )


def _fold(module: Any, channels: list[int], seen: torch.Tensor, norm: Any) -> None:
    """b⁺ = b + Σ_i W_i c_i, or μ⁺ = μ − Σ_i W_i c_i in the BatchNorm after a layer that has no bias."""
    constants = _rows(module, seen)[channels, 0].to(torch.float64)
    weight = module.weight.detach().movedim(_input_axis(module), 1)[:, channels]  # transposed: the constants are 0
    reads = (weight != 0).flatten(2).any(2).any(0) if weight.ndim > 2 else (weight != 0).any(0)
    constants = torch.where(reads, constants, 0.0)
    if not bool((constants != 0).any()):
        return
    shift = weight.to(torch.float64).flatten(2).sum(2) @ constants if weight.ndim > 2 else weight.double() @ constants
    if module.bias is not None:
        module.bias.data = (module.bias.data.double() + shift).to(module.bias.dtype)
    elif norm is not None:
        norm.running_mean = (norm.running_mean.double() - shift).to(norm.running_mean.dtype)
    else:
        module.bias = nn.Parameter(shift.to(module.weight.dtype))


# --- layers --------------------------------------------------------------------------------------------------------


def _puts_out(module: Any) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _input_axis(module: Any) -> int:
    """The axis of the weight along which what it reads lies."""
    return 0 if getattr(module, "transposed", False) else 1


def _rows(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a layer reads, a row for each channel."""
    x = x.movedim(channel_axis(module), 0)
    return x.reshape(len(x), -1)


def _pads_zeros(module: Any) -> bool:
    """Whether zeros join what a layer reads; a transposed convolution spreads zeros between its inputs."""
    if isinstance(module, nn.Linear):
        return False
    if module.transposed:
        return True
    padded = module.padding == "same" and any(k > 1 for k in module.kernel_size)
    padded = padded if isinstance(module.padding, str) else any(module.padding)
    return padded and module.padding_mode == "zeros"


def _zero(module: Any) -> list[bool]:
    """Which channels a layer puts out with zero weights, or a BatchNorm with a zero scale."""
    if isinstance(module, NORM):
        return [] if module.weight is None else (module.weight == 0).tolist()
    if not isinstance(module, MAKERS) or "weight" not in module._parameters:
        return []
    axis = 1 if getattr(module, "transposed", False) else 0
    return (module.weight == 0).movedim(axis, 0).flatten(1).all(1).tolist()


def _union(pairs: Iterable[tuple[nn.Module, list[int]]]) -> dict[nn.Module, list[int]]:
    union: dict[nn.Module, set[int]] = {}
    for module, channels in pairs:
        union.setdefault(module, set()).update(channels)
    return {module: sorted(channels) for module, channels in union.items()}


# --- running the model -----------------------------------------------------------------------------------------------


def torch_pruning() -> Any:
    """The package, or one sentence on how to get it."""
    try:
        import torch_pruning
    except ModuleNotFoundError as missing:
        if missing.name != "torch_pruning":
            raise
        raise ModuleNotFoundError(
            "compress needs torch-pruning, which is not installed; run: pip install 'nonsmooth[torch]'",
            name="torch_pruning",
        ) from missing
    return torch_pruning


def fresh(inputs: Any) -> Any:
    """Copies, for a forward pass that writes into its inputs."""
    return tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, inputs)


def tensors(outputs: Any) -> list[torch.Tensor]:
    """The tensors in a nest of outputs, in order."""
    return [t for t in tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def _graph(model: nn.Module, inputs: Any) -> Any:
    """Torch-Pruning's graph; each output passes a clone, so that it has a node of its own."""

    def forward(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
        outputs = [t.clone() for t in tensors(model(*fresh(inputs))) if t.requires_grad]
        if not outputs:
            raise ValueError("no output has a gradient")
        return outputs

    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            return torch_pruning().DependencyGraph().build_dependency(model, inputs, forward, verbose=False)
    except Exception as error:
        raise ValueError(f"compress: Torch-Pruning cannot trace the model ({short(error)}).") from error


def _flow(model: nn.Module, inputs: Any, poison: dict[nn.Module, list[int]] | None = None) -> Dataflow:
    try:
        return Dataflow(model, inputs, poison)
    except Exception as error:
        raise ValueError(f"compress: the model cannot be followed ({short(error)}).") from error


def short(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")

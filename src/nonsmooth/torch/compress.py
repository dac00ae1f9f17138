"""Compress: channels that carry nothing are taken out of the network, and the outputs stay the same.

Which channels belong together (residual additions, concatenations, flattened maps) is Torch-Pruning's dependency graph
(Fang et al. 2023). Whether a channel may go is decided here, by following what depends on what through the network:

    a channel may go where each layer that reads it has only zero weights on it, or sees a constant c there; then
    b⁺ = b + Σ_i W_i c_i, which is exact for a linear layer, and for a convolution that pads no zeros, or if c = 0.

A zero filter puts out its bias, a BatchNorm with scale γ = 0 its shift β: constants, and after them act(b), act(β).
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from nonsmooth.torch.channels import Channels, fresh, remove_all, short, tensors, torch_pruning

__all__ = ["Compressed", "Cost", "compress"]

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest difference of an output that is allowed, as a part of its largest entry."""


@dataclass(frozen=True)
class Cost:
    """Parameters; FLOPs of one call (of matrix products and convolutions); its median latency and its spread, in ms.

    The spread is half of the interquartile range.

    >>> Cost(10, 16, 0.5, 0.1).flops
    16
    """

    parameters: int
    flops: int
    latency: float
    spread: float


@dataclass(frozen=True)
class Compressed:
    """The smaller `model`, its cost before and after, and what was done.

    removed: (layer, channels), the outputs taken from each layer, as they were numbered in the model that was given.
    kept: (layer, channels, why), those that look dead and could not go.
    difference: the largest |Δoutput| on the given inputs, in eval mode; tolerance: what was allowed, as a part of the
    largest |output|. Latency holds for this `device` and number of `threads`, and for this machine at that time.

    >>> print(Compressed(nn.Identity(), Cost(9, 8, 0.2, 0.1), Cost(5, 4, 0.1, 0.1), (("0", (1,)),), (), 0.0, 1e-4))
    1 channel removed; outputs differ by 0 at most (allowed: 0.0001 of the largest)
                          before          after
      parameters               9              5
      FLOPs                    8              4
      latency, ms    0.200 ± 0.1    0.100 ± 0.1   (cpu, 1 thread)
      removed from 0: 1
    """

    model: nn.Module
    before: Cost
    after: Cost
    removed: tuple[tuple[str, Channels], ...]
    kept: tuple[tuple[str, Channels, str], ...]
    difference: float
    tolerance: float
    device: str = "cpu"
    threads: int = 1

    def __str__(self) -> str:
        count = sum(len(channels) for _, channels in self.removed)
        what = f"{count} channel{'s' * (count != 1)} removed" if count else "nothing to remove"
        a, b = self.before, self.after
        x, y = (f"{cost.latency:.3f} ± {cost.spread:.1g}" for cost in (a, b))
        rows: list[tuple[str, Any, Any, str]] = [
            ("", "before", "after", ""),
            ("parameters", a.parameters, b.parameters, ""),
            ("FLOPs", a.flops, b.flops, ""),
            ("latency, ms", x, y, f"   ({self.device}, {self.threads} thread{'s' * (self.threads != 1)})"),
        ]
        lines = [
            f"{what}; outputs differ by {self.difference:.2g} at most (allowed: {self.tolerance:g} of the largest)"
        ]
        lines += [f"  {name:11}  {old!s:>13}  {new!s:>13}{end}".rstrip() for name, old, new, end in rows]
        lines += [f"  removed from {name}: {', '.join(map(str, channels))}" for name, channels in self.removed]
        lines += [f"  left in {name}: {', '.join(map(str, channels))} ({why})" for name, channels, why in self.kept]
        return "\n".join(lines)


def compress(
    model: nn.Module, *inputs: Any, keep: Iterable[str] = (), runs: int = 15, tolerance: float | None = None
) -> Compressed:
    """A copy of the model without the channels that carry nothing; model(*inputs) in eval mode is what stays the same.

    For a model that was trained to exact zeros, by `Proximal` with a GroupLasso on weights (zero filters) or an L1 on
    the scales of BatchNorms (network slimming); small weights count as any other. A channel goes where every layer that
    reads it has zero weights on it, or sees a constant there, which is folded into its bias, or into the running mean
    of the BatchNorm after it. Coupled channels go together or not at all, each layer keeps one channel at least, and
    what is an output of the model stays. What cannot go exactly is left in, and listed.

    keep: names of layers, or of modules with all in them, that stay as they are; runs: calls of each model that are
    timed; tolerance: see `Compressed`, by default 1e-12 in float64, 1e-4 in float32, 1e-2 in float16, 5e-2 in bfloat16.

    Left in: channels of grouped convolutions that are not depthwise, of attention, recurrent and embedding layers, of
    layers that are called twice, share a weight or have it parametrised, channels that meet a parameter outside of such
    layers, and channels that a normalisation over channels, a softmax or a sum mixes. A constant is one for inputs of
    the given shapes. A zero filter with a bias whose act(b) is not 0 stays in front of a zero-padded convolution: train
    without that bias. In training mode the smaller model is another one (dropout; BatchNorm moves its statistics).

    Raises ValueError, in one sentence, without inputs, and for a model that cannot be copied, does not run on them, or
    that Torch-Pruning cannot trace; RuntimeError where the smaller model does not run, or its outputs differ (a forward
    that has numbers of channels written into it; `keep` can spare them); ModuleNotFoundError without torch-pruning.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    ...     _ = model[0].bias.copy_(torch.tensor([0.0, 3.0]))
    ...     _ = model[2].weight.copy_(torch.tensor([[1.0, 2.0]])), model[2].bias.zero_()
    >>> smaller = compress(model, torch.ones(1, 2))
    >>> smaller.removed, smaller.model[2].weight.tolist(), smaller.model[2].bias.tolist()  # 2 relu(3) is folded in
    ((('0', (1,)),), [[1.0]], [6.0])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model must be a torch.nn.Module, not {type(model).__name__}.")
    if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(inputs)):
        raise ValueError("compress: there are no inputs to trace the model with; call compress(model, x).")
    if not isinstance(runs, int) or runs < 1:
        raise ValueError(f"compress: runs must be a whole number above 0, not {runs!r}.")
    modules = dict(model.named_modules())
    keep = [keep] if isinstance(keep, str) else list(keep)
    for name in keep:
        if name not in modules:
            raise ValueError(f"compress: the model has no layer named {name!r} to keep.")
    torch_pruning()
    place = next((t for t in (*model.parameters(), *model.buffers())), torch.empty(0))
    inputs = tree_map(lambda t: t.detach().to(place.device) if isinstance(t, torch.Tensor) else t, inputs)
    devices = [place.device.index] if place.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        larger, smaller = _copy(model).eval(), _copy(model).eval()
        outputs = _outputs(larger, inputs)
        removed, kept = remove_all(
            smaller, inputs, set(keep), check=lambda: _compare(smaller, inputs, outputs, tolerance)
        )
        allowed, difference = _compare(smaller, inputs, outputs, tolerance)
        before, after = _costs((larger, smaller), inputs, runs, place.device)
    training = {name: module.training for name, module in modules.items()}
    for name, module in smaller.named_modules():
        module.training = training[name]
    trained = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    for name, p in smaller.named_parameters(remove_duplicate=False):
        p.requires_grad_(trained.get(name, trained.get(name.removesuffix("bias") + "weight", True)))
    return Compressed(
        smaller, before, after, removed, kept, difference, allowed, str(place.device), torch.get_num_threads()
    )


# --- running the models ----------------------------------------------------------------------------------------------


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise ValueError(
            f"compress: the model cannot be copied ({short(error)}); torch.nn.utils.prune.remove makes masks permanent."
        ) from error


def _outputs(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    with torch.no_grad():
        try:
            return tensors(model(*fresh(inputs)))
        except Exception as error:
            raise ValueError(f"compress: the model does not run on these inputs ({short(error)}).") from error


def _compare(
    smaller: nn.Module, inputs: Any, outputs: list[torch.Tensor], tolerance: float | None
) -> tuple[float, float]:
    """The tolerance and the largest difference; raises RuntimeError where that is too large."""
    advice = "a forward pass with numbers of channels written into it, such as view(-1, 512), needs flatten(1) or keep"
    try:
        with torch.no_grad():
            found = tensors(smaller(*fresh(inputs)))
    except Exception as error:
        raise RuntimeError(f"compress: the smaller model does not run ({short(error)}); {advice}.") from error
    if [t.shape for t in found] != [t.shape for t in outputs]:
        raise RuntimeError(f"compress: the smaller model's outputs have other shapes; {advice}.")
    real = [t.dtype for t in outputs if t.dtype in TOLERANCE]
    allowed = max((TOLERANCE[dtype] for dtype in real), default=1e-4) if tolerance is None else float(tolerance)
    largest = 0.0
    for a, b in zip(outputs, found, strict=True):
        if not a.numel():
            continue
        a, b = (t if t.is_complex() else t.double() for t in (a, b))
        difference, size = float((a - b).abs().max()), float(a.abs().max())
        if not difference <= allowed * size:
            raise RuntimeError(
                f"compress: the outputs differ by {difference:.3g}, and {allowed:g} of the largest, {size:.3g}, is "
                "allowed: the model was not made smaller."
            )
        largest = max(largest, difference)
    return allowed, largest


def _costs(models: Sequence[nn.Module], inputs: Any, runs: int, device: torch.device) -> list[Cost]:
    """Of each model; the timed calls take turns, so that what slows the machine slows all."""
    flops: list[int] = []
    times: list[list[float]] = [[] for _ in models]
    wait: Callable[[], Any] = getattr(getattr(torch, device.type, None), "synchronize", lambda: None)
    with torch.no_grad():
        for model in models:
            with FlopCounterMode(display=False) as counter:
                model(*fresh(inputs))
            flops.append(counter.get_total_flops())
        for turn in range(runs + 2):
            for model, taken in zip(models, times, strict=True):
                own = fresh(inputs)
                wait()
                start = time.perf_counter()
                model(*own)
                wait()
                if turn > 1:  # two calls to warm up
                    taken.append(1000 * (time.perf_counter() - start))
    spreads = [0.0 if runs < 2 else (lambda q: (q[2] - q[0]) / 2)(statistics.quantiles(taken)) for taken in times]
    return [
        Cost(sum(p.numel() for p in model.parameters()), count, statistics.median(taken), spread)
        for model, count, taken, spread in zip(models, flops, times, spreads, strict=True)
    ]

"""What may hide kinks in the gradient graph of a loss: operations that no rule saw, custom functions, scripted code."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

__all__ = ["hidden", "recomputes"]

KINKED = {
    *("ReluBackward0", "AbsBackward0", "ClampBackward0", "ClampBackward1", "ClampMinBackward0", "ClampMinBackward1"),
    *("ClampMaxBackward0", "ClampMaxBackward1", "HardtanhBackward0", "LeakyReluBackward0", "PreluKernelBackward0"),
    *("ThresholdBackward0", "SoftshrinkBackward0", "HardshrinkBackward0", "HardswishBackward0", "HardsigmoidBackward0"),
    *("RreluWithNoiseBackward0", "MaximumBackward0", "MinimumBackward0", "FmaxBackward0", "FminBackward0"),
    *("AmaxBackward0", "AminBackward0", "MaxBackward0", "MaxBackward1", "MinBackward0", "MinBackward1"),
    *("SortBackward0", "SortBackward1", "TopkBackward0", "KthvalueBackward0", "MedianBackward0", "MedianBackward1"),
    *("CummaxBackward0", "CumminBackward0", "ModeBackward0", "AminmaxBackward0", "MaxPool2DWithIndicesBackward0"),
    *("MaxPool3DWithIndicesBackward0", "AdaptiveMaxPool2DBackward0", "AdaptiveMaxPool3DBackward0"),
    *("FractionalMaxPool2DBackward0", "FractionalMaxPool3DBackward0", "MultiMarginLossBackward0"),
    *("MultilabelMarginLossBackward0", "SignBackward0", "SgnBackward0", "RoundBackward0", "FloorBackward0"),
    *("CeilBackward0", "TruncBackward0", "FracBackward0", "RemainderBackward0", "RemainderBackward1"),
    *("FmodBackward0", "FmodBackward1", "NanmedianBackward0", "NanmedianBackward1"),
}
"""The nodes of torch's gradient graph that belong to operations with kinks or jumps."""


def hidden(loss: torch.Tensor, known: set[Any]) -> Counter[str]:
    """What is in the graph of the loss that no rule saw, with how often.

    >>> w = torch.ones(2, requires_grad=True)
    >>> dict(hidden(torch.relu(w).sum(), set()))
    {'an operation without a rule (Relu)': 1}
    """
    found: Counter[str] = Counter()
    for node in _nodes(loss):
        name = type(node).__name__
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            found[f"custom autograd function {name.removesuffix('Backward')}"] += 1
        elif "DifferentiableGraph" in name or "CompiledFunction" in name:
            found["scripted code"] += 1
        elif node not in known and (name in KINKED or _is_kinked(node, name)):
            found[f"an operation without a rule ({name.rstrip('0123456789').removesuffix('Backward')})"] += 1
    return found


def _is_kinked(node: Any, name: str) -> bool:
    if name in ("CdistBackward0", "DistBackward0", "NormBackward0", "LinalgVectorNormBackward0"):
        p = getattr(node, "_saved_ord", getattr(node, "_saved_p", 2.0))
        return p is not None and (p <= 1 or p == math.inf)
    return name == "EluBackward0" and node._saved_alpha * node._saved_input_scale != 1


def recomputes(loss: torch.Tensor) -> bool:
    """Whether a part of the graph is run anew in the backward pass (reentrant activation checkpoints).

    >>> recomputes(torch.ones(2, requires_grad=True).sum())
    False
    """
    return any(type(node).__name__ == "CheckpointFunctionBackward" for node in _nodes(loss))


def _nodes(loss: torch.Tensor) -> list[Any]:
    pending: list[Any] = [loss.grad_fn]
    met: dict[Any, None] = {}
    while pending:
        node = pending.pop()
        if node is not None and node not in met:
            met[node] = None
            pending += [n for n, _ in node.next_functions]
    return list(met)

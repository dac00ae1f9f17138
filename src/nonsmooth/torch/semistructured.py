"""Semi-structured: weights with a 2:4 pattern in the format whose products the device has in hardware."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["SemiStructured", "semi_structured"]


@dataclass(frozen=True)
class SemiStructured:
    """A copy of the model with the weights in `converted` in torch's 2:4 format; left: (name, why) of the others.

    >>> SemiStructured(nn.Identity(), (), (("0.weight", "it has no 2:4 pattern"),)).converted
    ()
    """

    model: nn.Module
    converted: tuple[str, ...]
    left: tuple[tuple[str, str], ...]


def semi_structured(model: nn.Module) -> SemiStructured:
    """The weights of linear layers with a 2:4 pattern, in `torch.sparse.to_sparse_semi_structured`, in a copy.

    The pattern: each 4 consecutive entries of a row hold at most 2 that are not 0, as the penalty NM(2, 4) makes them.
    The format is for inference, on CUDA devices of compute capability 8.0 or more, in float16 or bfloat16, and for
    sizes that its kernels take. Weights that cannot be converted stay dense, with one sentence why.

    >>> layer = nn.Linear(4, 1).requires_grad_(False)
    >>> _ = layer.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, 2.0]]))
    >>> semi_structured(layer).left
    (('weight', 'the 2:4 format needs a CUDA device of compute capability 8.0 or more, and the weight is on cpu'),)
    """
    smaller, converted, left = copy.deepcopy(model), [], []
    shared = Counter(p for _, p in smaller.named_parameters(remove_duplicate=False))
    for prefix, module in smaller.named_modules():
        weight = module._parameters.get("weight") if isinstance(module, nn.Linear) else None
        if weight is None:
            continue
        name = f"{prefix}.weight".removeprefix(".")
        why = "it is shared" if shared[weight] > 1 else _why_dense(weight)
        if not why:
            try:
                module.weight = nn.Parameter(
                    torch.sparse.to_sparse_semi_structured(weight.detach()), requires_grad=False
                )
                converted.append(name)
                continue
            except (RuntimeError, ValueError, NotImplementedError) as error:
                why = f"torch refuses it ({str(error).splitlines()[0].rstrip('.')})"
        left.append((name, why))
    return SemiStructured(smaller, tuple(converted), tuple(left))


def _why_dense(weight: torch.Tensor) -> str:
    if not _two_of_four(weight):
        return "it has no 2:4 pattern"
    capable = weight.device.type == "cuda" and torch.cuda.get_device_capability(weight.device) >= (8, 0)
    if not capable:
        return (
            "the 2:4 format needs a CUDA device of compute capability 8.0 or more, "
            f"and the weight is on {weight.device.type}"
        )
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"the 2:4 format is for float16 and bfloat16, not {weight.dtype}"
    return ""


def _two_of_four(weight: torch.Tensor) -> bool:
    """Whether each 4 consecutive entries along the last axis hold at most 2 that are not 0."""
    if weight.shape[-1] % 4:
        return False
    return bool(((weight != 0).unflatten(-1, (-1, 4)).sum(-1) <= 2).all())

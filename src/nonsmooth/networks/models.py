"""The networks: a multilayer perceptron and a small convolutional one, with initial gradients of matched size."""

from __future__ import annotations

import math

import torch
from torch import nn

from nonsmooth.networks.activations import Function, activation, gain
from nonsmooth.networks.setting import Setting

__all__ = ["Activation", "build"]


class Activation(nn.Module):
    """A function of `networks.activations` as a module.

    >>> Activation("relu")(torch.tensor([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.function: Function = activation(name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.name


def build(setting: Setting, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The network for samples of a shape (channels, …) without the batch.

    Weights are normal with deviation gain/√(fan in), gain 1/√E φ'² in the hidden layers and 1 in the last; biases are
    0. From one seed every activation gets the same numbers, scaled. The random numbers are torch's global ones.

    Raises ValueError, in one sentence, where a "cnn" has fewer than four entries to pool along some axis.

    >>> build(Setting(model="cnn", width=4), (1, 8, 8), 10)(torch.zeros(3, 1, 8, 8, dtype=torch.float64)).shape
    torch.Size([3, 10])
    """
    layers: list[nn.Module] = []
    if setting.model == "mlp":
        layers.append(nn.Flatten())
        features = math.prod(shape)
        for _ in range(setting.depth):
            layers += [nn.Linear(features, setting.width)]
            layers += [nn.BatchNorm1d(setting.width)] if setting.batchnorm else []
            layers += [Activation(setting.activation)]
            features = setting.width
    else:
        axes = len(shape) - 1
        if not (axes in (1, 2) and min(shape[1:]) >= 4):
            raise ValueError(f"build: a cnn needs samples of (channels, ≥ 4[, ≥ 4]), not of {shape}.")
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if axes == 1 else (nn.Conv2d, nn.BatchNorm2d)
        pool = getattr(nn, f"{'Max' if setting.pool == 'max' else 'Avg'}Pool{axes}d")
        channels = shape[0]
        for width in (setting.width, 2 * setting.width):
            layers += [conv(channels, width, 3, padding=1)]
            layers += [norm(width)] if setting.batchnorm else []
            layers += [Activation(setting.activation), pool(2)]
            channels = width
        layers.append(nn.Flatten())
        features = channels * math.prod(n // 4 for n in shape[1:])
    layers.append(nn.Linear(features, classes))
    model = nn.Sequential(*layers).to(getattr(torch, setting.dtype))
    held = [m for m in model if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    with torch.no_grad():
        for layer in held:
            scale = 1.0 if layer is held[-1] else gain(setting.activation)
            normal = torch.randn(layer.weight.shape, dtype=torch.float64)
            layer.weight.copy_(normal * scale / math.sqrt(layer.weight[0].numel()))
            assert layer.bias is not None
            layer.bias.zero_()
    return model

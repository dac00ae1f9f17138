"""What a training run is, as a value: two runs of the same setting are the same, bit by bit, on the same machine."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.metadata import version
from typing import Any

from nonsmooth.networks.data import origin
from nonsmooth.sources import hash_of_sources

__all__ = ["Setting", "drawn"]

TRAINS = (
    *("hyperparameters", "penalties", "networks"),
    *("torch.batch_sharpness", "torch.convolution", "torch.curvature", "torch.effective", "torch.groups"),
    *("torch.hessian", "torch.kernels", "torch.lanczos", "torch.parts", "torch.probes", "torch.proximal"),
    *("torch.ranks", "torch.selection", "torch.shards", "torch.stability", "torch.states", "torch.steps"),
    *("torch.outside", "torch.thick_restart", "torch.undisturbed"),
)
"""The modules and packages on which a run depends, all of them: a test follows the imports."""

CHOICES = {
    "model": ("mlp", "cnn"),
    "pool": ("max", "average"),
    "loss": ("mse", "cross_entropy"),
    "optimizer": ("sgd", "adam", "adamw", "rmsprop"),
    "schedule": ("constant", "cosine"),
    "penalty": ("none", "autograd", "proximal"),
    "on": ("weights", "batchnorm"),
    "dtype": ("float64", "float32", "bfloat16", "float16"),
}
"""What the fields that are words may be."""


@dataclass(frozen=True)
class Setting:
    """A network, its data, its optimiser, and what is measured along the way.

    data: "digits", "mnist1d", or a folder that holds MNIST's idx files or CIFAR-10's binary ones; `samples` are trained
    on, the first of a shuffle that is the same for all; `batch` of them a step, 0 for all. model: "mlp", `depth` hidden
    layers of `width` units, or "cnn", two convolutions of `width` and 2·`width` channels with `pool` after each.
    activation: a name of `networks.activations`, with its number after a colon: "relu", "leaky_relu:0.1",
    "softplus:5". loss: "mse", ½ mean ‖f(x) − e_y‖², or "cross_entropy". λ = `lam` times the L1 norm of what `on` says,
    the weight matrices or the scales of BatchNorm. `momentum` is SGD's or RMSprop's. `amp`: the forward pass under
    autocast to bfloat16. watch: the names of `networks.observers`, which look at every `every`-th step, and, with
    `tail` above 0, at the last `tail` share of the steps only.

    Raises ValueError, in one sentence, for a field that cannot be.

    >>> Setting(activation="gelu", lr=0.5, seed=3).key == Setting(activation="gelu", lr=0.5, seed=3).key
    True
    >>> Setting(optimizer="sdg")
    Traceback (most recent call last):
    ValueError: Setting: optimizer must be one of sgd, adam, adamw, rmsprop, not 'sdg'.
    """

    data: str = "digits"
    samples: int = 400
    batch: int = 0
    model: str = "mlp"
    width: int = 32
    depth: int = 2
    activation: str = "relu"
    pool: str = "max"
    batchnorm: bool = False
    loss: str = "cross_entropy"
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    lam: float = 0.0
    penalty: str = "none"
    on: str = "weights"
    steps: int = 300
    dtype: str = "float64"
    amp: bool = False
    seed: int = 0
    watch: tuple[str, ...] = ()
    every: int = 1
    tail: float = 0.0

    def __post_init__(self) -> None:
        for name, among in CHOICES.items():
            if getattr(self, name) not in among:
                raise ValueError(f"Setting: {name} must be one of {', '.join(among)}, not {getattr(self, name)!r}.")
        for name in ("samples", "width", "depth", "steps", "every"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"Setting: {name} must be a whole number of at least 1, not {value!r}.")
        for name in ("lr", "momentum", "weight_decay", "lam", "tail"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
                raise ValueError(f"Setting: {name} must be a finite number of at least 0, not {value!r}.")
        if self.amp and self.dtype != "float32":
            raise ValueError(f"Setting: amp needs dtype='float32'; autocast leaves {self.dtype} as it is.")
        object.__setattr__(self, "watch", tuple(self.watch))

    @property
    def key(self) -> str:
        """The name of this run's row: a hash of the fields, of the data, and of the code that trains and measures.

        Raises ValueError, in one sentence, where there are no such data.
        """
        content = [self.to_dict(), origin(self.data), *_code()]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"watch": list(self.watch)}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Setting:
        """Raises ValueError, in one sentence, for a field that there is not.

        >>> Setting.from_dict(Setting(lam=0.5).to_dict()).lam
        0.5
        """
        unknown = plain.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"Setting: there is no {', '.join(sorted(unknown))}.")
        return cls(**plain)


def drawn(setting: Setting, seeds: int, master: int = 0, first: int = 0) -> list[Setting]:
    """The setting with so many seeds, from `first` on; other ones for another master.

    >>> [s.seed for s in drawn(Setting(), 3, master=2)]
    [2000, 2001, 2002]
    """
    return [replace(setting, seed=1000 * master + first + i) for i in range(seeds)]


@cache
def _code() -> tuple[str, ...]:
    """A hash of the sources that train and measure, and the versions under them."""
    return hash_of_sources(*TRAINS), f"numpy {version('numpy')}", f"torch {version('torch')}"

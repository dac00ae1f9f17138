"""What a probe says of the eigenvector: whether it lies in weights that have hardly had a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import optim

from nonsmooth.torch.probes import Probes


def probed(kind: type[optim.Optimizer], awake: int, **options: float) -> dict[str, object]:
    """Ten steps that move the first `awake` of five weights, then a probe where the last one curves most."""
    w = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    optimizer = kind([w], lr=0.01, **options)
    for _ in range(10):
        optimizer.zero_grad()
        w[:awake].square().sum().backward()
        optimizer.step()
    curvatures = torch.tensor([1.0, 1.0, 1.0, 1.0, 3.0], dtype=torch.float64)
    return Probes(w, optimizer, window=10).curvature(lambda: (curvatures * w.square()).sum())


@pytest.mark.parametrize(
    ("kind", "options"), [(optim.Adam, {}), (optim.AdamW, {}), (optim.RMSprop, {"centered": True})]
)
def test_the_eigenvector_of_a_weight_without_a_gradient_is_dormant(kind, options):
    assert probed(kind, 4, **options)["dormant"] == pytest.approx(1.0)
    assert probed(kind, 5, **options)["dormant"] == 0.0


def test_without_a_step_for_each_weight_nothing_is_said_of_it():
    assert "dormant" not in probed(optim.SGD, 4, momentum=0.9)

"""What a probe says of the eigenvector: whether it lies in weights that have hardly had a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import optim

from nonsmooth.torch.probes import Probes
from nonsmooth.torch.stability import step_scale


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


def test_a_parameter_without_a_name_has_its_index_in_the_optimiser_whatever_is_frozen():
    params = [torch.nn.Parameter(torch.ones(1)) for _ in range(3)]
    probes = Probes(params, optim.SGD([{"params": params[:1]}, {"params": params[1:]}], lr=0.1), window=10)
    assert [name for name, _ in probes.params()] == ["0", "1", "2"]
    params[1].requires_grad_(False)
    assert [name for name, _ in probes.params()] == ["0", "2"]


def test_the_sharpness_of_a_sparse_embedding_is_that_of_a_dense_one():
    ids, found = torch.tensor([[0, 1], [1, 1], [3, 2]]), []
    for sparse in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Embedding(5, 3, sparse=sparse), torch.nn.Flatten(), torch.nn.Linear(6, 1))
        probes = Probes(model.double(), optim.SGD(model.parameters(), lr=0.1), window=10)
        found.append(probes.curvature(lambda model=model: model(ids).square().sum())["sharpness"])
    assert found[0] == pytest.approx(found[1]) and found[0] > 1


def test_what_has_no_second_derivative_is_told_in_a_sentence():
    bag = torch.nn.EmbeddingBag(5, 3, mode="mean")
    probes = Probes(bag, optim.SGD(bag.parameters(), lr=0.1), window=10)
    with pytest.raises(ValueError, match=r"^the sharpness cannot be measured: torch has no second derivative here \("):
        probes.curvature(lambda: bag(torch.tensor([[0, 1]])).square().sum())


def test_without_a_step_for_each_weight_nothing_is_said_of_it():
    assert "dormant" not in probed(optim.SGD, 4, momentum=0.9)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_step_s_curvature_over_the_threshold_is_that_of_its_quadratic(kind):
    """⟨HD, D⟩/⟨D, S⁻¹D⟩, of two parameters that the optimiser holds in another order than the model."""
    model = torch.nn.ParameterDict({"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(3, dtype=torch.float64)})
    optimizer = kind([{"params": [model["b"]], "lr": 0.1}, {"params": [model["a"]], "lr": 0.02}])
    loss = lambda: 2 * model["a"].square().sum() + model["b"].pow(2).sum()  # noqa: E731  H = 4 and 2
    for _ in range(3):
        before = [p.detach().clone() for p in (model["b"], model["a"])]
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    row = Probes(model, optimizer, window=10).step(loss, before)
    D = [p.detach() - x for p, x in zip((model["b"], model["a"]), before, strict=True)]
    scales = step_scale(optimizer).scales
    above = sum(float(h * d @ d) for h, d in zip((2, 4), D, strict=True))
    below = sum(float((d * d / s).sum()) for d, s in zip(D, scales, strict=True))
    assert row["step_ratio"] == pytest.approx(above / below, rel=1e-9) and above > 0
    assert "threshold" not in row  # two learning rates have no one number

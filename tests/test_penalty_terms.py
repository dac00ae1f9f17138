"""An L1 penalty is found in every usual spelling, with its λ; what only looks like one is not."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy, huber_loss, l1_loss, smooth_l1_loss

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal, weights
from nonsmooth.torch.audit import Audit
from nonsmooth.torch.penalty_terms import penalty_terms as found_by
from nonsmooth.torch.penalty_terms import proximal_terms
from zoo import over

rejected = pytest.raises(AssertionError)
LAM = 0.125


def network() -> nn.Sequential:
    """Its first bias is 0 throughout, as many are when training begins."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    nn.init.zeros_(model[0].bias)
    return model


X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), torch.arange(12) % 3

Penalty = Callable[[nn.Sequential], torch.Tensor]
Lams = Callable[[str, torch.Tensor], float]


def uniform(name: str, p: torch.Tensor) -> float:
    return LAM


def in_all(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


SPELLINGS: dict[str, tuple[Penalty, Lams]] = {
    "abs": (lambda m: LAM * sum(p.abs().sum() for p in m.parameters()), uniform),
    "builtin abs": (lambda m: LAM * sum(abs(p).sum() for p in m.parameters()), uniform),
    "torch.abs": (lambda m: sum(torch.sum(LAM * torch.abs(p)) for p in m.parameters()), uniform),
    "norm(p, 1)": (lambda m: LAM * sum(torch.norm(p, 1) for p in m.parameters()), uniform),
    "norm(p=1)": (lambda m: LAM * sum(p.norm(p=1) for p in m.parameters()), uniform),
    "norm by rows": (lambda m: LAM * sum(torch.norm(p, 1, dim=-1).sum() for p in m.parameters()), uniform),
    "vector_norm": (lambda m: LAM * sum(torch.linalg.vector_norm(p, ord=1) for p in m.parameters()), uniform),
    "linalg.norm": (lambda m: LAM * sum(torch.linalg.norm(p.flatten(), 1) for p in m.parameters()), uniform),
    "mean": (lambda m: LAM * sum(p.abs().mean() for p in m.parameters()), lambda name, p: LAM / p.numel()),
    "cat": (lambda m: LAM * torch.cat([p.view(-1) for p in m.parameters()]).abs().sum(), uniform),
    "mean of cat": (
        lambda m: LAM * torch.cat([p.flatten() for p in m.parameters()]).abs().mean(),
        lambda name, p: LAM / in_all(network()),
    ),
    "l1_loss, sum": (
        lambda m: LAM * sum(l1_loss(p, torch.zeros_like(p), reduction="sum") for p in m.parameters()),
        uniform,
    ),
    "l1_loss, mean": (
        lambda m: LAM * sum(l1_loss(p, torch.zeros_like(p)) for p in m.parameters()),
        lambda name, p: LAM / p.numel(),
    ),
    "l1_loss, zeros first": (
        lambda m: LAM * sum(l1_loss(torch.zeros_like(p), p, reduction="sum") for p in m.parameters()),
        uniform,
    ),
    "L1Loss": (
        lambda m: LAM * sum(nn.L1Loss(reduction="sum")(p, p.new_zeros(p.shape)) for p in m.parameters()),
        uniform,
    ),
    "a multiple": (
        lambda m: sum((LAM * p).abs().sum() for p in weights(m)),
        lambda name, p: LAM if p.ndim > 1 else 0.0,
    ),
    "by layer": (
        lambda m: 0.5 * m[0].weight.abs().sum() + 0.25 * m[2].weight.abs().sum() + m[2].bias.abs().sum(),
        lambda name, p: {"0.weight": 0.5, "2.weight": 0.25, "2.bias": 1.0}.get(name, 0.0),
    ),
    "by layer, in one": (
        lambda m: torch.cat([0.5 * m[0].weight.view(-1), 0.25 * m[2].weight.view(-1)]).abs().sum(),
        lambda name, p: {"0.weight": 0.5, "2.weight": 0.25}.get(name, 0.0),
    ),
    "the larger of two losses": (
        lambda m: torch.maximum(LAM * sum(p.abs().sum() for p in m.parameters()), torch.zeros(()).double()),
        uniform,
    ),
    "beside the largest": (lambda m: sum(LAM * p.abs().sum() + p.square().max() for p in m.parameters()), uniform),
    "half of the weights": (
        lambda m: 0.5 * m[0].weight[:3].abs().sum(),
        lambda name, p: 0.25 if name == "0.weight" else 0.0,
    ),
}


def lams_law(found: Any, model: nn.Module, lams: Lams) -> None:
    """Each parameter has one term, of the λ that is wanted, and those without a penalty have none."""
    wanted = {name: lam for name, p in model.named_parameters() if (lam := lams(name, p))}
    assert [term.name for term in found] == list(wanted)
    assert {term.name: term.lam for term in found} == pytest.approx(wanted, rel=1e-12)
    assert all(term.through == "autograd" and term.place.startswith("tests/test_penalty_terms.py:") for term in found)


@pytest.mark.parametrize(("penalty", "lams"), list(SPELLINGS.values()), ids=list(SPELLINGS))
@pytest.mark.parametrize("scale", [1.0, 0.25], ids=["", "accumulated"])
def test_lam_is_exact_in_every_spelling(penalty, lams, scale):
    model = network()
    found = found_by(lambda: scale * (cross_entropy(model(X), Y) + penalty(model)), dict(model.named_parameters()))
    lams_law(found, model, lambda name, p: scale * lams(name, p))


def test_the_law_rejects_a_lam_that_forgets_the_mean_or_the_layer(monkeypatch):
    model = network()
    monkeypatch.setattr(
        importlib.import_module(found_by.__module__), "_lam", lambda p, sign, slope, reduction: float(slope.mean())
    )
    for name in ("l1_loss, mean", "by layer, in one", "half of the weights", "a multiple"):
        penalty, lams = SPELLINGS[name]
        with rejected:
            lams_law(found_by(lambda penalty=penalty: penalty(model), dict(model.named_parameters())), model, lams)


class Penalised(nn.Module):
    """A model that adds the penalty itself."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.net(x), Y) + LAM * sum(p.abs().sum() for p in self.net.parameters())


def test_it_is_found_inside_of_the_model():
    model = Penalised()
    lams_law(found_by(lambda: model(X), dict(model.named_parameters())), model, uniform)


def test_it_is_found_under_autocast():
    model = network().float()

    def closure() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return cross_entropy(model(X.float()), Y) + LAM * sum(p.abs().sum() for p in model.parameters())

    lams_law(found_by(closure, dict(model.named_parameters())), model, uniform)


LOOKALIKES: dict[str, Penalty] = {
    "no penalty": lambda m: torch.zeros(()),
    "absolute activations": lambda m: m[0](X).abs().sum(),
    "L2 norm": lambda m: sum(p.norm() for p in m.parameters()),
    "L2 vector_norm": lambda m: sum(torch.linalg.vector_norm(p) for p in m.parameters()),
    "matrix norm of order 1": lambda m: torch.linalg.norm(m[0].weight, 1),
    "weight decay": lambda m: sum(p.square().sum() for p in m.parameters()),
    "|w| squared": lambda m: sum(p.abs().square().sum() for p in m.parameters()),
    "root of |w|": lambda m: sum((p.abs() + 1).sqrt().sum() for p in m.parameters()),
    "largest |w|": lambda m: sum(p.abs().max() for p in m.parameters()),
    "largest |w| of each row": lambda m: m[0].weight.abs().max(1).values.sum(),
    "largest row": lambda m: LAM * m[0].weight.abs().sum(1).max(),
    "largest row, scaled": lambda m: (LAM * m[0].weight.abs()).sum(1).amax(),
    "largest row by norms": lambda m: torch.norm(m[0].weight, 1, dim=1).topk(2).values.sum(),
    "largest layer": lambda m: torch.stack([p.abs().sum() for p in weights(m)]).max(),
    "median row": lambda m: m[0].weight.abs().mean(1).median(),
    "at least a bound": lambda m: torch.maximum(torch.full((6,), 0.9).double(), m[0].weight.abs().sum(1)).sum(),
    "Huber": lambda m: sum(huber_loss(p, torch.zeros_like(p)) for p in m.parameters()),
    "smooth L1": lambda m: sum(smooth_l1_loss(p, torch.zeros_like(p)) for p in m.parameters()),
    "towards a start": lambda m: sum(l1_loss(p, torch.ones_like(p)) for p in m.parameters()),
    "product of two": lambda m: (m[0].weight * m[0].weight).abs().sum(),
    "layer with weights |w|": lambda m: nn.functional.linear(X, m[0].weight.abs()).square().sum(),
    "no gradient": lambda m: sum(p.detach().abs().sum() for p in m.parameters()),
    "negative": lambda m: -sum(p.abs().sum() for p in m.parameters()),
}


@pytest.mark.parametrize("penalty", over(LOOKALIKES))
def test_what_looks_like_one_is_none(penalty):
    model = network()
    assert found_by(lambda: cross_entropy(model(X), Y) + penalty(model), dict(model.named_parameters())) == ()


def test_looking_leaves_no_trace():
    model = network().train()
    model(X).sum().backward()
    grads = [p.grad for p in model.parameters()]
    stream = torch.get_rng_state()
    found_by(
        lambda: nn.functional.dropout(model(X)).sum() + model[0].weight.abs().sum(), dict(model.named_parameters())
    )
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), stream)


def no_grad(model: nn.Module) -> Any:
    with torch.no_grad():
        return LAM * sum(p.abs().sum() for p in model.parameters())


DETACHED: dict[str, Callable[[nn.Module], Any]] = {
    "data": lambda m: LAM * sum(p.data.abs().sum() for p in m.parameters()),
    "detach": lambda m: LAM * sum(p.detach().abs().sum() for p in m.parameters()),
    "detach, norm": lambda m: LAM * sum(torch.norm(p.detach(), 1) for p in m.parameters()),
    "detach, late": lambda m: LAM * sum(p.abs().sum() for p in m.parameters()).detach(),
    "no_grad": no_grad,
    "item": lambda m: LAM * sum(p.abs().sum() for p in m.parameters()).item(),
    "float": lambda m: LAM * float(sum(p.abs().sum() for p in m.parameters())),
}


def audited(penalty: Callable[[nn.Module], Any], then: Callable[[nn.Module], None] = lambda m: None) -> tuple[Any, Any]:
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=1e-4)
    with Audit(budget=1.0, trials=0) as audit:
        for _ in range(4):
            optimizer.zero_grad()
            loss = cross_entropy(model(X), Y) + penalty(model)
            loss.backward()
            then(model)
            optimizer.step()
    assert not audit.missing
    return audit, audit._terms.of(dict(audit.monitor.probes.params()))


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True")  # the script's own float(…)
@pytest.mark.parametrize(("how", "penalty"), DETACHED.items(), ids=list(DETACHED))
def test_a_penalty_without_a_gradient_is_named(how, penalty):
    audit, terms = audited(penalty)
    assert sorted(term.name for term in terms) == sorted(name for name, _ in network().named_parameters())
    assert all(term.through == "detached" and not term.acts for term in terms)
    assert [term.lam for term in terms] == pytest.approx([LAM] * 4, rel=1e-3)
    assert audit.monitor.penalty == "in the loss, with no gradient"
    assert audit.facts["l1"] is not None


def one_by_one(model: nn.Module) -> torch.Tensor:
    total = torch.zeros(()).double() * model[0].weight.sum()
    for p in weights(model):
        total = total + LAM * p.abs().sum().item()
    return total


def line_by_line(model: nn.Module) -> float:
    first, second = weights(model)
    penalty = LAM * first.abs().sum().item()
    penalty += LAM * second.abs().sum().item()
    return penalty


def test_numbers_that_are_read_have_a_lam_where_it_can_be_told():
    one_place = audited(lambda m: LAM * sum(p.abs().sum().item() for p in weights(m)))[1]
    whole = audited(lambda m: LAM * sum(p.abs().sum() for p in weights(m)).item())[1]
    for terms in (one_place, whole, audited(one_by_one)[1], audited(line_by_line)[1]):
        assert [(term.name, term.through) for term in terms] == [("0.weight", "detached"), ("2.weight", "detached")]
        assert [term.lam for term in terms] == pytest.approx([LAM] * 2, rel=1e-3)


INNOCENT: dict[str, Callable[[nn.Module], Any]] = {
    "a number": lambda m: 0.5,
    "an L2 norm without a gradient": lambda m: LAM * m[0].weight.detach().norm(),
    "a penalty that is read, and acts": lambda m: [(pen := LAM * m[0].weight.abs().sum()), pen.item()][0],
}


def test_numbers_and_other_norms_are_no_detached_penalty():
    for penalty in INNOCENT.values():
        assert not [term for term in audited(penalty)[1] if term.through == "detached"]


@pytest.mark.parametrize(
    "spelling",
    [
        lambda p: p.grad.add_(p.sign(), alpha=LAM),
        lambda p: p.grad.data.add_(LAM * torch.sign(p.data)),
        lambda p: setattr(p, "grad", p.grad + LAM * p.detach().sign()),
    ],
    ids=["add_", "data", "set"],
)
def test_a_sign_that_is_added_to_grad_is_found(spelling):
    _, terms = audited(lambda m: 0.0, lambda m: [spelling(p) for p in m.parameters()])
    assert {term.name for term in terms} >= {"0.weight", "2.weight", "2.bias"}
    assert {term.through for term in terms} == {"grad"}
    assert [term.lam for term in terms] == pytest.approx([LAM] * len(terms), rel=1e-6)


def test_a_proximal_is_found_and_stands_alone():
    model = network()
    optimizer = Proximal(optim.SGD(model.parameters(), lr=0.1), L1(LAM), params=weights(model))
    named = dict(model.named_parameters())
    found = proximal_terms(optimizer, named)
    assert [(term.name, term.lam, term.through) for term in found] == [
        ("0.weight", LAM, "proximal"),
        ("2.weight", LAM, "proximal"),
    ]
    assert proximal_terms(optim.SGD(model.parameters(), lr=0.1), named) == ()

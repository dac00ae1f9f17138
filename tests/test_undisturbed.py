"""Looking does not disturb: streams, buffers, modes and gradients are, bit by bit, what they were."""

from __future__ import annotations

import random
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.nn import BatchNorm1d, Dropout, Linear, ReLU, Sequential

from nonsmooth.torch.undisturbed import streams, undisturbed

X = torch.linspace(-2, 3, 24).reshape(8, 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Sequential(Linear(3, 4), BatchNorm1d(4), ReLU(), Dropout(0.5), Linear(4, 1))
    made(X).square().mean().backward()
    return made


def snapshot(model):
    """All that a probe must leave alone, by value, and the identity of the tensors that hold it."""
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    values = [t.detach().clone() for t in tensors]
    flags = [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()]
    numpy = np.random.get_state()
    rng = (random.getstate(), numpy[1].tobytes(), numpy[2:], torch.get_rng_state().numpy().tobytes())
    return [id(t) for t in tensors], [t._version for t in tensors], values, flags, rng


def same(before, after):
    assert before[:2] == after[:2] and before[3:] == after[3:]
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))


def probe(model):
    """What a probe might do, and some things it should not."""
    model.train()
    loss = model(X).square().mean() + random.random() + np.random.rand() + torch.rand(())
    loss.backward()
    return loss.item()


def test_nothing_is_left_of_a_probe(model):
    before = snapshot(model)
    with undisturbed(model):
        probe(model)
    same(before, snapshot(model))


@pytest.mark.parametrize("forgets", ["streams", "buffers", "grad", "mode"])
def test_the_snapshot_sees_each_thing_that_could_be_forgotten(model, forgets):
    before = snapshot(model)
    with undisturbed(model):
        probe(model)
    if forgets == "streams":
        torch.rand(1)
    if forgets == "buffers":
        model[1].running_mean.add_(0)  # the value is the same, and yet a graph that holds it would be lost
    if forgets == "grad":
        model[0].weight.grad = model[0].weight.grad.clone()
    if forgets == "mode":
        model.eval()
    with pytest.raises(AssertionError):
        same(before, snapshot(model))


def test_modules_that_are_called_need_not_be_named(model):
    before = snapshot(model)
    with undisturbed():
        probe(model)
    same(before, snapshot(model))


class Own(Linear):
    """A layer that keeps what it likes in plain attributes."""

    def __init__(self):
        super().__init__(3, 3)
        self.calls, self.last, self.listed = 0, None, [0]
        self.streams = ()
        self.python, self.old = random.Random(0), np.random.RandomState(0)
        self.numpy, self.torch = np.random.default_rng(0), torch.Generator()

    def forward(self, x):
        self.calls += 1
        self.last = x = super().forward(x) + self.python.random() + self.numpy.random() + self.old.rand()
        self.unheard_of = self.listed = [self.calls]
        return x + torch.rand((), generator=self.torch)


@pytest.mark.parametrize("forgets", [None, "attributes", "own_streams"])
def test_what_a_module_keeps_of_its_own_is_put_back(forgets, monkeypatch):
    layer = Own()
    kept = dict(vars(layer))
    with undisturbed():
        first = layer(X)
    if forgets is not None:
        monkeypatch.setattr(sys.modules[undisturbed.__module__], forgets, lambda held: {})
    with undisturbed():
        assert torch.equal(layer(X), first)
    if forgets == "attributes":
        assert vars(layer) != kept
    elif forgets is None:
        assert vars(layer).items() == kept.items() and layer.calls == 0 and layer.last is None
    else:
        with undisturbed():
            assert not torch.equal(layer(X), first)


def test_casts_of_other_values_are_neither_taken_nor_left():
    """Autocast keeps its casts while it is on: after a step they are of the weights before it."""
    layer = Linear(3, 3, bias=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = layer(X)
        with torch.no_grad():
            layer.weight.mul_(2)
        with undisturbed():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(layer(X), 2 * before)
            assert torch.equal(layer(X), 2 * before)
        assert torch.equal(layer(X), before) and torch.is_autocast_cache_enabled()


def test_it_is_put_back_after_an_error(model):
    before = snapshot(model)

    def failing():
        with undisturbed(model):
            model.eval()
            model[0].weight.requires_grad_(False)
            probe(model)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    same(before, snapshot(model))


def test_a_graph_from_before_stays_good(model):
    loss = model(X).square().mean()
    twin = torch.autograd.grad(loss, model[0].weight, retain_graph=True)[0]
    with undisturbed(model):
        probe(model)
    assert torch.equal(torch.autograd.grad(loss, model[0].weight)[0], twin)


def test_shared_buffers_stay_shared():
    shared = torch.zeros(1)
    one, two = Linear(1, 1), Linear(1, 1)
    for module in (one, two):
        module.register_buffer("shared", shared)
    with undisturbed(one, two):
        one.shared.add_(1)
        assert two.shared.item() == 1
    assert one.shared is two.shared is shared and shared.item() == 0


def test_scripted_modules_get_their_values_back():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(BatchNorm1d(3))
    with undisturbed(scripted):
        scripted(X)
        assert scripted.running_mean.abs().sum() > 0
    assert scripted.running_mean.abs().sum() == 0


def test_generators_of_one_s_own_are_put_back():
    generator = torch.Generator().manual_seed(1)
    with streams(generator):
        first = torch.rand(2, generator=generator)
    with undisturbed([generator]):
        second = torch.rand(2, generator=generator)
    assert torch.equal(first, second) and torch.equal(first, torch.rand(2, generator=generator))


def test_what_it_cannot_look_after_is_refused():
    with pytest.raises(TypeError, match="give modules, parameters, generators or lists of them, not str"):
        undisturbed("model").__enter__()

"""What backward was called on against what was in `.grad`: which of the calls make it up, and in how much room."""

from __future__ import annotations

import pytest
import torch

from alive import long_storages
from nonsmooth.torch import batches
from nonsmooth.torch.batches import agreement

DIM = 50_000
NOISE = torch.randn(24, DIM, generator=torch.Generator().manual_seed(0))


class Called:
    """A backward call on ½ wᵀw · scale + ⟨noise, w⟩, as it was at w = 1."""

    def __init__(self, w, i, held=None):
        self.w, self.i, self.held = w, i, held
        self.value = float(self.loss(torch.ones(DIM)))

    def loss(self, w):
        return w.square().sum() / 2 + NOISE[self.i] @ w

    def __call__(self):
        if self.held is not None:
            self.held.append(sum(long_storages(DIM).values()))
        return self.loss(self.w)


def calls(count, held=None):
    w = torch.nn.Parameter(torch.zeros(DIM))
    return w, [Called(w, i, held) for i in range(count)]


@pytest.mark.parametrize("made_of", [1, 2, 5, 8])
@pytest.mark.parametrize("clip", [1.0, 0.25])
def test_the_last_calls_that_make_it_up(made_of, clip):
    w, programs = calls(8)
    seen = clip * (made_of * torch.ones(DIM) + NOISE[8 - made_of : 8].sum(0))
    met = agreement(programs, {"w": w}, [torch.ones(DIM)], [seen])
    assert met.count == made_of and met.gap < 1e-6 and met.clip == pytest.approx(clip, rel=1e-5)
    assert met.clipped is (clip != 1) and torch.equal(w.detach(), torch.zeros(DIM))


def test_a_sign_in_it_is_found():
    w, programs = calls(3)
    at = torch.randn(DIM, generator=torch.Generator().manual_seed(1)).sign() * torch.linspace(0.1, 2, DIM)
    for program in programs:
        program.value = float(program.loss(at))
    met = agreement(programs, {"w": w}, [at], [3 * at + NOISE[:3].sum(0) + 0.5 * at.sign()])
    assert met.count == 3 and [term.lam for term in met.terms] == [pytest.approx(0.5, rel=1e-3)]


def test_a_gradient_that_is_not_finite_is_not_called_clipped():
    w, programs = calls(2)
    seen = torch.ones(DIM) + NOISE[1]
    seen[0] = torch.nan
    assert agreement(programs, {"w": w}, [torch.ones(DIM)], [seen]).clip == 1


def test_another_loss_is_refused():
    w, programs = calls(2)
    programs[0].value += 1e4
    with pytest.raises(ValueError, match="computed again, it was"):
        agreement(programs, {"w": w}, [torch.ones(DIM)], [torch.ones(DIM)])


@pytest.mark.parametrize("mutant", [False, True])
def test_many_calls_take_no_more_room_than_few(monkeypatch, mutant):
    """The parameters before and after, `.grad` and the sum; a mutant that keeps each call's gradient is seen."""
    kept = []
    if mutant:
        add = batches._add_gradient

        def keeps(program, params, total):
            kept.append(NOISE[0].clone())
            return add(program, params, total)

        monkeypatch.setattr(batches, "_add_gradient", keeps)
    rooms = []
    for count in (3, 24):
        held, before = list[int](), sum(long_storages(DIM).values())
        w, programs = calls(count, held)
        seen = [count * torch.ones(DIM) + NOISE[:count].sum(0)]
        assert agreement(programs, {"w": w}, [torch.ones(DIM)], seen).count == count
        rooms.append(max(held) - before)
        kept.clear()
    assert (rooms[1] <= rooms[0] <= 7 * 4 * DIM) is not mutant

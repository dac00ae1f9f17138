"""The trials at a run's end: which window of signs is believed, which changes are tried, what is accepted."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim
from typer.testing import CliRunner

from nonsmooth.cli import app
from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal
from nonsmooth.torch.batches import Batch
from nonsmooth.torch.l1_audit import Chatter, PenaltyTerm
from nonsmooth.torch.program import Program
from nonsmooth.torch.trials import Trials


class Loss(Batch):
    """A batch with a closure in place of a recorded program."""

    def __init__(self, closure):
        super().__init__([Program((), torch.zeros(()))], 7)
        self.closure = closure

    def __call__(self):
        return self.closure()


@pytest.fixture
def bouncing():
    """|w| under gradient descent at lr 0.1, bouncing between ±0.05, and a window of 16 of its steps."""
    w = nn.Parameter(torch.tensor([0.05, -0.05], dtype=torch.float64))
    optimizer = optim.SGD([w], lr=0.1)
    chatter = Chatter([w])
    for _ in range(16):
        with torch.no_grad():
            w -= 0.1 * w.sign()
        chatter.update()

    def make(optimizer=optimizer, loss=lambda: w.abs().sum(), **options):
        options = {"chatter": chatter} | options
        return Trials(optimizer, {"w": w}, [Loss(loss)], 20, 1e-5, 1.0, **options)

    return w, make


TERM = PenaltyTerm("w", 1.0, "autograd")


@pytest.mark.parametrize(
    ("done", "end", "watched"),
    [(1000, 1000, "run"), (1000, 900, "run"), (1000, 899, "continuation"), (1000, 18, "continuation"),
     (18, 18, "run"), (0, 0, "continuation")],
)  # fmt: skip
def test_only_a_window_of_the_last_tenth_is_the_run_s_own(bouncing, done, end, watched):
    _, make = bouncing
    trials = make(steps_done=done, chatter_end=end)
    found = trials.penalty([TERM])
    assert found["watched"] == watched and not trials.lacking
    assert found["window"] == (16 if watched == "run" else 10) and found["chattering"] == 2


def test_without_a_window_a_continuation_is_watched(bouncing):
    _, make = bouncing
    assert make(chatter=None, steps_done=9, chatter_end=9).penalty([TERM])["watched"] == "continuation"


def names(trials, *terms):
    rows = [row["name"] for row in trials.changes(terms)]
    assert not trials.lacking
    return rows


def test_proximal_is_tried_for_a_penalty_by_its_gradient(bouncing):
    _, make = bouncing
    assert names(make(), TERM)[-1] == "proximal"
    assert "proximal" not in names(make())


class Wrapped(optim.Optimizer):
    def __init__(self, inner):
        self.optimizer, self.param_groups, self.state = inner, inner.param_groups, inner.state


@pytest.mark.parametrize("wrap", [lambda inner: inner, Wrapped])
def test_proximal_is_neither_tried_nor_missed_under_a_proximal(bouncing, wrap):
    w, make = bouncing
    proximal = wrap(Proximal(optim.SGD([w], lr=0.1), L1(0.1)))
    assert "proximal" not in names(make(proximal), TERM, PenaltyTerm("w", 0.1, "proximal"))
    assert "proximal" not in names(make(proximal), TERM)  # the optimiser alone says so


def test_proximal_is_not_tried_beside_terms_through_proximal(bouncing):
    _, make = bouncing
    assert "proximal" not in names(make(), TERM, PenaltyTerm("w", 0.1, "proximal"))


def test_fewer_than_sixteen_steps_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "train.py").write_text("raise AssertionError")
    done = CliRunner().invoke(app, ["audit", "--trials", "5", "--out", str(tmp_path / "o"), str(tmp_path / "train.py")])
    words = " ".join(done.output.split())
    assert done.exit_code == 2 and "16 or more, or 0, not 5." in words and "Traceback" not in words
    told = CliRunner().invoke(app, ["audit", "--help"], env={"COLUMNS": "200"}).output
    assert "16 or more, or 0 for none" in " ".join(told.split())

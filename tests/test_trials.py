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
from nonsmooth.torch.findings import Record, findings
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
        batches = options.pop("batches", [Loss(loss)])
        return Trials(optimizer, {"w": w}, batches, 20, 1e-5, 1.0, **options)

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
    assert names(make())[-1] == "smooth" and names(make(kinks=False)) == ["as-it-is", "half-lr", "largest-stable-lr"]


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


def two_rates(after, largest=None, note=""):
    """Findings of groups at lr 0.001 and 3, of a trial of half of these, and of the largest stable ones."""
    sgd = {"name": "SGD", "groups": [{"lr": 0.001}, {"lr": 3.0}]}
    row = {"steps": 50, "loss_before": 0.5}
    rows = [row | {"name": "as-it-is", "lr": 0.001, "loss_after": 0.4, "diverged": largest is not None}]
    rows += [row | {"name": "half-lr", "lr": 0.0005, "loss_after": after}]
    rows += [row | {"name": "largest-stable-lr", "lr": largest, "loss_after": 0.4, "note": note}] * (
        largest is not None
    )
    return {found.id: found for found in findings({"optimizer": sgd, "what_if": rows}, [])}


def test_groups_with_rates_of_their_own_are_scaled_and_not_set():
    half = two_rates(0.3)["half-lr"]
    assert half.lines == "for group in optimizer.param_groups:\n    group['lr'] *= 0.5"
    record = Record({"optimizer": {"groups": [{"lr": 0.001}, {"lr": 3.0}]}}, [])
    assert (
        record.rate()[1] == half.lines
        and "= 0.0005" in Record({"optimizer": {"groups": [{"lr": 0.001}]}}, []).rate()[1]
    )


@pytest.mark.parametrize(
    ("largest", "note", "title", "last"),
    [
        (0.00025, "", "The largest learning rate that stayed stable, 0.25 times the present, is below", "*= 0.25"),
        (0.00025, "no stable lr found", "No learning rate from 0.25 times the present to the present ones was", ""),
        (0.00125, "", "The present learning rates are near the largest that stayed stable, 1.25 times the pres", ""),
        (0.004, "", "The learning rates stayed stable up to 4 times the present ones.", ""),
    ],
)
def test_their_largest_stable_rates_are_told_by_their_ratio(largest, note, title, last):
    found = two_rates(0.6, largest, note)["learning-rate"]
    assert found.title.startswith(title) and found.lines.endswith(last) and bool(found.lines) is bool(last)


def test_a_search_that_found_no_limit_is_not_told(bouncing):
    w, make = bouncing
    rows = make(loss=lambda: 0 * w.sum()).changes([])
    assert any(row["note"].startswith("no limit found up to 4096 times") for row in rows)
    assert not any(found.id == "learning-rate" for found in findings({"what_if": rows}, []))


def test_a_penalty_that_cannot_be_audited_is_still_found(bouncing):
    """Its batches are gone, or the audit fails: the terms and the mending lines stay, and the bounce is explained."""
    w, make = bouncing
    rows = [{"kind": "chatter", "step": 9, "chattering": 2, "weights": 2, "window": 8, "amplitude": 0.05}]
    for options in ({"loss": lambda: w}, {"batches": []}):
        trials = make(**options)
        l1 = trials.penalty([TERM])
        assert l1["terms"][0]["lam"] == 1.0 and "Proximal(optimizer, L1(1)" in l1["lines"] and l1["audited"] is False
        assert [lacks["what"] for lacks in trials.lacking] == ["the audit of the L1 penalty"] * ("loss" in options)
        (found,) = [f for f in findings({"l1": l1}, rows) if f.id.startswith("l1-")]
        assert found.title == "2 of 2 weights bounce about 0; an L1 penalty was found, and could not be audited."
        assert found.lines == l1["lines"] and "λ = 1 (w)" in found.evidence


@pytest.mark.parametrize(("step", "said"), [(18, False), (190, True)])
def test_the_norm_of_windows_is_told_where_they_are_of_the_end(step, said):
    l1 = {"terms": [vars(TERM)], "weights": 9, "norm": 6.0, "floor_measured": 6.0}
    rows = [{"kind": "chatter", "step": step, "norm": 295.0}]
    (floor,) = [found for found in findings({"steps": 200, "l1": l1}, rows) if found.id == "l1-floor"]
    assert ("‖w‖₁ in 1 window of signs, step 190: 295, one value." in floor.evidence) is said
    assert said or "295" not in floor.evidence

"""Findings: each on hand-made rows at both sides of its threshold; nothing that a run stores makes them raise."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nonsmooth.torch.findings import Finding, findings, summary, text
from nonsmooth.torch.findings.kinks import OUTSIDE
from nonsmooth.torch.findings.numbers import spread
from nonsmooth.torch.findings.record import Record, Trial

SGD = {"optimizer": {"name": "SGD", "groups": [{"lr": 0.5, "momentum": 0.0}], "wrapped": None}}
RELU = {
    "name": "relu",
    "smoothness": "C⁰",
    "module": "1",
    "place": "net.py:3",
    "numbers": 800,
    "exact": 0,
    "returned": [["0", [0.0]]],
    "differentiated": True,
}
GELU = {"name": "gelu", "smoothness": "C^∞", "numbers": 800, "exact": None, "differentiated": True}


def steps(n, **fields):
    """n step rows; a list gives one value a row."""
    return [
        {"kind": "step", "step": t + 1, "data": "the closure's"}
        | {k: v[t] if isinstance(v, list) and k != "unseen" and k != "undefined" else v for k, v in fields.items()}
        for t in range(n)
    ]


def sharp(*ratios, threshold=4.0, **fields):
    return [
        {"kind": "stability", "step": t + 1, "data": "the closure's", "converged": True, "threshold": threshold}
        | {"ratio": ratio, "sharpness": ratio * threshold}
        | fields
        for t, ratio in enumerate(ratios)
    ]


def trial(name, after, before=0.5, **fields):
    return {"name": name, "change": name, "steps": 50, "loss_before": before, "loss_after": after} | fields


def of(found, name):
    """The finding of that id, or None; never two."""
    mine = [finding for finding in found if finding.id == name]
    assert len(mine) <= 1
    readable(mine)
    return mine[0] if mine else None


def readable(found):
    """Titles of at most two lines, and reasons that a terminal has room for."""
    for finding in found:
        assert len(str(Finding("x", finding.level, finding.title, "")).splitlines()) <= 2, finding.title
        assert "[...]" not in str(replace(finding, evidence="", do="", lines="")), f"{finding.id}: its why is too long"


def words(finding):
    return " ".join((finding.title, finding.evidence, finding.why, finding.do))


# --- one finding, and all of them -------------------------------------------------------------------------------------


def test_a_finding_as_text_and_as_json():
    finding = Finding("x", "problem", "Title. " * 30, "e " * 900, "w " * 900, "d " * 900, "a = 1\nb = 2", math.nan, "u")
    lines = str(finding).splitlines()
    assert lines[0].startswith("PROBLEM") and lines[-2].strip() == "a = 1" and lines[-1].strip() == "b = 2"
    assert max(map(len, lines)) <= 100 and len(lines) == 3 + 4 + 2 + 3 + 2
    assert json.loads(json.dumps(finding.to_dict(), allow_nan=False))["number"] is None
    with pytest.raises(ValueError, match="level must be one of problem, note, fine"):
        Finding("x", "bad", "t", "e")


def test_text_and_summary():
    found = (
        Finding("a", "problem", "One.", "e"),
        Finding("b", "problem", "Two.", "e"),
        Finding("c", "fine", "3.", "e"),
    )
    assert summary(found) == "findings: 2 problems, 1 fine. First: One."
    assert text(found).split("\n\n")[0] == summary(found) and text(found).count("Evidence: e") == 3
    assert "nothing was measured" in summary(())


def test_order_problems_first_and_the_most_important_first():
    rows = steps(30, loss=1.0, loss_after=2.0, kink_share=0.9, kink=1.0, smooth=0.1) + sharp(*[1.5] * 9)
    facts = SGD | {"crashed": "ValueError: no", "missing": [{"what": "the loss", "why": "unseen", "line": "x"}]}
    found = findings(facts, rows)
    levels = [("problem", "note", "fine").index(finding.level) for finding in found]
    assert levels == sorted(levels)
    ids = [finding.id for finding in found]
    assert ids[:3] == ["crashed", "loss-raising", "edge-of-stability"]
    assert ids.index("kink-share") < ids.index("not-found")


def test_nothing_at_all():
    assert [finding.id for finding in findings({}, [])] == []
    assert of(findings({"steps": 0}, []), "nothing-measured").title == "The optimiser took no step."


# --- spread -----------------------------------------------------------------------------------------------------------


def test_spread_is_the_interval_by_batch_means():
    values = [float(i % 7) + i / 10 for i in range(40)]
    means = [sum(values[4 * b : 4 * b + 4]) / 4 for b in range(10)]
    mean = sum(means) / 10
    sd = math.sqrt(sum((m - mean) ** 2 for m in means) / 9)
    found = spread(values)
    assert found.mean == pytest.approx(mean) and found.half == pytest.approx(2.262 * sd / math.sqrt(10))
    assert "95 % by batch means" in str(found)
    assert spread(values[:19]).half is None and "range" in str(spread(values[:19]))


def test_spread_is_wider_for_what_is_correlated():
    drifting = [float(i // 50) for i in range(400)]
    mixed = [drifting[(i * 149) % 400] for i in range(400)]
    assert spread(drifting).half > 4 * spread(mixed).half


# --- the edge ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "level", "said"),
    [
        (0.49, "fine", "calm"),
        (0.51, "fine", "below it"),
        (0.79, "fine", "below it"),
        (0.81, "note", "at the edge"),
        (1.19, "note", "at the edge"),
        (1.21, "problem", "beyond"),
    ],
)
def test_edge_of_stability(ratio, level, said):
    found = of(findings(SGD, sharp(*[3.0] * 6, *[ratio] * 3)), "edge-of-stability")
    assert found.level == level and said in found.title and f"{ratio}" in found.title
    assert found.number == pytest.approx(ratio) and "3 converged estimates, steps 7 to 9" in found.evidence
    assert "SGD" in found.title and (level != "problem" or "oscillation" in found.why)


def test_edge_only_by_converged_estimates_and_never_a_problem_by_few():
    rows = sharp(*[0.2] * 9) + sharp(*[5.0] * 9, converged=False)
    assert of(findings(SGD, rows), "edge-of-stability").level == "fine"
    assert "9 of 18" in of(findings(SGD, rows), "sharpness-unsure").title
    few = of(findings(SGD, sharp(2.0, 2.0)), "edge-of-stability")
    assert few.level == "note" and "Too few" in few.evidence
    lost = [row | {"ratio": "nan", "sharpness": "inf"} for row in sharp(*[2.0] * 9)]
    assert of(findings(SGD, lost), "edge-of-stability") is None


def test_edge_of_single_batches_is_a_problem_only_where_steps_raise_the_loss():
    rows = sharp(*[1.5] * 9, data="the script's last batch")
    alone = of(findings(SGD, rows), "edge-of-stability")
    assert alone.level == "note" and "single values are noisy" in alone.evidence
    raising = rows + steps(10, loss=1.0, loss_after=1.5)
    assert of(findings(SGD, raising), "edge-of-stability").level == "problem"
    whole = sharp(*[1.5] * 9, data="one full batch")
    assert of(findings(SGD, whole), "edge-of-stability").level == "problem"


def test_sharpness_blind():
    rows = steps(9, curvature=4.0, threshold=4.0, kink=2.4, smooth=1.6, kink_share=0.5)
    blind = of(findings(SGD, rows + sharp(*[0.4] * 9)), "sharpness-blind")
    assert blind.level == "problem" and blind.number == pytest.approx(0.6)
    assert "Steps meet 1 of the threshold where sharpness shows 0.4: kinks carry 0.6" in blind.title
    assert "κ_kink 2.4" in blind.evidence
    assert of(findings(SGD, rows + sharp(*[0.76] * 9)), "sharpness-blind") is None
    assert of(findings(SGD, rows + sharp(*[0.74] * 9)), "sharpness-blind") is not None
    near = of(findings(SGD, rows + sharp(*[0.6] * 9)), "edge-of-stability")
    assert near.title.endswith("threshold: below it, but the steps meet 1 of it.")
    calm = steps(9, curvature=3.1, threshold=4.0, kink=2.0, smooth=1.1)
    assert of(findings(SGD, calm + sharp(*[0.1] * 9)), "sharpness-blind") is None
    for kappa, said in ((2.1, "far below it, but the steps meet 0.525 of it."), (1.9, "calm.")):
        lower = [row | {"curvature": kappa} for row in calm] + sharp(*[0.0] * 9)
        assert of(findings(SGD, lower), "edge-of-stability").title.endswith(f"own threshold: {said}")
    smooth = steps(9, curvature=4.0, threshold=4.0, kink=0.4, smooth=3.6)
    other = of(findings(SGD, smooth + sharp(*[0.4] * 9)), "sharpness-blind")
    assert other.level == "note" and "kinks carry only 0.1" in other.title and "along the step" in other.why


@pytest.mark.parametrize(("largest", "room"), [(0.7, False), (0.8, True)])
def test_kinks_at_the_threshold_are_no_problem_where_a_larger_rate_stayed_stable(largest, room):
    rows = steps(9, curvature=4.0, threshold=4.0, kink=4.0, smooth=0.0) + sharp(*[0.0] * 9)
    tried = [trial("as-it-is", 0.4, lr=0.5), trial("largest-stable-lr", 0.4, lr=largest)]
    blind = of(findings(SGD | {"what_if": tried}, rows), "sharpness-blind")
    assert blind.level == ("note" if room else "problem") and ("1.6 × the rate" in blind.why) is room
    tried[1]["diverged"] = True
    assert of(findings(SGD | {"what_if": tried}, rows), "sharpness-blind").level == "problem"


def test_sharpness_blind_takes_the_optimisers_own_ratio_where_there_is_one():
    rows = steps(9, curvature=100.0, step_ratio=1.0, kink=90.0, smooth=10.0)
    blind = of(findings({"optimizer": {"name": "Adam"}}, rows + sharp(*[0.2] * 9)), "sharpness-blind")
    assert "kinks carry 0.9" in blind.title


@pytest.mark.parametrize(("kink", "carried"), [(1.16, False), (1.24, True)])
def test_kinks_carry_the_difference_from_a_half_of_it_on(kink, carried):
    rows = steps(9, curvature=4.0, threshold=4.0, kink=kink, smooth=4.0 - kink)  # the difference is 0.6 of 4
    blind = of(findings(SGD, rows + sharp(*[0.4] * 9)), "sharpness-blind")
    assert blind.level == ("problem" if carried else "note")


@pytest.mark.parametrize(("estimates", "level"), [(6, "note"), (7, "problem")])
def test_two_estimates_are_few_and_three_are_not(estimates, level):
    assert of(findings(SGD, sharp(*[2.0] * estimates)), "edge-of-stability").level == level
    rows = steps(9, curvature=4.0, threshold=4.0, kink=4.0, smooth=0.0)
    assert of(findings(SGD, rows + sharp(*[0.1] * estimates)), "sharpness-blind").level == level


@pytest.mark.parametrize(("up", "told"), [(9, False), (10, True)])
def test_a_tenth_of_the_steps_raising_the_loss_is_told(up, told):
    rows = steps(100, loss=1.0, loss_after=[1.5] * up + [0.5] * (100 - up))
    assert (of(findings(SGD, rows), "loss-raising") is not None) is told


@pytest.mark.parametrize(("before", "grown"), [(1.9, False), (2.1, True)])
def test_a_loss_that_doubled_was_growing(before, grown):
    rows = [{"kind": "trace", "step": t, "loss": loss} for t, loss in enumerate([1.0, before, "nan"], 1)]
    assert ("grown from 1" in of(findings({}, rows), "loss-not-finite").evidence) is grown


@pytest.mark.parametrize(("first", "steady"), [(0.51, True), (0.49, False)])
def test_a_kink_share_that_moved_by_a_fifth_is_told(first, steady):
    found = of(findings({}, steps(9, kink_share=[first] * 3 + [0.7] * 6)), "kink-share")
    assert ("Much the same" in found.evidence) is steady and ("In the first third 49 %" in found.evidence) is not steady


# --- steps that raise the loss, and the lemma -------------------------------------------------------------------------


@pytest.mark.parametrize(("up", "level"), [(1, None), (2, "note"), (7, "note"), (8, "problem")])
def test_loss_raising(up, level):
    rows = steps(20, loss=1.0, loss_after=[1.5] * up + [0.5] * (20 - up))
    found = of(findings(SGD, rows), "loss-raising")
    if up == 1:
        assert found is None
        return
    assert found.level == level and found.title.startswith(f"{5 * up:.0f} %" if up > 1 else "")
    assert found.number == up / 20 and f"{up} of 20 measured steps" in found.evidence


def test_loss_raising_is_no_rounding_and_no_problem_by_few():
    assert of(findings(SGD, steps(20, loss=1.0, loss_after=1.0 + 9e-7)), "loss-raising") is None
    assert of(findings(SGD, steps(20, loss=1.0, loss_after=1.0 + 1.1e-6)), "loss-raising").level == "problem"
    few = of(findings(SGD, steps(9, loss=1.0, loss_after=2.0, orbit_curvature=4.0, threshold=4.0)), "loss-raising")
    assert few.level == "note" and few.title.startswith("9 of the 9 measured steps raise") and "rbit" not in words(few)
    assert few.evidence.startswith("Too few to be sure.")
    assert of(findings(SGD, steps(10, loss=1.0, loss_after=2.0)), "loss-raising").level == "problem"


def test_loss_raising_tells_the_orbit_for_plain_descent_only():
    rows = steps(20, loss=1.0, loss_after=2.0, orbit_curvature=4.0, threshold=4.0)
    assert (
        "over the threshold: 1, an oscillation that stays bounded" in of(findings(SGD, rows), "loss-raising").evidence
    )
    momentum = {"optimizer": {"name": "SGD", "groups": [{"lr": 0.5, "momentum": 0.9}]}}
    assert "Orbit" not in of(findings(momentum, rows), "loss-raising").evidence
    off = steps(20, loss=1.0, loss_after=2.0, orbit_curvature=2.0, threshold=4.0)
    assert "0.5, not the steady oscillation" in of(findings(SGD, off), "loss-raising").evidence


def test_loss_raising_says_where_the_penalty_is_not_in_the_loss():
    rows = steps(20, loss=1.0, loss_after=2.0, penalty="not in the loss: taken by Proximal")
    assert "penalty is not in that loss" in of(findings(SGD, rows), "loss-raising").evidence


def lemma_rows(after, n=4, lipschitz=2.0, length=1.0):
    """f = 1, ⟨g, D⟩ = −1; with L = 2 the lemma allows f⁺ ≤ 1 − 1 + 1 = 1."""
    return steps(n, loss=1.0, loss_after=after, predicted=-1.0, length=length, lipschitz=lipschitz)


def test_the_descent_lemma_with_the_l_of_earlier_rows():
    slow = {"optimizer": {"name": "SGD", "groups": [{"lr": 0.9}]}}
    held = of(findings(slow, lemma_rows(0.99)), "lsmooth-fails")
    assert held.level == "fine" and "held at all 3 steps" in held.title  # the first has no L before it
    broken = of(findings(slow, lemma_rows(1.01)), "lsmooth-fails")
    assert broken.level == "note" and broken.number == 1.0 and "fails at 3 of 3 steps" in broken.title
    later = of(findings(slow, lemma_rows([1.5, 0.0, 0.0, 1.5], lipschitz=[2.0, 2.0, 50.0, 2.0])), "lsmooth-fails")
    assert "above 2/L = 0.04" in later.title and later.number == 0.0  # 50 allows the last, and not the first
    sharpness = sharp(0.25) + lemma_rows(0.49, lipschitz=0.1)  # L = 1 allows ½
    assert of(findings(slow, sharpness), "lsmooth-fails").level == "fine"
    sharpness = sharp(0.25) + lemma_rows(0.51, lipschitz=0.1)
    assert "4 of 4" in of(findings(slow, sharpness), "lsmooth-fails").title


@pytest.mark.parametrize(("lr", "beyond"), [(0.99, False), (1.01, True)])
def test_two_over_l_against_the_learning_rate(lr, beyond):
    found = of(findings({"optimizer": {"name": "SGD", "groups": [{"lr": lr}]}}, lemma_rows(0.0)), "lsmooth-fails")
    assert found.level == ("note" if beyond else "fine")
    assert ("above 2/L = 1" in found.title) is beyond
    momentum = {"optimizer": {"name": "SGD", "groups": [{"lr": lr, "momentum": 0.9}]}}
    assert of(findings(momentum, lemma_rows(0.0)), "lsmooth-fails").level == "fine"
    assert (
        of(findings({"optimizer": {"name": "Adam", "groups": [{"lr": lr}]}}, lemma_rows(2.0)), "lsmooth-fails") is None
    )


def test_the_largest_rate_of_a_schedule_counts():
    trace = [{"kind": "trace", "step": 1, "loss": 1.0, "lr": [3.0]}]
    found = of(
        findings({"optimizer": {"name": "SGD", "groups": [{"lr": 0.1}]}}, trace + lemma_rows(0.0)), "lsmooth-fails"
    )
    assert "learning rate 3 is above 2/L = 1" in found.title


# --- kinks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "level"), [(0.09, "fine"), (0.11, "note"), (0.49, "note"), (0.51, "note"), (0.98, "note")]
)
def test_kink_share(share, level):
    rows = steps(9, kink_share=[0.0] * 6 + [share] * 3, kink=2.0, smooth=0.5)
    found = of(findings({"census": {"operations": [RELU]}}, rows), "kink-share")
    assert found.level == level and found.number == pytest.approx(share)
    assert ("not from curvature" in found.title) is (share > 0.5)
    assert "ReLU switching" in found.title and "κ_smooth 0.5, κ_kink 2" in found.evidence


def test_kink_share_in_the_words_of_the_reader():
    rows = steps(12, kink_share=[0.1] * 4 + [0.5] * 4 + [0.98] * 4, kink=2.0, smooth=0.5)
    for row in rows:
        row["kink_share_by_layer"] = {"0": 0.99, "2": 0.4}
    found = of(findings({"census": {"operations": [RELU]}}, rows), "kink-share")
    assert found.title == (
        "98 % of the change of the gradient over a step comes from ReLU switching, not from curvature: "
        "the Hessian does not see it."
    )
    assert "In the first third 10 %" in found.evidence and "Highest in layer '0', 99 %" in found.evidence
    assert "4 measured steps, steps 9 to 12" in found.evidence


def test_kink_share_beside_hidden_kinks_is_a_lower_bound():
    facts = {"census": {"operations": [RELU], "hidden": [{"kind": "by hand", "what": "mul", "place": "net.py:9"}]}}
    found = findings(facts, steps(3, kink_share=0.98, unseen=["rnn_relu in 0"]))
    assert of(found, "kink-share").title.startswith("At least 98 %")
    hidden = of(found, "hidden-kinks")
    assert hidden.number == 2 and "net.py:9" in hidden.evidence and "rnn_relu" in hidden.evidence
    assert "lower bound" in hidden.title
    assert of(findings({"census": {"operations": [RELU]}}, steps(3, kink_share=0.98)), "hidden-kinks") is None
    little = of(findings(facts, steps(3, kink_share=0.06)), "kink-share")
    assert little.level == "fine" and little.title.startswith("At least 6.0 % of the change")
    assert "Only" not in little.title and "at most the rest" in little.title and "What may hide kinks" in little.why


def test_a_kink_share_of_0_is_told_as_none():
    found = of(findings({}, steps(6, kink_share=0.0, kink_share_by_layer={"0": 0.0, "2": 0.0})), "kink-share")
    assert found.title.startswith("None of the change") and found.title.endswith("the Hessian sees all of it.")
    assert "Highest" not in found.evidence


@pytest.mark.parametrize(("share", "level"), [(0.0, "fine"), (9e-4, "fine"), (1.1e-3, "note")])
def test_a_model_without_kinks(share, level):
    found = findings({"census": {"operations": [GELU]}}, steps(5, kink_share=share, flipped=0))
    assert of(found, "no-kinks").level == level and of(found, "kink-share") is None and of(found, "flips") is None
    if level == "fine":
        assert of(found, "no-kinks").title == "This model has no kinks; kink share 0, as must be."
    kinked = findings({"census": {"operations": [GELU, RELU]}}, steps(5, kink_share=share))
    assert of(kinked, "no-kinks") is None
    unused = findings({"census": {"operations": [GELU, RELU | {"differentiated": False}]}}, steps(5, kink_share=0.0))
    assert of(unused, "no-kinks") is not None
    hides = {"census": {"operations": [GELU], "hidden": [{"kind": "script", "what": "f"}]}}
    assert of(findings(hides, steps(5, kink_share=0.0)), "no-kinks") is None


@pytest.mark.parametrize(("flipped", "level"), [(4, "fine"), (5, "note")])
def test_flips(flipped, level):
    rows = steps(9, flipped=flipped, units=100)
    for row in rows:
        row["flips_by_layer"] = {"1": flipped - 1, "3": 1}
    found = of(findings({}, rows), "flips")
    assert (
        found.level == level
        and found.title
        == f"{flipped} unit outputs (units × samples) switch to another piece in a step, {flipped}.0 % of all."
    )
    assert f"{100 * (flipped - 1) // flipped} % of all switches are in layer '1'" in found.evidence


@pytest.mark.parametrize("penalty", ["in the loss", "not in the loss: taken by Proximal"])
def test_weights_under_a_penalty_are_no_unit_outputs(penalty):
    rows = steps(9, flipped=1148, units=10_000, penalty=penalty, kink_share=0.0)
    for row in rows:
        row["flips_by_layer"] = {"1": 40, "3": 20, OUTSIDE: 1088}
    facts = {"l1": l1(weights=9000)["l1"]}
    found = findings(facts, rows)
    flips, own = of(found, "flips"), penalty == "in the loss"
    assert flips.number == (60 if own else 1148)
    assert ("60 unit outputs (units × samples) switch to another piece in a step, 6.0 % of all" in flips.title) is own
    assert ("1088 more switch outside of modules and are left out" in flips.evidence) is own
    assert ("67 % of all these switches are in layer '1'" in flips.evidence) is own
    assert ("95 % of all switches are outside of modules" in flips.evidence) is not own
    alone = [row | {"flips_by_layer": {OUTSIDE: 1148}} for row in rows]
    assert (of(findings(facts, alone), "flips") is None) is own
    fine = next(f for f in findings({"l1": {"weights": 9000}}, rows) if f.id == "nothing-unusual")
    assert f"{60 if own else 1148} unit outputs switch" in fine.evidence


def test_layers_in_which_nothing_ever_flips():
    def found(n, last):
        rows = steps(n, flipped=3, units=100)
        for row in rows:
            row["flips_by_layer"] = {"1": 3, "3": 0}
        rows[-1]["flips_by_layer"] = {"1": 3, "3": last}
        return of(findings({}, rows), "no-flips")

    assert found(5, 0).title == "In 1 of 2 layers with kinks no unit ever switched: 3."
    assert found(5, 1) is None and found(4, 0) is None
    aside = [row | {"flips_by_layer": {"1": 3, OUTSIDE: 0}} for row in steps(9, flipped=3, units=100)]
    assert of(findings({}, aside), "no-flips") is None  # a clip of the loss that never acts is no dead layer


def test_ties():
    def found(exact, after=0, **facts):
        facts = {"census": {"operations": [RELU | {"exact": exact}]}} | facts
        return of(findings(facts, steps(5, ties=after)), "ties")

    assert found(0) is None
    assert found(7).level == "fine" and "7 of 800 numbers (0.9 %)" in found(7).title
    assert found(9).level == "note" and "torch returns 0 at 0" in found(9).evidence and "net.py:3" in found(9).evidence
    for returned, said in ((["inf"], " (torch returns inf at 0)"), ([None], ""), ([], "")):
        root = {"census": {"operations": [RELU | {"exact": 9, "returned": [["0", returned]]}]}}
        assert of(findings(root, []), "ties").evidence.endswith(f"relu in net.py:3 9 of 800{said}.")
    half = found(1, scaled=True)
    assert half.level == "note" and "half precision" in half.why and "float32" in half.do
    assert "5 measured steps" in found(0, after=2).evidence and "2 unit outputs" in found(0, after=2).title


# --- failures ---------------------------------------------------------------------------------------------------------


def test_crashed():
    found = of(findings({"crashed": "ValueError: no data\nmore", "exit_code": 1, "steps": 12}, []), "crashed")
    assert found.title == "The script crashed: ValueError: no data." and "after 12 optimiser steps" in found.evidence
    assert of(findings({"exit_code": 0, "crashed": None}, []), "crashed") is None


def test_an_exit_code_is_no_crash():
    found = findings(SGD | {"exit_code": 3, "crashed": None}, steps(9, kink_share=0.1))
    left = of(found, "exit-code")
    assert left.level == "note" and left.title == "The script left with exit code 3." and left.number == 3
    assert "is not the end of a training" not in left.why and "may be its way to end" in left.why
    assert of(found, "crashed") is None and of(found, "nothing-unusual") is not None
    assert of(findings({"exit_code": 0}, []), "exit-code") is None
    assert of(findings({"exit_code": 1, "crashed": "E"}, []), "exit-code") is None


@pytest.mark.parametrize("bad", ["nan", "inf", math.nan, -math.inf])
def test_a_loss_that_is_not_finite(bad):
    rows = [{"kind": "trace", "step": t, "loss": loss} for t, loss in enumerate([1.0, None, 5.0, bad, bad], 1)]
    found = of(findings({}, rows), "loss-not-finite")
    assert found.level == "problem" and "at step 4 for the first time" in found.title
    assert "in 2 of 4 rows" in found.evidence and "before was 5, grown from 1" in found.evidence
    assert of(findings({}, rows[:3]), "loss-not-finite") is None


def test_undefined():
    rows = steps(5, kink_share=[0.5, "nan", 0.5, 0.5, 0.5], undefined=[])
    rows[1]["undefined"] = ["√ of a negative number"]
    found = of(findings({}, rows), "undefined")
    assert found.number == 1 and "At 1 of 5 measured steps" in found.title and "√ of a negative" in found.evidence
    assert of(findings({}, steps(5, kink_share=0.5, undefined=[])), "undefined") is None


@pytest.mark.parametrize(
    ("why", "small", "off"),
    [
        ("replay: activation checkpoints run a part of the forward pass anew", False, True),
        ("the frozen piece has no finite gradient at the new parameters", True, False),
        ("the closure ended before its recorded operation 3", False, False),
    ],
)
def test_advice_on_what_is_undefined_fits_the_reason(why, small, off):
    found = of(findings({}, steps(3, kink_share="nan", undefined=[why])), "undefined")
    assert ("add a small ε" in found.do) is small and ("checkpoints off" in found.do) is off


@pytest.mark.parametrize(
    ("error", "closure", "anomaly"),
    [
        ("stability: the gradient is not finite", False, True),
        ("measure_step: the loss has no graph", True, False),
        ("the loss could not be followed: computed again, it was 1 and not 2", True, False),
        ("stability: SGD has made no step yet; take one first.", False, False),
    ],
)
def test_advice_on_a_probe_that_failed_fits_the_error(error, closure, anomaly):
    found = of(findings({}, [{"kind": "stability", "step": 1, "error": error}]), "probes-failed-stability")
    assert ("A closure must" in found.do) is closure and ("set_detect_anomaly" in found.do) is anomaly
    assert found.do


def test_probes_that_failed_or_were_few():
    rows = [*steps(12, kink_share=0.5), {"kind": "step", "step": 13, "error": "RuntimeError: no graph"}]
    found = of(findings({"steps": 1000}, rows), "probes-failed-step")
    assert "1 of 13 probes of kind 'step' failed" in found.title and "no graph" in found.evidence
    facts = {"steps": 1000, "budget": 0.05, "share": 0.049, "spent": 3.0}
    few = of(findings(facts, steps(9, kink_share=0.5) + sharp(*[0.1] * 10)), "few-probes")
    assert few.title == "Few measurements: 9 of kind 'step'." and few.lines.startswith("budget=0.2 ")
    assert of(findings(facts, steps(10, kink_share=0.5) + sharp(*[0.1] * 10)), "few-probes") is None
    assert of(findings(facts, []), "nothing-measured") is not None


@pytest.mark.parametrize(("share", "told"), [(0.069, False), (0.071, True)])
def test_over_budget(share, told):
    facts = {"budget": 0.05, "share": share, "spent": 3.0, "seconds": 40.0, "steps": 5}
    assert (of(findings(facts, steps(5)), "over-budget") is not None) is told


def test_a_short_run_may_spend_its_allowance():
    facts = SGD | {"budget": 0.05, "share": 0.6, "seconds": 5.0, "spent": 3.0, "steps": 50, "made": {"step": 9}}
    assert of(findings(facts, steps(9)), "over-budget") is not None
    assert of(findings(facts | {"allowance": 3.0}, steps(9)), "over-budget") is None
    assert of(findings(facts | {"allowance": 1.0}, steps(9)), "over-budget") is not None


@pytest.mark.parametrize(("active", "told"), [(0.0, "All ReLUs are off"), (0.004, "More than 99"), (0.006, None)])
def test_a_layer_whose_units_are_all_off(active, told):
    rows = steps(15, kink_share=0.0, active_by_layer={"1": active, "3": 0.5})
    found = of(findings(SGD, rows), "dead-layers")
    assert (found is None) is (told is None)
    if told:
        assert found.title.startswith(told) and "1 of 2 layers" in found.title and found.level == "problem"
    few = of(findings(SGD, steps(12, active_by_layer={"1": 0.0})), "dead-layers")
    assert few.level == "note"  # four steps in the last third
    for margin in (OUTSIDE, "TripletMarginLoss"):  # all met: no unit of a network is off
        met = steps(15, active_by_layer={margin: 0.0, "1": 0.5}, silent_by_layer={margin: 1.0})
        assert not {"dead-layers", "silent-units"} & {finding.id for finding in findings(SGD, met)}
    woke = steps(9, active_by_layer=[{"1": 0.0}] * 8 + [{"1": 0.5}])
    assert of(findings(SGD, woke), "dead-layers") is None


@pytest.mark.parametrize(("off", "level"), [(0.09, None), (0.11, "note"), (0.49, "note"), (0.51, "problem")])
def test_units_that_are_off_for_all_of_the_data(off, level):
    silent = [{"1": 0.9, "3": off + 0.2, "5": 0.05}] * 8 + [{"1": 0.9, "3": off, "5": 0.05}]
    rows = steps(15, active_by_layer={"1": 0.0, "3": 0.4}, silent_by_layer=[silent[0]] * 14 + [silent[-1]])
    found = findings(SGD, rows)
    assert of(found, "dead-layers") is not None  # layer 1, and it is told once
    found = of(found, "silent-units")
    assert (None if found is None else found.level) == level
    if level:
        assert found.number == off and "layer '3'" in found.title and "layer '1'" not in found.title + found.evidence


@pytest.mark.parametrize(("late", "said"), [(0.97, None), (0.99, "did not fall"), (1.5, "rose")])
def test_a_loss_that_does_not_fall(late, said):
    rows = [{"kind": "trace", "step": t + 1, "loss": 1.0 if t < 30 else late} for t in range(60)]
    found = of(findings(SGD, rows), "loss-not-falling")
    assert (found is None) is (said is None) and (said is None or said in found.title)
    assert of(findings(SGD, rows[:49]), "loss-not-falling") is None


def test_the_step_of_a_batch_is_not_told_of_many():
    rows = [row | {"data": f"the script's own batch at step {i}, 2 backward calls"} for i, row in enumerate(steps(9))]
    assert Record(SGD, rows).data(rows).startswith("Data: the script's own batch, 2 backward calls. One batch")


def test_not_found():
    missing = [{"what": "the loss", "why": "backward was called on a sum", "line": "monitor.loss(loss)"}]
    found = of(findings({"missing": missing}, []), "not-found")
    assert found.lines == "monitor.loss(loss)" and "backward was called on a sum" in found.evidence
    assert of(findings({"missing": []}, []), "not-found") is None
    assert found.do == "Add the line to the script, or use a Monitor, to which all is given."
    missing.append({"what": "1 more optimiser", "why": "one", "line": "nonsmooth audit --optimizer 2 train.py"})
    both, alone = (of(findings({"missing": rows}, []), "not-found").do for rows in (missing, missing[1:]))
    assert both.startswith("Add the line to the script, or run the command in a shell, or use")
    assert alone.startswith("Run the command in a shell, or use")
    assert of(findings({"missing": [{"what": "the trial 'smooth'", "line": ""}]}, []), "not-found").do == ""


# --- trials -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "base", "verdict"),
    [(0.3955, 0.4, "helped"), (0.397, 0.4, "no difference"), (0.403, 0.4, "no difference"), (0.4045, 0.4, "harmed")],
)
def test_a_trial_is_judged_beside_the_run_as_it_is(after, base, verdict):
    assert Trial(trial("half-lr", after), trial("as-it-is", base)).verdict == verdict
    assert Trial(trial("half-lr", after, before=base), {}).verdict == verdict
    assert Trial(trial("half-lr", "nan"), trial("as-it-is", base)).verdict == "unclear"
    assert Trial(trial("half-lr", after, diverged=True), {}).verdict == "harmed"
    assert Trial(trial("half-lr", after), {"diverged": True}).verdict == "helped"
    assert Trial(trial("half-lr", -after), trial("as-it-is", -base)).verdict == {
        "helped": "harmed",
        "harmed": "helped",
    }.get(verdict, verdict)


def test_advice_that_the_trial_contradicts_is_not_given():
    rows = steps(20, loss=1.0, loss_after=2.0)

    def advised(after):
        facts = SGD | {"what_if": [trial("as-it-is", 0.4), trial("half-lr", after)]}
        return findings(facts, rows)

    good = of(advised(0.3), "loss-raising")
    assert "Halve the learning rate" in good.do and "0.25" in good.lines
    assert "from 0.5 to 0.3; unchanged it went to 0.4" in good.do and "50 steps" in good.do
    assert of(advised(0.3), "half-lr").number == pytest.approx(0.25)
    for after in (0.4, 0.5):
        bad = of(advised(after), "loss-raising")
        assert "is no advice here" in bad.do and not bad.lines and "Halve" not in bad.do
        assert f"to {after}" in bad.do and of(advised(after), "half-lr") is None
    untried = of(findings(SGD, rows), "loss-raising")
    assert "not tried here" in untried.do and untried.lines


@pytest.mark.parametrize(
    ("largest", "level"), [(0.49, "problem"), (0.5, "note"), (0.74, "note"), (0.76, "fine"), (5.0, "fine")]
)
def test_the_largest_stable_rate_against_the_present(largest, level):
    def told(*what_if, data="the script's full batch"):
        return of(findings(SGD | {"what_if": [*what_if]}, steps(1, data=data)), "learning-rate")

    base, stable = trial("as-it-is", 0.6, lr=0.5), trial("largest-stable-lr", 0.3, lr=largest)
    found = told(base, stable)
    assert found.level == level and found.number == pytest.approx(largest / 0.5)
    assert f"{largest:.3g}" in found.title and (level == "problem") is bool(found.lines)
    assert (level == "problem") is bool(found.do)  # what was tried is evidence, and no advice
    assert "took the loss from 0.5 to 0.3; unchanged it went to 0.6" in found.evidence
    assert told(trial("as-it-is", 0.504, lr=0.5), stable).level != "problem"
    found = told(base, stable | {"note": "no stable lr found, down to this one"})
    assert found.level == "note" and found.title.startswith("No learning rate from")
    found = told(trial("as-it-is", 0.4, lr=0.5), stable | {"loss_after": 0.6})
    assert not found.lines and "Lower the learning rate." not in found.do and "may save" not in found.do


@pytest.mark.parametrize(
    ("data", "diverged", "level"),
    [
        ("the script's own batch", False, "note"),
        ("the script's own batch", True, "problem"),
        ("the script's full batch", False, "problem"),
    ],
)
def test_a_rate_that_is_too_large_by_one_noisy_trial_is_no_problem(data, diverged, level):
    base = trial("as-it-is", 0.6, lr=0.5, diverged=diverged)
    what_if = [base, trial("largest-stable-lr", 0.3, lr=0.4)]
    found = of(findings(SGD | {"what_if": what_if}, steps(3, data=data)), "learning-rate")
    readable([found])
    assert found.level == level and bool(found.do) is bool(found.lines) is (level == "problem")
    assert ("noisy" in found.why) is (level == "note")


def test_the_smooth_trial_is_told_with_the_kink_share():
    facts = {"what_if": [trial("as-it-is", 0.4), trial("smooth", 0.45)]}
    assert (
        "smooth twins of the kinks took the loss from 0.5 to 0.45"
        in of(findings(facts, steps(3, kink_share=0.9)), "kink-share").do
    )


# --- the penalty ------------------------------------------------------------------------------------------------------


def l1(**fields):
    """As `L1Audit.to_dict` has it: λ = 1 by autograd on 100 weights, of which 60 should be zero and none is."""
    made = {
        "optimizer": "SGD",
        "lr": [0.1],
        "data": "all of it",
        "terms": [{"name": "w", "lam": 1.0, "through": "autograd", "place": "train.py:7", "reduction": "sum"}],
        "weights": 100,
        "norm": 10.0,
        "zeros": 0,
        "kkt_zeros": 60,
        "kkt_exact": 0,
        "window": 100,
        "followed": 100,
        "chattering": 60,
        "flickering": 0,
        "amplitude": 0.05,
        "amplitude_law": {"low": 0.05, "mean": 0.05, "high": 0.05},
        "floor": {"low": 3.0, "mean": 3.0, "high": 3.0},
        "floor_measured": 3.0,
        "law": "τλ(1 + r²)/2 a weight",
        "turning": None,
        "lints": [],
        "lines": "optimizer = Proximal(...)",
        "fine": False,
    }
    return {"l1": made | fields}


@pytest.mark.parametrize(("exact", "told"), [(0, True), (29, True), (30, False)])
def test_l1_zeros_that_are_not_there(exact, told):
    found = of(findings(l1(kkt_exact=exact, zeros=exact), []), "l1-no-zeros")
    assert (found is not None) is told
    if told:
        assert found.level == "problem" and found.lines == "optimizer = Proximal(...)"
        assert found.title == f"The L1 penalty left {exact} of 100 weights exactly zero, and 60 should be."
        assert "not tried here" in found.do


def test_l1_advice_and_the_proximal_trial():
    def advised(**fields):
        facts = l1() | {"what_if": [trial("as-it-is", 0.4), trial("proximal", 0.3, **fields)]}
        return of(findings(facts, []), "l1-no-zeros")

    good = advised(zeros=55)
    assert "55 exact zeros, from 0" in good.do and "from 0.5 to 0.3" in good.do and good.lines
    for bad in (advised(zeros=0), advised(zeros=55, diverged=True)):
        assert "no advice as they were tried" in bad.do and not bad.lines


def test_l1_chatter_against_its_law():
    met = of(findings(l1(), []), "l1-chatter")
    assert (
        met.title == "60 of 100 weights bounce about 0 at a mean |w| of 0.05: 0.05 by the law." and met.number == 0.05
    )
    assert "Outside" not in of(findings(l1(amplitude=0.0549), []), "l1-chatter").evidence
    assert "Outside of the law" in of(findings(l1(amplitude=0.0551), []), "l1-chatter").evidence
    ranged = l1(amplitude_law={"low": 0.01, "mean": 0.05, "high": 0.2}, amplitude=0.15)
    assert "(0.01 to 0.2 by the start)" in of(findings(ranged, []), "l1-chatter").title
    assert "no law is known" in of(findings(l1(amplitude_law=None), []), "l1-chatter").title
    assert of(findings(l1(chattering=0), []), "l1-chatter") is None


@pytest.mark.parametrize(("held", "level"), [(0.99, None), (1.01, "note"), (4.99, "note"), (5.01, "problem")])
def test_l1_floor_against_the_norm(held, level):
    found = of(findings(l1(floor_measured=held), []), "l1-floor")
    assert (found.level if found else None) == level
    if found:
        assert found.number == pytest.approx(held / 10) and "of the L1 norm is the bounce" in found.title


def test_l1_lints_are_told_once_each():
    lint = {"id": "several", "says": "Twice.", "evidence": "λ = 1 + 1", "do": "Keep one.", "lines": "a = 1"}
    found = findings(l1(lints=[lint, lint, lint | {"id": "half-precision", "says": "Half."}]), [])
    assert of(found, "l1-lint-several").level == "problem" and of(found, "l1-lint-several").lines == "a = 1"
    assert of(found, "l1-lint-several").title == "Twice." and of(found, "l1-lint-half-precision").level == "note"
    rate = [lint | {"id": "lr-too-large"}]
    assert of(findings(l1(lints=rate, floor_measured=4.0), []), "l1-lint-lr-too-large") is not None
    assert of(findings(l1(lints=rate, floor_measured=6.0), []), "l1-lint-lr-too-large") is None  # l1-floor says it


def turned(turn, settled=True):
    rows = [{"multiple": m, "norm": n} for m, n in ((0.5, 9.0), (1.0, 8.0), (2.0, 7.0), (4.0, 11.0))]
    return l1(turning={"rows": rows, "steps": 200, "turn": turn, "predicted": 2.0, "settled": settled})


@pytest.mark.parametrize(
    ("turn", "settled", "level", "said"),
    [
        (1.0, True, "problem", "already from the present λ on"),
        (0.5, True, "problem", "already from 0.5 times the present λ on"),
        (1.0, False, "note", "already from the present λ on"),
        (2.0, True, "note", "From 2 times the present λ on"),
        (None, True, "fine", "up to 4 times"),
    ],
)
def test_l1_turn(turn, settled, level, said):
    found = of(findings(turned(turn, settled), []), "l1-turning")
    assert found.level == level and said in found.title and found.number == turn
    assert "4 λ: 11" in found.evidence and ("still moving" in found.evidence) is not settled


def test_l1_by_proximal_is_fine():
    proximal = [{"name": "w", "lam": 1.0, "through": "proximal"}]
    facts = l1(terms=proximal, zeros=60, kkt_exact=60, chattering=0, floor_measured=0.0, fine=True, lines="")
    found = findings(facts, [])
    assert [finding.id for finding in found if finding.id.startswith("l1")] == ["l1-fine"]
    assert of(found, "l1-fine").title == (
        "Proximal is in use: 60 of 100 weights are exactly zero, and none bounces about 0."
    )
    early = of(findings(l1(terms=proximal, chattering=0, floor_measured=0.0), []), "l1-no-zeros")
    assert early.level == "note" and not early.lines
    assert of(findings(l1(flickering=1), []), "l1-flicker") is not None
    assert of(findings(l1(flickering=0.99), []), "l1-flicker") is None


@pytest.mark.parametrize(("count", "told"), [(9, False), (10, True)])
def test_chatter_without_a_penalty(count, told):
    rows = [{"kind": "chatter", "step": 9, "chattering": count, "weights": 100, "amplitude": 0.1}]
    assert (of(findings({"l1": None}, rows), "l1-unexplained") is not None) is told
    assert of(findings(l1(), rows), "l1-unexplained") is None


def test_the_keys_of_the_audit_are_those_that_are_read():
    """A real audit of w on |w|, step 0.1: it bounces at 0.05, and the findings say so."""
    torch = pytest.importorskip("torch")
    from nonsmooth.torch.l1_audit import PenaltyTerm, l1_audit

    w = torch.nn.Parameter(torch.full((10,), 0.05, dtype=torch.float64))
    term = PenaltyTerm("w", 1.0, "autograd")
    audit = l1_audit(torch.optim.SGD([w], lr=0.1), [term], lambda: w.abs().sum(), {"w": w}, steps=16)
    made = audit.to_dict()
    assert l1()["l1"].keys() <= made.keys()
    found = findings({"l1": json.loads(json.dumps(made, allow_nan=False))}, [])
    assert "left 0 of 10 weights exactly zero, and 10 should be" in of(found, "l1-no-zeros").title
    assert "10 of 10 weights bounce about 0 at a mean |w| of 0.05: 0.05 by the law" in of(found, "l1-chatter").title
    assert of(found, "l1-floor").level == "problem" and of(found, "l1-turning").level in ("problem", "note")
    assert "Proximal(" in of(found, "l1-no-zeros").lines


# --- nothing unusual --------------------------------------------------------------------------------------------------


def test_nothing_unusual_only_where_nothing_is_a_problem():
    rows = steps(12, loss=1.0, loss_after=0.9, kink_share=0.03, flipped=1) + sharp(*[0.3] * 12)
    calm = of(findings(SGD | {"census": {"operations": [RELU]}}, rows), "nothing-unusual")
    assert calm.level == "fine" and calm.title == "Nothing unusual in 12 measured steps and 12 sharpness estimates."
    for said in ("sharpness at 0.3 of its threshold", "0 of 12 steps raised", "kink share 3.0 %", "census of 1"):
        assert said in calm.evidence
    assert calm.why == "No finding here is a problem."
    noted = findings(SGD | {"edited": True, "census": {"hidden": [{"kind": "k", "what": "w"}]}}, rows)
    assert "the notes say what" in of(noted, "nothing-unusual").why
    raised = rows + steps(3, loss=1.0, loss_after=1.5)  # a fifth of them: a note
    assert of(findings(SGD, raised), "nothing-unusual") is None
    assert of(findings(SGD | {"crashed": "E"}, rows), "nothing-unusual") is None
    assert of(findings(SGD, []), "nothing-unusual") is None


# --- what the words may not claim -------------------------------------------------------------------------------------


def stable(largest, note="stable up to 3, unstable from 4", **facts):
    what_if = [trial("as-it-is", 0.6, lr=0.5), trial("largest-stable-lr", 0.3, lr=largest, note=note)]
    return findings(SGD | {"what_if": what_if} | facts, [])


def test_stable_says_what_it_is_and_is_no_advice():
    note = "stable up to 3, unstable from 4, 8 runs of 50 steps; on the batches of steps 7, 8, 9, taken in turn"
    found = of(stable(3.0, note), "learning-rate")
    assert "over 50 steps the loss neither becomes non-finite nor ends more than a tenth of |f| above" in found.evidence
    assert "on 3 cached batches" in found.evidence and not found.do and not found.lines
    one = of(stable(3.0, "a; on the batch of step 7"), "learning-rate")
    assert "on 1 cached batch:" in one.evidence and "cached" not in of(stable(3.0, "a"), "learning-rate").evidence


@pytest.mark.parametrize(("largest", "note", "told"), [(499.0, "a", True), (500.0, "a", False)])
def test_a_search_that_gave_up_is_not_told(largest, note, told):
    assert (of(stable(largest, note), "learning-rate") is not None) is told


def test_a_trial_without_a_loss_is_no_advice_by_itself():
    facts = SGD | {"what_if": [trial("as-it-is", "nan"), trial("half-lr", "nan")]}
    found = of(findings(facts, steps(20, loss=1.0, loss_after=2.0)), "loss-raising")
    assert found.do.startswith("No advice on the learning rate. Tried once")


@pytest.mark.parametrize(("optimizers", "advised"), [(1, True), (2, False)])
def test_no_advice_on_the_rate_where_several_optimisers_step(optimizers, advised):
    what_if = [trial("as-it-is", 0.4), trial("half-lr", 0.3), trial("largest-stable-lr", 0.3, lr=0.2)]
    facts = SGD | {"what_if": what_if, "optimizers": optimizers}
    found = findings(facts, steps(20, loss=1.0, loss_after=2.0) + sharp(*[1.0] * 9))
    assert (of(found, "learning-rate") is not None) is advised
    assert ("Halve" in of(found, "loss-raising").do) is advised and bool(of(found, "loss-raising").lines) is advised
    half = of(found, "half-lr")
    assert bool(half.lines) is advised and bool(half.do) is advised
    assert ("What the other optimisers train stood still" in half.evidence) is not advised
    assert ("Halve" in of(found, "edge-of-stability").do) is advised


@pytest.mark.parametrize(("end", "faded"), [(0.0051, False), (0.0049, True)])
def test_trials_from_the_end_of_a_schedule_say_nothing(end, faded):
    rows = [{"kind": "trace", "step": t, "loss": 1.0, "lr": [lr]} for t, lr in enumerate((0.1, 0.5, end), 1)]
    what_if = [trial("as-it-is", 0.4), trial("half-lr", 0.3), trial("largest-stable-lr", 0.3, lr=0.002)]
    found = findings(SGD | turned(1.0) | {"what_if": what_if}, rows)
    for name in ("learning-rate", "half-lr", "l1-turning"):
        assert (of(found, name) is None) is faded
    told = of(found, "schedule-ended")
    assert (told is not None) is faded
    if faded:
        assert told.level == "note" and "ended at 0.0049, 1.0 % of its highest" in told.title
        assert of(findings(SGD, rows), "schedule-ended") is None
        assert "at most 0.5, at step 2; 0.0049 at step 3, the last traced" in told.evidence
    raising = findings(SGD | {"what_if": what_if}, rows + steps(20, loss=1.0, loss_after=2.0))
    assert ("Halve" in of(raising, "loss-raising").do) is not faded


def test_a_schedule_ended_where_the_optimiser_was_left():
    rows = [{"kind": "trace", "step": t, "loss": 1.0, "lr": [lr]} for t, lr in ((1, 0.5), (8, 0.004))]
    facts = {"optimizer": {"name": "SGD", "groups": [{"lr": 1e-5}]}, "what_if": [trial("as-it-is", 0.4)]}
    told = of(findings(facts | {"steps": 9}, rows), "schedule-ended")
    assert "ended at 1e-05, under 0.1 % of its highest" in told.title
    assert "0.004 at step 8, the last traced; 1e-05 as the script left it, after step 9" in told.evidence
    assert Record(facts | {"steps": 9}, rows).lr == 1e-5
    assert Record(facts | {"steps": 7}, rows).lr == Record(facts, rows).lr == 0.004
    again = {"optimizer": {"name": "SGD", "groups": [{"lr": 0.5}]}, "steps": 9}  # a restart: the trials are at 0.5
    assert Record(again, rows).faded == ""


@pytest.mark.parametrize(("lr", "rose"), [(0.039, False), (0.041, True), (5.0, True)])
def test_a_learning_rate_that_rose_before_the_loss_broke(lr, rose):
    rates = {1: 1e-4, 100: 0.02, 192: 0.02, 206: lr, 224: lr}
    rows = [{"kind": "trace", "step": t, "loss": "nan" if t > 200 else 1.0, "lr": [r]} for t, r in rates.items()]
    facts = {"optimizer": {"name": "SGD", "groups": [{"lr": lr}]}, "steps": 400}
    found = findings(facts, rows + steps(20, loss=1.0, loss_after=2.0))
    broke = of(found, "loss-not-finite")
    assert (f"had risen from 0.02 at step 192 to {lr:g} at step 206" in broke.evidence) is rose
    assert ("Try without that rise" in broke.do) is rose and broke.lines
    assert "['lr'] = 5e-05" in of(found, "loss-raising").lines  # half of what those steps had, and no later rate
    late = [row | {"step": row["step"] + 180} for row in steps(20, loss=1.0, loss_after=2.0)]
    assert "['lr'] = 0.01" in of(findings(facts, rows + late), "loss-raising").lines


@pytest.mark.parametrize(("through", "bounces"), [("autograd", True), ("grad", True), ("proximal", False)])
def test_the_threshold_under_a_penalty_that_bounces(through, bounces):
    rows = steps(9, curvature=4.0, threshold=4.0, kink=2.4, smooth=1.6) + sharp(*[0.3] * 9)
    found = findings(SGD | l1(terms=[{"name": "w", "lam": 1.0, "through": through}]), rows)
    blind = of(found, "sharpness-blind")
    assert blind.level == ("note" if bounces else "problem")
    assert ("in part that is the chatter of penalised weights" in blind.title) is bounces
    assert ("at the threshold already" in blind.why) is not bounces
    calm = of(found, "edge-of-stability")
    assert "room" not in words(calm) and "own threshold: far below it, but the steps meet 1 of it." in calm.title
    assert "calm" in of(findings(SGD, sharp(*[0.3] * 9)), "edge-of-stability").title


@pytest.mark.parametrize(
    ("dtype", "eps"),
    [("bfloat16", 2.0**-7), ("torch.float16", 2.0**-10), ("float32", 2.0**-23), ("float64", 2.0**-52)],
)
def test_rounding_by_the_dtype(dtype, eps):
    slow = {"optimizer": {"name": "SGD", "groups": [{"lr": 0.9}]}, "model": {"dtype": dtype}}
    for by, told in ((3 * eps, False), (6 * eps, True)):
        after = 1.0 + by
        found = findings(slow, lemma_rows(after, n=12))
        assert (of(found, "lsmooth-fails").level == "note") is told
        assert (of(found, "loss-raising") is not None) is told


def test_a_scaler_means_half_precision():
    rows = steps(20, loss=1.0, loss_after=1.0 + 2.0**-9)
    assert of(findings(SGD | {"model": {"dtype": "float32"}}, rows), "loss-raising") is not None
    assert of(findings(SGD | {"model": {"dtype": "float32"}, "scaled": True}, rows), "loss-raising") is None


@pytest.mark.parametrize(("last", "still"), [(9.08, True), (9.1, False)])
def test_norms_that_do_not_move_are_no_effect_of_the_penalty(last, still):
    rows = [{"multiple": m, "norm": n} for m, n in ((0.5, last), (1.0, 9.0), (4.0, 9.0))]
    facts = l1(turning={"rows": rows, "steps": 100, "turn": None, "settled": True}, lr=[1e-9])
    found = of(findings(facts, []), "l1-turning")
    assert ("moved nothing" in found.title) is still and found.level == ("note" if still else "fine")
    assert ("At the learning rate 1e-09" in found.why) is still
    moved = of(findings(facts | l1(turning=facts["l1"]["turning"]), []), "l1-turning")
    assert "learning rate 1e-09" not in moved.why


def test_a_clipped_gradient_is_told_with_its_threshold():
    rows = steps(9, curvature=4.0, threshold=4.0, kink=3.0, smooth=1.0) + sharp(*[0.3] * 9)
    for facts, said in (({}, ""), ({"clipped": False}, ""), ({"clipped": True, "clip": 0.25}, ".grad was 0.25 of it")):
        found = findings(SGD | facts, rows)
        for name in ("edge-of-stability", "sharpness-blind"):
            evidence = of(found, name).evidence
            assert said in evidence and ("threshold is then larger" in evidence) is bool(said)
        assert of(found, "sharpness-blind").level == ("note" if said else "problem")
    assert of(findings(SGD | {"clipped": True}, sharp(*[2.0] * 9)), "edge-of-stability").level == "note"


@pytest.mark.parametrize(("data", "noisy"), [("the script's full batch", False), ("the script's own batch", True)])
def test_a_full_batch_has_no_minibatch_noise(data, noisy):
    first = {"kind": "step", "step": 1, "data": "the script's own batch at step 1"}  # where it is not yet known
    record = Record({}, [first, *(row | {"data": data} for row in steps(3))])
    assert record.full is not noisy and record.noisy(record.steps) is noisy
    assert record.data(record.steps).startswith(f"Data: {data}.")
    rows = steps(9, kink_share=0.3, data=data) + sharp(*[0.3] * 9, data=data)
    found = findings(SGD | l1(flickering=5, by_penalty=50, data="the batch of step 9"), rows)
    assert ("noisy" in of(found, "kink-share").evidence) is noisy
    assert ("Minibatch noise" in of(found, "l1-flicker").why) is noisy
    assert ("noise of the batches" in of(found, "l1-chatter").evidence) is noisy
    assert ("noisy" in of(found, "l1-no-zeros").evidence) is noisy


@pytest.mark.parametrize(("flipped", "stays"), [(900, True), (1100, False)])
def test_steps_stay_on_their_piece_only_below_a_hundredth(flipped, stays):
    found = of(findings({}, steps(9, flipped=flipped, units=100000)), "flips")
    assert ("stay mostly" in found.why) is stays
    assert "115008 unit outputs" in of(findings({}, steps(9, flipped=115008, units=10**7)), "flips").title
    assert "stay mostly" not in of(findings({}, steps(9, flipped=1)), "flips").why


@pytest.mark.parametrize(("share", "calm"), [(0.89, True), (0.9, False)])
def test_what_is_nearly_all_kinks_is_not_nothing_unusual(share, calm):
    assert (of(findings(SGD, steps(9, kink_share=share)), "nothing-unusual") is not None) is calm


@pytest.mark.parametrize(("ratio", "calm"), [(1.19, True), (1.21, False)])
def test_beyond_the_edge_is_not_nothing_unusual(ratio, calm):
    rows = steps(9, kink_share=0.1) + sharp(ratio, ratio)
    found = findings(SGD, rows)
    assert of(found, "edge-of-stability").level == "note"
    assert (of(found, "nothing-unusual") is not None) is calm


@pytest.mark.parametrize(("dormant", "level"), [(0.9, "note"), (0.1, "problem")])
def test_beyond_the_edge_in_weights_without_gradients_is_no_problem_of_the_rate(dormant, level):
    rows = steps(9, kink_share=0.1) + [row | {"dormant": dormant} for row in sharp(*[300.0] * 9)]
    found = of(findings(SGD, rows), "edge-of-stability")
    assert found.level == level
    assert ("weights that have hardly had a gradient" in found.title) is ("90 %" in found.evidence) is (level == "note")
    assert ("half the learning rate" in found.do) is (level == "problem")


@pytest.mark.parametrize(("units", "told"), [(0, False), (100, True), (None, True)])
def test_where_no_unit_was_counted_none_switched_is_not_said(units, told):
    found = findings(SGD, steps(9, flipped=0, units=units))
    assert (of(found, "flips") is not None) is told
    assert ("switch" in of(found, "nothing-unusual").evidence) is told


@pytest.mark.parametrize(("held", "calm"), [(0, False), (1, True)])
def test_where_all_probes_of_a_kind_failed_nothing_is_calm(held, calm):
    rows = steps(9, kink_share=0.1) + sharp(*[0.1] * held)
    rows.append({"kind": "stability", "step": 20, "error": "RuntimeError: no"})
    assert (of(findings(SGD, rows), "nothing-unusual") is not None) is calm


def test_an_interruption_is_no_crash():
    for facts in ({"interrupted": True}, {"interrupted": True, "crashed": "KeyboardInterrupt", "exit_code": 130}):
        found = findings(facts | {"steps": 7, "crashed": "KeyboardInterrupt: "}, [])
        assert of(found, "crashed") is None and of(found, "interrupted").level == "note"
        assert of(found, "interrupted").title == "The run was interrupted after 7 optimiser steps."
    assert of(findings({"interrupted": False, "crashed": "E"}, []), "interrupted") is None


def test_where_the_loss_ceased_to_be_finite_and_what_is_told_of_before():
    rows = [{"kind": "trace", "step": 10, "loss": 1.0}, {"kind": "trace", "step": 20, "loss": "nan"}]
    found = of(findings({}, rows), "loss-not-finite")
    assert "between step 10 (the last finite one seen) and step 20" in found.title and found.number == 20
    assert "at step 20." in of(findings({}, [rows[0] | {"step": 19}, rows[1]]), "loss-not-finite").title
    late = [row | {"step": t, "kink_share": 0.0} for t, row in enumerate(steps(9), 21)]
    shares = steps(9, kink_share=0.8, loss=1.0) + rows[1:] + late
    share = of(findings({}, shares), "kink-share")
    assert share.number == 0.8 and "up to step 19: from then on the loss is not finite" in share.evidence
    again = findings({}, [*shares, {"kind": "trace", "step": 40, "loss": 1.0}])  # a step that a scaler skipped
    assert of(again, "kink-share").number == 0.0 and "up to step" not in of(again, "kink-share").evidence


@pytest.mark.parametrize(("total", "early"), [(15, False), (16, True)])
def test_a_last_third_that_is_not_the_end_says_so(total, early):
    found = of(findings({"steps": total}, steps(9, kink_share=0.8)), "kink-share")
    assert (f"the last was at step 9 of {total}" in found.evidence) is early


@pytest.mark.parametrize(
    ("total", "where"), [(15, ""), (16, ", in the first 57 % of the run"), (9000, ", in the first 1 %")]
)
def test_a_title_says_of_which_part_of_the_run_it_speaks(total, where):
    rows = steps(9, kink_share=0.3, flipped=1, units=100, loss=1.0, loss_after=0.9) + sharp(*[0.3] * 9)
    for row in rows[:9]:
        row |= {"flips_by_layer": {"1": 1, "3": 0}}
    found = findings(SGD | {"steps": total}, rows)
    dated = ["nothing-unusual", "edge-of-stability", "kink-share", "flips", "no-flips"]
    raising = steps(9, loss=1.0, loss_after=2.0, curvature=4.0, threshold=4.0, kink=3.0) + sharp(*[0.3] * 9)
    raising[0] |= {"active_by_layer": {"1": 0.0}}
    more = findings(SGD | {"steps": total}, raising)
    titles = [of(found, name).title for name in dated]
    titles += [of(more, name).title for name in ("loss-raising", "sharpness-blind", "dead-layers")]
    for title in titles:
        assert where in title and (" of the run" in title) is bool(where), title


@pytest.mark.parametrize("edited", [False, True])
def test_a_script_that_writes_to_weights(edited):
    what_if = [trial("as-it-is", 0.4), trial("half-lr", 0.3)]
    found = findings(l1() | {"edited": edited, "what_if": what_if}, [])
    assert (of(found, "edited") is not None) is edited
    conditional = "If what the script itself writes to weights is no proximal step: take"
    for name in ("l1-no-zeros", "l1-chatter"):
        assert of(found, name).do.startswith(conditional) is edited
    assert of(found, "l1-no-zeros").lines
    assert ("unchanged it went" in of(found, "half-lr").evidence) is not edited
    assert ("without the script's own writes" in of(found, "half-lr").evidence) is edited


def test_a_reason_is_told_once_and_in_one_sentence():
    why = "RuntimeError: element 0 of tensors does not require grad. " + "See the documentation of autograd. " * 9
    missing = [{"what": "the loss", "why": why}, {"what": "the model", "why": why}]
    rows = [{"kind": kind, "step": 1, "error": why} for kind in ("step", "stability")]
    found = findings({"missing": missing}, rows)
    assert text(found).count("element 0") == 1 and "See the documentation" not in text(found)
    assert "the loss, the model: RuntimeError: element 0" in of(found, "not-found").evidence
    assert "the same reason as told above" in of(found, "probes-failed-step").evidence
    other = findings({"missing": missing}, [rows[0] | {"error": "ValueError: " + 300 * "x"}])
    assert f"ValueError: {147 * 'x'}… (×1)" in of(other, "probes-failed-step").evidence


def test_each_lint_has_a_reason_of_its_own():
    torch_lints = pytest.importorskip("nonsmooth.torch.l1_audit.lints")
    from pathlib import Path

    from nonsmooth.torch.findings.penalty import WHY

    source = Path(torch_lints.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r"return Lint\(\s*\"([a-z-]+)\"", source))
    assert named == set(WHY) and len(set(WHY.values())) == len(WHY)
    lint = {"id": "mean-not-sum", "says": "A mean.", "evidence": "e"}
    assert of(findings(l1(lints=[lint]), []), "l1-lint-mean-not-sum").why == WHY["mean-not-sum"]


def test_chatter_names_the_steps_of_its_window():
    rows = [{"kind": "chatter", "step": 120, "window": 100, "chattering": 50, "weights": 100, "amplitude": 0.1}]
    evidence = of(findings(l1(watched="run"), rows), "l1-chatter").evidence
    assert "Signs watched over steps 21 to 120 of the run." in evidence
    evidence = of(findings(l1(watched="continuation"), rows), "l1-chatter").evidence
    assert "a continuation of 100 steps from the end" in evidence and "21 to 120" not in evidence
    assert "Signs watched over 100 steps." in of(findings(l1(), rows), "l1-chatter").evidence
    assert "(steps 21 to 120)" in of(findings({}, rows), "l1-unexplained").evidence


# --- nothing raises ---------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.floats(),
    st.sampled_from(["nan", "inf", "-inf", None, True, "many", 10**400, 5e-324, 1.7e308]),
    st.integers(-5, 5),
)
ROW_KEYS = [
    "step",
    "loss",
    "loss_after",
    "predicted",
    "curvature",
    "smooth",
    "kink",
    "kink_share",
    "orbit_curvature",
    "lipschitz",
    "length",
    "flipped",
    "units",
    "ties",
    "threshold",
    "step_ratio",
    "sharpness",
    "residual",
    "products",
    "converged",
    "ratio",
    "lr",
    "window",
    "weights",
    "chattering",
    "amplitude",
    "norm",
    "zeros",
    "flips",
    "kink_share_by_layer",
    "flips_by_layer",
    "undefined",
    "unseen",
    "selection",
    "data",
    "penalty",
    "error",
]
JSON = st.recursive(
    NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KINDS = st.sampled_from(["step", "stability", "trace", "chatter", "novelty"])
ROWS = st.lists(
    st.builds(
        lambda kind, fields: {"kind": kind, "converged": True} | fields,
        KINDS,
        st.dictionaries(st.sampled_from(ROW_KEYS), NUMBERS | JSON, max_size=12),
    )
    | st.just({}),
    max_size=12,
)
FACT_KEYS = [
    "optimizer",
    "model",
    "census",
    "l1",
    "what_if",
    "missing",
    "crashed",
    "exit_code",
    "budget",
    "spent",
    "share",
    "steps",
    "made",
    "skipped",
    "optimizers",
    "clipped",
    "clip",
    "edited",
    "interrupted",
]
FACTS = st.fixed_dictionaries({}, optional=dict.fromkeys(FACT_KEYS, JSON))


def whole(number):
    """A full record in which each number is the same."""
    by = {"0": number, "": number}
    row = dict.fromkeys(ROW_KEYS, number) | {"kink_share_by_layer": by, "flips_by_layer": by, "converged": True}
    row |= {"undefined": ["u"], "unseen": ["u"], "selection": [["0", "relu", 1]], "data": "last batch", "penalty": "in"}
    del row["error"]
    operation = RELU | {"exact": number, "numbers": number, "returned": [["0", [number]]]}
    facts = {
        "optimizer": {"name": "SGD", "groups": [{"lr": number, "momentum": 0}], "wrapped": "Proximal"},
        "census": {"operations": [operation], "hidden": [{"kind": "k", "what": "w"}]},
        "what_if": [
            trial(name, number, number, lr=number) for name in ("as-it-is", "half-lr", "largest-stable-lr", "smooth")
        ],
        "l1": l1(
            **dict.fromkeys(
                ["norm", "zeros", "kkt_zeros", "kkt_exact", "followed", "chattering", "amplitude", "floor_measured"],
                number,
            )
        )["l1"],
        "missing": [{"what": "w", "why": "y", "line": "z"}],
        "budget": number,
        "share": number,
        "spent": number,
        "seconds": number,
        "steps": number,
        "exit_code": number,
    }
    return facts, [row | {"kind": kind} for kind in ("step", "stability", "trace", "chatter") for _ in range(25)]


def sound(found):
    for finding in found:
        assert finding.title and finding.evidence and finding.level in ("problem", "note", "fine")
        assert "None" not in words(finding).replace("None of these", "")
        json.dumps(finding.to_dict(), allow_nan=False)
        assert str(finding)
    assert len({finding.id for finding in found}) == len(found)
    assert text(found)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(FACTS, ROWS)
def test_nothing_that_is_stored_makes_them_raise(facts, rows):
    for finding in findings(facts, rows):
        json.dumps(finding.to_dict(), allow_nan=False)
        assert str(finding)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats() | st.sampled_from(["nan", "inf", 0, 1, 5e-324, 1.7e308, -1.0]), st.data())
def test_any_subset_of_a_full_record(number, data):
    facts, rows = whole(number)
    facts = {k: v for k, v in facts.items() if k not in data.draw(st.sets(st.sampled_from(sorted(facts))))}
    gone = data.draw(st.sets(st.sampled_from(ROW_KEYS)))
    rows = [{k: v for k, v in row.items() if k not in gone} for row in rows]
    sound(findings(facts, rows))


@pytest.mark.parametrize("broken", [None, [], "text", 3])
def test_facts_and_rows_of_another_kind(broken):
    assert findings(broken, [broken, {"kind": "step"}]) is not None


def test_a_record_reads_what_it_holds():
    record = Record(SGD, [*sharp(0.5), *steps(1)])
    assert record.plain and record.lr == 0.5 and len(record.measured) == 2
    assert not Record({"optimizer": {"name": "SGD", "groups": [{"lr": 1}, {"lr": 2}]}}, []).descent


@pytest.mark.parametrize(
    ("optimizer", "threshold", "own"),
    [
        (SGD["optimizer"], 4.0, False),
        (SGD["optimizer"], None, False),
        ({"name": "SGD", "groups": [{"lr": 1, "momentum": 0.5}, {"lr": 1, "momentum": 0.9}]}, None, True),
        ({"name": "ASGD"}, 4.0, False),  # each step has one threshold on κ
        ({"name": "Adam"}, None, True),
        ({}, None, True),
    ],
)
def test_sharpness_is_in_the_optimisers_own_metric_where_no_threshold_is_on_the_step(optimizer, threshold, own):
    rows = steps(3, curvature=1.0, threshold=threshold) + sharp(*[0.3] * 3)
    assert Record({"optimizer": optimizer}, rows).preconditioned is own
    edge = of(findings({"optimizer": optimizer}, rows), "edge-of-stability")
    assert edge.title.startswith("Preconditioned sharpness" if own else "Sharpness")
    assert not Record({"optimizer": optimizer}, rows[:3]).preconditioned  # where no ratio was measured

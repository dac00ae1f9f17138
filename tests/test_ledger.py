"""Relations, intervals, verdicts and rows, without any experiment."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from nonsmooth.ledger import (
    ABSTRACT,
    CLAIMS,
    Evidence,
    Verdict,
    at_least,
    at_most,
    claim,
    equals,
    read_rows,
    sentence_verdict,
    where,
    write_rows,
)

TIGHT = 1e-9 * np.array([-1.0, 0.0, 1.0])  # three samples whose interval is as good as a point
WIDE = np.array([-1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("relation", "measured", "predicted", "verdict"),
    [
        (equals(0.1), 1.05 + TIGHT, 1.0, "supported"),
        (equals(0.1), 1.2 + TIGHT, 1.0, "refuted"),
        (equals(0.1), 1.0 + WIDE, 1.0, "undecided"),
        (equals(0.1), -1.05 + TIGHT, -1.0, "supported"),
        (equals(0.1), 0.05 + TIGHT, 0.0, "supported"),
        (equals(0.1, absolute=True), 100.05 + TIGHT, 100.0, "supported"),
        (equals(0.1, absolute=True), 100.2 + TIGHT, 100.0, "refuted"),
        (equals(0.0), [3.0], 3.0, "supported"),
        (at_most(), 0.9 + TIGHT, 1.0, "supported"),
        (at_most(), 1.1 + TIGHT, 1.0, "refuted"),
        (at_most(0.2), 1.1 + TIGHT, 1.0, "supported"),
        (at_most(), 1.0 + WIDE, 1.0, "undecided"),
        (at_least(), 1.1 + TIGHT, 1.0, "supported"),
        (at_least(), 0.9 + TIGHT, 1.0, "refuted"),
        (equals(0.1), [math.inf], 1.0, "refuted"),
        (at_least(), [math.inf], 1.0, "supported"),
        (equals(0.1), [math.inf, math.inf], 1.0, "refuted"),
        (equals(0.1), [math.nan], 1.0, "undecided"),
        (at_least(), [0.0, 0.0, 0.0], 0.0, "supported"),
        (at_least(strict=True), [0.0, 0.0, 0.0], 0.0, "refuted"),
        (at_least(strict=True), 0.1 + TIGHT, 0.0, "supported"),
        (at_least(strict=True), WIDE, 0.0, "undecided"),
        (at_most(strict=True), [2.0], 2.0, "refuted"),
        (at_most(strict=True), [math.nan], 2.0, "undecided"),
    ],
)
def test_a_verdict_is_computed_from_the_whole_interval(relation, measured, predicted, verdict):
    assert Evidence("m", [measured], [predicted], ["case"]).verdict(relation) == verdict


def test_one_refuted_case_refutes_and_one_undecided_case_leaves_open():
    cases = [1.0 + TIGHT, 2.0 + TIGHT, 1.0 + WIDE]
    verdict = lambda *which: Evidence("m", [cases[i] for i in which], 1.0, ["c"] * len(which)).verdict(equals(0.1))  # noqa: E731
    assert verdict(0, 0) is Verdict.SUPPORTED
    assert verdict(0, 2) is Verdict.UNDECIDED
    assert verdict(0, 1, 2) is Verdict.REFUTED


@pytest.mark.parametrize("cases", [1, 4])
def test_the_intervals_of_all_cases_cover_together_in_95_of_100_repetitions(cases):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(1000):
        evidence = Evidence("m", rng.standard_normal((cases, 6)), 0.0, ["c"] * cases)
        covered.append(np.all(np.abs(evidence.means) <= evidence.half_widths))
    assert 0.935 < np.mean(covered) < 0.975
    narrow = [np.all(abs(rng.standard_normal((cases, 6)).mean(1)) <= 1.96 / 6) for _ in range(1000)]
    assert np.mean(narrow) < 0.9, "a normal interval of unit variance over n, the mutant, covers too seldom"


def test_margins_are_in_units_of_the_prediction():
    assert equals(0.1).margin(210.0, 200.0) == pytest.approx(0.05)
    assert at_most(0.1).margin(210.0, 200.0) == pytest.approx(0.05)
    assert at_least(0.1).margin(190.0, 200.0) == pytest.approx(0.05)


def test_evidence_needs_a_label_for_each_case():
    with pytest.raises(ValueError, match=r"Evidence: 2 case\(s\) do not fit measurements of shape \(1, 3\)\."):
        Evidence("m", [[1.0, 2.0, 3.0]], 1.0, ["a", "b"])


def declare(**changes):
    return claim(
        **{
            "id": "t/x",
            "says": "s",
            "source": "-",
            "sentence": 1,
            "relation": equals(0.1),
            "mutants": {"m": {"x": 2.0}},
        }
        | changes
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence": 6}, "claim 't/x': sentence must be one of 1, 2, 3, 4, 5, not 6."),
        ({"mutants": {}}, "claim 't/x' has no mutant; name a condition under which it is false."),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        declare(**changes)
    assert "t/x" not in CLAIMS


def test_a_row_says_all_that_is_needed_to_judge_and_rerun():
    @declare(full={"n": 50})
    def experiment(x: float = 1.0, n: int = 5, master: int = 0) -> Evidence:
        return Evidence("x", [np.full(n, x)], [1.0], ["x"], holds_when="always")

    with pytest.raises(ValueError, match=r"claim 't/x' is declared twice; give each its own id\."):
        declare()
    this = CLAIMS.pop("t/x")
    row, _ = this.run(full=True, master=3)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert row["verdict"] == "supported" and row["mutants"] == [{"what": "m", "verdict": "refuted"}]
    assert row["parameters"] == {"x": 1.0, "n": 50, "master": 3} and row["seeds"] == 50
    assert row["command"] == "nonsmooth reproduce --only 't/x' --full --seed 3"
    assert row["slack"] == pytest.approx(0.1)
    assert {"python", "numpy", "jax", "nonsmooth"} <= set(row["versions"])


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([1, 1, 1, 1], "every η tried, 1 to 4"),
        ([0, 0, 0, 0], "nowhere for η from 1 to 4"),
        ([1, 1, 0, 0], "η ≤ 2 (fails at 3)"),
        ([0, 1, 1, 1], "η ≥ 2 (fails at 1)"),
        ([0, 1, 1, 0], "η from 2 to 3 (fails at 1 and 4)"),
    ],
)
def test_where_puts_a_scan_into_words(mask, words):
    assert where("η", [1, 2, 3, 4], mask) == words


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([], "not tested yet"),
        (["limits supported"], "only its limits are tested"),
        (["for supported"], "holds"),
        (["for supported", "limits supported"], "holds, within limits"),
        (["for supported", "limits refuted"], "holds"),
        (["for supported", "for undecided"], "holds, not all decided"),
        (["for supported", "for undecided", "limits supported"], "holds within limits, not all decided"),
        (["for undecided"], "undecided"),
        (["for supported", "for refuted"], "holds in part"),
        (["for refuted", "for undecided"], "does not hold as said"),
    ],
)
def test_sentences_are_judged_by_their_claims(rows, verdict):
    made = [dict(zip(("bears", "verdict"), row.split()), sentence=2) for row in rows]
    assert sentence_verdict(made, 2) == verdict
    assert sentence_verdict(made, 1) == "not tested yet"


def test_rows_survive_the_disk_and_a_failed_write_leaves_the_old_ones(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"claim": "a", "says": "‖w‖₁ ≤ 1\n\u2028"}, {"claim": "b", "measured": [1e-17, None]}]
    write_rows(file, rows)
    assert read_rows(file) == rows
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(file, [{"claim": "c", "measured": math.nan}])
    assert read_rows(file) == rows


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"rows.jsonl: line 2 is not JSON \(.*\); delete that line, then run the claim again\."),
        ("[1]", r"rows.jsonl: line 2 is not a row of the ledger; delete that line, then run the claim again\."),
    ],
)
def test_a_broken_file_of_rows_is_named_with_its_line(tmp_path, line, message):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"claim": "a"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_rows(file)


def test_the_abstract_has_five_sentences():
    assert list(ABSTRACT) == [1, 2, 3, 4, 5]

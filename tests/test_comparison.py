"""Where two runs part: the step, the layer, the kink, the loss; and what cannot be compared is said."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from nonsmooth.torch.comparison import Comparison, compare, write_comparison
from nonsmooth.torch.run_report import read_run
from test_report import HOSTILE, Seen
from test_run_report import FINDINGS, drawn, lines_of, plain, watch


def trace(t, loss=1.0, **weights):
    return {"step": t, "kind": "trace", "loss": loss, "weights": weights}


def pieces(t, *digests):
    return {
        "step": t,
        "kind": "step",
        "loss": 1.0,
        "selection": [[f"layer{k}", "relu", d] for k, d in enumerate(digests)],
    }


@pytest.fixture
def two(tmp_path):
    """Makes a comparison from the rows, and maybe the facts, of two runs."""

    def make(a, b, facts_a=None, facts_b=None):
        for name, rows, facts in (("a", a, facts_a), ("b", b, facts_b)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            (tmp_path / name / "run.json").write_text(json.dumps(facts or {}))
        return compare(tmp_path / "a", tmp_path / "b")

    return make


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two real runs, the second of which has a weight of layer 2 moved after step 61."""
    root = tmp_path_factory.mktemp("runs")
    return watch(root / "first", lr=0.3), watch(root / "second", lr=0.3, parts_at=61)


# --- where they part -------------------------------------------------------------------------------------------------


def test_two_real_runs_part_where_one_was_disturbed(folders):
    found = compare(*folders)
    assert (found.equal, found.weights, found.layer) == (60, 61, "2")
    step, layer, operation = found.kink
    assert step == 62 and layer in ("3", "5") and operation == "relu"
    assert not found.same_weights
    assert found.loss[0] == 62  # the loss of step 61 was taken before it
    assert found.compared == (120, 60, 120)
    assert found.settings == ()
    assert str(found).splitlines()[1] == "  The weights part between step 60 and 61: layer 2 is the first that differs."


def test_a_run_and_itself_never_part(folders):
    found = compare(folders[0], folders[0])
    assert (found.weights, found.equal, found.kink, found.loss) == (None, 120, None, None)
    assert found.a != found.b
    assert found.sentences == (
        "The weights never part: they are equal, layer by layer, at all 120 common steps.",
        "The same pieces were active before all 60 common measured steps.",
        "The losses stay within 10⁻³ of each other at all 120 common steps.",
    )


def test_the_first_layer_in_the_models_order_not_in_that_of_names(two):
    a = [trace(1, z=1, b=1, a=1), trace(2, z=1, b=2, a=2)]
    b = [trace(1, z=1, b=1, a=1), trace(2, z=1, b=3, a=3)]
    found = two(a, b)
    assert (found.equal, found.weights, found.layer) == (1, 2, "b")


def test_common_steps_alone_count(two):
    found = two([trace(t, w=0) for t in (10, 20, 30)], [trace(t, w=t == 30) for t in (5, 10, 15, 30)])
    assert (found.equal, found.weights, found.compared[0]) == (10, 30, 2)
    assert "between step 10 and 30" in str(found)


def test_rows_out_of_order_are_compared_in_order(two):
    found = two([trace(3, w=9), trace(1, w=0), trace(2, w=0)], [trace(t, w=0) for t in (1, 2, 3)])
    assert (found.equal, found.weights) == (2, 3)


def test_runs_that_differ_from_the_first_row_on(two):
    found = two([trace(1, 1.0, w=0)], [trace(1, 1.0 + 1e-12, w=1)])
    assert (found.equal, found.weights, found.same_start) == (None, 1, False)
    assert "from the first common step on, step 1" in str(found)
    assert "Whether they began alike is not in the rows." in str(found)
    found = two([trace(1, 1.0, w=0)], [trace(1, 1.0, w=1)])
    assert found.same_start and "so they seem to have begun alike." in str(found)
    assert not two([trace(t, w=t // 2) for t in (1, 2)], [trace(t, w=0) for t in (1, 2)]).same_start


def test_layers_that_only_one_run_has(two):
    found = two([trace(1, w=0, v=1)], [trace(1, w=0, u=1, s=2)])
    assert (found.weights, found.layer) == (1, "v")
    assert found.remarks == ("Only a has the layer v.", "Only b has the layers u, s.")


def test_the_first_kink_in_the_order_of_the_run(two):
    a = [pieces(2, 1, 1, 1), pieces(4, 1, 2, 3)]
    b = [pieces(2, 1, 1, 1), pieces(4, 1, 7, 8)]
    assert two(a, b).kink == (4, "layer1", "relu")
    assert two(a, b).operations is None
    assert "whose active pieces differ before step 4, of 2 common measured steps." in str(two(a, b))


@pytest.mark.parametrize(
    ("a", "b", "operations", "said"),
    [
        ([["1", "relu", 1], ["3", "max", 2]], [["3", "max", 9]], (2, 1, ("1", "relu"), ("3", "max")),
         "The runs have other operations: kink 1 is relu in layer 1 in a and max in layer 3 in b, before step 2."),
        ([["1", "relu", 1]], [["1", "abs", 1]], (2, 1, ("1", "relu"), ("1", "abs")),
         "The runs have other operations: kink 1 is relu in layer 1 in a and abs in layer 1 in b, before step 2."),
        ([["0", "abs", 1], ["1", "relu", 1]], [["0", "abs", 2]], (2, 2, ("1", "relu"), None),
         "The runs have other operations: kink 2 is relu in layer 1 in a and there is none in b, before step 2."),
        ([["0", "abs", 1]], [["0", "abs", 1], ["", "relu", 1]], (2, 2, None, ("", "relu")),
         "The runs have other operations: kink 2 is relu in b and there is none in a, before step 2."),
        ([["1", "relu", 1]], [], (2, 1, ("1", "relu"), None),
         "b has no kinks at all before step 2; a has 1 operation with kinks, first relu in layer 1."),
        ([], [["1", "relu", 1], ["2", "abs", 1]], (2, 1, None, ("1", "relu")),
         "a has no kinks at all before step 2; b has 2 operations with kinks, first relu in layer 1."),
    ],
)  # fmt: skip
def test_other_operations_are_not_other_pieces(two, tmp_path, a, b, operations, said):
    found = two(*([pieces(2) | {"selection": selection}] for selection in (a, b)))
    assert (found.kink, found.operations) == (None, operations) and found.sentences[1] == said
    page = plain(write_comparison(tmp_path / "a", tmp_path / "b", tmp_path / "ab.html").read_text(encoding="utf-8"))
    assert "Kinks: they part" in page and "pieces differ" not in page


def test_few_common_measured_steps_are_said_and_the_checksums_called_in(two):
    a, b = ([trace(t, w=t == 5 and k) for t in range(1, 9)] + [pieces(2, 1), pieces(7, k)] for k in (1, 2))
    few = " Only 2 measured steps in common; by the checksums of 8 common steps the weights part between step 4 and 5."
    assert two(a, b).sentences[1].endswith("differ before step 7, of 2 common measured steps." + few)
    assert "checksums" not in two(a[:-2], b[:-2]).sentences[1]
    many = [pieces(t, 1) for t in range(10, 20)]
    assert "checksums" not in two(a + many, b + many).sentences[1]


def test_a_curve_of_one_point_is_a_marker_with_its_step(two, tmp_path):
    step = {"kind": "step", "loss_after": 1.0, "kink_share": "nan"}
    two([step | {"step": 4}, step | {"step": 6, "loss_after": "nan"}], [step | {"step": t} for t in (2, 4)])
    page = write_comparison(tmp_path / "a", tmp_path / "b", tmp_path / "ab.html").read_text(encoding="utf-8")
    lines = {name: line["style"] for name, line in lines_of(page, "loss-1").items()}
    assert lines == {"a": "markers", "b": "line"}
    assert "a has one point, at step 4." in plain(page) and "b has one point" not in plain(page)


def test_other_pieces_at_equal_weights_mean_other_data(two):
    a, b = ([trace(t, w=0) for t in (1, 2, 3)] + [pieces(3, d)] for d in (1, 2))
    found = two(a, b)
    assert found.same_weights and "so the data or the random numbers differ" in str(found)
    b[2] = trace(3, w=1)  # the weights after step 3 tell nothing of the pieces before it
    assert two(a, b).same_weights
    b[1] = trace(2, w=1)
    assert not two(a, b).same_weights


@pytest.mark.parametrize(
    ("a", "b", "parts"),
    [
        (1.0, 1.0009, False),
        (1.0, 1.0011, True),
        (-1e-9, 1e-9, True),
        (0.0, 0.0, False),
        ("nan", "nan", False),
        ("inf", "inf", False),
        ("nan", 1.0, True),
        ("inf", "-inf", True),
        (1.0, "inf", True),
    ],
)
def test_when_losses_differ(two, a, b, parts):
    found = two([trace(1), trace(2, a)], [trace(1), trace(2, b)])
    assert (found.loss is not None) == parts
    assert not parts or found.loss[0] == 2


def test_without_a_traced_loss_the_probes_are_compared(two):
    a, b = ([trace(1, None, w=0), pieces(2, 1) | {"loss": loss}] for loss in (1.0, 2.0))
    assert two(a, b).loss == (2, 1.0, 2.0)


def test_what_is_lacking_is_said(two):
    found = two([trace(1)], [trace(2)])
    assert found.compared == (0, 0, 0)
    assert found.sentences == (
        "Weights: no common step has the checksums of both.",
        "Kinks: no common measured step says which pieces were active.",
        "Loss: no common step has the loss of both.",
    )
    failed = [pieces(2, 1) | {"error": "RuntimeError: no"}]
    assert two(failed, [pieces(2, 3)]).compared[1] == 0


def test_settings_that_differ(two):
    groups = [
        {"optimizer": {"name": "SGD", "groups": [{"lr": lr, "momentum": 0.9}]}, "torch": "2.6"} for lr in (0.1, 0.2)
    ]
    found = two([], [], groups[0] | {"command": ["a.py"]}, groups[1] | {"threads": 2})
    assert found.settings == (("lr", "0.1", "0.2"), ("command", "a.py", ""), ("threads", "", "2"))
    assert "lr       0.1  |  0.2" in str(found)


def test_a_comparison_is_a_value():
    found = Comparison("a", "b", 2, 1, "w")
    assert found == replace(found) and hash(found) == hash(replace(found))
    assert str(found) == found.text


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_of_both(folders, tmp_path):
    page = write_comparison(*folders, tmp_path / "both.html").read_text(encoding="utf-8")
    words = plain(page)
    assert "first against second" in words
    assert "Weights: they part The weights part between step 60 and 61" in words
    assert "Nothing that was written down" in words
    run = read_run(folders[1])
    lines = lines_of(page, "loss-1")
    assert list(lines) == ["first", "second"]
    assert lines["second"]["y"] == pytest.approx([row["loss"] for row in run.of("trace")], rel=1e-7)
    ratios = lines_of(page, "threshold-2")["second"]["y"]
    assert ratios == pytest.approx([row["curvature"] * 0.3 / 2 for row in run.of("step")], rel=1e-7)
    assert [plot["y"]["title"] for plot in drawn(page)][2:5] == ["κ", "kink part of κ", "kink share"]
    assert words.count(FINDINGS[0]["title"]) == 2
    ids = [attrs["id"] for _, attrs in Seen(page).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_a_page_of_little(two, tmp_path):
    two([trace(1, 2.0, w=0)], [])
    words = plain(write_comparison(tmp_path / "a", tmp_path / "b", tmp_path / "ab.html").read_text(encoding="utf-8"))
    assert "Weights: not compared" in words and "Not measured in b." in words
    assert "Neither run measured: kink share." in words
    assert words.count("No finding was made.") == 2


def test_hostile_words_are_no_markup(two, tmp_path):
    findings = [dict.fromkeys(("title", "evidence", "why", "do", "lines", "unit", "level"), HOSTILE)]
    facts = [{"loss": f"{k}{HOSTILE}", "findings": findings, "command": [HOSTILE]} for k in "ab"]
    rows = [[trace(1, **{HOSTILE: k}), pieces(1, 1) | {"selection": [[HOSTILE, HOSTILE, k]]}] for k in (1, 2)]
    two(*rows, *facts)
    page = write_comparison(tmp_path / "a", tmp_path / "b", tmp_path / "ab.html").read_text(encoding="utf-8")
    seen = Seen(page)
    assert not [tag for tag, _ in seen.tags if tag in ("img", "iframe", "object", "embed", "base")]
    assert not [attr for _, attrs in seen.tags for attr in attrs if attr.startswith("on") or attr == "src"]
    links = [attrs["href"] for _, attrs in seen.tags if "href" in attrs]
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert page.count("&lt;img src=x") >= 8


def test_a_folder_that_holds_no_run_is_one_sentence(folders, tmp_path):
    with pytest.raises(ValueError, match=re.escape("holds no watched run (neither rows.jsonl nor run.json)")):
        compare(folders[0], tmp_path)
    with pytest.raises(ValueError, match="cannot be written"):
        write_comparison(*folders, tmp_path)

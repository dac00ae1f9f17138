"""Hostile input: some hundred cases of each reader by `fuzz`, and each thing that was found, as it is answered now."""

from __future__ import annotations

import json
import pickle
import random
import re
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import fuzz
from nonsmooth.cli import app
from nonsmooth.config import read_config, read_sweep
from nonsmooth.ledger import from_json, read_rows
from nonsmooth.pages.numbers import readable
from nonsmooth.report import render, write_report
from nonsmooth.report.cases import relation_of
from nonsmooth.report.rows import check_rows
from nonsmooth.sweeps import open_sweep
from nonsmooth.torch import lam_path
from nonsmooth.torch.comparison import write_comparison
from nonsmooth.torch.findings import findings
from nonsmooth.torch.run_report import read_run, render_run, write_run_report

CASES = {
    "config": 200, "sweep-config": 200, "rows": 300, "ledger-page": 200, "run": 200, "run-page": 100, "comparison": 100,
    "findings": 150, "open-sweep": 40, "sweep-again": 6, "proximal": 60, "sparsity": 150, "schedule": 100,
    "lam-path": 200, "terminal": 100, "cifar": 200,
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _light_pages():
    with fuzz.without_plotly():
        yield


@pytest.mark.parametrize("reader", CASES)
def test_hostile_cases(reader):
    for seed in range(CASES[reader]):
        fuzz.check(reader, seed)


def raises(error):
    def read():
        raise error

    return read


@pytest.mark.parametrize(
    "broken",
    [
        raises(KeyError("a")),
        raises(RecursionError("too deep")),
        raises(OverflowError("too large")),
        raises(ValueError("no name in it")),
        raises(ValueError("a.toml: two\nlines")),
        raises(ValueError("a.toml: " + "x" * 5000)),
        raises(UnicodeDecodeError("utf-8", b"a.toml", 0, 1, "a.toml")),
        lambda: float("nan") if fuzz.np.float64(1e308) * 10 else None,
    ],
)
def test_a_reader_that_does_otherwise_is_found(broken):
    with pytest.raises((AssertionError, LookupError, RecursionError, OverflowError, RuntimeWarning)):
        fuzz.answered(broken, "a.toml")


def test_a_hang_is_found(monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    with pytest.raises(fuzz.Hang):
        fuzz.answered(lambda: time.sleep(30))


def test_a_state_that_is_half_loaded_is_found():
    class Half:
        t = 0

        def state_dict(self):
            return {"t": self.t}

        def load_state_dict(self, state):
            self.t = state["t"]
            raise ValueError("refused.")

    with pytest.raises(AssertionError, match="changed"):
        fuzz.load_into(Half(), {"t": 3})


# --- configs ---------------------------------------------------------------------------------------------------------

RULE = '\nrule = {name = "Gradient", lr = 0.1}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 5000, "is nested too deeply"),
        ("a = " + "9" * 5000, r"is not TOML \(Exceeds the limit"),
        ('objective = {name = "random_least_squares", noise = 1e308}' + RULE, "overflow"),
        ('objective = {name = "random_least_squares", n = 2147483648}' + RULE, "more than 1e.08 entries"),
        ('objective = {name = "subgradient_hard_instance", n = 20000}' + RULE, "more than 1e.08 entries"),
        (
            'objective = {name = "Absolute"}\nrule = {name = "Gradient", lr = {linspace = [-inf, inf, 3]}}',
            "invalid value",
        ),
        (f'"{"x" * 5000}" = 1', "unknown section 'x{159}…'; use"),
        (f'objective = {{name = "Absolute"}}\nrule = {{name = "{"x" * 5000}"}}', "there is no rule"),
        ('objective = {name = "__import__"}' + RULE, "there is no objective '__import__'"),
        ('objective = {name = "objective.os.system"}' + RULE, "there is no objective"),
    ],
)
def test_a_config_is_refused_in_a_sentence(tmp_path, text, said):
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    for read in (read_config, read_sweep):
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: .*{said}") as refused:
            read(path)
        assert len(str(refused.value)) < 1000 and "\n" not in str(refused.value)


# --- JSON ------------------------------------------------------------------------------------------------------------

DEEP = b"[" * 100_000 + b"]" * 100_000


def test_what_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "verdicts.jsonl").write_bytes(b'{"claim": "a"}\n' + DEEP)
    with pytest.raises(ValueError, match=r"verdicts.jsonl: line 2 is not JSON \(it is nested deeper than 50 levels\)"):
        read_rows(tmp_path / "verdicts.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(DEEP + b"\n{}")
    with pytest.raises(ValueError, match=r"rows.jsonl: line 1 is not JSON \(it is nested"):
        read_run(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(b"")
    (tmp_path / "run.json").write_bytes(b'{"steps": ' + DEEP + b"}")
    with pytest.raises(ValueError, match=r"run.json: is not JSON \(it is nested"):
        read_run(tmp_path)
    fuzz.write_the_ledger(json.dumps(fuzz.ROW).encode() + b"\0\0" + DEEP)


def test_the_nests_that_are_allowed_are_counted():
    nest = lambda n: "[" * n + "]" * n  # noqa: E731
    assert from_json(nest(50)) and from_json('{"a":' * 50 + "1" + "}" * 50)
    for wrong in (nest(51), '{"a":' * 51 + "1" + "}" * 51, nest(700)):
        with pytest.raises(ValueError, match="deeper than 50"):
            from_json(wrong)


def test_a_number_that_no_float_holds_is_infinite(tmp_path):
    assert from_json("[" + "9" * 309 + "]") == [float("inf")] and from_json("-" + "9" * 400) == -float("inf")
    assert from_json("1" + "0" * 299) == 10**299
    for steps in ("9" * 301, "9" * 4301):
        (tmp_path / "run.json").write_text(f'{{"steps": {steps}, "seconds": {steps}}}')
        assert write_run_report(tmp_path).exists()


@pytest.mark.parametrize(
    "word", ["1e" + "9" * 5000, "1e" + "1" * 200_000 + "x", "1" * 200_000 + "x", "1e1" + ".1" * 99_999]
)
def test_words_of_many_digits_take_no_time(word):
    """The exponent was turned into a number, and tried at each of its digits."""
    began = time.perf_counter()
    assert readable(word) == word
    assert time.perf_counter() - began < 1


def test_half_a_surrogate_pair_is_written_as_a_mark(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"step": 1, "kind": "trace", "error": "\\ud800"}')
    (tmp_path / "run.json").write_text('{"loss": "\\ud800 loss"}')
    assert "? loss" in write_run_report(tmp_path).read_text(encoding="utf-8")
    (tmp_path / "verdicts.jsonl").write_text(json.dumps(fuzz.ROW | {"says": "\ud800 it"}))
    assert "? it" in write_report(tmp_path).read_text(encoding="utf-8")


def test_a_tolerance_that_is_none_is_no_relation():
    """A negative one made a strip of no width, and divided by it."""
    for size in ("-5 %", "inf %", "nan"):
        row = fuzz.ROW | {"relation": f"equals the prediction within {size}", "slack": None, "measured": [1.0, 2.0]}
        row |= {"noise": [0.0, 0.0]}
        assert relation_of(row) is None and render([row], {})


def test_a_mutant_has_one_of_the_verdicts():
    """The terminal took any other for its markup."""
    with pytest.raises(ValueError, match="mutant without 'what' and 'verdict'"):
        check_rows([fuzz.ROW | {"mutants": [{"what": "a", "verdict": "[/]"}]}])


def test_a_step_of_any_length_is_bounded():
    """Its square was a power, which raises where a product is infinite."""
    rows = [row | {"length": 1e200} if row["step"] == 3 else row for row in fuzz.RUN]
    assert "What L-smooth theory promised" in render_run({}, rows)


def test_a_selection_that_is_false_is_no_selection(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"step": 1, "kind": "step", "selection": false}')
    with pytest.raises(ValueError, match=r"rows.jsonl: row 1 .* \('selection' of the wrong kind\)"):
        read_run(tmp_path)


def test_findings_take_rates_that_are_none():
    facts = fuzz.FACTS | {"optimizer": {"name": "SGD", "groups": [{"lr": [0.1]}, {"lr": {}}]}}
    assert findings(facts, fuzz.RUN)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(fuzz.WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*fuzz.ROW, *fuzz.FACTS, "a"]), inner),
    max_leaves=8,
)


@given(PLAIN, st.sampled_from(sorted(fuzz.ROW)), st.sampled_from(sorted(fuzz.FACTS)))
@settings(derandomize=True, max_examples=20, deadline=None, database=None)
def test_any_plain_value_in_a_row_and_a_fact(value, field, fact):
    for call in (
        lambda: render([fuzz.ROW | {field: value}], {}),
        lambda: render_run(fuzz.FACTS | {fact: value}, fuzz.RUN),
    ):
        page = fuzz.answered(lambda call=call: call())
        if page is not None:
            fuzz.inert(page)


# --- pages and the terminal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", fuzz.WORDS[:6])
def test_hostile_names_are_words_on_every_page(word, tmp_path):
    """As a claim, a layer, a setting, a script and the name of a folder."""
    row = fuzz.ROW | dict.fromkeys(("claim", "says", "source", "what", "relation", "holds_when", "command"), word)
    row |= {"cases": [word, word], "mutants": [{"what": word, "verdict": "supported"}], "parameters": {word: word}}
    row |= {"versions": {word: word}, "finished": word}
    titled = {"title": word, "log": False}
    figure = {
        "x": titled,
        "y": titled,
        "lines": [fuzz.LINES[0] | {"name": word}],
        "heat": None,
        "title": word,
        "says": word,
    }
    table = {"kind": "table", "columns": [word], "rows": [[word]], "title": word, "says": word}
    fuzz.inert(render([row], {word: [figure, table]}))
    folder = tmp_path / word.replace("/", "_")
    rows = [r | {"kink_share_by_layer": {word: 0.5}, "selection": [[word, word, word]]} for r in fuzz.RUN]
    rows += [{"step": 9, "kind": word, "error": word}, {"step": 9, "kind": "trace", "weights": {word: word}}]
    facts = dict.fromkeys(("loss", "began", "ended", "torch", "crashed", "device"), word) | {"command": [word, "a.py"]}
    facts |= {"model": {"name": word}, "optimizer": {"name": word, "groups": [{word: word}], "wrapped": word}}
    facts |= {key: [dict.fromkeys(fuzz.FACTS[key][0], word)] for key in ("findings", "missing", "what_if")}
    facts["census"] = {
        "operations": [dict.fromkeys(fuzz.FACTS["census"]["operations"][0], word)],
        "hidden": [{"what": word}],
    }
    fuzz.inert(render_run(facts, rows))
    for name in ("a", folder.name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / name / "run.json").write_text(json.dumps(facts | {"loss": name}))
    fuzz.inert(write_comparison(tmp_path / "a", folder, tmp_path / "both.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "opened", ["<img src=x>", "<script>1</script>", '<a href="javascript:1">', '<p a="" onmouseover="pwned()">']
)
def test_markup_of_the_input_is_found(opened):
    page = render([], {})
    fuzz.inert(page)
    with pytest.raises(AssertionError):
        fuzz.inert(page.replace("</main>", f"{opened}</main>"))


def test_the_command_line_answers_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, raw in (("verdicts.jsonl", DEEP), ("rows.jsonl", DEEP + b"\n1")):
        Path(name).write_bytes(raw)
        commands = [["report", "."]] + (
            [["compare", ".", "."]] if name == "rows.jsonl" else [["show", "l1/balance-law", "--out", "."]]
        )
        for command in commands:
            done = CliRunner().invoke(app, command)
            assert done.exit_code == 2 and "is not JSON" in " ".join(done.output.split()), done.output
            assert "Traceback" not in done.output and isinstance(done.exception, SystemExit)


# --- sweeps ----------------------------------------------------------------------------------------------------------


def test_a_marker_names_files_of_its_own_group_alone(tmp_path):
    """It was believed, and so /dev/zero was read to its end."""
    fuzz.swept(tmp_path)
    (marker,) = tmp_path.glob("*.shards/000001")
    whole = marker.read_text()
    for name in ("/dev/zero", "a\nb", "../../../../../../../../dev/zero", "loss/../../x"):
        marker.write_text(json.dumps(json.loads(whole) | {name: 0}))
        with pytest.raises(ValueError, match="000001: is damaged"):
            open_sweep(tmp_path, verify=True)
        with pytest.warns(UserWarning, match="Shard 1 is computed anew"):
            fuzz.swept(tmp_path)
        assert marker.read_text() == whole


@pytest.mark.parametrize("raw", [b"true", DEEP, b"[]", b"\xff"])
def test_a_description_that_is_none_is_named(tmp_path, raw):
    fuzz.swept(tmp_path)
    (at,) = tmp_path.glob("*.zarr/zarr.json")
    at.write_bytes(raw)
    with pytest.raises(ValueError, match=r"\.zarr: cannot be read \(.*zarr.json: is damaged\); sweep again"):
        open_sweep(tmp_path)
    (marker,) = tmp_path.glob("*.shards/coordinates")
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"zarr.json": fuzz.zlib.crc32(raw)}))
    with pytest.raises(ValueError, match=r"\.zarr: cannot be read \(.*\); sweep again: that mends it\.$"):
        open_sweep(tmp_path)


def test_strange_names_among_the_markers_are_passed_over(tmp_path):
    """A power of two is a digit, but no number."""
    fuzz.swept(tmp_path)
    (folder,) = tmp_path.glob("*.shards")
    (folder / "²").write_text("{}")
    assert fuzz.swept(tmp_path).finished.values.all()


# --- states ----------------------------------------------------------------------------------------------------------


def changed(state, *path, to):
    """A copy of a state with one place changed."""
    made = fuzz.copied(state)
    here = made
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = to
    return made


ENTRY = ("param_groups", 0, "proximal", 0)


@pytest.mark.parametrize(
    ("path", "to", "said"),
    [
        (("param_groups",), [], "state"),
        (("param_groups",), None, "no state of it"),
        (("param_groups", 0), 3, "no state of it"),
        (("state",), [], "no state of it"),
        (("state", 0), 1.5, "no state of it"),
        (("param_groups", 0, "proximal"), 1, "no state of it"),
        (ENTRY, None, "has no 'params'"),
        ((*ENTRY, "lam"), float("nan"), "lam must be a finite number"),
        ((*ENTRY, "lam"), 10**400, "lam must be a finite number"),
        ((*ENTRY, "lam"), "1", "lam must be a finite number"),
        ((*ENTRY, "lam"), None, "no state of it"),
        ((*ENTRY, "which"), -1, "which of the state must be a whole number"),
        ((*ENTRY, "params"), [2], r"names the parameters \[2\] of a group of 2"),
        ((*ENTRY, "params"), [-1], "names the parameters"),
        ((*ENTRY, "params"), [0, 0], "names the parameters"),
        ((*ENTRY, "params"), [True], "names the parameters"),
        ((*ENTRY, "penalty"), {}, "has no 'name'"),
        ((*ENTRY, "penalty", "name"), ["L1"], "is not known here"),
        ((*ENTRY, "penalty", "name"), "Penalty", "keeps|proximal map"),
        ((*ENTRY, "penalty", "name"), "x" * 5000, "x{159}…' that is not known"),
        ((*ENTRY, "penalty", "prox"), "mine", "keeps prox, which is no field"),
        ((*ENTRY, "penalty", "weights"), True, "no state of it|must be"),
        ((*ENTRY, "off"), {"prox": 1.0}, "not what a refit keeps"),
        ((*ENTRY, "off"), {"lam": "a"}, "lam must be a finite number"),
    ],
)
def test_a_proximal_believes_no_state(path, to, said):
    made = fuzz.proximal()
    before = repr(fuzz.plain(made.state_dict()))
    with pytest.raises((ValueError, TypeError), match=said) as refused:
        made.load_state_dict(changed(made.state_dict(), *path, to=to))
    assert len(str(refused.value)) < 400
    assert repr(fuzz.plain(made.state_dict())) == before
    made.step()
    with pytest.raises(ValueError, match="Proximal: the state has no 'param_groups'"):
        made.load_state_dict([])


def test_states_that_were_saved_are_taken():
    made, other = fuzz.proximal(), fuzz.proximal()
    other.step()
    made.load_state_dict(other.state_dict())
    assert repr(fuzz.plain(made.state_dict())) == repr(fuzz.plain(other.state_dict()))
    for build in (fuzz.controller, fuzz.schedule):
        one, two = build(), build()
        two.step()
        one.load_state_dict(two.state_dict())
        assert one.state_dict() == two.state_dict()


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("t", "3", "t of the state must be a whole number"),
        pytest.param("t", 10**5000, "t of the state must be a whole number", id="digits"),
        ("average", [0.0, 0.5], "average of the state must be a list of numbers"),
        ("average", "ab", "average of the state must be a list of numbers"),
        ("average", [0.5], "1 controlled densities, and here are 2"),
        ("fastest", [0.1], "1 controlled densities, and here are 2"),
        ("fastest", [0.1, float("nan")], "fastest of the state must be a list of numbers"),
        ("fastest", [0.1, {}], "fastest of the state must be a list of numbers"),
    ],
)
def test_a_controller_believes_no_state(name, to, said):
    made = fuzz.controller()
    before = made.state_dict()
    with pytest.raises(ValueError, match=f"^TargetSparsity: .*{said}"):
        made.load_state_dict(before | {name: to})
    assert made.state_dict() == before
    with pytest.raises(ValueError, match=f"TargetSparsity: the state has no '{name}'"):
        made.load_state_dict({k: v for k, v in before.items() if k != name})


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("t", -1, "t of the state must be a whole number"),
        ("first", [0.1, "a"], "first of the state must be a list of numbers"),
        ("first", [0.1, None], "the state is of other penalties"),
        ("first", [0.1, 0.2, 0.3], "the state is of other penalties"),
        ("first", 3, "first of the state must be a list of numbers"),
    ],
)
def test_a_schedule_believes_no_state(name, to, said):
    made = fuzz.schedule()
    before = made.state_dict(), made.get_last_lam()
    with pytest.raises(ValueError, match=f"^LambdaLam: .*{said}"):
        made.load_state_dict(before[0] | {name: to})
    assert (made.state_dict(), made.get_last_lam()) == before


def test_a_schedule_whose_factor_fails_moves_nothing():
    made = fuzz.schedule()
    before = made.state_dict(), made.get_last_lam()
    made.factor = lambda t: 1.0 if made.t < 5 else float("nan")
    with pytest.raises(ValueError, match="LambdaLam: lam must be a finite number"):
        made.load_state_dict(before[0] | {"t": 7})
    assert (made.state_dict(), made.get_last_lam()) == before


class Touches:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_path_that_is_not_whole_is_named_and_runs_nothing(tmp_path):
    train = lambda lam, state: {"state": torch.ones(1), "density": 1.0}  # noqa: E731
    lam_path(train, [0.5], folder=tmp_path)
    file = tmp_path / "000.pt"
    whole, touched = file.read_bytes(), tmp_path / "touched"
    torch.save({"row": {"lam": 0.5}, "state": Touches(touched)}, hostile := tmp_path / "hostile")
    for raw in (b"", whole[:-20], whole[20:], b"\0" * 100, hostile.read_bytes(), pickle.dumps(Touches(touched))):
        file.write_bytes(raw)
        with pytest.raises(ValueError, match=r"^lam_path: .*000\.pt is not whole \(.*\); delete it"):
            lam_path(train, [0.5], folder=tmp_path)
    for wrong in ([], {"row": {}}, {"row": {"lam": "a"}, "state": 0}, {"row": {"lam": 0.5}}):
        torch.save(wrong, file)
        with pytest.raises(ValueError, match=r"000\.pt is not whole"):
            lam_path(train, [0.5], folder=tmp_path)
    assert not touched.exists()


def test_a_case_is_a_function_of_its_seed():
    for reader, (make, _) in fuzz.READERS.items():
        first, again = (repr(make(random.Random(f"{reader} 3"))) for _ in range(2))
        assert first == again or reader == "lam-path"

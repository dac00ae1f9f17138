"""Hostile input: some hundred cases of each reader by `fuzz`, and each thing that was found, as it is answered now."""

from __future__ import annotations

import copy
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
from nonsmooth.penalties import L1
from nonsmooth.report import render, write_report
from nonsmooth.report.cases import relation_of
from nonsmooth.report.rows import check_rows
from nonsmooth.sweeps import open_sweep
from nonsmooth.torch import Proximal, lam_path, register_effective_step
from nonsmooth.torch.comparison import write_comparison
from nonsmooth.torch.effective import TABLES
from nonsmooth.torch.findings import findings
from nonsmooth.torch.run_report import read_run, render_run, write_run_report

CASES = {
    "config": 200, "sweep-config": 200, "rows": 300, "ledger-page": 200, "run": 200, "run-page": 100, "comparison": 100,
    "findings": 150, "open-sweep": 40, "sweep-again": 6, "proximal": 60, "sparsity": 150, "schedule": 100,
    "lam-path": 200, "terminal": 100, "cifar": 200, "inner": 100, "from-rule": 100, "pruning": 200,
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


# --- the states of torch's own optimisers ----------------------------------------------------------------------------


def fields(optimizer):
    """Groups and state, to the bit; the keys of a Proximal's own left out."""
    order = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [{k: v for k, v in group.items() if k not in ("params", "proximal")} for group in optimizer.param_groups]
    states = [{k: v for k, v in optimizer.state.get(p, {}).items() if k != "response"} for p in order]
    return repr(fuzz.plain((groups, states)))


def as_numbers(state):
    """As torch wrote it before its clocks were tensors."""
    for entry in state["state"].values():
        entry |= {k: v.item() for k, v in entry.items() if k in ("step", "eta", "mu", "mu_product")}


def in_precision(dtype):
    def change(state):
        for entry in state["state"].values():
            entry |= {k: v.to(dtype) for k, v in entry.items() if k != "step"}

    return change


def decayed(state):
    """As schedulers leave it: lr at 0, and by rounding below; keys of their own; beta as JSON keeps it."""
    for group, lr in zip(state["param_groups"], (0.0, -1e-19), strict=True):
        group |= {"lr": lr, "initial_lr": 0.1} | ({"betas": list(group["betas"])} if "betas" in group else {})


def on_the_last_device(state):
    for group in state["param_groups"]:
        group |= {"capturable": True} if "capturable" in group else {}


def with_more(state):
    for entry in state["state"].values():
        entry |= {"ours": torch.ones(7, 5), "note": "a"}


def of_few(state):
    """Parameters without a gradient have no state yet."""
    if not any("sum" in entry for entry in state["state"].values()):  # Adagrad's all have one
        state["state"] = {k: v for k, v in state["state"].items() if k % 2}


def as_it_is(state):
    return None


CHANGES = [as_it_is, as_numbers, in_precision(torch.float32), in_precision(torch.float64), decayed]
CHANGES += [on_the_last_device, with_more, of_few]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", fuzz.INNERS)
def test_what_torch_loads_a_proximal_loads(name, steps, dtype):
    """The same groups and state to the bit, and the same two steps after it."""
    for change in CHANGES:
        state = fuzz.stepped(fuzz.inner(name, dtype), steps).state_dict()
        with fuzz.warnings.catch_warnings():
            fuzz.warnings.simplefilter("ignore")
            change(state)
            bare, made = fuzz.inner(name, dtype), fuzz.wrapped(name, dtype)
            bare.load_state_dict(copy.deepcopy(state))
            made.load_state_dict(copy.deepcopy(state))
            assert fields(bare) == fields(made)
            made.set_lam(0.0)
            fuzz.stepped(bare, 2), fuzz.stepped(made, 2)
            assert fields(bare) == fields(made)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_rate_that_is_a_tensor_is_loaded(kind):
    p = torch.nn.Parameter(torch.ones(3))
    made = [Proximal(kind([p], lr=torch.tensor(0.1)), L1(0.1)) for _ in range(2)]
    made[1].load_state_dict(fuzz.stepped(made[0]).state_dict())
    fuzz.stepped(made[1])


def test_a_state_is_loaded_onto_the_meta_device():
    p = torch.nn.Parameter(torch.ones(3, device="meta"))
    made = Proximal(torch.optim.Adam([p]), L1(0.1))
    q = torch.nn.Parameter(torch.ones(3))
    made.load_state_dict(fuzz.stepped(Proximal(torch.optim.Adam([q]), L1(0.1))).state_dict())
    assert made.state[p]["exp_avg"].is_meta and made.state[p]["step"] == 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_what_is_frozen_may_be_of_any_kind(dtype):
    """As the weights under an adapter, for which torch has no step."""
    frozen = torch.nn.Parameter(torch.zeros(3).to(dtype), requires_grad=False)
    p = torch.nn.Parameter(torch.ones(3))
    made = Proximal(torch.optim.Adam([{"params": [frozen]}, {"params": [p, frozen.clone()]}]), L1(0.1), [p])
    made.load_state_dict(made.state_dict())
    p.grad = torch.ones(3)
    made.step()
    made.load_state_dict(made.state_dict())


def test_an_optimiser_that_was_registered_is_not_tried():
    """Its step may do anything."""

    class Counting(torch.optim.SGD):
        taken = 0

        def step(self, closure=None):
            Counting.taken += 1

    register_effective_step(Counting, lambda optimizer, group, p: 0.1)
    try:
        made = Proximal(Counting([torch.nn.Parameter(torch.ones(3))], lr=0.1), L1(0.1))
        made.load_state_dict(made.state_dict())
        assert Counting.taken == 0
    finally:
        TABLES.pop(Counting)


WIDE, NAN = torch.ones(4, 3), float("nan")
OF_0 = ("state", 0)
GROUP = ("param_groups", 0)


@pytest.mark.parametrize(
    ("name", "path", "to", "said"),
    [
        ("Adam", (*OF_0, "exp_avg"), WIDE, r"exp_avg of parameter 0 of the state is of shape \(4, 3\), and the para"),
        ("Adam", ("state", 1, "exp_avg"), torch.ones(2), r"exp_avg of parameter 1 of the state is of shape \(2,\)"),
        ("Adam", (*OF_0, "exp_avg"), torch.ones(()), r"is of shape \(\), and the parameter of shape \(3, 2\)"),
        ("Adam", (*OF_0, "exp_avg"), torch.eye(3)[:, :2].to_sparse(), "is of layout torch.sparse_coo"),
        ("Adam", (*OF_0, "exp_avg"), torch.ones(()).expand(3, 2), "has numbers that share their memory"),
        ("Adam", (*OF_0, "exp_avg"), torch.ones(()).expand(10**12), "is of shape \\(1000000000000,\\)"),
        ("Adam", (*OF_0, "exp_avg"), [1.0] * 6, "can take no step from this state"),
        ("Adam", (*OF_0, "step"), torch.tensor(-1.0), "Adam can take no step from this state .ZeroDivisionError"),
        ("Adam", (*OF_0, "step"), torch.ones(3), "step of parameter 0 of the state must be one finite number"),
        ("Adam", (*OF_0, "step"), "soon", "this is no state of it"),
        ("Adam", OF_0, {"step": torch.tensor(1.0)}, "the state has no 'exp_avg', which Adam needs"),
        ("Adam", (*GROUP, "lr"), NAN, "lr of group 0 of the state must be a number, not nan"),
        ("Adam", (*GROUP, "lr"), torch.tensor(NAN), "lr of group 0 of the state must be a number, not nan"),
        ("Adam", (*GROUP, "lr"), "0.1", "lr of group 0 of the state must be a finite number, not '0.1'"),
        ("Adam", (*GROUP, "lr"), 10**400, "lr of group 0 of the state must be a finite number"),
        ("Adam", (*GROUP, "betas"), (0.9, NAN), "betas of group 0 of the state must be a number, not nan"),
        ("Adam", (*GROUP, "betas"), (0.9,), r"betas of group 0 of the state must be 2 finite numbers, not \(0.9,\)"),
        ("Adam", (*GROUP, "foreach"), torch.ones(2), "foreach of group 0 of the state must be True, False or None"),
        ("Adam fused", (*OF_0, "exp_avg"), torch.ones(2), "exp_avg of parameter 0 of the state is of shape"),
        ("Adam fused", (*OF_0, "exp_avg"), torch.ones(4).as_strided((3, 2), (1, 1)), "that share their memory"),
        ("AdamW", (*OF_0, "exp_avg_sq"), torch.ones(2), "exp_avg_sq of parameter 0 of the state is of shape"),
        ("Adagrad fused", (*OF_0, "sum"), torch.ones(2), "sum of parameter 0 of the state is of shape"),
        ("Adagrad", OF_0, {"step": torch.tensor(1.0)}, "the state has no 'sum', which Adagrad needs"),
        ("Adam", OF_0, [], "the state of parameter 0 must be a dictionary"),
        ("ASGD", (*OF_0, "ax"), torch.ones(0, 2), r"ax of parameter 0 of the state is of shape \(0, 2\)"),
        ("SGD", (*GROUP, "momentum"), [0.9], "momentum of group 0 of the state must be a finite number"),
        ("SGD momentum", (*OF_0, "response"), "full", "can take no step from this state"),
        ("SGD fused", (*OF_0, "momentum_buffer"), torch.ones(2), "momentum_buffer of parameter 0 of the state is of"),
        ("RMSprop centered", (*OF_0, "grad_avg"), None, "can take no step from this state"),
        ("NAdam", (*OF_0, "mu_product"), torch.tensor([1.0, 2.0]), "mu_product of parameter 0 of the state must be"),
        ("ASGD", (*OF_0, "eta"), torch.ones(2), "eta of parameter 0 of the state must be one finite number"),
        ("Adadelta", ("param_groups",), [], "different number of parameter groups"),
    ],
)
def test_a_proximal_believes_no_memory(name, path, to, said):
    """It was loaded, and torch raised in the next step; torch's fused kernels wrote past the end of what is short."""
    made = fuzz.stepped(fuzz.wrapped(name))
    before = repr(fuzz.plain(fuzz.held(made)))
    state = changed(fuzz.stepped(fuzz.wrapped(name)).state_dict(), *path, to=to)
    with pytest.raises(ValueError, match=f"^Proximal: .*{said}") as refused:
        made.load_state_dict(state)
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)
    assert repr(fuzz.plain(fuzz.held(made))) == before
    fuzz.stepped(made)


def test_a_state_that_leaves_no_penalty_is_refused():
    """It was loaded, and the value of the penalties was that of none, of which torch makes no sum."""
    made = fuzz.proximal()
    state = fuzz.copied(made.state_dict())
    for group in state["param_groups"]:
        group["proximal"][0]["params"] = []
    with pytest.raises(ValueError, match=r"^Proximal: the state leaves no parameter under a penalty\.$"):
        made.load_state_dict(state)
    assert made.penalty_value() > 0


def test_the_second_step_is_tried_as_well():
    """The first makes the momentum buffer, the next one multiplies it."""
    state = fuzz.wrapped("SGD").state_dict()
    with pytest.raises(ValueError, match=r"momentum of group 0 of the state must be a finite number, not \[0.9\]"):
        fuzz.wrapped("SGD").load_state_dict(changed(state, *GROUP, "momentum", to=[0.9]))


def test_a_memory_that_is_believed_is_found(monkeypatch):
    """Without the check the same cases fail in torch's step."""
    monkeypatch.setattr(fuzz.sys.modules["nonsmooth.torch.proximal"], "check_memory", lambda *_: None)
    state = changed(fuzz.stepped(fuzz.wrapped("Adam")).state_dict(), *OF_0, "exp_avg", to=WIDE)
    with pytest.raises(RuntimeError, match="size of tensor"):
        fuzz.load_memory(fuzz.wrapped, "Proximal: ", ("Adam", 0, state))


# --- rules of the lab, pruning ---------------------------------------------------------------------------------------

ADAM, RDA = (next(name for name in fuzz.rules() if name.startswith(kind)) for kind in ("Adam ", "RDA "))


@pytest.mark.parametrize(
    ("name", "path", "to", "said"),
    [
        (ADAM, ("state",), [], "this is no state of it"),
        (ADAM, OF_0, {"step": 1}, "the state has no 'memory'"),
        (ADAM, (*OF_0, "step"), "3", "step of the state must be a whole number, 0 or above, not"),
        (ADAM, (*OF_0, "step"), -1, "step of the state must be a whole number, 0 or above, not -1"),
        (ADAM, (*OF_0, "memory"), (), r"memory of a parameter of shape \(3, 2\) is none of Adam"),
        (ADAM, (*OF_0, "memory"), None, "memory of a parameter of shape"),
        (ADAM, (*OF_0, "memory"), (*[torch.ones(5)] * 3, torch.ones(())), "memory of a parameter of shape"),
        (ADAM, (*OF_0, "memory"), (*[torch.ones(6)] * 3, 1), "memory of a parameter of shape"),
        (RDA, (*OF_0, "memory"), (*[torch.ones(6).to_sparse()] * 2, torch.ones(())), "memory of a parameter of"),
        (ADAM, (*GROUP, "lr"), NAN, "lr of the state must be a finite number, not nan"),
        (ADAM, (*GROUP, "lr"), 2**60, "lr of the state must be a finite number, not 1152921504606846976"),
        (ADAM, (*GROUP, "lr"), [0.1, 0.2], r"lr of the state must be a finite number, not \[0.1, 0.2\]"),
        (ADAM, (*GROUP, "eps"), False, "eps of the state must be a finite number, not False"),
        (ADAM, (*GROUP, "beta2"), 1.0, r"beta2 must be a number in \[0, 1\), not 1"),
        (ADAM, (*GROUP, "amsgrad"), 0.5, "amsgrad must be True or False"),
        (ADAM, (*GROUP, "lam"), "1", "lam must be a finite number, 0 or above, not '1'"),
        (ADAM, (*GROUP, "lam"), -1, "lam must be a finite number, 0 or above, not -1"),
        (ADAM, (*GROUP, "rule"), ["RDA"], r"the state is of rule \['RDA'\], and here is Adam"),
        (ADAM, GROUP, {"params": [0]}, "the state has no 'rule'"),
        (ADAM, ("param_groups",), [], "different number of parameter groups"),
    ],
)
def test_a_rule_believes_no_state(name, path, to, said):
    made = fuzz.stepped(fuzz.from_rule(name))
    before = repr(fuzz.plain(fuzz.held(made)))
    with pytest.raises(ValueError, match=f"^FromRule: .*{said}") as refused:
        made.load_state_dict(changed(fuzz.stepped(fuzz.from_rule(name)).state_dict(), *path, to=to))
    assert len(str(refused.value)) < 400
    assert repr(fuzz.plain(fuzz.held(made))) == before
    fuzz.stepped(made)


@pytest.mark.parametrize("name", fuzz.rules())
@pytest.mark.parametrize("steps", [0, 2])
def test_states_of_rules_are_taken(name, steps):
    """With a rate of 0, or by rounding below, as schedulers leave it, and with a key of theirs."""
    one = fuzz.stepped(fuzz.from_rule(name), steps)
    for lr in (None, 0.0, -1e-19):
        for group in one.param_groups:
            group |= {} if lr is None or "lr" not in group else {"lr": lr, "initial_lr": 0.1}
        two = fuzz.from_rule(name)
        two.load_state_dict(copy.deepcopy(one.state_dict()))
        assert fields(one) == fields(two)
    fuzz.stepped(two)


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("t", 1.5, "t of the state must be a whole number"),
        ("t", None, "t of the state must be a whole number"),
        ("keep", None, "keep of the state must be a list of tensors of bools"),
        ("keep", {"a": 1}, "keep of the state must be a list of tensors of bools"),
        ("keep", [1, 2, 3], "keep of the state must be a list of tensors of bools"),
        ("keep", [torch.ones(3, 2), torch.ones(4), torch.ones(())], "keep of the state must be a list of tensors"),
        ("keep", [], "the state is of parameters of other shapes"),
    ],
)
def test_a_pruning_believes_no_state(name, to, said):
    made = fuzz.pruning()
    before = repr(fuzz.plain(made.state_dict()))
    with pytest.raises(ValueError, match=f"^MagnitudePruning: {said}"):
        made.load_state_dict(made.state_dict() | {name: to})
    with pytest.raises(ValueError, match=f"MagnitudePruning: the state has no '{name}'"):
        made.load_state_dict({k: v for k, v in made.state_dict().items() if k != name})
    assert repr(fuzz.plain(made.state_dict())) == before
    made.step()


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

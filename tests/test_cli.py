"""The command line as a user meets it: in a process of its own, by what it prints and how it exits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
import xarray as xr
from rich.console import Console
from typer.testing import CliRunner

from nonsmooth import claims, cli  # noqa: F401 (the claims, before the ledger is another)
from nonsmooth.config import read_config
from nonsmooth.ledger import CLAIMS, Evidence, claim, equals, read_rows
from nonsmooth.objectives import LeastSquares
from nonsmooth.rules import Averaging, Cosine, Gradient

CONFIG = """
[objective]
name = "random_least_squares"
n = 20
p = 5

[rule]
name = "RMSProp"
lr = [1e-3, 1e-4]

[penalty]
name = "L1"
lam = { geomspace = [0.01, 10, 3] }

[run]
steps = 50
seeds = 2
"""


def nonsmooth(*arguments: str, cwd) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "nonsmooth", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_help_says_what_it_does_and_the_version_is_told(tmp_path):
    for arguments in ([], ["--help"]):
        done = nonsmooth(*arguments, cwd=tmp_path)
        assert "See, measure and mend what non-differentiability does to gradient training." in done.stdout
    done = nonsmooth("--version", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == f"nonsmooth {version('nonsmooth')}\n"


def test_claims_shows_every_claim(tmp_path):
    done = nonsmooth("claims", cwd=tmp_path)
    assert done.returncode == 0 and "l1/balance-law" in done.stdout and "not run" in done.stdout


def test_reproduce_some_then_show_report_and_strict(tmp_path):
    done = nonsmooth(
        "reproduce", "--only", "edge/huber*", "--only", "convergence/gradient-d*", "--strict", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "2 claims" in done.stdout and "not tested yet" in done.stdout
    page = tmp_path / "out" / "report.html"
    first = page.read_bytes()
    page.unlink()
    assert nonsmooth("report", "out", cwd=tmp_path).returncode == 0
    assert page.stat().st_size == pytest.approx(len(first), rel=0.01)
    shown = nonsmooth("show", "edge/huber-orbits", cwd=tmp_path)
    assert shown.returncode == 0 and "Holds when" in shown.stdout and "refuted" in shown.stdout


@pytest.fixture
def two_claims():
    """In place of the ledger: one that is supported, and one that is refuted."""
    kept = dict(CLAIMS)
    CLAIMS.clear()
    for name, x in {"l1/right": 1.0, "l1/wrong": 2.0}.items():
        made = claim(name, says="A.", source="-", sentence=2, relation=equals(0.1), mutants={"3": {"x": 3.0}})
        made(lambda x=x, master=0: Evidence("x", [x], [1.0], ["x"]))
    yield
    CLAIMS.clear()
    CLAIMS.update(kept)


def test_strict_judges_and_counts_what_was_run_alone(two_claims, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "screen", Console(width=100))
    for only, code, count in (("*", 3, 2), ("*/right", 0, 1), ("*/wrong", 3, 1)):
        done = CliRunner().invoke(cli.app, ["reproduce", "--strict", "--only", only])
        assert (done.exit_code, f"\n{count} claims in" in done.output) == (code, True)
    assert len(read_rows(tmp_path / "out" / "verdicts.jsonl")) == 2


def test_simulate_prints_means_and_writes_the_dataset(tmp_path):
    (tmp_path / "run.toml").write_text(CONFIG)
    done = nonsmooth("simulate", "run.toml", "--out", "run.zarr", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 runs × 50 steps" in done.stdout
    run = xr.open_zarr(tmp_path / "run.zarr", consolidated=False)
    assert dict(run.sizes) == {"lr": 2, "lam": 3, "seed": 2, "step": 50, "coordinate": 5}
    again = nonsmooth("simulate", "run.toml", "--out", "run.zarr", cwd=tmp_path)
    assert again.returncode == 2 and again.stderr.strip() == "run.zarr: exists already; name another place with --out."


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reproduce", "--only", "no/*"], "no claim matches 'no/*'; `nonsmooth claims` lists them."),
        (["reproduce", "--only", "edge/h*", "--out", "run.toml"], "run.toml: cannot be written (File exists)"),
        (["show", "no/claim"], "there is no claim 'no/claim'; `nonsmooth claims` lists them."),
        (["show", "l1/balance-law"], "out/verdicts.jsonl: there is no such file; run `nonsmooth reproduce` first."),
        (["report", "nowhere"], "nowhere: holds neither rows.jsonl nor verdicts.jsonl; name a folder that `nonsmooth "),
        (["audit", "."], ".: is a directory; name the script that trains."),
        (["simulate", "missing.toml"], "missing.toml: cannot be read (No such file or directory)."),
    ],
)
def test_wrong_input_ends_in_one_sentence(tmp_path, arguments, says):
    (tmp_path / "run.toml").write_text(CONFIG)
    done = nonsmooth(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in " ".join(done.stderr.split()) and "Traceback" not in done.stderr
    assert (tmp_path / "run.toml").read_text() == CONFIG


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            'name = "L1"',
            'name = "L7"',
            r"there is no penalty 'L7'; choose from Box, ElasticNet, GroupLasso, L0, L1, ",
        ),
        ('name = "RMSProp"', 'name = "__import__"', r"there is no rule '__import__'; choose from ASGD, Adadelta, "),
        ("steps = 50", "stepz = 50", r"\[run\] has no setting 'stepz'; it takes steps, seeds, "),
        ("p = 5", "q = 5", r"random_least_squares: got an unexpected keyword argument 'q'\."),
        ("lr = [1e-3, 1e-4]", "lr = -1.0", r"RMSProp: lr must be a finite number above 0, not -1\."),
        ("lr = [1e-3, 1e-4]", "lr = []", r"RMSProp: lr is empty; give at least one value\."),
        ("[0.01, 10, 3]", "[0.01, 10]", r"lam: geomspace takes \[from, to, count\]"),
        ("[0.01, 10, 3]", '["a", 10, 3]', r"lam: geomspace takes \[from, to, count\]"),
        ("[0.01, 10, 3]", "[0, 10, 3]", r"lam: geomspace takes ends above 0, not 0 and 10; see linspace\."),
        ("n = 20", "n = [10, 20]", r"random_least_squares: n must be a whole number, 1 or above, not \[10, 20\]\."),
        ("n = 20", "n = { linspace = [1, 9, 3] }", r"n must be a whole number, .* not an array of shape \(3,\)\."),
        ("n = 20", 'seed = "a"', r"random_least_squares: seed must be a whole number, 0 or above, not 'a'\."),
        ("n = 20", 'loss = "Foo"', r"there is no loss 'Foo'; choose from Logistic, Hinge\."),
        (
            "[1e-3, 1e-4]",
            '{ name = "Cosine", lr = 0.1, steps = "a" }',
            r"Cosine: steps must be a whole number, not 'a'\.",
        ),
        ("[run]", "[runs]", r"unknown section 'runs'; use objective, rule, penalty, run\."),
        ("[objective]", "[objective", r"is not TOML"),
    ],
)
def test_a_wrong_file_is_named_with_what_to_do(tmp_path, old, new, says):
    file = tmp_path / "run.toml"
    file.write_text(CONFIG.replace(old, new))
    with pytest.raises(ValueError, match=rf"^{file}: .*{says}"):
        read_config(file)


def test_parts_nest_and_data_may_stand_in_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("""
        objective = { name = "LeastSquares", X = [[1.0, 0.0], [0.0, 1.0]], y = [1.0, 2.0] }
        [rule]
        name = "Averaging"
        rule = { name = "Gradient", lr = { name = "Cosine", lr = 0.1, steps = 100 } }
    """)
    assert read_config(file) == {
        "objective": LeastSquares([[1.0, 0.0], [0.0, 1.0]], [1.0, 2.0]),
        "rule": Averaging(Gradient(lr=Cosine(lr=0.1, steps=100))),
    }


@pytest.mark.parametrize("command", [["claims"], ["show", "edge/huber-orbits"], ["reproduce", "--only", "l1/*"]])
def test_a_damaged_row_is_one_sentence(tmp_path, command):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "verdicts.jsonl").write_text('{"claim": "edge/huber-orbits"}')
    done = nonsmooth(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "the row of 'edge/huber-orbits' has no 'says'; run the claim again."
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["verdicts.jsonl"]


def test_an_interruption_ends_at_once_and_says_what_is_left(tmp_path):
    arguments = ["reproduce", "--only", "convergence/*", "--only", "l1/*", "--only", "edge/*"]  # half a minute and more
    running = subprocess.Popen(
        [sys.executable, "-m", "nonsmooth", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert "convergence/" in running.stdout.readline()
    began = time.perf_counter()
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and said == "Interrupted; out is as it was before.\n"
    assert time.perf_counter() - began < 10
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_extra_is_named_with_the_command_that_adds_it(tmp_path):
    without = "import sys; sys.modules['xarray'] = None; sys.argv = ['nonsmooth', 'claims']; "
    code = without + "from nonsmooth.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.strip() == "xarray is not installed; run: pip install 'nonsmooth[lab]'"


SCRIPT = """
import sys
import torch

print("arguments", sys.argv[1:])
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(2):
    loss = model(torch.ones(8, 3)).square().mean()
    loss.backward()
    optimizer.step()
print("not reached")
"""


def test_census_of_a_script_that_knows_nothing_of_it(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    done = nonsmooth("census", "train.py", "--lr", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "arguments ['--lr', '3']" in done.stdout and "not reached" not in done.stdout
    assert "relu" in done.stdout and "C⁰" in done.stdout and "train.py:9" in done.stdout
    missing = nonsmooth("census", "none.py", cwd=tmp_path)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1 and "none.py" in missing.stderr

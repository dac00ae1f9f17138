"""`nonsmooth sweep`: what it makes, what it goes on with, what it refuses; a file of settings executes nothing."""

from __future__ import annotations

import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

import nonsmooth as ns
from nonsmooth import cli
from nonsmooth.config import read_sweep
from nonsmooth.objectives import Absolute
from nonsmooth.rules import Gradient
from nonsmooth.sweeps import LogUniform, Random, Uniform, open_sweep

GRID = """
objective = { name = "Absolute" }
rule = { name = "Gradient", lr = [0.25, 1.0] }
run = { steps = 4, x0 = 0.375, tail = 1 }
sweep = { design = "grid", width = 1 }
"""

FUNCTION = """
function = "train"
axes = { lr = { geomspace = [0.25, 4, 3] }, seed = [0, 1] }
sweep = { width = 2 }
"""

MINE = """
from pathlib import Path
Path("imported").touch()
number = 3

def train(lr, seed):
    return {"loss": lr + seed}
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """What the command prints on a line of its own, and its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    lines = Console(width=200), Console(width=200, stderr=True)
    for name, source in {"mine": MINE, "lacks": "import not_there", "cut": "def train(lr)"}.items():
        (tmp_path / f"{name}.py").write_text(source)

    def run(config, *options):
        (tmp_path / "sweep.toml").write_text(config)
        monkeypatch.setattr(cli, "screen", lines[0])
        monkeypatch.setattr(cli, "errors", lines[1])
        done = CliRunner().invoke(cli.app, ["sweep", "sweep.toml", "--out", "runs", "--workers", "1", *options])
        return done.exit_code, done.output.strip()

    yield run
    sys.modules.pop("mine", None)


def test_a_simulation(command, tmp_path):
    assert command(GRID) == (0, "2 runs in runs: diverged_at, l1_norm, value, x_final")
    runs = open_sweep(tmp_path / "runs")
    assert runs.x_final.values.tolist() == [[-0.125], [0.375]]
    here = ns.sweep(tmp_path / "runs", Absolute(), Gradient([0.25, 1.0]), steps=4, x0=0.375, tail=1, width=1)
    assert here.identical(runs), "the file and the call are one definition"


def test_a_function(command, tmp_path):
    assert command(FUNCTION, "--import", "mine") == (0, "6 runs in runs: loss")
    assert open_sweep(tmp_path / "runs").loss.values.round(9).tolist() == [0.25, 1.25, 1.0, 2.0, 4.0, 5.0]


def test_damage_is_told(command, tmp_path):
    command(GRID)
    next(tmp_path.glob("runs/*.zarr/x_final/c/1/0")).write_bytes(b"")
    code, said = command(GRID)
    assert code == 0 and "x_final/c/1/0: is damaged. Shard 1 is computed anew." in said


def test_a_file_executes_nothing(command, tmp_path):
    code, said = command(FUNCTION)
    assert (code, said) == (2, "the file names the function 'train'; say where it is: --import MODULE.")
    for name in ("os.system", "__import__", "number"):
        assert command(FUNCTION.replace('"train"', f'"{name}"'), "--import", "mine")[0] == 2
    command(GRID.replace('"Absolute"', '"mine.train"'))
    (tmp_path / "imported").unlink()
    assert command(GRID)[0] == 0 and not (tmp_path / "imported").exists()


DESIGN = 'function = "f"\naxes = {{ lr = {axis} }}\nsweep = {settings}'


@pytest.mark.parametrize(
    ("axis", "settings", "read"),
    [
        ("[1, 2]", "{ width = 3 }", {"axes": {"lr": [1, 2]}, "width": 3}),
        ('["sgd"]', '{ design = "list" }', {"axes": {"lr": ["sgd"]}, "design": "list"}),
        (
            "{ uniform = [0, 1] }",
            '{ design = "random", count = 5, seed = 1 }',
            {"axes": {"lr": Uniform(0, 1)}, "design": Random(5, 1)},
        ),
        (
            "{ loguniform = [0.1, 1] }",
            '{ design = "random", count = 5 }',
            {"axes": {"lr": LogUniform(0.1, 1)}, "design": Random(5)},
        ),
    ],
)
def test_designs(tmp_path, axis, settings, read):
    (tmp_path / "a.toml").write_text(DESIGN.format(axis=axis, settings=settings))
    assert read_sweep(tmp_path / "a.toml") == {"function": "f"} | read


REFUSED = {
    "setting": (GRID.replace("width", "wide"), "[sweep] has no setting 'wide'; it takes design, count, seed, width."),
    "section": (GRID.replace("sweep =", "swept ="), "unknown section 'swept'"),
    "sweep": ("sweep = 3\n", "sweep must be a section, [sweep]."),
    "axes": ("axes = 3\n", "axes must be a section, [axes]."),
    "count": (GRID.replace('"grid"', '"random"'), "[sweep] needs count, the number of runs, where design is random."),
    "seed": (GRID.replace("width", "seed"), '[sweep] has count or seed, which belong to design = "random".'),
    "random": (GRID.replace('"grid"', '"random", count = 1.5'), "Random: count must be a whole number, 1 or above"),
    "design": (GRID.replace('"grid"', '"cube"'), "sweep: design must be 'grid', 'list' or Random(count, seed)"),
    "table": (
        GRID + "axes = { lr = { name = 'x' } }",
        "lr must be a list, or one of geomspace, linspace, uniform, log",
    ),
    "uniform": (GRID + "axes = { lr = { uniform = [1] } }", "lr: uniform takes [from, to]."),
    "ends": (GRID + "axes = { lr = { uniform = [2, 1] } }", "Uniform takes two finite numbers, low < high, not 2, 1."),
    "no-list": (GRID + "axes = { lr = 'a' }", "sweep: lr must be a flat list of numbers, or of names, not 'a'."),
    "both": (FUNCTION + GRID.partition("run =")[0], "function is a name; beside it there are [axes] and [sweep]"),
    "no-name": ("function = 3", "function is a name; beside it there are [axes] and [sweep] alone."),
}


@pytest.mark.parametrize(("config", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_said(command, config, sentence):
    code, said = command(config)
    assert code == 2 and sentence in said and "\n" not in said


@pytest.mark.parametrize(
    ("config", "options", "sentence"),
    [
        (GRID, ("--import", "mine"), "sweep.toml: names no function, so --import means nothing; leave it out."),
        (GRID, ("--dask", "tcp://127.0.0.1:1"), "--workers and --dask exclude each other; give one."),
        (FUNCTION, ("--import", "nowhere"), "there is no module 'nowhere' here."),
        (FUNCTION, ("--import", "nowhere.train"), "there is no module 'nowhere.train' here."),
        (
            FUNCTION,
            ("--import", "./mine.py"),
            "--import takes the name of a module, as mine or package.mine, not './mi",
        ),
        (FUNCTION, ("--import", "lacks"), "lacks: cannot be imported (No module named 'not_there')."),
        (FUNCTION, ("--import", "cut"), "cut: cannot be imported (expected ':' (cut.py, line 1))."),
        (FUNCTION.replace("train", "tain"), ("--import", "mine"), "mine: has no function 'tain'."),
        (FUNCTION.replace("seed", "batch"), ("--import", "mine"), "sweep: train(lr="),
    ],
)
def test_options_that_do_not_fit_are_said(command, config, options, sentence):
    code, said = command(config, *options)
    assert code == 2 and said.startswith(sentence) and "\n" not in said

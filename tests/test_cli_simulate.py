"""`nonsmooth simulate`: the table that it prints and what it refuses, and when."""

from __future__ import annotations

import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from nonsmooth import cli

SCALAR = """
objective = { name = "Absolute" }
rule = { name = "Gradient", lr = 0.1 }
run = { steps = 4, x0 = 0.25 }
"""


@pytest.fixture
def simulate(tmp_path, monkeypatch):
    """What the command prints, and its exit code."""
    monkeypatch.chdir(tmp_path)
    lines = Console(width=200), Console(width=200, stderr=True)

    def run(config, *options):
        (tmp_path / "run.toml").write_text(config)
        monkeypatch.setattr(cli, "screen", lines[0])
        monkeypatch.setattr(cli, "errors", lines[1])
        done = CliRunner().invoke(cli.app, ["simulate", "run.toml", *options])
        return done.exit_code, done.output

    return run


def cells(printed):
    """The table: the names of its columns, and its rows."""
    header = next(line for line in printed.splitlines() if "┃" in line)
    rows = [line for line in printed.splitlines() if line.startswith("│")]
    split = lambda line: [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]  # noqa: E731
    return split(header), [split(row) for row in rows]


@pytest.mark.parametrize(("seeds", "runs"), [("", 1), (", seeds = 3", 3)])
def test_without_a_list_there_is_one_row(simulate, seeds, runs):
    code, printed = simulate(SCALAR.replace("x0 = 0.25", f"x0 = 0.25{seeds}"))
    assert code == 0
    assert cells(printed) == (["l1_norm", "value"], [["0.05", "0.05"]])
    assert f"{runs} runs × 4 steps" in printed


def test_every_column_has_its_name(simulate):
    code, printed = simulate(
        """
        objective = { name = "Absolute" }
        rule = { name = "Gradient", lr = [0.1, 0.2] }
        penalty = { name = "L1", lam = [1.0, 3.0] }
        run = { steps = 5, every = 2, x0 = 1.0, seeds = 2, record = ["x", "value", "zeros"] }
        """
    )
    assert code == 0
    assert cells(printed) == (
        ["lr", "lam", "value", "zeros"],
        [["0.1", "1", "0.4", "0"], ["0.1", "3", "0.8", "0"], ["0.2", "1", "0.4", "0"], ["0.2", "3", "2.4", "0"]],
    )
    assert "8 runs × 5 steps" in printed


def test_diverged_runs_are_left_out_of_the_means_and_counted_beside_them(simulate):
    config = """
        objective = { name = "Quadratic", spectrum = [1.0] }
        rule = { name = "Gradient", lr = [1.0, 1e30] }
        run = { steps = 8, x0 = 1.0, seeds = 2, record = ["value"] }
        """
    code, printed = simulate(config)
    assert code == 0 and "of the runs that did not diverge" in " ".join(printed.split())
    assert cells(printed) == (["lr", "value", "diverged"], [["1", "0", "0"], ["1e+30", "nan", "2"]])
    assert "4 runs × 8 steps, 2 diverged" in printed


def test_a_run_without_numbers_to_average_prints_its_size_alone(simulate):
    assert simulate(SCALAR.replace("steps = 4", 'steps = 4, record = ["x"]')) == (0, "1 runs × 4 steps\n")


def test_a_long_table_is_cut_with_a_word(simulate):
    code, printed = simulate(SCALAR.replace("lr = 0.1", "lr = { linspace = [0.1, 1, 75] }"))
    assert code == 0 and len(cells(printed)[1]) == 60
    assert "… and 15 rows more; --out keeps them all." in printed


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("steps = 4", "steps = 10000000000000", "simulate: the records of 10000000000000 steps need 160000 GB"),
        ("steps = 4", "steps = 4, seeds = [1, 1]", "simulate: seeds holds 1 more than once; give each once."),
        ("steps = 4", "steps = 4, f_star = nan", "simulate: f_star must be a finite number, not nan."),
        ("0.25", '"a"', "simulate: x0 must hold real numbers, not 'a'."),
    ],
)
def test_what_cannot_be_run_is_one_sentence_and_leaves_nothing(simulate, tmp_path, old, new, says):
    code, printed = simulate(SCALAR.replace(old, new), "--out", "run.zarr")
    assert code == 2
    assert printed.startswith(says) and printed.count("\n") == 1
    assert not (tmp_path / "run.zarr").exists()


def test_an_unreachable_minimum_is_one_sentence(simulate, monkeypatch):
    def far(*_):
        raise ArithmeticError("minimise: the residual is 1.0e-01 after 2000 steps.")

    monkeypatch.setattr("nonsmooth.simulation._minimum", far)
    code, printed = simulate(SCALAR.replace("steps = 4", 'steps = 4, record = ["gap"]'))
    assert (code, printed) == (2, "minimise: the residual is 1.0e-01 after 2000 steps.\n")


def test_a_place_that_cannot_be_written_is_said_before_the_run(simulate, tmp_path, monkeypatch):
    def runs(**_):
        raise AssertionError("the simulation was run")

    monkeypatch.setattr("nonsmooth.simulation.simulate", runs)
    (tmp_path / "file").write_text("")
    for place in ("file/x", "run.toml/x"):
        code, printed = simulate(SCALAR, "--out", place)
        assert (code, printed) == (
            2,
            f"{place}: cannot be written (Not a directory); name another place with --out.\n",
        )
    code, printed = simulate(SCALAR, "--out", "file")
    assert (code, printed) == (2, "file: exists already; name another place with --out.\n")

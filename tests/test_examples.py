"""Each example runs as the script that it is, says something, and ends in an assertion that can fail."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
MUTANTS = [
    ("sparse_logistic.py", "L1(lam), weights(model)", "L1(0 * lam), weights(model)"),
    ("group_sparse_mlp.py", "density=KEPT / UNITS", "density=1.0"),
    ("edge_of_stability.py", '"GELU": nn.GELU', '"GELU": nn.ReLU'),
]
"""An example, and a line of it made wrong: without a penalty, without a target below 1, with kinks in a smooth twin."""


def run(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own, in an empty folder, on two threads at most; warnings stay warnings."""
    if "mnist1d" in script.read_text(encoding="utf-8") and importlib.util.find_spec("mnist1d") is None:
        missing = f"no mnist1d: {script.name} was not run"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    threads = "1" if os.environ.get("OMP_NUM_THREADS") == "1" else "2"
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    environment = {**os.environ, **limits, "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )


def ends_in_an_assert(source: str) -> bool:
    return isinstance(ast.parse(source).body[-1], ast.Assert)


def test_there_are_examples():
    assert {"sparse_logistic.py", "group_sparse_mlp.py"} <= {script.name for script in EXAMPLES}


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_runs(script, tmp_path):
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir()), "an example writes no files"


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_ends_in_an_assert_and_is_in_the_readme(script):
    assert ends_in_an_assert(script.read_text(encoding="utf-8"))
    assert f"]({script.name})" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_an_end_without_an_assert_is_seen():
    assert ends_in_an_assert("x = 1\nassert x")
    assert not ends_in_an_assert("assert True\nprint()")


@pytest.mark.parametrize(("name", "right", "wrong"), MUTANTS, ids=[name for name, _, _ in MUTANTS])
def test_a_mutant_fails(name, right, wrong, tmp_path):
    source = (FOLDER / name).read_text(encoding="utf-8")
    assert source.count(right) == 1
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / name).write_text(source.replace(right, wrong), encoding="utf-8")
    done = run(tmp_path / name, work)
    assert done.returncode != 0 and "AssertionError" in done.stderr, done.stderr

"""Sweeps under fire: killed, interrupted, damaged, out of space, two at once; and what is refused."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nonsmooth as ns
from nonsmooth.objectives import Absolute
from nonsmooth.penalties import L1
from nonsmooth.rules import Gradient, HeavyBall
from nonsmooth.sweeps import Random, Uniform, executors, open_sweep, store, sweep

SCRIPT = """
import sys, time
from nonsmooth.sweeps import sweep

def square(lr):
    time.sleep(0.02)
    return {"loss": lr**2, "path": [lr, 2 * lr]}

if __name__ == "__main__":
    sweep(sys.argv[1], square, axes={"lr": range(40)}, width=2, executor=int(sys.argv[2]))
"""


def square(lr):
    return {"loss": lr**2, "path": [lr, 2 * lr]}


def small(path, function=square, **options):
    return sweep(path, function, axes={"lr": range(10)}, width=2, **{"executor": 1} | options)


def chunks(folder):
    """The bytes of each chunk, but for what a killed process left beside its place."""
    paths = (path for path in folder.rglob("*.zarr/*/c/**/*") if path.is_file() and path.suffix != ".partial")
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def markers(folder):
    return {path.name for path in folder.glob("*.shards/*") if path.name.isdigit()}


@pytest.fixture
def start(tmp_path):
    """Start the script in a session of its own; it is killed when the test ends."""
    (tmp_path / "script.py").write_text(SCRIPT)
    begun = []

    def run(folder, count=1):
        command = [sys.executable, str(tmp_path / "script.py"), str(folder), str(count)]
        begun.append(subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield run
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
        process.wait()


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# --- killed, interrupted -------------------------------------------------------------------------------------------


def test_three_kills_lose_no_finished_shard(tmp_path, start):
    chance, folder = random.Random(1), tmp_path / "killed"
    for count in (1, 2, 1):
        before = markers(folder)
        process = start(folder, count)
        wait_for(lambda goal=len(before) + chance.randrange(1, 5): len(markers(folder)) >= goal)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept = store.Store(folder, next(folder.glob("*.json")).stem)
        assert before < markers(folder) and not list(kept.damages())
        assert len(markers(folder)) < 20
    assert start(folder).wait() == 0
    assert start(tmp_path / "whole").wait() == 0
    assert chunks(folder) == chunks(tmp_path / "whole") and len(markers(folder)) == 20


@pytest.mark.parametrize(("number", "count"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)])
def test_a_signal_ends_in_one_sentence(tmp_path, start, number, count):
    process = start(tmp_path / "s", count)
    wait_for(lambda: len(markers(tmp_path / "s")) >= 2)
    process.send_signal(number)
    said = process.communicate()[1].strip().splitlines()[-1]
    found = re.fullmatch(r"KeyboardInterrupt: (\d+) of 20 shards are kept in .*/s; the same call goes on from .*", said)
    assert found and 2 <= int(found[1]) < 20


def test_two_processes_share_the_work(tmp_path, start):
    both = [start(tmp_path / "both"), start(tmp_path / "both")]
    assert [process.wait() for process in both] == [0, 0]
    assert start(tmp_path / "one").wait() == 0
    assert chunks(tmp_path / "both") == chunks(tmp_path / "one")


def test_two_orders_differ_and_each_is_whole(tmp_path):
    orders = [list(store.Store(tmp_path, "0").missing(97)) for _ in range(3)]
    assert all(sorted(order) == list(range(97)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert list(store.Store(tmp_path, "0").missing(1)) == [0]


def test_unfinished_runs_are_nan(tmp_path, monkeypatch):
    def interrupted(lr):
        if lr == 5:
            raise KeyboardInterrupt
        return square(lr)

    def first_to_last(self, count):
        return (shard for shard in range(count) if not self.finished(shard))

    small(tmp_path, lambda lr: {"loss": -lr})
    monkeypatch.setattr(store.Store, "missing", first_to_last)
    with pytest.raises(KeyboardInterrupt, match=r"^2 of 5 shards are kept in .*; the same call goes on from there.$"):
        small(tmp_path, interrupted)
    runs = open_sweep(tmp_path)
    assert runs.loss.values[:4].tolist() == [0, 1, 4, 9] and np.isnan(runs.loss.values[4:]).all()
    assert runs.finished.values.tolist() == [True] * 4 + [False] * 6
    assert runs.lr.values.tolist() == list(range(10))


# --- damaged -------------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


HARMS = {
    "chunk-cut": ("*.zarr/loss/c/3", cut, "loss/c/3: is damaged. Shard 3 is computed anew."),
    "chunk-flipped": ("*.zarr/path/c/2/0", flip, "path/c/2/0: is damaged. Shard 2 is computed anew."),
    "chunk-lost": ("*.zarr/path/c/0/0", Path.unlink, "path/c/0/0: is missing. Shard 0 is computed anew."),
    "mark-lost": ("*.zarr/finished/c/1", Path.unlink, "finished/c/1: is missing. Shard 1 is computed anew."),
    "marker-cut": ("*.shards/000004", cut, "000004: is damaged. Shard 4 is computed anew."),
    "marker-flipped": ("*.shards/000004", flip, "Shard 4 is computed anew."),
    "marker-empty": ("*.shards/000001", lambda path: path.write_bytes(b"{}"), "000001: is damaged."),
    "marker-other": ("*.shards/000001", lambda path: path.write_bytes(b'{"a\\u0000": 1}'), "000001: is damaged."),
    "axis": ("*.zarr/lr/c/0", flip, "lr/c/0: is damaged. It was written again."),
    "shapes": ("*.zarr/loss/zarr.json", cut, "loss/zarr.json: is damaged. It was written again."),
    "group": ("*.zarr/zarr.json", Path.unlink, "zarr.json: is missing. It was written again."),
    "coordinates": ("*.shards/coordinates", Path.unlink, "coordinates: is missing. It was written again."),
}


@pytest.mark.parametrize(("where", "harm", "sentence"), HARMS.values(), ids=HARMS)
def test_damage_is_found_said_and_mended(tmp_path, where, harm, sentence):
    whole = small(tmp_path).load()
    before = chunks(tmp_path)
    harm(next(tmp_path.glob(where)))
    with pytest.raises(ValueError, match=r"is (damaged|missing)\. Sweep again: that makes it anew"):
        open_sweep(tmp_path, verify=True)
    with pytest.warns(UserWarning, match=re.escape(sentence)):
        mended = small(tmp_path)
    assert mended.identical(whole) and chunks(tmp_path) == before
    assert open_sweep(tmp_path, verify=True).identical(whole)


@pytest.mark.parametrize("name", ["*.json", "latest"])
@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
def test_what_names_a_sweep_is_written_again(tmp_path, name, harm):
    whole = small(tmp_path).load()
    harm(next(tmp_path.glob(name)))
    small(tmp_path)
    assert open_sweep(tmp_path).identical(whole) and (tmp_path / "latest").read_text() == whole_key(tmp_path)


def whole_key(folder):
    return json.loads(next(folder.glob("*.json")).read_text())["key"]


def test_damage_of_one_shard_leaves_the_others(tmp_path, monkeypatch):
    small(tmp_path)
    flip(next(tmp_path.glob("*.zarr/loss/c/3")))
    made = []
    compute = executors.Definition.compute
    monkeypatch.setattr(executors.Definition, "compute", lambda self, shard: made.append(shard) or compute(self, shard))
    with pytest.warns(UserWarning, match="Shard 3"):
        small(tmp_path)
    assert made == [3]


# --- workers, disks ------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_once_is_replaced(tmp_path):
    once = str(tmp_path / "once")

    def dies(lr):
        if lr == 5 and not os.path.exists(once):
            open(once, "x").close()
            os._exit(1)
        return {"loss": lr}

    assert small(tmp_path / "s", dies, executor=2).loss.values.tolist() == list(range(10))


def test_a_worker_that_always_dies_ends_in_one_sentence(tmp_path):
    def dies(lr):
        if lr == 5:
            os._exit(1)
        return {"loss": lr}

    with pytest.raises(
        ValueError, match=r"sweep: workers died 3 times with no shard finished in between .*: give them"
    ):
        small(tmp_path, dies, executor=2)
    assert markers(tmp_path) < {"000000", "000001", "000003", "000004"} | {"000002"}


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    full = store._place

    def place(path, content):
        if path.name == "000003":
            raise OSError(28, "No space left on device")
        full(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_place", place)
        with pytest.raises(
            ValueError, match=r"cannot be written \(No space left on device\); mend that and sweep again"
        ):
            small(tmp_path)
    kept = markers(tmp_path)
    assert "000003" not in kept
    assert small(tmp_path).loss.values.tolist() == [lr**2 for lr in range(10)]


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/s: cannot be written \(Not a directory\)"):
        small(tmp_path / "file" / "s")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match=r"cannot be written \(permission denied\)"):
        small(tmp_path / "s")


def test_nan_in_a_run_harms_no_other(tmp_path):
    runs = sweep(tmp_path, Absolute(), Gradient([0.5, 1e200, 0.25]), x0=1e150, steps=3, width=2, executor=1)
    assert runs.finished.all() and np.isnan(runs.diverged_at[[0, 2]]).sum() == 0
    bad = small(tmp_path / "f", lambda lr: {"loss": np.nan if lr == 3 else lr})
    assert np.isnan(bad.loss.values).tolist() == [lr == 3 for lr in range(10)] and bool(bad.finished.all())


def test_progress_is_shown_when_it_is_wanted(tmp_path, capsys):
    small(tmp_path / "a")
    assert capsys.readouterr().err == ""
    small(tmp_path / "b", progress=True)
    assert "5/5" in capsys.readouterr().err


# --- refused -------------------------------------------------------------------------------------------------------


def raises(lr):
    return {"loss": 1 / (lr - 4)}


def grows(lr):
    return {"loss": np.zeros(1 + (lr == 1))}


ABSOLUTE = {"what": Absolute(), "rule": Gradient([0.1, 0.2]), "steps": 2, "executor": 1}
REFUSED = {
    "nothing": ({"rule": Gradient(0.1)}, "sweep: nothing is swept; give a list in a field, seeds= or axes=."),
    "no-rule": ({"rule": None}, "sweep: rule must be one of nonsmooth's, not NoneType."),
    "penalty": ({"penalty": 3}, "sweep: penalty must be one of nonsmooth's, not int."),
    "what": ({"what": 3}, "sweep: give an objective, or a function made by def, not int."),
    "design": ({"design": "cube"}, "sweep: design must be 'grid', 'list' or Random(count, seed), not 'cube'."),
    "width": ({"width": 0}, "sweep: width must be a whole number, 1 or above, not 0."),
    "lengths": (
        {"penalty": L1([1, 2, 3]), "design": "list"},
        "sweep: design='list' pairs lists of one length, but lr has 2, lam has 3 values.",
    ),
    "drawn": ({"axes": {"lr": Uniform(0.1, 1)}}, "sweep: lr is a distribution; give a list, or design=Random(count)."),
    "unknown": ({"axes": {"beta": [1]}}, "sweep: 'beta' of axes is no field; take of rule_lr."),
    "negative": ({"axes": {"lr": [-1]}}, "Gradient: lr must be a finite number above 0, not -1."),
    "drawn-negative": (
        {"axes": {"lr": Uniform(-1, 1)}, "design": Random(3)},
        "Gradient: lr must be a finite number above 0, not -1.",
    ),
    "mixed": ({"axes": {"lr": [1, "a"]}}, "sweep: lr must be a flat list of numbers, or of names, not [1, 'a']."),
    "axes": ({"axes": [1]}, "sweep: axes must be a dict of values by name, not list."),
    "flat": ({"axes": {"lr": [[1]]}}, "sweep: lr must be a flat list of numbers, or of names, not [[1]]."),
    "seeds": ({"seeds": [-1]}, "sweep: seeds must be a count above 0 or a list of whole numbers, not [-1]."),
    "count": ({"seeds": 0}, "sweep: seeds must be a flat list of numbers, or of names, not 0."),
    "simulate": ({"record": "gsp"}, "record: there is no variable 'gsp'"),
    "steps": ({"steps": 0}, "simulate: steps must be a whole number, 1 or above, not 0."),
    "executor": ({"executor": 0}, "sweep: executor must be None, a count, an address or a Client, not 0."),
    "nobody": ({"executor": "tcp://127.0.0.1:1"}, "sweep: no Dask scheduler answers at 'tcp://127.0.0.1:1'."),
    "fails": (
        {"what": raises, "rule": None, "axes": {"lr": [1, 4]}},
        "sweep: raises(lr=4) failed: ZeroDivisionError: division by zero",
    ),
    "grows": ({"what": grows, "rule": None, "axes": {"lr": [0, 1]}}, "sweep: 'loss' of runs"),
    "forgets": (
        {"what": lambda lr: {"a": 1, "b": 2} if lr else {"a": 1}, "rule": None, "axes": {"lr": [0, 1]}},
        "sweep: 'b' of runs",
    ),
    "types": (
        {"what": lambda lr: {"a": np.float32(1) if lr else 1.0}, "rule": None, "axes": {"lr": [0, 1]}},
        "sweep: 'a' of runs",
    ),
    "grows-inside": (
        {"what": grows, "rule": None, "axes": {"lr": [0, 1]}, "width": 2},
        "sweep: grows(lr=1) returned {'loss': (2,)}, another run {'loss': (1,)}.",
    ),
    "returns": (
        {"what": lambda lr: lr, "rule": None, "axes": {"lr": [0]}},
        "sweep: <lambda>(lr=0) must return a dict of numbers by name, not int.",
    ),
    "names": (
        {"what": lambda lr: {"../x": 1}, "rule": None, "axes": {"lr": [0]}},
        "sweep: <lambda>(lr=0) returned '../x', which is no free name; rename it.",
    ),
    "texts": (
        {"what": lambda lr: {"x": "a"}, "rule": None, "axes": {"lr": [0]}},
        "sweep: <lambda>(lr=0) returned 'x', which is no number and no array of numbers.",
    ),
    "axis-run": ({"what": raises, "rule": None, "axes": {"run": [1]}}, "sweep: an axis cannot be called 'run'"),
    "both": ({"what": raises, "axes": {"lr": [1]}}, "sweep: rule belongs to a simulation; a function takes"),
}


@pytest.mark.parametrize(("changes", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_gives_one_sentence(tmp_path, monkeypatch, changes, sentence):
    options = ABSOLUTE | changes
    monkeypatch.setattr(executors, "CONNECT", "1s")
    if options["rule"] is None or "what" in changes:
        options.pop("steps")
    with pytest.raises(ValueError, match="^" + re.escape(sentence)) as error:
        sweep(tmp_path, **options)
    assert "\n" not in str(error.value)


def test_two_fields_of_one_name_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="'beta' of axes is no field; take of rule_lr"):
        sweep(tmp_path, Absolute(), Gradient(0.1), axes={"beta": [1]})
    runs = sweep(tmp_path, Absolute(), HeavyBall(0.1), axes={"rule_beta": [0.0, 0.5]}, x0=1.0, steps=2, executor=1)
    assert runs.beta.values.tolist() == [0.0, 0.5]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"key": 1}', b"\xff\xfe", b"null", b"[" * 100_000])
def test_a_strange_folder_is_no_sweep(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ValueError, match="holds no sweep"):
        open_sweep(tmp_path)


def test_a_group_that_cannot_be_read_is_said(tmp_path):
    small(tmp_path)
    (next(tmp_path.glob("*.zarr")) / "zarr.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"\.zarr: cannot be read .*; sweep again: that mends it"):
        open_sweep(tmp_path)


def test_the_definition_is_for_people(tmp_path):
    runs = sweep(tmp_path, Absolute(), Gradient([0.25, 1.0]), x0=0.375, steps=2, executor=1)
    said = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert said == json.loads(runs.attrs["definition"])
    assert said["axes"] == {"lr": [0.25, 1.0]} and said["objective"] == "Absolute(dim=1)" and said["runs"] == 2
    assert said["code"]["numpy"] == np.__version__
    assert ns.open_sweep(tmp_path).identical(runs)

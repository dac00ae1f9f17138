"""Watched runs under fire: cut rows, a full disk, clocks that jump, NaN, two at once, SIGTERM. Nothing else is lost."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

from nonsmooth.torch import facts
from nonsmooth.torch import monitor as module
from nonsmooth.torch.audit import Audit
from nonsmooth.torch.audit_command import audit_script
from nonsmooth.torch.facts import open_rows, write_row
from nonsmooth.torch.monitor import Monitor
from nonsmooth.torch.run_report.folder import read_run

rejected = pytest.raises(AssertionError)

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["nonsmooth.torch", "torch._dynamo"])


def watched(steps: int, folder: Path | None = None, at: Any = None, first: int = 0, **options: Any) -> Monitor:
    """Gradient descent on ½w²; `at(step, w)` is called before each step."""
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = optim.SGD([w], lr=0.125)
    monitor = Monitor(w, optimizer, lambda: 0.5 * w.square().sum(), folder=folder, **{"budget": 1.0} | options)
    monitor.t = first
    with monitor:
        for step in range(steps):
            if at is not None:
                at(step, w)
            w.grad = w.detach().clone()
            optimizer.step()
    return monitor


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Each line as strict JSON, which knows no NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    lines = (folder / "rows.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


# --- a last row that was cut off ------------------------------------------------------------------------------------


def cut_and_resumed(folder: Path, rest: int) -> None:
    """After a cut `rest` bytes into the last row, a Monitor that goes on leaves whole rows and no other row changed."""
    watched(4, folder)
    path = folder / "rows.jsonl"
    *lines, last = path.read_bytes().splitlines(keepends=True)
    rest = min(rest, len(last) - 1)
    path.write_bytes(b"".join(lines) + last[:rest])
    whole = rest == len(last) - 1
    cut = pytest.warns(UserWarning, match=r"rows\.jsonl: the last row was cut off, it is taken out\.$")
    with contextlib.nullcontext() if whole or not rest else cut:
        watched(3, folder, first=4)
    after = path.read_bytes()
    assert after.startswith(b"".join(lines) + (last if whole else b""))
    with contextlib.suppress(ValueError):
        steps = [row["step"] for row in rows_of(folder)]
    assert steps[-1] == 7 and 5 in steps and not read_run(folder).remarks


@pytest.mark.parametrize("rest", [0, 1, 9, 60, 10**6])
def test_a_cut_row_is_taken_out_and_no_other(rest, tmp_path):
    cut_and_resumed(tmp_path, rest)


def test_a_file_that_is_a_cut_row_alone_is_begun_again(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"step": 1, "da')
    with pytest.warns(UserWarning, match="cut off"):
        watched(2, tmp_path)
    assert rows_of(tmp_path)[0]["step"] == 1


def test_the_law_rejects_rows_that_are_glued_together(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "open_rows", lambda folder: (folder / "rows.jsonl").open("ab", buffering=0))
    with pytest.raises((AssertionError, UnboundLocalError, pytest.fail.Exception)):
        cut_and_resumed(tmp_path, 9)


def test_a_run_that_goes_on_counts_on(tmp_path):
    monitor = watched(5, tmp_path, first=100)
    assert {row["step"] for row in monitor.rows} == {101, 102, 103, 104, 105}
    assert monitor.t == 105 and monitor.skipped["step"] + monitor.made["step"] == 5


def test_steps_that_were_taken_twice_count_once(tmp_path):
    watched(5, tmp_path)
    watched(4, tmp_path, first=3)  # from a checkpoint at step 3
    read, written = read_run(tmp_path).rows, rows_of(tmp_path)
    last = {(row["step"], row["kind"]): row for row in written}
    assert len(read) == len(last) < len(written) and {(4, "trace"), (5, "trace")} <= last.keys()
    assert all(row == last[row["step"], row["kind"]] for row in read)
    assert [row["step"] for row in read if row["kind"] == "trace"] == [1, 2, 3, 4, 5, 6, 7]


# --- a disk that is full, a folder that is not ours -----------------------------------------------------------------


@contextlib.contextmanager
def files_up_to(size: int) -> Any:
    """No file of this process may grow longer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_is_told_once_and_the_run_goes_on(tmp_path):
    with pytest.warns(UserWarning, match=r"^Monitor: ") as told, files_up_to(2000):
        monitor = watched(20, tmp_path)
    sentences = [str(w.message) for w in told]
    assert sentences[0] == "Monitor: rows are no longer written: File too large; they go on in `rows`."
    assert len(sentences) == 1 or re.fullmatch(r"Monitor: .*run\.json: cannot be written \(.*\); .*", sentences[1])
    assert len(sentences) <= 2 and monitor.t == 20 and monitor.rows[-1]["step"] == 20
    assert (tmp_path / "rows.jsonl").stat().st_size == 2000
    kept = read_run(tmp_path)
    assert 2 < len(kept.rows) < len(monitor.rows) and "cut off" in " ".join(kept.remarks)
    with pytest.warns(UserWarning, match="cut off"):
        watched(2, tmp_path, first=20)
    assert [row["step"] for row in rows_of(tmp_path)[: len(kept.rows)]] == [row["step"] for row in kept.rows]


def test_a_write_that_takes_a_part_is_finished(tmp_path):
    class Slow:
        held = b""

        def write(self, line: bytes) -> int:
            self.held += line[:7]
            return len(line[:7])

    slow: Any = Slow()
    write_row(slow, {"step": 1, "data": "λ \udc80"})
    assert json.loads(slow.held) == {"step": 1, "data": "λ \udc80"}


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder that cannot be written, not by root either, who is no one meanwhile."""
    (tmp_path / "locked").mkdir()
    (tmp_path / "train.py").write_text("raise AssertionError('it ran')\n")
    tmp_path.chmod(0o755)
    (tmp_path / "locked").chmod(0o555)
    monkeypatch.chdir(tmp_path)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield Path("locked")
    if root:
        os.seteuid(0)


def test_a_folder_that_cannot_be_written_is_told_before_training(locked):
    with pytest.raises(ValueError, match=r"^Monitor: the folder locked cannot be written \(Permission denied\)\.$"):
        watched(1, locked)
    assert not list(locked.iterdir())


def test_a_script_is_not_run_where_its_audit_cannot_be_written(locked):
    with pytest.raises(ValueError, match=r"^audit: the folder locked cannot be written \(Permission denied\)\.$"):
        audit_script(Path("train.py"), folder=locked)


def test_a_folder_that_went_away_meanwhile_is_a_warning(tmp_path):
    def gone(step: int, w: torch.Tensor) -> None:
        if step == 3:
            (tmp_path / "run" / "rows.jsonl").unlink()
            (tmp_path / "run").rmdir()

    with pytest.warns(UserWarning, match=r"^Monitor: .*run\.json: cannot be written \(No such file or directory\)"):
        monitor = watched(6, tmp_path / "run", at=gone)
    assert monitor.t == 6 and monitor.rows[-1]["step"] == 6


def test_an_audit_whose_folder_went_away_is_a_warning_and_has_its_findings(tmp_path):
    w = nn.Linear(2, 1)
    optimizer = optim.SGD(w.parameters(), lr=0.125)
    audit = Audit(folder=tmp_path / "run", trials=0)

    def train() -> None:
        with audit:
            for _ in range(3):
                optimizer.zero_grad()
                w(torch.ones(1, 2)).square().mean().backward()
                optimizer.step()
            shutil.rmtree(tmp_path / "run")

    with pytest.warns(UserWarning, match=r"^(Audit|Monitor): .*run\.json: cannot be written"):
        train()
    assert audit.findings


# --- clocks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_calendar_that_jumps_leaves_began_before_ended(jump, monkeypatch):
    own, now = time.time, [0.0]
    monkeypatch.setattr(module.time, "time", lambda: own() + now[0])
    began = own()
    found = watched(10, at=lambda step, w: now.__setitem__(0, jump if step == 5 else now[0])).facts()
    first, last = (time.mktime(time.strptime(found[k][:19], "%Y-%m-%dT%H:%M:%S")) for k in ("began", "ended"))
    assert 0 <= last - first <= 60 and abs(first - time.mktime(time.gmtime(began))) <= 60


def after_a_jump(monkeypatch: Any, where: str, budget: float = 0.1) -> tuple[Monitor, list[int]]:
    """A probe takes 1 s, a step 0.1 s, and an hour passes once at step 500: in a probe, or between two steps."""
    now, measured, jumped = [1.0], [], [False]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def hour() -> None:
        now[0] += 0.0 if jumped[0] else 3600.0
        jumped[0] = True

    def probe(self: Monitor, kind: str) -> None:
        now[0] += 1.0
        self._made[kind] += 1
        measured.append(self.t)
        if where == "probe" and self.t >= 500:
            hour()

    def at(step: int, w: torch.Tensor) -> None:
        now[0] += 0.1
        if where == "step" and step == 500:
            hour()

    monkeypatch.setattr(Monitor, "_probe", probe)
    return watched(2000, at=at, budget=budget, allowance=0.0), measured


def no_starvation(monitor: Monitor, measured: list[int]) -> None:
    """Two probes at least in each quarter of the run, whose own 50 s allow five; and either kind goes on."""
    for quarter in range(4):
        assert sum(500 * quarter < t <= 500 * (quarter + 1) for t in measured) >= 2
    assert min(monitor.made.values()) >= 5


@pytest.mark.parametrize("where", ["probe", "step"])
def test_an_hour_that_is_lost_starves_no_probe(where, monkeypatch):
    monitor, measured = after_a_jump(monkeypatch, where)
    no_starvation(monitor, measured)
    assert monitor.share <= 0.1 + 1e-9 or where == "step"
    assert 3600 < monitor.facts()["seconds"] < 3600 + 3000


def test_the_law_rejects_a_budget_that_pays_for_the_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", math.inf)
    with rejected:
        no_starvation(*after_a_jump(monkeypatch, "probe"))


def test_probes_that_are_slow_in_truth_are_paid_for(monkeypatch):
    """From the tenth on a probe takes an hour: one is taken for a pause, the next is not."""
    now, made = [1.0], [0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def probe(self: Monitor, kind: str) -> None:
        self._made[kind] += 1
        made[0] += 1
        now[0] += 1.0 if made[0] < 10 else 3600.0

    monkeypatch.setattr(Monitor, "_probe", probe)
    watched(3000, at=lambda step, w: now.__setitem__(0, now[0] + 1.0), budget=0.1, allowance=0.0)
    assert 10 <= made[0] <= 10 + 2 * len(module.KINDS)


# --- NaN --------------------------------------------------------------------------------------------------------------


def poisoned(watch: bool, folder: Path) -> tuple[list[bytes], list[float]]:
    """A network whose 20th batch holds a NaN: its weights after each step, as bits, and the losses."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    x, held, losses = torch.randn(16, 4), [], []
    monitor = Monitor(model, optimizer, lambda: model(x).square().mean(), budget=1.0, folder=folder)
    with monitor if watch else contextlib.nullcontext():
        for step in range(40):
            batch = torch.randn(16, 4)
            batch[0, 0] = math.nan if step == 20 else batch[0, 0]
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            held.append(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
            losses.append(loss.item())
    monitor.end()
    return held, losses


def test_nan_in_the_middle_is_written_and_disturbs_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Monitor: no more probes of kind")
        held, losses = poisoned(True, tmp_path / "a")
    assert math.isnan(losses[-1]) and not math.isnan(losses[19])
    assert held == poisoned(False, tmp_path / "b")[0]
    rows = rows_of(tmp_path / "a")
    assert rows[-1]["step"] == 40 and {row["step"] for row in rows if row["kind"] == "trace"} == set(range(1, 41))
    late = [row for row in rows if row["step"] > 21 and row["kind"] in ("step", "stability")]
    assert late and all("error" in row or row.get("loss") == "nan" for row in late)
    text = (tmp_path / "a" / "run.json").read_text()
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word))["steps"] == 40
    assert read_run(tmp_path / "a").rows


def test_the_reading_rejects_a_word_that_json_has_not(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "plain", lambda value: value)
    with open_rows(tmp_path) as file:
        write_row(file, {"loss": math.nan})
    with rejected:
        rows_of(tmp_path)


# --- two on one folder ------------------------------------------------------------------------------------------------


def appending(folder: Path, who: str, halves: bool, together: Any) -> None:
    """100 rows of 20 kB, each when the other process has one as well; in halves, each when the other has one."""
    with open_rows(folder) as file:
        for step in range(100):
            row = {"step": step, "kind": "trace", "data": who * 20_000}
            together.wait(60)
            if halves:
                line = json.dumps(row).encode() + b"\n"
                file.write(line[:9000])
                together.wait(60)
                file.write(line[9000:])
            else:
                write_row(file, row)


def both(folder: Path, halves: bool) -> None:
    together = PROCESSES.Barrier(2)
    two = [PROCESSES.Process(target=appending, args=(folder, who, halves, together)) for who in "ab"]
    for process in two:
        process.start()
    for process in two:
        process.join()
    assert [process.exitcode for process in two] == [0, 0]
    try:
        rows = rows_of(folder)
    except ValueError as error:
        raise AssertionError from error
    for who in "ab":
        mine = [row for row in rows if row["data"] == who * 20_000]
        assert [row["step"] for row in mine] == list(range(100))
    assert len(rows) == 200


def test_rows_of_two_processes_stay_whole(tmp_path):
    both(tmp_path, halves=False)


def test_the_law_rejects_rows_in_halves(tmp_path):
    with rejected:
        both(tmp_path, halves=True)


def test_two_monitors_on_one_folder_leave_whole_rows(tmp_path):
    w = nn.Parameter(torch.ones(1))
    one, other = (Monitor(w, optim.SGD([w], lr=0.1), w.sum, folder=tmp_path) for _ in "ab")
    for monitor in (one, other, one, other):
        monitor.add("trace", {"loss": math.inf})
    assert len(rows_of(tmp_path)) == 4
    one.end(), other.end()


# --- SIGTERM ----------------------------------------------------------------------------------------------------------

ENDLESS = """\
import os, signal, sys, torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
x = torch.randn(16, 4)
{before}
for step in range(10**9):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    if step == 60:
        {at}
    if step == 200:
        sys.exit(7)
"""
KILL = "os.kill(os.getpid(), signal.SIGTERM)"


def within(folder: Path) -> None:
    os.chdir(folder)
    with open("said", "w") as said:
        os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    sys.exit(audit_script(Path("train.py"), folder=Path("out"), trials=16))


def audited(folder: Path, before: str = "pass", at: str = KILL) -> tuple[int | None, str, dict[str, Any]]:
    """The script's end, what was said, and the facts: in a process of its own, which has torch at hand."""
    (folder / "train.py").write_text(ENDLESS.format(before=before, at=at))
    process = PROCESSES.Process(target=within, args=(folder,))
    process.start()
    process.join(100)
    said = (folder / "said").read_text()
    return process.exitcode, said, json.loads((folder / "out" / "run.json").read_text())


def test_sigterm_ends_with_a_page_and_kills_as_it_would(tmp_path):
    (tmp_path / "train.py").write_text(ENDLESS.format(before="pass", at=KILL))
    command = [sys.executable, "-m", "nonsmooth", "audit", "--out", "out", "train.py"]
    seen = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    code, said, found = seen.returncode, seen.stderr, json.loads((tmp_path / "out" / "run.json").read_text())
    assert code == -signal.SIGTERM and "findings" in said and "Traceback" not in said
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"rows.jsonl", "run.json", "report.html"}
    assert found["steps"] == 61 and found["interrupted"] is True and found["crashed"] is None
    assert found["exit_code"] == 143 and not found["what_if"]


OWN = """\
def mine(*_):
    print("saved", file=sys.stderr)
    sys.exit(5)
signal.signal(signal.SIGTERM, mine)"""
CHAINED = """\
old = signal.getsignal(signal.SIGTERM)
def mine(number, frame):
    print("saved", file=sys.stderr)
    if callable(old):
        old(number, frame)
signal.signal(signal.SIGTERM, mine)"""


@pytest.mark.parametrize(("before", "code", "steps"), [(OWN, 5, 61), (CHAINED, 7, 201)])
def test_a_script_s_own_handler_decides(before, code, steps, tmp_path):
    left, said, found = audited(tmp_path, before)
    assert (left, found["steps"]) == (code, steps) and "saved" in said


def test_a_fork_of_the_script_s_is_killed_as_it_would_be(tmp_path):
    lines = ("child = os.fork()", f"child or {KILL}", "print('left', os.waitpid(child, 0)[1], file=sys.stderr)")
    code, said, found = audited(tmp_path, at="\n        ".join(lines))
    assert code == found["exit_code"] == 7 and found["steps"] == 201
    assert f"left {signal.SIGTERM:d}" in said.splitlines()

"""Processes for work: how they take it, what is said when one dies, and that they leave with their maker."""

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest

from nonsmooth.networks import store
from nonsmooth.networks.setting import Setting
from nonsmooth.processes import Processes, WorkerDiedError


def die(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether it runs; a zombie that nobody waits for does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_item_is_taken_when_it_is_needed():
    taken = itertools.count()
    with Processes(2) as processes:
        results = processes.each(abs, (-i for i in taken))
        assert sorted(next(results) for _ in range(3)) != []
        results.close()
    assert next(taken) < 3 + 4 * 2  # all four at work may end at once, and are replaced before the first is given


def test_what_work_raises_is_raised():
    with Processes(1) as processes, pytest.raises(ZeroDivisionError):
        list(processes.each(lambda x: 1 / x, [1, 0]))


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_a_killed_process_is_told_of():
    with Processes(1) as processes, pytest.raises(WorkerDiedError, match="a process of this machine was killed"):
        list(processes.each(die, [0]))


@pytest.mark.skipif(os.name != "posix", reason="kills by signal")
def test_networks_say_that_a_process_was_killed_and_begin_again(monkeypatch):
    rows = store.Store(None)
    monkeypatch.setattr(store, "_made", die)
    with pytest.raises(ValueError, match=r"^networks: a process .* was killed.*; the runs made so far are kept"):
        rows.run([Setting()])
    monkeypatch.setattr(store, "_made", lambda plain: {"key": Setting.from_dict(plain).key})
    assert rows.run([Setting()]) == [{"key": Setting().key}]


@pytest.mark.skipif(not os.path.exists("/proc"), reason="looks processes up in /proc")
def test_they_leave_when_their_maker_is_killed():
    script = """
import os, time
from nonsmooth.processes import Processes
processes = Processes(2)
def pid(_):
    time.sleep(0.2)
    return os.getpid()
print(*set(processes.each(pid, range(6))), flush=True)
time.sleep(60)
"""
    maker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert maker.stdout is not None
    workers = [int(pid) for pid in maker.stdout.readline().split()]
    assert workers and all(map(alive, workers))
    maker.kill()
    maker.wait()
    maker.stdout.close()
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))

"""What waits outside of the device's memory comes back bit by bit, and a step is measured with little of it inside."""

from __future__ import annotations

import errno
import tempfile
from typing import Any

import pytest
import torch

from alive import long_storages
from nonsmooth.torch import monitor as monitoring
from nonsmooth.torch.monitor import Monitor
from nonsmooth.torch.outside import InFile, copies, outside
from nonsmooth.torch.probes import Probes, unchanged
from nonsmooth.torch.steps import seen


def test_where_vectors_wait(monkeypatch, tmp_path):
    """In a file without a name, of which nothing is left; an accelerator's in the host's memory; or nowhere."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cpu, half = torch.device("cpu"), torch.float16
    rows = outside(1000, half, cpu, 4)
    rows.write(2, slice(10, 20), torch.arange(10.0))
    assert rows.read(2, slice(12, 14)).tolist() == [2, 3] and rows.read(2, slice(12, 14)).dtype == half
    file = rows.file
    del rows
    assert file.closed and not list(tmp_path.iterdir())
    hosted = outside(1000, half, torch.device("cuda"), 4)
    hosted.write(0, slice(0, 1000), torch.ones(1000))
    assert hosted.read(0, slice(0, 5)).device == cpu
    assert outside(1000, half, cpu, 10**12) is None  # more than any disk
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert outside(1000, half, cpu, 4) is None


def test_copies_are_the_same_bit_by_bit(monkeypatch):
    """Of any dtype and shape, in a file and in the host's memory; in memory where they are few or the disk is full."""
    torch.manual_seed(0)
    own = [
        torch.randn(3, 5, dtype=torch.bfloat16),
        torch.randn(4, 3, dtype=torch.float64).T,
        torch.tensor(float("nan")),
        torch.empty(0, 2),
        torch.randn(7),
    ]

    def same(held: Any) -> bool:
        return len(held) == len(own) and all(
            a.dtype == b.dtype and a.shape == b.shape and a.equal(b.nan_to_num(7.0))
            for a, b in zip((a.nan_to_num(7.0) for a in held), own, strict=True)
        )

    waiting = copies(own, few=10)
    assert not isinstance(waiting, list) and same(waiting) and same(waiting)  # as often as they are asked for
    assert isinstance(copies(own, few=100), list) and same(copies(own, few=100))
    own[4].add_(1)
    assert not same(waiting)

    def full(rows: InFile, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(InFile, "_put", full)
        assert isinstance(copies(own, few=10), list) and same(copies(own, few=10))
    monkeypatch.setattr("nonsmooth.torch.outside.InFile", lambda dim, kind: outside(dim, kind, torch.device("cuda"), 1))
    assert same(copies(own, few=10))


def trained(wide: int, monkeypatch) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
    for module in (monitoring, seen):
        monkeypatch.setattr(module, "WIDE", wide)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 1))
    x, y = torch.randn(50, 20), torch.randn(50, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loss = lambda: (model(x) - y).square().mean()  # noqa: E731
    with Monitor(model, optimizer, loss, budget=1.0) as monitor:
        for _ in range(8):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    rows = [row for row in monitor.rows if row["kind"] == "step"]
    return rows, [p.detach().clone() for p in model.parameters()]


def test_a_step_is_the_same_where_the_weights_before_it_wait(monkeypatch):
    (inside, w), (out, same) = (trained(wide, monkeypatch) for wide in (10**6, 10))
    times = {"time", "seconds", "at"}
    for a, b in zip(inside, out, strict=True):
        assert {k: v for k, v in a.items() if k not in times} == {k: v for k, v in b.items() if k not in times}
    assert len(inside) >= 3 and "step_ratio" in inside[0] and all(map(torch.equal, w, same))


@pytest.mark.parametrize("wide", [0, 10**6])
@pytest.mark.parametrize("kind", ["step", "stability"])
def test_a_closure_that_writes_to_the_weights_changes_nothing(kind, wide):
    """As embeddings with `max_norm` do, and `.data`; without a copy of them the weights would end elsewhere."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(20, 4, max_norm=0.5), torch.nn.Flatten(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probes = Probes(model, optimizer, window=10, few=wide)
    calls, w = [], [p.detach().clone() for p in model.parameters()]

    def closure() -> torch.Tensor:
        calls.append(kind)
        if kind == "stability" or len(calls) > 1:
            model[2].bias.data.clamp_(-1e-3, 1e-3)
        return (model(torch.tensor([[1, 2], [3, 4]])) - 1).square().mean()

    if kind == "step":
        probes.step(closure, [1.01 * p.detach() for p in model.parameters()])
    else:
        probes.curvature(closure)
    assert calls and all(map(torch.equal, w, model.parameters()))


def test_weights_do_not_come_back_from_a_disk_that_lost_them(monkeypatch):
    """They stay as they are where the closure leaves them alone, and where it does not this is said."""
    w = torch.nn.Parameter(torch.arange(20.0))
    monkeypatch.setattr(InFile, "read", lambda rows, i, at: torch.zeros(at.stop - at.start, dtype=rows.kind))
    with unchanged([w], few=10):
        pass
    assert w.tolist() == list(range(20))
    with pytest.raises(OSError, match="the disk lost"), unchanged([w], few=10):
        w.data.add_(1)
    assert w.tolist() == list(range(1, 21))


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_weights_are_put_back_where_a_probe_fails(fails):
    """At the first, second and third evaluation: before the step, after it, and on the piece of before."""
    w = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = torch.optim.SGD([w], lr=0.1)
    before, calls = [torch.tensor([1.0, 1.0])], []

    def closure() -> torch.Tensor:
        calls.append(w.tolist())
        if len(calls) == fails:
            raise RuntimeError("no more")
        return w.relu().sum()

    with pytest.raises(RuntimeError, match="no more"):
        Probes(w, optimizer, window=10).step(closure, before)
    assert w.tolist() == [2, -3] and calls == [[1, 1], [2, -3], [2, -3]][:fails]


@pytest.mark.parametrize("mutant", [False, True])
def test_the_room_that_a_step_s_probe_takes(monkeypatch, mutant):
    """Beside the graph: the weights after the step, and at last g⁺; in a mutant those before it and g as well."""
    for module in (monitoring, seen):
        monkeypatch.setattr(module, "WIDE", 10**9 if mutant else 1000)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.Tanh(), torch.nn.Linear(300, 1))
    x, y = torch.randn(4, 300), torch.randn(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    dim, own, held = sum(p.numel() for p in model.parameters()), set[int](), list[float]()

    def loss() -> torch.Tensor:
        return (model(x) - y).square().mean()

    def closure() -> torch.Tensor:
        held.append(sum(size for at, size in long_storages(dim // 10).items() if at not in own) / (4 * dim))
        return loss()

    loss().backward()
    optimizer.step()
    own = set(long_storages(dim // 10))
    with Monitor(model, optimizer, closure, budget=1.0) as monitor:
        optimizer.step()
    assert [row["kind"] for row in monitor.rows if row["kind"] != "trace"][:1] == ["step"]
    assert held[:3] == pytest.approx([2, 3, 4] if mutant else [1, 1, 2], abs=0.05)

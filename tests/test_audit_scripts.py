"""`nonsmooth audit train.py`: output and exit code are the script's own; what it trains on is found and told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from nonsmooth.cli import app
from nonsmooth.torch.audit_command import audit_script
from nonsmooth.torch.facts import free_folder

HEAD = """\
import sys, torch
from torch import nn
from torch.nn.functional import cross_entropy
torch.manual_seed(0)
X, y = torch.randn(96, 8), torch.randint(3, (96,))
model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def batches():
    data = torch.utils.data.TensorDataset(X, y)
    return torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
"""
PLAIN = """\
for epoch in range(4):
    for x, t in batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), t)
        loss.backward()
        optimizer.step()
    print(epoch, loss.item(), torch.rand(1).item())
"""
CRASH = """\
def step(i, x, t):
    optimizer.zero_grad()
    cross_entropy(model(x), t).backward()
    optimizer.step()
    if i == 4:
        raise RuntimeError("disk on fire")
for i, (x, t) in enumerate(batches()):
    print(i)
    step(i, x, t)
"""
ARGUMENTS = (
    """\
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("name")
arguments = parser.parse_args()
print(arguments.name, sys.argv[1:], __name__, __file__)
for group in optimizer.param_groups:
    group["lr"] = arguments.lr
"""
    + PLAIN
)
OWN_LOSS = """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = model
    def forward(self, x, labels):
        z = self.net(x)
        return {"logits": z, "loss": cross_entropy(z, labels)}
net = Net()
for x, t in batches():
    optimizer.zero_grad()
    net(x, labels=t)["loss"].backward()
    optimizer.step()
"""
MIXED = """\
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scaler = torch.amp.GradScaler("cpu")
for epoch in range(4):
    for i, (x, t) in enumerate(batches()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = cross_entropy(model(x), t) / 2
        scaler.scale(loss).backward()
        if i % 2:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
"""


def penalised(term: str, after: str = "pass") -> str:
    return f"""\
for epoch in range(6):
    for x, t in batches():
        optimizer.zero_grad()
        loss = cross_entropy(model(x), t) + {term}
        loss.backward()
        {after}
        optimizer.step()
"""


def script_of(folder: Path, body: str, head: str = HEAD) -> Path:
    path = folder / "train.py"
    path.write_text(head + body)
    return path


def facts_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.fixture
def audited(tmp_path, capfd) -> Callable[..., tuple[int, dict[str, Any], str, str]]:
    """Run a script under an audit in this process: its exit code, the facts, what it printed, what was said."""

    def run(body: str, *arguments: str, head: str = HEAD, **options: Any) -> tuple[int, dict[str, Any], str, str]:
        said: list[str] = []
        options = {"trials": 0, "budget": 0.9} | options
        with torch.random.fork_rng(devices=[]):
            code = audit_script(
                script_of(tmp_path, body, head), arguments, tmp_path / "out", say=said.append, **options
            )
        out = capfd.readouterr()
        assert nn.Module.__call__.__name__ == "_wrapped_call_impl" and torch._C._len_torch_function_stack() == 0
        assert sys.modules["__main__"].__dict__.get("HEAD") is None
        return code, facts_of(tmp_path / "out"), out.out, out.err + "\n".join(said)

    return run


def shell(*command: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, timeout=120)


# --- in a process of its own ------------------------------------------------------------------------------------------


def test_output_and_exit_code_are_the_script_s_own(tmp_path):
    body = PLAIN + "import atexit\natexit.register(lambda: print('the end', loss.item()))\nsys.exit(3)\n"
    script_of(tmp_path, body)
    bare = shell("train.py", folder=tmp_path)
    seen = shell("-m", "nonsmooth", "audit", "--trials", "16", "train.py", folder=tmp_path)
    assert seen.stdout == bare.stdout and seen.returncode == bare.returncode == 3
    assert bare.stdout.endswith(b"\n") and b"the end" in bare.stdout
    assert b"findings:" in seen.stderr and b"Open audit" in seen.stderr
    assert {p.name for p in (tmp_path / "audit").iterdir()} == {"rows.jsonl", "run.json", "report.html"}
    facts = facts_of(tmp_path / "audit")
    assert facts["exit_code"] == 3 and facts["crashed"] is None and facts["missing"] == []
    assert [row["name"] for row in facts["what_if"]][:2] == ["as-it-is", "half-lr"]


def test_a_crash_is_shown_as_python_shows_it_and_what_was_seen_is_kept(tmp_path):
    script_of(tmp_path, CRASH)
    bare = shell("train.py", folder=tmp_path)
    seen = shell("-m", "nonsmooth", "audit", "--trials", "0", "--out", "out", "train.py", folder=tmp_path)
    assert bare.returncode == seen.returncode == 1 and seen.stdout == bare.stdout
    told = seen.stderr.replace(str(tmp_path / "train.py").encode(), b"train.py")
    shown = bare.stderr.replace(str(tmp_path / "train.py").encode(), b"train.py")
    assert shown.startswith(b"Traceback") and told.startswith(shown)
    assert facts_of(tmp_path / "out")["crashed"] == "RuntimeError: disk on fire"
    assert {row["step"] for row in rows_of(tmp_path / "out") if row["kind"] == "trace"} == {1, 2, 3, 4, 5}


# --- in this process -------------------------------------------------------------------------------------------------


def test_a_plain_script_is_found_and_nothing_is_missing(audited):
    code, facts, out, said = audited(PLAIN)
    assert code == 0 and out.count("\n") == 4 and "findings:" in said
    assert facts["missing"] == [] and facts["steps"] == 24 and facts["optimizer"]["name"] == "SGD"
    assert facts["loss"] == "what backward was called on, computed again to the bit"
    assert facts["model"]["name"] == "Sequential" and facts["l1"] is None


def test_arguments_are_the_script_s(audited, tmp_path):
    code, facts, out, _ = audited(ARGUMENTS, "--lr", "0.25", "one")
    assert code == 0 and facts["optimizer"]["groups"][0]["lr"] == 0.25
    assert out.splitlines()[0] == f"one ['--lr', '0.25', 'one'] __main__ {tmp_path / 'train.py'}"
    assert facts["command"] == ["nonsmooth", "audit", str(tmp_path / "train.py"), "--lr", "0.25", "one"]


def test_arguments_that_are_wrong_are_told_by_the_script(audited):
    code, facts, _, said = audited(ARGUMENTS, "--lr", "much", "one")
    assert code == 2 and "invalid float value" in said and facts["missing"][0]["what"] == "the optimiser"


@pytest.mark.parametrize(
    ("ends", "code", "words"),
    [("sys.exit()", 0, ""), ("sys.exit(7)", 7, ""), ("sys.exit('no data')", 1, "no data"), ("1/0", 1, "ZeroDivision")],
)
def test_exit_codes_are_python_s(audited, ends, code, words):
    found, facts, _, said = audited(ends, head="import sys\n")
    assert found == code == facts["exit_code"] and words in said


def test_a_model_that_returns_its_own_loss_is_followed(audited):
    _, facts, _, _ = audited(OWN_LOSS)
    assert facts["missing"] == [] and facts["model"]["name"] == "Net"
    assert facts["loss"] == "what backward was called on, computed again to the bit"


def test_mixed_precision_with_accumulation_and_clipping_is_followed(audited):
    _, facts, _, _ = audited(MIXED)
    assert facts["missing"] == [] and facts["accumulation"] == 2
    assert facts["scaled"] is True and facts["clipped"] is True
    assert facts["loss"].startswith("what backward was called on, computed again")


LAM = "1e-2 * sum({}.abs().sum() for p in model.parameters())"


@pytest.mark.parametrize("wrong", ["p.data", "p.detach()"])
def test_a_penalty_without_a_gradient_is_a_problem(audited, wrong):
    _, facts, _, said = audited(penalised(LAM.format(wrong)))
    found = [f for f in facts["findings"] if f["level"] == "problem" and "gradient" in f["title"] + f["evidence"]]
    assert found and "train.py" in json.dumps(facts["l1"]) and found[0]["title"] in " ".join(said.split())
    assert found[0]["lines"] or found[0]["do"]


def test_a_penalty_that_acts_is_told_apart(audited):
    _, facts, _, _ = audited(penalised(LAM.format("p")), trials=16)
    assert {term["through"] for term in facts["l1"]["terms"]} == {"autograd"}
    assert [term["lam"] for term in facts["l1"]["terms"]] == pytest.approx([1e-2] * 4, rel=1e-5)
    assert "proximal" in {row["name"] for row in facts["what_if"]}


def test_a_script_without_torch_is_run_and_said_to_have_no_optimiser(audited):
    code, facts, out, said = audited("print('hello')\n", head="")
    assert code == 0 and out == "hello\n" and "steps" not in facts
    assert facts["missing"] == [
        {"what": "the optimiser", "why": "no torch optimiser made a step", "line": "optimizer.step()"}
    ]
    assert "findings:" in said


def test_a_script_s_own_hook_shows_its_exceptions(audited):
    hook = sys.excepthook
    try:
        code, _, out, said = audited("sys.excepthook = lambda *e: print('mine', e[1])\nraise ValueError('x')\n")
    finally:
        sys.excepthook = hook
    assert code == 1 and out == "mine x\n" and "Traceback" not in said


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run_is_refused_before_anything_runs(tmp_path):
    script = script_of(tmp_path, "raise AssertionError('it ran')\n", head="")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rows.jsonl").write_text("")
    found = CliRunner().invoke(app, ["audit", "--out", str(tmp_path / "out"), str(script)])
    assert found.exit_code == 2 and "holds a run already; name another folder" in " ".join(found.output.split())
    with pytest.raises(ValueError, match=r"out: holds a run already; name another folder with --out\.$"):
        audit_script(script, folder=tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("none.py", None, r"none\.py: there is no such file\.$"),
        ("wrong.py", "def f(:\n", r"wrong\.py: is not a Python script \(invalid syntax, line 1\)\.$"),
    ],
)
def test_what_is_no_script_is_refused(tmp_path, name, text, sentence):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        audit_script(tmp_path / name, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_free_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        free = free_folder(Path("audit"))
        names.append(free.name)
        free.mkdir()
        assert free_folder(Path("audit")) == free  # nothing is in it
        (free / "rows.jsonl").touch()
    assert names == ["audit", "audit-2", "audit-3"]

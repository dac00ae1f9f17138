"""Hostile input for each reader: it works, or refuses in one sentence; it never crashes, hangs or runs anything.

    python tests/fuzz.py READER --cases 10000 --seed 0     # seeds 0 … 9999; prints the first that fails, and why
    python tests/fuzz.py --atheris READER [libFuzzer's own options]

A case is a function of its seed: a valid example, in which values are replaced by hostile ones, or whose bytes are
flipped, cut, doubled or interspersed with tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import io
import json
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 5
"""What one case may take."""

WORDS = (
    "</script><img src=x onerror=pwned()>",
    '" onmouseover="pwned()',
    "' onfocus='pwned()",
    "javascript:pwned()",
    "{{ 7*7 }}{% raw %}",
    "<svg onload=pwned()>",
    "__class__",
    "../../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "a\u2028b\u2029c\x85d\ne\r\nf",
    "\ud800",
    "\U0010ffff",
    "[bold]x[/]",
    "1e99999",
    "1e" + "9" * 5000,
    "x" * 5000,
    "nan",
    "inf",
    "-inf",
    "",
    " ",
    "0",
    "λ₁ ≤ 1e-05 %",
)
NUMBERS = (
    float("nan"), float("inf"), float("-inf"), 0, -1, 1, 2, 0.5, -0.0, 1e308, -1e308, 5e-324, 2**31, -(2**63), 2**63,
    2**64, 2**1000, -(2**1023), 10**300, 10**308, 10**400, 10**4000, 10**9, 10**12,
)  # fmt: skip
OTHERS = (None, True, False)
DEEP, LONG = "@deep", "@digits"
"""Stand for what JSON's writer itself cannot write: nests of so many levels, numbers of so many digits."""


def leaf(rng: random.Random) -> Any:
    return rng.choice((rng.choice(WORDS), rng.choice(NUMBERS), rng.choice(OTHERS)))


def hostile(rng: random.Random) -> Any:
    """A value that a careless reader trips over."""
    kind = rng.random()
    if kind < 0.7:
        return leaf(rng)
    if kind < 0.75:
        return f"{DEEP}{rng.choice((40, 120, 400, 900, 3000, 100_000))}@"
    if kind < 0.77:
        return f"{LONG}{rng.choice((309, 400, 4299, 4301, 20_000))}@"
    if kind < 0.88:
        return [leaf(rng) for _ in range(rng.choice((0, 1, 2, 3, 30)))]
    if kind < 0.98:
        return {str(rng.choice(WORDS)): leaf(rng) for _ in range(rng.choice((0, 1, 2, 3)))}
    return [[leaf(rng)], {"name": leaf(rng), "lam": [leaf(rng)]}, {}]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each (container, key) in a value."""
    pending = [value]
    while pending:
        here = pending.pop()
        for key in list(here) if isinstance(here, dict) else range(len(here)):
            yield here, key
            if isinstance(here[key], (dict, list)):
                pending.append(here[key])


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(v) for key, v in value.items()}
    return [copied(v) for v in value] if isinstance(value, list) else value


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one to four places changed: replaced, dropped, doubled, renamed, exchanged."""
    value = [copied(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        there = list(places(value))
        here, key = rng.choice(there[1:] or there) if rng.random() < 0.98 else there[0]
        kind = rng.random()
        if kind < 0.6:
            here[key] = hostile(rng)
        elif kind < 0.75 and here is not value:
            del here[key]
        elif kind < 0.85:
            other, at = rng.choice(there)
            if at in other if isinstance(other, dict) else at < len(other):
                here[key] = copied(other[at])
        elif isinstance(here, dict):
            here[str(rng.choice(WORDS)) if rng.random() < 0.7 else rng.choice(list(here))] = here[key]
        elif here is not value:
            here.insert(key, copied(here[key]))
    return value[0]


def as_json(value: Any, rng: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    for mark, made in ((DEEP, nest), (LONG, lambda n: "9" * n)):
        while f'"{mark}' in text:
            before, _, after = text.partition(f'"{mark}')
            count, _, after = after.partition('@"')
            if not count.isdigit():  # it was cut out of a longer word
                break
            text = before + made(int(count)) + after
    return text.encode("utf-8", "surrogatepass")


def nest(levels: int) -> str:
    return "[" * levels + "]" * levels if levels % 20 else '{"a":' * levels + "1" + "}" * levels


TOKENS = (
    b"\0", b"\xff\xfe", b"\n", b"\r", b"\xe2\x80\xa8", b"[" * 5000, b'{"a":' * 2000, b"NaN", b"1e999", b'"', b"}", b",",
    b"\\ud800", b"9" * 5000, b"=", b"[[a]]", b"\x1f\x8b",
)  # fmt: skip


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut off, cut out, doubled, put in."""
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(len(made) + 1), rng.random()
        end = min(len(made), at + rng.choice((1, 2, 8, 100)))
        if kind < 0.4 and at < len(made):
            made[at] ^= 1 << rng.randrange(8)
        elif kind < 0.5:
            del made[at:]
        elif kind < 0.65:
            del made[at:end]
        elif kind < 0.8:
            made[at:at] = made[at:end] * rng.choice((1, 2, 50))
        else:
            made[at:at] = rng.choice(TOKENS)
    return bytes(made)


# --- what every reader owes ------------------------------------------------------------------------------------------


class Hang(BaseException):
    """A case took too long; no reader may catch it."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answered(call: Callable[[], Any], named: str = "") -> Any:
    """What the call returns, or None where it refuses: by ValueError or TypeError, in a sentence that has `named`."""
    try:
        with in_time(), warnings.catch_warnings():
            warnings.simplefilter("error")
            return call()
    except (ValueError, TypeError) as error:
        refusal = error
    said = str(refusal)
    assert type(refusal) in (ValueError, TypeError), repr(refusal)
    assert said and "\n" not in said and len(said) < 2000, f"no sentence: {said[:300]!r}"
    assert named in said, f"{named!r} is not named: {said[:300]!r}"
    return None


def inert(page: str) -> None:
    """No markup of the input's own: the elements and attributes that the hostile words open are not there."""
    assert page.count("<script") == 4, "a script that is not the page's"
    for opened in ("<img", "<svg onload", 'href="javascript', '" onmouseover="pwned', "' onfocus='pwned()'", "49{%"):
        assert opened not in page, opened


@functools.cache
def folder() -> Path:
    """A folder in memory where there is one, for this process."""
    shared = Path("/dev/shm")
    made = tempfile.mkdtemp(prefix="fuzz", dir=shared if shared.is_dir() else None)
    import atexit

    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


@contextlib.contextmanager
def without_plotly() -> Iterator[None]:
    """The drawing library is 4 MB of every page, and the same in each."""
    from nonsmooth.pages import skeleton

    kept = skeleton.get_plotlyjs
    skeleton.get_plotlyjs = lambda: ""
    try:
        yield
    finally:
        skeleton.get_plotlyjs = kept


def placed(name: str, raw: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)
    return path


# --- configs ---------------------------------------------------------------------------------------------------------

CONFIGS: list[dict[str, Any]] = [
    {
        "objective": {"name": "random_least_squares", "n": 9, "p": 3, "seed": 1, "noise": 0.5},
        "rule": {"name": "RMSProp", "lr": {"name": "Cosine", "peak": 0.1, "steps": 100}},
        "penalty": {"name": "L1", "lam": {"geomspace": [0.01, 10, 3]}},
        "run": {"steps": 5, "seeds": 2, "record": ["value"], "tail": 1},
    },
    {
        "objective": {"name": "breast_cancer", "loss": "Hinge", "features": 2},
        "rule": {"name": "Averaging", "rule": {"name": "Gradient", "lr": [0.1, 1]}},
        "penalty": {"name": "ElasticNet", "lam": 0.1, "ridge": {"linspace": [0, 1, 3]}},
    },
    {"objective": {"name": "Huber", "delta": [0.1, 0.2]}, "rule": {"name": "Adam", "lr": 0.1}, "run": {"steps": 3}},
    {"objective": {"name": "MaxLinear", "A": [[1, 2], [3, -4]], "b": [0, 1]}, "rule": {"name": "HeavyBall", "lr": 1}},
    {"objective": {"name": "subgradient_hard_instance", "n": 4}, "rule": {"name": "Gradient", "lr": 1}},
    {"objective": {"name": "Quadratic", "eigenvalues": [1, 2]}, "rule": {"name": "Nesterov", "lr": 1, "beta": 0.9}},
]
SWEEPS: list[dict[str, Any]] = [
    {
        **CONFIGS[2],
        "axes": {"lr": {"loguniform": [1e-3, 1]}, "beta1": [0.5, 0.9]},
        "sweep": {"design": "random", "count": 9, "seed": 1},
    },
    {"function": "train", "axes": {"lr": {"linspace": [0, 1, 3]}, "kind": ["a", "b"]}, "sweep": {"width": 2}},
    {**CONFIGS[0], "axes": {"lam": {"uniform": [0, 1]}}, "sweep": {"design": "grid"}},
]


def as_toml(value: Any) -> str:
    """Inline, but for the first level."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(v)}" for key, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if value is None:
        return "1979-05-27"
    if isinstance(value, str) and value.startswith(DEEP):
        return "[" * (levels := int(value[len(DEEP) : -1])) + "]" * levels
    if isinstance(value, str) and value.startswith(LONG):
        return "9" * int(value[len(LONG) : -1])
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, (bool, float)) else hex(value) if value > 2**64 else str(value)


def toml_case(valid: list[dict[str, Any]], rng: random.Random) -> bytes:
    config = mutated(rng.choice(valid), rng) if rng.random() < 0.7 else rng.choice(valid)
    config = config if isinstance(config, dict) else {"run": config}
    text = "\n".join(f"{json.dumps(key)} = {as_toml(value)}" for key, value in config.items())
    raw = text.encode("utf-8", "surrogatepass")
    return raw if rng.random() < 0.7 else damaged(raw, rng)


def read_a_config(raw: bytes) -> None:
    from nonsmooth.config import read_config

    path = placed("run.toml", raw)
    answered(lambda: read_config(path), "run.toml")


def read_a_sweep(raw: bytes) -> None:
    from nonsmooth.config import read_sweep

    path = placed("sweep.toml", raw)
    answered(lambda: read_sweep(path), "sweep.toml")


# --- the ledger ------------------------------------------------------------------------------------------------------

ROW: dict[str, Any] = {
    "claim": "l1/a", "says": "A grows.", "source": "-", "sentence": 2, "bears": "for",
    "relation": "equals the prediction within 5 %", "what": "norm", "cases": ["η = 1", "η = 2"], "measured": [1.0, 2.0],
    "noise": [0.01, None], "predicted": [1.0, 2.0], "slack": 0.04, "verdict": "supported", "holds_when": "η ≤ 1e-05",
    "mutants": [{"what": "no kink", "verdict": "refuted"}], "seeds": 3, "parameters": {"lams": [0.1, 1e-5], "n": 20000},
    "versions": {"python": "3.11.7"}, "seconds": 1.5, "finished": "2026-01-01T00:00:00+00:00",
    "command": "nonsmooth reproduce --only 'l1/a'",
}  # fmt: skip
ROWS = [
    ROW,
    ROW | {"claim": "edge/b", "relation": "is at most the prediction", "slack": None, "bears": "limits"},
    ROW | {"claim": "networks/c", "relation": "is at least the prediction, give or take 0.1", "verdict": "undecided"},
]
AXES: dict[str, Any] = {"x": {"title": "step", "log": False}, "y": {"title": "loss", "log": True}}
LINES = [
    {"name": "SGD", "x": [1, 2], "y": [0.5, None], "style": "line", "error": None},
    {"name": "law", "x": [1], "y": [1e-9], "style": "dash", "error": [0.1]},
]
HEAT = {"title": "z", "x": [1, 2], "y": [1, 2], "z": [[1, None], [3, 4]]}
FIGURES = [
    {**AXES, "lines": LINES, "heat": None, "title": "a", "says": "It falls."},
    {**AXES, "lines": [], "heat": HEAT, "title": "", "says": ""},
    {"kind": "table", "columns": ["rule", "gap"], "rows": [["SGD", 1], ["GD", "—"]], "title": "", "says": "One has."},
]


def lines_case(valid: list[dict[str, Any]], rng: random.Random) -> bytes:
    rows = mutated(valid, rng) if rng.random() < 0.8 else valid
    rows = rows if isinstance(rows, list) else [rows]
    raw = rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n")).join(as_json(row, rng) for row in rows) + b"\n"
    return raw if rng.random() < 0.7 else damaged(raw, rng)


def read_the_rows(raw: bytes) -> None:
    from nonsmooth.ledger import read_rows
    from nonsmooth.report.rows import check_rows

    path = placed("rows/verdicts.jsonl", raw)
    rows = answered(lambda: read_rows(path), "verdicts.jsonl")
    if rows is not None:
        answered(lambda: check_rows(rows))


def ledger_case(rng: random.Random) -> bytes:
    """Rows, a byte 0, the figures of the first claim."""
    rows, figures = lines_case(ROWS, rng), as_json(FIGURES, rng)
    if rng.random() < 0.5:
        rows, figures = lines_case(ROWS[:1], random.Random(0)), as_json(mutated(FIGURES, rng), rng)
        figures = figures if rng.random() < 0.8 else damaged(figures, rng)
    return rows + b"\0\0" + figures


def write_the_ledger(raw: bytes) -> None:
    from nonsmooth.report import write_report

    with without_plotly():
        rows, _, figures = raw.partition(b"\0\0")
        placed("ledger/verdicts.jsonl", rows)
        placed("ledger/figures/l1--a.json", figures)
        page = answered(lambda: write_report(folder() / "ledger"), "")
        if page is not None:
            inert(page.read_text(encoding="utf-8"))


def tell_on_the_terminal(raw: bytes) -> None:
    """What `nonsmooth show` and `reproduce` print of rows."""
    from nonsmooth import cli

    placed("told/verdicts.jsonl", raw)
    rows = answered(lambda: cli._rows(folder() / "told"))
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8", errors="replace")):
        answers = [answered(functools.partial(_told, cli._print_row, row)) for row in rows or ()]
        answers.append(answered(functools.partial(_told, cli._print_sentences, rows or [])))
    assert all(answers), "what was read cannot be told"


def _told(show: Callable[[Any], None], what: Any) -> bool:
    show(what)
    return True


# --- watched runs ----------------------------------------------------------------------------------------------------

RUN: list[dict[str, Any]] = [
    *(
        {"step": t, "kind": "step", "data": "a batch of step 1", "loss": 1 / t, "loss_after": 0.9 / t, "curvature": 2.0,
         "smooth": 1.5, "kink": 0.5, "orbit_curvature": 2.1, "threshold": 4.0, "step_ratio": 0.5, "kink_share": 0.4,
         "kink_share_by_layer": {"0": 0.1, "2": 0.3, "4": 0.2, "6": 0.1, "8": 0.3}, "flipped": 3, "units": 64,
         "flips_by_layer": {"0": 1, "2": 2}, "lipschitz": 3.0, "predicted": -0.1, "length": 0.3,
         "selection": [["0", "relu", "a1"], ["2", "relu", "b2"]]}
        for t in (1, 3, 5)
    ),
    *(
        {"step": t, "kind": "trace", "loss": 1 / t, "lr": [0.1], "weights": {"0": "aa", "2": "bb"}} for t in (1, 2, 3)
    ),
    {"step": 4, "kind": "stability", "sharpness": 3.0, "ratio": 0.7, "converged": True, "threshold": 4.0},
    {"step": 5, "kind": "chatter", "chattering": 3, "weights": 10, "window": 5, "amplitude": 0.1, "norm": 2.0},
    {"step": 6, "kind": "stability", "error": "RuntimeError: no graph"},
]  # fmt: skip
FACTS: dict[str, Any] = {
    "command": ["python", "train.py"], "steps": 6, "seconds": 3.5, "share": 0.03, "budget": 0.05, "spent": 0.1,
    "optimizer": {"name": "SGD", "groups": [{"lr": 0.1, "momentum": 0.9, "parameters": 2}], "wrapped": "Proximal"},
    "model": {"name": "Net", "parameters": 300, "dtype": "torch.float32"}, "made": {"step": 3, "stability": 1},
    "skipped": {"step": 1}, "missing": [{"what": "loss", "why": "no backward", "line": "x"}], "loss": "MSELoss",
    "census": {"operations": [{"name": "relu", "smoothness": "C⁰", "module": "0", "place": "a.py:1", "calls": 2,
               "numbers": 64, "each": 1, "where": "0", "exact": 0, "returned": [["0", [0.0]]]},
               {"name": "sum", "smoothness": "C^∞"}],
               "hidden": [{"kind": "compiled", "what": "f", "module": "1", "place": "b.py:2", "calls": 1}]},
    "what_if": [{"change": "half", "name": "half-lr", "loss_before": 1.0, "loss_after": 0.5, "steps": 50, "lowest": 0.4,
                 "raising": 0.1, "orbit_curvature": 2.0, "norm": None, "zeros": 3, "diverged": False, "lr": 0.1,
                 "note": "on 3 cached batches"}],
    "findings": [{"id": "ties", "level": "note", "title": "2 ties", "evidence": "e", "why": "w", "do": "d",
                  "lines": "l", "number": 1.5, "unit": "times"}],
    "began": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:00", "exit_code": 0, "torch": "2.9",
    "crashed": None, "l1": {"terms": [{"through": "autograd"}]}, "clipped": True, "clip": 0.5, "accumulation": 2,
    "scaled": True,
}  # fmt: skip


def run_case(rng: random.Random) -> bytes:
    """Rows, two bytes 0, facts."""
    facts = mutated(FACTS, rng) if rng.random() < 0.5 else FACTS
    written = as_json(facts, rng)
    return lines_case(RUN, rng) + b"\0\0" + (written if rng.random() < 0.8 else damaged(written, rng))


def place_run(name: str, raw: bytes) -> Path:
    rows, _, facts = raw.partition(b"\0\0")
    placed(f"{name}/run.json", facts)
    return placed(f"{name}/rows.jsonl", rows).parent


def write_a_run(raw: bytes) -> None:
    from nonsmooth.torch.run_report import write_run_report

    with without_plotly():
        page = answered(lambda: write_run_report(place_run("watched", raw)), "watched/r")
        if page is not None:
            inert(page.read_text(encoding="utf-8"))


def read_a_run(raw: bytes) -> None:
    """Without the page: the quickest way to many cases."""
    from nonsmooth.torch.run_report import read_run
    from nonsmooth.torch.run_report.page import findings_of, settings_of
    from nonsmooth.torch.run_report.tables import census_tables, tried_table
    from nonsmooth.torch.run_report.timeline import timeline

    run = answered(lambda: read_run(place_run("read", raw)), "read/r")
    if run is not None:
        tables = lambda: (census_tables(run.facts.get("census")), tried_table(run.facts.get("what_if") or []))  # noqa: E731
        for call in (lambda: timeline(run), lambda: findings_of(run.facts), lambda: settings_of(run.facts), tables):
            assert answered(call) is not None, "what was read cannot be shown"


def compare_runs(raw: bytes) -> None:
    from nonsmooth.torch.comparison import compare, write_comparison

    with without_plotly():
        if not (folder() / "plain" / "run.json").exists():
            place_run("plain", lines_case(RUN, random.Random(0)) + b"\0\0" + as_json(FACTS, random.Random(0)))
        other = place_run("other", raw)
        found = answered(lambda: str(compare(folder() / "plain", other)), "other/r")
        if found is not None:
            inert(write_comparison(folder() / "plain", other, folder() / "both.html").read_text(encoding="utf-8"))


def find_in_a_run(raw: bytes) -> None:
    """`findings` passes over what is broken: it refuses nothing."""
    from nonsmooth.torch.findings import findings, text

    lines, _, facts = raw.partition(b"\0\0")
    rows = [parsed(line) for line in lines.splitlines()]
    found = answered(lambda: text(findings(parsed(facts), rows)))
    assert found is not None, "findings refuses"


def parsed(raw: bytes) -> Any:
    from nonsmooth.ledger import from_json

    try:
        return from_json(raw)
    except ValueError:
        return None


# --- networks --------------------------------------------------------------------------------------------------------

SETTING = {"key": "0123", "setting": {"data": "digits", "lr": 0.1}, "rows": [{"step": 1, "loss": 0.5}]}


def read_networks(raw: bytes) -> None:
    from nonsmooth.networks.store import Store

    path = placed("networks.jsonl", raw)
    answered(lambda: Store(path).rows, "networks.jsonl")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def idx_case(rng: random.Random) -> bytes:
    images, labels = np.arange(96, dtype=np.uint8).reshape(6, 4, 4), np.arange(6, dtype=np.uint8)
    raw = idx(images if rng.random() < 0.5 else labels)
    if rng.random() < 0.3:
        raw = gzip.compress(raw, mtime=0)
    return bytes([rng.randrange(4), raw[:1] == b"\x1f"]) + damaged(raw, rng)


def load_idx(raw: bytes) -> None:
    from nonsmooth.networks.data import load

    images, labels = np.arange(96, dtype=np.uint8).reshape(6, 4, 4), np.arange(6, dtype=np.uint8)
    shutil.rmtree(folder() / "mnist", ignore_errors=True)
    at, zipped = (raw[0] % 4, raw[1] % 2) if len(raw) > 1 else (0, 0)
    for i, name in enumerate(("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")):
        whole = idx(images if "images" in name else labels)
        hit = i == at
        placed(f"mnist/{name}-ubyte{'.gz' if hit and zipped else ''}", raw[2:] if hit else whole)
    answered(lambda: load.__wrapped__(str(folder() / "mnist")), "mnist")


def cifar_case(rng: random.Random) -> bytes:
    return damaged(bytes(3073) * rng.choice((0, 1, 2)), rng)


def load_cifar(raw: bytes) -> None:
    from nonsmooth.networks.data import load

    placed("cifar/test_batch.bin", bytes(3073))
    placed("cifar/data_batch_1.bin", raw)
    answered(lambda: load.__wrapped__(str(folder() / "cifar")), "cifar")


# --- sweeps ----------------------------------------------------------------------------------------------------------


def squared(lr: float, name: str) -> dict[str, Any]:
    return {"loss": lr**2, "path": [lr, lr + 1.0], "long": float(len(name))}


def swept(at: Path) -> Any:
    from nonsmooth.sweeps import sweep

    axes = {"lr": [0.0, 1.0, 2.0], "name": ["a", "bb"]}
    return sweep(at, squared, axes=axes, width=2, executor=1, progress=False)


@functools.cache
def sweep_files() -> tuple[tuple[str, bytes], ...]:
    """The files of a finished sweep."""
    root = folder() / "whole"
    swept(root)
    return tuple((str(path.relative_to(root)), path.read_bytes()) for path in sorted(root.rglob("*")) if path.is_file())


def sweep_case(rng: random.Random) -> bytes:
    """The number of a file, and what stands in it."""
    files = sweep_files()
    at = rng.randrange(len(files))
    _, raw = files[at]
    with contextlib.suppress(ValueError):
        if rng.random() < 0.8:
            raw = as_json(mutated(json.loads(raw), rng), rng)
            return bytes([at]) + raw
    return bytes([at]) + damaged(raw, rng)


@contextlib.contextmanager
def sweep_with(raw: bytes, where: str) -> Iterator[Path]:
    """The finished sweep with one file replaced, as it was again afterwards."""
    files = sweep_files()
    root = folder() / where
    if not root.exists():
        for name, content in files:
            placed(f"{where}/{name}", content)
    name, content = files[raw[0] % len(files) if raw else 0]
    placed(f"{where}/{name}", raw[1:])
    try:
        yield root
    finally:
        placed(f"{where}/{name}", content)


def open_a_sweep(raw: bytes) -> None:
    """Half of the damaged descriptions have the checksum that is theirs."""
    from nonsmooth.sweeps import open_sweep

    with sweep_with(raw, "opened") as root:
        (marker,) = root.glob("*.shards/coordinates")
        kept, (name, _) = marker.read_bytes(), sweep_files()[raw[0] % len(sweep_files()) if raw else 0]
        if name.endswith("zarr.json") and len(raw) % 2:
            marker.write_text(json.dumps(json.loads(kept) | {name.partition("/")[2]: zlib.crc32(raw[1:])}))
        try:
            answered(lambda: quietly(lambda: open_sweep(root)), "opened")
            answered(lambda: quietly(lambda: open_sweep(root, verify=True)), "opened")
        finally:
            if name != str(marker.relative_to(root)):
                marker.write_bytes(kept)


def quietly(call: Callable[[], Any]) -> Any:
    """Without what Zarr warns of."""
    warnings.simplefilter("ignore")
    return call()


def sweep_again(raw: bytes) -> None:
    """What is damaged is mended: the same call gives what it gave."""
    with sweep_with(raw, "again") as root, in_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            runs = swept(root).load()
        finally:
            if raw[1:] not in dict(sweep_files()).values():
                shutil.rmtree(root)
        assert runs.loss.values.tolist() == [0, 0, 1, 1, 4, 4] and runs.finished.values.all(), runs


# --- states ----------------------------------------------------------------------------------------------------------


def proximal() -> Any:
    import torch

    from nonsmooth.penalties import L1, GroupLasso
    from nonsmooth.torch import Proximal

    a, b, c = (torch.nn.Parameter(torch.arange(1.0, n)) for n in (4.0, 3.0, 3.0))
    groups: list[dict[str, Any]] = [{"params": [a, b]}, {"params": [c], "lr": 0.2}]
    inner = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    made = Proximal(inner, [(L1(0.1), [a]), (GroupLasso(0.2), [c])])
    for p in (a, b, c):
        p.grad = torch.ones_like(p)
    made.step()
    return made


def plain(value: Any) -> Any:
    """A state with its tensors as their precision, shape and bits, to compare."""
    import torch

    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(v) for v in value)
    if isinstance(value, torch.Tensor):
        bits = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return value.dtype, tuple(value.shape), bits.tolist()
    return value


def state_case(state: Callable[[], Any], rng: random.Random) -> Any:
    made = mutated(state(), rng)
    return expanded(made)


INNERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1},
    "SGD momentum": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    "SGD dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "foreach": True},
    "SGD fused": {"lr": 0.1, "momentum": 0.9, "fused": True},
    "Adam": {"weight_decay": 0.1},
    "Adam amsgrad": {"amsgrad": True, "maximize": True, "foreach": False},
    "Adam fused": {"amsgrad": True, "fused": True},
    "Adam capturable": {"capturable": True},
    "AdamW": {"foreach": True},
    "NAdam": {"decoupled_weight_decay": True},
    "RAdam": {"foreach": True},
    "Adamax": {},
    "Adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.5},
    "Adagrad fused": {"fused": True},
    "RMSprop": {},
    "RMSprop centered": {"centered": True, "momentum": 0.9},
    "Adadelta": {"foreach": True},
    "ASGD": {"lambd": 0.1, "t0": 1},
}
"""Each of torch's optimisers that Proximal takes, with the options that change what it keeps."""


def points(dtype: Any = None) -> list[Any]:
    """A matrix, a vector, one number without and one with a dimension, nothing, and one that is frozen."""
    import torch

    made = [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((3, 2), (4,), (), (1,), (0, 2), (2,))]
    made[-1].requires_grad_(False)
    return made


def inner(name: str, dtype: Any = None) -> Any:
    """A torch optimiser of two groups, without a step."""
    import torch

    made = points(dtype)
    groups = [{"params": made[:2]}, {"params": made[2:], "lr": 0.2}]
    return getattr(torch.optim, name.split()[0])(groups, **INNERS[name])


def wrapped(name: str, dtype: Any = None) -> Any:
    from nonsmooth.penalties import L1, GroupLasso
    from nonsmooth.torch import Proximal

    optimizer = inner(name, dtype)
    matrix, *others = (p for group in optimizer.param_groups for p in group["params"])
    fits = GroupLasso(0.1) if name[:3] in ("SGD", "ASG") else L1(0.2)
    return Proximal(optimizer, [(fits, [matrix]), (L1(0.1), others[:2])])


def stepped(optimizer: Any, times: int = 1) -> Any:
    """After steps along a gradient of ones; torch refuses capturable ones on a CPU, so that is off for them.

    In a fused group none that has no state gets a gradient where others have one: torch's SGD then asks for a buffer.
    """
    import torch

    kept = [group.get("capturable") for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = False
        some = group.get("fused") and any(optimizer.state.get(p) for p in group["params"])
        for p in group["params"]:
            asked = p.requires_grad and (not some or optimizer.state.get(p))
            p.grad = torch.ones_like(p) if asked else None
    for _ in range(times):
        optimizer.step(*((lambda: 1.0,) if hasattr(optimizer, "rule") else ()))
    for group, capturable in zip(optimizer.param_groups, kept, strict=True):
        group |= {} if capturable is None else {"capturable": capturable}
    return optimizer


def tensors(value: Any, rng: random.Random) -> Any:
    """Another tensor, or what stands for one: of other shape, precision, layout or size, or of strange numbers."""
    import torch

    changes: tuple[Callable[[Any], Any], ...] = (
        lambda t: t.reshape(-1)[:-1], lambda t: t[None], lambda t: t.reshape(-1), lambda t: t.sum(), torch.zeros_like,
        lambda t: t.mT if t.ndim > 1 else t[:, None] if t.ndim else t[None, None], lambda t: t.new_empty(0),
        lambda t: t * float("nan"), lambda t: t * float("-inf"), lambda t: -t, lambda t: t * 1e30, lambda t: t.long(),
        lambda t: t.bool(), lambda t: t.half(), lambda t: t.double(), lambda t: t + 0j, lambda t: t.to_sparse(),
        lambda t: t.float().requires_grad_(), lambda t: t.tolist(), lambda t: t.to("meta"), lambda t: t.numpy(),
        lambda t: t.sum().expand(10**12), lambda t: t.sum().expand(3, 2), lambda t: torch.full_like(t, 7, dtype=None),
        lambda t: t.as_strided(t.shape, [1] * t.ndim), lambda t: t.sum()[None], lambda t: t.sum().item(),
        lambda t: torch.ones(4, 3, 2),
    )  # fmt: skip
    with contextlib.suppress(TypeError, RuntimeError, IndexError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rng.choice(changes)(value.detach())
    return value


def opened(value: Any) -> Any:
    """With lists for tuples, whose places can be changed."""
    if isinstance(value, dict):
        return {key: opened(v) for key, v in value.items()}
    return [opened(v) for v in value] if isinstance(value, (list, tuple)) else value


def closed(value: Any) -> Any:
    """With tuples for lists again."""
    if isinstance(value, dict):
        return {key: closed(v) if key in ("betas", "memory") else value[key] for key, v in value.items()}
    return tuple(closed(v) for v in value) if isinstance(value, list) else value


def memory_case(names: list[str], build: Callable[[str], Any], rng: random.Random) -> Any:
    """The name of an optimiser, how many steps it has made, and a state in which numbers and tensors are changed."""
    name = rng.choice(names)
    made = opened(stepped(build(name), rng.choice((0, 1, 3))).state_dict())
    if rng.random() < 0.15:
        made = opened(stepped(build(rng.choice(names))).state_dict())
    for _ in range(rng.choice((0, 1, 1, 2))):
        there = [(here, key) for here, key in places(made) if hasattr(here[key], "detach") and here[key].numel() < 99]
        if there:
            here, key = rng.choice(there)
            here[key] = tensors(here[key], rng)
    inside = rng.choice(("state", "param_groups", "", "none"))
    if inside in made:
        made[inside] = mutated(made[inside], rng)
    elif not inside:
        made = mutated(made, rng)
    made = expanded(made)
    if rng.random() < 0.7 and isinstance(made, dict):
        for part in ("state", "param_groups"):
            kept = made.get(part)
            entries = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, list) else ()
            for entry in entries:
                if isinstance(entry, dict):
                    entry |= closed(entry)
    return name, rng.randrange(2), made


def expanded(value: Any) -> Any:
    """With the stand-ins as what they stand for; nests of lists no deeper than what repr can say."""
    if isinstance(value, dict):
        return {key: expanded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [expanded(v) for v in value]
    if isinstance(value, str) and value.startswith(DEEP):
        nested: list[Any] = []
        for _ in range(min(int(value[len(DEEP) : -1]), 40)):
            nested = [nested]
        return nested
    return 10 ** int(value[len(LONG) : -1]) if isinstance(value, str) and value.startswith(LONG) else value


def load_into(made: Any, state: Any, whole: Callable[[], Any] | None = None, named: str = "") -> bool:
    """Whether it was taken; where it was refused nothing has changed."""
    seen = whole or made.state_dict
    before = repr(plain(seen()))
    taken = [False]

    def load() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of a complex number that it takes for a real one
            made.load_state_dict(state)
        taken[0] = True

    answered(load, named)
    if not taken[0]:
        assert repr(plain(seen())) == before, "a refused state changed something"
    return taken[0]


def held(made: Any) -> Any:
    """All that a load may change."""
    params = [p for group in made.param_groups for p in group["params"]]
    numbers = [{k: v for k, v in group.items() if k != "params"} for group in made.param_groups]
    places = {id(p): i for i, p in enumerate(params)}
    inside = [(places.get(id(p), p), state) for p, state in made.state.items()]
    return made.state_dict(), params, numbers, inside, sorted(getattr(made, "classes", ()))


def steps_on(made: Any) -> None:
    """What was taken can be stepped from, to finite numbers or not, and saved."""
    with in_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stepped(made, 2)
        made.state_dict()


def load_proximal(state: Any) -> None:
    made = proximal()
    if load_into(made, state, lambda: held(made), "Proximal: "):
        answered(lambda: (made.penalty_value(), made.state_dict(), list(made.penalised())))
        steps_on(made)


def load_memory(build: Callable[[str], Any], named: str, case: tuple[str, int, Any]) -> None:
    name, steps, state = case
    made = stepped(build(name), steps)
    if load_into(made, state, lambda: held(made), named):
        steps_on(made)


@functools.cache
def rules() -> dict[str, Any]:
    import nonsmooth.rules as known

    schedules = known.Cosine(0.1, steps=100), known.InverseSqrt(0.1)
    made = [
        known.Gradient(0.1), known.HeavyBall(0.1), known.Nesterov(0.1), known.Adam(), known.AdamW(), known.NAdam(),
        known.RAdam(), known.Adamax(), known.Adagrad(), known.RMSProp(centered=True), known.Adadelta(), known.ASGD(),
        known.RDA(0.5), known.LinearisedBregman(0.1), known.FISTA(0.1, restart=False), known.Averaging(known.Adam()),
        known.Polyak(0.0), *(known.Gradient(schedule) for schedule in schedules),
    ]  # fmt: skip
    return {f"{type(rule).__name__} {i}": rule for i, rule in enumerate(made)}


def from_rule(name: str) -> Any:
    from nonsmooth.penalties import L1, ElasticNet
    from nonsmooth.torch import FromRule

    rule = rules()[name]
    if rule.needs_value:
        return FromRule(points()[:1], rule, L1(0.1))
    first, second, *_ = points()
    return FromRule([{"params": [first]}, {"params": [second], "penalty": ElasticNet(0.1, 0.2)}], rule, L1(0.1))


def pruning() -> Any:
    from nonsmooth.torch import MagnitudePruning

    made = MagnitudePruning(points()[:3], 0.5, begin=2, end=6, every=2)
    made.step()
    made.step()
    return made


def pruning_case(rng: random.Random) -> Any:
    state = pruning().state_dict()
    if rng.random() < 0.5:
        at = rng.randrange(3)
        state["keep"][at] = tensors(state["keep"][at], rng)
    return expanded(mutated(state, rng) if rng.random() < 0.7 else state)


def load_pruning(state: Any) -> None:
    made = pruning()
    if load_into(made, state, lambda: (made.state_dict(), made.params), "MagnitudePruning: "):
        for _ in range(3):
            made.step()
        assert 0 <= made.density <= 1


def controller() -> Any:
    from nonsmooth.torch import TargetSparsity

    made = TargetSparsity(proximal(), [0.5, 0.4], 100, by="entry")
    made.step()
    return made


def load_sparsity(state: Any) -> None:
    made = controller()
    if load_into(made, state, named="TargetSparsity: "):
        made.step()
        made.state_dict()


def schedule() -> Any:
    from nonsmooth.torch import LambdaLam

    return LambdaLam(proximal(), lambda t: 2.0 ** -min(t, 9))


def load_schedule(state: Any) -> None:
    made = schedule()
    if load_into(made, state, lambda: (made.state_dict(), made.get_last_lam()), "LambdaLam: "):
        made.step()


def path_case(rng: random.Random) -> bytes:
    import torch

    file = io.BytesIO()
    state = {"row": {"lam": 0.5, "density": 1.0}, "state": torch.ones(2)}
    torch.save(expanded(mutated(state, rng)) if rng.random() < 0.5 else state, file)
    return file.getvalue() if rng.random() < 0.3 else damaged(file.getvalue(), rng)


def read_a_path(raw: bytes) -> None:
    from nonsmooth.torch import lam_path

    placed("path/000.pt", raw)
    answered(lambda: lam_path(lambda lam, state: {"state": 0}, [0.5], folder=folder() / "path"), "000.pt")


# --- one table -------------------------------------------------------------------------------------------------------

Case = tuple[Callable[[random.Random], Any], Callable[[Any], None]]
READERS: dict[str, Case] = {
    "config": (functools.partial(toml_case, CONFIGS), read_a_config),
    "sweep-config": (functools.partial(toml_case, SWEEPS), read_a_sweep),
    "rows": (functools.partial(lines_case, ROWS), read_the_rows),
    "ledger-page": (ledger_case, write_the_ledger),
    "terminal": (functools.partial(lines_case, ROWS), tell_on_the_terminal),
    "run": (run_case, read_a_run),
    "run-page": (run_case, write_a_run),
    "comparison": (run_case, compare_runs),
    "findings": (run_case, find_in_a_run),
    "networks": (functools.partial(lines_case, [SETTING, SETTING]), read_networks),
    "idx": (idx_case, load_idx),
    "cifar": (cifar_case, load_cifar),
    "open-sweep": (sweep_case, open_a_sweep),
    "sweep-again": (sweep_case, sweep_again),
    "proximal": (functools.partial(state_case, lambda: proximal().state_dict()), load_proximal),
    "inner": (
        lambda rng: memory_case(list(INNERS), wrapped, rng),
        functools.partial(load_memory, wrapped, "Proximal: "),
    ),
    "from-rule": (
        lambda rng: memory_case(list(rules()), from_rule, rng),
        functools.partial(load_memory, from_rule, "FromRule: "),
    ),
    "pruning": (pruning_case, load_pruning),
    "sparsity": (functools.partial(state_case, lambda: controller().state_dict()), load_sparsity),
    "schedule": (functools.partial(state_case, lambda: schedule().state_dict()), load_schedule),
    "lam-path": (path_case, read_a_path),
}
"""Of each reader how a case is made from a random generator, and what must hold of it."""


def check(reader: str, seed: int) -> None:
    """One case; AssertionError, or whatever the reader lets through, where the reader fails."""
    make, read = READERS[reader]
    read(make(random.Random(f"{reader} {seed}")))


def atheris(reader: str, arguments: list[str]) -> None:
    """By coverage, without end, until a case fails."""
    import atheris as engine

    _, read = READERS[reader]
    with engine.instrument_imports(include=["nonsmooth", "tomllib", "json"]):
        read(READERS[reader][0](random.Random(0)))
    engine.Setup([sys.argv[0], *arguments], read)
    engine.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="Hostile input for one reader.")
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many, whatever the count")
    parser.add_argument("--all", action="store_true", help="tell each kind of failure once and go on")
    parser.add_argument("--atheris", action="store_true")
    options, rest = parser.parse_known_args()
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    if options.atheris:
        atheris(options.reader, rest)
    began, kinds, done = time.perf_counter(), set(), 0
    for seed in range(options.seed, options.seed + options.cases):
        try:
            check(options.reader, seed)
        except (Exception, Hang) as error:
            at = error.__traceback__
            while at is not None and at.tb_next is not None:
                at = at.tb_next
            kind = f"{type(error).__name__} {at and at.tb_frame.f_code.co_filename}:{at and at.tb_lineno}"
            if kind not in kinds:
                kinds.add(kind)
                print(f"{options.reader}: seed {seed} fails: {kind}: {str(error)[:300]}", flush=True)
            if not options.all:
                return 1
        done += 1
        if time.perf_counter() - began > options.seconds:
            break
    print(f"{options.reader}: {done} cases from seed {options.seed} in {time.perf_counter() - began:.1f} s,"
          f" {len(kinds)} kinds of failure")  # fmt: skip
    return bool(kinds)


if __name__ == "__main__":
    sys.exit(main())

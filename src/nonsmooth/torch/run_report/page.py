"""The page of a watched run: its facts in words, its findings, its timeline and its census, on the common skeleton."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from nonsmooth.pages import date, document, seconds, write_whole
from nonsmooth.pages.numbers import setting, show
from nonsmooth.torch.run_report.folder import Run, check_facts, check_rows, number, read_run, text
from nonsmooth.torch.run_report.tables import census_tables, tried_table
from nonsmooth.torch.run_report.timeline import timeline

__all__ = ["described", "findings_of", "render_run", "settings_of", "write_page", "write_run_report"]

LEVELS = {"problem": ("refuted", "problem"), "note": ("mixed", "note"), "fine": ("supported", "fine")}
"""The look and the word of a finding's level, the gravest first."""

KINDS = {"step": "steps", "stability": "stability", "trace": "trace", "chatter": "chatter"}
VERSIONS = ("nonsmooth", "torch", "python")


def write_run_report(folder: str | Path, target: str | Path | None = None) -> Path:
    """rows.jsonl and run.json of `folder` → one HTML file: `target`, or report.html beside them. Whole or not at all.

    Raises ValueError, in one sentence, for a file that is broken or cannot be read or written.

    >>> write_run_report("no-such-folder")
    Traceback (most recent call last):
    ValueError: no-such-folder: holds no watched run (neither rows.jsonl nor run.json); give the folder of a Monitor.
    """
    run = read_run(folder)
    target = Path(folder) / "report.html" if target is None else Path(target)
    return write_whole(target, _render(run), "choose another file")


def render_run(facts: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The page of a run as text. Same input, same page.

    Raises ValueError, in one sentence, for facts or rows that are not those of a watched run.

    >>> "No finding was made" in render_run({}, [])
    True
    """
    check_facts(facts, "the facts")
    return _render(Run("", dict(facts), tuple(check_rows(rows, "the rows")), ()))


def write_page(facts: dict[str, Any], rows: Sequence[dict[str, Any]], target: str | Path) -> Path:
    """`render_run` into a file, whole or not at all; ValueError, in one sentence, where it cannot be written.

    >>> write_page({}, [], "no-such-folder/run.html")
    Traceback (most recent call last):
    ValueError: no-such-folder/run.html: cannot be written (No such file or directory); choose another file.
    """
    return write_whole(Path(target), render_run(facts, rows), "choose another file")


def _render(run: Run) -> str:
    sections, census = timeline(run), census_tables(run.facts.get("census"))
    tried = tried_table(_records(run.facts, "what_if"))
    failed = [row for row in run.rows if "error" in row]
    tables = [t for t in (tried, census["kinked"], census["smooth"], census["hidden"]) if t is not None]
    return document(
        "nonsmooth.torch.run_report",
        "run.html",
        drawn=[*(plot for section in sections for plot in section.plots), *tables],
        styles=["run.css"],
        header=_header(run),
        findings=findings_of(run.facts),
        missing=[{k: text(m.get(k)) for k in ("what", "why", "line")} for m in _records(run.facts, "missing")],
        failed=_failures(failed),
        tried=tried,
        sections=sections,
        census=census,
        settings=settings_of(run.facts),
        provenance=_provenance(run.facts),
        remarks=run.remarks,
        measured=bool(run.rows),
    )


def _records(facts: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    return list(facts.get(key) or [])


# --- the header ------------------------------------------------------------------------------------------------------


def _header(run: Run) -> dict[str, Any]:
    facts, made = run.facts, run.facts.get("made") or {}
    probes = {
        kind: int(number(made[kind]))
        if math.isfinite(number(made.get(kind)))
        else sum(row["kind"] == kind for row in run.rows)
        for kind in ("step", "stability")
    }
    steps = number(facts.get("steps"))
    steps = steps if math.isfinite(steps) else max((row["step"] for row in run.rows), default=0)
    share = number(facts.get("share"))
    tallies = [
        {"count": setting(int(steps)), "word": "step" if steps == 1 else "steps"},
        {"count": setting(probes["step"]), "word": "measured"},
        {"count": setting(probes["stability"]), "word": "for stability"},
    ]
    if math.isfinite(share):
        tallies.append({"count": show(100 * share, 2) + " %", "word": "of the time, observing"})
    command = facts.get("command") or []
    return {
        "script": _script(command),
        "tallies": tallies,
        "crashed": text(facts.get("crashed")),
        "lines": {word: text for word, text in _lines(facts, probes, steps) if text},
        "iso": text(facts.get("began")),
    }


def _script(command: Sequence[Any]) -> str:
    words = [word for word in command if isinstance(word, str)]
    scripts = [word for word in words if word.endswith(".py")]
    return PurePath((scripts or words or [""])[0]).name


def _lines(facts: Mapping[str, Any], probes: Mapping[str, int], steps: float) -> list[tuple[str, str]]:
    model, optimizer = facts.get("model") or {}, facts.get("optimizer") or {}
    size = number(model.get("parameters"))
    named = text(model.get("name"))
    weights = f"{setting(int(size))} parameters" if math.isfinite(size) else ""
    when, wall = text(facts.get("began")), number(facts.get("seconds"))
    code = number(facts.get("exit_code"))
    ran = [
        date(when) if when else "",
        f"took {seconds(wall)}" if math.isfinite(wall) else "",
        f"exit code {int(code)}" if math.isfinite(code) else "",
    ]
    return [
        ("Model", ", ".join(filter(None, (named, weights)))),
        ("Optimiser", described(optimizer)),
        ("Loss", _loss(facts)),
        ("Run", " · ".join(filter(None, ran))),
        ("Observing", _cost(facts, probes, steps)),
    ]


def described(optimizer: Mapping[str, Any]) -> str:
    """An optimiser in words: its name, its first group's settings that are not off, its wrapper.

    >>> described({"name": "SGD", "groups": [{"lr": 0.1, "momentum": 0.9, "nesterov": False}], "wrapped": "Proximal"})
    'SGD in a Proximal, lr 0.1, momentum 0.9'
    """
    name = text(optimizer.get("name"))
    if not name:
        return ""
    groups = optimizer.get("groups") or []
    kept = [
        f"{key} {setting(value)}" if value is not True else key
        for key, value in (groups[0].items() if groups else ())
        if key != "parameters" and value not in (None, 0, False, [], "") and isinstance(value, (int, float, str, list))
    ]
    wrapped = f" in a {text(optimizer['wrapped'])}" if optimizer.get("wrapped") else ""
    more = [f"{len(groups)} groups, of which this is the first"] if len(groups) > 1 else []
    return ", ".join([name + wrapped, *kept, *more])


def _loss(facts: Mapping[str, Any]) -> str:
    backward = number(facts.get("accumulation"))
    said = [
        text(facts.get("loss")),
        f"{int(backward)} backward calls a step" if math.isfinite(backward) and backward > 1 else "",
        *(word for key, word in (("scaled", "scaled"), ("clipped", "gradients clipped"), ("compiled", "compiled model"))
          if facts.get(key)),
    ]  # fmt: skip
    return ", ".join(filter(None, said))


def _cost(facts: Mapping[str, Any], probes: Mapping[str, int], steps: float) -> str:
    spent, share, budget = (number(facts.get(key)) for key in ("spent", "share", "budget"))
    said = []
    if math.isfinite(spent):
        said.append(f"{seconds(spent)} spent")
    if math.isfinite(share):
        said.append(f"{show(100 * share, 2)} % of the wall clock")
    if math.isfinite(budget):
        over = " (more than asked)" if math.isfinite(share) and share > budget + 0.02 else ""
        said.append(f"budget {show(100 * budget, 3)} %{over}")
    skipped = facts.get("skipped") or {}
    counts = [
        f"{setting(int(number(skipped[kind])))} for {name}"
        for kind, name in KINDS.items()
        if math.isfinite(number(skipped.get(kind))) and number(skipped[kind]) > 0
    ]
    if counts:
        said.append(f"of {setting(int(steps))} steps skipped: {', '.join(counts)}")
    return " · ".join(said)


# --- findings, failures, what was tried ------------------------------------------------------------------------------


def findings_of(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The findings as the page shows them, the gravest first; a level that is none of the three counts as a note.

    >>> (found,) = findings_of({"findings": [{"level": "problem", "title": "Too far", "number": 1.5, "unit": "times"}]})
    >>> found["word"], found["amount"]
    ('problem', '1.5 times')
    """
    shown = []
    for i, finding in enumerate(_records(facts, "findings"), 1):
        look, word = LEVELS.get(text(finding.get("level")), LEVELS["note"])
        amount, unit = number(finding.get("number")), text(finding.get("unit"))
        shown.append(
            {
                "anchor": f"finding-{i}",
                "look": look,
                "word": word,
                "id": text(finding.get("id")),
                "amount": f"{show(amount, 3)} {unit}".strip() if math.isfinite(amount) else "",
                **{key: text(finding.get(key)) for key in ("title", "evidence", "why", "do", "lines")},
            }
        )
    order = [look for look, _ in LEVELS.values()]
    return sorted(shown, key=lambda finding: order.index(finding["look"]))


def _failures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The probes that failed, alike ones together."""
    found: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        found.setdefault((row["kind"], text(row.get("error"))), []).append(row["step"])
    return [
        {"kind": kind, "error": error, "steps": steps, "first": min(steps), "last": max(steps)}
        for (kind, error), steps in found.items()
    ]


# --- how it was run --------------------------------------------------------------------------------------------------


def settings_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """What was set, one line each: the optimiser's groups, how the loss and the model were treated, the data's side.

    >>> settings_of({"optimizer": {"name": "SGD", "groups": [{"lr": 0.1}]}, "scaled": False})
    {'optimizer': 'SGD', 'lr': '0.1', 'scaled': 'no'}
    """
    optimizer, model = facts.get("optimizer") or {}, facts.get("model") or {}
    found: dict[str, Any] = {"optimizer": optimizer.get("name"), "wrapped": optimizer.get("wrapped")}
    groups = optimizer.get("groups") or []
    for i, group in enumerate(groups, 1):
        found |= {
            key if len(groups) == 1 else f"group {i}: {key}": value
            for key, value in group.items()
            if key != "parameters" or len(groups) > 1
        }
    found |= {"model": model.get("name"), "model parameters": model.get("parameters")}
    found |= {key: facts.get(key) for key in ("loss", "accumulation", "scaled", "clipped", "compiled")}
    if facts.get("clipped") is False:
        found["clipped"] = "not at the steps compared"
    found |= {key: facts.get(key) for key in ("device", "threads", "budget")}
    return {key: text(value) for key, value in found.items() if value is not None}


def _provenance(facts: Mapping[str, Any]) -> dict[str, Any]:
    command = [str(word) for word in facts.get("command") or []]
    return {
        "versions": {name: text(facts[name]) for name in VERSIONS if facts.get(name)},
        "command": shlex.join(command),
        "ended": date(text(facts.get("ended"))),
    }

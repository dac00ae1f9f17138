"""The page of a watched run: what it says and what it refuses. In a browser: test_run_report_browser.py."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from markupsafe import escape

from nonsmooth.torch.census import census
from nonsmooth.torch.findings import findings
from nonsmooth.torch.findings.bounds import descent_bounds
from nonsmooth.torch.findings.record import Record
from nonsmooth.torch.run_report import read_run, render_run, write_run_report
from nonsmooth.torch.run_report.page import settings_of
from nonsmooth.torch.run_report.timeline import thinned, timeline
from nonsmooth.torch.stability import stability
from nonsmooth.torch.steps import OrbitCurvature, measure_step
from test_report import HOSTILE, Seen

FINDINGS = [
    {
        "id": "nothing-unusual",
        "level": "fine",
        "title": "No unit lies exactly on a kink",
        "evidence": "0 of 4096 inputs of relu at step 1.",
        "why": "What torch returns at a tie does not matter here.",
        "do": "",
        "lines": "",
        "number": 0,
        "unit": "of 4096 inputs",
    },
    {
        "id": "steps-beyond-threshold",
        "level": "problem",
        "title": "Steps cross the optimiser's own threshold",
        "evidence": "κ was above 2/lr = 3.33 at 31 of 60 measured steps; κ̄ over the last 60 is 3.31 ± 0.04.",
        "why": "Beyond it a step along this direction overshoots: the loss falls only because directions change.",
        "do": "Half the learning rate was tried from the checkpoint: it raised the loss at no step.",
        "lines": 'for group in optimizer.param_groups:\n    group["lr"] = 0.3',
        "number": 1.04,
        "unit": "× the threshold",
    },
    {
        "id": "kinks-carry-curvature",
        "level": "note",
        "title": "Kinks carry most of the curvature",
        "evidence": "The kink part was the larger at 55 of 60 steps.",
        "why": "A Hessian does not see it, and so no L taken from one bounds this run.",
        "do": "Read κ, not λ₁.",
        "lines": "",
        "number": 0.93,
        "unit": "kink share",
    },
]

WHAT_IF = [
    {
        "change": change,
        "name": name,
        "steps": 100,
        "loss_before": 0.5,
        "loss_after": after,
        "lowest": after,
        "raising": raising,
        "orbit_curvature": orbit,
        "norm": None,
        "zeros": None,
        "diverged": math.isnan(after),
        "lr": lr,
        "note": note,
    }
    for change, name, after, raising, orbit, lr, note in (
        ("as it is", "as-it-is", 0.31, 0.46, 3.3, 0.6, ""),
        ("half the learning rate", "half-lr", 0.34, 0.0, 2.9, 0.3, "slower, and never up"),
        ("twice the learning rate", "double-lr", math.nan, 0.71, math.nan, 1.2, "left the finite numbers at step 12"),
    )
]


def network(activation, seed, depth=3):
    torch.manual_seed(seed)
    wide = [layer for _ in range(depth - 1) for layer in (torch.nn.Linear(16, 16), activation())]
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), activation(), *wide, torch.nn.Linear(16, 1))
    return model.double()


def watch(
    folder: Path,
    lr=0.6,
    steps=120,
    seed=0,
    activation=torch.nn.ReLU,
    depth=3,
    rule=torch.optim.SGD,
    parts_at=None,
    **facts,
):
    """A small real run, measured at every second step, with rows as a Monitor writes them and facts made by hand."""
    folder.mkdir(exist_ok=True)
    model = network(activation, seed, depth)
    x = torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    y = (x[:, :1] * x[:, 1:2]).sin() + x[:, 2:3].abs()
    loss_of = torch.nn.MSELoss()
    closure = lambda: loss_of(model(x), y)  # noqa: E731
    optimizer, orbit, last, rows = rule(model.parameters(), lr=lr), OrbitCurvature(60), None, []
    common = {"data": "the script's last batch", "penalty": "no penalty"}
    plain = rule is torch.optim.SGD
    for t in range(1, steps + 1):
        optimizer.zero_grad()
        loss = closure()
        loss.backward()
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        with torch.no_grad():
            if t == parts_at:
                model[2].weight[0, 0] += 0.5
            after = [p.detach().clone() for p in model.parameters()]
        sums = {
            n: zlib.crc32(m.weight.detach().numpy().tobytes())
            for n, m in model.named_children()
            if hasattr(m, "weight")
        }
        rows.append({"step": t, "kind": "trace", "at": 0.01 * t, "loss": loss.item(), "lr": [lr], "weights": sums})
        if t % 2 == 0:
            with torch.no_grad():
                for p, old in zip(model.parameters(), before):
                    p.copy_(old)
            step = measure_step(closure, list(model.named_parameters()), after)
            digests = [
                [str(2 * k + 1), "relu", zlib.crc32((h > 0).numpy().tobytes())] for k, h in enumerate(hidden(model, x))
            ]
            with torch.no_grad():
                for p, new in zip(model.parameters(), after):
                    p.copy_(new)
            orbit.update(step)
            rows.append(
                {
                    "step": t,
                    "kind": "step",
                    "at": 0.01 * t,
                    "loss": step.loss_before,
                    "loss_after": step.loss_after,
                    "predicted": step.predicted,
                    "curvature": step.curvature,
                    "smooth": step.frozen.smooth,
                    "kink": step.frozen.kink,
                    "kink_share": step.frozen.share,
                    "kink_share_by_layer": dict(step.frozen.by_layer),
                    "orbit_curvature": orbit.value,
                    "lipschitz": step.lipschitz,
                    "length": step.length,
                    "flipped": step.flipped,
                    "units": 64 * 16 * 3,
                    "flips_by_layer": step.flips_by_layer,
                    "ties": step.ties,
                    "undefined": [],
                    "unseen": [],
                    "selection": digests,
                    **({"threshold": 2 / lr} if plain else {"step_ratio": 0.4 + 0.001 * t}),
                }
            )
        if t % 10 == 0:
            last = stability(optimizer, closure, start=last, tol=0.05)
            known = {
                "sharpness": last.sharpness,
                "residual": last.residual,
                "threshold": last.threshold,
                "converged": True,
            }
            rows.append({"step": t, "kind": "stability", "at": 0.01 * t, "ratio": last.ratio, "products": 9, **known})
    rows = [row | common for row in rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(jsonable(row)) + "\n" for row in rows), encoding="utf-8")
    seen = dataclasses.asdict(census(model, x, loss=lambda out: loss_of(out, y)))
    group = {"lr": lr, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "parameters": 8}
    made = {
        "nonsmooth": "0.1.0",
        "torch": torch.__version__,
        "python": "3.12.3",
        "command": ["train.py", "--lr", str(lr)],
        "began": "2026-03-01T09:05:00+00:00",
        "ended": "2026-03-01T09:05:31+00:00",
        "seconds": 31.0,
        "exit_code": 0,
        "crashed": None,
        "device": "cpu",
        "threads": 1,
        "budget": 0.05,
        "spent": 1.4,
        "share": 1.4 / 31,
        "steps": steps,
        "made": {"step": steps // 2, "stability": steps // 10},
        "skipped": {"step": steps - steps // 2, "stability": steps - steps // 10},
        "optimizer": {"name": rule.__name__, "groups": [group], "parameters": 641, "tensors": 8, "wrapped": None},
        "model": {"name": "Sequential", "parameters": 641, "training": True},
        "loss": "MSELoss, the last module called before backward()",
        "accumulation": 1,
        "scaled": False,
        "clipped": None,
        "compiled": False,
        "missing": [],
        "census": seen,
        "l1": None,
        "what_if": WHAT_IF,
        "findings": FINDINGS,
    }
    (folder / "run.json").write_text(json.dumps(jsonable(made | facts)), encoding="utf-8")
    return folder


def hidden(model, x):
    """The pre-activations of each activation."""
    found = []
    for layer in model:
        if not isinstance(layer, torch.nn.Linear):
            found.append(x.detach())
        x = layer(x)
    return found


def jsonable(value):
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: jsonable(v) for key, v in value.items()}
    return [jsonable(v) for v in value] if isinstance(value, (list, tuple)) else value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return watch(tmp_path_factory.mktemp("run"), lr=0.3)


@pytest.fixture(scope="module")
def page(folder):
    return write_run_report(folder).read_text(encoding="utf-8")


def plain(page):
    """The words of a page, without its scripts and styles."""
    bare = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", bare)).replace("\u00a0", " ").split())


def drawn(page):
    return json.loads(re.findall(r'<script type="application/json" id="plots">(.*?)</script>', page, flags=re.S)[0])


def lines_of(page, file):
    (plot,) = [plot for plot in drawn(page) if plot["file"] == file]
    return {line["name"]: line for line in plot["lines"]}


# --- what it says ----------------------------------------------------------------------------------------------------


def test_the_order_of_the_page(page):
    titles = re.findall(r"<h2 [^>]*>(.*?)</h2>", page)
    assert titles == ["Findings", "What was tried from the checkpoint", "The timeline", "The census", "How it was run"]
    words = plain(page)
    assert "What train.py met on its way" in words
    assert "Sequential, 641 parameters" in words and "SGD, lr 0.3" in words
    assert "1 March 2026, 09:05 UTC · took 31 s · exit code 0" in words
    assert "1.4 s spent · 4.5 % of the wall clock · budget 5 % · of 120 steps skipped: 60 for steps, 108 for" in words
    assert "torch " + torch.__version__ in words


def test_findings_stand_gravest_first_with_all_they_say(page):
    part = page[page.index('id="findings"') : page.index('id="tried"')]
    assert re.findall(r'class="finding (\w+) ', part) == ["refuted", "mixed", "supported"]
    for finding in FINDINGS:
        assert all(escape(finding[key]) in part for key in ("title", "why", "lines"))
    assert "1.04 × the threshold" in plain(part) and "0 of 4096 inputs" in plain(part)
    assert part.count('class="copy"') == 1


def test_a_share_beyond_all_numbers_is_shown_as_none():
    page = render_run({"what_if": [WHAT_IF[0] | {"raising": -(2.0**1023)}]}, [])
    assert "steps that raised it, %" in page and ">—</td>" in page


def test_what_was_tried_leaves_out_columns_without_a_number_and_says_diverged(page):
    part = page[page.index('id="tried"') : page.index('id="timeline"')]
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', part)
    assert heads == ["change", "loss after", "lr", "lowest", "steps that raised it, %", "κ̄"]
    assert "All of it: loss before 0.5; steps 100." in plain(part)  # what is alike is said once
    assert "twice the learning rate diverged 1.2 — 71 — " in plain(part)
    assert part.count('<td class="num">') == 3 * 5
    assert "twice the learning rate : left the finite numbers at step 12" in plain(part)
    one = render_run({"what_if": [row | {"note": "on one batch"} for row in WHAT_IF]}, [])
    assert plain(one).count("on one batch") == 1
    parted = [row | {"note": f"{head}on the batches of steps 3, 4"} for row, head in zip(WHAT_IF, ("", "β = 20; ", ""))]
    words = plain(render_run({"what_if": parted}, []))
    assert words.count("on the batches of steps 3, 4; loss before 0.5") == words.count("on the batches") == 1
    assert "half the learning rate : β = 20 " in words
    other = [WHAT_IF[0], WHAT_IF[1] | {"steps": 50}]
    assert "All of it: loss before 0.5." in plain(render_run({"what_if": other}, []))


def test_the_curves_are_those_of_the_rows(folder, page):
    run = read_run(folder)
    trace, steps, sharp = run.of("trace"), run.of("step"), run.of("stability")
    loss = lines_of(page, "loss-1")
    assert loss["the script's loss"]["y"] == pytest.approx([row["loss"] for row in trace], rel=1e-7)
    bounds = lines_of(page, "loss-2")
    assert {"bound with the largest L", "bound with L = λ₁"} < set(bounds)
    met = lines_of(page, "curvature-1")
    assert met["κ"]["x"] == [row["step"] for row in steps]
    assert met["its kink part"]["y"] == pytest.approx([row["kink"] for row in steps], rel=1e-7)
    assert met["sharpness λ₁"]["y"] == pytest.approx([row["sharpness"] for row in sharp], rel=1e-7)
    assert set(met["the optimiser's threshold"]["y"]) == {float(f"{2 / 0.3:.8g}")}
    assert set(lines_of(page, "kink-share-1")) == {"the whole model", "layer 0", "layer 2", "layer 4", "layer 6"}
    assert set(lines_of(page, "flips-1")) == {"the whole model", "layer 1", "layer 3", "layer 5"}
    above = sum(row["curvature"] > row["threshold"] for row in steps)
    assert 0 < above < 60
    assert f"κ was above the optimiser's threshold at {above} of 60 measured steps." in plain(page)
    larger = sum(abs(row["kink"]) > abs(row["smooth"]) for row in steps)
    assert f"The kink part was the larger at {larger} of 60." in plain(page)
    assert "Chatter was not measured: no window of steps was complete" in plain(page)


def test_whose_norm_the_chatter_section_draws_and_what_flips_count():
    rows = [
        {"step": 9, "kind": "chatter", "window": 8, "weights": 115008, "chattering": 5, "amplitude": 0.1, "norm": 3.0},
        {"step": 9, "kind": "step", "flipped": 7, "units": 115008},
    ]
    for facts in ({}, {"l1": {"terms": [{"lam": 0.1}]}}):  # what is followed does not depend on a penalty
        words = plain(render_run(facts, rows))
        assert "The L1 norm of the weights followed, penalised or not" in words
        assert "Unit outputs (units × samples)" in words
        assert (
            "no window of steps was complete" not in words
            and "of 115008 with kinks." in words
            and "115008 weights are followed; these changed sign again" in words
            and "× 10⁵" not in words
        )


def test_the_census_has_kinks_first_and_the_rest_folded(page):
    part = page[page.index('id="census"') : page.index('id="provenance"')]
    assert "3 of 8 operations of the forward pass and the loss have kinks. Nothing that hides kinks" in plain(part)
    kinked, smooth = part.split("<details")
    assert kinked.count('<th scope="row" class="short">relu</th>') == 3 and "linear" not in kinked
    assert "0 at 0" in kinked
    assert smooth.count('<th scope="row" class="short">linear</th>') == 4


def step(t, **more):
    """A step row for which the descent lemma gives 1 + L/2."""
    return {"step": t, "kind": "step", "loss": 2.0, "predicted": -1.0, "length": 1.0, "loss_after": 1.0} | more


def sharp(t, value, **more):
    return {"step": t, "kind": "stability", "sharpness": value, "converged": True} | more


BY_HAND = [
    step(1, lipschitz=3.0, loss_after=9.0),  # no L is known before it
    sharp(1, 2.0),
    step(2, lipschitz=1.0, loss_after=2.1),  # below 1 + 3/2, above 1 + 2/2
    step(3, lipschitz=9.0, loss_after=2.6),  # above 1 + 3/2 and 1 + 2/2
    sharp(3, 20.0),  # holds from step 4 on
    sharp(3, 90.0, converged=False),  # says nothing
    step(4, lipschitz="inf", loss_after="nan"),  # 1 + 20/2: a loss that is no number is above
    sharp(4, 0.0),
    step(5, lipschitz=2.0, loss_after=1.000001),  # 1 + 20/2; above 1 + 0/2 by rounding alone
    {"step": 6, "kind": "step", "error": "RuntimeError: no"},
]


def test_the_bounds_by_hand():
    largest, hessian = descent_bounds(Record({}, BY_HAND))
    assert (largest.kind, largest.values) == ("largest", (2.5, 2.5, 11.0, 11.0))
    assert (hessian.kind, hessian.values) == ("sharpness", (2.0, 2.0, 11.0, 1.0))
    for bound, above in ((largest, [3, 4]), (hessian, [2, 3, 4])):
        assert [row["step"] for row in bound.rows] == [2, 3, 4, 5]
        assert [row["step"] for row in bound.exceeded] == above
    own = Record(ADAM, [row | {"ratio": 0.5} if row["kind"] == "stability" else row for row in BY_HAND])
    assert own.preconditioned  # where λ₁ is in another unit, and no L
    assert [(bound.kind, bound.values) for bound in descent_bounds(own)] == [("largest", (2.5, 2.5, 5.5, 5.5))]
    half = {"model": {"dtype": "torch.bfloat16"}}  # rounds at 1/32 of what is largest, here the loss before of 2
    near = [step(1, lipschitz=2.0), *(step(t, lipschitz=2.0, loss_after=2.0 + d) for t, d in ((2, 0.06), (3, 0.07)))]
    assert [len(descent_bounds(Record(facts, near))[0].exceeded) for facts in ({}, half)] == [2, 1]
    words = plain(render_run({}, BY_HAND))
    assert "each is a function of its own" not in words
    others = [row | {"data": f"batch {row['step']}"} for row in BY_HAND]
    assert "each is a function of its own" in plain(render_run({}, others))
    assert re.search(r"faster than it has so far\. The loss ended above that bound at 2 of 4 steps", words)
    assert re.search(r"fast the gradient changes\. The loss ended above that bound at 3 of 4 steps", words)


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_the_page_and_the_finding_count_alike(dtype):
    rows = [*BY_HAND[:7], *(step(t, lipschitz=1.0, loss_after=11.0 + t / 30) for t in range(6, 12))]
    facts = {"model": {"dtype": dtype}, "optimizer": {"name": "SGD", "groups": [{"lr": 0.01, "momentum": 0.9}]}}
    (lemma,) = (finding for finding in findings(facts, rows) if finding.id == "lsmooth-fails")
    failed, tested = re.search(r"fails at (\d+) of (\d+) steps", lemma.title).groups()
    words = plain(render_run(facts, rows))
    assert f"faster than it has so far. The loss ended above that bound at {failed} of {tested} steps" in words


def test_on_a_quadratic_the_bound_is_attained_and_never_exceeded():
    w = torch.nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))
    rows = []
    for t in range(1, 30):
        after = [(w - 0.3 * w).detach()]  # f = ‖w‖²/2: L = 1
        found = measure_step(lambda: (w * w).sum() / 2, [w], after)
        rows.append(
            step(
                t,
                loss=found.loss_before,
                predicted=found.predicted,
                length=found.length,
                loss_after=found.loss_after,
                lipschitz=found.lipschitz,
            )
        )
        with torch.no_grad():
            w.copy_(after[0])
    (bound,) = descent_bounds(Record({}, rows))
    assert bound.values == pytest.approx([row["loss_after"] for row in bound.rows], rel=1e-9)
    assert bound.exceeded == []
    half = [row | {"lipschitz": row["lipschitz"] / 2} for row in rows]
    assert len(descent_bounds(Record({}, half))[0].exceeded) == 28


ADAM = {"optimizer": {"name": "Adam", "groups": [{"lr": 0.1}]}}


def test_an_adaptive_optimiser_is_drawn_against_its_own_threshold():
    rows = [
        *(step(t, curvature=1.0 * t, smooth=0.5, kink=t - 0.5, step_ratio=0.4 * t, lipschitz=1.0) for t in (1, 2, 3)),
        *(sharp(t, 50.0, threshold=40.0, ratio=r) for t, r in ((1, 0.5), (2, 1.5), (3, 1.25))),
    ]
    text = render_run(ADAM, rows)
    assert set(lines_of(text, "curvature-1")) == {"κ", "its smooth part", "its kink part"}
    assert set(lines_of(text, "loss-2")) == {
        "loss of the probe's data, after the step",
        "bound with the largest L",
    }
    ratios = lines_of(text, "curvature-2")
    assert ratios["sharpness over the threshold"]["y"] == [0.5, 1.5, 1.25]
    assert (ratios["the threshold"]["x"], ratios["the threshold"]["y"]) == ([1, 3], [1, 1])
    assert "Sharpness was above it at 2 of 3. The step's curvature was above it at 1 of 3." in plain(text)
    groups = {"optimizer": {"name": "SGD", "groups": [{"lr": 0.1}, {"lr": 0.2}]}}
    assert "sharpness λ₁" not in lines_of(render_run(groups, rows), "curvature-1")
    assert "sharpness λ₁" in lines_of(render_run({"optimizer": {"name": "SGD"}}, rows), "curvature-1")


def test_many_layers_make_a_heat_map_with_the_first_on_top():
    shares = {f"block.{k}": k / 10 for k in range(6)}
    flips = {f"block.{k}": 10**k if k else 0 for k in range(6)}
    rows = [step(t, kink_share=0.5, kink_share_by_layer=shares, flipped=9, flips_by_layer=flips) for t in (1, 2)]
    rows.append(step(3, kink_share="nan", kink_share_by_layer=shares | {"block.1": "nan"}))
    rows[0]["flips_by_layer"] = flips | {"(outside modules)": 3}
    text = render_run({}, rows)
    assert "the weights under a penalty’s |w|, one by one" in plain(text)
    rows[0]["flips_by_layer"] = flips
    text = render_run({}, rows)
    assert "penalty’s" not in plain(text)
    assert "Mean 0.5 over 2 steps. At 1 step it is undefined, and the line has a gap." in plain(text)
    share, flip = (next(p for p in drawn(text) if p["file"] == f"{name}-2") for name in ("kink-share", "flips"))
    assert share["y"]["names"] == [f"block.{k}" for k in (5, 4, 3, 2, 1, 0)]
    assert [row[0] for row in share["heat"]["z"]] == [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    assert share["heat"]["z"][4][2] is None
    assert share["range"] == [0, 1] and "range" not in flip
    assert [row[0] for row in flip["heat"]["z"]] == [5, 4, 3, 2, 1, None]
    none = render_run({}, [step(t, kink_share=0.0, kink_share_by_layer={"0": 0.0}) for t in (1, 2)])
    assert "It was 0 at 2 measured steps." in plain(none) and not any("kink-share" in p["file"] for p in drawn(none))
    assert "It was not measured by layer." not in plain(text)
    assert plain(render_run({}, [step(1, kink_share=0.5)])).count("It was not measured by layer.") == 1


def test_chatter_has_a_figure_for_each_of_its_numbers():
    rows = [
        {"step": t, "kind": "chatter", "window": 10, "weights": 50, "chattering": 5, "amplitude": 0.1, "norm": 3.0}
        for t in (10, 20)
    ]
    text = render_run({}, rows)
    assert [plot["title"] for plot in drawn(text)] == ["Chattering weights", "Amplitude", "L1 norm"]
    assert "50 weights are followed; these changed sign again and again in a window of 10 steps." in plain(text)


def test_a_long_series_keeps_its_spikes():
    values = [1.0] * 50_000
    values[31_234], values[41_111] = 99.0, -7.0
    x, y = thinned(range(50_000), values)
    assert len(x) <= 2000 and x == sorted(x)
    assert (31_234, 99.0) in zip(x, y) and (41_111, -7.0) in zip(x, y)
    rows = [{"step": t, "kind": "trace", "loss": v + 8} for t, v in enumerate(values, 1)]
    assert "Of 50000 values the lowest and highest of each stretch are drawn." in plain(render_run({}, rows))


def test_what_could_not_be_found_and_probes_that_failed():
    facts = {"missing": [{"what": "the loss", "why": "backward was called on no scalar", "line": "audit.loss(loss)"}]}
    rows = [{"step": t, "kind": "step", "error": "RuntimeError: out of memory"} for t in (3, 4, 9)]
    text = render_run(facts, [*rows, {"step": 5, "kind": "stability", "error": "TypeError: no"}])
    words = plain(text)
    assert "the loss : backward was called on no scalar To tell it, add: audit.loss(loss)" in words
    assert "A probe of kind step failed 3 times, from step 3 to 9: RuntimeError: out of memory" in words
    assert "A probe of kind stability failed at step 5: TypeError: no" in words
    assert "No curvature was measured." in words


def test_a_run_without_rows_is_a_page():
    words = plain(render_run({}, []))
    for said in (
        "No finding was made: nothing was measured.",
        "No loss was measured.",
        "No curvature was measured.",
        "No kink share was measured.",
        "No flips were counted.",
        "Chatter was not measured",
        "Nothing was tried on a copy of this run.",
        "The operations of the model were not counted.",
        "The facts of the run were not written.",
    ):
        assert said in words
    assert drawn(render_run({}, [])) == []


@pytest.mark.parametrize(("units", "said"), [(0, True), (9, False), (None, False)])
def test_where_no_unit_was_counted_no_flips_are_drawn(units, said):
    row = {"kind": "step", "step": 1, "flipped": 0, "units": units}
    assert ("No flips were counted." in plain(render_run({}, [row]))) is said


@pytest.mark.parametrize(("clipped", "said"), [(True, "yes"), (False, "not at the steps compared"), (None, None)])
def test_clipping_is_told_of_the_steps_compared(clipped, said):
    assert settings_of({"clipped": clipped}).get("clipped") == said


def test_a_crash_is_said_first():
    assert "The run crashed : ValueError: empty batch" in plain(render_run({"crashed": "ValueError: empty batch"}, []))


# --- files that are not as they should be ----------------------------------------------------------------------------


def test_a_last_line_that_was_cut_off_is_left_out_and_said(folder, tmp_path):
    text = (folder / "rows.jsonl").read_text(encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(text[: len(text) - 40], encoding="utf-8")
    run = read_run(tmp_path)
    assert len(run.rows) == len(text.splitlines()) - 1
    words = plain(write_run_report(tmp_path, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "The last line of rows.jsonl was cut off" in words and "There is no run.json" in words


def test_a_cut_inside_a_letter_is_a_cut(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"step": 1, "kind": "trace"}\n{"step": 2, "data": "\xc3')
    assert [row["step"] for row in read_run(tmp_path).rows] == [1]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.jsonl", b'{"step": 1, "ki\n{"step": 2, "kind": "trace"}\n', "line 1 is not JSON"),
        ("rows.jsonl", b"[1]\n", "row 1 is not one of a watched run (not an object)"),
        ("rows.jsonl", b'{"kind": "step"}\n', "row 1 is not one of a watched run (no whole number 'step')"),
        ("rows.jsonl", b'{"step": true, "kind": "step"}\n', "no whole number 'step'"),
        ("rows.jsonl", b'{"step": 1}\n', "no text 'kind'"),
        ("rows.jsonl", b'{"step": 1, "kind": "step", "flips_by_layer": [1]}\n', "'flips_by_layer' of the wrong kind"),
        ("rows.jsonl", b'{"step": 1, "kind": "step", "selection": [1]}\n', "'selection' of the wrong kind"),
        ("run.json", b"{", "is not JSON"),
        ("run.json", b"\xff", "cannot be read"),
        ("run.json", b"[]", "is not an object but a list"),
        ("run.json", b'{"findings": "none"}', "'findings' is of the wrong kind (str)"),
        ("run.json", b'{"findings": ["none"]}', "'findings' is not a list of objects"),
        ("run.json", b'{"census": {"operations": {}, "hidden": [7]}}', "'census.hidden' is not a list of objects"),
    ],
)
def test_a_broken_file_is_one_sentence_and_the_earlier_page_stays(name, content, says, tmp_path):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "run.html").write_text("earlier")
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        write_run_report(tmp_path)
    assert "\n" not in str(error.value)
    assert (tmp_path / "run.html").read_text() == "earlier"
    assert not list(tmp_path.glob(".run*"))


def test_a_page_that_cannot_be_written_is_one_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be written .*; choose another file\."):
        write_run_report(folder, tmp_path)


GARBAGE = (None, 7, "x", True, [], ["x"], {}, {"x": 1}, [{"x": 1}], -1.5, "nan", 10**400)


@pytest.fixture
def light(monkeypatch):
    """Pages without plotly.js, to make many."""
    monkeypatch.setattr("nonsmooth.pages.skeleton.get_plotlyjs", lambda: "")


def test_facts_of_any_kind_are_a_page_or_one_sentence(folder, light):
    facts = read_run(folder).facts
    shown = 0
    for key in facts:
        for value in GARBAGE:
            shown += is_page_or_sentence(facts | {key: value}, [])
    assert shown > len(facts)
    for part in ("optimizer", "model", "census", "made", "skipped"):
        for key in facts[part]:
            for value in GARBAGE:
                is_page_or_sentence({part: facts[part] | {key: value}}, [])
    for part, inner in (
        ("findings", FINDINGS[1]),
        ("what_if", WHAT_IF[0]),
        ("missing", {"what": "", "why": "", "line": ""}),
    ):
        for key in inner:
            for value in GARBAGE:
                is_page_or_sentence({part: [inner | {key: value}]}, [])
    for key in (first := facts["census"]["operations"][1]):
        for value in GARBAGE:
            is_page_or_sentence({"census": {"operations": [first | {key: value}], "hidden": []}}, [])


def test_rows_of_any_kind_are_a_page_or_one_sentence(folder, light):
    run = read_run(folder)
    for kind in ("trace", "step", "stability"):
        first, *others = run.of(kind)[:4]
        for key in first:
            for value in GARBAGE:
                is_page_or_sentence({}, [first | {key: value}, *others])


def is_page_or_sentence(facts, rows):
    try:
        text = render_run(facts, rows)
    except ValueError as error:
        said = str(error)
    else:
        assert "</html>" in text
        return True
    assert re.fullmatch(r"the (facts|rows): [^\n]*; watch the run again\.", said)
    return False


# --- safety ----------------------------------------------------------------------------------------------------------


def hostile_run():
    """Hostile words wherever a word may stand."""
    finding = dict.fromkeys(("id", "title", "evidence", "why", "do", "lines", "unit", "level"), HOSTILE) | {
        "number": 1.0
    }
    operation = dict.fromkeys(("name", "module", "place", "where"), HOSTILE) | {"smoothness": "C⁰", "calls": 1}
    facts = {
        **dict.fromkeys(("crashed", "loss", "device", "began", "ended", "torch", "nonsmooth", "python"), HOSTILE),
        "command": [HOSTILE + ".py", HOSTILE],
        "optimizer": {"name": HOSTILE, "wrapped": HOSTILE, "groups": [{HOSTILE: HOSTILE, "lr": 0.1}]},
        "model": {"name": HOSTILE, "parameters": 3},
        "missing": [dict.fromkeys(("what", "why", "line"), HOSTILE)],
        "what_if": [{"change": HOSTILE, "note": HOSTILE, "lr": 0.1}],
        "findings": [finding],
        "census": {
            "operations": [operation | {"returned": [[HOSTILE, [0.0]]]}, operation | {"smoothness": HOSTILE}],
            "hidden": [dict.fromkeys(("kind", "what", "module", "place"), HOSTILE)],
        },
    }
    layers = {f"{k}{HOSTILE}": 0.1 * (k + 1) for k in range(6)}
    few = {HOSTILE: 3, "plain": 4}
    rows = [
        *(
            step(
                t,
                curvature=1.0,
                kink_share=0.5,
                kink_share_by_layer=layers,
                flipped=7,
                flips_by_layer=few,
                lipschitz=1.0,
            )
            for t in (1, 2, 3)
        ),
        {"step": 4, "kind": HOSTILE, "error": HOSTILE},
    ]
    return facts, rows


def test_nothing_is_loaded_and_nothing_hostile_is_markup():
    text = render_run(*hostile_run())
    seen = Seen(text)
    assert not [tag for tag, _ in seen.tags if tag in ("img", "iframe", "object", "embed", "base")]
    assert not [attr for _, attrs in seen.tags for attr in attrs if attr.startswith("on") or attr == "src"]
    links = [attrs["href"] for _, attrs in seen.tags if "href" in attrs]
    assert all(link.startswith("#") or link == "data:," for link in links)
    places = [attrs["id"] for _, attrs in seen.tags if "id" in attrs]
    assert len(places) == len(set(places))
    assert {link[1:] for link in links if link.startswith("#")} <= set(places)
    assert text.count("default-src 'none'") == 1
    for data in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, flags=re.S):
        assert not set("<>&\u2028") & set(data)
    assert [plot["y"]["names"][5] for plot in drawn(text) if plot["file"] == "kink-share-2"] == [f"0{HOSTILE}"]


def test_same_run_same_page(folder, page):
    assert write_run_report(folder).read_text(encoding="utf-8") == page
    run = read_run(folder)
    assert render_run(run.facts, run.rows) == page
    assert [s.title for s in timeline(run)] == ["The loss", "Curvature", "Kink share", "Flips", "Chatter"]


def test_what_is_not_installed_is_one_sentence_that_names_the_extra():
    program = """
import sys
sys.modules["jinja2"] = None
for name in ("pages", "report"):
    try:
        __import__(f"nonsmooth.{name}")
    except ModuleNotFoundError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "nonsmooth.pages needs jinja2, which is not installed; run: pip install 'nonsmooth[lab]' "
        "(or 'nonsmooth[torch]' beside PyTorch)",
        "nonsmooth.report needs jinja2, which is not installed; run: pip install 'nonsmooth[lab]'",
    ]

"""Full-batch gradient descent at the edge of stability, on handwritten digits: a ReLU network and its smooth twins.

A constant step η sharpens each network until its steps meet a curvature of 2/η. Each step is measured: its curvature κ
and the part of it that kinks have, the orbit curvature κ̄ over 100 steps, and now and then the sharpness λ₁ and the path
split. All images, ½ mean ‖f(x) − e_y‖² over them, float64; torch's own initial weights from one seed.

    python examples/edge_of_stability.py                                    # 300 steps, the table alone
    python examples/edge_of_stability.py --steps 2000 --figure edge.html    # minutes, and the figure
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from nonsmooth.torch import OrbitCurvature, measure_step, sharpness

LR = 0.5
WIDTH, SEED = 32, 0
WINDOW = 100  # steps of κ̄
EVERY = 7  # steps between two λ₁: an odd number, for at the edge even and odd steps differ
PATH = 21  # steps between two path splits
SERIES = (
    (1, "κ, each step", "κ", "markers", "#b4bcc6", 3),
    (1, "λ₁", "λ₁", "lines", "#d1495b", 1.5),
    (1, "κ̄ over 100 steps", "κ̄", "lines", "#17407d", 2.5),
    (2, "κ_smooth, frozen split", "smooth", "markers", "#8fcabf", 3),
    (2, "κ_smooth, path split", "path smooth", "markers", "#0d6e62", 4),
    (2, "κ_kink, frozen split", "kink", "markers", "#f2b27e", 3),
    (2, "κ_kink, path split", "path kink", "markers", "#b4540a", 4),
    (3, "kink share", "share", "markers", "#7b4ea3", 3),
)
"""Of the figure: row, label, what, how, colour, size."""
ACTIVATIONS = {"ReLU": nn.ReLU, "GELU": nn.GELU, "tanh": nn.Tanh}

torch.set_default_dtype(torch.float64)
X, y = load_digits(return_X_y=True)
X, Y = torch.tensor(X) / 16, torch.eye(10)[torch.tensor(y)]


def train(activation: type[nn.Module], lr: float, steps: int) -> dict[str, np.ndarray]:
    """A row for each step: what was measured, nan where it was not."""
    torch.manual_seed(SEED)
    model = nn.Sequential(
        *(nn.Linear(64, WIDTH), activation(), nn.Linear(WIDTH, WIDTH), activation(), nn.Linear(WIDTH, 10))
    )
    params, orbit, last, rows = list(model.parameters()), OrbitCurvature(WINDOW), None, []

    def loss() -> torch.Tensor:
        return (model(X) - Y).square().sum(1).mean() / 2

    for t in range(steps):
        row = dict.fromkeys(("λ₁", "error", "path smooth", "path kink", "path error"), math.nan)
        if t % EVERY == 0:
            last = sharpness(loss, params, start=last, tol=1e-3)
            row |= {"λ₁": last.value[0], "error": last.residual[0] / last.value[0]}
        after = [p.detach() - lr * g for p, g in zip(params, torch.autograd.grad(loss(), params), strict=True)]
        step = measure_step(loss, model, after, path=t % PATH == 0)
        orbit.update(step)
        for p, value in zip(params, after, strict=True):
            p.data = value
        if step.path is not None:
            row |= {"path smooth": step.path.smooth, "path kink": step.path.kink, "path error": step.path.error}
        frozen = {"smooth": step.frozen.smooth, "kink": step.frozen.kink, "share": step.frozen.share}
        rows.append(row | frozen | {"loss": step.loss_before, "κ": step.curvature, "κ̄": orbit.value})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def mean(values: np.ndarray) -> str:
    """The mean of what was measured, ± its standard error from (up to) ten batch means."""
    kept = values[~np.isnan(values)]
    batches = np.array([batch.mean() for batch in np.array_split(kept, min(10, len(kept)))])
    error = batches.std(ddof=1) / len(batches) ** 0.5 if len(batches) > 1 else math.nan
    return f"{kept.mean():.3f} ± {error:.3f}".replace("-0.000", "0.000")


def table(runs: dict[str, dict[str, np.ndarray]], lr: float, since: int) -> None:
    """Means over the steps from `since` on."""
    columns = ("κ̄", "κ", "λ₁", "smooth", "kink", "path smooth", "path kink", "share")
    print(f"\nMeans over steps {since + 1} to {asked.steps}\n")
    print("| | η | 2/η | κ̄ | κ | λ₁ | κ_smooth | κ_kink | κ_smooth, path | κ_kink, path | kink share |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for name, run in runs.items():
        print(f"| {name} | {lr:g} | {2 / lr:g} | " + " | ".join(mean(run[of][since:]) for of in columns) + " |")


def draw(runs: dict[str, dict[str, np.ndarray]], lr: float, path: Path) -> None:
    """The runs side by side on shared axes: curvatures against 2/η, the parts of κ, and the kink share."""
    from plotly.graph_objects import Figure, Scatter
    from plotly.subplots import make_subplots

    rows = {"row_heights": [0.4, 0.38, 0.22], "vertical_spacing": 0.05, "horizontal_spacing": 0.02}
    figure: Figure = make_subplots(
        3, len(runs), shared_xaxes="all", shared_yaxes="rows", column_titles=[f"<b>{name}</b>" for name in runs], **rows
    )
    for column, run in enumerate(runs.values(), 1):
        for row, label, name, mode, colour, size in SERIES:
            there = np.flatnonzero(~np.isnan(run[name]))
            look = {
                ("line" if mode == "lines" else "marker"): {
                    "color": colour,
                    "width" if mode == "lines" else "size": size,
                }
            }
            legend = {"name": label, "legendgroup": label, "showlegend": column == 1}
            figure.add_trace(Scatter(x=there, y=run[name][there], mode=mode, **look, **legend), row, column)
        for row in (1, 2):
            figure.add_hline(2 / lr, row=row, col=column, line={"color": "black", "width": 1.5, "dash": "dot"})
            figure.add_annotation(
                **{"text": f"2/η = {2 / lr:g}", "x": 0.98, "y": 2 / lr, "xref": "x domain", "xanchor": "right"},
                **{"yanchor": "bottom", "yshift": 16, "showarrow": False, "row": row, "col": column},
            )
    titles = ("curvature", "parts of κ", "kink share")
    for row, (title, low, high) in enumerate(
        zip(titles, (0, -0.5 / lr, -0.02), (3.5 / lr, 2.8 / lr, 0.62), strict=True), 1
    ):
        figure.update_yaxes(range=[low, high], row=row)
        figure.update_yaxes(title_text=title, row=row, col=1)
    figure.update_xaxes(title_text="step", row=3)
    figure.update_layout(template="simple_white", width=1200, height=820, font_size=14, margin={"t": 40, "r": 20})
    figure.update_layout(legend={"orientation": "h", "y": -0.09, "itemsizing": "constant", "entrywidth": 190})
    figure.write_html(path, config={"displayModeBar": False})


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--lr", type=float, default=LR)
parser.add_argument("--figure", type=Path)
asked = parser.parse_args()

edge, runs = 2 / asked.lr, {}
for name, activation in ACTIVATIONS.items():
    run = runs[name] = train(activation, asked.lr, asked.steps)
    worst = [np.nanmax(run[of]) for of in ("error", "path error")]
    print(
        f"{name}: loss {run['loss'][0]:.3f} → {run['loss'][-1]:.3f}; λ₁ with residuals up to {worst[0]:.1%} of it, "
        f"the path split to {worst[1]:.1%} of ‖g⁺ − g‖",
        flush=True,
    )
    assert np.abs(run["smooth"] + run["kink"] - run["κ"]).max() < 1e-8  # the split loses nothing
    assert (run["share"] > 0).any() if name == "ReLU" else (run["share"] == 0).all()  # no kinks, no share
for part in (2, 10):
    table(runs, asked.lr, asked.steps - asked.steps // part)
if asked.figure:
    draw(runs, asked.lr, asked.figure)
assert all(abs(run["κ̄"][-1] / edge - 1) < 0.03 for run in runs.values())  # the edge law

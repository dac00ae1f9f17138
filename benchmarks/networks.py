"""Networks under L1: autograd's subgradient beside `Proximal`, four optimisers, five values of λ, five seeds.

    python benchmarks/networks.py            # what is missing of the runs, then the tables
    python benchmarks/networks.py --tables   # the tables, from benchmarks/results/networks.jsonl alone
    python benchmarks/networks.py --choose   # the choice of the learning rates, over again

Each finished run is one line of the result file, keyed by the hash of its settings and written at once: a run that was
stopped goes on where it was, and a changed setting is computed anew. Every method has the same budget, STEPS of
training and TUNE of refitting on its support; the refit is `nonsmooth.torch.refit` for all of them.

Needs scikit-learn (digits) and mnist1d, which generates MNIST-1D here: pip install mnist1d
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from pruning import (
    BATCH,
    RESULTS,
    SEEDS,
    Data,
    Gradual,
    Job,
    accuracy,
    digits,
    finished,
    fit,
    mean_se,
    measured,
    parser,
    percent,
    prune,
    tune,
    work,
)
from torch.nn import Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from torch.nn.functional import cross_entropy

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal, TargetSparsity, weights

STEPS, TUNE = 1500, 500
LAMS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
CHOICE_SEED = 99
NETS = {"digits": "digits CNN", "mnist1d": "MNIST-1D MLP"}
OPTIMIZERS = ("SGD", "momentum", "RMSProp", "Adam")

GRIDS = {
    "SGD": (0.03, 0.1, 0.3, 1.0),
    "momentum": (0.003, 0.01, 0.03, 0.1, 0.3),
    "RMSProp": (3e-4, 1e-3, 3e-3, 1e-2),
    "Adam": (3e-4, 1e-3, 3e-3, 1e-2),
}
"""Where `choose` looks: without a penalty, on CHOICE_SEED, four fifths of the training set to train on and one to
judge by; the highest accuracy, and of equal ones the lowest cross-entropy."""

LRS: dict[str, dict[str, float]] = {
    "digits": {"SGD": 0.3, "momentum": 0.03, "RMSProp": 3e-3, "Adam": 3e-3},
    "mnist1d": {"SGD": 1.0, "momentum": 0.3, "RMSProp": 1e-2, "Adam": 3e-3},
}
"""What `choose` chose."""


# --- data and networks ---------------------------------------------------------------------------------------------


@cache
def data(net: str) -> Data:
    """Training inputs and labels, test inputs and labels; the split is the same for all seeds."""
    if net == "mnist1d":
        from mnist1d.data import get_dataset_args, make_dataset

        made = make_dataset(get_dataset_args())
        x, x_test = (torch.tensor(made[name], dtype=torch.float32) for name in ("x", "x_test"))
        return x, torch.tensor(made["y"]), x_test, torch.tensor(made["y_test"])
    x, y, x_test, y_test = digits()
    return x.reshape(-1, 1, 8, 8), y, x_test.reshape(-1, 1, 8, 8), y_test


def network(net: str, seed: int) -> Sequential:
    """9168 weights (digits) or 15,000 (mnist1d), biases apart."""
    torch.manual_seed(seed)
    if net == "mnist1d":
        return Sequential(Linear(40, 100), ReLU(), Linear(100, 100), ReLU(), Linear(100, 10))
    first = (Conv2d(1, 16, 3, padding=1), ReLU(), MaxPool2d(2), Conv2d(16, 32, 3, padding=1), ReLU(), MaxPool2d(2))
    return Sequential(*first, Flatten(), Linear(128, 32), ReLU(), Linear(32, 10))


def optimizer(name: str, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    if name in ("SGD", "momentum"):
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9 if name == "momentum" else 0.0)
    return {"RMSProp": torch.optim.RMSprop, "Adam": torch.optim.Adam}[name](model.parameters(), lr=lr)


# --- runs ----------------------------------------------------------------------------------------------------------


def run(job: Job) -> dict[str, Any]:
    """One run: the trained network measured, and after pruning (where its zeros are not exact) and refit."""
    examples, model, name = data(job["net"]), network(job["net"], job["seed"]), job["method"]
    batches = torch.Generator().manual_seed(1000 + job["seed"])
    ws, lam, steps = weights(model), job["lam"], job["steps"]
    bare = optimizer(job["optimizer"], model, job["lr"])
    if name == "gradual":
        fit(model, bare, examples, steps + job["tune"], batches, after=Gradual(ws, job["density"], steps + job["tune"]))
        return {"refits": [{"density": job["density"], "accuracy": measured(model, examples)["accuracy"]}]}
    if name == "controller":
        proximal = Proximal(bare, L1(1e-5), params=ws)
        controller = TargetSparsity(proximal, job["density"], steps)
        fit(model, proximal, examples, steps, batches, after=lambda t: controller.step())
    elif name == "proximal":
        fit(model, Proximal(bare, L1(lam), params=ws), examples, steps, batches, cosine=job["cosine"])
    else:
        fit(model, bare, examples, steps, batches, lam=lam, cosine=job["cosine"])
    row: dict[str, Any] = {"trained": measured(model, examples), "refits": []}
    cuts = {"dense": (1.0, *DENSITIES), "autograd": DENSITIES}.get(name, (None,)) if job["tune"] else ()
    for cut in cuts:
        kept, again = copy.deepcopy(model), torch.Generator().manual_seed(2000 + job["seed"])
        if cut is not None:
            prune(weights(kept), cut)
        tune(kept, optimizer(job["optimizer"], kept, job["lr"]), examples, job["tune"], again)
        found = measured(kept, examples)
        share = 1 - found["zeros"] if cut is None else cut
        row["refits"].append({"density": share, "accuracy": found["accuracy"]})
    return row


def jobs() -> list[Job]:
    """All, the smaller net first; of each the two that are compared, gradual pruning, controller, constant lr."""
    made = []
    for seed in SEEDS:
        for net in NETS:
            for name in OPTIMIZERS:
                shared = {"net": net, "optimizer": name, "lr": LRS[net][name], "seed": seed, "steps": STEPS}
                shared |= {"tune": TUNE, "batch": BATCH, "cosine": True, "lam": 0.0}
                made.append(shared | {"method": "dense"})
                for method in ("autograd", "proximal"):
                    made += [shared | {"method": method, "lam": lam} for lam in LAMS]
                    if net == "mnist1d":
                        constant = shared | {"method": method, "cosine": False, "tune": 0}
                        made += [constant | {"lam": lam} for lam in LAMS]
                for method in ("gradual", "controller"):
                    made += [shared | {"method": method, "density": share} for share in DENSITIES]
    late = {"gradual": 1, "controller": 2}
    return sorted(made, key=lambda job: (job["net"] != "mnist1d", late.get(job["method"], 0 if job["cosine"] else 3)))


def choose(net: str) -> dict[str, float]:
    """The rule of GRIDS, printed as it goes."""
    x, y, *_ = data(net)
    cut = len(x) * 4 // 5
    examples = (x[:cut], y[:cut], x[cut:], y[cut:])
    chosen = {}
    for name in OPTIMIZERS:
        scores = []
        for lr in GRIDS[name]:
            model = network(net, CHOICE_SEED)
            fit(model, optimizer(name, model, lr), examples, STEPS, torch.Generator().manual_seed(CHOICE_SEED))
            with torch.no_grad():
                loss = cross_entropy(model(examples[2]), examples[3]).item()
            scores.append((accuracy(model, *examples[2:]), -loss, lr))
            print(f"{net} {name} lr {lr:g}: accuracy {scores[-1][0]:.4f}, cross-entropy {loss:.4f}", flush=True)
        chosen[name] = max(scores)[2]
    print(net, chosen, flush=True)
    return chosen


# --- tables --------------------------------------------------------------------------------------------------------


def as_trained(found: list[dict[str, Any]], cosine: bool) -> None:
    """Autograd / Proximal, before any pruning or refit: means over the seeds."""
    print("| | λ | L1 norm | exact zeros, % | below 1e-3, % | accuracy, % |\n|---|---|---|---|---|---|")
    for net, name in ((net, name) for net in NETS for name in OPTIMIZERS):
        for lam in LAMS:
            cells = []
            for method in ("autograd", "proximal"):
                at = {"net": net, "optimizer": name, "lam": lam, "method": method, "cosine": cosine}
                rows = [row["trained"] for row in found if at.items() <= row["job"].items()]
                if rows:
                    mean = {of: mean_se(row[of] for row in rows)[0] for of in rows[0]}
                    shares = [f"{100 * mean[of]:.1f}" for of in ("zeros", "small")]
                    cells.append((f"{mean['norm']:.3g}", *shares, percent(row["accuracy"] for row in rows)))
            if len(cells) == 2:
                print(f"| {NETS[net]}, {name} | {lam:.0e} | " + " | ".join(f"{a} / {p}" for a, p in zip(*cells)) + " |")


def refitted(found: list[dict[str, Any]], net: str, name: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """By method, each (density, mean accuracy, its standard error, λ) for which all seeds are done."""
    cells: dict[tuple[str, float, int], list[tuple[float, float]]] = {}
    for row in found:
        job = row["job"]
        if job["net"] == net and job["optimizer"] == name:
            for i, refit_row in enumerate(row["refits"]):
                place = DENSITIES.index(job["density"]) if "density" in job else i
                cells.setdefault((job["method"], job["lam"], place), []).append(tuple(refit_row.values()))
    fronts: dict[str, list[tuple[float, float, float, float]]] = {}
    for (method, lam, _), pairs in sorted(cells.items()):
        if len(pairs) == len(SEEDS):
            accuracies = mean_se(a for _, a in pairs)
            fronts.setdefault(method, []).append((mean_se(d for d, _ in pairs)[0], *accuracies, lam))
    return fronts


COMPARED = {
    "dense": "magnitude, one-shot",
    "autograd": "autograd, magnitude",
    "proximal": "Proximal",
    "controller": "Proximal, controller",
    "gradual": "gradual magnitude",
}


def equal_accuracy(found: list[dict[str, Any]]) -> None:
    """The smallest density whose mean accuracy is at least the dense one's less its standard error."""
    print("| | dense accuracy, % | " + " | ".join(COMPARED.values()) + " |\n|---" + "|---" * 6 + "|")
    for net, name in ((net, name) for net in NETS for name in OPTIMIZERS):
        fronts = refitted(found, net, name)
        dense = [cell for cell in fronts.get("dense", []) if cell[0] == 1.0]
        if not dense:
            continue
        _, mean, error, _ = dense[0]
        cells = []
        for method in COMPARED:
            fine = [cell for cell in fronts.get(method, []) if cell[1] >= mean - error and cell[0] < 1]
            least = min(fine, default=None)
            if least is None:
                cells.append("none" if method in fronts else "not finished")
            else:
                cells.append(f"{least[0]:.1%}" + (f" (λ {least[3]:.0e})" if least[3] else ""))
        print(f"| {NETS[net]}, {name} | {100 * mean:.1f} ± {100 * error:.1f} | " + " | ".join(cells) + " |")


def at_densities(found: list[dict[str, Any]]) -> None:
    """Accuracy after the refit; autograd at its best λ of the five for each density, by the same test accuracy."""
    methods = [method for method in COMPARED if method != "proximal"]
    print("| | density | " + " | ".join(COMPARED[m] for m in methods) + " |\n|---" + "|---" * 5 + "|")
    for net, name in ((net, name) for net in NETS for name in OPTIMIZERS):
        fronts = refitted(found, net, name)
        for place, wanted in enumerate(DENSITIES):
            cells = []
            for method in methods:
                front = [c for c in fronts.get(method, []) if c[0] < 1]
                if method == "controller":  # its densities are its own: those of the place-th target
                    at = sorted(front, reverse=True)[place : place + 1] if len(front) == len(DENSITIES) else []
                else:
                    at = [c for c in front if c[0] == wanted]
                best = max(at, key=lambda c: c[1], default=None)
                own = f" at {best[0]:.1%}" if best and method == "controller" else ""
                cells.append(f"{100 * best[1]:.1f} ± {100 * best[2]:.1f}{own}" if best else "")
            if any(cells):
                print(f"| {NETS[net]}, {name} | {wanted:.0%} | " + " | ".join(cells) + " |")
    print("\nProximal at the five λ, refit: accuracy at the density that it has.\n")
    print("| | " + " | ".join(f"λ {lam:.0e}" for lam in LAMS) + " |\n|---" + "|---" * len(LAMS) + "|")
    for net, name in ((net, name) for net in NETS for name in OPTIMIZERS):
        by_lam = {c[3]: c for c in refitted(found, net, name).get("proximal", [])}
        if by_lam:
            cells = (by_lam.get(lam) for lam in LAMS)
            texts = (f"{100 * c[1]:.1f} ± {100 * c[2]:.1f} at {c[0]:.1%}" if c else "" for c in cells)
            print(f"| {NETS[net]}, {name} | " + " | ".join(texts) + " |")


def tables(found: list[dict[str, Any]]) -> None:
    print("As trained, autograd / Proximal, cosine lr.\n")
    as_trained(found, cosine=True)
    print("\nHow sparse at equal accuracy: the smallest density within a standard error of the dense accuracy.\n")
    equal_accuracy(found)
    print("\nAccuracy at a density, after the refit.\n")
    at_densities(found)
    print("\nAs trained, autograd / Proximal, constant lr.\n")
    as_trained(found, cosine=False)
    print(f"\n{len(found)} of {len(jobs())} runs.")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--choose", action="store_true", help="choose the learning rates again, and run nothing")
    asked, path = options.parse_args(), RESULTS / "networks.jsonl"
    if asked.choose:
        torch.set_num_threads(1)
        for net in NETS:
            choose(net)
        return
    if not asked.tables:
        work(path, jobs(), run, asked.processes)
    tables(finished(path, jobs()))


if __name__ == "__main__":
    main()

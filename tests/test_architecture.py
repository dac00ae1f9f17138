"""The house: imports point downwards, files stay short, every public name shows what it does."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "nonsmooth"

LAYERS = {
    "hyperparameters": 0,
    "penalties": 0,
    "objectives": 0,
    "rules": 0,
    "plots": 0,
    "kinks": 0,
    "ledger": 0,
    "sources": 0,
    "axes": 1,
    "measures": 1,
    "processes": 1,
    "progress": 1,
    "request": 1,
    "simulation": 1,
    "": 1,  # the package itself, which hands on `simulate`
    "sweeps": 2,
    "config": 3,
    "pages": 1,
    "torch.undisturbed": 1,
    "torch.shards": 1,
    "torch.states": 1,
    "torch.operations": 1,
    "torch.aftermath": 1,
    "torch.effective": 1,
    "torch.dataflow": 1,
    "torch.semistructured": 1,
    "torch.clarke": 1,
    "torch.spellings": 1,
    "torch.lanczos": 1,
    "torch.findings": 1,
    "torch.loggers": 1,
    "torch.script": 1,
    "torch.run_report": 2,
    "torch.convolution": 1,
    "torch.parts": 1,
    "torch.outside": 1,
    "torch.thick_restart": 2,
    "torch.hessian": 2,
    "torch.ranks": 2,
    "torch.replica": 2,
    "torch.selection": 2,
    "torch.interception": 2,
    "torch.groups": 2,
    "torch.channels": 2,
    "torch.kinkcheck": 2,
    "torch.facts": 2,
    "torch.comparison": 3,
    "torch.curvature": 3,
    "torch.steps": 3,
    "torch.census": 3,
    "torch.kernels": 3,
    "torch.compress": 3,
    "torch.twins": 3,
    "torch.batch_sharpness": 3,
    "torch.stability": 4,
    "torch.census_command": 4,
    "torch.proximal": 4,
    "torch.smoothing": 4,
    "torch.program": 4,
    "torch.tape": 5,
    "torch.capture": 6,
    "torch.alternatives": 5,
    "torch.certificates": 6,
    "torch.sparsity": 5,
    "torch.schedules": 5,
    "torch.l1_audit": 5,
    "torch.what_if": 5,
    "torch.probes": 5,
    "torch.turns": 1,
    "torch.penalty_terms": 6,
    "torch.batches": 6,
    "torch.trials": 7,
    "torch.found_terms": 7,
    "torch.monitor": 6,
    "torch.audit": 8,
    "torch.audit_command": 9,
    "torch.integrations": 9,
    "torch": 10,
    "networks": 11,
    "claims": 12,
    "report": 13,
    "cli": 14,
    "__main__": 15,
}
"""The layer of each module, or of each package whose modules may import one another."""

WITHIN = {
    "penalties": {"hyperparameters"},
    "objectives": {"hyperparameters", "penalties"},
    "rules": {"hyperparameters", "penalties"},
    "ledger": {"plots"},
    "request": {"progress"},
    "simulation": {"axes", "measures", "progress", "request"},
    "": {"simulation"},
    "torch.convolution": {"torch.undisturbed"},
    "torch.parts": {"torch.undisturbed"},
}
"""What a module may import of its own layer."""

LAB = {"jax", "xarray", "nonsmooth", "nonsmooth.axes", "nonsmooth.measures", "nonsmooth.simulation", "nonsmooth.sweeps"}
"""What the torch side must do without; `nonsmooth` alone means `simulate`."""

LIGHT = {*sys.stdlib_module_names, "numpy", "array_api_compat", "nonsmooth"}
"""What a module of layer 0 may import when it is imported."""

FORBIDDEN = {"utils", "core", "helpers", "base", "misc"}
LONGEST = 500

Tree = dict[str, str]
"""The sources by the name of the module, '' for the package itself."""


def tree_of(root: Path) -> Tree:
    paths = {".".join(path.relative_to(root).with_suffix("").parts): path for path in root.rglob("*.py")}
    return {name.removesuffix("__init__").removesuffix("."): path.read_text() for name, path in paths.items()}


def imports_of(source: str, tree: Tree, lazily: bool = True) -> Iterator[str]:
    """The full names of the modules that a source imports, those under `if TYPE_CHECKING` left out."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not lazily:
            continue
        pending += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole.removeprefix("nonsmooth.") in tree else str(node.module)


def own(name: str) -> str | None:
    """A module of the package by its name in the tree, '' for the package itself."""
    return name.partition(".")[2] if name.partition(".")[0] == "nonsmooth" else None


def home(module: str) -> str:
    """The entry of LAYERS that a module belongs to."""
    while module not in LAYERS:
        assert "." in module, f"{module} has no layer: enter it in LAYERS"
        module = module.rpartition(".")[0]
    return module


def arrows(tree: Tree) -> None:
    for module, source in tree.items():
        here = home(module)
        for name in imports_of(source, tree):
            target = own(name)
            if target is None:
                continue
            there = home(target)
            downwards = LAYERS[there] < LAYERS[here] or there == here or there in WITHIN.get(here, ())
            assert downwards, f"{module or 'nonsmooth'} imports {name}, which is not below it"


def torch_is_apart(tree: Tree) -> None:
    for module, source in tree.items():
        if module.partition(".")[0] == "torch":
            lab = {name for name in imports_of(source, tree) if name in LAB or name.split(".")[0] in {"jax", "xarray"}}
            assert not lab, f"{module} imports {lab}"


def layer_0_is_light(tree: Tree) -> None:
    for module, source in tree.items():
        if LAYERS[home(module)] == 0:
            heavy = {name for name in imports_of(source, tree, lazily=False) if name.split(".")[0] not in LIGHT}
            assert not heavy, f"{module} imports {heavy} when it is imported"


def short(tree: Tree) -> None:
    for module, source in tree.items():
        lines = source.count("\n")
        assert lines <= LONGEST, f"{module} has {lines} lines"


def named_by_nouns(tree: Tree) -> None:
    for module in tree:
        assert not FORBIDDEN & {part.strip("_") for part in module.split(".")}, module


LAWS = (arrows, torch_is_apart, layer_0_is_light, short, named_by_nouns)
TREE = tree_of(SOURCE)


@pytest.mark.parametrize("law", LAWS)
def test_house(law):
    law(TREE)


@pytest.mark.parametrize(
    ("law", "module", "source"),
    [
        (arrows, "rules", "from nonsmooth.simulation import simulate"),
        (arrows, "rules", "from nonsmooth import simulation"),
        (arrows, "rules", "import nonsmooth as ns"),
        (arrows, "penalties", "def late():\n    import nonsmooth.rules"),
        (arrows, "hyperparameters", "from nonsmooth.penalties import L1"),
        (arrows, "ledger", "from nonsmooth.rules import Gradient"),
        (arrows, "claims.l1", "from nonsmooth.report.page import render"),
        (arrows, "torch.census", "from nonsmooth.torch.monitor import Monitor"),
        (arrows, "novelty", ""),
        (torch_is_apart, "torch.steps", "def late():\n    from jax import numpy"),
        (torch_is_apart, "torch.monitor", "from nonsmooth.simulation import simulate"),
        (torch_is_apart, "torch.monitor", "from nonsmooth import simulate"),
        (layer_0_is_light, "objectives", "from sklearn.datasets import load_diabetes"),
        (layer_0_is_light, "objectives", "class Late:\n    import scipy.optimize"),
        (short, "rules", "\n" * (LONGEST + 1)),
        (named_by_nouns, "torch._utils", ""),
    ],
)
def test_house_rejects(law, module, source):
    with pytest.raises(AssertionError):
        law({**TREE, "torch.monitor": "", module: source})


def test_types_alone_do_not_count():
    arrows(TREE | {"rules": "if TYPE_CHECKING:\n    from nonsmooth.simulation import simulate"})
    layer_0_is_light(TREE | {"objectives": "def late():\n    import scipy"})


ABSTRACT = {"Hyperparameters", "Objective", "Penalty", "Rule", "Schedule"}
MAIN = {"__main__"}


@pytest.mark.parametrize("module", [pytest.param(name, id=name or "nonsmooth") for name in sorted(TREE.keys() - MAIN)])
def test_every_public_name_has_an_example(module):
    """Each function and each concrete class shows what it does; data, types and exceptions need not."""
    made = importlib.import_module(f"nonsmooth.{module}".rstrip("."))
    lacking = []
    for name in getattr(made, "__all__", ()):
        thing = getattr(made, name)
        concrete = inspect.isclass(thing) and name not in ABSTRACT and not issubclass(thing, Exception)
        if (concrete or inspect.isfunction(thing)) and ">>>" not in (inspect.getdoc(thing) or ""):
            lacking.append(name)
    assert not lacking

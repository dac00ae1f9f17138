"""See, measure and mend what non-differentiability does to gradient training.

`audit` watches a PyTorch script as it is and says what it met;
`reproduce` tests claims about non-smooth training;
`simulate` and `sweep` make runs of your own.

Exit codes: 0, all was done (and with --strict every claim run is supported);
1, an experiment failed; 2, the input was wrong or a part is not installed;
3, --strict and a claim is not supported; 130, interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nonsmooth.ledger import ABSTRACT, CLAIMS, SUBJECTS, read_rows, sentence_verdict, subject

__all__ = ["main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
screen = Console()
errors = Console(stderr=True)

COLOURS = {"supported": "green", "refuted": "red", "undecided": "yellow"}
SIGNS = {"supported": "✓", "refuted": "✗", "undecided": "?"}

SHOWN = 60
"""The most rows of means that `simulate` prints."""

Out = Annotated[Path, typer.Option("--out", help="The folder of the rows, figures, datasets and report.")]


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Wrong input, a missing extra or an interruption end in one sentence and an exit code."""
    try:
        yield
    except ModuleNotFoundError as missing:
        extra = f"{missing.name} is not installed; run: pip install 'nonsmooth[lab]'"
        said = extra if missing.name and missing.name != "torch" else str(missing)
        errors.print(escape(said))
        raise typer.Exit(2) from None
    except (ValueError, OSError, ArithmeticError) as wrong:
        errors.print(escape(str(wrong)))
        raise typer.Exit(2) from None
    except MemoryError:
        errors.print("There is not enough memory for this; ask for fewer values, seeds or steps.")
        raise typer.Exit(2) from None
    except KeyboardInterrupt as interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        errors.print(escape(f"Interrupted; {interrupt}" if str(interrupt) else "Interrupted."))
        sys.stdout.flush()
        os._exit(130)  # a plain exit would wait for threads that are in compiled code


def _told(asked: bool) -> None:
    if asked:
        typer.echo(f"nonsmooth {version('nonsmooth')}")
        raise typer.Exit


@app.callback()
def options(
    asked: Annotated[
        bool, typer.Option("--version", callback=_told, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def reproduce(
    only: Annotated[list[str] | None, typer.Option("--only", help="Claims by pattern, as 'l1/*'; may repeat.")] = None,
    out: Out = Path("out"),
    full: Annotated[bool, typer.Option("--full", help="The larger samples.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The master seed; 0 is the one in the source.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 unless every claim that was run is supported.")
    ] = False,
    data: Annotated[
        str | None, typer.Option("--data", help="For claims on networks: digits, mnist1d, a folder of MNIST, CIFAR-10.")
    ] = None,
) -> None:
    """Test the claims and write verdicts, figures, datasets and the report."""
    with sentences():
        import nonsmooth.claims  # noqa: F401
        from nonsmooth.claims.reproduce import ExperimentError, kept_rows, runnable, select
        from nonsmooth.claims.reproduce import reproduce as run
        from nonsmooth.report import write_report
        from nonsmooth.report.rows import check_rows

        patterns = only or ["*"]
        chosen = runnable(asked := select(patterns))
        if left := len(asked) - len(chosen):
            errors.print(f"Left out: {left} claims on networks, which need torch: pip install 'nonsmooth[torch]'")
        check_rows(list(kept_rows(out, chosen).values()))
        began, count = time.perf_counter(), len(chosen)
        found: list[dict[str, Any]] = []
        failure: ExperimentError | None = None
        runs = ""
        with screen.status(f"testing {count} claims") as status:

            def watch(made: int, wanted: int) -> None:
                nonlocal runs
                runs = f"; trained {made} of {wanted} networks" if made < wanted else ""
                status.update(f"{count} claims to go{runs}")

            def tell(row: dict[str, Any]) -> None:
                nonlocal count
                count -= 1
                found.append(row)
                status.update(f"{count} claims to go{runs}")
                screen.print(f"{_badge(row['verdict'])} {row['claim']}  [dim]{row['seconds']:.1f} s[/]")

            try:
                run(out, patterns, full, seed, tell, data, watch)
            except ExperimentError as error:
                failure = error
        try:
            page = write_report(out)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"the verdicts are in {out}; for the page run: nonsmooth report {out}") from None
        _print_sentences(read_rows(out / "verdicts.jsonl"))
        screen.print(f"\n{len(found)} claims in {time.perf_counter() - began:.0f} s. Open [bold]{escape(str(page))}[/]")
        if failure is not None:
            errors.print(f"Failed: {escape(str(failure))}")
            raise typer.Exit(1)
        if strict and any(row["verdict"] != "supported" for row in found):
            raise typer.Exit(3)


@app.command()
def claims(out: Out = Path("out")) -> None:
    """List the claims, with the verdicts found in a folder."""
    with sentences():
        import nonsmooth.claims  # noqa: F401

        found = {row["claim"]: row for row in _rows(out)} if (out / "verdicts.jsonl").exists() else {}
        table = Table("verdict", "claim", "says", show_lines=True)
        for claim in CLAIMS.values():
            verdict = found[claim.id]["verdict"] if claim.id in found else ""
            table.add_row(_badge(verdict) if verdict else "[dim]not run[/]", claim.id, escape(claim.says))
        screen.print(table)


@app.command()
def show(claim: str, out: Out = Path("out")) -> None:
    """Show one claim: its words, evidence, conditions and mutants."""
    with sentences():
        import nonsmooth.claims  # noqa: F401

        if claim not in CLAIMS:
            raise ValueError(f"there is no claim {claim!r}; `nonsmooth claims` lists them.")
        this = CLAIMS[claim]
        screen.print(f"[bold]{claim}[/]\n{escape(this.says)}\n[dim]{escape(this.source)}[/]")
        rows = [row for row in _rows(out) if row["claim"] == claim]
        if not rows:
            raise ValueError(f"{claim} has not been run into {out}; run: nonsmooth reproduce --only '{claim}'")
        _print_row(rows[0])


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def census(
    target: Annotated[str, typer.Argument(help="A script that trains, as train.py, or a factory, as module:build.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="What the script itself is given.")] = None,
) -> None:
    """List the kinks of a model: each operation, its smoothness, its place, what lies on a kink, what hides more."""
    with sentences():
        from nonsmooth.torch.census_command import census_of

        typer.echo(str(census_of(target, arguments or [])))


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def audit(
    script: Annotated[Path, typer.Argument(help="The script that trains, as it is.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="What the script itself is given.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder of rows and report; default audit, audit-2, ….")
    ] = None,
    budget: Annotated[float, typer.Option("--budget", help="The share of wall clock that probes may take.")] = 0.05,
    optimizer: Annotated[int, typer.Option("--optimizer", min=1, help="Which optimiser, by the order they step.")] = 1,
    trials: Annotated[
        int, typer.Option("--trials", min=0, help="Steps of each what-if at the end: 16 or more, or 0 for none.")
    ] = 50,
) -> None:
    """Run a PyTorch script unchanged and say what non-differentiability does to its training.

    The script's output and exit code stay its own; what was found is told on stderr when it has ended.
    """
    with sentences():
        if script.is_dir():
            raise ValueError(f"{script}: is a directory; name the script that trains.")
        from nonsmooth.torch.audit_command import audit_script

        code = audit_script(script, arguments or [], out, budget, optimizer, trials)
    raise typer.Exit(code)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="The folder of a watched run.")],
    b: Annotated[Path, typer.Argument(help="The folder of another.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("comparison.html"),
) -> None:
    """Set two watched runs side by side: where they part, by step, layer and kink."""
    with sentences():
        from nonsmooth.torch.comparison import compare as compared
        from nonsmooth.torch.comparison import write_comparison

        typer.echo(str(compared(a, b)))
        screen.print(f"Open [bold]{escape(str(write_comparison(a, b, out)))}[/]")


@app.command()
def simulate(
    config: Annotated[Path, typer.Argument(help=r"A TOML file with \[objective], \[rule], \[penalty] and \[run].")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to write the dataset (Zarr).")] = None,
) -> None:
    """Run the simulation that a file describes."""
    with sentences():
        from nonsmooth.config import read_config
        from nonsmooth.simulation import simulate as run

        settings = read_config(config)
        if out is None:
            _print_dataset(run(**settings))
            return
        try:
            out.mkdir(parents=True)
        except FileExistsError as error:
            raise ValueError(f"{out}: exists already; name another place with --out.") from error
        except OSError as error:
            raise ValueError(f"{out}: cannot be written ({error.strerror}); name another place with --out.") from error
        try:
            dataset = run(**settings)
            dataset.to_zarr(out, consolidated=False)
        except BaseException as error:
            shutil.rmtree(out, ignore_errors=True)
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt("nothing was written.") from error
            raise
        _print_dataset(dataset)


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="A TOML file as for simulate, with the sections sweep and axes.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the runs; the same command goes on there.")],
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default, one a core.")] = None,
    dask: Annotated[str | None, typer.Option("--dask", help="The address of a Dask scheduler instead.")] = None,
    module: Annotated[
        str | None, typer.Option("--import", help="The module of the function that the file names.")
    ] = None,
) -> None:
    """Make the runs that a file describes and a folder lacks: a grid, a list or a random design."""
    with sentences():
        from nonsmooth.config import read_sweep
        from nonsmooth.sweeps import sweep as run

        if workers is not None and dask is not None:
            raise ValueError("--workers and --dask exclude each other; give one.")
        settings = read_sweep(config)
        if (function := settings.pop("function", None)) is not None:
            settings["what"] = _function(module, function)
        elif module is not None:
            raise ValueError(f"{config}: names no function, so --import means nothing; leave it out.")
        else:
            settings["what"] = settings.pop("objective")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            dataset = run(out, executor=dask or workers, **settings)
        for warning in said:
            errors.print(escape(str(warning.message)))
        names = ", ".join(sorted(map(str, dataset.data_vars)))
        screen.print(f"{dataset.sizes['run']} runs in {escape(str(out))}: {escape(names)}")


def _function(module: str | None, name: str) -> Any:
    """A function by its name, from the module of --import alone."""
    if module is None:
        raise ValueError(f"the file names the function {name!r}; say where it is: --import MODULE.")
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"--import takes the name of a module, as mine or package.mine, not {module!r}.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except (ImportError, SyntaxError) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"there is no module {module!r} here.") from None
        raise ValueError(f"{module}: cannot be imported ({error}).") from None
    if not callable(getattr(found, name, None)):
        raise ValueError(f"{module}: has no function {name!r}.")
    return getattr(found, name)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A folder that `reproduce`, `audit` or a Monitor wrote.")] = Path(
        "out"
    ),
) -> None:
    """Write the report again from what a folder holds."""
    with sentences():
        if (folder / "rows.jsonl").exists():
            from nonsmooth.torch.run_report import write_run_report

            screen.print(f"Open [bold]{escape(str(write_run_report(folder)))}[/]")
            return
        if not (folder / "verdicts.jsonl").exists():
            raise ValueError(
                f"{folder}: holds neither rows.jsonl nor verdicts.jsonl; name a folder that `nonsmooth audit`, "
                "a Monitor or `nonsmooth reproduce` wrote."
            )
        from nonsmooth.report import write_report

        screen.print(f"Open [bold]{escape(str(write_report(folder)))}[/]")


def _rows(out: Path) -> list[dict[str, Any]]:
    from nonsmooth.report.rows import check_rows

    rows = read_rows(out / "verdicts.jsonl")
    check_rows(rows)
    return rows


def _badge(verdict: str) -> str:
    return f"[{COLOURS.get(verdict, 'white')}]{SIGNS.get(verdict, ' ')} {verdict:9}[/]"


def _print_sentences(rows: list[dict[str, Any]]) -> None:
    table = Table("", "what the abstract says", *SUBJECTS, title="\nThe paper's five sentences", show_lines=True)
    for number, text in ABSTRACT.items():
        verdicts = [sentence_verdict([r for r in rows if subject(r["claim"]) == of], number) for of in SUBJECTS]
        table.add_row(str(number), escape(text), *verdicts)
    screen.print(table)


def _print_row(row: dict[str, Any]) -> None:
    screen.print(f"\n{_badge(row['verdict'])} {escape(row['what'])} {escape(row['relation'])}")
    table = Table("case", "measured", "±", "predicted")
    for cells in zip(row["cases"], row["measured"], row["noise"], row["predicted"], strict=True):
        table.add_row(escape(cells[0]), *("not finite" if c is None else f"{c:.4g}" for c in cells[1:]))
    screen.print(table)
    screen.print(f"[bold]Holds when[/] {escape(row['holds_when'])}")
    for mutant in row["mutants"]:
        screen.print(f"[bold]The same test with[/] {escape(mutant['what'])}: {mutant['verdict']}")
    screen.print(f"[dim]{row['seeds']} samples a case, {row['seconds']} s; rerun: {escape(row['command'])}[/]")


def _print_dataset(dataset: Any) -> None:
    """The mean of each recorded variable over its last half, for each combination of hyper-parameters.

    Runs that diverged are left out of it and counted beside it.
    """
    swept = [str(dim) for dim in dataset.diverged_at.dims if dim != "seed"]
    diverged = dataset.diverged_at.notnull()
    runs, lost = int(diverged.size), int(diverged.sum())
    late = dataset.isel(step=slice(dataset.sizes["step"] // 2, None)).drop_vars(["x_final", "diverged_at"])
    if lost:
        late = late.where(~diverged)
    means = late.mean([dim for dim in ("step", "seed") if dim in late.dims])
    names = [name for name, values in means.data_vars.items() if set(values.dims) <= set(swept)]
    if names:
        columns = [means[name].broadcast_like(means[names]).transpose(*swept).values.ravel() for name in names]
        title = "means over the last half of the steps"
        if lost:
            title += ", of the runs that did not diverge"
            columns.append(diverged.sum([dim for dim in diverged.dims if dim == "seed"]).values.ravel())
            names.append("diverged")
        labels = itertools.product(*(means[dim].values for dim in swept))  # a dimension without labels counts from 0
        table = Table(*map(escape, swept), *map(str, names), title=title)
        for row in itertools.islice(zip(labels, *columns, strict=True), SHOWN):
            table.add_row(*(f"{value:.4g}" for value in (*row[0], *row[1:])))
        screen.print(table)
        if len(columns[0]) > SHOWN:
            screen.print(f"… and {len(columns[0]) - SHOWN} rows more; --out keeps them all.")
    screen.print(f"{runs} runs × {dataset.attrs['steps']} steps" + (f", {lost} diverged" if lost else ""))


def main() -> None:
    """Run the command line.

    >>> main.__name__
    'main'
    """
    sys.exit(app())

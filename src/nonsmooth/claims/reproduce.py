"""Run claims and keep what they found: rows, figures and datasets, moved into place only when all is done.

What is unfinished lies in `.unfinished-HOST-PID-…` and is removed by its own process, or, if that was killed, by the
next one to write into the folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import xarray as xr

from nonsmooth.ledger import CLAIMS, Claim, Evidence, read_rows, subject, write_rows
from nonsmooth.networks import STORE, Store
from nonsmooth.networks.data import load
from nonsmooth.progress import STOP

__all__ = ["ExperimentError", "dataset_of", "file_name", "kept_rows", "reproduce", "runnable", "select"]

STAGING = ".unfinished-"

Report = Callable[[dict[str, Any]], None]


class ExperimentError(Exception):
    """Some experiments raised: what the others found was kept."""


def select(only: Sequence[str]) -> list[Claim]:
    """The claims whose id matches one of the patterns; raises ValueError where none does.

    >>> [claim.id for claim in select(["rmsprop/floor*"])]
    ['rmsprop/floor-independent-of-lambda']
    """
    chosen = [claim for name, claim in CLAIMS.items() if any(fnmatchcase(name, pattern) for pattern in only)]
    if not chosen:
        raise ValueError(f"no claim matches {', '.join(map(repr, only))}; `nonsmooth claims` lists them.")
    return chosen


def runnable(claims: Sequence[Claim]) -> list[Claim]:
    """The claims that the installed packages can test: those on networks need torch.

    >>> [claim.id for claim in runnable(select(["edge/huber-orbits"]))]
    ['edge/huber-orbits']
    """
    return [c for c in claims if subject(c.id) != "networks" or importlib.util.find_spec("torch") is not None]


def file_name(claim: str) -> str:
    """The claim's id as a file name.

    >>> file_name("l1/balance-law")
    'l1--balance-law'
    """
    return claim.replace("/", "--")


def reproduce(
    out: Path,
    only: Sequence[str] = ("*",),
    full: bool = False,
    master: int = 0,
    tell: Report = lambda row: None,
    data: str | None = None,
    watch: Callable[[int, int], None] = lambda made, asked: None,
) -> list[dict[str, Any]]:
    """Run the claims that match `only` and write `verdicts.jsonl`, `figures/` and `data/` into `out`.

    Of these nothing changes before the last experiment has ended: an interruption leaves what was there, and stops
    the experiments at their next slice. Figures and data are moved first and the rows written last. Rows of claims
    that were not run again stay. The training runs behind claims on networks are kept in `networks.jsonl` as each ends:
    after an interruption, kill -9 too, they are not made again. `data` names other data for those claims, as
    `networks.data.load` takes them. `tell` is called with each row as it is found, and `watch` with how many training
    runs were made and asked for; two experiments run at a time. Claims on networks are left out where torch is missing.

    Raises ValueError, before anything runs, where `out` cannot be written, the rows in it or the data cannot be read or
    only torch's claims are asked for without it, and ExperimentError, after writing the rest, where one raised.

    >>> rows = reproduce(Path(tempfile.mkdtemp()), ["edge/huber-orbits"])
    >>> [(row["claim"], row["verdict"]) for row in rows]
    [('edge/huber-orbits', 'supported')]
    """
    claims = runnable(select(only))
    if not claims:
        raise ValueError("claims on networks need torch, which is not installed; run: pip install 'nonsmooth[torch]'")
    if data is not None:
        load(data)
    earlier = kept_rows(out)
    staged = _staging(out)
    rows: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    stop, moving = threading.Event(), False

    with Store(out / "networks.jsonl", watch) as store:

        def begin() -> None:
            STOP.set(stop)
            STORE.set(store)

        pool = ThreadPoolExecutor(min(2, os.cpu_count() or 1), initializer=begin)
        writer = ThreadPoolExecutor(1)  # where an interruption does not part zarr from what its own threads write
        try:
            running = {
                pool.submit(
                    claim.run, full, master=master, **({"data": data} if data and "data" in claim.parameters else {})
                ): claim
                for claim in claims
            }
            for done in as_completed(running):
                claim = running[done]
                try:
                    row, evidence = done.result()
                except Exception as error:  # one broken experiment does not cost the others
                    failed.append(f"{claim.id}: {type(error).__name__}: {error}")
                    continue
                writer.submit(_keep, staged, claim.id, evidence).result()
                rows[claim.id] = row
                tell(row)
            found = earlier | rows
            ordered = [found[name] for name in CLAIMS if name in found]
            moving = True
            for folder in ("figures", "data"):
                _move(staged / folder, out / folder)
            write_rows(out / "verdicts.jsonl", ordered)
        except KeyboardInterrupt as interrupt:
            left = "holds new figures with old rows; run the same again" if moving else "is as it was before"
            raise KeyboardInterrupt(f"{out} {left}.") from interrupt
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            writer.shutdown()
            shutil.rmtree(staged, ignore_errors=True)
    if failed:
        raise ExperimentError("; ".join(failed))
    return ordered


def kept_rows(out: Path, without: Sequence[Claim] = ()) -> dict[str, dict[str, Any]]:
    """The rows in `out` of the ledger's claims, by id, without those of the claims named.

    >>> kept_rows(Path("no-such-folder"))
    {}
    """
    file = out / "verdicts.jsonl"
    stay = CLAIMS.keys() - {claim.id for claim in without}
    return {row["claim"]: row for row in read_rows(file) if row["claim"] in stay} if file.exists() else {}


def dataset_of(evidence: Evidence) -> xr.Dataset:
    """Every sample and prediction of the evidence; the attribute `cases` names the cases.

    >>> dataset_of(Evidence("norm", [[1.0, 2.0]], [1.5], ["a"])).measured.shape
    (1, 2)
    """
    return xr.Dataset(
        {"measured": (("case", "sample"), evidence.measured), "predicted": ("case", evidence.predicted)},
        attrs={"what": evidence.what, "cases": list(evidence.cases)},
    )


def _staging(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        staged = Path(tempfile.mkdtemp(prefix=f"{STAGING}{platform.node()}-{os.getpid()}-", dir=out))
    except OSError as error:
        raise ValueError(f"{out}: cannot be written ({error.strerror}); name another folder with --out.") from error
    (staged / "figures").mkdir()
    (staged / "data").mkdir()
    return staged


def _sweep(out: Path) -> None:
    """Remove what processes of this machine left that are no more (and that did not get to remove it: kill -9)."""
    for left in out.glob(f"{STAGING}*"):
        owner = re.fullmatch(rf"{re.escape(STAGING + platform.node())}-(\d+)-.*", left.name)
        if owner and os.name == "posix" and not _lives(int(owner[1])):
            shutil.rmtree(left, ignore_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _keep(staged: Path, claim: str, evidence: Evidence) -> None:
    figures = [plot.to_dict() for plot in evidence.plots]
    (staged / "figures" / f"{file_name(claim)}.json").write_text(json.dumps(figures, allow_nan=False), encoding="utf-8")
    store = staged / "data" / f"{file_name(claim)}.zarr"
    dataset_of(evidence).to_zarr(store, consolidated=False)
    if evidence.data is not None:
        evidence.data.to_zarr(store, group="run", mode="a", consolidated=False)


def _move(new: Path, old: Path) -> None:
    old.mkdir(exist_ok=True)
    for entry in new.iterdir():
        place = old / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(entry, place)

"""Where shards are kept: a Zarr group a definition, one chunk a shard, and a marker once all its chunks are there.

    STORE/KEY.zarr            one array a variable, (runs, …), and the coordinates
    STORE/KEY.json            the definition, for people
    STORE/KEY.shards/000012   the marker of shard 12: the CRC-32 of each of its chunks
    STORE/latest              the key of the sweep that was asked for last

Every file is written beside its place and moved there, so a reader finds it whole or not at all; what a killed process
leaves beside begins with a dot or ends in .partial. Two writers of one shard write the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import uuid
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nonsmooth.ledger import from_json
from nonsmooth.sweeps.definition import Definition
from nonsmooth.sweeps.design import Table
from nonsmooth.sweeps.shards import Result

__all__ = ["Store", "stored"]

LATEST = "latest"
COORDS = "coordinates"
"""The marker of what is written once, when the group is made: the coordinates, the shapes of the arrays."""

ROWS = 2**20
"""The runs in a chunk of a coordinate: they are cheap, and written at once."""


@dataclass(frozen=True)
class Store:
    """The shards of one definition in a folder; writing raises ValueError, in one sentence, where it cannot.

    >>> Store(Path("runs"), "0123456789abcdef").group.name
    '0123456789abcdef.zarr'
    """

    folder: Path
    key: str

    @property
    def group(self) -> Path:
        """The Zarr group."""
        return self.folder / f"{self.key}.zarr"

    @property
    def definition(self) -> Path:
        """The definition as JSON."""
        return self.folder / f"{self.key}.json"

    def marker(self, shard: int | str) -> Path:
        """Where the marker of a shard is once it is finished."""
        return self.folder / f"{self.key}.shards" / (shard if isinstance(shard, str) else f"{shard:06d}")

    def finished(self, shard: int) -> bool:
        """Whether the shard has its marker."""
        return self.marker(shard).exists()

    def marked(self) -> Iterator[int]:
        """The shards that have a marker."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.marker(COORDS).parent) as entries:
            yield from (int(entry.name) for entry in entries if entry.name.isdecimal())

    def missing(self, shards: int) -> Iterator[int]:
        """The shards without a marker, each looked for when its turn comes, in an order of this process's own.

        Two processes that start together in one order would compute each shard twice; steps of a random length
        part them.
        """
        chance = random.SystemRandom()
        first = chance.randrange(shards)
        stride = next(k for k in iter(lambda: chance.randrange(1, shards + 1), None) if math.gcd(k, shards) == 1)
        return (s for i in range(shards) if not self.finished(s := (first + i * stride) % shards))

    def damage(self, shard: int | str, only: str = "") -> str | None:
        """A sentence about the first file of a marked shard, of those named `only`, that is not as it was written."""
        marker = self.marker(shard)
        try:
            sums = from_json(marker.read_bytes())
            strange = lambda name: ".." in name or name.startswith("/") or not name.isprintable()  # noqa: E731
            inside = isinstance(sums, dict) and not any(map(strange, sums))
            if not (inside and sums):
                raise ValueError
        except FileNotFoundError:
            return f"{marker}: is missing."
        except (OSError, ValueError):
            return f"{marker}: is damaged."
        for name, checksum in sums.items():
            if not name.endswith(only):
                continue
            path = self.group / name
            try:
                if zlib.crc32(path.read_bytes()) != checksum:
                    return f"{path}: is damaged."
            except FileNotFoundError:
                return f"{path}: is missing."
            except (OSError, ValueError):
                return f"{marker}: is damaged."
        return None

    def damages(self) -> Iterator[str]:
        """A sentence about each marked part that is not as it was written."""
        parts: list[int | str] = [COORDS, *self.marked()]
        yield from filter(None, map(self.damage, parts))

    def discard(self, shard: int) -> None:
        """Forget a shard: its marker first, then its chunks, so that its runs read as NaN."""
        with _said(self.folder):
            self.marker(shard).unlink(missing_ok=True)
            for path in self.group.glob(f"*/c/{shard}"):
                if f"{path.parents[1].name}/c/0" not in json.loads(self.marker(COORDS).read_bytes()):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def write(self, definition: Definition, shard: int, result: Result) -> None:
        """Write the chunks of a shard, then its marker; the first shard makes the group."""
        import zarr

        start, stop = definition.runs_of(shard)
        arrays = {**result.arrays, "finished": (("run",), np.ones(stop - start, dtype=bool))}
        with _said(self.folder):
            if not (self.group.exists() and self.marker(COORDS).exists()):
                self._create(definition, result)
            there = {name.partition("/")[0] for name in json.loads(self.marker(COORDS).read_bytes()) if "/" in name}
            strange = (there - {*definition.table.axes, *result.coords}) ^ set(arrays)
            for name, (_, values) in arrays.items():
                target = None if strange else zarr.open_array(self.group / name, mode="r+")
                if target is None or target.shape[1:] != values.shape[1:] or target.dtype != values.dtype:
                    raise ValueError(
                        f"sweep: {min(strange, default=name)!r} of runs {start} to {stop - 1} is not as in the other "
                        "shards; a run must always return the same names, shapes and types."
                    )
                target[start:stop] = values
            names = [f"{name}/c/{'/'.join([str(shard), *'0' * (len(dims) - 1)])}" for name, (dims, _) in arrays.items()]
            self._mark(shard, names, self.group)

    def open(self) -> xr.Dataset:
        """The dataset, read as it is used; NaN where a shard is not finished."""
        return xr.open_zarr(self.group, consolidated=False, chunks=None)

    def ready(self) -> None:
        """Make the folder."""
        with _said(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(13, "permission denied")

    def mend(self, definition: Definition) -> str | None:
        """A sentence about what is damaged of the group but its shards, once that is written again."""
        if not self.group.exists():
            return None
        damage = self.damage(COORDS)
        if damage is not None:
            self._create(definition, definition.compute(0))
        self._name(definition)
        return damage

    def _name(self, definition: Definition) -> None:
        """Write what is swept, and that it is the latest."""
        with _said(self.folder):
            _place(self.definition, (json.dumps(definition.summary(), indent=1) + "\n").encode())
            _place(self.folder / LATEST, self.key.encode())

    def _mark(self, shard: int | str, names: list[str], group: Path) -> None:
        """The checksums of these files; a chunk of NaN alone, as of `diverged_at`, is none."""
        sums = {name: zlib.crc32((group / name).read_bytes()) for name in names if (group / name).exists()}
        marker = self.marker(shard)
        marker.parent.mkdir(exist_ok=True)
        _place(marker, json.dumps(sums).encode())

    def _create(self, definition: Definition, result: Result) -> None:
        """Make the group beside its place, with the coordinates of all runs in it, and move it there."""
        import zarr

        made = self.folder / f".{self.key}.{uuid.uuid4().hex}"
        table = definition.table
        attributes = {
            "definition": json.dumps(definition.summary()),
            "coordinates": " ".join([*table.axes, "finished"]),
        }
        try:
            with _said(self.folder):
                group = zarr.create_group(made, zarr_format=3, attributes=attributes)
                for name, (dims, values) in result.arrays.items():
                    _array(group, name, dims, (table.runs, *values.shape[1:]), definition.width, values.dtype)
                _array(group, "finished", ("run",), (table.runs,), definition.width, np.dtype(bool))
                for name, values in result.coords.items():
                    _array(group, name, (name,), values.shape, len(values), values.dtype)[:] = values
                _write_axes(group, table)
                names = [path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()]
                self._mark(COORDS, names, made)
                try:
                    made.rename(self.group)
                except OSError:  # it is there: another process was first, or some of it was damaged
                    for name in names:
                        (self.group / name).parent.mkdir(parents=True, exist_ok=True)
                        (made / name).replace(self.group / name)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        self._name(definition)


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """The definitions that a folder holds, by key.

    >>> stored(Path("nowhere"))
    {}
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(ValueError, OSError):
            summary = from_json(path.read_bytes())
            if (
                isinstance(summary, dict)
                and summary.get("key") == path.stem
                and (folder / f"{path.stem}.zarr").is_dir()
            ):
                found[path.stem] = summary
    return found


def _write_axes(group: Any, table: Table) -> None:
    """Write the coordinates of all runs, a million at a time."""
    for start in range(0, table.runs, ROWS):
        for name, column in table.at(start, stop := min(start + ROWS, table.runs)).items():
            names = column.dtype.kind == "U"
            if start == 0:
                _array(group, name, ("run",), (table.runs,), min(ROWS, table.runs), str if names else column.dtype)
            group[name][start:stop] = column.astype(object) if names else column


def _array(group: Any, name: str, dims: Any, shape: tuple[int, ...], width: int, dtype: Any) -> Any:
    fill = math.nan if np.dtype(dtype).kind == "f" else None  # then the type's zero
    return group.create_array(
        name,
        shape=shape,
        chunks=(width, *shape[1:]),
        dtype=dtype,
        fill_value=fill,
        dimension_names=dims,
    )


def _place(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _said(folder: Path) -> Iterator[None]:
    """A full disk, a folder that is read-only: one sentence."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(
            f"{folder}: cannot be written ({reason}); mend that and sweep again: what is finished is kept."
        ) from error

"""Where long vectors wait while the device's memory is needed for something else.

Those of an accelerator wait in the host's memory, and those of the processor in a temporary file that has no name, on
the disk of `tempfile.gettempdir()` (the variable TMPDIR sets it): what was written lies in the system's cache while
that has room, is gone with the file, and is not part of what the process holds. On a disk that is itself memory (tmpfs)
nothing is won by it.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch

__all__ = ["InFile", "InMemory", "Store", "copies", "outside"]

SPARE = 2
"""A disk must have so many times the room that is asked for."""


class Store(Protocol):
    """Vectors of one length and kind, read and written piece by piece; each is there from its first writing.

    >>> rows: Store = InFile(2, torch.float16)
    >>> rows.write(0, slice(0, 2), torch.tensor([1.0, 2.0]))  # rounded to the kind
    >>> rows.read(0, slice(0, 2))
    tensor([1., 2.], dtype=torch.float16)
    """

    def read(self, i: int, at: slice) -> torch.Tensor: ...

    def write(self, i: int, at: slice, piece: torch.Tensor) -> None: ...

    def like(self, kind: torch.dtype) -> Store:
        """An empty one of another kind."""
        ...


def outside(dim: int, kind: torch.dtype, device: torch.device, count: int) -> Store | None:
    """Room for so many vectors that is not on the device; None where there is none.

    >>> type(outside(1000, torch.float16, torch.device("cpu"), 4)).__name__
    'InFile'
    """
    if device.type != "cpu":
        return InMemory(dim, kind, torch.device("cpu"))
    try:
        if shutil.disk_usage(tempfile.gettempdir()).free < SPARE * count * dim * kind.itemsize:
            return None
        return InFile(dim, kind)
    except OSError:  # no directory that can be written to
        return None


class InMemory:
    """Vectors in the memory of a device.

    >>> rows = InMemory(3, torch.float16, torch.device("cpu"))
    >>> rows.write(0, slice(1, 3), torch.tensor([2.0, 3.0]))
    >>> rows.read(0, slice(1, 2)).tolist()
    [2.0]
    """

    def __init__(self, dim: int, kind: torch.dtype, device: torch.device) -> None:
        self.dim, self.kind, self.device, self.rows = dim, kind, device, list[torch.Tensor]()

    def read(self, i: int, at: slice) -> torch.Tensor:
        return self.rows[i][at]

    def write(self, i: int, at: slice, piece: torch.Tensor) -> None:
        while len(self.rows) <= i:
            self.rows.append(torch.empty(self.dim, dtype=self.kind, device=self.device))
        self.rows[i][at] = piece

    def like(self, kind: torch.dtype) -> InMemory:
        return InMemory(self.dim, kind, self.device)


class InFile:
    """Vectors in a temporary file without a name, which goes with them. Raises OSError where the disk is full.

    >>> rows = InFile(3, torch.float16)
    >>> rows.write(1, slice(0, 3), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16))
    >>> rows.read(1, slice(1, 3)).tolist()
    [2.0, 3.0]
    """

    def __init__(self, dim: int, kind: torch.dtype) -> None:
        self.dim, self.kind = dim, kind
        self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed by the next line
        weakref.finalize(self, self.file.close)

    def read(self, i: int, at: slice) -> torch.Tensor:
        piece = torch.empty(at.stop - at.start, dtype=self.kind, device="cpu")
        left = self._at(i, at, piece)
        while left:
            read = self.file.readinto(left)
            if not read:
                raise OSError("a temporary file lost what was written to it.")
            left = left[read:]
        return piece

    def write(self, i: int, at: slice, piece: torch.Tensor) -> None:
        try:
            self._put(self._at(i, at, piece.to("cpu", self.kind).contiguous()))
        except OSError as error:
            raise OSError(
                f"{tempfile.gettempdir()} cannot hold long vectors ({error.strerror}); set TMPDIR to another disk."
            ) from error

    def like(self, kind: torch.dtype) -> InFile:
        return InFile(self.dim, kind)

    def _at(self, i: int, at: slice, piece: torch.Tensor) -> memoryview:
        """Go to the place of a piece; its bytes."""
        self.file.seek((i * self.dim + at.start) * self.kind.itemsize)
        return piece.view(torch.uint8).numpy().data

    def _put(self, left: memoryview) -> None:
        while left:
            left = left[self.file.write(left) :]


def copies(tensors: Iterable[torch.Tensor], few: int, own: bool = False) -> Sequence[torch.Tensor]:
    """Copies of tensors, which wait outside where they have more entries than few, if there is such a place.

    own: the tensors are no one else's, so that they need no copy where they stay.

    >>> copies([torch.ones(2), torch.zeros(3)], few=4)[0].tolist()
    [1.0, 1.0]
    """
    given = [t.detach() for t in tensors]
    many = sum(t.numel() for t in given) > few
    place = outside(sum(t.nbytes for t in given), torch.uint8, given[0].device, 1) if many else None
    if place is not None:
        with contextlib.suppress(OSError):  # the disk is full
            return _Waiting(given, place)
    return given if own else [t.clone() for t in given]


class _Waiting(Sequence[torch.Tensor]):
    """Each is read when it is asked for."""

    def __init__(self, own: list[torch.Tensor], place: Store) -> None:
        self.place, first = place, 0
        self.kinds = list[tuple[int, torch.Size, torch.dtype, torch.device]]()
        for t in own:
            place.write(0, slice(first, first + t.nbytes), t.contiguous().reshape(-1).view(torch.uint8))
            self.kinds.append((first, t.shape, t.dtype, t.device))
            first += t.nbytes

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, i: Any) -> Any:
        first, shape, dtype, device = self.kinds[i]
        held = self.place.read(0, slice(first, first + shape.numel() * dtype.itemsize))
        return held.to(device, copy=True).view(dtype).reshape(shape)

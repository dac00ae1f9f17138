"""Who computes the shards: this process, processes of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any

from nonsmooth.processes import Processes, WorkerDiedError
from nonsmooth.sweeps.definition import Definition
from nonsmooth.sweeps.store import Store

__all__ = ["finish"]

TRIES = 3
"""How often in a row workers may die before a shard more is finished."""

CONNECT = "20s"
"""How long a Dask scheduler may take to answer."""

Executor = Callable[[Callable[[int], int], Iterator[int]], Generator[int]]


def finish(store: Store, definition: Definition, executor: Any, tell: Callable[[int], None]) -> None:
    """Compute the shards that are missing, and `tell` each; where a worker dies, what it had is tried again.

    Raises ValueError, in one sentence, where workers keep dying or a shard cannot be computed.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from nonsmooth.sweeps.design import Table
    >>> from nonsmooth.sweeps.shards import Calls
    >>> square = Definition(Calls(lambda lr: {"loss": lr**2}), Table({"lr": range(4)}), width=2)
    >>> store = Store(Path(tempfile.mkdtemp()), "0" * 16)
    >>> finish(store, square, 1, lambda shard: None)
    >>> store.open().loss.values.tolist()
    [0.0, 1.0, 4.0, 9.0]
    """
    work, tries = Shard(store, definition), 0
    while next(store.missing(definition.shards), None) is not None:
        shards = store.missing(definition.shards)
        try:
            with contextlib.closing(_executor(executor, definition, store)(work, shards)) as ended:
                for shard in ended:
                    tries = 0
                    tell(shard)
        except WorkerDiedError as death:
            tries += 1
            if tries == TRIES:
                raise ValueError(
                    f"sweep: workers died {TRIES} times with no shard finished in between ({death}); "
                    "what is finished is kept: give them more memory, or a smaller width, and sweep again."
                ) from death


class Shard:
    """The work on a shard by its number: compute it and write it, unless someone else has."""

    def __init__(self, store: Store, definition: Definition) -> None:
        self.store, self.definition = store, definition

    def __call__(self, shard: int) -> int:
        if not self.store.finished(shard):
            self.store.write(self.definition, shard, self.definition.compute(shard))
        return shard

    def __reduce__(self) -> Any:
        return _known, (self.store, self.definition)


_KNOWN: dict[str, Definition] = {}


def _known(store: Store, definition: Definition) -> Shard:
    """In a worker: the first copy of a definition stands for all, so that its functions are compiled once."""
    return Shard(store, _KNOWN.setdefault(store.key, definition))


def _executor(executor: Any, definition: Definition, store: Store) -> Executor:
    if executor is None:
        import joblib

        missing = itertools.islice(store.missing(definition.shards), joblib.cpu_count())
        executor = sum(1 for _ in missing) if joblib.cpu_count() > 1 else 1
    if isinstance(executor, int) and not isinstance(executor, bool) and executor >= 1:
        return _here if executor == 1 else lambda work, shards: _processes(executor, work, shards)
    return lambda work, shards: _dask(executor, work, shards)


def _here(work: Callable[[int], int], shards: Iterator[int]) -> Generator[int]:
    yield from map(work, shards)


def _processes(count: int, work: Callable[[int], int], shards: Iterator[int]) -> Generator[int]:
    """Processes of this machine; they are new ones, and do not inherit JAX."""
    with Processes(count) as processes:
        yield from processes.each(work, shards)


def _dask(address: Any, work: Callable[[int], int], shards: Iterator[int]) -> Generator[int]:
    """The workers of a Dask cluster, by a client or its scheduler's address; they write to the store themselves."""
    try:
        from distributed import CancelledError, Client, KilledWorker, as_completed
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"a Dask cluster needs {missing.name}, which is not installed; run: pip install 'nonsmooth[scale]'"
        ) from missing
    if not isinstance(address, (str, Client)):
        raise ValueError(f"sweep: executor must be None, a count, an address or a Client, not {address!r}.")
    with contextlib.ExitStack() as stack:
        client: Any = address
        if isinstance(address, str):
            try:
                client = stack.enter_context(Client(address, timeout=CONNECT))
            except (OSError, ValueError) as error:
                raise ValueError(f"sweep: no Dask scheduler answers at {address!r}.") from error
        submit = lambda shard: client.submit(work, shard, pure=False)  # noqa: E731
        at_once = 2 * max(1, sum(client.nthreads().values()))
        ended = as_completed([submit(shard) for shard in itertools.islice(shards, at_once)])
        try:
            for future in ended:
                shard = future.result()
                future.release()
                if (following := next(shards, None)) is not None:
                    ended.add(submit(following))
                yield shard
        except KilledWorker as error:
            raise WorkerDiedError("a worker of the cluster was lost several times with one shard") from error
        except CancelledError as error:
            raise ValueError("sweep: the cluster went away; what is finished is kept: sweep again.") from error
        finally:
            with contextlib.suppress(Exception):  # nobody may be there to be told
                client.cancel(list(ended.futures))

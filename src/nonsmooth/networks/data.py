"""Images and signals with their classes: what ships with a library, what is generated, what lies on the user's disk."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

__all__ = ["Data", "load", "origin"]

SHUFFLE = 20240116
"""The seed of the shuffle before the data are split."""
TEST = 0.25
"""The share kept for testing, where the data do not say which."""
IDX = {8: np.uint8}
MOST = 10**9
"""The bytes of an idx file, unpacked: MNIST's largest has 47 million."""
PACKAGES = {"digits": ("scikit-learn",), "mnist1d": ("mnist1d", "scipy")}
"""What these data come from; mnist1d smooths with SciPy."""
CIFAR_ROW = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class Data:
    """x (n, channels, …) in [0, 1] or standardised, y (n,) the classes 0 … `classes` − 1; the same of the test set.

    >>> data = load("digits")
    >>> data.x.shape, data.x_test.shape, data.classes
    ((1347, 1, 8, 8), (450, 1, 8, 8), 10)
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: int


@cache
def load(name: str) -> Data:
    """ "digits" (scikit-learn's, 8 × 8), "mnist1d" (Greydanus & Kobak 2024, generated), or a folder on disk.

    A folder holds MNIST as `train-images-idx3-ubyte` and its three companions, or CIFAR-10's binary version,
    `data_batch_1.bin` … and `test_batch.bin`; idx files may be gzipped. Nothing is downloaded and nothing unpickled.
    Training samples are in an order shuffled once, the same always.

    Raises ValueError, in one sentence, for a folder that holds neither or a file that is not what its name says.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        return _split(name, images.reshape(-1, 1, 8, 8) / 16, labels)
    if name == "mnist1d":
        try:
            from mnist1d.data import get_dataset_args, make_dataset
        except ModuleNotFoundError as missing:
            raise ModuleNotFoundError("load: 'mnist1d' is not installed; run: pip install mnist1d") from missing
        state = np.random.get_state()
        try:
            made = make_dataset(get_dataset_args())
        finally:
            np.random.set_state(state)
        return _shuffled(name, made["x"][:, None], made["y"], made["x_test"][:, None], made["y_test"])
    return _folder(Path(name))


@cache
def origin(name: str) -> tuple[str, ...]:
    """What `load` makes these data of: packages with their versions, or a hash of each file.

    >>> [package.split()[0] for package in origin("digits")]
    ['scikit-learn']
    """
    if name in PACKAGES:
        return tuple(f"{package} {version(package)}" for package in PACKAGES[name])
    return tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(Path(name)))


def _folder(folder: Path) -> Data:
    files = _files(folder)
    if files[-1].suffix == ".bin":
        parts = [_cifar(path) for path in files]
        x, y = (np.concatenate([part[i] for part in parts[:-1]]) for i in (0, 1))
        return _shuffled(str(folder), x, y, *parts[-1])
    images, labels, images_test, labels_test = (_idx(path, n) for path, n in zip(files, (3, 1, 3, 1)))
    return _shuffled(str(folder), images[:, None] / 255, labels, images_test[:, None] / 255, labels_test)


def _files(folder: Path) -> list[Path]:
    """CIFAR-10's batches, the test's the last, or MNIST's images and labels, those to train on and those to test on."""
    if not folder.is_dir():
        raise ValueError(f"load: there are no data {str(folder)!r}; give digits, mnist1d or a folder.")
    cifar = [*sorted(folder.glob("data_batch_*.bin")), folder / "test_batch.bin"]
    if len(cifar) > 1 and cifar[-1].is_file():
        return cifar
    names = (f"{part}-{what}" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
    idx = [path for path in (_found(folder, name) for name in names) if path]
    if len(idx) == 4:
        return idx
    raise ValueError(
        f"load: {folder} holds neither MNIST's four idx files (train-images-idx3-ubyte, …) nor CIFAR-10's binary "
        "version (data_batch_1.bin, …, test_batch.bin)."
    )


def _found(folder: Path, stem: str) -> Path | None:
    names = (f"{stem}-ubyte", f"{stem}-ubyte.gz", f"{stem.replace('-idx', '.idx')}-ubyte")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _idx(path: Path, axes: int) -> np.ndarray:
    """An array of bytes in the idx format: 0, 0, type, axes, each length as four bytes, then the entries."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MOST + 1)
        if len(raw) > MOST:
            raise ValueError(f"it holds more than {MOST:.0e} bytes")
        if raw[:2] != b"\0\0" or raw[2] not in IDX or raw[3] != axes:
            raise ValueError(f"it does not begin as an idx file of bytes with {axes} axes")
        lengths = np.frombuffer(raw[4 : 4 + 4 * raw[3]], ">u4").astype(int)
        entries = np.frombuffer(raw[4 + 4 * raw[3] :], IDX[raw[2]])
        if len(lengths) != raw[3] or entries.size != lengths.prod():
            raise ValueError(f"it holds {entries.size} entries, not {lengths.prod()}")
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise ValueError(f"load: {path} cannot be read ({error}).") from error
    return entries.reshape(lengths)


def _cifar(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a label and 3 × 32 × 32 bytes."""
    try:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise ValueError(f"load: {path} cannot be read ({error}).") from error
    if raw.size == 0 or raw.size % CIFAR_ROW:
        raise ValueError(f"load: {path} is not whole: {raw.size} bytes are no multiple of {CIFAR_ROW}.")
    rows = raw.reshape(-1, CIFAR_ROW)
    return rows[:, 1:].reshape(-1, 3, 32, 32) / 255, rows[:, 0]


def _split(name: str, x: np.ndarray, y: np.ndarray) -> Data:
    order = np.random.default_rng(SHUFFLE).permutation(len(x))
    count = len(x) - math.ceil(TEST * len(x))
    train, test = order[:count], order[count:]
    return Data(name, x[train], y[train].astype(int), x[test], y[test].astype(int), int(y.max()) + 1)


def _shuffled(name: str, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> Data:
    if len(x) != len(y) or len(x_test) != len(y_test):
        raise ValueError(f"load: {name} has {len(x)} and {len(x_test)} samples, but {len(y)} and {len(y_test)} labels.")
    if not (len(x) and len(x_test)):
        raise ValueError(f"load: {name} holds no samples to train on, or none to test on.")
    order = np.random.default_rng(SHUFFLE).permutation(len(x))
    return Data(name, x[order], y[order].astype(int), x_test, y_test.astype(int), int(max(y.max(), y_test.max())) + 1)

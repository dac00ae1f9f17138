"""Settings, data, models, the training loop against a plain one, and the store of runs."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from nonsmooth.networks import Setting, Store, drawn
from nonsmooth.networks import models as building
from nonsmooth.networks.activations import KINKED, SMOOTH, activation, gain
from nonsmooth.networks.data import CIFAR_ROW, load, origin
from nonsmooth.networks.models import build
from nonsmooth.networks.observers import OBSERVERS
from nonsmooth.networks.training import Run, trained

ANYWHERE = ("steps", "path_splits", "sharpnesses", "stabilities")
"""Observers that every setting can have."""
SMALL = Setting(samples=60, width=8, steps=6, lr=0.2)


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adam, adamw, rmsprop, not 'lion'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"width": 2.5}, "width must be a whole number of at least 1, not 2.5"),
        ({"lr": math.nan}, "lr must be a finite number of at least 0, not nan"),
        ({"amp": True}, "amp needs dtype='float32'; autocast leaves float64 as it is"),
        ({"lam": -1.0}, "lam must be a finite number of at least 0, not -1.0"),
    ],
)
def test_a_setting_that_cannot_be_is_one_sentence(fields, says):
    with pytest.raises(ValueError, match=says):
        Setting(**fields)


def test_a_field_of_another_version_is_named():
    with pytest.raises(ValueError, match="there is no colour"):
        Setting.from_dict({"colour": "red"})


def test_the_key_is_of_every_field():
    other = {"data": "mnist1d", "samples": 7, "batch": 7, "model": "cnn", "width": 7, "depth": 7, "activation": "gelu",
             "pool": "average", "batchnorm": True, "loss": "mse", "optimizer": "adam", "lr": 7.0, "momentum": 0.7,
             "weight_decay": 0.7, "schedule": "cosine", "lam": 0.7, "penalty": "autograd", "on": "batchnorm",
             "steps": 7, "dtype": "float32", "seed": 7, "watch": ("steps",), "every": 7,
             "tail": 0.7}  # fmt: skip
    assert {*other, "amp"} == Setting().to_dict().keys()
    keys = {replace(Setting(), **{name: value}).key for name, value in other.items()}
    keys |= {Setting().key, Setting(dtype="float32", amp=True).key}
    assert len(keys) == len(other) + 2
    assert (
        Setting.from_dict(json.loads(json.dumps(Setting(watch=("steps",)).to_dict()))).key
        == Setting(watch=("steps",)).key
    )


# --- activations and models ----------------------------------------------------------------------------------------


def test_gains_by_closed_form_and_by_quadrature():
    from scipy.integrate import quad

    assert gain("relu") == gain("relu_half") == gain("relu_one") == pytest.approx(math.sqrt(2), rel=1e-12)
    assert gain("hardtanh") == pytest.approx(math.erf(1 / math.sqrt(2)) ** -0.5, rel=1e-6)
    square = quad(lambda z: (1 - np.tanh(z) ** 2) ** 2 * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), -9, 9)[0]
    assert gain("tanh") == pytest.approx(square**-0.5, rel=1e-6)


def sizes(name: str) -> list[float]:
    """The mean square of the gradient at the input of each hidden layer of a wide network, last over first."""
    torch.manual_seed(0)
    model = build(Setting(width=400, depth=5, activation=name), (1, 8, 8), 10)
    x = torch.randn(50, 1, 8, 8, dtype=torch.float64)
    held = []
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            x.retain_grad()
            held.append(x)
    (x * torch.randn_like(x)).sum().backward()
    return [float(h.grad.square().mean()) for h in held[1:-1]]


def test_gradients_keep_their_size_through_the_layers(monkeypatch):
    for name in ("relu", "leaky_relu:0.3", "hardtanh", "tanh", "gelu", "silu", "softplus:5"):
        found = sizes(name)
        assert 0.4 < found[0] / found[-1] < 2.5, name
    monkeypatch.setattr(building, "gain", lambda name: 1.0)  # the mutant
    found = sizes("relu")
    assert not 0.4 < found[0] / found[-1] < 2.5


def test_every_activation_starts_from_the_same_numbers():
    weights = {}
    for name in (*KINKED, *SMOOTH):
        torch.manual_seed(3)
        weights[name] = build(replace(SMALL, activation=name), (1, 8, 8), 10)[1].weight / gain(name)
    for w in weights.values():
        assert torch.allclose(w, weights["relu"], rtol=1e-12)


def test_the_relus_differ_in_their_derivative_at_0_alone():
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    for name, at_zero in (("relu", 0.0), ("relu_half", 0.5), ("relu_one", 1.0)):
        y = activation(name)(x)
        assert torch.equal(y, x.clamp(min=0))
        (slope,) = torch.autograd.grad(y.sum(), x)
        assert slope.tolist() == [0.0] * 6 + [at_zero] + [1.0] * 6


@pytest.mark.parametrize("name", ["swish", "relu:2", "leaky_relu:x", ""])
def test_an_activation_that_there_is_not(name):
    with pytest.raises(ValueError, match=r"activation: there is no .*; known are relu, "):
        activation(name)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 40)])
@pytest.mark.parametrize("batchnorm", [False, True])
def test_the_cnn_fits_images_and_signals(shape, batchnorm):
    model = build(Setting(model="cnn", width=3, batchnorm=batchnorm, pool="average"), shape, 7)
    assert model(torch.zeros(2, *shape, dtype=torch.float64)).shape == (2, 7)
    assert sum(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in model) == 2 * batchnorm


def test_a_cnn_on_too_little_is_one_sentence():
    with pytest.raises(ValueError, match="a cnn needs samples of"):
        build(Setting(model="cnn"), (64,), 10)


# --- data ----------------------------------------------------------------------------------------------------------


def test_the_digits_are_split_once():
    from sklearn.datasets import load_digits

    data = load("digits")
    both = np.concatenate([data.x, data.x_test]).reshape(-1, 64) * 16
    assert sorted(map(tuple, both)) == sorted(map(tuple, load_digits().data))
    assert np.bincount(data.y_test).min() > 25


def test_mnist1d_leaves_the_random_numbers_alone():
    load.cache_clear()
    torch.manual_seed(5)
    np.random.seed(5)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    data = load("mnist1d")
    assert np.random.get_state()[1].tolist() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert data.x.shape == (4000, 1, 40) and data.classes == 10


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for part, n in (("train", 30), ("t10k", 10)):
        images, labels = rng.integers(0, 256, (n, 28, 28)), np.arange(n) % 10
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_mnist_from_disk_trains(mnist):
    data = load(str(mnist))
    assert data.x.shape == (30, 1, 28, 28) and data.x_test.shape == (10, 1, 28, 28) and data.x.max() <= 1
    assert sorted(data.y) == sorted(np.arange(30) % 10)
    row = trained(Setting(data=str(mnist), samples=20, width=4, steps=3, model="cnn"))
    assert row["losses"][-1] < row["losses"][0]


def test_the_key_is_of_the_bytes_in_the_folder(mnist):
    before = Setting(data=str(mnist)).key
    path = mnist / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x03")
    assert Setting(data=str(mnist)).key == before  # as `load` keeps what it has read
    origin.cache_clear()
    assert Setting(data=str(mnist)).key != before
    with pytest.raises(ValueError, match="there are no data 'nowhere'; give digits, mnist1d or a folder"):
        _ = Setting(data="nowhere").key


def test_cifar_from_disk(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (12, CIFAR_ROW)).astype(np.uint8)
    rows[:, 0] = np.arange(12) % 10
    for name, part in (("data_batch_1", rows[:4]), ("data_batch_2", rows[4:8]), ("test_batch", rows[8:])):
        (tmp_path / f"{name}.bin").write_bytes(part.tobytes())
    data = load(str(tmp_path))
    assert data.x.shape == (8, 3, 32, 32) and data.y_test.tolist() == [8, 9, 0, 1]
    first = int(np.flatnonzero(data.y == 5)[0])
    assert np.array_equal(data.x[first].ravel() * 255, rows[5, 1:])


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("train-images-idx3-ubyte.gz", lambda raw: raw[:50], "cannot be read"),
        ("train-labels-idx1-ubyte", lambda raw: raw[:-3], "it holds 27 entries, not 30"),
        ("t10k-labels-idx1-ubyte", lambda raw: b"\1" + raw[1:], "it does not begin as an idx file"),
        ("t10k-labels-idx1-ubyte", lambda raw: b"", "it does not begin as an idx file"),
        ("t10k-labels-idx1-ubyte", lambda raw: idx(np.zeros(4)), "10 samples, but 30 and 4 labels"),
    ],
)
def test_a_damaged_file_is_one_sentence(mnist, name, damage, says):
    (mnist / name).write_bytes(damage((mnist / name).read_bytes()))
    with pytest.raises(ValueError, match=says):
        load(str(mnist))


def test_files_without_samples_are_named(mnist):
    for name, shape in (("images-idx3", (0, 28, 28)), ("labels-idx1", (0,))):
        for path in mnist.glob(f"t10k-{name}*"):
            path.unlink()
        (mnist / f"t10k-{name}-ubyte").write_bytes(idx(np.zeros(shape)))
    with pytest.raises(ValueError, match="holds no samples to train on, or none to test on"):
        load(str(mnist))


def test_a_folder_without_data(tmp_path):
    with pytest.raises(ValueError, match="holds neither MNIST's four idx files"):
        load(str(tmp_path))
    with pytest.raises(ValueError, match="there are no data 'cifar'; give digits, mnist1d or a folder"):
        load("cifar")
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(CIFAR_ROW + 1))
    (tmp_path / "test_batch.bin").write_bytes(bytes(CIFAR_ROW))
    with pytest.raises(ValueError, match="is not whole"):
        load(str(tmp_path))


# --- training ------------------------------------------------------------------------------------------------------


def plain_losses(setting: Setting) -> list[float]:
    """The same training in plain torch, from the same initial weights."""
    data = load("digits")
    torch.manual_seed(setting.seed)
    model = build(setting, (1, 8, 8), 10)
    x, y = torch.tensor(data.x[: setting.samples]), torch.tensor(data.y[: setting.samples])
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.lr, momentum=setting.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.steps)
    generator, found = torch.Generator().manual_seed(setting.seed), []
    while len(found) < setting.steps:
        for which in torch.randperm(len(x), generator=generator).split(setting.batch):
            if len(which) == setting.batch and len(found) < setting.steps:
                optimizer.zero_grad()
                loss = cross_entropy(model(x[which]), y[which])
                loss = loss + setting.lam * sum(p.abs().sum() for p in model.parameters() if p.ndim > 1)
                loss.backward()
                optimizer.step()
                schedule.step()
                found.append(loss.item())
    return found


def test_the_loop_equals_a_plain_one():
    setting = replace(SMALL, batch=16, steps=11, momentum=0.9, schedule="cosine", lam=1e-3, penalty="autograd")
    row = trained(setting)
    np.testing.assert_allclose(row["losses"], plain_losses(setting), rtol=1e-12)
    with pytest.raises(AssertionError):  # the mutant: a constant rate
        np.testing.assert_allclose(
            trained(replace(setting, schedule="constant"))["losses"], plain_losses(setting), rtol=1e-12
        )


@pytest.mark.parametrize(
    "setting",
    [
        SMALL,
        replace(SMALL, batch=20, batchnorm=True, optimizer="adam", lr=0.01),
        replace(SMALL, optimizer="rmsprop", lr=0.01, penalty="proximal", lam=1e-3),
        replace(SMALL, model="cnn", width=2, loss="mse", amp=True, dtype="float32"),
    ],
)
def test_watching_changes_no_bit(setting):
    bare, again = trained(setting), trained(setting)
    same = ("losses", "loss", "accuracy", "l1_norm", "raised")
    assert [bare[of] for of in same] == [again[of] for of in same]
    watched = trained(replace(setting, watch=ANYWHERE))
    assert [bare[of] for of in same] == [watched[of] for of in same]
    assert watched["found"].keys() == set(ANYWHERE) <= OBSERVERS.keys()


def test_a_diverging_run_ends_and_says_so():
    row = trained(replace(SMALL, lr=1e4, steps=200, loss="mse", watch=("steps",)))
    assert row["diverged"] and row["steps"] < 200 and row["loss"] is None and row["accuracy"] is None
    json.dumps(row, allow_nan=False)


def test_proximal_gives_zeros_and_autograd_none():
    base = replace(SMALL, lam=0.03, steps=60)
    runs = {}
    for how in ("autograd", "proximal"):
        run = Run(replace(base, penalty=how))
        while run.t < 60:
            run.choose()
            run.step()
        seen = torch.as_tensor(load("digits").x[:60]).flatten(1).any(0)  # pixels that are not always 0
        runs[how] = int((run.penalised[0][:, seen] == 0).sum())
    assert runs["autograd"] == 0 < runs["proximal"]


def test_the_accuracy_of_batchnorm_is_that_of_the_trained_model():
    setting = replace(SMALL, batch=20, batchnorm=True, steps=9)
    run = Run(setting)
    while run.t < 9:
        run.choose()
        run.step()
    x = torch.as_tensor(run.data.x_test)
    run.model.eval()
    assert trained(setting)["accuracy"] == float((run.model(x).argmax(1).numpy() == run.data.y_test).mean())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"on": "batchnorm"}, "on='batchnorm' needs batchnorm=True"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum is SGD's and RMSprop's, not adam's"),
        ({"watch": ("nothing",)}, "there is no observer 'nothing'; known are steps, "),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(fields, says):
    with pytest.raises(ValueError, match=says):
        trained(replace(SMALL, **fields))


def slope(loss, w: torch.Tensor) -> torch.Tensor:
    w = w.clone().requires_grad_()
    return torch.autograd.grad(loss(w), w)[0]


def test_observers_against_dense_derivatives():
    """κ by its definition, λ₁ by a dense Hessian, along three steps of full-batch GD in plain torch."""
    setting = Setting(samples=40, width=3, depth=1, steps=3, lr=0.3, loss="mse", watch=("steps", "sharpnesses"))
    found = trained(setting)["found"]
    run = Run(setting)
    shapes = [p.shape for p in run.params]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = [a.reshape(s) for a, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        hidden = torch.relu(run.x.flatten(1) @ pieces[0].T + pieces[1])
        out = hidden @ pieces[2].T + pieces[3]
        return (out - torch.eye(10, dtype=torch.float64)[run.y]).square().sum(1).mean() / 2

    w = torch.cat([p.detach().reshape(-1) for p in run.params])
    for t in range(3):
        g = slope(loss, w)
        after = w - 0.3 * g
        change = slope(loss, after) - g
        kappa = float(change @ (after - w) / (after - w).square().sum())
        assert found["steps"]["curvature"][t] == pytest.approx(kappa, rel=1e-9)
        assert found["steps"]["step_ratio"][t] == pytest.approx(kappa * 0.3 / 2, rel=1e-9)
        top = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, w))[-1])
        assert found["sharpnesses"]["value"][t] == pytest.approx(top, rel=5e-3)
        w = after


# --- the store -----------------------------------------------------------------------------------------------------


def test_a_run_is_made_once_and_found_again(tmp_path):
    said: list[tuple[int, int]] = []
    path = tmp_path / "runs.jsonl"
    settings = drawn(replace(SMALL, steps=2), 2)
    rows = Store(path, lambda made, asked: said.append((made, asked))).run([*settings, settings[0]])
    assert said == [(0, 2), (1, 2), (2, 2)] and rows[0] == rows[2] != rows[1]
    with path.open("ab") as file:
        file.write(b'{"key": "cut o')  # a row whose writing was cut off
    again = Store(path, lambda made, asked: said.append((made, asked)))
    assert again.run(settings) == rows[:2] and len(said) == 3
    assert rows[0]["losses"] == trained(settings[0])["losses"]


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from nonsmooth.networks import Setting, Store, drawn

Store(Path(sys.argv[1])).run(drawn(Setting(samples=50, width=4, steps=int(sys.argv[2])), 8))
"""


def test_what_ended_before_a_kill_is_not_made_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    command = [sys.executable, "-c", KILLED, str(path), "300"]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (path.exists() and len(path.read_bytes().splitlines()) >= 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    ended = {row["key"]: row for row in map(json.loads, path.read_bytes().splitlines()[:2])}
    made: list[int] = []
    store = Store(path, lambda so_far, asked: made.append(asked))
    rows = store.run(drawn(Setting(samples=50, width=4, steps=300), 8))
    assert not made or max(made) <= 6
    assert all(row in rows for row in ended.values())
    assert len({row["key"] for row in rows}) == 8


class Newer:
    """Processes that began when the sources were others, and name their rows accordingly."""

    def each(self, work, items):
        yield from ({"key": "of other sources"} for _ in items)

    def close(self):
        pass


def test_what_changes_while_runs_are_made_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("nonsmooth.networks.store.Processes", Newer)
    with pytest.raises(ValueError, match="the sources or the data changed while runs were made; run again"):
        Store(tmp_path / "runs.jsonl").run([SMALL])
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        Store(tmp_path / "file" / "runs.jsonl").run(drawn(replace(SMALL, steps=1), 1))

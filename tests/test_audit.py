"""An audited run is the same bit by bit, and an audit says what it found, and what it did not."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy, max_pool2d, relu
from torch.utils.data import DataLoader, Dataset

from apart import apart
from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal, monitor, probes
from nonsmooth.torch import audit as audit_module
from nonsmooth.torch.aftermath import Aftermath
from nonsmooth.torch.audit import Audit
from nonsmooth.torch.capture import Capture
from nonsmooth.torch.tape import Tape
from test_monitor import Words

rejected = pytest.raises(AssertionError)


@pytest.fixture(autouse=True)
def one_thread():
    """Models as small as these wait for a second thread longer than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    assert torch._C._len_torch_function_stack() == 0


# --- the same bit by bit ---------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A ResNet in small: batch norm, a connection past two convolutions, functional ReLU and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.c, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.f = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = relu(self.b(self.a(x.view(-1, 1, 8, 8))))
        return self.f(max_pool2d(relu(x + self.d(self.c(x))), 2).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.f = nn.LSTM(8, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.f(self.l(x.view(-1, 8, 8))[0][:, -1])


class Language(nn.Module):
    """A GPT-2 of random weights, with its dropout; it returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        size = {"vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
        self.g = GPT2LMHeadModel(
            GPT2Config(**size, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM", use_cache=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = (x[:, :12].abs() * 9).long() % 32
        return self.g(input_ids=ids, labels=ids).loss


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)),
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(36, 3),
    ),
    "resnet": Residual,
    "lstm": Recurrent,
    "gpt2": Language,
    "max_norm": lambda: Words(64, 3),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "sgd": lambda m: optim.SGD(m.parameters(), lr=0.05),
    "momentum": lambda m: optim.SGD(m.parameters(), lr=0.02, momentum=0.9),
    "adam": lambda m: optim.Adam(m.parameters(), lr=0.003),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=0.003),
    "rmsprop": lambda m: optim.RMSprop(m.parameters(), lr=0.001),
    "proximal": lambda m: Proximal(optim.Adam(m.parameters(), lr=0.003), L1(1e-3)),
}


class Noisy(Dataset[Any]):
    """Draws from all three streams, in the worker that reads it."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        fixed = torch.tensor(np.random.RandomState(i).randn(64), dtype=torch.float32)
        return fixed + 0.01 * torch.randn(64) + 0.01 * random.random() + 0.01 * np.random.rand(), i % 3


Batch = tuple[torch.Tensor, torch.Tensor]


def train(
    model: nn.Module,
    optimizer: optim.Optimizer,
    mode: str = "plain",
    steps: int = 12,
    workers: int = 0,
    forward: Any = None,
) -> None:
    scheduler = optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=mode == "amp")
    forward, t = forward or model, 0
    context = "fork" if workers else None
    loader = DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=workers, multiprocessing_context=context)
    while t < steps:
        for x, y in loader:
            if t >= steps:
                break
            optimizer.zero_grad()
            for _ in range(3 if mode == "accumulate" else 1):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "amp"):
                    z = forward(x)
                    loss = z if z.ndim == 0 else cross_entropy(z, y)
                scaler.scale(loss / 3 if mode == "accumulate" else loss).backward()
            if mode == "clip":
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            t += 1
            print(t, loss.item(), random.random(), np.random.rand(), torch.rand(1).item())
            if t % 4 == 0:
                model.eval()
                with torch.no_grad():
                    print(forward(x).sum().item())
                model.train()


def left_by(model: nn.Module, optimizer: optim.Optimizer) -> list[Any]:
    """All that a run leaves behind, to the bit: parameters, buffers, gradients, its state, modes, streams."""
    tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for p in model.parameters():
        tensors += [torch.as_tensor(v) for _, v in sorted(optimizer.state[p].items())]
    bits = hashlib.sha256(b"".join(t.detach().contiguous().view(-1).view(torch.uint8).numpy() for t in tensors))
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    numpy = np.random.get_state()
    streams = random.getstate(), numpy[1].tobytes(), numpy[2:], torch.get_rng_state().numpy().tobytes()
    modes = torch.is_grad_enabled(), torch._C._len_torch_function_stack(), nn.Module.__call__, torch.autograd.backward
    return [bits.hexdigest(), len(tensors), flags, streams, modes]


def run(build: Any, make: Any, watch: Any = None, compiled: bool = False, **how: Any) -> tuple[list[Any], Any]:
    """What is left of a run, and printed by it, under `watch(model, optimizer)`; and the watch."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    out = io.StringIO()
    early = watch() if watch is Audited else None
    with contextlib.redirect_stdout(out), early or contextlib.nullcontext():
        model = build()
        optimizer = make(model)
        late = watch(model, optimizer) if watch is not None and early is None else contextlib.nullcontext()
        with late as found:
            train(model, optimizer, forward=torch.compile(model) if compiled else None, **how)
    return [*left_by(model, optimizer), out.getvalue()], early or found


@pytest.fixture(autouse=True)
def _whatever_the_speed_of_the_machine(monkeypatch):
    monkeypatch.setattr(audit_module, "ALLOWANCE", 600.0)


class Audited(Audit):
    """With all the budget that there is to spend."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"budget": 0.9, "trials": 0} | options)


def monitored(model: nn.Module, optimizer: optim.Optimizer) -> Any:
    with torch.random.fork_rng():
        x, y = torch.randn(8, 64), torch.arange(8) % 3

    def closure() -> torch.Tensor:
        z = model(x)
        return z if z.ndim == 0 else cross_entropy(z, y)

    return monitor.Monitor(model, optimizer, closure, budget=0.9, allowance=600.0)  # whatever the machine's speed


COVER = [
    ("mlp", "sgd", "plain"),
    ("mlp", "proximal", "plain"),
    ("mlp", "rmsprop", "accumulate"),
    ("mlp", "adam", "amp"),
    ("mlp", "momentum", "clip"),
    ("cnn", "momentum", "plain"),
    ("cnn", "proximal", "accumulate"),
    ("cnn", "sgd", "amp"),
    ("resnet", "sgd", "clip"),
    ("resnet", "rmsprop", "plain"),
    ("resnet", "adamw", "amp"),
    ("lstm", "adam", "plain"),
    ("lstm", "sgd", "accumulate"),
    ("gpt2", "adamw", "plain"),
    ("gpt2", "momentum", "amp"),
    ("max_norm", "adam", "plain"),
]
"""Each model, optimiser and mode with several of the others; all with all are in benchmarks/undisturbed.py."""


def measured(rows: list[dict[str, Any]]) -> int:
    return sum(row["kind"] in ("step", "stability") and "error" not in row for row in rows)


@pytest.mark.parametrize(("model", "optimizer", "mode"), COVER)
def test_a_watched_run_is_the_same_bit_by_bit(model, optimizer, mode):
    how = (MODELS[model], OPTIMIZERS[optimizer])
    bare, _ = run(*how, mode=mode)
    audited, audit = run(*how, Audited, mode=mode)
    assert audited == bare
    assert measured(audit.monitor.rows) >= 4 and not [m for m in audit.missing if m["what"] != "the census"]
    assert audit.facts["accumulation"] == (3 if mode == "accumulate" else 1)
    assert audit.facts["scaled"] == (mode == "amp") and audit.facts["clipped"] == (mode == "clip")
    watched, found = run(*how, monitored, mode=mode)
    assert watched == bare and measured(found.rows) >= 4


@apart
def test_streams_of_workers_stay_what_they_were():
    how = (MODELS["mlp"], OPTIMIZERS["sgd"])
    bare, _ = run(*how, workers=2)
    audited, audit = run(*how, Audited, workers=2)
    assert audited == bare and measured(audit.monitor.rows) >= 4


def test_a_compiled_model_stays_what_it_was():
    how = (lambda: nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3)), OPTIMIZERS["momentum"])
    torch._dynamo.reset()
    bare, _ = run(*how, compiled=True, steps=6)
    torch._dynamo.reset()
    audited, audit = run(*how, Audited, compiled=True, steps=6)
    torch._dynamo.reset()
    assert audited == bare and audit.facts["compiled"] and measured(audit.monitor.rows) >= 2


def test_trials_leave_the_run_where_it_ended():
    how = (MODELS["cnn"], OPTIMIZERS["proximal"])
    bare, _ = run(*how)
    audited, audit = run(*how, lambda *_: Audited(trials=16))
    assert audited == bare and {row["name"] for row in audit.facts["what_if"]} >= {"as-it-is", "half-lr"}


def drawing(patch: pytest.MonkeyPatch) -> None:
    before = probes.measured
    patch.setattr(probes, "measured", lambda *a, **k: (torch.rand(1), before(*a, **k))[1])


def not_restoring(patch: pytest.MonkeyPatch) -> None:
    from nonsmooth.torch import batches

    patch.setattr(batches, "kept", lambda *a: contextlib.nullcontext())


def still_patched(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Capture, "_unpatch", lambda self: None)


def still_listening(patch: pytest.MonkeyPatch) -> None:
    leave = Capture.__exit__
    patch.setattr(Capture, "__exit__", lambda self, *a: (leave(self, *a), self._push(Tape()))[0])


def in_eval(patch: pytest.MonkeyPatch) -> None:
    end = Audit.finish
    patch.setattr(Audit, "finish", lambda self, *a: (self.monitor.model.eval(), end(self, *a))[1])


def chatty(patch: pytest.MonkeyPatch) -> None:
    begin = monitor.Monitor.begin
    patch.setattr(monitor.Monitor, "begin", lambda self: (print("watching"), begin(self))[1])


@pytest.mark.parametrize("mutant", [drawing, not_restoring, still_patched, still_listening, in_eval, chatty])
def test_the_comparison_rejects_an_audit_that_disturbs(mutant, monkeypatch):
    how = (MODELS["mlp"], OPTIMIZERS["momentum"])
    bare, _ = run(*how, steps=6)
    call = nn.Module.__call__
    try:
        with monkeypatch.context() as patch:
            mutant(patch)
            audited, _ = run(*how, Audited, steps=6)
        with rejected:
            assert audited == bare
    finally:
        nn.Module.__call__ = call
        while torch._C._len_torch_function_stack():
            torch._C._pop_torch_function_stack()


def test_a_graph_that_the_script_keeps_over_a_step_stays_good():
    """Two branches with one optimiser: the first one's step leaves the second's parameters, and their graph, alone."""

    def branches(watch: bool) -> list[list[float]]:
        torch.manual_seed(0)
        a, b = nn.Linear(4, 1), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        optimizer, x = optim.SGD([*a.parameters(), *b.parameters()], lr=0.01), torch.ones(2, 4)
        with Audited() if watch else contextlib.nullcontext():
            for _ in range(4):
                optimizer.zero_grad()
                first, second = a(x).square().mean(), b(x).square().mean()
                first.backward()
                optimizer.step()
                optimizer.zero_grad()
                second.backward()
                optimizer.step()
        return [p.flatten().tolist() for p in (*a.parameters(), *b.parameters())]

    assert branches(True) == branches(False)


# --- what it says ----------------------------------------------------------------------------------------------------

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def steps(model: nn.Module, optimizer: Any, loss: Any = None, n: int = 4) -> None:
    for _ in range(n):
        optimizer.zero_grad()
        (cross_entropy(model(X), Y) if loss is None else loss()).backward()
        optimizer.step()


def test_it_says_what_it_found(tmp_path):
    model = network()
    with Audit(budget=0.9, folder=tmp_path, trials=16, command=["train.py"]) as audit:
        steps(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), n=20)
    facts = audit.facts
    assert facts["loss"] == "what backward was called on, computed again to the bit" and audit.missing == []
    assert facts["model"] == {"name": "Sequential", "parameters": 51, "training": True, "dtype": "float32"}
    assert facts["optimizer"]["groups"][0]["momentum"] == 0.9 and facts["steps"] == 20
    assert [row["name"] for row in facts["census"]["operations"]] == ["linear", "relu", "linear", "cross_entropy"]
    assert facts["command"] == ["train.py"] and facts["crashed"] is None
    assert {p.name for p in tmp_path.iterdir()} == {"rows.jsonl", "run.json", "report.html"}
    assert audit.findings and facts["findings"][0]["title"] == audit.findings[0].title
    for row in audit.monitor.rows:
        if row["kind"] == "step":
            own = f"the script's own batch at step {row['step']}"
            assert row["data"] in (own, "the script's full batch")  # which it is: the same tensors each time
            assert row["step"] > 2 or row["data"] == own
    assert any(row["data"] == "the script's full batch" for row in audit.monitor.rows)


def test_a_model_per_role_and_their_names_do_not_clash():
    one, two = network(), network()
    with Audit(budget=0.9, trials=0) as audit:
        optimizer = optim.SGD([*one.parameters(), *two.parameters()], lr=0.1)
        steps(one, optimizer, lambda: cross_entropy(one(X) + two(X), Y), n=6)
    assert audit.missing == [] and not any("error" in row for row in audit.monitor.rows)
    names = [name for name, _ in audit.monitor.probes.params()]
    assert len(set(names)) == len(names) == 8 and "0.weight" in names


@torch.no_grad()
def clamped(w: torch.Tensor) -> None:
    w.clamp_(-1.0, 1.0)


@pytest.mark.parametrize(
    ("write", "told"),
    [(clamped, True), (lambda w: w.data.clamp_(-0.1, 0.1), True), (lambda w: w.requires_grad_(False), False)],
)
def test_weights_that_are_written_outside_of_the_step_are_told(write, told):
    """`.data` has no versions: what it writes is seen by the bits. A weight that is frozen is none that is written."""
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with Audit(budget=0.9, trials=0) as audit:
        for _ in range(4):
            steps(model, optimizer, n=1)
            write(model[0].weight)
    assert audit.facts["edited"] is told


def test_parameters_that_are_frozen_half_way_do_not_end_the_sharpness():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with Audit(budget=0.9, trials=0) as audit:
        steps(model, optimizer, n=6)
        model[0].requires_grad_(False)
        steps(model, optimizer, n=8)
    late = [row for row in audit.monitor.rows if row["kind"] == "stability" and row["step"] > 7]
    assert late and not any("error" in row for row in late)


def test_the_loss_of_a_row_is_the_script_s():
    model, losses = network(), []

    def loss() -> torch.Tensor:
        losses.append(cross_entropy(model(X), Y))
        return losses[-1]

    with Audit(budget=0.9, trials=0) as audit:
        steps(model, optim.SGD(model.parameters(), lr=0.1), loss, n=6)
    found = {row["step"]: row["loss"] for row in audit.monitor.rows if row["kind"] == "step"}
    assert found and all(loss == pytest.approx(losses[step - 1].item(), rel=1e-6) for step, loss in found.items())
    traces = [row["loss"] for row in audit.monitor.rows if row["kind"] == "trace"]
    assert traces == [loss.item() for loss in losses]


def slept(n: int, nap: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Audit, int, list[int]]:
    """An audit of n steps that sleeps for so many seconds; how many it looked at, and the traced ones."""
    monkeypatch.setattr(audit_module, "ALLOWANCE", 0.0)
    monkeypatch.setattr(monitor, "NAP", nap)
    monkeypatch.setattr(monitor.Monitor, "_has_room", lambda self, kind: False)
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    with Audit(trials=0, budget=1e-9) as audit:
        looked, after = [], audit.capture.after
        audit.capture.after = lambda *given: (looked.append(1), after(*given))
        steps(model, optimizer, n=n)
    return audit, len(looked), [row["step"] for row in audit.monitor.rows if row["kind"] == "trace"]


@pytest.mark.parametrize("n", [3, 37, 64, 150])
def test_steps_that_it_sleeps_through_are_counted(n, monkeypatch):
    awake, all_of_them, traced = slept(n, 0.0, monkeypatch)
    audit, looked, same = slept(n, 1e9, monkeypatch)
    assert all_of_them == n == awake.facts["steps"] == audit.facts["steps"]
    assert same == traced and (looked < n / 2 or n < 100)
    assert not any(a.facts["edited"] for a in (awake, audit))  # the steps slept through are the optimiser's own


@pytest.mark.parametrize("budget", [1.0, 1e-9])
def test_steps_that_are_listened_to_are_told_from_the_others(budget, monkeypatch):
    told, own = [], Aftermath.step
    monkeypatch.setattr(audit_module, "ALLOWANCE", 0.0)
    monkeypatch.setattr(Aftermath, "step", lambda self, s, n, taped: (told.append(taped), own(self, s, n, taped))[1])
    with Audit(trials=0, budget=budget) as audit:
        listened, listen = [], audit.capture.listen
        audit.capture.listen = lambda: (listened.append(audit.monitor.t), listen())
        model = network()
        steps(model, optim.SGD(model.parameters(), lr=0.01), n=12)
    assert sum(told) == sum(1 <= t < 12 for t in listened) and (sum(told) > 8) == (budget == 1.0)


def test_one_of_several_optimisers_is_watched_and_the_others_are_named():
    def adversaries(which: int) -> Audit:
        one, two = network(), network()
        first, second = optim.SGD(one.parameters(), lr=0.1), optim.Adam(two.parameters())
        with Audit(budget=0.9, trials=0, which=which) as audit:
            for _ in range(6):
                steps(one, first, n=1)
                steps(two, second, n=1)
        return audit

    for which, name in ((1, "SGD"), (2, "Adam")):
        audit = adversaries(which)
        assert audit.facts["optimizer"]["name"] == name and audit.facts["steps"] == 6
        (other,) = audit.missing
        assert other["what"] == "1 more optimiser" and f"number {which} of 2" in other["why"]
        assert other["line"] == f"with nonsmooth.torch.Audit(which={3 - which}): train()"
        assert measured(audit.monitor.rows) >= 3 and audit.facts["optimizers"] == 2
    missing = adversaries(3)
    assert missing.missing[0]["what"] == "the optimiser" and missing.missing[0]["why"] == "only 2 made a step"


def test_what_a_generator_made_is_data_to_its_discriminator():
    made = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))
    judge = network()
    G, D = optim.SGD(made.parameters(), lr=0.1), optim.SGD(judge.parameters(), lr=0.1)

    def trained() -> list[torch.Tensor]:
        torch.manual_seed(0)
        for _ in range(8):
            fakes, target = made(torch.randn(len(X), 3)), torch.zeros(len(X), dtype=torch.long)
            D.zero_grad()
            (cross_entropy(judge(X), Y) + cross_entropy(judge(fakes.detach()), target)).backward()
            D.step()
            G.zero_grad()
            (-cross_entropy(judge(fakes), target)).backward()
            G.step()
        return [t.clone() for t in (*judge.state_dict().values(), *made.state_dict().values(), torch.get_rng_state())]

    start = copy.deepcopy((made.state_dict(), judge.state_dict()))
    bare = trained()
    made.load_state_dict(start[0])
    judge.load_state_dict(start[1])
    with Audit(budget=0.9, trials=0) as audit:
        watched = trained()
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))
    steps_of = [row for row in audit.monitor.rows if row["kind"] == "step"]
    assert steps_of and not any("error" in row for row in steps_of) and audit.agreement.gap < 1e-6
    names = {row["name"] for row in audit.facts["census"]["operations"]}
    assert "relu" in names and not any("dropout" in name or "detach" in name for name in names)
    assert not any(finding.id == "hidden-kinks" for finding in audit.findings)
    assert {name for row in steps_of for name in row["flips_by_layer"]} == {"1"}


@pytest.mark.parametrize(
    ("later", "which", "tried"), [("all", 1, False), ("head", 1, False), ("other", 1, True), ("other", 2, True)]
)
def test_weights_that_another_optimiser_trained_on_are_not_tried_from(later, which, tried, monkeypatch):
    """By the state of an optimiser that was replaced, trials would be fiction; a second training leaves the first."""
    monkeypatch.setattr("nonsmooth.torch.trials.CHANGES", ("as-it-is",))
    model, other = network(), network()
    params = {"all": model, "head": model[2], "other": other}[later].parameters()
    lam = 0.0 if tried else 0.1
    with Audit(budget=0.9, trials=16, which=which) as audit:
        optimizer = optim.SGD(model.parameters(), lr=0.5)
        steps(model, optimizer, lambda: cross_entropy(model(X), Y) + lam * model[0].weight.abs().sum(), n=6)
        steps(other if later == "other" else model, optim.Adam(params), n=8)
    assert audit.facts["optimizers"] == 1 and audit.facts["steps"] == (6 if which == 1 else 8)
    assert len(audit.facts["what_if"]) == tried
    assert [m["what"] for m in audit.missing] == ["1 more optimiser", *["trials from the end"] * (not tried)]
    assert ("replaced by another after its 6 steps" in audit.missing[0]["why"]) is not tried
    if not tried:  # the penalty was found, and is not audited
        assert [term["lam"] for term in audit.facts["l1"]["terms"]] == [pytest.approx(0.1)]
        assert audit.facts["l1"]["audited"] is False


def penalised(lam: Callable[[int], float], n: int = 10, **options: Any) -> Audit:
    """An audit of a run with λ(t) on the first weight."""
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    with Audit(**{"budget": 0.9, "trials": 0} | options) as audit:
        for t in range(1, n + 1):
            strength = lam(t)
            loss = lambda k=strength: cross_entropy(model(X), Y) + k * model[0].weight.abs().sum()  # noqa: E731
            steps(model, optimizer, loss, n=1)
    return audit


@pytest.mark.parametrize(
    ("lam", "changes"), [(lambda t: 0.01 * t, True), (lambda t: 0.02 * (t > 4), True), (lambda t: 0.02, False)]
)
def test_lam_is_that_of_the_last_batch(lam, changes):
    audit = penalised(lam)
    last = audit.kept[-1].step
    assert last > 4 and [term["lam"] for term in audit.facts["l1"]["terms"]] == [pytest.approx(lam(last))]
    changed = audit.facts["l1"].get("changed")
    assert (changed is not None) is changes
    assert not changes or changed == {"name": "0.weight", "lam": pytest.approx([lam(2), lam(last)]), "steps": [2, last]}
    assert any(f.id == "l1-lam-changed" for f in audit.findings) is changes


def test_a_penalty_that_left_the_loss_is_not_audited():
    audit = penalised(lambda t: 0.02 * (t < 5))
    assert audit.facts["l1"] == {"terms": [], "changed": {"name": "0.weight", "lam": [pytest.approx(0.02), 0.0],
                                                          "steps": [2, audit.kept[-1].step]}}  # fmt: skip
    (finding,) = [f for f in audit.findings if f.id.startswith("l1-")]
    assert finding.title.startswith("λ changed while the run went on: 0.02 at step 2, 0 at step ")


def test_lam_adds_up_over_backward_calls_and_places():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    with Audit(budget=0.9, trials=0) as audit:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(4):
                loss = cross_entropy(model(X), Y) + 0.02 * sum(
                    p.abs().sum() for p in (model[0].weight, model[2].weight)
                )
                loss = loss + 0.01 * model[0].weight.abs().sum()
                (loss / 4).backward()
            optimizer.step()
    l1 = audit.facts["l1"]
    assert {layer["name"]: layer["lam"] for layer in l1["layers"]} == pytest.approx(
        {"0.weight": 0.03, "2.weight": 0.02}
    )
    assert len(l1["terms"]) == 3 and "several" in [lint["id"] for lint in l1["lints"]]


@pytest.mark.parametrize("largest", [2**26, 8])
def test_batches_that_the_script_writes_over_are_copied_unless_they_are_large(largest, monkeypatch):
    monkeypatch.setattr("nonsmooth.torch.batches.LARGEST", largest)
    model, x = network(), X.clone()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    with Audit(budget=0.9, trials=0) as audit:
        for _ in range(6):
            x.copy_(torch.randn(12, 4))
            steps(model, optimizer, lambda: cross_entropy(model(x), Y) + 0.1 * model[0].weight.abs().sum(), n=1)
        x.zero_()
    assert audit.facts["l1"]["terms"][0]["lam"] == pytest.approx(0.1)
    if largest > 8:
        assert not audit.missing and audit.facts["l1"]["data"].startswith("the batches of steps ")
    else:
        (missing,) = audit.missing
        assert missing["what"] == "trials from the end" and "written other data into the tensors" in missing["why"]


def test_a_penalised_layer_that_is_frozen_drops_out():
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.01)

    def loss() -> torch.Tensor:
        return cross_entropy(model(X), Y) + 0.1 * sum(m.weight.abs().sum() for m in model if hasattr(m, "weight"))

    with Audit(budget=0.9, trials=0) as audit:
        steps(model, optimizer, loss)
        model[0].requires_grad_(False)
        steps(model, optimizer, loss)
    assert not audit.missing and [layer["name"] for layer in audit.facts["l1"]["layers"]] == ["2.weight"]


def test_a_training_that_follows_another_is_not_slept_through(monkeypatch):
    monkeypatch.setattr(monitor, "NAP", 1e9)
    monkeypatch.setattr(monitor.Monitor, "_has_room", lambda self, kind: False)
    monkeypatch.setattr(audit_module, "ALLOWANCE", 0.0)
    first, second = network(), network()
    with Audit(budget=1e-9, trials=16) as audit:
        steps(first, optim.SGD(first.parameters(), lr=0.01), n=150)
        first.requires_grad_(False)
        steps(second, optim.Adam(second.parameters()), n=300)
    assert audit.facts["steps"] == 150 and audit.facts["optimizers"] == 1  # the other one takes no turns with it
    assert [m["what"] for m in audit.missing] == ["1 more optimiser", "trials from the end"]


def test_where_two_optimisers_take_turns_batches_are_kept_to_the_end(monkeypatch):
    monkeypatch.setattr(monitor.Monitor, "_has_room", lambda self, kind: False)
    monkeypatch.setattr(audit_module, "ALLOWANCE", 0.0)
    one, two = network(), network()
    first, second = optim.SGD(one.parameters(), lr=0.01), optim.SGD(two.parameters(), lr=0.01)
    with Audit(budget=1e-9, trials=0) as audit:
        for _ in range(150):
            steps(one, first, n=1)
            steps(two, second, n=1)
    assert [batch.step for batch in audit.kept][-1] > 120


def test_the_loss_of_lbfgs_is_where_its_step_began():
    model, began = network(), []
    optimizer = optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(X), Y)
        loss.backward()
        return loss

    with Audit(budget=0.9, trials=50) as audit:
        for _ in range(6):
            began.append(cross_entropy(model(X), Y).item())
            optimizer.step(closure)
    assert [row["loss"] for row in audit.monitor.rows if row["kind"] == "trace"] == pytest.approx(began, rel=1e-6)
    assert not audit.kept and not audit.facts.get("what_if")
    assert not any(finding.id == "loss-not-falling" for finding in audit.findings)


def closure_step(model: nn.Module) -> None:
    optimizer = optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(model(X), Y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g


def gradient_by_hand(model: nn.Module) -> None:
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        for p, g in zip(model.parameters(), torch.autograd.grad(model(X).sum(), list(model.parameters())), strict=True):
            p.grad = g
        optimizer.step()


def changing(model: nn.Module) -> None:
    """A loss that is another each time it is computed."""

    class Counting(nn.Module):
        calls = 0

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return z.square().sum() * Counting.calls

    counting = Counting()
    steps(model, optim.SGD(model.parameters(), lr=1e-4), lambda: counting(model(X)))


def on_parameters(model: nn.Module) -> None:
    w = nn.Parameter(torch.ones(3))
    steps(model, optim.SGD([w], lr=0.1), lambda: w.square().sum())


NOT_FOUND: dict[str, tuple[Callable[[nn.Module], Any], str, str]] = {
    "no optimiser": (lambda m: cross_entropy(m(X), Y).backward(), "the optimiser", "no torch optimiser made a step"),
    "no backward": (gradient_by_hand, "the loss", "no backward was heard"),
    "closure": (closure_step, "the loss", "several times within a step, as LBFGS does"),
    "custom function": (
        lambda m: steps(m, optim.SGD(m.parameters(), lr=0.1), lambda: Sign.apply(m(X)).sum()),
        "the loss",
        "it depends on a tensor that SignBackward made",
    ),
    "another each time": (changing, "the loss", "something in it changes from call to call"),
    "no model": (on_parameters, "the model", "layers have numbers for names"),
}


@pytest.mark.parametrize(("script", "what", "why"), NOT_FOUND.values(), ids=list(NOT_FOUND))
def test_what_could_not_be_found_is_named_with_the_line_to_add(script, what, why):
    with Audit(budget=0.9, trials=0) as audit:
        script(network())
    found = next(m for m in audit.missing if m["what"] == what)
    assert why in found["why"] and found["line"]
    assert audit.facts["missing"] == audit.missing


def test_an_audit_that_fails_fails_no_script(monkeypatch):
    """It is given up, and says so."""
    model = network()

    def failing(self: Any, *_: Any) -> None:
        raise LookupError("by design")

    monkeypatch.setattr(monitor.Monitor, "_trace", failing)
    with Audit(budget=0.9, trials=0) as audit:
        steps(model, optim.SGD(model.parameters(), lr=0.1))
    (given_up,) = [m for m in audit.missing if m["what"] == "the rest of the run"]
    assert given_up["why"] == "LookupError: by design"


@pytest.mark.parametrize("filters", ["default", "error"])
def test_an_end_that_fails_is_a_warning_in_one_sentence(filters, monkeypatch):
    def failing(self: Any, *_: Any) -> None:
        raise LookupError("by design\nand more")

    monkeypatch.setattr(Audit, "_try", failing)
    model = network()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter(filters)
        with Audit(budget=0.9, trials=0):
            steps(model, optim.SGD(model.parameters(), lr=0.1))
    told = [str(one.message) for one in shown]
    assert told == (["Audit: its end failed: LookupError: by design"] if filters == "default" else [])


def test_an_exception_passes_and_is_noted():
    model = network()
    audit = Audit(budget=0.9, trials=0)

    def crash() -> None:
        with audit:
            steps(model, optim.SGD(model.parameters(), lr=0.1))
            raise RuntimeError("disk on fire\nand more")

    with pytest.raises(RuntimeError, match="disk on fire"):
        crash()
    assert audit.facts["crashed"] == "RuntimeError: disk on fire" and audit.facts["steps"] == 4
    assert nn.Module.__call__.__name__ == "_wrapped_call_impl"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"budget": 0}, r"^audit: budget is a share of the wall clock, above 0 and up to 1, not 0\.$"),
        ({"budget": True}, r"^audit: budget is a share"),
        ({"which": 0}, r"^audit: which is the number of an optimiser, from 1, not 0\.$"),
        ({"trials": 3}, r"^audit: trials is the number of steps of a what-if, 16 or more, or 0, not 3\.$"),
        ({"folder": "/proc/none"}, r"^audit: the folder /proc/none cannot be written"),
    ],
)
def test_bad_arguments_are_named(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Audit(**change)

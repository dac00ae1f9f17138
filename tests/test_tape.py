"""What a tape took down computes the script's loss again: to the bit where the parameters are, and anew where not."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy, dropout, mse_loss
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from apart import apart
from nonsmooth.torch import capture as module
from nonsmooth.torch import tape as tapes
from nonsmooth.torch.capture import Capture, Heard
from nonsmooth.torch.program import Program, place, tensors_in
from nonsmooth.torch.tape import Tape
from nonsmooth.torch.undisturbed import undisturbed

rejected = pytest.raises(AssertionError)
X = torch.randn(12, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(12) % 3


def depth() -> int:
    return torch._C._len_torch_function_stack()


@pytest.fixture(autouse=True)
def balanced():
    """After each test modules are called as ever, and no mode is left on."""
    call, backward = nn.Module.__call__, torch.autograd.backward
    yield
    assert depth() == 0 and nn.Module.__call__ is call and torch.autograd.backward is backward


def network(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), *between, nn.Linear(6, 3)).double()


def hear(step: Callable[[optim.Optimizer], Any], params: Any, steps: int = 2, at_once: bool = False) -> list[Heard]:
    """What is heard of so many steps of SGD, of a learning rate of 0: the parameters stay where they are.

    at_once: with what comes before the first call of a module.
    """
    optimizer, heard = optim.SGD(params, lr=0.0), []

    def after(_: Any, what: Heard) -> None:
        heard.append(what)
        capture.listen()

    with Capture(lambda _: None, after) as capture:
        if at_once:
            capture.listen()
        for _ in range(steps):
            optimizer.zero_grad()
            step(optimizer)
            optimizer.step()
    return heard


# --- losses ----------------------------------------------------------------------------------------------------------


@dataclass
class Output:
    """As many models return it."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Says(nn.Module):
    """A network that returns what `form` makes of its logits."""

    def __init__(self, form: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.net, self.form = network(), form

    def forward(self, x: torch.Tensor) -> Any:
        return self.form(self.net(x))


def model_output(z: torch.Tensor) -> Any:
    from transformers.modeling_outputs import SequenceClassifierOutput

    return SequenceClassifierOutput(loss=cross_entropy(z, Y), logits=z)


Loss = Callable[[], torch.Tensor]
Made = tuple[list[torch.Tensor], Loss]


def of(model: nn.Module, loss: Callable[[nn.Module], torch.Tensor]) -> Made:
    return list(model.parameters()), lambda: loss(model)


def raw() -> Made:
    torch.manual_seed(0)
    W, b = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (3,)))

    def loss() -> torch.Tensor:
        z = (X @ W + b).clamp(min=0)
        z = z - z.max(dim=1, keepdim=True).values
        return (z.exp().sum(1).log() - z[torch.arange(12), Y]).mean()

    return [W, b], loss


def accumulated(model: nn.Module) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(X.split(4), Y.split(4), strict=True):
        total += cross_entropy(model(x), y)
    total *= 0.5
    return total


def into_a_buffer(model: nn.Module) -> torch.Tensor:
    each = torch.zeros(3, dtype=torch.float64)
    for i, (x, y) in enumerate(zip(X.split(4), Y.split(4), strict=True)):
        each[i] = cross_entropy(model(x), y)
    return each.square().sum()


def through_a_view(model: nn.Module) -> torch.Tensor:
    z = model(X) * 1.0
    z[:, 1].sub_(3.0).mul_(-2.0)
    z[z < 0] = 0.0
    return cross_entropy(z, Y)


def masked(model: nn.Module) -> torch.Tensor:
    """Masks and targets that no gradient passes, and yet depend on the parameters."""
    z = model(X)
    with torch.no_grad():
        sure = z.softmax(1).max(1).values > 0.4
        sure[0] = True
    target = z.detach().argmax(1)
    kept = torch.where(z > 0.1, z, 0.1 * z)
    return (cross_entropy(kept, target, reduction="none") * sure).sum()


def encoder_decoder() -> Made:
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(4, 2).double(), nn.Linear(2, 4).double()
    params = [*encoder.parameters(), *decoder.parameters()]
    return params, lambda: mse_loss(decoder(torch.tanh(encoder(X))), X)


def siamese(model: nn.Module) -> torch.Tensor:
    return (model(X[:6]) - model(X[6:])).square().sum().sqrt()


def autocast(model: nn.Module) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return cross_entropy(model(X.float()) @ torch.eye(3), Y)


def penalised_gradient(model: nn.Module) -> torch.Tensor:
    """The gradient at the inputs is in the loss, as in a critic's."""
    x = X.clone().requires_grad_()
    (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return (g.norm(dim=1) - 1).square().mean()


def reparametrised(noise: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Made]:
    """A loss of numbers drawn around what the model says, as a variational autoencoder's."""

    def loss(model: nn.Module) -> torch.Tensor:
        std = (0.5 * model(X)).exp()
        return (std + noise(std) * std).square().mean()

    return lambda: of(network(), loss)


def rows_of_noise(std: torch.Tensor) -> torch.Tensor:
    noise = torch.zeros_like(std)
    noise[:4].normal_()
    return noise


def noisy_target(model: nn.Module) -> torch.Tensor:
    """A target that no gradient passes, and yet a function of the parameters: random, and no sample."""
    z = model(X)
    with torch.no_grad():
        target = dropout(z, 0.5)
    return mse_loss(z, target)


LOSSES: dict[str, Callable[[], Made]] = {
    "loss module": lambda: of(network(), lambda m: nn.CrossEntropyLoss()(m(X), Y)),
    "functional loss": lambda: of(network(), lambda m: cross_entropy(m(X), Y)),
    "raw arithmetic": raw,
    "in-place sum": lambda: of(network(), accumulated),
    "into a buffer": lambda: of(network(), into_a_buffer),
    "through a view": lambda: of(network(), through_a_view),
    "masks": lambda: of(network(), masked),
    "list": lambda: of(Says(lambda z: [z, [z.square()]]), lambda m: sum(t.sum() for t in tensors_in(m(X)))),
    "dict": lambda: of(Says(lambda z: {"logits": z, "loss": cross_entropy(z, Y)}), lambda m: m(X)["loss"]),
    "dataclass": lambda: of(Says(lambda z: Output(z)), lambda m: cross_entropy(m(X).logits, Y)),
    "own loss": lambda: of(Says(lambda z: Output(z, cross_entropy(z, Y))), lambda m: m(X).loss / 4),
    "ModelOutput": lambda: of(Says(model_output), lambda m: m(X).loss),
    "siamese": lambda: of(network(), siamese),
    "encoder and decoder": encoder_decoder,
    "dropout": lambda: of(network(nn.Dropout(0.5)), lambda m: cross_entropy(m(X), Y)),
    "functional dropout": lambda: of(network(), lambda m: cross_entropy(dropout(m(X), 0.5), Y)),
    "noise": lambda: of(network(), lambda m: cross_entropy(m(X + torch.randn_like(X)) + torch.rand(3), Y)),
    "noise like": reparametrised(torch.randn_like),
    "noise in place": reparametrised(lambda std: torch.empty_like(std).normal_()),
    "noise as of old": reparametrised(lambda std: std.data.new(std.size()).normal_()),
    "noise in part": reparametrised(rows_of_noise),
    "gamma": reparametrised(lambda std: torch.distributions.Gamma(std + 1, torch.ones_like(std)).rsample()),
    "noisy target": lambda: of(network(), noisy_target),
    "autocast": lambda: of(network().float(), autocast),
    "checkpoint": lambda: of(network(), lambda m: cross_entropy(m[2](checkpoint(m[:2], X, use_reentrant=False)), Y)),
    "gradient penalty": lambda: of(network().append(nn.Tanh()), penalised_gradient),
}


def replays_law(made: Made) -> None:
    """The program is the loss: to the bit at these parameters, and at others, with its gradient; and is it again."""
    params, loss = made

    def step(_: Any) -> None:
        torch.manual_seed(7)
        loss().backward()

    start = [p.detach().clone() for p in params]
    for heard in hear(step, params, at_once=True):
        assert not heard.why and len(heard.programs) == len(heard.losses) == 1
        (program,) = heard.programs
        for move in (0.0, 0.3, -0.1):
            with torch.no_grad():
                for i, p in enumerate(params):
                    p += move * torch.cos(torch.arange(p.numel(), dtype=p.dtype) + i).reshape(p.shape)
            torch.manual_seed(7)
            wanted, found = loss(), program()
            assert torch.equal(found.detach(), wanted.detach())
            assert move or torch.equal(found.detach(), heard.losses[0])
            for a, b in zip(
                torch.autograd.grad(found, params, allow_unused=True),
                torch.autograd.grad(wanted, params, allow_unused=True),
                strict=True,
            ):
                assert torch.equal(a, b) if b is not None else a is None
        with torch.no_grad():
            for p, x in zip(params, start, strict=True):
                p.copy_(x)


@pytest.mark.parametrize("made", [pytest.param(made, id=name) for name, made in LOSSES.items()])
def test_a_program_is_the_loss(made):
    replays_law(made())


def without_starts(monkeypatch: Any) -> None:
    monkeypatch.setattr(Tape, "_before", lambda *a: None)


def without_random_numbers(monkeypatch: Any) -> None:
    monkeypatch.setattr(tapes, "_draws", lambda *a: False)


def without_casts(monkeypatch: Any) -> None:
    monkeypatch.setattr(tapes, "_casts", lambda: ())


def constants_alone(monkeypatch: Any) -> None:
    """Takes what a module gave for a constant."""
    monkeypatch.setattr(Tape, "called", lambda self, *a: None)


def without_views(monkeypatch: Any) -> None:
    """Forgets that to write to a view writes to what it is of."""
    new = Tape._new

    def forgetting(self: Tape, t: torch.Tensor) -> int:
        number = new(self, t)
        self.bases[number] = number
        return number

    monkeypatch.setattr(Tape, "_new", forgetting)


def without_masks(monkeypatch: Any) -> None:
    """Takes all that has no gradient for a constant."""
    noted = Tape._noted

    def forgetting(self: Tape, func: Any, name: str, args: Any, kwargs: Any, out: Any, again: Any) -> None:
        if any(t.requires_grad for t in tensors_in(out)):
            noted(self, func, name, args, kwargs, out, again)

    monkeypatch.setattr(Tape, "_noted", forgetting)


MUTANTS = {
    "masks": without_masks,
    "in-place sum": without_starts,
    "functional dropout": without_random_numbers,
    "autocast": without_casts,
    "functional loss": constants_alone,
    "through a view": without_views,
}


@pytest.mark.parametrize(("name", "mutant"), MUTANTS.items(), ids=list(MUTANTS))
def test_the_law_rejects_a_tape_that_forgets(name, mutant, monkeypatch):
    mutant(monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        replays_law(LOSSES[name]())


SAMPLED: dict[str, Callable[[torch.Tensor], torch.distributions.Distribution]] = {
    "Categorical": lambda z: torch.distributions.Categorical(logits=z),
    "Normal": lambda z: torch.distributions.Normal(z, 1.0),
    "Bernoulli": lambda z: torch.distributions.Bernoulli(logits=z),
}


def policy_law(law: Callable[[torch.Tensor], torch.distributions.Distribution]) -> None:
    """What the script drew stays that at other parameters too: a policy gradient's loss is of these actions."""
    model, drawn = network(), []

    def step(_: Any) -> None:
        policy = law(model(X))
        drawn.append(policy.sample())
        (-policy.log_prob(drawn[-1])).sum().backward()

    for what in hear(step, model.parameters()):
        assert not what.why and what.programs[0]() == what.losses[0]
        action = drawn.pop(0)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(-0.5)
        assert what.programs[0]() == -law(model(X)).log_prob(action).sum()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(-2.0)


@pytest.mark.parametrize("law", SAMPLED.values(), ids=list(SAMPLED))
def test_samples_are_data(law):
    policy_law(law)


def test_the_law_rejects_a_tape_that_draws_again(monkeypatch):
    monkeypatch.setattr(tapes, "SAMPLES", frozenset())
    with rejected:
        policy_law(SAMPLED["Normal"])


class Own(nn.Module):
    """A network with noise of its own, which grows with the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = network(), 0
        self.noises = np.random.default_rng(0)
        self.noise = torch.Generator().manual_seed(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        noise = self.noises.random() * torch.rand(x.shape, generator=self.noise, dtype=x.dtype)
        return self.net(x + self.calls * noise)


def test_a_module_s_own_numbers_are_those_of_the_call_and_stay_what_they_are():
    model = Own()
    heard = hear(lambda _: model(X).square().sum().backward(), model.parameters(), steps=3)
    after = model.calls, model.noise.get_state(), model.noises.bit_generator.state
    for what in heard:
        with undisturbed():
            assert what.programs[0]() == what.programs[0]() == what.losses[0]
    assert model.calls == after[0] == 3 and torch.equal(model.noise.get_state(), after[1])
    assert model.noises.bit_generator.state == after[2]


def added_numbers(penalty: Callable[[nn.Module], float], steps: int = 4) -> list[float | None]:
    """What is taken for a penalty in the loss, as the weights decay, where the norm is logged each step."""
    model, found = network(), list[float | None]()
    optimizer = optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)

    def after(_: Any, heard: Heard) -> None:
        found.extend(one.value for one in heard.tape.detached if one.added)
        capture.listen()

    with Capture(lambda _: None, after) as capture:
        for _ in range(steps):
            optimizer.zero_grad()
            z = model(X).softmax(1) + 1e-8
            (z.log().square().mean() + penalty(model)).backward()
            optimizer.step()
            norms.append(sum(p.abs().sum().item() for p in model.parameters()))
    return found


norms: list[float] = []


def test_a_number_that_is_added_is_a_penalty_if_it_is_a_multiple_of_the_norm():
    assert added_numbers(lambda model: 0.25) == added_numbers(lambda model: len(norms) + 0.5) == []
    assert len(added_numbers(lambda model: 0.01 * sum(p.abs().sum().item() for p in model.parameters()))) == 3


# --- backward --------------------------------------------------------------------------------------------------------


def test_a_scaled_loss_is_the_loss_unscaled():
    model, scaler = network(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    heard = hear(lambda _: scaler.scale(cross_entropy(model(X), Y)).backward(), model.parameters())
    for what in heard:
        assert what.scaled and what.losses[0] == cross_entropy(model(X), Y) == what.programs[0]()


def test_weights_of_a_backward_are_in_the_loss():
    model, weight = network(), torch.linspace(1, 2, 12, dtype=torch.float64)

    def each() -> torch.Tensor:
        return cross_entropy(model(X), Y, reduction="none")

    for how in (lambda: each().backward(weight), lambda: torch.autograd.backward([each()], [weight])):
        for what in hear(lambda _, how=how: how(), model.parameters()):
            assert torch.equal(what.programs[0](), (each() * weight).sum())
            assert torch.equal(what.losses[0], (each() * weight).sum())


def test_several_losses_of_one_backward_are_several():
    model = network()

    def step(_: Any) -> None:
        z = model(X)
        torch.autograd.backward([z.square().sum(), z.sum()])

    for what in hear(step, model.parameters()):
        assert [program().item() for program in what.programs] == [loss.item() for loss in what.losses]
        assert len(what.programs) == 2 and what.losses[1] == model(X).sum()


def test_a_graph_that_is_kept_gives_a_program_for_each_backward():
    model = network()

    def step(_: Any) -> None:
        loss = cross_entropy(model(X), Y)
        loss.backward(retain_graph=True)
        (2 * loss).backward()

    for what in hear(step, model.parameters()):
        assert [program().item() for program in what.programs] == [what.losses[0].item(), 2 * what.losses[0].item()]


def test_a_backward_that_raises_is_raised_and_the_next_is_heard():
    model = network()

    def step(_: Any) -> None:
        with pytest.raises(RuntimeError, match="scalar"):
            model(X).backward()
        model(X).sum().backward()

    for what in hear(step, model.parameters()):
        assert not what.why and what.programs[-1]() == model(X).sum()


# --- what is not in a program ----------------------------------------------------------------------------------------


def memory_law(graph: bool) -> None:
    """Graphs die when the script lets go of them, and what led there is forgotten."""
    model, sizes, dead = network(), [], []

    def step(_: Any) -> None:
        for _ in range(20):
            with torch.set_grad_enabled(graph):
                z = model(X)
                loss = cross_entropy(z * 2.0, Y)
                correct = (z.argmax(1) == Y).double().mean().item() + loss.detach().item()
            assert correct >= 0
            dead.extend([weakref.ref(z), weakref.ref(loss)])
            del z, loss
            tape = capture_of()
            sizes.append(len(tape.entries) + len(tape.slots) + len(tape.bases) + len(tape.derived) if tape else 0)
        model(X).sum().backward()

    tapes_seen: list[Tape] = []
    original = Capture._push

    def push(self: Capture, tape: Tape) -> None:
        tapes_seen.append(tape)
        original(self, tape)

    def capture_of() -> Tape | None:
        return tapes_seen[-1] if tapes_seen else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Capture, "_push", push)
        heard = hear(step, model.parameters(), steps=3)
    assert not any(ref() is not None for ref in dead)
    assert max(sizes) <= 40
    assert all(not what.why and what.programs[0]() == model(X).sum() for what in heard)


@pytest.mark.parametrize("graph", [True, False], ids=["with a graph", "no_grad"])
def test_a_loop_between_steps_costs_no_memory(graph):
    memory_law(graph)


@pytest.mark.parametrize("name", ["_prune", "_new"])
def test_the_law_rejects_a_tape_that_keeps(name, monkeypatch):
    """All entries, or the tensors themselves."""
    new, kept = Tape._new, []

    def keeping(self: Tape, t: torch.Tensor) -> int:
        kept.append(t)
        return new(self, t)

    monkeypatch.setattr(Tape, name, keeping if name == "_new" else lambda self: None)
    with rejected:
        memory_law(graph=True)


def test_a_running_sum_of_losses_is_not_part_of_the_next():
    """`running += loss`, as many scripts have it, before the backward or after it."""
    model = network()
    running, total = torch.zeros((), dtype=torch.float64), 0

    def step(_: Any) -> None:
        nonlocal running, total
        loss = cross_entropy(model(X), Y)
        running += loss.detach()
        total += loss
        loss.backward()

    for what in hear(step, model.parameters(), steps=4):
        assert not what.why and len(what.programs[0].entries) == 2
        assert what.programs[0]() == what.losses[0]


def test_parameters_that_are_written_to_are_never_written_to_again():
    """Weight clipping, an average of weights, initial values: none of it is replayed."""
    model, mean = network(), [torch.zeros_like(p) for p in network().parameters()]

    def step(_: Any) -> None:
        with torch.no_grad():
            for p, m in zip(model.parameters(), mean, strict=True):
                p.clamp_(-1, 1)
                p.mul_(1.0)
                m.mul_(0.9).add_(p, alpha=0.1)
            model[0].weight[:2] += 0.0
        fresh = nn.Linear(4, 4)
        nn.init.kaiming_uniform_(fresh.weight)
        nn.init.zeros_(fresh.bias)
        nn.utils.parameters_to_vector(model.parameters())
        loss = cross_entropy(model(X), Y)
        nn.init.kaiming_uniform_(fresh.weight)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e3)

    for what in hear(step, model.parameters()):
        assert not what.why and len(what.programs[0].entries) == 2
        kept, versions = [m.clone() for m in mean], [p._version for p in model.parameters()]
        assert what.programs[0]() == cross_entropy(model(X), Y)
        assert all(torch.equal(a, b) for a, b in zip(kept, mean, strict=True))
        assert versions == [p._version for p in model.parameters()]


def test_a_batch_that_was_written_to_is_stale():
    model, batch = network(), X.clone()

    def step(_: Any) -> None:
        batch.copy_(X)
        cross_entropy(model(batch), Y).backward()

    first, last = hear(step, model.parameters())
    assert first.programs[0].stale and not last.programs[0].stale
    batch.zero_()
    assert last.programs[0].stale


class Cube(torch.autograd.Function):
    """A function that no torch function mode sees."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * g


class Criterion(nn.Module):
    def forward(self, out: Output, y: torch.Tensor) -> torch.Tensor:
        return cross_entropy(out.logits, y)


def kept_from_before(model: nn.Module) -> Loss:
    before = model[0].weight * 2
    return lambda: cross_entropy(model(X), Y) + 0 * before.sum()


UNSEEN: dict[str, tuple[Callable[[nn.Module], Loss], str]] = {
    "function": (lambda m: lambda: Cube.apply(m(X)).sum(), "a tensor that CubeBackward made"),
    "function, last": (lambda m: lambda: Cube.apply(m(X).sum()), "the loss that CubeBackward made"),
    "object": (lambda m: lambda: Criterion()(Output(m(X)), Y), "tensors within a Output that something"),
    "from before": (kept_from_before, "a tensor that MulBackward0 made"),
}


@pytest.mark.parametrize(("loss", "words"), UNSEEN.values(), ids=list(UNSEEN))
def test_what_was_not_seen_is_named(loss, words):
    model = network()
    f = loss(model)
    for what in hear(lambda _: f().backward(retain_graph=True), model.parameters()):
        assert what.programs == [] and words in what.why
        assert "the loss" in words or "tests/test_tape.py:" in what.why


def test_a_function_within_a_module_is_no_hindrance():
    model = Says(Cube.apply)
    for what in hear(lambda _: model(X).sum().backward(), model.parameters()):
        assert what.programs[0]() == model(X).sum()


def test_functional_call_is_refused_where_the_module_had_other_parameters():
    """With its own parameters it is a call like another; with others its value does not come out again."""
    model = network()
    own = dict(model.named_parameters())

    def called(params: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(model, params, (X,)).sum()

    for what in hear(lambda _: called(own).backward(), model.parameters()):
        assert what.programs[0]() == model(X).sum()
    for what in hear(lambda _: called({n: 2 * p for n, p in own.items()}).backward(), model.parameters()):
        assert what.programs[0]() != what.programs[0].value == what.losses[0].item()


def test_a_note_that_fails_fails_no_script(monkeypatch):
    model = network()
    noted = Tape._noted

    def failing(self: Tape, func: Any, name: str, *rest: Any) -> None:
        if name == "cross_entropy":
            raise LookupError("by design")
        noted(self, func, name, *rest)

    monkeypatch.setattr(Tape, "_noted", failing)
    for what in hear(lambda _: cross_entropy(model(X), Y).backward(), model.parameters()):
        assert what.why.startswith("a call could not be noted (LookupError: by design; tests/test_tape.py:")


def test_long_and_branching_arithmetic_is_followed_in_time():
    """Depth beyond Python's stack, and 2⁴⁰ ways through it: each call is noted once."""
    w = nn.Parameter(torch.full((), 0.5, dtype=torch.float64))

    def step(_: Any) -> None:
        h = w * 1.0
        for _ in range(40):
            h = torch.tanh(h) + h * 0.1
        for _ in range(1500):
            h = h * 1.0
        h.detach().item()
        h.backward()

    for what in hear(step, [w], at_once=True):
        assert what.programs[0]() == what.losses[0] and len(what.programs[0].entries) == 1621


# --- modes, threads, processes ---------------------------------------------------------------------------------------


class Counts(TorchFunctionMode):
    """A mode of the script's own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def modes_step(model: nn.Module, where: str) -> int:
    """A step with modes around and between; the calls that the script's own mode saw."""
    counts = Counts()
    if where == "around":
        with counts, torch.device("cpu"):
            cross_entropy(model(X), Y).backward()
    if where == "between":
        z = model(X)
        with counts:
            loss = cross_entropy(z, Y)
        with torch.device("cpu"):
            loss = loss * torch.ones((), dtype=torch.float64)
        loss.backward()
    if where == "entered before, left after":
        counts.__enter__()
        z = model(X)
        device = torch.device("cpu")
        device.__enter__()
        loss = cross_entropy(z, Y)
        device.__exit__(None, None, None)
        loss.backward()
        counts.__exit__(None, None, None)
    return counts.calls


@pytest.mark.parametrize("where", ["around", "between", "entered before, left after"])
def test_modes_of_the_script_stay_as_they_come_and_go(where):
    model, seen = network(), []
    bare = modes_step(model, where)

    def step(_: Any) -> None:
        seen.append(modes_step(model, where))

    for what in hear(step, model.parameters(), steps=3):
        assert not what.why and what.programs[0]() == cross_entropy(model(X), Y)
    assert seen == [bare] * 3 and bare > 0 and depth() == 0


def test_a_device_that_is_set_for_all_stays_set():
    model = network()
    torch.set_default_device("cpu")
    try:
        for what in hear(lambda _: cross_entropy(model(X), Y).backward(), model.parameters()):
            assert what.programs[0]() == cross_entropy(model(X), Y)
        assert depth() == 1
    finally:
        torch.set_default_device(None)


def test_a_tape_that_is_left_on_the_stack_is_seen(monkeypatch):
    model = network()
    monkeypatch.setattr(module.Capture, "_pull", lambda self: self.tape)
    hear(lambda _: cross_entropy(model(X), Y).backward(), model.parameters(), steps=1)
    with rejected:
        assert depth() == 0
    while depth():
        torch._C._pop_torch_function_stack()


def test_other_threads_are_left_alone():
    model, other = network(), network()

    def step(_: Any) -> None:
        def work() -> None:
            found.append((depth(), other(X).sum().item()))

        loss = cross_entropy(model(X), Y)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        loss.backward()

    found: list[tuple[int, float]] = []
    for what in hear(step, model.parameters(), steps=3):
        assert not what.why and len(what.programs[0].entries) == 2
    assert found == [(0, other(X).sum().item())] * 3


class Squares(torch.utils.data.Dataset[torch.Tensor]):
    """Calls torch functions, and a module, in its workers."""

    def __init__(self) -> None:
        self.net = network()

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.net(X[i].square()).detach() + 0 * torch.rand(1)


@apart
def test_forked_workers_are_left_alone():
    model, data = nn.Linear(3, 3).double(), Squares()
    batches: list[torch.Tensor] = []

    def step(_: Any) -> None:
        loss = torch.zeros((), dtype=torch.float64)
        for x in torch.utils.data.DataLoader(data, batch_size=3, num_workers=1, multiprocessing_context="fork"):
            batches.append(x)
            loss = loss + model(x).square().sum()
        loss.backward()

    for what in hear(step, model.parameters(), steps=2):
        assert not what.why and what.programs[0]() == what.losses[0]
    assert torch.equal(torch.cat(batches[-2:]), torch.stack([data[i] for i in range(6)]))


# --- small things ----------------------------------------------------------------------------------------------------


def test_a_model_that_changes_its_outputs_is_refused():
    model, count = Says(lambda z: [z, z][: 1 + (len(calls) > 1)]), [0]
    calls: list[int] = []

    def step(_: Any) -> None:
        calls.append(1)
        model(X)[0].sum().backward()

    (what,) = hear(step, model.parameters(), steps=1)
    calls.append(1)
    with pytest.raises(ValueError, match="other outputs than when the script called it"):
        what.programs[0]()
    assert count == [0]


def test_a_program_tells_where_its_entries_were_made():
    model, seen = network(), []

    def looks(z: torch.Tensor) -> torch.Tensor:
        seen.append(place())
        return z

    says = Says(looks)
    (what,) = hear(lambda _: says(X).sum().backward(), model.parameters(), steps=0) or [None]
    assert what is None
    heard = hear(lambda _: says(X).sum().backward(), says.parameters(), steps=1)
    heard[0].programs[0]()
    assert len(set(seen)) == 1 and seen[0].startswith("tests/test_tape.py:")
    assert heard[0].programs[0].place == ""


def test_a_program_of_a_parameter_alone_is_the_parameter():
    w = nn.Parameter(torch.tensor(3.0))
    (what,) = hear(lambda _: w.backward(), [w], steps=1, at_once=True)
    assert isinstance(what.programs[0], Program) and what.programs[0]() == 3.0

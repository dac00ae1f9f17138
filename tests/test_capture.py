"""What listens to a script leaves torch as it was, and hears each step once, whatever wraps it."""

from __future__ import annotations

import functools
import importlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal
from nonsmooth.torch import capture as module
from nonsmooth.torch.capture import Capture, Heard, aside
from nonsmooth.torch.tape import Tape

rejected = pytest.raises(AssertionError)
X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 3


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def world() -> dict[str, Any]:
    """All that listening may replace."""
    hooks = importlib.import_module("torch.optim.optimizer")
    return {
        "call": nn.Module.__call__,
        "backward": torch.autograd.backward,
        "tensor": torch.Tensor.backward,
        "scale": torch.amp.GradScaler.scale,
        "compile": torch.compile,
        "modes": torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack(),
        "hooks": (len(hooks._global_optimizer_pre_hooks), len(hooks._global_optimizer_post_hooks)),
        "of modules": len(nn.modules.module._global_forward_pre_hooks),
    }


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    before = world()
    yield
    assert world() == before


class Listener(Capture):
    """Listens to each step, and keeps what it heard, by the optimiser."""

    def __init__(self, always: bool = True) -> None:
        self.heard: list[tuple[optim.Optimizer, Heard]] = []
        self.befores, self.always = 0, always
        super().__init__(self.count, self.keep)

    def count(self, optimizer: optim.Optimizer) -> None:
        self.befores += 1

    def keep(self, optimizer: optim.Optimizer, heard: Heard) -> None:
        self.heard.append((optimizer, heard))
        if self.always:
            self.listen()


def loss_of(model: nn.Module) -> torch.Tensor:
    return cross_entropy(model(X), Y)


def train(model: nn.Module, optimizer: Any, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


# --- all is put back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["nowhere", "between", "in the model", "in backward", "in the loss", "in the step"])
def test_torch_is_as_it_was_also_after_an_error(where):
    model, before = network(), world()
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def fail(*_: Any) -> None:
        raise KeyError(where)

    def run() -> None:
        with Listener():
            train(model, optimizer, 2)
            assert world()["call"] is not before["call"] and world()["modes"] == 1
            if where == "in the model":
                model[1].register_forward_hook(fail)
            if where == "in the step":
                optimizer.register_step_pre_hook(fail)
            loss = loss_of(model)
            if where == "in backward":
                loss.register_hook(fail)
            if where == "in the loss":
                cross_entropy(loss, None)
            loss.backward()
            optimizer.step()
            if where != "nowhere":
                fail()

    if where == "nowhere":
        run()
    else:
        with pytest.raises((KeyError, TypeError, AttributeError)):
            run()
    assert world() == before


FORGETTING = {
    "call": ("_rest", lambda own: lambda self: self._pull() and None),
    "modes": ("_pull", lambda own: lambda self: setattr(self, "tape", None)),
}


@pytest.mark.parametrize("what", FORGETTING)
def test_the_comparison_rejects_one_that_forgets(what, monkeypatch):
    before, model = world(), network()
    name, mutant = FORGETTING[what]
    monkeypatch.setattr(Capture, name, mutant(getattr(Capture, name)))
    call = nn.Module.__call__
    with Listener():
        train(model, optim.SGD(model.parameters(), lr=0.1))
        loss_of(model)
    with rejected:
        assert world() == before
    nn.Module.__call__ = call
    module.push(mode for mode in module.popped() if not isinstance(mode, Tape))


def test_nothing_is_on_within_a_module_or_what_comes_after_a_step():
    """There the calls of modules are torch's own, and no mode is on."""
    seen: list[tuple[bool, int]] = []
    own = nn.Module.__call__

    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((nn.Module.__call__ is own, torch._C._len_torch_function_stack()))
            return x

    model = network().append(Looks())
    with Listener(always=False) as capture:
        train(model, optim.SGD(model.parameters(), lr=0.1))
        assert nn.Module.__call__ is own
        capture.listen()
        train(model, optim.SGD(model.parameters(), lr=0.1), 1)
    assert seen == [(True, 0)] * 4
    assert [bool(heard.programs) for _, heard in capture.heard] == [True, False, False, True]
    assert all(len(heard.losses) == 1 for _, heard in capture.heard)


# --- each step once --------------------------------------------------------------------------------------------------


def bare(model: nn.Module) -> Any:
    return optim.SGD(model.parameters(), lr=0.1)


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "bare": bare,
    "Proximal": lambda m: Proximal(bare(m), L1(0.01)),
    "Proximal of Proximal": lambda m: Proximal(optim.Adam(m.parameters()), L1(0.01)),
}


@pytest.mark.parametrize("wrap", [pytest.param(w, id=name) for name, w in WRAPPERS.items() if " of " not in name])
def test_a_wrapped_step_is_one_step(wrap):
    model = network()
    optimizer = wrap(model)
    with Listener() as capture:
        train(model, optimizer)
    assert [o for o, _ in capture.heard] == [optimizer] * 3 and capture.befores == 3
    assert all(len(heard.programs) == len(heard.losses) == 1 for _, heard in capture.heard)


def test_an_accelerated_step_is_one_step():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    try:
        model, optimizer = accelerator.prepare(model, bare(model))
        with Listener() as capture:
            for _ in range(3):
                optimizer.zero_grad()
                accelerator.backward(loss_of(model))
                optimizer.step()
    finally:
        accelerate.state.AcceleratorState._reset_state(True)
        accelerate.state.GradientState._reset_state()
    assert len(capture.heard) == capture.befores == 3
    assert all(len(heard.programs) == 1 and not heard.why for _, heard in capture.heard)


def test_a_closure_s_losses_are_heard_in_its_step():
    model = network()
    optimizer = optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    with Listener() as capture:
        for _ in range(3):
            optimizer.step(closure)
    assert capture.befores == len(capture.heard) == 3
    assert all(len(heard.programs) == len(heard.losses) > 1 for _, heard in capture.heard)


def test_a_loop_that_writes_weights_by_hand_costs_no_memory():
    """Its backward calls lead to no step of an optimiser: soon they are not followed, until there is one."""
    model, dead = network(), []
    with Listener() as capture:
        for _ in range(2 * module.UNCLAIMED):
            x = X + 0
            dead.append(weakref.ref(x))
            cross_entropy(model(x), Y).backward()
            del x
        assert not any(ref() for ref in dead) and not capture._heard.programs
        assert len(capture._heard.losses) == module.UNCLAIMED
        assert world()["modes"] == 0 and world()["call"] is capture._call
        train(model, bare(model), 2)
    first, second = (heard for _, heard in capture.heard)
    assert first.why == "more than 64 backward calls came before a step"
    assert first.losses[-1] != second.losses[-1] and not second.why
    assert torch.equal(second.programs[0](), loss_of(model))


def test_two_optimisers_are_two():
    one, two = network(), network()
    first, second = bare(one), bare(two)
    with Listener() as capture:
        for _ in range(2):
            train(one, first, 1)
            train(two, second, 1)
    assert [o for o, _ in capture.heard] == [first, second] * 2
    assert {id(ref()) for ref in capture.models.values()} == {id(one), id(two)}
    for optimizer, heard in capture.heard:
        (program,) = heard.programs
        found = torch.autograd.grad(program(), optimizer.param_groups[0]["params"], allow_unused=True)
        assert all(g is not None for g in found)


def test_asleep_it_hears_nothing_of_so_many_steps_of_one_optimiser():
    one, two = network(), network()
    first, second = Proximal(bare(one), L1(0.01)), bare(two)
    with Listener() as capture:
        train(one, first, 1)
        capture.sleep(first, 3)
        for _ in range(3):
            train(two, second, 1)
            train(one, first, 1)
        assert len(capture.heard) == capture.befores == 1 and capture.asleep == 0
        train(two, second, 1)
        train(one, first, 1)
    assert [o for o, _ in capture.heard] == [first, second, first]
    assert all(len(heard.losses) == 1 for _, heard in capture.heard)


def test_a_step_that_raises_is_not_the_last_that_is_heard():
    model = network()
    optimizer = Proximal(bare(model), L1(0.01))
    with Listener() as capture:
        train(model, optimizer, 2)
        lr, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], "much"
        with pytest.raises(Exception, match=r"much|str|unsupported|lr"):
            train(model, optimizer, 1)
        optimizer.param_groups[0]["lr"] = lr
        train(model, optimizer, 2)
    assert len(capture.heard) == 4 and capture.befores == 5
    assert capture.heard[-1][1].programs


class Agent(nn.Module):
    """A module that trains what is in it when it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.optimizer = bare(self.net)

    def forward(self) -> None:
        train(self.net, self.optimizer, 1)


def test_steps_within_a_module_are_heard():
    agent = Agent()
    with Listener() as capture:
        for _ in range(4):
            agent()
    heard = [heard for _, heard in capture.heard]
    assert [len(what.programs) for what in heard] == [0, 1, 1, 1]
    assert [ref() for ref in capture.models.values()] == [agent.net]


def test_steps_within_backward_leave_torch_as_it_was():
    """An optimiser for each parameter, stepped as soon as its gradient is there."""
    model, twin = network(), network()

    def attach(m: nn.Module) -> None:
        for p in m.parameters():
            optimizer = optim.SGD([p], lr=0.1)

            def hook(p: torch.Tensor, optimizer: optim.Optimizer = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            p.register_post_accumulate_grad_hook(hook)

    attach(model)
    attach(twin)
    with Listener() as capture:
        for _ in range(3):
            loss_of(model).backward()
    for _ in range(3):
        loss_of(twin).backward()
    assert len(capture.heard) == 12
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


# --- what is compiled, what is distributed, modes --------------------------------------------------------------------


@pytest.mark.parametrize("how", ["call", "decorator", "options"])
def test_what_torch_compile_makes_is_called_with_nothing_on(how):
    """With the eager backend: no compiler is needed to see who is called."""
    model, depths = network(), []

    def backend(graph: Any, inputs: Any) -> Any:
        return graph.forward

    with Listener() as capture:
        if how == "call":
            forward = torch.compile(lambda x: model(x), backend=backend)
        elif how == "decorator":

            @torch.compile(backend=backend)
            def forward(x: torch.Tensor) -> torch.Tensor:
                return model(x)

        else:
            forward = functools.partial(torch.compile(model, backend=backend))
        optimizer = bare(model)
        for _ in range(3):
            cross_entropy(forward(X), Y).backward()
            depths.append(torch._C._len_torch_function_stack())
            optimizer.step()
    assert capture.compiled and depths == [1] * 3
    for _, heard in capture.heard:
        assert len(heard.programs) == 1 and not heard.why
    torch._dynamo.reset()


def test_a_distributed_module_is_computed_again_without_its_wrapper(tmp_path):
    """Another forward of it would wait for a backward."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model = network()
        wrapped = nn.parallel.DistributedDataParallel(model)
        with Listener() as capture:
            train(wrapped, bare(model))
            assert torch.equal(capture.heard[-1][1].programs[0](), loss_of(model))
            train(wrapped, bare(model))
    finally:
        torch.distributed.destroy_process_group()
    assert all(heard.programs[0].entries[0].call is model for _, heard in capture.heard)


class Counts(TorchDispatchMode):
    """A mode of the script's own, as one that counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_mode_that_counts_operations_counts_the_same():
    def counted(listening: bool) -> list[str]:
        model = network()
        optimizer, scaler = bare(model), torch.amp.GradScaler("cpu")
        capture = Listener()
        with capture if listening else Counts(), Counts() as counts:
            for _ in range(2):
                optimizer.zero_grad()
                scaler.scale(loss_of(model)).backward()
                optimizer.step()
        return counts.calls

    assert counted(True) == counted(False)


def test_aside_keeps_what_was_put_on_meanwhile():
    one = torch.overrides.BaseTorchFunctionMode()
    with one, aside():
        module.below(tape := Tape())
        assert module.popped() == [tape]
        module.push([tape])
    assert module.popped() == [tape]

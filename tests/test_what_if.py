"""What-if: each change's run is the run that one would make, and afterwards nothing has changed, bit by bit."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.nn import functional

from nonsmooth.penalties import L1
from nonsmooth.torch import Proximal
from nonsmooth.torch.steps import OrbitCurvature, measure_step
from nonsmooth.torch.what_if import WhatIf, what_if

H = torch.tensor([1.0, 4.0], dtype=torch.float64)


def quadratic(lr, start=(1.0, 1.0), kind=optim.SGD, **options):
    w = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    return w, kind([w], lr=lr, **options), lambda: 0.5 * (H * w.square()).sum()


def only(*args, **options) -> WhatIf:
    (found,) = what_if(*args, **options)
    return found


# --- closed forms -----------------------------------------------------------------------------------------------------


def path(lr, steps):
    """Gradient descent on ½Σ hᵢwᵢ²: wᵢ(1 − lr hᵢ)ᵏ, from (1, 1)."""
    return [float(0.5 * (H * (1 - lr * H) ** (2 * k)).sum()) for k in range(steps + 1)]


def test_as_it_is_and_half_the_lr_follow_their_paths():
    w, optimizer, loss = quadratic(0.3)
    now, half = what_if(optimizer, loss, steps=20, changes=("as-it-is", "half-lr"))
    assert now.losses == pytest.approx(path(0.3, 20), rel=1e-12) and half.losses == pytest.approx(
        path(0.15, 20), rel=1e-12
    )
    assert (now.lr, half.lr, optimizer.param_groups[0]["lr"]) == (0.3, 0.15, 0.3)
    assert (now.loss_before, now.raising, now.diverged, now.steps) == (2.5, 0.0, False, 20)
    assert now.loss_after == pytest.approx(np.mean(path(0.3, 20)[-2:]), rel=1e-12) and now.lowest == now.losses[-1]
    assert half.losses != pytest.approx(path(0.3, 20), rel=1e-3)
    assert w.tolist() == [1.0, 1.0]


def test_a_gradient_in_the_loss():
    """½‖∇f‖² of a quadratic is a quadratic with the curvatures h²."""
    w, optimizer, loss = quadratic(0.05)
    penalty = lambda: 0.5 * torch.autograd.grad(loss(), w, create_graph=True)[0].square().sum()  # noqa: E731
    found = only(optimizer, penalty, steps=20, changes=["as-it-is"])
    expected = [float(0.5 * (H**2 * (1 - 0.05 * H**2) ** (2 * k)).sum()) for k in range(21)]
    assert found.losses == pytest.approx(expected, rel=1e-12)


def test_a_run_that_diverges_says_so():
    _, optimizer, loss = quadratic(0.6)  # 2/h = 0.5
    found = only(optimizer, loss, steps=20, changes=["as-it-is"])
    assert found.diverged and found.raising > 0.9 and found.loss_after > 5 and "DIVERGED" in str(found)
    _, optimizer, loss = quadratic(1e200)
    found = only(optimizer, loss, steps=20, changes=["as-it-is"])
    assert found.diverged and not math.isfinite(found.loss_after) and found.lowest == 2.5 and len(found.losses) < 20


@pytest.mark.parametrize("lr", [0.001, 0.1, 0.49, 0.51, 3.0, 100.0])
@pytest.mark.parametrize("resolution", [2**0.25, 1.02])
def test_the_largest_stable_lr_of_a_quadratic(lr, resolution):
    w, optimizer, loss = quadratic(lr)
    found = only(optimizer, loss, steps=60, changes=["largest-stable-lr"], resolution=resolution)
    low, high = (float(found.note.split()[i].rstrip(",")) for i in (1, 3))
    assert found.lr == pytest.approx(low, rel=1e-3)
    assert low * 0.999 <= 0.5 <= high * 1.001 and 1 < high / low <= resolution * 1.002
    assert w.tolist() == [1.0, 1.0] and not found.diverged


def test_the_largest_stable_lr_with_momentum():
    _, optimizer, loss = quadratic(0.01, momentum=0.5)
    found = only(optimizer, loss, steps=200, changes=["largest-stable-lr"], resolution=1.05)
    assert found.lr <= 2 * 1.5 / 4 <= found.lr * 1.05  # 2(1 + β)/h


def test_searches_that_find_no_end():
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = optim.SGD([w], lr=1e-3)
    flat = only(optimizer, lambda: 0 * w.sum(), steps=2, changes=["largest-stable-lr"])
    assert flat.note.startswith("no limit found up to 4096 times, 13 runs of 2 steps") and flat.lr == 1e-3 * 2**12
    still = only(optim.SGD([w], lr=0.0), lambda: w.sum(), steps=2, changes=["largest-stable-lr"])
    assert (still.note, still.lr) == ("the lr is 0: nothing to scale", 0.0)
    upwards = optim.SGD([w], lr=1e-3, maximize=True)
    never = only(upwards, lambda: w.sum() - 1, steps=2, changes=["largest-stable-lr"])  # from 0: no tenth to spare
    assert never.note.startswith("no stable lr found") and never.lr == 1e-3 / 2**12


def test_a_bounded_bounce_is_stable_where_it_stays_within_a_tenth():
    """f = 1 + |w| under gradient descent, at lr 0.1: w bounces between ±0.05; at 0.2, from 0.05 to −0.15."""
    w = nn.Parameter(torch.tensor([0.05], dtype=torch.float64))
    found = only(optim.SGD([w], lr=0.1), lambda: 1 + w.abs().sum(), steps=40, changes=["largest-stable-lr"])
    assert "stable: the loss does not end a tenth above where it began" in found.note
    assert found.lr > 0.1 and found.loss_after <= 1.05 * 1.1 < 1.2 and not found.diverged
    low, high = (float(found.note.split()[i].rstrip(",")) for i in (1, 3))
    options = {"steps": 40, "changes": ["as-it-is"]}
    ends = [only(optim.SGD([w], lr=lr), lambda: 1 + w.abs().sum(), **options).loss_after for lr in (low, high)]
    assert ends[0] <= 1.05 * 1.1 < ends[1]


def test_a_loss_below_zero_may_end_a_tenth_of_its_size_higher():
    w = nn.Parameter(torch.tensor([0.05], dtype=torch.float64))
    found = only(optim.SGD([w], lr=0.1), lambda: w.abs().sum() - 1.05, steps=40, changes=["largest-stable-lr"])
    assert -1.0 < found.loss_after <= -0.9 and found.lr > 0.1


def test_orbit_curvature_is_that_of_the_measured_steps():
    w, optimizer, loss = quadratic(0.45)
    found = only(optimizer, loss, steps=10, changes=["as-it-is"])
    orbit = OrbitCurvature()
    for _ in range(9):
        orbit.update(measure_step(loss, [w], lambda: step(optimizer, loss)))
    assert found.orbit_curvature == pytest.approx(orbit.value, rel=1e-10)


def step(optimizer, loss):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def test_orbit_curvature_at_the_edge_of_a_kink():
    w = nn.Parameter(torch.tensor([0.25], dtype=torch.float64))
    found = only(optim.SGD([w], lr=0.5), lambda: w.abs().sum(), changes=["as-it-is"])
    assert found.orbit_curvature == 4.0 and found.raising == 0.0  # 2/η; the loss is the same in each step


def test_smooth_twins_take_the_bouncing_away():
    w = nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    optimizer = optim.SGD([w], lr=0.1)
    now, smooth = what_if(optimizer, lambda: w.abs().sum(), changes=("as-it-is", "smooth"), beta=20.0)
    assert now.loss_after > 0.04 and now.raising > 0.4
    assert smooth.loss_after < 1e-6 and smooth.raising == 0 and smooth.note == "β = 20, nothing left"
    assert smooth.losses[0] == 0.3  # the loss itself, and not its twin
    left = only(optimizer, lambda: (w.abs() * w.sign().detach()).sum(), changes=["smooth"], steps=1)
    assert left.note == "β = 20; left: sign: it jumps"


# --- an L1 penalty ----------------------------------------------------------------------------------------------------


def lasso():
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(40, 10, dtype=torch.float64, generator=rng)
    y = X[:, :2] @ torch.tensor([2.0, -3.0], dtype=torch.float64)
    w = nn.Parameter(torch.full((10,), 0.1, dtype=torch.float64))
    fit = lambda: (X @ w - y).square().mean()  # noqa: E731
    return w, fit, lambda: fit() + 0.5 * w.abs().sum()


def test_proximal_gives_zeros_where_the_penalty_s_gradient_gives_none():
    w, fit, loss = lasso()
    optimizer = optim.SGD([w], lr=0.05, momentum=0.5)
    changes = ("as-it-is", "proximal")
    now, prox = what_if(optimizer, loss, steps=200, changes=changes, penalty=L1(0.5), smooth_closures=fit)
    assert now.zeros == 0 and prox.zeros == 8
    assert prox.losses[0] == now.losses[0] == loss().item() and prox.loss_after < now.loss_after
    assert prox.norm < now.norm and prox.raising < now.raising

    twin = copy.deepcopy(w)
    other = Proximal(optim.SGD([twin], lr=0.05, momentum=0.5), L1(0.5))
    w_at_start = w.detach().clone()
    w.data = twin.data
    for _ in range(200):
        other.zero_grad()
        twin.grad = torch.autograd.grad(fit(), w)[0]
        other.step()
    assert prox.losses[-1] == pytest.approx(loss().item(), rel=1e-12)
    assert prox.norm == pytest.approx(float(w.detach().abs().sum()), rel=1e-12)
    assert not torch.equal(w, w_at_start) and "proximal" not in optimizer.param_groups[0]


def test_a_proximal_optimiser_is_measured_with_its_penalty():
    w, fit, loss = lasso()
    optimizer = Proximal(optim.SGD([w], lr=0.05), L1(0.5))
    now, half = what_if(optimizer, fit, steps=100, changes=("as-it-is", "half-lr"))
    assert now.losses[0] == pytest.approx(loss().item(), rel=1e-12) and now.zeros == 8
    assert half.lr == 0.025 and now.loss_before == now.losses[0]
    with pytest.raises(ValueError, match="the optimiser is a Proximal already"):
        what_if(optimizer, loss, changes=["proximal"], penalty=L1(0.5), smooth_closures=fit)


def test_penalties_by_parameter_and_the_weights_that_are_counted():
    w, b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in ([0.2, 3.0], [0.0]))
    optimizer = optim.SGD([w, b], lr=0.1)
    fit = lambda: 0.5 * (w - 1).square().sum() + b.square().sum()  # noqa: E731
    loss = lambda: fit() + 2.0 * w.abs().sum()  # noqa: E731
    found = only(optimizer, loss, changes=["proximal"], penalty=[(L1(2.0), [w])], smooth_closures=fit, steps=100)
    assert (found.zeros, found.norm) == (2, 0.0)
    everything = only(optimizer, loss, changes=["as-it-is"], steps=1, weights=[b])
    assert (everything.zeros, everything.norm) == (1, 0.0)


# --- closures that cycle or draw --------------------------------------------------------------------------------------


def test_closures_are_gone_through_in_turn():
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    first, second = (lambda: 0.5 * (w - 2).square().sum()), (lambda: 0.5 * (w + 2).square().sum())
    found = only(optim.SGD([w], lr=0.5), [first, second], steps=4, changes=["as-it-is"])
    x, losses = 1.0, []
    for k in range(5):
        to = 2.0 if k % 2 == 0 else -2.0
        losses.append(0.5 * (x - to) ** 2)
        x += 0.5 * (to - x)
    assert found.losses == pytest.approx(losses, rel=1e-12) and found.loss_before == (0.5 + 4.5) / 2
    assert found.raising == 0 and found.orbit_curvature is None  # each step lowers the loss of its own data


def test_steps_that_raise_their_own_closure_s_loss():
    w = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    steep, flat = (lambda: 2.0 * w.square().sum()), (lambda: 0.01 * w.square().sum())
    found = only(optim.SGD([w], lr=0.6), [steep, flat], steps=10, changes=["as-it-is"])  # 4 · 0.6 > 2
    assert found.raising == 0.5


def test_with_dropout_before_and_after_have_the_same_masks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    x, y = torch.randn(16, 4).double(), torch.randn(16, 1).double()
    loss = lambda: (model(x) - y).square().mean()  # noqa: E731
    first, again = (only(optim.SGD(model.parameters(), lr=1e-3), loss, steps=20, changes=["as-it-is"]) for _ in "ab")
    assert first == again and first.orbit_curvature is None
    assert first.raising == 0  # with other masks some would seem to
    assert sum(b > a for a, b in zip(first.losses, first.losses[1:], strict=False)) > 3


# --- changes of one's own ---------------------------------------------------------------------------------------------


def test_changes_of_one_s_own():
    w, optimizer, loss = quadratic(0.1)

    def faster(live):
        live.param_groups[0]["lr"] = 0.2

    found, other = what_if(
        optimizer, loss, steps=5, changes=[("faster", faster), ("adam", lambda o: optim.Adam([w], 0.1))]
    )
    assert found.losses == pytest.approx(path(0.2, 5), rel=1e-12) and (found.name, found.lr) == ("faster", 0.2)
    assert other.losses[1] == pytest.approx(float(0.5 * (H * 0.81).sum()), rel=1e-6)  # Adam's first step is lr
    assert optimizer.param_groups[0]["lr"] == 0.1 and w.tolist() == [1.0, 1.0]
    with pytest.raises(TypeError, match="what_if: odd must return an optimiser or None, not int"):
        what_if(optimizer, loss, changes=[("odd", lambda o: 3)])


# --- as it was --------------------------------------------------------------------------------------------------------

KINDS = {
    "sgd": lambda ps: optim.SGD(ps, lr=0.05),
    "momentum": lambda ps: optim.SGD(ps, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda ps: optim.Adam(ps, lr=0.01, amsgrad=True),
    "adamw": lambda ps: optim.AdamW(ps, lr=0.01),
    "adam, tensor lr": lambda ps: optim.Adam(ps, lr=torch.tensor(0.01), foreach=False),
    "rmsprop": lambda ps: optim.RMSprop(ps, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda ps: optim.Adagrad(ps, lr=0.01),
    "adadelta": lambda ps: optim.Adadelta(ps),
    "adamax": lambda ps: optim.Adamax(ps),
    "nadam": lambda ps: optim.NAdam(ps),
    "radam": lambda ps: optim.RAdam(ps),
    "asgd": lambda ps: optim.ASGD(ps),
    "rprop": lambda ps: optim.Rprop(ps),
    "lbfgs": lambda ps: optim.LBFGS(ps, max_iter=3),
    "proximal": lambda ps: Proximal(optim.SGD(ps, lr=0.05, momentum=0.9), L1(0.01)),
    "proximal adam": lambda ps: Proximal(optim.Adam(ps, lr=0.01), L1(0.01)),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, 2))

    def forward(self, x):
        return self.layers(x) + 1e-3 * random.random() + 1e-3 * float(np.random.rand())


def everything(model, optimizer):
    """All that must stay, by value and by identity."""
    inner = getattr(optimizer, "optimizer", optimizer)
    tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters() if p.grad is not None)]
    held = [v for s in inner.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    state = copy.deepcopy(optimizer.state_dict())
    numpy = np.random.get_state()
    identities = [id(t) for t in tensors + held] + [id(inner.state), id(inner.param_groups), id(inner.param_groups[0])]
    return (
        [t.detach().clone() for t in tensors + held],
        identities,
        [(t._version, t.data_ptr()) for t in tensors + held],
        str(state) + str([(k, sorted(map(str, g))) for g in inner.param_groups for k in g]),
        [m.training for m in model.modules()] + [p.requires_grad for p in model.parameters()],
        (random.getstate(), numpy[1].tobytes(), numpy[2:], torch.get_rng_state().numpy().tobytes()),
        sorted(vars(optimizer)) + sorted(vars(inner)) + [getattr(inner, "_opt_called", None)],
    )


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))


def trained(kind):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = Net()
    x, y = torch.randn(16, 4), torch.randn(16, 2)
    optimizer = KINDS[kind](list(model.parameters()))
    loss = lambda: functional.l1_loss(model(x), y)  # noqa: E731

    def closure():
        optimizer.zero_grad()
        f = loss()
        f.backward()
        return f

    for _ in range(3):
        optimizer.step(closure)
    return model, optimizer, loss, closure


@pytest.mark.parametrize("kind", KINDS)
def test_all_is_left_bit_by_bit(kind):
    model, optimizer, loss, closure = trained(kind)
    fired = []
    optimizer.register_step_post_hook(lambda *a: fired.append(a))
    before = everything(model, optimizer)
    changes = ["as-it-is", "half-lr", "smooth", "largest-stable-lr", ("other", lambda o: None)]
    extra = {} if "proximal" in kind or kind in ("rprop", "lbfgs") else {"penalty": L1(0.01), "smooth_closures": loss}
    found = what_if(optimizer, loss, steps=3, changes=changes + ["proximal"] * bool(extra), **extra)
    assert_same(before, everything(model, optimizer))
    assert len(found) == 5 + bool(extra) and not fired
    assert (found[0].losses == found[4].losses and found[0].losses[1:] != found[1].losses[1:]) or kind in (
        "rprop",
        "asgd",
    )

    again = [closure_loss(optimizer, closure) for _ in range(3)]  # and training goes on as if nothing had been
    other = trained(kind)
    assert again == [closure_loss(other[1], other[3]) for _ in range(3)]
    if kind != "lbfgs" and "proximal" not in kind:
        assert list(found[0].losses[:3]) == again  # what was foretold


def closure_loss(optimizer, closure):
    return float(optimizer.step(closure).detach())


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_all_is_left_when_a_closure_raises(after):
    model, optimizer, loss, _ = trained("momentum")
    before, calls = everything(model, optimizer), []

    def failing():
        calls.append(None)
        if len(calls) > after:
            raise KeyError("data")
        model.eval()
        return loss()

    with pytest.raises(KeyError, match="data"):
        what_if(optimizer, failing, steps=5, modules=[model])
    assert_same(before, everything(model, optimizer))


@pytest.mark.parametrize("forgets", ["parameter", "state", "grad", "stream", "group", "version"])
def test_the_comparison_sees_what_could_be_forgotten(forgets):
    model, optimizer, _, _ = trained("momentum")
    before = everything(model, optimizer)
    p = next(model.parameters())
    if forgets == "parameter":
        p.data[0, 0] += 1e-7
    if forgets == "state":
        optimizer.state[p]["momentum_buffer"] = optimizer.state[p]["momentum_buffer"].clone()
    if forgets == "grad":
        p.grad = None
    if forgets == "stream":
        torch.rand(1)
    if forgets == "group":
        optimizer.param_groups[0]["proximal"] = []
    if forgets == "version":
        with torch.no_grad():
            p.add_(0)
    with pytest.raises(AssertionError):
        assert_same(before, everything(model, optimizer))


def test_a_graph_from_before_stays_good():
    model, optimizer, loss, _ = trained("adam")
    own = loss()
    what_if(optimizer, loss, steps=2)
    assert all(g.isfinite().all() for g in torch.autograd.grad(own, list(model.parameters())))


@pytest.mark.parametrize("name", ["optimizer", "_optimizer"])
def test_a_trainer_s_wrapper_counts_as_what_it_wraps(name):
    class Wrapped(optim.Optimizer):
        def __init__(self, inner):
            setattr(self, name, inner)
            self.param_groups, self.state = inner.param_groups, inner.state

        def step(self, closure=None):
            raise AssertionError("the trainer's own step")

    w, fit, _ = lasso()
    for inner in (optim.SGD([w], lr=0.05), Proximal(optim.SGD([w], lr=0.05), L1(0.5))):
        assert what_if(Wrapped(inner), fit, steps=5) == what_if(inner, fit, steps=5)


def test_compiled_models():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.randn(8, 3)
    compiled = torch.compile(model, backend="eager")
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    eager = what_if(optimizer, lambda: model(x).square().mean(), steps=5)
    found = what_if(optimizer, lambda: compiled(x).square().mean(), steps=5)
    assert [f.losses for f in found] == [pytest.approx(f.losses, rel=1e-5) for f in eager]


# --- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be a whole number above 0, not 0"),
        ({"steps": True}, "steps must be a whole number above 0, not True"),
        ({"resolution": 1.0}, "resolution must be a factor above 1 and at most 2"),
        ({"changes": "smooth"}, "changes must be a list of as-it-is, half-lr"),
        ({"changes": ["faster"]}, "changes must be a list of as-it-is, half-lr"),
        ({"changes": ["proximal"]}, "proximal needs the penalty, and smooth_closures"),
        ({"changes": ["proximal"], "penalty": L1(1.0)}, "proximal needs the penalty, and smooth_closures"),
        ({"beta": 0.0}, "smoothing: beta must be a finite number above 0"),
    ],
)
def test_options_that_make_no_sense(options, words):
    _, optimizer, loss = quadratic(0.1)
    with pytest.raises(ValueError, match=words):
        what_if(optimizer, loss, **options)


def test_closures_and_optimisers_that_make_no_sense():
    w, optimizer, loss = quadratic(0.1)
    with pytest.raises(TypeError, match="optimizer must be a torch optimiser, not list"):
        what_if([w], loss)
    for closures in ([], [3], 3):
        with pytest.raises(ValueError, match="what_if: closures must be a function that returns the loss"):
            what_if(optimizer, closures)
    with pytest.raises(ValueError, match=r"must return the loss, a scalar tensor, not a tensor of shape \(2,\)"):
        what_if(optimizer, lambda: w * 2)
    with pytest.raises(ValueError, match="what_if: the loss is complex; return a real one"):
        what_if(optimizer, lambda: w.sum() + 0j, steps=2)
    with pytest.raises(ValueError, match="a closure's loss has no graph"):
        what_if(optimizer, lambda: loss().detach())

    def backward():
        f = loss()
        if f.requires_grad:
            f.backward()
        return f

    with pytest.raises(ValueError, match="a closure called backward"):
        what_if(optimizer, backward)
    assert w.grad is None

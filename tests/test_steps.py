"""One measured step: closed forms, twins by hand, the integral of the frozen Hessian, and nothing disturbed."""

from __future__ import annotations

import math
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from nonsmooth.torch.selection import record, replay
from nonsmooth.torch.steps import OrbitCurvature, holder, measure_step
from nonsmooth.torch.steps.evaluation import SameRandomNumbers, flat
from nonsmooth.torch.steps.step import measured
from nonsmooth.torch.undisturbed import undisturbed


def vector(*entries):
    return torch.tensor(entries, dtype=torch.float64, requires_grad=True)


def network(activation=nn.ReLU, seed=0, smooth_head=True):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 1)).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    return net, lambda: (net(x) - y).square().mean() if smooth_head else (net(x) - y).abs().mean()


def cnn():
    torch.manual_seed(0)
    head = (nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(), nn.Linear(36, 3))
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head).double()
    x, y = torch.randn(10, 1, 8, 8, dtype=torch.float64), torch.randint(0, 3, (10,))
    return net, lambda: functional.cross_entropy(net(x), y)


def after(params, size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [p.detach() + size * torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]


def gradient(closure, params, again=None):
    with undisturbed(params), (again or SameRandomNumbers())():
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(closure(), params)])


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_a_quadratic():
    H = torch.tensor([[3.0, 1.0], [1.0, -2.0]], dtype=torch.float64)
    w = vector(1.0, -1.0)
    D = torch.tensor([0.5, 0.25], dtype=torch.float64)
    step = measure_step(lambda: 0.5 * w @ H @ w, [w], [w.detach() + D], path=True)
    assert step.curvature == pytest.approx(float(D @ H @ D / (D @ D)))
    assert step.predicted == pytest.approx(float(w.detach() @ H @ D))
    assert step.lipschitz == pytest.approx(float((H @ D).norm() / D.norm()))
    assert step.loss_after - step.loss_before == pytest.approx(step.predicted + 0.5 * float(D @ H @ D))
    assert (step.frozen.kink, step.frozen.share, step.flipped) == (0.0, 0.0, 0)
    assert step.path.smooth == pytest.approx(step.curvature) and step.path.error < 1e-15 and step.path.nodes == 5


def test_descent_on_the_absolute_value():
    for eta in (0.5, 1.0, 4.0):
        w = vector(eta / 4)
        step = measure_step(lambda w=w: w.abs().sum(), [w], [w.detach() - eta], path=True)
        assert step.curvature == step.frozen.kink == step.path.kink == 2 / eta
        assert step.frozen.share == step.path.share == 1.0 and step.flipped == 1


def test_no_step_and_a_still_gradient():
    w = vector(1.0, 2.0)
    step = measure_step(lambda: w.square().sum(), [w], [w.detach().clone()])
    assert (step.curvature, step.lipschitz, step.frozen.share, step.frozen.smooth) == (0.0, 0.0, 0.0, 0.0)
    step = measure_step(lambda: torch.relu(w).sum(), [w], [w.detach() * 2])  # the same piece of a linear function
    assert (step.curvature, step.frozen.share, step.undefined) == (0.0, 0.0, ())


def test_pieces_that_end_are_undefined_and_said_so():
    w = vector(1.0)
    step = measure_step(lambda: w.abs().sqrt().sum(), [w], [torch.tensor([-1.0])])  # √x at −1
    assert math.isnan(step.frozen.share) and math.isnan(step.frozen.kink)
    assert step.undefined == ("the frozen piece has no finite gradient at the new parameters",)
    assert step.curvature == 0.5 and "undefined: the frozen piece" in str(step)
    step = measure_step(lambda: (w**2 if w.item() > 0 else w.abs()).sum(), [w], [torch.tensor([-1.0])])
    assert math.isnan(step.frozen.share) and "was not recorded" in step.undefined[0]
    assert step.unseen == ("a number taken out of torch by item in (outside modules)",)


def test_activation_checkpoints():
    net, _ = network()
    x, new = torch.randn(6, 4, dtype=torch.float64), after(list(net.parameters()), 0.3)
    step = measure_step(lambda: checkpoint(net, x, use_reentrant=False).square().mean(), net, new)
    assert math.isnan(step.frozen.share) and "activation checkpoints run a part" in step.undefined[0]
    without = measure_step(lambda: net(x).square().mean(), net, new)
    assert step.curvature == pytest.approx(without.curvature) and without.undefined == ()
    x.requires_grad_()
    with pytest.raises(ValueError, match=r"reentrant activation checkpoints put their gradient into .grad alone"):
        measure_step(lambda: checkpoint(net, x, use_reentrant=True).square().mean(), net, new)


# --- the two splits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [network, cnn])
def test_the_smooth_part_is_the_integral_of_the_frozen_hessian(make):
    """∫₀¹ H_F(x + sD) D ds by Gauss's rules, whose error falls to nothing as the nodes grow."""
    net, closure = make()
    params, again = list(net.parameters()), SameRandomNumbers()
    x, new = [p.detach().clone() for p in params], after(list(net.parameters()), 0.1)
    g = gradient(closure, params, again)
    with again():
        selection = record(closure)[1]

    def put(s):
        for p, a, b in zip(params, x, new):
            p.data.copy_(a + s * (b - a))

    def frozen(product):
        with undisturbed(params), again():
            loss = replay(closure, selection)
            slopes = torch.autograd.grad(loss, params, create_graph=product)
            if product:
                inner = sum((s * (b - a)).sum() for s, a, b in zip(slopes, x, new))
                slopes = torch.autograd.grad(inner, params)
        return torch.cat([s.reshape(-1) for s in slopes])

    def active():
        loss = closure()
        slopes = torch.autograd.grad(loss, params, create_graph=True)
        inner = sum((s * (b - a)).sum() for s, a, b in zip(slopes, x, new))
        return torch.cat([s.reshape(-1) for s in torch.autograd.grad(inner, params)])

    def integral(integrand, n):
        nodes, weights = np.polynomial.legendre.leggauss(n)
        total = 0
        for node, weight in zip(nodes, weights):
            put((node + 1) / 2)
            total = total + weight / 2 * integrand()
        return total

    put(1)
    smooth = frozen(False) - g
    errors = [float((integral(lambda: frozen(True), n) - smooth).norm() / smooth.norm()) for n in (1, 2, 4, 8, 16)]
    assert errors[-1] < 1e-9 < 1e-3 < errors[0] < 1
    assert all(b < a / 3 for a, b in pairwise(errors) if a > 1e-10)
    with undisturbed(params), again():  # the mutant: the Hessian of the piece that is active there
        assert float((integral(active, 16) - smooth).norm() / smooth.norm()) > 1e-2
    put(0)
    step = measure_step(closure, params, new)
    D = torch.cat([(b - a).reshape(-1) for a, b in zip(x, new)])
    assert step.frozen.smooth == pytest.approx(float(smooth @ D / (D @ D)), rel=1e-9)


def test_the_path_split_is_the_sum_of_the_jumps():
    """One hidden layer that alone moves: each pre-activation is linear along the step, each crossing in closed form."""
    rng = np.random.default_rng(0)
    X, y, a = rng.standard_normal((12, 3)), rng.standard_normal(12), rng.standard_normal(6)
    old = rng.standard_normal((3, 6))
    D = 0.8 * rng.standard_normal((3, 6))

    def slope(W, mask):
        h = (X @ W) * mask
        return X.T @ (2 * (h @ a - y)[:, None] / len(y) * a * mask)

    z, dz = X @ old, X @ D
    crossing = -z / dz
    jumps = 0
    for i, j in np.argwhere((crossing > 0) & (crossing < 1)):
        W = old + crossing[i, j] * D
        mask = ((z + crossing[i, j] * dz) > 0).astype(float)
        mask[i, j] = float(dz[i, j] > 0)
        other = mask.copy()
        other[i, j] = 1 - mask[i, j]
        jumps = jumps + slope(W, mask) - slope(W, other)
    change = slope(old + D, z + dz > 0) - slope(old, z > 0)
    by_hand_frozen = slope(old + D, z + dz > 0) - slope(old + D, z > 0)

    W = torch.tensor(old, requires_grad=True)
    closure = lambda: ((torch.relu(torch.tensor(X) @ W) @ torch.tensor(a) - torch.tensor(y)) ** 2).mean()  # noqa: E731
    step = measure_step(closure, [W], [torch.tensor(old + D)], path=True, tol=2e-3, max_nodes=2049)
    square = (D * D).sum()
    assert step.change == pytest.approx(np.linalg.norm(change))
    assert step.path.converged and step.path.error <= 2e-3
    assert step.path.kink == pytest.approx((jumps * D).sum() / square, abs=step.path.error * step.lipschitz)
    assert step.frozen.kink == pytest.approx((by_hand_frozen * D).sum() / square)
    for split in (step.frozen, step.path):
        assert split.smooth + split.kink == pytest.approx(step.curvature)
    apart = abs(((jumps - by_hand_frozen) * D).sum()) / square
    assert apart > max(0.02 * step.curvature, 2 * step.path.error * step.lipschitz)  # the two are not the same thing
    assert step.flipped == int(((z > 0) != (z + dz > 0)).sum())


def test_a_path_that_is_cut_short_says_so():
    net, closure = network()
    params = list(net.parameters())
    step = measure_step(closure, net, after(params, 0.3), path=True, tol=1e-6, max_nodes=9)
    assert not step.path.converged and step.path.nodes == 9 and step.path.error > 1e-6
    assert f"{step.path.nodes} nodes" in str(step)


@pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh, nn.ELU, nn.Softplus])
def test_smooth_twins_have_no_kink_share(activation):
    net, closure = network(activation)
    step = measure_step(closure, net, after(list(net.parameters()), 0.3), path=True, tol=1e-4)
    assert step.frozen.share == 0.0 == step.frozen.kink
    assert step.path.share <= step.path.error < 5e-3
    net, closure = network(nn.ReLU)
    step = measure_step(closure, net, after(list(net.parameters()), 0.3))
    assert step.frozen.share > 0.05 and step.flipped > 0


def test_c1_by_any_spelling_has_none_either():
    class Square(nn.Module):
        def forward(self, x):
            return functional.relu(x) ** 2

    class HandMade(nn.Module):
        def forward(self, x):
            return torch.where(x > 0, x, torch.expm1(x))

    for activation in (Square, HandMade):
        net, closure = network(activation)
        step = measure_step(closure, net, after(list(net.parameters()), 0.3), path=True, tol=1e-3)
        assert step.frozen.share == 0.0 and step.flipped == 0 and not step.unseen
        assert step.path.share < 1e-2


def test_layers():
    """A bias of the second hidden layer moves, and of the hidden layers only that one flips."""
    net, closure = network(smooth_head=False)
    params = dict(net.named_parameters())
    new = {name: p.detach().clone() for name, p in params.items()}
    new["2.bias"] += 0.5
    before = [c.piece for c in record(closure)[1].choices]
    step = measure_step(closure, net, list(new.values()))
    net[2].bias.data.add_(0.5)
    behind = [c.piece for c in record(closure)[1].choices]
    flipped = [int((a != b).sum()) for a, b in zip(before, behind)]
    assert flipped[0] == 0 < flipped[1]
    assert step.flips_by_layer == {"1": 0, "3": flipped[1], "(outside modules)": flipped[2]}
    assert step.flipped == sum(flipped)
    assert [name for name, _ in step.frozen.by_layer] == ["0", "2", "4"]
    assert [name for name, _ in step.frozen.by_parameter] == list(params)
    layers = dict(step.frozen.by_layer)  # an L1 loss: on its pieces the gradient below does not depend on a bias
    assert layers["0"] == pytest.approx(1.0) and layers["2"] == pytest.approx(1.0) and 0 < layers["4"] < 0.9


# --- along a run -----------------------------------------------------------------------------------------------------


def test_orbit_curvature_tends_to_the_edge():
    """κ̄ → 2/η on a bounded run of gradient descent that does not converge, on a lasso that is nowhere near smooth."""
    rng = np.random.default_rng(0)
    X = torch.tensor(rng.standard_normal((20, 4)))
    y = X @ torch.tensor([1.0, 0.0, 0.0, -2.0], dtype=torch.float64) + torch.tensor(rng.standard_normal(20))
    w, eta = vector(1.0, 0.1, -0.2, -1.0), 0.05
    closure = lambda: (X @ w - y).square().mean() + 5 * w.abs().sum()  # noqa: E731
    optimizer = torch.optim.SGD([w], lr=eta)
    tail, one = OrbitCurvature(window=300), OrbitCurvature(window=1)
    for _ in range(400):
        w.grad = torch.autograd.grad(closure(), w)[0]
        step = measure_step(closure, [w], optimizer.step)
        tail.update(step)
        one.update(step)
    assert len(tail.steps) == 300
    assert tail.value == pytest.approx(2 / eta, rel=0.02)
    assert one.value == pytest.approx(step.change**2 / step.secant)
    assert OrbitCurvature().value == 0.0
    with pytest.raises(ValueError, match="window must be a whole number above 0 or None, not 0"):
        OrbitCurvature(window=0)


def test_holder_exponents():
    scales = (1e-4, 1e-3, 1e-2)
    at_zero = vector(*[0.0] * 20)
    kink = holder(lambda: at_zero.abs().sum(), [at_zero], scales)
    assert kink.slopes == pytest.approx((0.0, 0.0)) and kink.variations == pytest.approx((math.sqrt(20),) * 3)
    power = holder(lambda: at_zero.abs().pow(1.5).sum(), [at_zero], scales)
    assert power.slopes == pytest.approx((0.5, 0.5))
    smooth = holder(lambda: (1.5 * at_zero.square()).sum(), [at_zero], scales)
    assert smooth.slopes == pytest.approx((1.0, 1.0)) and smooth.errors == pytest.approx((0.0,) * 3, abs=1e-12)
    away = vector(*[0.1] * 20)
    linear = holder(lambda: torch.relu(away).sum(), [away], (1e-4, 1e-3, 10.0), seeds=[3, 4, 5])
    assert linear.variations[:2] == (0.0, 0.0) and linear.zeros == (3, 3, 0)
    assert all(math.isnan(s) for s in linear.slopes) and linear.variations[2] > 1
    assert torch.equal(away, vector(*[0.1] * 20))
    with pytest.raises(ValueError, match="at least two finite numbers above 0, rising"):
        holder(lambda: away.sum(), [away], [1.0, 0.1])
    with pytest.raises(ValueError, match="at least one seed"):
        holder(lambda: away.sum(), [away], [0.1, 1.0], seeds=0)


# --- what it holds ---------------------------------------------------------------------------------------------------


class Wide(TorchDispatchMode):
    """Follows the bytes of float64 tensors that are alive, each memory once, and the most there ever were."""

    def __init__(self):
        super().__init__()
        self.held, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.dtype == torch.float64 and t.numel() > 1000:
                storage = t.untyped_storage()
                if storage._cdata not in self.held:
                    self.held[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.forget, storage._cdata)
                self.most = max(self.most, self.now)
        return out

    def forget(self, which):
        self.now -= self.held.pop(which)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_copy_in_double_of_all_parameters(dtype):
    """Of three million parameters sums turn a few chunks at a time into float64, of half a MiB each."""
    rng = torch.Generator().manual_seed(0)
    ps = [(0.1 * torch.randn(n, generator=rng)).to(dtype).requires_grad_() for n in (1_000_000, 2_000_000)]
    x = [p.detach().clone() for p in ps]
    new = [(p.detach() + 1e-3 * torch.randn(p.shape, generator=rng)).to(dtype) for p in ps]
    closure = lambda: sum((p * p / 2 + p.abs()).sum(dtype=torch.float32) for p in ps)  # noqa: E731
    with Wide() as seen:
        step = measure_step(closure, ps, new)
    whole = 8 * sum(p.numel() for p in ps)
    D, g, g_next = (
        [a - b for a, b in zip(map(torch.Tensor.double, new), map(torch.Tensor.double, x))],
        *([(p.double() + p.double().sign()) for p in some] for some in (x, new)),
    )
    change, square = [b - a for a, b in zip(g, g_next)], sum(float(d @ d) for d in D)
    near = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]  # the gradients' own rounding
    assert step.length == pytest.approx(math.sqrt(square), rel=1e-12)
    assert step.curvature == pytest.approx(sum(float(c @ d) for c, d in zip(change, D)) / square, rel=10 * near)
    assert step.predicted == pytest.approx(sum(float(a @ d) for a, d in zip(g, D)), abs=10 * near * step.length)
    assert all(torch.equal(p, a) for p, a in zip(ps, x))
    assert 0 < seen.most < whole / 2
    with Wide() as mutant:  # what one flat vector would take
        flat(new)
    assert mutant.most >= whole


# --- observing does not disturb --------------------------------------------------------------------------------------


def trained(measured, steps=12):
    net, closure = cnn()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        state = torch.get_rng_state()
        loss = closure()
        loss.backward()
        if measured:
            now = torch.get_rng_state()
            torch.set_rng_state(state)
            stats = [b.clone() for b in net.buffers()]
            step = measure_step(closure, net, optimizer.step, path=len(seen) == 0)
            assert torch.equal(torch.get_rng_state(), state)
            assert all(torch.equal(a, b) for a, b in zip(stats, net.buffers()))
            torch.set_rng_state(now)
            assert step.loss_before == loss.item()  # the same dropout mask
            seen.append(step)
            holder(closure, net, [1e-3, 1e-2], seeds=1)
        else:
            optimizer.step()
    moments = [optimizer.state[p]["momentum_buffer"] for p in net.parameters()]
    tensors = [*net.parameters(), *net.buffers(), *moments, *(p.grad for p in net.parameters()), torch.get_rng_state()]
    return tensors, [m.training for m in net.modules()], seen


def test_a_measured_run_is_the_same_run():
    plain, modes, _ = trained(False)
    watched, watched_modes, seen = trained(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True)) and modes == watched_modes
    assert sum(step.flipped for step in seen) > 0


def test_the_parameters_come_back():
    net, closure = network()
    before = [p.detach().clone() for p in net.parameters()]
    measure_step(closure, net, after(before, 0.1), path=True)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
    assert all(p.grad is None for p in net.parameters())
    calls = []

    def breaks():
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the second call")
        return closure()

    with pytest.raises(RuntimeError, match="the second call"):
        measure_step(breaks, net, after(before, 0.1))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


def test_bad_input_is_refused():
    w = vector(1.0, 2.0)
    with pytest.raises(ValueError, match="must have the shapes of those before it"):
        measure_step(lambda: w.sum(), [w], [torch.zeros(3)])
    with pytest.raises(ValueError, match=r"tol must be above 0 and max_nodes at least 5, not 0.01 and 3"):
        measure_step(lambda: w.sum(), [w], [torch.zeros(2)], max_nodes=3)
    with pytest.raises(ValueError, match="params must hold at least one parameter"):
        measure_step(lambda: w.sum(), [w.detach()], [torch.zeros(2)])
    z = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(ValueError, match="measure_step: complex parameters cannot be measured; split them"):
        measure_step(lambda: w.sum() + z.abs().sum(), [z, w], [torch.zeros(2)] * 2)
    for measure in (lambda f: measure_step(f, [w], [torch.zeros(2)]), lambda f: holder(f, [w], [0.1, 1.0])):
        with pytest.raises(ValueError, match="the loss is complex; return a real one"):
            measure(lambda: w.sum() + 0j)
    with pytest.raises(ValueError, match="the loss has no graph"):
        measure_step(lambda: w.detach().sum(), [w], [torch.zeros(2)])

    def backward():
        loss = w.sum()
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="closure called backward"):
        measure_step(backward, [w], [torch.zeros(2)])
    with pytest.raises(ValueError, match="holder: the closure called backward"):
        holder(backward, [w], [0.1, 1.0])
    assert w.grad is None


def test_units_that_pass_nothing_on_for_any_of_the_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU()).double()
    images = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).double()
    with torch.no_grad():
        model[0].bias[:6] = -100.0
        images[0].bias[:1] = -100.0
    x, pictures = torch.randn(64, 3).double(), torch.randn(2, 1, 8, 8).double()

    def silent(net: nn.Sequential, data: torch.Tensor) -> dict[str, float]:
        return measured(lambda: net(data).sum(), net, [p * 0.99 for p in net.parameters()])[1].silent

    assert silent(model, x) == silent(model, x.reshape(8, 8, 3)) == {"1": 0.75}
    assert silent(model, x[:63]) == {}  # too few values a unit
    assert silent(images, pictures) == {"1": 0.25}

"""Compress: what can go exactly goes, what cannot is left in and listed, and the outputs are the same."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import relu
from torch.nn.utils import parametrizations, prune

from nonsmooth.penalties import L1, NM, GroupLasso
from nonsmooth.torch import Proximal, channels
from nonsmooth.torch.compress import Compressed, compress
from nonsmooth.torch.dataflow import Dataflow
from nonsmooth.torch.semistructured import semi_structured

DOUBLE = {"dtype": torch.float64}


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, nothing zero but what is made so, running statistics as of a trained model."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    for name, t in model.state_dict().items():
        if t.is_floating_point():
            t.uniform_(0.5, 1.5, generator=generator)
            if "running_var" not in name:
                t.mul_(torch.randint(0, 2, t.shape, generator=generator) * 2 - 1)
    return model


def zero(layer: nn.Module, *rows: int, bias: float | None = None) -> None:
    with torch.no_grad():
        layer.weight[list(rows)] = 0
        if bias is not None:
            layer.bias[list(rows)] = bias


def images(channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.randn(3, channels, size, size, **DOUBLE, generator=torch.Generator().manual_seed(1))


def vectors(size: int = 4) -> torch.Tensor:
    return torch.randn(5, size, **DOUBLE, generator=torch.Generator().manual_seed(1))


def same(model: nn.Module, found: Compressed, *inputs: torch.Tensor) -> None:
    """On inputs that compress has not seen, too."""
    a, b = copy.deepcopy(model).eval(), copy.deepcopy(found.model).eval()
    for x in (inputs, tuple(3 * t.flip(0) - 1 for t in inputs)):
        with torch.no_grad():
            torch.testing.assert_close(b(*x), a(*x), rtol=1e-12, atol=1e-12 * float(a(*x).abs().max()))


def removed(found: Compressed) -> dict[str, tuple[int, ...]]:
    return dict(found.removed)


def reasons(found: Compressed) -> dict[tuple[str, int], str]:
    return {(name, i): why for name, which, why in found.kept for i in which}


class Forward(nn.Module):
    """Layers by name, and what is done with them."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.way = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs):
        return self.way(self, *inputs)


# ── what goes ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU, nn.Tanh, nn.Hardswish, nn.PReLU])
def test_mlp_folds_the_constant_of_a_zero_row(act):
    model = seeded(nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 5), act(), nn.Linear(5, 3)))
    zero(model[0], 1, 4, bias=0.7)
    model[2].weight.data[:, 3] = 0  # nobody reads 3
    zero(model[2], 0, bias=-0.3)
    found = compress(model, vectors())
    assert removed(found) == {"0": (1, 3, 4), "2": (0,)} and not found.kept
    assert found.model[2].weight.shape == (4, 3) and found.model[4].in_features == 4
    a = model[1](torch.tensor(0.7, **DOUBLE)).detach()
    bias = (model[2].bias + model[2].weight[:, [1, 4]].sum(1) * a)[1:]
    torch.testing.assert_close(found.model[2].bias, bias)
    same(model, found, vectors())


def slimming(pad: int, bias: bool, mode: str = "zeros") -> nn.Sequential:
    conv = {"padding": pad, "bias": bias, "padding_mode": mode}
    model = seeded(
        nn.Sequential(
            *(nn.Conv2d(1, 6, 3, **conv), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 8, 3, **conv), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(8 * (1 if not pad else 16), 3),),
        )
    )
    zero(model[1], 1, bias=0.7)
    zero(model[1], 2, bias=-0.7)
    zero(model[5], 0, 3, bias=0.4)
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("pad", "mode"), [(0, "zeros"), (1, "zeros"), (1, "reflect"), (1, "circular")])
def test_network_slimming(pad, bias, mode):
    """γ = 0: relu(β) is folded before a convolution that pads no zeros, and into a linear layer behind a flatten."""
    model = slimming(pad, bias, mode)
    x = images(size=8)
    found = compress(model, x)
    exact = pad == 0 or mode != "zeros"
    assert removed(found) == {"0": (1, 2) if exact else (2,), "4": (0, 3)}
    assert [row[:2] for row in found.kept] == ([] if exact else [("0", (1,))])
    assert exact or "zero padding of 4" in found.kept[0][2]
    assert (found.model[4].bias is not None) == bias  # without one, the running mean takes it
    same(model, found, x)


def test_a_new_bias_where_no_batchnorm_follows():
    model = seeded(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2, bias=False)))
    zero(model[0], 0)
    model[2].weight.requires_grad_(False)
    found = compress(model, vectors())
    torch.testing.assert_close(
        found.model[2].bias.data, (model[2].weight[:, 0] * torch.tanh(model[0].bias[0])).detach()
    )
    assert not found.model[2].bias.requires_grad and found.model[0].weight.requires_grad
    same(model, found, vectors())


def test_flatten_from_convolution_to_linear():
    model = seeded(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2)))
    zero(model[0], 1, bias=0.5)
    found = compress(model, images())
    assert removed(found) == {"0": (1,)} and found.model[3].in_features == 2 * 36
    same(model, found, images())


def residual() -> nn.Module:
    def forward(self, x):
        x = relu(self.a(x))
        return self.d((x + self.c(relu(self.b(x)))).mean((2, 3)))

    conv = {"kernel_size": 3, "padding": 1, "bias": False}
    layers = {"a": nn.Conv2d(1, 6, **conv), "b": nn.Conv2d(6, 5, **conv), "c": nn.Conv2d(5, 6, **conv)}
    return seeded(Forward(forward, **layers, d=nn.Linear(6, 3)))


def test_residual_channels_go_where_all_that_are_coupled_are_zero():
    model = residual()
    zero(model.a, 0, 1)
    zero(model.c, 1, 2)
    zero(model.b, 4)
    found = compress(model, images())
    assert removed(found) == {"a": (1,), "b": (4,), "c": (1,)}
    assert {i for _, i in reasons(found)} == {0, 2} and all("d reads it" in why for why in reasons(found).values())
    same(model, found, images())


def test_depthwise():
    """A zero channel goes with its depthwise filter; behind zero padding the filter makes a border of a constant."""
    layers = (nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = seeded(nn.Sequential(*layers))
    zero(model[0], 0, bias=0.0)
    zero(model[0], 1, bias=0.5)
    zero(model[2], 2, bias=0.5)
    model[2].weight.data[1] = model[2].weight.data[1].abs()  # so that relu does not hide the border
    model[2].bias.data[1] = 0.1
    found = compress(model, images())
    assert removed(found) == {"0": (0, 2), "2": (0, 2)} and found.model[2].groups == 2
    assert "differs from place to place" in "".join(reasons(found).values())
    same(model, found, images())


def test_concatenation():
    layers = {"a": nn.Conv2d(1, 3, 3), "b": nn.Conv2d(1, 4, 3), "c": nn.Conv2d(7, 2, 3)}
    model = seeded(Forward(lambda self, x: self.c(torch.cat([torch.tanh(self.a(x)), relu(self.b(x))], 1)), **layers))
    zero(model.a, 2)
    zero(model.b, 0, 3, bias=0.5)
    found = compress(model, images())
    assert removed(found) == {"a": (2,), "b": (0, 3)} and found.model.c.in_channels == 4
    same(model, found, images())


def test_what_only_removed_channels_read_goes_too():
    model = seeded(nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(4, 4), nn.ReLU())), nn.Linear(4, 1)))
    with torch.no_grad():
        model[2].weight[1:, 2] = 0  # channel 2 of the first is read by 0 of the second alone,
        model[4].weight[:, 0] = 0  # which nobody reads
    found = compress(model, vectors())
    assert removed(found) == {"0": (2,), "2": (0,)}
    same(model, found, vectors())


def test_a_layer_that_reads_only_constants_puts_out_constants():
    model = seeded(nn.Sequential(nn.Linear(4, 3), nn.Sigmoid(), nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 1)))
    zero(model[0], 0, 1)
    with torch.no_grad():
        model[2].weight[1, 2] = 0  # 1 of the second reads the dead 0 and 1 alone
    found = compress(model, vectors())
    assert removed(found) == {"0": (0, 1), "2": (1,)}
    same(model, found, vectors())


def test_one_channel_stays():
    model = seeded(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)))
    zero(model[0], 0, 1, 2)
    found = compress(model, vectors())
    assert removed(found) == {"0": (1, 2)} and reasons(found) == {("0", 0): "a layer keeps one channel"}
    same(model, found, vectors())


def test_after_training_with_proximal():
    """Zero filters by GroupLasso, zero scales by L1: as in use."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 6))
    model += nn.Sequential(nn.GELU(), nn.Linear(6, 1))
    x = images().float()
    model[1].weight.data.uniform_(0, 1)
    pairs = [(L1(0.1), [model[1].weight]), (GroupLasso(0.2), [model[4].weight])]
    optimizer = Proximal(torch.optim.SGD(model.parameters(), lr=0.1), pairs)
    for _ in range(40):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    found = compress(model, x)
    zeros = [
        tuple((w == 0).flatten(1).all(1).nonzero().flatten().tolist())
        for w in (model[1].weight[:, None], model[4].weight)
    ]
    assert all(len(z) > 0 for z in zeros)
    went = {(n, i) for n, which in found.removed for i in which} | set(reasons(found))
    assert went == {("0", i) for i in zeros[0]} | {("4", i) for i in zeros[1]}
    assert found.after.parameters < found.before.parameters and found.after.flops < found.before.flops


def test_a_gate_closes_on_a_zero():
    """Squeeze and excitation: 0 times what the gate says is 0, and a constant that is not 0 is none behind it."""

    def forward(self, x):
        h = relu(self.a(x))
        return self.c(h * torch.sigmoid(self.f(h.mean((2, 3))))[:, :, None, None])

    layers = {"a": nn.Conv2d(1, 4, 3), "f": nn.Linear(4, 4), "c": nn.Conv2d(4, 2, 1)}
    model = seeded(Forward(forward, **layers))
    zero(model.a, 1, bias=0.5)
    zero(model.a, 2, bias=-0.5)
    found = compress(model, images())
    assert removed(found) == {"a": (2,), "f": (2,)}
    same(model, found, images())


def test_the_hidden_layer_of_a_transformer():
    model = seeded(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2)))
    zero(model[0].linear1, 3, 5)
    x = vectors(40).reshape(5, 5, 8)
    found = compress(model, x)
    assert removed(found) == {"0.linear1": (3, 5)} and found.model[0].linear2.in_features == 14
    same(model, found, x)


def test_two_inputs_unbatched_and_transposed():
    layers = {"a": nn.Linear(3, 5), "b": nn.Linear(4, 5), "c": nn.Linear(5, 2)}
    model = seeded(Forward(lambda self, x, y: self.c(relu(self.a(x) + self.b(y))), **layers))
    zero(model.a, 1, 2)
    zero(model.b, 2, 3)
    inputs = vectors(3)[0], vectors(4)[0]
    found = compress(model, *inputs)
    assert removed(found) == {"a": (2,), "b": (2,)}
    same(model, found, *inputs)
    layers = (nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 5, 3, stride=2), nn.ReLU(), nn.Conv2d(5, 2, 1))
    model = seeded(nn.Sequential(*layers))
    zero(model[0], 0, bias=-1.0)
    zero(model[0], 1, bias=1.0)  # spread between zeros: no constant
    model[2].weight.data[:, 2] = 0
    found = compress(model, images(2))
    assert removed(found) == {"0": (0,), "2": (2,)} and "zero padding of 2" in reasons(found)["0", 1]
    same(model, found, images(2))


# ── what stays ──────────────────────────────────────────────────────────────────────────────────────────────────────


def pair(middle: nn.Module) -> nn.Sequential:
    model = seeded(nn.Sequential(nn.Linear(4, 4), middle, nn.Linear(4, 2)))
    zero(model[0], 1, bias=0.0)
    model[2].weight.data[:, 1] = 0
    return model


@pytest.mark.parametrize("middle", [nn.Softmax(-1), nn.LayerNorm(4), nn.GroupNorm(2, 4)])
def test_mixed_channels_stay(middle):
    """Nobody reads channel 1, but it counts in the norm of the others."""
    model = pair(middle)
    found = compress(model, vectors())
    assert not found.removed and set(reasons(found)) == {("0", 1)}
    same(model, found, vectors())


def test_mixing_is_looked_for_beyond_the_graph():
    """A sum over channels is an entrywise operation to the graph: without the check a channel of it would go."""

    def forward(self, x):
        h = self.a(x)
        return self.c(h / h.square().sum(1, keepdim=True))

    model = seeded(Forward(forward, a=nn.Linear(4, 4), c=nn.Linear(4, 2)))
    model.c.weight.data[:, 1] = 0
    found = compress(model, vectors())
    assert not found.removed and "mixed" in reasons(found)["a", 1]


def test_tied_weights_stay():
    model = seeded(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    model[2].weight = model[0].weight
    zero(model[0], 1, bias=0.0)
    found = compress(model, vectors())
    assert not found.removed and found.model[2].weight is found.model[0].weight
    assert "shares its weights" in reasons(found)["0", 1]


def test_a_layer_called_twice_stays():
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 2)}
    model = seeded(Forward(lambda self, x: self.b(relu(self.a(relu(self.a(x))))), **layers))
    zero(model.a, 1, bias=0.0)
    found = compress(model, vectors())
    assert not found.removed and "called 2 times" in reasons(found)["a", 1]


def test_parametrised_and_grouped_layers_stay():
    model = pair(nn.ReLU())
    parametrizations.weight_norm(model[2])
    assert not compress(model, vectors()).removed
    model = seeded(nn.Sequential(nn.Conv2d(2, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    zero(model[0], 1)
    assert "grouped" in reasons(compress(model, images(2)))["0", 1]


def test_a_layer_with_a_forward_of_its_own_stays():
    """Its weight does not say what it reads."""

    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.sum(-1, keepdim=True)

    model = seeded(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Adapted(4, 2)))
    zero(model[0], 3, bias=0.5)
    model[2].weight.data[:, 1] = 0
    found = compress(model, vectors())
    assert not found.removed and all("forward of its own" in why for why in reasons(found).values()) and found.kept


@pytest.mark.parametrize("many", [False, True])
def test_outputs_stay(many):
    """The last layer, and a layer that is returned beside being read."""

    def forward(self, x):
        h = self.a(x)
        return {"h": h, "y": self.b(relu(h))} if many else self.b(relu(h))

    model = seeded(Forward(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 3)))
    zero(model.a, 1)
    zero(model.b, 2)
    found = compress(model, vectors())
    assert reasons(found)["b", 2] == "an output of the model" and removed(found) == ({} if many else {"a": (1,)})


def test_keep_and_nothing_to_remove():
    model = pair(nn.ReLU())
    found = compress(model, vectors(), keep=["0"], runs=1)
    assert not found.removed and not found.kept and "nothing to remove" in str(found)
    assert found.before.parameters == found.after.parameters and found.difference == 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), found.model.parameters(), strict=True))


def test_integers_do_not_hide_what_depends_on_the_input():
    """Rounded or compared activations are marked; zeros of one input are not taken for constants."""
    model = seeded(Forward(lambda self, x: self.b((self.a(x) > 1e9).double()), a=nn.Linear(4, 4), b=nn.Linear(4, 2)))
    assert Dataflow(model, (vectors(),)).seen[model.b].isnan().all()
    model = seeded(Forward(lambda self, i: self.b(relu(self.e(i) - 1e9)), e=nn.Embedding(5, 4), b=nn.Linear(4, 2)))
    assert Dataflow(model, (torch.tensor([0, 1]),)).seen[model.b].isnan().all()


# ── the check of the outputs ────────────────────────────────────────────────────────────────────────────────────────


def test_forgetting_the_constant_is_rejected(monkeypatch):
    model = slimming(0, True)
    monkeypatch.setattr(channels, "_fold", lambda *_: None)
    with pytest.raises(RuntimeError, match="the outputs differ by"):
        compress(model, images())


def test_ignoring_the_padding_is_rejected(monkeypatch):
    model = slimming(1, True)
    monkeypatch.setattr(channels, "_pads_zeros", lambda _: False)
    with pytest.raises(RuntimeError, match="the outputs differ by"):
        compress(model, images())


def test_overlooking_that_channels_mix_is_rejected(monkeypatch):
    model = pair(nn.Softmax(-1))
    monkeypatch.setattr(channels.Round, "_contained", lambda *_: True)
    with pytest.raises(RuntimeError, match="the outputs differ by"):
        compress(model, vectors())


def test_numbers_written_into_the_forward_are_a_sentence():
    def forward(self, x):
        return self.b(relu(self.a(x)).view(-1, 3 * 36))

    model = seeded(Forward(forward, a=nn.Conv2d(1, 3, 3), b=nn.Linear(3 * 36, 2)))
    zero(model.a, 1)
    with pytest.raises(RuntimeError, match=r"flatten\(1\) or keep"):
        compress(model, images())
    assert not compress(model, images(), keep="a").removed


# ── it disturbs nothing ─────────────────────────────────────────────────────────────────────────────────────────────


def test_the_users_model_is_left_alone():
    model = slimming(0, False)
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[8].weight.grad = torch.ones_like(model[8].weight)
    before, random, x = copy.deepcopy(model.state_dict()), torch.get_rng_state(), images()
    given = x.clone()
    found = compress(model, x)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert torch.equal(torch.get_rng_state(), random) and torch.equal(x, given) and not x.requires_grad
    assert [m.training for m in model.modules()] == [m.training for m in found.model.modules()]
    assert model[1].training is False and model[8].weight.grad is not None
    flags = dict(model.named_parameters())
    assert all(p.requires_grad == flags[name].requires_grad for name, p in found.model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_precisions(dtype):
    found = compress(slimming(0, True).to(dtype), images().to(dtype))
    assert removed(found) == {"0": (1, 2), "4": (0, 3)}


def test_export():
    model, x = slimming(0, True).float().eval(), images().float()
    found = compress(model, x)
    assert found.removed
    program = torch.export.export(found.model, (x,))
    torch.testing.assert_close(program.module()(x), found.model(x))


def test_the_table_and_the_costs():
    model = pair(nn.ReLU())
    found = compress(model, vectors(), runs=3)
    assert (found.before.parameters, found.after.parameters) == (30, 3 * 4 + 3 + 2 * 3 + 2)
    assert (found.before.flops, found.after.flops) == (2 * 5 * (16 + 8), 2 * 5 * (12 + 6))
    assert found.after.latency > 0 and found.after.spread >= 0
    text = str(found)
    assert "1 channel removed" in text and "removed from 0: 1" in text and "thread" in text
    assert max(map(len, text.splitlines())) < 100


# ── bad input ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((), {}, ValueError, "no inputs"),
        ((vectors(),), {"keep": ["nine"]}, ValueError, "no layer named 'nine'"),
        ((vectors(),), {"runs": 0}, ValueError, "runs must be"),
        ((vectors(7),), {}, ValueError, "does not run on these inputs"),
    ],
)
def test_refused(arguments, options, error, says):
    with pytest.raises(error, match=says) as caught:
        compress(pair(nn.ReLU()), *arguments, **options)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_traced_is_refused():
    broken = Forward(lambda self, x: self.a(x).detach(), a=nn.Linear(4, 4))
    with pytest.raises(ValueError, match="cannot trace the model"):
        compress(broken.double(), vectors())
    branching = Forward(lambda self, x: self.a(x) if x.sum() > 0 else -self.a(x), a=nn.Linear(4, 4))
    with pytest.raises(ValueError, match="value of an activation"):
        compress(branching.double(), vectors())
    masked = pair(nn.ReLU())
    prune.identity(masked[0], "weight")
    with pytest.raises(ValueError, match="cannot be copied"):
        compress(masked, vectors())
    with pytest.raises(TypeError, match="must be a torch"):
        compress(print, vectors())


def test_without_torch_pruning(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nonsmooth\[torch\]'"):
        compress(pair(nn.ReLU()), vectors())


# ── 2:4 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_of_four():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(6, 2)).requires_grad_(False)
    model[0].weight.copy_(NM(2, 4).prox(model[0].weight, 1.0))
    model[1].weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 0.0]] + [[0.0] * 4] * 3))  # three in one group
    model[2].weight.zero_()  # 4 does not divide 6
    found = semi_structured(model)
    left = dict(found.left)
    assert left["1.weight"] == left["2.weight"] == "it has no 2:4 pattern"
    if not torch.cuda.is_available():
        assert not found.converted and "needs a CUDA device" in left["0.weight"] and "cpu" in left["0.weight"]
    assert found.model is not model and torch.equal(found.model[1].weight, model[1].weight)


def test_two_of_four_where_the_device_has_it(monkeypatch):
    """The conversion itself, with the device's part played."""
    from nonsmooth.torch import semistructured

    calls = []
    monkeypatch.setattr(semistructured, "_why_dense", lambda weight: "")
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda w: calls.append(w) or w.clone())
    found = semi_structured(nn.Sequential(nn.Linear(4, 4), nn.Conv2d(1, 1, 4)))
    assert found.converted == ("0.weight",) and len(calls) == 1 and not found.model[0].weight.requires_grad

    def refuse(weight):
        raise RuntimeError("shape (4, 4) is too small.\nMore")

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", refuse)
    assert semi_structured(nn.Linear(4, 4)).left == (("weight", "torch refuses it (shape (4, 4) is too small)"),)

"""What each of several processes does, or one with all data: Proximal and measures, under DDP and FSDP2."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn, optim
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from nonsmooth.penalties import L1, NM, GroupLasso, Penalty, SparseGroupLasso
from nonsmooth.torch import (
    Monitor,
    Proximal,
    TargetSparsity,
    density,
    holder,
    kernels,
    kkt,
    measure_step,
    over,
    prox_residual,
    refit,
    sharpness,
    sparsity,
    stability,
    stationary_lam,
    trace,
)
from nonsmooth.torch.ranks import mean_over_ranks
from nonsmooth.torch.replica import replica

STEPS, BRIEF = 500, 40
SAMPLES = 48
Found = dict[str, Any]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(i, o, bias=False) for i, o in ((7, 9), (9, 10), (10, 5))]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).double()


def kinked() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 5)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(SAMPLES, 7, generator=generator, dtype=torch.float64)
    return x, torch.tanh(x[:, :5] - x[:, 1:6] * x[:, 2:7])


def share(rank: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's samples, as many as any other's."""
    x, y = data()
    return x.chunk(ranks)[rank], y.chunk(ranks)[rank]


def ragged(rank: int, ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """This rank's samples, the more of them the higher it is."""
    bounds = [SAMPLES * r * (r + 1) // (ranks * (ranks + 1)) for r in range(ranks + 1)]
    x, y = data()
    return x[bounds[rank] : bounds[rank + 1]], y[bounds[rank] : bounds[rank + 1]]


OPTIMISERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "momentum": lambda params: optim.SGD(params, lr=0.05, momentum=0.9),
    "adam": lambda params: optim.Adam(params, lr=0.01),
}


def proximal(name: str, model: nn.Sequential) -> Proximal:
    """L1 on the first layer, groups of inputs on the second, which FSDP2 cuts, and groups of outputs on the third."""
    pairs = [(L1(0.01), [model[0].weight]), (GroupLasso(0.01, dim=1), [model[2].weight]),
             (SparseGroupLasso(1e-3, 0.02), [model[4].weight])]  # fmt: skip
    return Proximal(OPTIMISERS[name](model.parameters()), pairs)


def train(model: nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor, steps: int, *after: Any) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        mse_loss(model(x), y).backward()
        optimizer.step()
        for controller in after:
            controller.step()


def values(model: nn.Module) -> list[torch.Tensor]:
    return [getattr(p.detach(), "full_tensor", p.detach)().clone() for p in model.parameters()]


# --- what each process does -----------------------------------------------------------------------------------------


def ddp(rank: int, ranks: int) -> Found:
    found = {}
    for name in OPTIMISERS:
        model = network()
        wrapped = DistributedDataParallel(model) if ranks > 1 else model
        train(wrapped, proximal(name, model), *share(rank, ranks), STEPS)
        found[name] = values(model)
    return found


def without_reduction(rank: int, ranks: int) -> Found:
    model = network()
    train(model, proximal("momentum", model), *share(rank, ranks), STEPS)
    return {"momentum": values(model)}


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model)


def fsdp(rank: int, ranks: int, names: Iterable[str] = OPTIMISERS, steps: int = STEPS) -> Found:
    found = {}
    for name in names:
        model = network()
        if ranks > 1:
            sharded(model)
        optimizer = proximal(name, model)
        train(model, optimizer, *share(rank, ranks), steps)
        found[name] = values(model)
        found[f"{name} density"] = [(r.nonzero, r.groups, r.alive) for r in density(optimizer).by_parameter]
        found[f"{name} penalty"] = float(optimizer.penalty_value())
    return found


def groups_cut_in_two(rank: int, ranks: int) -> Found:
    """The mutant that takes each part of a group for a group."""
    crossing, kernels.crossing = kernels.crossing, lambda p, dim: []
    try:
        return fsdp(rank, ranks, ["momentum"], BRIEF)
    finally:
        kernels.crossing = crossing


def controlled(rank: int, ranks: int) -> Found:
    """TargetSparsity of weights and of groups, and a refit, over shards."""
    model = network()
    if ranks > 1:
        sharded(model)
    optimizer = proximal("momentum", model)
    controller = TargetSparsity(optimizer, 0.4, 80, by="entry")
    of_groups = Proximal(optim.SGD(model.parameters(), lr=0.05), [(GroupLasso(1e-3, dim=1), [model[2].weight])])
    train(model, optimizer, *share(rank, ranks), 80, controller)
    alive = TargetSparsity(of_groups, 0.5, 100, of="groups")
    train(model, of_groups, *share(rank, ranks), 20, alive)
    found = {"lam": [*controller.lam, *alive.lam], "density": [*controller.density, *alive.density]}
    with refit(optimizer):
        train(model, optimizer, *share(rank, ranks), 10)
    return found | {"values": values(model)}


def counted_alone(rank: int, ranks: int) -> Found:
    """The mutant whose processes count their own zeros."""
    counts, sparsity.counts = sparsity.counts, lambda params, own: own
    try:
        return controlled(rank, ranks)
    finally:
        sparsity.counts = counts


PENALTIES: list[Penalty] = [
    L1(0.3, weights=torch.linspace(0, 2, 24).reshape(6, 4).numpy()),
    GroupLasso(0.8, dim=1, scale_by_size=True),
    SparseGroupLasso(0.1, 0.5, dim=-1),
    GroupLasso(0.8),
    NM(1, 2, dim=0),
]


def proxes(rank: int, ranks: int) -> Found:
    """Steps from random weights that lie in all manners: 6 rows on 4 ranks, columns, both, and copies of shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    line, square = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2))
    ways = [(line, [Shard(0)]), (line, [Shard(1)]), (square, [Replicate(), Shard(0)]), (square, [Shard(1), Shard(0)])]
    generator, found = torch.Generator().manual_seed(3), {}
    w, g = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    w[0, 1] = torch.nan
    for penalty in PENALTIES:
        for kind in (optim.SGD, optim.Adam) if isinstance(penalty, GroupLasso) else (optim.Adam,):
            alone = nn.Parameter(w.clone())
            everywhere = [nn.Parameter(distribute_tensor(w, *way, src_data_rank=None)) for way in ways]
            optimizer = Proximal(kind([alone, *everywhere], lr=0.7), penalty)
            for scale in (0.2, 1.0):
                alone.grad = scale * g
                for p, way in zip(everywhere, ways, strict=True):
                    p.grad = distribute_tensor(scale * g, *way, src_data_rank=None)
                optimizer.step()
            counted = [(r.nonzero, r.groups, r.alive) for r in density(optimizer).by_parameter]
            gathered = [p.full_tensor().detach() for p in everywhere]
            found[f"{penalty!r} {kind.__name__}"] = (alone.detach(), gathered, counted)
    return found


def measures(rank: int, ranks: int, over_ranks: bool = True) -> Found:
    """What takes a closure, of a network with kinks after a few steps of Adam; of four ranks not all of it."""
    model = kinked()
    optimizer = Proximal(optim.Adam(model.parameters(), lr=0.02), L1(1e-3), [model[0].weight])
    train(model, optimizer, *data(), 20)
    x, y = ragged(rank, ranks)

    def own() -> torch.Tensor:
        return mse_loss(model(x), y)

    loss = mean_over_ranks(own, model, weight=len(x)) if over_ranks and ranks > 1 else own
    params = list(model.parameters())
    found: Found = {
        "sharpness": sharpness(loss, params, k=2, tol=1e-9).value.tolist(),
        "stability": stability(optimizer, loss, tol=1e-9).ratio,
    }
    if ranks < 4:
        loader = DataLoader(TensorDataset(*share(rank, ranks)), batch_size=SAMPLES // 16)
        batches = over(loader, lambda batch: mse_loss(model(batch[0]), batch[1]))
        batches = mean_over_ranks(batches, model) if over_ranks and ranks > 1 else batches
        power: Any = loss()
        for _ in range(3):  # third derivatives
            slopes = torch.autograd.grad(power, params, create_graph=True)
            power = sum(g.square().sum() for g in slopes)
        found |= {
            "third": [g.detach() for g in slopes],
            "sharpness over a loader": sharpness(batches, params, tol=1e-9).value.tolist(),
            "kkt": [(r.distance, r.scale) for r in kkt(optimizer, loss).rows],
            "trace": trace(loss, params, samples=4).value,
            "prox_residual": prox_residual(optimizer, loss, unpenalised=True).value,
            "stationary_lam": stationary_lam(optimizer, loss).value,
            "holder": holder(loss, model, [0.01, 0.1], seeds=2).variations,
        }
    slopes = torch.autograd.grad(mse_loss(model(data()[0]), data()[1]), params)
    power: Any = loss()
    for _ in range(3):  # third derivatives
        slopes = torch.autograd.grad(power, params, create_graph=True)
        power = sum(g.square().sum() for g in slopes)
    found["third"] = [g.detach() for g in slopes]
    after = [p.detach() - 0.3 * g for p, g in zip(params, slopes, strict=True)]
    step = measure_step(loss, model, after, path=ranks < 4)
    for name in ("loss_before", "loss_after", "curvature", "length", "change", "flipped", "ties"):
        found[name] = getattr(step, name)
    for split in (step.frozen, step.path)[: 1 if ranks == 4 else 2]:
        found[split.method] = (split.smooth, split.kink, split.share, [s for _, s in split.by_layer])
    return found


def local_measures(rank: int, ranks: int) -> Found:
    return measures(rank, ranks, over_ranks=False)


def monitored(rank: int, ranks: int, folder: str = "") -> Found:
    """A monitor on each rank, whose clocks differ."""
    model, (x, y) = kinked(), share(rank, ranks)
    wrapped = DistributedDataParallel(model)
    optimizer = Proximal(optim.SGD(model.parameters(), lr=0.1, momentum=0.5), L1(1e-3), [model[0].weight])
    closure = mean_over_ranks(lambda: mse_loss(model(x), y), model)
    wanted: list[Any] = []
    own, Monitor._due = Monitor._due, lambda self: (wanted.append(decided := own(self)), decided)[1]
    clock, time.perf_counter = time.perf_counter, lambda: clock() * 10 ** (6 * rank)
    try:
        with Monitor(
            model, optimizer, closure, budget=0.01, allowance=20.0, folder=Path(folder) / "monitor"
        ) as monitor:
            train(wrapped, optimizer, x, y, 60)
    finally:
        Monitor._due, time.perf_counter = own, clock
    rows = [{k: v for k, v in row.items() if k != "at"} for row in monitor.rows]
    return {"rows": rows, "wanted": wanted, "made": monitor.made, "values": values(model)}


def said(call: Callable[[], Any]) -> str:
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def refused(rank: int, ranks: int) -> Found:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model, whole = sharded(network()), network()
    optimizer = proximal("momentum", model)
    x, y = share(rank, ranks)
    wrapped = DistributedDataParallel(whole)

    def one_fails() -> torch.Tensor:
        return mse_loss(whole(x), y) if rank == 0 else torch.ones(2).reshape(3)

    def fails_in_backward() -> torch.Tensor:
        loss = mse_loss(whole(x), y)
        return loss if rank == 0 else Broken.apply(loss)

    flat = FullyShardedDataParallel(network(), use_orig_params=True, device_id=torch.device("cpu"))
    batches = over([x] * (rank + 1), lambda b: whole(b).sum())
    return {
        "compile": said(lambda: Proximal(optim.SGD(model.parameters(), lr=0.1), L1(0.1), compile=True)),
        "flat": said(lambda: Proximal(optim.SGD(flat.parameters(), lr=0.1), GroupLasso(0.1))),
        "sharpness": said(lambda: sharpness(lambda: mse_loss(model(x), y), model.parameters())),
        "kkt": said(lambda: kkt(optimizer, lambda: mse_loss(model(x), y))),
        "step": said(lambda: measure_step(lambda: mse_loss(model(x), y), model, [])),
        "monitor": said(lambda: Monitor(model, optimizer, lambda: mse_loss(model(x), y))),
        "mean": said(lambda: mean_over_ranks(lambda: mse_loss(model(x), y), model)),
        "fails": said(lambda: sharpness(mean_over_ranks(one_fails, whole), whole.parameters())),
        "backward": said(lambda: sharpness(mean_over_ranks(fails_in_backward, whole), whole.parameters())),
        "step fails": said(lambda: measure_step(mean_over_ranks(one_fails, whole), whole, values(whole))),
        "wrapper": said(lambda: mean_over_ranks(lambda: mse_loss(wrapped(x), y), whole)()),
        "params": said(lambda: mean_over_ranks(lambda: mse_loss(whole(x), y), whole[0])()),
        "batches": said(lambda: mean_over_ranks(batches, whole)),
        "weight": said(lambda: mean_over_ranks(one_fails, whole, weight=0)),
        "other": said(lambda: replica(model, kinked(), optimizer)),
    }


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, v: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken on purpose")


def copied(rank: int, ranks: int) -> Found:
    """Certificates and sharpness of a replica of what FSDP2 trains."""
    model = network()
    if ranks > 1:
        sharded(model)
    optimizer = proximal("adam", model)
    train(model, optimizer, *share(rank, ranks), 30)
    into, before = network(), values(model)
    other = replica(model, into, optimizer)
    x, y = share(rank, ranks)
    loss = mean_over_ranks(lambda: mse_loss(into(x), y), into)
    found = {
        "kkt": [(r.distance, r.scale) for r in kkt(other, loss).rows],
        "stability": stability(other, loss, tol=1e-9).ratio,
    }
    train(into, other, *data(), 5)  # goes on alone, and leaves the run as it is
    assert all(torch.equal(a, b) for a, b in zip(before, values(model), strict=True))
    return found | {"values": values(into)}


def resumed(rank: int, ranks: int) -> Found:
    """A run that is saved and loaded by torch.distributed.checkpoint half way."""
    from torch.distributed.checkpoint import state_dict as checkpoints

    options = checkpoints.StateDictOptions(full_state_dict=True)
    model = sharded(network())
    optimizer = proximal("momentum", model)
    train(model, optimizer, *share(rank, ranks), 15)
    saved = checkpoints.get_state_dict(model, optimizer, options=options)
    other = sharded(network())
    again = proximal("momentum", other)
    again.set_lam(0.0)
    checkpoints.set_state_dict(other, again, model_state_dict=saved[0], optim_state_dict=saved[1], options=options)
    for m, o in ((model, optimizer), (other, again)):
        train(m, o, *share(rank, ranks), 15)
    return {"straight": values(model), "resumed": values(other)}


SCENARIOS = {
    2: (ddp, without_reduction, fsdp, groups_cut_in_two, controlled, counted_alone, resumed, copied,
        measures, local_measures, monitored, refused),
    4: (proxes, measures),
}  # fmt: skip


def work(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=wait)
    try:
        found = {}
        for scenario in SCENARIOS[ranks]:
            found[scenario.__name__] = scenario(rank, ranks, **({"folder": folder} if scenario is monitored else {}))
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def spawned(ranks: int, folder: Path) -> list[dict[str, Found]]:
    torch.multiprocessing.spawn(work, (ranks, str(folder)), nprocs=ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]

"""Several processes do what one does with all the data: Proximal, certificates and measures, under DDP and FSDP2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nonsmooth.torch.ranks import mean_over_ranks
from processes import BRIEF, OPTIMISERS, Found, controlled, copied, fsdp, measures, spawned

rejected = pytest.raises(AssertionError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder):
    return spawned(2, folder)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return spawned(4, tmp_path_factory.mktemp("four"))


def numbers(thing: Any) -> torch.Tensor:
    """All numbers in nested lists, tuples and tensors, in their order."""
    if isinstance(thing, torch.Tensor):
        return thing.double().reshape(-1)
    if isinstance(thing, (list, tuple)):
        return torch.cat([numbers(t) for t in thing]) if thing else torch.zeros(0)
    return torch.tensor([float(thing)], dtype=torch.float64)


def law_agree(ranks: list[Found]) -> None:
    """Every rank has the same bits."""
    for other in ranks[1:]:
        assert other.keys() == ranks[0].keys()
        for name, value in ranks[0].items():
            assert torch.equal(numbers(other[name]).nan_to_num(7.5), numbers(value).nan_to_num(7.5)), name


def law_equal(found: Found, alone: Found, tolerance: float) -> None:
    """What several found is what one finds with all the data, to the tolerance of the largest number."""
    assert found
    for name, value in found.items():
        a, b = numbers(value), numbers(alone[name])
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max()), (name, value, alone[name])


def law_training(found: Found, alone: Found) -> None:
    """The same weights to rounding, and the same zeros, of which there are some and not all."""
    law_equal(found, alone, 1e-11)
    for name in OPTIMISERS & found.keys():
        for a, b in zip(found[name], alone[name], strict=True):
            assert torch.equal(a == 0, b == 0)
        zeros = [float((w == 0).double().mean()) for w in found[name]]
        assert all(0 < share < 1 for share in zeros), zeros


@pytest.fixture(scope="module")
def trained():
    return fsdp(0, 1)


def test_ddp_trains_as_one_process_does(two, trained):
    law_agree([r["ddp"] for r in two])
    law_training(two[0]["ddp"], trained)
    with rejected:
        law_training(two[0]["without_reduction"], trained)


def test_fsdp_trains_as_one_process_does(two, trained):
    law_agree([r["fsdp"] for r in two])
    law_training(two[0]["fsdp"], trained)
    with rejected:
        law_equal(two[0]["groups_cut_in_two"], fsdp(0, 1, ["momentum"], BRIEF), 1e-6)


def test_a_target_sparsity_and_a_refit_see_all_shards(two):
    law_agree([r["controlled"] for r in two])
    alone = controlled(0, 1)
    law_equal(two[0]["controlled"], alone, 1e-11)
    with rejected:
        law_equal(two[0]["counted_alone"], alone, 1e-6)


def test_a_sharded_run_goes_on_from_a_checkpoint(two):
    found = two[0]["resumed"]
    assert all(torch.equal(a, b) for a, b in zip(found["straight"], found["resumed"], strict=True))


def test_a_replica_is_measured_as_the_model_is(two):
    law_agree([r["copied"] for r in two])
    law_equal(two[0]["copied"], copied(0, 1), 1e-9)


@pytest.mark.parametrize("ranks", ["two", "four"])
def test_measures_over_ranks_are_those_of_all_samples(ranks, request):
    found, alone = request.getfixturevalue(ranks), measures(0, 1)
    law_agree([r["measures"] for r in found])
    law_equal(found[0]["measures"], alone, 1e-9)
    assert alone["flipped"] > 0 and alone["frozen"][1] != 0


def test_measures_of_a_ranks_own_samples_are_rejected(two):
    alone, local = measures(0, 1), two[0]["local_measures"]
    for name in local:
        if name not in ("length", "ties", "stationary_lam"):
            with rejected:
                law_equal({name: local[name]}, alone, 1e-6)
    with rejected:
        law_agree([r["local_measures"] for r in two])


@pytest.mark.parametrize("place", range(4), ids=["rows", "columns", "copies of rows", "both"])
def test_the_prox_of_shards_is_that_of_the_whole(four, place):
    for name, (alone, everywhere, counted) in four[0]["proxes"].items():
        a, b = everywhere[place], alone
        assert torch.equal(a.isnan(), b.isnan()) and bool(b.isnan().any()), name
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14, equal_nan=True)
        assert torch.equal(a == 0, b == 0), name
        assert counted[1 + place] == counted[0], name
    law_agree([r["proxes"] for r in four])


def test_the_first_rank_decides_what_a_monitor_measures(two, folder):
    first, second = (r["monitored"] for r in two)
    probes = [[row for row in r["rows"] if row["kind"] in ("step", "stability")] for r in (first, second)]
    assert first["rows"] == second["rows"] and first["made"]["step"] >= 3 and first["made"]["stability"] >= 3
    assert first["wanted"] != second["wanted"]  # had each gone by its own clock, they would wait for each other
    assert not any("error" in row for row in probes[0])
    written = (folder / "monitor" / "rows.jsonl").read_text().splitlines()
    assert len(written) == len(first["rows"])
    assert all(torch.equal(a, b) for a, b in zip(first["values"], second["values"], strict=True))


SENTENCES = {
    "compile": r"ValueError: Proximal: compile=True does not go with sharded parameters (DTensor); leave it out.",
    "flat": "ValueError: Proximal: FullyShardedDataParallel flattens parameters; shard with fully_shard instead.",
    "sharpness": "ValueError: sharpness: the parameters are sharded (DTensor); measure an unsharded copy, which",
    "kkt": "ValueError: kkt: the parameters are sharded (DTensor); measure an unsharded copy, which",
    "step": "ValueError: measure_step: the parameters are sharded (DTensor); measure an unsharded copy, which",
    "monitor": "ValueError: Monitor: the parameters are sharded (DTensor); measure an unsharded copy, which",
    "mean": "ValueError: mean_over_ranks: the parameters are sharded (DTensor); measure an unsharded copy, which",
    "fails": "ValueError: mean_over_ranks: on rank 1: RuntimeError: shape '[3]' is invalid for input of size 2",
    "backward": "ValueError: mean_over_ranks: on rank 1: RuntimeError: broken on purpose",
    "step fails": "ValueError: measure_step: on rank 1: RuntimeError: shape '[3]' is invalid for input of size 2",
    "wrapper": "ValueError: mean_over_ranks: on rank 0: ValueError: the closure calls a DistributedDataParallel, which",
    "params": "ValueError: mean_over_ranks: on rank 0: ValueError: the loss depends on a parameter of shape",
    "batches": "ValueError: mean_over_ranks: the ranks have different numbers of batches, [1, 2].",
    "weight": "ValueError: mean_over_ranks: weight is the number of this rank's samples, above 0, not 0.",
    "other": "ValueError: replica: 0.bias differs between model and into; give the same model unsharded.",
}


@pytest.mark.parametrize("what", SENTENCES)
def test_what_cannot_be_is_said_on_every_rank(two, what):
    for rank in two:
        assert rank["refused"][what].startswith(SENTENCES[what]), rank["refused"][what]


def test_a_wrong_closure_is_refused_where_there_is_one_process():
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match=r"^mean_over_ranks: closure must be a function that returns the loss or over"):
        mean_over_ranks(3.0, [w])
    with pytest.raises(ValueError, match=r"^mean_over_ranks: params must hold at least one parameter"):
        mean_over_ranks(lambda: w.sum(), [])
    with pytest.raises(ValueError, match=r"a tensor of shape \(2,\)"):
        mean_over_ranks(lambda: w, [w])()

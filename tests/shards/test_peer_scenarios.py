"""Scenarios that the tests of other streaming libraries have, as cases for this loader; each names where it is from."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import webdataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from prep.core.errors import UserError
from shards.loader import Loader
from shards.sampler import EpochSampler, rank_slice
from shards.stream import ShardDataset
from tests.shards.made import make_shards

SIZES = (5, 1, 9, 2, 11)
SAMPLES = sum(SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("shards"), {"train": SIZES})


@pytest.fixture(scope="module")
def dataset(folder: Path) -> ShardDataset:
    return ShardDataset(folder, ["Made"], "train")


def loader(dataset: ShardDataset, **changes: Any) -> Loader:
    return Loader(dataset, **({"batch_size": 3, "seed": 1, "length_bucket_batches": 2} | changes))


def keys(batches: Any) -> list[list[str]]:
    return [batch.keys for batch in batches]


def of_ranks(dataset: ShardDataset, state: dict[str, Any] | None = None, **of: Any) -> list[list[str]]:
    """Return the global batches that some ranks yield together, resumed from a state."""
    ranks = [loader(dataset, rank=rank, **of) for rank in range(of["world_size"])]
    if state:
        for rank in ranks:
            rank.load_state_dict(state)
    shares = zip(*(keys(rank) for rank in ranks), strict=True)
    return [sorted(key for share in step for key in share) for step in shares]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24, 30, 40, 60])
def test_a_global_batch_is_the_same_on_any_number_of_nodes(nodes: int) -> None:
    """The relaxed partition of mosaicml-streaming: 10,000 samples, 960 a batch, nodes of 8 ranks, any drop first."""
    epoch = EpochSampler([100] * 100, batch_size=960, seed=9, window=7)
    steps = [epoch[step] for step in range(len(epoch))]
    assert sorted(np.concatenate(steps)) == list(range(10_000))
    for step, whole in reversed(list(enumerate(steps))):
        batch = EpochSampler([100] * 100, batch_size=960, seed=9, window=7)[step]  # without those before it
        shares = [rank_slice(batch, rank, 8 * nodes) for rank in range(8 * nodes)]
        assert sorted(np.concatenate(shares)) == sorted(whole)
        assert {len(share) for share in shares} <= {len(whole) // len(shares), -(-len(whole) // len(shares))}


def test_more_ranks_than_samples_of_a_batch_are_an_error(dataset: ShardDataset) -> None:
    """The walk of mosaicml-streaming's partition, of 1,760 places for 1,000 samples; Energon's too few samples."""
    assert all(len(step) == 2 for step in of_ranks(dataset, batch_size=2, world_size=2))
    with pytest.raises(UserError, match="28 train samples in batches of 2 leave some of 3 ranks without work"):
        loader(dataset, batch_size=2, world_size=3)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 9), (2, 5), (3, 8)])
def test_more_ranks_and_workers_than_shards_read_each_sample_once(
    dataset: ShardDataset, world_size: int, workers: int
) -> None:
    """webdataset and the split by node of `datasets` give some workers no shard."""
    steps = of_ranks(dataset, world_size=world_size, workers=workers, batch_size=7)
    assert sorted(key for step in steps for key in step) == sorted(dataset.keys)
    assert len(dataset.keys) == SAMPLES


def test_a_shard_without_samples_is_refused(tmp_path: Path) -> None:
    """webdataset reads over it; no stage here writes one."""
    with pytest.raises(UserError, match=r"is not a manifest \(Expected `int` >= 1 - at `\$.shards\[1\].samples`\)"):
        ShardDataset(make_shards(tmp_path, {"train": [2, 0, 1]}), ["Made"], "train")


def test_a_loader_goes_back_to_any_of_its_states_in_any_order(dataset: ShardDataset) -> None:
    """grain: all states of two epochs, loaded into the loader that gave them; torchdata: saved again as they are."""
    running = loader(dataset, workers=2)
    states, batches = [json.dumps(running.state_dict())], []
    for _ in range(2):
        for batch in running:
            batches.append(batch.keys)
            states.append(json.dumps(running.state_dict()))
    for at in np.random.default_rng(0).permutation(len(batches)).tolist():
        running.load_state_dict(json.loads(states[at]))
        assert json.dumps(running.state_dict()) == states[at]
        assert next(iter(running)).keys == batches[at]
        assert json.dumps(running.state_dict()) == states[at + 1]
    types = [{name: type(value) for name, value in json.loads(state).items()} for state in states]
    assert all(one == types[0] for one in types)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_that_was_left_continues_in_the_next_one(dataset: ShardDataset, workers: int) -> None:
    """litData: a loop is left, the loader gets its own state, then come the rest, a whole epoch and another."""
    whole = loader(dataset)
    epochs = [keys(whole) for _ in range(3)]
    running = loader(dataset, workers=workers)
    seen = []
    for batch in running:
        seen.append(batch.keys)
        if len(seen) == 4:
            break
    running.load_state_dict(running.state_dict())
    assert [seen + keys(running), keys(running)] == epochs[:2]
    running.load_state_dict(running.state_dict())  # between epochs
    assert (running.epoch, running.step) == (2, 0)
    assert keys(running) == epochs[2]


def test_a_state_that_is_loaded_after_the_iterator_was_made_counts(dataset: ShardDataset) -> None:
    """torchdata: an iterator that is made before the state is loaded must not start at the first sample."""
    running = loader(dataset)
    expected = keys(running)
    running = loader(dataset)
    next(iter(running))
    state = running.state_dict()
    resumed = loader(dataset, workers=1)
    batches = iter(resumed)
    resumed.load_state_dict(state)
    assert keys(batches) == expected[1:]


def test_a_state_is_resumed_on_eight_ranks_then_two_then_eight(dataset: ShardDataset) -> None:
    """litData: an elastic resume, and a second checkpoint after it."""
    expected = of_ranks(dataset, world_size=1, batch_size=9)
    state: dict[str, Any] = {}
    for step, world_size in enumerate((7, 2, 7)):
        assert of_ranks(dataset, state, world_size=world_size, batch_size=9) == expected[step:]
        rank = loader(dataset, rank=world_size - 1, world_size=world_size, batch_size=9, workers=world_size)
        if state:
            rank.load_state_dict(state)
        next(iter(rank))
        state = json.loads(json.dumps(rank.state_dict()))


def test_resuming_when_some_workers_have_nothing_left(tmp_path: Path) -> None:
    """litData's issue 563: three samples, a batch of one, two workers."""
    three = ShardDataset(make_shards(tmp_path, {"train": [1, 1, 1]}), ["Made"], "train")
    given: dict[str, Any] = {"batch_size": 1, "seed": None, "workers": 2}
    expected = keys(loader(three, **given))
    for step in range(3):
        running = loader(three, **given)
        seen = [batch.keys for _, batch in zip(range(step), running)]  # noqa: B905
        running.load_state_dict(running.state_dict())
        assert seen + keys(running) == expected


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_readers_of_others_split_these_shards_over_nodes(
    folder: Path, world_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """webdataset by shard and `datasets` by sample or shard: each sample once, though ranks get uneven numbers."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    tars = sorted(str(path) for path in folder.rglob("*.tar"))
    once = [f"B{number:09d}" for number in range(SAMPLES)]
    found = []
    for rank in range(min(world_size, len(tars))):  # a rank without a shard is an error of webdataset
        shards = webdataset.SimpleShardList(tars[rank::world_size])  # as split_by_node does in a group of processes
        pipeline = webdataset.DataPipeline(shards, webdataset.split_by_worker, webdataset.tarfile_to_samples())
        found += [sample["__key__"] for sample in DataLoader(pipeline, batch_size=None, num_workers=2 * (rank < 1))]
    assert sorted(found) == once
    loaded = datasets.load_dataset(
        "webdataset", data_files=tars, split="train", streaming=True, cache_dir=str(tmp_path)
    )
    parts = [split_dataset_by_node(loaded, rank, world_size) for rank in range(world_size)]
    assert sorted(row["__key__"] for part in parts for row in part) == once

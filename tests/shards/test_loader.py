"""The loader on sample ids: any number of ranks, workers and shards, resumed after any step."""

import json
import pickle
import weakref
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from prep.core import files, writers
from prep.core.errors import UserError
from shards import manifest
from shards.images.pixels import decode
from shards.loader import Loader
from shards.pool import Pool
from shards.prefetch import DEPTH
from shards.stream import ShardDataset
from shards.tokens import TokenizationConfig
from tests.shards import damage
from tests.shards.made import HOW, SIDE, make_shards

SIZES = {1: [37], 7: [5, 1, 9, 2, 11, 3, 8], 64: [i % 3 + 1 for i in range(64)]}


@pytest.fixture(scope="module", params=[1, 7, 64])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ShardDataset:
    folder = tmp_path_factory.mktemp("shards")
    half = len(SIZES[request.param]) // 2
    make_shards(folder, {"train": SIZES[request.param][half:]}, "Second")
    if half:
        make_shards(folder, {"train": SIZES[request.param][:half]}, "First")
    return ShardDataset(folder, ["First", "Second"] if half else ["Second"], "train")


def loader(dataset: ShardDataset, **changes: Any) -> Loader:
    return Loader(dataset, **({"batch_size": 8, "seed": 1, "length_bucket_batches": 3} | changes))


def keys(batches: Any) -> list[list[str]]:
    return [batch.keys for batch in batches]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_each_sample_once_in_the_same_global_batches(dataset: ShardDataset, world_size: int, workers: int) -> None:
    expected = keys(loader(dataset))
    ranks = [list(loader(dataset, rank=rank, world_size=world_size, workers=workers)) for rank in range(world_size)]
    assert all(len(batches) == len(expected) for batches in ranks)
    for step, whole in enumerate(expected):
        shares = [batches[step] for batches in ranks]
        assert sorted(key for share in shares for key in share.keys) == sorted(whole)
        assert {share.global_size for share in shares} == {len(whole)}
        sizes = [len(share.keys) for share in shares]
        assert max(sizes) - min(sizes) <= 1
    assert sorted(key for batch in expected for key in batch) == sorted(dataset.keys)


WEIGHED: dict[str, Any] = {"mixture": {"Second": 1.5}, "skip": [(2, 3), (5, 5)]}  # 5 is the last step of some


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("changes", [{}, WEIGHED], ids=["plain", "weighed"])
def test_a_loader_resumed_after_any_step_continues_like_an_uninterrupted_one(
    dataset: ShardDataset, workers: int, changes: dict[str, Any]
) -> None:
    running, states, epochs = loader(dataset, **changes), [], []
    for epoch in range(2):
        epochs.append([])
        for batch in running:
            epochs[epoch].append(batch.keys)
            states.append(json.dumps(running.state_dict()))
    for step, state in enumerate(states[: len(epochs[0])]):
        resumed = loader(dataset, workers=workers, **changes)
        resumed.load_state_dict(json.loads(state))
        assert keys(resumed) == (epochs[0][step + 1 :] or epochs[1])  # after the last step comes the next epoch
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_mixture_reads_a_category_as_often_as_it_says_on_any_ranks(dataset: ShardDataset, world_size: int) -> None:
    ranks = [
        loader(dataset, rank=rank, world_size=world_size, workers=rank, mixture={"Second": 1.5})
        for rank in range(world_size)
    ]
    in_two_epochs: Counter[str] = Counter()
    for _ in range(2):
        in_epoch = Counter(key for rank in ranks for batch in rank for key in batch.keys)
        assert {in_epoch[key] for key in dataset.keys if key.startswith("Second/")} == {1, 2}
        in_two_epochs += in_epoch
    assert in_two_epochs == {key: 3 if key.startswith("Second/") else 2 for key in dataset.keys}


def test_the_seed_decides_which_samples_of_a_mixture_are_read_twice(dataset: ShardDataset) -> None:
    def twice(seed: int) -> set[str]:
        read = Counter(chain.from_iterable(keys(loader(dataset, seed=seed, mixture={"Second": 1.5}))))
        return {key for key, times in read.items() if times == 2}

    assert len({frozenset(twice(seed)) for seed in range(5)}) > 1


def test_a_step_that_is_left_out_is_missing_and_no_other_changes(dataset: ShardDataset) -> None:
    left_out = loader(dataset, skip=[(2, 3), (len(loader(dataset)) + 1,) * 2])
    whole = loader(dataset)
    for missing in ({1, 2}, {0}):
        batches = keys(whole)
        assert list(left_out.remaining()) == [step for step in range(len(whole)) if step not in missing]
        assert keys(left_out) == [batch for step, batch in enumerate(batches) if step not in missing]


def test_steps_are_left_out_after_a_state_and_not_before_it(dataset: ShardDataset) -> None:
    running = loader(dataset, skip=[(1, 1)])
    batches = keys(running)
    running = loader(dataset, skip=[(1, 1)])
    next(iter(running))
    state = json.loads(json.dumps(running.state_dict()))  # of after step 2
    resumed = loader(dataset, skip=[(1, 1), (3, 3)])
    resumed.load_state_dict(state)
    assert keys(resumed) == batches[2:]
    for skip, message in {
        (
            (1, 2),
        ): "the state to resume, of after step 2, took step 2, which train.skip names; change train.skip from step 3",
        (): "the state to resume, of after step 2, left out step 1, which train.skip does not name",
    }.items():
        with pytest.raises(UserError, match=message):
            loader(dataset, skip=skip).load_state_dict(state)
    older = {name: value for name, value in loader(dataset).state_dict().items() if name not in {"mixture", "skip"}}
    loader(dataset).load_state_dict(older)


def test_a_loader_can_be_resumed_repeatedly_on_other_ranks_and_workers(dataset: ShardDataset) -> None:
    expected = keys(loader(dataset)) + keys(_at_epoch(dataset, 1))
    state = loader(dataset).state_dict()
    seen: list[list[str]] = []
    for turn in range(len(expected)):
        world_size, workers = turn % 4 + 1, turn % 3
        ranks = [loader(dataset, rank=rank, world_size=world_size, workers=workers) for rank in range(world_size)]
        step = []
        for rank in ranks:
            rank.load_state_dict(state)
            step += next(iter(rank)).keys
        assert len({json.dumps(rank.state_dict()) for rank in ranks}) == 1
        state = json.loads(json.dumps(ranks[0].state_dict()))
        seen.append(sorted(step))
    assert seen == [sorted(batch) for batch in expected]


def _at_epoch(dataset: ShardDataset, epoch: int) -> Loader:
    later = loader(dataset)
    later.epoch = epoch
    return later


def test_a_state_is_small_and_that_of_another_run_is_rejected(dataset: ShardDataset, tmp_path: Path) -> None:
    state = loader(dataset).state_dict()
    assert json.loads(json.dumps(state)) == state
    assert len(state) == 8
    others = {"batch_size": 4, "seed": 2, "length_bucket_batches": 1, "mixture": {"Second": 2.0}}
    for name, change in others.items():
        with pytest.raises(UserError, match=f"the state to resume has {name} "):
            loader(dataset, **{name: change}).load_state_dict(state)
    other = ShardDataset(make_shards(tmp_path, {"train": [9]}), ["Made"], "train")
    with pytest.raises(UserError, match="the state to resume has shards "):
        loader(other).load_state_dict(state)


def test_a_loader_can_be_pickled(dataset: ShardDataset) -> None:
    next(iter(loader(dataset)))  # shards are open now
    assert keys(loader(pickle.loads(pickle.dumps(dataset)))) == keys(loader(dataset))


def test_a_batch_matches_its_samples(dataset: ShardDataset) -> None:
    at = {key: i for i, key in enumerate(dataset.keys)}
    running = loader(dataset)
    tokens = places = 0
    for batch in running:
        assert batch.images.shape == (len(batch.keys), 3, SIDE, SIDE)
        assert batch.mask.any(0).all()  # no column is only padding
        tokens, places = tokens + int(batch.mask.sum()), places + batch.mask.numel()
        for row, key in enumerate(batch.keys):
            metadata = dataset.metadata(at[key])
            number = int(key.split("/B")[1])
            assert (batch.images[row].permute(1, 2, 0).numpy() == decode(dataset.image(at[key]))).all()
            assert int(batch.images[row, 0, 0, 0]) == pytest.approx(number % 256, abs=2)
            assert int(batch.rating_number[row]) == metadata["rating_number"] == number
            assert int(batch.review_count[row]) == 2 * number
            assert float(batch.label[row]) == pytest.approx(metadata["average_rating"])
            assert int(batch.mask[row].sum()) == dataset.lengths(np.array([at[key]]))[0]
    assert running.padding == pytest.approx(1 - tokens / places)


def test_without_options_a_loader_has_read_nothing_and_sorts_nothing(dataset: ShardDataset) -> None:
    plain = Loader(dataset, batch_size=8, seed=1)
    assert (plain.damaged, plain.padding) == ([], 0)
    assert keys(plain) == keys(loader(dataset, length_bucket_batches=1))


@pytest.mark.parametrize("workers", [None, 0, 1, 2])
def test_workers_are_threads_that_read_ahead_and_without_them_a_batch_is_read_on_demand(
    dataset: ShardDataset, workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, batch = [], ShardDataset.batch

    def noted(*args: Any) -> Any:
        threads.append(get_ident())
        return batch(*args)

    monkeypatch.setattr(ShardDataset, "batch", noted)
    running = loader(dataset) if workers is None else loader(dataset, workers=workers)
    next(batches := iter(running))
    if not workers:
        assert threads == [get_ident()]
    list(batches)
    assert len(threads) == len(running)
    assert get_ident() not in threads if workers else set(threads) == {get_ident()}
    assert len(set(threads)) == max(1, workers or 0)


def test_length_bucketing_reduces_padding_and_changes_no_sample(tmp_path: Path) -> None:
    dataset = ShardDataset(make_shards(tmp_path, {"train": [200]}, words=28), ["Made"], "train")
    drawn, pooled = loader(dataset, length_bucket_batches=1), loader(dataset, length_bucket_batches=25)
    assert sorted(chain.from_iterable(keys(drawn))) == sorted(chain.from_iterable(keys(pooled)))
    assert 0 < pooled.padding < drawn.padding / 2


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_batch_is_never_overwritten_and_the_memory_of_a_dropped_one_is_used_again(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ShardDataset(make_shards(tmp_path, {"train": [200]}), ["Made"], "train")
    at = {key: i for i, key in enumerate(dataset.keys)}
    batches = list(loader(dataset, workers=workers))  # keeps them all
    parts = [batch.images[1:, 0].numpy() for batch in loader(dataset, workers=workers)]  # keeps only views
    for batch, part in zip(batches, parts, strict=True):
        expected = np.stack([decode(dataset.image(at[key])) for key in batch.keys]).transpose(0, 3, 1, 2)
        assert (batch.images.numpy() == expected).all()
        assert (part == expected[1:, 0]).all()
    taken = []
    take = Pool.take

    def noted(pool: Pool, *shape: int) -> Any:
        array = take(pool, *shape)
        taken.append(array.base)
        return array

    monkeypatch.setattr(Pool, "take", noted)
    for _ in loader(dataset, workers=workers):
        pass
    assert len({id(memory) for memory in taken}) <= 2 + (DEPTH + 1) * workers < len(taken)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_memory_of_many_dropped_batches_is_given_back(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = ShardDataset(make_shards(tmp_path, {"train": [400]}), ["Made"], "train")
    taken, take = [], Pool.take

    def noted(pool: Pool, *shape: int) -> Any:
        array = take(pool, *shape)
        taken.append(weakref.ref(array.base))
        return array

    monkeypatch.setattr(Pool, "take", noted)
    running = iter(loader(dataset, workers=workers))
    held = list(islice(running, 40))
    assert len({id(memory()) for memory in taken if memory() is not None}) >= 40
    del held
    assert len({id(memory()) for memory in taken if memory() is not None}) <= 2 + 2 * (DEPTH + 1) * max(1, workers)


def test_workers_and_epochs_share_open_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShardDataset(make_shards(tmp_path, {"train": [9] * 5}), ["Made"], "train")
    first = keys(loader(dataset, workers=3))
    monkeypatch.setattr(dataset.shards.location, "local_path", tmp_path / "gone")
    assert keys(loader(dataset, workers=3)) == first


def _break(folder: Path, number: int) -> None:
    """Damage the JPEG of a sample in its tar."""
    tar = folder / "Made/train-000.tar"
    content = bytearray(tar.read_bytes())
    at = content.index(b"\xff\xd8", content.index(f"B{number:09d}.jpg".encode()))
    content[at : at + 100] = bytes(100)
    tar.write_bytes(content)
    damage.reseal(folder / "Made")  # as whoever made the shards would have written it


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_stops_or_is_counted_within_a_budget(tmp_path: Path, workers: int) -> None:
    make_shards(tmp_path, {"train": [20]})
    _break(tmp_path, 3)
    _break(tmp_path, 11)
    dataset = ShardDataset(tmp_path, ["Made"], "train")
    with pytest.raises(
        UserError, match=r"1 images cannot be read, over the budget of 0.0% of 20 .*B0000000.*train-000"
    ):
        list(loader(dataset, workers=workers))
    with pytest.raises(UserError, match="2 images cannot be read, over the budget of 5.0%"):
        list(loader(dataset, workers=workers, max_damaged_fraction=0.05))
    running = loader(dataset, workers=workers, max_damaged_fraction=0.1)
    without = [key for batch in running for key, has in zip(batch.keys, batch.has_image, strict=True) if not has]
    assert sorted(without) == ["Made/B000000003", "Made/B000000011"]
    assert len(running.damaged) == 2
    # every rank yields all its batches, whichever reads the damaged image
    ranks = [list(loader(dataset, rank=r, world_size=2, max_damaged_fraction=0.2)) for r in range(2)]
    assert len(ranks[0]) == len(ranks[1])
    assert sum(len(batch.keys) for rank in ranks for batch in rank) == 20
    # and has the budget of its own samples
    with pytest.raises(UserError, match="1 images cannot be read, over the budget of 5.0%"):
        for r in range(2):
            list(loader(dataset, workers=workers, rank=r, world_size=2, max_damaged_fraction=0.05))


def test_an_image_of_another_size_is_damaged(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [20]})
    path = tmp_path / "Made" / manifest.MANIFEST_FILE
    about = files.read_json(path)
    about["parameters"]["images"]["resolution"] = 2 * SIDE
    writers.write_json(path, about)
    larger = loader(ShardDataset(tmp_path, ["Made"], "train"), max_damaged_fraction=1)
    list(larger)
    assert any(f"it has {SIDE} x {SIDE} px, expected {2 * SIDE} x {2 * SIDE}" in what for what in larger.damaged)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_file_is_a_one_line_error_with_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UserError, match="manifest.json does not exist; run `dvc repro`"):
        ShardDataset(tmp_path, ["Made"], "train")
    dataset = ShardDataset(make_shards(tmp_path, {"train": [20]}), ["Made"], "train")
    with pytest.raises(UserError, match="has no other samples of Made"):
        ShardDataset(tmp_path, ["Made"], "other")
    with pytest.raises(UserError, match="leave some of 9 ranks without work; raise train.batch_size"):
        loader(dataset, world_size=9)
    assert len(loader(dataset, world_size=6)) == 3  # batches of 7, 7 and 6 samples
    (tmp_path / "Made/train-000.tar").unlink()
    with pytest.raises(UserError, match=r"^[^\n]*train-000.tar does not exist; run `dvc checkout`[^\n]*$"):
        list(loader(dataset, workers=workers))
    (tmp_path / "Made/train-000.arrow").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"^[^\n]*train-000.arrow cannot be read[^\n]*$"):
        list(loader(ShardDataset(tmp_path, ["Made"], "train"), workers=workers))


def test_incompatible_categories_are_rejected(tmp_path: Path) -> None:
    make_shards(tmp_path, {"train": [3]}, "One")
    make_shards(tmp_path, {"train": [3]}, "Two", HOW._replace(max_tokens=9))
    with pytest.raises(UserError, match="Two and One differ in tokens"):
        ShardDataset(tmp_path, ["One", "Two"], "train")


@pytest.mark.parametrize("workers", [0, 2])
def test_token_ids_of_another_tokenizer_are_stored_and_logged_once(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    make_shards(tmp_path / "short", {"train": [5, 6]})
    tokenization = TokenizationConfig(HOW.name, ("description",), 9)
    make_shards(tmp_path / "long", {"train": [5, 6]}, tokenization=tokenization)
    with caplog.at_level("INFO"):
        dataset = ShardDataset(tmp_path / "short", ["Made"], "train", tokenization)
        anew = list(loader(dataset, workers=workers))
        assert caplog.text.count("token ids are recomputed") == 1
        own = ShardDataset(tmp_path / "long", ["Made"], "train", tokenization)
        assert caplog.text.count("token ids are recomputed") == 1
    for ours, theirs in zip(anew, loader(own), strict=True):
        assert (ours.keys, ours.tokens.tolist()) == (theirs.keys, theirs.tokens.tolist())
    assert len(list((files.store() / "tokens").glob("*.arrow"))) == 2
    stored = sorted((files.store() / "tokens").glob("*.arrow"))
    known = [files.sha256(path) for path in stored]
    damage.set_index(stored[0], lambda rows: rows[0].update(tokens=[7]))
    repaired = ShardDataset(tmp_path / "short", ["Made"], "train", tokenization)
    assert [batch.tokens.tolist() for batch in loader(repaired)] == [batch.tokens.tolist() for batch in anew]
    assert [files.sha256(path) for path in stored] == known
    (tmp_path / "short/Made/train-001.tar").write_bytes(b"no tar at all" * 1000)
    damage.reseal(tmp_path / "short/Made")
    again = ShardDataset(tmp_path / "short", ["Made"], "train", tokenization._replace(max_tokens=8))
    with pytest.raises(UserError, match=r"train-001.tar cannot be indexed .* run `effimini lint`"):
        list(loader(again, workers=workers))
    assert dataset.fingerprint != own.fingerprint
    assert own.fingerprint == ShardDataset(tmp_path / "long", ["Made"], "train").fingerprint


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_of_torch_gives_decoded_batches(dataset: ShardDataset, workers: int) -> None:
    made = DataLoader(dataset, batch_size=8, num_workers=workers, collate_fn=ShardDataset.collate)  # type: ignore[arg-type]
    batches = list(made)
    assert [key for batch in batches for key in batch.keys] == dataset.keys
    for number, batch in enumerate(batches):
        own = dataset.batch(np.arange(8 * number, 8 * number + len(batch.keys)), len(batch.keys))
        assert torch.equal(batch.images, own.images)
        assert torch.equal(batch.tokens, own.tokens)
        assert batch.global_size == own.global_size

"""The steps that `batch` and `where` name are those of a real loader, on any ranks and workers and after a resume."""

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from effimini import cli
from prep.core import buckets
from prep.core.errors import UserError
from prep.core.params import Params
from shards import steps as steps_module
from shards.loader import Loader
from shards.steps import Place, Steps, place_table, steps
from shards.stream import ShardDataset
from tests.shards import made
from tests.shards.made import HOW, MINILM, make_shards, sample

EPOCHS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    both = tmp_path_factory.mktemp("shards")
    make_shards(both, {"train": [i % 4 + 1 for i in range(70)]}, "First")
    return make_shards(both, {"train": [5, 1, 9, 2], "test": [1]}, "Second")


MIXTURE = {"First": 0.9, "Second": 2.25}
SKIP = (3, "24-26", 40)  # over the end of the first epoch


@pytest.fixture(params=[(1, {}, ()), (3, {}, SKIP), (1000, {}, ()), (1, MIXTURE, ()), (3, MIXTURE, SKIP)], ids=str)
def of(request: pytest.FixtureRequest, make_params: Callable[..., Params], folder: Path) -> Params:
    length_bucket_batches, mixture, skip = request.param
    changes = {
        "source.categories": ["First", "Second"],
        "model.text.name": MINILM,
        "text.fields": list(HOW.fields),
        "text.max_tokens": HOW.max_tokens,
        "train.batch_size": 8,
        "train.epochs": EPOCHS,
        "train.seed": 5,
        "train.length_bucket_batches": length_bucket_batches,
        "train.mixture": mixture,
        "train.skip": skip,
        "model.hashed_ngrams": 0,
    }
    return make_params(**changes)


def loader(params: Params, folder: Path, **where: int) -> Loader:
    dataset = ShardDataset(folder, params.source.categories, "train", HOW)
    recipe = params.train
    bucket, skip = recipe.length_bucket_batches, recipe.skipped
    settings = {"length_bucket_batches": bucket, "mixture": recipe.mixture, "skip": skip}
    return Loader(dataset, batch_size=8, seed=recipe.seed, **settings, **where)  # type: ignore[arg-type]


def seen(params: Params, folder: Path, world_size: int, workers: int, resumed_after: int) -> dict[int, list[str]]:
    """Return the ids of each step of a run on some ranks, resumed on others after a number of batches of each epoch."""
    found = {}
    for epoch in range(EPOCHS):
        ranks = [loader(params, folder, rank=r, world_size=world_size, workers=workers) for r in range(world_size)]
        for rank in ranks:
            rank.epoch = epoch
        # a loader is at the step after its batch; the range comes first, so that no further batch is taken
        first = [[(rank.step, batch.keys) for _, batch in zip(range(resumed_after), rank)] for rank in ranks]  # noqa: B905
        state = json.loads(json.dumps(ranks[0].state_dict()))
        others = [loader(params, folder, rank=r, world_size=3, workers=1) for r in range(3)]
        for rank in others:
            rank.load_state_dict(state)
        rest = [[(rank.step, batch.keys) for batch in rank] for rank in others]
        for ranks_of in (first, rest):
            for shares in zip(*ranks_of, strict=True):
                (step,) = {step for step, _ in shares}
                whole = [""] * sum(len(share) for _, share in shares)
                for rank, (_, share) in enumerate(shares):
                    whole[rank :: len(shares)] = share
                found[epoch * len(others[0]) + step] = whole
    return found


@pytest.mark.parametrize(("world_size", "workers", "resumed_after"), [(1, 0, 0), (2, 3, 7), (4, 1, 20)])
def test_the_steps_are_those_of_a_loader(
    of: Params, folder: Path, world_size: int, workers: int, resumed_after: int
) -> None:
    asked = steps(of, folder)
    run = seen(of, folder, world_size, workers, resumed_after)
    steps_of_run = range(1, EPOCHS * asked.per_epoch + 1)
    assert set(run) == set(steps_of_run) - ({3, 24, 25, 26, 40} if of.train.skip else set())
    without_skip = steps(dataclasses.replace(of, train=dataclasses.replace(of.train, skip=())), folder)
    for step in steps_of_run:
        found = asked.batch(step)
        assert found.skipped is (step not in run)
        assert found.ids == (without_skip.batch(step).ids if found.skipped else run[step])
        if step % 7:
            continue
        epoch, step_of_epoch = divmod(step - 1, asked.per_epoch)
        again = asked.batch(step_of_epoch + 1, epoch + 1)
        assert again == found
        assert (again.epoch, again.step, again.step_of_run) == (epoch + 1, step_of_epoch + 1, step)


def test_where_is_the_inverse_of_batch(of: Params, folder: Path) -> None:
    asked = steps(of, folder)
    places: dict[str, list[tuple[int, int, int, int, bool]]] = {}
    for step in range(1, EPOCHS * asked.per_epoch + 1):
        found = asked.batch(step)
        for position, item in enumerate(found.ids):
            places.setdefault(item, []).append((found.epoch, found.step, step, position, found.skipped))
    in_epochs = {len({epoch for epoch, *_ in at}) for at in places.values()}
    assert in_epochs == ({EPOCHS} if not of.train.mixture else {EPOCHS - 1, EPOCHS})
    for item, at in list(places.items())[::6]:
        told = asked.where(item)
        assert {place.id for place in told} == {item}
        found_at = [(place.epoch, place.step, place.step_of_run, place.position, place.skipped) for place in told]
        assert found_at == at
        assert all(place.tar.startswith(f"{item.partition('/')[0]}/train-") for place in told)
        assert asked.where(item, [2]) == [place for place in told if place.epoch == 2]


@pytest.fixture
def asked(make_params: Callable[..., Params], folder: Path) -> Steps:
    return steps(make_params(**{"source.categories": ["First", "Second"], "train.length_bucket_batches": 1}), folder)


def test_few_indexes_of_shards_in_item_order_are_read(
    make_params: Callable[..., Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shards of this project are so; `make_shards` makes others, of which all are read."""
    keys = pa.array([f"B{number:09d}" for number in range(400)])
    ordered = keys.take(pa.array(np.argsort(buckets.item_order(keys)))).to_pylist()
    numbers = iter([*ordered[::2], *ordered])
    monkeypatch.setattr(
        made, "sample", lambda *given: (sample(*given)[0] | {"parent_asin": next(numbers)}, sample(*given)[1])
    )
    make_shards(tmp_path, {"train": [10] * 20}, "One")
    make_shards(tmp_path, {"train": [10] * 40}, "Two")
    asked = steps(make_params(**{"source.categories": ["One", "Two"], "train.length_bucket_batches": 1}), tmp_path)
    read: list[int] = []
    unverified = asked._shards.unverified
    monkeypatch.setattr(asked._shards, "unverified", lambda shard: (read.append(shard), unverified(shard))[1])
    least = []
    for number in range(0, 400, 3):
        read.clear()
        in_both = {f"One/train-{number // 20:03d}.tar"} if number % 2 == 0 else set()
        assert {place.tar for place in asked.where(ordered[number], [1])} == {
            f"Two/train-{number // 10:03d}.tar"
        } | in_both
        least.append(len(set(read)))
        assert least[-1] <= 12
    assert np.mean(least) <= 6  # 3 of each category
    read.clear()
    with pytest.raises(UserError, match="B00000000x is not in the training split of One, Two in "):
        asked.where("B00000000x")
    assert set(read) == set(range(60))  # an id that is nowhere


def test_token_ids_of_another_tokenizer_give_other_lengths(make_params: Callable[..., Params], folder: Path) -> None:
    changes = {"source.categories": ["First", "Second"], "train.batch_size": 8, "train.length_bucket_batches": 5}
    changes |= {"text.fields": ["description"], "text.max_tokens": 5, "model.text.name": MINILM}
    params = make_params(**changes)
    dataset = ShardDataset(folder, ["First", "Second"], "train", HOW._replace(fields=("description",), max_tokens=5))
    read = [batch.keys for batch in Loader(dataset, batch_size=8, seed=params.train.seed, length_bucket_batches=5)]
    assert [steps(params, folder).batch(step + 1).ids for step in range(len(read))] == read
    assert [batch.keys for batch in loader(params, folder)] != read


def test_the_cache_and_the_connections_are_those_of_the_parameters(
    make_params: Callable[..., Params], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    location = steps_module.ShardLocation
    monkeypatch.setattr(steps_module, "ShardLocation", lambda *args: (given.extend(args), location(*args))[1])
    changes = {"source.categories": ["First"], "train.length_bucket_batches": 1, "stream.connections": 3}
    params = make_params(**changes)
    steps(params, folder)
    assert given == [folder, params.stream.cache_bytes, 3]


def test_places_are_printed_with_numbers_to_the_right() -> None:
    places = [
        Place("Books/B000000001", "Books/train-000.tar", 1, 2, 2, 13, skipped=False),
        Place("Books/B000000001", "Books/train-000.tar", 2, 1204, 2408, 0, skipped=True),
    ]
    printed = io.StringIO()
    Console(width=100, file=printed).print(place_table(places))
    header, _, *rows = printed.getvalue().replace("┃", "│").splitlines()[1:-1]
    assert [header, *rows] == [
        "│ id               │ epoch │  step │ of the run │ position │ tar                 │ left out      │",
        "│ Books/B000000001 │     1 │     2 │          2 │       13 │ Books/train-000.tar │               │",
        "│ Books/B000000001 │     2 │ 1,204 │      2,408 │        0 │ Books/train-000.tar │ by train.skip │",
    ]
    narrow = io.StringIO()
    Console(width=60, file=narrow).print(place_table(places))
    assert narrow.getvalue().count("│ Books/B000000001 │") == 2  # an id is never broken, and nothing is cut off
    assert "…" not in narrow.getvalue()


def test_an_id_without_a_category_is_found_in_each(asked: Steps) -> None:
    assert {place.id for place in asked.where("B000000003", [1])} == {"First/B000000003", "Second/B000000003"}


def test_no_file_is_read_but_manifests_and_indexes(asked: Steps, folder: Path) -> None:
    tars = list(folder.rglob("*.tar"))
    for tar in tars:
        tar.rename(tar.with_suffix(".away"))
    try:
        assert asked.where(asked.batch(1).ids[0], [1])[0].step == 1
    finally:
        for tar in tars:
            tar.with_suffix(".away").rename(tar)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda asked: asked.where("Second/B000000017"), "Second/B000000017 is in the test split, which no step"),
        (lambda asked: asked.where("B0"), "B0 is not in the training split of First, Second in "),
        (lambda asked: asked.where("B000000003", [0]), r"--epoch is 0, and train.epochs is \d+; epochs count from 1"),
        (lambda asked: asked.batch(1, 99), r"--epoch is 99, and train.epochs is "),
        (lambda asked: asked.batch(0), "--step is 0, and the run has "),
        (lambda asked: asked.batch(10**6, 1), "--step is 1000000, and an epoch has "),
        (lambda asked: asked.batch(asked.per_epoch + 1, 1), r"--step is \d+, and an epoch has "),
    ],
)
def test_what_is_not_there_is_an_error(asked: Steps, ask: Callable[[Steps], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(asked)


def test_a_damaged_index_is_an_error(make_params: Callable[..., Params], tmp_path: Path) -> None:
    folder = make_shards(tmp_path, {"train": [3]})
    index = folder / "Made/train-000.arrow"
    index.write_bytes(index.read_bytes()[: index.stat().st_size // 2])
    broken = steps(make_params(**{"source.categories": ["Made"]}), folder)
    with pytest.raises(UserError, match=r"train-000.arrow cannot be read \(.*\); run `dvc checkout`"):
        broken.where("B000000001")


def test_the_commands_print_ids_and_places(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = (Path(__file__).parents[2] / "params.yaml").read_text()
    (tmp_path / "p.yaml").write_text(text.replace("[Demo_Kitchen, Demo_Toys, Demo_Beauty]", "[First, Second]"))

    def run(*command: str) -> str:
        options = ["--params", str(tmp_path / "p.yaml"), "--shards", str(folder)]
        monkeypatch.setattr(sys, "argv", ["effimini", *command, *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
        return capsys.readouterr().out

    ids = run("batch", "--step", "2").splitlines()
    found = json.loads(run("batch", "--step", "2", "--json"))
    assert (found["ids"], found["epoch"], found["step"]) == (ids, 1, 2)
    places = json.loads(run("where", ids[3], "--epoch", "1", "--json"))
    assert [(place["id"], place["step"], place["position"]) for place in places] == [(ids[3], 2, 3)]
    assert ids[3] in run("where", ids[3], "--epoch", "1")
    changed = text.replace("hashed_ngrams: 65536", "hashed_ngrams: 0").replace(
        "[Demo_Kitchen, Demo_Toys, Demo_Beauty]", "[First]"
    )
    (tmp_path / "p.yaml").write_text(
        changed.replace("skip: []", "skip: [1-3]").replace("mixture: {}", "mixture: {First: 0.5}")
    )
    caplog.set_level("INFO")
    (item, *_), _ = run("batch", "--step", "2").splitlines(), caplog.clear()
    assert json.loads(run("batch", "--step", "2", "--json"))["skipped"] is True
    assert "left out by train.skip" in caplog.text
    assert "left out" in run("where", item, "--epoch", "1")
    assert json.loads(run("where", item, "--epoch", "2", "--json")) == []
    assert f"no step of these epochs reads {item}" in caplog.text

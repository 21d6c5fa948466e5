"""The plan of a run: its rows, what it reads, how it grows, and what it warns of."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from effimini import cli
from effimini.plan import machine
from effimini.plan.costs import DRIVERS, TABLES, read_costs, workload
from effimini.plan.machine import Machine, Pictures, Steps
from effimini.plan.plan import Plan, predict, with_cores
from effimini.plan.survey import PIECES, CategorySurvey, download_rate, survey
from prep import demo
from prep.core import writers
from prep.core.errors import UserError
from prep.core.params import Params
from prep.source import PATHS
from tests.conftest import ROOT
from tests.prep.hub_server import COMMIT, Hub, cut, reset, status
from tests.prep.test_source import point_at

TOYS, KITCHEN = "Demo_Toys", "Demo_Kitchen"
ITEMS = 3_000
CATEGORIES = [
    CategorySurvey(
        category="Books", metadata_bytes=3 * 10**9, review_bytes=10**9, items=10**6, reviews=9 * 10**6, usable=0.5
    ),
    CategorySurvey(
        category="Software", metadata_bytes=10**7, review_bytes=10**7, items=10**4, reviews=10**5, usable=0.5
    ),
]
MACHINE = Machine(
    cores=16,
    memory=64 * 10**9,
    disk=10**12,
    hard_links=True,
    clones=False,
    work=read_costs().work,
    download_rate=10**8,
    pictures=Pictures(fetched=0.98, source_bytes=10_000, stored_bytes=9_000, cpu=0.002, rate=10**6),
    steps=Steps(train=0.05, score=0.01, tokens=200, memory=3 * 10**9, device="cpu"),
)
LARGE_PICTURES = Pictures(fetched=1, source_bytes=10**5, stored_bytes=9_000, cpu=0.01, rate=99)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """Two categories of different size, in the layout of the hub."""
    for category, items in ((TOYS, ITEMS), (KITCHEN, ITEMS // 3)):
        demo.write_catalogue(tmp_path / "mirror", [category], items, 7)
    return tmp_path / "mirror"


@pytest.fixture
def of_mirror(mirror: Path, make_params: Callable[..., Params]) -> Params:
    return make_params(**{"source.kind": "mirror", "source.location": str(mirror)})


@pytest.fixture
def paper(make_params: Callable[..., Params]) -> Callable[..., Params]:
    def params(**changes: object) -> Params:
        of_paper = {
            "source.kind": "hub", "source.revision": COMMIT, "source.categories": ["Books", "Software"],
            "source.keep_raw": False, "download.buckets": 64, "images.request": 256, "images.resolution": 224,
            "dask.scheduler": "processes", "dask.workers": 16,
        }  # fmt: skip
        return make_params(**of_paper | changes)

    return params


def planned(params: Params, **machine: object) -> Plan:
    return predict(params, CATEGORIES, msgspec.structs.replace(MACHINE, **machine), read_costs())


def test_rows_are_estimated_from_pieces_of_the_files(
    of_mirror: Params, tmp_path: Path, mirror: Path, run_to: Callable[..., None]
) -> None:
    found = survey(of_mirror, tmp_path / "data")
    run_to(of_mirror, tmp_path / "data", "sample")
    for one in found.categories:
        report = json.loads((tmp_path / "data/sample" / one.category / "report.json").read_text())
        raw = json.loads((tmp_path / "data/raw" / one.category / "report.json").read_text())["tables"]
        assert one.metadata_bytes == (mirror / PATHS["items"].format(one.category)).stat().st_size
        assert one.items == pytest.approx(raw["items"]["rows_in"], rel=0.05)
        assert one.reviews == pytest.approx(raw["reviews"]["rows_in"], rel=0.05)
        kept = sum(report["rows"].values())
        assert workload(of_mirror, [one]).samples == pytest.approx(kept, rel=0.1)
    assert len(found.rows[TOYS]) < 0.6 * ITEMS  # only some rows were read


def test_reported_rows_take_the_place_of_estimates(of_mirror: Params, tmp_path: Path) -> None:
    tables = {"items": {"rows_in": 12_345}, "reviews": {"rows_in": 67_890}}
    writers.write_json(tmp_path / "raw" / TOYS / "report.json", {"tables": tables})
    found = {one.category: one for one in survey(of_mirror, tmp_path).categories}
    assert (found[TOYS].items, found[TOYS].reviews) == (12_345, 67_890)
    assert found[KITCHEN].items < ITEMS


def test_little_is_read_of_the_hub(
    make_params: Callable[..., Params], mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: (mirror / name).read_bytes() for name in (PATHS[kind].format(TOYS) for kind in PATHS)}
    with Hub(files) as hub:
        point_at(hub, monkeypatch)
        params = make_params(**{"source.kind": "hub", "source.revision": COMMIT, "source.categories": [TOYS]})
        found = survey(params, tmp_path)
        ends = [list(map(int, span.split("-"))) for span in hub.ranges()]
        hub.faults.extend([cut, status(429), reset, None, status(503)])
        assert survey(params, tmp_path) == found
        assert not hub.faults
        assert (download_rate(params, found.categories) or 0) > 1e5  # bytes/s
        assert found.categories[0].items == pytest.approx(ITEMS, rel=0.05)
    spans = [end - begin + 1 for begin, end in ends]
    assert len(spans) == 2 * PIECES
    assert sum(spans) <= PIECES * ((1 << 18) + (1 << 15)) < sum(map(len, files.values())) / 2


@pytest.mark.parametrize(
    ("location", "category", "told"),
    [("nowhere", TOYS, "nowhere"), ("mirror", "Demo_Games", "has no files of Demo_Games; check source.location")],
)
def test_a_source_without_the_files_is_one_sentence(
    of_mirror: Params, make_params: Callable[..., Params], tmp_path: Path, location: str, category: str, told: str
) -> None:
    place = {"source.kind": "mirror", "source.location": str(tmp_path / location), "source.categories": [category]}
    with pytest.raises(UserError, match=told):
        survey(make_params(**place), tmp_path)


def test_every_stage_and_every_table_has_a_measured_cost() -> None:
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    costs = read_costs()
    assert stages.keys() | {"dvc"} == DRIVERS.keys() == costs.stages.keys()
    assert costs.tables.keys() == TABLES.keys()
    assert all(cost.call >= 0 and cost.serial >= 0 and cost.parallel >= 0 for cost in costs.stages.values())
    free = [name for name, cost in costs.stages.items() if cost.call + cost.serial + cost.parallel == 0]
    assert set(free) <= {"train", "evaluate"}  # of which the model may be all that was measured


def test_a_larger_fraction_has_more_samples_and_takes_longer(paper: Callable[..., Params]) -> None:
    small, large = planned(paper(**{"sample.fraction": 0.2})), planned(paper(**{"sample.fraction": 0.4}))
    assert large.workload.train == pytest.approx(2 * small.workload.train)
    assert large.stages["download"] == small.stages["download"]
    for name in ("fetch", "shard", "train", "decontaminate"):
        assert large.stages[name].seconds > small.stages[name].seconds, name
    assert large.disk["data/shards"] > 1.4 * small.disk["data/shards"]
    assert large.disk["total"] == pytest.approx(sum(large.disk.values()) / 2)


def test_the_minimum_of_a_small_category_counts(paper: Callable[..., Params]) -> None:
    few, many = (workload(paper(**{"sample.min_per_category": n}), CATEGORIES) for n in (0, 3_000))
    assert many.train - few.train == pytest.approx(3_000 - 0.2 * 0.8 * 5_000)


def test_more_cores_shorten_what_is_parallel(paper: Callable[..., Params]) -> None:
    two = predict(paper(**{"dask.workers": 2}), CATEGORIES, with_cores(MACHINE, 2), read_costs())
    sixteen = predict(paper(), CATEGORIES, MACHINE, read_costs())
    assert two.stages["train"].seconds > 7 * sixteen.stages["train"].seconds
    assert two.stages["join"].seconds > 1.2 * sixteen.stages["join"].seconds
    assert two.stages["validate_raw"] == sixteen.stages["validate_raw"]


def test_a_slow_network_is_the_limit(paper: Callable[..., Params]) -> None:
    bytes_of_source = sum(one.metadata_bytes + one.review_bytes for one in CATEGORIES)
    assert planned(paper(), download_rate=1e5).stages["download"].seconds == pytest.approx(bytes_of_source / 1e5)
    slow = msgspec.structs.replace(MACHINE.pictures, rate=10.0)
    found = planned(paper(), pictures=slow)
    assert found.stages["fetch"].seconds == pytest.approx(found.workload.samples / 10)
    assert found.network["image_requests"] == round(found.workload.samples)
    assert planned(paper(), download_rate=None).network["raw_bytes"] == 0


def test_frozen_encoders_score_each_sample_once(paper: Callable[..., Params]) -> None:
    frozen, trained = planned(paper(**{"train.freeze_encoders": True})), planned(paper())
    assert frozen.stages["train"].seconds < trained.stages["train"].seconds / 10


@pytest.mark.parametrize(
    ("changes", "machine", "told"),
    [
        ({}, {"disk": 10**9}, r"GB of disk, .* 1.0 GB are free; .*(sample\.fraction|source\.categories)"),
        ({"source.keep_raw": True}, {"disk": 10**9}, r"most of it for store: raw files.*source\.keep_raw: false"),
        ({}, {"memory": 10**9}, r"download needs .* GB of memory.*download\.buckets"),
        ({"images.request": 0}, {"pictures": LARGE_PICTURES}, r"images\.request: 224"),
        ({"dask.workers": 2, "sample.fraction": 1.0}, {}, r"dask\.workers: 16"),
    ],
)  # fmt: skip
def test_what_is_too_small_is_named_with_the_parameter_to_change(
    paper: Callable[..., Params], changes: dict[str, object], machine: dict[str, object], told: str
) -> None:
    assert re.search(told, "\n".join(planned(paper(**changes), **machine).warnings))


def test_what_the_disk_cannot_link_or_clone_is_copied(paper: Callable[..., Params]) -> None:
    neither, linked, cloned = (
        planned(paper(), hard_links=hard_links, clones=clones).disk
        for hard_links, clones in ((False, False), (True, False), (True, True))
    )
    assert neither["total"] - linked["total"] == pytest.approx(cloned["data/shards"], abs=9)
    tables = sum(size for name, size in cloned.items() if name.startswith("data/"))
    assert linked["total"] - cloned["total"] == pytest.approx(tables, abs=9)


def test_a_machine_that_suffices_gets_no_warning(paper: Callable[..., Params]) -> None:
    assert planned(paper()).warnings == []


def test_the_command_prints_tables_or_json_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digests: Callable[[Path], dict[str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "params.yaml").read_text().replace("effimini/minilm", str(ROOT / "effimini/minilm"))
    (tmp_path / "params.yaml").write_text(text.replace("efficientnet_b0", "test_efficientnet"))
    for name, value in (("_ROUNDS", 1), ("_STEP_SECONDS", 0.0)):  # figures of a plan that nobody uses
        monkeypatch.setattr(machine, name, value)
    before = digests(tmp_path)
    shown = CliRunner().invoke(cli.app, ["plan"])
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in (*DRIVERS, "data/shards", "It is assumed that"))
    printed = CliRunner().invoke(cli.app, ["plan", "--json", "--cores", "64"])
    found = msgspec.json.decode(printed.stdout, type=Plan)
    assert found.machine.cores == 64
    assert found.workload.categories == 3
    assert found.machine.pictures.fetched > 0.8
    assert digests(tmp_path) == before

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from effimini import cli
from prep import categories
from prep.core import writers
from prep.core.errors import UserError
from prep.core.params import Params, SourceParams
from tests.prep.hub_server import COMMIT, NEWEST, Hub
from tests.prep.test_metadata import item, write
from tests.prep.test_source import point_at

FILES = {
    "raw/meta_categories/meta_Toys.jsonl": bytes(30),
    "raw/review_categories/Toys.jsonl": bytes(20),
    "raw/meta_categories/meta_All_Beauty.jsonl": bytes(10),
    "README.md": b"x",
}


@pytest.fixture
def source(make_params: Callable[..., Params]) -> Callable[..., SourceParams]:
    def of(**changes: object) -> SourceParams:
        given = {"categories": ["Toys"], **changes}
        return make_params(**{f"source.{key}": value for key, value in given.items()}).source

    return of


def sizes(found: categories.Listing) -> dict[str, tuple]:
    return {row.category: (row.metadata_bytes, row.review_bytes) for row in found.categories}


def test_all_categories_of_a_directory_and_the_hub_are_listed_and_the_chosen_ones_of_a_server(
    tmp_path: Path, source: Callable[..., SourceParams], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    there = {"All_Beauty": (10, None), "Toys": (30, 20)}
    assert sizes(categories.of_source(source(kind="mirror", location=str(tmp_path)), tmp_path)) == there
    with Hub(FILES) as hub:
        point_at(hub, monkeypatch)
        on_hub = categories.of_source(source(kind="hub", revision=COMMIT), tmp_path)
        assert sizes(on_hub) == there
        assert (on_hub.revision, on_hub.newest, on_hub.chosen) == (COMMIT, NEWEST, ["Toys"])
        newest = categories.of_hub()
        assert sizes(newest) == there
        assert newest.revision == newest.newest == NEWEST
        mirror = categories.of_source(source(kind="mirror", location=hub.cdn.url), tmp_path)
        assert sizes(mirror) == {"Toys": (30, 20)}
        assert hub.ranges() == []  # no file is read


def test_counts_come_from_download_reports_or_parquet_footers(
    tmp_path: Path, source: Callable[..., SourceParams], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = {"tables": {"items": {"rows_in": 7}, "reviews": {"rows_in": 9}}}
    writers.write_json(tmp_path / "data/raw/Toys/report.json", report)
    folder = write(tmp_path, [item(n) for n in range(11)], files=2)
    served = {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    bytes_there = sum(map(len, served.values()))
    with Hub(served) as hub:
        point_at(hub, monkeypatch)
        hub.files["raw/review_categories/Other.jsonl"] = b"1"  # one without metadata has no items to count
        for settings in (
            source(kind="hub", revision=COMMIT, metadata="parquet"),
            source(kind="mirror", location=str(tmp_path), metadata="parquet"),
        ):
            for count, items in ((False, 7), (True, 11)):
                found = categories.of_source(settings, tmp_path / "data", count)
                toys = next(row for row in found.categories if row.category == "Toys")
                assert (toys.metadata_bytes, toys.items, toys.reviews) == (bytes_there, items, 9)


@pytest.mark.parametrize(("location", "message"), [("absent", "is not a folder"), ("", "has no raw files of any")])
def test_an_absent_mirror_is_an_error(
    tmp_path: Path, source: Callable[..., SourceParams], location: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        categories.of_source(source(kind="mirror", location=str(tmp_path / location)), tmp_path)


def test_a_server_that_lacks_the_files_or_does_not_respond_is_an_error(
    tmp_path: Path, source: Callable[..., SourceParams], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub({}) as hub:
        point_at(hub, monkeypatch)
        mirror, of_hub = source(kind="mirror", location=hub.cdn.url), source(kind="hub", revision=COMMIT)
        with pytest.raises(UserError, match="meta_Toys.jsonl responded with HTTP 404; check source.location"):
            categories.of_source(mirror, tmp_path)
    with pytest.raises(UserError, match="cannot be fetched after 2 attempts"):
        categories.of_source(mirror, tmp_path)
    with pytest.raises(UserError, match="does not respond after 2 attempts"):
        categories.of_source(of_hub, tmp_path)


def test_the_command_prints_a_table_or_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["effimini", "categories", "--json", "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    found = msgspec.json.decode(capsys.readouterr().out, type=categories.Listing)
    assert [row.category for row in found.categories] == ["Demo_Beauty", "Demo_Kitchen", "Demo_Toys"]
    console = Console(record=True, width=120)
    console.print(categories.category_table(msgspec.structs.replace(found, kind="hub", revision=COMMIT, newest=NEWEST)))
    text = " ".join(console.export_text().split())
    assert f"latest commit {NEWEST}; source.revision is {COMMIT}" in text
    assert text.count("yes") == 3

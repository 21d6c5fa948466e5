"""The preview: matches the shards, is reproducible, and is safe in a real browser."""

import html
import json
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect

from prep.core import writers
from prep.core.errors import UserError
from prep.core.params import Params
from prep.weights import read_weights, sample_weights
from shards import preview, shard
from shards.location import ShardLocation
from tests.conftest import Visit
from tests.shards import damage

HOSTILE = '<img src=/stolen.png onerror="document.title=\'owned\'"><script src=/evil.js></script> & "quoted"'
MEMBERS = re.compile(r'<code>(\w+)</code></dd></div>\n</dl>\n<div class="words">')


@pytest.fixture(scope="module")
def shards(made_data: Callable[..., Path]) -> Path:
    """A folder of shards of two categories, with weights and images next to it."""
    return made_data(**{"sample.fraction": 1.0}) / "shards"  # enough to have items without an image


VISIBLE = """name => [...document.querySelectorAll(name)].filter(one => one.checkVisibility())
    .map(one => one.querySelector("dl.counts code").textContent)"""


def page(shards: Path, *args: Any, **options: Any) -> str:
    return preview.preview_page(ShardLocation(shards, 1, 1), *args, **options)


def facts_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the metadata of all training samples below a folder, by id."""
    found = {}
    for path in sorted(folder.rglob("train-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                if member.name.endswith(".json"):
                    metadata = json.loads(content.read())
                    found[metadata["parent_asin"]] = metadata
    return found


def test_each_sample_is_shown_once_with_its_metadata(shards: Path) -> None:
    every = facts_of(shards)
    shown = page(shards, samples=1000)
    assert sorted(MEMBERS.findall(shown)) == sorted(every)
    assert shown.count("<img ") == sum(metadata["has_image"] for metadata in every.values())
    assert shown.count(">no image<") == sum(not metadata["has_image"] for metadata in every.values()) > 0
    for article in re.findall(r"<article.*?</article>", shown, re.DOTALL):
        metadata = every[MEMBERS.findall(article)[0]]
        assert f"<dd>{metadata['average_rating']} ★</dd>" in article
        assert f"<dt>rating_number</dt><dd>{metadata['rating_number']:,}</dd>" in article
        assert f"Title: {html.escape(metadata['title'], quote=True)}" in article.replace("&#34;", "&quot;")
    assert "DEMO DATA" in shown


def test_a_choice_is_even_over_categories_and_reproducible(shards: Path) -> None:
    every = facts_of(shards)
    shown = page(shards, samples=9, seed=3)
    chosen = MEMBERS.findall(shown)
    assert len(chosen) == len(set(chosen)) == 9
    assert sorted(Counter(every[asin]["category"] for asin in chosen).values()) == [4, 5]
    assert page(shards, samples=9, seed=3) == shown
    assert MEMBERS.findall(page(shards, samples=9, seed=4)) != chosen
    assert {every[asin]["category"] for asin in MEMBERS.findall(page(shards, ["Demo_Toys"]))} == {"Demo_Toys"}


def test_only_tars_with_members_that_are_shown_are_read(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    shown = page(tmp_path / "shards", samples=4)
    chosen = MEMBERS.findall(shown)
    others = [path for path in tmp_path.rglob("*.tar") if not set(chosen) & {name[:-4] for name in members(path)}]
    assert others
    for path in others:
        path.unlink()
    assert page(tmp_path / "shards", samples=4) == shown


def members(tar: Path) -> list[str]:
    with tarfile.open(tar) as archive:
        return [name for name in archive.getnames() if name.endswith(".jpg")]


@pytest.mark.parametrize("broken", [b"{", b"[" * 100_000, b"{}", b'{"rating_number": 1' + 40 * b"0" + b"}", b"\xff"])
def test_metadata_that_cannot_be_read_is_an_error(broken: bytes, shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards")) / "Demo_Toys"
    for tar in folder.glob("train-*.tar"):
        damage.repack(tar, lambda members: members.__setitem__(1, (members[1][0], broken.ljust(len(members[1][1])))))
    damage.reseal(folder)
    with pytest.raises(UserError, match=r"train-\d+-\d+.tar: \w+ cannot be read .*; run `effimini lint`"):
        page(tmp_path / "shards", ["Demo_Toys"], samples=1000)


def test_an_images_table_that_cannot_be_read_is_an_error(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "data/shards")
    for path in (shards.parent / "images").rglob("train-*.parquet"):
        copied = tmp_path / "data" / path.relative_to(shards.parent)
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"train-00.parquet cannot be read .*; run `dvc checkout`"):
        page(tmp_path / "data/shards", samples=1000)


def test_the_weight_matches_the_loss(shards: Path) -> None:
    weights = read_weights(shards.parent / "weights.json")
    for count in ("rating_number", "review_count", "none"):
        for number in (0, 1, 7, 10**9):
            metadata = {"rating_number": number, "review_count": number}
            weighing = msgspec.structs.replace(weights, count=count)
            expected = sample_weights(np.array([number]), weighing)[0]
            assert preview._weight(metadata, weighing) == pytest.approx(expected)


def test_weights_of_other_shards_are_rejected(shards: Path, tmp_path: Path) -> None:
    weights = read_weights(shards.parent / "weights.json")
    writers.write_json(tmp_path / "weights.json", msgspec.structs.replace(weights, samples=weights.samples + 1))
    with pytest.raises(
        UserError, match=rf"has samples {weights.samples + 1}, expected {weights.samples},.*another run"
    ):
        page(shards, ["Demo_Toys"], weights=tmp_path / "weights.json")
    with pytest.raises(UserError, match="is from another run"):
        page(shards, weights=shards.parent / "weights.json", of=["Demo_Toys"])


def test_the_outcome_of_the_fetch_is_shown_if_known(shards: Path, tmp_path: Path) -> None:
    outcomes = [
        outcome
        for path in sorted((shards.parent / "images").rglob("train-*.parquet"))
        for outcome in pq.read_table(path)["outcome"].to_pylist()
    ]
    shown = r"<dt>image</dt><dd[^>]*>(\w+)</dd>"
    assert Counter(re.findall(shown, page(shards, samples=1000))) == Counter(outcomes)
    shutil.copytree(shards, tmp_path / "shards")
    without_images = page(tmp_path / "shards", samples=1000)
    ok = outcomes.count("ok")
    assert Counter(re.findall(shown, without_images)) == {"yes": ok, "none": len(outcomes) - ok}
    assert "<dt>weight</dt>" not in without_images


def test_tokens_are_counted_and_truncation_is_shown(shards: Path) -> None:
    indexes = [pa.ipc.open_file(path).read_all() for path in sorted(shards.rglob("train-*.arrow"))]
    lengths = [len(tokens) for index in indexes for tokens in index["tokens"].to_pylist()]
    shown = re.findall(r">(\d+) of at most 32 tokens( \(the rest is truncated\))?<", page(shards, samples=1000))
    assert Counter(int(length) for length, _ in shown) == Counter(lengths)
    assert {bool(cut) for length, cut in shown if length == "32"} == {True}
    assert {bool(cut) for length, cut in shown if length != "32"} == {False}


def test_mistakes_are_error_messages(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights.json does not exist"):
        page(shards, weights=tmp_path / "weights.json")
    with pytest.raises(UserError, match=r"Nothing/manifest.json does not exist"):
        page(shards, ["Nothing"])


def test_the_command_writes_the_page(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from effimini.cli import app

    out = tmp_path / "page.html"
    params = str(Path(__file__).parents[2] / "params.yaml")
    options = ["--split", "test", "--samples", "3", "--seed", "5", "--output", str(out), "--params", params]
    app(["preview", str(shards), "Demo_Toys", *options], standalone_mode=False)
    assert out.read_text() == page(shards, ["Demo_Toys"], split="test", samples=3, seed=5)
    assert str(out) in capsys.readouterr().out


def test_a_browser_shows_images_sends_no_requests_and_escapes_hostile_text(
    tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None], visit: Visit
) -> None:
    params = make_params(**{"source.categories": ["Demo_Toys"]})
    run_to(params, tmp_path, "decontaminate")
    for path in sorted((tmp_path / "sample/Demo_Toys").glob("*.parquet")):
        table = pq.read_table(path)
        place = table.schema.get_field_index("title")
        titles = pa.array([HOSTILE] * table.num_rows)
        writers.write_table(path, table.set_column(place, table.schema.field("title"), titles))
    shard.shard("Demo_Toys", params, tmp_path)
    shown = page(tmp_path / "shards", samples=12)
    (tmp_path / "page.html").write_text(shown)
    seen, asked = visit(tmp_path / "page.html")
    widths = seen.locator("img").evaluate_all("images => images.map(image => image.naturalWidth)")
    assert widths == [32] * shown.count("<img ")
    assert len(widths) > 3
    assert f"Title: {HOSTILE}" in str(seen.locator("pre").first.text_content())
    assert seen.title() == "12 train samples (demo data)"
    assert seen.locator("script").evaluate_all("all => all.map(one => one.src)") == [""]  # the page's own
    assert asked == []


def test_search_and_filters_show_what_matches(shards: Path, tmp_path: Path, visit: Visit) -> None:
    every = facts_of(shards)
    path = predictions(tmp_path / "predictions.parquet", dict.fromkeys(every, 3.0))
    (tmp_path / "page.html").write_text(page(shards, samples=1000, predictions=path))
    seen, asked = visit(tmp_path / "page.html")
    seen.set_viewport_size({"width": 500, "height": 900})
    assert seen.evaluate("document.documentElement.scrollWidth") <= 500

    def shown() -> set[str]:
        found = seen.evaluate(VISIBLE, "article")
        assert seen.text_content("output") == f"{len(found)} of {len(every)} shown"
        assert len(seen.evaluate(VISIBLE, "section")) == len({every[asin]["category"] for asin in found})
        seen.click("[type=reset]")
        expect(seen.locator("output")).to_have_text(f"{len(every)} of {len(every)} shown")  # once the form is reset
        assert len(seen.evaluate(VISIBLE, "article")) == len(every)
        return set(found)

    def those(condition: Callable[[dict[str, Any]], bool]) -> set[str]:
        found = {asin for asin, metadata in every.items() if condition(metadata)}
        assert 0 < len(found) < len(every)
        return found

    one = next(iter(every.values()))
    seen.fill("[name=words]", f" {one['title'].upper()} {one['parent_asin'][-3:]}")
    assert shown() == {one["parent_asin"]}
    seen.select_option("[name=category]", "Demo_Toys")
    assert shown() == those(lambda metadata: metadata["category"] == "Demo_Toys")
    seen.select_option("[name=image]", "ok")
    assert shown() == those(lambda metadata: metadata["has_image"])
    seen.fill("[name=low]", "3.2")
    seen.fill("[name=high]", "4.1")
    assert shown() == those(lambda metadata: 3.2 <= metadata["average_rating"] <= 4.1)
    seen.fill("[name=off]", "1.05")
    assert shown() == those(lambda metadata: abs(metadata["average_rating"] - 3.0) >= 1.05)
    seen.fill("[name=words]", "nothing has this")
    assert shown() == set()
    assert asked == []


def test_the_histogram_counts_the_labels_of_the_whole_split(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = Counter(f"{metadata['average_rating']:.1f}" for metadata in facts_of(shards).values())
    bins = re.findall(r'<i title="([\d.]+) ★: (\d+)"', page(shards, samples=2))
    assert [stars for stars, _ in bins] == [f"{tenths / 10}" for tenths in range(10, 51)]
    assert {stars: int(count) for stars, count in bins if count != "0"} == labels
    monkeypatch.setattr(preview, "_REMOTE_INDEXES", 0)
    assert page(shards, samples=2).count("<i title") == 41
    location = ShardLocation(shards, 1, 1)
    location.local_path = None  # as if it were remote
    assert preview._count_labels(location, [location.manifest("Demo_Toys")], "train") == []


def predictions(path: Path, stars: dict[str, float]) -> Path:
    columns = {"parent_asin": list(stars), "prediction": pa.array(stars.values(), pa.float32())}
    rows = [pa.table(columns | {"category": [category] * len(stars)}) for category in ("Demo_Kitchen", "Demo_Toys")]
    pq.write_table(pa.concat_tables(rows), path)
    return path


def test_predictions_are_shown_where_they_exist(shards: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(shards, tmp_path / "shards"))
    assert "predicted" not in page(own, samples=1000)
    first, second, *_ = facts_of(shards)
    (tmp_path / "predictions").mkdir()
    predictions(tmp_path / "predictions/train.parquet", {first: 2.345, "OTHER": 1.0})
    for shown in (
        page(own, samples=1000),
        page(shards, samples=1000, predictions=tmp_path / "predictions/train.parquet"),
    ):
        found = re.findall(r"predicted</dt><dd>(.*?)</dd>.*?<code>(\w+)</code>", shown, re.DOTALL)
        stars = {asin: value for value, asin in found}
        assert stars[first] == "2.35 ★"
        assert stars[second] == "none"
    other = predictions(tmp_path / "other.parquet", {"OTHER": 1.0})
    with pytest.raises(UserError, match=r"other.parquet has no prediction of these train samples"):
        page(shards, predictions=other)
    other.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"other.parquet cannot be read"):
        page(shards, predictions=other)
    with pytest.raises(UserError, match=r"none.parquet cannot be read"):
        page(shards, predictions=tmp_path / "none.parquet")


def test_unescaped_hostile_text_would_be_detected(tmp_path: Path, visit: Visit) -> None:
    (tmp_path / "page.html").write_text(f"<!doctype html><title>page</title><pre>x</pre>{HOSTILE}")
    seen, asked = visit(tmp_path / "page.html")
    assert seen.locator("script").count() == 1
    assert {url.rsplit("/", 1)[-1] for url in asked} == {"stolen.png", "evil.js"}

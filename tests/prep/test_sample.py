"""Properties of the sample stage on generated categories and pairs of fractions."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from prep.core.errors import UserError
from prep.core.params import Params
from prep.groups import groups
from prep.sample import candidate_urls, sample, unusable, usable_rows
from tests.prep.joined import write_items

ITEM = st.tuples(
    st.integers(0, 30),  # the title: equal ones are the same product
    st.sampled_from([1.0, 2.5, 3.0, 4.0, 4.5, 5.0]),
    st.sampled_from([0, 1, 3, 30, 5000]),
)


def write(data: Path, items: list[tuple[int, float, int]], buckets: int = 4) -> None:
    rows = [
        {
            "parent_asin": f"I{number:03d}", "title": f"product {title} with a long name",
            "description": ["a description that is long enough"], "average_rating": stars, "rating_number": count,
        }
        for number, (title, stars, count) in enumerate(items)
    ]  # fmt: skip
    write_items(data, "Toys", rows, buckets)


def drawn(data: Path, params: Params, digests: Callable[[Path], dict[str, str]]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Run groups and sample; return the rows and the digest of each part."""
    groups(params, data)
    sample("Toys", params, data)
    folder = data / "sample/Toys"
    parts = [pd.read_parquet(file).assign(part=file.stem) for file in sorted(folder.glob("*.parquet"))]
    hashes = {name: digest for name, digest in digests(folder).items() if name.endswith(".parquet")}
    return pd.concat(parts), hashes


BASE = {"source.categories": ["Toys"], "groups.max_items_per_key": 200, "sample.min_chars": 0}


@settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    items=st.lists(ITEM, min_size=30, max_size=120),
    buckets=st.integers(1, 5),
    fractions=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    minimum=st.sampled_from([0, 5, 40]),
    eval_fraction=st.sampled_from([0.05, 0.5, 1.0]),
)
def test_fractions_are_nested_and_part_bytes_do_not_depend_on_fraction_or_partitioning(
    tmp_path: Path,
    make_params: Callable[..., Params],
    digests: Callable[[Path], dict[str, str]],
    items: list[tuple[int, float, int]],
    buckets: int,
    fractions: tuple[int, int],
    minimum: int,
    eval_fraction: float,
) -> None:
    small, large = sorted(fractions)
    common = BASE | {"sample.min_per_category": minimum, "sample.eval_fraction": eval_fraction}
    try:
        write(tmp_path, items, 1)
        one = {"sample.fraction": small / 20, "download.buckets": 1}
        few, few_parts = drawn(tmp_path, make_params(**common, **one), digests)
        write(tmp_path, items, buckets)
        other = {"sample.fraction": large / 20, "download.buckets": buckets}
        many, many_parts = drawn(tmp_path, make_params(**common, **other), digests)
    except UserError as error:  # with few groups, none may be in the training split
        assert "no training items are left" in str(error)
        return
    assert few_parts.items() <= many_parts.items()
    split = dict(zip(many["parent_asin"], many["split"], strict=True))
    assert all(split[asin] == before for asin, before in zip(few["parent_asin"], few["split"], strict=True))
    assert (many.groupby("group")["split"].nunique() == 1).all()
    assert many.groupby("title")["split"].nunique().max() == 1  # the same product is in one split
    train = many[many["split"] == "train"]
    assert (train["part"] == train["band"].map(lambda b: f"train-{b:02d}")).all()
    held = [rows[rows["split"] != "train"]["parent_asin"].tolist() for rows in (few, many)]
    assert held[0] == held[1]  # the evaluation items are the same for every fraction
    report = json.loads((tmp_path / "sample/Toys/report.json").read_text())["tables"]["items"]
    assert report["rows_in"] == len(items)
    assert report["rows_out"] == len(many)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"title": "<br>"}, "no_title"),
        ({"features": ["", " "]}, "no_features"),
        ({"description": []}, "no_description"),
        ({"average_rating": None}, "no_average_rating"),
        ({"average_rating": 0.0}, "rating_out_of_range"),
        ({"rating_number": None}, "no_rating_number"),
        ({"large": None}, "no_image"),
        ({"large": ""}, "no_image"),
        ({"title": "a", "features": ["b"], "description": ["<b>" + " " * 40 + "</b>c"]}, "short_text"),
    ],
)
def test_an_item_without_a_required_field_is_dropped_with_its_reason(
    tmp_path: Path, make_params: Callable[..., Params], change: dict, reason: str
) -> None:
    whole = {
        "main_category": "Toys", "title": "a title of some length", "store": "S", "features": ["feature"],
        "description": ["and words"], "large": "https://x/1.jpg",
    }  # fmt: skip
    rows = [whole | {"parent_asin": f"I{i}", "title": f"a title of some length {i}"} for i in range(30)]
    rows.append(whole | {"parent_asin": "BAD"} | change)
    write_items(tmp_path, "Toys", rows, 4)
    require = ["main_category", "title", "features", "description", "average_rating", "rating_number", "image"]
    params = make_params(**{"source.categories": ["Toys"], "sample.require": require, "sample.fraction": 1.0})
    groups(params, tmp_path)
    sample("Toys", params, tmp_path)
    report = json.loads((tmp_path / "sample/Toys/report.json").read_text())["tables"]["items"]
    assert report == {"rows_in": 31, "rows_out": 30, "dropped": {reason: 1}}


def test_an_item_without_a_count_is_kept_with_0_ratings_where_no_count_is_required(
    tmp_path: Path, make_params: Callable[..., Params]
) -> None:
    rows = [{"parent_asin": f"I{i}", "title": f"product {i}", "rating_number": i or None} for i in range(30)]
    write_items(tmp_path, "Toys", rows, 4)
    params = make_params(**BASE, **{"sample.require": ["title"], "sample.fraction": 1.0, "sample.eval_fraction": 1.0})
    groups(params, tmp_path)
    sample("Toys", params, tmp_path)
    counts = {
        row["parent_asin"]: row["rating_number"]
        for path in (tmp_path / "sample/Toys").glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    assert counts == {f"I{i}": i for i in range(30)}


def test_a_category_without_training_items_is_an_error(tmp_path: Path, make_params: Callable[..., Params]) -> None:
    write(tmp_path, [(1, 4.0, 3)])
    params = make_params(**BASE, **{"sample.require": ["image"]})
    groups(params, tmp_path)
    with pytest.raises(UserError, match=r"Toys: no training items are left \(no_image 1\).*sample.require"):
        sample("Toys", params, tmp_path)


def test_the_url_of_the_preferred_kind_comes_first() -> None:
    assert candidate_urls("h", "l", "hi_res") == ["h", "l"]
    assert candidate_urls("h", "l", "large") == ["l", "h"]
    assert candidate_urls(None, "l", "hi_res") == ["l"]
    assert candidate_urls("same", "same", "large") == ["same"]


def test_a_table_is_filtered_as_by_the_stage(
    made_data: Callable[..., Path], make_params: Callable[..., Params]
) -> None:
    """What `effimini plan`, `remove` and `inspect` count is what the stage keeps."""
    changes = {"sample.fraction": 1.0, "sample.eval_fraction": 1.0, "sample.min_chars": 150}
    data, params = made_data("sample", **changes), make_params(**changes)
    for category in params.source.categories:
        report = json.loads((data / f"sample/{category}/report.json").read_text())["tables"]["items"]
        items = pa.concat_tables(
            [pq.read_table(path) for path in sorted((data / "items" / category).glob("*.parquet"))]
        )
        kept = {row.parent_asin: row for row in usable_rows(items, params)}
        drawn = pd.concat([pd.read_parquet(path) for path in (data / "sample" / category).glob("*.parquet")])
        assert sorted(kept) == sorted(drawn["parent_asin"])
        for row in drawn.to_dict("records"):
            one = kept[row["parent_asin"]]
            assert (one.average_rating, one.rating_number, one.review_count) == (
                row["average_rating"], row["rating_number"], 0
            )  # fmt: skip
            assert {name: row[name] for name in one.texts} == one.texts
            assert one.image_urls == list(row["image_urls"])
        dropped = unusable(items, params)
        assert dropped == report["dropped"]
        assert {"short_text", "no_main_category"} <= set(dropped)


def test_the_papers_filter_accounts_for_every_real_row(
    tmp_path: Path, make_params: Callable[..., Params], corpus: Path, run_to: Callable[..., None]
) -> None:
    category = "Health_and_Personal_Care"
    require = ["main_category", "title", "features", "description", "average_rating", "rating_number", "image"]
    params = make_params(
        **{
            "source.kind": "mirror", "source.location": str(corpus / "amazon"), "source.reviews": False,
            "source.categories": [category], "sample.require": require, "sample.fraction": 1.0,
        }
    )  # fmt: skip
    run_to(params, tmp_path, "sample")
    report = json.loads((tmp_path / "sample" / category / "report.json").read_text())["tables"]["items"]
    lines = (corpus / f"amazon/raw/meta_categories/meta_{category}.jsonl").read_bytes().count(b"\n")
    raw = json.loads((tmp_path / "raw" / category / "report.json").read_text())["tables"]["items"]
    assert raw["rows_in"] == lines
    assert report["rows_out"] + sum(report["dropped"].values()) + sum(raw["dropped"].values()) == lines
    assert 0.05 * lines < report["rows_out"] < 0.3 * lines


def test_strata_have_counts_and_the_report_has_the_largest_deviation(
    tmp_path: Path, make_params: Callable[..., Params]
) -> None:
    write(tmp_path, [(number, [3.0, 4.5][number % 2], [1, 30][number % 3 == 0]) for number in range(300)])
    params = make_params(**BASE, **{"sample.fraction": 0.25})
    groups(params, tmp_path)
    sample("Toys", params, tmp_path)
    table = pd.read_csv(tmp_path / "sample/Toys/strata.csv")
    train = table[table["split"] == "train"]
    assert set(zip(train["average_rating"], train["rating_number_from"], strict=True)) == {
        (3.0, 0), (3.0, 20), (4.5, 0), (4.5, 20),
    }  # fmt: skip
    assert table["population"].sum() == 300
    assert ((train["taken"] - 0.25 * train["population"]).abs() < 1).all()
    shares = (
        train.groupby("average_rating")[["population", "taken"]].sum().transform(lambda column: column / column.sum())
    )
    found = json.loads((tmp_path / "sample/Toys/report.json").read_text())["largest_deviation"]
    assert found["average_rating"] == pytest.approx((shares["taken"] - shares["population"]).abs().max(), abs=1e-6)


def test_details_that_equal_the_label_change_no_byte(
    tmp_path: Path, make_params: Callable[..., Params], digests: Callable[[Path], dict[str, str]]
) -> None:
    parts = []
    for leaking in (False, True):
        rows = []
        for number in range(60):
            stars, count = 1 + number % 5, number
            leak = {"Best Sellers Rank": {"Toys": 100 * stars}, "Customer Reviews": f"{stars} out of 5 stars"}
            details = {"Brand": "X", **(leak if leaking else {}), "Color": "red"}
            rows.append(
                {
                    "parent_asin": f"I{number:03d}", "average_rating": float(stars), "rating_number": count,
                    "details": json.dumps(details), "price": 9.5, "categories": ["Toys"], "description": ["a text"],
                }
            )  # fmt: skip
        write_items(tmp_path, "Toys", rows, 4)
        found, hashes = drawn(tmp_path, make_params(**BASE), digests)
        assert set(found["details"]) == {"Brand: X; Color: red"}
        assert set(found["detail_count"]) == {2}
        assert set(found["price"]) == {9.5}
        assert found["video_count"].isna().all()
        parts.append(hashes)
    assert parts[0] == parts[1]

"""Properties of groups and sample, from raw lines or joined items, on generated categories."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import count, pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import networkx
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from prep.core.buckets import bucket_files
from prep.core.errors import UserError
from prep.core.hashes import units
from prep.core.params import Params
from prep.core.parts import part_files
from prep.download import download
from prep.groups import groups
from prep.join import join
from prep.sample import sample
from prep.source import PATHS
from prep.strata import split_of
from tests.prep.joined import write_items

CATEGORIES = ("Home", "Toys")
LINK = 4
Items = dict[tuple[str, str], dict[str, Any]]  # rows by category and id
FEW = settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
BUCKETS = st.integers(1, 7)


def row(asin: str, title: int, picture: int, stars: float, ratings: int) -> dict[str, Any]:
    return {
        "parent_asin": asin, "main_category": "Toys", "title": f"product {title} of a long name", "store": "S",
        "average_rating": stars, "rating_number": ratings,
        "large": f"https://m.media-amazon.com/images/I/{picture}.jpg" if picture else None,
    }  # fmt: skip


@st.composite
def catalogues(draw: st.DrawFn) -> Items:
    """Generate two categories with tiny strata, ids in both of them, and chains of titles and images."""
    size = draw(st.integers(1, 60))
    drawn = st.tuples(
        st.sampled_from(CATEGORIES),
        st.integers(0, 80),  # the id
        st.integers(0, 40),  # the title
        st.integers(0, 40),  # the image, 0 for none
        st.sampled_from([1.0, 2.5, 4.0, 4.1, 5.0]),
        st.sampled_from([0, 1, 3, 30, 5000]),
    )
    chosen = draw(st.lists(drawn, min_size=size, max_size=60))
    return {(category, f"I{asin:03d}"): row(f"I{asin:03d}", *rest) for category, asin, *rest in chosen}


def of(items: Items, category: str) -> list[dict[str, Any]]:
    return [item for (where, _), item in items.items() if where == category]


def present(items: Items) -> list[str]:
    return [category for category in CATEGORIES if of(items, category)]


def settings_of(make_params: Callable[..., Params], items: Items, **changes: Any) -> Params:
    base = {
        "source.categories": present(items),
        "groups.max_items_per_key": LINK,
        "sample.min_chars": 0,
        "download.buckets": 1,
    }
    return make_params(**(base | {"sample.fraction": 1.0} | changes))


def draw_sample(items: Items, params: Params, data: Path) -> None:
    """Write the items in `download.buckets` buckets, and run groups and sample."""
    for category in params.source.categories:
        write_items(data, category, of(items, category), params.download.buckets)
    groups(params, data)
    sample_all(params, data)


def sample_all(params: Params, data: Path) -> None:
    for category in params.source.categories:
        try:
            sample(category, params, data)
        except UserError as error:  # with few groups, none may be in the training split
            assert "no training items are left" in str(error)
            assume(False)


def parts(data: Path, digests: Callable[[Path], dict[str, str]]) -> dict[str, str]:
    return {name: digest for name, digest in digests(data / "sample").items() if name.endswith(".parquet")}


def rows(data: Path, categories: Iterable[str]) -> pd.DataFrame:
    tables = [pq.read_table(part) for category in categories for part in part_files(data / "sample" / category)]
    return pa.concat_tables(tables).to_pandas()


def same_products(items: Items) -> list[set[tuple[str, str]]]:
    """Return which items are the same product, with another algorithm than the stage."""
    shared: dict[tuple[str, object], set[str]] = defaultdict(set)
    for item in items.values():
        shared["title", item["title"]].add(item["parent_asin"])
        if item["large"]:
            shared["image", item["large"]].add(item["parent_asin"])
    graph = networkx.Graph()
    graph.add_nodes_from(asin for _, asin in items)
    for ids in shared.values():
        if len(ids) <= LINK:
            graph.add_edges_from(pairwise(sorted(ids)))
    return [{key for key in items if key[1] in ids} for ids in networkx.connected_components(graph)]


def write_lines(folder: Path, items: Items, random: Random) -> None:
    """Write the items and some reviews of them as the raw files of a mirror, in random order."""
    for category in CATEGORIES:
        lines = {"items": of(items, category), "reviews": []}
        for number, item in enumerate(lines["items"]):
            said = [{"rating": 1.0 + (number + n) % 5, "timestamp": n, "user_id": f"U{n}"} for n in range(number % 4)]
            lines["reviews"] += [review | {"parent_asin": item["parent_asin"]} for review in said + said[:1]]
        for table, name in PATHS.items():
            file = folder / name.format(category)
            file.parent.mkdir(parents=True, exist_ok=True)
            random.shuffle(lines[table])
            file.write_text("".join(json.dumps(one) + "\n" for one in lines[table]))


@FEW
@given(items=catalogues(), buckets=BUCKETS, seed=st.integers(0, 9))
def test_the_bytes_of_the_sample_do_not_depend_on_buckets_or_line_order(
    make_params: Callable[..., Params],
    digests: Callable[[Path], dict[str, str]],
    items: Items,
    buckets: int,
    seed: int,
) -> None:
    with TemporaryDirectory() as folder:
        made = []
        for number, name in ((1, "first"), (buckets, "second")):
            data = Path(folder) / name
            write_lines(data / "mirror", items, Random(seed + number))
            where = {"source.kind": "mirror", "source.location": str(data / "mirror"), "download.buckets": number}
            params = settings_of(make_params, items, **where)
            for category in params.source.categories:
                download(category, params, data)
                join(category, params, data)
            groups(params, data)
            sample_all(params, data)
            tables = {
                f"{table}/{category}": pa.concat_tables(
                    map(pq.read_table, bucket_files(data / table / category, table))
                )
                for category in params.source.categories
                for table in ("items", "groups")
            }
            made.append((tables, digests(data / "sample"), (data / "groups/report.json").read_bytes()))
        assert made[0] == made[1]


@FEW
@given(items=catalogues(), buckets=BUCKETS)
def test_no_product_is_in_two_splits_even_across_categories(
    make_params: Callable[..., Params], items: Items, buckets: int
) -> None:
    with TemporaryDirectory() as folder:
        data = Path(folder)
        params = settings_of(make_params, items, **{"download.buckets": buckets})
        draw_sample(items, params, data)
        taken = rows(data, params.source.categories)
    assert len(taken) == len(items)
    found = {(one.category, one.parent_asin): (one.group, one.split) for one in taken.itertuples()}
    for product in same_products(items):
        assert {found[key][0] for key in product} == {min(asin for _, asin in product)}
        assert len({found[key][1] for key in product}) == 1


@FEW
@given(
    items=catalogues(),
    fractions=st.tuples(st.integers(2, 20), st.integers(2, 20)).map(sorted),
    minimum=st.sampled_from([0, 5, 25, 1000]),
    eval_fraction=st.sampled_from([0.05, 0.5, 1.0]),
    buckets=st.tuples(BUCKETS, BUCKETS),
)
def test_a_larger_fraction_adds_parts_and_changes_none(
    make_params: Callable[..., Params],
    digests: Callable[[Path], dict[str, str]],
    items: Items,
    fractions: list[int],
    minimum: int,
    eval_fraction: float,
    buckets: tuple[int, int],
) -> None:
    made, held, few = [], [], 0
    for fraction, number in zip(fractions, buckets, strict=True):
        with TemporaryDirectory() as folder:
            data = Path(folder)
            changes = {
                "sample.fraction": fraction / 20, "sample.min_per_category": minimum,
                "sample.eval_fraction": eval_fraction, "download.buckets": number,
            }  # fmt: skip
            params = settings_of(make_params, items, **changes)
            draw_sample(items, params, data)
            made.append(parts(data, digests))
            held.append({name: digest for name, digest in made[-1].items() if "/train-" not in name})
            taken = rows(data, params.source.categories)
            for category in params.source.categories:
                strata = pd.read_csv(data / "sample" / category / "strata.csv")
                population = strata[strata["split"] == "train"]["population"].sum()
                few = ((taken["split"] == "train") & (taken["category"] == category)).sum()
                assert few >= min(minimum, population)
            assert (taken["band"] >= 0).eq(taken["split"] == "train").all()
    assert made[0].items() <= made[1].items()
    assert held[0] == held[1]


@FEW
@given(items=catalogues(), fraction=st.integers(4, 16), shares=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)))
def test_evaluation_fractions_are_nested_and_do_not_change_training(
    make_params: Callable[..., Params],
    digests: Callable[[Path], dict[str, str]],
    items: Items,
    fraction: int,
    shares: tuple[float, float],
) -> None:
    made, held = [], []
    for share in sorted(shares):
        with TemporaryDirectory() as folder:
            data = Path(folder)
            changes = {"sample.fraction": fraction / 20, "sample.eval_fraction": share}
            params = settings_of(make_params, items, **changes, **{"sample.validation": 0.3, "sample.test": 0.3})
            draw_sample(items, params, data)
            made.append({name: digest for name, digest in parts(data, digests).items() if "/train-" in name})
            taken = rows(data, params.source.categories)
            held.append(set(taken[taken["split"] != "train"][["category", "split", "parent_asin"]].itertuples(False)))
    assert made[0] == made[1]
    assert held[0] <= held[1]


@FEW
@given(items=catalogues(), fraction=st.integers(2, 20), eval_fraction=st.floats(0.05, 1))
def test_every_stratum_is_sampled_to_within_one_item(
    make_params: Callable[..., Params], items: Items, fraction: int, eval_fraction: float
) -> None:
    with TemporaryDirectory() as folder:
        data = Path(folder)
        changes = {"sample.fraction": fraction / 20, "sample.eval_fraction": eval_fraction}
        params = settings_of(make_params, items, **changes)
        draw_sample(items, params, data)
        for category in params.source.categories:
            strata = pd.read_csv(data / "sample" / category / "strata.csv")
            share = strata["split"].map({"train": fraction / 20}).fillna(eval_fraction)
            assert ((strata["taken"] - share * strata["population"]).abs() < 1 + 1e-9).all()
            report = json.loads((data / "sample" / category / "report.json").read_text())
            assert report["tables"]["items"]["rows_in"] == len(of(items, category)) == strata["population"].sum()
            assert report["tables"]["items"]["rows_out"] == strata["taken"].sum() == sum(report["rows"].values())


def in_split(split: str) -> str:
    """Return an id that is in this split if it is the only one in its group."""
    return next(f"X{n}" for n in count() if split_of([f"X{n}"], "effimini", 0.1, 0.1)[0] == split)


def test_a_category_of_one_item_is_used_completely_or_is_an_error(
    tmp_path: Path, make_params: Callable[..., Params]
) -> None:
    items: Items = {("Home", in_split("train")): row(in_split("train"), 1, 0, 4.0, 3)}
    draw_sample(items, settings_of(make_params, items, **{"sample.min_per_category": 1}), tmp_path)
    assert rows(tmp_path, ["Home"])["parent_asin"].tolist() == [in_split("train")]
    items = {("Home", in_split("test")): row(in_split("test"), 1, 0, 4.0, 3)}
    params = settings_of(make_params, items, **{"sample.min_per_category": 1})
    write_items(tmp_path, "Home", of(items, "Home"))
    groups(params, tmp_path)
    with pytest.raises(UserError, match="Home: no training items are left.*remove the category"):
        sample("Home", params, tmp_path)


def test_a_new_category_moves_only_the_items_it_links(tmp_path: Path, make_params: Callable[..., Params]) -> None:
    toys: Items = {("Toys", f"I{n:03d}"): row(f"I{n:03d}", n, 0, 4.0, 3) for n in range(40)}
    alone, both = tmp_path / "alone", tmp_path / "both"
    draw_sample(toys, settings_of(make_params, toys), alone)
    items = toys | {("Home", f"A{n:03d}"): row(f"A{n:03d}", 100 + n, 0, 4.0, 3) for n in range(40)}
    items["Home", "A000"]["title"] = toys["Toys", "I000"]["title"]
    draw_sample(items, settings_of(make_params, items), both)
    before, after = (rows(data, ["Toys"]).set_index("parent_asin") for data in (alone, both))
    assert after.loc["I000", "group"] == "A000"
    others = before.index.difference(["I000"])
    assert after.loc[others, ["group", "split"]].equals(before.loc[others, ["group", "split"]])


def test_a_hundred_ids_in_a_chain_are_one_product(tmp_path: Path, make_params: Callable[..., Params]) -> None:
    items: Items = {}
    for n in range(100):  # n shares its title with n - 1 or n + 1, its image with the other one
        items[CATEGORIES[n % 2], f"I{n:03d}"] = row(f"I{n:03d}", (n + 1) // 2, 1 + n // 2, 4.0, 3)
    assert units("effimini/split", ["I000"])[0] >= 0.2  # otherwise no training items are left
    draw_sample(items, settings_of(make_params, items, **{"download.buckets": 5}), tmp_path)
    taken = rows(tmp_path, CATEGORIES)
    assert (len(taken), set(taken["group"])) == (100, {"I000"})


def test_an_id_in_two_categories_counts_once_for_max_items_per_key(
    tmp_path: Path, make_params: Callable[..., Params]
) -> None:
    ids = [f"I{n}" for n in range(LINK)]
    items: Items = {(category, asin): row(asin, 1, 0, 4.0, 3) for category in CATEGORIES for asin in ids}
    items |= {("Home", f"A{n:03d}"): row(f"A{n:03d}", 100 + n, 0, 4.0, 3) for n in range(20)}
    items |= {("Toys", f"B{n:03d}"): row(f"B{n:03d}", 200 + n, 0, 4.0, 3) for n in range(20)}
    draw_sample(items, settings_of(make_params, items), tmp_path)
    taken = rows(tmp_path, CATEGORIES)
    assert taken[taken["parent_asin"].isin(ids)]["group"].tolist() == ["I0"] * 2 * LINK

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import networkx
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from prep.core.buckets import bucket_files
from prep.core.files import read_json
from prep.core.params import Params
from prep.groups import groups, image_key, title_key
from tests.prep.joined import write_items

HOST = "https://m.media-amazon.com/images/I"
BUCKETS = 4  # of params.yaml


def write(data: Path, category: str, items: list[tuple[str, str, str | None]]) -> None:
    """Write (parent_asin, title, image) as the joined items of a category."""
    rows = [
        {"parent_asin": asin, "title": title, "large": picture and f"{HOST}/{picture}._AC_.jpg"}
        for asin, title, picture in items
    ]
    write_items(data, category, rows, BUCKETS)


def groups_of(data: Path, *categories: str) -> dict[tuple[str, str], str]:
    rows = [
        (category, row)
        for category in categories
        for path in bucket_files(data / "groups" / category, "groups")
        for row in pq.read_table(path).to_pylist()
    ]
    return {(c, row["parent_asin"]): row["group"] for c, row in rows}


def test_keys_ignore_case_punctuation_and_image_size() -> None:
    assert title_key("A Pan!", "Store") == title_key("  a  PAN", "store") != title_key("A pot", "Store")
    assert title_key("A pan", "S") != title_key("A pan", "T")
    assert title_key(" - ", "S") == title_key(None, "S") == ""
    assert image_key(None, f"{HOST}/71ab+c._AC_.jpg") == image_key(f"{HOST}/x._SL_.jpg", f"{HOST}/71ab%2Bc.jpg")
    assert image_key(f"{HOST}/only.jpg", None) == "only"
    assert image_key(None, None) == image_key("", "") == ""


def test_links_are_transitive_across_ids_titles_images_and_categories(
    tmp_path: Path, make_params: Callable[..., Params]
) -> None:
    write(tmp_path, "Toys", [("C", "pan", "1"), ("B", "pot", "1"), ("X", "lamp", "9")])
    write(tmp_path, "Home", [("A", "POT.", "2"), ("D", "mug", "2"), ("X", "another lamp", "8")])
    groups(make_params(**{"source.categories": ["Toys", "Home"]}), tmp_path)
    found = groups_of(tmp_path, "Toys", "Home")
    assert {found[key] for key in [("Toys", "C"), ("Toys", "B"), ("Home", "A"), ("Home", "D")]} == {"A"}
    assert found["Toys", "X"] == found["Home", "X"] == "X"
    report = read_json(tmp_path / "groups/report.json")
    assert report["tables"]["groups"] == {"rows_in": 6, "rows_out": 6, "dropped": {}}
    assert report["largest"] == [{"group": "A", "items": 4}]


def test_a_placeholder_of_many_items_links_none_of_them(tmp_path: Path, make_params: Callable[..., Params]) -> None:
    write(tmp_path, "Toys", [(f"I{i}", f"title {i}", "placeholder") for i in range(4)])
    params = {"source.categories": ["Toys"]}
    groups(make_params(**params, **{"groups.max_items_per_key": 3}), tmp_path)
    assert len(set(groups_of(tmp_path, "Toys").values())) == 4
    assert read_json(tmp_path / "groups/report.json")["shared_too_widely"] == {"image": 1, "title": 0}
    groups(make_params(**params, **{"groups.max_items_per_key": 4}), tmp_path)
    assert len(set(groups_of(tmp_path, "Toys").values())) == 1


@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    items=st.lists(
        st.tuples(st.sampled_from("ABCDEFGHIJ"), st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=20
    ),
    cut=st.integers(0, 20),
)
def test_groups_are_the_connected_components(
    tmp_path: Path, make_params: Callable[..., Params], items: list[tuple[str, int, int]], cut: int
) -> None:
    in_category = {
        "Toys": {asin: (title, picture) for asin, title, picture in items[:cut]},
        "Home": {asin: (title, picture) for asin, title, picture in items[cut:]},
    }
    graph = networkx.Graph()
    shared: dict[str, set[str]] = {}
    for category, rows in in_category.items():
        write(tmp_path, category, [(a, f"t{t}", str(p) if p else None) for a, (t, p) in rows.items()])
        for asin, (title, picture) in rows.items():
            graph.add_node(asin)
            for key in [f"t{title}", *([f"p{picture}"] if picture else [])]:
                shared.setdefault(key, set()).add(asin)
    for members in shared.values():
        if len(members) <= 3:
            graph.add_edges_from(pairwise(sorted(members)))
    expected = {asin: min(component) for component in networkx.connected_components(graph) for asin in component}
    groups(make_params(**{"source.categories": ["Toys", "Home"], "groups.max_items_per_key": 3}), tmp_path)
    present = [category for category, rows in in_category.items() if rows]
    assert {asin: g for (_, asin), g in groups_of(tmp_path, *present).items()} == expected

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from prep import demo
from prep.core.params import Params

CATEGORY = "Demo_Toys"


def products(folder: Path) -> pd.DataFrame:
    rows = []
    for line in (folder / f"raw/meta_categories/meta_{CATEGORY}.jsonl").read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return pd.DataFrame(rows)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        demo.write_catalogue(tmp_path / name, [CATEGORY], 40, seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")


def test_the_catalogue_has_the_defects_of_real_data(tmp_path: Path) -> None:
    demo.write_catalogue(tmp_path, [CATEGORY], 500, 7)
    items = products(tmp_path)
    lines = (tmp_path / f"raw/meta_categories/meta_{CATEGORY}.jsonl").read_text().splitlines()
    assert len(lines) > len(items)  # malformed lines
    assert items["rating_number"].max() > 20 * items["rating_number"].median()
    assert items["main_category"].isna().any()
    assert {"None", 9.99} <= set(items["price"].dropna())
    assert items["description"].map(len).eq(0).any()
    assert items["images"].map(lambda images: bool(images) and images[0]["hi_res"] is None).any()
    assert items.assign(name=items["title"].str.casefold()).duplicated(["name", "store"]).any()
    reviews = (tmp_path / f"raw/review_categories/{CATEGORY}.jsonl").read_text().splitlines()
    assert len(set(reviews)) < len(reviews)
    assert any('"rating": 0.0' in review for review in reviews)
    files = {path.name: path.read_bytes() for path in (tmp_path / "images/I").iterdir()}
    urls = {images[0]["large"].rsplit("/", 1)[-1] for images in items["images"] if images}
    assert urls - files.keys()  # missing images
    assert any(not content.startswith(b"\xff\xd8") for content in files.values())


def test_averages_of_fewer_ratings_are_noisier(tmp_path: Path, make_params: Callable[..., Params]) -> None:
    demo.write_catalogue(tmp_path, [CATEGORY], 500, 7)
    items = products(tmp_path)
    items = items[items["average_rating"] != "four"]
    stars, count = items["average_rating"].astype(float), items["rating_number"]
    assert np.std(stars[count <= 3]) > 1.2 * np.std(stars[count >= 50])

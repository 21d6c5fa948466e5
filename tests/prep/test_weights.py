import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prep.core.errors import UserError
from prep.core.params import Params
from prep.core.tables.exclusions import EXCLUSIONS
from prep.weights import weights


def test_the_mean_is_of_log1p_over_the_training_items_that_are_not_excluded(
    tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None]
) -> None:
    params = make_params()
    run_to(params, tmp_path, "decontaminate")
    for file in (tmp_path / "exclusions").rglob("train-00.parquet"):
        columns = {name: ["-"] for name in pq.read_schema(file).names} | {"difference": [None]}
        sample = pq.read_table(str(file).replace("exclusions", "sample"), columns=["parent_asin"])
        pq.write_table(pa.table(columns | {"parent_asin": sample["parent_asin"][:1]}, EXCLUSIONS), file)
    weights(params, tmp_path)
    found = json.loads((tmp_path / "weights.json").read_text())
    train, gone = (
        pd.concat(pd.read_parquet(f) for f in sorted((tmp_path / table).rglob("train-*.parquet")))
        for table in ("sample", "exclusions")
    )
    assert len(gone) >= 2
    train = train[~train["parent_asin"].isin(gone["parent_asin"])]
    expected = sum(math.log1p(count) for count in train["rating_number"]) / len(train)
    assert found == {
        "count": "rating_number",
        "half_at": 0,
        "clip": 5.0,
        "mean": pytest.approx(expected),
        "samples": len(train),
    }
    weights(make_params(**{"weights.count": "none"}), tmp_path)
    assert json.loads((tmp_path / "weights.json").read_text())["mean"] == 1.0


def test_counts_that_are_all_zero_are_an_error(
    tmp_path: Path, make_params: Callable[..., Params], run_to: Callable[..., None]
) -> None:
    params = make_params()
    run_to(params, tmp_path, "decontaminate")
    for file in (tmp_path / "sample").rglob("train-*.parquet"):
        pd.read_parquet(file).assign(review_count=0).to_parquet(file)
    with pytest.raises(UserError, match="weights.count is review_count, and it is 0 for all"):
        weights(make_params(**{"weights.count": "review_count"}), tmp_path)

"""Profiles are exact for any batch size, and drift is the difference between two profiles."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.core.errors import UserError
from prep.core.params import Limits
from validation import columns, profile


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files with 500 rows in total."""
    rng = np.random.default_rng(0)
    monkeypatch.setitem(
        profile.PROFILED_COLUMNS, "small", {"stars": 0.01, "count": 1, "time": 86_400_000, "size of text": 1}
    )
    frame = pd.DataFrame(
        {
            "stars": rng.integers(10, 51, 500) / 10,
            "count": rng.geometric(0.01, 500),
            "time": rng.integers(0, 10**12, 500),
            "text": ["x" * n for n in rng.integers(0, 5, 500)],
        }
    )
    frame.loc[::7, "stars"] = np.nan
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    pq.write_table(pa.Table.from_pandas(frame[:200]), paths[0])
    pq.write_table(pa.Table.from_pandas(frame[200:]), paths[1])
    return paths


def test_every_statistic_equals_that_of_the_whole_column(written: list[Path]) -> None:
    found = profile.profile("small", "A", written).set_index("column")
    whole = pd.concat([pq.read_table(path).to_pandas() for path in written])
    stars, days = whole["stars"].dropna(), whole["time"] // 86_400_000
    sizes = whole["text"].str.len()[lambda sizes: sizes > 0]
    for name, values in {"stars": stars, "count": whole["count"], "time": days, "size of text": sizes}.items():
        row = found.loc[name]
        assert row["rows"] == 500
        assert row["absent"] == pytest.approx(1 - len(values) / 500)
        assert row["same"] == pytest.approx(values.value_counts().max() / len(values))
        assert row["mean"] == pytest.approx(values.mean())
        for quantile, q in profile.QUANTILES.items():
            assert row[quantile] == pytest.approx(np.quantile(values, q, method="inverted_cdf")), (name, quantile)


def test_small_batches_give_the_same_profile(written: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = profile.profile("small", "A", written)
    monkeypatch.setattr(columns, "_CHUNK", 7)
    monkeypatch.setattr(profile, "_BUFFERED_ROWS", 20)
    pd.testing.assert_frame_equal(profile.profile("small", "A", written), whole)


def test_a_table_without_rows_or_values_has_a_profile(written: list[Path], tmp_path: Path) -> None:
    nothing = profile.profile("small", "A", [])
    assert nothing["rows"].tolist() == [0] * 4
    table = pq.read_table(written[0])
    empty = table.set_column(0, "stars", pa.nulls(len(table), pa.float64()))
    pq.write_table(empty, tmp_path / "empty.parquet")
    found = profile.profile("small", "A", [tmp_path / "empty.parquet"]).set_index("column")
    assert found.loc["stars", "absent"] == 1
    assert profile.compare_profiles(nothing, nothing)["drift"].tolist() == [0.0] * 5


@given(st.floats(-5, 5), st.floats(0, 0.5))
def test_drift_is_relative_to_the_accepted_range(shift: float, lost: float) -> None:
    numbers = {"rows": 100, "absent": 0.1, "same": 0.1, "mean": 3.0, "lowest": 1, "q05": 2, "q25": 2.5, "median": 3}
    was = pd.DataFrame([dict(zip(profile.KEY, ("items", "A", "stars"), strict=True)) | numbers])
    was = was.assign(q75=3.5, q95=4, highest=5)[profile.NAMES]
    now = was.assign(q75=3.5 + shift, absent=0.1 + lost)
    (found, fraction) = profile.compare_profiles(now, was).to_dict("records")
    assert found["drift"] == pytest.approx(max(abs(shift) / 2, lost))
    assert fraction["drift"] == 0


def test_another_proportion_of_categories_is_drift_and_more_rows_are_not() -> None:
    def of(**rows: int) -> pd.DataFrame:
        numbers = dict.fromkeys(profile.NAMES[4:], 1.0)
        return pd.DataFrame(
            [{"table": "items", "category": c, "column": "stars", "rows": n} | numbers for c, n in rows.items()]
        )

    compared = profile.compare_profiles(of(A=200, B=200), of(A=100, B=100))
    assert compared["drift"].max() == 0
    compared = profile.compare_profiles(of(A=300, B=100, New=50), of(A=100, B=100))
    assert compared["drift"].max() == pytest.approx(0.25)
    warned, failed = profile.drift(compared, Limits(warn_above=0.2, fail_above=0.3))
    assert (warned.level, failed.level) == ("warn", "pass")
    assert warned.examples[0] == "A rows (fraction of the table's 0.75, accepted 0.5)"
    assert profile.new_columns(of(A=1, New=2), of(A=1)) == ["items New"]


def test_an_invalid_profile_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "accepted.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        UserError, match=r"accepted.csv is not a valid profile \(no column table\); run `effimini accept`"
    ):
        profile.read_profile(tmp_path / "accepted.csv")
    assert profile.read_profile(tmp_path / "none.csv").empty

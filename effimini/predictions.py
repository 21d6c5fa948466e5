"""The stars that a model gives the samples of a split, as a table.

Input: a split and one number per sample. Output: a Parquet file (`prep.core.tables.predictions.PREDICTIONS`):
``data/predictions/<split>.parquet``, and ``validation.parquet`` in a model folder. Guarantees: the same stars give the
same bytes; the stars of another split are never returned.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from effimini.metrics import Stars
from prep.core import writers
from prep.core.errors import UserError, first_sentence
from prep.core.keys import item_id, item_key
from prep.core.tables.predictions import PREDICTIONS
from shards.stream import ShardDataset

# In a model folder: the calibrated stars by which the model was chosen. A model with train.refit has seen the labels of
# these samples since, so they cannot be predicted again.
VALIDATION_FILE = "validation.parquet"


def predictions_table(split: ShardDataset, stars: Stars) -> pd.DataFrame:
    """Return `PREDICTIONS` of a split, in its order.

    Args:
        split: the samples.
        stars: float32 [N].
    """
    return pd.DataFrame(
        {
            "parent_asin": [item_id(key.split("/", 1)[1]) for key in split.keys],
            "category": split.categories,
            "split": split.split,
            "average_rating": split.labels,
            "rating_number": split.rating_number,
            "has_image": split.has_image,
            "prediction": stars,
        }
    )


def write_predictions(path: Path, split: ShardDataset, stars: Stars) -> None:
    """Write `predictions_table` to a Parquet file."""
    table = pa.Table.from_pandas(predictions_table(split, stars), PREDICTIONS, preserve_index=False)
    writers.write_table(path, table.replace_schema_metadata(None))


def read_predictions(path: Path, split: ShardDataset) -> Stars | None:
    """Return the stars in a file, float32 [N]; None if there is no file, or if it is of other samples.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        table = pq.read_table(path, columns=["category", "parent_asin", "prediction"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # also pyarrow's own errors
        raise UserError(f"{path} cannot be read ({first_sentence(error)}); run `dvc checkout`") from None
    names = (table[name].to_pylist() for name in ("category", "parent_asin"))
    if [f"{category}/{item_key(name)}" for category, name in zip(*names, strict=True)] != split.keys:
        return None
    return np.asarray(table["prediction"].to_numpy())

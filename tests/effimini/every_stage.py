"""Run every stage on a tiny demo project, as one process of a user would, and read its shards over HTTP.

Input: pickled parameters and a folder. Output: data, models, results and the local store in the folder.
"""

import os
import pickle
import sys
from pathlib import Path

from effimini.evaluate import evaluate
from effimini.train import train
from prep import download, groups, join, ranges, sample, weights
from prep.core import files
from prep.core.params import Params
from prep.source import locate
from shards import decontaminate, fetch, shard
from shards.loader import Loader
from shards.stream import ShardDataset
from tests.shards.host import Host
from validation.validate import present_tables, validate


def every_stage(params: Params) -> None:
    """Run the stages in the working folder."""
    data = Path("data")
    for category in params.source.categories:
        download.download(category, params, data)
        join.join(category, params, data)
    groups.groups(params, data)
    for category in params.source.categories:
        sample.sample(category, params, data)
        fetch.fetch(category, params, data)
    decontaminate.decontaminate(params, data)
    for category in params.source.categories:
        shard.shard(category, params, data)
    weights.weights(params, data)
    train(params)
    evaluate(params)
    for table in present_tables(data):
        validate(table, params, data)


def over_http(params: Params) -> None:
    """Read the shards through the disk cache, and download a raw file to the local store."""
    category = params.source.categories[0]
    with Host() as host:
        host.files = {f"/{file.relative_to('data')}": file.read_bytes() for file in Path("data/shards").rglob("*.*")}
        dataset = ShardDataset(f"{host.url}/shards", [category], "train")
        assert sum(len(batch.label) for batch in Loader(dataset, batch_size=16, seed=None)) == len(dataset)
        raw = next(Path(locate(params.source, category).base).rglob("meta_*.jsonl"))
        host.files["/raw"] = raw.read_bytes()
        remote = ranges.Remote(f"{host.url}/raw", raw.stat().st_size, "", "", ranges.no_headers, "")
        ranges.download_file(remote, files.store() / "raw/file")
        assert files.sha256(files.store() / "raw/file") == files.sha256(raw)


if __name__ == "__main__":
    given, folder = pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    os.chdir(folder)
    every_stage(given)
    over_http(given)

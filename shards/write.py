"""Shard: a sample and its images as tars that a team can share.

In: ``data/sample/<category>/`` and ``data/images/<category>/``. Out: ``data/shards/<category>/`` with a tar and an
index for each run of ``shards.samples`` samples of a part, ``manifest.json`` and ``report.json``. Guaranteed
(promise 2): a tar belongs to one category, split and band; its name and bytes do not depend on the fraction; one
that was made before is taken from the local store.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from prep import cluster, files
from prep.faults import Funnel, UserError
from prep.params import Params
from prep.sample import part_files
from shards import tokens
from shards.pixels import BLANK
from shards.tar import Tokens, index_tar, write_tar

FORMAT = 1  # raise it when the bytes of a tar or an index change


def write(category: str, params: Params, data: Path = Path("data")) -> int:
    """Write ``data/shards/<category>`` and return how many tars were new to the local store.

    Raises:
        UserError: the images are not those of the sample, or the tokenizer cannot be had.
    """
    how = Tokens(params.model.text.name, params.text.fields, params.text.max_tokens)
    tokenizer = tokens.fingerprint(tokens.load(how.name))
    with files.folder(data / "shards" / category) as out:
        calls = [
            (part, data / "images" / category / part.name, out, params.shards.samples, how, tokenizer)
            for part in part_files(data / "sample" / category)
        ]
        written = [shard for shards in cluster.run(_write_part, calls, params.dask) for shard in shards]
        made: int = sum(shard.pop("made") for shard in written)
        manifest = {
            "format": FORMAT,
            "category": category,
            "source": {"kind": params.source.kind, "revision": params.source.revision},
            "tokens": {"tokenizer": tokenizer, "fields": how.fields, "max_tokens": how.max_tokens},
            "sample": params.sample,
            "images": params.images,
            "shards": written,
        }
        files.write_json(out / "manifest.json", manifest)
        samples = Funnel.of(sum(shard["samples"] for shard in written), {})
        report = {
            "stage": "shard",
            "category": category,
            "tables": {"samples": samples},
            "shards": len(written),
        }
        files.write_json(out / "report.json", report)
    return made


def _write_part(part: Path, images: Path, out: Path, size: int, how: Tokens, tokenizer: str) -> list[dict[str, Any]]:
    """Write the tars and indexes of one part and return their lines of the manifest."""
    if not images.exists():
        raise UserError(f"{images} does not exist; run `dvc repro fetch`")
    made_of = files.fingerprint(FORMAT, files.sha256(part), files.sha256(images), size)
    indexed_by = files.fingerprint(how.fields, how.max_tokens, tokenizer)[:16]
    split, _, band = part.stem.partition("-")
    lines = []
    for number, first in enumerate(range(0, pq.read_metadata(part).num_rows, size)):
        tar = out / f"{part.stem}-{number:03d}.tar"
        index = tar.with_suffix(".arrow")
        made = files.made_once(f"shards/{made_of}-{number:03d}.tar", partial(_tar, part, images, first, size), tar)
        files.made_once(f"shards/{made_of}-{number:03d}.{indexed_by}.arrow", partial(_index, tar, how), index)
        lines.append(
            {
                "name": tar.name,
                "split": split,
                "band": int(band) if band else None,
                "samples": min(size, pq.read_metadata(part).num_rows - first),
                "bytes": tar.stat().st_size,
                "sha256": files.sha256(tar),
                "index_sha256": files.sha256(index),
                "made": made,
            }
        )
    return lines


def _tar(part: Path, images: Path, first: int, size: int, path: Path) -> None:
    write_tar(path, _samples(part, images, first, size))


def _index(tar: Path, how: Tokens, path: Path) -> None:
    index_tar(tar, path, how, tokens.load(how.name))


def _samples(part: Path, images: Path, first: int, size: int) -> list[tuple[dict[str, Any], bytes]]:
    """Return the facts and the JPEG of the samples of a part from `first` on, at most `size`."""
    rows = pq.read_table(part).slice(first, size).to_pylist()
    pictures = pq.read_table(images, columns=["parent_asin", "image"]).slice(first, size).to_pylist()
    if [row["parent_asin"] for row in rows] != [picture["parent_asin"] for picture in pictures]:
        raise UserError(f"{images} does not hold the items of {part}; run `dvc repro fetch`")
    return [
        (row | {"has_image": bool(picture["image"])}, picture["image"] or BLANK)
        for row, picture in zip(rows, pictures, strict=True)
    ]

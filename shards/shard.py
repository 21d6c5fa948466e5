"""Stage shard: write a sample and its images as WebDataset shards.

Input: ``data/sample/<category>/``, ``data/images/<category>/`` and ``data/exclusions/<category>/``. Output:
``data/shards/<category>/`` with a tar and an index for every ``shards.samples_per_shard`` samples of a part that are
not excluded, ``manifest.json``, a dataset card and ``report.json``. Guarantees: a tar belongs to one category, split
and band; its name and bytes do not depend on the fraction, nor on what was removed from other tars; a tar that was
written before is reused from the local store, unless its bytes have changed since.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from prep.core import files, writers
from prep.core.cluster import dask_pool
from prep.core.errors import UserError
from prep.core.keys import item_id
from prep.core.params import Params, narrow, values_of
from prep.core.parts import SLOTS_FILE, excluded, sample_parts
from prep.core.reports import Funnel, earlier_reports
from prep.core.tables.shards import TABULAR, SampleMetadata
from prep.core.tables.tabular import TABULAR_NAMES
from shards import card, manifest, tokens
from shards.images.pixels import BLANK
from shards.manifest import Manifest, Shard, Source, Tokenization
from shards.tar import index_tar, write_tar
from shards.tokens import TokenizationConfig

READS = (*manifest.STATED, "source.kind", "source.revision", "text", "model.text.name", "dask")
FORMAT = 2  # increment it when the bytes of a tar or an index change
_ROWS_PER_READ = 256  # rows of a part in memory at once

SampleIterator = Iterator[tuple[SampleMetadata, bytes]]


def shard(category: str, params: Params, data: Path = Path("data")) -> int:
    """Write ``data/shards/<category>``; return the number of tars that were not intact in the local store.

    Raises:
        UserError: there is no sample, the images or exclusions do not match it, or the tokenizer cannot be loaded.
    """
    params = narrow(params, READS)
    data = data.absolute()
    parts = sample_parts(data, category)
    tokenization = TokenizationConfig(params.model.text.name, params.text.fields, params.text.max_tokens)
    tokenizer = tokens.tokenizer_fingerprint(tokens.load_tokenizer(tokenization.name))
    with files.atomic_folder(data / "shards" / category) as out, dask_pool(params.dask, out) as pool:
        calls = [
            (
                part,
                data / "images" / category / part.name,
                out,
                params.shards.samples_per_shard,
                tokenization,
                tokenizer,
            )
            for part in parts
        ]
        written = [shard for shards in pool.map(_write_shards, calls, f"shard {category}: parts") for shard in shards]
        shards = [shard for shard, _ in written]
        about = Manifest(
            format=manifest.FORMAT,
            category=category,
            source=Source(params.source.kind, params.source.revision),
            parameters=values_of(params, manifest.STATED),
            tokens=Tokenization(tokenizer, tokenization.fields, tokenization.max_tokens),
            shards=tuple(shards),
            tabular=TABULAR_NAMES,
        )
        writers.write_json(out / manifest.MANIFEST_FILE, about)
        card.write_card(out, about)
        samples = Funnel.of(sum(shard.samples for shard in shards), {})
        report = {
            "stage": "shard",
            "category": category,
            "before": earlier_reports(data / "exclusions" / category),
            "tables": {"samples": samples},
            "shards": len(shards),
        }
        writers.write_json(out / "report.json", report)
    return sum(made for _, made in written)


def _write_shards(
    part: Path, images: Path, out: Path, size: int, tokenization: TokenizationConfig, tokenizer: str
) -> list[tuple[Shard, bool]]:
    """Write the tars and indexes of one part; return their manifest entries, and whether each tar was written."""
    if not images.exists():
        raise UserError(f"{images} does not exist; run `dvc repro fetch`")
    left_out = set(excluded(part).to_pylist())
    made_of = files.fingerprint(FORMAT, files.sha256(part), files.sha256(images), sorted(left_out), size)
    indexed_by = files.fingerprint(tokenization.fields, tokenization.max_tokens, tokenizer)[:16]
    split, _, band = part.stem.partition("-")
    rows = pq.read_metadata(part).num_rows - len(left_out)
    empty = _empty_slots(part, left_out)
    made_of = files.fingerprint(made_of, empty) if empty else made_of
    samples = _samples(part, images, left_out)
    read = 0  # samples read so far: they are read once, or not at all if all tars are in the store
    written = []
    for number, slot in enumerate(range(0, rows + len(empty), size)):
        first, last = (at - bisect_left(empty, at) for at in (slot, min(slot + size, rows + len(empty))))
        count = last - first
        if not count:
            continue
        tar = out / f"{part.stem}-{number:03d}.tar"
        index = tar.with_suffix(".arrow")
        stored = f"shards/{made_of}-{number:03d}"
        content, made = files.cached(f"{stored}.tar", partial(_write_tar, samples, first - read, count), tar)
        read = first + count if made else read
        indexed, _ = files.cached(f"{stored}.{indexed_by}.arrow", partial(_write_index, tar, tokenization), index)
        shard = Shard(
            name=tar.name,
            split=split,
            band=int(band) if band else None,
            samples=count,
            bytes=tar.stat().st_size,
            sha256=content,
            index_bytes=index.stat().st_size,
            index_sha256=indexed,
        )
        written.append((shard, made))
    return written


def _empty_slots(part: Path, left_out: Collection[str]) -> list[int]:
    """Return where removed items had their place among the samples of a part; the others stay in their tars."""
    path = part.with_name(SLOTS_FILE)
    rows = files.read_json(path).get(part.stem, ()) if path.exists() else ()
    if not rows:
        return []
    kept = [asin not in left_out for asin in pq.read_table(part, columns=["parent_asin"])["parent_asin"].to_pylist()]
    return [sum(kept[:row]) + number for number, row in enumerate(rows)]


def _write_tar(samples: SampleIterator, skip: int, count: int, path: Path) -> None:
    """Skip `skip` samples, whose tars are in the store, and write the next `count`."""
    write_tar(path, islice(samples, skip, skip + count))


def _write_index(tar: Path, tokenization: TokenizationConfig, path: Path) -> None:
    index_tar(tar, path, tokenization, tokens.load_tokenizer(tokenization.name))


def _samples(part: Path, images: Path, left_out: Collection[str]) -> SampleIterator:
    """Yield metadata and JPEG of each sample of a part but those left out, with a few rows in memory at once."""
    with pq.ParquetFile(part) as sample, pq.ParquetFile(images) as image_rows:
        if sample.metadata.num_rows != image_rows.metadata.num_rows:
            raise UserError(f"{images} does not have the items of {part}; run `dvc repro fetch`")
        for row, image in zip(_read_rows(sample), _read_rows(image_rows, ["parent_asin", "image"]), strict=True):
            if row["parent_asin"] != image["parent_asin"]:
                raise UserError(f"{images} does not have the items of {part}; run `dvc repro fetch`")
            if row["parent_asin"] not in left_out:
                numbers = [row[name] for name in TABULAR_NAMES]
                row["parent_asin"] = item_id(row["parent_asin"])
                metadata: SampleMetadata = row | {"has_image": bool(image["image"]), TABULAR: numbers}
                yield metadata, image["image"] or BLANK


def _read_rows(table: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[Any]:
    for batch in table.iter_batches(_ROWS_PER_READ, columns=columns):
        yield from batch.to_pylist()

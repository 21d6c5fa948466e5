"""Checks of a category's shards: the rules of `shards.lint`, the rows of the sample, and loading with `datasets`.

Input: ``data/shards/<category>/`` and the parts of the sample. Output: verdicts.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from prep.core.keys import item_id
from prep.core.parts import excluded
from prep.core.tables.shards import INDEX, METADATA_FIELDS, TABULAR
from prep.core.tables.tabular import TABULAR_NAMES
from shards.lint import LintRule, ShardRead, Violation, lint, metadata_digest
from shards.location import ShardLocation
from shards.manifest import Shard
from validation.columns import read_columns
from validation.verdicts import Verdict, judge

_SAMPLE_RULES = (LintRule.METADATA, LintRule.IMAGE, LintRule.ONCE)  # the other rules count files
_REQUIRED_TO_READ = (LintRule.MANIFEST, LintRule.FILES, LintRule.BYTES, LintRule.TAR, LintRule.INDEX)
_ROWS_AT_ONCE = 10_000


def shards_of(folder: Path) -> tuple[Shard, ...]:
    """Return the shards listed in the manifest.

    Raises:
        UserError: the manifest is missing or not valid.
    """
    return _local_location(folder).parse(folder.name).shards


def _local_location(folder: Path) -> ShardLocation:
    return ShardLocation(folder.parent, cache_bytes=0, connections=1)  # both are used for URLs only


def check_content(folder: Path, tokenizer: str) -> tuple[list[Verdict], list[ShardRead]]:
    """Run all rules of `shards.lint` on the shards; return one verdict per rule, and what was read.

    Raises:
        UserError: the tokenizer cannot be loaded.
    """
    reads: list[ShardRead] = []
    violations: dict[LintRule, list[Violation]] = defaultdict(list)
    for found in lint(_local_location(folder), [folder.name], tokenizer):
        reads += [found.read] if found.read else []
        for violation in found.violations:
            violations[violation.rule].append(violation)
    samples, shards = sum(len(read.keys) for read in reads), len(reads)
    verdicts = [
        judge(
            "shards",
            rule,
            samples if rule in _SAMPLE_RULES else shards,
            (f"{violation.where} ({violation.what})" for violation in violations[rule]),
        )
        for rule in LintRule
    ]
    return verdicts, reads


def are_readable(verdicts: Sequence[Verdict]) -> bool:
    """Return whether the shards are intact enough for the other checks, given the verdicts of `check_content`."""
    return all(verdict.passed for verdict in verdicts if verdict.expectation in _REQUIRED_TO_READ)


def check_items(reads: Sequence[ShardRead], parts: Sequence[Path]) -> list[Verdict]:
    """Check that the shards of each part contain the items of that part of the sample that are not excluded.

    Args:
        reads: what was read of the shards.
        parts: the part files of the sample.

    Returns:
        A verdict on the items and one on their metadata.
    """
    samples = sum(len(read.keys) for read in reads)
    other_items: list[str] = []
    other_metadata: list[str] = []
    wanted = {path.stem: path for path in parts}
    for part in sorted({*wanted} | {read.shard.part for read in reads}):
        found = dict(_pairs(read for read in reads if read.shard.part == part))
        expected = dict(_expected(wanted[part])) if part in wanted else {}
        other_items += [f"{key} (missing in {part})" for key in sorted(expected.keys() - found.keys())]
        other_items += [f"{key} (unknown in {part})" for key in sorted(found.keys() - expected.keys())]
        # what cannot be read is a violation already
        differing = (key for key in expected.keys() & found.keys() if found[key] not in {None, expected[key]})
        other_metadata += [f"{key} (of {part})" for key in sorted(differing)]
    return [
        judge("shards", "the same items as the parts of the sample", samples, other_items),
        judge("shards", "the metadata of the sample", samples, other_metadata),
    ]


def _pairs(reads: Iterable[ShardRead]) -> Iterator[tuple[str, int | None]]:
    """Yield the key and the metadata digest of each sample."""
    for read in reads:
        yield from zip(read.keys.to_pylist(), read.digests.to_pylist(), strict=True)


def _expected(part: Path) -> Iterator[tuple[str, int]]:
    """Yield parent_asin and the metadata digest of each row of a part that is not excluded."""
    left_out = set(excluded(part).to_pylist())
    columns = [name for name in METADATA_FIELDS if name not in {"has_image", TABULAR}]
    with pq.ParquetFile(part) as rows:
        for batch in rows.iter_batches(_ROWS_AT_ONCE, columns=[*columns, *TABULAR_NAMES]):
            for row in batch.to_pylist():
                if (key := row["parent_asin"]) not in left_out:
                    row |= {"parent_asin": item_id(key), TABULAR: [row[name] for name in TABULAR_NAMES]}
                    yield key, metadata_digest(row)


def check_reader(folder: Path, shards: Sequence[Shard]) -> Verdict:
    """Check that ``datasets`` streams the first sample as a webdataset, with its image and metadata."""
    import datasets  # noqa: PLC0415 -- takes a second
    from datasets.packaged_modules.webdataset.webdataset import WebDataset  # noqa: PLC0415

    urls = [str((folder / shard.name).resolve()) for shard in shards]
    first = read_columns([folder / shards[0].index], ["key"], INDEX)["key"][0].as_py()
    try:
        # what load_dataset("webdataset", ...) builds, without its usage report to a server
        stream = WebDataset(data_files={"train": urls}).as_streaming_dataset(split="train")
        sample = next(iter(stream))
        found = {"key": sample["__key__"], "image": sample["jpg"].mode, "columns": sorted(sample)}
        missing = [name for name in METADATA_FIELDS if sample["json"].get(name) is None]
    except (
        ValueError,
        KeyError,
        TypeError,
        OSError,
        StopIteration,
        datasets.exceptions.DatasetsError,
    ) as error:
        return judge("shards", "readable by datasets", 1, [f"{shards[0].name} ({type(error).__name__}: {error})"])
    expected = {"key": first, "image": "RGB", "columns": ["__key__", "__url__", "jpg", "json"]}
    wrong = [f"{name} {found[name]}, not {expected[name]}" for name in expected if found[name] != expected[name]]
    return judge("shards", "readable by datasets", 1, wrong + [f"json without {name}" for name in missing])

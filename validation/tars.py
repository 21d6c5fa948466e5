"""Checks of a category's shards: the rules of `shards.lint`, the items of the sample, and loading with `datasets`.

Input: ``data/shards/<category>/`` and the parts of the sample. Output: verdicts.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from prep.core.parts import kept_rows
from prep.core.tables.shards import INDEX, METADATA_FIELDS
from shards.lint import LintRule, Violation, lint
from shards.location import ShardLocation
from shards.manifest import Shard
from validation.columns import read_columns
from validation.verdicts import Verdict, judge

_SAMPLE_RULES = (LintRule.METADATA, LintRule.IMAGE, LintRule.ONCE)  # the other rules count files
_REQUIRED_TO_READ = (LintRule.MANIFEST, LintRule.FILES, LintRule.BYTES, LintRule.TAR, LintRule.INDEX)


def shards_of(folder: Path) -> tuple[Shard, ...]:
    """Return the shards listed in the manifest.

    Raises:
        UserError: the manifest is missing or not valid.
    """
    return _local_location(folder).manifest(folder.name).shards


def _local_location(folder: Path) -> ShardLocation:
    return ShardLocation(folder.parent, cache_bytes=0, connections=1)  # both are used for URLs only


def check_content(folder: Path) -> list[Verdict]:
    """Run all rules of `shards.lint` on the shards; return one verdict per rule."""
    samples = shards = 0
    violations: dict[LintRule, list[Violation]] = defaultdict(list)
    for found in lint(_local_location(folder), [folder.name]):
        samples, shards = samples + found.samples, shards + found.shards
        for violation in found.violations:
            violations[violation.rule].append(violation)
    return [
        judge(
            "shards",
            rule,
            samples if rule in _SAMPLE_RULES else shards,
            (f"{violation.where} ({violation.what})" for violation in violations[rule]),
        )
        for rule in LintRule
    ]


def are_readable(verdicts: Sequence[Verdict]) -> bool:
    """Return whether the shards are intact enough for the other checks, given the verdicts of `check_content`."""
    return all(verdict.passed for verdict in verdicts if verdict.expectation in _REQUIRED_TO_READ)


def check_items(folder: Path, shards: Sequence[Shard], parts: Sequence[Path]) -> Verdict:
    """Check that the shards of each part contain the items of that part of the sample that are not excluded."""
    return judge(
        "shards",
        "the same items as the parts of the sample",
        sum(s.samples for s in shards),
        _item_differences(folder, shards, parts),
    )


def _item_differences(folder: Path, shards: Sequence[Shard], parts: Sequence[Path]) -> Iterator[str]:
    """Yield the items that are missing or unexpected in the shards of a part."""
    wanted = {path.stem: path for path in parts}
    for part in sorted({*wanted} | {shard.part for shard in shards}):
        indexes = [folder / shard.index for shard in shards if shard.part == part]
        found = set(read_columns(indexes, ["key"], INDEX)["key"].to_pylist())
        expected = set(kept_rows(wanted[part], ["parent_asin"])["parent_asin"].to_pylist()) if part in wanted else set()
        yield from (f"{key} (missing in {part})" for key in sorted(expected - found))
        yield from (f"{key} (unknown in {part})" for key in sorted(found - expected))


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

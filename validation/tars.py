"""The checks of a category's shards: what `shards.lint` finds, the sample's items, and that another reader reads them.

In: ``data/shards/<category>/`` and the parts of the sample. Out: verdicts.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from prep.core.tables.sample import SAMPLE
from prep.core.tables.shards import INDEX, METADATA_FIELDS
from shards.lint import LintRule, Violation, lint
from shards.location import ShardLocation
from shards.manifest import Shard
from validation.columns import read_columns
from validation.verdicts import Verdict, judge

_OF_SAMPLES = (LintRule.METADATA, LintRule.IMAGE, LintRule.ONCE)  # the other rules are of files
_TO_READ_ON = (LintRule.MANIFEST, LintRule.FILES, LintRule.BYTES, LintRule.TAR, LintRule.INDEX)


def shards_of(folder: Path) -> tuple[Shard, ...]:
    """Return the shards named in the manifest.

    Raises:
        UserError: it is absent, or is no manifest.
    """
    return _local_location(folder).manifest(folder.name).shards


def _local_location(folder: Path) -> ShardLocation:
    return ShardLocation(folder.parent, cache_bytes=0, connections=1)  # both only matter behind a URL


def check_content(folder: Path) -> list[Verdict]:
    """Read everything of the shards; return a verdict a rule."""
    samples = shards = 0
    faults: dict[LintRule, list[Violation]] = defaultdict(list)
    for found in lint(_local_location(folder), [folder.name]):
        samples, shards = samples + found.samples, shards + found.shards
        for fault in found.violations:
            faults[fault.rule].append(fault)
    return [
        judge(
            "shards",
            rule,
            samples if rule in _OF_SAMPLES else shards,
            (f"{fault.where} ({fault.what})" for fault in faults[rule]),
        )
        for rule in LintRule
    ]


def are_readable(verdicts: Sequence[Verdict]) -> bool:
    """Tell whether the verdicts of `check_content` let the other checks read the shards."""
    return all(verdict.passed for verdict in verdicts if verdict.expectation in _TO_READ_ON)


def check_items(folder: Path, shards: Sequence[Shard], parts: Sequence[Path]) -> Verdict:
    """Check that the shards hold the sample's items, each in its part."""
    return judge(
        "shards",
        "the items of the sample's part",
        sum(s.samples for s in shards),
        _item_differences(folder, shards, parts),
    )


def _item_differences(folder: Path, shards: Sequence[Shard], parts: Sequence[Path]) -> Iterator[str]:
    """Yield the items that the shards of a part lack, or have and should not."""
    wanted = {path.stem: path for path in parts}
    for part in sorted({*wanted} | {shard.part for shard in shards}):
        indexes = [folder / shard.index for shard in shards if shard.part == part]
        found = set(read_columns(indexes, ["key"], INDEX)["key"].to_pylist())
        sample = [wanted[part]] if part in wanted else []
        expected = set(read_columns(sample, ["parent_asin"], SAMPLE)["parent_asin"].to_pylist())
        yield from (f"{key} (missing of {part})" for key in sorted(expected - found))
        yield from (f"{key} (unknown in {part})" for key in sorted(found - expected))


def check_reader(folder: Path, shards: Sequence[Shard]) -> Verdict:
    """Check that ``datasets`` streams the first sample as a webdataset, with its image and facts."""
    import datasets  # noqa: PLC0415 -- a second
    from datasets.packaged_modules.webdataset.webdataset import WebDataset  # noqa: PLC0415

    urls = [str((folder / shard.name).resolve()) for shard in shards]
    first = read_columns([folder / shards[0].index], ["key"], INDEX)["key"][0].as_py()
    try:
        # what load_dataset("webdataset", ...) makes, which counts its use on a server first
        stream = WebDataset(data_files={"train": urls}).as_streaming_dataset(split="train")
        sample = next(iter(stream))
        found = {"key": sample["__key__"], "image": sample["jpg"].mode, "columns": sorted(sample)}
        absent = [name for name in METADATA_FIELDS if sample["json"].get(name) is None]
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
    wrong = [f"{name} {found[name]} for {expected[name]}" for name in expected if found[name] != expected[name]]
    return judge("shards", "readable by datasets", 1, wrong + [f"json without {name}" for name in absent])

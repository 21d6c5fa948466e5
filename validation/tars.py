"""The checks of a category's shards: manifest, tars, indexes, and that other readers can read them.

In: ``data/shards/<category>/`` and the parts of the sample. Out: verdicts. Guaranteed: every byte of every
tar and index is hashed, and every member is read at the offset its index gives.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pyarrow as pa

from prep import files
from prep.faults import UserError
from prep.tables import INDEX, SAMPLE
from shards.tar import FACTS
from validation.columns import read, rows_of
from validation.verdicts import Verdict, judge

_BLOCK = 512  # of a tar
# In the index and in the member alike.
_INDEXED = ("average_rating", "rating_number", "review_count", "has_image")


class Shard(msgspec.Struct, frozen=True):
    """A line of the manifest, as far as it is checked here."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def index(self) -> str:
        """The name of its index."""
        return self.name.removesuffix(".tar") + ".arrow"

    @property
    def part(self) -> str:
        """The part of the sample it holds items of."""
        return self.name.rpartition("-")[0]


_Shards = Annotated[list[Shard], msgspec.Meta(min_length=1)]


def manifest(folder: Path) -> list[Shard]:
    """Read the shards named in ``manifest.json``.

    Raises:
        UserError: it is absent, or is no manifest.
    """
    path = folder / "manifest.json"
    content: Any = files.read_json(path)
    try:
        return msgspec.convert(content["shards"], _Shards)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise UserError(f"{path} is no manifest ({error}); remove it and run `dvc repro`") from None


def check_files(folder: Path, shards: Sequence[Shard]) -> list[Verdict]:
    """Check that the files are those of the manifest, to the byte."""
    named = {name for shard in shards for name in (shard.name, shard.index)}
    there = {path.name for path in folder.iterdir() if path.suffix in {".tar", ".arrow"}}
    stray = [f"{name} ({'missing' if name in named else 'unknown'})" for name in sorted(named ^ there)]
    wrong = []
    for shard in shards:
        if shard.name in there and (folder / shard.name).stat().st_size != shard.bytes:
            wrong.append(f"{shard.name} ({(folder / shard.name).stat().st_size} bytes for {shard.bytes})")
        elif shard.name in there and files.sha256(folder / shard.name) != shard.sha256:
            wrong.append(f"{shard.name} (sha256)")
        if shard.index in there and files.sha256(folder / shard.index) != shard.index_sha256:
            wrong.append(f"{shard.index} (sha256)")
    return [
        judge("shards", "the files named in the manifest", len(named), stray),
        judge("shards", "size and sha256 as in the manifest", len(named), wrong),
    ]


def check_samples(folder: Path, shards: Sequence[Shard], parts: Sequence[Path]) -> list[Verdict]:
    """Check what is in the shards: counts, keys and members. The files must have passed `check_files`."""
    rows = {shard.name: rows_of(folder / shard.index) for shard in shards}
    counts = [f"{s.name} ({rows[s.name]} for {s.samples})" for s in shards if rows[s.name] != s.samples]
    strays = [stray for shard in shards for stray in _members(folder, shard)]
    total = sum(rows.values())
    return [
        judge("shards", "samples as in the manifest", len(shards), counts),
        judge("shards", "each member at its offset, with the key and facts of the index", total, strays),
        judge("shards", "the items of the sample's part", total, _part_differences(folder, shards, parts)),
    ]


def _part_differences(folder: Path, shards: Sequence[Shard], parts: Sequence[Path]) -> Iterator[str]:
    """Yield the items that the shards of a part lack, or have and should not."""
    wanted = {path.stem: path for path in parts}
    for part in sorted({*wanted} | {shard.part for shard in shards}):
        indexes = [folder / shard.index for shard in shards if shard.part == part]
        found = set(read(indexes, ["key"], INDEX)["key"].to_pylist())
        sample = [wanted[part]] if part in wanted else []
        expected = set(read(sample, ["parent_asin"], SAMPLE)["parent_asin"].to_pylist())
        yield from (f"{key} (missing of {part})" for key in sorted(expected - found))
        yield from (f"{key} (unknown in {part})" for key in sorted(found - expected))


def _members(folder: Path, shard: Shard) -> Iterator[str]:
    """Yield the samples of a shard whose members are not what the index says."""
    index = read([folder / shard.index], [name for name in INDEX.names if name != "tokens"], INDEX)
    with (
        (folder / shard.name).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar,
    ):
        for row in index.to_pylist():
            if fault := _fault(tar, row):
                yield f"{row['key']} ({fault} in {shard.name})"


def _fault(tar: mmap.mmap, row: dict[str, Any]) -> str:
    key = row["key"]
    for kind in ("jpg", "json"):
        header = tar[max(0, row[f"{kind}_offset"] - _BLOCK) : row[f"{kind}_offset"]]
        if header[:100].rstrip(b"\0") != f"{key}.{kind}".encode():
            return f"no header of {key}.{kind} before its offset"
    if tar[row["jpg_offset"] : row["jpg_offset"] + 2] != b"\xff\xd8":
        return "jpg is no JPEG"
    try:
        facts = msgspec.json.decode(tar[row["json_offset"] : row["json_offset"] + row["json_length"]])
        own = {name: facts[name] for name in ("parent_asin", *_INDEXED)}
    except (msgspec.DecodeError, KeyError, TypeError):
        return "json cannot be read"
    expected = {"parent_asin": key} | {name: row[name] for name in _INDEXED}
    own["average_rating"] = pa.scalar(own["average_rating"], pa.float32()).as_py()
    return next((f"json has {name} {own[name]!r}" for name in expected if own[name] != expected[name]), "")


def check_reader(folder: Path, shards: Sequence[Shard]) -> Verdict:
    """Check that ``datasets`` streams the first sample as a webdataset, with its image and facts."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import: nothing here needs the hub
    import datasets  # noqa: PLC0415 -- a second

    urls = [str((folder / shard.name).resolve()) for shard in shards]
    first = read([folder / shards[0].index], ["key"], INDEX)["key"][0].as_py()
    try:
        stream = datasets.load_dataset("webdataset", data_files={"train": urls}, split="train", streaming=True)
        sample = next(iter(stream))
        found = {"key": sample["__key__"], "image": sample["jpg"].mode, "columns": sorted(sample)}
        absent = [name for name in FACTS if sample["json"].get(name) is None]
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

"""Checks of the exclusions: they are items of the sample, not too many, and no near duplicate is left without one.

Input: the parts of ``data/sample``, ``data/images`` and ``data/exclusions``. Output: verdicts.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from prep.core.cluster import dask_pool
from prep.core.params import Limits, Params
from prep.core.parts import TRAIN, VALIDATION, excluded
from prep.core.tables.exclusions import EXCLUSIONS
from prep.core.tables.sample import SAMPLE
from validation.columns import read_columns, rows_of
from validation.verdicts import Verdict, judge

_SHOWN = ["parent_asin", "reason", "other_split", "other_category", "other_asin"]


def of_the_sample(parts: Sequence[Path], exclusions: Sequence[Path]) -> Verdict:
    """Check that each excluded item is in the part of the sample with the same name."""
    names, wrong, rows = {path.name: path for path in parts}, [], 0
    for path in exclusions:
        own = read_columns([path], ["parent_asin"], EXCLUSIONS)["parent_asin"]
        part = [names[path.name]] if path.name in names else []
        items = read_columns(part, ["parent_asin"], SAMPLE)["parent_asin"]
        rows += len(own)
        wrong += own.filter(pc.invert(pc.is_in(own, value_set=items))).to_pylist()
    return judge("exclusions", "items of the same part of the sample", rows, wrong)


def fractions(parts: Sequence[Path], exclusions: Sequence[Path], limits: Limits) -> list[Verdict]:
    """Judge the fraction of the training and of the validation items that are excluded.

    Args:
        parts: the parts of the sample of a category.
        exclusions: those of its exclusions.
        limits: ``validation.near_duplicate_fraction``.
    """
    verdicts = []
    for split in (TRAIN, VALIDATION):
        rows = sum(rows_of(path) for path in parts if path.stem.startswith(split))
        gone = read_columns([path for path in exclusions if path.stem.startswith(split)], _SHOWN, EXCLUSIONS)
        examples = [
            f"{r['parent_asin']} like {r['other_category']}/{r['other_asin']} ({r['other_split']}, {r['reason']})"
            for r in gone.to_pylist()
        ]
        few = f"few near duplicates in {split} (validation.near_duplicate_fraction)"
        allowed, warn_above = (int(fraction * rows) for fraction in (limits.fail_above, limits.warn_above))
        verdicts.append(judge("exclusions", few, rows, examples, allowed, warn_above))
    return verdicts


def none_left(params: Params, data: Path) -> Verdict:
    """Check that every near duplicate of a later split is excluded, in all categories."""
    from shards.decontaminate import all_parts, find_exclusions  # noqa: PLC0415 -- no other gate decodes images

    parts, found, left = all_parts(params.source.categories, data.absolute()), 0, []
    with tempfile.TemporaryDirectory(dir=data.absolute()) as work, dask_pool(params.dask, Path(work)) as pool:
        for part, expected in find_exclusions(parts, params.decontaminate.reasons, Path(work), pool):
            gone = excluded(data / "sample" / part.category / part.sample.name)
            found += expected.num_rows
            kept = expected.filter(pc.invert(pc.is_in(expected["parent_asin"], value_set=gone)))
            left += [f"{part.category}/{r['parent_asin']} like {r['other_asin']}" for r in kept.to_pylist()]
    return judge("exclusions", "no near duplicate of a validation or test item is left", found, left)

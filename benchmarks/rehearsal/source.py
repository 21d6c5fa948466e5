"""Write the raw files of the synthetic twin, in the layout of the hub's repository.

Input: the number of items. Output: ``raw/meta_categories`` and ``raw/review_categories`` in a folder, and beside each
file its sha256. Guarantees: a file has its name only when it is complete, and a complete one is not written again;
memory is bounded by the rows written at once and, for reviews, by the ids of a category.
"""

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.rehearsal.figures import Figures, figures
from benchmarks.rehearsal.twin import Twin
from prep.core.files import atomic_write
from prep.core.tables.raw import Kind
from prep.source import PATHS


def write_source(folder: Path, items: int) -> dict[str, int]:
    """Write what is missing of the source; return the numbers of items, reviews and bytes.

    Args:
        folder: where to.
        items: number of items over all categories.
    """
    fitted = figures()
    found = Twin(fitted, items).shares
    tasks = [(kind, category) for kind in PATHS for category in found]
    tasks.sort(key=lambda task: -(found[task[1]].reviews if task[0] == "reviews" else 9 * found[task[1]].items))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sizes = list(pool.map(partial(_write, folder, fitted, items), tasks))
    return {
        "items": sum(share.items for share in found.values()),
        "reviews": sum(share.reviews for share in found.values()),
        "bytes": sum(sizes),
    }


def _write(folder: Path, fitted: Figures, items: int, task: tuple[Kind, str]) -> int:
    """Write a file if it is missing; return its size in bytes."""
    kind, category = task
    path = folder / PATHS[kind].format(category)
    digest_path = path.with_name(f"{path.name}.sha256")
    if not digest_path.exists():
        twin = Twin(fitted, items)
        digest = hashlib.sha256()
        with atomic_write(path) as partial_path, partial_path.open("wb") as file:
            for lines in twin.item_lines(category) if kind == "items" else twin.review_lines(category):
                digest.update(lines)
                file.write(lines)
        with atomic_write(digest_path) as partial_path:
            partial_path.write_text(digest.hexdigest())
    return path.stat().st_size

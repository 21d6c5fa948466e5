"""The rows of a CSV file of items, as `effimini predict` reads them.

Input: the file.
Output: its rows as texts, with the numbers of their lines.
Guarantees: a file that is not such a CSV is a `UserError` that names the line; no library that takes long to import is
imported, so the header is checked at once.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from prep.core.errors import UserError
from prep.core.text import present

INPUT_COLUMNS = ("parent_asin", "main_category", "title", "features", "description", "image_paths")


def csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row of a CSV file of items with the number of its last line; words for an absent value are empty.

    Args:
        path: the file; its header contains `INPUT_COLUMNS`.

    Raises:
        UserError: the file cannot be read, or a column or a cell is missing; the message names the line.
    """
    csv.field_size_limit(sys.maxsize)  # descriptions may be longer than the default limit
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if missing := [name for name in INPUT_COLUMNS if name not in (reader.fieldnames or ())]:
                raise UserError(
                    f"{path}, line 1: no column {', '.join(missing)}; the header must contain "
                    f"{', '.join(INPUT_COLUMNS)}, found {', '.join(reader.fieldnames or ()) or 'nothing'}"
                )
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}, line {reader.line_num}: the row does not have {len(reader.fieldnames or ())} cells "
                        "like the header; quote text that contains commas or quotes"
                    )
                yield reader.line_num, {name: present(cell) for name, cell in row.items()}
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; set --input to the CSV file of items") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; set --input to the CSV file of items") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(
            f"{path}, after line {reader.line_num}: not valid CSV ({error}); quote cells that contain quotes"
        ) from None


def check_begin(path: Path) -> None:
    """Check the header and the first row, without reading the others.

    Raises:
        UserError: as in `csv_rows`.
    """
    next(csv_rows(path), None)

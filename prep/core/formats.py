"""The formats of files, which later versions of EffiMini may change.

Input: a JSON file that states its format. Output: none, or an error. Guarantees: a file of a format that this version
does not read is refused before anything else of it is read.
"""

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any

import msgspec

from prep.core.errors import UserError

VERSION = r"[0-9]{1,5}(\.[0-9]{1,5}){0,3}"  # of EffiMini, as a file states it


class _Head(msgspec.Struct):
    """What every version reads of a file."""

    format: Any = 1
    needs: Any = None  # the first version of EffiMini that reads the file


def check_format(content: bytes, readable: Sequence[int], where: str, otherwise: str) -> None:
    """Check that this version reads the format of a file.

    Args:
        content: JSON; one that states no format has format 1.
        readable: the formats that this version reads, in order.
        where: the file, for the message.
        otherwise: what else the user can do than install another version.

    Raises:
        UserError: it does not; the message names the version that does, if the file is newer and states it.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: the content is not a JSON object.
    """
    head = msgspec.json.decode(content, type=_Head)
    if type(head.format) is int and head.format in readable:
        return
    if type(head.format) is int and head.format > readable[-1]:
        states = isinstance(head.needs, str) and re.fullmatch(VERSION, head.needs)
        what = f"install EffiMini {head.needs} or newer" if states else "install a newer version of EffiMini"
        otherwise = f"{what}, or {otherwise}"
    known = ", ".join(map(str, readable))
    raise UserError(f"{where} has format {head.format!r:.20} and EffiMini {version()} reads {known}; {otherwise}")


def version() -> str:
    """Return the version of EffiMini, or "from a checkout" if it is not installed."""
    try:
        return installed("effimini")
    except PackageNotFoundError:
        return "from a checkout"

"""Errors that a user can fix, text that is safe to print, and the budget of rejected rows.

Input: an error of a library or of the system, text from elsewhere, or counts of rejected rows by reason. Output: an
error message of one line, and text that is safe to print. Guarantees: a stage stops if it rejects more rows than its
budget allows.
"""

import errno
import os
import re
from collections.abc import Mapping

_SHOWN = 60  # characters of a value in a message
# Control characters (line ends too), marks that change the direction of text, line and paragraph separators, and
# surrogates, which cannot be encoded.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# What the system answers to a write that it refuses, and what to do about it.
_REFUSALS = {
    errno.ENOSPC: "free disk space, or set EFFIMINI_STORE to a folder on a larger disk",
    errno.EDQUOT: "free disk space, or raise the quota",
    errno.EFBIG: "raise the limit on the size of files (`ulimit -f`)",
    errno.EROFS: "make the disk writable, or choose another folder",
    errno.EACCES: "change its permissions, or choose another folder",
    errno.EPERM: "change its permissions, or choose another folder",
    errno.EIO: "check the disk",
    errno.ENOTDIR: "remove the file that is in the place of a folder, or choose another folder",
    errno.EISDIR: "remove the folder that is in the place of a file, or choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "raise the limit on open files of this machine",
}

_PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]*(?=@)")  # user and password of a URL


class UserError(Exception):
    """An error that the user can fix. Its message is one line: what, where, the value found, what to do next.

    The command line prints it without a traceback and exits with code 2.
    """


def first_sentence(error: Exception) -> str:
    """Return the first sentence of a library's error as one line, to quote in our own message."""
    return " ".join(str(error).split()).split(". ")[0]


def printable(text: str) -> str:
    r"""Return text of one line as it may be shown in a terminal or a log.

    Control characters are escaped (``\x1b``, ``\n``), so that it steers no terminal; passwords of URLs are left out.
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], _PASSWORD.sub("***", text))


def of_system(error: BaseException) -> UserError | None:
    """Return the error message for a full or read-only disk and the like, None for an error of another kind.

    Args:
        error: what was raised, possibly a group of errors.
    """
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(of_system, error.exceptions)), None)
    if not isinstance(error, OSError) or error.errno not in _REFUSALS:
        return None
    name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "a file"
    return UserError(
        f"{name} cannot be read or written ({os.strerror(error.errno)}); {_REFUSALS[error.errno]}; then run the same "
        "command again, which goes on from what is kept"
    )


def check_budget(bad: Mapping[str, int], total: int, share: float, what: str, hint: str) -> None:
    """Raise if the fraction of rejected rows exceeds the budget.

    Args:
        bad: number of rejected rows by reason.
        total: number of rows, accepted and rejected.
        share: the budget, a fraction of `total` from 0 to 1.
        what: what the rows are, for the message, for example "lines of meta_All_Beauty.jsonl".
        hint: what the user can do next.

    Raises:
        UserError: more than `share` of `total` is rejected.
    """
    count = sum(bad.values())
    if count > share * total:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(bad.items(), key=lambda r: (-r[1], r[0])))
        raise UserError(f"{count} of {total} {what} are unusable ({reasons}), over the budget of {share:.1%}; {hint}")


def shown(value: object) -> str:
    """Return the first characters of a value for a message, without control characters and line breaks."""
    text = value if isinstance(value, str) else str(value)
    begin = "".join(char if char.isprintable() else " " for char in text[:_SHOWN])
    return f"{begin}..." if text[_SHOWN:] else begin.rstrip()

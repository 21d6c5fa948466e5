"""The number of files and connections that a process may have open.

Output: a higher limit for this process and those that it starts, and the limit.

The usual limit of 1,024 is low because of select(), which nothing here uses.
"""

import sys

_UNLIMITED = 1 << 16  # where the system sets no limit


def limit() -> int:
    """Return the number of descriptors that this process may have open."""
    if sys.platform == "win32":
        return _UNLIMITED
    import resource  # noqa: PLC0415 -- absent on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else int(soft)


def raise_limit() -> None:
    """Raise the limit as far as the system allows without more rights."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 -- absent on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _UNLIMITED if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))

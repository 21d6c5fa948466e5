"""Ask git.

Input: a folder and the words of a git command. Output: what git prints. Guarantees: nothing is changed by the commands
that this package gives; a command that fails raises `UserError`.
"""

import subprocess
from pathlib import Path

from prep.core.errors import UserError


def git(folder: Path, *words: str) -> str:
    """Return what a git command prints.

    Args:
        folder: where it runs.
        words: of the command, without "git".

    Raises:
        UserError: git is not installed, or the command fails, for example because there is no repository.
    """
    try:
        done = subprocess.run(("git", *words), cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:
        raise UserError(f"git is not installed, and `git {words[0]}` is needed; install it") from None
    if done.returncode:
        raise UserError(f"git {words[0]} fails ({done.stderr.strip()}); run this in a git repository with commits")
    return done.stdout

"""A DVC project at a git revision, as a file system.

Input: the URL or path of a git repository, a revision and a folder in it. Output: an fsspec file system of the files
that DVC tracks there, read from the project's DVC cache or its remote. Guarantees: a tag or branch resolves to one
commit for this process and its forks; no file is a link to DVC's cache; a project that cannot be opened raises
`UserError`.
"""

import atexit
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo.open_repo import clean_repos
from dvc.scm import CloneError, RevError
from dvc_data.index import DataIndexDirError
from fsspec.callbacks import DEFAULT_CALLBACK, Callback

from prep.core.errors import UserError, first_sentence

_commits: dict[tuple[str, str], str] = {}  # commit of each revision when it was first opened


class Revision(DVCFileSystem):  # type: ignore[misc]  # DVC ships no types
    """DVC's file system, but `get_file` always copies: DVC's own may create a link, or skip an existing target."""

    def get_file(self, rpath: str, lpath: str, callback: Callback = DEFAULT_CALLBACK, **_: Any) -> None:
        """Copy a file to a local path; tell `callback` of every block."""
        with self.open(rpath) as source, Path(lpath).open("wb") as target:
            while block := source.read(1 << 20):
                target.write(block)
                callback.relative_update(len(block))


def open_revision(url: str, rev: str, folder: str) -> tuple[Revision, str]:
    """Return the file system of a project at a revision, and the path of the folder in it.

    Raises:
        UserError: the project, revision or folder does not exist, or the content of the folder is not available.
    """
    system = Revision(url, rev=_commits.get((url, rev), rev))
    path = system.normpath(f"/{folder}")
    try:
        _commits.setdefault((url, rev), system.repo.get_rev())
        system.find(path)  # loads the file lists once, before threads need them
        if not system.isdir(path):
            raise UserError(
                f"{url} has no folder {folder} at {rev}; name a folder that DVC tracks there, for example data/shards"
            )
    except RevError as error:
        raise UserError(
            f"{url} has no revision {rev}; name one of its tags, branches or commits (`git tag` lists tags)"
        ) from error
    except DataIndexDirError as error:
        raise UserError(
            f"the content of {folder} of {url} at {rev} is neither in its DVC cache nor in its remote; "
            "run `dvc push` where it was created"
        ) from error
    except CloneError as error:
        raise UserError(
            f"{url} cannot be cloned; correct its URL or path, or check that you have read access"
        ) from error
    except DvcException as error:
        raise UserError(f"{url} at {rev} cannot be read as a DVC project ({first_sentence(error)})") from error
    return system, path


atexit.register(clean_repos)  # DVC clones a remote repository to a temporary folder

"""A DVC project at a git revision, as a file system.

In: the URL or path of a git repository, a revision, a folder below it. Out: an fsspec file system of what DVC tracks
there, read from the project's DVC cache or else from its remote. Guaranteed: a tag or branch is one commit for this
process and those forked from it; no file is linked to DVC's cache; what cannot be opened is a sentence.
"""

import atexit
import shutil
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo.open_repo import clean_repos
from dvc.scm import CloneError, RevError
from dvc_data.index import DataIndexDirError

from prep.core.errors import UserError, first_sentence

_commits: dict[tuple[str, str], str] = {}  # what a revision was when it was first opened


class Revision(DVCFileSystem):  # type: ignore[misc]  # DVC ships no types
    """DVC's file system, which copies a file where DVC's own would leave a link, or nothing if the target exists."""

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        """Copy a file to this machine."""
        with self.open(rpath) as source, Path(lpath).open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)


def open_revision(url: str, rev: str, folder: str) -> tuple[Revision, str]:
    """Return the file system of a project at a revision, and the path of the folder in it.

    Raises:
        UserError: there is no such project, revision or folder, or what the folder holds is nowhere to be had.
    """
    system = Revision(url, rev=_commits.get((url, rev), rev))
    path = system.normpath(f"/{folder}")
    try:
        _commits.setdefault((url, rev), system.repo.get_rev())
        system.find(path)  # loads the lists of files once, before threads ask for them
        if not system.isdir(path):
            raise UserError(
                f"{url} has no folder {folder} at {rev}; name one that DVC tracks there, data/shards for example"
            )
    except RevError as error:
        raise UserError(
            f"{url} has no revision {rev}; name a tag, branch or commit of it (`git tag` lists tags)"
        ) from error
    except DataIndexDirError as error:
        raise UserError(
            f"what {folder} of {url} held at {rev} is neither in its DVC cache nor in its remote; "
            "run `dvc push` where it was made"
        ) from error
    except CloneError as error:
        raise UserError(f"{url} cannot be cloned; correct its URL or path, or see that you may read it") from error
    except DvcException as error:
        raise UserError(f"{url} at {rev} is no DVC project that can be read ({first_sentence(error)})") from error
    return system, path


atexit.register(clean_repos)  # DVC clones a remote repository to a temporary folder

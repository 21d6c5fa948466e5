"""A repository of the Hugging Face hub: create it, upload a folder to it, download files of it.

Input: the name of a repository, OWNER/NAME. Output: a commit, or a local folder. Guarantees: the transfers are
huggingface_hub's own, so what the hub or the local cache already has is not sent again; every error of the hub or the
network is a `UserError`, without the token or a signed URL in it; a repository that is to be private is private.

The endpoint and the token are those of huggingface_hub, see `prep.hub`.
"""

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Literal

import httpx2  # the HTTP client of huggingface_hub, whose exceptions it does not wrap
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # documented as public

from prep.core.errors import UserError
from prep.core.repository import NAME
from prep.core.retry import unanswered

RepositoryKind = Literal["dataset", "model"]

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN, with a token that may write there"
_AGAIN = "run the same again, which transfers only what is missing"


def create(name: str, kind: RepositoryKind, *, private: bool, branch: str | None) -> date:
    """Create a repository and a branch of it, unless they exist, and return the day on which it was created.

    Raises:
        UserError: the name is not valid, access is denied, or `private` and the repository exists and is public.
    """
    if not NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not the name of a repository on the hub; give OWNER/NAME, for example team/shards"
        )
    api = HfApi()
    with _errors(name, _LOG_IN):
        api.create_repo(name, repo_type=kind, private=private or None, exist_ok=True)
        about = api.repo_info(name, repo_type=kind)
        if branch:
            api.create_branch(name, repo_type=kind, branch=branch, exist_ok=True)
    if private and not about.private:
        raise UserError(
            f"{page(name, kind)} exists and is public, so --private has no effect; make it private in its settings, or "
            "choose another name"
        )
    created: datetime | None = getattr(about, "created_at", None)
    return created.date() if created else date.min


def upload(folder: Path, name: str, kind: RepositoryKind, branch: str | None, replaced: Sequence[str]) -> str:
    """Upload the files of a folder, and return the commit that has them all.

    Args:
        folder: its files may be links.
        name: the repository, which exists.
        kind: its kind.
        branch: the branch, which exists; None is main.
        replaced: patterns of the files in the repository that are removed if the folder does not have them.

    Raises:
        UserError: access is denied, the hub refuses a file, or it does not respond.
    """
    logging.getLogger("huggingface_hub.utils._http").addFilter(_without_queries)
    if not sys.stderr.isatty():
        disable_progress_bars()  # of each file, which fill a log
    with _errors(name, _LOG_IN):
        made = HfApi().upload_folder(
            repo_id=name,
            folder_path=folder,
            repo_type=kind,
            revision=branch,
            commit_message="Publish with EffiMini",
            delete_patterns=list(replaced),
        )
    return str(made.oid)


def download(name: str, revision: str | None, wanted: Sequence[str]) -> Path:
    """Download the files `wanted` of a model repository into huggingface_hub's cache, and return their folder.

    Raises:
        UserError: there is no such repository or revision, or the hub does not respond and the cache does not have it.
    """
    with _errors(name, "check its name; if it is private, log in with `hf auth login` or set HF_TOKEN"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted)))


def page(name: str, kind: RepositoryKind, branch: str | None = None) -> str:
    """Return the address of a repository, or of a branch of it."""
    place = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    return f"{place}/tree/{branch}" if branch else place


def _without_queries(record: logging.LogRecord) -> bool:
    """Remove what follows ? from the URLs of a log message, which may be the signature of an upload."""
    record.msg, record.args = re.sub(r"(?<=\?)\S+", "...", record.getMessage()), ()
    return True


@contextmanager
def _errors(name: str, access: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into a `UserError`; `access` says what to do if access is denied."""
    hub = f"the hub ({constants.ENDPOINT})"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError(f"{hub} cannot be used for {name} because HF_HUB_OFFLINE is set; unset it") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{hub} does not respond, and {name} was not downloaded before; check the network and HF_HUB_OFFLINE"
        ) from error
    except (HfHubHTTPError, httpx2.RequestError, httpx2.InvalidURL, ValueError, RuntimeError, OSError) as error:
        raise _refusal(error, name, hub, access) from error


def _refusal(error: BaseException, name: str, hub: str, access: str) -> UserError:
    """Return the message for an error that huggingface_hub raised."""
    if isinstance(error, (httpx2.RequestError, httpx2.InvalidURL)):
        return UserError(f"{hub} does not respond for {name} ({unanswered(error, constants.ENDPOINT)}); {_AGAIN}")
    if not isinstance(error, HfHubHTTPError):
        if error.__cause__ is not None and not isinstance(error, ValueError):  # "Error while uploading ... to the Hub"
            return _refusal(error.__cause__, name, hub, access)
        return UserError(
            f"{name} cannot be transferred ({' '.join(str(error).split())[:300]}); correct this, or {_AGAIN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{name} has no such revision on {hub}; give one of its branches, tags or commits")
    status = error.response.status_code
    if isinstance(error, RepositoryNotFoundError) or status in {401, 403}:
        reason = error.response.headers.get("X-Error-Message", "no reason given")[:200]
        return UserError(f"{hub} gives no access to {name} (HTTP {status}: {reason}); {access}")
    reason = error.response.headers.get("X-Error-Message", "no reason given")[:200]
    return UserError(f"{hub} responded with HTTP {status} for {name} ({reason}); {_AGAIN}")

"""Access the dataset repository on the Hugging Face hub at a commit.

Input: a commit and file names.
Output: the size and sha256 of a file, folder listings, and the latest commit.
Guarantees: every URL contains the given commit. The token is sent only to the endpoint and is never part of a message.
Transient errors are retried.

The endpoint and the token are those of huggingface_hub: ``HF_ENDPOINT`` (default https://huggingface.co), and
``HF_TOKEN`` or `hf auth login`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import httpx2  # the HTTP client of huggingface_hub, whose exceptions it does not wrap
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented as public

from prep.core.errors import UserError
from prep.core.retry import DEFAULT_POLICY, RetryPolicy, TransientError, is_transient, requested_wait
from prep.ranges import Remote

REPO = "McAuley-Lab/Amazon-Reviews-2023"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"

T = TypeVar("T")


def remote(revision: str, name: str, policy: RetryPolicy = DEFAULT_POLICY) -> Remote:
    """Return the URL, size and hash of a file in the repository.

    Args:
        revision: a commit.
        name: path of the file in the repository.
        policy: retries of the request.

    Raises:
        UserError: there is no such repository, commit or file, access is denied, or the hub does not respond.
    """
    found = asking(
        lambda: HfApi().get_paths_info(REPO, [name], revision=revision, repo_type="dataset"), revision, policy
    )
    file = next((file for file in found if isinstance(file, RepoFile)), None)
    if file is None:
        raise UserError(
            f"{REPO} has no file {name} at {revision}; check source.categories against `effimini categories --hub`"
        )
    return Remote(
        url=hf_hub_url(REPO, name, repo_type="dataset", revision=revision),
        size=file.size,
        version=file.lfs.sha256 if file.lfs else file.blob_id,
        sha256=file.lfs.sha256 if file.lfs else "",
        headers=_headers,
        hint=_access_hint(),
    )


def _headers() -> Mapping[str, str]:
    return build_hf_headers()


def newest_commit(policy: RetryPolicy = DEFAULT_POLICY) -> str:
    """Return the latest commit of the repository's main branch.

    Raises:
        UserError: the repository cannot be read.
    """
    refs = asking(lambda: HfApi().list_repo_refs(REPO, repo_type="dataset"), "main", policy)
    return next(str(branch.target_commit) for branch in refs.branches if branch.name == "main")


def listing(revision: str, folder: str = "") -> dict[str, int]:
    """Return the paths in a folder of the repository, sorted, with their sizes in bytes (0 for a folder).

    Args:
        revision: a commit.
        folder: path of the folder; "" is the root.

    Raises:
        UserError: there is no such folder, or as in `remote`.
    """

    def ask() -> list[RepoFile | RepoFolder]:
        tree: Iterable[RepoFile | RepoFolder] = HfApi().list_repo_tree(
            REPO, folder or None, revision=revision, repo_type="dataset"
        )
        return list(tree)

    found = asking(ask, revision, RetryPolicy(max_attempts=1))  # huggingface_hub itself retries pages of a listing
    return {entry.path: entry.size if isinstance(entry, RepoFile) else 0 for entry in sorted(found, key=_path)}


def _path(entry: RepoFile | RepoFolder) -> str:
    return entry.path


def address(revision: str, name: str) -> str:
    """Return the hf:// URL of a file, for `datasets` and fsspec."""
    return f"hf://datasets/{REPO}@{revision}/{name}"


def asking(ask: Callable[[], T], revision: str, policy: RetryPolicy = DEFAULT_POLICY) -> T:
    """Call huggingface_hub, with retries of transient errors, and return the result.

    Args:
        ask: makes the request with the library.
        revision: the requested commit, for error messages.
        policy: retries of the request.

    Raises:
        UserError: the error is permanent, or all attempts failed.
    """

    def once() -> T:
        try:
            return ask()
        except HfHubHTTPError as error:
            status = error.response.status_code
            if is_transient(status):
                raise TransientError(f"HTTP {status}", wait=requested_wait(error.response.headers)) from error
            raise
        except httpx2.RequestError as error:
            raise TransientError(f"{type(error).__name__}: {error}") from error

    hub = f"the hub ({constants.ENDPOINT})"
    try:
        return policy.retrying()(once)
    except TransientError as fault:
        raise UserError(
            f"{hub} does not respond after {policy.max_attempts} attempts ({fault}); check the network and "
            "HF_ENDPOINT, or set source.kind: mirror"
        ) from fault
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"{hub} cannot be used because HF_HUB_OFFLINE is set; unset it, or set source.kind: mirror"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(_refusal(error, hub, revision)) from error


def _access_hint() -> str:
    page = f"{constants.ENDPOINT}/datasets/{REPO}"
    return f"check that you have access to {page}: accept its terms of use there if it has any, and {_LOG_IN}"


def _refusal(error: HfHubHTTPError, hub: str, revision: str) -> str:
    """Return the error message for a permanent HTTP error."""
    if isinstance(error, GatedRepoError):
        return f"{REPO} is a gated repository on {hub}; {_access_hint()}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{hub} has no repository {REPO}, or it is private; {_access_hint()}"
    if isinstance(error, RevisionNotFoundError):
        return f"{REPO} has no commit {revision}; set source.revision to one that `effimini categories --hub` prints"
    if isinstance(error, EntryNotFoundError):
        return f"{REPO} has no {error.response.url.path} at {revision}; compare with `effimini categories --hub`"
    status = error.response.status_code
    reason = error.response.headers.get("X-Error-Message", "no reason given")[:200]
    hint = f"the token is not accepted: {_LOG_IN}" if status in {401, 403} else _access_hint()
    return f"{hub} responded with HTTP {status} ({reason}); {hint}"

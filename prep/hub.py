"""The dataset's repository on the Hugging Face hub, at a commit.

In: a commit and names of files. Out: what each file must be (size, sha256), the names that are there, the newest
commit. The endpoint is the library's own: ``HF_ENDPOINT``, https://huggingface.co without it; the token is found where
the library finds it (``HF_TOKEN``, or `hf auth login`). Guaranteed: a commit that is given is in every URL; the token
goes to the endpoint alone and into no message; what passes is asked again.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import httpx2  # what huggingface_hub speaks HTTP with, and lets out
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
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, by its documentation

from prep.core.errors import UserError
from prep.core.retry import DEFAULT_POLICY, RetryPolicy, TransientError, is_transient, requested_wait
from prep.ranges import Remote

REPO = "McAuley-Lab/Amazon-Reviews-2023"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"

T = TypeVar("T")


def remote(revision: str, name: str, policy: RetryPolicy = DEFAULT_POLICY) -> Remote:
    """Return what a file of the repository is.

    Args:
        revision: a commit.
        name: the file's path in the repository.
        policy: how often and how soon it is asked again.

    Raises:
        UserError: there is no such repository, commit or file, it may not be read, or the hub does not answer.
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
        hint=_may_read(),
    )


def _headers() -> Mapping[str, str]:
    return build_hf_headers()


def newest_commit(policy: RetryPolicy = DEFAULT_POLICY) -> str:
    """Return the commit that the repository's main branch is at.

    Raises:
        UserError: the repository cannot be read.
    """
    refs = asking(lambda: HfApi().list_repo_refs(REPO, repo_type="dataset"), "main", policy)
    return next(str(branch.target_commit) for branch in refs.branches if branch.name == "main")


def listing(revision: str, folder: str = "") -> dict[str, int]:
    """Return the paths in a folder of the repository and their sizes in bytes, 0 for a folder, in order.

    Args:
        revision: a commit.
        folder: its path; "" is the root.

    Raises:
        UserError: there is no such folder, or as `remote`.
    """

    def ask() -> list[RepoFile | RepoFolder]:
        tree: Iterable[RepoFile | RepoFolder] = HfApi().list_repo_tree(
            REPO, folder or None, revision=revision, repo_type="dataset"
        )
        return list(tree)

    found = asking(ask, revision, RetryPolicy(max_attempts=1))  # the library itself asks for a page of a listing again
    return {entry.path: entry.size if isinstance(entry, RepoFile) else 0 for entry in sorted(found, key=_path)}


def _path(entry: RepoFile | RepoFolder) -> str:
    return entry.path


def address(revision: str, name: str) -> str:
    """Return the hf:// URL of a file, which `datasets` and fsspec read."""
    return f"hf://datasets/{REPO}@{revision}/{name}"


def asking(ask: Callable[[], T], revision: str, policy: RetryPolicy = DEFAULT_POLICY) -> T:
    """Return what the hub answers, asking again while a fault may pass.

    Args:
        ask: asks by the library.
        revision: what is asked for, for the sentence.
        policy: how often and how soon it is asked again.

    Raises:
        UserError: the fault did not pass, or cannot.
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
            f"{hub} does not answer, however often it is asked ({fault}); check the network and HF_ENDPOINT, or set "
            "source.kind: mirror"
        ) from fault
    except OfflineModeIsEnabled as error:
        raise UserError(f"{hub} is not asked because HF_HUB_OFFLINE is set; unset it, or read a mirror") from error
    except HfHubHTTPError as error:
        raise UserError(_refusal(error, hub, revision)) from error


def _may_read() -> str:
    page = f"{constants.ENDPOINT}/datasets/{REPO}"
    return f"check that {page} may be read: accept its terms there if it has any, and {_LOG_IN}"


def _refusal(error: HfHubHTTPError, hub: str, revision: str) -> str:
    """Return the sentence for an answer that refuses."""
    if isinstance(error, GatedRepoError):
        return f"{hub} keeps {REPO} behind terms; {_may_read()}"
    if isinstance(error, RepositoryNotFoundError):
        return f"{hub} shows no {REPO}; {_may_read()}"
    if isinstance(error, RevisionNotFoundError):
        return f"{REPO} has no commit {revision}; set source.revision to one that `effimini categories --hub` prints"
    if isinstance(error, EntryNotFoundError):
        return f"{REPO} has no {error.response.url.path} at {revision}; compare with `effimini categories --hub`"
    status = error.response.status_code
    said = error.response.headers.get("X-Error-Message", "no reason given")[:200]
    refused = f"the token is refused: {_LOG_IN}" if status in {401, 403} else _may_read()
    return f"{hub} answered {status} ({said}); {refused}"

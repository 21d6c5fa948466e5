"""Access the dataset repository on the Hugging Face hub at a commit.

Input: a commit and file names.
Output: the size and sha256 of a file, folder listings, and the latest commit.
Guarantees: every URL contains the given commit. The token is sent only to the endpoint and is never part of a message.
Transient errors are retried.

The endpoint and the token are those of huggingface_hub: ``HF_ENDPOINT`` (default https://huggingface.co), and
``HF_TOKEN`` or `hf auth login`.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import httpx2  # the HTTP client of huggingface_hub, whose exceptions it does not wrap
from huggingface_hub import HfApi, constants, get_session, hf_hub_url, set_client_factory
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

from prep.core.errors import UserError, first_sentence
from prep.core.retry import (
    CONNECT_TIMEOUT,
    DEFAULT_POLICY,
    FIRST_TIMEOUT,
    PermanentError,
    RequestFailedError,
    RetryPolicy,
    TransientError,
    has_responded,
    is_transient,
    proxy_refusal,
    refused,
    unanswered,
    usable_proxies,
)
from prep.ranges import Remote

REPO = "McAuley-Lab/Amazon-Reviews-2023"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"

T = TypeVar("T")

log = logging.getLogger(__name__)


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
        lambda: _parsed(lambda: HfApi().get_paths_info(REPO, [name], revision=revision, repo_type="dataset")),
        revision,
        policy,
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
    refs = asking(lambda: _parsed(lambda: HfApi().list_repo_refs(REPO, repo_type="dataset")), "main", policy)
    found = next((str(branch.target_commit) for branch in refs.branches if branch.name == "main"), None)
    if found is None:
        raise UserError(f"{REPO} has no branch main on the hub ({constants.ENDPOINT}); check HF_ENDPOINT")
    return found


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

    if not has_responded(constants.ENDPOINT):
        # huggingface_hub itself retries the pages of a listing, many times
        asking(lambda: _parsed(lambda: HfApi().dataset_info(REPO, revision=revision, expand=["sha"])), revision)
    found = asking(lambda: _parsed(ask), revision, RetryPolicy(max_attempts=1))
    return {entry.path: entry.size if isinstance(entry, RepoFile) else 0 for entry in sorted(found, key=_path)}


def _parsed(ask: Callable[[], T]) -> T:
    """Call a method of HfApi, which does not check what it parses: it may be the page of a login to a network."""
    try:
        return ask()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"its response is not that of a hub: {type(error).__name__}: {first_sentence(error)}"
        raise PermanentError(what) from error


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
                raise refused(status, error.response.headers) from error
            if status == 407:
                raise proxy_refusal(constants.ENDPOINT) from error
            raise
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise unanswered(error, constants.ENDPOINT) from error

    hub = f"the hub ({constants.ENDPOINT})"
    try:
        _set_timeouts()
        return policy.call(once, constants.ENDPOINT)
    except RequestFailedError as fault:
        what = "does not respond" if isinstance(fault, TransientError) else "cannot be used"
        raise UserError(
            f"{hub} {what} {fault.summary}; check the network and HF_ENDPOINT, or set source.kind: mirror"
        ) from fault
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"{hub} cannot be used because HF_HUB_OFFLINE is set; unset it, or set source.kind: mirror"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(_refusal(error, hub, revision)) from error


@cache
def is_reachable() -> bool:
    """Return whether the hub responds; a warning in the log says why it does not."""
    if not has_responded(constants.ENDPOINT):
        try:
            asking(lambda: get_session().head(constants.ENDPOINT, timeout=CONNECT_TIMEOUT), "main")
        except UserError as error:
            log.warning("%s", error)
    return has_responded(constants.ENDPOINT)


@contextmanager
def offline_unless_reachable() -> Iterator[None]:
    """Make the libraries that use huggingface_hub look only into its cache if the hub does not respond.

    Without this each of them tries again many times, for minutes.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not is_reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@cache
def _set_timeouts() -> None:
    """Set timeouts for the requests of huggingface_hub, which has none by default."""
    with usable_proxies(httpx2.InvalidURL):
        hooks = get_session().event_hooks  # they refuse requests if HF_HUB_OFFLINE is set

    limits = dict.fromkeys(("read", "write", "pool"), FIRST_TIMEOUT) | {"connect": CONNECT_TIMEOUT}

    def bound(request: httpx2.Request) -> None:  # here, because some of its methods ask for no timeout
        given = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {name: min(given.get(name) or limit, limit) for name, limit in limits.items()}

    def client() -> httpx2.Client:
        with usable_proxies(httpx2.InvalidURL):
            return httpx2.Client(event_hooks={**hooks, "request": [*hooks["request"], bound]}, follow_redirects=True)

    set_client_factory(client)


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

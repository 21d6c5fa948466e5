"""A hub of a test, and the environment in which huggingface_hub uses it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.writable_hub import TOKEN, WritableHub


def environment(hub: WritableHub, home: Path) -> dict[str, str]:
    """Return the environment of a process that uses a hub."""
    return os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def hub_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    """Run a hub that huggingface_hub uses in this process, without Xet and without waits between attempts."""
    with WritableHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.utils._http.time", _Impatient)
        yield hub


class _Impatient:
    """The module time for huggingface_hub."""

    @staticmethod
    def sleep(seconds: float) -> None:
        """Return at once."""

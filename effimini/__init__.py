"""EffiMini: a compact image + text model of product ratings, and the shards that it streams.

The public API. Each name is imported from its module on first use, because importing torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effimini.model import EffiMini
    from shards.loader import Loader
    from shards.stream import ShardDataset

    __version__: str

__all__ = ["EffiMini", "Loader", "ShardDataset", "__version__"]
_MODULES = {"EffiMini": "effimini.model", "Loader": "shards.loader", "ShardDataset": "shards.stream"}


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562)."""
    if name == "__version__":
        return import_module("prep.core.formats").version()  # takes longer to import than this package
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

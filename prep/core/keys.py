"""Turn item ids into keys, which name tar members, and back.

Input: an id of any text, as the source has it.
Output: its key, the id percent-encoded as in a URL (RFC 3986); a dot too, because WebDataset ends a key at the first.
Guarantees: a key is a safe file name; two ids have two keys; `item_id` restores the id, without spaces around it. The
ids of the dataset are their own keys.
"""

from collections.abc import Sequence
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.compute as pc

KEY_LENGTH = 240  # characters; file systems allow 255 with the extension
KEY = f"^[A-Za-z0-9_~%-]{{1,{KEY_LENGTH}}}$"


def item_key(parent_asin: str) -> str:
    """Return the key of an id; it is too long if it has more than `KEY_LENGTH` characters."""
    return quote(parent_asin.strip(), safe="").replace(".", "%2E")


def item_id(key: str) -> str:
    """Return the id of a key."""
    return unquote(key)


def item_keys(ids: Sequence[str]) -> pa.Array:
    """Return the keys of ids, at little cost if they are plain."""
    found = pa.array(ids, pa.string())
    if pc.all(pc.ascii_is_alnum(found), min_count=0).as_py():
        return found
    return pa.array(map(item_key, ids), pa.string())

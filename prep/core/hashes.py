"""Keyed 64-bit hashes, vectorized.

Input: a salt, and strings or bytes.
Output: unsigned integers.
Guarantees: SipHash with a key derived from the salt, the same on every machine; different salts give unrelated hashes.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pandas as pd


def hashes(salt: str, values: Sequence[str] | Sequence[bytes] | npt.NDArray[np.object_]) -> npt.NDArray[np.uint64]:
    """Return the hash of each of `values`, uint64."""
    key = blake2b(salt.encode(), digest_size=8).hexdigest()  # pandas requires a key of 16 characters
    array = np.asarray(values, dtype=object)
    result: npt.NDArray[np.uint64] = pd.util.hash_array(array, hash_key=key, categorize=False)
    return result


def units(salt: str, values: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return the hash of each of `values` as a float64 in [0, 1)."""
    return (hashes(salt, values) >> np.uint64(11)) / float(1 << 53)

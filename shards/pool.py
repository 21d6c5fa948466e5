"""Memory for batches that is used again once a batch is no longer referred to.

Input: shapes. Output: arrays. Guarantees: memory is not used again as long as anything refers to its array, or to a
tensor made from it; at most a given number of unused arrays is kept.

Without it each batch is given memory by the system, which clears it first.
"""

import weakref
from collections import deque
from math import prod

import numpy as np
import numpy.typing as npt


class Pool:
    """The memory of the images of batches, for several threads."""

    def __init__(self, spare: int) -> None:
        """Start empty.

        Args:
            spare: number of unused arrays that are kept.
        """
        self._unused: deque[npt.NDArray[np.uint8]] = deque(maxlen=spare)

    def take(self, *shape: int) -> npt.NDArray[np.uint8]:
        """Return an array with any content; its memory comes back with the last reference to the array."""
        size = prod(shape)
        try:
            memory = self._unused.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        if memory.size < size:
            memory = np.empty(size, np.uint8)
        array = memory[:size].reshape(shape)
        weakref.finalize(array, self._unused.append, memory).atexit = False
        return array

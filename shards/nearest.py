"""Nearest neighbours among millions of short vectors, in time that hardly grows per vector.

Input: int8 vectors. Output: for each query the nearest of the indexed vectors. The index is an inverted file (J. Sivic
and A. Zisserman, Video Google, ICCV 2003): vectors are divided into cells around some of them, and a query is compared
with the vectors in the cells with the nearest centres, which are found by an index of centres.
Guarantees: the same result on every machine, because all sums are integers that float32 holds exactly; equal vectors
are compared once, so copies cost nothing; memory is that of the vectors and of a block of queries. A neighbour in a
cell that is not searched is missed: docs/benchmarks.md has the recall.
"""

import numpy as np
import numpy.typing as npt

NONE = -1  # position and distance of a neighbour that does not exist
_CELL = 256  # mean number of vectors in a cell
_CELLS_SEARCHED = 6  # for a query
_SMALL = 4 * _CELL  # an index of so few vectors has no cells
_QUERIES = 1 << 19  # searched at once
_PAIRS = 1 << 22  # distances in memory at once
_POSITIONS = 1 << 26  # a key is distance * _POSITIONS + position, which float64 holds exactly

Vectors = npt.NDArray[np.int8]
Numbers = npt.NDArray[np.int64]
_Keys = npt.NDArray[np.float64]


class NearestIndex:
    """An index of vectors.

    Args:
        vectors: int8 [N, D], values from -127 to 127; D is at most 256, and N at most 67 million.
    """

    def __init__(self, vectors: Vectors) -> None:
        rows = np.ascontiguousarray(vectors).view(f"V{vectors.shape[1]}").ravel()
        self._positions = np.sort(np.unique(rows, return_index=True)[1])  # the first of each distinct vector
        self._vectors = vectors[self._positions]
        self._centres: NearestIndex | None = None
        if len(self._vectors) > _SMALL:
            chosen = np.random.default_rng(0).choice(len(self._vectors), len(self._vectors) // _CELL, replace=False)
            self._centres = NearestIndex(self._vectors[np.sort(chosen)])
            cells = self._centres.search(self._vectors, 1)[0][:, 0]
            by_cell = np.argsort(cells, kind="stable")
            self._starts = np.searchsorted(cells[by_cell], np.arange(len(chosen) + 1))
            self._positions, self._vectors = self._positions[by_cell], self._vectors[by_cell]

    def search(self, queries: Vectors, count: int, max_distance: float = np.inf) -> tuple[Numbers, Numbers]:
        """Return the positions of the `count` nearest vectors of each query, and their squared distances.

        Args:
            queries: int8 [Q, D].
            count: number of neighbours; of equal vectors only the first one is a neighbour.
            max_distance: squared Euclidean distance up to which a vector is a neighbour.

        Returns:
            Positions and squared Euclidean distances, int64 [Q, count] each, the nearest first and of equally near ones
            the first; `NONE` where there are fewer neighbours.
        """
        found = np.full((len(queries), count), np.inf)
        for start in range(0, len(queries), _QUERIES):
            block = queries[start : start + _QUERIES]
            if self._centres is None:
                found[start : start + _QUERIES] = self._nearest(block, slice(None), count, max_distance)
            else:
                found[start : start + _QUERIES] = self._search_cells(block, count, max_distance)
        absent = np.isinf(found)
        found[absent] = 0
        positions, distances = (found % _POSITIONS).astype(np.int64), (found // _POSITIONS).astype(np.int64)
        positions[absent], distances[absent] = NONE, NONE
        return positions, distances

    def _search_cells(self, queries: Vectors, count: int, max_distance: float) -> _Keys:
        """Search the nearest cells of all queries, one cell after the other: each is a product of two matrices."""
        assert self._centres is not None
        cells, _ = self._centres.search(queries, _CELLS_SEARCHED)
        order = np.argsort(cells, axis=None, kind="stable")
        bounds = np.searchsorted(cells.ravel()[order], np.arange(len(self._starts)))
        found = np.full((cells.size, count), np.inf)
        for cell in np.flatnonzero(np.diff(bounds)):
            asking = order[bounds[cell] : bounds[cell + 1]]
            members = slice(self._starts[cell], self._starts[cell + 1])
            found[asking] = self._nearest(queries[asking // _CELLS_SEARCHED], members, count, max_distance)
        return _smallest(found.reshape(len(queries), -1), count)

    def _nearest(self, queries: Vectors, members: slice, count: int, max_distance: float) -> _Keys:
        """Return the keys of the nearest of some vectors, float64 [Q, count]."""
        vectors, positions = self._vectors[members].astype(np.float32), self._positions[members]
        found = np.full((len(queries), count), np.inf)
        if not len(vectors):
            return found
        lengths = np.square(vectors).sum(1)
        step = max(1, _PAIRS // len(vectors))
        for start in range(0, len(queries), step):
            some = queries[start : start + step].astype(np.float32)
            distances = some @ (-2 * vectors.T)
            distances += lengths
            distances += np.square(some).sum(1)[:, None]
            near = np.flatnonzero(distances.min(1) <= max_distance)  # most queries have no neighbour in most cells
            keys = distances[near].astype(np.float64)
            keys[keys > max_distance] = np.inf
            keys = _smallest(keys * _POSITIONS + positions, count)
            found[start + near, : keys.shape[1]] = keys
        return found


def _smallest(keys: _Keys, count: int) -> _Keys:
    """Return the `count` smallest values of each row in order, or all if there are fewer."""
    if count == 1:
        return keys.min(1, keepdims=True)
    if keys.shape[1] > count:
        keys = np.partition(keys, count - 1, axis=1)[:, :count]
    return np.sort(keys, axis=1)

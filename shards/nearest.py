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
_CELL = 512  # mean number of vectors in a cell
_CELLS_SEARCHED = 12  # for a query
_SMALL = 4 * _CELL  # an index of so few vectors has no cells
_CROWDED = 16 * _CELL  # maximum size of a cell; the centre of a larger one is replaced by others
_ROUNDS = 8  # of dividing vectors into cells
_QUERIES = 1 << 19  # searched at once
_PAIRS = 1 << 18  # distances computed at once; they stay in a processor's cache
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
            self._divide()

    def _divide(self) -> None:
        """Divide the vectors into cells around some of them.

        In a dense cluster one vector may be nearest to most others. As a centre it would have a crowded cell, and time
        would be quadratic; so vectors of its cell take its place.
        """
        number = len(self._vectors)
        centres, nearest = np.empty(0, np.int64), np.zeros(number, np.int64)  # positions of vectors
        rng, crowd = np.random.default_rng(0), np.arange(number)
        for _ in range(_ROUNDS):
            others = rng.choice(crowd, len(crowd) // _CELL, replace=False)
            centres = np.union1d(np.setdiff1d(centres, nearest[crowd]), others)
            self._centres = NearestIndex(self._vectors[centres])
            nearest[crowd] = centres[self._centres.search(self._vectors[crowd], 1)[0][:, 0]]
            crowd = np.flatnonzero(np.bincount(nearest)[nearest] > _CROWDED)
            if not len(crowd):
                break
        by_cell = np.argsort(nearest, kind="stable")
        self._starts = np.searchsorted(nearest[by_cell], [*centres, number])
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
        none = np.floor(max_distance + 1) * _POSITIONS  # greater than the key of any neighbour
        found = np.full((len(queries), count), none)
        for start in range(0, len(queries), _QUERIES):
            self._search(queries[start : start + _QUERIES], found[start : start + _QUERIES])
        positions, distances = np.full((2, *found.shape), NONE)
        exists = found < none
        distances[exists], positions[exists] = np.divmod(found[exists], _POSITIONS)
        return positions, distances

    def _search(self, queries: Vectors, found: _Keys) -> None:
        """Search the nearest cells of all queries, one cell after the other: each is a product of two matrices."""
        if self._centres is None:
            self._search_cell(slice(None), queries, np.arange(len(queries)), found)
            return
        cells, _ = self._centres.search(queries, _CELLS_SEARCHED)
        by_cell = np.argsort(cells, axis=None, kind="stable")
        bounds = np.searchsorted(cells.ravel()[by_cell], np.arange(len(self._starts)))
        for cell in np.flatnonzero(np.diff(bounds)):
            asking = by_cell[bounds[cell] : bounds[cell + 1]] // _CELLS_SEARCHED
            self._search_cell(slice(self._starts[cell], self._starts[cell + 1]), queries, asking, found)

    def _search_cell(self, cell: slice, queries: Vectors, asking: Numbers, found: _Keys) -> None:
        """Replace keys found for the asking queries, each row of them sorted, by smaller keys of vectors in a cell."""
        vectors, positions = self._vectors[cell].astype(np.float32), self._positions[cell]
        if not len(vectors):
            return
        right = np.column_stack([-2 * vectors, np.square(vectors).sum(1), np.ones(len(vectors), np.float32)]).T
        step = max(1, _PAIRS // len(vectors))
        for start in range(0, len(asking), step):
            rows = some = asking[start : start + step]
            left = queries[some].astype(np.float32)
            left = np.column_stack([left, np.ones(len(left), np.float32), np.square(left).sum(1)])
            distances, before = left @ right, found[some]
            # the cell's nearest vector is nearer than the last found before, its second nearest than the last but one
            for last in reversed(range(max(0, found.shape[1] - len(vectors)), found.shape[1])):
                nearest = np.arange(len(rows)), distances.argmin(1)  # the first of equally near ones
                keys = distances[nearest] * float(_POSITIONS) + positions[nearest[1]]
                distances[nearest] = np.inf
                nearer = np.flatnonzero(keys < before[:, last])
                if not len(nearer):
                    break
                if len(nearer) < len(rows):
                    rows, keys, before, distances = rows[nearer], keys[nearer], before[nearer], distances[nearer]
                found[rows, last] = keys
            found[some] = np.sort(found[some], axis=1)

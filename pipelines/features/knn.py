"""Nearest keys of queries: an exact search in blocks, and an approximate index for keys larger than memory.

Both skip keys of a query's own group, and both choose among close candidates by products in float64, so the result does not
depend on which queries are searched together, on the block size or on the device.
"""

from collections.abc import Callable

import numpy as np

Rows = Callable[[np.ndarray], np.ndarray]  # places [n] to float32 [n, F]

_BYTES = 1 << 28  # of one block of similarities
_SLACK = 1e-5  # maximum error of a product of unit rows in float32
_BLOCK = 1 << 16  # keys read at a time
_PAIRS = 1 << 14  # pairs whose products are computed at a time
_CANDIDATES = 32  # candidates from the index for each query
_SAMPLE = 64  # keys per list that are used to place the lists
_LISTS_SEARCHED = 1 / 16  # share of the lists


def nearest(queries: np.ndarray, keys: np.ndarray, groups: np.ndarray, key_groups: np.ndarray, device: str = "cpu") -> np.ndarray:
    """int64 [n]: for each query, the key of another group with the largest product; the first of equal ones, -1 for none.

    Args:
        queries, keys: float32 [n, F] and [Q, F].
        groups, key_groups: int64 [n] and [Q].
    """
    import torch

    best = np.full(len(queries), -1)
    if not len(keys):
        return best
    device_keys, device_groups = torch.from_numpy(keys).to(device), torch.from_numpy(key_groups).to(device)
    longest = device_keys.norm(dim=1).max()
    step = max(1, _BYTES // (4 * len(keys)))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        block = torch.from_numpy(queries[part]).to(device)
        products = block @ device_keys.T
        products.masked_fill_(torch.from_numpy(groups[part]).to(device)[:, None] == device_groups, -torch.inf)
        least = products.max(1).values - _SLACK * block.norm(dim=1) * longest
        close = (products >= least[:, None]) & least.isfinite()[:, None]
        rows, places = close.nonzero().T.cpu().numpy()
        best[part] = _best(queries[part], lambda at: keys[at], rows, places)
    return best


def _best(queries: np.ndarray, keys: Rows, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """int64 [n]: for each query, the best of the keys that it is paired with; the first of equal ones, -1 if it has no pair.

    Args:
        rows, places: int64 [p] each: pairs of a query and a key.
    """
    products = np.empty(len(rows))
    for start in range(0, len(rows), _PAIRS):
        part = slice(start, start + _PAIRS)
        # Each row is summed alone and in the same order: equal keys have equal products.
        products[part] = (queries[rows[part]].astype(np.float64) * keys(places[part])).sum(axis=1)
    order = np.lexsort((places, -products, rows))
    firsts = order[np.unique(rows[order], return_index=True)[1]]
    best = np.full(len(queries), -1)
    best[rows[firsts]] = places[firsts]
    return best


class Approximate:
    """faiss's inverted lists of 8-bit codes: a quarter of the keys' memory, and a sixteenth of them searched.

    The index only gives candidates; the rows decide among them. If all candidates are of the query's own group, the search is
    exact. Every process that builds the lists from the same rows gets the same lists.
    """

    def __init__(self, keys: Rows, groups: np.ndarray):
        """`groups`: int64 [Q], of keys 0 to Q - 1, which are unit rows and are read in blocks."""
        import faiss

        self._keys, self._groups = keys, groups
        count = len(groups)
        self._blocks = [np.arange(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
        lists = max(1, min(round(2 * count**0.5), count // 8))
        sample = keys(np.unique(np.linspace(0, count - 1, _SAMPLE * lists).astype(np.int64)))
        width = sample.shape[1]
        flat = faiss.IndexFlatIP(width)
        self._index = faiss.IndexIVFScalarQuantizer(flat, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.min_points_per_centroid = 1  # no warning about small sets
        self._index.nprobe = max(8, round(lists * _LISTS_SEARCHED))
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # sums in one order, whatever the machine
        try:
            self._index.train(sample)
            for block in self._blocks:
                self._index.add(keys(block))
        finally:
            faiss.omp_set_num_threads(threads)

    def nearest(self, queries: np.ndarray, groups: np.ndarray, device: str = "cpu") -> np.ndarray:
        """Like the function `nearest`, but approximate for a few queries."""
        candidates = self._index.search(queries, min(_CANDIDATES, len(self._groups)))[1]  # [n, k], -1: no more
        other = (candidates >= 0) & (self._groups[candidates] != groups[:, None])
        rows, columns = other.nonzero()
        best = _best(queries, self._keys, rows, candidates[rows, columns])
        left = np.flatnonzero(best < 0)
        if len(left):
            best[left] = self._exactly(queries[left], groups[left], device)
        return best

    def _exactly(self, queries: np.ndarray, groups: np.ndarray, device: str) -> np.ndarray:
        """Block by block, then the best of the blocks' best."""
        pairs = []
        for block in self._blocks:
            places = nearest(queries, self._keys(block), groups, self._groups[block], device)
            rows = np.flatnonzero(places >= 0)
            pairs.append((rows, block[places[rows]]))
        rows, places = (np.concatenate(side) for side in zip(*pairs, strict=True))
        return _best(queries, self._keys, rows, places)

"""k-reciprocal re-ranking: distances that also ask whether two entries have the same neighbours.

Zhong, Zheng, Cao and Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR
2017. All probes and the whole gallery together are the set in which neighbours are looked for, as
in the paper; so a probe's result depends on the other probes.

With n rows, it takes two passes over distances (n x n, then probes x gallery), but holds only the
nearest few of each row and sparse vectors.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaitgl.distances import (
    BLOCK_BYTES,
    Blocks,
    Distance,
    Embeddings,
    distance_blocks,
    pair_distances,
)


class SparseRows(NamedTuple):
    """n rows of a sparse matrix, one after the other, columns rising."""

    starts: NDArray[np.int64]
    """[n + 1]: row i is ``columns[starts[i]:starts[i + 1]]`` and the same of ``values``."""
    columns: NDArray[np.int64]
    values: NDArray[np.float64]

    def entries(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of some rows, one after the other, where each entry lies and to which of them it belongs.

        [r] -> positions in ``columns``, positions in ``rows``.
        """
        counts = self.starts[rows + 1] - self.starts[rows]
        owner = np.repeat(np.arange(len(rows)), counts)
        within = np.arange(len(owner)) - np.repeat(counts.cumsum() - counts, counts)
        return self.starts[rows][owner] + within, owner


def reranked_blocks(
    embeddings: Embeddings,
    probe_rows: NDArray[np.int64],
    gallery_rows: NDArray[np.int64],
    distance: Distance,
    block_bytes: int = BLOCK_BYTES,
    k1: int = 20,
    k2: int = 6,
    original_share: float = 0.3,
    on_block: Callable[[int], object] | None = None,
) -> Blocks:
    """Re-ranked distances from probes to the gallery, a few probes at a time.

    With d(i, j) the squared distance of two rows as a share of row i's greatest one:

    - R(i, k): the rows j among i's k nearest that have i among theirs; a row is its own nearest.
    - R*(i): R(i, k1), and every R(j, k1 / 2) of a j in R(i, k1) that lies to more than two thirds
      in R(i, k1).
    - V_i: exp(-d(i, j)) at each j in R*(i), and 0 elsewhere, scaled to sum 1; then the mean of the
      V_j of the k2 nearest of i.
    - Jaccard distance of i and j: 1 - sum min(V_i, V_j) / sum max(V_i, V_j).

    The result is (1 - original_share) * Jaccard distance + original_share * d(probe, entry).

    Args:
        embeddings, probe_rows, gallery_rows, distance: see `distance_blocks`.
        block_bytes: see `distance_blocks`; of the first pass, working memory is about five times
            that and one float32 copy of all rows.
        k1, k2, original_share: see above; the paper's values.
        on_block: called after each block of the first pass, which takes by far the most time, with
            the number of its rows.

    Yields:
        (rows, distances) as `distance_blocks` does, float32 from 0 to 1.

    Raises:
        ValueError: k1 or k2 is below 1, k2 above k1, or the share not within 0 to 1; and
            `distance_blocks`'.
    """
    if not 1 <= k2 <= k1 or not 0 <= original_share <= 1:
        raise ValueError(
            f"re-ranking: expected 1 <= k2 <= k1 and an original share from 0 to 1, got k1 = {k1}, "
            f"k2 = {k2}, share = {original_share}"
        )
    rows = np.concatenate([probe_rows, gallery_rows])
    near, greatest = _neighbours(embeddings, rows, distance, block_bytes, k1, on_block)
    expanded = _expanded(near, k1)
    encoded = _encoded(embeddings, rows, distance, block_bytes, expanded, greatest)
    vectors = _averaged(encoded, near[:, :k2])
    entries_with = _gallery_by_column(vectors, first=len(probe_rows))

    for part, distances in distance_blocks(
        embeddings, probe_rows, gallery_rows, distance, block_bytes
    ):
        for row, original in zip(range(part.start, part.stop), distances, strict=True):  # [m]
            common = _common(vectors, row, entries_with, len(gallery_rows))  # [m]
            jaccard = 1 - common / (2 - common)  # each V sums to 1: sum max is 2 - sum min
            share = original.astype(np.float64) ** 2 / greatest[row]
            original[:] = (1 - original_share) * jaccard + original_share * share
        yield part, distances


def _neighbours(
    embeddings: Embeddings,
    rows: NDArray[np.int64],
    distance: Distance,
    block_bytes: int,
    k1: int,
    on_block: Callable[[int], object] | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each row, then its nearest k1; at one distance the row that comes first is nearer.

    Returns:
        near [n, min(k1 + 1, n)] as positions in ``rows``, and each row's greatest squared distance
        [n], 1 where it is 0.
    """
    n, k = len(rows), min(k1 + 1, len(rows))
    near = np.empty((n, k), np.int64)
    greatest = np.empty(n)
    for part, distances in distance_blocks(embeddings, rows, rows, distance, block_bytes):
        b = len(distances)
        greatest[part] = distances.max(axis=1).astype(np.float64) ** 2
        distances[np.arange(b), np.arange(part.start, part.stop)] = -1  # itself comes first
        bound = np.partition(distances, k - 1, axis=1)[:, k - 1]
        owner, column = np.nonzero(distances <= bound[:, None])  # k of each row, more if tied
        order = np.lexsort((column, distances[owner, column], owner))
        starts = np.searchsorted(owner, np.arange(b))
        near[part] = column[order[starts[:, None] + np.arange(k)]]
        if on_block is not None:
            on_block(b)
    return near, np.where(greatest > 0, greatest, 1)


def _reciprocal(near: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """Which of the nearest k (and itself) have the row among theirs: [n, min(k + 1, all)]."""
    near = near[:, : k + 1]
    result = np.zeros(near.shape, np.bool_)
    for column in range(near.shape[1]):
        result[:, column] = (near[near[:, column]] == np.arange(len(near))[:, None]).any(axis=1)
    return result


def _expanded(near: NDArray[np.int64], k1: int) -> list[NDArray[np.int64]]:
    """R* of each row, rising; see `reranked_blocks`."""
    half = int(np.around(k1 / 2))
    mutual, mutual_half = _reciprocal(near, k1), _reciprocal(near, half)
    near_half = near[:, : half + 1]
    result = []
    for row in range(len(near)):
        own = near[row, mutual[row]]  # R(i, k1)
        joined = [own]
        for candidate in own:
            others = near_half[candidate, mutual_half[candidate]]  # R(j, k1 / 2)
            if 3 * np.isin(others, own).sum() > 2 * len(others):
                joined.append(others)
        result.append(np.unique(np.concatenate(joined)))
    return result


def _encoded(
    embeddings: Embeddings,
    rows: NDArray[np.int64],
    distance: Distance,
    block_bytes: int,
    expanded: list[NDArray[np.int64]],
    greatest: NDArray[np.float64],
) -> SparseRows:
    """V of each row before averaging; see `reranked_blocks`."""
    counts = np.array([len(columns) for columns in expanded])
    starts = np.append(0, counts.cumsum())
    columns = np.concatenate(expanded)
    owner = np.repeat(np.arange(len(rows)), counts)
    distances = pair_distances(embeddings, rows[owner], rows[columns], distance, block_bytes)
    weights = np.exp(-(distances.astype(np.float64) ** 2) / greatest[owner])
    return SparseRows(starts, columns, weights / np.add.reduceat(weights, starts[:-1])[owner])


def _averaged(vectors: SparseRows, near: NDArray[np.int64]) -> SparseRows:
    """For each row the mean of the vectors of some rows: [n, k] positions."""
    n, k = near.shape
    counts, columns, values = [], [], []
    for row in range(n):
        at, _ = vectors.entries(near[row])
        found, position = np.unique(vectors.columns[at], return_inverse=True)
        counts.append(len(found))
        columns.append(found)
        values.append(np.bincount(position, vectors.values[at]) / k)
    starts = np.append(0, np.cumsum(counts))
    return SparseRows(starts, np.concatenate(columns), np.concatenate(values))


def _gallery_by_column(vectors: SparseRows, first: int) -> SparseRows:
    """Rows from ``first`` on, turned: for each column, which of them have a value there."""
    n = len(vectors.starts) - 1
    owner = np.repeat(np.arange(n), np.diff(vectors.starts))
    used = np.flatnonzero(owner >= first)
    used = used[np.argsort(vectors.columns[used], kind="stable")]
    starts = np.searchsorted(vectors.columns[used], np.arange(n + 1))
    return SparseRows(starts, owner[used] - first, vectors.values[used])


def _common(
    vectors: SparseRows, row: int, entries_with: SparseRows, count: int
) -> NDArray[np.float64]:
    """Sum of min(V_row, V_j) over columns, for each of ``count`` gallery entries j."""
    own = slice(vectors.starts[row], vectors.starts[row + 1])
    at, column = entries_with.entries(vectors.columns[own])
    least = np.minimum(vectors.values[own][column], entries_with.values[at])
    return np.bincount(entries_with.columns[at], least, minlength=count).astype(np.float64)

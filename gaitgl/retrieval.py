"""Retrieval metrics: per-probe values first, averages last.

Two protocols on the same embeddings:

    first_match_rank -> rank_table          one gallery per view (OUMVLP 14 x 14, CASIA-E)
    cross_view_gallery -> cross_view_table  all views as one gallery

`rank_by_view` is the first of them in one call. Each goes through all distances once. Several
results from one pass (these, and `gaitgl.verification`'s):

    pairs = compared_pairs(embeddings, subjects, sequences, views, gallery, probe)
    blocks = distance_blocks(embeddings, pairs.probes, pairs.gallery, "euclidean")
    first, cross = FirstMatchPass(pairs), CrossViewPass(pairs)
    for block in right_and_wrong(pairs, blocks):
        first.add(block)
        cross.add(block)
    first.result(), cross.result()

Rows are sequences: embeddings [n, c, strips] as NumPy array (a memory map will do) or tensor on any
device, and three string arrays [n] that name the subject, sequence and view of each row.

Ties: where a wrong gallery entry is exactly as far from the probe as a right one, the wrong one
ranks first. So ranks do not depend on the order of the rows, and embeddings that are all alike
score 0, not 100. Distances are compared as computed: a matrix product in float32 may give equal
embeddings distances that are a last digit apart. Of several wrong (or right) entries that are
nearest, the first by view, subject and row number is named.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from gaitgl.distances import BLOCK_BYTES, Blocks, Embeddings
from gaitgl.distances import Distance as Distance  # importable from here, too
from gaitgl.distances import distance_blocks as distance_blocks

Unmatched = Literal["count", "drop"]
Strings = NDArray[np.str_]


class Pairs(NamedTuple):
    """What is compared: p probes with a gallery of m entries from V views.

    The gallery is sorted by view, then subject, so that a view's entries are neighbours and so are
    the right ones among them.
    """

    probes: NDArray[np.int64]
    """[p]: row numbers of the probes."""
    gallery: NDArray[np.int64]
    """[m]: row numbers of the gallery."""
    first: NDArray[np.int64]
    """[p, V]: a probe's right entries in each view are ``gallery[first:last]``."""
    last: NDArray[np.int64]
    """[p, V]: see ``first``."""
    views: Strings
    """[V]: the views of all rows, sorted, whether or not they have a gallery."""
    probe_view: NDArray[np.int64]
    """[p]: each probe's view, as position in ``views``."""
    probe_subject: NDArray[np.int64]
    """[p]: each probe's subject, as position among the probes' S subjects, sorted."""
    view_ends: NDArray[np.int64]
    """[V]: a view's entries are ``gallery[view_ends[v] - gallery_sizes[v]:view_ends[v]]``."""
    gallery_sizes: NDArray[np.int64]
    """[V]: entries in each view's gallery."""


class Block(NamedTuple):
    """Distances of b neighbouring probes, right and wrong entries apart."""

    rows: slice
    """Which of the p probes."""
    right: NDArray[np.float32]
    """[b, V, M]: to the right entries of each view, in the order of the gallery; infinite past the
    last one."""
    wrong: NDArray[np.float32]
    """[b, m]: to the gallery; infinite where an entry is right."""


class FirstMatch(NamedTuple):
    """Rank of the first right gallery entry, for each of p probes and V gallery views."""

    ranks: NDArray[np.int64]
    """[p, V], from 1; 0 where the probe's subject has no sequence in that view's gallery."""
    right_distances: NDArray[np.float32]
    """[p, V]: of the nearest right entry; infinite where there is none."""
    right_rows: NDArray[np.int64]
    """[p, V]: row number of that entry; -1 where there is none."""
    wrong_distances: NDArray[np.float32]
    """[p, V]: of the nearest wrong entry; infinite where there is none."""
    wrong_rows: NDArray[np.int64]
    """[p, V]: row number of that entry; -1 where there is none."""
    probes: NDArray[np.int64]
    """[p]: row numbers of the probes."""
    probe_views: Strings
    """[p]: the probes' views."""
    views: Strings
    """[V]: the gallery views, sorted; all views of the rows, whether or not they have a gallery."""
    gallery_sizes: NDArray[np.int64]
    """[V]: entries in each view's gallery."""


class CrossView(NamedTuple):
    """How each of p probes fares against one gallery of all views."""

    ranks: NDArray[np.int64]
    """[p]: rank of the first right entry, from 1; 0 where the gallery holds none."""
    average_precision: NDArray[np.float64]
    """[p], in (0, 1]; NaN where the gallery holds no right entry."""
    inverse_negative_penalty: NDArray[np.float64]
    """[p], in (0, 1]: number of right entries / rank of the last of them; its mean is mINP. NaN as
    above."""
    right_distances: NDArray[np.float32]
    """[p]: of the nearest right entry; infinite where there is none."""
    right_rows: NDArray[np.int64]
    """[p]: row number of that entry; -1 where there is none."""
    wrong_distances: NDArray[np.float32]
    """[p]: of the nearest wrong entry; infinite where there is none."""
    wrong_rows: NDArray[np.int64]
    """[p]: row number of that entry; -1 where there is none."""
    probes: NDArray[np.int64]
    """[p]: row numbers of the probes."""
    probe_views: Strings
    """[p]: the probes' views."""
    views: Strings
    """[V]: the views of all rows, sorted."""


class CrossViewTable(NamedTuple):
    """Percentages for each of V probe views; probes without a right entry are left out."""

    rank1: NDArray[np.float64]
    mean_average_precision: NDArray[np.float64]
    mean_inverse_negative_penalty: NDArray[np.float64]


def view_order(views: Strings) -> Strings:
    """Return the views in the order of every table's axes: sorted, each once."""
    return np.unique(views)


def rank_by_view(
    embeddings: Embeddings,
    subjects: Strings,
    sequences: Strings,
    views: Strings,
    gallery: Sequence[str] = ("01",),
    probe: Sequence[str] = ("00",),
    ranks: Sequence[int] = (1, 5),
    distance: Distance = "euclidean",
    unmatched: Unmatched = "count",
    block_bytes: int = BLOCK_BYTES,
) -> NDArray[np.float64]:
    """Rank-k accuracy for every pair of probe view and gallery view, in percent.

    See `first_match_rank` and `rank_table`, which this calls one after the other.

    Returns:
        float64 [ranks, probe view, gallery view], views in `view_order(views)`.
    """
    first = first_match_rank(
        embeddings, subjects, sequences, views, gallery, probe, distance, block_bytes
    )
    return rank_table(first, ranks, unmatched)


def first_match_rank(
    embeddings: Embeddings,
    subjects: Strings,
    sequences: Strings,
    views: Strings,
    gallery: Sequence[str] = ("01",),
    probe: Sequence[str] = ("00",),
    distance: Distance = "euclidean",
    block_bytes: int = BLOCK_BYTES,
) -> FirstMatch:
    """Rank of the first right match, for each probe in the gallery of each view.

    Rank-k and CMC curves of any breakdown derive from it.

    Args:
        embeddings: [n, c, strips], finite.
        subjects, sequences, views: string arrays [n].
        gallery, probe: names in `sequences` that make up the gallery and the probes.
        distance: see `distance_blocks`.
        block_bytes: bound of a block of distances; see `distance_blocks`.

    Raises:
        ValueError: lengths differ, values are not finite, gallery or probes are empty or overlap,
            or the distance is unknown.
    """
    pairs = compared_pairs(embeddings, subjects, sequences, views, gallery, probe)
    first = FirstMatchPass(pairs)
    blocks = distance_blocks(embeddings, pairs.probes, pairs.gallery, distance, block_bytes)
    for block in right_and_wrong(pairs, blocks):
        first.add(block)
    return first.result()


def cross_view_gallery(
    embeddings: Embeddings,
    subjects: Strings,
    sequences: Strings,
    views: Strings,
    gallery: Sequence[str] = ("01",),
    probe: Sequence[str] = ("00",),
    distance: Distance = "euclidean",
    block_bytes: int = BLOCK_BYTES,
) -> CrossView:
    """Second protocol: all views are one gallery; what shares subject and view is dropped.

    Arguments and errors are those of `first_match_rank`. With the right entries at ranks
    r_1 < ... < r_M, average precision is mean_j j / r_j (no interpolation) and the inverse negative
    penalty is M / r_M.
    """
    pairs = compared_pairs(embeddings, subjects, sequences, views, gallery, probe)
    cross = CrossViewPass(pairs)
    blocks = distance_blocks(embeddings, pairs.probes, pairs.gallery, distance, block_bytes)
    for block in right_and_wrong(pairs, blocks):
        cross.add(block)
    return cross.result()


def compared_pairs(
    embeddings: Embeddings,
    subjects: Strings,
    sequences: Strings,
    views: Strings,
    gallery: Sequence[str] = ("01",),
    probe: Sequence[str] = ("00",),
) -> Pairs:
    """Which rows are compared; arguments and errors are those of `first_match_rank`."""
    shapes = [np.shape(ids) for ids in (subjects, sequences, views)]
    if embeddings.ndim != 3 or any(shape != (len(embeddings),) for shape in shapes):
        raise ValueError(
            "expected embeddings [n, c, strips] and n subjects, sequences and views, got "
            f"{tuple(embeddings.shape)} and {shapes[0]}, {shapes[1]}, {shapes[2]}"
        )
    shared = sorted(set(gallery) & set(probe))
    if shared:
        raise ValueError(f"sequences {shared} are gallery and probe; they would find themselves")
    probe_rows = np.flatnonzero(np.isin(sequences, list(probe)))
    gallery_rows = np.flatnonzero(np.isin(sequences, list(gallery)))
    if not len(probe_rows) or not len(gallery_rows):
        raise ValueError(
            f"{len(probe_rows)} probes (sequences {list(probe)}) and {len(gallery_rows)} gallery "
            f"entries (sequences {list(gallery)}) among {len(sequences)} rows, whose sequences are "
            f"named {np.unique(sequences).tolist()[:20]}; both are needed"
        )
    order, view_code = np.unique(views, return_inverse=True)
    _, subject_code = np.unique(subjects, return_inverse=True)
    key = view_code * len(subjects) + subject_code
    gallery_rows = gallery_rows[np.argsort(key[gallery_rows], kind="stable")]
    wanted = np.arange(len(order)) * len(subjects) + subject_code[probe_rows, None]  # [p, V]
    view_ends = np.searchsorted(view_code[gallery_rows], np.arange(len(order)), side="right")
    return Pairs(
        probes=probe_rows,
        gallery=gallery_rows,
        first=np.searchsorted(key[gallery_rows], wanted, side="left"),
        last=np.searchsorted(key[gallery_rows], wanted, side="right"),
        views=order,
        probe_view=view_code[probe_rows],
        probe_subject=np.unique(subject_code[probe_rows], return_inverse=True)[1],
        view_ends=view_ends,
        gallery_sizes=np.diff(view_ends, prepend=0),
    )


def right_and_wrong(pairs: Pairs, blocks: Blocks) -> Iterator[Block]:
    """Take the right entries out of blocks of distances [b, m] from `pairs`' probes to its gallery.

    A block's array becomes `Block.wrong`: it is written into, not copied.
    """
    most = int((pairs.last - pairs.first).max())
    for rows, distances in blocks:
        column = pairs.first[rows, :, None] + np.arange(most)  # [b, V, M]
        probe, view, entry = np.nonzero(column < pairs.last[rows, :, None])
        column = column[probe, view, entry]
        right = np.full((*pairs.first[rows].shape, most), np.inf, np.float32)  # [b, V, M]
        right[probe, view, entry] = distances[probe, column]
        distances[probe, column] = np.inf
        yield Block(rows, right, distances)


class FirstMatchPass:
    """Collects a `FirstMatch` block by block: one gallery per view."""

    def __init__(self, pairs: Pairs) -> None:
        shape = pairs.first.shape  # [p, V]
        self._pairs = pairs
        self._ranks = np.zeros(shape, np.int64)
        self._right_distances = np.full(shape, np.inf, np.float32)
        self._right_rows = np.full(shape, -1, np.int64)
        self._wrong_distances = np.full(shape, np.inf, np.float32)
        self._wrong_rows = np.full(shape, -1, np.int64)

    def add(self, block: Block) -> None:
        pairs, rows = self._pairs, block.rows
        right, column = _nearest(block.right, pairs.first[rows])  # [b, V]
        self._right_distances[rows] = right
        self._right_rows[rows] = np.where(np.isfinite(right), pairs.gallery[column], -1)
        for view, (size, end) in enumerate(zip(pairs.gallery_sizes, pairs.view_ends, strict=True)):
            if not size:
                continue
            wrong = block.wrong[:, end - size : end]  # [b, size]
            nearest, column = _nearest(wrong, np.full(len(wrong), end - size))
            self._wrong_distances[rows, view] = nearest
            self._wrong_rows[rows, view] = np.where(np.isfinite(nearest), pairs.gallery[column], -1)
            rank = np.isfinite(right[:, view]).astype(np.int64)
            behind = np.flatnonzero(rank & (nearest <= right[:, view]))
            rank[behind] += np.count_nonzero(wrong[behind] <= right[behind, view, None], axis=1)
            self._ranks[rows, view] = rank

    def result(self) -> FirstMatch:
        pairs = self._pairs
        return FirstMatch(
            ranks=self._ranks,
            right_distances=self._right_distances,
            right_rows=self._right_rows,
            wrong_distances=self._wrong_distances,
            wrong_rows=self._wrong_rows,
            probes=pairs.probes,
            probe_views=pairs.views[pairs.probe_view],
            views=pairs.views,
            gallery_sizes=pairs.gallery_sizes,
        )


class CrossViewPass:
    """Collects a `CrossView` block by block: one gallery of all views."""

    def __init__(self, pairs: Pairs) -> None:
        count = len(pairs.probes)
        most = len(pairs.views) * int((pairs.last - pairs.first).max())
        self._pairs = pairs
        self._right_ranks = np.zeros((count, most), np.int64)  # [p, R]; 0 past a probe's last one
        self._right_distances = np.full(count, np.inf, np.float32)
        self._right_rows = np.full(count, -1, np.int64)
        self._wrong_distances = np.full(count, np.inf, np.float32)
        self._wrong_rows = np.full(count, -1, np.int64)

    def add(self, block: Block) -> None:
        pairs, rows = self._pairs, block.rows
        nearest, column = _nearest(block.wrong, np.zeros(len(block.wrong), np.int64))  # [b]
        self._wrong_distances[rows] = nearest
        self._wrong_rows[rows] = np.where(np.isfinite(nearest), pairs.gallery[column], -1)

        right = block.right.copy()  # [b, V, M]
        right[np.arange(len(right)), pairs.probe_view[rows]] = np.inf
        by_view, column = _nearest(right, pairs.first[rows])  # [b, V]
        view = by_view.argmin(axis=1)  # [b]
        nearest = np.take_along_axis(by_view, view[:, None], axis=1)[:, 0]
        row = pairs.gallery[np.take_along_axis(column, view[:, None], axis=1)[:, 0]]
        self._right_distances[rows] = nearest
        self._right_rows[rows] = np.where(np.isfinite(nearest), row, -1)

        right = np.sort(right.reshape(len(right), -1), axis=1)  # [b, R]
        count = np.isfinite(right).sum(axis=1)
        for i, (found, wrong) in enumerate(zip(count, block.wrong, strict=True)):
            if found:
                ahead = _count_up_to(wrong, right[i, :found])
                self._right_ranks[rows.start + i, :found] = ahead + np.arange(1, found + 1)

    def result(self) -> CrossView:
        pairs, right_ranks = self._pairs, self._right_ranks
        found = right_ranks > 0
        count = found.sum(axis=1)
        nth = np.arange(1, found.shape[1] + 1)
        precision = nth / np.where(found, right_ranks, 1)
        last = np.maximum(right_ranks.max(axis=1, initial=0), 1)
        return CrossView(
            ranks=right_ranks.min(axis=1, where=found, initial=np.iinfo(np.int64).max)
            * (count > 0),
            average_precision=mean_of_known(np.where(found, precision, np.nan)),
            inverse_negative_penalty=np.where(count > 0, count / last, np.nan),
            right_distances=self._right_distances,
            right_rows=self._right_rows,
            wrong_distances=self._wrong_distances,
            wrong_rows=self._wrong_rows,
            probes=pairs.probes,
            probe_views=pairs.views[pairs.probe_view],
            views=pairs.views,
        )


def rank_table(
    first: FirstMatch, ranks: Sequence[int] = (1, 5), unmatched: Unmatched = "count"
) -> NDArray[np.float64]:
    """Average first-match ranks into rank-k accuracies, in percent.

    Args:
        first: of `first_match_rank`.
        ranks: the k of each rank-k, >= 1.
        unmatched: what becomes of a probe whose subject is missing from the gallery of a view.
            "count": it counts as a miss, as GaitSet and OpenGait report. "drop": it leaves that
            pair's average. The two differ by several points on OUMVLP.

    Returns:
        float64 [ranks, probe view, gallery view]; NaN for a pair without probes or without gallery.

    Raises:
        ValueError: unknown `unmatched`, or a rank below 1.
    """
    if unmatched not in get_args(Unmatched):
        raise ValueError(f"unmatched: expected 'count' or 'drop', got {unmatched!r}")
    _check_ranks(ranks)
    counted = np.broadcast_to(first.gallery_sizes > 0, first.ranks.shape)
    if unmatched == "drop":
        counted = counted & (first.ranks > 0)
    table = np.full((len(ranks), len(first.views), len(first.views)), np.nan)
    for row, view in enumerate(first.views):
        probes = first.probe_views == view
        found = first.ranks[probes]  # [probes of this view, V]
        for depth, k in enumerate(ranks):
            hit = (found >= 1) & (found <= k)
            table[depth, row] = _percent(hit, counted[probes])
    return table


def mean_of_known(values: NDArray[Any], axis: int | tuple[int, ...] = -1) -> NDArray[np.float64]:
    """Mean over axes; NaN values do not count, and NaN is the mean of none."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=axis, dtype=np.float64)
    count = known.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def mean_without_diagonal(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over all pairs of different views: [..., V, V] -> [...]. NaN pairs are left out."""
    diagonal = np.eye(table.shape[-1], dtype=np.bool_)
    return mean_of_known(np.where(diagonal, np.nan, table), axis=(-2, -1))


def mean_per_probe_view(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the other gallery views: [..., V, V] -> [..., V]. NaN pairs are left out."""
    diagonal = np.eye(table.shape[-1], dtype=np.bool_)
    return mean_of_known(np.where(diagonal, np.nan, table))


def cross_view_table(result: CrossView) -> CrossViewTable:
    """Average `cross_view_gallery` for each probe view, in percent; NaN where nothing is left."""
    matched = result.ranks > 0

    def by_view(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.array(
            [_percent(values[probes], matched[probes]) for probes in _probes_by_view(result)]
        )

    return CrossViewTable(
        rank1=by_view(result.ranks == 1),
        mean_average_precision=by_view(result.average_precision),
        mean_inverse_negative_penalty=by_view(result.inverse_negative_penalty),
    )


def _nearest(
    distances: NDArray[np.float32], first: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Least of the last axis, and its column in a gallery, of which the axis begins at ``first``.

    [..., k], [...] -> [...], [...]; infinity and any column where all are infinite or k is 0.
    """
    if not distances.shape[-1]:
        return np.full(first.shape, np.inf, np.float32), np.zeros_like(first)
    position = distances.argmin(axis=-1)
    least = np.take_along_axis(distances, position[..., None], axis=-1)[..., 0]
    return least, np.where(np.isfinite(least), first + position, 0)


def _count_up_to(values: NDArray[np.float32], bounds: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many of the values are <= each bound: [m], [k] rising -> [k].

    What is past the last bound is made alike before sorting, which is then almost three times as
    fast. Leaving it out is slower: which values are near is as good as random to the processor.
    """
    past = np.nextafter(bounds[-1], np.float32(np.inf))
    return np.searchsorted(np.sort(np.minimum(values, past)), bounds, side="right")


def _check_ranks(ranks: Sequence[int]) -> None:
    if any(k < 1 for k in ranks):
        raise ValueError(f"ranks: expected numbers from 1, got {tuple(ranks)}")


def _probes_by_view(result: CrossView) -> NDArray[np.bool_]:
    """[V, p]: which probes were taken from each view."""
    return np.equal(result.views[:, None], result.probe_views)


def _percent(values: NDArray[Any], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    return 100 * mean_of_known(np.where(counted, values, np.nan), axis=0)

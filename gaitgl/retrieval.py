"""Retrieval metrics: per-probe values first, averages last.

Two protocols on the same embeddings:

    first_match_rank -> rank_table          one gallery per view (OUMVLP 14 x 14, CASIA-E)
    cross_view_gallery -> cross_view_table  all views as one gallery

`rank_by_view` is the first of them in one call.

Rows are sequences: embeddings [n, c, strips] as NumPy array (a memory map will do) or tensor on any
device, and three string arrays [n] that name the subject, sequence and view of each row.

Ties: where a wrong gallery entry is exactly as far from the probe as a right one (in float32), the
wrong one ranks first. So results do not depend on the order of the rows, and embeddings that are
all alike score 0, not 100.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Distance = Literal["euclidean", "strip_euclidean", "cosine"]
Unmatched = Literal["count", "drop"]
Embeddings = Tensor | NDArray[Any]
Strings = NDArray[np.str_]

BLOCK_BYTES = 32 * 2**20
TILE_BYTES = 2**20
"""Of a block of distances, what is worked on at once, so that it stays in a core's cache."""


class FirstMatch(NamedTuple):
    """Rank of the first right gallery entry, for each of p probes and V gallery views."""

    ranks: NDArray[np.int64]
    """[p, V], from 1; 0 where the probe's subject has no sequence in that view's gallery."""
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
    probe_rows, gallery_rows = _split(embeddings, subjects, sequences, views, gallery, probe)
    order = view_order(views)
    view_code = np.searchsorted(order, views)
    _, subject_code = np.unique(subjects, return_inverse=True)

    # With the gallery sorted by view, then subject, the entries of a view are a slice, and so are
    # the right entries of a probe in it: columns first[i, v] up to last[i, v].
    key = view_code * len(subjects) + subject_code
    gallery_rows = gallery_rows[np.argsort(key[gallery_rows], kind="stable")]
    wanted = np.arange(len(order)) * len(subjects) + subject_code[probe_rows, None]  # [p, V]
    first = np.searchsorted(key[gallery_rows], wanted, side="left")
    last = np.searchsorted(key[gallery_rows], wanted, side="right")
    view_ends = np.searchsorted(view_code[gallery_rows], np.arange(len(order)), side="right")
    view_sizes = np.diff(view_ends, prepend=0)

    most = int((last - first).max())
    ranks = np.zeros(wanted.shape, np.int64)
    for rows, distances in distance_blocks(
        embeddings, probe_rows, gallery_rows, distance, block_bytes
    ):
        right = _gather_slices(distances, first[rows], last[rows], most)  # [b, V, most]
        nearest = right.min(axis=2, initial=np.inf)  # [b, V]
        own = (right <= nearest[:, :, None]).sum(axis=2) * np.isfinite(nearest)
        for view, (size, end) in enumerate(zip(view_sizes, view_ends, strict=True)):
            as_near = distances[:, end - size : end] <= nearest[:, view, None]
            ranks[rows, view] = np.count_nonzero(as_near, axis=1) - own[:, view] + 1
    ranks[first == last] = 0
    return FirstMatch(ranks, probe_rows, views[probe_rows], order, view_sizes.astype(np.int64))


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
    if any(k < 1 for k in ranks):
        raise ValueError(f"ranks: expected numbers from 1, got {tuple(ranks)}")
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


def mean_without_diagonal(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over all pairs of different views: [..., V, V] -> [...]. NaN pairs are left out."""
    diagonal = np.eye(table.shape[-1], dtype=np.bool_)
    return _mean(table, ~np.isnan(table) & ~diagonal, axis=(-2, -1))


def mean_per_probe_view(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the other gallery views: [..., V, V] -> [..., V]. NaN pairs are left out."""
    diagonal = np.eye(table.shape[-1], dtype=np.bool_)
    return _mean(table, ~np.isnan(table) & ~diagonal, axis=-1)


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
    probe_rows, gallery_rows = _split(embeddings, subjects, sequences, views, gallery, probe)
    _, subject_code = np.unique(subjects, return_inverse=True)
    _, view_code = np.unique(views, return_inverse=True)
    # With the gallery sorted by subject, a probe's own subject is columns first[i] up to last[i].
    gallery_rows = gallery_rows[np.argsort(subject_code[gallery_rows], kind="stable")]
    first = np.searchsorted(subject_code[gallery_rows], subject_code[probe_rows], side="left")
    last = np.searchsorted(subject_code[gallery_rows], subject_code[probe_rows], side="right")

    most = int((last - first).max())
    right_ranks = np.zeros((len(probe_rows), most), np.int64)  # [p, M]; 0 past a probe's last one
    for rows, distances in distance_blocks(
        embeddings, probe_rows, gallery_rows, distance, block_bytes
    ):
        own = _gather_slices(distances, first[rows], last[rows], most)  # [b, most]
        column = np.minimum(first[rows, None] + np.arange(most), len(gallery_rows) - 1)
        same_view = view_code[gallery_rows[column]] == view_code[probe_rows[rows], None]
        right = np.sort(np.where(same_view, np.inf, own), axis=1)  # [b, most]
        nth = np.arange(1, most + 1)
        for i in range(len(right)):
            as_near = _count_up_to(distances[i], right[i])
            wrong = as_near - _count_up_to(own[i], right[i])  # ties with these count against us
            right_ranks[rows.start + i] = np.where(np.isfinite(right[i]), wrong + nth, 0)

    found = right_ranks > 0
    count = found.sum(axis=1)
    precision = np.arange(1, most + 1) / np.where(found, right_ranks, 1)
    return CrossView(
        ranks=right_ranks[:, 0] if most else np.zeros(len(probe_rows), np.int64),
        average_precision=_mean(precision, found, axis=1),
        inverse_negative_penalty=np.where(
            count > 0, count / np.maximum(right_ranks.max(axis=1, initial=0), 1), np.nan
        ),
        probes=probe_rows,
        probe_views=views[probe_rows],
        views=view_order(views),
    )


def cross_view_table(result: CrossView) -> CrossViewTable:
    """Average `cross_view_gallery` for each probe view, in percent; NaN where nothing is left."""
    matched = result.ranks > 0

    def by_view(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.array(
            [
                _percent(values[probes], matched[probes])
                for probes in result.views[:, None] == result.probe_views
            ]
        )

    return CrossViewTable(
        rank1=by_view(result.ranks == 1),
        mean_average_precision=by_view(result.average_precision),
        mean_inverse_negative_penalty=by_view(result.inverse_negative_penalty),
    )


def distance_blocks(
    embeddings: Embeddings,
    probe_rows: NDArray[np.int64],
    gallery_rows: NDArray[np.int64],
    distance: Distance,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Distances from probes to the gallery, a few probes at a time.

    Args:
        embeddings: [n, c, strips]; distances are computed in float32 where they lie.
        probe_rows [p], gallery_rows [m]: row numbers.
        distance: "euclidean" of the flattened vectors (the paper); "strip_euclidean", the mean of
            the strips' Euclidean distances (OpenGait); or "cosine", the Euclidean distance of the
            flattened vectors scaled to length 1, which ranks as 1 - cosine does.
        block_bytes: size of a block of distances in bytes, at least one probe's; working memory is
            about three times that, and one float32 copy of the gallery.

    Yields:
        (rows, distances): a slice of `probe_rows`, and float32 [b, m] on the CPU.

    Raises:
        ValueError: the distance is unknown or a value is not finite.
    """
    if distance not in get_args(Distance):
        raise ValueError(f"distance: expected one of {get_args(Distance)}, got {distance!r}")
    gallery = _take(embeddings, gallery_rows, distance)  # [s, m, k]; s = 1 if flattened
    # Distances stay as they are when everything is moved to the gallery's centre, and the
    # subtraction |a|^2 + |b|^2 - 2ab then cancels fewer digits.
    centre = gallery.mean(dim=1, keepdim=True)  # [s, 1, k]
    gallery -= centre
    gallery_squared = torch.einsum("smk,smk->sm", gallery, gallery)  # [s, m]
    step = max(1, block_bytes // (4 * len(gallery_rows)))
    # each strip goes over its distances several times: on a CPU, let them stay in the cache
    tile = len(gallery_rows)
    if len(gallery) > 1 and gallery.device.type == "cpu":
        tile = max(1, TILE_BYTES // (4 * step))
    for start in range(0, len(probe_rows), step):
        rows = slice(start, min(start + step, len(probe_rows)))
        probes = _take(embeddings, probe_rows[rows], distance) - centre  # [s, b, k]
        probes_squared = torch.einsum("sbk,sbk->sb", probes, probes)  # [s, b]
        total = torch.empty(probes.shape[1], gallery.shape[1], device=probes.device)  # [b, m]
        for first in range(0, len(gallery_rows), tile):
            columns = slice(first, first + tile)
            total[:, columns] = _summed_distances(
                probes, probes_squared, gallery[:, columns], gallery_squared[:, columns]
            )
        yield rows, total.div_(len(gallery)).cpu().numpy()


def _summed_distances(a: Tensor, a_squared: Tensor, b: Tensor, b_squared: Tensor) -> Tensor:
    """Distances added up over strips: [s, n, k], [s, n], [s, m, k], [s, m] -> [n, m]."""
    total = torch.zeros(a.shape[1], b.shape[1], device=a.device)
    for x, x2, y, y2 in zip(a, a_squared, b, b_squared, strict=True):
        total += torch.addmm(x2[:, None] + y2, x, y.mT, alpha=-2).clamp_(min=0).sqrt_()
    return total


def _take(embeddings: Embeddings, rows: NDArray[np.int64], distance: Distance) -> Tensor:
    """A fresh float32 copy of some rows, laid out for the distance: [s, len(rows), k]."""
    if isinstance(embeddings, Tensor):
        chosen = embeddings.detach()[torch.as_tensor(rows, device=embeddings.device)].float()
    else:
        chosen = torch.from_numpy(np.asarray(embeddings[rows], np.float32))
    low, high = chosen.flatten(1).aminmax(dim=1)  # [len(rows)] each; NaN stays NaN
    finite = low.isfinite() & high.isfinite()
    if not finite.all():
        bad = rows[(~finite).cpu().numpy()]
        raise ValueError(
            f"embeddings: {len(bad)} of the {len(rows)} rows looked at hold NaN or infinite values "
            f"(first: row {bad[0]}); the network that made them has diverged"
        )
    if distance == "strip_euclidean":
        return chosen.permute(2, 0, 1).contiguous()  # [strips, rows, c]
    flat = chosen.reshape(1, len(rows), -1)  # [1, rows, c * strips]
    return F.normalize(flat, dim=2) if distance == "cosine" else flat


def _split(
    embeddings: Embeddings,
    subjects: Strings,
    sequences: Strings,
    views: Strings,
    gallery: Sequence[str],
    probe: Sequence[str],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Check the rows; return the row numbers of the probes and of the gallery."""
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
    return probe_rows, gallery_rows


def _gather_slices(
    distances: NDArray[np.float32],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    width: int,
) -> NDArray[np.float32]:
    """Columns first[i, ...] up to last[i, ...] of row i: [b, ..., width], padded with infinity."""
    column = first[..., None] + np.arange(width)
    row = np.arange(len(distances)).reshape(-1, *[1] * (column.ndim - 1))
    inside = column < last[..., None]
    return np.where(inside, distances[row, np.where(inside, column, 0)], np.float32(np.inf))


def _count_up_to(values: NDArray[np.float32], bounds: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many of the values are <= each finite bound: [m], [k] ascending -> [k]."""
    finite = bounds[np.isfinite(bounds)]
    if not len(finite):
        return np.zeros(len(bounds), np.int64)
    near = np.sort(np.compress(values <= finite[-1], values))
    return np.searchsorted(near, bounds, side="right")


def _mean(
    values: NDArray[Any], counted: NDArray[np.bool_], axis: int | tuple[int, ...]
) -> NDArray[np.float64]:
    """Mean of the counted values, NaN where none is counted."""
    total = np.where(counted, values, 0).sum(axis=axis, dtype=np.float64)
    count = counted.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _percent(values: NDArray[Any], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    return 100 * _mean(values, counted, axis=0)

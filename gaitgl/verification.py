"""Are two sequences the same subject (verification), and is this subject known (open set)?

A pair is accepted where its distance is at most a threshold. Genuine pairs share the subject,
impostor pairs do not. FAR is the share of impostor pairs that are accepted, FRR the share of
genuine pairs that are not, TAR = 1 - FRR; the detection error trade-off (DET) is FRR against FAR.

A gallery of 72 000 makes 5 billion pairs, so that impostors are counted, not kept: exactly, at
thresholds 2^-15 apart (relative to the distance), which is about as well as float32 distances of
8 192 numbers are known. So the figures do not depend on the size of the blocks either.
"""

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from gaitgl.retrieval import Block, Pairs

SameView = Literal["keep", "drop_genuine", "drop"]

FARS = (1e-2, 1e-3, 1e-4)
"""False acceptance rates at which people report."""

_DROPPED_BITS = 8
"""Of a float32, whose bits order positive numbers as their values do; 15 of the fraction remain."""
_BINS = 1 << (31 - _DROPPED_BITS)
_INFINITE = 0x7F800000 >> _DROPPED_BITS
_COARSER = 7
"""Bits that are dropped besides where impostors are counted subject by subject; 8 remain."""
_CHUNK = 2**18
"""Distances binned at once, so that the working memory is a few MiB."""
_STEPS = 128
_LEAST_FAR = FARS[-1] / 100
"""A FAR below this needs no step of its own: no rate that is reported is so small."""


class Verification(NamedTuple):
    """How many pairs each of T thresholds accepts."""

    thresholds: NDArray[np.float32]
    """[T], rising: all at which the counts change."""
    genuine: NDArray[np.int64]
    """[T]: genuine pairs with a distance <= the threshold."""
    impostors: NDArray[np.int64]
    """[T]: impostor pairs with a distance <= the threshold."""
    genuine_distances: NDArray[np.float32]
    """[p, R]: each probe's genuine pairs; NaN where it has fewer."""


class OpenSet(NamedTuple):
    """Identification where the subject may be unknown."""

    miss_rate: float
    """FNIR in %, NaN with fewer than 1 / FPIR searches for somebody unknown or without any search
    for somebody known."""
    limit: float
    """A search ends with somebody if the nearest entry is nearer than this."""
    known: int
    """Searches of a gallery that holds the subject."""
    unknown: int
    """Searches of a gallery without the subject."""


class VerificationPass:
    """Collects a `Verification` block by block; see `gaitgl.retrieval`.

    Args:
        pairs: of `gaitgl.retrieval.compared_pairs`.
        same_view: which pairs of one view count. "keep": all; "drop": none, as where tables leave
            out their diagonal; "drop_genuine": only impostors', as in the protocol whose gallery is
            all views.
    """

    def __init__(self, pairs: Pairs, same_view: SameView) -> None:
        if same_view not in get_args(SameView):
            raise ValueError(f"same_view: expected one of {get_args(SameView)}, got {same_view!r}")
        most = int((pairs.last - pairs.first).max())
        self._pairs = pairs
        self._same_view = same_view
        self._genuine = np.full((*pairs.first.shape, most), np.nan, np.float32)  # [p, V, M]
        # lazily: pages without a count take no memory
        self._impostors = np.zeros(_BINS, np.int64)
        subjects = int(pairs.probe_subject.max()) + 1
        # a row for each bin: those that are in use are neighbours
        self._by_subject = np.zeros((_INFINITE >> _COARSER, subjects), np.int32)

    def add(self, block: Block) -> None:
        pairs, rows = self._pairs, block.rows
        genuine = np.where(np.isfinite(block.right), block.right, np.float32(np.nan))
        if self._same_view != "keep":
            genuine[np.arange(len(genuine)), pairs.probe_view[rows]] = np.nan
        self._genuine[rows] = genuine

        ends = pairs.view_ends[pairs.probe_view[rows]]
        starts = ends - pairs.gallery_sizes[pairs.probe_view[rows]]
        subjects = pairs.probe_subject[rows]
        step = max(1, _CHUNK // block.wrong.shape[1])
        for first in range(0, len(block.wrong), step):
            bins = _bins(block.wrong[first : first + step])
            here = slice(first, first + step)
            if self._same_view == "drop":
                for probe, start, end in zip(bins, starts[here], ends[here], strict=True):
                    probe[start:end] = _INFINITE
            _count(self._impostors, bins[bins < _INFINITE])
            for probe, subject in zip(bins, subjects[here], strict=True):
                _count(self._by_subject[:, subject], probe[probe < _INFINITE] >> _COARSER)

    def result(self) -> Verification:
        genuine = np.zeros(_BINS, np.int64)
        _count(genuine, _bins(self._genuine[~np.isnan(self._genuine)]))
        used = np.union1d(np.flatnonzero(genuine), np.flatnonzero(self._impostors))
        # the greatest float32 of each bin, so that counts are those of pairs <= the threshold
        last = ((used + 1) << _DROPPED_BITS) - 1
        return Verification(
            thresholds=last.astype(np.uint32).view(np.float32),
            genuine=genuine[used].cumsum(),
            impostors=self._impostors[used].cumsum(),
            genuine_distances=self._genuine.reshape(len(self._genuine), -1),
        )

    def impostors_by_subject(self) -> NDArray[np.int32]:
        """Impostor pairs of each probe subject in steps of rising distance: [S, K], K <= 128.

        Steps end where the share of all subjects' pairs so far, the FAR, is spread evenly over its
        logarithm; between their ends it rises almost straight. Their widths are what
        `bootstrap.verification_draws` needs of the distances.
        """
        used = np.unique(np.flatnonzero(self._impostors) >> _COARSER)
        counts = self._by_subject[used]  # [U, S]
        if len(used) <= _STEPS:  # a step for each
            return counts.T
        far = counts.sum(axis=1).cumsum() / counts.sum()
        ends = np.searchsorted(far, np.geomspace(max(far[0], _LEAST_FAR), 1, _STEPS))
        ends = np.unique(np.minimum(ends, len(far) - 1))
        return np.add.reduceat(counts, np.append(0, ends[:-1] + 1), axis=0).T


def error_rates(result: Verification) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """FAR and FRR as shares, [T + 1] each: first a threshold that accepts nothing, then each.

    FAR is all NaN without impostor pairs, FRR without genuine pairs.
    """
    far, tar = (
        np.append(0, counts) / (counts[-1] if len(counts) and counts[-1] else np.nan)
        for counts in (result.impostors, result.genuine)
    )
    return far, 1 - tar


def equal_error_rate(result: Verification) -> float:
    """EER in %: where FAR = FRR, on straight lines between neighbouring thresholds; NaN if unknown.

    Distances that are all alike give 50.
    """
    far, frr = error_rates(result)
    if np.isnan(far[0] + frr[0]):
        return float("nan")
    after = int(np.argmax(far >= frr))  # > 0: the first has FAR 0 and FRR 1
    gap_before, gap_after = (frr - far)[after - 1], (far - frr)[after]
    share = gap_before / (gap_before + gap_after)
    return 100 * float(far[after - 1] + share * (far[after] - far[after - 1]))


def errors_allowed(rate: float, trials: float) -> int:
    """How many errors in so many trials do not pass a rate: 3 of 300 at 0.01, rounding or not."""
    return int(rate * trials + 1e-9)


def threshold_at(result: Verification, far: float) -> float:
    """Greatest threshold at which the FAR is at most ``far``; -1, which accepts nothing, where even
    the least accepts more (too many distances are alike).

    NaN with fewer than 1 / ``far`` impostor pairs: there, one pair would be more than the rate.
    """
    pairs = int(result.impostors[-1]) if len(result.impostors) else 0
    allowed = errors_allowed(far, pairs)
    if allowed < 1:
        return float("nan")
    accepted = np.searchsorted(result.impostors, allowed, side="right")
    return float(result.thresholds[accepted - 1]) if accepted else -1.0


def acceptance_rate(result: Verification, far: float) -> float:
    """TAR at this FAR over all genuine pairs, in %; NaN without genuine pairs or `threshold_at`."""
    threshold = threshold_at(result, far)
    pairs = int(result.genuine[-1]) if len(result.genuine) else 0
    if np.isnan(threshold) or not pairs:
        return float("nan")
    return 100 * float((result.genuine_distances <= threshold).sum()) / pairs


def error_curve(
    result: Verification, points: int = 400
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The DET curve for drawing: FAR and FRR as shares, at most about ``points`` of each.

    They are spread evenly over the logarithms of both rates, which DET plots show; the ends stay.
    """
    far, frr = error_rates(result)
    if np.isnan(far[0] + frr[0]):
        return np.empty(0), np.empty(0)
    kept = {0, len(far) - 1}
    for rising in (far, frr[::-1]):
        least = rising[rising > 0][0]
        found = np.searchsorted(rising, np.geomspace(least, 1, points // 2))
        found = np.minimum(found, len(far) - 1)
        kept |= set((found if rising is far else len(far) - 1 - found).tolist())
    chosen = np.array(sorted(kept))
    return far[chosen], frr[chosen]


def open_set(
    right_distances: NDArray[np.float32], wrong_distances: NDArray[np.float32], fpir: float = 0.01
) -> OpenSet:
    """FNIR at a FPIR: each probe is searched twice, in a gallery with and without its own subject.

    Without, the answer should be "nobody": FPIR is the share of these searches that end with
    somebody, because the nearest (wrong) entry is nearer than the limit. The limit is the greatest
    that keeps it at ``fpir``. With, the answer should be the subject: FNIR is the share of these
    searches where the nearest entry of all is not right, or not nearer than the limit.

    Args:
        right_distances, wrong_distances: any shape, to the nearest right and the nearest wrong
            entry of each search (`FirstMatch`, `CrossView`); infinite where there is none. Such a
            search does not count.
        fpir: share, from 0 to 1.
    """
    right, wrong = np.ravel(right_distances), np.ravel(wrong_distances)
    limit = open_set_limit(wrong, fpir)
    known = np.isfinite(right)
    found = known & (right < limit) & (right < wrong)
    unknown = int(np.isfinite(wrong).sum())
    if np.isnan(limit) or not known.any():
        return OpenSet(float("nan"), limit, int(known.sum()), unknown)
    return OpenSet(float(100 * (1 - found.sum() / known.sum())), limit, int(known.sum()), unknown)


def open_set_limit(wrong_distances: NDArray[np.float32], fpir: float) -> float:
    """Greatest limit that at most a share ``fpir`` of finite distances is below; NaN if too few."""
    wrong = np.sort(wrong_distances[np.isfinite(wrong_distances)], axis=None)
    allowed = errors_allowed(fpir, len(wrong))
    if allowed < 1:
        return float("nan")
    return float(wrong[allowed]) if allowed < len(wrong) else float("inf")


def _bins(distances: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Number of each distance's bin; rising with the distance. A sign (of -0) is dropped."""
    bits = np.ascontiguousarray(distances).view(np.uint32) & np.uint32(0x7FFFFFFF)
    bits >>= _DROPPED_BITS
    return bits


def _count(counts: NDArray[Any], bins: NDArray[np.uint32]) -> None:
    """Add to the counts how often each bin occurs."""
    if len(bins):
        low = bins.min()
        found = np.bincount(bins - low)
        counts[low : low + len(found)] += found

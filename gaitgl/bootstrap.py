"""Intervals by the bootstrap over subjects: how figures would vary with other probe subjects.

A subject's sequences are alike, so that whole subjects are drawn, with replacement, as many as
there are. The gallery stays as it is: an interval says nothing of other galleries. Those of TAR and
FNIR are somewhat narrow, for that and because few errors make them. Each function returns the
statistic of every draw. Draws depend on the seed and the subjects alone, so that two results on the
same probes see the same ones:

    low, high = interval(mean_draws(hit, subjects))
    low, high = interval(mean_draws(hit, subjects) - mean_draws(other_hit, subjects))    paired
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitgl.retrieval import mean_of_known
from gaitgl.verification import errors_allowed

DRAWS = 1000
COVERAGE = 95.0
"""In %."""


def interval(samples: NDArray[np.float64], coverage: float = COVERAGE) -> tuple[Any, Any]:
    """Ends of the central interval that holds ``coverage`` % of the draws.

    Args:
        samples: [draws, ...]; NaN draws are left out.
        coverage: in %.

    Returns:
        low and high, [...] each (floats for [draws]); NaN where every draw is NaN.
    """
    outside = (100 - coverage) / 2
    known = ~np.isnan(samples).all(axis=0)
    filled = np.where(known, samples, 0)
    low, high = np.nanpercentile(filled, [outside, 100 - outside], axis=0)
    return np.where(known, low, np.nan)[()], np.where(known, high, np.nan)[()]


def mean_draws(
    values: NDArray[Any], subjects: NDArray[Any], draws: int = DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """Mean of per-probe values in each draw: [p, ...] -> [draws, ...]; NaN values do not count."""
    codes, weights = _drawn(subjects, draws, seed)
    return _weighted_means(values, codes, weights)


def view_pair_mean_draws(
    values: NDArray[Any],
    probe_views: NDArray[Any],
    views: NDArray[Any],
    subjects: NDArray[Any],
    draws: int = DRAWS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Mean over pairs of views in each draw.

    Args:
        values: [p, V], of each probe in each view's gallery; NaN values do not count, so that
            those of identical views, say, are left out.
        probe_views: [p].
        views: [V], of the probes; in the order of ``values``' columns.
        subjects: [p].

    Returns:
        [draws]; pairs that a draw has no probe of are left out of its mean.
    """
    codes, weights = _drawn(subjects, draws, seed)
    per_view = [
        _weighted_means(values[at], codes[at], weights)  # [draws, V]
        for at in (probe_views == view for view in views)
    ]
    return mean_of_known(np.concatenate(per_view, axis=1))  # [draws, V * V] -> [draws]


def open_set_draws(
    right_distances: NDArray[np.float32],
    wrong_distances: NDArray[np.float32],
    subjects: NDArray[Any],
    fpir: float = 0.01,
    draws: int = DRAWS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """FNIR in % of each draw, with a limit of its own: see `verification.open_set`.

    Args:
        right_distances, wrong_distances: [s], one search each.
        subjects: [s].

    Returns:
        [draws].
    """
    codes, weights = _drawn(subjects, draws, seed)
    order = np.argsort(wrong_distances, kind="stable")
    order = order[np.isfinite(wrong_distances[order])]
    known = np.isfinite(right_distances)
    nearest = right_distances[known & (right_distances < wrong_distances)]
    nearest_codes = codes[known & (right_distances < wrong_distances)]
    found_at = np.full(draws, np.nan)
    for draw, weight in enumerate(weights):
        searches = weight[codes[order]].cumsum()
        allowed = errors_allowed(fpir, searches[-1]) if len(searches) else 0
        if allowed < 1:
            continue
        first_past = np.searchsorted(searches, allowed, side="right")
        limit = wrong_distances[order[first_past]] if first_past < len(order) else np.inf
        all_known = weight[codes[known]].sum()
        if all_known:
            found_at[draw] = weight[nearest_codes[nearest < limit]].sum() / all_known
    return 100 * (1 - found_at)


def verification_draws(
    genuine_far: NDArray[np.float64],
    impostors: NDArray[np.int32],
    subjects: NDArray[Any],
    fars: Sequence[float],
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """EER, and TAR at each FAR, in % of each draw: subjects bring their impostor pairs, too.

    So each draw has thresholds of its own. FAR is known at the ends of steps; between them it
    is interpolated linearly.

    Args:
        genuine_far: [p, R], the share of all impostor pairs that are at most as far as a genuine
            pair of a probe; NaN where it has fewer. A pair's distance is not needed: this share
            orders pairs as well.
        impostors: [S, K], of `verification.VerificationPass.impostors_by_subject`.
        subjects: [p], of the probes; S different ones.
        fars: F shares.

    Returns:
        [1 + draws] and [1 + draws, F]: first all subjects once each, then the draws. NaN without a
        genuine or an impostor pair.
    """
    codes, drawn = _drawn(subjects, draws, seed)
    weights = np.vstack([np.ones(drawn.shape[1]), drawn])
    rates = np.full((len(weights), 1 + len(fars)), np.nan)
    probe, pair = np.nonzero(~np.isnan(genuine_far))
    if len(probe) and impostors.size:
        far = genuine_far[probe, pair]
        order = np.argsort(far, kind="stable")
        far, pair_codes = far[order], codes[probe[order]]
        so_far = np.cumsum(weights @ np.pad(impostors, ((0, 0), (1, 0))), axis=1)  # [., K + 1]
        ends = so_far[0] / so_far[0, -1]
        step = np.clip(np.searchsorted(ends, far) - 1, 0, len(ends) - 2)
        within = (far - ends[step]) / (ends[step + 1] - ends[step])
        for draw, weight in enumerate(weights):
            genuine = weight[pair_codes].cumsum()
            if not genuine[-1] or not so_far[draw, -1]:
                continue
            ends = so_far[draw] / so_far[draw, -1]
            drawn_far = ends[step] + within * (ends[step + 1] - ends[step])
            tar = genuine / genuine[-1]
            # FAR rises and FRR falls, so that the greater one is least where they cross
            rates[draw, 0] = np.maximum(drawn_far, 1 - tar).min()
            # 1e-12: a share of pairs is no exact number
            accepted = np.searchsorted(drawn_far, np.array(fars) + 1e-12, side="right")
            rates[draw, 1:] = np.append(0, tar)[accepted]
    return 100 * rates[:, 0], 100 * rates[:, 1:]


def _drawn(
    subjects: NDArray[Any], draws: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each row's subject as a number below S, and how often each draw takes it: [n], [draws, S]."""
    names, codes = np.unique(subjects, return_inverse=True)
    shares = np.full(len(names), 1 / len(names))
    weights = np.random.default_rng(seed).multinomial(len(names), shares, size=draws)
    return codes, weights.astype(np.float64)


def _weighted_means(
    values: NDArray[Any], codes: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[n, ...], [n], [draws, S] -> [draws, ...]."""
    known = ~np.isnan(values)
    total = np.zeros((weights.shape[1], *values.shape[1:]))
    count = np.zeros_like(total)
    np.add.at(total, codes, np.where(known, values, 0))
    np.add.at(count, codes, known)
    counts = np.tensordot(weights, count, axes=1)  # [draws, ...]
    totals = np.tensordot(weights, total, axes=1)
    return np.where(counts > 0, totals / np.maximum(counts, 1), np.nan)

"""Intervals by the bootstrap over subjects: what if other people had walked as probes?

A subject's sequences are alike, so that whole subjects are drawn, with replacement, as many as
there are; the gallery stays as it is. Each function returns the statistic of every draw. Draws
depend on the seed and the subjects alone, so that two results on the same probes see the same ones:

    low, high = interval(mean_draws(hit, subjects))
    low, high = interval(mean_draws(hit, subjects) - mean_draws(other_hit, subjects))    paired
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitgl.verification import Verification, crossing, error_rates

DRAWS = 1000
COVERAGE = 95.0
"""In %."""


def interval(samples: NDArray[np.float64], coverage: float = COVERAGE) -> tuple[Any, Any]:
    """Low and high end that leave half of the rest of the draws on either side.

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
    """Mean over pairs of different views in each draw: as `retrieval.mean_without_diagonal`.

    Args:
        values: [p, V], of each probe in each view's gallery; NaN values do not count.
        probe_views: [p].
        views: [V], sorted, as the columns of ``values``.
        subjects: [p].

    Returns:
        [draws]; pairs that a draw has no probe of are left out of its mean.
    """
    codes, weights = _drawn(subjects, draws, seed)
    per_pair = []
    for row, view in enumerate(views):
        at = probe_views == view
        means = _weighted_means(values[at], codes[at], weights)  # [draws, V]
        per_pair.append(np.delete(means, row, axis=1))
    means = np.concatenate(per_pair, axis=1)  # [draws, V * (V - 1)]
    known = ~np.isnan(means)
    count = known.sum(axis=1)
    total = np.where(known, means, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


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
        allowed = int(fpir * searches[-1] + 1e-9) if len(searches) else 0
        if allowed < 1:
            continue
        first_past = np.searchsorted(searches, allowed, side="right")
        limit = wrong_distances[order[first_past]] if first_past < len(order) else np.inf
        all_known = weight[codes[known]].sum()
        if all_known:
            found_at[draw] = weight[nearest_codes[nearest < limit]].sum() / all_known
    return 100 * (1 - found_at)


def equal_error_draws(
    result: Verification, subjects: NDArray[Any], draws: int = DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """EER in % of each draw: `verification.equal_error_rate` with the drawn genuine pairs.

    The impostor pairs, of which there are thousands for each genuine one, stay as they are. (So
    they do for the TAR: `mean_draws` of `verification.accepted_per_probe`, whose threshold stays.)

    Args:
        result: of p probes.
        subjects: [p], of the probes.

    Returns:
        [draws]; NaN without a genuine pair.
    """
    codes, weights = _drawn(subjects, draws, seed)
    far, _ = error_rates(result)
    probe, pair = np.nonzero(~np.isnan(result.genuine_distances))
    distances = result.genuine_distances[probe, pair]
    order = np.argsort(distances, kind="stable")
    accepted = np.searchsorted(distances[order], result.thresholds, side="right")  # [T]
    rates = np.full(draws, np.nan)
    for draw, weight in enumerate(weights):
        so_far = np.append(0, weight[codes[probe[order]]].cumsum())  # [pairs + 1]
        if so_far[-1] and not np.isnan(far[0]):
            frr = 1 - np.append(0, so_far[accepted]) / so_far[-1]  # [T + 1]
            rates[draw] = 100 * crossing(far, frr)
    return rates


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

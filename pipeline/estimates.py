"""Figures of a report from the table of its probes, with the bootstrap over subjects."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from gaitgl.bootstrap import (
    interval,
    mean_draws,
    open_set_draws,
    verification_draws,
    view_pair_mean_draws,
)
from gaitgl.retrieval import mean_of_known, mean_per_probe_view
from gaitgl.verification import FARS, errors_allowed, open_set
from pipeline.probe_table import Probes

Values = npt.NDArray[np.float64]

RANKS = (1, 5, 10, 20)
"""The k of the rank-k that are figures."""

PRECISIONS = {"map": "average_precision", "minp": "inverse_negative_penalty"}
"""Figures that are means of a column of the table of probes."""

MATCHED = "_matched_probes"
"""Ends the names of figures that leave out probes without a right entry."""

IDENTICAL = "_with_identical_views"
"""Ends the names of figures that take in galleries of the probe's own view."""

FPIR = 0.01

FEWEST_SUBJECTS = 10
"""Of fewer no interval is made: it would hold the true figure too seldom, of 3 subjects in 77 % of
cases, of 5 in 82, of 10 in 90, of 40 in 94 (simulated in tests/gaitgl/test_bootstrap.py)."""


@dataclass(frozen=True)
class Estimate:
    """A figure in %, and its 95 % bootstrap interval over the probes' subjects.

    The ends are NaN where there is none: of fewer than ``FEWEST_SUBJECTS``, and where all draws
    are alike.
    """

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Figure:
    """A figure in %, and in each draw of subjects; no draws of fewer than ``FEWEST_SUBJECTS``."""

    value: float
    draws: Values | None = None

    def estimate(self) -> Estimate:
        found = _estimate(self.value, self.draws)
        # draws that are all alike (100 %, say) tell nothing of subjects that were not there
        return Estimate(self.value) if math.isclose(found.low, found.high) else found

    def change_to(self, other: "Figure") -> Estimate:
        """Another one's, on the same probes, less this one: the draws are paired."""
        if self.draws is None or other.draws is None:
            return Estimate(other.value - self.value)
        return _estimate(other.value - self.value, other.draws - self.draws)


def figures(probes: Probes, condition: str) -> dict[str, Figure]:
    """Figures of a condition under their names.

    One that the data is too small for is left out: NaN is none.
    """
    rows = probes.of(condition)
    if probes.protocol.gallery_views == "each":
        found = _in_view_pairs(rows, probes.views)
    else:
        found = {
            **_in_all_views(rows, probes.views),
            **_verification(rows, probes.equal_error_rates[condition]),
            **_open_set(rows),
        }
    matched = rows[(counted_ranks(probes, condition) > 0).any(axis=1)]

    def figure(name: str, value: float, draws: Values | None) -> Figure:
        counted = matched if name.endswith(MATCHED) else rows
        if draws is None or counted["subject"].nunique() < FEWEST_SUBJECTS:
            return Figure(100 * value)
        return Figure(100 * value, 100 * draws)

    return {
        name: figure(name, value, draws)
        for name, (value, draws) in found.items()
        if not math.isnan(value)
    }


def rank_by_view(probes: Probes, condition: str, k: int = 1) -> Values:
    """Rank-k in % of all probes: [probe view, gallery view], or [probe view] in one gallery of all
    views; NaN where nothing is compared."""
    rows = probes.of(condition)
    ranks = _ranks(rows)
    hits = np.where(ranks >= 0, _within(ranks, k), np.nan)
    table = 100 * _cells(hits, rows["view"].to_numpy(str), probes.views)
    return table if probes.protocol.gallery_views == "each" else table[:, 0]


def by_view(probes: Probes, condition: str) -> dict[str, Values]:
    """Figures in % of all probes of each view, [V] each: rank-k, in view pairs the mean over the
    other gallery views; of one gallery of all views also ``map`` and ``minp``."""
    tables = {f"rank{k}": rank_by_view(probes, condition, k) for k in RANKS}
    if probes.protocol.gallery_views == "each":
        return {name: mean_per_probe_view(table) for name, table in tables.items()}
    rows = probes.of(condition)
    for name, column in PRECISIONS.items():
        values = rows[column].fillna(0).to_numpy(np.float64)  # no right entry is a miss
        cells = _cells(values[:, None], rows["view"].to_numpy(str), probes.views)
        tables[name] = 100 * cells[:, 0]
    return tables


def cmc(probes: Probes, condition: str, ranks: Iterable[int]) -> list[float]:
    """Rank-k in % of all probes for each k, identical views left out where there are others."""
    found = counted_ranks(probes, condition)
    probe_views = probes.of(condition)["view"].to_numpy(str)
    hits = (np.where(found >= 0, _within(found, k), np.nan) for k in ranks)
    cells = (_cells(hit, probe_views, probes.views) for hit in hits)  # [V, g] each
    return [100 * float(mean_of_known(cell.ravel())) for cell in cells]


def counted_ranks(probes: Probes, condition: str) -> npt.NDArray[np.int64]:
    """Ranks [p, g] as the table has them, but -1 for identical views where there are others, too:
    those of the comparisons that the headline is made of."""
    rows = probes.of(condition)
    ranks = _ranks(rows)
    if probes.protocol.gallery_views == "each" and len(probes.views) > 1:
        ranks[_own_view(rows, probes.views)] = -1
    return ranks


_Found = dict[str, tuple[float, Values | None]]
"""Name, share from 0 to 1, and that in each draw."""


def _in_view_pairs(rows: pd.DataFrame, views: list[str]) -> _Found:
    """Means over pairs of views."""
    ranks, own = _ranks(rows), _own_view(rows, views)  # [p, V] each
    probe_views, subjects = rows["view"].to_numpy(str), rows["subject"].to_numpy(str)
    found: _Found = {}
    for suffix, counted in (
        ("", ~own & (ranks >= 0)),
        (MATCHED, ~own & (ranks > 0)),
        (IDENTICAL, ranks >= 0),
    ):
        for k in RANKS:
            hits = np.where(counted, _within(ranks, k), np.nan)
            draws = view_pair_mean_draws(hits, probe_views, np.array(views), subjects)
            value = mean_of_known(_cells(hits, probe_views, views).ravel())
            found[f"rank{k}{suffix}"] = float(value), draws
    return found


def _in_all_views(rows: pd.DataFrame, views: list[str]) -> _Found:
    """Means over probe views of what the probes of a view find."""
    ranks, own = _ranks(rows)[:, 0], _own_view(rows, views)  # [p], [p, V]
    subjects = rows["subject"].to_numpy(str)
    each = {f"rank{k}": _within(ranks, k).astype(np.float64) for k in RANKS}
    each |= {name: rows[column].to_numpy(np.float64) for name, column in PRECISIONS.items()}
    counted = {
        f"{name}{suffix}": np.where(ranks > 0, values, unmatched)
        for name, values in each.items()
        for suffix, unmatched in (("", 0.0), (MATCHED, np.nan))
    }
    together = np.stack(list(counted.values()), axis=1)  # [p, figures]
    value = mean_of_known(_cells(together, rows["view"].to_numpy(str), views).T)  # [figures]
    by_view = np.where(own[:, None, :], together[:, :, None], np.nan)  # [p, figures, V]
    draws = mean_of_known(mean_draws(by_view, subjects))  # [draws, figures]
    return {name: (float(value[i]), draws[:, i]) for i, name in enumerate(counted)}


def _verification(rows: pd.DataFrame, equal_error_rate: float | None) -> _Found:
    """EER, and TAR at each FAR that there are impostor pairs enough for."""
    if equal_error_rate is None:
        return {}
    given = rows[rows["impostors"].notna()].sort_values("subject")
    impostors = np.stack(given["impostors"].tolist())  # [S, K]
    rates = [rate for rate in FARS if errors_allowed(rate, impostors.sum()) >= 1]
    eer, tar = verification_draws(
        _padded(rows["genuine_far"]), impostors, rows["subject"].to_numpy(str), rates
    )
    # where pairs of both kinds are alike, the rate lies between theirs; here it is the greater one
    eer += equal_error_rate - eer[0]
    return {
        "eer": (equal_error_rate / 100, eer[1:] / 100),
        **{
            f"tar_far_1e{round(math.log10(rate))}": (tar[0, i] / 100, tar[1:, i] / 100)
            for i, rate in enumerate(rates)
        },
    }


def _open_set(rows: pd.DataFrame) -> _Found:
    """FNIR at an FPIR of 1 %; each draw has a limit of its own."""
    right, wrong = (
        rows[name].fillna(np.inf).to_numpy(np.float32)
        for name in ("right_distance", "wrong_distance")
    )
    draws = open_set_draws(right, wrong, rows["subject"].to_numpy(str), FPIR) / 100
    return {"fnir_fpir_1e-2": (open_set(right, wrong, FPIR).miss_rate / 100, draws)}


def _estimate(value: float, draws: Values | None) -> Estimate:
    if draws is None:
        return Estimate(value)
    low, high = interval(draws)
    return Estimate(value, float(low), float(high))


def _ranks(rows: pd.DataFrame) -> npt.NDArray[np.int64]:
    return np.array(rows["ranks"].tolist(), np.int64).reshape(len(rows), -1)  # [p, g]


def _within(ranks: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.bool_]:
    return (ranks >= 1) & (ranks <= k)


def _own_view(rows: pd.DataFrame, views: list[str]) -> npt.NDArray[np.bool_]:
    own: npt.NDArray[np.bool_] = rows["view"].to_numpy(str)[:, None] == np.array(views)
    return own  # [p, V]


def _padded(lists: Iterable[Any]) -> Values:
    """Lists of p probes -> [p, R], NaN past the end of each."""
    rows = [np.asarray(row, np.float64) for row in lists]
    padded = np.full((len(rows), max((len(row) for row in rows), default=0)), np.nan)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _cells(values: Values, probe_views: npt.NDArray[Any], views: list[str]) -> Values:
    """[p, g] -> [V, g]: means over the probes of each view; NaN values do not count."""
    return np.stack([mean_of_known(values[probe_views == view].T) for view in views])

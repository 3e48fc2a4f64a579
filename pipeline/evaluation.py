"""From embeddings to what protocols say about them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from gaitgl import retrieval
from gaitgl.verification import equal_error_rate, error_curve
from pipeline.distance_pass import Compared, Method, compare, first_match, nearest
from pipeline.embedding_file import Embeddings
from pipeline.errors import PipelineError
from pipeline.estimates import IDENTICAL, Estimate, cmc, counted_ranks, figures, rank_by_view
from pipeline.probe_table import PROBES, Probes, gallery_of
from pipeline.protocols import Protocol, named
from pipeline.submission import gallery_subjects, probe_videos, submission
from pipeline.tables import KEY

Table = npt.NDArray[np.float64]

CONFUSIONS = 20
"""How many of the worst are kept."""


@dataclass(frozen=True)
class ProtocolResult:
    """What one labelled protocol says about a set of embeddings.

    Everything comes per condition, in the order of ``protocol.probes``; a condition without probes
    is left out of all of them, and a sentence in ``notes`` says so.
    """

    protocol: Protocol

    views: list[str]
    """Sorted: the axes of ``rank1``."""

    headline: str
    """Which of ``estimates`` stands first: ``rank1``, or ``rank1_with_identical_views`` where all
    was seen from one view."""

    rank1: dict[str, Table]
    """Rank-1 in % of each condition, NaN where nothing can be compared; all probes count.
    [probe view, gallery view], or [probe view] where ``protocol.gallery_views`` is ``all``."""

    estimates: dict[str, dict[str, Estimate]]
    """Of each condition: the figures in % under their names in metrics.json. ``rank1``, ``rank5``,
    ``rank10``, ``rank20``, each with ``_matched_probes`` as another convention; of view pairs also
    ``_with_identical_views``; of all views ``map``, ``minp``, ``eer``, ``tar_far_1e-2``,
    ``tar_far_1e-3``, ``tar_far_1e-4``, ``fnir_fpir_1e-2``. A figure that the data is too small for
    is absent."""

    cmc: pd.DataFrame
    """Columns condition, rank (from 1), percent."""

    det: pd.DataFrame
    """Columns condition, far, frr (shares, 0 to 1), thinned for drawing; empty for view pairs."""

    counts: dict[str, int]
    """subjects, gallery_sequences, probe_sequences, views; for each condition
    ``comparisons_<condition>``, of a probe with a gallery, as the headline counts them (without
    identical views); ``unmatched_comparisons_<condition>``, with no entry to be matched with; and
    ``unmatched_probes_<condition>``, that have one of those."""

    confusions: pd.DataFrame
    """At most 20 rows, the worst first: probes for which somebody else's gallery entry is nearer
    than any of their own subject's, among those they are compared with (where each view is a
    gallery: in the view in which they are worst), by how much nearer. Columns condition;
    probe_subject, probe_sequence, probe_view; wrong_subject, wrong_sequence, wrong_view,
    wrong_distance; right_subject, right_sequence, right_view, right_distance."""

    probes: Probes
    """What the figures are means of; ``tables/probes.parquet``."""

    notes: list[str]
    """What was left out or stands in for something else, in sentences."""


@dataclass(frozen=True)
class Evaluation:
    """Results of a dataset's protocols, or a submission where nobody knows who walks."""

    results: list[ProtocolResult]
    """Labelled protocols, the headline first; empty for a competition."""

    submission: pd.DataFrame | None
    """Columns of ``pipeline.submission.Submission.table``: a row for every probe video; None unless
    the probes have no labels."""

    notes: list[str]
    """What holds for all of it, in sentences: protocols that could not be applied, probes that had
    to be guessed."""


def evaluate(
    keys: pd.DataFrame,
    embeddings: Embeddings | Tensor,
    protocols: Iterable[Protocol],
    method: Method,
    cmc_ranks: int,
) -> Evaluation:
    """Apply labelled protocols to embeddings [n, c, strips] with their KEY.

    A protocol that cannot be applied is named in the notes; PipelineError where none can.
    """
    passes: dict[object, Compared] = {}
    results, notes = [], []
    for protocol in protocols:
        own_keys, own_embeddings = compared_rows(keys, embeddings, protocol)
        views = sorted(set(own_keys["view"]))
        if protocol.gallery_views == "all" and len(views) < 2:
            notes.append(
                f"{protocol.name} is left out: all was seen from one view ({', '.join(views)}), "
                "and it compares different ones."
            )
            continue
        by_condition: dict[str, Compared] = {}
        left_out = []
        for condition, names in protocol.probes.items():
            if not named(names, own_keys["sequence"]):
                left_out.append(f"{condition} is left out: no probe among {', '.join(names)}.")
                continue
            # protocols that count the same comparisons differently share the distances
            what = (protocol.gallery, names, protocol.excluded_views)
            if what not in passes:
                passes[what] = compare(own_keys, own_embeddings, protocol, condition, method)
            by_condition[condition] = passes[what]
        results.append(_result(own_keys, protocol, by_condition, cmc_ranks, left_out))
    if not results:
        raise PipelineError("\n".join(["nothing can be evaluated:", *notes]))
    return Evaluation(results, None, notes)


def compete(
    keys: pd.DataFrame,
    embeddings: Embeddings | Tensor,
    protocol: Protocol,
    method: Method,
    catalogue: Path,
    unknown_above: float,
) -> Evaluation:
    """The submission of a protocol whose probes have no labels: see
    ``pipeline.submission.submission``."""
    keys, embeddings = compared_rows(keys, embeddings, protocol)
    made = submission(
        nearest(keys, embeddings, protocol, method),
        probe_videos(catalogue, protocol),
        gallery_subjects(catalogue, protocol),
        unknown_above,
    )
    return Evaluation([], made.table, made.notes)


def rank1_by_condition(
    keys: pd.DataFrame, embeddings: Embeddings, protocol: Protocol
) -> dict[str, float]:
    """Rank-1 in % of each condition by a protocol of view pairs: the headline, without all else.

    Euclidean distance; identical views are left out, unless there is only one view. So is a
    condition that has nothing else.
    """
    keys, rows = compared_rows(keys, embeddings, protocol)
    method = Method(shown=False)
    found: dict[str, float] = {}
    for condition, names in protocol.probes.items():
        if named(names, keys["sequence"]):
            first = first_match(keys, rows, protocol, condition, method)
            (table,) = retrieval.rank_table(first, (1,))  # [V, V]
            alone = len(first.views) == 1
            mean = table[0, 0] if alone else retrieval.mean_without_diagonal(table)
            if not np.isnan(mean):
                found[condition] = float(mean)
    return found


def compared_rows(
    keys: pd.DataFrame, embeddings: Embeddings | Tensor, protocol: Protocol
) -> tuple[pd.DataFrame, Embeddings | Tensor]:
    """What a protocol compares; a copy only if it is not everything."""
    rows = np.flatnonzero(protocol.compares(keys["sequence"], keys["view"]))
    if len(rows) == len(keys):
        return keys, embeddings
    return keys.iloc[rows].reset_index(drop=True), embeddings[rows]


def rank1_table(rank1: Table, views: list[str]) -> pd.DataFrame:
    """A rank-1 table for people: probe views down; where each view is a gallery, gallery views
    across, and the mean of a probe view without the identical gallery view."""
    index = pd.Index(views, name="probe view")
    if rank1.ndim == 1:
        return pd.DataFrame({"rank-1": rank1}, index=index).round(2)
    table = pd.DataFrame(rank1, index=index, columns=views)
    table["mean without identical view"] = retrieval.mean_per_probe_view(rank1)
    return table.round(2)


def _result(
    keys: pd.DataFrame,
    protocol: Protocol,
    by_condition: dict[str, Compared],
    cmc_ranks: int,
    notes: list[str],
) -> ProtocolResult:
    """All that one protocol says, from the passes over its conditions."""
    views = sorted(set(keys["view"]))
    probes = Probes(
        protocol,
        gallery_of(keys[_in_gallery(keys, protocol)]),
        views,
        pd.concat(
            [_probe_rows(keys, protocol, c, compared) for c, compared in by_condition.items()],
            ignore_index=True,
        ),
        _equal_error_rates(protocol, by_condition),
    )
    headline = "rank1"
    if len(views) == 1:
        headline = f"rank1{IDENTICAL}"
        notes = [
            *notes,
            f"All was seen from one view ({views[0]}): there is no pair of different views, and "
            "the headline is rank-1 with identical views.",
        ]
    estimates = {
        c: {name: figure.estimate() for name, figure in figures(probes, c).items()}
        for c in by_condition
    }
    without = [c for c, found in estimates.items() if headline not in found]
    if without:
        notes = [
            *notes,
            f"{', '.join(without)}: no probe is compared in a way that {headline} counts, so that "
            "the headline is that of the other conditions.",
        ]
    ranks = range(1, cmc_ranks + 1)
    curves = [
        pd.DataFrame({"condition": c, "rank": ranks, "percent": cmc(probes, c, ranks)})
        for c in by_condition
    ]
    return ProtocolResult(
        protocol=protocol,
        views=views,
        headline=headline,
        rank1={c: rank_by_view(probes, c) for c in by_condition},
        estimates=estimates,
        cmc=pd.concat(curves, ignore_index=True),
        det=_det(protocol, by_condition),
        counts=_counts(keys, probes),
        confusions=_confusions(keys, protocol, by_condition),
        probes=probes,
        notes=notes,
    )


def _probe_rows(
    keys: pd.DataFrame, protocol: Protocol, condition: str, compared: Compared
) -> pd.DataFrame:
    """Rows of PROBES of one condition."""
    first, cross = compared.first, compared.cross
    rows = keys.loc[first.probes, KEY].reset_index(drop=True)
    rows.insert(0, "protocol", protocol.name)
    rows.insert(1, "condition", condition)
    if protocol.gallery_views == "each":
        ranks = np.where(first.gallery_sizes > 0, first.ranks, -1)  # [p, V]
        rows = rows.assign(ranks=list(ranks), genuine_far=None, impostors=None)
        return rows.reindex(columns=PROBES.names)
    far = compared.genuine_far()  # [p, R]
    impostors = np.full(len(rows), None)
    _, first_rows = np.unique(rows["subject"].to_numpy(str), return_index=True)
    impostors[first_rows] = list(compared.impostors)
    return rows.assign(
        ranks=list(cross.ranks[:, None]),
        average_precision=cross.average_precision,
        inverse_negative_penalty=cross.inverse_negative_penalty,
        right_distance=_finite(cross.right_distances),
        wrong_distance=_finite(cross.wrong_distances),
        genuine_far=[row[~np.isnan(row)] for row in far],
        impostors=impostors,
    )


def _equal_error_rates(
    protocol: Protocol, by_condition: dict[str, Compared]
) -> dict[str, float | None]:
    if protocol.gallery_views == "each":
        return {}
    rates = {c: equal_error_rate(compared.verification) for c, compared in by_condition.items()}
    return {c: None if math.isnan(rate) else rate for c, rate in rates.items()}


def _det(protocol: Protocol, by_condition: dict[str, Compared]) -> pd.DataFrame:
    curves = [pd.DataFrame(columns=["condition", "far", "frr"])]
    if protocol.gallery_views == "all":
        for condition, compared in by_condition.items():
            far, frr = error_curve(compared.verification)
            curves.append(pd.DataFrame({"condition": condition, "far": far, "frr": frr}))
    return pd.concat([c for c in curves if len(c)] or curves, ignore_index=True)


def _in_gallery(keys: pd.DataFrame, protocol: Protocol) -> "pd.Series[bool]":
    return keys["sequence"].isin(named(protocol.gallery, keys["sequence"]))


def _counts(keys: pd.DataFrame, probes: Probes) -> dict[str, int]:
    entries = probes.gallery.entries
    counts = {
        "subjects": int(keys["subject"].nunique()),
        "gallery_sequences": entries,
        "probe_sequences": len(keys) - entries,
        "views": len(probes.views),
    }
    for condition in probes.table["condition"].unique():
        ranks = counted_ranks(probes, condition)  # [p, g]
        counts |= {
            f"comparisons_{condition}": int((ranks >= 0).sum()),
            f"unmatched_comparisons_{condition}": int((ranks == 0).sum()),
            f"unmatched_probes_{condition}": int((ranks == 0).any(axis=1).sum()),
        }
    return counts


def _confusions(
    keys: pd.DataFrame, protocol: Protocol, by_condition: dict[str, Compared]
) -> pd.DataFrame:
    """The probes whose nearest wrong entry is nearer than their nearest right one by most.

    In view pairs, a probe counts in the gallery of another view in which it is worst.
    """
    found = []
    for condition, compared in by_condition.items():
        found_in = compared.first if protocol.gallery_views == "each" else compared.cross
        shape = (len(found_in.probes), -1)
        right, wrong = (
            d.reshape(shape) for d in (found_in.right_distances, found_in.wrong_distances)
        )
        right_rows, wrong_rows = (
            r.reshape(shape) for r in (found_in.right_rows, found_in.wrong_rows)
        )
        both = np.isfinite(right) & np.isfinite(wrong)
        nearer = np.full(right.shape, -np.inf, np.float32)  # [p, g]
        np.subtract(right, wrong, where=both, out=nearer)
        if protocol.gallery_views == "each" and len(found_in.views) > 1:
            nearer[found_in.probe_views[:, None] == found_in.views] = -np.inf
        worst = nearer.argmax(axis=1)  # [p]
        at = np.arange(len(worst)), worst
        order = np.argsort(-nearer[at], kind="stable")[:CONFUSIONS]
        order = order[nearer[at][order] > 0]
        table = pd.DataFrame({"condition": condition, "nearer": nearer[at][order]})
        for part, rows in (
            ("probe", found_in.probes),
            ("wrong", wrong_rows[at]),
            ("right", right_rows[at]),
        ):
            for name in KEY:
                table[f"{part}_{name}"] = keys[name].to_numpy()[rows[order]]
        table["wrong_distance"], table["right_distance"] = wrong[at][order], right[at][order]
        found.append(table)
    worst_of_all = pd.concat(found, ignore_index=True).sort_values(
        "nearer", ascending=False, kind="stable", ignore_index=True
    )
    return worst_of_all.drop(columns="nearer").head(CONFUSIONS)


def _finite(distances: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.where(np.isfinite(distances), distances, np.float32(np.nan))

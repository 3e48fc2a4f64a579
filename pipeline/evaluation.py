"""From embeddings to the tables of a protocol."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from gaitgl import retrieval
from pipeline.errors import PipelineError, listing
from pipeline.protocols import Protocol, named
from pipeline.tables import KEY

Table = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure in %, and its 95 % bootstrap interval over the probes' subjects.

    The ends are NaN where there is none: fewer than two subjects, or a figure that no interval is
    computed for.
    """

    value: float
    low: float = math.nan
    high: float = math.nan


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
    ``unmatched_probes_<condition>``, that have no entry to be matched with."""

    confusions: pd.DataFrame
    """At most 20 rows, the worst first: probes for which somebody else's gallery entry is nearer
    than any of their own subject's, by how much nearer. Columns condition; probe_subject,
    probe_sequence, probe_view; wrong_subject, wrong_sequence, wrong_view, wrong_distance;
    right_subject, right_sequence, right_view, right_distance."""

    probes: pd.DataFrame
    """A row per probe, columns of ``pipeline.probe_table.PROBES``."""

    notes: list[str]
    """What was left out or stands in for something else, in sentences."""


@dataclass(frozen=True)
class Evaluation:
    """Results of a dataset's protocols, or a submission where nobody knows who walks."""

    results: list[ProtocolResult]
    """Labelled protocols, the headline first; empty for a competition."""

    submission: pd.DataFrame | None
    """Columns video, subject: a row for every probe video, sorted; None without such a protocol."""

    notes: list[str]
    """What holds for all of it, in sentences: protocols that could not be applied, probes that had
    to be guessed."""


@dataclass(frozen=True)
class OneProtocol:
    """What a protocol says about a set of embeddings; everything in %."""

    views: list[str]
    rank1: dict[str, Table]
    """Rank-1 of each condition, [probe view, gallery view]; all probes count."""

    cmc: pd.DataFrame
    """Columns condition, rank, percent: mean over view pairs, identical views left out."""

    metrics: dict[str, dict[str, float]]
    """Headline figures of each condition that has probes."""

    counts: dict[str, int]
    """Subjects and sequences compared."""


def evaluate(
    keys: pd.DataFrame,
    embeddings: npt.NDArray[np.float32],
    protocol: Protocol,
    distance: retrieval.Distance,
    cmc_ranks: int,
) -> OneProtocol:
    """Apply ``protocol`` to embeddings [n, c, strips] with their keys (subject, sequence, view).

    A condition without probes is left out and printed. Raises PipelineError where keys repeat,
    it is not known who walks in the probes, or there is nothing to compare.
    """
    if not protocol.labelled:
        raise PipelineError(
            f"{protocol.title}: nobody knows who walks in the probes ({protocol.probe_words}), and "
            "ranks need labels: the embeddings are as far as this data goes here."
        )
    _check_keys(keys)
    rows = np.flatnonzero(protocol.compares(keys["sequence"], keys["view"]))
    if len(rows) < len(keys):  # embeddings of another protocol; the copy costs memory
        keys, embeddings = keys.iloc[rows].reset_index(drop=True), embeddings[rows]
    views = sorted(set(keys["view"]))
    ranks = tuple(range(1, cmc_ranks + 1))
    rank1: dict[str, Table] = {}
    curves: list[pd.DataFrame] = []
    metrics: dict[str, dict[str, float]] = {}
    gallery = named(protocol.gallery, keys["sequence"])
    for condition, names in protocol.probes.items():
        probe = named(names, keys["sequence"])
        if not probe:
            print(f"{condition}: no probe sequence ({', '.join(names)}): left out")
            continue
        try:
            first = retrieval.first_match_rank(
                embeddings,
                keys["subject"].to_numpy(str),
                keys["sequence"].to_numpy(str),
                keys["view"].to_numpy(str),
                gallery=gallery,
                probe=probe,
                distance=distance,
            )
        except ValueError as error:
            raise PipelineError(f"{condition}: cannot compare: {error}") from None
        every = retrieval.rank_table(first, ranks, unmatched="count")  # [ranks, view, view]
        matched = retrieval.rank_table(first, ranks, unmatched="drop")
        curve = retrieval.mean_without_diagonal(every)  # [ranks]
        curve_matched = retrieval.mean_without_diagonal(matched)
        rank1[condition] = every[0]
        curves.append(pd.DataFrame({"condition": condition, "rank": ranks, "percent": curve}))
        metrics[condition] = {
            "rank1": float(curve[0]),
            "rank5": float(curve[4]),
            "rank1_matched_probes": float(curve_matched[0]),
            "rank5_matched_probes": float(curve_matched[4]),
            "rank1_with_identical_views": float(np.nanmean(every[0])),
            "rank5_with_identical_views": float(np.nanmean(every[4])),
        }
    if not metrics:
        raise PipelineError(
            f"cannot compare: no probe sequence among {len(keys)} embeddings; the protocol takes "
            f"{protocol.probe_words}"
        )
    in_gallery = keys["sequence"].isin(gallery)
    counts = {
        "subjects": int(keys["subject"].nunique()),
        "gallery_sequences": int(in_gallery.sum()),
        "probe_sequences": int((~in_gallery).sum()),
        "views": len(views),
    }
    return OneProtocol(views, rank1, pd.concat(curves, ignore_index=True), metrics, counts)


def rank1_table(rank1: Table, views: list[str]) -> pd.DataFrame:
    """A rank-1 table for people: probe views down, gallery views across, and the mean of a probe
    view without the identical gallery view."""
    table = pd.DataFrame(rank1, index=pd.Index(views, name="probe view"), columns=views)
    table["mean without identical view"] = retrieval.mean_per_probe_view(rank1)
    return table.round(2)


def _check_keys(keys: pd.DataFrame) -> None:
    repeated = keys[keys.duplicated(KEY)]
    if len(repeated):
        names = [" ".join(map(str, row)) for row in repeated[KEY].itertuples(index=False)]
        raise PipelineError(
            f"{len(repeated)} of {len(keys)} embeddings repeat a key:\n{listing(names)}\n"
            "`dvc repro -f -s embed@<dataset>` makes them anew."
        )

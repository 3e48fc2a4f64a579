"""What a report shows: figures and silhouettes, each with what it shows in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline import figures
from pipeline.embedding_map import EmbeddingMap
from pipeline.errors import PipelineError
from pipeline.evaluation import ProtocolResult
from pipeline.names import printable
from pipeline.pages import Picture, drawing, picture
from pipeline.pictures import evenly, strip
from pipeline.protocols import Protocol
from pipeline.report import prefix
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tables import KEY
from pipeline.training_record import TrainingRecord

FRAMES = 8
"""Shown of each sequence of a confusion."""

GALLERIES = {"each": "View pairs", "all": "All views as one gallery"}


@dataclass(frozen=True)
class Confusion:
    """A probe, whose gallery entry was nearest, and the nearest one that would have been right."""

    condition: str
    strips: list[tuple[str, str, Picture]]
    """What it is, key and distance, silhouettes: the probe, the wrong entry, the nearest right one
    in the same gallery, unless it holds none."""


def report_figures(
    results: list[ProtocolResult],
    records: Sequence[TrainingRecord],
    embeddings: EmbeddingMap,
) -> dict[str, Picture]:
    """The figures of a report under their file names, less ``.png``, with what they show in words.

    ``rank1_<condition>``, ``cmc`` and ``det``, which begin with ``<protocol>_`` unless it is the
    first; ``loss_<stage>`` and ``p_<stage>``; ``embeddings``. One that there is nothing to draw for
    is left out.
    """
    drawn: dict[str, Picture] = {}
    for result in results:
        begin = prefix(result, results)
        drawn |= {f"{begin}{name}": shown for name, shown in _of_result(result).items()}
    for record in records:
        stage, history = record.stage, record.history
        if len(history):
            drawn[f"loss_{stage}"] = drawing(
                figures.loss_curve(history, f"{stage}: loss"), _course("loss", stage, history)
            )
        if record.final_p is not None:
            drawn[f"p_{stage}"] = drawing(
                figures.p_curve(history, f"{stage}: GeM's p"), _course("p", stage, history)
            )
    if len(embeddings.points):
        shown = len(set(embeddings.subjects))
        drawn["embeddings"] = drawing(
            figures.embedding_map(embeddings),
            f"Embeddings of {len(embeddings.points)} sequences of {shown} subjects on a plane "
            "(the first two principal components, PCA), a colour for each subject; "
            f"{len(embeddings.others)} in grey: {embeddings.others_name}",
        )
    return drawn


def _of_result(result: ProtocolResult) -> dict[str, Picture]:
    title = data_name(result.protocol)
    drawn = {}
    if result.protocol.gallery_views == "each":
        for condition, table in result.rank1.items():
            name = title if condition == "all" else f"{title} {condition}"
            drawn[f"rank1_{condition.lower()}"] = drawing(
                figures.heat_map(table, result.views, f"{name}: rank-1 by view"),
                f"Heat map of rank-1 by view pair{of_condition(condition)}: "
                f"{_extremes(table, result.views)}",
            )
    if len(result.cmc):
        where = GALLERIES[result.protocol.gallery_views].lower()
        points = [
            f"{_estimate(rows['percent'].iloc[0])} within rank {rows['rank'].iloc[0]}, "
            f"{_estimate(rows['percent'].iloc[-1])} within rank {rows['rank'].iloc[-1]}"
            f"{of_condition(str(condition))}"
            for condition, rows in result.cmc.groupby("condition", sort=False)
        ]
        drawn["cmc"] = drawing(
            figures.cmc_curves(result.cmc, f"{title}: {where}"),
            f"CMC curve, probes identified: {'; '.join(points)}",
        )
    if len(result.det):
        equal = [
            f"equal errors at {_estimate(values['eer'].value)}{of_condition(condition)}"
            for condition, values in result.estimates.items()
            if "eer" in values
        ]
        drawn["det"] = drawing(
            figures.det_curves(result.det, f"{title}: verification"),
            "DET curve, false rejects against false accepts: " + ("; ".join(equal) or "no EER"),
        )
    return drawn


def confusions(result: ProtocolResult, store: SilhouetteStore) -> list[Confusion]:
    """The result's worst confusions with their silhouettes, of which ``store`` reads these alone.

    PipelineError where it lacks one of them.
    """
    rows = result.confusions
    found = {}
    for who in ("probe", "wrong", "right"):
        keys = rows[[f"{who}_{name}" for name in KEY]].set_axis(KEY, axis="columns")
        found[who] = pd.MultiIndex.from_frame(keys)
    wanted = found["probe"].union(found["wrong"]).union(found["right"])
    here = store.index[store.index["subject"].isin(wanted.get_level_values("subject"))]
    numbers = dict(zip(pd.MultiIndex.from_frame(here[KEY]), here.index, strict=True))
    shown = []
    for i, row in enumerate(rows.to_dict("records")):
        strips = []
        for who, word in (("probe", "Probe"), ("wrong", "Taken for"), ("right", "Right")):
            key = found[who][i]
            if who == "right" and not math.isfinite(row["right_distance"]):
                continue  # the gallery holds nothing of this subject
            if key not in numbers:
                raise PipelineError(
                    f"{store.folder} lacks the silhouettes of {' '.join(map(str, key))}, which has "
                    "an embedding: `dvc repro` makes both from the same data"
                )
            name = printable(f"subject {key[0]}, sequence {key[1]}, view {key[2]}")
            silhouettes = store.read(int(numbers[key]))
            frames = evenly(silhouettes, FRAMES)
            words = f"{len(frames)} of {len(silhouettes)} silhouettes of {name}"
            if who != "probe":
                name += f"; distance {row[f'{who}_distance']:.4g}"
            strips.append((word, name, picture(strip(frames), words)))
        shown.append(Confusion(str(row["condition"]), strips))
    return shown


def data_name(protocol: Protocol) -> str:
    """What is compared, without the split."""
    return protocol.title.partition(",")[0]


def of_condition(condition: str) -> str:
    """What follows a figure's name; ``all`` is how a protocol calls its only condition."""
    return "" if condition == "all" else f", {printable(condition)}"


def _estimate(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f} %"


def _extremes(table: figures.Table, views: Sequence[str]) -> str:
    if np.isnan(table).all():
        return "no pair can be compared"
    places = [divmod(int(find(table)), len(views)) for find in (np.nanargmin, np.nanargmax)]
    lowest, highest = (
        f"{table[probe, gallery]:.0f} % (probe {views[probe]}, gallery {views[gallery]})"
        for probe, gallery in places
    )
    return printable(f"from {lowest} to {highest}", 400)


def _course(column: str, stage: str, history: pd.DataFrame) -> str:
    first, last = history[column].iloc[0], history[column].iloc[-1]
    name = "GeM's exponent p" if column == "p" else "Loss"
    also = "" if column == "p" else "; beside it the share of active triplets"
    steps = history["step"].iloc[-1]
    return f"{name} in {steps} steps of {stage}: from {first:.3g} to {last:.3g}{also}"

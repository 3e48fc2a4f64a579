"""The report of an evaluation in pictures: figures as PNG, and one page with all of it, which needs
no network and no scripts."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gaitgl.retrieval import mean_per_probe_view
from pipeline import figures
from pipeline.embedding_map import EmbeddingMap
from pipeline.errors import PipelineError
from pipeline.estimates import Estimate
from pipeline.evaluation import Evaluation, ProtocolResult
from pipeline.files import new_folder, write_bytes
from pipeline.names import printable
from pipeline.pages import Picture, drawing, picture, render
from pipeline.pictures import evenly, strip
from pipeline.protocols import Protocol
from pipeline.report import prefix
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tables import KEY
from pipeline.training_record import TrainingRecord

TEMPLATE = "report_page.html"

FRAMES = 8
"""Shown of each sequence of a confusion."""

DATASETS = {"oumvlp": "OUMVLP", "casia_e": "CASIA-E"}

GALLERIES = {"each": "View pairs", "all": "All views as one gallery"}

DISTANCES = {
    "euclidean": "Euclidean distance of flattened embeddings",
    "strip_euclidean": "mean over strips of the Euclidean distances of their embeddings",
    "cosine": "cosine distance of flattened embeddings",
}

FIGURES = {
    "map": "mAP",
    "minp": "mINP",
    "eer": "EER",
    "tar_far_1e-2": "TAR at FAR 1 %",
    "tar_far_1e-3": "TAR at FAR 0.1 %",
    "tar_far_1e-4": "TAR at FAR 0.01 %",
    "fnir_fpir_1e-2": "FNIR at FPIR 1 %",
}

MATCHED = "_matched_probes"

CONVENTIONS = {
    MATCHED: ", matched probes only",
    "_with_identical_views": ", identical views included",
}


@dataclass(frozen=True)
class Confusion:
    """A probe, whose gallery entry was nearest, and the nearest one that would have been right."""

    condition: str
    strips: list[tuple[str, str, Picture]]
    """What it is, key and distance, silhouettes: the probe, the wrong entry, any right one."""


def write_page(
    folder: Path,
    dataset: str,
    evaluation: Evaluation,
    protocols: Sequence[Protocol],
    records: Sequence[TrainingRecord],
    embeddings: EmbeddingMap,
    store: SilhouetteStore,
    settings: Mapping[str, Any],
    commit: str,
) -> None:
    """Write ``figures/*.png`` and ``index.html`` below ``folder``; same arguments, same bytes.

    ``protocols``: those of ``evaluation``, the headline first; ``settings``: leaves of the section
    evaluate; ``commit``: of the code. Of ``store`` only the sequences of confusions are read.
    """
    drawn = report_figures(evaluation.results, records, embeddings)
    worst = confusions(evaluation.results[0], store) if evaluation.results else []
    text = page(dataset, evaluation, protocols, records, drawn, worst, embeddings, settings, commit)
    with new_folder(folder / "figures") as beside:
        for name, shown in drawn.items():
            (beside / f"{name}.png").write_bytes(shown.png)
    write_bytes(folder / "index.html", text.encode())


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
            figures.embedding_map(
                embeddings.points,
                embeddings.subjects,
                embeddings.roles,
                embeddings.others,
                embeddings.axes,
            ),
            f"Embeddings of {len(embeddings.points)} sequences of {shown} subjects on a plane "
            f"({embeddings.method}), a colour for each subject; {len(embeddings.others)} of others "
            "in grey",
        )
    return drawn


def _of_result(result: ProtocolResult) -> dict[str, Picture]:
    title = _data(result.protocol)
    drawn = {}
    if result.protocol.gallery_views == "each":
        for condition, table in result.rank1.items():
            name = title if condition == "all" else f"{title} {condition}"
            drawn[f"rank1_{condition.lower()}"] = drawing(
                figures.heat_map(table, result.views, f"{name}: rank-1 by view"),
                f"Heat map of rank-1 by view pair{_of(condition)}: "
                f"{_extremes(table, result.views)}",
            )
    if len(result.cmc):
        where = GALLERIES[result.protocol.gallery_views].lower()
        points = [
            f"{_estimate(rows['percent'].iloc[0])} within rank {rows['rank'].iloc[0]}, "
            f"{_estimate(rows['percent'].iloc[-1])} within rank {rows['rank'].iloc[-1]}"
            f"{_of(str(condition))}"
            for condition, rows in result.cmc.groupby("condition", sort=False)
        ]
        drawn["cmc"] = drawing(
            figures.cmc_curves(result.cmc, f"{title}: {where}"),
            f"CMC curve, probes identified: {'; '.join(points)}",
        )
    if len(result.det):
        equal = [
            f"equal errors at {_estimate(values['eer'].value)}{_of(condition)}"
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


def page(
    dataset: str,
    evaluation: Evaluation,
    protocols: Sequence[Protocol],
    records: Sequence[TrainingRecord],
    drawn: Mapping[str, Picture],
    worst: Sequence[Confusion],
    embeddings: EmbeddingMap,
    settings: Mapping[str, Any],
    commit: str,
) -> str:
    """The page's HTML; ``drawn`` and ``worst``: what ``report_figures`` and ``confusions`` make."""
    return render(
        TEMPLATE,
        title=_data(protocols[0]),
        split=protocols[0].title,
        evaluation=evaluation,
        rules=protocols[0].rules(),
        results=[_Shown(result, evaluation.results) for result in evaluation.results],
        records=records,
        datasets=DATASETS,
        drawn=drawn,
        worst=worst,
        embeddings=embeddings,
        distance=DISTANCES[settings["distance"]],
        reranked=settings["reranking.method"] != "none",
        settings=_settings(records, settings),
        fingerprints=_fingerprints(records, commit),
        dataset=dataset,
    )


class _Shown:
    """A result as the page's tables want it."""

    def __init__(self, result: ProtocolResult, results: list[ProtocolResult]) -> None:
        self.result = result
        self.prefix = prefix(result, results)
        self.protocol = result.protocol
        self.heading = GALLERIES[result.protocol.gallery_views]
        self.conditions = list(result.estimates)
        self.counts = result.counts
        self.notes = result.notes

    @property
    def headline(self) -> list[tuple[str, dict[str, str]]]:
        """What stands on top for each condition."""
        name = self.result.headline
        return [
            (f"{_name(name)}{_of(condition)}", _shown(values[name]))
            for condition, values in self.result.estimates.items()
        ]

    @property
    def estimates(self) -> list[tuple[str, list[dict[str, str] | None]]]:
        """Rows: a figure's name, and its estimate under each condition."""
        names = dict.fromkeys(n for values in self.result.estimates.values() for n in values)
        if self.all_matched:
            names = {name: None for name in names if not name.endswith(MATCHED)}
        return [
            (
                _name(name),
                [
                    _shown(values[name]) if name in values else None
                    for values in self.result.estimates.values()
                ],
            )
            for name in names
        ]

    @property
    def all_matched(self) -> bool:
        """Whether both conventions for probes without a counterpart give the same figures."""
        return all(
            values.get(name.removesuffix(MATCHED)) == estimate
            for values in self.result.estimates.values()
            for name, estimate in values.items()
            if name.endswith(MATCHED)
        )

    @property
    def by_view(self) -> list[tuple[str, list[str]]]:
        """Rows: a probe view, and its rank-1 under each condition."""
        columns = [
            mean_per_probe_view(table) if table.ndim == 2 else table
            for table in self.result.rank1.values()
        ]
        return [
            (printable(view), [_percent(float(column[i])) for column in columns])
            for i, view in enumerate(self.result.views)
        ]

    @property
    def pairs(self) -> list[tuple[str, list[tuple[str, list[str]]]]]:
        """For each condition, rows: a probe view, and its rank-1 for each gallery view."""
        return [
            (
                condition,
                [
                    (printable(view), [_percent(float(cell)) for cell in row])
                    for view, row in zip(self.result.views, table, strict=True)
                ],
            )
            for condition, table in self.result.rank1.items()
            if table.ndim == 2
        ]

    @property
    def views(self) -> list[str]:
        return [printable(view) for view in self.result.views]


def _name(figure: str) -> str:
    """What people call a figure of metrics.json."""
    for ending, words in CONVENTIONS.items():
        if figure.endswith(ending):
            return _name(figure.removesuffix(ending)) + words
    if figure.startswith("rank"):
        return f"Rank-{figure.removeprefix('rank')}"
    return FIGURES.get(figure, figure)


def _shown(estimate: Estimate) -> dict[str, str]:
    interval = ""
    if not (math.isnan(estimate.low) or math.isnan(estimate.high)):
        interval = f"{_percent(estimate.low)}–{_percent(estimate.high)}"
    return {"value": _percent(estimate.value), "interval": interval}


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


def _estimate(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f} %"


def _data(protocol: Protocol) -> str:
    """What is compared, without the split."""
    return protocol.title.partition(",")[0]


def _of(condition: str) -> str:
    """What follows a figure's name; ``all`` is how a protocol calls its only condition."""
    return "" if condition == "all" else f", {printable(condition)}"


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


def _settings(
    records: Sequence[TrainingRecord], evaluate: Mapping[str, Any]
) -> list[tuple[str, dict[str, str]]]:
    """Section and its settings; those of the trainings as their checkpoints tell them."""
    network = {"model": records[-1].architecture} if records else {}
    sections = {
        **network,
        **{record.stage: {"seed": record.seed, **record.settings} for record in records},
        "evaluate": evaluate,
    }
    return [
        (name, {key: _value(value) for key, value in section.items()})
        for name, section in sections.items()
    ]


def _value(value: Any) -> str:
    """As params.yaml has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _fingerprints(records: Sequence[TrainingRecord], commit: str) -> list[tuple[str, str]]:
    """What of, and digest."""
    rows = {}
    for record in records:
        rows[f"silhouettes of {DATASETS[record.dataset]}"] = record.silhouettes
        rows[f"checkpoint of {record.stage}"] = record.checkpoint
    return [*rows.items(), ("commit of the code", commit)]

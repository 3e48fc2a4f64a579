"""The report of an evaluation as a page that needs no network and no scripts, and its figures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.embedding_map import EmbeddingMap
from pipeline.estimates import FEWEST_SUBJECTS, IDENTICAL, MATCHED, Estimate, by_view
from pipeline.evaluation import Evaluation, ProtocolResult
from pipeline.files import new_folder, write_bytes
from pipeline.names import printable
from pipeline.pages import Picture, number, render
from pipeline.protocols import Protocol
from pipeline.report import FIGURES, prefix
from pipeline.report_pictures import (
    GALLERIES,
    Confusion,
    confusions,
    data_name,
    of_condition,
    report_figures,
)
from pipeline.silhouette_store import SilhouetteStore
from pipeline.training_record import TrainingRecord

TEMPLATE = "report_page.html"

TITLES = {"oumvlp": "OUMVLP", "casia_e": "CASIA-E"}

DISTANCES = {
    "euclidean": "Euclidean distance of flattened embeddings",
    "strip_euclidean": "mean over strips of the Euclidean distances of their embeddings",
    "cosine": "Euclidean distance of flattened embeddings scaled to length 1, √(2 - 2 cos)",
}

CONVENTIONS = {
    MATCHED: ", matched probes only",
    IDENTICAL: ", identical views included",
}


def write_page(
    folder: Path,
    evaluation: Evaluation,
    protocols: Sequence[Protocol],
    records: Sequence[TrainingRecord],
    embeddings: EmbeddingMap,
    store: SilhouetteStore,
    settings: Mapping[str, Any],
    made_from: Mapping[str, str],
) -> None:
    """Write ``figures/*.png`` and ``index.html`` below ``folder``; same arguments, same bytes.

    ``protocols``: those of ``evaluation``, the headline first; ``settings``: leaves of the section
    evaluate; ``made_from``: digests beside those of ``records``, the code's commit among them. Of
    ``store`` only the sequences of confusions are read.
    """
    drawn = report_figures(evaluation.results, records, embeddings)
    worst = confusions(evaluation.results[0], store) if evaluation.results else []
    text = page(evaluation, protocols, records, drawn, worst, embeddings, settings, made_from)
    with new_folder(folder / "figures") as beside:
        for name, shown in drawn.items():
            (beside / f"{name}.png").write_bytes(shown.png)
    write_bytes(folder / "index.html", text.encode())


def page(
    evaluation: Evaluation,
    protocols: Sequence[Protocol],
    records: Sequence[TrainingRecord],
    drawn: Mapping[str, Picture],
    worst: Sequence[Confusion],
    embeddings: EmbeddingMap,
    settings: Mapping[str, Any],
    made_from: Mapping[str, str],
) -> str:
    """The page's HTML; ``drawn`` and ``worst``: what ``report_figures`` and ``confusions`` make."""
    return render(
        TEMPLATE,
        title=data_name(protocols[0]),
        split=protocols[0].title,
        evaluation=evaluation,
        rules=protocols[0].rules(),
        results=[_Section(result, evaluation.results) for result in evaluation.results],
        records=records,
        datasets=TITLES,
        drawn=drawn,
        worst=worst,
        embeddings=embeddings,
        distance=DISTANCES[settings["distance"]],
        reranked=settings["reranking.method"] != "none",
        fewest=FEWEST_SUBJECTS,
        settings=_settings(records, settings),
        fingerprints=_fingerprints(records, made_from),
    )


class _Section:
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
        """What stands on top for each condition; one that was seen from one view alone has no pair
        of different views."""
        name = self.result.headline
        return [
            (f"{_name(name)}{of_condition(condition)}", _cell(values[name]))
            for condition, values in self.result.estimates.items()
            if name in values
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
                    _cell(values[name]) if name in values else None
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
    def unmatched(self) -> list[str]:
        """How many probes of each condition lack an entry to be matched with, in sentences."""
        each = self.protocol.gallery_views == "each"
        where = "at some other view" if each and len(self.result.views) > 1 else "in the gallery"
        sentences = []
        for condition in self.conditions:
            probes = len(self.result.probes.of(condition))
            pairs, lacking, unmatched = (
                self.counts[f"{name}_{condition}"]
                for name in ("comparisons", "unmatched_comparisons", "unmatched_probes")
            )
            if unmatched:
                of = "" if condition == "all" else f"{printable(condition)}: "
                part = f" ({number(lacking)} of {number(pairs)} comparisons)" if each else ""
                words = f"{number(unmatched)} of {number(probes)} probes lack an entry {where}"
                sentences.append(f"{of}{words}{part}.")
        return sentences

    @property
    def by_view(self) -> list[tuple[str, list[str]]]:
        """Rows: a probe view, and its figures as ``by_view_heads``.

        Several figures under several conditions take a row for each condition: a phone has no room
        for all of them beside each other.
        """
        columns = {
            (condition, name): by_view(self.result.probes, condition)[name]
            for condition in self.conditions
            for name in self.by_view_figures
        }
        beside = len(self.conditions) == 1 or len(self.by_view_figures) == 1
        groups = [self.conditions] if beside else [[condition] for condition in self.conditions]
        return [
            (
                printable(view if beside else f"{view} {group[0]}"),
                [
                    _percent(float(columns[c, name][i]))
                    for c in group
                    for name in self.by_view_figures
                ],
            )
            for i, view in enumerate(self.result.views)
            for group in groups
        ]

    @property
    def by_view_figures(self) -> dict[str, str]:
        """Those that the table by probe view shows, and what people call them."""
        each = self.protocol.gallery_views == "each"
        names = ["rank1"] if each else ["rank1", "rank5", "map", "minp"]
        return {name: _name(name) for name in names}

    @property
    def by_view_heads(self) -> list[str]:
        """Of its columns: the figures, or the conditions where there is one figure of several."""
        if len(self.conditions) > 1 and len(self.by_view_figures) == 1:
            return [printable(condition) for condition in self.conditions]
        return list(self.by_view_figures.values())

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


def _cell(estimate: Estimate) -> dict[str, str]:
    interval = ""
    if not (math.isnan(estimate.low) or math.isnan(estimate.high)):
        interval = f"{_percent(estimate.low)}–{_percent(estimate.high)}"
    return {"value": _percent(estimate.value), "interval": interval}


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


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


def _fingerprints(
    records: Sequence[TrainingRecord], made_from: Mapping[str, str]
) -> list[tuple[str, str]]:
    """What of, and digest."""
    rows = {}
    for record in records:
        rows[f"silhouettes of {TITLES[record.dataset]}"] = record.silhouettes
        rows[f"checkpoint of {record.stage}"] = record.checkpoint
    return [*rows.items(), *made_from.items()]

"""The report of an evaluation in numbers: metrics.json, tables, the submission, text to print."""

import json
import math
import shutil
import textwrap
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from pipeline.estimates import IDENTICAL, MATCHED, RANKS, Estimate, by_view, rank_by_view
from pipeline.evaluation import Evaluation, ProtocolResult, rank1_table
from pipeline.files import new_folder, write_bytes, write_json
from pipeline.probe_table import write_probes
from pipeline.protocols import RESERVED, Protocol
from pipeline.settings import TRAINED_BY
from pipeline.submission import write_submission

STAGES = tuple(TRAINED_BY.values())

FIGURES = {
    "map": "mAP",
    "minp": "mINP",
    "eer": "EER",
    "tar_far_1e-2": "TAR at FAR 1 %",
    "tar_far_1e-3": "TAR at FAR 0.1 %",
    "tar_far_1e-4": "TAR at FAR 0.01 %",
    "fnir_fpir_1e-2": "FNIR at FPIR 1 %",
}
"""What people call the figures beside rank-k; each is in %."""

LABELS = {
    f"rank1{MATCHED}": "rank-1 of matched probes",
    f"rank1{IDENTICAL}": "rank-1 with identical views",
    **{name: FIGURES[name] for name in ("map", "minp", "eer", "tar_far_1e-3", "fnir_fpir_1e-2")},
}
"""What the table for people shows beside the headline's rank-k; estimates.csv has everything."""

DESCRIBING = ("notes", "protocols")
"""Keys of metrics.json that hold no figures."""


def write_report(
    folder: Path,
    evaluation: Evaluation,
    protocols: list[Protocol],
    histories: dict[str, pd.DataFrame],
    submission_columns: str,
) -> dict[str, float]:
    """Write ``metrics.json`` and ``tables/`` below ``folder`` and print the result.

    ``histories`` are the history.csv of the training stages behind the embeddings,
    ``submission_columns`` the first line of submission.csv. Returns the figures of metrics.json
    under flat names.
    """
    with new_folder(folder / "tables") as tables:
        _write_tables(tables, evaluation)
        if evaluation.submission is not None:
            write_submission(tables / "submission.csv", evaluation.submission, submission_columns)
    metrics = _metrics(evaluation, histories)
    applied = [result.protocol for result in evaluation.results] or protocols
    write_json(
        folder / "metrics.json",
        {
            **metrics,
            "notes": evaluation.notes,
            "protocols": {p.name: _described(p, evaluation) for p in applied},
        },
    )
    print(result_text(folder))
    return _flat(metrics)


def written_metrics(folder: Path) -> dict[str, float]:
    """The figures of a written report under flat names, as ``write_report`` returned them."""
    tree = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return _flat({name: value for name, value in tree.items() if name not in DESCRIBING})


def headline_rank1(folder: Path) -> float | None:
    """The one figure of a written report, in %: rank-1 of its first protocol, averaged over the
    conditions, without identical views if there are others. None for a competition."""
    tree = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    # the other protocols' figures stand under their names
    names = {
        p["headline"] for n, p in tree["protocols"].items() if n not in tree and "headline" in p
    }
    conditions = [
        tree[name] for name in tree if name not in RESERVED and isinstance(tree[name], dict)
    ]
    found = [one[name] for one in conditions or [tree] for name in names if name in one]
    return fmean(found) if found else None


def result_text(folder: Path) -> str:
    """The result tables of a written report, and where to read on."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    lines = [""]
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    path = folder / "tables" / "summary.csv"
    summary = pd.DataFrame({"protocol": []})
    if path.exists():  # a condition may be called NA
        summary = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    # metrics.json has its keys in alphabetical order
    for name in dict.fromkeys([*summary["protocol"], *metrics["protocols"]]):
        protocol = metrics["protocols"][name]
        rules = f"{protocol['data']}, {name}: {' '.join(protocol['rules'])}"
        lines.append(textwrap.fill(rules, width, break_on_hyphens=False))
        rows = summary[summary["protocol"] == name].drop(columns="protocol")
        if len(rows):
            shown = rows.dropna(axis=1, how="all").set_index("probes").rename_axis("%").T
            lines += [
                f"{protocol['subjects']} unseen subjects, {protocol['views']} views, "
                f"{protocol['probe_sequences']} probes against {protocol['gallery_sequences']} "
                "gallery sequences; in brackets: 95 % interval over subjects",
                shown.to_string(na_rep="-"),
            ]
        lines += [*protocol["notes"], ""]
    if "submission" in metrics:
        lines += [
            f"submission: {metrics['submission']['probes']} probes in "
            f"{folder / 'tables' / 'submission.csv'}"
        ]
    lines += metrics["notes"]
    stages = sorted(metrics["p"].items(), key=lambda item: STAGES.index(item[0]))
    finals = ", ".join(f"{stage} {p:.3f}" for stage, p in stages)
    return "\n".join(
        [
            *lines,
            f"final p: {finals or 'none (max + mean pooling)'}",
            f"tables and pictures: {folder / 'index.html'}, {folder / 'tables'}",
        ]
    )


def _write_tables(folder: Path, evaluation: Evaluation) -> None:
    results = evaluation.results
    if not results:
        return
    for result in results:
        for condition, rank1 in result.rank1.items():
            table = rank1_table(rank1, result.views)
            name = f"{prefix(result, results)}rank1_{condition.lower()}"
            _write_csv(folder / f"{name}.csv", table.reset_index())
    _write_csv(folder / "summary.csv", pd.concat([_summary(result) for result in results]))
    _write_csv(folder / "estimates.csv", pd.concat([_estimates(result) for result in results]))
    _write_csv(folder / "by_view.csv", pd.concat([_by_view(result) for result in results]))
    for name, digits in (("cmc", 2), ("det", 6), ("confusions", 6)):
        together = pd.concat([_labelled(result, getattr(result, name)) for result in results])
        _write_csv(folder / f"{name}.csv", together.round(digits))
    write_probes(folder / "probes.parquet", [result.probes for result in results])


def prefix(result: ProtocolResult, results: list[ProtocolResult]) -> str:
    """What begins the names of a protocol's files; nothing for the first one."""
    return "" if result is results[0] else f"{result.protocol.name}_"


def _summary(result: ProtocolResult) -> pd.DataFrame:
    """A row per condition for people, in %; in brackets the headline's interval over subjects."""
    convention = result.headline.removeprefix("rank1")
    heads = {f"rank{k}{convention}": f"rank-{k}" for k in RANKS}
    rows = []
    for condition, estimates in result.estimates.items():
        row = {"protocol": result.protocol.name, "probes": condition}
        for name, label in {**heads, **LABELS}.items():
            if (estimate := estimates.get(name)) is None:
                continue
            text = f"{estimate.value:.1f}"
            if name == result.headline and not math.isnan(estimate.low):
                text += f" ({estimate.low:.1f} to {estimate.high:.1f})"
            row[label] = text
        rows.append(row)
    return pd.DataFrame(rows)


def _estimates(result: ProtocolResult) -> pd.DataFrame:
    rows = [
        (result.protocol.name, condition, name, e.value, e.low, e.high)
        for condition, estimates in result.estimates.items()
        for name, e in estimates.items()
    ]
    columns = ["protocol", "condition", "figure", "percent", "low", "high"]
    return pd.DataFrame(rows, columns=columns).round(4)


def _by_view(result: ProtocolResult) -> pd.DataFrame:
    """Figures of each probe view, and rank-k of each view pair, which names its gallery view."""
    name, views = result.protocol.name, result.views
    rows = []
    for condition in result.estimates:
        for figure, values in by_view(result.probes, condition).items():
            rows += [
                (name, condition, v, "", figure, x) for v, x in zip(views, values, strict=True)
            ]
        if result.protocol.gallery_views == "each":
            for k in RANKS:
                table = rank_by_view(result.probes, condition, k)
                rows += [
                    (name, condition, probe, gallery, f"rank{k}", table[i, j])
                    for i, probe in enumerate(views)
                    for j, gallery in enumerate(views)
                ]
    columns = ["protocol", "condition", "probe view", "gallery view", "figure", "percent"]
    return pd.DataFrame(rows, columns=columns).dropna().round(2)


def _labelled(result: ProtocolResult, table: pd.DataFrame) -> pd.DataFrame:
    labelled = table.copy()
    labelled.insert(0, "protocol", result.protocol.name)
    return labelled


def _described(protocol: Protocol, evaluation: Evaluation) -> dict[str, Any]:
    """A protocol in words and counts."""
    found = [r for r in evaluation.results if r.protocol.name == protocol.name]
    return {
        "data": protocol.title,
        "gallery": protocol.gallery_words,
        "probe": protocol.probe_words,
        "excluded_views": list(protocol.excluded_views),
        "rules": protocol.rules(),
        "notes": found[0].notes if found else [],
        **({"headline": found[0].headline, **found[0].counts} if found else {}),
    }


def _metrics(evaluation: Evaluation, histories: dict[str, pd.DataFrame]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for result in evaluation.results:
        conditions = {name: _numbers(found) for name, found in result.estimates.items()}
        # a protocol's single condition needs no name; of several, one that is alone there keeps its
        # own, so that reports can be compared
        single = len(result.protocol.probes) == 1
        figures = next(iter(conditions.values())) if single else conditions
        metrics |= {result.protocol.name: figures} if metrics else figures
    if evaluation.submission is not None:
        how = evaluation.submission["how"].value_counts()
        counts = {str(name).replace(" ", "_"): int(count) for name, count in how.items()}
        metrics["submission"] = {"probes": len(evaluation.submission), **counts}
    final_p = {stage: float(h["p"].iloc[-1]) for stage, h in histories.items() if len(h)}
    return {**metrics, "p": {k: round(p, 6) for k, p in final_p.items() if not math.isnan(p)}}


def _numbers(estimates: dict[str, Estimate]) -> dict[str, float]:
    """Flat names; what cannot be computed has no figure, and JSON no NaN."""
    numbers: dict[str, float] = {}
    for name, estimate in estimates.items():
        numbers |= {
            name: estimate.value,
            f"{name}_low": estimate.low,
            f"{name}_high": estimate.high,
        }
    return {name: round(number, 4) for name, number in numbers.items() if not math.isnan(number)}


def _flat(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}_")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())

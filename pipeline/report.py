"""The report of an evaluation: metrics.json, tables as CSV, figures as PNG, and text to print."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.evaluation import Evaluation, rank1_table
from pipeline.figures import cmc_curve, heat_map, p_curve
from pipeline.files import new_folder, write_bytes, write_json
from pipeline.protocols import Protocol

STAGES = ("pretrain", "finetune")

DESCRIBING = ("protocol",)
"""Keys of metrics.json that hold no figures."""


def write_report(
    folder: Path,
    evaluation: Evaluation,
    protocol: Protocol,
    histories: dict[str, pd.DataFrame],
    refused_sequences: int,
) -> dict[str, float]:
    """Write ``metrics.json``, ``tables/`` and ``figures/`` below ``folder`` and print the result.

    ``histories`` are the history.csv of the training stages behind the embeddings,
    ``refused_sequences`` the test sequences that were refused before. Returns the figures of
    metrics.json under flat names.
    """
    title = protocol.title
    with new_folder(folder / "tables") as tables:
        for condition, rank1 in evaluation.rank1.items():
            table = rank1_table(rank1, evaluation.views)
            _write_csv(tables / f"rank1_{condition.lower()}.csv", table.reset_index())
        _write_csv(tables / "cmc.csv", evaluation.cmc.round(2))
        _write_csv(tables / "summary.csv", _summary(evaluation))
    with new_folder(folder / "figures") as figures:
        for condition, rank1 in evaluation.rank1.items():
            name = "" if len(evaluation.rank1) == 1 else f" {condition}"
            heat_map(
                figures / f"rank1_{condition.lower()}.png",
                rank1,
                evaluation.views,
                f"{title}{name}: rank-1 by view",
            )
        cmc_curve(figures / "cmc.png", evaluation.cmc, f"{title}: identical views left out")
        p_curve(figures / "p.png", histories)
    metrics = _metrics(evaluation, histories)
    write_json(
        folder / "metrics.json",
        {
            **metrics,
            "protocol": {
                "data": protocol.title,
                "gallery": protocol.gallery_words,
                "probe": protocol.probe_words,
                "excluded_views": list(protocol.excluded_views),
                **evaluation.counts,
                "refused_test_sequences": refused_sequences,
            },
        },
    )
    print(result_text(folder))
    return _flat(metrics)


def written_metrics(folder: Path) -> dict[str, float]:
    """The figures of a written report under flat names, as ``write_report`` returned them."""
    tree = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return _flat({name: value for name, value in tree.items() if name not in DESCRIBING})


def result_text(folder: Path) -> str:
    """The result table of a written report, and where its pictures are."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    summary = pd.read_csv(folder / "tables" / "summary.csv")
    protocol = metrics["protocol"]
    in_order = sorted(metrics["p"].items(), key=lambda item: STAGES.index(item[0]))
    finals = ", ".join(f"{stage} {p:.3f}" for stage, p in in_order)
    return (
        f"\n{protocol['data']}: {protocol['subjects']} unseen subjects, {protocol['views']} views, "
        f"{protocol['probe_sequences']} probes ({protocol['probe']}) against "
        f"{protocol['gallery_sequences']} gallery sequences ({protocol['gallery']}); "
        f"test sequences refused before: {protocol['refused_test_sequences']}\n"
        f"{summary.to_string(index=False)}\n"
        f"final p: {finals or 'none (max + mean pooling)'}\n"
        f"tables and pictures: {folder / 'tables'}, {folder / 'figures'}"
    )


def _summary(evaluation: Evaluation) -> pd.DataFrame:
    table = pd.DataFrame.from_dict(evaluation.metrics, orient="index").round(1)
    table.columns = pd.Index([name.replace("_", " ") + " %" for name in table.columns])
    table.insert(0, "probes", table.index)
    return table


def _metrics(evaluation: Evaluation, histories: dict[str, pd.DataFrame]) -> dict[str, Any]:
    rounded = {
        # a view pair that cannot be compared has no figure, and JSON no NaN
        condition: {n: round(value, 4) for n, value in values.items() if not math.isnan(value)}
        for condition, values in evaluation.metrics.items()
    }
    # a single condition needs no name
    headline = next(iter(rounded.values())) if len(rounded) == 1 else rounded
    final_p = {stage: float(h["p"].iloc[-1]) for stage, h in histories.items() if len(h)}
    return {**headline, "p": {k: round(p, 6) for k, p in final_p.items() if not math.isnan(p)}}


def _flat(metrics: dict[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= {f"{name}_{inner}": number for inner, number in value.items()}
        else:
            flat[name] = value
    return flat


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_bytes(path, table.to_csv(index=False, lineterminator="\n").encode())

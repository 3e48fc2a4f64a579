"""The run of an evaluation: one row of MLflow's table says which settings gave which result."""

from pathlib import Path
from typing import Any

from pipeline.data_inputs import data_inputs
from pipeline.files import fingerprint, sha256
from pipeline.mlflow_store import DATA_TAG, HEADLINE
from pipeline.report import headline_rank1
from pipeline.settings import Dataset
from pipeline.tracking import TrackedRun, without_home

PARTS = ("index.html", "metrics.json", "tables", "figures")
"""What of a report becomes artifacts."""

NEVER_BEHIND = {
    "oumvlp": ("runtime.", "data.casia_e.", "finetune.", "evaluate.protocols.casia_e"),
    "casia_e": ("runtime.", "evaluate.protocols.oumvlp"),
}
"""Settings that no stage behind a dataset's report reads, by how their names begin."""


def evaluation_run(
    dataset: Dataset,
    experiment: str,
    params: dict[str, Any],
    made_by: dict[str, str],
    catalogue: Path,
    tags: dict[str, str] | None = None,
) -> TrackedRun:
    """The run of a dataset's evaluation.

    ``params`` is what it shows (`Settings.flat`), ``made_by`` the metadata of its embeddings.
    """
    return TrackedRun(
        "evaluate",
        dataset,
        experiment,
        params,
        {made_by["stage"]: made_by["checkpoint"]},
        {DATA_TAG: made_by["silhouettes"], **(tags or {})},
        inputs=data_inputs(dataset, catalogue, "evaluation"),
    )


def record_report(
    run: TrackedRun,
    dataset: Dataset,
    params: dict[str, Any],
    report: Path,
    metrics: dict[str, float],
) -> None:
    """Give ``run`` the figures of a report, its files, and the digest that it is found by."""
    headline = headline_rank1(report)
    run.log(0, metrics if headline is None else {**metrics, HEADLINE: headline})
    for part in PARTS:
        run.artifact(report / part)
    run.made(result_digest(dataset, params, report / "metrics.json"))


def result_digest(dataset: Dataset, params: dict[str, Any], metrics: Path) -> str:
    """Fingerprint of a result: what was found, under which settings (`Settings.flat`)."""
    behind = {
        name: value
        for name, value in without_home(params).items()
        if not name.startswith(NEVER_BEHIND[dataset])
    }
    return fingerprint({"dataset": dataset, "params": behind, "metrics": sha256(metrics)})

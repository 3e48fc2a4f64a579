"""Gives results that DVC restored their rows in MLflow: ``python -m pipeline.restored``.

What DVC takes from its cache no stage makes, so no stage records it. This looks at the reports as
they are and at the results of DVC's experiments, and where the store has no run of one, records it,
with the tag ``restored``. Run as often as you like: each result has its row once.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline import mlflow_store
from pipeline.embedding_file import read_embeddings
from pipeline.errors import PipelineError, run_stage
from pipeline.evaluation_run import evaluation_run, record_report, result_digest
from pipeline.report import written_metrics
from pipeline.restored_experiments import Restored, experiments_without_row, fetch
from pipeline.settings import DATASETS, Dataset, Settings
from pipeline.tracking import EXPERIMENT_TAG

TAG = "restored"


def main() -> None:
    settings = Settings.load()
    reported: list[Dataset] = [
        dataset for dataset in DATASETS if (_report(dataset) / "metrics.json").exists()
    ]
    try:
        client = mlflow_store.open_store(mlflow_store.tracking_uri())
        missing = [dataset for dataset in reported if not _has_row(client, dataset, settings)]
        of_experiments = list(experiments_without_row(client))
    except mlflow_store.store_errors() as error:
        sys.stderr.write(
            "warning: whether all results have their rows in MLflow is not known, the store does "
            f"not answer: {mlflow_store.reason(error)}\n"
        )
        return
    for dataset in missing:
        if _is_up_to_date(dataset):
            _record_report(dataset, settings)
        else:
            print(f"{_report(dataset)}: not that of the present settings and code, so not recorded")
    for result in of_experiments:
        try:
            _record_experiment(result)
        except PipelineError as error:
            sys.stderr.write(f"warning: {result.name} has no row in MLflow: {error}\n")


def _record_report(dataset: Dataset, settings: Settings) -> None:
    report = _report(dataset)
    _, _, made_by = read_embeddings(Path("embeddings", f"{dataset}.arrow"))
    catalogue = Path("data", dataset, "catalogue")
    with evaluation_run(dataset, settings, made_by, catalogue, {TAG: "true"}) as run:
        record_report(run, dataset, settings, report, written_metrics(report))
    print(f"{report}: DVC had it already; now a row in MLflow")


def _record_experiment(result: Restored) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings, made_by = fetch(result, folder)
        tags = {
            TAG: "true",
            EXPERIMENT_TAG: result.name,
            "mlflow.source.git.commit": result.commit,
            "git_changed_files": "0",
        }
        report, catalogue = folder / "reports", folder / "catalogue"
        with evaluation_run(result.dataset, settings, made_by, catalogue, tags) as run:
            record_report(run, result.dataset, settings, report, written_metrics(report))
    print(f"{result.name}, {result.dataset}: DVC had it already; now a row in MLflow")


def _report(dataset: Dataset) -> Path:
    return Path("reports", dataset)


def _has_row(client: Any, dataset: Dataset, settings: Settings) -> bool:
    """Whether the store has a run with this result, or will be sent one that waits here."""
    digest = result_digest(dataset, settings.flat(), _report(dataset) / "metrics.json")
    if any(tags.get(mlflow_store.OUTPUT_TAG) == digest for tags in mlflow_store.waiting_tags()):
        return True
    condition = f"tags.{mlflow_store.OUTPUT_TAG} = '{digest}'"
    return mlflow_store.find_runs(client, condition, deleted=True) != []


def _is_up_to_date(dataset: Dataset) -> bool:
    """Whether DVC would run nothing to get at this dataset's report."""
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", "--with-deps", f"evaluate@{dataset}"],
        capture_output=True,
        text=True,
        check=False,
    )
    return status.returncode == 0 and json.loads(status.stdout) == {}


if __name__ == "__main__":
    run_stage(main)

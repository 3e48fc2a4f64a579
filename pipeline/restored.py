"""Gives results that DVC restored their rows in MLflow: ``python -m pipeline.restored``.

What DVC takes from its cache no stage makes, so no stage records it. This looks at the reports as
they are, and where the store has no run of a result, records one and marks it with the tag
``restored``. Run as often as you like: each result has its row once.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from pipeline import mlflow_store
from pipeline.embedding_file import read_embeddings
from pipeline.errors import run_stage
from pipeline.evaluation_run import evaluation_run, record_report, result_digest
from pipeline.report import written_metrics
from pipeline.settings import DATASETS, Dataset, Settings

TAG = "restored"


def main() -> None:
    settings = Settings.load()
    reported: list[Dataset] = [
        dataset for dataset in DATASETS if (_report(dataset) / "metrics.json").exists()
    ]
    if not reported:
        return
    digests = {
        dataset: result_digest(dataset, settings.flat(), _report(dataset) / "metrics.json")
        for dataset in reported
    }
    try:
        client = mlflow_store.open_store(mlflow_store.tracking_uri())
        missing = [dataset for dataset in reported if not _has_row(client, digests[dataset])]
    except mlflow_store.store_errors() as error:
        sys.stderr.write(
            "warning: whether all results have their rows in MLflow is not known, the store does "
            f"not answer: {mlflow_store.reason(error)}\n"
        )
        return
    for dataset in missing:
        if not _is_up_to_date(dataset):
            print(f"{_report(dataset)}: not that of the present settings and code, so not recorded")
            continue
        _, _, made_by = read_embeddings(Path("embeddings", f"{dataset}.arrow"))
        with evaluation_run(dataset, settings, made_by, {TAG: "true"}) as run:
            record_report(
                run, dataset, settings, _report(dataset), written_metrics(_report(dataset))
            )
        print(f"{_report(dataset)}: restored by DVC, now a row in MLflow")


def _report(dataset: Dataset) -> Path:
    return Path("reports", dataset)


def _has_row(client: Any, digest: str) -> bool:
    """Whether the store has a run with this result, or will be sent one that waits here."""
    for folder in mlflow_store.record_folders():
        tags = json.loads((folder / "tags.json").read_text(encoding="utf-8"))
        if tags.get(mlflow_store.OUTPUT_TAG) == digest:
            return True
    return mlflow_store.find_maker(client, digest) is not None


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

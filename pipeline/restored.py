"""Gives what DVC restored its runs in MLflow: ``python -m pipeline.restored``.

What DVC takes from its cache no stage makes, so no stage records it. This looks at the models and
reports as they are and at the results of DVC's experiments, and where the store has no run of one,
records it, with the tag ``restored``; a model is registered, too. Run as often as you like: each
training and each result has its run once.
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline import dvc_data, mlflow_store
from pipeline.arguments import no_arguments
from pipeline.checkpoints import CHECKPOINT, read_checkpoint
from pipeline.data_inputs import data_inputs
from pipeline.embedding_file import read_embeddings
from pipeline.errors import PipelineError, run_stage
from pipeline.evaluation_run import evaluation_run, record_report, result_digest
from pipeline.files import sha256
from pipeline.mlflow_store import DATA_TAG, OUTPUT_TAG
from pipeline.registry import ALIASES
from pipeline.report import written_metrics
from pipeline.restored_experiments import Restored, experiments_without_row, fetch, in_cache
from pipeline.settings import DATASETS, Dataset, Settings
from pipeline.tracking import DVC_EXPERIMENT_TAG, TrackedRun
from pipeline.training_history import HISTORY, read_history

TAG = "restored"

STALE = (
    "not that of the present settings and code, so not recorded: `dvc checkout` or `dvc repro` "
    "makes it so"
)


def main() -> None:
    settings = Settings.load()
    # in their order, and before the evaluations: a run links to those that are there
    trained = [stage for stage in ALIASES if (_model(stage) / CHECKPOINT).exists()]
    reported: list[Dataset] = [
        dataset for dataset in DATASETS if (_report(dataset) / "metrics.json").exists()
    ]
    try:
        client = mlflow_store.open_store(mlflow_store.tracking_uri())
        if problem := mlflow_store.deleted(client, settings.runtime.experiment):
            sys.stderr.write(f"warning: results that DVC restored get no rows: {problem}\n")
            return
        without_run = [
            stage for stage in trained if not _has_run(client, sha256(_model(stage) / CHECKPOINT))
        ]
        missing = [
            dataset for dataset in reported if not _has_run(client, _digest(dataset, settings))
        ]
        of_experiments = list(experiments_without_row(client))
    except mlflow_store.store_errors() as error:
        sys.stderr.write(
            "warning: whether all results have their rows in MLflow is not known: "
            f"{mlflow_store.trouble(error)}\n"
        )
        return
    for stage in without_run:
        if _is_up_to_date(stage):
            _record_training(stage, settings)
        else:
            print(f"{_model(stage)}: {STALE}")
    for dataset in missing:
        if _is_up_to_date(f"evaluate@{dataset}"):
            _record_report(dataset, settings)
        else:
            print(f"{_report(dataset)}: {STALE}")
    elsewhere = set()
    for result in of_experiments:
        if not in_cache(result):
            elsewhere.add(result.name)
            continue
        try:
            _record_experiment(result)
        except PipelineError as error:
            sys.stderr.write(f"warning: {result.name} has no row in MLflow: {error}\n")
    if elsewhere:
        sys.stderr.write(
            "warning: results of these experiments have no rows in MLflow, and are not in DVC's "
            f"cache here; `dvc exp pull REMOTE NAME` brings them: {', '.join(sorted(elsewhere))}\n"
        )


def _record_training(stage: str, settings: Settings) -> None:
    """All that is known of a training afterwards: not how long it took, nor where it ran."""
    checkpoint, history = _model(stage) / CHECKPOINT, _model(stage) / HISTORY
    about = read_checkpoint(checkpoint)[2]
    dataset = about["dataset"]
    with TrackedRun(
        stage,
        dataset,
        settings.runtime.experiment,
        settings.flat(),
        about["upstream"],
        {TAG: "true", DATA_TAG: about["silhouettes"]},
        inputs=data_inputs(dataset, Path("data", dataset, "catalogue"), "training"),
    ) as run:
        for step in read_history(history).to_dict("records"):
            number = int(step.pop("step"))
            # pooling without p has NaN there
            run.log(number, {str(name): v for name, v in step.items() if not math.isnan(v)})
        if about["p"] is not None:
            run.log(getattr(settings, stage).steps, {"final_p": about["p"]})
        run.artifact(checkpoint)
        run.artifact(history)
        run.model(checkpoint)
        run.made(sha256(checkpoint))
    _say(f"{_model(stage)}", run, "a run and a version of the model")


def _record_report(dataset: Dataset, settings: Settings) -> None:
    report = _report(dataset)
    _, _, made_by = read_embeddings(Path("embeddings", f"{dataset}.arrow"))
    catalogue = Path("data", dataset, "catalogue")
    experiment, params = settings.runtime.experiment, settings.flat()
    with evaluation_run(dataset, experiment, params, made_by, catalogue, {TAG: "true"}) as run:
        record_report(run, dataset, params, report, written_metrics(report))
    _say(f"{report}", run, "a row")


def _record_experiment(result: Restored) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        experiment, params, made_by = fetch(result, folder)
        tags = {
            TAG: "true",
            DVC_EXPERIMENT_TAG: result.name,
            "mlflow.source.git.commit": result.commit,
            "git_changed_files": "0",
        }
        report, catalogue = folder / "reports", folder / "catalogue"
        with evaluation_run(result.dataset, experiment, params, made_by, catalogue, tags) as run:
            record_report(run, result.dataset, params, report, written_metrics(report))
    _say(f"{result.name}, {result.dataset}", run, "a row")


def _say(what: str, run: TrackedRun, becomes: str) -> None:
    if run.delivered:  # otherwise it has said itself what waits
        print(f"{what}: DVC had it already; now {becomes} in MLflow")


def _model(stage: str) -> Path:
    return Path("models", stage)


def _report(dataset: Dataset) -> Path:
    return Path("reports", dataset)


def _digest(dataset: Dataset, settings: Settings) -> str:
    return result_digest(dataset, settings.flat(), _report(dataset) / "metrics.json")


def _has_run(client: Any, output: str) -> bool:
    """Whether the store has a run that made this, or will be sent one that waits here."""
    if any(tags.get(OUTPUT_TAG) == output for tags in mlflow_store.waiting_tags()):
        return True
    condition = f"tags.{OUTPUT_TAG} = '{output}'"
    return mlflow_store.find_runs(client, condition, deleted=True) != []


def _is_up_to_date(stage: str) -> bool:
    """Whether DVC would run nothing to get at what this stage makes."""
    status = dvc_data.dvc("status", "--json", "--with-deps", stage)
    return status.returncode == 0 and json.loads(status.stdout) == {}


if __name__ == "__main__":
    no_arguments(__doc__)
    run_stage(main)

"""Runs that tests make, and find in the store."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from pipeline.mlflow_store import tracking_uri
from pipeline.run_record import Record, open_record
from pipeline.tracking import TrackedRun

PARAMS = {"seed": 0, "model.channels": "[2, 2]", "pretrain.lr": 1e-4}


def tracked(**changes: Any) -> TrackedRun:
    arguments: dict[str, Any] = {
        "stage": "pretrain",
        "dataset": "oumvlp",
        "experiment": "walks",
        "params": PARAMS,
        "upstream": {},
    }
    return TrackedRun(**(arguments | changes))


def found(run: TrackedRun) -> Any:
    assert run.run_id
    return MlflowClient(tracking_uri()).get_run(run.run_id)


def the_run() -> Any:
    """The only run in the store."""
    client = MlflowClient(tracking_uri())
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (only,) = client.search_runs(ids)
    return only


def artifacts(run_id: str) -> list[str]:
    """What lies right at a run's artifacts."""
    return [file.path for file in MlflowClient(tracking_uri()).list_artifacts(run_id)]


def history(run_id: str, name: str = "loss") -> list[tuple[int, float]]:
    """Steps and values, in the order of their times."""
    points = MlflowClient(tracking_uri()).get_metric_history(run_id, name)
    return [(p.step, p.value) for p in sorted(points, key=lambda p: (p.timestamp, p.step))]


def eventually(condition: Callable[[], Any], deadline_s: float = 60) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"not within {deadline_s} s"
        time.sleep(0.02)


def opened(folder: Path) -> Record:
    record = open_record(folder)
    assert record is not None
    return record

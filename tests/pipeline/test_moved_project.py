import shutil
import sqlite3
from pathlib import Path
from typing import NoReturn

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from pipeline import mlflow_store
from pipeline.mlflow_store import tracking_uri
from tests.tracked_runs import artifacts, tracked


@pytest.mark.parametrize("copied", [False, True])
def test_artifacts_follow_a_project_that_is_moved_or_copied(
    copied: bool, tracking_store: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    (tracking_store / "a.txt").write_text("a")
    with tracked() as first:
        first.artifact(tracking_store / "a.txt")
        first.model(checkpoint)
    client = MlflowClient(tracking_uri())
    own_place = tracking_store.parent / "disk" / "mlartifacts"
    own = client.create_experiment("with a place of its own", own_place.as_uri())
    elsewhere = client.create_run(own).info.run_id
    client.log_artifact(elsewhere, str(tracking_store / "a.txt"))
    moved = tracking_store.with_name("moved ü'")
    (shutil.copytree if copied else shutil.move)(tracking_store, moved)
    for name, value in (("ROOT", moved), ("CODE", moved), ("RUN_IDS", moved / "runs/run_ids.json")):
        monkeypatch.setattr(mlflow_store, name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{moved / 'mlflow.db'}")
    before = sorted(tracking_store.rglob("*"))
    with tracked() as second:
        second.artifact(moved / "a.txt")
    assert artifacts(first.run_id) == artifacts(second.run_id) == ["a.txt"]
    assert sorted(tracking_store.rglob("*")) == before  # nothing was written where it lay
    assert [path for path in moved.rglob("a.txt") if second.run_id in str(path)]
    model = mlflow.pyfunc.load_model("models:/gaitgl/1")
    assert model.predict(np.zeros((1, 3, 64, 44), np.uint8)).shape[0] == 1
    assert artifacts(elsewhere) == ["a.txt"]


def test_a_moved_store_that_cannot_be_written_is_told(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MlflowClient(tracking_uri()).create_experiment("x", "file:///before/mlartifacts")

    def refuse(*_: object, **__: object) -> NoReturn:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr("pipeline.moved_project.sqlite3.connect", refuse)
    with pytest.raises(mlflow_store.store_errors()) as raised:
        mlflow_store.open_store(tracking_uri())
    assert "cannot be written by this user" in mlflow_store.trouble(raised.value)

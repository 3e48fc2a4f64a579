import os
import shutil
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient

from pipeline.files import sha256
from pipeline.model_folder import open_model
from pipeline.registry import NAME, send_model
from pipeline.run_record import Run

STAGES = {"pretrain": "oumvlp", "finetune": "casia_e"}


class Trainings:
    """Runs of trainings that have ended, and their models."""

    def __init__(self, store: Path, model_folder: Path) -> None:
        self.client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
        self.experiment = self.client.create_experiment("gaits", (store / "mlartifacts").as_uri())
        self._model_folder, self._store = model_folder, store

    def ended(self, stage: str, start_ms: int) -> tuple[str, Run]:
        run_id = self.client.create_run(self.experiment, start_ms).info.run_id
        self.client.set_terminated(run_id)
        dataset = STAGES[stage]
        params = {f"{stage}.steps": "260", "seed": "7"}
        return run_id, Run(run_id, stage, dataset, "gaits", stage, start_ms, params, {}, True)

    def send(self, run_id: str, run: Run, client: Any = None) -> None:
        folder = self._store / "record" / run_id
        shutil.copytree(self._model_folder, folder, dirs_exist_ok=True)
        send_model(client or self.client, self.experiment, run_id, run, folder)

    def versions(self) -> dict[int, str]:
        """The run of each version."""
        return {int(v.version): v.run_id for v in self.client.search_model_versions()}

    def aliases(self) -> dict[str, int]:
        aliases = self.client.get_registered_model(NAME).aliases
        return {alias: int(version) for alias, version in aliases.items()}


@pytest.fixture
def trainings(tracking_store: Path, model_folder: Path) -> Trainings:
    return Trainings(tracking_store, model_folder)


def test_a_training_has_its_model_its_version_and_its_alias(
    trainings: Trainings, checkpoint: Path, model_folder: Path
) -> None:
    run_id, run = trainings.ended("pretrain", 5)
    trainings.send(run_id, run)
    client = trainings.client
    (output,) = client.get_run(run_id).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert (logged.name, logged.status) == ("gaitgl-pretrained", "READY")
    assert logged.source_run_id == run_id
    version = client.get_model_version_by_alias(NAME, "pretrained")
    assert version.run_id == run_id
    assert version.description == "pretrain on oumvlp, steps 260, seed 7"
    assert version.tags == {
        "stage": "pretrain",
        "dataset": "oumvlp",
        "checkpoint": sha256(checkpoint),
        "trained_ms": "5",
    }
    local = mlflow.artifacts.download_artifacts(f"models:/{NAME}@pretrained")
    described = Model.load(local)
    assert (described.model_id, described.run_id) == (output.model_id, run_id)
    silhouettes = np.full((2, 4, 64, 44), 255, np.uint8)
    expected = open_model(model_folder).predict(silhouettes)
    np.testing.assert_array_equal(open_model(Path(local)).predict(silhouettes), expected)
    by_name = mlflow.pyfunc.load_model(f"models:/{NAME}@pretrained")
    np.testing.assert_array_equal(by_name.predict(silhouettes), expected)


def test_aliases_name_the_newest_of_each_stage_in_whatever_order_they_are_sent(
    trainings: Trainings,
) -> None:
    sent = [("pretrain", 10), ("finetune", 20), ("finetune", 40), ("finetune", 30), ("pretrain", 5)]
    for stage, start_ms in sent:
        trainings.send(*trainings.ended(stage, start_ms))
    assert trainings.aliases() == {"pretrained": 1, "finetuned": 3}
    assert len(trainings.versions()) == 5


class LosesAnswers:
    """A client to whom each kind of call fails once: done, but the answer is lost."""

    def __init__(self, client: MlflowClient) -> None:
        self._client, self.lost = client, set[str]()

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def answered(*arguments: Any, **named: Any) -> Any:
            answer = call(*arguments, **named)
            if name in self.lost:
                return answer
            self.lost.add(name)
            raise MlflowException(f"{name}: no answer")

        return answered


def test_a_store_whose_answers_are_lost_gets_one_model_and_one_version(
    trainings: Trainings,
) -> None:
    run_id, run = trainings.ended("finetune", 5)
    client = LosesAnswers(trainings.client)
    for _ in range(30):
        try:
            trainings.send(run_id, run, client)
            break
        except MlflowException:
            pass
    else:
        pytest.fail("it never ended")
    assert {"create_logged_model", "create_model_version", "log_outputs"} <= client.lost
    trainings.send(run_id, run)
    assert trainings.versions() == {1: run_id}
    assert trainings.aliases() == {"finetuned": 1}
    assert len(trainings.client.search_logged_models([trainings.experiment])) == 1
    assert len(trainings.client.get_run(run_id).outputs.model_outputs) == 1

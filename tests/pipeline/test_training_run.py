import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.artifacts import download_artifacts
from mlflow.tracking import MlflowClient

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.checkpoints import read_checkpoint
from pipeline.devices import lacks_bfloat16
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.mlflow_store import tracking_uri
from pipeline.model_folder import open_model, read_network
from pipeline.pyfunc import Embedder
from pipeline.settings import Settings
from pipeline.training_history import Step
from tests.pipeline.trainings import LONGER, Project, Stores, files, run, runs, the_run

CHANNELS = (2, 2, 4, 4, 4, 4)


@pytest.fixture(autouse=True)
def _elsewhere(tracking_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States of trainings go to runs/ in the folder where a stage runs, runs to a store there."""
    monkeypatch.chdir(tmp_path)


def new_model(**changes: Any) -> GaitGL:
    torch.manual_seed(0)
    return GaitGL(GaitGLConfig(channels=CHANNELS, **changes))


def test_a_training_stage_writes_records_and_tells(
    stores: Stores, project: Project, tracking_store: Path, tmp_path: Path
) -> None:
    settings = Settings.load(project() / "params.yaml")
    run(stores, tmp_path / "model", settings)
    checkpoint = tmp_path / "model" / "checkpoint.safetensors"
    config, weights, info = read_checkpoint(checkpoint)
    assert config.channels == CHANNELS
    assert info["training"] == settings.pretrain.model_dump(exclude={"validate_every"})
    assert info["silhouettes"] == stores["oumvlp"].digest()
    assert (info["stage"], info["dataset"], info["seed"]) == ("pretrain", "oumvlp", 0)
    history = pd.read_csv(tmp_path / "model" / "history.csv")
    assert list(history.columns) == list(Step.__slots__)
    assert history["step"].tolist() == [1, 2, 3]
    assert history["p"].iloc[-1] == info["p"] == weights["pooling.p"].item()

    found = the_run()
    assert found.info.status == "FINISHED"
    assert found.data.params == {name: str(value) for name, value in settings.flat().items()} | {
        f"data.{dataset}.root": dataset for dataset in ("oumvlp", "casia_e")
    }
    assert found.data.metrics["final_p"] == info["p"]
    assert found.data.tags["output_digest"] == sha256(checkpoint)
    assert found.data.tags["data_fingerprint"] == stores["oumvlp"].digest()
    client = MlflowClient(tracking_uri())
    for name in ("loss", "active_share", "mean_distance", "lr", "p", "sequences_per_s"):
        points = client.get_metric_history(found.info.run_id, name)
        assert [point.step for point in points] == [1, 2, 3]
        if name in history:
            assert [point.value for point in points] == history[name].tolist()
    kept = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert kept == {"checkpoint.safetensors", "history.csv"}

    version = client.get_model_version_by_alias("gaitgl", "pretrained")
    assert version.run_id == found.info.run_id
    assert version.tags["checkpoint"] == sha256(checkpoint)
    logged = Path(download_artifacts("models:/gaitgl@pretrained"))
    silhouettes = stores["oumvlp"].read(0)[None]
    expected = Embedder(read_network(checkpoint)).predict(silhouettes)
    assert (open_model(logged).predict(silhouettes) == expected).all()


def test_files_depend_on_settings_and_inputs_alone(
    stores: Stores, project: Project, tracking_store: Path, tmp_path: Path
) -> None:
    written = []
    for name, changes in (
        ("one", {}),
        ("two", {"runtime.workers": 2, "runtime.log_every": 7, "runtime.experiment": "other"}),
        ("seed", {"seed": 1}),
        ("lr", {"pretrain.lr": 0.01}),
    ):
        run(stores, tmp_path / name, Settings.load(project(changes, f"p-{name}") / "params.yaml"))
        written.append(
            [
                (tmp_path / name / file).read_bytes()
                for file in ("checkpoint.safetensors", "history.csv")
            ]
        )
    assert written[0] == written[1]
    for other in written[2:]:
        assert all(a != b for a, b in zip(written[0], other, strict=True))


def test_no_steps_write_the_initial_weights(
    stores: Stores, project: Project, tracking_store: Path, tmp_path: Path
) -> None:
    changes = {"pretrain.steps": 0, "pretrain.lr_drops": [], "pretrain.warmup_steps": 0}
    run(stores, tmp_path / "model", Settings.load(project(changes) / "params.yaml"))
    _, weights, _ = read_checkpoint(tmp_path / "model" / "checkpoint.safetensors")
    initial = new_model().state_dict()
    assert all(torch.equal(weights[name], initial[name]) for name in initial)
    assert pd.read_csv(tmp_path / "model" / "history.csv").empty
    assert the_run().data.metrics == {"final_p": 6.5}


def test_max_mean_pooling_has_no_p_to_record(
    stores: Stores, project: Project, tracking_store: Path, tmp_path: Path
) -> None:
    settings = Settings.load(project({"model.spatial_pooling": "max_mean"}) / "params.yaml")
    run(stores, tmp_path / "model", settings)
    metrics = the_run().data.metrics
    assert "loss" in metrics
    assert not {"p", "final_p"} & set(metrics)
    assert read_checkpoint(tmp_path / "model" / "checkpoint.safetensors")[2]["p"] is None


def test_a_split_too_small_for_p_is_an_error_that_names_the_stage(
    stores: Stores, project: Project, tmp_path: Path
) -> None:
    settings = Settings.load(project({"pretrain.subjects_per_batch": 7}) / "params.yaml")
    told = "pretrain cannot start: a batch needs 7 subjects, but the training set has 6; .*most 6$"
    with pytest.raises(PipelineError, match=told):
        run(stores, tmp_path / "model", settings)
    changes = {"pretrain.subjects_per_batch": 6, "pretrain.validation_subjects": 2}
    settings = Settings.load(project(changes, "some") / "params.yaml")
    with pytest.raises(PipelineError, match=r"pretrain\.validation_subjects keeps 2 out of it"):
        run(stores, tmp_path / "model", settings)


def test_a_result_that_dvc_did_not_live_to_note_is_taken_over(
    stores: Stores,
    project: Project,
    tracking_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = Settings.load(project(LONGER) / "params.yaml")
    run(stores, tmp_path / "model", settings)
    made = files(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")  # as DVC does before it starts the stage anew
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    run(stores, tmp_path / "model", settings)
    assert "has ended already, unnoticed by DVC" in capsys.readouterr().err
    assert files(tmp_path / "model") == made
    assert len(runs()) == 1
    assert len(MlflowClient(tracking_uri()).search_model_versions()) == 1


def test_a_batch_larger_than_the_memory_is_refused_before_the_first_step(
    stores: Stores, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.load(project() / "params.yaml")
    monkeypatch.setattr("pipeline.training_run.memory_of_each", lambda device: 1000)
    with pytest.raises(PipelineError, match=r"(?s)pretrain: a batch of .* not even 2 subjects"):
        run(stores, tmp_path / "model", settings)
    assert not (tmp_path / "model").exists()


@pytest.mark.skipif(not lacks_bfloat16(torch.device("cpu")), reason="this CPU computes in bfloat16")
def test_a_precision_that_the_device_lacks_is_refused_before_the_first_step(
    stores: Stores, project: Project, tmp_path: Path
) -> None:
    settings = Settings.load(project({"pretrain.precision": "bfloat16"}) / "params.yaml")
    with pytest.raises(PipelineError, match=r"pretrain\.precision is bfloat16, but this CPU .*32"):
        run(stores, tmp_path / "model", settings)
    assert not (tmp_path / "model").exists()

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.batches import TrainingBatch, TrainingBatches
from pipeline.checkpoints import read_checkpoint
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.settings import Dataset, Settings
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tracking import tracking_uri
from pipeline.training import Step, learning_rate, run_training, train_steps

CHANNELS = (2, 2, 4, 4, 4, 4)
CPU = torch.device("cpu")

Stores = dict[Dataset, SilhouetteStore]
Project = Callable[..., Path]


def new_model(**changes: Any) -> GaitGL:
    torch.manual_seed(0)
    return GaitGL(GaitGLConfig(channels=CHANNELS, **changes))


def train(model: GaitGL, batches: list[TrainingBatch], **changes: Any) -> list[Step]:
    settings: dict[str, Any] = {
        "lr": 1e-3,
        "warmup_steps": 0,
        "lr_drops": [],
        "margin": 0.2,
        "precision": "float32",
        "device": CPU,
    }
    return list(train_steps(model, batches, **(settings | changes)))


@pytest.fixture
def batches(stores: Stores) -> TrainingBatches:
    return TrainingBatches(stores["oumvlp"], 3, 2, 4, seed=0)


@pytest.mark.parametrize(
    ("step", "warmup_steps", "lr_drops", "expected"),
    [
        (1, 0, [], 1.0),
        (1000, 0, [], 1.0),
        (150_000, 0, [150_000], 1.0),  # the paper: 1e-5 after 150 000
        (150_001, 0, [150_000], 0.1),
        (1, 4, [], 0.2),
        (4, 4, [], 0.8),
        (5, 4, [], 1.0),
        (6, 4, [], 1.0),
        (2, 4, [1], 0.04),
        (30, 4, [10, 20], 0.01),
        (20, 4, [10, 20], 0.1),
    ],
)
def test_the_learning_rate_warms_up_and_drops(
    step: int, warmup_steps: int, lr_drops: list[int], expected: float
) -> None:
    assert learning_rate(step, 3e-4, warmup_steps, lr_drops) == pytest.approx(3e-4 * expected)


def test_steps_report_what_the_optimizer_used(batches: TrainingBatches) -> None:
    model = new_model()
    steps = train(model, list(batches.ahead(1, 6, 0)), lr=1e-2, warmup_steps=2, lr_drops=[4])
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.lr for step in steps] == pytest.approx(
        [1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2, 1e-3, 1e-3]
    )
    assert all(0 < step.active_share <= 1 for step in steps)
    assert all(step.loss > 0 and step.mean_distance > 0 for step in steps)
    assert steps[-1].p == model.gem_p
    # Adam's first step moves a weight by the rate, or less where its gradient is next to nothing
    assert 0 < abs(steps[0].p - 6.5) < 1.01e-2 / 3


def test_training_lowers_the_loss_and_moves_p(batches: TrainingBatches) -> None:
    model = new_model()
    first, second = batches.batch(1), batches.batch(2)
    steps = train(model, [first, second] * 40, lr=5e-3)
    assert steps[-2].loss * steps[-2].active_share < 0.7 * steps[0].loss * steps[0].active_share
    assert steps[-1].loss * steps[-1].active_share < 0.7 * steps[1].loss * steps[1].active_share
    assert model.gem_p is not None
    assert abs(model.gem_p - 6.5) > 0.01


@pytest.mark.parametrize(
    "architecture", [{"activation": "sum"}, {"spatial_pooling": "max_mean"}, {"parts": 4}]
)
def test_other_architectures_train_too(
    batches: TrainingBatches, architecture: dict[str, Any]
) -> None:
    model = new_model(**architecture)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    steps = train(model, [batches.batch(1)] * 30, lr=5e-3)
    assert steps[-1].loss * steps[-1].active_share < 0.8 * steps[0].loss * steps[0].active_share
    for name, weight in model.named_parameters():
        assert weight.isfinite().all()
        assert not torch.equal(weight, before[name]), f"{name} did not move"
    assert math.isnan(steps[0].p) == ("spatial_pooling" in architecture)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(batches: TrainingBatches) -> None:
    runs = []
    for workers in (0, 2):
        model = new_model()
        steps = train(model, list(batches.ahead(1, 4, workers)))
        runs.append((steps, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


def test_bfloat16_trains_float32_weights(batches: TrainingBatches) -> None:
    model = new_model()
    exact = train(new_model(), [batches.batch(1)])
    steps = train(model, [batches.batch(1)] * 3, precision="bfloat16")
    assert steps[0].loss == pytest.approx(exact[0].loss, rel=0.1)
    assert steps[0].loss != exact[0].loss
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize("architecture", [{}, {"spatial_pooling": "max_mean"}])
def test_a_loss_that_is_not_finite_names_its_step(
    batches: TrainingBatches, architecture: dict[str, Any]
) -> None:
    model = new_model(**architecture)
    with torch.no_grad():
        model.lta.conv.weight[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(PipelineError, match="the loss of step 1 is nan, with p = "):
        train(model, [batches.batch(1)])


def test_a_loss_that_explodes_on_the_way_names_its_step(batches: TrainingBatches) -> None:
    with pytest.raises(PipelineError, match=r"the loss of step [2-9] is (nan|inf)"):
        train(new_model(), list(batches.ahead(1, 9, 0)), lr=1e30)


def run(
    stores: Stores, folder: Path, settings: Settings, weights: dict[str, torch.Tensor] | None = None
) -> None:
    folder.mkdir(parents=True)
    architecture = settings.model.model_dump()
    config = GaitGLConfig(**{**architecture, "channels": tuple(architecture["channels"])})
    torch.manual_seed(settings.seed)
    model = GaitGL(config)
    model.load_state_dict(weights or model.state_dict())
    run_training(
        "pretrain",
        "oumvlp",
        model,
        config,
        stores["oumvlp"],
        folder,
        settings.pretrain,
        settings.seed,
        settings.runtime,
        params=settings.flat(),
        upstream={},
    )


def the_run() -> Any:
    client = MlflowClient(tracking_uri())
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (found,) = client.search_runs(ids)
    return found


def test_a_training_stage_writes_records_and_tells(
    stores: Stores, project: Project, tracking_store: Path, tmp_path: Path
) -> None:
    settings = Settings.load(project() / "params.yaml")
    run(stores, tmp_path / "model", settings)
    checkpoint = tmp_path / "model" / "checkpoint.safetensors"
    config, weights, info = read_checkpoint(checkpoint)
    assert config.channels == CHANNELS
    assert info["training"] == settings.pretrain.model_dump()
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
    client = MlflowClient(tracking_uri())
    for name in ("loss", "active_share", "mean_distance", "lr", "p", "sequences_per_s"):
        points = client.get_metric_history(found.info.run_id, name)
        assert [point.step for point in points] == [1, 2, 3]
        if name in history:
            assert [point.value for point in points] == history[name].tolist()
    kept = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert kept == {"checkpoint.safetensors", "history.csv"}


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


def test_weights_that_are_not_finite_stop_the_stage_and_fail_its_run(
    stores: Stores, project: Project, tracking_store: Path, tmp_path: Path
) -> None:
    weights = new_model().state_dict()
    weights["first_conv.weight"][0] = torch.nan
    with pytest.raises(PipelineError, match="the loss of step 1 is nan"):
        run(stores, tmp_path / "model", Settings.load(project() / "params.yaml"), weights)
    assert the_run().info.status == "FAILED"
    assert list((tmp_path / "model").iterdir()) == []


def test_a_split_too_small_for_p_is_an_error_that_names_the_stage(
    stores: Stores, project: Project, tmp_path: Path
) -> None:
    settings = Settings.load(project({"pretrain.subjects_per_batch": 7}) / "params.yaml")
    with pytest.raises(PipelineError, match="pretrain cannot start: a batch needs 7 subjects"):
        run(stores, tmp_path / "model", settings)


def test_long_trainings_keep_about_a_thousand_points(
    stores: Stores,
    project: Project,
    tracking_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.training.HISTORY_POINTS", 3)
    settings = Settings.load(project({"pretrain.steps": 8}) / "params.yaml")
    run(stores, tmp_path / "model", settings)
    history = pd.read_csv(tmp_path / "model" / "history.csv")
    assert history["step"].tolist() == [1, 3, 6, 8]
    run_ids = json.loads((tracking_store / "runs" / "run_ids.json").read_text(encoding="utf-8"))
    assert run_ids == {sha256(tmp_path / "model" / "checkpoint.safetensors"): the_run().info.run_id}

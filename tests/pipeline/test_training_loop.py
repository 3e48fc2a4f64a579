import gzip
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

from gaitgl.model import GaitGL
from pipeline.batches import TrainingBatch, TrainingBatches
from pipeline.checkpoints import read_checkpoint
from pipeline.errors import PipelineError, Stopped
from pipeline.files import sha256
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.mlflow_store import tracking_uri
from pipeline.protocols import write_protocols
from pipeline.settings import Settings
from tests.pipeline.trainings import LONGER, Project, Stores, files, run, runs, the_run


@pytest.fixture(autouse=True)
def _elsewhere(tracking_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """States of trainings go to runs/ in the folder where a stage runs, runs to a store there."""
    monkeypatch.chdir(tmp_path)


def test_a_step_that_is_not_finite_leaves_what_is_needed_to_understand_it(
    stores: Stores, project: Project, tracking_store: Path, tmp_path: Path
) -> None:
    settings = Settings.load(project({"pretrain.lr": 1e30, "pretrain.steps": 9}) / "params.yaml")
    with pytest.raises(PipelineError, match=r"the loss of step \d is nan, with p = ") as caught:
        run(stores, tmp_path / "model", settings)
    (trouble,) = tmp_path.glob("runs/pretrain-*/trouble")
    for name in ("batch.csv", "step.json", "checkpoint.safetensors"):
        assert str((trouble / name).relative_to(tmp_path)) in str(caught.value)
    known = json.loads((trouble / "step.json").read_text(encoding="utf-8"))
    assert f"the loss of step {known['step']} is" in str(caught.value)
    assert len(known["loss_per_strip"]) == 64
    _, weights, info = read_checkpoint(trouble / "checkpoint.safetensors")
    assert info == {"step": known["step"] - 1}
    assert known["p"] == weights["pooling.p"].item()
    batch = pd.read_csv(trouble / "batch.csv", dtype=str)
    assert len(batch) == 6
    assert set(batch["subject"]) <= set(stores["oumvlp"].index["subject"])
    assert len(str(caught.value).splitlines()) < 15
    assert the_run().info.status == "FAILED"
    assert not (tmp_path / "model").exists()


def test_a_gradient_that_is_not_finite_is_told_by_the_names_of_its_weights(
    stores: Stores, project: Project, tracking_store: Path, tmp_path: Path
) -> None:
    def spoil(model: GaitGL) -> None:
        model.lta.conv.weight.register_hook(lambda gradient: gradient * torch.nan)

    settings = Settings.load(project() / "params.yaml")
    with pytest.raises(PipelineError, match="the gradient of step 1 is not finite") as caught:
        run(stores, tmp_path / "model", settings, spoil)
    assert "  lta.conv.weight" in str(caught.value)


def test_long_trainings_keep_about_a_thousand_points(
    stores: Stores,
    project: Project,
    tracking_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.training_loop.HISTORY_POINTS", 3)
    settings = Settings.load(project({"pretrain.steps": 8}) / "params.yaml")
    run(stores, tmp_path / "model", settings)
    history = pd.read_csv(tmp_path / "model" / "history.csv")
    assert history["step"].tolist() == [1, 3, 6, 8]
    run_ids = json.loads((tracking_store / "runs" / "run_ids.json").read_text(encoding="utf-8"))
    assert run_ids == {sha256(tmp_path / "model" / "checkpoint.safetensors"): the_run().info.run_id}


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """``stop_at(step, signal)``: the signal comes while that step's batch is made, once."""
    original = TrainingBatches.batch

    def arrange(step: int, number: int) -> None:
        left = [step]

        def batch(self: TrainingBatches, step: int) -> TrainingBatch:
            if step in left:
                left.remove(step)
                os.kill(os.getpid(), number)
            return original(self, step)

        monkeypatch.setattr(TrainingBatches, "batch", batch)

    return arrange


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_training_that_is_stopped_goes_on_to_the_same_bytes_in_the_same_run(
    stores: Stores,
    project: Project,
    tracking_store: Path,
    tmp_path: Path,
    stop_at: Callable[[int, int], None],
    number: int,
) -> None:
    settings = Settings.load(project(LONGER) / "params.yaml")
    run(stores, tmp_path / "whole", settings)
    (whole,) = runs()
    for step in (3, 7, 8):
        stop_at(step, number)
        with pytest.raises(Stopped, match=f"after step {step} by") as stop:
            run(stores, tmp_path / "parts", settings)
        assert stop.value.exit_status == 128 + number
        assert not (tmp_path / "parts").exists()
    run(stores, tmp_path / "parts", settings)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert leftovers(tmp_path) == []
    (parts,) = (found for found in runs() if found.info.run_id != whole.info.run_id)
    assert parts.info.status == "FINISHED"
    client = MlflowClient(tracking_uri())
    for name in ("loss", "p", "grad_norm"):
        one, other = (
            [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, name)]
            for found in (whole, parts)
        )
        assert one == other
        assert [step for step, _ in one] == list(range(1, 13))
    durations_s = [m.value for m in client.get_metric_history(parts.info.run_id, "duration_s")]
    assert durations_s[-1] > 0
    assert durations_s == sorted(durations_s), "each part goes on from where the one before was"


def leftovers(folder: Path) -> list[str]:
    """What lies in runs/ beside the copy of the last result."""
    return [path.name for path in (folder / "runs").iterdir() if path.name != "finished"]


def test_a_torn_state_costs_the_steps_since_the_one_before_and_nothing_else(
    stores: Stores,
    project: Project,
    tracking_store: Path,
    tmp_path: Path,
    stop_at: Callable[[int, int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = Settings.load(project(LONGER) / "params.yaml")
    run(stores, tmp_path / "whole", settings)
    stop_at(7, signal.SIGTERM)
    with pytest.raises(Stopped):
        run(stores, tmp_path / "parts", settings)
    states = sorted(tmp_path.glob("runs/pretrain-*/step-*.safetensors"))
    assert [path.stem for path in states] == ["step-000000005", "step-000000007"]
    os.truncate(states[-1], states[-1].stat().st_size // 2)
    capsys.readouterr()
    run(stores, tmp_path / "parts", settings)
    told = capsys.readouterr().err
    assert "step-000000007.safetensors is torn" in told
    assert "going on from step 5" in told
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    "change", [{"pretrain.lr": 0.01}, {"seed": 1}, {"model.gem_p": 6.0}, {"pretrain.steps": 13}]
)
def test_another_setting_never_goes_on_from_the_state_of_this_one(
    stores: Stores,
    project: Project,
    tracking_store: Path,
    tmp_path: Path,
    stop_at: Callable[[int, int], None],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
) -> None:
    changed = Settings.load(project({**LONGER, **change}, "changed") / "params.yaml")
    run(stores, tmp_path / "fresh", changed)
    stop_at(7, signal.SIGTERM)
    with pytest.raises(Stopped):
        run(stores, tmp_path / "model", Settings.load(project(LONGER) / "params.yaml"))
    capsys.readouterr()
    run(stores, tmp_path / "model", changed)
    told = capsys.readouterr().err
    assert "going on" not in told
    leaf = next(iter(change)).rpartition(".")[2]
    assert "(step 7): other" in told
    assert leaf in told
    assert files(tmp_path / "model") == files(tmp_path / "fresh")


def test_the_runtime_may_change_between_the_parts_of_a_training(
    stores: Stores,
    project: Project,
    tracking_store: Path,
    tmp_path: Path,
    stop_at: Callable[[int, int], None],
) -> None:
    run(stores, tmp_path / "whole", Settings.load(project(LONGER) / "params.yaml"))
    stop_at(7, signal.SIGTERM)
    with pytest.raises(Stopped):
        run(stores, tmp_path / "parts", Settings.load(project(LONGER, "one") / "params.yaml"))
    other = {"runtime.workers": 2, "runtime.checkpoint_every": 2, "runtime.log_every": 3}
    settings = Settings.load(project({**LONGER, **other}, "two") / "params.yaml")
    run(stores, tmp_path / "parts", settings)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_steps_without_an_active_triplet_are_warned_of_and_stop_where_that_is_set(
    stores: Stores,
    project: Project,
    tracking_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def collapse(model: GaitGL) -> None:
        """All embeddings equal 0; a margin that float32 takes for 0 leaves no triplet active."""
        with torch.no_grad():
            model.separate_fc.weight.zero_()

    changes = {**LONGER, "pretrain.margin": 1e-60, "runtime.stop_after_idle_steps": 6}
    settings = Settings.load(project(changes) / "params.yaml")
    with pytest.raises(PipelineError, match="no triplet was active in the last 6 steps") as caught:
        run(stores, tmp_path / "model", settings, collapse)
    assert "pretrain.margin" in str(caught.value)
    assert "runtime.stop_after_idle_steps = 6" in str(caught.value)
    assert "warning: no triplet was active in the last 3 steps" in capsys.readouterr().err
    changes |= {"runtime.stop_after_idle_steps": 0}
    run(stores, tmp_path / "model", Settings.load(project(changes, "on") / "params.yaml"), collapse)


def test_validation_is_a_curve_that_changes_nothing_else(
    stores: Stores,
    project: Project,
    tracking_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without = {**LONGER, "pretrain.validation_subjects": 3}
    run(stores, tmp_path / "without", Settings.load(project(without, "w") / "params.yaml"))
    (first,) = runs()
    assert not [name for name in first.data.metrics if "validation" in name]
    measured = {**without, "pretrain.validate_every": 5}
    Path("catalogue").mkdir()
    write_protocols(Path("catalogue"), OumvlpRelease.protocols)
    run(stores, tmp_path / "with", Settings.load(project(measured) / "params.yaml"))
    assert files(tmp_path / "with") == files(tmp_path / "without")
    (second,) = (found for found in runs() if found.info.run_id != first.info.run_id)
    curve = MlflowClient(tracking_uri()).get_metric_history(second.info.run_id, "validation_rank1")
    assert [point.step for point in curve] == [5, 10, 12]
    assert all(0 <= point.value <= 100 for point in curve)
    best = max(curve, key=lambda point: (point.value, -point.step))
    assert second.data.tags["best_validation_step"] == str(best.step)
    assert second.data.metrics["validation_best_rank1"] == best.value
    assert "validation after step 10: rank-1" in capsys.readouterr().err


def test_a_profile_of_a_training_changes_nothing_else(
    stores: Stores, project: Project, tracking_store: Path, tmp_path: Path
) -> None:
    run(stores, tmp_path / "without", Settings.load(project(LONGER) / "params.yaml"))
    changes = {**LONGER, "runtime.profile": True}
    run(stores, tmp_path / "with", Settings.load(project(changes, "p") / "params.yaml"))
    assert files(tmp_path / "with") == files(tmp_path / "without")
    (trace,) = tmp_path.glob("runs/traces/pretrain-*.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_a_missing_compiler_is_said_and_the_training_goes_on_without(
    stores: Stores,
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = Settings.load(project({"pretrain.compile": True}) / "params.yaml")
    monkeypatch.setattr("pipeline.training_loop.compiler_problem", lambda device: "no g++ here")
    run(stores, tmp_path / "model", settings)
    told = capsys.readouterr().err
    assert "pretrain.compile is true, but there is no compiler (no g++ here)" in told
    assert "set pretrain.compile: false" in told
    assert (tmp_path / "model" / "checkpoint.safetensors").exists()


def test_memory_that_runs_out_names_the_settings(
    stores: Stores, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    settings = Settings.load(project() / "params.yaml")
    monkeypatch.setattr(GaitGL, "forward", exhausted)
    monkeypatch.setattr("pipeline.training_run.shortage", lambda *arguments: "")
    monkeypatch.setattr("pipeline.memory.kept_bytes", lambda *arguments: 2**20)
    with pytest.raises(PipelineError, match=r"out of memory in step 1\.\npretrain: a batch of"):
        run(stores, tmp_path / "model", settings)

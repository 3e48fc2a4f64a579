import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline import mlflow_store, tracking
from pipeline.errors import PipelineError, Stopped
from pipeline.mlflow_store import tracking_uri
from pipeline.tracking import TrackedRun
from tests.tracked_runs import (
    PARAMS,
    eventually,
    found,
    history,
    opened,
    the_run,
    tracked,
)

PROJECT = Path(__file__).parents[2]


def test_a_run_has_params_tags_metrics_artifacts_and_an_end(
    tracking_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "p.png").write_bytes(b"picture")
    with tracked() as run:
        for step in (1, 2, 30):
            run.log(step, {"loss": 1 / step, "p": 6.5 + step})
        run.artifact(tmp_path / "figures" / "p.png")
        run.artifact(tmp_path / "figures")
        eventually(lambda: run.run_id)
        assert found(run).info.status == "RUNNING"
    record = found(run)
    assert record.info.status == "FINISHED"
    assert record.data.params == {name: str(value) for name, value in PARAMS.items()}
    commit = subprocess.run(
        ["git", "-C", str(tracking_store), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    expected = {
        "stage": "pretrain",
        "dataset": "oumvlp",
        "dvc_stage": "pretrain",
        "mlflow.source.git.commit": commit,
        "mlflow.source.name": "stages/pretrain.py",
    }
    assert expected.items() <= record.data.tags.items()
    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment(record.info.experiment_id)
    assert experiment.name == "walks"
    assert experiment.artifact_location == (tracking_store / "mlartifacts").as_uri()
    points = client.get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 1.0), (2, 0.5), (30, 1 / 30)]
    assert record.data.metrics["p"] == 36.5
    stored = tracking_store / "mlartifacts" / run.run_id / "artifacts"
    assert (stored / "p.png").read_bytes() == b"picture"
    assert (stored / "figures" / "p.png").read_bytes() == b"picture"
    assert not list((tracking_store / "runs").iterdir()), "all is delivered, nothing need be kept"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError(), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Stopped("SIGTERM", 143), "KILLED"),
    ],
)
def test_a_run_that_ends_early_keeps_its_metrics_and_says_so(
    tracking_store: Path, error: BaseException, status: str
) -> None:
    run = tracked()

    def work() -> None:
        with run:
            run.log(1, {"loss": 0.5})
            raise error

    with pytest.raises(type(error)):
        work()
    assert found(run).info.status == status
    assert found(run).data.metrics == {"loss": 0.5}


def test_params_show_no_path_outside_the_project(tracking_store: Path) -> None:
    params = {
        "data.oumvlp.root": "/home/someone/secret project/OUMVLP",
        "data.casia_e.root": "raw/casia_e",
        "seed": 3,
    }
    with tracked(params=params) as run:
        pass
    assert found(run).data.params == {
        "data.oumvlp.root": "OUMVLP",
        "data.casia_e.root": "raw/casia_e",
        "seed": "3",
    }


def test_changed_files_are_counted(tracking_store: Path) -> None:
    (tracking_store / ".gitignore").write_text("*\n!new-*\n!dvc.lock\n", encoding="utf-8")
    (tracking_store / "dvc.lock").touch()  # DVC writes it while it runs
    (tracking_store / "new-1").touch()
    (tracking_store / "new-2").touch()
    with tracked() as run:
        pass
    assert found(run).data.tags["git_changed_files"] == "2"


def fail_after(run: TrackedRun, steps: range) -> None:
    """Log ``steps`` and fail."""
    with suppress(ZeroDivisionError), run:
        for step in steps:
            run.log(step, {"loss": step / 2})
        raise ZeroDivisionError


def test_a_run_that_failed_goes_on_as_the_same_run(tracking_store: Path) -> None:
    folder = tracking_store / "runs" / "pretrain-f00d" / "record"
    first = tracked(folder=folder, tags={"device": "cpu"})
    fail_after(first, range(1, 6))
    assert found(first).info.status == "FAILED"
    assert folder.exists(), "its training may be started again"
    with tracked(folder=folder, tags={"device": "H200"}) as second:
        assert second.run_id == first.run_id
        eventually(lambda: found(second).info.status == "RUNNING")
        for step in range(4, 9):  # from the checkpoint of step 3 on: 4 and 5 are logged already
            second.log(step, {"loss": step / 2, "only_now": 1.0})
        second.tag("resumed_at_step", "3")
    assert the_run().info.status == "FINISHED"
    assert the_run().info.start_time == first._run.start_ms
    assert the_run().data.tags["device"] == "H200"
    assert the_run().data.tags["resumed_at_step"] == "3"
    assert history(first.run_id) == [(step, step / 2) for step in range(1, 9)]
    assert [step for step, _ in history(first.run_id, "only_now")] == [4, 5, 6, 7, 8]
    assert not folder.parent.exists()


def test_in_a_copy_that_dvc_deletes_nothing_waits_and_the_experiment_is_named(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tracking_store / ".dvc" / "tmp" / "exps" / "tmp1"
    monkeypatch.setattr(mlflow_store, "CODE", copy)
    monkeypatch.setenv("DVC_EXP_NAME", "brave-walk")
    folder = copy / "runs" / "pretrain-f00d" / "record"
    fail_after(tracked(folder=folder), range(1, 3))
    assert the_run().info.run_name == "pretrain-oumvlp (brave-walk)"
    assert the_run().data.tags["dvc_exp"] == "brave-walk"
    assert the_run().info.status == "FAILED"
    assert not folder.exists()
    assert mlflow_store.record_folders() == []


def finished_and_not_delivered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with tracked(folder=folder) as run:
            run.log(1, {"loss": 0.5})
    assert opened(folder).end is not None
    return run


def test_a_finished_run_makes_room_for_a_new_one(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tracking_store / "runs" / "pretrain-f00d" / "record"
    old = finished_and_not_delivered(folder, monkeypatch)
    with tracked(folder=folder) as new:
        new.log(1, {"loss": 0.25})
    assert history(the_run().info.run_id) == [(1, 0.25)]
    (aside,) = mlflow_store.record_folders()
    assert aside.parent.name == f"pretrain-f00d-{old._run.token[:8]}"
    assert opened(aside).run == old._run


def test_a_finished_run_whose_work_goes_on_is_the_same_run(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tracking_store / "runs" / "pretrain-f00d" / "record"
    finished_and_not_delivered(folder, monkeypatch)
    with tracked(folder=folder, resumed=True) as run:
        run.log(1, {"loss": 0.5})
        run.log(2, {"loss": 0.25})
    assert history(the_run().info.run_id) == [(1, 0.5), (2, 0.25)]
    assert mlflow_store.record_folders() == []


def test_two_processes_cannot_have_one_record(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "IN_USE_S", 0.1)
    folder = tracking_store / "runs" / "pretrain-f00d" / "record"
    with (
        tracked(folder=folder),
        pytest.raises(PipelineError, match="pretrain-f00d/record is the record of a run"),
        tracked(folder=folder),
    ):
        pass


def test_a_full_disk_at_the_end_does_not_hide_why_the_work_stopped(
    tracking_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with tracked(folder=tracking_store / "runs" / "x" / "record") as run:
            (run._record.folder / "end.json").mkdir()  # a rename onto it fails as on a full disk
            raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        work()
    assert "could not be told how the run ended" in capsys.readouterr().err

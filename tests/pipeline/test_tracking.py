import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pipeline import tracking
from pipeline.tracking import TrackedRun, git, run_id_of, tracking_uri

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


def test_a_run_has_params_tags_metrics_artifacts_and_an_end(
    tracking_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "pretrain")
    (tmp_path / "p.png").write_bytes(b"picture")
    with tracked() as run:
        for step in (1, 2, 30):
            run.log(step, {"loss": 1 / step, "p": 6.5 + step})
        run.artifact(tmp_path / "p.png")
        run.artifact(tmp_path / "p.png", "figures")
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


@pytest.mark.parametrize(
    ("kind", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_that_ends_early_keeps_its_metrics_and_says_so(
    tracking_store: Path, kind: type[BaseException], status: str
) -> None:
    run = tracked()

    def work() -> None:
        with run:
            run.log(1, {"loss": 0.5})
            raise kind

    with pytest.raises(kind):
        work()
    assert found(run).info.status == status
    assert found(run).data.metrics == {"loss": 0.5}


def test_thousands_of_metrics_arrive_complete_and_in_order(tracking_store: Path) -> None:
    with tracked() as run:
        for step in range(1, 1301):
            run.log(step, {"loss": float(step % 7), "p": step / 8})
    client = MlflowClient(tracking_uri())
    points = sorted(client.get_metric_history(run.run_id, "loss"), key=lambda point: point.step)
    assert [point.step for point in points] == list(range(1, 1301))
    assert [point.value for point in points] == [float(step % 7) for step in range(1, 1301)]
    assert len(client.get_metric_history(run.run_id, "p")) == 1300
    assert found(run).data.metrics["p"] == 1300 / 8  # the last one stands in the table of runs


def test_more_than_a_hundred_params_arrive(tracking_store: Path) -> None:
    params = {f"section.leaf_{i}": i for i in range(230)}
    with tracked(params=params) as run:
        pass
    assert found(run).data.params == {name: str(value) for name, value in params.items()}


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


def test_a_run_is_found_by_what_it_made_and_names_its_upstream(tracking_store: Path) -> None:
    assert run_id_of("abc") == ""
    with tracked() as first:
        first.made("abc")
    assert run_id_of("abc") == first.run_id
    with tracked(stage="finetune", dataset="casia_e", upstream={"pretrain": "abc"}) as second:
        second.made("def")
    tags = found(second).data.tags
    assert tags["upstream_pretrain_digest"] == "abc"
    assert tags["upstream_pretrain_run_id"] == first.run_id
    assert found(first).data.tags["output_digest"] == "abc"
    ids = json.loads((tracking_store / "runs" / "run_ids.json").read_text(encoding="utf-8"))
    assert ids == {"abc": first.run_id, "def": second.run_id}


def test_an_upstream_unknown_here_is_named_by_its_digest_alone(tracking_store: Path) -> None:
    with tracked(upstream={"pretrain": "from a colleague"}) as run:
        pass
    tags = found(run).data.tags
    assert tags["upstream_pretrain_digest"] == "from a colleague"
    assert "upstream_pretrain_run_id" not in tags


def test_changed_files_are_counted(tracking_store: Path) -> None:
    (tracking_store / ".gitignore").write_text("*\n!new-*\n", encoding="utf-8")
    (tracking_store / "new-1").touch()
    (tracking_store / "new-2").touch()
    with tracked() as run:
        pass
    assert found(run).data.tags["git_changed_files"] == "2"


def unreachable(tmp_path: Path) -> str:
    return "http://user:hunter2@127.0.0.1:9"


def garbage(tmp_path: Path) -> str:
    (tmp_path / "garbage.db").write_bytes(b"no database" * 400)
    return f"sqlite:///{tmp_path / 'garbage.db'}"


def unknown_scheme(tmp_path: Path) -> str:
    return "htp://user:hunter2@tracking"


@pytest.mark.parametrize("store", [unreachable, garbage, unknown_scheme])
def test_a_store_that_does_not_answer_stops_nothing_and_is_said_once(
    store: Callable[[Path], str],
    tracking_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "file").touch()
    with tracked() as run:
        run.log(1, {"loss": 0.5})
        run.flush()
        run.artifact(tmp_path / "file")
        run.made("abc")
    assert run.run_id == ""
    assert run_id_of("abc") == ""
    warnings = capfd.readouterr().err
    assert warnings.count("warning: the MLflow store") == 1
    assert "hunter2" not in warnings


def test_a_store_that_comes_back_gets_every_metric(
    tracking_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database, aside = tracking_store / "mlflow.db", tracking_store / "aside"
    with tracked() as run:
        run.log(1, {"loss": 0.5})
        database.rename(aside)
        database.mkdir()
        _close(run)
        run.flush()
        run.log(2, {"loss": 0.25})
        run.flush()
        database.rmdir()
        aside.rename(database)
        _close(run)
        run.log(3, {"loss": 0.125})
    assert capsys.readouterr().err.count("warning: the MLflow store") == 1
    points = MlflowClient(tracking_uri()).get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert found(run).info.status == "FINISHED"


def _close(run: TrackedRun) -> None:
    """A database file that is open already would still answer after it is moved away."""
    run._client._tracking_client.store.engine.dispose()


def test_long_error_texts_are_cut_after_credentials_are_gone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise OSError("x" * 280 + " http://user:hunter2-hunter2-hunter2@host/api")

    tracked()._attempt(fail)
    error = capsys.readouterr().err
    assert "warning: the MLflow store" in error
    assert "hunter2" not in error


def test_faults_of_the_program_are_not_taken_for_the_stores() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tracked()._attempt(fail)


def test_the_address_is_the_environments_or_the_projects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri() == "http://tracking:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri() == f"sqlite:///{tracking.ROOT / 'mlflow.db'}"
    assert Path(tracking_uri().removeprefix("sqlite:///")).is_absolute()


def test_no_git_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "ROOT", tmp_path / "absent")
    assert git("rev-parse", "HEAD") == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git("rev-parse", "HEAD") == ""


def test_a_store_that_is_down_at_the_start_gets_the_run_later(
    tracking_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answering = tracking_uri()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", unreachable(tmp_path))
    with tracked() as run:
        assert run.run_id == ""
        run.log(1, {"loss": 0.5})
        monkeypatch.setenv("MLFLOW_TRACKING_URI", answering)
        run.log(2, {"loss": 0.25})
    assert capsys.readouterr().err.count("warning: the MLflow store") == 1
    points = MlflowClient(answering).get_metric_history(run.run_id, "loss")
    assert [point.step for point in points] == [1, 2]
    assert found(run).info.status == "FINISHED"

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from benchmarks.mlflow_servers import Late, Server
from pipeline import mlflow_store, registry, sync_runs, tracking
from pipeline.errors import PipelineError, Stopped
from pipeline.files import sha256
from pipeline.mlflow_store import run_id_of, tracking_uri
from pipeline.run_record import open_record
from pipeline.tracking import TrackedRun, git
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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders ask the store every few milliseconds, whether it answers or not."""
    monkeypatch.setattr(tracking, "FIRST_AFTER_S", 0.02)
    monkeypatch.setattr(tracking, "FLUSH_EVERY_S", 0.02)
    monkeypatch.setattr(tracking, "LONGEST_PAUSE_S", 0.1)


def test_mlflow_is_left_alone_at_first_until_something_is_to_be_sent(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def errors() -> tuple[type[Exception], ...]:  # the first thing that imports MLflow
        asked.set()
        return mlflow_store.store_errors()

    monkeypatch.setattr(tracking, "store_errors", errors)
    monkeypatch.setattr(tracking, "FIRST_AFTER_S", 600.0)
    with tracked() as run:
        run.log(1, {"loss": 0.5})
        assert not asked.wait(1)
        run.keep()
        assert asked.wait(60)
    assert found(run).info.status == "FINISHED"


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
    impatient: None,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(tmp_path))
    (tmp_path / "file").touch()
    with tracked() as run:
        run.log(1, {"loss": 0.5})
        run.keep()
        run.artifact(tmp_path / "file")
        run.made("abc")
        eventually(lambda: not run._sender._answers)
    assert run.run_id == ""
    assert run_id_of("abc") == ""
    output = capfd.readouterr()
    assert output.err.count("warning: the MLflow store") == 1
    (folder,) = mlflow_store.record_folders()
    assert f"1 metrics and the rest wait in {folder}; make sync-runs sends them" in output.err
    assert "hunter2" not in output.err + output.out
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"hunter2" not in kept


def test_no_git_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_store, "CODE", tmp_path / "absent")
    assert git("rev-parse", "HEAD") == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git("rev-parse", "HEAD") == ""


# a run that goes on


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
        patch.setenv("MLFLOW_TRACKING_URI", unreachable(folder))
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


# servers that die, servers that are slow, stages that are killed


@pytest.fixture(scope="module")
def server(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(migrated_database.read_bytes())
    started = Server(folder)
    started.start()
    yield started
    started.kill()


@pytest.fixture
def served(server: Server, tracking_store: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, as this test's store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return server


@pytest.mark.usefixtures("impatient")
def test_a_server_killed_in_the_middle_gets_everything_once_and_in_order(
    served: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "summary.csv").write_text("rank,1\n", encoding="utf-8")
    with tracked() as run:
        for step in range(1, 2001):
            run.log(step, {"loss": step / 8, "p": 6.5})
            if step % 10 == 0:
                run.keep()
            if step == 300:
                eventually(lambda: run._record.sent.metrics > 0)
                served.kill()  # most likely while it takes a batch
            if step == 1500:
                run.artifact(tmp_path / "tables")
                eventually(lambda: not run._sender._answers)
                assert run._record.count_unsent() > 0
        served.start()
    assert found(run).info.status == "FINISHED"
    assert history(run.run_id) == [(step, step / 8) for step in range(1, 2001)]
    assert history(run.run_id, "p") == [(step, 6.5) for step in range(1, 2001)]
    (artifact,) = MlflowClient(tracking_uri()).list_artifacts(run.run_id, "tables")
    assert artifact.path == "tables/summary.csv"
    output = capfd.readouterr()
    assert output.err.count("warning: the MLflow store") == 1
    assert output.err.count("the MLflow store answers again") == 1
    assert output.out == "", "MLflow prints the server's address, which may hold a password"
    assert mlflow_store.record_folders() == []


def test_a_model_waits_for_a_server_that_is_away(
    served: Server, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LAST_TRY_S", 0.1)
    monkeypatch.setattr(tracking, "LAST_WAIT_S", 0.1)
    served.kill()
    with tracked() as run:
        run.log(1, {"loss": 0.5})
        run.model(checkpoint)
    eventually(lambda: not run._sender._thread.is_alive())  # it lets go of the record
    (folder,) = mlflow_store.record_folders()
    assert (folder / "model" / "MLmodel").exists()
    served.start()
    sync_runs.main()
    assert mlflow_store.record_folders() == []
    client = MlflowClient(tracking_uri())
    version = client.get_model_version_by_alias("gaitgl", "pretrained")
    assert version.tags["checkpoint"] == sha256(checkpoint)
    assert client.get_run(version.run_id).info.status == "FINISHED"


def test_a_store_that_takes_no_models_has_the_run_all_the_same(
    tracking_store: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("you may not register models")

    monkeypatch.setattr(registry, "send_model", refuse)
    with tracked() as run:
        run.log(1, {"loss": 0.5})
        run.model(checkpoint)
    assert found(run).info.status == "FINISHED"
    assert history(run.run_id) == [(1, 0.5)]
    told = capsys.readouterr().err
    assert "you may not register models" in told
    assert "make sync-runs sends them" in told
    (folder,) = mlflow_store.record_folders()
    assert (folder / "model" / "MLmodel").exists()


def test_a_slow_server_does_not_slow_the_work(
    served: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered: list[bytes] = []
    handler = type("Proxy", (Late,), {"behind": served.uri, "answered": answered})
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{proxy.server_port}")
    with tracked(experiment="slow") as run:
        for step in range(1, 201):
            run.log(step, {"loss": step / 8})
            run.keep()
        run.tag("a", "b")
        run.made("abc")
        assert not any(b'"metrics"' in body for body in answered)
    proxy.shutdown()
    proxy.server_close()
    assert any(b'"metrics"' in body for body in answered)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.uri)
    assert found(run).info.status == "FINISHED"
    assert history(run.run_id) == [(step, step / 8) for step in range(1, 201)]
    assert run_id_of("abc") == run.run_id


def test_a_store_that_never_answers_does_not_keep_the_process(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "LAST_WAIT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with tracked() as run:
            run.log(1, {"loss": 0.5})
            caller, _ = silent.accept()
        assert run._sender._thread.is_alive()
        assert run._sender._thread.daemon
        assert "1 metrics and the rest wait in" in capsys.readouterr().err
        with pytest.raises(PipelineError):  # as long as the thread may write there
            open_record(run._record.folder)
        caller.close()
    run._sender._thread.join()


def test_a_run_deleted_by_its_user_stops_nothing(
    tracking_store: Path, capsys: pytest.CaptureFixture[str], impatient: None
) -> None:
    with tracked() as run:
        eventually(lambda: run._record.delivered())
        MlflowClient(tracking_uri()).delete_run(run.run_id)
        run.log(1, {"loss": 0.5})
        run.keep()
        eventually(lambda: not run._sender._answers)
    error = capsys.readouterr().err
    assert "must be in the 'active' state" in error
    assert "make sync-runs" in error
    record = opened(run._record.folder)
    with pytest.raises(MlflowException) as raised:
        mlflow_store.deliver(record, mlflow_store.open_store(tracking_uri()))
    assert mlflow_store.refused(raised.value)


CHILD = """
import sys
import time
from pathlib import Path
from benchmarks.mlflow_servers import Late, Server
from pipeline import mlflow_store, registry, sync_runs, tracking
mlflow_store.RUN_IDS = Path(sys.argv[1], "runs", "run_ids.json")
mlflow_store.ROOT = mlflow_store.CODE = Path(sys.argv[1])
tracking.FIRST_AFTER_S = tracking.FLUSH_EVERY_S = 0.01
first, last = int(sys.argv[2]), int(sys.argv[3])
folder = mlflow_store.RUN_IDS.parent / "pretrain-f00d" / "record"
with tracking.TrackedRun("pretrain", "oumvlp", "walks", {"seed": 0}, {}, folder=folder) as run:
    step = first
    while step != last:
        run.log(step, {"loss": step / 8, "p": 6.5})
        if step % 3 == 0:
            run.keep()
        step += 1
        time.sleep(0.001)
"""


def test_a_stage_killed_again_and_again_stays_one_run(tracking_store: Path) -> None:
    folder = tracking_store / "runs" / "pretrain-f00d" / "record"

    def start(first: int, last: int) -> subprocess.Popen[bytes]:
        arguments = [str(tracking_store), str(first), str(last)]
        return subprocess.Popen([sys.executable, "-c", CHILD, *arguments], cwd=PROJECT)

    def sent() -> int:
        path = folder / "sent.json"
        return json.loads(path.read_text())["metrics"] if path.exists() else 0  # type: ignore[no-any-return]

    resume_at = 1
    for _ in range(3):
        before = sent()
        child = start(resume_at, -1)
        eventually(lambda before=before: sent() > before)  # type: ignore[misc]
        child.kill()
        child.wait()
        record = opened(folder)
        last = record._last_steps["loss"]
        record.release()
        resume_at = max(1, last - 40)  # its last checkpoint
    assert the_run().info.status == "RUNNING"
    child = start(resume_at, last + 100)
    assert child.wait() == 0
    assert the_run().info.status == "FINISHED"
    run_id = the_run().info.run_id
    assert history(run_id) == [(step, step / 8) for step in range(1, last + 100)]
    assert history(run_id, "p") == [(step, 6.5) for step in range(1, last + 100)]
    assert not folder.parent.exists()

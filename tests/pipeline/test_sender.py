import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from benchmarks.mlflow_servers import Late, Server
from pipeline import mlflow_store, registry, sender, sync_runs
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.mlflow_store import run_id_of, tracking_uri
from pipeline.run_record import open_record
from tests.tracked_runs import (
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
    monkeypatch.setattr(sender, "FIRST_AFTER_S", 0.02)
    monkeypatch.setattr(sender, "FLUSH_EVERY_S", 0.02)
    monkeypatch.setattr(sender, "LONGEST_PAUSE_S", 0.1)


def test_mlflow_is_left_alone_at_first_until_something_is_to_be_sent(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def errors() -> tuple[type[Exception], ...]:  # the first thing that imports MLflow
        asked.set()
        return mlflow_store.store_errors()

    monkeypatch.setattr(sender, "store_errors", errors)
    monkeypatch.setattr(sender, "FIRST_AFTER_S", 600.0)
    with tracked() as run:
        run.log(1, {"loss": 0.5})
        assert not asked.wait(1)
        run.keep()
        assert asked.wait(60)
    assert found(run).info.status == "FINISHED"


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
    assert output.err.count("warning: work goes on without MLflow") == 1
    (folder,) = mlflow_store.record_folders()
    assert f"1 metrics and the rest wait in {folder}; make sync-runs sends them" in output.err
    assert "hunter2" not in output.err + output.out
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"hunter2" not in kept


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
    assert output.err.count("warning: work goes on without MLflow") == 1
    assert output.err.count("the MLflow store answers again") == 1
    assert output.out == "", "MLflow prints the server's address, which may hold a password"
    assert mlflow_store.record_folders() == []


def test_a_model_waits_for_a_server_that_is_away(
    served: Server, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "LAST_TRY_S", 0.1)
    monkeypatch.setattr(sender, "LAST_WAIT_S", 0.1)
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
    monkeypatch.setattr(sender, "LAST_WAIT_S", 0.1)
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
from pipeline import mlflow_store, registry, sender, sync_runs, tracking
mlflow_store.RUN_IDS = Path(sys.argv[1], "runs", "run_ids.json")
mlflow_store.ROOT = mlflow_store.CODE = Path(sys.argv[1])
sender.FIRST_AFTER_S = sender.FLUSH_EVERY_S = 0.01
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

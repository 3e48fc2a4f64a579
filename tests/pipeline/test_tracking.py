import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline import tracking
from pipeline.errors import PipelineError, Stopped
from pipeline.run_record import Record, open_record
from pipeline.tracking import TrackedRun, find_runs, git, reason, run_id_of, tracking_uri

PROJECT = Path(__file__).parents[2]
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


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Senders ask the store every few milliseconds, whether it answers or not."""
    monkeypatch.setattr(tracking, "FLUSH_EVERY_S", 0.02)
    monkeypatch.setattr(tracking, "LONGEST_PAUSE_S", 0.1)


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
    (folder,) = tracking.record_folders()
    assert f"1 metrics and the rest wait in {folder}; make sync-runs sends them" in output.err
    assert "hunter2" not in output.err + output.out
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"hunter2" not in kept


def test_long_error_texts_are_cut_after_credentials_are_gone() -> None:
    text = reason(OSError("x" * 280 + " http://user:hunter2-hunter2-hunter2@host/api/of/mlflow"))
    assert len(text) == 300
    assert "hunter2" not in text
    assert reason(OSError("http://user:hunter@2@host/a\n b")) == "http://host/a b"


def test_faults_of_the_program_are_not_taken_for_the_stores(tracking_store: Path) -> None:
    with pytest.raises(AttributeError) as raised:
        tracking.deliver(None, tracking.open_store(tracking_uri()))  # type: ignore[arg-type]
    assert not isinstance(raised.value, tracking.store_errors())


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
    (aside,) = tracking.record_folders()
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
    assert tracking.record_folders() == []


def test_two_processes_cannot_have_one_record(tracking_store: Path) -> None:
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


# answers that were lost


def delivered_once(folder: Path) -> Record:
    """A record of 1500 points, ended and delivered."""
    with suppress(ZeroDivisionError), tracked(folder=folder) as run:
        for step in range(1, 1501):
            run.log(step, {"loss": math.nan if step == 7 else step / 8})
        run.log(1500, {"up": math.inf, "down": -math.inf})
        run.made("abc")
        raise ZeroDivisionError
    record = opened(folder)
    assert record.delivered()
    return record


@pytest.mark.parametrize("lines_back", [None, 10, 1200])
def test_calls_whose_answers_were_lost_are_made_again_without_harm(
    lines_back: int | None, tracking_store: Path
) -> None:
    folder = tracking_store / "runs" / "x" / "record"
    record = delivered_once(folder)
    before = the_run()
    if lines_back is None:
        (folder / "sent.json").unlink()
    else:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        record.acknowledge(
            run_id="", params=0, metrics=sum(map(len, lines[:-lines_back])), tags={}, end=None
        )
    record.release()
    record = opened(folder)
    assert not record.delivered()
    tracking.deliver(record, tracking.open_store(tracking_uri()))
    assert record.delivered()
    after = the_run()
    assert after.info.run_id == before.info.run_id
    assert after.info.end_time == before.info.end_time
    assert after.data.tags == before.data.tags
    points = history(after.info.run_id)
    assert [step for step, _ in points] == list(range(1, 1501))
    assert [step for step, value in points if math.isnan(value)] == [7]
    assert len(history(after.info.run_id, "up")) == len(history(after.info.run_id, "down")) == 1


def test_a_run_whose_end_may_have_arrived_is_running_again(tracking_store: Path) -> None:
    folder = tracking_store / "runs" / "x" / "record"
    record = delivered_once(folder)
    record.acknowledge(end=None)  # the store was asked and its answer lost
    record.reopen()
    record.release()
    with tracked(folder=folder):
        eventually(lambda: the_run().info.status == "RUNNING")
    assert the_run().info.status == "FINISHED"


# servers that die, servers that are slow, stages that are killed


class Server:
    """A real ``mlflow server`` that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command],
                cwd=self._folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        eventually(self._healthy)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                return True
        except OSError:
            return False


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
    assert tracking.record_folders() == []


class Late(BaseHTTPRequestHandler):
    """Passes requests on to the server ``behind`` and answers a second late.

    ``answered`` holds the body of each request that was answered.
    """

    behind: str
    answered: list[bytes]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = urllib.request.Request(
            self.behind + self.path, body or None, dict(self.headers), method=self.command
        )
        try:
            with urllib.request.urlopen(request) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        time.sleep(1)
        self.answered.append(body)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, *arguments: object) -> None:
        """Keep still."""


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
        tracking.deliver(record, tracking.open_store(tracking_uri()))
    assert tracking.refused(raised.value)


CHILD = """
import sys
import time
from pathlib import Path
from pipeline import tracking
tracking.RUN_IDS = Path(sys.argv[1], "runs", "run_ids.json")
tracking.ROOT = Path(sys.argv[1])
tracking.FLUSH_EVERY_S = 0.01
first, last = int(sys.argv[2]), int(sys.argv[3])
folder = tracking.RUN_IDS.parent / "pretrain-f00d" / "record"
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


def test_runs_are_found_by_a_condition_the_latest_first(tracking_store: Path) -> None:
    client = MlflowClient(tracking_uri())
    for number, name in enumerate(("a", "b")):
        experiment = client.create_experiment(name)
        for stage in ("pretrain", "evaluate"):
            client.create_run(experiment, 1000 + number, {"stage": stage}, f"{stage}-{name}")
    found = find_runs("tags.stage = 'evaluate'")
    assert [run.info.run_name for run in found] == ["evaluate-b", "evaluate-a"]

"""Runs of tests: made, found in the store, and the servers that they are sent to."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

from pipeline.mlflow_store import tracking_uri
from pipeline.run_record import Record, open_record
from pipeline.tracking import TrackedRun

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

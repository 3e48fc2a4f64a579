"""What comes over HTTP: tests/test_serving.py."""

import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from benchmarks.mlflow_servers import free_port
from pipeline import serve
from pipeline.errors import PipelineError
from pipeline.mlflow_store import tracking_uri
from tests.child_processes import ROOT
from tests.servers import serving
from tests.tracked_runs import eventually


def test_killed_it_leaves_no_server_behind(model_folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "a walker's model"
    shutil.copytree(model_folder, model)
    port = free_port()
    command = (sys.executable, "-m", "pipeline.serve", str(model), "--port", str(port))
    # a PATH without .venv: Python was started by its full name
    where = {"url": f"http://127.0.0.1:{port}/ping", "cwd": ROOT, "log": tmp_path / "log"}
    with serving(*command, **where, PATH=os.defpath) as process:
        os.kill(process, signal.SIGKILL)
        eventually(lambda: _is_closed(port))


def _is_closed(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_that_is_taken_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("sys.argv", ["serve", "models:/gaitgl@champion", "--port", str(port)])
        with pytest.raises(PipelineError, match=f"port {port} cannot be had .*make serve PORT="):
            serve.main()


def test_what_cannot_be_served_is_told(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["serve", *arguments])
        with pytest.raises(PipelineError) as raised:
            serve.main()
        return str(raised.value)

    champion = "models:/gaitgl@champion"
    told = "no version is 'champion' yet"
    assert refused().startswith("usage: python -m pipeline.serve MODEL")
    assert told in refused(champion)
    MlflowClient(tracking_uri()).create_registered_model("gaitgl")
    assert "make promote, or make serve MODEL=models:/gaitgl@finetuned" in refused(champion)
    assert "models:/gaitgl@walker cannot be had" in refused("models:/gaitgl@walker")
    assert "nowhere cannot be had" in refused("nowhere")
    assert "not found. Which version? models:/gaitgl/2, say, or " in refused("models:/gaitgl")
    assert "Which version" not in refused("models:/gaitgl@walker")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9")
    down = refused(champion)
    assert f"{champion} cannot be had from the MLflow store" in down
    assert "hunter2" not in down

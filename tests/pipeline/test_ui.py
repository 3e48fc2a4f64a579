"""``make ui`` as its users meet it: a real server, a real browser."""

import socket
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from mlflow.tracking import MlflowClient

from pipeline.errors import PipelineError
from pipeline.mlflow_store import tracking_uri
from pipeline.settings import Settings
from pipeline.ui import SETTINGS, address, command, links, main
from tests.browser import chromium
from tests.child_processes import ROOT, environment
from tests.lab_book import PICTURES, look, user_interface


def test_the_pages_that_readme_shows(tmp_path: Path) -> None:
    with chromium() as browser, user_interface(tmp_path / "project") as (server, pages):
        port = urlsplit(server).port
        connections = psutil.net_connections("inet")
        listening = [c.laddr.ip for c in connections if c.laddr and c.laddr.port == port]
        assert set(listening) == {"127.0.0.1"}
        elsewhere = look(browser, server, pages, tmp_path)
    assert elsewhere == []
    for picture in PICTURES:
        assert (ROOT / "docs" / "images" / picture).exists()
        header = (tmp_path / picture).read_bytes()[:24]
        assert struct.unpack(">II", header[16:]) == (1480, 700)


def test_columns_are_of_settings_that_exist() -> None:
    assert set(SETTINGS) <= set(Settings.load(ROOT / "params.yaml").flat())


def test_the_ui_is_reached_from_this_machine_alone_unless_told_otherwise() -> None:
    by_default = " ".join(command("5000", []))
    assert by_default.startswith(sys.executable)  # no mlflow on PATH is needed
    assert by_default.count("--host") == by_default.count("--host 127.0.0.1 --port 5000") == 1
    told = " ".join(command("5000", ["--host", "0.0.0.0"]))
    assert told.index("--host 0.0.0.0") > told.index("--host 127.0.0.1")  # the last one counts


def test_links_show_no_password() -> None:
    server = address("https://user:hunter2@host:5000/mlflow/", "1")
    assert server == "https://host:5000/mlflow"
    assert all(
        link.startswith("https://host:5000/mlflow/#/") for link in links(server, "7").values()
    )
    assert address("postgresql://user:hunter2@host/db", "1234") == "http://127.0.0.1:1234"


def ui(store: str, *arguments: str) -> str:
    """What it says when it cannot go on."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.ui", *arguments],
        cwd=ROOT,
        env=environment(MLFLOW_TRACKING_URI=store),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


def test_before_the_first_run_there_is_nothing_to_see(migrated_database: Path) -> None:
    said = ui(f"sqlite:///{migrated_database}", "5000")
    assert said == "\nerror: experiment gaitgl has no runs yet: `make repro` makes some\n"


def test_runs_of_another_experiment_are_told(tracking_store: Path) -> None:
    client = MlflowClient(tracking_uri())
    client.create_experiment("somebody else's")
    client.create_run(client.create_experiment("gaits of old"), tags={"stage": "evaluate"})
    said = ui(tracking_uri(), "5000")
    assert "runtime.experiment is gaitgl, which has no runs yet" in said
    assert "others have: gaits of old. Set it to that, or `make repro`" in said


def test_a_server_that_is_down_is_an_error() -> None:
    said = ui("http://user:hunter2@127.0.0.1:9", "5000")
    assert said.startswith("\nerror: the MLflow store (MLFLOW_TRACKING_URI) does not answer: ")
    assert "hunter2" not in said


def test_a_server_that_lets_nobody_in_refuses() -> None:
    class Closed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = b'{"error_code": "PERMISSION_DENIED", "message": "not you"}'
            self.send_response(403)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Closed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = ui(f"http://127.0.0.1:{server.server_port}", "5000")
        server.shutdown()
    assert said.partition("\nerror: ")[2].startswith(
        "the MLflow store (MLFLOW_TRACKING_URI) does not let this user in: "
    ), said


def test_an_experiment_that_was_deleted_can_be_restored(tracking_store: Path) -> None:
    client = MlflowClient(tracking_uri())
    number = client.create_experiment("gaitgl")
    client.delete_experiment(number)
    said = ui(tracking_uri(), "5000")
    assert said.startswith("\nerror: experiment gaitgl was deleted: ")
    assert f"`mlflow experiments restore -x {number}`" in said


@pytest.mark.parametrize("arguments", [[], ["http"]])
def test_without_a_port_its_usage_is_shown(arguments: list[str], migrated_database: Path) -> None:
    said = ui(f"sqlite:///{migrated_database}", *arguments)
    assert said.startswith("\nerror: usage: python -m pipeline.ui PORT")
    assert said.endswith(f"got {arguments[0] if arguments else 'nothing'}\n")


@pytest.mark.parametrize("taken", [True, False])
def test_a_port_that_cannot_be_had_is_told_before_any_link(
    tracking_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    taken: bool,
) -> None:
    MlflowClient(tracking_uri()).create_experiment("gaitgl")
    monkeypatch.chdir(ROOT)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1] if taken else 99_999
        monkeypatch.setattr(sys, "argv", ["ui", str(port)])
        with pytest.raises(PipelineError, match=f"port {port} cannot be had .*PORT=5001"):
            main()
    assert "http" not in capsys.readouterr().out

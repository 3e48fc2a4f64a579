"""Servers of MLflow for measurements and tests: a real one, and one in front of it that is slow."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

START_S = 120.0


class Server:
    """A real ``mlflow server`` on a free port, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
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
        _wait_for(f"{self.uri}/health")

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


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


@contextmanager
def late_server(behind: str) -> Iterator[str]:
    """The address of a ``Late`` in a process of its own."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve_late, args=(port, behind), daemon=True
    )
    process.start()
    try:
        _wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


def _serve_late(port: int, behind: str) -> None:
    handler = type("Proxy", (Late,), {"behind": behind, "answered": []})
    ThreadingHTTPServer(("127.0.0.1", port), handler).serve_forever()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_for(address: str) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(address, timeout=3):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)

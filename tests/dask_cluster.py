"""A real Dask cluster for tests: scheduler and workers are processes on loopback."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.child_processes import ROOT, environment

DEADLINE_S = 60.0


@dataclass(frozen=True)
class Cluster:
    address: str
    scheduler: "subprocess.Popen[bytes]"
    workers: "list[subprocess.Popen[bytes]]"


@contextmanager
def cluster(workers: int, cwd: Path = ROOT) -> Iterator[Cluster]:
    """Workers of one thread; nobody starts them again once they are killed."""
    with ExitStack() as stack:

        def start(*arguments: str) -> "subprocess.Popen[bytes]":
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments, "--no-dashboard"],
                cwd=cwd,
                env=environment(PYTHONPATH=""),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        address = f"tcp://127.0.0.1:{port}"
        scheduler = start("scheduler", "--host", "127.0.0.1", "--port", str(port))
        deadline = time.monotonic() + DEADLINE_S
        while not _answers(port):
            assert scheduler.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        on_loopback = ("--host", "127.0.0.1", "--nthreads", "1", "--no-nanny")
        yield Cluster(
            address, scheduler, [start("worker", address, *on_loopback) for _ in range(workers)]
        )


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False

"""Servers for tests to talk to: real ones, on free ports of this machine alone."""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.child_processes import environment

DEADLINE_S = 300


@contextmanager
def serving(*command: str, url: str, cwd: Path, log: Path, **changes: str) -> Iterator[int]:
    """Run a server until the end of the block; the block begins when ``url`` answers.

    It gets the number of the process. ``changes`` are of the environment. All of the server's
    processes end as by Ctrl-C in a terminal.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(**changes),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_for(url, process, log)
        yield process.pid
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer:\n{log.read_text(errors='replace')[-3000:]}")

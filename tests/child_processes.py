"""Processes for tests to talk to, to signal and to kill; each ends itself by SIGALRM at last."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

STARTER = "import signal, subprocess, sys; signal.alarm(60); subprocess.run(sys.argv[1:])"
"""Waits for what it starts, as DVC does; what it starts has its standard input and output."""

_OURS = ("DVC", "MLFLOW", "TORCHELASTIC", "PET_", "MAKE", "MFLAGS", "ARGS", "PORT")


def python(script: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", script, *arguments)


def environment(**changes: str) -> dict[str, str]:
    """That of the tests, without what make, DVC or torchrun would have set."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changes}


class Child:
    """A process that prints its number, and then answers each line with a line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process, self.input, self._output = process, process.stdin, process.stdout
        self.pid = int(self.answer())
        """Of the one that answers, which the process started first may have started."""

    def answer(self) -> str:
        return self._output.readline().rstrip()

    def ask(self, line: str) -> str:
        self.input.write(f"{line}\n")
        return self.answer()

    def kill(self) -> None:
        """Kill the process started first, and return once it is gone."""
        self.process.kill()
        self.process.wait()


@contextmanager
def child(*command: str, cwd: Path = ROOT, **changes: str) -> Iterator[Child]:
    """Start a command; at the end of the block its standard input ends, and it is killed."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment(**changes),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=1,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield Child(process)
        finally:
            process.kill()

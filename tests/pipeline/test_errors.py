import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pipeline.errors import PipelineError, Stopped, listing, run_stage
from tests.child_processes import STARTER, child, python


def test_a_pipeline_error_is_text_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        print("so far")
        raise PipelineError("data.oumvlp.root = x: missing")

    with pytest.raises(SystemExit) as raised:
        run_stage(main)
    assert raised.value.code == 1
    output = capsys.readouterr()
    assert output.out == "so far\n"
    assert output.err == "\nerror: data.oumvlp.root = x: missing\n"


def test_an_interrupt_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as raised:
        run_stage(main)
    assert raised.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_stopped_work_says_so_and_keeps_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise Stopped("SIGTERM at step 40; start again to go on from there", 143)

    with pytest.raises(SystemExit) as raised:
        run_stage(main)
    assert raised.value.code == 143
    error = capsys.readouterr().err
    assert error == "\nstopped: SIGTERM at step 40; start again to go on from there\n"


STAGE = """
import os, signal
signal.alarm(60)
from pipeline.errors import run_stage

def main():
    print(os.getpid(), flush=True)
    input()
    print("at work", flush=True)
    signal.pause()

run_stage(main)
"""


def test_a_stage_ends_with_the_dvc_that_started_it() -> None:
    with child(*python(STARTER, *python(STAGE)), DVC_STAGE="ingest") as stage:
        assert stage.ask("begin") == "at work"
        stage.kill()
        assert stage.answer() == ""  # the end of its output, a minute before the alarm


def test_faults_of_the_program_keep_their_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_stage(main)


def test_long_lists_are_cut_and_counted() -> None:
    assert listing(["a", "b"]) == "  a\n  b"
    lines = listing([str(i) for i in range(25)], limit=20).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "  ... and 5 more"
    assert len(listing([str(i) for i in range(20)], limit=20).splitlines()) == 20


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "closed to this user"),
    ],
)
def test_what_a_disk_refuses_is_told_with_the_file(
    number: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise OSError(number, os.strerror(number), "data/x")

    with pytest.raises(SystemExit) as raised:
        run_stage(main)
    assert raised.value.code == 1
    error = capsys.readouterr().err
    assert told in error
    assert "'data/x'" in error


def test_a_disk_that_fills_while_a_folder_is_copied_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        why = f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"
        raise shutil.Error([("gaitgl/model.py", "runs/model.py", why)] * 9)

    with pytest.raises(SystemExit):
        run_stage(main)
    error = capsys.readouterr().err
    assert "the disk is full" in error
    assert error.count("runs/model.py") == 1


def test_memory_that_is_lacking_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        run_stage(lambda: print(np.empty(2**58)))
    assert raised.value.code == 1
    assert "no memory is left in <lambda>: Unable to allocate" in capsys.readouterr().err


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize(
    ("closing", "status"), [("2>&-", 0), ("| head -n 1", 1), ("| true", 1), ("| cat", 0)]
)
def test_streams_that_are_closed_are_no_trouble(closing: str, status: int, buffered: str) -> None:
    code = """
import sys
from pipeline.errors import run_stage

def main():
    sys.stderr.write("at work\\n")
    print("line\\n" * 100_000)

run_stage(main)
"""
    done = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {closing}; exit ${{PIPESTATUS[0]}}', sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONUNBUFFERED": buffered},
    )
    assert done.returncode == status
    assert done.stderr in ("", "at work\n")


def test_a_pipe_that_breaks_elsewhere_keeps_its_traceback() -> None:
    code = """
import os
from pipeline.errors import run_stage

def main():
    reading, writing = os.pipe()
    os.close(reading)
    os.write(writing, b"x")

run_stage(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "BrokenPipeError" in done.stderr

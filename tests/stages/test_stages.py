"""What all stages have in common."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.child_processes import environment

INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


def test_an_interrupt_during_the_imports_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(INTERRUPTED)  # what pretrain imports first
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "stages.pretrain"],
        cwd=root,
        env=environment(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # as it is elsewhere

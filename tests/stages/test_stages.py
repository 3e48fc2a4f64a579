"""What all stages have in common."""

import subprocess
import sys
from pathlib import Path

from pipeline.mlflow_store import tracking_uri
from tests.child_processes import environment, python
from tests.tracked_runs import the_run

WORKING = """
import signal, sys
sys.argv[0] = "-m"
import stages  # as `python -m stages.x` does
from pathlib import Path
from pipeline import mlflow_store
from pipeline.errors import run_stage
from tests.tracked_runs import tracked

mlflow_store.ROOT = mlflow_store.CODE = Path(sys.argv[1])
mlflow_store.RUN_IDS = Path(sys.argv[1], "runs", "run_ids.json")

def main():
    with tracked():
        signal.raise_signal(signal.SIGINT)

run_stage(main)
"""

INTERRUPTED = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


def test_an_interrupt_of_the_work_leaves_a_run_that_was_killed(tracking_store: Path) -> None:
    done = subprocess.run(
        python(WORKING, str(tracking_store)),
        env=environment(MLFLOW_TRACKING_URI=tracking_uri()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert the_run().info.status == "KILLED"


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

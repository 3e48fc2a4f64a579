"""From the start of ``python -m stages.pretrain`` to its first optimizer step.

python -m benchmarks start [--quick]

In a copy of the project's code with params.yaml as it is, but a state on disk after every step:
when the state of step 1 is there (polled every 5 ms), the step was done, so writing it counts, too.
Silhouettes are drawn, not rendered: as many subjects as a batch has, 8 sequences each. MLflow's
database is there already, and one untimed start makes Python's caches, as the stages before
pretrain do in a ``make repro``.
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml

from benchmarks.silhouettes import write_drawn
from benchmarks.timing import Row, number

ROOT = Path(__file__).resolve().parent.parent
NEW_DATABASE = (
    "from mlflow.tracking import MlflowClient; "
    "MlflowClient('sqlite:///mlflow.db').search_experiments()"
)
DEADLINE_S = 300.0
STATE = "runs/pretrain-*/step-000000001.safetensors"


def rows(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_project(folder)
        started_s(folder)
        each_s = [started_s(folder) for _ in range(1 if quick else 3)]
    return [
        Row(
            "start of pretrain to its first step, demo settings",
            "s",
            None,
            statistics.median(each_s),
            None,
            "≤ 5 s",
            f"{number(min(each_s))} to {number(max(each_s))} s in {len(each_s)} runs",
            "until the state of step 1 is on the disk",
        )
    ]


def started_s(project: Path) -> float:
    """Seconds until the first step of a training that starts anew; it is killed then."""
    shutil.rmtree(project / "runs", ignore_errors=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "DVC"))}
    log = project / "log.txt"
    with log.open("wb") as output:
        started_at = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.pretrain"],
            cwd=project,
            env=clean,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the whole group can be killed
        )
        try:
            while not any(project.glob(STATE)):
                ended = process.poll() is not None
                if ended or time.perf_counter() - started_at > DEADLINE_S:
                    raise RuntimeError(f"no first step:\n{log.read_text(errors='replace')}")
                time.sleep(0.005)
            return time.perf_counter() - started_at
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _make_project(folder: Path) -> None:
    for package in ("gaitgl", "pipeline", "stages"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "dvc.yaml", folder)
    settings = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    settings["runtime"]["checkpoint_every"] = 1
    (folder / "params.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)  # not an outer repository
    subprocess.run(
        [sys.executable, "-c", NEW_DATABASE], cwd=folder, check=True, capture_output=True
    )
    subjects = settings["pretrain"]["subjects_per_batch"]
    subjects += settings["pretrain"]["validation_subjects"]
    random = np.random.default_rng(0)
    lengths = random.integers(18, 41, 8 * subjects)
    write_drawn(folder / "data/oumvlp/silhouettes", lengths, subjects, random)

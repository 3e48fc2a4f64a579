"""Normalizing, killed by real signals at any moment: the same bytes, and no finished shard lost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.child_processes import STARTER, environment, python

DEADLINE_S = 120.0
FRAMES = 600

# as python -m stages.normalize, with shards of 20 frames
STAGE = """
from pipeline import shard_plan
shard_plan.SHARD_FRAMES = 20
from pipeline.errors import run_stage
from stages.normalize import main
if __name__ == "__main__":
    run_stage(main)
"""

New = Callable[..., Path]


@pytest.fixture
def new(project: New, slow_release: Path) -> New:
    """``new("name", {"runtime.workers": 2})``: a folder with settings and catalogue."""

    def make(name: str, changes: dict[str, object]) -> Path:
        folder = project({"data.oumvlp.root": str(slow_release), **changes}, name)
        ingest = (sys.executable, "-m", "stages.ingest", "oumvlp")
        subprocess.run(ingest, cwd=folder, env=environment(), check=True, capture_output=True)
        return folder

    return make


@contextmanager
def started(folder: Path, *command: str, **changes: str) -> "Iterator[subprocess.Popen[bytes]]":
    """The stage, or what starts it, in a session of its own; output goes to folder/log."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command or python(STAGE, "oumvlp"),
            cwd=folder,
            env=environment(**changes),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def notes(folder: Path) -> list[Path]:
    return sorted(folder.glob("runs/normalize-oumvlp-*/shard-*.json"))


def until_shards(folder: Path, process: "subprocess.Popen[bytes]", n: int) -> None:
    """Return once ``n`` shards are finished, while the process still works."""
    deadline = time.monotonic() + DEADLINE_S
    while len(notes(folder)) < n:
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def family(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def frames_in(finished: list[Path]) -> int:
    rows = [row for note in finished for row in json.loads(note.read_text())["content"]["rows"]]
    return sum(row["n_frames"] for row in rows)


def result(folder: Path) -> dict[str, bytes]:
    store = folder / "data" / "oumvlp" / "silhouettes"
    return {path.name: path.read_bytes() for path in store.iterdir()}


def run_stage(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        python(STAGE, "oumvlp"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )


def finish(folder: Path) -> str:
    """Run the stage to its end; what it said. Nothing may be left of what it needed meanwhile."""
    done = run_stage(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    left = {path.name for path in (folder / "runs").iterdir()}
    assert left == {"normalize-oumvlp.lock", "normalize-oumvlp.json"}
    assert [p.name for p in (folder / "data" / "oumvlp").iterdir() if p.name.startswith(".")] == []
    return done.stdout


def test_kills_cost_the_shards_in_flight_and_no_byte(new: New) -> None:
    whole = new("whole", {"runtime.workers": 0})
    assert "an earlier start" not in finish(whole)
    folder = new("killed", {"runtime.workers": 2})
    there: list[Path] = []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        with started(folder) as process:
            until_shards(folder, process, len(there) + 3)
            workers = family(process)
            os.kill(process.pid, number)
            status = process.wait(DEADLINE_S)
            assert psutil.wait_procs(workers, DEADLINE_S)[1] == []
        told = (folder / "log").read_text()
        if there:
            assert f"{frames_in(there)} of {FRAMES} frames are in shards that an" in told
        if number == signal.SIGKILL:
            assert status == -number
        else:
            assert status == 128 + number
            assert f"stopped by {number.name}: finished shards are kept in runs/norm" in told
            assert "Traceback" not in told
        assert set(there) < set(notes(folder))
        there = notes(folder)
        assert not (folder / "data" / "oumvlp" / "silhouettes").exists()
    assert f"{frames_in(there)} of {FRAMES} frames are in shards" in finish(folder)
    assert result(folder) == result(whole)


def test_the_stage_ends_with_the_dvc_that_started_it(new: New) -> None:
    folder = new("left", {"runtime.workers": 2})
    command = python(STARTER, *python(STAGE, "oumvlp"))
    with started(folder, *command, DVC_STAGE="normalize@oumvlp") as process:
        until_shards(folder, process, 2)
        everyone = family(process)
        process.kill()
        assert psutil.wait_procs(everyone[1:], DEADLINE_S)[1] == []
    assert "stopped by SIGTERM: finished shards are kept" in (folder / "log").read_text()


def test_a_second_normalize_of_the_same_dataset_is_refused_under_any_settings(
    new: New, change_leaf: Callable[[Path, str, object], None]
) -> None:
    folder = new("two", {"runtime.workers": 0})
    with started(folder) as first:
        until_shards(folder, first, 1)
        change_leaf(folder / "params.yaml", "normalize.min_frames", 4)
        second = run_stage(folder)
        assert first.poll() is None
    assert second.returncode == 1
    assert f"this normalize of oumvlp runs already: process {first.pid} on " in second.stderr
    assert "Traceback" not in second.stderr
    third = finish_beside_another(folder)
    assert "other min_frames" in third
    assert "an earlier start" not in third


def finish_beside_another(folder: Path) -> str:
    """Run to the end where shards of other settings lie about, which stay."""
    (other,) = folder.glob("runs/normalize-oumvlp-*")
    done = subprocess.run(
        python(STAGE, "oumvlp"),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(folder.glob("runs/normalize-oumvlp-*")) == [other]
    assert f"left from an unfinished normalize: {other.relative_to(folder)}: " in done.stderr
    return done.stdout + done.stderr


def test_a_stage_that_stopped_for_its_refusals_keeps_its_shards(
    project: New, change_leaf: Callable[[Path, str, object], None]
) -> None:
    folder = project({"normalize.max_refused_share": 0.001})

    def run(stage: str) -> "subprocess.CompletedProcess[str]":
        command = (sys.executable, "-m", f"stages.{stage}", "casia_e")
        return subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )

    assert run("ingest").returncode == 0
    stopped = run("normalize")
    assert stopped.returncode == 1
    assert "and normalize.max_refused_share = 0.001: 0 by ingest, then 3 × too" in stopped.stderr
    assert not (folder / "data" / "casia_e" / "silhouettes").exists()
    change_leaf(folder / "params.yaml", "normalize.max_refused_share", 0.01)
    again = run("normalize")
    assert again.returncode == 0
    assert "1565 of 1565 frames are in shards that an earlier start has" in again.stdout


def test_a_cluster_makes_the_same_bytes_though_a_worker_is_killed(new: New) -> None:
    pytest.importorskip("distributed", reason="Dask is not installed: make setup")
    from tests.dask_cluster import cluster

    local = new("local", {"runtime.workers": 2})
    finish(local)
    with cluster(2) as dask:
        folder = new("spread", {"runtime.dask_scheduler": dask.address})
        with started(folder) as process:
            until_shards(folder, process, 2)
            dask.workers[0].kill()
            assert len(notes(folder)) < 20  # in the middle of an archive of ten shards
            assert process.wait(DEADLINE_S) == 0, (folder / "log").read_text()
        told = (folder / "log").read_text()
        assert f"oumvlp: normalizing: {FRAMES}/{FRAMES} frames (100 %)" in told
        assert dask.workers[1].poll() is None
    assert result(folder) == result(local)
    assert not list(folder.glob("runs/normalize-oumvlp-*"))

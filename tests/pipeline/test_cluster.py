import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import cluster
from pipeline.cluster import code_state, map_in_order
from pipeline.errors import PipelineError
from pipeline.processes import report, worker_count
from tests import dask_cluster
from tests.dask_cluster import Cluster

pytest.importorskip("distributed", reason="Dask is not installed: make setup")

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Cluster]:
    with dask_cluster.cluster(2) as started:
        yield started


def _ignore(amount: int) -> None:
    pass


def _until(path: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _count_up_to(task: int) -> int:
    for _ in range(task):
        report(2)
    return -task


def test_results_keep_the_order_of_the_tasks_and_progress_adds_up(two_workers: Cluster) -> None:
    tasks = [3, 5, 1, 0, 7, 2, 4, 6]
    amounts: list[int] = []
    results = list(map_in_order(_count_up_to, tasks, two_workers.address, amounts.append))
    assert results == [-task for task in tasks]
    assert sum(amounts) == 2 * sum(tasks)
    assert len(amounts) == len(tasks)  # as each of them ends


def test_no_task_is_no_result(two_workers: Cluster) -> None:
    assert list(map_in_order(_count_up_to, [], two_workers.address, _ignore)) == []


def _fail(task: int) -> int:
    if task == 2:
        raise PipelineError("expected this, got that.\nDo so.")
    return task


def test_a_tasks_error_reaches_the_user_with_the_host(two_workers: Cluster) -> None:
    with pytest.raises(PipelineError) as raised:
        list(map_in_order(_fail, [1, 2, 3], two_workers.address, _ignore))
    assert str(raised.value) == f"on {os.uname().nodename}: expected this, got that.\nDo so."


def test_a_fault_of_the_code_is_not_dressed_up(two_workers: Cluster) -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(_divide_by, [1, 0], two_workers.address, _ignore))
    with pytest.raises(RuntimeError, match="its own"):
        list(map_in_order(_runtime_error, [1], two_workers.address, _ignore))


def _divide_by(task: int) -> float:
    return 1 / task


def _runtime_error(task: int) -> None:
    raise RuntimeError("its own")


def _tell_and_wait(task: Path) -> int:
    """Leaves its process's number in a file, and returns it once the test lets it."""
    (task / f"pid-{os.getpid()}").touch()
    _until(task / "go")
    return os.getpid()


def _tasks_that_wait(folder: Path, n: int) -> list[Path]:
    tasks = [folder / str(number) for number in range(n)]
    for task in tasks:
        task.mkdir()
    return tasks


def test_the_task_of_a_worker_that_is_killed_runs_on_another(tmp_path: Path) -> None:
    tasks = _tasks_that_wait(tmp_path, 2)
    with dask_cluster.cluster(2) as started:
        killed: list[int] = []

        def kill_one(amount: int) -> None:  # when the second task has ended, the first runs still
            if not killed:
                victim = pid_of(tasks[0])
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
                (tasks[0] / "go").touch()

        (tasks[1] / "go").touch()
        results = list(map_in_order(_tell_and_wait, tasks, started.address, kill_one))
        (victim,) = killed
        assert len(list(tasks[0].glob("pid-*"))) == 2
        assert results[0] != victim
        assert sorted(w.poll() is None for w in started.workers) == [False, True]


def pid_of(task: Path) -> int:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := list(task.glob("pid-*"))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(found[0].name.removeprefix("pid-"))


def test_a_scheduler_that_dies_is_told(tmp_path: Path) -> None:
    tasks = _tasks_that_wait(tmp_path, 2)
    with dask_cluster.cluster(1) as started:

        def kill_scheduler(amount: int) -> None:
            started.scheduler.kill()

        (tasks[0] / "go").touch()
        with pytest.raises(PipelineError, match="the scheduler is gone"):
            list(map_in_order(_tell_and_wait, tasks, started.address, kill_scheduler))


def _report_until_stopped(task: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while task.name != "0" and time.monotonic() < deadline:
        (task / "begun").touch()
        time.sleep(0.01)
        try:
            report(1)
        finally:
            if sys.exc_info()[0]:
                (task / "stopped").touch()


def test_tasks_end_soon_after_the_stage_that_started_them(
    tmp_path: Path, two_workers: Cluster
) -> None:
    tasks = _tasks_that_wait(tmp_path, 4)
    results = map_in_order(_report_until_stopped, tasks, two_workers.address, _ignore)
    next(results)
    _until(tasks[1] / "begun")
    results.close()
    _until(tasks[1] / "stopped")
    assert not (tasks[3] / "begun").exists()


def test_a_task_that_kills_its_workers_is_told_with_what_to_change(tmp_path: Path) -> None:
    with (
        dask_cluster.cluster(5) as started,
        pytest.raises(PipelineError, match="workers died again and again at the same task"),
    ):
        list(map_in_order(_be_killed, [1], started.address, _ignore))


def _be_killed(task: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_nobody_at_the_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with pytest.raises(PipelineError) as raised:
        list(map_in_order(_count_up_to, [1], "tcp://127.0.0.1:9", _ignore))
    assert "runtime.dask_scheduler = tcp://127.0.0.1:9: no scheduler answers" in str(raised.value)


def test_a_scheduler_without_workers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 3)
    with (
        dask_cluster.cluster(0) as started,
        pytest.raises(PipelineError, match="the scheduler has no worker"),
    ):
        list(map_in_order(_count_up_to, [1], started.address, _ignore))


def test_workers_with_other_code_are_told(tmp_path: Path) -> None:
    for package in ("pipeline", "gaitgl"):
        shutil.copytree(ROOT / package, tmp_path / package)
    with (tmp_path / "pipeline" / "archives.py").open("a") as file:
        file.write("# another version\n")
    with (
        dask_cluster.cluster(1, cwd=tmp_path) as started,
        pytest.raises(PipelineError) as raised,
    ):
        list(map_in_order(worker_count, [1], started.address, _ignore))
    first, difference, advice = str(raised.value).splitlines()
    assert first == f"a worker on {os.uname().nodename} has other code or packages:"
    assert difference.startswith("  pipeline/archives.py: ")
    assert advice.endswith("start the workers anew.")


def test_a_cluster_without_the_project_is_told(tmp_path: Path) -> None:
    with (
        dask_cluster.cluster(1, cwd=tmp_path) as started,
        pytest.raises(PipelineError, match="cannot load this project's code"),
    ):
        list(map_in_order(worker_count, [1], started.address, _ignore))


def test_where_dask_is_missing_it_is_said_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(PipelineError, match="make setup installs it"):
        list(map_in_order(_count_up_to, [1], "tcp://127.0.0.1:9", _ignore))


def test_dask_is_loaded_only_where_it_is_asked_for() -> None:
    code = "import sys, stages.normalize; sys.exit('distributed' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_state_of_the_code_names_versions_and_files() -> None:
    state = code_state()
    packages = {"kornia-rs", "numpy", "opencv", "pyarrow", "zstandard"}
    assert {"Python", "Intel IPP in opencv", *packages} <= set(state)
    assert "pipeline/normalizing.py" in state
    assert "gaitgl/silhouettes.py" in state
    assert all(state.values())


def full_disk(task: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_tasks_full_disk_is_not_told_as_a_lost_scheduler() -> None:
    with pytest.raises(PipelineError, match=r"^on .*: .*No space left on device$"):
        cluster._Remote(full_disk, code_state())(0)

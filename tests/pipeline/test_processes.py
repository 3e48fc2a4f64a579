import os
import signal
import time
from collections.abc import Callable
from operator import neg
from pathlib import Path

import psutil
import pytest

from pipeline.errors import PipelineError
from pipeline.processes import map_in_order, report, reports_to, worker_count
from tests.child_processes import child, python

DEADLINE_S = 60.0

PARENT = """
import os, pathlib, signal, sys
signal.alarm(60)
from pipeline.processes import map_in_order
from tests.pipeline.test_processes import wait_forever
if __name__ == "__main__":
    print(os.getpid(), flush=True)
    folder = pathlib.Path(sys.stdin.readline().strip())
    list(map_in_order(wait_forever, [folder] * 4, 2, lambda amount: None))
"""


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_keep_the_order_of_the_tasks(workers: int) -> None:
    tasks = list(range(20))
    assert list(map_in_order(neg, tasks, workers, _ignore)) == [-task for task in tasks]


def test_no_task_is_no_result() -> None:
    assert list(map_in_order(neg, [], 4, _ignore)) == []


def test_one_task_needs_no_second_process() -> None:
    assert list(map_in_order(_process, ["only"], 4, _ignore)) == [os.getpid()]


def test_minus_one_is_as_many_as_cores() -> None:
    assert worker_count(-1) == len(os.sched_getaffinity(0)) >= 1
    assert [worker_count(n) for n in (0, 1, 7)] == [0, 1, 7]


def _process(_: str) -> int:
    return os.getpid()


def _ignore(amount: int) -> None:
    pass


def _count_up_to(task: int) -> int:
    for _ in range(task):
        report(2)
    return task


@pytest.mark.parametrize("workers", [0, 2])
def test_progress_comes_from_inside_the_tasks(workers: int) -> None:
    amounts: list[int] = []
    results = list(map_in_order(_count_up_to, [3, 5, 1], workers, amounts.append))
    assert results == [3, 5, 1]
    assert sum(amounts) == 2 * 9


def _be_killed(task: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_is_said_with_the_setting_to_change() -> None:
    with pytest.raises(PipelineError, match=r"lower runtime\.workers"):
        list(map_in_order(_be_killed, [1, 2], 2, _ignore))


def wait_forever(folder: Path) -> None:
    """Leaves its process's number, and then does not even let other threads run for long."""
    (folder / str(os.getpid())).touch()
    while True:
        sum(range(100_000))


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(
    tmp_path: Path, number: signal.Signals
) -> None:
    with child(*python(PARENT)) as parent:
        parent.input.write(f"{tmp_path}\n")
        _until(lambda: len(list(tmp_path.iterdir())) == 2)
        workers = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
        os.kill(parent.pid, number)
        assert psutil.wait_procs(workers, DEADLINE_S)[1] == []


def _fail_or_wait(task: Path) -> None:
    if task.name == "fail":
        _until(lambda: (task.parent / "waiting").exists())
        raise PipelineError("so it is")
    (task.parent / "waiting").touch()
    while True:
        time.sleep(0.01)


def test_an_error_in_one_task_does_not_wait_for_the_others(tmp_path: Path) -> None:
    tasks = [tmp_path / "fail", tmp_path / "wait"]
    with pytest.raises(PipelineError, match="so it is"):
        list(map_in_order(_fail_or_wait, tasks, 2, _ignore))


def test_reports_go_where_the_innermost_block_says() -> None:
    outer: list[int] = []
    inner: list[int] = []
    report(1)
    with reports_to(outer.append):
        report(2)
        with reports_to(inner.append):
            report(3)
        report(4)
    report(5)
    assert (outer, inner) == ([2, 4], [3])

import os
import signal
from operator import neg

import pytest

from pipeline.errors import PipelineError
from pipeline.processes import map_in_order, report, worker_count


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

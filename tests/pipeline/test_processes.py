import os
from operator import neg

import pytest

from pipeline.processes import map_in_order, worker_count


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_keep_the_order_of_the_tasks(workers: int) -> None:
    tasks = list(range(20))
    assert list(map_in_order(neg, tasks, workers)) == [-task for task in tasks]


def test_no_task_is_no_result() -> None:
    assert list(map_in_order(neg, [], 4)) == []


def test_one_task_needs_no_second_process() -> None:
    assert list(map_in_order(_process, ["only"], 4)) == [os.getpid()]


def test_minus_one_is_as_many_as_cores() -> None:
    assert worker_count(-1) == len(os.sched_getaffinity(0)) >= 1
    assert [worker_count(n) for n in (0, 1, 7)] == [0, 1, 7]


def _process(_: str) -> int:
    return os.getpid()

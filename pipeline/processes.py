"""Work spread over processes; results come back in the order of the tasks."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


def worker_count(workers: int) -> int:
    """``runtime.workers`` with -1 replaced by the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if workers < 0 else workers


def map_in_order(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Result]:
    """``map(function, tasks)`` over at most ``workers`` processes (0 or 1: in this one)."""
    workers = min(worker_count(workers), len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    # spawn: forked copies of a process with threads (OpenCV, Arrow) may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(function, tasks)

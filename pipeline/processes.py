"""Work spread over processes: results in the order of the tasks, progress from inside them."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

from pipeline.errors import PipelineError

POLL_S = 0.5

Task = TypeVar("Task")
Result = TypeVar("Result")

_advance: Callable[[int], None] | None = None


def worker_count(workers: int) -> int:
    """``runtime.workers`` with -1 replaced by the number of cores this process may use."""
    if workers >= 0:
        return workers
    if hasattr(os, "sched_getaffinity"):  # Linux: what a container or taskset leaves us
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def report(amount: int) -> None:
    """Called by a task, in whichever process it runs: ``amount`` more is done."""
    if _advance is not None:
        _advance(amount)


def map_in_order(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    advance: Callable[[int], None],
) -> Iterator[Result]:
    """``map(function, tasks)`` over at most ``workers`` processes (0 or 1: in this one).

    ``advance`` is called, in this process, with what the tasks ``report``.
    """
    global _advance
    workers = min(worker_count(workers), len(tasks))
    if workers <= 1:
        _advance = advance
        yield from map(function, tasks)
        return
    # spawn: forked copies of a process with threads (OpenCV, Arrow) may hang
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    with ProcessPoolExecutor(workers, context, _count_into, (done,)) as pool:
        seen = 0
        futures = [pool.submit(function, task) for task in tasks]
        try:
            for future in futures:
                while not _ready(future):
                    seen += _pass_on(done, seen, advance)
                yield future.result()
        except BrokenProcessPool:
            raise PipelineError(
                "a worker process was killed, most likely for want of memory; lower runtime.workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        _pass_on(done, seen, advance)


def _ready(future: Future[Result]) -> bool:
    return bool(wait([future], POLL_S).done)


def _pass_on(done: "Synchronized[int]", seen: int, advance: Callable[[int], None]) -> int:
    more = done.value - seen
    advance(more)
    return more


def _count_into(done: "Synchronized[int]") -> None:
    """Runs first in each worker."""
    global _advance

    def add(amount: int) -> None:
        with done.get_lock():
            done.value += amount

    _advance = add

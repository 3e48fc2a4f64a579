"""Work spread over processes: results in the order of the tasks, progress from inside them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import ContextVar
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

from pipeline.errors import PipelineError

POLL_S = 0.5

Task = TypeVar("Task")
Result = TypeVar("Result")

_advance: ContextVar[Callable[[int], None] | None] = ContextVar("advance", default=None)
"""Where a task's reports go; a variable of each thread, for workers of Dask may run several."""


def worker_count(workers: int) -> int:
    """``runtime.workers`` with -1 replaced by the number of cores this process may use."""
    if workers >= 0:
        return workers
    if hasattr(os, "sched_getaffinity"):  # Linux: what a container or taskset leaves us
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def report(amount: int) -> None:
    """Called by a task, in whichever process it runs: ``amount`` more is done."""
    advance = _advance.get()
    if advance is not None:
        advance(amount)


@contextmanager
def reports_to(advance: Callable[[int], None]) -> Iterator[None]:
    """For the block, what this thread ``report``s goes to ``advance``."""
    before = _advance.set(advance)
    try:
        yield
    finally:
        _advance.reset(before)


def map_in_order(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    workers: int,
    advance: Callable[[int], None],
) -> Generator[Result, None, None]:
    """``map(function, tasks)`` over at most ``workers`` processes (0 or 1: in this one).

    ``advance`` is called, in this process, with what the tasks ``report``. The workers end with
    this process however it ends, and at once where the generator is closed before its end.
    """
    workers = min(worker_count(workers), len(tasks))
    if workers <= 1:
        for task in tasks:
            with reports_to(advance):
                result = function(task)
            yield result
        return
    # spawn: forked copies of a process with threads (OpenCV, Arrow) may hang
    context = multiprocessing.get_context("spawn")
    done = context.Value("q", 0)
    # only this process holds the end that could be written to: once it is closed, or this process
    # has ended, the workers read the end of the file
    ending, held = context.Pipe(duplex=False)
    with held, ProcessPoolExecutor(workers, context, _begin_worker, (done, ending)) as pool:
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
            if not all(future.done() for future in futures):
                held.close()
            pool.shutdown(wait=True, cancel_futures=True)
            ending.close()
        _pass_on(done, seen, advance)


def _ready(future: Future[Result]) -> bool:
    return bool(wait([future], POLL_S).done)


def _pass_on(done: "Synchronized[int]", seen: int, advance: Callable[[int], None]) -> int:
    more = done.value - seen
    advance(more)
    return more


def _begin_worker(done: "Synchronized[int]", ending: Connection) -> None:
    """Runs first in each worker."""

    def add(amount: int) -> None:
        with done.get_lock():
            done.value += amount

    def end_with_parent() -> None:
        ending.poll(None)  # nothing is ever sent: this returns at the end of the file
        os._exit(1)

    _advance.set(add)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent ends us
    threading.Thread(target=end_with_parent, name="ends with its parent", daemon=True).start()

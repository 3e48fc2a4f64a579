"""Work spread over the machines of a Dask cluster, with the results in the order of the tasks.

Dask sends functions and tasks as pickles: a scheduler is for a network that is trusted. Its
workers run this project's code on files that all machines share; nothing large goes through Dask.
"""

import hashlib
import platform
import socket
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

import cv2

from pipeline.errors import PipelineError, listing
from pipeline.processes import reports_to

CONNECT_S = 30
"""How long a scheduler may take to answer, and then its first worker to be there."""

CODE = ("pipeline", "gaitgl")
PACKAGES = ("kornia-rs", "numpy", "pandas", "py7zr", "pyarrow", "zstandard")
OPENCV = ("opencv-python", "opencv-python-headless")

Task = TypeVar("Task")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    scheduler: str,
    advance: Callable[[int], None],
) -> Generator[Result, None, None]:
    """``map(function, tasks)`` on the workers of the cluster at ``scheduler`` (tcp://host:port).

    A task whose worker dies runs again on another one, so it must bear that. ``advance`` is called
    with what a task reported once it has ended. Raises PipelineError where Dask is not installed,
    nobody answers, a worker runs other code, or the cluster is lost.
    """
    try:
        import distributed
        from distributed.scheduler import KilledWorker
    except ImportError:
        raise PipelineError(
            f"runtime.dask_scheduler = {scheduler} needs Dask, which is not installed here: "
            "make setup installs it"
        ) from None
    where = f"runtime.dask_scheduler = {scheduler}"
    try:
        client = distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=False)
    except OSError as error:  # time-outs are among them
        raise PipelineError(
            f"{where}: no scheduler answers there ({_line(error)}). Start it and its workers first "
            '(README, Many machines), or set it to "" to work on this machine alone.'
        ) from None
    with client:
        _wait_for_a_worker(client, where)
        remote = _Remote(function, code_state())
        run = uuid4().hex
        numbers = {
            client.submit(remote, task, key=f"task-{number}-{run}", priority=-number): number
            for number, task in enumerate(tasks)
        }
        results: dict[int, Result] = {}
        due = 0
        try:
            for future in distributed.as_completed(list(numbers), loop=client.loop):
                number = numbers.pop(future)
                results[number], amount = future.result()
                advance(amount)
                while due in results:
                    yield results.pop(due)
                    due += 1
        except KilledWorker as error:
            raise PipelineError(
                f"{where}: workers died again and again at the same task, most likely for want of "
                f"memory; start fewer on a machine. {_line(error)}"
            ) from None
        except (CancelledError, OSError) as error:
            raise PipelineError(
                f"{where}: the scheduler is gone ({_line(error)}). Start it and its workers, and "
                "then this again: what is finished is kept."
            ) from None
        except (ImportError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "deserialization" not in str(error):
                raise  # a task's own
            raise PipelineError(
                f"{where}: scheduler or worker cannot load this project's code: {_line(error)}\n"
                "Start them in the project's folder, with `python -m dask scheduler` and `python "
                "-m dask worker`."
            ) from None


@cache
def code_state() -> dict[str, str]:
    """Versions and digests of all that may change what this process computes, by name."""
    root = Path(__file__).resolve().parent.parent
    state = {"Python": ".".join(platform.python_version_tuple()[:2])}
    state |= {name: _version(name) for name in PACKAGES}
    state["opencv"] = "".join(_version(name) for name in OPENCV)
    # what resizes frames: its last bits depend on the processor
    state["Intel IPP in opencv"] = cv2.ipp.getIppVersion()
    for path in sorted(path for name in CODE for path in (root / name).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        state[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return state


@dataclass(frozen=True)
class _Remote(Generic[Task, Result]):
    """What a worker runs for a task: it returns its result and how much it reported."""

    function: Callable[[Task], Result]
    expected: dict[str, str]
    """The code_state where the stage was started."""

    def __call__(self, task: Task) -> tuple[Result, int]:
        here = f"on {socket.gethostname()}"
        mine, theirs = code_state(), self.expected
        differs = [
            f"{name}: {theirs.get(name, 'none')} where the stage was started, "
            f"{mine.get(name, 'none')} {here}"
            for name in sorted({*mine, *theirs})
            if mine.get(name) != theirs.get(name)
        ]
        if differs:
            raise PipelineError(
                f"a worker {here} has other code or packages:\n{listing(differs)}\n"
                "Bring them to the same state, and start the workers anew."
            )
        amounts: list[int] = []

        def add(amount: int) -> None:
            _end_if_unwanted()
            amounts.append(amount)

        with reports_to(add):
            try:
                return self.function(task), sum(amounts)
            except (PipelineError, OSError) as error:  # a full disk is not a lost scheduler
                raise PipelineError(f"{here}: {error}") from None


def _end_if_unwanted() -> None:
    """Raise an error in a task whose stage was stopped: Dask itself lets it run to its end."""
    from distributed import get_worker

    worker = get_worker()
    if worker.state.tasks[worker.get_current_task()].state == "cancelled":
        raise CancelledError("the stage that started this task has ended")


def _wait_for_a_worker(client: Any, where: str) -> None:
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except OSError:  # its time-out
        raise PipelineError(
            f"{where}: the scheduler has no worker. Start some: `python -m dask worker` in the "
            "project's folder on each machine (README, Many machines)."
        ) from None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__

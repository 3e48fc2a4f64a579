"""Whether a long stage is asked to stop: by a signal, or since the DVC that started it is gone."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SHELLS = {"sh", "dash", "bash", "zsh", "fish", "ksh", "csh", "tcsh", "ash", "busybox"}
ADOPTERS = {"systemd", "init", "launchd", "tini", "dumb-init", "docker-init", "slurmstepd"}
"""Who becomes the parent of a process whose own has ended; elsewhere it is process 1."""

STARTERS = ("dvc", "torchrun", "torch.distributed.run", "stages.")
"""What the command of a process 1 that starts stages itself, as in a container, has in it."""

POLL_S = 1.0
WATCHER = "watches the starter"
STARTED_BY = "GAITGL_STARTED_BY"
"""Environment variable: what `started_by` says in each of several processes."""


class StopRequest:
    """Notes requests to stop while its block runs; the block asks between two steps.

    DVC dies at a SIGTERM, but what it started lives on: that counts as a request, too.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._before: dict[int, Any] = {}
        self._starter_lives = starter()

    def __enter__(self) -> Self:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP: so do we
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reason(self) -> str:
        """What asks to stop, in words; empty where nothing does."""
        if not self._starter_lives():
            return "the end of the process that started it"
        return signal.Signals(self._signal).name if self._signal else ""

    @property
    def exit_status(self) -> int:
        """What a shell expects of a process that was stopped: 128 + the signal."""
        return 128 + (self._signal or signal.SIGTERM)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number


@contextmanager
def exits_at_signals(kept: str) -> Iterator[None]:
    """While the block runs, a signal ends the process as errors do: what was opened is closed.

    So does the end of DVC. ``kept`` is printed: what is not lost. Exit status: 128 + signal.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        for heard in before:
            signal.signal(heard, signal.SIG_IGN)  # a second one would disturb the closing
        sys.stderr.write(f"\nstopped by {signal.Signals(number).name}: {kept}\n")
        sys.exit(128 + number)

    before: dict[int, Any] = {}
    with stopped_with_starter():
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, leave)
        try:
            yield
        finally:
            for heard, handler in before.items():
                signal.signal(heard, handler)


def starter() -> Callable[[], bool]:
    """Ask it as often as needed: does the process that waits for this one (DVC, torchrun) live?

    Always true where this process was started by hand: that one may outlive its terminal.
    """
    if _started_by_hand():
        return lambda: True
    process = _starter_of(psutil.Process())
    return lambda: process is not None and _lives(process)


def started_by() -> str | None:
    """The process whose end will stop this one: for `has_ended`, also asked by other processes.

    None where this one was started by hand. Of several processes: whoever started all of them.
    """
    if STARTED_BY in os.environ:
        return os.environ[STARTED_BY] or None
    process = None if _started_by_hand() else _starter_of(psutil.Process())
    return None if process is None else f"{process.pid} {process.create_time()}"


def has_ended(identity: str) -> bool:
    """Whether a process of this machine that `started_by` has named lives no more."""
    pid, created = identity.split()
    try:
        process = psutil.Process(int(pid))
    except psutil.NoSuchProcess:
        return True
    return process.create_time() != float(created) or not _lives(process)


def _started_by_hand() -> bool:
    return "DVC_STAGE" not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ


def _starter_of(process: psutil.Process) -> psutil.Process | None:
    """The next ancestor that is no shell; None where it has ended and ``process`` was adopted."""
    for parent in process.parents():
        if parent.name() in SHELLS:
            continue
        if parent.name() not in ADOPTERS and parent.pid != 1:
            return parent
        words = [os.path.basename(word) for word in parent.cmdline()]
        return parent if any(word.startswith(STARTERS) for word in words) else None
    return None


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def stopped_with_starter() -> Iterator[None]:
    """While the block runs, the end of the process that started this one is a SIGTERM to it.

    A block within such a block adds nothing: one signal is enough.
    """
    if any(thread.name == WATCHER for thread in threading.enumerate()):
        yield
        return
    starter_lives = starter()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            if not starter_lives():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=watch, name=WATCHER, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()

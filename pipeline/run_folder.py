"""Folders under runs/ for what an unfinished stage has done: killed at any moment, it goes on.

    runs/<name>-<key>/
        what.json           settings, inputs and code, whose digest is the key

DVC deletes declared outputs before a stage starts, so these folders are undeclared; another setting
has another key, and with it another folder.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.errors import PipelineError
from pipeline.files import fingerprint, write_json
from pipeline.settings import flatten
from pipeline.stage_inputs import code_of
from pipeline.stopping import has_ended, started_by

RUNS = Path("runs")

STOPPING_S = 120.0
"""How long one whose DVC was killed may take to stop."""


class RunFolder:
    """The folder of one unfinished stage, told apart by everything that decides its result."""

    def __init__(self, name: str, stage: str, identity: dict[str, Any]) -> None:
        self.name = name
        self._identity = {**identity, "code": code_of(stage)}
        self.key = fingerprint(self._identity)
        self.folder = RUNS / f"{name}-{self.key[:16]}"

    def describe(self) -> None:
        """Write what.json; the folder has to be there."""
        write_json(self.folder / "what.json", self._identity)

    def folders_of_others(self) -> Iterator[tuple[Path, str]]:
        """Folders of the same name under other settings, and what differs, in words."""
        for what in sorted(RUNS.glob(f"{self.name}-*/what.json")):
            if what.parent == self.folder:
                continue
            try:
                mine, theirs = flatten(self._identity), flatten(json.loads(what.read_text("utf-8")))
            except (ValueError, AttributeError):
                yield what.parent, "settings, which what.json no longer tells"
                continue
            keys = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
            yield what.parent, ", ".join(keys)


@contextmanager
def held(lock: Path, name: str, folder: Path) -> Iterator[None]:
    """Hold ``lock`` for the block; PipelineError names who works in ``folder`` already.

    One whose DVC was killed is about to stop: for that one it waits a while. Who holds it is
    written beside the lock, as .json.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = lock.with_suffix(".json")
    file = FileLock(lock)
    try:
        try:
            file.acquire(blocking=False)
        except Timeout:
            if not _is_stopping(holder):
                raise
            sys.stderr.write(f"waiting for {_holder(holder)}, which is stopping\n")
            file.acquire(timeout=STOPPING_S)
    except Timeout:
        raise PipelineError(
            f"this {name} runs already: {_holder(holder)} holds {folder}.\n"
            "Wait for it, or stop it with kill: the next one goes on from where it was."
        ) from None
    try:
        this = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        write_json(holder, {**this, "started_by": started_by()})
        yield
    finally:
        file.release()


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text("utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError):
        return "a process that has just started"


def _is_stopping(path: Path) -> bool:
    """Whether the holder lost the DVC that started it, here on this machine."""
    try:
        holder = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    here = holder["host"] == socket.gethostname()
    return here and holder["started_by"] is not None and has_ended(holder["started_by"])


def _now() -> str:
    return datetime.now().astimezone().isoformat(" ", "seconds")

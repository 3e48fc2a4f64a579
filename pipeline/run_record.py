"""The record of a run on the disk: all that MLflow is to know of it, and how much of it knows.

The stage writes here and nowhere else, so that a server that is slow or down costs it nothing;
``pipeline.sender`` delivers from here. A record's folder holds

- ``run.json``: what is known when the run begins; written last, so that with it the record is whole
- ``metrics.jsonl``: one line ``[name, value, timestamp_ms, step]`` for each point, appended only
- ``tags.json``, ``end.json``: its tags, and how it ended if it has
- ``artifacts/<number>/<folder>/<file>``: copies of files to send, deleted once sent
- ``model/``: the model to send, deleted once sent
- ``sent.json``: what the store has acknowledged
- ``lock``: held by the process whose record it is.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from pipeline.errors import PipelineError
from pipeline.files import write_json

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
"""How a run ends, in MLflow's words."""


class RecordInUse(PipelineError):
    """Another process owns this record."""


@dataclass(frozen=True, slots=True)
class DataInput:
    """Data that a run works on, as MLflow shows it."""

    name: str
    digest: str
    """At most 36 characters: more MLflow does not take."""
    folder: str
    """Where it lies, below the project's root."""
    counts: dict[str, dict[str, int]]
    """Of each split: how many subjects, sequences and frames."""
    used_for: str
    """training or evaluation."""


@dataclass(frozen=True, slots=True)
class Run:
    """What is known of a run when it begins."""

    token: str
    """Tells this run from all others, before the store has given it an id."""
    stage: str
    dataset: str
    experiment: str
    name: str
    start_ms: int
    """Milliseconds since 1970, as everywhere in a record."""
    params: dict[str, str]
    upstream: dict[str, str]
    """Name of each stage this one builds on, and the digest of its output."""
    resumable: bool
    """Whether a run that was stopped may go on later."""
    inputs: list[DataInput] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class End:
    status: str
    time_ms: int


@dataclass(frozen=True, slots=True)
class Sent:
    """What the store has acknowledged."""

    run_id: str = ""
    """Empty until the store has made the run."""
    params: int = 0
    inputs: bool = False
    metrics: int = 0
    """Bytes of metrics.jsonl."""
    tags: dict[str, str] = field(default_factory=dict)
    end_begun: bool = False
    """Written before the store is asked to end the run: it may have, even if no answer came."""
    end: End | None = None


class Point(NamedTuple):
    name: str
    value: float
    timestamp_ms: int
    step: int


class Artifact(NamedTuple):
    file: Path
    folder: str | None
    """Where the run shows it; None is the top."""


class Record:
    """A record that this process owns until ``release``; see ``new_record`` and ``open_record``.

    One thread may write, others add points, while another one sends. ``kept`` is how many bytes of
    metrics.jsonl are surely on the disk, and only these may be sent.
    """

    def __init__(self, folder: Path, lock: FileLock, run: Run) -> None:
        self.folder = folder
        self.run = run
        self.tags: dict[str, str] = _read(folder / "tags.json") or {}
        self.end = _end(_read(folder / "end.json"))
        self.kept, self._last_steps = _mend(folder / "metrics.jsonl")
        sent = _read(folder / "sent.json") or {}
        self.sent = Sent(**{**sent, "end": _end(sent.get("end"))})
        if self.sent.metrics > self.kept:  # lines were lost; the next ones take their place
            self.sent = replace(self.sent, metrics=self.kept)
        self._lock = lock
        self._adding = Lock()
        self._pending: list[str] = []
        numbers = [int(path.name) for path in (folder / "artifacts").glob("*")]
        self._artifact = max(numbers, default=0)

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Take points into memory; those at or before the last step of their name are dropped.

        A training that is resumed repeats the steps after its checkpoint, logged or not.
        """
        now_ms = _now_ms()
        with self._adding:
            for name, value in metrics.items():
                if step > self.last_step(name):
                    self._last_steps[name] = step
                    self._pending.append(json.dumps([name, float(value), now_ms, step]) + "\n")

    def last_step(self, name: str) -> int:
        """The last step of this name, also of those not kept yet; -1 where there is none."""
        return self._last_steps.get(name, -1)

    def keep(self) -> None:
        """Write what was added, down to the disk."""
        with self._adding:
            content = "".join(self._pending).encode()
            n_kept = len(self._pending)
        if not content:
            return
        with (self.folder / "metrics.jsonl").open("r+b") as file:
            file.truncate(self.kept)  # half a write that failed, say on a full disk
            file.seek(self.kept)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with self._adding:
            del self._pending[:n_kept]
        self.kept += len(content)

    def tag(self, tags: dict[str, str]) -> None:
        """Set tags; others stay."""
        self.tags = {**self.tags, **tags}
        write_json(self.folder / "tags.json", self.tags)

    def add_artifact(self, path: Path) -> None:
        """Copy a file, or a folder with all that is in it."""
        copied = self._copied(path, path.name)
        self._artifact += 1
        numbered = self.folder / "artifacts" / f"{self._artifact:06d}"
        numbered.parent.mkdir(exist_ok=True)
        copied.rename(numbered)

    def add_model(self, folder: Path) -> None:
        """Copy the folder of a model, in the place of one added before."""
        copied = self._copied(folder, "model")
        shutil.rmtree(self.folder / "model", ignore_errors=True)
        (copied / "model").rename(self.folder / "model")
        copied.rmdir()

    def _copied(self, path: Path, name: str) -> Path:
        """A new folder of the record with a copy of ``path`` in it, as ``name``, on the disk."""
        copying = self.folder / "copying"
        shutil.rmtree(copying, ignore_errors=True)  # of a process that was killed
        target = copying / name
        copying.mkdir()
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        for file in _files(copying):
            with file.open("rb") as written:
                os.fsync(written.fileno())
        return copying

    def finish(self, status: str, time_ms: int | None = None) -> None:
        """Keep what was added and how the run ended, now or at ``time_ms``."""
        self.keep()
        end = End(status, time_ms or _now_ms())
        write_json(self.folder / "end.json", asdict(end))
        self.end = end

    def reopen(self) -> None:
        """The run goes on."""
        (self.folder / "end.json").unlink(missing_ok=True)
        self.end = None

    def unsent_points(self, most: int) -> tuple[list[Point], int]:
        """The first points not sent, at most this many, and ``Sent.metrics`` once they are."""
        points: list[Point] = []
        end = self.sent.metrics
        with (self.folder / "metrics.jsonl").open("rb") as file:
            file.seek(end)
            while len(points) < most and end < self.kept:
                line = file.readline()
                points.append(Point(*json.loads(line)))
                end += len(line)
        return points, end

    def count_unsent(self) -> int:
        """How many points are kept and not sent."""
        with (self.folder / "metrics.jsonl").open("rb") as file:
            file.seek(self.sent.metrics)
            return file.read(self.kept - self.sent.metrics).count(b"\n")

    def unsent_artifacts(self) -> Iterator[Artifact]:
        """In the order in which they were added; delete each ``file`` once it is sent."""
        top = self.folder / "artifacts"
        for file in _files(top):
            _, *folders, _ = file.relative_to(top).parts
            yield Artifact(file, "/".join(folders) or None)

    def unsent_model(self) -> Path | None:
        """The folder of the model that was added; delete it once it is sent."""
        folder = self.folder / "model"
        return folder if folder.exists() else None

    def acknowledge(self, **changes: Any) -> None:
        """Remember what the store has confirmed: fields of ``Sent``."""
        sent = replace(self.sent, **changes)
        write_json(self.folder / "sent.json", asdict(sent))
        self.sent = sent

    def delivered(self) -> bool:
        """Whether the store holds all that is kept here."""
        return (
            self.sent.run_id != ""
            and self.sent.params == len(self.run.params)
            and (self.sent.inputs or not self.run.inputs)
            and self.sent.metrics == self.kept
            and self.tags.items() <= self.sent.tags.items()
            and self.sent.end == self.end
            and next(self.unsent_artifacts(), None) is None
            and self.unsent_model() is None
        )

    def over(self) -> bool:
        """Whether the run has ended and will not go on."""
        return self.end is not None and (self.end.status == FINISHED or not self.run.resumable)

    def move_aside(self) -> Path:
        """Give the folder's name free, and the record too; returns where it lies now."""
        run_folder = self.folder.parent
        beside = run_folder.with_name(f"{run_folder.name}-{self.run.token[:8]}")
        beside.mkdir(exist_ok=True)
        self.folder = self.folder.rename(beside / self.folder.name)
        self.release()
        return self.folder

    def release(self) -> None:
        """Another process may own the record from here on."""
        self._lock.release(force=True)


def new_record(folder: Path, run: Run, tags: dict[str, str]) -> Record:
    """Begin a record in a folder that holds none. Raises RecordInUse."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _locked(folder)
    for left in folder.iterdir():  # of a record that a process was killed in making or removing
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != "lock":
            left.unlink()
    write_json(folder / "tags.json", tags)
    write_json(folder / "run.json", asdict(run))
    return Record(folder, lock, run)


def open_record(folder: Path, wait_s: float = 0) -> Record | None:
    """The record that was begun in ``folder``, or None where there is none.

    What a process that was killed has left half written is cut off. Raises RecordInUse where
    another process works on it for longer than ``wait_s``.
    """
    if not folder.is_dir():
        return None
    lock = _locked(folder, wait_s)
    run = _read(folder / "run.json")
    if run is None:
        lock.release()
        return None
    inputs = [DataInput(**data) for data in run.pop("inputs", [])]
    return Record(folder, lock, Run(**run, inputs=inputs))


def remove_folder(folder: Path) -> None:
    """Delete a record's folder, and the run's folder around it if nothing else is in it."""
    (folder / "run.json").unlink(missing_ok=True)  # first: without it, no record is left by half
    shutil.rmtree(folder)
    if not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def start_ms(folder: Path) -> int:
    """When the run whose record lies in ``folder`` began; 0 where there is none."""
    run = _read(folder / "run.json")
    return 0 if run is None else int(run["start_ms"])


def _locked(folder: Path, wait_s: float = 0) -> FileLock:
    # not a lock of one thread: it is released by whichever of the run's threads ends last
    lock = FileLock(folder / "lock", thread_local=False)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise RecordInUse(
            f"{folder} is the record of a run that another process is working on.\n"
            "Wait until it has ended, or stop it."
        ) from None
    return lock


def _mend(path: Path) -> tuple[int, dict[str, int]]:
    """Cut a file of metrics at its first line that is not whole, and flush it to the disk.

    Returns the bytes it holds then, and the last step of each name.
    """
    end = 0
    last_steps: dict[str, int] = {}
    path.touch()
    with path.open("r+b") as file:
        for line in file:
            try:
                point = Point(*json.loads(line))
            except (ValueError, TypeError):  # zeros where the power failed
                break
            if not line.endswith(b"\n"):
                break
            last_steps[point.name] = point.step
            end += len(line)
        file.truncate(end)
        os.fsync(file.fileno())
    return end, last_steps


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _read(path: Path) -> Any:
    """What a file of JSON holds, or None where there is no such file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _end(tree: Any) -> End | None:
    return None if tree is None else End(**tree)


def _now_ms() -> int:
    return int(time.time() * 1000)

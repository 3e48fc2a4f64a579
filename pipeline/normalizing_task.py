"""What one worker does of the stage normalize: a task's shards, archive by archive.

Frames are normalized as they come out of an archive, and a sequence is compressed once it is whole:
memory does not grow with the archive.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gaitgl.silhouettes import normalize_frame
from pipeline import releases, shard_plan
from pipeline.archives import Caps, DamagedArchiveError, WrongPasswordError, read_members
from pipeline.catalogue import DAMAGED, Refusal
from pipeline.decoding import BRIGHT, Frame, RefusedFrameError, decode
from pipeline.errors import PipelineError
from pipeline.finished_shards import ShardWriter, forget_shard, shards_to_do
from pipeline.processes import report
from pipeline.settings import Dataset
from pipeline.shard_plan import Task, read_plan
from pipeline.silhouette_store import HEIGHT, WIDTH, compress

OPEN_BYTES = 256 * 2**20
"""The silhouettes of sequences that are not whole yet may take this much memory in one worker;
that is 95 000 frames, where an archive of the releases has one sequence open at a time."""


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks of a stage have in common; ``shards`` is where they find the plan."""

    dataset: Dataset
    root: Path
    shards: Path
    min_foreground: int
    min_frames: int
    caps: Caps


class _DistrustError(Exception):
    """A container's checksum shows that something read from it is wrong, and nobody knows what."""

    def __init__(self, container: str, reason: str, not_read: int) -> None:
        super().__init__(container)
        self.container, self.reason, self.not_read = container, reason, not_read


def normalize_task(job: Job, task: Task) -> None:
    """Make the shards of a task that are not there yet."""
    cv2.setNumThreads(1)  # the processes are the parallelism
    # what cannot be read is counted: OpenCV's warnings would stand among the progress
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    # Until glibc has seen a larger block freed, it gives a picture's memory back to the system
    # after each frame; the page faults of asking for it again took half the time with JPEG.
    np.empty(2**24, np.uint8)
    releases.check_root(job.dataset, job.root)
    rows = read_plan(job.shards / shard_plan.FILE, task)
    todo = shards_to_do(job.shards, task.shards)
    reported = task.done
    distrusted: dict[str, str] = {}
    while todo:
        part = rows.filter(pc.is_in(rows["shard"], pa.array(todo, pa.int32())))
        # what is finished, maybe since the start by a worker that then died
        report(task.frames - reported - pc.sum(part["n_frames"]).as_py())
        try:
            _make_shards(job, part, distrusted)
            return
        except _DistrustError as error:
            distrusted[error.container] = error.reason
            # shards that were finished before the checksum was reached hold such frames, too
            for number in task.shards:
                forget_shard(job.shards, number)
            todo, reported = list(task.shards), task.frames - error.not_read
    report(task.frames - reported)


def _make_shards(job: Job, rows: pa.Table, distrusted: dict[str, str]) -> None:
    not_read = pc.sum(rows["n_frames"]).as_py()
    with ShardWriter(job.shards, Counter(rows["shard"].to_pylist())) as writer:
        for part in _by_container(rows):
            container: str = part["container"][0].as_py()
            not_read -= pc.sum(part["n_frames"]).as_py()
            reader = _ContainerReader(job, container, part, writer)
            if container in distrusted:
                reason = distrusted[container]
                writer.note(Refusal(container, "", DAMAGED, reason, frames=0))
                reader.refuse_pending(DAMAGED, reason)
                continue
            _check_same(job, container, part["container_bytes"][0].as_py())
            try:
                _read(job, container, reader)
            except DamagedArchiveError as error:
                # said even where every sequence came through: damage may show after the last
                writer.note(Refusal(container, "", DAMAGED, error.reason, frames=0))
                reader.refuse_pending(DAMAGED, error.reason)
                if error.suspect:
                    raise _DistrustError(container, error.reason, not_read) from None
            reader.refuse_pending("the frame is gone from the archive", "the release has changed")


def _read(job: Job, container: str, reader: "_ContainerReader") -> None:
    password = releases.password(job.dataset)
    try:
        read_members(job.root, container, reader.wanted(), password, reader.take, job.caps)
    except WrongPasswordError as error:
        advice = releases.password_advice(job.dataset)
        raise PipelineError(f"data.{job.dataset}.root = {job.root}: {error}.\n{advice}") from None


def _by_container(rows: pa.Table) -> Iterator[pa.Table]:
    codes = rows["container"].combine_chunks().dictionary_encode().indices.to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    yield from (rows.slice(a, b - a) for a, b in pairwise(bounds))


def _check_same(job: Job, container: str, expected: int) -> None:
    """PipelineError where this machine sees another archive than the one that was planned with."""
    if (found := releases.bytes_of(job.root, container)) != expected:
        raise PipelineError(
            f"data.{job.dataset}.root = {job.root}: {container} has {found} bytes, but had "
            f"{expected} when normalize started. Let nobody change the release meanwhile; all "
            "machines of a cluster must see the same one under the same path."
        )


class _Sequence:
    """A sequence while its frames come in, in whatever order the archive has them."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.key: tuple[str, str, str] = (row["subject"], row["sequence"], row["view"])
        self.shard: int = row["shard"]
        self.split: str = row["split"]
        self.names: list[str] = row["frames"]
        self.left = len(self.names)
        self.silhouettes = np.empty((self.left, HEIGHT, WIDTH), np.uint8)
        self.refused: dict[int, str] = {}
        """Position and reason of each frame that is not kept."""

    def put(self, job: Job, position: int, content: bytes) -> None:
        self.left -= 1
        try:
            picture = decode(content, job.caps.max_pixels)
        except RefusedFrameError as reason:
            self.refused[position] = str(reason)
            return
        silhouette = normalize_frame(picture, HEIGHT, WIDTH, job.min_foreground)
        if silhouette is not None and silhouette.max() >= BRIGHT:
            self.silhouettes[position] = silhouette
        elif 0 < picture.max() < BRIGHT:  # a mask of labels would be nearly black to the network
            self.refused[position] = f"darker than {BRIGHT} of 255: is it a mask of 0 and 1?"
        else:
            self.refused[position] = "too little foreground"

    def kept(self) -> Frame:
        """The silhouettes that are kept, ``uint8 [t, HEIGHT, WIDTH]``, in the catalogue's order."""
        if not self.refused:
            return self.silhouettes
        return np.delete(self.silhouettes, list(self.refused), axis=0)


class _ContainerReader:
    """Normalizes frames as an archive yields them, and hands each sequence on once it is whole."""

    def __init__(self, job: Job, container: str, rows: pa.Table, writer: ShardWriter) -> None:
        self._job, self._container, self._rows, self._writer = job, container, rows, writer
        self._untouched: dict[str, list[int]] = defaultdict(list)
        """Rows of each folder (as members' names begin) of which nothing has come yet."""

        for number, folder in enumerate(rows["folder"].to_pylist()):
            if rows["n_frames"][number].as_py():
                self._untouched[releases.member_name(container, folder, "")].append(number)
            else:
                self._lose(self._sequence(number), folder, "the sequence is empty", "", 0)
        self._missing: dict[str, dict[str, tuple[int, int]]] = {}
        """Row and position of each frame that is yet to come, in folders of which some have."""

        self._open: dict[int, _Sequence] = {}
        self._open_bytes = 0

    def wanted(self) -> set[str]:
        """Names of all members that are to come."""
        return {
            f"{folder}{name}"
            for folder, rows in self._untouched.items()
            for row in rows
            for name in self._rows["frames"][row].as_py()
        }

    def _missing_in(self, folder: str) -> dict[str, tuple[int, int]]:
        """Row and position of a folder's frames that are yet to come."""
        if folder in self._untouched:
            rows = self._untouched.pop(folder)
            self._missing[folder] = {
                name: (row, position)
                for row in rows
                for position, name in enumerate(self._rows["frames"][row].as_py())
            }
        return self._missing.get(folder, {})

    def take(self, member: str, content: bytes) -> None:
        """A frame has come; raises PipelineError where too many sequences are open at once."""
        end = member.rfind("/") + 1
        folder, name = member[:end], member[end:]
        missing = self._missing_in(folder)
        if name not in missing:
            return  # a repeated name: ingest has refused the second
        row, position = missing.pop(name)
        if not missing:
            del self._missing[folder]
        sequence = self._open.get(row) or self._begin(row)
        sequence.put(self._job, position, content)
        if not sequence.left:
            del self._open[row]
            self._open_bytes -= sequence.silhouettes.nbytes
            self._finish(folder, sequence)

    def refuse_pending(self, reason: str, detail: str) -> None:
        """Refuse every sequence that is not whole; a part of a walk is not that walk."""
        for folder in list(self._untouched):
            self._missing_in(folder)
        for folder, missing in self._missing.items():
            for row in dict.fromkeys(row for row, _ in missing.values()):
                sequence = self._sequence(row)
                report(len(sequence.names))
                self._lose(sequence, folder[:-1], reason, detail, len(sequence.names))
        self._missing, self._open, self._open_bytes = {}, {}, 0

    def _begin(self, row: int) -> _Sequence:
        self._open[row] = sequence = self._sequence(row)
        self._open_bytes += sequence.silhouettes.nbytes
        if self._open_bytes > OPEN_BYTES:
            raise PipelineError(
                f"data.{self._job.dataset}.root = {self._job.root}: {self._container} mixes the "
                f"frames of its sequences: {len(self._open)} of them, with "
                f"{self._open_bytes // (HEIGHT * WIDTH)} frames, are begun and not finished, which "
                f"takes more than {OPEN_BYTES >> 20} MiB of memory.\n"
                "Extract it, or pack it anew folder after folder (tar --sort=name), and let the "
                "root hold that instead."
            )
        return sequence

    def _sequence(self, row: int) -> _Sequence:
        return _Sequence(self._rows.slice(row, 1).to_pylist()[0])

    def _finish(self, folder: str, sequence: _Sequence) -> None:
        report(len(sequence.names))
        for position, reason in sorted(sequence.refused.items()):
            self._refuse(sequence, f"{folder}{sequence.names[position]}", reason)
        silhouettes = sequence.kept()
        if len(silhouettes) >= self._job.min_frames:
            stored = compress(*sequence.key, silhouettes)
            self._writer.keep(sequence.shard, stored, sequence.split)
            return
        left = len(silhouettes)
        detail = f"{left} usable frames, {self._job.min_frames} needed"
        self._lose(sequence, folder[:-1], "the sequence is too short", detail, left)

    def _lose(
        self, sequence: _Sequence, folder: str, reason: str, detail: str, frames: int
    ) -> None:
        """Of this sequence nothing is kept; what was refused of it before is not counted again."""
        if frames or not sequence.names:
            self._refuse(sequence, folder, reason, detail, frames)
        self._writer.lose(sequence.shard)

    def _refuse(
        self, sequence: _Sequence, member: str, reason: str, detail: str = "", frames: int = 1
    ) -> None:
        refusal = Refusal(self._container, member, reason, detail, frames, *sequence.key)
        self._writer.refuse(sequence.shard, [refusal])

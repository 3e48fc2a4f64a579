"""From release archives and catalogue to the silhouette store, archive by archive."""

import os

# the cap is read when OpenCV is loaded; OUMVLP's frames have 1.3 million pixels
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from gaitgl.silhouettes import normalize_sequence
from pipeline import releases
from pipeline.archives import Caps, DamagedArchiveError, WrongPasswordError, read_members
from pipeline.catalogue import REFUSALS, by_reason, refusal_table
from pipeline.errors import PipelineError
from pipeline.files import write_json
from pipeline.processes import map_in_order, report
from pipeline.progress import Progress
from pipeline.releases import Refusal
from pipeline.settings import Dataset
from pipeline.silhouette_store import (
    HEIGHT,
    INDEX,
    WIDTH,
    StoredSequence,
    compress,
    write_shard,
)
from pipeline.tables import KEY, write_table

SHARD_FRAMES = 8_000
"""A shard is closed once it holds this many frames; an archive is never split over two."""

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to read: its key, split and members."""

    key: tuple[str, str, str]
    split: str
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """One shard's work: whole containers, each with its sequences."""

    shard: str
    containers: tuple[tuple[str, tuple[Job, ...]], ...]


@dataclass(slots=True)
class Outcome:
    """What became of a task's frames."""

    shard: str
    index: list[dict[str, object]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


def normalize(
    dataset: Dataset,
    root: Path,
    sequences: pd.DataFrame,
    folder: Path,
    min_foreground: int,
    min_frames: int,
    workers: int,
    caps: Caps | None = None,
) -> None:
    """Fill ``folder`` with shards, ``index.parquet``, ``refusals.parquet`` and ``counts.json``.

    The bytes depend on the release and on ``min_foreground`` and ``min_frames`` alone: tasks are
    cut from the catalogue, not by worker. Raises PipelineError where nothing usable is left.
    """
    tasks = list(_tasks(sequences))
    work = partial(
        _normalize_task, dataset, root, folder, min_foreground, min_frames, caps or Caps()
    )
    index: list[dict[str, object]] = []
    refused: list[Refusal] = []
    frames_in = int(sequences["n_frames"].sum())
    with Progress(f"{dataset}: normalizing", frames_in, "frames") as progress:
        for outcome in map_in_order(work, tasks, workers, progress.advance):
            index += [{"dataset": dataset, "shard": outcome.shard, **row} for row in outcome.index]
            refused += outcome.refused
    table = pd.DataFrame(index, columns=INDEX.names).sort_values(KEY, ignore_index=True)
    refusals = refusal_table(dataset, refused)
    kept, lost = int(table["n_frames"].sum()), int(refusals["frames"].sum())
    print(
        f"{dataset}: frames in {frames_in} = frames kept {kept} + refused {lost}; "
        f"sequences in {len(sequences)}, kept {len(table)}; refusals: {by_reason(refusals)}"
    )
    if frames_in != kept + lost:
        raise PipelineError(
            f"{dataset}: frames in ({frames_in}) are not frames kept ({kept}) + refused ({lost}). "
            "This is a fault of the pipeline: please report it with this line."
        )
    if table.empty:
        raise PipelineError(
            f"{dataset}: no usable sequence is left of {len(sequences)}: {by_reason(refusals)}.\n"
            f"Is data.{dataset}.root right, and normalize.min_foreground = {min_foreground} "
            "below the brightness of a person in these pictures?"
        )
    write_table(folder / "index.parquet", table, INDEX)
    write_table(folder / "refusals.parquet", refusals, REFUSALS)
    write_json(
        folder / "counts.json",
        {
            "frames_in": frames_in,
            "frames_kept": kept,
            "frames_refused": lost,
            "sequences_in": len(sequences),
            "sequences_kept": len(table),
            "sequences_refused": _by_split(sequences) - _by_split(table),
            "refused_by_reason": refusals.groupby("reason")["frames"].sum().to_dict(),
        },
    )


def _by_split(rows: pd.DataFrame) -> "Counter[str]":
    return Counter(rows["split"])


def decode(content: bytes, max_pixels: int = 2**26) -> Frame | None:
    """An encoded picture as ``uint8 [H, W]`` grey levels, or None where it is none.

    None also for more than ``max_pixels``; past 2**26 it is not even decoded.
    """
    if not content:
        return None
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # larger than the cap on pixels
        return None
    if picture is None or picture.size > max_pixels:
        return None
    return np.asarray(picture, np.uint8)


def _tasks(sequences: pd.DataFrame) -> Iterator[Task]:
    jobs: dict[str, list[Job]] = defaultdict(list)
    columns = [*KEY, "split", "container", "folder", "frames"]
    for *key, split, container, folder, frames in sequences[columns].itertuples(index=False):
        members = tuple(releases.member_name(container, folder, frame) for frame in frames)
        jobs[container].append(Job((key[0], key[1], key[2]), split, members))
    pending: list[tuple[str, tuple[Job, ...]]] = []
    frames_pending = 0
    number = 0
    for container in sorted(jobs):
        pending.append((container, tuple(jobs[container])))
        frames_pending += sum(len(job.members) for job in jobs[container])
        if frames_pending >= SHARD_FRAMES:
            yield Task(f"shard-{number:05}.arrow", tuple(pending))
            pending, frames_pending, number = [], 0, number + 1
    if pending:
        yield Task(f"shard-{number:05}.arrow", tuple(pending))


def _normalize_task(
    dataset: Dataset,
    root: Path,
    folder: Path,
    min_foreground: int,
    min_frames: int,
    caps: Caps,
    task: Task,
) -> Outcome:
    cv2.setNumThreads(1)  # the processes are the parallelism
    outcome = Outcome(task.shard)
    rows: list[tuple[StoredSequence, str]] = []
    for container, jobs in task.containers:
        reader = _ContainerReader(container, jobs, min_foreground, min_frames, caps.max_pixels)
        try:
            password = releases.password(dataset)
            read_members(root, container, reader.wanted, password, reader.take, caps)
        except WrongPasswordError as error:
            advice = releases.password_advice(dataset)
            raise PipelineError(f"data.{dataset}.root = {root}: {error}.\n{advice}") from None
        except DamagedArchiveError as error:
            # said even where every sequence came through: damage may show after the last of them
            outcome.refused.append(
                Refusal(container, "", "the archive is damaged", error.reason, frames=0)
            )
            if error.suspect:
                reader.distrust()
            reader.refuse_pending("the archive is damaged", error.reason)
        reader.refuse_pending("the frame is gone from the archive", "the release has changed")
        rows += reader.rows
        outcome.refused += reader.refused
    rows.sort(key=lambda row: (row[0].subject, row[0].sequence, row[0].view))
    if rows:
        write_shard(folder / task.shard, [stored for stored, _ in rows])
    for number, (stored, split) in enumerate(rows):
        outcome.index.append(
            {
                "subject": stored.subject,
                "sequence": stored.sequence,
                "view": stored.view,
                "split": split,
                "n_frames": stored.n_frames,
                "row": number,
                "crc32": stored.crc32,
            }
        )
    return outcome


class _ContainerReader:
    """Gathers frames as an archive yields them, and normalizes each sequence once it is whole."""

    def __init__(
        self,
        container: str,
        jobs: tuple[Job, ...],
        min_foreground: int,
        min_frames: int,
        max_pixels: int,
    ) -> None:
        self._container = container
        self._min_foreground, self._min_frames = min_foreground, min_frames
        self._max_pixels = max_pixels
        self._job_of = {member: job for job in jobs for member in job.members}
        self._contents: dict[tuple[str, str, str], dict[str, bytes]] = {job.key: {} for job in jobs}
        self.rows: list[tuple[StoredSequence, str]] = []
        self.refused: list[Refusal] = []

    @property
    def wanted(self) -> set[str]:
        return set(self._job_of)

    def take(self, member: str, content: bytes) -> None:
        job = self._job_of.get(member)
        if job is None or job.key not in self._contents:
            return  # a repeated name: ingest has refused the second
        gathered = self._contents[job.key]
        gathered.setdefault(member, content)
        if len(gathered) == len(job.members):
            self._finish(job, self._contents.pop(job.key))

    def refuse_pending(self, reason: str, detail: str) -> None:
        """Refuse every sequence that is not whole; a part of a walk is not that walk."""
        members = {job.key: job.members for job in self._job_of.values()}
        report(sum(len(members[key]) for key in self._contents))
        for key in self._contents:
            self.refused.append(
                Refusal(
                    self._container,
                    members[key][0].rpartition("/")[0],
                    reason,
                    detail,
                    len(members[key]),
                    *key,
                )
            )
        self._contents = {}

    def distrust(self) -> None:
        """Take back all that was read: which part of it the damage changed, nobody knows."""
        members = {job.key: job.members for job in self._job_of.values()}
        done = set(members) - set(self._contents)
        report(-sum(len(members[key]) for key in done))
        self._contents |= {key: {} for key in done}
        self.rows, self.refused = [], []

    def _finish(self, job: Job, contents: dict[str, bytes]) -> None:
        report(len(job.members))
        pictures: list[Frame] = []
        names: list[str] = []
        for member in job.members:
            picture = decode(contents[member], self._max_pixels)
            if picture is None:
                self._refuse(job, member, "not a picture")
            else:
                pictures.append(picture)
                names.append(member)
        silhouettes, kept = normalize_sequence(
            pictures, HEIGHT, WIDTH, min_foreground=self._min_foreground
        )
        for member, good in zip(names, kept, strict=True):
            if not good:
                self._refuse(job, member, "too little foreground")
        if len(silhouettes) < self._min_frames:
            if len(silhouettes):
                self._refuse(
                    job,
                    job.members[0].rpartition("/")[0],
                    "the sequence is too short",
                    f"{len(silhouettes)} usable frames, {self._min_frames} needed",
                    len(silhouettes),
                )
            return
        self.rows.append((compress(*job.key, silhouettes), job.split))

    def _refuse(
        self, job: Job, member: str, reason: str, detail: str = "", frames: int = 1
    ) -> None:
        self.refused.append(Refusal(self._container, member, reason, detail, frames, *job.key))

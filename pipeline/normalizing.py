"""From release archives and catalogue to the silhouette store, archive by archive.

Frames are normalized as they come out of an archive, and a sequence is compressed once it is whole:
memory does not grow with the archive. Shards that are finished wait in a folder of their own (see
pipeline.finished_shards) until all of them are there.
"""

import os

# the cap is read when OpenCV is loaded; OUMVLP's frames have 1.3 million pixels
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**26))

import errno
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gaitgl.silhouettes import normalize_frame
from pipeline import cluster, releases
from pipeline.archives import (
    Caps,
    DamagedArchiveError,
    WrongPasswordError,
    may_be_split,
    read_members,
)
from pipeline.catalogue import REFUSALS, Refusal, by_reason, refusal_table
from pipeline.errors import PipelineError, listing
from pipeline.files import fingerprint, write_json
from pipeline.finished_shards import (
    DAMAGED,
    FinishedShard,
    ShardWriter,
    finished_shard,
    forget_shard,
)
from pipeline.processes import map_in_order, report
from pipeline.progress import Progress
from pipeline.settings import Dataset
from pipeline.shard_plan import Task, plan_shards, plan_tasks, read_plan, write_plan
from pipeline.silhouette_store import HEIGHT, INDEX, WIDTH, compress
from pipeline.tables import KEY, write_table

PLAN = "plan.arrow"

OPEN_BYTES = 256 * 2**20
"""The silhouettes of sequences that are not whole yet may take this much memory in one worker;
that is 95 000 frames, where an archive of the releases has one sequence open at a time."""

Frame = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks of a stage have in common; ``shards`` is where they find the plan."""

    dataset: Dataset
    root: Path
    shards: Path
    min_foreground: int
    min_frames: int
    caps: Caps


def normalize(
    dataset: Dataset,
    root: Path,
    sequences: pd.DataFrame,
    folder: Path,
    min_foreground: int,
    min_frames: int,
    workers: int,
    caps: Caps | None = None,
    max_refused_share: float = 1.0,
    shards: Path | None = None,
    scheduler: str = "",
    refused_before: int = 0,
) -> None:
    """Fill ``folder`` with shards, ``index.parquet``, ``refusals.parquet`` and ``counts.json``.

    The bytes depend on the release, ``min_foreground``, ``min_frames`` and ``caps`` alone: shards
    are cut from the catalogue. Those in the folder ``shards`` are finished and taken as they are:
    it must be one for the same release, catalogue, settings and code (by default it is a new one,
    removed at the end). With the address of a Dask ``scheduler`` its workers do the work instead
    of ``workers`` processes. Raises PipelineError where nothing usable is left, or more than
    ``max_refused_share`` of the frames is refused, with the ``refused_before`` by ingest.
    """
    own = folder / "shards" if shards is None else shards
    own.mkdir(parents=True, exist_ok=True)
    # only workers elsewhere have another current folder; else messages name what was written
    job = Job(dataset, root, own, min_foreground, min_frames, caps or Caps())
    if scheduler:
        job = replace(job, root=root.absolute(), shards=own.absolute())
    finished = _finish_shards(job, sequences, workers, scheduler)
    index = [
        {"dataset": dataset, "shard": shard.name, **r} for shard in finished for r in shard.rows
    ]
    # several tasks may meet the same damage of a container that they share
    refused = list(dict.fromkeys(refusal for shard in finished for refusal in shard.refused))
    table = pd.DataFrame(index, columns=INDEX.names).sort_values(KEY, ignore_index=True)
    refusals = refusal_table(dataset, refused)
    frames_in = int(sequences["n_frames"].sum())
    kept, lost = int(table["n_frames"].sum()), int(refusals["frames"].sum())
    print(
        f"{dataset}: frames in {frames_in} = frames kept {kept} + refused {lost}; "
        f"sequences in {len(sequences)}, kept {len(table)}; refusals: {by_reason(refusals)}"
    )
    check_accounts(dataset, sequences, table, refusals)
    if table.empty:
        raise PipelineError(
            f"{dataset}: no usable sequence is left of {len(sequences)}: {by_reason(refusals)}.\n"
            f"Is data.{dataset}.root right, and normalize.min_foreground = {min_foreground} "
            "below the brightness of a person in these pictures?"
        )
    seen, gone = frames_in + refused_before, lost + refused_before
    if gone > max_refused_share * seen:
        raise PipelineError(
            f"{dataset}: {gone} of {seen} frames are refused, {gone / seen:.1%}, and "
            f"normalize.max_refused_share = {max_refused_share}: {refused_before} by ingest, then "
            f"{by_reason(refusals)}.\n"
            f"Is data.{dataset}.root right and complete, and normalize.min_foreground = "
            f"{min_foreground}, min_frames = {min_frames} what you want? If so, raise "
            "normalize.max_refused_share: what is finished is taken over."
        )
    for shard in finished:
        if shard.rows:
            _link(own / shard.name, folder / shard.name)
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
    if shards is None:
        shutil.rmtree(own)


def check_accounts(
    dataset: Dataset, sequences: pd.DataFrame, index: pd.DataFrame, refusals: pd.DataFrame
) -> None:
    """PipelineError unless frames in are frames kept + refused, in each sequence and in total."""
    accounts = pd.DataFrame(
        {
            "in": sequences.groupby(KEY)["n_frames"].sum(),
            "kept": index.groupby(KEY)["n_frames"].sum(),
            # what was refused without a key belongs to no sequence, and shows in the total
            "refused": refusals[refusals["subject"] != ""].groupby(KEY)["frames"].sum(),
        }
    ).fillna(0)
    wrong = accounts[accounts["in"] != accounts["kept"] + accounts["refused"]].astype(int)
    lines = [
        f"{'/'.join(map(str, key))}: in {row['in']}, kept {row['kept']}, refused {row['refused']}"
        for key, (_, row) in zip(wrong.index.tolist(), wrong.iterrows(), strict=True)
    ]
    frames_in, kept = int(sequences["n_frames"].sum()), int(index["n_frames"].sum())
    lost = int(refusals["frames"].sum())
    if lines or frames_in != kept + lost:
        raise PipelineError(
            f"{dataset}: frames in ({frames_in}) are not frames kept ({kept}) + refused ({lost}), "
            f"or not in each of {len(sequences)} sequences; wrong are {len(lines)}:\n"
            f"{listing(lines)}\n"
            "This is a fault of the pipeline: please report it with these lines."
        )


def release_state(root: Path, sequences: pd.DataFrame) -> str:
    """Fingerprint of name, size and time of change of every archive and folder with frames."""
    files = {_file_of(root, name) for name in sequences["container"].unique()}
    states = {}
    for path in sorted(files):
        state = path.stat()
        size = state.st_size if path.is_file() else 0
        states[path.relative_to(root).as_posix()] = (size, state.st_mtime_ns)
    return fingerprint(states)


def _by_split(rows: pd.DataFrame) -> "Counter[str]":
    return Counter(rows["split"])


def _finish_shards(
    job: Job, sequences: pd.DataFrame, workers: int, scheduler: str
) -> list[FinishedShard]:
    """Every shard of the plan, made by workers unless it is there already."""
    for left in job.shards.glob(".*"):
        left.unlink()  # of a worker that was killed while writing
    plan = plan_shards(sequences)
    on_disk = {name: _bytes_of(job.root, name) for name in plan["container"].unique()}
    write_plan(job.shards / PLAN, plan.assign(container_bytes=plan["container"].map(on_disk)))
    frames = np.bincount(plan["shard"], plan["n_frames"]).astype(int)  # of each shard
    frames_in, n_shards = int(frames.sum()), len(frames)
    tasks = []
    for task in plan_tasks(plan, may_be_split):
        there = sorted(set(task.shards).difference(_to_do(job.shards, task)))
        tasks.append(replace(task, done=int(frames[there].sum())))
    done = sum(task.done for task in tasks)
    if done:
        print(
            f"{job.dataset}: {done} of {frames_in} frames are in shards that an earlier "
            f"start has finished: they are taken from {job.shards}"
        )
    # the largest first: else the last of them would keep one worker busy long after all others
    todo = sorted((t for t in tasks if t.done < t.frames), key=lambda t: t.done - t.frames)
    work = partial(_normalize_task, job)
    label = f"{job.dataset}: normalizing"
    with Progress(label, frames_in, "frames", done) as progress:
        results = (
            cluster.map_in_order(work, todo, scheduler, progress.advance)
            if scheduler
            else map_in_order(work, todo, workers, progress.advance)
        )
        with closing(results):
            for _ in results:
                pass
    whole = [shard for n in range(n_shards) if (shard := finished_shard(job.shards, n)) is not None]
    if len(whole) < n_shards:
        raise PipelineError(
            f"{n_shards - len(whole)} of {n_shards} shards in {job.shards} are missing or torn, "
            "though they were finished: is the disk sound? Start again to make them anew."
        )
    return whole


def _to_do(shards: Path, task: Task) -> list[int]:
    """The shards of a task that are not finished.

    What lies behind a damage depends on what was read before it. So an archive found damaged by a
    worker that was killed afterwards is read again for all its shards.
    """
    finished = [shard for n in task.shards if (shard := finished_shard(shards, n)) is not None]
    if len(finished) < len(task.shards) and any(shard.damaged for shard in finished):
        return list(task.shards)
    return sorted(set(task.shards).difference(shard.number for shard in finished))


def _file_of(root: Path, container: str) -> Path:
    """The archive that a container is or lies in, or the folder that it is."""
    path = root / container
    while path != root and not path.exists():
        path = path.parent  # of a tar inside a zip, or gone
    return path


def _bytes_of(root: Path, container: str) -> int:
    """Size of the archive that a container is or lies in; 0 for a folder or where it is gone."""
    path = _file_of(root, container)
    return path.stat().st_size if path.is_file() else 0


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system knows no such thing."""
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


class RefusedFrameError(Exception):
    """A frame that cannot become a silhouette; its text is the reason."""


def decode(content: bytes, max_pixels: int = 2**26) -> Frame:
    """An encoded picture of any depth and colour as ``uint8 [H, W]`` grey levels.

    Raises RefusedFrameError for what is no picture, for more than ``max_pixels`` (past 2**26 they
    are not even decoded), and where no pixel is background.
    """
    picture = None
    try:
        if content:
            picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error as error:
        if "IMAGE_PIXELS" in str(error):
            raise RefusedFrameError("more pixels than ingest.max_pixels") from None
    if picture is None:
        raise RefusedFrameError("not a picture")
    if picture.size > max_pixels:
        raise RefusedFrameError("more pixels than ingest.max_pixels")
    if picture.min() > 0:
        raise RefusedFrameError("no background: inverted, or a silhouette in the alpha channel?")
    return np.asarray(picture, np.uint8)


class _DistrustError(Exception):
    """A container's checksum shows that something read from it is wrong, and nobody knows what."""

    def __init__(self, container: str, reason: str, not_read: int) -> None:
        super().__init__(container)
        self.container, self.reason, self.not_read = container, reason, not_read


def _normalize_task(job: Job, task: Task) -> None:
    """Make the shards of a task that are not there yet."""
    cv2.setNumThreads(1)  # the processes are the parallelism
    releases.check_root(job.dataset, job.root)
    rows = read_plan(job.shards / PLAN, task)
    todo = _to_do(job.shards, task)
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
    if (found := _bytes_of(job.root, container)) != expected:
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
        if silhouette is None:
            self.refused[position] = "too little foreground"
        else:
            self.silhouettes[position] = silhouette

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

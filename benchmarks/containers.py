"""From a release's root to the finished store, out of each container: rate, memory, growth.

python -m benchmarks containers [--quick]     (from the project's root; needs a temporary folder)

The same walkers as OUMVLP's encrypted .7z, as CASIA-E's zips of tars (JPEG there, PNG elsewhere),
as tars and as folders. Timed are `ingest` and `normalize` one after the other, with 1 and with 2
workers; files are warm in the page cache. Two workers take seconds to start, twice, and the key of
an encrypted archive is costly by intent: of a release's hours that is nothing, here it is much. So
a second row takes off what the same archives with next to no frames need. Shards are closed sooner
than the pipeline's 8 000 frames: each archive is one task.

Memory: the peak of a fresh process that normalizes one archive of many members and more bytes than
that peak. Growth: tars with the same walks of 1, 4 and 16 times as many subjects, 320 x 240.
"""

import json
import os
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, cycle, islice
from pathlib import Path
from unittest.mock import patch

import cv2
import pandas as pd
import py7zr

from benchmarks.fresh_process import CAN_MEASURE, in_fresh_process, peak_bytes
from benchmarks.timing import Row, Timing, compared, number, quiet
from benchmarks.walkers import png_frames
from pipeline import shard_plan
from pipeline.decoding import decode
from pipeline.ingestion import ingest
from pipeline.normalizing import normalize
from pipeline.releases import PASSWORD_VARIABLES
from pipeline.settings import Dataset

ARCHIVES = 8
"""Pieces of work for the two workers."""

PASSWORD = "not the owners'"
STORED_AES = ({"id": py7zr.FILTER_COPY}, {"id": py7zr.FILTER_CRYPTO_AES256_SHA256})
GROWTH = (1, 4, 16)
PADDED_BYTES = 2 * 2**20
MIB = 2**20

Archive = tuple[str, Iterator[tuple[str, bytes]]]
"""Name without suffix, and members: name and content."""


@dataclass(frozen=True)
class Container:
    name: str
    dataset: Dataset
    write: Callable[[Path, Iterable[Archive]], None]
    place: Callable[[int, int], tuple[str, list[str]]]
    """Name of the n-th archive, and the folders of its so many walks."""

    suffix: str = ".png"


def rows(quick: bool) -> list[Row]:
    """Rate and scaling, then peak memory, of each container; then time per frame by size."""
    large = png_frames(25 if quick else 120)
    small = png_frames(25 if quick else 120, small=True)
    result: list[Row] = []
    with patch.dict(os.environ, {PASSWORD_VARIABLES["oumvlp"]: PASSWORD}):
        for container in CONTAINERS:
            result += _rates(container, large, quick)
        if CAN_MEASURE:
            result += [_peak(container, large, small, quick) for container in CONTAINERS]
        return [*result, *_growth(small, quick)]


def write_release(
    root: Path, container: Container, walks: list[int], length: int, pictures: Iterable[bytes]
) -> int:
    """As many archives as there are numbers of ``walks``, of ``length`` frames each; all frames.

    ``pictures`` must not end before.
    """
    remaining = iter(pictures)

    def members(folders: list[str]) -> Iterator[tuple[str, bytes]]:
        for folder in folders:
            for frame, content in enumerate(islice(remaining, length), start=1):
                yield f"{folder}/{frame:04}{container.suffix}", content

    def archives() -> Iterator[Archive]:
        for archive, count in enumerate(walks):
            name, folders = container.place(archive, count)
            yield name, members(folders)

    root.mkdir()
    container.write(root, archives())
    return sum(walks) * length


def _rates(container: Container, pictures: list[bytes], quick: bool) -> Iterator[Row]:
    walks, length, repeats = (4, 5, 1) if quick else (50, 15, 2)
    encoded = _encoded(container, pictures)
    with tempfile.TemporaryDirectory() as temporary:
        root, start = Path(temporary) / "release", Path(temporary) / "start"
        frames = write_release(root, container, [walks] * ARCHIVES, length, cycle(encoded))
        least = write_release(start, container, [2] * ARCHIVES, 5, cycle(encoded))
        whole_s: dict[int, list[float]] = {1: [], 2: []}
        start_s: dict[int, list[float]] = {1: [], 2: []}
        _seconds(container, start, least, 1)
        for _ in range(repeats):
            for workers in (1, 2):
                start_s[workers].append(_seconds(container, start, least, workers))
                whole_s[workers].append(_seconds(container, root, frames, workers))
    bytes_each = number(statistics.mean(map(len, encoded)) / 1000)
    note = (
        f"plain is 1 worker; ingest and normalize, {frames} frames 1280 x 980 of {bytes_each} kB "
        f"({container.suffix[1:].upper()}) in {ARCHIVES} "
    )
    note += "tasks" if container.write is _write_folders else "archives"
    yield compared(
        f"root to store, 2 workers, {container.name}",
        "frames/s",
        Timing.of(whole_s[1]),
        Timing.of(whole_s[2]),
        frames,
        "",
        f"{note}; start of the processes included",
    )
    one, two = (
        Timing.of([whole - once for whole, once in zip(whole_s[n], start_s[n], strict=True)])
        for n in (1, 2)
    )
    if min(one.fastest_s, two.fastest_s) <= 0:  # as may be with --quick
        print(f"{container.name}: starting took longer than all the work; that row is left out")
        return
    starts = [number(statistics.median(start_s[workers])) for workers in (1, 2)]
    yield compared(
        f"the same beyond the start, {container.name}",
        "frames/s",
        one,
        two,
        frames - least,
        "≥ 1.85×",
        f"without what {least} of the frames take: {starts[0]} s with 1 worker, {starts[1]} s "
        "with 2",
    )


def _peak(container: Container, large: list[bytes], small: list[bytes], quick: bool) -> Row:
    """One archive, and a tiny one without which nobody could be compared with anybody."""
    length = 25
    padded, tiny = (2, 4) if quick else (12, 800)  # walks
    contents = chain(
        (
            content + bytes(PADDED_BYTES - len(content))
            for content in islice(cycle(_encoded(container, large)), padded * length)
        ),
        cycle(_encoded(container, small, scale=0.25)),
    )
    with tempfile.TemporaryDirectory() as temporary:
        root, folder = Path(temporary) / "release", Path(temporary) / "silhouettes"
        frames = write_release(root, container, [padded + tiny, 2], length, contents)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        with quiet():
            sequences, *_ = ingest(container.dataset, root, "published", workers=0)
        before, peak = in_fresh_process(
            peak_of_normalize, container.dataset, root, sequences, folder
        )
        _check_frames(folder, frames)
    return Row(
        f"peak memory of one worker, {container.name}",
        "MiB",
        None,
        peak / MIB,
        None,
        "≤ 1024 MiB",
        "1 run",
        f"VmHWM of a fresh process, {before / MIB:.0f} MiB before the first frame; "
        f"{size / MIB:.0f} MiB in {frames} frames, {padded * length} of them 1280 x 980 and padded "
        f"with zeros to {PADDED_BYTES // MIB} MiB, the rest 80 x 60",
    )


def peak_of_normalize(
    dataset: Dataset, root: Path, sequences: pd.DataFrame, folder: Path
) -> tuple[int, int]:
    """Bytes at the peak before and after; for `in_fresh_process`."""
    before = peak_bytes()
    _normalize(dataset, root, sequences, folder, workers=0)
    return before, peak_bytes()


def _growth(pictures: list[bytes], quick: bool) -> list[Row]:
    walks, length, repeats = (2, 15, 1) if quick else (10, 25, 2)
    container, archives, shard_frames = TARS, 4, walks * length
    start_s: list[float] = []
    each_s: dict[int, list[float]] = {times: [] for times in GROWTH}
    frames = {}
    with tempfile.TemporaryDirectory() as temporary:
        start = Path(temporary) / "start"
        least = write_release(start, container, [2] * archives, 5, cycle(pictures))
        roots = {times: Path(temporary) / f"{times}" for times in GROWTH}
        for times, root in roots.items():
            counts = [times * walks] * archives
            frames[times] = write_release(root, container, counts, length, cycle(pictures))
        _seconds(container, start, least, 1, shard_frames)
        for _ in range(repeats):
            start_s.append(_seconds(container, start, least, 1, shard_frames))
            for times, root in roots.items():
                each_s[times].append(_seconds(container, root, frames[times], 1, shard_frames))
    # each run without its neighbour: what every release costs once would make 1x look dear
    each_ms = {
        times: [
            1000 * (whole - once) / (frames[times] - least)
            for whole, once in zip(each_s[times], start_s, strict=True)
        ]
        for times in GROWTH
    }
    first = statistics.median(each_ms[1])
    return [
        Row(
            f"root to store, time per frame, {times}× the frames",
            "ms/frame",
            None if times == 1 else first,
            statistics.median(each_ms[times]),
            None if times == 1 else first / statistics.median(each_ms[times]),
            "" if times == 1 else "1×: flat",
            f"{number(min(each_ms[times]))} to {number(max(each_ms[times]))} ms/frame in "
            f"{repeats} runs",
            ("" if times == 1 else "plain is 1×; ")
            + f"1 worker; {frames[times]} frames 320 x 240 (PNG) in {archives} tars, "
            f"{archives * times} shards; without what {least} of the frames take: "
            f"{number(statistics.median(start_s))} s",
        )
        for times in GROWTH
    ]


def _seconds(
    container: Container, root: Path, frames: int, workers: int, shard_frames: int | None = None
) -> float:
    """How long it takes until the store is finished; shards of an archive each, or as told."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        patch.object(shard_plan, "SHARD_FRAMES", shard_frames or frames // ARCHIVES),
    ):
        folder = Path(temporary) / "silhouettes"
        started_at = time.perf_counter()
        with quiet():
            sequences, *_ = ingest(container.dataset, root, "published", workers)
        _normalize(container.dataset, root, sequences, folder, workers)
        elapsed_s = time.perf_counter() - started_at
        _check_frames(folder, frames)
    return elapsed_s


def _normalize(
    dataset: Dataset, root: Path, sequences: pd.DataFrame, folder: Path, workers: int
) -> None:
    folder.mkdir()
    with quiet():
        normalize(
            dataset, root, sequences, folder, min_foreground=10_000, min_frames=3, workers=workers
        )


def _check_frames(store: Path, expected: int) -> None:
    """That the frames timed are the frames written, but for the few that show nobody."""
    counts = json.loads((store / "counts.json").read_text(encoding="utf-8"))
    if counts["frames_in"] != expected or counts["frames_kept"] < 0.9 * expected:
        raise RuntimeError(f"{expected} frames were written, the store counts {counts}")


def _encoded(container: Container, contents: list[bytes], scale: float = 1) -> list[bytes]:
    """PNG pictures as the container has them."""
    if container.suffix == ".png" and scale == 1:
        return contents
    options = (cv2.IMWRITE_JPEG_QUALITY, 85) if container.suffix == ".jpg" else ()
    result = []
    for content in contents:
        frame = decode(content)
        scaled = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        result.append(cv2.imencode(container.suffix, scaled, options)[1].tobytes())
    return result


def _oumvlp(archive: int, walks: int) -> tuple[str, list[str]]:
    """Sequences 00 and 01 of one view after the other; each walk is another subject's."""
    name = f"Silhouette_{archive // 2 * 30:03}-{archive % 2:02}"
    return name, [f"{name}/{subject:05}" for subject in range(1, walks + 1)]


def _casia_e(archive: int, walks: int) -> tuple[str, list[str]]:
    """Subjects of the training and of the test in turn, walking in scenes 1 and 2."""
    subject = f"{archive // 2 + (615 if archive % 2 else 1):03}"
    folders = []
    for walk in range(walks):
        scene, height, view = walk % 2 + 1, "HL"[walk // 2 % 2], walk // 4 % 13 * 15
        folders.append(
            f"forTrain/{subject}/{height}/scene{scene}/nm/{view:03}/{walk // 52 + 1}",
        )
    return subject, folders


def _write_seven_zips(root: Path, archives: Iterable[Archive]) -> None:
    for name, members in archives:
        with py7zr.SevenZipFile(
            root / f"{name}.7z", "w", filters=list(STORED_AES), password=PASSWORD
        ) as archive:
            for member, content in members:
                archive.writestr(content, member)


def _write_zips_of_tars(root: Path, archives: Iterable[Archive]) -> None:
    with ExitStack() as stack:
        train, test = (
            stack.enter_context(zipfile.ZipFile(root / name, "w"))
            for name in ("train001-500.zip", "test615-1014.zip")
        )
        for subject, members in archives:
            outer = train if int(subject) <= 500 else test
            with (
                outer.open(f"{subject}.tar", "w", force_zip64=True) as file,
                tarfile.open(fileobj=file, mode="w|") as tar,
            ):
                _add(tar, members)


def _write_tars(root: Path, archives: Iterable[Archive]) -> None:
    for name, members in archives:
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            _add(tar, members)


def _add(tar: tarfile.TarFile, members: Iterable[tuple[str, bytes]]) -> None:
    for member, content in members:
        info = tarfile.TarInfo(member)
        info.size = len(content)
        tar.addfile(info, BytesIO(content))


def _write_folders(root: Path, archives: Iterable[Archive]) -> None:
    for _, members in archives:
        for member, content in members:
            path = root / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


TARS = Container("OUMVLP tars", "oumvlp", _write_tars, _oumvlp)
CONTAINERS = (
    Container("OUMVLP encrypted .7z", "oumvlp", _write_seven_zips, _oumvlp),
    Container("CASIA-E zips of tars", "casia_e", _write_zips_of_tars, _casia_e, ".jpg"),
    TARS,
    Container("OUMVLP folders", "oumvlp", _write_folders, _oumvlp),
)

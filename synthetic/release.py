"""The walkers in the owners' release formats, as archives.

Same settings, same bytes: members in a fixed order with fixed times and owners, whatever the
number of worker processes.
"""

import io
import shutil
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import cv2
import py7zr
from py7zr.helpers import ArchiveTimestamp
from tqdm import tqdm

from synthetic.render import Frame
from synthetic.settings import Settings
from synthetic.walks import (
    SEQUENCES,
    casia_e_subjects,
    missing_sequences,
    oumvlp_subjects,
    render_sequence,
)

# What takes few milliseconds to write and still shrinks well: silhouettes are long runs.
PNG_OPTIONS = (
    cv2.IMWRITE_PNG_COMPRESSION, 1,
    cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE,
)  # fmt: skip
STORED = ({"id": py7zr.FILTER_COPY},)  # PNG and JPEG do not compress
MEMBER_TIME = ArchiveTimestamp(125_911_584_000_000_000)  # 2000-01-01, in 100 ns since 1601
ZIP_TIME = (2000, 1, 1, 0, 0, 0)
TAR_TIME = 946_684_800  # the same day, in seconds since 1970
REPORT_SECONDS = 10

Item = TypeVar("Item")
Result = TypeVar("Result")


def write_oumvlp(settings: Settings, folder: Path, workers: int) -> None:
    """Write one `Silhouette_<view>-<sequence>.7z` per view and sequence into a new folder.

    Each holds `Silhouette_<view>-<sequence>/<subject>/<frame>.png`.

    Args:
        settings: who walks, and how.
        folder: where to; replaced as a whole once everything is written.
        workers: number of processes.
    """
    archives = [
        (view, sequence) for view in sorted(settings.oumvlp.views) for sequence in SEQUENCES
    ]
    with _beside(folder) as beside:
        write = partial(_write_silhouette_archive, settings, beside)
        for _ in _in_processes(write, archives, workers, "OUMVLP walkers, archives"):
            pass


def write_casia_e(settings: Settings, folder: Path, workers: int) -> None:
    """Write `train001-500.zip`, `val501-614.zip` and `test615-1014.zip` into a new folder.

    Each holds `<subject>.tar`, and each of these
    `forTrain/<subject>/<camera>/<scene>/<condition>/<view>/<number>/<frame>.jpg`.

    Args:
        settings: who walks, and how.
        folder: where to; replaced as a whole once everything is written.
        workers: number of processes.
    """
    training, validation, test = casia_e_subjects(settings)
    members = [
        *(("train001-500.zip", subject, settings.casia_e.training_takes) for subject in training),
        *(("val501-614.zip", subject, settings.casia_e.training_takes) for subject in validation),
        *(("test615-1014.zip", subject, settings.casia_e.test_takes) for subject in test),
    ]
    with _beside(folder) as beside, ExitStack() as stack:
        zips = {
            name: stack.enter_context(zipfile.ZipFile(beside / name, "w"))
            for name in dict.fromkeys(name for name, _, _ in members)
        }
        tars = _in_processes(
            partial(_subject_tar, settings), members, workers, "CASIA-E walkers, subjects"
        )
        for (name, subject, _), content in zip(members, tars, strict=True):
            member = zipfile.ZipInfo(f"{subject}.tar", ZIP_TIME)
            member.external_attr = 0o644 << 16
            member.create_system = 3  # Unix, on whatever system
            zips[name].writestr(member, content)


def _write_silhouette_archive(settings: Settings, folder: Path, archive: tuple[str, str]) -> None:
    view, sequence = archive
    name = f"Silhouette_{view}-{sequence}"
    missing = missing_sequences(settings)
    with py7zr.SevenZipFile(folder / f"{name}.7z", "w", filters=list(STORED)) as archived:
        for subject in sorted(chain(*oumvlp_subjects(settings))):
            if (subject, sequence, view) in missing:
                continue
            frames = render_sequence(settings, "oumvlp", subject, sequence, view)
            for number, frame in enumerate(frames, start=1):
                archived.writestr(
                    _encoded(".png", frame, PNG_OPTIONS), f"{name}/{subject}/{number:04d}.png"
                )
        # py7zr stamps members with the time of writing; its list of them goes to disk on closing.
        for entry in archived.files.files_list:
            entry["creationtime"] = entry["lastwritetime"] = entry["lastaccesstime"] = MEMBER_TIME


def _subject_tar(settings: Settings, member: tuple[str, str, list[str]]) -> bytes:
    _, subject, takes = member
    options = (cv2.IMWRITE_JPEG_QUALITY, settings.casia_e.jpeg_quality)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for take in takes:
            for view in settings.casia_e.views:
                camera, scene, condition, number = take.split("-")
                place = f"forTrain/{subject}/{camera}/{scene}/{condition}/{view}/{number}"
                frames = render_sequence(settings, "casia_e", subject, take, view)
                for i, frame in enumerate(frames, start=1):
                    content = _encoded(".jpg", frame, options)
                    info = tarfile.TarInfo(f"{place}/{i:04d}.jpg")  # owner 0, mode 0644
                    info.size, info.mtime = len(content), TAR_TIME
                    tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _encoded(extension: str, frame: Frame, options: tuple[int, ...]) -> bytes:
    done, content = cv2.imencode(extension, frame, options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode a {frame.shape} frame as {extension}")
    return content.tobytes()


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its name once everything in it is written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; remove it or name another folder")
    beside = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if folder.exists():
            folder.rmdir()
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, label: str
) -> Iterator[Result]:
    """Results in the order of the items, with progress on the way."""
    if workers == 1:
        yield from _with_progress(map(work, items), len(items), label)
        return
    # Spawned, not forked: forked processes inherit open archives and OpenCV's threads.
    context = get_context("spawn")
    # One thread each: the processes are as many as the cores already.
    with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
        yield from _with_progress(pool.map(work, items), len(items), label)


def _with_progress(results: Iterable[Result], total: int, label: str) -> Iterator[Result]:
    """A bar on a terminal, a line every few seconds elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(results, label, total)
        return
    started_at = reported_at = time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result
        now = time.monotonic()
        if now - reported_at >= REPORT_SECONDS or done == total:
            reported_at = now
            elapsed_s = now - started_at
            left_s = elapsed_s / done * (total - done)
            print(f"{label}: {done}/{total}, {elapsed_s:.0f} s, {left_s:.0f} s left", flush=True)

"""From 1280 x 980 PNG frames to silhouettes: against OpenGait's way, decoding alone, two workers.

python -m benchmarks normalization [--quick]     (from the project's root; needs a temporary folder)

One core: rendered walkers as PNG in memory, OpenCV held to one thread; plain, ours and decoding
alone (by OpenCV, as plain does, and by what we do) see the same bytes in turn. Workers:
`pipeline.normalizing.normalize` on a folder of such frames with 1 and with 2 workers, from the
catalogue to the finished store, start of the processes included. Shards are closed sooner than the
pipeline's 8 000 frames, so that there are tasks enough to share; OUMVLP's 28 archives are tasks
enough by themselves.
"""

import shutil
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pandas as pd

from benchmarks import plain_data
from benchmarks.timing import Row, Timing, compared, interleaved, quiet
from benchmarks.walkers import png_frames
from gaitgl.silhouettes import normalize_sequence
from pipeline import normalizing, shard_plan
from pipeline.decoding import decode
from pipeline.ingestion import ingest

SEQUENCE_FRAMES = 25
TASKS = 16
"""Pieces of work for the two workers."""


def rows(quick: bool) -> list[Row]:
    """Ours against plain, ours against decoding alone, two workers against one."""
    contents = png_frames(50 if quick else 250)
    return [*_one_core(contents, 3 if quick else 9), _workers(contents, quick)]


def _one_core(contents: list[bytes], repeats: int) -> list[Row]:
    sequences = _sequences(contents)

    def plain() -> None:
        for sequence in sequences:
            plain_data.normalize_sequence(sequence)

    def ours() -> None:
        for sequence in sequences:
            normalize_sequence(decode(content) for content in sequence)

    def decoding() -> None:
        for content in contents:
            decode(content)

    def opencv() -> None:
        for content in contents:
            plain_data.decode(content)

    works = {"plain": plain, "ours": ours, "decoding": decoding, "opencv": opencv}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        timings = interleaved(works, repeats)
    finally:
        cv2.setNumThreads(threads)
    note = f"{len(contents)} PNG of {_mean_kb(contents):.1f} kB, OpenCV {cv2.__version__}"
    return [
        compared(work, "frames/s", timings[plain], timings["ours"], len(contents), target, note)
        for work, plain, target in (
            ("normalization, one core", "plain", "≥ 1.25×"),
            ("the same, against OpenCV's decoding alone", "opencv", "≥ 0.95×"),
            ("the same, against our decoding alone", "decoding", ""),
        )
    ]


def _workers(contents: list[bytes], quick: bool) -> Row:
    frames = TASKS * SEQUENCE_FRAMES if quick else 24_000
    with tempfile.TemporaryDirectory() as temporary:
        root, folder = Path(temporary) / "release", Path(temporary) / "silhouettes"
        _write_release(root, contents, frames)
        with quiet():
            sequences, *_ = ingest("oumvlp", root, "published", workers=0)
            timings = interleaved(
                {
                    str(workers): partial(_normalize, root, sequences, folder, frames, workers)
                    for workers in (1, 2)
                },
                repeats=1 if quick else 2,
                warmups=0 if quick else 1,
            )
    return _compared_workers(timings["1"], timings["2"], frames, quick)


def _compared_workers(one: Timing, two: Timing, frames: int, quick: bool) -> Row:
    return compared(
        "normalization, 2 workers",
        "frames/s",
        one,
        two,
        frames,
        "≥ 1.85×",
        f"plain is 1 worker; the whole of `normalize` on {frames} frames in {TASKS} tasks, start "
        "of the processes included" + (", which is most of it with so few" if quick else ""),
    )


def _normalize(
    root: Path, sequences: pd.DataFrame, folder: Path, frames: int, workers: int
) -> None:
    folder.mkdir()
    with patch.object(shard_plan, "SHARD_FRAMES", frames // TASKS):
        normalizing.normalize(
            "oumvlp", root, sequences, folder, min_foreground=10_000, min_frames=5, workers=workers
        )
    shutil.rmtree(folder)


def _write_release(root: Path, contents: list[bytes], frames: int) -> None:
    """<subject>/<sequence>/090/<frame>.png, the pictures over and over; two walks a subject."""
    for number in range(frames // SEQUENCE_FRAMES):
        folder = root / f"{number // 2 + 1:05}" / f"{number % 2:02}" / "090"
        folder.mkdir(parents=True)
        for frame in range(SEQUENCE_FRAMES):
            content = contents[(number * SEQUENCE_FRAMES + frame) % len(contents)]
            (folder / f"{frame + 1:04}.png").write_bytes(content)


def _sequences(contents: list[bytes]) -> list[list[bytes]]:
    remaining = iter(contents)
    return list(iter(lambda: list(islice(remaining, SEQUENCE_FRAMES)), []))


def _mean_kb(contents: list[bytes]) -> float:
    return float(np.mean([len(content) for content in contents])) / 1000

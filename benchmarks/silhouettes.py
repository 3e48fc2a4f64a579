"""Silhouettes to time with: drawn in microseconds, and as empty, solid and compressible as real
ones (noise is neither: it would spare GeM its background and zstd its work)."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.silhouette_store import (
    HEIGHT,
    INDEX,
    WIDTH,
    SilhouetteStore,
    StoredSequence,
    compress,
    write_shard,
)
from pipeline.tables import KEY, write_table


def drawn(frames: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Somebody on two striding legs: uint8 [frames, HEIGHT, WIDTH], 0 or 255."""
    t = np.arange(frames)[:, None, None]
    row, column = np.arange(HEIGHT)[:, None], np.arange(WIDTH)
    swing = random.uniform(4, 9) * np.sin(random.uniform(0, 2 * np.pi) + 0.4 * t)
    stride = swing * np.maximum(row - 34, 0) / 30  # [frames, rows, 1]
    width = random.uniform(4, 7) * np.where(row < 12, 0.6, 1)
    middle = column - WIDTH / 2
    off = np.minimum(np.abs(middle - stride), np.abs(middle + stride))  # [frames, rows, columns]
    return np.where(off < width, 255, 0).astype(np.uint8)


def write_drawn(
    folder: Path, lengths: npt.NDArray[np.int64], subjects: int, random: np.random.Generator
) -> SilhouetteStore:
    """A store of drawn sequences with these numbers of frames, dealt out to subjects."""
    return write_store(
        folder,
        [
            compress(f"{i % subjects:05}", f"{i // subjects:02}", "000", drawn(int(length), random))
            for i, length in enumerate(lengths)
        ],
    )


def write_store(folder: Path, rows: list[StoredSequence]) -> SilhouetteStore:
    """A real store of these sequences, all of them for training, in a new folder."""
    folder.mkdir(parents=True)
    write_shard(folder / "shard-00000.arrow", rows)
    index = pd.DataFrame(
        [
            {
                "dataset": "oumvlp",
                **{name: getattr(row, name) for name in (*KEY, "n_frames", "crc32")},
                "split": "train",
                "shard": "shard-00000.arrow",
                "row": number,
            }
            for number, row in enumerate(rows)
        ]
    )
    write_table(folder / "index.parquet", index.sort_values(KEY, ignore_index=True), INDEX)
    return SilhouetteStore(folder)

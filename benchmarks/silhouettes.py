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


def write_store(
    folder: Path, lengths: npt.NDArray[np.int64], subjects: int, random: np.random.Generator
) -> SilhouetteStore:
    """A real store of training sequences with these numbers of frames, dealt out to subjects."""
    folder.mkdir(parents=True)
    rows = [
        compress(f"{i % subjects:05}", f"{i // subjects:02}", "000", drawn(int(length), random))
        for i, length in enumerate(lengths)
    ]
    rows.sort(key=lambda row: (row.subject, row.sequence, row.view))
    write_shard(folder / "drawn.arrow", rows)
    index = pd.DataFrame(
        [
            {
                "dataset": "oumvlp",
                **{name: getattr(row, name) for name in (*KEY, "n_frames", "crc32")},
                "split": "train",
                "shard": "drawn.arrow",
                "row": number,
            }
            for number, row in enumerate(rows)
        ]
    )
    write_table(folder / "index.parquet", index, INDEX)
    return SilhouetteStore(folder)

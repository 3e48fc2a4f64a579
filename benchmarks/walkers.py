"""Walkers of `synthetic/` as the data benchmarks need them, rendered on the spot."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from gaitgl.silhouettes import normalize_sequence
from pipeline.silhouette_store import INDEX, compress, write_shard
from pipeline.tables import KEY, write_table
from synthetic.settings import Settings
from synthetic.walks import render_sequence

PARAMS = Path(__file__).parent.parent / "synthetic" / "params.yaml"
OUMVLP_CAMERA = {"width": 1280, "height": 980, "focal_length": 3200.0}
"""The demo's camera, four times as sharp: bodies 700 pixels tall, in PNG about 8 kB a frame."""


def png_frames(count: int, small: bool = False) -> list[bytes]:
    """The first frames of some walks, 1280 x 980 (``small``: 320 x 240, as the demo has them).

    Encoded with OpenCV's default settings.
    """
    settings = _settings() if small else _settings(camera=OUMVLP_CAMERA)
    contents: list[bytes] = []
    for number, view in product(range(1, count + 1, 2), ("000", "030", "060", "090")):
        for frame in render_sequence(settings, "oumvlp", f"{number:05}", "00", view):
            contents.append(cv2.imencode(".png", frame)[1].tobytes())
            if len(contents) == count:
                return contents
    raise AssertionError("unreachable: every walk has a frame")


def write_store(folder: Path, subjects: int, views: list[str], most_frames: int = 24) -> None:
    """A silhouette store of rendered walks, all of them for training; ``folder`` must exist."""
    recording = {"fewest_frames": min(16, most_frames), "most_frames": most_frames}
    rows = [
        compress(*key, silhouettes)
        for key, silhouettes in _walks(_settings(recording=recording), subjects, views)
    ]
    write_shard(folder / "shard-00000.arrow", rows)
    index = pd.DataFrame(
        {
            "dataset": "oumvlp",
            "subject": [row.subject for row in rows],
            "sequence": [row.sequence for row in rows],
            "view": [row.view for row in rows],
            "split": "train",
            "n_frames": [row.n_frames for row in rows],
            "shard": "shard-00000.arrow",
            "row": range(len(rows)),
            "crc32": [row.crc32 for row in rows],
        }
    )
    write_table(folder / "index.parquet", index.sort_values(KEY, ignore_index=True), INDEX)


def _walks(
    settings: Settings, subjects: int, views: list[str]
) -> Iterator[tuple[tuple[str, str, str], NDArray[np.uint8]]]:
    """Key and silhouettes uint8 [t, 64, 44] of each walk that leaves any."""
    for number, sequence, view in product(range(subjects), ("00", "01"), views):
        key = f"{2 * number + 1:05}", sequence, view
        silhouettes, _ = normalize_sequence(render_sequence(settings, "oumvlp", *key))
        if len(silhouettes):
            yield key, silhouettes


def _settings(**changes: dict[str, Any]) -> Settings:
    """The demo's, with sections of ``oumvlp`` changed."""
    tree = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    for section, values in changes.items():
        tree["oumvlp"][section] |= values
    return Settings.model_validate(tree)

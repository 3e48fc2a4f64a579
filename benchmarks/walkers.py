"""Walkers of `synthetic/` as the data benchmarks need them, rendered on the spot."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from benchmarks.silhouettes import write_store
from gaitgl.silhouettes import normalize_sequence
from pipeline.silhouette_store import SilhouetteStore, compress
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


def write_walks(
    folder: Path, subjects: int, views: list[str], most_frames: int = 24
) -> SilhouetteStore:
    """A store of rendered walks, in a new folder."""
    recording = {"fewest_frames": min(16, most_frames), "most_frames": most_frames}
    walks = _walks(_settings(recording=recording), subjects, views)
    return write_store(folder, [compress(*key, silhouettes) for key, silhouettes in walks])


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

"""The smallest release that ingest accepts, and what tests ask of its silhouettes."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.catalogue import REFUSALS
from pipeline.ingestion import ingest
from pipeline.normalizing import normalize
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tables import KEY, read_table

Write7z = Callable[..., None]
WriteFiles = Callable[[Path, dict[str, bytes]], None]


def png(frame: npt.NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", frame)[1].tobytes())


def walker(shift: int) -> npt.NDArray[np.uint8]:
    """uint8 [100, 80]: a bright upright ellipse."""
    frame = np.zeros((100, 80), np.uint8)
    cv2.ellipse(frame, (30 + shift, 50), (12, 40), 0, 0, 360, 255, -1)
    return frame


# the least that ingest accepts: one subject to train on and one to test, four frames each
RELEASE = {
    f"{subject}/{sequence}/090/{number}.png": png(walker(number))
    for subject in ("00001", "00002")
    for sequence in ("00", "01")
    for number in range(1, 5)
}


BLACK = png(np.zeros((100, 80), np.uint8))


def run(
    root: Path,
    folder: Path,
    sequences: pd.DataFrame | None = None,
    workers: int = 0,
    max_refused_share: float = 1.0,
    shards: Path | None = None,
) -> None:
    if sequences is None:
        sequences, *_ = ingest("oumvlp", root, "published", workers=0)
    folder.mkdir()
    normalize(
        *("oumvlp", root, sequences, folder, 10_000, 3, workers),
        max_refused_share=max_refused_share,
        shards=shards,
    )


def refusals_of(folder: Path) -> pd.DataFrame:
    return read_table(folder / "refusals.parquet", REFUSALS)


SPLITS = ("train", "val", "test")


def reasons(folder: Path) -> dict[str, int]:
    """Frames refused for each reason; also checks that nothing is lost."""
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    assert counts["frames_in"] == counts["frames_kept"] + counts["frames_refused"]
    index = SilhouetteStore(folder).index
    assert counts["frames_kept"] == index["n_frames"].sum()
    assert counts["sequences_kept"] == len(index)
    by_split = counts["sequences_refused"]
    assert set(by_split) <= set(SPLITS)
    assert sum(by_split.values()) == counts["sequences_in"] - counts["sequences_kept"]
    frames = refusals_of(folder).groupby("reason")["frames"].sum()
    refused = {str(reason): int(n) for reason, n in frames.items()}
    assert counts["refused_by_reason"] == refused
    assert counts["frames_refused"] == sum(refused.values())
    return refused


def keys(folder: Path) -> list[str]:
    return ["/".join(key) for key in SilhouetteStore(folder).index[KEY].itertuples(index=False)]


def mixed(order: "list[tuple[int, int]]") -> dict[str, bytes]:
    """Members of one archive: (subject, frame) in this order."""
    return {
        f"Silhouette_090-{sequence}/{subject:05}/{frame}.png": png(walker(subject + frame))
        for sequence in ("00", "01")
        for subject, frame in order
    }


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}

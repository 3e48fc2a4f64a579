"""What the published code does with the data, written out plainly.

The baselines of normalization, the silhouette store and evaluation, and the oracles of their tests.
Where OpenGait works element by element in the interpreter, or on 64-bit floats, so does this.
"""

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Array = NDArray[Any]
Key = tuple[str, str, str]

SIZE = 64
CUT = 10
"""Columns dropped on either side of a 64 x 64 silhouette before the network."""


def decode(content: bytes) -> Frame:
    """An encoded picture in grey levels, uint8 [H, W]."""
    return np.asarray(
        cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8
    )


def normalize_frame(frame: Frame, min_foreground: int = 10_000) -> Frame | None:
    """uint8 [64, 64], or None where there is too little foreground, or no centre to it."""
    if frame.sum() <= min_foreground:
        return None
    occupied = frame.sum(axis=1) != 0
    top = int(occupied.argmax())
    bottom = int(occupied.cumsum().argmax())
    body = frame[top : bottom + 1]
    width = int(SIZE * (body.shape[1] / body.shape[0]))
    if width == 0:
        return None
    scaled = cv2.resize(body, (width, SIZE), interpolation=cv2.INTER_CUBIC)
    centre = None
    for column, so_far in enumerate(scaled.sum(axis=0).cumsum()):
        if so_far > scaled.sum() / 2:  # the whole picture anew for each column, as published
            centre = column
            break
    if centre is None:
        return None
    half = SIZE // 2
    left, right = centre - half, centre + half
    if left <= 0 or right >= width:
        border = np.zeros((SIZE, half))
        padded = np.concatenate([border, scaled, border], axis=1)  # float64 from here
        return padded[:, left + half : right + half].astype(np.uint8)
    return np.asarray(scaled[:, left:right], np.uint8).copy()


def normalize_sequence(contents: Iterable[bytes], min_foreground: int = 10_000) -> Frame:
    """Encoded frames, one at a time, to uint8 [t, 64, 64]; at least one must be usable."""
    silhouettes = []
    for content in contents:
        silhouette = normalize_frame(decode(content), min_foreground)
        if silhouette is not None:
            silhouettes.append(silhouette)
    return np.asarray(silhouettes)


def write_pickle(folder: Path, key: Key, silhouettes: Frame) -> Path:
    """One sequence uint8 [t, 64, 64] as <subject>/<sequence>/<view>/<view>.pkl."""
    path = folder.joinpath(*key) / f"{key[2]}.pkl"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        pickle.dump(silhouettes, file)
    return path


def training_batch(paths: Sequence[Path], frames: NDArray[np.int64]) -> NDArray[np.float64]:
    """Whole sequences unpickled, clips picked frame by frame, then cut and scaled, then stacked.

    Args:
        paths: n pickles of uint8 [t, 64, 64].
        frames: int [n, clip], frame numbers in each.

    Returns:
        float64 [n, clip, 64, 44] from 0 to 1.
    """
    picked = []
    for path, numbers in zip(paths, frames, strict=True):
        with path.open("rb") as file:
            silhouettes = pickle.load(file)  # noqa: S301 - the benchmark's own file, just written
        picked.append(np.asarray([silhouettes[number] for number in numbers]))
    return np.asarray([clip[..., CUT:-CUT] / 255.0 for clip in picked])


def rank_tables(
    embeddings: NDArray[np.float32],
    subjects: Array,
    sequences: Array,
    views: Array,
    ranks: Sequence[int] = (1,),
    per_strip: bool = False,
    probe_views: Sequence[str] | None = None,
) -> NDArray[np.float64]:
    """Rank-k accuracy in percent, probes "00" against gallery "01": a matrix and a sort per pair.

    Args:
        embeddings: [n, c, strips].
        subjects, sequences, views: [n].
        ranks: the k of each rank-k.
        per_strip: the mean of the strips' distances instead of the flattened vectors' distance.
        probe_views: rows of the table to compute; None: all. The others stay NaN.

    Returns:
        [ranks, probe view, gallery view], views sorted; every pair needs a probe and a gallery.
    """
    order = np.unique(views)
    table = np.full((len(ranks), len(order), len(order)), np.nan)
    for row, probe_view in enumerate(order):
        if probe_views is not None and probe_view not in probe_views:
            continue
        probes = np.isin(sequences, ["00"]) & np.isin(views, [probe_view])
        for column, gallery_view in enumerate(order):
            gallery = np.isin(sequences, ["01"]) & np.isin(views, [gallery_view])
            distances = distance_matrix(embeddings[probes], embeddings[gallery], per_strip)
            nearest = distances.sort(dim=1)[1].numpy()[:, : max(ranks)]  # [p, k]
            right = subjects[gallery][nearest] == subjects[probes][:, None]
            found = right.cumsum(axis=1) > 0
            for depth, k in enumerate(ranks):
                table[depth, row, column] = 100 * found[:, min(k, found.shape[1]) - 1].mean()
    return table


def distance_matrix(
    probes: NDArray[np.float32], gallery: NDArray[np.float32], per_strip: bool
) -> torch.Tensor:
    """Euclidean distances float32 [p, m] of [p, c, strips] and [m, c, strips]."""
    a, b = torch.from_numpy(probes), torch.from_numpy(gallery)
    if not per_strip:
        return _euclidean(a.flatten(1), b.flatten(1))
    total = torch.zeros(len(a), len(b))
    for strip in range(a.shape[2]):
        total += _euclidean(a[:, :, strip], b[:, :, strip])
    return total / a.shape[2]


def _euclidean(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    squared = (a**2).sum(1).unsqueeze(1) + (b**2).sum(1).unsqueeze(0) - 2 * torch.matmul(a, b.T)
    return torch.sqrt(torch.relu(squared))


def cross_view(
    distances: NDArray[np.float32],
    probe_subjects: Array,
    probe_views: Array,
    gallery_subjects: Array,
    gallery_views: Array,
    divide_in_numpy: bool = False,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Second protocol from given distances: all views in one gallery, a sort for each probe.

    What shares subject and view with the probe is dropped. The published code divides the number
    of hits so far by the rank in the interpreter, entry by entry.

    Args:
        distances: [p, m].
        divide_in_numpy: do that one division in NumPy, to see how much of the time it is.

    Returns:
        hit bool [p], whether the nearest entry is right, and average precision [p] (NaN where the
        gallery holds no right entry).
    """
    hit = np.zeros(len(distances), np.bool_)
    average_precision = np.full(len(distances), np.nan)
    for i, (subject, view) in enumerate(zip(probe_subjects, probe_views, strict=True)):
        kept = np.isin(gallery_views, view, invert=True)
        kept |= np.isin(gallery_subjects, subject, invert=True)
        nearest_first = np.argsort(distances[i][kept])
        right = gallery_subjects[kept][nearest_first] == subject
        hit[i] = right[0]
        if not right.any():
            continue
        so_far = right.cumsum()
        if divide_in_numpy:
            precision = so_far / np.arange(1, len(so_far) + 1)
        else:
            precision = np.asarray([count / rank for rank, count in enumerate(so_far, start=1)])
        average_precision[i] = (precision * right).sum() / right.sum()
    return hit, average_precision

"""Silhouette alignment as GaitSet does it: whole frames in, small centred silhouettes out."""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray


def normalize_frame(
    frame: NDArray[np.uint8],
    height: int = 64,
    width: int = 44,
    min_foreground: int = 10_000,
) -> NDArray[np.uint8] | None:
    """Cut a walker out of one frame, scale it to `height` rows and centre it in `width` columns.

    The rows from the first to the last that hold any foreground are resized (bicubic, aspect kept,
    width truncated to an integer). The centre is the first column at which the cumulative column
    sum exceeds half of the total; `width // 2` columns to its left and the rest to its right are
    kept, zeros where the picture ends.

    Args:
        frame: uint8 [H, W], background 0.
        height, width: size of the result, in pixels.
        min_foreground: a frame whose pixel values add up to this or less is refused.

    Returns:
        uint8 [height, width], or None for a refused frame: too little foreground, or nothing of it
        left after scaling (a frame much taller than wide, scattered dots).

    Raises:
        ValueError: the frame is not a uint8 array with two dimensions.
    """
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 2:
        found = (
            f"{frame.dtype} array of shape {frame.shape}"
            if isinstance(frame, np.ndarray)
            else type(frame).__name__
        )
        raise ValueError(f"expected a uint8 frame of shape [H, W], got {found}; convert it to grey")
    if frame.size == 0:
        return None
    # One pass over the pixels: the row sums give the total and the rows that hold foreground.
    row_sums = cv2.reduce(frame, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[:, 0]  # [H]
    if int(row_sums.sum(dtype=np.int64)) <= min_foreground:
        return None
    rows = np.flatnonzero(row_sums)
    body = frame[rows[0] : rows[-1] + 1]  # [h, W]

    # Parenthesized as in the published code: 64 * (W / h) and 64 * W / h may truncate differently.
    scaled_width = int(height * (body.shape[1] / body.shape[0]))
    if scaled_width == 0:
        return None
    scaled = cv2.resize(body, (scaled_width, height), interpolation=cv2.INTER_CUBIC)

    column_sums = scaled.sum(axis=0, dtype=np.int64).cumsum()  # [scaled_width]
    if column_sums[-1] == 0:
        return None
    centre = int(np.searchsorted(2 * column_sums, column_sums[-1], side="right"))
    left = centre - width // 2
    silhouette = np.zeros((height, width), np.uint8)
    first, last = max(left, 0), min(left + width, scaled_width)
    silhouette[:, first - left : last - left] = scaled[:, first:last]
    return silhouette


def normalize_sequence(
    frames: Iterable[NDArray[np.uint8]],
    height: int = 64,
    width: int = 44,
    min_foreground: int = 10_000,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Normalize the frames of one sequence in their order; see `normalize_frame`.

    Args:
        frames: k frames, uint8 [H, W] each; sizes may differ. Consumed one at a time.

    Returns:
        silhouettes uint8 [t, height, width] of the t frames that were kept (t may be 0), and
        kept bool [k].
    """
    normalized = [normalize_frame(frame, height, width, min_foreground) for frame in frames]
    kept = np.array([silhouette is not None for silhouette in normalized], dtype=np.bool_)
    silhouettes = [silhouette for silhouette in normalized if silhouette is not None]
    if not silhouettes:
        return np.zeros((0, height, width), np.uint8), kept
    return np.stack(silhouettes), kept

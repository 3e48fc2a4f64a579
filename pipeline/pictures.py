"""PNG bytes of figures and of silhouettes; the same data gives the same bytes."""

import io

import cv2
import numpy as np
from matplotlib.figure import Figure

from pipeline.silhouette_store import Silhouettes

DPI = 192
"""Twice what a page shows, so that pictures stay sharp on paper and on phones."""


def evenly(silhouettes: Silhouettes, count: int) -> Silhouettes:
    """At most ``count`` of the frames ``uint8 [t, h, w]``, evenly spread from first to last."""
    apart = np.linspace(0, len(silhouettes) - 1, min(count, len(silhouettes)))
    frames: Silhouettes = silhouettes[apart.round().astype(int)]
    return frames


def strip(silhouettes: Silhouettes, gap: int = 2) -> bytes:
    """Frames ``uint8 [t, h, w]`` side by side, ``gap`` grey pixels between them."""
    between = np.full((len(silhouettes), silhouettes.shape[1], gap), 128, np.uint8)
    joined = np.concatenate([silhouettes, between], axis=2)  # [t, h, w + gap]
    row = joined.transpose(1, 0, 2).reshape(silhouettes.shape[1], -1)[:, :-gap]
    return cv2.imencode(".png", row)[1].tobytes()


def png_of(figure: Figure) -> bytes:
    """A figure at ``DPI`` dots an inch."""
    buffer = io.BytesIO()
    # without matplotlib's version in the file, bytes depend on the data alone
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()

"""Embeddings of whole sequences: every sequence of a batch is equally long."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from gaitgl.model import GaitGL
from pipeline.devices import autocast, place
from pipeline.embedding_file import Embeddings
from pipeline.errors import PipelineError
from pipeline.progress import Progress
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tables import KEY

FRAMES_PER_BATCH = {"cpu": 480, "cuda": 8_000}
"""At most this many frames in one batch: it bounds the memory that activations take."""


def embed(
    model: GaitGL,
    store: SilhouetteStore,
    numbers: npt.NDArray[np.int64],
    precision: str,
    device: torch.device,
) -> Embeddings:
    """Embeddings ``float32 [n, c, strips]`` of the store's sequences ``numbers`` [n], whole.

    Sequences of exactly equal length share a batch, so nothing is padded or cut, and each result
    equals that of the sequence alone.
    """
    model = place(model, device).eval()
    lengths = store.index["n_frames"].to_numpy()[numbers]
    embeddings: Embeddings | None = None
    limit = FRAMES_PER_BATCH[device.type]
    context = autocast(device, precision)
    with Progress("embedding", len(numbers), "sequences") as progress, torch.inference_mode():
        for rows in _equal_lengths(lengths, limit):
            frames = np.stack([store.read(int(number)) for number in numbers[rows]])
            silhouettes = torch.from_numpy(frames)[:, None]  # [n, 1, t, h, w]
            with context:
                out = model(silhouettes.to(device).float() / 255).float().cpu().numpy()
            if embeddings is None:
                embeddings = np.empty((len(numbers), *out.shape[1:]), np.float32)
            embeddings[rows] = out
            progress.advance(len(rows))
    if embeddings is None:
        raise PipelineError(f"{store.folder}: no sequence to embed")
    if not np.isfinite(embeddings).all():
        bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=(1, 2)))
        raise PipelineError(
            f"{len(bad)} of {len(numbers)} embeddings are not finite, the first that of "
            f"{store.index.loc[numbers[bad[0]], KEY].tolist()}: the checkpoint is spoilt. Lower "
            "the learning rate, or set precision to float32, and train anew."
        )
    return embeddings


def _equal_lengths(lengths: npt.NDArray[np.int64], limit: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows in groups of one length, at most ``limit`` frames (and at least one row) a group."""
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        size = max(1, limit // int(length))
        for first in range(0, len(rows), size):
            yield rows[first : first + size]

"""Embeddings of whole sequences: every sequence of a batch is equally long."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gaitgl.model import GaitGL
from pipeline.devices import autocast, place
from pipeline.distributed import ALONE, World
from pipeline.embedding_file import Embeddings
from pipeline.errors import PipelineError
from pipeline.memory import is_exhausted
from pipeline.prefetching import prepared
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
    world: World = ALONE,
    shown: bool = True,
) -> Embeddings:
    """Embeddings ``float32 [n, c, strips]`` of the store's sequences ``numbers`` [n], whole.

    Sequences of exactly equal length share a batch, so nothing is padded or cut, and each result
    equals that of the sequence alone; a batch that does not fit into memory is divided. Several
    processes take the batches in turn; the first one returns all embeddings, the others none.
    """
    model = place(model, device).eval()
    lengths = store.index["n_frames"].to_numpy()[numbers]
    batches = list(_equal_lengths(lengths, FRAMES_PER_BATCH[device.type]))
    if not batches:
        raise PipelineError(f"{store.folder}: no sequence to embed")
    context = autocast(device, precision)

    def read(rows: npt.NDArray[np.int64]) -> Tensor:
        columns = np.stack([sequence.mT for sequence in store.read_all(numbers[rows].tolist())])
        silhouettes = torch.from_numpy(columns).mT[:, None]  # [n, 1, t, h, w]
        return silhouettes.pin_memory() if device.type == "cuda" else silhouettes

    def embedded(silhouettes: Tensor) -> Tensor:
        try:
            with context:
                out: Tensor = model(silhouettes.to(device, non_blocking=True).float() / 255)
                return out.float().cpu()  # [n, c, strips]
        except RuntimeError as error:
            if not is_exhausted(error):
                raise
            n, _, t = silhouettes.shape[:3]
            if n == 1:
                instead = ", or set runtime.device to cpu" if device.type == "cuda" else ""
                raise PipelineError(
                    f"out of memory while embedding a sequence of {t} frames at widths "
                    f"{list(model.config.channels)}: free the device of other work{instead}"
                ) from None
        # here, where the error holds no tensor of the batch any more
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return torch.cat([embedded(half) for half in silhouettes.chunk(2)])

    embeddings: Embeddings | None = None
    own_batches = prepared(read, batches[world.rank :: world.size], threads=1)
    with (
        Progress("embedding", len(numbers), "sequences", shown=shown and world.leads) as progress,
        torch.inference_mode(),
    ):
        for first in range(0, len(batches), world.size):
            turn = batches[first : first + world.size]
            if world.rank >= len(turn):
                break
            own = embedded(next(own_batches))
            if not world.leads:
                world.send(own)
                continue
            if embeddings is None:
                embeddings = np.empty((len(numbers), *own.shape[1:]), np.float32)
            for rank, rows in enumerate(turn):
                if rank > 0:
                    own = world.receive(own.new_empty(len(rows), *own.shape[1:]), rank)
                embeddings[rows] = own.numpy()
                progress.advance(len(rows))
    if embeddings is None:
        return np.empty((0, 0, 0), np.float32)
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

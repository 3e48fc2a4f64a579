"""Training batches from the silhouette store, prepared ahead in the background."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gaitgl.sampling import PKSampler
from pipeline.distributed import ALONE, World
from pipeline.held_out import held_out
from pipeline.prefetching import prepared
from pipeline.silhouette_store import HEIGHT, WIDTH, SilhouetteStore
from pipeline.tables import KEY

READ_AT_ONCE = 32
"""Sequences that are decompressed in one call, whole: it bounds the memory that they take."""

MOST_THREADS = 8
"""More are of no use to a GPU: one makes 20 batches of 32 x 8 x 30 a second, or more. And each has
two batches in memory, which for a GPU stays taken."""


class TrainingBatch(NamedTuple):
    """What one process needs of a batch, in host memory."""

    silhouettes: Tensor
    """uint8 [n / processes, 1, t, h, w]: the share of this process; a view of [..., w, h]."""

    labels: Tensor
    """int64 [n]: the subjects of the whole batch."""


class TrainingBatches:
    """The batches of a dataset's training split; batch number ``step`` is always the same one.

    Raises ValueError (from PKSampler) where the split is too small for P or holds no triplet.
    """

    def __init__(
        self,
        store: SilhouetteStore,
        subjects_per_batch: int,
        sequences_per_subject: int,
        clip_frames: int,
        seed: int,
        validation_subjects: int = 0,
        world: World = ALONE,
        pinned: bool = False,
    ) -> None:
        """``pinned`` batches lie where a GPU can fetch them by itself."""
        self._store = store
        self._world = world
        self._pinned = pinned
        kept_out = store.index["subject"].isin(held_out(store.index, validation_subjects))
        self._numbers = np.flatnonzero((store.index["split"] == "train") & ~kept_out)
        rows = store.index.iloc[self._numbers]
        self._labels = pd.factorize(rows["subject"], sort=True)[0]
        self._sampler = PKSampler(
            self._labels,
            rows["n_frames"].to_numpy(),
            subjects_per_batch,
            sequences_per_subject,
            clip_frames,
            seed,
        )

    def batch(self, step: int) -> TrainingBatch:
        """Read, decompress and cut the clips of one step that are this process' share."""
        chosen, frames = self._sampler.batch(step)
        share = self._world.share(len(chosen))
        numbers, frames = self._numbers[chosen[share]], frames[share]
        n, t = frames.shape
        shape = (n, t, WIDTH, HEIGHT)  # pixels in the store's order
        if self._pinned:
            clips = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        else:  # NumPy asks for huge pages: a batch costs a dozen page faults instead of thousands
            clips = torch.from_numpy(np.empty(shape, np.uint8))
        into = clips.numpy()
        for first in range(0, n, READ_AT_ONCE):
            part = slice(first, first + READ_AT_ONCE)
            sequences = self._store.read_all(numbers[part].tolist())
            for sequence, frame, clip in zip(sequences, frames[part], into[part], strict=True):
                # "clip" writes to `out` at once, "raise" by way of a copy; all are within bounds
                sequence.mT.take(frame, 0, out=clip, mode="clip")
        silhouettes = clips.mT[:, None]  # [n, 1, t, h, w]
        return TrainingBatch(silhouettes, torch.from_numpy(self._labels[chosen]))

    def sequences(self, step: int) -> pd.DataFrame:
        """Keys of the sequences in the whole batch of a step, and the first frame of each clip."""
        chosen, frames = self._sampler.batch(step)
        keys = self._store.index.loc[self._numbers[chosen], ["dataset", *KEY]]
        return keys.reset_index(drop=True).assign(first_frame=frames[:, 0])

    def ahead(self, first: int, last: int, threads: int) -> Iterator[TrainingBatch]:
        """Batches of the steps from ``first`` to ``last``, prepared by threads in the background.

        They are the same for any number of threads; 0 prepares each when it is asked for.
        """
        return prepared(self.batch, range(first, last + 1), min(threads, MOST_THREADS))

"""Training batches from the silhouette store, prepared ahead in the background."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gaitgl.sampling import PKSampler
from pipeline.processes import worker_count
from pipeline.silhouette_store import HEIGHT, WIDTH, SilhouetteStore


class TrainingBatch(NamedTuple):
    """uint8 [n, 1, t, h, w] and the subjects' labels int64 [n], in host memory."""

    silhouettes: Tensor
    labels: Tensor


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
    ) -> None:
        self._store = store
        self._numbers = np.flatnonzero(store.index["split"] == "train")
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
        """Read, decompress and cut the clips of one step."""
        chosen, frames = self._sampler.batch(step)
        n, t = frames.shape
        silhouettes = np.empty((n, 1, t, HEIGHT, WIDTH), np.uint8)
        for i, number in enumerate(self._numbers[chosen]):
            np.take(self._store.read(int(number)), frames[i], axis=0, out=silhouettes[i, 0])
        return TrainingBatch(torch.from_numpy(silhouettes), torch.from_numpy(self._labels[chosen]))

    def ahead(self, first: int, last: int, workers: int) -> Iterator[TrainingBatch]:
        """Batches of the steps from ``first`` to ``last``, prepared by ``workers`` threads.

        Decompression leaves the interpreter free, so threads suffice; 0 prepares each when asked.
        """
        workers = worker_count(workers)
        if workers == 0:
            yield from map(self.batch, range(first, last + 1))
            return
        with ThreadPoolExecutor(workers, thread_name_prefix="batches") as pool:
            waiting: deque[Future[TrainingBatch]] = deque()
            try:
                for step in range(first, last + 1):
                    waiting.append(pool.submit(self.batch, step))
                    if len(waiting) > 2 * workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

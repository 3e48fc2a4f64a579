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
from pipeline.distributed import ALONE, World
from pipeline.processes import worker_count
from pipeline.silhouette_store import HEIGHT, WIDTH, SilhouetteStore
from pipeline.tables import KEY


class TrainingBatch(NamedTuple):
    """What one process needs of a batch, in host memory."""

    silhouettes: Tensor
    """uint8 [n / processes, 1, t, h, w]: the share of this process."""

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
    ) -> None:
        self._store = store
        self._world = world
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
        silhouettes = np.empty((n, 1, t, HEIGHT, WIDTH), np.uint8)
        for i, number in enumerate(numbers):
            np.take(self._store.read(int(number)), frames[i], axis=0, out=silhouettes[i, 0])
        return TrainingBatch(torch.from_numpy(silhouettes), torch.from_numpy(self._labels[chosen]))

    def sequences(self, step: int) -> pd.DataFrame:
        """Keys of the sequences in the whole batch of a step, and the first frame of each clip."""
        chosen, frames = self._sampler.batch(step)
        keys = self._store.index.loc[self._numbers[chosen], ["dataset", *KEY]]
        return keys.reset_index(drop=True).assign(first_frame=frames[:, 0])

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


def held_out(index: pd.DataFrame, subjects: int) -> list[str]:
    """Subjects to validate on instead of training on them; ``index`` is the store's.

    First the ones of the dataset's own ``val`` split; where they are too few, training subjects,
    spread evenly over the sorted ids.
    """
    own, training = (
        sorted(set(index.loc[index["split"] == split, "subject"])) for split in ("val", "train")
    )
    more = min(max(0, subjects - len(own)), len(training))
    spread = np.linspace(0, len(training) - 1, more).round().astype(int)
    return own[:subjects] + [training[i] for i in spread]

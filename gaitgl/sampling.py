"""Training batches (Section 1.6): P subjects times K sequences, a clip of each."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Batch(NamedTuple):
    """What to load for one training step.

    `sequences` int64 [P * K]: row numbers of the sampler's `subjects`, K in a row for each subject.
    `frames` int64 [P * K, clip_frames]: frame numbers inside each of those sequences.
    """

    sequences: NDArray[np.int64]
    frames: NDArray[np.int64]


class PKSampler:
    """Draws P x K batches; batch number `step` depends on the arguments and on `step` alone.

    There is no state to save: resuming at a step, or preparing steps ahead in any number of
    workers, gives the same batches.

    Corner cases:
        - A subject with n < K sequences: each of them floor(K / n) times, the remainder drawn
          without replacement, so that counts differ by at most one.
        - A subject with one sequence: K clips of that sequence (with random starts if it is longer
          than the clip).
        - A sequence shorter than the clip: all its frames from the first, looping.
        - A sequence as long as the clip: all its frames, once.
        - Fewer than P subjects, P < 2 (no negatives), K < 2 (no positives), a sequence without a
          frame: ValueError.

    Args:
        subjects: [n], the subject's label of each sequence; strings or integers.
        frames: int [n], the number of frames of each sequence.
        subjects_per_batch: P.
        sequences_per_subject: K.
        clip_frames: frames taken from each sequence.
        seed: a non-negative integer.
    """

    def __init__(
        self,
        subjects: ArrayLike,
        frames: ArrayLike,
        subjects_per_batch: int,
        sequences_per_subject: int,
        clip_frames: int,
        seed: int,
    ) -> None:
        labels = np.asarray(subjects)
        lengths = np.asarray(frames)
        if labels.ndim != 1 or labels.shape != lengths.shape:
            raise ValueError(
                "expected one subject and one frame count per sequence, got shapes "
                f"{labels.shape} and {lengths.shape}"
            )
        if subjects_per_batch < 2 or sequences_per_subject < 2:
            raise ValueError(
                f"a batch of {subjects_per_batch} subjects x {sequences_per_subject} sequences "
                "holds no triplet; both must be at least 2"
            )
        if clip_frames < 1:
            raise ValueError(f"clip_frames is {clip_frames}; it must be at least 1")
        empty = np.flatnonzero(lengths < 1)
        if empty.size:
            raise ValueError(
                f"{empty.size} of {lengths.size} sequences have no frame (the first: row "
                f"{empty[0]}); leave them out before sampling"
            )
        _, subject_of_row, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if counts.size < subjects_per_batch:
            remedy = f"; lower subjects_per_batch to at most {counts.size}"
            raise ValueError(
                f"a batch needs {subjects_per_batch} subjects, but the training set has "
                f"{counts.size}{remedy if counts.size >= 2 else ', and a triplet needs 2'}"
            )
        self._subjects_per_batch = subjects_per_batch
        self._sequences_per_subject = sequences_per_subject
        self._clip_frames = clip_frames
        self._seed = seed
        self._lengths = lengths.astype(np.int64)
        self._counts = counts.astype(np.int64)  # sequences of each subject
        self._rows = np.argsort(subject_of_row, kind="stable")  # rows, grouped by subject
        self._starts = np.cumsum(counts) - counts  # where each subject's group starts in _rows

    def batch(self, step: int) -> Batch:
        """Return the batch of training step `step` (>= 0)."""
        # Philox, because a fresh stream costs it next to nothing.
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, step])))
        chosen = random.choice(self._counts.size, self._subjects_per_batch, replace=False)  # [P]
        counts = self._counts[chosen, None]  # [P, 1]

        # A random order of each chosen subject's sequences; slots past its last sort to the end.
        # Walking it cyclically gives K distinct ones, or floor(K / n) of each and the remainder.
        keys = random.random((self._subjects_per_batch, int(counts.max())))
        keys[np.arange(keys.shape[1]) >= counts] = np.inf
        order = keys.argsort(axis=1, kind="stable")  # [P, most sequences]
        turn = np.arange(self._sequences_per_subject) % counts  # [P, K]
        member = np.take_along_axis(order, turn, axis=1)  # [P, K]
        sequences = self._rows[self._starts[chosen, None] + member].reshape(-1)  # [P * K]

        lengths = self._lengths[sequences]
        start = random.integers(0, np.maximum(lengths - self._clip_frames, 0) + 1)  # [P * K]
        clip = start[:, None] + np.arange(self._clip_frames)
        return Batch(sequences.astype(np.int64), clip % lengths[:, None])

"""Embeddings of made-up subjects, for tests of what is computed from them."""

import numpy as np
import numpy.typing as npt
import pandas as pd

VIEWS = ("000", "090", "180")


def walks(
    sequences: tuple[str, ...],
    subjects: int = 12,
    noise: float = 0.8,
    views: tuple[str, ...] = VIEWS,
    seed: int = 0,
) -> tuple[pd.DataFrame, npt.NDArray[np.float32]]:
    """Every subject at every view; embeddings [n, 3, 4] are the subject's own plus noise."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((subjects, 3, 4))
    rows, embeddings = [], []
    for subject in range(subjects):
        for sequence in sequences:
            for view in views:
                rows.append(("oumvlp", f"{2 * subject + 2:05}", sequence, view))
                embeddings.append(own[subject] + noise * rng.standard_normal((3, 4)))
    keys = pd.DataFrame(rows, columns=["dataset", "subject", "sequence", "view"])
    return keys, np.array(embeddings, np.float32)

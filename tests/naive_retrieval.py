"""Small rows of embeddings, and how far apart they are by definition. For tests of retrieval."""

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[Any]
Rows = tuple[Array, Array, Array, Array]
"""Embeddings [n, c, strips], subjects, sequences and views [n]."""


def naive_distance(a: Array, b: Array, distance: str) -> float:
    """a, b: [c, strips]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if distance == "strip_euclidean":
        return float(np.mean([np.linalg.norm(a[:, s] - b[:, s]) for s in range(a.shape[1])]))
    if distance == "cosine":
        return float(1 - (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    return float(np.linalg.norm(a - b))


@st.composite
def small_rows(draw: st.DrawFn) -> Rows:
    """Subjects, views and sequences unevenly spread; whole-numbered embeddings with many ties.

    Every row has a mirror image, so that the gallery's mean is 0 and all distances are exact. Views
    may miss from the gallery, the gallery may be two entries, all rows may be one subject, and all
    embeddings may be alike.
    """
    n = draw(st.integers(2, 12))
    names = ["00", "01", "02"] if draw(st.booleans()) else ["00"]
    sequences = np.array(draw(st.lists(st.sampled_from(names), min_size=n, max_size=n)))
    sequences[:2] = ["00", "01"]
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    embeddings = random.integers(0, draw(st.integers(1, 3)), (n, 1, 2)).astype(np.float32)
    return (
        np.concatenate([embeddings, -embeddings]),
        random.choice(["anna", "berta", "carla"][: draw(st.integers(1, 3))], 2 * n),
        np.tile(sequences, 2),
        random.choice(["000", "045", "090"], 2 * n),
    )

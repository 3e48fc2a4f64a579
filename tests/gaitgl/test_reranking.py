from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaitgl.reranking import reranked_blocks
from gaitgl.retrieval import (
    CrossViewPass,
    compared_pairs,
    cross_view_gallery,
    right_and_wrong,
)
from tests.naive_retrieval import Array, naive_distance


def naive_reranking(
    embeddings: Array, probes: int, distance: str, k1: int, k2: int, share: float
) -> Array:
    """The paper's definition with dense n x n matrices; the first ``probes`` rows are probes."""
    n = len(embeddings)
    squared = np.array(
        [[naive_distance(a, b, distance) ** 2 for b in embeddings] for a in embeddings]
    )
    if distance == "cosine":
        squared = 2 * np.sqrt(squared)
    d = squared / np.where(squared.max(axis=1) > 0, squared.max(axis=1), 1)[:, None]
    # each row itself first, then by distance, then by number
    order = [sorted(range(n), key=lambda j: (j != i, round(squared[i, j], 9), j)) for i in range(n)]

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    half = int(np.around(k1 / 2))
    v = np.zeros((n, n))
    for i in range(n):
        close = reciprocal(i, k1)
        expanded = set(close)
        for j in close:
            if len(reciprocal(j, half) & close) > 2 / 3 * len(reciprocal(j, half)):
                expanded |= reciprocal(j, half)
        for j in expanded:
            v[i, j] = np.exp(-d[i, j])
        v[i] /= v[i].sum()
    averaged = np.array([v[order[i][:k2]].mean(axis=0) for i in range(n)])
    jaccard = np.array(
        [[1 - np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in averaged] for a in averaged]
    )
    return ((1 - share) * jaccard + share * d)[:probes, probes:]


def matrix(*arguments: Any, **options: Any) -> Array:
    return np.concatenate([distances for _, distances in reranked_blocks(*arguments, **options)])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(2, 25),
    k1=st.integers(1, 8),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    distance=st.sampled_from(["euclidean", "strip_euclidean", "cosine"]),
    block_bytes=st.sampled_from([1, 300, 2**20]),
    data=st.data(),
)
def test_equals_the_dense_definition(
    seed: int, n: int, k1: int, share: float, distance: Any, block_bytes: int, data: st.DataObject
) -> None:
    probes, k2 = data.draw(st.integers(1, n - 1)), data.draw(st.integers(1, k1))
    embeddings = np.random.default_rng(seed).normal(size=(n, 3, 2)).astype(np.float32)
    found = matrix(
        embeddings,
        np.arange(probes),
        np.arange(probes, n),
        distance,
        block_bytes,
        k1=k1,
        k2=k2,
        original_share=share,
    )
    expected = naive_reranking(embeddings, probes, distance, k1, k2, share)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_ties_are_resolved_by_the_order_of_the_rows() -> None:
    """Whole numbers, each several times, and each with its mirror image: distances are exact."""
    half = np.random.default_rng(0).integers(0, 3, (12, 1, 2)).astype(np.float32)
    embeddings = np.concatenate([half, -half])
    found = matrix(
        embeddings, np.arange(5), np.arange(5, 24), "euclidean", 200, k1=4, k2=2, original_share=0.3
    )
    expected = naive_reranking(embeddings, 5, "euclidean", 4, 2, 0.3)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_embeddings_that_are_all_alike_are_no_error() -> None:
    found = matrix(np.ones((6, 2, 2), np.float32), np.arange(2), np.arange(2, 6), "euclidean")
    assert found.shape == (2, 4)
    assert np.isfinite(found).all()


def test_passes_take_reranked_blocks_and_find_more(
    fixture_arrays: Callable[[str], dict[str, Array]],
) -> None:
    """A subject's sequences are neighbours of each other across views."""
    rows = fixture_arrays("evaluation")
    ids = rows["f"], rows["subject"], rows["sequence"], rows["view"]
    pairs = compared_pairs(*ids)
    cross = CrossViewPass(pairs)
    blocks = reranked_blocks(rows["f"], pairs.probes, pairs.gallery, "euclidean")
    for block in right_and_wrong(pairs, blocks):
        cross.add(block)
    plain, reranked = cross_view_gallery(*ids), cross.result()
    assert np.array_equal(reranked.probes, plain.probes)
    gain = np.nanmean(reranked.average_precision) - np.nanmean(plain.average_precision)
    assert gain > 0.1


def test_the_first_pass_reports_its_progress() -> None:
    embeddings = np.random.default_rng(0).normal(size=(10, 2, 2)).astype(np.float32)
    seen: list[int] = []
    list(
        reranked_blocks(
            embeddings,
            np.arange(4),
            np.arange(4, 10),
            "euclidean",
            block_bytes=4 * 10 * 4,
            on_block=seen.append,
        )
    )
    assert seen == [4, 4, 2]


@pytest.mark.parametrize(
    "options", [{"k1": 0, "k2": 0}, {"k2": 0}, {"k1": 3, "k2": 4}, {"original_share": 1.1}]
)
def test_impossible_settings_are_refused_before_the_first_block(options: dict[str, Any]) -> None:
    embeddings = np.zeros((4, 1, 1), np.float32)
    with pytest.raises(ValueError, match="expected 1 <= k2 <= k1 and an original share"):
        next(reranked_blocks(embeddings, np.arange(2), np.arange(2, 4), "euclidean", **options))

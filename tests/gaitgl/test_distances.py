from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaitgl import distances as module
from gaitgl.distances import distance_blocks, pair_distances
from tests.naive_retrieval import Array, naive_distance

DISTANCES = ["euclidean", "strip_euclidean", "cosine"]


@pytest.fixture
def embeddings() -> Array:
    """[9, 4, 5], far from 0."""
    return 3 + np.random.default_rng(0).normal(size=(9, 4, 5)).astype(np.float32)


def matrix(*arguments: Any, **options: Any) -> Array:
    return np.concatenate([distances for _, distances in distance_blocks(*arguments, **options)])


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e14])
def test_the_length_of_a_vector_is_nothing_to_its_cosine(scale: float) -> None:
    rows = np.float32(scale) * np.array([[1, 0], [3, 0], [0, 1], [0, 0]], np.float32)[:, :, None]
    found = matrix(rows, np.array([0]), np.arange(4), "cosine")
    np.testing.assert_allclose(found, [[0, 0, np.sqrt(2), 1]], atol=1e-3)


def by_definition(embeddings: Array, probes: Array, gallery: Array, distance: str) -> Array:
    found = np.array(
        [[naive_distance(embeddings[p], embeddings[g], distance) for g in gallery] for p in probes]
    )
    return np.sqrt(2 * found.clip(min=0)) if distance == "cosine" else found


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_equal_their_definitions(embeddings: Array, distance: Any) -> None:
    probes, gallery = np.array([0, 2, 8]), np.array([1, 3, 4, 5, 6, 7])
    blocks = list(distance_blocks(embeddings, probes, gallery, distance, block_bytes=160))
    assert [rows for rows, _ in blocks] == [slice(0, 2), slice(2, 3)]
    found = np.concatenate([distances for _, distances in blocks])
    expected = by_definition(embeddings, probes, gallery, distance)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_blocks_are_bounded_by_the_gallery_or_by_the_probes(embeddings: Array) -> None:
    """20 numbers a row: a long gallery makes blocks of few probes, a short one does not of many."""
    for repeats, expected in ((1, [3, 3, 3]), (10, [1] * 9)):
        gallery = np.tile(np.arange(4), repeats)
        blocks = distance_blocks(embeddings, np.arange(9), gallery, "euclidean", 3 * 20 * 4)
        assert [len(distances) for _, distances in blocks] == expected


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_gallery_in_pieces_changes_nothing(
    embeddings: Array, distance: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TILE", rows)
    monkeypatch.setattr(module, "COPIED_BYTES", rows * 20 * 4)
    probes, gallery = np.array([0, 2, 8, 5, 1]), np.array([3, 4, 6, 7])
    expected = by_definition(embeddings, probes, gallery, distance)
    for given in (embeddings, torch.from_numpy(embeddings)):
        np.testing.assert_allclose(matrix(given, probes, gallery, distance), expected, rtol=1e-5)
    embeddings[6] = np.nan
    with pytest.raises(ValueError, match="1 of the 4 rows"):
        matrix(embeddings, probes, gallery, distance)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_memory_map_will_do(embeddings: Array, distance: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", embeddings)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    probes, gallery = np.array([0, 2]), np.array([8, 3, 1])
    found = matrix(mapped, probes, gallery, distance)
    assert np.array_equal(found, matrix(embeddings, probes, gallery, distance))


@pytest.mark.parametrize("distance", DISTANCES)
def test_pairs_are_as_far_apart_as_by_definition(embeddings: Array, distance: Any) -> None:
    first, second = np.array([0, 2, 8, 8, 1]), np.array([1, 2, 0, 8, 0])
    expected = np.diag(by_definition(embeddings, first, second, distance))
    for block_bytes in (1, 400, 2**20):
        for given in (embeddings, torch.from_numpy(embeddings)):
            found = pair_distances(given, first, second, distance, block_bytes)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_bad_rows_are_counted_and_the_first_is_named(embeddings: Array) -> None:
    for bad in (np.nan, np.inf, -1e25):  # whose square float32 does not know
        embeddings[4] = bad
        with pytest.raises(ValueError, match=r"1 of the 2 rows .* 1e\+15 \(first: row 4\)"):
            pair_distances(embeddings, np.array([4, 0]), np.array([1, 1]), "euclidean")
    embeddings[4], embeddings[5] = 1e15, -1e15
    assert np.isfinite(matrix(embeddings, np.arange(9), np.arange(9), "euclidean")).all()
    with pytest.raises(ValueError, match="expected one of"):
        pair_distances(embeddings, np.array([0]), np.array([1]), "manhattan")  # type: ignore[arg-type]

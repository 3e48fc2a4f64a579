from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gaitgl.distances import distance_blocks
from gaitgl.retrieval import (
    cross_view_gallery,
    cross_view_table,
    first_match_rank,
    mean_per_probe_view,
    mean_without_diagonal,
    rank_by_view,
    rank_table,
    view_order,
)

Array = NDArray[Any]
Load = Callable[[str], dict[str, Array]]
Rows = tuple[Array, Array, Array, Array]


@pytest.fixture
def published(fixture_arrays: Load) -> dict[str, Array]:
    return fixture_arrays("evaluation")


@pytest.fixture
def rows(published: dict[str, Array]) -> Rows:
    return published["f"], published["subject"], published["sequence"], published["view"]


def naive_distance(a: Array, b: Array, distance: str) -> float:
    """a, b: [c, strips]."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if distance == "strip_euclidean":
        return float(np.mean([np.linalg.norm(a[:, s] - b[:, s]) for s in range(a.shape[1])]))
    if distance == "cosine":
        return float(1 - (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    return float(np.linalg.norm(a - b))


def naive_order(probe: int, gallery: list[int], rows: Rows, distance: str) -> list[bool]:
    """Whether each gallery entry is right, nearest first, wrong before right at one distance."""
    embeddings, subjects, _, _ = rows
    ordered = sorted(
        (naive_distance(embeddings[probe], embeddings[g], distance), bool(right))
        for g in gallery
        for right in [subjects[g] == subjects[probe]]
    )
    return [right for _, right in ordered]


def naive_first_ranks(rows: Rows, distance: str) -> Array:
    """Probes are sequence "00", the gallery is "01"."""
    _, _, sequences, views = rows
    table = []
    for probe in np.flatnonzero(sequences == "00"):
        ranks = []
        for view in np.unique(views):
            gallery = np.flatnonzero((sequences == "01") & (views == view)).tolist()
            order = naive_order(probe, gallery, rows, distance)
            ranks.append(order.index(True) + 1 if True in order else 0)
        table.append(ranks)
    return np.array(table)


@st.composite
def small_rows(draw: st.DrawFn) -> Rows:
    """Subjects, views and sequences unevenly spread; whole-numbered embeddings with many ties.

    Every row has a mirror image, so that the gallery's mean is 0 and all distances are exact.
    """
    n = draw(st.integers(2, 12))
    sequences = np.array(
        draw(st.lists(st.sampled_from(["00", "01", "02"]), min_size=n, max_size=n))
    )
    sequences[:2] = ["00", "01"]
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    embeddings = random.integers(0, 3, (n, 1, 2)).astype(np.float32)
    return (
        np.concatenate([embeddings, -embeddings]),
        random.choice(["anna", "berta", "carla"], 2 * n),
        np.tile(sequences, 2),
        random.choice(["000", "045", "090"], 2 * n),
    )


def test_flattened_euclidean_equals_the_published_table(
    published: dict[str, Array], rows: Rows
) -> None:
    table = rank_by_view(*rows, ranks=range(1, 6))
    assert np.array_equal(np.round(table.transpose(1, 2, 0), 2), published["rank_flat"])


def test_strip_euclidean_equals_the_published_table(
    published: dict[str, Array], rows: Rows
) -> None:
    table = rank_by_view(*rows, ranks=(1,), distance="strip_euclidean")
    np.testing.assert_allclose(table[0], published["rank1_per_strip"], rtol=1e-14)


def test_cross_view_gallery_equals_the_published_table(
    published: dict[str, Array], rows: Rows
) -> None:
    table = cross_view_table(cross_view_gallery(*rows, distance="strip_euclidean"))
    expected = published["crossview_gallery_rank1_per_strip"]
    np.testing.assert_allclose(table.rank1, expected, rtol=1e-14)
    expected = published["crossview_gallery_map_per_strip"]
    np.testing.assert_allclose(table.mean_average_precision, expected, rtol=1e-14)


@settings(max_examples=60, deadline=None)
@given(rows=small_rows(), block_bytes=st.sampled_from([1, 40, 2**20]))
def test_first_match_ranks_equal_sorting_with_wrong_entries_first_among_ties(
    rows: Rows, block_bytes: int
) -> None:
    first = first_match_rank(*rows, block_bytes=block_bytes)
    assert np.array_equal(first.probes, np.flatnonzero(rows[2] == "00"))
    assert np.array_equal(first.ranks, naive_first_ranks(rows, "euclidean"))


@settings(max_examples=60, deadline=None)
@given(rows=small_rows(), block_bytes=st.sampled_from([1, 40, 2**20]))
def test_cross_view_precision_equals_sorting(rows: Rows, block_bytes: int) -> None:
    _, subjects, sequences, views = rows
    result = cross_view_gallery(*rows, block_bytes=block_bytes)
    for i, probe in enumerate(result.probes):
        dropped = (subjects == subjects[probe]) & (views == views[probe])
        gallery = np.flatnonzero((sequences == "01") & ~dropped).tolist()
        order = naive_order(probe, gallery, rows, "euclidean")
        positions = [position for position, right in enumerate(order, 1) if right]
        if not positions:
            assert result.ranks[i] == 0
            assert np.isnan(result.average_precision[i])
            assert np.isnan(result.inverse_negative_penalty[i])
            continue
        precisions = [j / position for j, position in enumerate(positions, 1)]
        assert result.ranks[i] == positions[0]
        assert result.average_precision[i] == pytest.approx(np.mean(precisions))
        assert result.inverse_negative_penalty[i] == pytest.approx(precisions[-1])


@pytest.mark.parametrize("distance", ["euclidean", "strip_euclidean", "cosine"])
def test_distances_equal_their_definitions(distance: Any) -> None:
    embeddings = 3 + np.random.default_rng(0).normal(size=(9, 4, 5)).astype(np.float32)
    probes, gallery = np.array([0, 2, 8]), np.array([1, 3, 4, 5, 6, 7])
    blocks = list(distance_blocks(embeddings, probes, gallery, distance, block_bytes=48))
    assert [rows for rows, _ in blocks] == [slice(0, 2), slice(2, 3)]
    found = np.concatenate([distances for _, distances in blocks])
    expected = np.array(
        [[naive_distance(embeddings[p], embeddings[g], distance) for g in gallery] for p in probes]
    )
    if distance == "cosine":
        expected = np.sqrt(2 * expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("distance", ["euclidean", "strip_euclidean", "cosine"])
def test_tensors_and_arrays_rank_alike(rows: Rows, distance: Any) -> None:
    embeddings, *ids = rows
    expected = first_match_rank(embeddings, *ids, distance=distance).ranks
    for other in (torch.from_numpy(embeddings).requires_grad_(), embeddings.astype(np.float64)):
        assert np.array_equal(first_match_rank(other, *ids, distance=distance).ranks, expected)


def test_the_order_of_rows_does_not_matter(rows: Rows) -> None:
    shuffled = np.random.default_rng(0).permutation(len(rows[0]))
    mixed = tuple(array[shuffled] for array in rows)
    assert np.array_equal(rank_by_view(*rows), rank_by_view(*mixed))


def test_embeddings_that_are_all_alike_find_nobody(rows: Rows) -> None:
    collapsed = np.ones_like(rows[0])
    assert rank_by_view(collapsed, *rows[1:], ranks=(1,)).max() == 0


def test_probes_without_a_right_entry_are_misses_or_left_out() -> None:
    """Three probes at one view; the third's subject is not in the gallery."""
    embeddings = np.array([0.0, 5, 9, 0.1, 5.1], np.float32)[:, None, None]
    subjects = np.array(["a", "b", "c", "a", "b"])
    sequences = np.array(["00", "00", "00", "01", "01"])
    views = np.full(5, "090")
    arguments = (embeddings, subjects, sequences, views)
    counted = rank_by_view(*arguments, ranks=(1, 5))
    dropped = rank_by_view(*arguments, ranks=(1, 5), unmatched="drop")
    np.testing.assert_allclose(counted, np.full((2, 1, 1), 200 / 3))
    np.testing.assert_array_equal(dropped, np.full((2, 1, 1), 100))


def test_pairs_without_probes_or_gallery_are_nan() -> None:
    embeddings = np.arange(4, dtype=np.float32)[:, None, None]
    subjects = np.array(["a", "a", "b", "b"])
    sequences = np.array(["00", "01", "01", "02"])
    views = np.array(["000", "090", "090", "180"])
    for unmatched, expected in (("count", 100.0), ("drop", 100.0)):
        table = rank_by_view(
            embeddings, subjects, sequences, views, ranks=(1,), unmatched=unmatched
        )[0]
        assert table[0, 1] == expected
        assert np.isnan(np.delete(table.ravel(), 1)).all()
    # Probe a at 000, gallery of b only: a miss, or nothing to average.
    subjects[1] = "b"
    first = first_match_rank(embeddings, subjects, sequences, views)
    assert rank_table(first, unmatched="count")[0, 0, 1] == 0
    assert np.isnan(rank_table(first, unmatched="drop")[0, 0, 1])


def test_several_gallery_sequences_per_view_and_several_probe_names() -> None:
    """As CASIA-E has them: the nearest right entry counts."""
    embeddings = np.array([0.0, 3.0, 0.9, 1.0, 4.0, 2.5], np.float32)[:, None, None]
    subjects = np.array(["a", "b", "b", "a", "a", "b"])
    sequences = np.array(["p-1", "p-2", "g-1", "g-1", "g-2", "g-2"])
    first = first_match_rank(
        embeddings,
        subjects,
        sequences,
        np.full(6, "090"),
        gallery=["g-1", "g-2"],
        probe=["p-1", "p-2"],
    )
    # Distances of probe 0: b 0.9, a 1.0, b 2.5, a 4.0; of probe 1: b 0.5, a 1.0, a 2.0, b 2.1.
    assert first.ranks.tolist() == [[2], [1]]
    assert first.gallery_sizes.tolist() == [4]


def test_means_leave_out_the_diagonal_and_nan() -> None:
    table = np.array([[[100.0, 10, 20], [30, 100, np.nan], [50, 60, 100]], np.full((3, 3), np.nan)])
    np.testing.assert_allclose(mean_without_diagonal(table), [34, np.nan])
    np.testing.assert_allclose(mean_per_probe_view(table), [[15, 30, 55], [np.nan] * 3])


def test_views_are_sorted() -> None:
    views = np.array(["180", "000", "090", "000"])
    assert view_order(views).tolist() == ["000", "090", "180"]


def broken(rows: Rows, **changes: Any) -> dict[str, Any]:
    names = ("embeddings", "subjects", "sequences", "views")
    return dict(zip(names, rows, strict=True)) | changes


@pytest.mark.parametrize("function", [first_match_rank, cross_view_gallery])
def test_bad_input_is_refused_with_counts(rows: Rows, function: Callable[..., Any]) -> None:
    holes = rows[0].copy()
    holes[rows[2] == "01"] = np.nan
    infinite = rows[0].copy()
    infinite[np.flatnonzero(rows[2] == "00")[3], 0, 0] = np.inf
    cases = {
        r"\(796, 4, 6\) and \(795,\), \(796,\), \(796,\)": {"subjects": rows[1][1:]},
        r"\(796, 24\)": {"embeddings": rows[0].reshape(796, -1)},
        "401 of the 401 rows": {"embeddings": holes},
        "1 of the 395 rows": {"embeddings": infinite},
        "expected one of": {"distance": "manhattan"},
        r"0 probes \(sequences \['07'\]\) and 401 gallery .* \['00', '01'\]": {"probe": ["07"]},
        "395 probes .* and 0 gallery": {"gallery": ["07"]},
        "'00'.* gallery and probe": {"gallery": ["00", "01"]},
    }
    for message, changes in cases.items():
        with pytest.raises(ValueError, match=message):
            function(**broken(rows, **changes))


def test_table_options_are_checked(rows: Rows) -> None:
    first = first_match_rank(*rows)
    with pytest.raises(ValueError, match="'count' or 'drop'"):
        rank_table(first, unmatched="ignore")
    with pytest.raises(ValueError, match="from 1"):
        rank_table(first, ranks=(0, 1))

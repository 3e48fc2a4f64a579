from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gaitgl.distances import distance_blocks
from gaitgl.retrieval import (
    CrossViewPass,
    FirstMatchPass,
    compared_pairs,
    cross_view_gallery,
    cross_view_table,
    first_match_rank,
    mean_per_probe_view,
    mean_without_diagonal,
    rank_by_view,
    rank_table,
    right_and_wrong,
    view_order,
)
from tests.naive_retrieval import Array, Rows, naive_distance, small_rows

Load = Callable[[str], dict[str, Array]]


@pytest.fixture
def published(fixture_arrays: Load) -> dict[str, Array]:
    return fixture_arrays("evaluation")


@pytest.fixture
def rows(published: dict[str, Array]) -> Rows:
    return published["f"], published["subject"], published["sequence"], published["view"]


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


def naive_nearest(
    probe: int, gallery: Array, rows: Rows, right: bool
) -> tuple[float, Array | list[int]]:
    """Distance of the nearest right (or wrong) entry, and all rows at that distance."""
    embeddings, subjects, _, _ = rows
    chosen = [g for g in gallery if (subjects[g] == subjects[probe]) == right]
    if not chosen:
        return np.inf, [-1]
    apart = np.array([naive_distance(embeddings[probe], embeddings[g], "") for g in chosen])
    return apart.min(), np.array(chosen)[apart == apart.min()]


@settings(max_examples=60, deadline=None)
@given(rows=small_rows(), block_bytes=st.sampled_from([1, 40, 2**20]))
def test_nearest_entries_are_named(rows: Rows, block_bytes: int) -> None:
    _, subjects, sequences, views = rows
    first = first_match_rank(*rows, block_bytes=block_bytes)
    cross = cross_view_gallery(*rows, block_bytes=block_bytes)
    in_gallery = sequences == "01"

    def check(found: tuple[float, int], expected: tuple[float, Array | list[int]]) -> None:
        assert found[0] == np.float32(expected[0])
        # the first by view, then subject, then row
        order = sorted(expected[1], key=lambda row: (views[row], subjects[row], row))
        assert found[1] == order[0]

    for i, probe in enumerate(first.probes):
        for v, view in enumerate(first.views):
            gallery = np.flatnonzero(in_gallery & (views == view))
            right = first.right_distances[i, v], first.right_rows[i, v]
            wrong = first.wrong_distances[i, v], first.wrong_rows[i, v]
            check(right, naive_nearest(probe, gallery, rows, right=True))
            check(wrong, naive_nearest(probe, gallery, rows, right=False))
        dropped = (subjects == subjects[probe]) & (views == views[probe])
        gallery = np.flatnonzero(in_gallery & ~dropped)
        right = cross.right_distances[i], cross.right_rows[i]
        wrong = cross.wrong_distances[i], cross.wrong_rows[i]
        check(right, naive_nearest(probe, gallery, rows, right=True))
        check(wrong, naive_nearest(probe, gallery, rows, right=False))


@pytest.mark.parametrize("distance", ["euclidean", "strip_euclidean", "cosine"])
def test_one_pass_feeds_several_results(rows: Rows, distance: Any) -> None:
    pairs = compared_pairs(*rows)
    first, cross = FirstMatchPass(pairs), CrossViewPass(pairs)
    blocks = distance_blocks(rows[0], pairs.probes, pairs.gallery, distance)
    for block in right_and_wrong(pairs, blocks):
        cross.add(block)
        first.add(block)
    for found, expected in (
        (first.result(), first_match_rank(*rows, distance=distance)),
        (cross.result(), cross_view_gallery(*rows, distance=distance)),
    ):
        for mine, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, other)


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

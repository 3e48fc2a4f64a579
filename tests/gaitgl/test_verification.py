from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaitgl import verification as module
from gaitgl.distances import distance_blocks
from gaitgl.retrieval import compared_pairs, first_match_rank, right_and_wrong
from gaitgl.verification import (
    Verification,
    VerificationPass,
    acceptance_rate,
    equal_error_rate,
    error_curve,
    error_rates,
    errors_allowed,
    open_set,
    threshold_at,
)
from tests.naive_retrieval import Array, Rows, naive_distance, small_rows


def passed(rows: Rows, same_view: Any, block_bytes: int) -> VerificationPass:
    pairs = compared_pairs(*rows)
    verification = VerificationPass(pairs, same_view)
    blocks = distance_blocks(rows[0], pairs.probes, pairs.gallery, "euclidean", block_bytes)
    for block in right_and_wrong(pairs, blocks):
        verification.add(block)
    return verification


def verify(rows: Rows, same_view: Any = "keep", block_bytes: int = 2**20) -> Verification:
    return passed(rows, same_view, block_bytes).result()


def naive_pairs(rows: Rows, same_view: str) -> tuple[list[list[float]], list[float]]:
    """Distances of each probe's genuine pairs, and of all impostor pairs."""
    embeddings, subjects, sequences, views = rows
    genuine, impostors = [], []
    for p in np.flatnonzero(sequences == "00"):
        genuine.append([])
        for g in np.flatnonzero(sequences == "01"):
            apart = naive_distance(embeddings[p], embeddings[g], "euclidean")
            one_view = views[p] == views[g]
            if subjects[p] == subjects[g]:
                if not one_view or same_view == "keep":
                    genuine[-1].append(apart)
            elif not one_view or same_view != "drop":
                impostors.append(apart)
    return genuine, impostors


def of(genuine: Any, impostors: Any) -> Verification:
    """From distances, as one probe's."""
    genuine, impostors = np.asarray(genuine, np.float32), np.asarray(impostors, np.float32)
    thresholds = np.unique(np.concatenate([genuine, impostors]))
    return Verification(
        thresholds,
        (genuine[:, None] <= thresholds).sum(axis=0),
        (impostors[:, None] <= thresholds).sum(axis=0),
        genuine[None],
    )


@settings(max_examples=25, deadline=None)
@given(
    rows=small_rows(),
    same_view=st.sampled_from(["keep", "drop_genuine", "drop"]),
    block_bytes=st.sampled_from([1, 40, 2**20]),
)
def test_counts_equal_those_of_a_loop_over_pairs(
    rows: Rows, same_view: str, block_bytes: int
) -> None:
    result = verify(rows, same_view, block_bytes)
    per_probe, impostors = naive_pairs(rows, same_view)
    genuine = [apart for found in per_probe for apart in found]
    levels = np.unique(genuine + impostors)  # far further apart than bins are
    assert len(result.thresholds) == len(levels)
    np.testing.assert_allclose(result.thresholds, levels, rtol=2.0**-15, atol=1e-40)
    assert (result.thresholds >= levels.astype(np.float32)).all()
    assert result.genuine.tolist() == [np.sum(np.array(genuine) <= t) for t in levels]
    assert result.impostors.tolist() == [np.sum(np.array(impostors) <= t) for t in levels]
    for found, expected in zip(result.genuine_distances, per_probe, strict=True):
        np.testing.assert_allclose(np.sort(found[~np.isnan(found)]), np.sort(expected), rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(rows=small_rows(), same_view=st.sampled_from(["keep", "drop_genuine", "drop"]))
def test_impostors_of_each_subject_equal_those_of_a_loop(rows: Rows, same_view: str) -> None:
    """Few distances, far apart: each has a step of its own."""
    embeddings, subjects, sequences, views = rows
    names = np.unique(subjects[sequences == "00"]).tolist()
    found: dict[float, list[int]] = {}
    for p in np.flatnonzero(sequences == "00"):
        for g in np.flatnonzero(sequences == "01"):
            if subjects[p] != subjects[g] and (same_view != "drop" or views[p] != views[g]):
                apart = naive_distance(embeddings[p], embeddings[g], "euclidean")
                counts = found.setdefault(round(apart, 3), [0] * len(names))
                counts[names.index(subjects[p])] += 1
    steps = passed(rows, same_view, 40).impostors_by_subject()
    assert steps.T.tolist() == [found[apart] for apart in sorted(found)]


def test_steps_are_few_and_even_in_the_logarithm_of_the_rate(fixture_arrays: Any) -> None:
    rows = fixture_arrays("evaluation")
    ids = rows["subject"], rows["sequence"], rows["view"]
    random = np.random.default_rng(0)
    noisy = rows["f"] + random.normal(0, 0.1, rows["f"].shape).astype(np.float32)
    steps = passed((noisy, *ids), "drop_genuine", 50_000).impostors_by_subject()
    assert len(steps) == len(np.unique(ids[0][ids[1] == "00"]))
    assert 60 < steps.shape[1] <= 128
    np.testing.assert_array_equal(
        steps, passed((noisy, *ids), "drop_genuine", 2**25).impostors_by_subject()
    )
    whole = verify((noisy, *ids), "drop_genuine")
    assert steps.sum() == whole.impostors[-1]
    ends = steps.sum(axis=0).cumsum()
    assert set(ends.tolist()) <= set(whole.impostors.tolist())
    ratio = ends[1:] / ends[:-1]
    assert ratio[ends[1:] > 100].max() < 1.5


def test_figures_do_not_depend_on_blocks(fixture_arrays: Any) -> None:
    rows = fixture_arrays("evaluation")
    rows = rows["f"], rows["subject"], rows["sequence"], rows["view"]
    results = [verify(rows, "drop", block_bytes) for block_bytes in (1, 50_000, 2**25)]
    assert results[0].genuine[-1] + results[0].impostors[-1] == sum(
        (rows[3][rows[2] == "01"] != view).sum() for view in rows[3][rows[2] == "00"]
    )
    for result in results[1:]:
        assert equal_error_rate(result) == pytest.approx(equal_error_rate(results[0]), abs=1e-3)
        assert acceptance_rate(result, 1e-3) == pytest.approx(acceptance_rate(results[0], 1e-3))


@pytest.mark.parametrize("chunk", [1, 2_000])
def test_blocks_binned_in_pieces_give_the_same_counts(
    fixture_arrays: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = fixture_arrays("evaluation")
    rows = rows["f"], rows["subject"], rows["sequence"], rows["view"]
    whole = passed(rows, "drop", 2**25)
    monkeypatch.setattr(module, "_CHUNK", chunk)
    pieces = passed(rows, "drop", 2**25)
    for one, other in zip(whole.result(), pieces.result(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(whole.impostors_by_subject(), pieces.impostors_by_subject())


def test_error_rates_and_where_they_are_equal() -> None:
    """Genuine 1, 2, 3, 6; impostors 4, 5, 7, 8: at 4, a quarter of either goes wrong."""
    result = of([1, 2, 3, 6], [4, 5, 7, 8])
    far, frr = error_rates(result)
    assert far.tolist() == [0, 0, 0, 0, 0.25, 0.5, 0.5, 0.75, 1]
    assert frr.tolist() == [1, 0.75, 0.5, 0.25, 0.25, 0.25, 0, 0, 0]
    assert equal_error_rate(result) == 25
    assert equal_error_rate(of([1, 2], [3, 4])) == 0
    assert equal_error_rate(of([3, 4], [1, 2])) == 100
    # from (FAR, FRR) = (0, 1/2) straight to (1/2, 0)
    assert equal_error_rate(of([1, 2], [2, 3])) == 25
    assert equal_error_rate(of([1], [1])) == 50


def test_errors_that_meet_a_rate_exactly_are_allowed() -> None:
    assert [errors_allowed(n / 100, 100) for n in range(101)] == list(range(101))
    assert errors_allowed(0.01, 99) == 0


def test_acceptance_at_a_rate() -> None:
    genuine = [0.5, 1.5, 2.5, 50.0]
    impostors = np.arange(1, 101)
    result = of(genuine, impostors)
    assert threshold_at(result, 0.01) == 1.5  # one impostor of 100
    assert acceptance_rate(result, 0.01) == 50
    assert acceptance_rate(result, 0.02) == 75
    assert np.isnan(acceptance_rate(result, 0.001))  # would be a tenth of an impostor


@settings(max_examples=100, deadline=None)
@given(
    genuine=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    impostors=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    far=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
)
def test_acceptance_equals_trying_every_threshold(
    genuine: list[int], impostors: list[int], far: float
) -> None:
    result = of(genuine, impostors)
    possible = [-1, *sorted(genuine + impostors)]
    allowed = [t for t in possible if sum(i <= t for i in impostors) <= far * len(impostors)]
    expected = max(100 * sum(g <= t for g in genuine) / len(genuine) for t in allowed)
    if len(impostors) < 1 / far:
        assert np.isnan(acceptance_rate(result, far))
    else:
        assert acceptance_rate(result, far) == pytest.approx(expected)


def test_embeddings_that_are_all_alike_verify_nobody(fixture_arrays: Any) -> None:
    rows = fixture_arrays("evaluation")
    ids = rows["subject"], rows["sequence"], rows["view"]
    result = verify((np.ones_like(rows["f"]), *ids))
    assert equal_error_rate(result) == 50
    assert acceptance_rate(result, 0.01) == 0


def test_rates_that_cannot_be_told_are_nan() -> None:
    for result in (of([], [1, 2]), of([1, 2], []), of([], [])):
        assert np.isnan(equal_error_rate(result))
        assert np.isnan(acceptance_rate(result, 0.5))
        assert [len(rates) for rates in error_curve(result)] == [0, 0]


def test_the_drawn_curve_is_thin_lies_on_the_whole_one_and_keeps_its_ends() -> None:
    random = np.random.default_rng(0)
    result = of(random.normal(3, 1, 4_000) ** 2, random.normal(8, 1, 20_000) ** 2)
    far, frr = error_curve(result, points=60)
    assert 30 < len(far) <= 62
    whole = set(zip(*(rates.tolist() for rates in error_rates(result)), strict=True))
    assert set(zip(far.tolist(), frr.tolist(), strict=True)) <= whole
    assert (far[0], frr[0]) == (0, 1)
    assert (far[-1], frr[-1]) == (1, 0)
    assert ((far > 0) & (far < 1e-3)).sum() > 5
    assert ((frr > 0) & (frr < 1e-2)).sum() > 5


@settings(max_examples=100, deadline=None)
@given(
    searches=st.lists(
        st.tuples(
            st.sampled_from([0.0, 1, 2, 3, 4, 5, np.inf]),
            st.sampled_from([0.0, 1, 2, 3, 4, 5, np.inf]),
        ),
        min_size=1,
        max_size=20,
    ),
    fpir=st.sampled_from([0.1, 0.25, 1.0]),
)
def test_open_set_equals_trying_every_limit(
    searches: list[tuple[float, float]], fpir: float
) -> None:
    right, wrong = (np.array(side, np.float32) for side in zip(*searches, strict=True))
    result = open_set(right, wrong, fpir)
    unknown = [w for _, w in searches if np.isfinite(w)]
    known = [(r, w) for r, w in searches if np.isfinite(r)]
    assert (result.known, result.unknown) == (len(known), len(unknown))
    if not known or not unknown or len(unknown) < 1 / fpir:
        assert np.isnan(result.miss_rate)
        return
    rates = [
        100 * (1 - sum(r < limit and r < w for r, w in known) / len(known))
        for limit in (0, 1, 2, 3, 4, 5, np.inf)
        if sum(w < limit for w in unknown) <= fpir * len(unknown)
    ]
    assert result.miss_rate == pytest.approx(min(rates))


def test_open_set_of_a_gallery_per_view(fixture_arrays: Any) -> None:
    """Searches of any shape: here, those in another view's gallery."""
    rows = fixture_arrays("evaluation")
    first = first_match_rank(rows["f"], rows["subject"], rows["sequence"], rows["view"])
    other: Array = first.probe_views[:, None] != first.views
    right, wrong = first.right_distances[other], first.wrong_distances[other]
    result = open_set(right, wrong)
    assert result.unknown == other.sum()
    assert (wrong < result.limit).mean() <= 0.01 < (wrong <= result.limit).mean()
    found = (right < result.limit) & (first.ranks[other] == 1)
    assert result.miss_rate == pytest.approx(100 * (1 - found.sum() / np.isfinite(right).sum()))


def test_an_unknown_choice_is_refused(fixture_arrays: Any) -> None:
    rows = fixture_arrays("evaluation")
    with pytest.raises(ValueError, match=r"expected one of.*'drop'.*'perhaps'"):
        verify((rows["f"], rows["subject"], rows["sequence"], rows["view"]), "perhaps")

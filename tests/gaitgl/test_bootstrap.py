from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gaitgl.bootstrap import (
    interval,
    mean_draws,
    open_set_draws,
    verification_draws,
    view_pair_mean_draws,
)
from gaitgl.distances import distance_blocks
from gaitgl.retrieval import (
    FirstMatch,
    compared_pairs,
    first_match_rank,
    mean_without_diagonal,
    rank_table,
    right_and_wrong,
)
from gaitgl.verification import (
    Verification,
    VerificationPass,
    acceptance_rate,
    equal_error_rate,
    open_set,
)

Array = NDArray[Any]


@pytest.fixture(scope="module")
def first(fixture_arrays: Callable[[str], dict[str, Array]]) -> FirstMatch:
    rows = fixture_arrays("evaluation")
    return first_match_rank(rows["f"], rows["subject"], rows["sequence"], rows["view"])


@pytest.fixture(scope="module")
def subjects(fixture_arrays: Callable[[str], dict[str, Array]], first: FirstMatch) -> Array:
    return fixture_arrays("evaluation")["subject"][first.probes]


def resamples(subjects: Array, draws: int, seed: int) -> list[Array]:
    """Row numbers of each draw, a subject's rows as often as it was drawn."""
    names = np.unique(subjects)
    times = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=draws
    )
    return [
        np.concatenate([np.flatnonzero(subjects == name) for name in np.repeat(names, counts)])
        for counts in times
    ]


def test_means_equal_those_of_repeated_rows(first: FirstMatch, subjects: Array) -> None:
    values = np.where(first.ranks > 0, 100.0 * (first.ranks == 1), np.nan)[:, :3]
    found = mean_draws(values, subjects, draws=20, seed=3)
    expected = [np.nanmean(values[rows], axis=0) for rows in resamples(subjects, 20, 3)]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(mean_draws(values[:, 1], subjects, 20, 3), found[:, 1])


def test_view_pair_means_equal_those_of_repeated_rows(first: FirstMatch, subjects: Array) -> None:
    tables = [
        rank_table(
            first._replace(ranks=first.ranks[rows], probe_views=first.probe_views[rows]), (1,)
        )[0]
        for rows in resamples(subjects, 20, 3)
    ]
    hits = 100.0 * (first.ranks == 1)  # [p, V]
    what = first.probe_views, first.views, subjects
    own = first.probe_views[:, None] == first.views
    found = view_pair_mean_draws(np.where(own, np.nan, hits), *what, draws=20, seed=3)
    np.testing.assert_allclose(found, [mean_without_diagonal(table) for table in tables])
    found = view_pair_mean_draws(hits, *what, draws=20, seed=3)
    np.testing.assert_allclose(found, [np.nanmean(table) for table in tables])


def test_open_set_draws_equal_those_of_repeated_rows(first: FirstMatch, subjects: Array) -> None:
    right, wrong = first.right_distances[:, 2], first.wrong_distances[:, 2]
    for fpir in (0.01, 0.2, 1.0):
        found = open_set_draws(right, wrong, subjects, fpir, draws=20, seed=3)
        expected = [
            open_set(right[rows], wrong[rows], fpir).miss_rate
            for rows in resamples(subjects, 20, 3)
        ]
        np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("fpir", [0.1, 0.25, 0.5, 1.0])
def test_open_set_draws_with_ties_and_searches_that_do_not_count(fpir: float) -> None:
    levels = np.array([0, 1, 2, 3, np.inf], np.float32)
    right, wrong = np.random.default_rng(0).choice(levels, (2, 40))
    subjects = np.repeat(list("abcd"), 10)
    found = open_set_draws(right, wrong, subjects, fpir, draws=60, seed=3)
    expected = [
        open_set(right[rows], wrong[rows], fpir).miss_rate for rows in resamples(subjects, 60, 3)
    ]
    np.testing.assert_allclose(found, expected)


@pytest.mark.filterwarnings("error")
def test_open_set_draws_without_a_known_search_are_nan() -> None:
    right, wrong = np.array([1, np.inf], np.float32), np.array([2, 2], np.float32)
    subjects = np.array(["a", "b"])
    found = open_set_draws(right, wrong, subjects, 1.0, draws=40, seed=3)
    unknown = [set(rows.tolist()) == {1} for rows in resamples(subjects, 40, 3)]
    assert 0 < sum(unknown) < 40
    np.testing.assert_array_equal(np.isnan(found), unknown)


def _verified(rows: dict[str, Array]) -> VerificationPass:
    pairs = compared_pairs(rows["f"], rows["subject"], rows["sequence"], rows["view"])
    verification = VerificationPass(pairs, "drop_genuine")
    blocks = distance_blocks(rows["f"], pairs.probes, pairs.gallery, "euclidean")
    for block in right_and_wrong(pairs, blocks):
        verification.add(block)
    return verification


def _of_pairs(genuine: Array, impostors: Array) -> Verification:
    """From distances [p, R], NaN for no pair, and [q]."""
    known = genuine[~np.isnan(genuine)]
    thresholds = np.unique(np.concatenate([known, impostors]))
    counts = [np.searchsorted(np.sort(d), thresholds, side="right") for d in (known, impostors)]
    return Verification(thresholds, counts[0], counts[1], genuine)


def test_verification_draws_equal_those_of_repeated_pairs() -> None:
    """Where every impostor has a step of its own, draws are exact; subjects differ in numbers."""
    random = np.random.default_rng(0)
    subjects = np.array(["c", "a", "a", "b", "c", "a", "d"])
    genuine = random.permutation(500)[:21].reshape(7, 3) + 0.5  # no impostor is as near
    genuine[1, 1:] = genuine[4, 0] = np.nan
    impostors = random.permutation(np.arange(100, 1100, 3)).astype(np.float64)
    owners = random.choice(subjects, len(impostors))  # of each impostor pair
    in_order = owners[np.argsort(impostors)]
    steps = (np.unique(subjects)[:, None] == in_order).astype(np.int32)  # [S, K]
    far = np.searchsorted(np.sort(impostors), genuine, side="right") / len(impostors)
    far[np.isnan(genuine)] = np.nan
    fars = (0.01, 0.05, 0.3)
    eer, tar = verification_draws(far, steps, subjects, fars, draws=40, seed=3)
    assert (len(eer), tar.shape) == (41, (41, 3))
    # an impostor pair's subject stands in place of its probe
    of_pairs = resamples(np.concatenate([subjects, owners]), 40, 3)
    for found_eer, found_tar, rows in zip(
        eer, tar, [np.arange(7 + len(owners)), *of_pairs], strict=True
    ):
        drawn = _of_pairs(genuine[rows[rows < 7]], impostors[rows[rows >= 7] - 7])
        assert found_eer == pytest.approx(equal_error_rate(drawn))
        assert found_tar.tolist() == pytest.approx([acceptance_rate(drawn, f) for f in fars])
    nobody = verification_draws(np.full_like(far, np.nan), steps, subjects, fars, draws=3)
    no_impostor = verification_draws(far, steps[:, :0], subjects, fars, draws=3)
    for rates in (*nobody, *no_impostor):
        assert np.isnan(rates).all()


@pytest.mark.filterwarnings("error")
def test_verification_draws_without_genuine_or_impostor_pairs_are_nan() -> None:
    """Genuine pairs are a's alone, impostor pairs are b's."""
    subjects = np.array(["a", "b"])
    far = np.array([[0.5], [np.nan]])
    steps = np.array([[0, 0], [1, 1]], np.int32)
    eer, tar = verification_draws(far, steps, subjects, (0.25,), draws=40, seed=3)
    alone = [len(set(rows.tolist())) == 1 for rows in resamples(subjects, 40, 3)]
    assert 0 < sum(alone) < 40
    np.testing.assert_array_equal(np.isnan(eer[1:]), alone)
    np.testing.assert_array_equal(np.isnan(tar[1:, 0]), alone)


def test_a_pair_whose_far_meets_the_rate_within_a_step_is_accepted() -> None:
    far, steps = np.array([[0.01, 0.9]]), np.array([[29, 71]], np.int32)
    _, tar = verification_draws(far, steps, np.array(["a"]), (0.01,), draws=1)
    assert tar.tolist() == [[50], [50]]


def test_verification_draws_need_no_more_than_the_steps_of_a_pass(
    fixture_arrays: Callable[[str], dict[str, Array]], subjects: Array
) -> None:
    """Steps stand for all distances: the figures are exact, and draws are those of all pairs."""
    rows = fixture_arrays("evaluation")
    verification = _verified(rows)
    result, steps = verification.result(), verification.impostors_by_subject()
    at = np.searchsorted(result.thresholds, np.nan_to_num(result.genuine_distances))
    far = result.impostors[at] / result.impostors[-1]
    far[np.isnan(result.genuine_distances)] = np.nan
    fars = (1e-2, 1e-3)
    eer, tar = verification_draws(far, steps, subjects, fars, draws=10, seed=3)
    assert eer[0] == pytest.approx(equal_error_rate(result), abs=0.01)
    assert tar[0].tolist() == pytest.approx([acceptance_rate(result, f) for f in fars])
    flat = rows["f"].reshape(len(rows["f"]), -1)
    probes, gallery = (np.flatnonzero(rows["sequence"] == s) for s in ("00", "01"))
    apart = np.linalg.norm(flat[probes, None] - flat[gallery], axis=2)
    same = rows["subject"][probes, None] == rows["subject"][gallery]
    own = same & (rows["view"][probes, None] != rows["view"][gallery])
    for i, drawn in enumerate(resamples(subjects, 10, 3), start=1):
        again = _of_pairs(np.where(own, apart, np.nan)[drawn], apart[drawn][~same[drawn]])
        assert eer[i] == pytest.approx(equal_error_rate(again), abs=0.1)
        expected = [acceptance_rate(again, f) for f in fars]
        assert tar[i].tolist() == pytest.approx(expected, abs=0.1)
    assert np.column_stack([eer, tar]).std(axis=0).min() > 0.3  # far more than the tolerance


def test_the_same_subjects_and_seed_see_the_same_draws(subjects: Array) -> None:
    """So that the difference of two results on one set of probes is paired."""
    values = np.random.default_rng(0).normal(size=len(subjects))
    one = mean_draws(values, subjects)
    np.testing.assert_array_equal(one, mean_draws(values, subjects))
    low, high = interval(mean_draws(values + 2, subjects) - one)
    assert low == pytest.approx(2)
    assert high == pytest.approx(2)
    shuffled = np.random.default_rng(1).permutation(len(subjects))
    np.testing.assert_allclose(one, mean_draws(values[shuffled], subjects[shuffled]))
    assert not np.array_equal(one, mean_draws(values, subjects, seed=1))


def test_intervals_are_as_wide_as_theory_says() -> None:
    """A subject's rows are all alike, so that only the number of subjects narrows the interval."""
    per_subject = np.random.default_rng(0).normal(size=400)
    subjects = np.repeat(np.arange(400), 25)
    low, high = interval(mean_draws(per_subject[subjects], subjects, draws=4000))
    half = 1.96 * per_subject.std() / np.sqrt(400)
    assert low == pytest.approx(per_subject.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(per_subject.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize(
    ("subjects", "least", "most"), [(3, 72, 80), (5, 78, 86), (10, 87, 93), (40, 92, 96)]
)
def test_the_fewer_the_subjects_the_less_often_an_interval_holds_the_truth(
    subjects: int, least: float, most: float
) -> None:
    """Subjects are recognized more or less easily, each in 12 probes; 500 such experiments."""
    random = np.random.default_rng(0)

    def ease(n: int) -> Array:
        return 1 / (1 + np.exp(-random.normal(1, 1.5, n)))

    truth = ease(1_000_000).mean()
    held = []
    for seed in range(500):
        rates = random.binomial(12, ease(subjects)) / 12
        low, high = interval(mean_draws(rates, np.arange(subjects), seed=seed))
        held.append(low <= truth <= high)
    assert least <= 100 * np.mean(held) <= most


def test_one_subject_has_no_spread_and_nothing_has_no_interval() -> None:
    values, subjects = np.array([0.0, 100, 50]), np.array(["a", "a", "a"])
    assert interval(mean_draws(values, subjects)) == (50, 50)
    unknown = mean_draws(np.full((3, 2), np.nan), subjects)
    assert np.isnan(interval(unknown)).all()
    assert np.isnan(open_set_draws(values, values, subjects)).all()  # 3 searches: no 1 %


def test_draws_without_a_value_are_left_out() -> None:
    """The one subject with a value is missing from some draws."""
    values, subjects = np.array([7.0, np.nan]), np.array(["a", "b"])
    draws = mean_draws(values, subjects)
    assert 0 < np.isnan(draws).sum() < len(draws)
    assert interval(draws) == (7, 7)

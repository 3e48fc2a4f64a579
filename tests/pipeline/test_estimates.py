"""Figures from a table of probes, against numbers that can be seen at a glance."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gaitgl.verification import FARS
from pipeline.distance_pass import Method, compare
from pipeline.estimates import PRECISIONS, Figure, by_view, cmc, figures, rank_by_view
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.probe_table import PROBES, Gallery, Probes
from tests.pipeline.walks import walks

PAIRS, EVERY = OumvlpRelease.protocols

# subject, view, ranks in the galleries of views a, b and c (0: not there, -1: no such gallery)
FIVE = [
    ("1", "a", [1, 1, -1]),
    ("2", "a", [1, 6, -1]),
    ("3", "a", [1, 0, -1]),
    ("1", "b", [11, 1, -1]),
    ("2", "c", [1, 2, -1]),
]


def _probes(rows: list[tuple[str, str, list[int]]]) -> Probes:
    table = pd.DataFrame(rows, columns=["subject", "view", "ranks"])
    table = table.assign(protocol="view_pairs", condition="all", sequence="00")
    return Probes(PAIRS, Gallery(3, ""), ["a", "b", "c"], table.reindex(columns=PROBES.names), {})


def test_means_over_pairs_of_different_views_in_each_convention() -> None:
    found = {name: figure.value for name, figure in figures(_probes(FIVE), "all").items()}
    # pairs a-b: 1 of 3 (1 of 2 matched); b-a: 0 of 1; c-a: 1 of 1; c-b: 0 of 1
    assert found["rank1"] == pytest.approx(100 * (1 / 3 + 0 + 1 + 0) / 4)
    assert found["rank1_matched_probes"] == pytest.approx(100 * (1 / 2 + 0 + 1 + 0) / 4)
    assert found["rank1_with_identical_views"] == pytest.approx(
        100 * (1 + 1 / 3 + 0 + 1 + 1 + 0) / 6
    )
    assert found["rank5"] == pytest.approx(100 * (1 / 3 + 0 + 1 + 1) / 4)
    assert found["rank10"] == pytest.approx(100 * (2 / 3 + 0 + 1 + 1) / 4)
    assert found["rank20"] == pytest.approx(100 * (2 / 3 + 1 + 1 + 1) / 4)
    curve = cmc(_probes(FIVE), "all", (1, 5, 10, 20))
    assert curve == pytest.approx([found[f"rank{k}"] for k in (1, 5, 10, 20)])


def test_the_table_has_a_cell_for_each_pair_and_none_without_a_gallery() -> None:
    table = rank_by_view(_probes(FIVE), "all")
    third = 100 / 3
    expected = [[100, third, np.nan], [0, 100, np.nan], [100, 0, np.nan]]
    np.testing.assert_allclose(table, expected)


def test_every_mean_has_draws_unless_there_are_fewer_than_ten_subjects() -> None:
    ten = [(str(subject), "a", [1, 1 + subject % 3, -1]) for subject in range(10)]
    found = figures(_probes(ten), "all")
    for name in ("rank1", "rank20_matched_probes", "rank1_with_identical_views"):
        draws = found[name].draws
        assert draws is not None
        assert draws.shape == (1000,)
    nine = figures(_probes(ten[:9]), "all")
    assert nine.keys() == found.keys()
    assert all(figure.draws is None for figure in nine.values())
    lone = [(subject, view, [0, 0, 0] if subject > "2" else ranks) for subject, view, ranks in ten]
    found = figures(_probes(lone), "all")
    assert found["rank1"].draws is not None
    assert found["rank1_matched_probes"].draws is None


def test_draws_that_are_all_alike_are_no_interval_of_a_figure() -> None:
    certain = Figure(100.0, np.full(1000, 100.0) + 1e-14 * np.arange(1000))
    assert math.isnan(certain.estimate().low)
    change = certain.change_to(certain)
    assert (change.value, change.low, change.high) == (0, 0, 0)


def test_a_change_is_paired_and_goes_from_the_first_to_the_other() -> None:
    draws = np.linspace(0, 10, 1000)
    change = Figure(50.0, draws).change_to(Figure(53.0, draws + 3))
    assert (change.value, change.low, change.high) == pytest.approx((3, 3, 3))
    for one, other in ((Figure(1.0), Figure(2.0, draws)), (Figure(1.0, draws), Figure(2.0))):
        change = one.change_to(other)
        assert change.value == 1
        assert math.isnan(change.low)
        assert math.isnan(change.high)
    estimate = Figure(5.0, draws).estimate()
    assert (estimate.low, estimate.high) == pytest.approx((0.25, 9.75))


def test_verification_by_probe_is_that_of_all_pairs() -> None:
    from gaitgl.verification import acceptance_rate, equal_error_rate
    from pipeline.evaluation import evaluate

    keys, embeddings = walks(("00", "01"), subjects=40, noise=1.1)
    compared = compare(keys, embeddings, EVERY, "all", Method(shown=False))
    (result,) = evaluate(keys, embeddings, [EVERY], Method(shown=False), 5).results
    found = result.estimates["all"]
    for far, name in zip(FARS, ("tar_far_1e-2", "tar_far_1e-3", "tar_far_1e-4"), strict=True):
        expected = acceptance_rate(compared.verification, far)
        assert found[name].value == pytest.approx(expected)
    assert found["eer"].value == pytest.approx(equal_error_rate(compared.verification))
    assert found["eer"].low < found["eer"].value < found["eer"].high
    given = result.probes.table["impostors"].dropna()
    assert len(given) == 40  # once for each subject
    assert sum(int(counts.sum()) for counts in given) == 120 * 120 - 120 * 3


def test_figures_do_not_depend_on_the_order_of_probes() -> None:
    from pipeline.evaluation import evaluate

    keys, embeddings = walks(("00", "01"), subjects=40, noise=1.1)
    for result in evaluate(keys, embeddings, [PAIRS, EVERY], Method(shown=False), 5).results:
        probes = result.probes
        shuffled = replace(probes, table=probes.table.sample(frac=1, random_state=0))
        one, other = figures(probes, "all"), figures(shuffled, "all")
        assert one.keys() == other.keys()
        for name, figure in one.items():
            assert figure.value == pytest.approx(other[name].value)
            assert figure.draws == pytest.approx(other[name].draws)


def test_a_probe_without_a_right_entry_is_a_miss_of_its_view() -> None:
    from pipeline.evaluation import evaluate

    keys, embeddings = walks(("00", "01"), noise=0.0)
    gone = ((keys["subject"] == "00002") & (keys["sequence"] == "01")).to_numpy()
    kept = keys[~gone].reset_index(drop=True), embeddings[~gone]
    (result,) = evaluate(*kept, [EVERY], Method(shown=False), 5).results
    found = by_view(result.probes, "all")
    for name in ("rank1", *PRECISIONS):
        assert found[name] == pytest.approx(np.full(3, 100 * 11 / 12))


def test_distances_that_are_all_alike_accept_half() -> None:
    keys, embeddings = walks(("00", "01"), subjects=20)
    from pipeline.evaluation import evaluate

    (result,) = evaluate(keys, np.ones_like(embeddings), [EVERY], Method(shown=False), 5).results
    found = result.estimates["all"]
    assert found["eer"].value == pytest.approx(50)
    assert found["rank1"].value == 0
    assert found["tar_far_1e-2"].value == 0

"""What protocols say about embeddings, against counting by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from pipeline.distance_pass import Method, Reranking
from pipeline.errors import PipelineError
from pipeline.evaluation import ProtocolResult, evaluate, rank1_by_condition, rank1_table
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.probe_table import PROBES
from pipeline.protocols import Protocol, in_view_pairs_and_all_views
from tests.pipeline.walks import VIEWS, walks

Embeddings = npt.NDArray[np.float32]

QUIET = Method(shown=False)
PAIRS, EVERY = OumvlpRelease.protocols
CASIA_E = CasiaERelease(Path(), [], "release").protocols[0]


def _result(
    keys: pd.DataFrame,
    embeddings: Embeddings,
    protocol: Protocol,
    method: Method = QUIET,
    cmc_ranks: int = 5,
) -> ProtocolResult:
    (result,) = evaluate(keys, embeddings, [protocol], method, cmc_ranks).results
    return result


def _without(
    keys: pd.DataFrame, embeddings: Embeddings, gone: "pd.Series[bool]"
) -> tuple[pd.DataFrame, Embeddings]:
    return keys[~gone].reset_index(drop=True), embeddings[~gone.to_numpy()]


def _rank_by_hand(
    keys: pd.DataFrame, embeddings: Embeddings, protocol: Protocol, probes: tuple[str, ...], k: int
) -> npt.NDArray[np.float64]:
    views = sorted(set(keys["view"]))
    table = np.full((len(views), len(views)), np.nan)
    flat = embeddings.reshape(len(keys), -1)
    for i, probe_view in enumerate(views):
        for j, gallery_view in enumerate(views):
            probe = keys.index[keys["sequence"].isin(probes) & (keys["view"] == probe_view)]
            gallery = keys.index[
                keys["sequence"].isin(protocol.gallery) & (keys["view"] == gallery_view)
            ]
            hits = 0
            for row in probe:
                distances = np.linalg.norm(flat[gallery] - flat[row], axis=1)
                nearest = gallery[np.argsort(distances)[:k]]
                hits += keys.loc[row, "subject"] in set(keys.loc[nearest, "subject"])
            table[i, j] = 100 * hits / len(probe)
    return table


def _precision_by_hand(keys: pd.DataFrame, embeddings: Embeddings) -> dict[str, list[float]]:
    """Average precision of the probes of each view in one gallery of all; 0 if none is right."""
    flat = embeddings.reshape(len(keys), -1)
    gallery = keys.index[keys["sequence"] == "01"]
    found: dict[str, list[float]] = {}
    for row in keys.index[keys["sequence"] == "00"]:
        own = keys.loc[gallery, "subject"] == keys.loc[row, "subject"]
        kept = gallery[~(own & (keys.loc[gallery, "view"] == keys.loc[row, "view"]))]
        order = kept[np.argsort(np.linalg.norm(flat[kept] - flat[row], axis=1))]
        right = (keys.loc[order, "subject"] == keys.loc[row, "subject"]).to_numpy()
        at = np.flatnonzero(right) + 1
        precision = float(np.mean(np.arange(1, len(at) + 1) / at)) if len(at) else 0.0
        found.setdefault(keys.loc[row, "view"], []).append(precision)
    return found


def test_view_pairs_are_counted_one_by_one() -> None:
    keys, embeddings = walks(("00", "01"))
    result = _result(keys, embeddings, PAIRS, cmc_ranks=20)
    by_hand = {k: _rank_by_hand(keys, embeddings, PAIRS, ("00",), k) for k in (1, 5)}
    other = ~np.eye(3, dtype=bool)
    assert 20 < by_hand[1][other].mean() < 95  # neither trivial nor hopeless
    np.testing.assert_allclose(result.rank1["all"], by_hand[1])
    estimates = result.estimates["all"]
    assert estimates["rank1"].value == pytest.approx(by_hand[1][other].mean())
    assert estimates["rank5"].value == pytest.approx(by_hand[5][other].mean())
    assert estimates["rank1_with_identical_views"].value == pytest.approx(by_hand[1].mean())
    assert result.headline == "rank1"
    assert result.notes == []
    assert result.counts == {
        "subjects": 12,
        "gallery_sequences": 36,
        "probe_sequences": 36,
        "views": 3,
        "comparisons_all": 36 * 2,
        "unmatched_comparisons_all": 0,
        "unmatched_probes_all": 0,
    }


def test_the_headline_has_an_interval_over_subjects_and_it_is_the_same_every_time() -> None:
    keys, embeddings = walks(("00", "01"))
    first = _result(keys, embeddings, PAIRS).estimates["all"]["rank1"]
    assert first.low < first.value < first.high
    assert _result(keys, embeddings, PAIRS).estimates["all"]["rank1"] == first
    order = np.random.default_rng(0).permutation(len(keys))
    shuffled = keys.iloc[order].reset_index(drop=True), embeddings[order]
    again = _result(*shuffled, PAIRS).estimates["all"]["rank1"]
    assert (again.value, again.low, again.high) == pytest.approx(
        (first.value, first.low, first.high)
    )
    many, more = walks(("00", "01"), subjects=60)
    wide = first.high - first.low
    narrow = _result(many, more, PAIRS).estimates["all"]["rank1"]
    assert narrow.high - narrow.low < wide


def test_all_views_are_one_gallery_without_the_own_subject_at_the_own_view() -> None:
    keys, embeddings = walks(("00", "01"))
    result = _result(keys, embeddings, EVERY, cmc_ranks=36)
    precision = _precision_by_hand(keys, embeddings)
    expected = np.mean([np.mean(precision[view]) for view in VIEWS])
    estimates = result.estimates["all"]
    assert estimates["map"].value == pytest.approx(100 * expected)
    assert estimates["map"].low < estimates["map"].value < estimates["map"].high
    assert result.rank1["all"].shape == (3,)
    assert estimates["rank1"].value == pytest.approx(result.rank1["all"].mean())
    assert result.cmc["percent"].iloc[0] == pytest.approx(estimates["rank1"].value)
    assert result.cmc["percent"].iloc[-1] == 100
    for name in ("minp", "eer", "tar_far_1e-2"):
        assert 0 < estimates[name].low <= estimates[name].value <= estimates[name].high < 100
    # 36 x 36 pairs less 36 x 3 genuine ones are not enough for one in ten thousand, nor are 36
    # searches for one in a hundred
    assert not {"tar_far_1e-4", "fnir_fpir_1e-2"} & set(estimates)
    assert result.det["far"].is_monotonic_increasing
    assert result.det["frr"].is_monotonic_decreasing


def test_equal_error_and_acceptance_rates_are_those_of_all_pairs() -> None:
    keys, embeddings = walks(("00", "01"), subjects=40, noise=1.2)
    flat = embeddings.reshape(len(keys), -1).astype(np.float64)
    probes, gallery = (np.flatnonzero(keys["sequence"] == s) for s in ("00", "01"))
    distances = np.linalg.norm(flat[probes, None] - flat[gallery], axis=2)
    subject, view = keys["subject"].to_numpy(), keys["view"].to_numpy()
    same = subject[probes, None] == subject[gallery]
    genuine = distances[same & (view[probes, None] != view[gallery])]
    impostors = np.sort(distances[~same])
    estimates = _result(keys, embeddings, EVERY).estimates["all"]
    for rate, name in ((1e-2, "tar_far_1e-2"), (1e-3, "tar_far_1e-3"), (1e-4, "tar_far_1e-4")):
        allowed = int(rate * len(impostors))  # accepted impostors
        accepted = (genuine < impostors[allowed]).mean()
        assert estimates[name].value == pytest.approx(100 * accepted, abs=0.5)
    far = np.searchsorted(impostors, genuine, side="right") / len(impostors)
    frr = [(genuine > d).mean() for d in genuine]
    nearest = np.argmin(np.abs(far - frr))
    assert estimates["eer"].value == pytest.approx(100 * far[nearest], abs=0.5)
    assert estimates["eer"].low < estimates["eer"].value < estimates["eer"].high


def test_open_set_searches_are_those_of_all_probes() -> None:
    keys, embeddings = walks(("00", "01"), subjects=40, noise=0.5)
    flat = embeddings.reshape(len(keys), -1).astype(np.float64)
    probes, gallery = (np.flatnonzero(keys["sequence"] == s) for s in ("00", "01"))
    distances = np.linalg.norm(flat[probes, None] - flat[gallery], axis=2)
    subject, view = keys["subject"].to_numpy(), keys["view"].to_numpy()
    same = subject[probes, None] == subject[gallery]
    wrong = np.where(same, np.inf, distances).min(axis=1)
    right = np.where(same & (view[probes, None] != view[gallery]), distances, np.inf).min(axis=1)
    limit = np.sort(wrong)[1]  # one of 120 searches for nobody finds somebody
    fnir = _result(keys, embeddings, EVERY).estimates["all"]["fnir_fpir_1e-2"]
    assert fnir.value == pytest.approx(100 * (1 - np.mean((right < wrong) & (right < limit))))
    assert 0 < fnir.low < fnir.value < fnir.high <= 100


def test_protocols_of_the_same_gallery_and_probes_share_the_distances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline import evaluation

    keys, embeddings = walks(("00", "01"))
    calls = []

    def counting(*arguments: object) -> object:
        calls.append(arguments)
        return compare(*arguments)  # type: ignore[arg-type]

    compare = evaluation.compare
    monkeypatch.setattr(evaluation, "compare", counting)
    both = evaluate(keys, embeddings, OumvlpRelease.protocols, QUIET, 5)
    assert len(calls) == 1
    assert [r.protocol for r in both.results] == [PAIRS, EVERY]
    for result in both.results:
        assert result.estimates == _result(keys, embeddings, result.protocol).estimates


@pytest.mark.parametrize("changed", [{"excluded_views": ("180",)}, {"gallery": ("01", "02")}])
def test_protocols_of_other_views_or_galleries_do_not_share_them(changed: dict[str, Any]) -> None:
    keys, embeddings = walks(("00", "01", "02"))
    both = evaluate(keys, embeddings, [PAIRS, replace(EVERY, **changed)], QUIET, 5)
    for result in both.results:
        assert result.estimates == _result(keys, embeddings, result.protocol).estimates


def test_the_cmc_curve_starts_at_rank1_rises_and_ends_at_all() -> None:
    keys, embeddings = walks(("00", "01"))
    result = _result(keys, embeddings, PAIRS, cmc_ranks=12)
    percent = result.cmc["percent"].to_numpy()
    assert percent[0] == pytest.approx(result.estimates["all"]["rank1"].value)
    assert (np.diff(percent) >= 0).all()
    assert percent[-1] == 100  # twelve subjects in the gallery


def test_casia_e_has_a_table_for_each_condition_and_leaves_view_270_out() -> None:
    sequences = ("H-scene1-nm-1", "L-scene2-nm-1", "H-scene3-bg-2", "L-scene3_s-cl-1")
    keys, embeddings = walks((*sequences, "H-scene1-cl-1"))
    at_270 = keys["view"] == "180"
    keys.loc[at_270, "view"] = "270"
    result = _result(keys, embeddings, CASIA_E)
    assert result.views == ["000", "090"]
    used, those = _without(keys, embeddings, at_270 | (keys["sequence"] == "H-scene1-cl-1"))
    for condition, probe in zip(("NM", "BG", "CL"), sequences[1:], strict=True):
        expected = _rank_by_hand(used, those, CASIA_E, (probe,), 1)
        np.testing.assert_allclose(result.rank1[condition], expected)
    # H-scene1-cl-1 is neither gallery nor probe
    assert result.counts["probe_sequences"] == 3 * 12 * 2
    assert list(result.probes.table["condition"].unique()) == ["NM", "BG", "CL"]


def test_probes_without_a_counterpart_are_reported_both_ways() -> None:
    keys, embeddings = walks(("00", "01"), noise=0.0)
    at = (keys["subject"] == "00002") & (keys["sequence"] == "01")
    keys, embeddings = _without(keys, embeddings, at & (keys["view"] == "090"))
    result = _result(keys, embeddings, PAIRS)
    estimates = result.estimates["all"]
    assert estimates["rank1_matched_probes"].value == 100
    # two of the six pairs of different views have that gallery: a twelfth is lost there
    assert estimates["rank1"].value == pytest.approx(100 - 2 / 6 * 100 / 12)
    # the subject's probe at the view itself has nothing to find there anyway
    assert result.counts["unmatched_probes_all"] == 2
    assert result.counts["unmatched_comparisons_all"] == 2
    assert result.counts["comparisons_all"] == 36 * 2
    # without any gallery sequence, nothing is right in one gallery of all views either
    gone = (keys["subject"] == "00002") & (keys["sequence"] == "01")
    result = _result(*_without(keys, embeddings, gone), EVERY)
    for name in ("rank1", "map", "minp"):
        assert result.estimates["all"][name].value == pytest.approx(100 * 11 / 12)
        assert result.estimates["all"][f"{name}_matched_probes"].value == 100
    assert result.counts["unmatched_probes_all"] == 3
    assert result.counts["comparisons_all"] == 36
    assert result.rank1["all"] == pytest.approx(np.full(3, 100 * 11 / 12))


def test_a_view_without_gallery_is_no_pair() -> None:
    keys, embeddings = walks(("00", "01"), noise=0.0)
    gone = (keys["view"] == "180") & (keys["sequence"] == "01")
    result = _result(*_without(keys, embeddings, gone), PAIRS)
    assert np.isnan(result.rank1["all"][:, 2]).all()
    assert result.estimates["all"]["rank1"].value == 100


@pytest.mark.parametrize("protocols", [OumvlpRelease.protocols, (PAIRS,)])
def test_seen_from_one_view_the_headline_has_identical_views_and_says_so(
    protocols: tuple[Protocol, ...],
) -> None:
    keys, embeddings = walks(("00", "01"), views=("090",))
    evaluation = evaluate(keys, embeddings, protocols, QUIET, 5)
    (result,) = evaluation.results
    assert result.headline == "rank1_with_identical_views"
    estimate = result.estimates["all"][result.headline]
    assert estimate.value == _rank_by_hand(keys, embeddings, PAIRS, ("00",), 1)[0, 0]
    assert estimate.low < estimate.value < estimate.high
    assert "rank1" not in result.estimates["all"]
    assert result.cmc["percent"].iloc[0] == pytest.approx(estimate.value)
    assert "the headline is rank-1 with identical views" in result.notes[0]
    assert ["all_views is left out" in note for note in evaluation.notes] == [True] * (
        len(protocols) - 1
    )
    assert len(result.confusions) > 0


def test_with_one_view_there_is_nothing_for_all_views_alone() -> None:
    keys, embeddings = walks(("00", "01"), views=("090",))
    with pytest.raises(PipelineError, match="nothing can be evaluated:\nall_views is left out"):
        evaluate(keys, embeddings, [EVERY], QUIET, 5)


def test_a_single_subject_has_figures_without_intervals() -> None:
    keys, embeddings = walks(("00", "01"), subjects=1)
    for protocol in OumvlpRelease.protocols:
        result = _result(keys, embeddings, protocol)
        assert result.estimates["all"]["rank1"].value == 100
        assert np.isnan(result.estimates["all"]["rank1"].low)
        assert len(result.confusions) == 0
        assert "eer" not in result.estimates["all"]  # nobody else is there
        assert result.det.empty


def test_few_pairs_have_an_equal_error_rate_and_no_acceptance_rate() -> None:
    keys, embeddings = walks(("00", "01"), subjects=3, views=("000", "090"), noise=2.0)
    estimates = _result(keys, embeddings, EVERY).estimates["all"]
    assert 0 < estimates["eer"].value < 100
    assert not [name for name in estimates if name.startswith("tar")]


def test_the_table_for_people_ends_with_the_mean_of_the_other_views() -> None:
    rank1 = np.array([[90.0, 10.0, 20.0], [30.0, 90.0, np.nan], [50.0, 60.0, 90.0]])
    table = rank1_table(rank1, list(VIEWS))
    assert table["mean without identical view"].tolist() == [15.0, 30.0, 55.0]
    assert table.loc["090", "000"] == 30.0
    assert rank1_table(rank1[0], list(VIEWS))["rank-1"].tolist() == [90.0, 10.0, 20.0]


def test_a_condition_without_probes_is_left_out_and_said() -> None:
    keys, embeddings = walks(("H-scene1-nm-1", "H-scene2-nm-1", "H-scene2-cl-1"))
    result = _result(keys, embeddings, CASIA_E)
    assert list(result.estimates) == list(result.rank1) == ["NM", "CL"]
    assert result.notes[0].startswith("BG is left out: no probe among H-scene2-bg-1, ")


def test_a_name_with_a_star_is_as_good_as_all_names() -> None:
    keys, embeddings = walks(("nm-01", "nm-02", "bg-01", "cl-01"))
    probes = {"BG": ("bg-01",), "CL": ("cl-*",)}
    starred, _ = in_view_pairs_and_all_views("stars", ("nm-*",), probes, "", "")
    named = {"BG": ("bg-01",), "CL": ("cl-01",)}
    plain, _ = in_view_pairs_and_all_views("plain", ("nm-01", "nm-02"), named, "", "")
    one, other = (_result(keys, embeddings, p) for p in (starred, plain))
    assert one.estimates == other.estimates
    assert one.counts == other.counts
    assert one.counts["gallery_sequences"] == 72


@pytest.mark.parametrize("protocol", OumvlpRelease.protocols)
def test_the_worst_confusions_are_those_that_are_nearer_by_most(protocol: Protocol) -> None:
    keys, embeddings = walks(("00", "01"), subjects=30)
    worst = _result(keys, embeddings, protocol).confusions
    assert len(worst) == 20
    gaps = worst["right_distance"] - worst["wrong_distance"]
    assert gaps.is_monotonic_decreasing
    assert (gaps > 0).all()
    assert not worst[["probe_subject", "probe_sequence", "probe_view"]].duplicated().any()
    assert (worst["probe_subject"] == worst["right_subject"]).all()
    assert (worst["probe_subject"] != worst["wrong_subject"]).all()
    assert (worst["right_view"] != worst["probe_view"]).all()
    row = {key: number for number, key in enumerate(keys.iloc[:, 1:].itertuples(index=False))}
    flat = embeddings.reshape(len(keys), -1)
    for one in worst.itertuples():
        probe = row[one.probe_subject, one.probe_sequence, one.probe_view]
        wrong = row[one.wrong_subject, one.wrong_sequence, one.wrong_view]
        distance = np.linalg.norm(flat[probe] - flat[wrong])
        assert one.wrong_distance == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize("protocol", OumvlpRelease.protocols)
def test_who_is_not_in_the_gallery_is_confused_with_nobody(protocol: Protocol) -> None:
    keys, embeddings = walks(("00", "01"))
    gone = (keys["subject"] == "00002") & (keys["sequence"] == "01")
    worst = _result(*_without(keys, embeddings, gone), protocol).confusions
    assert 0 < len(worst) < 20
    assert "00002" not in set(worst["probe_subject"])
    assert np.isfinite(worst[["wrong_distance", "right_distance"]]).all(axis=None)


def test_confusions_are_the_worst_of_all_conditions_together() -> None:
    sequences = ("H-scene1-nm-1", "H-scene2-nm-1", "H-scene2-bg-1", "H-scene2-cl-1")
    keys, embeddings = walks(sequences, subjects=20, noise=2.0)
    worst = _result(keys, embeddings, CASIA_E).confusions
    assert len(worst) == 20
    assert (worst["right_distance"] - worst["wrong_distance"]).is_monotonic_decreasing
    assert worst["condition"].nunique() > 1


def test_every_probe_has_a_row() -> None:
    keys, embeddings = walks(("00", "01"))
    for result in evaluate(keys, embeddings, OumvlpRelease.protocols, QUIET, 5).results:
        table = result.probes.table
        assert list(table.columns) == PROBES.names
        assert len(table) == 36
        width = 3 if result.protocol is PAIRS else 1
        assert {len(ranks) for ranks in table["ranks"]} == {width}


def test_the_row_of_a_probe_without_a_right_entry_has_no_distance_to_one() -> None:
    keys, embeddings = walks(("00", "01"))
    gone = (keys["subject"] == "00002") & (keys["sequence"] == "01")
    table = _result(*_without(keys, embeddings, gone), EVERY).probes.table
    without = table["subject"] == "00002"
    assert table["right_distance"].isna().equals(without)
    assert [len(far) for far in table["genuine_far"]] == [0 if none else 2 for none in without]


def test_block_size_changes_nothing_and_re_ranking_something() -> None:
    keys, embeddings = walks(("00", "01"))
    plain = _result(keys, embeddings, EVERY)
    small = _result(keys, embeddings, EVERY, Method(block_bytes=1000, shown=False))
    for name, estimate in plain.estimates["all"].items():
        assert small.estimates["all"][name].value == pytest.approx(estimate.value, abs=0.1)
    method = Method(reranking=Reranking(20, 6, 0.3), shown=False)
    reranked = _result(keys, embeddings, EVERY, method)
    assert reranked.estimates["all"]["map"].value > plain.estimates["all"]["map"].value


def test_the_headline_alone_is_that_of_the_evaluation() -> None:
    keys, embeddings = walks(("H-scene1-nm-1", "H-scene2-nm-1", "H-scene2-cl-1"))
    result = _result(keys, embeddings, CASIA_E)
    expected = {c: estimates["rank1"].value for c, estimates in result.estimates.items()}
    assert rank1_by_condition(keys, embeddings, CASIA_E) == pytest.approx(expected)
    keys, embeddings = walks(("00", "01"), views=("090",))
    alone = _result(keys, embeddings, PAIRS).estimates["all"]["rank1_with_identical_views"].value
    found = rank1_by_condition(keys, embeddings, PAIRS)
    assert found == pytest.approx({"all": alone})


def test_a_condition_that_has_no_pair_of_other_views_has_no_figures_of_pairs() -> None:
    keys, embeddings = walks(("H-scene1-nm-1", "H-scene2-nm-1", "H-scene2-cl-1"), subjects=1)
    sequence, view = keys["sequence"], keys["view"]
    kept = (view == "000") | ((view == "090") & (sequence == "H-scene2-cl-1"))
    keys, embeddings = _without(keys, embeddings, ~kept)
    every = CasiaERelease(Path(), [], "release").protocols[1]
    result = _result(keys, embeddings, every)
    assert result.estimates["NM"]["rank1"].value == 0
    assert "eer" not in result.estimates["NM"]


def test_a_condition_seen_from_the_gallerys_view_alone_is_no_part_of_the_headline() -> None:
    keys, embeddings = walks(("H-scene1-nm-1", "H-scene2-nm-1", "H-scene2-cl-1"))
    seen_from = np.where(keys["sequence"] == "H-scene2-cl-1", "090", "000")
    keys, embeddings = _without(keys, embeddings, keys["view"] != seen_from)
    result = _result(keys, embeddings, CASIA_E)
    assert "rank1" not in result.estimates["NM"]
    (note,) = (note for note in result.notes if note.startswith("NM: "))
    assert "the headline is that of the other conditions" in note
    found = rank1_by_condition(keys, embeddings, CASIA_E)
    assert found == pytest.approx({"CL": result.estimates["CL"]["rank1"].value})

"""What is said of a change between two reports, and what cannot be compared."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from pipeline.comparison import PLACE, Change, compare, json_of, text_of
from pipeline.distance_pass import Method
from pipeline.errors import PipelineError
from pipeline.estimates import MATCHED, Estimate
from pipeline.evaluation import evaluate
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.probe_table import read_probes, write_probes
from pipeline.protocols import Protocol
from tests.pipeline.walks import walks

OUMVLP = OumvlpRelease.protocols


def _report(
    folder: Path,
    keys: pd.DataFrame,
    embeddings: npt.NDArray[np.float32],
    protocols: tuple[Protocol, ...] = OUMVLP,
) -> Path:
    evaluation = evaluate(keys, embeddings, protocols, Method(shown=False), 5)
    (folder / PLACE).parent.mkdir(parents=True)
    write_probes(folder / PLACE, [result.probes for result in evaluation.results])
    return folder


def _by_figure(changes: list[Change], protocol: str = "view_pairs") -> dict[str, Change]:
    return {change.figure: change for change in changes if change.protocol == protocol}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports on the same probes: much noise, hardly other noise, much less noise."""
    folder = tmp_path_factory.mktemp("reports")
    made = {}
    for name, noise in (("noisy", 1.2), ("hardly", 1.2), ("better", 0.6)):
        keys, embeddings = walks(("00", "01"), subjects=40, noise=noise)
        if name == "hardly":
            shift = np.random.default_rng(1).standard_normal(embeddings.shape)
            embeddings = embeddings + (0.1 * shift).astype(np.float32)
        made[name] = _report(folder / name, keys, embeddings)
    return made


def test_a_report_beside_itself_did_not_change(reports: dict[str, Path]) -> None:
    changes = compare(reports["noisy"], reports["noisy"])
    assert {change.verdict for change in changes} == {"no change"}
    alone = Change("view_pairs", "all", "rank1", 50.0, 50.0, Estimate(0.0))
    assert alone.verdict == "no change"  # without an interval, too
    assert replace(alone, after=51.0, difference=Estimate(1.0)).verdict == "no interval"
    assert {change.protocol for change in changes} == {"view_pairs", "all_views"}
    names = set(_by_figure(changes, "all_views"))
    assert {"rank1", "map", "minp", "eer", "tar_far_1e-2", "fnir_fpir_1e-2"} <= names


def test_a_report_beside_one_of_its_rows_in_another_order_did_not_change(
    tmp_path: Path, reports: dict[str, Path]
) -> None:
    shuffled = [
        replace(probes, table=probes.table.sample(frac=1, random_state=0))
        for probes in read_probes(reports["better"] / PLACE)
    ]
    write_probes(tmp_path / "probes.parquet", shuffled)
    changes = compare(reports["better"], tmp_path / "probes.parquet")
    assert {change.verdict for change in changes} == {"no change"}


def test_other_subjects_may_explain_a_little_change_and_no_great_one(
    reports: dict[str, Path],
) -> None:
    great = compare(reports["noisy"], reports["better"])
    for protocol in ("view_pairs", "all_views"):
        change = _by_figure(great, protocol)["rank1"]
        assert change.verdict == "more than other subjects explain"
        assert change.after - change.before == pytest.approx(change.difference.value)
        assert 0 < change.difference.low < change.difference.value < change.difference.high
    eer = _by_figure(great, "all_views")["eer"]
    assert eer.verdict == "more than other subjects explain"
    assert eer.difference.high < 0  # fewer errors
    little = _by_figure(compare(reports["noisy"], reports["hardly"]))["rank1"]
    assert little.verdict == "other subjects may explain it"
    # what both find hard cancels: pairing makes the interval narrower than a figure's own
    keys, embeddings = walks(("00", "01"), subjects=40, noise=1.2)
    own = evaluate(keys, embeddings, OUMVLP[:1], Method(shown=False), 5).results[0]
    rank1 = own.estimates["all"]["rank1"]
    assert little.difference.high - little.difference.low < (rank1.high - rank1.low) / 2


@pytest.mark.parametrize("difference", [Estimate(1.0, 0.0, 2.0), Estimate(-1.0, -2.0, 0.0)])
def test_other_subjects_may_explain_a_change_whose_interval_ends_at_0(
    difference: Estimate,
) -> None:
    change = Change("view_pairs", "all", "rank1", 50.0, 50.0 + difference.value, difference)
    assert change.verdict == "other subjects may explain it"


def test_files_and_folders_are_as_good_and_the_order_of_rows_is_free(
    tmp_path: Path, reports: dict[str, Path]
) -> None:
    keys, embeddings = walks(("00", "01"), subjects=40, noise=0.6)
    order = np.random.default_rng(0).permutation(len(keys))
    other = _report(tmp_path / "b", keys.iloc[order].reset_index(drop=True), embeddings[order])
    changes = compare(reports["better"] / PLACE, other)
    assert all(abs(change.difference.value) < 0.01 for change in changes)


def test_other_probes_are_refused_with_counts_and_names(
    tmp_path: Path, reports: dict[str, Path]
) -> None:
    keys, embeddings = walks(("00", "01"), subjects=40, noise=0.6)
    gone = ((keys["subject"] == "00002") & (keys["sequence"] == "00")).to_numpy()
    keys.loc[keys["subject"] == "00004", "subject"] = "99999"
    other = _report(tmp_path / "b", keys[~gone].reset_index(drop=True), embeddings[~gone])
    with pytest.raises(PipelineError, match="only reports on the same probes") as raised:
        compare(reports["better"], other)
    told = str(raised.value)
    assert "view_pairs: 6 of 120 probes are in A alone, not in B:\n  all 00002 00 000" in told
    assert "view_pairs: 3 of 117 probes are in B alone, not in A:\n  all 99999 00 000" in told


def test_other_galleries_are_refused_with_their_numbers(
    tmp_path: Path, reports: dict[str, Path]
) -> None:
    keys, embeddings = walks(("00", "01"), subjects=40, noise=0.6)
    entry = (keys["sequence"] == "01").to_numpy()
    gone = entry & (keys["subject"] == "00002").to_numpy() & (keys["view"] == "090").to_numpy()
    fewer = _report(tmp_path / "b", keys[~gone].reset_index(drop=True), embeddings[~gone])
    with pytest.raises(PipelineError) as raised:
        compare(reports["better"], fewer)
    for name in ("view_pairs", "all_views"):
        told = f"{name}: the gallery of 120 entries in A is another than that of 119 in B."
        assert told in str(raised.value)
    # as many, but of somebody else
    keys.loc[entry & (keys["subject"] == "00002"), "subject"] = "99999"
    other = _report(tmp_path / "c", keys, embeddings)
    with pytest.raises(PipelineError, match="of 120 entries in A is another than that of 120 in B"):
        compare(reports["better"], other)


def test_what_both_have_is_compared_whatever_its_order(
    tmp_path: Path, reports: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    keys, embeddings = walks(("00", "01"), subjects=40, noise=0.6)
    turned = _report(tmp_path / "turned", keys, embeddings, OUMVLP[::-1])
    assert compare(reports["noisy"], turned) == compare(reports["noisy"], reports["better"])
    assert capsys.readouterr().err == ""
    alone = _report(tmp_path / "alone", keys, embeddings, OUMVLP[1:])
    for one, other in ((reports["better"], alone), (alone, reports["better"])):
        changes = compare(one, other)
        assert {(change.protocol, change.verdict) for change in changes} == {
            ("all_views", "no change")
        }
        told = capsys.readouterr().err
        assert told == "not compared, in one report only: view_pairs\n"


def test_other_protocols_are_refused(tmp_path: Path, reports: dict[str, Path]) -> None:
    keys, embeddings = walks(("00", "01"), subjects=40)
    one, other = (
        _report(tmp_path / protocol.name, keys, embeddings, (protocol,)) for protocol in OUMVLP
    )
    with pytest.raises(PipelineError, match=r"view_pairs of OUMVLP in A, all_views of .* in B"):
        compare(one, other)
    turned = tuple(replace(p, gallery=("00",), probes={"all": ("01",)}) for p in OUMVLP)
    other = _report(tmp_path / "turned", keys, embeddings, turned)
    with pytest.raises(PipelineError, match="whose gallery, probes or views differ"):
        compare(reports["better"], other)


def test_the_two_splits_of_casia_e_are_not_taken_for_each_other(tmp_path: Path) -> None:
    keys, embeddings = walks(("H-scene1-nm-1", "H-scene2-nm-1"))
    folders = [
        _report(tmp_path / split, keys, embeddings, CasiaERelease(Path(), [], split).protocols)
        for split in ("release", "opengait")
    ]
    with pytest.raises(PipelineError, match=r"release split 500/114/400.* in A, .*200/814.* in B"):
        compare(*folders)


def test_a_report_of_other_code_is_told(tmp_path: Path, reports: dict[str, Path]) -> None:
    table = tmp_path / "old.parquet"
    pd.DataFrame({"subject": ["1"]}).to_parquet(table)
    with pytest.raises(PipelineError, match=r"not what this version reads(.|\n)*compare with that"):
        compare(table, reports["noisy"])


def test_a_missing_report_is_named(tmp_path: Path, reports: dict[str, Path]) -> None:
    for path, told in (
        (tmp_path, r"probes\.parquet is missing"),
        (tmp_path / "x.parquet", r"x\.parquet is missing: name a report's folder"),
    ):
        with pytest.raises(PipelineError, match=told):
            compare(reports["better"], path)
    (tmp_path / "metrics.json").touch()
    with pytest.raises(PipelineError, match=r"metrics\.json is no report: name its folder"):
        compare(tmp_path / "metrics.json", reports["better"])


def test_figures_of_matched_probes_are_told_where_they_differ(tmp_path: Path) -> None:
    keys, embeddings = walks(("00", "01"))
    report = _report(tmp_path / "a", keys, embeddings)
    assert not [c for c in compare(report, report) if c.figure.endswith(MATCHED)]
    gone = (keys["subject"] == "00002") & (keys["sequence"] == "01") & (keys["view"] == "090")
    keys, embeddings = keys[~gone].reset_index(drop=True), embeddings[~gone.to_numpy()]
    report = _report(tmp_path / "b", keys, embeddings)
    changes = compare(report, report)
    assert "rank1_matched_probes" in _by_figure(changes)
    # a probe has another view's entry in one gallery of all
    assert "rank1_matched_probes" not in _by_figure(changes, "all_views")


def test_a_competition_has_nothing_to_compare(tmp_path: Path, reports: dict[str, Path]) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "submission.csv").touch()
    with pytest.raises(PipelineError, match=r"is the report of a competition: .* no figures to"):
        compare(reports["better"], tmp_path)


def test_the_texts(reports: dict[str, Path]) -> None:
    changes = compare(reports["noisy"], reports["better"])
    text = text_of(changes)
    change = _by_figure(changes)["rank1"]
    line = next(line for line in text.splitlines() if " rank1 " in line)
    verdict = "more than other subjects explain"
    for part in (f"{change.before:.2f}", f"{change.difference.value:+.2f}", verdict):
        assert part in line
    assert "another seed may move figures as much" in text
    assert f'"verdict": "{verdict}"' in json_of(changes)
    assert "NaN" not in json_of(changes)


def test_a_change_without_an_interval_has_a_dash_for_people_and_null_for_programs() -> None:
    change = Change("view_pairs", "all", "rank1", 50.11111, 51.23456, Estimate(1.12344))
    line = text_of([change]).splitlines()[1]
    assert line.split()[-4:] == ["+1.12", "-", "no", "interval"]
    (row,) = json.loads(json_of([change]))
    assert (row["a"], row["b"], row["difference"]) == (50.1111, 51.2346, 1.1234)
    assert (row["low"], row["high"]) == (None, None)

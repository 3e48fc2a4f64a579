"""What a report holds, and that it is the same bytes every time."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.distance_pass import Method
from pipeline.estimates import Estimate
from pipeline.evaluation import Evaluation, evaluate
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.hid import Hid
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.protocols import Protocol
from pipeline.report import headline_rank1, result_text, write_report, written_metrics
from pipeline.submission import COLUMNS
from tests.pipeline.walks import walks

CASIA_E = CasiaERelease(Path(), [], "release").protocols
SEQUENCES = ("H-scene1-nm-1", "L-scene2-nm-1", "H-scene3-bg-2", "L-scene3_s-cl-1")


@pytest.fixture(scope="module")
def of_casia_e() -> Evaluation:
    """Both protocols of three conditions, with two views."""
    keys, embeddings = walks(SEQUENCES, views=("000", "090"))
    return evaluate(keys, embeddings, CASIA_E, Method(shown=False), 20)


@pytest.fixture(scope="module")
def of_oumvlp() -> Evaluation:
    keys, embeddings = walks(("00", "01"))
    return evaluate(keys, embeddings, OumvlpRelease.protocols, Method(shown=False), 20)


def _history(last: float) -> pd.DataFrame:
    return pd.DataFrame({"step": [1, 2, 3], "p": [6.5, 6.4, last], "loss": [0.3, 0.2, 0.1]})


def _written(
    folder: Path,
    evaluation: Evaluation,
    protocols: tuple[Protocol, ...],
    histories: dict[str, pd.DataFrame] | None = None,
) -> dict[str, float]:
    return write_report(
        folder, evaluation, list(protocols), histories or {"pretrain": _history(6.0)}, COLUMNS[0]
    )


def test_a_report_of_two_protocols_and_three_conditions(
    tmp_path: Path, of_casia_e: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "casia_e"
    histories = {"pretrain": _history(6.25), "finetune": _history(6.0)}
    flat = _written(folder, replace(of_casia_e, notes=["Two were refused."]), CASIA_E, histories)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"NM", "BG", "CL", "all_views", "p", "protocols", "notes"}
    pairs, every = of_casia_e.results
    for where, result in ((metrics, pairs), (metrics["all_views"], every)):
        for condition in ("NM", "BG", "CL"):
            for name, estimate in result.estimates[condition].items():
                assert where[condition][name] == pytest.approx(estimate.value, abs=1e-4)
    rank1 = pairs.estimates["CL"]["rank1"]
    assert metrics["CL"]["rank1_low"] == pytest.approx(rank1.low, abs=1e-4)
    assert metrics["CL"]["rank1_high"] == pytest.approx(rank1.high, abs=1e-4)
    assert metrics["p"] == {"pretrain": 6.25, "finetune": 6.0}
    assert metrics["notes"] == ["Two were refused."]
    described = metrics["protocols"]["view_pairs"]
    assert described["data"] == "CASIA-E, release split 500/114/400"
    assert described["excluded_views"] == ["270"]
    assert described["rules"] == CASIA_E[0].rules()
    assert described["subjects"] == 12
    assert flat["CL_rank1"] == metrics["CL"]["rank1"]
    assert flat["all_views_BG_map"] == metrics["all_views"]["BG"]["map"]
    assert flat["p_finetune"] == 6.0
    assert all(isinstance(value, float | int) for value in flat.values())
    assert written_metrics(folder) == flat
    means = [metrics[condition]["rank1"] for condition in ("NM", "BG", "CL")]
    assert headline_rank1(folder) == pytest.approx(np.mean(means))
    table = pd.read_csv(folder / "tables/rank1_bg.csv", dtype={"probe view": str})
    assert table["probe view"].tolist() == ["000", "090"]
    assert table.loc[0, "090"] == pytest.approx(pairs.rank1["BG"][0, 1], abs=0.01)
    table = pd.read_csv(folder / "tables/all_views_rank1_bg.csv", dtype={"probe view": str})
    assert table["rank-1"].to_numpy() == pytest.approx(every.rank1["BG"], abs=0.01)
    table = pd.read_csv(folder / "tables/by_view.csv", dtype={"probe view": str})
    means = table[table["gallery view"].isna()].set_index(["protocol", "condition", "figure"])
    for result, figures in ((pairs, ("rank1", "rank20")), (every, ("rank1", "map", "minp"))):
        for figure in figures:
            rows = means.loc[[(result.protocol.name, "BG", figure)]]
            assert rows["probe view"].tolist() == ["000", "090"]
            expected = result.estimates["BG"][figure].value
            assert rows["percent"].mean() == pytest.approx(expected, abs=0.01)
    of_pairs = table[table["gallery view"].notna()]
    assert len(of_pairs) == 3 * 2 * 2 * 4  # conditions, views twice, ranks
    summary = pd.read_csv(folder / "tables/summary.csv")
    assert summary["protocol"].tolist() == ["view_pairs"] * 3 + ["all_views"] * 3
    for name in ("cmc", "det", "confusions", "estimates"):
        assert "protocol" in pd.read_csv(folder / f"tables/{name}.csv")
    printed = capsys.readouterr().out
    assert "CASIA-E, release split 500/114/400, view_pairs: Each view is a gallery" in printed
    assert "12 unseen subjects, 2 views, 72 probes against 24 gallery sequences" in printed
    assert "Excluded views: 270." in printed
    assert "Two were refused." in printed
    assert "pretrain 6.250, finetune 6.000" in printed
    assert str(folder / "tables") in printed
    assert result_text(folder) in printed


def test_the_headline_is_printed_with_its_interval(tmp_path: Path, of_oumvlp: Evaluation) -> None:
    _written(tmp_path / "r", of_oumvlp, OumvlpRelease.protocols)
    text = result_text(tmp_path / "r")
    for result in of_oumvlp.results:
        rank1 = result.estimates["all"]["rank1"]
        assert f"{rank1.value:.1f} ({rank1.low:.1f} to {rank1.high:.1f})" in text


def test_a_single_condition_needs_no_name(tmp_path: Path, of_oumvlp: Evaluation) -> None:
    flat = _written(tmp_path / "r", of_oumvlp, OumvlpRelease.protocols)
    pairs, every = of_oumvlp.results
    for name in ("rank1", "rank5", "rank1_matched_probes", "rank1_with_identical_views"):
        assert flat[name] == pytest.approx(pairs.estimates["all"][name].value, abs=1e-4)
    assert flat["all_views_map"] == pytest.approx(every.estimates["all"]["map"].value, abs=1e-4)
    assert written_metrics(tmp_path / "r") == flat
    assert headline_rank1(tmp_path / "r") == flat["rank1"]
    assert (tmp_path / "r/tables/rank1_all.csv").exists()


def test_one_condition_of_several_keeps_its_name(tmp_path: Path) -> None:
    keys, embeddings = walks((SEQUENCES[0], SEQUENCES[3]), views=("000", "090"))
    evaluation = evaluate(keys, embeddings, CASIA_E, Method(shown=False), 5)
    flat = _written(tmp_path / "r", evaluation, CASIA_E)
    assert {"CL_rank1", "all_views_CL_map"} <= set(flat)
    assert "rank1" not in flat


def test_a_condition_may_have_the_name_that_pandas_gives_to_nothing(tmp_path: Path) -> None:
    (protocol,) = (replace(p, probes={"NA": ("00",)}) for p in OumvlpRelease.protocols[:1])
    keys, embeddings = walks(("00", "01"), views=("000", "090"))
    protocols = (replace(protocol, probes={"NA": ("00",), "NM": ("00",)}),)
    _written(tmp_path, evaluate(keys, embeddings, protocols, Method(shown=False), 5), protocols)
    assert re.search(r"^% +NA +NM\nrank-1 +\d", result_text(tmp_path), re.MULTILINE)


def test_an_estimate_without_interval_has_no_ends(tmp_path: Path, of_oumvlp: Evaluation) -> None:
    alone = replace(of_oumvlp.results[0], estimates={"all": {"rank1": Estimate(50.0)}})
    flat = _written(tmp_path / "r", Evaluation([alone], None, []), OumvlpRelease.protocols[:1])
    assert flat == {"rank1": 50.0, "p_pretrain": 6.0}
    assert "50.0" in result_text(tmp_path / "r")
    assert "nan" not in result_text(tmp_path / "r").lower()


def test_seen_from_one_view_no_figure_is_nan(tmp_path: Path) -> None:
    keys, embeddings = walks(("00", "01"), views=("090",))
    evaluation = evaluate(keys, embeddings, OumvlpRelease.protocols, Method(shown=False), 5)
    flat = _written(tmp_path / "r", evaluation, OumvlpRelease.protocols)
    assert "rank1" not in flat
    low, value, high = (flat[f"rank1_with_identical_views{end}"] for end in ("_low", "", "_high"))
    assert low < value < high
    assert headline_rank1(tmp_path / "r") == value
    text = result_text(tmp_path / "r")
    assert "nan" not in text.lower()
    assert f"{value:.1f} ({low:.1f} to {high:.1f})" in text
    assert "all_views is left out" in text
    assert "All views are one gallery" not in text  # it was not applied


def test_a_submission_is_written_where_nobody_knows_who_walks(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "video": ["00001", "00002"],
            "subject": ["502", "501"],
            "how": ["nearest", "no frames"],
            "distance": [1.0, np.nan],
        }
    )
    folder = tmp_path / "r"
    evaluation = Evaluation([], table, ["1 of 2 probes have no usable frame."])
    flat = _written(folder, evaluation, Hid.protocols)
    assert (folder / "tables/submission.csv").read_text() == (
        "videoID,subjectID\n00001,502\n00002,501\n"
    )
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["submission"] == {"probes": 2, "nearest": 1, "no_frames": 1}
    assert flat["submission_probes"] == 2
    assert headline_rank1(folder) is None
    text = result_text(folder)
    assert f"submission: 2 probes in {folder / 'tables/submission.csv'}" in text
    assert "1 of 2 probes have no usable frame." in text


def test_same_evaluation_same_bytes(tmp_path: Path, of_casia_e: Evaluation) -> None:
    contents = []
    for name in ("a", "b"):
        folder = tmp_path / name
        _written(folder, of_casia_e, CASIA_E)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        contents.append([(p.relative_to(folder), p.read_bytes()) for p in files])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("steps", [0, 3])
def test_pooling_without_p_and_training_without_steps(
    tmp_path: Path, of_oumvlp: Evaluation, steps: int
) -> None:
    history = _history(6.0).assign(p=float("nan")).head(steps)
    flat = _written(tmp_path / "r", of_oumvlp, OumvlpRelease.protocols, {"pretrain": history})
    assert not [name for name in flat if name.startswith("p_")]
    assert "final p: none" in result_text(tmp_path / "r")

"""What a report holds, and that it is the same bytes every time."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation import Evaluation
from pipeline.layouts.casia_e_release import CasiaERelease
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.report import result_text, write_report, written_metrics

VIEWS = ["000", "090"]


def _evaluation(conditions: tuple[str, ...]) -> Evaluation:
    names = [
        f"rank{k}{suffix}"
        for suffix in ("", "_matched_probes", "_with_identical_views")
        for k in (1, 5)
    ]
    return Evaluation(
        VIEWS,
        {c: np.array([[90.0, 40.0 + i], [np.nan, 80.0]]) for i, c in enumerate(conditions)},
        pd.concat(
            [
                pd.DataFrame({"condition": c, "rank": [1, 2], "percent": [40.123456, 60.0]})
                for c in conditions
            ]
        ),
        {c: {name: 10.0 * i + j for j, name in enumerate(names)} for i, c in enumerate(conditions)},
        {"subjects": 4, "gallery_sequences": 8, "probe_sequences": 8, "views": 2},
    )


def _history(last: float) -> pd.DataFrame:
    return pd.DataFrame({"step": [1, 2, 3], "p": [6.5, 6.4, last], "loss": [0.3, 0.2, 0.1]})


def test_a_report_of_three_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    histories = {"pretrain": _history(6.25), "finetune": _history(6.0)}
    folder = tmp_path / "casia_e"
    flat = write_report(
        folder, _evaluation(("NM", "BG", "CL")), CasiaERelease.protocol, histories, 3
    )
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["BG"]["rank5"] == 11.0
    assert metrics["p"] == {"pretrain": 6.25, "finetune": 6.0}
    assert metrics["protocol"]["excluded_views"] == ["270"]
    assert flat["CL_rank1"] == 20.0
    assert metrics["protocol"]["refused_test_sequences"] == 3
    assert flat["p_finetune"] == 6.0
    assert written_metrics(folder) == flat
    table = pd.read_csv(folder / "tables/rank1_bg.csv", dtype={"probe view": str})
    assert table["probe view"].tolist() == VIEWS
    assert table.loc[0, "090"] == 41.0
    for name in ("rank1_nm", "rank1_bg", "rank1_cl", "cmc", "p"):
        picture = cv2.imread(str(folder / f"figures/{name}.png"))
        assert picture is not None
        assert picture.std() > 5  # something is drawn
    printed = capsys.readouterr().out
    assert "CASIA-E: 4 unseen subjects, 2 views" in printed
    assert "pretrain 6.250, finetune 6.000" in printed
    assert str(folder / "figures") in printed
    assert result_text(folder) in printed


def test_a_single_condition_needs_no_name(tmp_path: Path) -> None:
    flat = write_report(
        tmp_path / "r",
        _evaluation(("all",)),
        OumvlpRelease.protocol,
        {"pretrain": _history(6)},
        0,
    )
    assert flat["rank1"] == 0.0
    assert flat["rank5"] == 1.0
    assert written_metrics(tmp_path / "r") == flat
    assert (tmp_path / "r/tables/rank1_all.csv").exists()


def test_same_evaluation_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        folder = tmp_path / name
        write_report(
            folder,
            _evaluation(("all",)),
            OumvlpRelease.protocol,
            {"pretrain": _history(6.0)},
            0,
        )
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        contents.append([(p.relative_to(folder), p.read_bytes()) for p in files])
    assert contents[0] == contents[1]


@pytest.mark.parametrize("steps", [0, 3])
def test_pooling_without_p_and_training_without_steps(tmp_path: Path, steps: int) -> None:
    history = _history(6.0).assign(p=float("nan")).head(steps)
    flat = write_report(
        tmp_path / "r",
        _evaluation(("all",)),
        OumvlpRelease.protocol,
        {"pretrain": history},
        0,
    )
    assert not [name for name in flat if name.startswith("p_")]
    assert "final p: none" in result_text(tmp_path / "r")

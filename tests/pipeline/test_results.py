"""What `make repro` prints at the end."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline import results
from pipeline.evaluation import Evaluation
from pipeline.layouts.hid import Hid
from pipeline.report import write_report
from pipeline.submission import COLUMNS


def test_without_reports_it_says_only_where_the_runs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    results.main()
    assert capsys.readouterr().out.strip() == "runs, curves of p and settings side by side: make ui"


def test_a_competition_has_no_figures_but_a_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame(
        {"video": ["00001"], "subject": ["502"], "how": ["nearest"], "distance": [1.0]}
    )
    history = pd.DataFrame({"step": [1, 2], "p": [6.5, 6.4], "loss": [0.3, 0.2]})
    write_report(
        Path("reports/casia_e"),
        Evaluation([], table, []),
        list(Hid.protocols),
        {"pretrain": history, "finetune": history},
        COLUMNS[0],
    )
    capsys.readouterr()
    results.main()
    told = capsys.readouterr().out
    assert "submission: 1 probes in reports/casia_e/tables/submission.csv" in told
    assert "final p: pretrain 6.400, finetune 6.400" in told

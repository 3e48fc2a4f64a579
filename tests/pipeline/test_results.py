"""What `make repro` prints at the end."""

from pathlib import Path

import pytest

from pipeline import results


def test_without_reports_it_says_only_where_the_runs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    results.main()
    assert capsys.readouterr().out.strip() == "runs, curves of p and settings side by side: make ui"

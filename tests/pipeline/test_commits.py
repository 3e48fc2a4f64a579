from pathlib import Path

import pytest

from pipeline import mlflow_store
from pipeline.commits import git


def test_no_git_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_store, "CODE", tmp_path / "absent")
    assert git("rev-parse", "HEAD") == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git("rev-parse", "HEAD") == ""

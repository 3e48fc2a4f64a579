from pathlib import Path

import pytest

from pipeline import mlflow_store
from pipeline.commits import code_commit, git


def test_no_git_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_store, "CODE", tmp_path / "absent")
    assert git("rev-parse", "HEAD") == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git("rev-parse", "HEAD") == ""


def test_a_repository_that_git_does_not_read_is_no_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_store, "CODE", tmp_path)
    assert code_commit() == "not known: no git repository"
    (tmp_path / ".git").mkdir()  # as one that another user owns, say
    assert code_commit().startswith("not known: git does not read its repository here")

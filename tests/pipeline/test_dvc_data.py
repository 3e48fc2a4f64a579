import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import dvc_data, mlflow_store
from pipeline.errors import PipelineError


@pytest.fixture(scope="module", params=[".", "gait"], ids=["a repository", "a folder of one"])
def repository(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A repository with one commit, and the folder in it that is a project: DVC has data/walk, git
    has params.yaml. Do not write there."""
    folder = tmp_path_factory.mktemp("repository")
    project = folder / request.param
    (project / "data").mkdir(parents=True)
    (project / "data" / "walk").write_text("left, right")
    (project / "params.yaml").write_text("seed: 1")
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    dvc = [sys.executable, "-m", "dvc"]
    for command in (
        ["git", "-C", str(folder), "init", "-q"],
        [*dvc, "init", "-q", *([] if project == folder else ["--subdir"])],
        [*dvc, "add", "-q", "data/walk"],
        ["git", "add", "-A"],
        ["git", *identity, "commit", "-q", "-m", "a walk"],
    ):
        subprocess.run(command, cwd=project, check=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    return folder, request.param


@pytest.fixture
def commit(repository: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The commit of a project of the test's own, in which we are."""
    folder, name = repository
    project = shutil.copytree(folder, tmp_path / "repository") / name
    monkeypatch.chdir(project)
    monkeypatch.setattr(mlflow_store, "CODE", project)
    dvc_data._cache.cache_clear()
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return head.stdout.strip()


def test_what_a_revision_had_is_fetched(commit: str, tmp_path: Path) -> None:
    Path("data/walk").unlink()
    Path("params.yaml").write_text("seed: 2")
    dvc_data.get("data/walk", commit, tmp_path / "walk")
    dvc_data.get("params.yaml", commit, tmp_path / "params")
    assert (tmp_path / "walk").read_text() == "left, right"
    assert (tmp_path / "params").read_text() == "seed: 1"
    with pytest.raises(PipelineError, match="DVC cannot fetch data/run of "):
        dvc_data.get("data/run", commit, tmp_path / "run")


def test_the_cache_is_found(commit: str) -> None:
    digest = hashlib.md5(b"left, right").hexdigest()
    assert dvc_data.cached(digest).read_text() == "left, right"
    assert not dvc_data.cached("0" * 32).exists()

"""Without DVC; under it: tests/stages/test_dvc_repro.py."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import mlflow_store, restored
from pipeline.mlflow_store import tracking_uri
from pipeline.restored_experiments import Restored, _params, experiments_without_row
from pipeline.settings import Settings
from tests.tracked_runs import tracked

Commit = Callable[..., str]


@pytest.fixture
def commit(tracking_store: Path) -> Commit:
    """``commit(oumvlp="1", casia_e="1")`` commits a dvc.lock with these outputs of evaluate."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", "-C", str(tracking_store), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def make(ref: str = "", **outputs: str) -> str:
        stages = [f"  evaluate@{dataset}: {{md5: {md5}}}" for dataset, md5 in outputs.items()]
        lock = "\n".join(["stages:", *stages]) if stages else ""
        (tracking_store / "dvc.lock").write_text(lock, encoding="utf-8")
        git("add", "-f", "dvc.lock")
        git("commit", "-q", "--allow-empty", "-m", "locked")
        made = git("rev-parse", "HEAD")
        if ref:
            git("update-ref", ref, made)
            git("reset", "-q", "--hard", "HEAD~1")
        return made

    return make


def without_row() -> list[Restored]:
    client = mlflow_store.open_store(tracking_uri())
    return sorted(experiments_without_row(client))


def test_an_experiment_tells_of_the_results_that_it_made(commit: Commit) -> None:
    base = commit(oumvlp="1", casia_e="1")
    below = f"refs/exps/{base[:2]}/{base[2:]}"
    one = commit(f"{below}/one", oumvlp="1", casia_e="2")
    both = commit(f"{below}/both", oumvlp="2", casia_e="2")
    commit(f"{below}/none", oumvlp="1", casia_e="1")
    commit("refs/exps/exec/EXEC_BRANCH", oumvlp="3", casia_e="3")
    assert without_row() == [
        Restored("both", both, "casia_e"),
        Restored("both", both, "oumvlp"),
        Restored("one", one, "casia_e"),
    ]


def test_an_experiment_that_evaluated_alone_shows_what_was_trained_before() -> None:
    settings = Settings.load(Path(__file__).parents[2] / "params.yaml")
    locked = {
        "pretrain": {"params": {"params.yaml": {"seed": 7, "pretrain": {"lr": 0.5}}}},
        "evaluate@oumvlp": {},
    }
    params = _params(settings, locked)
    assert (params["seed"], params["pretrain.lr"]) == (7, 0.5)
    assert params["finetune.lr"] == settings.finetune.lr
    assert _params(settings, {}) == settings.flat()


def test_without_a_lock_before_all_is_the_experiments(commit: Commit) -> None:
    base = commit()
    made = commit(f"refs/exps/{base[:2]}/{base[2:]}/first", oumvlp="1")
    assert without_row() == [Restored("first", made, "oumvlp")]


@pytest.mark.parametrize("waits", [False, True], ids=["sent", "waits here"])
def test_an_experiment_whose_run_is_there_or_waits_is_left_alone(
    waits: bool, commit: Commit, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = commit(oumvlp="1", casia_e="1")
    made = commit(f"refs/exps/{base[:2]}/{base[2:]}/walk", oumvlp="2", casia_e="2")
    with monkeypatch.context() as patch:
        patch.setenv("DVC_EXP_NAME", "walk")
        if waits:
            patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with tracked(stage="evaluate", dataset="casia_e"):
            pass
        with tracked(stage="pretrain", dataset="oumvlp"):
            pass
    assert without_row() == [Restored("walk", made, "oumvlp")]


def test_results_that_are_not_in_the_cache_are_one_line(
    commit: Commit,
    project: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project())
    base = commit(oumvlp="1", casia_e="1")
    for name in ("walk", "run"):
        commit(f"refs/exps/{base[:2]}/{base[2:]}/{name}", oumvlp=name, casia_e=name)
    restored.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("`dvc exp pull REMOTE NAME` brings them: run, walk")

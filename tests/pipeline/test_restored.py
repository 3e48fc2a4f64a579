"""Without DVC; under it: tests/stages/test_dvc_repro.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipeline.evaluation_run import result_digest
from pipeline.mlflow_store import tracking_uri
from pipeline.restored import main
from pipeline.settings import Settings
from tests.tracked_runs import tracked

UNREACHABLE = "http://user:hunter2@127.0.0.1:9"


@pytest.fixture
def reports(
    project: Callable[..., Path], tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A project with a report of OUMVLP, in which we are."""
    folder = project()
    monkeypatch.chdir(folder)
    report = folder / "reports" / "oumvlp"
    report.mkdir(parents=True)
    (report / "metrics.json").write_text('{"rank1": 50.0}', encoding="utf-8")
    return folder / "reports"


def n_runs() -> int:
    client = MlflowClient(tracking_uri())
    return len(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def test_without_a_report_there_is_nothing_to_record(
    reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (reports / "oumvlp" / "metrics.json").unlink()
    main()
    assert capsys.readouterr() == ("", "")
    assert n_runs() == 0


def test_a_report_that_dvc_does_not_vouch_for_gets_no_row(
    reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main()
    assert "reports/oumvlp: not that of the present settings" in capsys.readouterr().out
    assert n_runs() == 0


def test_a_store_that_does_not_answer_is_said_and_no_error(
    reports: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    main()
    output = capsys.readouterr()
    assert "the MLflow store (MLFLOW_TRACKING_URI) does not answer" in output.err
    assert "hunter2" not in output.err + output.out


@pytest.mark.parametrize("waits", [False, True], ids=["sent", "waits here"])
def test_a_result_whose_run_is_there_or_waits_is_left_alone(
    waits: bool,
    reports: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flat = Settings.load().flat()
    with monkeypatch.context() as patch:
        if waits:
            patch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
        with tracked(stage="evaluate") as run:
            run.made(result_digest("oumvlp", flat, reports / "oumvlp" / "metrics.json"))
    capsys.readouterr()
    main()
    assert capsys.readouterr() == ("", "")
    assert n_runs() == (0 if waits else 1)


def test_nothing_is_recorded_twice_while_the_experiment_is_in_the_bin(
    reports: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings.load()
    client = MlflowClient(tracking_uri())
    with tracked(stage="evaluate", experiment=settings.runtime.experiment) as run:
        run.made(result_digest("oumvlp", settings.flat(), reports / "oumvlp" / "metrics.json"))
    experiment = client.get_run(run.run_id).info.experiment_id
    client.delete_experiment(experiment)
    capsys.readouterr()
    main()
    told = capsys.readouterr().err
    assert f"get no rows: experiment {settings.runtime.experiment} was deleted: `mlflow" in told
    client.restore_experiment(experiment)
    main()
    assert n_runs() == 1


def test_a_result_in_the_bin_is_known_in_another_experiment(reports: Path) -> None:
    client = MlflowClient(tracking_uri())
    with tracked(stage="evaluate", experiment="old") as run:
        metrics = reports / "oumvlp" / "metrics.json"
        run.made(result_digest("oumvlp", Settings.load().flat(), metrics))
    client.delete_experiment(client.get_run(run.run_id).info.experiment_id)
    main()
    assert n_runs() == 0

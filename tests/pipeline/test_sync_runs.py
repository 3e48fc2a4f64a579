import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pipeline import mlflow_store
from pipeline.errors import PipelineError
from pipeline.mlflow_store import run_id_of, tracking_uri
from pipeline.run_record import open_record
from pipeline.sync_runs import main
from pipeline.tracking import TrackedRun

PROJECT = Path(__file__).parents[2]
UNREACHABLE = "http://user:hunter2@127.0.0.1:9"

Offline = Callable[..., TrackedRun]


@pytest.fixture
def offline(tracking_store: Path, monkeypatch: pytest.MonkeyPatch) -> Offline:
    """``offline(stage, folder=..., fails=...)``: a run whose store is down from start to end."""

    def work(
        stage: str = "pretrain",
        upstream: dict[str, str] | None = None,
        folder: Path | None = None,
        fails: bool = False,
    ) -> TrackedRun:
        figures = tracking_store / "figures"
        figures.mkdir(exist_ok=True)
        (figures / "p.png").write_bytes(b"picture")
        run = TrackedRun(stage, "oumvlp", "walks", {"seed": 0}, upstream or {}, folder=folder)
        with monkeypatch.context() as patch, suppress(ZeroDivisionError):
            patch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
            with run:
                for step in range(1, 1201):
                    run.log(step, {"loss": step / 8})
                run.artifact(figures)
                run.made(f"digest of {stage}")
                if fails:
                    raise ZeroDivisionError
        return run

    return work


def the_runs() -> dict[str, Any]:
    """All runs in the store, by their stage."""
    client = MlflowClient(tracking_uri())
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = list(client.search_runs(ids))
    by_stage = {run.data.tags["stage"]: run for run in runs}
    assert len(by_stage) == len(runs)
    return by_stage


def test_nothing_to_send_is_said(tracking_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main()
    assert capsys.readouterr().out == "no run waits to be sent to MLflow\n"


def test_runs_of_a_store_that_was_down_arrive_whole(
    offline: Offline, tracking_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = offline("pretrain", folder=tracking_store / "runs" / "pretrain-f00d" / "record")
    second = offline("finetune", {"pretrain": "digest of pretrain"})
    end = second._record.end
    assert end is not None
    assert the_runs() == {}
    main()
    pretrain, finetune = the_runs()["pretrain"], the_runs()["finetune"]
    for run, sent in ((first, pretrain), (second, finetune)):
        assert sent.data.params == {"seed": "0"}
        assert sent.info.status == "FINISHED"
        assert sent.info.start_time == run._run.start_ms
        points = MlflowClient(tracking_uri()).get_metric_history(sent.info.run_id, "loss")
        assert sorted((p.step, p.value) for p in points) == [(s, s / 8) for s in range(1, 1201)]
        figure = tracking_store / "mlartifacts" / sent.info.run_id / "artifacts/figures/p.png"
        assert figure.read_bytes() == b"picture"
    assert finetune.info.end_time == end.time_ms
    assert finetune.data.tags["upstream_pretrain_run_id"] == pretrain.info.run_id
    assert pretrain.data.tags["output_digest"] == "digest of pretrain"
    assert run_id_of("digest of pretrain") == pretrain.info.run_id
    assert mlflow_store.record_folders() == []
    told = capfd.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in told] == ["pretrain-oumvlp", "finetune-oumvlp"]
    assert all(line.endswith("sent, 1200 metrics, FINISHED") for line in told)
    main()
    assert capfd.readouterr().out == "no run waits to be sent to MLflow\n"


def test_a_run_that_failed_is_kept_if_it_may_go_on(
    offline: Offline, tracking_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tracking_store / "runs" / "pretrain-f00d" / "record"
    offline("pretrain", folder=folder, fails=True)
    offline("evaluate", fails=True)
    main()
    assert {run.info.status for run in the_runs().values()} == {"FAILED"}
    assert mlflow_store.record_folders() == [folder]
    main()
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("sent, 1200 metrics, FAILED; kept, so that its stage can go on")
    assert told[1].endswith("sent, 1200 metrics, FAILED")
    assert told[2].endswith("nothing new, FAILED; kept, so that its stage can go on")
    with TrackedRun("pretrain", "oumvlp", "walks", {}, {}, folder=folder):
        pass
    assert the_runs()["pretrain"].info.status == "FINISHED"


def test_a_store_that_does_not_answer_is_an_error_and_loses_nothing(
    offline: Offline, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    offline()
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
        with pytest.raises(PipelineError) as raised:
            main()
    assert "does not answer" in str(raised.value)
    output = capfd.readouterr()
    assert "hunter2" not in f"{raised.value}{output.out}{output.err}"
    main()
    assert the_runs()["pretrain"].info.status == "FINISHED"


def test_a_run_that_the_store_refuses_holds_no_other_up(offline: Offline) -> None:
    first = offline("pretrain")
    offline("finetune")
    record = open_record(first._record.folder)
    assert record is not None
    record.acknowledge(run_id="0" * 32)  # unknown there
    record.release()
    with pytest.raises(PipelineError, match="refuses 1 of the runs") as raised:
        main()
    assert str(first._record.folder) in str(raised.value)
    assert list(the_runs()) == ["finetune"]
    assert mlflow_store.record_folders() == [first._record.folder]


def test_a_run_at_work_is_left_to_its_stage(
    tracking_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TrackedRun("pretrain", "oumvlp", "walks", {}, {}) as run:
        main()
        assert f"{run._record.folder}: skipped, its stage is at work" in capsys.readouterr().out


CHILD = """
import os, signal, sys
from pathlib import Path
from pipeline import mlflow_store, tracking
mlflow_store.ROOT = mlflow_store.CODE = Path(sys.argv[1])
mlflow_store.RUN_IDS = Path(sys.argv[1], "runs", "run_ids.json")
resumed_from = mlflow_store.RUN_IDS.parent / "p" / "record"
for name, folder in (("pretrain", resumed_from), ("evaluate", None)):
    run = tracking.TrackedRun(name, "oumvlp", "walks", {}, {}, folder=folder).__enter__()
    run.log(1, {"loss": 0.5})
    run.keep()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_runs_that_were_killed_are_sent_as_far_as_they_went(
    tracking_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(
        [sys.executable, "-c", CHILD, str(tracking_store)],
        cwd=PROJECT,
        env={**os.environ, "MLFLOW_TRACKING_URI": UNREACHABLE},
    )
    main()
    runs = the_runs()
    assert {run.data.metrics["loss"] for run in runs.values()} == {0.5}
    assert {run.info.status for run in runs.values()} == {"KILLED"}
    assert all(run.info.end_time >= run.info.start_time for run in runs.values())
    assert mlflow_store.record_folders() == [tracking_store / "runs" / "p" / "record"]
    told = capsys.readouterr().out
    assert "sent, 1 metrics, KILLED; kept, so that its stage can go on" in told

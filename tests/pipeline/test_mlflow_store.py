import errno
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
    UNAUTHENTICATED,
)
from mlflow.tracking import MlflowClient

from pipeline import mlflow_store
from pipeline.mlflow_store import project_of, reason, run_id_of, tracking_uri
from pipeline.run_record import DataInput, Record
from pipeline.tracking import TrackedRun
from tests.tracked_runs import artifacts, eventually, found, history, opened, the_run, tracked


def test_long_error_texts_are_cut_after_credentials_are_gone() -> None:
    text = reason(OSError("x" * 280 + " http://user:hunter2-hunter2-hunter2@host/api/of/mlflow"))
    assert len(text) == 300
    assert "hunter2" not in text
    assert reason(OSError("http://user:hunter@2@host/a\n b")) == "http://host/a b"


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+absent", "mssql+pymssql"])
def test_a_database_out_of_reach_is_told_at_once(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> NoReturn:
        raise AssertionError("MLflow asks again and again")

    monkeypatch.setattr("mlflow.store.db.utils.time.sleep", sleep)
    with pytest.raises(mlflow_store.store_errors()) as raised:
        mlflow_store.open_store(f"{driver}://gaitgl:hunter2@127.0.0.1:9/mlflow")
    assert "hunter2" not in reason(raised.value)


def test_faults_of_the_program_are_not_taken_for_the_stores(tracking_store: Path) -> None:
    with pytest.raises(AttributeError) as raised:
        mlflow_store.deliver(None, mlflow_store.open_store(tracking_uri()))  # type: ignore[arg-type]
    assert not isinstance(raised.value, mlflow_store.store_errors())


def test_the_address_is_the_environments_or_the_projects(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri() == "http://tracking:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri() == f"sqlite:///{mlflow_store.ROOT / 'mlflow.db'}"
    assert Path(tracking_uri().removeprefix("sqlite:///")).is_absolute()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")  # the same, not the copy's
    assert tracking_uri() == f"sqlite:///{mlflow_store.ROOT / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////srv/mlflow.db")
    assert tracking_uri() == "sqlite:////srv/mlflow.db"


def test_what_is_wrong_with_a_store_is_told_apart() -> None:
    away = mlflow_store.trouble(OSError(errno.ECONNREFUSED, "refused"))
    assert away.startswith("the MLflow store (MLFLOW_TRACKING_URI) does not answer: ")
    gone = MlflowException("no such run", RESOURCE_DOES_NOT_EXIST)
    assert "refuses this: no such run" in mlflow_store.trouble(gone)
    for code in (UNAUTHENTICATED, PERMISSION_DENIED):
        error = MlflowException("who?", code)
        assert "does not let this user in: see MLFLOW_TRACKING_U" in mlflow_store.trouble(error)
        assert not mlflow_store.refused(error)
    for full in (OSError(errno.ENOSPC, "x"), MlflowException("database or disk is full")):
        assert mlflow_store.trouble(full).startswith("the disk is full, so nothing reaches MLflow")
    closed = mlflow_store.trouble(PermissionError(errno.EACCES, "mlartifacts"))
    assert "cannot be written by this user" in closed


def test_a_clone_that_records_in_anothers_store_keeps_its_artifacts_there(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tracking_store / "a.txt").write_text("a")
    clone = tracking_store.with_name("clone")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "ROOT", clone)
        with tracked(experiment="clone's") as run:
            run.artifact(tracking_store / "a.txt")
    mlflow_store.open_store(tracking_uri())
    assert artifacts(run.run_id) == ["a.txt"]
    assert not (clone / "mlartifacts").exists()


def delivered_once(folder: Path) -> Record:
    """A record of 1500 points, ended and delivered."""
    with suppress(ZeroDivisionError), tracked(folder=folder) as run:
        for step in range(1, 1501):
            run.log(step, {"loss": math.nan if step == 7 else step / 8})
        run.log(1500, {"up": math.inf, "down": -math.inf})
        run.made("abc")
        raise ZeroDivisionError
    record = opened(folder)
    assert record.delivered()
    return record


@pytest.mark.parametrize("lines_back", [None, 10, 1200])
def test_calls_whose_answers_were_lost_are_made_again_without_harm(
    lines_back: int | None, tracking_store: Path
) -> None:
    folder = tracking_store / "runs" / "x" / "record"
    record = delivered_once(folder)
    before = the_run()
    if lines_back is None:
        (folder / "sent.json").unlink()
    else:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        record.acknowledge(
            run_id="", params=0, metrics=sum(map(len, lines[:-lines_back])), tags={}, end=None
        )
    record.release()
    record = opened(folder)
    assert not record.delivered()
    mlflow_store.deliver(record, mlflow_store.open_store(tracking_uri()))
    assert record.delivered()
    after = the_run()
    assert after.info.run_id == before.info.run_id
    assert after.info.end_time == before.info.end_time
    assert after.data.tags == before.data.tags
    points = history(after.info.run_id)
    assert [step for step, _ in points] == list(range(1, 1501))
    assert [step for step, value in points if math.isnan(value)] == [7]
    assert len(history(after.info.run_id, "up")) == len(history(after.info.run_id, "down")) == 1


def test_a_run_whose_end_may_have_arrived_is_running_again(tracking_store: Path) -> None:
    folder = tracking_store / "runs" / "x" / "record"
    record = delivered_once(folder)
    record.acknowledge(end=None)  # the store was asked and its answer lost
    record.reopen()
    record.release()
    with tracked(folder=folder):
        eventually(lambda: the_run().info.status == "RUNNING")
    assert the_run().info.status == "FINISHED"


def test_a_torn_note_of_runs_is_begun_anew(
    tracking_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow_store.RUN_IDS.parent.mkdir(parents=True, exist_ok=True)
    mlflow_store.RUN_IDS.write_text("")
    with tracked() as run:
        run.made("abc")
    assert "run_ids.json is torn" in capsys.readouterr().err
    assert run_id_of("abc") == run.run_id


def test_a_run_is_found_by_what_it_made_and_names_its_upstream(tracking_store: Path) -> None:
    assert run_id_of("abc") == ""
    with tracked() as first:
        first.made("abc")
    assert run_id_of("abc") == first.run_id
    with tracked(stage="finetune", dataset="casia_e", upstream={"pretrain": "abc"}) as second:
        second.made("def")
    tags = found(second).data.tags
    assert tags["upstream_pretrain_digest"] == "abc"
    assert tags["upstream_pretrain_run_id"] == first.run_id
    assert found(first).data.tags["output_digest"] == "abc"
    ids = json.loads((tracking_store / "runs" / "run_ids.json").read_text(encoding="utf-8"))
    assert ids == {"abc": first.run_id, "def": second.run_id}


def test_an_upstream_unknown_here_is_named_by_its_digest_alone(tracking_store: Path) -> None:
    with tracked(upstream={"pretrain": "from a colleague"}) as run:
        pass
    tags = found(run).data.tags
    assert tags["upstream_pretrain_digest"] == "from a colleague"
    assert "upstream_pretrain_run_id" not in tags


def test_thousands_of_metrics_arrive_complete_and_in_order(tracking_store: Path) -> None:
    with tracked() as run:
        for step in range(1, 1301):
            run.log(step, {"loss": float(step % 7), "p": step / 8})
    client = MlflowClient(tracking_uri())
    points = sorted(client.get_metric_history(run.run_id, "loss"), key=lambda point: point.step)
    assert [point.step for point in points] == list(range(1, 1301))
    assert [point.value for point in points] == [float(step % 7) for step in range(1, 1301)]
    assert len(client.get_metric_history(run.run_id, "p")) == 1300
    assert found(run).data.metrics["p"] == 1300 / 8  # the last one stands in the table of runs


def test_more_than_a_hundred_params_arrive(tracking_store: Path) -> None:
    params = {f"section.leaf_{i}": i for i in range(230)}
    with tracked(params=params) as run:
        pass
    assert found(run).data.params == {name: str(value) for name, value in params.items()}


# links to the runs that a run builds on


def made(
    output: str, upstream: dict[str, str] | None = None, stage: str = "pretrain", **figures: float
) -> TrackedRun:
    """A run of ``stage`` that made ``output``."""
    with tracked(stage=stage, upstream=upstream or {}) as run:
        run.log(1, {"loss": 0.5, **figures})
        run.made(output)
    return run


def path_in_ui(run: TrackedRun) -> str:
    return f"(#/experiments/{found(run).info.experiment_id}/runs/{run.run_id})"


def test_a_row_links_to_all_trainings_behind_it_and_shows_their_durations(
    tracking_store: Path,
) -> None:
    pretrain = made("abc", duration_s=60.0421)
    finetune = made("def", {"pretrain": "abc"}, "finetune", duration_s=25.0)
    row = found(made("ghi", {"finetune": "def"}, "evaluate", duration_s=3.0))
    assert row.data.tags["upstream_finetune_run_id"] == finetune.run_id
    assert row.data.tags["upstream_pretrain_run_id"] == pretrain.run_id
    note = row.data.tags["mlflow.note.content"]
    assert note.index(path_in_ui(pretrain)) < note.index(path_in_ui(finetune))
    assert row.data.metrics == {
        "loss": 0.5,
        "duration_s": 3.0,
        "duration_s_pretrain": 60.0,
        "duration_s_finetune": 25.0,
    }
    assert path_in_ui(pretrain) in found(finetune).data.tags["mlflow.note.content"]
    assert "mlflow.note.content" not in found(pretrain).data.tags


def test_two_evaluations_of_one_training_name_the_same_run(tracking_store: Path) -> None:
    training = made("abc")
    rows = [made(output, {"pretrain": "abc"}, "evaluate") for output in ("one", "two")]
    named = {found(row).data.tags["upstream_pretrain_run_id"] for row in rows}
    assert named == {training.run_id}


@pytest.mark.parametrize("known_here", [None, "0" * 32], ids=["never", "in another store"])
def test_a_run_that_is_not_known_here_is_found_in_the_store(
    known_here: str | None, tracking_store: Path
) -> None:
    training = made("abc")
    ids = tracking_store / "runs" / "run_ids.json"
    ids.write_text(json.dumps({"abc": known_here} if known_here else {}), encoding="utf-8")
    row = found(made("ghi", {"pretrain": "abc"}, "evaluate"))
    assert row.data.tags["upstream_pretrain_run_id"] == training.run_id


def test_a_run_that_arrives_later_is_linked_when_the_one_that_needs_it_ends(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        offline = made("abc")
    with tracked(stage="evaluate", upstream={"pretrain": "abc"}) as row:
        eventually(lambda: row._record.sent.tags)
        assert "upstream_pretrain_run_id" not in found(row).data.tags
        record = opened(offline._record.folder)
        mlflow_store.deliver(record, mlflow_store.open_store(tracking_uri()))
        record.release()
    assert found(row).data.tags["upstream_pretrain_run_id"] == record.sent.run_id


def test_a_note_of_the_users_stays(tracking_store: Path) -> None:
    made("abc")
    with tracked(stage="evaluate", upstream={"pretrain": "abc"}) as row:
        eventually(lambda: "mlflow.note.content" in row._record.sent.tags)
        MlflowClient(tracking_uri()).set_tag(row.run_id, "mlflow.note.content", "looks wrong")
    assert found(row).data.tags["mlflow.note.content"] == "looks wrong"


# data


def test_data_are_shown_with_their_counts_and_sent_once(tracking_store: Path) -> None:
    counts = {"train": {"subjects": 3, "sequences": 12, "frames": 75}}
    data = DataInput("oumvlp", "0123456789abcdef" * 2, "data/oumvlp/catalogue", counts, "training")
    folder = tracking_store / "runs" / "x" / "record"
    with suppress(ZeroDivisionError), tracked(inputs=[data], folder=folder):
        raise ZeroDivisionError
    record = opened(folder)
    assert record.run.inputs == [data]
    record.acknowledge(inputs=False)  # the answer was lost
    assert not record.delivered()
    mlflow_store.deliver(record, mlflow_store.open_store(tracking_uri()))
    (shown,) = the_run().inputs.dataset_inputs
    assert (shown.dataset.name, shown.dataset.digest) == ("oumvlp", data.digest)
    assert json.loads(shown.dataset.profile) == counts
    assert json.loads(shown.dataset.source) == {"uri": "data/oumvlp/catalogue"}
    assert [(tag.key, tag.value) for tag in shown.tags] == [("mlflow.data.context", "training")]


# where the store lies


@pytest.mark.parametrize("below", ["tmp1", "standalone/tmp1", "tmp1/folder/in/the/repository"])
def test_a_copy_that_dvc_runs_an_experiment_in_belongs_to_its_project(below: str) -> None:
    assert project_of(Path("/work/gait/.dvc/tmp/exps", below)) == Path("/work/gait")


@pytest.mark.parametrize("path", ["/work/gait", "/work/.dvc/tmp", "/work/exps/tmp/gait"])
def test_any_other_folder_is_a_project_of_its_own(path: str) -> None:
    assert project_of(Path(path)) == Path(path)


def test_runs_are_found_by_a_condition_the_latest_first(tracking_store: Path) -> None:
    client = MlflowClient(tracking_uri())
    for number, name in enumerate(("a", "b", "c")):
        experiment = client.create_experiment(name)
        for stage in ("pretrain", "evaluate"):
            run = client.create_run(experiment, 1000 + number, {"stage": stage}, f"{stage}-{name}")
    client.delete_run(run.info.run_id)

    def names(**deleted: bool) -> list[str]:
        found = mlflow_store.find_runs(client, "tags.stage = 'evaluate'", **deleted)
        return [run.info.run_name for run in found]

    assert names() == ["evaluate-b", "evaluate-a"]
    assert names(deleted=True) == ["evaluate-c", "evaluate-b", "evaluate-a"]


def test_a_search_goes_through_all_pages(tracking_store: Path) -> None:
    client = MlflowClient(tracking_uri())
    experiment = client.create_experiment("a")
    made = {client.create_run(experiment).info.run_id for _ in range(5)}
    found = mlflow_store.all_pages(client.search_runs, experiment_ids=[experiment], max_results=2)
    assert {run.info.run_id for run in found} == made
    assert len(found) == 5


def test_a_record_that_is_removed_while_tags_are_read_is_left_out(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with tracked(stage="evaluate"):
            pass
    (waits,) = mlflow_store.record_folders()
    removed = tracking_store / "runs" / "removed" / "record"
    monkeypatch.setattr(mlflow_store, "record_folders", lambda: [removed, waits])
    assert [tags["stage"] for tags in mlflow_store.waiting_tags()] == ["evaluate"]

"""Records of runs in MLflow. DVC decides what runs; MLflow only records.

A stage writes its record to the disk (``pipeline.run_record``); a thread beside it delivers to the
store, which may be slow or down without harm. What is left at the end, ``make sync-runs`` sends.

``python -m pipeline.tracking`` prints the address of the store.
"""

import errno
import json
import logging
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

from filelock import FileLock

from pipeline.errors import Stopped
from pipeline.files import write_json
from pipeline.run_record import (
    FAILED,
    FINISHED,
    KILLED,
    Record,
    Run,
    new_record,
    open_record,
    remove_folder,
)

# read when mlflow is imported or first called: no telemetry, no address (it may hold a password)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# MLflow would repeat a request whose answer was lost, and so make a second run
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

ROOT = Path(__file__).resolve().parent.parent
RUN_IDS = ROOT / "runs" / "run_ids.json"
"""Which run made which output, by the output's digest; no stage depends on it."""

FLUSH_EVERY_S = 10.0
LONGEST_PAUSE_S = 300.0
LAST_WAIT_S = 60.0
"""How long the end of a run waits for a store that answers."""
LAST_TRY_S = 10.0
"""How long it waits for one that did not at the last attempt."""
IN_USE_S = 60.0
"""How long the start of a run waits for ``make sync-runs`` to let go of its record."""
BATCH = 1000  # metrics in one call, MLflow's limit
PARAMS_BATCH = 100
TOKEN_TAG = "record"
"""By this tag a run is found whose making the store has not confirmed."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""The UI opens on training runs instead of prompts and traces."""


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the SQLite file at the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"


def find_runs(condition: str) -> list[Any]:
    """Runs of any experiment that meet a condition in MLflow's words, the latest first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    latest_first = ["attributes.start_time DESC"]
    most = 50_000  # that it gives at once
    return list(client.search_runs(experiments, condition, max_results=most, order_by=latest_first))


def run_id_of(digest: str) -> str:
    """The run that made an output, or an empty string where it is not known here."""
    return _run_ids().get(digest, "")


def record_folders() -> list[Path]:
    """Where runs that the store may not have got in full have their records."""
    return [path.parent for path in RUN_IDS.parent.glob("*/record/run.json")]


class TrackedRun:
    """One run of one stage, as a context manager.

    Nothing here waits for the store, except the end, for a bounded time. A disk that takes no more
    raises OSError: what is not on the disk would be lost. RecordInUse where another process has the
    same record.
    """

    def __init__(
        self,
        stage: str,
        dataset: str,
        experiment: str,
        params: dict[str, Any],
        upstream: dict[str, str],
        tags: dict[str, str] | None = None,
        *,
        folder: Path | None = None,
        resumed: bool = False,
    ) -> None:
        """``upstream``: name of each stage this one builds on, and the digest of its output.

        ``folder`` holds the record of a run that may be stopped and go on: if a run is there that
        has not finished, this is its continuation. One that has finished is another one, still to
        be delivered, and makes room; unless ``resumed`` says that its work goes on all the same.
        """
        token = uuid.uuid4().hex
        name = f"{stage}-{dataset}"
        self._run = Run(
            token=token,
            stage=stage,
            dataset=dataset,
            experiment=experiment,
            name=name,
            start_ms=int(time.time() * 1000),
            params={name: str(value) for name, value in _without_home(params).items()},
            upstream=upstream,
            resumable=folder is not None,
        )
        self._tags_given = tags or {}
        self._folder = folder or RUN_IDS.parent / f"{name}-{token[:8]}" / "record"
        self._resumed = resumed
        self._keep_at = time.monotonic() + FLUSH_EVERY_S

    def __enter__(self) -> Self:
        tags = _first_tags(self._run) | self._tags_given
        tags = {name: value for name, value in tags.items() if value}
        self._record = _continued(self._folder, tags, self._resumed) or new_record(
            self._folder, self._run, tags
        )
        self._sender = Sender(self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._record.finish(_status(kind))
        except OSError as trouble:
            if kind is None:
                raise
            sys.stderr.write(
                f"warning: {self._record.folder} could not be told how the run ended: {trouble}\n"
            )
        finally:
            self._deliver_the_rest()

    @property
    def run_id(self) -> str:
        """MLflow's id of this run; empty while the store has not made it."""
        return self._record.sent.run_id

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take metrics into memory; every ten seconds they are kept.

        A metric that already has a point at this step or a later one is left as it is.
        """
        self._record.add(step, metrics)
        if time.monotonic() >= self._keep_at:
            self.keep()

    def keep(self) -> None:
        """Everything logged so far is on the disk when this returns, and on its way."""
        self._record.keep()
        self._keep_at = time.monotonic() + FLUSH_EVERY_S
        self._sender.wake()

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._record.tag({name: value})

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or a folder with all that is in it, to the run's artifacts."""
        self._record.add_artifact(path, folder)

    def made(self, output: str) -> None:
        """Remember that this run made the output with this digest."""
        self.tag("output_digest", output)
        if self.run_id:  # at once: the next stage looks for it
            _remember_output(self._record)

    def _deliver_the_rest(self) -> None:
        record = self._record
        stopped = self._sender.finish()
        if not stopped or not record.delivered():
            sys.stderr.write(
                f"warning: this run is not complete in MLflow: {record.count_unsent()} metrics "
                f"and the rest wait in {record.folder}; make sync-runs sends them\n"
            )
        elif record.over():
            try:
                remove_folder(record.folder)
            except OSError as trouble:
                sys.stderr.write(f"warning: {record.folder} could not be removed: {trouble}\n")
        if stopped:  # otherwise the thread still writes there, and the lock goes with it
            record.release()


class Sender:
    """The thread that delivers a record: at once, when woken, and every ``FLUSH_EVERY_S``.

    A store that fails is asked less and less often.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._uri = tracking_uri()
        self._answers = True
        self._said_trouble = self._said_answer = False
        self._wake, self._ending = Event(), Event()
        # a daemon: a call that hangs must not keep the process
        self._thread = Thread(target=self._send_until_end, name="mlflow", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something is to be sent. Trouble with the store is waited out nevertheless."""
        self._wake.set()

    def finish(self) -> bool:
        """Send the rest; whether the thread has stopped, with or without success.

        Waits ``LAST_WAIT_S`` at most, or ``LAST_TRY_S`` if the store did not answer when last
        asked; a store that fails now is not asked again.
        """
        wait_s = LAST_WAIT_S if self._answers else LAST_TRY_S
        self._ending.set()
        self._wake.set()
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _send_until_end(self) -> None:
        troubles = store_errors()
        client = None
        pause_s = FLUSH_EVERY_S
        while True:
            self._wake.clear()  # before the question: finish() sets the two the other way round
            last = self._ending.is_set()
            try:
                client = client or open_store(self._uri)
                deliver(self._record, client)
            except troubles as error:
                self._say_trouble(error)
                if self._ending.is_set():
                    return
                self._ending.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            else:
                self._say_answer()
                pause_s = FLUSH_EVERY_S
                if last:
                    return
                self._wake.wait(FLUSH_EVERY_S)

    def _say_trouble(self, error: Exception) -> None:
        self._answers = False
        if not self._said_trouble:
            self._said_trouble = True
            what = "the MLflow store (MLFLOW_TRACKING_URI) does not answer"
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                what = "the disk is full, so nothing reaches MLflow"
            sys.stderr.write(f"warning: {what}, work goes on without it: {reason(error)}\n")

    def _say_answer(self) -> None:
        if not self._answers and not self._said_answer:
            self._said_answer = True
            sys.stderr.write("the MLflow store answers again and has all that was kept for it\n")
        self._answers = True


def open_store(uri: str) -> Any:
    """A client of MLflow's for ``deliver``; raises ``store_errors()``."""
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # the import has set them to tell of every migration
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def store_errors() -> tuple[type[Exception], ...]:
    """What is raised where a store does not answer, or refuses; the import takes seconds."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (
        MlflowException,
        SQLAlchemyError,
        requests.RequestException,
        json.JSONDecodeError,  # a login page in place of an answer
        OSError,
    )


def refused(error: Exception) -> bool:
    """Whether the store did answer: it does not take this run, deleted by its user, say."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.get_http_status_code() < 500


def reason(error: Exception) -> str:
    """An error's text on one line, cut and without credentials."""
    return re.sub(r"//[^/\s]*@", "//", " ".join(str(error).split()))[:300]


def deliver(record: Record, client: Any) -> None:
    """Send all that is on the disk and not sent, in order; raises ``store_errors()``.

    Each answer is remembered before the next call. A call whose answer was lost is made again
    without harm: the run is found by its token, and the store knows a point that it has by its
    time, step and value.
    """
    end = record.end  # first: whatever belongs to the run was there before
    if not record.sent.run_id:
        record.acknowledge(run_id=_find_or_make(record, client))
    _remember_output(record)
    if end is None and record.sent.end_begun:
        client.update_run(record.sent.run_id, "RUNNING")
        record.acknowledge(end_begun=False, end=None)
    _send_params(record, client)
    _send_metrics(record, client)
    _send_tags(record, client)
    for artifact in record.unsent_artifacts():
        client.log_artifact(record.sent.run_id, str(artifact.file), artifact.folder)
        artifact.file.unlink()
    if end is not None and end != record.sent.end:
        record.acknowledge(end_begun=True)
        client.set_terminated(record.sent.run_id, end.status, end.time_ms)
        record.acknowledge(end=end)


def _send_params(record: Record, client: Any) -> None:
    from mlflow.entities import Param

    params = [Param(name, value) for name, value in sorted(record.run.params.items())]
    for first in range(record.sent.params, len(params), PARAMS_BATCH):
        batch = params[first : first + PARAMS_BATCH]
        client.log_batch(record.sent.run_id, params=batch)
        record.acknowledge(params=first + len(batch))


def _send_metrics(record: Record, client: Any) -> None:
    from mlflow.entities import Metric

    while record.sent.metrics < record.kept:
        points, end = record.unsent_points(BATCH)
        client.log_batch(record.sent.run_id, metrics=[Metric(*point) for point in points])
        record.acknowledge(metrics=end)


def _send_tags(record: Record, client: Any) -> None:
    from mlflow.entities import RunTag

    tags = _tags(record)
    changed = [RunTag(*tag) for tag in tags.items() if tag not in record.sent.tags.items()]
    if changed:
        client.log_batch(record.sent.run_id, tags=changed)
        record.acknowledge(tags=tags)


def _find_or_make(record: Record, client: Any) -> str:
    run = record.run
    experiment = _experiment_id(client, run.experiment)
    found = client.search_runs([experiment], f"tags.{TOKEN_TAG} = '{run.token}'", max_results=1)
    if not found:
        found = [client.create_run(experiment, run.start_ms, _tags(record), run.name)]
    return str(found[0].info.run_id)


def _experiment_id(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    # a server keeps artifacts where it likes; the file beside us keeps them beside it
    local = client.tracking_uri.startswith("sqlite:")
    location = (ROOT / "mlartifacts").as_uri() if local else None
    try:
        return str(client.create_experiment(name, location, EXPERIMENT_TAGS))
    except MlflowException:  # another stage was quicker
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _tags(record: Record) -> dict[str, str]:
    """All tags of a run; its upstream runs are those known by now."""
    tags = {**record.tags, TOKEN_TAG: record.run.token}
    for stage, digest in record.run.upstream.items():
        tags[f"upstream_{stage}_digest"] = digest
        tags[f"upstream_{stage}_run_id"] = run_id_of(digest)
    return {name: value for name, value in tags.items() if value}


def _first_tags(run: Run) -> dict[str, str]:
    return {
        "stage": run.stage,
        "dataset": run.dataset,
        "dvc_stage": os.environ.get("DVC_STAGE", ""),
        "dvc_exp": os.environ.get("DVC_EXP_NAME", ""),
        "mlflow.source.git.commit": git("rev-parse", "HEAD"),
        "git_changed_files": str(len(git("status", "--porcelain").splitlines())),
        "mlflow.source.name": f"stages/{run.stage}.py",
        "mlflow.source.type": "LOCAL",
    }


def _continued(folder: Path, tags: dict[str, str], resumed: bool) -> Record | None:
    """The record in ``folder``, opened again; None where a new one is to be begun."""
    record = open_record(folder, IN_USE_S)
    if record is None:
        return None
    if record.end is not None and record.end.status == FINISHED and not resumed:
        record.move_aside()
        return None
    record.reopen()
    record.tag(tags)
    return record


def _status(kind: type[BaseException] | None) -> str:
    if kind is None:
        return FINISHED
    return KILLED if issubclass(kind, KeyboardInterrupt | Stopped) else FAILED


def _remember_output(record: Record) -> None:
    """Note the run under the digest of what it made, if both are known."""
    digest, run_id = record.tags.get("output_digest"), record.sent.run_id
    if not digest or not run_id or run_id_of(digest) == run_id:
        return
    RUN_IDS.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(RUN_IDS.with_suffix(".lock")):
        write_json(RUN_IDS, {**_run_ids(), digest: run_id})


def git(*arguments: str) -> str:
    """The output of a git command at the project's root; empty where git or its data is not."""
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _run_ids() -> dict[str, str]:
    if not RUN_IDS.exists():
        return {}
    ids: dict[str, str] = json.loads(RUN_IDS.read_text(encoding="utf-8"))
    return ids


def _without_home(params: dict[str, Any]) -> dict[str, Any]:
    """Paths outside the project are named by their last folder alone."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in params.items()
    }


if __name__ == "__main__":
    print(tracking_uri())

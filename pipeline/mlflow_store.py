"""The MLflow store: where it lies, and how a run's record gets there.

``pipeline.run_record`` holds what is to be sent, ``pipeline.sender`` decides when.
"""

import errno
import json
import logging
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.files import write_json
from pipeline.mlflow_import import import_mlflow
from pipeline.moved_project import follow_project
from pipeline.run_record import Record

# read when mlflow is imported or first called: no telemetry, no address (it may hold a password)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
# MLflow would repeat a request whose answer was lost, and so make a second run
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

CODE = Path(__file__).resolve().parent.parent
"""The folder of this code: the project, or a copy of it that DVC runs an experiment in."""


def project_of(code: Path) -> Path:
    """The project that ``code`` is, or is a copy of.

    `dvc exp run --temp` and `dvc queue` run in copies below the project's .dvc/tmp/exps, and delete
    them: what is to stay belongs to the project.
    """
    for above in code.parents:
        if code.is_relative_to(above / ".dvc" / "tmp" / "exps"):
            return above
    return code


ROOT = project_of(CODE)
RUN_IDS = ROOT / "runs" / "run_ids.json"
"""Which run made which output, by the output's digest; no stage depends on it."""

BATCH = 1000  # metrics in one call, MLflow's limit
PARAMS_BATCH = 100
SQLITE = "sqlite:///"
DATABASES = ("postgresql", "mysql", "mssql")
"""MLflow's others, which are servers."""
TOKEN_TAG = "record"
"""By this tag a run is found whose making the store has not confirmed."""
OUTPUT_TAG = "output_digest"
"""The digest of what a run made: by it the runs that build on it find the run."""
DURATION = "duration_s"
"""Metric: how long the work of a run took, without the times that it lay stopped (seconds)."""
HEADLINE = "headline_rank1"
"""Metric of an evaluation by which models are compared: see ``report.headline_rank1``."""
DATA_TAG = "data_fingerprint"
"""The digest of the silhouettes that a run worked on."""
NOTE_TAG = "mlflow.note.content"
"""The UI shows it as the run's description, Markdown and all."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""The UI opens on training runs instead of prompts and traces."""


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the SQLite file at the project's root.

    A relative SQLite file counts from there, too: DVC runs experiments in copies that it deletes.
    """
    own = f"{SQLITE}mlflow.db"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or own
    return f"{SQLITE}{ROOT / uri.removeprefix(SQLITE)}" if uri.startswith(SQLITE) else uri


def run_id_of(digest: str) -> str:
    """The run that made an output, or an empty string where it is not known here."""
    return _run_ids().get(digest, "")


def record_folders() -> list[Path]:
    """Where runs that the store may not have got in full have their records."""
    return [path.parent for path in RUN_IDS.parent.glob("*/record/run.json")]


def open_store(uri: str) -> Any:
    """A client of MLflow's for ``deliver``; raises ``store_errors()``."""
    import_mlflow()
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # the import has set them to tell of every migration
        logging.getLogger(name).setLevel(logging.WARNING)
    # with a traceback, and all that was to be written; ``trouble`` says it in a line
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if uri.startswith(DATABASES):
        import sqlalchemy

        # one that refuses says so at once; MLflow would ask again for two minutes
        sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect().close()
    if not uri.startswith(SQLITE):
        return MlflowClient(uri)
    # whoever opens a new file first fills it with tables, and two at once leave it unusable
    file = Path(uri.removeprefix(SQLITE))
    with FileLock(f"{file}.lock"):
        client = MlflowClient(uri)
        if file == ROOT / "mlflow.db":
            follow_project(file)
    return client


def look_up(model: str) -> None:
    """Find a model by its address, ``models:/gaitgl@champion`` say, or raise MLflow's error."""
    import_mlflow()
    from mlflow.models import get_model_info

    get_model_info(model)


def store_errors() -> tuple[type[Exception], ...]:
    """What is raised where a store does not answer, or refuses; the import takes seconds."""
    import_mlflow()
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (
        MlflowException,
        SQLAlchemyError,
        requests.RequestException,
        json.JSONDecodeError,  # a login page in place of an answer
        sqlite3.Error,
        OSError,
        ImportError,  # a database's driver, or an artifact store's, is not installed
    )


def refused(error: Exception) -> bool:
    """Whether the store knows who asks and does not take this run, deleted by its user, say."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return False
    status = error.get_http_status_code()
    return status < 500 and status not in (401, 403)


def trouble(error: Exception) -> str:
    """What is wrong with the store, in a line, and what the error says."""
    from mlflow.exceptions import MlflowException

    store = "the MLflow store (MLFLOW_TRACKING_URI)"
    text = str(error)
    if "database or disk is full" in text or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    ):
        what = "the disk is full, so nothing reaches MLflow"
    elif "readonly database" in text or (
        isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
    ):
        what = f"{store} cannot be written by this user"
    elif isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403):
        what = (
            f"{store} does not let this user in: see MLFLOW_TRACKING_USERNAME and _PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN"
        )
    else:
        what = f"{store} {'refuses this' if refused(error) else 'does not answer'}"
    return f"{what}: {reason(error)}"


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
    remember_output(record)
    if end is None and record.sent.end_begun:
        client.update_run(record.sent.run_id, "RUNNING")
        record.acknowledge(end_begun=False, end=None)
    _send_params(record, client)
    _send_inputs(record, client)
    _send_metrics(record, client)
    _send_links(record, client, last=end is not None)
    _send_tags(record, client)
    for artifact in record.unsent_artifacts():
        client.log_artifact(record.sent.run_id, str(artifact.file), artifact.folder)
        artifact.file.unlink()
    if end is not None and end != record.sent.end:
        record.acknowledge(end_begun=True)
        client.set_terminated(record.sent.run_id, end.status, end.time_ms)
        record.acknowledge(end=end)
    if end is not None:  # last: a store that takes no models has the run all the same
        _send_model(record, client)


def _send_params(record: Record, client: Any) -> None:
    from mlflow.entities import Param

    params = [Param(name, value) for name, value in sorted(record.run.params.items())]
    for first in range(record.sent.params, len(params), PARAMS_BATCH):
        batch = params[first : first + PARAMS_BATCH]
        client.log_batch(record.sent.run_id, params=batch)
        record.acknowledge(params=first + len(batch))


def _send_inputs(record: Record, client: Any) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    if not record.run.inputs or record.sent.inputs:
        return
    inputs = []
    for data in record.run.inputs:
        # what a MetaDataset becomes on its way, and the counts, for which that has no room
        source = json.dumps({"uri": data.folder})
        dataset = Dataset(data.name, data.digest, "local", source, profile=json.dumps(data.counts))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", data.used_for)]))
    client.log_inputs(record.sent.run_id, inputs)
    record.acknowledge(inputs=True)


def _send_metrics(record: Record, client: Any) -> None:
    from mlflow.entities import Metric

    while record.sent.metrics < record.kept:
        points, end = record.unsent_points(BATCH)
        client.log_batch(record.sent.run_id, metrics=[Metric(*point) for point in points])
        record.acknowledge(metrics=end)


def _send_links(record: Record, client: Any, last: bool) -> None:
    """Name the runs that this one builds on: as tags, in the note as links, and how long each took.

    They are looked for when a run begins and, as those not found may have arrived since, when it
    ends. Durations come at the end: the UI compares runs by the metric that came first, which is to
    be one of their own.
    """
    from mlflow.entities import Metric

    if record.sent.tags and not last:
        return
    runs = _runs_behind(client, record.run.upstream)
    if not runs:
        return
    if last:
        durations = [
            Metric(f"{DURATION}_{stage}", run.data.metrics[DURATION], record.run.start_ms, 0)
            for stage, run in runs.items()
            if DURATION in run.data.metrics
        ]
        client.log_batch(record.sent.run_id, metrics=durations)
    tags = {f"upstream_{stage}_run_id": str(run.info.run_id) for stage, run in runs.items()}
    links = [
        f"- [{run.info.run_name}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})"
        for run in runs.values()
    ]
    tags[NOTE_TAG] = "\n".join(["Builds on", "", *links])
    _send_new_tags(record, client, tags)


def _runs_behind(client: Any, upstream: dict[str, str]) -> dict[str, Any]:
    """The run of each stage in ``upstream`` (name and digest), and of those that it builds on.

    First comes what ran first; a run that the store does not have is left out, with those behind.
    """
    behind: dict[str, Any] = {}
    for stage, digest in upstream.items():
        run = _run_that_made(client, digest)
        if run is not None:
            found = {re.fullmatch(r"upstream_(.+)_digest", name): name for name in run.data.tags}
            further = {m[1]: run.data.tags[name] for m, name in found.items() if m is not None}
            behind |= _runs_behind(client, further) | {stage: run}
    return behind


def _run_that_made(client: Any, digest: str) -> Any:
    """The run that made the output with this digest, here or elsewhere; None if none is known."""
    from mlflow.exceptions import MlflowException

    run_id = run_id_of(digest)
    if run_id:
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise  # otherwise the id is that of another store
    found = find_runs(client, f"tags.{OUTPUT_TAG} = '{digest}'", deleted=True)
    return found[0] if found else None


def deleted(client: Any, experiment_name: str) -> str:
    """Why an experiment takes no runs, where its user deleted it, and what helps; else empty."""
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None or experiment.lifecycle_stage != "deleted":
        return ""
    return (
        f"experiment {experiment_name} was deleted: `mlflow experiments restore -x "
        f"{experiment.experiment_id}` brings it back, another runtime.experiment begins anew"
    )


def find_runs(client: Any, condition: str, *, deleted: bool = False) -> list[Any]:
    """Runs of any experiment, the last one first; ``condition`` is in MLflow's words.

    ``deleted``: those in the bin, too, by themselves or with their experiment.
    """
    from mlflow.entities import ViewType

    kind = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY
    experiments = all_pages(client.search_experiments, view_type=kind)
    return all_pages(
        client.search_runs,
        experiment_ids=[experiment.experiment_id for experiment in experiments],
        filter_string=condition,
        run_view_type=kind,
        order_by=["attributes.start_time DESC"],
    )


def all_pages(search: Callable[..., Any], **arguments: Any) -> list[Any]:
    """What a search of an MlflowClient finds, on all of its pages."""
    page = search(**arguments)
    found = list(page)
    while page.token:
        page = search(**arguments, page_token=page.token)
        found += page
    return found


def waiting_tags() -> list[dict[str, str]]:
    """The tags of each run that waits here to be sent."""
    found = []
    for folder in record_folders():
        with suppress(FileNotFoundError):  # delivered and removed by its stage just now
            found.append(json.loads((folder / "tags.json").read_text(encoding="utf-8")))
    return found


def _send_tags(record: Record, client: Any) -> None:
    _send_new_tags(record, client, _tags(record))


def _send_new_tags(record: Record, client: Any, tags: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    changed = [RunTag(*tag) for tag in tags.items() if tag not in record.sent.tags.items()]
    if changed:
        client.log_batch(record.sent.run_id, tags=changed)
        record.acknowledge(tags={**record.sent.tags, **tags})


def _send_model(record: Record, client: Any) -> None:
    model = record.unsent_model()
    if model is None:
        return
    from pipeline.registry import send_model  # imports torch

    experiment = _experiment_id(client, record.run.experiment)
    send_model(client, experiment, record.sent.run_id, record.run, model)
    shutil.rmtree(model)


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
    uri = client.tracking_uri
    file = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
    location = (file.parent / "mlartifacts").as_uri() if file else None
    try:
        return str(client.create_experiment(name, location, EXPERIMENT_TAGS))
    except MlflowException:  # another stage was quicker
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


def _tags(record: Record) -> dict[str, str]:
    """All tags of a run but those of its links."""
    upstream = {f"upstream_{stage}_digest": digest for stage, digest in record.run.upstream.items()}
    tags = {**record.tags, **upstream, TOKEN_TAG: record.run.token}
    return {name: value for name, value in tags.items() if value}


def remember_output(record: Record) -> None:
    """Note the run under the digest of what it made, if both are known."""
    digest, run_id = record.tags.get(OUTPUT_TAG), record.sent.run_id
    if not digest or not run_id or run_id_of(digest) == run_id:
        return
    RUN_IDS.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(RUN_IDS.with_suffix(".lock")):
        write_json(RUN_IDS, {**_run_ids(), digest: run_id})


def _run_ids() -> dict[str, str]:
    """What ``RUN_IDS`` holds; MLflow knows the same, so that a torn file is only a warning."""
    if not RUN_IDS.exists():
        return {}
    try:
        ids: dict[str, str] = json.loads(RUN_IDS.read_text(encoding="utf-8"))
    except ValueError as error:
        sys.stderr.write(f"warning: {RUN_IDS} is torn ({error}); it is begun anew\n")
        return {}
    return ids

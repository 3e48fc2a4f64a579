"""Records of runs in MLflow. DVC decides what runs; MLflow only records.

A stage writes its record to the disk (``pipeline.run_record``); a thread beside it
(``pipeline.sender``) delivers to the store, which may be slow or down without harm. What is left at
the end, ``make sync-runs`` sends.

``python -m pipeline.tracking`` prints the address of the store.
"""

import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

from pipeline import mlflow_store, sender, system_metrics
from pipeline.commits import changed_files, git
from pipeline.errors import Stopped
from pipeline.mlflow_store import DURATION, OUTPUT_TAG, remember_output, tracking_uri
from pipeline.run_record import (
    FAILED,
    FINISHED,
    KILLED,
    DataInput,
    Record,
    Run,
    new_record,
    open_record,
    remove_folder,
)

DVC_EXPERIMENT_TAG = "dvc_exp"
"""The name of the experiment of DVC's that a run belongs to."""
SAMPLE_EVERY_S = 10.0
"""How often processor, memory and GPU are looked at."""
IN_USE_S = 60.0
"""How long the start of a run waits for ``make sync-runs`` to let go of its record."""


class TrackedRun:
    """One run of one stage, as a context manager.

    How busy the machine is meanwhile is recorded, too. Nothing here waits for the store, except the
    end, for a bounded time. A disk that takes no more raises OSError: what is not on the disk would
    be lost. RecordInUse where another process has the same record.
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
        inputs: list[DataInput] | None = None,
        folder: Path | None = None,
        resumed: bool = False,
    ) -> None:
        """``upstream``: name of each stage this one builds on, and the digest of its output.

        ``folder`` holds the record of a run that may be stopped and go on: if a run is there that
        has not finished, this is its continuation. One that has finished is another one, still to
        be delivered, and makes room; unless ``resumed`` says that its work goes on all the same.
        In a copy of the project that DVC deletes nothing goes on: there ``folder`` is not used.
        """
        token = uuid.uuid4().hex
        name = f"{stage}-{dataset}"
        self._tags = {DVC_EXPERIMENT_TAG: os.environ.get("DVC_EXP_NAME", ""), **(tags or {})}
        experiment_of_dvc = self._tags[DVC_EXPERIMENT_TAG]
        if mlflow_store.ROOT != mlflow_store.CODE:
            folder = None
        self._run = Run(
            token=token,
            stage=stage,
            dataset=dataset,
            experiment=experiment,
            name=f"{name} ({experiment_of_dvc})" if experiment_of_dvc else name,
            start_ms=int(time.time() * 1000),
            params={name: str(value) for name, value in without_home(params).items()},
            upstream=upstream,
            resumable=folder is not None,
            inputs=inputs or [],
        )
        self._folder = folder or mlflow_store.RUN_IDS.parent / f"{name}-{token[:8]}" / "record"
        self._resumed = resumed
        self._keep_at = time.monotonic() + sender.FLUSH_EVERY_S

    def __enter__(self) -> Self:
        tags = _first_tags(self._run) | self._tags
        tags = {name: value for name, value in tags.items() if value}
        self._record = _continued(self._folder, tags, self._resumed) or new_record(
            self._folder, self._run, tags
        )
        self._sender = sender.Sender(self._record)
        self._ending = Event()
        self._watch = Thread(target=self._sample_until_end, name="system metrics", daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._watch.join()
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

    @property
    def delivered(self) -> bool:
        """Whether the store has all of this run, now that it is over."""
        return self._record.delivered()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Take metrics into memory; every ten seconds they are kept.

        A metric that already has a point at this step or a later one is left as it is. Durations
        are rounded: all their digits would fill the UI's table.
        """
        rounded = {n: round(v, 1) if n == DURATION else v for n, v in metrics.items()}
        self._record.add(step, rounded)
        if time.monotonic() >= self._keep_at:
            self.keep()

    def keep(self) -> None:
        """Everything logged so far is on the disk when this returns, and on its way."""
        self._record.keep()
        self._keep_at = time.monotonic() + sender.FLUSH_EVERY_S
        self._sender.wake()

    def tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self._record.tag({name: value})

    def artifact(self, path: Path) -> None:
        """Copy a file, or a folder with all that is in it, to the run's artifacts."""
        self._record.add_artifact(path)

    def model(self, checkpoint: Path) -> None:
        """Log a checkpoint's network as a model, which MLflow can load and serve."""
        from pipeline.model_folder import write_model  # imports torch

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name, "model")
            write_model(folder, checkpoint)
            self._record.add_model(folder)

    def made(self, output: str) -> None:
        """Remember that this run made the output with this digest."""
        self.tag(OUTPUT_TAG, output)
        if self.run_id:  # at once: the next stage looks for it
            remember_output(self._record)

    def _sample_until_end(self) -> None:
        monitors = None
        while not self._ending.wait(SAMPLE_EVERY_S):
            if monitors is None:  # not at once: many runs are over before these seconds of imports
                monitors = system_metrics.monitors()
                continue
            metrics = system_metrics.sample(monitors)
            self._record.add(1 + max(map(self._record.last_step, metrics)), metrics)

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


def _first_tags(run: Run) -> dict[str, str]:
    commit = git("rev-parse", "HEAD")
    return {
        "stage": run.stage,
        "dataset": run.dataset,
        "dvc_stage": os.environ.get("DVC_STAGE", ""),
        "mlflow.source.git.commit": commit,
        "git_changed_files": str(changed_files()) if commit else "",
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


def without_home(params: dict[str, Any]) -> dict[str, Any]:
    """Paths outside the project are named by their last folder alone."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in params.items()
    }


if __name__ == "__main__":
    print(tracking_uri())

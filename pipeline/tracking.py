"""Records of runs in MLflow. DVC decides what runs; MLflow only records.

``python -m pipeline.tracking`` prints the address of the store.
"""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# read when mlflow is imported or first called: no telemetry, and no minutes of silent retries
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from pipeline.files import write_json

ROOT = Path(__file__).resolve().parent.parent
RUN_IDS = ROOT / "runs" / "run_ids.json"
"""Which run made which output, by the output's digest; no stage depends on it."""

FLUSH_EVERY_S = 10.0
LONGEST_PAUSE_S = 300.0
BATCH = 1000  # metrics in one call, MLflow's limit
PARAMS_BATCH = 100
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""The UI opens on training runs instead of prompts and traces."""


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the SQLite file at the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'mlflow.db'}"


def run_id_of(digest: str) -> str:
    """The run that made an output, or an empty string where it is not known here."""
    return _run_ids().get(digest, "")


class TrackedRun:
    """One run of one stage, as a context manager.

    Trouble with the store never stops the work: it is said once, metrics stay in memory, and every
    later flush tries again.
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
        """``upstream``: name of each stage this one builds on, and the digest of its output."""
        self._tags_given = tags or {}
        self._stage, self._dataset = stage, dataset
        self._experiment = experiment
        self._params = _without_home(params)
        self._upstream = upstream
        self._metrics: list[tuple[str, float, int, int]] = []
        self._flush_at = time.monotonic() + FLUSH_EVERY_S
        self._pause_s = FLUSH_EVERY_S
        self._warned = False
        self.run_id = ""

    def __enter__(self) -> Self:
        self._attempt(self._start)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flush()
        status = "FINISHED" if kind is None else "FAILED"
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            status = "KILLED"
        if self.run_id:
            self._attempt(lambda: self._client.set_terminated(self.run_id, status))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Keep metrics for the next flush."""
        now_ms = int(time.time() * 1000)
        self._metrics += [(name, value, now_ms, step) for name, value in metrics.items()]
        if time.monotonic() >= self._flush_at:
            self.flush()

    def keep(self) -> None:
        self.flush()

    def tag(self, name: str, value: str) -> None:
        pass

    def flush(self) -> None:
        """Send what is kept, in order; a store that fails is asked less and less often."""
        sent = self._started() and self._attempt(self._send_metrics)
        self._pause_s = FLUSH_EVERY_S if sent else min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._flush_at = time.monotonic() + self._pause_s

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file to the run's artifacts."""
        if self._started():
            self._attempt(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def made(self, output: str) -> None:
        """Remember that this run made the output with this digest."""
        if self.run_id:
            write_json(RUN_IDS, {**_run_ids(), output: self.run_id})
            self._attempt(lambda: self._client.set_tag(self.run_id, "output_digest", output))

    def _started(self) -> bool:
        """Whether the store holds this run; one that was down at first is tried again."""
        return bool(self.run_id) or self._attempt(self._start)

    def _start(self) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # the import has set them to tell of every migration
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri())  # opens the store
        created = self._client.create_run(
            self._experiment_id(), run_name=f"{self._stage}-{self._dataset}", tags=self._tags()
        )
        self.run_id = created.info.run_id
        params = [Param(name, str(value)) for name, value in self._params.items()]
        for first in range(0, len(params), PARAMS_BATCH):
            self._client.log_batch(self.run_id, params=params[first : first + PARAMS_BATCH])

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is not None:
            return str(found.experiment_id)
        # a server keeps artifacts where it likes; the file beside us keeps them beside it
        local = tracking_uri().startswith("sqlite:")
        location = (ROOT / "mlartifacts").as_uri() if local else None
        try:
            return str(self._client.create_experiment(self._experiment, location, EXPERIMENT_TAGS))
        except MlflowException:  # another stage was quicker
            found = self._client.get_experiment_by_name(self._experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def _tags(self) -> dict[str, str]:
        tags = {
            "stage": self._stage,
            "dataset": self._dataset,
            "dvc_stage": os.environ.get("DVC_STAGE", ""),
            "dvc_exp": os.environ.get("DVC_EXP_NAME", ""),
            "mlflow.source.git.commit": git("rev-parse", "HEAD"),
            "git_changed_files": str(len(git("status", "--porcelain").splitlines())),
            "mlflow.source.name": f"stages/{self._stage}.py",
            "mlflow.source.type": "LOCAL",
            **self._tags_given,
        }
        for stage, digest in self._upstream.items():
            tags[f"upstream_{stage}_digest"] = digest
            tags[f"upstream_{stage}_run_id"] = run_id_of(digest)
        return {name: value for name, value in tags.items() if value}

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        while self._metrics:
            batch = [Metric(*metric) for metric in self._metrics[:BATCH]]
            self._client.log_batch(self.run_id, metrics=batch)
            del self._metrics[:BATCH]

    def _attempt(self, action: Callable[[], object]) -> bool:
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            action()
        except (MlflowException, SQLAlchemyError, requests.RequestException, OSError) as error:
            if not self._warned:
                self._warned = True
                reason = _without_credentials(" ".join(str(error).split()))[:300]
                sys.stderr.write(
                    "warning: the MLflow store (MLFLOW_TRACKING_URI) does not answer, work goes "
                    f"on without it: {reason}\n"
                )
            return False
        return True


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


def _without_credentials(text: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//", text)


def _without_home(params: dict[str, Any]) -> dict[str, Any]:
    """Paths outside the project are named by their last folder alone."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in params.items()
    }


if __name__ == "__main__":
    print(tracking_uri())

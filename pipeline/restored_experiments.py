"""DVC experiments whose results have no row in MLflow, as DVC restored them from its cache."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import mlflow_store
from pipeline.commits import git
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.settings import DATASETS, TRAINED_BY, Dataset, Settings
from pipeline.tracking import DVC_EXPERIMENT_TAG

REF = re.compile(r"refs/exps/(?P<two>[0-9a-f]{2})/(?P<rest>[0-9a-f]{38})/(?P<name>.+)")
"""Where DVC keeps an experiment, below the commit that it was started from."""


class Restored(NamedTuple):
    """A result of an experiment."""

    name: str
    commit: str
    dataset: Dataset


def experiments_without_row(client: Any) -> Iterator[Restored]:
    """The results that experiments made, as opposed to left as they were, and no run tells of."""
    told = _told(client)
    for line in git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines():
        commit, ref = line.split(" ", 1)
        found = REF.fullmatch(ref)
        if found is None:  # DVC's own: the queue, and what it is at work on
            continue
        locked, before = _lock(commit), _lock(found["two"] + found["rest"])
        for dataset in DATASETS:
            stage = f"evaluate@{dataset}"
            made = stage in locked and locked[stage] != before.get(stage)
            if made and (found["name"], dataset) not in told:
                yield Restored(found["name"], commit, dataset)


def fetch(result: Restored, folder: Path) -> tuple[Settings, dict[str, str]]:
    """Lay report and catalogue of a result into ``folder``, as reports/ and catalogue/.

    Returns its settings and what its embeddings were made by. PipelineError where something is in
    DVC's cache no more, or was made under settings that are not known today.
    """
    params = folder / "params.yaml"
    params.write_text(git("show", f"{result.commit}:./params.yaml"), encoding="utf-8")
    settings = Settings.load(params)
    stage, dataset = TRAINED_BY[result.dataset], result.dataset
    needed = {
        f"reports/{dataset}": folder / "reports",
        f"data/{dataset}/catalogue": folder / "catalogue",
        f"data/{dataset}/silhouettes/index.parquet": folder / "index.parquet",
        f"models/{stage}/checkpoint.safetensors": folder / "checkpoint.safetensors",
    }
    for path, to in needed.items():
        command = [sys.executable, "-m", "dvc", "get", ".", path, "--rev", result.commit]
        got = subprocess.run([*command, "-o", str(to)], capture_output=True, text=True, check=False)
        if got.returncode:
            raise PipelineError(f"DVC cannot fetch {path} of {result.name}: {got.stderr[-500:]}")
    made_by = {
        "stage": stage,
        "checkpoint": sha256(folder / "checkpoint.safetensors"),
        "silhouettes": sha256(folder / "index.parquet"),
    }
    return settings, made_by


def _told(client: Any) -> set[tuple[str, str]]:
    """Experiment and dataset of each evaluation that the store has, or that waits here."""
    condition = f"tags.stage = 'evaluate' AND tags.{DVC_EXPERIMENT_TAG} LIKE '%'"
    sent = [run.data.tags for run in mlflow_store.find_runs(client, condition, deleted=True)]
    waiting = [tags for tags in mlflow_store.waiting_tags() if tags["stage"] == "evaluate"]
    return {(tags.get(DVC_EXPERIMENT_TAG, ""), tags["dataset"]) for tags in sent + waiting}


def _lock(commit: str) -> dict[str, Any]:
    """What DVC noted of each stage; empty where the commit has no dvc.lock."""
    tree = yaml.safe_load(git("show", f"{commit}:./dvc.lock")) or {}
    stages: dict[str, Any] = tree.get("stages", {})
    return stages

"""DVC experiments whose results have no row in MLflow, as DVC restored them from its cache."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import dvc_data, mlflow_store
from pipeline.checkpoints import CHECKPOINT
from pipeline.commits import git
from pipeline.errors import PipelineError
from pipeline.evaluation_run import result_digest
from pipeline.files import sha256
from pipeline.settings import DATASETS, TRAINED_BY, Dataset, Settings, as_noted, parse_yaml
from pipeline.tracking import DVC_EXPERIMENT_TAG

REF = re.compile(r"refs/exps/(?P<two>[0-9a-f]{2})/(?P<rest>[0-9a-f]{38})/(?P<name>.+)")
"""Where DVC keeps an experiment, below the commit that it was started from."""


class Restored(NamedTuple):
    """A result of an experiment."""

    name: str
    commit: str
    dataset: Dataset


class Recorded(NamedTuple):
    """What a run of an evaluation says: its experiment (or empty), and the digest of its result."""

    experiment: str
    dataset: str
    digest: str


def experiments_without_row(client: Any) -> Iterator[Restored]:
    """The results that experiments made, as opposed to left as they were, and no run tells of.

    A run tells of a result under its experiment's name, or under one that has not got that result
    any more: experiments are renamed. Where no lock tells what was before, any run of it does.
    """
    recorded = list(_recorded(client))
    listed = git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps").splitlines()
    found = [(commit, REF.fullmatch(ref)) for commit, ref in map(str.split, listed)]
    # the rest is DVC's own: the queue, and what it is at work on
    experiments = [(commit, match) for commit, match in found if match is not None]
    made = []
    for commit, match in experiments:
        locked, before = _lock(commit), _lock(match["two"] + match["rest"])
        for dataset in DATASETS:
            stage = f"evaluate@{dataset}"
            if stage in locked and locked[stage] != before.get(stage):
                result = Restored(match["name"], commit, dataset)
                made.append((result, _digest(result, locked), bool(before)))
    own = {Recorded(result.name, result.dataset, digest or "") for result, digest, _ in made}
    for result, digest, known_before in made:
        if not any(_is_run_of(one, result, digest, known_before, own) for one in recorded):
            yield result


def _is_run_of(
    one: Recorded, result: Restored, digest: str | None, known_before: bool, own: set[Recorded]
) -> bool:
    """Whether a run is that of an experiment's result; ``own`` are the results of all of them."""
    if one.dataset != result.dataset:
        return False
    if one.experiment == result.name:
        return digest in (None, one.digest)
    if digest is None or one.digest != digest:
        return False
    # of no experiment, or of one that was renamed; not of another with the same result
    return one not in own if one.experiment else not known_before


def in_cache(result: Restored) -> bool:
    """Whether DVC's cache has a result: experiments are known to all clones and worktrees, what
    they made is where they ran."""
    return _metrics(result, _lock(result.commit)) is not None


def fetch(result: Restored, folder: Path) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Lay report and catalogue of a result into ``folder``, as reports/ and catalogue/.

    Returns its MLflow experiment, what its row shows (`Settings.flat`), and what its embeddings
    were made by. PipelineError where something is in
    DVC's cache no more, or was made under settings that are not known today.
    """
    settings = _settings(result.commit)
    params = _params(settings, _lock(result.commit))
    stage, dataset = TRAINED_BY[result.dataset], result.dataset
    needed = {
        f"reports/{dataset}": folder / "reports",
        f"data/{dataset}/catalogue": folder / "catalogue",
        f"data/{dataset}/silhouettes/index.parquet": folder / "index.parquet",
        f"models/{stage}/{CHECKPOINT}": folder / CHECKPOINT,
    }
    for path, to in needed.items():
        dvc_data.get(path, result.commit, to)
    made_by = {
        "stage": stage,
        "checkpoint": sha256(folder / CHECKPOINT),
        "silhouettes": sha256(folder / "index.parquet"),
    }
    return settings.runtime.experiment, params, made_by


def _recorded(client: Any) -> Iterator[Recorded]:
    """The evaluations that the store has, or that wait here."""
    sent = mlflow_store.find_runs(client, "tags.stage = 'evaluate'", deleted=True)
    waiting = [tags for tags in mlflow_store.waiting_tags() if tags["stage"] == "evaluate"]
    for tags in (*(run.data.tags for run in sent), *waiting):
        yield Recorded(
            tags.get(DVC_EXPERIMENT_TAG, ""),
            tags.get("dataset", ""),
            tags.get(mlflow_store.OUTPUT_TAG, ""),
        )


def _digest(result: Restored, locked: dict[str, Any]) -> str | None:
    """A result's digest, from what DVC noted of its stage; None where DVC's cache has it no more,
    or its settings are not known today."""
    metrics = _metrics(result, locked)
    if metrics is None:
        return None
    try:
        params = _params(_settings(result.commit), locked)
    except PipelineError:
        return None
    return result_digest(result.dataset, params, metrics)


def _params(settings: Settings, locked: dict[str, Any]) -> dict[str, Any]:
    """`Settings.flat`, with what DVC noted of the trainings: an experiment may evaluate alone
    (`dvc exp run -s`)."""
    params: dict[str, Any] = settings.flat()
    for stage in TRAINED_BY.values():
        params = as_noted(params, locked.get(stage, {}).get("params", {}).get("params.yaml", {}))
    return params


def _metrics(result: Restored, locked: dict[str, Any]) -> Path | None:
    """A result's metrics.json in DVC's cache; None where that has it no more."""
    evaluated = locked[f"evaluate@{result.dataset}"]
    outputs = {out["path"]: out["md5"] for out in evaluated.get("outs", [])}
    md5 = outputs.get(f"reports/{result.dataset}/metrics.json")
    path = None if md5 is None else dvc_data.cached(md5)
    return path if path is not None and path.exists() else None


def _settings(commit: str) -> Settings:
    source = f"params.yaml of {commit[:7]}"
    return Settings.check(parse_yaml(git("show", f"{commit}:./params.yaml"), source), source)


def _lock(commit: str) -> dict[str, Any]:
    """What DVC noted of each stage; empty where the commit has no dvc.lock."""
    tree = yaml.safe_load(git("show", f"{commit}:./dvc.lock")) or {}
    stages: dict[str, Any] = tree.get("stages", {})
    return stages

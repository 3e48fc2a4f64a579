"""Gives the best evaluated version of the model its alias: ``python -m pipeline.promote [--dry]``.

``--dry`` shows what would be promoted and why, and changes nothing.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pipeline import mlflow_store
from pipeline.errors import PipelineError, run_stage
from pipeline.evaluation_run import NEVER_BEHIND
from pipeline.registry import NAME
from pipeline.run_record import FINISHED

CHAMPION = "champion"
DATASET = "casia_e"
"""Whose evaluations decide."""
EVALUATIONS = (
    f"tags.stage = 'evaluate' and tags.dataset = '{DATASET}' and attributes.status = '{FINISHED}'"
)
NO_MATTER = (*NEVER_BEHIND[DATASET], "evaluate.cmc_ranks", "evaluate.submission.")
"""Settings that do not change the headline, by how their names begin."""


def main() -> None:
    parser = argparse.ArgumentParser("python -m pipeline.promote", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="change nothing")
    dry = parser.parse_args().dry
    try:
        client = mlflow_store.open_store(mlflow_store.tracking_uri())
        found = standing(client)
        print(_table(found))
        best = found.candidates[0]
        if best.version == found.champion:
            print(f"version {best.version} has the alias {CHAMPION!r} already")
        elif dry:
            print(f"{CHAMPION!r} would go to version {best.version}; nothing was changed")
        else:
            client.set_registered_model_alias(NAME, CHAMPION, str(best.version))
            print(f"{CHAMPION!r} is version {best.version} now: models:/{NAME}@{CHAMPION}")
    except mlflow_store.store_errors() as error:
        raise PipelineError(mlflow_store.trouble(error)) from None


@dataclass(frozen=True)
class Candidate:
    """A version that was evaluated."""

    version: int
    stage: str
    trained_ms: int
    rank1: float
    """In %."""
    run_id: str
    """Of the evaluation."""


@dataclass(frozen=True)
class Standing:
    """The versions that can be compared, best first, and what they have in common."""

    candidates: list[Candidate]
    fingerprint: str
    """Of the data."""
    settings: dict[str, str]
    """Of the evaluation."""
    champion: int | None
    """The version that has the alias now."""


def standing(client: Any) -> Standing:
    """Which versions were evaluated as the newest evaluation was: same silhouettes, same settings.

    Best is the highest headline rank-1; of two that are equal the older version. PipelineError
    where nothing is registered, or nothing that is was evaluated.
    """
    if not client.search_registered_models(f"name = '{NAME}'"):
        raise PipelineError(
            f"no model {NAME!r} is registered: a training that ends registers one, `make repro` "
            "one that DVC restored, and `dvc repro -f -s finetune` trains anew"
        )
    versions: dict[str, list[Any]] = {}
    for version in mlflow_store.all_pages(
        client.search_model_versions, filter_string=f"name = '{NAME}'"
    ):
        versions.setdefault(version.tags.get("checkpoint", ""), []).append(version)
    like: tuple[str, dict[str, str]] | None = None
    candidates: dict[int, Candidate] = {}
    for run, rank1 in _evaluations(client):  # newest first
        for version in (v for digest in _upstream(run) for v in versions.get(digest, [])):
            like = like or _conditions(run)
            number = int(version.version)
            if _conditions(run) != like or number in candidates:
                continue
            stage, trained_ms = version.tags["stage"], int(version.tags["trained_ms"])
            candidates[number] = Candidate(number, stage, trained_ms, rank1, run.info.run_id)
    if like is None:
        binned = mlflow_store.find_runs(client, EVALUATIONS, deleted=True)
        if len(binned) > len(mlflow_store.find_runs(client, EVALUATIONS)):
            raise PipelineError(
                f"evaluations on {DATASET} were deleted in MLflow, and no other tells of a version "
                f"of {NAME!r}: restore their experiment, or their runs, there"
            )
        raise PipelineError(
            f"no version of {NAME!r} has an evaluation on {DATASET} in this store: `dvc repro` "
            f"makes one, `dvc repro -f -s evaluate@{DATASET}` makes it again"
        )
    fingerprint, settings = like
    champion = client.get_registered_model(NAME).aliases.get(CHAMPION)
    return Standing(
        sorted(candidates.values(), key=lambda c: (-c.rank1, c.version)),
        fingerprint,
        settings,
        None if champion is None else int(champion),
    )


def _evaluations(client: Any) -> Iterator[tuple[Any, float]]:
    """Runs that evaluated DATASET to the end, newest first, and what they found: rank-1 in %.

    Those without one are passed over: of a competition, whose probes have no labels.
    """
    for run in mlflow_store.find_runs(client, EVALUATIONS):
        rank1 = run.data.metrics.get(mlflow_store.HEADLINE)
        if rank1 is not None:
            yield run, rank1


def _upstream(run: Any) -> list[str]:
    """Digests of the checkpoints that an evaluation is about."""
    tags = run.data.tags.items()
    return [v for name, v in tags if name.startswith("upstream_") and name.endswith("_digest")]


def _conditions(run: Any) -> tuple[str, dict[str, str]]:
    """What must be alike for two evaluations to be compared."""
    settings = {
        name: value
        for name, value in run.data.params.items()
        if name.startswith("evaluate.") and not name.startswith(NO_MATTER)
    }
    return run.data.tags.get(mlflow_store.DATA_TAG, ""), settings


def _table(found: Standing) -> str:
    """What the versions reached, best first."""
    data = found.fingerprint[:12] or "unnamed"
    settings = {name.removeprefix("evaluate."): value for name, value in found.settings.items()}
    lines = [
        f"rank-1 on {DATASET}, mean over its conditions, of the versions of {NAME} that were",
        "evaluated as the newest one was:",
        *(f"    {name} {value}" for name, value in ({"silhouettes": data} | settings).items()),
        *(_line(candidate, found.champion) for candidate in found.candidates),
    ]
    if found.champion not in [None, *(candidate.version for candidate in found.candidates)]:
        lines.append(
            f"  version {found.champion}, the {CHAMPION} now, was not evaluated like that and "
            "cannot be compared"
        )
    return "\n".join(lines)


def _line(candidate: Candidate, champion: int | None) -> str:
    trained = datetime.fromtimestamp(candidate.trained_ms / 1000).astimezone()
    now = f"  the {CHAMPION} now" if candidate.version == champion else ""
    return (
        f"  version {candidate.version:<4} {candidate.rank1:6.2f} %  {candidate.stage}, trained "
        f"{trained.isoformat(' ', 'minutes')}, evaluation run {candidate.run_id}{now}"
    )


if __name__ == "__main__":
    run_stage(main)

"""Checks params.yaml before anything expensive starts: ``python -m pipeline.check``."""

from pathlib import Path

from pipeline import releases
from pipeline.catalogue import read_sequences
from pipeline.errors import PipelineError, run_stage
from pipeline.settings import DATASETS, TRAINED_BY, Settings, Training

WALKERS = Path("synthetic/release")
"""What lies here is made by DVC itself, so it need not be there yet."""

MADE = ("data", "embeddings", "mlartifacts", "models", "reports", "runs")
"""Folders that stages and MLflow write to."""


def main() -> None:
    settings = Settings.load()
    problems = []
    if "%" in str(Path.cwd()):
        problems.append(f"{Path.cwd()}: MLflow cannot work in a folder whose path holds a %")
    for dataset in DATASETS:
        root = Path(settings.data[dataset].root)
        where = f"data.{dataset}.root = {root}"
        if WALKERS in root.parents:
            if root.name not in DATASETS or root.parent != WALKERS:
                known = ", ".join(str(WALKERS / name) for name in DATASETS)
                problems.append(f"{where}: no walkers are made there, only in {known}")
            continue
        if set(root.parts[:1]) & set(MADE):
            problems.append(f"{where}: {root.parts[0]}/ holds what the stages make; take raw/, say")
            continue
        try:
            releases.check_root(dataset, root)
        except PipelineError as error:
            problems.append(str(error))
    for dataset, stage in TRAINED_BY.items():
        training: Training = getattr(settings, stage)
        if training.precision == "bfloat16" and (lack := _lack(settings)):
            print(f"warning: {stage}.precision is bfloat16, but {lack}: {stage} will stop there")
        _warn_of_few_subjects(stage, training, Path("data", dataset, "catalogue"))
    if problems:
        raise PipelineError("\n".join(problems))


def _warn_of_few_subjects(stage: str, training: Training, catalogue: Path) -> None:
    """No error: the catalogue may be that of another release than the settings name."""
    try:
        rows = read_sequences(catalogue, ["subject", "split"])
    except PipelineError:  # not there yet, or to be made anew
        return
    there = rows.groupby("split")["subject"].nunique()
    training_subjects = there.get("train", 0)
    kept_out = min(training_subjects, max(0, training.validation_subjects - there.get("val", 0)))
    left = training_subjects - kept_out
    if left < training.subjects_per_batch:
        print(
            f"warning: {stage}.subjects_per_batch is {training.subjects_per_batch}, but "
            f"{catalogue} has {left} subjects to train on ({kept_out} more are kept out by "
            f"{stage}.validation_subjects): unless ingest finds others now, {stage} will stop"
        )


def _lack(settings: Settings) -> str:
    from pipeline.devices import choose_device, lacks_bfloat16  # import torch

    return lacks_bfloat16(choose_device(settings.runtime.device))


if __name__ == "__main__":
    run_stage(main)

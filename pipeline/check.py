"""Checks params.yaml before anything expensive starts: ``python -m pipeline.check``."""

import os
from pathlib import Path

from pipeline import releases
from pipeline.arguments import no_arguments
from pipeline.catalogue import read_sequences
from pipeline.errors import PipelineError, run_stage
from pipeline.evaluation_inputs import chosen
from pipeline.held_out import held_out
from pipeline.protocols import read_protocols
from pipeline.settings import DATASETS, TRAINED_BY, Dataset, Settings, Training

WALKERS = Path("synthetic/release")
"""What lies here is made by DVC itself, so it need not be there yet."""

MADE = ("data", "embeddings", "mlartifacts", "models", "reports", "runs")
"""Folders that stages and MLflow write to."""


def main() -> None:
    settings = Settings.load()
    problems = [
        f"{Path.cwd()}: MLflow cannot work in a folder whose path holds a {character}"
        for character in "%?"
        if character in str(Path.cwd())
    ]
    for dataset in DATASETS:
        problem = _root_problem(dataset, Path(settings.data[dataset].root))
        problems += [problem] if problem else []
    problems += _outside()
    if problems:
        raise PipelineError("\n".join(problems))
    for warning in _warnings(settings):
        print(f"warning: {warning}")


def _outside() -> list[str]:
    """Which folders of results lead out of the project, where DVC keeps nothing."""
    here = Path.cwd().resolve()
    folders = [Path(name) for name in ("data", "embeddings", "models", "reports")]
    folders += [folder / dataset for folder in folders for dataset in DATASETS]
    return [
        f"{folder} is a link out of the project, to {folder.resolve()}, where DVC keeps nothing: "
        "put the whole project on that disk, or DVC's cache alone (`dvc cache dir`)"
        for folder in folders
        if folder.is_symlink() and not folder.resolve().is_relative_to(here)
    ]


def _root_problem(dataset: Dataset, root: Path) -> str:
    """What is wrong with a dataset's root; empty where nothing is."""
    where = f"data.{dataset}.root = {root}"
    if WALKERS in root.parents:
        if root.name in DATASETS and root.parent == WALKERS:
            return ""
        known = ", ".join(str(WALKERS / name) for name in DATASETS)
        return f"{where}: no walkers are made there, only in {known}"
    here = Path.cwd()
    # a link in raw/ may lead anywhere; the project's own folder may be named by way of a link
    for place in (Path(os.path.abspath(root)), root.resolve()):
        if here.is_relative_to(place):
            return f"{where}: this project lies in it, and all that its stages make; take raw/, say"
        for name in MADE:
            if place.is_relative_to(here / name):
                return f"{where}: {name}/ holds what the stages make; take raw/, say"
    try:
        releases.check_root(dataset, root)
    except PipelineError as error:
        return str(error)
    return ""


def _warnings(settings: Settings) -> list[str]:
    """What will stop a stage: here, or if the data is still what an earlier ingest found."""
    found = []
    # the other devices are always there, and asking takes torch's import
    if settings.runtime.device == "cuda" and (none := _lack_of_device(settings)):
        found.append(f"{none}: pretrain, finetune, embed and evaluate will stop there")
    trainings: dict[str, Training] = {s: getattr(settings, s) for s in TRAINED_BY.values()}
    in_bfloat16 = any(training.precision == "bfloat16" for training in trainings.values())
    lack = _lack_of_bfloat16(settings) if in_bfloat16 else ""
    for dataset, stage in TRAINED_BY.items():
        training = trainings[stage]
        catalogue = Path("data", dataset, "catalogue")
        if training.precision == "bfloat16" and lack:
            found.append(f"{stage}.precision is bfloat16, but {lack}: {stage} will stop there")
        few = _too_few_subjects(stage, training, catalogue)
        not_offered = _no_such_protocol(settings, dataset, catalogue)
        found += [problem for problem in (few, not_offered) if problem]
    return found


def _lack_of_device(settings: Settings) -> str:
    from pipeline.devices import choose_device  # imports torch

    try:
        choose_device(settings.runtime.device)
    except PipelineError as error:
        return str(error)
    return ""


def _lack_of_bfloat16(settings: Settings) -> str:
    from pipeline.devices import choose_device, lacks_bfloat16  # import torch

    try:
        return lacks_bfloat16(choose_device(settings.runtime.device))
    except PipelineError:  # reported by itself
        return ""


def _too_few_subjects(stage: str, training: Training, catalogue: Path) -> str:
    try:
        rows = read_sequences(catalogue, ["subject", "split"])
    except PipelineError:  # not there yet, or to be made anew
        return ""
    subjects = set(rows.loc[rows["split"] == "train", "subject"])
    kept_out = set()
    if training.validation_subjects:
        kept_out = subjects.intersection(held_out(rows, training.validation_subjects))
    left = len(subjects) - len(kept_out)
    if left >= training.subjects_per_batch:
        return ""
    return (
        f"{stage}.subjects_per_batch is {training.subjects_per_batch}, but {catalogue} has {left} "
        f"subjects to train on ({len(kept_out)} more are kept out by {stage}.validation_subjects): "
        f"unless ingest finds others now, {stage} will stop"
    )


def _no_such_protocol(settings: Settings, dataset: Dataset, catalogue: Path) -> str:
    try:
        offered = read_protocols(catalogue)
    except PipelineError:  # not there yet, or to be made anew
        return ""
    try:
        chosen(offered, settings.evaluate.protocols[dataset], dataset)
    except PipelineError as error:
        return f"{error}: unless ingest finds other data now, evaluate@{dataset} will stop"
    return ""


if __name__ == "__main__":
    no_arguments(__doc__)
    run_stage(main)

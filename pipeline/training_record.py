"""What a report says of the trainings behind its figures: read from the checkpoints themselves."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.checkpoints import read_checkpoint
from pipeline.errors import PipelineError
from pipeline.files import sha256
from pipeline.held_out import held_out
from pipeline.silhouette_store import INDEX
from pipeline.tables import read_table
from pipeline.training_history import HISTORY, read_history


@dataclass(frozen=True)
class TrainingRecord:
    """One training: what, on what, for how long, from where, and the curves of it."""

    stage: str
    dataset: str
    settings: dict[str, Any]
    """The section of params.yaml that the checkpoint was trained with."""

    seed: int
    starts_from: tuple[str, ...]
    """Training stages whose weights it started from; none: from random ones."""

    architecture: dict[str, Any]
    weights: int
    """How many numbers were trained."""

    subjects: int
    sequences: int
    """Those that were trained on: without what is kept out to validate on."""

    history: pd.DataFrame
    """history.csv: columns step, loss, active_share, p and others."""

    checkpoint: str
    silhouettes: str
    """Digests (SHA-256) of the checkpoint, and of the index of what it was trained on."""

    @property
    def clips(self) -> int:
        """Clips that all its steps saw together."""
        batch = self.settings["subjects_per_batch"] * self.settings["sequences_per_subject"]
        return int(self.settings["steps"] * batch)

    @property
    def final_p(self) -> float | None:
        """GeM's exponent at the end; None where nothing was trained or pooling has none."""
        last = self.history["p"].iloc[-1] if len(self.history) else math.nan
        return None if math.isnan(last) else float(last)


def training_records(models: Path, data: Path, made_by: Mapping[str, str]) -> list[TrainingRecord]:
    """The trainings behind an embeddings file, in their order.

    ``models`` has a folder for each stage, ``data`` one for each dataset; ``made_by``: what the
    embeddings file says of itself. PipelineError where a file is missing, or they do not belong
    together.
    """
    records = [_read(models, data, stage) for stage in made_by["trained_by"].split(",")]
    last = records[-1]
    if last.checkpoint != made_by["checkpoint"]:
        raise PipelineError(
            f"the embeddings were made with another checkpoint than that of {models / last.stage}: "
            "`dvc repro` makes them anew"
        )
    return records


def _read(models: Path, data: Path, stage: str) -> TrainingRecord:
    path = models / stage / "checkpoint.safetensors"
    config, weights, info = read_checkpoint(path)
    index_file = data / info["dataset"] / "silhouettes" / "index.parquet"
    index = read_table(index_file, INDEX, ["subject", "split"])
    if sha256(index_file) != info["silhouettes"]:
        raise PipelineError(
            f"{path} was trained on other silhouettes than those of {index_file}: `dvc repro` "
            "trains on these"
        )
    kept_out = held_out(index, info["training"]["validation_subjects"])
    training = index[(index["split"] == "train") & ~index["subject"].isin(kept_out)]
    return TrainingRecord(
        stage=stage,
        dataset=info["dataset"],
        settings=info["training"],
        seed=info["seed"],
        starts_from=tuple(info["upstream"]),
        architecture=asdict(config),
        weights=sum(tensor.numel() for tensor in weights.values()),
        subjects=training["subject"].nunique(),
        sequences=len(training),
        history=read_history(path.with_name(HISTORY), info["training"]["steps"]),
        checkpoint=sha256(path),
        silhouettes=info["silhouettes"],
    )

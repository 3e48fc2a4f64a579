"""Trainings of a stage on tiny stores, and what they leave."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mlflow.tracking import MlflowClient

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.mlflow_store import tracking_uri
from pipeline.settings import Dataset, Settings
from pipeline.silhouette_store import SilhouetteStore
from pipeline.training_run import run_training

Stores = dict[Dataset, SilhouetteStore]
Project = Callable[..., Path]


LONGER = {
    "pretrain.steps": 12,
    "pretrain.lr_drops": [9],
    "runtime.checkpoint_every": 5,
    "runtime.workers": 0,
}


def run(
    stores: Stores,
    folder: Path,
    settings: Settings,
    prepare: Callable[[GaitGL], None] = lambda model: None,
) -> None:
    architecture = settings.model.model_dump()
    config = GaitGLConfig(**{**architecture, "channels": tuple(architecture["channels"])})
    torch.manual_seed(settings.seed)
    model = GaitGL(config)
    prepare(model)
    run_training(
        "pretrain",
        "oumvlp",
        model,
        stores["oumvlp"],
        Path("catalogue"),  # read for validation only
        folder,
        settings.pretrain,
        settings.seed,
        settings.runtime,
        params=settings.flat(),
        upstream={},
    )


def runs() -> list[Any]:
    client = MlflowClient(tracking_uri())
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids))


def the_run() -> Any:
    (found,) = runs()
    return found


def files(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("checkpoint.safetensors", "history.csv")]

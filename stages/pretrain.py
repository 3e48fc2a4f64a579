"""Stage pretrain: GaitGL from scratch on OUMVLP's training subjects."""

from pathlib import Path

import torch

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.errors import run_stage
from pipeline.files import new_folder
from pipeline.settings import Settings
from pipeline.silhouette_store import SilhouetteStore
from pipeline.training import run_training


def main() -> None:
    settings = Settings.load()
    config = GaitGLConfig(**settings.model.model_dump())
    torch.manual_seed(settings.seed)
    with new_folder(Path("models/pretrain")) as folder:
        run_training(
            "pretrain",
            "oumvlp",
            GaitGL(config),
            config,
            SilhouetteStore(Path("data/oumvlp/silhouettes")),
            folder,
            settings.pretrain,
            settings.seed,
            settings.runtime,
            params=settings.flat(),
            upstream={},
        )


if __name__ == "__main__":
    run_stage(main)

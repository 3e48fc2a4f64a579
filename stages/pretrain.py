"""Stage pretrain: GaitGL from scratch on OUMVLP's training subjects."""

from pathlib import Path

import torch

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.arguments import no_arguments
from pipeline.distributed import spread
from pipeline.errors import run_stage
from pipeline.settings import Settings
from pipeline.silhouette_store import SilhouetteStore
from pipeline.stage_inputs import StageInputs
from pipeline.training_run import run_training


def main() -> None:
    inputs = StageInputs("pretrain")
    settings = Settings.load()
    spread(settings.runtime.processes)
    torch.manual_seed(settings.seed)
    model = GaitGL(GaitGLConfig(**settings.model.model_dump()))
    run_training(
        "pretrain",
        "oumvlp",
        model,
        SilhouetteStore(Path("data/oumvlp/silhouettes")),
        Path("data/oumvlp/catalogue"),
        Path("models/pretrain"),
        settings.pretrain,
        settings.seed,
        settings.runtime,
        params=settings.flat(),
        upstream={},
    )
    inputs.check_unchanged()


if __name__ == "__main__":
    no_arguments(__doc__)
    run_stage(main)

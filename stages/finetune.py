"""Stage finetune: the pretrained network on CASIA-E's training subjects.

The architecture is the checkpoint's, so the weights must fit key by key.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from gaitgl.model import GaitGL
from pipeline.arguments import no_arguments
from pipeline.checkpoints import CHECKPOINT, load_weights, read_checkpoint
from pipeline.distributed import spread
from pipeline.errors import run_stage
from pipeline.files import sha256
from pipeline.settings import Settings, as_trained
from pipeline.silhouette_store import SilhouetteStore
from pipeline.stage_inputs import StageInputs
from pipeline.training_run import run_training

PRETRAINED = Path("models/pretrain", CHECKPOINT)


def main() -> None:
    inputs = StageInputs("finetune")
    settings = Settings.load()
    spread(settings.runtime.processes)
    config, weights, info = read_checkpoint(PRETRAINED)
    torch.manual_seed(settings.seed)
    model = GaitGL(config)
    upstream = {}
    if settings.finetune.initial == "pretrained":
        load_weights(model, weights, PRETRAINED)
        upstream["pretrain"] = sha256(PRETRAINED)
    run_training(
        "finetune",
        "casia_e",
        model,
        SilhouetteStore(Path("data/casia_e/silhouettes")),
        Path("data/casia_e/catalogue"),
        Path("models/finetune"),
        settings.finetune,
        settings.seed,
        settings.runtime,
        params=as_trained(settings.flat(), "pretrain", info["training"], asdict(config)),
        upstream=upstream,
    )
    inputs.check_unchanged()


if __name__ == "__main__":
    no_arguments(__doc__)
    run_stage(main)

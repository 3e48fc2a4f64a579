"""Stage embed: a checkpoint's embeddings of a dataset's test subjects, whole sequences.

OUMVLP is embedded by the pretrained network, CASIA-E by the fine-tuned one.
python -m stages.embed oumvlp|casia_e
"""

from pathlib import Path

import numpy as np

from gaitgl.model import GaitGL
from pipeline.arguments import dataset_argument
from pipeline.checkpoints import CHECKPOINT, load_weights, read_checkpoint
from pipeline.devices import choose_device, precision_here
from pipeline.distributed import joined, spread
from pipeline.embedding import embed
from pipeline.embedding_file import write_embeddings
from pipeline.errors import PipelineError, run_stage
from pipeline.files import fingerprint, sha256
from pipeline.protocols import compared_by_any, read_protocols
from pipeline.settings import TRAINED_BY, Settings
from pipeline.silhouette_store import SilhouetteStore
from pipeline.stage_inputs import StageInputs


def main() -> None:
    dataset = dataset_argument()
    inputs = StageInputs("embed", dataset)
    settings = Settings.load()
    spread(settings.runtime.processes)
    stage = TRAINED_BY[dataset]
    checkpoint = Path("models", stage, CHECKPOINT)
    config, weights, info = read_checkpoint(checkpoint)
    model = GaitGL(config)
    load_weights(model, weights, checkpoint)
    store = SilhouetteStore(Path("data", dataset, "silhouettes"))
    protocols = read_protocols(Path("data", dataset, "catalogue"))
    compared = compared_by_any(protocols, store.index["sequence"], store.index["view"])
    numbers = np.flatnonzero(compared & (store.index["split"] == "test"))
    device = choose_device(settings.runtime.device)
    with joined(device) as world:
        precision = precision_here(device, info["training"]["precision"])
        alike = [sha256(checkpoint), store.digest(), numbers.tolist(), precision]
        if unlike := world.unlike_leader(fingerprint(alike)):
            raise PipelineError(
                f"the processes {unlike} of {world.size} have another checkpoint, silhouettes, "
                f"protocol or precision ({precision} in process 0): give every machine the same "
                "params.yaml, data/ and models/"
            )
        embeddings = embed(model, store, numbers, precision, device, world)
        if world.leads:
            write_embeddings(
                Path("embeddings", f"{dataset}.arrow"),
                store.index.iloc[numbers],
                embeddings,
                {
                    "stage": stage,
                    "trained_by": ",".join([*info["upstream"], stage]),
                    "checkpoint": sha256(checkpoint),
                    "silhouettes": store.digest(),
                },
            )
    inputs.check_unchanged()


if __name__ == "__main__":
    run_stage(main)

"""Stage normalize: frames of the release to silhouettes of 64 x 44 in a store.

python -m stages.normalize oumvlp|casia_e
"""

from pathlib import Path

from pipeline.archives import Caps
from pipeline.arguments import dataset_argument
from pipeline.catalogue import read_sequences
from pipeline.errors import run_stage
from pipeline.files import new_folder
from pipeline.normalizing import normalize
from pipeline.settings import Settings


def main() -> None:
    dataset = dataset_argument()
    settings = Settings.load()
    sequences = read_sequences(Path("data", dataset, "catalogue"))
    with new_folder(Path("data", dataset, "silhouettes")) as folder:
        normalize(
            dataset,
            Path(settings.data[dataset].root),
            sequences,
            folder,
            settings.normalize.min_foreground,
            settings.normalize.min_frames,
            settings.runtime.workers,
            Caps(**settings.ingest.model_dump()),
        )


if __name__ == "__main__":
    run_stage(main)

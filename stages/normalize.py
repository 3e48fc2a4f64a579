"""Stage normalize: frames of the release to silhouettes of 64 x 44 in a store.

python -m stages.normalize oumvlp|casia_e
"""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from pipeline.archives import Caps
from pipeline.arguments import dataset_argument
from pipeline.catalogue import read_refusals, read_sequences
from pipeline.errors import run_stage
from pipeline.files import new_folder, sha256
from pipeline.normalizing import normalize, release_state
from pipeline.run_folder import RUNS, RunFolder, held
from pipeline.settings import Settings
from pipeline.stage_inputs import StageInputs
from pipeline.stopping import exits_at_signals


def main() -> None:
    dataset = dataset_argument()
    inputs = StageInputs("normalize", dataset)
    settings = Settings.load()
    root = Path(settings.data[dataset].root)
    catalogue = Path("data", dataset, "catalogue")
    sequences = read_sequences(catalogue)
    caps = Caps(**settings.ingest.model_dump())
    # all that decides a shard's bytes
    identity = {
        "catalogue": sha256(catalogue / "sequences.parquet"),
        "release": release_state(root, sequences),
        "min_foreground": settings.normalize.min_foreground,
        "min_frames": settings.normalize.min_frames,
        "ingest": asdict(caps),
    }
    unfinished = RunFolder(f"normalize-{dataset}", "normalize", identity)
    for folder, differs in unfinished.folders_of_others():
        sys.stderr.write(f"left from an unfinished normalize: {folder}: other {differs}\n")
    name = f"normalize of {dataset}"
    with (
        exits_at_signals(f"finished shards are kept in {unfinished.folder}; start again to go on"),
        held(RUNS / f"normalize-{dataset}.lock", name, Path("data", dataset, "silhouettes")),
    ):
        unfinished.folder.mkdir(parents=True, exist_ok=True)
        unfinished.describe()
        with new_folder(Path("data", dataset, "silhouettes")) as folder:
            normalize(
                dataset,
                root,
                sequences,
                folder,
                settings.normalize.min_foreground,
                settings.normalize.min_frames,
                settings.runtime.workers,
                caps=caps,
                max_refused_share=settings.normalize.max_refused_share,
                shards=unfinished.folder,
                scheduler=settings.runtime.dask_scheduler,
                refused_before=int(read_refusals(catalogue)["frames"].sum()),
            )
        # a machine of a cluster that was thought dead may still write there
        shutil.rmtree(unfinished.folder, ignore_errors=True)
    inputs.check_unchanged()


if __name__ == "__main__":
    run_stage(main)

"""Stage describe: what a release holds and what became of it, as a page to read and as JSON.

python -m stages.describe oumvlp|casia_e
"""

from pathlib import Path

from pipeline.arguments import dataset_argument
from pipeline.catalogue import read_refusals, read_release, read_sequences
from pipeline.description import COLUMNS, describe, grids
from pipeline.description_page import write_description
from pipeline.errors import run_stage
from pipeline.silhouette_store import SilhouetteStore
from pipeline.stage_inputs import StageInputs


def main() -> None:
    dataset = dataset_argument()
    inputs = StageInputs("describe", dataset)
    catalogue = Path("data", dataset, "catalogue")
    silhouettes = Path("data", dataset, "silhouettes")
    sequences = read_sequences(catalogue, COLUMNS)
    store = SilhouetteStore(silhouettes)
    refusals = {"ingest": read_refusals(catalogue), "normalize": read_refusals(silhouettes)}
    combinations = grids(sequences, store.index)
    described = describe(
        dataset, sequences, store.index, refusals, read_release(catalogue), combinations
    )
    write_description(Path("reports", dataset), described, combinations, store)
    inputs.check_unchanged()


if __name__ == "__main__":
    run_stage(main)

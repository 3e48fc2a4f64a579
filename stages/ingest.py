"""Stage ingest: a release, untouched, to the catalogue of its sequences.

python -m stages.ingest oumvlp|casia_e
"""

from pathlib import Path

from pipeline.archives import Caps
from pipeline.arguments import dataset_argument
from pipeline.catalogue import write_catalogue
from pipeline.errors import run_stage
from pipeline.files import new_folder
from pipeline.ingestion import ingest
from pipeline.protocols import write_protocols
from pipeline.settings import Settings
from pipeline.stage_inputs import StageInputs


def main() -> None:
    dataset = dataset_argument()
    inputs = StageInputs("ingest", dataset)
    settings = Settings.load()
    catalogue = ingest(
        dataset,
        Path(settings.data[dataset].root),
        settings.data[dataset].split,
        settings.runtime.workers,
        Caps(**settings.ingest.model_dump()),
    )
    with new_folder(Path("data", dataset, "catalogue")) as folder:
        write_catalogue(folder, catalogue.sequences, catalogue.refusals, catalogue.release)
        write_protocols(folder, catalogue.protocols)
    inputs.check_unchanged()


if __name__ == "__main__":
    run_stage(main)

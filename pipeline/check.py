"""Checks params.yaml before anything expensive starts: ``python -m pipeline.check``."""

from pathlib import Path

from pipeline import releases
from pipeline.errors import PipelineError, run_stage
from pipeline.settings import DATASETS, Settings

WALKERS = Path("synthetic/release")
"""What lies here is made by DVC itself, so it need not be there yet."""


def main() -> None:
    settings = Settings.load()
    problems = []
    for dataset in DATASETS:
        root = Path(settings.data[dataset].root)
        if WALKERS in root.parents:
            continue
        try:
            releases.check_root(dataset, root)
        except PipelineError as error:
            problems.append(str(error))
    if problems:
        raise PipelineError("\n".join(problems))


if __name__ == "__main__":
    run_stage(main)

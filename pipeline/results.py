"""Prints the results that the reports hold: ``python -m pipeline.results``."""

from pathlib import Path

from pipeline.arguments import no_arguments
from pipeline.errors import run_stage
from pipeline.report import result_text
from pipeline.settings import DATASETS


def main() -> None:
    for dataset in DATASETS:
        folder = Path("reports", dataset)
        if (folder / "metrics.json").exists():
            print(result_text(folder))
    print("\nruns, curves of p and settings side by side: make ui", flush=True)


if __name__ == "__main__":
    no_arguments(__doc__)
    run_stage(main)

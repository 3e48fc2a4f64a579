"""What may follow a command: a dataset, or nothing."""

import argparse

from pipeline.settings import DATASETS, Dataset


def dataset_argument() -> Dataset:
    """The dataset named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", choices=DATASETS)
    dataset: Dataset = parser.parse_args().dataset
    return dataset


def no_arguments(about: str | None) -> None:
    """Refuse whatever follows a command that takes nothing; ``--help`` shows ``about``."""
    style = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=about, formatter_class=style).parse_args()

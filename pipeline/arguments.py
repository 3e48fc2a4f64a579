"""What may follow a command: a dataset, or nothing."""

import argparse
import sys

from pipeline.settings import DATASETS, Dataset


def dataset_argument() -> Dataset:
    """The dataset named on the command line; ``--help`` shows what the command says of itself."""
    style = argparse.RawDescriptionHelpFormatter
    about = sys.modules["__main__"].__doc__
    parser = argparse.ArgumentParser(description=about, formatter_class=style)
    parser.add_argument("dataset", choices=DATASETS)
    dataset: Dataset = parser.parse_args().dataset
    return dataset


def no_arguments(about: str | None) -> None:
    """Refuse whatever follows a command that takes nothing; ``--help`` shows ``about``."""
    style = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=about, formatter_class=style).parse_args()

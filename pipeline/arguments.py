"""The one argument that stages take."""

import argparse

from pipeline.settings import DATASETS, Dataset


def dataset_argument() -> Dataset:
    """The dataset named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", choices=DATASETS)
    dataset: Dataset = parser.parse_args().dataset
    return dataset

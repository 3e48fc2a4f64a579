"""Stage evaluate: rank tables, curves and figures of a dataset's test subjects.

python -m stages.evaluate oumvlp|casia_e
"""

import time
from pathlib import Path

import pandas as pd

from pipeline.arguments import dataset_argument
from pipeline.embedding_file import read_embeddings
from pipeline.errors import run_stage
from pipeline.evaluation import evaluate
from pipeline.evaluation_run import evaluation_run, record_report
from pipeline.mlflow_store import DURATION
from pipeline.protocols import read_protocol
from pipeline.report import write_report
from pipeline.settings import Settings


def main() -> None:
    began_at = time.monotonic()
    dataset = dataset_argument()
    settings = Settings.load()
    keys, embeddings, made_by = read_embeddings(Path("embeddings", f"{dataset}.arrow"))
    catalogue = Path("data", dataset, "catalogue")
    protocol = read_protocol(catalogue)
    evaluation = evaluate(
        keys, embeddings, protocol, settings.evaluate.distance, settings.evaluate.cmc_ranks
    )
    histories = {
        stage: pd.read_csv(Path("models", stage, "history.csv"))
        for stage in made_by["trained_by"].split(",")
    }
    folder = Path("reports", dataset)
    with evaluation_run(dataset, settings, made_by, catalogue) as run:
        metrics = write_report(
            folder,
            evaluation,
            protocol,
            histories,
            int(made_by["refused_test_sequences"]),
        )
        metrics[DURATION] = time.monotonic() - began_at
        record_report(run, dataset, settings, folder, metrics)


if __name__ == "__main__":
    run_stage(main)

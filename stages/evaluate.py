"""Stage evaluate: rank tables, curves and figures of a dataset's test subjects.

python -m stages.evaluate oumvlp|casia_e
"""

from pathlib import Path

import pandas as pd

from pipeline.arguments import dataset_argument
from pipeline.embedding_file import read_embeddings
from pipeline.errors import run_stage
from pipeline.evaluation import evaluate
from pipeline.protocols import read_protocol
from pipeline.report import write_report
from pipeline.settings import Settings
from pipeline.tracking import TrackedRun


def main() -> None:
    dataset = dataset_argument()
    settings = Settings.load()
    keys, embeddings, made_by = read_embeddings(Path("embeddings", f"{dataset}.arrow"))
    protocol = read_protocol(Path("data", dataset, "catalogue"))
    evaluation = evaluate(
        keys, embeddings, protocol, settings.evaluate.distance, settings.evaluate.cmc_ranks
    )
    histories = {
        stage: pd.read_csv(Path("models", stage, "history.csv"))
        for stage in made_by["trained_by"].split(",")
    }
    folder = Path("reports", dataset)
    upstream = {made_by["stage"]: made_by["checkpoint"]}
    with TrackedRun(
        "evaluate", dataset, settings.runtime.experiment, settings.flat(), upstream
    ) as run:
        metrics = write_report(
            folder,
            evaluation,
            protocol,
            histories,
            int(made_by["refused_test_sequences"]),
        )
        run.log(0, metrics)
        for part in ("metrics.json", "tables", "figures"):
            run.artifact(folder / part)


if __name__ == "__main__":
    run_stage(main)

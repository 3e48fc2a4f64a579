"""Stage evaluate: what the protocols of a dataset say about its test subjects' embeddings.

Numbers, figures and a page; for a competition, whose probes have no labels, submission.csv.
python -m stages.evaluate oumvlp|casia_e
"""

import time
from dataclasses import replace
from pathlib import Path

from pipeline.arguments import dataset_argument
from pipeline.catalogue import read_sequences
from pipeline.commits import code_commit
from pipeline.devices import choose_device
from pipeline.distance_pass import Method, Reranking, placed
from pipeline.embedding_file import read_embeddings
from pipeline.embedding_map import embedding_map
from pipeline.errors import run_stage
from pipeline.evaluation import compete, evaluate
from pipeline.evaluation_inputs import check_inputs, chosen, refused_words
from pipeline.evaluation_run import evaluation_run, record_report
from pipeline.files import sha256
from pipeline.mlflow_store import DURATION
from pipeline.protocols import PROTOCOL_FILE, read_protocols
from pipeline.report import write_report
from pipeline.report_page import write_page
from pipeline.settings import Settings, as_trained, flatten
from pipeline.silhouette_store import SilhouetteStore
from pipeline.stage_inputs import StageInputs
from pipeline.tables import KEY
from pipeline.training_record import training_records


def main() -> None:
    began_at = time.monotonic()
    dataset = dataset_argument()
    inputs = StageInputs("evaluate", dataset)
    settings = Settings.load()
    catalogue = Path("data", dataset, "catalogue")
    offered = read_protocols(catalogue)
    protocols = chosen(offered, settings.evaluate.protocols[dataset], dataset)
    embedded = Path("embeddings", f"{dataset}.arrow")
    keys, embeddings, made_by = read_embeddings(embedded)
    sequences = read_sequences(catalogue, [*KEY, "split"])
    store = SilhouetteStore(Path("data", dataset, "silhouettes"))
    check_inputs(dataset, keys, embeddings, sequences, store.index, protocols)
    records = training_records(Path("models"), Path("data"), made_by)

    reranking = settings.evaluate.reranking
    k_reciprocal = Reranking(reranking.k1, reranking.k2, reranking.original_share)
    method = Method(
        settings.evaluate.distance,
        settings.runtime.distance_block_mib * 2**20,
        k_reciprocal if reranking.method == "k_reciprocal" else None,
    )
    on_device = placed(embeddings, choose_device(settings.runtime.device))
    submission = settings.evaluate.submission
    if protocols[0].labelled:
        evaluation = evaluate(keys, on_device, protocols, method, settings.evaluate.cmc_ranks)
    else:
        evaluation = compete(
            keys, on_device, protocols[0], method, catalogue, submission.unknown_above
        )
    refused = refused_words(sequences, keys, protocols[0])
    evaluation = replace(evaluation, notes=[*evaluation.notes, *refused])

    settings_shown = {
        "protocols": [protocol.name for protocol in protocols],
        "distance": settings.evaluate.distance,
        **flatten(reranking.model_dump(), "reranking."),
        "cmc_ranks": settings.evaluate.cmc_ranks,
        **flatten(submission.model_dump(), "submission."),
    }
    made_from = {
        "embeddings": sha256(embedded),
        "protocols": sha256(catalogue / PROTOCOL_FILE),
        "commit of the code": code_commit(),
    }
    params = {**settings.flat(), "seed": records[-1].seed}
    for record in records:
        params = as_trained(params, record.stage, record.settings, record.architecture)
    folder = Path("reports", dataset)
    with evaluation_run(dataset, settings.runtime.experiment, params, made_by, catalogue) as run:
        write_page(
            folder,
            evaluation,
            protocols,
            records,
            embedding_map(keys, embeddings, protocols[0]),
            store,
            settings_shown,
            made_from,
        )
        histories = {record.stage: record.history for record in records}
        metrics = write_report(folder, evaluation, protocols, histories, submission.columns)
        metrics[DURATION] = time.monotonic() - began_at
        record_report(run, dataset, params, folder, metrics)
    inputs.check_unchanged()


if __name__ == "__main__":
    run_stage(main)

"""Sends what MLflow has not got of past runs: ``python -m pipeline.sync_runs``."""

from pathlib import Path
from typing import Any

from pipeline import mlflow_store
from pipeline.arguments import no_arguments
from pipeline.errors import PipelineError, listing, run_stage
from pipeline.run_record import (
    KILLED,
    Record,
    RecordInUse,
    open_record,
    remove_folder,
    start_ms,
)


def main() -> None:
    folders = sorted(mlflow_store.record_folders(), key=start_ms)
    if not folders:
        print("no run waits to be sent to MLflow")
        return
    client = None
    not_taken = []
    for folder in folders:
        try:
            record = open_record(folder)
        except RecordInUse:
            print(f"{folder}: skipped, its stage is at work and sends by itself")
            continue
        if record is None:  # delivered and removed by its stage just now
            continue
        try:
            client = client or mlflow_store.open_store(mlflow_store.tracking_uri())
            print(_send(record, client))
        except mlflow_store.store_errors() as error:
            if not mlflow_store.refused(error):
                raise PipelineError(
                    f"{mlflow_store.trouble(error)}\nNothing is lost: what is not sent stays in "
                    f"{mlflow_store.RUN_IDS.parent}. Run make sync-runs again when that is mended."
                ) from None
            not_taken.append(f"{folder}: {mlflow_store.reason(error)}")
        finally:
            record.release()
    if not_taken:
        raise PipelineError(
            f"the MLflow store refuses {len(not_taken)} of the runs:\n{listing(not_taken)}\n"
            "Restore what is missing there, or delete the folder to give the run up."
        )


def _send(record: Record, client: Any) -> str:
    """Deliver one record, and remove it if its run will not go on; says what became of it."""
    if record.end is None:  # it is ours now, so its process was killed
        record.finish(KILLED, _last_written_ms(record.folder))
    metrics = record.count_unsent()
    complete = record.delivered()
    mlflow_store.deliver(record, client)
    sent = "nothing new" if complete else f"sent, {metrics} metrics"
    status = record.end.status if record.end else ""
    kept = ""
    if record.over():
        remove_folder(record.folder)
    else:
        kept = "; kept, so that its stage can go on"
    return f"{record.run.name} ({record.folder}): {sent}, {status}{kept}"


def _last_written_ms(folder: Path) -> int:
    return int((folder / "metrics.jsonl").stat().st_mtime * 1000)


if __name__ == "__main__":
    no_arguments(__doc__)
    run_stage(main)

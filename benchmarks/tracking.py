"""What recording a training in MLflow costs its steps, with three kinds of store.

python -m benchmarks tracking [--quick]

A step is a sleep, as long as one of the demo takes on two cores: whatever this process computes
meanwhile is the record's. Counted is how long the steps' thread is kept from the next step, and how
much the record's other threads compute, as a share of the steps' time. Metrics, their number, and
how often they are logged and kept are those of the demo. Plain is a call of MLflow's ``log_batch``
in the place of our ``log``. What happens once a training (imports, making the run) is left out.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from benchmarks.mlflow_servers import Server, late_server
from benchmarks.timing import Row, number, quiet
from pipeline import mlflow_store, system_metrics
from pipeline.settings import Settings
from pipeline.tracking import TrackedRun

STEP_S = 0.2
METRICS = dict.fromkeys(
    (
        "loss",
        "active_share",
        "mean_distance",
        "grad_norm",
        "lr",
        "p",
        "sequences_per_s",
        "waiting_share",
        "duration_s",
    ),
    0.123456789,
)


def rows(quick: bool) -> list[Row]:
    runtime = Settings.load().runtime
    every, keep_every = runtime.log_every, runtime.checkpoint_every
    step_s, n_steps, n_calls = (0.01, 20, 2) if quick else (STEP_S, 200, 10)
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder)
        server.start()
        try:
            with late_server(server.uri) as late:
                stores = {
                    "SQLite": f"{mlflow_store.SQLITE}{folder / 'own.db'}",
                    "mlflow server": server.uri,
                    "mlflow server, 1 s a call": late,
                }
                for store, uri in stores.items():
                    with _stored_in(uri, folder), quiet():
                        kept_s, busy_s = _ours(n_steps, step_s, every, keep_every)
                        call_s = _plain(n_calls)
                    ours = 100 * kept_s / (n_steps * step_s)
                    plain = 100 * call_s / (every * step_s)
                    busy = 100 * busy_s / (n_steps * step_s)
                    found.append(
                        Row(
                            f"steps kept waiting by the record, {store}",
                            "% of a step",
                            plain,
                            ours,
                            plain / ours,
                            "≤ 1 %",
                            f"{n_steps} steps of {step_s} s",
                            f"the record's threads compute {number(busy)} %",
                        )
                    )
        finally:
            server.kill()
    return found


def _ours(n_steps: int, step_s: float, every: int, keep_every: int) -> tuple[float, float]:
    """Seconds that the steps' thread spent on the record, and that other threads computed."""
    system_metrics.monitors()
    kept_s = 0.0
    with TrackedRun("pretrain", "oumvlp", "benchmark", {}, {}) as run:
        while not run.run_id:
            time.sleep(0.01)
        computed_s, own_s = time.process_time(), time.thread_time()
        for step in range(1, n_steps + 1):
            time.sleep(step_s)
            began_at = time.perf_counter()
            if step % every == 0:
                run.log(step, METRICS)
            if step % keep_every == 0:
                run.keep()
            kept_s += time.perf_counter() - began_at
        own_s = time.thread_time() - own_s
        busy_s = time.process_time() - computed_s - own_s
    return kept_s, busy_s


def _plain(n_calls: int) -> float:
    """Seconds that one call of MLflow's takes, the median of several."""
    from mlflow.entities import Metric

    client = mlflow_store.open_store(mlflow_store.tracking_uri())
    experiment = client.get_experiment_by_name("benchmark").experiment_id
    run_id = client.create_run(experiment).info.run_id
    each_s = []
    for step in range(n_calls):
        began_at = time.perf_counter()
        client.log_batch(run_id, [Metric(*item, 0, step) for item in METRICS.items()])
        each_s.append(time.perf_counter() - began_at)
    return sorted(each_s)[n_calls // 2]


@contextmanager
def _stored_in(uri: str, folder: Path) -> Iterator[None]:
    """For the block, the store lies at ``uri`` and records, as artifacts, in ``folder``."""
    runs = folder / "runs" / "run_ids.json"
    with (
        patch.dict(os.environ, MLFLOW_TRACKING_URI=uri),
        patch.multiple(mlflow_store, ROOT=folder, CODE=folder, RUN_IDS=runs),
    ):
        yield

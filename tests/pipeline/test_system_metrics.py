from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from pipeline import tracking
from pipeline.mlflow_store import tracking_uri
from pipeline.system_metrics import monitors, sample
from tests.tracked_runs import eventually, tracked

CPU = "system/cpu_utilization_percentage"


def test_processor_and_memory_have_the_names_that_mlflow_shows() -> None:
    found = sample(monitors())
    assert 0 <= found[CPU] <= 100
    memory = psutil.virtual_memory().total / 1e6
    assert 0 < found["system/system_memory_usage_megabytes"] < memory
    assert 0 < found["system/system_memory_usage_percentage"] < 100
    assert all(name.startswith("system/") for name in found)


def test_each_sample_is_one_of_its_own() -> None:
    class Counting:
        def __init__(self) -> None:
            self.values: list[float] = []
            self.calls = 0

        def collect_metrics(self) -> None:
            self.calls += 1
            self.values.append(self.calls)

        def aggregate_metrics(self) -> dict[str, float]:
            return {"calls": sum(self.values) / len(self.values)}

        def clear_metrics(self) -> None:
            self.values.clear()

    counting: list[Any] = [Counting()]
    assert [sample(counting)["system/calls"] for _ in range(3)] == [1, 2, 3]


def test_a_run_that_goes_on_numbers_its_samples_on(
    tracking_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SAMPLE_EVERY_S", 0.01)
    folder = tracking_store / "runs" / "pretrain-f00d" / "record"
    for wanted in (2, 5):
        with pytest.raises(ZeroDivisionError), tracked(folder=folder) as run:  # noqa: PT012
            eventually(lambda run=run, n=wanted: run._record.last_step(CPU) >= n)  # type: ignore[misc]
            raise ZeroDivisionError
    points = MlflowClient(tracking_uri()).get_metric_history(run.run_id, CPU)
    steps = sorted(point.step for point in points)
    assert steps == list(range(len(steps)))
    assert len(steps) > 5

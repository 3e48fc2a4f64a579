"""How busy the machine is: processor, memory and NVIDIA GPUs, under the names that MLflow shows.

MLflow's own collectors, without the thread that it sends them by: that one needs a store that
answers, and does not go on where a killed run was left.
"""

import logging
from contextlib import suppress
from typing import Any

from pipeline.mlflow_import import import_mlflow


def monitors() -> list[Any]:
    """Collectors for ``sample``; the import takes seconds."""
    import_mlflow()
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    # a GPU that does not tell its power, say, would be warned of at every sample
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    found: list[Any] = [CPUMonitor()]
    with suppress(ImportError, RuntimeError):  # no nvidia-ml-py; no driver, or no GPU
        found.append(GPUMonitor())
    sample(found)  # the use of the processor is that since the sample before
    return found


def sample(collectors: list[Any]) -> dict[str, float]:
    """What the collectors find now, as `system/<name>`; percent, megabytes (10^6 bytes), watts."""
    found: dict[str, float] = {}
    for collector in collectors:
        collector.collect_metrics()
        found |= collector.aggregate_metrics()
        collector.clear_metrics()
    return {f"system/{name}": float(value) for name, value in found.items()}

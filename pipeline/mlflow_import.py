"""MLflow is imported where it is needed, for that takes seconds; here, in one thread at a time."""

from threading import Lock

_lock = Lock()


def import_mlflow() -> None:
    """Return once MLflow is imported. Whoever imports some of it calls this before.

    Its modules import each other in circles: of two threads at it, one finds halves of modules.
    """
    with _lock:
        import mlflow.pyfunc
        import mlflow.system_metrics.metrics.cpu_monitor
        import mlflow.system_metrics.metrics.gpu_monitor
        import mlflow.tracking  # noqa: F401

import subprocess

from tests.child_processes import environment, python

SCRIPT = """
from threading import Barrier, Thread

def store():
    from pipeline.mlflow_store import store_errors
    together.wait()
    store_errors()

def monitors():
    from pipeline.system_metrics import monitors
    together.wait()
    monitors()

def model():
    from pipeline.mlflow_import import import_mlflow
    together.wait()
    import_mlflow()
    from mlflow.models import ModelSignature
    import mlflow.pyfunc

together = Barrier(3)
threads = [Thread(target=work) for work in (store, monitors, model)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_may_need_mlflow_at_once() -> None:
    done = subprocess.run(
        python(SCRIPT), env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    assert "Error" not in done.stderr

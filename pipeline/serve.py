"""A version of the model over HTTP: ``python -m pipeline.serve MODEL``.

Whatever follows MODEL is passed on to ``mlflow models serve``, which this process becomes once it
is known that there is such a model.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from pipeline import mlflow_store
from pipeline.errors import PipelineError, run_stage
from pipeline.ui import check_free


def main() -> None:
    if len(sys.argv) < 2:
        raise PipelineError(
            "usage: python -m pipeline.serve MODEL [arguments of mlflow models serve]; MODEL is "
            "models:/gaitgl@champion, for instance"
        )
    model, *arguments = sys.argv[1:]
    if model in ("-h", "--help"):
        print(__doc__)
        return
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--port", "-p", default="5000")  # MLflow's own default
    options.add_argument("--host", "-h", default="127.0.0.1")
    known = options.parse_known_args(arguments)[0]
    check_free(known.host, known.port, "make serve PORT=5002 takes another one")
    os.environ["MLFLOW_TRACKING_URI"] = mlflow_store.tracking_uri()
    check(model)
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    # MLflow starts uvicorn by its name alone
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    served = ["mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    os.execv(sys.executable, [sys.executable, "-m", *served, *arguments])


def check(model: str) -> None:
    """PipelineError where MLflow finds no model by this name."""
    try:
        mlflow_store.open_store(mlflow_store.tracking_uri())  # follows a project that was moved
        mlflow_store.look_up(model)
    except mlflow_store.store_errors() as error:
        why = mlflow_store.reason(error)
        if model.partition("@")[2] == "champion" and mlflow_store.refused(error):
            raise PipelineError(
                f"no version is 'champion' yet ({why}): make promote, or "
                "make serve MODEL=models:/gaitgl@finetuned"
            ) from None
        if re.fullmatch("models:/[^/@]+", model) and mlflow_store.refused(error):
            why = f"{why.rstrip('.')}. Which version? {model}/2, say, or {model}@champion"
        raise PipelineError(f"{model} cannot be had from the MLflow store: {why}") from None


if __name__ == "__main__":
    run_stage(main)

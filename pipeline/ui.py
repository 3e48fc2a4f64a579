"""MLflow's UI on this project's runs, for this machine alone: ``python -m pipeline.ui PORT``.

It prints links that open the runs with the columns and curves that matter here. They are views of
the kind that the UI's own button *Share* makes: a tag of the experiment holds the page's state.
Whatever follows PORT is passed on to ``mlflow ui``.
"""

import json
import os
import re
import socket
import sys
from typing import Any

from pipeline.errors import PipelineError, run_stage
from pipeline.mlflow_store import (
    all_pages,
    deleted,
    open_store,
    store_errors,
    tracking_uri,
    trouble,
)
from pipeline.settings import Settings

VIEW_TAG = "mlflow.sharedViewState."

RANK1 = ("headline_rank1", "rank1", "NM_rank1", "BG_rank1", "CL_rank1")
RESULTS = (*RANK1, "p_pretrain", "p_finetune")
"""Metrics of evaluation runs that have a column; MLflow sorts them, and shows those a run has."""
SETTINGS = ("seed", "model.gem_p", "pretrain.lr", "pretrain.steps", "finetune.lr", "finetune.steps")
CURVES = ("p", "loss", "active_share", "validation_rank1", "sequences_per_s")
"""Metrics of training runs that have a chart against the step."""


def main() -> None:
    port, *arguments = sys.argv[1:] or [""]
    if port in ("-h", "--help"):
        print(__doc__)
        return
    if not port.isdecimal():
        raise PipelineError(
            "usage: python -m pipeline.ui PORT [arguments of mlflow ui], with a number as PORT; "
            f"got {port or 'nothing'}"
        )
    name = Settings.load().runtime.experiment
    uri = tracking_uri()
    try:
        experiment_id = put_views(open_store(uri), name)
    except store_errors() as error:
        raise PipelineError(trouble(error)) from None
    if not served(uri):
        check_free("127.0.0.1", port, "make ui PORT=5001 takes another one")
    for title, link in links(address(uri, port), experiment_id).items():
        print(f"{title:8} {link}")
    if served(uri):
        return
    print("MLflow takes some seconds to start; Ctrl-C ends it", flush=True)
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # not an argument: others see those
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["PYTHONWARNINGS"] = "ignore"
    os.execv(sys.executable, command(port, arguments))


def check_free(host: str, port: str, instead: str) -> None:
    """PipelineError where no server can listen on a port; ``instead``: what can be done."""
    with socket.socket() as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            asking.bind((host, int(port)))
        except (OSError, OverflowError, ValueError) as error:
            raise PipelineError(f"port {port} cannot be had ({error}): {instead}") from None


def command(port: str, arguments: list[str]) -> list[str]:
    """How MLflow's UI is started: for this machine alone, unless ``arguments`` say otherwise."""
    quiet = ["--uvicorn-opts", "--log-level warning"]
    here = ["--host", "127.0.0.1", "--port", port]
    return [sys.executable, "-m", "mlflow", "ui", *here, "--workers", "1", *quiet, *arguments]


def put_views(client: Any, experiment_name: str) -> str:
    """Keep the views with the experiment, anew each time; returns its id."""
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        others = [
            one.name
            for one in all_pages(client.search_experiments)
            if client.search_runs([one.experiment_id], "tags.stage = 'evaluate'", max_results=1)
        ]
        if others:
            raise PipelineError(
                f"runtime.experiment is {experiment_name}, which has no runs yet; others have: "
                f"{', '.join(others)}. Set it to that, or `make repro` makes some where there is "
                "something to do"
            )
        raise PipelineError(
            f"experiment {experiment_name} has no runs yet: `make repro` makes some"
        )
    if problem := deleted(client, experiment_name):
        raise PipelineError(problem)
    for key, state in views().items():
        client.set_experiment_tag(experiment.experiment_id, VIEW_TAG + key, json.dumps(state))
    return str(experiment.experiment_id)


def served(uri: str) -> bool:
    """Whether a store is a server, which has a UI already."""
    return uri.startswith(("http://", "https://"))


def address(uri: str, port: str) -> str:
    """Where the UI of a store is, without the name and password that a server's may hold."""
    return re.sub("//.*@", "//", uri.rstrip("/")) if served(uri) else f"http://127.0.0.1:{port}"


def links(address: str, experiment_id: str) -> dict[str, str]:
    """The pages to look at, by what is there."""
    runs = f"{address}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    return {
        "results": f"{runs}&viewStateShareKey=results",
        "curves": f"{runs}&viewStateShareKey=curves&compareRunsMode=CHART",
        "models": f"{address}/#/models",
    }


def views() -> dict[str, dict[str, Any]]:
    """The state of the runs page in each view, in the UI's words (MLflow 3.17)."""
    section = "curves"
    charts = [
        {
            "type": "LINE",
            "uuid": f"curve-{name}",
            "metricSectionId": section,
            "metricKey": name,
            "displayName": name,
            "runsCountToCompare": 10,
            "lineSmoothness": 0,
            "useGlobalLineSmoothing": False,
            "isGenerated": False,
            "deleted": False,
        }
        for name in CURVES
    ]
    return {
        "results": {
            "searchFilter": "tags.stage = 'evaluate'",
            "selectedColumns": [
                "attributes.`Version`",  # the commit
                *(f"metrics.`{name}`" for name in RESULTS),
                *(f"params.`{name}`" for name in SETTINGS),
            ],
        },
        "curves": {
            "searchFilter": "tags.stage != 'evaluate'",
            "compareRunCharts": charts,
            "compareRunSections": [
                {"uuid": section, "name": "Curves", "display": True, "isReordered": False}
            ],
        },
    }


if __name__ == "__main__":
    run_stage(main)

"""Versions of the model in MLflow's registry: each training makes one, aliases name some of them.

``pretrained`` and ``finetuned`` are the newest of their stage; ``champion`` is what
``pipeline.promote`` found to be the best one.
"""

from pathlib import Path
from typing import Any

from pipeline.files import sha256
from pipeline.mlflow_store import TOKEN_TAG
from pipeline.run_record import Run

NAME = "gaitgl"
"""Of the registered model."""
ALIASES = {"pretrain": "pretrained", "finetune": "finetuned"}


def send_model(client: Any, experiment: str, run_id: str, run: Run, folder: Path) -> None:
    """Log the model in ``folder`` with the run that trained it, and register it as a version.

    ``experiment`` is an id, ``client`` an MlflowClient, whose errors are raised. What an earlier
    call has made is found by the run's token, and not made again.
    """
    from mlflow.entities import LoggedModelOutput

    from pipeline.model_folder import CHECKPOINT  # imports torch

    token = {TOKEN_TAG: run.token}
    found = client.search_logged_models([experiment], f"tags.{TOKEN_TAG} = '{run.token}'")
    logged = (
        found[0]
        if found
        else client.create_logged_model(
            experiment, f"{NAME}-{ALIASES[run.stage]}", run_id, token | {"stage": run.stage}
        )
    )
    _name_in(folder, logged.model_id, run_id)
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    outputs = client.get_run(run_id).outputs
    if not outputs or logged.model_id not in [output.model_id for output in outputs.model_outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _register(client, logged, run_id, run, sha256(folder / CHECKPOINT))


def _name_in(folder: Path, model_id: str, run_id: str) -> None:
    """Say in the folder itself which logged model it is."""
    from mlflow.models import Model

    model = Model.load(str(folder))
    model.model_id, model.run_id = model_id, run_id
    model.save(str(folder / "MLmodel"))


def _register(client: Any, logged: Any, run_id: str, run: Run, checkpoint: str) -> None:
    if not client.search_registered_models(f"name = '{NAME}'"):
        _make_registered_model(client)
    versions = client.search_model_versions(f"name = '{NAME}' and run_id = '{run_id}'")
    if not versions:
        tags = {
            "stage": run.stage,
            "dataset": run.dataset,
            "checkpoint": checkpoint,
            "trained_ms": str(run.start_ms),
        }
        # not models:/<id>: the store would look that up in whatever store is MLflow's default
        source = logged.artifact_location
        versions = [
            client.create_model_version(
                NAME,
                source,
                run_id,
                tags,
                description=_words(run),
                await_creation_for=0,
                model_id=logged.model_id,
            )
        ]
    alias = ALIASES[run.stage]
    version = _version_with(client, alias)
    if version is None or int(version.tags.get("trained_ms", 0)) < run.start_ms:
        client.set_registered_model_alias(NAME, alias, versions[0].version)


def _words(run: Run) -> str:
    """What the list of versions says of one."""
    settings = {"steps": f"{run.stage}.steps", "seed": "seed"}
    told = [f"{word} {run.params[name]}" for word, name in settings.items() if name in run.params]
    return ", ".join([f"{run.stage} on {run.dataset}", *told])


def _make_registered_model(client: Any) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            NAME, description="Silhouettes [n, t, 64, 44] to embeddings [n, c, strips]"
        )
    except MlflowException:  # another training was quicker
        if not client.search_registered_models(f"name = '{NAME}'"):
            raise


def _version_with(client: Any, alias: str) -> Any:
    """The version that has an alias, or None."""
    number = client.get_registered_model(NAME).aliases.get(alias)
    return None if number is None else client.get_model_version(NAME, number)

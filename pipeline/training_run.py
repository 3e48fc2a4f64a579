"""A whole training: what is checked before it, its loop of steps, and the record of its result."""

import shutil
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.batches import TrainingBatches
from pipeline.checkpoints import CHECKPOINT, read_checkpoint, save_checkpoint
from pipeline.data_inputs import data_inputs
from pipeline.devices import choose_device, lacks_bfloat16, place
from pipeline.distributed import World, joined
from pipeline.errors import PipelineError
from pipeline.files import fingerprint, new_folder, sha256
from pipeline.held_out import held_out
from pipeline.memory import memory_of_each, shortage
from pipeline.mlflow_store import DATA_TAG
from pipeline.settings import Dataset, Runtime, Training, batch_problem
from pipeline.silhouette_store import SilhouetteStore
from pipeline.stopping import StopRequest
from pipeline.tracking import TrackedRun
from pipeline.training import new_optimizer
from pipeline.training_history import HISTORY, write_history
from pipeline.training_loop import TrainingLoop
from pipeline.training_state import TrainingState
from pipeline.validation import Validation


def run_training(
    stage: str,
    dataset: Dataset,
    model: GaitGL,
    store: SilhouetteStore,
    catalogue: Path,
    folder: Path,
    training: Training,
    seed: int,
    runtime: Runtime,
    params: dict[str, Any],
    upstream: dict[str, str],
) -> None:
    """Train, record the run, and make ``folder`` with checkpoint.safetensors and history.csv.

    ``params`` is what the run shows; ``upstream`` holds the digest of each checkpoint that this
    training starts from, under its stage's name; the protocol in ``catalogue`` is read for
    validation only, and its sequences are counted for the run. On one CPU, with one number of
    threads, the files' bytes depend on settings and inputs alone, however often the training was
    killed on the way.
    """
    device = choose_device(runtime.device)
    about = {
        "stage": stage,
        "dataset": dataset,
        # measuring does not change what is trained
        "training": training.model_dump(exclude={"validate_every"}),
        "seed": seed,
        "silhouettes": store.digest(),
        "upstream": upstream,
    }
    identity = {**about, "architecture": asdict(model.config)}
    about["fingerprint"] = fingerprint(identity)
    state = TrainingState(stage, identity)
    with joined(device) as world, StopRequest() as stop:
        _check_precision(stage, training, device)
        _check_alike(world, state, training, runtime)
        _check_memory(stage, training, model.config, device, world)
        batches = _batches(stage, store, training, seed, world, device)
        validation = _validation(store, catalogue, training)
        optimizer = new_optimizer(place(model, device))
        loop = TrainingLoop(
            stage=stage,
            training=training,
            runtime=runtime,
            device=device,
            world=world,
            stop=stop,
            state=state,
            batches=batches,
            validation=validation,
            model=model,
            optimizer=optimizer,
        )
        record = state.folder / "record"

        def tracked(resumed: bool) -> TrackedRun:
            where = {**_where(device), "processes": str(world.size)}
            return TrackedRun(
                stage,
                dataset,
                runtime.experiment,
                params,
                upstream,
                {**where, DATA_TAG: store.digest()},
                inputs=data_inputs(dataset, catalogue, "training"),
                folder=record,
                resumed=resumed,
            )

        # A kill between any two lines leaves either the states, or the result that is kept, and
        # with it the open record: the next start goes on there.
        with state.locked() if world.leads else nullcontext():
            made = state.result() if world.leads else None
            if world.any(made is not None):
                if made is not None:  # the leading process, which alone has something to do
                    _take_over(made, folder)
                    if (record / "run.json").exists():
                        with tracked(resumed=True) as continued:
                            _record_result(continued, folder, training.steps)
            else:
                loop.resume()
                with tracked(loop.done > 0) if world.leads else nullcontext() as run:
                    loop.train(run)
                    if run is not None:
                        with new_folder(folder) as beside:
                            info = {**about, "p": model.gem_p}
                            save_checkpoint(beside / CHECKPOINT, model, info)
                            write_history(beside / HISTORY, loop.history)
                        run.keep()  # first: once the result is kept, no step is done again
                        state.keep_result(folder)
                        _record_result(run, folder, training.steps)
            if world.leads:
                state.remove()


def _check_precision(stage: str, training: Training, device: torch.device) -> None:
    lack = lacks_bfloat16(device) if training.precision == "bfloat16" else ""
    if lack:
        raise PipelineError(
            f"{stage}.precision is bfloat16, but {lack}; set it to float32, or train elsewhere"
        )


def _check_alike(world: World, state: TrainingState, training: Training, runtime: Runtime) -> None:
    """PipelineError unless all processes train the same, in batches that divide among them."""
    problem = batch_problem(state.stage, training, world.size)
    # the last three decide what the processes do together, and when
    together = training.validate_every, runtime.checkpoint_every, runtime.stop_after_idle_steps
    unlike = world.unlike_leader(fingerprint([state.key, *together]))
    if unlike:
        problem = (
            f"the processes {unlike} of {world.size} have other settings, silhouettes or code than "
            "process 0: give every machine the same params.yaml, data/ and commit"
        )
    if problem:
        raise PipelineError(problem)


def _check_memory(
    stage: str, training: Training, config: GaitGLConfig, device: torch.device, world: World
) -> None:
    """PipelineError where a batch cannot fit: the kernel would kill the process without a word."""
    problem = shortage(stage, training, config, memory_of_each(device), world.size)
    if problem:
        raise PipelineError(problem)


def _batches(
    stage: str,
    store: SilhouetteStore,
    training: Training,
    seed: int,
    world: World,
    device: torch.device,
) -> TrainingBatches:
    try:
        return TrainingBatches(
            store,
            training.subjects_per_batch,
            training.sequences_per_subject,
            training.clip_frames,
            seed,
            training.validation_subjects,
            world,
            pinned=device.type == "cuda",
        )
    except ValueError as error:
        subjects = set(store.index.loc[store.index["split"] == "train", "subject"])
        kept_out = len(subjects.intersection(held_out(store.index, training.validation_subjects)))
        why = f"; {stage}.validation_subjects keeps {kept_out} out of it" if kept_out else ""
        raise PipelineError(f"{stage} cannot start: {error}{why}") from None


def _validation(store: SilhouetteStore, catalogue: Path, training: Training) -> Validation | None:
    if not training.validate_every:
        return None
    return Validation(store, catalogue, training.validation_subjects, training.precision)


def _take_over(made: Path, folder: Path) -> None:
    """What this training made, and DVC took no note of, becomes its result."""
    sys.stderr.write(f"this training has ended already, unnoticed by DVC: its result is {made}\n")
    with new_folder(folder) as beside:
        for name in (CHECKPOINT, HISTORY):
            shutil.copy(made / name, beside / name)


def _record_result(run: TrackedRun, folder: Path, steps: int) -> None:
    checkpoint = folder / CHECKPOINT
    for path in (checkpoint, folder / HISTORY):
        run.artifact(path)
    run.model(checkpoint)
    p = read_checkpoint(checkpoint)[2]["p"]
    if p is not None:
        run.log(steps, {"final_p": p})
    run.made(sha256(checkpoint))


def _where(device: torch.device) -> dict[str, str]:
    """Tags that say where a run computed: its last digits depend on it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": str(torch.get_num_threads()), "torch": torch.__version__}

"""The training loop, and what a training stage does around it."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gaitgl.losses import batch_all_triplet_loss
from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.batches import TrainingBatch, TrainingBatches
from pipeline.checkpoints import save_checkpoint
from pipeline.devices import autocast, choose_device, place
from pipeline.errors import PipelineError
from pipeline.files import fingerprint, sha256
from pipeline.progress import Progress
from pipeline.settings import Dataset, Runtime, Training
from pipeline.silhouette_store import SilhouetteStore
from pipeline.tracking import TrackedRun

HISTORY_POINTS = 1000
"""history.csv holds at most about this many steps, however long the training."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step reports."""

    step: int
    """Counted from 1."""
    loss: float
    active_share: float
    """Triplets with a loss above zero, of all triplets of all strips; 0 to 1."""
    mean_distance: float
    """Mean distance between two embeddings of the batch."""
    lr: float
    p: float
    """GeM's exponent after the step (Eq. 8); NaN where pooling has none."""


def learning_rate(step: int, lr: float, warmup_steps: int, lr_drops: Iterable[int]) -> float:
    """The rate of step ``step`` (counted from 1): linear warm-up, then a tenth after each drop."""
    warm = min(1.0, step / (warmup_steps + 1))
    return lr * warm * 0.1 ** sum(step > drop for drop in lr_drops)


def train_steps(
    model: GaitGL,
    batches: Iterable[TrainingBatch],
    *,
    lr: float,
    warmup_steps: int,
    lr_drops: list[int],
    margin: float,
    precision: str,
    device: torch.device,
) -> Iterator[Step]:
    """Train ``model`` in place, one step a batch; yields after each step.

    Raises PipelineError at the first loss that is not finite.
    """
    model = place(model, device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr, fused=True)
    context = autocast(device, precision)
    for step, batch in enumerate(batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, lr, warmup_steps, lr_drops)
        silhouettes = batch.silhouettes.to(device).float() / 255
        with context:
            embeddings = model(silhouettes)
        result = batch_all_triplet_loss(embeddings, batch.labels, margin)
        loss = result.loss.item()
        if not math.isfinite(loss):
            raise PipelineError(
                f"the loss of step {step} is {loss}, with p = {_p(model):.4f}.\n"
                "Lower the learning rate, or set precision to float32."
            )
        optimizer.zero_grad(set_to_none=True)
        result.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        strips = result.active_per_strip.numel()
        yield Step(
            step,
            loss,
            result.active_per_strip.sum().item() / (result.triplets * strips),
            result.mean_distance.mean().item(),
            optimizer.param_groups[0]["lr"],
            _p(model),
        )


def run_training(
    stage: str,
    dataset: Dataset,
    model: GaitGL,
    config: GaitGLConfig,
    store: SilhouetteStore,
    folder: Path,
    training: Training,
    seed: int,
    runtime: Runtime,
    params: dict[str, Any],
    upstream: dict[str, str],
) -> None:
    """Train, record the run, and fill ``folder`` with checkpoint.safetensors and history.csv.

    ``params`` is what the run shows; ``upstream`` holds the digest of each checkpoint that this
    training starts from, under its stage's name. On one CPU, with one number of threads, the files'
    bytes depend on settings and inputs alone.
    """
    device = choose_device(runtime.device)
    try:
        batches = TrainingBatches(
            store,
            training.subjects_per_batch,
            training.sequences_per_subject,
            training.clip_frames,
            seed,
        )
    except ValueError as error:
        raise PipelineError(f"{stage} cannot start: {error}") from None
    steps = train_steps(
        model,
        batches.ahead(1, training.steps, runtime.workers),
        lr=training.lr,
        warmup_steps=training.warmup_steps,
        lr_drops=training.lr_drops,
        margin=training.margin,
        precision=training.precision,
        device=device,
    )
    checkpoint, history_file = folder / "checkpoint.safetensors", folder / "history.csv"
    with TrackedRun(stage, dataset, runtime.experiment, params, upstream, _where(device)) as run:
        history = _train_and_log(stage, steps, training, runtime.log_every, run)
        info = {
            "stage": stage,
            "dataset": dataset,
            "training": training.model_dump(),
            "seed": seed,
            "silhouettes": store.digest(),
            "upstream": upstream,
        }
        info["fingerprint"] = fingerprint({**info, "architecture": asdict(config)})
        save_checkpoint(checkpoint, model, config, {**info, "p": model.gem_p})
        table = pd.DataFrame([asdict(step) for step in history], columns=list(Step.__slots__))
        table.to_csv(history_file, index=False, lineterminator="\n")
        for path in (checkpoint, history_file):
            run.artifact(path)
        if model.gem_p is not None:
            run.log(training.steps, {"final_p": model.gem_p})
        run.made(sha256(checkpoint))


def _train_and_log(
    stage: str, steps: Iterator[Step], training: Training, log_every: int, run: TrackedRun
) -> list[Step]:
    """Run all steps; the ones for history.csv are returned."""
    every = max(1, math.ceil(training.steps / HISTORY_POINTS))
    batch_size = training.subjects_per_batch * training.sequences_per_subject
    history: list[Step] = []
    logged_at, logged_step = time.monotonic(), 0
    with Progress(stage, training.steps, "steps") as progress:
        for step in steps:
            number = step.step
            if number % every == 0 or number in (1, training.steps):
                history.append(step)
            if number % log_every == 0 or number in (1, training.steps):
                now = time.monotonic()
                rate = (number - logged_step) * batch_size / (now - logged_at)
                logged_at, logged_step = now, number
                metrics = asdict(step)
                del metrics["step"]
                if math.isnan(step.p):
                    del metrics["p"]
                run.log(number, {**metrics, "sequences_per_s": rate})
            progress.advance(
                note=f"loss {step.loss:.3f}, active {step.active_share:.0%}, p {step.p:.3f}, "
                f"lr {step.lr:.0e}"
            )
    return history


def _where(device: torch.device) -> dict[str, str]:
    """Tags that say where a run computed: its last digits depend on it."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": str(torch.get_num_threads()), "torch": torch.__version__}


def _p(model: GaitGL) -> float:
    return math.nan if model.gem_p is None else model.gem_p

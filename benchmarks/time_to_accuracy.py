"""Seconds of training until rank-1 is 75 % on OUMVLP walkers, plain against ours.

python -m benchmarks time_to_accuracy [--quick]     (after `make repro`; takes many minutes)

Both train with params.yaml's model and pretrain sections on the same batches from the same weights:
plain in float32 with the activation on each branch, ours as params.yaml says. Every 20 steps the
weights are evaluated by the product in float32, outside the time. One run each, not interleaved.
--quick stops after 20 steps, reached or not.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.plain_network import PlainGaitGL, plain_train_steps
from benchmarks.timing import Row, number
from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.batches import TrainingBatches
from pipeline.devices import choose_device, place
from pipeline.embedding import embed
from pipeline.evaluation import rank1_by_condition
from pipeline.layouts.oumvlp_release import OumvlpRelease
from pipeline.processes import worker_count
from pipeline.settings import Settings
from pipeline.silhouette_store import SilhouetteStore
from pipeline.training import new_optimizer, train_steps

STORE = Path("data/oumvlp/silhouettes")
GOAL = 75.0
EVERY = 20


def rows(quick: bool) -> list[Row]:
    """Empty, with a message, where the walkers' silhouettes are not made yet."""
    if not (STORE / "index.parquet").exists():
        print(f"time to {GOAL:.0f} % rank-1 left out: {STORE} is missing; run `make repro` first")
        return []
    race = _Race(Settings.load(), SilhouetteStore(STORE), EVERY if quick else None)
    for _, steps in (race.plain(), race.ours()):  # else plain, the first, pays for the warming up
        next(steps)
    plain_s, plain_note = race.run("plain", *race.plain())
    ours_s, our_note = race.run("ours", *race.ours())
    reached = math.isfinite(plain_s) and math.isfinite(ours_s)
    return [
        Row(
            f"time to {GOAL:.0f} % rank-1, OUMVLP walkers",
            "s",
            plain_s if math.isfinite(plain_s) else None,
            ours_s,
            plain_s / ours_s if reached else None,
            "≥ 2×",
            "one run",
            f"plain: {plain_note}; ours: {our_note}",
        )
    ]


class _Race:
    def __init__(self, settings: Settings, store: SilhouetteStore, steps: int | None) -> None:
        """``steps``: at most, those of params.yaml if None."""
        self._settings, self._store = settings, store
        self._steps = steps or settings.pretrain.steps
        self._device = choose_device(settings.runtime.device)
        self._config = GaitGLConfig(**settings.model.model_dump())
        training = settings.pretrain
        self._batches = TrainingBatches(
            store,
            training.subjects_per_batch,
            training.sequences_per_subject,
            training.clip_frames,
            settings.seed,
            training.validation_subjects,
        ).ahead
        self._schedule: dict[str, Any] = {
            "lr": training.lr,
            "warmup_steps": training.warmup_steps,
            "lr_drops": training.lr_drops,
            "margin": training.margin,
            "device": self._device,
        }
        index = store.index
        compared = OumvlpRelease.protocols[0].compares(index["sequence"], index["view"])
        self._test = np.flatnonzero(compared & (index["split"] == "test").to_numpy())

    def plain(self) -> tuple[torch.nn.Module, Iterator[object]]:
        config = GaitGLConfig(
            **{**self._settings.model.model_dump(), "activation": "branch"}  # as published
        )
        model = PlainGaitGL(config)
        model.load_state_dict(self._new_model().state_dict())
        model.to(self._device)
        batches = self._batches(1, self._steps, worker_count(self._settings.runtime.workers))
        return model, plain_train_steps(model, batches, **self._schedule, precision="float32")

    def ours(self) -> tuple[torch.nn.Module, Iterator[object]]:
        model = place(self._new_model(), self._device)
        batches = self._batches(1, self._steps, worker_count(self._settings.runtime.workers))
        return model, train_steps(
            model,
            new_optimizer(model),
            batches,
            **self._schedule,
            precision=self._settings.pretrain.precision,
        )

    def run(self, name: str, model: torch.nn.Module, steps: Iterator[object]) -> tuple[float, str]:
        """Seconds of training to the goal, NaN where it is not reached; and how it went."""
        elapsed_s, rank1 = 0.0, math.nan
        activation = "branch" if isinstance(model, PlainGaitGL) else self._config.activation
        for step in range(1, self._steps + 1):
            started_at = time.perf_counter()
            next(steps)
            if self._device.type == "cuda":
                torch.cuda.synchronize()
            elapsed_s += time.perf_counter() - started_at
            if step % EVERY and step < self._steps:
                continue
            rank1 = self._rank1(model.state_dict(), activation)
            print(f"{name}: step {step}, {number(elapsed_s)} s, rank-1 {rank1:.1f} %", flush=True)
            if rank1 >= GOAL:
                return elapsed_s, f"{rank1:.1f} % after {step} steps"
        return math.nan, f"only {rank1:.1f} % after {self._steps} steps, {number(elapsed_s)} s"

    def _new_model(self) -> GaitGL:
        torch.manual_seed(self._settings.seed)
        return GaitGL(self._config)

    def _rank1(self, weights: dict[str, Tensor], activation: str) -> float:
        """Of the test subjects by OUMVLP's protocol, in %, identical views left out."""
        config = {**self._settings.model.model_dump(), "activation": activation}
        model = GaitGL(GaitGLConfig(**config))
        model.load_state_dict(weights)
        embeddings = embed(model, self._store, self._test, "float32", self._device, shown=False)
        keys = self._store.index.iloc[self._test].reset_index(drop=True)
        protocol = OumvlpRelease.protocols[0]
        return rank1_by_condition(keys, embeddings, protocol)["all"]

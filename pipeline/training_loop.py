"""The steps of a training: resumed, recorded, validated, kept on the disk, stopped when asked."""

import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, field
from typing import NoReturn

import torch

from gaitgl.model import GaitGL
from pipeline.batches import TrainingBatch, TrainingBatches
from pipeline.checkpoints import CHECKPOINT, save_checkpoint
from pipeline.devices import compiler_problem
from pipeline.distributed import World, workers_of_each_process
from pipeline.errors import PipelineError, Stopped, listing
from pipeline.files import new_folder, write_json
from pipeline.memory import advice, is_exhausted, memory_of_each
from pipeline.mlflow_store import DURATION
from pipeline.profiling import profiled
from pipeline.progress import Progress
from pipeline.settings import Runtime, Training
from pipeline.stopping import StopRequest
from pipeline.tracking import TrackedRun
from pipeline.training import NotFiniteError, everything_trained, train_steps
from pipeline.training_history import Step
from pipeline.training_state import TrainingState
from pipeline.validation import Validation

HISTORY_POINTS = 1000
"""history.csv holds at most about this many steps, however long the training."""

IDLE_WARNING = 100
"""Steps in a row without an active triplet that are worth a warning."""


@dataclass
class TrainingLoop:
    """The steps of one training, from wherever it was left, and what is known of them so far.

    All processes go through it in step; the leading one alone writes and speaks.
    """

    stage: str
    training: Training
    runtime: Runtime
    device: torch.device
    world: World
    stop: StopRequest
    state: TrainingState
    batches: TrainingBatches
    validation: Validation | None
    model: GaitGL
    """On ``device``, as is what ``optimizer`` holds."""
    optimizer: torch.optim.Adam

    done: int = 0
    """Steps behind us."""
    history: list[Step] = field(default_factory=list)
    """The steps for history.csv."""
    idle: int = 0
    """Steps in a row, up to now, without an active triplet."""
    best: dict[str, float] = field(default_factory=dict)
    """Step and rank-1 of the best validation."""
    duration_s: float = 0.0
    """What the steps up to the state took that this process began with."""
    began_at: float = 0.0
    """When this process began with its steps."""

    def resume(self) -> None:
        """Go back to the last state on disk, or to the start; to the same in all processes."""
        trained = everything_trained(self.model, self.optimizer)
        saved = self.state.load() if self.world.leads else None
        if saved is not None:
            self._say(f"going on from step {saved.step}, whose state is in {self.state.folder}")
            for name, tensor in trained.items():
                tensor.copy_(saved.tensors[name])
            rows = saved.tensors["history"].tolist()
            self.history = [Step(int(row[0]), *row[1:]) for row in rows]
            self.done, self.idle, self.best = saved.step, saved.notes["idle"], saved.notes["best"]
            self.duration_s = saved.notes["duration_s"]
        elif self.world.leads:
            for other in self.state.others():
                self._say(f"a training that is not this one is left where it was: {other}")
        counts = torch.tensor([self.done, self.idle])
        self.world.copy_from_leader([counts])
        self.done, self.idle = counts.tolist()
        self.world.copy_from_leader(list(trained.values()))

    def train(self, run: TrackedRun | None) -> None:
        """Do what is left of the steps; the leading process' ``run`` records them.

        Raises PipelineError where going on makes no sense, Stopped where it was asked to stop.
        """
        training, runtime = self.training, self.runtime
        self.began_at = time.monotonic()
        batches = _Clock(
            self.batches.ahead(
                self.done + 1, training.steps, workers_of_each_process(runtime.workers)
            ),
            training.subjects_per_batch * training.sequences_per_subject,
        )
        steps = train_steps(
            self.model,
            self.optimizer,
            batches,
            first_step=self.done + 1,
            lr=training.lr,
            warmup_steps=training.warmup_steps,
            lr_drops=training.lr_drops,
            margin=training.margin,
            precision=training.precision,
            device=self.device,
            world=self.world,
            compiled=self._compiled(),
        )
        trace = self.state.folder.parent / "traces" / f"{self.state.folder.name}.json.gz"
        with (
            Progress(self.stage, training.steps, "steps", self.done, self.world.leads) as progress,
            profiled(trace if runtime.profile and self.world.leads else None) as traced,
        ):
            try:
                for step in steps:
                    traced()
                    self.done = step.step
                    self._note(step, batches, run)
                    progress.advance(
                        note=f"loss {step.loss:.3f}, active {step.active_share:.0%}, "
                        f"p {step.p:.3f}, {batches.rate:.0f} sequences/s, "
                        f"waiting {batches.waiting:.0%}, lr {step.lr:.2g}"
                    )
                    self._validate(run)
                    self._give_up_if_idle(step)
                    self._keep_or_stop(run)
            except NotFiniteError as error:
                self._end_together(self._report(error))
            except RuntimeError as error:
                if not is_exhausted(error):
                    raise
                memory = memory_of_each(self.device)
                raise PipelineError(
                    f"out of memory in step {self.done + 1}.\n"
                    + advice(self.stage, training, self.model.config, memory, self.world.size)
                ) from None

    def _compiled(self) -> bool:
        """Whether torch.compile is asked for and can work; why it cannot is said."""
        problem = compiler_problem(self.device) if self.training.compile else ""
        if self.world.any(bool(problem)):
            self._say(
                f"warning: {self.stage}.compile is true, but there is no compiler ({problem}). "
                f"Going on without: install one (g++ for a CPU), or set {self.stage}.compile: false"
            )
            return False
        return self.training.compile

    def _note(self, step: Step, batches: "_Clock", run: TrackedRun | None) -> None:
        """Keep a step for history.csv and for the run's curves, where it is due."""
        every = max(1, math.ceil(self.training.steps / HISTORY_POINTS))
        ends = step.step in (1, self.training.steps)
        if ends or step.step % every == 0:
            self.history.append(step)
        if ends or step.step % self.runtime.log_every == 0:
            batches.lap()
            metrics = asdict(step)
            del metrics["step"]
            if math.isnan(step.p):
                del metrics["p"]
            metrics |= {"sequences_per_s": batches.rate, "waiting_share": batches.waiting}
            metrics[DURATION] = self._duration_s()
            if run is not None:
                run.log(step.step, metrics)

    def _validate(self, run: TrackedRun | None) -> None:
        every = self.training.validate_every
        if self.validation is None or (self.done % every and self.done < self.training.steps):
            return
        found = self.validation.rank1(self.model, self.device, self.world)
        if run is None:
            return
        if not self.best or found["rank1"] > self.best["rank1"]:
            self.best = {"step": self.done, "rank1": found["rank1"]}
            run.tag("best_validation_step", str(self.done))
        metrics = {f"validation_{name}": value for name, value in found.items()}
        run.log(self.done, {**metrics, "validation_best_rank1": self.best["rank1"]})
        self._say(
            f"validation after step {self.done}: rank-1 {found['rank1']:.1f} % "
            f"(best {self.best['rank1']:.1f} % after step {self.best['step']:.0f})"
        )

    def _give_up_if_idle(self, step: Step) -> None:
        """Warn, and stop where that is set, when the loss has nothing to do for many steps."""
        self.idle = 0 if step.active_share else self.idle + 1
        limit = self.runtime.stop_after_idle_steps
        idle = (
            f"no triplet was active in the last {self.idle} steps (step {step.step}, mean distance "
            f"{step.mean_distance:.3g}, margin {self.training.margin}): nothing is learnt"
        )
        if self.idle == (max(1, limit // 2) if limit else IDLE_WARNING):
            self._say(f"warning: {idle}")
        if limit and self.idle >= limit:
            self._end_together(
                PipelineError(
                    f"{idle}.\nRaise {self.stage}.margin or subjects_per_batch, lower lr, or train "
                    f"fewer steps; runtime.stop_after_idle_steps = {limit} stopped it."
                )
            )

    def _keep_or_stop(self, run: TrackedRun | None) -> None:
        """Write the state where it is due, and where the training is asked to stop; then stop."""
        if self.done == self.training.steps:
            return
        asked = self.world.any(bool(self.stop.reason()))
        if not asked and self.done % self.runtime.checkpoint_every:
            return
        trouble: Exception | None = None
        if run is not None:
            try:
                run.keep()  # what is recorded of a step is on the disk before the step is
                self._save()
            except (PipelineError, OSError) as error:
                trouble = error
        if self.world.any(trouble is not None):
            self._end_together(trouble or PipelineError("the leading process has trouble"))
        if asked:
            self._end_together(
                Stopped(
                    f"{self.stage} after step {self.done} by {self.stop.reason() or 'a signal'}; "
                    f"its state is in {self.state.folder}, and the next start goes on from there",
                    self.stop.exit_status,
                )
            )

    def _save(self) -> None:
        trained = everything_trained(self.model, self.optimizer)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in trained.items()}
        rows = torch.tensor([astuple(step) for step in self.history], dtype=torch.float64)
        notes = {"idle": self.idle, "best": self.best, "duration_s": self._duration_s()}
        self.state.save(self.done, {**tensors, "history": rows}, notes)

    def _report(self, error: NotFiniteError) -> PipelineError:
        """Save what is known of a step that failed, and say where."""
        folder = self.state.folder / "trouble"
        p = self.model.gem_p
        if self.world.leads:
            sequences = self.batches.sequences(error.step)
            with new_folder(folder) as beside:
                sequences.to_csv(beside / "batch.csv", index=False, lineterminator="\n")
                save_checkpoint(beside / CHECKPOINT, self.model, {"step": self.done})
                known = {
                    "step": error.step,
                    "p": p,
                    "loss": repr(error.loss),
                    "loss_per_strip": [repr(loss) for loss in error.loss_per_strip],
                    "weights_with_bad_gradients": error.bad_gradients,
                }
                write_json(beside / "step.json", known)
        shown_p = "none" if p is None else f"{p:.4f}"
        what = f"the loss of step {error.step} is {error.loss}, with p = {shown_p}"
        if math.isfinite(error.loss):
            where = listing(error.bad_gradients, 5) or "  none by itself; their norm overflows"
            what = (
                f"the gradient of step {error.step} is not finite, with loss = {error.loss:.4f}, "
                f"p = {p}, in:\n{where}"
            )
        return PipelineError(
            f"{what}\n\n"
            f"{folder / 'batch.csv'}: the sequences of that step's batch\n"
            f"{folder / 'step.json'}: p and the loss of each strip\n"
            f"{folder / CHECKPOINT}: the weights before that step\n\n"
            f"Lower {self.stage}.lr, or set {self.stage}.precision to float32."
        )

    def _end_together(self, error: Exception) -> NoReturn:
        """End all processes once all are here: the leading one with ``error``, to report it."""
        self.world.wait_for_all()
        if self.world.leads:
            raise error
        # a failure beside the leading process would make torchrun kill that one while it records
        sys.exit(0 if self.world.beside_leader else 1)

    def _duration_s(self) -> float:
        """How long the steps so far took, without those that a kill has lost."""
        return self.duration_s + time.monotonic() - self.began_at

    def _say(self, text: str) -> None:
        if self.world.leads:
            sys.stderr.write(f"{self.stage}: {text}\n")


class _Clock:
    """Batches, and how fast they are asked for: figures of the steps between two laps."""

    def __init__(self, batches: Iterable[TrainingBatch], batch_size: int) -> None:
        self._batches, self._batch_size = iter(batches), batch_size
        self._lap_at, self._given, self._waited_s = time.monotonic(), 0, 0.0
        self.rate = 0.0
        """Sequences a second, in all processes together."""
        self.waiting = 0.0
        """Share of the time that this process waited for its batches, 0 to 1."""

    def __iter__(self) -> Iterator[TrainingBatch]:
        while True:
            asked_at = time.monotonic()
            batch = next(self._batches, None)
            self._waited_s += time.monotonic() - asked_at
            if batch is None:
                return
            self._given += 1
            yield batch

    def lap(self) -> None:
        """Renew the figures."""
        now = time.monotonic()
        elapsed_s = now - self._lap_at
        self.rate = self._given * self._batch_size / elapsed_s
        self.waiting = self._waited_s / elapsed_s
        self._lap_at, self._given, self._waited_s = now, 0, 0.0

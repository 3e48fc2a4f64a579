"""What keeping a training's state costs, as a share of its steps, at the paper's size.

python -m benchmarks.checkpointing     (from the project's root; writes to a temporary folder)

The step that is timed has 8 sequences of 30 frames instead of the paper's 256, because a CPU takes
minutes for those: the share that is printed is therefore an upper bound for this machine.
"""

import os
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.timing import seconds
from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.arguments import no_arguments
from pipeline.batches import TrainingBatch
from pipeline.devices import choose_device, place
from pipeline.settings import Settings
from pipeline.training import everything_trained, new_optimizer, train_steps
from pipeline.training_state import TrainingState

REPEATS = 7


def main() -> None:
    settings = Settings.load(Path("profiles/paper.yaml"))
    device = choose_device("auto")
    model = place(GaitGL(GaitGLConfig(**settings.model.model_dump())), device)
    optimizer = new_optimizer(model)
    trained = everything_trained(model, optimizer)
    batch = TrainingBatch(
        torch.randint(0, 256, (8, 1, 30, 64, 44), dtype=torch.uint8), torch.arange(8) // 2
    )
    steps = train_steps(
        model,
        optimizer,
        [batch] * (REPEATS + 1),
        lr=settings.pretrain.lr,
        warmup_steps=0,
        lr_drops=[],
        margin=settings.pretrain.margin,
        precision=settings.pretrain.precision,
        device=device,
    )
    step_s = [seconds(lambda: next(steps)) for _ in range(REPEATS + 1)][1:]  # the first warms up
    history = torch.zeros(1000, 7, dtype=torch.float64)

    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.chdir(folder)
        state = TrainingState("pretrain", {"benchmark": True})
        state.folder.mkdir(parents=True)

        def save(step: int) -> None:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in trained.items()}
            state.save(step, {**tensors, "history": history}, {"idle": 0, "best": {}})

        save_s = [seconds(lambda step=step: save(step)) for step in range(1, REPEATS + 1)]
        size = next(state.folder.glob("step-*")).stat().st_size
        os.chdir("..")

    every = settings.runtime.checkpoint_every
    step, saving = statistics.median(step_s), statistics.median(save_s)
    print(f"device {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"state: {size / 2**20:.1f} MiB, {1000 * saving:.0f} ms ({_spread(save_s)})")
    print(f"step of 8 x 30 frames: {1000 * step:.0f} ms ({_spread(step_s)})")
    print(
        f"every {every} of {settings.pretrain.steps} steps: {settings.pretrain.steps // every} "
        f"states, {100 * saving / (every * step):.4f} % of the time"
    )


def _spread(times_s: list[float]) -> str:
    return f"{1000 * min(times_s):.0f} to {1000 * max(times_s):.0f} ms in {len(times_s)} runs"


if __name__ == "__main__":
    no_arguments(__doc__)
    main()

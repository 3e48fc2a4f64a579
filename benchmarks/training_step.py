"""A training step: forward, loss, backward, Adam, at the published code's widths.

python -m benchmarks training_step [--quick]

Plain and ours start from the same weights and are timed in turn. Ours is the loop of
``pipeline.training`` with all it reports of a step. On a CPU the plain step is in float32; on a GPU
under bfloat16 autocast, as ours is. A CPU that has no bfloat16 gets no rows in it.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.plain_network import PlainGaitGL, plain_train_steps
from benchmarks.silhouettes import drawn
from benchmarks.timing import Row, Timing, compared, interleaved
from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.batches import TrainingBatch
from pipeline.devices import choose_device, lacks_bfloat16, place
from pipeline.silhouette_store import HEIGHT, WIDTH
from pipeline.training import new_optimizer, train_steps

CHANNELS = (32, 64, 128, 128, 256, 256)
QUICK_CHANNELS = (4, 4, 8, 8, 8, 8)
SCHEDULE: dict[str, Any] = {"lr": 1e-4, "warmup_steps": 0, "lr_drops": [], "margin": 0.2}

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16, by the vendor, of the chips whose name contains the key."""


def rows(quick: bool) -> list[Row]:
    device = choose_device("auto")
    channels = QUICK_CHANNELS if quick else CHANNELS
    if device.type == "cuda" and not quick:
        return _on_gpu(channels, _batch(32, 8, 30), device, repeats=20)
    batch = _batch(2, 2, 9) if quick else _batch(4, 2, 30)
    if device.type == "cuda":
        return _on_gpu(channels, batch, device, repeats=2)
    return _on_cpu(channels, batch, device, repeats=2 if quick else 7)


def _on_cpu(
    channels: tuple[int, ...], batch: TrainingBatch, device: torch.device, repeats: int
) -> list[Row]:
    targets = {"float32": "≥ 1.1×", "float32, activation sum": ""}
    lack = lacks_bfloat16(device)
    if not lack:
        targets |= {"bfloat16": "≥ 2.0×", "bfloat16, activation sum": "≥ 2.8×"}
    steps = {"plain": _plain(channels, batch, "float32", device)}
    for name in targets:
        precision, _, activation = name.partition(", activation ")
        steps[name] = _ours(channels, batch, activation or "branch", precision, device)
    losses = {name: next(step) for name, step in steps.items()}  # the first step warms up
    difference = abs(losses["float32"] - losses["plain"]) / losses["plain"]
    if difference > 1e-5:
        raise AssertionError(f"float32 is not the plain step: losses differ by {difference:.1e}")
    timings = interleaved({name: _one(step) for name, step in steps.items()}, repeats, warmups=0)

    found = []
    for name, target in targets.items():
        dtype = torch.float32 if "float32" in name else torch.bfloat16
        flops = _flops(channels, batch, "sum" if "sum" in name else "branch")
        rate, limit = flops / timings[name].median_s, product_flops(dtype)
        note = f"{rate / 1e9:.0f} GFLOP/s, {rate / limit:.0%} of a matrix product's"
        if name == "float32":
            note += f"; first loss differs by {difference:.0e}"
            note += f"; no rows in bfloat16: {lack}" if lack else ""
        found.append(_row(name, batch, timings["plain"], timings[name], target, note))
    return found


def _on_gpu(
    channels: tuple[int, ...], batch: TrainingBatch, device: torch.device, repeats: int
) -> list[Row]:
    steps = {
        "plain": _plain(channels, batch, "bfloat16", device),
        "branch": _ours(channels, batch, "branch", "bfloat16", device),
        "sum": _ours(channels, batch, "sum", "bfloat16", device),
    }
    memory = {name: _peak_bytes(step, device) for name, step in steps.items()}  # warms up, too
    timings = interleaved({name: _one(step) for name, step in steps.items()}, repeats, warmups=1)

    found = []
    chip = torch.cuda.get_device_name(device)
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in chip), None)
    for name in ("branch", "sum"):
        rate = _flops(channels, batch, name) / timings[name].median_s
        share = f"{rate / peak:.0%} of its peak" if peak else f"peak of {chip} not known here"
        note = f"peak memory {memory[name] / memory['plain']:.2f}× of plain's (target ≤ 0.6×), "
        note += f"{memory[name] / 2**30:.1f} GiB; {rate / 1e12:.1f} TFLOP/s, {share}"
        work = f"GPU, bfloat16, activation {name}"
        found.append(_row(work, batch, timings["plain"], timings[name], "≥ 2×", note))
    return found


def _row(
    name: str, batch: TrainingBatch, plain: Timing, ours: Timing, target: str, note: str
) -> Row:
    n, _, frames, _, _ = batch.silhouettes.shape
    work = f"training step, {n} × {frames} frames, {name}"
    return compared(work, "sequences/s", plain, ours, n, target, note)


def _batch(subjects: int, sequences: int, frames: int) -> TrainingBatch:
    random = np.random.default_rng(0)
    clips = np.stack([drawn(frames, random) for _ in range(subjects * sequences)])[:, None]
    return TrainingBatch(torch.from_numpy(clips), torch.arange(len(clips)) // sequences)


def _new_weights(config: GaitGLConfig) -> GaitGL:
    torch.manual_seed(0)
    return GaitGL(config)


def _plain(
    channels: tuple[int, ...], batch: TrainingBatch, precision: str, device: torch.device
) -> Iterator[float]:
    config = GaitGLConfig(channels)
    model = PlainGaitGL(config)
    model.load_state_dict(_new_weights(config).state_dict())
    batches = itertools.repeat(batch)
    model.to(device)
    yield from plain_train_steps(model, batches, **SCHEDULE, precision=precision, device=device)


def _ours(
    channels: tuple[int, ...],
    batch: TrainingBatch,
    activation: Any,
    precision: str,
    device: torch.device,
) -> Iterator[float]:
    model = place(_new_weights(GaitGLConfig(channels, activation=activation)), device)
    steps = train_steps(
        model,
        new_optimizer(model),
        itertools.repeat(batch),
        **SCHEDULE,
        precision=precision,
        device=device,
    )
    for step in steps:
        yield step.loss


def _one(steps: Iterator[float]) -> Callable[[], None]:
    """One step to its end: that of the loss is not that of Adam on a GPU."""

    def work() -> None:
        next(steps)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return work


def _peak_bytes(steps: Iterator[float], device: torch.device) -> int:
    """The most memory in the second step, over what was held before the first.

    The generators make model and optimizer when first asked for a step, so these count too.
    """
    held = torch.cuda.memory_allocated(device)
    _one(steps)()
    torch.cuda.reset_peak_memory_stats(device)
    _one(steps)()
    return torch.cuda.max_memory_allocated(device) - held


def _flops(channels: tuple[int, ...], batch: TrainingBatch, activation: str) -> float:
    """Of the step's convolutions: forward, gradient of the input, gradient of the kernel.

    The first convolution's input needs no gradient.
    """
    n, _, t, _, _ = batch.silhouettes.shape
    first, others = forward_flops(channels, t, activation)
    return n * (2 * first + 3 * others)


def forward_flops(
    channels: tuple[int, ...], frames: int, activation: str = "branch"
) -> tuple[float, float]:
    """Of one sequence's first and of its other convolutions; a product that is added counts as 2.

    A GLConv is two convolutions, a GLConvA with activation sum one. What corrects the parts'
    borders, the pooling and the linear layer are not counted.
    """
    c1, a1, a2, a3, a4, b1 = channels
    t2 = (frames - 3) // 3 + 1
    whole, quarter = t2 * HEIGHT * WIDTH, t2 * (HEIGHT // 2) * (WIDTH // 2)
    each = 1 if activation == "sum" else 2
    first = 27 * c1 * frames * HEIGHT * WIDTH
    others = 3 * c1 * c1 * whole + each * 27 * c1 * a1 * whole
    others += each * 27 * (a1 * a2 + a2 * a3 + a3 * a4) * quarter + 2 * 27 * a4 * b1 * quarter
    return 2.0 * first, 2.0 * others


def product_flops(precision: torch.dtype) -> float:
    """The rate of the best of five products of 2048 × 2048 matrices: what this CPU gives."""
    a = torch.randn(2048, 2048).to(precision)
    timing = interleaved({"product": lambda: a @ a}, repeats=5)["product"]
    return 2 * 2048**3 / timing.fastest_s

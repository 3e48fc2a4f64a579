"""Whether a training batch fits into memory, and what to change where it does not."""

from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.devices import autocast, place
from pipeline.distributed import processes_here
from pipeline.settings import Training
from pipeline.silhouette_store import WIDTH

HEADROOM = 1.8
"""What a step needs, over what it keeps for its backward pass: gradients on their way, weights,
moments (1.3 to 1.8 on a CPU). Only the advice is computed with it."""


OUT_OF_MEMORY = (
    "can't allocate memory",  # torch, of the machine's
    "CUDA error: out of memory",  # a GPU that others have filled, or pinned memory
    "ALLOC_FAILED",  # cuBLAS
    "ALLOCATION_FAILED",  # cuDNN
)
"""What errors say that are not torch's OutOfMemoryError."""


def kept_bytes(config: GaitGLConfig, frames: int, precision: str) -> int:
    """What the forward pass of one clip keeps for the backward pass, in bytes.

    Counted with tensors that have shapes, but no numbers: nothing is computed.
    """
    model = place(GaitGL(config), torch.device("cpu"))

    def kept(clips: int) -> int:
        held = []

        def note(tensor: Tensor) -> Tensor:
            held.append(tensor.untyped_storage())
            return tensor

        with (
            FakeTensorMode(allow_non_fake_inputs=True),  # weights are real
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            autocast(torch.device("cpu"), precision),
        ):
            model(torch.zeros(clips, 1, frames, config.height, WIDTH))
        return sum({storage._cdata: storage.nbytes() for storage in held}.values())  # each once

    # the difference holds what grows with the batch: neither weights nor copies of them
    return kept(2) - kept(1)


def memory_of_each(device: torch.device) -> int:
    """What each process of this machine has at most, in bytes: a GPU, or its share of the memory.

    A container's limit counts as the machine's.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
    total = int(psutil.virtual_memory().total)
    return (total if text == "max" else min(total, int(text))) // processes_here()


def shortage(
    stage: str, training: Training, config: GaitGLConfig, memory: int, processes: int
) -> str:
    """Why a batch cannot fit into ``memory`` bytes for sure, and what would; empty if it may.

    ``memory`` is that of one process.
    """
    needed = _needed(training, config, processes)
    return "" if needed <= memory else advice(stage, training, config, memory, processes)


def advice(
    stage: str, training: Training, config: GaitGLConfig, memory: int, processes: int
) -> str:
    """What a batch needs, and the settings that would make it fit into ``memory`` bytes."""
    p, t = training.subjects_per_batch, training.clip_frames
    needed = _needed(training, config, processes)
    batch = _batch_words(training, config, processes, needed)
    if HEADROOM * needed <= memory:
        return (
            f"{stage}: {batch} and needs some more. There are {_gib(memory)} in all, so something "
            "else holds most of it: free the device."
        )
    share = memory / (HEADROOM * needed)
    subjects = int(p * share)
    fits = f"about {subjects} subjects" if subjects >= 2 else "not even 2 subjects"
    frames = int(t * share)
    others = [f"{stage}.clip_frames: {frames}"] if frames > config.lta_kernel else []
    if training.precision == "float32":
        others.append(f"{stage}.precision: bfloat16")
    if config.activation == "branch" and config.branches == "both":
        others.append("model.activation: sum")
    others.append("narrower model.channels, or more runtime.processes with a GPU each")
    return (
        f"{stage}: {batch} and needs some more; there are {_gib(memory)}.\n"
        f"Of {stage}.subjects_per_batch, {fits} would fit. Or: {'; '.join(others)}."
    )


def is_exhausted(error: RuntimeError) -> bool:
    """Whether an error of torch's says that memory has run out, of the GPU or of the machine."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in OUT_OF_MEMORY
    )


def _needed(training: Training, config: GaitGLConfig, processes: int) -> int:
    sequences = training.subjects_per_batch * training.sequences_per_subject // processes
    return sequences * kept_bytes(config, training.clip_frames, training.precision)


def _batch_words(training: Training, config: GaitGLConfig, processes: int, needed: int) -> str:
    p, k, t = training.subjects_per_batch, training.sequences_per_subject, training.clip_frames
    among = f" among {processes} processes" if processes > 1 else ""
    return (
        f"a batch of {p} x {k} sequences of {t} frames{among}, at widths "
        f"{list(config.channels)} in {training.precision}, keeps {_gib(needed)} for its backward "
        "pass,"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"

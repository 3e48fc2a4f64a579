"""Which device a stage runs on, and in which arithmetic."""

import os
import sys

import torch

from gaitgl.model import GaitGL
from pipeline.errors import PipelineError


def choose_device(device: str) -> torch.device:
    """``runtime.device`` as a device; ``auto`` takes the GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise PipelineError(
            "runtime.device is cuda, but torch finds no GPU here; set it to auto or cpu"
        )
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes of torchrun's
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise PipelineError(
                f"process {number + 1} of this machine finds {gpus} GPUs: each needs its own. "
                f"Lower runtime.processes to {gpus}, or set runtime.device to cpu"
            )
        return torch.device("cuda", number)
    return torch.device(device)


def place(model: GaitGL, device: torch.device) -> GaitGL:
    """The model on a device, laid out as its 3-D convolutions run fastest."""
    placed: GaitGL = model.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return placed


def compiler_problem(device: torch.device) -> str:
    """Why torch.compile cannot work for a device here, in a line; empty if it can."""
    from torch._dynamo.exc import TorchDynamoException  # a second to import

    try:
        torch.compile(_doubled)(torch.ones(2, device=device))
    except TorchDynamoException as error:
        return str(error).partition("\n")[0]
    return ""


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x + x


def lacks_bfloat16(device: torch.device) -> str:
    """Why bfloat16 cannot be had on a device, or would take ten times as long as float32 there, in
    a few words; empty if it is as it should be."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"{torch.cuda.get_device_name(device)} cannot compute in it"
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        instructions = torch.backends.cpu.get_cpu_capability()
        return f"this CPU ({instructions}) has no fast way to compute in it"
    return ""


def precision_here(device: torch.device, wanted: str) -> str:
    """``wanted`` (float32 or bfloat16), or float32 where the device lacks bfloat16; it is said."""
    lack = lacks_bfloat16(device) if wanted == "bfloat16" else ""
    if lack:
        sys.stderr.write(f"float32 instead of bfloat16: {lack}\n")
    return "float32" if lack else wanted


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network runs in ``precision`` (float32 or bfloat16).

    With float32, cuDNN computes without TF32 from here on, in all of this process.
    """
    enabled = precision == "bfloat16"
    if not enabled:
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)

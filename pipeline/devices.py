"""Which device a stage runs on, and in which arithmetic."""

import os
import sys

import torch

from gaitgl.model import GaitGL
from pipeline.errors import PipelineError


def choose_device(device: str) -> torch.device:
    """``runtime.device`` as a device; ``auto`` takes the GPU where there is one.

    float32 means float32 on it from here on: no TF32 in all of this process.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False  # as it is, unless the environment says otherwise
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and (unused := gpu_out_of_reach()):
            sys.stderr.write(f"warning: computing on the CPU: {unused}\n")
    if device == "cuda" and not torch.cuda.is_available():
        why = gpu_out_of_reach() or "torch finds no GPU here"
        raise PipelineError(f"runtime.device is cuda, but {why}; set it to auto or cpu")
    if device == "cuda" and "LOCAL_RANK" in os.environ:  # one of several processes of torchrun's
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise PipelineError(
                f"process {number + 1} of this machine finds {gpus} GPUs: each needs its own. "
                f"Lower runtime.processes to {gpus}, or set runtime.device to cpu"
            )
        device = f"cuda:{number}"
    chosen = torch.device(device)
    try:
        torch.ones(1, device=chosen).add_(1)
    except (torch.AcceleratorError, torch.OutOfMemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise PipelineError(
            f"torch {torch.__version__} cannot compute on {chosen}: {reason}. A GPU whose memory "
            "others have taken must be free first, an old one may need another build of torch; or "
            "set runtime.device to cpu"
        ) from None
    return chosen


def gpu_out_of_reach() -> str:
    """Why torch cannot use a GPU that is there, in a few words; empty where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        name, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
    except pynvml.NVMLError:
        return ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return ""  # hidden by the user
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
    return f"torch {torch.__version__} {built} and cannot use the {name} with driver {driver}"


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
    """``wanted`` (float32 or bfloat16), or float32 where the device lacks it, which is printed."""
    lack = lacks_bfloat16(device) if wanted == "bfloat16" else ""
    if lack:
        sys.stderr.write(f"float32 instead of bfloat16: {lack}\n")
    return "float32" if lack else wanted


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which the network runs in ``precision`` (float32 or bfloat16)."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")

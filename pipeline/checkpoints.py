"""Checkpoints: weights as safetensors, with what they are and where they come from beside them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.errors import PipelineError, listing
from pipeline.files import write_bytes

FORMAT = "gaitgl-checkpoint-1"

CHECKPOINT = "checkpoint.safetensors"
"""A checkpoint's name in the folder of its training."""


def save_checkpoint(path: Path, model: GaitGL, info: dict[str, Any]) -> None:
    """Write weights, architecture and ``info`` (anything JSON can hold); same input, same bytes."""
    # one entry: safetensors does not keep the order of several
    header = {"format": FORMAT, "architecture": asdict(model.config), "info": info}
    metadata = {"gaitgl": json.dumps(header, sort_keys=True)}
    weights = {name: weight.contiguous().cpu() for name, weight in model.state_dict().items()}
    write_bytes(path, safetensors.torch.save(weights, metadata))


def read_checkpoint(path: Path) -> tuple[GaitGLConfig, dict[str, Tensor], dict[str, Any]]:
    """Architecture, weights (on the CPU) and ``info``. PipelineError for any other file."""
    if not path.exists():
        raise PipelineError(f"{path} is missing: `dvc repro` makes it")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(metadata.get("gaitgl", "{}"))
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise PipelineError(
            f"{path} is not a readable safetensors file: {error}. `dvc repro` brings back a stage's"
        ) from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise PipelineError(
            f"{path} is no checkpoint of this pipeline: expected format {FORMAT!r}, got {header!r}"
        )
    try:
        config, info = GaitGLConfig(**header["architecture"]), header["info"]
    except (KeyError, TypeError, ValueError) as error:
        raise PipelineError(f"{path}: its description of the network is broken: {error}") from None
    return config, weights, info


def load_weights(model: nn.Module, weights: dict[str, Tensor], source: Path | str) -> None:
    """Copy weights key by key. PipelineError names every missing, extra or misshapen one."""
    check_weights(model, weights, source)
    model.load_state_dict(weights)


def check_weights(model: nn.Module, weights: dict[str, Tensor], source: Path | str) -> None:
    """PipelineError, as by ``load_weights``, unless weights fit a network, also one on "meta"."""
    own = model.state_dict()
    problems = [f"missing: {name} {list(own[name].shape)}" for name in own if name not in weights]
    problems += [
        f"not in the network: {name} {list(weights[name].shape)}"
        for name in weights
        if name not in own
    ]
    problems += [
        f"misshapen: {name} is {list(weights[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        raise PipelineError(
            f"the weights of {source} do not fit this network:\n{listing(problems, 20)}\n"
            "Was `model` changed after that checkpoint was trained?"
        )

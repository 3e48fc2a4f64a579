"""Weights of the published GaitGL code (bb12346/GaitGL) to this model's names, and back."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gaitgl.model import GaitGL, GaitGLConfig

# The published name of each weight; the layouts are the same. Published names number the blocks of
# a VGG; "dg" is the global and "dl" the local convolution.
PUBLISHED_NAMES = {
    "first_conv.weight": "conv2dlayer1a.conv1.weight",
    "lta.conv.weight": "pool2d1.conv1.weight",
    "glconv_a1.global_conv.weight": "conv2dlayer2a.convdg.weight",
    "glconv_a1.local_conv.weight": "conv2dlayer2a.convdl.weight",
    "glconv_a2.global_conv.weight": "conv2dlayer25a_3d.convdg.weight",
    "glconv_a2.local_conv.weight": "conv2dlayer25a_3d.convdl.weight",
    "glconv_a3.global_conv.weight": "conv2dlayer25b_3d.convdg.weight",
    "glconv_a3.local_conv.weight": "conv2dlayer25b_3d.convdl.weight",
    "glconv_a4.global_conv.weight": "conv2dlayer3a_3d.convdg.weight",
    "glconv_a4.local_conv.weight": "conv2dlayer3a_3d.convdl.weight",
    "glconv_b1.global_conv.weight": "conv2dlayer3b_3d.convdg.weight",
    "glconv_b1.local_conv.weight": "conv2dlayer3b_3d.convdl.weight",
    "pooling.p": "Gem.p",
    "separate_fc.weight": "fc_bin.0",
}


def to_gaitgl(state_dict: Mapping[str, Tensor]) -> tuple[GaitGLConfig, dict[str, Tensor]]:
    """Rename a published state dict, and read the architecture off the weights' shapes.

    What shapes do not tell is as the published code has it: 2 parts, temporal stride 3, activation
    on both branches, a learned p.

    Args:
        state_dict: published names, all of them with or all without a leading "module." (as
            DataParallel leaves it). A file from others is read by
            `torch.load(path, weights_only=True)`, which runs nothing that it holds.

    Returns:
        (config, state_dict) for `GaitGL(config).load_state_dict(state_dict)`. The tensors are the
        ones passed in. config.gem_p is the published initial value, not the learned one, which is
        among the weights.

    Raises:
        ValueError: names every unknown, missing or misshapen weight.
    """
    prefix = "module." if all(key.startswith("module.") for key in state_dict) else ""
    published = {key.removeprefix(prefix): weight for key, weight in state_dict.items()}
    _refuse(_name_problems(published, PUBLISHED_NAMES.values()))
    weights = {ours: published[name] for ours, name in PUBLISHED_NAMES.items()}
    _refuse(
        f"{PUBLISHED_NAMES[ours]}: expected {len(shape)} dimensions, "
        f"got shape {tuple(weights[ours].shape)}"
        for ours, shape in _shapes(GaitGLConfig()).items()
        if weights[ours].ndim != len(shape)
    )
    blocks = ("glconv_a1", "glconv_a2", "glconv_a3", "glconv_a4", "glconv_b1")
    widths = ["first_conv.weight", *(f"{block}.global_conv.weight" for block in blocks)]
    config = GaitGLConfig(
        channels=tuple(weights[name].shape[0] for name in widths),
        lta_kernel=weights["lta.conv.weight"].shape[2],
        height=weights["separate_fc.weight"].shape[0],
    )
    _refuse(
        f"{PUBLISHED_NAMES[ours]}: expected shape {tuple(shape)}, as follows from the widths "
        f"{config.channels} of the other layers, got {tuple(weights[ours].shape)}"
        for ours, shape in _shapes(config).items()
        if weights[ours].shape != shape
    )
    return config, weights


def from_gaitgl(config: GaitGLConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a `GaitGL(config)` state dict to the published names; inverse of `to_gaitgl`.

    Raises:
        ValueError: names every setting that the published code does not have, or every unknown,
            missing or misshapen weight.
    """
    settings = {
        "parts": 2,
        "lta_stride": 3,
        "aggregation": "lta",
        "branches": "both",
        "last_join": "stack",
        "spatial_pooling": "gem",
        "activation": "branch",
    }
    _refuse(
        f"{name}: the published code has {value!r} only, this model has {getattr(config, name)!r}"
        for name, value in settings.items()
        if getattr(config, name) != value
    )
    _refuse(_name_problems(state_dict, PUBLISHED_NAMES))
    _refuse(
        f"{name}: expected shape {tuple(shape)}, got {tuple(state_dict[name].shape)}"
        for name, shape in _shapes(config).items()
        if state_dict[name].shape != shape
    )
    return {name: state_dict[ours] for ours, name in PUBLISHED_NAMES.items()}


def _shapes(config: GaitGLConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: weight.shape for name, weight in GaitGL(config).state_dict().items()}


def _name_problems(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    return [
        *(f"{name}: unknown weight" for name in sorted(set(found) - set(expected))),
        *(f"{name}: missing" for name in sorted(set(expected) - set(found))),
    ]


def _refuse(problems: Iterable[str]) -> None:
    listed = list(problems)
    if listed:
        raise ValueError("these weights and GaitGL do not fit:\n  " + "\n  ".join(listed))

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.checkpoints import FORMAT, load_weights, read_checkpoint, save_checkpoint
from pipeline.errors import PipelineError

CONFIG = GaitGLConfig(channels=(2, 2, 4, 4, 4, 6), parts=4, gem_p=3.5, activation="sum")
INFO = {"stage": "pretrain", "upstream": {}, "training": {"lr": 1e-4, "precision": "float32"}}


@pytest.fixture
def model() -> GaitGL:
    torch.manual_seed(3)
    return GaitGL(CONFIG)


@pytest.fixture
def path(tmp_path: Path, model: GaitGL) -> Path:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, model, INFO)
    return path


def test_weights_architecture_and_info_come_back(path: Path, model: GaitGL) -> None:
    config, weights, info = read_checkpoint(path)
    assert config == CONFIG
    assert info == INFO
    assert weights.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weights[name], weight)
    torch.manual_seed(4)
    other = GaitGL(config)
    load_weights(other, weights, path)
    silhouettes = torch.rand(1, 1, 5, 64, 44)
    assert torch.equal(other(silhouettes), model(silhouettes))


def test_eq_7s_weights_are_part_of_the_architecture(tmp_path: Path) -> None:
    config = GaitGLConfig(
        channels=(2, 2, 2, 2, 2, 2), spatial_pooling="max_mean", max_weight=0.25, mean_weight=-2.0
    )
    save_checkpoint(tmp_path / "c", GaitGL(config), {})
    assert read_checkpoint(tmp_path / "c")[0] == config


def test_a_checkpoint_from_before_a_setting_existed_has_its_default(
    path: Path, model: GaitGL
) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["gaitgl"])
    for name in ("aggregation", "branches", "last_join", "gem_learned"):
        del header["architecture"][name]
    safetensors.torch.save_file(
        dict(model.state_dict()), path, {"gaitgl": json.dumps(header, sort_keys=True)}
    )
    config, weights, _ = read_checkpoint(path)
    assert config == CONFIG
    load_weights(GaitGL(config), weights, path)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, path: Path, model: GaitGL) -> None:
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    reordered = dict(reversed(INFO.items()))
    save_checkpoint(tmp_path / "again", model, reordered)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_every_misfit_is_named(path: Path, model: GaitGL) -> None:
    _, weights, _ = read_checkpoint(path)
    del weights["lta.conv.weight"]
    weights["head.weight"] = torch.zeros(5, 4)
    weights["separate_fc.weight"] = weights["separate_fc.weight"][:, :, :5]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(PipelineError) as raised:
        load_weights(model, weights, path)
    lines = [line.strip() for line in str(raised.value).splitlines()]
    assert str(path) in lines[0]
    assert lines[1:4] == [
        "missing: lta.conv.weight [2, 2, 3, 1, 1]",
        "not in the network: head.weight [5, 4]",
        "misshapen: separate_fc.weight is [64, 6, 5], expected [64, 6, 6]",
    ]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 10)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def foreign(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(2)}, path, {"format": "pt"})


def other_format(path: Path) -> None:
    header = {"format": "gaitgl-checkpoint-9"}
    safetensors.torch.save_file({"x": torch.zeros(2)}, path, {"gaitgl": json.dumps(header)})


def list_as_header(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(2)}, path, {"gaitgl": "[1]"})


def no_json(path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(2)}, path, {"gaitgl": "{"})


def unknown_architecture(path: Path) -> None:
    header = {"format": FORMAT, "architecture": {**asdict(CONFIG), "depth": 3}, "info": {}}
    safetensors.torch.save_file({"x": torch.zeros(2)}, path, {"gaitgl": json.dumps(header)})


def impossible_architecture(path: Path) -> None:
    header = {"format": FORMAT, "architecture": {**asdict(CONFIG), "parts": 5}, "info": {}}
    safetensors.torch.save_file({"x": torch.zeros(2)}, path, {"gaitgl": json.dumps(header)})


def widths_that_are_no_integers(path: Path) -> None:
    architecture = {**asdict(CONFIG), "channels": [2.0] * 6}
    header = {"format": FORMAT, "architecture": architecture, "info": {}}
    safetensors.torch.save_file({"x": torch.zeros(2)}, path, {"gaitgl": json.dumps(header)})


def nothing_but_the_format(path: Path) -> None:
    safetensors.torch.save_file(
        {"x": torch.zeros(2)}, path, {"gaitgl": json.dumps({"format": FORMAT})}
    )


@pytest.mark.parametrize(
    "spoil",
    [
        pickled,
        noise,
        empty,
        truncated,
        cut_in_the_header,
        foreign,
        other_format,
        list_as_header,
        no_json,
        unknown_architecture,
        impossible_architecture,
        widths_that_are_no_integers,
        nothing_but_the_format,
    ],
)
def test_any_other_file_is_refused_by_name(path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(path)
    with pytest.raises(PipelineError) as raised:
        read_checkpoint(path)
    assert str(path) in str(raised.value)


def test_a_missing_checkpoint_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="x is missing: `dvc repro` makes it"):
        read_checkpoint(tmp_path / "x")

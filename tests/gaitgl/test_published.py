from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaitgl.model import GaitGL, GaitGLConfig
from gaitgl.published import PUBLISHED_NAMES, from_gaitgl, to_gaitgl

Load = Callable[[str], dict[str, NDArray[Any]]]


@pytest.fixture
def published(fixture_arrays: Load) -> dict[str, NDArray[Any]]:
    return fixture_arrays("model_forward_small")


@pytest.fixture
def weights(published: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {
        name.removeprefix("w:"): torch.tensor(array)
        for name, array in published.items()
        if name.startswith("w:")
    }


def relative_error(found: Tensor | None, expected: NDArray[Any]) -> float:
    assert found is not None
    assert found.shape == expected.shape
    return float(np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_forward_and_gradients_equal_the_published_code(
    published: dict[str, NDArray[Any]],
    weights: dict[str, Tensor],
    prefix: str,
    memory_format: torch.memory_format,
) -> None:
    config, state = to_gaitgl({prefix + name: weight for name, weight in weights.items()})
    assert config == GaitGLConfig(channels=(4, 6, 8, 8, 12, 12))
    model = GaitGL(config)
    model.load_state_dict(state)
    model = model.to(memory_format=memory_format)
    y = model(torch.tensor(published["x"]))
    assert relative_error(y, published["y"]) < 1e-5

    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    for name, expected in {
        "pooling.p": "grad_p",
        "first_conv.weight": "grad_first",
        "glconv_b1.local_conv.weight": "grad_last_local",
    }.items():
        assert relative_error(gradients[name], published[expected]) < 1e-4


def test_renaming_there_and_back_changes_nothing(weights: dict[str, Tensor]) -> None:
    back = from_gaitgl(*to_gaitgl(weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_every_weight_of_the_model_has_a_published_name() -> None:
    assert set(GaitGL(GaitGLConfig()).state_dict()) == set(PUBLISHED_NAMES)


def test_the_learned_p_need_not_be_a_valid_initial_one(weights: dict[str, Tensor]) -> None:
    config, state = to_gaitgl(weights | {"Gem.p": torch.tensor([0.9])})
    model = GaitGL(config)
    model.load_state_dict(state)
    assert model.gem_p == pytest.approx(0.9)


def test_unknown_and_missing_weights_are_all_named(weights: dict[str, Tensor]) -> None:
    del weights["Gem.p"], weights["fc_bin.0"]
    weights |= {"fc_bin.1": torch.zeros(1), "head.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match="do not fit") as error:
        to_gaitgl(weights)
    assert str(error.value).splitlines()[1:] == [
        "  fc_bin.1: unknown weight",
        "  head.bias: unknown weight",
        "  Gem.p: missing",
        "  fc_bin.0: missing",
    ]


def test_module_on_some_keys_only_is_an_unknown_name(weights: dict[str, Tensor]) -> None:
    weights["module.Gem.p"] = weights.pop("Gem.p")
    with pytest.raises(ValueError, match=r"module\.Gem\.p: unknown weight"):
        to_gaitgl(weights)


def test_misshapen_weights_are_all_named(weights: dict[str, Tensor]) -> None:
    weights["Gem.p"] = torch.tensor(6.5)
    weights["fc_bin.0"] = torch.zeros(64, 12)
    with pytest.raises(ValueError, match=r"(?s)Gem\.p: expected 1 dim.*fc_bin\.0: expected 3 dim"):
        to_gaitgl(weights)


def test_weights_that_do_not_fit_each_other_are_all_named(weights: dict[str, Tensor]) -> None:
    weights["conv2dlayer25b_3d.convdl.weight"] = torch.zeros(8, 7, 3, 3, 3)
    weights["fc_bin.0"] = torch.zeros(64, 12, 13)
    with pytest.raises(ValueError, match="do not fit") as error:
        to_gaitgl(weights)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 2
    assert "25b_3d.convdl.weight: expected shape (8, 8, 3, 3, 3)" in lines[0]
    assert "fc_bin.0: expected shape (64, 12, 12)" in lines[1]
    assert "got (64, 12, 13)" in lines[1]


def test_settings_the_published_code_lacks_are_refused() -> None:
    config = GaitGLConfig(parts=4, lta_stride=1, spatial_pooling="max_mean", activation="sum")
    with pytest.raises(ValueError, match=r"(?s)parts.*lta_stride.*spatial_pooling.*activ"):
        from_gaitgl(config, GaitGL(config).state_dict())
    config = GaitGLConfig(aggregation="max_pool", branches="local", last_join="add")
    with pytest.raises(ValueError, match=r"(?s)aggregation.*branches.*last_join"):
        from_gaitgl(config, GaitGL(config).state_dict())


def test_the_way_back_checks_names_and_shapes_too() -> None:
    config = GaitGLConfig(channels=(2, 2, 2, 2, 2, 2))
    state = GaitGL(config).state_dict()
    with pytest.raises(ValueError, match=r"pooling\.p: missing"):
        from_gaitgl(config, {name: w for name, w in state.items() if name != "pooling.p"})
    with pytest.raises(ValueError, match=r"pooling\.p: expected shape \(1,\), got \(2,\)"):
        from_gaitgl(config, state | {"pooling.p": torch.zeros(2)})

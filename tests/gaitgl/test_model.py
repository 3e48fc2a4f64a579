import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gaitgl.model import (
    GaitGL,
    GaitGLConfig,
    GeMPooling,
    GLConv,
    MaxMeanPooling,
    SeparateLinear,
)

SMALL = (2, 3, 4, 4, 5, 6)


def naive_branches(glconv: GLConv, x: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """Eq. 4 and 5 word for word: one convolution of the whole, one of every part."""
    y_global = F.conv3d(x, glconv.global_conv.weight, padding=1)
    y_parts = [F.conv3d(part, glconv.local_conv.weight, padding=1) for part in x.chunk(parts, 3)]
    return y_global, torch.cat(y_parts, 3)


def naive_glconv(glconv: GLConv, x: Tensor, parts: int, join: str, activation: str) -> Tensor:
    y_global, y_local = naive_branches(glconv, x, parts)
    if join == "stack":
        return F.leaky_relu(torch.cat([y_global, y_local], 3), 0.01)
    if activation == "sum":
        return F.leaky_relu(y_global + y_local, 0.01)
    return F.leaky_relu(y_global, 0.01) + F.leaky_relu(y_local, 0.01)


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Largest difference relative to the largest expected value."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("join", ["add", "stack"])
@pytest.mark.parametrize("activation", ["branch", "sum"])
def test_glconv_equals_two_convolutions_with_the_parts_cut_out(
    parts: int, join: Any, activation: Any
) -> None:
    glconv = GLConv(3, 5, parts, join, activation)
    x = torch.randn(2, 3, 4, 8, 6, requires_grad=True)
    found = glconv(x)
    expected = naive_glconv(glconv, x, parts, join, activation)
    assert_close(found, expected, 2e-6)

    weights = [x, glconv.global_conv.weight, glconv.local_conv.weight]
    upstream = torch.randn_like(expected)
    for found_grad, expected_grad in zip(
        torch.autograd.grad(found, weights, upstream),
        torch.autograd.grad(expected, weights, upstream),
        strict=True,
    ):
        assert_close(found_grad, expected_grad, 2e-6)


@pytest.mark.parametrize("join", ["add", "stack"])
@pytest.mark.parametrize("activation", ["branch", "sum"])
@pytest.mark.parametrize("branch", ["global", "local"])
def test_one_branch_alone_is_its_convolution_and_nothing_else(
    branch: Any, join: Any, activation: Any
) -> None:
    glconv = GLConv(3, 5, 4, join, activation, branch)
    x = torch.randn(2, 3, 4, 8, 6)
    (weight,) = glconv.parameters()
    parts = x.chunk(4 if branch == "local" else 1, 3)
    expected = torch.cat([F.conv3d(part, weight, padding=1) for part in parts], 3)
    assert_close(glconv(x), F.leaky_relu(expected, 0.01), 2e-6)


def test_glconv_without_parts_differs_from_glconv_with_parts() -> None:
    """Guards the test above: the borders are where parts make a difference."""
    cut = GLConv(3, 5, 2, "add", "branch")
    uncut = GLConv(3, 5, 1, "add", "branch")
    uncut.load_state_dict(cut.state_dict())
    x = torch.randn(1, 3, 3, 8, 4)
    difference = (cut(x) - uncut(x)).abs().amax(dim=(0, 1, 2, 4))  # [h]
    assert set(difference.nonzero().flatten().tolist()) == {3, 4}


def test_p_that_is_not_learned_gets_no_gradient_and_stays() -> None:
    model = GaitGL(GaitGLConfig(channels=SMALL, gem_p=3.0, gem_learned=False, height=8))
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(3):
        model(torch.rand(2, 1, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    assert model.gem_p == 3.0
    assert model.pooling.p.grad is None
    assert "pooling.p" in model.state_dict()


@pytest.mark.parametrize("p", [1.0, 2.5, 6.5])
def test_gem_equals_the_plain_formula_where_that_is_finite(p: float) -> None:
    x = torch.rand(2, 3, 4, 22) + 1e-3
    plain = x.double().pow(p).mean(3).pow(1 / p)
    torch.testing.assert_close(GeMPooling(p)(x).double(), plain, rtol=1e-5, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    p=st.floats(1, 100),
    content=st.sampled_from(["background", "negative", "one pixel", "random", "large"]),
)
def test_gem_has_finite_values_and_gradients(p: float, content: str) -> None:
    x = {
        "background": torch.zeros(1, 2, 3, 22),
        "negative": torch.full((1, 2, 3, 22), -5.0),
        "one pixel": torch.zeros(1, 2, 3, 22).index_fill(3, torch.tensor([7]), 0.9),
        "random": torch.rand(1, 2, 3, 22, generator=torch.Generator().manual_seed(0)),
        "large": torch.full((1, 2, 3, 22), 3e4),
    }[content].requires_grad_()
    gem = GeMPooling(p)
    y = gem(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert gem.p.grad.isfinite().all()
    low, high = x.clamp(min=1e-6).mean(3), x.clamp(min=1e-6).amax(3)
    assert (y >= low * (1 - 1e-3)).all()
    assert (y <= high * (1 + 1e-3)).all()


def test_gem_limits_are_mean_and_maximum() -> None:
    x = torch.rand(2, 3, 4, 22) + 1e-3
    torch.testing.assert_close(GeMPooling(1)(x), x.mean(3), rtol=1e-5, atol=0)
    # (1/w)^(1/p) is all that separates GeM from the maximum at large p.
    torch.testing.assert_close(GeMPooling(1e4)(x), x.amax(3), rtol=1e-3, atol=0)


def test_gem_gradient_of_p_matches_a_difference_quotient() -> None:
    x = torch.rand(2, 3, 4, 22) + 1e-2
    gem = GeMPooling(6.5)
    gem(x).sum().backward()
    step = 1e-4
    above, below = (x.double().pow(p).mean(3).pow(1 / p).sum() for p in (6.5 + step, 6.5 - step))
    assert gem.p.grad.item() == pytest.approx((above - below).item() / (2 * step), rel=1e-3)


def test_max_mean_pooling_is_equation_7() -> None:
    x = torch.randn(2, 3, 4, 5)
    expected = torch.zeros(2, 3, 4)
    for n, c, h in np.ndindex(2, 3, 4):
        strip = x[n, c, h].tolist()
        expected[n, c, h] = 0.25 * max(strip) + 2.0 * sum(strip) / len(strip)
    torch.testing.assert_close(MaxMeanPooling(0.25, 2.0)(x), expected)


def test_separate_linear_gives_every_strip_its_own_map() -> None:
    fc = SeparateLinear(4, 3, 5)
    nn.init.normal_(fc.weight)
    x = torch.randn(2, 3, 4)
    expected = torch.stack([x[:, :, s] @ fc.weight[s] for s in range(4)], dim=2)
    torch.testing.assert_close(fc(x), expected)


@pytest.mark.parametrize(("frames", "repeated"), [(1, 3), (2, 4)])
def test_short_sequences_are_repeated_as_a_whole(frames: int, repeated: int) -> None:
    model = GaitGL(GaitGLConfig(channels=SMALL))
    x = torch.rand(1, 1, frames, 64, 8)
    times = repeated // frames
    assert torch.equal(model(x), model(torch.cat([x] * times, dim=2)))


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("frames", [3, 7, 10])
def test_temporal_length_after_aggregation_is_equation_1(
    kernel: int, stride: int, frames: int
) -> None:
    model = GaitGL(GaitGLConfig(channels=SMALL, lta_kernel=kernel, lta_stride=stride, height=4))
    frames = max(frames, kernel)
    x = torch.rand(1, 2, frames, 4, 4)
    assert model.lta(x).shape == (1, 2, (frames - kernel) // stride + 1, 4, 4)
    assert model(torch.rand(1, 1, frames, 4, 4)).shape == (1, 6, 4)


STRIPS = {  # of a silhouette of 16 rows
    (): 16,
    ("branches", "global"): 8,
    ("branches", "local"): 8,
    ("last_join", "add"): 8,
    ("aggregation", "max_pool"): 8,
    ("aggregation", "max_pool", "last_join", "add"): 4,
    ("aggregation", "max_pool", "branches", "local"): 4,
}


@pytest.mark.parametrize(("changed", "strips"), STRIPS.items())
def test_strips_follow_from_the_layers(changed: tuple[str, ...], strips: int) -> None:
    architecture: dict[str, Any] = dict(zip(changed[::2], changed[1::2], strict=True))
    config = GaitGLConfig(channels=SMALL, height=16, **architecture)
    assert config.strips == strips
    assert GaitGL(config)(torch.rand(1, 1, 5, 16, 8)).shape == (1, 6, strips)


def test_max_pooling_takes_the_place_of_lta() -> None:
    model = GaitGL(GaitGLConfig(channels=SMALL, aggregation="max_pool", height=16))
    assert not any("lta" in name for name in model.state_dict())
    x = torch.randn(1, 2, 5, 16, 8)
    pooled = x.reshape(1, 2, 5, 8, 2, 4, 2).amax((4, 6))  # [n, c, t, h / 2, w / 2]
    assert torch.equal(model.lta(x), pooled)


def test_a_glconva_in_the_last_place_adds_its_branches() -> None:
    model = GaitGL(GaitGLConfig(channels=SMALL, last_join="add", activation="branch", height=16))
    x = torch.randn(1, 5, 3, 8, 4)
    expected = naive_glconv(model.glconv_b1, x, 2, "add", "branch")
    assert_close(model.glconv_b1(x), expected, 2e-6)


@pytest.mark.parametrize("activation", ["branch", "sum"])
@pytest.mark.parametrize("pooling", ["gem", "max_mean"])
@pytest.mark.parametrize(("changed", "strips"), STRIPS.items())
def test_every_variant_learns(
    activation: Any, pooling: Any, changed: tuple[str, ...], strips: int
) -> None:
    """All weights get a gradient, and a few steps lower a loss."""
    architecture: dict[str, Any] = dict(zip(changed[::2], changed[1::2], strict=True))
    architecture |= {"activation": activation, "spatial_pooling": pooling}
    model = GaitGL(GaitGLConfig(channels=SMALL, height=16, **architecture))
    x, target = torch.rand(2, 1, 6, 16, 8), torch.randn(2, 6, strips)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert all(weight.grad.abs().max() > 0 for weight in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert (model.gem_p is None) == (pooling == "max_mean")
    if pooling == "gem":
        assert model.gem_p != 6.5
        assert model.gem_p == model.pooling.p.item()


def test_the_paper_table_1_shapes() -> None:
    model = GaitGL(GaitGLConfig())
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    expected = {
        "first_conv.weight": (32, 1, 3, 3, 3),
        "lta.conv.weight": (32, 32, 3, 1, 1),
        "pooling.p": (1,),
        "separate_fc.weight": (64, 128, 128),
    }
    widths = {"a1": (64, 32), "a2": (128, 64), "a3": (128, 128), "a4": (128, 128), "b1": (128, 128)}
    for block, (out, into) in widths.items():
        for branch in ("global", "local"):
            expected[f"glconv_{block}.{branch}_conv.weight"] = (out, into, 3, 3, 3)
    assert shapes == expected
    assert model.gem_p == 6.5


def test_weights_are_xavier_uniform() -> None:
    model = GaitGL(GaitGLConfig())
    weight = model.glconv_a3.local_conv.weight
    bound = (6 / (27 * (128 + 128))) ** 0.5
    assert 0.99 * bound < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_channels_last_and_bfloat16_give_nearly_the_same_embeddings() -> None:
    model = GaitGL(GaitGLConfig(channels=(4, 6, 8, 8, 12, 12))).eval()
    x = (torch.rand(2, 1, 9, 64, 44) > 0.5).float()
    with torch.no_grad():
        plain = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(x)
        model = model.to(memory_format=torch.channels_last_3d)
        assert_close(model(x), plain, 2e-6)
    assert rounded.dtype == torch.float32
    assert_close(rounded, plain, 0.02)


@pytest.mark.parametrize("activation", ["branch", "sum"])
def test_no_layer_before_pooling_leaves_channels_last(activation: Any) -> None:
    model = GaitGL(GaitGLConfig(channels=(4, 6, 8, 8, 12, 12), activation=activation))
    model = model.to(memory_format=torch.channels_last_3d)
    layouts: dict[str, bool] = {}

    def note(name: str, tensor: Tensor) -> None:
        layouts[name] = tensor.is_contiguous(memory_format=torch.channels_last_3d)

    def watch(name: str, y: Tensor) -> None:
        note(name, y)
        y.register_hook(lambda gradient: note(f"gradient of {name}", gradient))

    for name, layer in model.named_children():
        if name not in ("pooling", "separate_fc"):
            layer.register_forward_hook(lambda _, __, y, name=name: watch(name, y))
    # PyTorch convolves the smallest float32 inputs, and bfloat16 where the CPU has none, by paths
    # without layouts.
    model(torch.rand(20, 1, 9, 64, 44)).sum().backward()
    assert len(layouts) == 14
    assert all(layouts.values()), layouts


def test_settings_stand_in_the_order_that_others_rely_on() -> None:
    given = GaitGLConfig((32, 64, 128, 128, 128, 128), 4, 5, 2, 3.0, "max_mean", "sum")
    assert given == GaitGLConfig(
        channels=(32, 64, 128, 128, 128, 128),
        parts=4,
        lta_kernel=5,
        lta_stride=2,
        gem_p=3.0,
        spatial_pooling="max_mean",
        activation="sum",
    )


def test_pooling_and_linear_stay_in_float32_under_autocast() -> None:
    x = torch.rand(2, 3, 4, 22)
    gem, fc = GeMPooling(6.5), SeparateLinear(4, 3, 5)
    nn.init.normal_(fc.weight)
    expected = fc(gem(x)), MaxMeanPooling(1, 1)(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = fc(gem(x)), MaxMeanPooling(1, 1)(x)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_a_sequence_embeds_alike_alone_and_in_a_batch() -> None:
    model = GaitGL(GaitGLConfig(channels=SMALL)).eval()
    x = torch.rand(3, 1, 9, 64, 44)
    alone = torch.cat([model(sequence[None]) for sequence in x])
    assert_close(model(x), alone, 1e-6)


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second = (
        (torch.manual_seed(3), GaitGL(GaitGLConfig(channels=SMALL)).state_dict())[1]
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_all_config_problems_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="GaitGLConfig") as error:
        GaitGLConfig(
            channels=(1, 2, 3),
            parts=3,
            lta_kernel=0,
            lta_stride=0,
            aggregation="mean",
            branches="all",
            last_join="none",
            gem_p=0.5,
            spatial_pooling="mean",
            max_weight=float("nan"),
            activation="none",
        )
    named = (
        "channels parts lta_kernel lta_stride aggregation branches last_join gem_p "
        "spatial_pooling max_weight activation"
    )
    assert all(re.search(rf"\b{name}\b", str(error.value)) for name in named.split())


@pytest.mark.parametrize(
    "sizes", [{"channels": (2, 2, 4, 4, 4, True)}, {"lta_kernel": 3.0}, {"height": "64"}]
)
def test_sizes_must_be_whole_numbers(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be whole numbers, got "):
        GaitGLConfig(**sizes)


@pytest.mark.parametrize("height", [0, 1, 63, -2])
def test_height_must_be_even_and_positive(height: int) -> None:
    with pytest.raises(ValueError, match="height"):
        GaitGLConfig(height=height)


def test_two_poolings_need_rows_that_halve_twice_and_parts_that_fit() -> None:
    with pytest.raises(ValueError, match=r"height: expected a multiple of 4, got 62"):
        GaitGLConfig(height=62, aggregation="max_pool", parts=1)
    with pytest.raises(ValueError, match=r"parts: expected a divisor of 16 \(height / 4\), got 32"):
        GaitGLConfig(aggregation="max_pool", parts=32)


def test_two_poolings_need_four_columns() -> None:
    with pytest.raises(ValueError, match="w >= 4"):
        GaitGL(GaitGLConfig(channels=SMALL, aggregation="max_pool"))(torch.zeros(1, 1, 3, 64, 3))


@pytest.mark.parametrize(
    "shape",
    [(2, 9, 64, 44), (2, 3, 9, 64, 44), (2, 1, 9, 32, 44), (2, 1, 0, 64, 44), (2, 1, 9, 64, 1)],
)
def test_forward_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(shape))):
        GaitGL(GaitGLConfig(channels=SMALL))(torch.zeros(shape))


def test_forward_refuses_bytes() -> None:
    with pytest.raises(ValueError, match="divide by 255"):
        GaitGL(GaitGLConfig(channels=SMALL))(torch.zeros(1, 1, 3, 64, 44, dtype=torch.uint8))

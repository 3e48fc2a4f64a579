import math
from typing import Any

import pytest
import torch

from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.batches import TrainingBatch, TrainingBatches
from pipeline.devices import compiler_problem, place
from pipeline.settings import Dataset
from pipeline.silhouette_store import SilhouetteStore
from pipeline.training import (
    NotFiniteError,
    Step,
    everything_trained,
    learning_rate,
    new_optimizer,
    train_steps,
)

CHANNELS = (2, 2, 4, 4, 4, 4)
CPU = torch.device("cpu")

Stores = dict[Dataset, SilhouetteStore]


def new_model(**changes: Any) -> GaitGL:
    torch.manual_seed(0)
    return GaitGL(GaitGLConfig(channels=CHANNELS, **changes))


def train(model: GaitGL, batches: list[TrainingBatch], **changes: Any) -> list[Step]:
    settings: dict[str, Any] = {
        "lr": 1e-3,
        "warmup_steps": 0,
        "lr_drops": [],
        "margin": 0.2,
        "precision": "float32",
        "device": CPU,
    }
    optimizer = new_optimizer(place(model, CPU))
    return list(train_steps(model, optimizer, batches, **(settings | changes)))


@pytest.fixture
def batches(stores: Stores) -> TrainingBatches:
    return TrainingBatches(stores["oumvlp"], 3, 2, 4, seed=0)


@pytest.mark.parametrize(
    ("step", "warmup_steps", "lr_drops", "expected"),
    [
        (1, 0, [], 1.0),
        (1000, 0, [], 1.0),
        (150_000, 0, [150_000], 1.0),  # the paper: 1e-5 after 150 000
        (150_001, 0, [150_000], 0.1),
        (1, 4, [], 0.2),
        (4, 4, [], 0.8),
        (5, 4, [], 1.0),
        (6, 4, [], 1.0),
        (2, 4, [1], 0.04),
        (30, 4, [10, 20], 0.01),
        (20, 4, [10, 20], 0.1),
    ],
)
def test_the_learning_rate_warms_up_and_drops(
    step: int, warmup_steps: int, lr_drops: list[int], expected: float
) -> None:
    assert learning_rate(step, 3e-4, warmup_steps, lr_drops) == pytest.approx(3e-4 * expected)


def test_steps_report_what_the_optimizer_used(batches: TrainingBatches) -> None:
    model = new_model()
    steps = train(model, list(batches.ahead(1, 6, 0)), lr=1e-2, warmup_steps=2, lr_drops=[4])
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]
    assert [step.lr for step in steps] == pytest.approx(
        [1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2, 1e-3, 1e-3]
    )
    assert all(0 < step.active_share <= 1 for step in steps)
    assert all(step.loss > 0 and step.mean_distance > 0 for step in steps)
    assert steps[-1].p == model.gem_p
    # Adam's first step moves a weight by the rate, or less where its gradient is next to nothing
    assert 0 < abs(steps[0].p - 6.5) < 1.01e-2 / 3


def test_training_lowers_the_loss_and_moves_p(batches: TrainingBatches) -> None:
    model = new_model()
    first, second = batches.batch(1), batches.batch(2)
    steps = train(model, [first, second] * 40, lr=5e-3)
    assert steps[-2].loss * steps[-2].active_share < 0.7 * steps[0].loss * steps[0].active_share
    assert steps[-1].loss * steps[-1].active_share < 0.7 * steps[1].loss * steps[1].active_share
    assert model.gem_p is not None
    assert abs(model.gem_p - 6.5) > 0.01


@pytest.mark.parametrize(
    "architecture",
    [
        {"activation": "sum"},
        {"spatial_pooling": "max_mean"},
        {"parts": 4},
        {"branches": "global"},
        {"branches": "local"},
        {"last_join": "add"},
        {"aggregation": "max_pool"},
    ],
)
def test_other_architectures_train_too(
    batches: TrainingBatches, architecture: dict[str, Any]
) -> None:
    model = new_model(**architecture)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    steps = train(model, [batches.batch(1)] * 30, lr=5e-3)
    assert steps[-1].loss * steps[-1].active_share < 0.8 * steps[0].loss * steps[0].active_share
    for name, weight in model.named_parameters():
        assert weight.isfinite().all()
        assert not torch.equal(weight, before[name]), f"{name} did not move"
    assert math.isnan(steps[0].p) == ("spatial_pooling" in architecture)


def test_p_that_is_not_learned_is_reported_as_it_is(batches: TrainingBatches) -> None:
    model = new_model(gem_p=2.0, gem_learned=False)
    steps = train(model, [batches.batch(1)] * 3, lr=5e-3)
    assert [step.p for step in steps] == [2.0, 2.0, 2.0]
    assert model.gem_p == 2.0


def test_the_same_seed_gives_the_same_weights_bit_for_bit(batches: TrainingBatches) -> None:
    runs = []
    for workers in (0, 2):
        model = new_model()
        steps = train(model, list(batches.ahead(1, 4, workers)))
        runs.append((steps, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])


def test_bfloat16_trains_float32_weights(batches: TrainingBatches) -> None:
    model = new_model()
    exact = train(new_model(), [batches.batch(1)])
    steps = train(model, [batches.batch(1)] * 3, precision="bfloat16")
    assert steps[0].loss == pytest.approx(exact[0].loss, rel=0.1)
    assert steps[0].loss != exact[0].loss
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize("architecture", [{}, {"spatial_pooling": "max_mean"}])
def test_a_loss_that_is_not_finite_stops_at_its_step(
    batches: TrainingBatches, architecture: dict[str, Any]
) -> None:
    model = new_model(**architecture)
    with torch.no_grad():
        model.lta.conv.weight[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError, match="the loss of step 1 is not finite") as caught:
        train(model, [batches.batch(1)])
    assert math.isnan(caught.value.loss)
    assert len(caught.value.loss_per_strip) == 64
    assert caught.value.bad_gradients == []


def test_a_loss_that_explodes_on_the_way_stops_at_its_step(batches: TrainingBatches) -> None:
    with pytest.raises(NotFiniteError) as caught:
        train(new_model(), list(batches.ahead(1, 9, 0)), lr=1e30)
    assert 2 <= caught.value.step <= 9


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(
    batches: TrainingBatches,
) -> None:
    model = new_model()
    spoilt_steps = iter([False, False, True])
    model.lta.conv.weight.register_hook(
        lambda grad: grad * torch.nan if next(spoilt_steps) else grad
    )
    good = new_model()
    train(good, [batches.batch(1), batches.batch(2)])
    with pytest.raises(NotFiniteError, match="the gradient of step 3 is not finite") as caught:
        train(model, list(batches.ahead(1, 5, 0)))
    assert math.isfinite(caught.value.loss)
    assert caught.value.bad_gradients == ["lta.conv.weight"]
    assert all(
        torch.equal(weight, after_two)
        for weight, after_two in zip(model.parameters(), good.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [
        ({}, "float32"),
        ({"activation": "sum"}, "bfloat16"),
        ({"spatial_pooling": "max_mean"}, "float32"),
    ],
)
def test_a_training_goes_on_from_what_is_restored_as_if_never_left(
    batches: TrainingBatches, architecture: dict[str, Any], precision: str
) -> None:
    settings: dict[str, Any] = {
        "lr": 1e-2,
        "warmup_steps": 2,
        "lr_drops": [5],
        "margin": 0.2,
        "precision": precision,
        "device": CPU,
    }
    model = place(new_model(**architecture), CPU)
    optimizer = new_optimizer(model)
    everything = everything_trained(model, optimizer)
    assert len(everything) == 4 * len(list(model.parameters()))
    steps, saved = [], {}
    for step in train_steps(model, optimizer, batches.ahead(1, 8, 0), **settings):
        steps.append(step)
        if step.step == 4:
            saved = {name: tensor.contiguous().clone() for name, tensor in everything.items()}

    torch.manual_seed(99)
    other = place(GaitGL(GaitGLConfig(channels=CHANNELS, **architecture)), CPU)
    other_optimizer = new_optimizer(other)
    restored = everything_trained(other, other_optimizer)
    for name, tensor in restored.items():
        tensor.copy_(saved[name])
    later = train_steps(other, other_optimizer, batches.ahead(5, 8, 0), first_step=5, **settings)
    # compared as text: p is NaN without GeM
    assert list(map(repr, later)) == list(map(repr, steps[4:]))
    assert all(torch.equal(restored[name], everything[name]) for name in everything)


def test_moments_made_beforehand_are_those_that_adam_makes_itself(
    batches: TrainingBatches,
) -> None:
    batch = batches.batch(1)
    ours, plain = place(new_model(), CPU), place(new_model(), CPU)
    for model, optimizer in (
        (ours, new_optimizer(ours)),
        (plain, torch.optim.Adam(plain.parameters(), fused=True)),
    ):
        settings: dict[str, Any] = {
            "lr": 1e-2,
            "warmup_steps": 0,
            "lr_drops": [],
            "margin": 0.2,
            "precision": "float32",
        }
        list(train_steps(model, optimizer, [batch] * 4, device=CPU, **settings))
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
    )


@pytest.mark.soak
def test_a_compiled_network_trains_as_the_plain_one_does(batches: TrainingBatches) -> None:
    if problem := compiler_problem(CPU):
        pytest.skip(problem)
    some = list(batches.ahead(1, 3, 0))
    plain, compiled = new_model(), new_model()
    expected = train(plain, some)
    found = train(compiled, some, compiled=True)
    assert [step.loss for step in found] == pytest.approx([step.loss for step in expected], 1e-5)
    for name, weight in compiled.named_parameters():
        torch.testing.assert_close(weight, plain.get_parameter(name), rtol=0, atol=1e-5)

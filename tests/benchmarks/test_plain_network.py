"""The plain network is the oracle: the product must compute the same in float32."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.plain_network import (
    PlainGaitGL,
    plain_embed,
    plain_train_steps,
    plain_triplet_loss,
)
from benchmarks.silhouettes import drawn, write_drawn
from gaitgl.losses import batch_all_triplet_loss
from gaitgl.model import GaitGL, GaitGLConfig
from pipeline.batches import TrainingBatch
from pipeline.devices import place
from pipeline.embedding import embed
from pipeline.training import new_optimizer, train_steps

CPU = torch.device("cpu")
TOLERANCE = 1e-5


def networks(activation: Literal["branch", "sum"], parts: int = 2) -> tuple[PlainGaitGL, GaitGL]:
    """Both with the same weights."""
    torch.manual_seed(0)
    config = GaitGLConfig(channels=(4, 6, 8, 8, 12, 12), parts=parts, activation=activation)
    ours = place(GaitGL(config), CPU)
    plain = PlainGaitGL(config)
    plain.load_state_dict(ours.state_dict())
    return plain, ours


def batch() -> TrainingBatch:
    random = np.random.default_rng(0)
    clips = np.stack([drawn(9, random) for _ in range(6)])[:, None]
    return TrainingBatch(torch.from_numpy(clips), torch.tensor([0, 1, 2, 0, 1, 2]))


def assert_alike(plain: Tensor, ours: Tensor) -> None:
    """To TOLERANCE of the largest value."""
    assert plain.shape == ours.shape
    difference = (plain - ours).abs().max()
    assert difference <= TOLERANCE * plain.abs().max(), difference / plain.abs().max()


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("activation", ["branch", "sum"])
def test_networks_and_their_gradients_are_alike(
    activation: Literal["branch", "sum"], parts: int
) -> None:
    plain, ours = networks(activation, parts)
    silhouettes = batch().silhouettes.float() / 255
    out, our_out = plain(silhouettes), ours(silhouettes)
    assert_alike(out, our_out)
    # Not by the triplet loss: an untrained network's embeddings lie close together and far from the
    # origin, so that rounding alone changes its gradients by 1e-4 in either.
    out.square().sum().backward()
    our_out.square().sum().backward()
    gradients = {name: weight.grad for name, weight in plain.named_parameters()}
    for name, weight in ours.named_parameters():
        assert_alike(gradients[name], weight.grad)


def test_losses_of_the_same_embeddings_are_alike() -> None:
    embeddings = torch.randn(12, 5, 7, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(12) // 3
    plain, ours = (embeddings.clone().requires_grad_() for _ in range(2))
    loss = plain_triplet_loss(plain, labels, 0.2)
    our_loss = batch_all_triplet_loss(ours, labels, 0.2).loss
    assert loss.item() == pytest.approx(our_loss.item(), rel=TOLERANCE)
    loss.backward()
    our_loss.backward()
    assert_alike(plain.grad, ours.grad)


def test_trainings_go_the_same_way() -> None:
    plain, ours = networks("branch")
    schedule = {"lr": 1e-3, "warmup_steps": 1, "lr_drops": [2], "margin": 0.2}
    batches, fixed = [batch()] * 3, {"precision": "float32", "device": CPU}
    losses = list(plain_train_steps(plain, batches, **schedule, **fixed))
    steps = list(train_steps(ours, new_optimizer(ours), batches, **schedule, **fixed))
    assert losses == pytest.approx([step.loss for step in steps], rel=1e-4)
    assert len(set(losses)) == 3


def test_embeddings_one_by_one_are_those_of_batches(tmp_path: Path) -> None:
    plain, ours = networks("branch")
    lengths = np.array([3, 5, 4, 5, 3, 5])
    store = write_drawn(tmp_path / "store", lengths, 3, np.random.default_rng(0))
    assert sorted(store.index["n_frames"]) == sorted(lengths)
    numbers = np.arange(len(lengths))
    one_by_one = plain_embed(plain, (store.read(int(i)) for i in numbers), CPU)
    assert_alike(
        torch.from_numpy(one_by_one),
        torch.from_numpy(embed(ours, store, numbers, "float32", CPU, shown=False)),
    )


def test_drawn_silhouettes_are_mostly_background() -> None:
    frames = drawn(20, np.random.default_rng(0))
    assert frames.shape == (20, 64, 44)
    assert set(np.unique(frames)) == {0, 255}
    assert 0.1 < (frames > 0).mean() < 0.6
    assert (frames[0] != frames[5]).any()

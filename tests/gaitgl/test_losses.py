import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gaitgl.losses import batch_all_triplet_loss, strip_distances

Load = Callable[[str], dict[str, NDArray[Any]]]


def naive_triplet_loss(
    embeddings: Tensor, labels: list[int], margin: float
) -> tuple[Tensor, list[int], int]:
    """Every (anchor, positive, negative) by itself; float64 [n, c, strips] in, per strip out."""
    n, _, strips = embeddings.shape
    losses, active, triplets = [], [], 0
    for s in range(strips):
        positive_losses = []
        triplets = 0
        for a, p, q in itertools.product(range(n), repeat=3):
            if a == p or labels[a] != labels[p] or labels[a] == labels[q]:
                continue
            triplets += 1
            d_positive = (embeddings[a, :, s] - embeddings[p, :, s]).norm()
            d_negative = (embeddings[a, :, s] - embeddings[q, :, s]).norm()
            if d_positive - d_negative + margin > 0:
                positive_losses.append(d_positive - d_negative + margin)
        active.append(len(positive_losses))
        losses.append(
            torch.stack(positive_losses).mean() if positive_losses else embeddings.sum() * 0
        )
    return torch.stack(losses), active, triplets


def test_loss_counts_and_gradient_equal_the_published_implementation(fixture_arrays: Load) -> None:
    published = fixture_arrays("triplet")
    embeddings = torch.tensor(published["f"]).permute(1, 2, 0).requires_grad_()  # [n, c, strips]
    result = batch_all_triplet_loss(embeddings, torch.tensor(published["labels"]), margin=0.2)
    result.loss.backward()
    np.testing.assert_allclose(result.loss_per_strip, published["loss_per_strip"], rtol=1e-6)
    np.testing.assert_array_equal(result.active_per_strip, published["n_active"])
    np.testing.assert_allclose(result.mean_distance, published["mean_dist"], rtol=1e-5)
    assert result.loss.item() == pytest.approx(published["loss_per_strip"].mean(), rel=1e-6)
    gradient = embeddings.grad.permute(2, 0, 1).numpy()
    np.testing.assert_allclose(gradient, published["grad"], rtol=1e-4, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=7),
    margin=st.sampled_from([0.05, 0.2, 1.0]),
    seed=st.integers(0, 2**16),
)
def test_loss_equals_a_naive_loop_whatever_the_counts_per_subject(
    labels: Any, margin: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 0.3 * torch.randn(len(labels), 3, 2, generator=generator)
    embeddings.requires_grad_()
    exact = embeddings.detach().double().requires_grad_()
    result = batch_all_triplet_loss(embeddings, torch.tensor(labels), margin)
    losses, active, triplets = naive_triplet_loss(exact, labels, margin)

    assert result.triplets == triplets
    assert result.active_per_strip.tolist() == active
    torch.testing.assert_close(
        result.loss_per_strip.double(), losses.detach(), rtol=1e-4, atol=1e-6
    )
    result.loss.backward()
    losses.mean().backward()
    torch.testing.assert_close(embeddings.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [5]])
def test_a_batch_without_a_triplet_has_loss_zero_and_gradient_zero(labels: Any) -> None:
    embeddings = torch.randn(len(labels), 4, 3, requires_grad=True)
    result = batch_all_triplet_loss(embeddings, torch.tensor(labels))
    result.loss.backward()
    assert result.loss.item() == 0
    assert result.triplets == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_the_sign_pulls_one_subject_together_and_pushes_others_away() -> None:
    embeddings = torch.tensor([[0.0], [1.0], [1.5]])[:, :, None].requires_grad_()  # [3, 1, 1]
    batch_all_triplet_loss(embeddings, torch.tensor([0, 0, 1]), margin=0.2).loss.backward()
    downhill = -embeddings.grad.flatten()
    assert downhill[0] > 0  # towards its positive on the right
    assert downhill[2] > 0  # away from the others on the left


def test_identical_embeddings_have_loss_margin_and_no_gradient() -> None:
    """As from one sequence drawn twice, or a collapsed network."""
    embeddings = torch.ones(4, 3, 2, requires_grad=True)
    result = batch_all_triplet_loss(embeddings, torch.tensor([0, 0, 1, 1]), margin=0.2)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(0.2)
    assert result.active_per_strip.tolist() == [result.triplets] * 2 == [8, 8]
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


def test_nan_embeddings_make_the_loss_nan() -> None:
    embeddings = torch.randn(4, 3, 2)
    embeddings[1] = torch.nan
    assert batch_all_triplet_loss(embeddings, torch.tensor([0, 0, 1, 1])).loss.isnan()


def test_loss_is_float32_under_autocast_and_for_bfloat16_embeddings() -> None:
    embeddings, labels = torch.randn(6, 8, 4), torch.tensor([0, 0, 0, 1, 1, 1])
    expected = batch_all_triplet_loss(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        result = batch_all_triplet_loss(embeddings, labels)
    assert torch.equal(result.loss, expected.loss)
    rounded = batch_all_triplet_loss(embeddings.bfloat16(), labels)
    assert rounded.loss.dtype == torch.float32
    assert torch.equal(
        rounded.loss, batch_all_triplet_loss(embeddings.bfloat16().float(), labels).loss
    )


@pytest.mark.parametrize(("shape", "labels"), [((3, 4), 3), ((3, 4, 2), 2), ((0, 4, 2), 0)])
def test_loss_refuses_shapes_that_do_not_fit(shape: tuple[int, ...], labels: Any) -> None:
    with pytest.raises(ValueError, match="expected embeddings"):
        batch_all_triplet_loss(torch.zeros(shape), torch.zeros(labels, dtype=torch.long))


def test_strip_distances_equal_differences() -> None:
    x, y = torch.randn(5, 7, 3), torch.randn(4, 7, 3)
    expected = (x[:, None] - y[None]).norm(dim=2).permute(2, 0, 1)  # [strips, n, m]
    torch.testing.assert_close(strip_distances(x, y), expected)


def test_strip_distances_far_from_the_origin_keep_their_digits() -> None:
    x = 100 + torch.randn(5, 7, 3)
    exact = (x.double()[:, None] - x.double()[None]).norm(dim=2).permute(2, 0, 1)
    torch.testing.assert_close(strip_distances(x, x).double(), exact, rtol=1e-5, atol=5e-3)

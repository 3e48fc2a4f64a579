"""The separate Batch-All triplet loss (Section 1.5): every strip of an embedding by itself."""

from typing import NamedTuple

import torch
from torch import Tensor


def strip_distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances between two sets of embeddings, strip by strip.

    Computed in float32 also under autocast. The gradient at distance 0 is 0.

    Args:
        x: [n, c, strips].
        y: [m, c, strips], on the same device.

    Returns:
        float32 [strips, n, m], each >= 0.
    """
    with torch.autocast(x.device.type, enabled=False):
        a = x.float().permute(2, 0, 1)  # [strips, n, c]
        b = y.float().permute(2, 0, 1)  # [strips, m, c]
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab cancels badly where the norms dwarf the distances;
        # distances do not change when both sets are moved, so move them to the origin.
        centre = b.detach().mean(dim=1, keepdim=True)  # [strips, 1, c]
        a, b = a - centre, b - centre
        squared = torch.baddbmm(
            a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None, :], a, b.mT, alpha=-2
        )  # [strips, n, m]
        # Rounding may leave squared a little below 0; NaN must stay NaN.
        coincide = squared <= 0
        return squared.masked_fill(coincide, 1).sqrt().masked_fill(coincide, 0)


class TripletLoss(NamedTuple):
    """What `batch_all_triplet_loss` returns; float32 tensors, all detached but `loss`."""

    loss: Tensor
    """Scalar: the mean of `loss_per_strip`; the only one with a gradient."""
    loss_per_strip: Tensor
    """[strips]: mean over the triplets whose loss is not zero, 0 if there are none."""
    active_per_strip: Tensor
    """[strips]: number of triplets whose loss is not zero."""
    mean_distance: Tensor
    """[strips]: mean of all n x n distances."""
    triplets: int
    """Number of valid triplets in a strip; active_per_strip / triplets is the active share."""


def batch_all_triplet_loss(embeddings: Tensor, labels: Tensor, margin: float = 0.2) -> TripletLoss:
    """Batch-All triplet loss, Eq. 10, for each strip, averaged over strips.

    Eq. 10 as printed adds D(anchor, negative) and subtracts D(anchor, positive), which would push
    sequences of one subject apart. This is the loss it means: [D(A1, A2) - D(A1, B1) + m]_+ with
    A1 and A2 two sequences. (The published code also takes A2 = A1, at distance 0: it differs
    where a negative is nearer than m.)

    Args:
        embeddings: [n, c, strips].
        labels: int [n], the subjects. Every anchor may have its own number of positives. Labels on
            the CPU save a GPU synchronization.
        margin: m.

    Returns:
        `TripletLoss`. A batch without a valid triplet has loss 0 with a zero gradient.

    Raises:
        ValueError: the shapes do not fit together, or the batch is empty.
    """
    if embeddings.ndim != 3 or labels.shape != embeddings.shape[:1] or not len(labels):
        raise ValueError(
            "expected embeddings [n, c, strips] and labels [n] with n >= 1, got "
            f"{tuple(embeddings.shape)} and {tuple(labels.shape)}"
        )
    n, _, strips = embeddings.shape
    device = embeddings.device
    labels = labels.cpu()
    same = labels[:, None] == labels[None, :]  # [n, n]
    positive = same & ~torch.eye(n, dtype=torch.bool)
    positives = positive.sum(1)  # [n]
    triplets = int((positives * (n - 1 - positives)).sum())

    distances = strip_distances(embeddings, embeddings)  # [strips, n, n]
    # The loss is piecewise linear in the distances: a distance enters once for every active triplet
    # that uses it, with the sign of its role. So count those first, without a graph, one positive
    # of every anchor at a time; no [strips, n, n, n] is ever held.
    coefficients = torch.zeros_like(distances)
    with torch.no_grad():
        most = int(positives.max())
        order = positive.int().argsort(dim=1, descending=True, stable=True)  # positives first
        # to a GPU before the turns: each copy waits for all that it has to do
        columns, negative, positives = (
            order[:, :most].to(device),
            ~same.to(device),
            positives.to(device),
        )
        for rank in range(most):
            column = columns[:, rank, None].expand(strips, n, 1)  # [strips, n, 1]
            valid = (positives > rank)[:, None] & negative  # [n, n]
            excess = distances.gather(2, column) - distances + margin  # [strips, n, n]
            active = ((excess > 0) & valid).float()
            coefficients -= active
            coefficients.scatter_add_(2, column, active.sum(2, keepdim=True))
        active_per_strip = coefficients.clamp(min=0).sum((1, 2))

    share = active_per_strip.clamp(min=1)[:, None, None]
    loss_per_strip = (coefficients / share * distances).sum((1, 2))
    loss_per_strip = loss_per_strip + margin * (active_per_strip > 0)
    return TripletLoss(
        loss=loss_per_strip.mean(),
        loss_per_strip=loss_per_strip.detach(),
        active_per_strip=active_per_strip,
        mean_distance=distances.detach().mean((1, 2)),
        triplets=triplets,
    )

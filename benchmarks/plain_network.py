"""What the published code does, written plainly: what the product is timed and tested against.

Two separate convolutions per GLConv with the parts looped over, activations not in place,
contiguous layout, GeM by powers, a triplet loss over every [positives, negatives] pair, Adam
unfused, one sequence at a time at test. Weights have GaitGL's names and shapes.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaitgl.model import NEGATIVE_SLOPE, GaitGLConfig
from pipeline.batches import TrainingBatch
from pipeline.devices import autocast
from pipeline.training import learning_rate


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, NEGATIVE_SLOPE)


class PlainLTA(nn.Module):
    """Eq. 1."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (kernel, 1, 1), stride=(stride, 1, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return _leaky(self.conv(x))


class PlainGLConv(nn.Module):
    """Eq. 2-5; ``activation`` sum is not published, but the same two convolutions serve it."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        parts: int,
        join: Literal["add", "stack"],
        activation: Literal["branch", "sum"],
    ) -> None:
        super().__init__()
        self.global_conv = nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False)
        self.local_conv = nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False)
        self.parts, self.join, self.activation = parts, join, activation

    def forward(self, x: Tensor) -> Tensor:
        whole = self.global_conv(x)
        local = torch.cat([self.local_conv(part) for part in x.chunk(self.parts, 3)], 3)
        if self.join == "stack":
            return _leaky(torch.cat([whole, local], 3))
        if self.activation == "sum":
            return _leaky(whole + local)
        return _leaky(whole) + _leaky(local)


class PlainGeM(nn.Module):
    """Eq. 8 as it is printed."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=1e-6).pow(self.p).mean(3).pow(1 / self.p)  # [n, c, h]


class PlainSeparateLinear(nn.Module):
    """Eq. 9."""

    def __init__(self, strips: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(strips, channels_in, channels_out))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(2, 0, 1).matmul(self.weight).permute(1, 2, 0)  # [n, c, strips]


class PlainGaitGL(nn.Module):
    """Table 1: float [n, 1, t, h, w], t >= lta_kernel, to [n, c, strips]. GeM pooling only."""

    def __init__(self, config: GaitGLConfig) -> None:
        super().__init__()
        c1, a1, a2, a3, a4, b1 = config.channels
        parts, activation = config.parts, config.activation
        self.first_conv = nn.Conv3d(1, c1, 3, padding=1, bias=False)
        self.lta = PlainLTA(c1, config.lta_kernel, config.lta_stride)
        self.glconv_a1 = PlainGLConv(c1, a1, parts, "add", activation)
        self.glconv_a2 = PlainGLConv(a1, a2, parts, "add", activation)
        self.glconv_a3 = PlainGLConv(a2, a3, parts, "add", activation)
        self.glconv_a4 = PlainGLConv(a3, a4, parts, "add", activation)
        self.glconv_b1 = PlainGLConv(a4, b1, parts, "stack", activation)
        self.pooling = PlainGeM(config.gem_p)
        self.separate_fc = PlainSeparateLinear(config.height, b1, b1)

    def forward(self, x: Tensor) -> Tensor:
        x = _leaky(self.first_conv(x))
        x = self.lta(x)
        x = F.max_pool3d(self.glconv_a1(x), (1, 2, 2))
        x = self.glconv_a4(self.glconv_a3(self.glconv_a2(x)))
        x = self.glconv_b1(x)
        embeddings: Tensor = self.separate_fc(self.pooling(x.max(2).values))
        return embeddings


def plain_triplet_loss(embeddings: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Batch-All over [n, c, strips]; all anchors must have equally many positives.

    Holds [strips, n, positives, negatives], as published. An anchor is not its own positive here;
    the published masks leave it among them, one positive more.
    """
    x = embeddings.permute(2, 0, 1)  # [strips, n, c]
    strips, n, _ = x.shape
    squared = x.square().sum(2)
    squared = squared[:, :, None] + squared[:, None, :] - 2 * x @ x.mT
    positive = squared > 0
    distances = torch.where(positive, squared, 1).sqrt() * positive  # no NaN gradient at 0
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(n, dtype=torch.bool, device=labels.device)
    to_positive = distances[:, same & ~itself].view(strips, n, -1, 1)
    to_negative = distances[:, ~same].view(strips, n, 1, -1)
    excess = (to_positive - to_negative + margin).relu().flatten(1)  # [strips, triplets]
    active = (excess > 0).sum(1)
    return (excess.sum(1) / active.clamp(min=1)).mean()


def plain_train_steps(
    model: PlainGaitGL,
    batches: Iterable[TrainingBatch],
    *,
    lr: float,
    warmup_steps: int,
    lr_drops: list[int],
    margin: float,
    precision: str,
    device: torch.device,
) -> Iterator[float]:
    """Train ``model``, which lies on ``device``, in place; yields the loss of each step."""
    optimizer = torch.optim.Adam(model.parameters(), fused=False)
    model.train()
    for step, batch in enumerate(batches, start=1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, lr, warmup_steps, lr_drops)
        silhouettes = batch.silhouettes.to(device).float() / 255
        with autocast(device, precision):
            embeddings = model(silhouettes)
        loss = plain_triplet_loss(embeddings.float(), batch.labels.to(device), margin)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield loss.item()


def plain_embed(
    model: PlainGaitGL,
    sequences: Iterable[npt.NDArray[np.uint8]],
    device: torch.device,
    precision: str = "float32",
) -> npt.NDArray[np.float32]:
    """Embeddings [n, c, strips] of whole sequences uint8 [t, h, w], one at a time."""
    model.eval()
    embeddings = []
    with torch.inference_mode(), autocast(device, precision):
        for frames in sequences:
            silhouettes = torch.tensor(frames)[None, None].to(device).float() / 255
            embeddings.append(model(silhouettes).float().cpu().numpy()[0])
    return np.stack(embeddings)

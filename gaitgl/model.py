"""GaitGL with GeM pooling: silhouettes in, one embedding vector per horizontal strip out.

The network of "Learning Effective Representations from Global and Local Features for Cross-View
Gait Recognition" (Lin et al.), equations and Table 1 cited below, in reading order:

    GaitGLConfig
    LocalTemporalAggregation    Eq. 1
    GLConv                      Eq. 2-5     GLConvA and GLConvB
    GeMPooling, MaxMeanPooling  Eq. 8, Eq. 7
    SeparateLinear              Eq. 9
    GaitGL                      Table 1

Dimensions: n sequences, c channels, t frames, h rows, w columns.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEGATIVE_SLOPE = 0.01


@dataclass(frozen=True)
class GaitGLConfig:
    """Everything that shapes the network. All problems are collected into one ValueError.

    The defaults are the paper's Table 1; channels (32, 64, 128, 128, 256, 256) are the published
    code's.
    """

    channels: tuple[int, ...] = (32, 64, 128, 128, 128, 128)
    """Widths of first convolution and LTA, GLConvA1, A2, A3, A4, and GLConvB1 with the output."""
    parts: int = 2
    """n of Eq. 5: horizontal parts of the local branch. Must divide the rows of every layer."""
    lta_kernel: int = 3
    """a of Eq. 1: frames that one step of the local temporal aggregation sees."""
    lta_stride: int = 3
    """b of Eq. 1: frames between two such steps."""
    gem_p: float = 6.5
    """Initial p of Eq. 8, in [1, 100]: 1 is the mean over a strip, infinity its maximum."""
    spatial_pooling: Literal["gem", "max_mean"] = "gem"
    """How a strip becomes one number per channel: Eq. 8 or Eq. 7."""
    activation: Literal["branch", "sum"] = "branch"
    """Where GLConvA's LeakyReLU stands: on both branches, as published, or after Eq. 2's sum."""
    gem_learned: bool = True
    """Whether p is trained; otherwise it stays where it starts."""
    max_weight: float = 1.0
    """Alpha of Eq. 7; used by spatial_pooling="max_mean" only."""
    mean_weight: float = 1.0
    """Beta of Eq. 7; used by spatial_pooling="max_mean" only."""
    aggregation: Literal["lta", "max_pool"] = "lta"
    """What follows the first convolution: LTA, or the spatial max pooling that LTA replaces."""
    branches: Literal["both", "global", "local"] = "both"
    """Of every GLConv: Eq. 4 and Eq. 5, or one of them alone, which leaves nothing to join."""
    last_join: Literal["stack", "add"] = "stack"
    """How the last GLConv joins its branches: as GLConvB (Table 1) or as another GLConvA."""
    height: int = 64
    """Rows of a silhouette. Also the number of strips, unless other settings say otherwise: max
    pooling halves the rows and GLConvB doubles them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # lists come from settings
        sizes = (*self.channels, self.height, self.parts, self.lta_kernel, self.lta_stride)
        if any(type(size) is not int for size in sizes):
            raise ValueError(
                "GaitGLConfig: channels, height, parts, lta_kernel and lta_stride must be whole "
                f"numbers, got {', '.join(map(repr, sizes))}"
            )
        problems = []
        if len(self.channels) != 6 or any(c < 1 for c in self.channels):
            problems.append(f"channels: expected 6 positive widths, got {self.channels}")
        shrink, rows = self.shrink, self.height // self.shrink
        if rows < 1 or self.height % shrink:
            problems.append(f"height: expected a multiple of {shrink}, got {self.height}")
        elif self.parts < 1 or rows % self.parts:
            problems.append(
                f"parts: expected a divisor of {rows} (height / {shrink}), got {self.parts}"
            )
        if self.lta_kernel < 1:
            problems.append(f"lta_kernel: expected at least 1, got {self.lta_kernel}")
        if self.lta_stride < 1:
            problems.append(f"lta_stride: expected at least 1, got {self.lta_stride}")
        for field in fields(self):
            got = getattr(self, field.name)
            if get_origin(field.type) is Literal and got not in get_args(field.type):
                words = " or ".join(map(repr, get_args(field.type)))
                problems.append(f"{field.name}: expected {words}, got {got!r}")
        if not 1 <= self.gem_p <= 100:
            problems.append(f"gem_p: expected a value in [1, 100], got {self.gem_p}")
        if not (math.isfinite(self.max_weight) and math.isfinite(self.mean_weight)):
            problems.append(
                "max_weight, mean_weight: expected finite numbers, got "
                f"{self.max_weight}, {self.mean_weight}"
            )
        if problems:
            raise ValueError("GaitGLConfig: " + "; ".join(problems))

    @property
    def shrink(self) -> int:
        """Rows (and columns) of a silhouette for each one of the last feature maps."""
        return 4 if self.aggregation == "max_pool" else 2

    @property
    def strips(self) -> int:
        """Strips of an embedding: rows of the last feature map, which GLConvB doubles."""
        stacked = self.branches == "both" and self.last_join == "stack"
        return self.height // self.shrink * (2 if stacked else 1)


def leaky_relu_(x: Tensor) -> Tensor:
    """LeakyReLU in place: a convolution's output is the largest tensor here and nobody else's."""
    return F.leaky_relu(x, NEGATIVE_SLOPE, inplace=True)


def channels_last(x: Tensor) -> Tensor:
    """[n, c, t, h, w] -> [n, t, h, w, c], a view: in torch.channels_last_3d the order in memory.

    What selects from this order hands gradients back in it, too; from the other one they come in
    another layout than the convolutions', and whatever reads both is several times as slow.
    """
    return x.permute(0, 2, 3, 4, 1)


class LocalTemporalAggregation(nn.Module):
    """Eq. 1, its second convolution: `kernel` frames become one, every `stride` frames.

    Spatial kernel 1 (Table 1: (3,1,1)) and no temporal padding:
    [n, c, t, h, w] -> [n, c, (t - kernel) // stride + 1, h, w].
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, channels, (kernel, 1, 1), stride=(stride, 1, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return leaky_relu_(self.conv(x))


class GLConv(nn.Module):
    """Global and local convolution: GLConvA adds the two branches, GLConvB stacks their rows.

    join="add" (GLConvA, Eq. 2): [n, c_in, t, h, w] -> [n, c_out, t, h, w].
    join="stack" (GLConvB, Eq. 3): [n, c_in, t, h, w] -> [n, c_out, t, 2h, w], global rows first.

    The local branch (Eq. 5, whose right side must read X_local) convolves each horizontal part by
    itself, with one kernel for all parts and zeros around every part. That differs from convolving
    the uncut picture only in the two rows beside each inner border, where the kernel must not see
    the row on the other side. So the uncut picture is convolved, and `uncross` takes back what
    crossed. This is exact, and with activation="sum" it makes global + local one convolution.

    With one of the branches alone, its output is all there is: [n, c_out, t, h, w].
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        parts: int,
        join: Literal["add", "stack"],
        activation: Literal["branch", "sum"],
        branches: Literal["both", "global", "local"] = "both",
    ) -> None:
        super().__init__()
        if branches != "local":
            self.global_conv = nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False)
        if branches != "global":
            self.local_conv = nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False)
        self.parts = parts
        self.join = join
        self.activation = activation
        self.branches = branches

    def forward(self, x: Tensor) -> Tensor:
        if self.branches == "global":
            return leaky_relu_(self.global_conv(x))
        if self.branches == "local":
            return leaky_relu_(self.uncross(self.local_conv(x), x))
        if self.join == "add" and self.activation == "sum":
            # Nothing stands between the convolutions and their sum: sum the kernels instead.
            summed = self.global_conv.weight + self.local_conv.weight
            return leaky_relu_(self.uncross(F.conv3d(x, summed, padding=1), x))
        y_global = leaky_relu_(self.global_conv(x))
        y_local = leaky_relu_(self.uncross(self.local_conv(x), x))
        if self.join == "add":
            return y_global + y_local
        # Stacking rows mixes nothing: activation "sum" (after joining) equals "branch" here.
        return torch.cat([y_global, y_local], dim=3)  # [n, c, t, 2h, w]

    def uncross(self, y: Tensor, x: Tensor) -> Tensor:
        """Subtract from y, in place, what the local kernel saw of x across the inner borders.

        x: [n, c_in, t, h, w]; y: [n, c_out, t, h, w]. `below` and `above` number the rows below and
        above each border.
        """
        if self.parts == 1:
            return y
        h = x.shape[3]
        below = torch.arange(h // self.parts, h, h // self.parts, device=x.device)  # [parts - 1]
        above = below - 1
        rows = channels_last(x).index_select(2, torch.cat([below, above]))
        # [n, t, 2 (parts - 1), w, c_in], and each of these [n, c_in, t, parts - 1, w]
        first, last = rows.permute(0, 4, 1, 2, 3).chunk(2, 3)
        kernel = self.local_conv.weight
        seen_from_above = F.conv3d(first, kernel[:, :, :, 2:], padding=(1, 0, 1))
        seen_from_below = F.conv3d(last, kernel[:, :, :, :1], padding=(1, 0, 1))
        # each seen_from [n, c_out, t, parts - 1, w]
        y.index_add_(3, above, seen_from_above, alpha=-1)
        return y.index_add_(3, below, seen_from_below, alpha=-1)


class GeMPooling(nn.Module):
    """Generalized mean over the width, Eq. 8: [n, c, h, w] -> float32 [n, c, h].

    (mean x^p)^(1/p) with one p, learned unless told otherwise: p = 1 is the mean, p -> infinity the
    maximum. Values are clamped to 1e-6 from below, as published. The power itself underflows in
    float32 once p passes about 7.5, which makes the gradient of p NaN on background; here it is
    never formed: log GeM = (logsumexp(p log x) - log w) / p. Always in float32.
    """

    def __init__(self, p: float, learned: bool = True) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([float(p)]), requires_grad=learned)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            scaled = x.float().clamp(min=1e-6).log() * self.p
            mean = scaled.logsumexp(3) - math.log(x.shape[3])  # [n, c, h]
            return (mean / self.p).exp()


class MaxMeanPooling(nn.Module):
    """alpha max + beta mean over the width, Eq. 7: [n, c, h, w] -> float32 [n, c, h].

    What GaitSet and GaitPart use, and GeM replaces.
    """

    def __init__(self, max_weight: float, mean_weight: float) -> None:
        super().__init__()
        self.max_weight = max_weight
        self.mean_weight = mean_weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return self.max_weight * x.max(3).values + self.mean_weight * x.mean(3)  # [n, c, h]


class SeparateLinear(nn.Module):
    """One linear map per strip, without bias, Eq. 9: [n, c_in, strips] -> [n, c_out, strips].

    Always in float32.
    """

    def __init__(self, strips: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(strips, channels_in, channels_out))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            y = torch.bmm(x.float().permute(2, 0, 1), self.weight)  # [strips, n, c_out]
            return y.permute(1, 2, 0).contiguous()  # [n, c_out, strips]


class GaitGL(nn.Module):
    """The whole network, Table 1. Weights are Xavier-uniform; there are no biases.

    Runs under torch.autocast and in torch.channels_last_3d; pooling over the width and everything
    after it stays in float32.
    """

    def __init__(self, config: GaitGLConfig) -> None:
        super().__init__()
        self.config = config
        c1, a1, a2, a3, a4, b1 = config.channels
        parts, activation, branches = config.parts, config.activation, config.branches
        self.first_conv = nn.Conv3d(1, c1, 3, padding=1, bias=False)
        self.lta: LocalTemporalAggregation | nn.MaxPool3d
        if config.aggregation == "lta":
            self.lta = LocalTemporalAggregation(c1, config.lta_kernel, config.lta_stride)
        else:
            self.lta = nn.MaxPool3d((1, 2, 2))
        self.glconv_a1 = GLConv(c1, a1, parts, "add", activation, branches)
        self.glconv_a2 = GLConv(a1, a2, parts, "add", activation, branches)
        self.glconv_a3 = GLConv(a2, a3, parts, "add", activation, branches)
        self.glconv_a4 = GLConv(a3, a4, parts, "add", activation, branches)
        self.glconv_b1 = GLConv(a4, b1, parts, config.last_join, activation, branches)
        self.pooling: GeMPooling | MaxMeanPooling
        if config.spatial_pooling == "gem":
            self.pooling = GeMPooling(config.gem_p, config.gem_learned)
        else:
            self.pooling = MaxMeanPooling(config.max_weight, config.mean_weight)
        self.separate_fc = SeparateLinear(config.strips, b1, b1)
        # Fans of separate_fc are those of its whole [strips, c, c] tensor, as published.
        for module in self.modules():
            if isinstance(module, nn.Conv3d | SeparateLinear):
                nn.init.xavier_uniform_(module.weight)

    @property
    def gem_p(self) -> float | None:
        """p of Eq. 8 as it stands now; None with spatial_pooling="max_mean". Waits for the GPU."""
        return self.pooling.p.item() if isinstance(self.pooling, GeMPooling) else None

    def forward(self, silhouettes: Tensor) -> Tensor:
        """Embed sequences of one length.

        A sequence of fewer frames than LTA's kernel is repeated as a whole until it has enough
        (1 frame becomes 3, 2 become 4).

        Args:
            silhouettes: float [n, 1, t, height, w] in [0, 1], t >= 1, w >= 2 (w >= 4 with
                aggregation="max_pool").

        Returns:
            Embeddings, float32 [n, c, strips]; c is the last of `channels`.

        Raises:
            ValueError: another shape, or not a float type.
        """
        x = silhouettes
        h, shrink = self.config.height, self.config.shrink
        if x.ndim != 5 or x.shape[1] != 1 or x.shape[3] != h or x.shape[4] < shrink or 0 in x.shape:
            raise ValueError(
                f"expected silhouettes [n, 1, t, {h}, w] with n, t >= 1 and w >= {shrink}, "
                f"got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"expected float silhouettes in [0, 1], got {x.dtype}; divide by 255")
        repeats = math.ceil(self.config.lta_kernel / x.shape[2])
        x = x.repeat(1, 1, repeats, 1, 1)  # [n, 1, repeats * t, h, w]
        x = leaky_relu_(self.first_conv(x))  # [n, c, t, h, w]
        x = self.lta(x)  # [n, c, t2, h, w], Eq. 1; max pooling instead: [n, c, t, h / 2, w / 2]
        x = self.glconv_a1(x)
        x = F.max_pool3d(x, (1, 2, 2))  # [n, c, t2, h / 2, w / 2]
        x = self.glconv_a2(x)
        x = self.glconv_a3(x)
        x = self.glconv_a4(x)
        x = self.glconv_b1(x)  # [n, c, t2, strips, w / 2]
        x = channels_last(x).max(1).values  # [n, strips, w / 2, c], Eq. 6
        x = x.permute(0, 3, 1, 2)  # [n, c, strips, w / 2]
        x = self.pooling(x)  # [n, c, strips], Eq. 7 or 8
        embeddings: Tensor = self.separate_fc(x)  # [n, c, strips], Eq. 9
        return embeddings

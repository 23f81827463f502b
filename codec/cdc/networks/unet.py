"""The conditional denoising network: a U-Net that is shown the contexts at its finer scales.

Yang & Mandt 2023, appendix. Everything is convolutional, and attention costs as much as a
convolution, so a picture may have any size that halves evenly at each scale.

    x, context 0 -> 2 blocks, attention                                  norm, conv -> x_0 or noise
                          | /2, context 1                                     | x2
                    2 blocks, attention ------------------------> 2 blocks, attention
                          | /2, context 2                                     | x2
                    2 blocks, attention -----------------+------> 2 blocks, attention
                          '--> block, attention, block --'

Tensors come out of every normalisation with channels last in memory, which the convolutions then
keep: on a CPU both are fastest so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...numerics.pointwise import Pointwise, plus
from .config import MAX_SCALES, Part, is_width

_SLOPE = 0.2  # of every leaky ReLU in these networks


@dataclass(frozen=True)
class UNetConfig(Part):
    """Sizes of the network; the defaults are the paper's, parameterised for x.

    Attributes:
        dim: unit of the widths, and width of the time's embedding.
        dim_mults: width of each scale, finest first, in units of ``dim``.
        context_channels: channels of the context that each scale is shown, finest first; scales
            beyond the last entry have none.
        channels: of the picture that is denoised.
        outer_kernel: size of the first and the last convolution.
        finest_skip: whether the finest scale, too, has a way past the coarser ones. Without, as in
            the paper, details must fit into the second scale's channels.
    """

    part: ClassVar[str] = "unet"

    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    context_channels: tuple[int, ...] = (64, 64, 128, 192)
    channels: int = 3
    outer_kernel: int = 7
    finest_skip: bool = False

    def __post_init__(self) -> None:
        sizes = (self.dim, self.channels, *self.dim_mults, *self.context_channels)
        if not self.dim_mults or not all(map(is_width, sizes)):
            raise ValueError("the network's sizes must be positive integers, and not huge")
        if len(self.dim_mults) > MAX_SCALES or not 1 <= self.outer_kernel <= 31:
            raise ValueError("the network has more scales, or a larger kernel, than any")
        if len(self.context_channels) > len(self.dim_mults):
            raise ValueError("the network has fewer scales than contexts")
        if not isinstance(self.outer_kernel, int) or self.outer_kernel % 2 != 1:
            raise ValueError(f"outer_kernel must be odd, not {self.outer_kernel!r}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each scale, finest first."""
        return tuple(self.dim * m for m in self.dim_mults)

    @property
    def multiple(self) -> int:
        """What the height and width of a picture must be multiples of."""
        return 2 ** (len(self.dim_mults) - 1)


class ChannelNorm(nn.Module):
    """Normalises the channels of every pixel: layer normalisation, with channels last in memory.

    Input of that memory format costs one pass; any other is brought into it first.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        pixels = F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, eps=1e-5)
        return pixels.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Convolve, normalise, activate, add the time's projection; once more; add the input.

    ``time_width`` 0 makes a block that is not told a time; ``kernel`` is the first convolution's.
    """

    def __init__(self, inputs: int, outputs: int, time_width: int = 0, kernel: int = 3) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.norm_in = ChannelNorm(outputs)
        self.time = nn.Linear(time_width, outputs) if time_width else None
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm_out = ChannelNorm(outputs)
        self.skip = Pointwise(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H, W)``, given a time embedding ``(B, w)``."""
        h = F.relu(self.norm_in(self.conv_in(x)), inplace=True)
        if self.time is not None and time is not None:
            h = plus(h, self.time(F.leaky_relu(time, _SLOPE))[:, :, None, None])
        h = F.relu(self.norm_out(self.conv_out(h)), inplace=True)
        return plus(h, self.skip(x))


class LinearAttention(nn.Module):
    """Pixels exchange a channels x channels summary of the picture; added to the input.

    Katharopoulos et al. 2020 with the keys' softmax over pixels (Shen et al. 2021), one head: the
    cost is linear in the number of pixels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.qkv = Pointwise(channels, 3 * channels, bias=False)
        self.out = Pointwise(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pixels = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(batch, -1, 3 * channels)
        query, key, value = pixels.split(channels, dim=2)  # each (B, H W, C)
        # The query's scale goes to the summary, which has fewer numbers.
        summary = (key.softmax(dim=1).transpose(1, 2) @ value) * channels**-0.5
        h = (query @ summary).view(batch, height, width, channels)
        return plus(self.out(h.permute(0, 3, 1, 2)), x)


class Scale(nn.Module):
    """What happens at one scale, before the resolution changes."""

    def __init__(self, inputs: int, outputs: int, time_width: int, kernel: int = 3) -> None:
        super().__init__()
        self.block_in = ResidualBlock(inputs, outputs, time_width, kernel)
        self.block_out = ResidualBlock(outputs, outputs, time_width)
        self.attention = LinearAttention(outputs)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.attention(self.block_out(self.block_in(x, time), time))


class UNet(nn.Module):
    """Predicts the picture, or the noise in it, from a noisy picture and its contexts."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        dim, widths, kernel = config.dim, config.widths, config.outer_kernel
        self.config = config
        self.time = nn.Sequential(nn.Linear(1, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        contexts = config.context_channels + (0,) * (len(widths) - len(config.context_channels))
        inputs = [n + c for n, c in zip((config.channels, *widths), contexts, strict=False)]
        self.down = nn.ModuleList(
            Scale(i, o, dim, kernel if scale == 0 else 3)
            for scale, (i, o) in enumerate(zip(inputs, widths, strict=True))
        )
        self.downsample = nn.ModuleList(
            nn.Conv2d(n, n, 3, stride=2, padding=1) for n in widths[:-1]
        )
        self.middle_in = ResidualBlock(widths[-1], widths[-1], dim)
        self.middle_attention = LinearAttention(widths[-1])
        self.middle_out = ResidualBlock(widths[-1], widths[-1], dim)
        coarsest_first = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(Scale(2 * wide, narrow, dim) for narrow, wide in coarsest_first)
        self.upsample = nn.ModuleList(
            nn.ConvTranspose2d(n, n, 4, stride=2, padding=1) for n, _ in coarsest_first
        )
        self.finest = ResidualBlock(2 * widths[0], widths[0], dim) if config.finest_skip else None
        self.norm_out = ChannelNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, time: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """Of x ``(B, channels, H, W)`` at times ``(B,)`` in [0, 1], the same shape.

        ``contexts[i]`` is ``(B, context_channels[i], H / 2**i, W / 2**i)``. H and W must be
        multiples of ``config.multiple``. Raises ValueError where a shape does not fit.
        """
        self._check(x, contexts)
        embedding = self.time(time.to(x.dtype)[:, None])
        h, skips = x, []
        for i, down in enumerate(self.down):
            if i < len(contexts):
                h = torch.cat([h, contexts[i].to(h.dtype)], dim=1)
                h = h.contiguous(memory_format=torch.channels_last)
            h = down(h, embedding)
            if i > 0:  # the way up joins the coarsest scale's too, but not the finest's
                skips.append(h)
            else:
                finest = h
            if i < len(self.downsample):
                h = self.downsample[i](h)
        h = self.middle_out(self.middle_attention(self.middle_in(h, embedding)), embedding)
        for up, upsample in zip(self.up, self.upsample, strict=True):
            h = upsample(up(torch.cat([h, skips.pop()], dim=1), embedding))
        if self.finest is not None:
            h = self.finest(torch.cat([h, finest], dim=1), embedding)
        return self.conv_out(self.norm_out(h))

    def _check(self, x: Tensor, contexts: Sequence[Tensor]) -> None:
        batch, channels, height, width = x.shape
        multiple = self.config.multiple
        if channels != self.config.channels or height % multiple or width % multiple:
            raise ValueError(
                f"the network takes {self.config.channels} channels, and heights and widths that "
                f"are multiples of {multiple}, not {tuple(x.shape)}"
            )
        expected = [
            (batch, n, height >> i, width >> i) for i, n in enumerate(self.config.context_channels)
        ]
        if (shapes := [tuple(c.shape) for c in contexts]) != expected:
            raise ValueError(f"the contexts' shapes must be {expected}, not {shapes}")

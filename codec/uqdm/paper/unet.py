"""The denoising network of variational diffusion models: a U-Net without downsampling.

Kingma et al. 2021 (VDM), as Yang et al. 2025 use it: it predicts the noise, and optionally a factor
for the prior's scale. Because of group normalisation and global attention, its weights work only at
the picture size of the training, here ``TILE`` x ``TILE`` pixels.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TILE = 64
_LARGEST_SIZE = 4096  # a limit, because a model file may say anything
_FOURIER_EXPONENTS = (5, 6)  # sin and cos of 2 pi 2^n z: the least significant bits of a pixel
_TIME_SCALE, _MAX_PERIOD = 1000.0, 10_000.0
_SOFTPLUS_ONE = math.log(math.expm1(1.0))  # its softplus is 1, the factor before training

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the network.

    Attributes:
        channels: width of every hidden layer.
        blocks: residual blocks on the way down; one more than that on the way up.
        groups: groups of each normalisation; must divide ``channels``.
        heads: attention heads; must divide ``channels``.
        attention_everywhere: attention after every block, instead of in the middle only.
        fourier_features: whether Fourier features are added to the input.
        predict_scale: whether the network also predicts the prior's scale factor.
        dropout: probability of dropping a hidden value in training.
    """

    channels: int = 32
    blocks: int = 1
    groups: int = 8
    heads: int = 1
    attention_everywhere: bool = False
    fourier_features: bool = True
    predict_scale: bool = True
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.channels, self.groups, self.heads)
        if max(*sizes, self.blocks) > _LARGEST_SIZE:
            raise ValueError(f"the network's sizes are at most {_LARGEST_SIZE}")
        if min(sizes) < 1 or self.blocks < 0 or not 0 <= self.dropout < 1:
            raise ValueError("the network's sizes must be positive, its dropout in [0, 1)")
        if self.channels % 2 or self.channels % self.groups or self.channels % self.heads:
            raise ValueError("the network's channels must be even and divide into groups and heads")


class GroupNorm(nn.GroupNorm):
    """In contiguous layout, because torch's kernel for channels_last is less precise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous())


class ResidualBlock(nn.Module):
    """Normalise, activate, convolve, add the time's projection; once more; add the input."""

    def __init__(self, inputs: int, config: UNetConfig) -> None:
        super().__init__()
        width = config.channels
        self.norm_in = GroupNorm(config.groups, inputs)
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        self.condition = _zeroed(nn.Linear(4 * width, width, bias=False))
        self.norm_out = GroupNorm(config.groups, width)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_out = _zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.skip = nn.Conv2d(inputs, width, 1) if inputs != width else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = h + self.condition(condition)[:, :, None, None]
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        return self.skip(x) + h


class AttentionBlock(nn.Module):
    """Every pixel attends to every pixel; added to the input."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.channels
        self.heads = config.heads
        self.norm = GroupNorm(config.groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = _zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, width, height, columns = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, width // self.heads, -1)
        # Each (B, heads, pixels, channels), made contiguous: otherwise attention uses a kernel that
        # is five times slower and holds all pixels x pixels weights.
        query, key, value = qkv.transpose(-1, -2).contiguous().unbind(1)
        h = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(h.transpose(-1, -2).reshape(batch, width, height, columns))


class Block(nn.Module):
    """A residual block with or without attention after it."""

    def __init__(self, inputs: int, config: UNetConfig, attention: bool) -> None:
        super().__init__()
        self.residual = ResidualBlock(inputs, config)
        self.attention = AttentionBlock(config) if attention else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.attention(self.residual(x, condition))


class UNet(nn.Module):
    """Predicts the noise in a latent, and a positive factor for the prior's scale.

    The factor is 1 everywhere if the configuration does not predict it.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width, everywhere = config.channels, config.attention_everywhere
        self.config = config
        self.time = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width), nn.SiLU()
        )
        inputs = 3 * (1 + 2 * len(_FOURIER_EXPONENTS) * config.fourier_features)
        self.conv_in = nn.Conv2d(inputs, width, 3, padding=1)
        self.down = nn.ModuleList(Block(width, config, everywhere) for _ in range(config.blocks))
        self.middle_in = Block(width, config, attention=True)
        self.middle_out = Block(width, config, attention=False)
        self.up = nn.ModuleList(
            Block(2 * width, config, everywhere) for _ in range(config.blocks + 1)
        )
        self.norm_out = GroupNorm(config.groups, width)
        self.conv_out = _zeroed(nn.Conv2d(width, 3 * (1 + config.predict_scale), 3, padding=1))

    def forward(self, z: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Noise and scale factor, both ``(B, 3, H, W)``, of latents z at times ``(B,)`` in [0, 1].

        H and W are 64 in training and in use, but the code allows others.
        """
        condition = self.time(time_embedding(time, self.config.channels))
        h = self.conv_in(fourier_features(z) if self.config.fourier_features else z)
        skips = [h]
        for down in self.down:
            h = down(h, condition)
            skips.append(h)
        h = self.middle_out(self.middle_in(h, condition), condition)
        for up in self.up:
            h = up(torch.cat([h, skips.pop()], dim=1), condition)
        h = self.conv_out(F.silu(self.norm_out(h)))
        noise = z + h[:, :3]
        if not self.config.predict_scale:
            return noise, torch.ones_like(noise)
        return noise, F.softplus(h[:, 3:] + _SOFTPLUS_ONE)


def time_embedding(time: Tensor, width: int) -> Tensor:
    """Sines and cosines ``(B, width)`` of times ``(B,)`` at geometrically spaced frequencies."""
    # In float64, because float32 has only four decimals for the largest phases.
    exponents = torch.linspace(
        0, -math.log10(_MAX_PERIOD), width // 2, dtype=torch.float64, device=time.device
    )
    phase = _TIME_SCALE * time.double()[:, None] * 10**exponents
    return torch.cat([phase.sin(), phase.cos()], dim=1).to(time.dtype)


def fourier_features(z: Tensor) -> Tensor:
    """z and its sines, then cosines, frequency by frequency: ``(B, 15, H, W)`` of (B, 3, H, W)."""
    turns = [2**n * z for n in _FOURIER_EXPONENTS]
    # Whole turns are removed first, which is exact. Otherwise rounding a large phase would add
    # noise, and other noise in float32 than in float64.
    phases = [2 * math.pi * (t - t.round()) for t in turns]
    return torch.cat([z, *(p.sin() for p in phases), *(p.cos() for p in phases)], dim=1)


def _zeroed(layer: Layer) -> Layer:
    """The layer with all parameters zero, so that a block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

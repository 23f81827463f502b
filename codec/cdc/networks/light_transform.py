"""The light transform: what a CPU trains and runs. Everything learned is at 1/8 resolution or less.

A picture goes through the fixed lapped transform of ``codec/numerics/lapped_transform.py`` to 192
bands at 1/8, each times a weight: what eyes see well counts for more in every squared error. From
there a learned linear map (2x2 blocks, so 768 numbers) gives the latent at 1/16; it starts as the
Karhunen-Loeve transform of the training pictures' weighted bands, so training begins at a good
transform codec.
Beside it runs a network of depthwise convolutions whose output starts at nothing. The synthesis
mirrors both, and its last 192 bands go through the inverse transform: that is the fast head.

One model serves several rates ("qualities"): each has its own gains on the latent (Cui et al.,
"Asymmetric gained deep image compression", CVPR 2021), its own gains and biases in every block, and
its own tables for the hyper-latent.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...numerics import lapped_transform, pointwise
from ...numerics.bounds import lower_bound
from ..latents.priors import MIN_SCALE, FactorizedPrior
from .config import Part

LEVELS = 127.5  # 8-bit levels in one unit of a picture in [-1, 1]
STEP = 32.0  # 8-bit levels in one unit of the latent, before the gains
_PATCH = 4 * lapped_transform.BANDS  # numbers in 2x2 positions at 1/8
_CAUTION = 0.1  # the Karhunen-Loeve maps learn this much more slowly than the rest


@dataclass(frozen=True)
class LightConfig(Part):
    """Widths and depths of the light transform.

    Attributes:
        rates: weights of the squared error (of weighted bands, in 8-bit levels) against bits per
            pixel, one for each quality, ascending.
        latents: channels of the latent at 1/16.
        fine, coarse: channels at 1/8 and at 1/16.
        analysis, synthesis: numbers of blocks at 1/8 and at 1/16.
        hyper: channels of the hyper-latent at 1/64 and of the networks around it.
        colours: what each of three colour components adds to red, green and blue, row by row.
        band_weights: what each of the 192 bands is multiplied by.
    """

    part: ClassVar[str] = "compressor"
    kind: ClassVar[str] = "light"

    rates: tuple[float, ...] = (0.0016, 0.0032, 0.0064, 0.0128, 0.0256)
    latents: int = 256
    fine: int = 160
    coarse: int = 224
    analysis: tuple[int, int] = (2, 3)
    synthesis: tuple[int, int] = (4, 4)
    hyper: int = 128
    colours: tuple[float, ...] = tuple(lapped_transform.dct_matrix(3).flatten().tolist())
    band_weights: tuple[float, ...] = field(default=(1.0,) * lapped_transform.BANDS)

    @property
    def synthesis_colours(self) -> np.ndarray:
        """What each colour component adds to red, green and blue, ``(3, 3) float64``."""
        return np.array(self.colours, np.float64).reshape(3, 3)

    @property
    def qualities(self) -> int:
        return len(self.rates)

    def __post_init__(self) -> None:
        depths = (*self.analysis, *self.synthesis)
        widths = (self.latents, self.hyper, self.fine, self.coarse)
        if not (
            all(type(n) is int and 0 <= n <= 64 for n in depths)
            and all(type(n) is int and 1 <= n <= 4096 for n in widths)
            and all(rate > 0 for rate in self.rates)
            and 1 <= len(self.rates) <= 64
        ):
            raise ValueError("a width, a depth or a rate is out of range")
        weights = self.band_weights
        if len(weights) != lapped_transform.BANDS or not 1e-6 < min(weights) <= max(weights) < 1e6:
            raise ValueError(f"band_weights are {lapped_transform.BANDS} positive numbers")
        finite = len(self.colours) == 9 and all(map(math.isfinite, self.colours))
        if not finite or abs(np.linalg.det(self.synthesis_colours)) < 1e-3:
            raise ValueError("colours are nine numbers, in three rows independent of each other")


class _Block(nn.Module):
    """``x + W2 relu(W1 depthwise5x5(gain x) + bias)``, gain and bias for each quality. NHWC."""

    def __init__(self, channels: int, qualities: int) -> None:
        super().__init__()
        hidden = 2 * channels
        self.gain = nn.Parameter(torch.ones(qualities, channels))
        self.depthwise = nn.Parameter(torch.randn(channels, 1, 5, 5) * 0.2)
        self.expand = nn.Parameter(torch.randn(hidden, channels) * (2 / channels) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(qualities, hidden))
        self.project = nn.Parameter(torch.randn(channels, hidden) * 0.2 * hidden**-0.5)

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        h = (x * self.gain[quality][:, None, None]).permute(0, 3, 1, 2)
        h = F.conv2d(h, self.depthwise, padding=2, groups=x.shape[-1]).permute(0, 2, 3, 1)
        h = pointwise.linear(h, self.expand, self.bias[quality], rectified=True)
        return pointwise.plus(pointwise.linear(h, self.project), x)


class _Blocks(nn.Module):
    def __init__(self, count: int, channels: int, qualities: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(channels, qualities) for _ in range(count))

    def forward(self, x: Tensor, quality: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, quality)
        return x


def _gather(x: Tensor) -> Tensor:
    """``(B, H, W, C)`` to ``(B, H/2, W/2, 4 C)``: 2x2 neighbours side by side."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(2, 3)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def _scatter(x: Tensor) -> Tensor:
    """The inverse of ``_gather``."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).transpose(2, 3).reshape(b, 2 * h, 2 * w, c // 4)


def _asinh(y: Tensor) -> Tensor:
    """``torch.asinh``, which is several times slower on a CPU."""
    square = y.square()
    return torch.log1p(y.abs() + square / (1 + (1 + square).sqrt())).copysign(y)


def _linear(inputs: int, outputs: int, scale: float = 1.0) -> nn.Linear:
    layer = pointwise.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=scale * inputs**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


class LightCompressor(nn.Module):
    """Analysis, hyper-analysis, priors, synthesis with the fast head, contexts for the U-Net.

    Every method takes ``quality (B,) int64``: which of the model's rates each picture is coded at.
    """

    band_weights: Tensor
    band_scale: Tensor
    basis: Tensor

    def __init__(self, config: LightConfig) -> None:
        super().__init__()
        self.config = config
        q, m, fine, coarse = config.qualities, config.latents, config.fine, config.coarse
        weights = torch.tensor(config.band_weights)
        self.register_buffer("band_weights", weights, persistent=False)  # the configuration's
        self._colours = config.synthesis_colours
        self._components = np.linalg.inv(self._colours.T)  # what each is made of
        self.register_buffer("band_scale", torch.ones(lapped_transform.BANDS))
        self.register_buffer("basis", torch.eye(m, _PATCH))  # rows: the Karhunen-Loeve transform
        self.analysis_map = nn.Parameter(torch.zeros(m, _PATCH))
        self.synthesis_map = nn.Parameter(torch.zeros(m, _PATCH))
        # At high rates the step of least loss, squared, is 18 / (rate ln 2).
        steps = [(18 / (rate * math.log(2))) ** 0.5 for rate in config.rates]
        log_gains = torch.tensor([math.log(STEP / step) for step in steps])
        self.gain = nn.Parameter(log_gains[:, None].repeat(1, m))
        self.inverse_gain = nn.Parameter(-log_gains[:, None].repeat(1, m))
        self.stem = _linear(lapped_transform.BANDS, fine)
        self.analysis_fine = _Blocks(config.analysis[0], fine, q)
        self.down = _linear(4 * fine, coarse)
        self.analysis_coarse = _Blocks(config.analysis[1], coarse, q)
        self.to_latent = _linear(coarse, m, 0.02)
        self.from_latent = _linear(m, coarse, 0.2)
        self.synthesis_coarse = _Blocks(config.synthesis[1], coarse, q)
        self.up = _linear(coarse, 4 * fine)
        self.bands_in = _linear(lapped_transform.BANDS, fine, 0.2)
        self.synthesis_fine = _Blocks(config.synthesis[0], fine, q)
        self.fast_head = _linear(fine, lapped_transform.BANDS, 0.02)
        h = config.hyper
        self.hyper_encoder = nn.Sequential(
            nn.Conv2d(m, h, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(h, h, 5, stride=2, padding=2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(h, h, 5, stride=2, padding=2),
        )
        last = nn.Conv2d(h, 2 * m, 3, padding=1)
        nn.init.normal_(last.weight, std=0.1 * (9 * h) ** -0.5)
        self.hyper_decoder = nn.Sequential(
            nn.ConvTranspose2d(h, h, 5, stride=2, padding=2, output_padding=1),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(h, h, 5, stride=2, padding=2, output_padding=1),
            nn.LeakyReLU(0.2),
            last,
        )
        self.hyper_bias = nn.Parameter(torch.zeros(q, 2 * m))
        self.priors = nn.ModuleList(FactorizedPrior(h) for _ in range(q))

    @torch.no_grad()
    def start_from_statistics(self, crops: Iterable[Tensor]) -> None:
        """Set scales and the Karhunen-Loeve basis from pictures ``(B, 3, H, W)`` in [-1, 1]."""
        total = torch.zeros(_PATCH, _PATCH, dtype=torch.float64)
        count = 0
        for x in crops:
            rows = _gather(self._bands(x)).flatten(0, 2).double()
            total += rows.T @ rows
            count += len(rows)
        covariance = total / count
        variance, vectors = torch.linalg.eigh(covariance)
        chosen = vectors[:, -self.config.latents :].flip(1)
        self.basis.copy_(chosen.T)
        self.band_scale.copy_(covariance.diagonal().view(4, -1).mean(0).sqrt().clamp_min(0.05))
        spread = 0.5 * variance[-self.config.latents :].flip(0).clamp_min(1e-4).log()
        self.hyper_bias[:, self.config.latents :] = spread[None] + self.gain - 0.5

    def _bands(self, x: Tensor) -> Tensor:
        """Weighted bands ``(B, H/8, W/8, 192)`` in units of STEP."""
        bands = lapped_transform.forward(x * (LEVELS / STEP), self._components)
        return bands.permute(0, 2, 3, 1) * self.band_weights

    def _picture(self, bands: Tensor) -> Tensor:
        """The inverse of ``_bands``."""
        bands = (bands / self.band_weights).permute(0, 3, 1, 2)
        return lapped_transform.inverse(bands, self._colours) * (STEP / LEVELS)

    def error(self, picture: Tensor, x: Tensor) -> Tensor:
        """Squared error ``(B,)`` of weighted bands, mean over bands, of pictures in [-1, 1]."""
        with torch.autocast(x.device.type, enabled=False):
            wrong = self._bands(picture.float() - x.float())
        return wrong.square().mean((1, 2, 3)) * (STEP / LEVELS) ** 2

    def analysis(self, x: Tensor, quality: Tensor) -> Tensor:
        """Latent ``(B, M, H/16, W/16)`` of pictures ``(B, 3, H, W)`` in [-1, 1]."""
        with torch.autocast(x.device.type, enabled=False):  # large numbers with small steps
            b = self._bands(x.float())
            linear = pointwise.linear(_gather(b), self.basis + _CAUTION * self.analysis_map)
        # Scales multiply the weights, which are fewer than the bands.
        stem = pointwise.linear(b, self.stem.weight / self.band_scale, self.stem.bias)
        h: Tensor = self.analysis_fine(stem, quality)
        h = self.analysis_coarse(self.down(_gather(h)), quality)
        y = linear + self.to_latent(h)
        return (y * self.gain[quality].exp()[:, None, None]).permute(0, 3, 1, 2)

    def hyper_analysis(self, y: Tensor) -> Tensor:
        """Hyper-latent ``(B, C, H/64, W/64)`` of a latent; its range is compressed first."""
        z: Tensor = self.hyper_encoder(_asinh(y))
        return z

    def hyper_synthesis(self, z: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale ``(B, M, H/16, W/16)`` each, the scale at least 0.1."""
        out = self.hyper_decoder(z) + self.hyper_bias[quality][:, :, None, None]
        mean, log_scale = out.chunk(2, 1)
        return mean, lower_bound(log_scale, math.log(MIN_SCALE)).exp()

    def synthesis(self, y: Tensor, quality: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The fast head's picture ``(B, 3, H, W)``, unclipped, and features at 1/8 and 1/16."""
        y = y.permute(0, 2, 3, 1) * self.inverse_gain[quality].exp()[:, None, None]
        with torch.autocast(y.device.type, enabled=False):
            linear = _scatter(pointwise.linear(y, (self.basis + _CAUTION * self.synthesis_map).T))
        coarse = self.synthesis_coarse(self.from_latent(y), quality)
        bands_in = self.bands_in.weight / self.band_scale
        h = pointwise.linear(linear, bands_in, self.bands_in.bias)
        h = pointwise.plus(h, _scatter(self.up(coarse)))
        h = self.synthesis_fine(h, quality)
        with torch.autocast(y.device.type, enabled=False):
            head = self.fast_head.weight * self.band_scale[:, None]
            bias = self.fast_head.bias * self.band_scale
            out = pointwise.plus(pointwise.linear(h.float(), head, bias), linear)
            picture = self._picture(out)
        return picture, [h.permute(0, 3, 1, 2), coarse.permute(0, 3, 1, 2)]

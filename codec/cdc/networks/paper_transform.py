"""The paper's transform: pictures to latents and hyper-latents, and latents to contexts.

    x --analysis--> y --hyper_analysis--> z         1/16 and 1/64 of the picture's size
    mean, scale of y <--hyper_synthesis-- z_hat
    contexts for the U-Net <--context-- y_hat       at 1, 1/2, 1/4, 1/8

Yang & Mandt 2023, appendix; the hyperprior is that of Minnen et al. 2018 without its
autoregressive part.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...numerics.bounds import lower_bound
from ..latents.priors import MIN_SCALE, FactorizedPrior
from .config import MAX_SCALES, Part, is_width
from .unet import ResidualBlock


@dataclass(frozen=True)
class PaperConfig(Part):
    """Widths of the transform; the defaults are the paper's, parameterised for x.

    Attributes:
        dim: unit of the widths.
        dim_mults: width of each stage of the analysis, in units of ``dim``; each halves the size.
        hyper_dims_mults: widths of the hyper-analysis, whose stages after the first halve the size.
        context_dim_mults: widths of the contexts' decoder, finest first; the last is the latent's.
        context_channels: channels of the finest context.
        fast_head: whether a convolution of the finest context also gives a picture at once.
    """

    part: ClassVar[str] = "compressor"
    kind: ClassVar[str] = "paper"

    dim: int = 64
    dim_mults: tuple[int, ...] = (1, 2, 3, 4)
    hyper_dims_mults: tuple[int, ...] = (4, 4, 4)
    context_dim_mults: tuple[int, ...] = (1, 2, 3, 4)
    context_channels: int = 64
    fast_head: bool = False

    def __post_init__(self) -> None:
        multiples = (self.dim_mults, self.hyper_dims_mults, self.context_dim_mults)
        sizes = (self.dim, self.context_channels, *(m for ms in multiples for m in ms))
        if not all(multiples) or not all(map(is_width, sizes)):
            raise ValueError("the transform's sizes must be positive integers, and not huge")
        if max(map(len, multiples)) > MAX_SCALES:
            raise ValueError("the transform has more stages than any")
        if len(self.dim_mults) != len(self.context_dim_mults):
            raise ValueError("as many stages must enlarge as reduce the picture")
        if self.dim_mults[-1] != self.context_dim_mults[-1]:
            raise ValueError("the last entries of dim_mults and context_dim_mults must agree")

    @property
    def latent_channels(self) -> int:
        return self.dim * self.dim_mults[-1]

    @property
    def hyper_channels(self) -> int:
        return self.dim * self.hyper_dims_mults[-1]

    @property
    def latent_stride(self) -> int:
        """Pixels to one position of the latent, each way."""
        return 2 ** len(self.dim_mults)

    @property
    def multiple(self) -> int:
        """What the height and width of a picture must be multiples of."""
        return self.latent_stride * 2 ** (len(self.hyper_dims_mults) - 1)

    @property
    def unet_contexts(self) -> tuple[int, ...]:
        """Channels of each context, finest first, as ``UNetConfig.context_channels`` has them."""
        return (self.context_channels, *(self.dim * m for m in self.context_dim_mults[:-1]))


class PaperCompressor(nn.Module):
    """Analysis, hyperprior and context decoder; quantisation and coding are the caller's.

    Shapes below are for the paper's four and three stages: latents at 1/16, hyper-latents at 1/64.
    H and W must be multiples of ``config.multiple`` (64). Methods take a quality, as the light
    transform's do, and there is but one.
    """

    hyper_bias: Tensor

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.config = config
        widths = [3, *(config.dim * m for m in config.dim_mults)]
        self.encoder = nn.Sequential(
            *(_reduce(i, o, kernel=3 if n else 7) for n, (i, o) in enumerate(pairwise(widths)))
        )
        coarsest_first = [*reversed(config.context_dim_mults)]
        widths = [*(config.dim * m for m in coarsest_first), config.context_channels]
        stages = list(pairwise(widths))
        self.decoder = nn.ModuleList(_enlarge(i, o) for i, o in stages[:-1])
        self.decoder.append(_enlarge(*stages[-1], narrow=False))
        hyper = [config.dim * m for m in config.hyper_dims_mults]
        self.hyper_encoder = _hyper_encoder([config.latent_channels, *hyper])
        self.hyper_decoder = _hyper_decoder([*reversed(hyper), 2 * config.latent_channels])
        self.prior = FactorizedPrior(config.hyper_channels)
        channels = config.context_channels
        self.fast_head = nn.Conv2d(channels, 3, 3, padding=1) if config.fast_head else None
        self.register_buffer(
            "hyper_bias", torch.zeros(1, 2 * config.latent_channels), persistent=False
        )

    def analysis(self, x: Tensor, _: Tensor | None = None) -> Tensor:
        """Latent y ``(B, 4 d, H/16, W/16)`` of pictures ``(B, 3, H, W)`` in [-1, 1]."""
        y: Tensor = self.encoder(x)
        return y

    def hyper_analysis(self, y: Tensor) -> Tensor:
        """Hyper-latent z ``(B, C, H/64, W/64)`` of a latent."""
        z: Tensor = self.hyper_encoder(y)
        return z

    def hyper_synthesis(self, z: Tensor, _: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean, and scale of at least 0.1, of the latent: each ``(B, 4 d, H/16, W/16)``."""
        mean, scale = self.hyper_decoder(z).chunk(2, dim=1)
        return mean, lower_bound(scale, MIN_SCALE)

    def context(self, y: Tensor) -> list[Tensor]:
        """Contexts of a latent, finest first: ``(B, config.unet_contexts[i], H / 2**i, ...)``."""
        contexts = []
        for stage in self.decoder:
            y = stage(y)
            contexts.append(y)
        return contexts[::-1]

    def synthesis(self, y: Tensor, _: Tensor | None = None) -> tuple[Tensor | None, list[Tensor]]:
        """The fast head's picture ``(B, 3, H, W)``, unclipped, if it has one, and the contexts."""
        contexts = self.context(y)
        return None if self.fast_head is None else self.fast_head(contexts[0]), contexts


def rounded(values: Tensor, offset: Tensor) -> Tensor:
    """``values`` rounded to integers away from ``offset``; gradients pass as if not rounded."""
    difference = values - offset
    return difference.round().detach() + (difference - difference.detach()) + offset


def _reduce(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """To half the size."""
    return nn.Sequential(
        ResidualBlock(inputs, outputs, kernel=kernel),
        nn.Conv2d(outputs, outputs, 3, stride=2, padding=1),
    )


def _enlarge(inputs: int, outputs: int, narrow: bool = True) -> nn.Sequential:
    """To twice the size. The block changes the width if ``narrow``, else the convolution."""
    inner = outputs if narrow else inputs
    return nn.Sequential(
        ResidualBlock(inputs, inner),
        nn.ConvTranspose2d(inner, outputs, 4, stride=2, padding=1),
    )


def _hyper_encoder(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(widths[0], widths[1], 3, padding=1)]
    for inputs, outputs in pairwise(widths[1:]):
        layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv2d(inputs, outputs, 5, stride=2, padding=2))
    return nn.Sequential(*layers)


def _hyper_decoder(widths: list[int]) -> nn.Sequential:
    """Only convolutions and leaky ReLUs: what can also be computed in integers, exactly."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers.append(nn.ConvTranspose2d(inputs, outputs, 5, stride=2, padding=2, output_padding=1))
        layers.append(nn.LeakyReLU(0.2))
    layers.append(nn.Conv2d(widths[-2], widths[-1], 3, padding=1))
    return nn.Sequential(*layers)

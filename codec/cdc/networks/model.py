"""A whole CDC model under one face: the paper's networks, or the light ones, with a U-Net or not.

Pictures are ``(B, 3, H, W)`` in [-1, 1], with H and W multiples of ``MULTIPLE``. Every method takes
``quality (B,) int64``: at which of the model's rates each picture is coded (the paper's models have
one). Quantisation and coding are the caller's: codec/cdc/scheme.py, codec/cdc/objective.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InvalidModelError
from ...numerics.pointwise import Pointwise
from ..latents.priors import FactorizedPrior
from .diffusion import Diffusion
from .light_transform import LightCompressor, LightConfig
from .paper_transform import PaperCompressor, PaperConfig
from .unet import UNet, UNetConfig

MULTIPLE = 64  # the hyper-latent has one position in so many pixels
LATENT_STRIDE = 16  # and the latent in so many
# Deviation of the fast picture from the original, 32 dB. Light models are trained with it: it can
# no more change than their weights.
_FAST_ERROR = 0.05
_LIGHT_PATCH = 4  # pixels on a side of one position of the light U-Net


@dataclass(frozen=True)
class Synthesis:
    """What a latent says about the picture.

    Attributes:
        picture: the fast head's, ``(B, 3, H, W)``, unclipped; None if the model has no such head.
        features: for the U-Net, finest first.
    """

    picture: Tensor | None
    features: tuple[Tensor, ...]


class CDCModel(nn.Module):
    """Base of both kinds. ``build_model`` makes one of a configuration.

    Attributes:
        qualities: how many rates the model has.
        log_scale: whether the hyper-decoder puts out the logarithm of the scale.
        analysis_halo, synthesis_halo: pixels around a tile that its result depends on.
    """

    log_scale: ClassVar[bool]
    analysis_halo: ClassVar[int]
    synthesis_halo: ClassVar[int]
    qualities: int
    latents: int
    hyper_channels: int
    has_fast_head: bool
    compressor: PaperCompressor | LightCompressor
    diffusion: Diffusion | None
    unet: nn.Module | None

    def analysis(self, x: Tensor, quality: Tensor) -> Tensor:
        """Latent ``(B, M, H/16, W/16)``."""
        return self.compressor.analysis(x, quality)

    def hyper_analysis(self, y: Tensor) -> Tensor:
        """Hyper-latent ``(B, C, H/64, W/64)`` of a latent."""
        return self.compressor.hyper_analysis(y)

    def hyper_synthesis(self, z: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale of the latent, ``(B, M, H/16, W/16)`` each, scale at least 0.1."""
        return self.compressor.hyper_synthesis(z, quality)

    def hyper_mean(self, z: Tensor, quality: Tensor) -> Tensor:
        """The mean of ``hyper_synthesis`` alone, up to the last bits of floats."""
        *others, last = self.hyper_decoder
        assert isinstance(last, nn.Conv2d)
        for layer in others:
            z = layer(z)
        m = self.latents
        bias = None if last.bias is None else last.bias[:m]
        mean = F.conv2d(z, last.weight[:m], bias, padding=last.padding)
        added = torch.stack([self.hyper_bias(int(q))[:m] for q in quality])
        return mean + added.to(mean.device)[:, :, None, None]

    def hyper_bias(self, quality: int) -> Tensor:
        """What is added to the hyper-decoder's output at a quality, ``(2 M,)``."""
        return self.compressor.hyper_bias[quality]

    def prior(self, quality: int) -> FactorizedPrior:
        """The density of the hyper-latent at a quality."""
        raise NotImplementedError

    def synthesis(self, y: Tensor, quality: Tensor) -> Synthesis:
        """The fast picture and the contexts of a quantised latent."""
        picture, features = self.compressor.synthesis(y, quality)
        return Synthesis(picture, tuple(features))

    def error(self, picture: Tensor, x: Tensor) -> Tensor:
        """Squared error ``(B,)`` of pictures, as the model's latents are made to keep it small."""
        return (picture.float() - x).square().mean((1, 2, 3))

    def denoise(self, x: Tensor, time: Tensor, seen: Synthesis) -> Tensor:
        """The U-Net's output for a noisy picture ``x`` at times ``(B,)`` in [0, 1]."""
        raise NotImplementedError

    @property
    def hyper_decoder(self) -> nn.Sequential:
        """The network behind ``hyper_synthesis``."""
        return self.compressor.hyper_decoder

    def medians(self, quality: Tensor) -> Tensor:
        """What hyper-latents are rounded relative to, ``(B, C, 1, 1)``."""
        rows = [self.prior(int(q)).medians for q in quality]
        return torch.stack(rows)[:, :, None, None]

    def hyper_likelihood(self, z: Tensor, quality: Tensor) -> Tensor:
        """Mass of the unit bins around a hyper-latent, its shape."""
        out = torch.empty_like(z)
        for q in quality.unique().tolist():
            chosen = quality == q
            out[chosen] = self.prior(q).likelihood(z[chosen])
        return out


class PaperModel(CDCModel):
    """The networks of Yang & Mandt 2023, for their checkpoints and for training on GPUs."""

    compressor: PaperCompressor
    log_scale = False
    analysis_halo = 64
    synthesis_halo = 128

    def __init__(
        self, compressor: PaperConfig, unet: UNetConfig | None, diffusion: Diffusion | None
    ) -> None:
        super().__init__()
        if (compressor.latent_stride, compressor.multiple) != (LATENT_STRIDE, MULTIPLE):
            raise InvalidModelError(
                f"streams hold latents at 1/{LATENT_STRIDE} and hyper-latents at 1/{MULTIPLE}, not "
                f"at 1/{compressor.latent_stride} and 1/{compressor.multiple}"
            )
        if unet is not None and unet.context_channels != compressor.unet_contexts:
            raise InvalidModelError(
                f"the U-Net takes contexts of {unet.context_channels} channels, the context "
                f"decoder gives {compressor.unet_contexts}"
            )
        self.compressor = PaperCompressor(compressor)
        self.unet = None if unet is None else UNet(unet)
        self.diffusion = diffusion
        self.qualities = 1
        self.latents = compressor.latent_channels
        self.hyper_channels = compressor.hyper_channels
        self.has_fast_head = compressor.fast_head

    def prior(self, quality: int) -> FactorizedPrior:
        return self.compressor.prior

    def denoise(self, x: Tensor, time: Tensor, seen: Synthesis) -> Tensor:
        assert self.unet is not None
        out: Tensor = self.unet(x, time, seen.features)
        return out


class LightDenoiser(nn.Module):
    """A U-Net on 4x4 patches that is shown the fast picture and the features behind it."""

    def __init__(self, unet: UNetConfig, features: Sequence[int]) -> None:
        super().__init__()
        first, *others = unet.context_channels
        if first != unet.channels or len(others) != len(features):
            raise InvalidModelError(f"the light U-Net needs {1 + len(features)} contexts")
        self.project = nn.ModuleList(Pointwise(i, o) for i, o in zip(features, others, strict=True))
        self.unet = UNet(unet)

    def forward(
        self, x: Tensor, time: Tensor, picture: Tensor, features: Sequence[Tensor]
    ) -> Tensor:
        patches = F.pixel_unshuffle(picture, _LIGHT_PATCH)
        contexts = [p(f) for p, f in zip(self.project, features, strict=True)]
        out = self.unet(F.pixel_unshuffle(x, _LIGHT_PATCH), time, [patches, *contexts])
        return F.pixel_shuffle(out, _LIGHT_PATCH)


class LightModel(CDCModel):
    """The light transform (light_transform.py), and a U-Net that adds to its picture."""

    compressor: LightCompressor
    log_scale = True
    analysis_halo = 192
    synthesis_halo = 256

    def __init__(
        self, compressor: LightConfig, unet: UNetConfig | None, diffusion: Diffusion | None
    ) -> None:
        super().__init__()
        self.compressor = LightCompressor(compressor)
        features = (compressor.fine, compressor.coarse)
        self.unet = None if unet is None else LightDenoiser(unet, features)
        self.diffusion = diffusion
        if self.unet is not None and diffusion is not None and diffusion.parameterization == "x":
            # A new one adds nothing: training begins at the linear estimate.
            last = self.unet.unet.conv_out
            nn.init.zeros_(last.weight)
            if last.bias is not None:
                nn.init.zeros_(last.bias)
        self.qualities = compressor.qualities
        self.latents, self.hyper_channels = compressor.latents, compressor.hyper
        self.has_fast_head = True

    def prior(self, quality: int) -> FactorizedPrior:
        prior = self.compressor.priors[quality]
        assert isinstance(prior, FactorizedPrior)
        return prior

    def error(self, picture: Tensor, x: Tensor) -> Tensor:
        return self.compressor.error(picture, x)

    def denoise(self, x: Tensor, time: Tensor, seen: Synthesis) -> Tensor:
        assert self.unet is not None
        assert seen.picture is not None
        out: Tensor = self.unet(x, time, seen.picture, seen.features)
        if self.diffusion is not None and self.diffusion.parameterization == "x":
            # The U-Net adds to the best linear estimate from the noisy and the fast picture.
            of_x, of_picture = self.diffusion.shrinkage(time, _FAST_ERROR)
            linear = of_x[:, None, None, None] * x + of_picture[:, None, None, None] * seen.picture
            out = linear + out
        return out


def build_model(config: Mapping[str, Any]) -> CDCModel:
    """A model with new weights. Raises InvalidModelError for a configuration that makes none.

    ``config`` is a model file's: ``compressor`` (with its ``kind``), and ``unet`` and ``diffusion``
    or neither.
    """
    try:
        kind = config["compressor"].get("kind")
        given = config.get("unet"), config.get("diffusion")
    except (KeyError, AttributeError) as error:
        raise InvalidModelError(f"not a CDC configuration: {error!r}") from error
    if (given[0] is None) != (given[1] is None):
        raise InvalidModelError("a CDC model has both a unet and a diffusion, or neither")
    unet = None if given[0] is None else UNetConfig.from_dict(given[0])
    diffusion = None if given[1] is None else Diffusion.from_dict(given[1])
    if kind == "light":
        return LightModel(LightConfig.from_dict(config["compressor"]), unet, diffusion)
    if kind == "paper":
        return PaperModel(PaperConfig.from_dict(config["compressor"]), unet, diffusion)
    raise InvalidModelError(f"compressor: kind {kind!r} is neither light nor paper")

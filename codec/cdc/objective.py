"""What CDC is trained for: the paper's joint loss, or in two stages, transform first.

Joint (Yang & Mandt 2023, eq. 8): ``rate_weight * bpp + (1 - rho) * diffusion + rho * perceptual``.
The rate is that of latents with uniform noise; the decoder sees rounded ones, whose gradient passes
straight through (Minnen & Singh 2020, "Channel-wise autoregressive entropy models").

In two stages: ``transform`` trains everything but the U-Net for rate and squared error of the fast
head, which ``rho`` mixes with the perceptual loss of its picture; ``diffusion`` then trains the
U-Net on latents that stay as they are, which is several times cheaper a step and gives streams that
both decoders read.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..perception.features import Features, feature_distance
from ..perception.lpips import LPIPS
from ..perception.structure import ms_ssim_loss
from .latents.priors import gaussian_likelihood
from .networks.light_transform import LEVELS
from .networks.model import MULTIPLE, CDCModel, LightModel, Synthesis
from .networks.paper_transform import rounded

_PERCEPTUAL_UNIT = 0.08  # of 1 - MS-SSIM in squared error: both are of like size at usual rates
_FEATURE_UNIT = 0.15  # of a squared distance of features in 1 - MS-SSIM, likewise
_MEDIAN_WEIGHT = 1e-3  # too little to count in the gradient's norm, which is clipped

Stage = Literal["transform", "diffusion", "joint"]
Perceptual = Literal["ms-ssim", "features", "lpips"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the loss."""

    stage: Stage = field(
        default="transform",
        metadata={
            "help": "transform: rate and squared error of the fast head; diffusion: the U-Net on "
            "frozen latents; joint: the paper's loss"
        },
    )
    rate_weight: float = field(
        default=0.01,
        metadata={"help": "lambda: weight of the bits per pixel; light models have their own"},
    )
    rho: float = field(
        default=0.0, metadata={"help": "weight of the perceptual loss, 0 (distortion) to 1"}
    )
    perceptual: Perceptual = field(
        default="ms-ssim",
        metadata={
            "help": "the perceptual loss; features: half MS-SSIM, half features of a network for "
            "things (extra perceptual); lpips needs --lpips-weights"
        },
    )
    lpips_weights: Path | None = field(
        default=None,
        metadata={"help": "file of LPIPS-VGG weights, or an authors' checkpoint with rho > 0"},
    )
    parameterization: Literal["x", "eps"] | None = field(
        default=None, metadata={"help": "what the U-Net of a new model predicts"}
    )
    fast_weight: float = field(
        default=1.0, metadata={"help": "weight of the fast head's squared error in the joint loss"}
    )
    least_weight: float = field(
        default=0.0,
        metadata={
            "help": "of a noise level in the diffusion's loss; min(SNR, 5), the paper's weight, "
            "leaves the first of few steps nearly untrained"
        },
    )
    truncate: float = field(
        default=0.0,
        metadata={"help": "share of pictures whose latents the decoder sees cut, as in a prefix"},
    )
    unet_dim: int | None = field(
        default=None,
        metadata={"help": "width unit of the U-Net that a model without one is given"},
    )

    def __post_init__(self) -> None:
        if not 0 <= self.rho <= 1:
            raise ValueError(f"--rho must be 0 to 1, got {self.rho}")
        if not 0 <= self.truncate <= 1:
            raise ValueError(f"--truncate must be 0 to 1, got {self.truncate}")
        if not self.rate_weight > 0:
            raise ValueError(f"--rate-weight must be positive, got {self.rate_weight}")
        if self.rho and self.perceptual == "lpips" and self.lpips_weights is None:
            raise ValueError("--perceptual lpips needs --lpips-weights FILE")


class CDCObjective(nn.Module):
    """Loss and figures of a model and pictures (see ``codec.training.loop.Objective``)."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.lpips: LPIPS | None = None
        self.features: Features | None = None
        if config.rho and config.perceptual == "features":
            self.features = Features()
        if config.rho and config.perceptual == "lpips" and config.lpips_weights:
            self.lpips = LPIPS.from_file(config.lpips_weights)

    def forward(
        self, model: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model, CDCModel)
        stage = self.config.stage
        generator = torch.Generator(images.device).manual_seed(int(rng.integers(1 << 62)))
        x = _padded(images.float() / LEVELS - 1)
        # Every batch spreads over the qualities: their gradients are of very different sizes.
        spread = rng.permutation(np.arange(max(len(x), model.qualities)) % model.qualities)
        quality = torch.from_numpy(spread[: len(x)]).to(x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            with torch.set_grad_enabled(torch.is_grad_enabled() and stage != "diffusion"):
                cut = torch.rand(len(x), generator=generator, device=x.device)
                cut = cut < self.config.truncate
                bpp, seen, step = _compress(model, x, quality, generator, cut)
            loss = torch.zeros(len(x), device=x.device)
            figures = {"bpp": bpp}
            # What is cut teaches the decoder alone: its rate, without its error, would mislead.
            bpp = bpp * ~cut
            if seen.picture is not None:
                error = model.error(seen.picture, x)
                figures["error"] = -10 * torch.log10(error / 4)
            # A latent that is cut is one of a lower rate, whose squared step is in proportion.
            weight = self._rate_weight(model, quality) * step.square()
            if stage == "transform":
                if self.config.rho and seen.picture is not None:
                    distance = self._perceptual(seen.picture, x)
                    figures["perceptual"] = distance
                    rho = self.config.rho
                    error = (1 - rho) * error + rho * _PERCEPTUAL_UNIT * distance
                # As weights of the error, so that all rates speak equally loud.
                loss = bpp + error / weight
            else:
                if stage == "joint":
                    loss = weight * bpp
                    if seen.picture is not None:
                        loss = loss + self.config.fast_weight * error
                noisy, perceptual = self._diffusion(model, x, seen, generator)
                loss = loss + (1 - self.config.rho) * noisy + self.config.rho * perceptual
                figures["diffusion"] = noisy
                if self.config.rho:
                    figures["perceptual"] = perceptual
        figures["loss"] = loss
        total = loss.mean()
        if stage != "diffusion":
            # Moves the medians and nothing else; Adam makes steps of it whatever its weight.
            medians = [model.prior(q).median_loss() for q in range(model.qualities)]
            total = total + _MEDIAN_WEIGHT * torch.stack(medians).mean()
        return total, {name: float(value.detach().mean()) for name, value in figures.items()}

    def _rate_weight(self, model: CDCModel, quality: Tensor) -> Tensor:
        """Weight of a bit per pixel against the squared error of pictures in [-1, 1], ``(B,)``."""
        if isinstance(model, LightModel):
            rates = torch.tensor(model.compressor.config.rates, device=quality.device)
            return 1 / (rates[quality] * LEVELS**2)
        return torch.full(quality.shape, self.config.rate_weight, device=quality.device)

    def _diffusion(
        self, model: CDCModel, x: Tensor, seen: Synthesis, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The diffusion's loss and the perceptual one of the picture it predicts, ``(B,)``."""
        process = model.diffusion
        assert process is not None
        index = torch.randint(
            process.num_timesteps, (len(x),), generator=generator, device=x.device
        )
        noise = torch.randn(x.shape, generator=generator, device=x.device)
        loss, predicted = process.training_loss(
            lambda noisy, time: model.denoise(noisy, time, seen).float(),
            x,
            noise,
            index,
            self.config.least_weight,
        )
        if not self.config.rho:
            return loss, torch.zeros_like(loss)
        return loss, self._perceptual(predicted, x)

    def _perceptual(self, picture: Tensor, x: Tensor) -> Tensor:
        """Distance ``(B,)`` of pictures from the originals ``x``, by the chosen measure."""
        if self.lpips is not None:
            distance: Tensor = self.lpips(picture, x)
            return distance
        structure = ms_ssim_loss(picture, x)
        if self.features is None:
            return structure
        with torch.autocast(x.device.type, enabled=False):
            original, shown = (self.features((p.float() + 1) / 2) for p in (x, picture))
            return (structure + _FEATURE_UNIT * feature_distance(original, shown).square()) / 2


def _padded(x: Tensor) -> Tensor:
    """Pictures whose edges are repeated to multiples of 64."""
    rows, columns = (-side % MULTIPLE for side in x.shape[2:])
    return F.pad(x, (0, columns, 0, rows), mode="replicate") if rows or columns else x


def _noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.rand(x.shape, generator=generator, device=x.device) - 0.5


def _compress(
    model: CDCModel, x: Tensor, quality: Tensor, generator: torch.Generator, cut: Tensor
) -> tuple[Tensor, Synthesis, Tensor]:
    """Estimated bits per pixel, what the decoder makes of the rounded latents, and their steps.

    Where ``cut (B,) bool`` is true, the decoder sees them as in a prefix. Bits and steps are
    ``(B,)``; the step of what is not cut is 1.
    """
    y = model.analysis(x, quality).float()
    z = model.hyper_analysis(y).float()
    with torch.autocast(x.device.type, enabled=False):  # probabilities need every digit
        of_z = model.hyper_likelihood(_noisy(z, generator), quality)
        mean, scale = model.hyper_synthesis(rounded(z, model.medians(quality)), quality)
        of_y = gaussian_likelihood(_noisy(y, generator), mean, scale)
    bits = -torch.log2(of_z).sum((1, 2, 3)) - torch.log2(of_y).sum((1, 2, 3))
    bpp = bits / (x.shape[2] * x.shape[3])
    known, step = rounded(y, mean), torch.ones(len(x), device=x.device)
    if cut.any():
        residuals, coarse = _truncated((y - mean).detach(), scale.detach(), generator)
        known = torch.where(cut[:, None, None, None], mean.detach() + residuals, known)
        step = torch.where(cut, coarse, step)
    return bpp, model.synthesis(known, quality), step


def _truncated(r: Tensor, scale: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Residuals as a prefix of the layers gives them, roughly, and each picture's step ``(B,)``.

    The last trits are missing, a number that differs by picture, and one more where the scale is
    small. Only roughly, because the trees (trit_planes.py) are made after the training.
    """
    planes = torch.randint(0, 4, (len(r), 1, 1, 1), generator=generator, device=r.device)
    step = 3.0**planes
    small = 3.0 ** torch.empty_like(step).uniform_(-1.5, 0.5, generator=generator)
    own = torch.where(scale < small * step, 3 * step, step)
    return (r.round() / own).round() * own, step.flatten()

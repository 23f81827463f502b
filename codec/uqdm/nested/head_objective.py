"""What reconstruction heads are trained for, on states that the model's own encoder made.

``eyes``: SSIMULACRA2's sum, errors as masked by texture, and some squared error. A head that learns
for one measure alone gets worse by others. ``realistic``: distances of the features of a network
for things, at each place and as textures over several radii, beside the energies of bands; MS-SSIM
and the error of a small copy hold it to the picture.

Every term is divided by its own running mean at its level, so weights are shares of relative
improvements. To encode is dearer than a step: states are kept, and used many times. The first steps
of a head that draws look at no picture: they learn where means are wrong, at a tenth of the cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import StrataError
from ...perception.features import Features, unit
from ...perception.masked_error import masked_error
from ...perception.ssimulacra2 import ssimulacra2_sum
from ...perception.structure import ms_ssim_loss
from ...perception.textures import wasserstein_distortion
from .bands import to_bands, to_pictures
from .head import HeadNetwork
from .schedule import RATIO, SHIFT_UNIT
from .scheme import NestedScheme

Decoder = Literal["eyes", "realistic"]
# Shares of steps at each level, from the first on; levels beyond have the last one's.
_LEVELS = {"eyes": (1, 2, 3, 3, 2, 1), "realistic": (1, 2, 4, 5, 0.5, 0.25)}
_WEIGHTS: dict[str, dict[str, float]] = {
    "eyes": {"ssimulacra2": 1.0, "masked": 1.0, "error": 0.3},
    "realistic": {
        "features": 4.0,
        "textures": 0.4,
        "energies": 0.15,
        "structure": 0.5,
        "small": 0.3,
    },
}
_RADII = (1, 2, 4)  # places of a feature map
_BLOCKS = (1, 3)  # of blocks, for energies of bands
_LIKELIHOOD = 0.3  # weight of that of a head's expected errors
_PREPARING = 400  # steps that learn these alone
_LEAST_SIDE = 64
_LEAST_ERROR = 1e-3  # in intervals: half precision holds it
_EVERY = 8  # steps between two batches that are encoded, once enough states are kept
_MEMORY = 0.98  # of running means
_GROWTH = 1.0005  # of a running mean in one step, at most


@dataclass(frozen=True)
class Kept:
    """A batch of pictures, and what a decoder knows of them after each level.

    Attributes:
        images: ``(B, 3, H, W) uint8``.
        trunks, means: of each level from the first on, ``(B, h, w, channels) int8`` and
            ``(B, h, w, 192) int32`` in 1/32 of the last Delta.
        features: of the originals, of unit length, in half precision; empty where not needed.
    """

    images: Tensor
    trunks: list[Tensor]
    means: list[Tensor]
    features: list[Tensor]


class HeadObjective(nn.Module):
    """Loss and figures of a head (see ``codec.training.loop.Objective``).

    Args:
        scheme_on: gives the model's scheme on a device.
        kept: batches whose states are kept.
        prepared: the head has been trained before, so that no steps without pictures are needed.
    """

    size: Tensor
    steps: Tensor

    def __init__(
        self,
        scheme_on: Callable[[str | torch.device], NestedScheme],
        decoder: Decoder,
        kept: int,
        prepared: bool = False,
    ) -> None:
        super().__init__()
        self._scheme_on, self.scheme = scheme_on, scheme_on("cpu")
        self.decoder, self.most = decoder, kept
        self.weights = _WEIGHTS[decoder]
        levels = self.scheme.config.levels
        shares = np.array([*_LEVELS[decoder], *([_LEVELS[decoder][-1]] * levels)][:levels], float)
        self.shares = shares / shares.sum()
        self.features = Features() if "features" in self.weights else None
        self.register_buffer("size", torch.zeros(levels, len(self.weights)))
        steps = float(_PREPARING) if prepared else 0.0
        self.register_buffer("steps", torch.tensor(steps, dtype=torch.float64))
        self.kept: list[Kept] = []

    def forward(
        self, model: nn.Module, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(model, HeadNetwork)
        preparing = model.config.noise and float(self.steps) < _PREPARING
        self._keep(images, preparing)
        self.steps += 1
        if not float(model.scale[0, 0]):
            model.scale.copy_(self._usual_errors(self.kept[-1]))
        kept = self.kept[int(rng.integers(len(self.kept)))]
        level = 1 + int(rng.choice(len(self.shares), p=self.shares))
        chosen = torch.from_numpy(rng.permutation(len(kept.images))[: len(images)])
        chosen = chosen.to(kept.images.device)
        noise = None
        trunk, means = (x[level - 1][chosen] for x in (kept.trunks, kept.means))
        if model.config.noise:
            generator = torch.Generator(means.device).manual_seed(int(rng.integers(1 << 62)))
            uniform = torch.rand(means.shape, generator=generator, device=means.device)
            noise = (uniform - 0.5) * 12**0.5
        unit_of_level = float(SHIFT_UNIT * RATIO ** (self.scheme.config.levels - level))
        expected = means.float() / unit_of_level
        levels = torch.full((len(expected),), level, device=expected.device)
        moved, error = model.look(trunk, expected, noise, levels)
        images, features = kept.images[chosen], [f[chosen].float() for f in kept.features]
        surprise = torch.zeros((), device=moved.device)
        if error is not None:
            wrong = to_bands(images, self.scheme.config) * (SHIFT_UNIT / unit_of_level) - expected
            surprise = _surprise(wrong, error)
        if preparing:
            return surprise, {f"surprise_{level}": float(surprise.detach())}
        coefficients = (expected + moved) * (unit_of_level / SHIFT_UNIT)
        terms = self._terms(images, features, coefficients)
        values = torch.stack([terms[name].mean() for name in self.weights])
        mean = self.size[level - 1]
        with torch.no_grad():
            fresh = torch.where(mean == 0, values, mean)
            mixed = _MEMORY * fresh + (1 - _MEMORY) * values
            # A term that grows must not weigh less for it: training would run away.
            self.size[level - 1] = torch.minimum(mixed, fresh * _GROWTH)
        weights = torch.tensor(list(self.weights.values()), device=values.device)
        loss = (weights * values / self.size[level - 1].clone()).sum() + _LIKELIHOOD * surprise
        names = (f"{name}_{level}" for name in self.weights)
        return loss, dict(zip(names, values.detach().tolist(), strict=True))

    # -- states -----------------------------------------------------------------------------------

    def _keep(self, images: Tensor, preparing: bool) -> None:
        """Encode a batch of pictures and keep its states, now and then in place of the oldest."""
        full = len(self.kept) >= self.most and (preparing or int(self.steps) % _EVERY)
        if full or min(images.shape[2:]) < _LEAST_SIDE:
            if not self.kept:
                raise StrataError(f"heads learn from pictures of {_LEAST_SIDE} pixels a side")
            return
        self.kept.append(self._states(images))
        del self.kept[: len(self.kept) - self.most]

    @torch.no_grad()
    def _states(self, images: Tensor) -> Kept:
        if self.scheme.device != images.device:
            self.scheme = self._scheme_on(images.device)
        pictures = list(images.permute(0, 2, 3, 1).contiguous().cpu().numpy())
        # Copies: what is made in inference mode cannot be trained with.
        known = [(trunk.clone(), e.round().int()) for trunk, e in self.scheme.states(pictures)]
        features = []
        if self.features is not None:
            features = [unit(f).half() for f in self.features(images.float() / 255)]
        return Kept(images, [trunk for trunk, _ in known], [e for _, e in known], features)

    def _usual_errors(self, kept: Kept) -> Tensor:
        """Deviations of coefficients from their means, ``(levels, 192)`` in intervals."""
        config, rows = self.scheme.config, []
        bands = to_bands(kept.images, config)
        for level, means in enumerate(kept.means, start=1):
            error = bands - means / SHIFT_UNIT
            rows.append(error.square().mean((0, 1, 2)).sqrt() / RATIO ** (config.levels - level))
        return torch.stack(rows).clamp_min(_LEAST_ERROR)

    # -- the loss ---------------------------------------------------------------------------------

    def _terms(
        self, images: Tensor, originals: list[Tensor], coefficients: Tensor
    ) -> dict[str, Tensor]:
        """Distances ``(B,)`` by name, of pictures and of coefficients in last Deltas."""
        x = images.float() / 255
        free = ((to_pictures(coefficients, self.scheme.config) + 1) * 128 - 0.5) / 255
        # What leaves the range of pixels is clamped, but may come back.
        y = free + (free.clamp(0, 1) - free).detach()
        if self.features is None:
            return {
                "ssimulacra2": ssimulacra2_sum(x, y.clamp(0, 1)),
                "masked": masked_error(x, y.clamp(0, 1)),
                "error": (y - x).square().mean((1, 2, 3)),
            }
        shown = [unit(f) for f in self.features(y)]
        pairs = list(zip(originals, shown, strict=True))
        radii = [[r for r in _RADII if 2 * r < min(a.shape[2:])] for a, _ in pairs]
        small, small_shown = (F.avg_pool2d(p, 4) for p in (x, free))
        return {
            "features": _mean([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]),
            "textures": _mean(
                [wasserstein_distortion(a, b, r) for (a, b), r in zip(pairs, radii, strict=True)]
            ),
            "energies": self._energies(to_bands(images, self.scheme.config), coefficients),
            "structure": ms_ssim_loss(y * 2 - 1, x * 2 - 1),
            "small": (small - small_shown).abs().mean((1, 2, 3)),
        }

    def _energies(self, bands: Tensor, shown: Tensor) -> Tensor:
        """How unlike the energies of bands are around each block, ``(B,)``.

        Of deviations to the power .5, as eyes see contrasts by their ratios rather than by their
        differences.
        """
        total = []
        for radius in _BLOCKS:
            a, b = (_deviation(x.permute(0, 3, 1, 2), radius) for x in (bands, shown))
            total.append((a - b).square().mean((1, 2, 3)))
        return _mean(total)


def _surprise(wrong: Tensor, error: Tensor) -> Tensor:
    """Of what is wrong with means under Laplace distributions of the expected deviations.

    So a head learns from every coefficient where there is texture, and need not find it out by how
    pictures look.
    """
    scale = error / 2**0.5
    return (wrong.abs() / scale + scale.log()).mean()


def _deviation(x: Tensor, radius: int) -> Tensor:
    side = 2 * radius + 1
    mean = F.avg_pool2d(x * x, side, 1, radius, count_include_pad=False)
    return (mean + 0.05) ** 0.25


def _mean(values: list[Tensor]) -> Tensor:
    return torch.stack(values).mean(0)

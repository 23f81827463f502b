"""The trainable model with universal quantisation: network, schedule, likelihood and export."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...stream import dither
from . import diffusion
from .diffusion import PriorScale, Step
from .parameter_grid import Prior, pixel_grid, prior_grid
from .unet import UNet, UNetConfig
from .windows import to_tensor

Schedule = Literal["learned_linear", "fixed_linear"]

_KIND = {"codec": "uqdm", "quantizer": "universal", "domain": "pixels"}
_LARGEST_FACTOR = 2.0  # of the prior's scale; larger ones share tables
_LN2 = 0.6931471805599453


@dataclass(frozen=True)
class UniversalConfig:
    """The paper's choices.

    Attributes:
        steps: T; more than 5 make compression worse (section 5).
        prior: shape of g, before it is convolved with the uniform of one quantiser step.
        learned_prior_scale: whether the network predicts a factor for g's standard deviation.
        prior_scale: the deviation that is multiplied by it, see ``diffusion.step``.
        schedule: whether gamma's ends are learned; gamma is linear in between.
        fix_gamma_max: whether a learned schedule learns its end at t = 0 only.
        gamma_min, gamma_max: the ends before training, and for the network's time.
    """

    steps: int = 4
    prior: Prior = "logistic"
    learned_prior_scale: bool = True
    prior_scale: PriorScale = "forward_kernel"
    schedule: Schedule = "learned_linear"
    fix_gamma_max: bool = True
    gamma_min: float = -12.3
    gamma_max: float = 6.0
    network: UNetConfig = field(default_factory=UNetConfig)

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[object, ...]] = {
            "prior": ("logistic", "gaussian"),
            "prior_scale": ("forward_kernel", "posterior"),
            "schedule": ("learned_linear", "fixed_linear"),
            "learned_prior_scale": (self.network.predict_scale,),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {values}, not {getattr(self, name)!r}")
        if not 1 <= self.steps <= 60 or not -30 <= self.gamma_min < self.gamma_max <= 30:
            raise ValueError(
                "the schedule needs 1 to 60 steps and -30 <= gamma_min < gamma_max <= 30"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "UniversalConfig":
        """From a model file's JSON. Raises ValueError or TypeError for an invalid one."""
        values = dict(values)
        for key, kind in _KIND.items():
            if values.pop(key, kind) != kind:
                raise ValueError(f"{key} must be {kind!r} for this quantiser")
        predict = values.get("learned_prior_scale", True)
        network = UNetConfig(**values.pop("network", {}), predict_scale=predict)
        return cls(**values, network=network)

    def to_dict(self) -> dict[str, Any]:
        """The JSON for ``from_dict``."""
        values = _KIND | asdict(self)
        del values["network"]["predict_scale"]
        return values


class UniversalModel(nn.Module):
    """Network and schedule. ``gamma_0`` and ``gamma_1`` are gamma at t = 0 and at t = 1."""

    def __init__(self, config: UniversalConfig) -> None:
        super().__init__()
        self.config = config
        self.network = UNet(config.network)
        learned = config.schedule == "learned_linear"
        self.gamma_0 = nn.Parameter(torch.tensor(config.gamma_min), learned)
        self.gamma_1 = nn.Parameter(
            torch.tensor(config.gamma_max), learned and not config.fix_gamma_max
        )

    def constants(self, dtype: torch.dtype = torch.float32) -> Step:
        """Every step's constants, each field ``(T,)``."""
        config = self.config
        ends = torch.stack([self.gamma_0, self.gamma_1]).to(dtype)
        time_ends = (config.gamma_min, config.gamma_max)
        return diffusion.all_steps(ends, time_ends, config.steps, config.prior_scale)

    def forward(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Negative ELBO in bits per pixel of pictures ``(B, 3, 64, 64) uint8`` (UQDM eq. 4).

        Computes one random step of each picture and multiplies its cost by T, which is unbiased and
        T times cheaper than all steps. Metrics are in bits per pixel too: ``initial`` (z_1),
        ``steps``, ``pixels``, ``total``.
        """
        constants, steps = self.constants(), self.config.steps
        x = diffusion.from_pixels(images.float())
        chain = self._posterior_chain(constants, x, generator)
        batch = torch.arange(len(x), device=x.device)
        at = torch.randint(steps, batch.shape, generator=generator, device=x.device)
        bits = self._step_bits(constants, chain[at, batch], chain[at + 1, batch], at)
        costs = {"steps": steps * bits}
        costs["pixels"] = self._pixel_bits(constants, chain[-1], images)
        costs["initial"] = _initial_bits(constants, x)
        costs["total"] = costs["steps"] + costs["pixels"] + costs["initial"]
        metrics = {name: float(cost.detach()) for name, cost in costs.items()}
        return costs["total"], metrics

    def _posterior_chain(
        self, constants: Step, x: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Samples of z_1, ..., z_0 given x, ``(T + 1, B, 3, H, W)``. They need no network."""
        normal = torch.empty_like(x).normal_(generator=generator)
        chain = [constants.alpha_t[0] * x + constants.sigma_t[0] * normal]
        for i in range(self.config.steps):
            step = _take(constants, torch.tensor([i], device=x.device))
            uniform = torch.empty_like(x).uniform_(-0.5, 0.5, generator=generator)
            chain.append(diffusion.posterior_mean(step, chain[-1], x) + step.width * uniform)
        return torch.stack(chain)

    def _step_bits(self, constants: Step, z_t: Tensor, z_s: Tensor, at: Tensor) -> Tensor:
        """Mean bits per pixel of z_s ``(B, 3, H, W)`` given z_t, each at its step ``at (B,)``."""
        step = _take(constants, at)
        noise, factor = self.network(z_t, step.time.flatten())
        noise, factor = noise.float(), factor.float()  # likelihoods need float32, despite autocast
        x_hat = diffusion.predicted_x(step, z_t, noise)
        distance = (z_s - diffusion.posterior_mean(step, z_t, x_hat)) / step.width
        log_mass = LOG_MASS[self.config.prior](distance, factor * (step.scale / step.width))
        return -log_mass.sum() / (_LN2 * _pixels(z_t))

    def _pixel_bits(self, constants: Step, z_0: Tensor, images: Tensor) -> Tensor:
        """Mean bits per pixel of the pictures under p(x | z_0), VDM eq. 8."""
        alpha, sigma = constants.alpha_s[-1], constants.sigma_s[-1]
        y, deviation = diffusion.to_pixels(z_0 / alpha), 128 * sigma / alpha
        reach = min(int(6 * float(deviation.detach())) + 2, 256)  # all 256 values would be slow
        near = y.detach().clamp(0, 255).round().unsqueeze(-1)
        values = near + torch.arange(-reach, reach + 1, device=y.device)
        logits = -0.5 * ((y.unsqueeze(-1) - values) / deviation).square()
        logits = logits.masked_fill((values < 0) | (values > 255), -torch.inf)
        log_p = -0.5 * ((y - images) / deviation).square() - logits.logsumexp(-1)
        return -log_p.sum() / (_LN2 * _pixels(y))

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """Everything that ``UniversalScheme`` needs, by name.

        Tables and constants are made here once. Decoders never compute them again.
        """
        constants = self.constants(torch.float64)
        deviation = 128 * constants.sigma_s[-1] / constants.alpha_s[-1]
        largest = _LARGEST_FACTOR * float((constants.scale / constants.width).max())
        grids = {
            "prior": prior_grid(self.config.prior, largest),
            "pixels": pixel_grid(float(deviation)),
        }
        tensors = dict(self.state_dict())
        tensors["steps"] = diffusion.stack(constants)
        tensors["normal_quantiles"] = to_tensor(dither.normal_quantiles())
        for name, grid in grids.items():
            for key, array in grid.to_arrays().items():
                tensors[f"{name}.{key}"] = to_tensor(array)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def log_mass_logistic(distance: Tensor, deviation: Tensor) -> Tensor:
    """log(G(d + 1/2) - G(d - 1/2)), G logistic with this standard deviation (UQDM eq. 7).

    With the logistic function l, l(b) - l(a) = l(b) l(-a) (1 - exp(a - b)) avoids cancellation.
    """
    scale = deviation * (3**0.5 / torch.pi)
    upper, lower = (distance + 0.5) / scale, (distance - 0.5) / scale
    return F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-1 / scale))


def log_mass_gaussian(distance: Tensor, deviation: Tensor) -> Tensor:
    """log(G(d + 1/2) - G(d - 1/2)), G Gaussian, computed on the lower side for precision."""
    near = (0.5 - distance.abs()) / deviation
    upper = torch.special.log_ndtr(near)
    lower = torch.special.log_ndtr(near - 1 / deviation)
    return upper + torch.log(-torch.expm1((lower - upper).clamp_max(-1e-7)))


LOG_MASS = {"logistic": log_mass_logistic, "gaussian": log_mass_gaussian}


def _initial_bits(constants: Step, x: Tensor) -> Tensor:
    """KL(q(z_1 | x) || N(0, 1)) in bits per pixel. Coding saves them: it draws z_1 from p."""
    alpha, sigma = constants.alpha_t[0], constants.sigma_t[0]
    nats = 0.5 * ((alpha * x).square() + sigma.square() - 1) - sigma.log()
    return nats.sum() / (_LN2 * _pixels(x))


def _take(constants: Step, at: Tensor) -> Step:
    """The constants of steps ``at (B,)``, shaped to multiply ``(B, 3, H, W)``."""
    values = {name: value[at].view(-1, 1, 1, 1) for name, value in vars(constants).items()}
    return Step(**values)


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]

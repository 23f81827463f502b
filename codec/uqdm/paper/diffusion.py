"""The diffusion of UQDM: schedule, posterior, prior and predictions, as pure functions.

Notation of Kingma et al. 2021 (VDM) and Yang et al. 2025 (UQDM): a picture x in [-1, 1] (centres
of 256 bins), latents z_t = alpha_t x + sigma_t n for t from 1 (noise) to 0, ``gamma`` = minus
log-SNR. All functions work on numpy arrays and on tensors. Coding uses float64 arrays and only
+ - * /, which are the same on every machine (IEEE 754). Training differentiates through the
schedule.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

PriorScale = Literal["forward_kernel", "posterior"]

Array = Any  # numpy array, tensor or number


@dataclass(frozen=True)
class Step:
    """The constants of one step t -> s; each a float, or a tensor ``(B, 1, 1, 1)`` in training.

    Attributes:
        time: t as the network gets it, (gamma_t - gamma_min) / (gamma_max - gamma_min).
        alpha_t, sigma_t, alpha_s, sigma_s: signal and noise in z_t and z_s.
        keep, gain: the posterior's mean is keep z_t + gain x.
        width: Delta, the width of the posterior and the step of the quantiser.
        scale: standard deviation of the prior's g if its factor is 1.
    """

    time: Array
    alpha_t: Array
    sigma_t: Array
    alpha_s: Array
    sigma_s: Array
    keep: Array
    gain: Array
    width: Array
    scale: Array


def gammas(gamma_0: Tensor, gamma_1: Tensor, steps: int) -> Tensor:
    """The linear schedule at t = 1, 1 - 1/T, ..., 0: ``(steps + 1,)``."""
    t = torch.linspace(1, 0, steps + 1, dtype=gamma_0.dtype, device=gamma_0.device)
    return gamma_0 + (gamma_1 - gamma_0) * t


def step(gamma_t: Tensor, gamma_s: Tensor, time: Tensor, prior_scale: PriorScale) -> Step:
    """The constants of the step from gamma_t to gamma_s < gamma_t."""
    alpha_t, sigma_t = torch.sigmoid(-gamma_t).sqrt(), torch.sigmoid(gamma_t).sqrt()
    alpha_s, sigma_s = torch.sigmoid(-gamma_s).sqrt(), torch.sigmoid(gamma_s).sqrt()
    e = -torch.expm1(gamma_s - gamma_t)  # share of z_t's noise that this step removes
    return Step(
        time=time,
        alpha_t=alpha_t,
        sigma_t=sigma_t,
        alpha_s=alpha_s,
        sigma_s=sigma_s,
        keep=alpha_s * (1 - e) / alpha_t,  # VDM eq. 26
        gain=alpha_s * e,
        width=(12 * e).sqrt() * sigma_s,  # UQDM eq. 5: the variance of the Gaussian, VDM eq. 25
        # UQDM section 3.2 takes the variance of the forward kernel q(z_t | z_s) for g.
        scale=e.sqrt() * (sigma_t if prior_scale == "forward_kernel" else sigma_s),
    )


def all_steps(
    ends: Tensor, time_ends: tuple[float, float], steps: int, prior_scale: PriorScale
) -> Step:
    """The constants of every step of the chain, each field ``(steps,)``.

    ``ends`` are gamma at t = 0 and t = 1. ``time_ends`` are those for the network's time: they stay
    as they were at the start of training, even if the schedule is learned.
    """
    gamma = gammas(ends[0], ends[1], steps)
    time = (gamma[:-1] - time_ends[0]) / (time_ends[1] - time_ends[0])
    return step(gamma[:-1], gamma[1:], time, prior_scale)


def stack(constants: Step) -> Tensor:
    """Constants of a chain as the model file stores them: ``(steps, 9)``."""
    return torch.stack([getattr(constants, field.name) for field in fields(Step)], dim=1)


def unstack(table: np.ndarray) -> list[Step]:
    """The inverse of ``stack``: one Step of floats per step."""
    return [Step(*map(float, row)) for row in table]


def from_pixels(pixels: Array) -> Array:
    """x in (-1, 1) of pixel values 0..255: the centres of their bins."""
    return (2 * pixels + 1) / 256 - 1


def to_pixels(x: Array) -> Array:
    """Inverse of ``from_pixels``, neither rounded nor clipped."""
    return ((x + 1) * 256 - 1) / 2


def posterior_mean(step: Step, z_t: Array, x: Array) -> Array:
    """Mean of q(z_s | z_t, x), VDM eq. 26."""
    return step.keep * z_t + step.gain * x


def predicted_x(step: Step, z_t: Array, noise: Array) -> Array:
    """x_hat from the network's noise, VDM eq. 30, clipped to the range of pictures."""
    return ((z_t - step.sigma_t * noise) / step.alpha_t).clip(-1, 1)


def flow(step: Step, z_t: Array, noise: Array) -> Array:
    """z_s along the deterministic flow, DDIM (Song et al. 2021) eq. 12 without noise."""
    ratio = step.alpha_s / step.alpha_t
    return ratio * z_t + (step.sigma_s - ratio * step.sigma_t) * noise


def quantize(step: Step, mean: np.ndarray, dither: np.ndarray) -> np.ndarray:
    """k = round(mean / Delta + u) ``int64``; ``dequantize`` makes it a sample of the posterior.

    Universal quantisation (Ziv 1985; UQDM section 3.1). The grid of the rounding is at 0 instead of
    at the prior's mean, so that z_s does not depend on the network.
    """
    return np.floor(mean / step.width + dither + 0.5).astype(np.int64)


def dequantize(step: Step, symbols: np.ndarray, dither: np.ndarray) -> np.ndarray:
    """z_s = (k - u) Delta ``float64``, from integers and stored constants only."""
    return (symbols - dither) * step.width

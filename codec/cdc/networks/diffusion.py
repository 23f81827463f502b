"""The diffusion process of the decoder: noise schedules, deterministic sampling, training loss.

Notation of DDPM (Ho et al. 2020): x_n = sqrt(ab_n) x_0 + sqrt(1 - ab_n) noise, with ab_n the
product of 1 - beta up to index n = 0 ... N - 1. A network is told the index as a time in [0, 1] and
predicts x_0 ("x") or the noise ("eps"); Yang & Mandt 2023 use and compare both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from .config import Part

Parameterization = Literal["x", "eps"]
Schedule = Literal["cosine", "linear"]
Network = Callable[[Tensor, Tensor], Tensor]  # x (B, C, H, W), time (B,) -> (B, C, H, W)

_LARGEST_WEIGHT = 5.0  # min-SNR weighting (Hang et al. 2023, section 3.4)
_LARGEST_BETA = 0.999  # Nichol & Dhariwal 2021, section 3.2
_SMALLEST = 1e-6  # noise against signal, in float32, to divide by
_COSINE_OFFSET = 0.008  # the same


@dataclass(frozen=True)
class Diffusion(Part):
    """What the network predicts, and how much noise there is at each index.

    Attributes:
        parameterization: "x" for x_0 itself, in [-1, 1], "eps" for the noise.
        num_timesteps: N, indices in training.
        schedule: "cosine" (the paper's for x) or "linear" (for eps).
    """

    part: ClassVar[str] = "diffusion"

    parameterization: Parameterization = "x"
    num_timesteps: int = 8193
    schedule: Schedule = "cosine"

    def __post_init__(self) -> None:
        if self.parameterization not in ("x", "eps"):
            raise ValueError(f"parameterization must be x or eps, not {self.parameterization!r}")
        if self.schedule not in _BETAS:
            raise ValueError(f"schedule must be cosine or linear, not {self.schedule!r}")
        # Fewer linear steps would scale a beta to 1 or more.
        if not isinstance(self.num_timesteps, int) or not 21 <= self.num_timesteps <= 100_000:
            raise ValueError(f"num_timesteps must be 21 to 100,000, not {self.num_timesteps!r}")

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """ab_n, ``(N,) float64``, decreasing."""
        return np.cumprod(1 - _BETAS[self.schedule](self.num_timesteps))

    @cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        """Functions of ab, computed in float64 and rounded once, as the authors do."""
        ab = self.alpha_bar
        tables = {
            "signal": np.sqrt(ab),
            "noise": np.sqrt(1 - ab),
            "reciprocal": np.sqrt(1 / ab),
            "reciprocal_noise": np.sqrt(1 / ab - 1),
            "snr": ab / (1 - ab),
        }
        return {name: table.astype(np.float32) for name, table in tables.items()}

    # Decoding

    def indices(self, steps: int) -> Tensor:
        """The indices that ``steps`` network evaluations visit, in that order: ``(steps,) int64``.

        The first is N - 1, the last of several is 0. Raises ValueError unless 1 <= steps <= N.
        """
        last = self.num_timesteps - 1
        if not 1 <= steps <= self.num_timesteps:
            raise ValueError(f"steps must be 1 to {self.num_timesteps}, got {steps}")
        if steps == 1:
            return torch.tensor([last])
        return torch.linspace(0, last, steps).long().flip(0)  # float32, as the authors have it

    def times(self, steps: int) -> list[float]:
        """The times that the network is told, in the order of its evaluations.

        For x that is index / N as in training. The authors' eps code gives the position in the
        shortened schedule over ``steps`` instead, nearly the same.
        """
        if self.parameterization == "x":
            return (self.indices(steps).float() / self.num_timesteps).tolist()
        return (torch.arange(len(self.indices(steps))).flip(0).float() / steps).tolist()

    def sample(self, network: Network, start: Tensor, steps: int) -> Tensor:
        """The reconstruction ``(B, C, H, W)`` from x_N = ``start`` of the same shape.

        DDIM with eta = 0 (Song et al. 2021, eq. 12): deterministic, given the start. A start of
        zeros gives the best PSNR; noise of deviation 0.8 the most realistic pictures (Yang & Mandt
        2023, section 4). x_0 is clipped to [-1, 1] where it is what the network predicts, not where
        it follows from the noise. Gradients flow; wrap in ``torch.inference_mode`` where none are
        wanted.
        """
        visited = torch.from_numpy(self.alpha_bar.astype(np.float32))[self.indices(steps)]
        reciprocal, reciprocal_noise = (1 / visited).sqrt(), (1 / visited - 1).sqrt()
        following = torch.cat([visited[1:], torch.ones(1)])
        signal, noise_level = following.sqrt(), (1 - following).sqrt()
        x = start
        for i, time in enumerate(self.times(steps)):
            output = network(x, x.new_full((len(x),), time)).to(x.dtype)
            a, b = float(reciprocal[i]), float(reciprocal_noise[i])
            # DDPM eq. 15, solved for the one that is not predicted
            if self.parameterization == "x":
                x_0 = output.clamp(-1, 1)
                noise = (a * x - x_0) / max(b, _SMALLEST)
            else:
                noise = output
                x_0 = a * x - b * noise
            x = float(signal[i]) * x_0 + float(noise_level[i]) * noise
        return x

    def shrinkage(self, time: Tensor, deviation: float) -> tuple[Tensor, Tensor]:
        """Weights ``(B,)`` of x_n and of a first guess in the best linear estimate of x_0.

        For x_0 = guess + N(0, deviation^2), E[x_0 | x_n] = (1 - w) guess + w / sqrt(ab) x_n with
        w = d^2 ab / (d^2 ab + 1 - ab): the skip of Karras et al. 2022 (eq. 7), around a guess.
        """
        last = self.num_timesteps - 1
        index = (time.float() * self.num_timesteps).round().long().clamp(0, last).cpu()
        ab = torch.from_numpy(self.alpha_bar)[index]
        weight = deviation**2 * ab / (deviation**2 * ab + 1 - ab)
        of_x, of_guess = weight / ab.sqrt(), 1 - weight
        return of_x.to(time.device, torch.float32), of_guess.to(time.device, torch.float32)

    # Training

    def q_sample(self, x_0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """x_n given x_0, both and the noise ``(B, C, H, W)``, at indices ``(B,) int64``.

        DDPM eq. 4.
        """
        return self._at("signal", index) * x_0 + self._at("noise", index) * noise

    def loss_weight(self, index: Tensor) -> Tensor:
        """Weights ``(B,)`` of the loss at indices ``(B,) int64``: min(SNR, 5) for x, 1 for eps."""
        if self.parameterization == "eps":
            return torch.ones(index.shape, device=index.device)
        return self._at("snr", index).flatten().clamp(max=_LARGEST_WEIGHT)

    def training_loss(
        self,
        network: Network,
        x_0: Tensor,
        noise: Tensor,
        index: Tensor,
        least_weight: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Weighted loss ``(B,)``, and the x_0 ``(B, C, H, W)`` predicted, for a perceptual loss.

        Weights are at least ``least_weight``, 0 in the paper: see ``loss_weight``.

        Mean squared error of x_0 for x, mean absolute error of the noise for eps. As the authors
        have it, x_0 is clipped to [-1, 1] only where it follows from the noise.
        """
        x_n = self.q_sample(x_0, noise, index)
        output = network(x_n, index.float() / self.num_timesteps).to(x_n.dtype)
        if self.parameterization == "x":
            loss, predicted = (output - x_0).square(), output
        else:
            loss = (output - noise).abs()
            reciprocal = self._at("reciprocal", index)
            predicted = reciprocal * x_n - self._at("reciprocal_noise", index) * output
            predicted = predicted.clamp(-1, 1)
        weight = self.loss_weight(index).clamp(min=least_weight)
        return weight * loss.mean(dim=(1, 2, 3)), predicted

    def _at(self, table: str, index: Tensor) -> Tensor:
        """A table's values at indices ``(B,)``, shaped ``(B, 1, 1, 1)`` to multiply pictures."""
        values = torch.as_tensor(self._tables[table], device=index.device)
        return values[index].view(-1, 1, 1, 1)


def _cosine_betas(count: int) -> np.ndarray:
    """Nichol & Dhariwal 2021, eq. 17, at ``count + 1`` times that include both 0 and 1."""
    time = np.linspace(0, count + 1, count + 1) / (count + 1)
    signal = np.cos((time + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * np.pi / 2) ** 2
    signal /= signal[0]
    return np.clip(1 - signal[1:] / signal[:-1], 0, _LARGEST_BETA)


def _linear_betas(count: int) -> np.ndarray:
    """DDPM section 4, whose 1000 steps are stretched to ``count``."""
    return np.linspace(1e-4, 2e-2, count) * (1000 / count)


_BETAS: dict[str, Callable[[int], np.ndarray]] = {
    "cosine": _cosine_betas,
    "linear": _linear_betas,
}

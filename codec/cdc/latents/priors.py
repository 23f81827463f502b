"""Probabilities of the latents: a learned density per channel, and Gaussians under a hyperprior.

Both give the mass of a bin of width one around a value, which is at once the probability of a
rounded value and the density of one with uniform noise added in training (Balle et al. 2018).
"""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...numerics.bounds import lower_bound

LIKELIHOOD_FLOOR = 1e-9  # the authors' own: some 30 bits
MIN_SCALE = 0.1  # below, a Gaussian in a unit bin costs nothing anyway

_WIDTHS = (1, 3, 3, 3, 1)  # of the density's layers
_INITIAL_SPREAD = 10.0  # an untrained density covers about so many integers to each side
_LARGEST_OFFSET = 255  # of a symbol that has its own table entry; a coder escapes the others
_TAIL = 1e-9  # mass that a table may leave out at each end


class FactorizedPrior(nn.Module):
    """A density for each channel, as the derivative of a monotonic network.

    Balle et al. 2018, appendix 6.1, with K = 4 and r = 3. The medians are parameters of their own,
    which ``median_loss`` draws to where they belong.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        spread = _INITIAL_SPREAD ** (1 / (len(_WIDTHS) - 1))
        matrices, biases, factors = [], [], []
        for inputs, outputs in pairwise(_WIDTHS):
            start = math.log(math.expm1(1 / (spread * outputs)))
            matrices.append(nn.Parameter(torch.full((channels, outputs, inputs), start)))
            biases.append(nn.Parameter(torch.empty(channels, outputs, 1).uniform_(-0.5, 0.5)))
            factors.append(nn.Parameter(torch.zeros(channels, outputs, 1)))
        self.channels = channels
        self.matrices = nn.ParameterList(matrices)
        self.biases = nn.ParameterList(biases)
        self.factors = nn.ParameterList(factors[:-1])  # the last layer has none
        self.median = nn.Parameter(torch.zeros(channels))

    @property
    def medians(self) -> Tensor:
        """``(C,)``, detached: values are rounded relative to them."""
        return self.median.detach()

    def logits_cumulative(self, values: Tensor, *, fixed: bool = False) -> Tensor:
        """Logits of the cumulative density at values ``(C, n)``, the same shape (eq. 29 ff.).

        ``fixed`` keeps gradients from the density's parameters.
        """
        x = values.unsqueeze(1)
        for i, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            matrix, bias = matrix.to(x.dtype), bias.to(x.dtype)
            if fixed:
                matrix, bias = matrix.detach(), bias.detach()
            x = torch.baddbmm(bias, F.softplus(matrix), x)
            if i < len(self.factors):
                factor = self.factors[i].to(x.dtype)
                x = x + torch.tanh(factor.detach() if fixed else factor) * torch.tanh(x)
        return x.squeeze(1)

    def likelihood(self, z: Tensor) -> Tensor:
        """Mass ``(B, C, h, w)`` of the unit bins around values of the same shape, at least 1e-9."""
        values = z.transpose(0, 1).reshape(self.channels, -1)
        mass = lower_bound(self._mass(values), LIKELIHOOD_FLOOR)
        return mass.view(self.channels, len(z), *z.shape[2:]).transpose(0, 1)

    def median_loss(self) -> Tensor:
        """How far the medians are from where they belong, to be minimised beside the rate."""
        return self.logits_cumulative(self.median[:, None], fixed=True).abs().sum()

    @torch.no_grad()
    def tables(self) -> list[tuple[int, np.ndarray]]:
        """For each channel its first symbol, and the probabilities (float64) from there on.

        A symbol is k = round(z - median). At most 1e-9 of the mass lies beyond each end, except
        that no table goes beyond +-255. They are not normalised: a caller escapes the rest.
        """
        device = self.median.device
        symbols = torch.arange(-_LARGEST_OFFSET, _LARGEST_OFFSET + 1, device=device).double()
        values = symbols + self.median.double()[:, None]
        mass = self._mass(values).cpu().numpy()
        below = torch.sigmoid(self.logits_cumulative(values - 0.5)).cpu().numpy()
        above = torch.sigmoid(-self.logits_cumulative(values + 0.5)).cpu().numpy()
        tables = []
        for masses, before, after in zip(mass, below, above, strict=True):
            # The last symbol that leaves little before it, the first that leaves little after.
            first = max(int(np.searchsorted(before, _TAIL, "right")) - 1, 0)
            stop = len(after) - max(int(np.searchsorted(after[::-1], _TAIL, "right")) - 1, 0)
            first, stop = min(first, stop - 1), max(stop, first + 1)
            tables.append((first - _LARGEST_OFFSET, masses[first:stop].copy()))
        return tables

    def _mass(self, values: Tensor) -> Tensor:
        lower = self.logits_cumulative(values - 0.5)
        upper = self.logits_cumulative(values + 0.5)
        # Both on the side where the sigmoid is small: near 1 their difference would cancel.
        side = -torch.sign(lower + upper).detach()
        side = torch.where(side == 0, torch.ones_like(side), side)
        return (torch.sigmoid(side * upper) - torch.sigmoid(side * lower)).abs()


def gaussian_likelihood(y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Mass of the unit bins around ``y`` under Gaussians, of the broadcast shape, at least 1e-9.

    Scales below 0.1 count as 0.1. Minnen et al. 2018, eq. 3.
    """
    distance, scale = (y - mean).abs(), lower_bound(scale, MIN_SCALE)
    # On the lower side, where erfc is precise.
    upper = torch.erfc((distance - 0.5) * (2**-0.5) / scale)
    lower = torch.erfc((distance + 0.5) * (2**-0.5) / scale)
    return lower_bound(0.5 * (upper - lower), LIKELIHOOD_FLOOR)

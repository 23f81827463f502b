"""Which residuals the encoder sends: those that are worth their bits. Any residuals decode.

A residual is brought nearer to zero by one if that lowers J = D + lambda R (Sullivan and Wiegand
1998, "Rate-distortion optimization for video compression"), D in squared steps of the latent, R in
bits of the trits that code it.
"""

import numpy as np

from ...stream.entropy import PRECISION
from .trees import Trees

# Squared steps that a bit is worth. ln 2 / 6 = .115 would be that of squared error at high rates;
# pictures look best with less: docs/experiments.md.
TRADE = 0.05
_MOST = 40  # larger residuals gain nothing


def prices(trees: Trees) -> np.ndarray:
    """Bits of each residual from -40 to 40 at each scale index, ``(S, 81) float32``.

    Those outside a tree cost nothing here: they are never chosen, nor brought nearer to zero.
    """
    out = np.zeros((len(trees.root), 2 * _MOST + 1), np.float32)
    trits = trees.tables.counts.reshape(-1, 4)[:, :3] / (1 << PRECISION)
    for row, root, levels in zip(out, trees.root, trees.levels, strict=True):
        mass, first = np.ones(1), int(root)
        for depth in range(levels):
            mass = (mass[:, None] * trits[first : first + 3**depth]).ravel()
            first += 3**depth
        half = min(_MOST, len(mass) // 2)
        inside = mass[len(mass) // 2 - half : len(mass) // 2 + half + 1]
        row[_MOST - half : _MOST + half + 1] = -np.log2(inside)
    return out


def choose(wanted: np.ndarray, scale_index: np.ndarray, price: np.ndarray) -> np.ndarray:
    """Residuals ``(n,) int32`` for what is left of the latent, ``wanted (n,) float32``.

    Args:
        scale_index: of each element, ``(n,)``.
        price: of ``prices``.
    """
    residuals = np.rint(wanted).astype(np.int32)
    at = np.flatnonzero((residuals != 0) & (np.abs(residuals) <= _MOST))
    near, rest, row = residuals[at], wanted[at], price[scale_index[at]]
    lower = near - np.sign(near)
    of_near, of_lower = (row[np.arange(len(at)), r + _MOST] for r in (near, lower))
    error = (rest - lower) ** 2 - (rest - near) ** 2
    worth = error < TRADE * (of_near - of_lower)
    residuals[at] = np.where(worth, lower, near)
    return residuals

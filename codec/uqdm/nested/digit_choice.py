"""Which digits the encoder sends: those that are worth their bits.

Any digits decode. Those nearest to the coefficients are not the best: a digit that the tables hold
for unlikely may cost more bits than its error is worth, and the next level can still mend it. So a
digit is brought nearer to zero by one if that lowers J = D + lambda R (Sullivan and Wiegand 1998,
"Rate-distortion optimization for video compression"), D in squared Deltas of the level, R in bits
of the very table that will code it.

All of it is computed where the networks are: a GPU that waited for each pass's digits to be chosen
elsewhere would wait most of the time.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ...stream.entropy import PRECISION, Tables

# Squared Deltas of a level that a bit is worth there. A uniform quantiser at high rate would have
# ln 2 / 6 = .115, if there were no later levels. Measured: docs/experiments.md.
TRADE = 0.05
_BEYOND = 64  # symbols farther outside of a table cost little more than this one


class Prices:
    """What symbols cost in bits, under tables that all cover the same symbols."""

    def __init__(self, tables: Tables, device: torch.device | str) -> None:
        first = int(tables.first[0])
        self._entries = int(tables.start[1])  # of a table, the escape among them
        self._least, self._most = first - _BEYOND, first + self._entries - 2 + _BEYOND
        symbols = np.arange(self._least, self._most + 1)
        index = np.zeros(len(symbols), np.int64)
        place = tables.entries(symbols, index)[0]
        counts = tables.counts[: self._entries]
        # Beside what its entry costs: the exact value of a symbol that escapes.
        beside = tables.bits(symbols, index) - _bits(counts)[place]
        self._bits = torch.from_numpy(_bits(tables.counts)).float().to(device)
        self._place = torch.from_numpy(place).to(device)
        self._beside = torch.from_numpy(beside).float().to(device)

    def of(self, symbols: Tensor, index: Tensor) -> Tensor:
        """float32 for symbols and their tables, int32 of one shape."""
        shape, symbols = symbols.shape, symbols.flatten()
        symbols = symbols.clamp(self._least, self._most).sub_(self._least)
        entry = torch.add(
            self._place.index_select(0, symbols), index.flatten(), alpha=self._entries
        )
        bits = self._bits.index_select(0, entry)
        return bits.add_(self._beside.index_select(0, symbols)).view(shape)


def _bits(counts: np.ndarray) -> np.ndarray:
    return PRECISION - np.log2(counts)


def choose(rest: Tensor, index: Tensor, prices: Prices, reach: float) -> Tensor:
    """Digits ``int32``, of any shape, for what is left of the coefficients.

    Args:
        rest: coefficients less their grid, in Deltas of the level, as they are coded; float32.
        index: their tables, int32, as ``prices`` knows them.
        reach: the largest error, in Deltas, that a digit may be given.
    """
    if rest.device.type != "cpu":  # which are zero would have to be waited for
        return _chosen(rest, index, prices, reach)
    digits = rest.round().to(torch.int32)
    places = torch.nonzero(digits.flatten()).flatten()  # few
    rest, index = (x.flatten().index_select(0, places) for x in (rest, index))
    digits.view(-1)[places] = _chosen(rest, index, prices, reach)
    return digits


def _chosen(rest: Tensor, index: Tensor, prices: Prices, reach: float) -> Tensor:
    nearest = rest.round()
    near = nearest.to(torch.int32)
    lower = near - near.sign()
    saved = prices.of(near, index).sub_(prices.of(lower, index))
    error = (rest - lower).abs_()
    worth = error.square() - (rest - nearest).square_() < TRADE * saved
    return torch.where(worth & (error <= reach), lower, near)


@torch.no_grad()
def likely_digits(rest: Tensor, log_p: Tensor, reach: float) -> Tensor:
    """``choose`` by a model that is being trained: the entries of its distributions.

    Args:
        log_p: log-probabilities in nats ``(n, 2 A + 1)``.
    """
    most = log_p.shape[-1] // 2
    near = rest.round()
    lower = near - near.sign()
    entries = torch.stack([near, lower], -1).clamp_(-most, most).add_(most).long()
    saved = (log_p.gather(-1, entries).diff(dim=-1) / math.log(2)).squeeze(-1)
    error = (rest - lower).abs()
    worth = (error.square() - (rest - near).square() < TRADE * saved) & (error <= reach)
    return torch.where(worth, entries[:, 1], entries[:, 0])

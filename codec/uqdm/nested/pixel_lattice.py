"""The lossless layer, pixel by pixel: its lattice, its tables, and what its network sees.

After the last level the picture is known up to noise and fine texture, and those are no longer
sparse in any transform. What tells most of a pixel then are its neighbours and its other colours.
So the layer has twelve passes: the four places of each 2x2 cell, diagonal first, and of each place
green, red and blue. A network sees, cell by cell, the picture that the levels predict and how far
the pixels that are known lie from it; it says how far the pixels of the pass should, and how sure
that is (``pixel_network.py``).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...stream.entropy import Tables
from .schedule import PIXEL_UNIT, Grid

PLACES = ((0, 0), (1, 1), (0, 1), (1, 0))  # row and column in a cell, in the order of decoding
COLOURS = (1, 0, 2)
PASSES = [(place, colour) for place in PLACES for colour in COLOURS]
INPUTS = 3 * 12 + 3
SPREAD = Grid(-3.0, 0.25, 33)  # log2 of the residual's scale in pixel values
RANGE = 40  # residuals beyond escape
ROOM = 8  # values at each end of the pixels' range that may have tables of their own
# How many of them have, by spread: up to four scales from the end.
ROOMS = (1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 5, 6, 7, *(ROOM,) * 17)
INNER = PIXEL_UNIT * SPREAD.size  # tables of all others
TABLES = INNER + 2 * ROOM * SPREAD.size
ROW_LIMIT = 128  # its tables are coded in the order of the pixels
TILE = 192  # cells on a side that the network sees at once, halo apart
MEAN_UNIT = 4.0  # pixel values that 1.0 of the network's first output stands for


def to_cells(x: Tensor) -> Tensor:
    """``(B, 3, H, W)``, H and W even, to ``(B, H / 2, W / 2, 3, 4)``: by colour and place."""
    parts = [x[..., row::2, column::2] for row, column in PLACES]
    return torch.stack(parts, -1).permute(0, 2, 3, 1, 4)


def known(number: int, device: torch.device | str = "cpu") -> Tensor:
    """``(3, 4)`` float: 1 where a pass finds pixels decoded, by colour and place."""
    mask = torch.zeros(3, len(PLACES), device=device)
    for place, colour in PASSES[:number]:
        mask[colour, PLACES.index(place)] = 1.0
    return mask


def inside(number: int, height: int, width: int) -> tuple[slice, slice, slice]:
    """Where in ``(B, h, w)``, an entry for each cell, a pass has pixels of the picture."""
    (row, column), _ = PASSES[number]
    return slice(None), slice(-(-(height - row) // 2)), slice(-(-(width - column) // 2))


def of_pass(values: Tensor, number: int, height: int, width: int) -> Tensor:
    """A view ``(B, h, w)`` of ``(B, 3, H, W)``: the pixels of a pass that are in the picture."""
    (row, column), colour = PASSES[number]
    return values[:, colour, row:height:2, column:width:2]


def base_of_pass(cells: Tensor, number: int) -> Tensor:
    """A view ``(...)`` of cells ``(..., 3, 4)``: a pass's own."""
    place, colour = PASSES[number]
    return cells[..., colour, PLACES.index(place)]


def logistic_bits(error: Tensor, spread: Tensor, mean: Tensor) -> Tensor:
    """Bits of pixels in 0 .. 255, ``error`` off their mean, under logistic scales ``2**spread``."""
    spread = spread.clamp(*SPREAD.values()[[0, -1]].tolist())
    error, scale = error.abs(), torch.exp2(spread)
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)), and has gradients far out.
    tails = F.logsigmoid((0.5 - error) / scale) + F.logsigmoid((0.5 + error) / scale)
    nats = tails + torch.log(-torch.expm1(-1 / scale))
    inside = torch.sigmoid((255.5 - mean) / scale) - torch.sigmoid((-0.5 - mean) / scale)
    nats = nats - inside.log()
    return -nats / math.log(2)


def table_numbers(expected: Tensor, spread: Tensor, rooms: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest pixel values and the table of each residual, integers as floats.

    Args:
        expected: in 1/16 of a pixel value, 0 .. 4080.
        spread: its number in the grid.
        rooms: ``ROOMS``, where the others are.
    """
    nearest = torch.floor((expected + PIXEL_UNIT // 2) / PIXEL_UNIT)
    fraction = expected - nearest * PIXEL_UNIT  # -8 .. 7
    number = (fraction + PIXEL_UNIT // 2) * SPREAD.size + spread
    least = rooms[spread.long()]
    for end, room in enumerate((255 - nearest, nearest)):
        here = INNER + (end * ROOM + room) * SPREAD.size + spread
        number = torch.where(room < least, here, number)
    return nearest, number


def features(prediction: Tensor, residual: Tensor) -> Tensor:
    """What the network sees, ``(..., 39)`` integers in [-127, 127] as floats; exact.

    Args:
        prediction: cells ``(..., 3, 4)`` in 1/16 of a pixel value, integers 0 .. 4080.
        residual: pixels less prediction, in the same; zero where a pixel is not known.
    """
    mean = prediction.mean(-1, keepdim=True)  # of four integers: exact
    fine, coarse = residual / 4, residual / 32
    parts = [fine, coarse, (prediction - mean) / 4]
    parts = [x.flatten(-2) for x in parts] + [mean[..., 0] / PIXEL_UNIT - 128]
    return torch.cat(parts, -1).round_().clamp_(-127.0, 127.0)


def tables() -> Tables:
    """Tables number (fraction + 8) * 33 + spread: logistic about the prediction's fraction.

    Of the integer pixel less the rounded prediction. Counting replaces them. Others follow for the
    last values below 255, and for the first ones above 0: number (room to the end) * 33 + spread,
    logistic about a whole number.
    """
    residual = np.arange(-RANGE, RANGE + 1)
    scales = 2.0 ** SPREAD.values()

    def logistic(fraction: float) -> list[np.ndarray]:
        edges = np.append(residual, RANGE + 1) - 0.5 - fraction
        cdfs = 0.5 * (1 + np.tanh(edges / scales[:, None] / 2))
        return [np.maximum(pmf, 1e-9) for pmf in np.diff(cdfs)]

    fractions = (np.arange(PIXEL_UNIT) - PIXEL_UNIT // 2) / PIXEL_UNIT
    pmfs = [pmf / max(pmf.sum(), 1.0) for fraction in fractions for pmf in logistic(fraction)]
    for sign in (1, -1):
        for room in range(ROOM):
            found = [np.where(sign * residual <= room, pmf, 0.0) for pmf in logistic(0.0)]
            pmfs += [pmf / pmf.sum() for pmf in found]
    return Tables.from_matrix(-RANGE, np.stack(pmfs) * (1 - 2.0**-18))

"""The lossless layer, pixel by pixel: its lattice, and the former kind of its network.

After the last level the picture is known up to noise and fine texture, and those are no longer
sparse in any transform. What tells most of a pixel then are its neighbours and its other colours.
So the layer has twelve passes: the four places of each 2x2 cell, diagonal first, and of each place
green, red and blue. A network sees, cell by cell, the picture that the levels predict and how far
the pixels that are known lie from it; it says how far the pixels of the pass should, and how sure
that is. It is an integer network as the others are (``integer_network.py``), and decodes alike on
every device.

``pixel_network.py`` has the network that models are trained with. The one here, of models of
formats 2 and 3, looks around anew in every pass; it is kept for what was written with it.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.checks import check_shapes
from ...stream.entropy import Tables
from .integer_network import IntegerNetwork, NetworkConfig
from .schedule import PIXEL_UNIT, Grid
from .tiles import pieces

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
ROW_LIMIT = 128  # its tables are coded in the order of the pixels
TILE = 192  # cells on a side that the network sees at once, halo apart
MEAN_UNIT = 4.0  # pixel values that 1.0 of the network's first output stands for


def network_config(values: dict[str, Any]) -> NetworkConfig:
    """The former kind's configuration of a model's; sizes that follow may be left out."""
    sizes = {"steps": len(PASSES), "inputs": INPUTS, "outputs": 2 * len(PASSES)}
    if any(values.get(name, size) != size for name, size in sizes.items()):
        raise ValueError(f"pixel_network must have {sizes}")
    return NetworkConfig.from_dict({**values, **sizes})


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


def logistic_bits(error: Tensor, spread: Tensor, mean: Tensor | None = None) -> Tensor:
    """Bits of pixels that are ``error`` off their mean, under logistic scales ``2**spread``.

    With the ``mean``, of pixels that are known to be in 0 .. 255.
    """
    spread = spread.clamp(*SPREAD.values()[[0, -1]].tolist())
    error, scale = error.abs(), torch.exp2(spread)
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)), and has gradients far out.
    tails = F.logsigmoid((0.5 - error) / scale) + F.logsigmoid((0.5 + error) / scale)
    nats = tails + torch.log(-torch.expm1(-1 / scale))
    if mean is not None:
        inside = torch.sigmoid((255.5 - mean) / scale) - torch.sigmoid((-0.5 - mean) / scale)
        nats = nats - inside.log()
    return -nats / math.log(2)


def table_numbers(expected: Tensor, spread: Tensor, spreads: int) -> tuple[Tensor, Tensor]:
    """The nearest pixel values and the table of each residual, integers as floats.

    Args:
        expected: in 1/16 of a pixel value, 0 .. 4080.
        spread: its number in the grid.
        spreads: how many of them there are.
    """
    nearest = torch.floor((expected + PIXEL_UNIT // 2) / PIXEL_UNIT)
    fraction = expected - nearest * PIXEL_UNIT  # -8 .. 7
    return nearest, (fraction + PIXEL_UNIT // 2) * spreads + spread


def at_ends(number: Tensor, nearest: Tensor, spread: Tensor, rooms: Tensor) -> Tensor:
    """The tables that ``table_numbers`` gives, near the ends of the pixels' range those for them.

    ``rooms`` are ``ROOMS``, where the others are.
    """
    least = rooms[spread.long()]
    for end, room in enumerate((255 - nearest, nearest)):
        here = INNER + (end * ROOM + room) * SPREAD.size + spread
        number = torch.where(room < least, here, number)
    return number


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


def table_count(bounded: bool) -> int:
    """How many tables of residuals there are."""
    return INNER + (2 * ROOM * SPREAD.size if bounded else 0)


def tables(bounded: bool) -> Tables:
    """Tables number (fraction + 8) * 33 + spread: logistic about the prediction's fraction.

    Of the integer pixel less the rounded prediction. Counting replaces them. If they are
    ``bounded``, others follow for the last values below 255, and for the first ones above 0: number
    (room to the end) * 33 + spread, logistic about a whole number.
    """
    residual = np.arange(-RANGE, RANGE + 1)
    scales = 2.0 ** SPREAD.values()

    def logistic(fraction: float) -> list[np.ndarray]:
        edges = np.append(residual, RANGE + 1) - 0.5 - fraction
        cdfs = 0.5 * (1 + np.tanh(edges / scales[:, None] / 2))
        return [np.maximum(pmf, 1e-9) for pmf in np.diff(cdfs)]

    fractions = (np.arange(PIXEL_UNIT) - PIXEL_UNIT // 2) / PIXEL_UNIT
    pmfs = [pmf / max(pmf.sum(), 1.0) for fraction in fractions for pmf in logistic(fraction)]
    if bounded:
        for sign in (1, -1):
            for room in range(ROOM):
                found = [np.where(sign * residual <= room, pmf, 0.0) for pmf in logistic(0.0)]
                pmfs += [pmf / pmf.sum() for pmf in found]
    return Tables.from_matrix(-RANGE, np.stack(pmfs) * (1 - 2.0**-18))


class PixelNetwork:
    """The exported network at work. ``prediction`` and ``residual`` are pictures ``(B, 3, H, W)``
    of whole blocks, float32 integers in 1/16 of a pixel value, the latter zero where nothing is
    known, as outside the picture.
    """

    def __init__(
        self, values: dict[str, Any], tensors: dict[str, Tensor], device: torch.device
    ) -> None:
        tensors = dict(tensors)
        steps = len(PASSES)
        check_shapes(tensors, [("head.scale", (steps, 2 * steps), torch.float32)])
        check_shapes(tensors, [("bias", (steps, 2), torch.int32)])
        bias = tensors.pop("bias")
        if int(bias.abs().max()) > 1 << 20:
            raise ValueError("its biases are out of range")
        self._bias = bias.to(device, torch.float32)
        self._network = IntegerNetwork(network_config(values), tensors, device)
        self.device = device

    def predict(
        self,
        prediction: Tensor,
        residual: Tensor,
        number: int,
        look: object,
        tuning: object = None,
    ) -> tuple[Tensor, Tensor]:
        """The pass's predicted pixels in 1/16 of a value and spread indices, ``(B, H/2, W/2)``.

        ``look`` and ``tuning`` are for networks of ``pixel_network.py``.
        """
        (row, column), colour = PASSES[number]
        base = prediction[:, colour, row::2, column::2]
        out = torch.empty((*base.shape, 2), device=self.device)
        halo = self._network.config.halo
        rows = torch.tensor([2 * number, 2 * number + 1], device=self.device)
        count, height, width = base.shape
        for piece in pieces(count, height, width, TILE, halo):
            area = (slice(2 * s.start, 2 * s.stop) for s in piece.seen)
            of = (piece.pictures, slice(None), *area)
            seen = features(to_cells(prediction[of]), to_cells(residual[of]))
            parity = torch.zeros(seen.shape[1:3], dtype=torch.long, device=self.device)
            trunk = self._network.trunk(seen, parity, number)[:, *piece.inner]
            out[piece.pictures, *piece.tile] = self._network.head(trunk, number, rows)
        out = out.round_().add_(self._bias[number])
        mean = (base + out[..., 0].clamp(-4080, 4080)).clamp_(0, 255 * PIXEL_UNIT)
        return mean, out[..., 1].clamp(0, SPREAD.size - 1)

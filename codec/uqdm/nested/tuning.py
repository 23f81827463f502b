"""What a stream tells the lossless layer's network about its own picture.

Pictures differ in what their cameras, scanners and converters did to their pixels, and no network
knows all of that. So before its pixels the layer has a *tuning*: for each of the twelve passes
(``pixel_lattice.py``) a linear correction of the expected pixels, of the numbers that the pass's
head sees (``pixel_network.py``), and how much wider or narrower its distributions are. The encoder
finds it by weighted least squares; what it costs is compared with what it saves, so that a small
picture, or one that the network understands, has none.

Least squares on the picture itself, sent or found again, is how the strongest linear predictors of
lossless coding adapt (Meyer and Tischer 1997, "TMW"; Wu, Barthel and Zhang 1998, "Piecewise 2D
autoregression for predictive image coding"). Here a network's last layer does.

Decoding is exact integers as all the rest is. The encoder's sums are so, too: integers below 2**53,
the same on every device, whatever the order of additions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ...errors import CorruptStreamError, layer_name
from ...scheme import Choice
from ...stream.entropy import Tables
from .pixel_lattice import COLOURS, RANGE, SPREAD, of_pass
from .pixel_lattice import PASSES as PIXEL_PASSES
from .schedule import PIXEL_UNIT

PASSES = 2  # the units and shifts of all passes, then their coefficients
ERRORS = 3  # numbers that a head sees of each colour before
UNITS = 7  # units of coefficients: 1 to 1/64 of 1/16 of a pixel value
MAX_SHIFT = 12  # of spreads, in steps of their grid
MAX_COEFFICIENT = 127
CONSTANT = 4.0  # the last number that coefficients multiply
TABLES = 5
_UNIT, _SHIFT, _SEEN, _ERRORS, _CONSTANT = range(TABLES)
_REACH = 15  # largest symbol of the tables, which have 32 entries

_ESCAPE = 14.0  # bits, about
_SAMPLES = 1 << 15  # positions of a pass that the encoder looks at, at most
_LEAST_SAMPLES = 1 << 11  # with fewer, only the errors' coefficients and the constant are tried
_WEIGHTS = 1 << 15
_RIDGE = 1e-3


def exponents(units: np.ndarray) -> np.ndarray:
    """What power of 1/2 the coefficients of units 1 .. 14 come in."""
    return (units - 1) % UNITS


def tables() -> Tables:
    """Of units, shifts, and the coefficients of three kinds; counting replaces them."""
    symbols = np.arange(-_REACH, _REACH + 1)
    unit = np.where(symbols == 0, 0.5, np.where((symbols > 0) & (symbols <= 2 * UNITS), 0.035, 0.0))
    rows = [unit, *(_laplace(symbols, scale) for scale in (1.5, 5.0, 5.0, 5.0))]
    return Tables.from_matrix(-_REACH, np.stack(rows))


def _laplace(symbols: np.ndarray, scale: float) -> np.ndarray:
    pmf = np.exp(-np.abs(symbols) / scale)
    return pmf / pmf.sum() * (1 - 2.0**-9)


@dataclass
class Tuning:
    """Of a batch of pictures.

    Attributes:
        channels: how many numbers a head sees beside the errors of colours before.
        tables: what the tuning is coded with.
        units: ``(B, 12) int64``: 0 where a pass has no coefficients, 1 .. 7 where it has all of
            them, 8 .. 14 where it has only those of errors and the constant.
        shifts: of spreads, ``(B, 12) int64``.
        coefficients: ``(B, 12, channels + 7) int64``.
    """

    channels: int
    tables: Tables
    units: np.ndarray
    shifts: np.ndarray
    coefficients: np.ndarray

    @classmethod
    def none(cls, count: int, channels: int, tables: Tables) -> Self:
        """Of pictures that have none, ``channels`` those of the network."""
        shape = (count, len(PIXEL_PASSES))
        units, shifts = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        width = channels + (len(COLOURS) - 1) * ERRORS + 1
        return cls(channels, tables, units, shifts, np.zeros((*shape, width), np.int64))

    # -- in the stream ----------------------------------------------------------------------------

    def choices(self, number: int) -> list[Choice]:
        """The tables of each picture's symbols of pass 0 or 1 of the layer."""
        if number == 0:
            index = np.tile(np.array([_UNIT, _SHIFT], np.int32), len(PIXEL_PASSES))
            return [Choice(index, self.tables) for _ in self.units]
        kinds = np.full(self.coefficients.shape[-1], _ERRORS, np.int32)
        kinds[: self.channels], kinds[-1] = _SEEN, _CONSTANT
        every = np.broadcast_to(kinds, self.coefficients.shape[1:])
        return [Choice(every[self._coded(units)], self.tables) for units in self.units]

    def parts(self, picture: int) -> tuple[list[Choice], list[np.ndarray]]:
        """The tables and the symbols of both passes of a picture."""
        units, shifts, own = (x[picture] for x in (self.units, self.shifts, self.coefficients))
        symbols = [np.stack([units, shifts], -1).ravel(), own[self._coded(units)]]
        choices = [self.choices(number)[picture] for number in range(PASSES)]
        return choices, [x.astype(np.int32) for x in symbols]

    def take(self, number: int, symbols: Sequence[np.ndarray], layer: int) -> None:
        """Decoded symbols. Raises CorruptStreamError for those that no encoder writes."""
        for i, own in enumerate(symbols):
            if number == 0:
                self.units[i], self.shifts[i] = own[::2], own[1::2]
            else:
                self.coefficients[i][self._coded(self.units[i])] = own
        units = self.units
        largest = [int(np.abs(x).max(initial=0)) for x in (units, self.shifts, self.coefficients)]
        if np.any(units < 0) or np.any(np.array(largest) > (2 * UNITS, MAX_SHIFT, MAX_COEFFICIENT)):
            name = layer_name(layer)
            raise CorruptStreamError(f"{name} has a tuning that is out of range", layer)

    def _coded(self, units: np.ndarray) -> np.ndarray:
        """Which coefficients of a picture are in its stream, ``(12, n) bool``."""
        coded = np.zeros(self.coefficients.shape[1:], bool)
        for number, unit in enumerate(units.tolist()):
            if unit:
                coded[number, self._columns(number, unit > UNITS)] = True
        return coded

    def _columns(self, number: int, light: bool) -> np.ndarray:
        """Which of the coefficients a pass may have."""
        turn = number % len(COLOURS)
        columns = np.arange(self.channels + turn * ERRORS)
        columns = columns[self.channels :] if light else columns
        return np.append(columns, self.coefficients.shape[-1] - 1)

    # -- at work ----------------------------------------------------------------------------------

    def correct(self, out: Tensor, base: Tensor, seen: Sequence[Tensor], number: int) -> None:
        """Correct what the network says of a pass, ``(B, h, w, 2)`` integers, in place.

        Args:
            base: what the levels predict, ``(B, h, w)``; for encoders.
            seen: what the pass's head sees, parts ``(B, h, w, n) int8``.
        """
        del base
        device, units = out.device, self.units[:, number]
        out[..., 1] += _on(device, self.shifts[:, number].astype(np.float32))[:, None, None]
        cells = out[..., 0].flatten(1)
        for light in (False, True):
            every = np.flatnonzero((units > 0) & ((units > UNITS) == light))
            own = self.coefficients[every, number].astype(np.float32)
            sizes = _on(device, 0.5 ** exponents(units[every]).astype(np.float32))
            columns = self._columns(number, light)[:-1]
            linear, constant = _on(device, own[:, columns]), _on(device, own[:, -1] * CONSTANT)
            parts = [part.flatten(1, 2) for part in seen[light:]]
            for some, rows in _portions(len(every), cells.shape[1], len(columns), device):
                chosen = every[some].tolist()
                sums = constant[some, None].expand(-1, rows.stop - rows.start)
                if len(columns):
                    x = torch.cat([part[chosen, rows] for part in parts], -1).float()
                    sums = (x @ linear[some, :, None])[..., 0] + sums
                cells[chosen, rows] += (sums * sizes[some, None]).round_()
        out[..., 0] = cells.view(out.shape[:-1])


def _on(device: torch.device, values: np.ndarray) -> Tensor:
    """On a device that need not be waited for."""
    return torch.from_numpy(values).to(device, non_blocking=True)


def _portions(
    count: int, positions: int, width: int, device: torch.device, numbers: int = 1 << 18
) -> Iterator[tuple[slice, slice]]:
    """Pictures and positions to be worked on at once: on a CPU what stays in its cache."""
    if device.type != "cpu":
        numbers <<= 7
    rows = max(min(numbers // max(width, 1), positions), 1)
    some = max(numbers // max(width * rows, 1), 1)
    for first in range(0, count, some):
        for row in range(0, positions, rows):
            yield slice(first, min(first + some, count)), slice(row, min(row + rows, positions))


class Tuner(Tuning):
    """The encoder's: finds the tuning of each pass when it comes to it."""

    _original: Tensor
    _prices: np.ndarray  # bits of its own symbols, by table
    _pixel_prices: np.ndarray  # of residuals, by spread

    @classmethod
    def of(cls, original: Tensor, channels: int, all_tables: Mapping[str, Tables]) -> Self:
        """Of pictures ``(B, 3, H, W) uint8``, with the tables of a model."""
        tables, pixels = all_tables["tuning"], all_tables["residual"]
        tuner = cls.none(len(original), channels, tables)
        tuner._original = original
        tuner._prices = _prices(tables, np.arange(len(tables)), _REACH)
        # Of pixels that the prediction is a whole number of: enough to choose shifts.
        middle = PIXEL_UNIT // 2 * SPREAD.size + np.arange(SPREAD.size)
        tuner._pixel_prices = _prices(pixels, middle, RANGE)
        return tuner

    def correct(self, out: Tensor, base: Tensor, seen: Sequence[Tensor], number: int) -> None:
        """See ``Tuning.correct``. What is corrected is found first."""
        own = of_pass(self._original, number, *self._original.shape[2:])
        count = own[0].numel()
        if count:
            step = math.ceil((count / _SAMPLES) ** 0.5)
            at = tuple(slice(0, size, step) for size in own.shape[1:])
            light = count < _LEAST_SAMPLES
            width = len(self._columns(number, light))
            of_one = own[0][at].numel()
            for some, _ in _portions(len(own), 1, width * of_one, out.device, 1 << 21):
                here = (some, *at)
                parts = [part[here].flatten(1, 2).double() for part in seen[light:]]
                pixels = own[here].flatten(1).double()
                constant = torch.full_like(pixels[..., None], CONSTANT)
                sample = _Sample(
                    torch.cat([*parts, constant], -1),
                    pixels * PIXEL_UNIT,
                    base[here].flatten(1).double(),
                    out[here].flatten(1, 2).double(),
                    count / of_one,
                )
                self._find(sample, some, number, light)
        super().correct(out, base, seen, number)

    def _find(self, sample: "_Sample", some: slice, number: int, light: bool) -> None:
        """The tuning of a pass of some pictures."""
        columns = self._columns(number, light)
        kinds = np.full(len(columns), _ERRORS)
        kinds[columns < self.channels], kinds[-1] = _SEEN, _CONSTANT
        units, chosen = self._coefficients(*sample.normal_equations(), kinds, light, sample.share)
        self.units[some, number] = units
        self.coefficients[some, number, columns] = chosen
        sizes = np.where(units, 0.5 ** exponents(units), 0.0)
        counts = sample.spreads_and_residuals(chosen, sizes).astype(float) * sample.share
        tried = np.arange(-MAX_SHIFT, MAX_SHIFT + 1)
        rows = (np.arange(SPREAD.size) + tried[:, None]).clip(0, SPREAD.size - 1)
        bits = np.einsum("bsr,tsr->bt", counts, self._pixel_prices[rows])
        bits += self._prices[_SHIFT, tried + _REACH]
        self.shifts[some, number] = tried[bits.argmin(1)]

    def _coefficients(
        self, square: np.ndarray, product: np.ndarray, kinds: np.ndarray, light: bool, share: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Units ``(B,)`` and coefficients ``(B, n) int64`` that save most bits.

        Args:
            square, product: the normal equations of ``_Sample``.
            kinds: the coefficients' tables, ``(n,)``.
            light: which units there are.
            share: positions of the pass for each of the sample.
        """
        n = len(kinds)
        ridge = _RIDGE * np.einsum("bii->bi", square) + _RIDGE
        square = square + np.eye(n) * ridge[:, None]
        upper = np.linalg.cholesky(square).transpose(0, 2, 1)
        numbers = np.arange(1, UNITS + 1) + light * UNITS
        sizes = 0.5 ** exponents(numbers)
        wanted = np.linalg.solve(square, product[..., None])[:, None, :, 0] / sizes[:, None]
        rounded = np.zeros_like(wanted)  # (B, units, n)
        # From the last to the first, each with regard to what the ones before it are off by
        # (Babai's nearest plane).
        for i in reversed(range(n)):
            ratio = upper[:, i, i + 1 :] / upper[:, i, i, None]
            off = wanted[..., i + 1 :] - rounded[..., i + 1 :]
            rounded[..., i] = np.rint(wanted[..., i] + np.einsum("bj,buj->bu", ratio, off))
        rounded = rounded.clip(-MAX_COEFFICIENT, MAX_COEFFICIENT)
        linear = rounded * sizes[:, None]
        nats = np.einsum("bun,bn->bu", linear, product)
        nats -= np.einsum("bun,bnm,bum->bu", linear, square, linear) / 2
        near = rounded.clip(-_REACH, _REACH).astype(np.int64) + _REACH
        beyond = np.abs(rounded) > _REACH
        cost = (self._prices[kinds, near] + _ESCAPE * beyond).sum(-1)
        cost += self._prices[_UNIT, numbers + _REACH] - self._prices[_UNIT, _REACH]
        saved = nats * (share / np.log(2)) - cost
        best = saved.argmax(1)
        pictures = np.arange(len(best))
        worth = saved[pictures, best] > 0
        chosen = np.where(worth[:, None], rounded[pictures, best], 0.0)
        return np.where(worth, numbers[best], 0), chosen.astype(np.int64)


@dataclass
class _Sample:
    """Some positions of a pass. All are integers, float64, so that sums are exact.

    Attributes:
        seen: what coefficients multiply, ``(B, N, n)``.
        pixels, base: ``(B, N)``, in 1/16 of a pixel value; the latter as the levels predict.
        out: what the network says, ``(B, N, 2)``.
        share: positions of the pass for each of these.
    """

    seen: Tensor
    pixels: Tensor
    base: Tensor
    out: Tensor
    share: float

    def mean(self, correction: Tensor | float) -> Tensor:
        shift = (self.out[..., 0] + correction).clamp(-4080, 4080)
        return (self.base + shift).clamp(0, 255 * PIXEL_UNIT)

    def spread(self) -> Tensor:
        return self.out[..., 1].clamp(0, SPREAD.size - 1).long()

    def normal_equations(self) -> tuple[np.ndarray, np.ndarray]:
        """``(B, n, n)`` and ``(B, n)``, weighted so that half a quadratic form is in nats.

        Errors far out count as less: logistic distributions have long tails.
        """
        variance = _variances()
        weights = np.maximum(np.rint(_WEIGHTS * variance.min() / variance), 1)
        limits = np.rint((3 * 2.0 ** SPREAD.values() + 1) * PIXEL_UNIT)
        weight, limit = (_on(self.seen.device, x)[self.spread()] for x in (weights, limits))
        error = (self.pixels - self.mean(0.0)).clamp(-limit, limit)
        weighted = (self.seen * weight[..., None]).transpose(1, 2)
        sums = (weighted @ torch.cat([self.seen, error[..., None]], -1)).cpu().numpy()
        sums /= _WEIGHTS * variance.min() * PIXEL_UNIT**2
        return sums[..., :-1], sums[..., -1]

    def spreads_and_residuals(self, coefficients: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """How often each spread, not shifted, meets each residual: ``(B, 33, 81)``."""
        device = self.seen.device
        linear = self.seen @ _on(device, coefficients.astype(np.float64))[..., None]
        linear = linear[..., 0] * _on(device, sizes)[:, None]
        nearest = torch.floor(self.mean(linear.round()) / PIXEL_UNIT + 0.5)
        residual = (self.pixels / PIXEL_UNIT - nearest).clamp(-RANGE, RANGE).long() + RANGE
        shape = (len(linear), SPREAD.size, 2 * RANGE + 1)
        picture = torch.arange(len(linear), device=device)[:, None]
        cell = (picture * SPREAD.size + self.spread()) * shape[-1] + residual
        return torch.bincount(cell.flatten(), minlength=math.prod(shape)).view(shape).cpu().numpy()


def _variances() -> np.ndarray:
    """By spread, in squared pixel values: the inverse of a logistic's Fisher information.

    What rounds a pixel adds to it.
    """
    return 3 * 4.0 ** SPREAD.values() + 1 / 12


def _prices(tables: Tables, rows: np.ndarray, reach: int) -> np.ndarray:
    """Bits of the symbols -reach .. reach under some tables, ``(len(rows), 2 reach + 1)``."""
    symbols = np.arange(-reach, reach + 1)
    return np.stack([tables.bits(symbols, np.full(len(symbols), row)) for row in rows])

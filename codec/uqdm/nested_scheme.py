"""Runs an exported nested model: pictures to digits and back, pass by pass, exactly."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import bands
from ..bands import BANDS, BLOCK
from ..entropy import PRECISION, Tables
from ..errors import CorruptStreamError, InvalidModelError
from ..modelfiles import check_shapes
from ..resizing import shrink
from ..scheme import Choice, LayerSymbols
from . import pixels, tuning
from .choosing import Prices, choose
from .first import FirstLevel, typical
from .large import LargeNetwork
from .nested import (
    LATTICES,
    OUTPUTS,
    PIXEL_UNIT,
    SETS,
    SHIFT_UNIT,
    NestedConfig,
    colours_of,
    pass_mask,
    pixel_layout,
    predict_pixels,
    to_bands,
)
from .nested_state import NestedState
from .network import IntegerNetwork, NetworkConfig
from .pixels import PixelNetwork
from .places import PlacesNetwork, has_heads
from .scheme import BATCH_PIXELS, Realism
from .tuning import Tuner, Tuning

FLOW_LEVELS = 2
_MAX_BIAS = 1 << 20
_MAX_GRID = float(1 << 20)  # no encoder comes near; keeps forged digits within exact floats


class NestedScheme:
    """The nested quantiser with its network (see ``Scheme``).

    All pictures of one call have the same size. Every number that shapes a table is an integer
    computed exactly, so any batch, tile size, thread count and device gives the same stream.
    """

    uses_stream_id = False
    protected = False  # exact integers choose the tables
    batch_pixels = BATCH_PIXELS

    def __init__(
        self, config: dict[str, Any], tensors: dict[str, Tensor], device: str | torch.device
    ) -> None:
        try:
            self.config = NestedConfig.from_dict(config["nested"])
            network = NetworkConfig.from_dict(config["network"])
            if self.config.colours > 2 and config.get("format", 1) < 3:
                raise ValueError("blocks of more than two colours need a model file of format 3")
            self.device = torch.device(device)
            self._pixels: PixelNetwork | PlacesNetwork | None = None
            if "pixel_network" in config:
                values = config["pixel_network"]
                kind, least = (PlacesNetwork, 4) if has_heads(values) else (PixelNetwork, 2)
                if config.get("format", 1) < least:
                    raise ValueError(f"its pixel network needs a model file of format {least}")
                self._pixels = kind(values, _named("pixel_network.", tensors), self.device)
            self.tables = {name: _tables(tensors, name) for name in ("first", "refine", "residual")}
            if self._pixels is not None:
                self.tables["residual"] = _tables(tensors, "residual", pixels.ROW_LIMIT)
            self._tuned = 0  # channels of a network that streams tune
            if isinstance(self._pixels, PlacesNetwork) and self._pixels.config.tuned:
                if config.get("format", 1) < 5:
                    raise ValueError("a pixel network that is tuned needs a model file of format 5")
                self._tuned = self._pixels.config.network.channels
                self.tables["tuning"] = _tables(tensors, "tuning")
            self._check_tables()
            sizes = (self.config.num_steps, 2 * BANDS, len(OUTPUTS) * BANDS, self.config.colours)
            if (network.steps, network.inputs, network.outputs, network.colours) != sizes:
                raise ValueError(f"its network must have {sizes} steps, inputs, outputs, colours")
            check_shapes(tensors, [("network.head.scale", (sizes[0], sizes[2]), torch.float32)])
            large = IntegerNetwork(network, _named("network.", tensors), self.device)
            rows = self.config.num_steps + ("first_network" in config)
            check_shapes(tensors, [("bias", (rows, len(OUTPUTS), 2, BANDS), torch.int32)])
            if int(tensors["bias"].abs().max()) > _MAX_BIAS:
                raise ValueError("its biases are out of range")
            bias = tensors["bias"].to(self.device, torch.float32)
            self._large = LargeNetwork(self.config, large, bias, self.device)
            self._first: FirstLevel | None = None
            if "first_network" in config:
                self._first = FirstLevel(
                    self.config,
                    config["first_network"],
                    _named("first_network.", tensors),
                    bias,
                    self.device,
                )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidModelError(f"not a nested UQDM model: {error}") from error
        self._no_bands = torch.arange(0, device=self.device)
        self.num_layers = self.config.levels + 1
        self.archive_layers = int(config.get("archive_layers", self.config.levels))
        if not 1 <= self.archive_layers <= self.num_layers:
            raise InvalidModelError("not a nested UQDM model: archive_layers is out of range")

    def _check_tables(self) -> None:
        config = self.config
        expected = {
            "first": 2 * config.first_tilt.size * config.first_width.size,
            "refine": SETS * (config.levels - 1) * config.tilt.size * config.width.size,
            "residual": PIXEL_UNIT * (pixels.SPREAD if self._pixels else config.spread).size,
        }
        if self._tuned:
            expected["tuning"] = tuning.TABLES
        for name, count in expected.items():
            if len(self.tables[name]) != count:
                raise ValueError(f"{len(self.tables[name])} {name} tables, expected {count}")
        for name in ("first", "refine"):
            tables = self.tables[name]
            if len(set(np.diff(tables.start))) > 1 or len(set(tables.first)) > 1:
                raise ValueError(f"its {name} tables must all cover the same digits")

    @cached_property
    def _prices(self) -> tuple[Prices, Prices]:
        """Of the first level's digits, and of all others'; what only an encoder needs."""
        first, refine = (Prices(self.tables[name], self.device) for name in ("first", "refine"))
        return first, refine

    # -- encoding ---------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(
        self, images: Sequence[np.ndarray], stream_ids: Sequence[int], layers: int
    ) -> list[list[LayerSymbols]]:
        height, width = images[0].shape[:2]
        original = torch.from_numpy(np.stack(images)).to(self.device, non_blocking=True)
        original = original.permute(0, 3, 1, 2)
        coefficients = to_bands(_pad(original), self.config)
        state = self.start([(height, width)] * len(images), stream_ids)
        out: list[list[LayerSymbols]] = [[] for _ in images]
        for layer in range(layers):
            parts: list[Tensor] = []
            before = self._passes_before(layer)
            if before:
                state.tuning = Tuner.of(original, self._tuned, self.tables)
            for number in range(before, self.passes(layer)):
                index = self._index(state, layer, number)
                if layer < self.config.levels:
                    rest = self._large.rest(coefficients, state.grid, layer, number)
                    symbols = choose(rest, index, self._prices[layer > 0], self.config.mendable)
                else:
                    symbols = self._residual(original, state, number - before)
                self._take(state, layer, number, symbols)
                parts += [index, symbols]
            fetched, tables = _fetch(parts), self._tables_of(layer)
            for i, stream in enumerate(out):
                choices = [Choice(index[i], tables) for index in fetched[::2]]
                symbols_of_one = [symbols[i] for symbols in fetched[1::2]]
                if before:
                    assert state.tuning is not None
                    choices[:0], symbols_of_one[:0] = state.tuning.parts(i)
                stream.append(LayerSymbols(tuple(choices), tuple(symbols_of_one)))
        return out

    # -- decoding ---------------------------------------------------------------------------------

    def passes(self, layer: int) -> int:
        if layer < self.config.levels:
            return len(self.config.passes[layer])
        of_pixels = 1 if self._pixels is None else len(pixels.PASSES)
        return self._passes_before(layer) + of_pixels

    def _passes_before(self, layer: int) -> int:
        """How many of a layer's passes tell nothing of pixels or coefficients."""
        return tuning.PASSES if layer == self.config.levels and self._tuned else 0

    @torch.inference_mode()
    def least_bits(self, height: int, width: int) -> float:
        """See ``Scheme``: those of the first pass, whose tables depend on the size alone."""
        reach = (self._first or self._large).reach
        period = len(LATTICES[self.config.colours])
        rows, columns = (typical(-(-side // BLOCK), reach, period) for side in (height, width))
        small = (BLOCK * (int(rows.max()) + 1), BLOCK * (int(columns.max()) + 1))
        state = self.start([small], [0])
        (choice,) = self.choices(state, 0, 0)
        board = colours_of(state.first_grid(), self.config).cpu()
        mask = torch.from_numpy(pass_mask(self.config, 0, 0))[board]
        bits = torch.zeros(mask.shape, dtype=torch.float64)
        bits[mask] = torch.from_numpy(choice.tables.least_bits()[choice.index])
        times = torch.outer(torch.bincount(rows), torch.bincount(columns))
        return float((bits.sum(-1) * times).sum())

    def start(self, sizes: Sequence[tuple[int, int]], stream_ids: Sequence[int]) -> NestedState:
        if len(set(sizes)) != 1:
            raise ValueError("pictures of one batch must have one size")
        height, width = sizes[0]
        chosen = self._no_bands if self._first is None else self._first.bands
        return NestedState.empty(len(sizes), height, width, chosen)

    @torch.inference_mode()
    def choices(self, state: NestedState, layer: int, number: int) -> list[Choice]:
        if number < self._passes_before(layer):
            if number == 0:
                count = len(state.grid)
                state.tuning = Tuning.none(count, self._tuned, self.tables["tuning"])
            assert state.tuning is not None
            return state.tuning.choices(number)
        tables = self._tables_of(layer)
        index = self._index(state, layer, number)
        return [Choice(of_one, tables) for of_one in index.cpu().numpy()]

    @torch.inference_mode()
    def update(
        self, state: NestedState, layer: int, number: int, symbols: Sequence[np.ndarray]
    ) -> None:
        if number < self._passes_before(layer):
            assert state.tuning is not None
            state.tuning.take(number, symbols, layer)
            return
        values = torch.from_numpy(np.stack(symbols))
        ends = [float(end) for end in torch.aminmax(values)] if values.numel() else [0.0]
        values = values.to(self.device, non_blocking=True)
        if layer < self.config.levels:
            state.farthest += max(map(abs, ends)) * self.config.unit(layer)
            if state.farthest > _MAX_GRID:
                raise CorruptStreamError(f"layer {layer} leads out of the coefficient range", layer)
        else:
            decoded = self._decoded(state, values)
            strayed = ((decoded < 0) | (decoded > 255)).any()
            state.strayed = strayed if state.strayed is None else strayed | state.strayed
            # Asked once: a device has to be waited for.
            if number == self.passes(layer) - 1 and bool(state.strayed):
                raise CorruptStreamError(f"layer {layer} leads out of the pixel range", layer)
        self._take(state, layer, number, values)

    def _tables_of(self, layer: int) -> Tables:
        name = "first" if layer == 0 else "refine" if layer < self.config.levels else "residual"
        return self.tables[name]

    def _index(self, state: NestedState, layer: int, number: int) -> Tensor:
        """Tables of a pass's symbols, ``(B, n) int32`` on the device."""
        if layer == self.config.levels:
            if self._pixels is not None:
                return self._pixel_index(state, number - self._passes_before(layer))
            return self._residual_index(state)
        if layer == 0 and self._first is not None:
            return self._first.index(state.first_grid(), number)
        return self._large.index(state.grid, layer, number)

    def _take(self, state: NestedState, layer: int, number: int, symbols: Tensor) -> None:
        """Take a pass's symbols, ``(B, n) int32``, into the state."""
        if layer == self.config.levels:
            number -= self._passes_before(layer)
            self._take_pixels(state, number, self._decoded(state, symbols))
        elif layer == 0 and self._first is not None and state.first is not None:
            self._first.update(state.first, number, symbols)
        else:
            self._large.update(state.grid, layer, number, symbols)

    @torch.inference_mode()
    def reconstruct(
        self, state: NestedState, layers: int, realism: Realism = "denoise"
    ) -> list[np.ndarray]:
        if state.pixels is not None:
            return list(state.pixels.permute(0, 2, 3, 1).cpu().numpy())
        if realism == "flow":
            # As the paper's flow, this gives up PSNR for detail that the picture might have: the
            # next levels are drawn from the model. Finer ones than these are hardly visible.
            state = state.copy()
            ahead = range(layers, min(layers + FLOW_LEVELS, self.config.levels))
            # One key for all: a picture must not depend on what is decoded beside it.
            self._draw(state, ahead, layers, [0] * len(state.grid))
            layers = ahead.stop
        x = bands.inverse(self._real(self._large.expected(state.grid, layers)))
        return _to_pictures(x, state.height, state.width)

    @torch.inference_mode()
    def reconstruct_small(
        self,
        state: NestedState,
        layers: int,
        size: tuple[int, int],
        realism: Realism = "denoise",
    ) -> list[np.ndarray]:
        """``reconstruct`` made smaller, to ``size`` (height, width), of the low bands alone.

        Half, a quarter or an eighth of the picture, whichever is still large enough, is resampled.
        After one layer the expectation is the light network's, where the model has one.
        """
        scales = [s for s in bands.SCALES if max(state.height, state.width) >= s * max(size)]
        if not scales or state.pixels is not None or realism != "denoise":
            return [shrink(x, *size) for x in self.reconstruct(state, layers, realism)]
        scale = scales[-1]
        chosen = torch.from_numpy(bands.reduced_bands(scale)).to(self.device)
        if layers == 1 and self._first is not None:
            expected = self._first.expected(state.first_grid(), chosen)
        else:
            expected = self._large.expected(state.grid, layers, chosen)
        x = bands.inverse_reduced(self._real(expected), scale)
        part = state.height / scale, state.width / scale
        pictures = _to_pictures(x, *map(math.ceil, part))
        return [shrink(picture, *size, part) for picture in pictures]

    def _real(self, expected: Tensor) -> Tensor:
        """Coefficients ``(B, n, h, w)`` of pictures in [-1, 1], of conditional means."""
        return (expected * (self.config.last_delta / SHIFT_UNIT)).permute(0, 3, 1, 2)

    # -- the lossless layer -----------------------------------------------------------------------

    @staticmethod
    def _rounded(prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Nearest pixel values and what they are off by, in -8 .. 7 sixteenths."""
        nearest = torch.floor((prediction + PIXEL_UNIT // 2) / PIXEL_UNIT)
        return nearest, prediction - nearest * PIXEL_UNIT

    def _residual_index(self, state: NestedState) -> Tensor:
        config = self.config
        means, spread = self._large.residual(state.grid)
        at = (slice(None), slice(None), slice(state.height), slice(state.width))
        state.prediction = predict_pixels(means, config)[at]
        spread = pixel_layout(spread)[at]
        state.nearest, fraction = self._rounded(state.prediction)
        index = (fraction + PIXEL_UNIT // 2) * config.spread.size + spread
        return index.flatten(1).to(torch.int32)

    def _pixel_index(self, state: NestedState, number: int) -> Tensor:
        assert self._pixels is not None
        if number == 0:
            means = self._large.expected(state.grid, self.config.levels)
            state.prediction = predict_pixels(means, self.config).float()
            state.residual = torch.zeros_like(state.prediction)
        assert state.prediction is not None
        assert state.residual is not None
        mean, spread = self._pixels.predict(
            state.prediction, state.residual, number, state.look, state.tuning
        )
        inside = pixels.inside(number, state.height, state.width)
        state.nearest, fraction = self._rounded(mean[inside])
        index = (fraction + PIXEL_UNIT // 2) * pixels.SPREAD.size + spread[inside]
        return index.flatten(1).to(torch.int32)

    def _residual(self, original: Tensor, state: NestedState, number: int) -> Tensor:
        """A pass's pixels ``(B, n) int32``, of all or of some, less those that are expected."""
        assert state.nearest is not None
        if self._pixels is not None:
            original = pixels.of_pass(original, number, state.height, state.width)
        return (original - state.nearest).flatten(1).to(torch.int32)

    def _decoded(self, state: NestedState, symbols: Tensor) -> Tensor:
        """The pixels that a pass's symbols give, of the shape of ``state.nearest``."""
        assert state.nearest is not None
        return state.nearest + symbols.view(state.nearest.shape)

    def _take_pixels(self, state: NestedState, number: int, decoded: Tensor) -> None:
        """A pass's pixels are known from now on, and after the last one the picture."""
        if self._pixels is None:
            state.pixels = decoded.to(torch.uint8)
            return
        assert state.prediction is not None
        assert state.residual is not None
        base = pixels.of_pass(state.prediction, number, state.height, state.width)
        at = pixels.of_pass(state.residual, number, state.height, state.width)
        at.copy_(decoded * PIXEL_UNIT - base)
        if number == len(pixels.PASSES) - 1:
            whole = (state.prediction + state.residual)[..., : state.height, : state.width]
            state.pixels = (whole / PIXEL_UNIT).to(torch.uint8)

    # -- realism ----------------------------------------------------------------------------------

    def sample(self, height: int, width: int, count: int, *, seed: int = 0) -> list[np.ndarray]:
        """Unconditional samples: every digit drawn from the model, coarse to fine."""
        state = self.start([(height, width)] * count, [0] * count)
        levels = self.config.levels
        self._draw(state, range(levels), seed, range(count))
        return self.reconstruct(state, levels)

    def _draw(self, state: NestedState, levels: range, seed: int, keys: Sequence[int]) -> None:
        """Draw the digits of some levels from the model, with counter-based randomness.

        ``keys`` tell the pictures apart: those of one key and one content come out the same.
        """
        for level in levels:
            for number in range(self.passes(level)):
                drawn = []
                for key, choice in zip(keys, self.choices(state, level, number), strict=True):
                    random = np.random.Philox(key=[seed, level << 40 | number << 32 | key])
                    uniform = np.random.Generator(random).integers(
                        0, 1 << PRECISION, len(choice.index), dtype=np.int32
                    )
                    drawn.append(choice.tables.draw(choice.index, uniform))
                self.update(state, level, number, drawn)


def _fetch(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """Tensors ``(B, n)`` of one type, of whatever n: from a device at once, and waited for once."""
    if tensors[0].device.type == "cpu":
        return [x.numpy() for x in tensors]
    sizes = [x.shape[1] for x in tensors]
    return np.split(torch.cat(list(tensors), 1).cpu().numpy(), np.cumsum(sizes)[:-1], 1)


def _tables(tensors: Mapping[str, Tensor], name: str, *row_limit: int) -> Tables:
    arrays = {k: tensors[f"tables.{name}.{k}"].numpy() for k in ("counts", "start", "first")}
    return Tables.from_arrays(arrays, *row_limit)


def _to_pictures(x: Tensor, height: int, width: int) -> list[np.ndarray]:
    """The top left of ``(B, 3, H, W)`` in [-1, 1] as ``(height, width, 3) uint8`` each."""
    pixels = ((x + 1) * 128 - 0.5).round_().clamp_(0, 255).to(torch.uint8)
    return list(pixels[:, :, :height, :width].permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _pad(pixels: Tensor) -> Tensor:
    """Repeat the last row and column up to whole blocks."""
    height, width = pixels.shape[-2:]
    padding = (0, -width % BLOCK, 0, -height % BLOCK)
    if not any(padding):
        return pixels
    return F.pad(pixels.float(), padding, mode="replicate").to(torch.uint8)

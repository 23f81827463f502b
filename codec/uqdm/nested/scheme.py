"""Runs an exported nested model: pictures to digits and back, pass by pass, exactly."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import CorruptStreamError, InvalidModelError, layer_name
from ...images.resizing import shrink
from ...models.checks import below, check_shapes
from ...numerics import lapped_transform as bands
from ...numerics.lapped_transform import BANDS, BLOCK
from ...scheme import Choice, LayerSymbols
from ...stream.entropy import PRECISION, Tables
from ..scheme import BATCH_PIXELS, MEAN
from . import pixel_lattice as pixels
from .bands import from_bands, padded, to_arrays, to_bands, to_pictures
from .digit_choice import Prices, choose
from .first_network import FirstLayout, FirstLevel, typical
from .head import Head
from .integer_network import IntegerNetwork, NetworkConfig
from .level_network import LevelNetworks
from .lossless import LosslessLayer, check_count, layer_symbols
from .pass_network import IntegerPasses, PassConfig
from .pixel_network import PlacesNetwork
from .schedule import (
    LATTICES,
    OUTPUTS,
    SETS,
    SHIFT_UNIT,
    NestedConfig,
    lattice_of,
    pass_mask,
)
from .state import NestedState

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
        self,
        config: dict[str, Any],
        tensors: dict[str, Tensor],
        device: str | torch.device,
    ) -> None:
        try:
            self.config = NestedConfig.from_dict(config["nested"])
            self.device = torch.device(device)
            self.tables = {name: _tables(tensors, name) for name in ("first", "refine")}
            self._check_tables()
            self._levels = self._level_networks(config, tensors)
            layout = FirstLayout.of(self.config)
            self._first = FirstLevel(
                self.config,
                config["first_network"],
                below("first_network.", tensors),
                self._biases(tensors, "first_bias", layout.steps),
                self.device,
            )
            self._lossless = self._lossless_layer(config, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidModelError(f"not a nested UQDM model: {error}") from error
        self.lossless = self._lossless is not None
        self.num_layers = self.config.levels + self.lossless
        self.archive_layers = int(config.get("archive_layers", self.config.levels))
        if not 1 <= self.archive_layers <= self.num_layers:
            raise InvalidModelError("not a nested UQDM model: archive_layers is out of range")
        self._heads: dict[str, Head | InvalidModelError] = {}

    def add_head(
        self, decoder: str, read: Callable[[], tuple[dict[str, Any], dict[str, Tensor]]]
    ) -> None:
        """Offer a reconstruction head as a decoder. A damaged one is complained of when used.

        Args:
            read: gives its configuration and tensors, or raises InvalidModelError.
        """
        levels = self.config.levels, self.trunk_channels
        try:
            self._heads[decoder] = Head(*read(), *levels, self.device)
        except InvalidModelError as error:
            self._heads[decoder] = error

    @property
    def trunk_channels(self) -> int:
        return self._levels.trunk_channels

    @property
    def decoders(self) -> tuple[str, ...]:
        """Ways to show a stream: the mean, and heads."""
        return (MEAN, *self._heads)

    @property
    def default_decoder(self) -> str:
        return "eyes" if "eyes" in self._heads else MEAN

    def _check_tables(self) -> None:
        config = self.config
        expected = {
            "first": 2 * config.first_tilt.size * config.first_width.size,
            "refine": SETS * (config.levels - 1) * config.tilt.size * config.width.size,
        }
        for name, count in expected.items():
            check_count(self.tables, name, count)
            tables = self.tables[name]
            if len(set(np.diff(tables.start))) > 1 or len(set(tables.first)) > 1:
                raise ValueError(f"its {name} tables must all cover the same digits")

    def _biases(self, tensors: Mapping[str, Tensor], name: str, rows: int) -> Tensor:
        check_shapes({name: tensors[name]}, [(name, (rows, len(OUTPUTS), 2, BANDS), torch.int32)])
        if int(tensors[name].abs().max()) > _MAX_BIAS:
            raise ValueError("its biases are out of range")
        return tensors[name].to(self.device, torch.float32)

    def _level_networks(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor]
    ) -> LevelNetworks:
        network = NetworkConfig.from_dict(config["network"])
        passes = PassConfig.from_dict(config["pass_network"])
        levels, later = self.config.levels, len(self.config.later_passes())
        sizes = (levels, 2 * BANDS, len(OUTPUTS) * BANDS, LATTICES)
        if (network.steps, network.inputs, network.outputs, network.colours) != sizes:
            raise ValueError(f"its network must have {sizes} steps, inputs, outputs, colours")
        if (passes.trunk, passes.levels, passes.steps) != (network.channels, levels - 1, later):
            raise ValueError("its pass network does not fit its levels, passes and network")
        own, added = (below(f"{name}.", tensors) for name in ("network", "pass_network"))
        for t, steps, outputs in ((own, levels, sizes[2]), (added, later, 2 * BANDS)):
            check_shapes(
                {"head.scale": t["head.scale"]}, [("head.scale", (steps, outputs), torch.float32)]
            )
        return LevelNetworks(
            self.config,
            IntegerNetwork(network, own, self.device),
            IntegerPasses(passes, added, self.device),
            self._biases(tensors, "bias", levels),
            self.device,
        )

    def _lossless_layer(
        self, config: dict[str, Any], tensors: Mapping[str, Tensor]
    ) -> LosslessLayer | None:
        """The lossless layer, whose tables join the others; None where the model has none."""
        if "pixel_network" not in config:
            return None
        own = below("pixel_network.", tensors)
        network = PlacesNetwork(config["pixel_network"], own, self.device)
        self.tables["residual"] = _tables(tensors, "residual", pixels.ROW_LIMIT)
        self.tables["tuning"] = _tables(tensors, "tuning")
        return LosslessLayer(self.config, self._levels, self.tables, network)

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
        original, coefficients, state = self._begin(images, stream_ids)
        out: list[list[LayerSymbols]] = [[] for _ in images]
        for layer in range(layers):
            if layer < self.config.levels:
                coded = self._encode_level(coefficients, state, layer)
            else:
                assert self._lossless is not None
                coded = self._lossless.encode(original, state)
            for stream, symbols in zip(out, coded, strict=True):
                stream.append(symbols)
        return out

    def _begin(
        self, images: Sequence[np.ndarray], stream_ids: Sequence[int]
    ) -> tuple[Tensor, Tensor, NestedState]:
        """Pictures of one size ``(B, 3, H, W) uint8``, their coefficients, and an empty state."""
        height, width = images[0].shape[:2]
        original = torch.from_numpy(np.stack(images)).to(self.device, non_blocking=True)
        original = original.permute(0, 3, 1, 2)
        state = self.start([(height, width)] * len(images), stream_ids)
        return original, to_bands(padded(original), self.config), state

    @torch.inference_mode()
    def states(self, images: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
        """What a decoder knows of pictures after each level, for those who train a head.

        The trunk's look ``(B, h, w, channels) int8``, and what is expected of each coefficient,
        ``(B, h, w, 192)`` in 1/32 of the last Delta.
        """
        _, coefficients, state = self._begin(images, [0] * len(images))
        for level in range(self.config.levels):
            self._encode_level(coefficients, state, level)
            trunk = self._levels.trunk(state.grid, level + 1)
            yield trunk, self._levels.expected_of(trunk, state.grid, level + 1)

    def _encode_level(
        self, coefficients: Tensor, state: NestedState, level: int
    ) -> list[LayerSymbols]:
        parts: list[Tensor] = []
        for number in range(self.passes(level)):
            index = self._index(state, level, number)
            if level == 0:
                rest = self._first.rest(coefficients, number)
            else:
                assert state.level_look is not None
                rest = self._levels.rest(coefficients, state.level_look, number)
            symbols = choose(rest, index, self._prices[level > 0], self.config.mendable)
            self._take(state, level, number, symbols)
            parts += [index, symbols]
        return layer_symbols(parts, self._tables_of(level))

    # -- decoding ---------------------------------------------------------------------------------

    def passes(self, layer: int) -> int:
        if layer < self.config.levels:
            return len(self.config.passes[layer])
        assert self._lossless is not None
        return self._lossless.passes

    @torch.inference_mode()
    def least_bits(self, height: int, width: int) -> float:
        """See ``Scheme``: those of the first pass, whose tables depend on the size alone."""
        reach = self._first.reach
        rows, columns = (typical(-(-side // BLOCK), reach) for side in (height, width))
        small = (BLOCK * (int(rows.max()) + 1), BLOCK * (int(columns.max()) + 1))
        state = self.start([small], [0])
        (choice,) = self.choices(state, 0, 0)
        board = lattice_of(state.first_grid()).cpu()
        mask = torch.from_numpy(pass_mask(self.config, 0, 0))[board]
        bits = torch.zeros(mask.shape, dtype=torch.float64)
        bits[mask] = torch.from_numpy(choice.tables.least_bits()[choice.index])
        times = torch.outer(torch.bincount(rows), torch.bincount(columns))
        return float((bits.sum(-1) * times).sum())

    def start(self, sizes: Sequence[tuple[int, int]], stream_ids: Sequence[int]) -> NestedState:
        if len(set(sizes)) != 1:
            raise ValueError("pictures of one batch must have one size")
        height, width = sizes[0]
        return NestedState.empty(len(sizes), height, width, self._first.bands)

    @torch.inference_mode()
    def choices(self, state: NestedState, layer: int, number: int) -> list[Choice]:
        if layer == self.config.levels:
            assert self._lossless is not None
            return self._lossless.choices(state, number)
        tables = self._tables_of(layer)
        index = self._index(state, layer, number)
        return [Choice(of_one, tables) for of_one in index.cpu().numpy()]

    @torch.inference_mode()
    def update(
        self, state: NestedState, layer: int, number: int, symbols: Sequence[np.ndarray]
    ) -> None:
        if layer == self.config.levels:
            assert self._lossless is not None
            self._lossless.update(state, number, symbols)
            return
        values = torch.from_numpy(np.stack(symbols))
        ends = [float(end) for end in torch.aminmax(values)] if values.numel() else [0.0]
        values = values.to(self.device, non_blocking=True)
        state.farthest += max(map(abs, ends)) * self.config.unit(layer)
        if state.farthest > _MAX_GRID:
            name = layer_name(layer)
            raise CorruptStreamError(f"{name} leads out of the coefficient range", layer)
        self._take(state, layer, number, values)

    def _tables_of(self, level: int) -> Tables:
        return self.tables["refine" if level else "first"]

    def _index(self, state: NestedState, level: int, number: int) -> Tensor:
        """Tables of a pass's digits, ``(B, n) int32`` on the device."""
        if level == 0:
            return self._first.index(state.first_grid(), number)
        if number == 0:
            state.level_look = self._levels.look(state.grid, level)
        assert state.level_look is not None
        return self._levels.index(state.grid, state.level_look, number)

    def _take(self, state: NestedState, level: int, number: int, digits: Tensor) -> None:
        """Take a pass's digits, ``(B, n) int32``, into the state."""
        if level == 0:
            assert state.first is not None
            self._first.update(state.first, number, digits)
            return
        assert state.level_look is not None
        self._levels.update(state.grid, state.level_look, number, digits)
        if number == self.passes(level) - 1:
            state.level_look = None

    @torch.inference_mode()
    def reconstruct(
        self, state: NestedState, layers: int, decoder: str | None = None
    ) -> list[np.ndarray]:
        """Pictures of a state, by the ``default_decoder`` or by another one.

        One layer is shown as the mean unless a decoder is named: a head would take more than a
        third of the time there, and hardly change how it looks.
        """
        if state.pixels is not None:
            return list(state.pixels.permute(0, 2, 3, 1).cpu().numpy())
        head = self._head(MEAN if decoder is None and layers == 1 else decoder)
        if head is None or layers == 0:
            expected = self._levels.expected(state.grid, layers)
        else:
            trunk = self._levels.trunk(state.grid, layers)
            expected = head(trunk, self._levels.expected_of(trunk, state.grid, layers), layers)
        x = to_pictures(expected / SHIFT_UNIT, self.config)
        return to_arrays(x, state.height, state.width)

    def _head(self, decoder: str | None) -> Head | None:
        """That of a decoder; None for the mean. Raises InvalidModelError for a damaged one."""
        name = decoder or self.default_decoder
        if name == MEAN:
            return None
        head = self._heads[name]
        if isinstance(head, InvalidModelError):
            raise InvalidModelError(f"{head} (--decoder {MEAN} needs no head)")
        return head

    @torch.inference_mode()
    def reconstruct_small(
        self,
        state: NestedState,
        layers: int,
        size: tuple[int, int],
        decoder: str | None = None,
    ) -> list[np.ndarray]:
        """``reconstruct`` made smaller, to ``size`` (height, width), of the low bands alone.

        Half, a quarter or an eighth of the picture, whichever is still large enough, is resampled:
        of means, unless a decoder is named that is another one. After one layer they are the light
        network's.
        """
        scales = [s for s in bands.SCALES if max(state.height, state.width) >= s * max(size)]
        if not scales or state.pixels is not None or decoder not in (None, MEAN):
            return [shrink(x, *size) for x in self.reconstruct(state, layers, decoder)]
        scale = scales[-1]
        chosen = torch.from_numpy(bands.reduced_bands(scale)).to(self.device)
        if layers == 1:
            expected = self._first.expected(state.first_grid(), chosen)
        else:
            expected = self._levels.expected(state.grid, layers, chosen)
        low = from_bands(expected / SHIFT_UNIT, self.config, chosen)
        x = bands.inverse_reduced(low, scale, self.config.synthesis)
        part = state.height / scale, state.width / scale
        pictures = to_arrays(x, *map(math.ceil, part))
        return [shrink(picture, *size, part) for picture in pictures]

    # -- samples ----------------------------------------------------------------------------------

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


def _tables(tensors: Mapping[str, Tensor], name: str, *row_limit: int) -> Tables:
    arrays = {k: tensors[f"tables.{name}.{k}"].numpy() for k in ("counts", "start", "first")}
    return Tables.from_arrays(arrays, *row_limit)

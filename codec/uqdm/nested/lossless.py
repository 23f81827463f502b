"""The lossless layer of a nested model: pixels, less what the levels and a network expect of them.

Of two kinds. ``AtOnce`` codes all of them in one pass, with what the large network says; a model
with a network for pixels (``pixel_lattice.py``, ``pixel_network.py``) has ``PixelByPixel``: twelve
passes, before which a stream may tune the network to its picture (``tuning.py``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import CorruptStreamError
from ...scheme import Choice, LayerSymbols
from ...stream.entropy import Tables
from . import pixel_lattice as pixels
from . import tuning
from .level_network import LargeNetwork
from .pixel_lattice import PixelNetwork
from .pixel_network import PlacesNetwork, has_heads
from .schedule import PIXEL_UNIT, NestedConfig, pixel_layout, predict_pixels
from .state import NestedState
from .tuning import Tuner, Tuning


class AtOnce:
    """All pixels in one pass.

    Args:
        tables: those of the model, by name.
        count: how many tables of residuals there must be.

    Attributes:
        passes: of the layer.
        before: how many of them tell nothing of pixels yet.
    """

    passes, before = 1, 0

    def __init__(
        self, config: NestedConfig, large: LargeNetwork, tables: Mapping[str, Tables], count: int
    ) -> None:
        check_count(tables, "residual", count)
        self._config, self._large, self._tables = config, large, tables

    def encode(self, original: Tensor, state: NestedState) -> list[LayerSymbols]:
        """The layer of pictures ``(B, 3, H, W) uint8``, whose levels are in the state."""
        parts: list[Tensor] = []
        for number in range(self._of_pixels):
            index = self._index(state, number)
            assert state.nearest is not None
            symbols = self._own(original, number) - state.nearest
            self._take(state, number, state.nearest + symbols)
            parts += [index, symbols.flatten(1).to(torch.int32)]
        return layer_symbols(parts, self._tables["residual"])

    def choices(self, state: NestedState, number: int) -> list[Choice]:
        """See ``Scheme``."""
        index = self._index(state, number)
        return [Choice(of_one, self._tables["residual"]) for of_one in index.cpu().numpy()]

    def update(self, state: NestedState, number: int, symbols: Sequence[np.ndarray]) -> None:
        """See ``Scheme``. Raises CorruptStreamError after the last pass, for all of them."""
        assert state.nearest is not None
        values = torch.from_numpy(np.stack(symbols)).to(state.nearest.device, non_blocking=True)
        decoded = state.nearest + values.view(state.nearest.shape)
        strayed = ((decoded < 0) | (decoded > 255)).any()
        state.strayed = strayed if state.strayed is None else strayed | state.strayed
        # Asked once: a device has to be waited for.
        if number == self._of_pixels - 1 and bool(state.strayed):
            layer = self._config.levels
            raise CorruptStreamError(f"layer {layer} leads out of the pixel range", layer)
        self._take(state, number, decoded)

    # -- what kinds differ in: ``number`` counts the passes of pixels -----------------------------

    _of_pixels = 1

    def _index(self, state: NestedState, number: int) -> Tensor:
        """Tables of a pass's symbols, ``(B, n) int32``; sets ``state.nearest``."""
        means, spread = self._large.residual(state.grid)
        at = (slice(None), slice(None), slice(state.height), slice(state.width))
        state.prediction = predict_pixels(means, self._config)[at]
        state.nearest, index = pixels.table_numbers(
            state.prediction, pixel_layout(spread)[at], self._config.spread.size
        )
        return index.flatten(1).to(torch.int32)

    def _own(self, original: Tensor, number: int) -> Tensor:
        """The pixels of a pass."""
        return original

    def _take(self, state: NestedState, number: int, decoded: Tensor) -> None:
        """A pass's pixels are known from now on, and after the last one the picture."""
        state.pixels = decoded.to(torch.uint8)


class PixelByPixel(AtOnce):
    """A network's passes, and before them those of the tuning where streams tune it."""

    _of_pixels = len(pixels.PASSES)

    def __init__(
        self,
        config: NestedConfig,
        large: LargeNetwork,
        tables: Mapping[str, Tables],
        network: PixelNetwork | PlacesNetwork,
    ) -> None:
        places = network.config if isinstance(network, PlacesNetwork) else None
        bounded = places is not None and places.bounded
        super().__init__(config, large, tables, pixels.table_count(bounded))
        self.network = network
        self._rooms = torch.tensor(pixels.ROOMS, device=network.device) if bounded else None
        self._channels = 0  # of a network that streams tune
        if places is not None and places.tuned:
            self._channels = places.network.channels
            check_count(tables, "tuning", tuning.TABLES)
        self.before = tuning.PASSES if self._channels else 0
        self.passes = self.before + self._of_pixels

    def encode(self, original: Tensor, state: NestedState) -> list[LayerSymbols]:
        """See ``AtOnce.encode``."""
        if not self._channels:
            return super().encode(original, state)
        state.tuning = Tuner.of(original, self._channels, self._tables)
        layers = []
        for i, layer in enumerate(super().encode(original, state)):
            choices, symbols = state.tuning.parts(i)
            layers.append(LayerSymbols((*choices, *layer.choices), (*symbols, *layer.symbols)))
        return layers

    def choices(self, state: NestedState, number: int) -> list[Choice]:
        """See ``Scheme``."""
        if number >= self.before:
            return super().choices(state, number - self.before)
        if number == 0:
            state.tuning = Tuning.none(len(state.grid), self._channels, self._tables["tuning"])
        assert state.tuning is not None
        return state.tuning.choices(number)

    def update(self, state: NestedState, number: int, symbols: Sequence[np.ndarray]) -> None:
        """See ``Scheme``."""
        if number >= self.before:
            super().update(state, number - self.before, symbols)
            return
        assert state.tuning is not None
        state.tuning.take(number, symbols, self._config.levels)

    def _index(self, state: NestedState, number: int) -> Tensor:
        if number == 0:
            means = self._large.expected(state.grid, self._config.levels)
            state.prediction = predict_pixels(means, self._config).float()
            state.residual = torch.zeros_like(state.prediction)
        assert state.prediction is not None
        assert state.residual is not None
        mean, spread = self.network.predict(
            state.prediction, state.residual, number, state.look, state.tuning
        )
        inside = pixels.inside(number, state.height, state.width)
        mean, spread = mean[inside], spread[inside]
        state.nearest, index = pixels.table_numbers(mean, spread, pixels.SPREAD.size)
        if self._rooms is not None:
            index = pixels.at_ends(index, state.nearest, spread, self._rooms)
        return index.flatten(1).to(torch.int32)

    def _own(self, original: Tensor, number: int) -> Tensor:
        return pixels.of_pass(original, number, *original.shape[2:])

    def _take(self, state: NestedState, number: int, decoded: Tensor) -> None:
        assert state.prediction is not None
        assert state.residual is not None
        base = pixels.of_pass(state.prediction, number, state.height, state.width)
        at = pixels.of_pass(state.residual, number, state.height, state.width)
        at.copy_(decoded * PIXEL_UNIT - base)
        if number == self._of_pixels - 1:
            whole = (state.prediction + state.residual)[..., : state.height, : state.width]
            state.pixels = (whole / PIXEL_UNIT).to(torch.uint8)


def load_network(
    config: Mapping[str, Any], tensors: dict[str, Tensor], device: torch.device
) -> PixelNetwork | PlacesNetwork:
    """The network for pixels of a model file, its format checked. Raises ValueError, KeyError."""
    values, version = config["pixel_network"], config.get("format", 1)
    network: PixelNetwork | PlacesNetwork
    if has_heads(values):
        network = PlacesNetwork(values, tensors, device)
        least = network.config.format
    else:
        network, least = PixelNetwork(values, tensors, device), 2
    if version < least:
        raise ValueError(f"its pixel network needs a model file of format {least}")
    return network


def check_count(tables: Mapping[str, Tables], name: str, count: int) -> None:
    """Raises ValueError unless there are so many tables of a name."""
    if len(tables[name]) != count:
        raise ValueError(f"{len(tables[name])} {name} tables, expected {count}")


def layer_symbols(parts: Sequence[Tensor], tables: Tables) -> list[LayerSymbols]:
    """A layer of each picture, of the table indices and symbols of its passes in turn.

    ``(B, n) int32`` each, of whatever n: from a device at once, and waited for once.
    """
    if parts[0].device.type == "cpu":
        fetched = [x.numpy() for x in parts]
    else:
        ends = np.cumsum([x.shape[1] for x in parts])[:-1]
        fetched = np.split(torch.cat(list(parts), 1).cpu().numpy(), ends, 1)
    return [
        LayerSymbols(
            tuple(Choice(index[i], tables) for index in fetched[::2]),
            tuple(symbols[i] for symbols in fetched[1::2]),
        )
        for i in range(len(parts[0]))
    ]

"""The lossless layer of a nested model: pixels, less what the levels and a network expect of them.

Twelve passes of a network for pixels (``pixel_lattice.py``, ``pixel_network.py``), before which a
stream may tune the network to its picture (``tuning.py``).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...errors import CorruptStreamError, layer_name
from ...scheme import Choice, LayerSymbols
from ...stream.entropy import Tables
from . import pixel_lattice as pixels
from . import tuning
from .bands import predict_pixels
from .level_network import LevelNetworks
from .pixel_network import PlacesNetwork
from .schedule import PIXEL_UNIT, NestedConfig
from .state import NestedState
from .tuning import Tuner, Tuning


class LosslessLayer:
    """Passes of a network for pixels, and before them those of the picture's tuning.

    Args:
        tables: those of the model, by name.

    Attributes:
        passes: of the layer.
    """

    passes = tuning.PASSES + len(pixels.PASSES)

    def __init__(
        self,
        config: NestedConfig,
        levels: LevelNetworks,
        tables: Mapping[str, Tables],
        network: PlacesNetwork,
    ) -> None:
        check_count(tables, "residual", pixels.TABLES)
        check_count(tables, "tuning", tuning.TABLES)
        self._config, self._levels, self._tables = config, levels, tables
        self.network = network
        self._rooms = torch.tensor(pixels.ROOMS, device=network.device)
        self._channels = network.config.network.channels

    def encode(self, original: Tensor, state: NestedState) -> list[LayerSymbols]:
        """The layer of pictures ``(B, 3, H, W) uint8``, whose levels are in the state."""
        state.tuning = Tuner.of(original, self._channels, self._tables)
        parts: list[Tensor] = []
        for number in range(len(pixels.PASSES)):
            index = self._index(state, number)
            assert state.nearest is not None
            own = pixels.of_pass(original, number, *original.shape[2:])
            symbols = own - state.nearest
            self._take(state, number, state.nearest + symbols)
            parts += [index, symbols.flatten(1).to(torch.int32)]
        layers = []
        for i, layer in enumerate(layer_symbols(parts, self._tables["residual"])):
            choices, symbols_of = state.tuning.parts(i)
            layers.append(LayerSymbols((*choices, *layer.choices), (*symbols_of, *layer.symbols)))
        return layers

    def choices(self, state: NestedState, number: int) -> list[Choice]:
        """See ``Scheme``."""
        if number >= tuning.PASSES:
            index = self._index(state, number - tuning.PASSES)
            return [Choice(of_one, self._tables["residual"]) for of_one in index.cpu().numpy()]
        if number == 0:
            state.tuning = Tuning.none(len(state.grid), self._channels, self._tables["tuning"])
        assert state.tuning is not None
        return state.tuning.choices(number)

    def update(self, state: NestedState, number: int, symbols: Sequence[np.ndarray]) -> None:
        """See ``Scheme``. Raises CorruptStreamError after the last pass, for all of them."""
        layer = self._config.levels
        if number < tuning.PASSES:
            assert state.tuning is not None
            state.tuning.take(number, symbols, layer)
            return
        assert state.nearest is not None
        values = torch.from_numpy(np.stack(symbols)).to(state.nearest.device, non_blocking=True)
        decoded = state.nearest + values.view(state.nearest.shape)
        strayed = ((decoded < 0) | (decoded > 255)).any()
        state.strayed = strayed if state.strayed is None else strayed | state.strayed
        # Asked once: a device has to be waited for.
        if number == self.passes - 1 and bool(state.strayed):
            raise CorruptStreamError(f"{layer_name(layer)} leads out of the pixel range", layer)
        self._take(state, number - tuning.PASSES, decoded)

    def _index(self, state: NestedState, number: int) -> Tensor:
        """Tables of the symbols of a pass of pixels, ``(B, n) int32``; sets ``state.nearest``."""
        if number == 0:
            means = self._levels.expected(state.grid, self._config.levels)
            state.prediction = predict_pixels(means, self._config).float()
            state.residual = torch.zeros_like(state.prediction)
        assert state.prediction is not None
        assert state.residual is not None
        mean, spread = self.network.predict(
            state.prediction, state.residual, number, state.look, state.tuning
        )
        inside = pixels.inside(number, state.height, state.width)
        state.nearest, index = pixels.table_numbers(mean[inside], spread[inside], self._rooms)
        return index.flatten(1).to(torch.int32)

    def _take(self, state: NestedState, number: int, decoded: Tensor) -> None:
        """The pixels of a pass are known from now on, and after the last one the picture."""
        assert state.prediction is not None
        assert state.residual is not None
        base = pixels.of_pass(state.prediction, number, state.height, state.width)
        at = pixels.of_pass(state.residual, number, state.height, state.width)
        at.copy_(decoded * PIXEL_UNIT - base)
        if number == len(pixels.PASSES) - 1:
            whole = (state.prediction + state.residual)[..., : state.height, : state.width]
            state.pixels = (whole / PIXEL_UNIT).to(torch.uint8)


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
    fetched = [_narrow(part) for part in fetched]  # they wait for the coder, all layers together
    return [
        LayerSymbols(
            tuple(Choice(index[i], tables) for index in fetched[::2]),
            tuple(symbols[i] for symbols in fetched[1::2]),
        )
        for i in range(len(parts[0]))
    ]


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """The same integers in the narrowest type that holds them, and one more."""
    if not numbers.size:
        return numbers
    least, most = int(numbers.min()), int(numbers.max())
    for kind in (np.int8, np.int16):
        if np.iinfo(kind).min <= least and most < np.iinfo(kind).max:
            return numbers.astype(kind)
    return numbers

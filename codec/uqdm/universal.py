"""Universal quantisation in pixel space: the paper's own model, exact on both sides.

Each layer is one diffusion step z_t -> z_s (Yang, Will, Mandt 2025)::

    encoder   k = round(posterior mean(z_t, x) / Delta + u)      u: dither both sides draw
    both      z_s = (k - u) Delta                                integers and stored constants only
    both      table of k  <-  grid  <-  prior mean and scale  <-  network(z_t)

The last layer codes the pixels themselves given z_0. The network only ever chooses tables; it never
enters the latents, so its float noise cannot accumulate from layer to layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import dither
from ..errors import CorruptStreamError, InvalidModelError
from ..modelfiles import build
from ..scheme import Choice, LayerSymbols
from . import diffusion, tiles
from .diffusion import Step
from .grid import Grid
from .scheme import BATCH_PIXELS, Realism
from .unet import TILE, UNet
from .universal_model import UniversalConfig


@dataclass
class _Picture:
    """One picture while it is encoded or decoded; arrays are CHW and at least TILE x TILE.

    Attributes:
        size: height and width of the picture itself, at the top left of the arrays.
        latent: z after the layers so far, float64.
        prediction: the network's noise and scale factor for ``latent``, once computed.
        chosen: tables of the layer at hand, for the whole arrays, padding included.
        pixels: after the last layer, the picture ``(3, height, width) uint8``.
    """

    size: tuple[int, int]
    stream_id: int
    latent: np.ndarray
    prediction: tuple[np.ndarray, np.ndarray] | None = None
    chosen: Choice | None = None
    pixels: np.ndarray | None = None

    def inside(self, values: np.ndarray) -> np.ndarray:
        """The part of ``values``, one per array element, that belongs to the picture: ``(n,)``."""
        height, width = self.size
        return values.reshape(self.latent.shape)[:, :height, :width].reshape(-1)

    def inside_choice(self, choice: Choice) -> Choice:
        assert choice.offset is not None
        return Choice(self.inside(choice.index), choice.tables, self.inside(choice.offset))


State = list[_Picture]


class UniversalScheme:
    """The quantiser of one model; see ``Scheme``.

    ``tensors`` are what ``UniversalModel.export`` gives. Raises InvalidModelError where they do not
    fit the configuration.
    """

    uses_stream_id = True
    batch_pixels = BATCH_PIXELS

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str | torch.device
    ) -> None:
        self.device = torch.device(device)
        try:
            self.config = UniversalConfig.from_dict(config)
            arrays = {
                name: tensor.cpu().numpy()
                for name, tensor in tensors.items()
                if not name.startswith("network.")
            }
            self.steps = diffusion.unstack(arrays["steps"])
            self._quantiles = arrays["normal_quantiles"]
            self._grid = Grid.from_arrays(_below("prior.", arrays))
            self._pixel_grid = Grid.from_arrays(_below("pixels.", arrays))
            network = _below("network.", tensors)
            self._network = build(lambda: UNet(self.config.network), network)
            self._network.load_state_dict(network)
            self._network.to(self.device).eval()
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InvalidModelError(f"not a model with a universal quantiser: {error}") from error
        if len(self.steps) != self.config.steps or self._quantiles.shape != (dither.QUANTILES,):
            raise InvalidModelError("the model's constants do not fit its configuration")
        self._modes = _most_probable(self._grid)
        self._least_bits: float | None = None  # of a window, once it was asked for
        self.num_layers = self.config.steps + 1
        self.archive_layers = self.config.steps - 1  # z_0 has more noise than pixels have: 70 dB

    def passes(self, layer: int) -> int:
        return 1

    def least_bits(self, height: int, width: int) -> float:
        """See ``Scheme``: half of one window's times the windows, for all begin as pure noise."""
        if self._least_bits is None:
            (choice,) = self.choices(self.start([(TILE, TILE)], [0]), 0, 0)
            self._least_bits = float(self._grid.tables.least_bits()[choice.index].sum()) / 2
        return self._least_bits * (height * width / TILE**2)

    def encode(
        self, images: Sequence[np.ndarray], stream_ids: Sequence[int], layers: int
    ) -> list[list[LayerSymbols]]:
        """The first ``layers`` layers of each picture ``(H, W, 3) uint8``."""
        state = self.start([image.shape[:2] for image in images], stream_ids)
        padded = [_pad(image.transpose(2, 0, 1)) for image in images]
        coded: list[list[LayerSymbols]] = [[] for _ in images]
        for layer in range(layers):
            choices = self.choices(state, layer, 0)
            symbols = [
                picture.inside(self._quantize(picture, layer, x)) - choice.offset
                for picture, choice, x in zip(state, choices, padded, strict=True)
            ]
            symbols = [s.astype(np.int32) for s in symbols]
            self.update(state, layer, 0, symbols)
            for layers_so_far, choice, s in zip(coded, choices, symbols, strict=True):
                layers_so_far.append(LayerSymbols((choice,), (s,)))
        return coded

    def _quantize(self, picture: _Picture, layer: int, pixels: np.ndarray) -> np.ndarray:
        if layer == self.config.steps:
            return pixels.astype(np.int64)
        step, u = self.steps[layer], self._dither(picture, layer)
        x = diffusion.from_pixels(pixels.astype(np.float64))
        mean = diffusion.posterior_mean(step, picture.latent, x)
        return diffusion.quantize(step, mean, u)

    def start(self, sizes: Sequence[tuple[int, int]], stream_ids: Sequence[int]) -> State:
        """Both sides draw z_1 from the prior, so it costs no bits."""
        state = []
        for (height, width), stream_id in zip(sizes, stream_ids, strict=True):
            shape = (3, max(height, TILE), max(width, TILE))
            latent = dither.normal(stream_id, 0, shape, self._quantiles)
            state.append(_Picture((height, width), stream_id, latent))
        return state

    def choices(self, state: State, layer: int, number: int) -> list[Choice]:
        """Tables of each picture's pixels; those of the padding stay in the state."""
        if layer == self.config.steps:
            for picture in state:
                y = self._pixels(picture.latent).clip(0, 255).reshape(-1)
                picture.chosen = self._pixel_grid.choose(y, np.zeros_like(y))
        else:
            step = self.steps[layer]
            self._predict(state, step)
            for picture in state:
                assert picture.prediction is not None
                noise, factor = picture.prediction
                x_hat = diffusion.predicted_x(step, picture.latent, noise)
                mean = diffusion.posterior_mean(step, picture.latent, x_hat) / step.width
                mean += self._dither(picture, layer)
                scale = factor * (step.scale / step.width)
                picture.chosen = self._grid.choose(mean.reshape(-1), scale.reshape(-1))
        return [picture.inside_choice(picture.chosen) for picture in state if picture.chosen]

    def update(self, state: State, layer: int, number: int, symbols: Sequence[np.ndarray]) -> None:
        for picture, decoded in zip(state, symbols, strict=True):
            chosen = picture.chosen
            assert chosen is not None
            assert chosen.offset is not None
            height, width = picture.size
            inside = decoded.reshape(3, height, width).astype(np.int64)
            offset = chosen.offset.reshape(picture.latent.shape)
            if layer == self.config.steps:
                values = inside + offset[:, :height, :width]
                if values.min() < 0 or values.max() > 255:
                    raise CorruptStreamError(f"layer {layer} holds impossible pixels", layer)
                picture.pixels = values.astype(np.uint8)
            else:
                # Padding is not coded: it takes its most probable symbols, which both sides know.
                k = self._modes[chosen.index].reshape(offset.shape) + offset
                k[:, :height, :width] = inside + offset[:, :height, :width]
                step, u = self.steps[layer], self._dither(picture, layer)
                picture.latent = diffusion.dequantize(step, k, u)
            picture.prediction = picture.chosen = None

    def reconstruct(
        self, state: State, layers: int, realism: Realism = "denoise"
    ) -> list[np.ndarray]:
        """By x_hat of the last latent ('denoise') or along the flow to t = 0 ('flow')."""
        steps = self.config.steps
        if layers > steps:
            return [p.pixels.transpose(1, 2, 0) for p in state if p.pixels is not None]
        if layers == steps:
            predicted = [self._pixels(picture.latent) for picture in state]
        elif realism == "denoise":
            step = self.steps[layers]
            self._predict(state, step)
            predicted = [
                diffusion.to_pixels(diffusion.predicted_x(step, p.latent, p.prediction[0]))
                for p in state
                if p.prediction
            ]
        else:
            moving = [replace(picture) for picture in state]  # the state itself stays as it is
            for step in self.steps[layers:]:
                self._predict(moving, step)
                for p in moving:
                    if p.prediction:
                        p.latent = diffusion.flow(step, p.latent, p.prediction[0])
                    p.prediction = None
            predicted = [self._pixels(picture.latent) for picture in moving]
        return [_to_uint8(y, p.size) for y, p in zip(predicted, state, strict=True)]

    def sample(self, height: int, width: int, count: int, *, seed: int = 0) -> list[np.ndarray]:
        """Unconditional samples ``(height, width, 3) uint8``: what random bits would decode to.

        Ancestral sampling of the very distributions that pictures are coded with.
        """
        random = np.random.default_rng(seed)
        stream_ids = [int(i) for i in random.integers(1 << 32, size=count)]
        state = self.start([(height, width)] * count, stream_ids)
        for layer in range(self.config.steps):
            choices = self.choices(state, layer, 0)
            self.update(state, layer, 0, [_draw(choice, random) for choice in choices])
        return self.reconstruct(state, self.config.steps)

    def _predict(self, state: State, step: Step) -> None:
        """Evaluate the network where it has not been for the present latents."""
        missing = [picture for picture in state if picture.prediction is None]
        outputs = tiles.predict(self._network, [p.latent for p in missing], step.time, self.device)
        for picture, output in zip(missing, outputs, strict=True):
            picture.prediction = output

    def _pixels(self, latent: np.ndarray) -> np.ndarray:
        """z_0 as pixel values, real numbers. Mean and mode of p(x | z_0) lie there."""
        y: np.ndarray = diffusion.to_pixels(latent / self.steps[-1].alpha_s)
        return y

    def _dither(self, picture: _Picture, layer: int) -> np.ndarray:
        return dither.uniform(picture.stream_id, layer + 1, picture.latent.shape)


def _below(prefix: str, values: Mapping[str, object]) -> dict:
    """The entries whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _pad(pixels: np.ndarray) -> np.ndarray:
    """CHW pixels, edges repeated to at least TILE x TILE. What is repeated is never coded."""
    _, height, width = pixels.shape
    missing = ((0, 0), (0, max(TILE - height, 0)), (0, max(TILE - width, 0)))
    return np.pad(pixels, missing, mode="edge")


def _to_uint8(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Real pixel values CHW, rounded and cut to ``(height, width, 3) uint8``."""
    inside = values[:, : size[0], : size[1]]
    return np.floor(inside.clip(0, 255) + 0.5).astype(np.uint8).transpose(1, 2, 0)


def _most_probable(grid: Grid) -> np.ndarray:
    """The most probable symbol of each table, ``(T,) int64``."""
    tables = grid.tables
    pieces = zip(tables.start[:-1], tables.start[1:], tables.first, strict=True)
    return np.array([first + np.argmax(tables.counts[a : b - 1]) for a, b, first in pieces])


def _draw(choice: Choice, random: np.random.Generator) -> np.ndarray:
    """Symbols ``(n,) int32`` drawn from their tables; what would escape takes the last entry."""
    tables, index = choice.tables, choice.index
    cumulative = np.cumsum(tables.counts.astype(np.int64))
    total = int(cumulative[tables.start[1] - 1])  # every table's sum
    target = index.astype(np.int64) * total + random.integers(total, size=len(index))
    entry = np.searchsorted(cumulative, target, side="right") - tables.start[index]
    last = tables.start[index + 1] - tables.start[index] - 2
    return (np.minimum(entry, last) + tables.first[index]).astype(np.int32)

"""Universal quantisation in pixel space: the paper's model, exact on both sides.

Each layer is one diffusion step z_t -> z_s (Yang, Will, Mandt 2025)::

    encoder   k = round(posterior mean(z_t, x) / Delta + u)      u: dither that both sides draw
    both      z_s = (k - u) Delta                                integers and stored constants only
    both      table of k  <-  grid  <-  prior mean and scale  <-  network(z_t)

The last layer codes the pixels themselves, given z_0. The network only chooses tables and does not
change the latents, so its float noise cannot accumulate from layer to layer. If another device
would choose other tables, protection bytes correct it (protection.py), if the model has guards.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import CorruptStreamError, InvalidModelError, layer_name
from ...models.checks import below, build
from ...scheme import Choice, LayerSymbols
from ...stream import dither
from ...stream.entropy import PRECISION
from ...stream.protection import Protector, Settle, as_computed
from ..scheme import BATCH_PIXELS, MEAN
from . import diffusion
from . import windows as tiles
from .model import UniversalConfig
from .parameter_grid import Grid, Guard
from .unet import TILE, UNet
from .windows import PRECISE, USUAL, Execution


@dataclass
class _Picture:
    """One picture during encoding or decoding; arrays are CHW.

    Attributes:
        latent: z after the layers so far, float64.
        prediction: the network's noise and scale factor for ``latent``, once computed.
        precise: whether the next prediction is computed in float64.
        offset: is added to the symbols of the current layer.
        pixels: after the last layer, the picture ``(3, height, width) uint8``.
    """

    stream_id: int
    latent: np.ndarray
    prediction: tuple[np.ndarray, np.ndarray] | None = None
    precise: bool = False
    offset: np.ndarray | None = None
    pixels: np.ndarray | None = None


State = list[_Picture]


class UniversalScheme:
    """The quantiser of one model; see ``Scheme``, and ``ProtectedScheme`` if it has guards.

    ``tensors`` are those of ``UniversalModel.export``. Raises InvalidModelError if they do not fit
    the configuration.
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
            self._grid = Grid.from_arrays(below("prior.", arrays))
            self._pixel_grid = Grid.from_arrays(below("pixels.", arrays))
            network = below("network.", tensors)
            self._network = build(lambda: UNet(self.config.network), network)
            self._network.load_state_dict(network)
            self._network.to(self.device).eval()
            self.guards = None
            if "guards" in arrays:
                self.guards = [Guard(*map(float, row)) for row in arrays["guards"]]
                for guard in self.guards:
                    self._grid.check_guard(guard)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InvalidModelError(f"not a model with a universal quantiser: {error}") from error
        counts = {len(self.steps), len(self.guards or self.steps)}
        if counts != {self.config.steps} or self._quantiles.shape != (dither.QUANTILES,):
            raise InvalidModelError("the model's constants do not fit its configuration")
        self._least_bits: float | None = None  # of a window, once computed
        self._precise: UNet | None = None  # the network in float64, once needed
        self.execution = USUAL  # how the network is run, unless in float64
        self.protected = self.guards is not None
        self.num_layers = self.config.steps + 1
        self.archive_layers = self.config.steps - 1  # z_0 has more noise than pixels have: 70 dB

    def passes(self, layer: int) -> int:
        return 1

    def least_bits(self, height: int, width: int) -> float:
        """See ``Scheme``: half the bits of one window, times the number of windows."""
        if self._least_bits is None:
            (choice,) = self.choices(self.start([(TILE, TILE)], [0]), 0, 0)
            self._least_bits = float(self._grid.tables.least_bits()[choice.index].sum()) / 2
        return self._least_bits * (height * width / TILE**2)

    def encode(
        self, images: Sequence[np.ndarray], stream_ids: Sequence[int], layers: int
    ) -> list[list[LayerSymbols]]:
        """The first ``layers`` layers of each picture ``(H, W, 3) uint8``."""
        state = self.start([image.shape[:2] for image in images], stream_ids)
        coded: list[list[LayerSymbols]] = [[] for _ in images]
        for layer in range(layers):
            protectors = [Protector() for _ in images]
            choices = self.choices(state, layer, 0, protectors)
            symbols = []
            for picture, choice, image in zip(state, choices, images, strict=True):
                values = self._quantize(picture, layer, image.transpose(2, 0, 1)).reshape(-1)
                symbols.append((values - choice.offset).astype(np.int32))
            self.update(state, layer, 0, symbols)
            for so_far, choice, s, by in zip(coded, choices, symbols, protectors, strict=True):
                so_far.append(LayerSymbols((choice,), (s,), by.data))
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
            latent = dither.normal(stream_id, 0, (3, height, width), self._quantiles)
            state.append(_Picture(stream_id, latent))
        return state

    def choices(
        self, state: State, layer: int, number: int, settle: Sequence[Settle] | None = None
    ) -> list[Choice]:
        """See ``ProtectedScheme``. The choices of the last layer are exact and need no settling."""
        if layer == self.config.steps:
            out = []
            for picture in state:
                y = self._pixels(picture.latent).clip(0, 255).reshape(-1)
                out.append(self._pixel_grid.choose(y, np.zeros_like(y)))
        else:
            guard = self.guards[layer] if self.guards else None
            self.predict(state, layer)
            out = [
                self._grid.choose(*self.prior(picture, layer), guard, decide)
                for picture, decide in zip(state, settle or [as_computed] * len(state), strict=True)
            ]
        for picture, choice in zip(state, out, strict=True):
            picture.offset = choice.offset
        return out

    def recompute(self, state: State, layer: int, pictures: Sequence[int]) -> None:
        """See ``ProtectedScheme``."""
        for i in pictures:
            state[i].prediction, state[i].precise = None, True

    def prior(self, picture: _Picture, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale of a layer's symbols, ``(n,) float64`` in units of the step.

        ``predict`` must have been called.
        """
        assert picture.prediction is not None
        step, (noise, factor) = self.steps[layer], picture.prediction
        x_hat = diffusion.predicted_x(step, picture.latent, noise)
        mean = diffusion.posterior_mean(step, picture.latent, x_hat) / step.width
        mean += self._dither(picture, layer)
        return mean.reshape(-1), (factor * (step.scale / step.width)).reshape(-1)

    def update(self, state: State, layer: int, number: int, symbols: Sequence[np.ndarray]) -> None:
        for picture, decoded in zip(state, symbols, strict=True):
            assert picture.offset is not None
            values = decoded.astype(np.int64) + picture.offset
            values = values.reshape(picture.latent.shape)
            if layer == self.config.steps:
                if values.min() < 0 or values.max() > 255:
                    raise CorruptStreamError(f"{layer_name(layer)} holds impossible pixels", layer)
                picture.pixels = values.astype(np.uint8)
            else:
                step, u = self.steps[layer], self._dither(picture, layer)
                picture.latent = diffusion.dequantize(step, values, u)
            picture.prediction, picture.precise, picture.offset = None, False, None

    def reconstruct(
        self, state: State, layers: int, decoder: str | None = None
    ) -> list[np.ndarray]:
        """The pictures: x_hat of the last latent ('mean'), or along the flow to t = 0 ('flow')."""
        steps = self.config.steps
        if layers > steps:
            return [p.pixels.transpose(1, 2, 0) for p in state if p.pixels is not None]
        if layers == steps:
            predicted = [self._pixels(picture.latent) for picture in state]
        elif decoder in (None, MEAN):
            step = self.steps[layers]
            self.predict(state, layers)
            predicted = [
                diffusion.to_pixels(diffusion.predicted_x(step, p.latent, p.prediction[0]))
                for p in state
                if p.prediction
            ]
        else:
            moving = [replace(picture) for picture in state]  # does not change the state
            for layer, step in enumerate(self.steps[layers:], start=layers):
                self.predict(moving, layer)
                for p in moving:
                    if p.prediction:
                        p.latent = diffusion.flow(step, p.latent, p.prediction[0])
                    p.prediction = None
            predicted = [self._pixels(picture.latent) for picture in moving]
        return [_to_uint8(y) for y in predicted]

    def sample(self, height: int, width: int, count: int, *, seed: int = 0) -> list[np.ndarray]:
        """Unconditional samples ``(height, width, 3) uint8``: the pictures of random bits.

        Ancestral sampling from the distributions with which pictures are coded.
        """
        random = np.random.default_rng(seed)
        stream_ids = [int(i) for i in random.integers(1 << 32, size=count)]
        state = self.start([(height, width)] * count, stream_ids)
        for layer in range(self.config.steps):
            drawn = []
            for choice in self.choices(state, layer, 0):
                uniform = random.integers(1 << PRECISION, size=len(choice.index))
                drawn.append(choice.tables.draw(choice.index, uniform))
            self.update(state, layer, 0, drawn)
        return self.reconstruct(state, self.config.steps)

    def predict(self, state: State, layer: int, execution: Execution | None = None) -> None:
        """Evaluate the network for the current latents of pictures that have no prediction.

        With an ``execution``, all pictures are evaluated, in that way.
        """
        if execution is not None:
            self._evaluate(state, layer, execution)
            return
        missing = [picture for picture in state if picture.prediction is None]
        self._evaluate([p for p in missing if not p.precise], layer, self.execution)
        self._evaluate([p for p in missing if p.precise], layer, PRECISE)

    def _evaluate(self, pictures: State, layer: int, execution: Execution) -> None:
        if not pictures:
            return
        network = self._network
        if execution.dtype != torch.float32:
            if self._precise is None:
                self._precise = copy.deepcopy(network).to(execution.dtype)
            network = self._precise
        latents = [picture.latent for picture in pictures]
        time = self.steps[layer].time
        outputs = tiles.predict(network, latents, time, self.device, execution)
        for picture, output in zip(pictures, outputs, strict=True):
            picture.prediction = output

    def _pixels(self, latent: np.ndarray) -> np.ndarray:
        """z_0 as pixel values (real numbers), the mean and mode of p(x | z_0)."""
        y: np.ndarray = diffusion.to_pixels(latent / self.steps[-1].alpha_s)
        return y

    def _dither(self, picture: _Picture, layer: int) -> np.ndarray:
        return dither.uniform(picture.stream_id, layer + 1, picture.latent.shape)


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Pixel values CHW, rounded and clipped to ``(height, width, 3) uint8``."""
    return np.floor(values.clip(0, 255) + 0.5).astype(np.uint8).transpose(1, 2, 0)

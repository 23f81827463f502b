"""A small codec that is not lossless and has options, to test what all codecs share.

It stands in for CDC, whose number in the stream format it uses: ``use(monkeypatch)`` makes the zoo
load it. Layer 0 holds the picture's quality and two bits of every pixel, layer 1 two more bits, but
of pictures of quality 1 only; layer 2 has nothing in it at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from codec.base import Purpose
from codec.layered import LayeredCodec
from codec.models import zoo
from codec.scheme import Choice, LayerSymbols
from codec.stream.entropy import Tables

QUALITIES = 2


@dataclass
class _State:
    sizes: list[tuple[int, int]]
    quality: list[int] = field(default_factory=list)
    planes: dict[int, list[np.ndarray]] = field(default_factory=dict)


class ToyScheme:
    num_layers = archive_layers = 3
    uses_stream_id = protected = False
    batch_pixels = 100_000

    def __init__(self, gain: Tensor) -> None:
        self.gain = int(gain)
        self._tables = Tables.from_pmfs([(0, np.full(4, 0.25))])
        self.encoded = 0

    def encode(
        self, images: Sequence[np.ndarray], stream_ids: Sequence[int], layers: int, quality: int = 1
    ) -> list[list[LayerSymbols]]:
        self.encoded += len(images)
        return [[self._layer(x, n, quality) for n in range(layers)] for x in images]

    def _layer(self, image: np.ndarray, layer: int, quality: int) -> LayerSymbols:
        plane = (image >> (6 - 2 * layer) & 3).ravel().astype(np.int32)
        symbols = [
            [np.array([quality], np.int32), plane],
            [plane[: len(plane) * quality], plane[:0]],
            [],
        ][layer]
        return LayerSymbols(tuple(self._choice(len(s)) for s in symbols), tuple(symbols))

    def _choice(self, count: int) -> Choice:
        return Choice(np.zeros(count, np.int32), self._tables)

    def passes(self, layer: int) -> int:
        return (2, 2, 0)[layer]

    def least_bits(self, height: int, width: int) -> float:
        return 0.0

    def start(self, sizes: Sequence[tuple[int, int]], stream_ids: Sequence[int]) -> _State:
        return _State(list(sizes))

    def choices(self, state: _State, layer: int, number: int) -> list[Choice]:
        pixels = [3 * height * width for height, width in state.sizes]
        if layer == 0:
            return [self._choice(n if number else 1) for n in pixels]
        return [
            self._choice(0 if number else n * quality)
            for n, quality in zip(pixels, state.quality, strict=True)
        ]

    def update(self, state: _State, layer: int, number: int, symbols: Sequence[np.ndarray]) -> None:
        if (layer, number) == (0, 0):
            state.quality = [range(QUALITIES)[int(values[0])] for values in symbols]
        elif (layer, number) in ((0, 1), (1, 0)):
            state.planes[layer] = list(symbols)

    def reconstruct(
        self, state: _State, layers: int, decoder: str = "fast", seed: int = 0
    ) -> list[np.ndarray]:
        pictures = []
        for i, size in enumerate(state.sizes):
            picture, step = np.zeros((*size, 3), np.uint8), 256
            for layer in range(min(layers, 2)):
                plane = state.planes[layer][i]
                if len(plane):
                    step = 64 >> 2 * layer
                    picture |= plane.reshape(picture.shape).astype(np.uint8) << (6 - 2 * layer)
            if decoder == "diffusion":
                random = np.random.default_rng([seed, *size])
                pictures.append(picture + random.integers(step, size=picture.shape, dtype=np.uint8))
            else:
                pictures.append(picture + np.uint8(step // 2 % 256))
        return pictures


class ToyCodec(LayeredCodec):
    codec, lossless = "cdc", False
    encode_options = frozenset({"quality"})
    decode_options = frozenset({"decoder", "seed"})
    scheme: ToyScheme

    def check_options(self, purpose: Purpose, options: Mapping[str, Any]) -> None:
        super().check_options(purpose, options)
        if options.get("quality", 0) not in range(QUALITIES):
            raise ValueError(f"quality must be 0 to {QUALITIES - 1}, got {options['quality']}")


def load(
    name: str,
    path: Path,
    model_id: str,
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    device: str,
) -> ToyCodec:
    return ToyCodec(name, model_id, path, config, ToyScheme(tensors["gain"]), device)


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the zoo of this process load toy models."""
    monkeypatch.setitem(zoo._CODECS, "cdc", __name__)


def write_model(folder: Path) -> Path:
    path = folder / zoo.MODEL_FILE
    zoo.write_model(path, {"codec": "cdc"}, {"gain": torch.tensor(1)}, {"test": True})
    return path

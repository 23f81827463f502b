"""Small models to test with: untrained, but started from statistics like every nested model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from codec import load_codec
from codec.models import zoo
from codec.uqdm import recipes
from codec.uqdm.codec import UQDMCodec
from codec.uqdm.nested.model import NestedModel
from codec.uqdm.nested.schedule import NestedConfig

NETWORK = {"channels": 16, "hidden": 32, "blocks": 2}


def noise_pictures(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """Smooth random pictures ``(count, 3, side, side) uint8``: blurred noise with some detail."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(128, 60, (count, 3, side // 8, side // 8)))
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
    return (smooth + torch.from_numpy(rng.normal(0, 4, smooth.shape))).clamp(0, 255).byte()


def nested_model(seed: int = 0, config: NestedConfig | None = None, **network: int) -> NestedModel:
    """A tiny nested model whose network says something: its output layer is not zero."""
    torch.manual_seed(seed)
    config = config or NestedConfig(band_rms=tuple(np.geomspace(6, 0.02, 192)))
    model = NestedModel(config, {**NETWORK, **network})
    model.start_from_statistics([noise_pictures(8, 64)])
    with torch.no_grad():
        model.network.head.normal_(std=0.05)
        for block in model.network.blocks:
            block.project.normal_(std=0.2)
    return model


def with_new_passes(model: NestedModel) -> NestedModel:
    """In the passes of today's recipes, with biases that tell the colours of blocks apart."""
    model = recipes.with_new_passes(model)
    with torch.no_grad():
        model.network.stem_bias.add_(torch.randn_like(model.network.stem_bias))
    return model


def write_nested_model(
    folder: Path,
    seed: int = 0,
    pixels: bool = False,
    new_passes: bool = False,
    tuned: bool = True,
    bounded: bool = True,
) -> Path:
    """Its file. With ``pixels`` the lossless layer has a network, after four of the levels.

    Streams tune it to their pictures if it is ``tuned``; if it is ``bounded``, it has tables for
    the ends of the pixels' range. With ``new_passes`` blocks have five colours, otherwise those of
    a checkerboard.
    """
    model = nested_model(seed)
    if new_passes:
        model = with_new_passes(model)
    if pixels:
        model = recipes.with_pixel_network(model)
        assert model.pixel_network is not None
        with torch.no_grad():
            model.pixel_network.network.head.normal_(std=0.05)
            for name, parameter in model.pixel_network.heads.named_parameters():
                if name.endswith("project"):
                    parameter.normal_(std=0.2)
        own = model.pixel_network.config
        model.pixel_network.config = dataclasses.replace(own, tuned=tuned, bounded=bounded)
    path = folder / zoo.MODEL_FILE
    zoo.write_model(path, model.model_config(archive_layers=5), model.export(), {"test": True})
    return path


def nested_codec(folder: Path, **options: Any) -> UQDMCodec:
    """The codec of ``write_nested_model(folder, **options)``."""
    codec = load_codec(write_nested_model(folder, **options))
    assert isinstance(codec, UQDMCodec)
    return codec

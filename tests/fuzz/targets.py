"""Codecs to throw damaged streams at: tiny models of every kind, and sound streams of theirs."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from codec import Codec, EncodedImage, load_codec
from codec.models import zoo
from codec.uqdm.nested.export import export, model_config
from codec.uqdm.nested.schedule import NestedConfig
from tests.codec.cdc.models import light_config, write_model
from tests.codec.small_models import CONFIG, nested_model, noise_pictures
from tests.codec.uqdm.paper.test_scheme import small_codec, small_model
from tests.fuzz import mutations


@dataclass(frozen=True)
class Target:
    """A codec, sound streams of pictures of 20 to 64 pixels, and what each prefix decodes to.

    ``pictures`` has hashes of pixels by header and number of layers.
    """

    name: str
    codec: Codec
    sound: tuple[EncodedImage, ...]
    pictures: dict[tuple[bytes, int], frozenset[bytes]]

    @classmethod
    def of(cls, name: str, codec: Codec, sides: tuple[int, ...]) -> "Target":
        originals: list[np.ndarray] = []
        for seed, side in enumerate(sides):
            smooth, *_ = noise_pictures(2, 64, seed).permute(0, 2, 3, 1).contiguous().numpy()
            originals += [smooth[:side, :side], smooth[:side, : side - 5]]
        originals.append(np.full_like(originals[0], 128))
        sound = tuple(codec.encode([np.ascontiguousarray(x) for x in originals]))
        found: dict[tuple[bytes, int], set[bytes]] = {}
        for stream in sound:
            for layers in range(1, len(stream.layers) + 1):
                (picture,) = codec.decode([stream], layers=layers)
                found.setdefault((stream.header, layers), set()).add(digest(picture))
        mutations.MODELS[codec.model_id[:8]] = codec.model_id
        return cls(name, codec, sound, {key: frozenset(these) for key, these in found.items()})


def digest(picture: np.ndarray) -> bytes:
    return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).digest()


def tiny_targets(folder: Path) -> Iterator[Target]:
    """One of each kind; models are written to ``folder``."""
    few = nested(folder / "few", few_levels(), blocks=1)
    yield Target.of("nested, few levels", few, (32, 24))
    yield Target.of("nested", nested(folder / "nested"), (32, 48))
    cdc = write_model(folder / "cdc", light_config(unet=False))
    yield Target.of("cdc", load_codec(cdc), (32, 64))
    yield Target.of("universal", small_codec(folder / "universal"), (32,))
    yield Target.of("universal with protection", protected(folder / "protected"), (32,))


def few_levels() -> NestedConfig:
    every = (0, 1, 2, 3, 4)
    return NestedConfig(
        levels=3,
        first_delta=1.0,
        orders=((6, 3), (14, 14), (14, 14)),
        passes=(
            (("low", (0, 1, 2, 3)), ("low", (4,)), ("high", every)),
            (("all", (0, 1, 2)), ("all", (3, 4))),
            (("all", every),),
        ),
        band_rms=tuple(np.geomspace(6, 0.02, 192)),
    )


def nested(folder: Path, config: NestedConfig = CONFIG, **network: int) -> Codec:
    """A nested model with a lossless layer."""
    model = nested_model(config=config, **network)
    path = folder / zoo.MODEL_FILE
    zoo.write_model(path, model_config(model), export(model))
    return load_codec(path)


def protected(folder: Path) -> Codec:
    """A universal model with guards, as if it had been calibrated."""
    config, tensors = small_model()
    guards = torch.full((len(tensors["steps"]), 2), 1e-4, dtype=torch.float64)
    path = folder / zoo.MODEL_FILE
    zoo.write_model(path, config, {**tensors, "guards": guards})
    return load_codec(path)
